//! The one entry for everything that makes system calls.
//!
//! A call is typed: structures of the ABI (`sockaddr`, `epoll_event` …) are decoded
//! and encoded at the edge, where a program's memory is (built-in programs pass
//! the types directly). Only payload stays in the task's memory and is copied by
//! the kernel model, once, through [`crate::uaccess::UserMemory`].
//!
//! `Kernel::syscall` either finishes, or leaves the task on a wait queue; when
//! it is woken and scheduled, the call goes on where it stood, and
//! [`crate::Effect::Return`] carries the result.

pub mod abi;
pub mod cmsg;
pub(crate) mod exec;
pub mod ioctl;
pub mod signal;

use crate::errno::Errno;
use crate::uaccess::Iov;
use crate::wait::queue::PollEvents;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use core::time::Duration;

/// A descriptor number of a task.
pub type Fd = i32;

/// Readiness and user data (Linux `struct epoll_event`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollEvent {
    /// Events asked for or reported.
    pub events: PollEvents,
    /// The caller's.
    pub data: u64,
}

/// `EPOLL_CTL_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpollOp {
    /// Add.
    Add(EpollEvent),
    /// Remove.
    Del,
    /// Change.
    Mod(EpollEvent),
}

/// `struct pollfd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollFd {
    /// Negative: ignored.
    pub fd: Fd,
    /// Asked for.
    pub events: PollEvents,
    /// Reported.
    pub revents: PollEvents,
}

/// A descriptor set of `select`, at most 1024 descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FdSet(pub [u64; 16]);

/// How to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// `SHUT_RD`.
    Rd,
    /// `SHUT_WR`.
    Wr,
    /// `SHUT_RDWR`.
    RdWr,
}

/// An option's value; integers as the `int` that programs pass, the rest typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptVal {
    /// Most options.
    Int(i32),
    /// `SO_RCVTIMEO`, `SO_SNDTIMEO`; zero: none.
    Time(Duration),
    /// `SO_LINGER`.
    Linger(bool, Duration),
    /// `TCP_CONGESTION`, `SO_BINDTODEVICE`.
    Bytes(Vec<u8>),
    /// `IP_ADD_MEMBERSHIP`, `IP_DROP_MEMBERSHIP`: group, interface address, ifindex.
    Membership(Ipv4Addr, Ipv4Addr, u32),
    /// `IP_ADD_SOURCE_MEMBERSHIP`, `IP_BLOCK_SOURCE` and their kin: group, source, interface address, ifindex.
    Source(Ipv4Addr, Ipv4Addr, Ipv4Addr, u32),
}

/// An address of `AF_PACKET` (Linux `struct sockaddr_ll`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkAddr {
    /// EtherType, host order; 0: none, 3: all.
    pub protocol: u16,
    /// Interface; 0: any.
    pub ifindex: u32,
    /// `ARPHRD_*`.
    pub hatype: u16,
    /// `PACKET_*`.
    pub pkttype: u8,
    /// Octets of the address.
    pub halen: u8,
    /// Link-layer address.
    pub addr: [u8; 8],
}

/// An address of `AF_NETLINK` (Linux `struct sockaddr_nl`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetlinkAddr {
    /// Port id; 0: the kernel, or any.
    pub pid: u32,
    /// Groups 1 to 32, a bit each.
    pub groups: u32,
}

/// What `PACKET_AUXDATA` tells of a frame (Linux `struct tpacket_auxdata`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the fields are Linux's")]
pub struct AuxData {
    pub status: u32,
    pub len: u32,
    pub snaplen: u32,
    pub mac: u16,
    pub net: u16,
    pub vlan_tci: u16,
    pub vlan_tpid: u16,
}

/// A message of `sendmmsg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutMsg {
    /// Payload.
    pub iov: Iov,
    /// Destination.
    pub to: Option<SocketAddr>,
    /// Ancillary data.
    pub control: Vec<Control>,
}

