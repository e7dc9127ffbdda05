//! The wire: what a frame costs there, and its frame check sequence.
//!
//! Frames in memory carry no preamble, no padding and no FCS; the wire adds them
//! to the reckoning. A frame of `n` octets occupies `max(n, 60) + 24` octet times:
//! preamble and start delimiter (8), FCS (4), inter-frame gap (12) (IEEE
//! 802.3-2018 §3.1.1, §4.4.2). A frame that crosses whole, to be segmented, is
//! reckoned as its segments: the wire knows no large frames.

use crate::offload::Offload;
use crate::time::Instant;

/// Octets of preamble and start frame delimiter.
pub const PREAMBLE: u64 = 8;
/// Octets of the frame check sequence.
pub const FCS: u64 = 4;
/// Octet times of the inter-frame gap.
pub const GAP: u64 = 12;
/// Octet times that every frame costs beside its octets.
pub const OVERHEAD: u64 = PREAMBLE + FCS + GAP;
/// Octets to which a shorter frame is padded: the 64 of the standard without the FCS.
pub const MIN_FRAME: u64 = 60;

const NANOS_BITS: u64 = 8 * 1_000_000_000;

/// Octet times of one frame of `len` octets (without FCS).
#[inline]
pub fn octets(len: usize) -> u64 {
    (len as u64).max(MIN_FRAME) + OVERHEAD
}

/// Octet times of a frame of `len` octets, cut as `offload` says.
#[inline]
pub fn octets_of(len: usize, offload: &Offload) -> u64 {
    let Offload::Tso(tso) = offload else { return octets(len) };
    let full = u64::from(tso.segments() - 1);
    full * octets(tso.segment_len(0)) + octets(tso.segment_len(tso.segments() - 1))
}

/// Nanoseconds (rounded up) for which `octets` occupy a wire of `rate_bps` bits per
/// second; 0 if the rate is 0, which stands for "not limited".
pub fn serialisation_ns(octets: u64, rate_bps: u64) -> u64 {
    if rate_bps == 0 {
        return 0;
    }
    let bits = u128::from(octets) * u128::from(NANOS_BITS);
    u64::try_from(bits.div_ceil(u128::from(rate_bps))).unwrap_or(u64::MAX)
}

/// A transmitter of fixed rate: when does the last bit of each frame leave?
///
/// Virtual finish time, exact: the fraction of a nanosecond that a frame leaves
/// over is carried to the next, so that a busy wire runs at its rate whatever the
/// frame size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pacer {
    rate_bps: u64,
    finish: Instant,
    /// Numerator over `rate_bps` of the fraction of a nanosecond beyond `finish`.
    fraction: u64,
}

impl Pacer {
    /// A transmitter of `rate_bps` bits per second; 0: not limited.
    pub fn new(rate_bps: u64) -> Self {
        Self { rate_bps, ..Self::default() }
    }

    /// Bits per second; 0: not limited.
    pub fn rate_bps(&self) -> u64 {
        self.rate_bps
    }

    /// Octets that wait or are being sent at `now`, rounded up.
    pub fn backlog(&self, now: Instant) -> u64 {
        let ns = self.finish.nanos_since(now);
        if ns == 0 {
            return 0;
        }
        let octets = (u128::from(ns) * u128::from(self.rate_bps)).div_ceil(u128::from(NANOS_BITS));
        u64::try_from(octets).unwrap_or(u64::MAX)
    }

    /// Sends `octets` after everything before; returns when the last bit has left.
    pub fn send(&mut self, now: Instant, octets: u64) -> Instant {
        if self.rate_bps == 0 {
            return now;
        }
        if self.finish < now {
            (self.finish, self.fraction) = (now, 0);
        }
        let bits = u128::from(octets) * u128::from(NANOS_BITS) + u128::from(self.fraction);
        let rate = u128::from(self.rate_bps);
        self.finish = self.finish.plus_nanos(u64::try_from(bits / rate).unwrap_or(u64::MAX));
        self.fraction = (bits % rate) as u64; // less than the rate, a u64
        self.finish
    }

    /// Changes the rate. What waits at `now` leaves at the new one; see [`Self::stretch`].
    pub fn set_rate(&mut self, now: Instant, rate_bps: u64) {
        self.finish = Self::stretch(self.finish, now, self.rate_bps, rate_bps);
        (self.rate_bps, self.fraction) = (rate_bps, 0);
    }

