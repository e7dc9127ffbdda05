//! Memory of guests: copied by `process_vm_readv` and `process_vm_writev`, once, straight
//! between the program's pages and the DMA pool.
//!
//! Small arguments are read once into a copy, which is then checked: what the
//! program writes there meanwhile does not matter.

use super::window::{self, WindowId};
use ringlab_kernel::errno::Errno;
use ringlab_ring::memory::Slice;

/// Memory of the process that a thread belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mem {
    tid: i32,
    window: WindowId,
}

/// Runs of one copy; a packet has at most so many.
const BATCH: usize = 32;

impl Mem {
    /// The memory that thread `tid` sees.
    pub fn of(tid: i32) -> Self {
        Self { tid, window: WindowId::default() }
    }

    /// The same; what lies in the window is copied without the machine's kernel.
    pub fn seen_through(self, window: WindowId) -> Self {
        Self { window, ..self }
    }

    /// Fills `dst`.
    ///
    /// # Errors
    /// `EFAULT` if not all of it can be read.
    pub fn read(&self, src: u64, dst: &mut [u8]) -> Result<(), Errno> {
        let local = libc::iovec { iov_base: dst.as_mut_ptr().cast(), iov_len: dst.len() };
        self.readv(src, &[local]).and_then(|n| if n == dst.len() { Ok(()) } else { Err(Errno::EFAULT) })
    }

    /// Reads as much of `dst` as is there; how much.
    ///
    /// # Errors
    /// `EFAULT` if there is nothing.
    pub fn read_some(&self, src: u64, dst: &mut [u8]) -> Result<usize, Errno> {
        let local = libc::iovec { iov_base: dst.as_mut_ptr().cast(), iov_len: dst.len() };
        self.readv(src, &[local])
    }

    /// Writes `src`.
    ///
    /// # Errors
    /// `EFAULT` if not all of it can be written.
    pub fn write(&self, dst: u64, src: &[u8]) -> Result<(), Errno> {
        let local = libc::iovec { iov_base: src.as_ptr().cast_mut().cast(), iov_len: src.len() };
        self.writev(dst, &[local]).and_then(|n| if n == src.len() { Ok(()) } else { Err(Errno::EFAULT) })
    }

