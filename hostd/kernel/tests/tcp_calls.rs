//! What calls on connections answer where the RFCs leave it open: urgent data, cut and empty reads, and sockets
//! whose connection failed. The values are Linux's.

mod common;
mod tcp_support;

use common::tasks::{NONBLOCK, Prog, SOL_SOCKET, STREAM};
use common::{A, ADDR_B, Lab};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, PollFd, Ret, Shutdown, msg};
use ringlab_kernel::wait::queue::PollEvents as E;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tcp_support::{Side, connected, pair};

const MS: Duration = Duration::from_millis(1);
const SO_ERROR: i32 = 4;
const SO_OOBINLINE: i32 = 10;
/// `IPPROTO_TCP`, `TCP_WINDOW_CLAMP`.
const WINDOW_CLAMP: (i32, i32) = (6, 10);
const OUT: E = E::OUT.union(E::WRNORM);
const IN: E = E::IN.union(E::RDNORM);

/// Readiness of a descriptor.
fn mask(lab: &mut Lab, (p, fd): Side) -> E {
    let events = IN | OUT | E::PRI | E::RDHUP;
    let Ret::Poll(found) = p.now(lab, Call::Poll(vec![PollFd { fd, events, revents: E::empty() }], Some(Duration::ZERO))) else { panic!() };
    found[0].revents
}

fn send(lab: &mut Lab, (p, fd): Side, data: &[u8], flags: u32) {
    let call = p.send_call(lab, fd, data, flags, None);
    p.ok(lab, call);
    lab.run_for(MS);
}

fn read(lab: &mut Lab, (p, fd): Side, len: usize) -> Vec<u8> {
    p.recv(lab, fd, len, msg::DONTWAIT).data
}

fn name(lab: &mut Lab, p: Prog, fd: i32) -> SocketAddr {
    let Ret::Addr(name) = p.now(lab, Call::GetSockName(fd)) else { panic!("a name") };
    name
}

#[test]
fn waiting_octets_end_at_the_urgent_one() {
    let (mut lab, a, b) = connected(1);
    let inq = |lab: &mut Lab| b.0.ok(lab, Call::Inq(b.1));
    send(&mut lab, a, b"abc", 0);
    send(&mut lab, a, b"!", msg::OOB);
    assert_eq!(inq(&mut lab), 3);
    send(&mut lab, a, b"de", 0);
    assert_eq!(inq(&mut lab), 3);
    read(&mut lab, b, 3);
    assert_eq!(inq(&mut lab), 0);
    read(&mut lab, b, 1);
    assert_eq!(inq(&mut lab), 1);
    b.0.setopt(&mut lab, b.1, SOL_SOCKET, SO_OOBINLINE, 1);
    send(&mut lab, a, b"!", msg::OOB);
    assert_eq!(inq(&mut lab), 2);
}

#[test]
fn urgent_octet_alone_is_nothing_to_read_even_after_it_was_read() {
    let (mut lab, a, b) = connected(2);
    send(&mut lab, a, b"!", msg::OOB);
    assert_eq!(mask(&mut lab, b), OUT | E::PRI);
    assert_eq!(b.0.recv(&mut lab, b.1, 1, msg::OOB | msg::PEEK).data, b"!");
    assert_eq!(b.0.recv(&mut lab, b.1, 1, msg::OOB).data, b"!");
    assert_eq!(b.0.recv_err(&mut lab, b.1, msg::OOB), Errno::EINVAL);
    assert_eq!(mask(&mut lab, b), OUT);
    assert_eq!(b.0.recv_err(&mut lab, b.1, msg::DONTWAIT), Errno::EAGAIN);
    send(&mut lab, a, b"x", 0);
    assert_eq!(mask(&mut lab, b), OUT | IN);
    assert_eq!(read(&mut lab, b, 9), b"x");
}

#[test]
fn urgent_octet_that_was_read_past_is_gone() {
    let (mut lab, a, b) = connected(3);
    send(&mut lab, a, b"!", msg::OOB);
    send(&mut lab, a, b"x", 0);
    assert_eq!(read(&mut lab, b, 9), b"x");
    assert_eq!(mask(&mut lab, b), OUT);
    assert_eq!(b.0.recv_err(&mut lab, b.1, msg::OOB), Errno::EINVAL);
    assert_eq!(b.0.ok(&mut lab, Call::AtMark(b.1)), 0);
}

