//! `NETLINK_ROUTE` (Linux `net/core/rtnetlink.c`): what `ip` shows and changes.
//!
//! Links and addresses are those of [`crate::dev`] and [`crate::ip`]; whatever an attribute asks for that
//! this host does not have is refused, never passed over.

mod addr;
mod link;
mod neigh;
pub(crate) mod notify;
mod route;
mod settings;

use super::request::{Answer, Refusal, Request};
use super::wire::flag;
use crate::Kernel;
use crate::errno::Errno;
use alloc::vec::Vec;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;

/// `RTM_*`: of each kind `NEW`; `DEL`, `GET`, `SET` follow.
mod rtm {
    pub(super) const NEWLINK: u16 = 16;
    pub(super) const DELLINK: u16 = 17;
    pub(super) const GETLINK: u16 = 18;
    pub(super) const SETLINK: u16 = 19;
    pub(super) const NEWADDR: u16 = 20;
    pub(super) const DELADDR: u16 = 21;
    pub(super) const GETADDR: u16 = 22;
    pub(super) const NEWROUTE: u16 = 24;
    pub(super) const DELROUTE: u16 = 25;
    pub(super) const GETROUTE: u16 = 26;
    pub(super) const NEWNEIGH: u16 = 28;
    pub(super) const DELNEIGH: u16 = 29;
    pub(super) const GETNEIGH: u16 = 30;
    pub(super) const NEWRULE: u16 = 32;
    pub(super) const GETRULE: u16 = 34;
    pub(super) const NEWQDISC: u16 = 36;
    pub(super) const GETQDISC: u16 = 38;
    pub(super) const NEWNEIGHTBL: u16 = 64;
    pub(super) const GETNEIGHTBL: u16 = 66;
    pub(super) const NEWNETCONF: u16 = 80;
    pub(super) const GETNETCONF: u16 = 82;
    pub(super) const NEWNSID: u16 = 88;
    pub(super) const GETNSID: u16 = 90;
    pub(super) const MAX: u16 = 123;
}

/// Dumps of which there is nothing: traffic classes and filters, multicast, address labels, multicast databases, statistics, chains.
/// Next hops (106) are not among them: routing daemons see by the answer whether they may use them.
const EMPTY_DUMPS: &[u16] = &[42, 46, 58, 62, 74, 86, 90, 94, 102, 114, 118, 122];
/// `FR_ACT_TO_TBL`.
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
/// The rules that a kernel starts with: priority and table.
const RULES: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];
/// Octets of `struct rtgenmsg`; attributes of a namespace's number, and the one that says that there is none.
const RTGENMSG: usize = 1;
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const NETNSA_FD: u16 = 3;
const NSID_NOT_ASSIGNED: u32 = u32::MAX;

impl Kernel {
    /// Linux `rtnetlink_rcv_msg`.
    pub(super) fn rtnetlink_rcv(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let kind = req.hdr.kind;
        if kind > rtm::MAX {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let Some(&family) = req.payload.first() else { return Ok(Answer::Done) };
        let dump = kind & 3 == 2 && req.is_dump();
        match kind {
            rtm::GETLINK if dump => self.rtnl_dump_links(req, family),
            rtm::GETLINK => self.rtnl_getlink(req),
            rtm::NEWLINK | rtm::SETLINK => self.rtnl_setlink(req),
            rtm::DELLINK => self.rtnl_dellink(req),
            rtm::GETADDR if dump => self.rtnl_dump_addrs(req, family),
            rtm::NEWADDR if family == AF_INET => self.rtnl_newaddr(req),
            rtm::DELADDR if family == AF_INET => self.rtnl_deladdr(req),
            rtm::GETROUTE if dump => self.rtnl_dump_routes(req, family),
            rtm::GETROUTE if family == AF_INET => self.rtnl_getroute(req),
            rtm::NEWROUTE if family == AF_INET => self.rtnl_newroute(req),
            rtm::DELROUTE if family == AF_INET => self.rtnl_delroute(req),
            rtm::GETNEIGH if dump && family == AF_BRIDGE => Ok(self.rtnl_dump_fdb(req)),
            rtm::GETNEIGH if dump => self.rtnl_dump_neighs(req, family),
            rtm::GETNEIGH => self.rtnl_getneigh(req),
            rtm::NEWNEIGH if family == AF_INET => self.rtnl_newneigh(req),
            rtm::DELNEIGH if family == AF_INET => self.rtnl_delneigh(req),
            rtm::GETRULE if dump => Ok(dump_rules(req, family)),
            rtm::GETNEIGHTBL if dump => Ok(self.rtnl_dump_neigh_tables(req, family)),
            rtm::GETNETCONF if dump => Ok(self.rtnl_dump_netconf(req, family)),
            rtm::GETNSID if !dump => rtnl_getnsid(req),
            rtm::GETQDISC if dump => Ok(self.rtnl_dump_qdiscs(req)),
            kind if dump && EMPTY_DUMPS.contains(&kind) => Ok(Answer::Dump(Vec::new())),
            _ => Err(Errno::EOPNOTSUPP.into()),
        }
    }
}

/// The number by which this host knows another network (Linux `rtnl_net_getid`): `ip monitor` asks whether there are such
/// numbers. None has one here.
fn rtnl_getnsid(req: &Request<'_>) -> Result<Answer, Refusal> {
    let (_, attrs) = req.split(RTGENMSG)?;
    if [NETNSA_NSID, NETNSA_PID, NETNSA_FD].into_iter().all(|kind| attrs.get(kind).is_none()) {
        return Err(Refusal { errno: Errno::EINVAL, text: "Peer netns reference is missing" });
    }
    let mut m = req.reply(rtm::NEWNSID, 0);
    m.bytes(&[AF_UNSPEC, 0, 0, 0]).u32(NETNSA_NSID, NSID_NOT_ASSIGNED);
    Ok(Answer::One(m.finish()))
}

fn dump_rules(req: &Request<'_>, family: u8) -> Answer {
    if family != AF_UNSPEC && family != AF_INET {
        return Answer::Dump(Vec::new());
    }
    let one = |(priority, table): (u32, u32)| {
        let mut m = req.reply(rtm::NEWRULE, flag::MULTI);
        m.bytes(&[AF_INET, 0, 0, 0, table as u8, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
        m.u32(FRA_TABLE, table).u32(FRA_SUPPRESS_PREFIXLEN, u32::MAX).u8(FRA_PROTOCOL, 2);
        if priority != 0 {
            m.u32(FRA_PRIORITY, priority);
        }
        m.finish()
    };
    Answer::Dump(RULES.into_iter().map(one).collect())
}
