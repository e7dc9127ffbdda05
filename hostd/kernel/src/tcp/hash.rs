//! Where connections, listeners and bound ports are found (Linux `inet_hashtables.c`,
//! `inet_connection_sock.c`).

use super::bucket::{Bucket, Wish};
use super::header::flag;
use super::minisock::{Mini, RequestSock, TimewaitSock};
use super::secure::{Key, Secrets, Tuple, siphash};
use super::sock::tp;
use super::state::State;
use super::sysctl::TcpSysctl;
use crate::Kernel;
use crate::errno::Errno;
use crate::hash::KeyedState;
use crate::skb::{Frag, SkBuff};
use crate::sock::{Sock, SockId};
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;
use hashbrown::HashMap;
use rand_core::Rng;
use ringlab_counters::Mib;
use rustc_hash::FxBuildHasher;

/// A connection's addresses in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey(u128);

impl From<Tuple> for ConnKey {
    fn from(t: Tuple) -> Self {
        Self(u128::from(t.saddr.to_bits()) << 64 | u128::from(t.daddr.to_bits()) << 32 | u128::from(t.sport) << 16 | u128::from(t.dport))
    }
}

/// What a connection's addresses lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A full socket.
    Sock(SockId),
    /// A minisocket: SYN_RECV or TIME_WAIT.
    Mini(u64),
}

/// Who holds a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A socket.
    Sock(SockId),
    /// A TIME_WAIT minisocket.
    Mini(u64),
}

/// How an owner came by its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// `connect` chose it, for this connection alone (Linux `SOCK_CONNECT_BIND`).
    Connect,
    /// A program bound it, or it is a listener's.
    Bind,
}

/// What a conflict check looks at in an owner.
struct OwnerView {
    rcv_saddr: Ipv4Addr,
    dev: u32,
    reuse: bool,
    reuseport: bool,
    state: State,
    /// `AF_INET`, and `AF_INET6` without IPv4.
    families: (bool, bool),
}

/// Challenge ACKs of the running second (RFC 5961 §7).
#[derive(Debug, Default, Clone, Copy)]
pub struct ChallengeLimit {
    /// Second.
    pub second: u64,
    /// Sent in it.
    pub sent: u32,
}

/// Connections, listeners, bound ports, minisockets.
#[derive(Debug)]
pub struct TcpTable {
    /// Settings.
    pub sysctl: TcpSysctl,
    ehash: HashMap<ConnKey, Entry, KeyedState>,
    listeners: HashMap<u16, Vec<SockId>, FxBuildHasher>,
    bind: HashMap<u16, Bucket, FxBuildHasher>,
    minis: HashMap<u64, Mini, FxBuildHasher>,
    last_mini: u64,
    secrets: Option<Secrets>,
    /// Moves on with every `connect`, per hash of the destination (`table_perturb`).
    perturb: Vec<u32>,
    /// Buffer that `sendmsg` fills (`task_frag`).
    pub(crate) page_frag: Option<Frag>,
    pub(crate) challenge: ChallengeLimit,
    /// Connections whose packets have left, for the tasklet (`tsq_tasklet`).
    pub(crate) tsq_list: VecDeque<SockId>,
    /// Connections that wait for completions.
    pub(crate) throttled: u32,
    /// TIME_WAIT minisockets.
    pub tw_count: u32,
    /// Closed by their programs, not yet over.
    pub orphans: u32,
}

impl TcpTable {
    /// Empty tables with the usual settings. Peers choose the keys of the connections; ports are few, and
    /// minisockets are numbered here.
    pub(crate) fn new(hash: KeyedState) -> Self {
        Self {
            sysctl: TcpSysctl::default(),
            ehash: HashMap::with_hasher(hash),
            listeners: HashMap::default(),
            bind: HashMap::default(),
            minis: HashMap::default(),
            last_mini: 0,
            secrets: None,
            perturb: Vec::new(),
            page_frag: None,
            challenge: ChallengeLimit::default(),
            tsq_list: VecDeque::new(),
            throttled: 0,
            tw_count: 0,
            orphans: 0,
        }
    }

