//! ICMP (RFC 792; Linux `net/ipv4/icmp.c`): echo, errors in both directions, rate limits.

use super::header::{self, OFFSET};
use super::route::{Flow, RouteKind};
use super::{IcmpError, IpOut};
use crate::Kernel;
use crate::hash::KeyedState;
use crate::skb::{Checksum, MAX_HEADER, MAX_SKB_FRAGS, PacketType, SkBuff};
use crate::trace::Point;
use alloc::boxed::Box;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;
use hashbrown::HashMap;
use rand_core::Rng;
use ringlab_counters::{DropReason, Mib};
use ringlab_ring::memory::{checksum_add, fold};

/// Echo reply.
pub(crate) const ECHOREPLY: u8 = 0;
/// Destination unreachable.
pub(crate) const DEST_UNREACH: u8 = 3;
/// Echo request.
pub(crate) const ECHO: u8 = 8;
/// Time exceeded.
pub(crate) const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub(crate) const PARAM_PROB: u8 = 12;
const SOURCE_QUENCH: u8 = 4;
const REDIRECT: u8 = 5;
const TIMESTAMP: u8 = 13;
const TIMESTAMPREPLY: u8 = 14;

/// [`DEST_UNREACH`]: network.
pub(crate) const NET_UNREACH: u8 = 0;
/// [`DEST_UNREACH`]: host.
pub(crate) const HOST_UNREACH: u8 = 1;
/// [`DEST_UNREACH`]: protocol.
pub(crate) const PROT_UNREACH: u8 = 2;
/// [`DEST_UNREACH`]: fragmentation needed and forbidden.
pub(crate) const FRAG_NEEDED: u8 = 4;
/// [`TIME_EXCEEDED`]: hops.
pub(crate) const EXC_TTL: u8 = 0;
/// [`TIME_EXCEEDED`]: reassembly.
pub(crate) const EXC_FRAGTIME: u8 = 1;

/// Octets of the header.
const LEN: u32 = 8;
/// Octets of an error message in all, at most (RFC 1812 §4.3.2.3).
const MAX_ERROR: u32 = 576;
/// MTUs to try when a router does not name one (RFC 1191 §7.1).
const PLATEAUS: [u32; 10] = [32000, 17914, 8166, 4352, 2002, 1492, 576, 296, 216, 128];
/// Errors saved up for a destination (Linux `XRLIM_BURST_FACTOR`).
const PEER_BURST: u64 = 6;
/// Destinations remembered.
const MAX_PEERS: usize = 1024;

/// ICMP rate limits, and the identification counters that need the same per-destination hashing.
#[derive(Debug)]
pub struct IcmpState {
    /// Milliseconds of credit of each destination, and when it was last looked at.
    peers: HashMap<u32, (u64, u64), KeyedState>,
    /// Messages that may be sent at once, and when that was last looked at.
    credit: u64,
    stamp: u64,
    pub(super) idents: Idents,
}

/// Hashed identification counters (Linux `ip_idents`).
#[derive(Debug, Default)]
pub(super) struct Idents {
    key: u64,
    /// Counter and millisecond of the last use.
    buckets: Vec<(u32, u64)>,
}

impl Idents {
    const BUCKETS: usize = 2048;

    pub(super) fn next(&mut self, of: (u32, u32, u8), now: u64, random: u32, segs: u16) -> u16 {
        if self.buckets.is_empty() {
            self.buckets.resize(Self::BUCKETS, (0, 0));
        }
        let mut hash = self.key;
        for word in [u64::from(of.0) << 32 | u64::from(of.1), u64::from(of.2)] {
            hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        }
        let bucket = &mut self.buckets[(hash >> 32) as usize % Self::BUCKETS];
        let elapsed = (now - bucket.1).min(u64::from(u32::MAX));
        let step = if elapsed == 0 { 0 } else { ((u64::from(random) * elapsed) >> 32) as u32 };
        let id = bucket.0.wrapping_add(step).wrapping_add(hash as u32 & 0xffff);
        *bucket = (bucket.0.wrapping_add(step).wrapping_add(u32::from(segs)), now);
        id as u16
    }
}

