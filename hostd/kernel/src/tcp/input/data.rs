//! The segment text and the FIN (RFC 9293 §3.10.7.4, seventh and eighth; Linux `tcp_data_queue`).

use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::{RCV_SHUTDOWN, SEND_SHUTDOWN, Sock};
use crate::syscall::signal::Band;
use crate::tcp::header::flag;
use crate::tcp::seq::SeqNum;
use crate::tcp::sock::{SKB_OVERHEAD, TCP_ATO_MIN, TCP_MAX_QUICKACKS, TcpSock, tp};
use crate::tcp::state::State;
use crate::time::Instant;
use crate::trace::Point;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::time::Duration;
use ringlab_counters::{CopyKind, DropReason, Mib};

/// Octets of the buffers into which [`Kernel::tcp_collapse`] copies.
const COLLAPSE_BUF: u32 = 16384;

impl Kernel {
    /// Queues the text of a segment whose header is pulled: in order, out of order, or not at all.
    pub(crate) fn tcp_data_queue(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) {
        let (seq, end) = (skb.tcp.seq, skb.tcp.end_seq);
        if seq == end {
            return self.consume_skb(skb);
        }
        let tp = tp!(sk);
        let (nxt, window) = (tp.rcv_nxt, tp.receive_window());
        tp.duplicate_sack = None;
        if end.at_or_before(nxt) {
            self.mib.inc(Mib::TCPDSACKOldSent);
            tp.dsack_set(seq, end, self.tcp.sysctl.dsack);
            return self.tcp_out_of_window(sk, skb, DropReason::TcpOldData);
        }
        if seq.at_or_after(nxt + window) && !(seq == nxt && skb.is_empty()) {
            let reason = if window == 0 { DropReason::TcpZeroWindow } else { DropReason::TcpOverWindow };
            if window == 0 {
                self.mib.inc(Mib::TCPZeroWindowDrop);
            }
            return self.tcp_out_of_window(sk, skb, reason);
        }
        if seq.after(nxt) {
            return self.tcp_data_queue_ofo(sk, skb);
        }
        if seq.before(nxt) {
            tp.dsack_set(seq, nxt, self.tcp.sysctl.dsack);
            if window == 0 {
                self.mib.inc(Mib::TCPZeroWindowDrop);
                return self.tcp_out_of_window(sk, skb, DropReason::TcpZeroWindow);
            }
            skb.tcp_trim_front(nxt - seq);
        }
        if !self.tcp_try_rmem_schedule(sk) {
            self.mib.inc(Mib::TCPRcvQDrop);
            tp!(sk).ack.scheduled = true;
            tp!(sk).ack.now = true;
            self.sk_data_ready(sk);
            return self.kfree_skb(skb, DropReason::SocketRcvbuff);
        }
        self.tcp_queue_in_order(sk, skb);
    }

    fn tcp_queue_in_order(&mut self, sk: &mut Sock, skb: Box<SkBuff>) {
        let (len, fin) = (skb.len(), skb.tcp.flags & flag::FIN != 0);
        if len > 0 {
            self.tcp_event_data_recv(sk, &skb);
        }
        sk.rmem_alloc += skb.truesize;
        self.tcp_queue_rcv(sk, skb);
        if fin {
            self.tcp_fin(sk);
        }
        if !sk.tp().ofo_queue.is_empty() {
            self.tcp_ofo_queue(sk);
            if sk.tp().ofo_queue.is_empty() {
                tp!(sk).ack.now = true; // the hole is filled: say so (RFC 5681 §4.2)
            }
        }
        let tp = tp!(sk);
        if !tp.selective_acks.is_empty() {
            tp.sack_remove();
        }
        tp.fast_path_check();
        if len > 0 && !sk.dead {
            self.tcp_data_ready(sk);
        }
    }

