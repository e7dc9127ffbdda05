//! The device side of a port: queues, DMA, interrupts, statistics.
//!
//! A port has up to eight queue pairs. Ring `2n` is receive queue `n`, ring `2n + 1`
//! transmit queue `n` (virtio 1.2 §5.1.2). Each ring is absent, attached, or
//! stopped: a ring on which the driver broke a rule is stopped ([`Stopped`] names
//! the rule) and with it its port, until the driver resets the device or all rings are detached.
//!
//! **Receive** ([`Port::receive`]): RSS picks the queue; buffers are taken from it
//! until the frame fits (mergeable), the frame is copied, once, its header written,
//! the buffers staged as used. What the driver did not negotiate is done here:
//! frames are cut, checksums completed, in that same copy. No buffer: nothing is
//! taken and the caller hears [`Received::NoBuffer`]; it may try again or count a miss.
//!
//! **Transmit** ([`Port::transmit_next`]): a chain is taken and its octets are
//! named, not copied. Whoever holds its [`Token`] gives it back by
//! [`Port::complete`] once the octets are no longer needed, in any order.
//!
//! **Interrupts** ([`Port::flush`]): what is staged is published, and the rings to
//! be rung come back as a mask, moderation and the driver's own suppression applied.
//!
//! Limits: no control queue, so queues are switched on by vhost-user alone.

use crate::frame::{ETHER_LEN, FrameView};
use crate::moderation::{Irq, Moderation, ModerationParams};
use crate::offload::{Offload, Segments, copy_whole};
use crate::rss::Rss;
use crate::time::Instant;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use ringlab_counters::{Nic, NicCounters};
use ringlab_ring::memory::Slice;
use ringlab_ring::packed::{Chain, DeviceQueue, Features, MAX_CHAIN, MemoryMap, RingError};
use ringlab_ring::vnet::{GSO_ECN, VNET_HDR_LEN, VnetHdr};

/// Most queue pairs of a port.
pub const MAX_PAIRS: u16 = 8;
/// Largest frame: the largest IP datagram and an Ethernet header with two tags.
pub const MAX_FRAME: usize = 65535 + 22;
/// Pieces of a frame at most: a whole chain.
pub const MAX_PIECES: usize = MAX_CHAIN;

/// Buffers that one received frame may fill, and their pieces.
const MAX_BUFFERS: usize = 64;
const MAX_TARGETS: usize = 96;

/// A frame's pieces, headers first.
pub type Pieces<'m> = ArrayVec<Slice<'m>, MAX_PIECES>;

/// The driver broke a rule on a ring; the port has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring {ring} stopped: {rule}")]
pub struct Stopped {
    /// Index of the ring.
    pub ring: u16,
    /// The rule.
    pub rule: RingError,
}

/// What became of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// It is in the ring, or was dropped and counted.
    Done,
    /// Its queue has too few buffers; nothing was taken or counted.
    NoBuffer,
}

/// A transmit chain in the hands of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Transmit queue.
    pub queue: u16,
    id: u16,
    descs: u16,
    /// Life of the ring in which it was taken: a later one owes nothing for it.
    epoch: u32,
}

/// Octets in the driver's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Region of the memory map.
    pub region: u16,
    /// Offset in that region's mapping.
    pub offset: u64,
    /// Octets.
    pub len: u32,
}

/// A frame taken from a transmit queue.
#[derive(Debug)]
pub struct Transmit {
    /// To give back.
    pub token: Token,
    /// What the driver left to the NIC, unchecked.
    pub header: VnetHdr,
    /// The frame's pieces, without the virtio-net header; bounds are checked.
    pub pieces: ArrayVec<Piece, MAX_PIECES>,
    /// Octets of the frame.
    pub len: usize,
}

impl Transmit {
    /// Room for a frame, to be reused.
    pub fn empty() -> Self {
        let token = Token { queue: 0, id: 0, descs: 0, epoch: 0 };
        Self { token, header: VnetHdr::default(), pieces: ArrayVec::new(), len: 0 }
    }

    /// Puts the frame's octets in the driver's memory into empty `pieces`, which are too large to be moved about.
    ///
    /// # Errors
    /// [`RingError::OutOfBounds`] if `map` is not the one that it was taken under.
    pub fn slices<'m>(&self, map: &'m MemoryMap, pieces: &mut Pieces<'m>) -> Result<(), RingError> {
        for p in &self.pieces {
            pieces.push(map.slice_at(p.region, p.offset, p.len as usize)?);
        }
        Ok(())
    }
}

