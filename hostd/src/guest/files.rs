//! Files that say who the host is: answered with the node's, in a memfd of the program's own.

use super::Guests;
use super::calls::{Outcome, read_iov};
use super::change::{failed, may_override};
use super::fds::{FILE, Kind};
use super::notify::{Listener, Notif};
use super::paths::{PATH_MAX, resolve};
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::uaccess::Iov;
use ringlab_kernel::vfs::procfs::{self, Entry};
use ringlab_kernel::vfs::sysfs;
use ringlab_preload::layout::{LIST, OBJECT};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use std::fmt::Write;
use std::io;
use std::rc::Rc;
use tracing::debug;

/// Octets of a value that is written.
const MAX_VALUE: usize = 4096;
/// Files of the host's own that its programs may write: it is as if they were mounted.
const EDITABLE: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
/// Permissions of files that say who the host is.
const ROOTS_TO_WRITE: u32 = 0o644;
const READ_ONLY: u32 = 0o444;
/// What of the flags of an `open` matters to the file itself.
const STATUS: i32 = libc::O_ACCMODE | libc::O_APPEND | libc::O_TRUNC | libc::O_NONBLOCK | libc::O_SYNC;
/// Name of a memfd with the text of a file: its path follows.
pub const TEXT: &str = "ringlab:";

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
        if path == OBJECT.as_bytes() && self.preload.is_some() {
            return self.open_object(shared, c, listener, n);
        }
        let follow = flags & libc::O_NOFOLLOW == 0;
        let Some((path, entry)) = self.at_path(shared, c.tid, dir, path, follow) else { return Ok(Outcome::Continue) };
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let exclusive = libc::O_CREAT | libc::O_EXCL;
        if entry.is_ok() && flags & exclusive == exclusive {
            return Err(Errno::EEXIST);
        }
        let (file, number) = match entry? {
            Entry::File(_) if flags & libc::O_DIRECTORY != 0 => return Ok(Outcome::Done(-i64::from(libc::ENOTDIR))),
            Entry::File(mode) if writes && mode & 0o200 == 0 => return Err(Errno::EACCES),
            Entry::File(_) if is_editable(&path) && (writes || flags & libc::O_TRUNC != 0) => {
                (self.open_to_write(shared, c, &path, flags)?, None)
            }
            Entry::File(_) if self.shown.is_kept(&path) => (self.open_kept(shared, &path, flags & STATUS)?, None),
            Entry::File(_) => {
                let number = writes.then(|| self.file_number(&path));
                (as_file(&path, &text(shared, &path)?, number).map_err(|_| Errno::ENFILE)?, number)
            }
            Entry::Directory if writes => return Err(Errno::EISDIR),
            Entry::Directory => (self.open_shown(shared, &path)?, None),
            // With `O_PATH` too: what is not open cannot be given.
            Entry::Link(_) => return Ok(Outcome::Done(-i64::from(libc::ELOOP))),
        };
        match listener.inject(n.id, file.as_fd(), flags & libc::O_CLOEXEC != 0) {
            Ok(fd) => {
                if let Some(proc) = self.procs.get_mut(&c.tgid) {
                    proc.cache.installed(fd, number.map_or(Kind::Real, Kind::File));
                }
                Ok(Outcome::Taken)
            }
            Err(errno) => Ok(self.not_injected(shared, c, n, errno)),
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

    /// The path that a program means, without links (`follow`: nor at its end), and what the node has there; `None` if it is not the
    /// node's to say.
    pub(super) fn at_path(&self, shared: &Shared, tid: i32, dir: i32, path: &[u8], follow: bool) -> Option<(String, Result<Entry, Errno>)> {
        let path = core::str::from_utf8(path).ok()?;
        let clean = resolve(&self.shown, tid, dir, path)?;
        if self.bound.iter().any(|b| *b == clean) {
            return None;
        }
        if own(shared, &clean).is_some() {
            let mode = if is_editable(&clean) { ROOTS_TO_WRITE } else { READ_ONLY };
            return Some((clean.into_owned(), Ok(Entry::File(mode))));
        }
        // What follows a link's name but its own slash goes on behind it.
        let follow = follow || path.ends_with('/') || path.ends_with("/.");
        let canonical = match sysfs::canonical(&clean, follow) {
            Some(canonical) => canonical,
            // A link, to a directory of the calling process, in Linux and here.
            None if clean == "/proc/net" && !follow => return None,
            None => procfs::canonical(&clean)?,
        };
        let kernel = shared.kernel();
        let entry = |path: &str| kernel.sysfs_entry(path).or_else(|| kernel.procfs_entry(path));
        let below_file = || canonical.rsplit_once('/').and_then(|(parent, _)| entry(parent)).is_some_and(|e| matches!(e, Entry::File(_)));
        let found = entry(&canonical).ok_or_else(|| if below_file() { Errno::ENOTDIR } else { Errno::ENOENT });
        Some((canonical, found))
    }

    /// Opens a directory of the node, as the machine's kernel shows it.
    fn open_shown(&mut self, shared: &Shared, path: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = self.shown.place(shared, path).and_then(|place| Ok(open(&place, flags, Mode::empty())?));
        opened.map_err(|error| {
            debug!(%error, path, "a directory cannot be shown");
            Errno::EACCES
        })
    }

    /// Opens a file that says who the host is, to change what it says.
    fn open_to_write(&mut self, shared: &Shared, c: Caller, path: &str, flags: i32) -> Result<OwnedFd, Errno> {
        if !may_override(c.tid) {
            return Err(Errno::EACCES);
        }
        self.open_kept(shared, path, flags & STATUS)
    }

    fn open_kept(&mut self, shared: &Shared, path: &str, flags: i32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC;
        self.shown.keep(shared, path).and_then(|place| Ok(open(&place, flags, Mode::empty())?)).map_err(failed)
    }

    /// `write` to a file of `/proc/sys/net`.
    pub(super) fn write_file(&mut self, shared: &Shared, c: Caller, file: u32, (at, len): (u64, u64)) -> Result<Outcome, Errno> {
        let mut value = vec![0; usize::try_from(len).unwrap_or(0).min(MAX_VALUE)];
        if !value.is_empty() {
            c.mem.read(at, &mut value)?;
        }
        self.put(shared, file, &value)
    }

    /// `writev` there: one value.
    pub(super) fn writev_file(&mut self, shared: &Shared, c: Caller, file: u32, a: &[u64; 6]) -> Result<Outcome, Errno> {
        let parts = match read_iov(c.mem, a[1], a[2])? {
            Iov::One(part) => vec![part],
            Iov::Many(parts) => parts,
            Iov::Source(..) => Vec::new(),
        };
        let mut value = Vec::new();
        for part in parts {
            let from = value.len();
            value.resize(from + usize::try_from(part.len).unwrap_or(0).min(MAX_VALUE - from), 0);
            c.mem.read(part.addr, &mut value[from..])?;
        }
        self.put(shared, file, &value)
    }

    fn put(&self, shared: &Shared, file: u32, value: &[u8]) -> Result<Outcome, Errno> {
        let path = self.files.get(file as usize).ok_or(Errno::EBADF)?;
        shared.kernel().procfs_write(path, value).map(|n| Outcome::Done(n as i64))
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

/// True if the host's programs may write a file of its own.
pub(super) fn is_editable(path: &str) -> bool {
    EDITABLE.contains(&path)
}

/// What a file of the node says.
fn text(shared: &Shared, path: &str) -> Result<String, Errno> {
    let kernel = shared.kernel();
    match (own(shared, path), kernel.sysfs_read(path)) {
        (Some(text), _) | (_, Some(Some(text))) => Ok(text),
        (_, Some(None)) => Err(Errno::EINVAL),
        _ => kernel.procfs_read(path).ok_or(Errno::ENOENT),
    }
}

/// What a file says that is not the kernel model's; `None` if it is none of those.
pub(super) fn own(shared: &Shared, path: &str) -> Option<String> {
    match path {
        "/etc/hosts" => Some(hosts(shared)),
        "/etc/hostname" | "/proc/sys/kernel/hostname" => Some(format!("{}\n", shared.hostname())),
        LIST if shared.preloads() => Some(format!("{OBJECT}\n")),
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
fn as_file(path: &str, text: &str, number: Option<u32>) -> io::Result<OwnedFd> {
    let name = number.map_or_else(|| format!("{TEXT}{path}"), |n| format!("{FILE}{n}"));
    let file = std::fs::File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    std::io::Write::write_all(&mut &file, text.as_bytes())?;
    let access = if number.is_some() { OFlags::RDWR } else { OFlags::RDONLY };
    Ok(open(format!("/proc/self/fd/{}", file.as_raw_fd()), access | OFlags::CLOEXEC, Mode::empty())?)
}