    /// Wakes readers once `SO_RCVLOWAT` octets are there (Linux `tcp_data_ready`).
    pub(crate) fn tcp_data_ready(&mut self, sk: &mut Sock) {
        let tp = sk.tp();
        let avail = tp.rcv_nxt - tp.copied_seq;
        let enough = avail > 0
            && (avail >= sk.opt.rcvlowat.max(1)
                || sk.rmem_alloc > sk.rcvbuf.saturating_sub(sk.rcvbuf / 8)
                || tp.receive_window() <= tp.ack.rcv_mss);
        if enough || sk.shutdown & RCV_SHUTDOWN != 0 {
            self.sk_data_ready(sk);
        }
    }

    fn tcp_out_of_window(&mut self, sk: &mut Sock, skb: Box<SkBuff>, reason: DropReason) {
        let tp = tp!(sk);
        tp.enter_quickack_mode(TCP_MAX_QUICKACKS);
        tp.ack.scheduled = true;
        self.kfree_skb(skb, reason);
    }

    /// Appends in-order data to the receive queue, to its last packet if that has room
    /// (Linux `tcp_queue_rcv`). Memory is charged already.
    pub(crate) fn tcp_queue_rcv(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) {
        let args = [u64::from(sk.id.0), u64::from(skb.tcp.seq.0), u64::from(skb.len()), 0];
        self.trace(Point::TcpQueueRcv, skb.id, args);
        let tp = tp!(sk);
        tp.total.bytes_received += u64::from(skb.len());
        tp.rcv_nxt = skb.tcp.end_seq;
        if let Some(tail) = sk.receive_queue.back_mut()
            && tail.tcp.end_seq == skb.tcp.seq
            && tail.tcp.flags & flag::FIN == 0
            && tail.frag_room() >= skb.frags().len()
        {
            tail.tcp.end_seq = skb.tcp.end_seq;
            tail.tcp.flags |= skb.tcp.flags & flag::FIN;
            if tail.coalesce(&mut skb) {
                let gain = skb.truesize.saturating_sub(SKB_OVERHEAD);
                tail.truesize += gain;
                sk.rmem_alloc -= skb.truesize - gain;
                self.mib.inc(Mib::TCPRcvCoalesce);
                self.skbs.put(skb);
                return;
            }
        }
        sk.receive_queue.push_back(skb);
    }

    /// Data beyond a hole (Linux `tcp_data_queue_ofo`).
    fn tcp_data_queue_ofo(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) {
        tp!(sk).fast_path = false;
        tp!(sk).ack.scheduled = true;
        if !self.tcp_try_rmem_schedule(sk) {
            self.mib.inc(Mib::TCPOFODrop);
            self.sk_data_ready(sk);
            return self.kfree_skb(skb, DropReason::TcpOfoDrop);
        }
        self.mib.inc(Mib::TCPOFOQueue);
        let args = [u64::from(sk.id.0), u64::from(skb.tcp.seq.0), u64::from(skb.len()), 0];
        self.trace(Point::TcpDataQueueOfo, skb.id, args);
        let dsack = self.tcp.sysctl.dsack;
        let tp = tp!(sk);
        let (seq, end) = (skb.tcp.seq, skb.tcp.end_seq);
        let at = tp.ofo_queue.partition_point(|s| s.tcp.seq.before(seq));
        if let Some(prev) = at.checked_sub(1).and_then(|i| tp.ofo_queue.get(i))
            && prev.tcp.end_seq.after(seq)
        {
            let prev_end = prev.tcp.end_seq;
            tp.dsack_set(seq, prev_end.earliest(end), dsack);
            if prev_end.at_or_after(end) {
                self.mib.inc(Mib::TCPOFOMerge);
                return self.kfree_skb(skb, DropReason::TcpOfoMerge);
            }
            skb.tcp_trim_front(prev_end - seq);
        }
        let end = self.tcp_ofo_trim_followers(sk, at, &mut skb);
        if skb.tcp.seq == end {
            return self.kfree_skb(skb, DropReason::TcpOfoMerge);
        }
        self.tcp_grow_window(sk, &skb);
        let tp = tp!(sk);
        tp.sack_new_ofo_skb(skb.tcp.seq, end);
        sk.rmem_alloc += skb.truesize;
        tp.ofo_queue.insert(at, skb);
    }

