//! The IPv4 header (RFC 791): parse with validation, emit, checksum.

use crate::skb::IpCb;
use arrayvec::ArrayVec;
use ringlab_counters::DropReason;
use ringlab_ring::memory::{checksum_add, fold};

/// Octets without options.
pub(crate) const LEN: usize = 20;
/// Octets with as many options as there can be.
pub(crate) const MAX_LEN: usize = 60;

/// Flag "more fragments".
pub(crate) const MF: u16 = 0x2000;
/// Flag "don't fragment".
pub(crate) const DF: u16 = 0x4000;
/// Mask of the fragment offset, in units of 8 octets.
pub(crate) const OFFSET: u16 = 0x1fff;

/// A header, in host representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IpHdr {
    pub(crate) tos: u8,
    /// Octets of the packet, header included.
    pub(crate) total: u16,
    pub(crate) id: u16,
    /// [`DF`], [`MF`], [`OFFSET`].
    pub(crate) frag_off: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) saddr: u32,
    pub(crate) daddr: u32,
    /// Options, a multiple of four octets.
    pub(crate) options: ArrayVec<u8, 40>,
}

impl IpHdr {
    /// What upper layers ask for.
    pub(crate) fn control(&self, non_unicast: bool) -> IpCb {
        IpCb {
            saddr: self.saddr,
            daddr: self.daddr,
            protocol: self.protocol,
            ttl: self.ttl,
            tos: self.tos,
            id: self.id,
            df: self.frag_off & DF != 0,
            hdr_len: self.len() as u8,
            non_unicast,
        }
    }

    /// Parses a header at the start of `b`, which is a copy of the first octets (up to
    /// [`MAX_LEN`]) of a packet of `frame` octets.
    ///
    /// # Errors
    /// Why the packet must be dropped.
    pub(crate) fn parse(b: &[u8], frame: u32) -> Result<Self, DropReason> {
        let len = b.first().map_or(0, |first| usize::from(first & 15) * 4);
        if b.len() < LEN || b[0] >> 4 != 4 || len < LEN || b.len() < len {
            return Err(DropReason::IpInHdr);
        }
        if fold(checksum_add(&b[..len], 0)) != 0xffff {
            return Err(DropReason::IpCsum);
        }
        let be16 = |i: usize| u16::from_be_bytes([b[i], b[i + 1]]);
        let be32 = |i: usize| u32::from_be_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let total = be16(2);
        if u32::from(total) > frame {
            return Err(DropReason::PktTooSmall);
        }
        if usize::from(total) < len {
            return Err(DropReason::IpInHdr);
        }
        let options = b[LEN..len].iter().copied().collect();
        Ok(Self { tos: b[1], total, id: be16(4), frag_off: be16(6), ttl: b[8], protocol: b[9], saddr: be32(12), daddr: be32(16), options })
    }

    /// Octets of the header.
    pub(crate) fn len(&self) -> usize {
        LEN + self.options.len()
    }

    /// Part of a datagram only.
    pub(crate) fn is_fragment(&self) -> bool {
        self.frag_off & (MF | OFFSET) != 0
    }

    /// The header's octets, checksum included.
    pub(crate) fn emit(&self) -> ArrayVec<u8, MAX_LEN> {
        let mut b = [0; MAX_LEN];
        let len = self.len();
        b[0] = 0x40 | (len / 4) as u8;
        b[1] = self.tos;
        b[2..4].copy_from_slice(&self.total.to_be_bytes());
        b[4..6].copy_from_slice(&self.id.to_be_bytes());
        b[6..8].copy_from_slice(&self.frag_off.to_be_bytes());
        b[8] = self.ttl;
        b[9] = self.protocol;
        b[12..16].copy_from_slice(&self.saddr.to_be_bytes());
        b[16..20].copy_from_slice(&self.daddr.to_be_bytes());
        b[LEN..len].copy_from_slice(&self.options);
        let check = !fold(checksum_add(&b[..len], 0));
        b[10..12].copy_from_slice(&check.to_be_bytes());
        b[..len].iter().copied().collect()
    }
}

