//! Routing: longest prefix match (Linux `fib_lookup`), over a local and a main table.
//!
//! The local table holds our addresses and their broadcasts, and is asked first.

use super::fib_table::Table;
pub(crate) use super::ifaddr::{IFA_F_NOPREFIXROUTE, IFA_F_PERMANENT, IFA_F_SECONDARY, IfAddr};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::hash::KeyedState;
use crate::time::{Duration, Instant};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use hashbrown::HashMap;

/// What kind of destination it is (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Through a device.
    Unicast,
    /// This host.
    Local,
    /// All on a link.
    Broadcast,
    /// A group.
    Multicast,
}

/// A resolved route (Linux `struct rtable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Kind.
    pub kind: RouteKind,
    /// Outgoing interface.
    pub dev: u32,
    /// Source address to use when the socket has none.
    pub saddr: Ipv4Addr,
    /// Whose link-layer address is needed: the gateway, or the destination itself.
    pub nexthop: Ipv4Addr,
    /// Octets of an IP packet.
    pub mtu: u32,
}

/// What to look up (Linux `struct flowi4`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Destination.
    pub daddr: Ipv4Addr,
    /// Source; unspecified: choose.
    pub saddr: Ipv4Addr,
    /// Only through this interface; 0: any.
    pub oif: u32,
}

/// A route as it was entered (Linux `struct fib_alias`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) net: u32,
    pub(crate) len: u8,
    pub(crate) metric: u32,
    pub(crate) kind: RouteKind,
    pub(crate) dev: u32,
    /// Gateway; unspecified: on the link.
    pub(crate) via: Ipv4Addr,
    /// Preferred source; unspecified: an address of the interface.
    pub(crate) src: Ipv4Addr,
    /// `RT_SCOPE_*`: how far the destination is.
    pub(crate) scope: u8,
    /// `RTPROT_*`: who entered it.
    pub(crate) proto: u8,
    /// `RTAX_MTU`; 0: the interface's.
    pub(crate) mtu: u32,
    /// Not a way but an answer.
    pub(crate) reject: Option<Reject>,
}

/// A route that leads nowhere (`RTN_BLACKHOLE`, `RTN_UNREACHABLE`, `RTN_PROHIBIT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject {
    /// Silence.
    Blackhole,
    /// Host unreachable.
    Unreachable,
    /// Administratively prohibited.
    Prohibit,
}

impl Reject {
    /// What a sender on this host hears.
    fn errno(self) -> Errno {
        match self {
            Reject::Blackhole => Errno::EINVAL,
            Reject::Unreachable => Errno::EHOSTUNREACH,
            Reject::Prohibit => Errno::EACCES,
        }
    }
}

impl Entry {
    /// A unicast route as `ip route add` without further words makes it.
    pub(crate) fn unicast(net: u32, len: u8, dev: u32, via: Ipv4Addr, metric: u32) -> Self {
        let scope = if via.is_unspecified() { scope::LINK } else { scope::UNIVERSE };
        let kind = RouteKind::Unicast;
        Self { net, len, metric, kind, dev, via, src: Ipv4Addr::UNSPECIFIED, scope, proto: PROT_BOOT, mtu: 0, reject: None }
    }

    /// The order in which Linux lists routes: as they stand in its trie.
    pub(crate) fn dump_order(&self) -> (u32, core::cmp::Reverse<u8>, u32) {
        (self.net, core::cmp::Reverse(self.len), self.metric)
    }
}

/// What to do with a route of the same prefix and metric (`NLM_F_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Refuse.
    Exclusive,
    /// Take its place; `true`: or be the first.
    Replace(bool),
    /// Stand behind it.
    Append,
    /// Stand before it.
    Prepend,
}

/// `RT_SCOPE_*`.
pub(crate) mod scope {
    pub(crate) const UNIVERSE: u8 = 0;
    pub(crate) const LINK: u8 = 253;
    pub(crate) const HOST: u8 = 254;
}

/// Routes, each with its table: `true` for the local one.
pub(crate) type Placed = Vec<(bool, Entry)>;

/// `RTPROT_KERNEL`.
pub(crate) const PROT_KERNEL: u8 = 2;
/// `RTPROT_BOOT`.
pub(crate) const PROT_BOOT: u8 = 3;

