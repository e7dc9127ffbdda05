//! `/proc/net/tcp`, `udp`, `raw`, `icmp`: one line for each socket (Linux `tcp4_seq_show`, `udp4_seq_show` …).

use super::net::raw;
use crate::Kernel;
use crate::sock::{Proto, Sock};
use crate::tcp::State;
use crate::tcp::minisock::{Mini, RequestSock, TimewaitSock};
use crate::tcp::sock::WriteTimer;
use crate::time::Instant;
use crate::timer::TimerKey;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// Ticks of a second in which times are printed (`USER_HZ`).
const USER_HZ: u64 = 100;
/// Buckets of the UDP table, by which a line is numbered.
const UDP_BUCKETS: u16 = 16384;
/// What a congestion window has no threshold below.
const NO_SSTHRESH: u32 = 0x7fff_ffff;

/// The heading of `udp` and its like, padded as their lines are.
pub(super) fn udp_header() -> String {
    let heading = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops";
    format!("{heading:<127}\n")
}

impl Sock {
    /// Addresses and ports as these files print them.
    fn ends(&self, port: u16) -> String {
        format!("{:08X}:{port:04X} {:08X}:{:04X}", raw(self.rcv_saddr), raw(self.daddr), self.dport)
    }
}

impl Kernel {
    /// Packet sockets (Linux `packet_seq_show`): 1 in the column `R` for those that are shown packets.
    pub(super) fn proc_packet(&self) -> String {
        let mut out = String::from("sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n");
        for sk in self.socks.iter() {
            let Proto::Packet(po) = &sk.proto else { continue };
            let (kind, protocol, dev, rmem) = (po.kind(), po.protocol, sk.bound_dev_if, sk.rmem_alloc);
            let running = u8::from(po.is_hooked());
            // A string takes everything.
            let _ = writeln!(
                out,
                "0000000000000000 3      {kind:<4} {protocol:04x}   {dev:<5} {running} {rmem:<6} 0      {inode:<6}",
                inode = self.sock_inode(sk)
            );
        }
        out
    }

    fn ticks_until(&self, at: Instant) -> u64 {
        (at.since(self.now).as_millis() as u64 * USER_HZ).div_ceil(1000)
    }

    /// Listeners first, then connections, then those that are not yet or no longer a socket.
    pub(super) fn proc_tcp(&self) -> String {
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        let mut out = format!("{heading:<149}\n");
        let mut rows: Vec<String> = Vec::new();
        let shown = |sk: &&Sock| sk.family == crate::sock::AF_INET && matches!(&sk.proto, Proto::Tcp(tp) if tp.state != State::Close);
        let (listening, connected): (Vec<&Sock>, Vec<&Sock>) = self.socks.iter().filter(shown).partition(|sk| sk.state() == State::Listen);
        rows.extend(listening.into_iter().chain(connected).map(|sk| self.tcp_row(sk)));
        for (_, mini) in self.tcp.minis() {
            rows.push(match mini {
                Mini::Request(r) => self.request_row(r),
                Mini::Timewait(tw) => self.timewait_row(tw),
            });
        }
        for (i, row) in rows.iter().enumerate() {
            // Infallible: writing to a string. (Also below.)
            let _ = writeln!(out, "{:<149}", format!("{i:4}: {row}"));
        }
        out
    }

    fn tcp_row(&self, sk: &Sock) -> String {
        let tp = sk.tp();
        let keepalive = self.timers.get(TimerKey::TcpKeepalive(sk.id));
        let (timer, at) = match tp.pending {
            WriteTimer::Retrans | WriteTimer::LossProbe | WriteTimer::ReoTimeout => (1, Some(tp.timeout)),
            WriteTimer::Probe0 => (4, Some(tp.timeout)),
            WriteTimer::Idle => (if keepalive.is_some() { 2 } else { 0 }, keepalive),
        };
        let when = at.map_or(0, |t| self.ticks_until(t));
        // Timers hold references, and so do a listener's children.
        let timers = u32::from(tp.pending != WriteTimer::Idle) + u32::from(keepalive.is_some()) + u32::from(tp.ack.timer);
        let children = tp.listen.as_ref().map_or(0, |l| (l.accept_queue.len() + l.requests.len()) as u32);
        let (tx, rx) = match &tp.listen {
            Some(l) => (0, l.accept_queue.len() as u32),
            None => (tp.write_seq - tp.snd_una, tp.rcv_nxt - tp.copied_seq),
        };
        let inode = self.sock_inode(sk);
        let quick = u32::from(tp.ack.quick) << 1 | u32::from(tp.ack.pingpong);
        let threshold = match &tp.listen {
            Some(_) => 0,
            None if tp.cwnd.ssthresh >= NO_SSTHRESH => -1,
            None => i64::from(tp.cwnd.ssthresh),
        };
        format!(
            "{} {:02X} {tx:08X}:{rx:08X} {timer:02X}:{when:08X} {:08X} {:5} {:8} {} {} {:016x} {} {} {quick} {} {threshold}",
            sk.ends(sk.sport),
            tp.state as u8,
            tp.retransmits,
            0,
            tp.probes_out,
            inode,
            1 + timers + children,
            sk.id.0,
            tp.rto.as_millis() as u64 * USER_HZ / 1000,
            tp.ack.ato.as_millis() as u64 * USER_HZ / 1000,
            tp.cwnd.cwnd,
        )
    }

