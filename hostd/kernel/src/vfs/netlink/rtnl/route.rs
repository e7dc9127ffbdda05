//! Routes: `ip route`.

use super::super::request::{Answer, Refusal, Request, refuse};
use super::super::wire::{Attrs, Message, flag, word};
use super::{AF_INET, AF_UNSPEC, rtm};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::ip::devconf::Conf;
use crate::ip::route::{Entry, Flow, How, Reject, Route, RouteKind};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

/// Octets of `struct rtmsg`.
const RTMSG: usize = 12;
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
/// `RT_SCOPE_NOWHERE`: any, of a route to be deleted.
const SCOPE_NOWHERE: u8 = 255;
/// `RTM_F_CLONED`, `RTM_F_FIB_MATCH`.
const F_CLONED: u32 = 0x200;
const F_FIB_MATCH: u32 = 0x2000;
/// `RTCF_LOCAL`, `RTCF_BROADCAST`, `RTCF_MULTICAST`.
const RTCF_LOCAL: u32 = 0x8000_0000;
const RTCF_BROADCAST: u32 = 0x1000_0000;
const RTCF_MULTICAST: u32 = 0x2000_0000;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;
/// `RTNH_F_DEAD`.
const DEAD: u32 = 1;
/// `RTNH_F_LINKDOWN`.
const LINKDOWN: u32 = 16;
/// `RTAX_MTU`.
const RTAX_MTU: u16 = 2;

/// `RTN_*`.
mod rtn {
    pub(super) const UNSPEC: u8 = 0;
    pub(super) const UNICAST: u8 = 1;
    pub(super) const LOCAL: u8 = 2;
    pub(super) const BROADCAST: u8 = 3;
    pub(super) const MULTICAST: u8 = 5;
    pub(super) const BLACKHOLE: u8 = 6;
    pub(super) const UNREACHABLE: u8 = 7;
    pub(super) const PROHIBIT: u8 = 8;
}

/// `RTA_*`.
mod rta {
    pub(super) const DST: u16 = 1;
    pub(super) const SRC: u16 = 2;
    pub(super) const IIF: u16 = 3;
    pub(super) const OIF: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const PREFSRC: u16 = 7;
    pub(super) const METRICS: u16 = 8;
    pub(super) const CACHEINFO: u16 = 12;
    pub(super) const TABLE: u16 = 15;
    pub(super) const UID: u16 = 25;
    pub(super) const IP_PROTO: u16 = 27;
    pub(super) const SPORT: u16 = 28;
    pub(super) const DPORT: u16 = 29;
}

/// `struct rtmsg`.
#[derive(Debug, Clone, Copy)]
struct RtMsg {
    dst_len: u8,
    src_len: u8,
    tos: u8,
    table: u32,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

impl RtMsg {
    fn read(head: &[u8], attrs: Attrs<'_>) -> Result<Self, Errno> {
        let table = attrs.get(rta::TABLE).map(|a| a.u32()).transpose()?.unwrap_or(head[4].into());
        let flags = word(head, 8).unwrap_or(0);
        let (dst_len, src_len, tos) = (head[1], head[2], head[3]);
        Ok(Self { dst_len, src_len, tos, table, protocol: head[5], scope: head[6], kind: head[7], flags })
    }
}

impl Kernel {
    pub(super) fn rtnl_dump_routes(&self, req: &Request<'_>, family: u8) -> Result<Answer, Refusal> {
        if family != AF_UNSPEC && family != AF_INET {
            return Ok(Answer::Dump(Vec::new()));
        }
        let mut want = (0, 0, 0, 0);
        if req.strict {
            let (head, attrs) = req.split(RTMSG)?;
            let msg = RtMsg::read(head, attrs)?;
            let oif = attrs.get(rta::OIF).map(|a| a.u32()).transpose()?.unwrap_or(0);
            if msg.dst_len != 0 || msg.src_len != 0 || msg.tos != 0 {
                return refuse(Errno::EINVAL, "ipv4: Invalid values in header for FIB dump request");
            }
            if msg.flags & F_CLONED != 0 {
                return Ok(Answer::Dump(Vec::new()));
            }
            want = (msg.table, msg.protocol, msg.kind, oif);
        }
        let (table, protocol, kind, oif) = want;
        if !matches!(table, 0 | 253 | TABLE_MAIN | TABLE_LOCAL) {
            return refuse(Errno::ENOENT, "ipv4: FIB table does not exist");
        }
        let matches = |local: bool, e: &Entry| {
            (table == 0 || table == if local { TABLE_LOCAL } else { TABLE_MAIN })
                && (protocol == 0 || protocol == e.proto)
                && (kind == rtn::UNSPEC || kind == kind_of(e))
                && (oif == 0 || oif == e.dev)
        };
        let mut main: Vec<&Entry> = self.fib.routes().collect();
        main.sort_by_key(|e| e.dump_order());
        let mut local: Vec<&Entry> = self.fib.local_routes().collect();
        local.sort_by_key(|e| e.dump_order());
        let all = main.into_iter().map(|e| (false, e)).chain(local.into_iter().map(|e| (true, e)));
        let flags = flag::MULTI | if want == (0, 0, 0, 0) { 0 } else { flag::DUMP_FILTERED };
        let one = |(local, e): (bool, &Entry)| {
            let mut m = req.reply(rtm::NEWROUTE, flags);
            fill(&mut m, local, e, self.nexthop_flags(e));
            m.finish()
        };
        Ok(Answer::Dump(all.filter(|r| matches(r.0, r.1)).map(one).collect()))
    }

