//! Multicast memberships of sockets (Linux `ip_mc_join_group`, `ip_mc_source`).
//!
//! A socket is a member of a group on an interface, of all its sources but some
//! (`IP_ADD_MEMBERSHIP`, `IP_BLOCK_SOURCE`) or of some only
//! (`IP_ADD_SOURCE_MEMBERSHIP`). The interface receives the group as long as any socket is
//! a member, and tells routers so (`ip/igmp.rs`).

use super::ipopt::octet;
use super::optnum::{ip, level};
use super::sockopt::{flag, int};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::ip::route::{Flow, RouteKind};
use crate::sock::{Proto, Sock};
use crate::syscall::OptVal;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

/// Groups a socket may join (`igmp_max_memberships`).
const MAX_GROUPS: usize = 20;
/// Sources a socket may name in a group (`igmp_max_msf`).
const MAX_SOURCES: usize = 10;

/// The sources of a group that a socket takes (`include`), or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFilter {
    group: Ipv4Addr,
    dev: u32,
    include: bool,
    sources: Vec<Ipv4Addr>,
}

impl Kernel {
    pub(super) fn ip_mc_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        let tcp = matches!(sk.proto, Proto::Tcp(_));
        match name {
            ip::MULTICAST_TTL | ip::MULTICAST_IF if tcp => return Err(Errno::EINVAL),
            ip::MULTICAST_TTL => {
                sk.inet.mc_ttl = match int(val)? {
                    -1 => None,
                    n => Some(octet(n)?),
                }
            }
            ip::MULTICAST_LOOP => sk.inet.mc_loop_off = !flag(val)?,
            ip::MULTICAST_ALL => {
                sk.inet.mc_all_off = match int(val)? {
                    n @ 0..=1 => n == 0,
                    _ => return Err(Errno::EINVAL),
                }
            }
            ip::MULTICAST_IF => {
                let (addr, index) = match *val {
                    OptVal::Membership(_, addr, index) => (addr, index),
                    OptVal::Int(n) => (Ipv4Addr::from(u32::from_be(n as u32)), 0),
                    _ => return Err(Errno::EINVAL),
                };
                if index != 0 && self.devs.get(IfIndex(index)).is_none() {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                sk.inet.mc_if = self.mc_interface(Ipv4Addr::UNSPECIFIED, addr, index, true)?;
                sk.inet.mc_addr = (sk.inet.mc_if != 0).then_some(addr);
            }
            ip::ADD_MEMBERSHIP | ip::DROP_MEMBERSHIP | ip::MCAST_JOIN_GROUP | ip::MCAST_LEAVE_GROUP => match *val {
                OptVal::Membership(group, addr, index) => {
                    let add = matches!(name, ip::ADD_MEMBERSHIP | ip::MCAST_JOIN_GROUP);
                    self.membership(sk, add, group, addr, index)?;
                }
                _ => return Err(Errno::EINVAL),
            },
            ip::UNBLOCK_SOURCE..=ip::DROP_SOURCE_MEMBERSHIP
            | ip::MCAST_BLOCK_SOURCE
            | ip::MCAST_UNBLOCK_SOURCE
            | ip::MCAST_JOIN_SOURCE_GROUP
            | ip::MCAST_LEAVE_SOURCE_GROUP => match *val {
                OptVal::Source(group, source, addr, index) => self.mc_source(sk, name, group, source, addr, index)?,
                _ => return Err(Errno::EINVAL),
            },
            ip::MSFILTER | ip::MCAST_MSFILTER => return Err(Errno::EINVAL),
            _ => return Self::set_kept(sk, level::IP, name, int(val)?),
        }
        Ok(())
    }

    /// The interface that a membership or `IP_MULTICAST_IF` names: by number, by address, or by the route to the group.
    fn mc_interface(&mut self, group: Ipv4Addr, addr: Ipv4Addr, index: u32, none_ok: bool) -> Result<u32, Errno> {
        if index != 0 {
            return self.devs.get(IfIndex(index)).map(|_| index).ok_or(Errno::ENODEV);
        }
        if !addr.is_unspecified() {
            return self.ifindex_by_addr(addr).ok_or(if none_ok { Errno::EADDRNOTAVAIL } else { Errno::ENODEV });
        }
        if none_ok {
            return Ok(0);
        }
        let flow = Flow { daddr: group, saddr: Ipv4Addr::UNSPECIFIED, oif: 0 };
        self.ip_route_output(flow).map(|r| r.dev).map_err(|_| Errno::ENODEV)
    }

