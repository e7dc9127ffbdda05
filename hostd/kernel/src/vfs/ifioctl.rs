//! `ioctl` on sockets (Linux `sock_ioctl`, `inet_ioctl`, `dev_ioctl`).
//!
//! Arguments are octets of `struct ifreq`, `rtentry` and `arpreq`; results too.

use super::{O_ASYNC, O_NONBLOCK};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::dev::NetDevice;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::ip::route::IfAddr;
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
                self.inet_ioctl(task, cmd, arg)
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

    fn inet_ioctl(&mut self, task: TaskId, cmd: u32, arg: &[u8]) -> Result<Ret, Errno> {
        match cmd {
            nr::SIOCGIFNAME => {
                let index = octets(arg, IFNAMSIZ).map(u32::from_ne_bytes).ok_or(Errno::EFAULT)?;
                let name = self.dev_get_name(index).ok_or(Errno::ENODEV)?;
                let mut out = arg.to_vec();
                out[..IFNAMSIZ].copy_from_slice(&padded(name));
                Ok(Ret::Bytes(out))
            }
            nr::SIOCADDRT | nr::SIOCDELRT => self.ip_rt_ioctl(task, cmd == nr::SIOCADDRT, arg).map(|()| Ret::Value(0)),
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
        let labelled = self.ifreq_ifa(index, arg, true);
        let addr = || labelled.ok_or(Errno::EADDRNOTAVAIL);
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
        let name = name_of(arg).split(':').next().unwrap_or_default();
        self.dev_get_by_name(name).ok_or(Errno::ENODEV)
    }

    /// The address that `struct ifreq` means (Linux `devinet_ioctl`): the first whose label is the name, an alias's or the
    /// interface's own; with `also_by_addr` one that also is the address given, before that.
    pub(super) fn ifreq_ifa(&self, index: u32, arg: &[u8], also_by_addr: bool) -> Option<&IfAddr> {
        let name = name_of(arg);
        let labelled = || self.fib.addrs().filter(|a| a.dev == index && a.label == name);
        let family = octets(arg, IFNAMSIZ).map(u16::from_ne_bytes);
        let given = octets::<4>(arg, IFNAMSIZ + 4).map(Ipv4Addr::from).filter(|_| also_by_addr && family == Some(AF_INET));
        given.and_then(|g| labelled().find(|a| a.addr == g)).or_else(|| labelled().next())
    }

    /// `ioctl(SIOCGIFCONF)`: interfaces that have an address, one entry an address.
    pub(crate) fn sys_ifconf(&mut self, task: TaskId, fd: Fd, room: Option<usize>) -> Result<Ret, Errno> {
        self.fget_sock(task, fd)?;
        let mut all = Vec::new();
        for dev in self.devs.iter() {
            for a in self.fib.addrs().filter(|a| a.dev == dev.index.0) {
                all.extend(padded(&a.label));
                all.extend([&AF_INET.to_ne_bytes()[..], &[0, 0], &a.addr.octets(), &[0; 16]].concat());
            }
        }
        let Some(room) = room else { return Ok(Ret::IfConf(Vec::new(), all.len())) };
        all.truncate(room / IFREQ_LEN * IFREQ_LEN);
        let len = all.len();
        Ok(Ret::IfConf(all, len))
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

/// The name at the start of `struct ifreq`; none, if it is no text.
pub(super) fn name_of(arg: &[u8]) -> &str {
    let name = arg[..arg.len().min(IFNAMSIZ)].split(|&b| b == 0).next().unwrap_or_default();
    core::str::from_utf8(name).unwrap_or_default()
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
