//! Neighbours: states, probes, confirmation, limits.

mod common;

use common::{Dir, HostConfig, Lab, Path, PortConfig, TEST_MAC};
use ringlab_counters::{DropReason, Mib};
use ringlab_kernel::dev::net_device::MacAddr;
use ringlab_kernel::trace::Point;
use std::net::Ipv4Addr;
use std::time::Duration;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const TESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0]);
const TO_HOST: Path = Path { src: TESTER, dst: HOST, dst_mac: HOST_MAC };

fn lab() -> Lab {
    let mut lab = Lab::new(3);
    lab.add_host(HostConfig::default());
    lab.stub(0, HOST, 16, PortConfig::default());
    lab
}

fn state(lab: &Lab) -> &'static str {
    lab.hosts[0].kernel.stats().neighbours.first().map_or("", |n| n.state)
}

fn ping(lab: &mut Lab) {
    lab.inject(0, Dir::Backward, TO_HOST.echo(1, 1, b"x"));
    lab.run_for(Duration::from_micros(1));
}

#[test]
fn entry_goes_through_its_states() {
    let mut lab = lab();
    lab.trace(0);
    ping(&mut lab);
    assert_eq!(state(&lab), "INCOMPLETE");
    lab.answer_arp(0);
    assert_eq!(state(&lab), "REACHABLE");
    lab.run_for(Duration::from_secs(14));
    assert_eq!(state(&lab), "REACHABLE");
    lab.run_for(Duration::from_secs(32));
    assert_eq!(state(&lab), "STALE");
    ping(&mut lab);
    assert_eq!(state(&lab), "DELAY");
    assert_eq!(lab.received.iter().filter(|r| r.1.is_arp()).count(), 0, "it is used as it is");
    lab.run_for(Duration::from_millis(4990));
    assert_eq!(state(&lab), "DELAY");
    lab.run_for(Duration::from_millis(20));
    assert_eq!(state(&lab), "PROBE");
    let probe = lab.received.iter().find(|r| r.1.is_arp()).expect("a probe").1.clone();
    assert_eq!(probe.dst(), TEST_MAC, "of the believed address only");
    lab.answer_arp(0);
    assert_eq!(state(&lab), "REACHABLE");
    let states: Vec<(u64, u64)> =
        lab.take_trace(0).iter().filter(|r| r.point == Point::NeighUpdate).map(|r| (r.args[1], r.args[2])).collect();
    assert_eq!(states, [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 2)]);
}

#[test]
fn silent_neighbour_fails_after_three_unicast_probes() {
    let mut lab = lab();
    ping(&mut lab);
    lab.answer_arp(0);
    lab.run_for(Duration::from_secs(60));
    ping(&mut lab);
    lab.received.clear();
    lab.run_for(Duration::from_secs(30));
    let probes: Vec<bool> = lab.received.iter().filter(|r| r.1.is_arp()).map(|r| r.1.dst() == TEST_MAC).collect();
    assert_eq!((probes.as_slice(), state(&lab)), ([true; 3].as_slice(), "FAILED"));
}

#[test]
fn packets_wait_in_order_and_the_oldest_make_room() {
    let mut lab = lab();
    lab.hosts[0].kernel.sysctl_set("net.ipv4.neigh.default.unres_qlen_bytes", "8000").expect("a row");
    for seq in 0..20 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_micros(1));
    lab.answer_arp(0);
    let dropped = lab.hosts[0].kernel.stats().drops.get(DropReason::NeighQueueFull);
    let seqs: Vec<u64> = lab.received.iter().filter(|r| r.1.is_icmp()).map(|r| u64::from(r.1.bytes[41])).collect();
    assert!(dropped > 0);
    assert_eq!(seqs, (dropped..20).collect::<Vec<_>>());
}

#[test]
fn packets_that_waited_put_an_entry_in_doubt_that_nobody_has_confirmed() {
    let mut lab = lab();
    ping(&mut lab);
    assert_eq!(state(&lab), "INCOMPLETE");
    // Instead of an answer, a question: where the neighbour is is known from it, not that it hears us.
    let mut b = [[255; 6], TEST_MAC.0].concat();
    b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    b.extend(TEST_MAC.0);
    b.extend(TESTER.octets());
    b.extend([0; 6]);
    b.extend(HOST.octets());
    lab.inject(0, Dir::Backward, b.into());
    lab.run_for(Duration::from_micros(1));
    assert!(lab.received.iter().any(|r| r.1.is_icmp()), "what waited has gone");
    assert_eq!(state(&lab), "DELAY");
    lab.run_for(Duration::from_secs(6));
    assert_eq!(state(&lab), "PROBE");
}

