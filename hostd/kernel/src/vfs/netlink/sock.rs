//! The socket side: port id, groups, options, queue.

use super::{AF_NETLINK, NETLINK_GENERIC, NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::sock::{Proto, Sock, SockId};
use crate::syscall::exec::Flow;
use crate::syscall::{Control, Fd, MsgState, NetlinkAddr, OptVal, Ret, Step, msg};
use crate::uaccess::{Iov, IovIter};
use crate::wait::queue::PollEvents;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ringlab_ring::memory::Region;

/// What a datagram of the queue costs besides its octets.
const OVERHEAD: u32 = 768;
/// Octets of the first datagram of a dump, and of all for a reader with less (Linux `NLMSG_GOODSIZE`).
pub(super) const GOODSIZE: usize = 3776;
/// Octets of the largest datagram of a dump.
const MAX_DUMP: usize = 32768;
/// Highest group (`RTNLGRP_MAX` is below).
const GROUPS: u32 = 64;
const SOCK_RAW: i32 = 3;
const SOCK_DGRAM: i32 = 2;
const MAX_LINKS: i32 = 32;

/// Options of `SOL_NETLINK`.
mod opt {
    pub(super) const ADD_MEMBERSHIP: i32 = 1;
    pub(super) const DROP_MEMBERSHIP: i32 = 2;
    pub(super) const PKTINFO: i32 = 3;
    pub(super) const BROADCAST_ERROR: i32 = 4;
    pub(super) const NO_ENOBUFS: i32 = 5;
    pub(super) const LISTEN_ALL_NSID: i32 = 8;
    pub(super) const LIST_MEMBERSHIPS: i32 = 9;
    pub(super) const CAP_ACK: i32 = 10;
    pub(super) const EXT_ACK: i32 = 11;
    pub(super) const GET_STRICT_CHK: i32 = 12;
}

bitflags::bitflags! {
    /// Options that are on or off.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct Opts: u16 {
        const PKTINFO = 1;
        const BROADCAST_ERROR = 2;
        const NO_ENOBUFS = 4;
        const LISTEN_ALL_NSID = 8;
        const CAP_ACK = 0x10;
        const EXT_ACK = 0x20;
        const STRICT = 0x40;
    }
}

/// A datagram in the queue.
#[derive(Debug)]
struct Datagram {
    data: Vec<u8>,
    /// Who sent it; 0: the kernel.
    from: u32,
    /// Group that it went to; 0: to this socket alone.
    group: u32,
    /// Part of a dump.
    dump: bool,
}

/// `struct netlink_sock`.
#[derive(Debug)]
pub struct NlSock {
    protocol: u8,
    raw: bool,
    portid: u32,
    /// Bit n - 1: member of group n.
    groups: u64,
    peer: NetlinkAddr,
    pub(super) opts: Opts,
    queue: VecDeque<Datagram>,
    /// Largest buffer that the program has received into.
    max_recvmsg_len: usize,
    drops: u32,
    /// Nothing is queued until the queue has been read (`NETLINK_S_CONGESTED`).
    congested: bool,
}

impl NlSock {
    fn new(protocol: u8, raw: bool) -> Self {
        Self {
            protocol,
            raw,
            portid: 0,
            groups: 0,
            peer: NetlinkAddr::default(),
            opts: Opts::default(),
            queue: VecDeque::new(),
            max_recvmsg_len: 0,
            drops: 0,
            congested: false,
        }
    }

    /// `NETLINK_*`.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Its port id; 0: none yet.
    pub fn portid(&self) -> u32 {
        self.portid
    }

    /// Groups, bit n - 1 for group n.
    pub fn groups(&self) -> u64 {
        self.groups
    }

    /// Datagrams lost.
    pub fn drops(&self) -> u32 {
        self.drops
    }

    /// `SO_TYPE`.
    pub(crate) fn kind(&self) -> i32 {
        if self.raw { SOCK_RAW } else { SOCK_DGRAM }
    }

