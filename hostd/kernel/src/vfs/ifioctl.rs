//! `ioctl` on sockets (Linux `sock_ioctl`, `inet_ioctl`, `dev_ioctl`).

use super::{O_ASYNC, O_NONBLOCK};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::abi::octets;
use crate::syscall::ioctl::nr;
use crate::syscall::signal::Owner;
use crate::syscall::{Fd, Ret};

impl Kernel {
    /// `ioctl` with an argument of fixed size.
    pub(crate) fn sys_ioctl(&mut self, task: TaskId, fd: Fd, cmd: u32, arg: &[u8]) -> Result<Ret, Errno> {
        let int = || octets(arg, 0).map(i32::from_ne_bytes).ok_or(Errno::EFAULT);
        let number = |n: Result<i32, Errno>| n.map(|n| Ret::Bytes(n.to_ne_bytes().to_vec()));
        match cmd {
            nr::FIONBIO => self.set_file_flag(task, fd, O_NONBLOCK, int()? != 0).map(|()| Ret::Value(0)),
            nr::FIOASYNC => self.set_file_flag(task, fd, O_ASYNC, int()? != 0).map(|()| Ret::Value(0)),
            nr::FIONREAD => number(self.sys_inq(task, fd)),
            nr::TIOCOUTQ => number(self.sys_outq(task, fd)),
            nr::SIOCATMARK => number(self.sys_atmark(task, fd)),
            nr::FIOSETOWN | nr::SIOCSPGRP => {
                self.fget_sock(task, fd)?;
                self.sys_setown(task, fd, Owner::from_setown(int()?)).map(|()| Ret::Value(0))
            }
            nr::FIOGETOWN | nr::SIOCGPGRP => {
                self.fget_sock(task, fd)?;
                match self.sys_getown(task, fd)? {
                    Ret::Owner(owner) => number(Ok(owner.map_or(0, Owner::as_getown))),
                    other => Ok(other),
                }
            }
            _ => {
                self.fget(task, fd)?;
                Err(Errno::ENOTTY)
            }
        }
    }

    /// `ioctl(SIOCGIFCONF)`.
    pub(crate) fn sys_ifconf(&mut self, task: TaskId, fd: Fd, _room: Option<usize>) -> Result<Ret, Errno> {
        self.fget_sock(task, fd)?;
        Err(Errno::ENOTTY)
    }
}