/// The device side of one port.
pub struct Port {
    /// Statistics; the wire's part is counted by whoever owns the wire.
    pub counters: NicCounters,
    mtu: usize,
    features: Features,
    map: Arc<MemoryMap>,
    rings: Vec<Ring>,
    rss: Rss,
    params: ModerationParams,
    stopped: bool,
    chain: Chain,
}

#[derive(Default)]
struct Ring {
    /// Counts the queues that it has had.
    epoch: u32,
    queue: Option<DeviceQueue>,
    enabled: bool,
    staged: u32,
    moderation: Moderation,
    /// Kicks are wanted: the NIC sleeps, or waits for receive buffers.
    armed: bool,
}

impl Ring {
    fn live(&mut self) -> Option<&mut DeviceQueue> {
        if self.enabled { self.queue.as_mut() } else { None }
    }
}

impl Port {
    /// A port without rings. `mtu` bounds what it receives.
    pub fn new(pairs: u16, mtu: u16, params: ModerationParams) -> Self {
        let rings = (0..2 * pairs.clamp(1, MAX_PAIRS)).map(|_| Ring { moderation: Moderation::new(params), ..Ring::default() }).collect();
        Self {
            counters: NicCounters::default(),
            mtu: usize::from(mtu),
            features: Features::empty(),
            map: Arc::new(MemoryMap::new()),
            rings,
            rss: Rss::new(1),
            params,
            stopped: false,
            chain: Chain::new(),
        }
    }

    /// Rings of the port, two a pair.
    pub fn rings(&self) -> u16 {
        self.rings.len() as u16
    }

    /// What the driver negotiated.
    pub fn set_features(&mut self, features: Features) {
        self.features = features;
    }

    /// What the driver negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The driver's memory; rings attached later use it.
    pub fn set_map(&mut self, map: Arc<MemoryMap>) {
        self.map = map;
    }

    /// The driver's memory.
    pub fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    /// Changes moderation in place.
    pub fn set_moderation(&mut self, params: ModerationParams) {
        self.params = params;
        self.rings.iter_mut().for_each(|ring| ring.moderation.set_params(params));
    }

    /// Attaches a ring; false if the port has no such ring.
    pub fn attach(&mut self, ring: u16, queue: DeviceQueue) -> bool {
        let Some(slot) = self.rings.get_mut(usize::from(ring)) else { return false };
        *slot =
            Ring { epoch: slot.epoch.wrapping_add(1), enabled: slot.enabled, moderation: Moderation::new(self.params), ..Ring::default() };
        slot.queue = Some(queue);
        self.spread();
        true
    }

    /// Detaches a ring; what was staged is published first.
    pub fn detach(&mut self, ring: u16) -> Option<DeviceQueue> {
        let slot = self.rings.get_mut(usize::from(ring))?;
        let mut queue = slot.queue.take();
        if let Some(queue) = &mut queue {
            queue.publish();
        }
        slot.epoch = slot.epoch.wrapping_add(1);
        slot.staged = 0;
        // All of them gone is how QEMU tells of a reset: it has no other word for it.
        self.stopped &= self.rings.iter().any(|r| r.queue.is_some());
        self.spread();
        queue
    }

    /// Switches a ring on or off.
    pub fn enable(&mut self, ring: u16, on: bool) {
        if let Some(slot) = self.rings.get_mut(usize::from(ring)) {
            slot.enabled = on;
        }
        self.spread();
    }

    /// Forgets the driver: rings, features, memory. Tokens given out become void.
    pub fn reset(&mut self) {
        for ring in &mut self.rings {
            *ring = Ring { epoch: ring.epoch.wrapping_add(1), moderation: Moderation::new(self.params), ..Ring::default() };
        }
        self.features = Features::empty();
        self.map = Arc::new(MemoryMap::new());
        self.stopped = false;
        self.counters.inc(Nic::DeviceResets);
    }

    /// True if the driver broke a rule, and has neither reset the device nor taken all rings away since.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// True if a transmit queue may be polled.
    pub fn is_live(&self, ring: u16) -> bool {
        !self.stopped && self.rings.get(usize::from(ring)).is_some_and(|r| r.enabled && r.queue.is_some())
    }

    /// RSS spreads over the leading receive queues that are on.
    fn spread(&mut self) {
        let pairs = self.rings.iter().step_by(2).take_while(|r| r.enabled && r.queue.is_some()).count() as u16;
        if pairs.max(1) != self.rss.pairs() {
            self.rss.set_pairs(pairs);
        }
    }

