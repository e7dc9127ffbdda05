//! `AF_INET6` sockets on a host that has IPv4 only. Expected values were observed on Linux 6.18 in a namespace with
//! `disable_ipv6` set, except that destinations beyond the links are unreachable there only without that setting.

mod common;

use common::tasks::{AF_INET, AF_INET6, DGRAM, Prog, SOL_SOCKET, STREAM, one};
use common::{ADDR_A, ADDR_B, B, Lab};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Control, OptVal, Ret};
use std::net::SocketAddr;

const IPV6: i32 = 41;
const V6ONLY: i32 = 26;

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn six(p: Prog, lab: &mut Lab, kind: i32) -> i32 {
    p.ok(lab, Call::Socket(AF_INET6, kind, 0)) as i32
}

#[test]
fn addresses_beyond_ipv4_answer_as_without_ipv6() {
    let (mut lab, a) = one(1);
    for (kind, to, connect, bind) in [
        (STREAM, "[::1]:9", Errno::EADDRNOTAVAIL, Errno::EADDRNOTAVAIL),
        (STREAM, "[2001:db8::1]:9", Errno::ENETUNREACH, Errno::EADDRNOTAVAIL),
        (STREAM, "[fe80::1]:9", Errno::EINVAL, Errno::EINVAL),
        (STREAM, "[ff02::1]:9", Errno::ENETUNREACH, Errno::EINVAL),
        (STREAM, "[fe80::1%2]:9", Errno::EADDRNOTAVAIL, Errno::EADDRNOTAVAIL),
        (DGRAM, "[::1]:9", Errno::EADDRNOTAVAIL, Errno::EADDRNOTAVAIL),
        (DGRAM, "[2001:db8::1]:9", Errno::ENETUNREACH, Errno::EADDRNOTAVAIL),
        (DGRAM, "[fe80::1]:9", Errno::EINVAL, Errno::EINVAL),
        (DGRAM, "[ff02::1]:9", Errno::EINVAL, Errno::EINVAL),
        (DGRAM, "[::ffff:10.0.0.9]:9", Errno::ECONNREFUSED, Errno::EADDRNOTAVAIL),
    ] {
        let fd = six(a, &mut lab, kind);
        assert_eq!(a.err(&mut lab, Call::Bind(fd, addr(to))), bind, "bind {to}");
        if connect != Errno::ECONNREFUSED {
            assert_eq!(a.err(&mut lab, Call::Connect(fd, Some(addr(to)))), connect, "connect {to}");
        }
    }
    let only = six(a, &mut lab, DGRAM);
    a.setopt(&mut lab, only, IPV6, V6ONLY, 1);
    assert_eq!(a.err(&mut lab, Call::Connect(only, Some(addr("[::ffff:10.0.0.2]:9")))), Errno::ENETUNREACH);
    assert_eq!(a.err(&mut lab, Call::Bind(only, addr("[::ffff:10.0.0.1]:9"))), Errno::EINVAL);
}

#[test]
fn names_are_shown_mapped() {
    let (mut lab, a) = one(2);
    let fd = six(a, &mut lab, DGRAM);
    a.ok(&mut lab, Call::Bind(fd, addr("[::ffff:0.0.0.0]:70")));
    assert_eq!(a.now(&mut lab, Call::GetSockName(fd)), Ret::Addr(addr("[::ffff:0.0.0.0]:70")));
    let any = six(a, &mut lab, DGRAM);
    a.ok(&mut lab, Call::Bind(any, addr("[::]:71")));
    assert_eq!(a.now(&mut lab, Call::GetSockName(any)), Ret::Addr(addr("[::]:71")));
    assert_eq!(a.err(&mut lab, Call::SetSockOpt(any, IPV6, V6ONLY, OptVal::Int(1))), Errno::EINVAL, "bound");
    a.ok(&mut lab, Call::Connect(any, Some(addr("[::ffff:10.0.0.2]:9"))));
    assert_eq!(a.now(&mut lab, Call::GetSockName(any)), Ret::Addr(addr("[::ffff:10.0.0.1]:71")));
    assert_eq!(a.now(&mut lab, Call::GetPeerName(any)), Ret::Addr(addr("[::ffff:10.0.0.2]:9")));
}

#[test]
fn both_families_share_the_ports() {
    for (kind, first, second, v6only, want) in [
        (STREAM, "[::]:7777", "0.0.0.0:7777", 0, Some(Errno::EADDRINUSE)),
        (STREAM, "[::]:7777", "10.0.0.1:7777", 0, Some(Errno::EADDRINUSE)),
        (STREAM, "[::]:7777", "0.0.0.0:7777", 1, None),
        (STREAM, "[::ffff:10.0.0.1]:7777", "127.0.0.1:7777", 0, None),
        (DGRAM, "[::]:7777", "0.0.0.0:7777", 0, Some(Errno::EADDRINUSE)),
        (DGRAM, "[::]:7777", "10.0.0.1:7777", 0, Some(Errno::EADDRINUSE)),
        (DGRAM, "[::]:7777", "0.0.0.0:7777", 1, None),
        (DGRAM, "[::ffff:10.0.0.1]:7777", "127.0.0.1:7777", 0, None),
    ] {
        let (mut lab, a) = one(3);
        let x = six(a, &mut lab, kind);
        a.setopt(&mut lab, x, IPV6, V6ONLY, v6only);
        a.ok(&mut lab, Call::Bind(x, addr(first)));
        let y = a.ok(&mut lab, Call::Socket(AF_INET, kind, 0)) as i32;
        let got = match a.now(&mut lab, Call::Bind(y, addr(second))) {
            Ret::Err(e) => Some(e),
            _ => None,
        };
        assert_eq!(got, want, "{first} {second} {v6only}");
    }
}

