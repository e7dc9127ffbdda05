//! Passive open (RFC 9293 §3.10.7.2; Linux `tcp_conn_request`, `tcp_check_req`,
//! `tcp_v4_syn_recv_sock`): SYN to request, ACK to socket, socket to accept queue.

use crate::Kernel;
use crate::ip::route::Flow;
use crate::skb::SkBuff;
use crate::sock::{Proto, Sock, SockId};
use crate::tcp::hash::{Entry, Hold, Owner};
use crate::tcp::header::{Options, flag};
use crate::tcp::minisock::{Mini, RequestSock};
use crate::tcp::output::window::{advmss, select_initial_window};
use crate::tcp::seq::SeqNum;
use crate::tcp::sock::{TCP_MSS_DEFAULT, TcpOptions, TcpSock, tp};
use crate::tcp::state::State;
use crate::timer::TimerKey;
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Mib};

impl Kernel {
    /// A segment to a listener that belongs to no request. True if it is to be answered with a RST.
    pub(crate) fn tcp_listen_rcv(&mut self, listener: SockId, skb: Box<SkBuff>, opts: &Options) {
        let flags = skb.tcp.flags;
        if flags & flag::RST != 0 {
            return self.kfree_skb(skb, DropReason::TcpReset);
        }
        if flags & flag::ACK != 0 {
            if flags & flag::SYN == 0
                && let Some(req) = self.tcp_cookie_check(listener, &skb, opts)
            {
                return self.tcp_create_child(listener, req, None, skb, opts);
            }
            self.tcp_v4_send_reset(&skb);
            return self.kfree_skb(skb, DropReason::TcpFlags);
        }
        if flags & flag::SYN == 0 || flags & flag::FIN != 0 {
            return self.kfree_skb(skb, DropReason::TcpFlags);
        }
        self.tcp_conn_request(listener, &skb, opts, None);
        self.consume_skb(skb);
    }

    /// A SYN: remembers it and answers with a SYN-ACK, or answers with a cookie and forgets it.
    /// `isn`: ours, where a connection in TIME_WAIT is succeeded.
    pub(crate) fn tcp_conn_request(&mut self, listener: SockId, skb: &SkBuff, opts: &Options, isn: Option<SeqNum>) {
        let now = self.now;
        if skb.ip.non_unicast {
            self.mib.inc(Mib::ListenDrops);
            return;
        }
        let (syncookies, ecn) = (self.tcp.sysctl.syncookies, self.tcp.sysctl.ecn);
        // Without cookies the last quarter of the queue is kept for proven peers, of which none is known.
        let max_syn = self.tcp.sysctl.max_syn_backlog as usize;
        let Some(sk) = self.socks.get_mut(listener) else { return };
        let (tos, ttl, rcvbuf_space) = (sk.inet.tos, sk.inet.ttl, sk.tcp_full_space());
        let (user_mss, clamp) = (sk.tp().rx_opt.user_mss, sk.tp().window_clamp);
        let Some(l) = &mut sk.tp_mut().listen else { return };
        let mut want_cookie = syncookies == 2;
        if syncookies == 0 && isn.is_none() && l.requests.len() > max_syn - max_syn / 4 {
            self.mib.inc(Mib::ListenDrops);
            return;
        }
        if l.requests.len() >= l.max_backlog.max(1) as usize && isn.is_none() {
            if syncookies == 0 {
                self.mib.inc(Mib::TCPReqQFullDrop);
                self.mib.inc(Mib::ListenDrops);
                return;
            }
            self.mib.inc(Mib::TCPReqQFullDoCookies);
            want_cookie = true;
        }
        if l.accept_queue.len() > l.max_backlog as usize {
            self.mib.inc(Mib::ListenOverflows);
            self.mib.inc(Mib::ListenDrops);
            return;
        }
        if want_cookie {
            l.overflow_at = Some(now);
        }
        let t = skb.tcp_tuple();
        let Ok(route) = self.ip_route_output(Flow { daddr: t.daddr, saddr: t.saddr, oif: 0 }) else { return };
        let mut req = self.tcp_openreq_init(listener, skb, opts, (user_mss, want_cookie, ecn));
        if let Some(isn) = isn {
            req.snt_isn = isn;
        }
        let mss = advmss(route.mtu) - if req.tstamp_ok { 12 } else { 0 };
        let win = select_initial_window(rcvbuf_space, mss, clamp, req.snd_wscale.is_some(), self.tcp.sysctl.rmem[2]);
        (req.rcv_wnd, req.window_clamp, req.rcv_wscale) = (win.rcv_wnd, win.clamp, win.wscale);
        if want_cookie {
            self.tcp_cookie_init(&mut req);
            self.tcp_v4_send_synack(&req, route.mtu, tos, ttl);
            return;
        }
        let timeout = req.timeout();
        let id = self.tcp.add_mini(Mini::Request(req.clone()));
        if let Some(l) = self.socks.get_mut(listener).and_then(|sk| sk.tp_mut().listen.as_mut()) {
            l.requests.insert(id);
        }
        self.timers.set(TimerKey::TcpMini(id), now + timeout);
        self.tcp_v4_send_synack(&req, route.mtu, tos, ttl);
    }

