//! What test processes have left that were killed: they removed nothing. The next run does, at its start.
//!
//! Everything that tests make is named by its process ([`crate::unique`]), and directories are locked by it as long as it lives. Removed is
//! what a process made that is gone and whose lock nobody holds (it might live where its number means nothing, in another container),
//! with the processes that belong to it: those that have the state directory in their environment, or run in the namespace.

use crate::bin_dir;
use crate::reach::temporary;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Begins the names of state directories.
pub const SITE: &str = "ringlab-test-";
/// Begins the names of directories with files only.
const FILES: [&str; 3] = ["ringlab-files-", "ringlab-bench-", "ringlab-parity-"];
/// Begins the names of namespaces.
pub const NAMESPACE: &str = "rlv";
/// Where named namespaces are.
const NAMESPACES: &str = "/run/netns";
/// Users that tests take besides the one that runs them.
const ORDINARY: [u32; 2] = [54321, 54322];
/// How long one thing of another process may take to go.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sweeps once in this process.
pub(crate) fn sweep_once() {
    static DONE: Once = Once::new();
    DONE.call_once(sweep);
}

/// Makes a directory that [`sweep`] removes when this process has been killed.
///
/// # Errors
/// Those of making it.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    std::fs::create_dir(path)?;
    let dir = File::open(path)?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(dir);
    Ok(())
}

/// Removes what killed test processes have left.
pub fn sweep() {
    let places = BTreeSet::from([std::env::temp_dir(), temporary()]);
    for (path, name) in places.iter().flat_map(|dir| entries(dir)) {
        let site = is_of_the_dead(&name, SITE);
        if (site || FILES.iter().any(|prefix| is_of_the_dead(&name, prefix)))
            && let Some(_lock) = take(&path)
        {
            if site {
                end_site(&path);
            }
            // If it cannot be removed, whoever cleans temporary files will.
            let _ = std::fs::remove_dir_all(&path);
        }
    }
    for (path, name) in entries(Path::new(NAMESPACES)).into_iter().filter(|(_, name)| is_of_the_dead(name, NAMESPACE)) {
        if let Ok(meta) = std::fs::metadata(&path) {
            let runs_there =
                |pid| std::fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| m.ino() == meta.ino() && m.dev() == meta.dev());
            end_processes(runs_there);
        }
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
}

fn entries(dir: &Path) -> Vec<(PathBuf, String)> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
    all.filter_map(|e| Some((e.path(), e.file_name().into_string().ok()?))).collect()
}

/// True for a name of [`crate::unique`] whose process is gone.
fn is_of_the_dead(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix).and_then(|rest| rest.split_once('-'));
    let Some((Ok(number), _)) =
        rest.map(|(number, count)| (number.parse(), count)).filter(|(_, count)| count.starts_with(|c: char| c.is_ascii_digit()))
    else {
        return false;
    };
    Pid::from_raw(number).is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// The lock of a directory that tests have made and nobody holds any more.
fn take(path: &Path) -> Option<File> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    let own = geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != own && !(own == 0 && ORDINARY.contains(&meta.uid())) {
        return None;
    }
    let dir = File::open(path).ok()?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(dir)
}

/// Ends the labs below a state directory, and what remains of them if that fails: an agent of another user hears nobody else.
pub(crate) fn end_site(dir: &Path) {
    let labctl = bin_dir().join("labctl");
    let mut destroy = Command::new(labctl);
    destroy.args(["destroy", "--all"]).env("RINGLAB_DIR", dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Ok(mut child) = destroy.spawn() {
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().is_ok_and(|end| end.is_none()) {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let entry = [b"RINGLAB_DIR=", dir.as_os_str().as_bytes()].concat();
    end_processes(|pid| std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| env.split(|&b| b == 0).any(|one| one == entry)));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at) != dir && Path::new(at).starts_with(dir));
    for at in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["-l", at]).stderr(Stdio::null()).status();
    }
}

/// Kills processes until there are none of these.
fn end_processes(belongs: impl Fn(i32) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let own = std::process::id() as i32;
    loop {
        let numbers = entries(Path::new("/proc")).into_iter().filter_map(|(_, name)| name.parse().ok());
        let found: Vec<Pid> = numbers.filter(|&pid| pid != own && belongs(pid)).filter_map(Pid::from_raw).collect();
        if found.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
