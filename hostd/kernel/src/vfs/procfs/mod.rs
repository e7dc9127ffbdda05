//! `/proc/net`, `/proc/sys/net`, `/proc/interrupts`, `/proc/softirqs` of the host, as text.
//!
//! A file is made when it is read: the reader (who keeps the text of an open file, as
//! `seq_file` does) sees one moment of the host. What Linux has and this host has not is not
//! there: the file does not exist. Formats are Linux's, octet for octet.
//!
//! ```text
//! /proc/net/NAME            net.rs, sock.rs, mib.rs; also below /proc/self, /proc/thread-self, /proc/PID
//! /proc/sys/net/…           sys.rs: one file for each row of the sysctl table, by name
//! /proc/interrupts, softirqs irq.rs
//! ```
mod irq;
mod mib;
mod net;
mod sock;
mod sys;

use crate::Kernel;
use crate::errno::Errno;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Entry,
}

/// What there is at a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// A file with these permissions.
    File(u32),
    /// A directory, which everybody may list and nobody may write (0555).
    Directory,
    /// A link, and what it says.
    Link(String),
}

impl DirEntry {
    /// An entry.
    pub fn new(name: impl Into<String>, kind: Entry) -> Self {
        Self { name: name.into(), kind }
    }
}

/// Permissions of directories.
const DIRECTORY: u32 = 0o555;

/// What a path below `/proc` means here.
enum Node<'a> {
    /// `/proc/net`.
    Net,
    /// A file of it.
    NetFile(&'a str),
    /// `/proc/sys/net` and what is below, the path from "net" on.
    Sys(&'a str),
    /// `/proc/interrupts`.
    Interrupts,
    /// `/proc/softirqs`.
    Softirqs,
}

fn node(path: &str) -> Option<Node<'_>> {
    let rest = path.strip_prefix("/proc/")?.trim_end_matches('/');
    match rest {
        "interrupts" => return Some(Node::Interrupts),
        "softirqs" => return Some(Node::Softirqs),
        _ => {}
    }
    if let Some(sys) = rest.strip_prefix("sys/") {
        return (sys == "net" || sys.starts_with("net/")).then_some(Node::Sys(sys));
    }
    let net = match rest.split_once('/') {
        Some((who, tail)) if is_process(who) => tail.split_once("task/").map_or(tail, |(_, t)| t.split_once('/').map_or("", |x| x.1)),
        _ => rest,
    };
    match net.strip_prefix("net") {
        Some("") => Some(Node::Net),
        Some(tail) => tail.strip_prefix('/').map(Node::NetFile),
        None => None,
    }
}

fn is_process(name: &str) -> bool {
    matches!(name, "self" | "thread-self") || !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

/// True if the path is the emulated host's, whether or not there is such a file: what is not there
/// is `ENOENT`, never the machine's own file. The path is absolute, without `.`, `..` and doubled slashes.
pub fn covers(path: &str) -> bool {
    node(path).is_some()
}

/// The same place by one name: `/proc/PID/net` is `/proc/net`, for every process. `None` if the path is not covered.
pub fn canonical(path: &str) -> Option<String> {
    Some(match node(path)? {
        Node::Net => "/proc/net".to_string(),
        Node::NetFile(name) => "/proc/net/".to_string() + name,
        Node::Sys(name) => "/proc/sys/".to_string() + name,
        Node::Interrupts => "/proc/interrupts".to_string(),
        Node::Softirqs => "/proc/softirqs".to_string(),
    })
}

impl Kernel {
    /// The text of a file of `/proc`; `None` if there is no such file, or it is a directory.
    pub fn procfs_read(&self, path: &str) -> Option<String> {
        match node(path)? {
            Node::Net => None,
            Node::NetFile(name) => self.proc_net(name),
            Node::Sys(name) => self.proc_sys_read(name),
            Node::Interrupts => Some(self.proc_interrupts()),
            Node::Softirqs => Some(self.proc_softirqs()),
        }
    }

    /// Writes a file of `/proc`; how many octets were taken: all.
    ///
    /// # Errors
    /// `ENOENT` if there is none of that name, `EACCES` if it is read only, `EISDIR` for a directory,
    /// `EINVAL` for a value that the host does not take.
    pub fn procfs_write(&mut self, path: &str, data: &[u8]) -> Result<usize, Errno> {
        match node(path).ok_or(Errno::ENOENT)? {
            Node::Sys(name) => self.proc_sys_write(name, data),
            Node::Net => Err(Errno::EISDIR),
            _ if self.procfs_mode(path).is_some() => Err(Errno::EACCES),
            _ => Err(Errno::ENOENT),
        }
    }

    /// What a directory holds, by name; `None` if there is no such directory.
    pub fn procfs_list(&self, path: &str) -> Option<Vec<DirEntry>> {
        match node(path)? {
            Node::Net => Some(net::NAMES.iter().map(|n| DirEntry::new(*n, Entry::File(0o444))).collect()),
            Node::Sys(name) => self.proc_sys_list(name),
            _ => None,
        }
    }

    /// Permission bits of a file or directory (`0o644`, `0o444`, `0o555`); `None` if it does not exist.
    pub fn procfs_mode(&self, path: &str) -> Option<u32> {
        match node(path)? {
            Node::Net => Some(DIRECTORY),
            Node::NetFile(name) => net::NAMES.contains(&name).then_some(0o444),
            Node::Sys(name) => self.proc_sys_mode(name),
            Node::Interrupts | Node::Softirqs => Some(0o444),
        }
    }

    /// What is at a path; `None` if there is nothing.
    pub fn procfs_entry(&self, path: &str) -> Option<Entry> {
        match (node(path)?, self.procfs_mode(path)?) {
            (Node::Net, _) | (Node::Sys(_), DIRECTORY) => Some(Entry::Directory),
            (_, mode) => Some(Entry::File(mode)),
        }
    }
}
