//! Descriptors, event words, where they lie, and what may be wrong with them.

use crate::atomics::{AtomicU32, AtomicU64, Ordering};
use crate::memory::OutOfBounds;

bitflags::bitflags! {
    /// Feature bits (virtio 1.2 §5.1.3 and §6) that either side knows.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// Device completes checksums of frames it is given.
        const CSUM = 1 << 0;
        /// Driver takes frames whose checksum is not complete.
        const GUEST_CSUM = 1 << 1;
        /// Device tells the MTU.
        const MTU = 1 << 3;
        /// Device tells the MAC address.
        const MAC = 1 << 5;
        /// Driver takes TSOv4 frames.
        const GUEST_TSO4 = 1 << 7;
        /// Driver takes TSOv6 frames.
        const GUEST_TSO6 = 1 << 8;
        /// Driver takes TSO frames with ECN.
        const GUEST_ECN = 1 << 9;
        /// Device takes TSOv4 frames.
        const HOST_TSO4 = 1 << 11;
        /// Device takes TSOv6 frames.
        const HOST_TSO6 = 1 << 12;
        /// Device takes TSO frames with ECN.
        const HOST_ECN = 1 << 13;
        /// A frame may fill several receive buffers.
        const MRG_RXBUF = 1 << 15;
        /// Device tells the state of the link.
        const STATUS = 1 << 16;
        /// Several pairs of queues.
        const MQ = 1 << 22;
        /// A descriptor may name a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Event words may name a descriptor.
        const EVENT_IDX = 1 << 29;
        /// vhost-user: protocol features are negotiated.
        const PROTOCOL_FEATURES = 1 << 30;
        /// Virtio 1.0 or later; implies that any layout of frames is legal.
        const VERSION_1 = 1 << 32;
        /// Packed virtqueues.
        const RING_PACKED = 1 << 34;
    }
}

/// A rule that the peer (or, for layouts, the caller) broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Address or length outside the memory that was shared.
    #[error("address {addr:#x}+{len} lies outside the shared memory")]
    OutOfBounds {
        /// First octet.
        addr: u64,
        /// Octets.
        len: u64,
    },
    /// Ring size 0 or above 32768.
    #[error("ring size {0} is not between 1 and 32768")]
    QueueSize(u32),
    /// Part of a ring is not aligned as virtio 1.2 §2.8.10.1 wants.
    #[error("ring part at {0:#x} is misaligned")]
    Misaligned(u64),
    /// Two regions of a memory table share addresses.
    #[error("memory region at {0:#x} overlaps another, is empty or wraps around")]
    BadRegion(u64),
    /// A chain whose `NEXT` flags never end.
    #[error("descriptor chain at {0} loops round the whole ring")]
    DescriptorLoop(u16),
    /// A chain of more segments than any frame needs.
    #[error("descriptor chain at {0} has more than {MAX} segments", MAX = super::MAX_CHAIN)]
    ChainTooLong(u16),
    /// A readable segment after a writable one (§2.8.17).
    #[error("descriptor {0} is readable but follows a writable one")]
    ReadableAfterWritable(u16),
    /// A used id that belongs to no chain in flight.
    #[error("buffer id {0} was not given")]
    UnknownId(u16),
    /// Flags that belong to no state a descriptor can be in.
    #[error("descriptor {0} has a wrong wrap bit")]
    WrapBit(u16),
    /// Descriptors made available before the device returned them.
    #[error("descriptor {0} was made available while the device held it")]
    Overrun(u16),
    /// `INDIRECT` without the feature.
    #[error("descriptor {0} is indirect, which was not negotiated")]
    IndirectNotNegotiated(u16),
    /// `INDIRECT` together with `NEXT`, or inside a chain or table.
    #[error("descriptor {0} is indirect inside a chain or table")]
    IndirectInChain(u16),
    /// A table whose length is 0 or not a multiple of 16.
    #[error("indirect table of {0} octets")]
    IndirectLength(u32),
    /// More octets used than the chain can hold.
    #[error("used length {len} exceeds the {capacity} octets of the buffer")]
    UsedLength {
        /// As reported.
        len: u32,
        /// As given.
        capacity: u32,
    },
    /// An event word or base that names a descriptor beyond the ring.
    #[error("index {0} lies beyond the ring")]
    IndexBeyondRing(u16),
    /// Event flags with a reserved value, or a descriptor event without `EVENT_IDX`.
    #[error("event flags {0:#x} are reserved or were not negotiated")]
    EventFlags(u16),
}

