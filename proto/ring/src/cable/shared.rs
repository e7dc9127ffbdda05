//! What lies in a cable's arena before the storage: control words and entries. The
//! only place that touches them; under loom they are loom's own.

pub(super) use backing::Shared;
#[cfg(loom)]
pub use backing::loom_pair;

/// Octets of a unit of the ring.
const UNIT: usize = 16;

#[cfg(not(loom))]
mod backing {
    use super::super::{CableError, STORAGE, UNITS};
    use super::UNIT;
    use crate::atomics::AtomicU32;
    use crate::memory::{Region, Slice};

    /// The control words and entries of one arena.
    pub(in super::super) struct Shared {
        region: Region,
    }

    impl Shared {
        pub(in super::super) fn new(region: Region) -> Result<Self, CableError> {
            if (region.len() as u64) < STORAGE {
                return Err(CableError::ArenaTooSmall(region.len() as u64));
            }
            Ok(Self { region })
        }

        pub(in super::super) fn arena(&self) -> &Region {
            &self.region
        }

        pub(in super::super) fn word(&self, offset: usize) -> &AtomicU32 {
            debug_assert!(offset < ENTRIES as usize && offset.is_multiple_of(4), "a control word");
            // SAFETY: `new` checked that the region holds the control page; the offsets
            // are multiples of 4 and regions are page-aligned; the mapping lives as long
            // as `self.region`; all access to these words, here and in the peer, is atomic.
            unsafe { AtomicU32::from_ptr(self.region.base().as_ptr().add(offset).cast()) }
        }

        pub(in super::super) fn read_unit(&self, position: u32) -> [u8; UNIT] {
            let mut unit = [0; UNIT];
            self.unit(position).read(&mut unit);
            unit
        }

        pub(in super::super) fn write_unit(&self, position: u32, unit: &[u8; UNIT]) {
            self.unit(position).write(unit);
        }

        fn unit(&self, position: u32) -> Slice<'_> {
            let offset = ENTRIES + u64::from(position % UNITS) * UNIT as u64;
            self.region.slice(offset, UNIT).expect("ring lies in its arena")
        }
    }

    /// Offset of the ring, after the page of control words.
    const ENTRIES: u64 = 4096;
}

#[cfg(loom)]
mod backing {
    use super::super::{Consumer, HEAD, Producer, SLEEP_SEQ, TAIL, UNITS, WAIT_POS, WAIT_SEQ};
    use super::UNIT;
    use crate::atomics::AtomicU32;
    use crate::memory::Region;
    use alloc::vec::Vec;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    /// Words are loom's atomics; the octets of units are cells whose every access it
    /// checks for races.
    #[derive(Clone)]
    pub(in super::super) struct Shared {
        words: Arc<[AtomicU32; OFFSETS.len()]>,
        units: Arc<Vec<UnsafeCell<[u8; UNIT]>>>,
        arena: Region,
    }

    const OFFSETS: [usize; 5] = [TAIL, WAIT_SEQ, WAIT_POS, HEAD, SLEEP_SEQ];

    impl Shared {
        pub(in super::super) fn arena(&self) -> &Region {
            &self.arena
        }

        pub(in super::super) fn word(&self, offset: usize) -> &AtomicU32 {
            let i = OFFSETS.iter().position(|&o| o == offset).expect("a control word");
            &self.words[i]
        }

        pub(in super::super) fn read_unit(&self, position: u32) -> [u8; UNIT] {
            // SAFETY: loom itself checks that no other access is concurrent.
            self.units[(position % UNITS) as usize].with(|unit| unsafe { *unit })
        }

        pub(in super::super) fn write_unit(&self, position: u32, octets: &[u8; UNIT]) {
            // SAFETY: as in `read_unit`.
            self.units[(position % UNITS) as usize].with_mut(|unit| unsafe { *unit = *octets });
        }
    }

    /// Both sides of a cable of loom's atomics.
    pub fn loom_pair() -> (Producer, Consumer) {
        let shared = Shared {
            words: Arc::new(core::array::from_fn(|_| AtomicU32::new(0))),
            units: Arc::new((0..UNITS).map(|_| UnsafeCell::new([0; UNIT])).collect()),
            arena: Region::heap(1),
        };
        (Producer::over(shared.clone()), Consumer::over(shared))
    }
}
