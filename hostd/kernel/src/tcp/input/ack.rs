//! The acknowledgement (RFC 9293 §3.10.7.4, fifth; Linux `tcp_ack`).

use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::Sock;
use crate::tcp::chrono::ChronoType;
use crate::tcp::cong::{AckView, CaState};
use crate::tcp::header::{Options, flag};
use crate::tcp::rate::RateSample;
use crate::tcp::sack::{EVER_RETRANS, LOST, SACKED_ACKED, SACKED_RETRANS};
use crate::tcp::seq::SeqNum;
use crate::tcp::sock::{TCP_RTO_MIN, TcpSock, WriteTimer, tp};
use crate::time::Instant;
use core::time::Duration;
use ringlab_counters::{DropReason, Mib};

bitflags::bitflags! {
    /// What an ACK did (Linux `FLAG_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct AckFlags: u16 {
        /// The segment carries data.
        const DATA = 1;
        /// It changed the window.
        const WIN_UPDATE = 2;
        /// It acknowledged new data.
        const DATA_ACKED = 4;
        /// Some of that had been sent again.
        const RETRANS_DATA_ACKED = 8;
        /// It acknowledged the SYN.
        const SYN_ACKED = 0x10;
        /// It SACKed new data.
        const DATA_SACKED = 0x20;
        /// It carries ECE.
        const ECE = 0x40;
        /// A retransmission was found lost.
        const LOST_RETRANS = 0x80;
        /// Not the fast path.
        const SLOWPATH = 0x100;
        /// Something never sent again, below `high_seq`, was acknowledged.
        const ORIG_SACK_ACKED = 0x200;
        /// `snd_una` moved.
        const SND_UNA_ADVANCED = 0x400;
        /// It has a DSACK.
        const DSACKING_ACK = 0x800;
        /// The RTO starts anew.
        const SET_XMIT_TIMER = 0x1000;
        /// The peer forgot what it SACKed.
        const SACK_RENEGING = 0x2000;
        /// `TS.Recent` may be replaced.
        const UPDATE_TS_RECENT = 0x4000;
        /// The DSACK is for the tail loss probe.
        const DSACK_TLP = 0x8000;
        /// Anything acknowledged.
        const ACKED = 0x14;
        /// Not a duplicate ACK.
        const NOT_DUP = 0x17;
        /// New data acknowledged or SACKed.
        const FORWARD_PROGRESS = 0x34;
    }
}

/// One ACK on its way through the steps.
#[derive(Debug, Default)]
pub struct AckCtx {
    /// What it did.
    pub flag: AckFlags,
    /// `snd_una` before.
    pub prior_snd_una: SeqNum,
    /// Forward-most SACKed octet before.
    pub prior_fack: SeqNum,
    /// Lowest segment delivered out of order.
    pub reord: SeqNum,
    /// When the first segment that it SACKed was sent.
    pub first_sackt: Option<Instant>,
    /// The last.
    pub last_sackt: Option<Instant>,
    /// Rate sample.
    pub rate: RateSample,
    /// Segments that a DSACK reported.
    pub dsack_dups: u32,
    /// RTT for the congestion control.
    pub rtt: Option<Duration>,
    /// Segments taken from the retransmission queue.
    pub pkts_acked: u32,
}