/// A control message, in or out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// `IP_PKTINFO`: ifindex, local address, destination of the header.
    PktInfo(u32, Ipv4Addr, Ipv4Addr),
    /// `IP_TTL`.
    Ttl(u8),
    /// `IP_TOS`.
    Tos(u8),
    /// `IP_RECVERR`: errno, origin, type, code, info, offender.
    Err(Errno, u8, u8, u8, u32, Ipv4Addr),
    /// `SO_TIMESTAMP`: nanoseconds of the host's clock.
    Timestamp(u64),
    /// `SO_TIMESTAMPNS`: nanoseconds of the host's clock.
    TimestampNs(u64),
    /// `IPV6_PKTINFO`: ifindex, address (mapped).
    PktInfo6(u32, Ipv6Addr),
    /// `IPV6_HOPLIMIT`.
    HopLimit(u8),
    /// `IPV6_TCLASS`.
    TClass(u8),
    /// `IPV6_RECVERR`: as [`Control::Err`], on an `AF_INET6` socket; the offender is shown mapped.
    Err6(Errno, u8, u8, u8, u32, Ipv6Addr),
    /// `IP_ORIGDSTADDR`.
    OrigDst(SocketAddrV4),
    /// `SO_RXQ_OVFL`: packets dropped on the socket so far.
    RxqOvfl(u32),
    /// `SO_MARK`.
    Mark(u32),
    /// `PACKET_AUXDATA`.
    AuxData(AuxData),
    /// `NETLINK_PKTINFO`: group that a message was sent to; 0: to the socket alone.
    NetlinkPktInfo(u32),
}

/// `send` and `recv` flags (Linux `MSG_*` values).
pub mod msg {
    #![expect(missing_docs, reason = "Linux's names say it")]
    pub const OOB: u32 = 1;
    pub const PEEK: u32 = 2;
    pub const DONTROUTE: u32 = 4;
    pub const CTRUNC: u32 = 8;
    pub const PROBE: u32 = 0x10;
    pub const TRUNC: u32 = 0x20;
    pub const DONTWAIT: u32 = 0x40;
    pub const EOR: u32 = 0x80;
    pub const WAITALL: u32 = 0x100;
    pub const CONFIRM: u32 = 0x800;
    pub const ERRQUEUE: u32 = 0x2000;
    pub const NOSIGNAL: u32 = 0x4000;
    pub const MORE: u32 = 0x8000;
    pub const WAITFORONE: u32 = 0x10000;
    pub const ZEROCOPY: u32 = 0x400_0000;
    pub const FASTOPEN: u32 = 0x2000_0000;
    pub const CMSG_CLOEXEC: u32 = 0x4000_0000;
}

