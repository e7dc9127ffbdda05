//! UDP send: from the program to IP.
//!
//! The datagram is copied once, into one buffer with room for all headers in
//! front. The device completes its checksum unless it has to be fragmented.

use super::header::{UDP_HLEN, UdpHdr, pseudo_sum};
use super::{Sock, destination};
use crate::Kernel;
use crate::errno::Errno;
use crate::ip::IpOut;
use crate::ip::route::{Flow, Route, RouteKind};
use crate::skb::{Checksum, MAX_HEADER, MAX_SKB_FRAGS, SkBuff};
use crate::sock::{Proto, SEND_SHUTDOWN, SockErr};
use crate::syscall::{Control, MsgState, Step, msg};
use crate::trace::Point;
use crate::uaccess::copy_iter_to_slice;
use crate::wait::queue::PollEvents;
use alloc::boxed::Box;
use core::net::{Ipv4Addr, SocketAddrV4};
use ringlab_counters::{CopyKind, DropReason, Mib};
use ringlab_ring::memory::fold;

/// Octets of payload that fit into an IPv4 packet.
const MAX_PAYLOAD: u32 = 65507;
const IP_HLEN: u32 = 20;
const LARGEST_BUF: u32 = 65536;
const SKB_OVERHEAD: u32 = 256;

/// A datagram being put together.
#[derive(Debug)]
pub(crate) struct Cork {
    /// The payload so far.
    pub(crate) skb: Box<SkBuff>,
    path: Path,
}

/// Where a datagram goes, and how its IP header looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) route: Route,
    pub(crate) saddr: Ipv4Addr,
    pub(crate) to: SocketAddrV4,
    pub(crate) tos: u8,
    pub(crate) ttl: Option<u8>,
}

