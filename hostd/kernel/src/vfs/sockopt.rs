//! `setsockopt` and `getsockopt`: dispatch by level, and `SOL_SOCKET`.
//!
//! Each option has its effect, or is kept for reading back because it has none on such a
//! host in Linux either ([`super::optkept`]), or is refused (`ENOPROTOOPT`).

use super::optnum::{level, so};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::packet::bpf::Program;
use crate::sock::{AF_INET6, Proto, Sock};
use crate::syscall::abi::emit_inet;
use crate::syscall::{Fd, OptVal};
use crate::tcp::State;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

/// `ICMP_FILTER`.
const ICMP_FILTER: i32 = 1;
/// `SOCK_MIN_SNDBUF`, `SOCK_MIN_RCVBUF`.
const MIN_SNDBUF: u32 = 4608;
const MIN_RCVBUF: u32 = 2304;
/// What `SO_BPF_EXTENSIONS` answers (`SKF_AD_MAX`).
const SKF_AD_MAX: i32 = 64;

pub(super) fn int(val: &OptVal) -> Result<i32, Errno> {
    match val {
        OptVal::Int(n) => Ok(*n),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn flag(val: &OptVal) -> Result<bool, Errno> {
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
    let max = max.min(i32::MAX.into()) as i32;
    if n < 0 { max } else { n.min(max) }
}

impl Kernel {
    /// `setsockopt`.
    pub(crate) fn sys_setsockopt(&mut self, task: TaskId, fd: Fd, lvl: i32, name: i32, val: OptVal) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let set = |k: &mut Kernel, sk: &mut Sock| match (lvl, &sk.proto) {
            (level::SOCKET, _) => k.sock_setsockopt(sk, name, &val),
            (level::NETLINK, Proto::Netlink(_)) => k.netlink_setsockopt(sk, name, &val),
            (_, Proto::Netlink(_)) => Err(Errno::ENOPROTOOPT),
            (level::PACKET, Proto::Packet(_)) => k.packet_setsockopt(sk, name, &val),
            (_, Proto::Packet(_)) => Err(Errno::ENOPROTOOPT),
            (level::IP, _) => k.ip_setsockopt(sk, name, &val),
            (level::IPV6, _) if sk.family == AF_INET6 => k.ipv6_setsockopt(sk, name, &val),
            (level::TCP, Proto::Tcp(_)) => k.tcp_setsockopt(sk, name, val),
            (level::UDP, Proto::Udp(_)) => k.udp_setsockopt(sk, name, int(&val)?),
            (level::RAW, Proto::Raw { protocol: 1, .. }) if name == ICMP_FILTER => set_icmp_filter(sk, &val),
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
            (level::PACKET, Proto::Packet(_)) => k.packet_getsockopt(sk, name),
            (_, Proto::Packet(_)) => Err(Errno::ENOPROTOOPT),
            (level::IP, _) => k.ip_getsockopt(sk, name),
            (level::IPV6, _) if sk.family == AF_INET6 => k.ipv6_getsockopt(sk, name),
            (level::TCP, Proto::Tcp(_)) => k.tcp_getsockopt(sk, name),
            (level::UDP, Proto::Udp(_)) => k.udp_getsockopt(sk, name),
            (level::RAW, Proto::Raw { protocol: 1, icmp_filter, .. }) if name == ICMP_FILTER => Ok(OptVal::Int(*icmp_filter as i32)),
            // Observed on Linux 6.18: only `AF_INET` says so, and only when reading.
            _ if sk.family == AF_INET6 => Err(Errno::ENOPROTOOPT),
            _ => Err(Errno::EOPNOTSUPP),
        };
        self.lock_sock(id, get).ok_or(Errno::EBADF)?
    }

    fn sock_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        let tcp = matches!(sk.proto, Proto::Tcp(_));
        match name {
            so::REUSEADDR => sk.opt.reuseaddr = flag(val)?,
            so::REUSEPORT if tcp || matches!(sk.proto, Proto::Udp(_)) => sk.opt.reuseport = flag(val)?,
            so::REUSEPORT => return Err(Errno::EOPNOTSUPP),
            so::BROADCAST => sk.opt.broadcast = flag(val)?,
            so::DONTROUTE => sk.opt.dontroute = flag(val)?,
            so::NO_CHECK => sk.opt.no_check = flag(val)?,
            so::KEEPALIVE => {
                sk.opt.keepalive = flag(val)?;
                if tcp {
                    self.keepalive_changed(sk);
                }
            }
            so::OOBINLINE => sk.opt.oobinline = flag(val)?,
            // One clock at a time.
            so::TIMESTAMP | so::TIMESTAMP_NEW => (sk.opt.timestamp, sk.opt.timestampns) = (flag(val)?, false),
            so::TIMESTAMPNS | so::TIMESTAMPNS_NEW => (sk.opt.timestampns, sk.opt.timestamp) = (flag(val)?, false),
            so::RXQ_OVFL => sk.opt.rxq_ovfl = flag(val)?,
            so::SELECT_ERR_QUEUE => sk.opt.select_err_queue = flag(val)?,
            so::SNDBUF => self.set_sndbuf(sk, limited(int(val)?, self.sysctl.wmem_max)),
            so::SNDBUFFORCE => self.set_sndbuf(sk, int(val)?.max(0)),
            so::RCVBUF => Self::set_rcvbuf(sk, limited(int(val)?, self.sysctl.rmem_max)),
            so::RCVBUFFORCE => Self::set_rcvbuf(sk, int(val)?.max(0)),
            so::BUF_LOCK => match int(val)? {
                n @ 0..=3 => (sk.sndbuf_locked, sk.rcvbuf_locked) = (n & 1 != 0, n & 2 != 0),
                _ => return Err(Errno::EINVAL),
            },
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
                let lowat = match int(val)? {
                    n if n < 0 => i32::MAX as u32,
                    n => n as u32,
                };
                if tcp {
                    self.tcp_set_rcvlowat(sk, lowat);
                } else {
                    sk.opt.rcvlowat = lowat.max(1);
                }
            }
            so::RCVTIMEO | so::RCVTIMEO_NEW => sk.opt.rcvtimeo = time(val)?,
            so::SNDTIMEO | so::SNDTIMEO_NEW => sk.opt.sndtimeo = time(val)?,
            so::LINGER => match val {
                OptVal::Linger(true, time) => (sk.opt.linger, sk.opt.lingertime) = (Some(*time), *time),
                OptVal::Linger(false, _) => sk.opt.linger = None,
                _ => return Err(Errno::EINVAL),
            },
            so::PEEK_OFF if tcp || matches!(sk.proto, Proto::Udp(_)) => sk.opt.peek_off = u32::try_from(int(val)?).ok(),
            so::INCOMING_CPU => sk.opt.incoming_cpu = Some(int(val)?),
            so::BINDTODEVICE | so::BINDTOIFINDEX => {
                sk.bound_dev_if = match val {
                    OptVal::Bytes(name) => self.ifindex_by_name(name)?,
                    val => u32::try_from(int(val)?).map_err(|_| Errno::EINVAL)?,
                };
                sk.dst = None;
            }
            so::ATTACH_FILTER => self.attach_filter(sk, val)?,
            so::DETACH_FILTER if sk.opt.lock_filter => return Err(Errno::EPERM),
            so::DETACH_FILTER => drop(sk.filter.take().ok_or(Errno::ENOENT)?),
            // A lock stays.
            so::LOCK_FILTER if sk.opt.lock_filter && !flag(val)? => return Err(Errno::EPERM),
            so::LOCK_FILTER => sk.opt.lock_filter |= flag(val)?,
            // Hints that change nothing here, and cannot be read.
            so::CNX_ADVICE | so::BUSY_POLL_BUDGET => drop(int(val)?),
            so::PASSCRED | so::PASSSEC | so::PEEK_OFF | so::RESERVE_MEM | so::ZEROCOPY => return Err(Errno::EOPNOTSUPP),
            _ => return Self::set_kept(sk, level::SOCKET, name, int(val)?),
        }
        Ok(())
    }

    fn attach_filter(&mut self, sk: &mut Sock, val: &OptVal) -> Result<(), Errno> {
        let OptVal::Bytes(code) = val else { return Err(Errno::EINVAL) };
        if sk.opt.lock_filter {
            return Err(Errno::EPERM);
        }
        sk.filter = Some(Arc::new(Program::load(code)?));
        Ok(())
    }

    pub(super) fn ifindex_by_name(&self, name: &[u8]) -> Result<u32, Errno> {
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
            so::DONTROUTE => i32::from(sk.opt.dontroute),
            so::NO_CHECK => i32::from(sk.opt.no_check),
            so::KEEPALIVE => i32::from(sk.opt.keepalive),
            so::OOBINLINE => i32::from(sk.opt.oobinline),
            so::TIMESTAMP | so::TIMESTAMP_NEW => i32::from(sk.opt.timestamp),
            so::TIMESTAMPNS | so::TIMESTAMPNS_NEW => i32::from(sk.opt.timestampns),
            so::RXQ_OVFL => i32::from(sk.opt.rxq_ovfl),
            so::SELECT_ERR_QUEUE => i32::from(sk.opt.select_err_queue),
            so::SNDBUF => sk.sndbuf as i32,
            so::RCVBUF => sk.rcvbuf as i32,
            so::BUF_LOCK => i32::from(sk.sndbuf_locked) | i32::from(sk.rcvbuf_locked) << 1,
            so::PRIORITY => sk.opt.priority as i32,
            so::MARK => sk.opt.mark as i32,
            so::MAX_PACING_RATE => sk.opt.max_pacing_rate.unwrap_or(u32::MAX) as i32,
            so::RCVLOWAT => sk.opt.rcvlowat as i32,
            so::SNDLOWAT => 1,
            so::TYPE => sk.kind(),
            so::PROTOCOL => sk.protocol_number(),
            so::DOMAIN => sk.family.into(),
            so::ERROR => sk.take_error().or_else(|| sk.err_soft.take()).map_or(0, Errno::raw),
            so::ACCEPTCONN => i32::from(sk.state() == State::Listen),
            so::BINDTOIFINDEX => sk.bound_dev_if as i32,
            so::LOCK_FILTER => i32::from(sk.opt.lock_filter),
            so::BPF_EXTENSIONS => SKF_AD_MAX,
            so::INCOMING_CPU => sk.opt.incoming_cpu.unwrap_or(-1),
            so::INCOMING_NAPI_ID | so::RESERVE_MEM | so::ZEROCOPY => 0,
            so::PEEK_OFF if matches!(sk.proto, Proto::Tcp(_) | Proto::Udp(_)) => sk.opt.peek_off.map_or(-1, |n| n as i32),
            so::PASSCRED | so::PASSSEC | so::PEEK_OFF => return Err(Errno::EOPNOTSUPP),
            so::NETNS_COOKIE => return Ok(OptVal::Bytes(1u64.to_ne_bytes().to_vec())),
            so::RCVTIMEO | so::RCVTIMEO_NEW => return Ok(OptVal::Time(sk.opt.rcvtimeo.unwrap_or_default())),
            so::SNDTIMEO | so::SNDTIMEO_NEW => return Ok(OptVal::Time(sk.opt.sndtimeo.unwrap_or_default())),
            so::LINGER => return Ok(OptVal::Linger(sk.opt.linger.is_some(), sk.opt.lingertime)),
            so::BINDTODEVICE => return Ok(OptVal::Bytes(self.dev_name(sk.bound_dev_if))),
            so::ATTACH_FILTER => return Ok(OptVal::Bytes(sk.filter.as_ref().map(|f| f.octets()).unwrap_or_default())),
            so::COOKIE => return Ok(OptVal::Bytes(u64::from(sk.id.0).to_ne_bytes().to_vec())),
            // Nobody is at the other end of a network socket: pid 0, no user, no group.
            so::PEERCRED => return Ok(OptVal::Bytes([0, u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat())),
            so::PEERNAME => return peer_name(sk).map(OptVal::Bytes),
            so::MEMINFO => return Ok(OptVal::Bytes(meminfo(sk))),
            _ => return Self::get_kept(sk, level::SOCKET, name),
        };
        Ok(OptVal::Int(n))
    }

    pub(super) fn dev_name(&self, index: u32) -> Vec<u8> {
        self.dev_get_name(index).map(|n| n.as_bytes().to_vec()).unwrap_or_default()
    }
}

