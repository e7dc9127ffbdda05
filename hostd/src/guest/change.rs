//! Calls that change what a path names: `rename`, `unlink`, `link`, `truncate`, `chmod` and their kin.
//!
//! The node's own files in `/etc` are as those of a container, that are mounted there one by one: nobody takes their name
//! away (`EBUSY`) or leads a link to them over the border (`EXDEV`); what is in them is changed in place, by who may change
//! files of root. All else of the node's is in file systems in which names cannot be made or removed. The machine's file of that
//! name is never reached.

use super::Guests;
use super::calls::Outcome;
use super::decode::u64_at;
use super::files::is_editable;
use super::notify::Notif;
use super::paths::PATH_MAX;
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::vfs::procfs::Entry;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;

/// `CAP_DAC_OVERRIDE`.
const MAY_OVERRIDE: u64 = 1 << 1;
/// Permissions that can be set.
const MODES: u32 = 0o7777;
/// No user, no group: they stay.
const NOBODY: u32 = u32::MAX;

/// What happens to a path.
#[derive(Clone, Copy)]
enum Change {
    /// It is removed.
    Remove,
    /// As a directory.
    RemoveDirectory,
    /// Something goes from here to there, or comes.
    Move,
    /// It gets another name.
    Link,
    /// Something new is made there.
    Make,
    /// Its length: so much.
    Length(i64),
    Mode(u32),
    Owner(u32, u32),
    /// Its times: those at this address.
    Times(Form, u64),
    /// An extended attribute.
    Attribute,
}

/// How times are passed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Seconds,
    Micros,
    Nanos,
}

/// A path that a call names: directory, address, whether a link at its end is followed, and what happens to it.
type Named = (i32, u64, bool, Change);

impl Guests {
    /// A call of [`super::filter::changes`].
    pub(super) fn sys_change(&mut self, shared: &Shared, c: Caller, n: &Notif) -> Result<Outcome, Errno> {
        let mut found = [None, None];
        for (slot, (dir, at, follow, change)) in found.iter_mut().zip(named(n).into_iter().flatten()) {
            let mut buf = [0; PATH_MAX];
            let Ok(path) = c.mem.read_str(at, &mut buf) else { return Ok(Outcome::Continue) };
            // An empty one means the descriptor itself, or nothing.
            if !path.is_empty() {
                let slash = path.ends_with(b"/");
                *slot = self.at_path(shared, c.tid, dir, path, follow).map(|(place, entry)| (place, entry, slash, change));
            }
        }
        if let [Some((from, Ok(_), _, Change::Move)), Some((to, _, _, Change::Move))] = &found
            && from == to
        {
            return Ok(Outcome::Done(0));
        }
        let Some((place, entry, slash, change)) = found.into_iter().flatten().next() else { return Ok(Outcome::Continue) };
        match entry {
            Ok(Entry::File(_)) if slash && !matches!(change, Change::Make) => Err(Errno::ENOTDIR),
            Ok(Entry::File(_)) if is_editable(&place) => self.change_own(shared, c, &place, change),
            entry => change_fixed(c, &place, entry, change),
        }
    }

