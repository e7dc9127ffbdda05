//! Connections that nobody wants any more: FIN_WAIT2 of an orphan, TIME_WAIT and its reuse, listeners
//! that share a port and close, and the backlog of a socket that its program is working on.

mod common;
mod tcp_support;

use common::tasks::{NONBLOCK, Prog, STREAM};
use common::{A, ADDR_B, B, Dir, Lab, PortConfig, Verdict};
use ringlab_counters::{DropReason, Mib};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret, msg};
use ringlab_kernel::trace::Point;
use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tcp_support::peer::{ACK, FIN, Peer, RST};
use tcp_support::{big_ring, connected_with, counters, mib, octet, pair, plain_nic};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// `IPPROTO_TCP`, `TCP_LINGER2`.
const LINGER2: (i32, i32) = (6, 8);
/// `SOL_SOCKET`.
const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_RCVBUF: i32 = 8;
const SO_REUSEPORT: i32 = 15;

/// A connection whose program has closed and whose FIN the peer has acknowledged.
fn orphan(seed: u64, linger2: Option<i32>) -> Peer {
    let mut p = Peer::new(seed);
    let l = p.listener(8);
    let fd = p.connect(l);
    if let Some(n) = linger2 {
        p.host.setopt(&mut p.lab, fd, LINGER2.0, LINGER2.1, n);
    }
    p.close(fd);
    p
}

/// What a FIN finds after `wait`: an ACK from the minisocket, or a RST from nobody.
fn fin_after(p: &mut Peer, wait: Duration) -> u8 {
    p.lab.run_for(wait);
    let answer = p.push(p.snd, p.rcv, FIN | ACK, &[]);
    assert_eq!(answer.len(), 1, "an answer");
    answer[0].flags()
}

#[test]
fn orphan_waits_sixty_seconds_in_fin_wait2() {
    for (wait, answer) in [(59 * S, ACK), (61 * S, RST)] {
        let mut p = orphan(1, None);
        assert!(p.send(ACK, &[]).is_empty());
        assert_eq!(p.state(), None, "its socket is a minisocket now");
        assert_eq!(fin_after(&mut p, wait), answer);
    }
}

#[test]
fn fin_timeout_and_linger2_set_how_long_an_orphan_waits() {
    // Above a minute, the socket keeps what exceeds it, and the minisocket as much again (Linux `tcp_keepalive_timer`).
    let cases = [(5, 4, ACK), (5, 6, RST), (100, 79, ACK), (100, 81, RST), (500, 119, ACK), (500, 121, RST)];
    for (linger2, wait, answer) in cases {
        let mut p = orphan(2, Some(linger2));
        p.send(ACK, &[]);
        assert_eq!(fin_after(&mut p, wait * S), answer, "TCP_LINGER2 {linger2} after {wait} s");
    }
    let mut p = Peer::new(2);
    p.lab.hosts[0].kernel.sysctl_set("net.ipv4.tcp_fin_timeout", "20").expect("a setting");
    let l = p.listener(8);
    let fd = p.connect(l);
    p.close(fd);
    p.send(ACK, &[]);
    assert_eq!(fin_after(&mut p, 21 * S), RST);
}

#[test]
fn negative_linger2_does_without_fin_wait2() {
    // The FIN is acknowledged after `close`: reset then.
    let mut p = orphan(3, Some(-1));
    let answer = p.send(ACK, &[]);
    assert_eq!((answer.len(), answer[0].flags() & RST), (1, RST));
    assert_eq!((p.state(), p.mib(Mib::TCPAbortOnData)), (None, 1));
    // It was before: `close` itself resets.
    let mut p = Peer::new(3);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.host.setopt(&mut p.lab, fd, LINGER2.0, LINGER2.1, -1);
    p.host.ok(&mut p.lab, Call::Shutdown(fd, ringlab_kernel::syscall::Shutdown::Wr));
    p.heard();
    p.send(ACK, &[]);
    assert_eq!(p.state(), Some("FIN-WAIT-2"));
    let heard = p.close(fd);
    assert!(heard[0].is_rst());
    assert_eq!((p.state(), p.mib(Mib::TCPAbortOnLinger)), (None, 1));
}