impl IcmpState {
    /// Full credit; secrets from the host's seed.
    pub(crate) fn new(hash: KeyedState, rng: &mut rand_pcg::Pcg32) -> Self {
        let idents = Idents { key: rng.next_u64(), ..Idents::default() };
        Self { peers: HashMap::with_hasher(hash), credit: 50, stamp: 0, idents }
    }
}

fn is_error(kind: u8) -> bool {
    matches!(kind, DEST_UNREACH | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAM_PROB)
}

impl Kernel {
    /// A received message; `skb` stands at the ICMP header (Linux `icmp_rcv`).
    pub(crate) fn icmp_rcv(&mut self, skb: Box<SkBuff>) {
        self.inc(Mib::IcmpInMsgs);
        let mut b = [0; LEN as usize];
        if skb.copy_bits(0, &mut b).is_err() {
            return self.icmp_error_in(skb, DropReason::IcmpBadHeader);
        }
        if skb.csum == Checksum::None && skb.checksum(0, skb.len(), 0) != 0xffff {
            self.inc(Mib::IcmpInCsumErrors);
            return self.icmp_error_in(skb, DropReason::IcmpCsum);
        }
        let (kind, code) = (b[0], b[1]);
        self.trace(Point::IcmpRcv, skb.id, [u64::from(kind), u64::from(code), 0, 0]);
        // RFC 1122 §3.2.2.6: echo to a group is answered only if asked for; Linux does not.
        let to_all = self.inet_addr_type(Ipv4Addr::from_bits(skb.ip.daddr)) != RouteKind::Local;
        if to_all && !is_error(kind) && kind != ECHOREPLY {
            return self.kfree_skb(skb, DropReason::IpInvalidDest);
        }
        match kind {
            ECHO => self.icmp_echo(skb, &b),
            TIMESTAMP => self.icmp_timestamp(skb, &b),
            ECHOREPLY => {
                self.inc(Mib::IcmpInEchoReps);
                self.ping_rcv(&skb);
                self.consume_skb(skb);
            }
            _ if is_error(kind) => self.icmp_unreach(skb, &b),
            // A reply to something nobody here asks, or a type that nobody knows (RFC 1122 §3.2.2).
            TIMESTAMPREPLY => self.consume_skb(skb),
            _ => self.icmp_error_in(skb, DropReason::UnhandledProto),
        }
    }

    fn icmp_error_in(&mut self, skb: Box<SkBuff>, reason: DropReason) {
        self.inc(Mib::IcmpInErrors);
        self.kfree_skb(skb, reason);
    }

    /// Answers an echo request: a new header before the same data (Linux `icmp_echo`).
    fn icmp_echo(&mut self, mut skb: Box<SkBuff>, b: &[u8; 8]) {
        self.inc(Mib::IcmpInEchos);
        if self.sysctl.icmp_echo_ignore_all != 0 {
            return self.kfree_skb(skb, DropReason::NotSpecified);
        }
        if skb.frags().len() >= MAX_SKB_FRAGS && !self.skb_linearize(&mut skb) {
            return self.kfree_skb(skb, DropReason::NoMem);
        }
        let mut reply = self.alloc_skb();
        if !reply.alloc_head(&self.config.pool, MAX_HEADER, LEN) {
            self.kfree_skb(reply, DropReason::NoMem);
            return self.kfree_skb(skb, DropReason::NoMem);
        }
        let mut head = *b;
        head[0] = ECHOREPLY;
        head[2..4].fill(0);
        let sum = skb.checksum(LEN, skb.len() - LEN, checksum_add(&head, 0));
        head[2..4].copy_from_slice(&(!sum).to_be_bytes());
        reply.put_bytes(&head);
        skb.share_into(LEN, skb.len() - LEN, &mut reply);
        self.icmp_reply(reply, &skb, Mib::IcmpOutEchoReps);
        self.consume_skb(skb);
    }

