//! Stream sockets as programs see them: connecting, accepting, waiting, closing.

mod common;

use common::tasks::{AF_INET, AF_INET6, NONBLOCK, Prog, SOL_SOCKET, STREAM, epoll_events};
use common::{A, ADDR_A, ADDR_B, B, Dir, Lab, Verdict};
use ringlab_counters::CopyKind;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, OptVal, PollFd, Ret, Shutdown, msg};
use ringlab_kernel::wait::queue::PollEvents as E;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const SO_ERROR: i32 = 4;
const SO_LINGER: i32 = 13;
const SO_RCVTIMEO: i32 = 20;
const SO_SNDTIMEO: i32 = 21;

fn to(port: u16) -> Option<SocketAddr> {
    Some((ADDR_B, port).into())
}

fn progs(seed: u64) -> (Lab, Prog, Prog) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    (lab, a, b)
}

/// A connection from A to port 80 of B: both descriptors, and the listener.
fn connected(seed: u64) -> (Lab, (Prog, i32), (Prog, i32), i32) {
    let (mut lab, a, b) = progs(seed);
    let listener = b.listener(&mut lab, 80, 10);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, listener);
    lab.run_for(Duration::from_millis(300));
    (lab, (a, fa), (b, fb), listener)
}

/// Readiness of a descriptor, all bits.
fn mask(lab: &mut Lab, p: Prog, fd: i32) -> E {
    let events = E::IN | E::PRI | E::OUT | E::RDNORM | E::WRNORM | E::RDHUP;
    let Ret::Poll(found) = p.now(lab, Call::Poll(vec![PollFd { fd, events, revents: E::empty() }], Some(Duration::ZERO))) else { panic!() };
    found[0].revents
}

const WRITABLE: E = E::OUT.union(E::WRNORM);
const READABLE: E = E::IN.union(E::RDNORM);

#[test]
fn connection_has_names_carries_data_and_ends() {
    let (mut lab, (a, fa), (b, fb), listener) = connected(1);
    let Ret::Addr(own) = a.now(&mut lab, Call::GetSockName(fa)) else { panic!() };
    assert_eq!(own.ip(), ADDR_A);
    assert_eq!(a.now(&mut lab, Call::GetPeerName(fa)), Ret::Addr((ADDR_B, 80).into()));
    assert_eq!(b.now(&mut lab, Call::GetPeerName(fb)), Ret::Addr(own));
    assert_eq!(b.now(&mut lab, Call::GetSockName(fb)), Ret::Addr((ADDR_B, 80).into()));
    assert_eq!(a.send(&mut lab, fa, b"hello"), Ret::Value(5));
    let got = b.recv(&mut lab, fb, 100, 0);
    assert_eq!((&got.data[..], got.from), (&b"hello"[..], None));
    assert_eq!(mask(&mut lab, b, fb), WRITABLE);
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(Duration::from_millis(10));
    assert_eq!(mask(&mut lab, b, fb), READABLE | WRITABLE | E::RDHUP);
    assert_eq!(b.recv(&mut lab, fb, 100, 0).len, 0);
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(Duration::from_secs(120));
    b.ok(&mut lab, Call::Close(listener));
    for host in [A, B] {
        assert_eq!(lab.hosts[host].kernel.sockets_info(), []);
    }
}

#[test]
fn blocking_stream_receive_costs_what_a_datagram_does() {
    let (mut lab, (a, fa), (b, fb), _) = connected(2);
    let before = lab.hosts[B].kernel.stats();
    let buffer = b.buffer(&lab, 100);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    a.send(&mut lab, fa, &[1; 64]);
    assert_eq!(b.wait(&mut lab).as_number(), 64);
    let after = lab.hosts[B].kernel.stats();
    let (c0, c1) = (before.cpus[0], after.cpus[0]);
    assert_eq!((c1.syscalls - c0.syscalls, c1.mode_switches - c0.mode_switches), (1, 2));
    assert_eq!((c1.context_switches - c0.context_switches, c1.wakeups - c0.wakeups), (2, 1));
    assert_eq!(after.copies.get(CopyKind::SkbToUser) - before.copies.get(CopyKind::SkbToUser), 1);
    assert_eq!(after.copies.get(CopyKind::Other), before.copies.get(CopyKind::Other));
}

