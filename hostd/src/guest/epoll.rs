//! Epoll sets with both kinds of descriptor.
//!
//! A program's epoll descriptor is a real instance that hostd made and keeps: the program adds real
//! descriptors to it natively. Modelled sockets are in the model's instance of the
//! same set. `epoll_wait` asks both, taking turns in who comes first; it waits in the model, and hostd's own
//! epoll watches the real instance meanwhile.
//!
//! Sets with a signalfd are waited for by the machine's kernel ([`super::bell`]).
//!
//! All instances look alike in `/proc`; so each has a *canary*, an entry that is never ready,
//! whose data says which one it is.

mod deferred;
mod sweep;

pub use deferred::Change;

use super::Guests;
use super::Map;
use super::bell::Bell;
use super::calls::{Finish, Outcome};
use super::decode::msg::access_ok;
use super::decode::{millis, timespec, u32_at, u64_at};
use super::fds::{Kind, Link, look};
use super::notify::{Listener, Notif};
use super::reply::Reply;
use super::table::Caller;
use super::token::{self, Token};
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, EpollEvent, EpollOp, Ret};
use ringlab_kernel::wait::queue::PollEvents;
use rustix::event::{EventfdFlags, Timespec, epoll as ep, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

/// Octets of `struct epoll_event`.
const EVENT: usize = 12;
/// Most events of one call: more are left for the next.
const MOST: usize = 4096;

struct Set {
    real: OwnedFd,
    /// Data of its canary. A program that could guess it would pass another instance off as this one.
    canary: u64,
    /// In the model.
    handle: i32,
    /// There are, or were, real descriptors in it.
    has_real: bool,
    /// hostd's epoll knows the instance.
    watched: bool,
    /// The watch is armed and has not fired: nothing was ready natively when hostd looked last.
    armed: bool,
    /// Whose events come first next time.
    real_first: bool,
    /// Threads that wait; those that do not any more are skipped.
    waiters: Vec<i32>,
    /// There is, or was, a signalfd in it.
    signals: bool,
    /// There is, or was, a socket in it whose events the model tells once: what was taken must not be lost.
    once: bool,
    /// As far as is known only its maker has it, and waits for it by `epoll_wait` ([`deferred`]).
    quiet: bool,
    /// The process that made it.
    maker: i32,
    /// A process and its descriptor that was last seen to be it.
    place: (i32, i32),
}

/// All sets.
#[derive(Default)]
pub struct Sets {
    list: Map<u32, Set>,
    last: u32,
    by_canary: Map<u64, u32>,
    canary: Option<OwnedFd>,
    suspect: bool,
    /// Events that were taken from the model for somebody who did not wait any more, by set. They hold until something is closed or asked
    /// for anew.
    left: Vec<(u32, EpollEvent)>,
    /// Sets up to this number may have been passed over `AF_UNIX`: whoever had them then, anybody may have them now.
    passed: u32,
}

/// What remains to be done after `epoll_wait`.
#[derive(Debug, Clone)]
pub struct EpollFinish {
    set: u32,
    at: u64,
    max: usize,
}

impl Sets {
    /// The set behind a descriptor of a thread.
    pub fn identify(&self, tid: i32, fd: i32) -> Option<u32> {
        let info = std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).ok()?;
        let data = info.lines().filter_map(|l| l.split("data:").nth(1)?.split_whitespace().next());
        data.filter_map(|d| u64::from_str_radix(d, 16).ok()).find_map(|d| self.by_canary.get(&d).copied())
    }

    /// A descriptor of some set is being closed.
    pub fn suspect(&mut self) {
        self.suspect = !self.list.is_empty();
    }

    fn make(&mut self, handle: i32, maker: i32) -> rustix::io::Result<u32> {
        let real = ep::create(ep::CreateFlags::CLOEXEC)?;
        if self.canary.is_none() {
            self.canary = Some(eventfd(0, EventfdFlags::CLOEXEC)?);
        }
        self.last = self.last.wrapping_add(1);
        let number = self.last;
        let data = RandomState::new().hash_one(number);
        if let Some(canary) = &self.canary {
            ep::add(&real, canary, ep::EventData::new_u64(data), ep::EventFlags::empty())?;
        }
        self.by_canary.insert(data, number);
        let set = Set {
            real,
            canary: data,
            handle,
            has_real: false,
            watched: false,
            armed: false,
            real_first: false,
            waiters: Vec::new(),
            signals: false,
            once: false,
            quiet: true,
            maker,
            place: (maker, -1),
        };
        self.list.insert(number, set);
        Ok(number)
    }

    /// A further descriptor of a set's real instance.
    pub fn copy(&self, set: u32) -> Option<OwnedFd> {
        self.list.get(&set)?.real.try_clone().ok()
    }

    /// A thread has made another call: if it has not got what was put into a set for it, the next one gets that.
    pub fn end_bell(&mut self, bell: Bell) {
        if self.list.get(&bell.set).is_some_and(|set| set.once && bell.is_left(&set.real)) {
            self.left.push((bell.set, bell.event));
        }
    }

    /// Keeps what the model returned to somebody who does not wait any more.
    pub fn leave(&mut self, set: u32, ret: Option<Ret>) {
        if let Some(Ret::Epoll(events)) = ret
            && self.list.get(&set).is_some_and(|set| set.once)
        {
            self.left.extend(events.into_iter().map(|event| (set, event)));
        }
    }

    /// Sockets may be gone, or wanted for something else, that events are left of.
    pub fn forget_left(&mut self) {
        self.left.clear();
    }

    fn take_left(&mut self, set: u32) -> Option<EpollEvent> {
        let at = self.left.iter().position(|(of, _)| *of == set)?;
        Some(self.left.remove(at).1)
    }

    /// The model's file of a set.
    pub fn handle(&self, set: u32) -> Option<i32> {
        self.list.get(&set).map(|s| s.handle)
    }
}

