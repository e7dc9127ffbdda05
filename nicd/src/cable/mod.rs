//! The cable: shared memory between two NICs of one machine.
//!
//! Theory of operation. The two ends meet at a unix socket (`SOCK_SEQPACKET`): one
//! listens, the other connects, and both do so again for ever, since either may be
//! restarted. Over the socket go an arena and a doorbell in each direction
//! ([`session`]), the memory of each side's driver, and the link's state; frames go
//! through the arenas ([`ringlab_ring::cable`]). Only our own user and root may connect.
//!
//! States: *waiting* (no session; the connecting end retries after 10 ms, then at
//! most every 200 ms), *connected* (a [`session::Session`]). A rule broken by the
//! peer ends the session with an error that names it; the cable waits anew.

pub mod message;
pub mod session;

use crate::poller::{Poller, Token};
use ringlab_device::time::Instant;
use ringlab_proto::server::{is_allowed, listen};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, socket_with};
use session::{Session, SessionError};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const RETRY_MIN_NS: u64 = 10_000_000;
const RETRY_MAX_NS: u64 = 200_000_000;

/// One end of a cable.
pub struct Cable {
    port: u16,
    path: PathBuf,
    listener: Option<OwnedFd>,
    session: Option<Box<Session>>,
    retry_at: Option<Instant>,
    backoff_ns: u64,
}

impl Cable {
    /// An end that listens at `path` or, from the next [`Self::on_time`] on, connects to it.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn open(port: u16, path: &Path, listens: bool, poller: &Poller) -> io::Result<Self> {
        let mut listener = None;
        if listens {
            let socket = listen(path, SocketType::SEQPACKET)?;
            poller.add(&socket, Token::CableListener(port))?;
            listener = Some(socket);
        }
        let retry_at = (!listens).then_some(Instant(0));
        Ok(Self { port, path: path.to_owned(), listener, session: None, retry_at, backoff_ns: RETRY_MIN_NS })
    }

    /// The session, if there is one.
    pub fn session(&mut self) -> Option<&mut Session> {
        self.session.as_deref_mut()
    }

    /// Takes the session out, to be put back: so that its frames can be handed on
    /// while the rest of the port is in use.
    pub fn take_session(&mut self) -> Option<Box<Session>> {
        self.session.take()
    }

    /// Puts it back.
    pub fn put_session(&mut self, session: Option<Box<Session>>) {
        self.session = session;
    }

    /// True if the peer is there and its port up.
    pub fn carrier(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.carrier())
    }

    /// When to call [`Self::on_time`].
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// A peer connects. Returns the new session's greeting; the session before it, if
    /// any, must have been closed: its peer is gone, or would not have connected again.
    pub fn accept(&mut self) -> Option<OwnedFd> {
        let listener = self.listener.as_ref()?;
        let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
        if !is_allowed(&socket) {
            return None;
        }
        Some(socket)
    }

    /// Tries to connect, if it is time and this end connects.
    pub fn on_time(&mut self, now: Instant) -> Option<OwnedFd> {
        self.retry_at.filter(|at| *at <= now)?;
        self.retry_at = Some(now.plus_nanos(self.backoff_ns));
        self.backoff_ns = (self.backoff_ns * 2).min(RETRY_MAX_NS);
        let socket = new_socket().ok()?;
        connect(&socket, &SocketAddrUnix::new(&self.path).ok()?).ok()?;
        is_allowed(&socket).then_some(socket)
    }

    /// Greets over a fresh connection.
    ///
    /// # Errors
    /// When the greeting fails; the cable waits again.
    pub fn start(&mut self, socket: OwnedFd, poller: &Poller) -> Result<(), SessionError> {
        let session = Session::greet(socket)?;
        poller.add(session.socket(), Token::CableMessage(self.port))?;
        poller.add_edge(session.bell(), Token::CableBell(self.port))?;
        self.session = Some(Box::new(session));
        self.retry_at = None;
        Ok(())
    }

    /// The peer has greeted: the next loss is followed by a quick retry.
    pub fn on_up(&mut self) {
        self.backoff_ns = RETRY_MIN_NS;
    }

    /// Ends the session; the tokens of its frames go to `done`.
    pub fn close(&mut self, now: Instant, poller: &Poller, done: impl FnMut(ringlab_device::port::Token)) {
        if let Some(mut session) = self.session.take() {
            poller.remove(session.socket());
            poller.remove(session.bell());
            session.abandon().for_each(done);
        }
        if self.listener.is_none() {
            self.retry_at = Some(now.plus_nanos(self.backoff_ns));
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        if self.listener.is_some() {
            // Somebody may have removed it before: the purpose is met.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}
