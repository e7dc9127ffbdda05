//! `hostd guest-ns`: namespaces in which programs of a host see a root and binds of their own.
//!
//! A process of hostd's own binary makes them, passes descriptors of them back and ends; programs enter them one by one.
//! All programs of a host share them, so that they see each other as programs of one machine do. Who may mount makes a mount
//! namespace; who may not, where the machine permits it, a user namespace first, in which one user and one group are known:
//! whoever runs hostd, under the number that the programs are to have.
//!
//! Mounts are made where the programs' root says: `openat2` resolves destinations within it, links and all.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

/// Name of the mode on the command line.
pub const NAME: &str = "guest-ns";
/// Name of the mode that only tries: exit status 0, or why not on standard output.
pub const PROBE: &str = "guest-ns-probe";

/// What of the machine is seen in every root.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What programs see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Their root; empty: the machine's.
    pub root: String,
    /// In order.
    pub binds: Vec<Bind>,
    /// User and group as which they see themselves, in a user namespace; `None`: without one.
    pub map: Option<(u32, u32)>,
}

/// A path of the machine at another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Of the machine.
    pub source: String,
    /// In the programs' root.
    pub destination: String,
    /// Nothing is written there.
    pub read_only: bool,
}

/// The namespaces; they go with the last descriptor and the last program.
#[derive(Debug)]
pub struct Namespaces {
    /// Mounts.
    pub mount: OwnedFd,
    /// Users.
    pub user: Option<OwnedFd>,
}

/// What the machine refused.
#[derive(Debug)]
pub struct Refused {
    /// What was tried, for people.
    pub what: String,
    /// The answer.
    pub error: io::Error,
}

/// True if this process may mount: no user namespace is needed.
pub fn may_mount() -> bool {
    has(CapabilitySet::SYS_ADMIN)
}

/// True if this process may start programs as any user, and supervise them.
pub fn may_change_user() -> bool {
    has(CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SYS_PTRACE)
}

