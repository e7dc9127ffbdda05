//! The TCP header on the wire (RFC 9293 §3.1) and its options (RFC 9293, 7323, 2018).
//!
//! Everything that is parsed is hostile. Options after a malformed one are
//! ignored, as Linux `tcp_parse_options` does; lengths never lead outside the slice.

use super::seq::SeqNum;
use arrayvec::ArrayVec;

/// Header flags.
pub mod flag {
    #![expect(missing_docs, reason = "the names are RFC 9293's and RFC 3168's")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
    pub const ECE: u8 = 64;
    pub const CWR: u8 = 128;
}

/// Octets of the header without options.
pub const TCP_HEADER: usize = 20;
/// Octets of the largest header.
pub const MAX_TCP_HEADER: usize = 60;
/// Octets of the timestamp option with its padding.
pub const TSTAMP_ALIGNED: u32 = 12;
/// Offset of the checksum field.
pub const CSUM_OFFSET: u16 = 16;
/// Largest window scale (RFC 7323 §2.3).
pub const MAX_WSCALE: u8 = 14;

/// Why a header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than 20 octets.
    #[error("segment of {0} octets is shorter than a TCP header")]
    Short(u32),
    /// The data offset points into the header or behind the segment.
    #[error("data offset of {hdr} octets does not fit a segment of {total}")]
    DataOffset {
        /// As the header says, octets.
        hdr: u8,
        /// Octets of the segment.
        total: u32,
    },
}

/// The fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: SeqNum,
    /// Acknowledgement number.
    pub ack: SeqNum,
    /// [`flag`] bits.
    pub flags: u8,
    /// Window, not scaled.
    pub window: u16,
    /// Checksum.
    pub csum: u16,
    /// Urgent pointer.
    pub urg: u16,
    /// Octets of header with options.
    pub hdr_len: u8,
}

impl Header {
    /// Parses the fixed part of a segment of `total` octets.
    ///
    /// # Errors
    /// [`HeaderError`] if the data offset makes no sense.
    pub fn parse(b: &[u8; TCP_HEADER], total: u32) -> Result<Self, HeaderError> {
        let be16 = |i: usize| u16::from_be_bytes([b[i], b[i + 1]]);
        let be32 = |i: usize| SeqNum(u32::from_be_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]));
        let hdr_len = (b[12] >> 4) * 4;
        if usize::from(hdr_len) < TCP_HEADER || u32::from(hdr_len) > total {
            return Err(HeaderError::DataOffset { hdr: hdr_len, total });
        }
        Ok(Self {
            sport: be16(0),
            dport: be16(2),
            seq: be32(4),
            ack: be32(8),
            flags: b[13],
            window: be16(14),
            csum: be16(16),
            urg: be16(18),
            hdr_len,
        })
    }

    /// Writes header and options to the front of `b`; returns the octets of both.
    /// `hdr_len` is computed, not taken.
    pub fn emit(&self, options: &Options, b: &mut [u8; MAX_TCP_HEADER]) -> usize {
        let len = TCP_HEADER + options.emit(&mut b[TCP_HEADER..]);
        b[0..2].copy_from_slice(&self.sport.to_be_bytes());
        b[2..4].copy_from_slice(&self.dport.to_be_bytes());
        b[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        b[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        b[12] = ((len / 4) as u8) << 4;
        b[13] = self.flags;
        b[14..16].copy_from_slice(&self.window.to_be_bytes());
        b[16..18].copy_from_slice(&self.csum.to_be_bytes());
        b[18..20].copy_from_slice(&self.urg.to_be_bytes());
        len
    }
}

/// The options, received or to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Maximum segment size, octets.
    pub mss: Option<u16>,
    /// Window scale; above 14 counts as 14.
    pub wscale: Option<u8>,
    /// SACK permitted.
    pub sack_permitted: bool,
    /// Timestamp value and echo.
    pub ts: Option<(u32, u32)>,
    /// SACK blocks: first octet, and the one after the last.
    pub sacks: ArrayVec<(SeqNum, SeqNum), 4>,
}