    /// The receive queue for a frame.
    #[inline]
    pub fn receive_queue(&self, view: &FrameView) -> u16 {
        self.rss.queue(view)
    }

    /// Copies a frame into the driver's buffers. `view` and `offload` are those of `frame`.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn receive(&mut self, view: &FrameView, offload: &Offload, frame: &[Slice<'_>]) -> Result<Received, Stopped> {
        let ring = 2 * self.receive_queue(view);
        if !self.is_live(ring) {
            return Ok(Received::NoBuffer);
        }
        let on_wire = match offload {
            Offload::Tso(tso) => tso.segment_len(0),
            _ => view.len(),
        };
        // An 802.1Q tag does not count against the MTU.
        if on_wire > self.mtu + ETHER_LEN + 4 {
            self.counters.inc(Nic::RxLengthErrors);
            return Ok(Received::Done);
        }
        match offload {
            Offload::Tso(tso) if !self.takes_gso(offload) => self.receive_cut(ring, Segments::new(*tso, view, frame)),
            _ => self.receive_whole(ring, offload, view.len(), frame),
        }
    }

    fn takes_gso(&self, offload: &Offload) -> bool {
        let ecn = offload.to_vnet().gso_type & GSO_ECN != 0;
        self.features.contains(Features::GUEST_TSO4) && (!ecn || self.features.contains(Features::GUEST_ECN))
    }

    fn receive_whole(&mut self, ring: u16, offload: &Offload, len: usize, frame: &[Slice<'_>]) -> Result<Received, Stopped> {
        let map = self.map.clone();
        let mut target = Target::default();
        match self.reserve(&map, ring, len, &mut target)? {
            Reserved::No => return Ok(Received::NoBuffer),
            Reserved::TooSmall => return Ok(Received::Done),
            Reserved::Yes => {}
        }
        let (csum, header) = match offload {
            Offload::Csum(csum) if !self.features.contains(Features::GUEST_CSUM) => (Some(*csum), Offload::None.to_vnet()),
            _ => (None, offload.to_vnet()),
        };
        copy_whole(frame, csum, &target.pieces).expect("reserved for its length");
        let gso = header.is_gso();
        self.fill(ring, &target, header, len);
        self.counters.add(Nic::RxGsoPackets, u64::from(gso));
        Ok(Received::Done)
    }

    fn receive_cut(&mut self, ring: u16, mut segments: Segments<'_>) -> Result<Received, Stopped> {
        let map = self.map.clone();
        let mut first = true;
        while let Some(len) = segments.next_len() {
            let mut target = Target::default();
            match self.reserve(&map, ring, len, &mut target)? {
                Reserved::No if first => return Ok(Received::NoBuffer),
                Reserved::No => {
                    // The segments before it are in the ring: those left are missed.
                    self.counters.add(Nic::RxMissed, u64::from(segments.remaining()));
                    return Ok(Received::Done);
                }
                Reserved::TooSmall => return Ok(Received::Done),
                Reserved::Yes => {}
            }
            segments.emit(&target.pieces).expect("reserved for its length");
            self.fill(ring, &target, Offload::None.to_vnet(), len);
            first = false;
        }
        Ok(Received::Done)
    }

    /// Takes buffers for a header and `len` octets into an empty `target`, which is too large to be moved about.
    fn reserve<'m>(&mut self, map: &'m MemoryMap, ring: u16, len: usize, target: &mut Target<'m>) -> Result<Reserved, Stopped> {
        let mergeable = self.features.contains(Features::MRG_RXBUF);
        let slot = &mut self.rings[usize::from(ring)];
        let queue = slot.queue.as_mut().expect("asked is_live");
        let need = VNET_HDR_LEN + len;
        let mut have = 0;
        while have < need {
            let full = target.buffers.is_full() || (!mergeable && have > 0);
            if full || !queue.pop(&mut self.chain).map_err(|rule| stop(&mut self.stopped, &mut self.counters, ring, rule))? {
                for buffer in target.buffers.iter().rev() {
                    self.chain.descs = buffer.descs;
                    queue.unpop(&self.chain);
                }
                if !full {
                    return Ok(Reserved::No);
                }
                // No number of buffers will do: the frame is lost, not late.
                self.counters.inc(Nic::RxLengthErrors);
                return Ok(Reserved::TooSmall);
            }
            let before = have;
            target.take(map, &self.chain, &mut have).map_err(|rule| stop(&mut self.stopped, &mut self.counters, ring, rule))?;
            target.buffers.push(Buffer { id: self.chain.id, descs: self.chain.descs, capacity: have - before });
        }
        Ok(Reserved::Yes)
    }

    /// Writes the header and stages the buffers of a frame of `len` octets as used.
    fn fill(&mut self, ring: u16, target: &Target<'_>, header: VnetHdr, len: usize) {
        let header = VnetHdr { num_buffers: target.buffers.len() as u16, ..header };
        target.write_header(&header.emit());
        let slot = &mut self.rings[usize::from(ring)];
        let queue = slot.queue.as_mut().expect("asked is_live");
        let mut left = VNET_HDR_LEN + len;
        for buffer in &target.buffers {
            let n = left.min(buffer.capacity);
            queue.push_used(buffer.id, buffer.descs, n as u32);
            left -= n;
        }
        slot.staged += 1;
        self.counters.inc(Nic::RxPackets);
        self.counters.add(Nic::RxBytes, len as u64);
        self.counters.inc(Nic::DmaCopies);
        self.counters.add(Nic::DmaBytes, len as u64);
    }

    /// Takes the next frame of a transmit queue into `transmit`; false if there is none.
    ///
    /// A chain that holds no frame is given back and counted.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn transmit_next(&mut self, queue: u16, transmit: &mut Transmit) -> Result<bool, Stopped> {
        let ring = 2 * queue + 1;
        let map = self.map.clone();
        loop {
            if self.stopped {
                return Ok(false);
            }
            let Some(slot) = self.rings.get_mut(usize::from(ring)) else { return Ok(false) };
            let epoch = slot.epoch;
            let Some(live) = slot.live() else { return Ok(false) };
            if !live.pop(&mut self.chain).map_err(|rule| stop(&mut self.stopped, &mut self.counters, ring, rule))? {
                return Ok(false);
            }
            let token = Token { queue, id: self.chain.id, descs: self.chain.descs, epoch };
            let parsed =
                parse_chain(&map, &self.chain, transmit).map_err(|rule| stop(&mut self.stopped, &mut self.counters, ring, rule))?;
            transmit.token = token;
            if parsed {
                self.counters.inc(Nic::TxPackets);
                self.counters.add(Nic::TxBytes, transmit.len as u64);
                self.counters.add(Nic::TxGsoPackets, u64::from(transmit.header.is_gso()));
                return Ok(true);
            }
            self.counters.inc(Nic::TxRingErrors);
            self.complete(token);
        }
    }

    /// Gives a transmit chain back to the driver.
    pub fn complete(&mut self, token: Token) {
        let Some(ring) = self.rings.get_mut(usize::from(2 * token.queue + 1)).filter(|r| r.epoch == token.epoch) else { return };
        if let Some(queue) = &mut ring.queue {
            queue.push_used(token.id, token.descs, 0);
            ring.staged += 1;
        }
    }

    /// Publishes what is staged. Returns the rings to ring, as a mask by index.
    pub fn flush(&mut self, now: Instant) -> u32 {
        let mut mask = 0;
        for (i, ring) in self.rings.iter_mut().enumerate() {
            let Some(queue) = &mut ring.queue else { continue };
            let staged = core::mem::take(&mut ring.staged);
            let receive = i % 2 == 0;
            if staged > 0 {
                queue.publish();
            }
            let irq = match (receive, staged) {
                (true, 0) => ring.moderation.on_time(now),
                (true, n) => ring.moderation.on_frames(now, n),
                (false, 0) => Irq::Hold,
                (false, _) => Irq::Raise,
            };
            if irq == Irq::Hold {
                self.counters.add(Nic::RxModerated, u64::from(if receive { staged } else { 0 }));
                continue;
            }
            if queue.needs_call() {
                mask |= 1 << i;
                self.counters.inc(if receive { Nic::RxInterrupts } else { Nic::TxInterrupts });
            }
        }
        mask
    }

    /// When a moderated interrupt is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.rings.iter().step_by(2).filter_map(|r| r.moderation.deadline()).min()
    }

    /// True if the driver asked to hear of packets that it has sent.
    pub fn wants_completions(&self) -> bool {
        self.rings.iter().skip(1).step_by(2).filter_map(|r| r.queue.as_ref()).any(DeviceQueue::calls_enabled)
    }

    /// Before sleeping: asks for kicks of the transmit queues. True: one has work already, and none was asked of it.
    pub fn arm(&mut self) -> bool {
        let stopped = self.stopped;
        let transmit = self.rings.iter_mut().skip(1).step_by(2);
        let mut work = false;
        for ring in transmit.filter(|r| r.enabled && !stopped) {
            let Some(queue) = &mut ring.queue else { continue };
            if queue.enable_kick() {
                queue.disable_kick();
                work = true;
            } else {
                ring.armed = true;
            }
        }
        work
    }

    /// After waking: no more kicks of the transmit queues, they are polled.
    pub fn disarm(&mut self) {
        for ring in self.rings.iter_mut().skip(1).step_by(2) {
            if core::mem::take(&mut ring.armed)
                && let Some(queue) = &mut ring.queue
            {
                queue.disable_kick();
            }
        }
    }

    /// Asks for a kick when the receive queue of `view` gets buffers. True: it has some already.
    pub fn arm_receive(&mut self, view: &FrameView) -> bool {
        let ring = 2 * self.receive_queue(view);
        let Some(queue) = self.rings[usize::from(ring)].live() else { return false };
        queue.enable_kick()
    }

    /// No more kicks of the receive queues: their buffers are found by looking.
    pub fn disarm_receive(&mut self) {
        for ring in self.rings.iter_mut().step_by(2) {
            if let Some(queue) = &mut ring.queue {
                queue.disable_kick();
            }
        }
    }
}

