//! RACK: loss by time since a later segment was delivered (RFC 8985 §6; Linux `tcp_recovery.c`).

use super::cong::CaState;
use super::rate::RateSample;
use super::sack::{EVER_RETRANS, LOST, SACKED_ACKED, SACKED_RETRANS};
use super::seq::SeqNum;
use super::sock::{TcpSock, WriteTimer, tp};
use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::Sock;
use crate::time::Instant;
use core::time::Duration;
use ringlab_counters::Mib;

/// Recoveries that an enlarged reordering window lasts.
const REO_WND_PERSIST: u8 = 16;

/// State of RACK.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rack {
    /// When the latest-sent segment that was delivered was sent.
    pub mstamp: Instant,
    /// Its end.
    pub end_seq: SeqNum,
    /// Its RTT.
    pub rtt: Duration,
    /// Something was delivered since losses were last looked for.
    pub advanced: bool,
    /// A DSACK came: the reordering window is too small.
    pub dsack_seen: bool,
    /// Reordering window, quarters of the least RTT, less one.
    pub reo_wnd_steps: u8,
    /// Recoveries left before it shrinks again.
    pub reo_wnd_persist: u8,
    /// `delivered` when the window last grew.
    pub last_delivered: u32,
}

fn sent_after(t1: Instant, seq1: SeqNum, t2: Instant, seq2: SeqNum) -> bool {
    t1 > t2 || (t1 == t2 && seq1.after(seq2))
}

impl TcpSock {
    /// A segment was delivered (Linux `tcp_rack_advance`).
    pub(crate) fn rack_advance(&mut self, sacked: u8, end_seq: SeqNum, sent_at: Instant, now: Instant) {
        let rtt = now.since(sent_at);
        let min_rtt = Duration::from_micros(u64::from(self.rtt.min_rtt_us));
        if sacked & (SACKED_RETRANS | EVER_RETRANS) != 0 && rtt < min_rtt {
            return; // the ACK is for the first transmission
        }
        self.rack.advanced = true;
        self.rack.rtt = rtt;
        if sent_after(sent_at, end_seq, self.rack.mstamp, self.rack.end_seq) {
            self.rack.mstamp = sent_at;
            self.rack.end_seq = end_seq;
        }
    }

    /// How long a segment may be late (Linux `tcp_rack_reo_wnd`).
    fn rack_reo_wnd(&self) -> Duration {
        if self.total.reord_seen == 0 && (self.ca_state >= CaState::Recovery || self.sacked_out >= self.reordering) {
            return Duration::ZERO;
        }
        if self.rtt.min_rtt_us == u32::MAX {
            return Duration::ZERO;
        }
        let wnd = u64::from(self.rtt.min_rtt_us / 4) * (u64::from(self.rack.reo_wnd_steps) + 1);
        Duration::from_micros(wnd.min(u64::from(self.rtt.srtt_us >> 3)))
    }

    /// Time until a segment counts as lost.
    pub(crate) fn rack_skb_timeout(&self, skb: &SkBuff, reo_wnd: Duration, now: Instant) -> Duration {
        (self.rack.rtt + reo_wnd).saturating_sub(now.since(skb.tcp.sent_at))
    }

    /// DSACKs widen the window, sixteen recoveries without narrow it (Linux `tcp_rack_update_reo_wnd`).
    pub(crate) fn rack_update_reo_wnd(&mut self, rs: &RateSample) {
        let r = &mut self.rack;
        if rs.prior_at.is_none_or(|_| (rs.prior_delivered.wrapping_sub(r.last_delivered) as i32) < 0) {
            r.dsack_seen = false;
        }
        if r.dsack_seen {
            r.reo_wnd_steps = r.reo_wnd_steps.saturating_add(1);
            r.dsack_seen = false;
            r.last_delivered = self.rate.delivered;
            r.reo_wnd_persist = REO_WND_PERSIST;
        } else if r.reo_wnd_persist == 0 {
            r.reo_wnd_steps = 0;
        }
    }

