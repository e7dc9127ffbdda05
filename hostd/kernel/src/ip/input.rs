//! IPv4 input (Linux `net/ipv4/ip_input.c`).

use super::Hook;
use super::header::{self, IpHdr, MAX_LEN, Options, options_compile};
use super::icmp;
use super::route::RouteKind;
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::ip::devconf::Conf;
use crate::skb::{PacketType, SkBuff};
use crate::trace::Point;
use alloc::boxed::Box;
use core::net::Ipv4Addr;
use ringlab_counters::{DropReason, Mib};

impl Kernel {
    /// A received packet; `skb` stands at the IP header (Linux `ip_rcv`).
    pub(crate) fn ip_rcv(&mut self, mut skb: Box<SkBuff>) {
        if skb.pkt_type == PacketType::OtherHost {
            return self.kfree_skb(skb, DropReason::OtherHost);
        }
        self.inc(Mib::IpInReceives);
        self.mib.add(Mib::IpExtInOctets, u64::from(skb.len()));
        let mut b = [0; MAX_LEN];
        let known = MAX_LEN.min(skb.len() as usize);
        let copied = skb.copy_bits(0, &mut b[..known]);
        debug_assert!(copied.is_ok(), "as many octets as the packet has");
        if known >= header::LEN && b[0] >> 4 == 4 && b[0] & 15 >= 5 {
            let ecn = [Mib::IpExtInNoEctPkts, Mib::IpExtInEct1Pkts, Mib::IpExtInEct0Pkts, Mib::IpExtInCePkts];
            self.mib.add(ecn[usize::from(b[1] & 3)], skb.gso.map_or(1, |g| u64::from(g.segs)));
        }
        let hdr = match IpHdr::parse(&b[..known], skb.len()) {
            Ok(hdr) => hdr,
            Err(reason) => return self.ip_inhdr_error(skb, reason),
        };
        let (saddr, daddr) = (u64::from(hdr.saddr), u64::from(hdr.daddr));
        self.trace(Point::IpRcv, skb.id, [u64::from(hdr.total), saddr, daddr, u64::from(hdr.protocol)]);
        skb.trim(u32::from(hdr.total));
        skb.network_back = 0;
        self.nf_hook(Hook::PreRouting, &skb);
        self.ip_rcv_finish(skb, &hdr);
    }

    fn ip_inhdr_error(&mut self, skb: Box<SkBuff>, reason: DropReason) {
        match reason {
            DropReason::PktTooSmall => self.inc(Mib::IpExtInTruncatedPkts),
            DropReason::IpCsum => {
                self.inc(Mib::IpExtInCsumErrors);
                self.inc(Mib::IpInHdrErrors);
            }
            _ => self.inc(Mib::IpInHdrErrors),
        }
        self.kfree_skb(skb, reason);
    }

    /// Routes a valid packet (Linux `ip_rcv_finish`).
    fn ip_rcv_finish(&mut self, mut skb: Box<SkBuff>, hdr: &IpHdr) {
        let (saddr, daddr) = (Ipv4Addr::from_bits(hdr.saddr), Ipv4Addr::from_bits(hdr.daddr));
        let kind = self.inet_addr_type(daddr);
        skb.ip = hdr.control(matches!(kind, RouteKind::Broadcast | RouteKind::Multicast));
        if let Err(reason) = self.ip_validate_source(&skb, saddr, daddr, kind) {
            return self.ip_martian(skb, reason);
        }
        if !hdr.options.is_empty()
            && let Err(reason) = self.ip_rcv_options(&skb, hdr)
        {
            return self.kfree_skb(skb, reason);
        }
        let octets = u64::from(skb.len());
        match kind {
            RouteKind::Multicast => {
                self.inc(Mib::IpExtInMcastPkts);
                self.mib.add(Mib::IpExtInMcastOctets, octets);
            }
            RouteKind::Broadcast => {
                self.inc(Mib::IpExtInBcastPkts);
                self.mib.add(Mib::IpExtInBcastOctets, octets);
            }
            _ => {}
        }
        let in_many = matches!(skb.pkt_type, PacketType::Broadcast | PacketType::Multicast);
        match kind {
            // RFC 1122 §3.3.6, where it is asked for.
            RouteKind::Local | RouteKind::Unicast if in_many && self.in_dev_conf(IfIndex(skb.dev), Conf::DropUnicastInL2Multicast) != 0 => {
                self.kfree_skb(skb, DropReason::UnicastInL2Multicast);
            }
            RouteKind::Local | RouteKind::Broadcast | RouteKind::Multicast => self.ip_local_deliver(skb, hdr),
            RouteKind::Unicast if self.in_dev_conf(IfIndex(skb.dev), Conf::Forwarding) == 0 => {
                self.inc(Mib::IpInAddrErrors);
                self.kfree_skb(skb, DropReason::IpInAddrErrors);
            }
            RouteKind::Unicast => self.ip_forward(skb, hdr),
        }
    }

    /// Drops a packet because of its addresses.
    pub(super) fn ip_martian(&mut self, skb: Box<SkBuff>, reason: DropReason) {
        if reason == DropReason::IpRpFilter {
            self.inc(Mib::IPReversePathFilter);
        }
        self.kfree_skb(skb, reason);
    }

