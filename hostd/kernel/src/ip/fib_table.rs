//! A table of routes: the longest prefix that matches (Linux `net/ipv4/fib_trie.c`).
//!
//! A vector sorted by prefix length, longest first, then network, then metric: a lookup is one binary
//! search for each length that occurs.

use super::route::{Entry, mask};
use alloc::vec::Vec;

/// Routes, sorted.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
    /// Prefix lengths that occur, longest first, and where their entries begin.
    lens: Vec<(u8, usize)>,
}

impl Table {
    pub(super) fn order(e: &Entry) -> (core::cmp::Reverse<u8>, u32, u32) {
        (core::cmp::Reverse(e.len), e.net, e.metric)
    }

    /// False if there is one of the same prefix and metric.
    pub(super) fn insert(&mut self, entry: Entry) -> bool {
        let Err(at) = self.entries.binary_search_by_key(&Self::order(&entry), Self::order) else { return false };
        self.entries.insert(at, entry);
        self.index();
        true
    }

    /// Adds a route behind all of the same prefix and metric (`NLM_F_APPEND`).
    pub(super) fn append(&mut self, entry: Entry) {
        let at = self.entries.partition_point(|e| Self::order(e) <= Self::order(&entry));
        self.entries.insert(at, entry);
        self.index();
    }

    /// Takes out the first route that `matches`.
    pub(super) fn take(&mut self, matches: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let at = self.entries.iter().position(matches)?;
        let entry = self.entries.remove(at);
        self.index();
        Some(entry)
    }

    /// False if there is none of this prefix and metric, gateway and interface.
    pub(super) fn remove(&mut self, entry: &Entry) -> bool {
        let same = |e: &Entry| Self::order(e) == Self::order(entry) && e.via == entry.via && (entry.dev == 0 || e.dev == entry.dev);
        self.take(same).is_some()
    }

    pub(super) fn index(&mut self) {
        self.lens.clear();
        for (i, e) in self.entries.iter().enumerate() {
            if self.lens.last().is_none_or(|l| l.0 != e.len) {
                self.lens.push((e.len, i));
            }
        }
    }

    /// The entry of the longest prefix and, among equals, the lowest metric, of those that are `usable`; through
    /// `oif` unless it is 0.
    pub(super) fn lookup(&self, addr: u32, oif: u32, usable: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        for (i, &(len, start)) in self.lens.iter().enumerate() {
            let end = self.lens.get(i + 1).map_or(self.entries.len(), |l| l.1);
            let net = addr & mask(len);
            let same_len = &self.entries[start..end];
            let first = same_len.partition_point(|e| e.net < net);
            let found = same_len[first..].iter().take_while(|e| e.net == net).find(|e| (oif == 0 || e.dev == oif) && usable(e));
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    fn entry(net: u32, len: u8, metric: u32, dev: u32) -> Entry {
        Entry::unicast(net & mask(len), len, dev, Ipv4Addr::UNSPECIFIED, metric)
    }

    #[test]
    fn removed_route_is_not_found_and_others_are() {
        let mut t = Table::default();
        assert!(t.insert(entry(0x0a00_0000, 8, 0, 2)) && t.insert(entry(0x0a01_0000, 16, 0, 3)));
        assert!(!t.remove(&entry(0x0a01_0000, 16, 1, 3)), "another metric");
        assert!(!t.remove(&entry(0x0a01_0000, 16, 0, 4)), "another interface");
        assert!(t.remove(&entry(0x0a01_0000, 16, 0, 0)), "whichever interface");
        assert_eq!(t.lookup(0x0a01_0203, 0, |_| true).map(|e| e.dev), Some(2));
    }

    #[test]
    fn longest_prefix_wins_then_lowest_metric() {
        let mut t = Table::default();
        for (net, len, metric, dev) in
            [(0, 0, 0, 1), (0x0a00_0000, 8, 0, 2), (0x0a01_0000, 16, 5, 3), (0x0a01_0000, 16, 1, 4), (0x0a01_0203, 32, 9, 5)]
        {
            assert!(t.insert(entry(net, len, metric, dev)));
        }
        assert!(!t.insert(entry(0, 0, 0, 7)), "same prefix, same metric");
        let dev = |addr, oif| t.lookup(addr, oif, |_| true).map(|e| e.dev);
        assert_eq!(dev(0x0a01_0203, 0), Some(5));
        assert_eq!(dev(0x0a01_0204, 0), Some(4));
        assert_eq!(dev(0x0a01_0204, 3), Some(3));
        assert_eq!(dev(0x0a02_0000, 0), Some(2));
        assert_eq!(dev(0x0b00_0000, 0), Some(1));
        assert_eq!(dev(0x0b00_0000, 9), None);
    }

    #[test]
    fn what_is_not_usable_is_passed_over() {
        let mut t = Table::default();
        assert!(t.insert(entry(0x0a01_0000, 16, 1, 4)) && t.insert(entry(0x0a01_0000, 16, 5, 3)) && t.insert(entry(0, 0, 0, 2)));
        let dev = |bad: &[u32]| t.lookup(0x0a01_0203, 0, |e| !bad.contains(&e.dev)).map(|e| e.dev);
        assert_eq!([dev(&[]), dev(&[4]), dev(&[3, 4]), dev(&[2, 3, 4])], [Some(4), Some(3), Some(2), None]);
    }

    proptest! {
        #[test]
        fn lookup_equals_a_linear_scan(
            routes in prop::collection::vec((any::<u32>(), 0u8..=32, 0u32..3, 1u32..4), 0..40),
            near in any::<prop::sample::Index>(), noise in any::<u32>(), keep in 0u8..=32, oif in 0u32..4,
        ) {
            let mut t = Table::default();
            let mut all: Vec<Entry> = Vec::new();
            for (net, len, metric, dev) in routes {
                let e = entry(net, len, metric, dev);
                let fresh = !all.iter().any(|o| (o.net, o.len, o.metric) == (e.net, e.len, e.metric));
                prop_assert_eq!(t.insert(e), fresh);
                if fresh {
                    all.push(e);
                }
            }
            let addr = if all.is_empty() { noise } else { all[near.index(all.len())].net ^ (noise & !mask(keep)) };
            let want = all.iter().filter(|e| addr & mask(e.len) == e.net && (oif == 0 || e.dev == oif))
                .min_by_key(|e| (core::cmp::Reverse(e.len), e.metric));
            prop_assert_eq!(t.lookup(addr, oif, |_| true), want);
        }
    }
}
