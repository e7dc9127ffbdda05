//! A device in memory, and the driver for it.

use super::Frame;
use arrayvec::ArrayVec;
use ringlab_kernel::dev::net_device::{Coalesce, Features, NetDriver, RxFrame, TxIrq};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::skb::{Frag, SkBuff};
use ringlab_ring::pool::Pool;
use ringlab_ring::vnet::VnetHdr;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Octets in front of a received frame: where the virtio-net header would be.
const HEADROOM: u32 = 12;
/// Octets of a receive buffer.
const RX_BUF: u32 = 4096;

/// How to make a port.
#[derive(Clone)]
pub struct PortConfig {
    pub queues: u16,
    /// Frames that the RX ring holds.
    pub rx_ring: usize,
    /// Frames that the TX ring holds, completions not yet reaped included.
    pub tx_ring: usize,
    pub features: Features,
    pub mtu: u32,
    pub tx_queue_len: u32,
    pub irq_affinity: Vec<u16>,
    /// Completions wait, as hostd's driver lets them, for a frame, half a ring of them, or somebody who asks.
    pub late_completions: bool,
}

impl Default for PortConfig {
    fn default() -> Self {
        let features = Features { tx_csum: true, tso: true, sg: true };
        Self {
            queues: 1,
            rx_ring: 512,
            tx_ring: 512,
            features,
            mtu: 1500,
            tx_queue_len: 1000,
            irq_affinity: Vec::new(),
            late_completions: false,
        }
    }
}

#[derive(Default)]
struct Queue {
    rx: VecDeque<RxFrame>,
    /// Buffers that the device still has.
    rx_free: usize,
    rx_taken: usize,
    tx: VecDeque<(VnetHdr, Box<SkBuff>)>,
    done: VecDeque<Box<SkBuff>>,
    /// Frames taken over from the kernel.
    sent: usize,
    masked: bool,
    tx_irq: bool,
    /// An interrupt is due when unmasked.
    raised: bool,
    /// Frames were added since the device last looked, and nobody rang.
    added: bool,
    rung: bool,
}

struct State {
    config: PortConfig,
    pool: Pool,
    queues: Vec<Queue>,
    /// Frames for which no buffer was ready.
    missed: usize,
    interrupts: usize,
    doorbells: usize,
    /// The device does not touch the TX rings.
    stalled: bool,
    /// Arrives at the very moment when the interrupt is unmasked, and raises none.
    late: Option<Frame>,
    /// What `ethtool` has made of it.
    rings: (u32, u32),
    coalesce: Coalesce,
}

/// The device's side of a port; clones share it.
#[derive(Clone)]
pub struct Port {
    state: Rc<RefCell<State>>,
}

impl Port {
    pub fn new(config: PortConfig, pool: Pool) -> Self {
        let queue = || Queue { rx_free: config.rx_ring, ..Queue::default() };
        let queues = (0..config.queues).map(|_| queue()).collect();
        let rings = (config.rx_ring as u32, config.tx_ring as u32);
        let coalesce = Coalesce::default();
        let state = State { config, pool, queues, missed: 0, interrupts: 0, doorbells: 0, stalled: false, late: None, rings, coalesce };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    pub fn driver(&self) -> Box<dyn NetDriver> {
        Box::new(Driver { state: self.state.clone() })
    }

    /// Frames dropped because the RX ring had no buffer.
    pub fn missed(&self) -> usize {
        self.state.borrow().missed
    }

    /// Interrupts raised.
    pub fn interrupt_count(&self) -> usize {
        self.state.borrow().interrupts
    }

    /// Doorbells heard.
    pub fn doorbell_count(&self) -> usize {
        self.state.borrow().doorbells
    }

    /// Whether a queue's interrupt is masked.
    pub fn masked(&self, queue: u16) -> bool {
        self.state.borrow().queues[usize::from(queue)].masked
    }

    /// Frames on the TX rings that the device has not taken.
    pub fn tx_pending(&self) -> usize {
        self.state.borrow().queues.iter().map(|q| q.tx.len()).sum()
    }

    /// Frames that the kernel has sent, by queue.
    pub fn sent_by_queue(&self) -> Vec<usize> {
        self.state.borrow().queues.iter().map(|q| q.sent).collect()
    }

    /// Stops or lets go the device's transmitter.
    pub fn stall(&self, on: bool) {
        self.state.borrow_mut().stalled = on;
    }

    /// A frame arrives: into the ring of its flow's queue, and an interrupt.
    pub fn receive(&self, frame: &Frame) {
        let s = &mut *self.state.borrow_mut();
        let queue = frame.flow_hash() as usize % s.queues.len();
        let q = &mut s.queues[queue];
        let buffers = frame.bytes.len().div_ceil((RX_BUF - HEADROOM) as usize).max(1);
        if q.rx_free < buffers {
            s.missed += 1;
            return;
        }
        let mut frags = ArrayVec::new();
        for part in frame.bytes.chunks((RX_BUF - HEADROOM) as usize) {
            let buf = s.pool.alloc(RX_BUF).expect("the test's pool is large enough");
            buf.slice(HEADROOM, part.len() as u32).write(part);
            frags.push(Frag { buf, off: HEADROOM, len: part.len() as u32 });
        }
        q.rx_free -= buffers;
        q.rx.push_back(RxFrame { hdr: frame.hdr, frags });
        q.raised = true;
    }

    /// A frame arrives when the driver has found its ring empty and unmasks the interrupt: that one is lost.
    pub fn receive_at_unmask(&self, frame: Frame) {
        self.state.borrow_mut().late = Some(frame);
    }

    /// The doorbell of a TX queue rings.
    pub fn ring(&self, queue: u16) {
        let s = &mut *self.state.borrow_mut();
        s.doorbells += 1;
        s.queues[usize::from(queue)].rung = true;
    }

    /// Takes what is on the TX rings whose doorbell was rung.
    pub fn transmit(&self) -> Vec<Frame> {
        let s = &mut *self.state.borrow_mut();
        let mut frames = Vec::new();
        if s.stalled {
            return frames;
        }
        for q in &mut s.queues {
            if !std::mem::take(&mut q.rung) {
                continue;
            }
            q.added = false;
            while let Some((hdr, skb)) = q.tx.pop_front() {
                let mut bytes = vec![0; skb.len() as usize];
                skb.copy_bits(0, &mut bytes).expect("whole frame");
                frames.push(Frame { hdr, bytes });
                q.done.push_back(skb);
                q.raised |= q.tx_irq;
            }
        }
        frames
    }

    /// A queue whose interrupt is to be raised.
    pub fn interrupt(&self) -> Option<u16> {
        let s = &mut *self.state.borrow_mut();
        let queue = s.queues.iter().position(|q| q.raised && !q.masked)?;
        s.queues[queue].raised = false;
        s.interrupts += 1;
        Some(queue as u16)
    }
}

struct Driver {
    state: Rc<RefCell<State>>,
}

impl Driver {
    fn with<T>(&self, queue: u16, f: impl FnOnce(&mut Queue, &PortConfig) -> T) -> T {
        let s = &mut *self.state.borrow_mut();
        f(&mut s.queues[usize::from(queue)], &s.config)
    }
}

impl NetDriver for Driver {
    fn queue_pairs(&self) -> u16 {
        self.state.borrow().config.queues
    }

