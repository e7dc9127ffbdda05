//! `AF_PACKET`: taps on both ways, filters, rings, sending.

mod common;

use common::tasks::{DGRAM, Prog, RAW, SOL_SOCKET};
use common::{A, ADDR_A, ADDR_B, B, Dir, Lab, mac};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::packet::RingRequest;
use ringlab_kernel::syscall::{AuxData, Call, Control, LinkAddr, Ret, msg};
use ringlab_kernel::wait::queue::PollEvents;
use ringlab_ring::memory::Region;
use std::net::Ipv4Addr;
use std::time::Duration;

const AF_PACKET: i32 = 17;
const SOL_PACKET: i32 = 263;
const ALL: u16 = 3;
const OUTGOING: u8 = 4;

fn be(protocol: u16) -> i32 {
    i32::from(protocol.to_be())
}

fn open(p: Prog, lab: &mut Lab, kind: i32, protocol: u16) -> i32 {
    p.ok(lab, Call::Socket(AF_PACKET, kind, be(protocol))) as i32
}

struct Seen {
    from: LinkAddr,
    data: Vec<u8>,
    len: usize,
    control: Vec<Control>,
}

fn next(p: Prog, lab: &mut Lab, fd: i32, room: usize, flags: u32) -> Option<Seen> {
    let buffer = p.buffer(lab, room);
    match p.now(lab, Prog::recv_call(fd, buffer, flags | msg::DONTWAIT)) {
        Ret::ReceivedLink { len, from, control, .. } => {
            Some(Seen { from, data: lab.hosts[p.host].mem.get(buffer, len.min(room)), len, control })
        }
        Ret::Err(Errno::EAGAIN) => None,
        ret => panic!("{ret:?}"),
    }
}

fn two(seed: u64) -> (Lab, Prog, Prog) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    (lab, a, b)
}

#[test]
fn tap_sees_both_directions_in_order() {
    let (mut lab, a, b) = two(1);
    let tap = open(b, &mut lab, RAW, ALL);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    a.send_to(&mut lab, fa, b"ping", ADDR_B, 9);
    b.recv(&mut lab, fb, 10, 0);
    b.send_to(&mut lab, fb, b"pong", ADDR_A, 8);
    lab.run_for(Duration::from_millis(1));
    let seen: Vec<Seen> = std::iter::from_fn(|| next(b, &mut lab, tap, 2000, 0)).collect();
    let kinds: Vec<(u16, u8)> = seen.iter().map(|s| (s.from.protocol, s.from.pkttype)).collect();
    assert_eq!(kinds, [(0x806, 1), (0x806, OUTGOING), (0x800, 0), (0x800, OUTGOING)], "asked, answered, came, went");
    for s in &seen {
        assert_eq!((s.from.ifindex, s.from.hatype, s.from.halen), (2, 1, 6));
        assert_eq!(s.data[6..12], s.from.addr[..6], "the sender's address");
    }
    assert_eq!((&seen[2].data[42..], seen[2].from.addr[..6].to_vec()), (&b"ping"[..], mac(A, 0).0.to_vec()));
    assert_eq!(seen[3].data[42..], *b"pong");
}

#[test]
fn cooked_socket_of_one_protocol_sees_received_packets_without_header() {
    let (mut lab, a, b) = two(2);
    let tap = open(b, &mut lab, DGRAM, 0x800);
    b.setopt(&mut lab, tap, SOL_PACKET, 8, 1);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    a.send_to(&mut lab, fa, b"ping", ADDR_B, 9);
    b.recv(&mut lab, fb, 10, 0);
    b.send_to(&mut lab, fb, b"pong", ADDR_A, 8);
    let s = next(b, &mut lab, tap, 20, msg::TRUNC).expect("one packet");
    assert_eq!((s.len, s.data[0], &s.data[12..16]), (32, 0x45, &[10, 0, 0, 1][..]));
    let [Control::AuxData(AuxData { status, len: 32, snaplen: 32, mac: 0, net: 0, .. })] = s.control[..] else { panic!("{:?}", s.control) };
    assert_eq!(status & 1, 1);
    assert!(next(b, &mut lab, tap, 20, 0).is_none(), "what goes out is for taps of all protocols");
}

