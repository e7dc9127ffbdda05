//! An address of an interface, and the routes that it brings along.

use super::route::{Entry, PROT_KERNEL, RouteKind, mask, scope};
use crate::time::Instant;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

/// An address of an interface (Linux `struct in_ifaddr`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IfAddr {
    pub(crate) dev: u32,
    pub(crate) addr: Ipv4Addr,
    pub(crate) len: u8,
    /// The other end of a point-to-point link; else the address itself.
    pub(crate) peer: Ipv4Addr,
    /// Broadcast address that was given.
    pub(crate) broadcast: Option<Ipv4Addr>,
    /// `RT_SCOPE_*`.
    pub(crate) scope: u8,
    /// The name of the interface, or that with a colon and more.
    pub(crate) label: String,
    /// `IFA_F_*` of those that are kept: `SECONDARY`, `NOPREFIXROUTE`, `PERMANENT`.
    pub(crate) flags: u32,
    /// When it was made.
    pub(crate) created: Instant,
}

/// `IFA_F_SECONDARY`.
pub(crate) const IFA_F_SECONDARY: u32 = 1;
/// `IFA_F_PERMANENT`.
pub(crate) const IFA_F_PERMANENT: u32 = 0x80;
/// `IFA_F_NOPREFIXROUTE`.
pub(crate) const IFA_F_NOPREFIXROUTE: u32 = 0x200;

impl IfAddr {
    /// Network that it is on.
    pub(super) fn net(&self) -> u32 {
        self.peer.to_bits() & mask(self.len)
    }

    /// The routes that it brings along (Linux `fib_add_ifaddr`): with the table, `true` for the local one.
    pub(super) fn routes(&self, up: bool, loopback: bool, primary: Ipv4Addr) -> Vec<(bool, Entry)> {
        let entry = |kind, net, len| {
            let scope = if kind == RouteKind::Local { scope::HOST } else { scope::LINK };
            let via = Ipv4Addr::UNSPECIFIED;
            Entry { net, len, metric: 0, kind, dev: self.dev, via, src: primary, scope, proto: PROT_KERNEL, mtu: 0, reject: None }
        };
        let mut out = Vec::from([(true, entry(RouteKind::Local, self.addr.to_bits(), 32))]);
        if !up {
            return out;
        }
        let (net, last) = (self.net(), self.net() | !mask(self.len));
        if let Some(b) = self.broadcast.filter(|b| !b.is_broadcast() && b.to_bits() != last) {
            out.push((true, entry(RouteKind::Broadcast, b.to_bits(), 32)));
        }
        let own_subnet = net >> 24 != 0 && self.flags & IFA_F_SECONDARY == 0 && (net != self.addr.to_bits() || self.len < 32);
        if own_subnet {
            if loopback {
                out.push((true, entry(RouteKind::Local, net, self.len)));
            } else if self.flags & IFA_F_NOPREFIXROUTE == 0 {
                out.push((false, entry(RouteKind::Unicast, net, self.len)));
            }
            if self.len < 31 {
                out.push((true, entry(RouteKind::Broadcast, last, 32)));
            }
        }
        out
    }
}
