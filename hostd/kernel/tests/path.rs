//! Across a router, as programs see it: what is lost on the way is heard of.

mod common;

use common::tasks::{DGRAM, Prog};
use common::{Dir, HostConfig, Lab, PortConfig, Verdict};
use ringlab_counters::{CopyKind, DropReason, Mib};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Control, Ret, msg};
use ringlab_kernel::trace::Point;
use std::net::Ipv4Addr;
use std::time::Duration;

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const C: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const IP: i32 = 0;
const IP_TTL: i32 = 2;
const IP_RECVERR: i32 = 11;

/// Host 0 – router 1 – host 2; the second link takes `mtu` octets. A program with a UDP socket on each end, port 7.
fn line(mtu: u32) -> (Lab, (Prog, i32), (Prog, i32)) {
    let mut lab = Lab::new(4);
    for ip_forward in [false, true, false] {
        lab.add_host(HostConfig { ip_forward, ..HostConfig::default() });
    }
    let small = PortConfig { mtu, ..PortConfig::default() };
    let delay = Duration::from_micros(50);
    lab.link((0, A, PortConfig::default()), (1, Ipv4Addr::new(10, 0, 0, 254), PortConfig::default()), 24, delay);
    lab.link((1, Ipv4Addr::new(10, 0, 1, 254), small.clone()), (2, C, small), 24, delay);
    let any = (Ipv4Addr::UNSPECIFIED, 0);
    lab.hosts[0].kernel.add_route(any, Ipv4Addr::new(10, 0, 0, 254), None, 0).expect("on the link");
    lab.hosts[2].kernel.add_route(any, Ipv4Addr::new(10, 0, 1, 254), None, 0).expect("on the link");
    let (a, c) = (Prog::spawn(&mut lab, 0, "a"), Prog::spawn(&mut lab, 2, "c"));
    let (fa, fc) = (a.udp(&mut lab, 7), c.udp(&mut lab, 7));
    (lab, (a, fa), (c, fc))
}

#[test]
fn datagram_crosses_the_router_with_its_ttl_lowered() {
    let (mut lab, (a, fa), (c, fc)) = line(1500);
    a.send_to(&mut lab, fa, b"over the hill", C, 7);
    assert_eq!(c.recv(&mut lab, fc, 100, 0).from, Some((A, 7).into()));
    let ttls: Vec<u8> = lab.log.iter().filter(|l| l.frame.is_udp()).map(|l| l.frame.ttl()).collect();
    assert_eq!(ttls, [64, 63]);
    let router = lab.hosts[1].kernel.stats();
    assert_eq!((router.mib.get(Mib::IpForwDatagrams), router.copies.get(CopyKind::OtherBytes)), (1, 0));
}

#[test]
fn sender_hears_of_hops_that_ran_out() {
    let (mut lab, (a, fa), _) = line(1500);
    a.setopt(&mut lab, fa, IP, IP_TTL, 1);
    a.setopt(&mut lab, fa, IP, IP_RECVERR, 1);
    a.send_to(&mut lab, fa, b"?", C, 7);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(a.recv_err(&mut lab, fa, 0), Errno::EHOSTUNREACH);
    let e = a.recv(&mut lab, fa, 100, msg::ERRQUEUE);
    assert_eq!(e.control, [Control::Err(Errno::EHOSTUNREACH, 2, 11, 0, 0, Ipv4Addr::new(10, 0, 0, 254))]);
}

#[test]
fn path_mtu_is_learnt_and_longer_datagrams_are_cut_from_then_on() {
    let (mut lab, (a, fa), (c, fc)) = line(600);
    a.send_to(&mut lab, fa, &[1; 1000], C, 7);
    lab.run_for(Duration::from_millis(5));
    let icmp: Vec<_> = lab.log.iter().filter_map(|l| l.frame.icmp()).collect();
    assert_eq!(icmp, [(3, 4)]);
    a.send_to(&mut lab, fa, &[2; 1000], C, 7);
    let got = c.recv(&mut lab, fc, 2000, 0);
    assert_eq!(got.data, [2; 1000]);
    let lens: Vec<(u16, bool)> =
        lab.log.iter().filter(|l| l.link == 0 && l.frame.is_udp()).map(|l| (l.frame.ip_len(), l.frame.df())).collect();
    assert_eq!(lens, [(1028, true), (596, false), (452, false)]);
    // Ten minutes later the path is tried again.
    lab.run_for(Duration::from_secs(601));
    a.send_to(&mut lab, fa, &[3; 1000], C, 7);
    lab.run_for(Duration::from_secs(5));
    assert_eq!(lab.log.iter().rfind(|l| l.link == 0 && l.frame.is_udp()).map(|l| l.frame.ip_len()), Some(1028));
}

