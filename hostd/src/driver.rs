//! The virtio-net driver: [`NetDriver`](ringlab_kernel::dev::net_device::NetDriver) over packed virtqueues (Linux `drivers/net/virtio_net.c`).
//!
//! A [`Nic`] outlives its device. While a device is attached it has a pair of
//! rings a queue; when the device goes, or breaks a rule of the ring, the rings
//! are torn down, packets in them come back through `tx_done`, and the next
//! device gets fresh rings at the same place. Sockets notice nothing but loss.
//!
//! Interrupts are masked at two places: by NAPI (`irq_disable`), as on
//! real hardware, and by the event loop while it is awake ([`Nic::wake`]): then it
//! looks at the rings itself, and the device need not ring.
//!
//! Receive: 4 KiB buffers, merged by `num_buffers`, the virtio-net header in front
//! of the first. Transmit: the header goes into the headroom of the first
//! fragment, or, where that is shared, into a buffer of its own.

mod netdev;

pub use netdev::{Due, RingDriver, Settings};

use crate::host::monotonic;
use arrayvec::ArrayVec;
use ringlab_kernel::dev::net_device::{RxFrame, TxIrq};
use ringlab_kernel::skb::{Frag, MAX_SKB_FRAGS, SkBuff};
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{DriverQueue, Features, Layout, RingError};
use ringlab_ring::pool::{Buf, Pool};
use ringlab_ring::vnet::{VNET_HDR_LEN, VnetHdr};
use std::collections::VecDeque;

/// Octets of a receive buffer.
const RX_BUF: u32 = 4096;
/// Descriptors of a largest transmitted frame: all fragments, and a header of its own.
const MAX_TX_DESCS: usize = MAX_SKB_FRAGS + 1;
const HDR: u32 = VNET_HDR_LEN as u32;

/// What the driver cannot do without.
pub const REQUIRED: Features = Features::VERSION_1.union(Features::RING_PACKED).union(Features::MRG_RXBUF);

/// What the driver makes use of.
pub const WANTED: Features = REQUIRED
    .union(Features::EVENT_IDX)
    .union(Features::INDIRECT_DESC)
    .union(Features::CSUM)
    .union(Features::GUEST_CSUM)
    .union(Features::HOST_TSO4)
    .union(Features::GUEST_TSO4)
    .union(Features::MAC)
    .union(Features::MTU)
    .union(Features::STATUS)
    .union(Features::MQ);

/// Why a device was stopped.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A rule of the ring is broken.
    #[error("queue {queue}: {error}")]
    Ring {
        /// Virtqueue (even: receive).
        queue: u16,
        /// The rule.
        error: RingError,
    },
    /// A used receive buffer too short for a header.
    #[error("queue {queue}: frame of {len} octets has no room for its header")]
    NoHeader {
        /// Virtqueue.
        queue: u16,
        /// Octets written.
        len: u32,
    },
    /// `num_buffers` is 0, more than a frame can have, or more than were used.
    #[error("queue {queue}: frame of {num_buffers} buffers, of which {found} are there")]
    NumBuffers {
        /// Virtqueue.
        queue: u16,
        /// What the header says.
        num_buffers: u16,
        /// Buffers that are there.
        found: u16,
    },
}

/// A device in use.
pub struct Attachment {
    /// Doorbell of each virtqueue.
    pub kick: Vec<Doorbell>,
}

/// Where the rings of a queue pair lie.
#[derive(Debug, Clone, Copy)]
pub struct PairLayout {
    /// Receive ring.
    pub rx: Layout,
    /// Transmit ring.
    pub tx: Layout,
}

struct Sent {
    skb: Box<SkBuff>,
    /// Header that did not fit into the packet's headroom: held until the device has read it.
    #[expect(dead_code, reason = "held, not looked at")]
    header: Option<Buf>,
}

struct Rings {
    rx: DriverQueue<Buf>,
    tx: DriverQueue<Sent>,
}

struct Pair {
    /// As it is used: the sizes may be less than there is room for.
    layout: PairLayout,
    rings: Option<Rings>,
    /// Packets that a lost device had not finished.
    orphans: VecDeque<Box<SkBuff>>,
    /// NAPI masked the interrupt.
    masked: bool,
    /// The kernel wants to hear of transmitted packets.
    tx_irq: TxIrq,
    /// It shall hear of those that are done now: there is nothing better to do.
    tx_due: bool,
    /// It waits for so few that it looks for them by and by.
    lazy: bool,
}

