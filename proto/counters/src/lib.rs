//! Names and units of everything that Ringlab counts. Each name stands here once;
//! processes index by the enums and print by [`Counters::iter`].
//!
//! Unit: events, unless the name says otherwise (`*_bytes`, `*Octets`).
#![no_std]
#![forbid(unsafe_code)]

/// An enum whose variants are counters, in the order in which they are shown.
pub trait Counter: Copy + 'static {
    /// All variants, in order.
    const ALL: &'static [Self];
    /// The name that the user sees.
    fn name(self) -> &'static str;
    /// Position in [`Self::ALL`].
    fn index(self) -> usize;
}

/// One value for each variant of `C`. `N` is `C::ALL.len()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters<C: Counter, const N: usize> {
    values: [u64; N],
    kind: core::marker::PhantomData<C>,
}

impl<C: Counter, const N: usize> Default for Counters<C, N> {
    fn default() -> Self {
        const { assert!(N == C::ALL.len(), "one value for each counter") };
        Self { values: [0; N], kind: core::marker::PhantomData }
    }
}

impl<C: Counter, const N: usize> Counters<C, N> {
    /// Adds `n`.
    #[inline]
    pub fn add(&mut self, counter: C, n: u64) {
        let v = &mut self.values[counter.index()];
        *v = v.wrapping_add(n);
    }

    /// Adds one.
    #[inline]
    pub fn inc(&mut self, counter: C) {
        self.add(counter, 1);
    }

    /// Sets a gauge.
    pub fn set(&mut self, counter: C, value: u64) {
        self.values[counter.index()] = value;
    }

    /// Current value.
    pub fn get(&self, counter: C) -> u64 {
        self.values[counter.index()]
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        C::ALL.iter().map(|&c| (c.name(), self.get(c)))
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $vis:vis enum $name:ident, $alias:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $(#[doc = concat!("`", $text, "`")] $variant),+
        }
        impl Counter for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn name(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
            #[inline]
            fn index(self) -> usize { self as usize }
        }
        #[doc = concat!("A value for each [`", stringify!($name), "`].")]
        $vis type $alias = Counters<$name, { <$name as Counter>::ALL.len() }>;
    };
}

mod host;
mod nic;

pub use host::*;
pub use nic::*;
