//! `splice` between a program's pipe and a modelled socket (Linux `splice_to_socket`, `tcp_splice_read`,
//! `copy_splice_read`), and `sendfile` from such a socket to a pipe.
//!
//! The pipe is the machine's, the socket the model's. Octets go from one to the other through the *stage*, a pipe of
//! hostd's own:
//!
//! ```text
//! to a socket:    pipe ── tee ──▶ stage ── read ──▶ send in the model; what it took leaves the pipe
//! from a socket:  peek in the model ── write ──▶ stage ── splice ──▶ pipe; what fitted leaves the socket
//! ```
//!
//! Nothing leaves its source before it has arrived, so that a pipe that is full, a send buffer that is full and a signal
//! find all octets in one place or the other. `splice` and `tee` are told not to wait: `O_NONBLOCK` is the open file's,
//! which is the program's. Whoever has to wait for the pipe does so in hostd's epoll; for the socket, in the model.
//!
//! Deviation: Linux holds the pipe's lock throughout. Here another reader of the same pipe may come between `tee` and
//! the moment at which the octets leave it, and sees them too.

use super::stage::Room;
use super::{Finish, Outcome, Result};
use crate::guest::Guests;
use crate::guest::fds::{Kind, status_flags};
use crate::guest::notify::{Listener, Notif};
use crate::guest::table::Caller;
use crate::guest::token::{self, Token};
use crate::host::Shared;
use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::msg::{DONTWAIT, MORE, PEEK, TRUNC};
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::uaccess::{Iov, UserSlice};
use rustix::event::epoll as ep;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, open};
use rustix::io::Errno as OsErrno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::cell::RefCell;
use std::rc::Rc;

/// Octets taken from a socket at a time: what the stage holds.
const PIECE: u64 = 64 << 10;
/// Most octets of a pipe's sixteen buffers at a time: some may be larger than a page.
const MOST: u64 = 1 << 20;
/// Pieces of one call. A program that fills the pipe as fast as it is emptied does not keep the host from its other work.
const ROUNDS: usize = 64;

const SPLICE_F_NONBLOCK: u64 = 2;
const SPLICE_F_MORE: u64 = 4;
const SPLICE_F_ALL: u64 = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the socket to the pipe.
    Out,
    /// From the pipe to the socket.
    In,
}

/// A `splice` on its way.
#[derive(Debug)]
pub struct Splice {
    way: Way,
    /// The socket.
    handle: i32,
    /// A copy of the program's end.
    pipe: OwnedFd,
    /// The call does not wait for the pipe.
    nonblock: bool,
    /// `SPLICE_F_MORE`.
    more: bool,
    source: Source,
    left: u64,
    done: u64,
    /// Octets that the model was given to send.
    piece: u64,
    buf: Rc<RefCell<Vec<u8>>>,
    /// Watched by hostd's epoll while the call waits for the pipe.
    watch: Option<OwnedFd>,
}

/// What matters of a socket that is read.
#[derive(Debug, Clone, Copy, Default)]
struct Source {
    stream: bool,
    nonblock: bool,
    /// `SO_PEEK_OFF`, of which `splice` knows nothing.
    peek_off: Option<i32>,
}

/// How a call goes on.
enum Next {
    /// With the next piece.
    Again,
    /// When the pipe is ready.
    Pipe,
    /// When the model returns.
    Socket,
    /// Not at all.
    Over(Option<Errno>),
}

/// A program's descriptor that may be a pipe.
struct End {
    /// A copy, if it is one.
    pipe: Option<OwnedFd>,
    /// Status flags.
    flags: i32,
}

impl Splice {
    /// True if octets have been moved: an interrupted call returns how many.
    pub fn has_moved(&self) -> bool {
        self.done > 0
    }
}