    /// True while parts of a dump have not been read.
    pub fn dumping(&self) -> bool {
        self.queue.iter().any(|d| d.dump)
    }

    pub(super) fn bound_to(&mut self, portid: u32) {
        self.portid = portid;
    }

    /// Octets of the datagrams of a dump.
    pub(super) fn dump_size(&self) -> usize {
        self.max_recvmsg_len.clamp(GOODSIZE, MAX_DUMP)
    }

    fn is_member(&self, group: u32) -> bool {
        group != 0 && group <= GROUPS && self.groups >> (group - 1) & 1 != 0
    }
}

/// The netlink part of a socket, with the rest of the socket still free to borrow.
macro_rules! nl {
    ($sk:expr) => {
        match &mut $sk.proto {
            $crate::sock::Proto::Netlink(nl) => &mut **nl,
            _ => unreachable!("netlink works on netlink sockets"),
        }
    };
}
pub(super) use nl;

impl Sock {
    /// Puts an answer of the kernel into the socket's queue; lost without a word if there is no room.
    pub(super) fn netlink_answer(&mut self, data: Vec<u8>, dump: bool) {
        if self.rmem_alloc > self.rcvbuf && !dump {
            nl!(self).drops += 1;
            return;
        }
        self.netlink_queue(Datagram { data, from: 0, group: 0, dump });
    }

    /// Puts a notification into the queue; a queue without room loses it and all until it was read, and says so once.
    pub(super) fn netlink_notify(&mut self, group: u32, data: &[u8]) -> bool {
        let full = self.rmem_alloc > self.rcvbuf;
        let nl = nl!(self);
        if !nl.is_member(group) {
            return false;
        }
        if full || nl.congested {
            nl.drops += 1;
            if !nl.congested && !nl.opts.contains(Opts::NO_ENOBUFS) {
                nl.congested = true;
                self.err = Some(Errno::ENOBUFS);
                return true;
            }
            return false;
        }
        self.netlink_queue(Datagram { data: data.to_vec(), from: 0, group, dump: false });
        true
    }

    fn netlink_queue(&mut self, datagram: Datagram) {
        self.rmem_alloc = self.rmem_alloc.saturating_add(datagram.data.len() as u32 + OVERHEAD);
        nl!(self).queue.push_back(datagram);
    }

    /// Readiness (Linux `datagram_poll`).
    pub(crate) fn netlink_poll(&self) -> PollEvents {
        let mut mask = self.datagram_poll();
        if let Proto::Netlink(nl) = &self.proto
            && !nl.queue.is_empty()
        {
            mask |= PollEvents::IN | PollEvents::RDNORM;
        }
        mask
    }

    /// Octets of the next datagram (`FIONREAD`).
    pub(crate) fn netlink_inq(&self) -> i32 {
        match &self.proto {
            Proto::Netlink(nl) => nl.queue.front().map_or(0, |d| d.data.len() as i32),
            _ => 0,
        }
    }
}

/// What a `socket(AF_NETLINK)` asks for (Linux `netlink_create`).
pub(crate) fn choose_netlink(kind: i32, protocol: i32) -> Result<Proto, Errno> {
    if kind != SOCK_RAW && kind != SOCK_DGRAM {
        return Err(Errno::ESOCKTNOSUPPORT);
    }
    match u8::try_from(protocol) {
        Ok(p @ (NETLINK_ROUTE | NETLINK_SOCK_DIAG | NETLINK_GENERIC)) => Ok(Proto::Netlink(Box::new(NlSock::new(p, kind == SOCK_RAW)))),
        _ if protocol >= MAX_LINKS => Err(Errno::EPROTONOSUPPORT),
        _ => Err(Errno::EPROTONOSUPPORT),
    }
}