#[test]
fn second_urgent_octet_replaces_one_that_is_next_to_be_read() {
    let (mut lab, a, b) = connected(4);
    send(&mut lab, a, b"x", msg::OOB);
    send(&mut lab, a, b"y", msg::OOB);
    assert_eq!(mask(&mut lab, b), OUT | E::PRI);
    assert_eq!(b.0.recv(&mut lab, b.1, 1, msg::OOB).data, b"y");
    assert_eq!(b.0.recv_err(&mut lab, b.1, msg::DONTWAIT), Errno::EAGAIN);
    // Further back, the first becomes an octet of the stream.
    send(&mut lab, a, b"ab", 0);
    send(&mut lab, a, b"1", msg::OOB);
    send(&mut lab, a, b"2", msg::OOB);
    assert_eq!(read(&mut lab, b, 9), b"ab1");
    assert_eq!(b.0.recv(&mut lab, b.1, 1, msg::OOB).data, b"2");
}

#[test]
fn read_stops_at_the_mark_in_line_too() {
    let (mut lab, a, b) = connected(5);
    b.0.setopt(&mut lab, b.1, SOL_SOCKET, SO_OOBINLINE, 1);
    send(&mut lab, a, b"ab", 0);
    send(&mut lab, a, b"c", msg::OOB);
    send(&mut lab, a, b"de", 0);
    assert_eq!(b.0.ok(&mut lab, Call::AtMark(b.1)), 0);
    assert_eq!(read(&mut lab, b, 9), b"ab");
    assert_eq!(b.0.ok(&mut lab, Call::AtMark(b.1)), 1);
    assert_eq!(read(&mut lab, b, 9), b"cde");
}

#[test]
fn peek_looks_past_the_urgent_octet() {
    let (mut lab, a, b) = connected(6);
    send(&mut lab, a, b"!", msg::OOB);
    send(&mut lab, a, b"xyz", 0);
    assert_eq!(b.0.recv(&mut lab, b.1, 2, msg::PEEK).data, b"xy");
    assert_eq!(read(&mut lab, b, 9), b"xyz");
}

#[test]
fn cut_read_copies_nothing() {
    let (mut lab, a, b) = connected(7);
    send(&mut lab, a, b"abcdef", 0);
    for (flags, left) in [(msg::TRUNC | msg::PEEK, 6), (msg::TRUNC, 2)] {
        let buffer = b.0.buffer(&lab, 4);
        let before = lab.hosts[b.0.host].mem.get(buffer, 4);
        let ret = b.0.now(&mut lab, Prog::recv_call(b.1, buffer, flags));
        assert_eq!(b.0.datagram(&lab, buffer, ret).data, before);
        assert_eq!(b.0.ok(&mut lab, Call::Inq(b.1)), left);
    }
    assert_eq!(read(&mut lab, b, 9), b"ef");
}

#[test]
fn empty_read_waits_for_data_as_any_other() {
    let (mut lab, a, b) = connected(8);
    let buffer = b.0.buffer(&lab, 0);
    let call = |flags| Prog::recv_call(b.1, buffer, flags);
    assert_eq!(b.0.err(&mut lab, call(msg::DONTWAIT)), Errno::EAGAIN);
    b.0.blocks(&mut lab, call(0));
    send(&mut lab, a, b"x", 0);
    let ret = b.0.wait(&mut lab);
    assert_eq!(b.0.datagram(&lab, buffer, ret).len, 0);
    assert_eq!(read(&mut lab, b, 9), b"x", "nothing was taken");
}

#[test]
fn refused_socket_tells_its_port_and_may_be_bound() {
    let (mut lab, a, _) = pair(9, common::PortConfig::default());
    let fd = a.socket(&mut lab, STREAM);
    assert_eq!(a.call(&mut lab, Call::Connect(fd, Some((ADDR_B, 81).into()))), Ret::Err(Errno::ECONNREFUSED));
    let old = name(&mut lab, a, fd);
    assert_eq!(old.ip(), Ipv4Addr::UNSPECIFIED);
    assert_ne!(old.port(), 0);
    // The port is free again: another may have it.
    let other = a.socket(&mut lab, STREAM);
    a.bind(&mut lab, other, Ipv4Addr::UNSPECIFIED, old.port());
    assert_eq!(a.err(&mut lab, Call::Bind(fd, old)), Errno::EADDRINUSE);
    a.bind(&mut lab, fd, Ipv4Addr::UNSPECIFIED, 7000);
    assert_eq!(name(&mut lab, a, fd).port(), 7000);
    assert_eq!(a.err(&mut lab, Call::Bind(fd, (Ipv4Addr::UNSPECIFIED, 7001).into())), Errno::EINVAL);
    // A port that was bound stays through a failure.
    assert_eq!(a.call(&mut lab, Call::Connect(fd, Some((ADDR_B, 81).into()))), Ret::Err(Errno::ECONNREFUSED));
    assert_eq!(a.err(&mut lab, Call::Bind(fd, (Ipv4Addr::UNSPECIFIED, 7001).into())), Errno::EINVAL);
}

