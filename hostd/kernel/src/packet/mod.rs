//! `AF_PACKET`: sockets that see and send whole frames (Linux `net/packet/af_packet.c`).
//!
//! A socket for all protocols (`ETH_P_ALL`) is shown every frame that a device receives and
//! every one that it is about to send; one for a protocol those received. Received packets
//! are clones; those on their way out are copied, because the driver still writes
//! headers in front of them. While no packet socket exists, the taps cost one comparison.
//!
//! `SOCK_RAW` sockets see and make the Ethernet header, `SOCK_DGRAM` sockets have the kernel take and
//! make it. `ring.rs` is `PACKET_RX_RING`: frames go to memory that the program has mapped, which whoever runs
//! the program provides.

pub mod bpf;
mod options;
pub mod ring;
mod tap;

pub use ring::RingRequest;

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::ether::header::{self, EtherHdr};
use crate::skb::{Checksum, MAX_HEADER, PacketType, SkBuff};
use crate::sock::{Proto, Sock, SockId};
use crate::syscall::exec::Flow;
use crate::syscall::{AuxData, Control, Fd, LinkAddr, MsgState, Ret, Step, msg};
use crate::trace::Point;
use crate::uaccess::{Iov, copy_iter_to_slice, copy_skb_to_iter};
use crate::wait::queue::PollEvents;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ringlab_counters::{CopyKind, DropReason};

/// All protocols.
pub(crate) const ETH_P_ALL: u16 = 3;
/// `ARPHRD_*`.
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const SOCK_RAW: i32 = 3;
const MAC_LEN: u8 = 6;
/// Octets of an 802.1Q tag, for which a frame may be longer than the MTU says.
const VLAN_HLEN: u32 = 4;

/// Sockets that are to be shown packets.
#[derive(Debug, Default)]
pub struct PacketTable {
    /// Those for all protocols: received and sent (`ptype_all`).
    all: Vec<SockId>,
    /// Those for one: received only (`ptype_base`).
    typed: Vec<(u16, SockId)>,
}

/// What is known of a queued frame beside its octets.
#[derive(Debug, Clone, Copy)]
struct Meta {
    from: LinkAddr,
    aux: AuxData,
}

/// `struct packet_sock`.
#[derive(Debug, Default)]
pub struct PacketSock {
    /// `SOCK_DGRAM`: without the link-layer header.
    cooked: bool,
    /// EtherType that it is shown, host order; 0: nothing.
    pub(crate) protocol: u16,
    /// In the tables.
    hooked: bool,
    metas: VecDeque<Meta>,
    /// `PACKET_STATISTICS`: seen and dropped since they were read.
    packets: u32,
    dropped: u32,
    auxdata: bool,
    origdev: bool,
    ignore_outgoing: bool,
    /// `PACKET_VERSION`: 0 (`TPACKET_V1`) to 2.
    version: i32,
    reserve: u32,
    /// Other options, for reading back.
    kept: Vec<(i32, i32)>,
    /// `PACKET_ADD_MEMBERSHIP`.
    memberships: Vec<options::Membership>,
    ring: Option<Box<ring::RxRing>>,
}

impl PacketSock {
    /// `SO_TYPE`.
    pub(crate) fn kind(&self) -> i32 {
        if self.cooked { 2 } else { SOCK_RAW }
    }

    /// True while it is shown packets.
    pub(crate) fn is_hooked(&self) -> bool {
        self.hooked
    }
}

