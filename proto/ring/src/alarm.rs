//! Alarms: a timerfd by which time wakes an event loop.
//!
//! A sleep with a time limit makes the machine program its timer on the way in and
//! again on the way out: 4 µs and more under a hypervisor, as much as handing over to
//! another process. Most limits are far away and most sleeps short. An alarm that is
//! set stays set; it is only moved to an earlier time. One that rings too early costs
//! one look.

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A timerfd, to be watched edge-triggered. Times are nanoseconds on the caller's clock.
#[derive(Debug)]
pub struct Alarm {
    fd: OwnedFd,
    /// When it rings; `u64::MAX`: not set.
    rings: u64,
}

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// What `timerfd_create` answers.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?, rings: u64::MAX })
    }

    /// Sees to it that it rings at `at` at the latest, in the past: at once. `None`: it need not.
    ///
    /// # Errors
    /// What `timerfd_settime` answers.
    #[inline]
    pub fn set(&mut self, now: u64, at: Option<u64>) -> io::Result<()> {
        if self.rings <= now {
            self.rings = u64::MAX;
        }
        match at {
            Some(at) if at < self.rings => self.program(now, at),
            _ => Ok(()),
        }
    }

    fn program(&mut self, now: u64, at: u64) -> io::Result<()> {
        // Zero would disarm it.
        let wait = at.saturating_sub(now).max(1);
        let value = Timespec { tv_sec: (wait / 1_000_000_000) as i64, tv_nsec: (wait % 1_000_000_000) as i64 };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: never, it_value: value })?;
        self.rings = now + wait;
        Ok(())
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn rings_within(alarm: &Alarm, ms: i64) -> bool {
        let limit = Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
        poll(&mut [PollFd::new(alarm, PollFlags::IN)], Some(&limit)).expect("polled") == 1
    }

    #[test]
    fn alarm_is_moved_earlier_and_never_later() {
        let mut alarm = Alarm::new().expect("timerfd");
        alarm.set(1000, None).expect("set");
        assert!(!rings_within(&alarm, 5));
        alarm.set(1000, Some(1000 + 3_600_000_000_000)).expect("set");
        assert!(!rings_within(&alarm, 5));
        alarm.set(2000, Some(2000 + 1_000_000)).expect("set");
        alarm.set(3000, Some(3000 + 3_600_000_000_000)).expect("set");
        assert!(rings_within(&alarm, 500), "the earlier time holds");
    }

    #[test]
    fn time_in_the_past_rings_at_once_and_a_rung_alarm_can_be_set_again() {
        let mut alarm = Alarm::new().expect("timerfd");
        alarm.set(5_000, Some(10)).expect("set");
        assert!(rings_within(&alarm, 500));
        // Setting it anew silences what has rung.
        alarm.set(10_000, Some(10_000 + 3_600_000_000_000)).expect("set");
        assert!(!rings_within(&alarm, 5));
    }
}
