//! Settings of IPv4 for each interface, `net.ipv4.conf` (Linux `struct ipv4_devconf`).
//!
//! There is a set of values for each interface, one for `all` of them, and the `default` from which an interface
//! gets its own when it is made. How `all` and an interface's own value make one differs from row to row. What is
//! not in the table does not exist.

use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::sysctl::SysctlError;
use alloc::string::ToString;
use alloc::vec::Vec;

/// A row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conf {
    Forwarding,
    SendRedirects,
    RpFilter,
    ArpFilter,
    ArpAnnounce,
    ArpIgnore,
    ArpAccept,
    ArpNotify,
    AcceptLocal,
    IgnoreRoutesWithLinkdown,
    DropUnicastInL2Multicast,
    DropGratuitousArp,
    ArpEvictNocarrier,
}

/// How the value for `all` and an interface's own make one (Linux `IN_DEV_CONF_GET`, `_ORCONF`, `_MAXCONF`, `_ANDCONF`).
#[derive(Debug, Clone, Copy)]
enum Join {
    Own,
    Or,
    Max,
    And,
}

/// Name, number among `IPV4_DEVCONF_*`, default.
struct Row {
    conf: Conf,
    name: &'static str,
    number: u8,
    default: i32,
    join: Join,
}

const fn row(conf: Conf, name: &'static str, number: u8, default: i32, join: Join) -> Row {
    Row { conf, name, number, default, join }
}

const ROWS: [Row; 13] = [
    row(Conf::Forwarding, "forwarding", 1, 0, Join::Own),
    row(Conf::SendRedirects, "send_redirects", 6, 1, Join::Or),
    row(Conf::RpFilter, "rp_filter", 8, 0, Join::Max),
    row(Conf::ArpFilter, "arp_filter", 13, 0, Join::Or),
    row(Conf::ArpAnnounce, "arp_announce", 18, 0, Join::Max),
    row(Conf::ArpIgnore, "arp_ignore", 19, 0, Join::Max),
    row(Conf::ArpAccept, "arp_accept", 21, 0, Join::Max),
    row(Conf::ArpNotify, "arp_notify", 22, 0, Join::Max),
    row(Conf::AcceptLocal, "accept_local", 23, 0, Join::Or),
    row(Conf::IgnoreRoutesWithLinkdown, "ignore_routes_with_linkdown", 29, 0, Join::Or),
    row(Conf::DropUnicastInL2Multicast, "drop_unicast_in_l2_multicast", 30, 0, Join::Or),
    row(Conf::DropGratuitousArp, "drop_gratuitous_arp", 31, 0, Join::Or),
    row(Conf::ArpEvictNocarrier, "arp_evict_nocarrier", 33, 1, Join::And),
];

/// The values of one set, in the order of [`Conf`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct DevConf([i32; ROWS.len()]);

impl Default for DevConf {
    fn default() -> Self {
        Self(core::array::from_fn(|i| ROWS[i].default))
    }
}

impl DevConf {
    /// Numbers (`IPV4_DEVCONF_*`) and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, i32)> {
        ROWS.iter().map(|r| (r.number, self.0[r.conf as usize]))
    }
}

/// Whose values: a folder of `net.ipv4.conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    All,
    Default,
    Dev(IfIndex),
}

/// The sets that belong to no interface.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DevConfs {
    all: DevConf,
    /// What a new interface gets.
    pub(crate) default: DevConf,
}

impl Conf {
    /// The row of this name.
    pub(crate) fn named(name: &str) -> Option<Conf> {
        ROWS.iter().find(|r| r.name == name).map(|r| r.conf)
    }

    /// All names.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        ROWS.iter().map(|r| r.name)
    }
}

impl Kernel {
    /// What holds for an interface.
    pub(crate) fn in_dev_conf(&self, dev: IfIndex, conf: Conf) -> i32 {
        let (all, at) = (self.devconf.all.0[conf as usize], conf as usize);
        let own = self.devs.get(dev).map_or(0, |d| d.conf.0[at]);
        match ROWS[at].join {
            Join::Own => own,
            Join::Or => i32::from(all != 0 || own != 0),
            Join::Max => all.max(own),
            Join::And => i32::from(all != 0 && own != 0),
        }
    }

    /// A folder of `net.ipv4.conf` by its name.
    pub(crate) fn devconf_whose(&self, name: &str) -> Option<Whose> {
        match name {
            "all" => Some(Whose::All),
            "default" => Some(Whose::Default),
            dev => self.dev_get_by_name(dev).map(|d| Whose::Dev(IfIndex(d))),
        }
    }

    /// A value as `sysctl -n` prints it.
    pub(crate) fn devconf_get(&self, whose: Whose, conf: Conf) -> i32 {
        let set = match whose {
            Whose::All => Some(&self.devconf.all),
            Whose::Default => Some(&self.devconf.default),
            Whose::Dev(dev) => self.devs.get(dev).map(|d| &d.conf),
        };
        set.map_or(0, |s| s.0[conf as usize])
    }

    /// Sets a value from its text (Linux `devinet_conf_proc`, `devinet_sysctl_forward`).
    ///
    /// # Errors
    /// [`SysctlError::Invalid`]; nothing is changed then.
    pub(crate) fn devconf_set(&mut self, whose: Whose, conf: Conf, text: &str) -> Result<(), SysctlError> {
        let name = ROWS[conf as usize].name;
        let takes = || "a number of 32 bits".to_string();
        let value: i32 = text.trim().parse().map_err(|_| SysctlError::Invalid { name, takes: takes(), value: text.to_string() })?;
        if conf == Conf::Forwarding && whose == Whose::All {
            self.set_ip_forward(value != 0);
            return Ok(());
        }
        let at = conf as usize;
        match whose {
            Whose::All => self.devconf.all.0[at] = value,
            Whose::Default => {
                self.devconf.default.0[at] = value;
                // Interfaces without an address have not made the values their own.
                for d in self.devs.iter_mut().filter(|d| d.addrs.is_empty()) {
                    d.conf.0[at] = value;
                }
            }
            Whose::Dev(dev) => {
                if let Some(d) = self.devs.get_mut(dev) {
                    d.conf.0[at] = value;
                }
            }
        }
        self.linkdown_sync();
        Ok(())
    }

    /// `net.ipv4.ip_forward`: for all interfaces, and those to come (Linux `inet_forward_change`).
    pub(crate) fn set_ip_forward(&mut self, on: bool) {
        let at = Conf::Forwarding as usize;
        self.sysctl.ip_forward = on.into();
        self.devconf.all.0[at] = on.into();
        self.devconf.default.0[at] = on.into();
        for d in self.devs.iter_mut() {
            d.conf.0[at] = on.into();
        }
        self.rt_cache_flush();
    }

    /// Which interfaces' routes are passed over for want of a carrier.
    pub(crate) fn linkdown_sync(&mut self) {
        let ignored = |d: &&crate::dev::NetDevice| d.up && !d.carrier && self.in_dev_conf(d.index, Conf::IgnoreRoutesWithLinkdown) != 0;
        let ignored: Vec<u32> = self.devs.iter().filter(ignored).map(|d| d.index.0).collect();
        self.fib.set_ignored(ignored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_their_numbers_in_the_enum() {
        assert!(ROWS.iter().enumerate().all(|(i, r)| r.conf as usize == i && Conf::named(r.name) == Some(r.conf)));
    }
}
