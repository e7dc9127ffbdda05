//! TCP, UDP and raw sockets: `struct inet_diag_msg` and its attributes.

use super::super::request::Request;
use super::super::wire::{Message, flag};
use super::bytecode::{Subject, run};
use super::{IPPROTO_RAW, IPPROTO_TCP, Query, SOCK_DIAG_BY_FAMILY};
use crate::Kernel;
use crate::sock::{AF_INET, Proto, Sock};
use crate::tcp::State;
use crate::tcp::minisock::Mini;
use crate::tcp::secure::Tuple;
use crate::tcp::sock::WriteTimer;
use crate::time::Instant;
use crate::timer::TimerKey;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

/// `INET_DIAG_*`.
mod attr {
    pub(super) const MEMINFO: u16 = 1;
    pub(super) const INFO: u16 = 2;
    pub(super) const CONG: u16 = 4;
    pub(super) const TOS: u16 = 5;
    pub(super) const TCLASS: u16 = 6;
    pub(super) const SKMEMINFO: u16 = 7;
    pub(super) const SHUTDOWN: u16 = 8;
    pub(super) const SKV6ONLY: u16 = 11;
    pub(super) const MARK: u16 = 15;
    pub(super) const CLASS_ID: u16 = 17;
    pub(super) const SOCKOPT: u16 = 22;
}

/// `INET_DIAG_NOCOOKIE`.
const NOCOOKIE: u32 = u32::MAX;

/// What the message's own structure says.
#[derive(Debug, Clone, Copy)]
struct Row {
    state: State,
    timer: u8,
    retrans: u8,
    expires: u32,
    rqueue: u32,
    wqueue: u32,
    inode: u32,
    cookie: u32,
    local: SocketAddr,
    peer: SocketAddr,
    dev: u32,
}

impl Kernel {
    /// All sockets that a query fits: of TCP listeners first, then connections, then minisockets.
    pub(super) fn inet_diag_dump(&self, req: &Request<'_>, q: &Query<'_>) -> Vec<Vec<u8>> {
        let mut sockets: Vec<&Sock> = self.socks.iter().filter(|sk| shown(sk, q)).collect();
        sockets.sort_by_key(|sk| sk.state() != State::Listen);
        let wanted = |row: &Row, mark: u32, bound: bool| run(q.filter, &subject(row, mark, bound)) && ports_match(q, row);
        let mut out = Vec::new();
        for sk in sockets {
            let row = self.diag_row(sk);
            if wanted(&row, sk.opt.mark, sk.bound_port) {
                out.push(self.diag_sock(req, q, sk, &row, flag::MULTI));
            }
        }
        if q.protocol == IPPROTO_TCP && q.family == AF_INET {
            for (id, mini) in self.tcp.minis() {
                let row = self.diag_mini(id, mini);
                if q.states >> row.state as u8 & 1 != 0 && wanted(&row, 0, false) {
                    out.push(diag_head(req, q, &row, flag::MULTI).finish());
                }
            }
        }
        out
    }

    /// The socket with exactly these ends (Linux `inet_diag_dump_one_icsk`).
    pub(super) fn inet_diag_one(&self, req: &Request<'_>, q: &Query<'_>) -> Option<Vec<u8>> {
        let all = Query { states: u32::MAX, ..*q };
        let cookie = super::word(q.id, 40)?;
        let ends = |row: &Row| row_id(row).get(..36) == q.id.get(..36) && (cookie == NOCOOKIE || cookie == row.cookie);
        let found = |sk: &&Sock| shown(sk, &all) && ends(&self.diag_row(sk));
        let sk = self.socks.iter().find(found)?;
        Some(self.diag_sock(req, q, sk, &self.diag_row(sk), 0))
    }

    fn diag_row(&self, sk: &Sock) -> Row {
        let local_ip = if sk.rcv_saddr.is_unspecified() && sk.is_connected_dgram() { sk.saddr } else { sk.rcv_saddr };
        let port = match sk.proto {
            Proto::Raw { protocol, .. } => protocol.into(),
            _ => sk.sport,
        };
        let mut row = Row {
            state: sk.state(),
            timer: 0,
            retrans: 0,
            expires: 0,
            rqueue: sk.rmem_alloc,
            wqueue: sk.wmem_alloc,
            inode: self.sock_inode(sk),
            cookie: sk.id.0,
            local: sk.to_user_addr(local_ip, port),
            peer: sk.to_user_addr(sk.daddr, sk.dport),
            dev: sk.bound_dev_if,
        };
        if let Proto::Tcp(tp) = &sk.proto {
            (row.rqueue, row.wqueue) = match &tp.listen {
                Some(l) => (l.accept_queue.len() as u32, l.max_backlog),
                None => (tp.rcv_nxt - tp.copied_seq, tp.write_seq - tp.snd_una),
            };
            let keepalive = self.timers.get(TimerKey::TcpKeepalive(sk.id));
            let (timer, retrans, at) = match tp.pending {
                WriteTimer::Retrans | WriteTimer::LossProbe | WriteTimer::ReoTimeout => (1, tp.retransmits, Some(tp.timeout)),
                WriteTimer::Probe0 => (4, tp.probes_out, Some(tp.timeout)),
                WriteTimer::Idle if keepalive.is_some() => (2, tp.probes_out, keepalive),
                WriteTimer::Idle => (0, 0, None),
            };
            (row.timer, row.retrans, row.expires) = (timer, retrans, at.map_or(0, |t| self.ms_until(t)));
        }
        row
    }

    fn ms_until(&self, at: Instant) -> u32 {
        at.since(self.now).as_millis() as u32
    }

