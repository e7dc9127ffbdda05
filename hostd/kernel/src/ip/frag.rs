//! Reassembly of fragments (Linux `net/ipv4/ip_fragment.c`).
//!
//! A queue holds the pieces of one datagram, sorted. A piece that is there already
//! is dropped alone; a piece that overlaps another in part is dropped with the whole queue
//! (RFC 5722 for IPv6, which Linux applies here too), of which that piece alone counts as a loss. After 30 s the rest is
//! dropped, and the sender told if the first piece was there. Beyond `ipfrag_high_thresh` no piece is taken,
//! also of datagrams that have begun: one of 64 KiB may come in 8192 pieces, each of which costs a whole buffer.

use super::header::{IpHdr, MF, OFFSET};
use super::icmp;
use crate::Kernel;
use crate::hash::KeyedState;
use crate::skb::SkBuff;
use crate::time::Duration;
use crate::timer::TimerKey;
use crate::trace::Point;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use hashbrown::HashMap;
use ringlab_counters::{DropReason, Mib};

/// Octets of the longest datagram.
const MAX_TOTAL: u32 = 65535;
/// Octets that a piece costs beside its buffers.
const OVERHEAD: u32 = 256;

/// What pieces of one datagram have in common.
type Key = (u32, u32, u16, u8);

/// Reassembly queues.
#[derive(Debug)]
pub struct Reassembly {
    index: HashMap<Key, u64, KeyedState>,
    queues: BTreeMap<u64, Queue>,
    next: u64,
    /// Octets held.
    mem: u64,
    /// Pieces that came from each source that has queues, and how many those are.
    sources: HashMap<u32, Source, KeyedState>,
}

/// Linux `inet_peer.rid`. A source is forgotten with its last queue: distances are only of interest within one.
#[derive(Debug, Default)]
struct Source {
    pieces: u32,
    queues: u32,
}

#[derive(Debug, Default)]
struct Queue {
    key: Key,
    /// Sorted, disjoint.
    pieces: Vec<Piece>,
    /// Octets of payload as far as known.
    len: u32,
    /// The last piece has come: `len` is final.
    last_in: bool,
    /// Octets of payload that are there.
    meat: u32,
    /// Header of the first piece.
    head: Option<IpHdr>,
    /// Number of its last piece among all of its source.
    rid: u32,
}

#[derive(Debug)]
struct Piece {
    start: u32,
    end: u32,
    /// Stands at its payload; the first piece at its IP header.
    skb: Box<SkBuff>,
}

impl Reassembly {
    /// Nothing held; senders choose the keys.
    pub(crate) fn new(hash: KeyedState) -> Self {
        let sources = HashMap::with_hasher(hash.clone());
        Self { index: HashMap::with_hasher(hash), queues: BTreeMap::new(), next: 0, mem: 0, sources }
    }
}

/// What became of a piece.
enum Insert {
    Held,
    Duplicate,
    /// It contradicts others: the whole queue must go.
    Kill,
    /// As well: it overlaps another.
    Overlap,
}

impl Queue {
    /// Judges a piece (Linux `ip_frag_queue`, `inet_frag_queue_insert`); where it goes, if it may.
    fn place(&mut self, start: u32, end: u32, more: bool) -> Result<usize, Insert> {
        const BAD: Insert = Insert::Kill;
        if more {
            if end > self.len {
                if self.last_in {
                    return Err(BAD);
                }
                self.len = end;
            }
        } else {
            if end < self.len || self.last_in && end != self.len {
                return Err(BAD);
            }
            self.last_in = true;
            self.len = end;
        }
        if end == start {
            return Err(BAD);
        }
        let at = self.pieces.partition_point(|p| p.start < start);
        let before = at.checked_sub(1).map(|i| &self.pieces[i]);
        let overlaps = |p: &Piece| p.start < end && start < p.end;
        for p in before.into_iter().chain(self.pieces.get(at)) {
            if p.start <= start && end <= p.end {
                return Err(Insert::Duplicate);
            }
            if overlaps(p) {
                return Err(Insert::Overlap);
            }
        }
        Ok(at)
    }

