//! Transmit: queue choice, qdisc, driver, doorbell.

use super::net_device::{IfIndex, TxIrq};
use crate::Kernel;
use crate::cpu::Softirq;
use crate::errno::Errno;
use crate::skb::SkBuff;
use crate::trace::Point;
use crate::{Effect, dev::vnet};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use ringlab_counters::{DropReason, Netdev};

impl Kernel {
    /// Hands a complete frame to its device's qdisc and sends what the driver takes (Linux `dev_queue_xmit`).
    /// A frame dropped for want of a carrier counts as sent.
    ///
    /// # Errors
    /// `ENOBUFS` if the qdisc is full, `ENETDOWN` if the device is not there.
    pub(crate) fn dev_queue_xmit(&mut self, mut skb: Box<SkBuff>) -> Result<(), Errno> {
        let dev = IfIndex(skb.dev);
        let Some(device) = self.devs.get(dev).filter(|d| d.up) else {
            self.kfree_skb(skb, DropReason::DevReady);
            return Err(Errno::ENETDOWN);
        };
        let queue = if device.real_queues > 1 { self.netdev_pick_tx(&skb, device.real_queues) } else { 0 };
        let (loopback, carrier) = (device.is_loopback(), device.carrier);
        skb.queue = queue;
        self.trace(Point::DevQueueXmit, skb.id, [u64::from(skb.len()), u64::from(queue), 0, 0]);
        if loopback {
            // No queue (`noqueue`): straight to the driver.
            self.packet_tap_tx(&skb);
            self.trace_start_xmit(&skb, queue);
            self.loopback_xmit(skb);
            return Ok(());
        }
        if !carrier {
            // Linux: `noop_qdisc` while there is no carrier, whose verdict (`NET_XMIT_CN`) callers take for sent.
            // Deviation: TCP does not enter CWR for it; it finds the loss by its timer.
            if let Some(device) = self.devs.get_mut(dev) {
                device.stats.inc(Netdev::TxDropped);
            }
            self.kfree_skb(skb, DropReason::QdiscDrop);
            return Ok(());
        }
        self.qdisc_enqueue(dev, queue, skb)?;
        self.qdisc_run(dev, queue);
        Ok(())
    }

    /// TX queue by flow hash, so that a flow stays in order (Linux `skb_tx_hash`); by CPU without a hash.
    fn netdev_pick_tx(&self, skb: &SkBuff, queues: u16) -> u16 {
        match skb.hash {
            0 => self.this_cpu % queues,
            hash => ((u64::from(hash) * u64::from(queues)) >> 32) as u16,
        }
    }

    fn count_tx_drop(&mut self, dev: IfIndex, kind: Netdev) {
        if let Some(device) = self.devs.get_mut(dev) {
            device.stats.inc(Netdev::TxDropped);
            device.stats.inc(kind);
        }
    }

    fn qdisc_enqueue(&mut self, dev: IfIndex, queue: u16, skb: Box<SkBuff>) -> Result<(), Errno> {
        let id = skb.id;
        let Some(q) = self.devs.queue_mut(dev, queue) else { return Err(Errno::ENETDOWN) };
        match q.qdisc.enqueue(skb) {
            Ok(()) => {
                let qlen = q.qdisc.len();
                self.trace(Point::QdiscEnqueue, id, [u64::from(qlen), 0, 0, 0]);
                Ok(())
            }
            Err(skb) => {
                self.count_tx_drop(dev, Netdev::QdiscDropped);
                self.kfree_skb(skb, DropReason::QdiscDrop);
                Err(Errno::ENOBUFS)
            }
        }
    }

