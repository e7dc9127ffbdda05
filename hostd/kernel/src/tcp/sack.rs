//! SACK: the scoreboard of the sender (RFC 2018, 2883, 6675; Linux
//! `tcp_sacktag_write_queue`) and the blocks of the receiver.
//!
//! The scoreboard is marks on the packets of the retransmission queue; a packet
//! of several segments is cut where a block ends inside it.

use super::input::ack::{AckCtx, AckFlags};
use super::output::xmit::Queue;
use super::seq::SeqNum;
use super::sock::{TcpSock, tp};
use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::Sock;
use arrayvec::ArrayVec;
use ringlab_counters::Mib;

/// The packet was SACKed.
pub const SACKED_ACKED: u8 = 1;
/// It was sent again and that transmission is in flight.
pub const SACKED_RETRANS: u8 = 2;
/// It is thought lost.
pub const LOST: u8 = 4;
/// It was sent more than once.
pub const EVER_RETRANS: u8 = 0x80;

type Block = (SeqNum, SeqNum);

impl Kernel {
    /// Marks what the blocks of an ACK cover.
    pub(crate) fn tcp_sacktag_write_queue(&mut self, sk: &mut Sock, ack: SeqNum, blocks: &[Block], ctx: &mut AckCtx) {
        if sk.tp().sacked_out == 0 {
            let una = ctx.prior_snd_una;
            tp!(sk).highest_sack = una;
        }
        let mut rest = blocks;
        if let Some(dup) = is_dsack(ack, blocks) {
            self.tcp_dsack_seen(sk, dup, ctx);
            rest = &blocks[1..];
        }
        if sk.tp().packets_out == 0 {
            return;
        }
        let mut valid: ArrayVec<Block, 4> = ArrayVec::new();
        for &(start, end) in rest {
            let tp = sk.tp();
            // Old or foreign blocks say nothing.
            if start.before(end) && end.at_or_before(tp.snd_nxt) && start.at_or_after(tp.snd_una) {
                valid.push((start, end));
            }
        }
        valid.sort_unstable_by_key(|b| b.0 - ctx.prior_snd_una);
        for block in valid {
            self.tcp_sacktag_walk(sk, block, ctx);
        }
        let tp = tp!(sk);
        let fack = tp.fack();
        if tp.ca_state != super::cong::CaState::Loss || tp.undo_marker.is_some() {
            let max = self.tcp.sysctl.max_reordering;
            tp.check_sack_reordering(ctx.reord, fack, max);
        }
    }

    fn tcp_sacktag_walk(&mut self, sk: &mut Sock, (start, end): Block, ctx: &mut AckCtx) {
        let mut i = sk.tp().rtx_queue.partition_point(|s| s.tcp.end_seq.at_or_before(start));
        while let Some(skb) = sk.tp().rtx_queue.get(i) {
            let cb = skb.tcp;
            if cb.seq.at_or_after(end) {
                break;
            }
            if cb.sacked & SACKED_ACKED == 0 && skb.pcount() > 1 {
                let mss = skb.gso.map_or(u32::MAX, |g| u32::from(g.size));
                if cb.seq.before(start) {
                    let cut = (start - cb.seq).next_multiple_of(mss);
                    if cut < skb.len() && self.tcp_fragment(sk, Queue::Rtx, i, cut, mss) {
                        i += 1;
                        continue;
                    }
                } else if cb.end_seq.after(end) {
                    let cut = (end - cb.seq) / mss * mss;
                    if cut > 0 {
                        self.tcp_fragment(sk, Queue::Rtx, i, cut, mss);
                    }
                }
            }
            let cb = sk.tp().rtx_queue[i].tcp;
            if start.at_or_before(cb.seq) && end.at_or_after(cb.end_seq) {
                self.tcp_sacktag_one(sk, i, ctx);
            }
            i += 1;
        }
    }

