//! Loss recovery: what ACKs say about the network, and what to do about it
//! (Linux `tcp_fastretrans_alert`; RFC 5681, 6582, 6675, 6937, 8985).

use super::cong::{CaState, TCP_INFINITE_SSTHRESH};
use super::input::ack::{AckCtx, AckFlags};
use super::sack::{EVER_RETRANS, LOST, SACKED_ACKED, SACKED_RETRANS};
use super::seq::SeqNum;
use super::sock::{TcpSock, tp};
use crate::Kernel;
use crate::sock::Sock;
use crate::time::Instant;
use crate::trace::Point;
use core::time::Duration;
use ringlab_counters::Mib;

impl Kernel {
    /// Takes an ACK that may tell of loss or reordering. True if lost segments are to be sent again.
    pub(crate) fn tcp_fastretrans_alert(&mut self, sk: &mut Sock, dupacks: u32, ctx: &mut AckCtx) -> bool {
        let (now, max_reord) = (self.now, self.tcp.sysctl.max_reordering);
        let ece = ctx.flag.contains(AckFlags::ECE);
        let tp = tp!(sk);
        if tp.packets_out == 0 {
            tp.sacked_out = 0;
        }
        if ece {
            tp.prior_ssthresh = 0;
        }
        if ctx.flag.contains(AckFlags::SACK_RENEGING) && self.tcp_check_sack_reneging(sk) {
            return false;
        }
        let tp = tp!(sk);
        if tp.ca_state == CaState::Open {
            tp.retrans_stamp = 0;
        } else if tp.snd_una.at_or_after(tp.high_seq) {
            match tp.ca_state {
                CaState::Cwr if tp.snd_una != tp.high_seq => {
                    tp.end_cwnd_reduction(now);
                    tp.set_ca_state(CaState::Open, now);
                }
                CaState::Recovery => {
                    if !tp.rx_opt.sack_ok {
                        tp.sacked_out = 0;
                    }
                    if tp.try_undo_recovery(now) {
                        return false;
                    }
                    tp.end_cwnd_reduction(now);
                }
                _ => {}
            }
        }
        let advanced = ctx.flag.contains(AckFlags::SND_UNA_ADVANCED);
        match tp.ca_state {
            CaState::Recovery => {
                if !advanced {
                    if !tp.rx_opt.sack_ok {
                        tp.add_reno_sack(dupacks, ece, max_reord);
                    }
                } else if tp.try_undo_partial(ctx.prior_snd_una, now, max_reord) {
                    return false;
                }
                if tp.try_undo_dsack(now) {
                    tp.try_keep_open(now);
                }
                self.tcp_identify_packet_loss(sk, ctx);
                if sk.tp().ca_state != CaState::Recovery {
                    if sk.tp().lost_out == 0 {
                        return false;
                    }
                    self.tcp_enter_recovery(sk, ece);
                }
            }
            CaState::Loss => {
                let go = tp.process_loss(dupacks, ctx, now, max_reord);
                self.tcp_identify_packet_loss(sk, ctx);
                if !(sk.tp().ca_state == CaState::Open || ctx.flag.contains(AckFlags::LOST_RETRANS)) {
                    return go;
                }
                return self.tcp_maybe_recover(sk, dupacks, ctx);
            }
            _ => return self.tcp_maybe_recover(sk, dupacks, ctx),
        }
        true
    }

    fn tcp_maybe_recover(&mut self, sk: &mut Sock, dupacks: u32, ctx: &mut AckCtx) -> bool {
        let (now, max_reord) = (self.now, self.tcp.sysctl.max_reordering);
        let ece = ctx.flag.contains(AckFlags::ECE);
        let tp = tp!(sk);
        if !tp.rx_opt.sack_ok {
            if ctx.flag.contains(AckFlags::SND_UNA_ADVANCED) {
                tp.sacked_out = 0;
            }
            tp.add_reno_sack(dupacks, ece, max_reord);
        }
        if tp.ca_state <= CaState::Disorder {
            tp.try_undo_dsack(now);
        }
        self.tcp_identify_packet_loss(sk, ctx);
        if sk.tp().lost_out == 0 {
            self.tcp_try_to_open(sk, ece);
            return false;
        }
        self.tcp_enter_recovery(sk, ece);
        true
    }

