//! From the driver to the protocol: `eth_type_trans`, `netif_receive_skb`.

use super::header::{self, BROADCAST, ETH_P_ARP, ETH_P_IP, EtherHdr};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::skb::{PacketType, SkBuff};
use crate::trace::Point;
use alloc::boxed::Box;
use ringlab_counters::{DropReason, Netdev};

impl Kernel {
    /// Reads and pulls the Ethernet header, which is there (Linux `eth_type_trans`).
    pub(crate) fn eth_type_trans(&mut self, skb: &mut SkBuff, dev: IfIndex) {
        let mut b = [0; header::LEN];
        let short = skb.copy_bits(0, &mut b).is_err();
        debug_assert!(!short, "the driver refuses frames without a header");
        let hdr = EtherHdr::parse(&b);
        skb.dev = dev.0;
        skb.protocol = hdr.protocol;
        skb.mac_back = 0;
        let _ = skb.pull(header::LEN as u32);
        skb.network_back = 0;
        skb.shift_csum(-(header::LEN as i32));
        let mac = self.devs.get(dev).map(|d| d.mac).unwrap_or_default();
        skb.pkt_type = if hdr.dst == mac {
            PacketType::Host
        } else if hdr.dst == BROADCAST {
            PacketType::Broadcast
        } else if hdr.dst.0[0] & 1 != 0 {
            PacketType::Multicast
        } else {
            PacketType::OtherHost
        };
        if skb.pkt_type == PacketType::Multicast
            && let Some(device) = self.devs.get_mut(dev)
        {
            device.stats.inc(Netdev::Multicast);
        }
    }

    /// Gives a packet to the protocol of its EtherType (Linux `__netif_receive_skb_core`).
    pub(crate) fn netif_receive_skb(&mut self, skb: Box<SkBuff>) {
        self.trace(Point::NetifReceive, skb.id, [u64::from(skb.len()), u64::from(skb.protocol), 0, 0]);
        if !self.devs.get(IfIndex(skb.dev)).is_some_and(|d| d.up) {
            return self.kfree_skb(skb, DropReason::DevReady);
        }
        self.packet_tap_rx(&skb);
        match skb.protocol {
            ETH_P_IP => self.ip_rcv(skb),
            ETH_P_ARP => self.arp_rcv(skb),
            _ => {
                if let Some(device) = self.devs.get_mut(IfIndex(skb.dev)) {
                    device.stats.inc(Netdev::RxDropped);
                }
                self.kfree_skb(skb, DropReason::UnhandledProto);
            }
        }
    }
}
