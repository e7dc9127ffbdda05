//! The neighbour table: who has which link-layer address (Linux `net/core/neighbour.c`).
//!
//! ```text
//!             packet                reply                 30 s × 0.5…1.5
//!  (none) ──▶ INCOMPLETE ──────▶ REACHABLE ─────────────▶ STALE
//!                │ 3 broadcasts      ▲  confirmed │packet     │ packet
//!                ▼ 1 s apart         │            ▼           ▼
//!              FAILED ◀── 3 unicasts PROBE ◀── 5 s ──────── DELAY
//! ```
//!
//! Packets wait in the entry while it is INCOMPLETE; when it fails, their senders
//! hear "host unreachable". Timers are one a entry ([`TimerKey::Neigh`]).

use super::header::{BROADCAST, EtherHdr};
use crate::Kernel;
use crate::dev::net_device::{IfIndex, MacAddr};
use crate::errno::Errno;
use crate::hash::KeyedState;
use crate::ip::route::{Route, RouteKind};
use crate::skb::{MAX_HEADER, PacketType, SkBuff};
use crate::time::{Duration, Instant};
use crate::timer::TimerKey;
use crate::trace::Point;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use hashbrown::HashMap;
use rand_core::Rng;
use ringlab_counters::{DropReason, Mib};

mod gc;

/// State of an entry (Linux `NUD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nud {
    /// Just made.
    None = 0,
    /// Asked for, no answer yet.
    Incomplete = 1,
    /// Confirmed not long ago.
    Reachable = 2,
    /// Not confirmed for some time; used as it is.
    Stale = 4,
    /// Used while stale: waiting for a hint that it is alive.
    Delay = 8,
    /// Asking the believed address.
    Probe = 16,
    /// No answer.
    Failed = 32,
    /// Needs no resolution.
    NoArp = 64,
    /// Entered by hand, never questioned.
    Permanent = 128,
}

impl Nud {
    /// The address may be used (`NUD_VALID`).
    pub(crate) fn valid(self) -> bool {
        matches!(self, Nud::Reachable | Nud::Stale | Nud::Delay | Nud::Probe) || self.connected()
    }

    /// Used without a thought (`NUD_CONNECTED`).
    fn connected(self) -> bool {
        matches!(self, Nud::Reachable | Nud::NoArp | Nud::Permanent)
    }

    /// The state of this number (`NUD_*`).
    pub(crate) fn from_bits(bits: u16) -> Option<Self> {
        let all = [Nud::None, Nud::Incomplete, Nud::Reachable, Nud::Stale, Nud::Delay, Nud::Probe, Nud::Failed, Nud::NoArp, Nud::Permanent];
        all.into_iter().find(|s| *s as u16 == bits)
    }

    /// As `ip neigh` prints it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Nud::None => "NONE",
            Nud::Incomplete => "INCOMPLETE",
            Nud::Reachable => "REACHABLE",
            Nud::Stale => "STALE",
            Nud::Delay => "DELAY",
            Nud::Probe => "PROBE",
            Nud::Failed => "FAILED",
            Nud::NoArp => "NOARP",
            Nud::Permanent => "PERMANENT",
        }
    }
}

/// An entry.
#[derive(Debug)]
pub(crate) struct Neigh {
    pub(crate) dev: u32,
    pub(crate) addr: Ipv4Addr,
    pub(crate) mac: MacAddr,
    pub(crate) state: Nud,
    pub(super) updated: Instant,
    confirmed: Instant,
    used: Instant,
    reachable_time: Duration,
    probes: i32,
    queue: VecDeque<Box<SkBuff>>,
    queue_bytes: u32,
}

impl Neigh {
    /// Hundredths of a second since it was confirmed, used, changed.
    pub(crate) fn ages(&self, now: Instant) -> (u32, u32, u32) {
        let age = |t: Instant| (now.since(t).as_millis() / 10) as u32;
        (age(self.confirmed), age(self.used), age(self.updated))
    }

