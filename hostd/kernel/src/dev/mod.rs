//! Network devices: table, receive and transmit.
//!
//! Receive: `napi.rs` polls a queue pair, `vnet.rs` judges the virtio-net header,
//! `gro.rs` merges, and `ether` takes the frame. Transmit: `xmit.rs` chooses a
//! queue, puts the frame into its qdisc (`qdisc/`) and hands the driver as much as
//! it takes, after `gso.rs` has done in software what the device cannot do. A
//! full ring stops the queue; the NAPI poll that reaps completions wakes it.
//! `link_watch.rs` follows the carrier.
//!
//! A queue pair is one unit: one vector, one NAPI instance, one TX queue with a
//! qdisc of its own (Linux: `mq` with `pfifo_fast` below). Doorbells are rung
//! once an event, after everything it caused has been queued.
mod config;
mod gro;
mod gso;
mod link_watch;
mod loopback;
mod napi;
pub mod net_device;
pub(crate) mod qdisc;
mod vnet;
mod xmit;

pub(crate) use gso::skb_checksum_help;

use crate::Kernel;
use crate::ip::devconf::DevConf;
use crate::ip::route::RouteKind;
use crate::skb::SkBuff;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use gro::GroList;
use net_device::{DeviceConfig, Features, IfIndex, MacAddr, NetDriver, OperState, Stats, TxIrq};
use qdisc::pfifo_fast::PfifoFast;

/// Frames a NAPI poll may take (Linux `NAPI_POLL_WEIGHT`).
pub(crate) const NAPI_POLL_WEIGHT: u32 = 64;

/// A queue pair.
pub(crate) struct Queue {
    /// Number of its interrupt vector on this host.
    pub(crate) vector: u32,
    /// CPU that takes its interrupt.
    pub(crate) irq_cpu: u16,
    /// Interrupts taken, by CPU.
    pub(crate) irq_counts: Vec<u64>,
    /// On a poll list, interrupt masked (`NAPI_STATE_SCHED`).
    pub(crate) napi_scheduled: bool,
    pub(crate) gro: GroList,
    pub(crate) qdisc: PfifoFast,
    /// Frames that the driver had no room for: they go first.
    pub(crate) requeued: VecDeque<Box<SkBuff>>,
    /// The driver has no room (`__QUEUE_STATE_DRV_XOFF`).
    pub(crate) stopped: bool,
    /// On a CPU's output queue (`__QDISC_STATE_SCHED`).
    pub(crate) tx_scheduled: bool,
    /// Somebody is in `qdisc_run` (`__QDISC_STATE_RUNNING`).
    pub(crate) running: bool,
    /// Frames were queued since the last doorbell.
    pub(crate) kick: bool,
    /// Packets in the driver that are charged to sockets.
    pub(crate) charged: u32,
    /// One of them is charged to a socket that has no room to speak of for more.
    pub(crate) pressed: bool,
}

impl Queue {
    /// What depends on hearing of sent packets; `throttled`: a connection does (`tcp::tsq`).
    pub(crate) fn tx_irq(&self, throttled: bool) -> TxIrq {
        match (self.stopped || self.pressed || throttled, self.charged) {
            (true, _) => TxIrq::Now,
            (false, 0) => TxIrq::Off,
            (false, _) => TxIrq::Lazy,
        }
    }
}

/// An interface (Linux `struct net_device`).
pub(crate) struct NetDevice {
    pub(crate) index: IfIndex,
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    /// The address that it was made with.
    pub(crate) perm_mac: MacAddr,
    pub(crate) mtu: u32,
    /// Carrier: the other end of the cable is there.
    pub(crate) carrier: bool,
    /// `IFF_UP`: somebody has switched it on.
    pub(crate) up: bool,
    /// Packets that its qdisc holds.
    pub(crate) tx_queue_len: u32,
    /// Times that the carrier came, and that it went.
    pub(crate) carrier_changes: (u32, u32),
    /// Who wants all frames, and all multicast frames.
    pub(crate) promiscuity: u32,
    pub(crate) allmulti: u32,
    pub(crate) addrs: Vec<(Ipv4Addr, u8)>,
    /// `net.ipv4.conf`.
    pub(crate) conf: DevConf,
    /// In use: what the driver offers and nobody has switched off.
    pub(crate) features: Features,
    /// Switched off (`ethtool -K`).
    pub(crate) features_off: Features,
    /// Received segments are merged.
    pub(crate) gro_on: bool,
    /// `None`: loopback.
    pub(crate) driver: Option<Box<dyn NetDriver>>,
    pub(crate) queues: Vec<Queue>,
    /// So many of them are in use, the first (Linux `real_num_tx_queues`).
    pub(crate) real_queues: u16,
    pub(crate) stats: Stats,
}

impl NetDevice {
    /// What the driver offers less what is switched off; segmentation needs checksums and scatter-gather (Linux
    /// `netdev_update_features`).
    pub(crate) fn update_features(&mut self) {
        let Some(driver) = &self.driver else { return };
        let (offered, off) = (driver.features(), self.features_off);
        let (sg, tx_csum) = (offered.sg && !off.sg, offered.tx_csum && !off.tx_csum);
        self.features = Features { sg, tx_csum, tso: offered.tso && !off.tso && sg && tx_csum };
    }

