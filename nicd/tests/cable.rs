//! Two `nicd` processes on a cable, driven by two front ends.

mod common;

use common::{ALL, Driver, MAC_A, MAC_B, Pair, Rings, fly_two, plain_frame, start_b, tcp_frame, until};
use ringlab_ring::packed::Features;
use ringlab_ring::vnet::{F_NEEDS_CSUM, GSO_TCPV4, VnetHdr};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn frames_cross_whole_with_one_copy_each() {
    let mut pair = Pair::new();
    let before = (pair.a.counters("eth0"), pair.b.counters("eth0"));
    let lens = [14, 60, 64, 590, 1514];
    for round in 0..200u64 {
        let frame = plain_frame(MAC_B, MAC_A, lens[round as usize % lens.len()], round);
        pair.host_a.send(&frame);
        assert_eq!(pair.host_b.receive().1, frame);
    }
    let payload: Vec<u8> = (0..65_000u32).map(|i| i as u8).collect();
    let (header, frame) = tcp_frame(MAC_B, MAC_A, (1, 2), &payload, 1448);
    for _ in 0..20 {
        pair.host_a.send_with(&header, &frame);
        let (got, octets) = pair.host_b.receive();
        assert_eq!((got.flags, got.gso_type, got.gso_size), (F_NEEDS_CSUM, GSO_TCPV4, 1448));
        assert_eq!(got.num_buffers, 16);
        assert!(octets == frame, "64 KiB cross unchanged");
    }
    let after = (pair.a.counters("eth0"), pair.b.counters("eth0"));
    let grown = |name: &str| (after.0[name] - before.0[name], after.1[name] - before.1[name]);
    assert_eq!(grown("dma_copies"), (0, 220), "one copy a frame, made by the receiver");
    assert_eq!(grown("tx_packets").0, 220);
    assert_eq!(grown("rx_packets").1, 220);
    assert_eq!(grown("tx_gso_packets").0, 20);
    assert_eq!(grown("rx_missed_errors"), (0, 0));
    assert_eq!(grown("wire_tx_bytes").0, grown("wire_rx_bytes").1);
    until("all chains come back", || {
        pair.host_a.reap();
        pair.host_a.tx[0].free() == 512
    });
}

#[test]
fn frames_for_a_stopped_peer_wait_in_the_ring_and_none_is_lost() {
    const FRAMES: u64 = 6000;
    let rings = Rings { rx: 8192, tx: 8192, buffer: 512, ..Rings::default() };
    let mut pair = Pair::with("", rings, (ALL, ALL));
    pair.b.signal(Signal::STOP);
    for i in 0..FRAMES {
        assert!(pair.host_a.try_send(0, &VnetHdr::default(), &plain_frame(MAC_B, MAC_A, 64, i)));
    }
    pair.host_a.kick(0);
    let mut taken = 0;
    until("the cable is full", || {
        let before = std::mem::replace(&mut taken, pair.a.counters("eth0")["tx_packets"]);
        taken == before && taken >= 4000
    });
    assert!(taken < FRAMES, "{taken} frames taken for a peer that stands still");
    pair.host_a.reap();
    assert_eq!(u64::from(8192 - pair.host_a.tx[0].free()), FRAMES, "none of them is done");
    pair.b.signal(Signal::CONT);
    for i in 0..FRAMES {
        assert_eq!(pair.host_b.receive().1, plain_frame(MAC_B, MAC_A, 64, i), "frame {i}");
    }
    until("all chains come back", || {
        pair.host_a.reap();
        pair.host_a.tx[0].free() == 8192
    });
    assert_eq!(pair.b.counters("eth0")["rx_missed_errors"], 0);
}

#[test]
fn frames_without_buffers_are_missed_and_counted() {
    let mut pair = Pair::new();
    let frame = plain_frame(MAC_B, MAC_A, 64, 1);
    // 512 buffers: nobody refills them.
    for _ in 0..600 {
        pair.host_a.send(&frame);
    }
    until("88 are missed", || pair.b.counters("eth0")["rx_missed_errors"] == 88);
    for _ in 0..512 {
        assert_eq!(pair.host_b.receive().1, frame);
    }
    pair.host_a.send(&frame);
    assert_eq!(pair.host_b.receive().1, frame, "buffers are there again");
}

