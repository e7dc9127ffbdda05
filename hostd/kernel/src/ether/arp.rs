//! ARP (RFC 826): answers for our addresses, asks for those of others (Linux `net/ipv4/arp.c`).

use super::header::{BROADCAST, ETH_P_ARP, ETH_P_IP};
use super::neigh::Nud;
use crate::Kernel;
use crate::dev::net_device::{IfIndex, MacAddr};
use crate::ip::devconf::Conf;
use crate::ip::route::{Flow, IfAddr, RouteKind, in_prefix, scope};
use crate::skb::{MAX_HEADER, PacketType, SkBuff};
use crate::trace::Point;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use ringlab_counters::{DropReason, Mib};

/// Octets of a packet for Ethernet and IPv4.
const LEN: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// A reply within this time of the last update does not change a valid entry (Linux `LOCKTIME`, 1 s).
pub(super) const LOCKTIME: core::time::Duration = core::time::Duration::from_secs(1);

/// A packet for Ethernet and IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ArpHdr {
    op: u16,
    sha: MacAddr,
    sip: Ipv4Addr,
    tha: MacAddr,
    tip: Ipv4Addr,
}

impl ArpHdr {
    /// `None` unless it is for Ethernet and IPv4.
    fn parse(b: &[u8; LEN]) -> Option<Self> {
        if b[..6] != [0, 1, (ETH_P_IP >> 8) as u8, ETH_P_IP as u8, 6, 4] {
            return None;
        }
        let mac = |i: usize| MacAddr([b[i], b[i + 1], b[i + 2], b[i + 3], b[i + 4], b[i + 5]]);
        let ip = |i: usize| Ipv4Addr::new(b[i], b[i + 1], b[i + 2], b[i + 3]);
        Some(Self { op: u16::from_be_bytes([b[6], b[7]]), sha: mac(8), sip: ip(14), tha: mac(18), tip: ip(24) })
    }

    fn emit(&self) -> [u8; LEN] {
        let mut b = [0; LEN];
        b[..6].copy_from_slice(&[0, 1, (ETH_P_IP >> 8) as u8, ETH_P_IP as u8, 6, 4]);
        b[6..8].copy_from_slice(&self.op.to_be_bytes());
        b[8..14].copy_from_slice(&self.sha.0);
        b[14..18].copy_from_slice(&self.sip.octets());
        b[18..24].copy_from_slice(&self.tha.0);
        b[24..].copy_from_slice(&self.tip.octets());
        b
    }
}

impl Kernel {
    /// A received ARP packet (Linux `arp_rcv`, `arp_process`).
    pub(super) fn arp_rcv(&mut self, skb: Box<SkBuff>) {
        let mut b = [0; LEN];
        let loopback = self.devs.get(IfIndex(skb.dev)).is_none_or(|d| d.is_loopback());
        if loopback || skb.pkt_type == PacketType::OtherHost {
            return self.consume_skb(skb);
        }
        if skb.copy_bits(0, &mut b).is_err() {
            return self.kfree_skb(skb, DropReason::PktTooSmall);
        }
        let Some(arp) = ArpHdr::parse(&b) else { return self.kfree_skb(skb, DropReason::NotSpecified) };
        let (sip, tip) = (u64::from(arp.sip.to_bits()), u64::from(arp.tip.to_bits()));
        self.trace(Point::ArpRcv, skb.id, [u64::from(arp.op), sip, tip, 0]);
        match arp.op {
            REQUEST => self.inc(Mib::ArpInRequests),
            REPLY => self.inc(Mib::ArpInReplies),
            _ => return self.kfree_skb(skb, DropReason::NotSpecified),
        }
        if arp.tip.is_multicast() || arp.tip.is_loopback() {
            return self.kfree_skb(skb, DropReason::NotSpecified);
        }
        // What means nothing to us is no loss.
        let to_us = skb.pkt_type == PacketType::Host;
        self.arp_process(IfIndex(skb.dev), &arp, to_us);
        self.consume_skb(skb);
    }

