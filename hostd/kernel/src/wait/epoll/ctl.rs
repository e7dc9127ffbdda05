//! `epoll_ctl`: adding, changing and removing items.

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::{EpollEvent, EpollOp, Fd};
use crate::trace::Point;
use crate::vfs::{FileId, FileKind};
use crate::wait::queue::{PollEvents, WaitEntry, Waiter};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Instances that may stand above one another (`EP_MAX_NESTS`), beyond the first.
const MAX_NESTS: usize = 4;
/// What an exclusive item may ask for (`EPOLLEXCLUSIVE_OK_BITS`).
const EXCLUSIVE_OK: PollEvents = PollEvents::IN
    .union(PollEvents::OUT)
    .union(PollEvents::ALWAYS)
    .union(PollEvents::WAKEUP)
    .union(PollEvents::ET)
    .union(PollEvents::EXCLUSIVE);

impl Kernel {
    /// `epoll_ctl`. File and `key` make the entry: `key` is the descriptor as the program numbers it.
    pub(crate) fn sys_epoll_ctl(&mut self, task: TaskId, epfd: Fd, fd: Fd, key: Fd, op: EpollOp) -> Result<(), Errno> {
        let ep_file = self.fget(task, epfd)?;
        let file = self.fget(task, fd)?;
        let FileKind::Epoll(epoll) = self.vfs.file(ep_file).kind else { return Err(Errno::EINVAL) };
        if file == ep_file {
            return Err(Errno::EINVAL);
        }
        let inner = match self.vfs.file(file).kind {
            FileKind::Epoll(inner) => Some(inner),
            FileKind::Socket(_) => None,
        };
        if let EpollOp::Add(event) | EpollOp::Mod(event) = op
            && event.events.contains(PollEvents::EXCLUSIVE)
        {
            let add = matches!(op, EpollOp::Add(_));
            if !add || inner.is_some() || !EXCLUSIVE_OK.contains(event.events) {
                return Err(Errno::EINVAL);
            }
        }
        if let (EpollOp::Add(_), Some(inner)) = (op, inner)
            && !self.ep_may_nest(epoll, inner)
        {
            return Err(Errno::ELOOP);
        }
        let item = self.epolls.ep(epoll).items.find(file, key);
        match (op, item) {
            (EpollOp::Add(_), Some(_)) => return Err(Errno::EEXIST),
            (EpollOp::Add(event), None) => self.ep_insert(epoll, file, key, event),
            (_, None) => return Err(Errno::ENOENT),
            (EpollOp::Del, Some(item)) => self.ep_remove(epoll, item),
            (EpollOp::Mod(event), Some(item)) => {
                if self.epolls.ep(epoll).items.get(item).event.events.contains(PollEvents::EXCLUSIVE) {
                    return Err(Errno::EINVAL);
                }
                self.ep_modify(epoll, item, event);
            }
        }
        Ok(())
    }

    /// Linux `ep_insert`: registers once on the watched object; ready already: goes to the list at once.
    fn ep_insert(&mut self, epoll: u32, file: FileId, fd: Fd, mut event: EpollEvent) {
        event.events |= PollEvents::ALWAYS;
        let item = self.epolls.ep(epoll).items.insert(file, fd, event);
        self.trace(Point::EpInsert, 0, [epoll.into(), fd as u64, 0, 0]);
        let exclusive = event.events.contains(PollEvents::EXCLUSIVE);
        let entry = WaitEntry { waiter: Waiter::Epoll(epoll, item.into()), exclusive, events: PollEvents::all() };
        match self.vfs.file(file).kind {
            FileKind::Socket(id) => {
                if let Some(sk) = self.socks.get_mut(id) {
                    sk.wq.add(entry);
                }
            }
            FileKind::Epoll(inner) => self.epolls.ep(inner).poll_wait.add(entry),
        }
        self.vfs.file_mut(file).watchers.push((epoll, item));
        self.ep_if_ready(epoll, item);
    }

