//! The virtio-net header: judged on receive, made on transmit (Linux `virtio_net_hdr_to_skb`, `virtio_net_hdr_from_skb`).
//!
//! The header is the peer's word. What is not consistent with the frame is refused
//! here, so that nothing further up has to doubt `csum` and `gso`.

use crate::ether::header::{self as ether, ETH_P_IP};
use crate::skb::{Checksum, Gso, SkBuff};
use ringlab_ring::vnet::{F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, VnetHdr};

/// The header contradicts the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadHeader;

/// Takes over what the header says about the frame, which stands at its Ethernet header.
pub(super) fn to_skb(hdr: &VnetHdr, skb: &mut SkBuff) -> Result<(), BadHeader> {
    if hdr.flags & F_NEEDS_CSUM != 0 {
        let (start, end) = (u32::from(hdr.csum_start), u32::from(hdr.csum_start) + u32::from(hdr.csum_offset) + 2);
        if start < ether::LEN as u32 || end > skb.len() {
            return Err(BadHeader);
        }
        skb.csum = Checksum::Partial { start: hdr.csum_start, offset: hdr.csum_offset };
    } else if hdr.flags & F_DATA_VALID != 0 {
        skb.csum = Checksum::Unnecessary;
    }
    match hdr.gso_type & !GSO_ECN {
        GSO_NONE => Ok(()),
        GSO_TCPV4 => gso_tcpv4(hdr, skb),
        _ => Err(BadHeader),
    }
}

/// A packet of several TCP segments: the frame must be one, and its checksum open.
fn gso_tcpv4(hdr: &VnetHdr, skb: &mut SkBuff) -> Result<(), BadHeader> {
    let mut b = [0; ether::LEN + 20];
    skb.copy_bits(0, &mut b).map_err(|_| BadHeader)?;
    let ip = &b[ether::LEN..];
    let ip_len = u32::from(ip[0] & 15) * 4;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    if u16::from_be_bytes([b[12], b[13]]) != ETH_P_IP || ip[0] >> 4 != 4 || ip_len < 20 || ip[9] != 6 || fragment {
        return Err(BadHeader);
    }
    let tcp = ether::LEN as u32 + ip_len;
    if skb.csum != (Checksum::Partial { start: tcp as u16, offset: 16 }) {
        return Err(BadHeader);
    }
    let mut off = [0; 1];
    skb.copy_bits(tcp + 12, &mut off).map_err(|_| BadHeader)?;
    let tcp_len = u32::from(off[0] >> 4) * 4;
    let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    let payload = total.checked_sub(ip_len + tcp_len).ok_or(BadHeader)?;
    if tcp_len < 20 || hdr.gso_size == 0 || ether::LEN as u32 + total > skb.len() {
        return Err(BadHeader);
    }
    let segs = payload.div_ceil(u32::from(hdr.gso_size));
    if segs > 1 {
        skb.gso = Some(Gso { size: hdr.gso_size, segs: segs as u16, ecn: hdr.gso_type & GSO_ECN != 0 });
    }
    Ok(())
}

/// The header for a frame that stands at its Ethernet header.
pub(super) fn from_skb(skb: &SkBuff) -> VnetHdr {
    let mut hdr = VnetHdr { num_buffers: 1, ..VnetHdr::default() };
    if let Checksum::Partial { start, offset } = skb.csum {
        hdr.flags = F_NEEDS_CSUM;
        hdr.csum_start = start;
        hdr.csum_offset = offset;
        if let Some(gso) = skb.gso {
            hdr.gso_type = GSO_TCPV4 | if gso.ecn { GSO_ECN } else { 0 };
            hdr.gso_size = gso.size;
            let mut off = [0; 1];
            if skb.copy_bits(u32::from(start) + 12, &mut off).is_ok() {
                hdr.hdr_len = start + u16::from(off[0] >> 4) * 4;
            }
        }
    }
    hdr
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlab_ring::memory::Region;
    use ringlab_ring::pool::Pool;

    fn frame(payload: usize) -> alloc::boxed::Box<SkBuff> {
        let pool = Pool::new(Region::heap(1 << 17), 0, 1 << 17);
        let mut skb = SkBuff::new();
        assert!(skb.alloc_head(&pool, 64, 8000));
        let mut b = alloc::vec![0u8; 54 + payload];
        b[12] = 8;
        b[14] = 0x45;
        b[16..18].copy_from_slice(&(40 + payload as u16).to_be_bytes());
        b[23] = 6;
        b[46] = 0x50;
        skb.put_bytes(&b);
        skb
    }

    const GSO: VnetHdr =
        VnetHdr { flags: F_NEEDS_CSUM, gso_type: GSO_TCPV4, hdr_len: 54, gso_size: 1000, csum_start: 34, csum_offset: 16, num_buffers: 1 };

    #[test]
    fn consistent_gso_header_is_taken_and_given_back() {
        let mut skb = frame(2500);
        assert_eq!(to_skb(&GSO, &mut skb), Ok(()));
        assert_eq!(skb.gso, Some(Gso { size: 1000, segs: 3, ecn: false }));
        assert_eq!(from_skb(&skb), GSO);
    }

    #[test]
    fn contradictory_headers_are_refused() {
        let bad = [
            VnetHdr { csum_start: 2600, ..GSO },
            VnetHdr { csum_start: 65535, csum_offset: 65535, ..GSO },
            VnetHdr { csum_start: 3, gso_type: 0, ..GSO },
            VnetHdr { gso_size: 0, ..GSO },
            VnetHdr { gso_type: 4, ..GSO },
            VnetHdr { flags: 0, ..GSO },
            VnetHdr { csum_offset: 6, ..GSO },
            VnetHdr { csum_start: 38, ..GSO },
        ];
        for hdr in bad {
            assert_eq!(to_skb(&hdr, &mut frame(2500)), Err(BadHeader), "{hdr:?}");
        }
        let mut not_tcp = frame(2500);
        not_tcp.store_bits(23, &[17]).expect("inside");
        assert_eq!(to_skb(&GSO, &mut not_tcp), Err(BadHeader));
        let mut long = frame(2500);
        long.store_bits(16, &[0xff, 0xff]).expect("inside");
        assert_eq!(to_skb(&GSO, &mut long), Err(BadHeader));
    }
}
