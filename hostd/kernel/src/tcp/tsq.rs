//! Small queues and pacing (Linux `tcp_small_queue_check`, `tcp_tasklet_func`, `tcp_pacing_check`).
//!
//! What is sent is charged to its socket until the device has taken it (`sk_wmem_alloc`). A
//! socket with more than about a millisecond's worth in the host's own queues stops sending, and the first
//! completion wakes it by way of a tasklet, after the softirq that reaped it. So queues in the host stay short,
//! and what waits, waits in the socket, where it can still be replaced, paced or accounted.
//!
//! The pacing rate follows window and RTT. It decides the limit above and the size of TSO
//! packets; time between packets is kept only where somebody asks for it (`SO_MAX_PACING_RATE`, an algorithm
//! that sets [`Pacing::on`]), by a timer of the socket's own: there is no `fq` qdisc.

use super::output::xmit::{Burst, Nagle};
use super::sock::{Deferred, TcpSock, tp};
use super::state::State;
use crate::Kernel;
use crate::cpu::Softirq;
use crate::skb::SkBuff;
use crate::sock::{Proto, Sock, SockId};
use crate::time::Instant;
use crate::timer::TimerKey;
use core::time::Duration;
use ringlab_counters::Mib;

/// No bound.
pub const UNLIMITED: u64 = u64::MAX;
/// A second's octets shifted by this are about a millisecond's (`sk_pacing_shift`).
const PACING_SHIFT: u32 = 10;
/// Octets of the largest TSO packet (`sk_gso_max_size`).
const GSO_MAX_SIZE: u64 = 65536;
/// Halves the bonus of near peers for each so many µs of RTT, as a power of two (`tcp_tso_rtt_log`).
const TSO_RTT_LOG: u32 = 9;
/// Segments of the smallest TSO packet (`tcp_min_tso_segs`).
const MIN_TSO_SEGS: u32 = 2;
/// Segments that are sent before pacing begins.
const UNPACED_SEGS: u32 = super::cong::TCP_INIT_CWND;

/// How fast a connection sends.
#[derive(Debug, Clone, Copy)]
pub struct Pacing {
    /// Octets a second (`sk_pacing_rate`); `u64::MAX` before the first RTT.
    pub rate: u64,
    /// `SO_MAX_PACING_RATE`; `u64::MAX`: none.
    pub max: u64,
    /// Packets keep their distance (`SK_PACING_NEEDED`).
    pub on: bool,
    /// The next packet goes not before this (`tcp_wstamp_ns`).
    pub wstamp: Instant,
}

impl Default for Pacing {
    fn default() -> Self {
        Self { rate: UNLIMITED, max: UNLIMITED, on: false, wstamp: Instant(0) }
    }
}

/// What holds a connection's output back, and who will let it go (`sk_tsq_flags`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tsq {
    /// Nothing.
    #[default]
    Open,
    /// Too much is in the host's queues (`TSQ_THROTTLED`).
    Throttled,
    /// A completion came: the tasklet has it on its list (`TSQ_QUEUED`).
    Queued,
}

/// Copies of packets that were handed down to be sent, and those of them that were freed, counted. What is handed
/// down is freed in order, so the numbers say whether a packet still has a copy below (Linux looks at the clone
/// that it allocated with the packet, `skb_fclone_busy`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Copies {
    /// Handed down; the number of the last.
    pub sent: u32,
    /// Freed.
    pub freed: u32,
}

impl Kernel {
    /// Charges a packet to its connection until it is freed (Linux `skb_set_owner_w`, `tcp_wfree`).
    pub(crate) fn tcp_charge(&mut self, sk: &mut Sock, skb: &mut SkBuff) {
        skb.owner = sk.id.0;
        sk.wmem_alloc += skb.truesize;
        let copies = &mut tp!(sk).total.copies;
        copies.sent = copies.sent.wrapping_add(1);
    }

    /// True if a packet of the retransmission queue has not left this host yet: it is not lost, and sending it again
    /// would help nobody (Linux `skb_still_in_host_queue`). Output goes on when it leaves.
    pub(crate) fn tcp_still_in_host_queue(&mut self, sk: &mut Sock, index: usize) -> bool {
        let tp = sk.tp();
        let Some(no) = tp.rtx_queue.get(index).map(|skb| skb.tcp.copy_no) else { return false };
        if !tp.total.copies.is_below(no, 0) {
            return false;
        }
        // Those that are done may be waiting to be reaped.
        self.reap_all();
        let reaped = self.wfree_later.iter().filter(|w| w.0 == sk.id.0).count();
        if !sk.tp().total.copies.is_below(no, reaped as u32) {
            return false;
        }
        self.mib.inc(Mib::TCPSpuriousRtxHostQueues);
        self.tcp_throttle(sk);
        true
    }

