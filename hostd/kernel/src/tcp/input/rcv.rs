//! From IP to the socket (Linux `tcp_v4_rcv`).

use crate::Kernel;
use crate::skb::{Checksum, Gso, PacketType, SkBuff};
use crate::sock::{Sock, SockId};
use crate::tcp::hash::Entry;
use crate::tcp::header::{Header, HeaderError, MAX_TCP_HEADER, Options, TCP_HEADER, flag, pseudo_header_sum};
use crate::tcp::sock::{SKB_OVERHEAD, tp};
use crate::tcp::state::State;
use crate::trace::Point;
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Mib};

impl Kernel {
    /// Takes a segment from IP: `skb` stands at the TCP header and ends with the payload.
    pub(crate) fn tcp_v4_rcv(&mut self, mut skb: Box<SkBuff>) {
        if skb.pkt_type != PacketType::Host {
            // Nobody opens a connection with all or many (RFC 9293 §3.10.7, MUST-57), and none is reset for it.
            return self.kfree_skb(skb, DropReason::NotSpecified);
        }
        self.mib.inc(Mib::TcpInSegs);
        if let Err(reason) = self.tcp_parse(&mut skb) {
            if reason != DropReason::NotSpecified {
                self.mib.inc(Mib::TcpInErrs);
            }
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
        // What is cut short is no error of the sender's.
        skb.copy_bits(0, &mut fixed).map_err(|_| DropReason::NotSpecified)?;
        let total = skb.len();
        let h = Header::parse(&fixed, total).map_err(|e| match e {
            HeaderError::DataOffset { hdr, .. } if usize::from(hdr) < TCP_HEADER => DropReason::PktTooSmall,
            _ => DropReason::NotSpecified,
        })?;
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
        if skb.ip.ttl < sk.inet.min_ttl {
            self.mib.inc(Mib::TCPMinTTLDrop);
            self.kfree_skb(skb, DropReason::TcpMinTtl);
        } else if sk.filter.is_some() && !self.tcp_filter(&mut sk, &skb) {
            self.kfree_skb(skb, DropReason::SocketFilter);
        } else if sk.owned {
            self.tcp_add_backlog(&mut sk, skb);
        } else {
            self.tcp_v4_do_rcv(&mut sk, skb);
        }
        self.tcp_put(sk);
    }

    /// The socket's owner takes it when done (Linux `tcp_add_backlog`).
    fn tcp_add_backlog(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) {
        let args = [u64::from(sk.id.0), u64::from(skb.len()), 0, 0];
        if sk.backlog.back_mut().is_some_and(|tail| tail.tcp_backlog_coalesce(&mut skb)) {
            self.mib.inc(Mib::TCPBacklogQueued);
            self.mib.inc(Mib::TCPBacklogCoalesce);
            self.trace(Point::SkAddBacklog, skb.id, args);
            sk.backlog_len += skb.truesize;
            return self.skbs.put(skb);
        }
        let limit = 2 * u64::from(sk.rcvbuf) + u64::from(sk.sndbuf >> 1) + 64 * 1024;
        if u64::from(sk.backlog_len) + u64::from(sk.rmem_alloc) > limit {
            self.mib.inc(Mib::TCPBacklogDrop);
            return self.kfree_skb(skb, DropReason::SocketBacklog);
        }
        self.mib.inc(Mib::TCPBacklogQueued);
        self.trace(Point::SkAddBacklog, skb.id, args);
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
        if let Err((skb, reason)) = self.tcp_rcv_state_process(sk, skb, &opts) {
            self.tcp_v4_send_reset(&skb);
            self.kfree_skb(skb, reason);
        }
    }
}

impl SkBuff {
    /// Joins the next segment to this one of a backlog, as GRO would have: same options, nothing special, and the
    /// later acknowledgement and window count. `next` keeps no data; its `truesize` is the memory that it still adds.
    fn tcp_backlog_coalesce(&mut self, next: &mut SkBuff) -> bool {
        let (a, b) = (&self.tcp, &next.tcp);
        let alike = a.end_seq == b.seq
            && self.ip.tos == next.ip.tos
            && (a.flags | b.flags) & (flag::SYN | flag::RST | flag::URG) == 0
            && a.flags & flag::FIN == 0
            && a.flags & b.flags & flag::ACK != 0
            && (a.flags ^ b.flags) & (flag::ECE | flag::CWR) == 0
            && a.hdr_len == b.hdr_len;
        if !alike || !self.same_tcp_options(next) || self.frag_room() < next.frags().len() {
            return false;
        }
        let hdr = u32::from(a.hdr_len);
        let (size, segs) = (self.gso_size(hdr).max(next.gso_size(hdr)), self.pcount() + next.pcount());
        next.pull(hdr).expect("header was checked");
        let joined = self.coalesce(next);
        debug_assert!(joined, "room was checked");
        if next.tcp.ack_seq.at_or_after(self.tcp.ack_seq) {
            (self.tcp.ack_seq, self.tcp.window) = (next.tcp.ack_seq, next.tcp.window);
        }
        self.tcp.end_seq = next.tcp.end_seq;
        self.tcp.flags |= next.tcp.flags;
        self.gso = Some(Gso { size, segs: segs.min(0xffff) as u16, ecn: false });
        next.truesize = next.truesize.saturating_sub(SKB_OVERHEAD);
        self.truesize += next.truesize;
        true
    }

    /// Octets of data of a segment: what was cut by, or all that there is.
    fn gso_size(&self, hdr: u32) -> u16 {
        self.gso.map_or_else(|| self.len().saturating_sub(hdr).min(0xffff) as u16, |g| g.size)
    }

    /// The options of both headers are the same octets.
    fn same_tcp_options(&self, other: &SkBuff) -> bool {
        let (mut a, mut b) = ([0; MAX_TCP_HEADER], [0; MAX_TCP_HEADER]);
        let n = usize::from(self.tcp.hdr_len).clamp(TCP_HEADER, MAX_TCP_HEADER) - TCP_HEADER;
        let at = TCP_HEADER as u32;
        self.copy_bits(at, &mut a[..n]).is_ok() && other.copy_bits(at, &mut b[..n]).is_ok() && a == b
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
