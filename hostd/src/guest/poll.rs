//! `poll`, `ppoll`, `select`, `pselect6`, over descriptors of both kinds.
//!
//! Only real ones: the machine's kernel waits. Only modelled ones: the model does. Both: the model waits for its own,
//! and copies of the real ones (`pidfd_getfd`) stand in a temporary epoll instance that hostd watches.

use super::Guests;
use super::calls::{Finish, Outcome};
use super::decode::{millis, timespec, timeval, u32_at};
use super::epoll::EpollFinish;
use super::fds::Kind;
use super::mask::{Mask, Stopping};
use super::notify::{Listener, Notif};
use super::reply::{Reply, limit_of};
use super::table::Caller;
use super::token::{self, Token};
use crate::host::Shared;
use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, PollFd, Ret};
use ringlab_kernel::time::Instant;
use ringlab_kernel::wait::queue::PollEvents;
use rustix::event::{Timespec, epoll as ep};
use rustix::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// Octets of `struct pollfd`.
const POLLFD: usize = 8;
/// Where `revents` stands in it.
const REVENTS: u64 = 6;
/// Most descriptors of a call.
const MOST: u64 = 1 << 20;
/// So many descriptors are no question of limits: those of a `fd_set` as C libraries have it.
const FEW: usize = 1024;

const IN_SET: u16 = 0x0040 | 0x0080 | 0x0001 | 0x0010 | 0x0008;
const OUT_SET: u16 = 0x0200 | 0x0100 | 0x0004 | 0x0008;
const EX_SET: u16 = 0x0002;
const NVAL: u16 = 0x0020;

/// A descriptor of the call.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub(super) fd: i32,
    pub(super) events: u16,
    pub(super) revents: u16,
}

/// What waits, and where what was found goes.
#[derive(Debug, Clone)]
pub enum Form {
    /// Address of the `pollfd`s.
    Poll(u64),
    /// Number of descriptors, addresses of the sets.
    Select(usize, [u64; 3]),
    /// `epoll_pwait` with a mask: both halves of the set are entries.
    Set(EpollFinish),
    /// None that can wait: the error, or the machine's kernel's affair.
    Not(Option<Errno>),
}

/// Where the rest of the time is told.
#[derive(Debug, Clone, Copy)]
pub enum Left {
    /// The rest of the time is not told.
    No,
    /// `struct timeval`.
    Timeval(u64),
    /// `struct timespec`.
    Timespec(u64),
}

/// A `poll` or `select` on its way.
#[derive(Debug)]
pub struct PollFinish {
    pub(super) form: Form,
    pub(super) entries: Vec<Entry>,
    /// Entry and file of the model.
    pub(super) modelled: Vec<(usize, i32)>,
    /// Entry and copy of a real descriptor.
    pub(super) real: Vec<(usize, OwnedFd)>,
    pub(super) until: Option<Instant>,
    pub(super) left: Left,
    /// Watched by hostd's epoll while the call waits.
    pub(super) watch: Option<OwnedFd>,
    /// Signals that are blocked for the time of the call.
    pub(super) mask: Mask,
    /// The thread is being stopped.
    pub(super) stopping: Stopping,
}

impl Guests {
    pub(super) fn sys_poll(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        let p = self.read_poll(shared, c, n)?;
        self.poll(shared, c, listener, n, p)
    }

    pub(super) fn sys_select(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        let p = self.read_select(shared, c, n)?;
        self.poll(shared, c, listener, n, p)
    }

    /// What a `poll` asks; `None` if it asks nothing of the model.
    pub(super) fn read_poll(&mut self, shared: &Shared, c: Caller, n: &Notif) -> Result<Option<Box<PollFinish>>, Errno> {
        let a = &n.args;
        let count = a[1] as u32 as u64;
        if count > MOST {
            return Ok(None);
        }
        let mut buf = vec![0; count as usize * POLLFD];
        if !buf.is_empty() {
            c.mem.read(a[0], &mut buf)?;
        }
        let entry = |b: &[u8]| Entry { fd: u32_at(b, 0) as i32, events: u32_at(b, 4) as u16 & !NVAL, revents: 0 };
        let entries: Vec<Entry> = buf.chunks_exact(POLLFD).map(entry).collect();
        let (timeout, left) = if i64::from(n.nr) == libc::SYS_poll {
            (millis(a[2] as i32), Left::No)
        } else {
            (read_time(c, a[2], timespec)?, if a[2] == 0 { Left::No } else { Left::Timespec(a[2]) })
        };
        self.sort_entries(shared, c, n, Form::Poll(a[0]), entries, (timeout, left))
    }

