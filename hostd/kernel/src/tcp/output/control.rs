//! Segments without data (Linux `tcp_send_ack`, `tcp_send_fin`, `tcp_connect` …).

use super::window::{advmss, select_initial_window};
use super::xmit::Nagle;
use super::{Bare, Options};
use crate::Kernel;
use crate::errno::Errno;
use crate::ip::route::{Flow, RouteKind};
use crate::skb::SkBuff;
use crate::sock::Sock;
use crate::tcp::header::{Header, flag};
use crate::tcp::minisock::{RequestSock, TimewaitSock};
use crate::tcp::secure::Tuple;
use crate::tcp::seq::SeqNum;
use crate::tcp::sock::{SKB_OVERHEAD, TCP_ATO_MIN, TCP_DELACK_MAX, TcpSock, WriteTimer, tp};
use crate::tcp::state::State;
use crate::timer::TimerKey;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::time::Duration;
use ringlab_counters::Mib;

impl Kernel {
    /// Begins an active open (RFC 9293 §3.10.1; Linux `tcp_v4_connect`). The SYN is sent.
    ///
    /// # Errors
    /// Those of the route; `EADDRNOTAVAIL` without a free port; `ENETUNREACH` for a group or a broadcast address.
    pub(crate) fn tcp_v4_connect(&mut self, sk: &mut Sock, to: SocketAddrV4) -> Result<(), Errno> {
        let daddr = if to.ip().is_unspecified() { Ipv4Addr::LOCALHOST } else { *to.ip() };
        let route = self.ip_route_output(Flow { daddr, saddr: sk.rcv_saddr, oif: sk.bound_dev_if })?;
        if matches!(route.kind, RouteKind::Multicast | RouteKind::Broadcast) {
            return Err(Errno::ENETUNREACH);
        }
        if sk.rcv_saddr.is_unspecified() {
            sk.saddr = route.saddr;
            sk.rcv_saddr = route.saddr;
        }
        (sk.daddr, sk.dport) = (daddr, to.port());
        self.tcp_set_state(sk, State::SynSent);
        if let Err(e) = self.inet_hash_connect(sk) {
            self.tcp_set_state(sk, State::Close);
            (sk.daddr, sk.dport) = (Ipv4Addr::UNSPECIFIED, 0);
            return Err(e);
        }
        sk.dst = Some((self.fib_generation(), route));
        sk.ip_id = rand_core::Rng::next_u32(&mut self.rng) as u16;
        sk.txhash = rand_core::Rng::next_u32(&mut self.rng) | 1;
        let t = Tuple { saddr: sk.saddr, sport: sk.sport, daddr, dport: sk.dport };
        let secrets = self.tcp_secrets();
        let isn = secrets.secure_tcp_seq(&t, self.now);
        let tp = tp!(sk);
        if tp.rx_opt.ts_recent_stamp.is_none() {
            tp.write_seq = isn;
        }
        tp.tsoffset = secrets.secure_tcp_ts_off(t.saddr, t.daddr);
        tp.rx_opt.mss_clamp = 536;
        self.mib.inc(Mib::TcpActiveOpens);
        self.tcp_connect(sk, route.mtu)
    }