    fn complete(&self) -> bool {
        self.last_in && self.head.is_some() && self.meat == self.len
    }
}

fn cost(skb: &SkBuff) -> u64 {
    u64::from(skb.frags().iter().map(|f| f.buf.capacity()).sum::<u32>() + OVERHEAD)
}

impl Reassembly {
    /// True if more than `max` pieces of other datagrams came from the source since this one's last: numbers wrap,
    /// and what is held may belong to another datagram (Linux `ip_frag_too_far`). 0: never.
    fn too_far(&mut self, queue: u64, max: u32) -> bool {
        let Some(q) = self.queues.get_mut(&queue) else { return false };
        let Some(source) = self.sources.get_mut(&q.key.0) else { return false };
        source.pieces = source.pieces.wrapping_add(1);
        let before = core::mem::replace(&mut q.rid, source.pieces);
        max != 0 && !q.pieces.is_empty() && source.pieces.wrapping_sub(before) > max
    }

    /// Queues, and octets that they hold (`FRAG:` of `/proc/net/sockstat`).
    pub(crate) fn usage(&self) -> (usize, u64) {
        (self.queues.len(), self.mem)
    }
}

impl Kernel {
    /// Takes a piece; gives the datagram back when it is whole (Linux `ip_defrag`). `skb` stands at the IP header.
    pub(super) fn ip_defrag(&mut self, mut skb: Box<SkBuff>, hdr: &IpHdr) -> Option<Box<SkBuff>> {
        self.inc(Mib::IpReasmReqds);
        let start = u32::from(hdr.frag_off & OFFSET) * 8;
        let more = hdr.frag_off & MF != 0;
        self.trace(Point::IpDefrag, skb.id, [u64::from(hdr.id), u64::from(start), u64::from(more), 0]);
        let mut end = start + skb.len() - hdr.len() as u32;
        if more && !end.is_multiple_of(8) {
            end &= !7;
            skb.trim(end - start + hdr.len() as u32);
        }
        let queue = self.ip_find(hdr).or_else(|| {
            self.inc(Mib::IpReasmFails);
            None
        });
        let Some(queue) = queue else {
            self.kfree_skb(skb, DropReason::NoMem);
            return None;
        };
        if self.frags.too_far(queue, self.sysctl.ipfrag_max_dist as u32) {
            self.ip_frag_reinit(queue);
        }
        match self.ip_frag_queue(queue, skb, hdr, (start, end, more)) {
            Insert::Held => {}
            Insert::Duplicate => return None,
            kill => {
                if matches!(kill, Insert::Overlap) {
                    self.inc(Mib::IpExtReasmOverlaps);
                }
                self.ip_frag_kill(queue);
                return None;
            }
        }
        self.frags.queues.get(&queue).is_some_and(Queue::complete).then(|| self.ip_frag_reasm(queue)).flatten()
    }

    /// The datagram's queue, made if it is new. `None` if there is too much already.
    fn ip_find(&mut self, hdr: &IpHdr) -> Option<u64> {
        let key = (hdr.saddr, hdr.daddr, hdr.id, hdr.protocol);
        if self.frags.mem > self.sysctl.ipfrag_high_thresh as u64 {
            return None;
        }
        if let Some(&queue) = self.frags.index.get(&key) {
            return Some(queue);
        }
        let queue = self.frags.next;
        self.frags.next += 1;
        self.frags.index.insert(key, queue);
        self.frags.queues.insert(queue, Queue { key, ..Queue::default() });
        self.frags.sources.entry(key.0).or_default().queues += 1;
        self.timers.set(TimerKey::Frag(queue), self.now + Duration::from_secs(self.sysctl.ipfrag_time as u64));
        Some(queue)
    }

