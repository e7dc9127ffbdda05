//! `mmap` of a packet socket: the ring of `PACKET_RX_RING` in a program's memory.
//!
//! A ring is a memfd that hostd has mapped too. Only the machine's kernel can map it for the program, and it maps what
//! stands at the descriptor: for the length of the call the memfd takes the placeholder's place, and
//! the thread's next call puts a placeholder back. Until then `read`, `poll` and their kin are the model's, as
//! before; another thread that forks or duplicates the descriptor meanwhile would copy the memfd.

use super::Guests;
use super::calls::Outcome;
use super::fds::descriptor_closes_on_exec;
use super::notify::{Listener, Notif};
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::packet::RingRequest;
use ringlab_ring::memory::Region;
use rustix::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use tracing::debug;

/// Most octets of a ring. Linux would find no more pages at some point; what a program takes here is hostd's.
const MOST: u64 = 256 << 20;

/// A placeholder that is to return to its place.
pub struct Mapping {
    /// The thread that maps; 0: it is gone, any of its process will do.
    tid: i32,
    tgid: i32,
    fd: i32,
    cloexec: bool,
    end: OwnedFd,
}

impl Guests {
    /// `setsockopt(PACKET_RX_RING)`.
    ///
    /// # Errors
    /// As [`ringlab_kernel::Kernel::packet_set_ring`]; `ENOMEM`.
    pub(super) fn set_ring(shared: &Shared, c: Caller, handle: i32, value: &[u8]) -> Result<Outcome, Errno> {
        let request = RingRequest::parse(value)?;
        let memory = match request.len() {
            0 => None,
            MOST.. => return Err(Errno::ENOMEM),
            len => Some(Region::memfd("ringlab-packet-ring", len as usize).map_err(|_| Errno::ENOMEM)?),
        };
        shared.kernel().packet_set_ring(c.task, handle, request, memory).map(|()| Outcome::Done(0))
    }

    /// `mmap` of a modelled file, shared: the ring of a packet socket, whole (Linux `packet_mmap`).
    ///
    /// # Errors
    /// `ENODEV` if it is no packet socket, `EINVAL` unless it has a ring of this length.
    pub(super) fn sys_mmap(
        &mut self,
        shared: &Shared,
        c: Caller,
        listener: &Rc<Listener>,
        n: &Notif,
        handle: i32,
    ) -> Result<Outcome, Errno> {
        let ring = shared.kernel().packet_ring(c.task, handle)?;
        let (len, fd, offset) = (n.args[1], n.args[4] as i32, n.args[5]);
        let memory = ring.fd().filter(|_| len == ring.len() as u64 && offset == 0).ok_or(Errno::EINVAL)?;
        let cloexec = descriptor_closes_on_exec(c.tid, fd).ok_or(Errno::EBADF)?;
        // One more: the first one's end may go with the descriptor that is replaced.
        let (end, inode) = self.placeholders.make(handle, &self.epoll).map_err(|_| Errno::ENFILE)?;
        if listener.replace(n.id, memory, fd, cloexec).is_err() {
            // Interrupted meanwhile: it comes again.
            return Ok(Outcome::Continue);
        }
        shared.kernel().set_inode(c.task, handle, inode as u32);
        self.mappings.push(Mapping { tid: c.tid, tgid: c.tgid, fd, cloexec, end });
        Ok(Outcome::Continue)
    }

    /// A thread makes another call: what it mapped is mapped.
    pub(super) fn end_mappings(&mut self, c: Caller, listener: &Listener, n: &Notif) {
        let mine = |m: &Mapping| m.tid == c.tid || m.tid == 0 && m.tgid == c.tgid;
        while let Some(at) = self.mappings.iter().position(mine) {
            let m = self.mappings.swap_remove(at);
            if let Err(error) = listener.replace(n.id, m.end.as_fd(), m.fd, m.cloexec) {
                if !listener.is_valid(n.id) {
                    // A signal has interrupted this call: the next one does it.
                    return self.mappings.push(m);
                }
                debug!(fd = m.fd, %error, "the placeholder of a mapped socket does not return");
            }
        }
    }

    /// A thread ends, maybe in `mmap`: another one of its process sees to the descriptor.
    pub(super) fn orphan_mappings(&mut self, tid: i32) {
        self.mappings.iter_mut().filter(|m| m.tid == tid).for_each(|m| m.tid = 0);
    }

    /// Nothing returns to descriptors `first` to `last` of a process, which closes them.
    pub(super) fn forget_mappings(&mut self, tgid: i32, first: u32, last: u32) {
        self.mappings.retain(|m| m.tgid != tgid || !(first..=last).contains(&(m.fd as u32)));
    }
}
