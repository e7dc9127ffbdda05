//! The learning bridge (IEEE 802.1D-2004 §7.7 to §7.9; Linux `br_fdb.c`, `br_input.c`).
//!
//! A frame's source address is learned at the port where it came in, and the
//! frame goes to the port where its destination was learned, or to all others.
//! Entries age; a station that moves is learned anew; a port that goes down takes
//! its entries with it. When the table is full nothing more is learned (frames to
//! the unlearned are flooded, as a real bridge does), but aged entries make room.
//!
//! The table is found by hash, never walked in hash order: listings are sorted.
//! The hash is keyed, and the key is not the lab's seed, which anyone may know: a
//! station cannot choose addresses that collide.
//!
//! Limits: no VLANs, no spanning tree (a loop of switches floods for ever, as it
//! does without STP), no multicast snooping. Per-port counters are the ports'
//! ([`ringlab_counters::NicCounters`], `switch_*`).

use crate::frame::Mac;
use crate::time::{Duration, Instant};
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry as Slot;

/// Most ports of a switch: one word of link states.
pub const MAX_PORTS: u16 = 1024;

/// How often a full table is searched for aged entries, in nanoseconds: a flood of new
/// addresses must not cost a search for each frame.
const SWEEP_INTERVAL: u64 = 1_000_000_000;

/// Number of a port, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// Parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwitchParams {
    /// After how long an address that was not heard is forgotten; 0: nothing is learned.
    pub ageing: Duration,
    /// Most addresses.
    pub max_entries: usize,
}

impl Default for SwitchParams {
    /// 300 s (802.1D-2004 table 7-5), 4096 addresses.
    fn default() -> Self {
        Self { ageing: Duration::from_secs(300), max_entries: 4096 }
    }
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Out of one port.
    To(PortId),
    /// Out of every port that is up, save the one where it came in ([`Switch::flood`]).
    Flood,
    /// Nowhere: its destination is on the segment that it came from, is reserved for
    /// bridges, or its source is no station's.
    Filter,
}

/// An entry of the table, as `bridge fdb show` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The station.
    pub mac: Mac,
    /// Where it was heard last.
    pub port: PortId,
    /// How long ago.
    pub age: Duration,
}

/// A learning bridge.
#[derive(Debug, Clone)]
pub struct Switch {
    fdb: HashMap<Mac, Entry, Keyed>,
    ageing_ns: u64,
    max_entries: usize,
    ports: Vec<bool>,
    moves: u64,
    unlearned: u64,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: PortId,
    seen: Instant,
}

impl Switch {
    /// A bridge of `ports` ports, all up. `key` is for the hash only and changes no
    /// decision: the caller draws it from entropy, where stations are not trusted.
    ///
    /// # Panics
    /// If there are more than [`MAX_PORTS`].
    pub fn new(ports: u16, params: SwitchParams, key: [u64; 2]) -> Self {
        assert!(ports <= MAX_PORTS, "a switch has at most {MAX_PORTS} ports");
        let mut switch = Self {
            fdb: HashMap::with_hasher(Keyed(key)),
            ageing_ns: 0,
            max_entries: 0,
            ports: alloc::vec![true; usize::from(ports)],
            moves: 0,
            unlearned: 0,
            swept: None,
        };
        switch.set_params(params);
        switch
    }

    /// Changes ageing and size. A table that is larger shrinks by ageing only.
    pub fn set_params(&mut self, params: SwitchParams) {
        self.ageing_ns = u64::try_from(params.ageing.as_nanos()).unwrap_or(u64::MAX);
        self.max_entries = params.max_entries;
    }

    /// Number of ports.
    pub fn ports(&self) -> u16 {
        self.ports.len() as u16 // at most MAX_PORTS
    }

    /// Adds a port, up; returns its number, `None` if there are [`MAX_PORTS`] already.
    pub fn add_port(&mut self) -> Option<PortId> {
        let id = PortId(self.ports());
        (id.0 < MAX_PORTS).then(|| {
            self.ports.push(true);
            id
        })
    }

    /// The link of a port went up or down; down, its addresses are forgotten
    /// (802.1D-2004 §17.11, Linux `br_fdb_delete_by_port`).
    pub fn set_port(&mut self, port: PortId, up: bool) {
        let Some(state) = self.ports.get_mut(usize::from(port.0)) else { return };
        *state = up;
        if !up {
            self.fdb.retain(|_, entry| entry.port != port);
        }
    }