    /// The finish time, at the rate `to` from `now` on, of what would have finished at
    /// `finish` at the rate `from`. Monotonic in `finish`: order is kept.
    pub fn stretch(finish: Instant, now: Instant, from: u64, to: u64) -> Instant {
        let ns = finish.nanos_since(now);
        if ns == 0 || from == 0 {
            return finish;
        }
        if to == 0 {
            return now;
        }
        let ns = u128::from(ns) * u128::from(from) / u128::from(to);
        now.plus_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// The CRC-32 of IEEE 802.3 §3.2.9, fed in pieces.
#[derive(Debug, Clone, Copy)]
pub struct Crc32(u32);

impl Crc32 {
    /// Before the first octet.
    pub const fn new() -> Self {
        Self(!0)
    }

    /// Adds octets.
    pub fn add(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 >> 8) ^ CRC_TABLE[usize::from(self.0 as u8 ^ b)];
        }
    }

    /// The value; on the wire it follows the frame, least significant octet first.
    pub const fn finish(self) -> u32 {
        !self.0
    }
}

impl Default for Crc32 {
    fn default() -> Self {
        Self::new()
    }
}

/// FCS of a frame of octets that lie together.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc32::new();
    crc.add(bytes);
    crc.finish()
}

/// True if a frame that ends with its FCS is intact: the CRC over both is a constant.
pub fn fcs_holds(frame_and_fcs: &[u8]) -> bool {
    const RESIDUE: u32 = 0x2144_df1c;
    frame_and_fcs.len() >= FCS as usize && crc32(frame_and_fcs) == RESIDUE
}

/// One step of the division by 0x04c11db7, bits reflected, for each octet.
static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut bit) = (i as u32, 0);
        while bit < 8 {
            c = if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn smallest_and_largest_frame_cost_84_and_1538_octet_times() {
        assert_eq!((octets(42), octets(60), octets(1514)), (84, 84, 1538));
        // 1,488,095 small frames a second fill a gigabit.
        assert_eq!(serialisation_ns(84, 1_000_000_000), 672);
        assert_eq!(serialisation_ns(1, 3), 2_666_666_667);
        assert_eq!(serialisation_ns(1538, 0), 0);
        assert_eq!(serialisation_ns(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut p = Pacer::new(8_000_000_000);
        assert_eq!(p.send(Instant(0), 100), Instant(100));
        assert_eq!(p.send(Instant(1000), 100), Instant(1100));
        assert_eq!((p.backlog(Instant(1050)), p.backlog(Instant(1100))), (50, 0));
    }

    #[test]
    fn fractions_of_a_nanosecond_are_carried() {
        let mut p = Pacer::new(100_000_000_000);
        let finish = (0..100).map(|_| p.send(Instant(0), 84)).last();
        assert_eq!(finish, Some(Instant(672)), "6.72 ns each");
        p.send(Instant(1000), 84);
        assert_eq!(p.send(Instant(2000), 84), Instant(2006), "but not over idle time");
    }

    #[test]
    fn far_end_of_time_saturates() {
        let mut p = Pacer::new(1);
        assert_eq!(p.send(Instant(5), u64::MAX), Instant(u64::MAX));
        p.set_rate(Instant(5), u64::MAX);
        assert_eq!(p.backlog(Instant(5)), 0, "at the new rate it is gone at once");
    }

    #[test]
    fn crc_has_the_check_value_and_the_residue() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert!(!fcs_holds(b""));
        assert!(fcs_holds(&0u32.to_le_bytes()), "the FCS of nothing is 0");
    }

    proptest! {
        #[test]
        fn fcs_tells_any_burst_of_up_to_32_bits(bytes in prop::collection::vec(any::<u8>(), 1..200), at in any::<usize>(), burst in 1u32..) {
            let mut frame = bytes.clone();
            frame.extend(crc32(&bytes).to_le_bytes());
            prop_assert!(fcs_holds(&frame));
            let at = at % (frame.len() - 3);
            let damaged: Vec<u8> = frame[at..at + 4].iter().zip(burst.to_le_bytes()).map(|(a, b)| a ^ b).collect();
            frame[at..at + 4].copy_from_slice(&damaged);
            prop_assert!(!fcs_holds(&frame));
        }

        #[test]
        fn crc_in_pieces_is_the_crc(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<usize>()) {
            let (a, b) = bytes.split_at(cut % (bytes.len() + 1));
            let mut crc = Crc32::new();
            crc.add(a);
            crc.add(b);
            prop_assert_eq!(crc.finish(), crc32(&bytes));
        }
    }
}