    /// A timer waits for it (`NUD_IN_TIMER`): in Linux it holds a reference.
    pub(crate) fn has_timer(&self) -> bool {
        matches!(self.state, Nud::Incomplete | Nud::Reachable | Nud::Delay | Nud::Probe)
    }

    /// Requests sent without an answer.
    pub(crate) fn probes(&self) -> u32 {
        self.probes.max(0) as u32
    }
}

/// The neighbour table.
#[derive(Debug)]
pub struct NeighTable {
    slots: Vec<Option<Neigh>>,
    free: Vec<u32>,
    index: HashMap<(u32, u32), u32, KeyedState>,
    last_flush: Instant,
}

/// A forced collection removes nothing that was updated later than this ago (Linux `neigh_forced_gc`).
const GC_GRACE: Duration = Duration::from_secs(5);

impl NeighTable {
    /// An empty table; a link's peers choose the addresses in it.
    pub(crate) fn new(hash: KeyedState) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), index: HashMap::with_hasher(hash), last_flush: Instant::default() }
    }

    pub(crate) fn lookup(&self, dev: u32, addr: Ipv4Addr) -> Option<u32> {
        self.index.get(&(dev, addr.to_bits())).copied()
    }

    pub(crate) fn get(&self, n: u32) -> Option<&Neigh> {
        self.slots.get(n as usize)?.as_ref()
    }

    fn get_mut(&mut self, n: u32) -> Option<&mut Neigh> {
        self.slots.get_mut(n as usize)?.as_mut()
    }

    /// Entries, failed ones included.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// All entries, in order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Neigh> {
        self.slots.iter().flatten()
    }

    fn insert(&mut self, entry: Neigh) -> u32 {
        let key = (entry.dev, entry.addr.to_bits());
        let n = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[n as usize] = Some(entry);
        self.index.insert(key, n);
        n
    }

    fn remove(&mut self, n: u32) -> Option<Neigh> {
        let entry = self.slots.get_mut(n as usize)?.take()?;
        self.index.remove(&(entry.dev, entry.addr.to_bits()));
        self.free.push(n);
        Some(entry)
    }
}