impl Kernel {
    /// Takes the acknowledgement of a segment.
    ///
    /// # Errors
    /// Why the segment must be dropped: it acknowledges what was never sent, or is too old.
    pub(crate) fn tcp_ack(&mut self, sk: &mut Sock, skb: &SkBuff, opts: &Options, flag: AckFlags) -> Result<bool, DropReason> {
        let now = self.now;
        let ack = skb.tcp.ack_seq;
        let tp = tp!(sk);
        let mut ctx = AckCtx { flag, prior_snd_una: tp.snd_una, prior_fack: tp.fack(), reord: tp.snd_nxt, ..AckCtx::default() };
        if ack.before(tp.snd_una) {
            // RFC 5961 §5.2: older than any window we had is an attack.
            if ack.before(tp.snd_una - tp.max_window.max(1)) {
                self.tcp_send_challenge_ack(sk);
                return Err(DropReason::TcpTooOldAck);
            }
            return Ok(self.tcp_old_ack(sk, ack, opts, ctx));
        }
        if ack.after(tp.snd_nxt) {
            return Err(DropReason::TcpAckUnsentData);
        }
        if ack.after(tp.snd_una) {
            ctx.flag |= AckFlags::SND_UNA_ADVANCED;
            tp.retransmits = 0;
        }
        let (prior_delivered, prior_lost, prior_packets) = (tp.rate.delivered, tp.rate.lost, tp.packets_out);
        if ctx.flag.contains(AckFlags::UPDATE_TS_RECENT) {
            tp.replace_ts_recent(skb.tcp.seq, now);
        }
        if !ctx.flag.contains(AckFlags::SLOWPATH) && ctx.flag.contains(AckFlags::SND_UNA_ADVANCED) {
            // Predicted header: the window did not change.
            tp.snd_wl1 = skb.tcp.seq;
            tp.snd_una_update(ack);
            ctx.flag |= AckFlags::WIN_UPDATE;
            self.mib.inc(Mib::TCPHPAcks);
        } else {
            self.tcp_ack_slow(sk, skb, opts, &mut ctx);
        }
        sk.err_soft = None;
        let tp = tp!(sk);
        tp.probes_out = 0;
        tp.rcv_tstamp = now;
        if prior_packets == 0 {
            self.tcp_ack_no_queue(sk, &mut ctx);
            return Ok(true);
        }
        self.tcp_clean_rtx_queue(sk, &mut ctx);
        self.tcp_ack_conclude(sk, skb, ack, &mut ctx, (prior_delivered, prior_lost));
        Ok(true)
    }

    fn tcp_ack_slow(&mut self, sk: &mut Sock, skb: &SkBuff, opts: &Options, ctx: &mut AckCtx) {
        if skb.tcp.seq != skb.tcp.end_seq {
            ctx.flag |= AckFlags::DATA;
        } else {
            self.mib.inc(Mib::TCPPureAcks);
        }
        let tp = tp!(sk);
        let old_max = tp.max_window;
        if tp.ack_update_window(skb) {
            ctx.flag |= AckFlags::WIN_UPDATE;
        }
        if tp.max_window > old_max && tp.pmtu_cookie != 0 {
            let pmtu = tp.pmtu_cookie;
            self.tcp_sync_mss(sk, pmtu);
        }
        if !opts.sacks.is_empty() && sk.tp().rx_opt.sack_ok {
            self.tcp_sacktag_write_queue(sk, skb.tcp.ack_seq, &opts.sacks, ctx);
        }
        let tp = tp!(sk);
        if tp.ecn.ok && skb.tcp.flags & (flag::ECE | flag::SYN) == flag::ECE {
            ctx.flag |= AckFlags::ECE;
        }
    }

    /// What follows once the queue is cleaned: timers, recovery, window, more data.
    fn tcp_ack_conclude(&mut self, sk: &mut Sock, skb: &SkBuff, ack: SeqNum, ctx: &mut AckCtx, (delivered, lost): (u32, u32)) {
        let now = self.now;
        let tp = tp!(sk);
        tp.rack_update_reo_wnd(&ctx.rate);
        if tp.tlp_high_seq.is_some() && tp.process_tlp_ack(ack, ctx.flag, now) {
            self.mib.inc(Mib::TCPLossProbeRecovery);
        }
        let tp = sk.tp();
        // Linux `tcp_ack_is_dubious`.
        let dubious = !ctx.flag.intersects(AckFlags::NOT_DUP)
            || ctx.flag.intersects(AckFlags::ECE | AckFlags::DATA_SACKED | AckFlags::DSACKING_ACK)
            || tp.ca_state != CaState::Open;
        let mut rexmit = false;
        if dubious {
            let dup = !ctx.flag.intersects(AckFlags::SND_UNA_ADVANCED | AckFlags::NOT_DUP | AckFlags::DSACKING_ACK);
            let dupacks = if dup { skb.pcount() } else { 0 };
            rexmit = self.tcp_fastretrans_alert(sk, dupacks, ctx);
        }
        if ctx.flag.contains(AckFlags::SET_XMIT_TIMER) {
            self.tcp_set_xmit_timer(sk);
        }
        let tp = tp!(sk);
        ctx.rate.acked_sacked = tp.rate.delivered.wrapping_sub(delivered);
        ctx.rate.losses = tp.rate.lost.wrapping_sub(lost);
        self.mib.add(Mib::TCPDelivered, u64::from(ctx.rate.acked_sacked));
        tp.rate_gen(&mut ctx.rate, now);
        tp.cong_control(ctx, now, self.tcp.sysctl.reordering);
        tp.update_pacing_rate();
        if rexmit {
            self.tcp_xmit_retransmit_queue(sk);
        }
        if ctx.flag.intersects(AckFlags::FORWARD_PROGRESS)
            && let Some((_, route)) = sk.dst
        {
            // The peer answers: its neighbour entry is good (Linux `sk_dst_confirm`).
            self.neigh_confirm(route.dev, route.nexthop);
        }
    }

