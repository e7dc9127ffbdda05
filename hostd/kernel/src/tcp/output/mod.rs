//! Output: from queued data to IP (Linux `tcp_output.c`).
//!
//! What is queued has no header; each transmission is a clone that gets its own
//! (`Kernel::tcp_transmit_skb`). `xmit` decides when new data goes, `retransmit`
//! what goes again, `control` makes the segments without data.

pub mod control;
pub mod retransmit;
pub mod window;
pub mod xmit;

use super::header::{CSUM_OFFSET, Header, MAX_TCP_HEADER, Options, flag, pseudo_header_sum};
use super::secure::Tuple;
use super::sock::{TCP_ATO_MIN, TcpSock, tp};
use super::state::State;
use crate::Kernel;
use crate::errno::Errno;
use crate::ip::IpOut;
use crate::ip::route::Flow;
use crate::skb::{Checksum, MAX_HEADER, SkBuff};
use crate::sock::Sock;
use crate::trace::Point;
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Mib};
use ringlab_ring::memory::fold;

/// Fields of a segment that no socket sends: addresses as [`Tuple`], from us.
pub(crate) struct Bare {
    /// Addresses.
    pub tuple: Tuple,
    /// Header; ports are taken from the tuple.
    pub header: Header,
    /// Options.
    pub options: Options,
    /// Only through this device; 0: any.
    pub oif: u32,
    /// Type of service.
    pub tos: u8,
    /// Time to live.
    pub ttl: Option<u8>,
    /// Flow hash.
    pub txhash: u32,
}

impl Kernel {
    /// Sends one segment (Linux `__tcp_transmit_skb`): `skb` is a clone of queued data, or
    /// an empty packet for a segment without; `skb.tcp` holds sequence numbers and flags.
    ///
    /// # Errors
    /// Those of IP; `ENOBUFS` if the pool is empty.
    pub(crate) fn tcp_transmit_skb(&mut self, sk: &mut Sock, mut skb: Box<SkBuff>) -> Result<(), Errno> {
        let now = self.now;
        let flags = skb.tcp.flags;
        let data_len = skb.len();
        let options = if flags & flag::SYN != 0 { self.tcp_syn_options(sk) } else { tp!(sk).established_options(now) };
        let window = if flags & flag::SYN != 0 {
            sk.tp().rcv_wnd.min(0xffff) as u16
        } else if flags & flag::RST != 0 && sk.tp().state == State::Close {
            0
        } else {
            self.tcp_select_window(sk)
        };
        let tp = tp!(sk);
        let mut header = Header {
            sport: sk.sport,
            dport: sk.dport,
            seq: skb.tcp.seq,
            ack: tp.rcv_nxt,
            flags: tp.ecn_flags(flags, data_len, &skb),
            window,
            ..Header::default()
        };
        if flags & flag::ACK == 0 {
            header.ack = super::seq::SeqNum(0);
        }
        if let Some(up) = tp.snd_up.filter(|up| up.after(skb.tcp.seq) && *up - skb.tcp.seq <= 0xffff) {
            header.flags |= flag::URG;
            header.urg = (up - skb.tcp.seq) as u16;
        }
        let tuple = Tuple { saddr: sk.saddr, sport: sk.sport, daddr: sk.daddr, dport: sk.dport };
        skb.priority = sk.opt.priority;
        skb.hash = sk.txhash;
        if !self.tcp_push_header(&mut skb, &tuple, header, &options) {
            self.kfree_skb(skb, DropReason::NoMem);
            return Err(Errno::ENOBUFS);
        }
        if data_len > 0 {
            tp!(sk).pace_after_send(data_len, now);
            self.tcp_charge(sk, &mut skb);
        }
        self.tcp_account_sent(sk, &skb, flags, data_len);
        self.ip_queue_xmit(sk, skb)
    }

