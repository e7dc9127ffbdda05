//! Segments of an established connection: header prediction, and the checks of
//! RFC 9293 §3.10.7.4 first to fourth with RFC 5961 and PAWS (Linux
//! `tcp_rcv_established`, `tcp_validate_incoming`).

use super::ack::AckFlags;
use crate::Kernel;
use crate::errno::Errno;
use crate::skb::SkBuff;
use crate::sock::Sock;
use crate::tcp::header::{Options, flag};
use crate::tcp::seq::SeqNum;
use crate::tcp::sock::{TCP_MAX_QUICKACKS, TcpSock, Urg, tp};
use crate::tcp::state::State;
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Mib};

impl Kernel {
    /// Takes a segment in ESTABLISHED.
    pub(crate) fn tcp_rcv_established(&mut self, sk: &mut Sock, skb: Box<SkBuff>, opts: &Options) {
        tp!(sk).take_timestamps(opts);
        if self.tcp_predicted(sk, &skb) {
            return self.tcp_fast_path(sk, skb, opts);
        }
        let flags = skb.tcp.flags;
        if flags & (flag::ACK | flag::RST | flag::SYN) == 0 {
            return self.kfree_skb(skb, DropReason::TcpFlags);
        }
        if let Err(reason) = self.tcp_validate_incoming(sk, &skb) {
            return self.kfree_skb(skb, reason);
        }
        match self.tcp_ack(sk, &skb, opts, AckFlags::SLOWPATH | AckFlags::UPDATE_TS_RECENT) {
            Ok(_) => {}
            Err(reason) => {
                if reason == DropReason::TcpAckUnsentData {
                    self.tcp_send_challenge_ack(sk);
                }
                return self.kfree_skb(skb, reason);
            }
        }
        tp!(sk).rcv_rtt_measure_ts(&skb, self.now);
        self.tcp_urg(sk, &skb);
        let mut skb = skb;
        let hdr = u32::from(skb.tcp.hdr_len);
        skb.pull(hdr).expect("header was checked");
        self.tcp_data_queue(sk, skb);
        self.tcp_data_snd_check(sk);
        self.tcp_ack_snd_check(sk);
    }

    /// Van Jacobson's prediction: next in sequence, window as it was, nothing unusual.
    fn tcp_predicted(&self, sk: &Sock, skb: &SkBuff) -> bool {
        let (tp, cb) = (sk.tp(), &skb.tcp);
        tp.fast_path
            && cb.flags & !flag::PSH == flag::ACK
            && cb.seq == tp.rcv_nxt
            && u32::from(cb.window) << tp.rx_opt.snd_wscale == tp.snd_wnd
            && cb.ack_seq.at_or_before(tp.snd_nxt)
            && cb.ack_seq.at_or_after(tp.snd_una)
            && u32::from(cb.hdr_len) == tp.header_len()
            && !cb.end_seq.after(tp.rcv_nxt + tp.receive_window())
            && (!tp.rx_opt.tstamp_ok || (tp.rx_opt.saw_tstamp && tp.paws_check(0)))
    }

    fn tcp_fast_path(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>, opts: &Options) {
        let now = self.now;
        let hdr = u32::from(skb.tcp.hdr_len);
        let tp = tp!(sk);
        if tp.rx_opt.saw_tstamp && tp.rcv_nxt == tp.rcv_wup {
            tp.store_ts_recent(now);
        }
        if skb.len() <= hdr {
            // Pure ACK: we are the sender. An error cannot be: the number was checked.
            let _ = self.tcp_ack(sk, &skb, opts, AckFlags::empty());
            self.skbs.put(skb);
            self.tcp_data_snd_check(sk);
            return;
        }
        tp.rcv_rtt_measure_ts(&skb, now);
        let advances = skb.tcp.ack_seq != tp.snd_una;
        if sk.rmem_alloc.saturating_add(skb.truesize) > sk.rcvbuf {
            let _ = self.tcp_ack(sk, &skb, opts, if advances { AckFlags::DATA } else { AckFlags::SLOWPATH });
            skb.pull(hdr).expect("header was checked");
            self.tcp_data_queue(sk, skb);
        } else {
            self.mib.inc(Mib::TCPHPHits);
            skb.pull(hdr).expect("header was checked");
            self.tcp_event_data_recv(sk, &skb);
            if advances {
                let _ = self.tcp_ack(sk, &skb, opts, AckFlags::DATA);
            }
            sk.rmem_alloc += skb.truesize;
            self.tcp_queue_rcv(sk, skb);
            tp!(sk).duplicate_sack = None;
            if !sk.dead {
                self.tcp_data_ready(sk);
            }
        }
        self.tcp_data_snd_check(sk);
        self.tcp_ack_snd_check(sk);
    }

