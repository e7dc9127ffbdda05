//! A snapshot of everything that the host counts: what `/proc`, `ip -s`, `ss` and `nstat` show.

use crate::Kernel;
use crate::cpu::account::CpuStat;
use crate::dev::NetDevice;
use crate::dev::net_device::{IfIndex, MacAddr};
use crate::time::Instant;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use ringlab_counters::{CopyCounters, DropCounters, MibCounters, Netdev, NetdevCounters};

/// An interrupt vector: a row of `/proc/interrupts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vector {
    /// "eth0-0": interface and queue pair.
    pub name: String,
    /// CPU that takes it.
    pub cpu: u16,
    /// Interrupts, by CPU.
    pub counts: Vec<u64>,
}

/// An interface: `ip -s link` and `ip addr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Number.
    pub index: IfIndex,
    /// Administratively up.
    pub up: bool,
    /// The cable's other end is there (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// "UP", "DOWN", "UNKNOWN" (`lo`).
    pub operstate: &'static str,
    /// Address.
    pub mac: MacAddr,
    /// Addresses and prefix lengths.
    pub ipv4: Vec<(Ipv4Addr, u8)>,
    /// Octets of an IP packet.
    pub mtu: u32,
    /// Counters.
    pub counters: NetdevCounters,
}

/// A neighbour: `ip neigh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Address.
    pub addr: Ipv4Addr,
    /// Interface.
    pub dev: String,
    /// Link-layer address; `None` while unknown.
    pub mac: Option<MacAddr>,
    /// "REACHABLE".
    pub state: &'static str,
}

/// A route: `ip route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    /// "10.0.0.0/24", "default".
    pub prefix: String,
    /// Gateway.
    pub via: Option<Ipv4Addr>,
    /// Interface.
    pub dev: String,
    /// Metric.
    pub metric: u32,
    /// Its interface has no carrier (`RTNH_F_LINKDOWN`): it is used all the same.
    pub linkdown: bool,
}

/// The snapshot. Tasks and sockets come from [`Kernel::tasks_info`] and [`Kernel::sockets_info`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// When.
    pub now: Instant,
    /// By CPU.
    pub cpus: Vec<CpuStat>,
    /// Interrupts.
    pub vectors: Vec<Vector>,
    /// Interfaces, `lo` first.
    pub interfaces: Vec<Interface>,
    /// `/proc/net/snmp`, `/proc/net/netstat`.
    pub mib: MibCounters,
    /// Copies of frame bytes.
    pub copies: CopyCounters,
    /// Drops by reason.
    pub drops: DropCounters,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Routes of the main table.
    pub routes: Vec<RouteInfo>,
}

impl Kernel {
    /// What the host has counted so far.
    pub fn stats(&self) -> Stats {
        let name = |dev: u32| self.devs.get(IfIndex(dev)).map_or_else(String::new, |d| d.name.clone());
        let vectors = self.devs.iter().flat_map(|d| {
            d.queues.iter().enumerate().map(move |(i, q)| Vector {
                name: format!("{}-{i}", d.name),
                cpu: q.irq_cpu,
                counts: q.irq_counts.clone(),
            })
        });
        let interfaces = self.devs.iter().map(|d| Interface {
            name: d.name.clone(),
            index: d.index,
            up: d.up,
            carrier: d.carrier,
            operstate: d.operstate().name(),
            mac: d.mac,
            ipv4: d.addrs.clone(),
            mtu: d.mtu,
            counters: device_counters(d),
        });
        let neighbours = self.neigh.iter().map(|n| Neighbour {
            addr: n.addr,
            dev: name(n.dev),
            mac: (n.mac != MacAddr::default()).then_some(n.mac),
            state: n.state.name(),
        });
        let routes = self.fib.routes().map(|e| RouteInfo {
            prefix: if e.len == 0 { "default".to_string() } else { format!("{}/{}", Ipv4Addr::from_bits(e.net), e.len) },
            via: (!e.via.is_unspecified()).then_some(e.via),
            dev: name(e.dev),
            metric: e.metric,
            linkdown: self.is_linkdown(e),
        });
        Stats {
            now: self.now,
            cpus: self.cpus.iter().map(|c| c.stat).collect(),
            vectors: vectors.collect(),
            interfaces: interfaces.collect(),
            mib: self.mib.clone(),
            copies: self.copies.clone(),
            drops: self.drops.clone(),
            neighbours: neighbours.collect(),
            routes: routes.collect(),
        }
    }
}

/// An interface's counters, those of its carrier among them.
fn device_counters(device: &NetDevice) -> NetdevCounters {
    let mut counters = device.stats.clone();
    let (came, went) = device.carrier_changes;
    counters.set(Netdev::CarrierUp, came.into());
    counters.set(Netdev::CarrierDown, went.into());
    counters
}
