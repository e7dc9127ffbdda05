//! Paths of programs that may mean a file of the node.
//!
//! A path is resolved by its text alone: `.`, `..`, and the directory from which a relative one starts, which a link in `/proc`
//! names. Symbolic links are not followed (that might block): those of `/proc` to the calling process are known here.
//!
//! A directory of the node (`/sys/class/net`, `/proc/net`) is shown by one of the machine ([`super::shown`]); what a program
//! opens from there on is found by its path again.

use super::shown::Shown;
use rustix::fs::{CWD, readlinkat_raw};
use std::borrow::Cow;
use std::mem::MaybeUninit;

/// Where files of the node are.
const COVERED: [&str; 4] = ["/etc/", "/proc/", "/sys/class/net", "/sys/devices/virtual/net"];
/// A path that starts elsewhere gets there only by `..`.
const TOPS: [&str; 3] = ["/etc", "/proc", "/sys"];
/// Longest path looked at (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;

/// The absolute path that a thread means, if it can be the node's: without `.`, `..`, doubled slashes, and a slash at its end.
pub fn resolve<'a>(shown: &Shown, tid: i32, dir: i32, path: &'a str) -> Option<Cow<'a, str>> {
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
        let mut buf = [MaybeUninit::uninit(); PATH_MAX];
        let base = link(&base, &mut buf)?;
        let base = shown.meant(base).unwrap_or(base);
        if base.len() > 1 && !path.contains("..") && !TOPS.iter().any(|top| base.starts_with(top)) {
            return None;
        }
        Cow::Owned(format!("{base}/{path}"))
    };
    let clean = if is_odd(&whole) { Cow::Owned(normal(&whole)) } else { whole };
    COVERED.iter().any(|c| clean.starts_with(c)).then_some(clean)
}

/// What a link of `/proc` says; `None` if it is none, or no text.
pub fn link<'b>(path: &str, buf: &'b mut [MaybeUninit<u8>]) -> Option<&'b str> {
    let (text, _) = readlinkat_raw(CWD, path, buf).ok()?;
    core::str::from_utf8(text).ok()
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
        let shown = Shown::default();
        let resolved = |dir, path| resolve(&shown, std::process::id() as i32, dir, path).map(Cow::into_owned);
        let is = |path| resolved(libc::AT_FDCWD, path);
        assert_eq!(is("/etc/hosts").as_deref(), Some("/etc/hosts"));
        assert_eq!(is("/etc/../proc//net/./tcp").as_deref(), Some("/proc/net/tcp"));
        assert_eq!(is("/proc/self/root/etc/hosts").as_deref(), Some("/etc/hosts"));
        assert_eq!(is("/usr/../sys/class/net/").as_deref(), Some("/sys/class/net"));
        assert_eq!((is("/usr/lib/x"), is("/tmp/../usr/x"), is("Cargo.toml")), (None, None, None));
        let dir = std::fs::File::open("/etc").expect("there");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
        assert_eq!(resolved(fd, "hosts").as_deref(), Some("/etc/hosts"));
        assert_eq!(resolved(fd, "../proc/net/tcp").as_deref(), Some("/proc/net/tcp"));
    }
}
