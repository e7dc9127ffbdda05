//! UDP receive: from IP to the socket's queue, from there to the program; ICMP errors.

use super::header::{UDP_HLEN, UdpHdr, pseudo_sum};
use super::table::Tuple;
use crate::Kernel;
use crate::errno::Errno;
use crate::ip::IcmpError;
use crate::skb::{Checksum, SkBuff};
use crate::sock::{Proto, RCV_SHUTDOWN, Sock, SockErr, SockId};
use crate::syscall::{Control, MsgState, Step, msg};
use crate::trace::Point;
use crate::uaccess::copy_skb_to_iter;
use crate::wait::queue::PollEvents;
use alloc::boxed::Box;
use core::net::{Ipv4Addr, SocketAddrV4};
use ringlab_counters::{CopyKind, DropReason, Mib};

const ICMP_DEST_UNREACH: u8 = 3;
const ICMP_SOURCE_QUENCH: u8 = 4;
const ICMP_REDIRECT: u8 = 5;
const ICMP_PARAMETERPROB: u8 = 12;
const PORT_UNREACH: u8 = 3;
const FRAG_NEEDED: u8 = 4;
/// Octets that an `sk_buff` costs beside its data.
const SKB_OVERHEAD: u32 = 256;
/// Largest datagram that is worth copying into a small buffer, to give a large one back.
const CONDENSE_MAX: u32 = 512;

impl Kernel {
    /// A datagram from IP; `skb` stands at the UDP header (Linux `__udp4_lib_rcv`).
    pub(crate) fn udp_rcv(&mut self, mut skb: Box<SkBuff>) {
        let mut bytes = [0; UDP_HLEN as usize];
        if skb.copy_bits(0, &mut bytes).is_err() {
            return self.udp_bad(skb, DropReason::NotSpecified);
        }
        let hdr = UdpHdr::parse(&bytes);
        self.trace(Point::UdpRcv, skb.id, [hdr.sport.into(), hdr.dport.into(), hdr.len.into(), 0]);
        let len = u32::from(hdr.len);
        if len < UDP_HLEN || len > skb.len() {
            return self.udp_bad(skb, DropReason::PktTooSmall);
        }
        skb.trim(len);
        if hdr.csum != 0 && skb.csum == Checksum::None {
            let pseudo = pseudo_sum(skb.ip.saddr, skb.ip.daddr, 17, len);
            if skb.checksum(0, len, pseudo) != 0xffff {
                self.mib.inc(Mib::UdpInCsumErrors);
                return self.udp_bad(skb, DropReason::UdpCsum);
            }
            skb.csum = Checksum::Unnecessary;
        }
        skb.tcp.sport = hdr.sport;
        skb.tcp.dport = hdr.dport;
        let tuple = Tuple { saddr: skb.ip.saddr.into(), sport: hdr.sport, daddr: skb.ip.daddr.into(), dport: hdr.dport, dev: skb.dev };
        if skb.ip.non_unicast {
            return self.udp_mcast_deliver(skb, &tuple);
        }
        match self.udp_lookup(&tuple) {
            Some(id) => self.udp_queue_rcv(id, skb),
            None => {
                self.mib.inc(Mib::UdpNoPorts);
                self.icmp_send(&skb, ICMP_DEST_UNREACH, PORT_UNREACH, 0);
                self.kfree_skb(skb, DropReason::NoSocket);
            }
        }
    }

    fn udp_bad(&mut self, skb: Box<SkBuff>, reason: DropReason) {
        self.mib.inc(Mib::UdpInErrors);
        self.kfree_skb(skb, reason);
    }

    /// Every socket that listens gets it; nobody does: no answer (RFC 1122 §3.2.2).
    fn udp_mcast_deliver(&mut self, skb: Box<SkBuff>, tuple: &Tuple) {
        let mut next = self.udp_next_mcast(tuple, 0);
        if next.is_none() {
            self.mib.inc(Mib::UdpIgnoredMulti);
            return self.kfree_skb(skb, DropReason::NotSpecified);
        }
        while let Some((id, at)) = next {
            next = self.udp_next_mcast(tuple, at);
            if next.is_none() {
                return self.udp_queue_rcv(id, skb);
            }
            let clone = self.skb_clone(&skb);
            self.udp_queue_rcv(id, clone);
        }
    }

