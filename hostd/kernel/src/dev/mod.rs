//! Network devices: table, receive and transmit.
pub mod net_device;

use crate::Kernel;
use crate::skb::SkBuff;
use alloc::boxed::Box;

/// The interfaces of a host.
#[derive(Debug, Default)]
pub struct Devices {}

impl Kernel {
    /// Hands a complete frame to its device's qdisc (Linux `dev_queue_xmit`).
    pub(crate) fn dev_queue_xmit(&mut self, _skb: Box<SkBuff>) {}
}