    /// The connection's entry.
    pub fn lookup(&self, t: &Tuple) -> Option<Entry> {
        self.ehash.get(&ConnKey::from(*t)).copied()
    }

    /// Enters a connection; an earlier entry is replaced.
    pub fn hash(&mut self, t: &Tuple, entry: Entry) {
        self.ehash.insert(ConnKey::from(*t), entry);
    }

    /// Removes a connection if it still leads to `entry`.
    pub fn unhash(&mut self, t: &Tuple, entry: Entry) {
        let key = ConnKey::from(*t);
        if self.ehash.get(&key) == Some(&entry) {
            self.ehash.remove(&key);
        }
    }

    /// Adds a minisocket and enters it.
    pub fn add_mini(&mut self, mini: Mini) -> u64 {
        self.last_mini += 1;
        let id = self.last_mini;
        let t = *mini.tuple();
        if let Mini::Timewait(tw) = &mini {
            self.tw_count += 1;
            self.add_owner(tw.tuple.sport, Owner::Mini(id), tw.hold);
        }
        self.hash(&t, Entry::Mini(id));
        self.minis.insert(id, mini);
        id
    }

    /// Looks at a minisocket.
    pub fn mini(&self, id: u64) -> Option<&Mini> {
        self.minis.get(&id)
    }

    /// A request minisocket.
    pub fn request_mut(&mut self, id: u64) -> Option<&mut RequestSock> {
        match self.minis.get_mut(&id) {
            Some(Mini::Request(r)) => Some(r),
            _ => None,
        }
    }

    /// A TIME_WAIT minisocket.
    pub fn timewait_mut(&mut self, id: u64) -> Option<&mut TimewaitSock> {
        match self.minis.get_mut(&id) {
            Some(Mini::Timewait(tw)) => Some(tw),
            _ => None,
        }
    }

    /// Removes a minisocket and what leads to it.
    pub fn remove_mini(&mut self, id: u64) -> Option<Mini> {
        let mini = self.minis.remove(&id)?;
        self.unhash(mini.tuple(), Entry::Mini(id));
        if let Mini::Timewait(tw) = &mini {
            self.tw_count -= 1;
            self.put_owner(tw.tuple.sport, Owner::Mini(id));
        }
        Some(mini)
    }

    /// All minisockets by number, for `ss`.
    pub fn minis(&self) -> Vec<(u64, &Mini)> {
        let mut all: Vec<_> = self.minis.iter().map(|(&id, m)| (id, m)).collect();
        all.sort_unstable_by_key(|&(id, _)| id);
        all
    }

    /// Enters a listener.
    pub fn add_listener(&mut self, port: u16, id: SockId) {
        self.listeners.entry(port).or_default().push(id);
    }

    /// Removes a listener.
    pub fn remove_listener(&mut self, port: u16, id: SockId) {
        if let Some(v) = self.listeners.get_mut(&port) {
            v.retain(|&l| l != id);
            if v.is_empty() {
                self.listeners.remove(&port);
            }
        }
    }

    /// Makes a socket (co-)owner of a port.
    pub fn add_owner(&mut self, port: u16, owner: Owner, hold: Hold) {
        self.bind.entry(port).or_default().add(owner, hold);
    }

    /// How a socket came by its port.
    pub fn hold(&self, port: u16, owner: Owner) -> Hold {
        self.bind.get(&port).and_then(|b| b.hold(owner)).unwrap_or(Hold::Connect)
    }

    /// Gives a port back.
    pub fn put_owner(&mut self, port: u16, owner: Owner) {
        if self.bind.get_mut(&port).is_some_and(|b| b.remove(owner)) {
            self.bind.remove(&port);
        }
    }
}

impl Kernel {
    /// The host's keys, drawn when first needed.
    pub(crate) fn tcp_secrets(&mut self) -> Secrets {
        let rng = &mut self.rng;
        *self.tcp.secrets.get_or_insert_with(|| {
            let mut key = || -> Key { [rng.next_u64(), rng.next_u64()] };
            Secrets { isn: key(), ts: key(), port: key(), cookie: [key(), key()] }
        })
    }