impl From<OutOfBounds> for RingError {
    fn from(e: OutOfBounds) -> Self {
        Self::OutOfBounds { addr: e.offset, len: e.len }
    }
}

/// Where the parts of a ring lie: offsets in the region on the driver's side, guest
/// physical addresses on the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Descriptor ring: 16 octets a descriptor, 16-aligned.
    pub desc: u64,
    /// Driver event word: 4 octets, 4-aligned.
    pub driver: u64,
    /// Device event word: 4 octets, 4-aligned.
    pub device: u64,
    /// Descriptors, 1 to 32768.
    pub size: u16,
    /// The driver's area for indirect tables ([`Layout::TABLE`] octets a descriptor);
    /// of no interest to the device.
    pub indirect: Option<u64>,
}

impl Layout {
    /// Largest ring.
    pub const MAX_SIZE: u16 = 32768;
    /// Segments of a chain that an indirect table of the driver holds.
    pub const TABLE_ENTRIES: u16 = 32;
    /// Octets of an indirect table of the driver.
    pub const TABLE: u64 = Self::TABLE_ENTRIES as u64 * DESC_LEN;

    /// A ring of `size` descriptors from `start` (rounded up to a cache line), and the
    /// end of what it occupies. The event words have cache lines of their own; tables
    /// take memory only when used.
    pub fn in_region(start: u64, size: u16) -> (Self, u64) {
        const LINE: u64 = 64;
        let desc = start.next_multiple_of(LINE);
        let driver = (desc + u64::from(size) * DESC_LEN).next_multiple_of(LINE);
        let device = driver + LINE;
        let indirect = device + LINE;
        let end = indirect + u64::from(size) * Self::TABLE;
        (Self { desc, driver, device, size, indirect: Some(indirect) }, end)
    }

    /// Octets of the descriptor ring.
    pub fn desc_len(&self) -> usize {
        usize::from(self.size) * DESC_LEN as usize
    }

    pub(super) fn check_size(&self) -> Result<(), RingError> {
        if self.size == 0 || self.size > Self::MAX_SIZE {
            return Err(RingError::QueueSize(self.size.into()));
        }
        Ok(())
    }
}

/// Octets of a descriptor.
pub(super) const DESC_LEN: u64 = 16;
/// Octets of an event word.
pub(super) const EVENT_LEN: usize = 4;

/// A place in the ring and the lap in which it is visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Descriptor, below the ring's size.
    pub index: u16,
    /// Wrap counter: true in the first lap, then alternating.
    pub wrap: bool,
}

impl Position {
    pub(super) const START: Self = Self { index: 0, wrap: true };

    /// `n` ≤ `size` descriptors on.
    #[inline]
    pub(super) fn advance(self, n: u16, size: u16) -> Self {
        let index = u32::from(self.index) + u32::from(n);
        if index >= u32::from(size) {
            Self { index: (index - u32::from(size)) as u16, wrap: !self.wrap }
        } else {
            Self { index: index as u16, ..self }
        }
    }

    /// `n` ≤ `size` descriptors back.
    pub(super) fn retreat(self, n: u16, size: u16) -> Self {
        if n > self.index { Self { index: self.index + (size - n), wrap: !self.wrap } } else { Self { index: self.index - n, ..self } }
    }

    /// Descriptors from here to `later`, 0 to `size`.
    #[inline]
    pub(super) fn until(self, later: Self, size: u16) -> u16 {
        let lap = if self.wrap == later.wrap { 0 } else { size };
        later.index.wrapping_sub(self.index).wrapping_add(lap)
    }

    /// As event words and vhost-user carry it: index, wrap counter in bit 15.
    pub fn to_bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// The inverse of [`Position::to_bits`]; the index may lie beyond the ring.
    pub fn from_bits(bits: u16) -> Self {
        Self { index: bits & 0x7fff, wrap: bits >> 15 != 0 }
    }
}

/// Where a device stands in a ring: what vhost-user's `VRING_BASE` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringBase {
    /// Next descriptor to take.
    pub avail: Position,
    /// Next descriptor to return.
    pub used: Position,
}

