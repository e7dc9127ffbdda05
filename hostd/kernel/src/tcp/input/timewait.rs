//! TIME_WAIT (RFC 9293 §3.10.7.4, RFC 1337, RFC 6191; Linux `tcp_minisocks.c`).

use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::Sock;
use crate::tcp::hash::Owner;
use crate::tcp::header::{Options, flag};
use crate::tcp::minisock::{Mini, TimewaitSock};
use crate::tcp::secure::Tuple;
use crate::tcp::seq::SeqNum;
use crate::tcp::sock::TCP_TIMEWAIT_LEN;
use crate::tcp::state::State;
use crate::timer::TimerKey;
use alloc::boxed::Box;
use core::time::Duration;
use ringlab_counters::{DropReason, Mib};

/// A minisocket that stays at most this long counts as killed (Linux `__inet_twsk_schedule`).
const SHORT_TIMEWAIT: Duration = Duration::from_secs(4);

/// What to do with a segment to a connection in TIME_WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Drop(DropReason),
    Ack,
    Reset,
    /// A new connection; its initial sequence number lies above the old one's.
    Syn(SeqNum),
}

impl Kernel {
    /// Leaves a minisocket in the socket's place, which is then closed (Linux `tcp_time_wait`).
    /// `timeout`: of FIN_WAIT2; at least 60 s in TIME_WAIT.
    pub(crate) fn tcp_time_wait(&mut self, sk: &mut Sock, substate: State, timeout: Duration) {
        if self.tcp.tw_count < self.tcp.sysctl.max_tw_buckets {
            let timeout = if substate == State::TimeWait { TCP_TIMEWAIT_LEN } else { timeout.max(sk.tp().rto * 7 / 2) };
            let tp = sk.tp();
            let tw = TimewaitSock {
                tuple: Tuple { saddr: sk.saddr, sport: sk.sport, daddr: sk.daddr, dport: sk.dport },
                substate,
                rcv_saddr: sk.rcv_saddr,
                bound_dev_if: sk.bound_dev_if,
                reuseaddr: sk.opt.reuseaddr,
                reuseport: sk.opt.reuseport,
                hold: self.tcp.hold(sk.sport, Owner::Sock(sk.id)),
                rcv_nxt: tp.rcv_nxt,
                snd_nxt: tp.snd_nxt,
                rcv_wnd: tp.receive_window(),
                rcv_wscale: tp.rx_opt.rcv_wscale,
                ts_recent: tp.rx_opt.ts_recent,
                ts_recent_stamp: tp.rx_opt.ts_recent_stamp.filter(|_| tp.rx_opt.tstamp_ok),
                ts_off: tp.tsoffset,
                last_oow_ack: tp.last_oow_ack,
                tos: sk.inet.tos,
                ttl: sk.inet.ttl,
                timeout,
                txhash: sk.txhash,
            };
            let id = self.tcp.add_mini(Mini::Timewait(tw));
            self.timers.set(TimerKey::TcpMini(id), self.now + timeout);
            self.mib.inc(if timeout > SHORT_TIMEWAIT { Mib::TW } else { Mib::TWKilled });
        } else {
            self.mib.inc(Mib::TCPTimeWaitOverflow);
        }
        self.tcp_done(sk);
    }

    /// Takes a segment to a TIME_WAIT minisocket.
    pub(crate) fn tcp_v4_timewait_rcv(&mut self, id: u64, skb: Box<SkBuff>, opts: &Options) {
        let verdict = self.tcp_timewait_state_process(id, &skb, opts);
        match verdict {
            Verdict::Drop(reason) => self.kfree_skb(skb, reason),
            Verdict::Ack => {
                if let Some(tw) = self.tcp.timewait_mut(id).cloned() {
                    self.tcp_v4_timewait_ack(&tw);
                }
                self.consume_skb(skb);
            }
            Verdict::Reset => {
                self.tcp_v4_send_reset(&skb);
                self.tcp_timewait_end(id);
                self.kfree_skb(skb, DropReason::TcpReset);
            }
            Verdict::Syn(isn) => match self.inet_lookup_listener(&skb.tcp_tuple(), skb.dev) {
                Some(listener) => {
                    self.tcp_timewait_end(id);
                    self.tcp_conn_request(listener, &skb, opts, Some(isn));
                    self.consume_skb(skb);
                }
                None => {
                    if let Some(tw) = self.tcp.timewait_mut(id).cloned() {
                        self.tcp_v4_timewait_ack(&tw);
                    }
                    self.consume_skb(skb);
                }
            },
        }
    }

    fn tcp_timewait_end(&mut self, id: u64) {
        self.timers.cancel(TimerKey::TcpMini(id));
        self.tcp.remove_mini(id);
    }

