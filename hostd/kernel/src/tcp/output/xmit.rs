//! When new data goes: windows, Nagle, TSO (Linux `tcp_write_xmit`).

use crate::Kernel;
use crate::errno::Errno;
use crate::skb::{Gso, SkBuff};
use crate::sock::Sock;
use crate::tcp::chrono::ChronoType;
use crate::tcp::cong::CaState;
use crate::tcp::header::flag;
use crate::tcp::sock::{SKB_OVERHEAD, TCP_RTO_MAX, TcpSock, WriteTimer, tp};
use crate::tcp::state::State;
use crate::time::Instant;
use crate::trace::Point;
use alloc::boxed::Box;
use core::time::Duration;
use ringlab_counters::Mib;

/// Which queue a packet stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Not sent.
    Write,
    /// Sent.
    Rtx,
}

/// How far Nagle's algorithm may hold a small segment back (Linux `TCP_NAGLE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nagle {
    /// As the socket's options say.
    Option,
    /// Send: nothing will be added (`TCP_NAGLE_PUSH`).
    Push,
    /// Hold: more is coming (`TCP_NAGLE_CORK`).
    Cork,
}

/// How much to send at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Burst {
    /// What the windows allow.
    All,
    /// One packet.
    One,
    /// One packet, whatever the congestion window (tail loss probe).
    Probe,
}

/// Segments worth of window that are not waited beyond when `tcp_tso_win_divisor` is 0 (Linux `tcp_max_tso_deferred_mss`).
const MAX_TSO_DEFERRED_MSS: u32 = 3;

/// What keeps a connection from sending more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// There is no more, or it waits for company (Nagle), or for its time.
    Other,
    /// The congestion window.
    Cwnd,
    /// The peer's window.
    Rwnd,
}

impl Kernel {
    /// Sends what may be sent (Linux `__tcp_push_pending_frames`); arms the
    /// zero-window probe if nothing could.
    pub(crate) fn tcp_push_pending_frames(&mut self, sk: &mut Sock, nagle: Nagle) {
        if sk.tp().write_queue.is_empty() || sk.tp().state == State::Close {
            return;
        }
        let mss = self.tcp_current_mss(sk);
        if self.tcp_write_xmit(sk, mss, nagle, Burst::All) {
            self.tcp_check_probe_timer(sk);
        }
    }

    /// Linux `tcp_write_xmit`. True if nothing is in flight and data waits: the
    /// peer's window is closed.
    pub(crate) fn tcp_write_xmit(&mut self, sk: &mut Sock, mss: u32, nagle: Nagle, burst: Burst) -> bool {
        let mut sent = 0;
        let mut limit = Limit::Other;
        let max_segs = sk.tp().tso_segs(mss);
        loop {
            if self.tcp_pacing_check(sk) {
                break;
            }
            let tp = tp!(sk);
            let Some(skb) = tp.write_queue.front_mut() else { break };
            skb.set_tso_segs(mss);
            let (len, segs) = (skb.len(), skb.pcount());
            let mut quota = tp.cwnd_quota();
            if quota == 0 {
                limit = Limit::Cwnd;
                if burst != Burst::Probe {
                    break;
                }
                quota = 1;
            }
            if !tp.snd_wnd_test(mss) {
                limit = Limit::Rwnd;
                break;
            }
            let last = tp.write_queue.len() == 1;
            if segs <= 1 {
                let policy = if last { nagle } else { Nagle::Push };
                if !tp.nagle_test(mss, policy) {
                    break;
                }
            } else if burst == Burst::All
                && let Some(why) = tp.tso_should_defer(mss, max_segs, self.now, self.tcp.sysctl.tso_win_divisor)
            {
                limit = why;
                break;
            }
            let most = if segs > 1 { tp.mss_split_point(mss, quota.min(max_segs), nagle) } else { mss };
            if len > most && !self.tcp_fragment(sk, Queue::Write, 0, most, mss) {
                break;
            }
            let truesize = sk.tp().write_queue.front().map_or(0, |s| s.truesize);
            if self.tcp_small_queue_check(sk, truesize, 0) {
                break;
            }
            let Some(pcount) = self.tcp_send_head(sk) else { break };
            sent += pcount;
            if burst != Burst::All {
                break;
            }
        }
        self.tcp_after_write_xmit(sk, sent, limit, burst)
    }