impl Kernel {
    /// Linux `udp_sendmsg`.
    pub(crate) fn udp_sendmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        let len = m.iter.count();
        if len > 0xffff {
            return Step::Done(Err(Errno::EMSGSIZE));
        }
        if m.flags & msg::OOB != 0 {
            return Step::Done(Err(Errno::EOPNOTSUPP));
        }
        let Proto::Udp(up) = &mut sk.proto else { return Step::Done(Err(Errno::EOPNOTSUPP)) };
        let more = up.corked || m.flags & msg::MORE != 0;
        if let Some(cork) = up.cork.take() {
            return Step::Done(self.udp_append(sk, cork, m, more));
        }
        let path = match self.dgram_path(sk, m) {
            Ok(path) if path.to.port() == 0 => return Step::Done(Err(Errno::EINVAL)),
            Ok(path) => path,
            Err(e) => return Step::Done(Err(e)),
        };
        if len as u32 > MAX_PAYLOAD {
            return Step::Done(Err(self.too_long(sk, &path, MAX_PAYLOAD + UDP_HLEN + IP_HLEN)));
        }
        if let Err(answer) = self.dgram_may_send(sk, m) {
            return answer;
        }
        // A datagram that will grow gets the largest buffer at once.
        let room = if more { LARGEST_BUF - MAX_HEADER } else { len as u32 };
        let skb = match self.dgram_copy(sk, m, room) {
            Ok(skb) => skb,
            Err(e) => return Step::Done(Err(e)),
        };
        if more {
            if let Proto::Udp(up) = &mut sk.proto {
                up.cork = Some(Cork { skb, path });
            }
            return Step::Done(Ok(len as usize));
        }
        Step::Done(self.udp_send_skb(sk, skb, &path).map(|()| len as usize))
    }

    /// Adds to a corked datagram, and sends it when it is complete.
    fn udp_append(&mut self, sk: &mut Sock, mut cork: Cork, m: &mut MsgState, more: bool) -> Result<usize, Errno> {
        let len = m.iter.count() as u32;
        if cork.skb.len() + len > MAX_PAYLOAD {
            let error = self.too_long(sk, &cork.path, MAX_PAYLOAD + UDP_HLEN + IP_HLEN);
            self.put_cork(sk, cork);
            return Err(error);
        }
        if let Err(e) = self.dgram_fill(sk, &mut cork.skb, m, len) {
            // Linux drops the whole pending datagram (`udp_flush_pending_frames`).
            self.kfree_skb(cork.skb, DropReason::NotSpecified);
            return Err(e);
        }
        if more {
            self.put_cork(sk, cork);
        } else {
            self.udp_send_skb(sk, cork.skb, &cork.path)?;
        }
        Ok(len as usize)
    }

    fn put_cork(&mut self, sk: &mut Sock, cork: Cork) {
        if let Proto::Udp(up) = &mut sk.proto {
            up.cork = Some(cork);
        }
    }

    /// Sends a corked datagram as it is (Linux `udp_push_pending_frames`).
    pub(super) fn udp_push_pending(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        let Proto::Udp(up) = &mut sk.proto else { return Ok(()) };
        match up.cork.take() {
            Some(cork) => self.udp_send_skb(sk, cork.skb, &cork.path),
            None => Ok(()),
        }
    }

    /// Destination, route and header fields of a datagram: from the call, its control messages, the socket.
    pub(crate) fn dgram_path(&mut self, sk: &mut Sock, m: &MsgState) -> Result<Path, Errno> {
        let to = destination(sk, m.addr)?;
        let multicast = to.ip().is_multicast();
        let mut saddr = sk.saddr;
        let mut oif = sk.dgram_oif(*to.ip());
        let mut tos = sk.inet.tos;
        let mut ttl = if multicast { Some(sk.inet.mc_ttl.unwrap_or(1)) } else { sk.inet.ttl };
        let cached = m.addr.is_none() && m.control.is_empty();
        for control in &m.control {
            match *control {
                Control::PktInfo(index, source, _) => {
                    if index != 0 {
                        oif = index;
                    }
                    if !source.is_unspecified() {
                        saddr = source;
                    }
                }
                Control::Ttl(0) => return Err(Errno::EINVAL),
                Control::Ttl(n) => ttl = Some(n),
                Control::Tos(n) => tos = n,
                Control::PktInfo6(index, source) if sk.family == crate::sock::AF_INET6 => {
                    if index != 0 {
                        oif = index;
                    }
                    // Only a mapped address can be the source of an IPv4 packet.
                    saddr = source.to_ipv4_mapped().ok_or(Errno::EINVAL)?;
                }
                // Of IPv6 packets; this one is none.
                Control::HopLimit(_) | Control::TClass(_) | Control::Mark(_) => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        let route = if cached && sk.is_connected_dgram() {
            self.ip_sk_route(sk)?
        } else {
            self.ip_route_output(Flow { daddr: *to.ip(), saddr, oif })?
        };
        if route.kind == RouteKind::Broadcast && !sk.opt.broadcast {
            return Err(Errno::EACCES);
        }
        // `RT_SCOPE_LINK`: no way by a gateway is looked for.
        if (sk.opt.dontroute || m.flags & msg::DONTROUTE != 0) && route.kind == RouteKind::Unicast && route.nexthop != *to.ip() {
            return Err(Errno::ENETUNREACH);
        }
        let saddr = if saddr.is_unspecified() { route.saddr } else { saddr };
        Ok(Path { route, saddr, to, tos, ttl })
    }

    /// Errors and room of a datagram sender (Linux `sock_alloc_send_pskb`): whether it may go on, or else what its call answers.
    pub(crate) fn dgram_may_send(&mut self, sk: &mut Sock, m: &MsgState) -> Result<(), Step<Result<usize, Errno>>> {
        if let Some(e) = sk.take_error() {
            return Err(Step::Done(Err(e)));
        }
        if sk.shutdown & SEND_SHUTDOWN != 0 {
            return Err(Step::Done(Err(Errno::EPIPE)));
        }
        if sk.wmem_alloc < sk.sndbuf {
            return Ok(());
        }
        Err(match m.give_up {
            Some(e) => Step::Done(Err(e)),
            None if m.nonblock => Step::Done(Err(Errno::EAGAIN)),
            None => Step::Wait(PollEvents::WRITABLE),
        })
    }

    /// A packet with the call's payload, `room` octets of it in view, and headroom for all headers.
    pub(crate) fn dgram_copy(&mut self, sk: &Sock, m: &mut MsgState, room: u32) -> Result<Box<SkBuff>, Errno> {
        let len = m.iter.count() as u32;
        let mut skb = self.alloc_skb();
        let head = (MAX_HEADER + room).min(LARGEST_BUF);
        if !skb.alloc_head(&self.config.pool, MAX_HEADER, head - MAX_HEADER) {
            self.kfree_skb(skb, DropReason::NoMem);
            return Err(Errno::ENOBUFS);
        }
        match self.dgram_fill(sk, &mut skb, m, len) {
            Ok(()) => Ok(skb),
            Err(e) => {
                self.kfree_skb(skb, DropReason::NotSpecified);
                Err(e)
            }
        }
    }

    /// Appends `len` octets of the call's payload: the send path's one CPU copy.
    fn dgram_fill(&mut self, sk: &Sock, skb: &mut SkBuff, m: &mut MsgState, len: u32) -> Result<(), Errno> {
        let mut left = len;
        while left > 0 {
            let n = left.min(skb.tailroom());
            if n == 0 {
                let buf = self.config.pool.alloc(left).ok_or(Errno::ENOBUFS)?;
                debug_assert!(skb.frags().len() < MAX_SKB_FRAGS);
                if !skb.append(crate::skb::Frag { buf, off: 0, len: 0 }) {
                    return Err(Errno::EMSGSIZE);
                }
                continue;
            }
            copy_iter_to_slice(&mut *self.mem, m.task, &mut m.iter, skb.put(n))?;
            left -= n;
        }
        self.copies.inc(CopyKind::UserToSkb);
        self.copies.add(CopyKind::UserToSkbBytes, len.into());
        self.trace(Point::CopyFromUser, skb.id, [sk.id.0.into(), len.into(), 0, 0]);
        Ok(())
    }

    /// Adds the UDP header and hands the datagram to IP.
    fn udp_send_skb(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>, path: &Path) -> Result<(), Errno> {
        let len = skb.len() + UDP_HLEN;
        let mut hdr = UdpHdr { sport: sk.sport, dport: path.to.port(), len: len as u16, csum: 0 };
        let pseudo = pseudo_sum(path.saddr.into(), (*path.to.ip()).into(), 17, len);
        let whole = len + IP_HLEN <= path.route.mtu;
        if sk.opt.no_check {
            skb.csum = Checksum::None;
        } else if whole {
            hdr.csum = fold(pseudo);
            skb.csum = Checksum::Partial { start: 0, offset: 6 };
        } else {
            let sum = skb.checksum(0, skb.len(), pseudo + hdr.sum());
            hdr.csum = if sum == 0xffff { 0xffff } else { !sum };
            skb.csum = Checksum::None;
        }
        skb.push(&hdr.emit());
        match self.dgram_output(sk, skb, path, 17) {
            Ok(()) => self.mib.inc(Mib::UdpOutDatagrams),
            // A full queue is told only to those who asked for errors.
            Err(Errno::ENOBUFS) if !sk.inet.recverr => self.mib.inc(Mib::UdpSndbufErrors),
            Err(Errno::EMSGSIZE) => return Err(self.too_long(sk, path, path.route.mtu)),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Charges the packet to the socket and hands it to IP, with the socket's choice about fragmentation.
    pub(crate) fn dgram_output(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>, path: &Path, protocol: u8) -> Result<(), Errno> {
        let whole = skb.len() + IP_HLEN <= path.route.mtu;
        let df = matches!(sk.inet.pmtudisc, 2 | 3) || sk.inet.pmtudisc == 1 && whole;
        self.dgram_charge(sk, &mut skb);
        let id = sk.is_connected_dgram().then(|| {
            sk.ip_id = sk.ip_id.wrapping_add(1);
            sk.ip_id
        });
        let hdr = IpOut { saddr: path.saddr, daddr: *path.to.ip(), protocol, tos: path.tos, ttl: path.ttl, df, id };
        self.ip_send_skb(skb, hdr, &path.route)
    }

    /// Charges a packet to its sender until it is freed (Linux `skb_set_owner_w`).
    pub(crate) fn dgram_charge(&mut self, sk: &mut Sock, skb: &mut SkBuff) {
        skb.truesize = SKB_OVERHEAD + skb.frags().iter().map(|f| f.buf.capacity()).sum::<u32>();
        skb.owner = sk.id.0;
        skb.priority = sk.opt.priority;
        skb.hash = sk.txhash;
        skb.mc_loop_off = sk.inet.mc_loop_off;
        sk.wmem_alloc += skb.truesize;
        skb.pressed = !sk.is_writeable();
    }

    /// `EMSGSIZE`, and the entry of the error queue that goes with it (Linux `ip_local_error`).
    fn too_long(&mut self, sk: &mut Sock, path: &Path, info: u32) -> Errno {
        if sk.inet.recverr {
            sk.queue_err(SockErr {
                errno: Errno::EMSGSIZE,
                origin: 1,
                kind: 0,
                code: 0,
                info,
                offender: Ipv4Addr::UNSPECIFIED,
                addr: path.to,
                data: arrayvec::ArrayVec::new(),
                report: (0, 0, self.now),
            });
        }
        Errno::EMSGSIZE
    }
}