    fn arp_process(&mut self, dev: IfIndex, arp: &ArpHdr, to_us: bool) {
        let ours = self.is_local_addr(arp.tip);
        if arp.sip.is_unspecified() {
            // Duplicate address detection (RFC 5227): answered, nothing is learnt.
            if arp.op == REQUEST && ours && !self.arp_ignore(dev, arp) {
                self.arp_send(dev, REPLY, arp.sha, arp.sha, arp.tip, arp.sip);
            }
            return;
        }
        let gratuitous = arp.sip == arp.tip;
        let nobody = matches!(self.inet_addr_type(arp.sip), RouteKind::Broadcast | RouteKind::Multicast);
        let spoofed = self.is_local_addr(arp.sip) && self.in_dev_conf(dev, Conf::AcceptLocal) == 0;
        if nobody || spoofed || gratuitous && self.in_dev_conf(dev, Conf::DropGratuitousArp) != 0 {
            return;
        }
        if arp.op == REQUEST && ours {
            // Who asks for us will talk to us: this is the one packet that makes an entry.
            let known = !self.arp_ignore(dev, arp) && !self.arp_filter(dev, arp) && self.neigh_event_ns(dev, arp.sip, arp.sha);
            if known {
                self.arp_send(dev, REPLY, arp.sha, arp.sha, arp.tip, arp.sip);
            }
            return;
        }
        // A reply, or gratuitous (sender and target the same): updates an entry, and makes none unless told to.
        let unicast = || self.inet_addr_type(arp.sip) == RouteKind::Unicast;
        let gratuitous = gratuitous && (arp.op == REQUEST || arp.tha == arp.sha) && unicast();
        let accept = (gratuitous || arp.op == REPLY && unicast()) && self.arp_accept(dev, arp.sip);
        let known = self.neigh.lookup(dev.0, arp.sip).or_else(|| accept.then(|| self.neigh_create(dev.0, arp.sip)).flatten());
        let Some(n) = known else { return };
        let locked = self.neigh.get(n).is_some_and(|e| self.now.since(e.updated) < LOCKTIME);
        let state = if arp.op == REPLY && to_us { Nud::Reachable } else { Nud::Stale };
        self.neigh_update(n, Some(arp.sha), state, !locked || gratuitous);
    }

    /// A question for one of our addresses that this interface leaves unanswered (Linux `arp_ignore`).
    fn arp_ignore(&self, dev: IfIndex, arp: &ArpHdr) -> bool {
        let here = |a: &IfAddr| a.dev == dev.0 && a.addr == arp.tip;
        let near = |a: &IfAddr| in_prefix(arp.sip, a.addr, a.len);
        let mut addrs = self.fib.addrs();
        match self.in_dev_conf(dev, Conf::ArpIgnore) {
            // Of another interface.
            1 => !addrs.any(here),
            // Of another interface, or asked for from elsewhere.
            2 => !addrs.any(|a| here(a) && near(a)),
            // Of no use outside this host.
            3 => !addrs.any(|a| a.addr == arp.tip && a.scope <= scope::LINK),
            8 => true,
            _ => false,
        }
    }

    /// The way back leads through another interface: that one answers (Linux `arp_filter`).
    fn arp_filter(&mut self, dev: IfIndex, arp: &ArpHdr) -> bool {
        if self.in_dev_conf(dev, Conf::ArpFilter) == 0 {
            return false;
        }
        match self.ip_route_output_key(Flow { daddr: arp.sip, saddr: arp.tip, oif: 0 }) {
            Ok(route) if route.dev == dev.0 => false,
            Ok(_) => {
                self.inc(Mib::ArpFilter);
                true
            }
            Err(_) => true,
        }
    }

    /// What nobody asked for makes an entry (Linux `arp_accept`).
    fn arp_accept(&self, dev: IfIndex, sip: Ipv4Addr) -> bool {
        match self.in_dev_conf(dev, Conf::ArpAccept) {
            1 => true,
            2 => self.fib.addrs().any(|a| a.dev == dev.0 && in_prefix(sip, a.addr, a.len)),
            _ => false,
        }
    }