#[test]
fn where_nobody_may_be_asked_packets_fail_at_once() {
    let mut lab = lab();
    lab.hosts[0].kernel.sysctl_set("net.ipv4.neigh.default.mcast_solicit", "0").expect("a row");
    ping(&mut lab);
    assert_eq!((state(&lab), lab.received.len()), ("FAILED", 0));
    assert_eq!(lab.hosts[0].kernel.stats().drops.get(DropReason::NeighFailed), 1);
}

#[test]
fn gratuitous_and_foreign_replies_update_but_do_not_make_entries() {
    let mut lab = lab();
    let reply = |from: Ipv4Addr, mac: MacAddr, to: Ipv4Addr, target: MacAddr| {
        let mut b = [if target == mac { [255; 6] } else { target.0 }, mac.0].concat();
        b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        b.extend(mac.0);
        b.extend(from.octets());
        b.extend(target.0);
        b.extend(to.octets());
        b.into()
    };
    lab.inject(0, Dir::Backward, reply(TESTER, TEST_MAC, HOST, HOST_MAC));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(state(&lab), "", "nobody asked");
    ping(&mut lab);
    lab.answer_arp(0);
    let other = MacAddr([2, 9, 9, 9, 9, 9]);
    lab.inject(0, Dir::Backward, reply(TESTER, other, HOST, HOST_MAC));
    lab.run_for(Duration::from_millis(1));
    let mac = |lab: &Lab| lab.hosts[0].kernel.stats().neighbours[0].mac;
    assert_eq!(mac(&lab), Some(TEST_MAC), "a second answer within a second does not win");
    lab.inject(0, Dir::Backward, reply(TESTER, other, TESTER, other));
    lab.run_for(Duration::from_millis(1));
    assert_eq!((mac(&lab), state(&lab)), (Some(other), "STALE"));
}

#[test]
fn address_probe_is_answered_and_nothing_learnt() {
    let mut lab = lab();
    let mut b = [[255; 6], TEST_MAC.0].concat();
    b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    b.extend(TEST_MAC.0);
    b.extend([0; 10]);
    b.extend(HOST.octets());
    lab.inject(0, Dir::Backward, b.into());
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.received.len(), 1);
    assert_eq!((lab.received[0].1.arp_op(), lab.received[0].1.dst(), state(&lab)), (2, TEST_MAC, ""));
    let stats = lab.hosts[0].kernel.stats();
    assert_eq!((stats.mib.get(Mib::ArpInRequests), stats.mib.get(Mib::ArpOutReplies)), (1, 1));
}

#[test]
fn table_is_bounded() {
    let mut lab = lab();
    for (name, value) in [("gc_thresh1", "8"), ("gc_thresh2", "16"), ("gc_thresh3", "32")] {
        lab.hosts[0].kernel.sysctl_set(&format!("net.ipv4.neigh.default.{name}"), value).expect("a row");
    }
    for i in 0..100u8 {
        let path = Path { src: Ipv4Addr::new(10, 0, 7, i), ..TO_HOST };
        lab.inject(0, Dir::Backward, path.echo(1, 1, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    let stats = lab.hosts[0].kernel.stats();
    assert_eq!((stats.neighbours.len(), stats.drops.get(DropReason::NeighCreateFail)), (32, 68));
    lab.run_for(Duration::from_secs(60));
    assert!(lab.hosts[0].kernel.stats().neighbours.is_empty(), "failed entries are collected");
}

#[test]
fn table_that_is_always_swept_leaves_the_host_its_time() {
    let mut lab = lab();
    for (name, value) in [("gc_thresh1", "0"), ("base_reachable_time_ms", "1")] {
        lab.hosts[0].kernel.sysctl_set(&format!("net.ipv4.neigh.default.{name}"), value).expect("a row");
    }
    ping(&mut lab);
    let timers = |lab: &Lab| lab.hosts[0].kernel.stats().cpus[0].timer_softirqs;
    let before = timers(&lab);
    lab.run_for(Duration::from_millis(100));
    assert!((50..=110).contains(&(timers(&lab) - before)), "once a millisecond");
}
