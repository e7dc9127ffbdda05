//! `struct sock` and `struct socket`: what all protocols share.
//!
//! Sockets live in one table ([`Socks`]) by number. An operation takes the
//! socket out ([`Socks::take`]), works on it together with the kernel, and puts
//! it back: so `&mut Kernel` and `&mut Sock` exist at once without a lock. Nothing
//! may look a socket up while it is out; softirqs therefore run only when none
//! is. `owned` is Linux's `sk_lock.owned`: a process is in a system call on the
//! socket, possibly between two chunks of it, and segments go to the backlog.

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::ip::route::Route;
use crate::skb::SkBuff;
use crate::sock_opts::{InetOpts, SockOpts};
use crate::syscall::Step;
use crate::tcp::TcpSock;
use crate::udp::UdpSock;
use crate::wait::queue::WaitQueue;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use ringlab_counters::DropReason;

/// `AF_INET`.
pub const AF_INET: u16 = 2;
/// `AF_INET6`.
pub const AF_INET6: u16 = 10;

/// Number of a socket; 0 is none. The upper bits count how often the slot was used
/// before, so that a packet of a closed socket is not charged to its successor.
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
    /// `AF_NETLINK`.
    Netlink(Box<crate::vfs::netlink::NlSock>),
    /// `AF_PACKET`.
    Packet(Box<crate::packet::PacketSock>),
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

/// `struct socket`'s state (`SS_*`): what `connect` has got to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SockState {
    /// Not connected.
    #[default]
    Unconnected,
    /// A stream's `connect` has begun and its success was not reported yet.
    Connecting,
    /// Connected.
    Connected,
    /// Being torn down.
    Disconnecting,
}

/// An entry of the error queue (Linux `struct sock_exterr_skb`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SockErr {
    /// What it means.
    pub errno: Errno,
    /// `SO_EE_ORIGIN_*`: 1 local, 2 ICMP.
    pub origin: u8,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Next-hop MTU, or pointer.
    pub info: u32,
    /// Who sent the ICMP message.
    pub offender: Ipv4Addr,
    /// Destination of the datagram that caused it.
    pub addr: SocketAddrV4,
    /// Payload of the datagram that caused it, as much as was quoted and is kept.
    pub data: ArrayVec<u8, { crate::ip::MAX_QUOTE }>,
    /// The packet that reported it: time to live, type of service, arrival.
    pub report: (u8, u8, crate::time::Instant),
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
    /// `struct socket` state.
    pub ss: SockState,
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
    pub error_queue: VecDeque<SockErr>,
    /// `SO_ATTACH_FILTER`.
    pub filter: Option<Arc<crate::packet::bpf::Program>>,
    /// Packets dropped on this socket (`sk_drops`).
    pub drops: u32,
    /// When the datagram that was read last had arrived (`SIOCGSTAMP`).
    pub stamp: Option<crate::time::Instant>,
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
    /// The program chose the local address (`SOCK_BINDADDR_LOCK`).
    pub bound_addr: bool,
    /// The program chose the local port (`SOCK_BINDPORT_LOCK`).
    pub bound_port: bool,
    /// Next IP identification of a connected socket (`inet_id`).
    pub ip_id: u16,
    /// Flow hash for queue choice (`sk_txhash`).
    pub txhash: u32,
    /// CPU that last processed it.
    pub cpu: u16,
    /// Task that made it, for `ss -p`.
    pub creator: Option<TaskId>,
    /// Its file; none before `accept`, and after the last descriptor is closed.
    pub file: Option<crate::vfs::FileId>,
    /// `O_ASYNC` is set on its file: changes raise `SIGIO` (`SOCK_FASYNC`).
    pub fasync: bool,
}

impl Sock {
    /// A fresh socket: nothing bound, no options, buffers of the given sizes (the doubled values).
    pub fn new(id: SockId, family: u16, proto: Proto, sndbuf: u32, rcvbuf: u32) -> Box<Self> {
        Box::new(Self {
            id,
            family,
            proto,
            ss: SockState::Unconnected,
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
            filter: None,
            drops: 0,
            stamp: None,
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
            inet: InetOpts { pmtudisc: 1, ..InetOpts::default() },
            bound_addr: false,
            bound_port: false,
            ip_id: 0,
            txhash: 0,
            cpu: 0,
            creator: None,
            file: None,
            fasync: false,
        })
    }
}

/// All sockets.
#[derive(Debug, Default)]
pub struct Socks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
enum Slot {
    Free(SockId),
    Out(SockId),
    In(Box<Sock>),
}

