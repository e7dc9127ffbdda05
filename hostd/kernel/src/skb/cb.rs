//! What the layers note about a packet (Linux `skb->cb`, `ip_summed`, `pkt_type`, GSO fields).

use crate::tcp::seq::SeqNum;
use crate::time::Instant;

/// How far the transport checksum has been dealt with (Linux `ip_summed`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Receive: to be verified. Transmit: complete in the packet (`CHECKSUM_NONE`).
    #[default]
    None,
    /// Receive: the device, or a peer on the same wire, vouches for it (`CHECKSUM_UNNECESSARY`).
    Unnecessary,
    /// Transmit: the device completes it from `start` to the end and stores it at `start + offset`; the field holds the pseudo-header sum (`CHECKSUM_PARTIAL`).
    Partial {
        /// Receive: from the network header. Transmit: from the start of the current data; IP and
        /// Ethernet move it when they push their headers (`SkBuff::shift_csum`).
        start: u16,
        /// From `start`.
        offset: u16,
    },
}

/// A packet of several segments (Linux `skb_shared_info` GSO fields), TCP over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Octets of payload a segment.
    pub size: u16,
    /// Segments.
    pub segs: u16,
    /// The last segment carries CWR on the first segment only (`SKB_GSO_TCP_ECN`).
    pub ecn: bool,
}

/// To whom the link-layer address is addressed (Linux `PACKET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PacketType {
    /// Us.
    #[default]
    Host,
    /// All.
    Broadcast,
    /// A group.
    Multicast,
    /// Somebody else.
    OtherHost,
    /// Sent by us.
    Outgoing,
    /// Sent by us to all or to a group, and looped back.
    Loopback,
}

/// What IP found in the header (Linux `IPCB` plus the header fields that upper layers ask for).
#[derive(Debug, Clone, Copy, Default)]
pub struct IpCb {
    /// Source address, host order.
    pub saddr: u32,
    /// Destination address, host order.
    pub daddr: u32,
    /// Protocol number.
    pub protocol: u8,
    /// Time to live as received.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't Fragment was set.
    pub df: bool,
    /// Octets of the IP header.
    pub hdr_len: u8,
    /// The route says local broadcast or multicast.
    pub non_unicast: bool,
}

/// What TCP found in the header, or is about to put there (Linux `TCP_SKB_CB`).
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpCb {
    /// First sequence number.
    pub seq: SeqNum,
    /// Sequence number after the last octet, SYN and FIN counted.
    pub end_seq: SeqNum,
    /// Acknowledgement number.
    pub ack_seq: SeqNum,
    /// Flags octet (FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128).
    pub flags: u8,
    /// Retransmit-queue marks (Linux `sacked`): meaning belongs to `tcp`.
    pub sacked: u8,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Window field as received (not scaled).
    pub window: u16,
    /// Octets of the TCP header.
    pub hdr_len: u8,
    /// Timestamp value and echo, if the option is there.
    pub ts: Option<(u32, u32)>,
    /// When last sent, for RTT and RACK.
    pub sent_at: Instant,
    /// Number of the last copy handed down, of all copies of its connection (`copies` of `TcpSock::total`).
    pub copy_no: u32,
    /// `tcp_sock.delivered` when sent, for rate samples.
    pub delivered: u32,
    /// `delivered_mstamp` when sent.
    pub delivered_at: Instant,
    /// `first_tx_mstamp` when sent.
    pub first_sent_at: Instant,
    /// Sender had no more data when this was sent.
    pub app_limited: bool,
    /// Urgent pointer as received.
    pub urg: u16,
}
