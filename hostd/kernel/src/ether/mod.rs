//! Ethernet, ARP, neighbours.
//!
//! `input.rs` takes the Ethernet header off a received frame and gives the packet
//! to its protocol; `arp.rs` answers and asks; `neigh.rs` knows who is where, and
//! holds packets while it asks.
mod arp;
pub(crate) mod header;
mod input;
pub(crate) mod neigh;

pub use neigh::NeighTable;
pub(crate) use neigh::Nud;
