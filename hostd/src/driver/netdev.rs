//! A NIC as the kernel model has it ([`NetDriver`]), and what `ethtool` changes of it: kept here until the link has
//! told the device ([`crate::link::Link::apply`]), and for the next device.

use super::Nic;
use ringlab_kernel::dev::net_device::{Coalesce, Features as DevFeatures, NetDriver, RxFrame, TxIrq};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::skb::SkBuff;
use ringlab_ring::packed::Features;
use ringlab_ring::vnet::VnetHdr;
use std::cell::RefCell;
use std::rc::Rc;

/// Descriptors of the smallest ring, as in the topology file: a largest frame fits with room to spare.
const LEAST_RING: u16 = 64;

/// What `ethtool` has changed, and what the link has not told the device yet.
#[derive(Debug, Default)]
pub struct Settings {
    /// How the device moderates interrupts, as far as is known; `None`: it does not tell.
    pub coalesce: Option<Coalesce>,
    /// It is what the host has asked for: a fresh device is told.
    pub coalesce_asked: bool,
    /// Queue pairs over which the device spreads.
    pub pairs: u16,
    /// To be told: moderation, pairs in use, new rings.
    pub due: Due,
}

/// What the device is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Due {
    /// Moderation.
    pub coalesce: bool,
    /// Pairs in use.
    pub pairs: bool,
    /// Rings of other sizes.
    pub rings: bool,
}

impl Nic {
    /// What `ethtool` has changed, for the link that tells the device.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Descriptors of each ring from now on; the next reset makes them.
    fn resize(&mut self, rx: u32, tx: u32) -> Result<(), Errno> {
        let size = |n: u32, most: u16| u16::try_from(n).ok().filter(|&n| n.is_power_of_two() && (LEAST_RING..=most).contains(&n));
        let (Some(rx), Some(tx)) = (size(rx, self.room.0), size(tx, self.room.1)) else { return Err(Errno::EINVAL) };
        for pair in &mut self.pairs {
            (pair.layout.rx.size, pair.layout.tx.size) = (rx, tx);
        }
        self.settings.due.rings = true;
        Ok(())
    }
}

/// The kernel's handle of a [`Nic`].
pub struct RingDriver {
    nic: Rc<RefCell<Nic>>,
    features: DevFeatures,
}

impl RingDriver {
    /// A driver for `nic`, whose device offers `features`.
    pub fn new(nic: Rc<RefCell<Nic>>, features: Features) -> Self {
        let features = DevFeatures { tx_csum: features.contains(Features::CSUM), tso: features.contains(Features::HOST_TSO4), sg: true };
        Self { nic, features }
    }
}

impl NetDriver for RingDriver {
    fn queue_pairs(&self) -> u16 {
        self.nic.borrow().queue_pairs()
    }
    fn features(&self) -> DevFeatures {
        self.features
    }
    fn ring_sizes(&self) -> Option<(u32, u32)> {
        self.nic.borrow().ring_sizes()
    }
    fn ring_limits(&self) -> Option<(u32, u32)> {
        let (rx, tx) = self.nic.borrow().room;
        Some((rx.into(), tx.into()))
    }
    fn set_ring_sizes(&mut self, rx: u32, tx: u32) -> Result<(), Errno> {
        self.nic.borrow_mut().resize(rx, tx)
    }
    fn coalesce(&self) -> Option<Coalesce> {
        self.nic.borrow().settings.coalesce
    }
    fn set_coalesce(&mut self, wanted: Coalesce) -> Result<(), Errno> {
        let settings = &mut self.nic.borrow_mut().settings;
        *settings.coalesce.as_mut().ok_or(Errno::EOPNOTSUPP)? = wanted;
        (settings.coalesce_asked, settings.due.coalesce) = (true, true);
        Ok(())
    }
    fn use_queue_pairs(&mut self, pairs: u16) -> Result<(), Errno> {
        let settings = &mut self.nic.borrow_mut().settings;
        (settings.pairs, settings.due.pairs) = (pairs, true);
        Ok(())
    }
    fn rx(&mut self, queue: u16) -> Option<RxFrame> {
        self.nic.borrow_mut().rx(queue)
    }
    fn rx_refill(&mut self, queue: u16) {
        self.nic.borrow_mut().rx_refill(queue);
    }
    fn xmit(&mut self, queue: u16, hdr: VnetHdr, skb: Box<SkBuff>) -> Result<(), Box<SkBuff>> {
        self.nic.borrow_mut().xmit(queue, hdr, skb)
    }
    fn tx_full(&self, queue: u16) -> bool {
        self.nic.borrow().tx_full(queue)
    }
    fn tx_done(&mut self, queue: u16) -> Option<Box<SkBuff>> {
        self.nic.borrow_mut().tx_done(queue)
    }
    fn needs_kick(&mut self, queue: u16) -> bool {
        self.nic.borrow_mut().needs_kick(queue)
    }
    fn irq_disable(&mut self, queue: u16) {
        self.nic.borrow_mut().irq_disable(queue);
    }
    fn irq_enable(&mut self, queue: u16) -> bool {
        self.nic.borrow_mut().irq_enable(queue)
    }
    fn tx_irq(&mut self, queue: u16, wanted: TxIrq) {
        if let Some(pair) = self.nic.borrow_mut().pairs.get_mut(usize::from(queue)) {
            pair.tx_irq = wanted;
        }
    }
    fn pending(&mut self, queue: u16) -> bool {
        self.nic.borrow().pending(queue)
    }
}