/// The packet part of a socket, with the rest of it still free to borrow.
fn po(sk: &mut Sock) -> Result<&mut PacketSock, Errno> {
    match &mut sk.proto {
        Proto::Packet(po) => Ok(po),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

impl Kernel {
    /// What `socket(AF_PACKET)` makes.
    ///
    /// # Errors
    /// `ESOCKTNOSUPPORT`.
    pub(crate) fn packet_create(kind: i32, protocol: i32) -> Result<Proto, Errno> {
        if kind != 2 && kind != SOCK_RAW {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        let protocol = u16::from_be(protocol as u16);
        Ok(Proto::Packet(Box::new(PacketSock { cooked: kind == 2, protocol, ..PacketSock::default() })))
    }

    /// Shows the socket packets from now on, if it has a protocol.
    pub(crate) fn packet_hook(&mut self, sk: &mut Sock) {
        let id = sk.id;
        let Ok(po) = po(sk) else { return };
        match po.protocol {
            0 => return,
            ETH_P_ALL => self.packet.all.push(id),
            other => self.packet.typed.push((other, id)),
        }
        po.hooked = true;
    }

    fn packet_unhook(&mut self, sk: &mut Sock) {
        let id = sk.id;
        self.packet.all.retain(|&s| s != id);
        self.packet.typed.retain(|&(_, s)| s != id);
        if let Ok(po) = po(sk) {
            po.hooked = false;
        }
    }

    /// The socket ends.
    pub(crate) fn packet_release(&mut self, sk: &mut Sock) {
        self.packet_unhook(sk);
        self.packet_drop_memberships(sk);
        self.timers.cancel(crate::timer::TimerKey::PacketRing(sk.id));
    }

    /// `bind` with a `sockaddr_ll` (Linux `packet_bind`).
    pub(crate) fn sys_bind_link(&mut self, task: TaskId, fd: Fd, addr: LinkAddr) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let bind = |k: &mut Kernel, sk: &mut Sock| {
            if !matches!(sk.proto, Proto::Packet(_)) {
                return Err(Errno::EAFNOSUPPORT);
            }
            if addr.ifindex != 0 && k.devs.get(IfIndex(addr.ifindex)).is_none() {
                return Err(Errno::ENODEV);
            }
            k.packet_unhook(sk);
            sk.bound_dev_if = addr.ifindex;
            let po = po(sk)?;
            if addr.protocol != 0 {
                po.protocol = addr.protocol;
            }
            k.packet_hook(sk);
            if addr.ifindex != 0 && !k.devs.get(IfIndex(addr.ifindex)).is_some_and(|d| d.up) {
                sk.err = Some(Errno::ENETDOWN);
                k.sk_error_report(sk);
            }
            Ok(())
        };
        self.lock_sock(id, bind).ok_or(Errno::EBADF)?
    }

    /// `getsockname` of a packet socket.
    pub(crate) fn packet_getname(&self, sk: &Sock, protocol: u16) -> Ret {
        let dev = self.devs.get(IfIndex(sk.bound_dev_if));
        let mut addr = LinkAddr { protocol, ifindex: sk.bound_dev_if, ..LinkAddr::default() };
        if let Some(dev) = dev {
            addr.hatype = if dev.is_loopback() { ARPHRD_LOOPBACK } else { ARPHRD_ETHER };
            addr.halen = MAC_LEN;
            addr.addr[..6].copy_from_slice(&dev.mac.0);
        }
        Ret::LinkAddr(addr)
    }

    /// `sendto` with a `sockaddr_ll`.
    pub(crate) fn sys_send_link(&mut self, task: TaskId, fd: Fd, iov: Iov, flags: u32, to: LinkAddr) -> Flow {
        match self.fget_sock(task, fd) {
            Ok((file, id)) if self.socks.get(id).is_some_and(|sk| matches!(sk.proto, Proto::Packet(_))) => {
                let mut m = self.msg_state(task, file, iov, flags);
                m.link = Some(to);
                self.do_sendmsg(task, file, m)
            }
            Ok(_) => Flow::Done(Ret::Err(Errno::EAFNOSUPPORT)),
            Err(e) => Flow::Done(Ret::Err(e)),
        }
    }

    /// Sends a frame (Linux `packet_snd`).
    pub(crate) fn packet_sendmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        let bound = sk.bound_dev_if;
        let Ok(po) = po(sk) else { return Step::Done(Err(Errno::EOPNOTSUPP)) };
        if m.link.is_none() && m.addr.is_some() {
            return Step::Done(Err(Errno::EINVAL));
        }
        let (cooked, own) = (po.cooked, po.protocol);
        let to = m.link.unwrap_or(LinkAddr { protocol: own, ifindex: bound, ..LinkAddr::default() });
        let Some((mtu, up, src)) = self.devs.get(IfIndex(to.ifindex)).map(|d| (d.mtu, d.up, d.mac)) else {
            return Step::Done(Err(Errno::ENXIO));
        };
        if !up {
            return Step::Done(Err(Errno::ENETDOWN));
        }
        let len = m.iter.count();
        let head = if cooked { 0 } else { header::LEN as u32 };
        if len > u64::from(mtu + head + if cooked { 0 } else { VLAN_HLEN }) {
            return Step::Done(Err(Errno::EMSGSIZE));
        }
        if len < u64::from(head) || cooked && m.link.is_some_and(|l| l.halen < MAC_LEN) {
            return Step::Done(Err(Errno::EINVAL));
        }
        if let Err(answer) = self.dgram_may_send(sk, m) {
            return answer;
        }
        let mut skb = self.alloc_skb();
        if !skb.alloc_head(&self.config.pool, MAX_HEADER, len as u32) {
            self.kfree_skb(skb, DropReason::NoMem);
            return Step::Done(Err(Errno::ENOBUFS));
        }
        if let Err(e) = copy_iter_to_slice(&mut *self.mem, m.task, &mut m.iter, skb.put(len as u32)) {
            self.kfree_skb(skb, DropReason::NotSpecified);
            return Step::Done(Err(e));
        }
        self.copies.inc(CopyKind::UserToSkb);
        self.copies.add(CopyKind::UserToSkbBytes, len);
        self.trace(Point::CopyFromUser, skb.id, [sk.id.0.into(), len, 0, 0]);
        if cooked {
            let mut dst = crate::dev::net_device::MacAddr::default();
            dst.0.copy_from_slice(&to.addr[..6]);
            skb.push(&EtherHdr { dst, src, protocol: to.protocol }.emit());
        }
        let mut kind = [0; 2];
        skb.protocol = match skb.copy_bits(12, &mut kind) {
            Ok(()) if to.protocol == 0 || !cooked => u16::from_be_bytes(kind),
            _ => to.protocol,
        };
        skb.dev = to.ifindex;
        skb.csum = Checksum::None;
        skb.pkt_type = PacketType::Outgoing;
        self.dgram_charge(sk, &mut skb);
        Step::Done(self.dev_queue_xmit(skb).map(|()| len as usize))
    }

    /// Receives a frame (Linux `packet_recvmsg`).
    pub(crate) fn packet_recvmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        let allowed = msg::PEEK | msg::DONTWAIT | msg::TRUNC | msg::ERRQUEUE | msg::NOSIGNAL | msg::CMSG_CLOEXEC | msg::WAITALL;
        if m.flags & !allowed & 0xffff != 0 {
            return Step::Done(Err(Errno::EINVAL));
        }
        if let Some(e) = sk.take_error() {
            return Step::Done(Err(e));
        }
        let Some(skb) = sk.receive_queue.front() else {
            return match m.give_up {
                Some(e) => Step::Done(Err(e)),
                None if m.nonblock => Step::Done(Err(Errno::EAGAIN)),
                None => Step::Wait(PollEvents::IN | PollEvents::RDNORM),
            };
        };
        let (len, stamp) = (skb.len(), skb.tstamp);
        let copied = copy_skb_to_iter(&mut *self.mem, m.task, skb, 0, len, &mut m.iter);
        let drops = sk.drops;
        let (ns, us, ovfl) = (sk.opt.timestampns, sk.opt.timestamp, sk.opt.rxq_ovfl);
        let Ok(po) = po(sk) else { return Step::Done(Err(Errno::EOPNOTSUPP)) };
        let meta = po.metas.front().copied();
        let auxdata = po.auxdata;
        if m.flags & msg::PEEK == 0 {
            po.metas.pop_front();
            if let Some(skb) = sk.receive_queue.pop_front() {
                sk.rmem_alloc -= skb.truesize.min(sk.rmem_alloc);
                sk.stamp = Some(stamp);
                self.consume_skb(skb);
            }
        }
        let copied = match copied {
            Ok(n) => n,
            Err(e) => return Step::Done(Err(e)),
        };
        self.copies.inc(CopyKind::SkbToUser);
        self.copies.add(CopyKind::SkbToUserBytes, copied.into());
        m.link = meta.map(|meta| meta.from);
        if us {
            m.control.push(Control::Timestamp(stamp.0));
        }
        if ns {
            m.control.push(Control::TimestampNs(stamp.0));
        }
        if ovfl && drops > 0 {
            m.control.push(Control::RxqOvfl(drops));
        }
        if auxdata && let Some(meta) = meta {
            m.control.push(Control::AuxData(meta.aux));
        }
        let mut result = copied as usize;
        if copied < len {
            m.out_flags |= msg::TRUNC;
            if m.flags & msg::TRUNC != 0 {
                result = len as usize;
            }
        }
        Step::Done(Ok(result))
    }

    /// Readiness beside the queue's: frames in the ring (Linux `packet_poll`).
    pub(crate) fn packet_ring_ready(sk: &Sock) -> bool {
        match &sk.proto {
            Proto::Packet(po) => po.ring.as_ref().is_some_and(|ring| ring.readable()),
            _ => false,
        }
    }
}