#[test]
fn one_of_eight_blocked_acceptors_wakes_for_a_connection() {
    let (mut lab, a, b) = progs(3);
    let listener = b.listener(&mut lab, 80, 100);
    let acceptors: Vec<Prog> = (0..8).map(|_| b.thread(&mut lab)).collect();
    for t in &acceptors {
        t.blocks(&mut lab, Call::Accept(listener, 0));
        assert_eq!(t.info(&lab).wchan, "inet_csk_accept");
    }
    for round in 0..8u64 {
        a.connect(&mut lab, ADDR_B, 80);
        lab.run_for(Duration::from_millis(5));
        let woken: Vec<u64> = acceptors.iter().map(|t| t.info(&lab).wakeups).collect();
        assert_eq!(woken.iter().sum::<u64>(), round + 1, "{woken:?}");
        assert!(matches!(acceptors[round as usize].poll(&mut lab), Some(Ret::Accepted(..))), "first come, first served");
    }
}

#[test]
fn readers_of_one_stream_all_wake_and_one_gets_the_data() {
    let (mut lab, (a, fa), (b, fb), _) = connected(4);
    let readers: Vec<Prog> = (0..4).map(|_| b.thread(&mut lab)).collect();
    for r in &readers {
        let buffer = r.buffer(&lab, 10);
        r.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    }
    a.send(&mut lab, fa, b"once");
    lab.run_for(Duration::from_millis(5));
    let returned = readers.iter().filter(|r| r.poll(&mut lab).is_some()).count();
    assert_eq!(returned, 1);
    let woken: Vec<u64> = readers.iter().map(|r| r.info(&lab).wakeups).collect();
    assert_eq!(woken, [1; 4], "sk_wait_data does not wait exclusively");
}

#[test]
fn non_blocking_connect_is_in_progress_then_done_then_there() {
    let (mut lab, a, b) = progs(5);
    b.listener(&mut lab, 80, 10);
    let fd = a.ok(&mut lab, Call::Socket(AF_INET, STREAM | NONBLOCK, 0)) as i32;
    assert_eq!(mask(&mut lab, a, fd), WRITABLE | E::HUP, "as Linux shows an unconnected stream");
    assert_eq!(a.err(&mut lab, Call::Connect(fd, to(80))), Errno::EINPROGRESS);
    assert_eq!(a.err(&mut lab, Call::Connect(fd, to(80))), Errno::EALREADY);
    assert_eq!(mask(&mut lab, a, fd), E::empty());
    assert_eq!(a.err(&mut lab, Call::GetPeerName(fd)), Errno::ENOTCONN);
    a.blocks(&mut lab, Call::Poll(vec![PollFd { fd, events: E::OUT, revents: E::empty() }], None));
    assert_eq!(a.wait(&mut lab).as_number(), 1);
    assert_eq!(a.getopt(&mut lab, fd, SOL_SOCKET, SO_ERROR), 0);
    assert_eq!(a.now(&mut lab, Call::Connect(fd, to(80))), Ret::Value(0), "the success is told once");
    assert_eq!(a.err(&mut lab, Call::Connect(fd, to(80))), Errno::EISCONN);
}

#[test]
fn refused_connect_is_told_once_and_the_socket_can_try_again() {
    let (mut lab, a, b) = progs(6);
    let fd = a.ok(&mut lab, Call::Socket(AF_INET, STREAM | NONBLOCK, 0)) as i32;
    assert_eq!(a.err(&mut lab, Call::Connect(fd, to(80))), Errno::EINPROGRESS);
    lab.run_for(Duration::from_millis(5));
    assert_eq!(mask(&mut lab, a, fd), READABLE | WRITABLE | E::ERR | E::HUP | E::RDHUP);
    assert_eq!(a.getopt(&mut lab, fd, SOL_SOCKET, SO_ERROR), Errno::ECONNREFUSED.raw());
    assert_eq!(a.getopt(&mut lab, fd, SOL_SOCKET, SO_ERROR), 0);
    assert_eq!(a.err(&mut lab, Call::Connect(fd, to(80))), Errno::ECONNABORTED, "the error was taken");
    b.listener(&mut lab, 80, 10);
    a.ok(&mut lab, Call::SetFl(fd, 0));
    assert_eq!(a.call(&mut lab, Call::Connect(fd, to(80))), Ret::Value(0));
    let blocking = a.socket(&mut lab, STREAM);
    assert_eq!(a.call(&mut lab, Call::Connect(blocking, to(81))), Ret::Err(Errno::ECONNREFUSED));
}

