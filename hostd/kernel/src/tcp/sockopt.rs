//! `IPPROTO_TCP` options, `TCP_INFO`, readiness and queue lengths (Linux `tcp.c`).

use super::TcpInfo;
use super::chrono::JIFFY_US;
use super::cong::{CaState, Cong};
use super::parts::Listen;
use super::sock::{TcpSock, Urg, tp};
use super::state::State;
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::{RCV_SHUTDOWN, SEND_SHUTDOWN, Sock};
use crate::syscall::OptVal;
use crate::time::Instant;
use crate::wait::queue::PollEvents;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

/// `TCP_*` numbers.
pub mod opt {
    #![expect(missing_docs, reason = "Linux's names say it")]
    pub const NODELAY: i32 = 1;
    pub const MAXSEG: i32 = 2;
    pub const CORK: i32 = 3;
    pub const KEEPIDLE: i32 = 4;
    pub const KEEPINTVL: i32 = 5;
    pub const KEEPCNT: i32 = 6;
    pub const SYNCNT: i32 = 7;
    pub const LINGER2: i32 = 8;
    pub const DEFER_ACCEPT: i32 = 9;
    pub const WINDOW_CLAMP: i32 = 10;
    pub const INFO: i32 = 11;
    pub const QUICKACK: i32 = 12;
    pub const CONGESTION: i32 = 13;
    pub const MD5SIG: i32 = 14;
    pub const THIN_LINEAR_TIMEOUTS: i32 = 16;
    pub const THIN_DUPACK: i32 = 17;
    pub const USER_TIMEOUT: i32 = 18;
    pub const FASTOPEN: i32 = 23;
    pub const NOTSENT_LOWAT: i32 = 25;
    pub const SAVE_SYN: i32 = 27;
    pub const FASTOPEN_CONNECT: i32 = 30;
    pub const ULP: i32 = 31;
    pub const FASTOPEN_KEY: i32 = 33;
    pub const INQ: i32 = 36;
    pub const IS_MPTCP: i32 = 43;
}

/// Largest seconds of a keepalive option, and probes.
const MAX_KEEPALIVE: i32 = 32767;
const MAX_PROBES: i32 = 127;
/// Octets of Linux's `struct tcp_info` up to `tcpi_total_rto_time`.
const INFO_LEN: usize = 248;