    fn tcp_throttle(&mut self, sk: &mut Sock) {
        if sk.tp().tsq == Tsq::Open {
            tp!(sk).tsq = Tsq::Throttled;
            self.tcp.throttled += 1;
            self.ask_for_all_completions();
        }
    }

    /// True if the packet must wait: too much of this connection is in the host's queues
    /// (Linux `tcp_small_queue_check`). `factor`: 1 for what is sent again.
    pub(crate) fn tcp_small_queue_check(&mut self, sk: &mut Sock, truesize: u32, factor: u32) -> bool {
        let tp = sk.tp();
        let mut limit = u64::from(truesize * 2).max(tp.pacing.rate >> PACING_SHIFT);
        if !tp.pacing.on {
            limit = limit.min(u64::from(self.tcp.sysctl.limit_output_bytes));
        }
        // One packet in flight may have been freed long ago for all we know: its ACK must not wait for us.
        if u64::from(sk.wmem_alloc) <= limit << factor || tp.rtx_queue.len() <= 1 {
            return false;
        }
        self.tcp_throttle(sk);
        true
    }

    /// A packet that was charged to the connection is freed: it may send again, when the softirq is over
    /// (Linux `tcp_wfree`).
    pub(crate) fn tcp_wfree(&mut self, id: SockId) {
        let Some(sk) = self.socks.get_mut(id) else { return };
        let Proto::Tcp(tp) = &mut sk.proto else { return };
        tp.total.copies.freed = tp.total.copies.freed.wrapping_add(1);
        if tp.tsq != Tsq::Throttled {
            return;
        }
        tp.tsq = Tsq::Queued;
        self.tcp.throttled -= 1;
        self.tcp.tsq_list.push_back(id);
        self.raise_softirq(Softirq::TASKLET);
    }

    /// The connection ends: nothing waits for completions on its behalf.
    pub(crate) fn tcp_tsq_forget(&mut self, sk: &mut Sock) {
        if core::mem::take(&mut tp!(sk).tsq) == Tsq::Throttled {
            self.tcp.throttled -= 1;
        }
    }

    /// Lets those go on whose packets have left (Linux `tcp_tasklet_func`). No socket is out.
    pub(crate) fn tcp_tasklet_func(&mut self) {
        self.cpu_stat().tasklet_softirqs += 1;
        for _ in 0..self.tcp.tsq_list.len() {
            let Some(id) = self.tcp.tsq_list.pop_front() else { break };
            let Some(mut sk) = self.socks.take(id) else { continue };
            if sk.tp().tsq == Tsq::Queued {
                tp!(&mut sk).tsq = Tsq::Open;
            }
            self.tcp_tsq_handler(&mut sk);
            self.tcp_put(sk);
        }
    }

    /// Sends, or leaves it to the owner (Linux `tcp_tsq_handler`); also when the pacing timer fires.
    pub(crate) fn tcp_tsq_handler(&mut self, sk: &mut Sock) {
        if sk.owned { tp!(sk).deferred |= Deferred::TSQ } else { self.tcp_tsq_write(sk) }
    }

    /// Linux `tcp_tsq_write`.
    pub(crate) fn tcp_tsq_write(&mut self, sk: &mut Sock) {
        use State::{CloseWait, Closing, Established, FinWait1, LastAck};
        let tp = sk.tp();
        if !matches!(tp.state, Established | FinWait1 | Closing | CloseWait | LastAck) {
            return;
        }
        if tp.lost_out > tp.retrans_out && tp.cwnd.cwnd > tp.in_flight() {
            self.tcp_xmit_retransmit_queue(sk);
        }
        let mss = self.tcp_current_mss(sk);
        self.tcp_write_xmit(sk, mss, Nagle::Option, Burst::All);
    }

    /// True if the next packet's time has not come; the timer is set then (Linux `tcp_pacing_check`).
    pub(crate) fn tcp_pacing_check(&mut self, sk: &Sock) -> bool {
        let pacing = &sk.tp().pacing;
        if !pacing.on || pacing.wstamp <= self.now {
            return false;
        }
        let key = TimerKey::TcpPace(sk.id);
        if self.timers.get(key).is_none() {
            self.timers.set(key, pacing.wstamp);
        }
        true
    }
}

impl Copies {
    /// Copy number `no` was not freed, nor with `more`.
    fn is_below(self, no: u32, more: u32) -> bool {
        (no.wrapping_sub(self.freed.wrapping_add(more)) as i32) > 0
    }
}

