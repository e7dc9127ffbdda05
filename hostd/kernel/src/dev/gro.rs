//! Generic receive offload: segments of a TCP flow become one packet (Linux `dev_gro_receive`, `tcp_gro_receive`).
//!
//! A packet is held while segments that continue it arrive in the same poll. It goes
//! up when its flow does something else, when it is full, when a short or pushed
//! segment ends it, and at the latest when the poll completes. Payload is
//! never copied: the fragments are appended.
//!
//! Deviation: a packet has no more fragments than an [`SkBuff`] holds (Linux chains packets then), and packets that the
//! device has merged already are passed on as they are.

use super::net_device::IfIndex;
use crate::Kernel;
use crate::ether::header::{self as ether, ETH_P_IP};
use crate::ip::header::pseudo_sum;
use crate::skb::{Checksum, Gso, SkBuff};
use crate::trace::Point;
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use ringlab_counters::Mib;
use ringlab_ring::memory::{checksum_add, fold};

/// Flows held at once (Linux `MAX_GRO_SKBS`).
const MAX_FLOWS: usize = 8;
/// Octets of a merged packet (Linux `GRO_LEGACY_MAX_SIZE`).
const MAX_SIZE: u32 = 65535;
const IP_LEN: u32 = 20;
/// Octets of a segment's headers that its successors repeat, at most.
const SAME: usize = 50;

const FIN: u8 = 1;
const PSH: u8 = 8;
const CWR: u8 = 128;
/// FIN, SYN, RST, PSH, URG: the segment ends the packet.
const FINAL: u8 = 1 | 2 | 4 | 8 | 32;

/// The packets that wait for more.
#[derive(Debug, Default)]
pub(crate) struct GroList(ArrayVec<Held, MAX_FLOWS>);

#[derive(Debug)]
struct Held {
    skb: Box<SkBuff>,
    head: Segment,
    flags: u8,
    mss: u32,
    segs: u16,
    /// Octets of payload.
    len: u32,
    /// Millisecond of the first segment.
    age: u64,
    /// All segments have the first one's identification; otherwise it counts up. The second one decides.
    fixed_id: bool,
}

/// What matters of a segment's headers.
#[derive(Debug, Clone, Copy)]
struct Segment {
    saddr: u32,
    daddr: u32,
    ports: [u8; 4],
    seq: u32,
    flags: u8,
    /// TOS, TTL, DF, header length, acknowledgement, window and options: equal in all segments of a packet.
    same: [u8; SAME],
    /// The Ethernet header, or zeros.
    mac: [u8; ether::LEN],
    id: u16,
    df: bool,
    tcp_len: u32,
    total: u32,
}

impl Segment {
    /// Reads the headers of a TCP segment; `None` if it is not one that may be merged.
    fn parse(skb: &SkBuff) -> Option<Self> {
        let mut b = [0; 40];
        skb.copy_bits(0, &mut b).ok()?;
        let be16 = |i: usize| u16::from_be_bytes([b[i], b[i + 1]]);
        let be32 = |i: usize| u32::from_be_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let total = u32::from(be16(2));
        let tcp_len = u32::from(b[32] >> 4) * 4;
        let fragment = be16(6) & 0x3fff != 0;
        if b[0] != 0x45 || b[9] != 6 || fragment || fold(checksum_add(&b[..20], 0)) != 0xffff {
            return None;
        }
        if tcp_len < 20 || total < IP_LEN + tcp_len || total > skb.len() {
            return None;
        }
        let df = be16(6) & 0x4000 != 0;
        let mut same = [0; SAME];
        same[..3].copy_from_slice(&[b[1], b[8], u8::from(df)]);
        same[3] = b[32];
        same[4..8].copy_from_slice(&b[28..32]);
        same[8..10].copy_from_slice(&b[34..36]);
        let options = tcp_len as usize - 20;
        skb.copy_bits(40, &mut same[10..10 + options]).ok()?;
        let mac = mac_header(skb);
        let ports = [b[20], b[21], b[22], b[23]];
        Some(Self { saddr: be32(12), daddr: be32(16), ports, seq: be32(24), flags: b[33], same, mac, id: be16(4), df, tcp_len, total })
    }

    fn same_flow(&self, other: &Self) -> bool {
        self.saddr == other.saddr && self.daddr == other.daddr && self.ports == other.ports && self.mac == other.mac
    }

    fn payload(&self) -> u32 {
        self.total - IP_LEN - self.tcp_len
    }

    /// The checksum is right, or vouched for.
    fn csum_ok(&self, skb: &SkBuff) -> bool {
        let sum = pseudo_sum(self.saddr, self.daddr, 6, self.total - IP_LEN);
        skb.csum != Checksum::None || skb.checksum(IP_LEN, self.total - IP_LEN, sum) == 0xffff
    }
}

impl Held {
    /// True if `next` is the segment that continues the packet (Linux `tcp_gro_receive`).
    fn continues(&self, next: &Segment) -> bool {
        let len = next.payload();
        next.flags & CWR == 0
            && (next.flags ^ self.flags) & !(CWR | FIN | PSH) == 0
            && next.same == self.head.same
            && len > 0
            && len <= self.mss
            && next.seq == self.head.seq.wrapping_add(self.len)
            && self.head.total + self.len - self.head.payload() + len <= MAX_SIZE
            && self.id_continues(next)
    }

    /// The identification rises, or stands still if that is allowed to (Linux `inet_gro_flush`).
    fn id_continues(&self, next: &Segment) -> bool {
        let rises = next.id == self.head.id.wrapping_add(self.segs);
        let stands = next.df && next.id == self.head.id;
        if self.segs == 1 {
            rises || stands
        } else if self.fixed_id {
            stands
        } else {
            rises
        }
    }