#[test]
fn binding_chooses_interface_and_protocol() {
    let (mut lab, a, b) = two(3);
    let tap = open(b, &mut lab, RAW, 0);
    let addr = |ifindex, protocol| LinkAddr { ifindex, protocol, ..LinkAddr::default() };
    assert_eq!(b.err(&mut lab, Call::BindLink(tap, addr(9, ALL))), Errno::ENODEV);
    b.ok(&mut lab, Call::BindLink(tap, addr(1, ALL)));
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    a.send_to(&mut lab, fa, b"by wire", ADDR_B, 9);
    b.recv(&mut lab, fb, 10, 0);
    assert!(next(b, &mut lab, tap, 100, 0).is_none(), "that was not lo");
    b.send_to(&mut lab, fb, b"by lo", Ipv4Addr::LOCALHOST, 9);
    let kinds: Vec<u8> = std::iter::from_fn(|| next(b, &mut lab, tap, 100, 0)).map(|s| s.from.pkttype).collect();
    assert_eq!(kinds, [OUTGOING, 0], "lo shows a packet twice");
    let Ret::LinkAddr(name) = b.now(&mut lab, Call::GetSockName(tap)) else { panic!() };
    assert_eq!((name.ifindex, name.protocol, name.hatype, name.halen), (1, ALL, 772, 6));
    assert_eq!(b.err(&mut lab, Call::GetPeerName(tap)), Errno::EOPNOTSUPP);
    assert_eq!(b.err(&mut lab, Call::Listen(tap, 1)), Errno::EOPNOTSUPP);
    assert_eq!(b.err(&mut lab, Call::Bind(tap, (ADDR_B, 1).into())), Errno::EINVAL);
    let udp = b.udp(&mut lab, 10);
    assert_eq!(b.err(&mut lab, Call::BindLink(udp, addr(1, ALL))), Errno::EAFNOSUPPORT);
    assert_eq!(b.err(&mut lab, Call::Socket(AF_PACKET, 1, be(ALL))), Errno::ESOCKTNOSUPPORT);
}

