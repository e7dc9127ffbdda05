//! epoll: which descriptors have something, by token.
//!
//! Doorbells and TAP queues are edge-triggered: a doorbell need never be read, and a
//! queue that must wait for space does not keep the loop awake.

use ringlab_device::time::Instant;
use ringlab_ring::alarm::Alarm;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// What a descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Commands wait.
    Control,
    /// A time limit has passed.
    Alarm,
    /// A vhost-user front end connects to a port.
    VhostListener(u16),
    /// The front end of a port sent a message.
    VhostMessage(u16),
    /// The driver of a port rang a ring.
    Kick(u16, u16),
    /// A peer connects to the cable of a port.
    CableListener(u16),
    /// The peer of a port's cable sent a message, or is gone.
    CableMessage(u16),
    /// The peer of a port's cable rang.
    CableBell(u16),
    /// A queue of the port's device-side TAP has frames.
    TapDevice(u16, u16),
    /// A queue of the port's wire-side TAP has frames.
    TapWire(u16, u16),
}

impl Token {
    fn emit(self) -> u64 {
        let (kind, port, queue) = match self {
            Self::Control => (0, 0, 0),
            Self::Alarm => (9, 0, 0),
            Self::VhostListener(p) => (1, p, 0),
            Self::VhostMessage(p) => (2, p, 0),
            Self::Kick(p, q) => (3, p, q),
            Self::CableListener(p) => (4, p, 0),
            Self::CableMessage(p) => (5, p, 0),
            Self::CableBell(p) => (6, p, 0),
            Self::TapDevice(p, q) => (7, p, q),
            Self::TapWire(p, q) => (8, p, q),
        };
        kind << 32 | u64::from(port) << 16 | u64::from(queue)
    }

    fn parse(word: u64) -> Self {
        let (port, queue) = ((word >> 16) as u16, word as u16);
        match word >> 32 {
            1 => Self::VhostListener(port),
            2 => Self::VhostMessage(port),
            3 => Self::Kick(port, queue),
            4 => Self::CableListener(port),
            5 => Self::CableMessage(port),
            6 => Self::CableBell(port),
            7 => Self::TapDevice(port, queue),
            8 => Self::TapWire(port, queue),
            9 => Self::Alarm,
            _ => Self::Control,
        }
    }
}

/// An epoll instance.
pub struct Poller {
    epoll: OwnedFd,
    alarm: Alarm,
    events: Vec<Event>,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Look,
    /// Until then, or a little less ([`Alarm`]); `None`: for ever.
    Until(Option<Instant>),
}

const EVENTS: usize = 128;

impl Poller {
    /// One that watches nothing.
    ///
    /// # Errors
    /// What `epoll_create1` answers.
    pub fn new() -> io::Result<Self> {
        let poller = Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, alarm: Alarm::new()?, events: Vec::with_capacity(EVENTS) };
        poller.add_edge(&poller.alarm, Token::Alarm)?;
        Ok(poller)
    }

    /// Watches a socket, as long as it has something.
    ///
    /// # Errors
    /// What `epoll_ctl` answers.
    pub fn add(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.emit()), EventFlags::IN | EventFlags::RDHUP)?)
    }

    /// Watches a doorbell or TAP queue, once for each arrival.
    ///
    /// # Errors
    /// What `epoll_ctl` answers.
    pub fn add_edge(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.emit()), EventFlags::IN | EventFlags::ET)?)
    }

    /// Watches no longer. Needed for descriptors that another process holds as well:
    /// closing ours does not end the watch.
    pub fn remove(&self, fd: impl AsFd) {
        // It may have been removed already: then there is nothing to do.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits until something has come or it is time.
    ///
    /// # Errors
    /// What `epoll_wait` or `timerfd_settime` answers, interruption excepted.
    pub fn wait(&mut self, wait: Wait, mut on_event: impl FnMut(Token)) -> io::Result<()> {
        let timeout = match wait {
            Wait::Look => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
            Wait::Until(at) => {
                self.alarm.set(now().0, at.map(|at| at.0))?;
                None
            }
        };
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for event in &self.events {
            on_event(Token::parse(event.data.u64()));
        }
        Ok(())
    }
}

/// The monotonic clock.
#[inline]
pub fn now() -> Instant {
    let t = clock_gettime(ClockId::Monotonic);
    Instant(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlab_ring::doorbell::Doorbell;

    #[test]
    fn tokens_survive_the_kernel() {
        let all = [
            Token::Control,
            Token::Alarm,
            Token::VhostListener(1),
            Token::VhostMessage(2),
            Token::Kick(3, 4),
            Token::CableListener(5),
            Token::CableMessage(6),
            Token::CableBell(65535),
            Token::TapDevice(7, 8),
            Token::TapWire(9, 65535),
        ];
        for token in all {
            assert_eq!(Token::parse(token.emit()), token);
        }
    }

    #[test]
    fn a_bell_that_is_not_read_is_heard_again() {
        let mut poller = Poller::new().expect("epoll");
        let bell = Doorbell::new().expect("eventfd");
        poller.add_edge(&bell, Token::CableBell(3)).expect("added");
        for _ in 0..3 {
            bell.ring();
            let mut heard = Vec::new();
            poller.wait(Wait::Look, |t| heard.push(t)).expect("waited");
            assert_eq!(heard, [Token::CableBell(3)]);
            poller.wait(Wait::Look, |t| panic!("{t:?} without a ring")).expect("waited");
        }
    }

    #[test]
    fn timeouts_are_finer_than_a_millisecond() {
        let mut poller = Poller::new().expect("epoll");
        let best = (0..20)
            .map(|_| {
                let start = now();
                poller.wait(Wait::Until(Some(start.plus_nanos(100_000))), |_| ()).expect("waited");
                now().nanos_since(start)
            })
            .min()
            .expect("twenty");
        assert!((100_000..900_000).contains(&best), "{best} ns");
    }
}