impl Options {
    /// Parses the octets between the fixed header and the payload. `syn`: the
    /// segment has SYN (MSS, scale and SACK-permitted count there only).
    pub fn parse(b: &[u8], syn: bool) -> Self {
        let mut o = Self::default();
        let mut rest = b;
        // The usual case on an established connection: NOP, NOP, timestamp.
        if let [1, 1, 8, 10, a, b, c, d, e, f, g, h] = *b {
            o.ts = Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])));
            return o;
        }
        loop {
            match *rest {
                [] | [0, ..] => return o,
                [1, ..] => rest = &rest[1..],
                [kind, len, ..] if len >= 2 && usize::from(len) <= rest.len() => {
                    o.parse_one(kind, &rest[2..usize::from(len)], syn);
                    rest = &rest[usize::from(len)..];
                }
                _ => return o,
            }
        }
    }

    fn parse_one(&mut self, kind: u8, body: &[u8], syn: bool) {
        match (kind, body) {
            (2, &[a, b]) if syn => self.mss = Some(u16::from_be_bytes([a, b])).filter(|&m| m != 0),
            (3, &[s]) if syn => self.wscale = Some(s.min(MAX_WSCALE)),
            (4, []) if syn => self.sack_permitted = true,
            (5, blocks) if !syn && !blocks.is_empty() && blocks.len() % 8 == 0 => {
                for c in blocks.chunks_exact(8).take(self.sacks.remaining_capacity()) {
                    let be = |i: usize| SeqNum(u32::from_be_bytes([c[i], c[i + 1], c[i + 2], c[i + 3]]));
                    self.sacks.push((be(0), be(4)));
                }
            }
            (8, &[a, b, c, d, e, f, g, h]) => self.ts = Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))),
            _ => {}
        }
    }

    /// Octets that `Self::emit` writes; a multiple of four, at most 40.
    pub fn len(&self) -> usize {
        let mut n = 0;
        n += if self.mss.is_some() { 4 } else { 0 };
        n += match (self.ts.is_some(), self.sack_permitted) {
            (true, _) => 12,
            (false, true) => 4,
            (false, false) => 0,
        };
        n += if self.wscale.is_some() { 4 } else { 0 };
        n + if self.sacks.is_empty() { 0 } else { 4 + 8 * self.sacks.len() }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes them in Linux's order: MSS, SACK-permitted, timestamps, NOP, window scale, SACK blocks.
    fn emit(&self, b: &mut [u8]) -> usize {
        let mut w = Writer { b, at: 0 };
        if let Some(mss) = self.mss {
            let [h, l] = mss.to_be_bytes();
            w.put(&[2, 4, h, l]);
        }
        if let Some((val, ecr)) = self.ts {
            w.put(if self.sack_permitted { &[4, 2, 8, 10] } else { &[1, 1, 8, 10] });
            w.put(&val.to_be_bytes());
            w.put(&ecr.to_be_bytes());
        } else if self.sack_permitted {
            w.put(&[1, 1, 4, 2]);
        }
        if let Some(s) = self.wscale {
            w.put(&[1, 3, 3, s]);
        }
        if !self.sacks.is_empty() {
            w.put(&[1, 1, 5, 2 + 8 * self.sacks.len() as u8]);
            for (start, end) in &self.sacks {
                w.put(&start.0.to_be_bytes());
                w.put(&end.0.to_be_bytes());
            }
        }
        w.at
    }
}

struct Writer<'b> {
    b: &'b mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.b[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

