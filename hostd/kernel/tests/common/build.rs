//! Frames as somebody on the wire would make them, by `etherparse`.

use super::{Frame, TEST_MAC};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, PacketBuilder};
use ringlab_kernel::dev::net_device::MacAddr;
use ringlab_ring::memory::{checksum_add, fold};
use std::net::Ipv4Addr;

/// Who sends to whom, from [`TEST_MAC`].
#[derive(Debug, Clone, Copy)]
pub struct Path {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub dst_mac: MacAddr,
}

impl Path {
    /// May be cut on the way: `etherparse` sets DF.
    fn without_df(mut bytes: Vec<u8>) -> Frame {
        bytes[20] &= !0x40;
        bytes[24..26].fill(0);
        let sum = !fold(checksum_add(&bytes[14..34], 0));
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes.into()
    }

    /// An echo request.
    pub fn echo(&self, id: u16, seq: u16, payload: &[u8]) -> Frame {
        let b = PacketBuilder::ethernet2(TEST_MAC.0, self.dst_mac.0).ipv4(self.src.octets(), self.dst.octets(), 64);
        let mut bytes = Vec::new();
        b.icmpv4_echo_request(id, seq).write(&mut bytes, payload).expect("memory");
        Self::without_df(bytes)
    }

    /// A datagram.
    pub fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Frame {
        let b = PacketBuilder::ethernet2(TEST_MAC.0, self.dst_mac.0).ipv4(self.src.octets(), self.dst.octets(), 64);
        let mut bytes = Vec::new();
        b.udp(sport, dport).write(&mut bytes, payload).expect("memory");
        Self::without_df(bytes)
    }

    /// A segment from port 1000 to 2000 with ACK, as one of a stream of which this has number `id`.
    pub fn tcp(&self, id: u16, seq: u32, push: bool, payload: &[u8]) -> Frame {
        let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, self.src.octets(), self.dst.octets()).expect("short");
        ip.identification = id;
        ip.dont_fragment = true;
        let ip = etherparse::IpHeaders::Ipv4(ip, Default::default());
        let mut b = PacketBuilder::ethernet2(TEST_MAC.0, self.dst_mac.0).ip(ip).tcp(1000, 2000, seq, 512).ack(77);
        if push {
            b = b.psh();
        }
        let mut bytes = Vec::new();
        b.write(&mut bytes, payload).expect("memory");
        bytes.into()
    }

    /// A piece of a datagram: `payload` is what belongs at `offset`.
    pub fn fragment(&self, id: u16, protocol: u8, offset: u16, more: bool, payload: &[u8]) -> Frame {
        let len = payload.len() as u16;
        let mut ip = Ipv4Header::new(len, 64, IpNumber(protocol), self.src.octets(), self.dst.octets()).expect("short");
        ip.identification = id;
        ip.more_fragments = more;
        ip.fragment_offset = IpFragOffset::try_new(offset / 8).expect("13 bits");
        ip.header_checksum = ip.calc_header_checksum();
        let mut bytes = [self.dst_mac.0, TEST_MAC.0].concat();
        bytes.extend([8, 0]);
        ip.write(&mut bytes).expect("memory");
        bytes.extend(payload);
        bytes.into()
    }

    /// Answers the ARP request in `asked` as the destination of it.
    pub fn arp_reply(asked: &Frame) -> Frame {
        let mut b = asked.bytes.clone();
        b.copy_within(6..12, 0);
        b[6..12].copy_from_slice(&TEST_MAC.0);
        b[21] = 2;
        let (asker, target): (Vec<u8>, Vec<u8>) = (b[22..32].to_vec(), b[38..42].to_vec());
        b[22..28].copy_from_slice(&TEST_MAC.0);
        b[28..32].copy_from_slice(&target);
        b[32..42].copy_from_slice(&asker);
        b.into()
    }
}
