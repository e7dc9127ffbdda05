//! Congestion control (Linux `tcp_congestion_ops`).
//!
//! [`Cwnd`] is what every algorithm works on; [`Cong`] is the algorithm with its
//! private state. An algorithm is a file and a variant: it decides the slow-start
//! threshold on loss, grows the window on ACKs, and may watch RTT samples. One
//! that computes rates (BBR) finds [`super::rate::RateSample`]s in `cong_control`.

pub mod cubic;
pub mod reno;

use super::seq::SeqNum;
use crate::time::Instant;
use core::time::Duration;
use cubic::Cubic;

/// Initial window, segments (RFC 6928).
pub const TCP_INIT_CWND: u32 = 10;
/// "No threshold yet".
pub const TCP_INFINITE_SSTHRESH: u32 = 0x7fff_ffff;

/// Congestion window, in segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cwnd {
    /// `snd_cwnd`.
    pub cwnd: u32,
    /// `snd_ssthresh`.
    pub ssthresh: u32,
    /// Acknowledged segments not yet turned into growth (`snd_cwnd_cnt`).
    pub cnt: u32,
    /// Upper bound (`snd_cwnd_clamp`).
    pub clamp: u32,
    /// Window before the last reduction, for undo.
    pub prior_cwnd: u32,
    /// Most segments in flight in the current window of data (`max_packets_out`).
    pub max_packets_out: u32,
    /// The window limited sending during the current window of data.
    pub is_cwnd_limited: bool,
    /// End of the window of data that the two above describe.
    pub usage_seq: SeqNum,
    /// When the window was last fully used or reduced (`snd_cwnd_stamp`).
    pub stamp: Instant,
}

impl Default for Cwnd {
    fn default() -> Self {
        Self {
            cwnd: TCP_INIT_CWND,
            ssthresh: TCP_INFINITE_SSTHRESH,
            cnt: 0,
            clamp: u32::MAX,
            prior_cwnd: 0,
            max_packets_out: 0,
            is_cwnd_limited: false,
            usage_seq: SeqNum(0),
            stamp: Instant(0),
        }
    }
}

impl Cwnd {
    /// Below the threshold (RFC 5681 §3.1).
    pub fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// True if growth is justified: the window was used (RFC 7661; Linux `tcp_is_cwnd_limited`).
    pub fn is_limited(&self) -> bool {
        self.is_cwnd_limited || (self.in_slow_start() && self.cwnd < 2 * self.max_packets_out)
    }

    /// Grows by `acked` segments up to the threshold; returns those left over (Linux `tcp_slow_start`).
    pub fn slow_start(&mut self, acked: u32) -> u32 {
        let cwnd = self.cwnd.saturating_add(acked).min(self.ssthresh);
        let left = acked - (cwnd - self.cwnd);
        self.cwnd = cwnd.min(self.clamp);
        left
    }

    /// Grows by one segment for every `w` acknowledged (Linux `tcp_cong_avoid_ai`).
    pub fn cong_avoid_ai(&mut self, w: u32, acked: u32) {
        let w = w.max(1);
        if self.cnt >= w {
            self.cnt = 0;
            self.cwnd += 1;
        }
        self.cnt += acked;
        if self.cnt >= w {
            let grow = self.cnt / w;
            self.cnt -= grow * w;
            self.cwnd += grow;
        }
        self.cwnd = self.cwnd.min(self.clamp);
    }
}

/// Linux `enum tcp_ca_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum CaState {
    /// Nothing is wrong.
    #[default]
    Open,
    /// Duplicate ACKs or SACKs: look before acting.
    Disorder,
    /// The window was reduced for congestion notification or local congestion.
    Cwr,
    /// Fast retransmit.
    Recovery,
    /// Retransmission timeout.
    Loss,
}

/// What an algorithm may look at on an ACK.
#[derive(Debug, Clone, Copy)]
pub struct AckView {
    /// Now.
    pub now: Instant,
    /// Segments newly acknowledged.
    pub acked: u32,
    /// RTT sample, if the ACK gave one.
    pub rtt: Option<Duration>,
    /// After the ACK.
    pub snd_una: SeqNum,
    /// Next to be sent.
    pub snd_nxt: SeqNum,
    /// State of the connection.
    pub state: CaState,
}

/// An algorithm and its state.
#[derive(Debug, Clone)]
pub enum Cong {
    /// RFC 5681.
    Reno,
    /// RFC 9438.
    Cubic(Cubic),
}

impl Default for Cong {
    fn default() -> Self {
        Cong::Cubic(Cubic::default())
    }
}

impl Cong {
    /// Names as `net.ipv4.tcp_available_congestion_control` lists them.
    pub const AVAILABLE: [&'static str; 2] = ["reno", "cubic"];

    /// By name; `None`: no such algorithm.
    pub fn by_name(name: &[u8]) -> Option<Self> {
        match name {
            b"reno" => Some(Cong::Reno),
            b"cubic" => Some(Cong::Cubic(Cubic::default())),
            _ => None,
        }
    }

    /// `TCP_CONGESTION`.
    pub fn name(&self) -> &'static str {
        match self {
            Cong::Reno => "reno",
            Cong::Cubic(_) => "cubic",
        }
    }

    /// Slow-start threshold after a loss.
    pub fn ssthresh(&mut self, w: &Cwnd) -> u32 {
        match self {
            Cong::Reno => reno::ssthresh(w),
            Cong::Cubic(c) => c.recalc_ssthresh(w),
        }
    }

    /// Grows the window; called when it was in use and nothing is wrong.
    pub fn cong_avoid(&mut self, w: &mut Cwnd, ack: &AckView) {
        if !w.is_limited() {
            return;
        }
        match self {
            Cong::Reno => reno::cong_avoid(w, ack.acked),
            Cong::Cubic(c) => c.cong_avoid(w, ack),
        }
    }

    /// An ACK covered new data.
    pub fn pkts_acked(&mut self, w: &mut Cwnd, ack: &AckView) {
        if let Cong::Cubic(c) = self {
            c.acked(w, ack);
        }
    }

    /// The connection's state changes.
    pub fn set_state(&mut self, new: CaState, now: Instant, snd_nxt: SeqNum) {
        if let Cong::Cubic(c) = self
            && new == CaState::Loss
        {
            c.reset();
            c.hystart_reset(now, snd_nxt);
        }
    }

    /// Window after a reduction turned out to be wrong.
    pub fn undo_cwnd(&self, w: &Cwnd) -> u32 {
        w.cwnd.max(w.prior_cwnd)
    }

    /// First transmission after an idle period that ended at `idle_since`.
    pub fn tx_start(&mut self, idle_since: Instant, now: Instant) {
        if let Cong::Cubic(c) = self {
            c.tx_start(idle_since, now);
        }
    }
}
