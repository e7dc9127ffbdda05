//! Signals that the network raises, sent to the processes that shall have them.
//!
//! A signal follows the answer to the call that raised it: a thread that waits for its answer would be
//! interrupted, and its call would come again.

use super::Guests;
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::syscall::signal::{Owner, Signal, SignalTo};

impl Guests {
    /// Sends what the model has raised.
    pub(super) fn raise_signals(&mut self, shared: &Shared) {
        while let Some(signal) = shared.next_guest_signal() {
            self.raise(signal);
        }
    }

    /// `SIGPIPE` for a thread that writes to a pipe of the machine which nobody reads.
    pub(super) fn raise_sigpipe(&self, c: Caller) {
        tgkill(c.tgid, c.tid, libc::SIGPIPE);
    }

    fn raise(&self, signal: Signal) {
        match signal.to {
            SignalTo::Task(id) => {
                if let Some((tid, task)) = self.by_task.get(&id.0).and_then(|tid| Some((*tid, self.tasks.get(tid)?))) {
                    tgkill(task.tgid, tid, signal.signo);
                }
            }
            SignalTo::Owner(Owner::Thread(tid)) => {
                if let Some(task) = self.tasks.get(&tid) {
                    tgkill(task.tgid, tid, signal.signo);
                }
            }
            SignalTo::Owner(Owner::Process(tgid)) => self.kill(tgid, signal.signo),
            SignalTo::Owner(Owner::Group(group)) => {
                for &tgid in self.procs.keys().filter(|&&p| in_group(p, group)) {
                    self.kill(tgid, signal.signo);
                }
            }
        }
    }

    /// Only programs of this host: a number that a program names may be anybody's.
    fn kill(&self, tgid: i32, signo: i32) {
        if let (Some(proc), Some(signal)) = (self.procs.get(&tgid), rustix::process::Signal::from_named_raw(signo)) {
            // It may have ended meanwhile.
            let _ = rustix::process::pidfd_send_signal(&proc.pidfd, signal);
        }
    }
}

fn in_group(tgid: i32, group: i32) -> bool {
    let of = rustix::process::Pid::from_raw(tgid).and_then(|p| rustix::process::getpgid(Some(p)).ok());
    of.is_some_and(|g| g.as_raw_nonzero().get() == group)
}

fn tgkill(tgid: i32, tid: i32, signo: i32) {
    // SAFETY: no memory is passed. The thread may have ended meanwhile.
    let _ = unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid, signo) };
}