#[test]
fn filter_drops_and_cuts_and_statistics_count() {
    let (mut lab, a, b) = two(4);
    let tap = open(b, &mut lab, RAW, ALL);
    let insn = |code: u16, jt: u8, jf: u8, k: u32| [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat();
    let udp =
        [insn(0x28, 0, 0, 12), insn(0x15, 0, 3, 0x800), insn(0x30, 0, 0, 23), insn(0x15, 0, 1, 17), insn(6, 0, 0, 44), insn(6, 0, 0, 0)];
    b.ok(&mut lab, Call::SetSockOptRaw(tap, SOL_SOCKET, 26, udp.concat()));
    b.setopt(&mut lab, tap, SOL_PACKET, 8, 1);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    a.send_to(&mut lab, fa, b"long enough", ADDR_B, 9);
    b.recv(&mut lab, fb, 20, 0);
    let s = next(b, &mut lab, tap, 2000, 0).expect("one datagram");
    assert_eq!((s.len, &s.data[42..]), (44, &b"lo"[..]));
    assert!(matches!(s.control[..], [Control::AuxData(AuxData { len: 53, snaplen: 44, .. })]), "{:?}", s.control);
    assert!(next(b, &mut lab, tap, 2000, 0).is_none(), "ARP was filtered");
    let Ret::OptRaw(stats, 8) = b.now(&mut lab, Call::GetSockOptRaw(tap, SOL_PACKET, 6, vec![0; 8])) else { panic!() };
    assert_eq!(stats, [1u32, 0].map(u32::to_ne_bytes).concat());
    let Ret::OptRaw(stats, 8) = b.now(&mut lab, Call::GetSockOptRaw(tap, SOL_PACKET, 6, vec![0; 8])) else { panic!() };
    assert_eq!(stats, [0; 8], "reading starts anew");
}

#[test]
fn frames_are_sent_as_they_are_and_packets_with_a_header() {
    let (mut lab, a, b) = two(5);
    let (raw, cooked) = (open(a, &mut lab, RAW, 0), open(a, &mut lab, DGRAM, 0));
    let tap = open(b, &mut lab, RAW, 0x88b5);
    let to = LinkAddr { ifindex: 2, protocol: 0x88b5, halen: 6, addr: [2, 0, 0, 0, 1, 0, 0, 0], ..LinkAddr::default() };
    let frame = [&mac(B, 0).0[..], &mac(A, 0).0, &[0x88, 0xb5], b"frame"].concat();
    let mem = lab.hosts[A].mem.clone();
    let send = |fd, data: &[u8], to| Call::SendLink { fd, iov: mem.iov(data), flags: 0, to };
    assert_eq!(a.now(&mut lab, send(raw, &frame, to)), Ret::Value(19));
    assert_eq!(a.now(&mut lab, send(cooked, b"packet", to)), Ret::Value(6));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(next(b, &mut lab, tap, 100, 0).expect("the frame").data[..19], frame);
    let s = next(b, &mut lab, tap, 100, 0).expect("the packet");
    assert_eq!((&s.data[..12], &s.data[14..20]), (&frame[..12], &b"packet"[..]));
    for (fd, len, to, want) in [
        (raw, 13, to, Errno::EINVAL),
        (raw, 1519, to, Errno::EMSGSIZE),
        (raw, 60, LinkAddr { ifindex: 0, ..to }, Errno::ENXIO),
        (cooked, 9, LinkAddr { halen: 5, ..to }, Errno::EINVAL),
        (cooked, 1501, to, Errno::EMSGSIZE),
    ] {
        assert_eq!(a.err(&mut lab, send(fd, &vec![0; len], to)), want, "{len} octets");
    }
    assert_eq!(a.ok(&mut lab, Call::Outq(raw)), 0, "what was refused is not charged");
    assert_eq!(lab.count(0, Dir::Forward, |f| f.ethertype() == 0x88b5), 2);
}

fn word(mem: &Region, at: usize) -> u32 {
    let mut b = [0; 4];
    mem.slice(at as u64, 4).expect("inside").read(&mut b);
    u32::from_ne_bytes(b)
}

fn store(mem: &Region, at: usize, n: u32) {
    mem.slice(at as u64, 4).expect("inside").write(&n.to_ne_bytes());
}

#[test]
fn ring_of_frames_is_filled_and_given_back() {
    let (mut lab, a, b) = two(6);
    let tap = open(b, &mut lab, RAW, 0x800);
    let ask = |version: u32| Call::GetSockOptRaw(tap, SOL_PACKET, 11, version.to_ne_bytes().to_vec());
    assert_eq!(b.now(&mut lab, ask(1)), Ret::OptRaw(32u32.to_ne_bytes().to_vec(), 4));
    assert_eq!(b.now(&mut lab, ask(2)), Ret::OptRaw(48u32.to_ne_bytes().to_vec(), 4));
    b.setopt(&mut lab, tap, SOL_PACKET, 10, 1);
    let req = RingRequest { block_size: 4096, block_nr: 2, frame_size: 2048, frame_nr: 4, ..RingRequest::default() };
    let mem = Region::heap(8192);
    let bad = RingRequest { frame_nr: 3, ..req };
    let kernel = &mut lab.hosts[B].kernel;
    assert_eq!(kernel.packet_set_ring(b.task, tap, bad, Some(mem.clone())), Err(Errno::EINVAL));
    assert_eq!(kernel.packet_set_ring(b.task, tap, req, Some(Region::heap(4096))), Err(Errno::EINVAL));
    kernel.packet_set_ring(b.task, tap, req, Some(mem.clone())).expect("set");
    assert_eq!(kernel.packet_set_ring(b.task, tap, req, Some(mem.clone())), Err(Errno::EBUSY));
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, tap, PollEvents::IN);
    assert_eq!(b.epoll_now(&mut lab, ep), []);
    let (fa, _fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    for i in 0..5u8 {
        a.send_to(&mut lab, fa, &[b'0' + i; 4], ADDR_B, 9);
    }
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.epoll_now(&mut lab, ep), [(tap, PollEvents::IN)]);
    for i in 0..4 {
        let at = i * 2048;
        assert_eq!(word(&mem, at) & 1, 1, "frame {i} is the program's");
        assert_eq!((word(&mem, at + 4), word(&mem, at + 8)), (46, 46));
        let mac_net = word(&mem, at + 12);
        assert_eq!((mac_net & 0xffff, mac_net >> 16), (66, 80), "where the headers are");
        let mut data = [0; 4];
        mem.slice((at + 66 + 42) as u64, 4).expect("inside").read(&mut data);
        assert_eq!(data, [b'0' + i as u8; 4]);
    }
    let Ret::OptRaw(stats, _) = b.now(&mut lab, Call::GetSockOptRaw(tap, SOL_PACKET, 6, vec![0; 8])) else { panic!() };
    assert_eq!(stats, [5u32, 1].map(u32::to_ne_bytes).concat(), "the fifth had no room");
    store(&mem, 0, 0);
    a.send_to(&mut lab, fa, b"next", ADDR_B, 9);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(word(&mem, 0) & 1, 1, "given back, and filled again");
    lab.hosts[B].kernel.packet_set_ring(b.task, tap, RingRequest::default(), None).expect("taken away");
}