/// A system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `socket(domain, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol)`.
    Socket(i32, i32, i32),
    /// `bind`.
    Bind(Fd, SocketAddr),
    /// `listen`.
    Listen(Fd, i32),
    /// `accept4`: flags `SOCK_NONBLOCK`, `SOCK_CLOEXEC`.
    Accept(Fd, i32),
    /// `connect`; `None` is `AF_UNSPEC`.
    Connect(Fd, Option<SocketAddr>),
    /// `send`, `sendto`, `sendmsg`, `write`, `writev`.
    Send {
        /// Socket.
        fd: Fd,
        /// Payload.
        iov: Iov,
        /// `MSG_*`.
        flags: u32,
        /// Destination.
        to: Option<SocketAddr>,
        /// Ancillary data.
        control: Vec<Control>,
    },
    /// `recv`, `recvfrom`, `recvmsg`, `read`, `readv`.
    Recv {
        /// Socket.
        fd: Fd,
        /// Where to.
        iov: Iov,
        /// `MSG_*`.
        flags: u32,
    },
    /// `sendmmsg`: as many messages as go, [`Ret::Sent`].
    SendMmsg {
        /// Socket.
        fd: Fd,
        /// At most 1024 of them are looked at.
        msgs: Vec<OutMsg>,
        /// `MSG_*`.
        flags: u32,
    },
    /// `recvmmsg`: [`Ret::Mmsg`]. The time limit is looked at after each datagram only, as in Linux.
    RecvMmsg {
        /// Socket.
        fd: Fd,
        /// Where each message goes; at most 1024 are looked at.
        iovs: Vec<Iov>,
        /// `MSG_*`, also `MSG_WAITFORONE`.
        flags: u32,
        /// Time limit.
        timeout: Option<Duration>,
    },
    /// `bind` with a `sockaddr_ll`.
    BindLink(Fd, LinkAddr),
    /// `sendto`, `sendmsg` of an `AF_PACKET` socket with a destination.
    SendLink {
        /// Socket.
        fd: Fd,
        /// Frame, or packet (`SOCK_DGRAM`).
        iov: Iov,
        /// `MSG_*`.
        flags: u32,
        /// Interface, protocol and address.
        to: LinkAddr,
    },
    /// `bind` with a `sockaddr_nl`.
    BindNetlink(Fd, NetlinkAddr),
    /// `connect` with a `sockaddr_nl`.
    ConnectNetlink(Fd, NetlinkAddr),
    /// `sendto`, `sendmsg` with a `sockaddr_nl`. Without an address, [`Call::Send`].
    SendNetlink {
        /// Socket.
        fd: Fd,
        /// Requests.
        iov: Iov,
        /// `MSG_*`.
        flags: u32,
        /// Port id 0: the kernel.
        to: NetlinkAddr,
    },
    /// `shutdown`.
    Shutdown(Fd, Shutdown),
    /// `close`.
    Close(Fd),
    /// `dup`, `dup2`, `dup3`, `F_DUPFD`: old, new (`Ok`: exactly this number; `Err`: the lowest from this on).
    Dup(Fd, Result<Fd, Fd>),
    /// `fcntl(F_GETFL)`.
    GetFl(Fd),
    /// `fcntl(F_SETFL)`: `O_NONBLOCK` counts.
    SetFl(Fd, i32),
    /// `fcntl(F_SETOWN)`, `F_SETOWN_EX`; `None` takes the owner away.
    SetOwn(Fd, Option<signal::Owner>),
    /// `fcntl(F_GETOWN)`, `F_GETOWN_EX`: [`Ret::Owner`].
    GetOwn(Fd),
    /// `fcntl(F_SETSIG)`; 0: `SIGIO`, without its `siginfo`.
    SetSig(Fd, i32),
    /// `fcntl(F_GETSIG)`.
    GetSig(Fd),
    /// Any `ioctl` whose argument has a fixed size ([`ioctl::arg`]): the argument's octets in, and out as
    /// [`Ret::Bytes`] (empty: nothing is written back).
    Ioctl(Fd, u32, Vec<u8>),
    /// `ioctl(SIOCGIFCONF)`: room in the program's buffer, `None` if that is a null pointer. [`Ret::IfConf`].
    IfConf(Fd, Option<usize>),
    /// `ioctl(SIOCETHTOOL)`: interface name and the octets of the structure at `ifr_data`, as many as
    /// [`ioctl::ethtool_len`] says; [`Ret::Bytes`] is written back there.
    Ethtool(Fd, [u8; 16], Vec<u8>),
    /// `ioctl(FIONREAD)` (`SIOCINQ`).
    Inq(Fd),
    /// `ioctl(SIOCOUTQ)`.
    Outq(Fd),
    /// `ioctl(SIOCATMARK)`.
    AtMark(Fd),
    /// `getsockname`.
    GetSockName(Fd),
    /// `getpeername`.
    GetPeerName(Fd),
    /// `setsockopt`: level and name as Linux numbers them.
    SetSockOpt(Fd, i32, i32, OptVal),
    /// `getsockopt`.
    GetSockOpt(Fd, i32, i32),
    /// `setsockopt` with the program's octets; the kernel decodes them. `SO_ATTACH_FILTER` takes the octets of
    /// the instructions that `struct sock_fprog` points to.
    SetSockOptRaw(Fd, i32, i32, Vec<u8>),
    /// `getsockopt` with the program's buffer as it is (some options read it): [`Ret::OptRaw`].
    GetSockOptRaw(Fd, i32, i32, Vec<u8>),
    /// `epoll_create1`.
    EpollCreate(i32),
    /// `epoll_ctl`: epoll, descriptor.
    EpollCtl(Fd, Fd, EpollOp),
    /// `epoll_ctl` by a caller whose descriptor numbers are not this kernel's: epoll, descriptor, and the number
    /// that, together with the file, makes the entry (a program may add several duplicates of one file).
    EpollCtlKey(Fd, Fd, i32, EpollOp),
    /// `epoll_wait`: most events, time limit (`None`: for ever).
    EpollWait(Fd, usize, Option<Duration>),
    /// `poll`.
    Poll(Vec<PollFd>, Option<Duration>),
    /// `select`: nfds; read, write, except; time limit.
    Select(i32, Box<[FdSet; 3]>, Option<Duration>),
    /// `nanosleep`.
    Sleep(Duration),
    /// `exit_group`: closes all descriptors; never returns.
    Exit(i32),
}

