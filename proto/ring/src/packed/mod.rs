//! Packed virtqueues (virtio 1.2 §2.8): one ring of descriptors that both sides write.
//!
//! The driver makes a descriptor *available*, the device makes it *used*. Each side
//! walks the ring with a [`Position`]: an index, and a wrap counter that flips at the
//! end of every lap. A descriptor's two flag bits tell its state in the lap: available
//! when `AVAIL` equals the driver's counter and `USED` does not, used when both equal
//! it. So the flags are the only word on which the sides meet: whoever hands over
//! writes everything else first and the flags last (`Release`); whoever takes reads
//! the flags first (`Acquire`). A batch is written behind the flags of its first
//! descriptor, which go last: the other side sees all of it or none.
//!
//! Notification: each side has an event word that tells the other when to ring. The
//! sleeper writes its word, then looks once more for work; the worker publishes, then
//! reads the word. A full fence between the two steps, on both sides, makes it
//! impossible that both miss (store buffering); without it a wake-up is lost.
//!
//! Untrusted peers: a descriptor is read once into private memory and the copy is
//! checked. What breaks a rule is a [`RingError`] that names the rule; a queue that
//! saw one stays stopped.

#![cfg_attr(loom, allow(dead_code, unused_imports))]

mod desc;
mod device;
mod driver;
mod map;

pub use desc::{Features, Layout, Position, RingError, RingMem, VringBase};
pub use device::{Chain, DeviceQueue, MAX_CHAIN, Segment};
pub use driver::{DriverQueue, RingFull};
pub use map::{MapRegion, MemoryMap};
