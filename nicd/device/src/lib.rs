//! The NIC as a pure core: queues, offloads, wire, impairments, switch.
//!
//! **Purpose.** `nicd` is the hardware of one node. What that hardware *decides* is
//! here: which queue takes a frame, when an interrupt is due, whether an offload
//! request holds and how it is carried out, when a frame reaches the other end of
//! the wire or that it is lost, where a switch sends it. What it *does* (map
//! memory, ring doorbells, read a TAP) is the daemon's.
//!
//! **Pure.** No clock, no entropy, no descriptor, no `unsafe`: `now` and the seed
//! are arguments, results are returned. Same seed and calls, same results, so the
//! simulator and the tests run the code that the daemon runs.
//!
//! **A frame** is a list of [`ringlab_ring::memory::Slice`]s: pieces of memory that
//! its sender may change at any moment. [`gather`] copies across them;
//! [`frame::FrameView`] takes the headers out once, and everything decides on that
//! copy. A [`ringlab_ring::vnet::VnetHdr`] goes with each frame and says what its
//! sender left to the hardware; [`offload::check`] holds it against the frame, and
//! from there on only the resulting [`offload::Offload`] counts.
//!
//! **On the way out** (node to wire): `FrameView` → `offload::check` → on a switch
//! [`switch::Switch::forward`] → if the wire cuts ([`impair::Impair::needs_cut`]) or
//! the peer takes no GSO, [`offload::Segments`], else the frame whole →
//! [`wire::octets_of`] → [`impair::Impair::admit`] → at once, or through an
//! [`impair::DelayLine`], to the other end.
//!
//! **On the way in** (wire to node): [`rss::Rss::queue`] → the DMA copy
//! ([`offload::copy_whole`] where the driver cannot complete checksums) → used
//! descriptor → [`moderation::Moderation`] → interrupt.
//!
//! **Errors** are drop reasons: each refusal is a value that the port counts under
//! an `ethtool -S` name ([`ringlab_counters::Nic`]). Nothing panics on a peer's account.
//!
//! **Limits.** IPv4 for RSS and segmentation; no VLAN offload, no flow director.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod frame;
pub mod gather;
pub mod impair;
pub mod moderation;
pub mod offload;
pub mod port;
pub mod rss;
pub mod switch;
#[cfg(test)]
mod testing;
pub mod time;
pub mod wire;
