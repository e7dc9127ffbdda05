//! Modelled CPUs: hard interrupts, softirqs, tasks, accounting.
//!
//! One thread runs the whole kernel; a CPU is the state that Linux keeps per CPU
//! (`softnet_data`, pending softirqs, `ksoftirqd`) and its counters. Interrupt
//! vectors and tasks have a CPU, and `Kernel::this_cpu` says on whose behalf the
//! thread works at the moment.
//!
//! ```text
//! do_irq ─ mask, napi_schedule, raise NET_RX ─▶ irq_exit ─ __do_softirq ─▶ ksoftirqd
//!          (hardirq.rs)                         (softirq.rs: 10 rounds, or until a task wants to run)
//! ```
//!
//! Time stands still within one event, so that Linux's limit of two jiffies a
//! round never ends one here; the limits of packets and rounds do.
pub mod account;
mod hardirq;
pub mod sched;
mod softirq;

use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::skb::SkBuff;
use account::CpuStat;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

bitflags::bitflags! {
    /// Pending softirqs, Linux numbering as bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(crate) struct Softirq: u8 {
        /// `TIMER_SOFTIRQ`.
        const TIMER = 1 << 1;
        /// `NET_TX_SOFTIRQ`.
        const NET_TX = 1 << 2;
        /// `NET_RX_SOFTIRQ`.
        const NET_RX = 1 << 3;
        /// `TASKLET_SOFTIRQ`.
        const TASKLET = 1 << 6;
    }
}

/// Who is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Napi {
    /// A queue pair of a device.
    Queue(IfIndex, u16),
    /// The CPU's own queue of looped-back packets (`process_backlog`).
    Backlog,
}

/// What Linux keeps per CPU (`softnet_data` and the softirq state).
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) pending: Softirq,
    /// `softnet_data.poll_list`.
    pub(crate) poll_list: VecDeque<Napi>,
    /// `softnet_data.output_queue`: TX queues for `net_tx_action`.
    pub(crate) output_queue: VecDeque<(IfIndex, u16)>,
    /// `softnet_data.input_pkt_queue`.
    pub(crate) backlog: VecDeque<Box<SkBuff>>,
    /// The backlog is on the poll list.
    pub(crate) backlog_scheduled: bool,
    /// `ksoftirqd` is runnable: what is pending is left to it.
    pub(crate) ksoftirqd: bool,
    /// A softirq is running: they do not nest.
    pub(crate) in_softirq: bool,
    /// Scratch list of `qdisc_run`: segments on their way to the driver.
    pub(crate) xmit_list: VecDeque<Box<SkBuff>>,
    pub(crate) stat: CpuStat,
}

/// The CPUs of a host.
#[derive(Debug, Default)]
pub struct Cpus {
    list: Vec<Cpu>,
}

impl Cpus {
    pub(crate) fn new(count: u16) -> Self {
        Self { list: (0..count).map(|_| Cpu::default()).collect() }
    }

    /// How many.
    pub(crate) fn count(&self) -> u16 {
        self.list.len() as u16
    }

    pub(crate) fn get(&self, cpu: u16) -> &Cpu {
        &self.list[usize::from(cpu)]
    }

    pub(crate) fn get_mut(&mut self, cpu: u16) -> &mut Cpu {
        &mut self.list[usize::from(cpu)]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cpu> {
        self.list.iter()
    }
}

impl Kernel {
    /// The state of the CPU that runs now.
    #[inline]
    pub(crate) fn cpu(&mut self) -> &mut Cpu {
        self.cpus.get_mut(self.this_cpu)
    }

    /// The counters of the CPU that runs now.
    #[inline]
    pub(crate) fn cpu_stat(&mut self) -> &mut CpuStat {
        &mut self.cpus.get_mut(self.this_cpu).stat
    }
}