    fn tcp_identify_packet_loss(&mut self, sk: &mut Sock, ctx: &mut AckCtx) {
        if sk.tp().rtx_queue.is_empty() {
            return;
        }
        if !sk.tp().rx_opt.sack_ok {
            self.tcp_newreno_mark_lost(sk, ctx.flag.contains(AckFlags::SND_UNA_ADVANCED));
            return;
        }
        let prior = sk.tp().retrans_out;
        if self.tcp_rack_mark_lost(sk) {
            ctx.flag.remove(AckFlags::SET_XMIT_TIMER);
        }
        if prior > sk.tp().retrans_out {
            ctx.flag |= AckFlags::LOST_RETRANS;
        }
    }

    /// Fast recovery begins (RFC 6675 §5; Linux `tcp_enter_recovery`).
    pub(crate) fn tcp_enter_recovery(&mut self, sk: &mut Sock, ece: bool) {
        let now = self.now;
        let tp = tp!(sk);
        self.mib.inc(if tp.rx_opt.sack_ok { Mib::TCPSackRecovery } else { Mib::TCPRenoRecovery });
        tp.prior_ssthresh = 0;
        tp.init_undo();
        if !tp.in_cwnd_reduction() {
            if !ece {
                tp.prior_ssthresh = tp.current_ssthresh();
            }
            tp.init_cwnd_reduction();
        }
        tp.set_ca_state(CaState::Recovery, now);
        self.tcp_trace_cwnd(sk);
    }

    /// Congestion on this host or by ECN: reduce without a loss (Linux `tcp_enter_cwr`).
    pub(crate) fn tcp_enter_cwr(&mut self, sk: &mut Sock) {
        let now = self.now;
        let tp = tp!(sk);
        tp.prior_ssthresh = 0;
        if tp.ca_state < CaState::Cwr {
            tp.undo_marker = None;
            tp.init_cwnd_reduction();
            tp.set_ca_state(CaState::Cwr, now);
        }
    }

    fn tcp_try_to_open(&mut self, sk: &mut Sock, ece: bool) {
        let now = self.now;
        let tp = tp!(sk);
        if !tp.any_retrans_done() {
            tp.retrans_stamp = 0;
        }
        if ece {
            self.tcp_enter_cwr(sk);
        }
        let tp = tp!(sk);
        if tp.ca_state != CaState::Cwr {
            tp.try_keep_open(now);
        }
    }

    /// The peer dropped what it had SACKed (RFC 2018 §8): wait a little, then treat as a timeout.
    fn tcp_check_sack_reneging(&mut self, sk: &mut Sock) -> bool {
        let srtt = sk.tp().srtt().unwrap_or_default();
        let delay = (srtt / 2).max(Duration::from_millis(10));
        self.tcp_reset_xmit_timer(sk, super::sock::WriteTimer::Retrans, delay);
        true
    }

    /// A retransmission timeout (RFC 6298 §5; Linux `tcp_enter_loss`).
    pub(crate) fn tcp_enter_loss(&mut self, sk: &mut Sock) {
        let (now, reord) = (self.now, self.tcp.sysctl.reordering);
        self.tcp_timeout_mark_lost(sk);
        let tp = tp!(sk);
        let again = tp.ca_state == CaState::Loss && tp.retransmits > 0;
        if tp.ca_state <= CaState::Disorder || tp.high_seq.at_or_before(tp.snd_una) || (tp.ca_state == CaState::Loss && !again) {
            tp.prior_ssthresh = tp.current_ssthresh();
            tp.cwnd.prior_cwnd = tp.cwnd.cwnd;
            tp.cwnd.ssthresh = tp.ca.ssthresh(&tp.cwnd);
            tp.init_undo();
        }
        tp.cwnd.cwnd = tp.in_flight() + 1;
        tp.cwnd.cnt = 0;
        tp.cwnd.stamp = now;
        if tp.ca_state <= CaState::Disorder && tp.sacked_out >= reord {
            tp.reordering = tp.reordering.min(reord);
        }
        tp.set_ca_state(CaState::Loss, now);
        tp.high_seq = tp.snd_nxt;
        tp.tlp_high_seq = None;
        self.tcp_trace_cwnd(sk);
    }

