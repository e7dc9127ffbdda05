//! Calls that transfer payload: from the descriptor to the protocol and back.

use super::{FileId, FileKind};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::sock::{AF_INET, Proto, RCV_SHUTDOWN, Sock, SockId};
use crate::syscall::exec::{Flow, Op};
use crate::syscall::{Control, Fd, MsgState, Ret, Step, msg};
use crate::tcp::State;
use crate::uaccess::{Iov, IovIter, copy_run_to};
use crate::wait::queue::PollEvents;
use alloc::vec::Vec;
use core::net::SocketAddr;

impl Kernel {
    /// `send`, `sendto`, `sendmsg`, `write`.
    pub(crate) fn sys_sendmsg(
        &mut self,
        task: TaskId,
        fd: Fd,
        iov: Iov,
        flags: u32,
        to: Option<SocketAddr>,
        control: Vec<Control>,
    ) -> Flow {
        match self.fget_sock(task, fd) {
            Ok((file, _)) => {
                let mut m = self.msg_state(task, file, iov, flags);
                m.addr = to;
                m.control = control;
                self.do_sendmsg(task, file, m)
            }
            Err(e) => Flow::Done(Ret::Err(e)),
        }
    }

    /// `recv`, `recvfrom`, `recvmsg`, `read`.
    pub(crate) fn sys_recvmsg(&mut self, task: TaskId, fd: Fd, iov: Iov, flags: u32) -> Flow {
        match self.fget_sock(task, fd) {
            Ok((file, _)) => {
                let m = self.msg_state(task, file, iov, flags);
                self.do_recvmsg(task, file, m)
            }
            Err(e) => Flow::Done(Ret::Err(e)),
        }
    }

    pub(crate) fn msg_state(&self, task: TaskId, file: FileId, iov: Iov, flags: u32) -> MsgState {
        let nonblock = flags & msg::DONTWAIT != 0 || self.vfs.nonblock(file);
        MsgState {
            task,
            iter: IovIter::new(iov),
            copied: 0,
            flags,
            nonblock,
            give_up: None,
            addr: None,
            netlink: None,
            link: None,
            out_flags: 0,
            control: Vec::new(),
        }
    }

    /// Sends, or goes on sending after a wait.
    pub(crate) fn do_sendmsg(&mut self, task: TaskId, file: FileId, mut m: MsgState) -> Flow {
        let FileKind::Socket(id) = self.vfs.file(file).kind else { return Flow::Done(Ret::Err(Errno::ENOTSOCK)) };
        loop {
            m.give_up = self.give_up(task);
            let mut timeout = None;
            let send = |k: &mut Kernel, sk: &mut Sock| Self::no_vain_wait(k.sock_sendmsg(sk, &mut m), &m);
            let done = self.with_sock(id, send, |k, sk, events| {
                timeout = sk.opt.sndtimeo;
                sk.nospace |= events.contains(PollEvents::OUT);
                k.prepare_to_wait(task, sk, events, false);
            });
            match done {
                None => return Flow::Done(Ret::Err(Errno::EBADF)),
                Some(Some(result)) => {
                    if result == Err(Errno::EPIPE) && m.flags & msg::NOSIGNAL == 0 && self.is_stream(id) {
                        self.send_sigpipe(task);
                    }
                    return Flow::Done(result.map_or_else(Ret::Err, |n| Ret::Value(n as i64)));
                }
                Some(None) => {}
            }
            if !self.woken_before_switch(task) {
                self.arm_deadline(task, timeout);
                return Flow::Block(Op::Send(file, m));
            }
        }
    }

    fn is_stream(&self, id: SockId) -> bool {
        self.socks.get(id).is_some_and(|sk| matches!(sk.proto, Proto::Tcp(_)))
    }

