//! The `net.*` sysctls: one table of names, defaults and ranges (Linux `Documentation/networking/ip-sysctl`).
//!
//! A row is a field of [`Sysctls`], which the code that it governs reads at each
//! use: a change takes effect at once, as on Linux (sizes of buffers and the like: for
//! sockets made afterwards). What is not in the table does not exist. The settings of interfaces,
//! `net.ipv4.conf`, are a table of their own (`ip::devconf`).

use crate::Kernel;
use crate::ip::devconf::{Conf, Whose};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Congestion control algorithms that can be named.
pub const CONGESTION_CONTROLS: &[&str] = &["cubic", "reno"];

/// Why a sysctl could not be read or set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    /// No row of this name (`ENOENT`).
    #[error("there is no sysctl {0}")]
    Unknown(String),
    /// Not a value of the row's kind and range (`EINVAL`).
    #[error("{name} takes {takes}, not {value:?}")]
    Invalid {
        /// The row.
        name: &'static str,
        /// What it takes.
        takes: String,
        /// What was given.
        value: String,
    },
}

/// Text to value and back, for one kind of row.
trait Value: Sized {
    type Range: Copy;
    fn read(text: &str, range: Self::Range) -> Option<Self>;
    fn show(&self) -> String;
    fn takes(range: Self::Range) -> String;
}

impl Value for i64 {
    type Range = (i64, i64);
    fn read(text: &str, (low, high): Self::Range) -> Option<Self> {
        text.trim().parse().ok().filter(|n| (low..=high).contains(n))
    }
    fn show(&self) -> String {
        self.to_string()
    }
    fn takes((low, high): Self::Range) -> String {
        format!("a number from {low} to {high}")
    }
}

impl<const N: usize> Value for [i64; N] {
    type Range = (i64, i64);
    fn read(text: &str, range: Self::Range) -> Option<Self> {
        let values: Option<Vec<i64>> = text.split_whitespace().map(|t| i64::read(t, range)).collect();
        // Both kinds of list (least, default, most; first, last) do not descend.
        values?.try_into().ok().filter(|v: &Self| v.is_sorted())
    }
    fn show(&self) -> String {
        self.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("\t")
    }
    fn takes((low, high): Self::Range) -> String {
        format!("{N} ascending numbers from {low} to {high}")
    }
}

impl Value for &'static str {
    type Range = &'static [&'static str];
    fn read(text: &str, names: Self::Range) -> Option<Self> {
        names.iter().find(|&&n| n == text.trim()).copied()
    }
    fn show(&self) -> String {
        self.to_string()
    }
    fn takes(names: Self::Range) -> String {
        format!("one of {}", names.join(", "))
    }
}

