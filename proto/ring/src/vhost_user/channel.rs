//! The back-end channel: a socket of the front end's making, over which the device says
//! the one thing that it says unasked: its configuration has changed.
//!
//! Neither end waits for the other. A notice that finds the socket full is not sent: those
//! in it are unread, and who reads them reads the configuration as it is then.

use super::front::FrontError;
use super::wire::{HEADER, NEED_REPLY, REPLY, VERSION, VERSION_MASK, frame};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::BackendReq;

/// The device's end.
#[derive(Debug)]
pub(super) struct Notifier(OwnedFd);

impl Notifier {
    /// Over whatever descriptor the front end gave.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Says that the configuration has changed. False if the channel is of no more use.
    pub(super) fn config_changed(&self) -> bool {
        // No answer is asked for: nobody here could wait for it.
        let message = frame(BackendReq::CONFIG_CHANGE_MSG.into(), VERSION, &[]);
        loop {
            match send(&self.0, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => return n == message.len(),
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// The front end's end.
#[derive(Debug)]
pub(super) struct Notices {
    socket: UnixStream,
    header: [u8; HEADER],
    have: usize,
}

impl Notices {
    /// Both ends of a new channel: one to listen at, one for the device.
    pub(super) fn pair() -> io::Result<(Self, UnixStream)> {
        let (socket, device) = UnixStream::pair()?;
        Ok((Self { socket, header: [0; HEADER], have: 0 }, device))
    }

    /// Reads all notices that wait. True if there was one: the configuration is to be read again.
    pub(super) fn take(&mut self) -> Result<bool, FrontError> {
        let mut changed = false;
        while self.read()? {
            self.have = 0;
            self.on_notice()?;
            changed = true;
        }
        Ok(changed)
    }

    /// True if a header is complete.
    fn read(&mut self) -> Result<bool, FrontError> {
        while self.have < HEADER {
            match recv(&self.socket, &mut self.header[self.have..], RecvFlags::DONTWAIT) {
                // The device is gone, or has closed its end: the other socket tells which.
                Ok((0, _)) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNRESET) => return Ok(false),
                Ok((n, _)) => self.have += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(FrontError::Socket(error.into())),
            }
        }
        Ok(true)
    }

    fn on_notice(&self) -> Result<(), FrontError> {
        let word = |i: usize| u32::from_ne_bytes(self.header[i..i + 4].try_into().expect("four octets"));
        let (code, flags, size) = (word(0), word(4), word(8));
        let known = code == u32::from(BackendReq::CONFIG_CHANGE_MSG) && size == 0;
        if !known || flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(FrontError::Notice(code));
        }
        if flags & NEED_REPLY != 0 {
            // Before the configuration is read: the device may wait for this and serve nothing else.
            let answer = frame(code, VERSION | REPLY, &0u64.to_ne_bytes());
            // A device that does not read its answers has no need of them.
            let _ = send(&self.socket, &answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        Ok(())
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
