//! Numbers that a stranger must not guess (Linux `secure_seq.c`): initial
//! sequence numbers (RFC 6528), timestamp offsets (RFC 7323 §5.4), port offsets
//! (RFC 6056 §3.3.3). All are SipHash-2-4 of the addresses under keys drawn once.

use super::seq::SeqNum;
use crate::time::Instant;
use core::net::Ipv4Addr;

/// A key of SipHash.
pub type Key = [u64; 2];

/// The keys of a host.
#[derive(Debug, Clone, Copy)]
pub struct Secrets {
    /// Initial sequence numbers.
    pub isn: Key,
    /// Timestamp offsets.
    pub ts: Key,
    /// Ephemeral ports.
    pub port: Key,
    /// SYN cookies.
    pub cookie: [Key; 2],
}

/// Addresses and ports of a connection, ours first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Our address.
    pub saddr: Ipv4Addr,
    /// Our port.
    pub sport: u16,
    /// Peer's address.
    pub daddr: Ipv4Addr,
    /// Peer's port.
    pub dport: u16,
}

impl Tuple {
    fn words(&self) -> [u64; 2] {
        let pair = |a: Ipv4Addr, p: u16| u64::from(a.to_bits()) << 16 | u64::from(p);
        [pair(self.saddr, self.sport), pair(self.daddr, self.dport)]
    }
}

impl Secrets {
    /// Initial sequence number: hash of the connection plus a clock of 64 ns ticks.
    pub fn secure_tcp_seq(&self, t: &Tuple, now: Instant) -> SeqNum {
        SeqNum((siphash(self.isn, &t.words()) as u32).wrapping_add((now.0 >> 6) as u32))
    }

    /// Offset of the timestamp clock towards a peer, milliseconds.
    pub fn secure_tcp_ts_off(&self, saddr: Ipv4Addr, daddr: Ipv4Addr) -> u32 {
        siphash(self.ts, &[u64::from(saddr.to_bits()), u64::from(daddr.to_bits())]) as u32
    }

    /// Where the search for an ephemeral port starts.
    pub fn secure_port_ephemeral(&self, saddr: Ipv4Addr, daddr: Ipv4Addr, dport: u16) -> u64 {
        siphash(self.port, &Tuple { saddr, sport: 0, daddr, dport }.words())
    }

    /// Hash number `c` (0 or 1) of a SYN cookie at a counter value.
    pub fn cookie_hash(&self, t: &Tuple, count: u32, c: usize) -> u32 {
        let [a, b] = t.words();
        siphash(self.cookie[c], &[a, b, u64::from(count)]) as u32
    }
}

/// SipHash-2-4 (Aumasson, Bernstein) of whole words.
pub fn siphash(key: Key, words: &[u64]) -> u64 {
    let mut v =
        [key[0] ^ 0x736f_6d65_7073_6575, key[1] ^ 0x646f_7261_6e64_6f6d, key[0] ^ 0x6c79_6765_6e65_7261, key[1] ^ 0x7465_6462_7974_6573];
    let last = (words.len() as u64 * 8) << 56;
    for &m in words.iter().chain(core::iter::once(&last)) {
        v[3] ^= m;
        round(&mut v);
        round(&mut v);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_matches_the_reference_vectors() {
        // Key 00..0f; messages of 0 and 8 octets 00..07 (reference implementation's vectors_sip64).
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash(key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(key, &[0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn isn_moves_with_the_clock_and_the_connection() {
        let s = Secrets { isn: [1, 2], ts: [3, 4], port: [5, 6], cookie: [[7, 8], [9, 10]] };
        let t = Tuple { saddr: Ipv4Addr::new(10, 0, 0, 1), sport: 1, daddr: Ipv4Addr::new(10, 0, 0, 2), dport: 80 };
        let at = |t: &Tuple, n| s.secure_tcp_seq(t, Instant(n));
        assert_eq!(at(&t, 64_000) - at(&t, 0), 1000);
        assert_ne!(at(&Tuple { sport: 2, ..t }, 0), at(&t, 0));
    }
}
