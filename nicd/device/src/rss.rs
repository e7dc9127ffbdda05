//! Receive-side scaling: which queue pair takes a frame.
//!
//! The Toeplitz hash of Microsoft's RSS specification over addresses (and ports),
//! its low seven bits an index into a table of 128 queues. TCP and UDP over IPv4
//! hash source, destination and both ports; other IPv4 and all fragments hash the
//! addresses only, so that the fragments of a datagram stay together; everything
//! else goes to queue 0. One flow, one queue: no reordering within it.
//!
//! The hash is looked up by nibble: input nibble `i` of value `v` contributes the
//! same 32 bits for a given key, whatever the rest is, so a table of 72 × 16 words
//! replaces the bitwise division (24 look-ups for IPv4 with ports).

use crate::frame::FrameView;
use alloc::boxed::Box;

/// Octets of a hash key.
pub const KEY_LEN: usize = 40;
/// Entries of the indirection table.
pub const TABLE_LEN: usize = 128;
/// Octets that can be hashed: two IPv6 addresses and two ports.
pub const INPUT_MAX: usize = 36;

/// The key of Microsoft's specification ("Verifying the RSS hash calculation"), the default of most NICs.
pub const MICROSOFT_KEY: [u8; KEY_LEN] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b,
    0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// The Toeplitz hash under one key.
#[derive(Debug, Clone)]
pub struct Toeplitz {
    nibbles: Box<[[u32; 16]]>,
}

impl Toeplitz {
    /// Prepares the table of a key.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        let nibbles = (0..2 * INPUT_MAX).map(|at| core::array::from_fn(|v| Self::contribution(key, at, v))).collect();
        Self { nibbles }
    }

    /// Hash of at most [`INPUT_MAX`] octets; further ones are ignored.
    #[inline]
    pub fn hash(&self, input: &[u8]) -> u32 {
        let pairs = self.nibbles.chunks_exact(2);
        pairs.zip(input).fold(0, |h, (pair, &b)| h ^ pair[0][usize::from(b >> 4)] ^ pair[1][usize::from(b & 0x0f)])
    }

    /// XOR of the 32-bit windows of the key that the set bits of nibble `at` select.
    fn contribution(key: &[u8; KEY_LEN], at: usize, value: usize) -> u32 {
        (0..4).filter(|bit| value & (8 >> bit) != 0).fold(0, |h, bit| h ^ Self::window(key, 4 * at + bit))
    }

    fn window(key: &[u8; KEY_LEN], bit: usize) -> u32 {
        let octet = |i: usize| u64::from(key[bit / 8 + i]);
        let five = (0..5).fold(0, |w, i| w << 8 | octet(i));
        (five >> (8 - bit % 8)) as u32
    }
}

/// A queue that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("indirection table names queue {queue}, but there are {pairs}")]
pub struct NoSuchQueue {
    /// The queue named.
    pub queue: u16,
    /// Queue pairs in use.
    pub pairs: u16,
}

/// Hash, table and number of queues of one port.
#[derive(Debug, Clone)]
pub struct Rss {
    toeplitz: Toeplitz,
    table: [u16; TABLE_LEN],
    pairs: u16,
}

impl Rss {
    /// The default key, and `pairs` queue pairs (at least 1) in turn over the table.
    pub fn new(pairs: u16) -> Self {
        let mut rss = Self { toeplitz: Toeplitz::new(&MICROSOFT_KEY), table: [0; TABLE_LEN], pairs: 1 };
        rss.set_pairs(pairs);
        rss
    }

    /// Uses `pairs` queue pairs (at least 1), in turn over the table (`ethtool -X equal N`).
    pub fn set_pairs(&mut self, pairs: u16) {
        self.pairs = pairs.max(1);
        for (i, queue) in self.table.iter_mut().enumerate() {
            *queue = i as u16 % self.pairs;
        }
    }

    /// Replaces the table (`ethtool -X weight …`).
    ///
    /// # Errors
    /// [`NoSuchQueue`], with the table as it was.
    pub fn set_table(&mut self, table: [u16; TABLE_LEN]) -> Result<(), NoSuchQueue> {
        if let Some(&queue) = table.iter().find(|&&q| q >= self.pairs) {
            return Err(NoSuchQueue { queue, pairs: self.pairs });
        }
        self.table = table;
        Ok(())
    }

    /// Replaces the key (`ethtool -X hkey …`).
    pub fn set_key(&mut self, key: &[u8; KEY_LEN]) {
        self.toeplitz = Toeplitz::new(key);
    }

    /// Queue pairs in use.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// The table in force (`ethtool -x`).
    pub fn table(&self) -> &[u16; TABLE_LEN] {
        &self.table
    }

    /// Hash of a frame; `None` if it is not IPv4.
    #[inline]
    pub fn hash(&self, frame: &FrameView) -> Option<u32> {
        let ip = frame.ipv4()?;
        let mut input = [0; 12];
        input[..4].copy_from_slice(&ip.src);
        input[4..8].copy_from_slice(&ip.dst);
        let Some((src, dst)) = ip.ports else {
            return Some(self.toeplitz.hash(&input[..8]));
        };
        input[8..10].copy_from_slice(&src.to_be_bytes());
        input[10..].copy_from_slice(&dst.to_be_bytes());
        Some(self.toeplitz.hash(&input))
    }

