//! Ping and raw sockets, options, and what `ss` shows.

mod common;

use common::tasks::{AF_INET, AF_INET6, DGRAM, NONBLOCK, Prog, RAW, SOL_SOCKET, STREAM, one};
use common::{A, ADDR_A, ADDR_B, B, Dir};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::sock::SockId;
use ringlab_kernel::syscall::{Call, Control, OptVal, Ret, msg};
use std::net::Ipv4Addr;
use std::time::Duration;

const ICMP: i32 = 1;

fn echo_request(seq: u8, payload: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0xaa, 0xbb, 0, seq], payload].concat()
}

#[test]
fn ping_socket_gets_the_replies_to_its_own_requests() {
    let (mut lab, a) = one(1);
    let sockets: Vec<i32> = (0..2).map(|_| a.ok(&mut lab, Call::Socket(AF_INET, DGRAM, ICMP)) as i32).collect();
    for &fd in &sockets {
        a.setopt(&mut lab, fd, 0, 12, 1);
        assert_eq!(a.send_to(&mut lab, fd, &echo_request(fd as u8, b"payload"), ADDR_B, 0), Ret::Value(15));
    }
    for &fd in &sockets {
        let got = a.recv(&mut lab, fd, 100, 0);
        let Ret::Addr(own) = a.now(&mut lab, Call::GetSockName(fd)) else { panic!() };
        assert_eq!(got.data[..2], [0, 0], "an echo reply");
        assert_eq!(got.data[4..6], own.port().to_be_bytes(), "the identifier is the socket's, not the program's");
        assert_eq!((got.data[7], &got.data[8..]), (fd as u8, &b"payload"[..]));
        assert_eq!(got.from, Some((ADDR_B, 0).into()));
        assert_eq!(got.control, [Control::Ttl(64)]);
        assert_eq!(a.recv_err(&mut lab, fd, msg::DONTWAIT), Errno::EAGAIN);
    }
    let request = lab.log.iter().find(|l| l.frame.icmp() == Some((8, 0))).expect("sent");
    etherparse::PacketHeaders::from_ethernet_slice(&request.frame.bytes).expect("etherparse reads it");
    assert_eq!(a.send_to(&mut lab, sockets[0], &[8, 0, 0], ADDR_B, 0), Ret::Err(Errno::EINVAL));
    assert_eq!(a.send_to(&mut lab, sockets[0], &[0; 8], ADDR_B, 0), Ret::Err(Errno::EINVAL), "requests only");
    assert_eq!(a.err(&mut lab, Call::Socket(AF_INET6, DGRAM, ICMP)), Errno::EPROTONOSUPPORT);
}

#[test]
fn identifier_of_a_ping_socket_can_be_chosen_once() {
    let (mut lab, a) = one(2);
    let fd = a.ok(&mut lab, Call::Socket(AF_INET, DGRAM, ICMP)) as i32;
    a.bind(&mut lab, fd, ADDR_A, 77);
    let other = a.ok(&mut lab, Call::Socket(AF_INET, DGRAM, ICMP)) as i32;
    // Ping sockets share by default.
    assert_eq!(a.getopt(&mut lab, other, SOL_SOCKET, 2), 1);
    a.setopt(&mut lab, other, SOL_SOCKET, 2, 0);
    assert_eq!(a.err(&mut lab, Call::Bind(other, (ADDR_A, 77).into())), Errno::EADDRINUSE);
    a.ok(&mut lab, Call::Close(fd));
    a.bind(&mut lab, other, ADDR_A, 77);
}

