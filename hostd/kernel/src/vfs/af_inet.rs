//! The `AF_INET` socket layer (Linux `net/ipv4/af_inet.c`): what is common to streams
//! and datagrams, and `AF_INET6` sockets that carry IPv4 in mapped addresses.
//! This host has no IPv6: its destinations are unreachable, its wildcard means IPv4 too.

use super::netlink::{AF_NETLINK, choose_netlink};
use super::{FileId, FileKind, O_CLOEXEC, O_NONBLOCK};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::ip::route::RouteKind;
use crate::sock::{AF_INET, AF_INET6, Proto, RCV_SHUTDOWN, SEND_SHUTDOWN, Sock, SockId, SockState};
use crate::syscall::abi::AF_PACKET;
use crate::syscall::exec::{Flow, Op};
use crate::syscall::{Fd, NetlinkAddr, Ret, Shutdown, Step};
use crate::tcp::{State, TcpSock};
use crate::trace::Point;
use crate::udp::UdpSock;
use crate::wait::queue::PollEvents;
use alloc::boxed::Box;
use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

const SOCK_STREAM: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const SOCK_RAW: i32 = 3;
const SOCK_MAX: i32 = 11;
const AF_MAX: i32 = 46;
const IPPROTO_ICMP: i32 = 1;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;
const IPPROTO_RAW: i32 = 255;
const IPPROTO_MAX: i32 = 263;
impl Sock {
    /// `sk_state`: a datagram socket is established when it has a peer.
    pub(crate) fn state(&self) -> State {
        match &self.proto {
            Proto::Tcp(tp) => tp.state,
            _ if self.is_connected_dgram() => State::Established,
            _ => State::Close,
        }
    }

    /// A destination as IPv4.
    ///
    /// # Errors
    /// `EAFNOSUPPORT`, `EINVAL`, `ENETUNREACH`, as the family's `connect` or `sendto` answers.
    pub(crate) fn to_ipv4(&self, addr: SocketAddr) -> Result<SocketAddrV4, Errno> {
        match (self.family, addr) {
            (AF_INET, SocketAddr::V4(a)) => Ok(a),
            (AF_INET, SocketAddr::V6(_)) => Err(Errno::EAFNOSUPPORT),
            (_, SocketAddr::V4(_)) if matches!(self.proto, Proto::Tcp(_)) => Err(Errno::EINVAL),
            (_, SocketAddr::V4(_)) if self.inet.v6only => Err(Errno::ENETUNREACH),
            (_, SocketAddr::V4(a)) => Ok(a),
            (_, SocketAddr::V6(a)) => match a.ip().to_ipv4_mapped() {
                Some(ip) if !self.inet.v6only => Ok(SocketAddrV4::new(ip, a.port())),
                Some(_) => Err(Errno::ENETUNREACH),
                None => Err(self.no_ipv6(&a)),
            },
        }
    }

    /// What a host without IPv6 answers to an IPv6 destination: `lo` has no `::1`, and no link has a prefix.
    fn no_ipv6(&self, to: &SocketAddrV6) -> Errno {
        let (ip, tcp) = (to.ip(), matches!(self.proto, Proto::Tcp(_)));
        if ip.is_multicast() && tcp {
            return Errno::ENETUNREACH;
        }
        let link_local = ip.segments()[0] & 0xffc0 == 0xfe80 || ip.segments()[0] & 0xff0f == 0xff02;
        if link_local && to.scope_id() == 0 && self.bound_dev_if == 0 {
            return Errno::EINVAL;
        }
        if ip.is_loopback() || ip.is_unspecified() || link_local { Errno::EADDRNOTAVAIL } else { Errno::ENETUNREACH }
    }

    fn bind_addr(&self, addr: SocketAddr) -> Result<SocketAddrV4, Errno> {
        match (self.family, addr) {
            (AF_INET, SocketAddr::V4(a)) => Ok(a),
            (AF_INET, SocketAddr::V6(_)) => Err(Errno::EAFNOSUPPORT),
            (_, SocketAddr::V4(_)) => Err(Errno::EINVAL),
            (_, SocketAddr::V6(a)) if a.ip().is_unspecified() => Ok(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, a.port())),
            (_, SocketAddr::V6(a)) => match a.ip().to_ipv4_mapped() {
                Some(_) if self.inet.v6only => Err(Errno::EINVAL),
                Some(ip) => Ok(SocketAddrV4::new(ip, a.port())),
                None if a.ip().is_multicast() => Err(Errno::EINVAL),
                None if a.ip().segments()[0] & 0xffc0 == 0xfe80 && a.scope_id() == 0 => Err(Errno::EINVAL),
                None => Err(Errno::EADDRNOTAVAIL),
            },
        }
    }
}