    fn sock_sendmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if !matches!(sk.proto, Proto::Tcp(_) | Proto::Raw { .. } | Proto::Netlink(_) | Proto::Packet(_))
            && let Err(e) = self.inet_autobind(sk)
        {
            return Step::Done(Err(e));
        }
        match sk.proto {
            Proto::Tcp(_) => self.tcp_sendmsg(sk, m),
            Proto::Udp(_) => self.udp_sendmsg(sk, m),
            Proto::Ping => self.ping_sendmsg(sk, m),
            Proto::Packet(_) => self.packet_sendmsg(sk, m),
            Proto::Raw { .. } => self.raw_sendmsg(sk, m),
            Proto::Netlink(_) => self.netlink_sendmsg(sk, m),
        }
    }

    /// Receives, or goes on receiving after a wait.
    pub(crate) fn do_recvmsg(&mut self, task: TaskId, file: FileId, mut m: MsgState) -> Flow {
        let FileKind::Socket(id) = self.vfs.file(file).kind else { return Flow::Done(Ret::Err(Errno::ENOTSOCK)) };
        loop {
            m.give_up = self.give_up(task);
            let mut timeout = None;
            let mut received = None;
            let recv = |k: &mut Kernel, sk: &mut Sock| {
                if let Some(result) = received.take() {
                    return Step::Done(result);
                }
                match Self::no_vain_wait(k.sock_recvmsg(sk, &mut m), &m) {
                    // The textbook's path: what arrives while the process holds the socket goes to the backlog.
                    Step::Done(result) if k.config.udp_backlog && matches!(sk.proto, Proto::Udp(_)) => {
                        received = Some(result);
                        Step::Resched
                    }
                    step => step,
                }
            };
            let done = self.with_sock(id, recv, |k, sk, events| {
                timeout = sk.opt.rcvtimeo;
                // Readers of datagrams wait one behind the other; readers of a stream all wake (`sk_wait_data`).
                let exclusive = !matches!(sk.proto, Proto::Tcp(_));
                k.prepare_to_wait(task, sk, events, exclusive);
            });
            match done {
                None => return Flow::Done(Ret::Err(Errno::EBADF)),
                Some(Some(Ok(len))) => {
                    if let Some(from) = m.netlink {
                        return Flow::Done(Ret::ReceivedNetlink { len, from, flags: m.out_flags, control: m.control });
                    }
                    return Flow::Done(match m.link {
                        Some(from) => Ret::ReceivedLink { len, from, flags: m.out_flags, control: m.control },
                        None => Ret::Received { len, from: m.addr, flags: m.out_flags, control: m.control },
                    });
                }
                Some(Some(Err(e))) => return Flow::Done(Ret::Err(e)),
                Some(None) => {}
            }
            if !self.woken_before_switch(task) {
                self.arm_deadline(task, timeout);
                return Flow::Block(Op::Recv(file, m));
            }
        }
    }

    fn sock_recvmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if m.flags & msg::ERRQUEUE != 0 {
            return Step::Done(self.recv_error(sk, m));
        }
        match sk.proto {
            Proto::Tcp(_) => self.tcp_recvmsg(sk, m),
            Proto::Netlink(_) => self.netlink_recvmsg(sk, m),
            Proto::Packet(_) => self.packet_recvmsg(sk, m),
            _ => self.dgram_recvmsg(sk, m),
        }
    }

    /// Whoever may not wait, or has waited in vain, does not sleep again, whatever the protocol says.
    fn no_vain_wait(step: Step<Result<usize, Errno>>, m: &MsgState) -> Step<Result<usize, Errno>> {
        match (step, m.give_up) {
            (Step::Wait(_), Some(e)) => Step::Done(Err(e)),
            (Step::Wait(_), None) if m.nonblock => Step::Done(Err(Errno::EAGAIN)),
            (step, _) => step,
        }
    }

    /// Takes an entry of the error queue (Linux `ip_recv_error`). With it comes what was quoted of the datagram.
    fn recv_error(&mut self, sk: &mut Sock, m: &mut MsgState) -> Result<usize, Errno> {
        let e = sk.error_queue.pop_front().ok_or(Errno::EAGAIN)?;
        // The pending error is that of the entries that are left.
        sk.err = sk.error_queue.front().filter(|next| next.origin == 2).map(|next| next.errno);
        let whole = e.data.len() as u64;
        let fits = whole.min(m.iter.count()) as u32;
        if fits > 0 {
            let buf = self.config.pool.alloc(fits).ok_or(Errno::ENOBUFS)?;
            buf.slice(0, fits).write(&e.data[..fits as usize]);
            let mut at = 0;
            while let Some(run) = m.iter.next_run(u64::from(fits - at)) {
                copy_run_to(&mut *self.mem, m.task, m.iter.source(), run.addr, &[buf.slice(at, run.len as u32)])?;
                at += run.len as u32;
            }
        }
        if u64::from(fits) < whole {
            m.out_flags |= msg::TRUNC;
        }
        let (ttl, tos, stamp) = e.report;
        if sk.opt.timestamp {
            m.control.push(Control::Timestamp(stamp.0));
        }
        if sk.opt.timestampns {
            m.control.push(Control::TimestampNs(stamp.0));
        }
        m.addr = Some(sk.to_user_addr(*e.addr.ip(), e.addr.port()));
        m.out_flags |= msg::ERRQUEUE;
        if e.origin == 2 && sk.inet.recvttl {
            m.control.push(Control::Ttl(ttl));
        }
        if e.origin == 2 && sk.inet.recvtos {
            m.control.push(Control::Tos(tos));
        }
        m.control.push(match sk.family {
            AF_INET => Control::Err(e.errno, e.origin, e.kind, e.code, e.info, e.offender),
            _ => Control::Err6(e.errno, e.origin, e.kind, e.code, e.info, e.offender.to_ipv6_mapped()),
        });
        Ok(fits as usize)
    }

    fn sock_by_fd(&self, task: TaskId, fd: Fd) -> Result<&Sock, Errno> {
        let file = self.fget(task, fd)?;
        match self.vfs.file(file).kind {
            FileKind::Socket(id) => self.socks.get(id).ok_or(Errno::EBADF),
            FileKind::Epoll(_) => Err(Errno::ENOTTY),
        }
    }

    /// `FIONREAD`: octets that can be read; of datagrams, of the next one.
    pub(crate) fn sys_inq(&mut self, task: TaskId, fd: Fd) -> Result<i32, Errno> {
        let sk = self.sock_by_fd(task, fd)?;
        match sk.proto {
            Proto::Tcp(_) if sk.state() == State::Listen => Err(Errno::EINVAL),
            Proto::Tcp(_) => self.tcp_inq(sk).map(|n| n as i32),
            Proto::Netlink(_) => Ok(sk.netlink_inq()),
            _ => Ok(sk.receive_queue.front().map_or(0, |skb| skb.len() as i32)),
        }
    }

    /// `SIOCOUTQ`: octets not acknowledged; of datagrams, memory not yet sent.
    pub(crate) fn sys_outq(&mut self, task: TaskId, fd: Fd) -> Result<i32, Errno> {
        let sk = self.sock_by_fd(task, fd)?;
        match sk.proto {
            Proto::Tcp(_) if sk.state() == State::Listen => Err(Errno::EINVAL),
            Proto::Tcp(_) => self.tcp_outq(sk).map(|n| n as i32),
            _ => Ok(sk.wmem_alloc as i32),
        }
    }

    /// `SIOCATMARK`.
    pub(crate) fn sys_atmark(&mut self, task: TaskId, fd: Fd) -> Result<i32, Errno> {
        let sk = self.sock_by_fd(task, fd)?;
        match sk.proto {
            Proto::Tcp(_) => Ok(Self::sk_atmark(sk).into()),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// The socket of a task's descriptor, for tests and `ss -p`.
    pub fn sock_of(&self, task: TaskId, fd: Fd) -> Option<SockId> {
        self.fget_sock(task, fd).ok().map(|(_, id)| id)
    }
}

impl Sock {
    /// Readiness of a datagram socket (Linux `datagram_poll`).
    pub(crate) fn datagram_poll(&self) -> PollEvents {
        let mut mask = PollEvents::empty();
        if self.err.is_some() || !self.error_queue.is_empty() {
            mask |= PollEvents::ERR;
            if self.opt.select_err_queue {
                mask |= PollEvents::PRI;
            }
        }
        if self.shutdown & RCV_SHUTDOWN != 0 {
            mask |= PollEvents::RDHUP | PollEvents::IN | PollEvents::RDNORM;
        }
        if self.shutdown == RCV_SHUTDOWN | crate::sock::SEND_SHUTDOWN {
            mask |= PollEvents::HUP;
        }
        if !self.receive_queue.is_empty() || Kernel::packet_ring_ready(self) {
            mask |= PollEvents::IN | PollEvents::RDNORM;
        }
        if self.is_writeable() {
            mask |= PollEvents::WRITABLE;
        }
        mask
    }
}
