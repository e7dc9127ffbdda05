//! `/proc/sys/net`: the sysctl table as files.
//!
//! A row `net.ipv4.tcp_rmem` is the file `net/ipv4/tcp_rmem`. The neighbour settings of the table
//! are the host's; each interface shows them too, and setting one sets the host's (Deviation: Linux
//! keeps one set for each interface). `net/ipv4/conf` has a folder for each interface, and `all` and `default`.

use super::{DIRECTORY, DirEntry, Entry};
use crate::Kernel;
use crate::errno::Errno;
use crate::ip::devconf::{Conf, Whose};
use crate::sysctl::{CONGESTION_CONTROLS, SysctlError, Sysctls};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Files that only show something.
const READ_ONLY: &[&str] = &["net.ipv4.tcp_available_congestion_control", "net.ipv4.tcp_allowed_congestion_control"];
/// Rows that every interface shows.
const NEIGH: &str = "net.ipv4.neigh.";
/// Rows of the neighbour table as a whole: only `default` has them.
const NEIGH_TABLE: &[&str] = &["gc_thresh1", "gc_thresh2", "gc_thresh3", "gc_interval"];

/// What is behind a file.
enum Row {
    /// A row of the table.
    Table(&'static str),
    /// One that only shows something.
    ReadOnly,
    /// A setting of interfaces.
    Conf(Whose, Conf),
}

impl Kernel {
    fn sysctl_row(&self, path: &str) -> Option<Row> {
        // An interface's name may hold a dot: only slashes separate.
        let mut parts = path.split('/');
        let name = match (parts.next()?, parts.next()?, parts.next(), parts.next(), parts.next(), parts.next()) {
            ("net", "ipv4", Some("neigh"), Some(dev), Some(row), None) if dev != "default" => {
                self.dev_get_by_name(dev).filter(|_| !NEIGH_TABLE.contains(&row))?;
                format!("{NEIGH}default.{row}")
            }
            ("net", "ipv4", Some("conf"), Some(whose), Some(row), None) => {
                return Some(Row::Conf(self.devconf_whose(whose)?, Conf::named(row)?));
            }
            _ if path.contains('.') => return None,
            _ => path.replace('/', "."),
        };
        if READ_ONLY.contains(&name.as_str()) {
            return Some(Row::ReadOnly);
        }
        Sysctls::NAMES.iter().find(|&&r| r == name).map(|r| Row::Table(r))
    }

    /// All files, with slashes.
    fn sysctl_files(&self) -> Vec<String> {
        let rows = Sysctls::NAMES.iter().chain(READ_ONLY);
        let mut files: Vec<String> = rows.map(|r| r.replace('.', "/")).collect();
        for row in Sysctls::NAMES.iter().filter_map(|r| r.strip_prefix(NEIGH)?.strip_prefix("default.")) {
            if !NEIGH_TABLE.contains(&row) {
                files.extend(self.devs.iter().map(|d| format!("net/ipv4/neigh/{}/{row}", d.name)));
            }
        }
        let folders = ["all", "default"].into_iter().chain(self.devs.iter().map(|d| d.name.as_str()));
        files.extend(folders.flat_map(|whose| Conf::names().map(move |row| format!("net/ipv4/conf/{whose}/{row}"))));
        files
    }

    pub(super) fn proc_sys_read(&self, path: &str) -> Option<String> {
        let text = match self.sysctl_row(path)? {
            Row::Table(row) => self.sysctl.get(row).ok()?,
            Row::ReadOnly => CONGESTION_CONTROLS.join(" "),
            Row::Conf(whose, conf) => self.devconf_get(whose, conf).to_string(),
        };
        Some(text + "\n")
    }

    pub(super) fn proc_sys_write(&mut self, path: &str, data: &[u8]) -> Result<usize, Errno> {
        let Some(row) = self.sysctl_row(path) else {
            return Err(if self.proc_sys_list(path).is_some() { Errno::EISDIR } else { Errno::ENOENT });
        };
        if matches!(row, Row::ReadOnly) {
            return Err(Errno::EACCES);
        }
        let text = core::str::from_utf8(data).map_err(|_| Errno::EINVAL)?.trim_end_matches('\0');
        if text.trim().is_empty() {
            // Linux's `proc_dointvec` takes white space and changes nothing.
            return Ok(data.len());
        }
        let set = match row {
            Row::ReadOnly => return Err(Errno::EACCES),
            Row::Table(row) => self.sysctl_set(row, text),
            Row::Conf(whose, conf) => self.devconf_set(whose, conf, text),
        };
        match set {
            Ok(()) => Ok(data.len()),
            Err(SysctlError::Unknown(_)) => Err(Errno::ENOENT),
            // An unknown algorithm is a module that is not there.
            Err(SysctlError::Invalid { name: "net.ipv4.tcp_congestion_control", .. }) => Err(Errno::ENOENT),
            Err(SysctlError::Invalid { .. }) => Err(Errno::EINVAL),
        }
    }

    pub(super) fn proc_sys_list(&self, path: &str) -> Option<Vec<DirEntry>> {
        let prefix = path.to_string() + "/";
        let mut found = BTreeSet::new();
        for file in self.sysctl_files() {
            if let Some(rest) = file.strip_prefix(&prefix) {
                let (name, dir) = rest.split_once('/').map_or((rest, false), |(d, _)| (d, true));
                let mode = || if READ_ONLY.contains(&file.replace('/', ".").as_str()) { 0o444 } else { 0o644 };
                found.insert(DirEntry::new(name, if dir { Entry::Directory } else { Entry::File(mode()) }));
            }
        }
        (!found.is_empty()).then(|| found.into_iter().collect())
    }

    pub(super) fn proc_sys_mode(&self, path: &str) -> Option<u32> {
        match self.sysctl_row(path) {
            Some(Row::ReadOnly) => Some(0o444),
            Some(_) => Some(0o644),
            None => self.proc_sys_list(path).map(|_| DIRECTORY),
        }
    }
}