    /// Removes from the queue what `skb`, to be inserted at `at`, covers, and cuts it where
    /// a longer one begins. Returns its new end.
    fn tcp_ofo_trim_followers(&mut self, sk: &mut Sock, at: usize, skb: &mut SkBuff) -> SeqNum {
        let dsack = self.tcp.sysctl.dsack;
        let end = skb.tcp.end_seq;
        while let Some(next) = tp!(sk).ofo_queue.get(at) {
            let (s, e) = crate::tcp::sack::span(next);
            if s.at_or_after(end) {
                break;
            }
            let tp = tp!(sk);
            if e.after(end) {
                tp.dsack_extend(s, end, dsack);
                skb.tcp_trim_back(end - s);
                break;
            }
            tp.dsack_extend(s, e, dsack);
            self.mib.inc(Mib::TCPOFOMerge);
            if let Some(old) = tp.ofo_queue.remove(at) {
                sk.rmem_alloc -= old.truesize;
                self.kfree_skb(old, DropReason::TcpOfoMerge);
            }
        }
        skb.tcp.end_seq
    }

    /// Moves to the receive queue what is in order now (Linux `tcp_ofo_queue`).
    fn tcp_ofo_queue(&mut self, sk: &mut Sock) {
        loop {
            let tp = tp!(sk);
            let nxt = tp.rcv_nxt;
            if tp.ofo_queue.front().is_none_or(|s| s.tcp.seq.after(nxt)) {
                return;
            }
            let mut skb = tp.ofo_queue.pop_front().expect("front exists");
            let (seq, end) = crate::tcp::sack::span(&skb);
            if end.at_or_before(nxt) {
                tp.dsack_extend(seq, end, self.tcp.sysctl.dsack);
                sk.rmem_alloc -= skb.truesize;
                self.kfree_skb(skb, DropReason::TcpOfoDrop);
                continue;
            }
            if seq.before(nxt) {
                tp.dsack_extend(seq, nxt, self.tcp.sysctl.dsack);
                skb.tcp_trim_front(nxt - seq);
            }
            let fin = skb.tcp.flags & flag::FIN != 0;
            self.tcp_queue_rcv(sk, skb);
            if fin {
                // tcp_fin empties the queue: nothing lies behind a FIN.
                return self.tcp_fin(sk);
            }
        }
    }

    /// The peer has no more to say (RFC 9293 §3.10.7.4, eighth; Linux `tcp_fin`).
    fn tcp_fin(&mut self, sk: &mut Sock) {
        tp!(sk).ack.scheduled = true;
        tp!(sk).fin_received = true;
        tp!(sk).total.bytes_received += 1;
        sk.shutdown |= RCV_SHUTDOWN;
        match (sk.tp().state, sk.tp().state.on_fin()) {
            (State::SynRecv | State::Established, Some(next)) => {
                self.tcp_set_state(sk, next);
                tp!(sk).ack.pingpong = true;
            }
            (State::FinWait1, Some(next)) => {
                self.tcp_send_ack(sk);
                self.tcp_set_state(sk, next);
            }
            (State::FinWait2, Some(_)) => {
                self.tcp_send_ack(sk);
                self.tcp_time_wait(sk, State::TimeWait, Duration::ZERO);
            }
            _ => {}
        }
        self.tcp_purge_ofo(sk);
        let both = sk.shutdown == RCV_SHUTDOWN | SEND_SHUTDOWN || sk.tp().state == State::Close;
        if !sk.dead {
            self.sk_state_change(sk);
            self.sk_wake_async(sk, if both { Band::Hup } else { Band::In });
        }
    }

    /// Empties the out-of-order queue.
    pub(crate) fn tcp_purge_ofo(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        tp.selective_acks.clear();
        for skb in core::mem::take(&mut tp.ofo_queue) {
            sk.rmem_alloc -= skb.truesize;
            self.kfree_skb(skb, DropReason::TcpOfoQueuePrune);
        }
    }

