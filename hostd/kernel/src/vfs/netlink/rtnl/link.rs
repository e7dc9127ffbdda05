//! Links: `ip link`, `getifaddrs`, `if_nameindex`.

use super::super::request::{Answer, Refusal, Request, refuse};
use super::super::wire::{Attrs, Message, flag, word};
use super::{AF_BRIDGE, AF_INET, AF_UNSPEC, rtm};
use crate::Kernel;
use crate::dev::NetDevice;
use crate::dev::net_device::{IfIndex, MacAddr};
use crate::errno::Errno;
use alloc::string::String;
use alloc::vec::Vec;
use ringlab_counters::Netdev;

/// Octets of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// Octets of a name with its end.
const IFNAMSIZ: usize = 16;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
/// `RTEXT_FILTER_SKIP_STATS`.
const SKIP_STATS: u32 = 8;
const MIN_MTU: u32 = 68;
const MAX_MTU: u32 = 65535;
const GSO_MAX_SIZE: u32 = 65536;
const GSO_MAX_SEGS: u32 = 65535;
const TSO_MAX_SIZE: u32 = 524_280;

/// `IFF_*`.
pub(crate) mod iff {
    pub(crate) const UP: u32 = 1;
    pub(crate) const BROADCAST: u32 = 2;
    pub(crate) const LOOPBACK: u32 = 8;
    pub(crate) const RUNNING: u32 = 0x40;
    pub(crate) const MULTICAST: u32 = 0x1000;
    pub(crate) const LOWER_UP: u32 = 0x10000;
    /// Of the device's state, not to be set.
    pub(crate) const VOLATILE: u32 = LOOPBACK | RUNNING | BROADCAST | LOWER_UP;
}

/// `IFLA_*`.
mod ifla {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const BROADCAST: u16 = 2;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const QDISC: u16 = 6;
    pub(super) const STATS: u16 = 7;
    pub(super) const MASTER: u16 = 10;
    pub(super) const TXQLEN: u16 = 13;
    pub(super) const OPERSTATE: u16 = 16;
    pub(super) const LINKMODE: u16 = 17;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const STATS64: u16 = 23;
    pub(super) const AF_SPEC: u16 = 26;
    pub(super) const GROUP: u16 = 27;
    pub(super) const EXT_MASK: u16 = 29;
    pub(super) const PROMISCUITY: u16 = 30;
    pub(super) const NUM_TX_QUEUES: u16 = 31;
    pub(super) const NUM_RX_QUEUES: u16 = 32;
    pub(super) const CARRIER: u16 = 33;
    pub(super) const CARRIER_CHANGES: u16 = 35;
    pub(super) const PROTO_DOWN: u16 = 39;
    pub(super) const GSO_MAX_SEGS: u16 = 40;
    pub(super) const GSO_MAX_SIZE: u16 = 41;
    pub(super) const XDP: u16 = 43;
    pub(super) const CARRIER_UP_COUNT: u16 = 47;
    pub(super) const CARRIER_DOWN_COUNT: u16 = 48;
    pub(super) const MIN_MTU: u16 = 50;
    pub(super) const MAX_MTU: u16 = 51;
    pub(super) const ALT_IFNAME: u16 = 53;
    pub(super) const PERM_ADDRESS: u16 = 54;
    pub(super) const GRO_MAX_SIZE: u16 = 58;
    pub(super) const TSO_MAX_SIZE: u16 = 59;
    pub(super) const TSO_MAX_SEGS: u16 = 60;
    pub(super) const ALLMULTI: u16 = 61;
}

impl NetDevice {
    /// `ifi_flags`.
    pub(crate) fn flags(&self) -> u32 {
        let kind = if self.is_loopback() { iff::LOOPBACK } else { iff::BROADCAST | iff::MULTICAST };
        let up = if self.up { iff::UP } else { 0 };
        let running = if self.up && self.carrier { iff::RUNNING | iff::LOWER_UP } else { 0 };
        kind | up | running
    }

