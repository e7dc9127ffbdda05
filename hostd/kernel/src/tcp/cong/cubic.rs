//! CUBIC (RFC 9438) with HyStart, Linux's default.
//!
//! W_cubic(t) = C·(t − K)³ + W_max, C = 0.4 segments/s³, β = 0.7. Time is in
//! milliseconds here and all arithmetic is integral, so that it is the same everywhere.
//!
//! Deviation: as Linux, the Reno-friendly window keeps α = 3(1−β)/(1+β) also after
//! it has passed the window before the reduction (RFC 9438 §4.3 raises it to 1).

use super::{AckView, CaState, Cwnd};
use crate::tcp::seq::SeqNum;
use crate::time::Instant;
use core::time::Duration;

/// β in units of 1/1024.
const BETA: u64 = 717;
/// HyStart acts from this window on, segments.
const HYSTART_LOW_WINDOW: u32 = 16;
/// RTT samples of a round before its minimum is believed.
const HYSTART_MIN_SAMPLES: u8 = 8;
/// ACKs closer than this are one train.
const HYSTART_ACK_DELTA: Duration = Duration::from_millis(2);
/// Bounds of the RTT rise that ends slow start.
const HYSTART_DELAY_MIN: Duration = Duration::from_millis(4);
const HYSTART_DELAY_MAX: Duration = Duration::from_millis(16);

/// State of one connection.
#[derive(Debug, Clone, Default)]
pub struct Cubic {
    /// One segment of growth for this many acknowledged.
    cnt: u32,
    /// W_max after fast convergence.
    last_max_cwnd: u32,
    last_cwnd: u32,
    last_time: Instant,
    /// Plateau of the current epoch.
    origin_point: u32,
    /// K, milliseconds.
    k: u64,
    delay_min: Option<Duration>,
    epoch_start: Option<Instant>,
    ack_cnt: u32,
    /// W_est of the Reno-friendly region.
    tcp_cwnd: u32,
    // HyStart
    round_start: Instant,
    last_ack: Instant,
    end_seq: SeqNum,
    curr_rtt: Option<Duration>,
    sample_cnt: u8,
    found: bool,
}

impl Cubic {
    /// Forgets the epochs (after a timeout).
    pub fn reset(&mut self) {
        *self = Self { delay_min: None, ..Self::default() };
    }

    /// β·cwnd, and W_max with fast convergence (RFC 9438 §4.6, §4.7).
    pub fn recalc_ssthresh(&mut self, w: &Cwnd) -> u32 {
        self.epoch_start = None;
        let cwnd = u64::from(w.cwnd);
        self.last_max_cwnd = if w.cwnd < self.last_max_cwnd { (cwnd * (1024 + BETA) / 2048) as u32 } else { w.cwnd };
        ((cwnd * BETA / 1024) as u32).max(2)
    }

    /// Window growth on an ACK.
    pub fn cong_avoid(&mut self, w: &mut Cwnd, ack: &AckView) {
        let mut acked = ack.acked;
        if w.in_slow_start() {
            acked = w.slow_start(acked);
            if acked == 0 {
                return;
            }
        }
        self.update(w.cwnd, acked, ack.now);
        w.cong_avoid_ai(self.cnt, acked);
    }

    fn update(&mut self, cwnd: u32, acked: u32, now: Instant) {
        self.ack_cnt += acked;
        if self.last_cwnd == cwnd && now.since(self.last_time) <= Duration::from_millis(31) {
            return;
        }
        // The cubic part once a millisecond at most; the Reno-friendly part always.
        if self.epoch_start.is_none() || now.millis() != self.last_time.millis() {
            self.last_cwnd = cwnd;
            self.last_time = now;
            self.cnt = self.cubic_cnt(cwnd, acked, now);
        }
        // α = 3(1−β)/(1+β) ≈ 8/15 segments a window.
        let delta = (u64::from(cwnd) * 15 / 8).max(1) as u32;
        while self.ack_cnt > delta {
            self.ack_cnt -= delta;
            self.tcp_cwnd += 1;
        }
        if self.tcp_cwnd > cwnd {
            self.cnt = self.cnt.min(cwnd / (self.tcp_cwnd - cwnd));
        }
        self.cnt = self.cnt.max(2);
    }

