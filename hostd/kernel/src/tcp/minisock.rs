//! Minisockets: connections that are not yet (SYN_RECV) or no longer (TIME_WAIT)
//! worth a socket (Linux `request_sock`, `inet_timewait_sock`).

use super::hash::Hold;
use super::secure::Tuple;
use super::seq::SeqNum;
use super::state::State;
use crate::sock::SockId;
use crate::time::Instant;
use core::net::Ipv4Addr;
use core::time::Duration;

/// Either kind.
#[derive(Debug)]
pub enum Mini {
    /// SYN_RECV.
    Request(RequestSock),
    /// TIME_WAIT, or FIN_WAIT2 without a program.
    Timewait(TimewaitSock),
}

impl Mini {
    /// The connection's addresses.
    pub fn tuple(&self) -> &Tuple {
        match self {
            Mini::Request(r) => &r.tuple,
            Mini::Timewait(tw) => &tw.tuple,
        }
    }
}

/// A connection that a SYN asked for (`tcp_request_sock`).
#[derive(Debug, Clone)]
pub struct RequestSock {
    /// Whose connection it will be.
    pub listener: SockId,
    /// Addresses.
    pub tuple: Tuple,
    /// Device of the SYN.
    pub dev: u32,
    /// Peer's initial sequence number.
    pub rcv_isn: SeqNum,
    /// Ours.
    pub snt_isn: SeqNum,
    /// Peer's MSS, clamped.
    pub mss: u16,
    /// Shift of the peer's window, if scaling was offered and is used.
    pub snd_wscale: Option<u8>,
    /// Shift of ours.
    pub rcv_wscale: u8,
    /// Timestamps are used.
    pub tstamp_ok: bool,
    /// SACK is used.
    pub sack_ok: bool,
    /// ECN is used.
    pub ecn_ok: bool,
    /// Peer's timestamp.
    pub ts_recent: u32,
    /// Offset of our timestamps.
    pub ts_off: u32,
    /// Window offered in the SYN-ACK.
    pub rcv_wnd: u32,
    /// Largest window.
    pub window_clamp: u32,
    /// SYN-ACKs sent again by timeout.
    pub num_timeout: u8,
    /// SYN-ACKs sent again in all.
    pub num_retrans: u8,
    /// The ACK came, but the accept queue was full or data is awaited.
    pub acked: bool,
    /// When the first SYN-ACK went out.
    pub synack_at: Instant,
    /// Last answer to a segment out of the window.
    pub last_oow_ack: Option<Instant>,
    /// Flow hash of what is sent.
    pub txhash: u32,
    /// It never stood in the table: made from a cookie.
    pub from_cookie: bool,
}

impl RequestSock {
    /// Time until SYN-ACK number `num_timeout` + 2.
    pub fn timeout(&self) -> Duration {
        (super::sock::TCP_TIMEOUT_INIT * (1u32 << self.num_timeout.min(16))).min(super::sock::TCP_RTO_MAX)
    }
}

/// A closed connection whose segments may still be under way (`tcp_timewait_sock`).
#[derive(Debug, Clone)]
pub struct TimewaitSock {
    /// Addresses.
    pub tuple: Tuple,
    /// `TimeWait`, or `FinWait2` while the peer's FIN is awaited.
    pub substate: State,
    /// Address that the port was bound to.
    pub rcv_saddr: Ipv4Addr,
    /// Device that it was bound to.
    pub bound_dev_if: u32,
    /// `SO_REUSEADDR` of the socket.
    pub reuseaddr: bool,
    /// `SO_REUSEPORT` of the socket.
    pub reuseport: bool,
    /// How the socket came by its port.
    pub hold: Hold,
    /// Next expected.
    pub rcv_nxt: SeqNum,
    /// Next to be sent.
    pub snd_nxt: SeqNum,
    /// Window last offered.
    pub rcv_wnd: u32,
    /// Shift of our window.
    pub rcv_wscale: u8,
    /// `TS.Recent`.
    pub ts_recent: u32,
    /// When it was taken; `None`: no timestamps.
    pub ts_recent_stamp: Option<Instant>,
    /// Offset of our timestamps.
    pub ts_off: u32,
    /// Last answer to a segment out of the window.
    pub last_oow_ack: Option<Instant>,
    /// Type of service of what is sent.
    pub tos: u8,
    /// Time to live of what is sent.
    pub ttl: Option<u8>,
    /// How long it lasts, from the last FIN.
    pub timeout: Duration,
    /// Flow hash.
    pub txhash: u32,
}
