//! Flow control and the timing of small segments: windows, probes, delayed ACKs, Nagle, keepalive, giving up.

mod common;
mod tcp_support;

use common::tasks::{NONBLOCK, Prog};
use common::{A, ADDR_B, B, Dir, Frame, Lab, PortConfig, Verdict};
use ringlab_counters::{CopyKind, DropReason, Mib};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, OptVal, Ret, msg};
use ringlab_kernel::trace::Point;
use std::time::Duration;
use tcp_support::{Side, big_ring, connected, connected_with, counters, mib, octet, pair, plain_nic, transfer};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const TCP: i32 = 6;

/// Payload lengths sent by A since frame `from` of the log.
fn lengths(lab: &Lab, from: usize) -> Vec<usize> {
    let data = |f: &Frame| f.is_tcp() && !f.payload().is_empty();
    lab.log[from..].iter().filter(|l| l.dir == Dir::Forward && data(&l.frame)).map(|l| l.frame.payload().len()).collect()
}

fn send_all(lab: &mut Lab, (a, fa): (Prog, i32), data: &[u8]) -> usize {
    a.ok(lab, Call::SetFl(fa, NONBLOCK));
    let mut sent = 0;
    while sent < data.len() {
        let call = a.send_call(lab, fa, &data[sent..], 0, None);
        match a.now(lab, call) {
            Ret::Value(n) => sent += n as usize,
            Ret::Err(Errno::EAGAIN) => break,
            ret => panic!("{ret:?}"),
        }
    }
    sent
}

