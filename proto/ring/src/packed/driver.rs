//! The driver's side: makes chains available, takes them back used.

use super::desc::{EventMode, Features, INDIRECT, Layout, Meta, NEXT, Position, RingError, RingMem, State, WRITE};
use crate::atomics::{Ordering, fence};
use crate::memory::Region;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

/// Too few free descriptors for the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring has too few free descriptors")]
pub struct RingFull;

/// The driver's side of a packed virtqueue. `T` is what the caller wants back with
/// each chain (an `SkBuff`, a receive buffer); it never leaves private memory.
///
/// States of a chain: free, *staged* (written, the device does not see it yet),
/// *available* (from [`DriverQueue::publish`] on), *used* (from [`DriverQueue::pop_used`]
/// on it is free again).
#[derive(Debug)]
pub struct DriverQueue<T> {
    ring: RingMem,
    features: Features,
    size: u16,
    /// Next descriptor to write.
    avail: Position,
    /// Up to here the device sees descriptors; from here to `avail` they are staged.
    published: Position,
    /// The descriptor at `published`, if staged: the device polls that one.
    head: (u64, Meta),
    /// Next descriptor to take back,
    used: Position,
    /// and what it then shows; [`State::NEVER`] once the queue failed.
    expect: State,
    /// By id.
    chains: Vec<InFlight<T>>,
    /// Where to look for a free id: most chains come back in order.
    next_id: u16,
    /// Descriptors published since the last `needs_kick`.
    added: u16,
    /// Event word as last written.
    event: EventMode,
    tables: Option<(Region, u64)>,
    failed: Option<RingError>,
}

#[derive(Debug)]
struct InFlight<T> {
    /// Initialised while `size` is not free.
    token: MaybeUninit<T>,
    size: ChainSize,
}

/// Descriptors of the ring that a chain takes (0: the id is free), and octets of it that
/// the device may write.
#[derive(Debug, Clone, Copy)]
#[repr(align(8))]
struct ChainSize {
    descs: u16,
    writable: u32,
}

const FREE: ChainSize = ChainSize { descs: 0, writable: 0 };