    /// Bookkeeping of in-order data: MSS estimate, delayed-ACK timeout, window
    /// (Linux `tcp_event_data_recv`).
    pub(crate) fn tcp_event_data_recv(&mut self, sk: &mut Sock, skb: &SkBuff) {
        let now = self.now;
        let rcvbuf = sk.rcvbuf;
        let tp = tp!(sk);
        tp.ack.scheduled = true;
        tp.measure_rcv_mss(skb, rcvbuf);
        tp.rcv_rtt_measure(skb.tcp.end_seq, now);
        tp.total.data_segs_in = tp.total.data_segs_in.wrapping_add(skb.pcount());
        if tp.ack.ato.is_zero() {
            tp.incr_quickack(TCP_MAX_QUICKACKS);
            tp.ack.ato = TCP_ATO_MIN;
        } else {
            let m = now.since(tp.ack.lrcvtime);
            if m <= TCP_ATO_MIN / 2 {
                tp.ack.ato = tp.ack.ato / 2 + TCP_ATO_MIN / 2;
            } else if m < tp.ack.ato {
                tp.ack.ato = (tp.ack.ato / 2 + m).min(tp.rto);
            } else if m > tp.rto {
                // The sender was idle: it may be in slow start again.
                tp.incr_quickack(TCP_MAX_QUICKACKS);
            }
        }
        tp.ack.lrcvtime = now;
        if tp.ecn.ok && skb.ip.tos & 3 == 3 {
            if !tp.ecn.demand_cwr {
                tp.enter_quickack_mode(2);
            }
            tp.ecn.demand_cwr = true;
        }
        if skb.len() >= 128 {
            self.tcp_grow_window(sk, skb);
        }
    }

    /// Lets the offered window grow as memory proves to hold data (Linux `tcp_grow_window`).
    fn tcp_grow_window(&mut self, sk: &mut Sock, skb: &SkBuff) {
        let space = sk.tcp_space();
        let tp = tp!(sk);
        let room = tp.window_clamp.min(space).saturating_sub(tp.rcv_ssthresh);
        if room == 0 {
            return;
        }
        let incr = if tp.win_from_space(skb.truesize) <= skb.len() {
            2 * tp.advmss
        } else {
            // Poor packing: grow only while the window is a small part of the buffer.
            let (mut truesize, mut window) = (tp.win_from_space(skb.truesize) / 2, tp.window_clamp / 2);
            while tp.rcv_ssthresh <= window && truesize > skb.len() {
                truesize /= 2;
                window /= 2;
            }
            if tp.rcv_ssthresh <= window { 2 * tp.ack.rcv_mss } else { 0 }
        };
        if incr > 0 {
            tp.rcv_ssthresh += room.min(incr.max(2 * skb.len()));
            tp.ack.quick |= 1;
        }
    }

    /// Room for another packet? Prunes if there is none (Linux `tcp_try_rmem_schedule`).
    fn tcp_try_rmem_schedule(&mut self, sk: &mut Sock) -> bool {
        sk.rmem_alloc <= sk.rcvbuf || self.tcp_prune_queue(sk)
    }

    fn tcp_prune_queue(&mut self, sk: &mut Sock) -> bool {
        self.mib.inc(Mib::PruneCalled);
        // Linux `tcp_clamp_window`: rather a larger buffer than a broken promise.
        if !sk.rcvbuf_locked && sk.rcvbuf < self.tcp.sysctl.rmem[2] {
            sk.rcvbuf = sk.rmem_alloc.min(self.tcp.sysctl.rmem[2]).max(sk.rcvbuf);
        }
        if sk.rmem_alloc <= sk.rcvbuf {
            return true;
        }
        let tp = tp!(sk);
        tp.rcv_ssthresh = tp.window_clamp.min(2 * tp.advmss);
        let ofo = core::mem::take(&mut tp.ofo_queue);
        let ofo = self.tcp_collapse(sk, ofo);
        tp!(sk).ofo_queue = ofo;
        if sk.rmem_alloc > sk.rcvbuf {
            let queue = core::mem::take(&mut sk.receive_queue);
            sk.receive_queue = self.tcp_collapse(sk, queue);
        }
        // The farthest data go first: nothing that was acknowledged is lost.
        while sk.rmem_alloc > sk.rcvbuf {
            let tp = tp!(sk);
            let Some(skb) = tp.ofo_queue.pop_back() else { break };
            let (start, _) = crate::tcp::sack::span(&skb);
            tp.selective_acks.retain(|b| b.1.at_or_before(start));
            sk.rmem_alloc -= skb.truesize;
            self.mib.inc(Mib::OfoPruned);
            self.kfree_skb(skb, DropReason::TcpOfoQueuePrune);
        }
        if sk.rmem_alloc <= sk.rcvbuf {
            return true;
        }
        self.mib.inc(Mib::RcvPruned);
        tp!(sk).fast_path = false;
        false
    }

