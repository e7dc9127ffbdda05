//! Frames in pieces, for the unit tests.

use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use ringlab_ring::memory::{Region, Slice};

use crate::gather::{Cursor, octets};

/// A frame cut into pieces that lie apart in a region.
pub(crate) struct Scattered {
    region: Region,
    places: Vec<(u64, usize)>,
}

impl Scattered {
    /// `bytes`, cut at `cuts` (taken modulo the length).
    pub(crate) fn new(bytes: &[u8], cuts: &[usize]) -> Self {
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let lens = cuts.windows(2).map(|w| w[1] - w[0]);
        let scattered = Self::of_lens(lens);
        assert_eq!(Cursor::new(&scattered.pieces()).write(bytes), bytes.len());
        scattered
    }

    /// Room of `len` octets, cut likewise.
    pub(crate) fn room(len: usize, cuts: &[usize]) -> Self {
        Self::new(&vec![0xee; len], cuts)
    }

    fn of_lens(lens: impl Iterator<Item = usize>) -> Self {
        const APART: usize = 3;
        let mut at = 1;
        let places: Vec<_> = lens
            .map(|len| {
                at += len + APART;
                ((at - len - APART) as u64, len)
            })
            .collect();
        Self { region: Region::heap(at + 1), places }
    }

    pub(crate) fn pieces(&self) -> Vec<Slice<'_>> {
        self.places.iter().map(|&(at, len)| self.region.slice(at, len).expect("inside")).collect()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        bytes_of(&self.pieces())
    }
}

pub(crate) fn bytes_of(pieces: &[Slice<'_>]) -> Vec<u8> {
    let mut out = vec![0; octets(pieces)];
    Cursor::new(pieces).read(&mut out);
    out
}

pub(crate) fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<u16>().prop_map(usize::from), 0..6)
}