    /// Linux `tcp_connect_init` and `tcp_connect`.
    fn tcp_connect(&mut self, sk: &mut Sock, mtu: u32) -> Result<(), Errno> {
        let scaling = self.tcp.sysctl.window_scaling;
        let (full, rmem_max) = (sk.tcp_full_space(), self.tcp.sysctl.rmem[2].max(sk.rcvbuf));
        let timestamps = self.tcp.sysctl.timestamps;
        // What befell the connection before is forgotten.
        sk.err = None;
        let tp = tp!(sk);
        tp.fin_received = false;
        tp.rx_opt.mss_clamp = if tp.rx_opt.user_mss != 0 { tp.rx_opt.user_mss } else { 0xffff };
        tp.max_window = 0;
        tp.advmss = advmss(mtu);
        tp.rx_opt.tstamp_ok = timestamps;
        self.tcp_sync_mss(sk, mtu);
        let tp = tp!(sk);
        tp.rx_opt.tstamp_ok = false;
        let win = select_initial_window(full, u32::from(tp.syn_mss()), tp.window_clamp, scaling, rmem_max);
        tp.rcv_wnd = win.rcv_wnd;
        tp.window_clamp = win.clamp;
        tp.rx_opt.rcv_wscale = win.wscale;
        tp.rcv_ssthresh = win.rcv_wnd;
        tp.snd_una = tp.write_seq;
        tp.snd_sml = tp.write_seq;
        tp.snd_nxt = tp.write_seq;
        tp.pushed_seq = tp.write_seq;
        tp.rcv_nxt = SeqNum(0);
        tp.rcv_wup = SeqNum(0);
        tp.copied_seq = SeqNum(0);
        tp.rto = crate::tcp::sock::TCP_TIMEOUT_INIT;
        tp.retransmits = 0;
        tp.rcv_tstamp = self.now;
        let flags = flag::SYN | if self.tcp.sysctl.ecn == 1 { flag::ECE | flag::CWR } else { 0 };
        self.tcp_queue_control(sk, flags);
        // A SYN that IP cannot send now is retransmitted; only the route's absence ends the call.
        self.tcp_send_syn(sk);
        Ok(())
    }

    fn tcp_send_syn(&mut self, sk: &mut Sock) {
        let now = self.now;
        let tp = tp!(sk);
        let Some(mut skb) = tp.write_queue.pop_front() else { return };
        tp.rate_skb_sent(&mut skb.tcp, now);
        let clone = self.skb_clone(&skb);
        tp.snd_nxt = skb.tcp.end_seq;
        tp.packets_out += 1;
        tp.rtx_queue.push_back(skb);
        let rto = tp.rto;
        // A failure looks like a loss to the timer.
        let _ = self.tcp_transmit_skb(sk, clone);
        self.tcp_reset_xmit_timer(sk, WriteTimer::Retrans, rto);
    }

    /// Queues a SYN or FIN: one number of sequence space, no data.
    fn tcp_queue_control(&mut self, sk: &mut Sock, flags: u8) {
        let skb = self.alloc_skb();
        let tp = tp!(sk);
        let skb = tp.queue_tail(skb, flags, self.now);
        skb.tcp.end_seq += 1;
        tp.write_seq += 1;
        sk.wmem_queued += SKB_OVERHEAD;
    }

    /// Answers the SYN of a simultaneous open: the SYN in the retransmission queue becomes a
    /// SYN-ACK and goes out again (Linux `tcp_send_synack`).
    pub(crate) fn tcp_send_synack(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        let Some(skb) = tp.rtx_queue.front_mut().filter(|s| s.tcp.flags & flag::SYN != 0) else { return };
        skb.tcp.flags = flag::SYN | flag::ACK;
        let clone = self.skb_clone(skb);
        // Lost here or on the way: the retransmission timer runs.
        let _ = self.tcp_transmit_skb(sk, clone);
    }

    /// Queues a FIN, on the last packet if that is not sent yet, and pushes (Linux `tcp_send_fin`).
    pub(crate) fn tcp_send_fin(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        match tp.write_queue.back_mut() {
            Some(tail) => {
                tail.tcp.flags |= flag::FIN;
                tail.tcp.end_seq += 1;
                tp.write_seq += 1;
            }
            None => self.tcp_queue_control(sk, flag::ACK | flag::FIN),
        }
        self.tcp_push_pending_frames(sk, Nagle::Push);
    }

    /// Ends the connection with a RST (Linux `tcp_send_active_reset`).
    pub(crate) fn tcp_send_active_reset(&mut self, sk: &mut Sock) {
        self.mib.inc(Mib::TcpOutRsts);
        let mut skb = self.alloc_skb();
        let tp = sk.tp();
        skb.tcp.seq = tp.acceptable_seq();
        skb.tcp.end_seq = skb.tcp.seq;
        skb.tcp.flags = flag::ACK | flag::RST;
        // Nothing remains that could send it again.
        let _ = self.tcp_transmit_skb(sk, skb);
    }

