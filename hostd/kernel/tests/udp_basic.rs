//! UDP between two hosts, as programs see it.

mod common;

use common::tasks::{AF_INET, AF_INET6, DGRAM, Prog, SOL_SOCKET};
use common::{A, ADDR_A, ADDR_B, B, Dir, HostConfig, Lab, PortConfig};
use ringlab_counters::{CopyKind, DropReason, Mib};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Control, OptVal, Ret, Shutdown, msg};
use ringlab_kernel::uaccess::{Iov, UserSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

fn addr(ip: Ipv4Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// A program on each host, and a UDP socket of each: of A without a port, of B on port 7.
fn pair(seed: u64) -> (Lab, (Prog, i32), (Prog, i32)) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let fa = a.socket(&mut lab, DGRAM);
    let fb = b.udp(&mut lab, 7);
    (lab, (a, fa), (b, fb))
}

#[test]
fn datagrams_of_all_sizes_arrive_whole_and_with_their_source() {
    let (mut lab, (a, fa), (b, fb)) = pair(1);
    for len in [0, 1, 2, 63, 1471, 1472, 1473, 2953, 9000, 65506, 65507] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        assert_eq!(a.send_to(&mut lab, fa, &data, ADDR_B, 7), Ret::Value(len as i64));
        let got = b.recv(&mut lab, fb, 70000, 0);
        assert_eq!(got.data.len(), len);
        assert!(got.data == data && got.flags == 0, "{len} octets");
        let Ret::Addr(local) = a.now(&mut lab, Call::GetSockName(fa)) else { panic!() };
        assert_eq!(got.from, Some(addr(ADDR_A, local.port())));
    }
    let wire = lab.log.iter().filter(|l| l.dir == Dir::Forward && !l.frame.is_arp());
    for l in wire {
        etherparse::PacketHeaders::from_ethernet_slice(&l.frame.bytes).expect("etherparse reads it");
        assert!(l.frame.bytes.len() <= 1514);
    }
    let stats = lab.hosts[A].kernel.stats();
    assert_eq!((stats.mib.get(Mib::UdpOutDatagrams), stats.copies.get(CopyKind::UserToSkb)), (11, 11));
}

#[test]
fn datagram_that_ip_cannot_carry_is_refused() {
    let (mut lab, (a, fa), _) = pair(2);
    assert_eq!(a.send_to(&mut lab, fa, &[0; 65508], ADDR_B, 7), Ret::Err(Errno::EMSGSIZE));
    a.setopt(&mut lab, fa, 0, 10, 2);
    assert_eq!(a.send_to(&mut lab, fa, &[0; 1473], ADDR_B, 7), Ret::Err(Errno::EMSGSIZE));
    assert_eq!(a.send_to(&mut lab, fa, &[0; 1472], ADDR_B, 7), Ret::Value(1472));
}

#[test]
fn small_datagrams_carry_df_and_fragments_do_not() {
    let (mut lab, (a, fa), (b, fb)) = pair(3);
    a.send_to(&mut lab, fa, b"small", ADDR_B, 7);
    b.recv(&mut lab, fb, 10, 0);
    a.send_to(&mut lab, fa, &[1; 3000], ADDR_B, 7);
    b.recv(&mut lab, fb, 4000, 0);
    let df: Vec<bool> = lab.log.iter().filter(|l| l.dir == Dir::Forward && !l.frame.is_arp()).map(|l| l.frame.df()).collect();
    assert_eq!(df, [true, false, false, false]);
}

#[test]
fn longer_datagram_is_cut_and_says_so() {
    let (mut lab, (a, fa), (b, fb)) = pair(4);
    for _ in 0..3 {
        a.send_to(&mut lab, fa, b"0123456789", ADDR_B, 7);
    }
    lab.run_for(Duration::from_millis(1));
    let peeked = b.recv(&mut lab, fb, 4, msg::PEEK);
    assert_eq!((&peeked.data[..], peeked.len, peeked.flags), (&b"0123"[..], 4, msg::TRUNC));
    assert_eq!(b.recv(&mut lab, fb, 4, msg::PEEK | msg::TRUNC).len, 10);
    assert_eq!(b.ok(&mut lab, Call::Inq(fb)), 10);
    let cut = b.recv(&mut lab, fb, 4, 0);
    assert_eq!((cut.len, cut.flags), (4, msg::TRUNC));
    assert_eq!(b.recv(&mut lab, fb, 4, msg::TRUNC).len, 10);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).flags, 0);
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
}

