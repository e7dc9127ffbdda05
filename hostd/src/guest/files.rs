//! Files that say who the host is: answered with the node's, in a memfd of the program's own.

use super::Guests;
use super::calls::Outcome;
use super::fds::{FILE, Kind};
use super::notify::{Listener, Notif};
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::vfs::procfs::covers;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use std::fmt::Write;
use std::io;
use std::rc::Rc;

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
        path: u64,
        flags: i32,
    ) -> Result<Outcome, Errno> {
        let mut buf = [0; PATH_MAX];
        // A path that cannot be read is the machine's kernel's to refuse.
        let Ok(path) = c.mem.read_str(path, &mut buf) else { return Ok(Outcome::Continue) };
        let Ok(path) = core::str::from_utf8(path) else { return Ok(Outcome::Continue) };
        if !path.starts_with("/etc/") && !path.starts_with("/proc/") || self.bound.iter().any(|b| b == path) {
            return Ok(Outcome::Continue);
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let text = match own(shared, path) {
            Some(_) if writes => return Err(Errno::EACCES),
            Some(text) => text,
            None if !covers(path) => return Ok(Outcome::Continue),
            None => {
                let kernel = shared.kernel();
                match (kernel.procfs_read(path), kernel.procfs_mode(path)) {
                    (Some(_), Some(mode)) if writes && mode & 0o200 == 0 => return Err(Errno::EACCES),
                    (Some(text), _) => text,
                    // A directory: its entries are the machine's, what is in them is not.
                    (None, Some(_)) if !writes => return Ok(Outcome::Continue),
                    (None, Some(_)) => return Err(Errno::EISDIR),
                    (None, None) => return Err(Errno::ENOENT),
                }
            }
        };
        let number = writes.then(|| self.file_number(path));
        let file = as_file(&text, number).map_err(|_| Errno::ENFILE)?;
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
        self.sys_open(shared, c, listener, n, n.args[1], u64::from_ne_bytes(flags) as i32)
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