    fn tcp_openreq_init(
        &mut self,
        listener: SockId,
        skb: &SkBuff,
        opts: &Options,
        (user_mss, cookie, ecn): (u16, bool, u8),
    ) -> RequestSock {
        let s = &self.tcp.sysctl;
        let tstamp_ok = s.timestamps && opts.ts.is_some();
        // A cookie without timestamps has no room for options.
        let keep = !cookie || tstamp_ok;
        let sack_ok = s.sack && opts.sack_permitted && keep;
        let snd_wscale = opts.wscale.filter(|_| s.window_scaling && keep);
        let user = if user_mss == 0 { u16::MAX } else { user_mss };
        let t = skb.tcp_tuple();
        let secrets = self.tcp_secrets();
        RequestSock {
            listener,
            tuple: t,
            dev: skb.dev,
            rcv_isn: skb.tcp.seq,
            snt_isn: secrets.secure_tcp_seq(&t, self.now),
            mss: opts.mss.unwrap_or(TCP_MSS_DEFAULT as u16).min(user).max(64),
            snd_wscale,
            rcv_wscale: 0,
            tstamp_ok,
            sack_ok,
            ecn_ok: ecn != 0 && keep && skb.tcp.flags & (flag::ECE | flag::CWR) == flag::ECE | flag::CWR,
            ts_recent: opts.ts.map_or(0, |(val, _)| val),
            ts_off: secrets.secure_tcp_ts_off(t.saddr, t.daddr),
            rcv_wnd: 0,
            window_clamp: 0,
            num_timeout: 0,
            num_retrans: 0,
            acked: false,
            synack_at: self.now,
            last_oow_ack: None,
            txhash: rand_core::Rng::next_u32(&mut self.rng) | 1,
            from_cookie: false,
        }
    }

