//! Messages on the back end's socket: 12 octets of header, a body, descriptors.

use crate::packed::RingError;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

/// What was wrong with a front end; the connection is over.
#[derive(Debug, thiserror::Error)]
pub enum BackError {
    /// The socket failed.
    #[error("vhost-user socket: {0}")]
    Socket(#[source] io::Error),
    /// The front end hung up inside a message.
    #[error("front end hung up inside a message")]
    Truncated,
    /// Version, flags or size that no message has.
    #[error("message header has flags {flags:#x} and size {size}")]
    BadHeader {
        /// As received.
        flags: u32,
        /// As received.
        size: u32,
    },
    /// A request that does not exist or was not negotiated.
    #[error("request {0} is unknown or was not negotiated")]
    UnknownRequest(u32),
    /// A body shorter or longer than its request's.
    #[error("{request:?} with a body of {size} octets")]
    BodySize {
        /// The request.
        request: FrontendReq,
        /// Octets of the body.
        size: usize,
    },
    /// Too few, too many or surprising descriptors.
    #[error("{request:?} with {count} descriptors")]
    Descriptors {
        /// The request.
        request: FrontendReq,
        /// Descriptors received.
        count: usize,
    },
    /// More descriptors than a message may carry.
    #[error("a message carries more descriptors than {MAX_ATTACHED_FD_ENTRIES}")]
    TooManyDescriptors,
    /// Features that were not offered, or too few of them.
    #[error("features {0:#x} were not offered, are missing, or change under a running ring")]
    Features(u64),
    /// A ring that the device does not have.
    #[error("ring {0} does not exist")]
    VringIndex(u64),
    /// A value outside its range.
    #[error("{request:?} with value {value}")]
    Value {
        /// The request.
        request: FrontendReq,
        /// As received.
        value: u64,
    },
    /// Memory that cannot be mapped.
    #[error("memory region {index}: {source}")]
    Map {
        /// Index in the table.
        index: usize,
        /// Why.
        source: io::Error,
    },
    /// Memory that the front end could shrink, which would end this process.
    #[error("memory region {index} is not sealed against shrinking (F_SEAL_SHRINK)")]
    Unsealed {
        /// Index in the table.
        index: usize,
    },
    /// A descriptor that is no eventfd.
    #[error("{request:?}: {source}")]
    Doorbell {
        /// The request.
        request: FrontendReq,
        /// Why.
        source: io::Error,
    },
    /// Addresses or sizes of memory or ring, or the device's own verdict.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The front end does not read its answers.
    #[error("front end does not read its answers")]
    NotReading,
}

/// One request, complete.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) request: FrontendReq,
    pub(super) need_reply: bool,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    /// The body, if it has exactly `N` octets.
    pub(super) fn fixed<const N: usize>(&self) -> Result<&[u8; N], BackError> {
        self.body.as_slice().try_into().map_err(|_| self.bad_size())
    }

    pub(super) fn bad_size(&self) -> BackError {
        BackError::BodySize { request: self.request, size: self.body.len() }
    }

    pub(super) fn u64(&self) -> Result<u64, BackError> {
        Ok(u64::from_ne_bytes(*self.fixed()?))
    }

    /// Index and value, the body of most ring requests.
    pub(super) fn pair(&self) -> Result<(u32, u32), BackError> {
        self.fixed::<8>()?;
        Ok((self.u32_at(0), self.u32_at(4)))
    }

    /// # Panics
    /// If the body is shorter: sizes are checked first.
    pub(super) fn u32_at(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.body[at..at + 4].try_into().expect("four octets"))
    }

    /// # Panics
    /// If the body is shorter: sizes are checked first.
    pub(super) fn u64_at(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.body[at..at + 8].try_into().expect("eight octets"))
    }

    /// No descriptors may have come.
    pub(super) fn expect_fds(&self, count: usize) -> Result<(), BackError> {
        if self.fds.len() == count { Ok(()) } else { Err(BackError::Descriptors { request: self.request, count: self.fds.len() }) }
    }
}

pub(super) const HEADER: usize = 12;
pub(super) const VERSION: u32 = 1;
pub(super) const VERSION_MASK: u32 = 3;
pub(super) const REPLY: u32 = 4;
pub(super) const NEED_REPLY: u32 = 8;

/// What was read of the next message. Never waits: half a message stays here.
#[derive(Debug)]
pub(super) struct Reader {
    buf: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What a look at the socket brought.
pub(super) enum Read {
    Message(Message),
    WouldBlock,
    HungUp,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { buf: Vec::with_capacity(HEADER + 64), fds: Vec::new() }
    }

    /// Reads on; at most one message, since a read must not cross into the next one
    /// and take its descriptors.
    pub(super) fn read(&mut self, socket: &UnixStream) -> Result<Read, BackError> {
        loop {
            let want = if self.buf.len() < HEADER { HEADER } else { HEADER + self.header()?.2 };
            if self.buf.len() >= HEADER && self.buf.len() == want {
                return self.take().map(Read::Message);
            }
            match self.receive(socket, want) {
                Ok(0) if self.buf.is_empty() => return Ok(Read::HungUp),
                Ok(0) => return Err(BackError::Truncated),
                Ok(_) => {}
                Err(BackError::Socket(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Read::WouldBlock),
                Err(BackError::Socket(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(BackError::Socket(e)) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(Read::HungUp),
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads up to `want` octets of the message in all.
    fn receive(&mut self, socket: &UnixStream, want: usize) -> Result<usize, BackError> {
        let have = self.buf.len();
        self.buf.resize(want, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let result = recvmsg(socket, &mut [IoSliceMut::new(&mut self.buf[have..])], &mut ancillary, flags);
        let got = result.as_ref().map_or(0, |m| m.bytes);
        self.buf.truncate(have + got);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        let message = result.map_err(|e| BackError::Socket(e.into()))?;
        if message.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_ATTACHED_FD_ENTRIES {
            return Err(BackError::TooManyDescriptors);
        }
        Ok(got)
    }

    /// Code, flags and body size of the header, checked.
    fn header(&self) -> Result<(FrontendReq, u32, usize), BackError> {
        let word = |i: usize| u32::from_ne_bytes(self.buf[i..i + 4].try_into().expect("four octets"));
        let (code, flags, size) = (word(0), word(4), word(8));
        if flags & !NEED_REPLY & !VERSION_MASK != 0 || flags & VERSION_MASK != VERSION || size as usize > MAX_MSG_SIZE {
            return Err(BackError::BadHeader { flags, size });
        }
        let request = FrontendReq::try_from(code).map_err(|_| BackError::UnknownRequest(code))?;
        Ok((request, flags, size as usize))
    }

    fn take(&mut self) -> Result<Message, BackError> {
        let (request, flags, _) = self.header()?;
        let body = self.buf[HEADER..].to_vec();
        self.buf.clear();
        Ok(Message { request, need_reply: flags & NEED_REPLY != 0, body, fds: std::mem::take(&mut self.fds) })
    }
}

/// A message: header and body.
pub(super) fn frame(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    for word in [code, flags, body.len() as u32] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    out.extend_from_slice(body);
    out
}

/// Answers a request. Never waits: a front end that lets its socket fill up is cut off.
pub(super) fn reply(socket: &UnixStream, request: FrontendReq, body: &[u8]) -> Result<(), BackError> {
    let out = frame(request.into(), VERSION | REPLY, body);
    loop {
        match send(socket, &out, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) if n == out.len() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::AGAIN) => return Err(BackError::NotReading),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(BackError::Socket(e.into())),
        }
    }
}
