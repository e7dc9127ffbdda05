//! Shared memory regions and bounded views of them.
//!
//! A [`Region`] is memory that another, untrusted process may change at any
//! moment. Its bytes are therefore never lent out as `&[u8]`: a [`Slice`] copies
//! in and out. Whoever parses, parses the copy.
//!
//! Bounds: [`Region::slice`] is the one check. A [`Slice`] that exists lies
//! inside its region; sub-slices are checked against the slice.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::ptr::NonNull;

/// An offset or length that does not lie in the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("octets {offset}+{len} lie outside the region of {region} octets")]
pub struct OutOfBounds {
    /// First octet asked for.
    pub offset: u64,
    /// Octets asked for.
    pub len: u64,
    /// Octets of the region.
    pub region: u64,
}

/// A mapping of shared (or, in tests and the simulator, heap) memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Heap,
    #[cfg(feature = "std")]
    Memfd {
        fd: std::os::fd::OwnedFd,
        /// Where in the file the region begins.
        offset: u64,
        /// Octets of the mapping: the region's, rounded up to pages of the file.
        mapped: usize,
    },
}

// SAFETY: the mapping is plain memory, valid from any thread for its life; all
// access goes through volatile or bytewise copies, never through references.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent access by threads is no different from the
// concurrent access by the other process that every user must expect anyway.
unsafe impl Sync for Mapping {}

const PAGE: usize = 4096;

impl Region {
    /// Zeroed heap memory of `len` octets (rounded up to pages).
    ///
    /// # Panics
    /// If `len` is 0 or overflows when rounded.
    pub fn heap(len: usize) -> Self {
        let len = len.checked_next_multiple_of(PAGE).expect("region length fits the address space");
        let layout = Layout::from_size_align(len, PAGE).expect("page layout");
        assert!(len > 0, "a region is not empty");
        // SAFETY: the layout has a size above zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { mapping: Arc::new(Mapping { base, len, backing: Backing::Heap }) }
    }

    /// Octets of the region.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// The `len` octets at `offset`; the one place where a foreign offset is checked.
    ///
    /// # Errors
    /// [`OutOfBounds`] unless all of them lie in the region.
    #[inline]
    pub fn slice(&self, offset: u64, len: usize) -> Result<Slice<'_>, OutOfBounds> {
        let err = OutOfBounds { offset, len: len as u64, region: self.len() as u64 };
        let end = offset.checked_add(len as u64).ok_or(err)?;
        if end > self.len() as u64 {
            return Err(err);
        }
        // SAFETY: offset ≤ end ≤ length of the mapping, checked above.
        let base = unsafe { self.mapping.base.add(offset as usize) };
        Ok(Slice { base, len, region: PhantomData })
    }

    /// As [`Region::slice`], unchecked.
    ///
    /// # Safety
    /// The octets lie in the region.
    #[inline]
    pub(crate) unsafe fn slice_unchecked(&self, offset: u64, len: usize) -> Slice<'_> {
        debug_assert!(self.slice(offset, len).is_ok());
        // SAFETY: promised by the caller.
        let base = unsafe { self.mapping.base.add(offset as usize) };
        Slice { base, len, region: PhantomData }
    }

    /// Address of the first octet in this process, for the ring and `vhost-user`.
    pub fn base(&self) -> NonNull<u8> {
        self.mapping.base
    }

    /// True if both are the same mapping.
    pub fn same(&self, other: &Region) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
    }
}

