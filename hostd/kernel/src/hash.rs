//! Hashing of keys that strangers choose: addresses, ports, identifications.
//!
//! Linux mixes a boot-time secret into such hashes (`inet_ehash_secret`, `ip4_frags` …), or a peer could send
//! keys that all fall into one chain. Here the secret comes from the host's seed: two hosts
//! hash differently, one seed always alike.
//!
//! The function is vector multiply-shift (Dietzfelbinger 1996): the sum of 32-bit words, each times a secret
//! 64-bit number, of which the upper half is used. For any two different keys of one shape
//! the chance that they agree in `m` bits of it is 2⁻ᵐ, over the choice of the secret; it costs a multiplication a word.
//! Tables whose keys the host itself counts up (timers, minisockets, descriptors) need none of this.

use core::hash::{BuildHasher, Hasher};
use rand_core::Rng;

/// 32-bit words that a key may have.
const WORDS: usize = 12;

/// A host's secret for its look-up tables.
#[derive(Debug, Clone)]
pub struct KeyedState {
    keys: [u64; WORDS],
    plus: u64,
}

impl KeyedState {
    /// Draws a secret.
    pub fn new(rng: &mut impl Rng) -> Self {
        Self { keys: core::array::from_fn(|_| rng.next_u64()), plus: rng.next_u64() }
    }
}

impl BuildHasher for KeyedState {
    type Hasher = KeyedHasher;

    #[inline]
    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { keys: self.keys, sum: self.plus, word: 0 }
    }
}

/// Hashes one key.
#[derive(Debug, Clone)]
pub struct KeyedHasher {
    keys: [u64; WORDS],
    sum: u64,
    word: usize,
}

impl Hasher for KeyedHasher {
    #[inline]
    fn write_u32(&mut self, word: u32) {
        debug_assert!(self.word < WORDS, "keys have at most {WORDS} words");
        self.sum = self.sum.wrapping_add(self.keys[self.word % WORDS].wrapping_mul(word.into()));
        self.word += 1;
    }

    #[inline]
    fn write_u8(&mut self, n: u8) {
        self.write_u32(n.into());
    }

    #[inline]
    fn write_u16(&mut self, n: u16) {
        self.write_u32(n.into());
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.write_u32(n as u32);
        self.write_u32((n >> 32) as u32);
    }

    #[inline]
    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
        self.write_u64((n >> 64) as u64);
    }

    #[inline]
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u32(u32::from_le_bytes(word));
        }
    }

    /// The good half twice: tables take the bucket from the low bits and a tag from the high ones.
    #[inline]
    fn finish(&self) -> u64 {
        (self.sum >> 32) * 0x1_0000_0001
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::hash::ConnKey;
    use crate::tcp::secure::Tuple;
    use alloc::vec::Vec;
    use core::net::Ipv4Addr;
    use rand_pcg::Pcg32;

    fn state(seed: u64) -> KeyedState {
        KeyedState::new(&mut Pcg32::new(seed, 1))
    }

    /// Connections that strangers may open to port 80 of a host, as the table of connections hashes them.
    fn flows() -> impl Iterator<Item = ConnKey> {
        let saddr = Ipv4Addr::new(10, 0, 0, 1);
        let flow =
            move |i: u32| Tuple { saddr, sport: 80, daddr: Ipv4Addr::from_bits(0x0a00_0000 | i >> 12), dport: 1024 + (i & 0xfff) as u16 };
        (0..1 << 20).map(move |i| ConnKey::from(flow(i)))
    }

    /// Flows that share the low 10 bits of the hash under a seed: one bucket of a table of 1024.
    fn colliding(seed: u64) -> Vec<ConnKey> {
        let s = state(seed);
        flows().filter(|f| s.hash_one(f) & 1023 == 17).collect()
    }

    #[test]
    fn one_seed_hashes_alike_and_two_seeds_do_not() {
        let (a, again, b) = (state(7), state(7), state(8));
        let (mut same, mut n) = (0, 0);
        for f in flows().step_by(101) {
            assert_eq!(a.hash_one(f), again.hash_one(f));
            same += u32::from(a.hash_one(f) == b.hash_one(f));
            n += 1;
        }
        assert!(same < 3, "{same} of {n} flows hash alike under two seeds");
    }

    #[test]
    fn flows_that_collide_on_one_host_spread_on_another() {
        let crafted = colliding(7);
        assert!(crafted.len() > 500, "only {} flows collide", crafted.len());
        for seed in [8, 9, 10, 0xffff_ffff_ffff_ffff] {
            let other = state(seed);
            let mut chain = [0u32; 1024];
            for f in &crafted {
                chain[other.hash_one(f) as usize & 1023] += 1;
            }
            let longest = chain.iter().max().copied().unwrap_or_default();
            assert!(longest <= 16, "seed {seed}: a chain of {longest} of {} flows", crafted.len());
        }
    }

    #[test]
    fn words_differ_by_their_place() {
        let s = state(1);
        assert_ne!(s.hash_one((1u32, 2u32)), s.hash_one((2u32, 1u32)));
        assert_ne!(s.hash_one([1u8, 0, 0, 0, 2]), s.hash_one([2u8, 0, 0, 0, 1]));
        assert_ne!(s.hash_one(1u128), s.hash_one(1u128 << 96));
    }
}
