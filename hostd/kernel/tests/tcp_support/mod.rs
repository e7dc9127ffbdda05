//! What the TCP scenarios share: connected pairs, and a bulk transfer that is compared octet by octet.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod peer;

use crate::common::tasks::Prog;
use crate::common::{A, ADDR_B, B, Frame, HostConfig, Lab, PortConfig, Verdict};
use ringlab_counters::Mib;
use ringlab_kernel::dev::net_device::Features;
use ringlab_kernel::syscall::Ret;
use std::time::Duration;

/// A program and a descriptor of it.
pub type Side = (Prog, i32);

/// A NIC without offloads: every frame on the wire is one segment.
pub fn plain_nic() -> PortConfig {
    PortConfig { features: Features { tx_csum: false, tso: false, sg: false }, ..PortConfig::default() }
}

/// A NIC whose RX ring holds any burst: nothing is missed.
pub fn big_ring(nic: PortConfig) -> PortConfig {
    PortConfig { rx_ring: 1 << 15, ..nic }
}

/// Two hosts with a program each, and a listener of B on port 80.
pub fn pair(seed: u64, port: PortConfig) -> (Lab, Prog, Side) {
    let mut lab = Lab::pair_with(seed, HostConfig::default(), port);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let l = b.listener(&mut lab, 80, 8);
    (lab, a, (b, l))
}

/// A connection from a program of A to one of B, port 80.
pub fn connected_with(seed: u64, port: PortConfig) -> (Lab, Side, Side) {
    let (mut lab, a, (b, l)) = pair(seed, port);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, l);
    (lab, (a, fa), (b, fb))
}

pub fn connected(seed: u64) -> (Lab, Side, Side) {
    connected_with(seed, PortConfig::default())
}

/// Octet `i` of every transfer.
pub fn octet(i: usize) -> u8 {
    (i.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

/// Sends `total` octets in calls of `chunk` and compares what arrives; the time it took.
pub fn transfer(lab: &mut Lab, from: Side, to: Side, total: usize, chunk: usize) -> Duration {
    let start = lab.now;
    let data: Vec<u8> = (0..total).map(octet).collect();
    let source = lab.hosts[from.0.host].mem.put(&data);
    let buffer = to.0.buffer(lab, 256 * 1024);
    let (mut sent, mut got) = (0, 0);
    let send = |lab: &mut Lab, at: usize| {
        let iov = ringlab_kernel::uaccess::Iov::One(ringlab_kernel::uaccess::UserSlice {
            addr: source.addr + at as u64,
            len: chunk.min(total - at) as u64,
        });
        from.0.start(lab, ringlab_kernel::syscall::Call::Send { fd: from.1, iov, flags: 0, to: None, control: Vec::new() });
    };
    send(lab, 0);
    to.0.start(lab, Prog::recv_call(to.1, buffer, 0));
    while got < total {
        let done = lab.run_until(Duration::from_secs(600), |lab| {
            let ready = |p: Prog| lab.hosts[p.host].returns.iter().any(|r| r.0 == p.task);
            ready(from.0) || ready(to.0)
        });
        assert!(done, "the transfer stalls at {got} of {total}");
        if let Some(ret) = from.0.poll(lab) {
            let Ret::Value(n) = ret else { panic!("send: {ret:?}") };
            sent += n as usize;
            if sent < total {
                send(lab, sent);
            }
        }
        if let Some(ret) = to.0.poll(lab) {
            let Ret::Received { len, .. } = ret else { panic!("recv: {ret:?}") };
            assert!(len > 0, "end after {got} of {total}");
            let bytes = lab.hosts[to.0.host].mem.get(buffer, len);
            assert!(bytes == data[got..got + len], "octets {got}..{} differ", got + len);
            got += len;
            if got < total {
                to.0.start(lab, Prog::recv_call(to.1, buffer, 0));
            }
        }
    }
    assert_eq!(sent, total);
    lab.now - start
}

/// A counter of a host.
pub fn mib(lab: &Lab, host: usize, counter: Mib) -> u64 {
    lab.hosts[host].kernel.stats().mib.get(counter)
}

/// A cheap generator for link hooks: the same seed gives the same losses.
pub struct Dice(pub u64);

impl Dice {
    /// True once in `n` on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33).is_multiple_of(n)
    }
}

/// Loses one frame of `loss`, delays one of `reorder` past its followers, doubles one of `dup`; 0: none.
pub fn bad_wire(lab: &mut Lab, seed: u64, loss: u64, reorder: u64, dup: u64) {
    let mut dice = Dice(seed);
    lab.hook(0, move |_, frame: &mut Frame| {
        if !frame.is_tcp() {
            return Verdict::Pass;
        }
        if loss > 0 && dice.one_in(loss) {
            Verdict::Drop
        } else if reorder > 0 && dice.one_in(reorder) {
            Verdict::Delay(Duration::from_micros(300))
        } else if dup > 0 && dice.one_in(dup) {
            Verdict::Duplicate(Duration::from_micros(70))
        } else {
            Verdict::Pass
        }
    });
}

/// Counters of a host that are not zero, to be shown when a test fails.
pub fn counters(lab: &Lab, host: usize) -> String {
    let stats = lab.hosts[host].kernel.stats();
    let shown = |n: &str| n.contains("Tcp") || n.contains("Prune");
    let mibs = stats.mib.iter().filter(|(n, v)| *v > 0 && shown(n)).map(|(n, v)| format!("{n} {v}"));
    let drops = stats.drops.iter().filter(|d| d.1 > 0).map(|(n, v)| format!("dropped {n} {v}"));
    mibs.chain(drops).collect::<Vec<_>>().join("\n")
}