#[test]
fn absent_neighbour_is_host_unreachable_after_three_seconds() {
    let (mut lab, (a, fa), _) = line(1500);
    a.ok(&mut lab, Call::Connect(fa, Some((Ipv4Addr::new(10, 0, 0, 77), 7).into())));
    // Without it Linux keeps errors that may pass from a UDP socket.
    a.setopt(&mut lab, fa, IP, IP_RECVERR, 1);
    let start = lab.now;
    assert_eq!(a.send(&mut lab, fa, b"?"), Ret::Value(1));
    let buffer = a.buffer(&lab, 10);
    assert_eq!(a.call(&mut lab, Prog::recv_call(fa, buffer, 0)), Ret::Err(Errno::EHOSTUNREACH));
    assert_eq!(lab.now.since(start).as_secs(), 3);
    assert_eq!(lab.hosts[0].kernel.stats().drops.get(DropReason::NeighFailed), 1);
}

#[test]
fn router_tells_of_an_absent_host_behind_it() {
    let (mut lab, (a, fa), _) = line(1500);
    a.ok(&mut lab, Call::Connect(fa, Some((Ipv4Addr::new(10, 0, 1, 77), 7).into())));
    // Without it Linux keeps errors that may pass from a UDP socket.
    a.setopt(&mut lab, fa, IP, IP_RECVERR, 1);
    a.send(&mut lab, fa, b"?");
    let buffer = a.buffer(&lab, 10);
    assert_eq!(a.call(&mut lab, Prog::recv_call(fa, buffer, 0)), Ret::Err(Errno::EHOSTUNREACH));
    assert!(lab.log.iter().any(|l| l.link == 0 && l.frame.icmp() == Some((3, 1))));
}

#[test]
fn no_route_is_network_unreachable_at_once() {
    let mut lab = Lab::pair(1);
    let a = Prog::spawn(&mut lab, 0, "a");
    let fd = a.socket(&mut lab, DGRAM);
    assert_eq!(a.send_to(&mut lab, fd, b"?", C, 7), Ret::Err(Errno::ENETUNREACH));
    assert_eq!(lab.hosts[0].kernel.stats().mib.get(Mib::IpOutNoRoutes), 1);
}

#[test]
fn lost_reply_is_asked_for_again_and_nothing_is_lost() {
    let (mut lab, (a, fa), (c, fc)) = line(1500);
    lab.drop_first(0, |dir, f| dir == Dir::Backward && f.arp_op() == 2);
    a.send_to(&mut lab, fa, b"one", C, 7);
    a.send_to(&mut lab, fa, b"two", C, 7);
    let start = lab.now;
    assert_eq!(c.recv(&mut lab, fc, 10, 0).data, b"one");
    assert_eq!(c.recv(&mut lab, fc, 10, 0).data, b"two");
    assert_eq!(lab.now.since(start).as_secs(), 1);
    lab.hook(0, |_, _| Verdict::Pass);
}

#[test]
fn send_and_receive_are_seen_step_by_step() {
    use Point::*;
    let (mut lab, (a, fa), (c, fc)) = line(1500);
    a.send_to(&mut lab, fa, b"resolve", C, 7);
    c.recv(&mut lab, fc, 10, 0);
    lab.run_for(Duration::from_millis(1));
    let buffer = c.buffer(&lab, 10);
    c.blocks(&mut lab, Prog::recv_call(fc, buffer, 0));
    for host in 0..3 {
        lab.trace(host);
    }
    a.send_to(&mut lab, fa, b"step", C, 7);
    c.wait(&mut lab);
    lab.run_for(Duration::from_millis(1));
    let points = |lab: &mut Lab, host| lab.take_trace(host).into_iter().map(|r| r.point).collect::<Vec<_>>();
    let contains = |all: &[Point], want: &[Point]| {
        let mut want = want.iter().peekable();
        for p in all {
            want.next_if(|w| *w == p);
        }
        assert!(want.peek().is_none(), "{:?} is missing or out of order in {all:?}", want.peek());
    };
    let send = points(&mut lab, 0);
    contains(
        &send,
        &[
            SysEnter,
            CopyFromUser,
            NfHook,
            NfHook,
            NeighOutput,
            DevQueueXmit,
            QdiscEnqueue,
            QdiscDequeue,
            StartXmit,
            SysExit,
            Doorbell,
            HardIrq,
            NapiSchedule,
            SoftirqRaise,
            SoftirqEntry,
            ConsumeSkb,
            TxClean,
            NapiPoll,
            NapiComplete,
            SoftirqExit,
        ],
    );
    let forward = points(&mut lab, 1);
    contains(&forward, &[HardIrq, RxDma, NetifReceive, IpRcv, NfHook, IpForward, NfHook, NfHook, NeighOutput, StartXmit, Doorbell]);
    let receive = points(&mut lab, 2);
    contains(
        &receive,
        &[
            HardIrq,
            NapiSchedule,
            SoftirqRaise,
            SoftirqEntry,
            RxDma,
            GroReceive,
            NetifReceive,
            IpRcv,
            NfHook,
            NfHook,
            IpLocalDeliver,
            UdpRcv,
            SockQueueRcv,
            SkDataReady,
            WakeUp,
            NapiPoll,
            NapiComplete,
            SoftirqExit,
            SchedSwitch,
            CopyToUser,
            ConsumeSkb,
            SysExit,
        ],
    );
}
