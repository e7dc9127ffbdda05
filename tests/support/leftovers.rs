//! What a lab could leave behind, looked at before and after.

use std::collections::BTreeSet;
use std::path::Path;

/// Processes, interfaces, namespaces, mounts and shared memory that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// `nicd`, `hostd`, `labctl` processes below a state directory, "pid: command line".
    pub processes: BTreeSet<String>,
    /// Interfaces of this namespace.
    pub interfaces: BTreeSet<String>,
    /// Mounts below the state directory.
    pub mounts: BTreeSet<String>,
    /// Files below the state directory but topologies.
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
        walk(dir, &mut files);
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

/// Processes that have the state directory in their arguments or environment.
fn processes(needle: &str) -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let mut found = BTreeSet::new();
    for pid in names(Path::new("/proc")).into_iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit()) && *n != own) {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (args, env) = (read("cmdline"), read("environ"));
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(needle);
        if has(&args) || has(&env) {
            found.insert(format!("{pid}: {}", String::from_utf8_lossy(&args).replace('\0', " ")));
        }
    }
    found
}

fn walk(dir: &Path, files: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, files);
        } else if path.extension().is_none_or(|e| e != "yaml") {
            files.insert(path.to_string_lossy().into_owned());
        }
    }
}
