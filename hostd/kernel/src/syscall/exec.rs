//! Execution of system calls: entry, sleep, continuation, return.
//!
//! A call that has to wait becomes an [`Op`], kept in the task. Whatever ends the wait
//! (an event, the time limit, a signal) makes the task runnable, and
//! [`Kernel::continue_op`] goes on with the same `Op`; the protocol sees in
//! [`MsgState::give_up`] that the wait ended without success.

use super::{Call, MsgState, Ret};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::sock::{Sock, SockId};
use crate::syscall::Fd;
use crate::timer::TimerKey;
use crate::trace::Point;
use crate::vfs::FileId;
use crate::vfs::mmsg::{RecvMany, SendMany};
use crate::wait::queue::{PollEvents, WaitEntry, Waiter};
use crate::wait::select::PollOp;
use alloc::boxed::Box;
use core::time::Duration;

/// A call that waits.
#[derive(Debug)]
pub(crate) enum Op {
    /// `send` and its kin.
    Send(FileId, MsgState),
    /// `recv` and its kin.
    Recv(FileId, MsgState),
    /// `sendmmsg`: the rest, and the message that waits.
    SendMmsg(FileId, Box<SendMany>, MsgState),
    /// `recvmmsg`: the rest, and the message that waits.
    RecvMmsg(FileId, Box<RecvMany>, MsgState),
    /// `accept`: flags.
    Accept(FileId, i32),
    /// `connect` of a stream: what to return when the time is over.
    Connect(FileId, Errno),
    /// `close` of a stream with `SO_LINGER`; the socket has no file any more.
    Linger(SockId, Duration),
    /// `epoll_wait`: most events, time limit.
    EpollWait(FileId, usize, Option<Duration>),
    /// `poll`, `select`.
    Poll(Box<PollOp>),
    /// `nanosleep`.
    Sleep(Duration),
}

/// How far a call has come.
#[derive(Debug)]
pub(crate) enum Flow {
    /// To its end.
    Done(Ret),
    /// The task sleeps.
    Block(Op),
}

impl<R: Into<Ret>> From<R> for Flow {
    fn from(ret: R) -> Self {
        Flow::Done(ret.into())
    }
}

impl Op {
    /// Linux function in which the task sleeps.
    pub(crate) fn wchan(&self) -> &'static str {
        match self {
            Op::Send(..) | Op::SendMmsg(..) => "sk_stream_wait_memory",
            Op::Recv(..) | Op::RecvMmsg(..) => "sk_wait_data",
            Op::Accept(..) => "inet_csk_accept",
            Op::Connect(..) => "inet_wait_for_connect",
            Op::Linger(..) => "sk_stream_wait_close",
            Op::EpollWait(..) => "ep_poll",
            Op::Poll(_) => "poll_schedule_timeout",
            Op::Sleep(_) => "hrtimer_nanosleep",
        }
    }

    /// The file to which the waiting call holds a reference. (`poll` keeps its own list.)
    fn file(&self) -> Option<FileId> {
        match self {
            Op::Send(f, _) | Op::Recv(f, _) | Op::Accept(f, _) | Op::Connect(f, _) => Some(*f),
            Op::SendMmsg(f, ..) | Op::RecvMmsg(f, ..) | Op::EpollWait(f, ..) => Some(*f),
            Op::Linger(..) | Op::Poll(_) | Op::Sleep(_) => None,
        }
    }
}

impl Kernel {
    /// Executes a call of a task: [`crate::Event::Syscall`]. Ends with pending softirqs; `schedule` follows.
    pub(crate) fn do_syscall(&mut self, id: TaskId, call: Call) {
        let Some(task) = self.tasks.get(id) else { return };
        debug_assert!(task.op.is_none(), "a task makes one call at a time");
        let cpu = task.cpu;
        let back = core::mem::replace(&mut self.this_cpu, cpu);
        self.sys_enter(id, cpu, call.nr().into());
        if let Call::Exit(_) = call {
            self.exit(id);
        } else {
            let flow = self.exec(id, call);
            if let Flow::Block(op) = &flow
                && let Some(file) = op.file()
            {
                self.vfs.get_file(file);
            }
            self.end_of_step(id, flow);
        }
        self.do_softirq();
        self.this_cpu = back;
    }

