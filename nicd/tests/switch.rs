//! A switch of three ports, with a node on each.

mod common;

use common::{ALL, Dir, Driver, Nicd, Rings, fly_two, plain_frame, tcp_frame, until};
use std::time::Duration;

struct Lan {
    switch: Nicd,
    nodes: Vec<Nicd>,
    hosts: Vec<Driver>,
    _dir: Dir,
}

fn mac(i: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, i as u8 + 1]
}

fn lan() -> Lan {
    lan_with("")
}

/// `wire`: impairment of what leaves the switch at its second port.
fn lan_with(wire: &str) -> Lan {
    let dir = Dir::new();
    let mut switch = Nicd::start(
        &dir,
        "sw",
        &[
            "--bridge",
            "--port",
            "p0",
            "--wire",
            "p0=cable:0.cable,listen",
            "--port",
            "p1",
            "--wire",
            &format!("p1=cable:1.cable,listen{wire}"),
            "--port",
            "p2",
            "--wire",
            "p2=cable:2.cable,listen",
        ],
    );
    let nodes: Vec<_> = (0..3)
        .map(|i| {
            let port = format!("eth0,vhost={i}.sock,mac=02:00:00:00:00:0{}", i + 1);
            Nicd::start(&dir, &format!("n{i}"), &["--port", &port, "--wire", &format!("eth0=cable:{i}.cable")])
        })
        .collect();
    until("all links are up", || switch.stats().ports.iter().all(|p| p.link_up));
    let hosts = (0..3).map(|i| Driver::connect(&dir.path(&format!("{i}.sock")), ALL, Rings::default())).collect();
    Lan { switch, nodes, hosts, _dir: dir }
}

#[test]
fn the_unknown_is_flooded_the_known_forwarded_and_nothing_returns() {
    let mut lan = lan();
    let first = plain_frame(mac(1), mac(0), 100, 1);
    lan.hosts[0].send(&first);
    assert_eq!(lan.hosts[1].receive().1, first);
    assert_eq!(lan.hosts[2].receive().1, first, "nobody knows yet where it is");
    let second = plain_frame(mac(0), mac(1), 100, 2);
    lan.hosts[1].send(&second);
    assert_eq!(lan.hosts[0].receive().1, second);
    let third = plain_frame(mac(1), mac(0), 1514, 3);
    lan.hosts[0].send(&third);
    assert_eq!(lan.hosts[1].receive().1, third);
    let broadcast = plain_frame([0xff; 6], mac(2), 60, 4);
    lan.hosts[2].send(&broadcast);
    assert_eq!(lan.hosts[0].receive().1, broadcast);
    assert_eq!(lan.hosts[1].receive().1, broadcast);
    for host in &mut lan.hosts {
        assert_eq!(host.receive_within(Duration::from_millis(20)), None);
    }
    let counters = lan.switch.counters("p0");
    assert_eq!((counters["switch_flooded"], counters["switch_forwarded"]), (1, 1));
    assert_eq!((counters["rx_packets"], counters["tx_packets"]), (2, 2));
    assert_eq!((counters["rx_bytes"], counters["tx_bytes"]), (1614, 160));
    let fdb: Vec<_> = lan.switch.stats().fdb.into_iter().map(|e| (e.mac, e.port)).collect();
    let want: Vec<_> = (0..3).map(|i| (mac(i).to_vec(), format!("p{i}"))).collect();
    assert_eq!(fdb, want);
}

#[test]
fn whole_segments_pass_and_a_port_that_goes_down_is_forgotten() {
    let mut lan = lan();
    lan.hosts[1].send(&plain_frame(mac(0), mac(1), 60, 1));
    lan.hosts[0].receive();
    let payload: Vec<u8> = (0..60_000u32).map(|i| (i * 3) as u8).collect();
    let (header, frame) = tcp_frame(mac(1), mac(0), (1, 2), &payload, 1448);
    for _ in 0..100 {
        lan.hosts[0].send_with(&header, &frame);
        let (got, octets) = lan.hosts[1].receive();
        assert_eq!(got.gso_size, 1448);
        assert!(octets == frame);
    }
    assert_eq!(lan.switch.counters("p1")["switch_dropped"], 0);
    let down = ringlab_proto::nic::SetLinkRequest { port: "p1".into(), up: Some(false), impairment: None };
    lan.switch.call(async |mut client| client.set_link(down).await).expect("changed");
    until("forgotten", || lan.switch.stats().fdb.iter().all(|e| e.port != "p1"));
}

#[test]
fn port_without_a_carrier_is_not_flooded_to() {
    let mut lan = lan();
    lan.nodes.remove(1).kill();
    until("the carrier is lost", || !lan.switch.stats().ports[1].link_up);
    let broadcast = plain_frame([0xff; 6], mac(0), 60, 1);
    lan.hosts[0].send(&broadcast);
    assert_eq!(lan.hosts[2].receive().1, broadcast);
    let lost = lan.switch.counters("p1");
    assert_eq!((lost["tx_packets"], lost["tx_carrier_errors"], lost["link_down_events_phy"]), (0, 0, 1));
    assert_eq!(lan.switch.counters("p2")["tx_packets"], 1);
}

#[test]
fn behind_a_switch_delay_counts_from_when_the_doorbell_was_rung_too() {
    const DELAY: Duration = Duration::from_millis(150);
    const AGE: Duration = Duration::from_millis(80);
    let mut lan = lan_with(",delay-us=150000");
    let frame = plain_frame(mac(1), mac(0), 64, 1);
    lan.hosts[1].send(&plain_frame(mac(0), mac(1), 64, 2));
    lan.hosts[0].receive();
    let [from, to, _] = &mut lan.hosts[..] else { panic!("three hosts") };
    let early = (0..5).any(|_| {
        std::thread::sleep(AGE + Duration::from_millis(10));
        let [first, second] = fly_two(from, to, &frame, AGE);
        assert!(second >= DELAY, "{second:?}");
        first + Duration::from_millis(40) < DELAY
    });
    assert!(early, "the delay counts from when the switch has found the frame");
}