    fn cubic_cnt(&mut self, cwnd: u32, acked: u32, now: Instant) -> u32 {
        let start = *self.epoch_start.get_or_insert_with(|| {
            self.ack_cnt = acked;
            self.tcp_cwnd = cwnd;
            (self.k, self.origin_point) =
                if self.last_max_cwnd <= cwnd { (0, cwnd) } else { (cubic_k(self.last_max_cwnd - cwnd), self.last_max_cwnd) };
            now
        });
        let t = (now.since(start) + self.delay_min.unwrap_or_default()).as_millis() as u64;
        let target = w_cubic(t, self.k, self.origin_point);
        let cnt = if target > cwnd { cwnd / (target - cwnd) } else { 100 * cwnd };
        // Before the first loss: at least 5 % a window.
        if self.last_max_cwnd == 0 { cnt.min(20) } else { cnt }
    }

    /// RTT sample of an ACK of new data.
    pub fn acked(&mut self, w: &mut Cwnd, ack: &AckView) {
        let Some(rtt) = ack.rtt else { return };
        if self.epoch_start.is_some_and(|e| ack.now.since(e) < Duration::from_secs(1)) && ack.state != CaState::Open {
            return; // samples right after fast recovery are inflated
        }
        let rtt = rtt.max(Duration::from_micros(1));
        if self.delay_min.is_none_or(|d| rtt < d) {
            self.delay_min = Some(rtt);
        }
        if !self.found && w.in_slow_start() && w.cwnd >= HYSTART_LOW_WINDOW {
            self.hystart_update(w, ack, rtt);
        }
    }

    /// Begins a round.
    pub fn hystart_reset(&mut self, now: Instant, snd_nxt: SeqNum) {
        self.round_start = now;
        self.last_ack = now;
        self.end_seq = snd_nxt;
        self.curr_rtt = None;
        self.sample_cnt = 0;
    }

    fn hystart_update(&mut self, w: &mut Cwnd, ack: &AckView, rtt: Duration) {
        if ack.snd_una.after(self.end_seq) {
            self.hystart_reset(ack.now, ack.snd_nxt);
        }
        let Some(delay_min) = self.delay_min else { return };
        // ACK train: the ACKs of one round span half the path's delay.
        if ack.now.since(self.last_ack) <= HYSTART_ACK_DELTA {
            self.last_ack = ack.now;
            if ack.now.since(self.round_start) > delay_min / 2 {
                self.found = true;
            }
        }
        // Delay: the round's least RTT has risen.
        let curr = self.curr_rtt.map_or(rtt, |c| c.min(rtt));
        self.curr_rtt = Some(curr);
        if self.sample_cnt < HYSTART_MIN_SAMPLES {
            self.sample_cnt += 1;
        } else if curr > delay_min + (delay_min / 8).clamp(HYSTART_DELAY_MIN, HYSTART_DELAY_MAX) {
            self.found = true;
        }
        if self.found {
            w.ssthresh = w.cwnd;
        }
    }

    /// Idle time is not growth: the epoch moves along (RFC 9438 §5.8).
    pub fn tx_start(&mut self, idle_since: Instant, now: Instant) {
        if let Some(e) = &mut self.epoch_start {
            let moved = *e + now.since(idle_since);
            *e = moved.min(now);
        }
    }
}

/// K = ∛((W_max − cwnd)/C), milliseconds (RFC 9438 §4.2).
fn cubic_k(below_max: u32) -> u64 {
    cube_root(u64::from(below_max) * 2_500_000_000)
}

/// W_cubic after `t` milliseconds, segments.
fn w_cubic(t: u64, k: u64, origin: u32) -> u32 {
    let d = t.abs_diff(k).min(1 << 20);
    let delta = u32::try_from(d * d * d / 2_500_000_000).unwrap_or(u32::MAX);
    if t < k { origin.saturating_sub(delta) } else { origin.saturating_add(delta) }
}

