//! Wait queues (Linux `wait_queue_head_t`).

use crate::cpu::sched::TaskId;
use alloc::collections::VecDeque;

bitflags::bitflags! {
    /// `EPOLL*`/`POLL*` readiness (Linux `__poll_t`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
    pub struct PollEvents: u32 {
        /// Readable.
        const IN = 0x001;
        /// Urgent data.
        const PRI = 0x002;
        /// Writable.
        const OUT = 0x004;
        /// Error (always reported).
        const ERR = 0x008;
        /// Both directions closed (always reported).
        const HUP = 0x010;
        /// Bad descriptor (poll only).
        const NVAL = 0x020;
        /// Normal data.
        const RDNORM = 0x040;
        /// Priority band data.
        const RDBAND = 0x080;
        /// As OUT.
        const WRNORM = 0x100;
        /// Priority data may be written.
        const WRBAND = 0x200;
        /// Peer shut down writing.
        const RDHUP = 0x2000;
        /// One waiter of several (epoll).
        const EXCLUSIVE = 1 << 28;
        /// Keep the system awake: accepted, no meaning here.
        const WAKEUP = 1 << 29;
        /// Disarm after one event.
        const ONESHOT = 1 << 30;
        /// Edge-triggered.
        const ET = 1 << 31;
    }
}

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiter {
    /// A sleeping task (`autoremove_wake_function`).
    Task(TaskId),
    /// A task in `poll` or `select` (`pollwake`): stays on the queue until it has looked.
    Poll(TaskId),
    /// An epoll item (`ep_poll_callback`): epoll instance and item number in it.
    Epoll(u32, u64),
}

/// An entry of a wait queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitEntry {
    /// Who.
    pub waiter: Waiter,
    /// Only the first exclusive waiter that wakes is woken (`WQ_FLAG_EXCLUSIVE`); they stand at the end.
    pub exclusive: bool,
    /// Which events wake it.
    pub events: PollEvents,
}

impl WaitEntry {
    /// True if these events wake it; none at all stands for any.
    pub fn wants(&self, events: PollEvents) -> bool {
        events.is_empty() || self.events.intersects(events)
    }
}

/// A queue of waiters. Non-exclusive ones first, the latest in front, then the
/// exclusive ones, the latest at the end (`add_wait_queue`, `add_wait_queue_exclusive`).
#[derive(Debug, Default)]
pub struct WaitQueue {
    /// In the order in which they are woken.
    pub entries: VecDeque<WaitEntry>,
}

impl WaitQueue {
    /// Adds a waiter where its kind belongs.
    pub fn add(&mut self, entry: WaitEntry) {
        if entry.exclusive {
            self.entries.push_back(entry);
        } else {
            self.entries.push_front(entry);
        }
    }

    /// Removes a waiter's entry. True if there was one.
    pub fn remove(&mut self, waiter: Waiter) -> bool {
        let at = self.entries.iter().position(|e| e.waiter == waiter);
        if let Some(at) = at {
            self.entries.remove(at);
        }
        at.is_some()
    }
}

impl PollEvents {
    /// What `sock_def_readable` wakes for.
    pub const READABLE: PollEvents = PollEvents::IN.union(PollEvents::PRI).union(PollEvents::RDNORM).union(PollEvents::RDBAND);
    /// What `sock_def_write_space` wakes for.
    pub const WRITABLE: PollEvents = PollEvents::OUT.union(PollEvents::WRNORM).union(PollEvents::WRBAND);
    /// What is reported whether asked for or not.
    pub const ALWAYS: PollEvents = PollEvents::ERR.union(PollEvents::HUP);
}