/// What a receiver has to know of a packet's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Options {
    /// Nothing.
    Plain,
    /// The sender chose the way.
    SourceRouted,
    /// They make no sense from this octet of the header on.
    Bad(u8),
}

/// Loose and strict source route.
const SOURCE_ROUTES: [u8; 2] = [131, 137];

/// Reads the options (RFC 791 §3.1; Linux `ip_options_compile`).
pub(crate) fn options_compile(options: &[u8]) -> Options {
    let (mut at, mut routed) = (0, false);
    while let [kind, rest @ ..] = &options[at..] {
        at += match (kind, rest) {
            (0, _) => break,
            (1, _) => 1,
            (_, &[len, ..]) if len >= 2 && usize::from(len) <= rest.len() + 1 => usize::from(len),
            _ => return Options::Bad((LEN + at) as u8),
        };
        routed |= SOURCE_ROUTES.contains(kind);
    }
    if routed { Options::SourceRouted } else { Options::Plain }
}

/// Accumulator of the pseudo-header (RFC 9293 §3.1) of a transport packet of `len` octets.
pub(crate) fn pseudo_sum(saddr: u32, daddr: u32, protocol: u8, len: u32) -> u64 {
    u64::from(saddr) + u64::from(daddr) + u64::from(protocol) + u64::from(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = IpHdr> {
        let options = prop::collection::vec(any::<[u8; 4]>(), 0..=10);
        (any::<(u8, u16, u16, u8, u8, u32, u32)>(), options).prop_map(|((tos, id, frag_off, ttl, protocol, saddr, daddr), options)| {
            let options: ArrayVec<u8, 40> = options.into_iter().flatten().collect();
            let total = (LEN + options.len() + 8) as u16;
            IpHdr { tos, total, id, frag_off: frag_off & 0x7fff, ttl, protocol, saddr, daddr, options }
        })
    }

    proptest! {
        #[test]
        fn emitted_header_parses_to_itself_and_etherparse_agrees(h in header()) {
            let b = h.emit();
            prop_assert_eq!(IpHdr::parse(&b, u32::from(h.total)), Ok(h.clone()));
            let (theirs, _) = etherparse::Ipv4Header::from_slice(&b).expect("etherparse reads it");
            prop_assert_eq!(theirs.calc_header_checksum(), theirs.header_checksum);
            prop_assert_eq!(theirs.source, h.saddr.to_be_bytes());
            prop_assert_eq!(theirs.destination, h.daddr.to_be_bytes());
            prop_assert_eq!(theirs.total_len, h.total);
            prop_assert_eq!(theirs.identification, h.id);
            prop_assert_eq!(theirs.fragment_offset.value(), h.frag_off & OFFSET);
            prop_assert_eq!(theirs.more_fragments, h.frag_off & MF != 0);
            prop_assert_eq!(theirs.dont_fragment, h.frag_off & DF != 0);
            prop_assert_eq!((theirs.time_to_live, theirs.protocol.0), (h.ttl, h.protocol));
        }

        #[test]
        fn any_flipped_bit_is_noticed(h in header(), bit in 0..160usize) {
            let mut b = h.emit();
            b[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(IpHdr::parse(&b, 65535).is_err());
        }

        #[test]
        fn garbage_does_not_panic(b in prop::collection::vec(any::<u8>(), 0..80), frame: u32) {
            let _ = IpHdr::parse(&b, frame);
            options_compile(&b);
        }
    }

    #[test]
    fn malformed_options_are_noticed_where_they_begin() {
        for (options, want) in [
            (&[][..], Options::Plain),
            (&[1, 1, 7, 3, 0, 0], Options::Plain),
            (&[7], Options::Bad(20)),
            (&[7, 1, 0, 0], Options::Bad(20)),
            (&[1, 7, 5, 0], Options::Bad(21)),
            (&[1, 1, 7, 0], Options::Bad(22)),
            (&[1, 131, 3, 4], Options::SourceRouted),
            (&[137, 3, 4, 0], Options::SourceRouted),
            (&[0, 131, 3, 4], Options::Plain),
            (&[131, 3, 4, 7], Options::Bad(23)),
        ] {
            assert_eq!(options_compile(options), want, "{options:?}");
        }
    }
}