    fn tcp_timeout_mark_lost(&mut self, sk: &mut Sock) {
        let now = self.now;
        let tp = tp!(sk);
        let reneg = tp.rtx_queue.front().is_some_and(|h| h.tcp.sacked & SACKED_ACKED != 0);
        if reneg {
            self.mib.inc(Mib::TCPSACKReneging);
            tp.sacked_out = 0;
        } else if !tp.rx_opt.sack_ok {
            tp.sacked_out = 0;
        }
        for i in 0..tp.rtx_queue.len() {
            if reneg {
                tp.rtx_queue[i].tcp.sacked &= !SACKED_ACKED;
            } else if tp.rx_opt.sack_ok && i > 0 && !tp.rack_skb_timeout(&tp.rtx_queue[i], Duration::ZERO, now).is_zero() {
                continue; // sent only just now
            }
            let again = tp.mark_skb_lost(i);
            self.mib.add(Mib::TCPLostRetransmit, u64::from(again));
        }
    }

    fn tcp_trace_cwnd(&mut self, sk: &Sock) {
        let w = &sk.tp().cwnd;
        self.trace(Point::TcpCwnd, 0, [u64::from(sk.id.0), u64::from(w.cwnd), u64::from(w.ssthresh), 0]);
    }

    /// Segments larger than the path allows were lost: cut and send them again, without
    /// calling it congestion (Linux `tcp_simple_retransmit`).
    pub(crate) fn tcp_simple_retransmit(&mut self, sk: &mut Sock) {
        let now = self.now;
        let mss = self.tcp_current_mss(sk);
        let tp = tp!(sk);
        let prior_lost = tp.lost_out;
        for i in 0..tp.rtx_queue.len() {
            let skb = &tp.rtx_queue[i];
            let seg = skb.gso.map_or(skb.len(), |g| u32::from(g.size));
            if seg > mss {
                if tp.rtx_queue[i].tcp.sacked & SACKED_RETRANS != 0 {
                    let pcount = tp.rtx_queue[i].pcount();
                    tp.rtx_queue[i].tcp.sacked &= !SACKED_RETRANS;
                    tp.retrans_out -= pcount.min(tp.retrans_out);
                }
                tp.mark_skb_lost(i);
            }
        }
        if tp.lost_out == prior_lost {
            return;
        }
        if tp.ca_state != CaState::Loss {
            tp.high_seq = tp.snd_nxt;
            tp.cwnd.ssthresh = tp.current_ssthresh();
            tp.prior_ssthresh = 0;
            tp.undo_marker = None;
            tp.set_ca_state(CaState::Loss, now);
        }
        self.tcp_xmit_retransmit_queue(sk);
    }
}

impl TcpSock {
    /// The window is being reduced (Linux `tcp_in_cwnd_reduction`).
    pub(crate) fn in_cwnd_reduction(&self) -> bool {
        matches!(self.ca_state, CaState::Cwr | CaState::Recovery)
    }

    /// Threshold that undo returns to (Linux `tcp_current_ssthresh`).
    pub(crate) fn current_ssthresh(&self) -> u32 {
        if self.in_cwnd_reduction() { self.cwnd.ssthresh } else { self.cwnd.ssthresh.max((self.cwnd.cwnd >> 1) + (self.cwnd.cwnd >> 2)) }
    }

