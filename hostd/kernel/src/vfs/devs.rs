//! Interfaces by name, address and number, as options name them.

use crate::Kernel;
use crate::dev::net_device::IfIndex;
use core::net::Ipv4Addr;

impl Kernel {
    /// Number of the interface of this name.
    pub(crate) fn dev_get_by_name(&self, name: &str) -> Option<u32> {
        self.devs.iter().find(|d| d.name == name).map(|d| d.index.0)
    }

    /// Number of the interface with this address.
    pub(crate) fn dev_get_by_addr(&self, addr: Ipv4Addr) -> Option<u32> {
        self.devs.iter().find(|d| d.addrs.iter().any(|a| a.0 == addr)).map(|d| d.index.0)
    }

    /// Name of an interface.
    pub(crate) fn dev_get_name(&self, index: u32) -> Option<&str> {
        self.devs.get(IfIndex(index)).map(|d| d.name.as_str())
    }
}
