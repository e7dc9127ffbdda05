//! `struct tcp_sock`: the state of one connection or listener.

use super::chrono::Chrono;
use super::cong::{CaState, Cong, Cwnd};
use super::header::TSTAMP_ALIGNED;
pub use super::parts::{AckState, Ecn, Listen, Prr, RcvTune, Rtt, RxOpt, Totals, Urg, UserTimers, WriteTimer};
use super::rack::Rack;
use super::rate::Rate;
use super::seq::SeqNum;
use super::state::State;
use super::sysctl::TcpSysctl;
use super::tsq::{Pacing, Tsq};
use crate::skb::SkBuff;
use crate::sock::{Proto, Sock, SockId};
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use arrayvec::ArrayVec;
use core::time::Duration;

/// Initial retransmission timeout (RFC 6298 §2.1).
pub const TCP_TIMEOUT_INIT: Duration = Duration::from_secs(1);
/// Least retransmission timeout.
pub const TCP_RTO_MIN: Duration = Duration::from_millis(200);
/// Largest retransmission timeout.
pub const TCP_RTO_MAX: Duration = Duration::from_secs(120);
/// Least delayed-ACK timeout.
pub const TCP_ATO_MIN: Duration = Duration::from_millis(40);
/// Largest delayed-ACK timeout.
pub const TCP_DELACK_MAX: Duration = Duration::from_millis(200);
/// `TIME_WAIT` lasts this long.
pub const TCP_TIMEWAIT_LEN: Duration = Duration::from_secs(60);
/// Quick ACKs at the start of a connection.
pub const TCP_MAX_QUICKACKS: u8 = 16;
/// MSS when the peer tells none.
pub const TCP_MSS_DEFAULT: u32 = 536;
/// Octets that a packet costs besides its data (`SKB_TRUESIZE(0)`).
pub const SKB_OVERHEAD: u32 = 768;
/// Share of receive memory that is payload at first, of 256.
pub const TCP_DEFAULT_SCALING_RATIO: u32 = 128;

/// `struct tcp_sock`.
#[derive(Debug)]
pub struct TcpSock {
    /// Connection state.
    pub state: State,

    // Send sequence space (RFC 9293 §3.3.1).
    /// First octet not acknowledged.
    pub snd_una: SeqNum,
    /// Next to be sent.
    pub snd_nxt: SeqNum,
    /// After the last octet queued.
    pub write_seq: SeqNum,
    /// Last octet that must be pushed.
    pub pushed_seq: SeqNum,
    /// Sequence number of the last window update.
    pub snd_wl1: SeqNum,
    /// End of the last small segment sent (Minshall).
    pub snd_sml: SeqNum,
    /// Urgent pointer to send; `None`: no urgent data.
    pub snd_up: Option<SeqNum>,
    /// Peer's window, octets.
    pub snd_wnd: u32,
    /// Largest window the peer ever offered.
    pub max_window: u32,

    // Receive sequence space.
    /// Next expected.
    pub rcv_nxt: SeqNum,
    /// First octet not read by the program.
    pub copied_seq: SeqNum,
    /// `rcv_nxt` when the last window was sent.
    pub rcv_wup: SeqNum,
    /// Window offered then.
    pub rcv_wnd: u32,
    /// Largest window to offer.
    pub window_clamp: u32,
    /// What is offered at most now.
    pub rcv_ssthresh: u32,
    /// Share of receive memory that is payload, of 256.
    pub scaling_ratio: u32,
    /// The urgent octet's number, unless `urg_data` is [`Urg::Absent`].
    pub urg_seq: SeqNum,
    /// How far the urgent octet has come.
    pub urg_data: Urg,

    // Segment sizes, octets of payload.
    /// Current MSS, options subtracted.
    pub mss_cache: u32,
    /// MSS to advertise.
    pub advmss: u32,
    /// Path MTU that `mss_cache` was computed from.
    pub pmtu_cookie: u32,
    /// Path MTU learned from ICMP.
    pub icmp_mtu: Option<u32>,

    // Queues.
    /// Not sent.
    pub write_queue: VecDeque<Box<SkBuff>>,
    /// Sent and not acknowledged.
    pub rtx_queue: VecDeque<Box<SkBuff>>,
    /// Received out of order, by sequence number, not overlapping.
    pub ofo_queue: VecDeque<Box<SkBuff>>,