#[test]
fn a_killed_peer_comes_back_and_the_link_with_it() {
    let Pair { dir, mut a, b, mut host_a, host_b } = Pair::new();
    b.signal(Signal::STOP);
    for i in 0..100 {
        host_a.send(&plain_frame(MAC_B, MAC_A, 64, i));
    }
    b.kill();
    drop(host_b);
    until("the link is down", || !a.link_up("eth0"));
    until("frames on the cut wire are done with", || {
        host_a.reap();
        host_a.tx[0].free() == 512
    });
    assert!(!host_a.front.refresh_config().expect("device answers").link_up);
    // Of the hundred, those count that the NIC had not taken yet when the peer died.
    let before = a.counters("eth0")["tx_carrier_errors"];
    host_a.send(&plain_frame(MAC_B, MAC_A, 64, 7));
    until("no carrier", || a.counters("eth0")["tx_carrier_errors"] == before + 1);

    let mut b = start_b(&dir, 1);
    until("the link is up", || a.link_up("eth0") && b.link_up("eth0"));
    assert!(host_a.front.refresh_config().expect("device answers").link_up);
    let host_b = Driver::connect(&dir.path("b.sock"), ALL, Rings::default());
    let mut pair = Pair { dir, a, b, host_a, host_b };
    pair.warm_up();
    pair.host_b.send(&plain_frame(MAC_A, MAC_B, 64, 9));
    assert_eq!(pair.host_a.receive().1, plain_frame(MAC_A, MAC_B, 64, 9));
}

#[test]
fn a_driver_that_comes_back_finds_its_port() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        pair.host_a = Driver::connect(&pair.dir.path("a.sock"), ALL, Rings::default());
        pair.warm_up();
        pair.host_b = Driver::connect(&pair.dir.path("b.sock"), ALL, Rings::default());
        pair.warm_up();
    }
    assert!(pair.a.counters("eth0")["device_resets"] >= 3);
}

#[test]
fn what_a_driver_cannot_take_is_done_for_it() {
    let poor = ALL - Features::GUEST_TSO4 - Features::GUEST_CSUM - Features::MRG_RXBUF - Features::EVENT_IDX;
    let mut pair = Pair::with("", Rings::default(), (ALL, poor));
    let payload: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
    let (header, frame) = tcp_frame(MAC_B, MAC_A, (1, 2), &payload, 1448);
    pair.host_a.send_with(&header, &frame);
    let mut collected = Vec::new();
    for _ in 0..4 {
        let (got, octets) = pair.host_b.receive();
        assert_eq!((got.flags, got.gso_type, got.num_buffers), (0, 0, 1));
        let parsed = etherparse::SlicedPacket::from_ethernet(&octets).expect("a good frame");
        let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) = (&parsed.net, &parsed.transport) else {
            panic!("TCP over IPv4");
        };
        assert_eq!(tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).expect("short"), tcp.checksum());
        collected.extend_from_slice(tcp.payload());
    }
    assert_eq!(collected, payload);
}

#[test]
fn flows_spread_over_the_queues_and_each_stays_on_its_own() {
    let mut pair = Pair::with("", Rings { pairs: 4, ..Rings::default() }, (ALL, ALL));
    for port in 0..64u16 {
        let (header, frame) = tcp_frame(MAC_B, MAC_A, (port, 80), b"x", 0);
        for _ in 0..2 {
            pair.host_a.send_with(&header, &frame);
        }
    }
    let mut counts = [0; 4];
    let mut flows = std::collections::BTreeMap::<[u8; 2], usize>::new();
    until("all arrive", || {
        for (queue, count) in counts.iter_mut().enumerate() {
            while let Some((_, frame)) = pair.host_b.try_receive(queue) {
                *count += 1;
                let flow = [frame[34], frame[35]];
                assert_eq!(*flows.entry(flow).or_insert(queue), queue, "a flow stays on its queue");
            }
        }
        counts.iter().sum::<usize>() == 128
    });
    assert!(counts.iter().all(|&n| n > 0), "{counts:?}");
}

#[test]
fn a_bad_offload_request_is_dropped_and_counted() {
    let mut pair = Pair::new();
    let (header, frame) = tcp_frame(MAC_B, MAC_A, (1, 2), &[0; 3000], 1448);
    pair.host_a.send_with(&VnetHdr { gso_size: 1, ..header }, &frame);
    pair.host_a.send_with(&VnetHdr { csum_start: 60_000, ..header }, &frame);
    pair.host_a.send(&[0; 5]);
    until("counted", || {
        let counters = pair.a.counters("eth0");
        counters["tx_bad_gso"] == 2 && counters["tx_ring_errors"] == 1
    });
    pair.warm_up();
}

#[test]
fn delay_is_kept_to_the_millisecond_and_can_change_in_place() {
    let mut pair = Pair::with(",delay-us=20000", Rings::default(), (ALL, ALL));
    let frame = plain_frame(MAC_B, MAC_A, 64, 1);
    let fly = |pair: &mut Pair| {
        let start = Instant::now();
        pair.host_a.send(&frame);
        assert_eq!(pair.host_b.receive().1, frame);
        start.elapsed()
    };
    let best = (0..5).map(|_| fly(&mut pair)).min().expect("five");
    assert!((Duration::from_millis(20)..Duration::from_millis(24)).contains(&best), "{best:?}");
    assert_eq!(pair.a.counters("eth0")["wire_delayed"], 5);
    let request = ringlab_proto::nic::SetLinkRequest { port: "eth0".into(), up: None, impairment: Some(Default::default()) };
    pair.a.call(async |mut client| client.set_link(request).await).expect("changed");
    let best = (0..5).map(|_| fly(&mut pair)).min().expect("five");
    assert!(best < Duration::from_millis(10), "{best:?}");
}

