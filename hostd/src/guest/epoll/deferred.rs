//! Changes of sets that a program has not made a call for ([`ringlab_preload::layout`]).
//!
//! They are made before anybody can tell: with the process's next trapped call, when a thread begins to wait, when a process shows
//! up that may have inherited the set. A set whose changes may wait is *quiet*: only its maker has it, no thread waits for it, it
//! is in no other set. Those that are waited for in other ways than by `epoll_wait` never are again.

use super::super::calls::Finish;
use super::super::table::Caller;
use super::super::task::exists;
use super::super::window;
use super::super::{Guests, Pending};
use super::{Kind, Sets};
use crate::host::Shared;
use ringlab_kernel::syscall::{Call, EpollEvent, EpollOp, Ret};
use ringlab_kernel::wait::queue::PollEvents;
use ringlab_preload::layout::CLOSE;
use std::sync::atomic::{Ordering, fence};

/// A change that a call makes.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    number: u32,
    set: i32,
    fd: i32,
    /// Afterwards the descriptor is in the set, and what is asked of it next succeeds.
    is_in: Option<bool>,
}

impl Change {
    /// Descriptor `fd` in the set number `number`, which the program knows as `set`.
    pub fn new(number: u32, set: i32, fd: i32, op: &EpollOp) -> Self {
        let is_in = match op {
            EpollOp::Del => Some(false),
            // These cannot be changed.
            EpollOp::Add(event) | EpollOp::Mod(event) if event.events.contains(PollEvents::EXCLUSIVE) => None,
            EpollOp::Add(_) | EpollOp::Mod(_) => Some(true),
        };
        Self { number, set, fd, is_in }
    }
}

impl Sets {
    /// A process has begun that may have inherited what `parent` made, or anybody if that is not known.
    fn inherit(&mut self, parent: Option<i32>) {
        for set in self.list.values_mut().filter(|set| parent.is_none_or(|p| set.maker == p)) {
            set.quiet = false;
        }
    }

    fn is_quiet(&self, number: u32, tgid: i32) -> bool {
        let quiet = |set: &super::Set| set.quiet && !set.signals && set.maker == tgid && set.waiters.is_empty();
        number > self.passed && self.list.get(&number).is_some_and(quiet)
    }
}

impl Guests {
    /// Makes the changes that a process has appended.
    pub(in crate::guest) fn take_changes(&mut self, shared: &Shared, c: Caller) {
        let Some(root) = self.root else { return };
        let id = c.mem.window();
        while let Some([set, op, fd, events, low, high]) = window::next_change(id) {
            if op == CLOSE {
                let closer = self.thread_of(shared, c, fd as i32);
                self.note_closed(closer, set as i32);
                continue;
            }
            let event = EpollEvent { events: PollEvents::from_bits_truncate(events), data: u64::from(high) << 32 | u64::from(low) };
            let op = match op as i32 {
                libc::EPOLL_CTL_ADD => EpollOp::Add(event),
                libc::EPOLL_CTL_MOD => EpollOp::Mod(event),
                _ => EpollOp::Del,
            };
            let (Kind::Epoll(number), Kind::Modelled(handle)) = (self.kind(c, set as i32), self.kind(c, fd as i32)) else { continue };
            if let Some(call) = self.change(number, handle, fd as i32, op) {
                // It succeeds, or the program has written to the ring what it should not.
                shared.guest_syscall(root, call);
            }
        }
    }

    /// The thread of a process that says it closes a descriptor: its next call tells that it has.
    fn thread_of(&mut self, shared: &Shared, c: Caller, tid: i32) -> Caller {
        if tid == c.tid || tid <= 0 || !self.tasks.contains_key(&tid) && !exists(c.tgid, tid) {
            return c;
        }
        self.caller(shared, tid).filter(|t| t.tgid == c.tgid).unwrap_or(c)
    }

    /// The model's call for a change of a modelled socket in a set.
    pub(super) fn change(&mut self, number: u32, handle: i32, fd: i32, op: EpollOp) -> Option<Call> {
        let set = self.sets.list.get_mut(&number)?;
        set.once |= matches!(&op, EpollOp::Add(e) | EpollOp::Mod(e) if e.events.intersects(PollEvents::ET | PollEvents::ONESHOT));
        let outer = set.handle;
        self.sets.left.retain(|(of, _)| *of != number);
        Some(Call::EpollCtlKey(outer, handle, fd, op))
    }

    /// A change is about to be made by a call.
    pub(super) fn begin_change(&self, c: Caller, change: Change) {
        window::set_state(c.mem.window(), change.fd, 0);
    }

    /// It has been made, or has failed.
    pub(in crate::guest) fn end_change(&self, c: Caller, change: Change, ret: &Ret) {
        let known = |fd| self.procs.get(&c.tgid).and_then(|p| p.cache.get(fd));
        if matches!(ret, Ret::Value(_))
            && let Some(is_in) = change.is_in
            && known(change.set) == Some(Kind::Epoll(change.number))
            && matches!(known(change.fd), Some(Kind::Modelled(_)))
        {
            window::set_state(c.mem.window(), change.fd, ringlab_preload::layout::state(change.set, is_in));
            window::set_quiet(c.mem.window(), change.set, self.sets.is_quiet(change.number, c.tgid));
        }
    }

    /// A thread begins to wait for a set: from now on changes are calls.
    pub(in crate::guest) fn begin_wait(&mut self, shared: &Shared, c: Caller) {
        let Some(Pending { notif, finish: Finish::Epoll(_), .. }) = self.tasks.get(&c.tid).and_then(|t| t.pending.as_ref()) else { return };
        window::set_quiet(c.mem.window(), notif.args[0] as i32, false);
        // The program appends, and then looks whether the set is quiet still.
        fence(Ordering::SeqCst);
        self.take_changes(shared, c);
    }

    /// It does not wait any more.
    pub(super) fn end_wait(&self, c: Caller, set: i32, number: u32) {
        if self.procs.get(&c.tgid).and_then(|p| p.cache.get(set)) == Some(Kind::Epoll(number)) {
            window::set_quiet(c.mem.window(), set, self.sets.is_quiet(number, c.tgid));
        }
    }

    /// A process is seen for the first time. What others have appended concerns it.
    pub(in crate::guest) fn begin_process(&mut self, shared: &Shared, c: Caller) {
        if self.sets.list.is_empty() {
            return;
        }
        self.sets.inherit(parent(c.tid).filter(|p| self.procs.contains_key(p)));
        let first = |proc: &super::super::table::Proc| proc.threads.first().copied();
        let others: Vec<i32> = self.procs.values().filter(|p| p.cache.window() != Default::default()).filter_map(first).collect();
        for tid in others {
            if let Some(c) = self.tasks.get(&tid).map(|t| t.caller(tid)) {
                window::quiet_none(c.mem.window());
                fence(Ordering::SeqCst);
                self.take_changes(shared, c);
            }
        }
    }

    /// Others than its maker may see a set, or in another way than by `epoll_wait`.
    pub(in crate::guest) fn disturb(&mut self, shared: &Shared, c: Caller, number: u32) {
        if self.sets.list.get_mut(&number).is_some_and(|set| core::mem::take(&mut set.quiet)) {
            window::quiet_none(c.mem.window());
            fence(Ordering::SeqCst);
            self.take_changes(shared, c);
        }
    }
}

/// Whose child the process of a thread is.
fn parent(tid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("PPid:")).and_then(|t| t.trim().parse().ok())
}
