//! Sending again (Linux `tcp_retransmit_skb`, `tcp_xmit_retransmit_queue`,
//! `tcp_send_loss_probe`).

use super::xmit::{Burst, Nagle, Queue};
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::Sock;
use crate::tcp::cong::CaState;
use crate::tcp::sack::{EVER_RETRANS, LOST, SACKED_ACKED, SACKED_RETRANS};
use crate::tcp::sock::{SKB_OVERHEAD, TCP_RTO_MAX, TCP_RTO_MIN, TcpSock, WriteTimer, tp};
use crate::tcp::state::State;
use crate::trace::Point;
use core::time::Duration;
use ringlab_counters::Mib;

impl Kernel {
    /// Sends (up to `segs` segments of) a packet of the retransmission queue again
    /// (Linux `tcp_retransmit_skb`).
    ///
    /// # Errors
    /// `EBUSY` if it has not left this host; `EAGAIN` if the peer's window no longer covers it; those of IP.
    pub(crate) fn tcp_retransmit_skb(&mut self, sk: &mut Sock, index: usize, segs: u32) -> Result<(), Errno> {
        let now = self.now;
        if self.tcp_still_in_host_queue(sk, index) {
            return Err(Errno::EBUSY);
        }
        self.tcp_trim_head(sk, index);
        let mss = self.tcp_current_mss(sk);
        let tp = tp!(sk);
        let (una, wnd_end) = (tp.snd_una, tp.wnd_end());
        let Some(skb) = tp.rtx_queue.get_mut(index) else { return Err(Errno::EAGAIN) };
        let window_left = wnd_end.distance(skb.tcp.seq);
        if window_left <= 0 && skb.tcp.seq != una {
            return Err(Errno::EAGAIN);
        }
        let mut most = mss * segs.max(1);
        if window_left > 0 && (window_left as u32) < most && skb.tcp.seq != una {
            most = (window_left as u32).next_multiple_of(mss).max(mss).min(most);
        }
        if skb.len() > most {
            self.tcp_fragment(sk, Queue::Rtx, index, most, mss);
        } else {
            let (sacked, old) = (skb.tcp.sacked, skb.pcount());
            skb.set_tso_segs(mss);
            let new = skb.pcount();
            if old != new {
                tp.adjust_pcount(sacked, old, new);
            }
        }
        let tp = tp!(sk);
        let Some(skb) = tp.rtx_queue.get_mut(index) else { return Err(Errno::EAGAIN) };
        skb.tcp.sent_at = now;
        let (seq, len, pcount) = (skb.tcp.seq, skb.len(), skb.pcount());
        let mut cb = skb.tcp;
        let clone = self.skb_clone(skb);
        self.mib.add(Mib::TcpRetransSegs, u64::from(pcount));
        if cb.flags & crate::tcp::header::flag::SYN != 0 {
            self.mib.inc(Mib::TCPSynRetrans);
        }
        self.trace(Point::TcpRetransmit, clone.id, [u64::from(sk.id.0), u64::from(seq.0), u64::from(len), 0]);
        let sent = self.tcp_transmit_skb(sk, clone);
        let tp = tp!(sk);
        tp.total.total_retrans += pcount;
        tp.total.bytes_retrans += u64::from(len);
        cb.copy_no = tp.total.copies.sent;
        tp.rate_skb_sent(&mut cb, now);
        tp.note_retransmitted(index, cb, now);
        sent
    }

    /// Drops the part of a packet that is acknowledged already (Linux `tcp_trim_head`).
    fn tcp_trim_head(&mut self, sk: &mut Sock, index: usize) {
        let tp = tp!(sk);
        let una = tp.snd_una;
        let Some(skb) = tp.rtx_queue.get_mut(index).filter(|s| s.tcp.seq.before(una) && s.tcp.end_seq.after(una)) else { return };
        let mut cut = una - skb.tcp.seq;
        if skb.tcp.flags & crate::tcp::header::flag::SYN != 0 {
            skb.tcp.flags &= !crate::tcp::header::flag::SYN;
            cut -= 1;
        }
        if skb.pull(cut).is_ok() {
            skb.tcp.seq = una;
            skb.truesize -= cut;
            sk.wmem_queued -= cut;
        }
    }