    /// A segment to a request (Linux `tcp_check_req`).
    pub(crate) fn tcp_request_rcv(&mut self, id: u64, skb: Box<SkBuff>, opts: &Options) {
        let Some(req) = self.tcp.request_mut(id).cloned() else { return self.kfree_skb(skb, DropReason::NoSocket) };
        if self.socks.get(req.listener).is_none_or(|l| l.tp().state != State::Listen) {
            self.tcp_request_drop(id);
            self.tcp_v4_send_reset(&skb);
            return self.kfree_skb(skb, DropReason::NoSocket);
        }
        let cb = skb.tcp;
        let rst = cb.flags & flag::RST != 0;
        let paws = matches!(opts.ts, Some((val, _)) if req.tstamp_ok && (req.ts_recent.wrapping_sub(val) as i32) > 0);
        if cb.seq == req.rcv_isn && cb.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN && !paws {
            self.tcp_syn_again(id, &skb);
            return self.consume_skb(skb);
        }
        if cb.flags & flag::ACK != 0 && cb.ack_seq != req.snt_isn + 1 {
            self.tcp_v4_send_reset(&skb);
            return self.kfree_skb(skb, DropReason::TcpFlags);
        }
        let nxt = req.rcv_isn + 1;
        if paws || !cb.seq.segment_in_window(cb.end_seq, nxt, nxt + req.rcv_wnd) {
            let mut last = req.last_oow_ack;
            if !rst && self.tcp_oow_allowed(&mut last, &skb, Mib::TCPACKSkippedSynRecv) {
                self.tcp_v4_reqsk_send_ack(&req);
            }
            if paws {
                self.mib.inc(Mib::PAWSEstab);
            }
            if let Some(r) = self.tcp.request_mut(id) {
                r.last_oow_ack = last;
            }
            return self.kfree_skb(skb, if paws { DropReason::TcpRfc7323Paws } else { DropReason::TcpInvalidSequence });
        }
        if rst || (cb.flags & flag::SYN != 0 && cb.seq != req.rcv_isn) {
            self.mib.inc(Mib::TcpAttemptFails);
            self.mib.inc(Mib::EmbryonicRsts);
            if !rst {
                self.tcp_v4_send_reset(&skb);
            }
            self.tcp_request_drop(id);
            return self.kfree_skb(skb, DropReason::TcpReset);
        }
        if cb.flags & flag::ACK == 0 {
            return self.kfree_skb(skb, DropReason::TcpFlags);
        }
        self.tcp_request_acked(id, req, skb, opts);
    }

    fn tcp_request_acked(&mut self, id: u64, mut req: RequestSock, skb: Box<SkBuff>, opts: &Options) {
        if let Some((val, _)) = opts.ts.filter(|_| req.tstamp_ok) {
            req.ts_recent = val;
        }
        // TCP_DEFER_ACCEPT: the ACK alone does not make the connection.
        let defer = self.socks.get(req.listener).map_or(0, |l| l.tp().opts.defer_accept);
        if req.num_timeout < defer && skb.tcp.end_seq == req.rcv_isn + 1 && skb.tcp.flags & flag::FIN == 0 {
            if let Some(r) = self.tcp.request_mut(id) {
                r.acked = true;
            }
            return self.kfree_skb(skb, DropReason::TcpFlags);
        }
        let listener = req.listener;
        self.tcp_create_child(listener, req, Some(id), skb, opts);
    }

    /// The peer did not get our SYN-ACK: again, not too often (Linux `inet_rtx_syn_ack`).
    fn tcp_syn_again(&mut self, id: u64, skb: &SkBuff) {
        let Some(mut last) = self.tcp.request_mut(id).map(|r| r.last_oow_ack) else { return };
        let ok = self.tcp_oow_allowed(&mut last, skb, Mib::TCPACKSkippedSynRecv);
        if let Some(r) = self.tcp.request_mut(id) {
            r.last_oow_ack = last;
        }
        if ok {
            self.tcp_synack_again(id);
        }
    }

    /// Sends the SYN-ACK of a request again.
    pub(crate) fn tcp_synack_again(&mut self, id: u64) {
        let Some(req) = self.tcp.request_mut(id) else { return };
        req.num_retrans = req.num_retrans.saturating_add(1);
        let req = req.clone();
        let Some(l) = self.socks.get(req.listener) else { return };
        let (tos, ttl) = (l.inet.tos, l.inet.ttl);
        let flow = Flow { daddr: req.tuple.daddr, saddr: req.tuple.saddr, oif: 0 };
        if let Ok(route) = self.ip_route_output(flow) {
            self.mib.inc(Mib::TcpRetransSegs);
            self.mib.inc(Mib::TCPSynRetrans);
            self.tcp_v4_send_synack(&req, route.mtu, tos, ttl);
        }
    }