    /// `IFF_LOOPBACK`.
    pub(crate) fn is_loopback(&self) -> bool {
        self.driver.is_none()
    }

    /// Operational state (Linux `rfc2863_policy`).
    pub(crate) fn operstate(&self) -> OperState {
        match (self.is_loopback(), self.up && self.carrier) {
            // Nothing watches it.
            (true, true) => OperState::Unknown,
            (_, false) => OperState::Down,
            (false, true) => OperState::Up,
        }
    }
}

impl core::fmt::Debug for NetDevice {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("NetDevice").field("name", &self.name).field("mac", &self.mac).finish_non_exhaustive()
    }
}

/// The interfaces of a host, by index from 1.
#[derive(Debug, Default)]
pub struct Devices {
    list: Vec<NetDevice>,
    vectors: u32,
    /// Some queue's doorbell may be due.
    kick: bool,
}

impl Devices {
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn at(&self, position: usize) -> &NetDevice {
        &self.list[position]
    }

    pub(crate) fn at_mut(&mut self, position: usize) -> &mut NetDevice {
        &mut self.list[position]
    }

    pub(crate) fn get(&self, index: IfIndex) -> Option<&NetDevice> {
        self.list.get((index.0 as usize).checked_sub(1)?)
    }

    pub(crate) fn get_mut(&mut self, index: IfIndex) -> Option<&mut NetDevice> {
        self.list.get_mut((index.0 as usize).checked_sub(1)?)
    }

    pub(crate) fn queue_mut(&mut self, index: IfIndex, queue: u16) -> Option<&mut Queue> {
        self.get_mut(index)?.queues.get_mut(usize::from(queue))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &NetDevice> {
        self.list.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut NetDevice> {
        self.list.iter_mut()
    }
}

impl Kernel {
    /// Brings `lo` up with 127.0.0.1/8.
    pub(crate) fn loopback_init(&mut self) {
        self.devs.list.push(NetDevice {
            index: IfIndex(1),
            name: String::from("lo"),
            mac: MacAddr::default(),
            perm_mac: MacAddr::default(),
            mtu: loopback::MTU,
            carrier: true,
            up: true,
            tx_queue_len: 1000,
            carrier_changes: (0, 0),
            promiscuity: 0,
            allmulti: 0,
            addrs: Vec::new(),
            conf: self.devconf.default,
            features: Features { tx_csum: true, tso: true, sg: true },
            features_off: Features::default(),
            gro_on: true,
            driver: None,
            queues: Vec::new(),
            real_queues: 1,
            stats: Stats::default(),
        });
        self.fib.set_mtu(1, loopback::MTU);
        self.inet_addr_add(IfIndex(1), Ipv4Addr::LOCALHOST, 8);
    }

    /// Adds a device with a driver and brings it up (Linux `register_netdev`, `dev_open`).
    pub(crate) fn register_netdev(&mut self, config: DeviceConfig) -> IfIndex {
        let index = IfIndex(self.devs.list.len() as u32 + 1);
        let count = self.cpus.count();
        let pairs = config.driver.queue_pairs().max(1);
        let queues = (0..pairs).map(|q| {
            let irq_cpu = config.irq_affinity.get(usize::from(q)).copied().unwrap_or(q) % count;
            let vector = self.devs.vectors + u32::from(q);
            Queue {
                vector,
                irq_cpu,
                irq_counts: alloc::vec![0; usize::from(count)],
                napi_scheduled: false,
                gro: GroList::default(),
                qdisc: PfifoFast::new(config.tx_queue_len),
                requeued: VecDeque::new(),
                stopped: false,
                tx_scheduled: false,
                running: false,
                kick: false,
                charged: 0,
                pressed: false,
            }
        });
        let queues = queues.collect();
        self.devs.vectors += u32::from(pairs);
        self.devs.list.push(NetDevice {
            index,
            name: config.name,
            mac: config.mac,
            perm_mac: config.mac,
            mtu: config.mtu,
            carrier: true,
            up: true,
            tx_queue_len: config.tx_queue_len,
            carrier_changes: (1, 1),
            promiscuity: 0,
            allmulti: 0,
            addrs: Vec::new(),
            conf: self.devconf.default,
            features: config.driver.features(),
            features_off: Features::default(),
            gro_on: true,
            driver: Some(config.driver),
            queues,
            real_queues: pairs,
            stats: Stats::default(),
        });
        self.fib.set_mtu(index.0, config.mtu);
        for (addr, prefix) in config.ipv4 {
            self.inet_addr_add(index, addr, prefix);
        }
        index
    }

    /// Gives an interface an address (Linux `__inet_insert_ifa`): local, broadcast and connected routes come with it. The
    /// broadcast address is the usual one, as the programs that configure hosts say it.
    fn inet_addr_add(&mut self, dev: IfIndex, addr: Ipv4Addr, prefix: u8) {
        let mut ifa = self.inet_ifa(dev, addr, prefix);
        if !addr.is_loopback() && prefix < 31 {
            ifa.broadcast = Some(Ipv4Addr::from_bits(addr.to_bits() | u32::MAX >> prefix));
        }
        // An address given twice is there once.
        let _ = self.inet_insert_ifa(ifa);
    }

    /// True if frames to `addr` stay on this host.
    pub(crate) fn is_local_addr(&self, addr: Ipv4Addr) -> bool {
        self.inet_addr_type(addr) == RouteKind::Local
    }
}
