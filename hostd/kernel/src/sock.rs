//! `struct sock` and `struct socket`: what all protocols share.
//!
//! Sockets live in one table ([`Socks`]) by number. An operation takes the
//! socket out ([`Socks::take`]), works on it together with the kernel, and puts
//! it back: so `&mut Kernel` and `&mut Sock` exist at once without a lock. Nothing
//! may look a socket up while it is out; softirqs therefore run only when none
//! is. `owned` is Linux's `sk_lock.owned`: a process is in a system call on the
//! socket, possibly between two chunks of it, and segments go to the backlog.

use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::ip::route::Route;
use crate::skb::SkBuff;
use crate::tcp::TcpSock;
use crate::udp::UdpSock;
use crate::wait::queue::WaitQueue;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;

/// Number of a socket; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SockId(pub u32);

/// Family and type of a socket's protocol.
#[derive(Debug)]
pub enum Proto {
    /// `SOCK_STREAM`/`IPPROTO_TCP`, listeners too.
    Tcp(Box<TcpSock>),
    /// `SOCK_DGRAM`/`IPPROTO_UDP`.
    Udp(UdpSock),
    /// `SOCK_DGRAM`/`IPPROTO_ICMP`: echo by an ordinary user.
    Ping,
    /// `SOCK_RAW` of a protocol number.
    Raw {
        /// IP protocol; `IPPROTO_RAW` (255) only sends.
        protocol: u8,
        /// `IP_HDRINCL`.
        hdrincl: bool,
        /// `ICMP_FILTER`: bit set, type not delivered.
        icmp_filter: u32,
    },
}

/// `sk_shutdown`.
pub const RCV_SHUTDOWN: u8 = 1;
/// `sk_shutdown`.
pub const SEND_SHUTDOWN: u8 = 2;

/// A socket.
#[derive(Debug)]
pub struct Sock {
    /// Its number.
    pub id: SockId,
    /// The address family that the program asked for (2: `AF_INET`, 10: `AF_INET6` carrying mapped addresses).
    pub family: u16,
    /// Protocol part.
    pub proto: Proto,
    /// Local address; unspecified: any.
    pub saddr: Ipv4Addr,
    /// Address bound by the program (`inet_rcv_saddr`); unspecified: any.
    pub rcv_saddr: Ipv4Addr,
    /// Local port; 0: none.
    pub sport: u16,
    /// Peer address; unspecified: not connected.
    pub daddr: Ipv4Addr,
    /// Peer port.
    pub dport: u16,
    /// `SO_BINDTODEVICE`: ifindex, 0 for none.
    pub bound_dev_if: u32,
    /// `RCV_SHUTDOWN | SEND_SHUTDOWN`.
    pub shutdown: u8,
    /// Pending error (`sk_err`), taken by the next call or `SO_ERROR`.
    pub err: Option<Errno>,
    /// Error that does not end the socket (`sk_err_soft`).
    pub err_soft: Option<Errno>,
    /// A process is in a call on it (`sk_lock.owned`).
    pub owned: bool,
    /// No descriptor refers to it any more (`SOCK_DEAD`).
    pub dead: bool,
    /// Segments that arrived while it was owned.
    pub backlog: VecDeque<Box<SkBuff>>,
    /// Octets (`truesize`) in the backlog.
    pub backlog_len: u32,
    /// Received packets in order.
    pub receive_queue: VecDeque<Box<SkBuff>>,
    /// Queued errors for `MSG_ERRQUEUE`.
    pub error_queue: VecDeque<Box<SkBuff>>,
    /// Octets (`truesize`) received and not yet read.
    pub rmem_alloc: u32,
    /// `SO_RCVBUF` (the doubled value).
    pub rcvbuf: u32,
    /// Octets queued for sending and not acknowledged (TCP), `sk_wmem_queued`.
    pub wmem_queued: u32,
    /// Octets (`truesize`) handed to devices and not yet freed (`sk_wmem_alloc`).
    pub wmem_alloc: u32,
    /// `SO_SNDBUF` (the doubled value).
    pub sndbuf: u32,
    /// `SO_RCVBUF` was set: no auto-tuning.
    pub rcvbuf_locked: bool,
    /// `SO_SNDBUF` was set: no auto-tuning.
    pub sndbuf_locked: bool,
    /// A writer waits for space (`SOCK_NOSPACE`).
    pub nospace: bool,
    /// Waiters.
    pub wq: WaitQueue,
    /// Cached route (`sk_dst_cache`) and the table's generation when it was looked up.
    pub dst: Option<(u64, Route)>,
    /// `SOL_SOCKET` options.
    pub opt: SockOpts,
    /// `IPPROTO_IP` options.
    pub inet: InetOpts,
    /// Next IP identification of a connected socket (`inet_id`).
    pub ip_id: u16,
    /// Flow hash for queue choice (`sk_txhash`).
    pub txhash: u32,
    /// CPU that last processed it.
    pub cpu: u16,
    /// Task that made it, for `ss -p`.
    pub creator: Option<TaskId>,
}

