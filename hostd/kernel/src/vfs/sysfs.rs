//! `/sys/class/net` of the host, as text.
//!
//! As with [`super::procfs`] a file is made when it is read. An interface is a directory here, where Linux has a link to one below
//! `/sys/devices`, which a host of this kind has not. Nothing is written: `ip link` changes what can be changed.

use super::procfs::DirEntry;
use crate::Kernel;
use crate::dev::NetDevice;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What is covered.
const ROOT: &str = "/sys/class/net";

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
    path.strip_prefix(ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The parts of a path below `/sys/class/net`.
fn parts(path: &str) -> Option<Vec<&str>> {
    let rest = path.strip_prefix(ROOT).filter(|_| covers(path))?;
    Some(rest.split('/').filter(|part| !part.is_empty()).collect())
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

    /// What a directory holds, by name; `None` if there is no such directory.
    pub fn sysfs_list(&self, path: &str) -> Option<Vec<DirEntry>> {
        let files = |names: &[&str]| -> Vec<DirEntry> { names.iter().map(|n| DirEntry { name: n.to_string(), dir: false }).collect() };
        let dirs = |names: Vec<String>| names.into_iter().map(|name| DirEntry { name, dir: true });
        let mut list: Vec<DirEntry> = match parts(path)?[..] {
            [] => dirs(self.devs.iter().map(|d| d.name.clone()).collect()).collect(),
            [dev] => {
                self.device(dev)?;
                files(FILES).into_iter().chain(dirs(DIRS.iter().map(|d| d.to_string()).collect())).collect()
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
