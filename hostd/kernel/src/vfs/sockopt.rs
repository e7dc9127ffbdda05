//! `setsockopt` and `getsockopt`: `SOL_SOCKET`, `IPPROTO_IP`, `IPPROTO_IPV6`. Each
//! option has its effect or is refused (`ENOPROTOOPT`).

use super::optnum::{ip, ipv6, level, so};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::ip::route::{Flow, RouteKind};
use crate::sock::{AF_INET6, Proto, Sock};
use crate::syscall::{Fd, OptVal};
use crate::tcp::State;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;

/// `ICMP_FILTER`.
const ICMP_FILTER: i32 = 1;
/// `SOCK_MIN_SNDBUF`, `SOCK_MIN_RCVBUF`.
const MIN_SNDBUF: u32 = 4608;
const MIN_RCVBUF: u32 = 2304;
/// Groups a socket may join (`igmp_max_memberships`).
const MAX_GROUPS: usize = 20;

fn int(val: &OptVal) -> Result<i32, Errno> {
    match val {
        OptVal::Int(n) => Ok(*n),
        _ => Err(Errno::EINVAL),
    }
}

fn flag(val: &OptVal) -> Result<bool, Errno> {
    int(val).map(|n| n != 0)
}

fn time(val: &OptVal) -> Result<Option<Duration>, Errno> {
    match val {
        OptVal::Time(d) => Ok(Some(*d).filter(|d| !d.is_zero())),
        _ => Err(Errno::EINVAL),
    }
}

/// A buffer size below the host's limit; a negative one counts as the largest (Linux compares unsigned).
fn limited(n: i32, max: i64) -> i32 {
    if (0..=max).contains(&n.into()) { n } else { max as i32 }
}

fn octet(n: i32) -> Result<u8, Errno> {
    u8::try_from(n).map_err(|_| Errno::EINVAL)
}

