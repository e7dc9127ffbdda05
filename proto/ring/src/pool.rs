//! The driver's pool of DMA buffers: reference counted, by size class.
//!
//! The pool lies in a [`Region`]; reference counts and free lists lie in private
//! memory, where the device cannot touch them. It is cut into blocks of 64 KiB;
//! a block serves one size class from the moment it is first needed, and its buffers
//! are handed out front to back before any freed one of another block is missed: pages
//! that were never needed are never touched. Single threaded by design (`Rc`): a host's
//! kernel is one thread.
//!
//! One word a buffer: the count of its holders while it is held, the next free buffer
//! of its class while it is free. The array of words is allocated zeroed, so that a
//! 64 MiB pool costs only the pages of it that were used.

use crate::memory::{Region, Slice};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::Cell;

/// Octets of the buffers of each class.
pub const CLASSES: [u32; 4] = [512, 4096, 16384, 65536];
const BLOCK: u32 = 65536;
const MIN: u32 = CLASSES[0];
/// End of a free list.
const NONE: u32 = u32::MAX;

/// A pool of buffers in one region.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    region: Region,
    /// Offset of the pool in the region.
    start: u64,
    blocks: u32,
    /// By unit of 512 octets, for the buffer that starts there: count of holders, or
    /// the next free one.
    words: Box<[Cell<u32>]>,
    classes: [Class; CLASSES.len()],
    next_block: Cell<u32>,
    in_use: Cell<u64>,
}

/// The free buffers of a class.
struct Class {
    /// First of those that were used before.
    free: Cell<u32>,
    /// Those never used: from this unit
    fresh: Cell<u32>,
    /// up to this one.
    fresh_end: Cell<u32>,
}

/// A buffer of the pool. Clones share it; the last one gives it back.
pub struct Buf {
    pool: Rc<Inner>,
    unit: u32,
    class: u8,
}

impl Pool {
    /// A pool over `len` octets at `start` of the region (both multiples of 64 KiB
    /// are used; a remainder is left alone).
    ///
    /// # Panics
    /// If the range does not lie in the region or holds no block.
    pub fn new(region: Region, start: u64, len: usize) -> Self {
        region.slice(start, len).expect("pool lies in its region");
        let blocks = u32::try_from(len / BLOCK as usize).expect("a pool has fewer than 2^32 units");
        let units = blocks.checked_mul(BLOCK / MIN).expect("a pool has fewer than 2^32 units");
        assert!(blocks > 0, "a pool has at least one block");
        let words = Box::into_raw(vec![0u32; units as usize].into_boxed_slice());
        // SAFETY: `Cell<u32>` has the layout of `u32`; the box is the only owner.
        let words = unsafe { Box::from_raw(words as *mut [Cell<u32>]) };
        let class = || Class { free: Cell::new(NONE), fresh: Cell::new(0), fresh_end: Cell::new(0) };
        let classes = core::array::from_fn(|_| class());
        let inner = Inner { region, start, blocks, words, classes, next_block: Cell::new(0), in_use: Cell::new(0) };
        Self { inner: Rc::new(inner) }
    }

    /// A buffer of at least `size` octets; `None` if the pool is empty or `size`
    /// exceeds 64 KiB. The octets are whatever was there before.
    #[inline]
    pub fn alloc(&self, size: u32) -> Option<Buf> {
        let class = match size {
            0..=512 => 0,
            513..=4096 => 1,
            4097..=16384 => 2,
            16385..=65536 => 3,
            _ => return None,
        };
        let inner = &self.inner;
        let free = &inner.classes[class].free;
        let unit = if free.get() == NONE {
            inner.fresh(class)?
        } else {
            let unit = free.get();
            free.set(inner.word(unit).get());
            unit
        };
        inner.word(unit).set(1);
        inner.in_use.set(inner.in_use.get() + u64::from(CLASSES[class]));
        Some(Buf { pool: inner.clone(), unit, class: class as u8 })
    }

    /// The region in which the buffers lie.
    pub fn region(&self) -> &Region {
        &self.inner.region
    }

    /// Octets in buffers that are held.
    pub fn in_use(&self) -> u64 {
        self.inner.in_use.get()
    }
}

impl Inner {
    /// A buffer never used before; opens a block if the class has none left.
    #[cold]
    fn fresh(&self, class: usize) -> Option<u32> {
        let Class { fresh, fresh_end, .. } = &self.classes[class];
        if fresh.get() == fresh_end.get() {
            let block = self.next_block.get();
            if block == self.blocks {
                return None;
            }
            self.next_block.set(block + 1);
            fresh.set(block * (BLOCK / MIN));
            fresh_end.set((block + 1) * (BLOCK / MIN));
        }
        let unit = fresh.get();
        fresh.set(unit + CLASSES[class] / MIN);
        Some(unit)
    }

