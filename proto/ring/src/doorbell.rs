//! Doorbells: eventfds by which one side of a ring wakes the other (kick and call).

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An eventfd. Rings add up until drained.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// A new one, silent.
    ///
    /// # Errors
    /// What `eventfd` answers.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// One that another process handed over; made non-blocking.
    ///
    /// # Errors
    /// `InvalidInput` if it is not an eventfd; else what `fstat` or `fcntl` answers.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        // An eventfd is an anonymous inode, which has no file type; of those only its
        // name under /proc tells it from a timerfd. Where /proc is missing, any passes:
        // none of them can harm more than the node that sent it.
        let anonymous = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Unknown;
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        if !anonymous || name.is_some_and(|n| n.as_os_str() != "anon_inode:[eventfd]") {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd"));
        }
        let flags = fcntl_getfl(&fd)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(Self { fd })
    }

    /// Wakes the other side. A full counter needs no more: it wakes already.
    #[inline]
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Silences it; true if it had been rung. Needless where the descriptor is watched
    /// edge-triggered.
    #[inline]
    pub fn drain(&self) -> bool {
        rustix::io::read(&self.fd, &mut [0u8; 8]).is_ok_and(|n| n == 8)
    }

    /// A second handle of the same eventfd.
    ///
    /// # Errors
    /// What `dup` answers.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Doorbell> for OwnedFd {
    fn from(bell: Doorbell) -> Self {
        bell.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    #[test]
    fn rings_add_up_until_drained() {
        let bell = Doorbell::new().expect("eventfd");
        let far = Doorbell::from_fd(bell.try_clone().expect("dup").into()).expect("is an eventfd");
        assert!(!far.drain());
        bell.ring();
        bell.ring();
        assert!(far.drain());
        assert!(!bell.drain());
    }

    #[test]
    fn blocking_eventfd_becomes_nonblocking() {
        let bell = Doorbell::from_fd(eventfd(0, EventfdFlags::empty()).expect("eventfd")).expect("is one");
        assert!(!bell.drain());
    }

    #[test]
    fn other_descriptors_are_refused() {
        let (pipe, _w) = pipe().expect("pipe");
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).expect("timerfd");
        let file = std::fs::File::open("/dev/null").expect("null").into();
        for fd in [pipe, timer, file] {
            assert_eq!(Doorbell::from_fd(fd).expect_err("refused").kind(), io::ErrorKind::InvalidInput);
        }
    }
}
