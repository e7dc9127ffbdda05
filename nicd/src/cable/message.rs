//! Messages over the cable's rendezvous socket: a fixed record and up to two
//! descriptors each. The other side may send anything: parsing fails, it does not panic.

use arrayvec::ArrayVec;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors of a message.
pub type Fds = ArrayVec<OwnedFd, MAX_FDS>;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// First of all, from both sides, with arena and doorbell.
    Hello {
        /// Octets of the arena.
        arena: u64,
    },
    /// Fragments may name this region, once acknowledged. With its file.
    Region {
        /// Above 0, never used before on this connection.
        id: u32,
        /// Octets, from the start of the file.
        len: u64,
    },
    /// Answer to `Region`.
    RegionAck {
        /// Which.
        id: u32,
        /// It is mapped.
        ok: bool,
    },
    /// No fragment will name it again, and none that waits does.
    Unregion {
        /// Which.
        id: u32,
    },
    /// The sender's port is administratively up or down.
    Link {
        /// Up.
        up: bool,
    },
}

/// Not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this cable's protocol")]
pub struct Malformed;

const MAX_FDS: usize = 2;
const LEN: usize = 24;
/// "RLC1": Ringlab cable, version 1.
const MAGIC: u32 = 0x3143_4c52;

impl Message {
    fn emit(self) -> [u8; LEN] {
        let (kind, id, value) = match self {
            Self::Hello { arena } => (1u32, MAGIC, arena),
            Self::Region { id, len } => (2, id, len),
            Self::RegionAck { id, ok } => (3, id, ok.into()),
            Self::Unregion { id } => (4, id, 0),
            Self::Link { up } => (5, 0, up.into()),
        };
        let mut b = [0; LEN];
        b[..4].copy_from_slice(&kind.to_le_bytes());
        b[4..8].copy_from_slice(&id.to_le_bytes());
        b[8..16].copy_from_slice(&value.to_le_bytes());
        b
    }

    fn parse(b: &[u8]) -> Result<Self, Malformed> {
        let b: &[u8; LEN] = b.try_into().map_err(|_| Malformed)?;
        let word = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let (kind, id, value) = (word(0), word(4), u64::from(word(8)) | u64::from(word(12)) << 32);
        match (kind, value) {
            (1, arena) if id == MAGIC => Ok(Self::Hello { arena }),
            (2, len) if id != 0 => Ok(Self::Region { id, len }),
            (3, 0 | 1) => Ok(Self::RegionAck { id, ok: value == 1 }),
            (4, 0) => Ok(Self::Unregion { id }),
            (5, 0 | 1) => Ok(Self::Link { up: value == 1 }),
            _ => Err(Malformed),
        }
    }
}

/// Sends a message. The socket's buffer holds all that a peer which reads needs: a full one is an error.
///
/// # Errors
/// What `sendmsg` answers.
pub fn send(socket: impl AsFd, message: Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&message.emit())], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Receives a message; `None` if none waits.
///
/// # Errors
/// `UnexpectedEof` when the peer is gone, `InvalidData` for what is not a message; what `recvmsg` answers.
pub fn receive(socket: impl AsFd) -> io::Result<Option<(Message, Fds)>> {
    let mut bytes = [0; LEN + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC);
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut fds = Fds::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            for fd in rights {
                fds.try_push(fd).map_err(|_| invalid())?;
            }
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        return Err(invalid());
    }
    let message = Message::parse(&bytes[..received.bytes]).map_err(|_| invalid())?;
    Ok(Some((message, fds)))
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    const ALL: [Message; 5] = [
        Message::Hello { arena: 1 << 40 },
        Message::Region { id: 7, len: u64::MAX },
        Message::RegionAck { id: 7, ok: true },
        Message::Unregion { id: u32::MAX },
        Message::Link { up: false },
    ];

    #[test]
    fn messages_and_descriptors_cross() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("pair");
        assert!(receive(&b).expect("open").is_none());
        for message in ALL {
            send(&a, message, &[a.as_fd(), b.as_fd()]).expect("sent");
            let (got, fds) = receive(&b).expect("open").expect("one waits");
            assert_eq!((got, fds.len()), (message, 2));
        }
        drop(a);
        assert_eq!(receive(&b).expect_err("closed").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn anything_else_is_refused() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("pair");
        for bytes in [&[0u8; 24][..], &[1; 24], &[0; 3], &[5; 100]] {
            rustix::net::send(&a, bytes, SendFlags::empty()).expect("sent");
            assert_eq!(receive(&b).expect_err("refused").kind(), io::ErrorKind::InvalidData);
        }
    }
}
