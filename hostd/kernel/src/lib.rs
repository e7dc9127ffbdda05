//! The kernel model of an emulated host: a state machine, pure and deterministic.
//!
//! Events go in by [`Kernel::handle`], effects come out by [`Kernel::poll_effect`],
//! and [`Kernel::poll_timeout`] says when to come back. It never reads a clock,
//! blocks or touches a descriptor; devices and task memory are behind the
//! [`dev::net_device::NetDriver`] and [`uaccess::UserMemory`] traits. Same seed,
//! same events, same driver answers: same trace.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cpu;
pub mod dev;
pub mod errno;
pub mod ether;
pub mod ip;
pub mod raw;
pub mod skb;
pub mod sock;
pub mod syscall;
pub mod tcp;
pub mod time;
pub mod timer;
pub mod trace;
pub mod uaccess;
pub mod udp;
pub mod vfs;
pub mod wait;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use cpu::sched::TaskId;
use dev::net_device::IfIndex;
use ringlab_counters::{CopyCounters, DropCounters, DropReason, MibCounters};
use ringlab_ring::pool::Pool;
use skb::{SkBuff, SkbCache};
use syscall::{Call, Ret};
use time::Instant;
use trace::{Point, Record, Trace};
use uaccess::UserMemory;

/// What happened to the host.
#[derive(Debug)]
pub enum Event {
    /// A device raises the interrupt of a queue pair.
    Interrupt(IfIndex, u16),
    /// A device gained or lost its carrier.
    Carrier(IfIndex, bool),
    /// A task makes a call. It must not be in one.
    Syscall(TaskId, Call),
    /// A task gets a signal: a blocked call ends with `EINTR` or what it has.
    Signal(TaskId),
    /// Time has passed: timers, and work left over (`ksoftirqd`).
    Timer,
}

/// What the host asks of its surroundings.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ring the doorbell of a device's TX queue.
    Doorbell(IfIndex, u16),
    /// A task's call is finished.
    Return(TaskId, Ret),
}

/// How to make a host.
pub struct Config {
    /// Every random choice derives from it.
    pub seed: u64,
    /// Modelled CPUs, 1 to 64.
    pub cpus: u16,
    /// Forward packets (kind `router`).
    pub ip_forward: bool,
    /// Received datagrams of a socket in a system call go to its backlog, as before Linux 4.10.
    pub udp_backlog: bool,
    /// DMA-able memory of the host; all its NICs can reach it.
    pub pool: Pool,
}

/// The kernel of one host.
pub struct Kernel {
    pub(crate) now: Instant,
    pub(crate) config: Config,
    pub(crate) rng: rand_pcg::Pcg32,
    pub(crate) mem: Box<dyn UserMemory>,
    pub(crate) skbs: SkbCache,
    pub(crate) this_cpu: u16,
    pub(crate) cpus: cpu::Cpus,
    pub(crate) timers: timer::Timers,
    pub(crate) devs: dev::Devices,
    pub(crate) neigh: ether::NeighTable,
    pub(crate) fib: ip::Fib,
    pub(crate) frags: ip::Reassembly,
    pub(crate) icmp: ip::IcmpState,
    pub(crate) socks: sock::Socks,
    pub(crate) tcp: tcp::TcpTable,
    pub(crate) udp: udp::UdpTable,
    pub(crate) raw: raw::RawTable,
    pub(crate) tasks: cpu::sched::Tasks,
    pub(crate) vfs: vfs::Vfs,
    pub(crate) epolls: wait::Epolls,
    pub(crate) mib: MibCounters,
    pub(crate) drops: DropCounters,
    pub(crate) copies: CopyCounters,
    pub(crate) tracer: Trace,
    pub(crate) effects: VecDeque<Effect>,
}

impl Kernel {
    /// Records a trace event if somebody listens to it.
    #[inline]
    pub(crate) fn trace(&mut self, point: Point, skb: u64, args: [u64; 4]) {
        if self.tracer.enabled(point) {
            self.tracer.push(Record { time: self.now, cpu: self.this_cpu, point, skb, args });
        }
    }

    /// An empty packet (Linux `alloc_skb`, without the data).
    pub(crate) fn alloc_skb(&mut self) -> Box<SkBuff> {
        self.skbs.get()
    }

    /// A packet that shares the data of `skb` (Linux `skb_clone`).
    pub(crate) fn skb_clone(&mut self, skb: &SkBuff) -> Box<SkBuff> {
        let id = skb.id;
        let mut clone = skb.clone_into(self.skbs.get());
        clone.id = id;
        clone
    }

    /// Frees a packet that has done its work (Linux `consume_skb`).
    pub(crate) fn consume_skb(&mut self, skb: Box<SkBuff>) {
        self.trace(Point::ConsumeSkb, skb.id, [0; 4]);
        self.free_skb(skb);
    }

    /// Drops a packet for a reason, counted and traced (Linux `kfree_skb_reason`).
    pub(crate) fn kfree_skb(&mut self, skb: Box<SkBuff>, reason: DropReason) {
        self.drops.inc(reason);
        self.trace(Point::KfreeSkb, skb.id, [reason as u64, 0, 0, 0]);
        self.free_skb(skb);
    }

    fn free_skb(&mut self, skb: Box<SkBuff>) {
        if skb.owner != 0 {
            self.sock_wfree(skb.owner, skb.truesize);
        }
        self.skbs.put(skb);
    }
}
