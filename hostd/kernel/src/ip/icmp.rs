//! ICMP (RFC 792; Linux `net/ipv4/icmp.c`): echo, errors that this host sends, rate limits. Those that it hears of
//! are in `icmp_error.rs`.

use super::IpOut;
use super::header::{self, OFFSET};
use super::route::{Flow, RouteKind};
use crate::Kernel;
use crate::hash::KeyedState;
use crate::skb::{Checksum, MAX_HEADER, MAX_SKB_FRAGS, PacketType, SkBuff};
use crate::trace::Point;
use alloc::boxed::Box;
use alloc::vec::Vec;
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
pub(super) const SOURCE_QUENCH: u8 = 4;
pub(super) const REDIRECT: u8 = 5;
const TIMESTAMP: u8 = 13;
const TIMESTAMPREPLY: u8 = 14;
const ADDRESS: u8 = 17;
const ADDRESSREPLY: u8 = 18;
/// Extended echo (RFC 8335): nobody answers unless told to (`icmp_echo_enable_probe`).
const EXT_ECHO: u8 = 42;
/// Extended echo reply.
const EXT_ECHOREPLY: u8 = 43;
/// The highest type that anybody knows.
const NR_TYPES: u8 = 18;

/// [`DEST_UNREACH`]: network.
pub(crate) const NET_UNREACH: u8 = 0;
/// [`DEST_UNREACH`]: host.
pub(crate) const HOST_UNREACH: u8 = 1;
/// [`DEST_UNREACH`]: protocol.
pub(crate) const PROT_UNREACH: u8 = 2;
/// [`DEST_UNREACH`]: fragmentation needed and forbidden.
pub(crate) const FRAG_NEEDED: u8 = 4;
/// [`DEST_UNREACH`]: prohibited.
pub(crate) const PKT_FILTERED: u8 = 13;
/// [`REDIRECT`]: of a host.
const REDIR_HOST: u8 = 1;
/// [`TIME_EXCEEDED`]: hops.
pub(crate) const EXC_TTL: u8 = 0;
/// [`TIME_EXCEEDED`]: reassembly.
pub(crate) const EXC_FRAGTIME: u8 = 1;

/// Octets of the header.
pub(super) const LEN: u32 = 8;
/// Octets of an error message in all, at most (RFC 1812 §4.3.2.3).
const MAX_ERROR: u32 = 576;
/// Errors saved up for a destination (Linux `XRLIM_BURST_FACTOR`).
const PEER_BURST: u64 = 6;
/// Destinations remembered.
const MAX_PEERS: usize = 1024;
/// Milliseconds since the last message to somebody unknown (Linux `inet_getpeer`): more than anybody may keep as credit.
const NEW_PEER: i64 = 60_000;
/// Milliseconds after which somebody may be forgotten when there are too many.
const FORGET_PEER: i64 = 6000;
/// Redirects that a sender gets if it does not listen, how long the second one waits, in milliseconds, doubled for each further
/// one, and how long after the last they begin anew (Linux `redirect_number`, `redirect_load`, `redirect_silence`).
const REDIRECT_NUMBER: u32 = 9;
const REDIRECT_LOAD: u64 = 20;
const REDIRECT_SILENCE: u64 = REDIRECT_LOAD << 10;

/// ICMP rate limits, and the identification counters that need the same per-destination hashing.
#[derive(Debug)]
pub struct IcmpState {
    /// Whom this host has complained to.
    peers: HashMap<u32, Peer, KeyedState>,
    /// Messages that may be sent at once, and when that was last looked at.
    credit: u64,
    stamp: u64,
    pub(super) idents: Idents,
}