    fn icmp_timestamp(&mut self, skb: Box<SkBuff>, b: &[u8; 8]) {
        let mut reply = self.alloc_skb();
        let mut data = [0; 20];
        if skb.copy_bits(8, &mut data[8..12]).is_err() {
            self.skbs.put(reply);
            return self.icmp_error_in(skb, DropReason::IcmpBadHeader);
        }
        if !reply.alloc_head(&self.config.pool, MAX_HEADER, 20) {
            self.kfree_skb(reply, DropReason::NoMem);
            return self.kfree_skb(skb, DropReason::NoMem);
        }
        data[..8].copy_from_slice(b);
        data[0] = TIMESTAMPREPLY;
        data[2..4].fill(0);
        let midnight = (self.now.millis() % 86_400_000) as u32;
        data[12..16].copy_from_slice(&midnight.to_be_bytes());
        data[16..20].copy_from_slice(&midnight.to_be_bytes());
        let sum = !fold(checksum_add(&data, 0));
        data[2..4].copy_from_slice(&sum.to_be_bytes());
        reply.put_bytes(&data);
        self.icmp_reply(reply, &skb, Mib::IcmpOutMsgs);
        self.consume_skb(skb);
    }

    /// Sends an answer back to where `to` came from (Linux `icmp_reply`): same type of service, no DF.
    fn icmp_reply(&mut self, reply: Box<SkBuff>, to: &SkBuff, counter: Mib) {
        let (saddr, daddr) = (Ipv4Addr::from_bits(to.ip.daddr), Ipv4Addr::from_bits(to.ip.saddr));
        let Ok(route) = self.ip_route_output(Flow { daddr, saddr, oif: 0 }) else {
            return self.kfree_skb(reply, DropReason::IpOutNoRoutes);
        };
        self.inc(Mib::IcmpOutMsgs);
        if counter != Mib::IcmpOutMsgs {
            self.inc(counter);
        }
        let out = IpOut { saddr, daddr, protocol: 1, tos: to.ip.tos, ttl: None, df: false, id: None };
        // A drop on the way out is counted there; the asker asks again.
        let _ = self.ip_send_skb(reply, out, &route);
    }

    /// An error about a packet of ours: told to its protocol (Linux `icmp_unreach`).
    fn icmp_unreach(&mut self, skb: Box<SkBuff>, b: &[u8; 8]) {
        let mut q = [0; header::MAX_LEN + 8];
        let known = q.len().min((skb.len() - LEN) as usize);
        let quoted = skb.copy_bits(LEN, &mut q[..known]).ok().and_then(|()| Quoted::parse(&q[..known]));
        let Some(quoted) = quoted else { return self.icmp_error_in(skb, DropReason::IcmpBadHeader) };
        let (kind, code) = (b[0], b[1]);
        let mut info = 0;
        match kind {
            DEST_UNREACH => {
                self.inc(Mib::IcmpInDestUnreachs);
                if code > 15 {
                    return self.icmp_error_in(skb, DropReason::IcmpBadHeader);
                }
                if code == FRAG_NEEDED {
                    info = u32::from(u16::from_be_bytes([b[6], b[7]]));
                }
            }
            TIME_EXCEEDED => self.inc(Mib::IcmpInTimeExcds),
            PARAM_PROB => info = u32::from(b[4]),
            // RFC 6633: source quench is ignored. Deviation: redirects are too (Linux follows them on a host).
            _ => return self.kfree_skb(skb, DropReason::NotSpecified),
        }
        if !self.is_local_addr(quoted.saddr) {
            return self.kfree_skb(skb, DropReason::IcmpParam);
        }
        if kind == DEST_UNREACH && code == FRAG_NEEDED {
            if info == 0 {
                let total = u32::from(quoted.total);
                info = PLATEAUS.into_iter().find(|&p| p < total).unwrap_or(68);
            }
            self.ip_update_pmtu(quoted.daddr, info);
        }
        let error = IcmpError {
            kind,
            code,
            info,
            from: Ipv4Addr::from_bits(skb.ip.saddr),
            saddr: quoted.saddr,
            daddr: quoted.daddr,
            protocol: quoted.protocol,
            payload: quoted.payload,
            quote: quote_of(&skb, &quoted),
            report: (skb.ip.ttl, skb.ip.tos, skb.tstamp),
        };
        self.raw_err(&error);
        match quoted.protocol {
            6 => self.tcp_v4_err(&error),
            17 => self.udp_err(&error),
            1 => self.ping_err(&error),
            _ => {}
        }
        self.consume_skb(skb);
    }