impl Kernel {
    /// Family and type of a socket (`SO_DOMAIN`, `SO_TYPE`); `None` if the descriptor is none.
    pub fn socket_family(&self, task: TaskId, fd: Fd) -> Option<(u16, i32)> {
        let (_, id) = self.fget_sock(task, fd).ok()?;
        self.socks.get(id).map(|sk| (sk.family, sk.kind()))
    }
}

impl Sock {
    /// `SO_TYPE`.
    pub(crate) fn kind(&self) -> i32 {
        match &self.proto {
            Proto::Tcp(_) => 1,
            Proto::Udp(_) | Proto::Ping => 2,
            Proto::Raw { .. } => 3,
            Proto::Packet(p) => p.kind(),
            Proto::Netlink(nl) => nl.kind(),
        }
    }

    fn protocol_number(&self) -> i32 {
        match &self.proto {
            Proto::Packet(p) => u16::to_be(p.protocol).into(),
            _ => self.protocol().into(),
        }
    }
}

fn set_icmp_filter(sk: &mut Sock, val: &OptVal) -> Result<(), Errno> {
    let mask = match val {
        OptVal::Int(n) => *n as u32,
        // A shorter value changes the first octets of the mask.
        OptVal::Bytes(b) => {
            let old = match &sk.proto {
                Proto::Raw { icmp_filter, .. } => *icmp_filter,
                _ => 0,
            };
            let mut octets = old.to_ne_bytes();
            let n = b.len().min(4);
            octets[..n].copy_from_slice(&b[..n]);
            u32::from_ne_bytes(octets)
        }
        _ => return Err(Errno::EINVAL),
    };
    if let Proto::Raw { icmp_filter, .. } = &mut sk.proto {
        *icmp_filter = mask;
    }
    Ok(())
}

fn peer_name(sk: &Sock) -> Result<Vec<u8>, Errno> {
    if sk.dport == 0 || matches!(sk.state(), State::Close | State::SynSent) {
        return Err(Errno::ENOTCONN);
    }
    Ok(emit_inet(&sk.to_user_addr(sk.daddr, sk.dport)))
}

/// `SO_MEMINFO` (Linux `sk_get_meminfo`).
fn meminfo(sk: &Sock) -> Vec<u8> {
    let words = [sk.rmem_alloc, sk.rcvbuf, sk.wmem_alloc, sk.sndbuf, 0, sk.wmem_queued, 0, sk.backlog_len, sk.drops];
    words.map(u32::to_ne_bytes).concat()
}