    /// The table of system calls.
    fn exec(&mut self, task: TaskId, call: Call) -> Flow {
        match call {
            Call::Socket(domain, kind, protocol) => self.sys_socket(task, domain, kind, protocol).into(),
            Call::Bind(fd, addr) => self.sys_bind(task, fd, addr).into(),
            Call::Listen(fd, backlog) => self.sys_listen(task, fd, backlog).into(),
            Call::Accept(fd, flags) => self.sys_accept(task, fd, flags),
            Call::Connect(fd, to) => self.sys_connect(task, fd, to),
            Call::Send { fd, iov, flags, to, control } => self.sys_sendmsg(task, fd, iov, flags, to, control),
            Call::Recv { fd, iov, flags } => self.sys_recvmsg(task, fd, iov, flags),
            Call::Shutdown(fd, how) => self.sys_shutdown(task, fd, how).into(),
            Call::Close(fd) => self.sys_close(task, fd),
            Call::Dup(old, new) => self.sys_dup(task, old, new).into(),
            Call::GetFl(fd) => self.sys_getfl(task, fd).into(),
            Call::SetFl(fd, flags) => self.sys_setfl(task, fd, flags).into(),
            Call::Inq(fd) => self.sys_inq(task, fd).into(),
            Call::Outq(fd) => self.sys_outq(task, fd).into(),
            Call::AtMark(fd) => self.sys_atmark(task, fd).into(),
            Call::GetSockName(fd) => self.sys_getsockname(task, fd).into(),
            Call::GetPeerName(fd) => self.sys_getpeername(task, fd).into(),
            Call::SetSockOpt(fd, level, name, val) => self.sys_setsockopt(task, fd, level, name, val).into(),
            Call::GetSockOpt(fd, level, name) => self.sys_getsockopt(task, fd, level, name).map(Ret::Opt).into(),
            Call::SetSockOptRaw(fd, level, name, val) => self.sys_setsockopt_raw(task, fd, level, name, &val).into(),
            Call::GetSockOptRaw(fd, level, name, buf) => self.sys_getsockopt_raw(task, fd, level, name, &buf).into(),
            Call::SetOwn(fd, owner) => self.sys_setown(task, fd, owner).into(),
            Call::GetOwn(fd) => self.sys_getown(task, fd).into(),
            Call::SetSig(fd, signo) => self.sys_setsig(task, fd, signo).into(),
            Call::GetSig(fd) => self.sys_getsig(task, fd).into(),
            Call::Ioctl(fd, cmd, arg) => self.sys_ioctl(task, fd, cmd, &arg).into(),
            Call::IfConf(fd, room) => self.sys_ifconf(task, fd, room).into(),
            Call::Ethtool(fd, name, data) => self.sys_ethtool(task, fd, &name, &data).into(),
            Call::SendMmsg { fd, msgs, flags } => self.sys_sendmmsg(task, fd, msgs, flags),
            Call::RecvMmsg { fd, iovs, flags, timeout } => self.sys_recvmmsg(task, fd, iovs, flags, timeout),
            Call::BindNetlink(fd, addr) => self.sys_bind_netlink(task, fd, addr).into(),
            Call::ConnectNetlink(fd, addr) => self.sys_connect_netlink(task, fd, addr).into(),
            Call::SendNetlink { fd, iov, flags, to } => self.sys_send_netlink(task, fd, iov, flags, to),
            Call::BindLink(fd, addr) => self.sys_bind_link(task, fd, addr).into(),
            Call::SendLink { fd, iov, flags, to } => self.sys_send_link(task, fd, iov, flags, to),
            Call::EpollCreate(flags) => self.sys_epoll_create(task, flags).into(),
            Call::EpollCtl(ep, fd, op) => self.sys_epoll_ctl(task, ep, fd, fd, op).into(),
            Call::EpollCtlKey(ep, fd, key, op) => self.sys_epoll_ctl(task, ep, fd, key, op).into(),
            Call::EpollWait(ep, max, timeout) => self.sys_epoll_wait(task, ep, max, timeout),
            Call::Poll(fds, timeout) => self.sys_poll(task, fds, timeout),
            Call::Select(n, sets, timeout) => self.sys_select(task, n, &sets, timeout),
            Call::Sleep(time) => self.sys_sleep(task, time),
            Call::Exit(_) => unreachable!("handled by do_syscall"),
        }
    }

    /// Goes on with a call whose wait is over.
    pub(crate) fn continue_op(&mut self, task: TaskId, op: Op) -> Flow {
        let file = op.file();
        let flow = match op {
            Op::Send(file, m) => self.do_sendmsg(task, file, m),
            Op::Recv(file, m) => self.do_recvmsg(task, file, m),
            Op::SendMmsg(file, many, m) => self.do_sendmmsg(task, file, many, Some(m)),
            Op::RecvMmsg(file, many, m) => self.do_recvmmsg(task, file, many, Some(m)),
            Op::Accept(file, flags) => self.do_accept(task, file, flags),
            Op::Connect(file, progress) => self.do_connect(task, file, progress),
            Op::Linger(sock, time) => self.do_linger(task, sock, time),
            Op::EpollWait(file, max, timeout) => self.ep_poll(task, file, max, timeout),
            Op::Poll(op) => self.do_poll(task, op),
            Op::Sleep(time) => self.sys_sleep(task, time),
        };
        if let (Flow::Done(_), Some(file)) = (&flow, file) {
            self.fput(file);
        }
        flow
    }