    /// Transmits the head of the write queue and moves it to the retransmission queue
    /// (Linux `tcp_event_new_data_sent`). `None` if it could not be sent.
    pub(crate) fn tcp_send_head(&mut self, sk: &mut Sock) -> Option<u32> {
        let now = self.now;
        let tp = tp!(sk);
        let mut skb = tp.write_queue.pop_front()?;
        tp.rate_skb_sent(&mut skb.tcp, now);
        let pcount = skb.pcount();
        let small = skb.len() < pcount * tp.mss_cache;
        let clone = self.skb_clone(&skb);
        if let Err(e) = self.tcp_transmit_skb(sk, clone) {
            // Dropped on this host: it stays unsent; the next ACK or the probe timer tries again.
            tp!(sk).write_queue.push_front(skb);
            if e == Errno::ENOBUFS {
                self.tcp_enter_cwr(sk);
            }
            return None;
        }
        let tp = tp!(sk);
        skb.tcp.copy_no = tp.total.copies.sent;
        if small {
            tp.snd_sml = skb.tcp.end_seq;
        }
        let prior = tp.packets_out;
        tp.snd_nxt = skb.tcp.end_seq;
        tp.packets_out += pcount;
        let data = !skb.is_empty();
        tp.rtx_queue.push_back(skb);
        if data {
            self.mib.add(Mib::TCPOrigDataSent, u64::from(pcount));
        }
        if prior == 0 || tp!(sk).pending == WriteTimer::LossProbe {
            self.tcp_rearm_rto(sk);
        }
        Some(pcount)
    }

    fn tcp_after_write_xmit(&mut self, sk: &mut Sock, sent: u32, limit: Limit, burst: Burst) -> bool {
        let now = self.now;
        let tp = tp!(sk);
        if limit == Limit::Rwnd {
            tp.chrono_start(ChronoType::RwndLimited, now);
        } else {
            tp.chrono_stop(ChronoType::RwndLimited, now);
        }
        let cwnd_limited = limit == Limit::Cwnd || tp.in_flight() >= tp.cwnd.cwnd;
        if sent > 0 || cwnd_limited {
            // All is sent, though the window has room, and the program has more.
            let starved = sk.nospace && !sk.dead && matches!(tp.state, State::Established | State::CloseWait);
            if !tp.cwnd_validate(cwnd_limited, now) && starved && tp.write_queue.is_empty() {
                tp.chrono_start(ChronoType::SndbufLimited, now);
            }
        }
        if sent > 0 {
            if tp.in_cwnd_reduction() {
                tp.prr.out += sent;
            }
            let args = [u64::from(sk.id.0), u64::from(sk.tp().cwnd.cwnd), u64::from(sk.tp().in_flight()), 0];
            self.trace(Point::TcpWriteXmit, 0, args);
            if burst != Burst::Probe {
                self.tcp_schedule_loss_probe(sk, false);
            }
            return false;
        }
        tp.packets_out == 0 && !tp.write_queue.is_empty()
    }