#[test]
fn data_for_an_orphan_is_reset_and_its_fin_opens_time_wait() {
    let mut p = orphan(4, None);
    p.send(ACK, &[]);
    let answer = p.send(ACK, b"anybody?");
    assert!(answer[0].is_rst());
    assert!(p.push(p.snd, p.rcv, ACK, &[])[0].is_rst(), "gone");

    let mut p = orphan(4, None);
    p.send(ACK, &[]);
    p.lab.run_for(50 * S);
    let answer = p.send(FIN | ACK, &[]);
    assert_eq!((answer[0].flags(), answer[0].ack()), (ACK, p.snd));
    // A whole minute from the FIN on.
    p.lab.run_for(59 * S);
    assert_eq!(p.push(p.snd.wrapping_sub(1), p.rcv, FIN | ACK, &[])[0].flags(), ACK);
    p.lab.run_for(61 * S);
    assert!(p.push(p.snd.wrapping_sub(1), p.rcv, FIN | ACK, &[])[0].is_rst());
    assert_eq!(p.mib(Mib::TW), 1);
}

/// `A` closes first: its port from then on in TIME_WAIT towards `B`'s port 80.
fn time_wait_of_client(seed: u64, reuse: &str) -> (Lab, Prog, u16, Prog, i32) {
    let (mut lab, a, (b, l)) = pair(seed, PortConfig::default());
    lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_tw_reuse", reuse).expect("a setting");
    // One port only: the next `connect` needs the same.
    lab.hosts[A].kernel.sysctl_set("net.ipv4.ip_local_port_range", "40000 40000").expect("a setting");
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    let Ret::Addr(local) = a.now(&mut lab, Call::GetSockName(fa)) else { panic!("a name") };
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(10 * MS);
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(10 * MS);
    assert_eq!(mib(&lab, A, Mib::TW), 1);
    (lab, a, local.port(), b, l)
}

fn connect_now(lab: &mut Lab, a: Prog) -> Errno {
    let fd = a.ok(lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
    a.err(lab, Call::Connect(fd, Some((ADDR_B, 80).into())))
}

#[test]
fn connect_takes_over_a_time_wait_after_a_second_where_tw_reuse_allows() {
    let (mut lab, a, port, b, l) = time_wait_of_client(5, "1");
    assert_eq!(port, 40000);
    assert_eq!(connect_now(&mut lab, a), Errno::EADDRNOTAVAIL, "timestamps could not tell the segments apart yet");
    lab.run_for(1100 * MS);
    let old = lab.log.iter().rfind(|f| f.dir == Dir::Forward && f.frame.is_tcp()).expect("sent").frame.clone();
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    // The new numbers lie above the old ones' window.
    let syn = &lab.log.iter().rfind(|f| f.frame.is_syn()).expect("a SYN").frame;
    assert_eq!(syn.seq(), old.seq().wrapping_add(65535 + 2));
    a.send(&mut lab, fa, b"new");
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"new");
}

#[test]
fn connect_leaves_a_time_wait_alone_by_default() {
    // 2: on the loopback only.
    for reuse in ["0", "2"] {
        let (mut lab, a, ..) = time_wait_of_client(6, reuse);
        lab.run_for(5 * S);
        assert_eq!(connect_now(&mut lab, a), Errno::EADDRNOTAVAIL, "tcp_tw_reuse {reuse}");
        lab.run_for(60 * S);
        assert_eq!(connect_now(&mut lab, a), Errno::EINPROGRESS, "a minute later it is free");
    }
}

#[test]
fn connect_leaves_an_orphan_in_fin_wait2_alone() {
    let (mut lab, a, (b, l)) = pair(7, PortConfig::default());
    lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_tw_reuse", "1").expect("a setting");
    lab.hosts[A].kernel.sysctl_set("net.ipv4.ip_local_port_range", "40000 40000").expect("a setting");
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let _fb = b.accept(&mut lab, l);
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(5 * S);
    assert_eq!(connect_now(&mut lab, a), Errno::EADDRNOTAVAIL);
}