    fn tcp_old_ack(&mut self, sk: &mut Sock, ack: SeqNum, opts: &Options, mut ctx: AckCtx) -> bool {
        if !opts.sacks.is_empty() && sk.tp().rx_opt.sack_ok {
            self.tcp_sacktag_write_queue(sk, ack, &opts.sacks, &mut ctx);
            let rexmit = self.tcp_fastretrans_alert(sk, 0, &mut ctx);
            if rexmit {
                self.tcp_xmit_retransmit_queue(sk);
            }
        }
        false
    }

    /// Nothing was in flight: a window update, perhaps of a probed window (Linux `tcp_ack_probe`).
    fn tcp_ack_no_queue(&mut self, sk: &mut Sock, ctx: &mut AckCtx) {
        if ctx.flag.contains(AckFlags::DSACKING_ACK) {
            self.tcp_fastretrans_alert(sk, 0, ctx);
        }
        let tp = tp!(sk);
        let Some(head) = tp.write_queue.front() else { return };
        if head.tcp.end_seq.at_or_before(tp.wnd_end()) {
            tp.backoff = 0;
            tp.probes_tstamp = None;
            if tp.pending == WriteTimer::Probe0 {
                self.tcp_clear_xmit_timer(sk);
            }
        } else {
            let when = tp.probe0_when();
            self.tcp_reset_xmit_timer(sk, WriteTimer::Probe0, when);
        }
    }

    /// Removes what is acknowledged (Linux `tcp_clean_rtx_queue`).
    fn tcp_clean_rtx_queue(&mut self, sk: &mut Sock, ctx: &mut AckCtx) {
        let now = self.now;
        let tp = tp!(sk);
        let high_seq = tp.high_seq;
        // Lowest that was neither sent again nor SACKed before.
        let mut reord = tp.snd_una;
        let (mut first, mut last): (Option<Instant>, Option<Instant>) = (None, None);
        let mut freed = 0u32;
        let mut acked = 0u32;
        while let Some(skb) = tp.rtx_queue.front_mut() {
            let cb = skb.tcp;
            let whole = cb.end_seq.at_or_before(tp.snd_una);
            let pcount = skb.pcount();
            let n = if whole {
                pcount
            } else if pcount > 1 && tp.snd_una.after(cb.seq) {
                let cut = tp.snd_una - cb.seq;
                freed += skb.tso_acked(cut);
                pcount - skb.pcount()
            } else {
                break;
            };
            if cb.sacked & EVER_RETRANS != 0 {
                if cb.sacked & SACKED_RETRANS != 0 {
                    tp.retrans_out -= n.min(tp.retrans_out);
                }
                ctx.flag |= AckFlags::RETRANS_DATA_ACKED;
            } else if cb.sacked & SACKED_ACKED == 0 {
                first.get_or_insert(cb.sent_at);
                last = Some(cb.sent_at);
                reord = reord.earliest(cb.seq);
                if cb.end_seq.at_or_before(high_seq) {
                    ctx.flag |= AckFlags::ORIG_SACK_ACKED;
                }
            }
            if cb.sacked & SACKED_ACKED != 0 {
                tp.sacked_out -= n.min(tp.sacked_out);
            } else if tp.rx_opt.sack_ok {
                tp.rate.delivered = tp.rate.delivered.wrapping_add(n);
                tp.rack_advance(cb.sacked, cb.end_seq, cb.sent_at, now);
            }
            if cb.sacked & LOST != 0 {
                tp.lost_out -= n.min(tp.lost_out);
            }
            tp.packets_out -= n.min(tp.packets_out);
            acked += n;
            tp.rate_skb_delivered(&cb, &mut ctx.rate);
            if cb.flags & flag::SYN != 0 {
                ctx.flag |= AckFlags::SYN_ACKED;
                tp.retrans_stamp = 0;
            } else if n > 0 {
                ctx.flag |= AckFlags::DATA_ACKED;
            }
            if !whole {
                break;
            }
            let skb = tp.rtx_queue.pop_front().expect("front exists");
            freed += skb.truesize;
            self.skbs.put(skb);
        }
        if tp.rtx_queue.is_empty() {
            tp.chrono_stop(ChronoType::Busy, now);
        }
        ctx.pkts_acked = acked;
        sk.wmem_queued -= freed.min(sk.wmem_queued);
        self.tcp_clean_conclude(sk, ctx, (first, last), reord);
    }

