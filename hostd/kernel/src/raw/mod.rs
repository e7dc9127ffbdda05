//! Raw and ping sockets (Linux `net/ipv4/raw.c`, `net/ipv4/ping.c`).
//!
//! A raw socket gets a clone of every packet of its protocol, IP header included,
//! beside whatever else happens to it. A ping socket sends echo requests only, its
//! port being the identifier, and gets the replies that carry it.

use crate::Kernel;
use crate::errno::Errno;
use crate::ip::IcmpError;
use crate::skb::{Checksum, SkBuff};
use crate::sock::{AF_INET, Proto, Sock, SockId};
use crate::syscall::{MsgState, Step, msg};
use crate::udp::Path;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use rand_core::Rng as _;
use ringlab_counters::DropReason;

const ICMP_HLEN: u32 = 8;
const ICMP_ECHO: u8 = 8;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_RAW: u8 = 255;

/// A program's message: the packet, its path, its octets.
type Message = (Box<SkBuff>, Path, usize);

/// Raw sockets by protocol, ping sockets by identifier.
#[derive(Debug, Default)]
pub struct RawTable {
    raw: BTreeMap<u8, Vec<SockId>>,
    ping: BTreeMap<u16, Vec<SockId>>,
}

impl Kernel {
    pub(crate) fn raw_hash(&mut self, protocol: u8, id: SockId) {
        self.raw.raw.entry(protocol).or_default().push(id);
    }

    pub(crate) fn raw_unhash(&mut self, protocol: u8, id: SockId) {
        if let Some(list) = self.raw.raw.get_mut(&protocol) {
            list.retain(|&s| s != id);
            if list.is_empty() {
                self.raw.raw.remove(&protocol);
            }
        }
    }

    /// Gives every matching raw socket a clone; `skb` stands at the IP header. True if there was one.
    pub(crate) fn raw_v4_input(&mut self, skb: &SkBuff) -> bool {
        let protocol = skb.ip.protocol;
        if protocol == IPPROTO_RAW || !self.raw.raw.contains_key(&protocol) {
            return false;
        }
        let mut kind = [0];
        let icmp = protocol == IPPROTO_ICMP && skb.copy_bits(skb.ip.hdr_len.into(), &mut kind).is_ok();
        let (saddr, daddr) = (Ipv4Addr::from(skb.ip.saddr), Ipv4Addr::from(skb.ip.daddr));
        let mut delivered = false;
        let mut at = 0;
        while let Some(&id) = self.raw.raw.get(&protocol).and_then(|list| list.get(at)) {
            at += 1;
            let Some(sk) = self.socks.get(id) else { continue };
            let matches = (sk.rcv_saddr.is_unspecified() || sk.rcv_saddr == daddr)
                && (sk.daddr.is_unspecified() || sk.daddr == saddr)
                && (sk.bound_dev_if == 0 || sk.bound_dev_if == skb.dev)
                && sk.family == AF_INET;
            if !matches {
                continue;
            }
            delivered = true;
            let filtered = match sk.proto {
                Proto::Raw { icmp_filter, .. } => icmp && kind[0] < 32 && icmp_filter >> kind[0] & 1 != 0,
                _ => false,
            };
            if !filtered {
                self.sock_queue_rcv(id, skb);
            }
        }
        delivered
    }

    /// Queues a clone unless the buffer is full (Linux `sock_queue_rcv_skb`).
    fn sock_queue_rcv(&mut self, id: SockId, skb: &SkBuff) {
        let mut clone = self.skb_clone(skb);
        let mut sk = self.socks.take(id).expect("looked up a moment ago");
        if !self.sk_filter(&mut sk, &mut clone, 1) {
            self.kfree_skb(clone, DropReason::SocketFilter);
        } else if sk.rmem_alloc >= sk.rcvbuf {
            sk.drops = sk.drops.wrapping_add(1);
            self.kfree_skb(clone, DropReason::SocketRcvbuff);
        } else {
            self.dgram_queue(&mut sk, clone);
        }
        self.socks.put(sk);
    }

