//! The device's side: takes available chains, returns them used.

use super::desc::{DESC_LEN, EventMode, Features, INDIRECT, Layout, Meta, NEXT, Position, RingError, RingMem, State, VringBase, WRITE};
use super::map::MemoryMap;
use crate::atomics::{Ordering, fence};
use alloc::sync::Arc;
use arrayvec::ArrayVec;

/// Segments of a chain at most: a frame of 64 KiB in pages, its header, and spare.
pub const MAX_CHAIN: usize = 64;

/// One buffer of a chain, checked against the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub gpa: u64,
    /// Offset in the mapping of the region below.
    pub offset: u64,
    /// Octets.
    pub len: u32,
    /// Index of the region in the memory map.
    pub region: u16,
    /// The device may write it (and must not read it), or the other way round.
    pub writable: bool,
}

/// A chain taken from the ring; reused from frame to frame.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Its buffers, readable ones first.
    pub segments: ArrayVec<Segment, MAX_CHAIN>,
    /// The driver's name for it.
    pub id: u16,
    /// Descriptors of the ring that it takes.
    pub descs: u16,
    /// Octets of the readable buffers.
    pub readable: u64,
    /// Octets of the writable ones.
    pub writable: u64,
}

impl Chain {
    /// An empty one, to be filled by [`DeviceQueue::pop`].
    pub fn new() -> Self {
        Self::default()
    }

    fn clear(&mut self) {
        self.segments.clear();
        (self.readable, self.writable) = (0, 0);
    }
}

/// The device's side of a packed virtqueue.
///
/// States of a chain: *available*, *taken* (from [`DeviceQueue::pop`] on), *staged*
/// ([`DeviceQueue::push_used`], in any order), *used* (from [`DeviceQueue::publish`] on).
#[derive(Debug)]
pub struct DeviceQueue {
    ring: RingMem,
    map: Arc<MemoryMap>,
    features: Features,
    size: u16,
    /// Tables name readable buffers alone, whatever they say.
    readable_tables: bool,
    /// The region in which the last buffer lay: most likely also the next one's.
    hot: HotRegion,
    /// Next descriptor to take,
    avail: Position,
    /// and what it then shows; [`State::NEVER`] once the queue failed.
    expect: State,
    /// Next descriptor to return.
    used: Position,
    /// Up to here the driver sees used descriptors; from here to `used` they are staged.
    published: Position,
    /// Second half of the descriptor at `published`, if staged: the driver polls that one.
    head: Meta,
    /// Descriptors published since the last `needs_call`.
    moved: u16,
    /// Event word as last written; `None` before.
    event: Option<EventMode>,
    failed: Option<RingError>,
}

#[derive(Debug, Clone, Copy)]
struct HotRegion {
    gpa: u64,
    size: u64,
    offset: u64,
    index: u16,
}

impl HotRegion {
    const NONE: Self = Self { gpa: 0, size: 0, offset: 0, index: 0 };

    fn of(map: &MemoryMap, index: u16) -> Self {
        map.regions().get(usize::from(index)).map_or(Self::NONE, |r| Self { gpa: r.gpa, size: r.size, offset: r.offset, index })
    }

    /// As [`MemoryMap::region_of`], in this region alone.
    #[inline]
    fn offset(&self, gpa: u64, len: u32) -> Option<u64> {
        let at = gpa.wrapping_sub(self.gpa);
        (at < self.size && u64::from(len) <= self.size - at).then(|| self.offset + at)
    }
}

impl DeviceQueue {
    /// A queue over `layout` (guest physical addresses), at its start.
    ///
    /// # Errors
    /// [`RingError`] if the layout has a bad size, is misaligned or leaves the map.
    #[cfg(not(loom))]
    pub fn new(map: Arc<MemoryMap>, layout: Layout, features: Features) -> Result<Self, RingError> {
        let ring = RingMem::new(&layout, |gpa, len| {
            let (index, offset) = map.region_of(gpa, len as u64)?;
            Ok((map.slice_at(index, offset, len)?, &map.regions()[usize::from(index)].region))
        })?;
        Ok(Self::with_ring(ring, map, features))
    }

    /// A queue over ring words, at its start.
    #[cfg_attr(not(loom), allow(unreachable_pub))]
    pub fn with_ring(ring: RingMem, map: Arc<MemoryMap>, features: Features) -> Self {
        let size = ring.size();
        Self {
            hot: HotRegion::of(&map, 0),
            ring,
            map,
            features,
            size,
            readable_tables: false,
            avail: Position::START,
            expect: State::available(true),
            used: Position::START,
            published: Position::START,
            head: Meta::new(0, 0, 0),
            moved: 0,
            event: None,
            failed: None,
        }
    }

    /// Takes every buffer of an indirect table as readable: for rings on which the device writes nothing.
    /// DPDK's virtio driver (as of 22.11) marks the header of each frame of several segments as writable.
    pub fn expect_readable_tables(&mut self) {
        self.readable_tables = true;
    }

