//! Segments in the other synchronized states (RFC 9293 §3.10.7.4; Linux
//! `tcp_rcv_state_process`), and how connections begin and end.

use super::ack::AckFlags;
use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::{RCV_SHUTDOWN, SEND_SHUTDOWN, Sock};
use crate::syscall::signal::Band;
use crate::tcp::header::{Options, TSTAMP_ALIGNED, flag};
use crate::tcp::seq::SeqNum;
use crate::tcp::sock::{TCP_MSS_DEFAULT, TCP_TIMEWAIT_LEN, tp};
use crate::tcp::state::State;
use crate::timer::TimerKey;
use crate::trace::Point;
use alloc::boxed::Box;
use core::time::Duration;
use ringlab_counters::{DropReason, Mib};

/// A segment that is to be answered with a RST, and why it is dropped.
pub(crate) type Refused = (Box<SkBuff>, DropReason);

impl Kernel {
    /// Takes a segment in any state but ESTABLISHED, LISTEN and TIME_WAIT.
    ///
    /// # Errors
    /// The segment, if it is to be answered with a RST, and why.
    pub(crate) fn tcp_rcv_state_process(&mut self, sk: &mut Sock, skb: Box<SkBuff>, opts: &Options) -> Result<(), Refused> {
        match sk.tp().state {
            State::Close | State::TimeWait | State::Listen => {
                self.kfree_skb(skb, DropReason::TcpClose);
                return Ok(());
            }
            State::SynSent => return self.tcp_rcv_synsent_state_process(sk, skb, opts),
            _ => {}
        }
        tp!(sk).take_timestamps(opts);
        tp!(sk).fast_path = false;
        if skb.tcp.flags & (flag::ACK | flag::RST | flag::SYN) == 0 {
            self.kfree_skb(skb, DropReason::TcpFlags);
            return Ok(());
        }
        if let Err(reason) = self.tcp_validate_incoming(sk, &skb) {
            self.kfree_skb(skb, reason);
            return Ok(());
        }
        let taken = self.tcp_ack(sk, &skb, opts, AckFlags::SLOWPATH | AckFlags::UPDATE_TS_RECENT);
        let syn_recv = sk.tp().state == State::SynRecv;
        match taken {
            Ok(true) => {}
            Ok(false) if !syn_recv => {}
            _ if syn_recv => return Err((skb, taken.err().unwrap_or(DropReason::TcpOldAck))),
            taken => {
                if taken == Err(DropReason::TcpAckUnsentData) {
                    self.tcp_send_challenge_ack(sk);
                }
                self.kfree_skb(skb, taken.err().unwrap_or(DropReason::TcpOldAck));
                return Ok(());
            }
        }
        let skb = match self.tcp_state_on_ack(sk, skb)? {
            Some(skb) => skb,
            None => return Ok(()),
        };
        self.tcp_urg(sk, &skb);
        self.tcp_text_by_state(sk, skb)?;
        if sk.tp().state != State::Close {
            self.tcp_data_snd_check(sk);
            self.tcp_ack_snd_check(sk);
        }
        Ok(())
    }

    /// Fifth: our SYN or FIN may be acknowledged now. `None`: the segment is done with.
    fn tcp_state_on_ack(&mut self, sk: &mut Sock, skb: Box<SkBuff>) -> Result<Option<Box<SkBuff>>, Refused> {
        let all_acked = sk.tp().snd_una == sk.tp().write_seq;
        match sk.tp().state {
            State::SynRecv => {
                self.tcp_synrecv_established(sk, &skb);
                Ok(Some(skb))
            }
            State::FinWait1 if all_acked => self.tcp_fin_wait1_acked(sk, skb),
            State::Closing if all_acked => {
                self.tcp_time_wait(sk, State::TimeWait, Duration::ZERO);
                self.consume_skb(skb);
                Ok(None)
            }
            State::LastAck if all_acked => {
                self.tcp_done(sk);
                self.consume_skb(skb);
                Ok(None)
            }
            _ => Ok(Some(skb)),
        }
    }

