//! Forwarding (Linux `net/ipv4/ip_forward.c`).

use super::Hook;
use super::devconf::Conf;
use super::header::IpHdr;
use super::icmp;
use super::output::tos_priority;
use super::route::RouteKind;
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::skb::{PacketType, SkBuff};
use crate::trace::Point;
use alloc::boxed::Box;
use core::net::Ipv4Addr;
use ringlab_counters::{DropReason, Mib};

/// Milliseconds of a sender's credit that a complaint about a missing route costs, and that it may have for such
/// (Linux `error_cost`, `error_burst`).
const ERROR_COST: u64 = 1000;
const ERROR_BURST: u64 = 5000;

impl Kernel {
    /// A packet for somebody else; `skb` stands at the IP header.
    pub(super) fn ip_forward(&mut self, mut skb: Box<SkBuff>, hdr: &IpHdr) {
        let (saddr, daddr) = (Ipv4Addr::from_bits(hdr.saddr), Ipv4Addr::from_bits(hdr.daddr));
        let route = match self.ip_route_forward(daddr) {
            Ok(route) => route,
            Err(why) => return self.ip_error(skb, why),
        };
        let back = route.dev == skb.dev;
        if let Err(reason) = self.fib_validate_source(IfIndex(skb.dev), saddr) {
            return self.ip_martian(skb, reason);
        }
        if back && self.inet_addr_type(saddr) == RouteKind::Broadcast {
            return self.kfree_skb(skb, DropReason::IpInvalidSource);
        }
        self.trace(Point::IpForward, skb.id, [u64::from(hdr.ttl), u64::from(hdr.daddr), 0, 0]);
        if skb.pkt_type != PacketType::Host {
            // Not a router's business (RFC 1812 §5.3.4).
            return self.kfree_skb(skb, DropReason::NotSpecified);
        }
        if hdr.ttl <= 1 {
            self.inc(Mib::IpInHdrErrors);
            self.icmp_send(&skb, icmp::TIME_EXCEEDED, icmp::EXC_TTL, 0);
            return self.kfree_skb(skb, DropReason::IpInHdr);
        }
        self.inc(Mib::IpForwDatagrams);
        if self.ip_exceeds_mtu(&skb, route.mtu) && skb.ip.df {
            self.inc(Mib::IpFragFails);
            self.icmp_send(&skb, icmp::DEST_UNREACH, icmp::FRAG_NEEDED, route.mtu);
            return self.kfree_skb(skb, DropReason::FragTooBig);
        }
        let mut hdr = hdr.clone();
        hdr.ttl -= 1;
        // The header may be shared with a clone of a raw socket: it is written anew.
        if skb.is_cloned() && !self.skb_linearize(&mut skb) {
            return self.kfree_skb(skb, DropReason::NoMem);
        }
        let stored = skb.store_bits(0, &hdr.emit());
        debug_assert!(stored.is_ok(), "the header was parsed from here");
        skb.ip.ttl = hdr.ttl;
        if back && self.in_dev_conf(IfIndex(skb.dev), Conf::SendRedirects) != 0 && self.ip_is_on_link(saddr, skb.dev) {
            self.ip_rt_send_redirect(&skb, saddr, route.nexthop);
        }
        skb.priority = tos_priority(hdr.tos);
        self.nf_hook(Hook::Forward, &skb);
        // The sender hears of losses from its own protocol.
        let _ = self.ip_output(skb, &route);
    }

    /// There is no way to go on (Linux `ip_error`): the sender is told, not too often.
    fn ip_error(&mut self, skb: Box<SkBuff>, why: Errno) {
        let (code, reason) = match why {
            Errno::EHOSTUNREACH => (icmp::HOST_UNREACH, DropReason::NotSpecified),
            Errno::EACCES => (icmp::PKT_FILTERED, DropReason::NotSpecified),
            Errno::ENETUNREACH => {
                self.inc(Mib::IpExtInNoRoutes);
                (icmp::NET_UNREACH, DropReason::IpInNoRoutes)
            }
            _ => return self.kfree_skb(skb, DropReason::NotSpecified),
        };
        if self.inet_peer_allow(Ipv4Addr::from_bits(skb.ip.saddr), ERROR_COST, ERROR_BURST) {
            self.icmp_send(&skb, icmp::DEST_UNREACH, code, 0);
        }
        self.kfree_skb(skb, reason);
    }

    /// Longer than the link takes, segment by segment (Linux `ip_exceeds_mtu`).
    pub(super) fn ip_exceeds_mtu(&self, skb: &SkBuff, mtu: u32) -> bool {
        if skb.len() <= mtu {
            return false;
        }
        let Some(gso) = skb.gso else { return true };
        let mut off = [0; 1];
        let hdr_len = u32::from(skb.ip.hdr_len);
        if skb.copy_bits(hdr_len + 12, &mut off).is_err() {
            return true;
        }
        hdr_len + u32::from(off[0] >> 4) * 4 + u32::from(gso.size) > mtu
    }
}
