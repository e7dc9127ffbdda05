//! Answers: to the program, or kept for the restart of a call that a signal interrupted.

use super::Guests;
use super::fds::Kind;
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

/// An answer that nobody took: the call was interrupted after it had had its effect.
#[derive(Debug)]
pub struct Stash {
    nr: i32,
    ip: u64,
    args: [u64; 6],
    pub(super) reply: Reply,
}

impl Guests {
    /// The answer kept for this call, if it is the restart of an interrupted one.
    pub(super) fn take_stash(&mut self, caller: Caller, notif: &Notif) -> Option<Reply> {
        let stash = self.tasks.get_mut(&caller.tid)?.stash.as_ref()?;
        let same = stash.nr == notif.nr && stash.ip == notif.ip && stash.args == notif.args;
        if !same {
            return None;
        }
        self.tasks.get_mut(&caller.tid)?.stash.take().map(|s| s.reply)
    }

    /// Lets the machine's kernel execute a call. Interrupted meanwhile: it comes again.
    pub(super) fn let_go(&self, listener: &Listener, notif: &Notif) {
        let _ = listener.send_continue(notif.id);
    }

    /// Answers; keeps the answer if nobody waits for it.
    pub(super) fn answer(&mut self, caller: Caller, listener: &Listener, notif: &Notif, value: i64) {
        if listener.send(notif.id, value).is_err() {
            self.stash(caller, notif, Reply::Value(value));
        }
    }

    /// As [`Self::answer`], for any answer.
    pub(super) fn send(&mut self, shared: &Shared, caller: Caller, listener: &Rc<Listener>, notif: &Notif, reply: Reply) {
        match reply {
            Reply::Value(value) => self.answer(caller, listener, notif, value),
            Reply::Inject { handle, cloexec } => self.inject(shared, caller, listener, notif, handle, cloexec),
        }
    }

    fn inject(&mut self, shared: &Shared, caller: Caller, listener: &Rc<Listener>, notif: &Notif, handle: i32, cloexec: bool) {
        let Ok(end) = self.placeholders.make(handle, &self.epoll) else {
            self.close_handle(shared, handle);
            return self.answer(caller, listener, notif, -i64::from(libc::ENFILE));
        };
        match listener.inject(notif.id, end.as_fd(), cloexec) {
            Ok(fd) => {
                if let Some(proc) = self.procs.get_mut(&caller.tgid) {
                    proc.cache.installed(fd, Kind::Modelled(handle));
                }
            }
            Err(OsErrno::NOENT | OsErrno::INPROGRESS) => {
                self.placeholders.remove(handle);
                self.stash(caller, notif, Reply::Inject { handle, cloexec });
            }
            Err(errno) => {
                self.close_handle(shared, handle);
                self.answer(caller, listener, notif, -i64::from(errno.raw_os_error()));
            }
        }
    }

    fn stash(&mut self, caller: Caller, notif: &Notif, reply: Reply) {
        if let Some(task) = self.tasks.get_mut(&caller.tid) {
            task.stash = Some(Stash { nr: notif.nr, ip: notif.ip, args: notif.args, reply });
        }
    }
}
