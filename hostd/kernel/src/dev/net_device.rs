//! `net_device`: an interface, and what its driver offers.

use crate::errno::Errno;
use crate::skb::{Frag, SkBuff};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;
use ringlab_counters::NetdevCounters;
use ringlab_ring::vnet::VnetHdr;

/// Number of an interface, from 1; 1 is `lo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfIndex(pub u32);

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl core::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A frame as the driver found it on the ring.
pub struct RxFrame {
    /// The virtio-net header, already checked for sense by nobody: the kernel does.
    pub hdr: VnetHdr,
    /// The frame's octets, without the virtio-net header.
    pub frags: ArrayVec<Frag, { crate::skb::MAX_SKB_FRAGS }>,
}

/// What the device can do in hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Completes transport checksums on transmit (`NETIF_F_HW_CSUM`).
    pub tx_csum: bool,
    /// Cuts TCP/IPv4 (`NETIF_F_TSO`).
    pub tso: bool,
    /// Scatter-gather (`NETIF_F_SG`).
    pub sg: bool,
}

/// A network driver (Linux `net_device_ops` and its NAPI poll's device side).
///
/// The virtio-net driver of hostd implements it over shared rings, a test over
/// two queues in memory. No method blocks. The descriptor's content is hostile:
/// the driver checks ring rules, the kernel checks frames.
pub trait NetDriver {
    /// Queue pairs in use, from 1.
    fn queue_pairs(&self) -> u16;
    /// Hardware features as negotiated.
    fn features(&self) -> Features;
    /// Descriptors of each receive and each transmit ring, for `ethtool -g`; `None`: the driver does not tell.
    fn ring_sizes(&self) -> Option<(u32, u32)> {
        None
    }
    /// The most that they can be.
    fn ring_limits(&self) -> Option<(u32, u32)> {
        self.ring_sizes()
    }
    /// Gives all rings other sizes (`ethtool -G`). What is in them may be lost.
    ///
    /// # Errors
    /// `EINVAL` for a size that no ring can have, `EOPNOTSUPP` if they are fixed.
    fn set_ring_sizes(&mut self, _rx: u32, _tx: u32) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    /// When the device interrupts for received frames; `None`: the driver does not tell.
    fn coalesce(&self) -> Option<Coalesce> {
        None
    }
    /// Changes it (`ethtool -C`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` if it is fixed.
    fn set_coalesce(&mut self, _wanted: Coalesce) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Has the device spread what it receives over the first queue pairs only (`ethtool -L`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` if it cannot.
    fn use_queue_pairs(&mut self, _pairs: u16) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Takes the next received frame of a queue; `None` if there is none.
    fn rx(&mut self, queue: u16) -> Option<RxFrame>;
    /// Gives the device fresh buffers for what was taken.
    fn rx_refill(&mut self, queue: u16);
    /// Queues a frame for the device (descriptors available, no doorbell yet).
    /// The packet is held until [`Self::tx_done`] gives it back.
    ///
    /// # Errors
    /// The packet itself, when the ring has not enough free descriptors.
    fn xmit(&mut self, queue: u16, hdr: VnetHdr, skb: Box<SkBuff>) -> Result<(), Box<SkBuff>>;
    /// Free descriptors are fewer than a largest frame needs: stop the queue.
    fn tx_full(&self, queue: u16) -> bool;
    /// Takes back a transmitted packet whose descriptors are used.
    fn tx_done(&mut self, queue: u16) -> Option<Box<SkBuff>>;
    /// True if the device wants a doorbell for what was made available (event suppression).
    fn needs_kick(&mut self, queue: u16) -> bool;
    /// Masks the queue pair's interrupt.
    fn irq_disable(&mut self, queue: u16);
    /// Unmasks it. True if work arrived since the last look: poll again, the interrupt may not come.
    fn irq_enable(&mut self, queue: u16) -> bool;
    /// Says what depends on hearing of sent packets.
    fn tx_irq(&mut self, queue: u16, wanted: TxIrq);
    /// True if the queue has frames or completions to take, interrupt or not.
    fn pending(&mut self, queue: u16) -> bool;
}

/// Interrupt moderation of the receive side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Coalesce {
    /// Microseconds by which an interrupt may be late (`rx-usecs`).
    pub rx_usecs: u32,
    /// Frames after which it comes at once; 0: only time counts (`rx-frames`).
    pub rx_frames: u32,
}

/// What depends on the interrupt of a transmit queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TxIrq {
    /// Nothing.
    Off,
    /// Packets are charged to sockets, which have room for more: an interrupt may be held back until many are
    /// done, or the host has something else to do (`tx-frames`, `tx-usecs`).
    Lazy,
    /// The queue is stopped, or a socket may be: as soon as the ring allows.
    Now,
}

/// How to make an interface.
pub struct DeviceConfig {
    /// "eth0"; at most 15 octets.
    pub name: String,
    /// Its address.
    pub mac: MacAddr,
    /// Octets of layer-3 payload.
    pub mtu: u32,
    /// Addresses with prefix lengths; connected routes come with them.
    pub ipv4: Vec<(Ipv4Addr, u8)>,
    /// Packets that its qdisc holds (`txqueuelen`).
    pub tx_queue_len: u32,
    /// CPU of each queue's vector; missing: queue modulo CPUs.
    pub irq_affinity: Vec<u16>,
    /// The hardware.
    pub driver: Box<dyn NetDriver>,
}

/// Operational state of an interface (RFC 2863, Linux `IF_OPER_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperState {
    /// Nobody watches it.
    Unknown = 0,
    /// It cannot carry frames.
    Down = 2,
    /// It can.
    Up = 6,
}

impl OperState {
    /// As `ip link` prints it.
    pub fn name(self) -> &'static str {
        match self {
            OperState::Unknown => "UNKNOWN",
            OperState::Down => "DOWN",
            OperState::Up => "UP",
        }
    }
}

/// An interface's counters, for `ip -s link`.
pub type Stats = NetdevCounters;