impl Set {
    /// What is ready natively.
    fn take_real(&self, max: usize) -> Vec<EpollEvent> {
        let mut events = Vec::with_capacity(max.min(MOST));
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if max == 0 || ep::wait(&self.real, rustix::buffer::spare_capacity(&mut events), Some(&now)).is_err() {
            return Vec::new();
        }
        let convert = |e: &ep::Event| {
            let (flags, data) = (e.flags, e.data);
            EpollEvent { events: PollEvents::from_bits_retain(flags.bits()), data: data.u64() }
        };
        events.iter().take(max).map(convert).collect()
    }

    /// From now on hostd does not look at the real instance: an entry that is not ready for whoever looks is forgotten.
    fn leave_to_the_machine(&mut self, epoll: &OwnedFd) {
        self.signals = true;
        if core::mem::take(&mut self.watched) {
            let _ = ep::delete(epoll, &self.real);
        }
        self.armed = false;
    }

    /// Lets hostd's epoll say, once, when something is ready natively.
    fn watch(&mut self, epoll: &OwnedFd, number: u32) {
        let flags = ep::EventFlags::IN | ep::EventFlags::ONESHOT;
        let data = token::data(Token::Epoll(number));
        let done = if self.watched { ep::modify(epoll, &self.real, data, flags) } else { ep::add(epoll, &self.real, data, flags) };
        self.watched |= done.is_ok();
        self.armed = done.is_ok();
    }
}

impl Guests {
    pub(super) fn sys_epoll_create(
        &mut self,
        shared: &Shared,
        c: Caller,
        listener: &Rc<Listener>,
        n: &Notif,
        flags: i32,
    ) -> Result<Outcome, Errno> {
        if flags & !libc::EPOLL_CLOEXEC != 0 {
            return Err(Errno::EINVAL);
        }
        let handle = match shared.guest_syscall(c.task, Call::EpollCreate(0)) {
            Some(Ret::Value(handle)) => handle as i32,
            Some(Ret::Err(errno)) => return Err(errno),
            _ => return Err(Errno::ENOMEM),
        };
        let Ok(number) = self.sets.make(handle, c.tgid) else {
            self.close_handle(shared, handle);
            return Err(Errno::ENFILE);
        };
        let Some(set) = self.sets.list.get_mut(&number) else { return Err(Errno::ENFILE) };
        match listener.inject(n.id, set.real.as_fd(), flags != 0) {
            Ok(fd) => {
                set.place.1 = fd;
                if let Some(proc) = self.procs.get_mut(&c.tgid) {
                    proc.cache.installed(fd, Kind::Epoll(number));
                }
                Ok(Outcome::Taken)
            }
            Err(errno) => {
                self.drop_set(shared, number);
                Ok(self.not_injected(shared, c, n, errno))
            }
        }
    }