#[test]
fn closed_port_is_refused_to_a_connected_socket_only() {
    let (mut lab, (a, fa), _) = pair(5);
    assert_eq!(a.send_to(&mut lab, fa, b"?", ADDR_B, 9), Ret::Value(1));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(a.recv_err(&mut lab, fa, msg::DONTWAIT), Errno::EAGAIN, "not connected: no error");
    assert_eq!(a.ok(&mut lab, Call::Connect(fa, Some(addr(ADDR_B, 9)))), 0);
    // The peer limits the rate of its errors: give it a fresh token.
    lab.run_for(Duration::from_secs(2));
    assert_eq!(a.send(&mut lab, fa, b"?"), Ret::Value(1));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(a.recv_err(&mut lab, fa, 0), Errno::ECONNREFUSED);
    assert_eq!(a.recv_err(&mut lab, fa, msg::DONTWAIT), Errno::EAGAIN, "the error is taken");
    lab.run_for(Duration::from_secs(2));
    a.send(&mut lab, fa, b"?");
    lab.run_for(Duration::from_millis(1));
    assert_eq!(a.getopt(&mut lab, fa, SOL_SOCKET, 4), Errno::ECONNREFUSED.raw());
    assert_eq!(a.getopt(&mut lab, fa, SOL_SOCKET, 4), 0);
    assert_eq!(lab.hosts[B].kernel.stats().mib.get(Mib::UdpNoPorts), 3);
}

#[test]
fn blocked_reader_learns_of_the_refusal() {
    let (mut lab, (a, fa), _) = pair(6);
    a.ok(&mut lab, Call::Connect(fa, Some(addr(ADDR_B, 9))));
    a.send(&mut lab, fa, b"?");
    let buffer = a.buffer(&lab, 10);
    a.blocks(&mut lab, Prog::recv_call(fa, buffer, 0));
    assert_eq!(a.wait(&mut lab), Ret::Err(Errno::ECONNREFUSED));
}

#[test]
fn error_queue_names_offender_and_destination() {
    let (mut lab, (a, fa), _) = pair(7);
    a.setopt(&mut lab, fa, 0, 11, 1);
    a.send_to(&mut lab, fa, b"?", ADDR_B, 9);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(a.recv_err(&mut lab, fa, 0), Errno::ECONNREFUSED, "also to an unconnected socket that asked");
    let e = a.recv(&mut lab, fa, 10, msg::ERRQUEUE);
    assert_eq!((e.from, e.flags, e.len), (Some(addr(ADDR_B, 9)), msg::ERRQUEUE, 1), "with what was quoted of it");
    assert_eq!(e.control, [Control::Err(Errno::ECONNREFUSED, 2, 3, 3, 0, ADDR_B)]);
    assert_eq!(a.recv_err(&mut lab, fa, msg::ERRQUEUE), Errno::EAGAIN);
    assert_eq!(a.send_to(&mut lab, fa, &[0; 65508], ADDR_B, 9), Ret::Err(Errno::EMSGSIZE));
    let e = a.recv(&mut lab, fa, 10, msg::ERRQUEUE);
    assert_eq!(e.control, [Control::Err(Errno::EMSGSIZE, 1, 0, 0, 65535, Ipv4Addr::UNSPECIFIED)]);
}