impl Guests {
    /// `splice`: between pipes and files the machine's kernel does it.
    pub(super) fn sys_splice(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome> {
        let [fd_in, at_in, fd_out, at_out, len, flags] = n.args;
        let (from, to) = (self.kind(c, fd_in as i32), self.kind(c, fd_out as i32));
        if len == 0 || flags & 0xffff_ffff & !SPLICE_F_ALL != 0 || from == Kind::None || to == Kind::None {
            return Ok(Outcome::Continue);
        }
        if from == Kind::Foreign || to == Kind::Foreign {
            return Err(Errno::EACCES);
        }
        let (way, handle, fd, at_pipe, at_socket) = match (from, to) {
            (Kind::Modelled(_), Kind::Modelled(_)) => {
                readable(c, [at_out, at_in])?;
                return Err(Errno::EINVAL);
            }
            (Kind::Modelled(handle), _) => (Way::Out, handle, fd_out, at_out, at_in),
            (_, Kind::Modelled(handle)) => (Way::In, handle, fd_in, at_in, at_out),
            _ => return Ok(Outcome::Continue),
        };
        let end = self.end_of_pipe(c, fd as i32, way)?;
        if end.pipe.is_some() && at_pipe != 0 {
            return Err(Errno::ESPIPE);
        }
        readable(c, [at_out, at_in])?;
        if !end.serves(way) {
            return Err(Errno::EBADF);
        }
        let pipe = end.pipe.ok_or(Errno::EINVAL)?;
        // A socket has no positions (`FMODE_PREAD`), nor an end to append at.
        let appends = way == Way::In && self.flags_of(shared, c, handle) & libc::O_APPEND != 0;
        if at_socket != 0 || appends || i64::try_from(len).is_err() {
            return Err(Errno::EINVAL);
        }
        let nonblock = flags & SPLICE_F_NONBLOCK != 0 || end.flags & libc::O_NONBLOCK != 0;
        let s = self.splice(shared, c, (way, handle, pipe), len, nonblock, flags & SPLICE_F_MORE != 0);
        self.go_on(shared, c, listener, n, s);
        Ok(Outcome::Taken)
    }

    /// `sendfile` from a socket: to a pipe it is `splice`, anywhere else nothing.
    pub(super) fn sendfile_from(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, handle: i32) -> Result<Outcome> {
        let [fd, _, at, len, ..] = n.args;
        if at != 0 {
            readable(c, [at, 0])?;
            return Err(Errno::ESPIPE);
        }
        i64::try_from(len).map_err(|_| Errno::EINVAL)?;
        if self.kind(c, fd as i32) == Kind::None {
            return Err(Errno::EBADF);
        }
        let end = self.end_of_pipe(c, fd as i32, Way::Out)?;
        if !end.serves(Way::Out) {
            return Err(Errno::EBADF);
        }
        let pipe = end.pipe.ok_or(Errno::EINVAL)?;
        let s = self.splice(shared, c, (Way::Out, handle, pipe), len, end.flags & libc::O_NONBLOCK != 0, false);
        self.go_on(shared, c, listener, n, s);
        Ok(Outcome::Taken)
    }

    fn splice(
        &self,
        shared: &Shared,
        c: Caller,
        (way, handle, pipe): (Way, i32, OwnedFd),
        left: u64,
        nonblock: bool,
        more: bool,
    ) -> Box<Splice> {
        let option = |name: i32| match shared.guest_syscall(c.task, Call::GetSockOptRaw(handle, libc::SOL_SOCKET, name, vec![0; 4])) {
            Some(Ret::OptRaw(value, _)) => value.try_into().ok().map(i32::from_ne_bytes),
            _ => None,
        };
        let source = match way {
            Way::Out => Source {
                stream: option(libc::SO_TYPE) == Some(libc::SOCK_STREAM),
                nonblock: self.flags_of(shared, c, handle) & libc::O_NONBLOCK != 0,
                peek_off: option(libc::SO_PEEK_OFF).filter(|&at| at >= 0),
            },
            Way::In => Source::default(),
        };
        Box::new(Splice { way, handle, pipe, nonblock, more, source, left, done: 0, piece: 0, buf: Rc::default(), watch: None })
    }

    /// Status flags of a modelled file.
    fn flags_of(&self, shared: &Shared, c: Caller, handle: i32) -> i32 {
        shared.guest_syscall(c.task, Call::GetFl(handle)).map_or(0, |ret| ret.as_number() as i32)
    }

    /// Looks at a descriptor that is to be a pipe. Where the machine refuses copies, a pipe is opened afresh.
    fn end_of_pipe(&self, c: Caller, fd: i32, way: Way) -> Result<End> {
        let pidfd = &self.procs.get(&c.tgid).ok_or(Errno::ESRCH)?.pidfd;
        let is_pipe = |mode: u32| FileType::from_raw_mode(mode) == FileType::Fifo;
        if let Ok(copy) = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()) {
            let mode = rustix::fs::fstat(&copy).map_err(errno)?.st_mode;
            let flags = rustix::fs::fcntl_getfl(&copy).map_err(errno)?.bits() as i32;
            return Ok(End { pipe: is_pipe(mode).then_some(copy), flags });
        }
        let flags = status_flags(c.tid, fd).ok_or(Errno::EBADF)?;
        let path = format!("/proc/{}/fd/{fd}", c.tid);
        let mut end = End { pipe: None, flags };
        if end.serves(way) && rustix::fs::stat(&path).is_ok_and(|s| is_pipe(s.st_mode)) {
            let access = if way == Way::Out { OFlags::WRONLY } else { OFlags::RDONLY };
            end.pipe = match open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
                Ok(pipe) => Some(pipe),
                Err(OsErrno::NXIO) => return Err(self.broken_pipe(c)),
                Err(error) => return Err(errno(error)),
            };
        }
        Ok(end)
    }

    /// Nobody reads the pipe: Linux says so twice.
    fn broken_pipe(&self, c: Caller) -> Errno {
        self.raise_sigpipe(c);
        Errno::EPIPE
    }

    /// Moves what can be moved; then answers, or waits.
    fn go_on(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut s: Box<Splice>) {
        for _ in 0..ROUNDS {
            if s.left == 0 {
                break;
            }
            let next = match s.way {
                Way::Out => self.take_piece(shared, c, &mut s),
                Way::In => self.give_piece(shared, c, &mut s),
            };
            match next {
                Next::Again => {}
                Next::Pipe => return self.wait_for_pipe(shared, c, listener, n, s),
                Next::Socket => return self.block(c, listener, n, Finish::Splice(s)),
                Next::Over(error) => return self.spliced(shared, c, listener, n, &s, error),
            }
        }
        // Without a result it would look like the end.
        let error = (s.left > 0).then_some(Errno::EAGAIN);
        self.spliced(shared, c, listener, n, &s, error);
    }

    /// From the socket to the pipe.
    fn take_piece(&mut self, shared: &Shared, c: Caller, s: &mut Splice) -> Next {
        if s.done == 0 {
            match Room::of(&s.pipe) {
                Room::Gone => return Next::Over(Some(self.broken_pipe(c))),
                Room::Full => return s.full(),
                Room::Some => {}
            }
        } else if !matches!(shared.guest_syscall(c.task, Call::Inq(s.handle)), Some(Ret::Value(1..))) {
            // A pending error is left for the next call.
            return Next::Over(None);
        }
        // `tcp_read_sock` does not read past the urgent octet.
        if s.source.stream && matches!(shared.guest_syscall(c.task, Call::AtMark(s.handle)), Some(Ret::Value(1))) {
            return Next::Over(s.source.nonblock.then_some(Errno::EAGAIN));
        }
        let len = match self.peek(shared, c, s) {
            Ok(0) if s.source.stream => return Next::Over(None),
            Ok(len) => len,
            Err(Errno::EAGAIN) if s.done == 0 && !s.source.nonblock => return Self::wait_for_socket(shared, c, s),
            Err(error) => return Next::Over(Some(error)),
        };
        let moved = match self.stage.push(&s.buf.borrow()[..len], &s.pipe) {
            Ok(0) if len > 0 => return s.full(),
            Ok(moved) => moved,
            Err(OsErrno::PIPE) => return Next::Over(Some(self.broken_pipe(c))),
            Err(error) => return Next::Over(Some(errno(error))),
        };
        // Of a datagram, the rest goes too.
        let (room, flags) = if s.source.stream { (moved as u64, DONTWAIT | TRUNC) } else { (0, DONTWAIT) };
        shared.guest_syscall(c.task, receive(s.handle, room, flags));
        s.count(moved as u64);
        if moved < len || !s.source.stream { Next::Over(None) } else { Next::Again }
    }

    /// Copies the next octets of the socket to the call's buffer, and leaves them where they are.
    fn peek(&mut self, shared: &Shared, c: Caller, s: &Splice) -> Result<usize> {
        let want = s.left.min(PIECE);
        s.buf.borrow_mut().resize(want as usize, 0);
        let peek_off = |at: i32| {
            let call = Call::SetSockOptRaw(s.handle, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at.to_ne_bytes().to_vec());
            s.source.peek_off.and_then(|_| shared.guest_syscall(c.task, call));
        };
        peek_off(-1);
        self.memory.set_bounce(c.task, Some(s.buf.clone()));
        let ret = shared.guest_syscall(c.task, receive(s.handle, want, PEEK | DONTWAIT));
        self.memory.set_bounce(c.task, None);
        peek_off(s.source.peek_off.unwrap_or(-1));
        match ret {
            Some(Ret::Err(error)) => Err(error),
            Some(ret) => Ok(ret.as_number() as usize),
            None => Err(Errno::EIO),
        }
    }

    /// Waits for something to read: a look at nothing, which ends when there is something to look at.
    fn wait_for_socket(shared: &Shared, c: Caller, s: &Splice) -> Next {
        match shared.guest_syscall(c.task, receive(s.handle, 0, PEEK)) {
            None => Next::Socket,
            Some(Ret::Err(error)) => Next::Over(Some(error)),
            Some(_) => Next::Again,
        }
    }

    /// From the pipe to the socket: what sixteen buffers hold is one message.
    fn give_piece(&mut self, shared: &Shared, c: Caller, s: &mut Splice) -> Next {
        let (len, full) = match self.stage.look(&s.pipe, s.left.min(MOST), &mut s.buf.borrow_mut()) {
            Ok(found) => found,
            Err(OsErrno::AGAIN) if s.done > 0 => return Next::Over(None),
            Err(OsErrno::AGAIN) => return s.full(),
            Err(error) => return Next::Over(Some(errno(error))),
        };
        if len == 0 {
            return Next::Over(None);
        }
        s.piece = len as u64;
        let flags = if s.more || full && s.left > s.piece { MORE } else { 0 };
        let iov = Iov::One(UserSlice { addr: 0, len: s.piece });
        self.memory.set_bounce(c.task, Some(s.buf.clone()));
        match shared.guest_syscall(c.task, Call::Send { fd: s.handle, iov, flags, to: None, control: Vec::new() }) {
            None => Next::Socket,
            Some(ret) => self.given(c, s, &ret),
        }
    }

    /// The model has taken a piece, or part of it: it leaves the pipe.
    fn given(&mut self, c: Caller, s: &mut Splice, ret: &Ret) -> Next {
        self.memory.set_bounce(c.task, None);
        let piece = core::mem::take(&mut s.piece);
        let sent = match ret {
            Ret::Value(sent) => *sent as u64,
            Ret::Err(error) => return Next::Over(Some(*error)),
            _ => return Next::Over(Some(Errno::EIO)),
        };
        if let Err(error) = self.stage.discard(&s.pipe, sent) {
            return Next::Over(Some(errno(error)));
        }
        s.count(sent);
        // A part only: what follows would not fit, or is not to be waited for any more.
        if sent < piece { Next::Over(None) } else { Next::Again }
    }

    /// Lets hostd's epoll say when the pipe is ready.
    fn wait_for_pipe(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut s: Box<Splice>) {
        let flags = if s.way == Way::Out { ep::EventFlags::OUT } else { ep::EventFlags::IN };
        let watch = || {
            let watch = ep::create(ep::CreateFlags::CLOEXEC)?;
            ep::add(&watch, &s.pipe, ep::EventData::new_u64(0), flags)?;
            ep::add(&*self.epoll, &watch, token::data(Token::Pipe(c.task.0)), ep::EventFlags::IN | ep::EventFlags::ONESHOT)?;
            Ok(watch)
        };
        match watch() {
            Ok(watch) => {
                s.watch = Some(watch);
                self.block(c, listener, n, Finish::Splice(s));
            }
            Err(error) => self.spliced(shared, c, listener, n, &s, Some(errno(error))),
        }
    }

    /// The pipe of a waiting call is ready.
    pub(in crate::guest) fn on_pipe_ready(&mut self, shared: &Shared, id: TaskId) {
        let Some(&tid) = self.by_task.get(&id.0) else { return };
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        let waits =
            |p: &crate::guest::Pending| matches!(&p.finish, Finish::Splice(s) if s.watch.is_some()) && p.listener.is_valid(p.notif.id);
        if !task.pending.as_ref().is_some_and(waits) {
            return;
        }
        let caller = task.caller(tid);
        if let Some(crate::guest::Pending { notif, listener, finish: Finish::Splice(mut s) }) = task.pending.take() {
            self.memory.woken(id);
            s.watch = None;
            self.go_on(shared, caller, &listener, &notif, s);
        }
    }

    /// The model has returned what the call waited for.
    pub(super) fn finish_splice(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, mut s: Box<Splice>, ret: &Ret) {
        let next = match (s.way, ret) {
            (Way::In, ret) => self.given(c, &mut s, ret),
            (Way::Out, Ret::Err(error)) => Next::Over(Some(*error)),
            (Way::Out, _) => Next::Again,
        };
        match next {
            Next::Over(error) => self.spliced(shared, c, listener, n, &s, error),
            _ => self.go_on(shared, c, listener, n, s),
        }
    }

    fn spliced(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, s: &Splice, error: Option<Errno>) {
        // As `start` does: the signal is there before the call is seen to return.
        self.raise_signals(shared);
        let value = match error {
            Some(error) if s.done == 0 => -i64::from(error.raw()),
            _ => s.done as i64,
        };
        self.answer(shared, c, listener, n, value);
    }

    /// True if Linux never restarts the call: it waits for the socket, for a limited time.
    pub(in crate::guest) fn splice_ends_with_eintr(&self, shared: &Shared, s: &Splice) -> bool {
        let name = if s.way == Way::Out { libc::SO_RCVTIMEO } else { libc::SO_SNDTIMEO };
        s.watch.is_none() && self.has_time_limit(shared, s.handle, name)
    }
}

