//! `AF_NETLINK`: programs ask and change what the kernel keeps (Linux `net/netlink/af_netlink.c`).
//!
//! ```text
//! send ─ request.rs ─ each message ─▶ rtnl/   NETLINK_ROUTE: links, addresses, routes, neighbours
//!                                     diag/   NETLINK_SOCK_DIAG: sockets, as `ss` shows them
//!                                     genl.rs NETLINK_GENERIC: the controller, and no family
//!        answers, dumps ─▶ queue of the socket ─▶ recv
//! a change ─ rtnl/notify.rs ─▶ queue of each socket in the group
//! ```
//!
//! A request is answered in the call that sends it. A dump is made in one piece, so that it shows one moment,
//! and cut into datagrams of at most the largest buffer that the program has received into so far. What the queue
//! has no room for is lost, and the next `recv` says so (`ENOBUFS`). A socket gets its port id with `bind`, or with its first
//! request: the number of its task, if that is free. IPv6 has no handlers here: its dumps are empty.

mod diag;
mod genl;
mod request;
mod rtnl;
mod sock;
mod wire;

pub(crate) use rtnl::notify::Pending;
pub use sock::NlSock;
pub(crate) use sock::choose_netlink;

use crate::Kernel;
use crate::errno::Errno;
use crate::sock::{Proto, Sock, SockId};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ringlab_ring::memory::Region;

/// `AF_NETLINK`.
pub(crate) const AF_NETLINK: u16 = crate::syscall::abi::AF_NETLINK;
/// Protocols of this kernel.
pub(crate) const NETLINK_ROUTE: u8 = 0;
/// See [`NETLINK_ROUTE`].
pub(crate) const NETLINK_SOCK_DIAG: u8 = 4;
/// See [`NETLINK_ROUTE`].
pub(crate) const NETLINK_GENERIC: u8 = 16;

/// The first port id that is no task's number (-4097, as Linux's), and down from there.
const FIRST_OTHER: u32 = -4097_i32 as u32;

/// Port ids, groups, and what is to be told.
#[derive(Debug, Default)]
pub struct NetlinkTable {
    /// Who has a port id: protocol and id.
    ports: BTreeMap<(u8, u32), SockId>,
    /// Sockets in any group.
    members: Vec<SockId>,
    /// Notifications that wait until no socket is out.
    pending: Vec<Pending>,
    /// See [`Kernel::netlink_scratch`].
    scratch: Option<Region>,
}

impl Kernel {
    /// Closes a socket's side of it.
    pub(crate) fn netlink_release(&mut self, sk: &Sock) {
        if let Proto::Netlink(nl) = &sk.proto {
            if nl.portid() != 0 {
                self.netlink.ports.remove(&(nl.protocol(), nl.portid()));
            }
            self.netlink.members.retain(|&id| id != sk.id);
        }
    }

    /// Makes a port id the socket's.
    ///
    /// # Errors
    /// `EADDRINUSE` if another has it.
    fn netlink_insert(&mut self, sk: &mut Sock, portid: u32) -> Result<(), Errno> {
        let Proto::Netlink(nl) = &mut sk.proto else { return Err(Errno::EINVAL) };
        let key = (nl.protocol(), portid);
        if self.netlink.ports.contains_key(&key) {
            return Err(Errno::EADDRINUSE);
        }
        self.netlink.ports.insert(key, sk.id);
        nl.bound_to(portid);
        Ok(())
    }

    /// Gives the socket a port id: the number of the task that made it, or else a large one (Linux `netlink_autobind`).
    fn netlink_autobind(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        let Proto::Netlink(nl) = &sk.proto else { return Err(Errno::EINVAL) };
        if nl.portid() != 0 {
            return Ok(());
        }
        let protocol = nl.protocol();
        let own = sk.creator.map_or(0, |t| t.0);
        // Negative numbers, as Linux's: no task has them.
        let others = (0..1 << 30).map(|n| FIRST_OTHER - n);
        let mut free = core::iter::once(own).filter(|&n| n != 0).chain(others);
        let portid = free.find(|&n| !self.netlink.ports.contains_key(&(protocol, n))).ok_or(Errno::EADDRINUSE)?;
        self.netlink_insert(sk, portid)
    }
}