const INDEX_BITS: u32 = 22;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;

impl SockId {
    fn index(self) -> Option<usize> {
        ((self.0 & INDEX_MASK) as usize).checked_sub(1)
    }

    fn next_generation(self) -> SockId {
        SockId(self.0.wrapping_add(1 << INDEX_BITS))
    }
}

impl Socks {
    /// Adds the socket that `make` builds for the number it is given.
    ///
    /// # Panics
    /// If four million sockets exist.
    pub fn insert(&mut self, make: impl FnOnce(SockId) -> Box<Sock>) -> SockId {
        let index = self.free.pop().unwrap_or_else(|| {
            let number = self.slots.len() as u32 + 1;
            assert!(number <= INDEX_MASK, "descriptor limits keep sockets below four million");
            self.slots.push(Slot::Free(SockId(number)));
            number - 1
        });
        let Slot::Free(id) = self.slots[index as usize] else { unreachable!("the free list holds free slots") };
        self.slots[index as usize] = Slot::In(make(id));
        id
    }

    /// Takes it out to work on it together with the kernel; `None` if it does not exist.
    ///
    /// # Panics
    /// If it is out already: an operation looked up the socket that it works on.
    pub fn take(&mut self, id: SockId) -> Option<Box<Sock>> {
        let slot = self.slots.get_mut(id.index()?)?;
        match slot {
            Slot::In(sk) if sk.id == id => match core::mem::replace(slot, Slot::Out(id)) {
                Slot::In(sk) => Some(sk),
                _ => unreachable!("matched above"),
            },
            Slot::Out(out) if *out == id => panic!("socket {id:?} is taken twice"),
            _ => None,
        }
    }

    /// Puts it back.
    pub fn put(&mut self, sk: Box<Sock>) {
        let index = sk.id.index().expect("a socket has a number");
        debug_assert!(matches!(self.slots[index], Slot::Out(_)));
        self.slots[index] = Slot::In(sk);
    }

    /// Frees the number of a socket that is out; the caller drops the socket.
    pub fn remove_taken(&mut self, id: SockId) {
        let index = id.index().expect("a socket has a number");
        debug_assert!(matches!(self.slots[index], Slot::Out(_)));
        self.slots[index] = Slot::Free(id.next_generation());
        self.free.push(index as u32);
    }

    /// Looks at it; `None` if it does not exist or is out.
    pub fn get(&self, id: SockId) -> Option<&Sock> {
        match self.slots.get(id.index()?)? {
            Slot::In(sk) if sk.id == id => Some(sk),
            _ => None,
        }
    }

    /// As [`Self::get`], to change it.
    pub fn get_mut(&mut self, id: SockId) -> Option<&mut Sock> {
        match self.slots.get_mut(id.index()?)? {
            Slot::In(sk) if sk.id == id => Some(sk),
            _ => None,
        }
    }

    /// All sockets by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Sock> {
        self.slots.iter().filter_map(|s| match s {
            Slot::In(sk) => Some(&**sk),
            _ => None,
        })
    }
}

impl Kernel {
    /// A packet charged to a socket (`skb.owner`) is freed (Linux `sock_wfree`). The socket is not out; it
    /// may be gone.
    pub(crate) fn sock_wfree(&mut self, owner: u32, truesize: u32) {
        let id = SockId(owner);
        let Some(sk) = self.socks.get_mut(id) else { return };
        sk.wmem_alloc = sk.wmem_alloc.saturating_sub(truesize);
        if matches!(sk.proto, Proto::Tcp(_)) {
            self.tcp_wfree(id);
        } else if !sk.wq.entries.is_empty() {
            let mut sk = self.socks.take(id).expect("looked up above");
            self.sk_write_space(&mut sk);
            self.socks.put(sk);
        }
    }

    /// Runs an operation of a process on a socket: owned meanwhile, pending interrupts taken where the
    /// operation asks for it, backlog processed at the end (Linux `lock_sock` … `release_sock`).
    /// `block` is called before the release when the operation has to wait.
    ///
    /// `None` if the socket does not exist.
    pub(crate) fn with_sock<R>(
        &mut self,
        id: SockId,
        mut op: impl FnMut(&mut Kernel, &mut Sock) -> Step<R>,
        block: impl FnOnce(&mut Kernel, &mut Sock, crate::wait::queue::PollEvents),
    ) -> Option<Option<R>> {
        let mut sk = self.socks.take(id)?;
        sk.owned = true;
        let result = loop {
            match op(self, &mut sk) {
                Step::Resched => {
                    self.socks.put(sk);
                    self.irq_poll();
                    sk = self.socks.take(id).expect("an owned socket is not freed");
                }
                Step::Softirq => {
                    self.socks.put(sk);
                    self.do_softirq();
                    sk = self.socks.take(id).expect("an owned socket is not freed");
                }
                Step::Done(r) => break Some(r),
                Step::Wait(events) => {
                    block(self, &mut sk, events);
                    break None;
                }
            }
        };
        self.release_sock(&mut sk);
        self.socks.put(sk);
        Some(result)
    }

