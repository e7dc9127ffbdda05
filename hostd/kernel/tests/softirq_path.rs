//! Where and in which order the work of interrupts is done: receive steps R3 to R8, transmit steps T4 to T8.

mod common;

use common::tasks::Prog;
use common::{A, ADDR_B, B, Dir, HostConfig, Lab, Path, PortConfig, mac};
use ringlab_counters::{DropReason, Mib, Netdev};
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::trace::{Point, Record};
use ringlab_kernel::uaccess::Iov;
use std::net::Ipv4Addr;
use std::time::Duration;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const TESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const NET_TX: u64 = 2;
const NET_RX: u64 = 3;

fn to_host() -> Path {
    Path { src: TESTER, dst: HOST, dst_mac: mac(0, 0) }
}

/// One host whose only link the test holds, the tester's address resolved.
fn host_and_wire(host: HostConfig, port: PortConfig) -> Lab {
    let mut lab = Lab::new(1);
    lab.add_host(host);
    lab.stub(0, HOST, 24, port);
    lab.inject(0, Dir::Backward, to_host().echo(1, 0, b"resolve"));
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(0);
    lab.received.clear();
    lab
}

/// The records of each softirq, with its number.
fn softirqs(trace: &[Record]) -> Vec<(u64, Vec<Record>)> {
    let mut out: Vec<(u64, Vec<Record>)> = Vec::new();
    let mut inside = false;
    for r in trace {
        match r.point {
            Point::SoftirqEntry => {
                assert!(!std::mem::replace(&mut inside, true), "softirqs do not nest");
                out.push((r.args[0], Vec::new()));
            }
            Point::SoftirqExit => inside = false,
            _ if inside => out.last_mut().expect("inside one").1.push(*r),
            _ => {}
        }
    }
    out
}

fn has(records: &[Record], point: Point) -> bool {
    records.iter().any(|r| r.point == point)
}

#[test]
fn frame_that_comes_when_the_interrupt_is_unmasked_is_polled_without_one() {
    let mut lab = host_and_wire(HostConfig::default(), PortConfig::default());
    let port = lab.hosts[0].ports[0].clone();
    lab.trace(0);
    let interrupts = port.interrupt_count();
    port.receive_at_unmask(to_host().echo(1, 2, b"late"));
    lab.inject(0, Dir::Backward, to_host().echo(1, 1, b"in time"));
    lab.run_for(Duration::from_millis(1));
    let answered: Vec<u8> = lab.received.iter().map(|r| r.1.bytes[41]).collect();
    assert_eq!(answered, [1, 2]);
    assert_eq!(port.interrupt_count(), interrupts + 1);
    assert!(!port.masked(0));
    let polls = lab.take_trace(0).iter().filter(|r| r.point == Point::NapiPoll).count();
    assert_eq!(polls, 2, "one more poll, the interrupt masked again meanwhile");
}

