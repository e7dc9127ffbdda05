//! `SIOCETHTOOL`: what `ethtool` asks of an interface.

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::{Fd, Ret};

/// Octets of the structure that a command works on; see [`crate::syscall::ioctl::ethtool_len`].
pub(crate) fn request_len(head: &[u8]) -> usize {
    head.len().min(4)
}

impl Kernel {
    /// `ioctl(SIOCETHTOOL)`.
    pub(crate) fn sys_ethtool(&mut self, task: TaskId, fd: Fd, _name: &[u8; 16], _data: &[u8]) -> Result<Ret, Errno> {
        self.fget_sock(task, fd)?;
        Err(Errno::EOPNOTSUPP)
    }
}