    /// `ARPHRD_*`.
    pub(crate) fn hw_type(&self) -> u16 {
        if self.is_loopback() { ARPHRD_LOOPBACK } else { ARPHRD_ETHER }
    }

    /// The root qdisc's name.
    pub(crate) fn qdisc_name(&self) -> &'static str {
        match self.queues.len() {
            _ if self.is_loopback() => "noqueue",
            0 | 1 => "pfifo_fast",
            _ => "mq",
        }
    }

    /// `struct rtnl_link_stats64`. What only the NIC knows is 0, as with Linux's virtio driver.
    pub(crate) fn stats64(&self) -> [u64; 25] {
        let n = |c| self.stats.get(c);
        [
            n(Netdev::RxPackets),
            n(Netdev::TxPackets),
            n(Netdev::RxBytes),
            n(Netdev::TxBytes),
            n(Netdev::RxErrors),
            n(Netdev::TxErrors),
            n(Netdev::RxDropped),
            n(Netdev::TxDropped),
            n(Netdev::Multicast),
            0,
            n(Netdev::RxLengthErrors),
            0,
            0,
            n(Netdev::RxFrameErrors),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]
    }
}

impl Kernel {
    pub(super) fn rtnl_dump_links(&self, req: &Request<'_>, family: u8) -> Result<Answer, Refusal> {
        let (_, attrs) = link_head(req);
        let filtered = attrs.get(ifla::MASTER).is_some_and(|a| a.u32() != Ok(0)) || attrs.get(ifla::LINKINFO).is_some();
        // No interface here has a master, or is of a kind that is made.
        if family == AF_BRIDGE || filtered {
            return Ok(Answer::Dump(Vec::new()));
        }
        let mask = ext_mask(attrs);
        let one = |d| {
            let mut m = req.reply(rtm::NEWLINK, flag::MULTI);
            self.fill_link(&mut m, d, mask, 0);
            m.finish()
        };
        Ok(Answer::Dump(self.devs.iter().map(one).collect()))
    }

    pub(super) fn rtnl_getlink(&self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(IFINFOMSG)?;
        let device = self.link_by(head, attrs)?.ok_or(Errno::ENODEV)?;
        let mut m = req.reply(rtm::NEWLINK, 0);
        self.fill_link(&mut m, device, ext_mask(attrs), 0);
        Ok(Answer::One(m.finish()))
    }

    /// The link that number or name say.
    fn link_by(&self, head: &[u8], attrs: Attrs<'_>) -> Result<Option<&NetDevice>, Refusal> {
        let index = word(head, 4).unwrap_or(0);
        if index != 0 {
            return Ok(self.devs.get(IfIndex(index)));
        }
        match attrs.get(ifla::IFNAME).or_else(|| attrs.get(ifla::ALT_IFNAME)) {
            Some(name) => {
                let name = name.text(IFNAMSIZ)?;
                Ok(self.devs.iter().find(|d| d.name == name))
            }
            None => Err(Errno::EINVAL.into()),
        }
    }

    /// `RTM_NEWLINK` of what is there already, `RTM_SETLINK` (Linux `do_setlink`).
    pub(super) fn rtnl_setlink(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(IFINFOMSG)?;
        let found = match self.link_by(head, attrs) {
            Ok(found) => found,
            // Neither number nor name: of a link to be made, or a probe for whether this message exists.
            Err(Refusal { errno: Errno::EINVAL, .. }) if req.hdr.kind == rtm::NEWLINK => None,
            Err(e) => return Err(e),
        };
        let Some(device) = found else {
            if req.hdr.flags & flag::CREATE == 0 {
                return Err(Errno::ENODEV.into());
            }
            return refuse(Errno::EOPNOTSUPP, "Unknown device type");
        };
        if req.hdr.flags & flag::EXCL != 0 {
            return Err(Errno::EEXIST.into());
        }
        let dev = device.index;
        let changes = Changes::read(device, head, attrs)?;
        if let Some(name) = &changes.name
            && self.devs.iter().any(|d| d.name == *name && d.index != dev)
        {
            return Err(Errno::EEXIST.into());
        }
        self.apply_link(dev, changes);
        Ok(Answer::Done)
    }