    /// Forgets a request.
    pub(crate) fn tcp_request_drop(&mut self, id: u64) {
        self.timers.cancel(TimerKey::TcpMini(id));
        if let Some(Mini::Request(req)) = self.tcp.remove_mini(id)
            && let Some(l) = self.socks.get_mut(req.listener).and_then(|sk| sk.tp_mut().listen.as_mut())
        {
            l.requests.remove(&id);
        }
    }

    /// The handshake is done: makes the socket, gives it the segment, queues it for `accept`.
    fn tcp_create_child(&mut self, listener: SockId, req: RequestSock, mini: Option<u64>, skb: Box<SkBuff>, opts: &Options) {
        let full =
            self.socks.get(listener).and_then(|l| l.tp().listen.as_ref()).is_none_or(|l| l.accept_queue.len() > l.max_backlog as usize);
        if full {
            self.mib.inc(Mib::ListenOverflows);
            self.mib.inc(Mib::ListenDrops);
            if self.tcp.sysctl.abort_on_overflow {
                self.tcp_v4_send_reset(&skb);
                if let Some(id) = mini {
                    self.tcp_request_drop(id);
                }
            } else if let Some(r) = mini.and_then(|id| self.tcp.request_mut(id)) {
                r.acked = true;
            }
            return self.kfree_skb(skb, DropReason::TcpListenOverflow);
        }
        let window = u32::from(skb.tcp.window) << req.snd_wscale.unwrap_or(0);
        let Some(child) = self.tcp_v4_syn_recv_sock(listener, &req, window) else {
            return self.kfree_skb(skb, DropReason::NoSocket);
        };
        if let Some(id) = mini {
            self.tcp_request_drop(id);
        }
        let mut sk = self.socks.take(child).expect("made above");
        self.tcp.hash(&req.tuple, Entry::Sock(child));
        self.tcp.add_owner(sk.sport, Owner::Sock(child), Hold::Bind);
        self.mib.inc(Mib::TcpPassiveOpens);
        self.tcp_child_process(listener, &mut sk, skb, opts);
        self.tcp_put(sk);
    }

    fn tcp_child_process(&mut self, listener: SockId, sk: &mut Sock, skb: Box<SkBuff>, opts: &Options) {
        let child = sk.id;
        if let Some(l) = self.socks.get_mut(listener).and_then(|l| l.tp_mut().listen.as_mut()) {
            l.accept_queue.push_back(child);
        }
        if let Err((skb, reason)) = self.tcp_rcv_state_process(sk, skb, opts) {
            self.tcp_v4_send_reset(&skb);
            self.kfree_skb(skb, reason);
        }
        if let Some(mut l) = self.socks.take(listener) {
            self.sk_data_ready(&mut l);
            self.socks.put(l);
        }
    }