#[cfg(feature = "std")]
mod memfd {
    use super::{Arc, Backing, Mapping, NonNull, PAGE, Region};
    use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create, seek};
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    impl Region {
        /// New shared memory of `len` octets, rounded up to pages and sealed against
        /// growing and shrinking. Pages take memory when touched, not before.
        ///
        /// # Errors
        /// What `memfd_create`, `ftruncate` or `mmap` answers.
        pub fn memfd(name: &str, len: usize) -> io::Result<Self> {
            let len = len.checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
            let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            ftruncate(&fd, len as u64)?;
            fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK)?;
            Self::map(fd, 0, len)
        }

        /// Maps `len` octets at `offset` (a multiple of the page size) of a file
        /// descriptor that came from another process.
        ///
        /// # Errors
        /// `InvalidInput` if the file is shorter than `offset + len` or `len` is 0;
        /// else what `fstat` or `mmap` answers.
        pub fn map(fd: OwnedFd, offset: u64, len: usize) -> io::Result<Self> {
            let stat = fstat(&fd)?;
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let end = offset.checked_add(len as u64).ok_or(io::ErrorKind::InvalidInput)?;
            if len == 0 || end > size {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "mapping lies outside the file"));
            }
            // Huge pages (hugetlbfs, as DPDK and QEMU use) are mapped and unmapped whole;
            // what lies behind `len` is never touched.
            let page = usize::try_from(stat.st_blksize).ok().filter(|b| b.is_power_of_two()).unwrap_or(PAGE);
            let mapped = len.checked_next_multiple_of(page).ok_or(io::ErrorKind::InvalidInput)?;
            // SAFETY: a fresh mapping at an address of the kernel's choice; nothing
            // else aliases it in this process, and it lives until `Mapping` drops.
            let base = unsafe { mmap(core::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, offset)? };
            let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok(Self { mapping: Arc::new(Mapping { base, len, backing: Backing::Memfd { fd, offset, mapped } }) })
        }

        /// Takes memory for `len` octets at `offset` (whole pages round them) and maps it, so that touching them
        /// first faults no more. A region on the heap is left as it is.
        ///
        /// # Errors
        /// `InvalidInput` if they do not lie in the region; what `madvise(MADV_POPULATE_WRITE)` answers.
        pub fn populate(&self, offset: u64, len: usize) -> io::Result<()> {
            let slice = self.slice(offset, len).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            if len == 0 || self.fd().is_none() {
                return Ok(());
            }
            let inside = slice.base.as_ptr() as usize % PAGE;
            let whole = (inside + len).next_multiple_of(PAGE);
            // SAFETY: from the start of the page in which the range begins to the end of the one in which it ends:
            // pages of this mapping, which begins and ends on page boundaries. Populating changes no octet.
            unsafe { madvise(slice.base.as_ptr().sub(inside).cast(), whole, Advice::LinuxPopulateWrite)? };
            Ok(())
        }

        /// As [`Region::populate`], for those pages of the file that have memory already, up to `most` octets in all:
        /// what the other side has filled is reached without a fault.
        ///
        /// # Errors
        /// What `lseek` or `madvise` answers.
        pub fn populate_present(&self, most: usize) -> io::Result<()> {
            let Backing::Memfd { fd, offset, .. } = &self.mapping.backing else { return Ok(()) };
            let end = offset + self.len() as u64;
            let (mut at, mut left) = (*offset, most as u64);
            while at < end && left > 0 {
                // No more data: the rest is a hole.
                let Ok(from) = seek(fd, SeekFrom::Data(at)) else { break };
                let to = seek(fd, SeekFrom::Hole(from))?.min(end).min(from.saturating_add(left));
                if from >= to {
                    break;
                }
                self.populate(from - offset, (to - from) as usize)?;
                left -= to - from;
                at = to;
            }
            Ok(())
        }

        /// As [`Region::map`], of a file that can no longer shrink: a peer that shrinks one
        /// ends whoever touches its memory, by SIGBUS.
        ///
        /// # Errors
        /// `InvalidInput` if the file may shrink; else as [`Region::map`].
        pub fn map_sealed(fd: OwnedFd, offset: u64, len: usize) -> io::Result<Self> {
            // Before `map` looks at the length: what shrinks in between is sealed short.
            // What cannot be sealed at all has no seals.
            if Self::may_shrink(fd.as_fd()) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the memory is not sealed against shrinking (F_SEAL_SHRINK)"));
            }
            Self::map(fd, offset, len)
        }

        /// True unless the file is sealed against shrinking, for good.
        pub fn may_shrink(fd: BorrowedFd<'_>) -> bool {
            !fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
        }

        /// The file behind the region, to hand to another process; `None` on the heap.
        pub fn fd(&self) -> Option<BorrowedFd<'_>> {
            match &self.mapping.backing {
                Backing::Heap => None,
                Backing::Memfd { fd, .. } => Some(fd.as_fd()),
            }
        }

        /// True if the file can no longer shrink: mapping it cannot fault later.
        pub fn is_sealed(&self) -> bool {
            self.fd().is_some_and(|fd| !Self::may_shrink(fd))
        }
    }

    pub(super) fn unmap(base: NonNull<u8>, len: usize) {
        // SAFETY: called once, by `Mapping::drop`, with what `mmap` returned.
        // A failure cannot be acted upon: the address space keeps the pages.
        let _ = unsafe { munmap(base.as_ptr().cast(), len) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self.backing {
            Backing::Heap => {
                let layout = Layout::from_size_align(self.len, PAGE).expect("page layout");
                // SAFETY: allocated in `Region::heap` with this layout, freed once.
                unsafe { dealloc(self.base.as_ptr(), layout) };
            }
            #[cfg(feature = "std")]
            Backing::Memfd { mapped, .. } => memfd::unmap(self.base, mapped),
        }
    }
}

