//! `sendfile` to a modelled socket: the file's octets go through a buffer of hostd's, piece by piece.

use super::{Finish, Outcome, Result};
use crate::guest::Guests;
use crate::guest::decode::{msg, u64_at};
use crate::guest::fds::Kind;
use crate::guest::notify::{Listener, Notif};
use crate::guest::reply::Reply;
use crate::guest::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::msg::MORE;
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::uaccess::{Iov, UserSlice};
use rustix::fd::OwnedFd;
use rustix::fs::{SeekFrom, seek};
use std::cell::RefCell;
use std::rc::Rc;

/// Octets of a piece.
const PIECE: u64 = 64 << 10;

/// A transfer on its way.
#[derive(Debug)]
pub struct Transfer {
    handle: i32,
    file: OwnedFd,
    /// Position in the file.
    at: u64,
    left: u64,
    done: u64,
    /// Octets of the piece on its way.
    piece: u64,
    /// Where the position stands; 0: it is the file's own.
    offset: u64,
    buf: Rc<RefCell<Vec<u8>>>,
}

impl Transfer {
    /// True if octets have been moved: an interrupted call returns how many.
    pub fn has_moved(&self) -> bool {
        self.done > 0
    }

    /// Reads the next piece; its octets.
    fn read(&mut self) -> Result<u64> {
        let mut buf = self.buf.borrow_mut();
        buf.resize(self.left.min(PIECE) as usize, 0);
        let read = rustix::io::pread(&self.file, &mut buf[..], self.at);
        self.piece = read.map_err(|errno| Errno::from_raw(errno.raw_os_error()).unwrap_or(Errno::EIO))? as u64;
        Ok(self.piece)
    }

    /// Counts what was sent of a piece; the error with which the transfer ends, if it does.
    fn sent(&mut self, ret: &Ret) -> Option<Option<Errno>> {
        let sent = match ret {
            Ret::Value(sent) => *sent as u64,
            Ret::Err(errno) => return Some(Some(*errno)),
            _ => return Some(Some(Errno::EIO)),
        };
        self.at += sent;
        self.done += sent;
        self.left -= sent.min(self.left);
        (sent < self.piece || self.left == 0).then_some(None)
    }
}

impl Guests {
    pub(super) fn sys_sendfile(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome> {
        let a = &n.args;
        let (out, from) = (self.kind(c, a[0] as i32), self.kind(c, a[1] as i32));
        if out == Kind::Foreign || from == Kind::Foreign {
            return Err(Errno::EACCES);
        }
        let Kind::Modelled(handle) = out else {
            return match from {
                Kind::Modelled(socket) => self.sendfile_from(shared, c, listener, n, socket),
                _ => Ok(Outcome::Continue),
            };
        };
        match from {
            Kind::None => return Err(Errno::EBADF),
            Kind::Modelled(_) | Kind::Epoll(_) | Kind::Foreign => return Err(Errno::EINVAL),
            Kind::Real | Kind::File(_) => {}
        }
        let file = self.copy_of(c, a[1] as i32).ok_or(Errno::EINVAL)?;
        let at = if a[2] == 0 {
            seek(&file, SeekFrom::Current(0)).map_err(|_| Errno::EINVAL)?
        } else {
            let mut buf = [0; 8];
            c.mem.read(a[2], &mut buf)?;
            u64_at(&buf, 0)
        };
        let buf = Rc::default();
        let t = Transfer { handle, file, at, left: a[3].min(msg::MAX_RW), done: 0, piece: 0, offset: a[2], buf };
        self.pieces(shared, c, listener, n, Box::new(t));
        Ok(Outcome::Taken)
    }

    /// Reads pieces and sends them, until the model does not return at once; none left: answers.
    fn pieces(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut t: Box<Transfer>) {
        loop {
            match t.read() {
                Ok(0) => return self.transferred(shared, c, listener, n, &t, None),
                Ok(_) => {}
                Err(errno) => return self.transferred(shared, c, listener, n, &t, Some(errno)),
            }
            let flags = if t.left > t.piece { MORE } else { 0 };
            let iov = Iov::One(UserSlice { addr: 0, len: t.piece });
            self.memory.set_bounce(c.task, Some(t.buf.clone()));
            let call = Call::Send { fd: t.handle, iov, flags, to: None, control: Vec::new() };
            let Some(ret) = shared.guest_syscall(c.task, call) else { return self.block(c, listener, n, Finish::Transfer(t)) };
            // As `start` does: the signal is there before the call is seen to return.
            self.raise_signals(shared);
            self.memory.set_bounce(c.task, None);
            if let Some(error) = t.sent(&ret) {
                return self.transferred(shared, c, listener, n, &t, error);
            }
        }
    }

    /// A piece that had to wait is sent, or part of it.
    pub(super) fn next_piece(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut t: Box<Transfer>, ret: Ret) {
        self.memory.set_bounce(c.task, None);
        match t.sent(&ret) {
            Some(error) => self.transferred(shared, c, listener, n, &t, error),
            None => self.pieces(shared, c, listener, n, t),
        }
    }

    fn transferred(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, t: &Transfer, error: Option<Errno>) {
        if t.done > 0 {
            if t.offset == 0 {
                // The position is shared with the program's descriptor.
                let _ = seek(&t.file, SeekFrom::Start(t.at));
            } else if let Err(errno) = c.mem.write(t.offset, &t.at.to_ne_bytes()) {
                return self.send(shared, c, listener, n, Reply::Value(-i64::from(errno.raw())));
            }
        }
        let value = match error {
            Some(errno) if t.done == 0 => -i64::from(errno.raw()),
            _ => t.done as i64,
        };
        self.send(shared, c, listener, n, Reply::Value(value));
    }
}
