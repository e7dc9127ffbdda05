//! `/sys/class/net` of the host, as text.
//!
//! As with [`super::procfs`] a file is made when it is read. An interface is a link to a directory below
//! `/sys/devices/virtual/net`, where Linux puts interfaces that are on no bus. Nothing is written: `ip link` changes what can be changed.

use super::procfs::{DirEntry, Entry};
use crate::Kernel;
use crate::dev::NetDevice;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Where the links are.
const CLASS: &str = "/sys/class/net";
/// Where they lead.
const DEVICES: &str = "/sys/devices/virtual/net";
/// The link of an interface back to where the links are.
const SUBSYSTEM: &str = "subsystem";

/// Files of an interface.
const FILES: &[&str] = &[
    "addr_assign_type",
    "addr_len",
    "address",
    "broadcast",
    "carrier",
    "carrier_changes",
    "carrier_down_count",
    "carrier_up_count",
    "dev_id",
    "dev_port",
    "dormant",
    "duplex",
    "flags",
    "gro_flush_timeout",
    "group",
    "ifalias",
    "ifindex",
    "iflink",
    "link_mode",
    "mtu",
    "name_assign_type",
    "napi_defer_hard_irqs",
    "netdev_group",
    "operstate",
    "phys_port_id",
    "phys_port_name",
    "phys_switch_id",
    "proto_down",
    "speed",
    "testing",
    "threaded",
    "tx_queue_len",
    "type",
    "uevent",
];

/// Directories of an interface.
const DIRS: &[&str] = &["queues", "statistics"];

/// Names of `statistics`, in the order of `struct rtnl_link_stats64`.
const STATISTICS: &[&str] = &[
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
    "multicast",
    "collisions",
    "rx_length_errors",
    "rx_over_errors",
    "rx_crc_errors",
    "rx_frame_errors",
    "rx_fifo_errors",
    "rx_missed_errors",
    "tx_aborted_errors",
    "tx_carrier_errors",
    "tx_fifo_errors",
    "tx_heartbeat_errors",
    "tx_window_errors",
    "rx_compressed",
    "tx_compressed",
    "rx_nohandler",
];

/// Files of a queue and what they say.
const RX_QUEUE: &[(&str, &str)] = &[("rps_cpus", "0"), ("rps_flow_cnt", "0")];
const TX_QUEUE: &[(&str, &str)] = &[("traffic_class", "0"), ("tx_maxrate", "0"), ("tx_timeout", "0"), ("xps_cpus", "0")];

/// True if the path is the emulated host's, whether or not there is such a file. As of [`super::procfs::covers`].
pub fn covers(path: &str) -> bool {
    place(path).is_some()
}

/// The same place without links on the way; with `follow` not at its end either. `None` if the path is not covered.
pub fn canonical(path: &str, follow: bool) -> Option<String> {
    let (root, rest) = match place(path)? {
        Place::Class(rest) => match rest[..] {
            [_] if follow => (DEVICES, rest),
            _ => (CLASS, rest),
        },
        Place::Device(rest) => match rest[..] {
            [_, SUBSYSTEM] if follow => (CLASS, Vec::new()),
            _ => (DEVICES, rest),
        },
    };
    Some(rest.iter().fold(root.to_string(), |path, name| path + "/" + name))
}

/// What a path means, links on the way followed.
enum Place<'a> {
    /// From [`CLASS`] on: nothing, or an interface's link.
    Class(Vec<&'a str>),
    /// From [`DEVICES`] on.
    Device(Vec<&'a str>),
}

fn place(path: &str) -> Option<Place<'_>> {
    let below = |root| path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let (class, rest) = below(CLASS).map(|rest| (true, rest)).or_else(|| below(DEVICES).map(|rest| (false, rest)))?;
    let mut rest: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    let mut class = class;
    while rest.len() > 2 && rest[1] == SUBSYSTEM {
        rest.drain(..2);
        class = true;
    }
    Some(if class && rest.len() < 2 { Place::Class(rest) } else { Place::Device(rest) })
}

/// The parts of the path of a file of an interface.
fn parts(path: &str) -> Option<Vec<&str>> {
    match place(path)? {
        Place::Class(_) => None,
        Place::Device(rest) => Some(rest),
    }
}

/// Permissions of all files.
const MODE: u32 = 0o444;

fn link_to(dev: &str) -> Entry {
    Entry::Link(format!("../../devices/virtual/net/{dev}"))
}

fn back_link() -> Entry {
    Entry::Link("../../../../class/net".to_string())
}

/// What a file of an interface that is down answers: it cannot be read.
enum Text {
    Is(String),
    Invalid,
}

impl Kernel {
    /// The text of a file; `None` if there is no such file, or it is a directory. `Some(None)`: it cannot be read now (`EINVAL`), as
    /// the carrier of an interface that is down.
    pub fn sysfs_read(&self, path: &str) -> Option<Option<String>> {
        let text = match parts(path)?[..] {
            [dev, file] => match self.device(dev)?.sysfs_file(file)? {
                Text::Is(text) => text,
                Text::Invalid => return Some(None),
            },
            [dev, "statistics", name] => {
                let at = STATISTICS.iter().position(|&n| n == name)?;
                self.device(dev)?.stats64().get(at)?.to_string()
            }
            [dev, "queues", queue, file] => {
                let (_, files) = self.device(dev)?.sysfs_queues().into_iter().find(|(name, _)| name == queue)?;
                files.iter().find(|(name, _)| *name == file)?.1.to_string()
            }
            _ => return None,
        };
        Some(Some(if text.is_empty() { text } else { text + "\n" }))
    }