    /// Linux `raw_sendmsg`.
    pub(crate) fn raw_sendmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        let Proto::Raw { protocol, hdrincl, .. } = sk.proto else { return Step::Done(Err(Errno::EOPNOTSUPP)) };
        // Without a header of the program's own no room is waited for and no error is taken (`__ip_append_data` with
        // `transhdrlen` 0): traceroute goes on though its last probe was answered by a router.
        if !hdrincl && sk.wmem_alloc > sk.sndbuf.saturating_mul(2) {
            let len = m.iter.count() as usize;
            return Step::Done(if sk.inet.recverr { Err(Errno::ENOBUFS) } else { Ok(len) });
        }
        let (mut skb, path, len) = match self.message_from_user(sk, m, 0, hdrincl) {
            Ok(message) => message,
            Err(answer) => return answer,
        };
        let sent = if hdrincl {
            self.dgram_charge(sk, &mut skb);
            self.ip_send_hdrincl(skb, &path.route)
        } else {
            self.dgram_output(sk, skb, &path, protocol)
        };
        Step::Done(match sent {
            Err(Errno::ENOBUFS) if !sk.inet.recverr => Ok(len),
            sent => sent.map(|()| len),
        })
    }

    /// What the program wants to send, `least` octets or more: copied, with its path and length. It takes the socket's
    /// error and waits for room if `held`.
    fn message_from_user(
        &mut self,
        sk: &mut Sock,
        m: &mut MsgState,
        least: u64,
        held: bool,
    ) -> Result<Message, Step<Result<usize, Errno>>> {
        let refuse = |e| Step::Done(Err(e));
        let len = m.iter.count();
        if len > 0xffff {
            return Err(refuse(Errno::EMSGSIZE));
        }
        if len < least {
            return Err(refuse(Errno::EINVAL));
        }
        if m.flags & msg::OOB != 0 {
            return Err(refuse(Errno::EOPNOTSUPP));
        }
        let path = self.dgram_path(sk, m).map_err(refuse)?;
        if held {
            self.dgram_may_send(sk, m)?;
        }
        let skb = self.dgram_copy(sk, m, len as u32).map_err(refuse)?;
        Ok((skb, path, len as usize))
    }

    /// Gives a ping socket its identifier; 0: a free one.
    pub(crate) fn ping_get_port(&mut self, sk: &mut Sock, ident: u16) -> Result<(), Errno> {
        let taken = |k: &Kernel, ident: u16| {
            k.raw.ping.get(&ident).is_some_and(|list| {
                let reuse = |id: &SockId| k.socks.get(*id).is_some_and(|other| other.opt.reuseaddr);
                !(sk.opt.reuseaddr && list.iter().all(reuse))
            })
        };
        let ident = match ident {
            0 => {
                let first = self.rng.next_u32() as u16;
                let mut all = (0..=u16::MAX).map(|i| first.wrapping_add(i));
                all.find(|&i| i != 0 && !self.raw.ping.contains_key(&i)).ok_or(Errno::EADDRINUSE)?
            }
            n if taken(self, n) => return Err(Errno::EADDRINUSE),
            n => n,
        };
        sk.sport = ident;
        self.raw.ping.entry(ident).or_default().push(sk.id);
        Ok(())
    }

    pub(crate) fn ping_unhash(&mut self, sk: &Sock) {
        if let Some(list) = self.raw.ping.get_mut(&sk.sport) {
            list.retain(|&id| id != sk.id);
            if list.is_empty() {
                self.raw.ping.remove(&sk.sport);
            }
        }
    }

    fn ping_lookup(&self, ident: u16, local: Ipv4Addr, dev: u32) -> Option<SockId> {
        let list = self.raw.ping.get(&ident)?;
        let fits = |sk: &&Sock| {
            (sk.rcv_saddr.is_unspecified() || sk.rcv_saddr == local) && (sk.bound_dev_if == 0 || dev == 0 || sk.bound_dev_if == dev)
        };
        list.iter().rev().filter_map(|&id| self.socks.get(id)).find(fits).map(|sk| sk.id)
    }

    /// Linux `ping_v4_sendmsg`: the program gives the ICMP header, the kernel its identifier and checksum.
    pub(crate) fn ping_sendmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        match self.message_from_user(sk, m, ICMP_HLEN.into(), true) {
            Ok((skb, path, len)) => Step::Done(self.ping_send_skb(sk, skb, &path).map(|()| len)),
            Err(answer) => answer,
        }
    }

    fn ping_send_skb(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>, path: &Path) -> Result<(), Errno> {
        let mut h = [0; ICMP_HLEN as usize];
        skb.copy_bits(0, &mut h).expect("the length was checked");
        if h[0] != ICMP_ECHO || h[1] != 0 {
            self.kfree_skb(skb, DropReason::NotSpecified);
            return Err(Errno::EINVAL);
        }
        h[2..4].fill(0);
        h[4..6].copy_from_slice(&sk.sport.to_be_bytes());
        skb.store_bits(0, &h).expect("the length was checked");
        let sum = !skb.checksum(0, skb.len(), 0);
        skb.store_bits(2, &sum.to_be_bytes()).expect("the length was checked");
        skb.csum = Checksum::None;
        self.icmp_out_count(ICMP_ECHO);
        match self.dgram_output(sk, skb, path, IPPROTO_ICMP) {
            Err(Errno::ENOBUFS) if !sk.inet.recverr => Ok(()),
            sent => sent,
        }
    }

    /// An echo reply for a ping socket; `skb` stands at the ICMP header. True if there was one.
    pub(crate) fn ping_rcv(&mut self, skb: &SkBuff) -> bool {
        let mut h = [0; ICMP_HLEN as usize];
        if skb.copy_bits(0, &mut h).is_err() {
            return false;
        }
        let ident = u16::from_be_bytes([h[4], h[5]]);
        let Some(id) = self.ping_lookup(ident, skb.ip.daddr.into(), skb.dev) else { return false };
        self.sock_queue_rcv(id, skb);
        true
    }

    /// An ICMP error about an echo request of ours.
    pub(crate) fn ping_err(&mut self, e: &IcmpError) {
        if e.payload[0] != ICMP_ECHO {
            return;
        }
        let ident = u16::from_be_bytes([e.payload[4], e.payload[5]]);
        if let Some(id) = self.ping_lookup(ident, e.saddr, 0) {
            self.dgram_err(id, e, 0, 0);
        }
    }

    /// An ICMP error about a packet of a raw socket (Linux `raw_icmp_error`).
    pub(crate) fn raw_err(&mut self, e: &IcmpError) {
        let mut at = 0;
        while let Some(&id) = self.raw.raw.get(&e.protocol).and_then(|list| list.get(at)) {
            at += 1;
            let fits = |sk: &Sock| {
                (sk.rcv_saddr.is_unspecified() || sk.rcv_saddr == e.saddr) && (sk.daddr.is_unspecified() || sk.daddr == e.daddr)
            };
            if self.socks.get(id).is_some_and(fits) {
                self.dgram_err(id, e, 0, 0);
            }
        }
    }

    fn icmp_out_count(&mut self, kind: u8) {
        use ringlab_counters::Mib;
        self.mib.inc(Mib::IcmpOutMsgs);
        if kind == ICMP_ECHO {
            self.mib.inc(Mib::IcmpOutEchos);
        }
    }
}