impl Kernel {
    /// Sends a packet that stands at its IP header to the next hop of its route (Linux `ip_finish_output2`).
    ///
    /// # Errors
    /// `ENOBUFS` if the packet was dropped on the way.
    pub(crate) fn neigh_output(&mut self, mut skb: Box<SkBuff>, route: &Route) -> Result<(), Errno> {
        let dev = IfIndex(route.dev);
        skb.dev = dev.0;
        skb.protocol = super::header::ETH_P_IP;
        self.count_transmit(route.kind, u64::from(skb.len()));
        let Some(device) = self.devs.get(dev) else {
            self.kfree_skb(skb, DropReason::DevReady);
            return Err(Errno::ENETDOWN);
        };
        if device.is_loopback() {
            let mac = device.mac;
            return self.dev_hard_header_xmit(skb, dev, mac);
        }
        if route.nexthop.is_multicast() {
            let [_, b, c, d] = route.nexthop.octets();
            return self.dev_hard_header_xmit(skb, dev, MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d]));
        }
        if route.kind == RouteKind::Broadcast || route.nexthop.is_broadcast() {
            return self.dev_hard_header_xmit(skb, dev, BROADCAST);
        }
        let Some(n) = self.neigh.lookup(dev.0, route.nexthop).or_else(|| self.neigh_create(dev.0, route.nexthop)) else {
            self.kfree_skb(skb, DropReason::NeighCreateFail);
            return Err(Errno::ENOBUFS);
        };
        let entry = self.neigh.get(n).expect("looked up just now");
        let (state, mac) = (entry.state, entry.mac);
        self.trace(Point::NeighOutput, skb.id, [u64::from(route.nexthop.to_bits()), state as u64, 0, 0]);
        if state.connected() {
            return self.dev_hard_header_xmit(skb, dev, mac);
        }
        match self.neigh_event_send(n, skb) {
            Some(skb) => self.dev_hard_header_xmit(skb, dev, mac),
            None => Ok(()),
        }
    }

    /// Each piece of a datagram counts, and a packet of several segments once.
    fn count_transmit(&mut self, kind: RouteKind, octets: u64) {
        self.mib.inc(Mib::IpOutTransmits);
        self.mib.add(Mib::IpExtOutOctets, octets);
        let (packets, bytes) = match kind {
            RouteKind::Multicast => (Mib::IpExtOutMcastPkts, Mib::IpExtOutMcastOctets),
            RouteKind::Broadcast => (Mib::IpExtOutBcastPkts, Mib::IpExtOutBcastOctets),
            RouteKind::Unicast | RouteKind::Local => return,
        };
        self.mib.inc(packets);
        self.mib.add(bytes, octets);
    }

    /// Pushes the Ethernet header and sends (Linux `dev_hard_header`, `dev_queue_xmit`). Room for it is made if it is missing.
    pub(super) fn dev_hard_header_xmit(&mut self, mut skb: Box<SkBuff>, dev: IfIndex, dst: MacAddr) -> Result<(), Errno> {
        let Some(src) = self.devs.get(dev).map(|d| d.mac) else {
            self.kfree_skb(skb, DropReason::DevReady);
            return Err(Errno::ENETDOWN);
        };
        if !self.skb_cow_head(&mut skb, super::header::LEN as u32 + ringlab_ring::vnet::VNET_HDR_LEN as u32) {
            self.kfree_skb(skb, DropReason::NoMem);
            return Err(Errno::ENOBUFS);
        }
        skb.push(&EtherHdr { dst, src, protocol: skb.protocol }.emit());
        skb.shift_csum(super::header::LEN as i32);
        skb.dev = dev.0;
        skb.pkt_type = PacketType::Outgoing;
        self.dev_queue_xmit(skb)
    }

    /// Makes sure that `room` octets can be pushed (Linux `skb_cow_head`): a clone gets a head of its own.
    pub(crate) fn skb_cow_head(&mut self, skb: &mut SkBuff, room: u32) -> bool {
        skb.headroom() >= room || skb.push_head(&self.config.pool, MAX_HEADER) || self.skb_linearize(skb)
    }

    /// A transport protocol heard from the next hop: it is alive (Linux `neigh_confirm`).
    pub(crate) fn neigh_confirm(&mut self, dev: u32, addr: Ipv4Addr) {
        let now = self.now;
        if let Some(n) = self.neigh.lookup(dev, addr)
            && let Some(entry) = self.neigh.get_mut(n)
        {
            entry.confirmed = now;
        }
    }

    /// Somebody asked for us: an entry for them, stale until confirmed (Linux `neigh_event_ns`). False if the table is full.
    pub(super) fn neigh_event_ns(&mut self, dev: IfIndex, addr: Ipv4Addr, mac: MacAddr) -> bool {
        let Some(n) = self.neigh.lookup(dev.0, addr).or_else(|| self.neigh_create(dev.0, addr)) else { return false };
        self.neigh_update(n, Some(mac), Nud::Stale, true);
        true
    }

    pub(crate) fn neigh_create(&mut self, dev: u32, addr: Ipv4Addr) -> Option<u32> {
        let len = self.neigh.len() as i64;
        let s = &self.sysctl;
        let (thresh1, thresh2, thresh3) = (s.neigh_gc_thresh1, s.neigh_gc_thresh2, s.neigh_gc_thresh3);
        if len >= thresh3 || len >= thresh2 && self.now.since(self.neigh.last_flush) > GC_GRACE {
            self.neigh_forced_gc(len - thresh2);
            if self.neigh.len() as i64 >= thresh3 {
                return None;
            }
        }
        if len >= thresh1 {
            self.neigh_start_gc();
        }
        Some(self.neigh.insert(Neigh {
            dev,
            addr,
            mac: MacAddr::default(),
            state: Nud::None,
            updated: self.now,
            confirmed: Instant::default(),
            used: self.now,
            reachable_time: Duration::ZERO,
            probes: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
        }))
    }

    /// A packet wants to go out through an entry that is not REACHABLE (Linux `__neigh_event_send`): given back if it may.
    fn neigh_event_send(&mut self, n: u32, skb: Box<SkBuff>) -> Option<Box<SkBuff>> {
        let state = self.neigh.get(n)?.state;
        let may_ask = state == Nud::Incomplete || self.sysctl.neigh_mcast_solicit != 0;
        if !state.valid() && may_ask {
            self.neigh_queue(n, skb);
            self.neigh_use(n);
            return None;
        }
        self.neigh_use(n);
        if state.valid() {
            return Some(skb);
        }
        self.kfree_skb(skb, DropReason::NeighFailed);
        None
    }

    /// An entry is wanted: it asks for the address if that is not known, and soon if it is in doubt.
    pub(crate) fn neigh_use(&mut self, n: u32) {
        let now = self.now;
        let Some(entry) = self.neigh.get_mut(n) else { return };
        entry.used = now;
        match entry.state {
            Nud::Stale => {
                let delay = Duration::from_secs(self.sysctl.neigh_delay_first_probe_time as u64);
                self.neigh_set_state(n, Nud::Delay);
                self.timers.set(TimerKey::Neigh(n), now + delay);
            }
            Nud::None | Nud::Failed if self.sysctl.neigh_mcast_solicit == 0 => self.neigh_set_state(n, Nud::Failed),
            Nud::None | Nud::Failed => {
                entry.probes = self.sysctl.neigh_ucast_solicit as i32;
                self.neigh_set_state(n, Nud::Incomplete);
                self.neigh_probe(n);
            }
            _ => {}
        }
    }

    /// Lets a packet wait for the answer; the oldest ones make room (`unres_qlen_bytes`).
    fn neigh_queue(&mut self, n: u32, skb: Box<SkBuff>) {
        let limit = self.sysctl.neigh_unres_qlen_bytes as u32;
        let size = charge(&skb);
        let Some(entry) = self.neigh.get_mut(n) else { return self.kfree_skb(skb, DropReason::NeighDead) };
        entry.queue.push_back(skb);
        entry.queue_bytes += size;
        while let Some(entry) = self.neigh.get_mut(n)
            && entry.queue_bytes > limit
            && entry.queue.len() > 1
            && let Some(old) = entry.queue.pop_front()
        {
            entry.queue_bytes -= charge(&old);
            self.kfree_skb(old, DropReason::NeighQueueFull);
        }
    }

    /// Asks once, and sets the timer for the next (Linux `neigh_probe`).
    fn neigh_probe(&mut self, n: u32) {
        let retrans = Duration::from_millis((self.sysctl.neigh_retrans_time_ms as u64).max(10));
        let unicast = self.sysctl.neigh_ucast_solicit as i32;
        self.timers.set(TimerKey::Neigh(n), self.now + retrans);
        let Some(entry) = self.neigh.get_mut(n) else { return };
        let to = (entry.probes < unicast).then_some(entry.mac);
        let hint = entry.queue.front().map(|s| Ipv4Addr::from_bits(s.ip.saddr));
        entry.probes += 1;
        let (dev, addr) = (IfIndex(entry.dev), entry.addr);
        self.arp_solicit(dev, addr, to, hint);
    }

    fn neigh_set_state(&mut self, n: u32, new: Nud) {
        let now = self.now;
        let Some(entry) = self.neigh.get_mut(n) else { return };
        let old = core::mem::replace(&mut entry.state, new);
        if old == new {
            return;
        }
        entry.updated = now;
        let addr = u64::from(entry.addr.to_bits());
        self.trace(Point::NeighUpdate, 0, [addr, old as u64, new as u64, 0]);
        if new != Nud::Incomplete {
            self.rtnl_neigh(n);
        }
    }

    fn neigh_set_reachable(&mut self, n: u32) {
        let base = self.sysctl.neigh_base_reachable_time_ms as u64;
        // Random between 0.5 and 1.5 of the base (RFC 4861 §6.3.2).
        let ms = base / 2 + u64::from(self.rng.next_u32()) % base.max(1);
        self.neigh_set_state(n, Nud::Reachable);
        let Some(entry) = self.neigh.get_mut(n) else { return };
        entry.reachable_time = Duration::from_millis(ms);
        let at = entry.confirmed + entry.reachable_time;
        self.timers.set(TimerKey::Neigh(n), at);
    }

    /// News of an entry (Linux `neigh_update`): an address, a state; `over` says whether an address may replace another.
    pub(super) fn neigh_update(&mut self, n: u32, mac: Option<MacAddr>, new: Nud, over: bool) {
        let now = self.now;
        let Some(entry) = self.neigh.get_mut(n) else { return };
        let old = entry.state;
        let changed = mac.is_some_and(|m| m != entry.mac) || !old.valid();
        if new == Nud::Reachable {
            entry.confirmed = now;
        }
        if old.valid() && (changed && !over || !changed && new == Nud::Stale) {
            return;
        }
        if let Some(mac) = mac {
            entry.mac = mac;
        }
        if changed {
            entry.updated = now;
        }
        if new != old {
            self.timers.cancel(TimerKey::Neigh(n));
            match new {
                Nud::Reachable => self.neigh_set_reachable(n),
                _ => self.neigh_set_state(n, new),
            }
        }
        if !old.valid() {
            self.neigh_flush_queue(n);
        }
    }

    /// The address is known: what waited for it goes out, as whatever uses the entry does: one that is stale is in doubt now.
    fn neigh_flush_queue(&mut self, n: u32) {
        let Some(entry) = self.neigh.get_mut(n) else { return };
        entry.queue_bytes = 0;
        let waiting = core::mem::take(&mut entry.queue);
        for skb in waiting {
            let Some(skb) = self.neigh_event_send(n, skb) else { continue };
            let Some((dev, mac)) = self.neigh.get(n).map(|e| (IfIndex(e.dev), e.mac)) else {
                return self.kfree_skb(skb, DropReason::NeighDead);
            };
            // A drop in the qdisc is counted there.
            let _ = self.dev_hard_header_xmit(skb, dev, mac);
        }
    }

    /// An entry's timer (Linux `neigh_timer_handler`).
    pub(crate) fn neigh_timer(&mut self, n: u32) {
        let now = self.now;
        let delay = Duration::from_secs(self.sysctl.neigh_delay_first_probe_time as u64);
        let unicast = self.sysctl.neigh_ucast_solicit as i32;
        let broadcast = self.sysctl.neigh_mcast_solicit as i32;
        let Some(entry) = self.neigh.get_mut(n) else { return };
        match entry.state {
            Nud::Reachable => {
                let until = entry.confirmed + entry.reachable_time;
                if now < until {
                    return self.timers.set(TimerKey::Neigh(n), until);
                }
                if now < entry.used + delay {
                    let at = now + delay;
                    self.neigh_set_state(n, Nud::Delay);
                    self.timers.set(TimerKey::Neigh(n), at);
                } else {
                    self.neigh_set_state(n, Nud::Stale);
                }
            }
            Nud::Delay if now < entry.confirmed + delay => self.neigh_set_reachable(n),
            Nud::Delay => {
                entry.probes = 0;
                self.neigh_set_state(n, Nud::Probe);
                self.neigh_probe(n);
            }
            Nud::Probe if entry.probes < unicast => self.neigh_probe(n),
            Nud::Incomplete if entry.probes < unicast + broadcast => self.neigh_probe(n),
            Nud::Probe | Nud::Incomplete => self.neigh_invalidate(n),
            Nud::None | Nud::Stale | Nud::Failed | Nud::NoArp | Nud::Permanent => {}
        }
    }

    /// Nobody answers: whoever waits hears of it (Linux `neigh_invalidate`, `arp_error_report`).
    fn neigh_invalidate(&mut self, n: u32) {
        self.neigh_set_state(n, Nud::Failed);
        self.timers.cancel(TimerKey::Neigh(n));
        // An error report may send, and thereby queue on this very entry: only what is there now.
        let waiting = self.neigh.get_mut(n).map(|e| {
            e.queue_bytes = 0;
            core::mem::take(&mut e.queue)
        });
        for skb in waiting.into_iter().flatten() {
            self.icmp_send(&skb, crate::ip::icmp::DEST_UNREACH, crate::ip::icmp::HOST_UNREACH, 0);
            self.kfree_skb(skb, DropReason::NeighFailed);
        }
    }

    /// Without a carrier nothing that was learnt on the device holds (Linux `neigh_carrier_down`).
    pub(crate) fn neigh_carrier_down(&mut self, dev: IfIndex) {
        for n in 0..self.neigh.slots.len() as u32 {
            if self.neigh.get(n).is_some_and(|e| e.dev == dev.0 && e.state != Nud::Permanent) {
                self.neigh_destroy(n);
            }
        }
    }

    /// The interface is switched off: all its entries go (Linux `neigh_ifdown`).
    pub(crate) fn neigh_ifdown(&mut self, dev: IfIndex) {
        for n in 0..self.neigh.slots.len() as u32 {
            if self.neigh.get(n).is_some_and(|e| e.dev == dev.0) {
                self.neigh_destroy(n);
            }
        }
    }

    /// An administrator's entry (Linux `neigh_add`): address and state as told; `over`: also where another address stands.
    ///
    /// # Errors
    /// `ENOBUFS` if the table is full.
    pub(crate) fn neigh_admin(&mut self, dev: u32, addr: Ipv4Addr, mac: Option<MacAddr>, new: Nud, over: bool) -> Result<(), Errno> {
        let n = self.neigh.lookup(dev, addr).or_else(|| self.neigh_create(dev, addr)).ok_or(Errno::ENOBUFS)?;
        let now = self.now;
        let Some(entry) = self.neigh.get_mut(n) else { return Err(Errno::ENOBUFS) };
        if let Some(mac) = mac.filter(|_| over || !entry.state.valid()) {
            entry.mac = mac;
        }
        (entry.confirmed, entry.probes) = (now, 0);
        self.timers.cancel(TimerKey::Neigh(n));
        match new {
            Nud::Reachable => self.neigh_set_reachable(n),
            Nud::Incomplete | Nud::Probe => {
                self.neigh_set_state(n, new);
                self.neigh_probe(n);
            }
            Nud::Delay => {
                self.neigh_set_state(n, new);
                let delay = Duration::from_secs(self.sysctl.neigh_delay_first_probe_time as u64);
                self.timers.set(TimerKey::Neigh(n), now + delay);
            }
            _ => self.neigh_set_state(n, new),
        }
        if new.valid() {
            self.neigh_flush_queue(n);
        }
        Ok(())
    }

    /// Removes an entry (Linux `neigh_delete`).
    ///
    /// # Errors
    /// `ENOENT`.
    pub(crate) fn neigh_admin_del(&mut self, dev: u32, addr: Ipv4Addr) -> Result<(), Errno> {
        let n = self.neigh.lookup(dev, addr).ok_or(Errno::ENOENT)?;
        self.neigh_destroy(n);
        Ok(())
    }

    fn neigh_destroy(&mut self, n: u32) {
        self.timers.cancel(TimerKey::Neigh(n));
        let Some(entry) = self.neigh.remove(n) else { return };
        self.rtnl_neigh_gone(&entry);
        for skb in entry.queue {
            self.kfree_skb(skb, DropReason::NeighDead);
        }
    }
}

/// What a waiting packet counts for.
fn charge(skb: &SkBuff) -> u32 {
    skb.truesize.max(skb.len() + 768)
}