    fn tcp_timewait_state_process(&mut self, id: u64, skb: &SkBuff, opts: &Options) -> Verdict {
        let now = self.now;
        let cb = skb.tcp;
        let Some(tw) = self.tcp.timewait_mut(id) else { return Verdict::Drop(DropReason::TcpClose) };
        let stamped = tw.ts_recent_stamp.is_some();
        let paws = matches!(opts.ts, Some((val, _)) if stamped && (tw.ts_recent.wrapping_sub(val) as i32) > 0);
        if tw.substate == State::FinWait2 {
            return self.tcp_fin_wait2_rcv(id, skb, opts, paws);
        }
        // A duplicate of what is known already, without data: an ACK or a RST.
        if !paws && cb.seq == tw.rcv_nxt && (cb.seq == cb.end_seq || cb.flags & flag::RST != 0) {
            if cb.flags & flag::RST != 0 {
                // RFC 1337: Linux lets the RST end it unless told otherwise.
                self.tcp_timewait_end(id);
                return Verdict::Drop(DropReason::TcpReset);
            }
            if let (Some((val, _)), true) = (opts.ts, stamped) {
                tw.ts_recent = val;
                tw.ts_recent_stamp = Some(now);
            }
            let timeout = tw.timeout;
            self.timers.set(TimerKey::TcpMini(id), now + timeout);
            return Verdict::Drop(DropReason::TcpClose);
        }
        let newer_ts = matches!(opts.ts, Some((val, _)) if stamped && (tw.ts_recent.wrapping_sub(val) as i32) < 0);
        if cb.flags & (flag::SYN | flag::RST | flag::ACK) == flag::SYN && !paws && (cb.seq.after(tw.rcv_nxt) || newer_ts) {
            return Verdict::Syn(tw.snd_nxt + 65535 + 2);
        }
        if cb.flags & flag::RST != 0 {
            return Verdict::Drop(DropReason::TcpReset);
        }
        if paws {
            self.mib.inc(Mib::PAWSTimewait);
        }
        let timeout = tw.timeout;
        if paws || cb.flags & flag::ACK != 0 {
            self.timers.set(TimerKey::TcpMini(id), now + timeout);
        }
        let reason = if paws { DropReason::TcpRfc7323TwPaws } else { DropReason::TcpInvalidSequence };
        self.tcp_timewait_check_oow(id, skb, Mib::TCPACKSkippedTimeWait, reason)
    }

    /// An ACK, unless one went out just now.
    fn tcp_timewait_check_oow(&mut self, id: u64, skb: &SkBuff, skipped: Mib, reason: DropReason) -> Verdict {
        let Some(mut last) = self.tcp.timewait_mut(id).map(|tw| tw.last_oow_ack) else { return Verdict::Drop(DropReason::TcpClose) };
        let ok = self.tcp_oow_allowed(&mut last, skb, skipped);
        if let Some(tw) = self.tcp.timewait_mut(id) {
            tw.last_oow_ack = last;
        }
        if ok { Verdict::Ack } else { Verdict::Drop(reason) }
    }

    /// FIN_WAIT2 whose program is gone: only the peer's FIN is awaited.
    fn tcp_fin_wait2_rcv(&mut self, id: u64, skb: &SkBuff, opts: &Options, paws: bool) -> Verdict {
        let now = self.now;
        let cb = skb.tcp;
        let Some(tw) = self.tcp.timewait_mut(id) else { return Verdict::Drop(DropReason::TcpClose) };
        if paws || !cb.seq.segment_in_window(cb.end_seq, tw.rcv_nxt, tw.rcv_nxt + tw.rcv_wnd) {
            let reason = if paws { DropReason::TcpRfc7323Paws } else { DropReason::TcpInvalidSequence };
            return self.tcp_timewait_check_oow(id, skb, Mib::TCPACKSkippedFinWait2, reason);
        }
        if cb.flags & flag::RST != 0 {
            self.tcp_timewait_end(id);
            return Verdict::Drop(DropReason::TcpReset);
        }
        if cb.flags & flag::SYN != 0 && !cb.seq.before(tw.rcv_nxt) {
            return Verdict::Reset;
        }
        if cb.flags & flag::ACK == 0 || !cb.end_seq.after(tw.rcv_nxt) || cb.end_seq == cb.seq {
            return Verdict::Drop(DropReason::TcpOldData);
        }
        // Data that nobody reads, or anything but the FIN alone.
        if cb.flags & flag::FIN == 0 || cb.end_seq != tw.rcv_nxt + 1 {
            return Verdict::Reset;
        }
        tw.substate = State::TimeWait;
        tw.rcv_nxt = cb.end_seq;
        tw.timeout = TCP_TIMEWAIT_LEN;
        if let (Some((val, _)), true) = (opts.ts, tw.ts_recent_stamp.is_some()) {
            tw.ts_recent = val;
            tw.ts_recent_stamp = Some(now);
        }
        self.timers.set(TimerKey::TcpMini(id), now + TCP_TIMEWAIT_LEN);
        Verdict::Ack
    }
}