    pub(super) fn sys_epoll_ctl(&mut self, shared: &Shared, c: Caller, a: &[u64; 6]) -> Result<Outcome, Errno> {
        let (op, fd) = (a[1] as i32, a[2] as i32);
        let Kind::Epoll(number) = self.kind(c, a[0] as i32) else { return Ok(Outcome::Continue) };
        let kind = self.kind(c, fd);
        let inner = match kind {
            Kind::Epoll(inner) => {
                self.disturb(shared, c, inner);
                self.sets.handle(inner)
            }
            _ => None,
        };
        let Some(set) = self.sets.list.get_mut(&number) else { return Ok(Outcome::Continue) };
        let outer = set.handle;
        match kind {
            Kind::None => Ok(Outcome::Continue),
            Kind::Modelled(handle) => {
                let op = read_op(c, op, a[3])?;
                let change = Change::new(number, a[0] as i32, fd, &op);
                self.begin_change(c, change);
                let call = self.change(number, handle, fd, op).ok_or(Errno::EBADF)?;
                Ok(Outcome::Call(call, Finish::Change(change)))
            }
            Kind::Real | Kind::Foreign | Kind::Epoll(_) | Kind::File(_) => {
                if op != libc::EPOLL_CTL_DEL && !set.has_real {
                    set.has_real = true;
                    // Whoever waits already waits for this one too.
                    if !set.waiters.is_empty() && !set.signals {
                        set.watch(&self.epoll, number);
                    }
                }
                if !set.signals && op == libc::EPOLL_CTL_ADD && look(c.tid, fd) == Link::Signals {
                    set.leave_to_the_machine(&self.epoll);
                }
                // The inner set has two halves, and so has the outer: each half watches its kind.
                if let Some(inner) = inner {
                    let op = read_op(c, op, a[3])?;
                    if let Some(Ret::Err(errno)) = shared.guest_syscall(c.task, Call::EpollCtlKey(outer, inner, fd, op)) {
                        return Err(errno);
                    }
                }
                Ok(Outcome::Continue)
            }
        }
    }

    pub(super) fn sys_epoll_wait(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        let Kind::Epoll(number) = self.kind(c, n.args[0] as i32) else { return Ok(Outcome::Continue) };
        let (finish, timeout) = EpollFinish::read(c, n, number)?;
        let (at, max) = (finish.at, finish.max);
        let Some(set) = self.sets.list.get_mut(&number) else { return Ok(Outcome::Continue) };
        let handle = set.handle;
        if set.signals {
            return self.wait_natively(shared, c, listener, n, (&finish, timeout));
        }
        // An armed watch that has not fired says that nothing is ready natively.
        if !set.has_real || set.armed && !self.crowded {
            if timeout != Some(Duration::ZERO) && !set.waiters.contains(&c.tid) {
                set.waiters.push(c.tid);
            }
            return Ok(Outcome::Call(Call::EpollWait(handle, max, timeout), Finish::Epoll(finish)));
        }
        let events = self.both(shared, c, number, max);
        if !events.is_empty() || timeout == Some(Duration::ZERO) {
            return write_events(c, at, &events).map(|n| Outcome::Done(n as i64));
        }
        if let Some(set) = self.sets.list.get_mut(&number) {
            if !set.waiters.contains(&c.tid) {
                set.waiters.push(c.tid);
            }
            if !set.armed {
                set.watch(&self.epoll, number);
            }
        }
        self.start(shared, c, listener, n, Call::EpollWait(handle, max, timeout), Finish::Epoll(finish));
        Ok(Outcome::Taken)
    }

