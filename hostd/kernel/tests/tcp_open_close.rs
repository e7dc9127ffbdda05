//! How connections begin and end: handshakes with losses, simultaneous ones, refusals, resets, TIME_WAIT.

mod common;
mod tcp_support;

use common::tasks::{NONBLOCK, Prog, STREAM};
use common::{A, ADDR_A, ADDR_B, B, Dir, Lab, PortConfig, Verdict};
use ringlab_counters::Mib;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, OptVal, Ret, Shutdown};
use ringlab_kernel::trace::Point;
use ringlab_kernel::wait::queue::PollEvents;
use std::time::Duration;
use tcp_support::{connected, mib, pair};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn connect(fd: i32, port: u16) -> Call {
    Call::Connect(fd, Some((ADDR_B, port).into()))
}

/// Times of the frames of a direction for which `which` holds, in (rounded) milliseconds since the first.
fn times(lab: &Lab, dir: Dir, which: impl Fn(&common::Frame) -> bool) -> Vec<u64> {
    let all: Vec<u64> = lab.log.iter().filter(|l| l.dir == dir && which(&l.frame)).map(|l| l.time.0).collect();
    all.iter().map(|t| (t - all[0] + 500_000) / 1_000_000).collect()
}

#[test]
fn accept_takes_the_socket_of_the_handshake_and_makes_its_file() {
    let (mut lab, a, (b, l)) = pair(20, PortConfig::default());
    lab.trace(B);
    a.connect(&mut lab, ADDR_B, 80);
    lab.run_for(MS);
    let trace = lab.take_trace(B);
    // The handshake alone made a socket, which nobody has a file of yet.
    let established = trace.iter().find(|r| r.point == Point::TcpState && r.args[2] == 1).expect("established").args[0];
    assert!(!trace.iter().any(|r| matches!(r.point, Point::CskAccept | Point::SockAllocFile)));
    let fd = b.accept(&mut lab, l);
    let steps: Vec<(Point, u64, u64)> = lab.take_trace(B).iter().map(|r| (r.point, r.args[0], r.args[1])).collect();
    let at = |point: Point| steps.iter().position(|s| s.0 == point).unwrap_or_else(|| panic!("{point:?} in {steps:?}"));
    assert!(at(Point::SysEnter) < at(Point::CskAccept) && at(Point::CskAccept) < at(Point::SockAllocFile));
    let (listener, child) = (steps[at(Point::CskAccept)].1, steps[at(Point::CskAccept)].2);
    assert_eq!((child, steps[at(Point::SockAllocFile)].1), (established, established));
    // One that the program makes itself has both from the beginning.
    let made = b.socket(&mut lab, STREAM);
    let steps: Vec<(Point, u64)> = lab.take_trace(B).iter().map(|r| (r.point, r.args[0])).collect();
    let number = steps.iter().find(|s| s.0 == Point::SockCreate).expect("made").1;
    assert!(number != child && number != listener && steps.contains(&(Point::SockAllocFile, number)));
    assert!(made != fd && fd != l);
}

#[test]
fn syn_and_syn_ack_look_like_linux() {
    let (lab, _, _) = connected(1);
    let syn = &lab.log.iter().find(|l| l.frame.is_syn()).unwrap().frame;
    let synack = &lab.log.iter().find(|l| l.frame.is_syn_ack()).unwrap().frame;
    assert_eq!((syn.window(), syn.ttl(), syn.df()), (64240, 64, true));
    let o = syn.tcp_options();
    assert_eq!((&o[..4], &o[4..8], &o[16..]), (&[2, 4, 5, 0xb4][..], &[4, 2, 8, 10][..], &[1, 3, 3, 7][..]));
    assert_eq!((synack.window(), synack.ip_id(), synack.df()), (65160, 0, true));
    assert_eq!(synack.tcp_options().len(), 20);
    let ack = &lab.log.iter().find(|l| l.dir == Dir::Forward && l.frame.flags() == 0x10).unwrap().frame;
    assert_eq!(ack.ip_id(), syn.ip_id().wrapping_add(1));
    assert_eq!(ack.tcp_options().len(), 12);
}

#[test]
fn lost_syn_is_resent_after_the_initial_rto() {
    let (mut lab, a, _) = pair(2, PortConfig::default());
    lab.drop_first(0, |_, f| f.is_syn());
    let start = lab.now;
    a.connect(&mut lab, ADDR_B, 80);
    assert!(lab.now - start >= S && lab.now - start < S + 10 * MS);
    assert_eq!(mib(&lab, A, Mib::TCPSynRetrans), 1);
}