    fn udp_queue_rcv(&mut self, id: SockId, mut skb: Box<SkBuff>) {
        let mut sk = self.socks.take(id).expect("looked up a moment ago");
        if sk.filter.is_some() && !self.sk_filter(&mut sk, &mut skb, UDP_HLEN) {
            sk.drops = sk.drops.wrapping_add(1);
            self.udp_bad(skb, DropReason::SocketFilter);
            return self.socks.put(sk);
        }
        skb.pull(UDP_HLEN).expect("the header was read");
        if sk.owned && self.config.udp_backlog {
            if sk.backlog_len + sk.rmem_alloc > sk.rcvbuf {
                self.mib.inc(Mib::UdpRcvbufErrors);
                sk.drops = sk.drops.wrapping_add(1);
                self.udp_bad(skb, DropReason::SocketBacklog);
            } else {
                self.trace(Point::SkAddBacklog, skb.id, [id.0.into(), skb.len().into(), 0, 0]);
                sk.backlog_len += charge(&mut skb);
                sk.backlog.push_back(skb);
            }
        } else {
            self.udp_enqueue(&mut sk, skb);
        }
        self.socks.put(sk);
    }

    /// Queues a datagram if there is room, and wakes a reader (Linux `__udp_enqueue_schedule_skb`).
    pub(crate) fn udp_enqueue(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) {
        charge(&mut skb);
        if sk.rmem_alloc > sk.rcvbuf / 2 {
            self.skb_condense(&mut skb);
        }
        // One datagram is taken whatever its size.
        if sk.rmem_alloc.saturating_add(skb.truesize) > sk.rcvbuf && sk.rmem_alloc > 0 {
            self.mib.inc(Mib::UdpRcvbufErrors);
            sk.drops = sk.drops.wrapping_add(1);
            return self.udp_bad(skb, DropReason::SocketRcvbuff);
        }
        self.dgram_queue(sk, skb);
    }

    /// Queues a packet that is paid for and tells the readers.
    pub(crate) fn dgram_queue(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) {
        sk.rmem_alloc += charge(&mut skb);
        self.trace(Point::SockQueueRcv, skb.id, [sk.id.0.into(), skb.len().into(), 0, 0]);
        sk.receive_queue.push_back(skb);
        self.sk_data_ready(sk);
    }

    /// Moves a small datagram out of a large buffer when memory gets short: one more copy, counted (Linux `skb_condense`).
    fn skb_condense(&mut self, skb: &mut SkBuff) {
        let len = skb.len();
        if len > CONDENSE_MAX || skb.truesize <= CONDENSE_MAX + SKB_OVERHEAD {
            return;
        }
        let Some(small) = self.config.pool.alloc(len) else { return };
        skb.replace_data(small, 0);
        skb.truesize = CONDENSE_MAX + SKB_OVERHEAD;
        self.count_copy(len);
    }

