//! Addresses: `ip addr`, `getifaddrs`.

use super::super::request::{Answer, Refusal, Request, refuse};
use super::super::wire::{Attrs, Message, flag, word};
use super::{AF_INET, AF_UNSPEC, rtm};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::ip::route::{IFA_F_NOPREFIXROUTE, IFA_F_PERMANENT, IFA_F_SECONDARY, IfAddr};
use alloc::string::String;
use alloc::vec::Vec;

/// Octets of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;
/// For ever, of a lifetime.
const INFINITY: u32 = u32::MAX;

/// `IFA_*`.
mod ifa {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL: u16 = 2;
    pub(super) const LABEL: u16 = 3;
    pub(super) const BROADCAST: u16 = 4;
    pub(super) const CACHEINFO: u16 = 6;
    pub(super) const FLAGS: u16 = 8;
    pub(super) const PROTO: u16 = 11;
}

impl Kernel {
    pub(super) fn rtnl_dump_addrs(&self, req: &Request<'_>, family: u8) -> Result<Answer, Refusal> {
        if family != AF_UNSPEC && family != AF_INET {
            return Ok(Answer::Dump(Vec::new()));
        }
        let index = if req.strict { word(req.split(IFADDRMSG)?.0, 4).unwrap_or(0) } else { 0 };
        if index != 0 && self.devs.get(IfIndex(index)).is_none() {
            return Err(Errno::ENODEV.into());
        }
        let filtered = if index != 0 { flag::DUMP_FILTERED } else { 0 };
        let one = |a: &IfAddr| {
            let mut m = req.reply(rtm::NEWADDR, flag::MULTI | filtered);
            fill(&mut m, a);
            m.finish()
        };
        Ok(Answer::Dump(self.fib.addrs().filter(|a| index == 0 || a.dev == index).map(one).collect()))
    }

    pub(super) fn rtnl_newaddr(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(IFADDRMSG)?;
        let ifa = self.read_addr(head, attrs)?;
        let same = |a: &IfAddr| (a.dev, a.addr, a.peer, a.len) == (ifa.dev, ifa.addr, ifa.peer, ifa.len);
        if self.fib.addrs().any(same) {
            if req.hdr.flags & flag::EXCL != 0 || req.hdr.flags & flag::REPLACE == 0 {
                return refuse(Errno::EEXIST, "ipv4: Address already assigned");
            }
            // What a replacement may change here does not change: lifetimes are for ever.
            return Ok(Answer::Done);
        }
        match self.inet_insert_ifa(ifa) {
            Err(Errno::EEXIST) => refuse(Errno::EEXIST, "ipv4: Address already assigned"),
            done => Ok(done.map(|()| Answer::Done)?),
        }
    }

    /// Linux `rtm_to_ifaddr`.
    fn read_addr(&self, head: &[u8], attrs: Attrs<'_>) -> Result<IfAddr, Refusal> {
        let (len, index) = (head[1], word(head, 4).unwrap_or(0));
        let Some(local) = attrs.get(ifa::LOCAL) else { return refuse(Errno::EINVAL, "ipv4: Invalid prefix length or local address") };
        if len > 32 {
            return refuse(Errno::EINVAL, "ipv4: Invalid prefix length or local address");
        }
        if self.devs.get(IfIndex(index)).is_none() {
            return refuse(Errno::ENODEV, "ipv4: Device not found");
        }
        let mut out = self.inet_ifa(IfIndex(index), local.addr()?, len);
        out.scope = head[3];
        let mut flags = u32::from(head[2]);
        for a in attrs {
            match a.kind {
                ifa::ADDRESS => out.peer = a.addr()?,
                ifa::BROADCAST => out.broadcast = Some(a.addr()?),
                ifa::LABEL => out.label = String::from(a.text(16)?),
                ifa::FLAGS => flags = a.u32()?,
                ifa::CACHEINFO if word(a.data, 0) == Some(INFINITY) && word(a.data, 4) == Some(INFINITY) => {}
                ifa::CACHEINFO => return refuse(Errno::EOPNOTSUPP, "ipv4: addresses live for ever here"),
                ifa::LOCAL | ifa::PROTO => {}
                _ => return Err(Errno::EOPNOTSUPP.into()),
            }
        }
        out.flags = IFA_F_PERMANENT | flags & IFA_F_NOPREFIXROUTE;
        Ok(out)
    }

    pub(super) fn rtnl_deladdr(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(IFADDRMSG)?;
        let (len, index) = (head[1], word(head, 4).unwrap_or(0));
        if self.devs.get(IfIndex(index)).is_none() {
            return refuse(Errno::ENODEV, "ipv4: Device not found");
        }
        let given = |kind| attrs.get(kind).map(|a| a.addr()).transpose();
        let (local, address) = (given(ifa::LOCAL)?, given(ifa::ADDRESS)?);
        let label = attrs.get(ifa::LABEL).map(|a| a.text(16)).transpose()?;
        let matches = |a: &IfAddr| {
            a.dev == index
                && local.is_none_or(|l| l == a.addr)
                && label.is_none_or(|l| l == a.label)
                && address.is_none_or(|p| a.len == len && p == a.peer)
        };
        match self.inet_del_ifa(matches) {
            Err(Errno::EADDRNOTAVAIL) => refuse(Errno::EADDRNOTAVAIL, "ipv4: Address not found"),
            done => Ok(done.map(|()| Answer::Done)?),
        }
    }
}

/// `struct ifaddrmsg` and its attributes (Linux `inet_fill_ifaddr`).
pub(super) fn fill(m: &mut Message, a: &IfAddr) {
    m.bytes(&[AF_INET, a.len, a.flags as u8 & (IFA_F_PERMANENT | IFA_F_SECONDARY) as u8, a.scope]).bytes(&a.dev.to_ne_bytes());
    m.addr(ifa::ADDRESS, a.peer).addr(ifa::LOCAL, a.addr);
    if let Some(b) = a.broadcast {
        m.addr(ifa::BROADCAST, b);
    }
    let stamp = (a.created.millis() / 10) as u32;
    m.text(ifa::LABEL, &a.label).u32(ifa::FLAGS, a.flags).words(ifa::CACHEINFO, &[INFINITY, INFINITY, stamp, stamp]);
}
