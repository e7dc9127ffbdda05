//! The carrier of a device, and what hangs on it (Linux `net/core/link_watch.c`, `dev_activate`, `dev_deactivate`).
//!
//! Without a carrier the device keeps its addresses and its routes, which are marked
//! `linkdown` and still used, unless `ignore_routes_with_linkdown` is set; neighbours learnt on it are
//! forgotten, unless `arp_evict_nocarrier` is cleared; what waits in its qdisc is dropped, and so is what comes
//! (`noop_qdisc`). With the carrier back the queues go on. Nothing is announced (`arp_notify` is for interfaces that
//! are switched on, and new addresses): the peer is asked for when there is something to send.
//!
//! Deviation: Linux lets up to a second pass between two looks at a link that goes down; here
//! every change is followed at once.

use super::net_device::IfIndex;
use crate::Kernel;
use crate::ip::devconf::Conf;
use crate::ip::route::{Entry, RouteKind};
use crate::trace::Point;
use ringlab_counters::DropReason;

impl Kernel {
    /// The carrier came or went (Linux `netif_carrier_on`, `netif_carrier_off`, `linkwatch_do_dev`).
    pub(crate) fn netif_carrier(&mut self, dev: IfIndex, on: bool) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        if core::mem::replace(&mut device.carrier, on) == on {
            return;
        }
        let (came, went) = &mut device.carrier_changes;
        *if on { came } else { went } += 1;
        self.trace(Point::LinkwatchDoDev, 0, [u64::from(dev.0), u64::from(on), 0, 0]);
        if on {
            self.dev_activate(dev);
        } else {
            self.dev_deactivate(dev);
            if self.in_dev_conf(dev, Conf::ArpEvictNocarrier) != 0 {
                self.neigh_carrier_down(dev);
            }
        }
        self.linkdown_sync();
        self.rtnl_link(dev.0);
    }

    /// True if a route's interface is up and has no carrier (`RTNH_F_LINKDOWN`). Linux leaves out those to the host
    /// itself (`fib_sync_down_dev`).
    pub(crate) fn is_linkdown(&self, route: &Entry) -> bool {
        route.kind != RouteKind::Local && self.devs.get(IfIndex(route.dev)).is_some_and(|d| d.up && !d.carrier)
    }

    /// Transmission goes on (Linux `dev_activate`, `netif_tx_wake_all_queues`).
    fn dev_activate(&mut self, dev: IfIndex) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        // The device may have been reset: its queues have room again, and offers may have changed.
        device.update_features();
        for queue in 0..device.queues.len() as u16 {
            self.netif_wake_queue(dev, queue);
            self.napi_schedule(dev, queue);
        }
    }

    /// Drops what waits to be sent (Linux `dev_deactivate`, `qdisc_reset`).
    pub(crate) fn dev_deactivate(&mut self, dev: IfIndex) {
        self.purge_queues(dev, 0);
    }

    /// Drops what waits in queue `first` and those behind it.
    pub(crate) fn purge_queues(&mut self, dev: IfIndex, first: u16) {
        let queues = self.devs.get(dev).map_or(0, |d| d.queues.len() as u16);
        for queue in first..queues {
            while let Some(q) = self.devs.queue_mut(dev, queue)
                && let Some(skb) = q.requeued.pop_front().or_else(|| q.qdisc.dequeue())
            {
                self.kfree_skb(skb, DropReason::QueuePurge);
            }
        }
    }
}