    pub(crate) fn set_ca_state(&mut self, state: CaState, now: Instant) {
        if state != self.ca_state {
            self.ca.set_state(state, now, self.snd_nxt);
            self.ca_state = state;
        }
    }

    fn init_undo(&mut self) {
        self.undo_marker = Some(self.snd_una);
        self.undo_retrans = if self.retrans_out > 0 { self.retrans_out as i32 } else { -1 };
    }

    pub(crate) fn init_cwnd_reduction(&mut self) {
        self.high_seq = self.snd_nxt;
        self.tlp_high_seq = None;
        self.cwnd.cnt = 0;
        self.cwnd.prior_cwnd = self.cwnd.cwnd;
        self.prr.delivered = 0;
        self.prr.out = 0;
        self.cwnd.ssthresh = self.ca.ssthresh(&self.cwnd);
        self.ecn.queue_cwr = self.ecn.ok;
    }

    /// Proportional rate reduction (RFC 6937; Linux `tcp_cwnd_reduction`).
    pub(crate) fn cwnd_reduction(&mut self, newly_acked_sacked: u32, newly_lost: u32, una_advanced: bool) {
        if newly_acked_sacked == 0 || self.cwnd.prior_cwnd == 0 {
            return;
        }
        self.prr.delivered += newly_acked_sacked;
        let in_flight = self.in_flight();
        let ssthresh = self.cwnd.ssthresh;
        let mut send = if in_flight > ssthresh {
            let due = (u64::from(ssthresh) * u64::from(self.prr.delivered)).div_ceil(u64::from(self.cwnd.prior_cwnd));
            (due as u32).saturating_sub(self.prr.out)
        } else {
            let mut n = self.prr.delivered.saturating_sub(self.prr.out).max(newly_acked_sacked);
            if una_advanced && newly_lost == 0 {
                n += 1;
            }
            n.min(ssthresh - in_flight)
        };
        if self.prr.out == 0 {
            send = send.max(1); // the fast retransmission itself
        }
        self.cwnd.cwnd = in_flight + send;
    }

    pub(crate) fn end_cwnd_reduction(&mut self, now: Instant) {
        if self.cwnd.ssthresh < TCP_INFINITE_SSTHRESH && (self.ca_state == CaState::Cwr || self.undo_marker.is_some()) {
            self.cwnd.cwnd = self.cwnd.ssthresh;
            self.cwnd.stamp = now;
        }
    }

    fn any_retrans_done(&self) -> bool {
        self.retrans_out > 0 || self.rtx_queue.front().is_some_and(|h| h.tcp.sacked & EVER_RETRANS != 0)
    }

    pub(crate) fn try_keep_open(&mut self, now: Instant) {
        let disorder = self.left_out() > 0 || self.any_retrans_done();
        let state = if disorder { CaState::Disorder } else { CaState::Open };
        if state != self.ca_state {
            self.set_ca_state(state, now);
            self.high_seq = self.snd_nxt;
        }
    }

    /// The echoed timestamp is older than the first retransmission: the original arrived
    /// (Eifel, RFC 3522; Linux `tcp_packet_delayed`).
    fn packet_delayed(&self) -> bool {
        self.retrans_stamp != 0
            && self.rx_opt.saw_tstamp
            && self.rx_opt.rcv_tsecr != 0
            && (self.rx_opt.rcv_tsecr.wrapping_sub(self.retrans_stamp) as i32) < 0
    }

    fn may_undo(&self) -> bool {
        self.undo_marker.is_some() && (self.undo_retrans == 0 || self.packet_delayed())
    }

    /// The reduction was wrong: back to what was (Linux `tcp_undo_cwnd_reduction`).
    fn undo_cwnd_reduction(&mut self, unmark_loss: bool, now: Instant) {
        if unmark_loss {
            for skb in &mut self.rtx_queue {
                skb.tcp.sacked &= !LOST;
            }
            self.lost_out = 0;
        }
        if self.prior_ssthresh != 0 {
            self.cwnd.cwnd = self.ca.undo_cwnd(&self.cwnd);
            if self.prior_ssthresh > self.cwnd.ssthresh {
                self.cwnd.ssthresh = self.prior_ssthresh;
                self.ecn.queue_cwr = false;
            }
        }
        self.cwnd.stamp = now;
        self.undo_marker = None;
        self.rack.advanced = true;
    }

