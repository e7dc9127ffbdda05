//! Timers (Linux `tcp_timer.c`): retransmission and probes, delayed ACK, keepalive, minisockets.

use super::minisock::Mini;
use super::sock::{Deferred, TCP_ATO_MIN, TCP_RTO_MAX, TCP_RTO_MIN, TCP_TIMEOUT_INIT, TCP_TIMEWAIT_LEN, TcpSock, WriteTimer, tp};
use super::state::State;
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::Sock;
use crate::time::Instant;
use crate::timer::TimerKey;
use core::time::Duration;
use ringlab_counters::Mib;

/// Until the next try when this host could not send (`TCP_RESOURCE_PROBE_INTERVAL`).
const RESOURCE_PROBE: Duration = Duration::from_millis(500);

impl Kernel {
    /// A TCP timer came up.
    pub(crate) fn tcp_timer(&mut self, key: TimerKey) {
        let id = match key {
            TimerKey::TcpMini(id) => return self.tcp_mini_timer(id),
            TimerKey::TcpWrite(id) | TimerKey::TcpDelack(id) | TimerKey::TcpKeepalive(id) | TimerKey::TcpPace(id) => id,
            _ => return,
        };
        let Some(mut sk) = self.socks.take(id) else { return };
        match key {
            TimerKey::TcpWrite(_) if sk.owned => tp!(sk).deferred |= Deferred::WRITE_TIMER,
            TimerKey::TcpWrite(_) => self.tcp_write_timer_handler(&mut sk),
            TimerKey::TcpDelack(_) if sk.owned => {
                self.mib.inc(Mib::DelayedACKLocked);
                tp!(sk).deferred |= Deferred::DELACK_TIMER;
            }
            TimerKey::TcpDelack(_) => self.tcp_delack_timer_handler(&mut sk),
            TimerKey::TcpKeepalive(_) if sk.owned => self.timers.set(key, self.now + Duration::from_millis(50)),
            TimerKey::TcpKeepalive(_) => self.tcp_keepalive_timer(&mut sk),
            _ => self.tcp_tsq_handler(&mut sk),
        }
        self.tcp_put(sk);
    }

    /// The owner is done: what timers and ICMP left undone (Linux `tcp_release_cb`).
    pub(crate) fn tcp_release_cb(&mut self, sk: &mut Sock) {
        let work = core::mem::take(&mut tp!(sk).deferred);
        if work.contains(Deferred::TSQ) {
            self.tcp_tsq_write(sk);
        }
        if work.contains(Deferred::WRITE_TIMER) {
            self.tcp_write_timer_handler(sk);
        }
        if work.contains(Deferred::DELACK_TIMER) {
            self.tcp_delack_timer_handler(sk);
        }
        if work.contains(Deferred::MTU_REDUCED) {
            self.tcp_v4_mtu_reduced(sk);
        }
    }

    fn tcp_write_timer_handler(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        if matches!(tp.state, State::Close | State::Listen) || tp.pending == WriteTimer::Idle {
            return;
        }
        if tp.timeout > self.now {
            self.timers.set(TimerKey::TcpWrite(sk.id), tp.timeout);
            return;
        }
        match tp.pending {
            WriteTimer::ReoTimeout => self.tcp_rack_reo_timeout(sk),
            WriteTimer::LossProbe => self.tcp_send_loss_probe(sk),
            WriteTimer::Retrans => {
                tp.pending = WriteTimer::Idle;
                self.tcp_retransmit_timer(sk);
            }
            WriteTimer::Probe0 => {
                tp.pending = WriteTimer::Idle;
                self.tcp_probe_timer(sk);
            }
            WriteTimer::Idle => {}
        }
    }

