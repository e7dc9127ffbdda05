//! ICMP errors for TCP (RFC 1122 §4.2.3.9, RFC 5461, RFC 5927; Linux `tcp_v4_err`).

use super::hash::Entry;
use super::secure::Tuple;
use super::seq::SeqNum;
use super::sock::{Deferred, tp};
use super::state::State;
use crate::Kernel;
use crate::errno::Errno;
use crate::ip::IcmpError;
use crate::sock::{Sock, SockErr};
use core::net::SocketAddrV4;
use ringlab_counters::Mib;

/// Errno of destination unreachable by code, and whether it ends a connection that begins
/// (Linux `icmp_err_convert`).
const UNREACH: [(Errno, bool); 16] = [
    (Errno::ENETUNREACH, false),
    (Errno::EHOSTUNREACH, false),
    (Errno::ENOPROTOOPT, true),
    (Errno::ECONNREFUSED, true),
    (Errno::EMSGSIZE, false),
    (Errno::EOPNOTSUPP, false),
    (Errno::ENETUNREACH, true),
    (Errno::EHOSTDOWN, true),
    (Errno::EHOSTUNREACH, true),
    (Errno::ENETUNREACH, true),
    (Errno::EHOSTUNREACH, true),
    (Errno::ENETUNREACH, false),
    (Errno::EHOSTUNREACH, false),
    (Errno::EHOSTUNREACH, true),
    (Errno::EHOSTUNREACH, true),
    (Errno::EHOSTUNREACH, true),
];
const DEST_UNREACH: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAM_PROBLEM: u8 = 12;
const FRAG_NEEDED: u8 = 4;
const SO_EE_ORIGIN_ICMP: u8 = 2;

impl Kernel {
    /// An ICMP error quotes a segment of ours.
    pub(crate) fn tcp_v4_err(&mut self, e: &IcmpError) {
        let [a, b, c, d, s0, s1, s2, s3] = e.payload;
        let t = Tuple { saddr: e.saddr, sport: u16::from_be_bytes([a, b]), daddr: e.daddr, dport: u16::from_be_bytes([c, d]) };
        let seq = SeqNum(u32::from_be_bytes([s0, s1, s2, s3]));
        match self.tcp.lookup(&t) {
            Some(Entry::Sock(id)) => {
                let Some(mut sk) = self.socks.take(id) else { return };
                self.tcp_sock_err(&mut sk, e, seq);
                self.tcp_put(sk);
            }
            Some(Entry::Mini(id)) => self.tcp_req_err(id, e, seq),
            None => {}
        }
    }

    /// A request whose SYN-ACK cannot be delivered is forgotten (Linux `tcp_req_err`).
    fn tcp_req_err(&mut self, id: u64, e: &IcmpError, seq: SeqNum) {
        let Some(req) = self.tcp.request_mut(id) else { return };
        if seq != req.snt_isn {
            self.mib.inc(Mib::OutOfWindowIcmps);
        } else if e.kind == DEST_UNREACH && e.code != FRAG_NEEDED {
            self.mib.inc(Mib::ListenDrops);
            self.tcp_request_drop(id);
        }
    }

    fn tcp_sock_err(&mut self, sk: &mut Sock, e: &IcmpError, seq: SeqNum) {
        let tp = sk.tp();
        if tp.state == State::Close {
            return;
        }
        // Only somebody who sees our segments knows their numbers.
        if tp.state != State::Listen && !seq.between(tp.snd_una, tp.snd_nxt) {
            self.mib.inc(Mib::OutOfWindowIcmps);
            return;
        }
        let (err, fatal) = match (e.kind, e.code) {
            (DEST_UNREACH, FRAG_NEEDED) => return self.tcp_frag_needed(sk, e.info),
            (DEST_UNREACH, code) => match UNREACH.get(usize::from(code)) {
                Some(&found) => found,
                None => return,
            },
            (PARAM_PROBLEM, _) => (Errno::EPROTONOSUPPORT, false),
            (TIME_EXCEEDED, _) => (Errno::EHOSTUNREACH, false),
            _ => return,
        };
        let handshake = matches!(tp.state, State::SynSent | State::SynRecv);
        if handshake {
            Self::ip_icmp_error(sk, e, err);
        }
        if handshake && !sk.owned && (fatal || e.kind == DEST_UNREACH) {
            sk.err = Some(err);
            self.tcp_write_queue_purge(sk);
            self.tcp_done(sk);
            if !sk.dead {
                self.sk_error_report(sk);
            }
        } else if !sk.owned && sk.inet.recverr {
            sk.err = Some(err);
            self.sk_error_report(sk);
        } else {
            // Soft: reported only if the connection times out anyway.
            sk.err_soft = Some(err);
        }
    }

    /// An ICMP error about a handshake goes to the error queue, whether or not the program asked for one
    /// (Linux `ip_icmp_error`).
    fn ip_icmp_error(sk: &mut Sock, e: &IcmpError, errno: Errno) {
        sk.queue_err(SockErr {
            errno,
            origin: SO_EE_ORIGIN_ICMP,
            kind: e.kind,
            code: e.code,
            info: e.info,
            offender: e.from,
            addr: SocketAddrV4::new(e.daddr, sk.dport),
            data: e.quote.clone(),
            report: e.report,
        });
    }

    fn tcp_frag_needed(&mut self, sk: &mut Sock, mtu: u32) {
        if sk.tp().state == State::Listen {
            return;
        }
        let mtu = mtu.max(self.tcp.sysctl.min_pmtu);
        let tp = tp!(sk);
        if tp.icmp_mtu.is_some_and(|m| m <= mtu) || tp.pmtu_cookie <= mtu {
            return;
        }
        tp.icmp_mtu = Some(mtu);
        if sk.owned {
            tp.deferred |= Deferred::MTU_REDUCED;
        } else {
            self.tcp_v4_mtu_reduced(sk);
        }
    }

    /// Smaller segments from now on, and what was lost again in them (Linux `tcp_v4_mtu_reduced`).
    pub(crate) fn tcp_v4_mtu_reduced(&mut self, sk: &mut Sock) {
        let Some(mtu) = sk.tp().icmp_mtu else { return };
        // `IP_PMTUDISC_DONT`: segments are fragmented on the way.
        if matches!(sk.tp().state, State::Close | State::Listen) || sk.inet.pmtudisc == 0 || sk.tp().pmtu_cookie <= mtu {
            return;
        }
        self.ip_update_pmtu(sk.daddr, mtu);
        self.tcp_sync_mss(sk, mtu);
        self.tcp_simple_retransmit(sk);
    }
}