    fn request_row(&self, r: &RequestSock) -> String {
        let t = &r.tuple;
        let when = self.ticks_until(r.synack_at + r.timeout());
        format!(
            "{:08X}:{:04X} {:08X}:{:04X} {:02X} {:08X}:{:08X} {:02X}:{when:08X} {:08X} {:5} {:8} {} {} {:016x}",
            raw(t.saddr),
            t.sport,
            raw(t.daddr),
            t.dport,
            State::SynRecv as u8,
            0,
            0,
            1,
            r.num_timeout,
            0,
            0,
            0,
            0,
            0
        )
    }

    fn timewait_row(&self, tw: &TimewaitSock) -> String {
        let t = &tw.tuple;
        format!(
            "{:08X}:{:04X} {:08X}:{:04X} {:02X} {:08X}:{:08X} {:02X}:{:08X} {:08X} {:5} {:8} {} {} {:016x}",
            raw(t.saddr),
            t.sport,
            raw(t.daddr),
            t.dport,
            tw.substate as u8,
            0,
            0,
            3,
            self.tw_timer(t).map_or(0, |at| self.ticks_until(at)),
            0,
            0,
            0,
            0,
            3,
            0
        )
    }

    /// When a minisocket's timer comes up.
    pub(crate) fn tw_timer(&self, t: &crate::tcp::secure::Tuple) -> Option<Instant> {
        match self.tcp.lookup(t) {
            Some(crate::tcp::hash::Entry::Mini(id)) => self.timers.get(TimerKey::TcpMini(id)),
            _ => None,
        }
    }

    pub(super) fn proc_udp(&self) -> String {
        let mut out = udp_header();
        for sk in self.socks.iter().filter(|sk| matches!(sk.proto, Proto::Udp(_)) && sk.sport != 0 && sk.family == crate::sock::AF_INET) {
            let row = format!("{:5}: {}", sk.sport % UDP_BUCKETS, self.dgram_row(sk, sk.sport));
            let _ = writeln!(out, "{row:<127}");
        }
        out
    }

    pub(super) fn proc_icmp(&self) -> String {
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops";
        let mut out = format!("{heading:<127}\n");
        for sk in self.socks.iter().filter(|sk| matches!(sk.proto, Proto::Ping) && sk.sport != 0) {
            let row = format!("{:5}: {}", sk.sport, self.dgram_row(sk, sk.sport));
            let _ = writeln!(out, "{row:<127}");
        }
        out
    }

    pub(super) fn proc_raw(&self) -> String {
        let mut out = String::from(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n",
        );
        for sk in self.socks.iter().filter(|sk| sk.family == crate::sock::AF_INET) {
            if let Proto::Raw { protocol, .. } = sk.proto {
                let _ = writeln!(out, "{protocol:4}: {}", self.dgram_row(sk, protocol.into()));
            }
        }
        out
    }

    fn dgram_row(&self, sk: &Sock, port: u16) -> String {
        let state = if sk.is_connected_dgram() { State::Established } else { State::Close };
        format!(
            "{} {:02X} {:08X}:{:08X} {:02X}:{:08X} {:08X} {:5} {:8} {} {} {:016x} {}",
            sk.ends(port),
            state as u8,
            sk.wmem_alloc,
            sk.rmem_alloc,
            0,
            0,
            0,
            0,
            0,
            self.sock_inode(sk),
            2,
            sk.id.0,
            sk.drops
        )
    }
}