    /// `ip route get` (Linux `inet_rtm_getroute`).
    pub(super) fn rtnl_getroute(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(RTMSG)?;
        let msg = RtMsg::read(head, attrs)?;
        let addr = |kind| attrs.get(kind).map(|a| a.addr()).transpose();
        let number = |kind| attrs.get(kind).map(|a| a.u32()).transpose();
        let (daddr, saddr) = (addr(rta::DST)?.unwrap_or(Ipv4Addr::UNSPECIFIED), addr(rta::SRC)?.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let (oif, iif) = (number(rta::OIF)?.unwrap_or(0), number(rta::IIF)?.unwrap_or(0));
        let route = if iif == 0 {
            self.ip_route_output(Flow { daddr, saddr, oif })?
        } else {
            self.devs.get(IfIndex(iif)).ok_or(Errno::ENODEV)?;
            let route = self.ip_route_input(daddr).ok_or(Errno::EHOSTUNREACH)?;
            if route.kind == RouteKind::Unicast && self.in_dev_conf(IfIndex(iif), Conf::Forwarding) == 0 {
                return Err(Errno::EHOSTUNREACH.into());
            }
            route
        };
        let found = self.fib.lookup(daddr, oif).map(|(local, e)| (local, *e));
        if msg.flags & F_FIB_MATCH != 0 {
            let (local, entry) = found.ok_or(Errno::EHOSTUNREACH)?;
            let mut m = req.reply(rtm::NEWROUTE, 0);
            fill(&mut m, local, &entry, self.nexthop_flags(&entry));
            return Ok(Answer::One(m.finish()));
        }
        Ok(Answer::One(self.resolved(req, (daddr, saddr, iif), &route)))
    }

    /// A resolved route (Linux `rt_fill_info`).
    ///
    /// The table is always the main one: Linux keeps the local one in it while there are no rules but those it starts with.
    fn resolved(&self, req: &Request<'_>, asked: (Ipv4Addr, Ipv4Addr, u32), route: &Route) -> Vec<u8> {
        let table = TABLE_MAIN;
        let (daddr, saddr, iif) = asked;
        let (kind, cache) = match route.kind {
            RouteKind::Unicast => (rtn::UNICAST, 0),
            RouteKind::Local => (rtn::LOCAL, RTCF_LOCAL),
            RouteKind::Broadcast => (rtn::BROADCAST, RTCF_BROADCAST | RTCF_LOCAL),
            RouteKind::Multicast => (rtn::MULTICAST, RTCF_MULTICAST),
        };
        let mut m = req.reply(rtm::NEWROUTE, 0);
        let src_len = if saddr.is_unspecified() { 0 } else { 32 };
        m.bytes(&[AF_INET, 32, src_len, 0, table as u8, 0, 0, kind]).bytes(&(F_CLONED | cache).to_ne_bytes());
        m.u32(rta::TABLE, table).addr(rta::DST, daddr);
        if src_len != 0 {
            m.addr(rta::SRC, saddr);
        }
        m.u32(rta::OIF, route.dev);
        if iif == 0 && route.saddr != saddr {
            m.addr(rta::PREFSRC, route.saddr);
        }
        if route.kind == RouteKind::Unicast && route.nexthop != daddr {
            m.addr(rta::GATEWAY, route.nexthop);
        }
        let own = self.devs.get(IfIndex(route.dev)).map_or(route.mtu, |d| d.mtu);
        if route.mtu < own {
            m.nest(rta::METRICS, |m| {
                m.u32(RTAX_MTU, route.mtu);
            });
        }
        if iif == 0 {
            m.u32(rta::UID, 0);
        } else {
            m.u32(rta::IIF, iif);
        }
        m.words(rta::CACHEINFO, &[0; 8]);
        m.finish()
    }

    pub(super) fn rtnl_newroute(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(RTMSG)?;
        let msg = RtMsg::read(head, attrs)?;
        let entry = read_route(&msg, attrs)?;
        let local = match msg.table {
            0 | TABLE_MAIN => false,
            TABLE_LOCAL => true,
            _ => return refuse(Errno::EOPNOTSUPP, "there are the tables main and local only"),
        };
        let entry = self.check_nexthop(entry, msg.flags & ONLINK != 0)?;
        if !entry.src.is_unspecified() && !self.is_local_addr(entry.src) {
            return refuse(Errno::EINVAL, "Invalid prefsrc address");
        }
        let flags = req.hdr.flags;
        let how = match () {
            () if flags & flag::EXCL != 0 => How::Exclusive,
            () if flags & flag::REPLACE != 0 => How::Replace(flags & flag::CREATE != 0),
            () if flags & flag::APPEND != 0 => How::Append,
            () if flags & flag::CREATE != 0 => How::Prepend,
            () => return Err(Errno::ENOENT.into()),
        };
        let gone = self.fib.enter(local, entry, how)?;
        if let Some(old) = gone {
            self.rtnl_routes(false, &[(local, old)]);
        }
        self.rtnl_routes(true, &[(local, entry)]);
        Ok(Answer::Done)
    }

    /// The next hop of a route to be entered (Linux `fib_check_nh`): its interface is filled in.
    fn check_nexthop(&self, mut entry: Entry, onlink: bool) -> Result<Entry, Refusal> {
        if entry.reject.is_some() {
            entry.dev = 0;
            return Ok(entry);
        }
        if entry.dev != 0 {
            let dev = self.devs.get(IfIndex(entry.dev)).ok_or(Errno::ENODEV)?;
            if !dev.up {
                return refuse(Errno::ENETDOWN, "Device for nexthop is not up");
            }
        }
        if entry.via.is_unspecified() {
            return if entry.dev == 0 { Err(Errno::ENODEV.into()) } else { Ok(entry) };
        }
        if self.inet_addr_type(entry.via) != RouteKind::Unicast {
            return refuse(Errno::EINVAL, "Nexthop has invalid gateway");
        }
        if onlink {
            return if entry.dev == 0 { refuse(Errno::ENODEV, "Nexthop device is missing") } else { Ok(entry) };
        }
        match self.fib.lookup_for_gateway(entry.via, entry.dev) {
            Some(e) if e.via.is_unspecified() && e.reject.is_none() => {
                entry.dev = e.dev;
                Ok(entry)
            }
            _ => refuse(Errno::ENETUNREACH, "Nexthop has invalid gateway"),
        }
    }

    pub(super) fn rtnl_delroute(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(RTMSG)?;
        let msg = RtMsg::read(head, attrs)?;
        let want = read_route(&RtMsg { kind: if msg.kind == rtn::UNSPEC { rtn::UNICAST } else { msg.kind }, ..msg }, attrs)?;
        let local = match msg.table {
            0 | TABLE_MAIN => false,
            TABLE_LOCAL => true,
            _ => return refuse(Errno::ESRCH, "ipv4: FIB table does not exist"),
        };
        let has = |kind| attrs.get(kind).is_some();
        let matches = |e: &Entry| {
            (e.net, e.len) == (want.net, want.len)
                && (!has(rta::PRIORITY) || e.metric == want.metric)
                && (msg.kind == rtn::UNSPEC || kind_of(e) == msg.kind)
                && (msg.scope == SCOPE_NOWHERE || e.scope == msg.scope)
                && (msg.protocol == 0 || e.proto == msg.protocol)
                && (!has(rta::PREFSRC) || e.src == want.src)
                && (!has(rta::OIF) || e.dev == want.dev)
                && (!has(rta::GATEWAY) || e.via == want.via)
        };
        let gone = self.fib.leave(local, matches).ok_or(Errno::ESRCH)?;
        self.rtnl_routes(false, &[(local, gone)]);
        Ok(Answer::Done)
    }
}

/// A route of a request; the next hop is not looked at yet (Linux `rtm_to_fib_config`).
fn read_route(msg: &RtMsg, attrs: Attrs<'_>) -> Result<Entry, Refusal> {
    if msg.dst_len > 32 || msg.src_len != 0 || msg.tos != 0 {
        return refuse(Errno::EINVAL, "Invalid prefix length, source or type of service");
    }
    let mut e = Entry::unicast(0, msg.dst_len, 0, Ipv4Addr::UNSPECIFIED, 0);
    (e.scope, e.proto) = (msg.scope, msg.protocol);
    match msg.kind {
        rtn::UNICAST => {}
        rtn::LOCAL => e.kind = RouteKind::Local,
        rtn::BROADCAST => e.kind = RouteKind::Broadcast,
        rtn::BLACKHOLE => e.reject = Some(Reject::Blackhole),
        rtn::UNREACHABLE => e.reject = Some(Reject::Unreachable),
        rtn::PROHIBIT => e.reject = Some(Reject::Prohibit),
        _ => return Err(Errno::EOPNOTSUPP.into()),
    }
    for a in attrs {
        match a.kind {
            rta::DST => e.net = a.addr()?.to_bits(),
            rta::OIF => e.dev = a.u32()?,
            rta::GATEWAY => e.via = a.addr()?,
            rta::PRIORITY => e.metric = a.u32()?,
            rta::PREFSRC => e.src = a.addr()?,
            rta::METRICS => {
                for metric in a.nested() {
                    match metric.kind {
                        RTAX_MTU => e.mtu = metric.u32()?,
                        _ => return refuse(Errno::EOPNOTSUPP, "mtu is the only metric of a route here"),
                    }
                }
            }
            rta::TABLE | rta::IP_PROTO | rta::SPORT | rta::DPORT => {}
            _ => return Err(Errno::EOPNOTSUPP.into()),
        }
    }
    let mask = u32::MAX.checked_shl(32 - u32::from(e.len)).unwrap_or(0);
    if e.net & !mask != 0 {
        return refuse(Errno::EINVAL, "Invalid prefix for given prefix length");
    }
    Ok(e)
}

/// `RTN_*` of a route.
fn kind_of(e: &Entry) -> u8 {
    match (e.reject, e.kind) {
        (Some(Reject::Blackhole), _) => rtn::BLACKHOLE,
        (Some(Reject::Unreachable), _) => rtn::UNREACHABLE,
        (Some(Reject::Prohibit), _) => rtn::PROHIBIT,
        (None, RouteKind::Unicast) => rtn::UNICAST,
        (None, RouteKind::Local) => rtn::LOCAL,
        (None, RouteKind::Broadcast) => rtn::BROADCAST,
        (None, RouteKind::Multicast) => rtn::MULTICAST,
    }
}

impl Kernel {
    /// `RTNH_F_*` of a route: without a carrier, and passed over for that.
    pub(super) fn nexthop_flags(&self, e: &Entry) -> u32 {
        match (self.is_linkdown(e), self.fib.ignores(e.dev)) {
            (false, _) => 0,
            (true, false) => LINKDOWN,
            (true, true) => LINKDOWN | DEAD,
        }
    }
}

/// `struct rtmsg` and its attributes (Linux `fib_dump_info`); `flags`: [`Kernel::nexthop_flags`].
pub(super) fn fill(m: &mut Message, local: bool, e: &Entry, flags: u32) {
    let table = if local { TABLE_LOCAL } else { TABLE_MAIN };
    m.bytes(&[AF_INET, e.len, 0, 0, table as u8, e.proto, e.scope, kind_of(e)]).bytes(&flags.to_ne_bytes());
    m.u32(rta::TABLE, table);
    if e.len != 0 {
        m.addr(rta::DST, Ipv4Addr::from_bits(e.net));
    }
    if e.metric != 0 {
        m.u32(rta::PRIORITY, e.metric);
    }
    if e.mtu != 0 {
        m.nest(rta::METRICS, |m| {
            m.u32(RTAX_MTU, e.mtu);
        });
    }
    if !e.src.is_unspecified() {
        m.addr(rta::PREFSRC, e.src);
    }
    if !e.via.is_unspecified() {
        m.addr(rta::GATEWAY, e.via);
    }
    if e.dev != 0 {
        m.u32(rta::OIF, e.dev);
    }
}