    /// RFC 6298 §5.4 to 5.7 (Linux `tcp_retransmit_timer`).
    fn tcp_retransmit_timer(&mut self, sk: &mut Sock) {
        let tp = sk.tp();
        if tp.packets_out == 0 || tp.rtx_queue.is_empty() {
            return;
        }
        let handshake = matches!(tp.state, State::SynSent | State::SynRecv);
        if tp.snd_wnd == 0 && !sk.dead && !handshake {
            // The peer took its window back: probe it with what it has not taken.
            if self.now.since(tp.rcv_tstamp) > TCP_RTO_MAX {
                return self.tcp_write_err(sk);
            }
            self.tcp_enter_loss(sk);
            // Sent or not, the timer backs off below.
            let _ = self.tcp_retransmit_head(sk);
            return self.tcp_back_off(sk);
        }
        self.mib.inc(Mib::TCPTimeouts);
        if self.tcp_write_timeout(sk) {
            return;
        }
        if handshake {
            if let Some(head) = tp!(sk).rtx_queue.front_mut() {
                head.tcp.sacked &= !super::sack::SACKED_RETRANS;
            }
            tp!(sk).retrans_out = 0;
        } else {
            self.tcp_enter_loss(sk);
        }
        tp!(sk).retransmits = sk.tp().retransmits.saturating_add(1);
        if self.tcp_retransmit_head(sk) == Err(Errno::ENOBUFS) {
            return self.tcp_reset_xmit_timer(sk, WriteTimer::Retrans, RESOURCE_PROBE);
        }
        self.tcp_back_off(sk);
    }

    fn tcp_back_off(&mut self, sk: &mut Sock) {
        let linear = self.tcp.sysctl.syn_linear_timeouts;
        let tp = tp!(sk);
        if tp.state != State::SynSent || tp.retransmits > linear {
            tp.backoff = tp.backoff.saturating_add(1);
            tp.rto = (tp.rto * 2).min(TCP_RTO_MAX);
        }
        let mut rto = tp.rto;
        if let (Some(limit), true) = (tp.user.user_timeout, tp.retrans_stamp != 0) {
            // Not sleep over the program's limit.
            let elapsed = Duration::from_millis(u64::from(tp.tsval(self.now).wrapping_sub(tp.retrans_stamp)));
            rto = rto.min(limit.saturating_sub(elapsed)).max(Duration::from_millis(1));
        }
        self.tcp_reset_xmit_timer(sk, WriteTimer::Retrans, rto);
    }

    /// Gives up after too many tries (RFC 9293 §3.8.3; Linux `tcp_write_timeout`). True if it did.
    fn tcp_write_timeout(&mut self, sk: &mut Sock) -> bool {
        let s = &self.tcp.sysctl;
        let tp = sk.tp();
        let expired = match tp.state {
            State::SynSent | State::SynRecv => {
                let mut max = u32::from(tp.user.syn_retries.unwrap_or(s.syn_retries));
                if tp.state == State::SynSent {
                    max += u32::from(s.syn_linear_timeouts);
                }
                u32::from(tp.retransmits) >= max
            }
            _ => {
                let mut retries = u32::from(s.retries2);
                if sk.dead {
                    let alive = tp.rto < TCP_RTO_MAX;
                    retries = self.tcp_orphan_retries(sk, alive);
                }
                tp.retransmits_timed_out(retries, tp.user.user_timeout, self.now)
            }
        };
        if expired {
            self.tcp_write_err(sk);
            return true;
        }
        if tp.retransmits >= s.retries1 {
            sk.dst = None; // perhaps there is a better route (RFC 1122 §4.2.3.5)
        }
        false
    }

    fn tcp_orphan_retries(&self, sk: &Sock, alive: bool) -> u32 {
        match self.tcp.sysctl.orphan_retries {
            _ if sk.err_soft.is_some() && !alive => 0,
            0 if alive => 8,
            n => u32::from(n),
        }
    }

    /// The connection timed out (Linux `tcp_write_err`).
    fn tcp_write_err(&mut self, sk: &mut Sock) {
        sk.err = Some(sk.err_soft.unwrap_or(Errno::ETIMEDOUT));
        self.mib.inc(Mib::TCPAbortOnTimeout);
        self.tcp_write_queue_purge(sk);
        self.tcp_done(sk);
        if !sk.dead {
            self.sk_error_report(sk);
        }
    }