#[test]
fn connected_socket_hears_its_peer_only() {
    let (mut lab, (a, fa), (b, fb)) = pair(8);
    let other = a.udp(&mut lab, 1000);
    a.bind(&mut lab, fa, ADDR_A, 2000);
    b.ok(&mut lab, Call::Connect(fb, Some(addr(ADDR_A, 2000))));
    a.send_to(&mut lab, other, b"stranger", ADDR_B, 7);
    a.send_to(&mut lab, fa, b"peer", ADDR_B, 7);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"peer");
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
    assert_eq!(b.now(&mut lab, Call::GetPeerName(fb)), Ret::Addr(addr(ADDR_A, 2000)));
    assert_eq!(b.now(&mut lab, Call::GetSockName(fb)), Ret::Addr(addr(ADDR_B, 7)));
    b.ok(&mut lab, Call::Connect(fb, None));
    assert_eq!(b.err(&mut lab, Call::GetPeerName(fb)), Errno::ENOTCONN);
    assert_eq!(b.send(&mut lab, fb, b"x"), Ret::Err(Errno::EDESTADDRREQ));
    a.send_to(&mut lab, other, b"stranger", ADDR_B, 7);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"stranger");
}

#[test]
fn more_exact_socket_gets_the_datagram() {
    let (mut lab, (a, fa), (b, any)) = pair(9);
    b.setopt(&mut lab, any, SOL_SOCKET, 2, 1);
    let exact = b.socket(&mut lab, DGRAM);
    b.setopt(&mut lab, exact, SOL_SOCKET, 2, 1);
    b.bind(&mut lab, exact, ADDR_B, 7);
    let later = b.socket(&mut lab, DGRAM);
    b.setopt(&mut lab, later, SOL_SOCKET, 2, 1);
    b.bind(&mut lab, later, Ipv4Addr::UNSPECIFIED, 7);
    a.send_to(&mut lab, fa, b"1", ADDR_B, 7);
    assert_eq!(b.recv(&mut lab, exact, 10, 0).data, b"1");
    b.ok(&mut lab, Call::Close(exact));
    a.send_to(&mut lab, fa, b"2", ADDR_B, 7);
    assert_eq!(b.recv(&mut lab, later, 10, 0).data, b"2", "of equals, the one bound last");
}

#[test]
fn port_in_use_is_refused_unless_both_share_it() {
    let (mut lab, (a, fa), _) = pair(10);
    let port5 = a.udp(&mut lab, 5);
    assert_eq!(a.err(&mut lab, Call::Bind(fa, addr(ADDR_A, 5))), Errno::EADDRINUSE);
    a.setopt(&mut lab, fa, SOL_SOCKET, 2, 1);
    assert_eq!(a.err(&mut lab, Call::Bind(fa, addr(ADDR_A, 5))), Errno::EADDRINUSE, "one of them shares");
    a.setopt(&mut lab, port5, SOL_SOCKET, 2, 1);
    a.bind(&mut lab, fa, ADDR_A, 5);
    assert_eq!(a.err(&mut lab, Call::Bind(fa, addr(ADDR_A, 6))), Errno::EINVAL, "bound already");
    let wrong = a.socket(&mut lab, DGRAM);
    assert_eq!(a.err(&mut lab, Call::Bind(wrong, addr(ADDR_B, 6))), Errno::EADDRNOTAVAIL);
    a.ok(&mut lab, Call::Close(port5));
    a.ok(&mut lab, Call::Close(fa));
    a.bind(&mut lab, wrong, ADDR_A, 5);
}

#[test]
fn reuseport_group_spreads_flows_and_keeps_each_on_one_socket() {
    let (mut lab, (a, _), (b, _)) = pair(11);
    let group: Vec<i32> = (0..4)
        .map(|_| {
            let fd = b.socket(&mut lab, DGRAM);
            b.setopt(&mut lab, fd, SOL_SOCKET, 15, 1);
            b.bind(&mut lab, fd, Ipv4Addr::UNSPECIFIED, 99);
            fd
        })
        .collect();
    for port in 1000..1064 {
        let fd = a.udp(&mut lab, port);
        for _ in 0..2 {
            a.send_to(&mut lab, fd, &port.to_be_bytes(), ADDR_B, 99);
        }
    }
    lab.run_for(Duration::from_millis(10));
    let mut seen = std::collections::BTreeMap::new();
    for &fd in &group {
        let mut n = 0;
        while b.ok(&mut lab, Call::Inq(fd)) > 0 {
            let data = b.recv(&mut lab, fd, 2, 0).data;
            assert_eq!(*seen.entry(data).or_insert(fd), fd, "a flow stays on its socket");
            n += 1;
        }
        assert!(n >= 2, "every member has something to do");
    }
    assert_eq!(seen.len(), 64);
}