impl Call {
    /// Its number on x86-64, for traces.
    pub fn nr(&self) -> u16 {
        match self {
            Call::Close(_) => 3,
            Call::Poll(..) => 7,
            Call::Inq(_) | Call::Outq(_) | Call::AtMark(_) | Call::Ioctl(..) | Call::IfConf(..) | Call::Ethtool(..) => 16,
            Call::Select(..) => 23,
            Call::Dup(_, Ok(_)) => 292,
            Call::Sleep(_) => 35,
            Call::Socket(..) => 41,
            Call::Connect(..) | Call::ConnectNetlink(..) => 42,
            Call::Send { .. } | Call::SendLink { .. } | Call::SendNetlink { .. } => 46,
            Call::Recv { .. } => 47,
            Call::Shutdown(..) => 48,
            Call::Bind(..) | Call::BindLink(..) | Call::BindNetlink(..) => 49,
            Call::Listen(..) => 50,
            Call::GetSockName(_) => 51,
            Call::GetPeerName(_) => 52,
            Call::SetSockOpt(..) | Call::SetSockOptRaw(..) => 54,
            Call::GetSockOpt(..) | Call::GetSockOptRaw(..) => 55,
            Call::Dup(_, Err(_)) | Call::GetFl(_) | Call::SetFl(..) => 72,
            Call::SetOwn(..) | Call::GetOwn(_) | Call::SetSig(..) | Call::GetSig(_) => 72,
            Call::Exit(_) => 231,
            Call::EpollWait(..) => 232,
            Call::EpollCtl(..) | Call::EpollCtlKey(..) => 233,
            Call::Accept(..) => 288,
            Call::EpollCreate(_) => 291,
            Call::RecvMmsg { .. } => 299,
            Call::SendMmsg { .. } => 307,
        }
    }
}

/// What a call returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ret {
    /// A number: a descriptor, octets, 0.
    Value(i64),
    /// Failure. Where Linux raises `SIGPIPE`, [`crate::Effect::Signal`] for the task comes just before.
    Err(Errno),
    /// `accept`: the descriptor and the peer.
    Accepted(Fd, SocketAddr),
    /// `getsockname`, `getpeername`.
    Addr(SocketAddr),
    /// `recv`.
    Received {
        /// Octets (with `MSG_TRUNC`: of the whole datagram).
        len: usize,
        /// Who sent it; `None` on streams.
        from: Option<SocketAddr>,
        /// `MSG_TRUNC`, `MSG_OOB`, `MSG_ERRQUEUE`.
        flags: u32,
        /// Ancillary data.
        control: Vec<Control>,
    },
    /// `recv` of an `AF_PACKET` socket: as [`Ret::Received`], with a `sockaddr_ll`.
    ReceivedLink {
        /// Octets (with `MSG_TRUNC`: of the whole frame).
        len: usize,
        /// Who sent it.
        from: LinkAddr,
        /// `MSG_TRUNC`.
        flags: u32,
        /// Ancillary data.
        control: Vec<Control>,
    },
    /// `recv` of an `AF_NETLINK` socket: as [`Ret::Received`], with a `sockaddr_nl`.
    ReceivedNetlink {
        /// Octets (with `MSG_TRUNC`: of the whole datagram).
        len: usize,
        /// Who sent it.
        from: NetlinkAddr,
        /// `MSG_TRUNC`.
        flags: u32,
        /// Ancillary data.
        control: Vec<Control>,
    },
    /// `getsockname`, `getpeername` of an `AF_NETLINK` socket.
    NetlinkAddr(NetlinkAddr),
    /// `getsockname` of an `AF_PACKET` socket.
    LinkAddr(LinkAddr),
    /// `recvmmsg`: each a [`Ret::Received`] or [`Ret::ReceivedLink`]; what is left of the time limit, to write back.
    Mmsg(Vec<Ret>, Option<Duration>),
    /// `sendmmsg`: octets of each message sent (`msg_len`).
    Sent(Vec<u32>),
    /// `F_GETOWN`.
    Owner(Option<signal::Owner>),
    /// Octets to write back at the argument of an `ioctl`; the call itself returns 0.
    Bytes(Vec<u8>),
    /// `SIOCGIFCONF`: octets for the buffer, and `ifc_len`.
    IfConf(Vec<u8>, usize),
    /// `getsockopt` of octets: what to copy to the program, and what to store as length.
    OptRaw(Vec<u8>, i32),
    /// `getsockopt`.
    Opt(OptVal),
    /// `epoll_wait`.
    Epoll(Vec<EpollEvent>),
    /// `poll`: count and descriptors.
    Poll(Vec<PollFd>),
    /// `select`: count; read, write, except.
    Select(i32, Box<[FdSet; 3]>),
}

