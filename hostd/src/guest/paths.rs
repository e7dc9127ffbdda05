//! Paths of programs that may mean a file of the node, and directories of the node.
//!
//! A path is resolved by its text alone: `.`, `..`, and the directory from which a relative one starts, which a link in `/proc`
//! names. Symbolic links are not followed (that might block): those of `/proc` to the calling process are known here.
//!
//! A directory of the node (`/sys/class/net`, `/proc/net`) is shown by one of the machine below the lab's run directory, which holds
//! the right names; what a program opens from there on is found by its path again.

use ringlab_kernel::vfs::procfs::DirEntry;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open, readlink};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Where files of the node are.
const COVERED: [&str; 3] = ["/etc/", "/proc/", "/sys/class/net"];

/// The shown directories of a host.
#[derive(Debug, Default)]
pub struct Paths {
    /// They lie below this, once there is one.
    shown: Option<PathBuf>,
}

impl Paths {
    /// The absolute path that a thread means, if it can be the node's.
    pub fn resolve<'a>(&self, tid: i32, dir: i32, path: &'a str) -> Option<Cow<'a, str>> {
        let whole = if path.starts_with('/') {
            if !COVERED.iter().any(|c| path.starts_with(c)) && !is_odd(path) {
                return None;
            }
            Cow::Borrowed(path)
        } else {
            let base = match dir {
                libc::AT_FDCWD => format!("/proc/{tid}/cwd"),
                fd => format!("/proc/{tid}/fd/{fd}"),
            };
            let base = readlink(base, Vec::new()).ok()?.into_string().ok()?;
            Cow::Owned(format!("{}/{path}", self.meant(&base)))
        };
        let clean = if is_odd(&whole) { Cow::Owned(normal(&whole)) } else { whole };
        COVERED.iter().any(|c| clean.starts_with(c)).then_some(clean)
    }

    /// The directory of the node that a directory of the machine shows, or itself.
    fn meant<'a>(&self, base: &'a str) -> &'a str {
        let below = self.shown.as_ref().and_then(|s| base.strip_prefix(s.to_str()?));
        below.filter(|rest| rest.starts_with('/')).unwrap_or(base)
    }

    /// A directory of the node with these entries.
    ///
    /// # Errors
    /// Those of making directories and files.
    pub fn directory(&mut self, host: &str, path: &str, entries: &[DirEntry]) -> io::Result<OwnedFd> {
        let shown = match &self.shown {
            Some(shown) => shown.clone(),
            None => {
                // Of this process: what an earlier one has left does not count.
                let shown = std::env::current_dir()?.join(format!("shown-{host}-{}", std::process::id()));
                std::fs::create_dir_all(&shown)?;
                self.shown.insert(shown).clone()
            }
        };
        // Of all processes one directory.
        let place = shown.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&place)?;
        fill(&place, entries)?;
        Ok(open(&place, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// Makes a directory hold exactly these.
fn fill(place: &Path, entries: &[DirEntry]) -> io::Result<()> {
    let wanted: BTreeSet<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    for there in std::fs::read_dir(place)?.flatten().filter(|e| e.file_name().to_str().is_none_or(|n| !wanted.contains(n))) {
        if there.file_type()?.is_dir() { std::fs::remove_dir_all(there.path())? } else { std::fs::remove_file(there.path())? }
    }
    for entry in entries {
        let at = place.join(&entry.name);
        match (at.exists(), entry.dir) {
            (true, _) => {}
            (false, true) => std::fs::create_dir(at)?,
            (false, false) => drop(std::fs::File::create(at)?),
        }
    }
    Ok(())
}

/// True if the text has more than names between single slashes, or leads through a link to a root.
fn is_odd(path: &str) -> bool {
    path.contains("//") || path.contains("/.") || path.contains("/root/") || path.len() > 1 && path.ends_with('/')
}

/// Without `.`, `..`, doubled slashes, and without `/proc/PROCESS/root` in front.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
        let is_process = |who: &str| who == "self" || who == "thread-self" || who.bytes().all(|b| b.is_ascii_digit());
        if matches!(parts[..], ["proc", who, "root"] if is_process(who)) {
            parts.clear();
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_form_are_known() {
        let paths = Paths::default();
        let is = |path: &str| paths.resolve(std::process::id() as i32, libc::AT_FDCWD, path).map(Cow::into_owned);
        assert_eq!(is("/etc/hosts").as_deref(), Some("/etc/hosts"));
        assert_eq!(is("/etc/../proc//net/./tcp").as_deref(), Some("/proc/net/tcp"));
        assert_eq!(is("/proc/self/root/etc/hosts").as_deref(), Some("/etc/hosts"));
        assert_eq!(is("/usr/../sys/class/net/").as_deref(), Some("/sys/class/net"));
        assert_eq!((is("/usr/lib/x"), is("/tmp/../usr/x"), is("Cargo.toml")), (None, None, None));
        let dir = std::fs::File::open("/etc").expect("there");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
        assert_eq!(paths.resolve(std::process::id() as i32, fd, "hosts").as_deref(), Some("/etc/hosts"));
        assert_eq!(paths.resolve(std::process::id() as i32, fd, "../proc/net/tcp").as_deref(), Some("/proc/net/tcp"));
    }

    #[test]
    fn shown_directory_holds_what_is_there_now() {
        let base = std::env::temp_dir().join(format!("ringlab-shown-{}", std::process::id()));
        let mut paths = Paths { shown: Some(base.clone()) };
        let entry = |name: &str, dir| DirEntry { name: name.into(), dir };
        let names = |fd: &OwnedFd| {
            let dir = std::fs::read_dir(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd))).expect("listed");
            dir.flatten().map(|e| e.file_name().into_string().expect("text")).collect::<BTreeSet<_>>()
        };
        let fd = paths.directory("h", "/sys/class/net", &[entry("lo", true), entry("x", false)]).expect("shown");
        assert_eq!(names(&fd), ["lo".to_owned(), "x".into()].into());
        let again = paths.directory("h", "/sys/class/net", &[entry("lo", true), entry("eth0", true)]).expect("shown");
        assert_eq!(names(&again), ["lo".to_owned(), "eth0".into()].into());
        let meant = paths.resolve(std::process::id() as i32, std::os::fd::AsRawFd::as_raw_fd(&again), "lo/mtu");
        assert_eq!(meant.as_deref(), Some("/sys/class/net/lo/mtu"));
        std::fs::remove_dir_all(base).expect("removed");
    }
}
