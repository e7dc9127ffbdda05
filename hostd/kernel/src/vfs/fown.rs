//! Who gets the signals of a file (Linux `fcntl.c`): `O_ASYNC`, `F_SETOWN`, `F_SETSIG`.
//!
//! With `O_ASYNC`, a change of a socket raises `SIGIO` (or the signal of `F_SETSIG`)
//! for the owner; urgent data raises `SIGURG` without it. The kernel model only says so,
//! by [`Effect::Signal`].

use super::{FileKind, O_APPEND, O_ASYNC, O_NONBLOCK, O_RDWR};
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::sock::Sock;
use crate::syscall::signal::{Band, Owner, SI_KERNEL, SIGIO, SIGPIPE, SIGURG, Signal, SignalTo};
use crate::syscall::{Fd, Ret};
use crate::{Effect, Kernel};

/// What no socket can (`open(2)`).
const O_DIRECT: i32 = 0o40000;
/// Kept, without effect.
const O_NOATIME: i32 = 0o1000000;
/// Highest signal number.
const NSIG: i32 = 64;

/// Linux `struct fown_struct`, and the descriptor of the `O_ASYNC` entry.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Fown {
    owner: Option<Owner>,
    /// `F_SETSIG`; 0: plain `SIGIO`.
    signum: i32,
    fd: Fd,
}

impl Kernel {
    /// `F_SETFL`: of the flags that a socket can have.
    pub(crate) fn sys_setfl(&mut self, task: TaskId, fd: Fd, flags: i32) -> Result<(), Errno> {
        let id = self.fget(task, fd)?;
        let file = self.vfs.file_mut(id);
        let is_socket = matches!(file.kind, FileKind::Socket(_));
        if is_socket && flags & O_DIRECT != 0 {
            return Err(Errno::EINVAL);
        }
        // An epoll instance has no `fasync`: the flag does not stick.
        let kept = O_NONBLOCK | O_APPEND | O_NOATIME;
        let allowed = if is_socket { kept | O_ASYNC } else { kept };
        file.flags = O_RDWR | flags & allowed;
        let on = file.flags & O_ASYNC != 0;
        if on {
            file.fown.fd = fd;
        }
        if let FileKind::Socket(sock) = file.kind
            && let Some(sk) = self.socks.get_mut(sock)
        {
            sk.fasync = on;
        }
        Ok(())
    }

    /// `FIONBIO`, `FIOASYNC`.
    pub(crate) fn set_file_flag(&mut self, task: TaskId, fd: Fd, flag: i32, on: bool) -> Result<(), Errno> {
        let flags = self.vfs.file(self.fget(task, fd)?).flags;
        self.sys_setfl(task, fd, if on { flags | flag } else { flags & !flag })
    }

    /// `F_SETOWN`.
    pub(crate) fn sys_setown(&mut self, task: TaskId, fd: Fd, owner: Option<Owner>) -> Result<(), Errno> {
        let file = self.fget(task, fd)?;
        if owner == Some(Owner::Group(i32::MIN)) {
            // The one number whose group has none.
            return Err(Errno::EINVAL);
        }
        self.vfs.file_mut(file).fown.owner = owner;
        Ok(())
    }

    /// `F_GETOWN`.
    pub(crate) fn sys_getown(&self, task: TaskId, fd: Fd) -> Result<Ret, Errno> {
        Ok(Ret::Owner(self.vfs.file(self.fget(task, fd)?).fown.owner))
    }

    /// `F_SETSIG`.
    pub(crate) fn sys_setsig(&mut self, task: TaskId, fd: Fd, signum: i32) -> Result<(), Errno> {
        let file = self.fget(task, fd)?;
        if !(0..=NSIG).contains(&signum) {
            return Err(Errno::EINVAL);
        }
        self.vfs.file_mut(file).fown.signum = signum;
        Ok(())
    }

    /// `F_GETSIG`.
    pub(crate) fn sys_getsig(&self, task: TaskId, fd: Fd) -> Result<i32, Errno> {
        Ok(self.vfs.file(self.fget(task, fd)?).fown.signum)
    }

    /// Tells the owner of a file with `O_ASYNC` (Linux `sk_wake_async`, `kill_fasync`).
    #[inline]
    pub(crate) fn sk_wake_async(&mut self, sk: &Sock, band: Band) {
        if sk.fasync {
            self.kill_fasync(sk, band);
        }
    }

    #[cold]
    fn kill_fasync(&mut self, sk: &Sock, band: Band) {
        let Some(file) = sk.file else { return };
        let Fown { owner: Some(owner), signum, fd } = self.vfs.file(file).fown else { return };
        let signal = match signum {
            0 => Signal { to: SignalTo::Owner(owner), signo: SIGIO, code: SI_KERNEL, band: 0, fd: 0 },
            n => Signal { to: SignalTo::Owner(owner), signo: n, code: band as i32, band: band.events(), fd },
        };
        self.effects.push_back(Effect::Signal(signal));
    }

    /// Urgent data has come (Linux `sk_send_sigurg`).
    pub(crate) fn sk_send_sigurg(&mut self, sk: &Sock) {
        if let Some(file) = sk.file
            && let Some(owner) = self.vfs.file(file).fown.owner
        {
            let signal = Signal { to: SignalTo::Owner(owner), signo: SIGURG, code: SI_KERNEL, band: 0, fd: 0 };
            self.effects.push_back(Effect::Signal(signal));
            self.sk_wake_async(sk, Band::Pri);
        }
    }

    /// A writer to a stream that has ended (Linux `sk_stream_error`).
    pub(crate) fn send_sigpipe(&mut self, task: TaskId) {
        let signal = Signal { to: SignalTo::Task(task), signo: SIGPIPE, code: SI_KERNEL, band: 0, fd: 0 };
        self.effects.push_back(Effect::Signal(signal));
    }
}
