//! Peers and drivers that break the rules: the port says which, and nothing else suffers.

mod common;

use common::{ALL, Dir, Driver, MAC_A, MAC_B, Nicd, Pair, Rings, plain_frame, until};
use ringlab_ring::cable::{Fragment, Producer, STORAGE, UNITS};
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::memory::Region;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, sendmsg,
    socket_with,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A cable peer that does as it likes.
struct Peer {
    socket: OwnedFd,
    arena: Region,
    bell: Doorbell,
}

impl Peer {
    fn connect(dir: &Dir) -> Self {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("socket");
        connect(&socket, &SocketAddrUnix::new(dir.path("c.sock")).expect("short")).expect("nicd listens");
        let arena = Region::memfd("hostile", STORAGE as usize + 65536).expect("memory");
        Self { socket, arena, bell: Doorbell::new().expect("eventfd") }
    }

    fn send(&self, kind: u32, id: u32, value: u64, fds: &[BorrowedFd<'_>]) {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..16].copy_from_slice(&value.to_le_bytes());
        self.send_bytes(&bytes, fds);
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("sent");
    }

    fn hello(&self, len: u64) {
        self.send(1, 0x3143_4c52, len, &[self.arena.fd().expect("a file"), self.bell.as_fd()]);
    }

    fn good_hello(&self) {
        self.hello(self.arena.len() as u64);
    }

    /// Waits until nicd has hung up.
    fn wait_closed(&self) {
        let mut buffer = [0; 64];
        while recv(&self.socket, &mut buffer, rustix::net::RecvFlags::empty()).is_ok_and(|(n, _)| n > 0) {}
    }
}

/// A nicd whose cable listens, and the number of faults that it has counted.
fn victim(dir: &Dir) -> Nicd {
    Nicd::start(dir, "v", &["--port", "eth0,vhost=v.sock", "--wire", "eth0=cable:c.sock,listen", "--port", "eth1,vhost=w.sock"])
}

fn faults(nicd: &mut Nicd) -> u64 {
    nicd.counters("eth0")["rx_ring_errors"]
}

#[test]
fn greetings_that_break_the_protocol_are_refused_and_the_cable_waits_on() {
    let dir = Dir::new();
    let mut nicd = victim(&dir);
    let attacks: [&dyn Fn(&Peer); 8] = [
        &|p| p.send_bytes(b"hello?", &[]),
        &|p| p.send(1, 0xbad, 0, &[]),
        &|p| p.send(5, 0, 1, &[]),
        &|p| p.hello(p.arena.len() as u64 + 4096),
        &|p| p.hello(u64::MAX),
        &|p| p.send(1, 0x3143_4c52, p.arena.len() as u64, &[p.bell.as_fd(), p.bell.as_fd()]),
        &|p| p.send(1, 0x3143_4c52, p.arena.len() as u64, &[p.arena.fd().expect("a file")]),
        &|p| {
            // A file that can shrink under the mapping.
            let file = std::fs::File::create(dir.path("shrinks")).expect("made");
            file.set_len(STORAGE + 65536).expect("grown");
            p.send(1, 0x3143_4c52, STORAGE + 65536, &[file.as_fd(), p.bell.as_fd()]);
        },
    ];
    for (i, attack) in attacks.iter().enumerate() {
        let peer = Peer::connect(&dir);
        attack(&peer);
        peer.wait_closed();
        until("counted", || faults(&mut nicd) == i as u64 + 1);
        assert!(!nicd.link_up("eth0"));
    }
    let peer = Peer::connect(&dir);
    peer.good_hello();
    until("a good one is welcome", || nicd.link_up("eth0"));
}

#[test]
fn entries_that_break_a_rule_end_the_session() {
    let dir = Dir::new();
    let mut nicd = victim(&dir);
    let fragment = |region, offset, len| Fragment { region, offset, len };
    let attacks: [&[Fragment]; 6] = [
        &[fragment(7, 0, 64)],
        &[fragment(0, STORAGE + 65536, 1)],
        &[fragment(0, u64::MAX, 2)],
        &[fragment(0, 0, u32::MAX)],
        &[fragment(0, 0, 0)],
        &[fragment(0, 0, 65536), fragment(0, 0, 65536)],
    ];
    for (i, attack) in attacks.iter().enumerate() {
        let peer = Peer::connect(&dir);
        peer.good_hello();
        until("up", || nicd.link_up("eth0"));
        let mut producer = Producer::new(peer.arena.clone()).expect("large enough");
        producer.push(&[0; 12], attack);
        let _ = producer.publish();
        // Its bell came with the greeting; a message wakes it as well.
        peer.send(5, 0, 1, &[]);
        peer.wait_closed();
        until("counted", || faults(&mut nicd) == i as u64 + 1);
    }
    // An index that jumps.
    let peer = Peer::connect(&dir);
    peer.good_hello();
    until("up", || nicd.link_up("eth0"));
    peer.arena.slice(0, 4).expect("tail").write(&(UNITS * 3).to_le_bytes());
    peer.send(5, 0, 1, &[]);
    peer.wait_closed();
    until("counted", || faults(&mut nicd) == attacks.len() as u64 + 1);
}

#[test]
fn a_frame_arrives_at_its_time_and_one_that_names_no_honest_time_at_once() {
    let dir = Dir::new();
    let mut nicd = victim(&dir);
    let mut driver = Driver::connect(&dir.path("v.sock"), ALL, Rings::default());
    let peer = Peer::connect(&dir);
    peer.good_hello();
    until("up", || nicd.link_up("eth0"));
    let mut producer = Producer::new(peer.arena.clone()).expect("large enough");
    let frame = plain_frame(MAC_A, MAC_B, 64, 1);
    peer.arena.slice(STORAGE, frame.len()).expect("inside").write(&frame);
    let now = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos = |t: rustix::time::Timespec| t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64;
    for ahead in [900_000, 500_000, 1, 1 << 40, u64::MAX / 2] {
        let due = nanos(now()) + ahead;
        producer.push_timed(&[0; 12], Some(due), &[Fragment { region: 0, offset: STORAGE, len: frame.len() as u32 }]);
        let _ = producer.publish();
        // Its bell came with the greeting; a message wakes it as well.
        peer.send(5, 0, 1, &[]);
        assert_eq!(driver.receive().1, frame);
        if ahead < 1_000_000 {
            assert!(nanos(now()) >= due, "{ahead} ns ahead: early");
        }
    }
    assert_eq!(faults(&mut nicd), 0);
}

#[test]
fn messages_out_of_place_end_the_session() {
    let dir = Dir::new();
    let mut nicd = victim(&dir);
    let attacks: [&dyn Fn(&Peer); 5] =
        [&|p| p.good_hello(), &|p| p.send(2, 1, 4096, &[]), &|p| p.send(3, 99, 1, &[]), &|p| p.send(9, 0, 0, &[]), &|p| {
            p.send(2, 1, 4096, &[p.arena.fd().expect("a file")]);
            p.send(2, 1, 4096, &[p.arena.fd().expect("a file")]);
        }];
    for (i, attack) in attacks.iter().enumerate() {
        let peer = Peer::connect(&dir);
        peer.good_hello();
        until("up", || nicd.link_up("eth0"));
        attack(&peer);
        peer.wait_closed();
        until("counted", || faults(&mut nicd) == i as u64 + 1);
    }
}

#[test]
fn a_driver_that_breaks_a_rule_stops_its_port_only() {
    let mut pair = Pair::new();
    let driver = &mut pair.host_a;
    let outside = driver.region.len() as u64;
    let buf = driver.pool.alloc(512).expect("room");
    driver.tx[0].add(&[(outside, 64)], &[], vec![buf]).expect("room");
    driver.kick(0);
    until("counted", || pair.a.counters("eth0")["tx_ring_errors"] == 1);
    until("told", || pair.host_a.bells[1].err.drain());
    let frame = plain_frame(MAC_B, MAC_A, 64, 1);
    assert!(pair.host_a.try_send(0, &Default::default(), &frame));
    pair.host_a.kick(0);
    // The other end does not notice, and can still be configured and asked.
    assert!(pair.b.link_up("eth0"));
    assert_eq!(pair.a.counters("eth0")["tx_packets"], pair.b.counters("eth0")["rx_packets"]);
    // A reset, here by a new connection, brings the port back.
    pair.host_a = Driver::connect(&pair.dir.path("a.sock"), ALL, Rings::default());
    pair.warm_up();
    assert_eq!(pair.a.counters("eth0")["device_resets"], 1);
}

#[test]
fn a_front_end_that_talks_nonsense_is_dropped() {
    let dir = Dir::new();
    let mut nicd = victim(&dir);
    for bytes in [&[0xff; 64][..], &[0; 12], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f]] {
        use std::io::{Read, Write};
        let mut socket = std::os::unix::net::UnixStream::connect(dir.path("v.sock")).expect("nicd listens");
        socket.write_all(bytes).expect("sent");
        let mut rest = Vec::new();
        // Closed or reset: either is a refusal.
        let _ = socket.read_to_end(&mut rest);
    }
    let driver = Driver::connect(&dir.path("v.sock"), ALL, Rings::default());
    assert_eq!(driver.front.config().queue_pairs, 1);
    assert_eq!(nicd.stats().ports.len(), 2);
}