impl VringBase {
    /// A ring that was never used.
    pub const START: Self = Self { avail: Position::START, used: Position::START };

    /// The 32 bits of the message: available in the low half, used in the high half.
    pub fn to_bits(self) -> u32 {
        u32::from(self.avail.to_bits()) | u32::from(self.used.to_bits()) << 16
    }

    /// Parses the message. A high half of 0 means that the front end knows one index
    /// only (DPDK's virtio-user): both are then the same. Where they differ,
    /// descriptors were taken and not returned by a device that is gone: the next one
    /// takes them again, from the used index.
    pub fn from_bits(bits: u32) -> Self {
        let at = if bits >> 16 == 0 { bits as u16 } else { (bits >> 16) as u16 };
        Self { avail: Position::from_bits(at), used: Position::from_bits(at) }
    }
}

/// The second half of a descriptor, as one word: length, id, flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta(u64);

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Both state bits, as they lie in the word.
const STATE: u64 = ((AVAIL | USED) as u64) << 48;

impl Meta {
    #[inline]
    pub(super) fn new(len: u32, id: u16, flags: u16) -> Self {
        Self(u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48)
    }
    #[inline]
    pub(super) fn available(len: u32, id: u16, flags: u16, wrap: bool) -> Self {
        Self::new(len, id, flags | if wrap { AVAIL } else { USED })
    }
    #[inline]
    pub(super) fn used(len: u32, id: u16, flags: u16, wrap: bool) -> Self {
        Self::new(len, id, flags | if wrap { AVAIL | USED } else { 0 })
    }
    #[inline]
    pub(super) fn len(self) -> u32 {
        self.0 as u32
    }
    #[inline]
    pub(super) fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }
    #[inline]
    pub(super) fn flags(self) -> u16 {
        (self.0 >> 48) as u16
    }
    #[inline]
    pub(super) fn is_available(self, wrap: bool) -> bool {
        self.state() == State::available(wrap)
    }
    #[inline]
    pub(super) fn is_used(self, wrap: bool) -> bool {
        self.state() == State::used(wrap)
    }
    #[inline]
    pub(super) fn state(self) -> State {
        State(self.0 & STATE)
    }
    /// True if the driver wrote it in the lap of `wrap`, whatever became of it.
    pub(super) fn is_of_lap(self, wrap: bool) -> bool {
        (self.flags() & AVAIL != 0) == wrap
    }
}

/// The state bits of a descriptor, to compare at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    /// What no descriptor shows: a queue that expects it never moves again.
    pub(super) const NEVER: Self = Self(1);

    #[inline]
    pub(super) fn available(wrap: bool) -> Self {
        Self(u64::from(if wrap { AVAIL } else { USED }) << 48)
    }
    #[inline]
    pub(super) fn used(wrap: bool) -> Self {
        Self(if wrap { STATE } else { 0 })
    }
}

/// What an event word asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventMode {
    /// Ring at every change.
    Enable,
    /// Do not ring.
    Disable,
    /// Ring when this descriptor is passed (`EVENT_IDX`).
    Descriptor(Position),
}

impl EventMode {
    pub(super) fn emit(self) -> u32 {
        match self {
            Self::Enable => 0,
            Self::Disable => 1 << 16,
            Self::Descriptor(at) => u32::from(at.to_bits()) | 2 << 16,
        }
    }

    pub(super) fn parse(word: u32, size: u16, features: Features) -> Result<Self, RingError> {
        let flags = (word >> 16) as u16;
        match flags {
            0 => Ok(Self::Enable),
            1 => Ok(Self::Disable),
            2 if features.contains(Features::EVENT_IDX) => {
                let at = Position::from_bits(word as u16);
                if at.index < size { Ok(Self::Descriptor(at)) } else { Err(RingError::IndexBeyondRing(at.index)) }
            }
            _ => Err(RingError::EventFlags(flags)),
        }
    }

    /// True if the last `moved` descriptors up to `now` passed what the word waits for.
    pub(super) fn wants(self, now: Position, moved: u16, size: u16) -> bool {
        match self {
            Self::Enable => moved > 0,
            Self::Disable => false,
            Self::Descriptor(event) => {
                // Distance from the event to `now` over at most one lap.
                let lap = if event.wrap == now.wrap { 0 } else { i32::from(size) };
                let since = i32::from(now.index) + lap - i32::from(event.index);
                since > 0 && since <= i32::from(moved)
            }
        }
    }
}