    fn tcp_synrecv_established(&mut self, sk: &mut Sock, skb: &SkBuff) {
        let now = self.now;
        let tp = tp!(sk);
        tp.retrans_stamp = 0;
        tp.copied_seq = tp.rcv_nxt;
        tp.snd_una = skb.tcp.ack_seq;
        tp.snd_wnd = u32::from(skb.tcp.window) << if skb.tcp.flags & flag::SYN != 0 { 0 } else { tp.rx_opt.snd_wscale };
        tp.snd_wl1 = skb.tcp.seq;
        tp.max_window = tp.max_window.max(tp.snd_wnd);
        if tp.rx_opt.tstamp_ok {
            tp.advmss -= TSTAMP_ALIGNED;
        }
        (tp.lsndtime, tp.ack.lrcvtime) = (now, now);
        self.tcp_init_transfer(sk);
        tp!(sk).update_pacing_rate();
        self.tcp_set_state(sk, State::Established);
        self.sk_state_change(sk);
        self.sk_wake_async(sk, Band::Out);
        tp!(sk).fast_path_check();
        if sk.shutdown & SEND_SHUTDOWN != 0 {
            self.tcp_shutdown_send(sk);
        }
    }

    fn tcp_fin_wait1_acked(&mut self, sk: &mut Sock, skb: Box<SkBuff>) -> Result<Option<Box<SkBuff>>, Refused> {
        self.tcp_set_state(sk, State::FinWait2);
        sk.shutdown |= SEND_SHUTDOWN;
        if !sk.dead {
            self.sk_state_change(sk);
            return Ok(Some(skb));
        }
        let fin = skb.tcp.flags & flag::FIN != 0;
        let no_wait = sk.tp().user.linger2 == Some(None);
        let data_end = skb.tcp.end_seq - u32::from(fin);
        let new_data = skb.tcp.end_seq != skb.tcp.seq && data_end.after(sk.tp().rcv_nxt);
        if no_wait || new_data {
            // Nobody will read it (RFC 9293 §3.6.1).
            self.mib.inc(Mib::TCPAbortOnData);
            self.tcp_done(sk);
            return Err((skb, DropReason::TcpAbortOnData));
        }
        let limit = self.tcp_fin_time(sk);
        if limit > TCP_TIMEWAIT_LEN || fin || sk.owned {
            // The last minute is the minisocket's.
            let wait = if limit > TCP_TIMEWAIT_LEN { limit - TCP_TIMEWAIT_LEN } else { limit };
            self.timers.set(TimerKey::TcpKeepalive(sk.id), self.now + wait);
            return Ok(Some(skb));
        }
        self.tcp_time_wait(sk, State::FinWait2, limit);
        self.consume_skb(skb);
        Ok(None)
    }

    /// Seventh: which states take text.
    fn tcp_text_by_state(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) -> Result<(), Refused> {
        let (seq, end) = (skb.tcp.seq, skb.tcp.end_seq);
        match sk.tp().state {
            State::CloseWait | State::Closing | State::LastAck if seq.at_or_after(sk.tp().rcv_nxt) => {
                self.consume_skb(skb);
                return Ok(());
            }
            State::FinWait1 | State::FinWait2 | State::CloseWait | State::Closing | State::LastAck => {
                let fin = u32::from(skb.tcp.flags & flag::FIN != 0);
                if sk.shutdown & RCV_SHUTDOWN != 0 && end != seq && (end - fin).after(sk.tp().rcv_nxt) {
                    self.mib.inc(Mib::TCPAbortOnData);
                    self.tcp_reset(sk);
                    return Err((skb, DropReason::TcpAbortOnData));
                }
            }
            State::Established => {}
            _ => {
                self.consume_skb(skb);
                return Ok(());
            }
        }
        let hdr = u32::from(skb.tcp.hdr_len);
        skb.pull(hdr).expect("header was checked");
        self.tcp_data_queue(sk, skb);
        Ok(())
    }

    /// Buffers and windows of a connection that begins (Linux `tcp_init_transfer`).
    pub(crate) fn tcp_init_transfer(&mut self, sk: &mut Sock) {
        let now = self.now;
        self.tcp_sndbuf_expand(sk);
        let full = sk.tcp_full_space();
        let tp = tp!(sk);
        tp.rcvtune.seq = tp.copied_seq;
        tp.rcvtune.time = now;
        tp.window_clamp = tp.window_clamp.min(full);
        // One segment is kept in reserve (Linux `tcp_init_buffer_space`).
        if tp.window_clamp > 2 * tp.advmss && tp.window_clamp + tp.advmss > full {
            tp.window_clamp = (2 * tp.advmss).max(full.saturating_sub(tp.advmss));
        }
        tp.rcv_ssthresh = tp.rcv_ssthresh.min(tp.window_clamp);
        tp.rcvtune.space = tp.rcv_ssthresh.min(tp.rcv_wnd).min(10 * tp.advmss);
        let syn_lost = tp.total.total_retrans > 1 && tp.rtt.srtt_us == 0;
        tp.cwnd.cwnd = if syn_lost { 1 } else { crate::tcp::cong::TCP_INIT_CWND };
        tp.cwnd.stamp = now;
        tp.initialize_rcv_mss();
        tp.retransmits = 0;
        if sk.opt.keepalive {
            let when = self.tcp_keepalive_time(sk);
            self.timers.set(TimerKey::TcpKeepalive(sk.id), now + when);
        }
    }