    /// A socket with the listener's options and the request's parameters
    /// (Linux `tcp_v4_syn_recv_sock`, `tcp_create_openreq_child`).
    fn tcp_v4_syn_recv_sock(&mut self, listener: SockId, req: &RequestSock, window: u32) -> Option<SockId> {
        let now = self.now;
        let t = req.tuple;
        let route = self.ip_route_output(Flow { daddr: t.daddr, saddr: t.saddr, oif: 0 }).ok()?;
        let generation = self.fib_generation();
        let ip_id = rand_core::Rng::next_u32(&mut self.rng) as u16;
        let l = self.socks.get(listener)?;
        let mut tp = Box::new(TcpSock::new(&self.tcp.sysctl));
        tp.inherit(l.tp());
        tp.take_request(req, window, now);
        tp.advmss = advmss(route.mtu);
        let (family, sndbuf, rcvbuf) = (l.family, l.sndbuf, l.rcvbuf);
        let (mut opt, mut inet, dev) = (l.opt.clone(), l.inet.clone(), l.bound_dev_if);
        inet.mc_groups.clear();
        inet.mc_sources.clear();
        // `IP_TOS` is taken over, what it made of the priority is not (Linux `sk_clone`).
        opt.priority = 0;
        let locks = (l.sndbuf_locked, l.rcvbuf_locked);
        let filter = l.filter.clone();
        let id = self.socks.insert(|id| {
            let mut sk = Sock::new(id, family, Proto::Tcp(tp), sndbuf, rcvbuf);
            (sk.saddr, sk.rcv_saddr, sk.sport) = (t.saddr, t.saddr, t.sport);
            (sk.daddr, sk.dport) = (t.daddr, t.dport);
            (sk.opt, sk.inet, sk.bound_dev_if) = (opt, inet, dev);
            (sk.sndbuf_locked, sk.rcvbuf_locked) = locks;
            (sk.ip_id, sk.txhash) = (ip_id, req.txhash);
            sk.filter = filter;
            sk.dst = Some((generation, route));
            sk
        });
        let mut sk = self.socks.take(id).expect("made above");
        self.tcp_sync_mss(&mut sk, route.mtu);
        tp!(sk).initialize_rcv_mss();
        self.socks.put(sk);
        Some(id)
    }
}

impl TcpSock {
    /// Options that a connection takes from its listener.
    fn inherit(&mut self, l: &TcpSock) {
        // Those of the accept queue stay with the listener.
        self.opts = TcpOptions { defer_accept: 0, fastopen_qlen: 0, ..l.opts };
        self.user = l.user;
        self.set_max_pacing_rate(l.pacing.max);
        self.ack.quickack_locked = l.ack.quickack_locked;
        self.rx_opt.user_mss = l.rx_opt.user_mss;
        self.ca = crate::tcp::cong::Cong::by_name(l.ca.name().as_bytes()).unwrap_or_default();
    }

    /// Sequence numbers and options of the handshake.
    fn take_request(&mut self, req: &RequestSock, window: u32, now: crate::time::Instant) {
        self.state = State::SynRecv;
        self.owns_port = true;
        self.rcv_nxt = req.rcv_isn + 1;
        self.rcv_wup = self.rcv_nxt;
        self.copied_seq = self.rcv_nxt;
        self.snd_una = req.snt_isn + 1;
        self.snd_nxt = self.snd_una;
        self.write_seq = self.snd_una;
        self.pushed_seq = self.snd_una;
        self.snd_sml = self.snd_una;
        self.snd_wl1 = req.rcv_isn;
        self.rcv_wnd = req.rcv_wnd;
        self.rcv_ssthresh = req.rcv_wnd;
        self.window_clamp = req.window_clamp;
        self.snd_wnd = window;
        self.max_window = window;
        self.tsoffset = req.ts_off;
        self.ecn.ok = req.ecn_ok;
        (self.lsndtime, self.ack.lrcvtime) = (now, now);
        self.rcv_tstamp = now;
        let o = &mut self.rx_opt;
        o.mss_clamp = req.mss;
        o.tstamp_ok = req.tstamp_ok;
        o.sack_ok = req.sack_ok;
        o.wscale_ok = req.snd_wscale.is_some();
        o.snd_wscale = req.snd_wscale.unwrap_or(0);
        o.rcv_wscale = req.rcv_wscale;
        o.ts_recent = req.ts_recent;
        o.ts_recent_stamp = req.tstamp_ok.then_some(now);
        // The SYN and what completes the handshake; the SYN-ACK arrived.
        self.total.segs_in = 2;
        self.rate.delivered = 1;
        if req.num_retrans == 0 && !req.from_cookie {
            self.rtt_estimator(now.since(req.synack_at));
            self.set_rto();
        }
        self.rtt.min_rtt_us = if self.rtt.srtt_us > 0 { (self.rtt.srtt_us >> 3).max(1) } else { u32::MAX };
    }
}
