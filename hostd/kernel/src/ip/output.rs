//! IPv4 output (Linux `net/ipv4/ip_output.c`).

use super::header::{self, DF, IpHdr, MF, OFFSET};
use super::icmp;
use super::route::{Flow, Route, RouteKind};
use super::{Hook, IpOut};
use crate::Kernel;
use crate::errno::Errno;
use crate::ether::header as ether;
use crate::skb::{Checksum, MAX_HEADER, PacketType, SkBuff};
use crate::sock::Sock;
use crate::trace::Point;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;
use ringlab_counters::{DropReason, Mib};
use ringlab_ring::vnet::VNET_HDR_LEN;

/// Octets that go in front of the transport header here and below.
const ROOM: u32 = (header::LEN + ether::LEN + VNET_HDR_LEN) as u32;

/// Priority of a type of service (Linux `ip_tos2prio`).
const TOS2PRIO: [u8; 16] = [0, 1, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4];

impl Kernel {
    /// Sends a transport segment of a connected socket: route from the socket's cache, IP header with
    /// the socket's `ip_id`, tos and ttl, DF as path MTU discovery says, then neighbour and device
    /// (Linux `ip_queue_xmit`). Needs headroom for IP, Ethernet and virtio-net headers, or gets a head of its own.
    ///
    /// # Errors
    /// Those of the route; a drop in the qdisc is `ENOBUFS`.
    pub(crate) fn ip_queue_xmit(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) -> Result<(), Errno> {
        let route = match self.ip_sk_route(sk) {
            Ok(route) => route,
            Err(e) => {
                self.kfree_skb(skb, DropReason::IpOutNoRoutes);
                return Err(e);
            }
        };
        let (saddr, daddr) = (if sk.saddr.is_unspecified() { route.saddr } else { sk.saddr }, sk.daddr);
        let bits = |a: Ipv4Addr| u64::from(a.to_bits());
        self.trace(Point::IpQueueXmit, skb.id, [bits(saddr), bits(daddr), u64::from(skb.len()), 0]);
        let id = sk.ip_id;
        sk.ip_id = id.wrapping_add(skb.gso.map_or(1, |g| g.segs));
        let ttl = sk.inet.ttl.unwrap_or(self.sysctl.ip_default_ttl as u8);
        // `IP_PMTUDISC_WANT` and `IP_PMTUDISC_DO`.
        let frag_off = if matches!(sk.inet.pmtudisc, 1 | 2) { DF } else { 0 };
        skb.priority = if sk.opt.priority != 0 { sk.opt.priority } else { tos_priority(sk.inet.tos) };
        if skb.hash == 0 {
            skb.hash = sk.txhash;
        }
        let hdr = IpHdr {
            tos: sk.inet.tos,
            total: 0,
            id,
            frag_off,
            ttl,
            protocol: 6,
            saddr: saddr.to_bits(),
            daddr: daddr.to_bits(),
            options: ArrayVec::new(),
        };
        self.ip_local_out(skb, hdr, &route)
    }

    /// The route of a connected socket (Linux `__sk_dst_check`, `ip_route_output_ports`).
    ///
    /// # Errors
    /// Those of the route.
    pub(crate) fn ip_sk_route(&mut self, sk: &mut Sock) -> Result<Route, Errno> {
        let generation = self.fib_generation();
        match sk.dst {
            Some((of, route)) if of == generation => Ok(route),
            _ => {
                let flow = Flow { daddr: sk.daddr, saddr: sk.saddr, oif: sk.bound_dev_if };
                let route = self.ip_route_output(flow)?;
                sk.dst = Some((generation, route));
                Ok(route)
            }
        }
    }

    /// Sends a transport datagram or segment outside a connection: adds the header, fragments if needed
    /// (`EMSGSIZE` with DF).
    ///
    /// # Errors
    /// `EMSGSIZE`, `ENOBUFS`.
    pub(crate) fn ip_send_skb(&mut self, mut skb: Box<SkBuff>, out: IpOut, route: &Route) -> Result<(), Errno> {
        let total = skb.len() + header::LEN as u32;
        if total > 65535 || out.df && total > route.mtu && skb.gso.is_none() {
            self.kfree_skb(skb, DropReason::FragTooBig);
            return Err(Errno::EMSGSIZE);
        }
        let multicast = out.daddr.is_multicast();
        let ttl = out.ttl.unwrap_or(if multicast { 1 } else { self.sysctl.ip_default_ttl as u8 });
        let segs = skb.gso.map_or(1, |g| g.segs);
        let id = match out.id {
            Some(id) => id,
            None if out.df => 0,
            None => self.ip_select_ident(out.saddr, out.daddr, out.protocol, segs),
        };
        if skb.priority == 0 {
            skb.priority = tos_priority(out.tos);
        }
        let hdr = IpHdr {
            tos: out.tos,
            total: 0,
            id,
            frag_off: if out.df { DF } else { 0 },
            ttl,
            protocol: out.protocol,
            saddr: out.saddr.to_bits(),
            daddr: out.daddr.to_bits(),
            options: ArrayVec::new(),
        };
        self.ip_local_out(skb, hdr, route)
    }

