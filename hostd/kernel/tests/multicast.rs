//! Multicast on one link: delivery by membership and source, what is told to routers.

mod common;

use common::tasks::{DGRAM, Prog, STREAM};
use common::{A, ADDR_A, ADDR_B, B, Dir, Frame, Lab};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, OptVal, Ret, msg};
use std::net::Ipv4Addr;
use std::time::Duration;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const JOIN: i32 = 35;
const LEAVE: i32 = 36;
const BLOCK: i32 = 38;
const JOIN_SOURCE: i32 = 39;
const LEAVE_SOURCE: i32 = 40;

fn two(seed: u64) -> (Lab, Prog, Prog) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    (lab, a, b)
}

fn member(fd: i32, name: i32) -> Call {
    Call::SetSockOpt(fd, 0, name, OptVal::Membership(GROUP, ADDR_B, 0))
}

fn source(fd: i32, name: i32, source: Ipv4Addr) -> Call {
    Call::SetSockOpt(fd, 0, name, OptVal::Source(GROUP, source, ADDR_B, 0))
}

/// True if what the first sends to the group arrives at the second.
fn gets(lab: &mut Lab, (a, fa): (Prog, i32), (b, fb): (Prog, i32)) -> bool {
    a.send_to(lab, fa, b"x", GROUP, 9);
    lab.run_for(Duration::from_millis(1));
    let buffer = b.buffer(lab, 10);
    matches!(b.now(lab, Prog::recv_call(fb, buffer, msg::DONTWAIT)), Ret::Received { .. })
}

fn igmp(lab: &Lab) -> Vec<Vec<u8>> {
    let to_us = |f: &&Frame| f.protocol() == 2;
    lab.log.iter().filter(|l| l.dir == Dir::Backward).map(|l| &l.frame).filter(to_us).map(|f| f.bytes[f.transport()..].to_vec()).collect()
}

#[test]
fn group_is_received_while_somebody_is_a_member() {
    let (mut lab, a, b) = two(1);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    let gets = |lab: &mut Lab| gets(lab, (a, fa), (b, fb));
    a.ok(&mut lab, Call::SetSockOpt(fa, 0, 32, OptVal::Membership(ANY, ADDR_A, 0)));
    assert!(!gets(&mut lab), "nobody joined");
    b.ok(&mut lab, member(fb, JOIN));
    assert_eq!(b.err(&mut lab, member(fb, JOIN)), Errno::EADDRINUSE);
    assert!(gets(&mut lab));
    b.ok(&mut lab, member(fb, LEAVE));
    assert_eq!(b.err(&mut lab, member(fb, LEAVE)), Errno::EADDRNOTAVAIL);
    assert!(!gets(&mut lab));
    let stream = b.socket(&mut lab, STREAM);
    assert_eq!(b.err(&mut lab, member(stream, JOIN)), Errno::EPROTO);
    let unicast = OptVal::Membership(ADDR_A, ADDR_B, 0);
    assert_eq!(b.err(&mut lab, Call::SetSockOpt(fb, 0, JOIN, unicast)), Errno::EINVAL);
}

#[test]
fn sources_are_chosen_or_refused() {
    let (mut lab, a, b) = two(2);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    let gets = |lab: &mut Lab| gets(lab, (a, fa), (b, fb));
    a.ok(&mut lab, Call::SetSockOpt(fa, 0, 32, OptVal::Membership(ANY, ADDR_A, 0)));
    let other = Ipv4Addr::new(10, 0, 0, 9);
    b.ok(&mut lab, source(fb, JOIN_SOURCE, other));
    assert!(!gets(&mut lab), "not from him");
    b.ok(&mut lab, source(fb, JOIN_SOURCE, ADDR_A));
    assert!(gets(&mut lab));
    assert_eq!(b.err(&mut lab, source(fb, BLOCK, ADDR_A)), Errno::EINVAL, "one list at a time");
    b.ok(&mut lab, source(fb, LEAVE_SOURCE, ADDR_A));
    b.ok(&mut lab, source(fb, LEAVE_SOURCE, other));
    assert_eq!(b.err(&mut lab, member(fb, LEAVE)), Errno::EADDRNOTAVAIL, "the last source took the group along");
    b.ok(&mut lab, member(fb, JOIN));
    b.ok(&mut lab, source(fb, BLOCK, ADDR_A));
    assert!(!gets(&mut lab));
    assert_eq!(b.err(&mut lab, source(fb, BLOCK, ADDR_A)), Errno::EADDRNOTAVAIL);
}