#[test]
fn lost_syn_ack_and_lost_last_ack_are_repaired() {
    let (mut lab, a, (b, l)) = pair(3, PortConfig::default());
    lab.drop_first(0, |_, f| f.is_syn_ack());
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    lab.drop_first(0, |dir, f| dir == Dir::Forward && f.flags() == 0x10);
    let f2 = a.connect(&mut lab, ADDR_B, 80);
    let fb2 = b.accept(&mut lab, l);
    for (x, y) in [(fa, fb), (f2, fb2)] {
        a.send(&mut lab, x, b"ping");
        assert_eq!(b.recv(&mut lab, y, 10, 0).data, b"ping");
    }
}

#[test]
fn unanswered_syns_follow_linux_times_and_end_in_etimedout() {
    let (mut lab, a, _) = pair(4, PortConfig::default());
    lab.hook(0, |_, f| if f.is_tcp() { Verdict::Drop } else { Verdict::Pass });
    let fd = a.socket(&mut lab, STREAM);
    let start = lab.now;
    assert_eq!(a.call(&mut lab, connect(fd, 80)), Ret::Err(Errno::ETIMEDOUT));
    let seconds: Vec<u64> = times(&lab, Dir::Forward, |f| f.is_syn()).iter().map(|ms| (ms + 500) / 1000).collect();
    assert_eq!(seconds, [0, 1, 2, 3, 4, 5, 7, 11, 19, 35, 67]);
    assert_eq!((lab.now - start).as_secs(), 131);
}

#[test]
fn syn_ack_is_resent_five_times() {
    let (mut lab, a, _) = pair(5, PortConfig::default());
    lab.hook(0, |dir, f| if dir == Dir::Backward && f.is_tcp() || f.is_rst() { Verdict::Drop } else { Verdict::Pass });
    let fd = a.ok(&mut lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
    a.setopt(&mut lab, fd, 6, 7, 1); // TCP_SYNCNT
    a.err(&mut lab, connect(fd, 80));
    lab.run_for(10 * MS);
    a.ok(&mut lab, Call::Close(fd));
    lab.run_for(100 * S);
    let seconds: Vec<u64> = times(&lab, Dir::Backward, |f| f.is_syn_ack()).iter().map(|ms| (ms + 500) / 1000).collect();
    assert_eq!(seconds, [0, 1, 3, 7, 15, 31]);
}

#[test]
fn closed_port_answers_with_a_bare_rst() {
    let (mut lab, a, _) = pair(6, PortConfig::default());
    let fd = a.socket(&mut lab, STREAM);
    assert_eq!(a.call(&mut lab, connect(fd, 81)), Ret::Err(Errno::ECONNREFUSED));
    let rst = &lab.log.iter().find(|l| l.frame.is_rst()).unwrap().frame;
    assert_eq!((rst.flags(), rst.window(), rst.ip_id(), rst.df(), rst.ttl(), rst.seq()), (0x14, 0, 0, true, 64, 0));
    assert!(rst.tcp_options().is_empty());
    // The socket may be used again.
    assert_eq!(a.call(&mut lab, connect(fd, 80)), Ret::Value(0));
}

#[test]
fn both_ends_may_open_at_once() {
    let mut lab = Lab::pair(7);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    // Addresses resolved beforehand, so that the SYNs cross.
    let u = a.udp(&mut lab, 9);
    let v = b.udp(&mut lab, 9);
    a.send_to(&mut lab, u, b"x", ADDR_B, 9);
    b.recv(&mut lab, v, 1, 0);
    let (fa, fb) = (a.socket(&mut lab, STREAM), b.socket(&mut lab, STREAM));
    a.bind(&mut lab, fa, ADDR_A, 1000);
    b.bind(&mut lab, fb, ADDR_B, 2000);
    a.start(&mut lab, Call::Connect(fa, Some((ADDR_B, 2000).into())));
    b.start(&mut lab, Call::Connect(fb, Some((ADDR_A, 1000).into())));
    assert_eq!((a.wait(&mut lab), b.wait(&mut lab)), (Ret::Value(0), Ret::Value(0)));
    assert_eq!(lab.log.iter().filter(|l| l.frame.is_syn()).count(), 2);
    assert!(lab.log.iter().filter(|l| l.frame.is_syn_ack()).count() >= 2);
    a.send(&mut lab, fa, b"to b");
    b.send(&mut lab, fb, b"to a");
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"to b");
    assert_eq!(a.recv(&mut lab, fa, 10, 0).data, b"to a");
}