    /// Cuts a packet of a queue at `at` octets (Linux `tcp_fragment`). The data stay
    /// where they are. `false` if there is nothing to cut.
    pub(crate) fn tcp_fragment(&mut self, sk: &mut Sock, queue: Queue, index: usize, at: u32, mss: u32) -> bool {
        let mut tail = self.alloc_skb();
        let tp = tp!(sk);
        let q = if queue == Queue::Write { &mut tp.write_queue } else { &mut tp.rtx_queue };
        let Some(skb) = q.get_mut(index).filter(|s| at > 0 && s.len() > at) else {
            self.skbs.put(tail);
            return false;
        };
        let old = skb.pcount();
        skb.split_into(at, &mut tail);
        tail.tcp = skb.tcp;
        tail.tcp.seq = skb.tcp.seq + at;
        skb.tcp.end_seq = tail.tcp.seq;
        skb.tcp.flags &= !(flag::FIN | flag::PSH);
        skb.truesize = SKB_OVERHEAD + skb.len();
        tail.truesize = SKB_OVERHEAD + tail.len();
        skb.set_tso_segs(mss);
        tail.set_tso_segs(mss);
        let (sacked, new) = (skb.tcp.sacked, skb.pcount() + tail.pcount());
        q.insert(index + 1, tail);
        sk.wmem_queued += SKB_OVERHEAD;
        if queue == Queue::Rtx {
            tp.adjust_pcount(sacked, old, new);
        }
        true
    }

    /// Arms the zero-window probe if nothing else will (Linux `tcp_check_probe_timer`).
    pub(crate) fn tcp_check_probe_timer(&mut self, sk: &mut Sock) {
        let tp = sk.tp();
        if tp.packets_out == 0 && tp.pending == WriteTimer::Idle {
            let when = tp.rto.max(crate::tcp::sock::TCP_RTO_MIN);
            self.tcp_reset_xmit_timer(sk, WriteTimer::Probe0, when.min(TCP_RTO_MAX));
        }
    }

    /// An ACK came or memory was freed: sends more, wakes writers (Linux `tcp_data_snd_check`).
    pub(crate) fn tcp_data_snd_check(&mut self, sk: &mut Sock) {
        self.tcp_push_pending_frames(sk, Nagle::Option);
        self.tcp_check_space(sk);
    }

    /// Wakes a writer once a third of the buffer is free (Linux `tcp_check_space`, `tcp_new_space`).
    pub(crate) fn tcp_check_space(&mut self, sk: &mut Sock) {
        if !sk.nospace {
            return;
        }
        self.tcp_sndbuf_expand(sk);
        if sk.tcp_writeable(self.tcp.sysctl.notsent_lowat) {
            self.sk_write_space(sk);
        }
        if !sk.nospace {
            tp!(sk).chrono_stop(ChronoType::SndbufLimited, self.now);
        }
    }

    /// New data after a pause: the old window says nothing of the path now (RFC 5681 §4.1;
    /// Linux `tcp_slow_start_after_idle_check`).
    pub(crate) fn tcp_slow_start_after_idle_check(&mut self, sk: &mut Sock) {
        let (now, on) = (self.now, self.tcp.sysctl.slow_start_after_idle);
        let tp = tp!(sk);
        if tp.packets_out > 0 || !tp.write_queue.is_empty() || tp.lsndtime.0 == 0 {
            return;
        }
        let idle = now.since(tp.lsndtime);
        tp.ca.tx_start(tp.lsndtime, now);
        if on && idle > tp.rto {
            tp.cwnd_restart(idle, now);
        }
    }

    /// Lets the send buffer follow the congestion window (Linux `tcp_sndbuf_expand`).
    pub(crate) fn tcp_sndbuf_expand(&mut self, sk: &mut Sock) {
        if sk.sndbuf_locked {
            return;
        }
        let tp = sk.tp();
        let seg = u32::from(tp.rx_opt.mss_clamp).max(tp.mss_cache) + 320 + 320;
        let per_mss = seg.next_power_of_two().saturating_add(256);
        let segs = tp.cwnd.cwnd.max(10).max(tp.reordering + 1);
        let want = 2u32.saturating_mul(segs).saturating_mul(per_mss).min(self.tcp.sysctl.wmem[2]);
        sk.sndbuf = sk.sndbuf.max(want);
    }
}