macro_rules! sysctls {
    ($($name:literal, $field:ident: $ty:ty = $default:expr, $range:expr;)+) => {
        /// The values.
        #[derive(Debug, Clone)]
        pub struct Sysctls { $(#[doc = concat!("`", $name, "`")] pub $field: $ty),+ }

        impl Default for Sysctls {
            fn default() -> Self { Self { $($field: $default),+ } }
        }

        impl Sysctls {
            /// All names, in the order of the table.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The value as `sysctl -n` prints it; lists are separated by tabs.
            ///
            /// # Errors
            /// [`SysctlError::Unknown`].
            pub fn get(&self, name: &str) -> Result<String, SysctlError> {
                match name {
                    $($name => Ok(self.$field.show()),)+
                    _ => Err(SysctlError::Unknown(name.to_string())),
                }
            }

            /// Sets a value from its text.
            ///
            /// # Errors
            /// [`SysctlError`]; nothing is changed then.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
                match name {
                    $($name => {
                        self.$field = <$ty as Value>::read(value, $range).ok_or_else(|| SysctlError::Invalid {
                            name: $name,
                            takes: <$ty as Value>::takes($range),
                            value: value.to_string(),
                        })?;
                    })+
                    _ => return Err(SysctlError::Unknown(name.to_string())),
                }
                Ok(())
            }
        }
    };
}

const BOOL: (i64, i64) = (0, 1);
const INT: (i64, i64) = (0, i32::MAX as i64);
const COUNT: (i64, i64) = (1, i32::MAX as i64);

sysctls! {
    "net.core.rmem_default", rmem_default: i64 = 212_992, (2304, INT.1);
    "net.core.rmem_max", rmem_max: i64 = 212_992, (2304, INT.1);
    "net.core.wmem_default", wmem_default: i64 = 212_992, (4608, INT.1);
    "net.core.wmem_max", wmem_max: i64 = 212_992, (4608, INT.1);
    "net.core.somaxconn", somaxconn: i64 = 4096, (0, 65535);
    "net.core.netdev_budget", netdev_budget: i64 = 300, COUNT;
    "net.core.dev_weight", dev_weight: i64 = 64, COUNT;
    "net.core.netdev_max_backlog", netdev_max_backlog: i64 = 1000, INT;
    "net.ipv4.ip_forward", ip_forward: i64 = 0, BOOL;
    "net.ipv4.ip_default_ttl", ip_default_ttl: i64 = 64, (1, 255);
    "net.ipv4.ip_local_port_range", ip_local_port_range: [i64; 2] = [32768, 60999], (1, 65535);
    "net.ipv4.icmp_echo_ignore_all", icmp_echo_ignore_all: i64 = 0, BOOL;
    "net.ipv4.icmp_ratelimit", icmp_ratelimit: i64 = 1000, INT;
    "net.ipv4.icmp_ratemask", icmp_ratemask: i64 = 0x1818, INT;
    "net.ipv4.icmp_msgs_per_sec", icmp_msgs_per_sec: i64 = 1000, INT;
    "net.ipv4.icmp_msgs_burst", icmp_msgs_burst: i64 = 50, INT;
    "net.ipv4.ipfrag_time", ipfrag_time: i64 = 30, INT;
    "net.ipv4.ipfrag_max_dist", ipfrag_max_dist: i64 = 64, INT;
    "net.ipv4.ipfrag_high_thresh", ipfrag_high_thresh: i64 = 4 << 20, (0, i64::MAX);
    "net.ipv4.neigh.default.base_reachable_time_ms", neigh_base_reachable_time_ms: i64 = 30_000, COUNT;
    "net.ipv4.neigh.default.delay_first_probe_time", neigh_delay_first_probe_time: i64 = 5, INT;
    "net.ipv4.neigh.default.retrans_time_ms", neigh_retrans_time_ms: i64 = 1000, COUNT;
    "net.ipv4.neigh.default.ucast_solicit", neigh_ucast_solicit: i64 = 3, INT;
    "net.ipv4.neigh.default.mcast_solicit", neigh_mcast_solicit: i64 = 3, INT;
    "net.ipv4.neigh.default.gc_stale_time", neigh_gc_stale_time: i64 = 60, INT;
    "net.ipv4.neigh.default.gc_thresh1", neigh_gc_thresh1: i64 = 128, INT;
    "net.ipv4.neigh.default.gc_thresh2", neigh_gc_thresh2: i64 = 512, INT;
    "net.ipv4.neigh.default.gc_thresh3", neigh_gc_thresh3: i64 = 1024, INT;
    "net.ipv4.neigh.default.unres_qlen_bytes", neigh_unres_qlen_bytes: i64 = 212_992, INT;
    "net.ipv4.tcp_congestion_control", tcp_congestion_control: &'static str = "cubic", CONGESTION_CONTROLS;
    "net.ipv4.tcp_rmem", tcp_rmem: [i64; 3] = [4096, 131_072, 6_291_456], COUNT;
    "net.ipv4.tcp_wmem", tcp_wmem: [i64; 3] = [4096, 16_384, 4_194_304], COUNT;
    // Without effect since Linux 6.6, and there for those who read it (nuttcp).
    "net.ipv4.tcp_adv_win_scale", tcp_adv_win_scale: i64 = 1, (-31, 31);
    "net.ipv4.tcp_window_scaling", tcp_window_scaling: i64 = 1, BOOL;
    "net.ipv4.tcp_timestamps", tcp_timestamps: i64 = 1, (0, 2);
    "net.ipv4.tcp_sack", tcp_sack: i64 = 1, BOOL;
    "net.ipv4.tcp_dsack", tcp_dsack: i64 = 1, BOOL;
    "net.ipv4.tcp_moderate_rcvbuf", tcp_moderate_rcvbuf: i64 = 1, BOOL;
    "net.ipv4.tcp_syn_retries", tcp_syn_retries: i64 = 6, (1, 127);
    "net.ipv4.tcp_syn_linear_timeouts", tcp_syn_linear_timeouts: i64 = 4, (0, 127);
    "net.ipv4.tcp_synack_retries", tcp_synack_retries: i64 = 5, (0, 255);
    "net.ipv4.tcp_syncookies", tcp_syncookies: i64 = 1, (0, 2);
    "net.ipv4.tcp_max_syn_backlog", tcp_max_syn_backlog: i64 = 4096, COUNT;
    "net.ipv4.tcp_abort_on_overflow", tcp_abort_on_overflow: i64 = 0, BOOL;
    "net.ipv4.tcp_retries1", tcp_retries1: i64 = 3, (0, 255);
    "net.ipv4.tcp_retries2", tcp_retries2: i64 = 15, (0, 255);
    "net.ipv4.tcp_fin_timeout", tcp_fin_timeout: i64 = 60, COUNT;
    "net.ipv4.tcp_max_tw_buckets", tcp_max_tw_buckets: i64 = 131_072, INT;
    "net.ipv4.tcp_tw_reuse", tcp_tw_reuse: i64 = 2, (0, 2);
    "net.ipv4.tcp_keepalive_time", tcp_keepalive_time: i64 = 7200, COUNT;
    "net.ipv4.tcp_keepalive_intvl", tcp_keepalive_intvl: i64 = 75, COUNT;
    "net.ipv4.tcp_keepalive_probes", tcp_keepalive_probes: i64 = 9, (1, 255);
    "net.ipv4.tcp_slow_start_after_idle", tcp_slow_start_after_idle: i64 = 1, BOOL;
    "net.ipv4.tcp_invalid_ratelimit", tcp_invalid_ratelimit: i64 = 500, INT;
    "net.ipv4.tcp_reordering", tcp_reordering: i64 = 3, (1, 300);
    "net.ipv4.tcp_orphan_retries", tcp_orphan_retries: i64 = 0, (0, 255);
    "net.ipv4.tcp_ecn", tcp_ecn: i64 = 2, (0, 2);
    "net.ipv4.tcp_early_retrans", tcp_early_retrans: i64 = 3, (0, 4);
    "net.ipv4.tcp_max_reordering", tcp_max_reordering: i64 = 300, COUNT;
    "net.ipv4.tcp_max_orphans", tcp_max_orphans: i64 = 65_536, INT;
    "net.ipv4.tcp_challenge_ack_limit", tcp_challenge_ack_limit: i64 = INT.1, INT;
    "net.ipv4.tcp_limit_output_bytes", tcp_limit_output_bytes: i64 = 4 << 20, (0, INT.1);
    "net.ipv4.tcp_notsent_lowat", tcp_notsent_lowat: i64 = 0xffff_ffff, (0, 0xffff_ffff);
    "net.ipv4.tcp_min_snd_mss", tcp_min_snd_mss: i64 = 48, (48, 65535);
    "net.ipv4.tcp_tso_win_divisor", tcp_tso_win_divisor: i64 = 3, INT;
    "net.ipv4.route.min_pmtu", route_min_pmtu: i64 = 552, (68, 65535);
}

impl Kernel {
    /// `net.ipv4.conf.WHOSE.ROW`; an interface's name may hold a dot, a row's does not.
    fn devconf_row(&self, name: &str) -> Option<(Whose, Conf)> {
        let (whose, row) = name.strip_prefix("net.ipv4.conf.")?.rsplit_once('.')?;
        Some((self.devconf_whose(whose)?, Conf::named(row)?))
    }

    /// A sysctl's value, as `sysctl -n` prints it.
    ///
    /// # Errors
    /// [`SysctlError::Unknown`].
    pub fn sysctl_get(&self, name: &str) -> Result<String, SysctlError> {
        match self.devconf_row(name) {
            Some((whose, conf)) => Ok(self.devconf_get(whose, conf).to_string()),
            None => self.sysctl.get(name),
        }
    }

    /// Sets a sysctl from its text.
    ///
    /// # Errors
    /// [`SysctlError`]; nothing is changed then.
    pub fn sysctl_set(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
        if let Some((whose, conf)) = self.devconf_row(name) {
            return self.devconf_set(whose, conf, value);
        }
        self.sysctl.set(name, value)?;
        if name == "net.ipv4.ip_forward" {
            self.set_ip_forward(self.sysctl.ip_forward != 0);
        }
        self.tcp.sysctl = crate::tcp::sysctl::TcpSysctl::from(&self.sysctl);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_that_can_be_set() {
        let mut s = Sysctls::default();
        for name in Sysctls::NAMES {
            let text = s.get(name).expect("a row");
            s.set(name, &text).expect("its own default");
        }
    }

    #[test]
    fn wrong_values_are_refused_and_change_nothing() {
        let mut s = Sysctls::default();
        for (name, value) in [
            ("net.ipv4.ip_default_ttl", "0"),
            ("net.ipv4.ip_default_ttl", "256"),
            ("net.ipv4.ip_default_ttl", "many"),
            ("net.ipv4.tcp_adv_win_scale", "-32"),
            ("net.ipv4.tcp_rmem", "1 2"),
            ("net.ipv4.ip_local_port_range", "60000 50000"),
            ("net.ipv4.tcp_congestion_control", "vegas"),
        ] {
            let before = s.get(name);
            assert!(matches!(s.set(name, value), Err(SysctlError::Invalid { .. })), "{name} = {value}");
            assert_eq!(s.get(name), before);
        }
        assert_eq!(s.set("net.ipv4.nothing", "1"), Err(SysctlError::Unknown("net.ipv4.nothing".into())));
        s.set("net.ipv4.tcp_rmem", " 4096  8192\t16384 ").expect("three numbers");
        assert_eq!(s.tcp_rmem, [4096, 8192, 16384]);
    }
}