    fn features(&self) -> Features {
        self.state.borrow().config.features
    }

    fn ring_sizes(&self) -> Option<(u32, u32)> {
        Some(self.state.borrow().rings)
    }

    fn ring_limits(&self) -> Option<(u32, u32)> {
        let s = self.state.borrow();
        Some((s.config.rx_ring as u32, s.config.tx_ring as u32))
    }

    fn set_ring_sizes(&mut self, rx: u32, tx: u32) -> Result<(), Errno> {
        self.state.borrow_mut().rings = (rx, tx);
        Ok(())
    }

    fn coalesce(&self) -> Option<Coalesce> {
        Some(self.state.borrow().coalesce)
    }

    fn set_coalesce(&mut self, wanted: Coalesce) -> Result<(), Errno> {
        self.state.borrow_mut().coalesce = wanted;
        Ok(())
    }

    fn use_queue_pairs(&mut self, pairs: u16) -> Result<(), Errno> {
        assert!((1..=self.queue_pairs()).contains(&pairs));
        Ok(())
    }

    fn rx(&mut self, queue: u16) -> Option<RxFrame> {
        self.with(queue, |q, _| {
            let frame = q.rx.pop_front()?;
            q.rx_taken += frame.frags.len();
            Some(frame)
        })
    }

    fn rx_refill(&mut self, queue: u16) {
        self.with(queue, |q, _| q.rx_free += std::mem::take(&mut q.rx_taken));
    }

    fn xmit(&mut self, queue: u16, hdr: VnetHdr, skb: Box<SkBuff>) -> Result<(), Box<SkBuff>> {
        self.with(queue, |q, c| {
            if q.tx.len() + q.done.len() >= c.tx_ring {
                return Err(skb);
            }
            assert!(skb.headroom() >= HEADROOM, "the virtio-net header has room");
            assert!(c.features.tso || hdr.gso_type == 0, "no TSO was offered");
            assert!(c.features.tx_csum || hdr.flags == 0, "no checksum offload was offered");
            assert!(c.features.sg || skb.frags().iter().filter(|f| f.len > 0).count() == 1, "no scatter-gather was offered");
            q.tx.push_back((hdr, skb));
            q.sent += 1;
            q.added = true;
            Ok(())
        })
    }

    fn tx_full(&self, queue: u16) -> bool {
        self.with(queue, |q, c| q.tx.len() + q.done.len() >= c.tx_ring)
    }

    fn tx_done(&mut self, queue: u16) -> Option<Box<SkBuff>> {
        self.with(queue, |q, _| q.done.pop_front())
    }

    fn needs_kick(&mut self, queue: u16) -> bool {
        self.with(queue, |q, _| std::mem::take(&mut q.added))
    }

    fn irq_disable(&mut self, queue: u16) {
        self.with(queue, |q, _| q.masked = true);
    }

    fn irq_enable(&mut self, queue: u16) -> bool {
        let late = self.state.borrow_mut().late.take();
        if let Some(frame) = late {
            Port { state: self.state.clone() }.receive(&frame);
        }
        self.with(queue, |q, _| {
            q.masked = false;
            q.raised = false;
            !q.rx.is_empty() || q.tx_irq && !q.done.is_empty()
        })
    }

    fn tx_irq(&mut self, queue: u16, wanted: TxIrq) {
        // A real NIC's moderation hides no more than some microseconds: none here.
        self.with(queue, |q, _| q.tx_irq = wanted != TxIrq::Off);
    }

    fn pending(&mut self, queue: u16) -> bool {
        self.with(queue, |q, c| {
            let due = !c.late_completions || q.tx_irq || q.tx.len() + q.done.len() >= c.tx_ring / 2;
            !q.rx.is_empty() || due && !q.done.is_empty()
        })
    }
}
