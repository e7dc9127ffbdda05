//! Signals for a socket's owner, `SIGPIPE`, urgent data.

mod common;

use common::tasks::{AF_INET, NONBLOCK, Prog, SOL_SOCKET, STREAM};
use common::{A, ADDR_A, ADDR_B, B, Lab};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::signal::{Owner, SI_KERNEL, Signal, SignalTo};
use ringlab_kernel::syscall::{Call, Ret, Shutdown, msg};
use ringlab_kernel::wait::queue::PollEvents;
use std::time::Duration;

const O_ASYNC: i32 = 0o20000;

fn pair(seed: u64) -> (Lab, Prog, i32, Prog, i32) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let listener = b.listener(&mut lab, 80, 5);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, listener);
    (lab, a, fa, b, fb)
}

fn taken(lab: &mut Lab, host: usize) -> Vec<(i32, i32, u32)> {
    std::mem::take(&mut lab.hosts[host].signals).iter().map(|s| (s.signo, s.code, s.band)).collect()
}

#[test]
fn owner_with_async_gets_sigio_for_what_happens() {
    let (mut lab, a, fa, b, fb) = pair(1);
    b.ok(&mut lab, Call::SetOwn(fb, Owner::from_setown(-42)));
    assert_eq!(b.now(&mut lab, Call::GetOwn(fb)), Ret::Owner(Some(Owner::Group(42))));
    assert_eq!(b.now(&mut lab, Call::GetOwn(fb)).as_number(), -42);
    assert_eq!(b.err(&mut lab, Call::SetOwn(fb, Owner::from_setown(i32::MIN))), Errno::EINVAL);
    assert_eq!(b.err(&mut lab, Call::Ioctl(fb, 0x8901, i32::MIN.to_ne_bytes().to_vec())), Errno::EINVAL);
    assert_eq!(b.now(&mut lab, Call::GetOwn(fb)).as_number(), -42, "it has not changed");
    a.send(&mut lab, fa, b"x");
    lab.run_for(Duration::from_millis(1));
    assert!(lab.hosts[B].signals.is_empty(), "O_ASYNC is not set");
    b.ok(&mut lab, Call::SetFl(fb, O_ASYNC | NONBLOCK));
    assert_eq!(b.ok(&mut lab, Call::GetFl(fb)) as i32 & O_ASYNC, O_ASYNC);
    a.send(&mut lab, fa, b"y");
    lab.run_for(Duration::from_millis(1));
    let to = SignalTo::Owner(Owner::Group(42));
    assert_eq!(std::mem::take(&mut lab.hosts[B].signals), [Signal { to, signo: 29, code: SI_KERNEL, band: 0, fd: 0 }]);
    // A signal of its own brings the descriptor and the band along.
    b.ok(&mut lab, Call::SetSig(fb, 34));
    assert_eq!(b.ok(&mut lab, Call::GetSig(fb)), 34);
    assert_eq!(b.err(&mut lab, Call::SetSig(fb, 65)), Errno::EINVAL);
    a.send(&mut lab, fa, b"z");
    lab.run_for(Duration::from_millis(1));
    assert_eq!(std::mem::take(&mut lab.hosts[B].signals), [Signal { to, signo: 34, code: 1, band: 0x41, fd: fb }]);
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::Wr));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(taken(&mut lab, B), [(34, 1, 0x41)], "the end of the stream is something to read");
}

#[test]
fn connection_made_is_told_by_sigio() {
    let mut lab = Lab::pair(2);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    b.listener(&mut lab, 80, 5);
    let fd = a.ok(&mut lab, Call::Socket(AF_INET, STREAM | NONBLOCK, 0)) as i32;
    a.ok(&mut lab, Call::SetOwn(fd, Owner::from_setown(7)));
    a.ok(&mut lab, Call::SetSig(fd, 40));
    a.ok(&mut lab, Call::Ioctl(fd, 0x5452, 1i32.to_ne_bytes().to_vec()));
    assert_eq!(a.err(&mut lab, Call::Connect(fd, Some((ADDR_B, 80).into()))), Errno::EINPROGRESS);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(taken(&mut lab, A), [(40, 2, 0x304)]);
}

#[test]
fn connection_given_up_is_told_by_sigio() {
    let mut lab = Lab::pair(2);
    let a = Prog::spawn(&mut lab, A, "a");
    let give_up: [fn(i32) -> Call; 2] = [|fd| Call::Connect(fd, None), |fd| Call::Shutdown(fd, Shutdown::RdWr)];
    for call in give_up {
        let fd = a.ok(&mut lab, Call::Socket(AF_INET, STREAM | NONBLOCK, 0)) as i32;
        a.ok(&mut lab, Call::SetOwn(fd, Owner::from_setown(7)));
        a.ok(&mut lab, Call::SetSig(fd, 40));
        a.ok(&mut lab, Call::Ioctl(fd, 0x5452, 1i32.to_ne_bytes().to_vec()));
        assert_eq!(a.err(&mut lab, Call::Connect(fd, Some((ADDR_B, 80).into()))), Errno::EINPROGRESS);
        a.ok(&mut lab, call(fd));
        assert_eq!(taken(&mut lab, A), [(40, 4, 0x8)]);
    }
}