    /// Answers a received packet with an ICMP error, rate limited (Linux `icmp_send`). `skb` may stand at any layer:
    /// its `network_back` finds the IP header.
    pub(crate) fn icmp_send(&mut self, skb: &SkBuff, kind: u8, code: u8, info: u32) {
        // Never about what was not for one host (RFC 1122 §3.2.2).
        if skb.pkt_type != PacketType::Host || skb.ip.non_unicast {
            return;
        }
        let mut quoted = self.skb_clone(skb);
        if quoted.unpull(skb.network_back) {
            self.icmp_send_about(&quoted, kind, code, info);
        }
        self.skbs.put(quoted);
    }

    fn icmp_send_about(&mut self, quoted: &SkBuff, kind: u8, code: u8, info: u32) {
        let mut b = [0; header::LEN];
        if quoted.copy_bits(0, &mut b).is_err() {
            return;
        }
        let ip_len = u32::from(b[0] & 15) * 4;
        if u16::from_be_bytes([b[6], b[7]]) & OFFSET != 0 {
            return;
        }
        if b[9] == 1 {
            let mut inner = [0];
            if quoted.copy_bits(ip_len, &mut inner).is_err() || is_error(inner[0]) || inner[0] > 18 {
                return;
            }
        }
        let (from, to) = (Ipv4Addr::new(b[12], b[13], b[14], b[15]), Ipv4Addr::new(b[16], b[17], b[18], b[19]));
        let saddr = if self.is_local_addr(to) { to } else { Ipv4Addr::UNSPECIFIED };
        let Ok(route) = self.ip_route_output(Flow { daddr: from, saddr, oif: 0 }) else { return };
        if matches!(route.kind, RouteKind::Broadcast | RouteKind::Multicast) || !self.icmp_allow(&route, from, kind, code) {
            return;
        }
        let mut skb = self.alloc_skb();
        let most = route.mtu.min(MAX_ERROR) - header::LEN as u32 - LEN;
        let quote = quoted.len().min(most);
        if !skb.alloc_head(&self.config.pool, MAX_HEADER, LEN + quote) {
            return self.kfree_skb(skb, DropReason::NoMem);
        }
        let mut data = [0; MAX_ERROR as usize];
        let data = &mut data[..(LEN + quote) as usize];
        data[..2].copy_from_slice(&[kind, code]);
        data[4..8].copy_from_slice(&info.to_be_bytes());
        if quoted.copy_bits(0, &mut data[LEN as usize..]).is_err() {
            return self.skbs.put(skb);
        }
        let sum = !fold(checksum_add(data, 0));
        data[2..4].copy_from_slice(&sum.to_be_bytes());
        skb.put_bytes(data);
        self.count_copy(quote);
        self.inc(Mib::IcmpOutMsgs);
        match kind {
            DEST_UNREACH => self.inc(Mib::IcmpOutDestUnreachs),
            TIME_EXCEEDED => self.inc(Mib::IcmpOutTimeExcds),
            _ => {}
        }
        // Precedence "internetwork control" (RFC 1812 §4.3.2.5).
        let tos = b[1] & 0x1e | 0xc0;
        let out = IpOut { saddr: route.saddr, daddr: from, protocol: 1, tos, ttl: None, df: false, id: None };
        if self.ip_send_skb(skb, out, &route).is_err() {
            self.inc(Mib::IcmpOutErrors);
        }
    }

