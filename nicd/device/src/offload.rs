//! Transmit offloads in software: checksum completion and TCP segmentation.
//!
//! A frame comes with a [`VnetHdr`] that says what its sender left undone. The
//! header is the sender's word and may lie: [`check`] compares it with the frame's
//! own headers (a private copy, [`FrameView`]) and yields an [`Offload`], which is
//! all that the rest of the NIC works with. A frame that does not hold is dropped
//! and counted (`tx_bad_gso`), also where it would cross the wire whole: the
//! receiver must not be the first to notice.
//!
//! Where the other side cannot take an unfinished frame (plain TAP, a driver
//! without `GUEST_TSO4`, a wire with loss or rate), [`copy_whole`] completes the
//! checksum and [`Segments`] cuts, each in the one copy that is made anyway.
//!
//! Limits: TCP over IPv4 only, since no other type is negotiated. IPv6 and UDP
//! segmentation come as further variants of [`Offload`].

use crate::frame::{ETHER_LEN, FrameView, HEADER_MAX, PROTO_TCP};
use crate::gather::{Checksum, Cursor, octets};
use ringlab_ring::memory::Slice;
use ringlab_ring::vnet::{F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, VnetHdr};

/// Payload octets of the smallest segment that is cut (Linux `TCP_MIN_GSO_SIZE`): bounds
/// what one frame can be blown up to.
pub const MIN_GSO_SIZE: u16 = 8;

const TCP_LEN: usize = 20;
const TCP_CSUM: usize = 16;
const UDP_CSUM: usize = 6;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// What is to be done to a frame before it is complete. Checked against the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// Its checksum is to be completed.
    Csum(Csum),
    /// It is to be cut into TCP segments.
    Tso(Tso),
}

/// A checksum to complete. The field holds the sum of the pseudo-header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Csum {
    start: u16,
    offset: u16,
}

/// A TCP segmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tso {
    l3: u16,
    l4: u16,
    header_len: u16,
    gso_size: u16,
    ecn: bool,
    payload: u32,
}

/// What is wrong with a frame's offload request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadGso {
    /// A type that was not negotiated.
    #[error("GSO type {0:#04x} was not negotiated")]
    Type(u8),
    /// Segments below [`MIN_GSO_SIZE`].
    #[error("segments of {0} octets are too small")]
    Size(u16),
    /// The checksum field does not lie in the frame.
    #[error("checksum at {start}+{offset} lies outside the frame of {len} octets")]
    CsumOutside {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Octets of the frame.
        len: usize,
    },
    /// Segmentation without checksum offload, or with one that is not TCP's (virtio 1.2 §5.1.6.2.1).
    #[error("checksum request does not match the TCP header")]
    CsumPlace,
    /// Not an unfragmented TCP segment over IPv4.
    #[error("not a TCP segment over IPv4")]
    NotTcp4,
    /// IP or TCP header longer than the frame, or IP's length not the frame's.
    #[error("header lengths do not match the frame")]
    Length,
    /// SYN or RST, which nobody sends in more than one segment.
    #[error("TCP flags {0:#04x} cannot be segmented")]
    Flags(u8),
}

/// Destination shorter than what is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("destination holds {have} octets, {need} are needed")]
pub struct NoRoom {
    /// Octets to write.
    pub need: usize,
    /// Octets of the destination.
    pub have: usize,
}

/// Checks what the sender asks for against the frame.
///
/// # Errors
/// [`BadGso`]: the frame is to be dropped.
pub fn check(hdr: &VnetHdr, frame: &FrameView) -> Result<Offload, BadGso> {
    let csum = check_csum(hdr, frame.len())?;
    match (hdr.gso_type & !GSO_ECN, csum) {
        (GSO_NONE, None) => Ok(Offload::None),
        (GSO_NONE, Some(csum)) => Ok(Offload::Csum(csum)),
        (GSO_TCPV4, Some(csum)) => check_tso(hdr, csum, frame).map(Offload::Tso),
        (GSO_TCPV4, None) => Err(BadGso::CsumPlace),
        _ => Err(BadGso::Type(hdr.gso_type)),
    }
}

fn check_csum(hdr: &VnetHdr, len: usize) -> Result<Option<Csum>, BadGso> {
    if hdr.flags & F_NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let (start, offset) = (hdr.csum_start, hdr.csum_offset);
    let end = usize::from(start) + usize::from(offset) + 2;
    if usize::from(start) < ETHER_LEN || end > len {
        return Err(BadGso::CsumOutside { start, offset, len });
    }
    Ok(Some(Csum { start, offset }))
}