#[test]
fn connect_gives_up_waiting_but_not_connecting() {
    let (mut lab, a, b) = progs(7);
    b.listener(&mut lab, 80, 10);
    lab.hook(0, |dir, f| if dir == Dir::Backward && !f.is_arp() { Verdict::Drop } else { Verdict::Pass });
    let fd = a.socket(&mut lab, STREAM);
    a.settime(&mut lab, fd, SO_SNDTIMEO, Duration::from_millis(300));
    a.blocks(&mut lab, Call::Connect(fd, to(80)));
    let start = lab.now;
    assert_eq!(a.wait(&mut lab), Ret::Err(Errno::EINPROGRESS));
    assert_eq!(lab.now - start, Duration::from_millis(300));
    a.settime(&mut lab, fd, SO_SNDTIMEO, Duration::ZERO);
    a.blocks(&mut lab, Call::Connect(fd, to(80)));
    a.signal(&mut lab);
    assert_eq!(a.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
    lab.hook(0, |_, _| Verdict::Pass);
    assert_eq!(a.call(&mut lab, Call::Connect(fd, to(80))), Ret::Value(0), "a later call waits for the same attempt");
}

#[test]
fn accept_waits_fails_and_ends_as_told() {
    let (mut lab, a, b) = progs(8);
    let listener = b.listener(&mut lab, 80, 10);
    assert_eq!(mask(&mut lab, b, listener), E::empty());
    b.settime(&mut lab, listener, SO_RCVTIMEO, Duration::from_millis(50));
    assert_eq!(b.call(&mut lab, Call::Accept(listener, 0)), Ret::Err(Errno::EAGAIN));
    b.settime(&mut lab, listener, SO_RCVTIMEO, Duration::ZERO);
    b.blocks(&mut lab, Call::Accept(listener, 0));
    b.signal(&mut lab);
    assert_eq!(b.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
    b.ok(&mut lab, Call::SetFl(listener, NONBLOCK));
    assert_eq!(b.err(&mut lab, Call::Accept(listener, 0)), Errno::EAGAIN);
    a.connect(&mut lab, ADDR_B, 80);
    lab.run_for(Duration::from_millis(5));
    assert_eq!(mask(&mut lab, b, listener), READABLE);
    lab.hosts[B].kernel.set_fd_limit(b.task, 1);
    assert_eq!(b.err(&mut lab, Call::Accept(listener, 0)), Errno::EMFILE);
    lab.hosts[B].kernel.set_fd_limit(b.task, 100);
    let Ret::Accepted(fd, _) = b.now(&mut lab, Call::Accept(listener, NONBLOCK)) else { panic!("the connection is still there") };
    assert_eq!(b.recv_err(&mut lab, fd, 0), Errno::EAGAIN);
    assert_eq!(b.err(&mut lab, Call::Accept(fd, 0)), Errno::EINVAL);
    assert_eq!(b.err(&mut lab, Call::Accept(listener, 1)), Errno::EINVAL);
    b.ok(&mut lab, Call::SetFl(listener, 0));
    let waiter = b.thread(&mut lab);
    waiter.blocks(&mut lab, Call::Accept(listener, 0));
    b.ok(&mut lab, Call::Shutdown(listener, Shutdown::RdWr));
    assert_eq!(waiter.poll(&mut lab), Some(Ret::Err(Errno::EINVAL)));
}

#[test]
fn large_write_blocks_until_the_reader_reads() {
    let (mut lab, (a, fa), (b, fb), _) = connected(9);
    let data: Vec<u8> = (0..10_000_000u32).map(|i| (i / 251) as u8).collect();
    let call = a.send_call(&lab, fa, &data, 0, None);
    a.blocks(&mut lab, call);
    lab.run_for(Duration::from_secs(2));
    assert_eq!(a.poll(&mut lab), None);
    assert_eq!(a.info(&lab).wchan, "sk_stream_wait_memory");
    assert!(!mask(&mut lab, b, fb).is_empty());
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(b.recv(&mut lab, fb, 300_000, 0).data);
    }
    assert!(got == data);
    assert_eq!(a.wait(&mut lab), Ret::Value(10_000_000));
}

#[test]
fn interrupted_write_returns_what_it_wrote() {
    let (mut lab, (a, fa), _, _) = connected(10);
    let data = vec![0; 10_000_000];
    let call = a.send_call(&lab, fa, &data, 0, None);
    a.blocks(&mut lab, call.clone());
    lab.run_for(Duration::from_secs(2));
    a.signal(&mut lab);
    let Some(Ret::Value(n)) = a.poll(&mut lab) else { panic!("a partial write") };
    assert!((10_000..10_000_000).contains(&n), "{n}");
    a.settime(&mut lab, fa, SO_SNDTIMEO, Duration::from_millis(100));
    assert_eq!(a.call(&mut lab, call.clone()), Ret::Err(Errno::EAGAIN));
    assert_eq!(mask(&mut lab, a, fa), E::empty(), "no room");
    a.ok(&mut lab, Call::SetFl(fa, NONBLOCK));
    assert_eq!(a.err(&mut lab, call), Errno::EAGAIN);
}

#[test]
fn writers_wait_in_epoll_for_room() {
    let (mut lab, (a, fa), (b, fb), _) = connected(11);
    a.ok(&mut lab, Call::SetFl(fa, NONBLOCK));
    let data = vec![0; 10_000_000];
    let call = a.send_call(&lab, fa, &data, 0, None);
    let Ret::Value(mut sent) = a.now(&mut lab, call.clone()) else { panic!("a partial write") };
    let ep = a.epoll(&mut lab);
    a.epoll_add(&mut lab, ep, fa, E::OUT | E::ET);
    let mut read = 0;
    while let Ret::Value(n) = a.now(&mut lab, call.clone()) {
        sent += n;
        lab.run_for(Duration::from_secs(1));
    }
    assert_eq!(a.epoll_now(&mut lab, ep), []);
    a.blocks(&mut lab, Call::EpollWait(ep, 1, None));
    while read < sent {
        read += b.recv(&mut lab, fb, 1 << 20, 0).len as i64;
    }
    let ret = a.wait(&mut lab);
    assert_eq!(epoll_events(ret), [(fa, E::OUT)]);
    assert!(matches!(a.now(&mut lab, call), Ret::Value(_)));
}

#[test]
fn exclusive_workers_share_a_listener() {
    let (mut lab, a, b) = progs(12);
    let listener = b.listener(&mut lab, 80, 100);
    b.ok(&mut lab, Call::SetFl(listener, NONBLOCK));
    let workers: Vec<(Prog, i32)> = (0..4)
        .map(|_| {
            let task = lab.hosts[B].kernel.fork(b.task, "worker", None);
            let w = Prog { host: B, task };
            let ep = w.epoll(&mut lab);
            w.epoll_add(&mut lab, ep, listener, E::IN | E::EXCLUSIVE);
            w.blocks(&mut lab, Call::EpollWait(ep, 8, None));
            (w, ep)
        })
        .collect();
    a.connect(&mut lab, ADDR_B, 80);
    lab.run_for(Duration::from_millis(5));
    let woken: Vec<bool> = workers.iter().map(|(w, _)| w.poll(&mut lab).is_some()).collect();
    assert_eq!(woken, [true, false, false, false]);
    assert!(matches!(workers[0].0.now(&mut lab, Call::Accept(listener, 0)), Ret::Accepted(..)));
    a.connect(&mut lab, ADDR_B, 80);
    lab.run_for(Duration::from_millis(5));
    let woken = workers.iter().filter(|(w, _)| w.poll(&mut lab).is_some()).count();
    assert_eq!(woken, 1, "the next one takes the next connection");
}

#[test]
fn half_closed_connection_still_carries_the_other_half() {
    let (mut lab, (a, fa), (b, fb), _) = connected(13);
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, E::IN | E::RDHUP | E::ET);
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::Wr));
    assert_eq!(a.send(&mut lab, fa, b"x"), Ret::Err(Errno::EPIPE));
    lab.run_for(Duration::from_millis(5));
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, E::IN | E::RDHUP)]);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).len, 0);
    b.send(&mut lab, fb, b"late");
    assert_eq!(a.recv(&mut lab, fa, 10, 0).data, b"late");
    b.ok(&mut lab, Call::Shutdown(fb, Shutdown::Wr));
    lab.run_for(Duration::from_millis(5));
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, E::IN | E::RDHUP | E::HUP)]);
    let unconnected = a.socket(&mut lab, STREAM);
    assert_eq!(a.err(&mut lab, Call::Shutdown(unconnected, Shutdown::Wr)), Errno::ENOTCONN);
    assert_eq!(a.recv_err(&mut lab, unconnected, 0), Errno::ENOTCONN);
    assert_eq!(a.send(&mut lab, unconnected, b"x"), Ret::Err(Errno::EPIPE));
}