fn cube_root(a: u64) -> u64 {
    let mut x = 0u64;
    for bit in (0..=21).rev() {
        let y = x | 1 << bit;
        if y.checked_mul(y).and_then(|s| s.checked_mul(y)).is_some_and(|c| c <= a) {
            x = y;
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(now_ms: u64, acked: u32) -> AckView {
        AckView {
            now: Instant(now_ms * 1_000_000),
            acked,
            rtt: Some(Duration::from_millis(100)),
            snd_una: SeqNum(0),
            snd_nxt: SeqNum(0),
            state: CaState::Open,
        }
    }

    #[test]
    fn cube_root_is_the_floor() {
        for (a, r) in [(0, 0), (1, 1), (7, 1), (8, 2), (999_999_999, 999), (1_000_000_000, 1000), (1 << 60, 1 << 20)] {
            assert_eq!(cube_root(a), r);
        }
    }

    #[test]
    fn k_and_w_follow_the_rfc_formulas() {
        for w_max in [20u32, 100, 1000, 40_000] {
            let cwnd = (f64::from(w_max) * 0.7) as u32;
            let k = (f64::from(w_max - cwnd) / 0.4).cbrt();
            assert!((cubic_k(w_max - cwnd) as f64 / 1000.0 - k).abs() < 0.002);
            for t in [0.0, k / 2.0, k, 1.5 * k] {
                let w = 0.4 * (t - k).powi(3) + f64::from(w_max);
                let got = w_cubic((t * 1000.0) as u64, cubic_k(w_max - cwnd), w_max);
                assert!((f64::from(got) - w).abs() <= 2.0 + w * 0.001, "w_max {w_max}, t {t}: {got} for {w}");
            }
        }
    }

    #[test]
    fn loss_multiplies_by_beta_and_fast_convergence_lowers_the_plateau() {
        let mut c = Cubic::default();
        assert_eq!(c.recalc_ssthresh(&Cwnd { cwnd: 1000, ..Cwnd::default() }), 700);
        assert_eq!(c.last_max_cwnd, 1000);
        c.recalc_ssthresh(&Cwnd { cwnd: 800, ..Cwnd::default() });
        assert_eq!(c.last_max_cwnd, 680);
        assert_eq!(c.recalc_ssthresh(&Cwnd { cwnd: 2, ..Cwnd::default() }), 2);
    }

    #[test]
    fn window_returns_to_w_max_at_time_k() {
        let mut c = Cubic::default();
        let mut w = Cwnd { cwnd: 1000, ..Cwnd::default() };
        w.ssthresh = c.recalc_ssthresh(&w);
        w.cwnd = w.ssthresh;
        let k = cubic_k(300);
        let mut at = 0;
        while at < k {
            let acked = w.cwnd / 100;
            c.cong_avoid(&mut w, &ack(at, acked));
            at += 1;
        }
        assert!((970..=1005).contains(&w.cwnd), "{} after K", w.cwnd);
    }

    #[test]
    fn short_rtt_is_reno_friendly() {
        // RTT 1 ms: Reno with β = 0.7 would add 0.53 segments a window.
        let mut c = Cubic::default();
        let mut w = Cwnd { cwnd: 20, ..Cwnd::default() };
        w.ssthresh = c.recalc_ssthresh(&w);
        w.cwnd = w.ssthresh;
        for ms in 0..1000 {
            for _ in 0..w.cwnd {
                c.cong_avoid(&mut w, &ack(ms, 1));
            }
        }
        assert!(w.cwnd > 300, "{} after 1000 windows", w.cwnd);
    }

    #[test]
    fn hystart_leaves_slow_start_when_delay_rises() {
        let mut c = Cubic::default();
        let mut w = Cwnd { cwnd: 64, ..Cwnd::default() };
        let mut a = ack(0, 1);
        a.rtt = Some(Duration::from_millis(40));
        c.acked(&mut w, &a);
        for i in 1..20u64 {
            a.now = Instant(i * 10_000_000);
            a.rtt = Some(Duration::from_millis(50));
            (a.snd_una, a.snd_nxt) = (SeqNum(1), SeqNum(1000));
            c.acked(&mut w, &a);
        }
        assert_eq!(w.ssthresh, 64);
    }
}
