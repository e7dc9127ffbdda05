//! Forwarding (Linux `net/ipv4/ip_forward.c`).

use super::Hook;
use super::header::IpHdr;
use super::icmp;
use crate::Kernel;
use crate::skb::SkBuff;
use crate::trace::Point;
use alloc::boxed::Box;
use core::net::Ipv4Addr;
use ringlab_counters::{DropReason, Mib};

impl Kernel {
    /// A packet for somebody else; `skb` stands at the IP header.
    pub(super) fn ip_forward(&mut self, mut skb: Box<SkBuff>, hdr: &IpHdr) {
        let Some(route) = self.ip_route_input(Ipv4Addr::from_bits(hdr.daddr)) else {
            self.inc(Mib::IpOutNoRoutes);
            self.icmp_send(&skb, icmp::DEST_UNREACH, icmp::NET_UNREACH, 0);
            return self.kfree_skb(skb, DropReason::IpInNoRoutes);
        };
        self.trace(Point::IpForward, skb.id, [u64::from(hdr.ttl), u64::from(hdr.daddr), 0, 0]);
        if hdr.ttl <= 1 {
            self.inc(Mib::IpInHdrErrors);
            self.icmp_send(&skb, icmp::TIME_EXCEEDED, icmp::EXC_TTL, 0);
            return self.kfree_skb(skb, DropReason::IpTtlExceeded);
        }
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
        self.inc(Mib::IpForwDatagrams);
        self.nf_hook(Hook::Forward, &skb);
        // The sender hears of losses from its own protocol.
        let _ = self.ip_output(skb, &route);
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