impl Ret {
    /// What the register would hold: the value, or the negative error number.
    pub fn as_number(&self) -> i64 {
        match self {
            Ret::Value(n) => *n,
            Ret::Err(e) => -i64::from(e.raw()),
            Ret::Accepted(fd, _) => i64::from(*fd),
            Ret::Addr(_) | Ret::LinkAddr(_) | Ret::NetlinkAddr(_) | Ret::Opt(_) | Ret::OptRaw(..) | Ret::Bytes(_) | Ret::IfConf(..) => 0,
            Ret::Received { len, .. } | Ret::ReceivedLink { len, .. } | Ret::ReceivedNetlink { len, .. } => *len as i64,
            Ret::Mmsg(messages, _) => messages.len() as i64,
            Ret::Sent(lengths) => lengths.len() as i64,
            Ret::Owner(owner) => owner.map_or(0, |o| o.as_getown().into()),
            Ret::Epoll(events) => events.len() as i64,
            Ret::Poll(fds) => fds.iter().filter(|p| !p.revents.is_empty()).count() as i64,
            Ret::Select(n, ..) => i64::from(*n),
        }
    }
}

impl From<Result<(), Errno>> for Ret {
    fn from(r: Result<(), Errno>) -> Self {
        r.map_or_else(Ret::Err, |()| Ret::Value(0))
    }
}

impl From<Result<i32, Errno>> for Ret {
    fn from(r: Result<i32, Errno>) -> Self {
        r.map_or_else(Ret::Err, |n| Ret::Value(n.into()))
    }
}

impl From<Result<Ret, Errno>> for Ret {
    fn from(r: Result<Ret, Errno>) -> Self {
        r.unwrap_or_else(Ret::Err)
    }
}

/// A call that transfers payload, as the protocols see it; kept while the task is blocked.
#[derive(Debug)]
pub struct MsgState {
    /// Whose memory.
    pub task: crate::cpu::sched::TaskId,
    /// Position in it.
    pub iter: crate::uaccess::IovIter,
    /// Octets done so far.
    pub copied: usize,
    /// `MSG_*`.
    pub flags: u32,
    /// Do not block (`O_NONBLOCK` or `MSG_DONTWAIT`).
    pub nonblock: bool,
    /// The wait is over without success: time limit (`EAGAIN`) or signal (`EINTR`). The
    /// protocol returns what it has, or this.
    pub give_up: Option<Errno>,
    /// Destination of a datagram (send); its source (receive).
    pub addr: Option<SocketAddr>,
    /// The same, of an `AF_NETLINK` socket.
    pub netlink: Option<NetlinkAddr>,
    /// The same of `AF_PACKET`.
    pub link: Option<LinkAddr>,
    /// Out: `MSG_TRUNC` and the like.
    pub out_flags: u32,
    /// Ancillary data in or out.
    pub control: Vec<Control>,
}

impl MsgState {
    /// What a receiving call returns that ends before it has all that it waits for.
    pub(crate) fn received_so_far(&self) -> Ret {
        Ret::Received { len: self.copied, from: self.addr, flags: self.out_flags, control: Vec::new() }
    }
}

/// How an operation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<T> {
    /// Finished.
    Done(T),
    /// The task sleeps on the socket's wait queue for any of these events and the operation is then
    /// called again with the same state.
    Wait(PollEvents),
    /// Pending interrupts are taken (the socket stays owned: segments go to the backlog), then the
    /// operation is called again: a long call does not keep the NIC waiting.
    Resched,
    /// As `Resched`, but for softirqs that the operation itself has raised.
    Softirq,
}
