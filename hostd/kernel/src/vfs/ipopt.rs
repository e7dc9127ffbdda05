//! `IPPROTO_IP` and `IPPROTO_IPV6` options (Linux `ip_sockglue.c`, `ipv6_sockglue.c`).
//!
//! An `AF_INET6` socket has both: those of IPv4 act on its packets, those of IPv6
//! that concern packets on the wire are kept for reading back.

use super::optnum::{ip, ipv6, level};
use super::sockopt::{flag, int};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::sock::{Proto, Sock};
use crate::syscall::OptVal;
use core::net::Ipv4Addr;

impl Kernel {
    pub(super) fn ip_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        let tcp = matches!(sk.proto, Proto::Tcp(_));
        match name {
            ip::TOS => {
                let tos = int(val)? as u8;
                // The ECN bits of a stream are its own.
                sk.inet.tos = if tcp { tos & !3 | sk.inet.tos & 3 } else { tos };
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
            // Options of our own packets are not made; none are left out by asking for none.
            ip::OPTIONS => return if matches!(val, OptVal::Bytes(b) if b.is_empty()) { Ok(()) } else { Err(Errno::EINVAL) },
            ip::ROUTER_ALERT => return Err(Errno::EINVAL),
            ip::PKTINFO => sk.inet.pktinfo = flag(val)?,
            ip::MTU_DISCOVER => {
                sk.inet.pmtudisc = match int(val)? {
                    n @ 0..=5 => n as u8,
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
            ip::RECVORIGDSTADDR => sk.inet.recvorigdst = flag(val)?,
            ip::FREEBIND => sk.inet.freebind = flag(val)?,
            ip::TRANSPARENT => sk.inet.transparent = flag(val)?,
            ip::BIND_ADDRESS_NO_PORT => sk.inet.bind_no_port = flag(val)?,
            ip::MINTTL => sk.inet.min_ttl = octet(int(val)?)?,
            ip::RECVFRAGSIZE if tcp => return Err(Errno::EINVAL),
            ip::UNICAST_IF => {
                let index = u32::from_be(int(val)? as u32);
                if index != 0 && self.devs.get(IfIndex(index)).is_none() {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                sk.inet.unicast_if = index;
                sk.dst = None;
            }
            _ => return self.ip_mc_setsockopt(sk, name, val),
        }
        Ok(())
    }

    pub(super) fn ip_getsockopt(&mut self, sk: &mut Sock, name: i32) -> Result<OptVal, Errno> {
        let n = match name {
            ip::TOS => sk.inet.tos.into(),
            ip::TTL => sk.inet.ttl.map_or(self.sysctl.ip_default_ttl as i32, i32::from),
            ip::HDRINCL => match sk.proto {
                Proto::Raw { hdrincl, .. } => hdrincl.into(),
                _ => 0,
            },
            ip::OPTIONS => return Ok(OptVal::Bytes(alloc::vec::Vec::new())),
            ip::ROUTER_ALERT | ip::NODEFRAG => 0,
            ip::PKTINFO => sk.inet.pktinfo.into(),
            ip::MTU_DISCOVER => sk.inet.pmtudisc.into(),
            ip::RECVERR => sk.inet.recverr.into(),
            ip::RECVTTL => sk.inet.recvttl.into(),
            ip::RECVTOS => sk.inet.recvtos.into(),
            ip::RECVORIGDSTADDR => sk.inet.recvorigdst.into(),
            ip::FREEBIND => sk.inet.freebind.into(),
            ip::TRANSPARENT => sk.inet.transparent.into(),
            ip::BIND_ADDRESS_NO_PORT => sk.inet.bind_no_port.into(),
            ip::MINTTL => sk.inet.min_ttl.into(),
            ip::UNICAST_IF => u32::to_be(sk.inet.unicast_if) as i32,
            ip::PROTOCOL => match sk.proto {
                Proto::Raw { protocol, .. } => protocol.into(),
                _ => 0,
            },
            ip::RECVFRAGSIZE if matches!(sk.proto, Proto::Tcp(_)) => 0,
            ip::MULTICAST_TTL => sk.inet.mc_ttl.unwrap_or(1).into(),
            ip::MULTICAST_LOOP => (!sk.inet.mc_loop_off).into(),
            ip::MULTICAST_ALL => (!sk.inet.mc_all_off).into(),
            ip::MULTICAST_IF => {
                let addr = sk.inet.mc_addr.unwrap_or(Ipv4Addr::UNSPECIFIED);
                return Ok(OptVal::Membership(Ipv4Addr::UNSPECIFIED, addr, sk.inet.mc_if));
            }
            ip::MTU => {
                if sk.daddr.is_unspecified() {
                    return Err(Errno::ENOTCONN);
                }
                self.ip_sk_route(sk)?.mtu as i32
            }
            _ => return Self::get_kept(sk, level::IP, name),
        };
        Ok(OptVal::Int(n))
    }

    pub(super) fn ipv6_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        match name {
            ipv6::V6ONLY if sk.inet_num() != 0 => return Err(Errno::EINVAL),
            ipv6::V6ONLY => sk.inet.v6only = flag(val)?,
            ipv6::RECVERR => {
                sk.inet.recverr6 = flag(val)?;
                if !sk.inet.recverr6 {
                    sk.error_queue.clear();
                }
            }
            ipv6::RECVPKTINFO => sk.inet.pktinfo6 = flag(val)?,
            ipv6::FREEBIND => sk.inet.freebind = flag(val)?,
            ipv6::TRANSPARENT => sk.inet.transparent = flag(val)?,
            // No interface has an IPv6 group.
            ipv6::ADD_MEMBERSHIP | ipv6::DROP_MEMBERSHIP if matches!(sk.proto, Proto::Tcp(_)) => return Err(Errno::ENOPROTOOPT),
            ipv6::ADD_MEMBERSHIP => return Err(Errno::ENODEV),
            ipv6::DROP_MEMBERSHIP => return Err(Errno::EADDRNOTAVAIL),
            ipv6::MTU => return Err(Errno::EINVAL),
            _ => return Self::set_kept(sk, level::IPV6, name, int(val)?),
        }
        Ok(())
    }

    pub(super) fn ipv6_getsockopt(&mut self, sk: &mut Sock, name: i32) -> Result<OptVal, Errno> {
        Ok(OptVal::Int(match name {
            ipv6::V6ONLY => sk.inet.v6only.into(),
            ipv6::RECVERR => sk.inet.recverr6.into(),
            ipv6::RECVPKTINFO => sk.inet.pktinfo6.into(),
            ipv6::FREEBIND => sk.inet.freebind.into(),
            ipv6::TRANSPARENT => sk.inet.transparent.into(),
            ipv6::MTU => return Err(Errno::ENOTCONN),
            _ => return Self::get_kept(sk, level::IPV6, name),
        }))
    }
}

pub(super) fn octet(n: i32) -> Result<u8, Errno> {
    u8::try_from(n).map_err(|_| Errno::EINVAL)
}

/// Linux `rt_tos2priority`: best effort, bulk, interactive.
fn tos_priority(tos: u8) -> u32 {
    const TABLE: [u32; 16] = [0, 1, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4];
    TABLE[usize::from((tos & 0x1e) >> 1)]
}