#[test]
fn all_work_of_an_interrupt_is_done_on_its_vectors_cpu() {
    let port = PortConfig { irq_affinity: vec![2], ..PortConfig::default() };
    let mut lab = host_and_wire(HostConfig { cpus: 4, ..HostConfig::default() }, port);
    lab.trace(0);
    for seq in 0..1000 {
        lab.inject(0, Dir::Backward, to_host().echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    let trace = lab.take_trace(0);
    assert!(has(&trace, Point::HardIrq) && has(&trace, Point::StartXmit));
    let elsewhere: Vec<&Record> = trace.iter().filter(|r| r.cpu != 2 && r.point != Point::Doorbell).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    let stats = lab.hosts[0].kernel.stats();
    assert!(stats.cpus.iter().enumerate().all(|(cpu, c)| (c.net_rx_softirqs > 0) == (cpu == 2)));
}

#[test]
fn task_that_waits_for_the_cpu_ends_the_rounds_of_softirqs() {
    let mut lab = host_and_wire(HostConfig::default(), PortConfig { rx_ring: 4096, tx_ring: 4096, ..PortConfig::default() });
    let p = Prog::spawn(&mut lab, 0, "reader");
    let fd = p.udp(&mut lab, 7);
    let buffer = p.buffer(&lab, 10);
    p.blocks(&mut lab, Prog::recv_call(fd, buffer, 0));
    lab.trace(0);
    lab.inject(0, Dir::Backward, to_host().udp(9, 7, b"wake up"));
    for seq in 0..1000 {
        lab.inject(0, Dir::Backward, to_host().echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    let trace = lab.take_trace(0);
    let at = |point: Point| trace.iter().position(|r| r.point == point).unwrap_or_else(|| panic!("{point:?}"));
    let rounds = trace[..at(Point::KsoftirqdWake)].iter().filter(|r| r.point == Point::SoftirqEntry).count();
    assert_eq!(rounds, 1, "the rest is ksoftirqd's");
    assert!(at(Point::KsoftirqdWake) < at(Point::CopyToUser), "which lets the reader have its turn");
    assert_eq!(lab.received.len(), 1000);
}

#[test]
fn hooks_are_passed_in_their_order() {
    let hooks = |lab: &mut Lab, frames: Vec<common::Frame>| -> Vec<(Point, u64)> {
        lab.trace(0);
        for frame in frames {
            lab.inject(0, Dir::Backward, frame);
        }
        lab.run_for(Duration::from_millis(1));
        let points = [Point::IpRcv, Point::NfHook, Point::IpDefrag, Point::IpLocalDeliver, Point::IpForward, Point::NeighOutput];
        let seen = lab.take_trace(0).into_iter().filter(|r| points.contains(&r.point));
        seen.map(|r| (r.point, if r.point == Point::NfHook { r.args[0] } else { 0 })).collect()
    };
    const PRE_ROUTING: (Point, u64) = (Point::NfHook, 0);
    const LOCAL_IN: (Point, u64) = (Point::NfHook, 1);
    const FORWARD: (Point, u64) = (Point::NfHook, 2);
    const LOCAL_OUT: (Point, u64) = (Point::NfHook, 3);
    const POST_ROUTING: (Point, u64) = (Point::NfHook, 4);
    let (rcv, defrag, deliver) = ((Point::IpRcv, 0), (Point::IpDefrag, 0), (Point::IpLocalDeliver, 0));
    let (forward, output) = ((Point::IpForward, 0), (Point::NeighOutput, 0));
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig { ip_forward: true, ..HostConfig::default() });
    lab.stub(0, HOST, 24, PortConfig::default());
    lab.stub(0, Ipv4Addr::new(10, 0, 1, 1), 24, PortConfig::default());
    let echo = to_host().echo(1, 1, b"question");
    assert_eq!(hooks(&mut lab, vec![echo.clone()]), [rcv, PRE_ROUTING, LOCAL_IN, deliver, LOCAL_OUT, POST_ROUTING, output]);
    let pieces = [(0, true), (8, false)].map(|(at, more)| {
        let data = &echo.bytes[34..];
        to_host().fragment(5, 1, at, more, if more { &data[..8] } else { &data[8..] })
    });
    let want = [rcv, PRE_ROUTING, defrag, rcv, PRE_ROUTING, defrag, LOCAL_IN, deliver, LOCAL_OUT, POST_ROUTING, output];
    assert_eq!(hooks(&mut lab, pieces.to_vec()), want);
    let through = Path { dst: Ipv4Addr::new(10, 0, 1, 9), ..to_host() };
    assert_eq!(hooks(&mut lab, vec![through.udp(1, 2, b"x")]), [rcv, PRE_ROUTING, forward, FORWARD, POST_ROUTING, output]);
}

#[test]
fn each_run_of_a_qdisc_sends_its_quota_and_leaves_the_rest_to_net_tx() {
    let port = PortConfig { rx_ring: 1000, tx_ring: 100, ..PortConfig::default() };
    let mut lab = host_and_wire(HostConfig::default(), port);
    let device = lab.hosts[0].ports[0].clone();
    device.stall(true);
    for seq in 0..400 {
        lab.inject(0, Dir::Backward, to_host().echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    assert_eq!(device.tx_pending(), 100, "the others wait in the qdisc");
    for quota in [64, 16] {
        lab.hosts[0].kernel.sysctl_set("net.core.dev_weight", &quota.to_string()).expect("a row");
        lab.trace(0);
        device.stall(false);
        // The device takes what is on its ring, and its completions wake the queue.
        for frame in device.transmit() {
            lab.received.push((0, frame));
        }
        device.stall(true);
        lab.interrupts(0);
        let trace = lab.take_trace(0);
        let runs = softirqs(&trace);
        let sent = |records: &[Record]| records.iter().filter(|r| r.point == Point::StartXmit).count();
        let of_tx: Vec<usize> = runs.iter().filter(|r| r.0 == NET_TX).map(|r| sent(&r.1)).collect();
        let want: Vec<usize> = if quota == 64 { vec![64, 36] } else { vec![16, 16, 16, 16, 16, 16, 4] };
        assert_eq!(of_tx, want);
        assert!(runs.iter().filter(|r| r.0 == NET_TX).all(|r| has(&r.1, Point::NetTxAction)));
        assert!(runs.iter().filter(|r| r.0 == NET_RX).all(|r| sent(&r.1) == 0), "the poll that frees only wakes the queue");
    }
    device.stall(false);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.received.len(), 400, "nothing is lost");
}

#[test]
fn sent_packets_are_freed_in_net_rx_which_outnumbers_net_tx_on_a_sender() {
    let mut lab = Lab::pair(1);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let l = b.listener(&mut lab, 80, 8);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    lab.trace(A);
    let data = vec![7; 1 << 20];
    let source = lab.hosts[A].mem.put(&data);
    a.start(&mut lab, Call::Send { fd: fa, iov: Iov::One(source), flags: 0, to: None, control: Vec::new() });
    let mut got = 0;
    while got < data.len() {
        got += b.recv(&mut lab, fb, 1 << 18, 0).data.len();
    }
    assert_eq!(a.wait(&mut lab), Ret::Value(1 << 20));
    lab.run_for(Duration::from_millis(50));
    let trace = lab.take_trace(A);
    let runs = softirqs(&trace);
    let cleanings = |records: &[Record]| records.iter().filter(|r| r.point == Point::TxClean).count();
    let in_net_rx: usize = runs.iter().filter(|r| r.0 == NET_RX).map(|r| cleanings(&r.1)).sum();
    assert!(in_net_rx > 0 && in_net_rx == cleanings(&trace), "nowhere else");
    for (_, records) in runs.iter().filter(|r| has(&r.1, Point::TxClean)) {
        let clean = records.iter().position(|r| r.point == Point::TxClean);
        let freed = records.iter().position(|r| r.point == Point::ConsumeSkb);
        assert!(freed < clean, "the clones are freed there");
    }
    let cpu = lab.hosts[A].kernel.stats().cpus[0];
    assert!(cpu.net_rx_softirqs > cpu.net_tx_softirqs, "{cpu:?}");
}

#[test]
fn larger_ring_takes_a_larger_burst() {
    for (rx_ring, taken) in [(64, 64), (128, 100)] {
        let mut lab = host_and_wire(HostConfig::default(), PortConfig { rx_ring, ..PortConfig::default() });
        for seq in 0..100 {
            lab.inject(0, Dir::Backward, to_host().echo(1, seq, b"x"));
        }
        lab.run_for(Duration::from_millis(1));
        assert_eq!((lab.received.len(), lab.hosts[0].ports[0].missed()), (taken, 100 - taken));
        // What the NIC has missed the host knows nothing of.
        let stats = lab.hosts[0].kernel.stats();
        assert_eq!(stats.interfaces[1].counters.get(Netdev::RxDropped), 0);
    }
}

#[test]
fn cached_route_of_a_socket_ends_with_its_table() {
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig::default());
    for net in 0..2 {
        lab.stub(0, Ipv4Addr::new(10, 0, net, 1), 24, PortConfig::default());
    }
    let there = (Ipv4Addr::new(172, 16, 0, 0), 16);
    let by = |net: u8| Ipv4Addr::new(10, 0, net, 9);
    lab.hosts[0].kernel.add_route(there, by(0), None, 0).expect("on the link");
    let p = Prog::spawn(&mut lab, 0, "p");
    let fd = p.udp(&mut lab, 7);
    p.ok(&mut lab, Call::Connect(fd, Some((Ipv4Addr::new(172, 16, 0, 1), 9).into())));
    let asked = |lab: &mut Lab| {
        assert_eq!(p.send(lab, fd, b"x"), Ret::Value(1));
        lab.run_for(Duration::from_micros(1));
        lab.received.drain(..).map(|r| r.0).collect::<Vec<usize>>()
    };
    assert_eq!(asked(&mut lab), [0], "the first gateway is asked for");
    lab.hosts[0].kernel.del_route(there, by(0), None, 0).expect("it is there");
    lab.hosts[0].kernel.add_route(there, by(1), None, 0).expect("on the link");
    assert_eq!(asked(&mut lab), [1], "and then the other one");
    lab.hosts[0].kernel.del_route(there, by(1), None, 0).expect("it is there");
    assert_eq!(p.send(&mut lab, fd, b"x"), Ret::Err(ringlab_kernel::errno::Errno::ENETUNREACH));
    let stats = lab.hosts[0].kernel.stats();
    assert_eq!((stats.mib.get(Mib::IpOutNoRoutes), stats.drops.get(DropReason::IpOutNoRoutes)), (1, 0));
}
