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
pub mod hash;
pub mod ip;
pub mod packet;
pub mod raw;
pub mod skb;
pub mod sock;
pub mod sock_opts;
pub mod stat;
pub mod syscall;
pub mod sysctl;
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
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use cpu::sched::TaskId;
use dev::net_device::{DeviceConfig, IfIndex};
use ringlab_counters::{CopyCounters, CopyKind, DropCounters, DropReason, Mib, MibCounters};
use ringlab_ring::pool::Pool;
use skb::{SkBuff, SkbCache};
use syscall::{Call, Ret};
use time::Instant;
use timer::TimerKey;
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
    /// Nobody waits for a task's blocked call any more: it ends with what it has done so far, or `EINTR`,
    /// takes nothing more, and passes on a wake-up meant for one task only.
    Cancel(TaskId),
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
    /// A signal is due: `SIGPIPE` for a task (just before the return of its call), `SIGIO` or `SIGURG` for a
    /// file's owner. Tasks that know no signals ignore it.
    Signal(syscall::signal::Signal),
}

/// How to make a host.
pub struct Config {
    /// Every random choice derives from it.
    pub seed: u64,
    /// Modelled CPUs, 1 to 64; anything else is brought into that range.
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
    pub(crate) packet: packet::PacketTable,
    pub(crate) igmp: alloc::collections::BTreeMap<u32, ip::igmp::IgmpDev>,
    pub(crate) tasks: cpu::sched::Tasks,
    pub(crate) vfs: vfs::Vfs,
    pub(crate) netlink: vfs::netlink::NetlinkTable,
    pub(crate) epolls: wait::Epolls,
    pub(crate) sysctl: sysctl::Sysctls,
    pub(crate) devconf: ip::devconf::DevConfs,
    pub(crate) mib: MibCounters,
    pub(crate) drops: DropCounters,
    pub(crate) copies: CopyCounters,
    pub(crate) tracer: Trace,
    pub(crate) effects: VecDeque<Effect>,
    /// What the wall clock is ahead of `now`, nanoseconds.
    pub(crate) realtime_offset: u64,
    /// Charges to give back to sockets that were out of the table when their packet was freed.
    pub(crate) wfree_later: Vec<(u32, u32)>,
}

/// Rounds of softirqs and tasks in one [`Kernel::handle`] before the rest waits for the next.
const MAX_ROUNDS: usize = 16;

impl Kernel {
    /// A host that has just been powered on: `lo` is up, nothing else is there.
    pub fn new(mut config: Config, mem: Box<dyn UserMemory>) -> Self {
        config.cpus = config.cpus.clamp(1, 64);
        let mut rng = rand_pcg::Pcg32::new(config.seed, 0x5851_f42d_4c95_7f2d);
        let hash = hash::KeyedState::new(&mut rng);
        let icmp = ip::IcmpState::new(hash.clone(), &mut rng);
        let mut kernel = Self {
            now: Instant::default(),
            rng,
            mem,
            skbs: SkbCache::default(),
            this_cpu: 0,
            cpus: cpu::Cpus::new(config.cpus),
            timers: timer::Timers::default(),
            devs: dev::Devices::default(),
            neigh: ether::NeighTable::new(hash.clone()),
            fib: ip::Fib::new(hash.clone()),
            frags: ip::Reassembly::new(hash.clone()),
            icmp,
            socks: sock::Socks::default(),
            tcp: tcp::TcpTable::new(hash.clone()),
            udp: udp::UdpTable::new(hash),
            raw: raw::RawTable::default(),
            packet: packet::PacketTable::default(),
            igmp: alloc::collections::BTreeMap::new(),
            tasks: cpu::sched::Tasks::default(),
            vfs: vfs::Vfs::default(),
            netlink: vfs::netlink::NetlinkTable::default(),
            epolls: wait::Epolls::default(),
            sysctl: sysctl::Sysctls::default(),
            devconf: ip::devconf::DevConfs::default(),
            mib: MibCounters::default(),
            drops: DropCounters::default(),
            copies: CopyCounters::default(),
            tracer: Trace::default(),
            effects: VecDeque::new(),
            realtime_offset: 0,
            wfree_later: Vec::new(),
            config,
        };
        kernel.set_ip_forward(kernel.config.ip_forward);
        kernel.loopback_init();
        kernel
    }

    /// Adds an interface, brings it up, and adds its connected routes.
    pub fn add_device(&mut self, device: DeviceConfig) -> IfIndex {
        self.register_netdev(device)
    }

    /// Adds a route: `via` unspecified means that the destination is on the link of `dev`.
    ///
    /// # Errors
    /// `EINVAL` for a prefix with host bits set or longer than 32, `ENODEV` for an interface that does
    /// not exist, `ENETUNREACH` if the gateway is not on a link, `EEXIST` for a route of the same prefix and metric.
    pub fn add_route(&mut self, prefix: (Ipv4Addr, u8), via: Ipv4Addr, dev: Option<IfIndex>, metric: u32) -> Result<(), errno::Errno> {
        self.fib_add_route(prefix, via, dev.map_or(0, |d| d.0), metric)
    }

    /// Removes a route; `dev` `None`: whatever its interface.
    ///
    /// # Errors
    /// `ESRCH` if there is no such route.
    pub fn del_route(&mut self, prefix: (Ipv4Addr, u8), via: Ipv4Addr, dev: Option<IfIndex>, metric: u32) -> Result<(), errno::Errno> {
        self.fib_del_route(prefix, via, dev.map_or(0, |d| d.0), metric)
    }

