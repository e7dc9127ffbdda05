//! Abstract names of `AF_UNIX` sockets: a host's own, as far as the machine permits.
//!
//! They belong to a network namespace. Who may make one gives the host's programs an empty one: the names are the host's. Who may not
//! asks Landlock (Linux 6.12) that sockets beyond the host's programs cannot be reached by them; the names stay
//! the machine's. Both are inherited, so the programs' parent does it once.

use rustix::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::thread::{UnshareFlags, set_no_new_privs};
use std::io;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`.
const SCOPE_ABSTRACT: u64 = 1;

/// Separates this process, which has one thread, and all that it will start.
///
/// # Errors
/// Those of the machine that permits neither.
pub fn separate_names() -> io::Result<()> {
    // SAFETY: the table of descriptors stays shared with nobody: `FILES` is not among the flags.
    match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
        Ok(()) => Ok(()),
        Err(_) => restrict(),
    }
}

fn restrict() -> io::Result<()> {
    let rules = Ruleset { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPE_ABSTRACT };
    // SAFETY: `rules`, of the size given, lives until the call returns, and the kernel only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size_of::<Ruleset>(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor, which nobody else knows.
    let rules = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // Every program gets it anyway, for its filter.
    set_no_new_privs(true)?;
    // SAFETY: no memory is passed.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
