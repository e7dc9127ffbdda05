//! Frames in memory of our own: those that wait for the wire, those read from a TAP,
//! those that go to several ports.

use arrayvec::ArrayVec;
use ringlab_device::offload::Offload;
use ringlab_device::port::MAX_FRAME;
use ringlab_ring::memory::Slice;
use ringlab_ring::pool::{Buf, Pool};

/// Pieces of a held frame: 64 KiB in buffers of 16 KiB, and the rest.
pub const MAX_PIECES: usize = 5;

/// Buffers and the octets used of each.
pub type Pieces = ArrayVec<(Buf, u32), MAX_PIECES>;

/// A frame in buffers of a pool.
#[derive(Debug)]
pub struct Held {
    /// What is to be done to it.
    pub offload: Offload,
    /// Where it lies.
    pub pieces: Pieces,
    /// Octets.
    pub len: usize,
}

impl Held {
    /// Buffers for a frame of `len` octets; `None` if the pool is used up.
    pub fn alloc(pool: &Pool, offload: Offload, len: usize) -> Option<Self> {
        const CHUNK: usize = 16384;
        debug_assert!(len <= MAX_FRAME);
        let mut pieces = Pieces::new();
        let mut left = len;
        while left > 0 {
            // One large buffer where most of it is used, else chunks.
            let n = if left > 3 * CHUNK { left.min(65536) } else { left.min(CHUNK) };
            let buf = pool.alloc(n as u32).or_else(|| pool.alloc(n.min(CHUNK) as u32)).or_else(|| pool.alloc(65536))?;
            let n = n.min(buf.capacity() as usize);
            pieces.try_push((buf, n as u32)).ok()?;
            left -= n;
        }
        Some(Self { offload, pieces, len })
    }

    /// The octets.
    pub fn slices(&self) -> ArrayVec<Slice<'_>, MAX_PIECES> {
        self.pieces.iter().map(|(buf, len)| buf.slice(0, *len)).collect()
    }
}

/// Buffers into which the next frame of unknown length is read: a small one first,
/// so that small frames take little, and a large one that only large frames use.
pub struct Reader {
    pool: Option<Pool>,
    small: Option<Buf>,
    large: Option<Buf>,
}

impl Reader {
    /// A reader into buffers of `pool`.
    pub fn new(pool: Pool) -> Self {
        Self { pool: Some(pool), small: None, large: None }
    }

    /// One that reads nothing: stands in where the real one is in use.
    pub fn empty() -> Self {
        Self { pool: None, small: None, large: None }
    }

    /// Makes buffers ready; false if the pool is used up.
    pub fn prepare(&mut self) -> bool {
        let Some(pool) = &self.pool else { return false };
        if self.small.is_none() {
            self.small = pool.alloc(4096);
        }
        if self.large.is_none() {
            self.large = pool.alloc(65536);
        }
        self.small.is_some() && self.large.is_some()
    }

    /// Where to read.
    ///
    /// # Panics
    /// Unless [`Self::prepare`] was true.
    pub fn slices(&self) -> [Slice<'_>; 2] {
        let whole = |buf: &'_ Option<Buf>| buf.as_ref().map(|b| b.capacity()).expect("prepared");
        let (small, large) = (whole(&self.small), whole(&self.large));
        [self.small.as_ref().expect("prepared").slice(0, small), self.large.as_ref().expect("prepared").slice(0, large)]
    }

    /// Takes the frame of `len` octets that was read.
    ///
    /// # Panics
    /// Unless [`Self::prepare`] was true.
    pub fn take(&mut self, offload: Offload, len: usize) -> Held {
        let mut pieces = Pieces::new();
        let small = self.small.take().expect("prepared");
        let n = len.min(small.capacity() as usize);
        pieces.push((small, n as u32));
        if len > n {
            let large = self.large.take().expect("prepared");
            let rest = (len - n).min(large.capacity() as usize);
            pieces.push((large, rest as u32));
        }
        Held { offload, pieces, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlab_device::gather::octets;
    use ringlab_ring::memory::Region;

    fn pool(blocks: usize) -> Pool {
        Pool::new(Region::heap(blocks * 65536), 0, blocks * 65536)
    }

    #[test]
    fn every_length_fits_its_pieces() {
        for len in [1, 60, 512, 513, 1514, 9000, 16384, 16385, 49152, 49153, 65536, MAX_FRAME] {
            let held = Held::alloc(&pool(4), Offload::None, len).expect("room");
            assert_eq!(octets(&held.slices()), len);
        }
    }

    #[test]
    fn a_used_up_pool_gives_none_and_takes_all_back() {
        let pool = pool(2);
        let one = Held::alloc(&pool, Offload::None, MAX_FRAME).expect("room");
        assert!(Held::alloc(&pool, Offload::None, MAX_FRAME).is_none());
        drop(one);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn small_frames_leave_the_large_buffer() {
        let pool = pool(3);
        let mut reader = Reader::new(pool.clone());
        assert!(reader.prepare());
        let small = reader.take(Offload::None, 60);
        assert_eq!(pool.in_use(), 4096 + 65536);
        assert!(reader.prepare());
        let large = reader.take(Offload::None, 65550);
        assert_eq!((octets(&small.slices()), octets(&large.slices())), (60, 65550));
    }
}
