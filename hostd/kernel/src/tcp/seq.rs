//! Sequence number arithmetic, modulo 2³² (RFC 9293 §3.4).

use core::ops::{Add, AddAssign, Sub};

/// A sequence number. Comparisons hold between numbers less than 2³¹ apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SeqNum(pub u32);

impl SeqNum {
    /// `self < other`.
    #[inline]
    pub fn before(self, other: SeqNum) -> bool {
        self.distance(other) < 0
    }

    /// `self > other`.
    #[inline]
    pub fn after(self, other: SeqNum) -> bool {
        other.before(self)
    }

    /// `self ≤ other`.
    #[inline]
    pub fn at_or_before(self, other: SeqNum) -> bool {
        !self.after(other)
    }

    /// `self ≥ other`.
    #[inline]
    pub fn at_or_after(self, other: SeqNum) -> bool {
        !self.before(other)
    }

    /// `low ≤ self ≤ high`.
    #[inline]
    pub fn between(self, low: SeqNum, high: SeqNum) -> bool {
        high - low >= self - low
    }

    /// True if a segment from here to `end` is acceptable in the window from `low` to `high`
    /// (RFC 9293 §3.10.7.4, first; Linux `tcp_in_window`).
    pub fn segment_in_window(self, end: SeqNum, low: SeqNum, high: SeqNum) -> bool {
        self == low || (end.after(low) && self.before(high)) || (self == high && self == end)
    }

    /// Octets from `origin` to here; negative if this lies before it.
    #[inline]
    pub fn distance(self, origin: SeqNum) -> i32 {
        self.0.wrapping_sub(origin.0) as i32
    }

    /// The later of two.
    #[inline]
    pub fn latest(self, other: SeqNum) -> SeqNum {
        if self.before(other) { other } else { self }
    }

    /// The earlier of two.
    #[inline]
    pub fn earliest(self, other: SeqNum) -> SeqNum {
        if self.before(other) { self } else { other }
    }
}

impl Add<u32> for SeqNum {
    type Output = SeqNum;
    #[inline]
    fn add(self, octets: u32) -> SeqNum {
        SeqNum(self.0.wrapping_add(octets))
    }
}

impl AddAssign<u32> for SeqNum {
    #[inline]
    fn add_assign(&mut self, octets: u32) {
        *self = *self + octets;
    }
}

impl Sub<u32> for SeqNum {
    type Output = SeqNum;
    #[inline]
    fn sub(self, octets: u32) -> SeqNum {
        SeqNum(self.0.wrapping_sub(octets))
    }
}

impl Sub<SeqNum> for SeqNum {
    type Output = u32;
    /// Octets from `origin` up to here, modulo 2³².
    #[inline]
    fn sub(self, origin: SeqNum) -> u32 {
        self.0.wrapping_sub(origin.0)
    }
}

#[cfg(test)]
mod tests {
    use super::SeqNum;
    use proptest::prelude::*;

    #[test]
    fn order_survives_the_wrap() {
        let a = SeqNum(u32::MAX - 1);
        let b = a + 4;
        assert_eq!(b, SeqNum(2));
        assert!(a.before(b) && b.after(a) && a.at_or_before(a) && a.at_or_after(a));
        assert_eq!((b - a, b.distance(a), a.distance(b)), (4, 4, -4));
        assert!((a + 1).between(a, b) && !(b + 1).between(a, b) && !(a - 1).between(a, b));
        assert_eq!((a.latest(b), a.earliest(b)), (b, a));
    }

    proptest! {
        #[test]
        fn before_is_strict_order_within_half_the_space(s: u32, d in 1u32..0x8000_0000) {
            let (a, b) = (SeqNum(s), SeqNum(s) + d);
            prop_assert!(a.before(b) || d == 0x8000_0000);
            prop_assert!(!a.before(a));
            prop_assert_eq!(b - a, d);
            prop_assert_eq!(b - d, a);
        }
    }
}
