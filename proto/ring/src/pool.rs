//! The driver's pool of DMA buffers: reference counted, by size class.
//!
//! The pool lies in a [`Region`]; reference counts and free lists lie in private
//! memory, where the device cannot touch them. It is cut into blocks of 64 KiB;
//! a block serves one size class from the moment it is first needed. Single
//! threaded by design (`Rc`): a host's kernel is one thread.

use crate::memory::{Region, Slice};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Octets of the buffers of each class.
pub const CLASSES: [u32; 4] = [512, 4096, 16384, 65536];
const BLOCK: u32 = 65536;
const MIN: u32 = CLASSES[0];

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
    /// Count of references of the buffer that starts at unit `i` of 512 octets.
    refs: Vec<Cell<u32>>,
    free: [RefCell<Vec<u32>>; CLASSES.len()],
    next_block: Cell<u32>,
    in_use: Cell<u64>,
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
        let blocks = (len / BLOCK as usize) as u32;
        assert!(blocks > 0, "a pool has at least one block");
        let refs = (0..blocks * (BLOCK / MIN)).map(|_| Cell::new(0)).collect();
        let inner = Inner { region, start, blocks, refs, free: Default::default(), next_block: Cell::new(0), in_use: Cell::new(0) };
        Self { inner: Rc::new(inner) }
    }

    /// A buffer of at least `size` octets; `None` if the pool is empty or `size`
    /// exceeds 64 KiB. The octets are whatever was there before.
    pub fn alloc(&self, size: u32) -> Option<Buf> {
        let class = CLASSES.iter().position(|&c| size <= c)?;
        let unit = match self.inner.free[class].borrow_mut().pop() {
            Some(unit) => unit,
            None => return self.carve(class),
        };
        Some(self.inner.take(unit, class))
    }

    #[cold]
    fn carve(&self, class: usize) -> Option<Buf> {
        let block = self.inner.next_block.get();
        if block == self.inner.blocks {
            return None;
        }
        self.inner.next_block.set(block + 1);
        let first = block * (BLOCK / MIN);
        let step = CLASSES[class] / MIN;
        let mut free = self.inner.free[class].borrow_mut();
        free.extend((1..BLOCK / CLASSES[class]).rev().map(|i| first + i * step));
        drop(free);
        Some(self.inner.take(first, class))
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
    fn take(self: &Rc<Self>, unit: u32, class: usize) -> Buf {
        self.refs[unit as usize].set(1);
        self.in_use.set(self.in_use.get() + u64::from(CLASSES[class]));
        Buf { pool: self.clone(), unit, class: class as u8 }
    }
}

impl Buf {
    /// Offset of the first octet in the region: the address for a descriptor.
    pub fn offset(&self) -> u64 {
        self.pool.start + u64::from(self.unit) * u64::from(MIN)
    }

    /// Octets of the buffer.
    pub fn capacity(&self) -> u32 {
        CLASSES[usize::from(self.class)]
    }

    /// Holders of the buffer: 1 means that it may be written.
    pub fn refs(&self) -> u32 {
        self.pool.refs[self.unit as usize].get()
    }

    /// The `len` octets at `offset` of the buffer.
    ///
    /// # Panics
    /// If they do not lie in it: offsets in a buffer are the kernel's own.
    pub fn slice(&self, offset: u32, len: u32) -> Slice<'_> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.capacity()), "view lies in its buffer");
        self.pool.region.slice(self.offset() + u64::from(offset), len as usize).expect("pool lies in its region")
    }
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        let refs = &self.pool.refs[self.unit as usize];
        refs.set(refs.get() + 1);
        Self { pool: self.pool.clone(), unit: self.unit, class: self.class }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let refs = &self.pool.refs[self.unit as usize];
        refs.set(refs.get() - 1);
        if refs.get() == 0 {
            let class = usize::from(self.class);
            self.pool.in_use.set(self.pool.in_use.get() - u64::from(CLASSES[class]));
            self.pool.free[class].borrow_mut().push(self.unit);
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
    }
}
