//! `sendmmsg` and `recvmmsg`: several messages in one call.
//!
//! Each message is a call of its own on the same file; what differs is how the
//! whole ends. An error after the first message is kept for the next call
//! (`recvmmsg`) or lost (`sendmmsg`), and the time limit of `recvmmsg` is looked at
//! after each message only, as Linux does.

use super::{FileId, FileKind};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::exec::{Flow, Op};
use crate::syscall::{Fd, MsgState, OutMsg, Ret, msg};
use crate::time::Instant;
use crate::uaccess::Iov;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

/// Messages a call looks at (`UIO_MAXIOV`).
const MAX_MESSAGES: usize = 1024;

/// A `sendmmsg` in progress.
#[derive(Debug)]
pub(crate) struct SendMany {
    left: VecDeque<OutMsg>,
    flags: u32,
    sent: Vec<u32>,
}

/// A `recvmmsg` in progress.
#[derive(Debug)]
pub(crate) struct RecvMany {
    left: VecDeque<Iov>,
    flags: u32,
    end: Option<Instant>,
    got: Vec<Ret>,
}

impl SendMany {
    /// What it returns if it is given up while `m` waits.
    pub(crate) fn abandoned(&mut self, m: &MsgState) -> Ret {
        if m.copied > 0 {
            self.sent.push(m.copied as u32);
        }
        if self.sent.is_empty() { Ret::Err(Errno::EINTR) } else { Ret::Sent(core::mem::take(&mut self.sent)) }
    }
}

impl RecvMany {
    /// What it returns if it is given up while `m` waits.
    pub(crate) fn abandoned(&mut self, m: &MsgState, now: Instant) -> Ret {
        if m.copied > 0 {
            self.got.push(m.received_so_far());
        }
        match self.got.is_empty() {
            true => Ret::Err(Errno::EINTR),
            false => Ret::Mmsg(core::mem::take(&mut self.got), self.end.map(|end| end.since(now))),
        }
    }
}

impl Kernel {
    /// `sendmmsg`.
    pub(crate) fn sys_sendmmsg(&mut self, task: TaskId, fd: Fd, msgs: Vec<OutMsg>, flags: u32) -> Flow {
        let file = match self.fget_sock(task, fd) {
            Ok((file, _)) => file,
            Err(e) => return Flow::Done(Ret::Err(e)),
        };
        let left = msgs.into_iter().take(MAX_MESSAGES).collect();
        self.do_sendmmsg(task, file, Box::new(SendMany { left, flags, sent: Vec::new() }), None)
    }

    /// Sends the messages that are left; `waited`: the one that had to wait.
    pub(crate) fn do_sendmmsg(&mut self, task: TaskId, file: FileId, mut many: Box<SendMany>, waited: Option<MsgState>) -> Flow {
        let mut next = waited;
        loop {
            let m = match next.take() {
                Some(m) => m,
                None => match many.left.pop_front() {
                    Some(OutMsg { iov, to, control }) => {
                        let mut m = self.msg_state(task, file, iov, many.flags);
                        m.addr = to;
                        m.control = control;
                        m
                    }
                    None => return Flow::Done(Ret::Sent(many.sent)),
                },
            };
            let whole = m.copied as u64 + m.iter.count();
            match self.do_sendmsg(task, file, m) {
                Flow::Block(Op::Send(_, m)) => return Flow::Block(Op::SendMmsg(file, many, m)),
                Flow::Done(Ret::Value(n)) => {
                    many.sent.push(n as u32);
                    self.restart_deadline(task);
                    if (n as u64) < whole {
                        return Flow::Done(Ret::Sent(many.sent));
                    }
                }
                Flow::Done(_) if !many.sent.is_empty() => return Flow::Done(Ret::Sent(many.sent)),
                flow => return flow,
            }
        }
    }

    /// `recvmmsg`.
    pub(crate) fn sys_recvmmsg(&mut self, task: TaskId, fd: Fd, iovs: Vec<Iov>, flags: u32, timeout: Option<Duration>) -> Flow {
        let (file, sock) = match self.fget_sock(task, fd) {
            Ok(found) => found,
            Err(e) => return Flow::Done(Ret::Err(e)),
        };
        if flags & msg::ERRQUEUE == 0
            && let Some(e) = self.socks.get_mut(sock).and_then(|sk| sk.take_error())
        {
            return Flow::Done(Ret::Err(e));
        }
        let left = iovs.into_iter().take(MAX_MESSAGES).collect();
        let end = timeout.map(|t| self.now + t);
        self.do_recvmmsg(task, file, Box::new(RecvMany { left, flags, end, got: Vec::new() }), None)
    }

    /// Receives the messages that are left; `waited`: the one that had to wait.
    pub(crate) fn do_recvmmsg(&mut self, task: TaskId, file: FileId, mut many: Box<RecvMany>, waited: Option<MsgState>) -> Flow {
        let mut next = waited;
        loop {
            let m = match next.take() {
                Some(m) => m,
                None => {
                    let Some(iov) = many.left.pop_front() else { return self.recvmmsg_done(*many) };
                    // `MSG_WAITFORONE`: with the first message there, the others need not wait.
                    let rest = many.flags & msg::WAITFORONE != 0 && !many.got.is_empty();
                    let flags = many.flags & !msg::WAITFORONE | if rest { msg::DONTWAIT } else { 0 };
                    self.msg_state(task, file, iov, flags)
                }
            };
            match self.do_recvmsg(task, file, m) {
                Flow::Block(Op::Recv(_, m)) => return Flow::Block(Op::RecvMmsg(file, many, m)),
                Flow::Done(Ret::Err(e)) if many.got.is_empty() => return Flow::Done(Ret::Err(e)),
                Flow::Done(Ret::Err(e)) => {
                    if !matches!(e, Errno::EAGAIN | Errno::EINTR)
                        && let FileKind::Socket(id) = self.vfs.file(file).kind
                        && let Some(sk) = self.socks.get_mut(id)
                    {
                        sk.err = Some(e);
                    }
                    return self.recvmmsg_done(*many);
                }
                Flow::Done(ret) => {
                    let oob = matches!(ret, Ret::Received { flags, .. } if flags & msg::OOB != 0);
                    many.got.push(ret);
                    self.restart_deadline(task);
                    if oob || many.end.is_some_and(|end| end <= self.now) {
                        return self.recvmmsg_done(*many);
                    }
                }
                flow => return flow,
            }
        }
    }

    fn recvmmsg_done(&self, many: RecvMany) -> Flow {
        let left = many.end.map(|end| end.since(self.now));
        Flow::Done(Ret::Mmsg(many.got, left))
    }
}