/// A bounded view of a region. Reading and writing copy; another process may be
/// writing the same octets, so what is read is any mixture of old and new.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'m> {
    base: NonNull<u8>,
    len: usize,
    region: PhantomData<&'m Region>,
}

impl<'m> Slice<'m> {
    /// Octets of the view.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no octets.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address and length in this process, for an `iovec`.
    #[inline]
    pub fn as_raw(&self) -> (*mut u8, usize) {
        (self.base.as_ptr(), self.len)
    }

    /// The `len` octets at `offset` of this view.
    ///
    /// # Errors
    /// [`OutOfBounds`] unless they lie in it.
    #[inline]
    pub fn sub(&self, offset: usize, len: usize) -> Result<Slice<'m>, OutOfBounds> {
        let err = OutOfBounds { offset: offset as u64, len: len as u64, region: self.len as u64 };
        if offset.checked_add(len).ok_or(err)? > self.len {
            return Err(err);
        }
        // SAFETY: offset + len ≤ self.len, checked above.
        Ok(Slice { base: unsafe { self.base.add(offset) }, len, region: PhantomData })
    }

    /// Copies the first `dst.len()` octets out.
    ///
    /// # Panics
    /// If the view is shorter: lengths are checked by the caller against `len()`.
    #[inline]
    pub fn read(&self, dst: &mut [u8]) {
        assert!(dst.len() <= self.len, "read beyond the view");
        // SAFETY: both hold dst.len() octets; dst is an exclusive reference, so it
        // does not overlap shared memory, to which no reference is ever made.
        unsafe { core::ptr::copy_nonoverlapping(self.base.as_ptr(), dst.as_mut_ptr(), dst.len()) };
    }

    /// Copies `src` to the front of the view.
    ///
    /// # Panics
    /// If the view is shorter.
    #[inline]
    pub fn write(&self, src: &[u8]) {
        assert!(src.len() <= self.len, "write beyond the view");
        // SAFETY: both hold src.len() octets, and no reference to shared memory exists.
        unsafe { core::ptr::copy_nonoverlapping(src.as_ptr(), self.base.as_ptr(), src.len()) };
    }

    /// Asks for the first cache line, to be written soon: a hint that hides the time in
    /// which the other process gives it up.
    #[inline]
    pub fn prefetch_write(&self) {
        prefetch_write(self.base.as_ptr());
    }

    /// Copies `min(self.len, dst.len)` octets to another view; returns how many.
    #[inline]
    pub fn copy_to(&self, dst: &Slice<'_>) -> usize {
        let n = self.len.min(dst.len);
        // SAFETY: both views hold n octets; `copy` allows that they overlap.
        unsafe { core::ptr::copy(self.base.as_ptr(), dst.base.as_ptr(), n) };
        n
    }

    /// Adds the octets to an Internet checksum accumulator (RFC 1071), as 16-bit
    /// big-endian words starting at an even position; an odd last octet is padded
    /// with zero. Fold with [`fold`].
    #[inline]
    pub fn checksum_add(&self, sum: u64) -> u64 {
        // SAFETY: the view holds `len` octets; they are only copied to registers.
        unsafe { checksum_raw(self.base.as_ptr(), self.len, sum) }
    }
}

