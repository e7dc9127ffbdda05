//! The driver's side: makes chains available, takes them back used.

use super::desc::{EventMode, Features, INDIRECT, Layout, Meta, NEXT, Position, RingError, RingMem, WRITE};
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
    /// Next descriptor to take back.
    used: Position,
    free: u16,
    free_ids: Vec<u16>,
    /// By id.
    chains: Vec<InFlight<T>>,
    /// Up to here the device sees descriptors; from here to `avail` they are staged.
    published: Position,
    /// Second half of the descriptor at `published`, if staged.
    head: Meta,
    /// Descriptors published since the last `needs_kick`.
    added: u16,
    /// Event word as last written.
    event: EventMode,
    tables: Option<(Region, u64)>,
    failed: Option<RingError>,
}

#[derive(Debug)]
struct InFlight<T> {
    /// Initialised while `descs` is not 0.
    token: MaybeUninit<T>,
    /// Descriptors of the ring that it takes; 0: the id is free.
    descs: u16,
    /// Octets that the device may write.
    writable: u32,
}

impl<T> InFlight<T> {
    #[inline]
    fn take(&mut self) -> Option<(T, u16)> {
        let descs = core::mem::take(&mut self.descs);
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
            used: Position::START,
            free: size,
            free_ids: (0..size).rev().collect(),
            chains: (0..size).map(|_| InFlight { token: MaybeUninit::uninit(), descs: 0, writable: 0 }).collect(),
            published: Position::START,
            head: Meta::new(0, 0, 0),
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
        self.free
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
        let direct = segments <= usize::from(self.free);
        let indirect = self.tables.is_some() && segments <= usize::from(Layout::TABLE_ENTRIES) && self.free > 0;
        if indirect && segments > 1 && (segments > INDIRECT_ABOVE || !direct) {
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

    #[inline]
    fn take_id(&mut self, token: T, descs: u16, writable: u32) -> u16 {
        let id = self.free_ids.pop().expect("an id for every free descriptor");
        let chain = &mut self.chains[usize::from(id)];
        debug_assert_eq!(chain.descs, 0, "a free id has no token");
        chain.token.write(token);
        (chain.descs, chain.writable) = (descs, writable);
        self.free -= descs;
        id
    }

    /// Writes the next descriptor; the flags of a batch's first one are held back.
    #[inline]
    fn write(&mut self, addr: u64, len: u32, id: u16, flags: u16) {
        let meta = Meta::available(len, id, flags, self.avail.wrap);
        self.ring.set_addr(self.avail.index, addr);
        if self.avail == self.published {
            self.head = meta;
        } else {
            self.ring.set_meta(self.avail.index, meta, Ordering::Relaxed);
        }
        self.avail = self.avail.advance(1, self.size);
        self.added = self.added.saturating_add(1);
    }

    /// Shows the device what was staged.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.avail {
            // Release pairs with the device's Acquire of the same flags: buffers,
            // addresses and the batch's other descriptors before its first flags.
            self.ring.set_meta(self.published.index, self.head, Ordering::Release);
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
        if let Some(e) = self.failed {
            return Err(e);
        }
        if !meta.is_used(self.used.wrap) {
            return self.check_idle(meta);
        }
        let (id, len) = (meta.id(), meta.len());
        let Some(chain) = self.chains.get_mut(usize::from(id)) else { return Err(self.fail(RingError::UnknownId(id))) };
        let capacity = chain.writable;
        if len > capacity && chain.descs != 0 {
            return Err(self.fail(RingError::UsedLength { len, capacity }));
        }
        let Some((token, descs)) = chain.take() else { return Err(self.fail(RingError::UnknownId(id))) };
        self.used = self.used.advance(descs, self.size);
        self.free += descs;
        self.free_ids.push(id);
        Ok(Some((token, len)))
    }

    /// Nothing used: the descriptor must be as this side wrote it.
    #[inline]
    fn check_idle(&mut self, meta: Meta) -> Result<Option<(T, u32)>, RingError> {
        if self.used != self.published && !meta.is_of_lap(self.used.wrap) {
            return Err(self.fail(RingError::WrapBit(self.used.index)));
        }
        Ok(None)
    }

    /// True if a used chain waits.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.failed.is_none() && self.ring.meta(self.used.index, Ordering::Acquire).is_used(self.used.wrap)
    }

    /// The rule that the device broke, if it has: the queue is dead.
    pub fn error(&self) -> Option<RingError> {
        self.failed
    }

    /// Publishes what is staged, and tells whether the device wants to know of what was
    /// published since the last call. A nonsensical event word stops the queue: the next `pop_used` says so.
    #[inline]
    pub fn needs_kick(&mut self) -> bool {
        if self.added == 0 {
            return false;
        }
        self.publish();
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
            let ahead = n.min(self.size - self.free).saturating_sub(1);
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
        *self.failed.get_or_insert(e)
    }
}

/// Octets that the device may write; saturates, as a length reported by it has 32 bits.
#[inline]
fn capacity(writable: &[(u64, u32)]) -> u32 {
    writable.iter().fold(0, |sum: u32, &(_, len)| sum.saturating_add(len))
}