    fn diag_mini(&self, id: u64, mini: &Mini) -> Row {
        let Tuple { saddr, sport, daddr, dport } = *mini.tuple();
        let addr = |a: Ipv4Addr, port: u16| SocketAddr::from((a, port));
        let (state, timer, retrans, dev) = match mini {
            Mini::Request(r) => (State::SynRecv, 1, r.num_retrans, 0),
            Mini::Timewait(tw) => (tw.substate, 3, 0, tw.bound_dev_if),
        };
        let expires = self.timers.get(TimerKey::TcpMini(id)).map_or(0, |at| self.ms_until(at));
        let (local, peer) = (addr(saddr, sport), addr(daddr, dport));
        Row { state, timer, retrans, expires, rqueue: 0, wqueue: 0, inode: 0, cookie: id as u32, local, peer, dev }
    }

    fn diag_sock(&self, req: &Request<'_>, q: &Query<'_>, sk: &Sock, row: &Row, flags: u16) -> Vec<u8> {
        let mut m = diag_head(req, q, row, flags);
        let wants = |kind: u16| q.ext >> (kind - 1) & 1 != 0;
        m.u8(attr::SHUTDOWN, sk.shutdown);
        if wants(attr::TOS) {
            m.u8(attr::TOS, sk.inet.tos);
        }
        if sk.family != AF_INET {
            if wants(attr::TCLASS) {
                m.u8(attr::TCLASS, sk.inet.tos);
            }
            if matches!(row.state, State::Listen | State::Close) {
                m.u8(attr::SKV6ONLY, sk.inet.v6only.into());
            }
        }
        m.u32(attr::MARK, sk.opt.mark);
        if wants(attr::TCLASS) {
            m.u32(attr::CLASS_ID, sk.opt.priority);
        }
        m.attr(attr::SOCKOPT, &sockopt(sk));
        if wants(attr::MEMINFO) {
            m.words(attr::MEMINFO, &[sk.rmem_alloc, sk.wmem_queued, 0, sk.wmem_alloc]);
        }
        if wants(attr::SKMEMINFO) {
            m.words(attr::SKMEMINFO, &[sk.rmem_alloc, sk.rcvbuf, sk.wmem_alloc, sk.sndbuf, 0, sk.wmem_queued, 0, sk.backlog_len, 0]);
        }
        if let Proto::Tcp(tp) = &sk.proto {
            if wants(attr::INFO) {
                m.attr(attr::INFO, &tp.info_bytes(self.now));
            }
            if wants(attr::CONG) {
                m.text(attr::CONG, tp.ca.name());
            }
        }
        m.finish()
    }
}

/// True if a socket is of the kind that a query asks for.
fn shown(sk: &Sock, q: &Query<'_>) -> bool {
    let kind = match &sk.proto {
        Proto::Tcp(tp) => q.protocol == IPPROTO_TCP && tp.state != State::Close,
        Proto::Udp(_) => q.protocol == super::IPPROTO_UDP && sk.sport != 0,
        Proto::Raw { .. } => q.protocol == IPPROTO_RAW,
        _ => false,
    };
    kind && sk.family == q.family && q.states >> sk.state() as u8 & 1 != 0
}

/// Ports that the query names itself.
fn ports_match(q: &Query<'_>, row: &Row) -> bool {
    let port = |at: usize| u16::from_be_bytes([q.id[at], q.id[at + 1]]);
    (port(0) == 0 || port(0) == row.local.port()) && (port(2) == 0 || port(2) == row.peer.port())
}

fn subject(row: &Row, mark: u32, bound_port: bool) -> Subject {
    let (src, dst) = (row.local.ip(), row.peer.ip());
    Subject { src, sport: row.local.port(), dst, dport: row.peer.port(), dev: row.dev, mark, bound_port }
}

/// `struct inet_diag_sockid`.
fn row_id(row: &Row) -> [u8; 48] {
    let mut id = [0; 48];
    id[..2].copy_from_slice(&row.local.port().to_be_bytes());
    id[2..4].copy_from_slice(&row.peer.port().to_be_bytes());
    for (at, ip) in [(4, row.local.ip()), (20, row.peer.ip())] {
        match ip {
            IpAddr::V4(a) => id[at..at + 4].copy_from_slice(&a.octets()),
            IpAddr::V6(a) => id[at..at + 16].copy_from_slice(&a.octets()),
        }
    }
    id[36..40].copy_from_slice(&row.dev.to_ne_bytes());
    id[40..44].copy_from_slice(&row.cookie.to_ne_bytes());
    id
}

/// `struct inet_diag_msg`.
fn diag_head(req: &Request<'_>, q: &Query<'_>, row: &Row, flags: u16) -> Message {
    let mut m = req.reply(SOCK_DIAG_BY_FAMILY, flags);
    m.bytes(&[q.family as u8, row.state as u8, row.timer, row.retrans]).bytes(&row_id(row));
    for n in [row.expires, row.rqueue, row.wqueue, 0, row.inode] {
        m.bytes(&n.to_ne_bytes());
    }
    m
}

/// `struct inet_diag_sockopt`: a bit for each option.
fn sockopt(sk: &Sock) -> [u8; 2] {
    let hdrincl = matches!(sk.proto, Proto::Raw { hdrincl: true, .. });
    let bits = [
        sk.inet.recverr,
        matches!(sk.proto, Proto::Tcp(_)),
        sk.inet.freebind,
        hdrincl,
        !sk.inet.mc_loop_off,
        false,
        !sk.inet.mc_all_off,
        false,
    ];
    [bits.iter().enumerate().fold(0, |b, (i, &on)| b | u8::from(on) << i), 0]
}
