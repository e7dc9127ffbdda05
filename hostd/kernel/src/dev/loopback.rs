//! `lo`: what is sent is received, on the same CPU, by way of its backlog.

use super::net_device::IfIndex;
use crate::Kernel;
use crate::cpu::{Napi, Softirq};
use crate::skb::{Checksum, SkBuff};
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Netdev};

/// Octets of an IP packet on `lo`.
pub(super) const MTU: u32 = 65536;

impl Kernel {
    /// Turns a packet around (Linux `loopback_xmit`): no copy, GSO packets stay whole, and a checksum that
    /// nobody can have damaged is not computed. It stands at the Ethernet header.
    pub(super) fn loopback_xmit(&mut self, mut skb: Box<SkBuff>) {
        self.skb_orphan(&mut skb);
        if skb.csum == Checksum::None {
            skb.csum = Checksum::Unnecessary;
        }
        let octets = u64::from(skb.len());
        let lo = self.devs.at_mut(0);
        for (packets, bytes) in [(Netdev::TxPackets, Netdev::TxBytes), (Netdev::RxPackets, Netdev::RxBytes)] {
            lo.stats.inc(packets);
            lo.stats.add(bytes, octets);
        }
        self.eth_type_trans(&mut skb, IfIndex(1));
        self.netif_rx(skb);
    }

    /// Puts a packet into this CPU's backlog (Linux `netif_rx`, `enqueue_to_backlog`).
    pub(crate) fn netif_rx(&mut self, skb: Box<SkBuff>) {
        let limit = self.sysctl.netdev_max_backlog as usize;
        let cpu = self.cpu();
        if cpu.backlog.len() >= limit {
            cpu.stat.backlog_dropped += 1;
            self.devs.at_mut(0).stats.inc(Netdev::RxDropped);
            return self.kfree_skb(skb, DropReason::CpuBacklog);
        }
        cpu.backlog.push_back(skb);
        if !core::mem::replace(&mut cpu.backlog_scheduled, true) {
            cpu.poll_list.push_back(Napi::Backlog);
            self.raise_softirq(Softirq::NET_RX);
        }
    }

    /// True if packets wait in this CPU's backlog.
    pub(crate) fn loopback_pending(&mut self) -> bool {
        !self.cpu().backlog.is_empty()
    }

    /// Takes packets from this CPU's backlog (Linux `process_backlog`): how many, and whether to come again.
    pub(crate) fn process_backlog(&mut self, weight: u32) -> (u32, bool) {
        let mut work = 0;
        while work < weight {
            let Some(mut skb) = self.cpu().backlog.pop_front() else { break };
            skb.tstamp = self.now;
            work += 1;
            self.netif_receive_skb(skb);
        }
        let cpu = self.cpu();
        let again = !cpu.backlog.is_empty();
        cpu.backlog_scheduled = again;
        (work, again)
    }
}