    /// What a `select` asks; `None` if it asks nothing of the model.
    pub(super) fn read_select(&mut self, shared: &Shared, c: Caller, n: &Notif) -> Result<Option<Box<PollFinish>>, Errno> {
        let a = &n.args;
        let count = looked_at(c.tid, usize::try_from(a[0] as i32).map_err(|_| Errno::EINVAL)?);
        let at = [a[1], a[2], a[3]];
        let mut sets = [vec![0u64; count.div_ceil(64)], vec![0; count.div_ceil(64)], vec![0; count.div_ceil(64)]];
        for (set, &at) in sets.iter_mut().zip(&at).filter(|(s, at)| **at != 0 && !s.is_empty()) {
            let mut buf = vec![0; set.len() * 8];
            c.mem.read(at, &mut buf)?;
            set.iter_mut().zip(buf.chunks_exact(8)).for_each(|(w, b)| *w = super::decode::u64_at(b, 0));
        }
        let mut entries = Vec::new();
        for fd in 0..count {
            let has = |set: &Vec<u64>| set[fd / 64] >> (fd % 64) & 1 != 0;
            let wants = [IN_SET, OUT_SET, EX_SET].into_iter().zip(&sets).filter(|(_, s)| has(s));
            let events = wants.fold(0, |all, (bits, _)| all | bits);
            if events != 0 {
                entries.push(Entry { fd: fd as i32, events, revents: 0 });
            }
        }
        let (timeout, left) = match (i64::from(n.nr) == libc::SYS_select, a[4]) {
            (_, 0) => (None, Left::No),
            (true, at) => (read_time(c, at, timeval)?, Left::Timeval(at)),
            (false, at) => (read_time(c, at, timespec)?, Left::Timespec(at)),
        };
        self.sort_entries(shared, c, n, Form::Select(count, at), entries, (timeout, left))
    }

    /// Tells the descriptors of both kinds apart.
    fn sort_entries(
        &mut self,
        shared: &Shared,
        c: Caller,
        n: &Notif,
        form: Form,
        mut entries: Vec<Entry>,
        (timeout, left): (Option<Duration>, Left),
    ) -> Result<Option<Box<PollFinish>>, Errno> {
        let mut modelled = Vec::new();
        let mut others = Vec::new();
        for (i, entry) in entries.iter_mut().enumerate().filter(|(_, e)| e.fd >= 0) {
            match self.kind(c, entry.fd) {
                Kind::Modelled(handle) => modelled.push((i, handle)),
                Kind::Epoll(set) => {
                    self.disturb(shared, c, set);
                    modelled.extend(self.sets.handle(set).map(|h| (i, h)));
                    others.push(i);
                }
                Kind::Real | Kind::Foreign | Kind::File(_) => others.push(i),
                Kind::None if matches!(form, Form::Select(..)) => return Err(Errno::EBADF),
                Kind::None => entry.events |= NVAL,
            }
        }
        if modelled.is_empty() {
            return Ok(None);
        }
        if matches!(form, Form::Poll(_)) && entries.len() > FEW && limit_of(c.tgid).is_some_and(|limit| entries.len() as u64 > limit) {
            return Err(Errno::EINVAL);
        }
        let mut real = Vec::new();
        for i in others {
            match self.copy_of(c, entries[i].fd) {
                Some(copy) => real.push((i, copy)),
                None => self.unimplemented(n.nr, 1, format_args!("waiting for a real descriptor beside a socket (pidfd_getfd is refused)")),
            }
        }
        // A wait that goes on after a stop has what was left of its time (Linux `ERESTART_RESTARTBLOCK`).
        let goes_on = self.tasks.get(&c.tid).and_then(|t| t.until);
        let until = timeout.map(|t| goes_on.unwrap_or(shared.now() + t));
        let (mask, stopping) = (Mask::Own, Stopping::No);
        Ok(Some(Box::new(PollFinish { form, entries, modelled, real, until, left, watch: None, mask, stopping })))
    }

