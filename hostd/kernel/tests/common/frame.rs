//! A frame on a virtual link, and what a test asks of it.

use ringlab_kernel::dev::net_device::MacAddr;
use ringlab_ring::memory::{checksum_add, fold};
use ringlab_ring::vnet::VnetHdr;
use std::net::Ipv4Addr;

/// A frame with its virtio-net header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub hdr: VnetHdr,
    pub bytes: Vec<u8>,
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Self { hdr: VnetHdr { num_buffers: 1, ..VnetHdr::default() }, bytes }
    }
}

impl Frame {
    fn be16(&self, i: usize) -> u16 {
        match self.bytes.get(i..i + 2) {
            Some(b) => u16::from_be_bytes([b[0], b[1]]),
            None => 0,
        }
    }

    fn be32(&self, i: usize) -> u32 {
        u32::from(self.be16(i)) << 16 | u32::from(self.be16(i + 2))
    }

    fn at(&self, i: usize) -> u8 {
        self.bytes.get(i).copied().unwrap_or(0)
    }

    pub fn dst(&self) -> MacAddr {
        MacAddr(self.bytes[..6].try_into().expect("six octets"))
    }

    pub fn src(&self) -> MacAddr {
        MacAddr(self.bytes[6..12].try_into().expect("six octets"))
    }

    pub fn ethertype(&self) -> u16 {
        self.be16(12)
    }

    pub fn is_arp(&self) -> bool {
        self.ethertype() == 0x0806
    }

    /// 1: request, 2: reply; 0: no ARP.
    pub fn arp_op(&self) -> u16 {
        if self.is_arp() { self.be16(20) } else { 0 }
    }

    pub fn is_ip(&self) -> bool {
        self.ethertype() == 0x0800
    }

    /// Protocol number; 255 if it is not IPv4.
    pub fn protocol(&self) -> u8 {
        if self.is_ip() { self.at(23) } else { 255 }
    }

    pub fn saddr(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.be32(26))
    }

    pub fn daddr(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.be32(30))
    }

    pub fn tos(&self) -> u8 {
        self.at(15)
    }

    pub fn ip_len(&self) -> u16 {
        self.be16(16)
    }

    pub fn ip_id(&self) -> u16 {
        self.be16(18)
    }

    pub fn df(&self) -> bool {
        self.be16(20) & 0x4000 != 0
    }

    pub fn more_fragments(&self) -> bool {
        self.be16(20) & 0x2000 != 0
    }

    /// Fragment offset, octets.
    pub fn frag_offset(&self) -> usize {
        usize::from(self.be16(20) & 0x1fff) * 8
    }

    pub fn ttl(&self) -> u8 {
        self.at(22)
    }

    /// Where the transport header starts.
    pub fn transport(&self) -> usize {
        14 + usize::from(self.at(14) & 15) * 4
    }

    pub fn is_tcp(&self) -> bool {
        self.protocol() == 6
    }

    pub fn is_udp(&self) -> bool {
        self.protocol() == 17
    }

    pub fn is_icmp(&self) -> bool {
        self.protocol() == 1
    }

    /// ICMP type and code.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        self.is_icmp().then(|| (self.at(self.transport()), self.at(self.transport() + 1)))
    }

    pub fn sport(&self) -> u16 {
        self.be16(self.transport())
    }

    pub fn dport(&self) -> u16 {
        self.be16(self.transport() + 2)
    }

    pub fn seq(&self) -> u32 {
        self.be32(self.transport() + 4)
    }

    pub fn ack(&self) -> u32 {
        self.be32(self.transport() + 8)
    }

    pub fn window(&self) -> u16 {
        self.be16(self.transport() + 14)
    }

    /// TCP flags octet; 0 if it is not TCP.
    pub fn flags(&self) -> u8 {
        if self.is_tcp() { self.at(self.transport() + 13) } else { 0 }
    }

    pub fn is_syn(&self) -> bool {
        self.flags() & 0x12 == 0x02
    }

    pub fn is_syn_ack(&self) -> bool {
        self.flags() & 0x12 == 0x12
    }

    pub fn is_fin(&self) -> bool {
        self.flags() & 0x01 != 0
    }

    pub fn is_rst(&self) -> bool {
        self.flags() & 0x04 != 0
    }

    /// Octets of TCP options.
    pub fn tcp_options(&self) -> &[u8] {
        let (start, len) = (self.transport(), usize::from(self.at(self.transport() + 12) >> 4) * 4);
        self.bytes.get(start + 20..start + len.max(20)).unwrap_or(&[])
    }

    /// Makes the checksum of a TCP segment right.
    pub fn sum_tcp(&mut self) {
        let t = self.transport();
        self.bytes[t + 16..t + 18].fill(0);
        let len = self.bytes.len() - t;
        let pseudo = checksum_add(&self.bytes[26..34], 6 + len as u64);
        let sum = !fold(checksum_add(&self.bytes[t..], pseudo));
        self.bytes[t + 16..t + 18].copy_from_slice(&sum.to_be_bytes());
    }

    /// TCP, UDP or ICMP payload.
    pub fn payload(&self) -> &[u8] {
        let start = self.transport();
        let header = match self.protocol() {
            6 => usize::from(self.at(start + 12) >> 4) * 4,
            _ => 8,
        };
        let end = (14 + usize::from(self.ip_len())).min(self.bytes.len());
        self.bytes.get(start + header..end).unwrap_or(&[])
    }

    /// As a NIC would spread flows over its queues.
    pub fn flow_hash(&self) -> u32 {
        let ports = if self.is_tcp() || self.is_udp() { self.be32(self.transport()) } else { 0 };
        let words = if self.is_ip() { [self.be32(26), self.be32(30), ports] } else { [0; 3] };
        words.into_iter().fold(0, |h, w| (h ^ w).wrapping_mul(0x9e37_79b1).rotate_left(13))
    }
}