    /// Puts a piece where it belongs. It is gone unless it is held.
    fn ip_frag_queue(&mut self, queue: u64, mut skb: Box<SkBuff>, hdr: &IpHdr, range: (u32, u32, bool)) -> Insert {
        let (start, end, more) = range;
        let Some(q) = self.frags.queues.get_mut(&queue) else {
            self.kfree_skb(skb, DropReason::NotSpecified);
            return Insert::Duplicate;
        };
        let at = match q.place(start, end, more) {
            Ok(at) => at,
            Err(why) => {
                self.kfree_skb(skb, if matches!(why, Insert::Duplicate) { DropReason::DupFrag } else { DropReason::NotSpecified });
                return why;
            }
        };
        if start == 0 {
            q.head = Some(hdr.clone());
        } else {
            let pulled = skb.pull(hdr.len() as u32);
            debug_assert!(pulled.is_ok(), "the header was parsed from here");
        }
        q.meat += end - start;
        self.frags.mem += cost(&skb);
        q.pieces.insert(at, Piece { start, end, skb });
        Insert::Held
    }

    fn ip_frag_remove(&mut self, queue: u64) -> Option<Queue> {
        let q = self.frags.queues.remove(&queue)?;
        self.frags.index.remove(&q.key);
        if let Some(source) = self.frags.sources.get_mut(&q.key.0) {
            source.queues -= 1;
            if source.queues == 0 {
                self.frags.sources.remove(&q.key.0);
            }
        }
        self.timers.cancel(TimerKey::Frag(queue));
        self.frags.mem -= q.pieces.iter().map(|p| cost(&p.skb)).sum::<u64>();
        Some(q)
    }

    /// Drops all pieces of a queue, which begins anew (Linux `ip_frag_reinit`).
    fn ip_frag_reinit(&mut self, queue: u64) {
        self.inc(Mib::IpReasmFails);
        let Some(q) = self.frags.queues.get_mut(&queue) else { return };
        let old = core::mem::replace(q, Queue { key: q.key, rid: q.rid, ..Queue::default() });
        self.timers.set(TimerKey::Frag(queue), self.now + Duration::from_secs(self.sysctl.ipfrag_time as u64));
        for piece in old.pieces {
            self.frags.mem -= cost(&piece.skb);
            self.kfree_skb(piece.skb, DropReason::FragTooFar);
        }
    }

    /// Gives a queue up with all its pieces.
    fn ip_frag_kill(&mut self, queue: u64) {
        self.inc(Mib::IpReasmFails);
        for piece in self.ip_frag_remove(queue).into_iter().flat_map(|q| q.pieces) {
            self.consume_skb(piece.skb);
        }
    }

    /// The time of a queue is over (Linux `ip_expire`).
    pub(crate) fn ip_expire(&mut self, queue: u64) {
        let Some(q) = self.ip_frag_remove(queue) else { return };
        self.inc(Mib::IpReasmTimeout);
        self.inc(Mib::IpReasmFails);
        for piece in q.pieces {
            if piece.start == 0 {
                self.icmp_send(&piece.skb, icmp::TIME_EXCEEDED, icmp::EXC_FRAGTIME, 0);
            }
            self.kfree_skb(piece.skb, DropReason::FragReasmTimeout);
        }
    }