    /// The queue pair that takes a frame.
    #[inline]
    pub fn queue(&self, frame: &FrameView) -> u16 {
        if self.pairs == 1 {
            return 0;
        }
        self.hash(frame).map_or(0, |hash| self.table[hash as usize % TABLE_LEN])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    type Vector = ([u8; 4], u16, [u8; 4], u16, u32, u32);

    /// "Verifying the RSS hash calculation": source, destination, hash of the
    /// addresses, hash of addresses and TCP ports.
    const IPV4: [Vector; 5] = [
        ([66, 9, 149, 187], 2794, [161, 142, 100, 80], 1766, 0x323e_8fc2, 0x51cc_c178),
        ([199, 92, 111, 2], 14230, [65, 69, 140, 83], 4739, 0xd718_262a, 0xc626_b0ea),
        ([24, 19, 198, 95], 12898, [12, 22, 207, 184], 38024, 0xd2d0_a5de, 0x5c2b_394a),
        ([38, 27, 205, 30], 48228, [209, 142, 163, 6], 2217, 0x8298_9176, 0xafc7_327f),
        ([153, 39, 163, 191], 44251, [202, 188, 127, 2], 1303, 0x5d18_09c5, 0x10e8_28a2),
    ];

    fn frame(v: &Vector, protocol: u8, fragment: bool) -> FrameView {
        let mut b = vec![0; 14 + 20 + 20];
        (b[12], b[13], b[14], b[23]) = (8, 0, 0x45, protocol);
        b[20] = if fragment { 0x20 } else { 0x40 };
        b[26..30].copy_from_slice(&v.0);
        b[30..34].copy_from_slice(&v.2);
        b[34..36].copy_from_slice(&v.1.to_be_bytes());
        b[36..38].copy_from_slice(&v.3.to_be_bytes());
        let mut view = FrameView::empty();
        view.load_bytes(&b).unwrap();
        view
    }

    #[test]
    fn hashes_are_those_of_the_specification() {
        let rss = Rss::new(8);
        for v in &IPV4 {
            assert_eq!(rss.hash(&frame(v, 6, false)), Some(v.5));
            assert_eq!(rss.hash(&frame(v, 17, false)), Some(v.5));
            assert_eq!(rss.hash(&frame(v, 1, false)), Some(v.4), "ICMP has no ports");
            assert_eq!(rss.hash(&frame(v, 6, true)), Some(v.4), "nor has a fragment");
        }
    }

    #[test]
    fn longest_input_hashes_as_the_specification_says() {
        // 3ffe:2501:200:1fff::7 port 2794 to 3ffe:2501:200:3::1 port 1766.
        let words = [0x3ffe, 0x2501, 0x200, 0x1fff, 0, 0, 0, 7, 0x3ffe, 0x2501, 0x200, 3, 0, 0, 0, 1, 2794, 1766u16];
        let input: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        let toeplitz = Toeplitz::new(&MICROSOFT_KEY);
        assert_eq!((toeplitz.hash(&input[..32]), toeplitz.hash(&input)), (0x2cc1_8cd5, 0x4020_7d3d));
    }

    #[test]
    fn queue_is_the_table_entry_of_the_low_bits() {
        let mut rss = Rss::new(3);
        let f = frame(&IPV4[0], 6, false);
        assert_eq!(rss.queue(&f), (0x51cc_c178u32 % 128 % 3) as u16);
        let mut table = [0; TABLE_LEN];
        table[0x78] = 2;
        rss.set_table(table).unwrap();
        assert_eq!(rss.queue(&f), 2);
        table[5] = 3;
        assert_eq!(rss.set_table(table), Err(NoSuchQueue { queue: 3, pairs: 3 }));
        assert_eq!(rss.table()[5], 0);
        rss.set_pairs(0);
        assert_eq!((rss.pairs(), rss.queue(&f)), (1, 0));
    }

    #[test]
    fn what_is_not_ipv4_goes_to_queue_0() {
        let mut view = FrameView::empty();
        view.load_bytes(&[0xff; 60]).unwrap();
        assert_eq!((Rss::new(8).hash(&view), Rss::new(8).queue(&view)), (None, 0));
    }

    /// The definition: for each set bit of the input, the key shifted to it.
    fn by_definition(key: &[u8; KEY_LEN], input: &[u8]) -> u32 {
        let key_bit = |i: usize| u32::from(key[i / 8] >> (7 - i % 8) & 1);
        let window = |at: usize| (at..at + 32).fold(0, |w, i| w << 1 | key_bit(i));
        let set = (0..input.len() * 8).filter(|&i| input[i / 8] >> (7 - i % 8) & 1 == 1);
        set.fold(0, |h, i| h ^ window(i))
    }

    proptest! {
        #[test]
        fn table_look_up_equals_the_definition(key in prop::collection::vec(any::<u8>(), KEY_LEN), input in prop::collection::vec(any::<u8>(), 0..=INPUT_MAX)) {
            let key: [u8; KEY_LEN] = key.try_into().unwrap();
            prop_assert_eq!(Toeplitz::new(&key).hash(&input), by_definition(&key, &input));
        }
    }
}