    /// Sends what is marked lost, as the window allows (Linux `tcp_xmit_retransmit_queue`).
    pub(crate) fn tcp_xmit_retransmit_queue(&mut self, sk: &mut Sock) {
        let mss = sk.tp().mss_cache.max(1);
        let max_segs = sk.tp().tso_segs(mss);
        let mut rearm = false;
        let mut index = 0;
        while sk.tp().lost_out > sk.tp().retrans_out {
            if self.tcp_pacing_check(sk) {
                break;
            }
            let tp = sk.tp();
            let Some(skb) = tp.rtx_queue.get(index) else { break };
            let segs = tp.cwnd.cwnd.saturating_sub(tp.in_flight()).min(max_segs);
            if segs == 0 {
                break;
            }
            if skb.tcp.sacked & (SACKED_ACKED | SACKED_RETRANS) != 0 || skb.tcp.sacked & LOST == 0 {
                index += 1;
                continue;
            }
            let truesize = skb.truesize;
            if self.tcp_small_queue_check(sk, truesize, 1) || self.tcp_retransmit_skb(sk, index, segs).is_err() {
                break;
            }
            let tp = tp!(sk);
            let pcount = tp.rtx_queue.get(index).map_or(0, |s| s.pcount());
            let counter = if tp.ca_state == CaState::Loss { Mib::TCPSlowStartRetrans } else { Mib::TCPFastRetrans };
            self.mib.add(counter, u64::from(pcount));
            if tp.in_cwnd_reduction() {
                tp.prr.out += pcount;
            }
            rearm |= index == 0 && tp.pending != WriteTimer::ReoTimeout;
            index += 1;
        }
        if rearm {
            let rto = sk.tp().rto;
            self.tcp_reset_xmit_timer(sk, WriteTimer::Retrans, rto);
        }
    }

    /// Arms the tail loss probe instead of the RTO (RFC 8985 §7.2; Linux `tcp_schedule_loss_probe`).
    /// False if the RTO must be armed.
    pub(crate) fn tcp_schedule_loss_probe(&mut self, sk: &mut Sock, advancing: bool) -> bool {
        let now = self.now;
        let tp = sk.tp();
        let on = matches!(self.tcp.sysctl.early_retrans, 3 | 4) && tp.rx_opt.sack_ok;
        let calm = matches!(tp.ca_state, CaState::Open | CaState::Cwr);
        if !on || tp.packets_out == 0 || !calm || !tp.state.is_synchronized() {
            return false;
        }
        let mut timeout = match tp.srtt() {
            Some(srtt) => {
                let slack = if tp.packets_out == 1 { TCP_RTO_MIN } else { Duration::from_millis(2) };
                srtt * 2 + slack
            }
            None => crate::tcp::sock::TCP_TIMEOUT_INIT,
        };
        // Not later than the RTO would have been.
        let rto_at = if advancing { now + tp.rto } else { tp.rto_deadline(now) };
        timeout = timeout.min(rto_at.since(now));
        if timeout.is_zero() {
            return false;
        }
        self.tcp_reset_xmit_timer(sk, WriteTimer::LossProbe, timeout.min(TCP_RTO_MAX));
        true
    }

    /// The probe timer fired: one new segment, or the last one again (RFC 8985 §7.3;
    /// Linux `tcp_send_loss_probe`).
    pub(crate) fn tcp_send_loss_probe(&mut self, sk: &mut Sock) {
        let mss = self.tcp_current_mss(sk);
        if sk.tp().tlp_high_seq.is_none() {
            let before = sk.tp().snd_nxt;
            let room = sk.tp().write_queue.front().is_some_and(|s| {
                let end = if s.len() > mss { s.tcp.seq + mss } else { s.tcp.end_seq };
                end.at_or_before(sk.tp().wnd_end())
            });
            let mut sent = false;
            if room {
                self.tcp_write_xmit(sk, mss, Nagle::Push, Burst::Probe);
                sent = sk.tp().snd_nxt != before;
                tp!(sk).tlp_retrans = false;
            }
            if !sent {
                sent = self.tcp_probe_last(sk, mss);
                tp!(sk).tlp_retrans = true;
            }
            if sent {
                let tp = tp!(sk);
                tp.tlp_high_seq = Some(tp.snd_nxt);
                self.mib.inc(Mib::TCPLossProbes);
            }
        }
        tp!(sk).pending = WriteTimer::Idle;
        let rto = sk.tp().rto;
        self.tcp_reset_xmit_timer(sk, WriteTimer::Retrans, rto);
    }

