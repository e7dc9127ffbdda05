//! Hard interrupts: almost nothing happens here.

use super::{Napi, Softirq};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::trace::Point;

impl Kernel {
    /// Takes a device interrupt on its vector's CPU (Linux `common_interrupt`, `vring_interrupt`):
    /// masks the queue, schedules its poll, and runs softirqs on the way out.
    pub(crate) fn do_irq(&mut self, dev: IfIndex, queue: u16) {
        let count = self.cpus.count();
        let Some(q) = self.devs.queue_mut(dev, queue) else { return };
        let cpu = q.irq_cpu % count;
        q.irq_counts[usize::from(cpu)] += 1;
        let vector = q.vector;
        let interrupted = core::mem::replace(&mut self.this_cpu, cpu);
        self.cpu_stat().hardirqs += 1;
        self.trace(Point::HardIrq, 0, [u64::from(vector), u64::from(queue), 0, 0]);
        self.napi_schedule(dev, queue);
        self.irq_exit();
        self.this_cpu = interrupted;
    }

    /// Takes whatever interrupts are pending and not masked, in the middle of a long call. No socket is out.
    /// What was sent so far is shown to the devices: their completions are among those interrupts.
    pub(crate) fn irq_poll(&mut self) {
        self.ring_doorbells();
        for dev in 0..self.devs.len() {
            for queue in 0..self.devs.at(dev).queues.len() as u16 {
                let device = self.devs.at_mut(dev);
                let idle = !device.queues[usize::from(queue)].napi_scheduled;
                if idle && device.driver.as_mut().is_some_and(|d| d.pending(queue)) {
                    let index = device.index;
                    self.do_irq(index, queue);
                }
            }
        }
        self.do_softirq();
    }

    /// Puts a queue pair on this CPU's poll list, its interrupt masked, unless it is on one already
    /// (Linux `napi_schedule_irqoff`).
    pub(crate) fn napi_schedule(&mut self, dev: IfIndex, queue: u16) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        let Some(q) = device.queues.get_mut(usize::from(queue)) else { return };
        if core::mem::replace(&mut q.napi_scheduled, true) {
            return;
        }
        if let Some(driver) = device.driver.as_mut() {
            driver.irq_disable(queue);
        }
        self.trace(Point::NapiSchedule, 0, [u64::from(queue), 0, 0, 0]);
        self.cpu().poll_list.push_back(Napi::Queue(dev, queue));
        self.raise_softirq(Softirq::NET_RX);
    }

    fn irq_exit(&mut self) {
        if !self.cpu().in_softirq {
            self.do_softirq();
        }
    }
}