/// Sum of the IPv4 pseudo-header of a segment of `len` octets, not folded.
pub fn pseudo_header_sum(saddr: u32, daddr: u32, len: u32) -> u64 {
    let half = |a: u32| u64::from(a >> 16) + u64::from(a & 0xffff);
    half(saddr) + half(daddr) + 6 + u64::from(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use etherparse::{TcpHeaderSlice, TcpOptionElement};
    use proptest::prelude::*;

    fn syn_options() -> Options {
        Options { mss: Some(1460), wscale: Some(7), sack_permitted: true, ts: Some((1, 2)), sacks: ArrayVec::new() }
    }

    #[test]
    fn syn_options_stand_in_linux_order() {
        let h = Header { sport: 1, dport: 2, flags: flag::SYN, window: 64240, ..Header::default() };
        let mut b = [0; MAX_TCP_HEADER];
        let n = h.emit(&syn_options(), &mut b);
        assert_eq!(n, 40);
        let s = TcpHeaderSlice::from_slice(&b[..n]).unwrap();
        let kinds: Vec<_> = s.options_iterator().map(Result::unwrap).collect();
        assert_eq!(
            kinds,
            [
                TcpOptionElement::MaximumSegmentSize(1460),
                TcpOptionElement::SelectiveAcknowledgementPermitted,
                TcpOptionElement::Timestamp(1, 2),
                TcpOptionElement::Noop,
                TcpOptionElement::WindowScale(7),
            ]
        );
        assert!(s.syn() && !s.ack() && s.window_size() == 64240);
    }

    #[test]
    fn timestamps_leave_room_for_three_sack_blocks() {
        let mut o = Options { ts: Some((7, 8)), ..Options::default() };
        for i in 0..3 {
            o.sacks.push((SeqNum(i * 10), SeqNum(i * 10 + 5)));
        }
        let mut b = [0; MAX_TCP_HEADER];
        assert_eq!(Header::default().emit(&o, &mut b), 60);
        assert_eq!(Options::parse(&b[20..60], false), o);
    }

    #[test]
    fn bad_lengths_end_the_options() {
        assert_eq!(Options::parse(&[2, 0, 1, 1], true), Options::default());
        assert_eq!(Options::parse(&[2, 4, 5], true), Options::default());
        assert_eq!(Options::parse(&[8], false), Options::default());
        assert_eq!(Options::parse(&[3, 3, 200, 0, 2, 4, 1, 1], true), Options { wscale: Some(14), ..Options::default() });
        assert_eq!(Header::parse(&[0; 20], 20), Err(HeaderError::DataOffset { hdr: 0, total: 20 }));
        let mut b = [0; 20];
        b[12] = 0xf0;
        assert_eq!(Header::parse(&b, 59), Err(HeaderError::DataOffset { hdr: 60, total: 59 }));
    }

    proptest! {
        #[test]
        fn any_octets_parse_without_panic(b in prop::collection::vec(any::<u8>(), 0..41), syn: bool) {
            let o = Options::parse(&b, syn);
            prop_assert!(o.sacks.len() <= 4);
        }

        #[test]
        fn header_agrees_with_etherparse(sport: u16, dport: u16, seq: u32, ack: u32, flags: u8, window: u16, csum: u16, urg: u16) {
            let h = Header { sport, dport, seq: SeqNum(seq), ack: SeqNum(ack), flags, window, csum, urg, hdr_len: 40 };
            let mut b = [0; MAX_TCP_HEADER];
            let n = h.emit(&syn_options(), &mut b);
            let s = TcpHeaderSlice::from_slice(&b[..n]).unwrap();
            prop_assert_eq!((s.source_port(), s.destination_port(), s.sequence_number()), (sport, dport, seq));
            prop_assert_eq!((s.acknowledgment_number(), s.window_size(), s.checksum(), s.urgent_pointer()), (ack, window, csum, urg));
            prop_assert_eq!(s.syn(), flags & flag::SYN != 0);
            prop_assert_eq!(s.cwr(), flags & flag::CWR != 0);
            let fixed: [u8; 20] = b[..20].try_into().unwrap();
            prop_assert_eq!(Header::parse(&fixed, 1000).unwrap(), h);
            prop_assert_eq!(Options::parse(&b[20..n], true), syn_options());
        }
    }
}
