//! Routing: longest prefix match over one table (Linux `fib_lookup`).

use core::net::Ipv4Addr;

/// What kind of destination it is (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Through a device.
    Unicast,
    /// This host.
    Local,
    /// All on a link.
    Broadcast,
    /// A group.
    Multicast,
}

/// A resolved route (Linux `struct rtable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Kind.
    pub kind: RouteKind,
    /// Outgoing interface.
    pub dev: u32,
    /// Source address to use when the socket has none.
    pub saddr: Ipv4Addr,
    /// Whose link-layer address is needed: the gateway, or the destination itself.
    pub nexthop: Ipv4Addr,
    /// Octets of an IP packet.
    pub mtu: u32,
}

/// What to look up (Linux `struct flowi4`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Destination.
    pub daddr: Ipv4Addr,
    /// Source; unspecified: choose.
    pub saddr: Ipv4Addr,
    /// Only through this interface; 0: any.
    pub oif: u32,
}