/// Addresses and routes.
#[derive(Debug)]
pub struct Fib {
    local: Table,
    main: Table,
    addrs: Vec<IfAddr>,
    /// MTU of each interface, by its number.
    mtus: Vec<u32>,
    /// Path MTU of destinations for which a router has named a smaller one, and until when to believe it.
    pmtu: HashMap<u32, (u32, Instant), KeyedState>,
    generation: u64,
    /// Interfaces whose routes are passed over: they have no carrier, and `ignore_routes_with_linkdown` is set.
    ignored: Vec<u32>,
}

/// How long a path MTU holds (Linux `mtu_expires`).
const MTU_EXPIRES: Duration = Duration::from_secs(600);
/// Most path MTUs remembered.
const MAX_PMTU: usize = 4096;

/// Network mask of a prefix length.
pub(super) fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

/// True if `addr` lies in `net`/`len`.
pub(crate) fn in_prefix(addr: Ipv4Addr, net: Ipv4Addr, len: u8) -> bool {
    (addr.to_bits() ^ net.to_bits()) & mask(len) == 0
}

impl Fib {
    /// No addresses, no routes; routers choose the destinations whose MTU is remembered.
    pub(crate) fn new(hash: KeyedState) -> Self {
        Self {
            local: Table::default(),
            main: Table::default(),
            addrs: Vec::new(),
            mtus: Vec::new(),
            pmtu: HashMap::with_hasher(hash),
            generation: 0,
            ignored: Vec::new(),
        }
    }

    /// Sets the MTU of an interface.
    pub(crate) fn set_mtu(&mut self, dev: u32, mtu: u32) {
        if self.mtus.len() <= dev as usize {
            self.mtus.resize(dev as usize + 1, 0);
        }
        self.mtus[dev as usize] = mtu;
        self.generation += 1;
    }

    fn mtu(&self, dev: u32) -> u32 {
        self.mtus.get(dev as usize).copied().filter(|&m| m != 0).unwrap_or(1500)
    }

    /// Addresses of all interfaces, in the order in which they are listed.
    pub(crate) fn addrs(&self) -> impl Iterator<Item = &IfAddr> {
        self.addrs.iter()
    }

    /// An address of an interface for talking to `peer` (Linux `inet_select_addr`); of any interface if it has none.
    fn select_addr(&self, dev: u32, peer: Ipv4Addr) -> Ipv4Addr {
        let here = || self.addrs.iter().filter(|a| a.dev == dev);
        let any = || self.addrs.iter().find(|a| !a.addr.is_loopback());
        here().find(|a| in_prefix(peer, a.addr, a.len)).or_else(|| here().next()).or_else(any).map_or(Ipv4Addr::UNSPECIFIED, |a| a.addr)
    }

    /// Adds an address; secondary ones stand behind all primary ones of their interface.
    pub(crate) fn insert_addr(&mut self, ifa: IfAddr) {
        let secondary = ifa.flags & IFA_F_SECONDARY != 0;
        let stays_behind = |a: &IfAddr| a.dev > ifa.dev || a.dev == ifa.dev && !secondary && a.flags & IFA_F_SECONDARY != 0;
        let at = self.addrs.iter().position(stays_behind).unwrap_or(self.addrs.len());
        self.addrs.insert(at, ifa);
    }

    /// Takes out the addresses that `goes` picks.
    pub(crate) fn remove_addrs(&mut self, goes: impl Fn(&IfAddr) -> bool) -> Vec<IfAddr> {
        self.addrs.extract_if(.., |a| goes(a)).collect()
    }

    /// Replaces the label of an interface's addresses when it is renamed.
    pub(crate) fn relabel(&mut self, dev: u32, old: &str, new: &str) {
        for a in self.addrs.iter_mut().filter(|a| a.dev == dev && a.label == old) {
            a.label = String::from(new);
        }
    }