    /// Sends an ACK now (Linux `tcp_send_ack`); if memory is short, the delayed-ACK timer tries again.
    pub(crate) fn tcp_send_ack(&mut self, sk: &mut Sock) {
        if sk.tp().state == State::Close {
            return;
        }
        let seq = sk.tp().acceptable_seq();
        if self.tcp_send_empty(sk, seq) == Err(Errno::ENOBUFS) {
            let tp = tp!(sk);
            tp.ack.scheduled = true;
            tp.ack.timer = true;
            tp.ack.ato = TCP_ATO_MIN;
            tp.delack_at = self.now + TCP_DELACK_MAX;
            self.timers.set(TimerKey::TcpDelack(sk.id), tp.delack_at);
        }
    }

    fn tcp_send_empty(&mut self, sk: &mut Sock, seq: SeqNum) -> Result<(), Errno> {
        let mut skb = self.alloc_skb();
        skb.tcp.seq = seq;
        skb.tcp.end_seq = seq;
        skb.tcp.flags = flag::ACK;
        self.tcp_transmit_skb(sk, skb)
    }

    /// An ACK of the octet before the window, or of the urgent octet: the peer must
    /// answer with its window (Linux `tcp_xmit_probe_skb`).
    pub(crate) fn tcp_xmit_probe_skb(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        let seq = sk.tp().snd_una - 1;
        self.tcp_send_empty(sk, seq)
    }

    /// A window probe with the first octets that fit, or an empty one (Linux `tcp_write_wakeup`).
    pub(crate) fn tcp_write_wakeup(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        if sk.tp().state == State::Close {
            return Err(Errno::EAGAIN);
        }
        let mss = self.tcp_current_mss(sk);
        let tp = tp!(sk);
        let (wnd_end, pushed) = (tp.wnd_end(), tp.pushed_seq);
        if let Some(skb) = tp.write_queue.front()
            && skb.tcp.seq.before(wnd_end)
        {
            let room = (wnd_end - skb.tcp.seq).min(mss);
            tp.pushed_seq = pushed.latest(skb.tcp.end_seq);
            if skb.len() > room {
                self.tcp_fragment(sk, super::xmit::Queue::Write, 0, room, mss);
            }
            if let Some(head) = tp!(sk).write_queue.front_mut() {
                head.tcp.flags |= flag::PSH;
            }
            return self.tcp_send_head(sk).map(|_| ()).ok_or(Errno::ENOBUFS);
        }
        self.tcp_xmit_probe_skb(sk)
    }

    /// Owes an ACK and sets its timer (Linux `tcp_send_delayed_ack`).
    pub(crate) fn tcp_send_delayed_ack(&mut self, sk: &mut Sock) {
        let now = self.now;
        let tp = tp!(sk);
        let mut ato = tp.ack.ato.max(TCP_ATO_MIN);
        if ato > TCP_ATO_MIN {
            let mut most = Duration::from_millis(500);
            if tp.ack.pingpong || tp.ack.pushed {
                most = TCP_DELACK_MAX;
            }
            if let Some(srtt) = tp.srtt() {
                most = most.min(srtt.max(TCP_ATO_MIN));
            }
            ato = ato.min(most);
        }
        ato = ato.min(TCP_DELACK_MAX);
        let mut at = now + ato;
        if tp.ack.timer {
            // The timer keeps the earlier deadline; if that is near, the ACK goes now.
            if tp.delack_at <= now + ato / 4 {
                self.tcp_send_ack(sk);
                return;
            }
            at = at.min(tp.delack_at);
        }
        tp.ack.scheduled = true;
        tp.ack.timer = true;
        tp.delack_at = at;
        self.timers.set(TimerKey::TcpDelack(sk.id), at);
    }

    /// Answers a segment without a socket, or one that its socket refuses, with a RST
    /// (RFC 9293 §3.10.7.1; Linux `tcp_v4_send_reset`). `skb` stands at the TCP header.
    pub(crate) fn tcp_v4_send_reset(&mut self, skb: &SkBuff) {
        let cb = &skb.tcp;
        if cb.flags & flag::RST != 0 || skb.ip.non_unicast {
            return;
        }
        let mut header = Header { flags: flag::RST, ..Header::default() };
        if cb.flags & flag::ACK != 0 {
            header.seq = cb.ack_seq;
        } else {
            header.flags |= flag::ACK;
            header.ack = cb.end_seq;
        }
        let bare = Bare {
            tuple: skb.tcp_tuple(),
            header,
            options: Options::default(),
            oif: 0,
            tos: skb.ip.tos & 0xfc,
            ttl: None,
            txhash: skb.hash,
        };
        self.mib.inc(Mib::TcpOutRsts);
        // Nobody waits for it: if IP cannot send it, the peer times out.
        let _ = self.tcp_send_bare(bare);
    }