impl TcpSock {
    /// Segments that the congestion window still allows (Linux `tcp_cwnd_test`).
    fn cwnd_quota(&self) -> u32 {
        let (in_flight, cwnd) = (self.in_flight(), self.cwnd.cwnd);
        if in_flight >= cwnd { 0 } else { (cwnd / 2).max(1).min(cwnd - in_flight) }
    }

    /// The peer's window has room for the first segment (Linux `tcp_snd_wnd_test`).
    fn snd_wnd_test(&self, mss: u32) -> bool {
        let Some(skb) = self.write_queue.front() else { return false };
        let end = if skb.len() > mss { skb.tcp.seq + mss } else { skb.tcp.end_seq };
        end.at_or_before(self.wnd_end())
    }

    /// Nagle's algorithm with Minshall's change (RFC 9293 §3.7.4; Linux `tcp_nagle_test`).
    fn nagle_test(&self, mss: u32, policy: Nagle) -> bool {
        let Some(skb) = self.write_queue.front() else { return false };
        if policy == Nagle::Push || skb.tcp.flags & flag::FIN != 0 || self.snd_up.is_some() || skb.len() >= mss {
            return true;
        }
        !self.nagle_holds(policy)
    }

    /// A small segment must wait (Linux `tcp_nagle_check`).
    fn nagle_holds(&self, policy: Nagle) -> bool {
        let small_in_flight = self.snd_sml.after(self.snd_una) && self.snd_sml.at_or_before(self.snd_nxt);
        match policy {
            Nagle::Push => false,
            Nagle::Cork => true,
            Nagle::Option => self.opts.cork || (!self.opts.nodelay && self.packets_out > 0 && small_in_flight),
        }
    }

    /// Better wait for more window and send a larger packet (Linux `tcp_tso_should_defer`)? Then for which. Deviation: also where
    /// the next ACK is far (Linux: half a round trip, or a millisecond): a host here pays dearly for each packet.
    fn tso_should_defer(&self, mss: u32, max_segs: u32, now: Instant, divisor: u32) -> Option<Limit> {
        let skb = self.write_queue.front()?;
        let in_flight = self.in_flight();
        if self.ca_state >= CaState::Recovery || in_flight == 0 || now.since(self.lsndtime) > Duration::from_millis(1) {
            return None;
        }
        let send_win = self.wnd_end() - skb.tcp.seq;
        let cong_win = (self.cwnd.cwnd - in_flight).saturating_mul(mss);
        let limit = send_win.min(cong_win);
        let whole = limit >= max_segs * mss || (self.write_queue.len() > 1 && limit >= skb.len());
        if whole {
            return None;
        }
        let enough = match self.snd_wnd.min(self.cwnd.cwnd.saturating_mul(mss)).checked_div(divisor) {
            Some(chunk) => limit >= chunk,
            None => limit > MAX_TSO_DEFERRED_MSS * mss,
        };
        if enough {
            return None;
        }
        let (window, which) = if cong_win < send_win { (cong_win, Limit::Cwnd) } else { (send_win, Limit::Rwnd) };
        if window <= skb.len() {
            return Some(which);
        }
        // Of what ends here there will not be more.
        (skb.tcp.flags & flag::FIN == 0).then_some(Limit::Other)
    }

    /// Octets of the head packet that windows and Nagle let go (Linux `tcp_mss_split_point`).
    fn mss_split_point(&self, mss: u32, max_segs: u32, nagle: Nagle) -> u32 {
        let Some(skb) = self.write_queue.front() else { return mss };
        let window = self.wnd_end() - skb.tcp.seq;
        let most = mss * max_segs;
        if most <= window && self.write_queue.len() > 1 {
            return most.min(skb.len().max(mss));
        }
        let needed = skb.len().min(window);
        if most <= needed {
            return most;
        }
        let partial = needed % mss;
        if partial != 0 && self.nagle_holds(nagle) { needed - partial } else { needed }
    }

