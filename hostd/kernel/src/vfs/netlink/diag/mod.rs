//! `NETLINK_SOCK_DIAG`: sockets, as `ss` shows them (Linux `sock_diag.c`).

use super::request::{Answer, Refusal, Request};
use crate::Kernel;
use crate::errno::Errno;

impl Kernel {
    pub(super) fn sock_diag_rcv(&mut self, _req: &Request<'_>) -> Result<Answer, Refusal> {
        Err(Errno::EOPNOTSUPP.into())
    }
}
