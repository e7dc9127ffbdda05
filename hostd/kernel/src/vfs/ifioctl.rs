//! `ioctl` on sockets (Linux `sock_ioctl`, `inet_ioctl`, `dev_ioctl`).
//!
//! Arguments are octets of `struct ifreq`, `rtentry` and `arpreq`; results too.

use super::{O_ASYNC, O_NONBLOCK};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::dev::NetDevice;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::sock::AF_INET;
use crate::syscall::abi::octets;
use crate::syscall::ioctl::{IFREQ_LEN, nr};
use crate::syscall::signal::Owner;
use crate::syscall::{Fd, Ret};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

const IFNAMSIZ: usize = 16;
/// `IFF_*`.
const UP: u16 = 1;
const BROADCAST: u16 = 2;
const LOOPBACK: u16 = 8;
const RUNNING: u16 = 0x40;
const MULTICAST: u16 = 0x1000;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
/// `RTF_GATEWAY`, `RTF_HOST`.
const RTF_GATEWAY: u16 = 2;
const RTF_HOST: u16 = 4;
/// `ATF_COM`.
const ATF_COM: u32 = 2;

impl Kernel {
    /// `ioctl` with an argument of fixed size.
    pub(crate) fn sys_ioctl(&mut self, task: TaskId, fd: Fd, cmd: u32, arg: &[u8]) -> Result<Ret, Errno> {
        let int = || octets(arg, 0).map(i32::from_ne_bytes).ok_or(Errno::EFAULT);
        let number = |n: Result<i32, Errno>| n.map(|n| Ret::Bytes(n.to_ne_bytes().to_vec()));
        match cmd {
            nr::FIONBIO => self.set_file_flag(task, fd, O_NONBLOCK, int()? != 0).map(|()| Ret::Value(0)),
            nr::FIOASYNC => self.set_file_flag(task, fd, O_ASYNC, int()? != 0).map(|()| Ret::Value(0)),
            nr::FIONREAD => number(self.sys_inq(task, fd)),
            nr::TIOCOUTQ => number(self.sys_outq(task, fd)),
            nr::SIOCATMARK => number(self.sys_atmark(task, fd)),
            nr::FIOSETOWN | nr::SIOCSPGRP => {
                self.fget_sock(task, fd)?;
                self.sys_setown(task, fd, Owner::from_setown(int()?)).map(|()| Ret::Value(0))
            }
            nr::FIOGETOWN | nr::SIOCGPGRP => {
                self.fget_sock(task, fd)?;
                match self.sys_getown(task, fd)? {
                    Ret::Owner(owner) => number(Ok(owner.map_or(0, Owner::as_getown))),
                    other => Ok(other),
                }
            }
            nr::SIOCGSTAMP | nr::SIOCGSTAMPNS => self.stamp(task, fd, cmd == nr::SIOCGSTAMPNS),
            _ => {
                self.fget_sock(task, fd).map_err(|e| if e == Errno::ENOTSOCK { Errno::ENOTTY } else { e })?;
                self.inet_ioctl(cmd, arg)
            }
        }
    }