    /// Receives a datagram, of UDP, ping or raw sockets (Linux `udp_recvmsg`, `ping_recvmsg`, `raw_recvmsg`).
    pub(crate) fn dgram_recvmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if m.flags & msg::OOB != 0 && !matches!(sk.proto, Proto::Udp(_)) {
            return Step::Done(Err(Errno::EOPNOTSUPP));
        }
        if let Some(e) = sk.take_error() {
            return Step::Done(Err(e));
        }
        if m.flags & msg::PEEK != 0
            && let Some((index, off)) = peek_at(sk)
        {
            let skb = &sk.receive_queue[index];
            let copied = copy_skb_to_iter(&mut *self.mem, m.task, skb, off, skb.len() - off, &mut m.iter);
            let done = copied.map(|n| self.dgram_report(sk, &sk.receive_queue[index], n, off, m));
            if let (Some(at), Ok(n)) = (&mut sk.opt.peek_off, &copied) {
                *at = at.saturating_add(*n);
            }
            return Step::Done(done);
        }
        let peek_in_vain = m.flags & msg::PEEK != 0;
        let Some(skb) = (if peek_in_vain { None } else { sk.receive_queue.pop_front() }) else {
            return match m.give_up {
                // Only who waits looks whether anything can come (Linux `__skb_wait_for_more_packets`).
                _ if m.nonblock => Step::Done(Err(Errno::EAGAIN)),
                _ if sk.shutdown & RCV_SHUTDOWN != 0 => Step::Done(Ok(0)),
                Some(e) => Step::Done(Err(e)),
                None => Step::Wait(PollEvents::IN | PollEvents::RDNORM),
            };
        };
        sk.rmem_alloc -= skb.truesize;
        sk.stamp = Some(skb.tstamp);
        if let Some(at) = &mut sk.opt.peek_off {
            *at = at.saturating_sub(skb.len());
        }
        let copied = copy_skb_to_iter(&mut *self.mem, m.task, &skb, 0, skb.len(), &mut m.iter);
        let udp = matches!(sk.proto, Proto::Udp(_));
        if udp {
            self.mib.inc(if copied.is_ok() { Mib::UdpInDatagrams } else { Mib::UdpInErrors });
        }
        let done = copied.map(|n| self.dgram_report(sk, &skb, n, 0, m));
        self.consume_skb(skb);
        Step::Done(done)
    }

    /// Accounts the copy; says who sent it, and whatever else the program asked for. Returns the call's result.
    fn dgram_report(&mut self, sk: &Sock, skb: &SkBuff, copied: u32, off: u32, m: &mut MsgState) -> usize {
        self.copies.inc(CopyKind::SkbToUser);
        self.copies.add(CopyKind::SkbToUserBytes, copied.into());
        self.trace(Point::CopyToUser, skb.id, [sk.id.0.into(), copied.into(), 0, 0]);
        let port = if matches!(sk.proto, Proto::Udp(_)) { skb.tcp.sport } else { 0 };
        m.addr = Some(match sk.to_user_addr(skb.ip.saddr.into(), port) {
            core::net::SocketAddr::V6(_) => (Ipv4Addr::from(skb.ip.saddr).to_ipv6_mapped(), port).into(),
            v4 => v4,
        });
        if sk.opt.timestamp {
            m.control.push(Control::Timestamp(skb.tstamp.0));
        }
        if sk.opt.timestampns {
            m.control.push(Control::TimestampNs(skb.tstamp.0));
        }
        if sk.opt.rxq_ovfl && sk.drops > 0 {
            m.control.push(Control::RxqOvfl(sk.drops));
        }
        let daddr = Ipv4Addr::from(skb.ip.daddr);
        if sk.inet.pktinfo {
            let local = if skb.ip.non_unicast { self.local_addr_of(skb.dev) } else { daddr };
            m.control.push(Control::PktInfo(skb.dev, local, daddr));
        }
        if sk.inet.pktinfo6 && sk.family != crate::sock::AF_INET {
            m.control.push(Control::PktInfo6(skb.dev, daddr.to_ipv6_mapped()));
        }
        if sk.inet.recvttl {
            m.control.push(Control::Ttl(skb.ip.ttl));
        }
        if sk.inet.recvtos {
            m.control.push(Control::Tos(skb.ip.tos));
        }
        if sk.inet.recvorigdst {
            m.control.push(Control::OrigDst(SocketAddrV4::new(daddr, skb.tcp.dport)));
        }
        if copied < skb.len() - off {
            m.out_flags |= msg::TRUNC;
            if m.flags & msg::TRUNC != 0 {
                return (skb.len() - off) as usize;
            }
        }
        copied as usize
    }

    /// An ICMP error about a datagram of ours (Linux `__udp4_lib_err`).
    pub(crate) fn udp_err(&mut self, e: &IcmpError) {
        let port = |i: usize| u16::from_be_bytes([e.payload[i], e.payload[i + 1]]);
        let tuple = Tuple { saddr: e.daddr, sport: port(2), daddr: e.saddr, dport: port(0), dev: 0 };
        let Some(id) = self.udp_lookup(&tuple) else { return };
        self.dgram_err(id, e, tuple.sport, UDP_HLEN as usize);
    }

    /// Tells a datagram socket of an ICMP error: connected ones the fatal ones, those with `IP_RECVERR` all. The
    /// program's payload begins `skip` octets after the IP header.
    pub(crate) fn dgram_err(&mut self, id: SockId, e: &IcmpError, dport: u16, skip: usize) {
        let Some(mut sk) = self.socks.take(id) else { return };
        self.icmp_err_update_pmtu(e);
        if let Some((errno, fatal)) = icmp_errno(e, sk.inet.pmtudisc) {
            if sk.inet.recverr {
                sk.queue_err(SockErr {
                    errno,
                    origin: 2,
                    kind: e.kind,
                    code: e.code,
                    info: e.info,
                    offender: e.from,
                    addr: SocketAddrV4::new(e.daddr, dport),
                    data: e.quote.iter().skip(skip).copied().collect(),
                    report: e.report,
                });
            }
            if sk.inet.recverr || fatal && sk.is_connected_dgram() {
                sk.err = Some(errno);
                self.sk_error_report(&mut sk);
            }
        }
        self.socks.put(sk);
    }
}