#[test]
fn broadcast_needs_permission_and_reaches_everyone_that_listens() {
    let (mut lab, (a, fa), (b, fb)) = pair(12);
    let all = Ipv4Addr::new(10, 0, 0, 255);
    assert_eq!(a.send_to(&mut lab, fa, b"hi", all, 7), Ret::Err(Errno::EACCES));
    assert_eq!(a.err(&mut lab, Call::Connect(fa, Some(addr(all, 7)))), Errno::EACCES);
    a.setopt(&mut lab, fa, SOL_SOCKET, 6, 1);
    b.setopt(&mut lab, fb, SOL_SOCKET, 2, 1);
    let second = b.socket(&mut lab, DGRAM);
    b.setopt(&mut lab, second, SOL_SOCKET, 2, 1);
    b.bind(&mut lab, second, Ipv4Addr::UNSPECIFIED, 7);
    let own = a.udp(&mut lab, 7);
    assert_eq!(a.send_to(&mut lab, fa, b"hi", Ipv4Addr::BROADCAST, 7), Ret::Err(Errno::ENETUNREACH), "no route says where");
    let fa = a.socket(&mut lab, DGRAM);
    a.bind(&mut lab, fa, ADDR_A, 0);
    a.setopt(&mut lab, fa, SOL_SOCKET, 6, 1);
    for to in [all, Ipv4Addr::BROADCAST] {
        assert_eq!(a.send_to(&mut lab, fa, b"hi", to, 7), Ret::Value(2));
        for fd in [fb, second] {
            assert_eq!(b.recv(&mut lab, fd, 10, 0).data, b"hi");
        }
        assert_eq!(a.recv(&mut lab, own, 10, 0).data, b"hi", "the sender's host is one of all");
    }
    a.send_to(&mut lab, fa, b"hi", all, 4242);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.count(0, Dir::Backward, |f| f.icmp().is_some()), 0, "nobody complains about a broadcast");
}

#[test]
fn group_reaches_members_only() {
    let (mut lab, (a, fa), (b, fb)) = pair(13);
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let membership = |name| Call::SetSockOpt(fb, 0, name, OptVal::Membership(group, ADDR_B, 0));
    assert_eq!(a.send_to(&mut lab, fa, b"lost", group, 7), Ret::Err(Errno::ENETUNREACH), "no route says where");
    a.ok(&mut lab, Call::SetSockOpt(fa, 0, 32, OptVal::Membership(Ipv4Addr::UNSPECIFIED, ADDR_A, 0)));
    let chosen = Ret::Opt(OptVal::Membership(Ipv4Addr::UNSPECIFIED, ADDR_A, 2));
    assert_eq!(a.now(&mut lab, Call::GetSockOpt(fa, 0, 32)), chosen, "the address, as octets");
    assert_eq!(a.send_to(&mut lab, fa, b"early", group, 7), Ret::Value(5));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
    b.ok(&mut lab, membership(35));
    assert_eq!(b.err(&mut lab, membership(35)), Errno::EADDRINUSE);
    a.send_to(&mut lab, fa, b"member", group, 7);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"member");
    let ttl = lab.log.iter().rfind(|l| l.frame.daddr() == group).expect("sent").frame.ttl();
    assert_eq!(ttl, 1);
    b.ok(&mut lab, membership(36));
    assert_eq!(b.err(&mut lab, membership(36)), Errno::EADDRNOTAVAIL);
    a.send_to(&mut lab, fa, b"late", group, 7);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
}