    /// Marks a packet lost (Linux `tcp_mark_skb_lost`). Returns how many retransmissions were lost again.
    pub(crate) fn mark_skb_lost(&mut self, index: usize) -> u32 {
        let Some(skb) = self.rtx_queue.get_mut(index) else { return 0 };
        let (sacked, pcount) = (skb.tcp.sacked, skb.pcount());
        if sacked & SACKED_ACKED != 0 {
            return 0;
        }
        if sacked & LOST == 0 {
            skb.tcp.sacked |= LOST;
            self.lost_out += pcount;
            self.rate.lost = self.rate.lost.wrapping_add(pcount);
            return 0;
        }
        if sacked & SACKED_RETRANS == 0 {
            return 0;
        }
        skb.tcp.sacked &= !SACKED_RETRANS;
        self.retrans_out -= pcount.min(self.retrans_out);
        self.rate.lost = self.rate.lost.wrapping_add(pcount);
        pcount
    }
}

impl Kernel {
    /// Marks lost what was sent well before something that has arrived
    /// (Linux `tcp_rack_detect_loss`). Returns the time until the next segment would be.
    fn tcp_rack_detect_loss(&mut self, sk: &mut Sock) -> Duration {
        let now = self.now;
        let tp = tp!(sk);
        let reo_wnd = tp.rack_reo_wnd();
        let mut timeout = Duration::ZERO;
        for i in 0..tp.rtx_queue.len() {
            let skb = &tp.rtx_queue[i];
            let cb = &skb.tcp;
            if cb.sacked & SACKED_ACKED != 0 || (cb.sacked & LOST != 0 && cb.sacked & SACKED_RETRANS == 0) {
                continue;
            }
            if !sent_after(tp.rack.mstamp, tp.rack.end_seq, cb.sent_at, cb.end_seq) {
                if cb.sacked & EVER_RETRANS == 0 {
                    break; // first transmissions go in order: all that follow are later
                }
                continue;
            }
            let left = tp.rack_skb_timeout(skb, reo_wnd, now);
            if left.is_zero() {
                let again = tp.mark_skb_lost(i);
                self.mib.add(Mib::TCPLostRetransmit, u64::from(again));
            } else {
                timeout = timeout.max(left);
            }
        }
        timeout
    }

    /// Linux `tcp_rack_mark_lost`. True if the reordering timer was set.
    pub(crate) fn tcp_rack_mark_lost(&mut self, sk: &mut Sock) -> bool {
        let tp = tp!(sk);
        if !tp.rack.advanced {
            return false;
        }
        tp.rack.advanced = false;
        let timeout = self.tcp_rack_detect_loss(sk);
        if timeout.is_zero() {
            return false;
        }
        self.tcp_reset_xmit_timer(sk, WriteTimer::ReoTimeout, timeout + Duration::from_millis(2));
        true
    }

    /// The reordering window has passed (Linux `tcp_rack_reo_timeout`).
    pub(crate) fn tcp_rack_reo_timeout(&mut self, sk: &mut Sock) {
        let (prior, lost) = (sk.tp().in_flight(), sk.tp().lost_out);
        tp!(sk).pending = WriteTimer::Idle;
        self.tcp_rack_detect_loss(sk);
        if prior != sk.tp().in_flight() {
            if sk.tp().ca_state != CaState::Recovery {
                self.tcp_enter_recovery(sk, false);
                let newly_lost = sk.tp().lost_out.saturating_sub(lost);
                tp!(sk).cwnd_reduction(1, newly_lost, false);
            }
            self.tcp_xmit_retransmit_queue(sk);
        }
        if sk.tp().pending != WriteTimer::Retrans {
            self.tcp_rearm_rto(sk);
        }
    }

    /// Without SACK: the head is lost after enough duplicate ACKs, and again at every
    /// partial ACK (RFC 6582; Linux `tcp_newreno_mark_lost`).
    pub(crate) fn tcp_newreno_mark_lost(&mut self, sk: &mut Sock, una_advanced: bool) {
        let tp = sk.tp();
        let enough = tp.ca_state < CaState::Recovery && tp.sacked_out >= tp.reordering;
        let partial = tp.ca_state == CaState::Recovery && una_advanced;
        if !enough && !partial {
            return;
        }
        let mss = tp.mss_cache;
        let Some(head) = tp.rtx_queue.front() else { return };
        if head.tcp.sacked & LOST != 0 {
            return;
        }
        if head.pcount() > 1 && head.len() > mss {
            self.tcp_fragment(sk, super::output::xmit::Queue::Rtx, 0, mss, mss);
        }
        tp!(sk).mark_skb_lost(0);
    }
}