    /// The listener for a segment (Linux `__inet_lookup_listener`): the most specific
    /// one; among equals with `SO_REUSEPORT`, one chosen by the flow's hash.
    pub(crate) fn inet_lookup_listener(&mut self, t: &Tuple, dev: u32) -> Option<SockId> {
        let candidates = self.tcp.listeners.get(&t.sport)?;
        let mut best: Option<(u32, SockId, bool)> = None;
        let mut ties = 0u32;
        for &id in candidates {
            let Some(sk) = self.socks.get(id) else { continue };
            let Some(score) = listener_score(sk, t.saddr, dev) else { continue };
            match best {
                Some((s, _, _)) if score < s => {}
                Some((s, _, true)) if score == s && sk.opt.reuseport => ties += 1,
                Some((s, _, _)) if score == s => {}
                _ => {
                    best = Some((score, id, sk.opt.reuseport));
                    ties = 1;
                }
            }
        }
        let (score, id, reuseport) = best?;
        if !reuseport || ties < 2 {
            return Some(id);
        }
        let key = self.tcp_secrets().port;
        let words = [u64::from(t.daddr.to_bits()) << 16 | u64::from(t.dport), u64::from(t.saddr.to_bits()) << 16 | u64::from(t.sport)];
        let pick = (u64::from(siphash(key, &words) as u32) * u64::from(ties)) >> 32;
        let group = self.tcp.listeners.get(&t.sport)?.iter();
        group
            .filter(|&&l| self.socks.get(l).is_some_and(|sk| sk.opt.reuseport && listener_score(sk, t.saddr, dev) == Some(score)))
            .nth(pick as usize)
            .copied()
    }

    fn owner_view(&self, owner: Owner) -> Option<OwnerView> {
        match owner {
            Owner::Sock(id) => self.socks.get(id).map(|sk| OwnerView {
                rcv_saddr: sk.rcv_saddr,
                dev: sk.bound_dev_if,
                reuse: sk.opt.reuseaddr,
                reuseport: sk.opt.reuseport,
                state: sk.tp().state,
                families: sk.families(),
            }),
            Owner::Mini(id) => match self.tcp.mini(id) {
                Some(Mini::Timewait(tw)) => Some(OwnerView {
                    rcv_saddr: tw.rcv_saddr,
                    dev: tw.bound_dev_if,
                    reuse: tw.reuseaddr,
                    reuseport: tw.reuseport,
                    state: State::TimeWait,
                    families: (true, false),
                }),
                _ => None,
            },
        }
    }

    /// True if somebody's hold on `port` excludes the socket's (Linux `inet_csk_bind_conflict`).
    /// `relax`: the port was asked for by number.
    fn inet_csk_bind_conflict(&self, sk: &Sock, addr: Ipv4Addr, port: u16, relax: bool) -> bool {
        let Some(bucket) = self.tcp.bind.get(&port) else { return false };
        let (four, six_only) = sk.families();
        bucket.owners().filter(|&o| o != Owner::Sock(sk.id)).any(|o| {
            let Some(v) = self.owner_view(o) else { return false };
            if four && v.families.1 || six_only && v.families.0 {
                return false;
            }
            let same_dev = sk.bound_dev_if == 0 || v.dev == 0 || sk.bound_dev_if == v.dev;
            let overlap = addr.is_unspecified() || v.rcv_saddr.is_unspecified() || addr == v.rcv_saddr;
            let shared_port = sk.opt.reuseport && v.reuseport;
            let shared_addr = sk.opt.reuseaddr && v.reuse && v.state != State::Listen && relax;
            same_dev && overlap && !shared_addr && !shared_port
        })
    }

