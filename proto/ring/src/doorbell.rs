//! Doorbells: eventfds by which one side of a ring wakes the other (kick and call).
//!
//! A real doorbell is heard at once. This one is heard when the machine has woken who listens, tens of microseconds
//! later. So that this does not count as the wire's, a ring can say when it was rung ([`Doorbell::ring_at`]): the
//! eventfd adds up a word with the time in it. Others add 1, as the eventfd's protocol is, and are told from it.
//!
//! | Bits | of [`Doorbell::ring_at`]'s word |
//! |---|---|
//! | 0 to 19 | 0: rings without a time add up here |
//! | 20 to 51 | the time in nanoseconds, modulo 2³² |
//! | 52 to 63 | 1: their number |

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// One ring that says when.
const TIMED: u64 = 1 << 52;
/// Where the time lies.
const TIME_SHIFT: u32 = 20;
/// A ring that is older was not waited for: its time means nothing, or is another's.
const OLDEST_NS: u32 = 100_000_000;

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

    /// Wakes the other side and says that it is `now`, nanoseconds on the monotonic clock. The other side must
    /// drain ([`Self::drain_at`]): 4095 of these fill the counter.
    #[inline]
    pub fn ring_at(&self, now: u64) {
        let word = TIMED | u64::from(now as u32) << TIME_SHIFT;
        let _ = rustix::io::write(&self.fd, &word.to_ne_bytes());
    }

    /// Silences it. When it was rung, if that was once, with the time, and within the last 100 ms before `now`,
    /// nanoseconds on the monotonic clock: whatever the other side wrote.
    #[inline]
    pub fn drain_at(&self, now: u64) -> Option<u64> {
        let mut word = [0; 8];
        rustix::io::read(&self.fd, &mut word).ok()?;
        let word = u64::from_ne_bytes(word);
        let age = (now as u32).wrapping_sub((word >> TIME_SHIFT) as u32);
        (word / TIMED == 1 && age <= OLDEST_NS).then(|| now.saturating_sub(age.into()))
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
    fn a_ring_says_when_it_was() {
        let bell = Doorbell::new().expect("eventfd");
        // Also where the clock passes a multiple of 2³².
        for rung in [5_000_000_000, (7 << 32) - 1, 7 << 32] {
            for (age, heard) in [(0, Some(rung)), (40_000, Some(rung)), (100_000_000, Some(rung)), (100_000_001, None)] {
                bell.ring_at(rung);
                assert_eq!(bell.drain_at(rung + age), heard, "{rung} after {age}");
            }
            bell.ring_at(rung);
            assert_eq!(bell.drain_at(rung - 1), None, "from the future");
        }
        assert_eq!(bell.drain_at(5_000_000_000), None, "silent");
    }

    #[test]
    fn only_a_single_time_counts() {
        let bell = Doorbell::new().expect("eventfd");
        let now = 5_000_000_000;
        bell.ring_at(now);
        bell.ring_at(now);
        assert_eq!(bell.drain_at(now), None, "two");
        bell.ring();
        assert_eq!(bell.drain_at(now), None, "none");
        bell.ring();
        bell.ring_at(now);
        bell.ring();
        assert_eq!(bell.drain_at(now + 9), Some(now), "one, among others");
        for word in [u64::MAX - 1, TIMED - 1, 0x7ff << 52] {
            rustix::io::write(&bell.fd, &word.to_ne_bytes()).expect("written");
            assert_eq!(bell.drain_at(now), None, "{word:#x}");
        }
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
