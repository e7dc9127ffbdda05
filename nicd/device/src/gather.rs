//! Scatter-gather: walking frames that lie in several pieces of shared memory.
//!
//! A frame is a list of [`Slice`]s. A [`Cursor`] is a position in such a list; it
//! reads, writes and copies across the seams, and can sum what it copies, so that
//! a checksum costs no second pass. All lengths are clamped to what the list
//! holds and the count of octets done is returned: nothing here panics on a peer's
//! account.

use ringlab_ring::memory::{Slice, checksum_add, fold};

/// Octets that are copied and summed at a time: small enough to stay in the L1 cache.
const BLOCK: usize = 512;

/// Octets of a list of pieces.
#[inline]
pub fn octets(pieces: &[Slice<'_>]) -> usize {
    pieces.iter().map(Slice::len).sum()
}

/// An Internet checksum (RFC 1071) that is fed in pieces of any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checksum {
    sum: u64,
    odd: bool,
}

impl Checksum {
    /// Adds octets that follow those added before.
    pub fn add(&mut self, bytes: &[u8]) {
        // RFC 1071 §2(B): octets at an odd position count with their pairs swapped.
        if self.odd {
            self.sum += u64::from(fold(checksum_add(bytes, 0)).swap_bytes());
        } else {
            self.sum = checksum_add(bytes, self.sum);
        }
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Ends what was added so far as if by a zero octet, so that what follows starts a word.
    pub fn pad(&mut self) {
        self.odd = false;
    }

    /// Adds a 16-bit word wherever the octets stand (one's complement addition commutes).
    pub fn add_word(&mut self, word: u16) {
        self.sum += u64::from(word);
    }

    /// The complemented sum, as it stands in a header.
    pub fn finish(self) -> u16 {
        !fold(self.sum)
    }
}

/// A position in a list of pieces.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    rest: &'a [Slice<'a>],
    /// Octets of `rest[0]` that lie behind; less than its length unless it is empty.
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// The first octet of `pieces`.
    #[inline]
    pub fn new(pieces: &'a [Slice<'a>]) -> Self {
        Self { rest: pieces, offset: 0 }
    }

    /// Octets ahead.
    pub fn remaining(&self) -> usize {
        octets(self.rest).saturating_sub(self.offset)
    }

    /// Skips `n` octets, or as many as there are; returns how many.
    pub fn skip(&mut self, n: usize) -> usize {
        let mut done = 0;
        while let Some(piece) = self.piece(n - done) {
            done += piece.len();
        }
        done
    }

    /// Copies the next octets out; returns how many there were.
    #[inline]
    pub fn read(&mut self, dst: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(piece) = self.piece(dst.len() - done) {
            piece.read(&mut dst[done..done + piece.len()]);
            done += piece.len();
        }
        done
    }

    /// Overwrites the next octets; returns how many there was room for.
    #[inline]
    pub fn write(&mut self, src: &[u8]) -> usize {
        let mut done = 0;
        while let Some(piece) = self.piece(src.len() - done) {
            piece.write(&src[done..done + piece.len()]);
            done += piece.len();
        }
        done
    }

    /// Copies the next `n` octets to `dst`, or as many as both have; returns how many.
    pub fn copy_to(&mut self, dst: &mut Cursor<'_>, n: usize) -> usize {
        let mut done = 0;
        while let (Some(from), Some(to)) = (self.peek(n - done), dst.peek(n - done)) {
            let len = from.copy_to(&to);
            self.advance(len);
            dst.advance(len);
            done += len;
        }
        done
    }

    /// As [`Self::copy_to`], adding the octets to `sum` on the way. What is summed is
    /// what is written, even if a peer changes the source meanwhile.
    pub fn copy_sum_to(&mut self, dst: &mut Cursor<'_>, n: usize, sum: &mut Checksum) -> usize {
        let mut block = [0; BLOCK];
        let mut done = 0;
        while done < n {
            let want = BLOCK.min(n - done);
            let len = self.read(&mut block[..want]);
            sum.add(&block[..len]);
            let written = dst.write(&block[..len]);
            done += written;
            if written < want {
                break;
            }
        }
        done
    }

    /// Adds the next `n` octets, or as many as there are, to `sum`; returns how many.
    pub fn sum(&mut self, n: usize, sum: &mut Checksum) -> usize {
        let mut block = [0; BLOCK];
        let mut done = 0;
        while done < n {
            let want = BLOCK.min(n - done);
            let len = self.read(&mut block[..want]);
            sum.add(&block[..len]);
            done += len;
            if len < want {
                break;
            }
        }
        done
    }

    /// The rest of the present piece, at most `n` octets; `None` at the end or if `n` is 0.
    #[inline]
    fn peek(&mut self, n: usize) -> Option<Slice<'a>> {
        if n == 0 {
            return None;
        }
        while let [first, rest @ ..] = self.rest {
            let left = first.len() - self.offset;
            if left > 0 {
                return Some(first.sub(self.offset, left.min(n)).expect("offset and length lie in the piece"));
            }
            (self.rest, self.offset) = (rest, 0);
        }
        None
    }

    #[inline]
    fn advance(&mut self, n: usize) {
        self.offset += n;
    }

    #[inline]
    fn piece(&mut self, n: usize) -> Option<Slice<'a>> {
        let piece = self.peek(n)?;
        self.advance(piece.len());
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use ringlab_ring::memory::Region;

    fn pieces<'a>(region: &'a Region, lens: &[usize]) -> Vec<Slice<'a>> {
        let mut at = 0;
        lens.iter()
            .map(|&len| {
                at += len as u64;
                region.slice(at - len as u64, len).expect("inside")
            })
            .collect()
    }

    #[test]
    fn cursor_walks_over_empty_pieces_and_stops_at_the_end() {
        let r = Region::heap(4096);
        let p = pieces(&r, &[0, 3, 0, 0, 2, 0]);
        assert_eq!(octets(&p), 5);
        assert_eq!(Cursor::new(&p).write(b"abcdefgh"), 5);
        let mut c = Cursor::new(&p);
        assert_eq!(c.skip(2), 2);
        assert_eq!(c.remaining(), 3);
        let mut out = [0; 8];
        assert_eq!(c.read(&mut out), 3);
        assert_eq!(&out[..3], b"cde");
        assert_eq!((c.remaining(), c.skip(1), c.read(&mut out)), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn checksum_does_not_depend_on_where_it_was_cut(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..10)) {
            let mut sum = Checksum::default();
            parts.iter().for_each(|part| sum.add(part));
            prop_assert_eq!(sum.finish(), !fold(checksum_add(&parts.concat(), 0)));
        }

        #[test]
        fn copy_in_pieces_equals_copy_in_one_and_so_does_its_checksum(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            src_cuts in prop::collection::vec(0usize..700, 1..8),
            dst_cuts in prop::collection::vec(0usize..700, 1..8),
            n in 0usize..3200,
        ) {
            let (a, b) = (Region::heap(8192), Region::heap(8192));
            let src = pieces(&a, &src_cuts);
            let dst = pieces(&b, &dst_cuts);
            let held = Cursor::new(&src).write(&bytes);
            let room = octets(&dst);
            let want = n.min(octets(&src)).min(room);
            let mut image = vec![0; octets(&src)];
            image[..held].copy_from_slice(&bytes[..held]);

            let mut sum = Checksum::default();
            prop_assert_eq!(Cursor::new(&src).copy_sum_to(&mut Cursor::new(&dst), n, &mut sum), want);
            let mut out = vec![0; want];
            Cursor::new(&dst).read(&mut out);
            prop_assert_eq!(&out, &image[..want]);
            if n <= room {
                prop_assert_eq!(sum.finish(), !fold(checksum_add(&image[..want], 0)));
            }

            let zero = vec![0; room];
            Cursor::new(&dst).write(&zero);
            prop_assert_eq!(Cursor::new(&src).copy_to(&mut Cursor::new(&dst), n), want);
            Cursor::new(&dst).read(&mut out);
            prop_assert_eq!(&out, &image[..want]);

            let mut sum = Checksum::default();
            prop_assert_eq!(Cursor::new(&src).sum(want, &mut sum), want);
            prop_assert_eq!(sum.finish(), !fold(checksum_add(&image[..want], 0)));
        }
    }
}