impl Splice {
    fn count(&mut self, octets: u64) {
        self.done += octets;
        self.left -= octets.min(self.left);
    }

    /// The pipe has no room, or nothing.
    fn full(&self) -> Next {
        match self.nonblock {
            _ if self.done > 0 => Next::Over(None),
            true => Next::Over(Some(Errno::EAGAIN)),
            false => Next::Pipe,
        }
    }
}

impl End {
    /// True if it is open for reading, or writing, as the call needs.
    fn serves(&self, way: Way) -> bool {
        let access = self.flags & libc::O_ACCMODE;
        let wanted = if way == Way::Out { libc::O_WRONLY } else { libc::O_RDONLY };
        self.flags & libc::O_PATH == 0 && (access == wanted || access == libc::O_RDWR)
    }
}

fn receive(fd: i32, len: u64, flags: u32) -> Call {
    Call::Recv { fd, iov: Iov::One(UserSlice { addr: 0, len }), flags }
}

/// Offsets are read before they are found to be of no use; 0: none.
fn readable(c: Caller, offsets: [u64; 2]) -> Result<()> {
    offsets.into_iter().filter(|&at| at != 0).try_for_each(|at| c.mem.read(at, &mut [0; 8]))
}

fn errno(error: OsErrno) -> Errno {
    Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO)
}
