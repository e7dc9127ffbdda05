//! Softirqs: `NET_RX`, `NET_TX`, `TIMER`, `TASKLET` (of TCP's small queues), and the thread that gets what is left over.
//!
//! Deviation: Linux also ends a round of `NET_RX` after two jiffies (`netdev_budget_usecs`), and the rounds after
//! 2 ms. Within an event the model's time stands still, so packets and rounds are the only measure here.

use super::{Napi, Softirq};
use crate::Kernel;
use crate::trace::Point;

/// Rounds before the rest goes to `ksoftirqd` (Linux `MAX_SOFTIRQ_RESTART`).
const MAX_RESTART: u32 = 10;

impl Kernel {
    /// Marks softirqs of this CPU pending (Linux `raise_softirq_irqoff`).
    pub(crate) fn raise_softirq(&mut self, which: Softirq) {
        let pending = &mut self.cpu().pending;
        if pending.contains(which) {
            return;
        }
        *pending |= which;
        self.trace(Point::SoftirqRaise, 0, [u64::from(which.bits().trailing_zeros()), 0, 0, 0]);
    }

    /// Runs pending softirqs of the current CPU (Linux `do_softirq`). No socket is out. Does nothing
    /// inside a softirq. What is left after ten rounds, or when a task wants the CPU, goes to `ksoftirqd`.
    pub(crate) fn do_softirq(&mut self) {
        self.wfree_deferred();
        if self.cpu().in_softirq || self.cpu().pending.is_empty() {
            return;
        }
        for _ in 0..MAX_RESTART {
            self.softirq_round();
            if self.cpu().pending.is_empty() {
                return;
            }
            if self.need_resched(self.this_cpu) {
                break;
            }
        }
        if !core::mem::replace(&mut self.cpu().ksoftirqd, true) {
            let pending = self.cpu().pending.bits();
            self.trace(Point::KsoftirqdWake, 0, [u64::from(pending), 0, 0, 0]);
        }
    }

    /// One round over what is pending now, lowest number first (Linux `__do_softirq`).
    fn softirq_round(&mut self) {
        let pending = core::mem::take(&mut self.cpu().pending);
        self.cpu().in_softirq = true;
        for which in pending.iter() {
            let nr = u64::from(which.bits().trailing_zeros());
            self.trace(Point::SoftirqEntry, 0, [nr, 0, 0, 0]);
            match which {
                Softirq::TIMER => self.run_timer_softirq(),
                Softirq::NET_TX => self.net_tx_action(),
                Softirq::TASKLET => self.tcp_tasklet_func(),
                _ => self.net_rx_action(),
            }
            self.wfree_deferred();
            self.trace(Point::SoftirqExit, 0, [nr, 0, 0, 0]);
        }
        self.cpu().in_softirq = false;
    }

    /// Lets `ksoftirqd` of each CPU have one round of what was left to it by an earlier event.
    pub(crate) fn run_ksoftirqd(&mut self) {
        let interrupted = self.this_cpu;
        for cpu in 0..self.cpus.count() {
            if !self.cpus.get(cpu).ksoftirqd {
                continue;
            }
            self.this_cpu = cpu;
            let stat = self.cpu_stat();
            stat.ksoftirqd_runs += 1;
            // To the thread, and away from it.
            stat.context_switches += 2;
            self.wfree_deferred();
            self.softirq_round();
            if self.cpu().pending.is_empty() {
                self.cpu().ksoftirqd = false;
            }
        }
        self.this_cpu = interrupted;
    }

    /// Runs softirqs that system calls left pending on any CPU. True if there were some.
    pub(crate) fn run_pending_softirqs(&mut self) -> bool {
        let interrupted = self.this_cpu;
        let mut any = false;
        for cpu in 0..self.cpus.count() {
            let state = self.cpus.get(cpu);
            if state.pending.is_empty() || state.ksoftirqd {
                continue;
            }
            any = true;
            self.this_cpu = cpu;
            self.do_softirq();
        }
        self.this_cpu = interrupted;
        any
    }

    /// True if some CPU has softirqs pending.
    pub(crate) fn softirq_pending_anywhere(&self) -> bool {
        self.cpus.iter().any(|c| !c.pending.is_empty())
    }

    /// The timer interrupt of CPU 0, if a timer is due.
    pub(crate) fn run_local_timers(&mut self) {
        if self.timers.next().is_none_or(|at| at > self.now) {
            return;
        }
        let interrupted = core::mem::replace(&mut self.this_cpu, 0);
        self.cpu_stat().hardirqs += 1;
        self.raise_softirq(Softirq::TIMER);
        self.do_softirq();
        self.this_cpu = interrupted;
    }

    fn run_timer_softirq(&mut self) {
        self.cpu_stat().timer_softirqs += 1;
        while let Some(key) = self.timers.expire(self.now) {
            self.on_timer(key);
        }
    }

    /// Sends what `netif_schedule` left (Linux `net_tx_action`).
    fn net_tx_action(&mut self) {
        self.cpu_stat().net_tx_softirqs += 1;
        self.trace(Point::NetTxAction, 0, [0; 4]);
        for _ in 0..self.cpu().output_queue.len() {
            let Some((dev, queue)) = self.cpu().output_queue.pop_front() else { break };
            if let Some(q) = self.devs.queue_mut(dev, queue) {
                q.tx_scheduled = false;
                self.qdisc_run(dev, queue);
            }
        }
    }

    /// Polls whoever is on the poll list, within the budget (Linux `net_rx_action`).
    fn net_rx_action(&mut self) {
        self.cpu_stat().net_rx_softirqs += 1;
        let mut budget = self.sysctl.netdev_budget as u32;
        while let Some(napi) = self.cpu().poll_list.pop_front() {
            let weight = self.sysctl.dev_weight as u32;
            let (work, again) = match napi {
                Napi::Queue(dev, queue) => self.napi_poll(dev, queue, crate::dev::NAPI_POLL_WEIGHT),
                Napi::Backlog => self.process_backlog(weight),
            };
            let stat = self.cpu_stat();
            stat.napi_polls += 1;
            stat.napi_packets += u64::from(work);
            if again {
                self.cpu().poll_list.push_back(napi);
            }
            // A poll that took nothing but TX completions costs one, or the round might never end.
            budget = budget.saturating_sub(work.max(1));
            if budget == 0 {
                break;
            }
        }
        if !self.cpu().poll_list.is_empty() {
            self.cpu_stat().time_squeeze += 1;
            self.raise_softirq(Softirq::NET_RX);
        }
    }
}
