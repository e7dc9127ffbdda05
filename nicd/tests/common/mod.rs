//! What the integration tests share: real `nicd` processes, and a driver that is a
//! front end with rings and no kernel.
#![allow(dead_code, reason = "each test file uses a part")]

use ringlab_proto::nic as proto;
use ringlab_proto::nic::nic_client::NicClient;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{DriverQueue, Features, Layout};
use ringlab_ring::pool::{Buf, Pool};
use ringlab_ring::vhost_user::{FrontEnd, VringBells};
use ringlab_ring::vnet::{VNET_HDR_LEN, VnetHdr};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of the test's own, removed when dropped.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nicd-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory of our own");
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A `nicd` process, killed when dropped.
pub struct Nicd {
    pub child: Child,
    grpc: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Nicd {
    /// Starts it with ports by hand, and waits until it serves.
    pub fn start(dir: &Dir, node: &str, args: &[&str]) -> Self {
        let grpc = dir.path(&format!("{node}.grpc"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nicd"));
        command.args(["--node", node, "--run-dir"]).arg(&dir.0).arg("--grpc").arg(&grpc).args(args);
        let child = command.stdin(Stdio::null()).spawn().expect("nicd starts");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let mut nicd = Self { child, grpc, runtime };
        until("nicd serves", || nicd.try_stats().is_some());
        nicd
    }

    pub fn client(&mut self) -> Option<NicClient<tonic::transport::Channel>> {
        let path = self.grpc.clone();
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://nicd");
        self.runtime.block_on(endpoint.connect_with_connector(connector)).ok().map(NicClient::new)
    }

    pub fn call<T>(&mut self, call: impl AsyncFnOnce(NicClient<tonic::transport::Channel>) -> T) -> T {
        let client = self.client().expect("nicd serves");
        self.runtime.block_on(call(client))
    }

    fn try_stats(&mut self) -> Option<proto::NicStats> {
        let mut client = self.client()?;
        self.runtime.block_on(client.stats(proto::StatsRequest {})).ok().map(tonic::Response::into_inner)
    }

    pub fn stats(&mut self) -> proto::NicStats {
        self.try_stats().expect("nicd serves")
    }

    /// Counters of a port.
    pub fn counters(&mut self, port: &str) -> BTreeMap<String, u64> {
        let stats = self.stats();
        let port = stats.ports.into_iter().find(|p| p.name == port).expect("port exists");
        port.counters.into_iter().map(|c| (c.name, c.value)).collect()
    }

    pub fn link_up(&mut self, port: &str) -> bool {
        self.stats().ports.iter().any(|p| p.name == port && p.link_up)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child");
    }

    pub fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().expect("our child")
    }
}

impl Drop for Nicd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until `done`, with a yield between: what waits for another process has no event to wait for.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Everything a driver of Ringlab negotiates.
pub const ALL: Features = Features::from_bits_truncate(
    Features::CSUM.bits()
        | Features::GUEST_CSUM.bits()
        | Features::MTU.bits()
        | Features::MAC.bits()
        | Features::GUEST_TSO4.bits()
        | Features::HOST_TSO4.bits()
        | Features::MRG_RXBUF.bits()
        | Features::STATUS.bits()
        | Features::MQ.bits()
        | Features::INDIRECT_DESC.bits()
        | Features::EVENT_IDX.bits(),
);

/// Sizes of a driver's rings.
#[derive(Clone, Copy)]
pub struct Rings {
    pub pairs: u16,
    pub rx: u16,
    pub tx: u16,
    pub buffer: u32,
}

impl Default for Rings {
    fn default() -> Self {
        Self { pairs: 1, rx: 512, tx: 512, buffer: 4096 }
    }
}

/// A driver.
pub struct Driver {
    pub front: FrontEnd,
    pub bells: Vec<VringBells>,
    pub region: Region,
    pub layouts: Vec<Layout>,
    pub pool: Pool,
    pub rx: Vec<DriverQueue<Buf>>,
    pub tx: Vec<DriverQueue<Vec<Buf>>>,
    buffer: u32,
}

impl Driver {
    pub fn connect(path: &Path, wanted: Features, rings: Rings) -> Self {
        let mut front = None;
        until("front end connects", || {
            front = FrontEnd::connect(path, wanted).ok();
            front.is_some()
        });
        let front = front.expect("connected");
        let features = front.features();
        let (mut at, mut layouts) = (0, Vec::new());
        for i in 0..2 * rings.pairs {
            let (layout, end) = Layout::in_region(at, if i % 2 == 0 { rings.rx } else { rings.tx });
            layouts.push(layout);
            at = end;
        }
        let start = at.next_multiple_of(65536);
        let storage = 256 << 20;
        let region = Region::memfd("driver", start as usize + storage).expect("memory");
        let pool = Pool::new(region.clone(), start, storage);
        let queue = |i: usize| layouts[i];
        let rx: Vec<_> =
            (0..usize::from(rings.pairs)).map(|i| DriverQueue::new(region.clone(), queue(2 * i), features).expect("ring")).collect();
        let tx =
            (0..usize::from(rings.pairs)).map(|i| DriverQueue::new(region.clone(), queue(2 * i + 1), features).expect("ring")).collect();
        let mut driver = Self { bells: Vec::new(), region, layouts, pool, rx, tx, buffer: rings.buffer, front };
        for i in 0..usize::from(rings.pairs) {
            driver.refill(i);
        }
        driver.bells = driver.front.start(&driver.region, &driver.layouts, rings.pairs).expect("device starts");
        driver
    }

    pub fn refill(&mut self, queue: usize) {
        while self.rx[queue].free() > 0 {
            let buf = self.pool.alloc(self.buffer).expect("pool is large enough");
            let segment = (buf.offset(), self.buffer);
            self.rx[queue].add(&[], &[segment], buf).expect("asked for room");
        }
        if self.rx[queue].needs_kick()
            && let Some(bells) = self.bells.get(2 * queue)
        {
            bells.kick.ring();
        }
    }

    /// Queues a frame; false if the ring is full.
    pub fn try_send(&mut self, queue: usize, header: &VnetHdr, frame: &[u8]) -> bool {
        let mut rest = [&header.emit(), frame].concat();
        let mut bufs = Vec::new();
        let mut segments = Vec::new();
        while !rest.is_empty() {
            let n = rest.len().min(65536);
            let buf = self.pool.alloc(n as u32).expect("pool is large enough");
            buf.slice(0, n as u32).write(&rest[..n]);
            segments.push((buf.offset(), n as u32));
            bufs.push(buf);
            rest.drain(..n);
        }
        self.tx[queue].add(&segments, &[], bufs).is_ok()
    }

    pub fn kick(&mut self, queue: usize) {
        if self.tx[queue].needs_kick() {
            self.bells[2 * queue + 1].kick.ring();
        }
    }

    /// Sends a frame, waiting for room.
    pub fn send_with(&mut self, header: &VnetHdr, frame: &[u8]) {
        until("room in the transmit ring", || {
            self.reap();
            self.try_send(0, header, frame)
        });
        self.kick(0);
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.send_with(&VnetHdr::default(), frame);
    }

    /// Takes back sent frames; returns their number.
    pub fn reap(&mut self) -> usize {
        let mut n = 0;
        for tx in &mut self.tx {
            while tx.pop_used().expect("honest device").is_some() {
                n += 1;
            }
        }
        n
    }

    /// The next frame of a queue, if one is there.
    pub fn try_receive(&mut self, queue: usize) -> Option<(VnetHdr, Vec<u8>)> {
        let (buf, len) = self.rx[queue].pop_used().expect("honest device")?;
        let mut bytes = vec![0; len as usize];
        buf.slice(0, len).read(&mut bytes);
        drop(buf);
        let header = VnetHdr::parse(bytes[..VNET_HDR_LEN].try_into().expect("a header"));
        let mut frame = bytes.split_off(VNET_HDR_LEN);
        for _ in 1..header.num_buffers {
            let (buf, len) = self.rx[queue].pop_used().expect("honest device").expect("a frame is published whole");
            let at = frame.len();
            frame.resize(at + len as usize, 0);
            buf.slice(0, len).read(&mut frame[at..]);
        }
        self.refill(queue);
        Some((header, frame))
    }

    /// The next frame of queue 0, waiting for its interrupt.
    pub fn receive(&mut self) -> (VnetHdr, Vec<u8>) {
        self.receive_within(PATIENCE).expect("a frame within 20 s")
    }

    pub fn receive_within(&mut self, patience: Duration) -> Option<(VnetHdr, Vec<u8>)> {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.try_receive(0) {
                return Some(frame);
            }
            if self.rx[0].enable_call() {
                continue;
            }
            let left = patience.checked_sub(start.elapsed())?;
            let timeout = rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let call = &self.bells[0].call;
            poll(&mut [PollFd::new(call, PollFlags::IN)], Some(&timeout)).expect("poll");
            call.drain();
            self.rx[0].disable_call();
        }
    }
}

/// An Ethernet frame of a private EtherType whose octets follow from `seed`.
pub fn plain_frame(dst: [u8; 6], src: [u8; 6], len: usize, seed: u64) -> Vec<u8> {
    let mut frame = [&dst[..], &src, &[0x88, 0xb5]].concat();
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while frame.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        frame.push(x as u8);
    }
    frame
}

