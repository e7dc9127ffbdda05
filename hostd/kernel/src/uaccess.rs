//! Access to the memory of tasks (Linux `copy_to_user` and friends).
//!
//! The kernel names a task's memory by address only; who runs the task (the
//! built-in programs' arenas, a real process under the seccomp supervisor, a
//! test) implements [`UserMemory`]. Addresses are the task's own and are
//! checked there: a wild one is `EFAULT`.

use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::skb::{MAX_SKB_FRAGS, SkBuff};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use ringlab_ring::memory::Slice;

/// A task's memory.
pub trait UserMemory {
    /// Copies a run of DMA memory to the task: the receive path's one CPU copy.
    ///
    /// # Errors
    /// `EFAULT` if the address range is not the task's to write.
    fn copy_to_user(&mut self, task: TaskId, dst: u64, src: &[Slice<'_>]) -> Result<(), Errno>;
    /// Copies from the task to runs of DMA memory: the send path's one CPU copy.
    ///
    /// # Errors
    /// `EFAULT` if the address range is not the task's to read.
    fn copy_from_user(&mut self, task: TaskId, src: u64, dst: &[Slice<'_>]) -> Result<(), Errno>;
    /// False if a call that sleeps was interrupted where the kernel model does not see it: it is
    /// abandoned then, before it takes or copies anything.
    fn waits_still(&mut self, _task: TaskId) -> bool {
        true
    }

    /// Reads octets of something else than a task's memory, such as a file that is sent (`sendfile`): all of them
    /// must be there. `source` is the number given in [`Iov::Source`].
    ///
    /// # Errors
    /// `EBADF` if there is no such source; any that reading it has.
    fn copy_from_source(&mut self, source: u64, offset: u64, dst: &[Slice<'_>]) -> Result<(), Errno> {
        let _ = (source, offset, dst);
        Err(Errno::EBADF)
    }

    /// Writes octets to something else than a task's memory, such as a pipe (`splice`).
    ///
    /// # Errors
    /// `EBADF` if there is no such source; any that writing it has.
    fn copy_to_source(&mut self, source: u64, offset: u64, src: &[Slice<'_>]) -> Result<(), Errno> {
        let _ = (source, offset, src);
        Err(Errno::EBADF)
    }
}

/// A buffer of a task (Linux `struct iovec`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserSlice {
    /// Address in the task's memory.
    pub addr: u64,
    /// Octets.
    pub len: u64,
}

/// One or several buffers, without allocation in the ordinary case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Iov {
    /// `read`, `write`, `send`, `recv`.
    One(UserSlice),
    /// `readv`, `sendmsg` …: at most 1024.
    Many(Vec<UserSlice>),
    /// `sendfile`, `splice`: the caller's number of a source or sink, an offset in it, octets.
    Source(u64, u64, u64),
}

impl Iov {
    /// Octets of all buffers.
    pub fn len(&self) -> u64 {
        match self {
            Iov::One(s) => s.len,
            Iov::Source(_, _, len) => *len,
            Iov::Many(v) => v.iter().fold(0, |n, s| n.saturating_add(s.len)),
        }
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A position in an [`Iov`] (Linux `struct iov_iter`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IovIter {
    iov: Iov,
    index: usize,
    offset: u64,
    left: u64,
}

impl IovIter {
    /// The start of `iov`.
    pub fn new(iov: Iov) -> Self {
        let left = iov.len();
        Self { iov, index: 0, offset: 0, left }
    }

    /// Whose octets these are, if not the task's.
    pub fn source(&self) -> Option<u64> {
        match self.iov {
            Iov::Source(id, ..) => Some(id),
            _ => None,
        }
    }

    /// Octets that follow (Linux `iov_iter_count`).
    pub fn count(&self) -> u64 {
        self.left
    }

    /// The next contiguous run, at most `max` octets; advances over it.
    pub fn next_run(&mut self, max: u64) -> Option<UserSlice> {
        loop {
            let seg = match &self.iov {
                Iov::One(s) if self.index == 0 => *s,
                Iov::Source(_, offset, len) if self.index == 0 => UserSlice { addr: *offset, len: *len },
                Iov::Many(v) => *v.get(self.index)?,
                Iov::One(_) | Iov::Source(..) => return None,
            };
            if self.offset >= seg.len {
                self.index += 1;
                self.offset = 0;
                continue;
            }
            let len = max.min(seg.len - self.offset).min(self.left);
            if len == 0 {
                return None;
            }
            let run = UserSlice { addr: seg.addr.wrapping_add(self.offset), len };
            self.offset += len;
            self.left -= len;
            return Some(run);
        }
    }
}

/// Copies to one run of an [`IovIter`]: `addr` in the task's memory, or an offset in a source.
///
/// # Errors
/// `EFAULT`, or the source's.
pub fn copy_run_to(mem: &mut dyn UserMemory, task: TaskId, source: Option<u64>, addr: u64, src: &[Slice<'_>]) -> Result<(), Errno> {
    match source {
        Some(source) => mem.copy_to_source(source, addr, src),
        None => mem.copy_to_user(task, addr, src),
    }
}

/// Copies `len` octets of a packet at `off` to a task (Linux `skb_copy_datagram_iter`).
/// Returns how many fitted into the buffers.
///
/// # Errors
/// `EFAULT`.
pub fn copy_skb_to_iter(mem: &mut dyn UserMemory, task: TaskId, skb: &SkBuff, off: u32, len: u32, to: &mut IovIter) -> Result<u32, Errno> {
    let want = u64::from(len.min(skb.len().saturating_sub(off))).min(to.count()) as u32;
    let mut done = 0;
    while done < want {
        let Some(run) = to.next_run(u64::from(want - done)) else { break };
        let runs = skb.runs(off + done, run.len as u32).map(|(frag, start, n)| frag.buf.slice(start, n));
        let runs = runs.collect::<ArrayVec<Slice<'_>, MAX_SKB_FRAGS>>();
        copy_run_to(mem, task, to.source(), run.addr, &runs)?;
        done += run.len as u32;
    }
    Ok(done)
}

/// Fills `dst` from a task (Linux `copy_from_iter_full`).
///
/// # Errors
/// `EFAULT`, also if the buffers hold fewer octets.
pub fn copy_iter_to_slice(mem: &mut dyn UserMemory, task: TaskId, from: &mut IovIter, dst: Slice<'_>) -> Result<(), Errno> {
    let mut done = 0;
    while done < dst.len() {
        let run = from.next_run((dst.len() - done) as u64).ok_or(Errno::EFAULT)?;
        let part = dst.sub(done, run.len as usize).map_err(|_| Errno::EFAULT)?;
        match from.source() {
            Some(source) => mem.copy_from_source(source, run.addr, &[part])?,
            None => mem.copy_from_user(task, run.addr, &[part])?,
        }
        done += run.len as usize;
    }
    Ok(())
}
