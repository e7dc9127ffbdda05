//! What the device cannot do is done here: segmentation and transport checksums (Linux `validate_xmit_skb`).

use super::net_device::Features;
use crate::Kernel;
use crate::ether::header as ether;
use crate::ip::header::pseudo_sum;
use crate::skb::{Checksum, Gso, MAX_HEADER, MAX_SKB_FRAGS, SkBuff};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use arrayvec::ArrayVec;
use ringlab_ring::memory::{checksum_add, fold};

const FIN: u8 = 1;
const PSH: u8 = 8;
const CWR: u8 = 128;

impl Kernel {
    /// Cuts a frame into segments if the device has no TSO, completes its checksum if it has no checksum
    /// offload, makes it linear if it has no scatter-gather. The results are appended to `out`.
    ///
    /// # Errors
    /// The frame, if memory or sense is missing.
    pub(super) fn validate_xmit_skb(
        &mut self,
        skb: Box<SkBuff>,
        features: Features,
        out: &mut VecDeque<Box<SkBuff>>,
    ) -> Result<(), Box<SkBuff>> {
        let first = out.len();
        match skb.gso {
            Some(gso) if !features.tso => self.skb_gso_segment(skb, ether::LEN as u32, gso, out)?,
            _ => out.push_back(skb),
        }
        for at in first..out.len() {
            if !features.tx_csum {
                skb_checksum_help(&mut out[at]);
            }
            if !features.sg && out[at].frags().iter().filter(|f| f.len > 0).count() > 1 && !self.skb_linearize(&mut out[at]) {
                return Err(out.remove(at).expect("index is in range"));
            }
        }
        Ok(())
    }

    /// Cuts a TCP/IPv4 packet of several segments into packets of one (Linux `tcp4_gso_segment`). The IP header
    /// lies at `mac`. Payload is shared, headers are made anew, the checksum stays open (`Partial`).
    ///
    /// # Errors
    /// The packet, if the pool is empty or it is not what `gso` says.
    pub(crate) fn skb_gso_segment(
        &mut self,
        mut skb: Box<SkBuff>,
        mac: u32,
        gso: Gso,
        out: &mut VecDeque<Box<SkBuff>>,
    ) -> Result<(), Box<SkBuff>> {
        let Some(heads) = Headers::parse(&skb, mac) else { return Err(skb) };
        let (payload, size) = (skb.len() - heads.len, u32::from(gso.size.max(1)));
        let first = out.len();
        let mut at = 0;
        while at < payload {
            let len = size.min(payload - at);
            let mut seg = self.alloc_skb();
            if !seg.alloc_head(&self.config.pool, MAX_HEADER, heads.len) {
                for left in out.drain(first..) {
                    self.skbs.put(left);
                }
                self.skbs.put(seg);
                return Err(skb);
            }
            seg.put_bytes(&heads.of_segment(at, len, gso, at + len == payload));
            skb.share_into(heads.len + at, len, &mut seg);
            skb.clone_metadata_to(&mut seg);
            seg.csum = Checksum::Partial { start: heads.tcp as u16, offset: 16 };
            out.push_back(seg);
            at += len;
        }
        // The charge ends when the last segment is gone.
        if let Some(last) = out.back_mut() {
            last.owner = core::mem::take(&mut skb.owner);
            last.truesize = skb.truesize;
            last.tcp.hdr_len = skb.tcp.hdr_len;
        }
        self.consume_skb(skb);
        Ok(())
    }

    /// Makes the data one run in a fresh buffer (Linux `skb_linearize`); a counted copy. False if the pool is empty.
    pub(crate) fn skb_linearize(&mut self, skb: &mut SkBuff) -> bool {
        let len = skb.len();
        let Some(buf) = self.config.pool.alloc(MAX_HEADER + len).or_else(|| self.config.pool.alloc(len)) else { return false };
        let off = MAX_HEADER.min(buf.capacity() - len);
        self.count_copy(len);
        skb.replace_data(buf, off);
        true
    }
}

/// Completes the transport checksum (Linux `skb_checksum_help`).
pub(crate) fn skb_checksum_help(skb: &mut SkBuff) {
    let Checksum::Partial { start, offset } = skb.csum else { return };
    let start = u32::from(start);
    let sum = !skb.checksum(start, skb.len().saturating_sub(start), 0);
    // Zero would mean "no checksum" to UDP.
    let sum = if sum == 0 { 0xffff } else { sum };
    // A field outside the packet was refused when the packet came in; our own lie inside.
    let _ = skb.store_bits(start + u32::from(offset), &sum.to_be_bytes());
    skb.csum = Checksum::None;
}

/// The headers of a packet that is to be cut.
struct Headers {
    bytes: ArrayVec<u8, { MAX_HEADER as usize }>,
    ip: usize,
    tcp: usize,
    len: u32,
}

impl Headers {
    fn parse(skb: &SkBuff, mac: u32) -> Option<Self> {
        let ip = mac as usize;
        let mut b = [0; MAX_HEADER as usize];
        let known = b.len().min(skb.len() as usize);
        skb.copy_bits(0, &mut b[..known]).ok()?;
        let tcp = ip + usize::from(b[ip] & 15) * 4;
        let len = tcp + usize::from(*b.get(tcp + 12)? >> 4) * 4;
        if tcp < ip + 20 || len < tcp + 20 || len > known {
            return None;
        }
        let mut bytes = ArrayVec::new();
        bytes.try_extend_from_slice(&b[..len]).ok()?;
        Some(Self { bytes, ip, tcp, len: len as u32 })
    }

    /// Headers of the segment with `len` octets of payload from `at`.
    fn of_segment(&self, at: u32, len: u32, gso: Gso, last: bool) -> ArrayVec<u8, { MAX_HEADER as usize }> {
        let mut b = self.bytes.clone();
        let (ip, tcp) = (self.ip, self.tcp);
        let add16 = |b: &mut [u8], i: usize, n: u16| {
            let v = u16::from_be_bytes([b[i], b[i + 1]]).wrapping_add(n);
            b[i..i + 2].copy_from_slice(&v.to_be_bytes());
        };
        let total = self.len - ip as u32 + len;
        b[ip + 2..ip + 4].copy_from_slice(&(total as u16).to_be_bytes());
        add16(&mut b, ip + 4, (at / u32::from(gso.size.max(1))) as u16);
        b[ip + 10..ip + 12].fill(0);
        let check = !fold(checksum_add(&b[ip..tcp], 0));
        b[ip + 10..ip + 12].copy_from_slice(&check.to_be_bytes());
        let seq = u32::from_be_bytes([b[tcp + 4], b[tcp + 5], b[tcp + 6], b[tcp + 7]]).wrapping_add(at);
        b[tcp + 4..tcp + 8].copy_from_slice(&seq.to_be_bytes());
        if !last {
            b[tcp + 13] &= !(FIN | PSH);
        }
        if at > 0 {
            b[tcp + 13] &= !CWR;
        }
        let addr = |i: usize| u32::from_be_bytes([b[ip + i], b[ip + i + 1], b[ip + i + 2], b[ip + i + 3]]);
        let pseudo = fold(pseudo_sum(addr(12), addr(16), 6, self.len - tcp as u32 + len));
        b[tcp + 16..tcp + 18].copy_from_slice(&pseudo.to_be_bytes());
        b
    }
}

const _: () = assert!(MAX_SKB_FRAGS > 1, "a segment is a head and a share of the payload");
