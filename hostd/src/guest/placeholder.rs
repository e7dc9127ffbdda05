//! Placeholders: what a modelled file is in a program's descriptor table.
//!
//! One end of a socket pair is the program's; hostd keeps the other. However many
//! references the program makes (dup, fork, a message in flight), the machine's
//! kernel counts them, and hostd's end hangs up when the last one is gone. A socket that was mapped
//! has had several (`mapping.rs`): it is gone when all are.

use super::Map;
use super::token::{self, Token};
use crate::limits::is_last;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use std::collections::hash_map::Entry;

struct End {
    inode: u64,
    ours: OwnedFd,
}

/// All placeholders, by number of the modelled file.
#[derive(Default)]
pub struct Placeholders {
    /// One, but for the socket whose descriptor was mapped: never empty.
    by_handle: Map<i32, Ends>,
    by_inode: Map<u64, i32>,
}

/// Ends of one file.
struct Ends {
    first: End,
    more: Vec<End>,
}

impl Placeholders {
    /// Makes a placeholder of a file, beside those that it has; the end that is the program's, and its inode's number.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn make(&mut self, handle: i32, epoll: &OwnedFd) -> Result<(OwnedFd, u64), Errno> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        if is_last(theirs.as_fd()) {
            return Err(Errno::NFILE);
        }
        // What reaches it past the filter (a program of another instruction set, a descriptor that is exchanged while a call is
        // let go) fails, instead of being kept here: octets, and descriptors that would hold on to each other.
        shutdown(&theirs, Shutdown::Write)?;
        let inode = rustix::fs::fstat(&theirs)?.st_ino;
        // HUP is reported unasked.
        epoll::add(epoll, &ours, token::data(Token::Placeholder(handle)), epoll::EventFlags::empty())?;
        self.by_inode.insert(inode, handle);
        let end = End { inode, ours };
        match self.by_handle.entry(handle) {
            Entry::Occupied(mut ends) => ends.get_mut().more.push(end),
            Entry::Vacant(none) => drop(none.insert(Ends { first: end, more: Vec::new() })),
        }
        Ok((theirs, inode))
    }

    /// The file whose placeholder has this inode.
    pub fn find(&self, inode: u64) -> Option<i32> {
        self.by_inode.get(&inode).copied()
    }

    /// True if no reference to a program's end is left. Ends that are over while others are not are forgotten.
    pub fn is_gone(&mut self, handle: i32) -> bool {
        let Some(ends) = self.by_handle.get_mut(&handle) else { return false };
        while ends.first.is_over() {
            let Some(next) = ends.more.pop() else { return true };
            let over = core::mem::replace(&mut ends.first, next);
            self.by_inode.remove(&over.inode);
        }
        let by_inode = &mut self.by_inode;
        ends.more.retain(|end| {
            let over = end.is_over();
            if over {
                by_inode.remove(&end.inode);
            }
            !over
        });
        false
    }

    /// Removes all of a file.
    pub fn remove(&mut self, handle: i32) {
        let Some(ends) = self.by_handle.remove(&handle) else { return };
        for end in core::iter::once(ends.first).chain(ends.more) {
            self.by_inode.remove(&end.inode);
        }
    }
}

impl End {
    /// True if no reference to the program's end is left.
    fn is_over(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.ours.as_fd(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0) && fds[0].revents().contains(PollFlags::HUP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_gone_with_the_last_of_its_placeholders() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let mut all = Placeholders::default();
        let [(one, first), (two, second), three] = [(); 3].map(|()| all.make(7, &epoll).expect("made"));
        assert_eq!(rustix::fs::fstat(&one).expect("stat").st_ino, first);
        assert_eq!((all.find(first), all.find(second), all.is_gone(7)), (Some(7), Some(7), false));
        drop((one, three));
        assert!(!all.is_gone(7));
        assert_eq!((all.find(first), all.find(second)), (None, Some(7)));
        drop(two);
        assert!(all.is_gone(7));
        all.remove(7);
        assert_eq!(all.find(second), None);
        assert!(all.by_inode.is_empty() && !all.is_gone(7));
    }

    #[test]
    fn nothing_is_kept_that_is_written_to_a_placeholder() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let mut all = Placeholders::default();
        let (end, _) = all.make(7, &epoll).expect("made");
        assert_eq!(rustix::net::send(&end, b"x", rustix::net::SendFlags::NOSIGNAL), Err(Errno::PIPE));
        assert!(!all.is_gone(7));
        let mut events = Vec::with_capacity(4);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)), Ok(0));
        drop(end);
        assert!(all.is_gone(7));
    }
}