#[test]
fn full_receive_buffer_drops_and_counts() {
    let (mut lab, (a, fa), (b, fb)) = pair(14);
    b.setopt(&mut lab, fb, SOL_SOCKET, 8, 8192);
    assert_eq!(b.getopt(&mut lab, fb, SOL_SOCKET, 8), 16384);
    for i in 0..100u8 {
        a.send_to(&mut lab, fa, &[i; 100], ADDR_B, 7);
        lab.run_for(Duration::from_micros(10));
    }
    lab.run_for(Duration::from_millis(1));
    let stats = lab.hosts[B].kernel.stats();
    let dropped = stats.mib.get(Mib::UdpRcvbufErrors);
    assert!((60..95).contains(&dropped), "{dropped}");
    assert_eq!(stats.drops.get(DropReason::SocketRcvbuff), dropped);
    assert_eq!(stats.mib.get(Mib::UdpInErrors), dropped);
    assert!(stats.copies.get(CopyKind::Other) > 0, "small ones moved to small buffers when memory got short");
    for i in 0..100 - dropped as u8 {
        assert_eq!(b.recv(&mut lab, fb, 100, 0).data, [i; 100], "the first ones are kept, in order");
    }
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
    assert_eq!(lab.hosts[B].kernel.stats().mib.get(Mib::UdpInDatagrams), 100 - dropped);
    a.send_to(&mut lab, fa, &[1; 60000], ADDR_B, 7);
    assert_eq!(b.recv(&mut lab, fb, 60000, 0).len, 60000, "an empty buffer takes one of any size");
}

#[test]
fn full_send_buffer_blocks_until_the_device_has_sent() {
    let (mut lab, (a, fa), (b, fb)) = pair(15);
    a.send_to(&mut lab, fa, b"resolve", ADDR_B, 7);
    b.recv(&mut lab, fb, 10, 0);
    lab.run_for(Duration::from_millis(1));
    a.setopt(&mut lab, fa, SOL_SOCKET, 7, 4000);
    assert_eq!(a.getopt(&mut lab, fa, SOL_SOCKET, 7), 8000);
    lab.hosts[A].ports[0].stall(true);
    let mut sent = 0;
    loop {
        let call = a.send_call(&lab, fa, &[7; 64], msg::DONTWAIT, Some(addr(ADDR_B, 7)));
        match a.now(&mut lab, call) {
            Ret::Value(64) => sent += 1,
            ret => {
                assert_eq!(ret, Ret::Err(Errno::EAGAIN));
                break;
            }
        }
    }
    assert_eq!(sent, 8000_usize.div_ceil(768));
    assert_eq!(a.ok(&mut lab, Call::Outq(fa)) as usize, sent * 768);
    let call = a.send_call(&lab, fa, &[8; 64], 0, Some(addr(ADDR_B, 7)));
    a.blocks(&mut lab, call);
    lab.run_for(Duration::from_millis(5));
    assert_eq!(a.poll(&mut lab), None);
    lab.hosts[A].ports[0].stall(false);
    assert_eq!(a.wait(&mut lab), Ret::Value(64));
    for _ in 0..sent {
        assert_eq!(b.recv(&mut lab, fb, 64, 0).data, [7; 64]);
    }
    assert_eq!(b.recv(&mut lab, fb, 64, 0).data, [8; 64]);
    lab.run_for(Duration::from_millis(5));
    assert_eq!(a.ok(&mut lab, Call::Outq(fa)), 0, "every octet is given back");
}

#[test]
fn control_messages_tell_where_a_datagram_came_in() {
    let (mut lab, (a, fa), (b, fb)) = pair(16);
    for name in [8, 12, 13] {
        b.setopt(&mut lab, fb, 0, name, 1);
    }
    a.setopt(&mut lab, fa, 0, 1, 0x10);
    a.setopt(&mut lab, fa, 0, 2, 33);
    a.send_to(&mut lab, fa, b"x", ADDR_B, 7);
    let got = b.recv(&mut lab, fb, 10, 0);
    assert_eq!(got.control, [Control::PktInfo(2, ADDR_B, ADDR_B), Control::Ttl(33), Control::Tos(0x10)]);
    let iov = lab.hosts[A].mem.iov(b"y");
    let control = vec![Control::Ttl(5), Control::Tos(8), Control::PktInfo(2, ADDR_A, Ipv4Addr::UNSPECIFIED)];
    assert_eq!(a.ok(&mut lab, Call::Send { fd: fa, iov, flags: 0, to: Some(addr(ADDR_B, 7)), control }), 1);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).control[1..], [Control::Ttl(5), Control::Tos(8)]);
}