    fn poll(
        &mut self,
        shared: &Shared,
        c: Caller,
        listener: &Rc<Listener>,
        n: &Notif,
        p: Option<Box<PollFinish>>,
    ) -> Result<Outcome, Errno> {
        let Some(mut p) = p else { return Ok(Outcome::Continue) };
        if !p.real.is_empty() || p.has_bad() {
            self.gather(shared, c, &mut p);
            if p.ready() > 0 || p.is_over(shared.now()) {
                self.polled(shared, c, listener, n, p);
                return Ok(Outcome::Taken);
            }
        }
        self.wait_for(shared, c, listener, n, p);
        Ok(Outcome::Taken)
    }

    /// Waits for both kinds: nothing real was ready when it was looked at last.
    pub(super) fn wait_for(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut p: Box<PollFinish>) {
        if !p.real.is_empty() {
            self.watch_real(c, &mut p);
        }
        let left = p.until.map(|t| t.since(shared.now()));
        let call = Call::Poll(p.list(), left);
        self.start(shared, c, listener, n, call, Finish::Poll(p));
    }

    /// Looks at everything, without waiting.
    pub(super) fn gather(&mut self, shared: &Shared, c: Caller, p: &mut PollFinish) {
        p.entries.iter_mut().for_each(|e| e.revents = 0);
        if let Some(Ret::Poll(list)) = shared.guest_syscall(c.task, Call::Poll(p.list(), Some(Duration::ZERO))) {
            p.note_model(&list);
        }
        p.look_at_real();
    }

    /// Lets hostd's epoll say when one of the real descriptors is ready.
    fn watch_real(&mut self, c: Caller, p: &mut PollFinish) {
        let Ok(watch) = ep::create(ep::CreateFlags::CLOEXEC) else { return };
        for (i, copy) in &p.real {
            let flags = ep::EventFlags::from_bits_retain(u32::from(p.entries[*i].events & !NVAL));
            // Files that cannot be watched are always ready, or never.
            let _ = ep::add(&watch, copy, ep::EventData::new_u64(0), flags);
        }
        let token = token::data(Token::Poll(c.task.0));
        if ep::add(&*self.epoll, &watch, token, ep::EventFlags::IN | ep::EventFlags::ONESHOT).is_ok() {
            p.watch = Some(watch);
        }
    }

    /// A real descriptor of a waiting call is ready.
    pub(super) fn on_poll_ready(&mut self, shared: &Shared, id: TaskId) {
        let Some(tid) = self.by_task.get(&id.0).copied() else { return };
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        let waits = |f: &Finish| matches!(f, Finish::Poll(p) if p.stopping == Stopping::No);
        if !task.pending.as_ref().is_some_and(|p| waits(&p.finish) && p.listener.is_valid(p.notif.id)) {
            return;
        }
        let caller = task.caller(tid);
        let Some(super::Pending { notif, listener, finish: Finish::Poll(mut p) }) = task.pending.take() else { return };
        self.memory.woken(id);
        // It waited and has nothing: what it returns is that it was interrupted.
        let _ = shared.cancel_guest_call(id);
        self.gather(shared, caller, &mut p);
        if p.ready() > 0 {
            return self.polled(shared, caller, &listener, &notif, p);
        }
        self.wait_for(shared, caller, &listener, &notif, p);
    }

    pub(super) fn finish_poll(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut p: Box<PollFinish>, ret: Ret) {
        match ret {
            Ret::Poll(list) => {
                p.note_model(&list);
                p.look_at_real();
                self.polled(shared, c, listener, n, p);
            }
            other => self.send(shared, c, listener, n, Reply::Value(other.as_number())),
        }
    }

    /// Writes what was found and answers; not before the thread has its own mask again.
    pub(super) fn polled(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, p: Box<PollFinish>) {
        if matches!(p.mask, Mask::Held(_)) {
            return self.stop_to_leave(shared, c, listener, n, p);
        }
        self.send(shared, c, listener, n, Reply::Value(p.tell(c, shared.now())));
    }
}

impl PollFinish {
    fn list(&self) -> Vec<PollFd> {
        let entry = |&(i, handle): &(usize, i32)| PollFd {
            fd: handle,
            events: PollEvents::from_bits_truncate(self.entries[i].events.into()),
            revents: PollEvents::empty(),
        };
        self.modelled.iter().map(entry).collect()
    }

    fn note_model(&mut self, list: &[PollFd]) {
        for (&(i, _), found) in self.modelled.iter().zip(list) {
            self.entries[i].revents |= found.revents.bits() as u16;
        }
    }