    /// When the datagram that was read last had arrived: `struct timeval` or `struct timespec`.
    fn stamp(&self, task: TaskId, fd: Fd, nanos: bool) -> Result<Ret, Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let stamp = self.socks.get(id).and_then(|sk| sk.stamp).ok_or(Errno::ENOENT)?;
        let ns = stamp.0 + self.realtime_offset;
        let fraction = ns % 1_000_000_000;
        let parts = [ns / 1_000_000_000, if nanos { fraction } else { fraction / 1000 }];
        Ok(Ret::Bytes(parts.map(u64::to_ne_bytes).concat()))
    }

    fn inet_ioctl(&mut self, cmd: u32, arg: &[u8]) -> Result<Ret, Errno> {
        match cmd {
            nr::SIOCGIFNAME => {
                let index = octets(arg, IFNAMSIZ).map(u32::from_ne_bytes).ok_or(Errno::EFAULT)?;
                let name = self.dev_get_name(index).ok_or(Errno::ENODEV)?;
                let mut out = arg.to_vec();
                out[..IFNAMSIZ].copy_from_slice(&padded(name));
                Ok(Ret::Bytes(out))
            }
            nr::SIOCADDRT | nr::SIOCDELRT => self.ip_rt_ioctl(cmd == nr::SIOCADDRT, arg).map(|()| Ret::Value(0)),
            nr::SIOCGARP | nr::SIOCSARP | nr::SIOCDARP => self.arp_ioctl(cmd, arg),
            nr::SIOCGIFFLAGS..=nr::SIOCSIFTXQLEN | nr::SIOCGIFMAP => self.if_ioctl(cmd, arg),
            // No device here has requests of its own, but it is looked up first.
            nr::SIOCDEVPRIVATE..=nr::SIOCDEVPRIVATE_LAST if arg.len() >= IFREQ_LEN => self.ifreq_dev(arg).and(Err(Errno::EOPNOTSUPP)),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// Commands about one interface, named at the start of `struct ifreq`.
    fn if_ioctl(&mut self, cmd: u32, arg: &[u8]) -> Result<Ret, Errno> {
        if arg.len() < IFREQ_LEN {
            return Err(Errno::EFAULT);
        }
        let index = self.ifreq_dev(arg)?;
        let dev = self.devs.get(IfIndex(index)).ok_or(Errno::ENODEV)?;
        let first = self.fib.addrs().find(|a| a.dev == index);
        let addr = || first.ok_or(Errno::EADDRNOTAVAIL);
        let sockaddr = |a: Ipv4Addr| [&AF_INET.to_ne_bytes()[..], &[0, 0], &a.octets()].concat();
        let word = |n: u32| n.to_ne_bytes().to_vec();
        let value = match cmd {
            nr::SIOCGIFFLAGS => dev.if_flags().to_ne_bytes().to_vec(),
            // Point-to-point links are there none: the destination is the address itself.
            nr::SIOCGIFADDR | nr::SIOCGIFDSTADDR => sockaddr(addr()?.addr),
            nr::SIOCGIFBRDADDR => sockaddr(addr()?.broadcast.unwrap_or(Ipv4Addr::UNSPECIFIED)),
            nr::SIOCGIFNETMASK => sockaddr(mask(addr()?.len).into()),
            nr::SIOCGIFMETRIC | nr::SIOCGIFMAP => Vec::new(),
            nr::SIOCGIFMTU => word(dev.mtu),
            nr::SIOCGIFHWADDR => {
                let kind = if dev.is_loopback() { ARPHRD_LOOPBACK } else { ARPHRD_ETHER };
                [&kind.to_ne_bytes()[..], &dev.mac.0].concat()
            }
            nr::SIOCGIFINDEX => word(index),
            nr::SIOCGIFTXQLEN => word(dev.tx_queue_len),
            nr::SIOCGIFPFLAGS => return Err(Errno::EINVAL),
            _ => return self.if_set_ioctl(cmd, index, arg),
        };
        let mut out = arg[..IFNAMSIZ].to_vec();
        out.extend(value);
        out.resize(IFREQ_LEN, 0);
        Ok(Ret::Bytes(out))
    }

    /// The interface that `struct ifreq` names; an alias ("eth0:1") is its interface.
    fn ifreq_dev(&self, arg: &[u8]) -> Result<u32, Errno> {
        let name = arg[..IFNAMSIZ].split(|&b| b == 0).next().unwrap_or_default();
        let name = core::str::from_utf8(name).map_err(|_| Errno::ENODEV)?;
        let name = name.split(':').next().unwrap_or_default();
        self.dev_get_by_name(name).ok_or(Errno::ENODEV)
    }

    /// `ioctl(SIOCGIFCONF)`: interfaces that have an address, one entry an address.
    pub(crate) fn sys_ifconf(&mut self, task: TaskId, fd: Fd, room: Option<usize>) -> Result<Ret, Errno> {
        self.fget_sock(task, fd)?;
        let mut all = Vec::new();
        for dev in self.devs.iter() {
            for (addr, _) in &dev.addrs {
                all.extend(padded(&dev.name));
                all.extend([&AF_INET.to_ne_bytes()[..], &[0, 0], &addr.octets(), &[0; 16]].concat());
            }
        }
        let Some(room) = room else { return Ok(Ret::IfConf(Vec::new(), all.len())) };
        all.truncate(room / IFREQ_LEN * IFREQ_LEN);
        let len = all.len();
        Ok(Ret::IfConf(all, len))
    }

    /// `SIOCADDRT`, `SIOCDELRT`: `struct rtentry` (Linux `rtentry_to_fib_config`).
    fn ip_rt_ioctl(&mut self, add: bool, arg: &[u8]) -> Result<(), Errno> {
        let addr = |at: usize| {
            let family = octets(arg, at).map(u16::from_ne_bytes);
            let ip = octets::<4>(arg, at + 4).map(Ipv4Addr::from);
            family.zip(ip).ok_or(Errno::EFAULT)
        };
        let ((family, dst), (_, gateway), (_, genmask)) = (addr(8)?, addr(24)?, addr(40)?);
        let flags = octets(arg, 56).map(u16::from_ne_bytes).ok_or(Errno::EFAULT)?;
        let metric = octets(arg, 80).map_or(0, u16::from_ne_bytes);
        if family != AF_INET {
            return Err(Errno::EAFNOSUPPORT);
        }
        let bits = if flags & RTF_HOST != 0 { u32::MAX } else { genmask.to_bits() };
        let len = bits.leading_ones() as u8;
        if mask(len) != bits || dst.to_bits() & !bits != 0 {
            return Err(Errno::EINVAL);
        }
        let via = if flags & RTF_GATEWAY != 0 { gateway } else { Ipv4Addr::UNSPECIFIED };
        if flags & RTF_GATEWAY != 0 && gateway.is_unspecified() {
            return Err(Errno::EINVAL);
        }
        let dev = self.route_dev(dst, via);
        // The metric is counted from 1 in this structure.
        let metric = u32::from(metric.saturating_sub(1));
        match add {
            true if dev == 0 => Err(Errno::ENETUNREACH),
            true => self.fib_add_route((dst, len), via, if via.is_unspecified() { dev } else { 0 }, metric),
            false => self.fib_del_route((dst, len), via, 0, metric),
        }
    }

    /// The link on which a destination, or its gateway, lies.
    pub(super) fn route_dev(&self, dst: Ipv4Addr, via: Ipv4Addr) -> u32 {
        let target = if via.is_unspecified() { dst } else { via };
        let on = |d: &&NetDevice| d.addrs.iter().any(|a| (a.0.to_bits() ^ target.to_bits()) & mask(a.1) == 0);
        self.devs.iter().find(on).map_or(0, |d| d.index.0)
    }

    /// `SIOCGARP`: `struct arpreq` with the link-layer address of a neighbour.
    fn arp_ioctl(&mut self, cmd: u32, arg: &[u8]) -> Result<Ret, Errno> {
        let addr = octets::<4>(arg, 4).map(Ipv4Addr::from).ok_or(Errno::EFAULT)?;
        if octets(arg, 0).map(u16::from_ne_bytes) != Some(AF_INET) {
            return Err(Errno::EPFNOSUPPORT);
        }
        if cmd != nr::SIOCGARP {
            return self.arp_set_ioctl(cmd == nr::SIOCSARP, addr, arg);
        }
        let name = arg.get(52..68).unwrap_or_default().split(|&b| b == 0).next().unwrap_or_default();
        let wanted = core::str::from_utf8(name).ok().filter(|n| !n.is_empty());
        let dev = match wanted {
            Some(name) => self.dev_get_by_name(name).ok_or(Errno::ENODEV)?,
            None => self.route_dev(addr, Ipv4Addr::UNSPECIFIED),
        };
        let known = self.neigh.lookup(dev, addr).and_then(|n| self.neigh.get(n)).filter(|n| n.state.valid());
        let mac = known.ok_or(Errno::ENXIO)?.mac;
        let mut out = arg.to_vec();
        out[16..18].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        out[18..24].copy_from_slice(&mac.0);
        out[32..36].copy_from_slice(&ATF_COM.to_ne_bytes());
        let name = self.dev_get_name(dev).map(String::from).unwrap_or_default();
        out[52..68].copy_from_slice(&padded(&name));
        Ok(Ret::Bytes(out))
    }
}

impl NetDevice {
    /// `SIOCGIFFLAGS` (Linux `dev_get_flags`).
    pub(crate) fn if_flags(&self) -> u16 {
        let kind = if self.is_loopback() { LOOPBACK } else { BROADCAST | MULTICAST };
        let up = if self.up { UP } else { 0 };
        let running = if self.up && self.carrier { RUNNING } else { 0 };
        kind | up | running
    }
}

fn padded(name: &str) -> [u8; IFNAMSIZ] {
    let mut b = [0; IFNAMSIZ];
    let n = name.len().min(IFNAMSIZ - 1);
    b[..n].copy_from_slice(&name.as_bytes()[..n]);
    b
}

pub(super) fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}