    /// Pushes the header and sends (Linux `ip_local_out`).
    fn ip_local_out(&mut self, mut skb: Box<SkBuff>, mut hdr: IpHdr, route: &Route) -> Result<(), Errno> {
        let total = skb.len() + header::LEN as u32;
        if total > 65535 {
            self.kfree_skb(skb, DropReason::FragTooBig);
            return Err(Errno::EMSGSIZE);
        }
        if !self.skb_cow_head(&mut skb, ROOM) {
            self.inc(Mib::IpOutDiscards);
            self.kfree_skb(skb, DropReason::NoMem);
            return Err(Errno::ENOBUFS);
        }
        hdr.total = total as u16;
        skb.push(&hdr.emit());
        skb.shift_csum(header::LEN as i32);
        self.ip_send_built(skb, &hdr, route)
    }

    /// Sends a packet whose header the caller made (`IP_HDRINCL`); it stands at it.
    ///
    /// # Errors
    /// `EINVAL` for a header that is none, `EMSGSIZE`, `ENOBUFS`.
    pub(crate) fn ip_send_hdrincl(&mut self, mut skb: Box<SkBuff>, route: &Route) -> Result<(), Errno> {
        let mut b = [0; header::MAX_LEN];
        let known = b.len().min(skb.len() as usize);
        // Linux fills in the length, the checksum and, if they are zero, source and identification (raw(7)).
        let len = if skb.copy_bits(0, &mut b[..known]).is_ok() { usize::from(b[0] & 15) * 4 } else { 0 };
        if known < header::LEN || len < header::LEN || len > known || skb.len() > 65535 {
            self.kfree_skb(skb, DropReason::IpInHdr);
            return Err(Errno::EINVAL);
        }
        let be32 = |i: usize| u32::from_be_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let (mut saddr, daddr) = (be32(12), be32(16));
        if saddr == 0 {
            saddr = route.saddr.to_bits();
        }
        let mut id = u16::from_be_bytes([b[4], b[5]]);
        if id == 0 {
            id = self.ip_select_ident(saddr.into(), daddr.into(), b[9], 1);
        }
        let hdr = IpHdr {
            tos: b[1],
            total: skb.len() as u16,
            id,
            frag_off: u16::from_be_bytes([b[6], b[7]]),
            ttl: b[8],
            protocol: b[9],
            saddr,
            daddr,
            options: b[header::LEN..len].iter().copied().collect(),
        };
        let stored = skb.store_bits(0, &hdr.emit());
        debug_assert!(stored.is_ok(), "as long as what was read");
        self.ip_send_built(skb, &hdr, route)
    }

    fn ip_send_built(&mut self, mut skb: Box<SkBuff>, hdr: &IpHdr, route: &Route) -> Result<(), Errno> {
        skb.ip = hdr.control(matches!(route.kind, RouteKind::Broadcast | RouteKind::Multicast));
        skb.pkt_type = PacketType::Host;
        skb.network_back = 0;
        self.inc(Mib::IpOutRequests);
        self.nf_hook(Hook::LocalOut, &skb);
        self.ip_output(skb, route)
    }

    /// Sends a packet with its header on its way (Linux `ip_output`, `ip_mc_output`, `ip_finish_output`).
    ///
    /// # Errors
    /// `EMSGSIZE`, `ENOBUFS`.
    pub(super) fn ip_output(&mut self, skb: Box<SkBuff>, route: &Route) -> Result<(), Errno> {
        if route.kind == RouteKind::Broadcast || route.kind == RouteKind::Multicast {
            let daddr = Ipv4Addr::from_bits(skb.ip.daddr);
            if route.kind == RouteKind::Broadcast || !skb.mc_loop_off && self.ip_check_mc(daddr, route.dev) {
                self.ip_mc_loopback(&skb, route);
            }
            if route.kind == RouteKind::Multicast && skb.ip.ttl == 0 {
                self.consume_skb(skb);
                return Ok(());
            }
        }
        self.nf_hook(Hook::PostRouting, &skb);
        if !self.ip_exceeds_mtu(&skb, route.mtu) {
            return self.neigh_output(skb, route);
        }
        let Some(gso) = skb.gso else { return self.ip_fragment(skb, route) };
        // Segments that do not fit into the link: cut first, then fragment each (Linux `ip_finish_output_gso`).
        let mut segs = VecDeque::new();
        if let Err(skb) = self.skb_gso_segment(skb, 0, gso, &mut segs) {
            self.kfree_skb(skb, DropReason::NoMem);
            return Err(Errno::ENOBUFS);
        }
        segs.into_iter().map(|seg| self.ip_fragment(seg, route)).fold(Ok(()), Result::and)
    }

