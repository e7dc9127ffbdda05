//! The parts of `struct tcp_sock` that stand for themselves.

use super::seq::SeqNum;
use super::sock::TCP_TIMEOUT_INIT;
use crate::sock::SockId;
use crate::time::Instant;
use alloc::collections::{BTreeSet, VecDeque};
use core::time::Duration;

/// What the write timer waits for (`icsk_pending`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WriteTimer {
    /// Nothing.
    #[default]
    Idle,
    /// Retransmission.
    Retrans,
    /// Zero-window probe.
    Probe0,
    /// Tail loss probe.
    LossProbe,
    /// RACK's reordering window.
    ReoTimeout,
}

/// Negotiated and received options (`tcp_options_received`).
#[derive(Debug, Clone, Copy, Default)]
pub struct RxOpt {
    /// Timestamps were negotiated.
    pub tstamp_ok: bool,
    /// SACK was negotiated.
    pub sack_ok: bool,
    /// Window scaling was negotiated.
    pub wscale_ok: bool,
    /// Shift of the peer's window.
    pub snd_wscale: u8,
    /// Shift of ours.
    pub rcv_wscale: u8,
    /// `TCP_MAXSEG` (0: none).
    pub user_mss: u16,
    /// Least of the peer's MSS and `user_mss`.
    pub mss_clamp: u16,
    /// `TS.Recent`.
    pub ts_recent: u32,
    /// When it was taken.
    pub ts_recent_stamp: Option<Instant>,
    /// Timestamp of the segment in hand.
    pub rcv_tsval: u32,
    /// Echo of the segment in hand.
    pub rcv_tsecr: u32,
    /// The segment in hand has timestamps.
    pub saw_tstamp: bool,
}

/// Round-trip time, microseconds (RFC 6298 with Linux's mean deviation).
#[derive(Debug, Clone, Copy)]
pub struct Rtt {
    /// Smoothed RTT × 8; 0: not measured.
    pub srtt_us: u32,
    /// Mean deviation × 4.
    pub mdev_us: u32,
    /// Largest deviation of this RTT.
    pub mdev_max_us: u32,
    /// Smoothed largest deviation.
    pub rttvar_us: u32,
    /// End of the RTT that `mdev_max_us` describes.
    pub rtt_seq: SeqNum,
    /// Least RTT seen; `u32::MAX`: none.
    pub min_rtt_us: u32,
}

impl Default for Rtt {
    fn default() -> Self {
        let mdev_us = TCP_TIMEOUT_INIT.as_micros() as u32;
        Self { srtt_us: 0, mdev_us, mdev_max_us: 0, rttvar_us: 0, rtt_seq: SeqNum(0), min_rtt_us: u32::MAX }
    }
}

/// Proportional rate reduction (RFC 6937), segments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prr {
    /// Delivered during recovery.
    pub delivered: u32,
    /// Sent during recovery.
    pub out: u32,
}

/// Explicit congestion notification (RFC 3168).
#[derive(Debug, Clone, Copy, Default)]
pub struct Ecn {
    /// It was negotiated.
    pub ok: bool,
    /// ECE goes out on ACKs.
    pub demand_cwr: bool,
    /// CWR goes out with the next new data.
    pub queue_cwr: bool,
}

/// Delayed ACKs (`inet_connection_sock.icsk_ack`).
#[derive(Debug, Clone, Copy, Default)]
pub struct AckState {
    /// An ACK is owed (`ICSK_ACK_SCHED`).
    pub scheduled: bool,
    /// The delayed-ACK timer runs (`ICSK_ACK_TIMER`).
    pub timer: bool,
    /// Data arrived with PSH since (`ICSK_ACK_PUSHED`).
    pub pushed: bool,
    /// Twice (`ICSK_ACK_PUSHED2`).
    pub pushed2: bool,
    /// An ACK must go at once (`ICSK_ACK_NOW`).
    pub now: bool,
    /// Quick ACKs left.
    pub quick: u8,
    /// Data flows both ways: delay ACKs to piggyback.
    pub pingpong: bool,
    /// `TCP_QUICKACK` was set: never delay.
    pub quickack_locked: bool,
    /// Adaptive timeout; zero: not yet known.
    pub ato: Duration,
    /// Last data segment received.
    pub lrcvtime: Instant,
    /// Size of the last segment, for the estimate of the peer's MSS.
    pub last_seg_size: u32,
    /// Estimate of the peer's MSS.
    pub rcv_mss: u32,
}

impl AckState {
    /// Forgets what was owed: an ACK goes out.
    pub fn sent(&mut self) {
        self.scheduled = false;
        self.timer = false;
        self.pushed = false;
        self.pushed2 = false;
        self.now = false;
    }
}

/// How far the urgent octet has come (`urg_data`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Urg {
    /// There is none, or the program has read past it.
    #[default]
    Absent,
    /// Announced by an urgent pointer (`TCP_URG_NOTYET`).
    NotYet,
    /// Here (`TCP_URG_VALID`).
    Valid(u8),
    /// Read out of band (`TCP_URG_READ`).
    Read,
}

/// Keepalive and time limits that the program may set.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserTimers {
    /// `TCP_KEEPIDLE`.
    pub keepidle: Option<Duration>,
    /// `TCP_KEEPINTVL`.
    pub keepintvl: Option<Duration>,
    /// `TCP_KEEPCNT`.
    pub keepcnt: Option<u8>,
    /// `TCP_USER_TIMEOUT`; `None`: by retries.
    pub user_timeout: Option<Duration>,
    /// `TCP_SYNCNT`.
    pub syn_retries: Option<u8>,
    /// `TCP_LINGER2`: `Some(None)` is a negative value (no FIN_WAIT2).
    pub linger2: Option<Option<Duration>>,
}

/// A listener's queues (`request_sock_queue`).
#[derive(Debug, Default)]
pub struct Listen {
    /// `sk_max_ack_backlog`.
    pub max_backlog: u32,
    /// Established, not accepted, in order.
    pub accept_queue: VecDeque<SockId>,
    /// Minisockets in SYN_RECV.
    pub requests: BTreeSet<u64>,
    /// When a SYN last found the queue full: cookies may come back (`tcp_synq_overflow`).
    pub overflow_at: Option<Instant>,
}

/// State of receive-buffer auto-tuning (DRS).
#[derive(Debug, Clone, Copy, Default)]
pub struct RcvTune {
    /// RTT as a receiver sees it, microseconds × 8.
    pub rtt_us: u64,
    /// The window measured ends here.
    pub rtt_seq: SeqNum,
    /// It began then.
    pub rtt_time: Instant,
    /// Last timestamp echo that gave a sample.
    pub last_tsecr: u32,
    /// Octets the program took in the last round.
    pub space: u32,
    /// Start of this round.
    pub seq: SeqNum,
    /// When.
    pub time: Instant,
}

/// Counters of one connection, for `TCP_INFO`.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the fields are named as in `tcp_info`, but for `copies`")]
pub struct Totals {
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub segs_in: u32,
    pub segs_out: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    pub total_retrans: u32,
    pub dsack_dups: u32,
    pub reord_seen: u32,
    pub copies: super::tsq::Copies,
}