    /// Writes two things at two places, at once.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_both(&self, one: (u64, &[u8]), two: (u64, &[u8])) -> Result<(), Errno> {
        let local = [one.1, two.1].map(|b| libc::iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() });
        // SAFETY: as below.
        if unsafe { window::write(self.window, one.0, &local[..1]) } {
            return self.write(two.0, two.1);
        }
        let remote = [one, two].map(|(at, b)| libc::iovec { iov_base: at as *mut _, iov_len: b.len() });
        // SAFETY: the local vectors name memory that is only read and outlives the call; the remote addresses are
        // checked by the kernel.
        let n = unsafe { libc::process_vm_writev(self.tid, local.as_ptr(), 2, remote.as_ptr(), 2, 0) };
        if usize::try_from(n) == Ok(one.1.len() + two.1.len()) { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Writes numbers `stride` octets apart, and nothing between them.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_every(&self, mut dst: u64, stride: usize, src: &[u16]) -> Result<(), Errno> {
        const MOST: usize = 256;
        if window::holds(self.window, dst, stride.saturating_mul(src.len())) {
            return src.iter().enumerate().try_for_each(|(i, value)| self.write(dst + (i * stride) as u64, &value.to_ne_bytes()));
        }
        for part in src.chunks(MOST) {
            let local = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: size_of_val(part) };
            let mut remote = [libc::iovec { iov_base: core::ptr::null_mut(), iov_len: size_of::<u16>() }; MOST];
            for to in &mut remote[..part.len()] {
                to.iov_base = dst as *mut _;
                dst = dst.wrapping_add(stride as u64);
            }
            // SAFETY: the local vector names memory that is only read and outlives the call; the remote addresses are
            // checked by the kernel.
            let n = unsafe { libc::process_vm_writev(self.tid, &raw const local, 1, remote.as_ptr(), part.len() as _, 0) };
            if usize::try_from(n) != Ok(local.iov_len) {
                return Err(Errno::EFAULT);
            }
        }
        Ok(())
    }

    /// Reads into runs of shared memory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_slices(&self, mut src: u64, dst: &[Slice<'_>]) -> Result<(), Errno> {
        for batch in dst.chunks(BATCH) {
            let (local, len) = iovecs(batch);
            if self.readv(src, &local[..batch.len()])? != len {
                return Err(Errno::EFAULT);
            }
            src = src.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Writes runs of shared memory.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_slices(&self, mut dst: u64, src: &[Slice<'_>]) -> Result<(), Errno> {
        for batch in src.chunks(BATCH) {
            let (local, len) = iovecs(batch);
            if self.writev(dst, &local[..batch.len()])? != len {
                return Err(Errno::EFAULT);
            }
            dst = dst.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// A string that ends with a zero octet, without it; at most `most` octets.
    ///
    /// # Errors
    /// `EFAULT`; `ENAMETOOLONG` if it does not end.
    pub fn read_str<'b>(&self, src: u64, buf: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        // Not beyond the page unless the string goes on there: the next one may be missing.
        let mut have = 0;
        while have < buf.len() {
            let at = src.wrapping_add(have as u64);
            let page = 4096 - (at % 4096) as usize;
            let want = page.min(buf.len() - have).min(256.max(have));
            let n = self.read_some(at, &mut buf[have..have + want])?;
            if let Some(end) = buf[have..have + n].iter().position(|&b| b == 0) {
                return Ok(&buf[..have + end]);
            }
            have += n;
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Where hostd reaches what lies in the window.
    pub fn window(&self) -> WindowId {
        self.window
    }

    fn readv(&self, src: u64, local: &[libc::iovec]) -> Result<usize, Errno> {
        let len = local.iter().map(|v| v.iov_len).sum();
        // SAFETY: as below.
        if unsafe { window::read(self.window, src, local) } {
            return Ok(len);
        }
        let remote = libc::iovec { iov_base: src as *mut _, iov_len: len };
        // SAFETY: the local vectors name memory that the caller may write (an exclusive slice, or shared memory to
        // which no reference exists) and that outlives the call; the remote address is checked by the kernel.
        let n = unsafe { libc::process_vm_readv(self.tid, local.as_ptr(), local.len() as _, &raw const remote, 1, 0) };
        usize::try_from(n).map_err(|_| Errno::EFAULT)
    }

    fn writev(&self, dst: u64, local: &[libc::iovec]) -> Result<usize, Errno> {
        let len = local.iter().map(|v| v.iov_len).sum();
        // SAFETY: as below.
        if unsafe { window::write(self.window, dst, local) } {
            return Ok(len);
        }
        let remote = libc::iovec { iov_base: dst as *mut _, iov_len: len };
        // SAFETY: the local vectors name memory that is only read, and that outlives the call; the remote address is
        // checked by the kernel.
        let n = unsafe { libc::process_vm_writev(self.tid, local.as_ptr(), local.len() as _, &raw const remote, 1, 0) };
        usize::try_from(n).map_err(|_| Errno::EFAULT)
    }
}

fn iovecs(slices: &[Slice<'_>]) -> ([libc::iovec; BATCH], usize) {
    let mut out = [libc::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; BATCH];
    let mut len = 0;
    for (to, slice) in out.iter_mut().zip(slices) {
        let (base, n) = slice.as_raw();
        *to = libc::iovec { iov_base: base.cast(), iov_len: n };
        len += n;
    }
    (out, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Mem {
        Mem::of(std::process::id() as i32)
    }

    #[test]
    fn wild_addresses_are_efault() {
        let mut buf = [0; 8];
        for addr in [0, 8, u64::MAX - 4, 0xffff_8000_0000_0000] {
            assert_eq!(own().read(addr, &mut buf), Err(Errno::EFAULT), "{addr:#x}");
            assert_eq!(own().write(addr, &buf), Err(Errno::EFAULT), "{addr:#x}");
        }
    }

    #[test]
    fn numbers_are_written_apart_and_nothing_between_them() {
        let mut there = vec![[7u16; 4]; 700];
        let values: Vec<u16> = (0..700).collect();
        own().write_every(there.as_mut_ptr() as u64 + 6, 8, &values).expect("written");
        assert!(there.iter().zip(&values).all(|(t, &v)| *t == [7, 7, 7, v]));
        assert_eq!(own().write_every(8, 8, &values), Err(Errno::EFAULT));
    }

    #[test]
    fn string_is_read_up_to_its_end_across_pages() {
        for len in [0usize, 1, 255, 256, 4095, 5000] {
            let mut text = vec![b'x'; len];
            text.push(0);
            text.extend([b'y'; 20]);
            let mut buf = [0; 8192];
            assert_eq!(own().read_str(text.as_ptr() as u64, &mut buf).map(<[u8]>::len), Ok(len));
        }
        let endless = [b'x'; 64];
        assert_eq!(own().read_str(endless.as_ptr() as u64, &mut [0; 64]), Err(Errno::ENAMETOOLONG));
    }
}