#[test]
fn ping_to_nowhere_ends_in_the_error_queue() {
    let (mut lab, a) = one(3);
    let fd = a.ok(&mut lab, Call::Socket(AF_INET, DGRAM, ICMP)) as i32;
    a.setopt(&mut lab, fd, 0, 11, 1);
    let nobody = Ipv4Addr::new(10, 0, 0, 77);
    a.send_to(&mut lab, fd, &echo_request(1, b""), nobody, 0);
    lab.run_for(Duration::from_secs(4));
    assert_eq!(a.recv_err(&mut lab, fd, 0), Errno::EHOSTUNREACH);
    let e = a.recv(&mut lab, fd, 10, msg::ERRQUEUE);
    assert_eq!(e.from, Some((nobody, 0).into()));
    assert_eq!(e.control, [Control::Err(Errno::EHOSTUNREACH, 2, 3, 1, 0, ADDR_A)], "our own host says so");
}

#[test]
fn raw_socket_sends_on_though_an_error_waits_and_a_ping_socket_does_not() {
    let (mut lab, a) = one(31);
    let nobody = Ipv4Addr::new(10, 0, 0, 77);
    let (raw, ping) = (a.ok(&mut lab, Call::Socket(AF_INET, RAW, ICMP)) as i32, a.ok(&mut lab, Call::Socket(AF_INET, DGRAM, ICMP)) as i32);
    for fd in [raw, ping] {
        a.setopt(&mut lab, fd, 0, 11, 1);
        a.ok(&mut lab, Call::Connect(fd, Some((nobody, 0).into())));
        a.send_to(&mut lab, fd, &echo_request(1, b""), nobody, 0);
    }
    lab.run_for(Duration::from_secs(4));
    assert_eq!(a.send_to(&mut lab, raw, &echo_request(2, b""), nobody, 0), Ret::Value(8));
    assert_eq!(a.getopt(&mut lab, raw, SOL_SOCKET, 4), Errno::EHOSTUNREACH.raw(), "it waits still");
    assert_eq!(a.send_to(&mut lab, ping, &echo_request(2, b""), nobody, 0), Ret::Err(Errno::EHOSTUNREACH));
}

#[test]
fn raw_socket_sees_whole_packets_of_its_protocol() {
    let (mut lab, a) = one(4);
    let b = Prog::spawn(&mut lab, B, "b");
    let raw = b.ok(&mut lab, Call::Socket(AF_INET, RAW, ICMP)) as i32;
    let filtered = b.ok(&mut lab, Call::Socket(AF_INET, RAW, ICMP)) as i32;
    b.setopt(&mut lab, filtered, 255, 1, 1 << 8);
    assert_eq!(b.getopt(&mut lab, filtered, 255, 1), 1 << 8);
    let ping = a.ok(&mut lab, Call::Socket(AF_INET, DGRAM, ICMP)) as i32;
    a.send_to(&mut lab, ping, &echo_request(1, b"abc"), ADDR_B, 0);
    let got = b.recv(&mut lab, raw, 100, 0);
    assert_eq!((got.data.len(), got.data[0], got.data[20]), (31, 0x45, 8), "IP header, then ICMP");
    assert_eq!(got.from, Some((ADDR_A, 0).into()));
    assert_eq!(b.recv_err(&mut lab, filtered, msg::DONTWAIT), Errno::EAGAIN, "echo requests are filtered");
    assert_eq!(a.recv(&mut lab, ping, 100, 0).len, 11, "the kernel answers all the same");
}

#[test]
fn raw_protocol_without_a_kernel_handler_goes_both_ways() {
    let (mut lab, a) = one(5);
    let b = Prog::spawn(&mut lab, B, "b");
    let (fa, fb) = (a.ok(&mut lab, Call::Socket(AF_INET, RAW, 253)) as i32, b.ok(&mut lab, Call::Socket(AF_INET, RAW, 253)) as i32);
    assert_eq!(a.send_to(&mut lab, fa, b"experiment", ADDR_B, 0), Ret::Value(10));
    let got = b.recv(&mut lab, fb, 100, 0);
    assert_eq!((&got.data[20..], got.data[9]), (&b"experiment"[..], 253));
    assert_eq!(lab.count(0, Dir::Backward, |f| f.icmp().is_some()), 0);
    b.ok(&mut lab, Call::Close(fb));
    a.send_to(&mut lab, fa, b"experiment", ADDR_B, 0);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.count(0, Dir::Backward, |f| f.icmp() == Some((3, 2))), 1, "protocol unreachable");
}