impl TcpSock {
    /// The rate that the window makes: twice in slow start, else a fifth more, so that the window stays the
    /// limit (Linux `tcp_update_pacing_rate`).
    pub(crate) fn update_pacing_rate(&mut self) {
        let percent = if self.cwnd.cwnd < self.cwnd.ssthresh / 2 { 200 } else { 120 };
        let window = u64::from(self.mss_cache) * u64::from(self.cwnd.cwnd.max(self.packets_out));
        // `srtt_us` is in eighths.
        let octets = u128::from(window) * (10_000 << 3) * percent / u128::from(self.rtt.srtt_us.max(1));
        self.pacing.rate = u64::try_from(octets).unwrap_or(UNLIMITED).min(self.pacing.max);
    }

    /// `SO_MAX_PACING_RATE`, octets a second.
    pub(crate) fn set_max_pacing_rate(&mut self, max: u64) {
        self.pacing.on |= max != UNLIMITED;
        self.pacing.max = max;
        self.pacing.rate = self.pacing.rate.min(max);
    }

    /// A packet with `len` octets of data goes: when the next may (Linux `tcp_update_skb_after_send`).
    pub(crate) fn pace_after_send(&mut self, len: u32, now: Instant) {
        let p = &mut self.pacing;
        let prior = p.wstamp;
        p.wstamp = prior.max(now);
        if p.on && p.rate != UNLIMITED && p.rate > 0 && self.total.data_segs_out >= UNPACED_SEGS {
            let gap = u64::from(len) * 1_000_000_000 / p.rate;
            // Being late is made up for, up to half.
            let late = p.wstamp.since(prior).as_nanos() as u64;
            p.wstamp = p.wstamp + Duration::from_nanos(gap - late.min(gap / 2));
        }
    }

    /// Segments of a TSO packet: about a millisecond's worth, more to near peers (Linux `tcp_tso_autosize`).
    pub(crate) fn tso_segs(&self, mss: u32) -> u32 {
        let mut octets = self.pacing.rate >> PACING_SHIFT;
        let far = self.rtt.min_rtt_us >> TSO_RTT_LOG;
        if far < u32::BITS {
            octets = octets.saturating_add(GSO_MAX_SIZE >> far);
        }
        let whole = (self.size_goal(mss) / mss).max(1);
        ((octets.min(GSO_MAX_SIZE) / u64::from(mss.max(1))) as u32).max(MIN_TSO_SEGS).min(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tp(srtt_us: u32, cwnd: u32) -> TcpSock {
        let mut tp = TcpSock::default();
        (tp.mss_cache, tp.max_window) = (1448, 1 << 20);
        (tp.rtt.srtt_us, tp.rtt.min_rtt_us, tp.cwnd.cwnd) = (srtt_us << 3, srtt_us, cwnd);
        tp
    }

    #[test]
    fn rate_is_twice_the_windows_in_slow_start_and_a_fifth_more_after() {
        let mut tp = tp(10_000, 100);
        tp.update_pacing_rate();
        assert_eq!(tp.pacing.rate, 2 * 100 * 1448 * 100);
        tp.cwnd.ssthresh = 150;
        tp.update_pacing_rate();
        assert_eq!(tp.pacing.rate, 120 * 1448 * 100);
        tp.set_max_pacing_rate(1_000_000);
        tp.update_pacing_rate();
        assert_eq!((tp.pacing.rate, tp.pacing.on), (1_000_000, true));
    }

    #[test]
    fn packets_are_whole_to_near_peers_and_small_to_far_slow_ones() {
        for (srtt_us, cwnd, segs) in [(50, 10, 45), (20_000, 10, 2), (20_000, 1000, 45), (600, 10, 45), (4000, 10, 5)] {
            let mut tp = tp(srtt_us, cwnd);
            tp.update_pacing_rate();
            assert_eq!(tp.tso_segs(1448), segs, "RTT {srtt_us} µs, window {cwnd}");
        }
    }

    #[test]
    fn packets_keep_their_distance_and_make_up_for_half_of_a_delay() {
        let mut tp = tp(1000, 10);
        tp.set_max_pacing_rate(1_000_000);
        let ms = |n: u64| Instant(n * 1_000_000);
        tp.pace_after_send(1000, ms(5));
        assert_eq!(tp.pacing.wstamp, ms(5), "the first ten are free");
        tp.total.data_segs_out = 10;
        tp.pace_after_send(1000, ms(5));
        assert_eq!(tp.pacing.wstamp, ms(6));
        tp.pace_after_send(1000, ms(8));
        assert_eq!(tp.pacing.wstamp, Instant(8_500_000));
    }
}
