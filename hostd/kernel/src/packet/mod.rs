//! `AF_PACKET`: sockets that see and send whole frames.

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::exec::Flow;
use crate::syscall::{Fd, LinkAddr, OptVal, Ret};
use crate::uaccess::Iov;

impl Kernel {
    /// `bind` with a `sockaddr_ll`.
    pub(crate) fn sys_bind_link(&mut self, task: TaskId, fd: Fd, _addr: LinkAddr) -> Result<(), Errno> {
        self.fget_sock(task, fd)?;
        Err(Errno::EAFNOSUPPORT)
    }

    /// `sendto` with a `sockaddr_ll`.
    pub(crate) fn sys_send_link(&mut self, task: TaskId, fd: Fd, _iov: Iov, _flags: u32, _to: LinkAddr) -> Flow {
        Flow::Done(Ret::Err(self.fget_sock(task, fd).map_or_else(|e| e, |_| Errno::EAFNOSUPPORT)))
    }

    /// Options whose reading depends on what is in the program's buffer.
    pub(crate) fn packet_getsockopt_input(&self, _: TaskId, _: Fd, _lvl: i32, _name: i32, _b: &[u8]) -> Option<Result<OptVal, Errno>> {
        None
    }
}