    /// Starts elsewhere: where an earlier device stopped. Descriptors that it took and
    /// did not return are taken again.
    ///
    /// # Errors
    /// [`RingError::IndexBeyondRing`].
    pub fn set_base(&mut self, base: VringBase) -> Result<(), RingError> {
        if base.used.index >= self.size {
            return Err(RingError::IndexBeyondRing(base.used.index));
        }
        (self.avail, self.used, self.published) = (base.used, base.used, base.used);
        self.expect = State::available(base.used.wrap);
        self.moved = 0;
        Ok(())
    }

    /// Where it stands: for the device that comes next. Chains taken and not returned
    /// are left for that one to take again, so both halves are what was published; a
    /// front end that keeps only one of them loses nothing.
    pub fn base(&self) -> VringBase {
        VringBase { avail: self.published, used: self.published }
    }

    /// The memory behind the addresses.
    pub fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors taken and not yet returned.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        self.used.until(self.avail, self.size)
    }

    /// Takes the next available chain into `chain`; false if there is none.
    ///
    /// # Errors
    /// The rule that the driver broke; from then on always the same.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        // Acquire pairs with the driver's Release: addresses and frames after the flags.
        let meta = self.ring.meta(self.avail.index, Ordering::Acquire);
        if meta.state() != self.expect {
            return self.check_idle(meta);
        }
        self.ring.prefetch(self.avail.index);
        let (len, flags) = (meta.len(), meta.flags());
        if flags & (NEXT | INDIRECT) == 0 && self.in_flight() < self.size {
            let gpa = self.ring.addr(self.avail.index);
            if let Some(offset) = self.hot.offset(gpa, len) {
                let writable = flags & WRITE != 0;
                chain.segments.clear();
                chain.segments.push(Segment { gpa, offset, len, region: self.hot.index, writable });
                (chain.id, chain.descs) = (meta.id(), 1);
                (chain.readable, chain.writable) = if writable { (0, len.into()) } else { (len.into(), 0) };
                self.step(1);
                return Ok(true);
            }
        }
        self.pop_any(chain, meta)
    }

    /// As `pop`, for chains of every form.
    fn pop_any(&mut self, chain: &mut Chain, meta: Meta) -> Result<bool, RingError> {
        chain.clear();
        self.walk(chain, meta).map_err(|e| self.fail(e))?;
        if let Some(last) = chain.segments.last() {
            self.hot = HotRegion::of(&self.map, last.region);
        }
        self.step(chain.descs);
        Ok(true)
    }

    #[inline]
    fn step(&mut self, descs: u16) {
        self.avail = self.avail.advance(descs, self.size);
        self.expect = State::available(self.avail.wrap);
    }

    /// Puts the chain popped last back: the next `pop` takes it again.
    ///
    /// # Panics
    /// If nothing is in flight.
    pub fn unpop(&mut self, chain: &Chain) {
        assert!(chain.descs <= self.in_flight(), "only what was popped is put back");
        self.avail = self.avail.retreat(chain.descs, self.size);
        if self.failed.is_none() {
            self.expect = State::available(self.avail.wrap);
        }
    }

    /// Reads the chain at `avail`, whose first flags are `meta`, and checks it.
    fn walk(&self, chain: &mut Chain, mut meta: Meta) -> Result<(), RingError> {
        let mut at = self.avail;
        let room = self.size - self.in_flight();
        chain.descs = 0;
        loop {
            if chain.descs == room {
                return Err(if room == self.size { RingError::DescriptorLoop(self.avail.index) } else { RingError::Overrun(at.index) });
            }
            chain.descs += 1;
            let addr = self.ring.addr(at.index);
            let flags = meta.flags();
            if flags & INDIRECT != 0 {
                if chain.descs > 1 || flags & NEXT != 0 {
                    return Err(RingError::IndirectInChain(at.index));
                }
                self.walk_table(chain, addr, meta.len(), at.index)?;
            } else {
                self.segment(chain, addr, meta.len(), flags, at.index)?;
            }
            if flags & NEXT == 0 {
                break;
            }
            at = at.advance(1, self.size);
            // Relaxed: published by the first descriptor's flags, which were acquired.
            meta = self.ring.meta(at.index, Ordering::Relaxed);
            if chain.descs < room && !meta.is_available(at.wrap) {
                return Err(RingError::WrapBit(at.index));
            }
        }
        chain.id = meta.id();
        Ok(())
    }

    fn walk_table(&self, chain: &mut Chain, addr: u64, len: u32, index: u16) -> Result<(), RingError> {
        if !self.features.contains(Features::INDIRECT_DESC) {
            return Err(RingError::IndirectNotNegotiated(index));
        }
        if len == 0 || !u64::from(len).is_multiple_of(DESC_LEN) {
            return Err(RingError::IndirectLength(len));
        }
        if len as usize > MAX_CHAIN * DESC_LEN as usize {
            return Err(RingError::ChainTooLong(index));
        }
        let table = self.map.translate_gpa(addr, len as usize)?;
        let mut entry = [0; DESC_LEN as usize];
        for at in (0..len as usize).step_by(DESC_LEN as usize) {
            table.sub(at, entry.len())?.read(&mut entry);
            let word = u128::from_le_bytes(entry);
            let flags = (word >> 112) as u16 & if self.readable_tables { !WRITE } else { !0 };
            if flags & INDIRECT != 0 {
                return Err(RingError::IndirectInChain(index));
            }
            self.segment(chain, word as u64, (word >> 64) as u32, flags, index)?;
        }
        Ok(())
    }

    #[inline]
    fn segment(&self, chain: &mut Chain, gpa: u64, len: u32, flags: u16, index: u16) -> Result<(), RingError> {
        let (region, offset) = self.map.region_of(gpa, len.into())?;
        let writable = flags & WRITE != 0;
        if writable {
            chain.writable += u64::from(len);
        } else if chain.writable > 0 || chain.segments.last().is_some_and(|s| s.writable) {
            return Err(RingError::ReadableAfterWritable(index));
        } else {
            chain.readable += u64::from(len);
        }
        let segment = Segment { gpa, offset, len, region, writable };
        chain.segments.try_push(segment).map_err(|_| RingError::ChainTooLong(self.avail.index))
    }

    /// Nothing available: the descriptor must not look used in a lap not yet walked.
    #[inline]
    fn check_idle(&mut self, meta: Meta) -> Result<bool, RingError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        if meta.is_used(self.avail.wrap) {
            return Err(self.fail(RingError::WrapBit(self.avail.index)));
        }
        Ok(false)
    }

    /// True if an available chain waits.
    #[inline]
    pub fn has_avail(&self) -> bool {
        self.ring.meta(self.avail.index, Ordering::Acquire).state() == self.expect
    }

    /// Returns a chain, `len` octets of it written; the driver sees it at the next
    /// [`DeviceQueue::publish`]. Any order is right.
    ///
    /// # Panics
    /// If more descriptors are returned than were taken.
    #[inline]
    pub fn push_used(&mut self, id: u16, descs: u16, len: u32) {
        assert!(descs <= self.in_flight(), "only what was popped is returned");
        let flags = if len > 0 { WRITE } else { 0 };
        let meta = Meta::used(len, id, flags, self.used.wrap);
        if self.used == self.published {
            self.head = meta;
        } else {
            self.ring.set_meta(self.used.index, meta, Ordering::Relaxed);
        }
        self.used = self.used.advance(descs, self.size);
    }

    /// Shows the driver what was returned.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.used {
            // Release pairs with the driver's Acquire of the same flags: frames and the
            // batch's other descriptors before its first flags.
            self.ring.set_meta(self.published.index, self.head, Ordering::Release);
            self.moved = self.moved.saturating_add(self.published.until(self.used, self.size));
            self.published = self.used;
        }
    }

    /// Publishes what is staged, and tells whether the driver wants to know of what was
    /// published since the last call. A nonsensical event word stops the queue: the next `pop` says so.
    #[inline]
    pub fn needs_call(&mut self) -> bool {
        self.publish();
        if self.moved == 0 {
            return false;
        }
        // Flags before event word: pairs with the fence in the driver's `enable_call`.
        // Without it both may see the old state: the driver sleeps, nobody rings.
        fence(Ordering::SeqCst);
        let moved = core::mem::take(&mut self.moved);
        match EventMode::parse(self.ring.driver_event(), self.size, self.features) {
            Ok(mode) => mode.wants(self.used, moved, self.size),
            Err(e) => {
                self.fail(e);
                true
            }
        }
    }

    /// True if the driver asks to be told of returned chains, soon or late.
    #[inline]
    pub fn calls_enabled(&self) -> bool {
        !matches!(EventMode::parse(self.ring.driver_event(), self.size, self.features), Ok(EventMode::Disable))
    }

    /// The driver need not ring. A hint: it may still do.
    #[inline]
    pub fn disable_kick(&mut self) {
        self.set_event(EventMode::Disable);
    }

    /// The driver is to ring for the next chain. True if one is already there: no kick
    /// may come for it, so pop again before sleeping.
    #[inline]
    pub fn enable_kick(&mut self) -> bool {
        let event_idx = self.features.contains(Features::EVENT_IDX);
        self.set_event(if event_idx { EventMode::Descriptor(self.avail) } else { EventMode::Enable });
        // Event word before flags: pairs with the fence in the driver's `needs_kick`.
        fence(Ordering::SeqCst);
        self.failed.is_some() || self.has_avail()
    }

    #[inline]
    fn set_event(&mut self, mode: EventMode) {
        if self.event != Some(mode) {
            self.event = Some(mode);
            self.ring.set_device_event(mode);
        }
    }

    #[cold]
    fn fail(&mut self, e: RingError) -> RingError {
        self.expect = State::NEVER;
        *self.failed.get_or_insert(e)
    }
}