    // Counts of the retransmission queue, segments.
    /// Sent and not acknowledged.
    pub packets_out: u32,
    /// Of those, SACKed.
    pub sacked_out: u32,
    /// Of those, thought lost.
    pub lost_out: u32,
    /// Retransmitted and not acknowledged.
    pub retrans_out: u32,

    /// Congestion window.
    pub cwnd: Cwnd,
    /// Algorithm.
    pub ca: Cong,
    /// Where loss recovery stands.
    pub ca_state: CaState,
    /// Recovery ends here.
    pub high_seq: SeqNum,
    /// `snd_una` when recovery began; `None`: nothing to undo.
    pub undo_marker: Option<SeqNum>,
    /// Retransmissions that a DSACK has not yet shown to be needless; negative: cannot tell.
    pub undo_retrans: i32,
    /// Proportional rate reduction.
    pub prr: Prr,
    /// Reordering degree, segments.
    pub reordering: u32,
    /// Timestamp of the first retransmission of this recovery (milliseconds); 0: none.
    pub retrans_stamp: u32,
    /// `snd_nxt` when a tail loss probe was sent.
    pub tlp_high_seq: Option<SeqNum>,
    /// The probe was a retransmission.
    pub tlp_retrans: bool,
    /// End of the highest segment that was SACKed.
    pub highest_sack: SeqNum,
    /// Threshold before the last reduction, for undo; 0: do not.
    pub prior_ssthresh: u32,
    /// Explicit congestion notification.
    pub ecn: Ecn,
    /// RACK.
    pub rack: Rack,
    /// Delivery rate.
    pub rate: Rate,
    /// How long it has been busy, and why not faster.
    pub(super) chrono: Chrono,
    /// How fast to send.
    pub pacing: Pacing,
    /// Whether the host's queues hold enough of this connection.
    pub tsq: Tsq,

    /// Round-trip time.
    pub rtt: Rtt,
    /// Retransmission timeout.
    pub rto: Duration,
    /// Doublings of it.
    pub backoff: u8,

    // Timers.
    /// What the write timer is for.
    pub pending: WriteTimer,
    /// When.
    pub timeout: Instant,
    /// Timeouts in a row.
    pub retransmits: u8,
    /// Window or keepalive probes without answer.
    pub probes_out: u8,
    /// When probing began.
    pub probes_tstamp: Option<Instant>,
    /// Delayed-ACK deadline.
    pub delack_at: Instant,
    /// Timers that came up while the socket was owned.
    pub deferred: Deferred,

    /// Last segment received.
    pub rcv_tstamp: Instant,
    /// Last data sent.
    pub lsndtime: Instant,
    /// Options in use.
    pub rx_opt: RxOpt,
    /// Added to the millisecond clock in timestamps.
    pub tsoffset: u32,
    /// Delayed ACKs.
    pub ack: AckState,
    /// SACK blocks to report, latest first.
    pub selective_acks: ArrayVec<(SeqNum, SeqNum), 4>,
    /// Duplicate range to report first (RFC 2883).
    pub duplicate_sack: Option<(SeqNum, SeqNum)>,
    /// Receive auto-tuning.
    pub rcvtune: RcvTune,
    /// Last answer to a segment out of the window.
    pub last_oow_ack: Option<Instant>,
    /// The header is predictable (`pred_flags`).
    pub fast_path: bool,

    /// Options of the program.
    pub opts: TcpOptions,
    /// Keepalive and other limits.
    pub user: UserTimers,

    /// A listener's queues.
    pub listen: Option<Box<Listen>>,
    /// The listener in whose accept queue it waits.
    pub parent: Option<SockId>,
    /// It holds `sport` among the bound ports (`inet_num`).
    pub owns_port: bool,
    /// Counted among the host's orphans.
    pub orphan: bool,
    /// The peer's FIN was taken (`SOCK_DONE`).
    pub fin_received: bool,
    /// Counters.
    pub total: Totals,
}

bitflags::bitflags! {
    /// Work put off until the owner releases the socket (`sk_tsq_flags`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Deferred: u8 {
        /// Write timer.
        const WRITE_TIMER = 1;
        /// Delayed ACK.
        const DELACK_TIMER = 2;
        /// The path MTU shrank.
        const MTU_REDUCED = 4;
        /// A completion or the pacing timer let output go on.
        const TSQ = 8;
    }
}