#[test]
fn joining_and_leaving_are_reported_twice() {
    let (mut lab, _, b) = two(3);
    let (first, second) = (b.udp(&mut lab, 9), b.socket(&mut lab, DGRAM));
    b.ok(&mut lab, member(first, JOIN));
    b.ok(&mut lab, member(second, JOIN));
    lab.run_for(Duration::from_secs(2));
    let reports = igmp(&lab);
    let to_exclude = [&[0x22, 0][..], &reports[0][2..4], &[0, 0, 0, 1, 4, 0, 0, 0, 239, 1, 2, 3]].concat();
    assert_eq!(reports, [to_exclude.clone(), to_exclude], "once, and again in case it was lost");
    let frame = lab.log.iter().map(|l| &l.frame).find(|f| f.protocol() == 2).expect("sent");
    assert_eq!((frame.daddr(), frame.ttl(), frame.tos(), frame.df()), (Ipv4Addr::new(224, 0, 0, 22), 1, 0xc0, true));
    assert_eq!(frame.bytes[34..38], [0x94, 4, 0, 0], "router alert");
    assert_eq!(frame.bytes[..6], [1, 0, 0x5e, 0, 0, 22]);
    b.ok(&mut lab, member(first, LEAVE));
    lab.run_for(Duration::from_secs(2));
    assert_eq!(igmp(&lab).len(), 2, "the other socket is still a member");
    b.ok(&mut lab, Call::Close(second));
    lab.run_for(Duration::from_secs(2));
    assert_eq!(igmp(&lab)[2..].iter().map(|r| r[8]).collect::<Vec<_>>(), [3, 3], "to include nobody");
}

#[test]
fn query_is_answered_within_its_time_and_in_its_version() {
    let (mut lab, a, b) = two(4);
    let fb = b.udp(&mut lab, 9);
    b.ok(&mut lab, member(fb, JOIN));
    lab.run_for(Duration::from_secs(2));
    lab.log.clear();
    let router = a.ok(&mut lab, Call::Socket(2, 3, 2)) as i32;
    a.ok(&mut lab, Call::SetSockOpt(router, 0, 32, OptVal::Membership(ANY, ADDR_A, 0)));
    let query = |lab: &mut Lab, message: &[u8]| {
        let mut q = message.to_vec();
        let sum = !ringlab_ring::memory::fold(ringlab_ring::memory::checksum_add(&q, 0));
        q[2..4].copy_from_slice(&sum.to_be_bytes());
        a.send_to(lab, router, &q, Ipv4Addr::new(224, 0, 0, 1), 0);
        lab.run_for(Duration::from_millis(2100));
        std::mem::take(&mut lab.log)
    };
    let log = query(&mut lab, &[0x11, 20, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0]);
    let answers: Vec<_> = log.iter().filter(|l| l.dir == Dir::Backward && l.frame.protocol() == 2).collect();
    let body = |f: &Frame| f.bytes[f.transport()..].to_vec();
    assert_eq!((answers.len(), body(&answers[0].frame)[8..].to_vec()), (1, vec![2, 0, 0, 0, 239, 1, 2, 3]), "is excluding nobody");
    let log = query(&mut lab, &[0x11, 10, 0, 0, 239, 1, 2, 3]);
    let answers: Vec<_> = log.iter().filter(|l| l.dir == Dir::Backward && l.frame.protocol() == 2).collect();
    assert_eq!((answers.len(), body(&answers[0].frame)[0], answers[0].frame.daddr()), (1, 0x16, GROUP), "version 2 was asked");
    b.ok(&mut lab, member(fb, LEAVE));
    lab.run_for(Duration::from_millis(1));
    let leave = lab.log.iter().find(|l| l.frame.protocol() == 2).expect("told");
    assert_eq!((body(&leave.frame)[0], leave.frame.daddr()), (0x17, Ipv4Addr::new(224, 0, 0, 2)));
}