#[test]
fn dual_stack_listener_takes_ipv4_and_shows_mapped_peers() {
    let (mut lab, a) = one(4);
    let b = Prog::spawn(&mut lab, B, "b");
    let listener = six(b, &mut lab, STREAM);
    b.ok(&mut lab, Call::Bind(listener, addr("[::]:80")));
    b.ok(&mut lab, Call::Listen(listener, 5));
    let fd = a.connect(&mut lab, ADDR_B, 80);
    let Ret::Accepted(conn, peer) = b.call(&mut lab, Call::Accept(listener, 0)) else { panic!("no connection") };
    let Ret::Addr(own) = a.now(&mut lab, Call::GetSockName(fd)) else { panic!() };
    assert_eq!(peer, addr(&format!("[::ffff:{ADDR_A}]:{}", own.port())));
    assert_eq!(b.now(&mut lab, Call::GetSockName(conn)), Ret::Addr(addr("[::ffff:10.0.0.2]:80")));
    assert_eq!(b.getopt(&mut lab, conn, SOL_SOCKET, 39), AF_INET6);
    let back = six(a, &mut lab, STREAM);
    assert_eq!(a.call(&mut lab, Call::Connect(back, Some(addr("[::ffff:10.0.0.2]:80")))), Ret::Value(0), "and from the other side");
}

#[test]
fn datagrams_of_a_mapped_socket_carry_both_kinds_of_pktinfo() {
    let (mut lab, a) = one(5);
    let b = Prog::spawn(&mut lab, B, "b");
    let fd = six(b, &mut lab, DGRAM);
    b.ok(&mut lab, Call::Bind(fd, addr("[::]:53")));
    b.setopt(&mut lab, fd, IPV6, 49, 1);
    b.setopt(&mut lab, fd, 0, 8, 1);
    let from = a.udp(&mut lab, 1000);
    a.send_to(&mut lab, from, b"q", ADDR_B, 53);
    let got = b.recv(&mut lab, fd, 10, 0);
    assert_eq!(got.from, Some(addr("[::ffff:10.0.0.1]:1000")));
    let info = [Control::PktInfo(2, ADDR_B, ADDR_B), Control::PktInfo6(2, ADDR_B.to_ipv6_mapped())];
    assert_eq!(got.control, info);
    let call = b.send_call(&lab, fd, b"r", 0, got.from);
    assert_eq!(b.now(&mut lab, call), Ret::Value(1));
    assert_eq!(a.recv(&mut lab, from, 10, 0).from, Some((ADDR_B, 53).into()));
    // An `AF_INET` address will do for datagrams, not for streams.
    assert_eq!(b.ok(&mut lab, Call::Connect(fd, Some((ADDR_A, 1000).into()))), 0);
    let stream = six(b, &mut lab, STREAM);
    assert_eq!(b.err(&mut lab, Call::Connect(stream, Some((ADDR_A, 1).into()))), Errno::EINVAL);
}

#[test]
fn error_queue_of_a_mapped_socket_shows_mapped_offenders() {
    let (mut lab, a) = one(6);
    let fd = six(a, &mut lab, DGRAM);
    a.setopt(&mut lab, fd, 0, 11, 1);
    let to = addr("[::ffff:10.0.0.2]:4");
    let call = a.send_call(&lab, fd, b"x", 0, Some(to));
    assert_eq!(a.now(&mut lab, call), Ret::Value(1));
    lab.run_for(std::time::Duration::from_millis(5));
    let e = a.recv(&mut lab, fd, 10, 0x2000);
    assert_eq!((e.from, &e.data[..]), (Some(to), &b"x"[..]), "with what was sent");
    let offender = ADDR_B.to_ipv6_mapped();
    assert_eq!(e.control, [Control::Err6(Errno::ECONNREFUSED, 2, 3, 3, 0, offender)]);
}

#[test]
fn options_of_ipv6_read_back() {
    let (mut lab, a) = one(7);
    let (udp, tcp) = (six(a, &mut lab, DGRAM), six(a, &mut lab, STREAM));
    for (fd, name, default, set, get) in [
        (udp, 16, 64, 7, 7),
        (udp, 16, 7, -1, 64),
        (udp, 18, 1, 9, 9),
        (udp, 19, 1, 0, 0),
        (udp, 23, 1, 2, 2),
        (udp, 25, 0, 1, 1),
        (udp, 49, 0, 1, 1),
        (udp, 51, 0, 1, 1),
        (udp, 66, 0, 1, 1),
        (udp, 67, 0, 8, 8),
        (tcp, 26, 0, 1, 1),
        (tcp, 70, 1, 0, 0),
        (tcp, 67, 0, 4, 4),
    ] {
        assert_eq!(a.getopt(&mut lab, fd, IPV6, name), default, "{name}");
        a.setopt(&mut lab, fd, IPV6, name, set);
        assert_eq!(a.getopt(&mut lab, fd, IPV6, name), get, "{name}");
    }
    assert_eq!(a.err(&mut lab, Call::SetSockOpt(udp, IPV6, 67, OptVal::Int(256))), Errno::EINVAL);
    assert_eq!(a.err(&mut lab, Call::GetSockOpt(tcp, IPV6, 18)), Errno::ENOPROTOOPT, "no multicast on streams");
    assert_eq!(a.err(&mut lab, Call::GetSockOpt(udp, IPV6, 24)), Errno::ENOTCONN);
}
