//! Signal masks of `ppoll`, `pselect6`, `epoll_pwait`, `epoll_pwait2` that wait for modelled descriptors.
//!
//! While a thread waits for the supervisor, its own mask decides which signals interrupt it, and nobody can change that from
//! outside but a tracer. So a call that would wait under another mask is stopped twice ([`super::stop`]): before it waits, to
//! install the mask, and when the wait is over, to give the thread its own one back and the result with it, at once.
//!
//! ```text
//! call ── ready: answer ─────────────────────────────────────────────────────▶ returns; the mask never mattered
//!   └─ Wanted ── stop: mask ──▶ the call comes again: Held ── waits in the model ── stop: look again ──▶ returns, own mask
//!                                  └── signal: handler ── rt_sigreturn: EINTR, own mask into its context
//! ```
//!
//! What is ready goes before a pending signal, as in Linux: nothing is taken from a set or said to the program before the
//! thread stands, and then no handler can run any more. Where a thread cannot be stopped (somebody traces it) its wait has its own mask.

use super::calls::{Finish, Outcome};
use super::decode::u64_at;
use super::epoll::EpollFinish;
use super::fds::Kind;
use super::notify::{Listener, Notif};
use super::poll::{Entry, Form, Left, PollFinish};
use super::stop::{Go, Report, Want};
use super::table::Caller;
use super::{Guests, Pending};
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::time::Instant;
use rustix::fd::OwnedFd;
use std::rc::Rc;

/// Signals that cannot be blocked.
const NEVER: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// Which mask a wait has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// The thread's own.
    Own,
    /// This one, which is not installed yet.
    Wanted {
        /// The call's.
        mask: u64,
        /// As [`Held::ends`].
        ends: bool,
    },
    /// Another one than the thread's own.
    Held(Held),
}

/// A mask that is in force for the time of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The call's.
    pub mask: u64,
    /// The thread's own.
    pub before: u64,
    /// When the call's time is up.
    pub until: Option<Instant>,
    /// A signal has ended a wait for a set, though no handler may run (Linux `ep_poll`).
    pub ends: bool,
}

/// Whether the thread of a wait is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// It is not.
    No,
    /// When an earlier stop of it is over.
    Soon,
    /// By number.
    Yes(u64),
}

/// What a thread that stands is to do.
enum Settled {
    Answer(i64),
    /// Something was ready and is not any more.
    Wait,
    /// The machine's kernel shall make the call.
    Native,
}

impl Guests {
    /// A call that names a mask.
    pub(super) fn sys_masked(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        if matches!(i64::from(n.nr), libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2) && self.waits_natively(c, n.args[0] as i32) {
            return self.sys_unmasked(shared, c, listener, n);
        }
        let held = self.tasks.get_mut(&c.tid).and_then(|t| t.held.take());
        // A handler may have been left by a jump; or one has begun since the call came again.
        let held = held.filter(|h| Signals::of(c.tid).is_some_and(|s| s.blocked == h.mask) || !listener.is_valid(n.id));
        let asked = match read_mask(c, n) {
            Ok(None) if held.is_none() => return self.sys_unmasked(shared, c, listener, n),
            Ok(mask) => self.read_wait(shared, c, n).map(|p| p.zip(mask)),
            Err(errno) => Err(errno),
        };
        let Some(held) = held else {
            return match asked? {
                Some((p, mask)) => self.begin_masked(shared, c, listener, n, p, mask),
                None => Ok(Outcome::Continue),
            };
        };
        let now = shared.now();
        let mut p = match asked {
            Ok(Some((p, _))) if held.ends && matches!(p.form, Form::Set(_)) => {
                Box::new(PollFinish::of(Form::Not(Some(Errno::EINTR)), Vec::new(), Some(now)))
            }
            Ok(Some((p, _))) => p,
            // It has changed since it was made first.
            other => Box::new(PollFinish::of(Form::Not(other.err()), Vec::new(), Some(now))),
        };
        if !matches!(p.form, Form::Not(_)) {
            p.until = held.until;
        }
        p.mask = Mask::Held(held);
        self.gather(shared, c, &mut p);
        match p.ready() > 0 || p.is_over(now) {
            true => self.stop_to_leave(shared, c, listener, n, p),
            false => self.wait_for(shared, c, listener, n, p),
        }
        Ok(Outcome::Taken)
    }

    fn sys_unmasked(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        match i64::from(n.nr) {
            libc::SYS_ppoll => self.sys_poll(shared, c, listener, n),
            libc::SYS_pselect6 => self.sys_select(shared, c, listener, n),
            _ => self.sys_epoll_wait(shared, c, listener, n),
        }
    }

    fn read_wait(&mut self, shared: &Shared, c: Caller, n: &Notif) -> Result<Option<Box<PollFinish>>, Errno> {
        match i64::from(n.nr) {
            libc::SYS_ppoll => self.read_poll(shared, c, n),
            libc::SYS_pselect6 => self.read_select(shared, c, n),
            _ => self.read_set(shared, c, n),
        }
    }