/// A connection whose receiver was given a small buffer before it began.
fn small_receiver(seed: u64, rcvbuf: i32) -> (Lab, Side, Side) {
    let (mut lab, a, (b, l)) = pair(seed, big_ring(PortConfig::default()));
    b.setopt(&mut lab, l, 1, 8, rcvbuf); // SO_RCVBUF
    let fa = a.connect(&mut lab, common::ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    (lab, (a, fa), (b, fb))
}

#[test]
fn closed_window_is_probed_and_opens_again() {
    let (mut lab, a, b) = small_receiver(1, 20_000);
    let data: Vec<u8> = (0..4 << 20).map(octet).collect();
    let sent = send_all(&mut lab, a, &data);
    lab.run_for(30 * S);
    assert!(mib(&lab, B, Mib::TCPToZeroWindowAdv) > 0, "{}", counters(&lab, B));
    assert!(mib(&lab, A, Mib::TCPWinProbe) >= 5, "{}", counters(&lab, A));
    // Probes back off: fewer than a fixed 200 ms interval would give.
    assert!(mib(&lab, A, Mib::TCPWinProbe) <= 12);
    let mut got = 0;
    while got < sent {
        let d = b.0.recv(&mut lab, b.1, 65536, 0);
        assert!(d.data == data[got..got + d.len]);
        got += d.len;
    }
    assert!(mib(&lab, B, Mib::TCPFromZeroWindowAdv) > 0);
}

#[test]
fn lost_window_update_is_found_by_probing() {
    let (mut lab, a, b) = small_receiver(2, 10_000);
    let data: Vec<u8> = (0..1 << 20).map(octet).collect();
    let sent = send_all(&mut lab, a, &data);
    lab.run_for(5 * S);
    let first = b.0.recv(&mut lab, b.1, 1 << 20, 0).len;
    // What the reader's ACKs say is lost.
    let mut lost = 0;
    lab.hook(0, move |dir, f| {
        if dir == Dir::Backward && f.is_tcp() && lost < 3 {
            lost += 1;
            return Verdict::Drop;
        }
        Verdict::Pass
    });
    let mut got = first;
    while got < sent {
        got += b.0.recv(&mut lab, b.1, 65536, 0).len;
    }
}

#[test]
fn many_small_segments_are_collapsed_not_lost() {
    let (mut lab, a, b) = connected_with(3, big_ring(plain_nic()));
    a.0.setopt(&mut lab, a.1, TCP, 1, 1);
    b.0.setopt(&mut lab, b.1, 1, 8, 30_000);
    let mut sent = 0;
    for _ in 0..2000 {
        let call = a.0.send_call(&lab, a.1, &[octet(sent)], msg::DONTWAIT, None);
        if a.0.now(&mut lab, call) == Ret::Value(1) {
            sent += 1;
        }
        lab.run_for(100 * Duration::from_micros(1));
    }
    lab.run_for(S);
    let mut got = 0;
    while got < sent {
        let d = b.0.recv(&mut lab, b.1, 65536, 0);
        assert!(d.data.iter().enumerate().all(|(i, &o)| o == octet(got + i)));
        got += d.len;
    }
    let stats = lab.hosts[B].kernel.stats();
    assert!(stats.copies.get(CopyKind::Other) > 0 || stats.mib.get(Mib::TCPRcvCoalesce) > 0, "{}", counters(&lab, B));
}

#[test]
fn acks_are_quick_at_first_then_delayed_forty_milliseconds() {
    let (mut lab, a, b) = connected(4);
    for i in 0..40 {
        a.0.send(&mut lab, a.1, b"tick");
        lab.run_for(150 * MS); // less than the RTO: longer pauses bring quick ACKs back
        let tcp = |dir| move |l: &&common::Logged| l.dir == dir && l.frame.is_tcp();
        let last_data = lab.log.iter().filter(tcp(Dir::Forward)).rfind(|l| !l.frame.payload().is_empty()).expect("sent").time;
        let ack = lab.log.iter().filter(tcp(Dir::Backward)).find(|l| l.time > last_data).expect("acknowledged").time;
        let delay = ack - last_data;
        match i {
            0..16 => assert!(delay < MS, "segment {i}: {delay:?}"),
            _ if delay >= MS => {
                assert!((40 * MS..=201 * MS).contains(&delay), "segment {i}: {delay:?}");
                assert!(mib(&lab, B, Mib::DelayedACKs) > 0);
                return;
            }
            _ => {}
        }
        b.0.recv(&mut lab, b.1, 100, 0);
    }
    panic!("no ACK was delayed");
}

#[test]
fn ack_rides_on_the_reply() {
    let (mut lab, a, b) = connected(5);
    for _ in 0..30 {
        a.0.send(&mut lab, a.1, b"request");
        b.0.recv(&mut lab, b.1, 100, 0);
        b.0.send(&mut lab, b.1, b"reply");
        a.0.recv(&mut lab, a.1, 100, 0);
    }
    let from = lab.log.len();
    a.0.send(&mut lab, a.1, b"request");
    b.0.recv(&mut lab, b.1, 100, 0);
    b.0.send(&mut lab, b.1, b"reply");
    a.0.recv(&mut lab, a.1, 100, 0);
    let backward = lab.log[from..].iter().filter(|l| l.dir == Dir::Backward).count();
    assert_eq!(backward, 1, "the reply carries the ACK");
}

#[test]
fn nagle_holds_the_second_small_segment_and_nodelay_does_not() {
    let (mut lab, a, _) = connected(6);
    let from = lab.log.len();
    for part in [&b"one"[..], b"two", b"three"] {
        a.0.send(&mut lab, a.1, part);
    }
    lab.run_for(S);
    assert_eq!(lengths(&lab, from), [3, 8]);
    a.0.setopt(&mut lab, a.1, TCP, 1, 1);
    let from = lab.log.len();
    for part in [&b"one"[..], b"two", b"three"] {
        a.0.send(&mut lab, a.1, part);
    }
    lab.run_for(S);
    assert_eq!(lengths(&lab, from), [3, 3, 5]);
}

#[test]
fn cork_and_msg_more_hold_until_released() {
    let (mut lab, a, _) = connected(7);
    a.0.setopt(&mut lab, a.1, TCP, 3, 1);
    let from = lab.log.len();
    a.0.send(&mut lab, a.1, b"header");
    a.0.send(&mut lab, a.1, &[1; 2000]);
    lab.run_for(100 * MS);
    assert_eq!(lengths(&lab, from), [1448]);
    a.0.setopt(&mut lab, a.1, TCP, 3, 0);
    lab.run_for(100 * MS);
    assert_eq!(lengths(&lab, from), [1448, 558]);
    let from = lab.log.len();
    let call = a.0.send_call(&lab, a.1, b"more ", msg::MORE, None);
    a.0.ok(&mut lab, call);
    lab.run_for(100 * MS);
    assert_eq!(lengths(&lab, from), [0; 0]);
    a.0.send(&mut lab, a.1, b"done");
    lab.run_for(100 * MS);
    assert_eq!(lengths(&lab, from), [9]);
}

#[test]
fn retransmissions_back_off_and_end_in_etimedout() {
    let (mut lab, a, _) = connected(8);
    lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_early_retrans", "0").expect("known");
    lab.run_for(S);
    lab.hook(0, |_, f| if f.is_tcp() { Verdict::Drop } else { Verdict::Pass });
    let from = lab.log.len();
    a.0.send(&mut lab, a.1, b"into the void");
    let start = lab.now;
    let buffer = a.0.buffer(&lab, 10);
    assert_eq!(a.0.call(&mut lab, Prog::recv_call(a.1, buffer, 0)), Ret::Err(Errno::ETIMEDOUT));
    let t: Vec<u64> = lab.log[from..].iter().filter(|l| l.frame.is_tcp()).map(|l| l.time.0 / 1_000_000).collect();
    let gaps: Vec<u64> = t.windows(2).map(|w| w[1] - w[0]).collect();
    assert!((195..=215).contains(&gaps[0]), "{gaps:?}");
    for w in gaps.windows(2).filter(|w| w[1] < 119_000) {
        assert!((w[0] * 2).abs_diff(w[1]) <= 3, "{gaps:?}");
    }
    let seconds = (lab.now - start).as_secs();
    assert!((900..1100).contains(&seconds), "{seconds} s, {} tries", t.len());
}

#[test]
fn user_timeout_ends_sooner() {
    let (mut lab, a, _) = connected(9);
    a.0.setopt(&mut lab, a.1, TCP, 18, 3000);
    lab.hook(0, |_, f| if f.is_tcp() { Verdict::Drop } else { Verdict::Pass });
    a.0.send(&mut lab, a.1, b"into the void");
    let start = lab.now;
    let buffer = a.0.buffer(&lab, 10);
    assert_eq!(a.0.call(&mut lab, Prog::recv_call(a.1, buffer, 0)), Ret::Err(Errno::ETIMEDOUT));
    assert!(lab.now - start <= 4 * S, "{:?}", lab.now - start);
}

#[test]
fn keepalive_probes_an_idle_peer_and_gives_up_on_a_dead_one() {
    let (mut lab, a, _) = connected(10);
    a.0.setopt(&mut lab, a.1, 1, 9, 1);
    for (name, val) in [(4, 10), (5, 2), (6, 3)] {
        a.0.setopt(&mut lab, a.1, TCP, name, val);
    }
    lab.run_for(60 * S);
    assert!((5..=7).contains(&mib(&lab, A, Mib::TCPKeepAlive)), "{}", counters(&lab, A));
    lab.hook(0, |_, f| if f.is_tcp() { Verdict::Drop } else { Verdict::Pass });
    let start = lab.now;
    let buffer = a.0.buffer(&lab, 10);
    assert_eq!(a.0.call(&mut lab, Prog::recv_call(a.1, buffer, 0)), Ret::Err(Errno::ETIMEDOUT));
    assert!(lab.now - start < 25 * S);
}

#[test]
fn tail_loss_is_probed_before_the_rto() {
    let (mut lab, a, b) = connected_with(11, plain_nic());
    transfer(&mut lab, a, b, 100_000, 100_000);
    lab.run_for(S);
    lab.drop_first(0, |dir, f| dir == Dir::Forward && !f.payload().is_empty());
    let start = lab.now;
    a.0.send(&mut lab, a.1, &[9; 1000]);
    assert_eq!(b.0.recv(&mut lab, b.1, 1000, 0).len, 1000);
    assert!(lab.now - start < 250 * MS, "{:?}", lab.now - start);
    assert_eq!(mib(&lab, A, Mib::TCPTimeouts) + mib(&lab, A, Mib::TCPLossProbes), 1, "{}", counters(&lab, A));
}

#[test]
fn maxseg_limits_both_directions() {
    let (mut lab, a, (b, l)) = pair(12, PortConfig::default());
    let fa = a.socket(&mut lab, common::tasks::STREAM);
    a.setopt(&mut lab, fa, TCP, 2, 1000);
    assert_eq!(a.call(&mut lab, Call::Connect(fa, Some((common::ADDR_B, 80).into()))), Ret::Value(0));
    let fb = b.accept(&mut lab, l);
    assert_eq!(a.getopt(&mut lab, fa, TCP, 2), 988);
    assert_eq!(b.getopt(&mut lab, fb, TCP, 2), 988);
    transfer(&mut lab, (b, fb), (a, fa), 100_000, 50_000);
    assert!(lab.log.iter().all(|l| l.frame.hdr.gso_type == 0 || l.frame.hdr.gso_size == 988));
}

#[test]
fn options_read_back_as_linux_shows_them() {
    let (mut lab, a, _) = connected(13);
    for (name, set, read) in [(4, 60, 60), (5, 7, 7), (6, 4, 4), (18, 2500, 2500), (25, 4096, 4096), (8, 30, 30), (7, 2, 2)] {
        a.0.setopt(&mut lab, a.1, TCP, name, set);
        assert_eq!(a.0.getopt(&mut lab, a.1, TCP, name), read, "option {name}");
    }
    let set = |v: &[u8]| Call::SetSockOpt(a.1, TCP, 13, OptVal::Bytes(v.to_vec()));
    assert_eq!(a.0.now(&mut lab, set(b"reno")), Ret::Value(0));
    assert_eq!(a.0.err(&mut lab, set(b"bic")), Errno::ENOENT);
    assert_eq!(a.0.now(&mut lab, Call::GetSockOpt(a.1, TCP, 13)), Ret::Opt(OptVal::Bytes(b"reno\0\0\0\0\0\0\0\0\0\0\0\0".to_vec())));
    assert_eq!(a.0.err(&mut lab, Call::SetSockOpt(a.1, TCP, 9999, OptVal::Int(1))), Errno::ENOPROTOOPT);
    assert_eq!(a.0.err(&mut lab, Call::SetSockOpt(a.1, TCP, 4, OptVal::Int(0))), Errno::EINVAL);
    let Ret::Opt(OptVal::Bytes(info)) = a.0.now(&mut lab, Call::GetSockOpt(a.1, TCP, 11)) else { panic!() };
    assert_eq!((info[0], info.len()), (1, 248));
}

#[test]
fn peek_waitall_and_urgent_data() {
    let (mut lab, a, b) = connected(14);
    a.0.send(&mut lab, a.1, b"abc");
    assert_eq!(b.0.recv(&mut lab, b.1, 2, msg::PEEK).data, b"ab");
    assert_eq!(b.0.recv(&mut lab, b.1, 10, 0).data, b"abc");
    let buffer = b.0.buffer(&lab, 6);
    b.0.blocks(&mut lab, Prog::recv_call(b.1, buffer, msg::WAITALL));
    a.0.send(&mut lab, a.1, b"123");
    lab.run_for(S);
    assert_eq!(b.0.poll(&mut lab), None);
    a.0.send(&mut lab, a.1, b"456");
    let ret = b.0.wait(&mut lab);
    assert_eq!(b.0.datagram(&lab, buffer, ret).data, b"123456");
    let oob = a.0.send_call(&lab, a.1, b"xy!", msg::OOB, None);
    a.0.ok(&mut lab, oob);
    a.0.send(&mut lab, a.1, b"z");
    lab.run_for(S);
    assert_eq!(b.0.recv(&mut lab, b.1, 10, 0).data, b"xy");
    assert_eq!(b.0.recv(&mut lab, b.1, 1, msg::OOB).data, b"!");
    assert_eq!(b.0.recv(&mut lab, b.1, 10, 0).data, b"z");
    assert_eq!(b.0.recv_err(&mut lab, b.1, msg::OOB | msg::DONTWAIT), Errno::EINVAL);
}

#[test]
fn segments_for_an_owned_socket_wait_in_its_backlog() {
    let (mut lab, a, b) = {
        let mut lab = Lab::pair(15);
        // Room for all that is sent below: the call does not sleep.
        lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_wmem", "4096 4194304 4194304").expect("a row");
        let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
        let l = b.listener(&mut lab, 80, 8);
        let fa = a.connect(&mut lab, ADDR_B, 80);
        let fb = b.accept(&mut lab, l);
        (lab, (a, fa), (b, fb))
    };
    // B's segment arrives, unnoticed, while A is in a long call.
    lab.drop_first(0, |dir, f| dir == Dir::Backward && f.payload() == b"ping");
    b.0.send(&mut lab, b.1, b"ping");
    lab.run_for(Duration::from_micros(1));
    let late = lab.log.iter().rfind(|l| l.frame.payload() == b"ping").expect("sent").frame.clone();
    lab.hosts[A].ports[0].receive(&late);
    lab.trace(A);
    let source = lab.hosts[A].mem.put(&vec![7; 1 << 20]);
    let call = Call::Send { fd: a.1, iov: ringlab_kernel::uaccess::Iov::One(source), flags: 0, to: None, control: Vec::new() };
    assert_eq!(a.0.now(&mut lab, call), Ret::Value(1 << 20));
    let points: Vec<Point> = lab.take_trace(A).iter().map(|r| r.point).collect();
    let at = |point: Point| points.iter().position(|&p| p == point).unwrap_or_else(|| panic!("{point:?}"));
    assert!(at(Point::SysEnter) < at(Point::HardIrq) && at(Point::HardIrq) < at(Point::SkAddBacklog));
    assert!(at(Point::SkAddBacklog) < at(Point::TcpQueueRcv) && at(Point::TcpQueueRcv) < at(Point::SysExit));
    let stats = lab.hosts[A].kernel.stats();
    assert_eq!((stats.mib.get(Mib::TCPBacklogQueued), stats.drops.get(DropReason::SocketBacklog)), (1, 0));
    assert_eq!(a.0.recv(&mut lab, a.1, 10, 0).data, b"ping");
}