    /// All is acknowledged. True if the state is kept until more is (NewReno, RFC 6582 §3.2 step 3).
    fn try_undo_recovery(&mut self, now: Instant) -> bool {
        if self.may_undo() {
            self.undo_cwnd_reduction(false, now);
        } else {
            self.rack.reo_wnd_persist = self.rack.reo_wnd_persist.saturating_sub(1);
        }
        if self.snd_una == self.high_seq && !self.rx_opt.sack_ok {
            if !self.any_retrans_done() {
                self.retrans_stamp = 0;
            }
            return true;
        }
        if self.ca_state == CaState::Recovery {
            self.end_cwnd_reduction(now);
        }
        self.set_ca_state(CaState::Open, now);
        false
    }

    fn try_undo_dsack(&mut self, now: Instant) -> bool {
        if self.undo_marker.is_none() || self.undo_retrans != 0 {
            return false;
        }
        self.rack.reo_wnd_persist = (self.rack.reo_wnd_persist + 1).min(16);
        self.undo_cwnd_reduction(false, now);
        true
    }

    fn try_undo_partial(&mut self, prior_una: SeqNum, now: Instant, max_reord: u32) -> bool {
        if self.undo_marker.is_none() || !self.packet_delayed() {
            return false;
        }
        let fack = self.fack();
        self.check_sack_reordering(prior_una, fack, max_reord);
        if self.retrans_out > 0 {
            return true; // let what was sent again arrive first
        }
        if !self.any_retrans_done() {
            self.retrans_stamp = 0;
        }
        self.undo_cwnd_reduction(true, now);
        self.try_keep_open(now);
        true
    }

    /// An ACK in the Loss state (Linux `tcp_process_loss`). True if lost segments may be sent.
    fn process_loss(&mut self, dupacks: u32, ctx: &AckCtx, now: Instant, max_reord: u32) -> bool {
        let advanced = ctx.flag.contains(AckFlags::SND_UNA_ADVANCED);
        if advanced && self.may_undo() {
            self.undo_cwnd_reduction(true, now);
            self.retransmits = 0;
            if self.rx_opt.sack_ok {
                self.set_ca_state(CaState::Open, now);
            }
            return true;
        }
        if self.snd_una.at_or_after(self.high_seq) {
            self.try_undo_recovery(now);
            return false;
        }
        if !self.rx_opt.sack_ok {
            if self.snd_nxt.after(self.high_seq) && dupacks > 0 {
                self.add_reno_sack(dupacks, false, max_reord);
            } else if advanced {
                self.sacked_out = 0;
            }
        }
        true
    }

    /// What an ACK says of the tail loss probe (RFC 8985 §7.4; Linux `tcp_process_tlp_ack`).
    /// True if the probe repaired a loss: the window has been reduced for it.
    pub(crate) fn process_tlp_ack(&mut self, ack: SeqNum, flag: AckFlags, now: Instant) -> bool {
        let Some(high) = self.tlp_high_seq else { return false };
        if ack.before(high) {
            return false;
        }
        if !self.tlp_retrans || flag.contains(AckFlags::DSACK_TLP) {
            self.tlp_high_seq = None;
        } else if ack.after(high) {
            self.init_cwnd_reduction();
            self.set_ca_state(CaState::Cwr, now);
            self.end_cwnd_reduction(now);
            self.try_keep_open(now);
            return true;
        } else if !flag.intersects(AckFlags::SND_UNA_ADVANCED | AckFlags::NOT_DUP | AckFlags::DATA_SACKED) {
            self.tlp_high_seq = None;
        }
        false
    }
}