    fn apply_link(&mut self, dev: IfIndex, changes: Changes) {
        if let Some(mac) = changes.mac {
            self.dev_set_mac_address(dev, mac);
        }
        if let Some(mtu) = changes.mtu {
            self.dev_set_mtu(dev, mtu);
        }
        if let Some(name) = changes.name {
            self.dev_change_name(dev, name);
        }
        if let Some(len) = changes.tx_queue_len {
            self.dev_set_tx_queue_len(dev, len);
        }
        if let Some(up) = changes.up {
            self.dev_set_up(dev, up);
        }
    }

    pub(super) fn rtnl_dellink(&self, req: &Request<'_>) -> Result<Answer, Refusal> {
        let (head, attrs) = req.split(IFINFOMSG)?;
        self.link_by(head, attrs)?.ok_or(Errno::ENODEV)?;
        Err(Errno::EOPNOTSUPP.into())
    }

    /// `struct ifinfomsg` and all that is told of a link (Linux `rtnl_fill_ifinfo`).
    pub(super) fn fill_link(&self, m: &mut Message, d: &NetDevice, mask: u32, change: u32) {
        m.bytes(&[AF_UNSPEC, 0]).bytes(&d.hw_type().to_ne_bytes());
        m.bytes(&d.index.0.to_ne_bytes()).bytes(&d.flags().to_ne_bytes()).bytes(&change.to_ne_bytes());
        let queues = d.queues.len().max(1) as u32;
        let (least, most) = if d.is_loopback() { (0, 0) } else { (MIN_MTU, MAX_MTU) };
        let (came, went) = d.carrier_changes;
        let broadcast = if d.is_loopback() { [0; 6] } else { [0xff; 6] };
        m.text(ifla::IFNAME, &d.name).u32(ifla::TXQLEN, d.tx_queue_len);
        m.u8(ifla::OPERSTATE, d.operstate() as u8).u8(ifla::LINKMODE, 0);
        m.u32(ifla::MTU, d.mtu).u32(ifla::MIN_MTU, least).u32(ifla::MAX_MTU, most);
        m.u32(ifla::GROUP, 0).u32(ifla::PROMISCUITY, 0).u32(ifla::ALLMULTI, 0);
        m.u32(ifla::NUM_TX_QUEUES, queues).u32(ifla::GSO_MAX_SEGS, GSO_MAX_SEGS).u32(ifla::GSO_MAX_SIZE, GSO_MAX_SIZE);
        m.u32(ifla::GRO_MAX_SIZE, GSO_MAX_SIZE).u32(ifla::TSO_MAX_SIZE, if d.is_loopback() { TSO_MAX_SIZE } else { GSO_MAX_SIZE });
        m.u32(ifla::TSO_MAX_SEGS, GSO_MAX_SEGS).u32(ifla::NUM_RX_QUEUES, queues);
        m.u8(ifla::CARRIER, (d.up && d.carrier).into()).u32(ifla::CARRIER_CHANGES, came + went);
        m.u32(ifla::CARRIER_UP_COUNT, came).u32(ifla::CARRIER_DOWN_COUNT, went).u8(ifla::PROTO_DOWN, 0);
        m.attr(ifla::ADDRESS, &d.mac.0).attr(ifla::BROADCAST, &broadcast);
        if mask & SKIP_STATS == 0 {
            let stats = d.stats64();
            m.attr(ifla::STATS64, &stats.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>());
            m.words(ifla::STATS, &stats[..24].iter().map(|&n| n as u32).collect::<Vec<u32>>());
        }
        m.nest(ifla::XDP, |m| {
            m.u8(2, 0);
        });
        if !d.is_loopback() {
            m.attr(ifla::PERM_ADDRESS, &d.perm_mac.0);
        }
        m.text(ifla::QDISC, d.qdisc_name());
        m.nest(ifla::AF_SPEC, |m| {
            m.nest(AF_INET.into(), |m| {
                m.words(1, &self.ipv4_devconf(d));
            });
        });
    }

