//! Files that say who the host is: answered with the node's, in a memfd of the program's own.

use super::Guests;
use super::calls::Outcome;
use super::fds::{FILE, Kind};
use super::notify::{Listener, Notif};
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::vfs::procfs::{self, DirEntry};
use ringlab_kernel::vfs::sysfs;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use std::fmt::Write;
use std::io;
use std::rc::Rc;
use tracing::debug;

/// Longest path looked at (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Octets of a value that is written.
const MAX_VALUE: usize = 4096;

impl Guests {
    /// `open`, `openat`: the machine's files, but for those that say who the host is.
    pub(super) fn sys_open(
        &mut self,
        shared: &Shared,
        c: Caller,
        listener: &Rc<Listener>,
        n: &Notif,
        (dir, path, flags): (i32, u64, i32),
    ) -> Result<Outcome, Errno> {
        let mut buf = [0; PATH_MAX];
        // A path that cannot be read is the machine's kernel's to refuse.
        let Ok(path) = c.mem.read_str(path, &mut buf) else { return Ok(Outcome::Continue) };
        let Ok(path) = core::str::from_utf8(path) else { return Ok(Outcome::Continue) };
        let Some(path) = self.paths.resolve(c.tid, dir, path) else { return Ok(Outcome::Continue) };
        let path = &*path;
        if self.bound.iter().any(|b| b == path) {
            return Ok(Outcome::Continue);
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let (file, number) = match self.content(shared, path)? {
            Content::Machine => return Ok(Outcome::Continue),
            Content::Text { mode, .. } if writes && mode & 0o200 == 0 => return Err(Errno::EACCES),
            Content::Text { .. } if flags & libc::O_DIRECTORY != 0 => return Ok(Outcome::Done(-i64::from(libc::ENOTDIR))),
            Content::Text { text, .. } => {
                let number = writes.then(|| self.file_number(path));
                (as_file(&text, number).map_err(|_| Errno::ENFILE)?, number)
            }
            Content::Directory(_) if writes => return Err(Errno::EISDIR),
            Content::Directory(entries) => match self.paths.directory(shared.hostname(), path, &entries) {
                Ok(directory) => (directory, None),
                Err(error) => {
                    debug!(%error, path, "a directory cannot be shown");
                    return Err(Errno::EACCES);
                }
            },
        };
        match listener.inject(n.id, file.as_fd(), flags & libc::O_CLOEXEC != 0) {
            Ok(fd) => {
                if let Some(proc) = self.procs.get_mut(&c.tgid) {
                    proc.cache.installed(fd, number.map_or(Kind::Real, Kind::File));
                }
                Ok(Outcome::Taken)
            }
            Err(errno) => Ok(Outcome::Done(-i64::from(errno.raw_os_error()))),
        }
    }

    /// `openat2`.
    pub(super) fn sys_openat2(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        let mut flags = [0; 8];
        if c.mem.read(n.args[2], &mut flags).is_err() {
            return Ok(Outcome::Continue);
        }
        self.sys_open(shared, c, listener, n, (n.args[0] as i32, n.args[1], u64::from_ne_bytes(flags) as i32))
    }

    /// What the node has at a path.
    fn content(&self, shared: &Shared, path: &str) -> Result<Content, Errno> {
        if let Some(text) = own(shared, path) {
            return Ok(Content::Text { text, mode: 0o444 });
        }
        let kernel = shared.kernel();
        if sysfs::covers(path) {
            return match (kernel.sysfs_read(path), kernel.sysfs_list(path)) {
                (Some(Some(text)), _) => Ok(Content::Text { text, mode: 0o444 }),
                (Some(None), _) => Err(Errno::EINVAL),
                (None, Some(entries)) => Ok(Content::Directory(entries)),
                (None, None) => Err(Errno::ENOENT),
            };
        }
        if !procfs::covers(path) {
            return Ok(Content::Machine);
        }
        match (kernel.procfs_read(path), kernel.procfs_mode(path), kernel.procfs_list(path)) {
            (Some(text), Some(mode), _) => Ok(Content::Text { text, mode }),
            (_, _, Some(entries)) => Ok(Content::Directory(entries)),
            _ => Err(Errno::ENOENT),
        }
    }

    /// `write` to a file of `/proc/sys/net`.
    pub(super) fn write_file(&mut self, shared: &Shared, c: Caller, file: u32, a: &[u64; 6]) -> Result<Outcome, Errno> {
        let Some(path) = self.files.get(file as usize) else { return Err(Errno::EBADF) };
        let mut value = vec![0; usize::try_from(a[2]).unwrap_or(0).min(MAX_VALUE)];
        if !value.is_empty() {
            c.mem.read(a[1], &mut value)?;
        }
        shared.kernel().procfs_write(path, &value).map(|n| Outcome::Done(n as i64))
    }

    /// Number of a path: there are as many as the node has files that can be written.
    fn file_number(&mut self, path: &str) -> u32 {
        let at = self.files.iter().position(|p| p == path).unwrap_or_else(|| {
            self.files.push(path.to_owned());
            self.files.len() - 1
        });
        at as u32
    }
}

/// What is at a path.
enum Content {
    /// The machine's.
    Machine,
    /// A file of the node.
    Text {
        /// What it says.
        text: String,
        /// Its permissions.
        mode: u32,
    },
    /// A directory of the node.
    Directory(Vec<DirEntry>),
}

/// What a file says that is not the kernel model's; `None` if it is none of those.
fn own(shared: &Shared, path: &str) -> Option<String> {
    match path {
        "/etc/hosts" => Some(hosts(shared)),
        "/etc/hostname" | "/proc/sys/kernel/hostname" => Some(format!("{}\n", shared.hostname())),
        "/etc/resolv.conf" => Some("# No name server: names of the lab are in /etc/hosts.\n".to_owned()),
        _ => None,
    }
}

fn hosts(shared: &Shared) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    shared.each_host(|name, addr| {
        // A string takes everything.
        let _ = writeln!(text, "{addr}\t{name}");
    });
    text
}

/// A file with this content: to read; to write too if it has a number.
fn as_file(text: &str, number: Option<u32>) -> io::Result<OwnedFd> {
    let name = number.map_or_else(|| "ringlab".to_owned(), |n| format!("{FILE}{n}"));
    let file = std::fs::File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    std::io::Write::write_all(&mut &file, text.as_bytes())?;
    let access = if number.is_some() { OFlags::RDWR } else { OFlags::RDONLY };
    Ok(open(format!("/proc/self/fd/{}", file.as_raw_fd()), access | OFlags::CLOEXEC, Mode::empty())?)
}