    /// Takes a task off the queue on which it waited, if it was not taken off by its wake-up (Linux `finish_wait`).
    pub(crate) fn finish_wait(&mut self, task: TaskId, op: &Op) {
        match op {
            Op::Send(file, _)
            | Op::Recv(file, _)
            | Op::SendMmsg(file, ..)
            | Op::RecvMmsg(file, ..)
            | Op::Accept(file, _)
            | Op::Connect(file, _) => {
                if let crate::vfs::FileKind::Socket(id) = self.vfs.file(*file).kind {
                    self.sock_finish_wait(task, id);
                }
            }
            Op::Linger(id, _) => self.sock_finish_wait(task, *id),
            Op::EpollWait(file, ..) => self.ep_finish_wait(task, *file),
            // Stays registered until the call ends.
            Op::Poll(_) | Op::Sleep(_) => {}
        }
    }

    fn sock_finish_wait(&mut self, task: TaskId, id: SockId) {
        if let Some(sk) = self.socks.get_mut(id) {
            sk.wq.remove(Waiter::Task(task));
        }
    }

    /// Ends a call for which nobody waits any more: what it has done so far, or `EINTR`. A wake-up that only one
    /// task gets goes to the next one.
    pub(crate) fn abandon_op(&mut self, task: TaskId, mut op: Op) -> Flow {
        let ret = match &mut op {
            Op::Send(_, m) if m.copied > 0 => Ret::Value(m.copied as i64),
            Op::Recv(_, m) if m.copied > 0 => m.received_so_far(),
            Op::SendMmsg(_, many, m) => many.abandoned(m),
            Op::RecvMmsg(_, many, m) => many.abandoned(m, self.now),
            _ => Ret::Err(Errno::EINTR),
        };
        if let Some(file) = op.file() {
            self.pass_on_wake_up(file);
        }
        self.drop_op(task, op);
        Flow::Done(ret)
    }

    fn pass_on_wake_up(&mut self, file: FileId) {
        let kind = self.vfs.file(file).kind;
        if let crate::vfs::FileKind::Epoll(epoll) = kind {
            self.ep_pass_on(epoll);
        } else if let crate::vfs::FileKind::Socket(id) = kind {
            let ready = self.sock_poll(id);
            if ready.is_empty() {
                return;
            }
            if let Some(mut sk) = self.socks.take(id) {
                self.wake_up(&mut sk.wq, ready);
                self.socks.put(sk);
            }
        }
    }

    /// Gives up what a waiting call holds: its task ends.
    pub(crate) fn drop_op(&mut self, task: TaskId, op: Op) {
        if let Some(file) = op.file() {
            self.fput(file);
        }
        match op {
            Op::Poll(mut op) => self.poll_freewait(task, &mut op),
            Op::Linger(sock, _) => self.sock_destroy(sock),
            _ => {}
        }
    }

    /// Why a wait is over without success, if it is.
    pub(crate) fn give_up(&self, task: TaskId) -> Option<Errno> {
        let task = self.tasks.get(task)?;
        if task.signalled {
            Some(Errno::EINTR)
        } else if task.timed_out {
            Some(Errno::EAGAIN)
        } else {
            None
        }
    }

    /// Sets the time limit of a call when it first blocks.
    pub(crate) fn arm_deadline(&mut self, id: TaskId, timeout: Option<Duration>) {
        let Some(timeout) = timeout else { return };
        let now = self.now;
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.deadline.is_none() {
            let at = now + timeout;
            task.deadline = Some(at);
            self.timers.set(TimerKey::Task(id), at);
        }
    }

    /// Forgets the time limit of a part of a call: the next part has its own.
    pub(crate) fn restart_deadline(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id)
            && (task.deadline.is_some() || task.timed_out)
        {
            task.deadline = None;
            task.timed_out = false;
            self.timers.cancel(TimerKey::Task(id));
        }
    }

    /// Puts a task on a socket's queue and marks it as sleeping (Linux `prepare_to_wait`).
    pub(crate) fn prepare_to_wait(&mut self, task: TaskId, sk: &mut Sock, events: PollEvents, exclusive: bool) {
        sk.wq.remove(Waiter::Task(task));
        let events = events | PollEvents::ALWAYS;
        sk.wq.add(WaitEntry { waiter: Waiter::Task(task), exclusive, events });
        self.trace(Point::PrepareToWait, 0, [task.0.into(), sk.id.0.into(), 0, 0]);
        self.set_interruptible(task);
    }

    fn sys_sleep(&mut self, id: TaskId, time: Duration) -> Flow {
        if let Some(e) = self.give_up(id) {
            // The end of the time is the success of this call.
            return if e == Errno::EINTR { Flow::Done(Ret::Err(e)) } else { Flow::Done(Ret::Value(0)) };
        }
        if time.is_zero() {
            return Flow::Done(Ret::Value(0));
        }
        self.arm_deadline(id, Some(time));
        self.set_interruptible(id);
        Flow::Block(Op::Sleep(time))
    }

    fn sys_close(&mut self, task: TaskId, fd: Fd) -> Flow {
        let file = match self.fd_table(task).remove(fd) {
            Ok(file) => file,
            Err(e) => return Flow::Done(Ret::Err(e)),
        };
        self.close_file(task, file)
    }
}