#[test]
fn lingering_close_waits_for_the_last_acknowledgement() {
    let (mut lab, (a, fa), _, _) = connected(14);
    let linger = |d| Call::SetSockOpt(fa, SOL_SOCKET, SO_LINGER, OptVal::Linger(true, d));
    a.ok(&mut lab, linger(Duration::from_secs(5)));
    a.send(&mut lab, fa, b"last words");
    let start = lab.now;
    let other = a.thread(&mut lab);
    a.blocks(&mut lab, Call::Close(fa));
    assert_eq!(other.err(&mut lab, Call::GetFl(fa)), Errno::EBADF, "the number is free at once");
    assert_eq!(a.wait(&mut lab), Ret::Value(0));
    assert!(lab.now - start < Duration::from_millis(100), "{:?}", lab.now - start);

    let (mut lab, (a, fa), _, _) = connected(15);
    a.ok(&mut lab, Call::SetSockOpt(fa, SOL_SOCKET, SO_LINGER, OptVal::Linger(true, Duration::from_secs(5))));
    lab.hook(0, |_, _| Verdict::Drop);
    let start = lab.now;
    assert_eq!(a.call(&mut lab, Call::Close(fa)), Ret::Value(0));
    assert_eq!(lab.now - start, Duration::from_secs(5), "not longer than asked");

    let (mut lab, (a, fa), (b, fb), _) = connected(16);
    a.ok(&mut lab, Call::SetSockOpt(fa, SOL_SOCKET, SO_LINGER, OptVal::Linger(true, Duration::ZERO)));
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(Duration::from_millis(5));
    assert_eq!(b.recv_err(&mut lab, fb, 0), Errno::ECONNRESET);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).len, 0, "the error is told once");
    assert_eq!(b.send(&mut lab, fb, b"x"), Ret::Err(Errno::EPIPE));
}