#[test]
fn both_ends_may_close_at_once() {
    let (mut lab, (a, fa), (b, fb)) = connected(8);
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::Wr));
    b.ok(&mut lab, Call::Shutdown(fb, Shutdown::Wr));
    lab.run_for(10 * MS);
    assert_eq!((a.recv(&mut lab, fa, 1, 0).len, b.recv(&mut lab, fb, 1, 0).len), (0, 0));
    a.ok(&mut lab, Call::Close(fa));
    b.ok(&mut lab, Call::Close(fb));
    assert_eq!((mib(&lab, A, Mib::TW), mib(&lab, B, Mib::TW)), (1, 1));
    assert_eq!(lab.log.iter().filter(|l| l.frame.is_rst()).count(), 0);
}

#[test]
fn lost_fin_is_resent() {
    let (mut lab, (a, fa), (b, fb)) = connected(9);
    a.send(&mut lab, fa, b"last words");
    b.recv(&mut lab, fb, 100, 0);
    lab.drop_first(0, |dir, f| dir == Dir::Forward && f.is_fin());
    let start = lab.now;
    a.ok(&mut lab, Call::Close(fa));
    assert_eq!(b.recv(&mut lab, fb, 1, 0).len, 0);
    assert!(lab.now - start < S, "{:?}", lab.now - start);
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(S);
    assert_eq!(mib(&lab, A, Mib::TcpCurrEstab) + mib(&lab, B, Mib::TcpCurrEstab), 0);
}

#[test]
fn half_closed_connection_carries_the_other_way() {
    let (mut lab, (a, fa), (b, fb)) = connected(10);
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::Wr));
    assert_eq!(b.recv(&mut lab, fb, 1, 0).len, 0);
    assert_eq!(a.send(&mut lab, fa, b"x"), Ret::Err(Errno::EPIPE));
    let data = vec![7; 50_000];
    let call = b.send_call(&lab, fb, &data, 0, None);
    assert_eq!(b.call(&mut lab, call), Ret::Value(50_000));
    let mut got = 0;
    while got < 50_000 {
        got += a.recv(&mut lab, fa, 65536, 0).len;
    }
    b.ok(&mut lab, Call::Close(fb));
    assert_eq!(a.recv(&mut lab, fa, 1, 0).len, 0);
}

#[test]
fn unread_data_at_close_resets_the_peer() {
    let (mut lab, (a, fa), (b, fb)) = connected(11);
    a.send(&mut lab, fa, b"never read");
    lab.run_for(10 * MS);
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(10 * MS);
    assert_eq!(mib(&lab, B, Mib::TCPAbortOnClose), 1);
    assert_eq!(a.recv_err(&mut lab, fa, 0), Errno::ECONNRESET);
    assert_eq!(a.send(&mut lab, fa, b"x"), Ret::Err(Errno::EPIPE));
}

#[test]
fn linger_zero_resets_and_reader_wakes() {
    let (mut lab, (a, fa), (b, fb)) = connected(12);
    let buffer = b.buffer(&lab, 10);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    a.ok(&mut lab, Call::SetSockOpt(fa, 1, 13, OptVal::Linger(true, Duration::ZERO)));
    a.ok(&mut lab, Call::Close(fa));
    assert_eq!(b.wait(&mut lab), Ret::Err(Errno::ECONNRESET));
    assert_eq!(mib(&lab, A, Mib::TW), 0);
}

#[test]
fn data_to_a_closed_reader_is_answered_with_a_reset() {
    let (mut lab, (a, fa), (b, fb)) = connected(13);
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(10 * MS);
    assert_eq!(a.send(&mut lab, fa, b"too late"), Ret::Value(8));
    lab.run_for(10 * MS);
    // In CLOSE_WAIT a reset means a broken pipe (Linux `tcp_reset`).
    assert_eq!(a.send(&mut lab, fa, b"x"), Ret::Err(Errno::EPIPE));
    assert!(mib(&lab, B, Mib::TcpOutRsts) >= 1);
}

#[test]
fn time_wait_lasts_sixty_seconds_and_answers() {
    let (mut lab, (a, fa), (b, fb)) = connected(14);
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(10 * MS);
    // The last ACK is lost: the peer's FIN comes again and is acknowledged from TIME_WAIT.
    lab.drop_first(0, |dir, f| dir == Dir::Forward && f.flags() == 0x10);
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(2 * S);
    assert_eq!(mib(&lab, A, Mib::TW), 1);
    assert_eq!(lab.hosts[B].kernel.sockets_info().iter().filter(|s| s.state != "LISTEN").count(), 0);
    lab.run_for(70 * S);
    assert_eq!(lab.log.iter().filter(|l| l.frame.is_rst()).count(), 0);
}

