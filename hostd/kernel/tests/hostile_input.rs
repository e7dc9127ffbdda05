//! What peers send to exhaust or mislead the host: it holds no more than it is willing to, and believes only who can know.

mod common;
mod netlink_support;

use common::tasks::Prog;
use common::{Dir, Frame, HostConfig, Lab, Path, PortConfig, mac};
use netlink_support::{CREATE, Nl, ROUTE};
use ringlab_counters::Mib;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret, msg};
use ringlab_ring::memory::{checksum_add, fold};
use std::net::Ipv4Addr;
use std::time::Duration;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const TESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const IP: i32 = 0;
const IP_MTU: i32 = 14;
const IP_RECVERR: i32 = 11;

fn lab() -> (Lab, Prog) {
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig::default());
    lab.stub(0, HOST, 24, PortConfig::default());
    let p = Prog::spawn(&mut lab, 0, "victim");
    (lab, p)
}

/// An ICMP error about a datagram of the host from port `sport` to the tester's port 9.
fn error(kind: u8, code: u8, mtu: u16, sport: u16) -> Frame {
    let mut data = vec![kind, code, 0, 0, 0, 0];
    data.extend(mtu.to_be_bytes());
    data.extend(&Path { src: HOST, dst: TESTER, dst_mac: mac(0, 0) }.udp(sport, 9, b"quoted").bytes[14..]);
    let sum = !fold(checksum_add(&data, 0));
    data[2..4].copy_from_slice(&sum.to_be_bytes());
    Path { src: TESTER, dst: HOST, dst_mac: mac(0, 0) }.fragment(1, 1, 0, false, &data)
}

fn connected(lab: &mut Lab, p: Prog, port: u16) -> i32 {
    let fd = p.udp(lab, port);
    p.ok(lab, Call::Connect(fd, Some((TESTER, 9).into())));
    fd
}

#[test]
fn errors_that_nobody_reads_are_kept_only_as_far_as_the_buffer_goes() {
    let (mut lab, p) = lab();
    let fd = connected(&mut lab, p, 7);
    p.setopt(&mut lab, fd, IP, IP_RECVERR, 1);
    for _ in 0..5000 {
        lab.inject(0, Dir::Backward, error(3, 3, 0, 7));
        lab.run_for(Duration::from_micros(1));
    }
    assert_eq!(p.recv_err(&mut lab, fd, msg::DONTWAIT), Errno::ECONNREFUSED);
    let mut kept = 0;
    let buffer = p.buffer(&lab, 100);
    while let Ret::Received { .. } = p.now(&mut lab, Prog::recv_call(fd, buffer, msg::ERRQUEUE | msg::DONTWAIT)) {
        kept += 1;
    }
    assert_eq!(kept, 212_992 / 768, "what the receive buffer pays for");
    lab.inject(0, Dir::Backward, error(3, 3, 0, 7));
    lab.run_for(Duration::from_micros(1));
    assert!(matches!(p.now(&mut lab, Prog::recv_call(fd, buffer, msg::ERRQUEUE)), Ret::Received { .. }), "there is room again");
}

#[test]
fn mtu_that_is_named_for_nobodys_packet_is_not_believed() {
    let (mut lab, p) = lab();
    let fd = connected(&mut lab, p, 7);
    let mtu = |lab: &mut Lab| p.getopt(lab, fd, IP, IP_MTU);
    assert_eq!(mtu(&mut lab), 1500);
    lab.inject(0, Dir::Backward, error(3, 4, 600, 8));
    lab.run_for(Duration::from_micros(1));
    assert_eq!(mtu(&mut lab), 1500, "no socket of this host has sent that");
    // Of TCP: no connection, and one whose numbers the sender of the error cannot know.
    let mut tcp = error(3, 4, 600, 7);
    tcp.bytes[51] = 6;
    tcp.bytes[36..38].fill(0);
    let sum = !fold(checksum_add(&tcp.bytes[34..], 0));
    tcp.bytes[36..38].copy_from_slice(&sum.to_be_bytes());
    lab.inject(0, Dir::Backward, tcp);
    lab.run_for(Duration::from_micros(1));
    assert_eq!(mtu(&mut lab), 1500);
    lab.inject(0, Dir::Backward, error(3, 4, 600, 7));
    lab.run_for(Duration::from_micros(1));
    assert_eq!(mtu(&mut lab), 600, "and this one has");
    lab.inject(0, Dir::Backward, error(3, 4, 0, 7));
    lab.run_for(Duration::from_micros(1));
    assert_eq!(mtu(&mut lab), 552, "never less than min_pmtu");
}