#[test]
fn corked_pieces_leave_as_one_datagram() {
    let (mut lab, (a, fa), (b, fb)) = pair(17);
    let to = Some(addr(ADDR_B, 7));
    for (piece, flags) in [(&b"one "[..], msg::MORE), (b"two ", msg::MORE), (b"three", 0)] {
        let call = a.send_call(&lab, fa, piece, flags, to);
        assert_eq!(a.now(&mut lab, call), Ret::Value(piece.len() as i64));
    }
    assert_eq!(b.recv(&mut lab, fb, 100, 0).data, b"one two three");
    a.setopt(&mut lab, fa, 17, 1, 1);
    let big: Vec<u8> = (0..65507).map(|i| i as u8).collect();
    for part in big.chunks(30000) {
        a.send_to(&mut lab, fa, part, ADDR_B, 7);
    }
    assert_eq!(a.send_to(&mut lab, fa, b"!", ADDR_B, 7), Ret::Err(Errno::EMSGSIZE));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
    a.setopt(&mut lab, fa, 17, 1, 0);
    assert!(b.recv(&mut lab, fb, 70000, 0).data == big);
    assert_eq!(lab.hosts[A].kernel.stats().mib.get(Mib::UdpOutDatagrams), 2);
}

#[test]
fn dual_stack_socket_sees_mapped_addresses() {
    let (mut lab, (a, fa), (b, _)) = pair(18);
    let v6 = |s: &str, port| SocketAddr::new(s.parse().expect("address"), port);
    let fb = b.ok(&mut lab, Call::Socket(AF_INET6, DGRAM, 0)) as i32;
    assert_eq!(b.getopt(&mut lab, fb, 41, 26), 0);
    b.ok(&mut lab, Call::Bind(fb, v6("::", 70)));
    assert_eq!(b.now(&mut lab, Call::GetSockName(fb)), Ret::Addr(v6("::", 70)));
    a.bind(&mut lab, fa, ADDR_A, 71);
    a.send_to(&mut lab, fa, b"x", ADDR_B, 70);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).from, Some(v6("::ffff:10.0.0.1", 71)));
    let call = b.send_call(&lab, fb, b"y", 0, Some(v6("::ffff:10.0.0.1", 71)));
    assert_eq!(b.now(&mut lab, call), Ret::Value(1));
    assert_eq!(a.recv(&mut lab, fa, 10, 0).from, Some(addr(ADDR_B, 70)));
    let call = b.send_call(&lab, fb, b"y", 0, Some(v6("2001:db8::1", 71)));
    assert_eq!(b.now(&mut lab, call), Ret::Err(Errno::ENETUNREACH));
    let only = b.ok(&mut lab, Call::Socket(AF_INET6, DGRAM, 0)) as i32;
    b.setopt(&mut lab, only, 41, 26, 1);
    b.ok(&mut lab, Call::Bind(only, v6("::", 7)));
    assert_eq!(b.err(&mut lab, Call::SetSockOpt(only, 41, 26, OptVal::Int(0))), Errno::EINVAL, "bound");
    a.send_to(&mut lab, fa, b"to the IPv4 socket of port 7", ADDR_B, 7);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.recv_err(&mut lab, only, msg::DONTWAIT), Errno::EAGAIN);
}