    /// A file that says who the host is.
    fn change_own(&mut self, shared: &Shared, c: Caller, place: &str, change: Change) -> Result<Outcome, Errno> {
        let may = may_override(c.tid);
        let done = match change {
            Change::Make => return Err(Errno::EEXIST),
            Change::Link => return Ok(Outcome::Done(-i64::from(libc::EXDEV))),
            Change::Remove | Change::RemoveDirectory | Change::Move if !may => return Err(Errno::EACCES),
            Change::Remove | Change::Move => return Err(Errno::EBUSY),
            Change::RemoveDirectory => return Err(Errno::ENOTDIR),
            Change::Attribute => return Err(Errno::EOPNOTSUPP),
            Change::Owner(NOBODY, NOBODY) => Ok(()),
            // They are root's.
            Change::Owner(uid, gid) if may && [uid, gid].iter().all(|n| [0, NOBODY].contains(n)) => Ok(()),
            Change::Owner(..) => return Err(Errno::EPERM),
            Change::Length(..0) => return Err(Errno::EINVAL),
            Change::Length(_) if !may => return Err(Errno::EACCES),
            Change::Length(len) => {
                let place = self.shown.keep(shared, place);
                place.and_then(|place| File::options().write(true).open(place)?.set_len(len as u64))
            }
            Change::Mode(_) if !may => return Err(Errno::EPERM),
            Change::Mode(mode) => {
                let mode = Permissions::from_mode(mode & MODES);
                self.shown.place(shared, place).and_then(|place| std::fs::set_permissions(place, mode))
            }
            Change::Times(form, at) => {
                let times = read_times(c, form, at)?;
                if !may {
                    let now = [times.last_access, times.last_modification].iter().all(|t| t.tv_nsec == UTIME_NOW);
                    return Err(if now { Errno::EACCES } else { Errno::EPERM });
                }
                self.shown.place(shared, place).and_then(|place| Ok(utimensat(CWD, &place, &times, AtFlags::empty())?))
            }
        };
        done.map(|()| Outcome::Done(0)).map_err(failed)
    }
}

/// A path in the node's `/proc` and `/sys`: what can be changed there is changed by writing.
fn change_fixed(c: Caller, place: &str, entry: Result<Entry, Errno>, change: Change) -> Result<Outcome, Errno> {
    let names = || {
        // Not even for root are directories of settings to write.
        let closed = place.starts_with("/proc/sys/") || !may_override(c.tid);
        if closed { Err(Errno::EACCES) } else { Ok(()) }
    };
    let entry = match (entry, change) {
        (Ok(_), Change::Make) => return Err(Errno::EEXIST),
        (Err(Errno::ENOENT), Change::Make) if place.starts_with("/sys/") => return names().and(Err(Errno::EPERM)),
        (entry, _) => entry?,
    };
    let directory = entry == Entry::Directory;
    match change {
        Change::Link => Ok(Outcome::Done(-i64::from(libc::EXDEV))),
        Change::Remove | Change::RemoveDirectory | Change::Move | Change::Make => {
            names()?;
            Err(match change {
                Change::Remove if directory => Errno::EISDIR,
                Change::RemoveDirectory if !directory => Errno::ENOTDIR,
                _ => Errno::EPERM,
            })
        }
        Change::Length(..0) => Err(Errno::EINVAL),
        Change::Length(_) if directory => Err(Errno::EISDIR),
        Change::Length(_) if matches!(entry, Entry::File(mode) if mode & 0o200 != 0) => Ok(Outcome::Done(0)),
        Change::Length(_) => Err(Errno::EACCES),
        Change::Attribute => Err(Errno::EOPNOTSUPP),
        Change::Mode(_) | Change::Owner(..) | Change::Times(..) => Err(Errno::EPERM),
    }
}

/// True if a thread may write to files of root that others may only read.
pub(super) fn may_override(tid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let set = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    set.is_some_and(|set| set & MAY_OVERRIDE != 0)
}