#[test]
fn port_in_time_wait_is_free_for_so_reuseaddr_only() {
    let (mut lab, (a, fa), (b, fb)) = connected(15);
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(10 * MS);
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(10 * MS);
    assert_eq!(mib(&lab, B, Mib::TW), 1);
    let (x, y) = (b.socket(&mut lab, STREAM), b.socket(&mut lab, STREAM));
    b.setopt(&mut lab, y, 1, 2, 1);
    let any = |port| (std::net::Ipv4Addr::UNSPECIFIED, port).into();
    assert_eq!(b.err(&mut lab, Call::Bind(x, any(80))), Errno::EADDRINUSE);
    // The listener still holds it, without SO_REUSEADDR.
    assert_eq!(b.err(&mut lab, Call::Bind(y, any(80))), Errno::EADDRINUSE);
}

#[test]
fn new_connection_succeeds_one_in_time_wait_of_the_server() {
    let (mut lab, (a, fa), (b, fb)) = connected(16);
    let Ret::Addr(local) = a.now(&mut lab, Call::GetSockName(fa)) else { panic!() };
    b.ok(&mut lab, Call::Close(fb));
    lab.run_for(10 * MS);
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(100 * MS);
    assert_eq!(mib(&lab, B, Mib::TW), 1);
    let again = a.socket(&mut lab, STREAM);
    a.bind(&mut lab, again, ADDR_A, local.port());
    let start = lab.now;
    assert_eq!(a.call(&mut lab, connect(again, 80)), Ret::Value(0));
    assert!(lab.now - start < 10 * MS);
}

#[test]
fn orphan_does_not_wait_for_ever_in_fin_wait2() {
    let (mut lab, (a, fa), (b, fb)) = connected(17);
    a.ok(&mut lab, Call::Close(fa));
    lab.run_for(61 * S);
    assert_eq!(lab.hosts[A].kernel.sockets_info().len(), 0);
    b.send(&mut lab, fb, b"anybody?");
    lab.run_for(10 * MS);
    assert_eq!(b.send(&mut lab, fb, b"x"), Ret::Err(Errno::EPIPE));
}

#[test]
fn accept_queue_overflow_is_counted_and_recovers() {
    let mut lab = Lab::pair(18);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let l = b.listener(&mut lab, 80, 1);
    let mut fds = Vec::new();
    for _ in 0..4 {
        let fd = a.ok(&mut lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
        a.err(&mut lab, connect(fd, 80));
        fds.push(fd);
        lab.run_for(10 * MS);
    }
    assert!(mib(&lab, B, Mib::ListenOverflows) > 0);
    for _ in 0..4 {
        b.accept(&mut lab, l);
    }
    assert_eq!(mib(&lab, B, Mib::TcpPassiveOpens), 4);
}

#[test]
fn syn_flood_is_met_with_cookies_that_still_connect() {
    let mut lab = Lab::pair(19);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let l = b.listener(&mut lab, 80, 4);
    // SYN-ACKs are lost: requests pile up.
    lab.hook(0, |_, f| if f.is_syn_ack() { Verdict::Drop } else { Verdict::Pass });
    for _ in 0..8 {
        let fd = a.ok(&mut lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
        a.err(&mut lab, connect(fd, 80));
    }
    lab.run_for(10 * MS);
    assert!(mib(&lab, B, Mib::SyncookiesSent) > 0);
    lab.hook(0, |_, _| Verdict::Pass);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    assert!(mib(&lab, B, Mib::SyncookiesRecv) > 0);
    a.send(&mut lab, fa, &[5; 20_000]);
    let mut got = 0;
    while got < 20_000 {
        got += b.recv(&mut lab, fb, 65536, 0).len;
    }
    let syn_ack = lab.log.iter().rfind(|l| l.frame.is_syn_ack()).unwrap();
    assert_eq!(syn_ack.frame.tcp_options().len(), 20);
}

#[test]
fn poll_reports_each_stage() {
    let (mut lab, (a, fa), (b, fb)) = connected(20);
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, PollEvents::IN | PollEvents::OUT | PollEvents::RDHUP);
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, PollEvents::OUT)]);
    a.send(&mut lab, fa, b"x");
    lab.run_for(MS);
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, PollEvents::IN | PollEvents::OUT)]);
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::Wr));
    lab.run_for(MS);
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, PollEvents::IN | PollEvents::OUT | PollEvents::RDHUP)]);
    b.ok(&mut lab, Call::Shutdown(fb, Shutdown::Wr));
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, PollEvents::IN | PollEvents::OUT | PollEvents::RDHUP | PollEvents::HUP)]);
}
