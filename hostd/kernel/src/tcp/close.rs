//! Listening, accepting, and the ends of a socket (Linux `inet_csk_listen_start`,
//! `tcp_close`, `tcp_disconnect`; RFC 9293 §3.6, §3.10.4).

use super::chrono::ChronoType;
use super::hash::Owner;
use super::sock::{Listen, TCP_TIMEWAIT_LEN, TcpSock, tp};
use super::state::State;
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::{RCV_SHUTDOWN, SEND_SHUTDOWN, Sock, SockId};
use crate::syscall::Shutdown;
use crate::timer::TimerKey;
use crate::trace::Point;
use alloc::boxed::Box;
use core::net::Ipv4Addr;
use core::time::Duration;
use ringlab_counters::Mib;

impl Kernel {
    /// Prepares a fresh socket.
    pub(crate) fn tcp_init_sock(&mut self, sk: &mut Sock) {
        *tp!(sk) = TcpSock::new(&self.tcp.sysctl);
        sk.sndbuf = self.tcp.sysctl.wmem[1];
        sk.rcvbuf = self.tcp.sysctl.rmem[1];
    }

    /// Starts listening, or changes the backlog. The socket has a port.
    ///
    /// # Errors
    /// `EADDRINUSE` if another socket listens there.
    pub(crate) fn tcp_listen(&mut self, sk: &mut Sock, backlog: i32) -> Result<(), Errno> {
        let max = (backlog as u32).min(self.tcp.sysctl.somaxconn);
        if let Some(l) = &mut tp!(sk).listen {
            l.max_backlog = max;
            return Ok(());
        }
        // Between bind and listen another may have come (SO_REUSEADDR).
        tp!(sk).state = State::Listen;
        let port = sk.sport;
        if let Err(e) = self.tcp_get_port(sk, sk.rcv_saddr, port) {
            tp!(sk).state = State::Close;
            return Err(e);
        }
        tp!(sk).state = State::Close;
        self.tcp_set_state(sk, State::Listen);
        tp!(sk).listen = Some(Box::new(Listen { max_backlog: max, ..Listen::default() }));
        self.tcp.add_listener(port, sk.id);
        Ok(())
    }

    /// Takes the oldest established connection.
    pub(crate) fn tcp_accept(&mut self, sk: &mut Sock) -> Option<SockId> {
        let child = tp!(sk).listen.as_mut()?.accept_queue.pop_front()?;
        self.trace(Point::CskAccept, 0, [sk.id.0.into(), child.0.into(), 0, 0]);
        Some(child)
    }

    /// Ends listening: requests are forgotten, connections that nobody accepted are reset
    /// (Linux `inet_csk_listen_stop`).
    fn inet_csk_listen_stop(&mut self, sk: &mut Sock) {
        self.tcp.remove_listener(sk.sport, sk.id);
        let Some(listen) = tp!(sk).listen.take() else { return };
        for id in listen.requests {
            self.timers.cancel(TimerKey::TcpMini(id));
            self.tcp.remove_mini(id);
        }
        for child in listen.accept_queue {
            let Some(mut child) = self.socks.take(child) else { continue };
            child.dead = true;
            if child.tp().state != State::Close {
                self.tcp_send_active_reset(&mut child);
                self.tcp_done(&mut child);
            }
            self.tcp_put(child);
        }
    }

    /// `shutdown`: the caller has noted the direction in `sk.shutdown`.
    ///
    /// # Errors
    /// None: what cannot be shut is not.
    pub(crate) fn tcp_shutdown(&mut self, sk: &mut Sock, how: Shutdown) -> Result<(), Errno> {
        if matches!(how, Shutdown::Rd) {
            return Ok(());
        }
        self.tcp_shutdown_send(sk);
        Ok(())
    }

    /// The program is done with the socket (RFC 9293 §3.10.4; Linux `tcp_close`).
    pub(crate) fn tcp_close(&mut self, mut sk: Box<Sock>) {
        self.tcp_flush_backlog(&mut sk);
        sk.shutdown = RCV_SHUTDOWN | SEND_SHUTDOWN;
        sk.dead = true;
        sk.owned = false;
        if sk.tp().state == State::Listen {
            self.inet_csk_listen_stop(&mut sk);
            self.tcp_set_state(&mut sk, State::Close);
            return self.inet_csk_destroy_sock(sk);
        }
        let unread = self.tcp_purge_receive_queue(&mut sk);
        let state = sk.tp().state;
        if state == State::Close {
            return self.inet_csk_destroy_sock(sk);
        }
        if unread {
            // RFC 2525 §2.17: data were lost, the peer must know.
            self.mib.inc(Mib::TCPAbortOnClose);
            self.tcp_abort(&mut sk);
        } else if sk.opt.linger == Some(Duration::ZERO) {
            self.mib.inc(Mib::TCPAbortOnData);
            self.tcp_abort(&mut sk);
        } else {
            let (next, fin) = state.on_close();
            self.tcp_set_state(&mut sk, next);
            if fin {
                self.tcp_send_fin(&mut sk);
            }
        }
        self.tcp_orphan(&mut sk);
        if sk.tp().state != State::Close {
            self.tcp_count_orphan(&mut sk);
        }
        self.tcp_put(sk);
    }

    /// One more connection without a program; too many are not kept (Linux `tcp_check_oom`).
    fn tcp_count_orphan(&mut self, sk: &mut Sock) {
        tp!(sk).orphan = true;
        self.tcp.orphans += 1;
        if self.tcp.orphans > self.tcp.sysctl.max_orphans {
            self.tcp_abort(sk);
        }
    }