    /// True if the machine's kernel makes the waits for a descriptor that is a set.
    pub(super) fn waits_natively(&mut self, c: Caller, fd: i32) -> bool {
        let Kind::Epoll(number) = self.kind(c, fd) else { return false };
        self.sets.list.get(&number).is_some_and(|set| set.signals)
    }

    /// Waits for a set with a signalfd. What the model has is answered at once, every other time: the machine's kernel finds the rest.
    fn wait_natively(
        &mut self,
        shared: &Shared,
        c: Caller,
        listener: &Rc<Listener>,
        n: &Notif,
        (wait, timeout): (&EpollFinish, Option<Duration>),
    ) -> Result<Outcome, Errno> {
        let number = wait.set;
        let left = self.sets.take_left(number);
        let Some(set) = self.sets.list.get_mut(&number) else { return Ok(Outcome::Continue) };
        let (handle, turn) = (set.handle, core::mem::take(&mut set.real_first));
        if let Some(event) = left {
            self.ring(c, number, event);
            return Ok(Outcome::Continue);
        }
        if !turn
            && let Some(Ret::Epoll(events)) = shared.guest_syscall(c.task, Call::EpollWait(handle, wait.max, Some(Duration::ZERO)))
            && !events.is_empty()
        {
            set.real_first = true;
            return write_events(c, wait.at, &events).map(|n| Outcome::Done(n as i64));
        }
        match shared.guest_syscall(c.task, Call::EpollWait(handle, 1, timeout.filter(Duration::is_zero))) {
            Some(ret) => self.on_bell(c, number, ret),
            None => self.expect_bell(c, listener, n, number),
        }
        Ok(Outcome::Continue)
    }

    /// The model has an event for a thread that the machine's kernel lets wait.
    pub(super) fn on_bell(&mut self, c: Caller, number: u32, ret: Ret) {
        if let Ret::Epoll(events) = ret
            && let Some(&event) = events.first()
        {
            self.ring(c, number, event);
        }
    }

    fn ring(&mut self, c: Caller, number: u32, event: EpollEvent) {
        let Some(set) = self.sets.list.get(&number) else { return };
        match (Bell::ring(&set.real, number, event), self.tasks.get_mut(&c.tid)) {
            (Ok(bell), Some(task)) => task.bell = Some(bell),
            // It gets it with its next call.
            _ => self.sets.left.push((number, event)),
        }
    }

    /// Gives the program what is ready in a set, without waiting: how many events.
    pub(super) fn take_events(&mut self, shared: &Shared, c: Caller, wait: &EpollFinish) -> Result<usize, Errno> {
        let events = self.both(shared, c, wait.set, wait.max);
        write_events(c, wait.at, &events)
    }

    /// What is ready of both kinds, without waiting.
    fn both(&mut self, shared: &Shared, c: Caller, number: u32, max: usize) -> Vec<EpollEvent> {
        let Some(set) = self.sets.list.get_mut(&number) else { return Vec::new() };
        set.real_first = !set.real_first;
        let first = set.real_first;
        let mut events = if first { set.take_real(max) } else { Vec::new() };
        if events.len() < max
            && let Some(Ret::Epoll(more)) =
                shared.guest_syscall(c.task, Call::EpollWait(set.handle, max - events.len(), Some(Duration::ZERO)))
        {
            events.extend(more);
        }
        if !first {
            events.extend(set.take_real(max - events.len()));
        }
        events
    }

    pub(super) fn finish_epoll(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, finish: EpollFinish, ret: Ret) {
        if let Some(set) = self.sets.list.get_mut(&finish.set) {
            set.waiters.retain(|&t| t != c.tid);
        }
        self.end_wait(c, n.args[0] as i32, finish.set);
        let value = match ret {
            Ret::Epoll(events) => write_events(c, finish.at, &events).map(|n| n as i64),
            Ret::Err(errno) => Err(errno),
            other => Ok(other.as_number()),
        };
        self.send(shared, c, listener, n, Reply::Value(value.unwrap_or_else(|e| -i64::from(e.raw()))));
    }