    /// As [`Self::with_sock`], for an operation that never waits.
    pub(crate) fn lock_sock<R>(&mut self, id: SockId, op: impl FnOnce(&mut Kernel, &mut Sock) -> R) -> Option<R> {
        let mut sk = self.socks.take(id)?;
        sk.owned = true;
        let result = op(self, &mut sk);
        self.release_sock(&mut sk);
        self.socks.put(sk);
        Some(result)
    }

    /// Ends ownership: segments that arrived meanwhile are processed (Linux `release_sock`).
    pub(crate) fn release_sock(&mut self, sk: &mut Sock) {
        let tcp = matches!(sk.proto, Proto::Tcp(_));
        while let Some(skb) = sk.backlog.pop_front() {
            match &sk.proto {
                Proto::Tcp(_) => self.tcp_v4_do_rcv(sk, skb),
                Proto::Udp(_) => self.udp_enqueue(sk, skb),
                Proto::Ping | Proto::Raw { .. } | Proto::Netlink(_) | Proto::Packet(_) => {
                    self.kfree_skb(skb, DropReason::SocketBacklog);
                }
            }
        }
        sk.backlog_len = 0;
        if tcp {
            self.tcp_release_cb(sk);
        }
        sk.owned = false;
    }
}

impl Sock {
    /// Takes the pending error (Linux `sock_error`).
    pub fn take_error(&mut self) -> Option<Errno> {
        self.err.take()
    }

    /// True if a datagram socket has a peer, or a stream is not closed.
    pub fn is_connected_dgram(&self) -> bool {
        self.dport != 0 || !self.daddr.is_unspecified()
    }

    /// True if it takes part in IPv4: an `AF_INET6` socket with `IPV6_V6ONLY` does not.
    pub fn speaks_ipv4(&self) -> bool {
        self.family == AF_INET || !self.inet.v6only
    }

    /// True if it is `AF_INET`; true if it is `AF_INET6` with `IPV6_V6ONLY`. One of each share a port in peace.
    pub(crate) fn families(&self) -> (bool, bool) {
        (self.family == AF_INET, !self.speaks_ipv4())
    }

    /// An IPv4 address as the program sees it on this socket: mapped on `AF_INET6`.
    pub fn to_user_addr(&self, addr: Ipv4Addr, port: u16) -> SocketAddr {
        if self.family == AF_INET {
            return SocketAddr::from((addr, port));
        }
        let v6 = if addr.is_unspecified() { core::net::Ipv6Addr::UNSPECIFIED } else { addr.to_ipv6_mapped() };
        SocketAddr::from((v6, port))
    }

    /// Number of the protocol (`SO_PROTOCOL`).
    pub fn protocol(&self) -> u8 {
        match &self.proto {
            Proto::Tcp(_) => 6,
            Proto::Udp(_) => 17,
            Proto::Ping => 1,
            Proto::Netlink(nl) => nl.protocol(),
            Proto::Packet(_) => 0,
            Proto::Raw { protocol, .. } => *protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(id: SockId) -> Box<Sock> {
        Sock::new(id, AF_INET, Proto::Udp(UdpSock::default()), 1, 1)
    }

    #[test]
    fn number_of_a_closed_socket_is_not_its_successors() {
        let mut socks = Socks::default();
        let a = socks.insert(udp);
        assert_eq!(a, SockId(1));
        drop(socks.take(a));
        socks.remove_taken(a);
        let b = socks.insert(udp);
        assert_ne!(a, b);
        assert!(socks.get(a).is_none() && socks.take(a).is_none());
        assert_eq!(socks.get(b).map(|s| s.id), Some(b));
    }

    #[test]
    #[should_panic(expected = "taken twice")]
    fn taking_a_socket_that_is_out_is_a_bug() {
        let mut socks = Socks::default();
        let a = socks.insert(udp);
        let _out = socks.take(a);
        let _ = socks.take(a);
    }
}