    /// `IFLA_INET_CONF`: the settings `/proc/sys/net/ipv4/conf` of an interface by number.
    fn ipv4_devconf(&self, d: &NetDevice) -> [u32; 33] {
        let mut conf = [0; 33];
        for (number, value) in [(4, 1), (5, 1), (7, 1), (9, 1), (27, 10_000), (28, 1000)] {
            conf[number - 1] = value;
        }
        for (number, value) in d.conf.iter() {
            conf[usize::from(number) - 1] = value as u32;
        }
        if d.is_loopback() {
            (conf[14], conf[15]) = (1, 1);
        }
        conf
    }
}

/// What a request changes of a link, checked.
#[derive(Debug, Default)]
struct Changes {
    mac: Option<MacAddr>,
    mtu: Option<u32>,
    name: Option<String>,
    tx_queue_len: Option<u32>,
    up: Option<bool>,
}

impl Changes {
    fn read(device: &NetDevice, head: &[u8], attrs: Attrs<'_>) -> Result<Self, Refusal> {
        let mut changes = Self::default();
        let (flags, change) = (word(head, 8).unwrap_or(0), word(head, 12).unwrap_or(0));
        if flags != 0 || change != 0 {
            let change = if change == 0 { u32::MAX } else { change };
            let wanted = (flags & change | device.flags() & !change) & !iff::VOLATILE;
            let now = device.flags() & !iff::VOLATILE;
            if (wanted ^ now) & !iff::UP != 0 {
                return refuse(Errno::EOPNOTSUPP, "only up and down can be set");
            }
            changes.up = Some(wanted & iff::UP != 0);
        }
        for a in attrs {
            match a.kind {
                ifla::IFNAME => {
                    let name = a.text(IFNAMSIZ)?;
                    if name != device.name {
                        changes.name = Some(valid_name(name)?);
                    }
                }
                ifla::MTU => changes.mtu = Some(valid_mtu(device, a.u32()?)?),
                ifla::TXQLEN => changes.tx_queue_len = Some(a.u32()?),
                ifla::ADDRESS => {
                    let mac: [u8; 6] = a.data.try_into().map_err(|_| Errno::EINVAL)?;
                    if mac[0] & 1 != 0 || mac == [0; 6] {
                        return Err(Errno::EADDRNOTAVAIL.into());
                    }
                    changes.mac = Some(MacAddr(mac));
                }
                ifla::EXT_MASK | ifla::ALT_IFNAME => {}
                ifla::GROUP if a.u32()? == 0 => {}
                _ => return Err(Errno::EOPNOTSUPP.into()),
            }
        }
        Ok(changes)
    }
}

fn valid_mtu(device: &NetDevice, mtu: u32) -> Result<u32, Refusal> {
    let (least, most) = if device.is_loopback() { (0, i32::MAX as u32) } else { (MIN_MTU, MAX_MTU) };
    match mtu {
        n if n < least => refuse(Errno::EINVAL, "mtu less than device minimum"),
        n if n > most => refuse(Errno::EINVAL, "mtu greater than device maximum"),
        n => Ok(n),
    }
}

/// Linux `dev_valid_name`.
fn valid_name(name: &str) -> Result<String, Refusal> {
    let bad = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c == '%';
    if name.is_empty() || name == "." || name == ".." || name.contains(bad) {
        return Err(Errno::EINVAL.into());
    }
    Ok(String::from(name))
}

/// Old programs dump with one octet, the family, where strict ones send all.
fn link_head<'a>(req: &Request<'a>) -> (&'a [u8], Attrs<'a>) {
    req.split(IFINFOMSG).unwrap_or((req.payload, Attrs(&[])))
}

fn ext_mask(attrs: Attrs<'_>) -> u32 {
    attrs.get(ifla::EXT_MASK).and_then(|a| a.u32().ok()).unwrap_or(0)
}
