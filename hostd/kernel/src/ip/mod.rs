//! IPv4: input, output, routing, fragments, ICMP.
//!
//! Receive: `input.rs` validates (on a copy of the header), passes the hook points,
//! routes, and delivers (`frag.rs` first, if it is a piece) or forwards (`forward.rs`).
//! Transmit: `output.rs` makes the header, cuts what is too long, and hands to the
//! neighbour layer. `icmp.rs` answers and complains, `icmp_error.rs` tells the protocols of the complaints of others.
pub(crate) mod devconf;
mod devinet;
mod fib_table;
mod forward;
mod frag;
pub(crate) mod header;
pub(crate) mod icmp;
mod icmp_error;
mod ifaddr;
pub(crate) mod igmp;
mod input;
mod output;
pub mod route;

pub use frag::Reassembly;
pub use icmp::IcmpState;
pub use route::Fib;

use crate::time::Instant;
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;

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
#[derive(Debug, Clone)]
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
    /// More of it, for the error queue: what was quoted, at most [`MAX_QUOTE`] octets.
    pub quote: ArrayVec<u8, MAX_QUOTE>,
    /// The report itself: time to live, type of service, arrival.
    pub report: (u8, u8, Instant),
}

/// Octets of a quoted payload that are kept for the error queue.
pub const MAX_QUOTE: usize = 64;

/// A netfilter hook point (`NF_INET_*`): counted and traced; no rules yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Received, before routing.
    PreRouting = 0,
    /// For us.
    LocalIn = 1,
    /// For others.
    Forward = 2,
    /// From us.
    LocalOut = 3,
    /// On its way out.
    PostRouting = 4,
}
