//! Interrupts, NAPI, GRO, GSO, the qdisc and the doorbell, seen from the wire and in the counters.

mod common;

use common::{Dir, Frame, HostConfig, Lab, Path, PortConfig, mac};
use proptest::prelude::*;
use ringlab_counters::{DropReason, Mib, Netdev};
use ringlab_kernel::dev::net_device::Features;
use ringlab_kernel::trace::Point;
use std::net::Ipv4Addr;
use std::time::Duration;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const TESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const TO_HOST: Path = Path { src: TESTER, dst: HOST, dst_mac: mac_of(0, 0) };
const THROUGH: Path = Path { src: TESTER, dst: FAR, dst_mac: mac_of(0, 0) };

const fn mac_of(host: u8, port: u8) -> ringlab_kernel::dev::net_device::MacAddr {
    ringlab_kernel::dev::net_device::MacAddr([2, 0, 0, 0, host, port])
}

/// One host whose only link the test holds, the tester's address resolved.
fn host_and_wire(host: HostConfig, port: PortConfig) -> Lab {
    let mut lab = Lab::new(1);
    lab.add_host(host);
    lab.stub(0, HOST, 24, port);
    assert_eq!(mac(0, 0), mac_of(0, 0));
    lab.inject(0, Dir::Backward, TO_HOST.echo(1, 0, b"resolve"));
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(0);
    assert_eq!(lab.received.len(), 1, "the first echo reply");
    lab.received.clear();
    lab
}

/// A router between two links that the test holds, both neighbours resolved.
fn router(out: PortConfig) -> Lab {
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig { ip_forward: true, ..HostConfig::default() });
    lab.stub(0, HOST, 24, PortConfig::default());
    lab.stub(0, Ipv4Addr::new(10, 0, 1, 1), 24, out);
    lab.inject(0, Dir::Backward, THROUGH.udp(1, 1, b"resolve"));
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(1);
    assert_eq!(lab.received.len(), 1, "the first datagram");
    lab.received.clear();
    lab
}

#[test]
fn many_frames_of_one_poll_cost_one_interrupt() {
    let mut lab = host_and_wire(HostConfig::default(), PortConfig::default());
    let before = lab.hosts[0].kernel.stats();
    for seq in 0..40 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.trace(0);
    lab.run_for(Duration::from_micros(1));
    let stats = lab.hosts[0].kernel.stats();
    assert_eq!(lab.received.len(), 40);
    assert_eq!(stats.cpus[0].napi_packets - before.cpus[0].napi_packets, 40);
    let trace = lab.take_trace(0);
    use Point::{ConsumeSkb, GroReceive, HardIrq, IpRcv, NapiSchedule, NetifReceive, RxDma, SoftirqEntry, SoftirqRaise, TxClean};
    // The poll first reaps the reply sent before.
    let order: Vec<Point> = trace.iter().map(|r| r.point).filter(|p| !matches!(p, ConsumeSkb | TxClean)).take(8).collect();
    assert_eq!(order, [HardIrq, NapiSchedule, SoftirqRaise, SoftirqEntry, RxDma, GroReceive, NetifReceive, IpRcv]);
    let first_irq = trace.iter().filter(|r| r.point == HardIrq).count();
    assert_eq!(first_irq, 1, "TX completions are not asked for: nobody is charged");
    assert_eq!(trace.iter().filter(|r| r.point == Point::Doorbell).count(), 1);
}