    /// The packet, with headers that describe all of it (Linux `tcp_gro_complete`).
    fn complete(self) -> Box<SkBuff> {
        let Self { mut skb, head, flags, mss, segs, len, .. } = self;
        if segs == 1 {
            return skb;
        }
        let transport = head.tcp_len + len;
        let mut ip = [0; IP_LEN as usize];
        skb.copy_bits(0, &mut ip).expect("headers were parsed");
        ip[2..4].copy_from_slice(&((IP_LEN + transport) as u16).to_be_bytes());
        ip[10..12].fill(0);
        let check = !fold(checksum_add(&ip, 0));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        let pseudo = fold(pseudo_sum(head.saddr, head.daddr, 6, transport));
        let fields: [(u32, &[u8]); 3] = [(0, &ip), (IP_LEN + 13, &[flags]), (IP_LEN + 16, &pseudo.to_be_bytes())];
        for (at, bytes) in fields {
            skb.store_bits(at, bytes).expect("headers were parsed");
        }
        skb.csum = Checksum::Partial { start: IP_LEN as u16, offset: 16 };
        skb.gso = Some(Gso { size: mss as u16, segs, ecn: flags & CWR != 0 });
        skb
    }
}

impl Kernel {
    /// Merges a received packet into a held one, holds it, or passes it on. It stands at its network header.
    pub(super) fn napi_gro_receive(&mut self, dev: IfIndex, queue: u16, mut skb: Box<SkBuff>) {
        let (id, octets) = (skb.id, u64::from(skb.len()));
        let on = self.devs.get(dev).is_some_and(|d| d.gro_on);
        let segment = if on && skb.protocol == ETH_P_IP { Segment::parse(&skb) } else { None };
        let Some(seg) = segment else {
            self.trace(Point::GroReceive, id, [octets, 0, 0, 0]);
            return self.netif_receive_skb(skb);
        };
        let Some(list) = self.devs.queue_mut(dev, queue).map(|q| &mut q.gro.0) else { return self.netif_receive_skb(skb) };
        let place = list.iter().position(|h| h.head.same_flow(&seg));
        // Not what is padded either: only whole frames are joined.
        let mergeable = skb.gso.is_none() && seg.total == skb.len() && seg.csum_ok(&skb);
        if let Some(at) = place {
            if mergeable && list[at].continues(&seg) && append(&mut list[at], &mut skb, &seg) {
                let held = &list[at];
                let ends = seg.payload() < held.mss || seg.flags & FINAL != 0;
                let full = ends.then(|| list.remove(at));
                self.skbs.put(skb);
                self.inc(Mib::GroMerged);
                self.trace(Point::GroReceive, id, [octets, 1, 0, 0]);
                if let Some(held) = full {
                    self.netif_receive_skb(held.complete());
                }
                return;
            }
            let held = list.remove(at);
            self.netif_receive_skb(held.complete());
        }
        self.trace(Point::GroReceive, id, [octets, 0, 0, 0]);
        if !mergeable || seg.payload() == 0 || seg.flags & (FINAL | CWR) != 0 {
            return self.netif_receive_skb(skb);
        }
        self.gro_hold(dev, queue, skb, seg);
    }

    fn gro_hold(&mut self, dev: IfIndex, queue: u16, mut skb: Box<SkBuff>, seg: Segment) {
        skb.trim(seg.total);
        let age = self.now.millis();
        let held = Held { skb, head: seg, flags: seg.flags, mss: seg.payload(), segs: 1, len: seg.payload(), age, fixed_id: false };
        self.inc(Mib::GroHeld);
        let Some(list) = self.devs.queue_mut(dev, queue).map(|q| &mut q.gro.0) else { return };
        let oldest = list.is_full().then(|| list.remove(0));
        list.push(held);
        if let Some(oldest) = oldest {
            self.netif_receive_skb(oldest.complete());
        }
    }

    /// Passes held packets on: all, or those held since an earlier millisecond (Linux `napi_gro_flush`).
    pub(super) fn gro_flush(&mut self, dev: IfIndex, queue: u16, all: bool) {
        let now = self.now.millis();
        loop {
            let Some(list) = self.devs.queue_mut(dev, queue).map(|q| &mut q.gro.0) else { return };
            let Some(at) = list.iter().position(|h| all || h.age != now) else { return };
            let held = list.remove(at);
            self.netif_receive_skb(held.complete());
        }
    }
}

/// The Ethernet header that was pulled, if it can still be read.
fn mac_header(skb: &SkBuff) -> [u8; ether::LEN] {
    let mut b = [0; ether::LEN];
    let len = ether::LEN as u32;
    if skb.mac_back == len
        && let Some(first) = skb.frags().first().filter(|f| f.off >= len)
    {
        first.buf.slice(first.off - len, len).read(&mut b);
    }
    b
}

/// Appends the payload of a segment (Linux `skb_gro_receive`). False if it has too many fragments.
fn append(held: &mut Held, skb: &mut SkBuff, seg: &Segment) -> bool {
    skb.trim(seg.total);
    if held.skb.frag_room() < skb.frags().len() || skb.pull(IP_LEN + seg.tcp_len).is_err() {
        return false;
    }
    let merged = held.skb.coalesce(skb);
    held.fixed_id |= held.segs == 1 && seg.id == held.head.id;
    held.len += seg.payload();
    held.segs += 1;
    held.flags |= seg.flags & (FIN | PSH);
    merged
}
