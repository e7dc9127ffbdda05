//! TCP between two hosts: opening, data, closing.

mod common;

use common::tasks::Prog;
use common::{A, ADDR_B, B, Lab};
use ringlab_kernel::syscall::{Call, Ret, Shutdown};
use std::time::Duration;

/// A connection from a program of A to one of B, port 80: `(lab, (a, fd), (b, fd))`.
pub fn connected(seed: u64) -> (Lab, (Prog, i32), (Prog, i32)) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let l = b.listener(&mut lab, 80, 8);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    (lab, (a, fa), (b, fb))
}

#[test]
fn octets_arrive_both_ways_and_the_end_is_seen() {
    let (mut lab, (a, fa), (b, fb)) = connected(1);
    assert_eq!(a.send(&mut lab, fa, b"hello"), Ret::Value(5));
    assert_eq!(b.recv(&mut lab, fb, 100, 0).data, b"hello");
    assert_eq!(b.send(&mut lab, fb, b"world!"), Ret::Value(6));
    assert_eq!(a.recv(&mut lab, fa, 100, 0).data, b"world!");
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::Wr));
    assert_eq!(b.recv(&mut lab, fb, 100, 0).len, 0);
    b.ok(&mut lab, Call::Close(fb));
    assert_eq!(a.recv(&mut lab, fa, 100, 0).len, 0);
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(Duration::from_secs(1));
}