    /// The new state, counted and traced (Linux `tcp_set_state`). CLOSE leaves the tables.
    pub(crate) fn tcp_set_state(&mut self, sk: &mut Sock, state: State) {
        let old = sk.tp().state;
        if old == state {
            return;
        }
        let open = |s: State| matches!(s, State::Established | State::CloseWait);
        let established = self.mib.get(Mib::TcpCurrEstab);
        match (open(old), open(state)) {
            (false, true) => self.mib.set(Mib::TcpCurrEstab, established + 1),
            (true, false) => self.mib.set(Mib::TcpCurrEstab, established.saturating_sub(1)),
            _ => {}
        }
        if state == State::Close {
            if open(old) {
                self.mib.inc(Mib::TcpEstabResets);
            }
            let put_port = !sk.bound_port;
            self.tcp_unhash(sk, put_port);
        }
        tp!(sk).state = state;
        self.trace(Point::TcpState, 0, [u64::from(sk.id.0), old as u64, state as u64, 0]);
    }

    /// The connection is over (Linux `tcp_done`).
    pub(crate) fn tcp_done(&mut self, sk: &mut Sock) {
        if matches!(sk.tp().state, State::SynSent | State::SynRecv) {
            self.mib.inc(Mib::TcpAttemptFails);
        }
        self.tcp_set_state(sk, State::Close);
        self.tcp_clear_timers(sk);
        sk.shutdown = RCV_SHUTDOWN | SEND_SHUTDOWN;
        if !sk.dead {
            self.sk_state_change(sk);
        }
    }

    /// Stops all timers of a socket.
    pub(crate) fn tcp_clear_timers(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        tp.pending = crate::tcp::sock::WriteTimer::Idle;
        tp.ack.sent();
        for key in [TimerKey::TcpWrite(sk.id), TimerKey::TcpDelack(sk.id), TimerKey::TcpKeepalive(sk.id), TimerKey::TcpPace(sk.id)] {
            self.timers.cancel(key);
        }
    }

    /// The program shut its sending side: FIN, if the state has one to send (Linux `tcp_shutdown`).
    pub(crate) fn tcp_shutdown_send(&mut self, sk: &mut Sock) {
        let old = sk.tp().state;
        if matches!(old, State::Established | State::SynSent | State::CloseWait | State::SynRecv) {
            let (next, fin) = old.on_close();
            if old != State::SynSent && old != State::SynRecv {
                self.tcp_set_state(sk, next);
                if fin {
                    self.tcp_send_fin(sk);
                }
            }
        }
    }
}

impl crate::tcp::sock::TcpSock {
    /// First guess of the peer's segment size (Linux `tcp_initialize_rcv_mss`).
    pub(crate) fn initialize_rcv_mss(&mut self) {
        let hint = self.advmss.min(self.mss_cache).min(self.rcv_wnd / 2).min(TCP_MSS_DEFAULT);
        self.ack.rcv_mss = hint.max(88);
    }

    /// Takes the options of a SYN or SYN-ACK as far as we asked for them (Linux `tcp_parse_options`).
    pub(crate) fn take_syn_options(
        &mut self,
        opts: &Options,
        (ts, sack, wscale): (bool, bool, bool),
        seq: SeqNum,
        now: crate::time::Instant,
    ) {
        let user = if self.rx_opt.user_mss != 0 { self.rx_opt.user_mss } else { u16::MAX };
        self.rx_opt.mss_clamp = opts.mss.unwrap_or(TCP_MSS_DEFAULT as u16).min(user).max(64);
        self.rx_opt.sack_ok = sack && opts.sack_permitted;
        self.rx_opt.wscale_ok = wscale && opts.wscale.is_some();
        if self.rx_opt.wscale_ok {
            self.rx_opt.snd_wscale = opts.wscale.unwrap_or(0);
        } else {
            self.rx_opt.snd_wscale = 0;
            self.rx_opt.rcv_wscale = 0;
            self.window_clamp = self.window_clamp.min(65535);
        }
        self.rx_opt.tstamp_ok = ts && opts.ts.is_some();
        self.take_timestamps(opts);
        if self.rx_opt.tstamp_ok {
            self.store_ts_recent(now);
        }
        self.rcv_nxt = seq + 1;
        self.rcv_wup = seq + 1;
        self.copied_seq = seq + 1;
    }
}