    /// True if the port exists and its link is up.
    #[inline]
    pub fn is_up(&self, port: PortId) -> bool {
        self.ports.get(usize::from(port.0)).copied().unwrap_or(false)
    }

    /// Learns where `src` is and says where the frame goes.
    pub fn forward(&mut self, now: Instant, in_port: PortId, dst: Mac, src: Mac) -> Forward {
        // Linux br_handle_frame drops a source that is no station's.
        if !self.is_up(in_port) || src.is_multicast() || src.is_zero() {
            return Forward::Filter;
        }
        self.learn(now, in_port, src);
        if dst.is_multicast() {
            return if dst.is_bridge_reserved() { Forward::Filter } else { Forward::Flood };
        }
        match self.fdb.get(&dst) {
            Some(entry) if self.is_aged(entry, now) => Forward::Flood,
            Some(entry) if entry.port == in_port => Forward::Filter,
            Some(entry) => Forward::To(entry.port),
            None => Forward::Flood,
        }
    }

    /// The ports of a flood: all that are up, save `in_port`, in order.
    pub fn flood(&self, in_port: PortId) -> impl Iterator<Item = PortId> + '_ {
        (0..self.ports()).map(PortId).filter(move |&p| p != in_port && self.is_up(p))
    }

    /// The table, sorted by address, without aged entries.
    pub fn fdb(&self, now: Instant) -> Vec<FdbEntry> {
        let live = self.fdb.iter().filter(|(_, entry)| !self.is_aged(entry, now));
        let mut list: Vec<_> = live.map(|(&mac, e)| FdbEntry { mac, port: e.port, age: now.since(e.seen) }).collect();
        list.sort_unstable_by_key(|entry| entry.mac);
        list
    }

    /// Forgets all addresses (`bridge fdb flush`).
    pub fn flush(&mut self) {
        self.fdb.clear();
    }

    /// How often a station was heard at another port than before.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// How often an address was not learned, the table being full.
    pub fn unlearned(&self) -> u64 {
        self.unlearned
    }

    fn learn(&mut self, now: Instant, port: PortId, src: Mac) {
        if self.ageing_ns == 0 {
            return;
        }
        if self.fdb.len() >= self.max_entries && !self.fdb.contains_key(&src) && !self.make_room(now) {
            self.unlearned += 1;
            return;
        }
        match self.fdb.entry(src) {
            Slot::Occupied(mut slot) => {
                let entry = slot.get_mut();
                self.moves += u64::from(entry.port != port);
                *entry = Entry { port, seen: now };
            }
            Slot::Vacant(slot) => {
                slot.insert(Entry { port, seen: now });
            }
        }
    }

    /// Removes aged entries from a full table; true if there is room then.
    #[cold]
    fn make_room(&mut self, now: Instant) -> bool {
        if self.swept.is_some_and(|last| now.nanos_since(last) < SWEEP_INTERVAL) {
            return false;
        }
        self.swept = Some(now);
        let ageing = self.ageing_ns;
        self.fdb.retain(|_, entry| now.nanos_since(entry.seen) < ageing);
        self.fdb.len() < self.max_entries
    }

    fn is_aged(&self, entry: &Entry, now: Instant) -> bool {
        now.nanos_since(entry.seen) >= self.ageing_ns
    }
}

/// Hashes one address by a folded multiplication. Both the mask and the factor are
/// secret: under a known factor, differences that cancel can be chosen without the mask.
#[derive(Debug, Clone, Copy)]
struct Keyed([u64; 2]);

impl BuildHasher for Keyed {
    type Hasher = Folded;
    fn build_hasher(&self) -> Folded {
        // Odd: a bijection of the lower half, whatever the key.
        Folded { hash: self.0[0], factor: self.0[1] | 1 }
    }
}

struct Folded {
    hash: u64,
    factor: u64,
}

impl Hasher for Folded {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(word ^ self.hash) * u128::from(self.factor);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }

    #[inline]
    fn write_usize(&mut self, _: usize) {} // length prefix of a fixed array

    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests;
