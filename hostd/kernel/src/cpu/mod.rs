//! Modelled CPUs: hard interrupts, softirqs, accounting.
pub mod sched;

use crate::Kernel;
use crate::dev::net_device::IfIndex;

/// The CPUs of a host and their softirq state.
#[derive(Debug, Default)]
pub struct Cpus {}

impl Kernel {
    /// Takes a device interrupt on its vector's CPU: hard IRQ, then softirqs on exit.
    pub(crate) fn do_irq(&mut self, _dev: IfIndex, _queue: u16) {}
    /// Takes whatever interrupts are pending and not masked, in the middle of a long call. No socket is out.
    pub(crate) fn irq_poll(&mut self) {}
    /// Runs pending softirqs of the current CPU (Linux `do_softirq`). No socket is out.
    pub(crate) fn do_softirq(&mut self) {}
}