#[test]
fn own_header_is_completed_and_sent() {
    let (mut lab, a) = one(6);
    let b = Prog::spawn(&mut lab, B, "b");
    let (fa, fb) = (a.ok(&mut lab, Call::Socket(AF_INET, RAW, 255)) as i32, b.ok(&mut lab, Call::Socket(AF_INET, RAW, 253)) as i32);
    let mut packet = vec![0x45, 0x10, 0, 0, 0, 0, 0x40, 0, 9, 253, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2];
    packet.extend_from_slice(b"mine");
    assert_eq!(a.send_to(&mut lab, fa, &packet, ADDR_B, 0), Ret::Value(24));
    let got = b.recv(&mut lab, fb, 100, 0).data;
    assert_eq!((got[1], got[8], &got[12..16], &got[20..]), (0x10, 9, &[10, 0, 0, 1][..], &b"mine"[..]));
    assert_eq!(a.send_to(&mut lab, fa, &packet[..19], ADDR_B, 0), Ret::Err(Errno::EINVAL));
    assert_eq!(a.ok(&mut lab, Call::Outq(fa)), 0, "the refused packet is given back");
}

#[test]
fn options_read_back_as_linux_stores_them() {
    let (mut lab, a) = one(7);
    let fd = a.socket(&mut lab, DGRAM);
    for (level, name, default, set, get) in [
        (SOL_SOCKET, 7, 212_992, 1, 4608),
        (SOL_SOCKET, 7, 4608, 10_000, 20_000),
        (SOL_SOCKET, 7, 20_000, 1 << 30, 425_984),
        (SOL_SOCKET, 8, 212_992, 0, 2304),
        (SOL_SOCKET, 8, 2304, -1, 425_984),
        (SOL_SOCKET, 33, 0, 1 << 20, 0),
        (SOL_SOCKET, 2, 0, 5, 1),
        (SOL_SOCKET, 15, 0, 1, 1),
        (SOL_SOCKET, 6, 0, 1, 1),
        (SOL_SOCKET, 9, 0, 1, 1),
        (SOL_SOCKET, 12, 0, 6, 6),
        (SOL_SOCKET, 18, 1, 0, 1),
        (SOL_SOCKET, 18, 1, -1, i32::MAX),
        (0, 1, 0, 0x10, 0x10),
        (0, 2, 64, 7, 7),
        (0, 2, 7, -1, 64),
        (0, 10, 1, 3, 3),
        (0, 33, 1, 9, 9),
        (0, 34, 1, 0, 0),
        (0, 49, 1, 0, 0),
    ] {
        if name != 33 || level == 0 {
            assert_eq!(a.getopt(&mut lab, fd, level, name), default, "default of {level}, {name}");
        }
        a.setopt(&mut lab, fd, level, name, set);
        if name != 33 || level == 0 {
            assert_eq!(a.getopt(&mut lab, fd, level, name), get, "{level}, {name} set to {set}");
        }
    }
    assert_eq!(a.getopt(&mut lab, fd, SOL_SOCKET, 8), 2 << 20, "SO_RCVBUFFORCE knows no limit");
    for (name, value) in [(3, 2), (38, 17), (39, 2), (30, 0), (4, 0), (19, 1)] {
        assert_eq!(a.getopt(&mut lab, fd, SOL_SOCKET, name), value, "{name}");
        assert_eq!(a.err(&mut lab, Call::SetSockOpt(fd, SOL_SOCKET, name, OptVal::Int(1))), Errno::ENOPROTOOPT);
    }
    for (name, value) in [(2, 0), (2, 256), (10, 6), (33, 256)] {
        assert_eq!(a.err(&mut lab, Call::SetSockOpt(fd, 0, name, OptVal::Int(value))), Errno::EINVAL, "{name} = {value}");
    }
    let linger = OptVal::Linger(true, Duration::from_secs(3));
    a.ok(&mut lab, Call::SetSockOpt(fd, SOL_SOCKET, 13, linger.clone()));
    assert_eq!(a.now(&mut lab, Call::GetSockOpt(fd, SOL_SOCKET, 13)), Ret::Opt(linger));
    assert_eq!(a.err(&mut lab, Call::GetSockOpt(fd, 41, 26)), Errno::EOPNOTSUPP, "not an IPv6 socket");
    assert_eq!(a.err(&mut lab, Call::GetSockOpt(fd, 0, 14)), Errno::ENOTCONN);
    a.ok(&mut lab, Call::Connect(fd, Some((ADDR_B, 9).into())));
    assert_eq!(a.getopt(&mut lab, fd, 0, 14), 1500);
    let stream = a.socket(&mut lab, STREAM);
    assert_eq!((a.getopt(&mut lab, stream, SOL_SOCKET, 7), a.getopt(&mut lab, stream, SOL_SOCKET, 8)), (16_384, 131_072));
}