    /// Copies small packets in large buffers together (Linux `tcp_collapse`).
    fn tcp_collapse(&mut self, sk: &mut Sock, queue: VecDeque<Box<SkBuff>>) -> VecDeque<Box<SkBuff>> {
        let mut out: VecDeque<Box<SkBuff>> = VecDeque::with_capacity(queue.len());
        let mut open = false;
        for skb in queue {
            let wasteful = skb.truesize - SKB_OVERHEAD > 2 * skb.len() && !skb.is_empty() && skb.len() <= COLLAPSE_BUF;
            if !wasteful {
                open = false;
                out.push_back(skb);
                continue;
            }
            let joins = open
                && out.back().is_some_and(|t| t.tcp.end_seq == skb.tcp.seq && t.tailroom() >= skb.len() && t.tcp.flags & flag::FIN == 0);
            if !joins {
                let mut fresh = self.alloc_skb();
                if !fresh.alloc_head(&self.config.pool, 0, COLLAPSE_BUF) {
                    self.skbs.put(fresh);
                    open = false;
                    out.push_back(skb);
                    continue;
                }
                fresh.tcp = skb.tcp;
                fresh.tcp.end_seq = skb.tcp.seq;
                fresh.tcp.flags &= !flag::FIN;
                fresh.truesize = SKB_OVERHEAD + COLLAPSE_BUF;
                sk.rmem_alloc += fresh.truesize;
                out.push_back(fresh);
                open = true;
            }
            let to = out.back_mut().expect("pushed above");
            to.copy_data_from(&skb);
            to.tcp.end_seq = skb.tcp.end_seq;
            to.tcp.flags |= skb.tcp.flags & flag::FIN;
            self.copies.inc(CopyKind::Other);
            self.copies.add(CopyKind::OtherBytes, u64::from(skb.len()));
            self.mib.inc(Mib::TCPRcvCollapsed);
            sk.rmem_alloc -= skb.truesize;
            self.skbs.put(skb);
        }
        out
    }
}

impl TcpSock {
    /// Estimates the peer's MSS and how well packets fill their memory (Linux `tcp_measure_rcv_mss`).
    fn measure_rcv_mss(&mut self, skb: &SkBuff, rcvbuf: u32) {
        let seg = skb.gso.map_or(skb.len(), |g| u32::from(g.size));
        let last = core::mem::replace(&mut self.ack.last_seg_size, 0);
        if seg >= self.ack.rcv_mss || (skb.tcp.flags & flag::PSH != 0 && seg == last) {
            let ratio = ((u64::from(skb.len()) << 8) / u64::from(skb.truesize.max(1))).clamp(1, 255) as u32;
            if seg >= self.ack.rcv_mss && ratio != self.scaling_ratio {
                // Follow slowly: one packet of another shape is no trend.
                self.scaling_ratio = ((3 * self.scaling_ratio + ratio) / 4).max(1);
                self.window_clamp = self.window_clamp.max(self.win_from_space(rcvbuf));
            }
            self.ack.rcv_mss = seg.min(self.advmss).max(88);
        } else {
            self.ack.last_seg_size = seg;
        }
        if skb.tcp.flags & flag::PSH != 0 {
            self.ack.pushed2 |= self.ack.pushed;
            self.ack.pushed = true;
        }
    }

