//! Calls that ask about a path without opening it: `stat`, `access`, `readlink`, `chdir` and their kin.
//!
//! What the node has is answered from the directory that shows it ([`super::shown`]): so that numbers of files are the same as those of
//! what a program opens. Paths from a directory's descriptor are not trapped at all ([`super::filter`]).

use super::Guests;
use super::calls::Outcome;
use super::change::{failed, may_override};
use super::fds::FILE;
use super::files::{TEXT, is_editable};
use super::notify::Notif;
use super::paths::{PATH_MAX, link};
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::vfs::procfs::Entry;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a call wants to know.
enum Ask {
    /// `struct stat`, to there.
    Stat(u64),
    /// `struct statx`, to there; flags, mask.
    Statx(u64, i32, u32),
    /// Whether these rights are there.
    Access(i32),
    /// What a link says: to there, so much.
    Link(u64, u64),
    /// To go there.
    Enter,
    /// An extended attribute.
    Attribute,
    /// All extended attributes.
    Attributes,
}

impl Guests {
    /// A call of [`super::filter::PATHS`].
    pub(super) fn sys_path(&mut self, shared: &Shared, c: Caller, n: &Notif) -> Result<Outcome, Errno> {
        let a = &n.args;
        let follows = |flags: u64| flags as i32 & libc::AT_SYMLINK_NOFOLLOW == 0;
        let (path, follow, ask) = match i64::from(n.nr) {
            libc::SYS_getcwd => return self.sys_getcwd(c, a[0], a[1]),
            libc::SYS_stat => (a[0], true, Ask::Stat(a[1])),
            libc::SYS_lstat => (a[0], false, Ask::Stat(a[1])),
            libc::SYS_newfstatat => (a[1], follows(a[3]), Ask::Stat(a[2])),
            libc::SYS_statx => (a[1], follows(a[2]), Ask::Statx(a[4], a[2] as i32, a[3] as u32)),
            libc::SYS_access => (a[0], true, Ask::Access(a[1] as i32)),
            libc::SYS_faccessat => (a[1], true, Ask::Access(a[2] as i32)),
            libc::SYS_faccessat2 => (a[1], follows(a[3]), Ask::Access(a[2] as i32)),
            libc::SYS_readlink => (a[0], false, Ask::Link(a[1], a[2])),
            libc::SYS_readlinkat => (a[1], false, Ask::Link(a[2], a[3])),
            libc::SYS_chdir => (a[0], true, Ask::Enter),
            libc::SYS_getxattr => (a[0], true, Ask::Attribute),
            libc::SYS_lgetxattr => (a[0], false, Ask::Attribute),
            libc::SYS_listxattr => (a[0], true, Ask::Attributes),
            libc::SYS_llistxattr => (a[0], false, Ask::Attributes),
            _ => return Ok(Outcome::Continue),
        };
        let mut buf = [0; PATH_MAX];
        let Ok(path) = c.mem.read_str(path, &mut buf) else { return Ok(Outcome::Continue) };
        let Some((place, entry)) = self.at_path(shared, c.tid, libc::AT_FDCWD, path, follow) else {
            return match ask {
                Ask::Link(to, room) => self.readlink_of_proc(c, path, to, room),
                _ => Ok(Outcome::Continue),
            };
        };
        let entry = entry?;
        match ask {
            Ask::Stat(to) => self.tell(shared, c, &place, to, |path| {
                let mut st = MaybeUninit::<libc::stat>::zeroed();
                // SAFETY: the path ends with a zero octet and the structure is large enough; both live until the call returns.
                let done = unsafe { libc::fstatat(libc::AT_FDCWD, path.as_ptr(), st.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
                // SAFETY: zeroes are a `stat`; it is written, or stays so.
                let mut st = unsafe { st.assume_init() };
                (st.st_uid, st.st_gid) = (0, 0);
                (done == 0).then_some(st)
            }),
            Ask::Statx(to, flags, mask) => self.tell(shared, c, &place, to, |path| {
                let mut st = MaybeUninit::<libc::statx>::zeroed();
                let flags = flags | libc::AT_SYMLINK_NOFOLLOW;
                // SAFETY: as above.
                let done = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, st.as_mut_ptr()) };
                // SAFETY: as above.
                let mut st = unsafe { st.assume_init() };
                (st.stx_uid, st.stx_gid) = (0, 0);
                (done == 0).then_some(st)
            }),
            Ask::Access(rights) if rights & libc::W_OK != 0 && is_editable(&place) && !may_override(c.tid) => Err(Errno::EACCES),
            Ask::Access(rights) => access(&entry, rights).map(|()| Outcome::Done(0)),
            Ask::Link(to, room) => match entry {
                Entry::Link(text) => answer_link(c, &text, to, room),
                _ => Err(Errno::EINVAL),
            },
            // The machine's kernel must have that directory too.
            Ask::Enter if entry == Entry::Directory => {
                self.shown.place(shared, &place).map(|_| Outcome::Continue).map_err(|_| Errno::EACCES)
            }
            Ask::Enter => Err(Errno::ENOTDIR),
            Ask::Attribute => Ok(Outcome::Done(-i64::from(libc::ENODATA))),
            Ask::Attributes => Ok(Outcome::Done(0)),
        }
    }