#[test]
fn disconnected_socket_tells_its_port_and_listens_on_another() {
    let (mut lab, a, _) = connected(10);
    let old = name(&mut lab, a.0, a.1).port();
    a.0.ok(&mut lab, Call::Connect(a.1, None));
    assert_eq!(name(&mut lab, a.0, a.1), (Ipv4Addr::UNSPECIFIED, old).into());
    let other = a.0.socket(&mut lab, STREAM);
    a.0.bind(&mut lab, other, Ipv4Addr::UNSPECIFIED, old);
    a.0.ok(&mut lab, Call::Listen(a.1, 1));
    let new = name(&mut lab, a.0, a.1).port();
    assert!(new != old && new != 0);
}

#[test]
fn new_connection_forgets_the_error_of_the_last() {
    let (mut lab, a, _) = connected(11);
    a.0.ok(&mut lab, Call::Connect(a.1, None));
    let (p, fd) = a;
    assert_eq!(p.call(&mut lab, Call::Connect(fd, Some((ADDR_B, 80).into()))), Ret::Value(0));
    assert_eq!(p.recv_err(&mut lab, fd, msg::DONTWAIT), Errno::EAGAIN);
    assert_eq!(p.getopt(&mut lab, fd, SOL_SOCKET, SO_ERROR), 0);
}

#[test]
fn disconnect_wakes_even_without_an_error() {
    let mut lab = Lab::pair(12);
    let a = Prog::spawn(&mut lab, A, "a");
    let fd = a.ok(&mut lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
    let ep = a.epoll(&mut lab);
    a.epoll_add(&mut lab, ep, fd, E::ET);
    assert_eq!(a.epoll_now(&mut lab, ep), [(fd, E::HUP)]);
    assert_eq!(a.epoll_now(&mut lab, ep), []);
    a.ok(&mut lab, Call::Connect(fd, None));
    assert_eq!(a.epoll_now(&mut lab, ep), [(fd, E::HUP)]);
}

#[test]
fn disconnect_after_both_fins_is_no_error() {
    let (mut lab, a, b) = connected(13);
    b.0.ok(&mut lab, Call::Shutdown(b.1, Shutdown::Wr));
    lab.run_for(MS);
    // The last ACK is on its way still.
    a.0.ok(&mut lab, Call::Shutdown(a.1, Shutdown::Wr));
    a.0.ok(&mut lab, Call::Connect(a.1, None));
    assert_eq!(a.0.getopt(&mut lab, a.1, SOL_SOCKET, SO_ERROR), 0);
}

#[test]
fn unreachable_neighbour_stays_in_the_error_queue() {
    let mut lab = Lab::pair(14);
    let a = Prog::spawn(&mut lab, A, "a");
    let fd = a.socket(&mut lab, STREAM);
    let to = (Ipv4Addr::new(10, 0, 0, 77), 80);
    assert_eq!(a.call(&mut lab, Call::Connect(fd, Some(to.into()))), Ret::Err(Errno::EHOSTUNREACH));
    assert_eq!(mask(&mut lab, (a, fd)), OUT | E::HUP | E::ERR);
    assert_eq!(a.getopt(&mut lab, fd, SOL_SOCKET, SO_ERROR), 0);
    let report = a.recv(&mut lab, fd, 0, msg::ERRQUEUE);
    assert_eq!(report.from, Some(to.into()));
    assert_eq!(mask(&mut lab, (a, fd)), OUT | E::HUP);
    assert_eq!(a.recv_err(&mut lab, fd, msg::ERRQUEUE), Errno::EAGAIN);
}

#[test]
fn window_clamp_of_a_new_connection_leaves_one_segment() {
    let (mut lab, a, b) = connected(15);
    for (p, fd) in [a, b] {
        assert_eq!(p.getopt(&mut lab, fd, WINDOW_CLAMP.0, WINDOW_CLAMP.1), 65536 - 1448);
    }
}
