//! Ethernet, ARP, neighbours.

/// The neighbour table.
#[derive(Debug, Default)]
pub struct NeighTable {}
