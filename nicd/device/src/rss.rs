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