#[test]
fn socket_bound_to_a_device_uses_no_other() {
    let (mut lab, a) = one(8);
    let fd = a.udp(&mut lab, 5);
    let bind = |name: &[u8]| Call::SetSockOpt(fd, SOL_SOCKET, 25, OptVal::Bytes(name.to_vec()));
    assert_eq!(a.err(&mut lab, bind(b"eth9")), Errno::ENODEV);
    a.ok(&mut lab, bind(b"eth0\0"));
    assert_eq!(a.now(&mut lab, Call::GetSockOpt(fd, SOL_SOCKET, 25)), Ret::Opt(OptVal::Bytes(b"eth0".to_vec())));
    let other = a.socket(&mut lab, DGRAM);
    a.send_to(&mut lab, other, b"by lo", Ipv4Addr::LOCALHOST, 5);
    assert_eq!(a.recv_err(&mut lab, fd, msg::DONTWAIT), Errno::EAGAIN);
    let b = Prog::spawn(&mut lab, B, "b");
    let fb = b.socket(&mut lab, DGRAM);
    b.send_to(&mut lab, fb, b"by eth0", ADDR_A, 5);
    assert_eq!(a.recv(&mut lab, fd, 10, 0).data, b"by eth0");
}

#[test]
fn socket_list_shows_what_there_is() {
    let (mut lab, a) = one(9);
    let fd = a.ok(&mut lab, Call::Socket(AF_INET, DGRAM | NONBLOCK, 0)) as i32;
    a.bind(&mut lab, fd, ADDR_A, 5);
    let peer = a.socket(&mut lab, DGRAM);
    a.ok(&mut lab, Call::Connect(peer, Some((ADDR_A, 5).into())));
    a.send(&mut lab, peer, b"x");
    a.ok(&mut lab, Call::Socket(AF_INET, RAW, 89));
    let list = lab.hosts[A].kernel.sockets_info();
    let rows: Vec<_> = list.iter().map(|s| (s.netid, s.state, s.local.to_string(), s.peer.to_string())).collect();
    assert_eq!(rows[0], ("udp", "UNCONN", "10.0.0.1:5".into(), "0.0.0.0:0".into()));
    assert_eq!((rows[1].0, rows[1].1, &*rows[1].3), ("udp", "ESTAB", "10.0.0.1:5"));
    assert_eq!((rows[2].0, rows[2].1, &*rows[2].2), ("raw", "UNCONN", "0.0.0.0:89"));
    assert_eq!(list[0].creator, Some(a.task));
    assert!(list[0].recv_q > 0);
    assert_eq!(lab.hosts[A].kernel.sock_of(a.task, fd), Some(SockId(1)));
    assert_eq!(a.err(&mut lab, Call::AtMark(fd)), Errno::ENOTTY);
}