impl Kernel {
    /// `bind` with a `sockaddr_nl`.
    pub(crate) fn sys_bind_netlink(&mut self, task: TaskId, fd: Fd, addr: NetlinkAddr) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        self.lock_sock(id, |k, sk| k.netlink_bind(sk, addr)).ok_or(Errno::EBADF)?
    }

    fn netlink_bind(&mut self, sk: &mut Sock, addr: NetlinkAddr) -> Result<(), Errno> {
        // The size of an Internet address is looked at before its family.
        let Proto::Netlink(nl) = &sk.proto else { return Err(Errno::EINVAL) };
        match nl.portid {
            0 if addr.pid != 0 => self.netlink_insert(sk, addr.pid)?,
            0 => self.netlink_autobind(sk)?,
            own if own != addr.pid && addr.pid != 0 => return Err(Errno::EINVAL),
            _ => {}
        }
        let nl = nl!(sk);
        nl.groups = nl.groups & !u64::from(u32::MAX) | u64::from(addr.groups);
        self.netlink_membership(sk);
        Ok(())
    }

    /// `connect` with a `sockaddr_nl`.
    pub(crate) fn sys_connect_netlink(&mut self, task: TaskId, fd: Fd, addr: NetlinkAddr) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        self.lock_sock(id, |k, sk| k.netlink_connect(sk, addr)).ok_or(Errno::EBADF)?
    }

    pub(crate) fn netlink_connect(&mut self, sk: &mut Sock, addr: NetlinkAddr) -> Result<(), Errno> {
        if sk.family != AF_NETLINK {
            return Err(Errno::EINVAL);
        }
        self.netlink_autobind(sk)?;
        nl!(sk).peer = addr;
        Ok(())
    }

    /// `sendto`, `sendmsg` with a `sockaddr_nl`.
    pub(crate) fn sys_send_netlink(&mut self, task: TaskId, fd: Fd, iov: Iov, flags: u32, to: NetlinkAddr) -> Flow {
        match self.fget_sock(task, fd) {
            Ok((file, id)) => {
                if self.socks.get(id).is_none_or(|sk| sk.family != AF_NETLINK) {
                    return Flow::Done(Ret::Err(Errno::EINVAL));
                }
                let mut m = self.msg_state(task, file, iov, flags);
                m.netlink = Some(to);
                self.do_sendmsg(task, file, m)
            }
            Err(e) => Flow::Done(Ret::Err(e)),
        }
    }

    /// `getsockname` (`peer`: `getpeername`).
    pub(crate) fn netlink_getname(sk: &Sock, peer: bool) -> Option<Ret> {
        let Proto::Netlink(nl) = &sk.proto else { return None };
        Some(Ret::NetlinkAddr(if peer { nl.peer } else { NetlinkAddr { pid: nl.portid, groups: nl.groups as u32 } }))
    }

    /// Linux `netlink_sendmsg`.
    pub(crate) fn netlink_sendmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if m.flags & msg::OOB != 0 {
            return Step::Done(Err(Errno::EOPNOTSUPP));
        }
        if m.addr.is_some() {
            return Step::Done(Err(Errno::EINVAL));
        }
        let len = m.iter.count();
        if len == 0 {
            return Step::Done(Err(Errno::ENODATA));
        }
        if len > u64::from(sk.sndbuf).saturating_sub(32) {
            return Step::Done(Err(Errno::EMSGSIZE));
        }
        if let Err(e) = self.netlink_autobind(sk) {
            return Step::Done(Err(e));
        }
        let data = match self.copy_from_iter(m.task, &mut m.iter) {
            Ok(data) => data,
            Err(e) => return Step::Done(Err(e)),
        };
        let nl = nl!(sk);
        let to = m.netlink.unwrap_or(nl.peer);
        let (from, protocol) = (nl.portid, nl.protocol);
        if to.pid == 0 {
            self.netlink_rcv(sk, &data);
            return Step::Done(Ok(len as usize));
        }
        Step::Done(self.netlink_unicast((protocol, from), sk, to.pid, data).map(|()| len as usize))
    }

    /// From one program to another (Linux `netlink_unicast`).
    fn netlink_unicast(&mut self, from: (u8, u32), own: &mut Sock, to: u32, data: Vec<u8>) -> Result<(), Errno> {
        let id = *self.netlink.ports.get(&(from.0, to)).ok_or(Errno::ECONNREFUSED)?;
        let datagram = Datagram { data, from: from.1, group: 0, dump: false };
        if id == own.id {
            own.netlink_queue(datagram);
            self.sk_data_ready(own);
            return Ok(());
        }
        let mut sk = self.socks.take(id).ok_or(Errno::ECONNREFUSED)?;
        let room = sk.rmem_alloc <= sk.rcvbuf;
        if room {
            sk.netlink_queue(datagram);
            self.sk_data_ready(&mut sk);
        }
        self.socks.put(sk);
        if room { Ok(()) } else { Err(Errno::EAGAIN) }
    }

    /// Linux `netlink_recvmsg`.
    pub(crate) fn netlink_recvmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if m.flags & msg::OOB != 0 {
            return Step::Done(Err(Errno::EOPNOTSUPP));
        }
        if let Some(e) = sk.take_error() {
            return Step::Done(Err(e));
        }
        let room = usize::try_from(m.iter.count()).unwrap_or(usize::MAX);
        let nl = nl!(sk);
        nl.max_recvmsg_len = nl.max_recvmsg_len.max(room.min(MAX_DUMP));
        let Some(datagram) = nl.queue.pop_front() else { return Step::Wait(PollEvents::IN | PollEvents::RDNORM) };
        let n = datagram.data.len().min(room);
        let copied = self.copy_to_iter(m.task, &datagram.data[..n], &mut m.iter);
        let nl = nl!(sk);
        let mask = |group: u32| if (1..=32).contains(&group) { 1 << (group - 1) } else { 0 };
        m.netlink = Some(NetlinkAddr { pid: datagram.from, groups: mask(datagram.group) });
        if nl.opts.contains(Opts::PKTINFO) {
            m.control.push(Control::NetlinkPktInfo(datagram.group));
        }
        if n < datagram.data.len() {
            m.out_flags |= msg::TRUNC;
        }
        let len = if m.flags & msg::TRUNC != 0 { datagram.data.len() } else { n };
        if m.flags & msg::PEEK != 0 {
            nl.queue.push_front(datagram);
        } else {
            sk.rmem_alloc = sk.rmem_alloc.saturating_sub(datagram.data.len() as u32 + OVERHEAD);
            let nl = nl!(sk);
            if nl.queue.is_empty() {
                nl.congested = false;
            }
        }
        Step::Done(copied.map(|()| len))
    }

    /// `setsockopt(SOL_NETLINK)`.
    pub(crate) fn netlink_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        let n = match val {
            OptVal::Int(n) => *n as u32,
            OptVal::Bytes(b) => super::wire::word(b, 0).ok_or(Errno::EINVAL)?,
            _ => return Err(Errno::EINVAL),
        };
        let Proto::Netlink(nl) = &mut sk.proto else { return Err(Errno::ENOPROTOOPT) };
        let flag = match name {
            opt::ADD_MEMBERSHIP | opt::DROP_MEMBERSHIP => {
                if !(1..=GROUPS).contains(&n) {
                    return Err(Errno::EINVAL);
                }
                let bit = 1 << (n - 1);
                nl.groups = if name == opt::ADD_MEMBERSHIP { nl.groups | bit } else { nl.groups & !bit };
                self.netlink_membership(sk);
                return Ok(());
            }
            opt::PKTINFO => Opts::PKTINFO,
            opt::BROADCAST_ERROR => Opts::BROADCAST_ERROR,
            opt::NO_ENOBUFS => Opts::NO_ENOBUFS,
            opt::LISTEN_ALL_NSID => Opts::LISTEN_ALL_NSID,
            opt::CAP_ACK => Opts::CAP_ACK,
            opt::EXT_ACK => Opts::EXT_ACK,
            opt::GET_STRICT_CHK => Opts::STRICT,
            _ => return Err(Errno::ENOPROTOOPT),
        };
        nl.opts.set(flag, n != 0);
        Ok(())
    }

    /// `getsockopt(SOL_NETLINK)`.
    pub(crate) fn netlink_getsockopt(&mut self, sk: &Sock, name: i32) -> Result<OptVal, Errno> {
        let Proto::Netlink(nl) = &sk.proto else { return Err(Errno::ENOPROTOOPT) };
        let flag = match name {
            opt::LIST_MEMBERSHIPS => return Ok(OptVal::Bytes(nl.groups.to_ne_bytes().to_vec())),
            opt::PKTINFO => Opts::PKTINFO,
            opt::BROADCAST_ERROR => Opts::BROADCAST_ERROR,
            opt::NO_ENOBUFS => Opts::NO_ENOBUFS,
            opt::CAP_ACK => Opts::CAP_ACK,
            opt::EXT_ACK => Opts::EXT_ACK,
            opt::GET_STRICT_CHK => Opts::STRICT,
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(OptVal::Int(nl.opts.contains(flag).into()))
    }

    /// Keeps the list of members.
    fn netlink_membership(&mut self, sk: &Sock) {
        let Proto::Netlink(nl) = &sk.proto else { return };
        self.netlink.members.retain(|&id| id != sk.id);
        if nl.groups != 0 {
            self.netlink.members.push(sk.id);
        }
    }

    /// Tells a group (Linux `nlmsg_notify`); `own` is a member's socket that is out.
    pub(super) fn netlink_broadcast(&mut self, group: u32, data: &[u8], mut own: Option<&mut Sock>) {
        for at in 0..self.netlink.members.len() {
            let id: SockId = self.netlink.members[at];
            match &mut own {
                Some(sk) if sk.id == id => {
                    if sk.netlink_notify(group, data) {
                        self.sk_data_ready(sk);
                    }
                }
                _ => {
                    let Some(mut sk) = self.socks.take(id) else { continue };
                    if sk.netlink_notify(group, data) {
                        self.sk_data_ready(&mut sk);
                    }
                    self.socks.put(sk);
                }
            }
        }
    }

    /// A program's octets, all of them.
    fn copy_from_iter(&mut self, task: TaskId, iter: &mut IovIter) -> Result<Vec<u8>, Errno> {
        let scratch = self.netlink_scratch();
        let mut out = Vec::new();
        while let Some(run) = iter.next_run(scratch.len() as u64) {
            let part = scratch.slice(0, run.len as usize).map_err(|_| Errno::EFAULT)?;
            self.mem.copy_from_user(task, run.addr, &[part])?;
            let at = out.len();
            out.resize(at + run.len as usize, 0);
            part.read(&mut out[at..]);
        }
        Ok(out)
    }

    /// Octets to a program that has room for them.
    fn copy_to_iter(&mut self, task: TaskId, mut data: &[u8], iter: &mut IovIter) -> Result<(), Errno> {
        let scratch = self.netlink_scratch();
        while let Some(run) = iter.next_run(data.len().min(scratch.len()) as u64) {
            let (now, rest) = data.split_at(run.len as usize);
            let part = scratch.slice(0, now.len()).map_err(|_| Errno::EFAULT)?;
            part.write(now);
            self.mem.copy_to_user(task, run.addr, &[part])?;
            data = rest;
        }
        Ok(())
    }

    /// Memory through which copies go: requests are rare, and the pool of frames is for frames.
    fn netlink_scratch(&mut self) -> Region {
        self.netlink.scratch.get_or_insert_with(|| Region::heap(MAX_DUMP)).clone()
    }
}