#[test]
fn links_too_narrow_for_an_error_message_get_none() {
    let (mut lab, p) = lab();
    lab.inject(0, Dir::Backward, Path { src: TESTER, dst: HOST, dst_mac: mac(0, 0) }.echo(1, 1, b"resolve"));
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(0);
    lab.received.clear();
    let nl = Nl::open(&mut lab, p, ROUTE);
    for (mtu, errors) in [(10u32, 0), (28, 0), (48, 0), (49, 1), (1500, 1)] {
        // `ip route replace 10.0.0.9/32 dev eth0 mtu N`.
        let metric = [&8u16.to_ne_bytes()[..], &2u16.to_ne_bytes(), &mtu.to_ne_bytes()].concat();
        let rtmsg = [2, 32, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0];
        let attrs: [(u16, &[u8]); 3] = [(1, &TESTER.octets()), (4, &2u32.to_ne_bytes()), (8, &metric)];
        assert_eq!(nl.ack(&mut lab, 24, CREATE | netlink_support::REPLACE, &rtmsg, &attrs), Ok(()));
        let to_host = Path { src: TESTER, dst: HOST, dst_mac: mac(0, 0) };
        lab.run_for(Duration::from_secs(2));
        lab.received.clear();
        lab.inject(0, Dir::Backward, to_host.udp(5, 99, &[1; 600]));
        lab.inject(0, Dir::Backward, to_host.echo(5, 99, &[1; 600]));
        lab.run_for(Duration::from_millis(1));
        let unreachable = lab.received.iter().filter(|r| r.1.icmp().is_some_and(|i| i.0 == 3) && r.1.frag_offset() == 0).count();
        assert_eq!(unreachable, errors, "MTU {mtu}");
    }
    assert!(lab.hosts[0].kernel.stats().mib.get(Mib::IpFragOKs) > 0, "answers are cut into what goes through");
}

#[test]
fn thousand_who_are_complained_to_do_not_silence_the_host_for_those_it_knows() {
    let (mut lab, _) = lab();
    lab.hosts[0].kernel.sysctl_set("net.ipv4.icmp_msgs_burst", "100000").expect("a row");
    lab.hosts[0].kernel.sysctl_set("net.ipv4.icmp_msgs_per_sec", "1000000").expect("a row");
    lab.run_for(Duration::from_secs(1));
    let complain = |lab: &mut Lab, src: Ipv4Addr| {
        lab.inject(0, Dir::Backward, Path { src, dst: HOST, dst_mac: mac(0, 0) }.fragment(1, 200, 0, false, &[1; 16]));
        lab.run_for(Duration::from_micros(1));
        lab.hosts[0].kernel.stats().mib.get(Mib::IcmpOutMsgs)
    };
    assert_eq!(complain(&mut lab, TESTER), 1);
    lab.hosts[0].kernel.add_route((Ipv4Addr::new(10, 9, 0, 0), 16), TESTER, None, 0).expect("on the link");
    for i in 0..2000u16 {
        complain(&mut lab, Ipv4Addr::from_bits(0x0a09_0000 + u32::from(i)));
    }
    let before = lab.hosts[0].kernel.stats().mib.get(Mib::IcmpOutMsgs);
    assert_eq!(before, 1024, "so many are remembered");
    assert_eq!(complain(&mut lab, TESTER), before + 1);
    assert_eq!(complain(&mut lab, Ipv4Addr::new(10, 9, 99, 99)), before + 1, "and no stranger more");
    lab.run_for(Duration::from_secs(7));
    assert_eq!(complain(&mut lab, Ipv4Addr::new(10, 9, 99, 99)), before + 2, "until those are forgotten");
}