#[test]
fn delay_counts_from_when_the_doorbell_was_rung() {
    const DELAY: Duration = Duration::from_millis(150);
    const AGE: Duration = Duration::from_millis(80);
    let mut pair = Pair::with(",delay-us=150000", Rings::default(), (ALL, ALL));
    let frame = plain_frame(MAC_B, MAC_A, 64, 1);
    // The NIC has just been awake: no frame has waited for so long.
    fly_two(&mut pair.host_a, &mut pair.host_b, &frame, Duration::ZERO);
    let [first, second] = fly_two(&mut pair.host_a, &mut pair.host_b, &frame, AGE);
    assert!(first >= DELAY && second >= DELAY, "{first:?} {second:?}");
    let early = (0..5).any(|_| {
        std::thread::sleep(AGE + Duration::from_millis(10));
        let [first, second] = fly_two(&mut pair.host_a, &mut pair.host_b, &frame, AGE);
        // Of those that come behind it nothing is known.
        assert!(second >= DELAY, "{second:?}");
        first + Duration::from_millis(40) < DELAY
    });
    assert!(early, "the delay counts from when the NIC has woken");
}

#[test]
fn loss_is_counted_and_the_same_for_the_same_seed() {
    let arrivals = || {
        let mut pair = Pair::with(",loss=0.5", Rings::default(), (ALL, ALL));
        for i in 0..200 {
            pair.host_a.send(&plain_frame(MAC_B, MAC_A, 64, i));
        }
        let mut lost = 0;
        until("all are sent", || {
            let counters = pair.a.counters("eth0");
            lost = counters["wire_lost"];
            counters["tx_packets"] == 200
        });
        let got: Vec<_> = (0..200 - lost).map(|_| pair.host_b.receive().1).collect();
        assert!((60..140).contains(&lost), "{lost} of 200");
        got
    };
    assert!(arrivals() == arrivals());
}

#[test]
fn a_rate_limit_cuts_and_paces() {
    // 100 Mbit/s: 42 segments of 1500 octets and the overheads take 5.2 ms.
    let mut pair = Pair::with(",rate-bps=100000000", Rings::default(), (ALL, ALL));
    let (header, frame) = tcp_frame(MAC_B, MAC_A, (1, 2), &vec![7; 60_000], 1446);
    let start = Instant::now();
    pair.host_a.send_with(&header, &frame);
    for _ in 0..42 {
        let (got, octets) = pair.host_b.receive();
        assert_eq!((got.gso_type, octets.len() <= 1514), (0, true));
    }
    let took = start.elapsed();
    assert!((Duration::from_micros(5000)..Duration::from_millis(60)).contains(&took), "{took:?}");
    assert_eq!(pair.a.counters("eth0")["tx_tso_segments"], 42);
}

#[test]
fn a_link_set_down_is_down_at_both_ends() {
    let mut pair = Pair::new();
    let request = |up| ringlab_proto::nic::SetLinkRequest { port: "eth0".into(), up: Some(up), impairment: None };
    pair.a.call(async |mut client| client.set_link(request(false)).await).expect("changed");
    until("both see it", || !pair.a.link_up("eth0") && !pair.b.link_up("eth0"));
    assert!(!pair.host_b.front.refresh_config().expect("device answers").link_up);
    pair.host_b.send(&plain_frame(MAC_A, MAC_B, 64, 1));
    until("no carrier", || pair.b.counters("eth0")["tx_carrier_errors"] == 1);
    pair.a.call(async |mut client| client.set_link(request(true)).await).expect("changed");
    until("both see it", || pair.a.link_up("eth0") && pair.b.link_up("eth0"));
    pair.warm_up();
    let unknown = ringlab_proto::nic::SetLinkRequest { port: "eth9".into(), ..Default::default() };
    let status = pair.a.call(async |mut client| client.set_link(unknown).await).expect_err("refused");
    assert_eq!(status.code(), tonic::Code::NotFound);
}

#[test]
fn termination_is_clean() {
    let Pair { dir, a, b, host_a, host_b } = Pair::new();
    assert!(a.terminate().success());
    assert!(b.terminate().success());
    drop((host_a, host_b));
    for name in ["a.sock", "b.sock", "ab.sock", "a.grpc", "b.grpc"] {
        assert!(!dir.path(name).exists(), "{name} is left");
    }
}
