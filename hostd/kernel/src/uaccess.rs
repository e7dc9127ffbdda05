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
}

impl Iov {
    /// Octets of all buffers.
    pub fn len(&self) -> u64 {
        match self {
            Iov::One(s) => s.len,
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

    /// Octets that follow (Linux `iov_iter_count`).
    pub fn count(&self) -> u64 {
        self.left
    }

    /// The next contiguous run, at most `max` octets; advances over it.
    pub fn next_run(&mut self, max: u64) -> Option<UserSlice> {
        loop {
            let seg = match &self.iov {
                Iov::One(s) if self.index == 0 => *s,
                Iov::Many(v) => *v.get(self.index)?,
                Iov::One(_) => return None,
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
        mem.copy_to_user(task, run.addr, &runs)?;
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
        mem.copy_from_user(task, run.addr, &[part])?;
        done += run.len as usize;
    }
    Ok(())
}