    /// Takes a port for a socket: the one asked for, or a free one
    /// (Linux `inet_csk_get_port`). Sets `rcv_saddr`, `saddr` and `sport`.
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub(crate) fn tcp_get_port(&mut self, sk: &mut Sock, addr: Ipv4Addr, port: u16) -> Result<(), Errno> {
        let wish = Wish::of(sk, addr);
        let port = if port == 0 {
            self.inet_csk_find_open_port(sk, addr).ok_or(Errno::EADDRINUSE)?
        } else if !self.tcp.bind.get(&port).is_some_and(|b| b.admits(&wish)) && self.inet_csk_bind_conflict(sk, addr, port, true) {
            return Err(Errno::EADDRINUSE);
        } else {
            port
        };
        if sk.tp().owns_port && sk.sport != port {
            self.tcp.put_owner(sk.sport, Owner::Sock(sk.id));
        }
        let bucket = self.tcp.bind.entry(port).or_default();
        bucket.bound(&wish);
        bucket.add(Owner::Sock(sk.id), Hold::Bind);
        sk.rcv_saddr = addr;
        sk.saddr = addr;
        sk.sport = port;
        sk.tp_mut().owns_port = true;
        Ok(())
    }

    /// `bind` takes odd ports first, `connect` even ones, so that they seldom meet.
    fn inet_csk_find_open_port(&mut self, sk: &Sock, addr: Ipv4Addr) -> Option<u16> {
        let (low, high) = self.tcp.sysctl.local_port_range;
        let count = u32::from(high).saturating_sub(u32::from(low)) + 1;
        let start = (self.rng.next_u32() % count) & !1;
        for parity in [1, 0] {
            for i in (0..count).step_by(2) {
                let offset = (((start + i) % count) & !1) | parity;
                if offset >= count {
                    continue;
                }
                let port = low + offset as u16;
                if !self.inet_csk_bind_conflict(sk, addr, port, false) {
                    return Some(port);
                }
            }
        }
        None
    }

    /// Enters a connecting socket, choosing its port if it has none (Linux `__inet_hash_connect`).
    /// A TIME_WAIT connection may be taken over; its sequence numbers are then continued.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL`.
    pub(crate) fn inet_hash_connect(&mut self, sk: &mut Sock) -> Result<(), Errno> {
        if sk.tp().owns_port {
            return if self.inet_check_established(sk, sk.sport) { Ok(()) } else { Err(Errno::EADDRNOTAVAIL) };
        }
        let (low, high) = self.tcp.sysctl.local_port_range;
        let count = u32::from(high).saturating_sub(u32::from(low)) + 1;
        let hash = self.tcp_secrets().secure_port_ephemeral(sk.saddr, sk.daddr, sk.dport);
        if self.tcp.perturb.is_empty() {
            self.tcp.perturb.resize(PERTURB, 0);
        }
        let index = (hash >> 32) as usize % PERTURB;
        let start = (self.tcp.perturb[index].wrapping_add(hash as u32) % count) & !1;
        for parity in [0, 1] {
            for i in (0..count).step_by(2) {
                let offset = (((start + i) % count) & !1) | parity;
                if offset >= count {
                    continue;
                }
                let port = low + offset as u16;
                // A port that a program bound is its own.
                if self.tcp.bind.get(&port).is_some_and(|b| b.is_bound()) || !self.inet_check_established(sk, port) {
                    continue;
                }
                self.tcp.perturb[index] = self.tcp.perturb[index].wrapping_add(i + 2);
                self.tcp.add_owner(port, Owner::Sock(sk.id), Hold::Connect);
                sk.sport = port;
                sk.tp_mut().owns_port = true;
                return Ok(());
            }
        }
        Err(Errno::EADDRNOTAVAIL)
    }

    /// True if no connection has these addresses; enters the socket then.
    fn inet_check_established(&mut self, sk: &mut Sock, port: u16) -> bool {
        let t = Tuple { saddr: sk.saddr, sport: port, daddr: sk.daddr, dport: sk.dport };
        match self.tcp.lookup(&t) {
            None => {}
            Some(Entry::Mini(id)) if self.tcp_twsk_unique(sk, id) => {
                self.timers.cancel(crate::timer::TimerKey::TcpMini(id));
                self.tcp.remove_mini(id);
            }
            Some(_) => return false,
        }
        self.tcp.hash(&t, Entry::Sock(sk.id));
        true
    }