#[test]
fn calls_that_make_no_sense_are_refused_as_linux_refuses_them() {
    let (mut lab, (a, fa), _) = pair(19);
    let wild = Iov::One(UserSlice { addr: 8, len: 4 });
    let send = |fd, iov: &Iov, flags, to| Call::Send { fd, iov: iov.clone(), flags, to, control: vec![] };
    let to = Some(addr(ADDR_B, 7));
    assert_eq!(a.err(&mut lab, send(fa, &wild, 0, to)), Errno::EFAULT);
    assert_eq!(a.err(&mut lab, send(fa, &wild, msg::OOB, to)), Errno::EOPNOTSUPP);
    assert_eq!(a.err(&mut lab, send(fa, &wild, 0, None)), Errno::EDESTADDRREQ);
    assert_eq!(a.err(&mut lab, send(fa, &wild, 0, Some(addr(ADDR_B, 0)))), Errno::EINVAL);
    assert_eq!(a.err(&mut lab, send(99, &wild, 0, to)), Errno::EBADF);
    assert_eq!(a.err(&mut lab, send(fa, &wild, 0, Some(addr(Ipv4Addr::new(192, 0, 2, 1), 7)))), Errno::ENETUNREACH);
    assert_eq!(a.err(&mut lab, Call::Listen(fa, 1)), Errno::EOPNOTSUPP);
    assert_eq!(a.err(&mut lab, Call::Accept(fa, 0)), Errno::EOPNOTSUPP);
    assert_eq!(a.err(&mut lab, Call::Shutdown(fa, Shutdown::Rd)), Errno::ENOTCONN);
    assert_eq!(a.err(&mut lab, Call::SetSockOpt(fa, 6, 1, OptVal::Int(1))), Errno::ENOPROTOOPT);
    assert_eq!(a.err(&mut lab, Call::SetSockOpt(fa, SOL_SOCKET, 9999, OptVal::Int(1))), Errno::ENOPROTOOPT);
    for (call, errno) in [
        (Call::Socket(AF_INET, 5, 0), Errno::ESOCKTNOSUPPORT),
        (Call::Socket(AF_INET, DGRAM, 6), Errno::EPROTONOSUPPORT),
        (Call::Socket(AF_INET, 3, 0), Errno::EPROTONOSUPPORT),
        (Call::Socket(AF_INET, 1, 300), Errno::EINVAL),
        (Call::Socket(AF_INET, 12, 0), Errno::EINVAL),
        (Call::Socket(AF_INET, 1 | 0x10000, 0), Errno::EINVAL),
        (Call::Socket(4, 1, 0), Errno::EAFNOSUPPORT),
        (Call::Socket(-1, 1, 0), Errno::EAFNOSUPPORT),
    ] {
        assert_eq!(a.err(&mut lab, call.clone()), errno, "{call:?}");
    }
    assert_eq!(lab.hosts[A].pool.in_use(), 0, "nothing is left behind");
}

#[test]
fn shut_down_socket_ends_readers_and_refuses_writers() {
    let (mut lab, (a, fa), _) = pair(20);
    a.ok(&mut lab, Call::Connect(fa, Some(addr(ADDR_B, 7))));
    let reader = a.thread(&mut lab);
    let buffer = reader.buffer(&lab, 10);
    reader.blocks(&mut lab, Prog::recv_call(fa, buffer, 0));
    a.ok(&mut lab, Call::Shutdown(fa, Shutdown::RdWr));
    assert_eq!(reader.wait(&mut lab).as_number(), 0);
    assert_eq!(a.send(&mut lab, fa, b"x"), Ret::Err(Errno::EPIPE));
}

#[test]
fn loopback_carries_datagrams_within_the_call() {
    let (mut lab, (a, fa), _) = pair(21);
    let server = a.udp(&mut lab, 53);
    assert_eq!(a.send_to(&mut lab, fa, b"query", Ipv4Addr::LOCALHOST, 53), Ret::Value(5));
    let buffer = a.buffer(&lab, 10);
    let ret = a.now(&mut lab, Prog::recv_call(server, buffer, 0));
    let got = a.datagram(&lab, buffer, ret);
    assert_eq!(got.data, b"query");
    assert_eq!(a.send_to(&mut lab, server, b"answer", Ipv4Addr::UNSPECIFIED, got.from.expect("a source").port()), Ret::Value(6));
    assert_eq!(a.recv(&mut lab, fa, 10, 0).from, Some(addr(Ipv4Addr::LOCALHOST, 53)));
    assert_eq!(lab.log.len(), 0, "nothing on the wire");
}