/// A TCP frame of `payload` octets that leaves checksum, and segmentation where `mss` is not 0, to the NIC.
pub fn tcp_frame(dst: [u8; 6], src: [u8; 6], ports: (u16, u16), payload: &[u8], mss: u16) -> (VnetHdr, Vec<u8>) {
    let builder = etherparse::PacketBuilder::ethernet2(src, dst)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(ports.0, ports.1, 1000, 64240)
        .ack(1)
        .psh();
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame");
    let (start, offset) = (34u16, 16u16);
    // The field holds the sum of the pseudo-header: RFC 9293 §3.1.
    let len = (frame.len() - 34) as u32;
    let words = [0x0a00u32, 1, 0x0a00, 2, 6, len];
    let sum = words.iter().sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[50..52].copy_from_slice(&(folded as u16).to_be_bytes());
    let header = VnetHdr {
        flags: ringlab_ring::vnet::F_NEEDS_CSUM,
        gso_type: if mss > 0 { ringlab_ring::vnet::GSO_TCPV4 } else { ringlab_ring::vnet::GSO_NONE },
        hdr_len: 54,
        gso_size: mss,
        csum_start: start,
        csum_offset: offset,
        num_buffers: 0,
    };
    (header, frame)
}

/// Two nodes on a cable, each with a driver that negotiated `features`.
pub struct Pair {
    pub dir: Dir,
    pub a: Nicd,
    pub b: Nicd,
    pub host_a: Driver,
    pub host_b: Driver,
}

pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 2];

impl Pair {
    pub fn new() -> Self {
        Self::with("", Rings::default(), (ALL, ALL))
    }

    /// `wire`: impairment of the direction from a to b.
    pub fn with(wire: &str, rings: Rings, features: (Features, Features)) -> Self {
        let dir = Dir::new();
        let queues = rings.pairs;
        let mut a = Nicd::start(
            &dir,
            "a",
            &[
                "--port",
                &format!("eth0,vhost=a.sock,mac=02:00:00:00:00:01,queues={queues}"),
                "--wire",
                &format!("eth0=cable:ab.sock,listen{wire}"),
            ],
        );
        let mut b = start_b(&dir, queues);
        until("link is up", || a.link_up("eth0") && b.link_up("eth0"));
        let host_a = Driver::connect(&dir.path("a.sock"), features.0, rings);
        let host_b = Driver::connect(&dir.path("b.sock"), features.1, rings);
        let mut pair = Self { dir, a, b, host_a, host_b };
        if wire.is_empty() {
            pair.warm_up();
        }
        pair
    }

    /// Sends until frames go by reference: the peer has mapped the driver's memory.
    pub fn warm_up(&mut self) {
        for round in 0.. {
            let before = self.a.counters("eth0")["dma_copies"];
            self.host_a.send(&plain_frame(MAC_B, MAC_A, 60, round));
            self.host_b.receive();
            if self.a.counters("eth0")["dma_copies"] == before {
                return;
            }
            assert!(round < 1000, "frames never go by reference");
        }
    }
}

pub fn start_b(dir: &Dir, queues: u16) -> Nicd {
    let port = format!("eth0,vhost=b.sock,mac=02:00:00:00:00:02,queues={queues}");
    Nicd::start(dir, "b", &["--port", &port, "--wire", "eth0=cable:ab.sock"])
}

/// Sends a frame twice, rung for once, `age` ago; how long either was under way.
pub fn fly_two(from: &mut Driver, to: &mut Driver, frame: &[u8], age: Duration) -> [Duration; 2] {
    from.reap();
    assert!((0..2).all(|_| from.try_send(0, &VnetHdr::default(), frame)));
    let start = Instant::now();
    if from.tx[0].needs_kick() {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let rung = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) - age;
        from.bells[1].kick.ring_at(rung.as_nanos() as u64);
    }
    [(); 2].map(|()| {
        assert_eq!(to.receive().1, frame);
        start.elapsed()
    })
}