    /// A new connection may replace one in TIME_WAIT if timestamps tell their
    /// segments apart (RFC 6191; Linux `tcp_twsk_unique`).
    fn tcp_twsk_unique(&self, sk: &mut Sock, id: u64) -> bool {
        let Some(Mini::Timewait(tw)) = self.tcp.mini(id) else { return false };
        let reuse = match self.tcp.sysctl.tw_reuse {
            0 => false,
            1 => true,
            _ => tw.tuple.daddr.is_loopback() || tw.tuple.saddr.is_loopback(),
        };
        // While the peer's FIN is awaited, the old connection is not over.
        let reuse = reuse && tw.substate == State::TimeWait;
        let Some(stamp) = tw.ts_recent_stamp else { return false };
        if !reuse || self.now.since(stamp) <= Duration::from_secs(1) {
            return false;
        }
        let tp = tp!(sk);
        tp.write_seq = tw.snd_nxt + 65535 + 2;
        tp.rx_opt.ts_recent = tw.ts_recent;
        tp.rx_opt.ts_recent_stamp = Some(stamp);
        true
    }

    /// Takes a socket out of all tables (Linux `inet_unhash` and `inet_put_port`).
    pub(crate) fn tcp_unhash(&mut self, sk: &mut Sock, put_port: bool) {
        let t = Tuple { saddr: sk.saddr, sport: sk.sport, daddr: sk.daddr, dport: sk.dport };
        self.tcp.unhash(&t, Entry::Sock(sk.id));
        if put_port && sk.tp().owns_port {
            self.tcp.put_owner(sk.sport, Owner::Sock(sk.id));
            sk.tp_mut().owns_port = false;
        }
    }

    /// At most so many challenge ACKs a second (Linux `tcp_challenge_ack_limit`).
    pub(crate) fn tcp_challenge_allowed(&mut self) -> bool {
        let limit = self.tcp.sysctl.challenge_ack_limit;
        let second = self.now.0 / 1_000_000_000;
        if self.tcp.challenge.second != second {
            self.tcp.challenge = ChallengeLimit { second, sent: 0 };
        }
        self.tcp.challenge.sent = self.tcp.challenge.sent.saturating_add(1);
        self.tcp.challenge.sent <= limit
    }

    /// True if an answer to an out-of-window segment may go out now (Linux `tcp_oow_rate_limited`).
    /// Segments with data, unless they are SYNs, always are. `skipped` counts the answers that are not sent.
    pub(crate) fn tcp_oow_allowed(&mut self, last: &mut Option<Instant>, skb: &SkBuff, skipped: Mib) -> bool {
        let cb = &skb.tcp;
        cb.seq != cb.end_seq && cb.flags & flag::SYN == 0 || self.tcp_answer_due(last, skipped)
    }

    /// True if the last answer is `tcp_invalid_ratelimit` ago (Linux `__tcp_oow_rate_limited`).
    pub(crate) fn tcp_answer_due(&mut self, last: &mut Option<Instant>, skipped: Mib) -> bool {
        if last.is_some_and(|l| self.now.since(l) < self.tcp.sysctl.invalid_ratelimit) {
            self.mib.inc(skipped);
            return false;
        }
        *last = Some(self.now);
        true
    }

    /// Puts a socket back that an operation took out, or ends it if nobody is left
    /// (Linux `sock_put` of the last reference).
    pub(crate) fn tcp_put(&mut self, sk: Box<Sock>) {
        if sk.dead && sk.tp().state == State::Close && !sk.owned {
            self.inet_csk_destroy_sock(sk);
        } else {
            self.socks.put(sk);
        }
    }
}

/// Entries of the table that moves ephemeral ports on.
const PERTURB: usize = 256;

fn listener_score(sk: &Sock, daddr: Ipv4Addr, dev: u32) -> Option<u32> {
    if sk.tp().state != State::Listen || (sk.family == 10 && sk.inet.v6only) {
        return None;
    }
    let mut score = if sk.family == 2 { 2 } else { 1 };
    if !sk.rcv_saddr.is_unspecified() {
        if sk.rcv_saddr != daddr {
            return None;
        }
        score += 8;
    }
    if sk.bound_dev_if != 0 {
        if sk.bound_dev_if != dev {
            return None;
        }
        score += 4;
    }
    Some(score)
}