#[test]
fn interrupt_is_masked_from_hard_irq_to_completion() {
    let mut lab = host_and_wire(HostConfig::default(), PortConfig::default());
    lab.trace(0);
    let port = lab.hosts[0].ports[0].clone();
    assert!(!port.masked(0));
    // More than one round of the softirq takes: polling goes on with the interrupt masked.
    for seq in 0..400 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.run_for(Duration::ZERO);
    assert!(!port.masked(0), "unmasked when all is done");
    let interrupts = port.interrupt_count();
    for seq in 0..3 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.run_for(Duration::ZERO);
    assert_eq!(port.interrupt_count(), interrupts + 1);
    let trace = lab.take_trace(0);
    let mut scheduled = false;
    for r in &trace {
        match r.point {
            Point::NapiSchedule => assert!(!std::mem::replace(&mut scheduled, true), "scheduled twice"),
            Point::NapiComplete => assert!(std::mem::replace(&mut scheduled, false)),
            Point::NapiPoll => assert!(scheduled, "polled without being scheduled"),
            Point::HardIrq => assert!(!scheduled, "an interrupt while masked"),
            _ => {}
        }
    }
    assert!(!scheduled);
}

#[test]
fn spent_budget_squeezes_and_ten_rounds_end_in_ksoftirqd() {
    let port = PortConfig { rx_ring: 10_000, tx_ring: 10_000, tx_queue_len: 10_000, ..PortConfig::default() };
    let mut lab = host_and_wire(HostConfig::default(), port);
    lab.trace(0);
    for seq in 0..5000 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.received.len(), 5000, "nothing is lost");
    let cpu = lab.hosts[0].kernel.stats().cpus[0];
    // A round is five polls of 64: the budget of 300 is checked after each.
    assert_eq!(cpu.time_squeeze, 5000 / 320);
    assert_eq!(cpu.ksoftirqd_runs, 5000u64.div_ceil(320) - 10);
    let trace = lab.take_trace(0);
    assert_eq!(trace.iter().filter(|r| r.point == Point::KsoftirqdWake).count(), 1);
    assert!(trace.iter().filter(|r| r.point == Point::NapiPoll).all(|r| r.args[1] <= 64));
}

