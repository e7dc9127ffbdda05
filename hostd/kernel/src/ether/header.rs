//! The Ethernet II header.

use crate::dev::net_device::MacAddr;

/// Octets of the header.
pub(crate) const LEN: usize = 14;
/// EtherType of IPv4.
pub(crate) const ETH_P_IP: u16 = 0x0800;
/// EtherType of ARP.
pub(crate) const ETH_P_ARP: u16 = 0x0806;
/// The broadcast address.
pub(crate) const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// A header, in host representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EtherHdr {
    pub(crate) dst: MacAddr,
    pub(crate) src: MacAddr,
    pub(crate) protocol: u16,
}

impl EtherHdr {
    pub(crate) fn parse(b: &[u8; LEN]) -> Self {
        let mac = |i: usize| MacAddr([b[i], b[i + 1], b[i + 2], b[i + 3], b[i + 4], b[i + 5]]);
        Self { dst: mac(0), src: mac(6), protocol: u16::from_be_bytes([b[12], b[13]]) }
    }

    pub(crate) fn emit(&self) -> [u8; LEN] {
        let mut b = [0; LEN];
        b[..6].copy_from_slice(&self.dst.0);
        b[6..12].copy_from_slice(&self.src.0);
        b[12..].copy_from_slice(&self.protocol.to_be_bytes());
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn etherparse_agrees(b: [u8; LEN]) {
            let ours = EtherHdr::parse(&b);
            prop_assert_eq!(ours.emit(), b);
            let theirs = etherparse::Ethernet2Header::from_bytes(b);
            prop_assert_eq!(ours.dst.0, theirs.destination);
            prop_assert_eq!(ours.src.0, theirs.source);
            prop_assert_eq!(ours.protocol, theirs.ether_type.0);
        }
    }
}