    fn tcp_clean_conclude(&mut self, sk: &mut Sock, ctx: &mut AckCtx, (first, last): (Option<Instant>, Option<Instant>), reord: SeqNum) {
        let (now, max_reord) = (self.now, self.tcp.sysctl.max_reordering);
        let tp = tp!(sk);
        if tp.rtx_queue.front().is_some_and(|h| h.tcp.sacked & SACKED_ACKED != 0) {
            ctx.flag |= AckFlags::SACK_RENEGING;
        }
        let clean = !ctx.flag.contains(AckFlags::RETRANS_DATA_ACKED);
        let seq_rtt = first.filter(|_| clean).map(|t| now.since(t));
        let mut ca_rtt = last.filter(|_| clean).map(|t| now.since(t));
        let sack_rtt = ctx.first_sackt.map(|t| now.since(t));
        ca_rtt = ca_rtt.or(ctx.last_sackt.map(|t| now.since(t)));
        let acked = ctx.flag.intersects(AckFlags::ACKED);
        let clock = tp.tsval(now);
        let updated = tp.ack_update_rtt(seq_rtt, sack_rtt, ca_rtt, acked, clock);
        ctx.rtt = ca_rtt;
        if acked {
            ctx.flag |= AckFlags::SET_XMIT_TIMER;
            if !tp.rx_opt.sack_ok {
                tp.remove_reno_sacks(ctx.pkts_acked, max_reord);
            } else if reord.before(ctx.prior_fack) {
                // A hole below what was SACKed is filled, though nothing was sent again.
                let fack = tp.fack();
                tp.check_sack_reordering(reord, fack, max_reord);
            }
        } else if updated
            && let Some(sack_rtt) = sack_rtt
            && tp.rtx_queue.front().is_some_and(|h| sack_rtt > now.since(h.tcp.sent_at))
        {
            // The RTO was set by an older sample: it need not fire early.
            ctx.flag |= AckFlags::SET_XMIT_TIMER;
        }
        let view = tp.ack_view(ctx, now);
        let TcpSock { ca, cwnd, .. } = tp;
        ca.pkts_acked(cwnd, &view);
    }

    /// Tail loss probe or RTO (Linux `tcp_set_xmit_timer`).
    fn tcp_set_xmit_timer(&mut self, sk: &mut Sock) {
        if !self.tcp_schedule_loss_probe(sk, true) {
            self.tcp_rearm_rto(sk);
        }
    }

    /// RFC 5961: an ACK that makes an honest peer repeat itself (Linux `tcp_send_challenge_ack`).
    pub(crate) fn tcp_send_challenge_ack(&mut self, sk: &mut Sock) {
        let mut last = sk.tp().last_oow_ack;
        let ok = self.tcp_answer_due(&mut last, Mib::TCPACKSkippedChallenge);
        tp!(sk).last_oow_ack = last;
        if ok && self.tcp_challenge_allowed() {
            self.mib.inc(Mib::TCPChallengeACK);
            self.tcp_send_ack(sk);
        }
    }
}

impl TcpSock {
    fn ack_view(&self, ctx: &AckCtx, now: Instant) -> AckView {
        AckView { now, acked: ctx.rate.acked_sacked, rtt: ctx.rtt, snd_una: self.snd_una, snd_nxt: self.snd_nxt, state: self.ca_state }
    }