/// Fetches the cache line at `at` for writing. Never faults, whatever `at` is.
#[inline]
pub(crate) fn prefetch_write(at: *const u8) {
    // The intrinsic asks for reading only, unless built for a newer processor.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes no state but the cache's; processors without the
    // instruction take it as a no-op.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Adds octets to an Internet checksum accumulator (RFC 1071).
#[inline]
pub fn checksum_add(bytes: &[u8], sum: u64) -> u64 {
    // SAFETY: the slice holds its length.
    unsafe { checksum_raw(bytes.as_ptr(), bytes.len(), sum) }
}

/// The sum is the same in any byte order and any word width, swapped at the end (RFC 1071
/// §2 B): adds native 32-bit words to 64-bit lanes, which the compiler makes vectors of.
///
/// # Safety
/// `len` octets from `at` are readable. Another process may be writing them.
unsafe fn checksum_raw(at: *const u8, len: usize, sum: u64) -> u64 {
    const BLOCK: usize = 64;
    const LANES: usize = BLOCK / 4;
    let mut lanes = [0u64; LANES];
    let blocks = len / BLOCK;
    for i in 0..blocks {
        // SAFETY: block `i` ends at or before `len`; no alignment is assumed.
        let block = unsafe { at.add(i * BLOCK).cast::<[u32; LANES]>().read_unaligned() };
        for (lane, word) in lanes.iter_mut().zip(block) {
            *lane += u64::from(word);
        }
    }
    let mut native: u64 = lanes.iter().map(|lane| (lane >> 32) + (lane & 0xffff_ffff)).sum();
    let rest = len % BLOCK;
    if rest > 0 {
        let mut block = [0u8; BLOCK];
        // SAFETY: the rest ends at `len`; the block is private and longer.
        unsafe { core::ptr::copy_nonoverlapping(at.add(blocks * BLOCK), block.as_mut_ptr(), rest) };
        for word in block.as_chunks::<4>().0 {
            native += u64::from(u32::from_ne_bytes(*word));
        }
    }
    // Sixteen bits a call: the accumulator never overflows.
    sum + u64::from(u16::from_be(fold(native)))
}

/// Folds an accumulator to the 16-bit one's complement sum (not complemented).
pub fn fold(sum: u64) -> u16 {
    let mut s = (sum >> 32) + (sum & 0xffff_ffff);
    while s > 0xffff {
        s = (s >> 16) + (s & 0xffff);
    }
    s as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_outside_region_is_refused() {
        let r = Region::heap(4096);
        assert!(r.slice(4095, 1).is_ok());
        assert!(r.slice(4096, 1).is_err());
        assert!(r.slice(u64::MAX, 2).is_err());
        assert!(r.slice(0, 4096).expect("whole").sub(4000, 97).is_err());
    }

    #[cfg(feature = "std")]
    #[test]
    fn populating_takes_memory_for_what_was_named_and_maps_what_is_there() {
        use std::os::fd::AsFd;
        let region = Region::memfd("ringlab-test", 64 * PAGE).expect("made");
        let file = region.fd().expect("a file").as_fd().try_clone_to_owned().expect("duplicated");
        let pages = || rustix::fs::fstat(&file).expect("asked").st_blocks * 512 / PAGE as i64;
        assert_eq!(pages(), 0);
        region.populate(3 * PAGE as u64 - 1, 2).expect("populated");
        assert_eq!(pages(), 2, "the pages in which the range begins and ends");
        region.populate(10 * PAGE as u64, 4 * PAGE).expect("populated");
        assert_eq!(pages(), 6);
        let other = Region::map(file.try_clone().expect("duplicated"), PAGE as u64, 63 * PAGE).expect("mapped");
        other.populate_present(usize::MAX >> 1).expect("mapped");
        other.populate_present(PAGE).expect("mapped");
        assert_eq!(pages(), 6, "holes stay holes");
        assert!(region.populate(64 * PAGE as u64, 1).is_err());
        assert!(region.populate(0, 0).is_ok());
        Region::heap(PAGE).populate(0, 1).expect("nothing to do");
    }

    /// RFC 1071 word for word.
    fn plain_sum(bytes: &[u8]) -> u64 {
        bytes.chunks(2).map(|w| u64::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum()
    }

    proptest::proptest! {
        #[test]
        fn checksum_matches_the_plain_sum(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..700), at in 0u64..9, start in 0u64..1 << 40) {
            let region = Region::heap(4096);
            let view = region.slice(at, bytes.len()).expect("inside");
            view.write(&bytes);
            let want = fold(start + plain_sum(&bytes));
            proptest::prop_assert_eq!(fold(view.checksum_add(start)), want);
            proptest::prop_assert_eq!(fold(checksum_add(&bytes, start)), want);
        }
    }

    #[test]
    fn checksum_of_all_ones_is_not_zero() {
        assert_eq!(fold(checksum_add(&[0xff; 65536], 0)), 0xffff);
        assert_eq!(fold(checksum_add(&[0; 999], 0)), 0);
    }

    #[test]
    fn checksum_matches_rfc1071_example() {
        let r = Region::heap(4096);
        let s = r.slice(3, 8).expect("inside");
        s.write(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(fold(s.checksum_add(0)), 0xddf2);
    }
}