    /// ACK of a connection in TIME_WAIT (Linux `tcp_v4_timewait_ack`).
    pub(crate) fn tcp_v4_timewait_ack(&mut self, tw: &TimewaitSock) {
        let ts = tw.ts_recent_stamp.map(|_| (TcpSock::clock_ms(self.now).wrapping_add(tw.ts_off), tw.ts_recent));
        let window = (tw.rcv_wnd >> tw.rcv_wscale).min(0xffff) as u16;
        let header = Header { seq: tw.snd_nxt, ack: tw.rcv_nxt, flags: flag::ACK, window, ..Header::default() };
        let options = Options { ts, ..Options::default() };
        let bare = Bare { tuple: tw.tuple, header, options, oif: tw.bound_dev_if, tos: tw.tos, ttl: tw.ttl, txhash: tw.txhash };
        // The peer asks again if it is lost.
        let _ = self.tcp_send_bare(bare);
    }

    /// ACK of a connection in SYN_RECV (Linux `tcp_v4_reqsk_send_ack`).
    pub(crate) fn tcp_v4_reqsk_send_ack(&mut self, req: &RequestSock) {
        let ts = req.tstamp_ok.then(|| (TcpSock::clock_ms(self.now).wrapping_add(req.ts_off), req.ts_recent));
        let window = (req.rcv_wnd >> req.rcv_wscale).min(0xffff) as u16;
        let header = Header { seq: req.snt_isn + 1, ack: req.rcv_isn + 1, flags: flag::ACK, window, ..Header::default() };
        let options = Options { ts, ..Options::default() };
        let bare = Bare { tuple: req.tuple, header, options, oif: 0, tos: 0, ttl: None, txhash: req.txhash };
        // The peer asks again if it is lost.
        let _ = self.tcp_send_bare(bare);
    }

    /// SYN-ACK of a request (Linux `tcp_v4_send_synack`, `tcp_make_synack`).
    pub(crate) fn tcp_v4_send_synack(&mut self, req: &RequestSock, mtu: u32, tos: u8, ttl: Option<u8>) {
        let ecn = if req.ecn_ok { flag::ECE } else { 0 };
        let header = Header {
            seq: req.snt_isn,
            ack: req.rcv_isn + 1,
            flags: flag::SYN | flag::ACK | ecn,
            window: req.rcv_wnd.min(0xffff) as u16,
            ..Header::default()
        };
        let options = Options {
            mss: Some(advmss(mtu).min(0xffff) as u16),
            wscale: req.snd_wscale.map(|_| req.rcv_wscale),
            sack_permitted: req.sack_ok,
            ts: req.tstamp_ok.then(|| (TcpSock::clock_ms(self.now).wrapping_add(req.ts_off), req.ts_recent)),
            ..Options::default()
        };
        let bare = Bare { tuple: req.tuple, header, options, oif: 0, tos, ttl, txhash: req.txhash };
        // Lost or not sent: the request's timer sends it again.
        let _ = self.tcp_send_bare(bare);
    }
}

impl TcpSock {
    /// Sequence number of a segment without data: inside the window even if that shrank
    /// (Linux `tcp_acceptable_seq`).
    fn acceptable_seq(&self) -> SeqNum {
        let end = self.wnd_end();
        let unit = if self.rx_opt.wscale_ok { 1i32 << self.rx_opt.snd_wscale } else { 0 };
        if end.at_or_after(self.snd_nxt) || (self.rx_opt.wscale_ok && self.snd_nxt.distance(end) < unit) { self.snd_nxt } else { end }
    }
}

impl SkBuff {
    /// Addresses of a received segment, ours first.
    pub(crate) fn tcp_tuple(&self) -> Tuple {
        Tuple {
            saddr: Ipv4Addr::from_bits(self.ip.daddr),
            sport: self.tcp.dport,
            daddr: Ipv4Addr::from_bits(self.ip.saddr),
            dport: self.tcp.sport,
        }
    }
}
