//! The UDP header (RFC 768).

/// Octets of the header.
pub const UDP_HLEN: u32 = 8;

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHdr {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Octets of header and payload.
    pub len: u16,
    /// Checksum; 0: none.
    pub csum: u16,
}

impl UdpHdr {
    /// Reads the header.
    pub fn parse(b: &[u8; UDP_HLEN as usize]) -> Self {
        let be = |i: usize| u16::from_be_bytes([b[i], b[i + 1]]);
        Self { sport: be(0), dport: be(2), len: be(4), csum: be(6) }
    }

    /// Writes the header.
    pub fn emit(&self) -> [u8; UDP_HLEN as usize] {
        let mut b = [0; UDP_HLEN as usize];
        for (i, v) in [self.sport, self.dport, self.len, self.csum].into_iter().enumerate() {
            b[2 * i..2 * i + 2].copy_from_slice(&v.to_be_bytes());
        }
        b
    }

    /// Sum of the header without its checksum, not folded.
    pub fn sum(&self) -> u64 {
        u64::from(self.sport) + u64::from(self.dport) + u64::from(self.len)
    }
}

/// Sum of the pseudo-header (RFC 768), not folded.
pub fn pseudo_sum(saddr: u32, daddr: u32, protocol: u8, len: u32) -> u64 {
    u64::from(saddr) + u64::from(daddr) + u64::from(protocol) + u64::from(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::UdpHeader;
    use proptest::prelude::*;
    use ringlab_ring::memory::{checksum_add, fold};

    proptest! {
        #[test]
        fn header_and_checksum_agree_with_a_foreign_parser(sport: u16, dport: u16, src: [u8; 4], dst: [u8; 4], payload: Vec<u8>) {
            let oracle = UdpHeader::with_ipv4_checksum(sport, dport, &etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, src, dst).unwrap(), &payload).unwrap();
            let len = UDP_HLEN + payload.len() as u32;
            let mut hdr = UdpHdr { sport, dport, len: len as u16, csum: 0 };
            let sum = pseudo_sum(u32::from_be_bytes(src), u32::from_be_bytes(dst), 17, len) + hdr.sum();
            hdr.csum = match !fold(checksum_add(&payload, sum)) {
                0 => 0xffff,
                n => n,
            };
            prop_assert_eq!(hdr.emit(), oracle.to_bytes());
            prop_assert_eq!(UdpHdr::parse(&hdr.emit()), hdr);
        }
    }
    use alloc::vec::Vec;
}