#[test]
fn ring_of_the_first_version_has_a_long_status_and_microseconds() {
    let (mut lab, a, b) = two(16);
    let tap = open(b, &mut lab, RAW, 0x800);
    let req = RingRequest { block_size: 4096, block_nr: 1, frame_size: 2048, frame_nr: 2, ..RingRequest::default() };
    let mem = Region::heap(4096);
    lab.hosts[B].kernel.packet_set_ring(b.task, tap, req, Some(mem.clone())).expect("version 1 is what a socket begins with");
    store(&mem, 2048 + 4, 7);
    let (fa, _fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    for payload in [b"1111", b"2222"] {
        a.send_to(&mut lab, fa, payload, ADDR_B, 9);
    }
    lab.run_for(Duration::from_millis(1));
    for at in [0, 2048] {
        assert_eq!((word(&mem, at) & 1, word(&mem, at + 4)), (1, 0), "an unsigned long of 64 bits");
        assert_eq!((word(&mem, at + 8), word(&mem, at + 12)), (46, 46), "whole, and taken");
        let mac_net = word(&mem, at + 16);
        assert_eq!((mac_net & 0xffff, mac_net >> 16), (66, 80), "where the headers are");
        assert!(word(&mem, at + 24) < 1_000_000, "microseconds");
        assert_eq!(word(&mem, at + 32) & 0xffff, 17, "a sockaddr_ll");
        let mut data = [0; 4];
        mem.slice((at + 66 + 42) as u64, 4).expect("inside").read(&mut data);
        assert_eq!(&data, if at == 0 { b"1111" } else { b"2222" });
    }
}

#[test]
fn ring_of_blocks_is_handed_over_full_or_in_time() {
    let (mut lab, a, b) = two(7);
    let tap = open(b, &mut lab, RAW, 0x800);
    b.setopt(&mut lab, tap, SOL_PACKET, 10, 2);
    let req = RingRequest { block_size: 4096, block_nr: 2, frame_size: 2048, frame_nr: 4, retire_tov: 50, priv_size: 0 };
    let mem = Region::heap(8192);
    lab.hosts[B].kernel.packet_set_ring(b.task, tap, req, Some(mem.clone())).expect("set");
    let (fa, _fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    a.send_to(&mut lab, fa, b"early", ADDR_B, 9);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(word(&mem, 8), 0, "the block is not full");
    let poll = Call::Poll(
        vec![ringlab_kernel::syscall::PollFd { fd: tap, events: PollEvents::IN, revents: PollEvents::empty() }],
        Some(Duration::from_secs(1)),
    );
    assert_eq!(b.call(&mut lab, poll).as_number(), 1, "its time comes");
    assert_eq!((word(&mem, 8), word(&mem, 12), word(&mem, 16)), (1 | 0x20, 1, 48));
    let first = 48;
    assert_eq!((word(&mem, first), word(&mem, first + 12), word(&mem, first + 16)), (0, 47, 47), "next, snaplen, len");
    for _ in 0..3 {
        a.send_to(&mut lab, fa, &[0; 1400], ADDR_B, 9);
        lab.run_for(Duration::from_millis(1));
    }
    let (status, packets) = (word(&mem, 4096 + 8), word(&mem, 4096 + 12));
    assert_eq!((status, packets), (1, 2), "full with two; the third waits for the first block to come back");
    let next = word(&mem, 4096 + 48) as usize;
    assert_eq!(word(&mem, 4096 + 48 + next + 16), 1442, "the second frame of the block");
    let Ret::OptRaw(stats, 12) = b.now(&mut lab, Call::GetSockOptRaw(tap, SOL_PACKET, 6, vec![0; 12])) else { panic!() };
    assert_eq!(stats, [4u32, 1, 1].map(u32::to_ne_bytes).concat());
}

#[test]
fn membership_is_counted_and_ends_with_the_socket() {
    let (mut lab, _, b) = two(8);
    let tap = open(b, &mut lab, RAW, ALL);
    let mreq = |index: u32, kind: u16| [&index.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
    let set = |name, v: Vec<u8>| Call::SetSockOptRaw(tap, SOL_PACKET, name, v);
    assert_eq!(b.err(&mut lab, set(1, mreq(9, 1))), Errno::ENODEV);
    assert_eq!(b.err(&mut lab, set(1, mreq(2, 7))), Errno::EINVAL);
    assert_eq!(b.err(&mut lab, set(2, mreq(2, 1))), Errno::EADDRNOTAVAIL);
    b.ok(&mut lab, set(1, mreq(2, 1)));
    b.ok(&mut lab, set(2, mreq(2, 1)));
    assert_eq!(b.err(&mut lab, set(2, mreq(2, 1))), Errno::EADDRNOTAVAIL);
    b.ok(&mut lab, set(1, mreq(2, 2)));
    b.ok(&mut lab, Call::Close(tap));
}

#[test]
fn taps_cost_nothing_when_nobody_listens() {
    let copies = |tapped: bool| {
        let (mut lab, a, b) = two(9);
        let tap = open(b, &mut lab, RAW, ALL);
        if !tapped {
            b.ok(&mut lab, Call::Close(tap));
        }
        lab.trace(B);
        let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
        a.send_to(&mut lab, fa, b"x", ADDR_B, 9);
        b.recv(&mut lab, fb, 10, 0);
        lab.take_trace(B).len()
    };
    let (without, with) = (copies(false), copies(true));
    assert!(without < with, "{without} events without a tap, {with} with one");
}