/// What a call does to which paths, in the order in which Linux looks at them.
fn named(n: &Notif) -> [Option<Named>; 2] {
    use Change::{Attribute, Length, Link, Make, Mode, Move, Owner, Remove, RemoveDirectory, Times};
    let a = &n.args;
    let (here, dir) = (libc::AT_FDCWD, a[0] as i32);
    let follows = |flags: u64| flags as i32 & libc::AT_SYMLINK_NOFOLLOW == 0;
    let one = |named: Named| [Some(named), None];
    let owner = |at: usize| Owner(a[at] as u32, a[at + 1] as u32);
    match i64::from(n.nr) {
        libc::SYS_rename => [Some((here, a[0], false, Move)), Some((here, a[1], false, Move))],
        libc::SYS_renameat | libc::SYS_renameat2 => {
            let stays = i64::from(n.nr) == libc::SYS_renameat2 && a[4] as u32 & libc::RENAME_NOREPLACE != 0;
            [Some((dir, a[1], false, Move)), Some((a[2] as i32, a[3], false, if stays { Make } else { Move }))]
        }
        libc::SYS_unlink => one((here, a[0], false, Remove)),
        libc::SYS_unlinkat if a[2] as i32 & libc::AT_REMOVEDIR != 0 => one((dir, a[1], false, RemoveDirectory)),
        libc::SYS_unlinkat => one((dir, a[1], false, Remove)),
        libc::SYS_rmdir => one((here, a[0], false, RemoveDirectory)),
        libc::SYS_link => [Some((here, a[1], false, Make)), Some((here, a[0], false, Link))],
        libc::SYS_linkat => [Some((a[2] as i32, a[3], false, Make)), Some((dir, a[1], a[4] as i32 & libc::AT_SYMLINK_FOLLOW != 0, Link))],
        libc::SYS_symlink => one((here, a[1], false, Make)),
        libc::SYS_symlinkat => one((a[1] as i32, a[2], false, Make)),
        libc::SYS_mkdir | libc::SYS_mknod => one((here, a[0], false, Make)),
        libc::SYS_mkdirat | libc::SYS_mknodat => one((dir, a[1], false, Make)),
        libc::SYS_truncate => one((here, a[0], true, Length(a[1] as i64))),
        libc::SYS_chmod => one((here, a[0], true, Mode(a[1] as u32))),
        libc::SYS_fchmodat => one((dir, a[1], true, Mode(a[2] as u32))),
        libc::SYS_fchmodat2 => one((dir, a[1], follows(a[3]), Mode(a[2] as u32))),
        libc::SYS_chown => one((here, a[0], true, owner(1))),
        libc::SYS_lchown => one((here, a[0], false, owner(1))),
        libc::SYS_fchownat => one((dir, a[1], follows(a[4]), owner(2))),
        libc::SYS_utime => one((here, a[0], true, Times(Form::Seconds, a[1]))),
        libc::SYS_utimes => one((here, a[0], true, Times(Form::Micros, a[1]))),
        libc::SYS_futimesat => one((dir, a[1], true, Times(Form::Micros, a[2]))),
        libc::SYS_utimensat => one((dir, a[1], follows(a[3]), Times(Form::Nanos, a[2]))),
        libc::SYS_setxattr | libc::SYS_removexattr => one((here, a[0], true, Attribute)),
        libc::SYS_lsetxattr | libc::SYS_lremovexattr => one((here, a[0], false, Attribute)),
        _ => [None, None],
    }
}

fn read_times(c: Caller, form: Form, at: u64) -> Result<Timestamps, Errno> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    if at == 0 {
        return Ok(Timestamps { last_access: now, last_modification: now });
    }
    let mut b = [0; 32];
    let len = if form == Form::Seconds { 16 } else { 32 };
    c.mem.read(at, &mut b[..len])?;
    let word = |i: usize| u64_at(&b, 8 * i) as i64;
    let time = |sec: i64, fraction: i64| match form {
        Form::Seconds => Ok(Timespec { tv_sec: sec, tv_nsec: 0 }),
        Form::Micros if (0..1_000_000).contains(&fraction) => Ok(Timespec { tv_sec: sec, tv_nsec: 1000 * fraction }),
        Form::Nanos if (0..1_000_000_000).contains(&fraction) || [UTIME_NOW, UTIME_OMIT].contains(&fraction) => {
            Ok(Timespec { tv_sec: sec, tv_nsec: fraction })
        }
        Form::Micros | Form::Nanos => Err(Errno::EINVAL),
    };
    let (access, modification) = if form == Form::Seconds { ((0, 0), (1, 1)) } else { ((0, 1), (2, 3)) };
    Ok(Timestamps {
        last_access: time(word(access.0), word(access.1))?,
        last_modification: time(word(modification.0), word(modification.1))?,
    })
}

/// An error of the machine's.
pub(super) fn failed(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)).unwrap_or(Errno::EIO)
}