fn check_tso(hdr: &VnetHdr, csum: Csum, frame: &FrameView) -> Result<Tso, BadGso> {
    if hdr.gso_size < MIN_GSO_SIZE {
        return Err(BadGso::Size(hdr.gso_size));
    }
    let ip = frame.ipv4().filter(|ip| ip.protocol == PROTO_TCP && !ip.fragment).ok_or(BadGso::NotTcp4)?;
    let l3 = frame.l3_offset();
    let l4 = l3 + usize::from(ip.header_len);
    let tcp = frame.header().get(l4..).filter(|tcp| tcp.len() >= TCP_LEN).ok_or(BadGso::Length)?;
    let tcp_len = usize::from(tcp[12] >> 4) * 4;
    if tcp_len < TCP_LEN || tcp_len > tcp.len() || l3 + usize::from(ip.total_len) != frame.len() {
        return Err(BadGso::Length);
    }
    if usize::from(csum.start) != l4 || usize::from(csum.offset) != TCP_CSUM {
        return Err(BadGso::CsumPlace);
    }
    if tcp[13] & (SYN | RST) != 0 {
        return Err(BadGso::Flags(tcp[13]));
    }
    let header_len = l4 + tcp_len;
    Ok(Tso {
        l3: l3 as u16, // all within HEADER_MAX
        l4: l4 as u16,
        header_len: header_len as u16,
        gso_size: hdr.gso_size,
        ecn: hdr.gso_type & GSO_ECN != 0,
        payload: (frame.len() - header_len) as u32, // total_len is a u16
    })
}

impl Offload {
    /// Frames that it becomes on the wire.
    #[inline]
    pub fn segments(&self) -> u32 {
        match self {
            Offload::Tso(tso) => tso.segments(),
            _ => 1,
        }
    }

    /// The header under which the frame, still whole and unfinished, goes to a
    /// receiver that negotiated it. Nothing of the sender's that was not checked is in it.
    pub fn to_vnet(&self) -> VnetHdr {
        let base = VnetHdr { num_buffers: 1, ..VnetHdr::default() };
        match *self {
            Offload::None => base,
            Offload::Csum(Csum { start, offset }) => VnetHdr { flags: F_NEEDS_CSUM, csum_start: start, csum_offset: offset, ..base },
            Offload::Tso(tso) => VnetHdr {
                flags: F_NEEDS_CSUM,
                gso_type: GSO_TCPV4 | if tso.ecn { GSO_ECN } else { 0 },
                hdr_len: tso.header_len,
                gso_size: tso.gso_size,
                csum_start: tso.l4,
                csum_offset: TCP_CSUM as u16,
                ..base
            },
        }
    }
}

impl Tso {
    /// Segments, at least 1.
    #[inline]
    pub fn segments(&self) -> u32 {
        self.payload.div_ceil(u32::from(self.gso_size)).max(1)
    }

    /// Octets of headers of each segment.
    pub fn header_len(&self) -> usize {
        usize::from(self.header_len)
    }

    /// Octets of segment `n`, headers included; the first is the largest.
    #[inline]
    pub fn segment_len(&self, n: u32) -> usize {
        self.header_len() + self.payload_of(n)
    }

    fn payload_of(&self, n: u32) -> usize {
        let gso_size = u32::from(self.gso_size);
        self.payload.saturating_sub(n.saturating_mul(gso_size)).min(gso_size) as usize
    }
}

impl Csum {
    /// Offset in the frame from which octets are summed.
    pub fn start(&self) -> usize {
        usize::from(self.start)
    }

    /// Offset in the frame at which the checksum stands.
    pub fn at(&self) -> usize {
        usize::from(self.start) + usize::from(self.offset)
    }

    /// RFC 768: a UDP checksum that comes out as 0 is sent as its other zero.
    fn value(&self, sum: Checksum) -> u16 {
        match sum.finish() {
            0 if usize::from(self.offset) == UDP_CSUM => 0xffff,
            value => value,
        }
    }

