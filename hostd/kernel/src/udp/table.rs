//! Bound UDP sockets by local port, and the choice among them (Linux `udp4_lib_lookup2`).

use crate::Kernel;
use crate::errno::Errno;
use crate::hash::KeyedState;
use crate::sock::{Sock, SockId};
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use hashbrown::HashMap;
use rand_core::Rng as _;
use rustc_hash::FxBuildHasher;

/// Bound UDP ports: the sockets of each, the latest last.
#[derive(Debug)]
pub struct UdpTable {
    ports: HashMap<u16, Vec<SockId>, FxBuildHasher>,
    /// Chooses in `SO_REUSEPORT` groups (Linux `udp_ehash_secret`).
    hash: KeyedState,
}

impl UdpTable {
    /// An empty table.
    pub(crate) fn new(hash: KeyedState) -> Self {
        Self { ports: HashMap::default(), hash }
    }
}

/// Who talks to whom, and where it came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuple {
    /// Foreign address.
    pub(super) saddr: Ipv4Addr,
    /// Foreign port.
    pub(super) sport: u16,
    /// Local address.
    pub(super) daddr: Ipv4Addr,
    /// Local port.
    pub(super) dport: u16,
    /// Interface.
    pub(super) dev: u32,
}

impl Tuple {
    /// How well a socket matches (Linux `compute_score`); `None`: not at all.
    fn score(&self, sk: &Sock) -> Option<u32> {
        if !self.admits(sk) || !sk.rcv_saddr.is_unspecified() && sk.rcv_saddr != self.daddr {
            return None;
        }
        let set = |yes: bool| u32::from(yes) * 4;
        let family = if sk.family == crate::sock::AF_INET { 2 } else { 1 };
        let address = set(!sk.rcv_saddr.is_unspecified());
        Some(family + 4 * address + set(!sk.daddr.is_unspecified()) + set(sk.dport != 0) + set(sk.bound_dev_if != 0))
    }

    /// True if the socket's filters let it through: family, peer, interface.
    fn admits(&self, sk: &Sock) -> bool {
        sk.speaks_ipv4()
            && (sk.daddr.is_unspecified() || sk.daddr == self.saddr)
            && (sk.dport == 0 || sk.dport == self.sport)
            && (sk.bound_dev_if == 0 || sk.bound_dev_if == self.dev)
    }

    fn hash(&self, state: &KeyedState) -> u32 {
        use core::hash::BuildHasher;
        state.hash_one((u32::from(self.saddr), self.sport, u32::from(self.daddr), self.dport)) as u32
    }
}

impl Kernel {
    /// Gives the socket a local port; 0: a random free one (Linux `udp_v4_get_port`).
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub(crate) fn udp_get_port(&mut self, sk: &mut Sock, port: u16) -> Result<(), Errno> {
        let port = if port != 0 {
            if self.udp_port_taken(sk, port) {
                return Err(Errno::EADDRINUSE);
            }
            port
        } else {
            let [low, high] = self.sysctl.ip_local_port_range.map(|p| p as u32);
            let span = high - low + 1;
            let first = self.rng.next_u32() % span;
            let mut candidates = (0..span).map(|i| (low + (first + i) % span) as u16);
            candidates.find(|&p| !self.udp_port_taken(sk, p)).ok_or(Errno::EADDRINUSE)?
        };
        sk.sport = port;
        self.udp.ports.entry(port).or_default().push(sk.id);
        Ok(())
    }

    /// True if the port cannot be had beside those who have it (Linux `udp_lib_lport_inuse`).
    fn udp_port_taken(&self, sk: &Sock, port: u16) -> bool {
        let Some(others) = self.udp.ports.get(&port) else { return false };
        others.iter().filter_map(|&id| self.socks.get(id)).any(|other| {
            let ((four, six), (other_four, other_six)) = (sk.families(), other.families());
            let families = !(four && other_six || six && other_four);
            let devices = sk.bound_dev_if == 0 || other.bound_dev_if == 0 || sk.bound_dev_if == other.bound_dev_if;
            let shared = sk.opt.reuseaddr && other.opt.reuseaddr || sk.opt.reuseport && other.opt.reuseport;
            let addresses = sk.rcv_saddr == other.rcv_saddr || sk.rcv_saddr.is_unspecified() || other.rcv_saddr.is_unspecified();
            families && devices && addresses && !shared
        })
    }

    /// Frees the socket's port.
    pub(crate) fn udp_unhash(&mut self, sk: &Sock) {
        if let Some(list) = self.udp.ports.get_mut(&sk.sport) {
            list.retain(|&id| id != sk.id);
            if list.is_empty() {
                self.udp.ports.remove(&sk.sport);
            }
        }
    }

    /// The socket that a unicast datagram is for. Among equals the one bound last; of a `SO_REUSEPORT`
    /// group the one that the hash of the addresses chooses.
    pub(super) fn udp_lookup(&self, t: &Tuple) -> Option<SockId> {
        let list = self.udp.ports.get(&t.dport)?;
        let mut best: Option<(u32, &Sock)> = None;
        for sk in list.iter().rev().filter_map(|&id| self.socks.get(id)) {
            if let Some(score) = t.score(sk)
                && best.is_none_or(|(b, _)| score > b)
            {
                best = Some((score, sk));
            }
        }
        let (_, sk) = best?;
        if !sk.opt.reuseport || sk.is_connected_dgram() || list.len() == 1 {
            return Some(sk.id);
        }
        let member = |other: &&Sock| {
            other.opt.reuseport
                && !other.is_connected_dgram()
                && other.rcv_saddr == sk.rcv_saddr
                && other.bound_dev_if == sk.bound_dev_if
                && other.family == sk.family
        };
        let group = || list.iter().filter_map(|&id| self.socks.get(id)).filter(member);
        let nth = (u64::from(t.hash(&self.udp.hash)) * group().count() as u64) >> 32;
        group().nth(nth as usize).map(|sk| sk.id)
    }

    /// The first socket from position `from` on that a broadcast or multicast datagram is for, and the
    /// position after it (Linux `__udp_is_mcast_sock`).
    pub(super) fn udp_next_mcast(&self, t: &Tuple, from: usize) -> Option<(SockId, usize)> {
        let list = self.udp.ports.get(&t.dport)?;
        let wanted = |sk: &Sock| {
            t.admits(sk)
                && (sk.rcv_saddr.is_unspecified() || sk.rcv_saddr == t.daddr)
                && (!t.daddr.is_multicast() || sk.mc_sf_allow(t.daddr, t.saddr, t.dev))
        };
        let found = list.iter().enumerate().skip(from).find(|&(_, &id)| self.socks.get(id).is_some_and(wanted));
        found.map(|(i, &id)| (id, i + 1))
    }
}