    /// Writes what `look` finds at the shown place to the program.
    fn tell<T>(
        &mut self,
        shared: &Shared,
        c: Caller,
        place: &str,
        to: u64,
        look: impl FnOnce(&CString) -> Option<T>,
    ) -> Result<Outcome, Errno> {
        let place = self.shown.place(shared, place).map_err(failed)?;
        let path = CString::new(Path::as_os_str(&place).as_bytes()).map_err(|_| Errno::ENOENT)?;
        let told = look(&path).ok_or_else(|| failed(io::Error::last_os_error()))?;
        // SAFETY: a structure of the machine's kernel, without references, that was zeroed before it was written: all its octets are set.
        let octets = unsafe { core::slice::from_raw_parts((&raw const told).cast::<u8>(), size_of::<T>()) };
        c.mem.write(to, octets).map(|()| Outcome::Done(0))
    }

    /// `getcwd`: a directory that shows one of the node's is called as that one.
    fn sys_getcwd(&self, c: Caller, to: u64, room: u64) -> Result<Outcome, Errno> {
        let mut buf = [MaybeUninit::uninit(); PATH_MAX];
        let Some(meant) = link(&format!("/proc/{}/cwd", c.tid), &mut buf).and_then(|cwd| self.shown.meant(cwd)) else {
            return Ok(Outcome::Continue);
        };
        let octets = [meant.as_bytes(), b"\0"].concat();
        if octets.len() as u64 > room {
            return Err(Errno::ERANGE);
        }
        c.mem.write(to, &octets).map(|()| Outcome::Done(octets.len() as i64))
    }

    /// `/proc/PID/cwd`, `/proc/PID/fd/N` of what shows something of the node.
    fn readlink_of_proc(&self, c: Caller, path: &[u8], to: u64, room: u64) -> Result<Outcome, Errno> {
        let parts = core::str::from_utf8(path).ok().and_then(|p| p.strip_prefix("/proc/")).and_then(|p| p.split_once('/'));
        let Some((who, what)) = parts.filter(|(_, what)| *what == "cwd" || what.starts_with("fd/")) else { return Ok(Outcome::Continue) };
        let who = match who {
            "self" => c.tgid.to_string(),
            "thread-self" => c.tid.to_string(),
            other => other.to_owned(),
        };
        let mut buf = [MaybeUninit::uninit(); PATH_MAX];
        let Some(text) = link(&format!("/proc/{who}/{what}"), &mut buf) else { return Ok(Outcome::Continue) };
        let file = text.strip_prefix("/memfd:").and_then(|t| t.strip_suffix(" (deleted)"));
        let numbered = |t: &str| self.files.get(t.parse::<usize>().ok()?).map(String::as_str);
        let opened = file.and_then(|t| t.strip_prefix(TEXT).or_else(|| numbered(t.strip_prefix(FILE)?)));
        match self.shown.meant(text).or(opened) {
            Some(meant) => answer_link(c, meant, to, room),
            None => Ok(Outcome::Continue),
        }
    }
}

/// Whether everybody has these rights; `open` decides alike.
fn access(entry: &Entry, rights: i32) -> Result<(), Errno> {
    if rights & !(libc::R_OK | libc::W_OK | libc::X_OK) != 0 {
        return Err(Errno::EINVAL);
    }
    let (writes, executes) = (rights & libc::W_OK != 0, rights & libc::X_OK != 0);
    let refused = match entry {
        Entry::File(mode) => executes || writes && mode & 0o200 == 0,
        Entry::Directory => writes,
        Entry::Link(_) => false,
    };
    if refused { Err(Errno::EACCES) } else { Ok(()) }
}

/// As `readlink` does: cut, without a zero octet.
fn answer_link(c: Caller, text: &str, to: u64, room: u64) -> Result<Outcome, Errno> {
    if room as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let len = text.len().min(room as u32 as usize);
    c.mem.write(to, &text.as_bytes()[..len]).map(|()| Outcome::Done(len as i64))
}