/// Records a broken rule: the port stops.
#[cold]
fn stop(stopped: &mut bool, counters: &mut NicCounters, ring: u16, rule: RingError) -> Stopped {
    *stopped = true;
    counters.inc(if ring.is_multiple_of(2) { Nic::RxRingErrors } else { Nic::TxRingErrors });
    Stopped { ring, rule }
}

/// Whether buffers were taken for a frame.
enum Reserved {
    Yes,
    /// There are too few; none was taken.
    No,
    /// Those of this driver never hold such a frame: it was counted.
    TooSmall,
}

/// A receive buffer that was taken.
struct Buffer {
    id: u16,
    descs: u16,
    capacity: usize,
}

/// Where a received frame goes.
#[derive(Default)]
struct Target<'m> {
    header: ArrayVec<Slice<'m>, VNET_HDR_LEN>,
    pieces: ArrayVec<Slice<'m>, MAX_TARGETS>,
    buffers: ArrayVec<Buffer, MAX_BUFFERS>,
}

impl<'m> Target<'m> {
    /// Adds the writable segments of a chain: the first twelve octets of all are the header's.
    fn take(&mut self, map: &'m MemoryMap, chain: &Chain, have: &mut usize) -> Result<(), RingError> {
        for segment in chain.segments.iter().filter(|s| s.writable && s.len > 0) {
            let mut slice = map.slice_at(segment.region, segment.offset, segment.len as usize)?;
            if *have < VNET_HDR_LEN {
                let n = slice.len().min(VNET_HDR_LEN - *have);
                self.header.push(slice.sub(0, n)?);
                slice = slice.sub(n, slice.len() - n)?;
                *have += n;
            }
            if slice.is_empty() {
                continue;
            }
            *have += slice.len();
            self.pieces.try_push(slice).map_err(|_| RingError::ChainTooLong(chain.id))?;
        }
        Ok(())
    }