/// Descriptors of sent packets for which the device is asked to interrupt (`tx-frames` of `ethtool -C`).
const TX_FRAMES: u16 = 16;
/// So many a device minds by itself, whether they are waited for or not: sixteen packets of some fragments each.
const MINDED: u16 = 64;
/// How long fewer of them wait at the most, in microseconds (`tx-usecs`), unless somebody waits for them. Whatever
/// wakes the host takes them along: packets that come in, programs that run, a look at the statistics. An interrupt
/// for the one packet of a request would wake the host just before its answer does.
///
/// Deviation: real NICs wait some tens of microseconds. As long as nobody waits only `SIOCOUTQ` could tell, and it runs
/// after them.
pub const TX_USECS: u64 = 1_000_000;

/// One network interface card and its rings.
pub struct Nic {
    pool: Pool,
    pairs: Vec<Pair>,
    attachment: Option<Attachment>,
    error: Option<DeviceError>,
    /// The event loop is awake: the device need not ring.
    awake: bool,
    /// Descriptors of the largest receive and transmit ring for which there is room.
    room: (u16, u16),
    settings: Settings,
}

impl Nic {
    /// A card without a device; `layouts` lie in the region of `pool`, outside it.
    pub fn new(pool: Pool, layouts: &[PairLayout]) -> Self {
        let pair =
            |&layout| Pair { layout, rings: None, orphans: VecDeque::new(), masked: false, tx_irq: TxIrq::Off, tx_due: false, lazy: false };
        let room = layouts.first().map_or((0, 0), |l| (l.rx.size, l.tx.size));
        let settings = Settings { pairs: layouts.len() as u16, ..Settings::default() };
        Self { pool, pairs: layouts.iter().map(pair).collect(), attachment: None, error: None, awake: true, room, settings }
    }

    /// Makes fresh rings for a device about to be attached: it must find them in order.
    ///
    /// # Errors
    /// [`DeviceError::Ring`] if the layout is impossible.
    pub fn reset(&mut self, features: Features) -> Result<(), DeviceError> {
        self.detach();
        let region: Region = self.pool.region().clone();
        for (i, pair) in self.pairs.iter_mut().enumerate() {
            let at = |error, queue: usize| DeviceError::Ring { queue: queue as u16, error };
            let rx = DriverQueue::new(region.clone(), pair.layout.rx, features).map_err(|e| at(e, 2 * i))?;
            let tx = DriverQueue::new(region.clone(), pair.layout.tx, features).map_err(|e| at(e, 2 * i + 1))?;
            pair.rings = Some(Rings { rx, tx });
            if let Some(rings) = &mut pair.rings {
                rings.rx.disable_call();
                rings.tx.disable_call();
                let mut run = Run { pool: &self.pool, start: 0, end: 0 };
                refill(&self.pool, &mut rings.rx, |buf| run.extend(buf));
                run.populate();
            }
        }
        Ok(())
    }

    /// The device is there: frames may flow.
    pub fn attach(&mut self, attachment: Attachment) {
        self.attachment = Some(attachment);
        self.error = None;
        for queue in 0..self.pairs.len() as u16 {
            self.kick_rx(queue);
            self.ring(queue);
        }
    }

    /// The device is gone: what it had not sent comes back, what it had to fill is freed.
    pub fn detach(&mut self) {
        self.attachment = None;
        for pair in &mut self.pairs {
            if let Some(mut rings) = pair.rings.take() {
                pair.orphans.extend(rings.tx.drain().map(|sent| sent.skb));
                drop(rings.rx.drain());
            }
        }
    }

    /// True while frames may flow.
    pub fn is_attached(&self) -> bool {
        self.attachment.is_some() && self.error.is_none()
    }