impl Kernel {
    /// `setsockopt(IPPROTO_TCP)`.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT` for an unknown congestion control, `ENOPROTOOPT`.
    pub(crate) fn tcp_setsockopt(&mut self, sk: &mut Sock, name: i32, val: OptVal) -> Result<(), Errno> {
        match name {
            opt::CONGESTION => return self.tcp_set_congestion_control(sk, val),
            // No upper-layer protocol is built in (kTLS would be one).
            opt::ULP => return Err(Errno::ENOENT),
            opt::MD5SIG => return Err(Errno::ENOPROTOOPT),
            _ => {}
        }
        let OptVal::Int(n) = val else { return Err(Errno::EINVAL) };
        let range = |low, high| if (low..=high).contains(&n) { Ok(n) } else { Err(Errno::EINVAL) };
        let seconds = |n: i32| Duration::from_secs(n as u64);
        let tp = tp!(sk);
        match name {
            opt::NODELAY => {
                tp.opts.nodelay = n != 0;
                if tp.opts.nodelay && !tp.opts.cork {
                    self.tcp_push_pending_frames(sk, super::output::xmit::Nagle::Push);
                }
            }
            opt::CORK => {
                tp.opts.cork = n != 0;
                if !tp.opts.cork {
                    // What was held goes now, small or not.
                    self.tcp_push_pending_frames(sk, super::output::xmit::Nagle::Push);
                }
            }
            opt::MAXSEG => tp.rx_opt.user_mss = if n == 0 { 0 } else { range(88, 32767)? as u16 },
            opt::KEEPIDLE => {
                tp.user.keepidle = Some(seconds(range(1, MAX_KEEPALIVE)?));
                self.tcp_set_keepalive(sk);
            }
            opt::KEEPINTVL => tp.user.keepintvl = Some(seconds(range(1, MAX_KEEPALIVE)?)),
            opt::KEEPCNT => tp.user.keepcnt = Some(range(1, MAX_PROBES)? as u8),
            opt::SYNCNT => tp.user.syn_retries = Some(range(1, MAX_PROBES)? as u8),
            opt::LINGER2 => {
                tp.user.linger2 = match n {
                    n if n < 0 => Some(None),
                    0 => None,
                    n => Some(Some(seconds(n.min(120)))),
                }
            }
            opt::DEFER_ACCEPT => tp.opts.defer_accept = secs_to_retrans(n),
            opt::WINDOW_CLAMP if n == 0 && tp.state != State::Close => return Err(Errno::EINVAL),
            opt::WINDOW_CLAMP => {
                tp.window_clamp = if n == 0 { 0 } else { (n.max(0) as u32).max(1152) };
                tp.rcv_ssthresh = tp.rcv_ssthresh.min(tp.window_clamp);
            }
            opt::QUICKACK => {
                tp.ack.quickack_locked = n != 0 && n & 1 != 0;
                tp.ack.pingpong = n == 0;
                if n != 0 && tp.ack.scheduled && matches!(tp.state, State::Established | State::CloseWait) {
                    tp.ack.pushed = true;
                    self.tcp_cleanup_rbuf(sk, 1);
                }
            }
            opt::USER_TIMEOUT => {
                tp.user.user_timeout = match range(0, i32::MAX)? {
                    0 => None,
                    ms => Some(Duration::from_millis(ms as u64)),
                }
            }
            opt::NOTSENT_LOWAT => {
                tp.opts.notsent_lowat = n as u32;
                self.tcp_check_space(sk);
            }
            opt::FASTOPEN if n >= 0 && matches!(tp.state, State::Close | State::Listen) => tp.opts.fastopen_qlen = n,
            opt::FASTOPEN => return Err(Errno::EINVAL),
            opt::FASTOPEN_CONNECT if !(0..=1).contains(&n) => return Err(Errno::EINVAL),
            opt::FASTOPEN_CONNECT => return Err(Errno::EOPNOTSUPP),
            // Thin streams have no timer of their own any more.
            opt::THIN_DUPACK => drop(range(0, 1)?),
            opt::THIN_LINEAR_TIMEOUTS => tp.opts.thin_lto = range(0, 1)? == 1,
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn tcp_set_congestion_control(&mut self, sk: &mut Sock, val: OptVal) -> Result<(), Errno> {
        let OptVal::Bytes(name) = val else { return Err(Errno::EINVAL) };
        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        let ca = Cong::by_name(&name[..end]).ok_or(Errno::ENOENT)?;
        let tp = tp!(sk);
        if ca.name() != tp.ca.name() {
            tp.ca = ca;
        }
        Ok(())
    }

    /// `SO_RCVLOWAT`: at most half of what the receive buffer may become, which grows so that as much fits
    /// (Linux `tcp_set_rcvlowat`).
    pub(crate) fn tcp_set_rcvlowat(&mut self, sk: &mut Sock, lowat: u32) {
        let most = if sk.rcvbuf_locked { sk.rcvbuf } else { self.tcp.sysctl.rmem[2] } / 2;
        let lowat = lowat.min(most);
        sk.opt.rcvlowat = lowat.max(1);
        // What is there may be enough now.
        self.tcp_data_ready(sk);
        if sk.rcvbuf_locked {
            return;
        }
        let tp = tp!(sk);
        let space = tp.space_from_win(lowat.saturating_mul(2));
        if space > sk.rcvbuf {
            sk.rcvbuf = space;
            if tp.window_clamp != 0 && tp.window_clamp < lowat * 2 {
                tp.window_clamp = lowat * 2;
            }
        }
    }

    /// `SO_KEEPALIVE` changed.
    pub(crate) fn keepalive_changed(&mut self, sk: &mut Sock) {
        self.tcp_set_keepalive(sk);
    }

    /// `SIOCATMARK`: the next octet is the urgent one; never of a listener.
    pub(crate) fn sk_atmark(sk: &Sock) -> bool {
        sk.tp().urg_mark() == Some(sk.tp().copied_seq)
    }

    /// `SO_KEEPALIVE` or `TCP_KEEPIDLE` changed (Linux `tcp_set_keepalive`).
    pub(crate) fn tcp_set_keepalive(&mut self, sk: &mut Sock) {
        if matches!(sk.tp().state, State::Close | State::Listen) {
            return;
        }
        let key = crate::timer::TimerKey::TcpKeepalive(sk.id);
        if sk.opt.keepalive {
            let idle = self.now.since(sk.tp().ack.lrcvtime.max(sk.tp().rcv_tstamp));
            let left = self.tcp_keepalive_time(sk).saturating_sub(idle);
            self.timers.set(key, self.now + left);
        } else if !sk.dead {
            self.timers.cancel(key);
        }
    }

    /// `getsockopt(IPPROTO_TCP)`. `TCP_INFO` is Linux's structure, `TCP_CONGESTION` a padded name.
    ///
    /// # Errors
    /// `ENOPROTOOPT`.
    pub(crate) fn tcp_getsockopt(&mut self, sk: &mut Sock, name: i32) -> Result<OptVal, Errno> {
        let s = &self.tcp.sysctl;
        let tp = sk.tp();
        let secs = |d: Duration| d.as_secs() as i32;
        let n = match name {
            opt::NODELAY => i32::from(tp.opts.nodelay),
            opt::CORK => i32::from(tp.opts.cork),
            opt::MAXSEG if matches!(tp.state, State::Close | State::Listen) && tp.rx_opt.user_mss != 0 => i32::from(tp.rx_opt.user_mss),
            opt::MAXSEG => tp.mss_cache as i32,
            opt::KEEPIDLE => secs(tp.user.keepidle.unwrap_or(s.keepalive_time)),
            opt::KEEPINTVL => secs(tp.user.keepintvl.unwrap_or(s.keepalive_intvl)),
            opt::KEEPCNT => i32::from(tp.user.keepcnt.unwrap_or(s.keepalive_probes)),
            opt::SYNCNT => i32::from(tp.user.syn_retries.unwrap_or(s.syn_retries)),
            opt::LINGER2 => match tp.user.linger2 {
                Some(None) => -1,
                Some(Some(d)) => secs(d),
                None => secs(s.fin_timeout),
            },
            opt::DEFER_ACCEPT => retrans_to_secs(tp.opts.defer_accept),
            opt::WINDOW_CLAMP => tp.window_clamp as i32,
            opt::QUICKACK => i32::from(!tp.ack.pingpong),
            opt::USER_TIMEOUT => tp.user.user_timeout.map_or(0, |d| d.as_millis() as i32),
            opt::NOTSENT_LOWAT => tp.opts.notsent_lowat as i32,
            opt::CONGESTION => {
                let mut b = [0; 16];
                let name = tp.ca.name().as_bytes();
                b[..name.len()].copy_from_slice(name);
                return Ok(OptVal::Bytes(b.to_vec()));
            }
            opt::FASTOPEN => tp.opts.fastopen_qlen,
            opt::FASTOPEN_CONNECT | opt::THIN_DUPACK | opt::IS_MPTCP => 0,
            // They cannot be switched on.
            opt::SAVE_SYN | opt::INQ => 0,
            opt::THIN_LINEAR_TIMEOUTS => tp.opts.thin_lto.into(),
            opt::ULP => return Ok(OptVal::Bytes(Vec::new())),
            opt::INFO => return Ok(OptVal::Bytes(tp.info_bytes(self.now))),
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(OptVal::Int(n))
    }

    /// What `ss -ti` shows.
    pub(crate) fn tcp_info(&self, sk: &Sock) -> TcpInfo {
        let tp = sk.tp();
        TcpInfo {
            state: tp.state,
            cwnd: tp.cwnd.cwnd,
            ssthresh: tp.cwnd.ssthresh,
            srtt_us: tp.rtt.srtt_us >> 3,
            rto_us: tp.rto.as_micros() as u32,
            total_retrans: tp.total.total_retrans,
            mss: tp.mss_cache,
        }
    }

    /// Readiness (Linux `tcp_poll`).
    pub(crate) fn tcp_poll(&self, sk: &Sock) -> PollEvents {
        let tp = sk.tp();
        let mut mask = PollEvents::empty();
        if let Some(l) = &tp.listen {
            return if l.accept_queue.is_empty() { mask } else { PollEvents::IN | PollEvents::RDNORM };
        }
        if sk.shutdown == RCV_SHUTDOWN | SEND_SHUTDOWN || tp.state == State::Close {
            mask |= PollEvents::HUP;
        }
        if sk.shutdown & RCV_SHUTDOWN != 0 {
            mask |= PollEvents::IN | PollEvents::RDNORM | PollEvents::RDHUP;
        }
        if tp.state != State::SynSent && tp.state != State::SynRecv {
            // The urgent octet, read or not, is nothing to read in band.
            let at_mark = tp.urg_mark() == Some(tp.copied_seq) && !sk.opt.oobinline;
            let target = sk.opt.rcvlowat.max(1) + u32::from(at_mark);
            if readable_octets(sk) >= target {
                mask |= PollEvents::IN | PollEvents::RDNORM;
            }
            if sk.shutdown & SEND_SHUTDOWN != 0 || sk.tcp_writeable(self.tcp.sysctl.notsent_lowat) {
                mask |= PollEvents::OUT | PollEvents::WRNORM;
            }
            if matches!(tp.urg_data, Urg::Valid(_)) {
                mask |= PollEvents::PRI;
            }
        }
        if sk.err.is_some() || !sk.error_queue.is_empty() {
            mask |= PollEvents::ERR;
        }
        mask
    }

    /// `SIOCINQ`: octets to read; of a listener, connections to accept are told by `ss` alone.
    ///
    /// # Errors
    /// `EINVAL` on a listener.
    pub(crate) fn tcp_inq(&self, sk: &Sock) -> Result<u32, Errno> {
        let tp = sk.tp();
        if tp.state == State::Listen {
            return Err(Errno::EINVAL);
        }
        if matches!(tp.state, State::SynSent | State::SynRecv) {
            return Ok(0);
        }
        let readable = readable_octets(sk);
        Ok(match tp.urg_mark().filter(|_| !sk.opt.oobinline) {
            // As far as the urgent octet: a read ends there.
            Some(mark) if mark.at_or_after(tp.copied_seq) => readable.min(mark - tp.copied_seq),
            _ => readable,
        })
    }

    /// `SIOCOUTQ`: octets not acknowledged.
    ///
    /// # Errors
    /// `EINVAL` on a listener.
    pub(crate) fn tcp_outq(&self, sk: &Sock) -> Result<u32, Errno> {
        let tp = sk.tp();
        match tp.state {
            State::Listen => Err(Errno::EINVAL),
            State::SynSent | State::SynRecv => Ok(0),
            _ => Ok(tp.write_seq - tp.snd_una),
        }
    }
}

/// Octets in order and not read; the FIN is none.
fn readable_octets(sk: &Sock) -> u32 {
    let at = sk.tp().copied_seq;
    let Some(tail) = sk.receive_queue.back() else { return 0 };
    let fin = u32::from(tail.tcp.flags & super::header::flag::FIN != 0);
    (tail.tcp.end_seq - fin).distance(at).max(0) as u32
}

/// SYN-ACK retransmissions that take at least so many seconds (Linux `secs_to_retrans`).
fn secs_to_retrans(seconds: i32) -> u8 {
    let (mut n, mut period, mut timeout) = (0u8, 1i32, 1i32);
    if seconds <= 0 {
        return 0;
    }
    n += 1;
    while seconds > period && n < 255 {
        n += 1;
        timeout = (timeout * 2).min(120);
        period += timeout;
    }
    n
}

fn retrans_to_secs(n: u8) -> i32 {
    let (mut period, mut timeout) = (0i32, 1i32);
    for _ in 0..n {
        period += timeout;
        timeout = (timeout * 2).min(120);
    }
    period
}

impl TcpSock {
    /// `struct tcp_info` as Linux lays it out on x86-64.
    pub(crate) fn info_bytes(&self, now: Instant) -> Vec<u8> {
        if let Some(queues) = &self.listen {
            return self.listener_info(queues);
        }
        let mut b = Vec::with_capacity(INFO_LEN);
        let o = &self.rx_opt;
        let options = u8::from(o.tstamp_ok) | u8::from(o.sack_ok) << 1 | u8::from(o.wscale_ok) << 2 | u8::from(self.ecn.ok) << 3;
        let ca = match self.ca_state {
            CaState::Open => 0,
            CaState::Disorder => 1,
            CaState::Cwr => 2,
            CaState::Recovery => 3,
            CaState::Loss => 4,
        };
        b.extend([self.state as u8, ca, self.retransmits, self.probes_out, self.backoff, options]);
        b.extend([o.snd_wscale | o.rcv_wscale << 4, u8::from(self.rate.last_app_limited)]);
        let ms = |t: Instant| now.since(t).as_millis() as u32;
        let us = |d: Duration| d.as_micros() as u32;
        let words: [u32; 24] = [
            us(self.rto).next_multiple_of(JIFFY_US),
            us(self.ack.ato),
            self.mss_cache,
            self.ack.rcv_mss,
            self.packets_out,
            self.sacked_out,
            self.lost_out,
            self.retrans_out,
            0,
            ms(self.lsndtime),
            0,
            ms(self.ack.lrcvtime),
            ms(self.rcv_tstamp),
            self.pmtu_cookie,
            self.rcv_ssthresh,
            self.rtt.srtt_us >> 3,
            self.rtt.mdev_us >> 2,
            self.cwnd.ssthresh,
            self.cwnd.cwnd,
            self.advmss,
            self.reordering,
            (self.rcvtune.rtt_us >> 3) as u32,
            self.rcvtune.space,
            self.total.total_retrans,
        ];
        words.iter().for_each(|w| b.extend(w.to_le_bytes()));
        for n in [self.pacing.rate, self.pacing.max, self.total.bytes_acked, self.total.bytes_received] {
            b.extend(n.to_le_bytes());
        }
        let notsent = self.write_seq - self.snd_nxt;
        let min_rtt = if self.rtt.min_rtt_us == u32::MAX { 0 } else { self.rtt.min_rtt_us };
        for w in [self.total.segs_out, self.total.segs_in, notsent, min_rtt, self.total.data_segs_in, self.total.data_segs_out] {
            b.extend(w.to_le_bytes());
        }
        let rate =
            self.rate.last.map_or(0, |(n, d)| (u128::from(n) * u128::from(self.mss_cache) * 1_000_000_000 / d.as_nanos().max(1)) as u64);
        let [busy, rwnd_limited, sndbuf_limited] = self.chrono.info(now);
        for n in [rate, busy, rwnd_limited, sndbuf_limited] {
            b.extend(n.to_le_bytes());
        }
        for w in [self.rate.delivered, 0] {
            b.extend(w.to_le_bytes());
        }
        for n in [self.total.bytes_sent, self.total.bytes_retrans] {
            b.extend(n.to_le_bytes());
        }
        // Then: rehashes, and timeouts (16 bits each: their number, recoveries), which are not counted a connection.
        for w in [self.total.dsack_dups, self.total.reord_seen, 0, self.snd_wnd, self.rcv_wnd, 0, 0, 0] {
            b.extend(w.to_le_bytes());
        }
        debug_assert_eq!(b.len(), INFO_LEN);
        b
    }

    /// Of a listener Linux shows little more than its queue.
    fn listener_info(&self, queues: &Listen) -> Vec<u8> {
        let mut b = vec![0; INFO_LEN];
        b[0] = self.state as u8;
        let words = [(24, queues.accept_queue.len() as u32), (28, queues.max_backlog), (80, self.cwnd.cwnd), (88, self.reordering)];
        for (at, word) in words {
            b[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (at, rate) in [(104, self.pacing.rate), (112, self.pacing.max)] {
            b[at..at + 8].copy_from_slice(&rate.to_le_bytes());
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_has_linux_size_and_places() {
        let mut tp = TcpSock { state: State::Established, snd_wnd: 4242, ..TcpSock::default() };
        tp.cwnd.cwnd = 77;
        tp.total.bytes_received = 0x1122_3344_5566;
        let b = tp.info_bytes(Instant(0));
        assert_eq!((b.len(), b[0]), (INFO_LEN, 1));
        assert_eq!(&b[80..84], &77u32.to_le_bytes()); // tcpi_snd_cwnd
        assert_eq!(&b[128..136], &0x1122_3344_5566u64.to_le_bytes()); // tcpi_bytes_received
        assert_eq!(&b[228..232], &4242u32.to_le_bytes()); // tcpi_snd_wnd
    }

    #[test]
    fn defer_accept_rounds_up_to_retransmissions() {
        for (seconds, n, back) in [(0, 0, 0), (1, 1, 1), (2, 2, 3), (3, 2, 3), (4, 3, 7), (10, 4, 15)] {
            assert_eq!((secs_to_retrans(seconds), retrans_to_secs(n)), (n, back));
        }
    }
}