    /// Pushes a TCP header in front of the data; the device completes the checksum.
    /// `false` if there is no memory for it.
    fn tcp_push_header(&mut self, skb: &mut SkBuff, t: &Tuple, mut header: Header, options: &Options) -> bool {
        if !skb.push_head(&self.config.pool, MAX_HEADER) {
            return false;
        }
        let hdr_len = 20 + options.len() as u32;
        let sum = pseudo_header_sum(t.saddr.to_bits(), t.daddr.to_bits(), skb.len() + hdr_len);
        header.csum = fold(sum);
        let mut b = [0; MAX_TCP_HEADER];
        let n = header.emit(options, &mut b);
        skb.push(&b[..n]);
        skb.csum = Checksum::Partial { start: 0, offset: CSUM_OFFSET };
        skb.tcp.hdr_len = n as u8;
        true
    }

    fn tcp_account_sent(&mut self, sk: &mut Sock, skb: &SkBuff, flags: u8, data_len: u32) {
        let now = self.now;
        let segs = skb.pcount();
        let tp = tp!(sk);
        if flags & flag::ACK != 0 {
            tp.event_ack_sent();
            if tp.ack.scheduled || tp.ack.timer {
                tp.ack.sent();
                self.timers.park(crate::timer::TimerKey::TcpDelack(sk.id));
            }
        }
        if data_len > 0 {
            tp.event_data_sent(now);
            tp.total.data_segs_out = tp.total.data_segs_out.wrapping_add(segs);
            tp.total.bytes_sent += u64::from(data_len);
        }
        tp.total.segs_out = tp.total.segs_out.wrapping_add(segs);
        self.mib.add(Mib::TcpOutSegs, u64::from(segs));
        let (seq, ack) = (skb.tcp.seq.0, sk.tp().rcv_nxt.0);
        self.trace(Point::TcpTransmit, skb.id, [u64::from(seq), u64::from(ack), u64::from(flags), u64::from(data_len)]);
    }

    /// Sends a segment that belongs to no socket: RST, ACK of a minisocket, SYN-ACK.
    pub(crate) fn tcp_send_bare(&mut self, bare: Bare) -> Result<(), Errno> {
        let t = bare.tuple;
        let route = self.ip_route_output(Flow { daddr: t.daddr, saddr: t.saddr, oif: bare.oif })?;
        let mut skb = self.alloc_skb();
        let header = Header { sport: t.sport, dport: t.dport, ..bare.header };
        skb.tcp.seq = header.seq;
        skb.hash = bare.txhash;
        if !self.tcp_push_header(&mut skb, &t, header, &bare.options) {
            self.kfree_skb(skb, DropReason::NoMem);
            return Err(Errno::ENOBUFS);
        }
        self.mib.inc(Mib::TcpOutSegs);
        let args = [u64::from(header.seq.0), u64::from(header.ack.0), u64::from(header.flags), 0];
        self.trace(Point::TcpTransmit, skb.id, args);
        let out = IpOut { saddr: t.saddr, daddr: t.daddr, protocol: 6, tos: bare.tos, ttl: bare.ttl, df: true, id: None };
        self.ip_send_skb(skb, out, &route)
    }

    fn tcp_syn_options(&self, sk: &Sock) -> Options {
        let (tp, s) = (sk.tp(), &self.tcp.sysctl);
        // A SYN-ACK of a simultaneous open offers what the peer's SYN offered.
        let answer = tp.state == State::SynRecv;
        let ts = if answer { tp.rx_opt.tstamp_ok } else { s.timestamps };
        let wscale = if answer { tp.rx_opt.wscale_ok } else { s.window_scaling };
        Options {
            mss: Some(tp.syn_mss()),
            sack_permitted: if answer { tp.rx_opt.sack_ok } else { s.sack },
            ts: ts.then(|| (tp.tsval(self.now), tp.rx_opt.ts_recent)),
            wscale: wscale.then_some(tp.rx_opt.rcv_wscale),
            ..Options::default()
        }
    }
}

impl TcpSock {
    /// Timestamp to send.
    pub(crate) fn tsval(&self, now: crate::time::Instant) -> u32 {
        Self::clock_ms(now).wrapping_add(self.tsoffset)
    }