    fn tcp_probe_last(&mut self, sk: &mut Sock, mss: u32) -> bool {
        let Some(mut index) = sk.tp().rtx_queue.len().checked_sub(1) else { return false };
        let skb = &sk.tp().rtx_queue[index];
        let (len, pcount) = (skb.len(), skb.pcount());
        if pcount > 1 && len > (pcount - 1) * mss && self.tcp_fragment(sk, Queue::Rtx, index, (pcount - 1) * mss, mss) {
            index += 1;
        }
        self.tcp_retransmit_skb(sk, index, 1).is_ok()
    }

    /// Sends the FIN or SYN at the head again (`tcp_retransmit_timer` before any sample).
    pub(crate) fn tcp_retransmit_head(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        if sk.tp().rtx_queue.is_empty() || sk.tp().state == State::Close {
            return Err(Errno::EAGAIN);
        }
        self.tcp_retransmit_skb(sk, 0, 1)
    }

    /// Sets the write timer (Linux `inet_csk_reset_xmit_timer`).
    pub(crate) fn tcp_reset_xmit_timer(&mut self, sk: &mut Sock, what: WriteTimer, when: Duration) {
        let tp = tp!(sk);
        tp.pending = what;
        tp.timeout = self.now + when.min(TCP_RTO_MAX);
        self.timers.set(crate::timer::TimerKey::TcpWrite(sk.id), tp.timeout);
    }

    /// Stops the write timer (Linux `inet_csk_clear_xmit_timer`).
    pub(crate) fn tcp_clear_xmit_timer(&mut self, sk: &mut Sock) {
        tp!(sk).pending = WriteTimer::Idle;
        self.timers.park(crate::timer::TimerKey::TcpWrite(sk.id));
    }

    /// Starts the RTO anew, or stops it if nothing is in flight (Linux `tcp_rearm_rto`).
    pub(crate) fn tcp_rearm_rto(&mut self, sk: &mut Sock) {
        let now = self.now;
        let tp = sk.tp();
        if tp.packets_out == 0 {
            self.tcp_clear_xmit_timer(sk);
            return;
        }
        let mut rto = tp.rto;
        if matches!(tp.pending, WriteTimer::ReoTimeout | WriteTimer::LossProbe) {
            // The RTO counts from the oldest segment, not from now.
            rto = tp.rto_deadline(now).since(now).max(Duration::from_millis(1));
        }
        self.tcp_reset_xmit_timer(sk, WriteTimer::Retrans, rto);
    }
}

impl TcpSock {
    /// When the oldest segment in flight times out (Linux `tcp_rto_delta_us`).
    fn rto_deadline(&self, now: crate::time::Instant) -> crate::time::Instant {
        self.rtx_queue.front().map_or(now, |s| s.tcp.sent_at) + self.rto
    }

    /// A packet went out again: marks, counts and undo state.
    fn note_retransmitted(&mut self, index: usize, cb: crate::skb::TcpCb, now: crate::time::Instant) {
        let Some(skb) = self.rtx_queue.get_mut(index) else { return };
        let (pcount, already) = (skb.pcount(), skb.tcp.sacked & SACKED_RETRANS != 0);
        skb.tcp = cb;
        skb.tcp.sacked |= SACKED_RETRANS | EVER_RETRANS;
        if !already {
            self.retrans_out += pcount;
        }
        if self.retrans_stamp == 0 {
            self.retrans_stamp = self.tsval(now).max(1);
        }
        self.undo_retrans = self.undo_retrans.max(0) + pcount as i32;
    }

    /// Octets of memory that a queue accounts for `len` octets of data in one packet.
    pub(crate) fn skb_truesize(len: u32) -> u32 {
        SKB_OVERHEAD + len
    }
}
