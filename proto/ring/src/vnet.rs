//! `virtio_net_hdr_v1`: the twelve octets before each frame (virtio 1.2 §5.1.6).

/// Octets of the header on the ring.
pub const VNET_HDR_LEN: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum from `csum_start` is to be completed.
pub const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum has been verified.
pub const F_DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`: ORed to the type when the segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header, in host representation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// `F_*` bits.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Octets of all headers before the payload; a hint only.
    pub hdr_len: u16,
    /// Octets of payload of each segment (the MSS).
    pub gso_size: u16,
    /// Offset in the frame from which the checksum is computed.
    pub csum_start: u16,
    /// Offset from `csum_start` at which it is stored.
    pub csum_offset: u16,
    /// Buffers that hold the frame (mergeable receive buffers); 1 without merging.
    pub num_buffers: u16,
}

impl VnetHdr {
    /// Parses the little-endian header.
    pub fn parse(b: &[u8; VNET_HDR_LEN]) -> Self {
        let le = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        Self { flags: b[0], gso_type: b[1], hdr_len: le(2), gso_size: le(4), csum_start: le(6), csum_offset: le(8), num_buffers: le(10) }
    }

    /// Emits the little-endian header.
    pub fn emit(&self) -> [u8; VNET_HDR_LEN] {
        let mut b = [0; VNET_HDR_LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        for (i, v) in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers].into_iter().enumerate() {
            b[2 + 2 * i..4 + 2 * i].copy_from_slice(&v.to_le_bytes());
        }
        b
    }

    /// True if the frame must be cut into segments of `gso_size`.
    pub fn is_gso(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }
}