    /// Makes the kernel's routes of an interface those of its addresses: what went and what came,
    /// `true` standing for the local table.
    pub(crate) fn sync(&mut self, dev: u32, up: bool, loopback: bool) -> (Placed, Placed) {
        let mut want = Vec::new();
        for a in self.addrs.iter().filter(|a| a.dev == dev) {
            let first = |b: &&IfAddr| b.dev == dev && b.flags & IFA_F_SECONDARY == 0 && b.len == a.len && b.net() == a.net();
            let primary = if a.flags & IFA_F_SECONDARY == 0 { a.addr } else { self.addrs.iter().find(first).map_or(a.addr, |b| b.addr) };
            for route in a.routes(up, loopback, primary) {
                if !want.contains(&route) {
                    want.push(route);
                }
            }
        }
        let mine = |e: &Entry| e.dev == dev && e.proto == PROT_KERNEL;
        let have = self.local.entries.iter().map(|e| (true, *e)).chain(self.main.entries.iter().map(|e| (false, *e)));
        let gone: Vec<_> = have.clone().filter(|r| mine(&r.1) && !want.contains(r)).collect();
        let fresh: Vec<_> = want.into_iter().filter(|r| !have.clone().any(|h| h == *r)).collect();
        for (local, entry) in &gone {
            let table = if *local { &mut self.local } else { &mut self.main };
            table.take(|e| e == entry);
        }
        for (local, entry) in &fresh {
            if *local { self.local.append(*entry) } else { self.main.append(*entry) }
        }
        self.generation += 1;
        (gone, fresh)
    }

    /// Takes routes out of the main table that `goes` picks.
    pub(crate) fn flush(&mut self, goes: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let gone: Vec<Entry> = self.main.entries.extract_if(.., |e| goes(e)).collect();
        self.main.index();
        self.generation += 1;
        gone
    }

    /// Enters a route (Linux `fib_table_insert`): the one that it replaced.
    ///
    /// # Errors
    /// `EEXIST` if there is one of the same prefix and metric, `ENOENT` if there is none to replace.
    pub(crate) fn enter(&mut self, local: bool, entry: Entry, how: How) -> Result<Option<Entry>, Errno> {
        let table = if local { &mut self.local } else { &mut self.main };
        let key = Table::order(&entry);
        let first = table.entries.iter().position(|e| Table::order(e) == key);
        let mut gone = None;
        match (how, first) {
            (How::Exclusive, Some(_)) => return Err(Errno::EEXIST),
            (How::Replace(_), Some(at)) => gone = Some(core::mem::replace(&mut table.entries[at], entry)),
            (How::Replace(false), None) => return Err(Errno::ENOENT),
            (How::Append | How::Prepend, Some(_)) if table.entries.contains(&entry) => return Err(Errno::EEXIST),
            (How::Prepend, Some(at)) => table.entries.insert(at, entry),
            (How::Append, _) | (_, None) => table.append(entry),
        }
        table.index();
        self.generation += 1;
        Ok(gone)
    }

    /// Takes out the first route that `matches` (Linux `fib_table_delete`).
    pub(crate) fn leave(&mut self, local: bool, matches: impl Fn(&Entry) -> bool) -> Option<Entry> {
        self.generation += 1;
        if local { self.local.take(matches) } else { self.main.take(matches) }
    }

    /// Routes of the main table.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Entry> {
        self.main.entries.iter()
    }

    /// Routes of the local table.
    pub(crate) fn local_routes(&self) -> impl Iterator<Item = &Entry> {
        self.local.entries.iter()
    }

    /// The route for a destination, and whether it is the local table's.
    pub(crate) fn lookup(&self, addr: Ipv4Addr, oif: u32) -> Option<(bool, &Entry)> {
        let local = self.local_route(addr).map(|e| (true, e));
        local.or_else(|| self.main_route(addr, oif).map(|e| (false, e)))
    }

    /// As [`Self::lookup`] in the main table, with carriers or without (`FIB_LOOKUP_IGNORE_LINKSTATE`).
    pub(crate) fn lookup_for_gateway(&self, addr: Ipv4Addr, oif: u32) -> Option<&Entry> {
        self.main.lookup(addr.to_bits(), oif, |_| true)
    }

    fn local_route(&self, addr: Ipv4Addr) -> Option<&Entry> {
        self.local.lookup(addr.to_bits(), 0, |e| self.usable(e))
    }

    fn main_route(&self, addr: Ipv4Addr, oif: u32) -> Option<&Entry> {
        self.main.lookup(addr.to_bits(), oif, |e| self.usable(e))
    }

    fn usable(&self, e: &Entry) -> bool {
        self.ignored.is_empty() || e.kind == RouteKind::Local || !self.ignored.contains(&e.dev)
    }

    /// Sets the interfaces whose routes are passed over.
    pub(crate) fn set_ignored(&mut self, ignored: Vec<u32>) {
        self.ignored = ignored;
        self.generation += 1;
    }

    /// True if routes through the interface are passed over.
    pub(crate) fn ignores(&self, dev: u32) -> bool {
        self.ignored.contains(&dev)
    }
}