    /// RTT as the receiver sees it, for auto-tuning: the time that a window takes, in-order data up to `nxt` (Linux
    /// `tcp_rcv_rtt_measure`).
    fn rcv_rtt_measure(&mut self, nxt: SeqNum, now: Instant) {
        let t = &self.rcvtune;
        if t.rtt_time.0 != 0 {
            if nxt.before(t.rtt_seq) {
                return;
            }
            let sample = now.since(t.rtt_time).as_micros().max(1) as u64;
            self.rcv_rtt_update(sample, true);
        }
        self.rcvtune.rtt_seq = nxt + self.rcv_wnd;
        self.rcvtune.rtt_time = now;
    }

    /// As well, by the echo of a timestamp, of which there is one a millisecond: who answers in less is left to
    /// [`Self::rcv_rtt_measure`] (Linux `tcp_rcv_rtt_measure_ts`).
    pub(super) fn rcv_rtt_measure_ts(&mut self, skb: &SkBuff, now: Instant) {
        let echo = self.rx_opt.rcv_tsecr;
        if !self.rx_opt.saw_tstamp || echo == self.rcvtune.last_tsecr {
            return;
        }
        self.rcvtune.last_tsecr = echo;
        let delta = self.tsval(now).wrapping_sub(echo);
        if skb.tcp.end_seq - skb.tcp.seq >= self.ack.rcv_mss && (1..i32::MAX as u32 / 1000).contains(&delta) {
            self.rcv_rtt_update(u64::from(delta) * 1000, false);
        }
    }

    /// Takes the least, and what is smoothed of what is greater: not of windows, nor while the program is behind (Linux
    /// `tcp_rcv_rtt_update`).
    fn rcv_rtt_update(&mut self, sample_us: u64, of_window: bool) {
        let old = self.rcvtune.rtt_us;
        if old == 0 || sample_us << 3 < old {
            self.rcvtune.rtt_us = sample_us << 3;
        } else if !of_window && self.rcv_nxt == self.copied_seq {
            self.rcvtune.rtt_us = old - (old >> 3) + sample_us;
        }
    }

    /// Quick ACKs for the next segments (Linux `tcp_incr_quickack`).
    pub(crate) fn incr_quickack(&mut self, max: u8) {
        let n = (self.rcv_wnd / (2 * self.ack.rcv_mss.max(1))).clamp(2, u32::from(max)) as u8;
        self.ack.quick = self.ack.quick.max(n);
    }

    /// Linux `tcp_enter_quickack_mode`.
    pub(crate) fn enter_quickack_mode(&mut self, max: u8) {
        self.incr_quickack(max);
        self.ack.pingpong = false;
        self.ack.ato = TCP_ATO_MIN;
    }

    /// ACKs go at once (Linux `tcp_in_quickack_mode`).
    pub(crate) fn in_quickack_mode(&self) -> bool {
        self.ack.quickack_locked || (self.ack.quick > 0 && !self.ack.pingpong)
    }
}

impl SkBuff {
    /// Cuts `n` numbers of sequence space off the front.
    pub(crate) fn tcp_trim_front(&mut self, n: u32) {
        let octets = n.min(self.len());
        self.pull(octets).expect("clipped to the length");
        self.tcp.seq += n;
    }

    /// Cuts `n` numbers of sequence space off the end: the FIN first.
    fn tcp_trim_back(&mut self, n: u32) {
        let fin = u32::from(self.tcp.flags & flag::FIN != 0).min(n);
        self.tcp.flags &= !flag::FIN;
        self.trim(self.len().saturating_sub(n - fin));
        self.tcp.end_seq = self.tcp.end_seq - n;
    }

    /// Appends a copy of another packet's data; the tail has room.
    fn copy_data_from(&mut self, from: &SkBuff) {
        let to = self.put(from.len());
        let mut at = 0;
        from.for_each(0, from.len(), |s| {
            let part = to.sub(at, s.len()).expect("put as much as the source has");
            at += s.copy_to(&part);
        });
    }

    /// Memory that a received packet is charged: whole buffers that are its own, octets
    /// of those it shares with others.
    pub(crate) fn rx_truesize(&self) -> u32 {
        self.frags().iter().map(|f| if f.buf.refs() == 1 { f.buf.capacity() } else { f.len }).sum::<u32>() + SKB_OVERHEAD
    }
}
