//! The ring contract: virtio 1.2 packed virtqueues in shared memory.
//!
//! Two processes share one [`memory::Region`]. The driver (hostd, a VMM, DPDK)
//! owns it: it lays out the rings and a pool of DMA buffers there, and hands the
//! file descriptor to the device (nicd) by vhost-user. Descriptors name buffers
//! by offset; every offset that comes from the other side is checked against the
//! region once, where it is read, on a copy.
//!
//! `no_std` without the `std` feature, so that the pure cores can move frame
//! bytes through the same types. This is one of the three places where `unsafe`
//! is allowed.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod alarm;
mod atomics;

pub mod cable;
#[cfg(feature = "std")]
pub mod doorbell;
pub mod memory;
pub mod packed;
pub mod pool;
#[cfg(feature = "std")]
pub mod vhost_user;
pub mod vnet;