/// Linux `struct inet_peer`.
#[derive(Debug)]
struct Peer {
    /// Milliseconds of credit, and when it was last looked at: of who is new, before the host was switched on perhaps.
    tokens: u64,
    last: i64,
    /// Redirects sent.
    redirects: u32,
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

/// Linux `icmp_pointers[].error`: no error is sent about these. Some of the types have no meaning today.
pub(super) fn is_error(kind: u8) -> bool {
    matches!(kind, 1..=7 | 9..=12)
}

impl Kernel {
    /// A received message; `skb` stands at the ICMP header (Linux `icmp_rcv`).
    pub(crate) fn icmp_rcv(&mut self, skb: Box<SkBuff>) {
        self.inc(Mib::IcmpInMsgs);
        if skb.csum == Checksum::None && skb.checksum(0, skb.len(), 0) != 0xffff {
            self.inc(Mib::IcmpInCsumErrors);
            return self.icmp_error_in(skb, DropReason::IcmpCsum);
        }
        let mut b = [0; LEN as usize];
        if skb.copy_bits(0, &mut b).is_err() {
            return self.icmp_error_in(skb, DropReason::NotSpecified);
        }
        let (kind, code) = (b[0], b[1]);
        self.trace(Point::IcmpRcv, skb.id, [u64::from(kind), u64::from(code), 0, 0]);
        if let Some(counter) = counter_in(kind) {
            self.inc(counter);
        }
        if kind == EXT_ECHO {
            return self.consume_skb(skb);
        }
        if kind > NR_TYPES && kind != EXT_ECHOREPLY {
            return self.icmp_error_in(skb, DropReason::UnhandledProto);
        }
        // RFC 1122 §3.2.2.6: echo to a group is answered only if asked for, which it is not; nor is anything else meant for all.
        let to_all = self.inet_addr_type(Ipv4Addr::from_bits(skb.ip.daddr)) != RouteKind::Local;
        if to_all && !matches!(kind, ADDRESS | ADDRESSREPLY | EXT_ECHOREPLY) {
            return self.icmp_error_in(skb, DropReason::InvalidProto);
        }
        match kind {
            ECHO => self.icmp_echo(skb, &b),
            TIMESTAMP => self.icmp_timestamp(skb, &b),
            ECHOREPLY | EXT_ECHOREPLY => {
                if self.ping_rcv(&skb) {
                    self.consume_skb(skb);
                } else {
                    self.kfree_skb(skb, DropReason::NoSocket);
                }
            }
            DEST_UNREACH | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAM_PROB => self.icmp_unreach(skb, &b),
            // Nobody here asks, and nobody answers (RFC 1122 §3.2.2).
            _ => self.consume_skb(skb),
        }
    }

    pub(super) fn icmp_error_in(&mut self, skb: Box<SkBuff>, reason: DropReason) {
        self.inc(Mib::IcmpInErrors);
        self.kfree_skb(skb, reason);
    }

    /// Answers an echo request: a new header before the same data (Linux `icmp_echo`).
    fn icmp_echo(&mut self, mut skb: Box<SkBuff>, b: &[u8; 8]) {
        if self.sysctl.icmp_echo_ignore_all != 0 {
            return self.consume_skb(skb);
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
            return self.icmp_error_in(skb, DropReason::PktTooSmall);
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
        // Linux counts it as an echo reply.
        self.icmp_reply(reply, &skb, Mib::IcmpOutEchoReps);
        self.consume_skb(skb);
    }

    /// Sends an answer back to where `to` came from (Linux `icmp_reply`): same type of service, no DF.
    fn icmp_reply(&mut self, reply: Box<SkBuff>, to: &SkBuff, counter: Mib) {
        let (saddr, daddr) = (Ipv4Addr::from_bits(to.ip.daddr), Ipv4Addr::from_bits(to.ip.saddr));
        let Ok(route) = self.ip_route_output_key(Flow { daddr, saddr, oif: 0 }) else {
            return self.kfree_skb(reply, DropReason::IpOutNoRoutes);
        };
        self.inc(Mib::IcmpOutMsgs);
        self.inc(counter);
        let out = IpOut { saddr, daddr, protocol: 1, tos: to.ip.tos, ttl: None, df: false, id: None };
        // A drop on the way out is counted there; the asker asks again.
        let _ = self.ip_send_skb(reply, out, &route);
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
            if quoted.copy_bits(ip_len, &mut inner).is_err() || is_error(inner[0]) || inner[0] > NR_TYPES {
                return;
            }
        }
        let (from, to) = (Ipv4Addr::new(b[12], b[13], b[14], b[15]), Ipv4Addr::new(b[16], b[17], b[18], b[19]));
        let saddr = if self.is_local_addr(to) { to } else { Ipv4Addr::UNSPECIFIED };
        let Ok(route) = self.ip_route_output_key(Flow { daddr: from, saddr, oif: 0 }) else { return };
        let most = route.mtu.min(MAX_ERROR).saturating_sub(header::LEN as u32 + LEN);
        // A link on which not even a header can be quoted (Linux: "tiny mtu").
        if most <= header::LEN as u32 || !self.icmp_allow(&route, from, kind, code) {
            return;
        }
        let mut skb = self.alloc_skb();
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
            PARAM_PROB => self.inc(Mib::IcmpOutParmProbs),
            REDIRECT => self.inc(Mib::IcmpOutRedirects),
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
        if limit > 0 && !self.inet_peer_allow(to, limit, PEER_BURST * limit) {
            self.inc(Mib::IcmpOutRateLimitHost);
            return false;
        }
        self.icmp.credit -= 1;
        true
    }