    /// Keeps the counts of the retransmission queue when a packet's segments change.
    pub(crate) fn adjust_pcount(&mut self, sacked: u8, old: u32, new: u32) {
        use crate::tcp::sack::{LOST, SACKED_ACKED, SACKED_RETRANS};
        let adjust = |count: &mut u32| *count = (*count + new).saturating_sub(old);
        adjust(&mut self.packets_out);
        if sacked & SACKED_ACKED != 0 {
            adjust(&mut self.sacked_out);
        }
        if sacked & SACKED_RETRANS != 0 {
            adjust(&mut self.retrans_out);
        }
        if sacked & LOST != 0 {
            adjust(&mut self.lost_out);
        }
    }

    /// Remembers whether the window was the limit (Linux `tcp_cwnd_validate`), and lets an
    /// unused window decay (RFC 7661). True if it was.
    fn cwnd_validate(&mut self, limited: bool, now: Instant) -> bool {
        let w = &mut self.cwnd;
        let new_window = self.snd_una.at_or_after(w.usage_seq);
        if new_window || limited || (!w.is_cwnd_limited && self.packets_out > w.max_packets_out) {
            w.is_cwnd_limited = limited;
            w.max_packets_out = self.packets_out;
            w.usage_seq = self.snd_nxt;
        }
        if w.is_limited() {
            w.stamp = now;
        } else if now.since(w.stamp) >= self.rto && self.ca_state == CaState::Open && self.write_queue.is_empty() {
            self.cwnd_application_limited(now);
        }
        self.cwnd.is_limited()
    }

    /// Halves the window for every RTO of silence, down to the initial one (RFC 2861; Linux `tcp_cwnd_restart`).
    fn cwnd_restart(&mut self, idle: Duration, now: Instant) {
        let least = crate::tcp::cong::TCP_INIT_CWND.min(self.cwnd.cwnd);
        self.cwnd.ssthresh = self.current_ssthresh();
        let mut left = idle.saturating_sub(self.rto);
        while !left.is_zero() && self.cwnd.cwnd > least {
            self.cwnd.cwnd >>= 1;
            left = left.saturating_sub(self.rto);
        }
        self.cwnd.cwnd = self.cwnd.cwnd.max(least);
        self.cwnd.stamp = now;
        self.cwnd.max_packets_out = 0;
    }

    /// Linux `tcp_cwnd_application_limited`.
    fn cwnd_application_limited(&mut self, now: Instant) {
        let used = self.cwnd.max_packets_out.max(crate::tcp::cong::TCP_INIT_CWND);
        if used < self.cwnd.cwnd {
            self.cwnd.ssthresh = self.cwnd.ssthresh.max((self.cwnd.cwnd >> 1) + (self.cwnd.cwnd >> 2));
            self.cwnd.cwnd = (self.cwnd.cwnd + used) / 2;
        }
        self.cwnd.stamp = now;
    }

    /// Appends an empty packet to the write queue (Linux `tcp_add_write_queue_tail`).
    pub(crate) fn queue_tail(&mut self, mut skb: Box<SkBuff>, flags: u8, now: Instant) -> &mut SkBuff {
        if self.write_queue.is_empty() && flags & flag::SYN == 0 {
            self.chrono_start(ChronoType::Busy, now);
        }
        skb.tcp.seq = self.write_seq;
        skb.tcp.end_seq = self.write_seq;
        skb.tcp.flags = flags;
        skb.truesize = SKB_OVERHEAD;
        self.write_queue.push_back(skb);
        self.write_queue.back_mut().expect("pushed above")
    }
}

impl SkBuff {
    /// Notes into how many segments the packet will be cut (Linux `tcp_set_skb_tso_segs`).
    pub(crate) fn set_tso_segs(&mut self, mss: u32) {
        let mss = mss.max(1);
        self.gso = (self.len() > mss).then(|| Gso { size: mss.min(0xffff) as u16, segs: self.len().div_ceil(mss) as u16, ecn: false });
    }
}
