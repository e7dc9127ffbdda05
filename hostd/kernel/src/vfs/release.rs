//! Closing sockets (Linux `inet_release`, `__tcp_close`): `SO_LINGER`, and what each protocol leaves behind.

use super::{FileId, FileKind};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::sock::{Proto, SEND_SHUTDOWN, Sock, SockId};
use crate::syscall::exec::{Flow, Op};
use crate::syscall::{Fd, Ret, Shutdown, Step};
use crate::tcp::State;
use crate::wait::queue::PollEvents;
use core::time::Duration;

impl Kernel {
    /// Closes a descriptor's file. The last reference of a stream with `SO_LINGER` waits until the peer
    /// has acknowledged all, or the time is over.
    pub(crate) fn close_file(&mut self, task: TaskId, file: FileId) -> Flow {
        if let (FileKind::Socket(id), true) = (self.vfs.file(file).kind, self.vfs.is_last(file))
            && let Some(time) = self.linger_time(id)
        {
            self.release_file(file);
            self.lock_sock(id, |k, sk| {
                sk.shutdown |= SEND_SHUTDOWN;
                // The answer cannot matter: the socket is closed below whatever its state.
                let _ = k.tcp_shutdown(sk, Shutdown::Wr);
            });
            return self.do_linger(task, id, time);
        }
        self.fput(file);
        Flow::Done(Ret::Value(0))
    }

    /// True if closing the descriptor's file may have to wait for the peer (`SO_LINGER`, its own or its listener's).
    pub fn lingers(&self, task: TaskId, fd: Fd) -> bool {
        self.fget_sock(task, fd).is_ok_and(|(_, id)| self.linger_time(id).is_some())
    }

    fn linger_time(&self, id: SockId) -> Option<Duration> {
        // A connected datagram socket has that state, too, and nothing to wait for.
        let sk = self.socks.get(id).filter(|sk| matches!(sk.proto, Proto::Tcp(_)))?;
        let time = sk.opt.linger.filter(|t| !t.is_zero())?;
        // Unread data means a reset at once: nothing to wait for.
        let open = matches!(sk.state(), State::Established | State::CloseWait | State::FinWait1 | State::Closing | State::LastAck);
        (open && sk.receive_queue.is_empty()).then_some(time)
    }

    /// Waits for the last acknowledgement (Linux `sk_stream_wait_close`), then closes.
    pub(crate) fn do_linger(&mut self, task: TaskId, id: SockId, time: Duration) -> Flow {
        loop {
            let give_up = self.give_up(task);
            let check = |_: &mut Kernel, sk: &mut Sock| match sk.state() {
                State::FinWait1 | State::Closing | State::LastAck if give_up.is_none() => Step::Wait(PollEvents::all()),
                _ => Step::Done(()),
            };
            let done = self.with_sock(id, check, |k, sk, events| k.prepare_to_wait(task, sk, events, false));
            if !matches!(done, Some(None)) {
                self.sock_destroy(id);
                return Flow::Done(Ret::Value(0));
            }
            if !self.woken_before_switch(task) {
                self.arm_deadline(task, Some(time));
                return Flow::Block(Op::Linger(id, time));
            }
        }
    }

    /// The last descriptor of a socket is closed (Linux `inet_release`).
    pub(crate) fn inet_release(&mut self, id: SockId) {
        self.sock_destroy(id);
    }

    /// Ends a socket: a stream says goodbye, a datagram socket is gone.
    pub(crate) fn sock_destroy(&mut self, id: SockId) {
        let Some(mut sk) = self.socks.take(id) else { return };
        self.leave_groups(&mut sk);
        if matches!(sk.proto, Proto::Tcp(_)) {
            self.tcp_close(sk);
            return;
        }
        sk.dead = true;
        match sk.proto {
            Proto::Udp(_) => self.udp_unhash(&sk),
            Proto::Ping => self.ping_unhash(&sk),
            Proto::Netlink(_) => self.netlink_release(&sk),
            Proto::Raw { protocol, .. } => self.raw_unhash(protocol, id),
            Proto::Packet(_) => self.packet_release(&mut sk),
            Proto::Tcp(_) => unreachable!("handled above"),
        }
        self.socks.remove_taken(id);
        for skb in sk.receive_queue.drain(..).chain(sk.backlog.drain(..)) {
            self.consume_skb(skb);
        }
        if let Proto::Udp(up) = &mut sk.proto
            && let Some(cork) = up.cork.take()
        {
            self.consume_skb(cork.skb);
        }
    }
}