    /// The rule that the device broke; it is to be detached then.
    pub fn take_error(&mut self) -> Option<DeviceError> {
        // A broken event word shows where nothing is popped.
        let broken = |(i, p): (usize, &Pair)| {
            let rings = p.rings.as_ref()?;
            let of = |queue: usize, error| DeviceError::Ring { queue: queue as u16, error };
            rings.rx.error().map(|e| of(2 * i, e)).or(rings.tx.error().map(|e| of(2 * i + 1, e)))
        };
        self.error.take().or_else(|| self.pairs.iter().enumerate().find_map(broken))
    }

    /// Rings the doorbell of a queue's transmit ring.
    pub fn ring(&self, queue: u16) {
        if let Some(bell) = self.attachment.as_ref().and_then(|a| a.kick.get(usize::from(queue) * 2 + 1)) {
            bell.ring_at(monotonic());
        }
    }

    /// The event loop looks at the rings from now on: no interrupts.
    pub fn wake(&mut self) {
        if core::mem::replace(&mut self.awake, true) {
            return;
        }
        for rings in self.pairs.iter_mut().filter_map(|p| p.rings.as_mut()) {
            rings.rx.disable_call();
            rings.tx.disable_call();
        }
    }

    /// The event loop is about to sleep: unmasked queues interrupt. `false` if there is work already; then it must not sleep.
    pub fn sleep(&mut self) -> bool {
        self.awake = false;
        let idle = self.pairs.iter_mut().fold(true, |idle, pair| idle & !pair.arm());
        if !idle {
            self.wake();
            return false;
        }
        for queue in 0..self.pairs.len() {
            if self.pairs[queue].is_urgent() {
                // A device that fell asleep before the interrupt was asked for looks again.
                self.ring(queue as u16);
            }
        }
        true
    }

    /// The event loop has nothing else to do: sent packets that somebody waits for raise their interrupt. True if there are any.
    pub fn reap(&mut self) -> bool {
        let mut any = false;
        for pair in &mut self.pairs {
            if pair.tx_irq != TxIrq::Off && !pair.masked && pair.rings.as_ref().is_some_and(|r| r.tx.has_used()) {
                pair.tx_due = true;
                any = true;
            }
        }
        any
    }

    /// True if a queue waits for sent packets, and no interrupt will come for them ([`TX_USECS`]).
    pub fn is_lazy(&self) -> bool {
        self.pairs.iter().any(|p| p.lazy)
    }

    /// True if the queue's interrupt line is raised: there is work, and NAPI has not masked it.
    pub fn interrupting(&self, queue: u16) -> bool {
        self.pairs.get(usize::from(queue)).is_some_and(|p| !p.masked && p.has_work())
    }

    /// Memory in which rings and buffers lie.
    pub fn region(&self) -> &Region {
        self.pool.region()
    }

    /// Rings in the order of the virtqueues: receive and transmit of pair 0, of pair 1 …
    pub fn layouts(&self) -> Vec<Layout> {
        self.pairs.iter().flat_map(|p| [p.layout.rx, p.layout.tx]).collect()
    }

    /// Queue pairs.
    pub fn queue_pairs(&self) -> u16 {
        self.pairs.len() as u16
    }

    /// Descriptors of the first pair's rings; none before the device is attached.
    pub fn ring_sizes(&self) -> Option<(u32, u32)> {
        let rings = self.pairs.first()?.rings.as_ref()?;
        Some((rings.rx.size().into(), rings.tx.size().into()))
    }

    fn fail(&mut self, error: DeviceError) {
        self.error.get_or_insert(error);
    }

    fn usable(&self) -> bool {
        self.error.is_none()
    }

