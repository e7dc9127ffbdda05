//! `NETLINK_SOCK_DIAG`: sockets, as `ss` shows them (Linux `net/core/sock_diag.c`, `inet_diag.c`).
//!
//! TCP, UDP and raw sockets of both families; an `AF_INET6` socket shows mapped addresses. Sockets of
//! `AF_UNIX` are the machine's: there are none here. Families and protocols that this kernel has not answer
//! `ENOENT`, whereupon `ss` reads `/proc/net`.

mod bytecode;
mod inet;

use super::request::{Answer, Refusal, Request};
use super::wire::{Attrs, word};
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::{AF_INET, AF_INET6};
use alloc::vec::Vec;

/// `SOCK_DIAG_BY_FAMILY`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`.
const SOCK_DESTROY: u16 = 21;
const AF_UNIX: u16 = 1;
/// Octets of `struct inet_diag_req_v2`.
const REQ_V2: usize = 56;
/// Octets of its `struct inet_diag_sockid`, and where it begins.
const ID_AT: usize = 8;
/// `INET_DIAG_REQ_BYTECODE`, `INET_DIAG_REQ_PROTOCOL`.
const REQ_BYTECODE: u16 = 1;
const REQ_PROTOCOL: u16 = 3;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_RAW: u8 = 255;

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
struct Query<'a> {
    family: u16,
    protocol: u8,
    /// Bit n - 1: attribute n is wanted.
    ext: u8,
    /// Bit n: sockets in state n.
    states: u32,
    /// Of one socket: ports, addresses, interface, cookie.
    id: &'a [u8],
    filter: &'a [u8],
}

impl Kernel {
    /// Linux `sock_diag_rcv_msg`.
    pub(super) fn sock_diag_rcv(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        match req.hdr.kind {
            SOCK_DIAG_BY_FAMILY => {}
            SOCK_DESTROY => return Err(Errno::EOPNOTSUPP.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        let head = req.payload.get(..2).ok_or(Errno::EINVAL)?;
        match u16::from(head[0]) {
            AF_UNIX if req.is_dump() => Ok(Answer::Dump(Vec::new())),
            AF_INET | AF_INET6 => self.inet_diag(req),
            _ => Err(Errno::ENOENT.into()),
        }
    }

    fn inet_diag(&self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs): (&[u8], Attrs<'_>) = req.split(REQ_V2)?;
        let filter = attrs.get(REQ_BYTECODE).map_or(&[][..], |a| a.data);
        bytecode::audit(filter)?;
        let protocol = attrs.get(REQ_PROTOCOL).map(|a| a.u32()).transpose()?.unwrap_or(head[1].into());
        let query = Query {
            family: head[0].into(),
            protocol: u8::try_from(protocol).map_err(|_| Errno::ENOENT)?,
            ext: head[2],
            states: word(head, 4).unwrap_or(0),
            id: &head[ID_AT..],
            filter,
        };
        if !matches!(query.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_RAW) {
            return Err(Errno::ENOENT.into());
        }
        if req.is_dump() {
            return Ok(Answer::Dump(self.inet_diag_dump(req, &query)));
        }
        self.inet_diag_one(req, &query).map(Answer::One).ok_or(Errno::ENOENT.into())
    }
}