#[test]
fn writer_is_woken_when_less_than_half_of_its_buffer_is_in_use() {
    let port = PortConfig { tx_ring: 1, ..PortConfig::default() };
    let mut lab = Lab::pair_with(23, HostConfig::default(), port);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let (fa, fb) = (a.socket(&mut lab, DGRAM), b.udp(&mut lab, 7));
    a.send_to(&mut lab, fa, b"resolve", ADDR_B, 7);
    b.recv(&mut lab, fb, 10, 0);
    lab.run_for(Duration::from_millis(1));
    a.setopt(&mut lab, fa, SOL_SOCKET, 7, 4000);
    let device = lab.hosts[A].ports[0].clone();
    device.stall(true);
    let mut sent = 0;
    while let call = a.send_call(&lab, fa, &[7; 64], msg::DONTWAIT, Some(addr(ADDR_B, 7)))
        && a.now(&mut lab, call) == Ret::Value(64)
    {
        sent += 1;
    }
    let call = a.send_call(&lab, fa, &[8; 64], 0, Some(addr(ADDR_B, 7)));
    a.blocks(&mut lab, call);
    let mut gone = 0;
    while a.poll(&mut lab).is_none() {
        // One frame leaves; the next takes its place on the ring.
        device.stall(false);
        gone += device.transmit().len();
        device.stall(true);
        lab.interrupts(A);
        assert!(gone <= sent, "nobody wakes the writer");
    }
    let left = |gone: usize| (sent - gone) * 768;
    assert!(left(gone) < 4000 && left(gone - 1) >= 4000, "woken after {gone} of {sent}");
}

/// What the trace shows of a datagram that comes while a reader is in its call, and the host's configuration.
fn names_of_arrival_in_a_call(udp_backlog: bool) -> Vec<&'static str> {
    let host = HostConfig { udp_backlog, ..HostConfig::default() };
    let mut lab = Lab::pair_with(22, host, PortConfig::default());
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let (fa, fb) = (a.socket(&mut lab, DGRAM), b.udp(&mut lab, 7));
    a.send_to(&mut lab, fa, b"1", ADDR_B, 7);
    lab.run_for(Duration::from_millis(1));
    a.send_to(&mut lab, fa, b"2", ADDR_B, 7);
    // The second one arrives, unnoticed, while the reader is in its call.
    lab.run_until(Duration::ZERO, |_| false);
    let frame = lab.log.iter().rfind(|l| l.dir == Dir::Forward).expect("sent").frame.clone();
    lab.hosts[B].ports[0].receive(&frame);
    lab.trace(B);
    let buffer = b.buffer(&lab, 10);
    b.ok(&mut lab, Prog::recv_call(fb, buffer, 0));
    lab.run_for(Duration::from_millis(1));
    let names = lab.take_trace(B).iter().map(|r| r.point.name()).collect();
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"2");
    names
}

#[test]
fn datagram_goes_to_the_queue_and_not_to_the_backlog() {
    let names = names_of_arrival_in_a_call(false);
    assert!(names.contains(&"__udp_enqueue_schedule_skb") && !names.contains(&"sk_add_backlog"), "{names:?}");
}

#[test]
fn textbook_backlog_is_seen_where_it_is_asked_for() {
    let names = names_of_arrival_in_a_call(true);
    let at = |name| names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("{name} in {names:?}"));
    assert!(at("sk_add_backlog") < at("__udp_enqueue_schedule_skb"));
    assert!(at("__udp_enqueue_schedule_skb") < at("sys_exit"), "handled when the owner releases the socket");
}

#[test]
fn connected_sockets_close_at_once_whatever_their_linger() {
    let (mut lab, a) = common::tasks::one(24);
    for kind in [(DGRAM, 0), (DGRAM, 1), (3, 1)] {
        let fd = a.ok(&mut lab, Call::Socket(2, kind.0, kind.1)) as i32;
        a.ok(&mut lab, Call::SetSockOpt(fd, SOL_SOCKET, 13, OptVal::Linger(true, Duration::from_secs(5))));
        a.ok(&mut lab, Call::Connect(fd, Some(addr(ADDR_B, 9))));
        assert!(!lab.hosts[A].kernel.lingers(a.task, fd));
        assert_eq!(a.ok(&mut lab, Call::Close(fd)), 0);
    }
    assert_eq!(lab.hosts[A].kernel.sockets_info(), []);
}