    /// Completes the checksum of a frame that lies in memory of our own.
    pub fn complete(&self, frame: &[Slice<'_>]) {
        let mut sum = Checksum::default();
        let mut cursor = Cursor::new(frame);
        cursor.skip(self.start());
        cursor.sum(usize::MAX, &mut sum);
        self.store(frame, sum);
    }

    fn store(&self, frame: &[Slice<'_>], sum: Checksum) {
        let mut field = Cursor::new(frame);
        field.skip(self.at());
        field.write(&self.value(sum).to_be_bytes());
    }
}

/// Copies a frame that is not to be cut to `dst`, completing its checksum if asked.
/// Returns the octets written.
///
/// # Errors
/// [`NoRoom`], with nothing written.
pub fn copy_whole(frame: &[Slice<'_>], csum: Option<Csum>, dst: &[Slice<'_>]) -> Result<usize, NoRoom> {
    let (need, have) = (octets(frame), octets(dst));
    if have < need {
        return Err(NoRoom { need, have });
    }
    let (mut from, mut to) = (Cursor::new(frame), Cursor::new(dst));
    let Some(csum) = csum else { return Ok(from.copy_to(&mut to, need)) };
    let mut sum = Checksum::default();
    from.copy_to(&mut to, csum.start());
    from.copy_sum_to(&mut to, need.saturating_sub(csum.start()), &mut sum);
    csum.store(dst, sum);
    Ok(need)
}

/// Cuts one frame into its segments, each complete, with its own headers and checksums.
///
/// As Linux `tcp_gso_segment` and `inet_gso_segment`: sequence number and IP
/// identification count up, FIN and PSH go with the last segment, CWR with the first.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    tso: Tso,
    header: [u8; HEADER_MAX],
    payload: Cursor<'a>,
    next: u32,
    id: u16,
    seq: u32,
    flags: u8,
}

impl<'a> Segments<'a> {
    /// Before the first segment of the frame that lies in `fragments`; `tso` is what
    /// [`check`] said of `view`.
    ///
    /// # Panics
    /// If `view` was not read from `fragments`.
    pub fn new(tso: Tso, view: &FrameView, fragments: &'a [Slice<'a>]) -> Self {
        assert_eq!(octets(fragments), tso.header_len() + tso.payload as usize, "segmentation belongs to its frame");
        let mut payload = Cursor::new(fragments);
        payload.skip(tso.header_len());
        let mut header = [0; HEADER_MAX];
        header[..view.header().len()].copy_from_slice(view.header());
        let (l3, l4) = (usize::from(tso.l3), usize::from(tso.l4));
        let id = u16::from_be_bytes([header[l3 + 4], header[l3 + 5]]);
        let seq = u32::from_be_bytes([header[l4 + 4], header[l4 + 5], header[l4 + 6], header[l4 + 7]]);
        Self { tso, header, payload, next: 0, id, seq, flags: header[l4 + 13] }
    }

    /// Segments still to be emitted.
    pub fn remaining(&self) -> u32 {
        self.tso.segments() - self.next
    }

    /// Octets of the next segment; `None` after the last.
    #[inline]
    pub fn next_len(&self) -> Option<usize> {
        (self.remaining() > 0).then(|| self.tso.segment_len(self.next))
    }

    /// Writes the next segment to `dst`; returns its octets, `None` after the last.
    ///
    /// # Errors
    /// [`NoRoom`], with nothing written and the segment still to be emitted.
    pub fn emit(&mut self, dst: &[Slice<'_>]) -> Result<Option<usize>, NoRoom> {
        let Some(need) = self.next_len() else { return Ok(None) };
        let have = octets(dst);
        if have < need {
            return Err(NoRoom { need, have });
        }
        let header_len = self.tso.header_len();
        let len = need - header_len;
        let mut sum = Checksum::default();
        let mut to = Cursor::new(dst);
        to.skip(header_len);
        self.payload.copy_sum_to(&mut to, len, &mut sum);
        self.patch(len, sum);
        Cursor::new(dst).write(&self.header[..header_len]);
        self.next += 1;
        Ok(Some(need))
    }

    /// Writes the fields of the present segment, of `len` payload octets that sum to
    /// `payload`, into the header.
    fn patch(&mut self, len: usize, payload: Checksum) {
        let (l3, l4, end) = (usize::from(self.tso.l3), usize::from(self.tso.l4), self.tso.header_len());
        let first = self.next == 0;
        let last = self.remaining() == 1;
        let mut flags = self.flags;
        if !first {
            flags &= !CWR;
        }
        if !last {
            flags &= !(FIN | PSH);
        }
        let seq = self.seq.wrapping_add(self.next * u32::from(self.tso.gso_size));
        let id = self.id.wrapping_add(self.next as u16); // modulo 2^16, as the field
        let (ip, tcp) = self.header[l3..end].split_at_mut(l4 - l3);
        let tcp_len = (tcp.len() + len) as u16; // at most the frame's IP length, a u16

        let total_len = ip.len() as u16 + tcp_len;
        ip[2..4].copy_from_slice(&total_len.to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[10..12].fill(0);
        let mut sum = Checksum::default();
        sum.add(ip);
        ip[10..12].copy_from_slice(&sum.finish().to_be_bytes());

        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[13] = flags;
        tcp[TCP_CSUM..TCP_CSUM + 2].fill(0);
        // Headers are of even length, so the payload's sum stands as it was taken.
        let mut sum = payload;
        sum.pad();
        sum.add(tcp);
        sum.add(&ip[12..20]); // pseudo-header, RFC 9293 §3.1
        sum.add_word(u16::from(PROTO_TCP));
        sum.add_word(tcp_len);
        tcp[TCP_CSUM..TCP_CSUM + 2].copy_from_slice(&sum.finish().to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
