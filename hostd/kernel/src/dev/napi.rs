//! NAPI: the poll of a queue pair (Linux `virtnet_poll`).

use super::net_device::{IfIndex, RxFrame};
use crate::Kernel;
use crate::skb::SkBuff;
use crate::trace::Point;
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Netdev};

impl Kernel {
    /// Reaps TX completions, takes up to `weight` frames, refills the ring, and, if that was all,
    /// completes and unmasks the interrupt. Returns the frames taken and whether to poll again.
    pub(crate) fn napi_poll(&mut self, dev: IfIndex, queue: u16, weight: u32) -> (u32, bool) {
        let reaped = self.free_old_xmit(dev, queue);
        let mut work = 0;
        while work < weight {
            let Some(driver) = self.devs.get_mut(dev).and_then(|d| d.driver.as_mut()) else { break };
            let Some(frame) = driver.rx(queue) else { break };
            work += 1;
            self.receive_buf(dev, queue, frame);
        }
        if work > 0
            && let Some(driver) = self.devs.get_mut(dev).and_then(|d| d.driver.as_mut())
        {
            driver.rx_refill(queue);
        }
        self.trace(Point::NapiPoll, 0, [u64::from(queue), u64::from(work), u64::from(weight), 0]);
        if work == weight {
            self.gro_flush(dev, queue, false);
            return (work, true);
        }
        self.gro_flush(dev, queue, true);
        (work, !self.napi_complete_done(dev, queue, work.max(reaped)))
    }

    /// Unmasks the interrupt (Linux `napi_complete_done`, `virtqueue_enable_cb`). False if work arrived in
    /// between, for which no interrupt may come: the poll stays scheduled.
    fn napi_complete_done(&mut self, dev: IfIndex, queue: u16, work: u32) -> bool {
        self.trace(Point::NapiComplete, 0, [u64::from(queue), u64::from(work), 0, 0]);
        let Some(device) = self.devs.get_mut(dev) else { return true };
        let Some(driver) = device.driver.as_mut() else { return true };
        let q = &mut device.queues[usize::from(queue)];
        driver.tx_irq(queue, q.tx_irq(self.tcp.throttled > 0));
        q.napi_scheduled = false;
        if !driver.irq_enable(queue) {
            return true;
        }
        q.napi_scheduled = true;
        driver.irq_disable(queue);
        false
    }

    /// Frees what has been transmitted and wakes a stopped queue that has room again: how many packets.
    pub(super) fn free_old_xmit(&mut self, dev: IfIndex, queue: u16) -> u32 {
        let mut packets = 0;
        loop {
            let Some(device) = self.devs.get_mut(dev) else { return 0 };
            let Some(driver) = device.driver.as_mut() else { return 0 };
            let Some(skb) = driver.tx_done(queue) else { break };
            packets += 1;
            if skb.is_awaited() {
                let q = &mut device.queues[usize::from(queue)];
                q.charged = q.charged.saturating_sub(1);
                q.pressed &= q.charged > 0;
            }
            self.consume_skb(skb);
        }
        if packets > 0 {
            self.trace(Point::TxClean, 0, [u64::from(queue), u64::from(packets), 0, 0]);
        }
        let room = self.devs.get(dev).and_then(|d| d.driver.as_ref()).is_some_and(|d| !d.tx_full(queue));
        if room && self.devs.queue_mut(dev, queue).is_some_and(|q| q.stopped) {
            self.netif_wake_queue(dev, queue);
        }
        packets
    }

    /// Wraps the buffers of a frame in a packet, without a copy, and hands it on (Linux `receive_buf`).
    fn receive_buf(&mut self, dev: IfIndex, queue: u16, mut frame: RxFrame) {
        let mut skb = self.alloc_skb();
        let buffers = frame.frags.len() as u64;
        for frag in frame.frags.drain(..) {
            // Cannot fail: as many fragments as the frame has, into an empty packet.
            skb.append(frag);
        }
        skb.queue = queue;
        skb.tstamp = self.now;
        self.trace(Point::RxDma, skb.id, [u64::from(skb.len()), u64::from(queue), buffers, 0]);
        if let Some(device) = self.devs.get_mut(dev) {
            device.stats.inc(Netdev::RxPackets);
            device.stats.add(Netdev::RxBytes, u64::from(skb.len()));
        }
        if skb.len() < crate::ether::header::LEN as u32 {
            return self.rx_error(dev, skb, Netdev::RxLengthErrors, DropReason::DevHdr);
        }
        if super::vnet::to_skb(&frame.hdr, &mut skb).is_err() {
            return self.rx_error(dev, skb, Netdev::RxFrameErrors, DropReason::DevHdr);
        }
        self.eth_type_trans(&mut skb, dev);
        self.napi_gro_receive(dev, queue, skb);
    }

    fn rx_error(&mut self, dev: IfIndex, skb: Box<SkBuff>, kind: Netdev, reason: DropReason) {
        if let Some(device) = self.devs.get_mut(dev) {
            device.stats.inc(Netdev::RxErrors);
            device.stats.inc(kind);
        }
        self.kfree_skb(skb, reason);
    }
}