    /// Members on this host, and all of it for a broadcast, receive what is sent (Linux `dev_loopback_xmit`).
    fn ip_mc_loopback(&mut self, skb: &SkBuff, route: &Route) {
        let mut copy = self.skb_clone(skb);
        copy.dev = route.dev;
        copy.protocol = ether::ETH_P_IP;
        copy.pkt_type = PacketType::Loopback;
        copy.csum = Checksum::Unnecessary;
        self.netif_rx(copy);
    }

    /// A packet longer than the link takes: an error for who forbade to cut it, else pieces (Linux `ip_fragment`).
    fn ip_fragment(&mut self, skb: Box<SkBuff>, route: &Route) -> Result<(), Errno> {
        if skb.len() <= route.mtu {
            return self.neigh_output(skb, route);
        }
        if skb.ip.df {
            self.inc(Mib::IpFragFails);
            self.icmp_send(&skb, icmp::DEST_UNREACH, icmp::FRAG_NEEDED, route.mtu);
            self.kfree_skb(skb, DropReason::FragTooBig);
            return Err(Errno::EMSGSIZE);
        }
        self.ip_do_fragment(skb, route)
    }

    /// Cuts a packet into copied pieces (Linux `ip_do_fragment`).
    fn ip_do_fragment(&mut self, mut skb: Box<SkBuff>, route: &Route) -> Result<(), Errno> {
        crate::dev::skb_checksum_help(&mut skb);
        let mut b = [0; header::MAX_LEN];
        let known = b.len().min(skb.len() as usize);
        let parsed = skb.copy_bits(0, &mut b[..known]).ok().and_then(|()| IpHdr::parse(&b[..known], skb.len()).ok());
        let Some(mut hdr) = parsed else {
            self.kfree_skb(skb, DropReason::IpInHdr);
            return Err(Errno::EINVAL);
        };
        let (original, hdr_len) = (hdr.frag_off, hdr.len() as u32);
        let most = (route.mtu.saturating_sub(hdr_len) & !7).max(8);
        let payload = skb.len() - hdr_len;
        let mut at = 0;
        let mut result = Ok(());
        while at < payload {
            let len = most.min(payload - at);
            let last = at + len == payload;
            let more = if last { original & MF } else { MF };
            hdr.frag_off = ((original & OFFSET) + (at / 8) as u16) | more;
            hdr.total = (hdr_len + len) as u16;
            let mut piece = self.alloc_skb();
            if !piece.alloc_head(&self.config.pool, MAX_HEADER, hdr_len + len) {
                self.kfree_skb(piece, DropReason::NoMem);
                self.inc(Mib::IpFragFails);
                self.kfree_skb(skb, DropReason::NoMem);
                return Err(Errno::ENOBUFS);
            }
            piece.put_bytes(&hdr.emit());
            skb.for_each(hdr_len + at, len, |s| {
                s.copy_to(&piece.put(s.len() as u32));
            });
            self.count_copy(len);
            self.inc(Mib::IpFragCreates);
            skb.clone_metadata_to(&mut piece);
            piece.csum = Checksum::None;
            if last {
                piece.owner = core::mem::take(&mut skb.owner);
                piece.pressed = skb.pressed;
                piece.truesize = skb.truesize;
            }
            self.trace(Point::IpFragment, piece.id, [u64::from(hdr.frag_off & OFFSET) * 8, u64::from(len), 0, 0]);
            result = result.and(self.neigh_output(piece, route));
            keep_copied_options(&mut hdr.options);
            at += len;
        }
        self.inc(Mib::IpFragOKs);
        self.consume_skb(skb);
        result
    }

    /// Identification of a packet that may be cut: a counter for each hash of addresses and protocol, moved
    /// on by a random part of the time since its last use (Linux `__ip_select_ident`).
    fn ip_select_ident(&mut self, saddr: Ipv4Addr, daddr: Ipv4Addr, protocol: u8, segs: u16) -> u16 {
        let now = self.now.millis();
        let random = rand_core::Rng::next_u32(&mut self.rng);
        self.icmp.idents.next((saddr.to_bits(), daddr.to_bits(), protocol), now, random, segs)
    }
}

/// Later pieces carry only the options marked to be copied; the others become NOPs (Linux `ip_options_fragment`).
fn keep_copied_options(options: &mut [u8]) {
    let mut i = 0;
    while i < options.len() {
        let (kind, rest) = (options[i], options.len() - i);
        let len = match kind {
            0 => return,
            1 => 1,
            _ => options.get(i + 1).map_or(rest, |&l| usize::from(l)).clamp(1, rest),
        };
        if kind & 0x80 == 0 {
            options[i..i + len].fill(1);
        }
        i += len;
    }
}

/// Linux `rt_tos2priority`.
pub(super) fn tos_priority(tos: u8) -> u32 {
    TOS2PRIO[usize::from(tos >> 1 & 15)].into()
}
