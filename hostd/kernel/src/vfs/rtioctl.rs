//! The `ioctl` that change routes, as `route` uses them (Linux `net/ipv4/fib_frontend.c`).

use super::ifioctl::{mask, name_of};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::dev::NetDevice;
use crate::errno::Errno;
use crate::ip::route::Entry;
use crate::sock::AF_INET;
use crate::syscall::abi::octets;
use core::net::Ipv4Addr;
use ringlab_ring::memory::Region;

const RTF_GATEWAY: u16 = 2;
const RTF_HOST: u16 = 4;
const RTF_REJECT: u16 = 0x200;
/// What is read of a device's name: it may lie at the end of the program's memory, whose octets then lack (`EFAULT`, as in Linux).
const NAME_LEN: usize = 15;
/// Where `struct rtentry` has its parts.
const DST: usize = 8;
const GATEWAY: usize = 24;
const GENMASK: usize = 40;
const FLAGS: usize = 56;
const METRIC: usize = 80;
const DEV: usize = 88;

/// What `struct rtentry` asks for.
struct Wanted {
    dst: Ipv4Addr,
    len: u8,
    /// Unspecified: none.
    via: Ipv4Addr,
    /// 0: not said.
    dev: u32,
    /// 0: not said, either.
    metric: u32,
}

impl Wanted {
    fn is(&self, e: &Entry) -> bool {
        (e.net, e.len) == (self.dst.to_bits(), self.len)
            && (self.via.is_unspecified() || e.via == self.via)
            && (self.dev == 0 || e.dev == self.dev)
            && (self.metric == 0 || e.metric == self.metric)
    }
}

impl Kernel {
    /// `SIOCADDRT`, `SIOCDELRT`: `struct rtentry`. What is not said of a route to be deleted may be anything.
    pub(super) fn ip_rt_ioctl(&mut self, task: TaskId, add: bool, arg: &[u8]) -> Result<(), Errno> {
        let wanted = self.rtentry_to_fib_config(task, arg)?;
        if !add {
            let gone = self.fib.leave(false, |e| wanted.is(e)).ok_or(Errno::ESRCH)?;
            self.rtnl_routes(false, &[(false, gone)]);
            return Ok(());
        }
        let dev = match wanted.dev {
            // Linux asks for a device here (`ENODEV`); a destination that lies on a link has one.
            0 if wanted.via.is_unspecified() => self.route_dev(wanted.dst, wanted.via),
            dev => dev,
        };
        self.fib_add_route((wanted.dst, wanted.len), wanted.via, dev, wanted.metric)?;
        let fresh = self.fib.routes().find(|e| wanted.is(e) && e.metric == wanted.metric).copied();
        self.rtnl_routes(true, fresh.map(|e| (false, e)).as_slice());
        Ok(())
    }

    /// Linux `rtentry_to_fib_config`.
    fn rtentry_to_fib_config(&mut self, task: TaskId, arg: &[u8]) -> Result<Wanted, Errno> {
        let addr = |at: usize| {
            let family = octets(arg, at).map(u16::from_ne_bytes);
            let ip = octets::<4>(arg, at + 4).map(Ipv4Addr::from);
            family.zip(ip).ok_or(Errno::EFAULT)
        };
        let ((family, dst), (_, gateway), (_, genmask)) = (addr(DST)?, addr(GATEWAY)?, addr(GENMASK)?);
        let flags = octets(arg, FLAGS).map(u16::from_ne_bytes).ok_or(Errno::EFAULT)?;
        if family != AF_INET {
            return Err(Errno::EAFNOSUPPORT);
        }
        if flags & RTF_REJECT != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let bits = if flags & RTF_HOST != 0 { u32::MAX } else { genmask.to_bits() };
        let len = bits.leading_ones() as u8;
        if mask(len) != bits || dst.to_bits() & !bits != 0 {
            return Err(Errno::EINVAL);
        }
        let via = if flags & RTF_GATEWAY != 0 { gateway } else { Ipv4Addr::UNSPECIFIED };
        let dev = match octets(arg, DEV).map_or(0, u64::from_ne_bytes) {
            0 => 0,
            name => self.user_dev(task, name)?,
        };
        if flags & RTF_GATEWAY != 0 && gateway.is_unspecified() {
            return Err(Errno::EINVAL);
        }
        // The metric is counted from 1 in this structure.
        let metric = octets(arg, METRIC).map_or(0, u16::from_ne_bytes).saturating_sub(1);
        Ok(Wanted { dst, len, via, dev, metric: metric.into() })
    }

    /// The interface whose name stands in a program's memory.
    fn user_dev(&mut self, task: TaskId, name: u64) -> Result<u32, Errno> {
        let room = Region::heap(NAME_LEN);
        let slice = room.slice(0, NAME_LEN).map_err(|_| Errno::EFAULT)?;
        self.mem.copy_from_user(task, name, &[slice])?;
        let mut octets = [0; NAME_LEN];
        room.slice(0, NAME_LEN).map_err(|_| Errno::EFAULT)?.read(&mut octets);
        let name = name_of(&octets).split(':').next().unwrap_or_default();
        self.dev_get_by_name(name).ok_or(Errno::ENODEV)
    }

    /// The link on which a destination, or its gateway, lies.
    pub(super) fn route_dev(&self, dst: Ipv4Addr, via: Ipv4Addr) -> u32 {
        let target = if via.is_unspecified() { dst } else { via };
        let on = |d: &&NetDevice| d.addrs.iter().any(|a| (a.0.to_bits() ^ target.to_bits()) & mask(a.1) == 0);
        self.devs.iter().find(on).map_or(0, |d| d.index.0)
    }
}