/// What a program has set by `setsockopt` and nothing else changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpOptions {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// `TCP_CORK`.
    pub cork: bool,
    /// `TCP_DEFER_ACCEPT`, SYN-ACK retransmissions.
    pub defer_accept: u8,
    /// `TCP_NOTSENT_LOWAT`; 0: the host's.
    pub notsent_lowat: u32,
    /// `TCP_FASTOPEN`: the queue's length; without servers' Fast Open (the default) it stays empty.
    pub fastopen_qlen: i32,
    /// `TCP_THIN_LINEAR_TIMEOUTS`.
    pub thin_lto: bool,
}

impl Default for TcpSock {
    fn default() -> Self {
        Self::new(&TcpSysctl::default())
    }
}

impl TcpSock {
    /// A closed socket (Linux `tcp_init_sock`).
    pub fn new(sysctl: &TcpSysctl) -> Self {
        Self {
            state: State::Close,
            snd_una: SeqNum(0),
            snd_nxt: SeqNum(0),
            write_seq: SeqNum(0),
            pushed_seq: SeqNum(0),
            snd_wl1: SeqNum(0),
            snd_sml: SeqNum(0),
            snd_up: None,
            snd_wnd: 0,
            max_window: 0,
            rcv_nxt: SeqNum(0),
            copied_seq: SeqNum(0),
            rcv_wup: SeqNum(0),
            rcv_wnd: 0,
            window_clamp: 0,
            rcv_ssthresh: 0,
            scaling_ratio: TCP_DEFAULT_SCALING_RATIO,
            urg_seq: SeqNum(0),
            urg_data: Urg::Absent,
            mss_cache: TCP_MSS_DEFAULT,
            advmss: TCP_MSS_DEFAULT,
            pmtu_cookie: 0,
            icmp_mtu: None,
            write_queue: VecDeque::new(),
            rtx_queue: VecDeque::new(),
            ofo_queue: VecDeque::new(),
            packets_out: 0,
            sacked_out: 0,
            lost_out: 0,
            retrans_out: 0,
            cwnd: Cwnd::default(),
            ca: Cong::by_name(sysctl.congestion_control.as_bytes()).unwrap_or_default(),
            ca_state: CaState::Open,
            high_seq: SeqNum(0),
            undo_marker: None,
            undo_retrans: -1,
            prr: Prr::default(),
            reordering: sysctl.reordering,
            retrans_stamp: 0,
            tlp_high_seq: None,
            tlp_retrans: false,
            highest_sack: SeqNum(0),
            prior_ssthresh: 0,
            ecn: Ecn::default(),
            rack: Rack::default(),
            rate: Rate { last_app_limited: true, ..Rate::default() },
            chrono: Chrono::default(),
            pacing: Pacing::default(),
            tsq: Tsq::default(),
            rtt: Rtt::default(),
            rto: TCP_TIMEOUT_INIT,
            backoff: 0,
            pending: WriteTimer::Idle,
            timeout: Instant(0),
            retransmits: 0,
            probes_out: 0,
            probes_tstamp: None,
            delack_at: Instant(0),
            deferred: Deferred::empty(),
            rcv_tstamp: Instant(0),
            lsndtime: Instant(0),
            rx_opt: RxOpt::default(),
            tsoffset: 0,
            ack: AckState { rcv_mss: TCP_MSS_DEFAULT, ..AckState::default() },
            selective_acks: ArrayVec::new(),
            duplicate_sack: None,
            rcvtune: RcvTune::default(),
            last_oow_ack: None,
            fast_path: false,
            opts: TcpOptions::default(),
            user: UserTimers::default(),
            listen: None,
            parent: None,
            owns_port: false,
            orphan: false,
            fin_received: false,
            total: Totals::default(),
        }
    }

    /// Octets of TCP header of a data segment (`tcp_header_len`).
    pub fn header_len(&self) -> u32 {
        20 + if self.rx_opt.tstamp_ok { TSTAMP_ALIGNED } else { 0 }
    }

    /// Segments in the network (Linux `tcp_packets_in_flight`).
    pub fn in_flight(&self) -> u32 {
        (self.packets_out + self.retrans_out).saturating_sub(self.left_out())
    }

    /// Segments that left the network: SACKed or lost.
    pub fn left_out(&self) -> u32 {
        self.sacked_out + self.lost_out
    }

    /// First octet beyond the peer's window.
    pub fn wnd_end(&self) -> SeqNum {
        self.snd_una + self.snd_wnd
    }