    /// All pieces are there: one packet (Linux `ip_frag_reasm`). The data stay where they are, unless they are too
    /// many fragments.
    fn ip_frag_reasm(&mut self, queue: u64) -> Option<Box<SkBuff>> {
        let q = self.ip_frag_remove(queue)?;
        let mut hdr = q.head?;
        let total = hdr.len() as u32 + q.len;
        let mut pieces = q.pieces.into_iter().map(|p| p.skb);
        let mut skb = pieces.next()?;
        let mut rest: Vec<Box<SkBuff>> = pieces.collect();
        if total > MAX_TOTAL {
            self.inc(Mib::IpReasmFails);
            rest.push(skb);
            for piece in rest {
                self.kfree_skb(piece, DropReason::FragTooBig);
            }
            return None;
        }
        let frags: usize = rest.iter().map(|p| p.frags().len()).sum();
        if frags > skb.frag_room() {
            let mut whole = self.alloc_skb();
            if !whole.alloc_head(&self.config.pool, 0, total) {
                self.inc(Mib::IpReasmFails);
                rest.extend([skb, whole]);
                for piece in rest {
                    self.kfree_skb(piece, DropReason::NoMem);
                }
                return None;
            }
            skb.clone_metadata_to(&mut whole);
            for piece in core::iter::once(&skb).chain(&rest) {
                piece.for_each(0, piece.len(), |s| {
                    s.copy_to(&whole.put(s.len() as u32));
                });
            }
            self.count_copy(total);
            rest.push(core::mem::replace(&mut skb, whole));
        } else {
            for piece in &mut rest {
                let fits = skb.coalesce(piece);
                debug_assert!(fits, "room was counted");
            }
        }
        for piece in rest {
            self.consume_skb(piece);
        }
        hdr.total = total as u16;
        hdr.frag_off = 0;
        let stored = skb.store_bits(0, &hdr.emit());
        debug_assert!(stored.is_ok(), "the first piece has the header");
        skb.csum = crate::skb::Checksum::None;
        skb.network_back = 0;
        skb.ip.hdr_len = hdr.len() as u8;
        self.inc(Mib::IpReasmOKs);
        Some(skb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue() -> Queue {
        Queue::default()
    }

    fn put(q: &mut Queue, start: u32, end: u32, more: bool) -> Result<usize, Insert> {
        let at = q.place(start, end, more)?;
        q.pieces.insert(at, Piece { start, end, skb: SkBuff::new() });
        q.meat += end - start;
        Ok(at)
    }

    #[test]
    fn overlap_kills_and_duplicate_does_not() {
        let mut q = queue();
        assert!(put(&mut q, 16, 32, true).is_ok());
        assert!(matches!(put(&mut q, 16, 32, true), Err(Insert::Duplicate)));
        assert!(matches!(put(&mut q, 16, 24, true), Err(Insert::Duplicate)));
        assert!(matches!(put(&mut q, 8, 24, true), Err(Insert::Overlap)));
        assert!(matches!(put(&mut q, 24, 40, true), Err(Insert::Overlap)));
        assert!(matches!(put(&mut q, 0, 64, true), Err(Insert::Kill | Insert::Overlap)));
    }

    #[test]
    fn pieces_that_contradict_the_end_kill() {
        let mut q = queue();
        assert!(put(&mut q, 16, 20, false).is_ok());
        assert!(matches!(put(&mut q, 24, 32, true), Err(Insert::Kill | Insert::Overlap)));
        assert!(matches!(put(&mut q, 8, 12, false), Err(Insert::Kill | Insert::Overlap)));
        assert!(matches!(put(&mut q, 8, 8, true), Err(Insert::Kill | Insert::Overlap)));
    }

    proptest! {
        #[test]
        fn any_order_of_pieces_completes(order in Just((0..12u32).collect::<Vec<_>>()).prop_shuffle()) {
            let mut q = queue();
            let options = arrayvec::ArrayVec::new();
            q.head = Some(IpHdr { tos: 0, total: 20, id: 0, frag_off: 0, ttl: 1, protocol: 1, saddr: 0, daddr: 0, options });
            for (n, i) in order.iter().enumerate() {
                prop_assert!(!q.complete());
                prop_assert!(put(&mut q, i * 8, i * 8 + 8, *i != 11).is_ok(), "piece {n}");
            }
            prop_assert!(q.complete());
            prop_assert!(q.pieces.windows(2).all(|w| w[0].end == w[1].start));
        }
    }
}
