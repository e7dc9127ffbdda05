//! Neighbours: `ip neigh`.

use super::super::request::{Answer, Refusal, Request, refuse};
use super::super::wire::{Message, flag, word};
use super::{AF_INET, AF_UNSPEC, rtm};
use crate::Kernel;
use crate::dev::net_device::{IfIndex, MacAddr};
use crate::errno::Errno;
use crate::ether::neigh::{Neigh, Nud};
use crate::time::Instant;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

/// Octets of `struct ndmsg`.
const NDMSG: usize = 12;
/// `NTF_USE`, `NTF_PROXY`.
const NTF_USE: u8 = 1;
const NTF_PROXY: u8 = 8;
const RTN_UNICAST: u8 = 1;

/// `NDA_*`.
mod nda {
    pub(super) const DST: u16 = 1;
    pub(super) const LLADDR: u16 = 2;
    pub(super) const CACHEINFO: u16 = 3;
    pub(super) const PROBES: u16 = 4;
    pub(super) const VLAN: u16 = 5;
    pub(super) const IFINDEX: u16 = 8;
    pub(super) const MASTER: u16 = 9;
    pub(super) const PROTOCOL: u16 = 12;
    pub(super) const FLAGS_EXT: u16 = 15;
}

impl Kernel {
    pub(super) fn rtnl_dump_neighs(&self, req: &Request<'_>, family: u8) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(NDMSG).unwrap_or((req.payload, super::super::wire::Attrs(&[])));
        let proxy = head.get(10).is_some_and(|f| f & NTF_PROXY != 0);
        if family != AF_UNSPEC && family != AF_INET || proxy || attrs.get(nda::MASTER).is_some_and(|a| a.u32() != Ok(0)) {
            return Ok(Answer::Dump(Vec::new()));
        }
        let index = attrs.get(nda::IFINDEX).map(|a| a.u32()).transpose()?.unwrap_or(0);
        let filtered = if index != 0 { flag::DUMP_FILTERED } else { 0 };
        let one = |n: &Neigh| {
            let mut m = req.reply(rtm::NEWNEIGH, flag::MULTI | filtered);
            fill(&mut m, n, self.now);
            m.finish()
        };
        Ok(Answer::Dump(self.neigh.iter().filter(|n| index == 0 || n.dev == index).map(one).collect()))
    }

    /// Address and interface of a request.
    fn read_neigh(&self, req: &Request<'_>) -> Result<(u32, Ipv4Addr), Refusal> {
        let (head, attrs) = req.split(NDMSG)?;
        let dst = attrs.get(nda::DST).ok_or(Errno::EINVAL)?.addr().map_err(|_| Errno::EINVAL)?;
        let index = word(head, 4).unwrap_or(0);
        let device = self.devs.get(IfIndex(index)).ok_or(Errno::ENODEV)?;
        if head[10] & NTF_PROXY != 0 {
            return Err(Errno::EOPNOTSUPP.into());
        }
        if device.is_loopback() {
            return Err(Errno::EINVAL.into());
        }
        Ok((index, dst))
    }

    pub(super) fn rtnl_getneigh(&self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (dev, dst) = self.read_neigh(req)?;
        let entry = self.neigh.lookup(dev, dst).and_then(|n| self.neigh.get(n));
        let Some(entry) = entry else { return refuse(Errno::ENOENT, "Neighbour entry not found") };
        let mut m = req.reply(rtm::NEWNEIGH, 0);
        fill(&mut m, entry, self.now);
        Ok(Answer::One(m.finish()))
    }

    /// Linux `neigh_add`.
    pub(super) fn rtnl_newneigh(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (dev, dst) = self.read_neigh(req)?;
        let (head, attrs) = req.split(NDMSG)?;
        let state = u16::from_ne_bytes([head[8], head[9]]);
        let state = Nud::from_bits(state).ok_or(Errno::EINVAL)?;
        if head[10] & !NTF_USE != 0 {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mac = match attrs.get(nda::LLADDR) {
            Some(a) => Some(MacAddr(a.data.get(..6).and_then(|b| b.try_into().ok()).ok_or(Errno::EINVAL)?)),
            None => None,
        };
        for a in attrs {
            // A VLAN is a bridge's matter.
            let fits = match a.kind {
                nda::FLAGS_EXT => a.u32()? == 0,
                kind => matches!(kind, nda::DST | nda::LLADDR | nda::PROBES | nda::CACHEINFO | nda::PROTOCOL | nda::VLAN),
            };
            if !fits {
                return Err(Errno::EOPNOTSUPP.into());
            }
        }
        let flags = req.hdr.flags;
        let known = self.neigh.lookup(dev, dst);
        match known {
            None if flags & flag::CREATE == 0 => return Err(Errno::ENOENT.into()),
            Some(_) if flags & flag::EXCL != 0 => return Err(Errno::EEXIST.into()),
            _ => {}
        }
        if head[10] & NTF_USE != 0 {
            // Nothing is said of it: it is to be asked (FRR does so for the next hops of its routes).
            let n = known.or_else(|| self.neigh_create(dev, dst)).ok_or(Errno::ENOBUFS)?;
            self.neigh_use(n);
            return Ok(Answer::Done);
        }
        if state.valid() && mac.is_none() && known.and_then(|n| self.neigh.get(n)).is_none_or(|e| !e.state.valid()) {
            return Err(Errno::EINVAL.into());
        }
        let over = known.is_none() || flags & flag::REPLACE != 0;
        self.neigh_admin(dev, dst, mac, state, over)?;
        Ok(Answer::Done)
    }

    pub(super) fn rtnl_delneigh(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (dev, dst) = self.read_neigh(req)?;
        self.neigh_admin_del(dev, dst)?;
        Ok(Answer::Done)
    }
}

/// `struct ndmsg` and its attributes (Linux `neigh_fill_info`).
pub(super) fn fill(m: &mut Message, n: &Neigh, now: Instant) {
    m.bytes(&[AF_INET, 0, 0, 0]).bytes(&n.dev.to_ne_bytes()).bytes(&(n.state as u16).to_ne_bytes()).bytes(&[0, RTN_UNICAST]);
    m.addr(nda::DST, n.addr);
    if n.state.valid() {
        m.attr(nda::LLADDR, &n.mac.0);
    }
    let (confirmed, used, updated) = n.ages(now);
    m.u32(nda::PROBES, n.probes()).words(nda::CACHEINFO, &[confirmed, used, updated, n.has_timer().into()]);
}
