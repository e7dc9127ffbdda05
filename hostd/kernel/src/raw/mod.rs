//! Raw and ping sockets.

use crate::Kernel;
use crate::ip::IcmpError;
use crate::skb::SkBuff;

/// Raw and ping sockets by protocol.
#[derive(Debug, Default)]
pub struct RawTable {}

impl Kernel {
    /// Gives every matching raw socket a clone; `skb` stands at the IP header. True if there was one.
    pub(crate) fn raw_v4_input(&mut self, _skb: &SkBuff) -> bool {
        false
    }
    /// An echo reply for a ping socket; `skb` stands at the ICMP header. True if there was one.
    pub(crate) fn ping_rcv(&mut self, _skb: &SkBuff) -> bool {
        false
    }
    pub(crate) fn ping_err(&mut self, _e: &IcmpError) {}
}
