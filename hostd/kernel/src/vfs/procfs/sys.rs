//! `/proc/sys/net`: the sysctl table as files.
//!
//! A row `net.ipv4.tcp_rmem` is the file `net/ipv4/tcp_rmem`. The neighbour settings of the table
//! are the host's; each interface shows them too, and setting one sets the host's (Deviation: Linux
//! keeps one set for each interface).

use super::DirEntry;
use crate::Kernel;
use crate::errno::Errno;
use crate::sysctl::{CONGESTION_CONTROLS, SysctlError, Sysctls};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Files that only show something.
const READ_ONLY: &[&str] = &["net.ipv4.tcp_available_congestion_control", "net.ipv4.tcp_allowed_congestion_control"];
/// Other names of rows, as Linux has them.
const ALIASES: &[(&str, &str)] = &[("net.ipv4.conf.all.forwarding", "net.ipv4.ip_forward")];
/// Rows that every interface shows.
const NEIGH: &str = "net.ipv4.neigh.";
/// Rows of the neighbour table as a whole: only `default` has them.
const NEIGH_TABLE: &[&str] = &["gc_thresh1", "gc_thresh2", "gc_thresh3", "gc_interval"];

impl Kernel {
    /// The row behind a file, and whether it can be written.
    fn sysctl_row(&self, path: &str) -> Option<(&'static str, bool)> {
        // An interface's name may hold a dot: only slashes separate.
        let mut parts = path.split('/');
        let name = match (parts.next()?, parts.next()?, parts.next(), parts.next(), parts.next(), parts.next()) {
            ("net", "ipv4", Some("neigh"), Some(dev), Some(row), None) if dev != "default" => {
                self.dev_get_by_name(dev).filter(|_| !NEIGH_TABLE.contains(&row))?;
                format!("{NEIGH}default.{row}")
            }
            _ if path.contains('.') => return None,
            _ => path.replace('/', "."),
        };
        if let Some(row) = READ_ONLY.iter().find(|&&r| r == name) {
            return Some((row, false));
        }
        let name = ALIASES.iter().find(|a| a.0 == name).map_or(name.as_str(), |a| a.1);
        Sysctls::NAMES.iter().find(|&&r| r == name).map(|r| (*r, true))
    }

    /// All files, with slashes.
    fn sysctl_files(&self) -> Vec<String> {
        let rows = Sysctls::NAMES.iter().chain(READ_ONLY).chain(ALIASES.iter().map(|a| &a.0));
        let mut files: Vec<String> = rows.map(|r| r.replace('.', "/")).collect();
        for row in Sysctls::NAMES.iter().filter_map(|r| r.strip_prefix(NEIGH)?.strip_prefix("default.")) {
            if !NEIGH_TABLE.contains(&row) {
                files.extend(self.devs.iter().map(|d| format!("net/ipv4/neigh/{}/{row}", d.name)));
            }
        }
        files
    }

    pub(super) fn proc_sys_read(&self, path: &str) -> Option<String> {
        let (row, writable) = self.sysctl_row(path)?;
        let text = if writable { self.sysctl.get(row).ok()? } else { CONGESTION_CONTROLS.join(" ") };
        Some(text + "\n")
    }

    pub(super) fn proc_sys_write(&mut self, path: &str, data: &[u8]) -> Result<usize, Errno> {
        let Some((row, writable)) = self.sysctl_row(path) else {
            return Err(if self.proc_sys_list(path).is_some() { Errno::EISDIR } else { Errno::ENOENT });
        };
        if !writable {
            return Err(Errno::EACCES);
        }
        let text = core::str::from_utf8(data).map_err(|_| Errno::EINVAL)?.trim_end_matches('\0');
        if text.trim().is_empty() {
            // Linux's `proc_dointvec` takes white space and changes nothing.
            return Ok(data.len());
        }
        match self.sysctl_set(row, text) {
            Ok(()) => Ok(data.len()),
            Err(SysctlError::Unknown(_)) => Err(Errno::ENOENT),
            // An unknown algorithm is a module that is not there.
            Err(SysctlError::Invalid { .. }) if row == "net.ipv4.tcp_congestion_control" => Err(Errno::ENOENT),
            Err(SysctlError::Invalid { .. }) => Err(Errno::EINVAL),
        }
    }

    pub(super) fn proc_sys_list(&self, path: &str) -> Option<Vec<DirEntry>> {
        let prefix = path.to_string() + "/";
        let mut found = BTreeSet::new();
        for file in self.sysctl_files() {
            if let Some(rest) = file.strip_prefix(&prefix) {
                let (name, dir) = rest.split_once('/').map_or((rest, false), |(d, _)| (d, true));
                found.insert(DirEntry { name: name.to_string(), dir });
            }
        }
        (!found.is_empty()).then(|| found.into_iter().collect())
    }

    pub(super) fn proc_sys_mode(&self, path: &str) -> Option<u32> {
        match self.sysctl_row(path) {
            Some((_, true)) => Some(0o644),
            Some((_, false)) => Some(0o444),
            None => self.proc_sys_list(path).map(|_| 0o555),
        }
    }
}