#[test]
fn listener_may_come_back_over_time_wait_with_so_reuseaddr_only() {
    let mut p = Peer::new(8);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.close(fd);
    p.send(FIN | ACK, &[]);
    p.close(l);
    assert_eq!(p.mib(Mib::TW), 1);
    // Both the old listener's connection and the new socket must allow it.
    let fd = p.host.socket(&mut p.lab, STREAM);
    p.host.setopt(&mut p.lab, fd, SOL_SOCKET, SO_REUSEADDR, 1);
    let bind = |fd| Call::Bind(fd, (Ipv4Addr::UNSPECIFIED, 80).into());
    assert_eq!(p.host.err(&mut p.lab, bind(fd)), Errno::EADDRINUSE);

    let mut p = Peer::new(8);
    let l = p.host.socket(&mut p.lab, STREAM);
    p.host.setopt(&mut p.lab, l, SOL_SOCKET, SO_REUSEADDR, 1);
    p.host.bind(&mut p.lab, l, Ipv4Addr::UNSPECIFIED, 80);
    p.host.ok(&mut p.lab, Call::Listen(l, 8));
    let fd = p.connect(l);
    p.close(fd);
    p.send(FIN | ACK, &[]);
    p.close(l);
    let (without, with) = (p.host.socket(&mut p.lab, STREAM), p.host.socket(&mut p.lab, STREAM));
    assert_eq!(p.host.err(&mut p.lab, bind(without)), Errno::EADDRINUSE);
    p.host.setopt(&mut p.lab, with, SOL_SOCKET, SO_REUSEADDR, 1);
    p.host.ok(&mut p.lab, bind(with));
    p.host.ok(&mut p.lab, Call::Listen(with, 8));
}

