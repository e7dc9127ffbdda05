//! ICMP errors that this host hears of (RFC 1122 §3.2.2; Linux `icmp_unreach`): told to the protocol of the packet
//! that they quote, which believes them if it sent it.

use super::IcmpError;
use super::header;
use super::icmp::{DEST_UNREACH, ECHOREPLY, EXC_FRAGTIME, FRAG_NEEDED, LEN, PARAM_PROB, REDIRECT, TIME_EXCEEDED};
use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::{Sock, SockErr};
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;
use ringlab_counters::{DropReason, Mib};

/// The highest code of [`DEST_UNREACH`].
const NR_UNREACH: u8 = 15;
/// Octets that an entry of an error queue costs its socket.
const ERR_TRUESIZE: u32 = 768;

impl Kernel {
    /// An error about a packet of ours; `skb` stands at its ICMP header, of which `b` are the octets.
    pub(super) fn icmp_unreach(&mut self, skb: Box<SkBuff>, b: &[u8; 8]) {
        let (kind, code) = (b[0], b[1]);
        let mut q = [0; header::MAX_LEN + 8];
        let known = q.len().min((skb.len() - LEN) as usize);
        let copied = skb.copy_bits(LEN, &mut q[..known]);
        debug_assert!(copied.is_ok(), "as many octets as the packet has");
        if known < header::LEN {
            let reason = if kind == REDIRECT { DropReason::PktTooSmall } else { DropReason::NotSpecified };
            return self.icmp_error_in(skb, reason);
        }
        // A redirect's packet is looked at by nobody: see below.
        if kind != REDIRECT && q[0] & 15 < 5 {
            return self.icmp_error_in(skb, DropReason::IpInHdr);
        }
        let info = match (kind, code) {
            // Nothing that a protocol could mend.
            (DEST_UNREACH, code) if code > NR_UNREACH => return self.consume_skb(skb),
            (TIME_EXCEEDED, EXC_FRAGTIME) => return self.consume_skb(skb),
            (DEST_UNREACH, FRAG_NEEDED) => u32::from(u16::from_be_bytes([b[6], b[7]])),
            (PARAM_PROB, _) => u32::from(b[4]),
            (DEST_UNREACH | TIME_EXCEEDED, _) => 0,
            // RFC 6633: source quench is ignored. Deviation: redirects are too (Linux follows them on a host).
            _ => return self.consume_skb(skb),
        };
        match Quoted::parse(&q[..known]) {
            Some(quoted) => self.icmp_socket_deliver(&skb, (kind, code, info), quoted),
            None => self.inc(Mib::IcmpInErrors),
        }
        self.consume_skb(skb);
    }

    /// Raw sockets first, then the protocol (Linux `icmp_socket_deliver`).
    fn icmp_socket_deliver(&mut self, skb: &SkBuff, (kind, code, info): (u8, u8, u32), quoted: Quoted) {
        let error = IcmpError {
            kind,
            code,
            info,
            from: Ipv4Addr::from_bits(skb.ip.saddr),
            saddr: quoted.saddr,
            daddr: quoted.daddr,
            protocol: quoted.protocol,
            payload: quoted.payload,
            quote: quote_of(skb, &quoted),
            report: (skb.ip.ttl, skb.ip.tos, skb.tstamp),
        };
        self.raw_err(&error);
        match quoted.protocol {
            6 => self.tcp_v4_err(&error),
            17 => self.udp_err(&error),
            // The kernel's own answers have no socket that could vouch for them.
            1 if quoted.payload[0] == ECHOREPLY => self.icmp_err_update_pmtu(&error),
            1 => self.ping_err(&error),
            _ => {}
        }
    }

    /// A router names the MTU of the way to a destination: whoever sent the packet in question believes it
    /// (Linux `ipv4_sk_update_pmtu`).
    pub(crate) fn icmp_err_update_pmtu(&mut self, e: &IcmpError) {
        if (e.kind, e.code) == (DEST_UNREACH, FRAG_NEEDED) {
            self.ip_update_pmtu(e.daddr, e.info);
        }
    }
}

impl Sock {
    /// Puts an error into the queue, if the socket can pay for it (Linux `sock_queue_err_skb`): peers choose how many come.
    pub(crate) fn queue_err(&mut self, error: SockErr) {
        let queued = u32::try_from(self.error_queue.len()).unwrap_or(u32::MAX).saturating_add(1);
        if self.rmem_alloc.saturating_add(queued.saturating_mul(ERR_TRUESIZE)) < self.rcvbuf {
            self.error_queue.push_back(error);
        }
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
        if len < header::LEN || b.len() < len + 8 {
            return None;
        }
        let ip = |i: usize| Ipv4Addr::new(b[i], b[i + 1], b[i + 2], b[i + 3]);
        let payload = b[len..len + 8].try_into().ok()?;
        Some(Self { saddr: ip(12), daddr: ip(16), protocol: b[9], total: u16::from_be_bytes([b[2], b[3]]), hdr_len: len as u8, payload })
    }
}