#[test]
fn a_hostile_configuration_is_an_error_status() {
    use ringlab_proto::nic as proto;
    let dir = Dir::new();
    let mut nicd = Nicd::start(&dir, "g", &[]);
    let port = |name: &str| proto::PortConfig {
        name: name.into(),
        mac: vec![2, 0, 0, 0, 0, 1],
        device: Some(proto::port_config::Device::Vhost(proto::VhostDevice { socket: "/nonexistent/dir/s".into(), ..Default::default() })),
        ..Default::default()
    };
    let configure = |nicd: &mut Nicd, ports| {
        let config = proto::NicConfig { ports, ..Default::default() };
        nicd.call(async |mut client| client.configure(config).await)
    };
    let bad = configure(&mut nicd, vec![proto::PortConfig::default()]).expect_err("refused");
    assert_eq!(bad.code(), tonic::Code::InvalidArgument);
    let bad = configure(&mut nicd, vec![port("eth0")]).expect_err("refused");
    assert!(bad.message().contains("/nonexistent/dir/s"), "{bad}");
    let mut good = port("eth0");
    good.device = Some(proto::port_config::Device::Vhost(proto::VhostDevice { socket: "s".into(), ..Default::default() }));
    configure(&mut nicd, vec![good]).expect("welcome");
    assert_eq!(nicd.stats().ports.len(), 1);
    configure(&mut nicd, vec![]).expect("welcome");
    assert_eq!(nicd.stats().ports.len(), 0);
    assert!(!dir.path("s").exists(), "a port that goes takes its socket along");
}