    /// The rate limits: a bucket for all, one for each destination (Linux `icmpv4_global_allow`, `icmpv4_xrlim_allow`).
    fn icmp_allow(&mut self, route: &super::route::Route, to: Ipv4Addr, kind: u8, code: u8) -> bool {
        let masked = kind < 32 && self.sysctl.icmp_ratemask >> kind & 1 != 0;
        // Path MTU discovery must not suffer, and what stays on this host harms nobody.
        if !masked || kind == DEST_UNREACH && code == FRAG_NEEDED || route.kind == RouteKind::Local {
            return true;
        }
        let now = self.now.millis();
        let (rate, burst) = (self.sysctl.icmp_msgs_per_sec as u64, self.sysctl.icmp_msgs_burst as u64);
        let earned = (now - self.icmp.stamp).min(1000) * rate / 1000;
        if earned > 0 {
            self.icmp.credit = (self.icmp.credit + earned).min(burst);
            self.icmp.stamp = now;
        }
        if self.icmp.credit == 0 {
            self.inc(Mib::IcmpOutRateLimitGlobal);
            return false;
        }
        let limit = self.sysctl.icmp_ratelimit as u64;
        if limit > 0 && !self.icmp_peer_allow(to, now, limit) {
            self.inc(Mib::IcmpOutRateLimitHost);
            return false;
        }
        self.icmp.credit -= 1;
        true
    }

    /// One message each `limit` milliseconds, six saved up (Linux `inet_peer_xrlim_allow`).
    fn icmp_peer_allow(&mut self, to: Ipv4Addr, now: u64, limit: u64) -> bool {
        let full = PEER_BURST * limit;
        let peers = &mut self.icmp.peers;
        if peers.len() >= MAX_PEERS {
            // Who would have full credit again need not be remembered.
            peers.retain(|_, p| now - p.1 < full);
            if peers.len() >= MAX_PEERS {
                return false;
            }
        }
        let peer = peers.entry(to.to_bits()).or_insert((full, now));
        peer.0 = (peer.0 + (now - peer.1)).min(full);
        peer.1 = now;
        let allowed = peer.0 >= limit;
        if allowed {
            peer.0 -= limit;
        }
        allowed
    }
}

/// The packet that an error is about.
struct Quoted {
    saddr: Ipv4Addr,
    daddr: Ipv4Addr,
    protocol: u8,
    total: u16,
    hdr_len: u8,
    payload: [u8; 8],
}

/// The quoted payload, as much as is there and is kept; `skb` stands at the ICMP header.
fn quote_of(skb: &SkBuff, quoted: &Quoted) -> ArrayVec<u8, { super::MAX_QUOTE }> {
    let start = LEN + u32::from(quoted.hdr_len);
    let whole = u32::from(quoted.total).saturating_sub(quoted.hdr_len.into());
    let len = skb.len().saturating_sub(start).min(whole).min(super::MAX_QUOTE as u32);
    let mut b = [0; super::MAX_QUOTE];
    match skb.copy_bits(start, &mut b[..len as usize]) {
        Ok(()) => b[..len as usize].iter().copied().collect(),
        Err(_) => ArrayVec::new(),
    }
}

impl Quoted {
    /// Reads what is there: header and eight octets (RFC 792). Routers change headers: no checksum is asked of it.
    fn parse(b: &[u8]) -> Option<Self> {
        let len = usize::from(b.first()? & 15) * 4;
        if b[0] >> 4 != 4 || len < header::LEN || b.len() < len + 8 {
            return None;
        }
        let ip = |i: usize| Ipv4Addr::new(b[i], b[i + 1], b[i + 2], b[i + 3]);
        let payload = b[len..len + 8].try_into().ok()?;
        Some(Self { saddr: ip(12), daddr: ip(16), protocol: b[9], total: u16::from_be_bytes([b[2], b[3]]), hdr_len: len as u8, payload })
    }
}