/// The datagram that `MSG_PEEK` looks at, and where in it: those before `SO_PEEK_OFF` are passed over.
fn peek_at(sk: &Sock) -> Option<(usize, u32)> {
    let mut off = sk.opt.peek_off.unwrap_or(0);
    for (index, skb) in sk.receive_queue.iter().enumerate() {
        if off == 0 || off < skb.len() {
            return Some((index, off));
        }
        off -= skb.len();
    }
    None
}

/// Charges a packet that nobody has measured yet; returns what it costs.
fn charge(skb: &mut SkBuff) -> u32 {
    if skb.truesize == 0 {
        skb.truesize = SKB_OVERHEAD + skb.frags().iter().map(|f| f.buf.capacity()).sum::<u32>();
    }
    skb.truesize
}

/// What an ICMP error means to a datagram socket, and whether it is fatal; `None`: nothing.
fn icmp_errno(e: &IcmpError, pmtudisc: u8) -> Option<(Errno, bool)> {
    match (e.kind, e.code) {
        (ICMP_SOURCE_QUENCH | ICMP_REDIRECT, _) => None,
        (ICMP_PARAMETERPROB, _) => Some((Errno::EPROTO, true)),
        (ICMP_DEST_UNREACH, FRAG_NEEDED) => (pmtudisc != 0).then_some((Errno::EMSGSIZE, true)),
        (ICMP_DEST_UNREACH, code) => Some(unreach_errno(code)),
        _ => Some((Errno::EHOSTUNREACH, false)),
    }
}

/// Linux `icmp_err_convert`.
fn unreach_errno(code: u8) -> (Errno, bool) {
    match code {
        0 => (Errno::ENETUNREACH, false),
        1 => (Errno::EHOSTUNREACH, false),
        2 => (Errno::ENOPROTOOPT, true),
        PORT_UNREACH => (Errno::ECONNREFUSED, true),
        5 => (Errno::EOPNOTSUPP, false),
        6 | 9 => (Errno::ENETUNREACH, true),
        7 => (Errno::EHOSTDOWN, true),
        8 => (Errno::ENONET, true),
        10 | 13..=15 => (Errno::EHOSTUNREACH, true),
        11 => (Errno::ENETUNREACH, false),
        _ => (Errno::EHOSTUNREACH, false),
    }
}