    fn look_at_real(&mut self) {
        if self.real.is_empty() {
            return;
        }
        let flags = |i: usize| rustix::event::PollFlags::from_bits_retain(self.entries[i].events & !NVAL);
        let mut fds: Vec<_> = self.real.iter().map(|(i, fd)| rustix::event::PollFd::from_borrowed_fd(fd.as_fd(), flags(*i))).collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&now)).is_err() {
            return;
        }
        let found: Vec<u16> = fds.iter().map(|f| f.revents().bits()).collect();
        for ((i, _), revents) in self.real.iter().zip(found) {
            self.entries[*i].revents |= revents;
        }
    }

    /// True if a descriptor is not open: `poll` answers at once.
    fn has_bad(&self) -> bool {
        self.entries.iter().any(Entry::is_bad)
    }

    pub(super) fn ready(&self) -> usize {
        self.entries.iter().filter(|e| e.revents != 0 || e.is_bad()).count()
    }

    /// True if its time is up.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|t| t <= now)
    }

    /// Writes what was found; what the call answers.
    pub(super) fn tell(&self, c: Caller, now: Instant) -> i64 {
        let Ok(n) = self.write(c) else { return -i64::from(libc::EFAULT) };
        self.left.tell(c, self.until.map_or(Duration::ZERO, |t| t.since(now)));
        n
    }

    fn write(&self, c: Caller) -> Result<i64, Errno> {
        match self.form {
            Form::Set(_) | Form::Not(_) => Ok(0),
            Form::Poll(at) => {
                // What was asked for is the program's: another thread may change it meanwhile.
                let revents: Vec<u16> = self.entries.iter().map(|e| if e.is_bad() { NVAL } else { e.revents }).collect();
                c.mem.write_every(at.wrapping_add(REVENTS), POLLFD, &revents)?;
                Ok(self.ready() as i64)
            }
            Form::Select(count, at) => self.write_sets(c, count, at),
        }
    }

    fn write_sets(&self, c: Caller, count: usize, at: [u64; 3]) -> Result<i64, Errno> {
        let mut found = 0;
        for (bits, at) in [IN_SET, OUT_SET, EX_SET].into_iter().zip(at).filter(|(_, at)| *at != 0) {
            let mut set = vec![0u8; count.div_ceil(64) * 8];
            for e in self.entries.iter().filter(|e| e.events & bits == bits && e.revents & bits != 0) {
                set[e.fd as usize / 8] |= 1 << (e.fd % 8);
                found += 1;
            }
            if !set.is_empty() {
                c.mem.write(at, &set)?;
            }
        }
        Ok(found)
    }
}

impl Left {
    /// The rest of the time, where the call tells it. A program may have passed read-only memory: that is fine.
    pub(super) fn tell(self, c: Caller, rest: Duration) {
        let (at, fraction) = match self {
            Self::No => return,
            Self::Timeval(at) => (at, rest.subsec_micros()),
            Self::Timespec(at) => (at, rest.subsec_nanos()),
        };
        let mut b = [0; 16];
        b[..8].copy_from_slice(&rest.as_secs().to_ne_bytes());
        b[8..].copy_from_slice(&u64::from(fraction).to_ne_bytes());
        let _ = c.mem.write(at, &b);
    }
}

impl Entry {
    fn is_bad(&self) -> bool {
        self.events & NVAL != 0
    }
}

/// Descriptors that `select` looks at: not more than the table has room for, whatever the program says (Linux `core_sys_select`). Its
/// sets may be as short as that.
fn looked_at(tid: i32, count: usize) -> usize {
    if count <= FEW {
        return count;
    }
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let size = status.lines().find_map(|l| l.strip_prefix("FDSize:")).and_then(|n| n.trim().parse().ok());
    count.min(size.unwrap_or(FEW))
}

fn read_time(c: Caller, at: u64, parse: fn(&[u8; 16]) -> Option<Duration>) -> Result<Option<Duration>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    let mut b = [0; 16];
    c.mem.read(at, &mut b)?;
    parse(&b).map(Some).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_looks_at_no_more_than_the_table_holds() {
        let own = std::process::id() as i32;
        assert_eq!((looked_at(own, 0), looked_at(own, 1024)), (0, 1024));
        let size = looked_at(own, i32::MAX as usize);
        assert!((64..i32::MAX as usize).contains(&size), "{size}");
    }
}