impl Sock {
    /// A fresh socket: nothing bound, no options, buffers of the given sizes (the doubled values).
    pub fn new(id: SockId, family: u16, proto: Proto, sndbuf: u32, rcvbuf: u32) -> Box<Self> {
        Box::new(Self {
            id,
            family,
            proto,
            saddr: Ipv4Addr::UNSPECIFIED,
            rcv_saddr: Ipv4Addr::UNSPECIFIED,
            sport: 0,
            daddr: Ipv4Addr::UNSPECIFIED,
            dport: 0,
            bound_dev_if: 0,
            shutdown: 0,
            err: None,
            err_soft: None,
            owned: false,
            dead: false,
            backlog: VecDeque::new(),
            backlog_len: 0,
            receive_queue: VecDeque::new(),
            error_queue: VecDeque::new(),
            rmem_alloc: 0,
            rcvbuf,
            wmem_queued: 0,
            wmem_alloc: 0,
            sndbuf,
            rcvbuf_locked: false,
            sndbuf_locked: false,
            nospace: false,
            wq: WaitQueue::default(),
            dst: None,
            opt: SockOpts::default(),
            inet: InetOpts::default(),
            ip_id: 0,
            txhash: 0,
            cpu: 0,
            creator: None,
        })
    }
}

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
    /// `IPV6_V6ONLY`, on `AF_INET6` sockets.
    pub v6only: bool,
}

/// All sockets.
#[derive(Debug, Default)]
pub struct Socks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
enum Slot {
    Free,
    Out,
    In(Box<Sock>),
}

impl Socks {
    /// Adds the socket that `make` builds for the number it is given.
    pub fn insert(&mut self, make: impl FnOnce(SockId) -> Box<Sock>) -> SockId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() as u32 - 1
        });
        let id = SockId(index + 1);
        self.slots[index as usize] = Slot::In(make(id));
        id
    }

    /// Takes it out to work on it together with the kernel; `None` if it does not exist.
    ///
    /// # Panics
    /// If it is out already: an operation looked up the socket that it works on.
    pub fn take(&mut self, id: SockId) -> Option<Box<Sock>> {
        let slot = self.slots.get_mut(id.0.checked_sub(1)? as usize)?;
        match core::mem::replace(slot, Slot::Out) {
            Slot::In(sk) => Some(sk),
            Slot::Free => {
                *slot = Slot::Free;
                None
            }
            Slot::Out => panic!("socket {id:?} is taken twice"),
        }
    }

    /// Puts it back.
    pub fn put(&mut self, sk: Box<Sock>) {
        let index = sk.id.0 as usize - 1;
        debug_assert!(matches!(self.slots[index], Slot::Out));
        self.slots[index] = Slot::In(sk);
    }

    /// Frees the number of a socket that is out; the caller drops the socket.
    pub fn remove_taken(&mut self, id: SockId) {
        let index = id.0 - 1;
        debug_assert!(matches!(self.slots[index as usize], Slot::Out));
        self.slots[index as usize] = Slot::Free;
        self.free.push(index);
    }

    /// Looks at it; `None` if it does not exist or is out.
    pub fn get(&self, id: SockId) -> Option<&Sock> {
        match self.slots.get(id.0.checked_sub(1)? as usize)? {
            Slot::In(sk) => Some(sk),
            _ => None,
        }
    }

    /// As [`Self::get`], to change it.
    pub fn get_mut(&mut self, id: SockId) -> Option<&mut Sock> {
        match self.slots.get_mut(id.0.checked_sub(1)? as usize)? {
            Slot::In(sk) => Some(sk),
            _ => None,
        }
    }

    /// All sockets by number.
    pub fn iter(&self) -> impl Iterator<Item = &Sock> {
        self.slots.iter().filter_map(|s| match s {
            Slot::In(sk) => Some(&**sk),
            _ => None,
        })
    }
}
