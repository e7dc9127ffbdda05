//! SYN cookies: a connection's parameters in its sequence number and timestamp, so that
//! a flood of SYNs takes no memory (Linux `syncookies.c`).
//!
//! The sequence number is the sum of hash₀(connection), the peer's number, the minute
//! shifted by 24 bits, and the low 24 bits of hash₁(connection, minute) plus the MSS
//! index. With timestamps, their low six bits carry window scale, SACK and ECN.

use super::header::Options;
use super::minisock::RequestSock;
use super::secure::{Secrets, Tuple};
use super::seq::SeqNum;
use super::sock::TcpSock;
use crate::Kernel;
use crate::ip::route::Flow;
use crate::skb::SkBuff;
use crate::sock::SockId;
use crate::tcp::output::window::{advmss, select_initial_window};
use crate::time::Instant;
use core::time::Duration;
use ringlab_counters::Mib;

/// Segment sizes that a cookie can tell.
const MSSTAB: [u16; 4] = [536, 1300, 1440, 1460];
const COOKIEBITS: u32 = 24;
const COOKIEMASK: u32 = (1 << COOKIEBITS) - 1;
/// Minutes for which a cookie is good.
const MAX_AGE: u32 = 2;
const TSBITS: u32 = 6;
const TS_WSCALE: u32 = 0xf;
const TS_SACK: u32 = 1 << 4;
const TS_ECN: u32 = 1 << 5;

/// Makes the sequence number; also the MSS that it will tell.
fn cookie_init(s: &Secrets, t: &Tuple, peer: SeqNum, mss: u16, minute: u32) -> (SeqNum, u16) {
    let index = MSSTAB.iter().rposition(|&m| m <= mss).unwrap_or(0);
    let low = s.cookie_hash(t, minute, 1).wrapping_add(index as u32) & COOKIEMASK;
    let n = s.cookie_hash(t, 0, 0).wrapping_add(peer.0).wrapping_add(minute << COOKIEBITS).wrapping_add(low);
    (SeqNum(n), MSSTAB[index])
}

/// The MSS that a cookie tells, if it is one of ours and not too old.
fn cookie_check(s: &Secrets, t: &Tuple, peer: SeqNum, cookie: SeqNum, minute: u32) -> Option<u16> {
    let n = cookie.0.wrapping_sub(s.cookie_hash(t, 0, 0)).wrapping_sub(peer.0);
    let age = minute.wrapping_sub(n >> COOKIEBITS) & 0xff;
    if age >= MAX_AGE {
        return None;
    }
    let index = n.wrapping_sub(s.cookie_hash(t, minute.wrapping_sub(age), 1)) & COOKIEMASK;
    MSSTAB.get(index as usize).copied()
}

/// Timestamp with options in its low bits, not later than now.
fn cookie_ts(now_ms: u32, wscale: Option<u8>, sack: bool, ecn: bool) -> u32 {
    let mut bits = wscale.map_or(TS_WSCALE, u32::from);
    if sack {
        bits |= TS_SACK;
    }
    if ecn {
        bits |= TS_ECN;
    }
    let ts = now_ms & !((1 << TSBITS) - 1) | bits;
    if ts > now_ms { ts.wrapping_sub(1 << TSBITS) } else { ts }
}

fn minute(now: Instant) -> u32 {
    (now.0 / 60_000_000_000) as u32
}

impl Kernel {
    /// Turns a request into a cookie: sequence number and timestamp offset are replaced.
    pub(crate) fn tcp_cookie_init(&mut self, req: &mut RequestSock) {
        let secrets = self.tcp_secrets();
        (req.snt_isn, req.mss) = cookie_init(&secrets, &req.tuple, req.rcv_isn, req.mss, minute(self.now));
        if req.tstamp_ok {
            let clock = TcpSock::clock_ms(self.now);
            let ts = cookie_ts(clock, req.snd_wscale, req.sack_ok, req.ecn_ok);
            // The SYN-ACK sends clock + offset: choose the offset that makes it `ts` + the real one.
            req.ts_off = req.ts_off.wrapping_add(ts.wrapping_sub(clock));
        }
        self.mib.inc(Mib::SyncookiesSent);
    }

