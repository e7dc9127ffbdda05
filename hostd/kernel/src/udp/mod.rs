//! UDP.

use crate::Kernel;
use crate::ip::IcmpError;
use crate::skb::SkBuff;
use alloc::boxed::Box;

/// `struct udp_sock`.
#[derive(Debug, Default)]
pub struct UdpSock {}
/// Bound UDP ports.
#[derive(Debug, Default)]
pub struct UdpTable {}

impl Kernel {
    pub(crate) fn udp_rcv(&mut self, skb: Box<SkBuff>) {
        self.consume_skb(skb);
    }
    pub(crate) fn udp_err(&mut self, _e: &IcmpError) {}
}