#[repr(C, align(16))]
struct Slot {
    addr: AtomicU64,
    meta: AtomicU64,
}

/// The shared words of one ring: the only place that touches them.
///
/// All access is by atomics of one size a word, so that a peer that writes at the
/// wrong moment yields a wrong value, never undefined behaviour.
#[derive(Debug, Clone)]
pub struct RingMem {
    raw: backing::Raw,
    size: u16,
}

impl RingMem {
    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub(super) fn meta(&self, index: u16, order: Ordering) -> Meta {
        Meta(u64::from_le(self.slot(index).meta.load(order)))
    }
    #[inline]
    pub(super) fn set_meta(&self, index: u16, meta: Meta, order: Ordering) {
        self.slot(index).meta.store(meta.0.to_le(), order);
    }
    /// Ordered by the flags: read it after them.
    #[inline]
    pub(super) fn addr(&self, index: u16) -> u64 {
        u64::from_le(self.slot(index).addr.load(Ordering::Relaxed))
    }
    /// Ordered by the flags: write it before them.
    #[inline]
    pub(super) fn set_addr(&self, index: u16, addr: u64) {
        self.slot(index).addr.store(addr.to_le(), Ordering::Relaxed);
    }
    pub(super) fn driver_event(&self) -> u32 {
        u32::from_le(self.driver_word().load(Ordering::Relaxed))
    }
    pub(super) fn device_event(&self) -> u32 {
        u32::from_le(self.device_word().load(Ordering::Relaxed))
    }
    pub(super) fn set_driver_event(&self, mode: EventMode) {
        self.driver_word().store(mode.emit().to_le(), Ordering::Relaxed);
    }
    pub(super) fn set_device_event(&self, mode: EventMode) {
        self.device_word().store(mode.emit().to_le(), Ordering::Relaxed);
    }
    /// As a driver leaves it before it tells the device: nothing available, ring at will.
    pub(super) fn clear(&self) {
        for i in 0..self.size {
            self.set_addr(i, 0);
            self.set_meta(i, Meta(0), Ordering::Relaxed);
        }
        self.set_driver_event(EventMode::Enable);
        self.set_device_event(EventMode::Enable);
    }
}

#[cfg(not(loom))]
mod backing {
    use super::{AtomicU32, DESC_LEN, EVENT_LEN, Layout, RingError, RingMem, Slot};
    use crate::memory::{Region, Slice};
    use core::ptr::NonNull;

    #[derive(Debug, Clone)]
    pub(super) struct Raw {
        descs: NonNull<Slot>,
        driver: NonNull<AtomicU32>,
        device: NonNull<AtomicU32>,
        /// Keeps the mappings alive.
        _regions: [Region; 3],
    }

    // SAFETY: the pointers name atomics in mappings that `_regions` keeps alive and
    // that are valid from any thread.
    unsafe impl Send for Raw {}
    // SAFETY: as above; all access through them is atomic.
    unsafe impl Sync for Raw {}

    impl RingMem {
        /// The ring whose three parts `part(address, octets)` finds.
        pub(in crate::packed) fn new<'m>(
            layout: &Layout,
            mut part: impl FnMut(u64, usize) -> Result<(Slice<'m>, &'m Region), RingError>,
        ) -> Result<Self, RingError> {
            layout.check_size()?;
            let mut aligned = |addr, len, align| {
                let (slice, region) = part(addr, len)?;
                let base = slice.as_raw().0;
                if !base.addr().is_multiple_of(align) {
                    return Err(RingError::Misaligned(addr));
                }
                Ok((NonNull::new(base).expect("a slice has an address"), region.clone()))
            };
            let (descs, r0) = aligned(layout.desc, layout.desc_len(), DESC_LEN as usize)?;
            let (driver, r1) = aligned(layout.driver, EVENT_LEN, EVENT_LEN)?;
            let (device, r2) = aligned(layout.device, EVENT_LEN, EVENT_LEN)?;
            let raw = Raw { descs: descs.cast(), driver: driver.cast(), device: device.cast(), _regions: [r0, r1, r2] };
            Ok(Self { raw, size: layout.size })
        }

