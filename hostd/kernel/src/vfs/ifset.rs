//! The `ioctl` that change an interface, its address or a neighbour, as `ifconfig`, `route` and `arp` use them.

use super::ifioctl::{mask, name_of};
use crate::Kernel;
use crate::dev::net_device::{IfIndex, MacAddr};
use crate::errno::Errno;
use crate::ether::Nud;
use crate::ip::route::IfAddr;
use crate::sock::AF_INET;
use crate::syscall::Ret;
use crate::syscall::abi::octets;
use crate::syscall::ioctl::nr;
use core::net::Ipv4Addr;

const IFNAMSIZ: usize = 16;
const IFF_UP: u16 = 1;
const ARPHRD_ETHER: u16 = 1;
/// Octets of an IPv4 packet that any link carries, and the most that a packet has.
const MIN_MTU: u32 = 68;
const MAX_MTU: u32 = 65535;
/// `ATF_PERM`.
const ATF_PERM: u32 = 4;

impl Kernel {
    /// Commands that change the interface; `arg` is `struct ifreq`.
    pub(super) fn if_set_ioctl(&mut self, cmd: u32, index: u32, arg: &[u8]) -> Result<Ret, Errno> {
        let dev = IfIndex(index);
        let value = &arg[IFNAMSIZ..];
        let half = || octets(value, 0).map(u16::from_ne_bytes).ok_or(Errno::EFAULT);
        let word = || octets(value, 0).map(u32::from_ne_bytes).ok_or(Errno::EFAULT);
        match cmd {
            // An alias is switched off by taking its address away.
            nr::SIOCSIFFLAGS if name_of(arg).contains(':') => {
                let ifa = self.ifreq_ifa(index, arg, false).ok_or(Errno::EADDRNOTAVAIL)?.clone();
                if half()? & IFF_UP == 0 {
                    self.inet_del_ifa(|a| *a == ifa)?;
                }
            }
            nr::SIOCSIFFLAGS => self.dev_set_up(dev, half()? & IFF_UP != 0),
            nr::SIOCSIFMTU => match word()? {
                mtu @ MIN_MTU..=MAX_MTU => self.dev_set_mtu(dev, mtu),
                _ => return Err(Errno::EINVAL),
            },
            nr::SIOCSIFTXQLEN => match i32::try_from(word()?) {
                Ok(len) => self.dev_set_tx_queue_len(dev, len as u32),
                Err(_) => return Err(Errno::EINVAL),
            },
            nr::SIOCSIFHWADDR => {
                if index == 1 || half()? != ARPHRD_ETHER {
                    return Err(Errno::EINVAL);
                }
                let mac = MacAddr(octets(value, 2).ok_or(Errno::EFAULT)?);
                // A group or nobody is no address.
                if mac.0[0] & 1 != 0 || mac == MacAddr::default() {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                self.dev_set_mac_address(dev, mac);
            }
            nr::SIOCSIFADDR | nr::SIOCSIFNETMASK | nr::SIOCSIFBRDADDR => self.ifa_ioctl(cmd, index, arg)?,
            nr::SIOCSIFMETRIC => return Err(Errno::EOPNOTSUPP),
            nr::SIOCSIFDSTADDR => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOTTY),
        }
        Ok(Ret::Value(0))
    }

    /// Address, mask or broadcast address of the address that is meant (Linux `devinet_ioctl`): the old entry goes, a changed one
    /// comes.
    fn ifa_ioctl(&mut self, cmd: u32, index: u32, arg: &[u8]) -> Result<(), Errno> {
        let value = &arg[IFNAMSIZ..];
        let family = octets(value, 0).map(u16::from_ne_bytes);
        let given = octets::<4>(value, 4).map(Ipv4Addr::from).ok_or(Errno::EFAULT)?;
        if family != Some(AF_INET) {
            return Err(Errno::EINVAL);
        }
        let old = self.ifreq_ifa(index, arg, false).cloned();
        if cmd == nr::SIOCSIFADDR {
            if given.is_unspecified() {
                return old.map_or(Ok(()), |old| self.inet_del_ifa(|a| *a == old));
            }
            if old.as_ref().is_some_and(|old| old.addr == given) {
                return Ok(());
            }
            let len = class_len(given).ok_or(Errno::EINVAL)?;
            let label = name_of(arg).into();
            return self.replace_ifa(old, IfAddr { label, ..self.inet_ifa(IfIndex(index), given, len) });
        }
        let old = old.ok_or(Errno::EADDRNOTAVAIL)?;
        let mut new = old.clone();
        if cmd == nr::SIOCSIFNETMASK {
            let len = given.to_bits().leading_ones() as u8;
            if mask(len) != given.to_bits() {
                return Err(Errno::EINVAL);
            }
            // A broadcast address that followed from the old mask follows the new one.
            if old.broadcast.is_some_and(|b| b.to_bits() == old.addr.to_bits() | !mask(old.len)) {
                new.broadcast = (len < 31).then(|| Ipv4Addr::from(old.addr.to_bits() | !mask(len)));
            }
            new.len = len;
        } else {
            new.broadcast = Some(given);
        }
        if new == old { Ok(()) } else { self.replace_ifa(Some(old), new) }
    }

    fn replace_ifa(&mut self, old: Option<IfAddr>, mut new: IfAddr) -> Result<(), Errno> {
        if let Some(old) = old {
            self.inet_del_ifa(|a| *a == old)?;
        }
        if new.broadcast.is_none() && new.dev != 1 && new.len < 31 {
            new.broadcast = Some(Ipv4Addr::from(new.addr.to_bits() | !mask(new.len)));
        }
        self.inet_insert_ifa(new)
    }

    /// `SIOCSARP`, `SIOCDARP`: `struct arpreq`.
    pub(super) fn arp_set_ioctl(&mut self, set: bool, addr: Ipv4Addr, arg: &[u8]) -> Result<Ret, Errno> {
        let dev = self.route_dev(addr, Ipv4Addr::UNSPECIFIED);
        if dev == 0 {
            return Err(Errno::ENETUNREACH);
        }
        if !set {
            return self.neigh_admin_del(dev, addr).map(|()| Ret::Value(0)).map_err(|_| Errno::ENXIO);
        }
        let mac = MacAddr(octets(arg, 18).ok_or(Errno::EFAULT)?);
        let flags = octets(arg, 32).map_or(0, u32::from_ne_bytes);
        let state = if flags & ATF_PERM != 0 { Nud::Permanent } else { Nud::Stale };
        self.neigh_admin(dev, addr, Some(mac), state, true)?;
        Ok(Ret::Value(0))
    }
}

/// Prefix length by class (Linux `inet_abc_len`): what `SIOCSIFADDR` starts with.
fn class_len(addr: Ipv4Addr) -> Option<u8> {
    match addr.octets()[0] {
        0..=127 => Some(8),
        128..=191 => Some(16),
        192..=223 => Some(24),
        _ => None,
    }
}
