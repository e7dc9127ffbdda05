//! What a NIC reads of a frame: its headers, on a private copy.
//!
//! The octets of a frame lie in memory that its sender may change at any moment.
//! [`FrameView`] copies the first [`HEADER_MAX`] of them once and parses the copy;
//! whatever is decided (queue, bridge port, segmentation) is decided on that copy.
//! The view is lenient: it reports what it can read, `None` where it cannot, and
//! leaves judgement (IP checksum, lengths) to the kernel; what an offload needs is
//! checked by [`crate::offload`].

use crate::gather::Cursor;
use core::fmt;
use ringlab_ring::memory::Slice;

/// Octets that are copied at most: Ethernet with two tags (22), IPv4 (60) and TCP
/// (60) with all options are 142.
pub const HEADER_MAX: usize = 192;
/// Octets of an untagged Ethernet header.
pub const ETHER_LEN: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
/// Tags that are skipped: one of the customer, one of the provider (IEEE 802.1Q).
const MAX_TAGS: usize = 2;

/// A frame shorter than its Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of {0} octets is shorter than an Ethernet header")]
pub struct Runt(pub usize);

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// True for group addresses, broadcast among them (the I/G bit).
    #[inline]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// True for 00:00:00:00:00:00, which no station has.
    #[inline]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// True for 01:80:c2:00:00:00 to 0f, which no bridge forwards (IEEE 802.1D-2004 §7.12.6).
    #[inline]
    pub fn is_bridge_reserved(self) -> bool {
        self.0[..5] == [0x01, 0x80, 0xc2, 0x00, 0x00] && self.0[5] <= 0x0f
    }

    /// The address as a number, for hashing and ordering.
    #[inline]
    pub fn to_bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The headers of one frame.
#[derive(Clone)]
pub struct FrameView {
    bytes: [u8; HEADER_MAX],
    copied: usize,
    len: usize,
    ethertype: u16,
    vlan: Option<u16>,
    l3: usize,
    ipv4: Option<Ipv4View>,
}

/// The fields of an IPv4 header that a NIC looks at (RFC 791 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4View {
    /// Octets of the header, 20 to 60.
    pub header_len: u8,
    /// Octets of the datagram, as the header says.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// More-fragments flag or a fragment offset above 0.
    pub fragment: bool,
    /// Protocol number.
    pub protocol: u8,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Source and destination port of TCP and UDP, unless it is a fragment or cut short.
    pub ports: Option<(u16, u16)>,
}

impl FrameView {
    /// A view without a frame, to be loaded: one per queue serves all its frames.
    pub const fn empty() -> Self {
        Self { bytes: [0; HEADER_MAX], copied: 0, len: 0, ethertype: 0, vlan: None, l3: ETHER_LEN, ipv4: None }
    }

    /// Copies and parses the headers of the frame that lies in `fragments`.
    ///
    /// # Errors
    /// [`Runt`] if it is shorter than 14 octets.
    pub fn read(fragments: &[Slice<'_>]) -> Result<Self, Runt> {
        let mut view = Self::empty();
        view.load(fragments)?;
        Ok(view)
    }

    /// As [`Self::read`], into an existing view.
    ///
    /// # Errors
    /// [`Runt`], with the view left empty.
    pub fn load(&mut self, fragments: &[Slice<'_>]) -> Result<(), Runt> {
        let copied = Cursor::new(fragments).read(&mut self.bytes);
        self.parse(copied, crate::gather::octets(fragments))
    }

    /// As [`Self::load`], for a frame in private memory.
    ///
    /// # Errors
    /// [`Runt`], with the view left empty.
    pub fn load_bytes(&mut self, frame: &[u8]) -> Result<(), Runt> {
        let copied = frame.len().min(HEADER_MAX);
        self.bytes[..copied].copy_from_slice(&frame[..copied]);
        self.parse(copied, frame.len())
    }

    /// Octets of the frame, without FCS.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no frame is loaded.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> Mac {
        Mac(self.array(0))
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> Mac {
        Mac(self.array(6))
    }

    /// EtherType behind the tags; values below 0x600 are lengths (IEEE 802.3).
    #[inline]
    pub fn ethertype(&self) -> u16 {
        self.ethertype
    }

    /// Tag control information of the outermost tag.
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        self.vlan
    }

    /// Offset of the layer-3 header.
    #[inline]
    pub fn l3_offset(&self) -> usize {
        self.l3
    }

    /// The IPv4 header, if that is what follows and it is whole.
    #[inline]
    pub fn ipv4(&self) -> Option<&Ipv4View> {
        self.ipv4.as_ref()
    }

    /// The octets that were copied: the frame's first 192, or all.
    #[inline]
    pub fn header(&self) -> &[u8] {
        &self.bytes[..self.copied]
    }

    fn parse(&mut self, copied: usize, len: usize) -> Result<(), Runt> {
        (self.copied, self.len, self.vlan, self.ipv4, self.l3) = (copied, len, None, None, ETHER_LEN);
        if copied < ETHER_LEN {
            (self.copied, self.len, self.ethertype) = (0, 0, 0);
            return Err(Runt(len));
        }
        self.ethertype = self.word(12);
        for _ in 0..MAX_TAGS {
            let tagged = matches!(self.ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) && copied >= self.l3 + 4;
            if !tagged {
                break;
            }
            let tci = self.word(self.l3);
            self.vlan.get_or_insert(tci);
            self.ethertype = self.word(self.l3 + 2);
            self.l3 += 4;
        }
        if self.ethertype == ETHERTYPE_IPV4 {
            self.ipv4 = self.parse_ipv4();
        }
        Ok(())
    }

    fn parse_ipv4(&self) -> Option<Ipv4View> {
        let l3 = self.l3;
        if self.copied < l3 + 20 || self.bytes[l3] >> 4 != 4 {
            return None;
        }
        let header_len = (self.bytes[l3] & 0x0f) * 4;
        let l4 = l3 + usize::from(header_len);
        if header_len < 20 || self.copied < l4 {
            return None;
        }
        let fragment = self.word(l3 + 6) & 0x3fff != 0; // MF and offset; not DF
        let protocol = self.bytes[l3 + 9];
        let has_ports = !fragment && matches!(protocol, PROTO_TCP | PROTO_UDP) && self.copied >= l4 + 4;
        Some(Ipv4View {
            header_len,
            total_len: self.word(l3 + 2),
            id: self.word(l3 + 4),
            fragment,
            protocol,
            src: self.array(l3 + 12),
            dst: self.array(l3 + 16),
            ports: has_ports.then(|| (self.word(l4), self.word(l4 + 2))),
        })
    }

    #[inline]
    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    #[inline]
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut a = [0; N];
        a.copy_from_slice(&self.bytes[at..at + N]);
        a
    }
}

impl fmt::Debug for FrameView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut d = f.debug_struct("FrameView");
        d.field("dst", &self.dst()).field("src", &self.src()).field("len", &self.len);
        d.field("ethertype", &format_args!("{:#06x}", self.ethertype)).field("vlan", &self.vlan).field("ipv4", &self.ipv4).finish()
    }
}

#[cfg(test)]
mod tests;
