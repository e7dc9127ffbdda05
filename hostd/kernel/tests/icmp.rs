//! ICMP between two hosts, and what a host answers to the wire.

mod common;

use common::{A, ADDR_A, ADDR_B, Dir, Frame, HostConfig, Lab, PortConfig, TEST_MAC, Verdict, mac};
use etherparse::PacketBuilder;
use ringlab_kernel::dev::net_device::MacAddr;
use std::net::Ipv4Addr;
use std::time::Duration;

fn echo_request(from: (MacAddr, Ipv4Addr), to: (MacAddr, Ipv4Addr), ttl: u8, payload: &[u8]) -> Frame {
    let builder = PacketBuilder::ethernet2(from.0.0, to.0.0).ipv4(from.1.octets(), to.1.octets(), ttl).icmpv4_echo_request(7, 1);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).expect("memory");
    bytes.into()
}

#[test]
fn echo_is_answered_after_the_asker_has_been_resolved() {
    let mut lab = Lab::pair(1);
    // As if B had asked: A does not know B's link-layer address and must ask for it first.
    let request = echo_request((mac(1, 0), ADDR_B), (mac(0, 0), ADDR_A), 64, b"hello, world");
    lab.inject(0, Dir::Backward, request.clone());
    lab.run_for(Duration::from_secs(1));
    assert_eq!(lab.count(0, Dir::Forward, |f| f.arp_op() == 1), 1);
    assert_eq!(lab.count(0, Dir::Backward, |f| f.arp_op() == 2), 1);
    let reply = &lab.log.iter().find(|l| l.frame.icmp() == Some((0, 0))).expect("a reply").frame;
    assert_eq!((reply.saddr(), reply.daddr(), reply.ttl(), reply.df()), (ADDR_A, ADDR_B, 64, false));
    assert_eq!((reply.payload(), reply.dst()), (request.payload(), mac(1, 0)));
    etherparse::PacketHeaders::from_ethernet_slice(&reply.bytes).expect("etherparse reads it");
    let stats = lab.hosts[A].kernel.stats();
    assert_eq!(stats.copies.iter().map(|c| c.1).sum::<u64>(), 0, "the reply shares the request's data");
    assert_eq!(stats.neighbours[0].state, "REACHABLE");
    assert_eq!(lab.hosts[1].kernel.stats().neighbours[0].state, "STALE", "B has learnt A from the question");
}

#[test]
fn nobody_answers_then_the_packet_is_dropped_after_three_probes() {
    let mut lab = Lab::pair(2);
    lab.hook(0, |_, f| if f.is_arp() { Verdict::Drop } else { Verdict::Pass });
    lab.inject(0, Dir::Backward, echo_request((mac(1, 0), ADDR_B), (mac(0, 0), ADDR_A), 64, b"x"));
    lab.run_for(Duration::from_millis(2900));
    let probes: Vec<u64> = lab.log.iter().filter(|l| l.frame.is_arp()).map(|l| l.time.millis()).collect();
    assert_eq!(probes.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>(), [1000, 1000]);
    lab.run_for(Duration::from_millis(200));
    let stats = lab.hosts[A].kernel.stats();
    assert_eq!(stats.neighbours[0].state, "FAILED");
    assert_eq!(stats.drops.get(ringlab_counters::DropReason::NeighFailed), 1);
}

#[test]
fn router_forwards_and_says_when_hops_run_out() {
    let mut lab = Lab::new(3);
    let a = lab.add_host(HostConfig::default());
    let r = lab.add_host(HostConfig { ip_forward: true, ..HostConfig::default() });
    let far = Ipv4Addr::new(10, 0, 1, 9);
    let near = lab.link((a, ADDR_A, PortConfig::default()), (r, ADDR_B, PortConfig::default()), 24, Duration::from_micros(50));
    let other = lab.stub(r, Ipv4Addr::new(10, 0, 1, 1), 24, PortConfig::default());
    lab.inject(near, Dir::Forward, echo_request((mac(a, 0), ADDR_A), (mac(r, 0), far), 2, b"forward me"));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.received.len(), 1, "the router asks for the destination");
    lab.answer_arp(other);
    let forwarded = lab.received.pop().expect("the packet").1;
    assert_eq!((forwarded.ttl(), forwarded.daddr(), forwarded.dst()), (1, far, TEST_MAC));
    etherparse::PacketHeaders::from_ethernet_slice(&forwarded.bytes).expect("etherparse reads it");

    lab.inject(near, Dir::Forward, echo_request((mac(a, 0), ADDR_A), (mac(r, 0), far), 1, &[0; 1000]));
    lab.run_for(Duration::from_millis(10));
    assert!(lab.received.is_empty());
    let error = &lab.log.iter().find(|l| l.frame.icmp() == Some((11, 0))).expect("time exceeded").frame;
    assert_eq!((error.saddr(), error.daddr(), error.tos(), error.df()), (ADDR_B, ADDR_A, 0xc0, false));
    assert_eq!(error.ip_len(), 576);
}