#[test]
fn disconnected_socket_is_as_new() {
    let (mut lab, (a, fa), (b, fb), listener) = connected(17);
    a.ok(&mut lab, Call::Connect(fa, None));
    lab.run_for(Duration::from_millis(5));
    assert_eq!(b.recv_err(&mut lab, fb, 0), Errno::ECONNRESET);
    assert_eq!(a.err(&mut lab, Call::GetPeerName(fa)), Errno::ENOTCONN);
    assert_eq!(a.getopt(&mut lab, fa, SOL_SOCKET, SO_ERROR), Errno::ECONNRESET.raw());
    assert_eq!(a.call(&mut lab, Call::Connect(fa, to(80))), Ret::Value(0));
    let again = b.accept(&mut lab, listener);
    a.send(&mut lab, fa, b"again");
    assert_eq!(b.recv(&mut lab, again, 10, 0).data, b"again");
}

#[test]
fn dual_stack_listener_accepts_mapped_peers() {
    let (mut lab, a, b) = progs(18);
    let v6 = |s: &str, port| SocketAddr::new(s.parse().expect("address"), port);
    let listener = b.ok(&mut lab, Call::Socket(AF_INET6, STREAM, 0)) as i32;
    b.ok(&mut lab, Call::Bind(listener, v6("::", 5201)));
    b.ok(&mut lab, Call::Listen(listener, 5));
    let fa = a.ok(&mut lab, Call::Socket(AF_INET6, STREAM, 0)) as i32;
    assert_eq!(a.err(&mut lab, Call::Connect(fa, Some(v6("2001:db8::2", 5201)))), Errno::ENETUNREACH);
    assert_eq!(a.call(&mut lab, Call::Connect(fa, Some(v6("::ffff:10.0.0.2", 5201)))), Ret::Value(0));
    let Ret::Accepted(fb, peer) = b.call(&mut lab, Call::Accept(listener, 0)) else { panic!() };
    assert_eq!(peer.ip(), v6("::ffff:10.0.0.1", 0).ip());
    assert_eq!(b.now(&mut lab, Call::GetSockName(fb)), Ret::Addr(v6("::ffff:10.0.0.2", 5201)));
    // A listener of each family on one port, as nginx makes them.
    let only = b.ok(&mut lab, Call::Socket(AF_INET6, STREAM, 0)) as i32;
    b.setopt(&mut lab, only, 41, 26, 1);
    b.ok(&mut lab, Call::Bind(only, v6("::", 80)));
    b.ok(&mut lab, Call::Listen(only, 5));
    let four = b.listener(&mut lab, 80, 5);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    b.ok(&mut lab, Call::SetFl(only, NONBLOCK));
    assert_eq!(b.err(&mut lab, Call::Accept(only, 0)), Errno::EAGAIN);
    assert!(matches!(b.call(&mut lab, Call::Accept(four, 0)), Ret::Accepted(..)));
    a.ok(&mut lab, Call::Close(fa));
}