    /// Zero-window probe (RFC 9293 §3.8.6.1; Linux `tcp_probe_timer`).
    fn tcp_probe_timer(&mut self, sk: &mut Sock) {
        let now = self.now;
        let tp = tp!(sk);
        if tp.packets_out > 0 || tp.write_queue.is_empty() {
            tp.probes_out = 0;
            tp.probes_tstamp = None;
            return;
        }
        let start = *tp.probes_tstamp.get_or_insert(now);
        let overdue = tp.user.user_timeout.is_some_and(|limit| now.since(start) >= limit);
        let tp = sk.tp();
        let mut max = u32::from(self.tcp.sysctl.retries2);
        if sk.dead {
            let alive = tp.probe0_when() < TCP_RTO_MAX;
            max = self.tcp_orphan_retries(sk, alive);
        }
        if overdue || u32::from(sk.tp().probes_out) >= max {
            return self.tcp_write_err(sk);
        }
        self.tcp_send_probe0(sk);
    }

    fn tcp_send_probe0(&mut self, sk: &mut Sock) {
        self.mib.inc(Mib::TCPWinProbe);
        let sent = self.tcp_write_wakeup(sk);
        let most = self.tcp.sysctl.retries2;
        let tp = tp!(sk);
        if tp.packets_out > 0 || tp.write_queue.is_empty() {
            tp.probes_out = 0;
            tp.backoff = 0;
            tp.probes_tstamp = None;
            return;
        }
        tp.probes_out = tp.probes_out.saturating_add(1);
        let when = if sent.is_ok() {
            tp.backoff = tp.backoff.saturating_add(1).min(most);
            tp.probe0_when()
        } else {
            RESOURCE_PROBE
        };
        self.tcp_reset_xmit_timer(sk, WriteTimer::Probe0, when);
    }

    fn tcp_delack_timer_handler(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        if matches!(tp.state, State::Close | State::Listen) || !tp.ack.timer {
            return;
        }
        if tp.delack_at > self.now {
            self.timers.set(TimerKey::TcpDelack(sk.id), tp.delack_at);
            return;
        }
        tp.ack.timer = false;
        if tp.ack.scheduled {
            if tp.ack.pingpong {
                // The reply to ride on did not come.
                tp.ack.pingpong = false;
                tp.ack.ato = TCP_ATO_MIN;
            } else {
                tp.ack.ato = (tp.ack.ato * 2).min(tp.rto);
            }
            self.mib.inc(Mib::DelayedACKs);
            self.tcp_send_ack(sk);
        }
    }

    /// Keepalive (RFC 9293 §3.8.4) and the end of an orphan's FIN_WAIT2 (Linux `tcp_keepalive_timer`).
    fn tcp_keepalive_timer(&mut self, sk: &mut Sock) {
        let state = sk.tp().state;
        if state == State::FinWait2 && sk.dead {
            let left = self.tcp_fin_time(sk).saturating_sub(TCP_TIMEWAIT_LEN);
            if sk.tp().user.linger2 != Some(None) && !left.is_zero() {
                return self.tcp_time_wait(sk, State::FinWait2, left);
            }
            self.tcp_send_active_reset(sk);
            return self.tcp_done(sk);
        }
        if !sk.opt.keepalive || matches!(state, State::Close | State::SynSent | State::Listen) {
            return;
        }
        let when = self.tcp_keepalive_time(sk);
        let key = TimerKey::TcpKeepalive(sk.id);
        let tp = sk.tp();
        if tp.packets_out > 0 || !tp.write_queue.is_empty() {
            return self.timers.set(key, self.now + when);
        }
        let idle = self.now.since(tp.ack.lrcvtime.max(tp.rcv_tstamp));
        if idle < when {
            return self.timers.set(key, self.now + (when - idle));
        }
        let probes = u32::from(tp.user.keepcnt.unwrap_or(self.tcp.sysctl.keepalive_probes));
        let dead = match tp.user.user_timeout {
            Some(limit) => idle >= limit && tp.probes_out > 0,
            None => u32::from(tp.probes_out) >= probes,
        };
        if dead {
            self.tcp_send_active_reset(sk);
            return self.tcp_write_err(sk);
        }
        self.mib.inc(Mib::TCPKeepAlive);
        let interval = sk.tp().user.keepintvl.unwrap_or(self.tcp.sysctl.keepalive_intvl);
        let next = if self.tcp_xmit_probe_skb(sk).is_ok() {
            tp!(sk).probes_out = sk.tp().probes_out.saturating_add(1);
            interval
        } else {
            RESOURCE_PROBE
        };
        self.timers.set(key, self.now + next);
    }