    /// Takes `cost` milliseconds from a peer's credit, of which it keeps `most` (Linux `inet_peer_xrlim_allow`).
    pub(super) fn inet_peer_allow(&mut self, to: Ipv4Addr, cost: u64, most: u64) -> bool {
        let now = self.now.millis() as i64;
        let Some(peer) = self.inet_getpeer(to) else { return false };
        peer.tokens = peer.tokens.saturating_add((now - peer.last) as u64).min(most);
        peer.last = now;
        let allowed = peer.tokens >= cost;
        if allowed {
            peer.tokens -= cost;
        }
        allowed
    }

    /// Somebody whom this host complains to; `None` if there are too many.
    fn inet_getpeer(&mut self, to: Ipv4Addr) -> Option<&mut Peer> {
        let now = self.now.millis() as i64;
        let peers = &mut self.icmp.peers;
        if peers.len() >= MAX_PEERS && !peers.contains_key(&to.to_bits()) {
            peers.retain(|_, p| now - p.last < FORGET_PEER);
            if peers.len() >= MAX_PEERS {
                return None;
            }
        }
        Some(peers.entry(to.to_bits()).or_insert(Peer { tokens: 0, last: now - NEW_PEER, redirects: 0 }))
    }

    /// Tells a sender on the link of a shorter way, seldomer and seldomer if it does not listen (Linux `ip_rt_send_redirect`).
    pub(super) fn ip_rt_send_redirect(&mut self, skb: &SkBuff, to: Ipv4Addr, gateway: Ipv4Addr) {
        let now = self.now.millis() as i64;
        let Some(peer) = self.inet_getpeer(to) else { return };
        let silence = (now - peer.last) as u64;
        if silence > REDIRECT_SILENCE {
            (peer.tokens, peer.redirects) = (0, 0);
        }
        if peer.redirects >= REDIRECT_NUMBER {
            peer.last = now;
            return;
        }
        if peer.redirects > 0 && silence <= REDIRECT_LOAD << peer.redirects {
            return;
        }
        peer.last = now;
        peer.redirects += 1;
        self.icmp_send(skb, REDIRECT, REDIR_HOST, gateway.to_bits());
    }
}

/// What counts messages of a type.
fn counter_in(kind: u8) -> Option<Mib> {
    Some(match kind {
        ECHOREPLY => Mib::IcmpInEchoReps,
        DEST_UNREACH => Mib::IcmpInDestUnreachs,
        SOURCE_QUENCH => Mib::IcmpInSrcQuenchs,
        REDIRECT => Mib::IcmpInRedirects,
        ECHO => Mib::IcmpInEchos,
        TIME_EXCEEDED => Mib::IcmpInTimeExcds,
        PARAM_PROB => Mib::IcmpInParmProbs,
        TIMESTAMP => Mib::IcmpInTimestamps,
        TIMESTAMPREPLY => Mib::IcmpInTimestampReps,
        ADDRESS => Mib::IcmpInAddrMasks,
        ADDRESSREPLY => Mib::IcmpInAddrMaskReps,
        _ => return None,
    })
}