impl<T> InFlight<T> {
    #[inline]
    fn take(&mut self) -> Option<(T, u16)> {
        let descs = core::mem::replace(&mut self.size, FREE).descs;
        // SAFETY: not 0, so the token is initialised; now 0, so it is not read again.
        (descs != 0).then(|| (unsafe { self.token.assume_init_read() }, descs))
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Chains of more segments than this go through an indirect table.
const INDIRECT_ABOVE: usize = 4;

impl<T> DriverQueue<T> {
    /// A queue over `layout` (offsets in `region`), whose words it clears: the device
    /// must not run yet. `features`: as negotiated.
    ///
    /// # Errors
    /// [`RingError`] if the layout has a bad size, is misaligned or leaves the region.
    #[cfg(not(loom))]
    pub fn new(region: Region, layout: Layout, features: Features) -> Result<Self, RingError> {
        let ring = RingMem::new(&layout, |at, len| Ok((region.slice(at, len)?, &region)))?;
        ring.clear();
        let mut queue = Self::with_ring(ring, features);
        if let (Some(at), true) = (layout.indirect, features.contains(Features::INDIRECT_DESC)) {
            region.slice(at, usize::from(layout.size) * Layout::TABLE as usize)?;
            queue.tables = Some((region, at));
        }
        Ok(queue)
    }

    /// A queue over cleared ring words.
    #[cfg_attr(not(loom), allow(unreachable_pub))]
    pub fn with_ring(ring: RingMem, features: Features) -> Self {
        let size = ring.size();
        Self {
            size,
            features,
            avail: Position::START,
            published: Position::START,
            head: (0, Meta::new(0, 0, 0)),
            used: Position::START,
            expect: State::used(true),
            chains: (0..size).map(|_| InFlight { token: MaybeUninit::uninit(), size: FREE }).collect(),
            next_id: 0,
            added: 0,
            event: EventMode::Enable,
            tables: None,
            failed: None,
            ring,
        }
    }

    /// Descriptors that are free.
    #[inline]
    pub fn free(&self) -> u16 {
        self.size - self.used.until(self.avail, self.size)
    }

    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Makes a chain available at once: readable segments, then writable ones, each
    /// (address, octets). The kick is the caller's: see [`DriverQueue::needs_kick`].
    ///
    /// # Errors
    /// [`RingFull`], and the token back, if it does not fit now.
    ///
    /// # Panics
    /// If the chain has no segment.
    #[inline]
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)], token: T) -> Result<(), (RingFull, T)> {
        self.stage(readable, writable, token)?;
        self.publish();
        Ok(())
    }

    /// As [`DriverQueue::add`], but the device sees it at the next
    /// [`DriverQueue::publish`]: a batch costs one hand-over of its cache lines.
    ///
    /// # Errors
    /// [`RingFull`], and the token back, if it does not fit now.
    ///
    /// # Panics
    /// If the chain has no segment.
    #[inline]
    pub fn stage(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)], token: T) -> Result<(), (RingFull, T)> {
        let segments = readable.len() + writable.len();
        assert!(segments > 0, "a chain has a segment");
        let free = self.free();
        let direct = segments <= usize::from(free);
        let indirect = segments > 1 && segments <= usize::from(Layout::TABLE_ENTRIES) && free > 0 && self.tables.is_some();
        if indirect && (segments > INDIRECT_ABOVE || !direct) {
            self.stage_indirect(readable, writable, token);
        } else if direct {
            self.stage_direct(readable, writable, token);
        } else {
            return Err((RingFull, token));
        }
        Ok(())
    }

    #[inline]
    fn stage_direct(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)], token: T) {
        let segments = readable.len() + writable.len();
        let descs = segments as u16;
        let id = self.take_id(token, descs, capacity(writable));
        for (i, &(addr, len)) in readable.iter().chain(writable).enumerate() {
            let mut flags = if i < readable.len() { 0 } else { WRITE };
            if i + 1 < segments {
                flags |= NEXT;
            }
            self.write(addr, len, id, flags);
        }
    }

    /// One descriptor of the ring that names a table, written first, of all segments.
    fn stage_indirect(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)], token: T) {
        let id = self.take_id(token, 1, capacity(writable));
        let (region, start) = self.tables.as_ref().expect("checked by the caller");
        let table = start + u64::from(id) * Layout::TABLE;
        let segments = readable.len() + writable.len();
        let view = region.slice(table, segments * 16).expect("tables lie in the region");
        for (i, &(addr, len)) in readable.iter().chain(writable).enumerate() {
            let flags = if i < readable.len() { 0 } else { WRITE };
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&addr.to_le_bytes());
            entry[8..12].copy_from_slice(&len.to_le_bytes());
            entry[14..].copy_from_slice(&flags.to_le_bytes());
            view.sub(i * 16, 16).expect("inside the table").write(&entry);
        }
        self.write(table, (segments * 16) as u32, id, INDIRECT);
    }

    /// A free id; there is one, since chains have at least one descriptor each.
    #[inline]
    fn take_id(&mut self, token: T, descs: u16, writable: u32) -> u16 {
        let after = |id| if id + 1 == self.size { 0 } else { id + 1 };
        let mut id = self.next_id;
        while self.chains[usize::from(id)].size.descs != 0 {
            id = after(id);
        }
        self.next_id = after(id);
        let chain = &mut self.chains[usize::from(id)];
        chain.token.write(token);
        chain.size = ChainSize { descs, writable };
        id
    }

    /// Stages the next descriptor: the first of a batch is held back, the others are
    /// written, since nobody looks there yet.
    #[inline]
    fn write(&mut self, addr: u64, len: u32, id: u16, flags: u16) {
        let meta = Meta::available(len, id, flags, self.avail.wrap);
        if self.avail == self.published {
            self.head = (addr, meta);
        } else {
            self.ring.set_addr(self.avail.index, addr);
            self.ring.set_meta(self.avail.index, meta, Ordering::Relaxed);
        }
        self.avail = self.avail.advance(1, self.size);
    }

    /// Shows the device what was staged.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.avail {
            self.ring.set_addr(self.published.index, self.head.0);
            // Release pairs with the device's Acquire of the same flags: buffers,
            // addresses and the batch's other descriptors before its first flags.
            self.ring.set_meta(self.published.index, self.head.1, Ordering::Release);
            self.added = self.added.saturating_add(self.published.until(self.avail, self.size));
            self.published = self.avail;
        }
    }

    /// Takes back the next used chain: its token, and how many octets the device wrote.
    ///
    /// # Errors
    /// The rule that the device broke; from then on always the same.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<(T, u32)>, RingError> {
        // Acquire pairs with the device's Release: buffer contents after the flags.
        let meta = self.ring.meta(self.used.index, Ordering::Acquire);
        if meta.state() != self.expect {
            return self.check_idle(meta);
        }
        self.ring.prefetch(self.used.index);
        let (id, len) = (meta.id(), meta.len());
        let Some(chain) = self.chains.get_mut(usize::from(id)).filter(|c| c.size.descs != 0) else {
            return Err(self.fail(RingError::UnknownId(id)));
        };
        let capacity = chain.size.writable;
        if len > capacity {
            return Err(self.fail(RingError::UsedLength { len, capacity }));
        }
        let (token, descs) = chain.take().expect("in flight, as checked");
        self.used = self.used.advance(descs, self.size);
        self.expect = State::used(self.used.wrap);
        Ok(Some((token, len)))
    }

    /// Nothing used: the descriptor must be as this side wrote it.
    #[inline]
    fn check_idle(&mut self, meta: Meta) -> Result<Option<(T, u32)>, RingError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        if self.used != self.published && !meta.is_of_lap(self.used.wrap) {
            return Err(self.fail(RingError::WrapBit(self.used.index)));
        }
        Ok(None)
    }

    /// True if a used chain waits.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.ring.meta(self.used.index, Ordering::Acquire).state() == self.expect
    }

    /// The rule that the device broke, if it has: the queue is dead.
    pub fn error(&self) -> Option<RingError> {
        self.failed
    }

    /// Publishes what is staged, and tells whether the device wants to know of what was
    /// published since the last call. A nonsensical event word stops the queue: the next `pop_used` says so.
    #[inline]
    pub fn needs_kick(&mut self) -> bool {
        self.publish();
        if self.added == 0 {
            return false;
        }
        // Flags before event word: pairs with the fence in the device's `enable_kick`.
        // Without it both may see the old state: the device sleeps, nobody rings.
        fence(Ordering::SeqCst);
        let added = core::mem::take(&mut self.added);
        match EventMode::parse(self.ring.device_event(), self.size, self.features) {
            Ok(mode) => mode.wants(self.avail, added, self.size),
            Err(e) => {
                self.fail(e);
                true
            }
        }
    }

    /// Masks the interrupt: the device need not ring. A hint: it may still do.
    #[inline]
    pub fn disable_call(&mut self) {
        self.set_event(EventMode::Disable);
    }

    /// Unmasks the interrupt. True if a used chain is already there: no call may come
    /// for it, so pop again before sleeping.
    #[inline]
    pub fn enable_call(&mut self) -> bool {
        self.enable_call_after(1)
    }

    /// As [`DriverQueue::enable_call`], but the device need not ring before it has
    /// returned `n` descriptors (at most those in flight). Without `EVENT_IDX` it rings
    /// at the first.
    pub fn enable_call_after(&mut self, n: u16) -> bool {
        if self.features.contains(Features::EVENT_IDX) {
            let ahead = n.min(self.size - self.free()).saturating_sub(1);
            self.set_event(EventMode::Descriptor(self.used.advance(ahead, self.size)));
        } else {
            self.set_event(EventMode::Enable);
        }
        // Event word before flags: pairs with the fence in the device's `needs_call`.
        fence(Ordering::SeqCst);
        self.failed.is_some() || self.has_used()
    }

    #[inline]
    fn set_event(&mut self, mode: EventMode) {
        if self.event != mode {
            self.event = mode;
            self.ring.set_driver_event(mode);
        }
    }

    /// Gives back all tokens, for a device that is gone. The queue must not be used any more.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.chains.iter_mut().filter_map(|c| Some(c.take()?.0))
    }

    #[cold]
    fn fail(&mut self, e: RingError) -> RingError {
        self.expect = State::NEVER;
        *self.failed.get_or_insert(e)
    }
}

/// Octets that the device may write; saturates, as a length reported by it has 32 bits.
#[inline]
fn capacity(writable: &[(u64, u32)]) -> u32 {
    writable.iter().fold(0, |sum: u32, &(_, len)| sum.saturating_add(len))
}
