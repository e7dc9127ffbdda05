//! What a lab could leave behind, looked at before and after.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Processes, interfaces, namespaces, mounts and shared memory that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Processes that know the state directory or have a file below it open, "pid: command line".
    pub processes: BTreeSet<String>,
    /// Interfaces of this namespace.
    pub interfaces: BTreeSet<String>,
    /// Mounts below the state directory.
    pub mounts: BTreeSet<String>,
    /// Files and directories below the state directory, but topologies that lie in it directly.
    pub files: BTreeSet<String>,
    /// POSIX shared memory.
    pub shared_memory: BTreeSet<String>,
}

impl Snapshot {
    /// Looks.
    pub fn of(dir: &Path) -> Self {
        let needle = dir.to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut files = BTreeSet::new();
        walk(dir, 0, &mut files);
        Self {
            processes: processes(&needle),
            interfaces: names(Path::new("/sys/class/net")),
            mounts: mounts.lines().filter(|l| l.contains(&needle)).map(str::to_string).collect(),
            files,
            shared_memory: names(Path::new("/dev/shm")),
        }
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Numbers of all processes but this one.
fn pids() -> impl Iterator<Item = String> {
    let own = std::process::id().to_string();
    names(Path::new("/proc")).into_iter().filter(move |n| n.bytes().all(|b| b.is_ascii_digit()) && *n != own)
}

/// A process's open files: descriptor's path below `/proc`, what it is.
fn open_files(pid: &str) -> impl Iterator<Item = (PathBuf, String)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|e| Some((e.path(), std::fs::read_link(e.path()).ok()?.to_string_lossy().into_owned())))
}

/// Processes that have the state directory in their arguments or environment, or a file below it open.
fn processes(needle: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pid in pids() {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (args, env) = (read("cmdline"), read("environ"));
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(needle);
        if has(&args) || has(&env) || open_files(&pid).any(|(_, file)| file.contains(needle)) {
            found.insert(format!("{pid}: {}", String::from_utf8_lossy(&args).replace('\0', " ")));
        }
    }
    found
}

fn walk(dir: &Path, depth: u32, files: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, depth + 1, files);
        } else if depth == 0 && path.extension().is_some_and(|e| e == "yaml") {
            continue;
        }
        files.insert(path.to_string_lossy().into_owned());
    }
}

/// What labs hold that has no name in a file system: kernel objects, known again by their numbers.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Shared memory (memfd) that the daemons have open.
    pub memory: BTreeSet<u64>,
    /// Network namespaces that are mounted below the state directory.
    pub namespaces: BTreeSet<u64>,
}

impl Held {
    /// What the labs below a state directory hold now.
    pub fn by(dir: &Path) -> Self {
        let inode = |path: &Path| std::fs::metadata(path).ok().map(|m| m.ino());
        let processes = processes(&dir.to_string_lossy());
        let pids = processes.iter().filter_map(|p| p.split_once(':')).map(|(pid, _)| pid);
        let files = pids.flat_map(open_files).filter(|(_, file)| file.starts_with("/memfd:"));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let prefix = format!("{}/", dir.display());
        let mounted = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&prefix));
        Self {
            memory: files.filter_map(|(fd, _)| inode(&fd)).collect(),
            namespaces: mounted.filter_map(|at| inode(Path::new(at))).collect(),
        }
    }

    /// Those that a process still has open, mapped, or runs in: "pid: what".
    pub fn still(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for pid in pids() {
            for (fd, file) in open_files(&pid) {
                if let Ok(m) = std::fs::metadata(&fd)
                    && (file.starts_with("/memfd:") && self.memory.contains(&m.ino())
                        || file.starts_with("net:[") && self.namespaces.contains(&m.ino()))
                {
                    found.insert(format!("{pid}: {file} open"));
                }
            }
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            // `range permissions offset device inode path`.
            for line in maps.lines().filter(|line| line.contains("/memfd:")) {
                if line.split_ascii_whitespace().nth(4).and_then(|n| n.parse().ok()).is_some_and(|n| self.memory.contains(&n)) {
                    found.insert(format!("{pid}: {line} mapped"));
                }
            }
            if std::fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| self.namespaces.contains(&m.ino())) {
                found.insert(format!("{pid}: runs in a namespace of the lab"));
            }
        }
        found
    }
}