    /// An ACK to a listener that no request waits for: the request is rebuilt if the ACK
    /// returns a cookie (Linux `cookie_v4_check`).
    pub(crate) fn tcp_cookie_check(&mut self, listener: SockId, skb: &SkBuff, opts: &Options) -> Option<RequestSock> {
        let recent = self.socks.get(listener)?.tp().listen.as_ref()?.overflow_at;
        if self.tcp.sysctl.syncookies == 0 || recent.is_none_or(|at| self.now.since(at) > Duration::from_secs(120)) {
            return None;
        }
        let t = skb.tcp_tuple();
        let secrets = self.tcp_secrets();
        let (peer, cookie) = (skb.tcp.seq - 1, skb.tcp.ack_seq - 1);
        let Some(mss) = cookie_check(&secrets, &t, peer, cookie, minute(self.now)) else {
            self.mib.inc(Mib::SyncookiesFailed);
            return None;
        };
        self.mib.inc(Mib::SyncookiesRecv);
        let ts_off = secrets.secure_tcp_ts_off(t.saddr, t.daddr);
        let s = &self.tcp.sysctl;
        let bits = opts.ts.filter(|_| s.timestamps).map(|(_, ecr)| ecr.wrapping_sub(ts_off));
        let wscale = bits.map(|b| b & TS_WSCALE).filter(|&w| w != TS_WSCALE && s.window_scaling).map(|w| w as u8);
        let sack_ok = bits.is_some_and(|b| b & TS_SACK != 0) && s.sack;
        let ecn_ok = bits.is_some_and(|b| b & TS_ECN != 0) && s.ecn != 0;
        let rmem_max = s.rmem[2];
        let route = self.ip_route_output(Flow { daddr: t.daddr, saddr: t.saddr, oif: 0 }).ok()?;
        let full = self.socks.get(listener)?.tcp_full_space();
        let advertised = advmss(route.mtu) - if bits.is_some() { 12 } else { 0 };
        let win = select_initial_window(full, advertised, 0, wscale.is_some(), rmem_max);
        Some(RequestSock {
            listener,
            tuple: t,
            dev: skb.dev,
            rcv_isn: peer,
            snt_isn: cookie,
            mss,
            snd_wscale: wscale,
            rcv_wscale: win.wscale,
            tstamp_ok: bits.is_some(),
            sack_ok,
            ecn_ok,
            ts_recent: opts.ts.map_or(0, |(val, _)| val),
            ts_off,
            rcv_wnd: win.rcv_wnd,
            window_clamp: win.clamp,
            num_timeout: 0,
            num_retrans: 1, // unknown: no RTT from it
            acked: false,
            synack_at: self.now,
            last_oow_ack: None,
            txhash: skb.hash,
            from_cookie: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    const S: Secrets = Secrets { isn: [1, 2], ts: [3, 4], port: [5, 6], cookie: [[7, 8], [9, 10]] };

    fn tuple() -> Tuple {
        Tuple { saddr: Ipv4Addr::new(10, 0, 0, 1), sport: 80, daddr: Ipv4Addr::new(10, 0, 0, 2), dport: 4321 }
    }

    #[test]
    fn cookie_tells_the_mss_for_two_minutes() {
        for (mss, told) in [(1460, 1460), (1459, 1440), (9000, 1460), (100, 536), (1350, 1300)] {
            let (c, used) = cookie_init(&S, &tuple(), SeqNum(77), mss, 10);
            assert_eq!(used, told);
            assert_eq!(cookie_check(&S, &tuple(), SeqNum(77), c, 10), Some(told));
            assert_eq!(cookie_check(&S, &tuple(), SeqNum(77), c, 11), Some(told));
            assert_eq!(cookie_check(&S, &tuple(), SeqNum(77), c, 12), None);
            assert_eq!(cookie_check(&S, &tuple(), SeqNum(77 - 9), c, 10), None);
            assert_eq!(cookie_check(&S, &Tuple { dport: 1, ..tuple() }, SeqNum(77), c, 10), None);
        }
    }

    #[test]
    fn timestamp_carries_options_and_does_not_run_ahead() {
        for now in [1000u32, 1024, 1087, 64] {
            let ts = cookie_ts(now, Some(7), true, false);
            assert!(ts <= now && now - ts < 128);
            assert_eq!((ts & TS_WSCALE, ts & TS_SACK, ts & TS_ECN), (7, TS_SACK, 0));
        }
        assert_eq!(cookie_ts(1000, None, false, true) & 0x3f, TS_WSCALE | TS_ECN);
    }
}