#[test]
fn writer_to_a_closed_stream_gets_sigpipe_unless_it_declines() {
    let (mut lab, a, fa, b, fb) = pair(3);
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::Wr));
    assert_eq!(a.send(&mut lab, fa, b"x"), Ret::Err(Errno::EPIPE));
    let signal = Signal { to: SignalTo::Task(a.task), signo: 13, code: SI_KERNEL, band: 0, fd: 0 };
    assert_eq!(std::mem::take(&mut lab.hosts[A].signals), [signal]);
    let quiet = a.send_call(&lab, fa, b"x", msg::NOSIGNAL, None);
    assert_eq!(a.now(&mut lab, quiet), Ret::Err(Errno::EPIPE));
    assert!(lab.hosts[A].signals.is_empty());
    // The peer had ended its side before it reset the connection: the reset breaks the pipe.
    b.send(&mut lab, fb, b"unread");
    lab.run_for(Duration::from_millis(1));
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.send(&mut lab, fb, b"x"), Ret::Err(Errno::EPIPE));
    assert_eq!(taken(&mut lab, B), [(13, SI_KERNEL, 0)]);
    let udp = a.udp(&mut lab, 9);
    a.ok(&mut lab, Call::Connect(udp, Some((ADDR_B, 9).into())));
    a.ok(&mut lab, Call::Shutdown(udp, Shutdown::Wr));
    assert_eq!(a.send(&mut lab, udp, b"x"), Ret::Err(Errno::EPIPE));
    assert!(lab.hosts[A].signals.is_empty(), "datagrams have no pipe");
}

#[test]
fn urgent_octet_is_told_and_read_out_of_band() {
    let (mut lab, a, fa, b, fb) = pair(4);
    b.ok(&mut lab, Call::Ioctl(fb, 0x8901, 99i32.to_ne_bytes().to_vec()));
    assert_eq!(b.now(&mut lab, Call::Ioctl(fb, 0x8903, vec![0; 4])), Ret::Bytes(99i32.to_ne_bytes().to_vec()));
    a.send(&mut lab, fa, b"abc");
    let urgent = a.send_call(&lab, fa, b"!", msg::OOB, None);
    assert_eq!(a.now(&mut lab, urgent), Ret::Value(1));
    a.send(&mut lab, fa, b"def");
    lab.run_for(Duration::from_millis(1));
    assert_eq!(taken(&mut lab, B), [(23, SI_KERNEL, 0)], "SIGURG needs an owner only");
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, PollEvents::PRI);
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, PollEvents::PRI)]);
    assert_eq!(b.ok(&mut lab, Call::AtMark(fb)), 0);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"abc", "reading stops at the mark");
    assert_eq!(b.ok(&mut lab, Call::AtMark(fb)), 1);
    let oob = b.recv(&mut lab, fb, 10, msg::OOB);
    assert_eq!((&oob.data[..], oob.flags), (&b"!"[..], msg::OOB));
    assert_eq!(b.recv_err(&mut lab, fb, msg::OOB), Errno::EINVAL, "read already");
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"def");
    // In line, it is an octet like any other.
    b.setopt(&mut lab, fb, SOL_SOCKET, 10, 1);
    let urgent = a.send_call(&lab, fa, b"?", msg::OOB, None);
    a.now(&mut lab, urgent);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.recv_err(&mut lab, fb, msg::OOB), Errno::EINVAL);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"?");
    let _ = ADDR_A;
}

#[test]
fn urgent_octet_for_a_closed_socket_is_told_to_nobody() {
    let (mut lab, a, fa, b, fb) = pair(5);
    let me = Owner::from_setown(7);
    a.ok(&mut lab, Call::SetOwn(fa, me));
    a.ok(&mut lab, Call::SetFl(fa, O_ASYNC));
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(Duration::from_millis(1));
    // The next socket has the descriptor and the place in the table of files.
    let next = a.udp(&mut lab, 9);
    assert_eq!(next, fa);
    a.ok(&mut lab, Call::SetOwn(next, me));
    a.ok(&mut lab, Call::SetFl(next, O_ASYNC));
    let urgent = b.send_call(&lab, fb, b"!", msg::OOB, None);
    assert_eq!(b.now(&mut lab, urgent), Ret::Value(1));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.send(&mut lab, fb, b"x"), Ret::Err(Errno::EPIPE), "nobody will read it");
    assert!(lab.hosts[A].signals.is_empty(), "{:?}", lab.hosts[A].signals);
    // And where there is no file any more.
    let (mut lab, a, fa, b, fb) = pair(6);
    a.ok(&mut lab, Call::SetOwn(fa, me));
    a.ok(&mut lab, Call::Close(fa));
    let urgent = b.send_call(&lab, fb, b"!", msg::OOB, None);
    b.now(&mut lab, urgent);
    lab.run_for(Duration::from_millis(1));
    assert_eq!((lab.hosts[A].signals.len(), lab.hosts[A].kernel.sockets_info().len()), (0, 0));
}