        #[inline]
        pub(super) fn slot(&self, index: u16) -> &Slot {
            debug_assert!(index < self.size, "positions stay in the ring");
            // SAFETY: `new` checked that `size` slots lie in the mapping, aligned. The index
            // is below it: a queue passes those of its positions, which start at 0 (or where
            // `set_base` checked), and which `advance` and `retreat` keep below the size. The
            // region lives as long as `self`; a slot is atomics.
            unsafe { self.raw.descs.add(usize::from(index)).as_ref() }
        }

        /// Two cache lines ahead, once a line: whoever walks the ring will read that line
        /// and then write it, so it is fetched for writing.
        #[inline]
        pub(in crate::packed) fn prefetch(&self, index: u16) {
            if index.is_multiple_of(4) && index + 8 < self.size {
                crate::memory::prefetch_write(self.raw.descs.as_ptr().wrapping_add(usize::from(index) + 8).cast());
            }
        }

        pub(super) fn driver_word(&self) -> &AtomicU32 {
            // SAFETY: checked and aligned in `new`, kept alive by the region, atomic.
            unsafe { self.raw.driver.as_ref() }
        }

        pub(super) fn device_word(&self) -> &AtomicU32 {
            // SAFETY: as for the driver's word.
            unsafe { self.raw.device.as_ref() }
        }
    }
}

#[cfg(loom)]
mod backing {
    use super::{AtomicU32, AtomicU64, RingMem, Slot};
    use alloc::vec::Vec;
    use loom::sync::Arc;

    #[derive(Debug, Clone)]
    pub(super) struct Raw(Arc<Words>);

    #[derive(Debug)]
    struct Words {
        slots: Vec<Slot>,
        driver: AtomicU32,
        device: AtomicU32,
    }

    impl core::fmt::Debug for Slot {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.write_str("Slot")
        }
    }

    impl RingMem {
        /// A ring of loom's atomics, for both sides to clone.
        pub fn loom(size: u16) -> Self {
            let slots = (0..size).map(|_| Slot { addr: AtomicU64::new(0), meta: AtomicU64::new(0) }).collect();
            Self { raw: Raw(Arc::new(Words { slots, driver: AtomicU32::new(0), device: AtomicU32::new(0) })), size }
        }
        pub(in crate::packed) fn prefetch(&self, _index: u16) {}
        pub(super) fn slot(&self, index: u16) -> &Slot {
            &self.raw.0.slots[usize::from(index)]
        }
        pub(super) fn driver_word(&self) -> &AtomicU32 {
            &self.raw.0.driver
        }
        pub(super) fn device_word(&self) -> &AtomicU32 {
            &self.raw.0.device
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_wrap_both_ways() {
        let p = Position { index: 6, wrap: true };
        assert_eq!(p.advance(2, 7), Position { index: 1, wrap: false });
        assert_eq!(p.advance(2, 7).retreat(2, 7), p);
        assert_eq!(p.advance(7, 7), Position { index: 6, wrap: false });
        assert_eq!(Position::START.retreat(7, 7), Position { index: 0, wrap: false });
        let big = Position { index: 32767, wrap: false };
        assert_eq!(big.advance(32768, 32768), Position { index: 32767, wrap: true });
    }

    #[test]
    fn event_is_wanted_when_passed_and_only_then() {
        let at = |index, wrap| EventMode::Descriptor(Position { index, wrap });
        let now = Position { index: 2, wrap: false };
        // The last four descriptors of a ring of 8: 6, 7, 0, 1.
        for (event, want) in [
            (at(5, true), false),
            (at(6, true), true),
            (at(7, true), true),
            (at(0, false), true),
            (at(1, false), true),
            (at(2, false), false),
            (at(1, true), false),
        ] {
            assert_eq!(event.wants(now, 4, 8), want, "{event:?}");
        }
        assert!(at(2, true).wants(now, 8, 8));
    }

    #[test]
    fn base_of_one_index_means_both() {
        assert_eq!(VringBase::from_bits(0x8000), VringBase::START);
        assert_eq!(VringBase::from_bits(VringBase::START.to_bits()), VringBase::START);
        let behind = VringBase::from_bits(0x8003_8007);
        assert_eq!((behind.avail.index, behind.used.index), (3, 3));
    }
}