#[test]
fn vectors_and_softirqs_stay_on_their_cpu() {
    let port = PortConfig { queues: 2, irq_affinity: vec![1, 3], ..PortConfig::default() };
    let mut lab = host_and_wire(HostConfig { cpus: 4, ..HostConfig::default() }, port);
    for source in 0..200u8 {
        let path = Path { src: Ipv4Addr::new(10, 0, 0, 20 + source % 200), ..TO_HOST };
        lab.inject(0, Dir::Backward, path.udp(1, 2, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    let stats = lab.hosts[0].kernel.stats();
    let rows: Vec<(&str, u16)> = stats.vectors.iter().map(|v| (v.name.as_str(), v.cpu)).collect();
    assert_eq!(rows, [("eth0-0", 1), ("eth0-1", 3)]);
    for v in &stats.vectors {
        assert!(v.counts.iter().enumerate().all(|(cpu, &n)| (n > 0) == (cpu == usize::from(v.cpu))), "{v:?}");
    }
    assert!(stats.cpus[1].napi_packets > 0 && stats.cpus[3].napi_packets > 0);
    assert_eq!((stats.cpus[0].napi_packets, stats.cpus[2].napi_packets), (0, 0));
}

#[test]
fn segments_in_order_are_merged_and_forwarded_whole() {
    let mut lab = router(PortConfig::default());
    for i in 0..10u16 {
        lab.inject(0, Dir::Backward, THROUGH.tcp(100 + i, 1000 * u32::from(i), i == 9, &[i as u8; 1000]));
    }
    lab.run_for(Duration::from_micros(10));
    assert_eq!(lab.received.len(), 1);
    let frame = &lab.received[0].1;
    assert_eq!((frame.hdr.gso_size, frame.hdr.gso_type, frame.payload().len()), (1000, 1, 10_000));
    assert_eq!((frame.flags() & 8, frame.ip_id(), frame.ttl()), (8, 100, 63));
    assert!((0..10).all(|i| frame.payload()[i * 1000..][..1000].iter().all(|&b| b == i as u8)));
    let stats = lab.hosts[0].kernel.stats();
    assert_eq!(stats.mib.get(Mib::GroMerged), 9);
    assert_eq!(stats.copies.iter().map(|c| c.1).sum::<u64>(), 0);
}

#[test]
fn merged_packet_is_cut_again_for_a_device_without_offloads() {
    let mut lab = router(PortConfig { features: Features::default(), ..PortConfig::default() });
    let sent: Vec<_> =
        (0..5u16).map(|i| THROUGH.tcp(100 + i, 1000 * u32::from(i), i == 4, &vec![i as u8; if i == 4 { 333 } else { 1000 }])).collect();
    for frame in &sent {
        lab.inject(0, Dir::Backward, frame.clone());
    }
    lab.run_for(Duration::from_micros(10));
    assert_eq!(lab.hosts[0].kernel.stats().mib.get(Mib::GroMerged), 4);
    assert_eq!(lab.received.len(), 5);
    for (frame, (_, got)) in sent.iter().zip(&lab.received) {
        assert_eq!((got.seq(), got.ip_id(), got.flags(), got.payload()), (frame.seq(), frame.ip_id(), frame.flags(), frame.payload()));
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(&got.bytes).expect("etherparse reads it");
        let Some(etherparse::NetHeaders::Ipv4(ip, _)) = &parsed.net else { panic!("IPv4") };
        let Some(etherparse::TransportHeader::Tcp(tcp)) = &parsed.transport else { panic!("TCP") };
        assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
        assert_eq!(tcp.calc_checksum_ipv4(ip, got.payload()).expect("short"), tcp.checksum);
    }
}

#[test]
fn what_does_not_continue_the_flow_is_not_merged() {
    let next = |id: u16, seq: u32| THROUGH.tcp(id, seq, false, &[1; 1000]);
    let first = next(100, 0);
    let mut corrupt = next(101, 1000);
    *corrupt.bytes.last_mut().expect("payload") ^= 1;
    let mut other_tos = next(101, 1000);
    other_tos.bytes[15] = 4;
    other_tos.bytes[24] = first.bytes[24];
    let mut cwr = next(101, 1000);
    cwr.bytes[47] |= 128;
    let gap = next(101, 2000);
    let longer = THROUGH.tcp(101, 1000, false, &[1; 1001]);
    let changed = |at: usize, to: u8| {
        let mut frame = next(101, 1000);
        frame.bytes[at] = to;
        frame.sum_tcp();
        frame
    };
    // Another acknowledgement, window, reserved bit, flag; another sender on the link; padding.
    let others = [(45, 78), (49, 1), (46, 0x51), (47, 0x30), (11, 9)].map(|(at, to)| changed(at, to));
    let mut padded = next(101, 1000);
    padded.bytes.push(0);
    for second in [corrupt, other_tos, cwr, gap, longer, padded].into_iter().chain(others) {
        let mut lab = router(PortConfig::default());
        lab.inject(0, Dir::Backward, first.clone());
        lab.inject(0, Dir::Backward, second);
        lab.run_for(Duration::from_micros(10));
        assert_eq!(lab.hosts[0].kernel.stats().mib.get(Mib::GroMerged), 0);
        assert!(lab.received[0].1.seq() == 0 && lab.received.iter().all(|r| r.1.hdr.gso_type == 0));
    }
}

#[test]
fn identifications_of_merged_segments_rise_or_stand_still_as_the_second_one_does() {
    for (ids, merged) in [([7, 8, 9], 2), ([7, 7, 7], 2), ([7, 8, 7], 1), ([7, 7, 9], 1), ([7, 9, 10], 1), ([65535, 0, 1], 2)] {
        let mut lab = router(PortConfig::default());
        for (i, id) in ids.into_iter().enumerate() {
            lab.inject(0, Dir::Backward, THROUGH.tcp(id, 1000 * i as u32, false, &[1; 1000]));
        }
        lab.run_for(Duration::from_micros(10));
        assert_eq!(lab.hosts[0].kernel.stats().mib.get(Mib::GroMerged), merged, "{ids:?}");
    }
}

#[test]
fn full_ring_stops_the_queue_and_completions_wake_it() {
    let mut lab = host_and_wire(HostConfig::default(), PortConfig { tx_ring: 8, tx_queue_len: 100, ..PortConfig::default() });
    let port = lab.hosts[0].ports[0].clone();
    port.stall(true);
    for seq in 0..200 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    let stats = lab.hosts[0].kernel.stats();
    // The ring holds 8 (the reply that resolved the tester is not reaped yet), the qdisc 100.
    let dropped = stats.drops.get(DropReason::QdiscDrop);
    assert!((92..=93).contains(&dropped), "{dropped} dropped");
    assert_eq!(stats.interfaces[1].counters.get(Netdev::QdiscDropped), dropped);
    assert!(stats.interfaces[1].counters.get(Netdev::TxQueueStopped) >= 1);
    assert!(lab.received.is_empty());
    port.stall(false);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.received.len() as u64, 200 - dropped, "everything that was queued goes out");
    let seqs: Vec<u8> = lab.received.iter().map(|r| r.1.bytes[41]).collect();
    assert!(seqs.is_sorted(), "in order");
    assert!(lab.hosts[0].kernel.stats().cpus[0].net_tx_softirqs > 0, "NET_TX goes on where the sender stopped");
}

#[test]
fn bad_virtio_header_is_counted_and_dropped() {
    let mut lab = host_and_wire(HostConfig::default(), PortConfig::default());
    let mut frame = TO_HOST.tcp(1, 1, false, &[0; 100]);
    frame.hdr.gso_type = 1;
    lab.inject(0, Dir::Backward, frame);
    lab.inject(0, Dir::Backward, vec![1, 2, 3].into());
    lab.run_for(Duration::from_millis(1));
    let stats = lab.hosts[0].kernel.stats();
    assert_eq!(stats.drops.get(DropReason::DevHdr), 2);
    let eth0 = &stats.interfaces[1].counters;
    assert_eq!((eth0.get(Netdev::RxFrameErrors), eth0.get(Netdev::RxLengthErrors), eth0.get(Netdev::RxErrors)), (1, 1, 2));
}

#[test]
fn without_a_carrier_nothing_is_sent_and_neighbours_are_forgotten() {
    use ringlab_kernel::{Event, dev::net_device::IfIndex};
    let mut lab = host_and_wire(HostConfig::default(), PortConfig::default());
    let now = lab.now;
    lab.hosts[0].kernel.handle(now, Event::Carrier(IfIndex(2), false));
    assert!(lab.hosts[0].kernel.stats().neighbours.is_empty());
    lab.inject(0, Dir::Backward, TO_HOST.echo(1, 1, b"x"));
    lab.run_for(Duration::from_millis(1));
    assert!(lab.received.is_empty());
    assert!(lab.hosts[0].kernel.stats().drops.get(DropReason::QdiscDrop) > 0);
    let now = lab.now;
    lab.hosts[0].kernel.handle(now, Event::Carrier(IfIndex(2), true));
    lab.run_for(Duration::from_secs(1));
    assert_eq!(lab.received.len(), 1, "the question for the tester, at the next try");
}

#[test]
fn what_waits_to_be_sent_is_dropped_with_the_carrier() {
    use ringlab_kernel::{Event, dev::net_device::IfIndex};
    let mut lab = host_and_wire(HostConfig::default(), PortConfig { tx_ring: 8, ..PortConfig::default() });
    lab.hosts[0].ports[0].stall(true);
    for seq in 0..50 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_millis(1));
    let now = lab.now;
    lab.hosts[0].kernel.handle(now, Event::Carrier(IfIndex(2), false));
    let dropped = lab.hosts[0].kernel.stats().drops.get(DropReason::QueuePurge);
    assert!((42..=43).contains(&dropped), "{dropped} dropped, the others are on the ring");
    lab.hosts[0].ports[0].stall(false);
    lab.hosts[0].kernel.handle(now, Event::Carrier(IfIndex(2), true));
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.received.len() as u64, 50 - dropped);
    lab.inject(0, Dir::Backward, TO_HOST.echo(1, 99, b"x"));
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(0);
    assert_eq!(lab.received.last().map(|r| r.1.bytes[41]), Some(99), "and it goes on");
}