    /// Where the urgent octet is or was, until the program has read past it.
    pub fn urg_mark(&self) -> Option<SeqNum> {
        (self.urg_data != Urg::Absent).then_some(self.urg_seq)
    }

    /// What is left of the window last offered (Linux `tcp_receive_window`).
    pub fn receive_window(&self) -> u32 {
        let win = (self.rcv_wup + self.rcv_wnd).distance(self.rcv_nxt);
        win.max(0) as u32
    }

    /// The millisecond clock of timestamps, without offset (`tcp_time_stamp_ms`).
    pub fn clock_ms(now: Instant) -> u32 {
        now.millis() as u32
    }

    /// Smoothed RTT; `None`: no sample.
    pub fn srtt(&self) -> Option<Duration> {
        (self.rtt.srtt_us > 0).then(|| Duration::from_micros(u64::from(self.rtt.srtt_us >> 3)))
    }

    /// Nothing queued, sent or not.
    pub fn write_queues_empty(&self) -> bool {
        self.write_queue.is_empty() && self.rtx_queue.is_empty()
    }

    /// Payload octets that `space` octets of receive memory hold (Linux `tcp_win_from_space`).
    pub fn win_from_space(&self, space: u32) -> u32 {
        ((u64::from(space) * u64::from(self.scaling_ratio)) >> 8) as u32
    }

    /// Receive memory that `win` octets of payload need (Linux `tcp_space_from_win`).
    pub fn space_from_win(&self, win: u32) -> u32 {
        u32::try_from((u64::from(win) << 8) / u64::from(self.scaling_ratio.max(1))).unwrap_or(u32::MAX)
    }
}

/// The TCP part of a socket, with the rest of the socket still free to borrow.
macro_rules! tp {
    ($sk:expr) => {
        match &mut $sk.proto {
            $crate::sock::Proto::Tcp(tp) => &mut **tp,
            _ => unreachable!("TCP works on TCP sockets"),
        }
    };
}
pub(crate) use tp;

impl Sock {
    /// The TCP part.
    ///
    /// # Panics
    /// If it is no TCP socket.
    pub(crate) fn tp(&self) -> &TcpSock {
        match &self.proto {
            Proto::Tcp(tp) => tp,
            _ => unreachable!("TCP works on TCP sockets"),
        }
    }

    /// As [`Self::tp`], to change it. Where other fields of the socket are needed
    /// at the same time, match `proto` instead.
    pub(crate) fn tp_mut(&mut self) -> &mut TcpSock {
        tp!(self)
    }

    /// The local port that it holds, 0 if none (`inet_num`). A TCP socket that gave its port back still
    /// shows it as `sport`, and may be bound again.
    pub(crate) fn inet_num(&self) -> u16 {
        match &self.proto {
            Proto::Tcp(tp) if !tp.owns_port => 0,
            _ => self.sport,
        }
    }

    /// Free receive memory as window, octets; negative memory is none (Linux `tcp_space`).
    pub(crate) fn tcp_space(&self) -> u32 {
        let used = self.rmem_alloc.saturating_add(self.backlog_len);
        self.tp().win_from_space(self.rcvbuf.saturating_sub(used))
    }

    /// All receive memory as window (Linux `tcp_full_space`).
    pub(crate) fn tcp_full_space(&self) -> u32 {
        self.tp().win_from_space(self.rcvbuf)
    }

    /// Room for another packet (Linux `sk_stream_memory_free`).
    pub(crate) fn tcp_memory_free(&self, notsent_lowat: u32) -> bool {
        self.wmem_queued < self.sndbuf && self.tcp_notsent_below(notsent_lowat)
    }

    /// Unsent octets are below the limit (Linux `tcp_stream_memory_free`).
    fn tcp_notsent_below(&self, lowat: u32) -> bool {
        let tp = self.tp();
        let lowat = if tp.opts.notsent_lowat != 0 { tp.opts.notsent_lowat } else { lowat };
        tp.write_seq - tp.snd_nxt < lowat
    }

    /// `POLLOUT` (Linux `sk_stream_is_writeable`): a third of the buffer is free.
    pub(crate) fn tcp_writeable(&self, notsent_lowat: u32) -> bool {
        self.sndbuf.saturating_sub(self.wmem_queued) >= self.wmem_queued / 2
            && self.wmem_queued < self.sndbuf
            && self.tcp_notsent_below(notsent_lowat)
    }
}