    fn tcp_sacktag_one(&mut self, sk: &mut Sock, index: usize, ctx: &mut AckCtx) {
        let now = self.now;
        let tp = tp!(sk);
        let (high_seq, fack) = (tp.high_seq, tp.fack());
        let Some(skb) = tp.rtx_queue.get_mut(index) else { return };
        let (sacked, pcount) = (skb.tcp.sacked, skb.pcount());
        if sacked & SACKED_ACKED != 0 {
            return;
        }
        let cb = skb.tcp;
        let mut marks = sacked | SACKED_ACKED;
        if sacked & LOST != 0 {
            marks &= !LOST;
            tp.lost_out -= pcount.min(tp.lost_out);
            if sacked & SACKED_RETRANS != 0 {
                marks &= !SACKED_RETRANS;
                tp.retrans_out -= pcount.min(tp.retrans_out);
            }
        }
        if sacked & (SACKED_RETRANS | EVER_RETRANS) == 0 {
            if cb.seq.before(fack) {
                ctx.reord = ctx.reord.earliest(cb.seq);
            }
            if cb.end_seq.at_or_before(high_seq) {
                ctx.flag |= AckFlags::ORIG_SACK_ACKED;
            }
            ctx.first_sackt.get_or_insert(cb.sent_at);
            ctx.last_sackt = Some(cb.sent_at);
        }
        skb.tcp.sacked = marks;
        tp.rack_advance(sacked, cb.end_seq, cb.sent_at, now);
        tp.rate_skb_delivered(&cb, &mut ctx.rate);
        tp.sacked_out += pcount;
        tp.rate.delivered = tp.rate.delivered.wrapping_add(pcount);
        tp.highest_sack = fack.latest(cb.end_seq);
        ctx.flag |= AckFlags::DATA_SACKED;
    }

    /// The peer got something twice (RFC 2883).
    fn tcp_dsack_seen(&mut self, sk: &mut Sock, (start, end): Block, ctx: &mut AckCtx) {
        self.mib.inc(Mib::TCPDSACKRecv);
        let tp = tp!(sk);
        let segs = (end - start).div_ceil(tp.mss_cache.max(1)).clamp(1, 1000);
        ctx.flag |= AckFlags::DSACKING_ACK;
        tp.total.dsack_dups += segs;
        if tp.tlp_high_seq == Some(end) && tp.tlp_retrans {
            ctx.flag |= AckFlags::DSACK_TLP;
        } else {
            tp.rack.dsack_seen = true;
        }
        tp.rate.delivered = tp.rate.delivered.wrapping_add(segs);
        ctx.dsack_dups += segs;
        // A retransmission of what the undo marker covers was needless.
        if let Some(mark) = tp.undo_marker
            && tp.undo_retrans > 0
            && end.after(mark)
        {
            tp.undo_retrans = (tp.undo_retrans - segs as i32).max(0);
        }
    }
}

/// The first block reports a duplicate: it lies below the ACK, or inside the second.
fn is_dsack(ack: SeqNum, blocks: &[Block]) -> Option<Block> {
    let &(start, end) = blocks.first()?;
    if !start.before(end) {
        return None;
    }
    let below = start.before(ack);
    let inside = blocks.get(1).is_some_and(|&(s, e)| start.at_or_after(s) && end.at_or_before(e));
    (below || inside).then_some((start, end))
}

impl TcpSock {
    /// Forward-most SACKed octet, or the ACK (Linux `tcp_highest_sack_seq`).
    pub(crate) fn fack(&self) -> SeqNum {
        if self.sacked_out == 0 { self.snd_una } else { self.highest_sack.latest(self.snd_una) }
    }

    /// Segments arrived out of order although none was lost: raise the degree (Linux `tcp_check_sack_reordering`).
    pub(crate) fn check_sack_reordering(&mut self, low: SeqNum, fack: SeqNum, max: u32) {
        if low.at_or_after(fack) {
            return;
        }
        let metric = fack - low;
        let mss = self.mss_cache.max(1);
        if metric > self.reordering * mss {
            self.reordering = metric.div_ceil(mss).min(max);
        }
        self.total.reord_seen += 1;
    }

    /// Duplicate ACKs stand for SACKs if the peer has none (Linux `tcp_add_reno_sack`).
    pub(crate) fn add_reno_sack(&mut self, dupacks: u32, ece: bool, max: u32) {
        if dupacks == 0 {
            return;
        }
        let prior = self.sacked_out;
        self.sacked_out += dupacks;
        self.limit_reno_sacked(max);
        let new = self.sacked_out.saturating_sub(prior);
        if new > 0 && !ece {
            self.rate.delivered = self.rate.delivered.wrapping_add(new);
        }
    }

    /// At least one segment is missing (Linux `tcp_limit_reno_sacked`).
    fn limit_reno_sacked(&mut self, max: u32) {
        let holes = self.lost_out.max(1).min(self.packets_out);
        if self.sacked_out + holes > self.packets_out {
            self.sacked_out = self.packets_out - holes;
            self.reordering = (self.packets_out + 1).min(max).max(self.reordering);
            self.total.reord_seen += 1;
        }
    }