#[test]
fn same_seed_and_frames_give_the_same_trace() {
    let run = |seed: u64| {
        let mut lab =
            Lab::pair_with(seed, HostConfig { cpus: 2, ..HostConfig::default() }, PortConfig { queues: 2, ..PortConfig::default() });
        lab.trace(0);
        lab.trace(1);
        for seq in 0..100 {
            let path = Path { src: Ipv4Addr::new(10, 0, 0, 2), dst: HOST, dst_mac: mac(0, 0) };
            lab.inject(0, Dir::Backward, path.echo(seq % 7, seq, &vec![seq as u8; usize::from(seq) * 10]));
            lab.inject(0, Dir::Backward, path.udp(seq, 99, b"nobody listens"));
            lab.run_for(Duration::from_millis(700));
        }
        let lines: Vec<String> = (0..2).flat_map(|h| lab.take_trace(h)).map(|r| r.to_string()).collect();
        lines.join("\n")
    };
    let first = run(5);
    assert!(first.lines().count() > 5000);
    assert!(first == run(5), "the traces differ");
    assert!(first != run(6), "the seed has no influence");
}

/// Segments of two flows: mostly in order and of full size, with gaps, repetitions, flags and short ones between them.
fn flows() -> impl Strategy<Value = Vec<Frame>> {
    let step = (0usize..2, prop_oneof![8 => Just(0i32), 1 => -3000i32..3000], prop_oneof![6 => Just(1000usize), 1 => 0usize..1400]);
    prop::collection::vec((step, prop::bool::weighted(0.1), 0u8..20), 1..80).prop_map(|steps| {
        let (mut next, mut id) = ([5000u32, u32::MAX - 4000], [0u16, 65_530]);
        let segment = |((flow, jump, len), push, rare): ((usize, i32, usize), bool, u8)| {
            let path = Path { src: Ipv4Addr::new(10, 0, 0, 50 + flow as u8), ..THROUGH };
            let seq = next[flow].wrapping_add_signed(jump);
            let data: Vec<u8> = (0..len).map(|i| (seq.wrapping_add(i as u32) ^ flow as u32) as u8).collect();
            let mut frame = path.tcp(id[flow], seq, push, &data);
            if rare == 0 {
                // CWR; the device vouches for the checksum that is wrong now.
                frame.bytes[47] |= 128;
                frame.hdr.flags = 2;
            }
            next[flow] = seq.wrapping_add(len as u32);
            id[flow] = id[flow].wrapping_add(1);
            frame
        };
        steps.into_iter().map(segment).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever GRO merges, GSO cuts where it was joined: no octet, flag or order of a flow changes.
    #[test]
    fn merging_and_cutting_leave_every_flow_as_it_was(frames in flows(), burst in 1usize..80) {
        let mut lab = router(PortConfig { features: Features::default(), ..PortConfig::default() });
        for part in frames.chunks(burst) {
            for frame in part {
                lab.inject(0, Dir::Backward, frame.clone());
            }
            lab.run_for(Duration::from_micros(1));
        }
        let of = |flow: u8, frames: Vec<&Frame>| -> Vec<(u32, u8, u16, Vec<u8>)> {
            let mine = frames.into_iter().filter(|f| f.saddr().octets()[3] == 50 + flow);
            mine.map(|f| (f.seq(), f.flags(), f.ip_id(), f.payload().to_vec())).collect()
        };
        for flow in 0..2 {
            let sent = of(flow, frames.iter().collect());
            let got = of(flow, lab.received.iter().map(|r| &r.1).collect());
            prop_assert_eq!(sent, got);
        }
    }
}