    /// MSS to put into a SYN.
    pub(crate) fn syn_mss(&self) -> u16 {
        let mss = if self.rx_opt.user_mss != 0 { self.advmss.min(u32::from(self.rx_opt.user_mss)) } else { self.advmss };
        mss.min(0xffff) as u16
    }

    /// Options of a segment after the handshake (Linux `tcp_established_options`).
    fn established_options(&mut self, now: crate::time::Instant) -> Options {
        let mut o = Options::default();
        let mut room = 40usize;
        if self.rx_opt.tstamp_ok {
            o.ts = Some((self.tsval(now), self.rx_opt.ts_recent));
            room -= 12;
        }
        if self.rx_opt.sack_ok {
            let max = ((room - 4) / 8).min(4);
            let blocks = self.duplicate_sack.iter().chain(self.selective_acks.iter());
            o.sacks.extend(blocks.take(max).copied());
        }
        o
    }

    /// Octets of the header that the next segment would have.
    fn next_header_len(&self) -> u32 {
        let blocks = self.selective_acks.len() + usize::from(self.duplicate_sack.is_some());
        let max = if self.rx_opt.tstamp_ok { 3 } else { 4 };
        let sack = if self.rx_opt.sack_ok && blocks > 0 { 4 + 8 * blocks.min(max) as u32 } else { 0 };
        self.header_len() + sack
    }

    /// ECE on ACKs while the peer has not answered with CWR (RFC 3168 §6.1.3; Linux `tcp_ecn_send`).
    fn ecn_flags(&mut self, flags: u8, data_len: u32, skb: &SkBuff) -> u8 {
        if !self.ecn.ok || flags & (flag::SYN | flag::RST) != 0 {
            return flags;
        }
        let mut flags = flags;
        if data_len > 0 && self.ecn.queue_cwr && skb.tcp.seq.at_or_after(self.snd_nxt) {
            self.ecn.queue_cwr = false;
            flags |= flag::CWR;
        }
        if self.ecn.demand_cwr {
            flags |= flag::ECE;
        }
        flags
    }

    /// An ACK goes out with this segment (Linux `tcp_event_ack_sent`).
    fn event_ack_sent(&mut self) {
        // Segments that acknowledge nothing new do not count.
        let acks = u8::from(self.ack.scheduled);
        if self.ack.quick > 0 && acks >= self.ack.quick {
            // The last quick one (Linux `tcp_dec_quickack_mode`).
            self.ack.ato = TCP_ATO_MIN;
        }
        self.ack.quick = self.ack.quick.saturating_sub(acks);
        self.duplicate_sack = None;
    }

    /// Data go out (Linux `tcp_event_data_sent`).
    fn event_data_sent(&mut self, now: crate::time::Instant) {
        self.lsndtime = now;
        // A reply within the delayed-ACK time of what it answers: interactive.
        if now.since(self.ack.lrcvtime) < self.ack.ato && !self.ack.quickack_locked {
            self.ack.pingpong = true;
        }
    }
}

impl SkBuff {
    /// Segments that the packet becomes on the wire (Linux `tcp_skb_pcount`).
    pub(crate) fn pcount(&self) -> u32 {
        self.gso.map_or(1, |g| u32::from(g.segs).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn last_quick_ack_shortens_the_delay_of_the_next() {
        let mut tp = TcpSock::default();
        (tp.ack.quick, tp.ack.scheduled, tp.ack.ato) = (2, true, Duration::from_millis(200));
        for (quick, ato) in [(1, 200), (0, 40)] {
            tp.event_ack_sent();
            assert_eq!((tp.ack.quick, tp.ack.ato), (quick, Duration::from_millis(ato)));
        }
        tp.ack.ato = Duration::from_millis(200);
        tp.event_ack_sent();
        assert_eq!(tp.ack.ato, Duration::from_millis(200), "it was none");
    }
}