impl Kernel {
    /// Resolves a destination for a program's packet; counts if there is no way.
    ///
    /// # Errors
    /// Those of [`Self::ip_route_output_key`].
    pub(crate) fn ip_route_output(&mut self, flow: Flow) -> Result<Route, Errno> {
        let route = self.ip_route_output_key(flow);
        if route == Err(Errno::ENETUNREACH) {
            self.mib.inc(ringlab_counters::Mib::IpOutNoRoutes);
        }
        route
    }

    /// Resolves a destination.
    ///
    /// # Errors
    /// `ENETUNREACH`, `EHOSTUNREACH`, `EACCES`, `EINVAL`, as Linux.
    pub(crate) fn ip_route_output_key(&self, flow: Flow) -> Result<Route, Errno> {
        let Flow { daddr, saddr, oif } = flow;
        if !saddr.is_unspecified() && !self.is_local_addr(saddr) {
            return Err(Errno::EINVAL);
        }
        if oif != 0 {
            let dev = self.devs.get(IfIndex(oif)).ok_or(Errno::ENODEV)?;
            if !dev.up {
                return Err(Errno::ENETUNREACH);
            }
        }
        let daddr = match (daddr.is_unspecified(), saddr.is_unspecified()) {
            (false, _) => daddr,
            (true, false) => saddr,
            (true, true) => Ipv4Addr::LOCALHOST,
        };
        // Who sends to all or to a group from one of the host's addresses means that address's link.
        let to_many = daddr.is_multicast() || daddr.is_broadcast();
        let by_source = oif == 0 && to_many && !saddr.is_unspecified();
        let oif = if by_source { self.dev_get_by_addr(saddr).unwrap_or(0) } else { oif };
        let pick = |auto: Ipv4Addr| if saddr.is_unspecified() { auto } else { saddr };
        let fib = &self.fib;
        if let Some(e) = fib.local_route(daddr) {
            if e.kind == RouteKind::Local {
                return Ok(Route { kind: e.kind, dev: 1, saddr: pick(e.src), nexthop: daddr, mtu: fib.mtu(1) });
            }
            return Ok(Route { kind: e.kind, dev: e.dev, saddr: pick(e.src), nexthop: daddr, mtu: fib.mtu(e.dev) });
        }
        let kind = if daddr.is_multicast() {
            RouteKind::Multicast
        } else if daddr.is_broadcast() {
            RouteKind::Broadcast
        } else {
            RouteKind::Unicast
        };
        let (dev, via, src, cap) = match fib.main_route(daddr, oif) {
            Some(Entry { reject: Some(reject), .. }) => return Err(reject.errno()),
            Some(e) => (e.dev, e.via, e.src, e.mtu),
            // The caller names the interface: the destination is taken to be on its link.
            None if oif != 0 => (oif, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, 0),
            None => return Err(Errno::ENETUNREACH),
        };
        let direct = via.is_unspecified() || kind != RouteKind::Unicast;
        let nexthop = if direct { daddr } else { via };
        let auto = if src.is_unspecified() { fib.select_addr(dev, nexthop) } else { src };
        let mtu = if kind == RouteKind::Unicast { self.ip_pmtu(daddr, dev) } else { fib.mtu(dev) };
        let mtu = if cap == 0 { mtu } else { mtu.min(cap) };
        Ok(Route { kind, dev, saddr: pick(auto), nexthop, mtu })
    }

    /// Where a received packet goes: `None` if nowhere (Linux `ip_route_input`). Local and broadcast before the main table.
    pub(crate) fn ip_route_input(&self, daddr: Ipv4Addr) -> Option<Route> {
        let fib = &self.fib;
        let kind = self.inet_addr_type(daddr);
        if kind != RouteKind::Unicast {
            return Some(Route { kind, dev: 1, saddr: daddr, nexthop: daddr, mtu: fib.mtu(1) });
        }
        let e = fib.main_route(daddr, 0).filter(|e| e.reject.is_none())?;
        let nexthop = if e.via.is_unspecified() { daddr } else { e.via };
        Some(Route { kind, dev: e.dev, saddr: fib.select_addr(e.dev, nexthop), nexthop, mtu: fib.mtu(e.dev) })
    }

