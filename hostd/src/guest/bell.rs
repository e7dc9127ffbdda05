//! What is ready in the model, said by the machine's kernel.
//!
//! A signalfd is readable for whoever has a signal pending: a process that looks at it sees its own signals, and hostd
//! cannot see a program's. So the machine's kernel makes the waits of an epoll set with a signalfd, and the program gets what it finds.
//! Modelled sockets take part by a *bell*: a descriptor that hostd puts into the real instance when the model
//! has an event, whose readiness, and data, are those of the event.

use crate::limits::is_last;
use ringlab_kernel::syscall::EpollEvent;
use ringlab_kernel::wait::queue::PollEvents;
use rustix::event::epoll as ep;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, send, shutdown, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

/// Flags of an entry of an epoll set that are no events.
const FLAGS: u32 = 0xf << 28;

/// An event of the model that a thread finds in the real instance of a set, once.
#[derive(Debug)]
pub struct Bell {
    /// Set in which it is.
    pub set: u32,
    /// What the thread gets.
    pub event: EpollEvent,
    fd: OwnedFd,
    /// Holds what the descriptor's readiness depends on.
    _other: Option<OwnedFd>,
}

impl Bell {
    /// Puts an event into the real instance of set number `set`.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`, `ENOSPC`.
    pub fn ring(real: &OwnedFd, set: u32, event: EpollEvent) -> Result<Self, Errno> {
        let (fd, other) = ready(event.events)?;
        if is_last(fd.as_fd()) {
            return Err(Errno::NFILE);
        }
        let flags = ep::EventFlags::from_bits_retain(event.events.bits()) | ep::EventFlags::ONESHOT;
        ep::add(real, &fd, ep::EventData::new_u64(event.data), flags)?;
        Ok(Self { set, event, fd, _other: other })
    }

    /// True if nobody has got it yet. Such an entry still waits for something.
    pub fn is_left(&self, real: &OwnedFd) -> bool {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", real.as_raw_fd())).unwrap_or_default();
        info.lines().filter_map(|l| l.strip_prefix("tfd:")).any(|l| {
            let mut words = l.split_whitespace();
            let is_it = words.next().and_then(|w| w.parse().ok()) == Some(self.fd.as_raw_fd());
            let events = words.nth(1).and_then(|w| u32::from_str_radix(w, 16).ok()).unwrap_or(0);
            is_it && events & !FLAGS != 0
        })
    }
}

/// A descriptor for which at least these events are ready, and none of `ERR` and `HUP` that is not among them.
fn ready(events: PollEvents) -> Result<(OwnedFd, Option<OwnedFd>), Errno> {
    if events.contains(PollEvents::ERR) && !events.contains(PollEvents::HUP) {
        // Nobody reads.
        return Ok((pipe_with(PipeFlags::CLOEXEC)?.1, None));
    }
    let (fd, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if events.contains(PollEvents::HUP) {
        if events.contains(PollEvents::ERR) {
            // What the other end has not read when it closes is an error here.
            send(&fd, b"x", SendFlags::empty())?;
        }
        return Ok((fd, None));
    }
    // Not every kernel has urgent data here.
    if !events.contains(PollEvents::PRI) || send(&other, b"x", SendFlags::OOB).is_err() {
        send(&other, b"x", SendFlags::empty())?;
    }
    if events.contains(PollEvents::RDHUP) {
        shutdown(&other, Shutdown::Write)?;
    }
    Ok((fd, Some(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::Timespec;

    fn found(real: &OwnedFd) -> Vec<(u64, u32)> {
        let mut events = Vec::with_capacity(8);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        ep::wait(real, rustix::buffer::spare_capacity(&mut events), Some(&now)).expect("an epoll instance");
        events
            .iter()
            .map(|e: &ep::Event| {
                let (flags, data) = (e.flags, e.data);
                (data.u64(), flags.bits())
            })
            .collect()
    }

    #[test]
    fn a_bell_says_once_what_is_ready() {
        let real = ep::create(ep::CreateFlags::CLOEXEC).expect("epoll");
        let [input, output, error] = [PollEvents::IN, PollEvents::OUT, PollEvents::ERR];
        let (end, both) = (PollEvents::RDHUP, PollEvents::RDHUP | PollEvents::HUP);
        for events in [input, output, input | output, input | end, input | output | both, error | output, input | output | error | both] {
            let bell = Bell::ring(&real, 7, EpollEvent { events, data: 42 }).expect("descriptors");
            assert!(bell.is_left(&real), "{events:?}");
            assert_eq!(found(&real), [(42, events.bits())], "{events:?}");
            assert!(!bell.is_left(&real) && found(&real).is_empty(), "{events:?}");
            assert_eq!((bell.set, bell.event.data), (7, 42));
            drop(bell);
        }
        drop(Bell::ring(&real, 7, EpollEvent { events: input, data: 42 }).expect("descriptors"));
        assert!(found(&real).is_empty(), "a bell that is gone");
    }
}