    /// Sequence, RST and SYN checks.
    ///
    /// # Errors
    /// Why the segment is dropped; what had to be answered has been.
    pub(crate) fn tcp_validate_incoming(&mut self, sk: &mut Sock, skb: &SkBuff) -> Result<(), DropReason> {
        let cb = skb.tcp;
        let rst = cb.flags & flag::RST != 0;
        let tp = sk.tp();
        let stamped = tp.rx_opt.tstamp_ok && tp.rx_opt.saw_tstamp && !rst;
        if let Some(reason) = tp.paws_discard(skb).filter(|_| stamped) {
            return Err(self.tcp_paws_refused(sk, skb, reason));
        }
        if let Some(reason) = sk.tcp_sequence(skb) {
            if rst {
                if tp.rst_after_fin(skb) {
                    self.tcp_reset(sk);
                }
            } else if cb.flags & flag::SYN != 0 {
                self.tcp_syn_challenge(sk);
            } else {
                if reason != DropReason::TcpOldSequence {
                    self.mib.inc(Mib::BeyondWindow);
                }
                self.tcp_dupack_limited(sk, skb, Mib::TCPACKSkippedSeq);
            }
            return Err(reason);
        }
        if rst {
            // RFC 5961 §3.2: only the exact number resets, else ask.
            let sacked_end = tp.selective_acks.iter().map(|b| b.1).reduce(|a, b| a.latest(b));
            if cb.seq == tp.rcv_nxt || tp.rst_after_fin(skb) || sacked_end == Some(cb.seq) {
                self.tcp_reset(sk);
            } else {
                self.tcp_send_challenge_ack(sk);
            }
            return Err(DropReason::TcpReset);
        }
        if cb.flags & flag::SYN != 0 {
            // The SYN-ACK of a simultaneous open repeats the SYN.
            let crossing = tp.state == State::SynRecv
                && cb.flags & flag::ACK != 0
                && cb.seq + 1 == cb.end_seq
                && cb.end_seq == tp.rcv_nxt
                && cb.ack_seq == tp.snd_nxt;
            if !crossing {
                self.tcp_syn_challenge(sk);
                return Err(DropReason::TcpInvalidSyn);
            }
        }
        Ok(())
    }

    /// A timestamp that is too old: overtaken ACKs are common and harmless, the rest is answered.
    fn tcp_paws_refused(&mut self, sk: &mut Sock, skb: &SkBuff, reason: DropReason) -> DropReason {
        if skb.tcp.flags & flag::SYN != 0 {
            self.tcp_syn_challenge(sk);
        } else if reason == DropReason::TcpRfc7323PawsAck {
            self.mib.inc(Mib::PAWSOldAck);
        } else {
            self.mib.inc(Mib::PAWSEstab);
            self.tcp_dupack_limited(sk, skb, Mib::TCPACKSkippedPAWS);
        }
        reason
    }

    fn tcp_syn_challenge(&mut self, sk: &mut Sock) {
        self.mib.inc(Mib::TCPSYNChallenge);
        self.tcp_send_challenge_ack(sk);
    }

    fn tcp_dupack_limited(&mut self, sk: &mut Sock, skb: &SkBuff, skipped: Mib) {
        let mut last = sk.tp().last_oow_ack;
        let ok = self.tcp_oow_allowed(&mut last, skb, skipped);
        tp!(sk).last_oow_ack = last;
        if ok {
            self.tcp_send_dupack(sk, skb);
        }
    }

    /// Answers a segment that is out of the window with where we are (Linux `tcp_send_dupack`).
    fn tcp_send_dupack(&mut self, sk: &mut Sock, skb: &SkBuff) {
        let (seq, end) = (skb.tcp.seq, skb.tcp.end_seq);
        let tp = tp!(sk);
        if end != seq && seq.before(tp.rcv_nxt) {
            tp.enter_quickack_mode(TCP_MAX_QUICKACKS);
            let upto = end.earliest(tp.rcv_nxt);
            tp.dsack_set(seq, upto, self.tcp.sysctl.dsack);
        }
        self.tcp_send_ack(sk);
    }

    /// The peer reset the connection (Linux `tcp_reset`).
    pub(crate) fn tcp_reset(&mut self, sk: &mut Sock) {
        let err = match sk.tp().state {
            State::SynSent => Errno::ECONNREFUSED,
            State::CloseWait => Errno::EPIPE,
            State::Close => return,
            _ => Errno::ECONNRESET,
        };
        sk.err = Some(err);
        self.tcp_write_queue_purge(sk);
        self.tcp_done(sk);
        if !sk.dead {
            self.sk_error_report(sk);
        }
    }

    /// Sends the ACK that is owed now, or delays it (Linux `__tcp_ack_snd_check`).
    pub(crate) fn tcp_ack_snd_check(&mut self, sk: &mut Sock) {
        let tp = sk.tp();
        if !tp.ack.scheduled || tp.state == State::Close {
            return;
        }
        let full = tp.rcv_nxt - tp.rcv_wup > tp.ack.rcv_mss;
        let room = || tp.rcv_nxt - tp.copied_seq < sk.opt.rcvlowat.max(1) || sk.tcp_window_to_offer() >= tp.rcv_wnd;
        if (full && room()) || tp.in_quickack_mode() || tp.ack.now || !tp.ofo_queue.is_empty() {
            self.tcp_send_ack(sk);
        } else {
            self.tcp_send_delayed_ack(sk);
        }
    }