    fn rx(&mut self, queue: u16) -> Option<RxFrame> {
        let index = usize::from(queue);
        if !self.usable() {
            return None;
        }
        let rings = self.pairs.get_mut(index)?.rings.as_mut()?;
        match receive(&mut rings.rx, 2 * queue) {
            Ok(frame) => frame,
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    fn rx_refill(&mut self, queue: u16) {
        if let Some(rings) = self.pairs.get_mut(usize::from(queue)).and_then(|p| p.rings.as_mut())
            && refill(&self.pool, &mut rings.rx, |_| ())
        {
            self.kick_rx(queue);
        }
    }

    fn kick_rx(&mut self, queue: u16) {
        let Some(attachment) = &self.attachment else { return };
        let index = usize::from(queue);
        if let Some(rings) = self.pairs[index].rings.as_mut()
            && rings.rx.needs_kick()
            && let Some(bell) = attachment.kick.get(2 * index)
        {
            bell.ring();
        }
    }

    fn xmit(&mut self, queue: u16, hdr: VnetHdr, skb: Box<SkBuff>) -> Result<(), Box<SkBuff>> {
        let usable = self.usable();
        let Some(rings) = self.pairs.get_mut(usize::from(queue)).and_then(|p| p.rings.as_mut()).filter(|_| usable) else {
            return Err(skb);
        };
        let Some((descs, header)) = map_frame(&self.pool, hdr, &skb) else { return Err(skb) };
        // Published by `needs_kick`, which the kernel calls once an event.
        rings.tx.stage(&descs, &[], Sent { skb, header }).map_err(|(_, sent)| sent.skb)
    }

    fn tx_done(&mut self, queue: u16) -> Option<Box<SkBuff>> {
        let usable = self.usable();
        let pair = self.pairs.get_mut(usize::from(queue))?;
        if let Some(skb) = pair.orphans.pop_front() {
            return Some(skb);
        }
        match pair.rings.as_mut().filter(|_| usable)?.tx.pop_used() {
            Ok(Some((sent, _))) => Some(sent.skb),
            Ok(None) => {
                pair.tx_due = false;
                None
            }
            Err(error) => {
                self.fail(DeviceError::Ring { queue: 2 * queue + 1, error });
                None
            }
        }
    }

    fn tx_full(&self, queue: u16) -> bool {
        let free = self.pairs.get(usize::from(queue)).and_then(|p| p.rings.as_ref()).map_or(0, |r| r.tx.free());
        usize::from(free) < MAX_TX_DESCS || !self.is_attached()
    }

    fn needs_kick(&mut self, queue: u16) -> bool {
        self.pairs.get_mut(usize::from(queue)).and_then(|p| p.rings.as_mut()).is_some_and(|r| r.tx.needs_kick())
    }

    fn irq_disable(&mut self, queue: u16) {
        let awake = self.awake;
        if let Some(pair) = self.pairs.get_mut(usize::from(queue)) {
            pair.masked = true;
            if let Some(rings) = pair.rings.as_mut().filter(|_| !awake) {
                rings.rx.disable_call();
                rings.tx.disable_call();
            }
        }
    }

    fn irq_enable(&mut self, queue: u16) -> bool {
        let awake = self.awake;
        let Some(pair) = self.pairs.get_mut(usize::from(queue)) else { return false };
        pair.masked = false;
        if awake { pair.has_work() } else { pair.arm() }
    }

    fn pending(&self, queue: u16) -> bool {
        self.pairs.get(usize::from(queue)).is_some_and(Pair::has_work)
    }
}

impl Pair {
    /// Frames to take, or a ring half full of sent ones. Fewer sent ones wait until there is
    /// nothing else to do ([`Nic::reap`]): interrupts of the transmit side are moderated.
    fn has_work(&self) -> bool {
        let Some(rings) = &self.rings else { return !self.orphans.is_empty() };
        let reap = self.tx_due || rings.tx.free() < self.layout.tx.size / 2;
        rings.rx.has_used() || !self.orphans.is_empty() || (reap && rings.tx.has_used())
    }

    /// Asks the device for an interrupt, unless NAPI masks it. True if there is work already.
    fn arm(&mut self) -> bool {
        if self.masked {
            return false;
        }
        let Some(rings) = &mut self.rings else { return !self.orphans.is_empty() };
        let mut work = rings.rx.enable_call() | !self.orphans.is_empty();
        let (size, used) = (self.layout.tx.size, self.layout.tx.size.saturating_sub(rings.tx.free()));
        self.lazy = self.tx_irq == TxIrq::Lazy && (1..TX_FRAMES).contains(&used);
        if self.lazy {
            rings.tx.disable_call();
        } else if self.tx_irq != TxIrq::Off && used > 0 {
            // As Linux does: once three quarters of what is out is back.
            self.tx_due = rings.tx.enable_call_after((used / 4 * 3).max(1));
            work |= self.tx_due;
        } else if used > size / 2 {
            work |= rings.tx.enable_call_after(used - size / 2);
        } else {
            rings.tx.disable_call();
        }
        work
    }

    /// Somebody waits for packets too few for the device to mind them by itself.
    fn is_urgent(&self) -> bool {
        let size = self.layout.tx.size;
        let used = |rings: &Rings| (1..MINDED).contains(&size.saturating_sub(rings.tx.free()));
        self.tx_irq == TxIrq::Now && !self.masked && self.rings.as_ref().is_some_and(used)
    }
}

/// Takes a frame off a receive ring.
fn receive(ring: &mut DriverQueue<Buf>, queue: u16) -> Result<Option<RxFrame>, DeviceError> {
    let broken = |error| DeviceError::Ring { queue, error };
    let Some((buf, len)) = ring.pop_used().map_err(broken)? else { return Ok(None) };
    if len < HDR {
        return Err(DeviceError::NoHeader { queue, len });
    }
    let mut raw = [0; VNET_HDR_LEN];
    buf.slice(0, HDR).read(&mut raw);
    let hdr = VnetHdr::parse(&raw);
    let num_buffers = hdr.num_buffers;
    if num_buffers == 0 || usize::from(num_buffers) > MAX_SKB_FRAGS {
        return Err(DeviceError::NumBuffers { queue, num_buffers, found: 1 });
    }
    let mut frags = ArrayVec::new();
    if len > HDR || num_buffers == 1 {
        frags.push(Frag { buf, off: HDR, len: len - HDR });
    }
    for found in 1..num_buffers {
        let Some((buf, len)) = ring.pop_used().map_err(broken)? else {
            return Err(DeviceError::NumBuffers { queue, num_buffers, found });
        };
        frags.push(Frag { buf, off: 0, len });
    }
    Ok(Some(RxFrame { hdr, frags }))
}

/// Fills a receive ring in batches. True if buffers were added.
fn refill(pool: &Pool, ring: &mut DriverQueue<Buf>, mut on_added: impl FnMut(&Buf)) -> bool {
    /// Fewer free descriptors are left for the next time.
    const BATCH: u16 = 16;
    let mut added = false;
    if ring.free() < BATCH {
        return false;
    }
    while ring.free() > 0 {
        let Some(buf) = pool.alloc(RX_BUF) else { break };
        let at = (buf.offset(), RX_BUF);
        on_added(&buf);
        if ring.add(&[], &[at], buf).is_err() {
            break;
        }
        added = true;
    }
    added
}

/// Receive buffers that lie one behind the other. They get their memory before frames come: a fault a frame
/// takes longer than its copy.
struct Run<'a> {
    pool: &'a Pool,
    start: u64,
    end: u64,
}

impl Run<'_> {
    fn extend(&mut self, buf: &Buf) {
        if buf.offset() != self.end {
            self.populate();
            self.start = buf.offset();
        }
        self.end = buf.offset() + u64::from(buf.capacity());
    }