    fn write_header(&self, header: &[u8; VNET_HDR_LEN]) {
        let mut at = 0;
        for piece in &self.header {
            piece.write(&header[at..at + piece.len()]);
            at += piece.len();
        }
    }
}

/// Splits a transmit chain into header and frame; false if it holds no frame.
fn parse_chain(map: &MemoryMap, chain: &Chain, transmit: &mut Transmit) -> Result<bool, RingError> {
    let mut header = [0; VNET_HDR_LEN];
    let mut got = 0;
    transmit.pieces.clear();
    transmit.len = 0;
    for segment in chain.segments.iter().filter(|s| !s.writable && s.len > 0) {
        let mut skip = 0;
        if got < VNET_HDR_LEN {
            skip = (VNET_HDR_LEN - got).min(segment.len as usize);
            map.slice_at(segment.region, segment.offset, skip)?.read(&mut header[got..got + skip]);
            got += skip;
        }
        let len = segment.len - skip as u32;
        if len > 0 {
            transmit.pieces.push(Piece { region: segment.region, offset: segment.offset + skip as u64, len });
            transmit.len = transmit.len.saturating_add(len as usize);
        }
    }
    transmit.header = VnetHdr::parse(&header);
    Ok(got == VNET_HDR_LEN && (ETHER_LEN..=MAX_FRAME).contains(&transmit.len))
}

#[cfg(test)]
mod tests;
