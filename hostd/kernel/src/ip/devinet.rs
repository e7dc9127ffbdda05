//! Addresses of interfaces (Linux `devinet.c`), and the routes that come and go with them (`fib_frontend.c`).

use super::route::{Entry, IFA_F_PERMANENT, IFA_F_SECONDARY, IfAddr, PROT_KERNEL, in_prefix, scope};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

impl Kernel {
    /// An address with a prefix, nothing else said.
    pub(crate) fn inet_ifa(&self, dev: IfIndex, addr: Ipv4Addr, len: u8) -> IfAddr {
        let label = self.devs.get(dev).map_or_else(String::new, |d| d.name.clone());
        let scope = if addr.is_loopback() { scope::HOST } else { scope::UNIVERSE };
        let flags = IFA_F_PERMANENT;
        IfAddr { dev: dev.0, addr, len: len.min(32), peer: addr, broadcast: None, scope, label, flags, created: self.now }
    }

    /// Gives an interface an address (Linux `__inet_insert_ifa`): local, broadcast and connected routes come with it.
    ///
    /// # Errors
    /// `ENODEV`, `EEXIST`.
    pub(crate) fn inet_insert_ifa(&mut self, mut ifa: IfAddr) -> Result<(), Errno> {
        let dev = ifa.dev;
        if self.devs.get(IfIndex(dev)).is_none() {
            return Err(Errno::ENODEV);
        }
        let same_net = |a: &&IfAddr| a.dev == dev && a.len == ifa.len && in_prefix(a.peer, ifa.peer, ifa.len);
        ifa.flags &= !IFA_F_SECONDARY;
        if self.fib.addrs().filter(same_net).any(|a| a.addr == ifa.addr) {
            return Err(Errno::EEXIST);
        }
        if self.fib.addrs().any(|a| same_net(&a)) {
            ifa.flags |= IFA_F_SECONDARY;
        }
        self.fib.insert_addr(ifa.clone());
        self.inet_changed(dev);
        self.rtnl_addr(true, &ifa);
        self.fib_sync(dev);
        Ok(())
    }

    /// Takes an address away, and with a primary one all secondary ones of its subnet (Linux `__inet_del_ifa`).
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` if no address `matches`.
    pub(crate) fn inet_del_ifa(&mut self, matches: impl Fn(&IfAddr) -> bool) -> Result<(), Errno> {
        let ifa = self.fib.addrs().find(|a| matches(a)).ok_or(Errno::EADDRNOTAVAIL)?.clone();
        let primary = ifa.flags & IFA_F_SECONDARY == 0;
        let goes = |a: &IfAddr| {
            let dependent = primary && a.flags & IFA_F_SECONDARY != 0 && a.len == ifa.len && in_prefix(a.peer, ifa.peer, ifa.len);
            a.dev == ifa.dev && (*a == ifa || dependent)
        };
        let gone = self.fib.remove_addrs(goes);
        self.inet_changed(ifa.dev);
        for a in gone.iter().rev() {
            self.rtnl_addr(false, a);
        }
        self.fib_sync(ifa.dev);
        let still_local = |addr: Ipv4Addr, fib: &super::Fib| fib.addrs().any(|a| a.addr == addr);
        for a in gone {
            if !still_local(a.addr, &self.fib) {
                self.fib_flush(|e| e.src == a.addr);
            }
        }
        if !self.fib.addrs().any(|a| a.dev == ifa.dev) {
            self.fib_disable_ip(IfIndex(ifa.dev));
        }
        Ok(())
    }

    /// The interface has no address any more, or is off (Linux `fib_disable_ip`): what an administrator's routes say of it goes without
    /// a word, and with it what is known of its neighbours.
    pub(crate) fn fib_disable_ip(&mut self, dev: IfIndex) {
        self.fib.flush(|e| e.dev == dev.0 && e.proto != PROT_KERNEL);
        self.neigh_ifdown(dev);
    }

    /// The interface's own list follows the table of addresses.
    fn inet_changed(&mut self, dev: u32) {
        let addrs = self.fib.addrs().filter(|a| a.dev == dev).map(|a| (a.addr, a.len)).collect();
        if let Some(device) = self.devs.get_mut(IfIndex(dev)) {
            device.addrs = addrs;
        }
    }

    /// Makes the kernel's own routes of an interface what its addresses and its state say.
    pub(crate) fn fib_sync(&mut self, dev: u32) {
        let Some(device) = self.devs.get(IfIndex(dev)) else { return };
        let (mut gone, fresh) = self.fib.sync(dev, device.up, device.is_loopback());
        // Linux takes away in the other order than it adds: connected, broadcast, local.
        gone.reverse();
        self.rtnl_routes(false, &gone);
        self.rtnl_routes(true, &fresh);
    }

    /// Removes routes of the main table that `goes` picks (Linux `fib_table_flush`).
    pub(crate) fn fib_flush(&mut self, goes: impl Fn(&Entry) -> bool) {
        let gone: Vec<(bool, Entry)> = self.fib.flush(goes).into_iter().map(|e| (false, e)).collect();
        self.rtnl_routes(false, &gone);
    }
}
