//! The carrier comes and goes: what a host forgets, keeps, drops and shows.

mod common;
mod tcp_support;

use common::tasks::{DGRAM, Prog};
use common::{A, ADDR_B, B, Dir, Lab, PortConfig, Verdict};
use ringlab_counters::{DropReason, Mib, Netdev};
use ringlab_kernel::Event;
use ringlab_kernel::dev::net_device::IfIndex;
use ringlab_kernel::stat::Stats;
use ringlab_kernel::syscall::Ret;
use ringlab_kernel::trace::Point;
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tcp_support::{connected_with, mib, transfer};

const ETH0: IfIndex = IfIndex(2);

fn set_carrier(lab: &mut Lab, host: usize, on: bool) {
    let now = lab.now;
    lab.hosts[host].kernel.handle(now, Event::Carrier(ETH0, on));
    lab.run_for(Duration::from_micros(1));
}

fn stats(lab: &Lab) -> Stats {
    lab.hosts[A].kernel.stats()
}

/// What `ip link` shows of eth0: carrier, operational state, how often it came, how often it went.
fn link(lab: &Lab) -> (bool, &'static str, u64, u64) {
    let eth0 = stats(lab).interfaces[1].clone();
    (eth0.carrier, eth0.operstate, eth0.counters.get(Netdev::CarrierUp), eth0.counters.get(Netdev::CarrierDown))
}

/// A program of A that has talked to B, and its socket.
fn acquainted() -> (Lab, Prog, i32) {
    let mut lab = Lab::pair(1);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let (fa, fb) = (a.socket(&mut lab, DGRAM), b.udp(&mut lab, 7));
    assert_eq!(a.send_to(&mut lab, fa, b"hello", ADDR_B, 7), Ret::Value(5));
    assert_eq!(b.recv(&mut lab, fb, 100, 0).data, b"hello");
    (lab, a, fa)
}

#[test]
fn host_without_a_carrier_keeps_routes_and_forgets_neighbours() {
    let (mut lab, ..) = acquainted();
    lab.hosts[A].kernel.add_route((Ipv4Addr::new(10, 9, 0, 0), 16), ADDR_B, None, 0).expect("on the link");
    let before = stats(&lab);
    assert_eq!(link(&lab), (true, "UP", 1, 1));
    assert_eq!((before.interfaces[0].operstate, before.neighbours.len()), ("UNKNOWN", 1));
    assert!(before.routes.iter().all(|r| !r.linkdown));
    set_carrier(&mut lab, A, false);
    let after = stats(&lab);
    assert_eq!(link(&lab), (false, "DOWN", 1, 2));
    assert_eq!(after.neighbours, []);
    assert!(after.interfaces[1].up && after.interfaces[1].ipv4 == before.interfaces[1].ipv4);
    let names = |s: &Stats| s.routes.iter().map(|r| r.prefix.clone()).collect::<Vec<_>>();
    assert_eq!((names(&after), names(&after).len()), (names(&before), 2));
    assert!(after.routes.iter().all(|r| r.linkdown));
    set_carrier(&mut lab, A, true);
    assert_eq!(link(&lab), (true, "UP", 2, 2));
    assert!(stats(&lab).routes.iter().all(|r| !r.linkdown));
}

#[test]
fn what_is_sent_without_a_carrier_is_dropped_and_called_sent() {
    let (mut lab, a, fa) = acquainted();
    set_carrier(&mut lab, A, false);
    let (before, sent) = (stats(&lab), lab.log.len());
    for _ in 0..3 {
        assert_eq!(a.send_to(&mut lab, fa, b"lost", ADDR_B, 7), Ret::Value(4), "the route is used all the same");
    }
    // They wait for the answer to a question that is dropped, three times a second apart.
    lab.run_for(Duration::from_secs(4));
    let after = stats(&lab);
    let dropped = |reason| after.drops.get(reason) - before.drops.get(reason);
    assert_eq!((dropped(DropReason::QdiscDrop), dropped(DropReason::NeighFailed)), (3, 3));
    let counted = |what| after.interfaces[1].counters.get(what) - before.interfaces[1].counters.get(what);
    assert_eq!((counted(Netdev::TxDropped), counted(Netdev::TxPackets), counted(Netdev::QdiscDropped)), (3, 0, 0));
    assert_eq!(after.mib.get(Mib::UdpOutDatagrams) - before.mib.get(Mib::UdpOutDatagrams), 3);
    assert_eq!(lab.log.len(), sent, "nothing left the host");
}

#[test]
fn carrier_that_comes_back_is_not_announced_and_the_peer_is_asked_for_when_needed() {
    let (mut lab, a, fa) = acquainted();
    set_carrier(&mut lab, A, false);
    set_carrier(&mut lab, A, true);
    let sent = lab.log.len();
    lab.run_for(Duration::from_secs(60));
    assert_eq!(lab.log.len(), sent, "no gratuitous ARP");
    assert_eq!(a.send_to(&mut lab, fa, b"again", ADDR_B, 7), Ret::Value(5));
    lab.run_for(Duration::from_millis(1));
    let frames: Vec<bool> = lab.log[sent..].iter().filter(|l| l.dir == Dir::Forward).map(|l| l.frame.is_arp()).collect();
    assert_eq!(frames, [true, false], "a question, and then the datagram");
}

#[test]
fn every_change_is_traced_once() {
    let (mut lab, ..) = acquainted();
    lab.trace(A);
    for on in [false, false, true, true, false] {
        set_carrier(&mut lab, A, on);
    }
    let changes: Vec<[u64; 4]> = lab.take_trace(A).iter().filter(|r| r.point == Point::LinkwatchDoDev).map(|r| r.args).collect();
    assert_eq!(changes, [[2, 0, 0, 0], [2, 1, 0, 0], [2, 0, 0, 0]]);
    // An interface that is not there changes nothing.
    let now = lab.now;
    lab.hosts[A].kernel.handle(now, Event::Carrier(IfIndex(9), false));
    assert_eq!(lab.take_trace(A).iter().filter(|r| r.point == Point::LinkwatchDoDev).count(), 0);
}

#[test]
fn connection_survives_two_seconds_without_a_carrier() {
    let (mut lab, a, b) = connected_with(7, PortConfig::default());
    transfer(&mut lab, a, b, 1 << 20, 65536);
    let cut = Rc::new(Cell::new(true));
    let wire = cut.clone();
    lab.hook(0, move |_, _| if wire.get() { Verdict::Drop } else { Verdict::Pass });
    for host in [A, B] {
        set_carrier(&mut lab, host, false);
    }
    let began = lab.now;
    assert_eq!(a.0.send(&mut lab, a.1, b"while it is away"), Ret::Value(16));
    lab.run_for(Duration::from_secs(2));
    assert!(mib(&lab, A, Mib::TCPTimeouts) >= 2, "the timer backs off as if the wire had lost it");
    assert!(stats(&lab).drops.get(DropReason::QdiscDrop) > 0);
    cut.set(false);
    for host in [A, B] {
        set_carrier(&mut lab, host, true);
    }
    assert_eq!(b.0.recv(&mut lab, b.1, 100, 0).data, b"while it is away");
    let took = lab.now - began;
    assert!(took < Duration::from_secs(5), "{took:?}");
    transfer(&mut lab, a, b, 1 << 20, 65536);
    transfer(&mut lab, b, a, 1 << 20, 65536);
    assert_eq!(link(&lab), (true, "UP", 2, 2));
}