    /// Says what programs take for the time of day: nanoseconds from 1970 at instant 0 of the host's clock.
    /// Timestamps of packets are shown on that clock; nothing else depends on it.
    pub fn set_realtime_offset(&mut self, ns: u64) {
        self.realtime_offset = ns;
    }

    /// What [`Self::set_realtime_offset`] set.
    pub fn realtime_offset(&self) -> u64 {
        self.realtime_offset
    }

    /// Feeds one input; `now` never decreases. Then drain [`Self::poll_effect`].
    pub fn handle(&mut self, now: Instant, event: Event) {
        self.now = self.now.max(now);
        self.run_ksoftirqd();
        match event {
            Event::Interrupt(dev, queue) => self.do_irq(dev, queue),
            Event::Carrier(dev, on) => self.netif_carrier(dev, on),
            Event::Syscall(task, call) => self.do_syscall(task, call),
            Event::Signal(task) => self.signal_task(task),
            Event::Cancel(task) => self.cancel_call(task),
            Event::Timer => {}
        }
        self.run_local_timers();
        for _ in 0..MAX_ROUNDS {
            self.netlink_deliver(None);
            self.schedule();
            if !self.run_pending_softirqs() {
                break;
            }
        }
        self.wfree_deferred();
        self.ring_doorbells();
    }

    /// Takes the oldest effect.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to send [`Event::Timer`]; `None` if idle. Work left over is due at once.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        if self.softirq_pending_anywhere() || self.tasks_runnable() {
            return Some(self.now);
        }
        self.timers.next()
    }

    /// Records events at `points` (all, if there are none), keeping the last `capacity`.
    pub fn trace_enable(&mut self, points: &[Point], capacity: usize) {
        self.tracer.enable(points, capacity);
    }

    /// Stops recording and forgets what was not taken.
    pub fn trace_disable(&mut self) {
        self.tracer.disable();
    }

    /// Takes the oldest recorded event.
    pub fn trace_pop(&mut self) -> Option<Record> {
        self.tracer.pop()
    }

    /// Events lost since the last call because nobody took them in time.
    pub fn trace_lost(&mut self) -> u64 {
        self.tracer.take_lost()
    }

    /// Hands a timer that is due to whoever set it.
    fn on_timer(&mut self, key: TimerKey) {
        match key {
            TimerKey::TcpWrite(_) | TimerKey::TcpDelack(_) | TimerKey::TcpKeepalive(_) | TimerKey::TcpPace(_) | TimerKey::TcpMini(_) => {
                self.tcp_timer(key);
            }
            TimerKey::Neigh(n) => self.neigh_timer(n),
            TimerKey::NeighGc => self.neigh_periodic_work(),
            TimerKey::Frag(queue) => self.ip_expire(queue),
            TimerKey::Igmp(dev) => self.igmp_timer(dev),
            TimerKey::PacketRing(id) => self.packet_ring_timer(id),
            TimerKey::Task(task) => self.task_timeout(task),
        }
    }

    /// Records a trace event if somebody listens to it.
    #[inline]
    pub(crate) fn trace(&mut self, point: Point, skb: u64, args: [u64; 4]) {
        if self.tracer.enabled(point) {
            self.tracer.push(Record { time: self.now, cpu: self.this_cpu, point, skb, args });
        }
    }

    /// Counts one of `/proc/net/snmp` or `/proc/net/netstat`.
    #[inline]
    pub(crate) fn inc(&mut self, mib: Mib) {
        self.mib.inc(mib);
    }

    /// Counts a copy of frame bytes that is neither the sender's nor the receiver's.
    pub(crate) fn count_copy(&mut self, octets: u32) {
        self.copies.inc(CopyKind::Other);
        self.copies.add(CopyKind::OtherBytes, u64::from(octets));
    }

    /// An empty packet (Linux `alloc_skb`, without the data).
    pub(crate) fn alloc_skb(&mut self) -> Box<SkBuff> {
        self.skbs.get()
    }

    /// A packet that shares the data of `skb` (Linux `skb_clone`).
    pub(crate) fn skb_clone(&mut self, skb: &SkBuff) -> Box<SkBuff> {
        skb.clone_into(self.skbs.get())
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

    fn free_skb(&mut self, mut skb: Box<SkBuff>) {
        self.skb_orphan(&mut skb);
        self.skbs.put(skb);
    }

    /// Gives the packet's charge back to the socket that paid (Linux `skb_orphan`). A socket that is
    /// out of the table, as the sender's is all the way to the driver, gets it when no socket is out.
    pub(crate) fn skb_orphan(&mut self, skb: &mut SkBuff) {
        let owner = core::mem::take(&mut skb.owner);
        if owner == 0 {
            return;
        }
        if self.socks.get(sock::SockId(owner)).is_some() {
            self.sock_wfree(owner, skb.truesize);
        } else {
            self.wfree_later.push((owner, skb.truesize));
        }
    }

    /// Gives back the charges that had to wait. No socket is out.
    pub(crate) fn wfree_deferred(&mut self) {
        while let Some((owner, truesize)) = self.wfree_later.pop() {
            self.sock_wfree(owner, truesize);
        }
    }
}
