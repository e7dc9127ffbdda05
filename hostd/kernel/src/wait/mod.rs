//! Waiting: wait queues, `select`/`poll`, `epoll`.
//!
//! Whoever waits puts an entry on the wait queue of the object: a task that
//! sleeps in a call, a task in `poll`, or an epoll item. A change of the object
//! calls `wake_up` (through `sk_data_ready` and its kin), which walks the
//! queue: the non-exclusive entries all, the exclusive ones up to the first that
//! really woke somebody. A woken task does not run at once: it is put on its
//! CPU's run queue, and its call goes on from `schedule`.
//!
//! `poll` registers on every descriptor and walks all of them after each wake-up:
//! O(N) ([`select`]). An epoll instance is registered once per descriptor, its
//! callback collects what is ready, and `epoll_wait` looks at that only
//! ([`epoll`]).
pub mod epoll;
pub mod queue;
pub mod select;

pub use epoll::Epolls;

use crate::Kernel;
use crate::sock::{Proto, Sock};
use crate::syscall::signal::Band;
use crate::trace::Point;
use queue::{PollEvents, WaitQueue, Waiter};

impl Kernel {
    /// Wakes waiters (Linux `__wake_up_common`): every non-exclusive one, and the first exclusive one that wakes.
    pub(crate) fn wake_up(&mut self, wq: &mut WaitQueue, events: PollEvents) {
        self.wake_up_nr(wq, events, 1);
    }

    /// Wakes all waiters, exclusive or not (Linux `wake_up_interruptible_all`).
    pub(crate) fn wake_up_all(&mut self, wq: &mut WaitQueue, events: PollEvents) {
        self.wake_up_nr(wq, events, u32::MAX);
    }

    fn wake_up_nr(&mut self, wq: &mut WaitQueue, events: PollEvents, mut exclusive: u32) {
        let mut at = 0;
        while let Some(&entry) = wq.entries.get(at) {
            at += 1;
            let woke = match entry.waiter {
                Waiter::Task(task) => {
                    let woke = entry.wants(events) && self.try_to_wake_up(task);
                    if woke {
                        at -= 1;
                        wq.entries.remove(at);
                    }
                    woke
                }
                Waiter::Poll(task) => entry.wants(events) && self.try_to_wake_up(task),
                Waiter::Epoll(epoll, item) => self.ep_poll_callback(epoll, item as u32, events),
            };
            if woke && entry.exclusive {
                exclusive -= 1;
                if exclusive == 0 {
                    break;
                }
            }
        }
    }

    /// `sock_def_readable`.
    pub(crate) fn sk_data_ready(&mut self, sk: &mut Sock) {
        let waiters = sk.wq.entries.len() as u64;
        self.trace(Point::SkDataReady, 0, [sk.id.0.into(), waiters, 0, 0]);
        // A reader that sleeps in a call needs no signal (`SOCKWQ_ASYNC_WAITDATA`).
        let sleeps = sk.fasync && sk.wq.entries.iter().any(|e| matches!(e.waiter, Waiter::Task(_)));
        self.wake_up(&mut sk.wq, PollEvents::READABLE);
        if !sleeps {
            self.sk_wake_async(sk, Band::In);
        }
    }

    /// `sk_stream_write_space` (only for a writer that found no space) / `sock_def_write_space`.
    pub(crate) fn sk_write_space(&mut self, sk: &mut Sock) {
        let writable = match sk.proto {
            Proto::Tcp(_) => sk.nospace && sk.stream_is_writeable(),
            _ => sk.is_writeable(),
        };
        if writable {
            sk.nospace = false;
            self.wake_up(&mut sk.wq, PollEvents::WRITABLE);
            self.sk_wake_async(sk, Band::Out);
        }
    }

    /// `sock_def_error_report`.
    pub(crate) fn sk_error_report(&mut self, sk: &mut Sock) {
        self.wake_up(&mut sk.wq, PollEvents::ERR);
        self.sk_wake_async(sk, Band::Err);
    }

    /// `sock_def_wakeup`: state changes that all must see, whatever they wait for. No events at all stand for any.
    pub(crate) fn sk_state_change(&mut self, sk: &mut Sock) {
        self.wake_up_all(&mut sk.wq, PollEvents::empty());
    }
}

impl Sock {
    /// `sk_stream_is_writeable`: a third of the buffer is free.
    pub fn stream_is_writeable(&self) -> bool {
        self.sndbuf.saturating_sub(self.wmem_queued) >= self.wmem_queued / 2
    }

    /// `sock_writeable`: half of the buffer is free.
    pub fn is_writeable(&self) -> bool {
        self.wmem_alloc < self.sndbuf / 2
    }
}