    /// Tells the link of the interface's addresses, where `arp_notify` asks for it (Linux `inetdev_send_gratuitous_arp`).
    pub(crate) fn arp_notify(&mut self, dev: IfIndex) {
        let told = self.devs.get(dev).is_some_and(|d| d.up && !d.is_loopback());
        if !told || self.in_dev_conf(dev, Conf::ArpNotify) == 0 {
            return;
        }
        let addrs: Vec<Ipv4Addr> = self.fib.addrs().filter(|a| a.dev == dev.0).map(|a| a.addr).collect();
        for addr in addrs {
            self.arp_send(dev, REQUEST, BROADCAST, MacAddr::default(), addr, addr);
        }
    }

    /// Asks for a neighbour's address (Linux `arp_solicit`): of everybody, or of the one we believe it is.
    pub(super) fn arp_solicit(&mut self, dev: IfIndex, target: Ipv4Addr, unicast: Option<MacAddr>, hint: Option<Ipv4Addr>) {
        let Some(device) = self.devs.get(dev) else { return };
        // Source: that of the waiting packet if it is ours and `arp_announce` lets it, else an address of the target's subnet.
        let on_link = |a: &(Ipv4Addr, u8)| in_prefix(target, a.0, a.1);
        let own = device.addrs.iter().find(|a| on_link(a)).or(device.addrs.first()).map(|a| a.0);
        let of_its_subnet = |h: Ipv4Addr| device.addrs.iter().any(|a| on_link(a) && in_prefix(h, a.0, a.1));
        let may = |&h: &Ipv4Addr| match self.in_dev_conf(dev, Conf::ArpAnnounce) {
            1 => self.is_local_addr(h) && of_its_subnet(h),
            2 => false,
            _ => self.is_local_addr(h),
        };
        let source = hint.filter(may).or(own);
        let Some(source) = source else { return };
        self.arp_send(dev, REQUEST, unicast.unwrap_or(BROADCAST), MacAddr::default(), source, target);
    }

    /// Sends an ARP packet (Linux `arp_send`): to `dst`, naming `tha` as the target's address.
    fn arp_send(&mut self, dev: IfIndex, op: u16, dst: MacAddr, tha: MacAddr, sip: Ipv4Addr, tip: Ipv4Addr) {
        let Some(sha) = self.devs.get(dev).map(|d| d.mac) else { return };
        let mut skb = self.alloc_skb();
        if !skb.alloc_head(&self.config.pool, MAX_HEADER, LEN as u32) {
            return self.kfree_skb(skb, DropReason::NoMem);
        }
        skb.put_bytes(&ArpHdr { op, sha, sip, tha, tip }.emit());
        skb.protocol = ETH_P_ARP;
        skb.priority = 7;
        self.inc(if op == REQUEST { Mib::ArpOutRequests } else { Mib::ArpOutReplies });
        self.trace(Point::ArpSend, skb.id, [u64::from(op), u64::from(tip.to_bits()), 0, 0]);
        // A drop is counted where it happens; the asker asks again.
        let _ = self.dev_hard_header_xmit(skb, dev, dst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn emitted_packet_parses_to_itself(op: u16, sha: [u8; 6], tha: [u8; 6], sip: u32, tip: u32) {
            let arp = ArpHdr { op, sha: MacAddr(sha), sip: sip.into(), tha: MacAddr(tha), tip: tip.into() };
            let b = arp.emit();
            prop_assert_eq!(ArpHdr::parse(&b), Some(arp));
            let theirs = etherparse::ArpPacket::from_slice(&b).expect("etherparse reads it");
            prop_assert_eq!(theirs.operation.0, op);
            prop_assert_eq!(theirs.sender_hw_addr(), &sha);
            prop_assert_eq!(theirs.target_protocol_addr(), &tip.to_be_bytes());
        }

        #[test]
        fn other_hardware_or_protocol_is_refused(mut b: [u8; LEN]) {
            b[0] |= 0x80;
            prop_assert_eq!(ArpHdr::parse(&b), None);
        }
    }
}