impl Kernel {
    /// Runs a socket's filter over a packet (Linux `sk_filter_trim_cap`): false drops it; else it is cut to what the filter keeps, at
    /// least `least` octets.
    pub(crate) fn sk_filter(&mut self, sk: &mut Sock, skb: &mut SkBuff, least: u32) -> bool {
        let Some(filter) = &sk.filter else { return true };
        let random = rand_core::Rng::next_u32(&mut self.rng);
        let cx = bpf::Context { net_off: 0, hatype: ARPHRD_ETHER, cpu: self.this_cpu, random };
        let keep = filter.run(skb, &cx);
        if keep > 0 {
            skb.trim(keep.max(least));
        }
        keep > 0
    }

    /// The first address of an interface (Linux `fib_compute_spec_dst` for what was sent to many).
    pub(crate) fn local_addr_of(&self, dev: u32) -> core::net::Ipv4Addr {
        let addr = self.devs.get(IfIndex(dev)).and_then(|d| d.addrs.first());
        addr.map_or(core::net::Ipv4Addr::UNSPECIFIED, |a| a.0)
    }
}

/// What a device's frames look like to `sockaddr_ll`.
fn link_addr(skb: &SkBuff, loopback: bool, src: [u8; 6]) -> LinkAddr {
    let mut addr = [0; 8];
    addr[..6].copy_from_slice(&src);
    LinkAddr {
        protocol: skb.protocol,
        ifindex: skb.dev,
        hatype: if loopback { ARPHRD_LOOPBACK } else { ARPHRD_ETHER },
        pkttype: bpf::pkt_type(skb.pkt_type),
        halen: MAC_LEN,
        addr,
    }
}