    fn membership(&mut self, sk: &mut Sock, add: bool, group: Ipv4Addr, addr: Ipv4Addr, index: u32) -> Result<(), Errno> {
        if matches!(sk.proto, Proto::Tcp(_)) {
            return Err(Errno::EPROTO);
        }
        if !group.is_multicast() {
            return Err(if add { Errno::EINVAL } else { Errno::EADDRNOTAVAIL });
        }
        let dev = self.mc_interface(group, addr, index, false)?;
        let at = sk.inet.mc_groups.iter().position(|&g| g == (group, dev));
        match (add, at) {
            (true, Some(_)) => return Err(Errno::EADDRINUSE),
            (true, None) if sk.inet.mc_groups.len() >= MAX_GROUPS => return Err(Errno::ENOBUFS),
            (true, None) => {
                sk.inet.mc_groups.push((group, dev));
                self.join_group(group, dev);
            }
            (false, None) => return Err(Errno::EADDRNOTAVAIL),
            (false, Some(at)) => {
                sk.inet.mc_groups.remove(at);
                sk.inet.mc_sources.retain(|f| (f.group, f.dev) != (group, dev));
                self.leave_group(group, dev);
            }
        }
        Ok(())
    }

    /// Adds or removes a source (Linux `ip_mc_source`).
    fn mc_source(&mut self, sk: &mut Sock, name: i32, group: Ipv4Addr, source: Ipv4Addr, addr: Ipv4Addr, index: u32) -> Result<(), Errno> {
        if matches!(sk.proto, Proto::Tcp(_)) || !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let include = !matches!(name, ip::BLOCK_SOURCE | ip::UNBLOCK_SOURCE | ip::MCAST_BLOCK_SOURCE | ip::MCAST_UNBLOCK_SOURCE);
        let add = matches!(name, ip::BLOCK_SOURCE | ip::MCAST_BLOCK_SOURCE | ip::ADD_SOURCE_MEMBERSHIP | ip::MCAST_JOIN_SOURCE_GROUP);
        let dev = self.mc_interface(group, addr, index, false)?;
        let member = sk.inet.mc_groups.contains(&(group, dev));
        let at = sk.inet.mc_sources.iter().position(|f| (f.group, f.dev) == (group, dev));
        let at = match at {
            Some(at) if sk.inet.mc_sources[at].include != include => return Err(Errno::EINVAL),
            Some(at) => at,
            // A member of all sources excludes; nobody can be included any more.
            None if member == include => return Err(Errno::EINVAL),
            None if !add => return Err(Errno::EADDRNOTAVAIL),
            None => {
                if include {
                    self.membership(sk, true, group, addr, index)?;
                }
                sk.inet.mc_sources.push(SourceFilter { group, dev, include, sources: Vec::new() });
                sk.inet.mc_sources.len() - 1
            }
        };
        let sources = &mut sk.inet.mc_sources[at].sources;
        match (add, sources.iter().position(|&s| s == source)) {
            (true, Some(_)) | (false, None) => return Err(Errno::EADDRNOTAVAIL),
            (true, None) if sources.len() >= MAX_SOURCES => return Err(Errno::ENOBUFS),
            (true, None) => sources.push(source),
            (false, Some(i)) => {
                sources.remove(i);
                if sources.is_empty() {
                    sk.inet.mc_sources.remove(at);
                    if include {
                        return self.membership(sk, false, group, addr, index);
                    }
                }
            }
        }
        Ok(())
    }

    fn join_group(&mut self, group: Ipv4Addr, dev: u32) {
        let users = self.vfs.groups.entry((group, dev)).or_insert(0);
        *users += 1;
        if *users == 1 {
            self.igmp_group_added(group, dev);
        }
    }

    fn leave_group(&mut self, group: Ipv4Addr, dev: u32) {
        if let Some(n) = self.vfs.groups.get_mut(&(group, dev)) {
            *n -= 1;
            if *n == 0 {
                self.vfs.groups.remove(&(group, dev));
                self.igmp_group_dropped(group, dev);
            }
        }
    }

    /// A socket that ends leaves its groups.
    pub(crate) fn leave_groups(&mut self, sk: &mut Sock) {
        for (group, dev) in core::mem::take(&mut sk.inet.mc_groups) {
            self.leave_group(group, dev);
        }
    }

    /// True if a socket of this host joined the group on the interface (Linux `ip_check_mc`), or it is all-hosts.
    pub(crate) fn ip_check_mc(&self, group: Ipv4Addr, dev: u32) -> bool {
        group == Ipv4Addr::new(224, 0, 0, 1) || self.vfs.groups.contains_key(&(group, dev))
    }

    /// Index of the interface with a local address.
    fn ifindex_by_addr(&mut self, addr: Ipv4Addr) -> Option<u32> {
        if self.inet_addr_type(addr) != RouteKind::Local {
            return None;
        }
        self.dev_get_by_addr(addr)
    }
}

impl Sock {
    /// True if a multicast packet is for this socket (Linux `ip_mc_sf_allow`).
    pub(crate) fn mc_sf_allow(&self, group: Ipv4Addr, source: Ipv4Addr, dev: u32) -> bool {
        if !self.inet.mc_groups.contains(&(group, dev)) {
            return !self.inet.mc_all_off;
        }
        match self.inet.mc_sources.iter().find(|f| (f.group, f.dev) == (group, dev)) {
            Some(filter) => filter.sources.contains(&source) == filter.include,
            None => true,
        }
    }
}
