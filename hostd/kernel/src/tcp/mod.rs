//! TCP (RFC 9293), behaving as Linux does.
//!
//! A segment comes in by `tcp_v4_rcv` ([`input`]), finds its socket in the tables
//! ([`hash`]) and runs through the steps of RFC 9293 §3.10.7. Data go out by
//! `tcp_sendmsg` (`sendmsg`) into the write queue, and from there as congestion
//! window ([`cong`]), peer's window and Nagle allow ([`output`]). What is sent stays
//! in the retransmission queue; [`sack`] marks it, [`rack`] finds what is lost,
//! `recovery` decides, `timer` is the last resort.
//!
//! Connections that are not yet or no longer worth a socket are minisockets
//! ([`minisock`]): SYN_RECV and TIME_WAIT. A listener's SYN queue is a set of them, its
//! accept queue holds established sockets; under a flood of SYNs `syncookies` take over.
//!
//! Working rules. A function takes the socket (`&mut Sock`, out of the table) and the
//! kernel; `tp!(sk)` is its TCP part. Segments for a socket that a process owns
//! wait in its backlog. A socket that its program has closed and whose state is CLOSE is freed by
//! whoever took it out, with `Kernel::tcp_put`.
//!
//! Limits: no Fast Open, no MPTCP, no MD5/AO, no urgent data beyond one octet, no F-RTO,
//! no BBR yet (a variant of [`cong::Cong`], fed by [`rate`], that sets [`Pacing`]); ECN is
//! accepted when asked, our data are not sent as ECN-capable.

mod audit;
mod bucket;
mod chrono;
mod close;
pub mod cong;
pub mod hash;
pub mod header;
mod icmp;
pub mod input;
pub mod minisock;
pub mod output;
mod parts;
pub mod rack;
pub mod rate;
mod recovery;
mod recvmsg;
pub mod sack;
pub mod secure;
mod sendmsg;
pub mod seq;
pub mod sock;
pub mod sockopt;
pub mod state;
mod syncookies;
pub mod sysctl;
mod timer;
mod tsq;

pub use hash::TcpTable;
pub use sock::TcpSock;
pub use state::State;
pub use tsq::{Pacing, Tsq};

/// What `ss -ti` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TcpInfo {
    /// State.
    pub state: State,
    /// Congestion window, segments.
    pub cwnd: u32,
    /// Slow-start threshold, segments.
    pub ssthresh: u32,
    /// Smoothed RTT, microseconds.
    pub srtt_us: u32,
    /// Retransmission timeout, microseconds.
    pub rto_us: u32,
    /// Segments retransmitted in all.
    pub total_retrans: u32,
    /// Send MSS.
    pub mss: u32,
}