    /// RST, and nothing remains.
    fn tcp_abort(&mut self, sk: &mut Sock) {
        if sk.tp().state.is_synchronized() || sk.tp().state == State::SynRecv {
            self.tcp_send_active_reset(sk);
        }
        self.tcp_set_state(sk, State::Close);
        self.tcp_clear_timers(sk);
    }

    /// The socket goes on without a program: FIN_WAIT2 is not for ever.
    fn tcp_orphan(&mut self, sk: &mut Sock) {
        if sk.tp().state != State::FinWait2 {
            return;
        }
        if sk.tp().user.linger2 == Some(None) {
            self.mib.inc(Mib::TCPAbortOnLinger);
            self.tcp_send_active_reset(sk);
            return self.tcp_done(sk);
        }
        let limit = self.tcp_fin_time(sk);
        if limit > TCP_TIMEWAIT_LEN {
            self.timers.set(TimerKey::TcpKeepalive(sk.id), self.now + (limit - TCP_TIMEWAIT_LEN));
        } else {
            self.tcp_time_wait(sk, State::FinWait2, limit);
        }
    }

    /// Drops what was received and not read. True if data was among it.
    fn tcp_purge_receive_queue(&mut self, sk: &mut Sock) -> bool {
        let mut unread = false;
        let copied = sk.tp().copied_seq;
        while let Some(skb) = sk.receive_queue.pop_front() {
            let fin = u32::from(skb.tcp.flags & super::header::flag::FIN != 0);
            unread |= (skb.tcp.end_seq - fin).after(copied);
            sk.rmem_alloc -= skb.truesize.min(sk.rmem_alloc);
            self.consume_skb(skb);
        }
        unread
    }

    /// Drops what was queued for sending (Linux `tcp_write_queue_purge`).
    pub(crate) fn tcp_write_queue_purge(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        for skb in tp.write_queue.drain(..).chain(tp.rtx_queue.drain(..)) {
            self.skbs.put(skb);
        }
        tp.packets_out = 0;
        tp.sacked_out = 0;
        tp.lost_out = 0;
        tp.retrans_out = 0;
        tp.backoff = 0;
        tp.chrono_stop(ChronoType::Busy, self.now);
        sk.wmem_queued = 0;
    }

    /// `connect` with `AF_UNSPEC`, or a failed `connect`: the socket is as new, but for
    /// its options and a port that was bound (Linux `tcp_disconnect`). A port that was not is free,
    /// though `getsockname` tells it until there is another. The caller reports the error.
    ///
    /// # Errors
    /// None today; Linux has some for protocols built on TCP.
    pub(crate) fn tcp_disconnect(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        let state = sk.tp().state;
        let unsent = sk.tp().snd_nxt != sk.tp().write_seq;
        match state {
            State::Listen => self.inet_csk_listen_stop(sk),
            State::SynSent => sk.err = Some(Errno::ECONNRESET),
            State::Established | State::CloseWait | State::FinWait1 | State::FinWait2 | State::SynRecv => {
                self.tcp_send_active_reset(sk);
                sk.err = Some(Errno::ECONNRESET);
            }
            State::Closing | State::LastAck if unsent => {
                self.tcp_send_active_reset(sk);
                sk.err = Some(Errno::ECONNRESET);
            }
            // Both sides have said that they are done: nothing is cut short.
            _ => {}
        }
        if state != State::Close {
            self.tcp_set_state(sk, State::Close);
        }
        self.tcp_clear_timers(sk);
        self.tcp_purge_receive_queue(sk);
        self.tcp_write_queue_purge(sk);
        self.tcp_purge_ofo(sk);
        if !sk.bound_addr {
            sk.saddr = Ipv4Addr::UNSPECIFIED;
            sk.rcv_saddr = Ipv4Addr::UNSPECIFIED;
        }
        sk.dport = 0;
        sk.daddr = Ipv4Addr::UNSPECIFIED;
        sk.shutdown = 0;
        sk.dst = None;
        sk.rmem_alloc = 0;
        self.tcp_reset_sock(sk);
        Ok(())
    }

    /// A fresh protocol part with the old one's options.
    fn tcp_reset_sock(&mut self, sk: &mut Sock) {
        self.tcp_tsq_forget(sk);
        let mut fresh = TcpSock::new(&self.tcp.sysctl);
        let old = tp!(sk);
        fresh.opts = old.opts;
        fresh.user = old.user;
        fresh.ack.quickack_locked = old.ack.quickack_locked;
        fresh.rx_opt.user_mss = old.rx_opt.user_mss;
        fresh.owns_port = old.owns_port;
        fresh.set_max_pacing_rate(old.pacing.max);
        fresh.ca = super::cong::Cong::by_name(old.ca.name().as_bytes()).unwrap_or_default();
        // A new connection's numbers lie above the old one's.
        fresh.write_seq = old.write_seq + old.max_window.max(1) + 2;
        *old = fresh;
    }

    /// Nobody refers to the socket any more (Linux `inet_csk_destroy_sock`).
    pub(crate) fn inet_csk_destroy_sock(&mut self, mut sk: Box<Sock>) {
        if sk.tp().orphan {
            self.tcp.orphans -= 1;
        }
        self.tcp_tsq_forget(&mut sk);
        self.tcp_unhash(&mut sk, true);
        self.tcp.put_owner(sk.sport, Owner::Sock(sk.id));
        self.tcp_clear_timers(&mut sk);
        self.tcp_purge_receive_queue(&mut sk);
        self.tcp_write_queue_purge(&mut sk);
        self.tcp_purge_ofo(&mut sk);
        for skb in core::mem::take(&mut sk.backlog) {
            self.consume_skb(skb);
        }
        self.socks.remove_taken(sk.id);
    }
}