/// What protocol a `socket` call asks for (Linux `inet_create`).
fn choose_proto(domain: i32, kind: i32, protocol: i32) -> Result<Proto, Errno> {
    if !(0..IPPROTO_MAX).contains(&protocol) {
        return Err(Errno::EINVAL);
    }
    match (kind, protocol) {
        (SOCK_STREAM, 0 | IPPROTO_TCP) => Ok(Proto::Tcp(Box::<TcpSock>::default())),
        (SOCK_DGRAM, 0 | IPPROTO_UDP) => Ok(Proto::Udp(UdpSock::default())),
        (SOCK_DGRAM, IPPROTO_ICMP) if domain == i32::from(AF_INET) => Ok(Proto::Ping),
        (SOCK_RAW, 1..=IPPROTO_RAW) => {
            let protocol = protocol as u8;
            Ok(Proto::Raw { protocol, hdrincl: i32::from(protocol) == IPPROTO_RAW, icmp_filter: 0 })
        }
        (SOCK_STREAM | SOCK_DGRAM | SOCK_RAW, _) => Err(Errno::EPROTONOSUPPORT),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

impl Kernel {
    /// `socket`.
    pub(crate) fn sys_socket(&mut self, task: TaskId, domain: i32, kind: i32, protocol: i32) -> Result<Fd, Errno> {
        let flags = kind & !0xf;
        let kind = kind & 0xf;
        if flags & !(O_NONBLOCK | O_CLOEXEC) != 0 {
            return Err(Errno::EINVAL);
        }
        if !(0..AF_MAX).contains(&domain) {
            return Err(Errno::EAFNOSUPPORT);
        }
        if kind >= SOCK_MAX {
            return Err(Errno::EINVAL);
        }
        let proto = match domain as u16 {
            AF_INET | AF_INET6 => choose_proto(domain, kind, protocol)?,
            AF_NETLINK => choose_netlink(kind, protocol)?,
            AF_PACKET => Self::packet_create(kind, protocol)?,
            _ => return Err(Errno::EAFNOSUPPORT),
        };
        self.fd_table(task).unused(0)?;
        let (sndbuf, rcvbuf) = match proto {
            Proto::Tcp(_) => (self.sysctl.tcp_wmem[1], self.sysctl.tcp_rmem[1]),
            _ => (self.sysctl.wmem_default, self.sysctl.rmem_default),
        };
        let id = self.socks.insert(|id| Sock::new(id, domain as u16, proto, sndbuf as u32, rcvbuf as u32));
        let mut sk = self.socks.take(id).expect("just made");
        sk.creator = Some(task);
        sk.opt.rcvlowat = 1;
        // Linux has it on in `inet_create` alone.
        sk.inet.mc_all_off = sk.family == AF_INET6;
        match &sk.proto {
            Proto::Tcp(_) => self.tcp_init_sock(&mut sk),
            &Proto::Raw { protocol, .. } => {
                sk.opt.reuseaddr = true;
                self.raw_hash(protocol, id);
            }
            // Linux sets it on both, so that several may have the same number.
            Proto::Ping => sk.opt.reuseaddr = true,
            Proto::Packet(_) => self.packet_hook(&mut sk),
            Proto::Udp(_) | Proto::Netlink(_) => {}
        }
        let args = [id.0.into(), domain as u64, sk.protocol().into(), 0];
        self.socks.put(sk);
        self.trace(Point::SockCreate, 0, args);
        self.install_sock(task, id, flags)
    }

    /// Gives a socket a file and a descriptor; the caller knows that one is free.
    fn install_sock(&mut self, task: TaskId, id: SockId, flags: i32) -> Result<Fd, Errno> {
        let file = self.vfs.open(FileKind::Socket(id), flags);
        self.trace(Point::SockAllocFile, 0, [id.0.into(), task.0.into(), 0, 0]);
        if let Some(sk) = self.socks.get_mut(id) {
            sk.file = Some(file);
        }
        self.fd_table(task).install(file, 0)
    }

    /// `bind` (Linux `inet_bind`).
    pub(crate) fn sys_bind(&mut self, task: TaskId, fd: Fd, addr: SocketAddr) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        self.lock_sock(id, |k, sk| k.inet_bind(sk, addr)).ok_or(Errno::EBADF)?
    }

    fn inet_bind(&mut self, sk: &mut Sock, addr: SocketAddr) -> Result<(), Errno> {
        if matches!(sk.proto, Proto::Packet(_) | Proto::Netlink(_)) {
            return Err(Errno::EINVAL);
        }
        let mapped_any = matches!(addr, SocketAddr::V6(a) if *a.ip() == Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
        let addr = sk.bind_addr(addr)?;
        let ip = *addr.ip();
        let kind = if ip.is_unspecified() { RouteKind::Local } else { self.inet_addr_type(ip) };
        if kind == RouteKind::Unicast && !sk.inet.freebind && !sk.inet.transparent {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if let Proto::Raw { .. } = sk.proto {
            sk.rcv_saddr = ip;
            sk.saddr = if kind == RouteKind::Local { ip } else { Ipv4Addr::UNSPECIFIED };
            sk.bound_addr = !ip.is_unspecified();
            return Ok(());
        }
        if sk.state() != State::Close || sk.inet_num() != 0 {
            return Err(Errno::EINVAL);
        }
        let before = (sk.saddr, sk.rcv_saddr);
        sk.rcv_saddr = ip;
        sk.saddr = if matches!(kind, RouteKind::Broadcast | RouteKind::Multicast) { Ipv4Addr::UNSPECIFIED } else { ip };
        // `IP_BIND_ADDRESS_NO_PORT`: the port is chosen when the peer is known.
        let later = addr.port() == 0 && sk.inet.bind_no_port;
        if !later && let Err(e) = self.get_port(sk, addr.port()) {
            (sk.saddr, sk.rcv_saddr) = before;
            return Err(e);
        }
        sk.inet.mapped_any = mapped_any;
        sk.bound_addr = !ip.is_unspecified();
        sk.bound_port = addr.port() != 0;
        sk.daddr = Ipv4Addr::UNSPECIFIED;
        sk.dport = 0;
        sk.dst = None;
        Ok(())
    }

    /// Gives the socket a local port (Linux `sk_prot->get_port`); 0: any free one.
    fn get_port(&mut self, sk: &mut Sock, port: u16) -> Result<(), Errno> {
        match sk.proto {
            Proto::Tcp(_) => self.tcp_get_port(sk, sk.rcv_saddr, port),
            Proto::Udp(_) => self.udp_get_port(sk, port),
            Proto::Ping => self.ping_get_port(sk, port),
            Proto::Raw { .. } | Proto::Netlink(_) | Proto::Packet(_) => Ok(()),
        }
    }

    /// Gives the socket some port if it has none (Linux `inet_autobind`).
    pub(crate) fn inet_autobind(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        if sk.sport != 0 {
            return Ok(());
        }
        self.get_port(sk, 0).map_err(|_| Errno::EAGAIN)
    }

    /// `listen` (Linux `inet_listen`).
    pub(crate) fn sys_listen(&mut self, task: TaskId, fd: Fd, backlog: i32) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let somaxconn = self.sysctl.somaxconn as i32;
        let backlog = if (0..=somaxconn).contains(&backlog) { backlog } else { somaxconn };
        let listen = |k: &mut Kernel, sk: &mut Sock| {
            if !matches!(sk.proto, Proto::Tcp(_)) {
                return Err(Errno::EOPNOTSUPP);
            }
            let state = sk.state();
            if sk.ss != SockState::Unconnected || !matches!(state, State::Close | State::Listen) {
                return Err(Errno::EINVAL);
            }
            if state == State::Close && sk.inet_num() == 0 {
                k.tcp_get_port(sk, sk.rcv_saddr, 0)?;
            }
            k.tcp_listen(sk, backlog)
        };
        self.lock_sock(id, listen).ok_or(Errno::EBADF)?
    }

    /// `accept4`.
    pub(crate) fn sys_accept(&mut self, task: TaskId, fd: Fd, flags: i32) -> Flow {
        if flags & !(O_NONBLOCK | O_CLOEXEC) != 0 {
            return Flow::Done(Ret::Err(Errno::EINVAL));
        }
        match self.fget_sock(task, fd) {
            Ok((file, _)) => self.do_accept(task, file, flags),
            Err(e) => Flow::Done(Ret::Err(e)),
        }
    }

    /// Takes a connection of the accept queue, or sleeps, one of several acceptors at a time.
    pub(crate) fn do_accept(&mut self, task: TaskId, file: FileId, flags: i32) -> Flow {
        let FileKind::Socket(id) = self.vfs.file(file).kind else { return Flow::Done(Ret::Err(Errno::ENOTSOCK)) };
        if let Err(e) = self.fd_table(task).unused(0) {
            return Flow::Done(Ret::Err(e));
        }
        let nonblock = self.vfs.nonblock(file);
        loop {
            let give_up = self.give_up(task);
            let mut timeout = None;
            let accept = |k: &mut Kernel, sk: &mut Sock| match &sk.proto {
                Proto::Tcp(tp) if tp.state == State::Listen => match k.tcp_accept(sk) {
                    Some(child) => Step::Done(Ok(child)),
                    None if nonblock => Step::Done(Err(Errno::EAGAIN)),
                    None => give_up.map_or(Step::Wait(PollEvents::READABLE), |e| Step::Done(Err(e))),
                },
                Proto::Tcp(_) => Step::Done(Err(Errno::EINVAL)),
                _ => Step::Done(Err(Errno::EOPNOTSUPP)),
            };
            let done = self.with_sock(id, accept, |k, sk, events| {
                timeout = sk.opt.rcvtimeo;
                k.prepare_to_wait(task, sk, events, true);
            });
            match done {
                None => return Flow::Done(Ret::Err(Errno::EBADF)),
                Some(Some(Ok(child))) => return Flow::Done(self.accepted(task, child, flags)),
                Some(Some(Err(e))) => return Flow::Done(Ret::Err(e)),
                Some(None) => {}
            }
            if !self.woken_before_switch(task) {
                self.arm_deadline(task, timeout);
                return Flow::Block(Op::Accept(file, flags));
            }
        }
    }

    fn accepted(&mut self, task: TaskId, child: SockId, flags: i32) -> Ret {
        let peer = match self.socks.get_mut(child) {
            Some(sk) => {
                sk.ss = SockState::Connected;
                sk.creator = Some(task);
                sk.to_user_addr(sk.daddr, sk.dport)
            }
            None => return Ret::Err(Errno::ECONNABORTED),
        };
        self.install_sock(task, child, flags).map_or_else(Ret::Err, |fd| Ret::Accepted(fd, peer))
    }

    /// Gives a connection back that was just accepted: its process has no number for it. It is the next one to be
    /// accepted then. False if `listener` listens no more.
    pub fn unaccept(&mut self, task: TaskId, listener: Fd, fd: Fd) -> bool {
        let (Ok((_, from)), Ok((file, child))) = (self.fget_sock(task, listener), self.fget_sock(task, fd)) else { return false };
        let Some(mut sk) = self.socks.take(from) else { return false };
        let queue = match &mut sk.proto {
            Proto::Tcp(tp) => tp.listen.as_mut().map(|l| &mut l.accept_queue),
            _ => None,
        };
        let listens = queue.is_some();
        if let Some(queue) = queue {
            queue.push_front(child);
            // Its only reference goes, the socket stays.
            let _ = self.fd_table(task).remove(fd);
            self.release_file(file);
            if let Some(child) = self.socks.get_mut(child) {
                child.file = None;
                child.creator = None;
            }
            self.sk_data_ready(&mut sk);
        }
        self.socks.put(sk);
        listens
    }

    /// `connect`.
    pub(crate) fn sys_connect(&mut self, task: TaskId, fd: Fd, to: Option<SocketAddr>) -> Flow {
        let (file, id) = match self.fget_sock(task, fd) {
            Ok(found) => found,
            Err(e) => return Flow::Done(Ret::Err(e)),
        };
        let mut disconnects = false;
        let begun = self.lock_sock(id, |k, sk| match (&sk.proto, to) {
            (Proto::Packet(_), _) => Err(Errno::EOPNOTSUPP),
            (Proto::Tcp(_), Some(to)) => k.stream_connect(sk, to).map(Some),
            (Proto::Tcp(_), None) => {
                disconnects = true;
                k.stream_disconnect(sk).map(|()| None)
            }
            (Proto::Netlink(_), Some(_)) => Err(Errno::EINVAL),
            (Proto::Netlink(_), None) => k.netlink_connect(sk, NetlinkAddr::default()).map(|()| None),
            (_, Some(to)) => k.dgram_connect(sk, to).map(|()| None),
            (_, None) => {
                k.dgram_disconnect(sk);
                Ok(None)
            }
        });
        if disconnects {
            // A peer on this host has the reset before this end is told.
            self.do_softirq();
            self.lock_sock(id, |k, sk| k.sk_error_report(sk));
        }
        match begun.unwrap_or(Err(Errno::EBADF)) {
            Ok(Some(progress)) => self.do_connect(task, file, progress),
            Ok(None) => Flow::Done(Ret::Value(0)),
            Err(e) => Flow::Done(Ret::Err(e)),
        }
    }

    /// Starts an active open (Linux `__inet_stream_connect`, first half). `Ok`: what a call that does not wait returns.
    fn stream_connect(&mut self, sk: &mut Sock, to: SocketAddr) -> Result<Errno, Errno> {
        match sk.ss {
            SockState::Connected => Err(Errno::EISCONN),
            SockState::Connecting => Ok(Errno::EALREADY),
            SockState::Disconnecting => Err(Errno::EINVAL),
            SockState::Unconnected => {
                if sk.state() != State::Close {
                    return Err(Errno::EISCONN);
                }
                // On `AF_INET6`, `::` means its own loopback, which there is not.
                let to = sk.to_ipv4(to)?;
                let ip = if to.ip().is_unspecified() { Ipv4Addr::LOCALHOST } else { *to.ip() };
                self.tcp_v4_connect(sk, SocketAddrV4::new(ip, to.port()))?;
                sk.ss = SockState::Connecting;
                Ok(Errno::EINPROGRESS)
            }
        }
    }

    fn stream_disconnect(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        let done = self.tcp_disconnect(sk);
        sk.ss = if done.is_ok() { SockState::Unconnected } else { SockState::Disconnecting };
        done
    }

    /// Waits for the end of an active open (second half).
    pub(crate) fn do_connect(&mut self, task: TaskId, file: FileId, progress: Errno) -> Flow {
        let FileKind::Socket(id) = self.vfs.file(file).kind else { return Flow::Done(Ret::Err(Errno::ENOTSOCK)) };
        let nonblock = self.vfs.nonblock(file);
        loop {
            let give_up = self.give_up(task);
            let mut timeout = None;
            let check = |k: &mut Kernel, sk: &mut Sock| match sk.state() {
                State::SynSent | State::SynRecv => match give_up {
                    Some(Errno::EINTR) => Step::Done(Err(Errno::EINTR)),
                    Some(_) => Step::Done(Err(progress)),
                    None if nonblock => Step::Done(Err(progress)),
                    None => Step::Wait(PollEvents::all()),
                },
                State::Close => {
                    let error = sk.take_error().or_else(|| sk.err_soft.take()).unwrap_or(Errno::ECONNABORTED);
                    sk.ss = SockState::Unconnected;
                    if k.tcp_disconnect(sk).is_err() {
                        sk.ss = SockState::Disconnecting;
                    }
                    k.sk_error_report(sk);
                    Step::Done(Err(error))
                }
                _ => {
                    sk.ss = SockState::Connected;
                    Step::Done(Ok(()))
                }
            };
            let done = self.with_sock(id, check, |k, sk, events| {
                timeout = sk.opt.sndtimeo;
                k.prepare_to_wait(task, sk, events, false);
            });
            match done {
                None => return Flow::Done(Ret::Err(Errno::EBADF)),
                Some(Some(result)) => return Flow::Done(result.into()),
                Some(None) => {}
            }
            if !self.woken_before_switch(task) {
                self.arm_deadline(task, timeout);
                return Flow::Block(Op::Connect(file, progress));
            }
        }
    }

    /// `shutdown` (Linux `inet_shutdown`).
    pub(crate) fn sys_shutdown(&mut self, task: TaskId, fd: Fd, how: Shutdown) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let mut sent = None;
        let shutdown = |k: &mut Self, sk: &mut Sock| match sent.take() {
            // What goes over loopback arrives before this end's waiters hear of it (Linux `local_bh_enable` in `__dev_queue_xmit`).
            None => {
                let done = k.inet_shutdown(sk, how);
                let heard = done != Err(Errno::EOPNOTSUPP);
                if heard && k.loopback_pending() {
                    sent = Some(done);
                    return Step::Softirq;
                }
                if heard {
                    k.sk_state_change(sk);
                }
                Step::Done(done)
            }
            Some(done) => {
                k.sk_state_change(sk);
                Step::Done(done)
            }
        };
        self.with_sock(id, shutdown, |_, _, _| {}).flatten().ok_or(Errno::EBADF)?
    }

    /// Linux `inet_shutdown` but for the last step, the news of it to waiters (unless it is `EOPNOTSUPP`).
    fn inet_shutdown(&mut self, sk: &mut Sock, how: Shutdown) -> Result<(), Errno> {
        if sk.family == AF_NETLINK {
            return Err(Errno::EOPNOTSUPP);
        }
        let bits = match how {
            Shutdown::Rd => RCV_SHUTDOWN,
            Shutdown::Wr => SEND_SHUTDOWN,
            Shutdown::RdWr => RCV_SHUTDOWN | SEND_SHUTDOWN,
        };
        if matches!(sk.proto, Proto::Packet(_)) {
            return Err(Errno::EOPNOTSUPP);
        }
        let state = sk.state();
        if sk.ss == SockState::Connecting {
            let ended = matches!(state, State::SynSent | State::SynRecv | State::Close);
            sk.ss = if ended { SockState::Disconnecting } else { SockState::Connected };
        }
        let mut done = Ok(());
        match state {
            State::Listen if bits & RCV_SHUTDOWN == 0 => {}
            State::SynSent | State::Listen => {
                done = self.stream_disconnect(sk);
                self.sk_error_report(sk);
            }
            _ => {
                // An unconnected socket is marked too: `poll` shows it, and waiters wake.
                sk.shutdown |= bits;
                if matches!(sk.proto, Proto::Tcp(_)) {
                    done = self.tcp_shutdown(sk, how);
                }
                if state == State::Close {
                    done = Err(Errno::ENOTCONN);
                }
            }
        }
        done
    }

    /// `getsockname`.
    pub(crate) fn sys_getsockname(&mut self, task: TaskId, fd: Fd) -> Result<Ret, Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let sk = self.socks.get(id).ok_or(Errno::EBADF)?;
        if let Some(name) = Self::netlink_getname(sk, false) {
            return Ok(name);
        }
        if let Proto::Packet(po) = &sk.proto {
            return Ok(self.packet_getname(sk, po.protocol));
        }
        let addr = if sk.rcv_saddr.is_unspecified() { sk.saddr } else { sk.rcv_saddr };
        if sk.inet.mapped_any && addr.is_unspecified() {
            return Ok(Ret::Addr((addr.to_ipv6_mapped(), sk.sport).into()));
        }
        Ok(Ret::Addr(sk.to_user_addr(addr, sk.sport)))
    }

    /// `getpeername`.
    pub(crate) fn sys_getpeername(&mut self, task: TaskId, fd: Fd) -> Result<Ret, Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let sk = self.socks.get(id).ok_or(Errno::EBADF)?;
        if let Some(name) = Self::netlink_getname(sk, true) {
            return Ok(name);
        }
        if matches!(sk.proto, Proto::Packet(_)) {
            return Err(Errno::EOPNOTSUPP);
        }
        if sk.dport == 0 || matches!(sk.state(), State::Close | State::SynSent) {
            return Err(Errno::ENOTCONN);
        }
        Ok(Ret::Addr(sk.to_user_addr(sk.daddr, sk.dport)))
    }

    /// Readiness of a socket.
    pub(crate) fn sock_poll(&mut self, id: SockId) -> PollEvents {
        let Some(sk) = self.socks.get(id) else { return PollEvents::ALWAYS };
        let mask = if matches!(sk.proto, Proto::Tcp(_)) { self.tcp_poll(sk) } else { sk.netlink_poll() };
        if !mask.contains(PollEvents::OUT)
            && let Some(sk) = self.socks.get_mut(id)
        {
            sk.nospace = true;
        }
        mask
    }
}
