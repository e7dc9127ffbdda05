//! `epoll` (Linux `fs/eventpoll.c`).
//!
//! An instance holds its items by file and descriptor, and a *ready list*
//! (`rdllist`). `epoll_ctl(ADD)` puts one entry on the watched object's wait queue; when
//! the object changes, `ep_poll_callback` appends the item to the ready list and
//! wakes one task that waits in `epoll_wait`, which looks at the ready list only:
//! O(ready). An item that is reported and is level-triggered goes to the tail of
//! the list again, and is dropped from it when a later look finds it not ready; an
//! edge-triggered one waits for the next callback; a one-shot one is disarmed.
//!
//! An instance is a file itself and can be watched: its own `poll_wait` queue
//! carries the entries of outer instances. Loops and chains of more than five
//! instances are refused when an item is added, so callbacks always end.
//!
//! Items lie in a slab, linked by number: adding, removing and readiness cost
//! O(1) each, with a hundred thousand items as with ten.

mod ctl;
mod items;

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::exec::{Flow, Op};
use crate::syscall::{EpollEvent, Fd, Ret};
use crate::trace::Point;
use crate::vfs::{FileId, FileKind};
use crate::wait::queue::{PollEvents, WaitEntry, WaitQueue, Waiter};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;
use items::Items;

/// Bits of `events` that say how, not what (`EP_PRIVATE_BITS`).
const PRIVATE: PollEvents = PollEvents::WAKEUP.union(PollEvents::ONESHOT).union(PollEvents::ET).union(PollEvents::EXCLUSIVE);
/// Bits that decide whether an exclusive item takes a wake-up (`EPOLLINOUT_BITS`).
const INOUT: PollEvents = PollEvents::IN.union(PollEvents::OUT);

/// An epoll instance (Linux `struct eventpoll`).
#[derive(Debug)]
struct EventPoll {
    items: Items,
    /// Tasks in `epoll_wait`.
    wq: WaitQueue,
    /// Who watches the instance itself: `poll`, outer instances.
    poll_wait: WaitQueue,
    /// Its file.
    file: FileId,
}

/// All epoll instances.
#[derive(Debug, Default)]
pub struct Epolls {
    slots: Vec<Option<Box<EventPoll>>>,
    free: Vec<u32>,
}

impl Epolls {
    fn ep(&mut self, id: u32) -> &mut EventPoll {
        self.slots[id as usize].as_mut().expect("an open instance exists")
    }

    /// The queue on which the instance's own watchers stand.
    pub(crate) fn poll_queue(&mut self, id: u32) -> &mut WaitQueue {
        &mut self.ep(id).poll_wait
    }

    /// Items of an instance.
    #[cfg(test)]
    fn len(&mut self, id: u32) -> usize {
        self.ep(id).items.len()
    }
}

impl Kernel {
    /// `epoll_create1`.
    pub(crate) fn sys_epoll_create(&mut self, task: TaskId, flags: i32) -> Result<Fd, Errno> {
        if flags & !crate::vfs::O_CLOEXEC != 0 {
            return Err(Errno::EINVAL);
        }
        self.fd_table(task).unused(0)?;
        let index = self.epolls.free.pop().unwrap_or_else(|| {
            self.epolls.slots.push(None);
            self.epolls.slots.len() as u32 - 1
        });
        let file = self.vfs.open(FileKind::Epoll(index), 0);
        let ep = EventPoll { items: Items::default(), wq: WaitQueue::default(), poll_wait: WaitQueue::default(), file };
        self.epolls.slots[index as usize] = Some(Box::new(ep));
        self.fd_table(task).install(file, 0)
    }

    /// A watched object changed; also says whether an exclusive entry took the wake-up (Linux `ep_poll_callback`).
    pub(crate) fn ep_poll_callback(&mut self, epoll: u32, item: u32, events: PollEvents) -> bool {
        let ep = self.epolls.ep(epoll);
        let asked = ep.items.get(item).event.events;
        let exclusive = asked.contains(PollEvents::EXCLUSIVE);
        // Disarmed after one shot, or not what the item is about.
        if (asked - PRIVATE).is_empty() || !events.is_empty() && !events.intersects(asked) {
            return !exclusive;
        }
        let fd = ep.items.get(item).fd;
        ep.items.link_tail(item);
        let mut took = !exclusive;
        let waiting = !ep.wq.entries.is_empty();
        if waiting && exclusive {
            took = (events & INOUT).is_empty() || (events & INOUT) != INOUT && asked.contains(events & INOUT);
        }
        self.trace(Point::EpPollCallback, 0, [epoll.into(), fd as u64, events.bits().into(), 0]);
        if waiting {
            self.ep_wake(epoll);
        }
        self.ep_poll_safewake(epoll);
        took
    }

    /// Wakes one task in `epoll_wait`.
    fn ep_wake(&mut self, epoll: u32) {
        let mut wq = core::mem::take(&mut self.epolls.ep(epoll).wq);
        self.wake_up(&mut wq, PollEvents::empty());
        self.epolls.ep(epoll).wq = wq;
    }