    /// An ACK took segments away (Linux `tcp_remove_reno_sacks`).
    pub(crate) fn remove_reno_sacks(&mut self, acked: u32, max: u32) {
        if acked > 0 {
            self.rate.delivered = self.rate.delivered.wrapping_add(acked.saturating_sub(self.sacked_out).max(1));
            self.sacked_out = self.sacked_out.saturating_sub(acked - 1);
        }
        if self.packets_out > 0 {
            self.limit_reno_sacked(max);
        } else {
            self.sacked_out = 0;
        }
    }

    // Receiver.

    /// Data arrived out of order: its block goes first (Linux `tcp_sack_new_ofo_skb`).
    pub(crate) fn sack_new_ofo_skb(&mut self, seq: SeqNum, end_seq: SeqNum) {
        if !self.rx_opt.sack_ok {
            return;
        }
        let (mut start, mut end) = (seq, end_seq);
        // Blocks that touch the new one become part of it.
        self.selective_acks.retain(|&mut (s, e)| {
            let apart = end.before(s) || start.after(e);
            if !apart {
                start = start.earliest(s);
                end = end.latest(e);
            }
            apart
        });
        if self.selective_acks.is_full() {
            self.selective_acks.pop();
        }
        self.selective_acks.insert(0, (start, end));
    }

    /// The in-order edge moved: blocks below it are done (Linux `tcp_sack_remove`).
    pub(crate) fn sack_remove(&mut self) {
        if self.ofo_queue.is_empty() {
            self.selective_acks.clear();
            return;
        }
        let nxt = self.rcv_nxt;
        self.selective_acks.retain(|&mut (start, _)| start.after(nxt));
    }

    /// Reports a duplicate (Linux `tcp_dsack_set`).
    pub(crate) fn dsack_set(&mut self, seq: SeqNum, end_seq: SeqNum, enabled: bool) -> bool {
        if !self.rx_opt.sack_ok || !enabled {
            return false;
        }
        self.duplicate_sack = Some((seq, end_seq));
        true
    }

    /// Reports a duplicate, joining one that touches it (Linux `tcp_dsack_extend`).
    pub(crate) fn dsack_extend(&mut self, seq: SeqNum, end_seq: SeqNum, enabled: bool) {
        match self.duplicate_sack {
            Some((s, e)) if !(end_seq.before(s) || seq.after(e)) => self.duplicate_sack = Some((s.earliest(seq), e.latest(end_seq))),
            _ => {
                self.dsack_set(seq, end_seq, enabled);
            }
        }
    }
}

/// Sequence space of a packet.
pub(crate) fn span(skb: &SkBuff) -> Block {
    (skb.tcp.seq, skb.tcp.end_seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: u32) -> SeqNum {
        SeqNum(n)
    }

    #[test]
    fn first_block_below_the_ack_or_inside_the_second_is_a_duplicate() {
        assert_eq!(is_dsack(s(100), &[(s(50), s(60))]), Some((s(50), s(60))));
        assert_eq!(is_dsack(s(100), &[(s(120), s(130)), (s(110), s(150))]), Some((s(120), s(130))));
        assert_eq!(is_dsack(s(100), &[(s(120), s(130)), (s(140), s(150))]), None);
        assert_eq!(is_dsack(s(100), &[(s(60), s(50))]), None);
    }

    #[test]
    fn blocks_merge_and_the_latest_is_first() {
        let mut tp = TcpSock::default();
        tp.rx_opt.sack_ok = true;
        for (a, b) in [(100, 200), (300, 400), (500, 600), (700, 800), (900, 1000)] {
            tp.sack_new_ofo_skb(s(a), s(b));
        }
        assert_eq!(tp.selective_acks.as_slice(), [(s(900), s(1000)), (s(700), s(800)), (s(500), s(600)), (s(300), s(400))]);
        tp.sack_new_ofo_skb(s(600), s(700));
        assert_eq!(tp.selective_acks.as_slice(), [(s(500), s(800)), (s(900), s(1000)), (s(300), s(400))]);
        tp.rcv_nxt = s(400);
        tp.ofo_queue.push_back(SkBuff::new());
        tp.sack_remove();
        assert_eq!(tp.selective_acks.len(), 2);
    }
}