    /// Sends packets of a qdisc until it is empty, the driver is full, or the quota is spent (Linux `__qdisc_run`).
    pub(crate) fn qdisc_run(&mut self, dev: IfIndex, queue: u16) {
        let Some(q) = self.devs.queue_mut(dev, queue) else { return };
        if core::mem::replace(&mut q.running, true) {
            return;
        }
        // Frames of one run before the rest is left to `NET_TX_SOFTIRQ` (Linux `dev_tx_weight`).
        let mut quota = self.sysctl.dev_weight as u32;
        let mut segs = core::mem::take(&mut self.cpu().xmit_list);
        while let Some(skb) = self.dequeue_skb(dev, queue) {
            self.sch_direct_xmit(dev, queue, skb, &mut segs);
            quota -= 1;
            if quota == 0 {
                self.netif_schedule(dev, queue);
                break;
            }
        }
        self.cpu().xmit_list = segs;
        if let Some(q) = self.devs.queue_mut(dev, queue) {
            q.running = false;
        }
    }

    /// The next packet, if the queue is not stopped; what the driver refused goes first.
    fn dequeue_skb(&mut self, dev: IfIndex, queue: u16) -> Option<Box<SkBuff>> {
        let q = self.devs.queue_mut(dev, queue)?;
        if q.stopped {
            return None;
        }
        if let Some(skb) = q.requeued.pop_front() {
            return Some(skb);
        }
        let skb = q.qdisc.dequeue()?;
        let qlen = q.qdisc.len();
        self.trace(Point::QdiscDequeue, skb.id, [u64::from(qlen), 0, 0, 0]);
        Some(skb)
    }

    fn sch_direct_xmit(&mut self, dev: IfIndex, queue: u16, skb: Box<SkBuff>, segs: &mut VecDeque<Box<SkBuff>>) {
        let Some(features) = self.devs.get(dev).map(|d| d.features) else { return self.kfree_skb(skb, DropReason::DevReady) };
        if let Err(skb) = self.validate_xmit_skb(skb, features, segs) {
            self.count_tx_drop(dev, Netdev::TxErrors);
            self.kfree_skb(skb, DropReason::NoMem);
        }
        while let Some(skb) = segs.pop_front() {
            if let Err(skb) = self.dev_hard_start_xmit(dev, queue, skb) {
                // The driver has no room after all: it goes first next time, the rest behind it.
                let Some(device) = self.devs.get_mut(dev) else { return };
                device.stats.inc(Netdev::QdiscRequeues);
                let q = &mut device.queues[usize::from(queue)];
                q.requeued.push_back(skb);
                q.requeued.append(segs);
                self.netif_stop_queue(dev, queue);
            }
        }
    }

    /// Gives a frame to the driver (Linux `dev_hard_start_xmit`, `start_xmit`).
    fn dev_hard_start_xmit(&mut self, dev: IfIndex, queue: u16, skb: Box<SkBuff>) -> Result<(), Box<SkBuff>> {
        let Some(device) = self.devs.get_mut(dev) else { return Err(skb) };
        if device.queues[usize::from(queue)].stopped {
            return Err(skb);
        }
        self.packet_tap_tx(&skb);
        self.trace_start_xmit(&skb, queue);
        let Some(device) = self.devs.get_mut(dev) else { return Err(skb) };
        let Some(driver) = device.driver.as_mut() else { return Err(skb) };
        let (octets, charged, pressed) = (u64::from(skb.len()), skb.is_awaited(), skb.pressed);
        driver.xmit(queue, vnet::from_skb(&skb), skb)?;
        let full = driver.tx_full(queue);
        device.stats.inc(Netdev::TxPackets);
        device.stats.add(Netdev::TxBytes, octets);
        let q = &mut device.queues[usize::from(queue)];
        q.kick = true;
        q.charged += u32::from(charged);
        q.pressed |= pressed;
        self.devs.kick = true;
        if full {
            self.netif_stop_queue(dev, queue);
        }
        Ok(())
    }

    fn trace_start_xmit(&mut self, skb: &SkBuff, queue: u16) {
        let gso_size = skb.gso.map_or(0, |g| g.size);
        self.trace(Point::StartXmit, skb.id, [u64::from(skb.len()), u64::from(queue), u64::from(gso_size), 0]);
    }