    /// The way of a packet that is passed on.
    ///
    /// # Errors
    /// Why there is none: `ENETUNREACH`, or what a route that leads nowhere says.
    pub(super) fn ip_route_forward(&self, daddr: Ipv4Addr) -> Result<Route, Errno> {
        match self.fib.main_route(daddr, 0) {
            Some(Entry { reject: Some(reject), .. }) => Err(reject.errno()),
            Some(_) => self.ip_route_input(daddr).ok_or(Errno::ENETUNREACH),
            None => Err(Errno::ENETUNREACH),
        }
    }

    /// True if an address is on the link of an interface: no gateway leads there.
    pub(super) fn ip_is_on_link(&self, addr: Ipv4Addr, dev: u32) -> bool {
        self.fib.main_route(addr, 0).is_some_and(|e| e.dev == dev && e.via.is_unspecified() && e.reject.is_none())
    }

    /// Changes whenever routes or addresses do: cached routes of another generation are stale.
    pub(crate) fn fib_generation(&self) -> u64 {
        self.fib.generation
    }

    /// Cached routes are looked up afresh (Linux `rt_cache_flush`).
    pub(crate) fn rt_cache_flush(&mut self) {
        self.fib.generation += 1;
    }

    /// What an address is to this host (Linux `inet_addr_type`).
    pub(crate) fn inet_addr_type(&self, addr: Ipv4Addr) -> RouteKind {
        if addr.is_broadcast() || addr.is_unspecified() {
            return RouteKind::Broadcast;
        }
        if addr.is_multicast() {
            return RouteKind::Multicast;
        }
        self.fib.local_route(addr).map_or(RouteKind::Unicast, |e| e.kind)
    }

    /// Adds a route to the main table (Linux `fib_table_insert`).
    pub(crate) fn fib_add_route(&mut self, prefix: (Ipv4Addr, u8), via: Ipv4Addr, dev: u32, metric: u32) -> Result<(), Errno> {
        let (net, len) = prefix;
        if len > 32 || net.to_bits() & !mask(len) != 0 {
            return Err(Errno::EINVAL);
        }
        if dev != 0 && self.devs.get(IfIndex(dev)).is_none() {
            return Err(Errno::ENODEV);
        }
        let dev = if via.is_unspecified() {
            if dev == 0 {
                return Err(Errno::ENODEV);
            }
            dev
        } else {
            if self.inet_addr_type(via) != RouteKind::Unicast {
                return Err(Errno::EINVAL);
            }
            let on_link = self.fib.lookup_for_gateway(via, dev).filter(|e| e.via.is_unspecified());
            on_link.ok_or(Errno::ENETUNREACH)?.dev
        };
        if !self.fib.main.insert(Entry::unicast(net.to_bits(), len, dev, via, metric)) {
            return Err(Errno::EEXIST);
        }
        self.fib.generation += 1;
        Ok(())
    }

    /// Removes a route from the main table (Linux `fib_table_delete`).
    pub(crate) fn fib_del_route(&mut self, prefix: (Ipv4Addr, u8), via: Ipv4Addr, dev: u32, metric: u32) -> Result<(), Errno> {
        let (net, len) = prefix;
        let entry = Entry::unicast(net.to_bits(), len, dev, via, metric);
        if len > 32 || !self.fib.main.remove(&entry) {
            return Err(Errno::ESRCH);
        }
        self.fib.generation += 1;
        Ok(())
    }

    /// A router names a smaller MTU of the path (Linux `ip_rt_update_pmtu`).
    pub(crate) fn ip_update_pmtu(&mut self, daddr: Ipv4Addr, mtu: u32) {
        let mtu = mtu.max(self.sysctl.route_min_pmtu as u32);
        let known = self.ip_route_input(daddr).map_or(0, |r| self.ip_pmtu(daddr, r.dev));
        if mtu >= known {
            return;
        }
        if self.fib.pmtu.len() >= MAX_PMTU {
            let now = self.now;
            self.fib.pmtu.retain(|_, e| e.1 > now);
            if self.fib.pmtu.len() >= MAX_PMTU {
                self.fib.pmtu.clear();
            }
        }
        self.fib.pmtu.insert(daddr.to_bits(), (mtu, self.now + MTU_EXPIRES));
        self.fib.generation += 1;
    }

    fn ip_pmtu(&self, daddr: Ipv4Addr, dev: u32) -> u32 {
        let mtu = self.fib.mtu(dev);
        match self.fib.pmtu.get(&daddr.to_bits()) {
            Some(&(path, until)) if until > self.now => path.min(mtu),
            _ => mtu,
        }
    }
}
