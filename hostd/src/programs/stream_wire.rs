//! What `stream`'s client and server say to each other.
//!
//! Every connection begins with a [`Hello`]. TCP: payload until the sender shuts
//! down, then the server's result as a line of JSON. UDP: the connection is for
//! control; the server answers one octet when it is ready for datagrams, the client
//! says how many it sent, the server answers with the result. A connection that
//! begins with anything else is a plain sink: all octets count, the result follows.

use std::num::NonZeroU64;

/// The port, as iperf3's.
pub const PORT: u16 = 5201;
/// Octets of a [`Hello`].
pub const HELLO: usize = 32;
/// Octets before the payload of a datagram: cookie and number.
pub const DATAGRAM_HEADER: usize = 16;
/// The server's answer to a UDP [`Hello`].
pub const GO: u8 = b'G';

const MAGIC: [u8; 8] = *b"RLSTREAM";
const VERIFY: u8 = 1;
const UDP: u8 = 2;

/// The first octets of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Datagrams will come; else payload follows.
    pub udp: bool,
    /// The payload is the [`Pattern`] of the seed.
    pub verify: bool,
    /// Of the pattern.
    pub seed: u64,
    /// Names the datagrams that belong to this connection.
    pub cookie: u64,
}

impl Hello {
    /// Its octets.
    pub fn emit(&self) -> [u8; HELLO] {
        let mut b = [0; HELLO];
        b[..8].copy_from_slice(&MAGIC);
        b[8] = (u8::from(self.verify) * VERIFY) | (u8::from(self.udp) * UDP);
        b[16..24].copy_from_slice(&self.seed.to_be_bytes());
        b[24..].copy_from_slice(&self.cookie.to_be_bytes());
        b
    }

    /// `None` if the connection is not of a `stream` client.
    pub fn parse(b: &[u8; HELLO]) -> Option<Self> {
        let (magic, rest) = b.split_first_chunk::<8>()?;
        if *magic != MAGIC {
            return None;
        }
        let word = |i: usize| rest.get(i..i + 8)?.try_into().ok().map(u64::from_be_bytes);
        Some(Self { udp: rest[0] & UDP != 0, verify: rest[0] & VERIFY != 0, seed: word(8)?, cookie: word(16)? })
    }

    /// True if `b` can still become a [`Hello`].
    pub fn may_start(b: &[u8]) -> bool {
        let n = b.len().min(MAGIC.len());
        b[..n] == MAGIC[..n]
    }
}

/// Payload that both sides can make: an xorshift generator's words.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: NonZeroU64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The pattern of a seed.
    pub fn new(seed: u64) -> Self {
        let state = NonZeroU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap_or(NonZeroU64::MIN);
        Self { state, word: [0; 8], used: 8 }
    }

    fn next(&mut self) -> u64 {
        let mut x = self.state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        // A state that is not zero never becomes zero.
        self.state = NonZeroU64::new(x).unwrap_or(NonZeroU64::MIN);
        x
    }

    /// Fills `out` with the next octets.
    pub fn fill(&mut self, mut out: &mut [u8]) {
        while self.used < 8 && !out.is_empty() {
            out[0] = self.word[self.used];
            self.used += 1;
            out = &mut out[1..];
        }
        let (words, rest) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.next().to_le_bytes();
        }
        if !rest.is_empty() {
            self.word = self.next().to_le_bytes();
            self.used = rest.len();
            rest.copy_from_slice(&self.word[..self.used]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_survives_the_wire() {
        let hello = Hello { udp: true, verify: true, seed: 7, cookie: u64::MAX };
        assert_eq!(Hello::parse(&hello.emit()), Some(hello));
        assert_eq!(Hello::parse(&[0x5a; HELLO]), None);
        assert!(Hello::may_start(b"RLST") && !Hello::may_start(b"RLSX") && Hello::may_start(b""));
    }

    #[test]
    fn pattern_does_not_depend_on_the_cuts() {
        let mut whole = [0; 1000];
        Pattern::new(3).fill(&mut whole);
        let mut parts = [0; 1000];
        let mut pattern = Pattern::new(3);
        parts.chunks_mut(7).for_each(|c| pattern.fill(c));
        assert_eq!(whole, parts);
        let mut other = [0; 1000];
        Pattern::new(4).fill(&mut other);
        assert_ne!(whole, other);
    }
}
