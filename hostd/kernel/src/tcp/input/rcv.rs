//! From IP to the socket (Linux `tcp_v4_rcv`).

use crate::Kernel;
use crate::skb::{Checksum, SkBuff};
use crate::sock::{Sock, SockId};
use crate::tcp::hash::Entry;
use crate::tcp::header::{Header, MAX_TCP_HEADER, Options, TCP_HEADER, flag, pseudo_header_sum};
use crate::tcp::sock::tp;
use crate::tcp::state::State;
use crate::trace::Point;
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Mib};

impl Kernel {
    /// Takes a segment from IP: `skb` stands at the TCP header and ends with the payload.
    pub(crate) fn tcp_v4_rcv(&mut self, mut skb: Box<SkBuff>) {
        self.mib.inc(Mib::TcpInSegs);
        if let Err(reason) = self.tcp_parse(&mut skb) {
            self.mib.inc(Mib::TcpInErrs);
            if reason == DropReason::TcpCsum {
                self.mib.inc(Mib::TcpInCsumErrors);
            }
            return self.kfree_skb(skb, reason);
        }
        let cb = &skb.tcp;
        let len = skb.len() - u32::from(cb.hdr_len);
        let args = [u64::from(cb.seq.0), u64::from(cb.ack_seq.0), u64::from(cb.flags), u64::from(len)];
        self.trace(Point::TcpRcv, skb.id, args);
        if skb.owner != 0 {
            // Over the loopback: the sender has paid until here (Linux `skb_orphan`).
            self.sock_wfree(skb.owner, skb.truesize);
            skb.owner = 0;
        }
        skb.truesize = skb.rx_truesize();
        let t = skb.tcp_tuple();
        match self.tcp.lookup(&t) {
            Some(Entry::Sock(id)) => self.tcp_rcv_sock(id, skb),
            Some(Entry::Mini(id)) => {
                let opts = parse_options(&skb);
                if self.tcp.request_mut(id).is_some() {
                    self.tcp_request_rcv(id, skb, &opts);
                } else {
                    self.tcp_v4_timewait_rcv(id, skb, &opts);
                }
            }
            None => match self.inet_lookup_listener(&t, skb.dev) {
                Some(listener) => {
                    let opts = parse_options(&skb);
                    self.tcp_listen_rcv(listener, skb, &opts);
                }
                None => {
                    self.tcp_v4_send_reset(&skb);
                    self.kfree_skb(skb, DropReason::NoSocket);
                }
            },
        }
    }

    /// Header and checksum; the findings go into `skb.tcp`.
    fn tcp_parse(&mut self, skb: &mut SkBuff) -> Result<(), DropReason> {
        let mut fixed = [0; TCP_HEADER];
        skb.copy_bits(0, &mut fixed).map_err(|_| DropReason::PktTooSmall)?;
        let total = skb.len();
        let h = Header::parse(&fixed, total).map_err(|_| DropReason::TcpBadHeader)?;
        if skb.csum == Checksum::None {
            let sum = pseudo_header_sum(skb.ip.saddr, skb.ip.daddr, total);
            if skb.checksum(0, total, sum) != 0xffff {
                return Err(DropReason::TcpCsum);
            }
            skb.csum = Checksum::Unnecessary;
        }
        let cb = &mut skb.tcp;
        cb.seq = h.seq;
        cb.ack_seq = h.ack;
        cb.flags = h.flags;
        cb.sport = h.sport;
        cb.dport = h.dport;
        cb.window = h.window;
        cb.hdr_len = h.hdr_len;
        cb.urg = h.urg;
        cb.sacked = 0;
        cb.ts = None;
        let data = total - u32::from(h.hdr_len);
        let control = u32::from(h.flags & flag::SYN != 0) + u32::from(h.flags & flag::FIN != 0);
        cb.end_seq = h.seq + data + control;
        Ok(())
    }

    fn tcp_rcv_sock(&mut self, id: SockId, skb: Box<SkBuff>) {
        let Some(mut sk) = self.socks.take(id) else { return self.kfree_skb(skb, DropReason::NoSocket) };
        if sk.owned {
            self.tcp_add_backlog(&mut sk, skb);
        } else {
            self.tcp_v4_do_rcv(&mut sk, skb);
        }
        self.tcp_put(sk);
    }

    /// The socket's owner takes it when done (Linux `tcp_add_backlog`).
    fn tcp_add_backlog(&mut self, sk: &mut Sock, skb: Box<SkBuff>) {
        let limit = 2 * u64::from(sk.rcvbuf) + u64::from(sk.sndbuf >> 1) + 64 * 1024;
        if u64::from(sk.backlog_len) + u64::from(sk.rmem_alloc) > limit {
            self.mib.inc(Mib::TCPBacklogDrop);
            return self.kfree_skb(skb, DropReason::SocketBacklog);
        }
        self.mib.inc(Mib::TCPBacklogQueued);
        self.trace(Point::SkAddBacklog, skb.id, [u64::from(sk.id.0), u64::from(skb.len()), 0, 0]);
        sk.backlog_len += skb.truesize;
        sk.backlog.push_back(skb);
    }

    /// What the socket's filter says (Linux `tcp_filter`). Deviation: segments are taken whole or not at all.
    fn tcp_filter(&mut self, sk: &mut Sock, skb: &SkBuff) -> bool {
        let mut view = self.skb_clone(skb);
        let taken = self.sk_filter(sk, &mut view, 1);
        self.skbs.put(view);
        taken
    }

    /// Processes a segment for a socket that nobody else works on (Linux `tcp_v4_do_rcv`);
    /// also for each segment of the backlog.
    pub(crate) fn tcp_v4_do_rcv(&mut self, sk: &mut Sock, skb: Box<SkBuff>) {
        if skb.ip.ttl < sk.inet.min_ttl || sk.filter.is_some() && !self.tcp_filter(sk, &skb) {
            return self.kfree_skb(skb, DropReason::SocketFilter);
        }
        let opts = parse_options(&skb);
        sk.cpu = self.this_cpu;
        let tp = tp!(sk);
        tp.total.segs_in = tp.total.segs_in.wrapping_add(skb.pcount());
        if skb.tcp.flags & flag::CWR != 0 {
            tp.ecn.demand_cwr = false;
        }
        if tp.state == State::Established {
            return self.tcp_rcv_established(sk, skb, &opts);
        }
        if let Err(skb) = self.tcp_rcv_state_process(sk, skb, &opts) {
            self.tcp_v4_send_reset(&skb);
            self.kfree_skb(skb, DropReason::TcpFlags);
        }
    }
}

/// Options of a segment whose header was checked.
fn parse_options(skb: &SkBuff) -> Options {
    let mut b = [0; MAX_TCP_HEADER];
    let n = usize::from(skb.tcp.hdr_len).clamp(TCP_HEADER, MAX_TCP_HEADER) - TCP_HEADER;
    if n == 0 || skb.copy_bits(TCP_HEADER as u32, &mut b[..n]).is_err() {
        return Options::default();
    }
    Options::parse(&b[..n], skb.tcp.flags & flag::SYN != 0)
}