    /// Something is ready natively: for one of those who wait.
    pub(super) fn on_set_ready(&mut self, shared: &Shared, number: u32) {
        loop {
            let Some(set) = self.sets.list.get_mut(&number).filter(|set| !set.signals) else { return };
            set.armed = false;
            let Some(&tid) = set.waiters.first() else { return };
            let waits = |p: &&super::Pending| matches!(&p.finish, Finish::Epoll(f) if f.set == number) && p.listener.is_valid(p.notif.id);
            let pending = self.tasks.get(&tid).and_then(|t| t.pending.as_ref()).filter(waits);
            let Some(Finish::Epoll(finish)) = pending.map(|p| &p.finish) else {
                set.waiters.remove(0);
                continue;
            };
            let events = set.take_real(finish.max);
            if events.is_empty() {
                return set.watch(&self.epoll, number);
            }
            let Some(task) = self.tasks.get_mut(&tid) else { return };
            let caller = task.caller(tid);
            let Some(pending) = task.pending.take() else { return };
            self.memory.woken(caller.task);
            // It waited and has nothing: what it returns is that it was interrupted.
            let _ = shared.cancel_guest_call(caller.task);
            let super::Pending { notif, listener, finish } = pending;
            if let Finish::Epoll(finish) = finish {
                self.finish_epoll(shared, caller, &listener, &notif, finish, Ret::Epoll(events));
            }
        }
    }

    fn drop_set(&mut self, shared: &Shared, number: u32) {
        if let Some(set) = self.sets.list.remove(&number) {
            self.sets.by_canary.remove(&set.canary);
            self.close_handle(shared, set.handle);
        }
    }
}

impl EpollFinish {
    /// What a thread asks of set `number`, and for how long.
    pub fn read(c: Caller, n: &Notif, number: u32) -> Result<(Self, Option<Duration>), Errno> {
        let a = &n.args;
        let max = usize::try_from(a[2] as i32).ok().filter(|&n| n > 0).ok_or(Errno::EINVAL)?;
        if max > i32::MAX as usize / EVENT {
            return Err(Errno::EINVAL);
        }
        access_ok(a[1], max as u64 * EVENT as u64)?;
        Ok((Self { set: number, at: a[1], max: max.min(MOST) }, wait_time(c, n)?))
    }
}

fn read_op(c: Caller, op: i32, at: u64) -> Result<EpollOp, Errno> {
    if op == libc::EPOLL_CTL_DEL {
        return Ok(EpollOp::Del);
    }
    let mut b = [0; EVENT];
    c.mem.read(at, &mut b)?;
    let event = EpollEvent { events: PollEvents::from_bits_truncate(u32_at(&b, 0)), data: u64_at(&b, 4) };
    match op {
        libc::EPOLL_CTL_ADD => Ok(EpollOp::Add(event)),
        libc::EPOLL_CTL_MOD => Ok(EpollOp::Mod(event)),
        _ => Err(Errno::EINVAL),
    }
}

fn wait_time(c: Caller, n: &Notif) -> Result<Option<Duration>, Errno> {
    if i64::from(n.nr) != libc::SYS_epoll_pwait2 {
        return Ok(millis(n.args[3] as i32));
    }
    if n.args[3] == 0 {
        return Ok(None);
    }
    let mut b = [0; 16];
    c.mem.read(n.args[3], &mut b)?;
    timespec(&b).map(Some).ok_or(Errno::EINVAL)
}

fn write_events(c: Caller, at: u64, events: &[EpollEvent]) -> Result<usize, Errno> {
    let mut small = [0; 64 * EVENT];
    let mut large = Vec::new();
    let len = events.len() * EVENT;
    if len > small.len() {
        large.resize(len, 0);
    }
    let buf = if len > small.len() { &mut large[..] } else { &mut small[..len] };
    for (b, e) in buf.chunks_exact_mut(EVENT).zip(events) {
        b[..4].copy_from_slice(&e.events.bits().to_ne_bytes());
        b[4..].copy_from_slice(&e.data.to_ne_bytes());
    }
    if len > 0 {
        c.mem.write(at, buf)?;
    }
    Ok(events.len())
}
