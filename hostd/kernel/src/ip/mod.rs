//! IPv4: input, output, routing, fragments, ICMP.
pub mod route;

use crate::Kernel;
use crate::errno::Errno;
use crate::skb::SkBuff;
use crate::sock::Sock;
use alloc::boxed::Box;
use core::net::Ipv4Addr;
use route::{Flow, Route, RouteKind};

/// Addresses and routes.
#[derive(Debug, Default)]
pub struct Fib {}
/// Reassembly queues.
#[derive(Debug, Default)]
pub struct Reassembly {}
/// ICMP rate limits.
#[derive(Debug, Default)]
pub struct IcmpState {}

/// Header fields of a packet that no connected socket sends.
#[derive(Debug, Clone, Copy)]
pub struct IpOut {
    /// Source.
    pub saddr: Ipv4Addr,
    /// Destination.
    pub daddr: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
    /// Type of service.
    pub tos: u8,
    /// Time to live; `None`: the default (multicast: 1).
    pub ttl: Option<u8>,
    /// Don't Fragment.
    pub df: bool,
    /// Identification; `None`: 0 with DF, else from the per-destination counter.
    pub id: Option<u16>,
}

/// What an ICMP error quotes of the packet that caused it.
#[derive(Debug, Clone, Copy)]
pub struct IcmpError {
    /// ICMP type (3, 11, 12, 4, 5).
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Next-hop MTU or pointer.
    pub info: u32,
    /// Who sent the error.
    pub from: Ipv4Addr,
    /// Quoted source: our address.
    pub saddr: Ipv4Addr,
    /// Quoted destination.
    pub daddr: Ipv4Addr,
    /// Quoted protocol.
    pub protocol: u8,
    /// First octets of the quoted payload (ports, sequence number).
    pub payload: [u8; 8],
}

impl Kernel {
    /// Resolves a destination.
    ///
    /// # Errors
    /// `ENETUNREACH`, `EHOSTUNREACH`, `EACCES`, `EINVAL`, as `ip_route_output_key`.
    pub(crate) fn ip_route_output(&mut self, _flow: Flow) -> Result<Route, Errno> {
        Err(Errno::ENETUNREACH)
    }
    /// Changes whenever routes or addresses do: cached routes of another generation are stale.
    pub(crate) fn fib_generation(&self) -> u64 {
        0
    }
    /// What an address is to this host (Linux `inet_addr_type`).
    pub(crate) fn inet_addr_type(&self, _addr: Ipv4Addr) -> RouteKind {
        RouteKind::Unicast
    }
    /// Sends a transport segment of a connected socket: route from the socket's cache, IP header with
    /// the socket's `ip_id`, tos and ttl, DF as path MTU discovery says, then neighbour and device
    /// (Linux `ip_queue_xmit`). Needs headroom for IP, Ethernet and virtio-net headers.
    ///
    /// # Errors
    /// Those of the route; a drop in the qdisc is `ENOBUFS`.
    pub(crate) fn ip_queue_xmit(&mut self, _sk: &mut Sock, skb: Box<SkBuff>) -> Result<(), Errno> {
        self.consume_skb(skb);
        Ok(())
    }
    /// Sends a transport datagram or segment outside a connection: adds the header, fragments if needed
    /// (`EMSGSIZE` with DF).
    ///
    /// # Errors
    /// `EMSGSIZE`, `ENOBUFS`.
    pub(crate) fn ip_send_skb(&mut self, skb: Box<SkBuff>, _hdr: IpOut, _route: &Route) -> Result<(), Errno> {
        self.consume_skb(skb);
        Ok(())
    }
    /// Answers a received packet with an ICMP error, rate limited (Linux `icmp_send`). `skb` may stand at any layer:
    /// its `network_back` finds the IP header.
    pub(crate) fn icmp_send(&mut self, _skb: &SkBuff, _kind: u8, _code: u8, _info: u32) {}
}