impl Kernel {
    /// `setsockopt`.
    pub(crate) fn sys_setsockopt(&mut self, task: TaskId, fd: Fd, lvl: i32, name: i32, val: OptVal) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let set = |k: &mut Kernel, sk: &mut Sock| match (lvl, &sk.proto) {
            (level::SOCKET, _) => k.sock_setsockopt(sk, name, &val),
            (level::NETLINK, Proto::Netlink(_)) => k.netlink_setsockopt(sk, name, &val),
            (_, Proto::Netlink(_)) => Err(Errno::ENOPROTOOPT),
            (level::IP, _) => k.ip_setsockopt(sk, name, &val),
            (level::IPV6, _) if sk.family == AF_INET6 => Self::ipv6_setsockopt(sk, name, &val),
            (level::TCP, Proto::Tcp(_)) => k.tcp_setsockopt(sk, name, val),
            (level::UDP, Proto::Udp(_)) => k.udp_setsockopt(sk, name, int(&val)?),
            (level::RAW, Proto::Raw { protocol: 1, .. }) if name == ICMP_FILTER => {
                let mask = match val {
                    OptVal::Int(n) => n as u32,
                    OptVal::Bytes(b) => u32::from_ne_bytes(b.try_into().map_err(|_| Errno::EINVAL)?),
                    _ => return Err(Errno::EINVAL),
                };
                if let Proto::Raw { icmp_filter, .. } = &mut sk.proto {
                    *icmp_filter = mask;
                }
                Ok(())
            }
            _ => Err(Errno::ENOPROTOOPT),
        };
        self.lock_sock(id, set).ok_or(Errno::EBADF)?
    }

    /// `getsockopt`.
    pub(crate) fn sys_getsockopt(&mut self, task: TaskId, fd: Fd, lvl: i32, name: i32) -> Result<OptVal, Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let get = |k: &mut Kernel, sk: &mut Sock| match (lvl, &sk.proto) {
            (level::SOCKET, _) => k.sock_getsockopt(sk, name),
            (level::NETLINK, Proto::Netlink(_)) => k.netlink_getsockopt(sk, name),
            (_, Proto::Netlink(_)) => Err(Errno::ENOPROTOOPT),
            (level::IP, _) => k.ip_getsockopt(sk, name),
            (level::IPV6, _) if sk.family == AF_INET6 => Self::ipv6_getsockopt(sk, name),
            (level::TCP, Proto::Tcp(_)) => k.tcp_getsockopt(sk, name),
            (level::UDP, Proto::Udp(_)) => k.udp_getsockopt(sk, name),
            (level::RAW, Proto::Raw { protocol: 1, icmp_filter, .. }) if name == ICMP_FILTER => Ok(OptVal::Int(*icmp_filter as i32)),
            _ => Err(Errno::ENOPROTOOPT),
        };
        self.lock_sock(id, get).ok_or(Errno::EBADF)?
    }

    fn sock_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        match name {
            so::REUSEADDR => sk.opt.reuseaddr = flag(val)?,
            so::REUSEPORT if matches!(sk.proto, Proto::Tcp(_) | Proto::Udp(_)) => sk.opt.reuseport = flag(val)?,
            so::REUSEPORT => return Err(Errno::EOPNOTSUPP),
            so::BROADCAST => sk.opt.broadcast = flag(val)?,
            so::KEEPALIVE => {
                sk.opt.keepalive = flag(val)?;
                if matches!(sk.proto, Proto::Tcp(_)) {
                    self.keepalive_changed(sk);
                }
            }
            so::OOBINLINE => sk.opt.oobinline = flag(val)?,
            so::TIMESTAMP => sk.opt.timestamp = flag(val)?,
            so::SNDBUF => self.set_sndbuf(sk, limited(int(val)?, self.sysctl.wmem_max)),
            so::SNDBUFFORCE => self.set_sndbuf(sk, int(val)?.max(0)),
            so::RCVBUF => Self::set_rcvbuf(sk, limited(int(val)?, self.sysctl.rmem_max)),
            so::RCVBUFFORCE => Self::set_rcvbuf(sk, int(val)?.max(0)),
            so::PRIORITY => sk.opt.priority = int(val)? as u32,
            so::MARK => sk.opt.mark = int(val)? as u32,
            so::MAX_PACING_RATE => {
                let rate = Some(int(val)? as u32).filter(|&rate| rate != u32::MAX);
                sk.opt.max_pacing_rate = rate;
                if let Proto::Tcp(tp) = &mut sk.proto {
                    tp.set_max_pacing_rate(rate.map_or(u64::MAX, u64::from));
                }
            }
            so::RCVLOWAT => {
                sk.opt.rcvlowat = match int(val)? {
                    n if n < 0 => i32::MAX as u32,
                    n => (n as u32).max(1),
                }
            }
            so::RCVTIMEO | so::RCVTIMEO_NEW => sk.opt.rcvtimeo = time(val)?,
            so::SNDTIMEO | so::SNDTIMEO_NEW => sk.opt.sndtimeo = time(val)?,
            so::LINGER => match val {
                OptVal::Linger(d) => sk.opt.linger = *d,
                _ => return Err(Errno::EINVAL),
            },
            so::BINDTODEVICE => match val {
                OptVal::Bytes(name) => sk.bound_dev_if = self.ifindex_by_name(name)?,
                _ => return Err(Errno::EINVAL),
            },
            so::BINDTOIFINDEX => {
                let index = int(val)?;
                sk.bound_dev_if = u32::try_from(index).map_err(|_| Errno::EINVAL)?;
                sk.dst = None;
            }
            so::TYPE | so::PROTOCOL | so::DOMAIN | so::ERROR | so::ACCEPTCONN | so::SNDLOWAT => return Err(Errno::ENOPROTOOPT),
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn ifindex_by_name(&self, name: &[u8]) -> Result<u32, Errno> {
        let name = name.split(|&b| b == 0).next().unwrap_or_default();
        if name.is_empty() {
            return Ok(0);
        }
        core::str::from_utf8(name).ok().and_then(|name| self.dev_get_by_name(name)).ok_or(Errno::ENODEV)
    }

    /// Doubled for the bookkeeping, as Linux does; what is read back is the doubled value.
    fn set_sndbuf(&mut self, sk: &mut Sock, val: i32) {
        sk.sndbuf = (val as u32).saturating_mul(2).min(i32::MAX as u32).max(MIN_SNDBUF);
        sk.sndbuf_locked = true;
        self.sk_write_space(sk);
    }

    fn set_rcvbuf(sk: &mut Sock, val: i32) {
        sk.rcvbuf = (val as u32).saturating_mul(2).min(i32::MAX as u32).max(MIN_RCVBUF);
        sk.rcvbuf_locked = true;
    }

    fn sock_getsockopt(&mut self, sk: &mut Sock, name: i32) -> Result<OptVal, Errno> {
        let n = match name {
            so::REUSEADDR => i32::from(sk.opt.reuseaddr),
            so::REUSEPORT => i32::from(sk.opt.reuseport),
            so::BROADCAST => i32::from(sk.opt.broadcast),
            so::KEEPALIVE => i32::from(sk.opt.keepalive),
            so::OOBINLINE => i32::from(sk.opt.oobinline),
            so::TIMESTAMP => i32::from(sk.opt.timestamp),
            so::SNDBUF => sk.sndbuf as i32,
            so::RCVBUF => sk.rcvbuf as i32,
            so::PRIORITY => sk.opt.priority as i32,
            so::MARK => sk.opt.mark as i32,
            so::MAX_PACING_RATE => sk.opt.max_pacing_rate.unwrap_or(u32::MAX) as i32,
            so::RCVLOWAT => sk.opt.rcvlowat as i32,
            so::SNDLOWAT => 1,
            so::TYPE => match &sk.proto {
                Proto::Tcp(_) => 1,
                Proto::Udp(_) | Proto::Ping => 2,
                Proto::Netlink(nl) => nl.kind(),
                Proto::Raw { .. } => 3,
            },
            so::PROTOCOL => sk.protocol().into(),
            so::DOMAIN => sk.family.into(),
            so::ERROR => sk.take_error().or_else(|| sk.err_soft.take()).map_or(0, Errno::raw),
            so::ACCEPTCONN => i32::from(sk.state() == State::Listen),
            so::BINDTOIFINDEX => sk.bound_dev_if as i32,
            so::RCVTIMEO | so::RCVTIMEO_NEW => return Ok(OptVal::Time(sk.opt.rcvtimeo.unwrap_or_default())),
            so::SNDTIMEO | so::SNDTIMEO_NEW => return Ok(OptVal::Time(sk.opt.sndtimeo.unwrap_or_default())),
            so::LINGER => return Ok(OptVal::Linger(sk.opt.linger)),
            so::BINDTODEVICE => return Ok(OptVal::Bytes(self.dev_name(sk.bound_dev_if))),
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(OptVal::Int(n))
    }

    fn ip_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        match name {
            ip::TOS => {
                let tos = int(val)? as u8;
                // The ECN bits of a stream are its own.
                sk.inet.tos = if matches!(sk.proto, Proto::Tcp(_)) { tos & !3 | sk.inet.tos & 3 } else { tos };
                sk.opt.priority = tos_priority(tos);
                sk.dst = None;
            }
            ip::TTL => {
                sk.inet.ttl = match int(val)? {
                    -1 => None,
                    0 => return Err(Errno::EINVAL),
                    n => Some(octet(n)?),
                }
            }
            ip::HDRINCL => match &mut sk.proto {
                Proto::Raw { hdrincl, .. } => *hdrincl = flag(val)?,
                _ => return Err(Errno::ENOPROTOOPT),
            },
            ip::PKTINFO => sk.inet.pktinfo = flag(val)?,
            ip::MTU_DISCOVER => {
                sk.inet.pmtudisc = match int(val)? {
                    n @ 0..=3 => n as u8,
                    _ => return Err(Errno::EINVAL),
                }
            }
            ip::RECVERR => {
                sk.inet.recverr = flag(val)?;
                if !sk.inet.recverr {
                    sk.error_queue.clear();
                }
            }
            ip::RECVTTL => sk.inet.recvttl = flag(val)?,
            ip::RECVTOS => sk.inet.recvtos = flag(val)?,
            ip::FREEBIND => sk.inet.freebind = flag(val)?,
            ip::MULTICAST_TTL if !matches!(sk.proto, Proto::Tcp(_)) => {
                sk.inet.mc_ttl = match int(val)? {
                    -1 => None,
                    n => Some(octet(n)?),
                }
            }
            ip::MULTICAST_TTL => return Err(Errno::EINVAL),
            ip::MULTICAST_LOOP => sk.inet.mc_loop_off = !flag(val)?,
            ip::MULTICAST_ALL => sk.inet.mc_all_off = !flag(val)?,
            ip::MULTICAST_IF => {
                sk.inet.mc_if = match val {
                    OptVal::Membership(_, addr, index) => self.mc_interface(Ipv4Addr::UNSPECIFIED, *addr, *index, true)?,
                    OptVal::Int(n) => self.mc_interface(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from(u32::from_be(*n as u32)), 0, true)?,
                    _ => return Err(Errno::EINVAL),
                }
            }
            ip::ADD_MEMBERSHIP | ip::DROP_MEMBERSHIP => match *val {
                OptVal::Membership(group, addr, index) => self.membership(sk, name == ip::ADD_MEMBERSHIP, group, addr, index)?,
                _ => return Err(Errno::EINVAL),
            },
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn ip_getsockopt(&mut self, sk: &mut Sock, name: i32) -> Result<OptVal, Errno> {
        let n = match name {
            ip::TOS => sk.inet.tos.into(),
            ip::TTL => sk.inet.ttl.unwrap_or(64).into(),
            ip::HDRINCL => match sk.proto {
                Proto::Raw { hdrincl, .. } => hdrincl.into(),
                _ => return Err(Errno::ENOPROTOOPT),
            },
            ip::PKTINFO => sk.inet.pktinfo.into(),
            ip::MTU_DISCOVER => sk.inet.pmtudisc.into(),
            ip::RECVERR => sk.inet.recverr.into(),
            ip::RECVTTL => sk.inet.recvttl.into(),
            ip::RECVTOS => sk.inet.recvtos.into(),
            ip::FREEBIND => sk.inet.freebind.into(),
            ip::MULTICAST_TTL => sk.inet.mc_ttl.unwrap_or(1).into(),
            ip::MULTICAST_LOOP => (!sk.inet.mc_loop_off).into(),
            ip::MULTICAST_ALL => (!sk.inet.mc_all_off).into(),
            ip::MULTICAST_IF => sk.inet.mc_if as i32,
            ip::MTU => {
                if sk.daddr.is_unspecified() {
                    return Err(Errno::ENOTCONN);
                }
                self.ip_sk_route(sk)?.mtu as i32
            }
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(OptVal::Int(n))
    }

    fn ipv6_setsockopt(sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        match name {
            ipv6::V6ONLY if sk.sport != 0 => return Err(Errno::EINVAL),
            ipv6::V6ONLY => sk.inet.v6only = flag(val)?,
            ipv6::RECVERR => sk.inet.recverr = flag(val)?,
            ipv6::UNICAST_HOPS => {
                sk.inet.ttl = match int(val)? {
                    -1 => None,
                    n => Some(octet(n)?),
                }
            }
            ipv6::TCLASS => sk.inet.tos = octet(int(val)?.max(0))?,
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn ipv6_getsockopt(sk: &mut Sock, name: i32) -> Result<OptVal, Errno> {
        Ok(OptVal::Int(match name {
            ipv6::V6ONLY => sk.inet.v6only.into(),
            ipv6::RECVERR => sk.inet.recverr.into(),
            ipv6::UNICAST_HOPS => sk.inet.ttl.unwrap_or(64).into(),
            ipv6::TCLASS => sk.inet.tos.into(),
            _ => return Err(Errno::ENOPROTOOPT),
        }))
    }

    /// The interface that a membership or `IP_MULTICAST_IF` names: by number, by address, or by the route to the group.
    fn mc_interface(&mut self, group: Ipv4Addr, addr: Ipv4Addr, index: u32, none_ok: bool) -> Result<u32, Errno> {
        if index != 0 {
            return Ok(index);
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
            return Err(Errno::EINVAL);
        }
        let dev = self.mc_interface(group, addr, index, false)?;
        let at = sk.inet.mc_groups.iter().position(|&g| g == (group, dev));
        match (add, at) {
            (true, Some(_)) => return Err(Errno::EADDRINUSE),
            (true, None) if sk.inet.mc_groups.len() >= MAX_GROUPS => return Err(Errno::ENOBUFS),
            (true, None) => {
                sk.inet.mc_groups.push((group, dev));
                *self.vfs.groups.entry((group, dev)).or_insert(0) += 1;
            }
            (false, None) => return Err(Errno::EADDRNOTAVAIL),
            (false, Some(at)) => {
                sk.inet.mc_groups.remove(at);
                self.leave_group(group, dev);
            }
        }
        Ok(())
    }

    fn leave_group(&mut self, group: Ipv4Addr, dev: u32) {
        if let Some(n) = self.vfs.groups.get_mut(&(group, dev)) {
            *n -= 1;
            if *n == 0 {
                self.vfs.groups.remove(&(group, dev));
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

    fn dev_name(&self, index: u32) -> Vec<u8> {
        self.dev_get_name(index).map(|n| n.as_bytes().to_vec()).unwrap_or_default()
    }
}

/// Linux `rt_tos2priority`: best effort, bulk, interactive.
fn tos_priority(tos: u8) -> u32 {
    const TABLE: [u32; 16] = [0, 1, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4];
    TABLE[usize::from((tos & 0x1e) >> 1)]
}