    /// A set as the two descriptors that it is: one of the model, one of the machine.
    fn read_set(&mut self, shared: &Shared, c: Caller, n: &Notif) -> Result<Option<Box<PollFinish>>, Errno> {
        let fd = n.args[0] as i32;
        let Kind::Epoll(number) = self.kind(c, fd) else { return Ok(None) };
        self.disturb(shared, c, number);
        let (wait, timeout) = EpollFinish::read(c, n, number)?;
        let events = libc::POLLIN as u16;
        let entries = vec![Entry { fd, events, revents: 0 }];
        let mut p = Box::new(PollFinish::of(Form::Set(wait), entries, timeout.map(|t| shared.now() + t)));
        p.modelled.extend(self.sets.handle(number).map(|handle| (0, handle)));
        p.real.extend(self.sets.copy(number).map(|copy| (0, copy)));
        Ok(Some(p))
    }

    /// A call that has not waited yet.
    fn begin_masked(
        &mut self,
        shared: &Shared,
        c: Caller,
        listener: &Rc<Listener>,
        n: &Notif,
        mut p: Box<PollFinish>,
        mask: u64,
    ) -> Result<Outcome, Errno> {
        let over = p.is_over(shared.now());
        if let Form::Set(wait) = &p.form {
            let events = self.take_events(shared, c, wait)?;
            // Linux looks for signals only before it waits.
            if events > 0 || over {
                return Ok(Outcome::Done(events as i64));
            }
        } else {
            self.gather(shared, c, &mut p);
            if p.ready() > 0 {
                self.polled(shared, c, listener, n, p);
                return Ok(Outcome::Taken);
            }
        }
        let signals = Signals::of(c.tid).filter(|s| s.blocked != mask);
        let Some(signals) = signals else { return self.wait_unmasked(shared, c, listener, n, p) };
        let ends = signals.pending & !mask != 0;
        if over && !ends {
            self.polled(shared, c, listener, n, p);
            return Ok(Outcome::Taken);
        }
        p.mask = Mask::Wanted { mask, ends };
        self.stop(shared, c, listener, n, p);
        Ok(Outcome::Taken)
    }

    /// Waits with the mask that the thread has.
    fn wait_unmasked(
        &mut self,
        shared: &Shared,
        c: Caller,
        listener: &Rc<Listener>,
        n: &Notif,
        mut p: Box<PollFinish>,
    ) -> Result<Outcome, Errno> {
        p.mask = Mask::Own;
        p.stopping = Stopping::No;
        match p.form {
            Form::Set(_) => self.sys_epoll_wait(shared, c, listener, n),
            _ => {
                self.wait_for(shared, c, listener, n, p);
                Ok(Outcome::Taken)
            }
        }
    }

    /// Ends the wait of a thread whose mask is not its own.
    pub(super) fn stop_to_leave(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut p: Box<PollFinish>) {
        p.watch = None;
        self.stop(shared, c, listener, n, p);
    }

    fn stop(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut p: Box<PollFinish>) {
        let want = match p.mask {
            Mask::Wanted { mask, .. } => Want::Mask(mask),
            Mask::Own | Mask::Held(_) => Want::Halt,
        };
        p.stopping = if self.stops.has(c.tid) {
            Stopping::Soon
        } else {
            match self.stops.begin(&self.epoll, c.tid, listener, (n.id, n.nr), want) {
                Ok(number) => Stopping::Yes(number),
                Err(_) => return self.refused(shared, c, listener, n, p),
            }
        };
        if let Some(task) = self.tasks.get_mut(&c.tid) {
            task.pending = Some(Pending { notif: *n, listener: listener.clone(), finish: Finish::Poll(p) });
        }
    }

    /// Threads stand, or would not.
    pub(super) fn on_stops(&mut self, shared: &Shared) {
        while let Some((number, tid, report)) = self.stops.next() {
            self.on_stop(shared, number, tid, report);
            // What waited for this stop to be over.
            let soon = |f: &Finish| matches!(f, Finish::Poll(p) if p.stopping == Stopping::Soon);
            if let Some((c, pending)) = self.take_pending(tid, soon)
                && let Pending { notif, listener, finish: Finish::Poll(p) } = pending
            {
                self.stop(shared, c, &listener, &notif, p);
            }
        }
    }

