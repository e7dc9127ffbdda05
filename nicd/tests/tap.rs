//! TAP devices in a private network namespace. Needs root (or CAP_NET_ADMIN and
//! CAP_SYS_ADMIN): without it the tests fail and say so.

mod common;

use common::{ALL, Dir, Driver, Nicd, Rings, until};
use ringlab_ring::vnet::{F_NEEDS_CSUM, VnetHdr};
use rustix::thread::{UnshareFlags, gettid};
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

const TAP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs `test` on a thread in a network namespace that goes away with the thread.
fn in_netns(test: impl FnOnce(&str) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // Deprecated for what it does to threads that share files: a network namespace is this thread's own.
        #[expect(deprecated, reason = "because of another flag, which takes the thread's descriptor table from it")]
        let entered = rustix::thread::unshare(UnshareFlags::NEWNET);
        assert!(entered.is_ok(), "a network namespace needs CAP_SYS_ADMIN: run the TAP tests as root ({entered:?})");
        let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid().as_raw_nonzero());
        test(&path);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the calling thread's namespace.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn udp_frame(payload: &[u8]) -> (VnetHdr, Vec<u8>) {
    let builder = etherparse::PacketBuilder::ethernet2(HOST_MAC, TAP_MAC).ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64).udp(7000, 7001);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame");
    (VnetHdr::default(), frame)
}

/// Real Linux on a TAP, a driver at the other end: datagrams pass both ways.
fn datagrams_pass(mut host: Driver) -> Driver {
    ip("addr add 10.9.0.1/24 dev tap0");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev tap0");
    let socket = UdpSocket::bind("10.9.0.1:7001").expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    for len in [1, 100, 1472] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        socket.send_to(&payload, "10.9.0.2:7000").expect("sent");
        let frame = loop {
            // Linux says other things, too: router solicitations, reports.
            let (header, frame) = host.receive();
            let parsed = etherparse::SlicedPacket::from_ethernet(&frame).expect("a good frame");
            if let (Some(etherparse::TransportSlice::Udp(udp)), Some(etherparse::NetSlice::Ipv4(ip))) = (&parsed.transport, &parsed.net) {
                if header.flags & F_NEEDS_CSUM == 0 {
                    let sum = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).expect("short");
                    assert_eq!(sum, udp.checksum());
                }
                break udp.payload().to_vec();
            }
        };
        assert_eq!(frame, payload);
        let (header, frame) = udp_frame(&payload);
        host.send_with(&header, &frame);
        let mut buffer = [0; 2000];
        let n = socket.recv(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..n], payload);
    }
    host
}

#[test]
fn a_linux_node_talks_over_tap_and_cable() {
    in_netns(|netns| {
        let dir = Dir::new();
        let port = format!("eth0,tap=tap0,netns={netns},mac=02:00:00:00:00:09,mtu=1400");
        let mut linux = Nicd::start(&dir, "linux", &["--port", &port, "--wire", "eth0=cable:c,listen"]);
        let link = ip("link show tap0");
        assert!(link.contains("02:00:00:00:00:09") && link.contains("mtu 1400"), "{link}");
        assert!(link.contains("NO-CARRIER"), "the cable has no other end yet: {link}");
        let mut node = Nicd::start(&dir, "node", &["--port", "eth0,vhost=s,mac=02:00:00:00:00:01", "--wire", "eth0=cable:c"]);
        until("link is up", || linux.link_up("eth0") && node.link_up("eth0"));
        until("carrier is shown", || ip("link show tap0").contains("LOWER_UP"));
        ip("link set tap0 mtu 1500");
        let host = Driver::connect(&dir.path("s"), ALL, Rings::default());
        drop(datagrams_pass(host));
        assert!(node.counters("eth0")["rx_packets"] >= 3);
        assert!(linux.terminate().success());
        assert!(!ip("link show").contains("tap0"), "the device goes with its owner");
    });
}

#[test]
fn a_host_talks_over_a_tap_wire() {
    in_netns(|netns| {
        let dir = Dir::new();
        let wire = format!("eth0=tap:tap0,netns={netns},queues=2");
        let mut nicd = Nicd::start(&dir, "node", &["--port", "eth0,vhost=s,mac=02:00:00:00:00:01", "--wire", &wire]);
        ip("link set tap0 address 02:00:00:00:00:09");
        let host = Driver::connect(&dir.path("s"), ALL, Rings::default());
        until("link is up", || nicd.link_up("eth0"));
        drop(datagrams_pass(host));
    });
}

#[test]
fn a_plain_tap_gets_complete_frames() {
    in_netns(|netns| {
        let dir = Dir::new();
        let wire = format!("eth0=tap:tap0,netns={netns},plain");
        let mut nicd = Nicd::start(&dir, "node", &["--port", "eth0,vhost=s,mac=02:00:00:00:00:01", "--wire", &wire]);
        ip("link set tap0 address 02:00:00:00:00:09");
        let host = Driver::connect(&dir.path("s"), ALL, Rings::default());
        until("link is up", || nicd.link_up("eth0"));
        let mut host = datagrams_pass(host);
        // Whole segments are cut and their checksums completed: Linux answers each with a reset.
        let (header, frame) = common::tcp_frame(TAP_MAC, HOST_MAC, (1, 2), &[3; 4000], 1448);
        let before = nicd.counters("eth0")["dma_copies"];
        host.send_with(&header, &frame);
        until("three segments", || nicd.counters("eth0")["dma_copies"] >= before + 3);
    });
}

#[test]
fn capabilities_are_gone_once_configured() {
    in_netns(|netns| {
        let dir = Dir::new();
        let wire = format!("eth0=tap:tap0,netns={netns}");
        let nicd = Nicd::start(&dir, "node", &["--port", "eth0", "--wire", &wire]);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", nicd.child.id())).expect("it runs");
        for task in tasks {
            let status = std::fs::read_to_string(task.expect("it runs").path().join("status")).expect("it runs");
            for line in status.lines().filter(|l| l.starts_with("CapEff") || l.starts_with("CapPrm") || l.starts_with("CapBnd")) {
                assert!(line.ends_with("\t0000000000000000"), "{line}");
            }
        }
    });
}

#[test]
fn a_namespace_that_is_missing_is_named() {
    let dir = Dir::new();
    let output = Command::new(env!("CARGO_BIN_EXE_nicd"))
        .args(["--port", "eth0", "--wire", "eth0=tap:tap0,netns=/nonexistent/netns"])
        .current_dir(dir.path("."))
        .output()
        .expect("nicd starts");
    assert!(!output.status.success());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("tap tap0: open network namespace"), "{log}");
}