    /// `TCP_KEEPIDLE` or the host's.
    pub(crate) fn tcp_keepalive_time(&self, sk: &Sock) -> Duration {
        sk.tp().user.keepidle.unwrap_or(self.tcp.sysctl.keepalive_time)
    }

    /// How long an orphan stays in FIN_WAIT2 (Linux `tcp_fin_time`).
    pub(crate) fn tcp_fin_time(&self, sk: &Sock) -> Duration {
        let tp = sk.tp();
        let limit = tp.user.linger2.flatten().unwrap_or(self.tcp.sysctl.fin_timeout);
        limit.max(tp.rto * 7 / 2)
    }

    fn tcp_mini_timer(&mut self, id: u64) {
        match self.tcp.mini(id) {
            Some(Mini::Timewait(_)) => {
                self.tcp.remove_mini(id);
            }
            Some(Mini::Request(_)) => self.reqsk_timer_handler(id),
            None => {}
        }
    }

    /// SYN-ACK again, or the end of a request (Linux `reqsk_timer_handler`).
    fn reqsk_timer_handler(&mut self, id: u64) {
        let Some(Mini::Request(req)) = self.tcp.mini(id) else { return };
        let Some(l) = self.socks.get(req.listener).filter(|l| l.tp().state == State::Listen) else {
            return self.tcp_request_drop(id);
        };
        let retries = l.tp().user.syn_retries.unwrap_or(self.tcp.sysctl.synack_retries);
        let defer = l.tp().opts.defer_accept;
        let n = req.num_timeout;
        let (expire, resend) =
            if defer == 0 { (n >= retries, true) } else { (n >= retries && (!req.acked || n >= defer), !req.acked || n + 1 >= defer) };
        if expire {
            return self.tcp_request_drop(id);
        }
        if resend {
            self.tcp_synack_again(id);
        }
        if let Some(req) = self.tcp.request_mut(id) {
            req.num_timeout += 1;
            let timeout = req.timeout();
            self.timers.set(TimerKey::TcpMini(id), self.now + timeout);
        }
    }
}

impl TcpSock {
    /// The first unacknowledged retransmission is as old as `retries` tries would take
    /// (Linux `retransmits_timed_out`).
    fn retransmits_timed_out(&self, retries: u32, limit: Option<Duration>, now: Instant) -> bool {
        if self.retransmits == 0 || self.retrans_stamp == 0 {
            return false;
        }
        let elapsed = Duration::from_millis(u64::from(self.tsval(now).wrapping_sub(self.retrans_stamp)));
        elapsed >= limit.unwrap_or_else(|| model_timeout(retries, TCP_RTO_MIN))
    }
}

/// Time that `retries` tries with doubling take (Linux `tcp_model_timeout`).
pub fn model_timeout(retries: u32, base: Duration) -> Duration {
    let thresh = (TCP_RTO_MAX.as_millis() / base.as_millis().max(1)).max(1).ilog2();
    if retries <= thresh { base * ((2 << retries) - 1) } else { base * ((2 << thresh) - 1) + TCP_RTO_MAX * (retries - thresh) }
}

const _: () = assert!(TCP_TIMEOUT_INIT.as_millis() == 1000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifteen_retries_take_the_documented_924_6_seconds() {
        assert_eq!(model_timeout(15, TCP_RTO_MIN), Duration::from_millis(924_600));
        assert_eq!(model_timeout(3, TCP_RTO_MIN), Duration::from_secs(3));
    }
}