    #[inline]
    fn word(&self, unit: u32) -> &Cell<u32> {
        debug_assert!((unit as usize) < self.words.len());
        // SAFETY: every unit comes from `fresh`, which stays below `blocks`, of which
        // `words` holds all units; `Buf` and the free lists never change one. A word of
        // a free buffer holds a unit or NONE, which callers test.
        unsafe { self.words.get_unchecked(unit as usize) }
    }
}

impl Buf {
    /// Offset of the first octet in the region: the address for a descriptor.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.pool.start + u64::from(self.unit) * u64::from(MIN)
    }

    /// Octets of the buffer.
    #[inline]
    pub fn capacity(&self) -> u32 {
        CLASSES[usize::from(self.class)]
    }

    /// Holders of the buffer: 1 means that it may be written.
    #[inline]
    pub fn refs(&self) -> u32 {
        self.pool.word(self.unit).get()
    }

    /// The `len` octets at `offset` of the buffer.
    ///
    /// # Panics
    /// If they do not lie in it: offsets in a buffer are the kernel's own.
    #[inline]
    pub fn slice(&self, offset: u32, len: u32) -> Slice<'_> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.capacity()), "view lies in its buffer");
        let at = self.offset() + u64::from(offset);
        // SAFETY: the view lies in the buffer (above), the buffer in the pool (its unit
        // comes from `fresh`), the pool in the region (`Pool::new`).
        unsafe { self.pool.region.slice_unchecked(at, len as usize) }
    }
}

impl Clone for Buf {
    #[inline]
    fn clone(&self) -> Self {
        let refs = self.pool.word(self.unit);
        refs.set(refs.get() + 1);
        Self { pool: self.pool.clone(), unit: self.unit, class: self.class }
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        let word = self.pool.word(self.unit);
        let left = word.get() - 1;
        word.set(left);
        if left == 0 {
            let class = usize::from(self.class);
            let free = &self.pool.classes[class].free;
            word.set(free.replace(self.unit));
            self.pool.in_use.set(self.pool.in_use.get() - u64::from(CLASSES[class]));
        }
    }
}

impl core::fmt::Debug for Buf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Buf({:#x}+{})", self.offset(), self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::vec::Vec;

    #[test]
    fn last_clone_gives_the_buffer_back() {
        let pool = Pool::new(Region::heap(65536), 0, 65536);
        let a = pool.alloc(60000).expect("one block");
        assert!(pool.alloc(1).is_none());
        let b = a.clone();
        drop(a);
        assert_eq!(b.refs(), 1);
        assert!(pool.alloc(1).is_none());
        drop(b);
        assert_eq!(pool.in_use(), 0);
        assert!(pool.alloc(65536).is_some());
        assert!(pool.alloc(65537).is_none());
    }

    #[test]
    fn a_class_fills_its_block_exactly() {
        for (class, size) in CLASSES.into_iter().enumerate() {
            let pool = Pool::new(Region::heap(65536), 0, 65536);
            let held: Vec<Buf> = core::iter::from_fn(|| pool.alloc(size)).collect();
            assert_eq!(held.len() as u32, BLOCK / CLASSES[class]);
            assert_eq!(pool.in_use(), u64::from(BLOCK));
        }
    }

    proptest::proptest! {
        #[test]
        fn held_buffers_never_overlap(ops in proptest::collection::vec((1u32..70000, 0usize..64, proptest::bool::ANY), 1..300)) {
            let pool = Pool::new(Region::heap(20 * 65536), 65536, 19 * 65536);
            let mut held: Vec<Buf> = Vec::new();
            for (size, pick, free) in ops {
                if free && !held.is_empty() {
                    held.swap_remove(pick % held.len());
                } else if let Some(buf) = pool.alloc(size) {
                    proptest::prop_assert!(buf.capacity() >= size && buf.offset() >= 65536 && buf.refs() == 1);
                    held.push(buf);
                }
                let by_offset: BTreeMap<u64, u32> = held.iter().map(|b| (b.offset(), b.capacity())).collect();
                proptest::prop_assert_eq!(by_offset.len(), held.len());
                let mut end = 65536;
                for (at, len) in by_offset {
                    proptest::prop_assert!(at >= end);
                    end = at + u64::from(len);
                }
                proptest::prop_assert!(end <= 20 * 65536);
                proptest::prop_assert_eq!(pool.in_use(), held.iter().map(|b| u64::from(b.capacity())).sum::<u64>());
            }
        }
    }
}
