//! Taps: where packets are shown (Linux `deliver_skb` in `__netif_receive_skb_core`, `dev_queue_xmit_nit`).

use super::bpf::Context;
use super::{ARPHRD_ETHER, ARPHRD_LOOPBACK, Meta, link_addr};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::ether::header;
use crate::skb::{Checksum, PacketType, SkBuff};
use crate::sock::{Proto, Sock, SockId};
use crate::syscall::AuxData;
use alloc::boxed::Box;
use ringlab_counters::DropReason;

/// `TP_STATUS_*`.
const STATUS_USER: u32 = 1;
const STATUS_CSUMNOTREADY: u32 = 8;
const STATUS_CSUM_VALID: u32 = 0x80;

impl Kernel {
    /// Shows a received packet, which stands at its network header, to whom it concerns.
    #[inline]
    pub(crate) fn packet_tap_rx(&mut self, skb: &SkBuff) {
        if !self.packet.all.is_empty() || !self.packet.typed.is_empty() {
            self.packet_show_rx(skb);
        }
    }

    #[cold]
    fn packet_show_rx(&mut self, skb: &SkBuff) {
        let mut frame = self.skb_clone(skb);
        // The Ethernet header lies in front, unless the packet was made of pieces or never had one.
        if skb.mac_back < header::LEN as u32 || !frame.unpull(header::LEN as u32) {
            return self.consume_skb(frame);
        }
        frame.shift_csum(header::LEN as i32);
        let mut at = 0;
        while let Some(&id) = self.packet.all.get(at) {
            at += 1;
            self.packet_rcv(id, &frame);
        }
        let mut at = 0;
        while let Some(&(protocol, id)) = self.packet.typed.get(at) {
            at += 1;
            if protocol == skb.protocol {
                self.packet_rcv(id, &frame);
            }
        }
        self.consume_skb(frame);
    }

    /// Shows a frame that goes to the driver now; it stands at its Ethernet header.
    #[inline]
    pub(crate) fn packet_tap_tx(&mut self, skb: &SkBuff) {
        if !self.packet.all.is_empty() {
            self.packet_show_tx(skb);
        }
    }

    #[cold]
    fn packet_show_tx(&mut self, skb: &SkBuff) {
        let (now, owner) = (self.now, skb.owner);
        let mut copy = self.alloc_skb();
        if !copy.alloc_head(&self.config.pool, 0, skb.len()) {
            return self.kfree_skb(copy, DropReason::NoMem);
        }
        skb.for_each(0, skb.len(), |s| {
            s.copy_to(&copy.put(s.len() as u32));
        });
        self.count_copy(skb.len());
        skb.clone_metadata_to(&mut copy);
        (copy.csum, copy.gso) = (skb.csum, skb.gso);
        copy.pkt_type = PacketType::Outgoing;
        copy.tstamp = now;
        let mut at = 0;
        while let Some(&id) = self.packet.all.get(at) {
            at += 1;
            // Not back to who sent it. A sender in its call is out of the table.
            let wanted = |sk: &Sock| matches!(&sk.proto, Proto::Packet(po) if !po.ignore_outgoing);
            if id.0 != owner && self.socks.get(id).is_some_and(wanted) {
                self.packet_rcv(id, &copy);
            }
        }
        self.consume_skb(copy);
    }

    /// Filters a frame for a socket and queues it, or puts it into its ring (Linux `packet_rcv`, `tpacket_rcv`).
    fn packet_rcv(&mut self, id: SockId, frame: &SkBuff) {
        let Some(sk) = self.socks.get(id) else { return };
        if sk.bound_dev_if != 0 && sk.bound_dev_if != frame.dev || frame.pkt_type == PacketType::Loopback {
            return;
        }
        let Proto::Packet(po) = &sk.proto else { return };
        let (cooked, filter) = (po.cooked, sk.filter.clone());
        let loopback = self.devs.get(IfIndex(frame.dev)).is_some_and(|d| d.is_loopback());
        let mut skb = self.skb_clone(frame);
        if cooked {
            let _ = skb.pull(header::LEN as u32);
        }
        let mut keep = u32::MAX;
        if let Some(filter) = filter {
            let hatype = if loopback { ARPHRD_LOOPBACK } else { ARPHRD_ETHER };
            let net_off = if cooked { 0 } else { header::LEN as u32 };
            let random = rand_core::Rng::next_u32(&mut self.rng);
            keep = filter.run(&skb, &Context { net_off, hatype, cpu: self.this_cpu, random });
        }
        if keep == 0 {
            return self.consume_skb(skb);
        }
        let mut src = [0; 6];
        let _ = frame.copy_bits(6, &mut src);
        let net = if cooked { 0 } else { header::LEN as u16 };
        let status = match frame.csum {
            Checksum::Partial { .. } => STATUS_USER | STATUS_CSUMNOTREADY,
            Checksum::Unnecessary if frame.pkt_type != PacketType::Outgoing => STATUS_USER | STATUS_CSUM_VALID,
            _ => STATUS_USER,
        };
        let aux = AuxData { status, len: skb.len(), snaplen: skb.len().min(keep), mac: 0, net, vlan_tci: 0, vlan_tpid: 0 };
        let meta = Meta { from: link_addr(frame, loopback, src), aux };
        skb.trim(keep);
        let mut sk = self.socks.take(id).expect("looked up above");
        self.packet_queue(&mut sk, skb, meta);
        self.socks.put(sk);
    }

    fn packet_queue(&mut self, sk: &mut Sock, skb: Box<SkBuff>, meta: Meta) {
        let offset = self.realtime_offset;
        let (room, rmem) = (sk.rcvbuf, sk.rmem_alloc);
        let Ok(po) = super::po(sk) else { return };
        po.packets = po.packets.wrapping_add(1);
        if let Some(ring) = &mut po.ring {
            let losing = po.dropped > 0;
            let done = ring.put(&skb, &meta.from, &meta.aux, skb.tstamp.0 + offset, losing);
            if done {
                self.count_copy(skb.len());
                self.consume_skb(skb);
                return self.packet_ring_news(sk);
            }
        } else if rmem < room {
            po.metas.push_back(meta);
            return self.dgram_queue(sk, skb);
        }
        if let Ok(po) = super::po(sk) {
            po.dropped = po.dropped.wrapping_add(1);
        }
        sk.drops = sk.drops.wrapping_add(1);
        self.kfree_skb(skb, DropReason::SocketRcvbuff);
    }
}