    fn snd_una_update(&mut self, ack: SeqNum) {
        self.total.bytes_acked += u64::from(ack - self.snd_una);
        self.snd_una = ack;
        self.snd_up = self.snd_up.filter(|up| up.after(ack));
    }

    /// The window that a segment offers, octets.
    fn window_of(&self, skb: &SkBuff) -> u32 {
        let shift = if skb.tcp.flags & flag::SYN == 0 { self.rx_opt.snd_wscale } else { 0 };
        u32::from(skb.tcp.window) << shift
    }

    /// The segment is not older than the last that set the window (Linux `tcp_may_update_window`).
    pub(super) fn may_update_window(&self, skb: &SkBuff) -> bool {
        let (cb, window) = (&skb.tcp, self.window_of(skb));
        cb.ack_seq.after(self.snd_una) || cb.seq.after(self.snd_wl1) || (cb.seq == self.snd_wl1 && (window > self.snd_wnd || window == 0))
    }

    /// Takes the window if the segment is not older than the last that set it
    /// (RFC 9293 §3.10.7.4; Linux `tcp_ack_update_window`).
    fn ack_update_window(&mut self, skb: &SkBuff) -> bool {
        let cb = &skb.tcp;
        let window = self.window_of(skb);
        let newer = self.may_update_window(skb);
        if newer {
            self.snd_wl1 = cb.seq;
            if self.snd_wnd != window {
                self.snd_wnd = window;
                self.fast_path = false;
                self.fast_path_check();
                self.max_window = self.max_window.max(window);
            }
        }
        self.snd_una_update(cb.ack_seq);
        newer
    }

    /// Headers may be predicted again (Linux `tcp_fast_path_check`).
    pub(crate) fn fast_path_check(&mut self) {
        self.fast_path = self.ofo_queue.is_empty() && self.rcv_wnd != 0 && self.urg_mark().is_none();
    }

    /// `TS.Recent` (RFC 7323 §4.3; Linux `tcp_replace_ts_recent`).
    pub(crate) fn replace_ts_recent(&mut self, seq: SeqNum, now: Instant) {
        if self.rx_opt.saw_tstamp && seq.at_or_before(self.rcv_wup) && self.paws_check(0) {
            self.store_ts_recent(now);
        }
    }

    /// Linux `tcp_store_ts_recent`.
    pub(crate) fn store_ts_recent(&mut self, now: Instant) {
        self.rx_opt.ts_recent = self.rx_opt.rcv_tsval;
        self.rx_opt.ts_recent_stamp = Some(now);
    }

    /// The timestamp is not older than `TS.Recent` by more than `window` (Linux `tcp_paws_check`).
    pub(crate) fn paws_check(&self, window: i32) -> bool {
        self.rx_opt.ts_recent.wrapping_sub(self.rx_opt.rcv_tsval) as i32 <= window || self.rx_opt.ts_recent == 0
    }

    /// Time to the next window probe (Linux `tcp_probe0_when`).
    pub(crate) fn probe0_when(&self) -> Duration {
        (self.rto.max(TCP_RTO_MIN) * (1u32 << self.backoff.min(16))).min(crate::tcp::sock::TCP_RTO_MAX)
    }

    /// The window after an ACK (Linux `tcp_cong_control`).
    fn cong_control(&mut self, ctx: &AckCtx, now: Instant, reordering: u32) {
        if self.in_cwnd_reduction() {
            self.cwnd_reduction(ctx.rate.acked_sacked, ctx.rate.losses, ctx.flag.contains(AckFlags::SND_UNA_ADVANCED));
            return;
        }
        let progress = if self.reordering > reordering { AckFlags::FORWARD_PROGRESS } else { AckFlags::DATA_ACKED };
        if ctx.flag.intersects(progress) {
            let view = self.ack_view(ctx, now);
            self.ca.cong_avoid(&mut self.cwnd, &view);
            self.cwnd.stamp = now;
        }
    }
}

impl SkBuff {
    /// Drops acknowledged octets from the front of a queued packet; returns the memory freed.
    fn tso_acked(&mut self, cut: u32) -> u32 {
        let mss = self.gso.map_or(u32::MAX, |g| u32::from(g.size));
        if self.pull(cut).is_err() {
            return 0;
        }
        self.tcp.seq += cut;
        self.truesize -= cut;
        self.set_tso_segs(mss);
        cut
    }
}