    /// Options are read, not obeyed; who would choose the way is not let (Linux `ip_rcv_options`, `accept_source_route` 0).
    fn ip_rcv_options(&mut self, skb: &SkBuff, hdr: &IpHdr) -> Result<(), DropReason> {
        match options_compile(&hdr.options) {
            Options::Plain => Ok(()),
            Options::SourceRouted => Err(DropReason::NotSpecified),
            Options::Bad(at) => {
                self.inc(Mib::IpInHdrErrors);
                self.icmp_send(skb, icmp::PARAM_PROB, 0, u32::from(at) << 24);
                Err(DropReason::IpInHdr)
            }
        }
    }

    /// Addresses that cannot be on the wire: martians (Linux `ip_route_input_slow`, `ip_mc_validate_source`, `fib_validate_source`).
    fn ip_validate_source(&self, skb: &SkBuff, saddr: Ipv4Addr, daddr: Ipv4Addr, kind: RouteKind) -> Result<(), DropReason> {
        let dev = IfIndex(skb.dev);
        if self.devs.get(dev).is_some_and(|d| d.is_loopback()) || skb.pkt_type == PacketType::Loopback {
            // Sent by this host: the route was found then.
            return Ok(());
        }
        let group = kind == RouteKind::Multicast;
        if group && !self.ip_check_mc(daddr, skb.dev) {
            return Err(DropReason::NotSpecified);
        }
        if saddr.is_multicast() || saddr.is_broadcast() {
            return Err(DropReason::IpInvalidSource);
        }
        if saddr.is_unspecified() {
            // It may ask everybody (DHCP), and who is on the link (IGMP).
            let link_local = daddr.octets()[..3] == [224, 0, 0] || skb.ip.protocol == 2;
            let may = daddr.is_broadcast() || daddr.is_unspecified() || group && link_local;
            return if may { Ok(()) } else { Err(DropReason::IpInvalidSource) };
        }
        if daddr.is_unspecified() {
            return Err(DropReason::IpInvalidDest);
        }
        if saddr.is_loopback() || daddr.is_loopback() {
            return Err(DropReason::IpLocalNet);
        }
        // Where one that is for others came from is asked when there is a way for it.
        if kind == RouteKind::Unicast { Ok(()) } else { self.fib_validate_source(dev, saddr) }
    }

    /// Linux `fib_validate_source`: without `rp_filter` only the host's own addresses are refused.
    pub(super) fn fib_validate_source(&self, dev: IfIndex, saddr: Ipv4Addr) -> Result<(), DropReason> {
        match self.inet_addr_type(saddr) {
            RouteKind::Local if self.in_dev_conf(dev, Conf::AcceptLocal) != 0 => Ok(()),
            RouteKind::Local => Err(DropReason::IpLocalSource),
            _ if self.in_dev_conf(dev, Conf::RpFilter) == 0 => Ok(()),
            RouteKind::Broadcast => Err(DropReason::IpInvalidSource),
            _ if self.ip_reverse_path_ok(dev, saddr) => Ok(()),
            _ => Err(DropReason::IpRpFilter),
        }
    }

    /// The source is where answers to it would go (RFC 3704), if `rp_filter` says so; loosely (2), it is anywhere.
    fn ip_reverse_path_ok(&self, dev: IfIndex, saddr: Ipv4Addr) -> bool {
        let rp_filter = self.in_dev_conf(dev, Conf::RpFilter);
        rp_filter == 0 || self.ip_route_input(saddr).is_some_and(|r| rp_filter != 1 || r.dev == dev.0)
    }

    /// A packet for this host: reassembly, then its protocol (Linux `ip_local_deliver`).
    fn ip_local_deliver(&mut self, skb: Box<SkBuff>, hdr: &IpHdr) {
        let skb = if hdr.is_fragment() {
            let Some(skb) = self.ip_defrag(skb, hdr) else { return };
            skb
        } else {
            skb
        };
        self.nf_hook(Hook::LocalIn, &skb);
        self.ip_local_deliver_finish(skb);
    }

    /// Gives raw sockets their clones and the protocol its packet (Linux `ip_protocol_deliver_rcu`).
    fn ip_local_deliver_finish(&mut self, mut skb: Box<SkBuff>) {
        let protocol = skb.ip.protocol;
        self.trace(Point::IpLocalDeliver, skb.id, [u64::from(protocol), u64::from(skb.len()), 0, 0]);
        let raw = self.raw_v4_input(&skb);
        let hdr_len = u32::from(skb.ip.hdr_len);
        if skb.pull(hdr_len).is_err() {
            return self.kfree_skb(skb, DropReason::HdrTrunc);
        }
        skb.shift_csum(-(hdr_len as i32));
        match protocol {
            1 | 6 | 17 => self.inc(Mib::IpInDelivers),
            2 => {
                self.inc(Mib::IpInDelivers);
                return self.igmp_rcv(skb);
            }
            _ if raw => {
                self.inc(Mib::IpInDelivers);
                return self.consume_skb(skb);
            }
            _ => {
                self.inc(Mib::IpInUnknownProtos);
                self.icmp_send(&skb, icmp::DEST_UNREACH, icmp::PROT_UNREACH, 0);
                return self.kfree_skb(skb, DropReason::IpNoProto);
            }
        }
        match protocol {
            6 => self.tcp_v4_rcv(skb),
            17 => self.udp_rcv(skb),
            _ => self.icmp_rcv(skb),
        }
    }

    /// A netfilter hook point.
    pub(crate) fn nf_hook(&mut self, hook: Hook, skb: &SkBuff) {
        self.trace(Point::NfHook, skb.id, [hook as u64, 0, 0, 0]);
    }
}