    /// What a directory holds, by name; `None` if there is no such directory. A link to a directory is one.
    pub fn sysfs_list(&self, path: &str) -> Option<Vec<DirEntry>> {
        let entries = |names: &[&str], kind: &Entry| -> Vec<DirEntry> { names.iter().map(|n| DirEntry::new(*n, kind.clone())).collect() };
        let files = |names: &[&str]| entries(names, &Entry::File(MODE));
        let dirs = |names: Vec<String>| names.into_iter().map(|name| DirEntry::new(name, Entry::Directory));
        let names = || self.devs.iter().map(|d| d.name.clone());
        let place = match place(path)? {
            Place::Class(rest) if rest.is_empty() => {
                let mut list: Vec<DirEntry> = names().map(|name| DirEntry { kind: link_to(&name), name }).collect();
                list.sort();
                return Some(list);
            }
            Place::Class(rest) | Place::Device(rest) => rest,
        };
        let mut list: Vec<DirEntry> = match place[..] {
            [] => dirs(names().collect()).collect(),
            [dev] => {
                self.device(dev)?;
                let back = DirEntry::new(SUBSYSTEM, back_link());
                files(FILES).into_iter().chain(entries(DIRS, &Entry::Directory)).chain([back]).collect()
            }
            [dev, "statistics"] => {
                self.device(dev)?;
                files(STATISTICS)
            }
            [dev, "queues"] => dirs(self.device(dev)?.sysfs_queues().into_iter().map(|q| q.0).collect()).collect(),
            [dev, "queues", queue] => {
                let (_, held) = self.device(dev)?.sysfs_queues().into_iter().find(|(name, _)| name == queue)?;
                files(&held.iter().map(|f| f.0).collect::<Vec<_>>())
            }
            _ => return None,
        };
        list.sort();
        Some(list)
    }

    /// What is at a path, a link at its end not followed; `None` if there is nothing.
    pub fn sysfs_entry(&self, path: &str) -> Option<Entry> {
        let rest = match place(path)? {
            Place::Class(rest) => match rest[..] {
                [dev] => return self.device(dev).map(|d| link_to(&d.name)),
                _ => return Some(Entry::Directory),
            },
            Place::Device(rest) => rest,
        };
        match rest[..] {
            [dev, SUBSYSTEM] => self.device(dev).map(|_| back_link()),
            [dev, file] if FILES.contains(&file) => self.device(dev).map(|_| Entry::File(MODE)),
            [.., _, _] if self.sysfs_read(path).is_some() => Some(Entry::File(MODE)),
            _ => self.sysfs_list(path).map(|_| Entry::Directory),
        }
    }

    /// On what the names of all files here, and of those of `/proc/sys/net`, depend: interfaces, and how many queues each has.
    pub fn interface_names(&self) -> Vec<(String, usize)> {
        self.devs.iter().map(|d| (d.name.clone(), d.queues.len())).collect()
    }

    fn device(&self, name: &str) -> Option<&NetDevice> {
        self.devs.iter().find(|d| d.name == name)
    }
}

impl NetDevice {
    /// Queues by name, with their files.
    fn sysfs_queues(&self) -> Vec<(String, &'static [(&'static str, &'static str)])> {
        let count = self.queues.len().max(1);
        let rx = (0..count).map(|n| (format!("rx-{n}"), RX_QUEUE));
        rx.chain((0..count).map(|n| (format!("tx-{n}"), TX_QUEUE))).collect()
    }

    fn sysfs_file(&self, name: &str) -> Option<Text> {
        let (came, went) = self.carrier_changes;
        let zero = || "0".to_string();
        Some(Text::Is(match name {
            "address" => self.mac.to_string(),
            "broadcast" if self.is_loopback() => "00:00:00:00:00:00".to_string(),
            "broadcast" => "ff:ff:ff:ff:ff:ff".to_string(),
            "mtu" => self.mtu.to_string(),
            "ifindex" | "iflink" => self.index.0.to_string(),
            // Without `IFF_RUNNING` and what else is only told by netlink.
            "flags" => format!("0x{:x}", self.flags() & 0xffbf),
            "type" => self.hw_type().to_string(),
            "tx_queue_len" => self.tx_queue_len.to_string(),
            "operstate" => self.operstate().name().to_ascii_lowercase(),
            // Who is down knows nothing of the cable; loopback and virtual NICs know no speed.
            "carrier" | "speed" | "duplex" | "dormant" | "testing" if !self.up => return Some(Text::Invalid),
            "carrier" => u8::from(self.carrier).to_string(),
            "speed" | "duplex" if self.is_loopback() => return Some(Text::Invalid),
            "speed" => "-1".to_string(),
            "duplex" => "unknown".to_string(),
            "carrier_changes" => (came + went).to_string(),
            "carrier_up_count" => came.to_string(),
            "carrier_down_count" => went.to_string(),
            "addr_len" => "6".to_string(),
            "dev_id" => "0x0".to_string(),
            "addr_assign_type" | "dev_port" | "dormant" | "testing" | "gro_flush_timeout" | "group" | "netdev_group" => zero(),
            "link_mode" | "napi_defer_hard_irqs" | "proto_down" | "threaded" => zero(),
            "name_assign_type" if !self.is_loopback() => "4".to_string(),
            "uevent" => format!("INTERFACE={}\nIFINDEX={}", self.name, self.index.0),
            "ifalias" => String::new(),
            "name_assign_type" | "phys_port_id" | "phys_port_name" | "phys_switch_id" => return Some(Text::Invalid),
            _ => return None,
        }))
    }
}
