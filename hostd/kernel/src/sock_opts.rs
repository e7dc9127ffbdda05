//! What `setsockopt` has set on a socket and what all protocols look at: `SOL_SOCKET`, `IPPROTO_IP`, and what
//! `IPPROTO_IPV6` adds for mapped addresses.

use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;

/// `SOL_SOCKET` options.
#[derive(Debug, Clone, Default)]
pub struct SockOpts {
    /// `SO_REUSEADDR`.
    pub reuseaddr: bool,
    /// `SO_REUSEPORT`.
    pub reuseport: bool,
    /// `SO_KEEPALIVE`.
    pub keepalive: bool,
    /// `SO_BROADCAST`.
    pub broadcast: bool,
    /// `SO_OOBINLINE`.
    pub oobinline: bool,
    /// `SO_LINGER`.
    pub linger: Option<Duration>,
    /// The time of `SO_LINGER` that was set last: it is shown even when switched off.
    pub lingertime: Duration,
    /// `SO_RCVTIMEO`; `None`: for ever.
    pub rcvtimeo: Option<Duration>,
    /// `SO_SNDTIMEO`; `None`: for ever.
    pub sndtimeo: Option<Duration>,
    /// `SO_RCVLOWAT`, octets, from 1 (0 means 1).
    pub rcvlowat: u32,
    /// `SO_PRIORITY`.
    pub priority: u32,
    /// `SO_MARK`.
    pub mark: u32,
    /// `SO_TIMESTAMP`.
    pub timestamp: bool,
    /// `SO_MAX_PACING_RATE`, octets a second; `None`: no bound.
    pub max_pacing_rate: Option<u32>,
    /// `SO_TIMESTAMPNS`.
    pub timestampns: bool,
    /// `SO_DONTROUTE`: only to who is on a link.
    pub dontroute: bool,
    /// `SO_NO_CHECK`: datagrams go without checksum.
    pub no_check: bool,
    /// `SO_RXQ_OVFL`: receivers are told how many packets were dropped.
    pub rxq_ovfl: bool,
    /// `SO_SELECT_ERR_QUEUE`: an error in the queue is urgent, too.
    pub select_err_queue: bool,
    /// `SO_PEEK_OFF`: where the next `MSG_PEEK` starts.
    pub peek_off: Option<u32>,
    /// `SO_LOCK_FILTER`.
    pub lock_filter: bool,
    /// `SO_INCOMING_CPU` as set.
    pub incoming_cpu: Option<i32>,
    /// Options that are kept for reading back: level, name, value.
    pub kept: Vec<(i32, i32, i32)>,
}

/// `IPPROTO_IP` options.
#[derive(Debug, Clone, Default)]
pub struct InetOpts {
    /// `IP_TOS`.
    pub tos: u8,
    /// `IP_TTL`; `None`: the default.
    pub ttl: Option<u8>,
    /// `IP_MULTICAST_TTL`; `None`: 1.
    pub mc_ttl: Option<u8>,
    /// `IP_MULTICAST_LOOP` off.
    pub mc_loop_off: bool,
    /// `IP_MULTICAST_IF`.
    pub mc_if: u32,
    /// `IP_MULTICAST_IF` as it is read back: the address given, if it was one.
    pub mc_addr: Option<Ipv4Addr>,
    /// Sources of groups that the socket filters.
    pub mc_sources: Vec<crate::vfs::mcast::SourceFilter>,
    /// `IP_ADD_MEMBERSHIP`: group and ifindex.
    pub mc_groups: Vec<(Ipv4Addr, u32)>,
    /// `IP_RECVERR`.
    pub recverr: bool,
    /// `IP_PKTINFO`.
    pub pktinfo: bool,
    /// `IP_RECVTTL`.
    pub recvttl: bool,
    /// `IP_RECVTOS`.
    pub recvtos: bool,
    /// `IP_MTU_DISCOVER` (0 don't, 1 want, 2 do, 3 probe).
    pub pmtudisc: u8,
    /// `IP_FREEBIND`.
    pub freebind: bool,
    /// `IP_MULTICAST_ALL` off: only groups that the socket itself joined.
    pub mc_all_off: bool,
    /// `IPV6_V6ONLY`, on `AF_INET6` sockets.
    pub v6only: bool,
    /// Bound to `::ffff:0.0.0.0`: shown as that, not as `::`.
    pub mapped_any: bool,
    /// `IP_TRANSPARENT`.
    pub transparent: bool,
    /// `IP_RECVORIGDSTADDR`.
    pub recvorigdst: bool,
    /// `IP_BIND_ADDRESS_NO_PORT`: `bind` to port 0 leaves the port to `connect`.
    pub bind_no_port: bool,
    /// `IP_MINTTL`: packets with a smaller TTL are dropped.
    pub min_ttl: u8,
    /// `IP_UNICAST_IF`.
    pub unicast_if: u32,
    /// `IPV6_RECVPKTINFO`.
    pub pktinfo6: bool,
    /// `IPV6_RECVERR`; errors of IPv4 packets ask for `IP_RECVERR`.
    pub recverr6: bool,
}
