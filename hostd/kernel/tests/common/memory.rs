//! Memory of tasks: one arena a host, the same addresses for all its tasks.

use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::uaccess::{Iov, UserMemory, UserSlice};
use ringlab_ring::memory::Slice;
use std::cell::RefCell;
use std::rc::Rc;

/// Lowest valid address: below lie wild pointers.
const BASE: u64 = 0x1_0000;

/// The arena; clones share it.
#[derive(Clone, Default)]
pub struct Memory {
    bytes: Rc<RefCell<Vec<u8>>>,
    /// A file: source number 1.
    pub file: Rc<RefCell<Vec<u8>>>,
}

impl Memory {
    /// A fresh buffer of zeros.
    pub fn alloc(&self, len: usize) -> UserSlice {
        let mut bytes = self.bytes.borrow_mut();
        let addr = BASE + bytes.len() as u64;
        let new = bytes.len() + len;
        bytes.resize(new, 0);
        UserSlice { addr, len: len as u64 }
    }

    /// A fresh buffer with these octets.
    pub fn put(&self, data: &[u8]) -> UserSlice {
        let slice = self.alloc(data.len());
        self.bytes.borrow_mut()[(slice.addr - BASE) as usize..].copy_from_slice(data);
        slice
    }

    /// A fresh buffer with these octets, as a call takes it.
    pub fn iov(&self, data: &[u8]) -> Iov {
        Iov::One(self.put(data))
    }

    /// The first `len` octets of a buffer.
    pub fn get(&self, slice: UserSlice, len: usize) -> Vec<u8> {
        assert!(len as u64 <= slice.len);
        let at = (slice.addr - BASE) as usize;
        self.bytes.borrow()[at..at + len].to_vec()
    }

    fn range(&self, addr: u64, len: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = addr.checked_sub(BASE).ok_or(Errno::EFAULT)? as usize;
        let end = start.checked_add(len).filter(|&e| e <= self.bytes.borrow().len()).ok_or(Errno::EFAULT)?;
        Ok(start..end)
    }
}

impl UserMemory for Memory {
    fn copy_from_source(&mut self, source: u64, offset: u64, dst: &[Slice<'_>]) -> Result<(), Errno> {
        let file = self.file.borrow();
        let mut at = offset as usize;
        for run in dst {
            if source != 1 || at + run.len() > file.len() {
                return Err(Errno::EIO);
            }
            run.write(&file[at..at + run.len()]);
            at += run.len();
        }
        Ok(())
    }

    fn copy_to_source(&mut self, _source: u64, offset: u64, src: &[Slice<'_>]) -> Result<(), Errno> {
        let mut file = self.file.borrow_mut();
        let mut at = offset as usize;
        for run in src {
            let end = at + run.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            run.read(&mut file[at..end]);
            at = end;
        }
        Ok(())
    }

    fn copy_to_user(&mut self, _task: TaskId, dst: u64, src: &[Slice<'_>]) -> Result<(), Errno> {
        let mut range = self.range(dst, src.iter().map(Slice::len).sum())?;
        let mut bytes = self.bytes.borrow_mut();
        for run in src {
            run.read(&mut bytes[range.start..range.start + run.len()]);
            range.start += run.len();
        }
        Ok(())
    }

    fn copy_from_user(&mut self, _task: TaskId, src: u64, dst: &[Slice<'_>]) -> Result<(), Errno> {
        let mut range = self.range(src, dst.iter().map(Slice::len).sum())?;
        let bytes = self.bytes.borrow();
        for run in dst {
            run.write(&bytes[range.start..range.start + run.len()]);
            range.start += run.len();
        }
        Ok(())
    }
}