    /// A task that was woken does not look: another one shall.
    pub(crate) fn ep_pass_on(&mut self, epoll: u32) {
        let ep = self.epolls.ep(epoll);
        if ep.items.ready() > 0 && !ep.wq.entries.is_empty() {
            self.ep_wake(epoll);
        }
    }

    /// Tells who watches the instance itself (Linux `ep_poll_safewake`).
    fn ep_poll_safewake(&mut self, epoll: u32) {
        if self.epolls.ep(epoll).poll_wait.entries.is_empty() {
            return;
        }
        let mut wq = core::mem::take(&mut self.epolls.ep(epoll).poll_wait);
        self.wake_up(&mut wq, PollEvents::IN | PollEvents::RDNORM);
        self.epolls.ep(epoll).poll_wait = wq;
    }

    /// `epoll_wait`.
    pub(crate) fn sys_epoll_wait(&mut self, task: TaskId, fd: Fd, max: usize, timeout: Option<Duration>) -> Flow {
        let file = match self.fget(task, fd) {
            Ok(file) => file,
            Err(e) => return Flow::Done(Ret::Err(e)),
        };
        if max == 0 || max > i32::MAX as usize / 12 || !matches!(self.vfs.file(file).kind, FileKind::Epoll(_)) {
            return Flow::Done(Ret::Err(Errno::EINVAL));
        }
        self.ep_poll(task, file, max, timeout)
    }

    /// Reports what is ready, or sleeps. Also what a woken task does.
    pub(crate) fn ep_poll(&mut self, task: TaskId, file: FileId, max: usize, timeout: Option<Duration>) -> Flow {
        let FileKind::Epoll(epoll) = self.vfs.file(file).kind else { unreachable!("checked when the call began") };
        let events = self.ep_send_events(epoll, max);
        let t = self.tasks.get(task).expect("the calling task exists");
        if !events.is_empty() || timeout == Some(Duration::ZERO) || t.timed_out {
            return Flow::Done(Ret::Epoll(events));
        }
        if t.signalled {
            return Flow::Done(Ret::Err(Errno::EINTR));
        }
        let entry = WaitEntry { waiter: Waiter::Task(task), exclusive: true, events: PollEvents::all() };
        self.epolls.ep(epoll).wq.add(entry);
        self.trace(Point::PrepareToWait, 0, [task.0.into(), 0, 0, 0]);
        self.arm_deadline(task, timeout);
        self.set_interruptible(task);
        Flow::Block(Op::EpollWait(file, max, timeout))
    }

    /// Takes a task off an instance's queue if it still stands there.
    pub(crate) fn ep_finish_wait(&mut self, task: TaskId, file: FileId) {
        if let FileKind::Epoll(epoll) = self.vfs.file(file).kind {
            self.epolls.ep(epoll).wq.remove(Waiter::Task(task));
        }
    }

    /// Walks the ready list once (Linux `ep_send_events`).
    fn ep_send_events(&mut self, epoll: u32, max: usize) -> Vec<EpollEvent> {
        let (mut out, mut requeued) = (Vec::new(), 0);
        let ready = self.epolls.ep(epoll).items.ready();
        for _ in 0..ready {
            if out.len() == max {
                break;
            }
            let Some(item) = self.epolls.ep(epoll).items.pop_ready() else { break };
            let found = self.ep_item_poll(epoll, item);
            if found.is_empty() {
                continue;
            }
            let items = &mut self.epolls.ep(epoll).items;
            let event = &mut items.get_mut(item).event;
            out.push(EpollEvent { events: found, data: event.data });
            if event.events.contains(PollEvents::ONESHOT) {
                event.events &= PRIVATE;
            } else if !event.events.contains(PollEvents::ET) {
                // Level-triggered: to the tail, so that the others have their turn; the next look decides.
                items.link_tail(item);
                requeued += 1;
            }
        }
        if !out.is_empty() {
            self.trace(Point::EpSendEvents, 0, [epoll.into(), out.len() as u64, requeued, 0]);
        }
        let ep = self.epolls.ep(epoll);
        if ep.items.ready() > 0 && !ep.wq.entries.is_empty() {
            self.ep_wake(epoll);
        }
        out
    }

    /// What of the item's events is so at the moment (Linux `ep_item_poll`).
    fn ep_item_poll(&mut self, epoll: u32, item: u32) -> PollEvents {
        let item = self.epolls.ep(epoll).items.get(item);
        let (file, asked) = (item.file, item.event.events);
        self.file_poll(file) & (asked - PRIVATE)
    }

    /// Readiness of an instance as a file: readable if an item is ready (Linux `ep_eventpoll_poll`).
    pub(crate) fn ep_eventpoll_poll(&mut self, epoll: u32) -> PollEvents {
        while let Some(item) = self.epolls.ep(epoll).items.first_ready() {
            if !self.ep_item_poll(epoll, item).is_empty() {
                return PollEvents::IN | PollEvents::RDNORM;
            }
            self.epolls.ep(epoll).items.unlink(item);
        }
        PollEvents::empty()
    }
}

#[cfg(test)]
mod tests;
