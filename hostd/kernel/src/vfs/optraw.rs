//! Options as octets: how long each must be, and what its structure means.
//!
//! Programs pass options as octets and a length; the rest of the kernel model knows them
//! typed ([`OptVal`]). The rules of length are Linux's: `SOL_SOCKET` and TCP want an
//! `int` at least, IP takes an octet as well, structures want their size.

use super::optnum::{ip, ipv6, level, so};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::abi::octets;
use crate::syscall::{Fd, OptVal, Ret};
use crate::tcp::sockopt::opt as tcp;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::time::Duration;

/// Octets of `struct sockaddr_storage`, and where it lies in `struct group_req`.
const STORAGE: usize = 128;
const GROUP_AT: usize = 8;
const NANOS_PER_MICRO: u32 = 1000;
/// Octets of an interface's name with its end.
pub(crate) const IFNAMSIZ: usize = 16;

impl Kernel {
    /// `setsockopt` of octets.
    pub(crate) fn sys_setsockopt_raw(&mut self, task: TaskId, fd: Fd, lvl: i32, name: i32, b: &[u8]) -> Result<(), Errno> {
        // A bad descriptor comes before a bad option.
        self.fget_sock(task, fd)?;
        let val = decode(lvl, name, b)?;
        self.sys_setsockopt(task, fd, lvl, name, val)
    }

    /// `getsockopt` into octets.
    pub(crate) fn sys_getsockopt_raw(&mut self, task: TaskId, fd: Fd, lvl: i32, name: i32, b: &[u8]) -> Result<Ret, Errno> {
        self.fget_sock(task, fd)?;
        let val = match self.packet_getsockopt_input(task, fd, lvl, name, b) {
            Some(answer) => answer?,
            None => self.sys_getsockopt(task, fd, lvl, name)?,
        };
        encode(lvl, name, val, b.len())
    }
}

fn decode(lvl: i32, name: i32, b: &[u8]) -> Result<OptVal, Errno> {
    match lvl {
        level::SOCKET => decode_socket(name, b),
        level::IP => decode_ip(name, b),
        level::IPV6 => decode_ipv6(name, b),
        level::TCP => match name {
            tcp::CONGESTION | tcp::ULP if b.is_empty() => Err(Errno::EINVAL),
            tcp::CONGESTION | tcp::ULP => Ok(OptVal::Bytes(b[..b.len().min(15)].to_vec())),
            tcp::MD5SIG | tcp::FASTOPEN_KEY => Ok(OptVal::Bytes(b.to_vec())),
            _ => int(b),
        },
        level::UDP => int(b),
        level::RAW => Ok(OptVal::Bytes(b.to_vec())),
        level::PACKET => Ok(OptVal::Bytes(b.to_vec())),
        _ => Ok(OptVal::Bytes(b.to_vec())),
    }
}

fn int(b: &[u8]) -> Result<OptVal, Errno> {
    octets(b, 0).map(|w| OptVal::Int(i32::from_ne_bytes(w))).ok_or(Errno::EINVAL)
}

fn decode_socket(name: i32, b: &[u8]) -> Result<OptVal, Errno> {
    match name {
        so::BINDTODEVICE => Ok(OptVal::Bytes(b[..b.len().min(IFNAMSIZ - 1)].to_vec())),
        so::ATTACH_FILTER | so::ATTACH_REUSEPORT_CBPF => Ok(OptVal::Bytes(b.to_vec())),
        so::LINGER => {
            let (on, secs) = (octets(b, 0).ok_or(Errno::EINVAL)?, octets(b, 4).ok_or(Errno::EINVAL)?);
            let time = Duration::from_secs(u64::from(u32::from_ne_bytes(secs)));
            Ok(OptVal::Linger(i32::from_ne_bytes(on) != 0, time))
        }
        so::RCVTIMEO | so::SNDTIMEO | so::RCVTIMEO_NEW | so::SNDTIMEO_NEW => timeval(b).map(OptVal::Time),
        // An `unsigned long` says more than an `unsigned int`.
        so::MAX_PACING_RATE if b.len() >= 8 => {
            let rate = octets(b, 0).map_or(0, u64::from_ne_bytes);
            Ok(OptVal::Int(u32::try_from(rate).unwrap_or(u32::MAX) as i32))
        }
        _ => int(b),
    }
}

/// A time limit. A negative one is over at once.
fn timeval(b: &[u8]) -> Result<Duration, Errno> {
    let secs = i64::from_ne_bytes(octets(b, 0).ok_or(Errno::EINVAL)?);
    let micros = i64::from_ne_bytes(octets(b, 8).ok_or(Errno::EINVAL)?);
    if !(0..1_000_000).contains(&micros) {
        return Err(Errno::EDOM);
    }
    Ok(match u64::try_from(secs) {
        Ok(secs) => Duration::new(secs, micros as u32 * NANOS_PER_MICRO),
        Err(_) => Duration::from_nanos(1),
    })
}