    /// Linux `ep_modify`.
    fn ep_modify(&mut self, epoll: u32, item: u32, mut event: EpollEvent) {
        event.events |= PollEvents::ALWAYS;
        self.epolls.ep(epoll).items.get_mut(item).event = event;
        self.ep_if_ready(epoll, item);
    }

    fn ep_if_ready(&mut self, epoll: u32, item: u32) {
        if self.ep_item_poll(epoll, item).is_empty() {
            return;
        }
        let ep = self.epolls.ep(epoll);
        if ep.items.link_tail(item) {
            if !ep.wq.entries.is_empty() {
                self.ep_wake(epoll);
            }
            self.ep_poll_safewake(epoll);
        }
    }

    /// Removes an item (`EPOLL_CTL_DEL`).
    fn ep_remove(&mut self, epoll: u32, item: u32) {
        let file = self.epolls.ep(epoll).items.get(item).file;
        let watchers = &mut self.vfs.file_mut(file).watchers;
        if let Some(at) = watchers.iter().position(|&w| w == (epoll, item)) {
            watchers.swap_remove(at);
        }
        self.ep_remove_item(epoll, item);
    }

    /// Removes an item of a file that knows it already: its last descriptor is closed.
    pub(crate) fn ep_remove_item(&mut self, epoll: u32, item: u32) {
        let removed = self.epolls.ep(epoll).items.remove(item);
        let waiter = Waiter::Epoll(epoll, item.into());
        match self.vfs.file(removed.file).kind {
            FileKind::Socket(id) => {
                if let Some(sk) = self.socks.get_mut(id) {
                    sk.wq.remove(waiter);
                }
            }
            FileKind::Epoll(inner) => {
                self.epolls.ep(inner).poll_wait.remove(waiter);
            }
        }
    }

    /// The last descriptor of an instance is closed: nothing is watched any more.
    pub(crate) fn ep_free(&mut self, epoll: u32) {
        for item in self.epolls.ep(epoll).items.numbers() {
            self.ep_remove(epoll, item);
        }
        self.epolls.slots[epoll as usize] = None;
        self.epolls.free.push(epoll);
    }

    /// True if `inner` may be watched by `outer`: no loop, and at most five instances in a row
    /// (Linux `ep_loop_check`).
    fn ep_may_nest(&mut self, outer: u32, inner: u32) -> bool {
        let Some(down) = self.ep_depth_down(outer, inner, 0, &mut BTreeMap::new()) else { return false };
        down + 1 + self.ep_depth_up(outer, 0) <= MAX_NESTS
    }

    /// Instances below `from`; `None` if `outer` is among them, or too many are. `known`: what was found
    /// on other ways, so that a mesh is not walked again and again.
    fn ep_depth_down(&mut self, outer: u32, from: u32, depth: usize, known: &mut BTreeMap<u32, usize>) -> Option<usize> {
        if from == outer || depth > MAX_NESTS {
            return None;
        }
        if let Some(&deepest) = known.get(&from) {
            return Some(deepest);
        }
        let mut deepest = 0;
        for item in self.epolls.ep(from).items.numbers() {
            let file = self.epolls.ep(from).items.get(item).file;
            if let FileKind::Epoll(next) = self.vfs.file(file).kind {
                deepest = deepest.max(1 + self.ep_depth_down(outer, next, depth + 1, known)?);
            }
        }
        known.insert(from, deepest);
        Some(deepest)
    }

    fn ep_depth_up(&mut self, from: u32, depth: usize) -> usize {
        if depth > MAX_NESTS {
            return depth;
        }
        let file = self.epolls.ep(from).file;
        let outer: Vec<u32> = self.vfs.file(file).watchers.iter().map(|w| w.0).collect();
        outer.into_iter().map(|ep| 1 + self.ep_depth_up(ep, depth + 1)).max().unwrap_or(0)
    }
}