/// `n` listeners of B on port 80 that share it.
fn shared_listeners(lab: &mut Lab, b: Prog, n: usize) -> Vec<i32> {
    let listen = |_| {
        let fd = b.ok(lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
        b.setopt(lab, fd, SOL_SOCKET, SO_REUSEPORT, 1);
        b.bind(lab, fd, Ipv4Addr::UNSPECIFIED, 80);
        b.ok(lab, Call::Listen(fd, 128));
        fd
    };
    (0..n).map(listen).collect()
}

/// Connections that wait at a listener.
fn accept_all(lab: &mut Lab, b: Prog, l: i32) -> Vec<i32> {
    let next = |_| match b.now(lab, Call::Accept(l, 0)) {
        Ret::Accepted(fd, _) => Some(fd),
        ret => {
            assert_eq!(ret, Ret::Err(Errno::EAGAIN));
            None
        }
    };
    (0..).map_while(next).collect()
}

#[test]
fn listeners_that_share_a_port_share_its_connections() {
    let mut lab = Lab::pair(9);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let ls = shared_listeners(&mut lab, b, 4);
    let lone = b.socket(&mut lab, STREAM);
    assert_eq!(b.err(&mut lab, Call::Bind(lone, (Ipv4Addr::UNSPECIFIED, 80).into())), Errno::EADDRINUSE);
    for _ in 0..200 {
        a.connect(&mut lab, ADDR_B, 80);
    }
    lab.run_for(10 * MS);
    let shares: Vec<usize> = ls.iter().map(|&l| accept_all(&mut lab, b, l).len()).collect();
    assert_eq!(shares.iter().sum::<usize>(), 200);
    assert!(shares.iter().all(|n| (25..=80).contains(n)), "{shares:?}");
}

#[test]
fn connections_queued_at_a_shared_listener_die_with_it_and_new_ones_go_elsewhere() {
    let mut lab = Lab::pair(10);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let ls = shared_listeners(&mut lab, b, 2);
    let fds: Vec<i32> = (0..40).map(|_| a.connect(&mut lab, ADDR_B, 80)).collect();
    lab.run_for(10 * MS);
    b.ok(&mut lab, Call::Close(ls[0]));
    lab.run_for(10 * MS);
    let kept = accept_all(&mut lab, b, ls[1]).len();
    assert!((8..=32).contains(&kept), "{kept} of 40 were the other's");
    // Linux resets what the closed one had (`net.ipv4.tcp_migrate_req` is off).
    assert_eq!(lab.count(0, Dir::Backward, |f| f.is_rst()), 40 - kept);
    let mut reset = 0;
    for &fd in &fds {
        let call = a.send_call(&lab, fd, b"x", 0, None);
        match a.now(&mut lab, call) {
            Ret::Err(Errno::ECONNRESET) => reset += 1,
            ret => assert_eq!(ret, Ret::Value(1)),
        }
    }
    assert_eq!(reset, 40 - kept);
    for _ in 0..20 {
        a.connect(&mut lab, ADDR_B, 80);
    }
    lab.run_for(10 * MS);
    assert_eq!(accept_all(&mut lab, b, ls[1]).len(), 20);
}

#[test]
fn handshake_begun_at_a_closed_listener_is_reset() {
    let mut p = Peer::new(11);
    let ls = shared_listeners(&mut p.lab, p.host, 2);
    // A port whose handshake goes to the first of them.
    p.syn();
    let at_first = |p: &mut Peer| {
        p.send(ACK, &[]);
        !accept_all(&mut p.lab, p.host, ls[0]).is_empty()
    };
    while !at_first(&mut p) {
        accept_all(&mut p.lab, p.host, ls[1]);
        p.sport += 1;
        p.syn();
    }
    // The same addresses choose the same listener again.
    assert!(p.push(p.snd, 0, RST, &[]).is_empty());
    p.syn();
    p.close(ls[0]);
    let answer = p.send(ACK, &[]);
    assert_eq!((answer.len(), answer[0].flags()), (1, RST));
}

/// B owns its socket in a long `recv` while `frames` of A's arrive; how many octets the call asks for.
fn owned_receive(lab: &mut Lab, b: (Prog, i32), frames: &[common::Frame], len: usize) -> Vec<u8> {
    for frame in frames {
        lab.hosts[B].ports[0].receive(frame);
    }
    let buffer = b.0.buffer(lab, len);
    b.0.start(lab, Prog::recv_call(b.1, buffer, msg::WAITALL));
    let ret = b.0.wait(lab);
    b.0.datagram(lab, buffer, ret).data
}

/// A connection with `len` octets waiting at B, and what A sent after them, held back on the wire.
fn waiting(seed: u64, len: usize, late: usize) -> (Lab, (Prog, i32), Vec<u8>, Vec<common::Frame>) {
    let (mut lab, a, b) = connected_with(seed, big_ring(plain_nic()));
    b.0.setopt(&mut lab, b.1, SOL_SOCKET, SO_RCVBUF, 200_000);
    lab.hosts[B].kernel.sysctl_set("net.core.rmem_max", "8000000").expect("a setting");
    b.0.setopt(&mut lab, b.1, SOL_SOCKET, SO_RCVBUF, 4_000_000);
    let data: Vec<u8> = (0..len + late).map(octet).collect();
    let (mut sent, mut got) = (0, 0);
    while sent < len {
        let n = (len - sent).min(20_000);
        assert_eq!(a.0.send(&mut lab, a.1, &data[sent..sent + n]), Ret::Value(n as i64));
        sent += n;
        lab.run_for(5 * MS);
    }
    got += lab.hosts[B].kernel.sockets_info().iter().find(|s| s.state == "ESTAB").expect("connected").recv_q as usize;
    assert_eq!(got, len, "{}", counters(&lab, B));
    let held = Rc::new(RefCell::new(Vec::new()));
    let keep = held.clone();
    lab.hook(0, move |dir, f| {
        if dir == Dir::Forward && !f.payload().is_empty() {
            keep.borrow_mut().push(f.clone());
            return Verdict::Drop;
        }
        Verdict::Pass
    });
    a.0.send(&mut lab, a.1, &data[len..]);
    lab.run_for(MS);
    lab.hook(0, |_, _| Verdict::Pass);
    let frames = held.take();
    assert!(!frames.is_empty());
    (lab, b, data, frames)
}

#[test]
fn segments_that_arrive_during_a_long_call_wait_in_the_backlog() {
    let (mut lab, b, data, frames) = waiting(12, 600_000, 9_000);
    lab.trace(B);
    let got = owned_receive(&mut lab, b, &frames, data.len());
    assert!(got == data, "all octets, in order");
    // GRO has made one packet of them.
    assert_eq!(mib(&lab, B, Mib::TCPBacklogQueued), 1, "{}", counters(&lab, B));
    assert_eq!(mib(&lab, B, Mib::TCPBacklogDrop), 0);
    // Received by the softirq, put off, and queued for the reader only when its call let go.
    let trace = lab.take_trace(B);
    let first = |p: Point| trace.iter().position(|r| r.point == p).unwrap_or_else(|| panic!("{p:?} was traced"));
    let last = |p: Point| trace.iter().rposition(|r| r.point == p).unwrap_or_else(|| panic!("{p:?} was traced"));
    assert!(trace[first(Point::SkAddBacklog)].args[1] >= 9_000, "all of the payload");
    assert!(first(Point::SysEnter) < first(Point::TcpRcv));
    assert!(first(Point::TcpRcv) < first(Point::SkAddBacklog));
    assert!(last(Point::SkAddBacklog) < last(Point::CopyToUser));
    assert!(last(Point::CopyToUser) < last(Point::SysExit));
}

#[test]
fn segments_of_a_backlog_that_gro_has_left_apart_are_joined_there() {
    let (mut lab, b, data, mut frames) = waiting(12, 600_000, 9_000);
    for frame in frames.iter_mut().filter(|f| f.flags() & 8 == 0) {
        // PSH ends what GRO merges.
        let t = frame.transport();
        frame.bytes[t + 13] |= 8;
        frame.sum_tcp();
    }
    let count = frames.len() as u64;
    assert!(count > 2);
    let got = owned_receive(&mut lab, b, &frames, data.len());
    assert!(got == data, "all octets, in order");
    let counts = [Mib::TCPBacklogQueued, Mib::TCPBacklogCoalesce, Mib::TcpInErrs].map(|c| mib(&lab, B, c));
    assert_eq!(counts, [count, count - 1, 0], "{}", counters(&lab, B));
    assert_eq!(lab.hosts[B].kernel.stats().copies.get(ringlab_counters::CopyKind::Other), 0);
}

#[test]
fn full_backlog_drops_and_counts() {
    let (mut lab, b, data, frames) = waiting(13, 600_000, 1_000);
    // Twice the receive buffer is the limit (`tcp_add_backlog`): this many copies are beyond it.
    b.0.setopt(&mut lab, b.1, SOL_SOCKET, SO_RCVBUF, 1_000_000);
    let flood: Vec<_> = std::iter::repeat_n(frames[0].clone(), 2_500).collect();
    let got = owned_receive(&mut lab, b, &flood, data.len());
    assert!(got == data, "the connection survives");
    let (queued, dropped) = (mib(&lab, B, Mib::TCPBacklogQueued), mib(&lab, B, Mib::TCPBacklogDrop));
    assert!(dropped > 0, "{}", counters(&lab, B));
    assert_eq!(lab.hosts[B].kernel.stats().drops.get(DropReason::SocketBacklog), dropped);
    assert!(queued > 0 && queued + dropped >= 2_500, "{queued} queued, {dropped} dropped");
}

#[test]
fn connection_from_a_port_in_time_wait_succeeds_it_only_with_newer_numbers() {
    let mut p = Peer::new(14);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.close(fd);
    p.send(FIN | ACK, &[]);
    assert_eq!(p.mib(Mib::TW), 1);
    // An old SYN is answered from TIME_WAIT, with an ACK (RFC 9293 §3.6.1, RFC 6191).
    let answer = p.push(p.snd.wrapping_sub(5), 0, tcp_support::peer::SYN, &[]);
    assert_eq!((answer[0].flags(), answer[0].ack()), (ACK, p.snd));
    let old = p.rcv;
    p.snd = p.snd.wrapping_add(10);
    let answer = p.syn();
    assert_eq!(answer.seq(), old.wrapping_add(65535 + 2));
    p.send(ACK, &[]);
    p.host.accept(&mut p.lab, l);
    assert_eq!(p.state(), Some("ESTAB"));
}