fn decode_ip(name: i32, b: &[u8]) -> Result<OptVal, Errno> {
    let addr = |at: usize| octets::<4>(b, at).map(Ipv4Addr::from).ok_or(Errno::EINVAL);
    match name {
        ip::ADD_MEMBERSHIP | ip::DROP_MEMBERSHIP => {
            let index = octets(b, 8).map_or(0, i32::from_ne_bytes);
            Ok(OptVal::Membership(addr(0)?, addr(4)?, index as u32))
        }
        ip::MULTICAST_IF if b.len() >= 8 => {
            let index = octets(b, 8).map_or(0, i32::from_ne_bytes);
            Ok(OptVal::Membership(Ipv4Addr::UNSPECIFIED, addr(4)?, index as u32))
        }
        ip::MULTICAST_IF => Ok(OptVal::Membership(Ipv4Addr::UNSPECIFIED, addr(0)?, 0)),
        // `struct ip_mreq_source`: group, interface, source.
        ip::UNBLOCK_SOURCE..=ip::DROP_SOURCE_MEMBERSHIP => Ok(OptVal::Source(addr(0)?, addr(8)?, addr(4)?, 0)),
        ip::MCAST_JOIN_GROUP | ip::MCAST_LEAVE_GROUP => {
            let (index, group) = group_req(b)?;
            Ok(OptVal::Membership(group, Ipv4Addr::UNSPECIFIED, index))
        }
        ip::MCAST_BLOCK_SOURCE | ip::MCAST_UNBLOCK_SOURCE | ip::MCAST_JOIN_SOURCE_GROUP | ip::MCAST_LEAVE_SOURCE_GROUP => {
            let (index, group) = group_req(b)?;
            let source = storage_v4(b.get(GROUP_AT + STORAGE..).unwrap_or_default())?;
            Ok(OptVal::Source(group, source, Ipv4Addr::UNSPECIFIED, index))
        }
        ip::OPTIONS | ip::MSFILTER | ip::MCAST_MSFILTER => Ok(OptVal::Bytes(b.to_vec())),
        _ => Ok(OptVal::Int(match b {
            [] => 0,
            [n] | [n, _] | [n, _, _] => i32::from(*n),
            _ => octets(b, 0).map_or(0, i32::from_ne_bytes),
        })),
    }
}

/// `struct group_req`: interface, and a group of IPv4.
fn group_req(b: &[u8]) -> Result<(u32, Ipv4Addr), Errno> {
    let index = octets(b, 0).map(u32::from_ne_bytes).ok_or(Errno::EINVAL)?;
    Ok((index, storage_v4(b.get(GROUP_AT..).unwrap_or_default())?))
}

fn storage_v4(b: &[u8]) -> Result<Ipv4Addr, Errno> {
    if b.len() < STORAGE {
        return Err(Errno::EINVAL);
    }
    match crate::syscall::abi::SockAddr::parse(&b[..STORAGE])? {
        crate::syscall::abi::SockAddr::Inet(core::net::SocketAddr::V4(a)) => Ok(*a.ip()),
        _ => Err(Errno::EADDRNOTAVAIL),
    }
}

fn decode_ipv6(name: i32, b: &[u8]) -> Result<OptVal, Errno> {
    match name {
        ipv6::ADD_MEMBERSHIP | ipv6::DROP_MEMBERSHIP => {
            let group = Ipv6Addr::from(octets::<16>(b, 0).ok_or(Errno::EINVAL)?);
            let index = octets(b, 16).map(u32::from_ne_bytes).ok_or(Errno::EINVAL)?;
            let v4 = group.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
            Ok(OptVal::Membership(v4, Ipv4Addr::UNSPECIFIED, index))
        }
        _ => int(b),
    }
}

fn encode(lvl: i32, name: i32, val: OptVal, room: usize) -> Result<Ret, Errno> {
    let bytes = match val {
        OptVal::Int(n) if lvl == level::IP && (1..4).contains(&room) && (0..256).contains(&n) && name != ip::MULTICAST_IF => {
            return Ok(Ret::OptRaw(alloc::vec![n as u8], 1));
        }
        // An `unsigned long` where there is room for one.
        OptVal::Int(n) if (lvl, name) == (level::SOCKET, so::MAX_PACING_RATE) && room >= 8 => {
            let rate = if n == -1 { u64::MAX } else { u64::from(n as u32) };
            rate.to_ne_bytes().to_vec()
        }
        OptVal::Int(n) => n.to_ne_bytes().to_vec(),
        OptVal::Linger(on, time) => [i32::from(on), time.as_secs() as i32].map(i32::to_ne_bytes).concat(),
        OptVal::Time(t) => [t.as_secs(), u64::from(t.subsec_micros())].map(u64::to_ne_bytes).concat(),
        OptVal::Membership(_, addr, _) | OptVal::Source(_, _, addr, _) => addr.octets().to_vec(),
        OptVal::Bytes(b) => match (lvl, name) {
            (level::SOCKET, so::BINDTODEVICE) => return bound_device(b, room),
            // A filter's room and length are counted in instructions.
            (level::SOCKET, so::ATTACH_FILTER) => {
                let count = (b.len() / 8) as i32;
                return match room * 8 {
                    0 => Ok(Ret::OptRaw(Vec::new(), count)),
                    n if n < b.len() => Err(Errno::EINVAL),
                    _ => Ok(Ret::OptRaw(b, count)),
                };
            }
            (level::SOCKET, so::PEERNAME) if room > b.len() => return Err(Errno::EINVAL),
            (level::SOCKET, so::COOKIE | so::NETNS_COOKIE) if room < b.len() => return Err(Errno::EINVAL),
            _ => b,
        },
    };
    let n = bytes.len().min(room);
    Ok(Ret::OptRaw(bytes[..n].to_vec(), n as i32))
}

/// `SO_BINDTODEVICE`: nothing without a device; else the buffer must hold any name.
fn bound_device(mut name: Vec<u8>, room: usize) -> Result<Ret, Errno> {
    if name.is_empty() {
        return Ok(Ret::OptRaw(name, 0));
    }
    if room < IFNAMSIZ {
        return Err(Errno::EINVAL);
    }
    name.push(0);
    let len = name.len() as i32;
    Ok(Ret::OptRaw(name, len))
}