    /// Leaves a TX queue to `NET_TX_SOFTIRQ` of this CPU (Linux `__netif_schedule`).
    fn netif_schedule(&mut self, dev: IfIndex, queue: u16) {
        let Some(q) = self.devs.queue_mut(dev, queue) else { return };
        if !core::mem::replace(&mut q.tx_scheduled, true) {
            self.cpu().output_queue.push_back((dev, queue));
            self.raise_softirq(Softirq::NET_TX);
        }
    }

    /// The ring is full: nothing is sent until a completion makes room (Linux `netif_stop_subqueue`).
    fn netif_stop_queue(&mut self, dev: IfIndex, queue: u16) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        let q = &mut device.queues[usize::from(queue)];
        if core::mem::replace(&mut q.stopped, true) {
            return;
        }
        device.stats.inc(Netdev::TxQueueStopped);
        let Some(driver) = device.driver.as_mut() else { return };
        driver.tx_irq(queue, TxIrq::Now);
        // Completions that came before the interrupt was asked for raise none.
        if driver.pending(queue) {
            self.napi_schedule(dev, queue);
        }
    }

    /// There is room again: `NET_TX_SOFTIRQ` goes on (Linux `netif_tx_wake_queue`).
    pub(super) fn netif_wake_queue(&mut self, dev: IfIndex, queue: u16) {
        let Some(q) = self.devs.queue_mut(dev, queue) else { return };
        if core::mem::replace(&mut q.stopped, false) {
            self.netif_schedule(dev, queue);
        }
    }

    /// Rings the doorbell of each queue that was given frames, unless the device is looking anyway or the bell is
    /// about to ring: once an event, and now and then in a long call (Linux `xmit_more`, `virtqueue_kick_prepare`).
    pub(crate) fn ring_doorbells(&mut self) {
        if !core::mem::take(&mut self.devs.kick) {
            return;
        }
        for at in 0..self.devs.len() {
            for queue in 0..self.devs.at(at).queues.len() as u16 {
                let device = self.devs.at_mut(at);
                let index = device.index;
                let q = &mut device.queues[usize::from(queue)];
                if !core::mem::take(&mut q.kick) {
                    continue;
                }
                let Some(driver) = device.driver.as_mut() else { continue };
                let bell = Effect::Doorbell(index, queue);
                if driver.needs_kick(queue) && !self.effects.contains(&bell) {
                    self.effects.push_back(bell);
                    self.trace(Point::Doorbell, 0, [u64::from(queue), 0, 0, 0]);
                }
                self.ask_for_completions(index, queue);
            }
        }
    }

    /// A connection waits for its completions, on whatever queue they are.
    pub(crate) fn ask_for_all_completions(&mut self) {
        for at in 0..self.devs.len() {
            for queue in 0..self.devs.at(at).queues.len() as u16 {
                let index = self.devs.at(at).index;
                self.ask_for_completions(index, queue);
            }
        }
    }

    /// Frees what has been transmitted, on all queues.
    pub(crate) fn reap_all(&mut self) {
        for at in 0..self.devs.len() {
            let index = self.devs.at(at).index;
            for queue in 0..self.devs.at(at).queues.len() as u16 {
                self.free_old_xmit(index, queue);
            }
        }
    }

    /// Packets are charged: an interrupt, sooner or later. Those that are there already raise none; where somebody
    /// waits for them the next softirq takes them.
    fn ask_for_completions(&mut self, dev: IfIndex, queue: u16) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        let q = &device.queues[usize::from(queue)];
        if q.charged == 0 && self.tcp.throttled == 0 || q.napi_scheduled {
            return;
        }
        let irq = q.tx_irq(self.tcp.throttled > 0);
        let Some(driver) = device.driver.as_mut() else { return };
        driver.tx_irq(queue, irq);
        if irq == TxIrq::Now && driver.pending(queue) {
            self.napi_schedule(dev, queue);
        }
    }
}