    fn on_stop(&mut self, shared: &Shared, number: u64, tid: i32, report: Report) {
        let found = self.take_pending(tid, |f| matches!(f, Finish::Poll(p) if p.stopping == Stopping::Yes(number)));
        let Some((c, Pending { notif, listener, finish: Finish::Poll(mut p) })) = found else {
            // It has ended, or has made another call.
            return if report == Report::Halted {
                self.stops.go(number, Go::default())
            };
        };
        p.stopping = Stopping::No;
        match (report, p.mask) {
            (Report::Masked(before), Mask::Wanted { mask, ends }) => {
                let held = Held { mask, before, until: p.until, ends };
                self.remember_held(shared, c, &notif, held, p.left);
            }
            (Report::Halted, Mask::Held(held)) => {
                let go = match self.settle(shared, c, &mut p) {
                    Settled::Answer(value) => Go { mask: Some(held.before), answer: Some(value) },
                    Settled::Native => Go { mask: Some(held.before), answer: None },
                    Settled::Wait => {
                        self.remember_held(shared, c, &notif, held, p.left);
                        Go::default()
                    }
                };
                self.stops.go(number, go);
            }
            (Report::Refused, _) => self.refused(shared, c, &listener, &notif, p),
            (report, _) => {
                if report == Report::Halted {
                    self.stops.go(number, Go::default());
                }
                // Its next call says what became of this one.
                p.stopping = Stopping::Yes(number);
                if let Some(task) = self.tasks.get_mut(&tid) {
                    task.pending = Some(Pending { notif, listener, finish: Finish::Poll(p) });
                }
            }
        }
    }

    fn take_pending(&mut self, tid: i32, which: impl Fn(&Finish) -> bool) -> Option<(Caller, Pending)> {
        let task = self.tasks.get_mut(&tid)?;
        let caller = task.caller(tid);
        task.pending.take_if(|p| which(&p.finish)).map(|p| (caller, p))
    }

    /// What the call of a thread that stands comes to.
    fn settle(&mut self, shared: &Shared, c: Caller, p: &mut PollFinish) -> Settled {
        let now = shared.now();
        if let Form::Not(errno) = p.form {
            return errno.map_or(Settled::Native, |e| Settled::Answer(-i64::from(e.raw())));
        }
        if let Form::Set(wait) = &p.form {
            return match self.take_events(shared, c, wait) {
                Ok(0) if !p.is_over(now) => Settled::Wait,
                Ok(events) => Settled::Answer(events as i64),
                Err(errno) => Settled::Answer(-i64::from(errno.raw())),
            };
        }
        self.gather(shared, c, p);
        if p.ready() == 0 && !p.is_over(now) {
            return Settled::Wait;
        }
        Settled::Answer(p.tell(c, now))
    }

    /// A thread cannot be stopped: it is traced, by `strace` perhaps.
    fn refused(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut p: Box<PollFinish>) {
        self.unimplemented(n.nr, 2, format_args!("the signal mask of a wait, of a thread that somebody traces"));
        let value = match p.mask {
            Mask::Held(_) => match self.settle(shared, c, &mut p) {
                Settled::Answer(value) => value,
                Settled::Native => return self.let_go(shared, c, listener, n),
                Settled::Wait => return self.wait_for(shared, c, listener, n, p),
            },
            Mask::Own | Mask::Wanted { .. } => match self.wait_unmasked(shared, c, listener, n, p) {
                Ok(Outcome::Call(call, finish)) => return self.start(shared, c, listener, n, call, finish),
                Ok(Outcome::Done(value)) => value,
                Ok(Outcome::Continue) => return self.let_go(shared, c, listener, n),
                Ok(Outcome::Taken) => return,
                Err(errno) => -i64::from(errno.raw()),
            },
        };
        self.answer(shared, c, listener, n, value);
    }
}

impl PollFinish {
    fn of(form: Form, entries: Vec<Entry>, until: Option<Instant>) -> Self {
        Self {
            form,
            entries,
            modelled: Vec::new(),
            real: Vec::<(usize, OwnedFd)>::new(),
            until,
            left: Left::No,
            watch: None,
            mask: Mask::Own,
            stopping: Stopping::No,
        }
    }
}

/// The mask that a call names, if it does.
fn read_mask(c: Caller, n: &Notif) -> Result<Option<u64>, Errno> {
    let a = &n.args;
    let (at, size) = match i64::from(n.nr) {
        libc::SYS_ppoll => (a[3], a[4]),
        libc::SYS_pselect6 => {
            let mut b = [0; 16];
            c.mem.read(a[5], &mut b)?;
            (u64_at(&b, 0), u64_at(&b, 8))
        }
        _ => (a[4], a[5]),
    };
    if at == 0 {
        return Ok(None);
    }
    let mut b = [0; 8];
    if size != b.len() as u64 {
        return Err(Errno::EINVAL);
    }
    c.mem.read(at, &mut b)?;
    Ok(Some(u64::from_ne_bytes(b) & !NEVER))
}

/// Signals of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Signals {
    blocked: u64,
    /// Of the thread, or of its process.
    pending: u64,
}

impl Signals {
    fn of(tid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let set = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        Some(Self { blocked: set("SigBlk:")?, pending: set("SigPnd:")? | set("ShdPnd:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_stand_in_the_status() {
        let text = "Name:\tx\nSigQ:\t0/1\nSigPnd:\t0000000000000200\nShdPnd:\t0000000000002000\nSigBlk:\tfffffffe00010000\nSigIgn:\t1\n";
        assert_eq!(Signals::parse(text), Some(Signals { blocked: 0xffff_fffe_0001_0000, pending: 0x2200 }));
        assert_eq!(Signals::parse("Name:\tx\n"), None);
        assert!(Signals::of(std::process::id() as i32).is_some() && Signals::of(-1).is_none());
    }
}