#[test]
fn listening_twice_on_a_port_is_refused() {
    let (mut lab, _, b) = progs(19);
    let first = b.listener(&mut lab, 80, 5);
    let second = b.socket(&mut lab, STREAM);
    assert_eq!(b.err(&mut lab, Call::Bind(second, (Ipv4Addr::UNSPECIFIED, 80).into())), Errno::EADDRINUSE);
    b.ok(&mut lab, Call::Listen(first, 7));
    assert_eq!(b.getopt(&mut lab, first, SOL_SOCKET, 30), 1);
    assert_eq!(b.err(&mut lab, Call::Connect(first, to(81))), Errno::EISCONN);
    b.ok(&mut lab, Call::Listen(second, 1));
    let Ret::Addr(auto) = b.now(&mut lab, Call::GetSockName(second)) else { panic!() };
    assert!((32768..61000).contains(&auto.port()), "listening without a name gets one");
    let rows: Vec<_> = lab.hosts[B].kernel.sockets_info().iter().map(|s| (s.netid, s.state)).collect();
    assert_eq!(rows, [("tcp", "LISTEN"); 2]);
}

#[test]
fn peeked_and_awaited_data() {
    let (mut lab, (a, fa), (b, fb), _) = connected(20);
    a.send(&mut lab, fa, b"abc");
    assert_eq!(b.recv(&mut lab, fb, 10, msg::PEEK).data, b"abc");
    assert_eq!(b.ok(&mut lab, Call::Inq(fb)), 3);
    let buffer = b.buffer(&lab, 6);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, msg::WAITALL));
    a.send(&mut lab, fa, b"def");
    let ret = b.wait(&mut lab);
    assert_eq!(b.datagram(&lab, buffer, ret).data, b"abcdef");
    b.settime(&mut lab, fb, SO_RCVTIMEO, Duration::from_millis(30));
    assert_eq!(b.call(&mut lab, Prog::recv_call(fb, buffer, 0)), Ret::Err(Errno::EAGAIN));
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    b.signal(&mut lab);
    assert_eq!(b.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
}