fn has(wanted: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

impl View {
    /// Arguments of `hostd`; `channel` is a connected socket of the child.
    pub fn args(&self, channel: RawFd) -> Vec<OsString> {
        let map = self.map.map_or_else(|| "-".to_owned(), |(uid, gid)| format!("{uid}:{gid}"));
        let mut args: Vec<OsString> = vec![NAME.into(), channel.to_string().into(), map.into(), self.root.clone().into()];
        for bind in &self.binds {
            args.extend([bind.source.clone().into(), bind.destination.clone().into()]);
            args.push(if bind.read_only { "ro" } else { "rw" }.into());
        }
        args
    }

    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<(RawFd, Self)> {
        let mut next = || args.next()?.into_string().ok();
        let channel = next()?.parse().ok()?;
        let map = match next()?.split_once(':') {
            Some((uid, gid)) => Some((uid.parse().ok()?, gid.parse().ok()?)),
            None => None,
        };
        let root = next()?;
        let mut binds = Vec::new();
        while let Some(source) = next() {
            binds.push(Bind { source, destination: next()?, read_only: next()? == "ro" });
        }
        Some((channel, Self { root, binds, map }))
    }
}

/// Runs the mode: the first octet of its message is 0 if descriptors come with it, else the error follows.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some((channel, view)) = View::parse(args) else { return ExitCode::FAILURE };
    // SAFETY: hostd passes a descriptor of which this process has the only copy, and no one else here uses it.
    let channel = unsafe { OwnedFd::from_raw_fd(channel) };
    let sent = match make(&view) {
        Ok(made) => send(&channel, &made),
        Err(refused) => {
            let mut message = vec![1];
            message.extend(refused.error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
            message.extend(refused.what.as_bytes());
            rustix::net::send(&channel, &message, SendFlags::NOSIGNAL).map(drop)
        }
    };
    // If hostd has gone there is nobody to tell.
    if sent.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the mode that tries: `files` (root and binds), `user` (another user).
pub fn probe(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let user = args.next().is_some_and(|what| what == "user");
    let result = match (user, geteuid().is_root()) {
        (true, _) if may_change_user() => Ok(()),
        (true, true) => Err("CAP_SETUID, CAP_SETGID and CAP_SYS_PTRACE are not all there".to_owned()),
        _ => {
            let map = (!may_mount()).then(|| (geteuid().as_raw(), getegid().as_raw()));
            let bind = Bind { source: "/proc".into(), destination: "/proc".into(), read_only: true };
            let tried = make(&View { root: String::new(), binds: vec![bind], map });
            tried.map(drop).map_err(|r| format!("{}: {}", r.what, r.error))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            print!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn send(channel: &OwnedFd, made: &Namespaces) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let mut fds = vec![made.mount.as_fd()];
    fds.extend(made.user.iter().map(AsFd::as_fd));
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    rustix::net::sendmsg(channel, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

fn refused<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Refused {
    |error| Refused { what: what.into(), error: error.into() }
}

/// Puts this process, which has one thread, into new namespaces and arranges them.
fn make(view: &View) -> Result<Namespaces, Refused> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let mut flags = UnshareFlags::NEWNS;
    flags.set(UnshareFlags::NEWUSER, view.map.is_some());
    // SAFETY: the table of descriptors stays shared with nobody: `FILES` is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(refused("making namespaces"))?;
    if let Some((inside_uid, inside_gid)) = view.map {
        let write = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text);
        // Groups of the outside would be lost without a way back.
        write("setgroups", "deny".into()).map_err(refused("setgroups of a user namespace"))?;
        write("uid_map", format!("{inside_uid} {uid} 1")).map_err(refused("users of a user namespace"))?;
        write("gid_map", format!("{inside_gid} {gid} 1")).map_err(refused("groups of a user namespace"))?;
    }
    let entry = |name: &str| File::open(format!("/proc/self/ns/{name}")).map(OwnedFd::from).map_err(refused("namespaces in /proc"));
    let made = Namespaces { mount: entry("mnt")?, user: view.map.map(|_| entry("user")).transpose()? };
    // What the machine unmounts goes here, too; what is mounted here stays here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).map_err(refused("propagation of mounts"))?;
    let own_root = !view.root.is_empty();
    if own_root {
        // A root is a mount.
        mount_bind_recursive(&*view.root, &*view.root).map_err(refused(format!("root {}", view.root)))?;
    }
    let root = if own_root { &*view.root } else { "/" };
    let root_fd = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(refused(format!("root {root}")))?;
    let system = SYSTEM.iter().filter(|_| own_root).map(|s| Bind { source: (*s).into(), destination: (*s).into(), read_only: false });
    for bind in system.chain(view.binds.iter().cloned()) {
        mount(root_fd.as_fd(), &bind, own_root).map_err(|error| {
            let place = if own_root { format!("{}{}", view.root, bind.destination) } else { bind.destination.clone() };
            Refused { what: format!("mounting {} at {place}", bind.source), error }
        })?;
    }
    if own_root {
        become_root(root_fd.as_fd()).map_err(refused(format!("entering root {}", view.root)))?;
    }
    Ok(made)
}

fn mount(root: BorrowedFd<'_>, bind: &Bind, create: bool) -> io::Result<()> {
    let dir = std::fs::metadata(&bind.source)?.is_dir();
    let at = place(root, Path::new(&bind.destination), dir, create)?;
    mount_bind_recursive(&*bind.source, link_of(&at).as_str())?;
    if bind.read_only {
        read_only(&place(root, Path::new(&bind.destination), dir, false)?)?;
    }
    Ok(())
}

/// Path of a descriptor of this process.
fn link_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The destination of a mount, within the root. What is missing is made, if it may be: directories, and at the end a file if `dir` is not set.
fn place(root: BorrowedFd<'_>, path: &Path, dir: bool, create: bool) -> rustix::io::Result<OwnedFd> {
    let look = || openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
    match look() {
        Err(rustix::io::Errno::NOENT) if create => {}
        found => return found,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return look() };
    let parent = place(root, parent, true, create)?;
    if dir {
        mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        openat(&parent, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
    }
    look()
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 1;
const AT_RECURSIVE: u32 = 0x8000;

/// Makes a mount read-only, with all that is mounted below it.
fn read_only(at: &OwnedFd) -> io::Result<()> {
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };
    let flags = AT_RECURSIVE | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the path is a constant, and `attr` of the size given lives until the call returns; the kernel only reads both.
    let n = unsafe { libc::syscall(libc::SYS_mount_setattr, at.as_raw_fd(), c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a mount the root of the namespace, in place of the machine's.
fn become_root(root: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::process::fchdir(root)?;
    // Both at one place: the old root lies over the new one until it is unmounted.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// What a channel says: descriptors, or why there are none.
///
/// # Errors
/// [`Refused`].
pub fn answer(message: &[u8], mut fds: Vec<OwnedFd>, wants_user: bool) -> Result<Namespaces, Refused> {
    let lost = || Refused { what: "making namespaces".into(), error: io::Error::from_raw_os_error(libc::EIO) };
    match message {
        [0] if fds.len() == 1 + usize::from(wants_user) => {
            let user = if wants_user { fds.pop() } else { None };
            fds.pop().map(|mount| Namespaces { mount, user }).ok_or_else(lost)
        }
        [1, a, b, c, d, what @ ..] => Err(Refused {
            what: OsStr::from_bytes(what).to_string_lossy().into_owned(),
            error: io::Error::from_raw_os_error(i32::from_ne_bytes([*a, *b, *c, *d])),
        }),
        _ => Err(lost()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_make_survives_the_command_line() {
        let bind = |read_only| Bind { source: "/a b".into(), destination: "/c".into(), read_only };
        for map in [None, Some((0, 4711))] {
            let view = View { root: "/srv/x y".into(), binds: vec![bind(true), bind(false)], map };
            let args = view.args(7);
            assert_eq!(args[0], NAME);
            assert_eq!(View::parse(args.into_iter().skip(1)), Some((7, view)));
        }
        assert_eq!(View::parse(["7".into(), "-".into(), "".into(), "/a".into()].into_iter()), None);
    }

    #[test]
    fn missing_destinations_are_made_within_the_root() {
        let root = std::env::temp_dir().join(format!("ringlab-place-{}", std::process::id()));
        std::fs::create_dir_all(root.join("real")).expect("a fresh directory");
        std::os::unix::fs::symlink("/real", root.join("link")).expect("linked");
        let fd = open(&root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opened");
        let file = Path::new("/link/new/file");
        assert!(place(fd.as_fd(), file, false, false).is_err());
        assert!(place(fd.as_fd(), file, false, true).is_ok());
        assert!(root.join("real/new/file").is_file());
        assert!(place(fd.as_fd(), Path::new("/link/dir"), true, true).is_ok() && root.join("real/dir").is_dir());
        assert!(place(fd.as_fd(), Path::new("/"), true, true).is_ok());
        std::fs::remove_dir_all(&root).expect("removed");
    }

    #[test]
    fn answers_are_told_apart() {
        let mut message = vec![1];
        message.extend(libc::EPERM.to_ne_bytes());
        message.extend(b"root /x");
        let refused = answer(&message, Vec::new(), false).expect_err("refused");
        assert_eq!((refused.what.as_str(), refused.error.raw_os_error()), ("root /x", Some(libc::EPERM)));
        assert!(answer(&[0], Vec::new(), false).is_err() && answer(&[], Vec::new(), false).is_err());
        let fd = || OwnedFd::from(File::open("/dev/null").expect("there"));
        assert!(answer(&[0], vec![fd()], true).is_err());
        assert!(answer(&[0], vec![fd(), fd()], true).is_ok_and(|n| n.user.is_some()));
    }
}