    /// Urgent data (RFC 9293 §3.10.7.4, sixth; RFC 6093: one octet; Linux `tcp_urg`).
    /// `skb` stands at the header.
    pub(crate) fn tcp_urg(&mut self, sk: &mut Sock, skb: &SkBuff) {
        let cb = &skb.tcp;
        if cb.flags & flag::URG != 0 {
            self.tcp_check_urg(sk, cb.seq + u32::from(cb.urg).saturating_sub(1));
        }
        let tp = tp!(sk);
        if tp.urg_data != Urg::NotYet || tp.urg_seq.before(cb.seq) {
            return;
        }
        let syn = u32::from(cb.flags & flag::SYN != 0);
        let offset = (tp.urg_seq - cb.seq) + u32::from(cb.hdr_len) - syn;
        let mut octet = [0];
        if offset < skb.len() && skb.copy_bits(offset, &mut octet).is_ok() {
            tp.urg_data = Urg::Valid(octet[0]);
            self.sk_data_ready(sk);
        }
    }

    /// An urgent pointer: news if it points behind what was read and behind the last one (Linux `tcp_check_urg`).
    fn tcp_check_urg(&mut self, sk: &mut Sock, at: SeqNum) {
        let tp = sk.tp();
        if at.before(tp.copied_seq) || at.before(tp.rcv_nxt) || tp.urg_mark().is_some_and(|u| !at.after(u)) {
            return;
        }
        self.sk_send_sigurg(sk);
        // An urgent octet that is next to be read gives way to its successor: it would become ordinary data.
        let tp = sk.tp();
        if tp.urg_mark() == Some(tp.copied_seq) && !sk.opt.oobinline && tp.copied_seq != tp.rcv_nxt {
            self.tcp_advance(sk, 1);
        }
        let tp = tp!(sk);
        tp.urg_seq = at;
        tp.urg_data = Urg::NotYet;
        tp.fast_path = false;
    }
}

impl TcpSock {
    /// Timestamps of the segment in hand.
    pub(crate) fn take_timestamps(&mut self, opts: &Options) {
        self.rx_opt.saw_tstamp = opts.ts.is_some() && self.rx_opt.tstamp_ok;
        if let Some((val, ecr)) = opts.ts {
            self.rx_opt.rcv_tsval = val;
            self.rx_opt.rcv_tsecr = ecr;
        }
    }

    /// Why the timestamp refuses the segment: it is too old (RFC 7323 §5.3), and the segment is not a duplicate
    /// ACK that was overtaken by little (Linux `tcp_paws_check`, `tcp_disordered_ack_check`).
    fn paws_discard(&self, skb: &SkBuff) -> Option<DropReason> {
        if self.paws_check(1) {
            return None;
        }
        let cb = &skb.tcp;
        if cb.flags & flag::ACK == 0 || cb.seq != cb.end_seq {
            return Some(DropReason::TcpRfc7323Paws);
        }
        if cb.seq.before(self.rcv_nxt) {
            return Some(DropReason::TcpRfc7323PawsAck);
        }
        let age = self.rx_opt.ts_recent.wrapping_sub(self.rx_opt.rcv_tsval);
        let disordered = cb.seq == self.rcv_nxt
            && cb.ack_seq == self.snd_una
            && !self.may_update_window(skb)
            // The peer's clock may tick 1200 times a second.
            && u128::from(age) <= self.rto.as_millis() * 12 / 10;
        (!disordered).then_some(DropReason::TcpRfc7323Paws)
    }

    /// Some stacks send a RST with the number of their FIN (Linux `tcp_reset_check`).
    fn rst_after_fin(&self, skb: &SkBuff) -> bool {
        skb.tcp.seq == self.rcv_nxt - 1 && matches!(self.state, State::CloseWait | State::LastAck | State::Closing)
    }
}

impl Sock {
    /// Why a segment does not lie in the window; one that only ends beyond it may come into an empty queue (Linux
    /// `tcp_sequence`).
    fn tcp_sequence(&self, skb: &SkBuff) -> Option<DropReason> {
        let (tp, cb) = (self.tp(), &skb.tcp);
        let end = tp.rcv_nxt + tp.receive_window();
        if cb.end_seq.before(tp.rcv_wup) {
            Some(DropReason::TcpOldSequence)
        } else if cb.seq.after(end) {
            Some(DropReason::TcpInvalidSequence)
        } else {
            (cb.end_seq.after(end) && !self.receive_queue.is_empty()).then_some(DropReason::TcpInvalidEndSequence)
        }
    }
}
