//! Answers: to the program, or kept if a signal has interrupted its call ([`super::interrupt`]).

use super::Guests;
use super::calls::Outcome;
use super::fds::{Kind, open_descriptors};
use super::notify::{Listener, Notif};
use super::table::Caller;
use crate::host::Shared;
use rustix::fd::AsFd;
use rustix::io::Errno as OsErrno;
use std::rc::Rc;

/// What a call answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A value or a negative error number.
    Value(i64),
    /// A new descriptor for a modelled file.
    Inject {
        /// The file.
        handle: i32,
        /// `exec` closes it.
        cloexec: bool,
    },
}

impl Guests {
    /// Lets the machine's kernel execute a call.
    pub(super) fn let_go(&mut self, shared: &Shared, caller: Caller, listener: &Listener, notif: &Notif) {
        if listener.send_continue(notif.id).is_err() {
            self.keep_unmade(shared, caller, notif);
        }
    }

    /// Answers; keeps the answer if nobody waits for it.
    pub(super) fn answer(&mut self, shared: &Shared, caller: Caller, listener: &Listener, notif: &Notif, value: i64) {
        if listener.send(notif.id, value).is_err() {
            self.keep_answer(shared, caller, notif, Reply::Value(value));
        }
    }

    /// As [`Self::answer`], for any answer.
    pub(super) fn send(&mut self, shared: &Shared, caller: Caller, listener: &Rc<Listener>, notif: &Notif, reply: Reply) {
        match reply {
            Reply::Value(value) => self.answer(shared, caller, listener, notif, value),
            Reply::Inject { handle, cloexec } => self.inject(shared, caller, listener, notif, handle, cloexec),
        }
    }

    fn inject(&mut self, shared: &Shared, caller: Caller, listener: &Rc<Listener>, notif: &Notif, handle: i32, cloexec: bool) {
        let Ok((end, inode)) = self.placeholders.make(handle, &self.epoll) else {
            self.close_handle(shared, handle);
            return self.answer(shared, caller, listener, notif, -i64::from(libc::ENFILE));
        };
        match listener.inject(notif.id, end.as_fd(), cloexec) {
            Ok(fd) => {
                shared.kernel().set_inode(caller.task, handle, inode as u32);
                if let Some(proc) = self.procs.get_mut(&caller.tgid) {
                    proc.cache.installed(fd, Kind::Modelled(handle));
                }
            }
            Err(OsErrno::NOENT | OsErrno::INPROGRESS) => {
                self.placeholders.remove(handle);
                self.keep_answer(shared, caller, notif, Reply::Inject { handle, cloexec });
            }
            Err(errno) => {
                self.give_back(shared, caller, notif, handle);
                self.answer(shared, caller, listener, notif, -i64::from(errno.raw_os_error()));
            }
        }
    }

    /// A call that was to give the program a descriptor has failed, or was interrupted and comes again.
    pub(super) fn not_injected(&mut self, shared: &Shared, caller: Caller, notif: &Notif, errno: OsErrno) -> Outcome {
        if matches!(errno, OsErrno::NOENT | OsErrno::INPROGRESS) {
            self.keep_unmade(shared, caller, notif);
            return Outcome::Taken;
        }
        Outcome::Done(-i64::from(errno.raw_os_error()))
    }

    /// There is no number for a file: a connection stays in its queue, anything else goes.
    fn give_back(&mut self, shared: &Shared, caller: Caller, notif: &Notif, handle: i32) {
        if let Some(proc) = self.procs.get_mut(&caller.tgid) {
            proc.full = true;
        }
        let accepts = matches!(i64::from(notif.nr), libc::SYS_accept | libc::SYS_accept4);
        if accepts
            && let Kind::Modelled(listener) = self.kind(caller, notif.args[0] as i32)
            && shared.unaccept(caller.task, listener, handle)
        {
            return self.placeholders.remove(handle);
        }
        self.close_handle(shared, handle);
    }

    /// True if a process has no number left for a descriptor. Before Linux 6.2 only one that has been refused one can tell.
    pub(super) fn is_full(&mut self, caller: Caller) -> bool {
        let Some(proc) = self.procs.get_mut(&caller.tgid) else { return false };
        let open = how_many(caller.tgid).or(proc.full.then_some(u64::MAX));
        let limit = open.zip(limit_of(caller.tgid)).filter(|(open, limit)| open >= limit).map(|(_, limit)| limit);
        // Some of them may be beyond it: it was lowered.
        let below = |limit: u64| open_descriptors(caller.tgid).into_iter().filter(|&fd| (fd as u64) < limit).count() as u64;
        proc.full = limit.is_some_and(|limit| below(limit) >= limit);
        proc.full
    }
}

/// How many descriptors a process has, if the machine's kernel says so (Linux 6.2).
fn how_many(tgid: i32) -> Option<u64> {
    let size = rustix::fs::stat(format!("/proc/{tgid}/fd")).ok()?.st_size;
    u64::try_from(size).ok().filter(|&n| n > 0)
}

/// `RLIMIT_NOFILE` of a process.
pub(super) fn limit_of(tgid: i32) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is written before the call returns; nothing is set.
    let done = unsafe { libc::prlimit(tgid, libc::RLIMIT_NOFILE, core::ptr::null(), &raw mut limit) };
    (done == 0).then_some(limit.rlim_cur)
}
