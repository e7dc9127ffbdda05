//! Placeholders: what a modelled file is in a program's descriptor table.
//!
//! One end of a socket pair is the program's; hostd keeps the other. However many
//! references the program makes (dup, fork, a message in flight), the machine's
//! kernel counts them, and hostd's end hangs up when the last one is gone.

use super::Map;
use super::token::{self, Token};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

struct Placeholder {
    inode: u64,
    ours: OwnedFd,
}

/// All placeholders, by number of the modelled file.
#[derive(Default)]
pub struct Placeholders {
    by_handle: Map<i32, Placeholder>,
    by_inode: Map<u64, i32>,
}

impl Placeholders {
    /// Makes the placeholder of a file; the end that is the program's.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn make(&mut self, handle: i32, epoll: &OwnedFd) -> Result<OwnedFd, Errno> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let inode = rustix::fs::fstat(&theirs)?.st_ino;
        // HUP is reported unasked.
        epoll::add(epoll, &ours, token::data(Token::Placeholder(handle)), epoll::EventFlags::empty())?;
        self.by_inode.insert(inode, handle);
        self.by_handle.insert(handle, Placeholder { inode, ours });
        Ok(theirs)
    }

    /// The file whose placeholder has this inode.
    pub fn find(&self, inode: u64) -> Option<i32> {
        self.by_inode.get(&inode).copied()
    }

    /// True if no reference to the program's end is left.
    pub fn is_gone(&self, handle: i32) -> bool {
        let Some(p) = self.by_handle.get(&handle) else { return false };
        let mut fds = [PollFd::from_borrowed_fd(p.ours.as_fd(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0) && fds[0].revents().contains(PollFlags::HUP)
    }

    /// Removes one.
    pub fn remove(&mut self, handle: i32) {
        if let Some(p) = self.by_handle.remove(&handle) {
            self.by_inode.remove(&p.inode);
        }
    }
}
