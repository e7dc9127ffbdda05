//! What an administrator changes of an interface: up and down, MTU, address, name, queue length
//! (Linux `net/core/dev.c`). Whoever asks has checked the values.

use super::net_device::{IfIndex, MacAddr};
use crate::Kernel;
use crate::errno::Errno;
use alloc::string::String;

impl Kernel {
    /// Switches an interface on or off (Linux `dev_open`, `dev_close`).
    pub(crate) fn dev_set_up(&mut self, dev: IfIndex, up: bool) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        if core::mem::replace(&mut device.up, up) == up {
            return;
        }
        let queues = device.queues.len() as u16;
        if up {
            self.linkdown_sync();
            self.fib_sync(dev.0);
            self.rtnl_link(dev.0);
            self.arp_notify(dev);
            for queue in 0..queues {
                self.netif_wake_queue(dev, queue);
                self.napi_schedule(dev, queue);
            }
            return;
        }
        self.dev_deactivate(dev);
        self.neigh_ifdown(dev);
        self.rtnl_link(dev.0);
        // Its addresses stay.
        self.fib_disable_ip(dev);
        let loopback = dev.0 == 1;
        self.fib.sync(dev.0, false, loopback);
        self.linkdown_sync();
    }

    /// Linux `dev_set_mtu`.
    pub(crate) fn dev_set_mtu(&mut self, dev: IfIndex, mtu: u32) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        if core::mem::replace(&mut device.mtu, mtu) != mtu {
            self.fib.set_mtu(dev.0, mtu);
            self.rtnl_link(dev.0);
        }
    }

    /// Linux `dev_set_mac_address`: what was learnt through the old address is forgotten (`neigh_changeaddr`).
    pub(crate) fn dev_set_mac_address(&mut self, dev: IfIndex, mac: MacAddr) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        device.mac = mac;
        self.neigh_ifdown(dev);
        self.rt_cache_flush();
        self.rtnl_link(dev.0);
        self.arp_notify(dev);
    }

    /// Linux `dev_change_name`. Labels of addresses follow.
    pub(crate) fn dev_change_name(&mut self, dev: IfIndex, name: String) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        let old = core::mem::replace(&mut device.name, name);
        self.fib.relabel(dev.0, &old, &device.name);
        self.rtnl_link(dev.0);
    }

    /// Uses the first queue pairs only (Linux `netif_set_real_num_tx_queues`): what waits to be sent by others is dropped.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn dev_set_queue_pairs(&mut self, dev: IfIndex, pairs: u16) -> Result<(), Errno> {
        let device = self.devs.get_mut(dev).ok_or(Errno::ENODEV)?;
        device.driver.as_mut().ok_or(Errno::EOPNOTSUPP)?.use_queue_pairs(pairs)?;
        device.real_queues = pairs;
        self.purge_queues(dev, pairs);
        Ok(())
    }

    /// Linux `dev_change_tx_queue_len`: what waits stays, also beyond a lower limit.
    pub(crate) fn dev_set_tx_queue_len(&mut self, dev: IfIndex, len: u32) {
        let Some(device) = self.devs.get_mut(dev) else { return };
        device.tx_queue_len = len;
        for queue in &mut device.queues {
            queue.qdisc.set_limit(len);
        }
        self.rtnl_link(dev.0);
    }
}