    fn populate(&self) {
        if let Err(error) = self.pool.region().populate(self.start, (self.end - self.start) as usize) {
            tracing::debug!(%error, "receive buffers get their memory when frames come");
        }
    }
}

type Descs = ArrayVec<(u64, u32), MAX_TX_DESCS>;

/// Descriptors of a frame, its virtio-net header in front; `None` if there is no buffer for the header.
fn map_frame(pool: &Pool, hdr: VnetHdr, skb: &SkBuff) -> Option<(Descs, Option<Buf>)> {
    let raw = VnetHdr { num_buffers: 0, ..hdr }.emit();
    let mut descs = Descs::new();
    let mut frags = skb.frags().iter().filter(|f| f.len > 0);
    let head = frags.next()?;
    let header = if head.off >= HDR && head.buf.refs() == 1 {
        head.buf.slice(head.off - HDR, HDR).write(&raw);
        descs.push((head.buf.offset() + u64::from(head.off - HDR), head.len + HDR));
        None
    } else {
        let buf = pool.alloc(HDR)?;
        buf.slice(0, HDR).write(&raw);
        descs.push((buf.offset(), HDR));
        descs.push((head.buf.offset() + u64::from(head.off), head.len));
        Some(buf)
    };
    descs.extend(frags.map(|f| (f.buf.offset() + u64::from(f.off), f.len)));
    Some((descs, header))
}

#[cfg(test)]
mod tests;
