//! `hostd guest-init`: what a guest is between `fork` and `exec`.
//!
//! It has its standard streams already. It sets directory, user, root and terminal, installs the filter and
//! becomes the program. The filter's listener goes to hostd by a second thread: the first one's `sendmsg` is
//! trapped by then, and nobody answers yet.

use super::filter;
use super::namespace::Namespaces;
use ringlab_proto::account::Account;
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::mpsc;

/// Name of the mode on the command line.
pub const NAME: &str = "guest-init";

/// What a guest starts with, as it goes over the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// Directory; empty: stays.
    pub cwd: OsString,
    /// Standard input is a terminal, which becomes the controlling one.
    pub tty: bool,
    /// Limit of open descriptors (soft); hostd's own is raised.
    pub nofile: u64,
    /// Namespaces to enter.
    pub entry: Entry,
    /// User and groups to become.
    pub account: Option<Account>,
    /// Program and arguments.
    pub argv: Vec<OsString>,
}

/// Inherited descriptors of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    user: Option<RawFd>,
    mount: Option<RawFd>,
}

impl Entry {
    /// Lets the next child inherit them.
    ///
    /// # Errors
    /// Those of `fcntl`.
    pub fn of(namespaces: &Namespaces) -> io::Result<Self> {
        let user = namespaces.user.as_ref().map(inheritable).transpose()?;
        Ok(Self { user, mount: Some(inheritable(&namespaces.mount)?) })
    }

    fn enter(self) -> io::Result<()> {
        for (fd, kind) in [(self.user, LinkNameSpaceType::User), (self.mount, LinkNameSpaceType::Mount)] {
            let Some(fd) = fd else { continue };
            // SAFETY: hostd passes a descriptor of which this process has the only copy, and no one else here uses it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            move_into_link_name_space(fd.as_fd(), Some(kind))?;
        }
        Ok(())
    }
}

impl Spec {
    /// Arguments of `hostd`; `channel` is a connected socket of the child.
    pub fn args(&self, channel: RawFd) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![NAME.into(), channel.to_string().into(), self.cwd.clone()];
        args.push(if self.tty { "tty" } else { "pipes" }.into());
        args.push(self.nofile.to_string().into());
        let fd = |fd: Option<RawFd>| fd.map_or_else(|| "-".to_owned(), |fd| fd.to_string());
        args.push(format!("{},{}", fd(self.entry.user), fd(self.entry.mount)).into());
        args.push(self.account.as_ref().map_or_else(String::new, ids).into());
        args.extend(self.argv.iter().cloned());
        args
    }

    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<(RawFd, Self)> {
        let channel = args.next()?.to_str()?.parse().ok()?;
        let cwd = args.next()?;
        let tty = args.next()? == "tty";
        let nofile = args.next()?.to_str()?.parse().ok()?;
        let entry = args.next()?;
        let (user, mount) = entry.to_str()?.split_once(',')?;
        let entry = Entry { user: user.parse().ok(), mount: mount.parse().ok() };
        let account = account_of(args.next()?.to_str()?);
        let argv: Vec<OsString> = args.collect();
        (!argv.is_empty()).then_some((channel, Self { cwd, tty, nofile, entry, account, argv }))
    }
}

/// "uid gid group…"; names matter no more.
fn ids(account: &Account) -> String {
    let all = [account.uid, account.gid].into_iter().chain(account.groups.iter().copied());
    all.map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

fn account_of(text: &str) -> Option<Account> {
    let ids: Vec<u32> = text.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [uid, gid, groups @ ..] = &ids[..] else { return None };
    Some(Account { uid: *uid, gid: *gid, groups: groups.to_vec(), ..Account::default() })
}

/// What went wrong before the program was there, as it goes over the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Nothing: the listener comes with it.
    Listener = 0,
    /// The directory.
    Directory = 1,
    /// The session or the terminal.
    Session = 2,
    /// The filter.
    Filter = 3,
    /// `exec`.
    Exec = 4,
    /// Namespaces or user.
    User = 5,
}

/// Runs the mode; returns only if the program could not be started.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some((channel, spec)) = Spec::parse(args) else { return ExitCode::FAILURE };
    // SAFETY: hostd passes a descriptor of which this process has the only copy, and no one else here uses it.
    let channel = unsafe { OwnedFd::from_raw_fd(channel) };
    let (stage, error) = become_program(&channel, &spec);
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let mut message = [stage as u8; 5];
    message[1..].copy_from_slice(&errno.to_ne_bytes());
    // hostd tells whoever asked; if it has gone there is nobody to tell.
    let _ = rustix::net::send(&channel, &message, SendFlags::NOSIGNAL);
    ExitCode::FAILURE
}

fn become_program(channel: &OwnedFd, spec: &Spec) -> (Stage, io::Error) {
    let failed = |stage| move |error: rustix::io::Errno| (stage, io::Error::from(error));
    let prepared = keep_streams()
        .map_err(|e| (Stage::Session, e))
        .and_then(|()| enter_session(spec.tty).map_err(failed(Stage::Session)))
        .and_then(|()| limit_descriptors(spec.nofile).map_err(failed(Stage::Session)))
        .and_then(|()| spec.entry.enter().map_err(|e| (Stage::User, e)))
        .and_then(|()| match spec.cwd.is_empty() {
            true => Ok(()),
            false => rustix::process::chdir(&spec.cwd).map_err(failed(Stage::Directory)),
        })
        .and_then(|()| change_user(spec.account.as_ref()).map_err(failed(Stage::User)))
        .and_then(|()| filter_calls(channel).map_err(|e| (Stage::Filter, e)));
    match prepared {
        Ok(()) => (Stage::Exec, Command::new(&spec.argv[0]).args(&spec.argv[1..]).exec()),
        Err(failure) => failure,
    }
}

/// Descriptors but the standard streams end with `exec`: the channel, and whatever hostd got from who started the lab.
fn keep_streams() -> io::Result<()> {
    // SAFETY: no memory is passed; descriptors only get a flag.
    let n = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if n == 0 {
        return Ok(());
    }
    // Before Linux 5.11.
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|n| n.parse::<RawFd>().ok()).filter(|&fd| fd > 2) else { continue };
        // SAFETY: as above. The directory's own descriptor closes after the loop.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A session of its own: signals of a terminal, and hostd's, reach all of it.
fn enter_session(tty: bool) -> rustix::io::Result<()> {
    rustix::process::setsid()?;
    if tty {
        rustix::process::ioctl_tiocsctty(io::stdin())?;
    }
    Ok(())
}

/// The directory has been entered as whoever runs hostd: it may be one that the user cannot name.
fn change_user(account: Option<&Account>) -> rustix::io::Result<()> {
    if let Some(account) = account {
        // There is one thread yet.
        let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
        let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        // Lost with the change; hostd looks at this process before it becomes the program.
        set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    }
    // A host that dies takes its programs along. A change of user would forget it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
}

fn limit_descriptors(soft: u64) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(maximum.map_or(soft, |m| m.min(soft))), maximum })
}

/// Installs the filter on this thread and lets another one send its listener.
fn filter_calls(channel: &OwnedFd) -> io::Result<()> {
    let channel = channel.try_clone()?;
    let (give, take) = mpsc::sync_channel::<OwnedFd>(1);
    let sender = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // The other end is dropped if there is no filter.
        let Ok(listener) = take.recv() else { return Ok(()) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        let message = [Stage::Listener as u8; 5];
        rustix::net::sendmsg(&channel, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    })?;
    let program = filter::program();
    let listener = install(&program)?;
    // From here on this thread's calls may wait for hostd, which has nothing yet: only futexes until the other is done.
    let _ = give.send(listener);
    sender.join().unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::Other)))
}

#[repr(C)]
struct Program {
    len: u16,
    insns: *const super::bpf::Insn,
}

fn install(program: &[super::bpf::Insn]) -> io::Result<OwnedFd> {
    rustix::thread::set_no_new_privs(true)?;
    let prog = Program { len: program.len() as u16, insns: program.as_ptr() };
    // SAFETY: `prog` and the instructions live until the call returns; the kernel copies and checks them.
    let fd =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, &raw const prog) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The channel's number must survive `exec` of this mode: the parent's end of preparing it.
pub fn inheritable(channel: &OwnedFd) -> io::Result<RawFd> {
    rustix::io::fcntl_setfd(channel, rustix::io::FdFlags::empty())?;
    Ok(channel.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_start_survives_the_command_line() {
        let argv = vec!["ls".into(), "--x y".into(), "".into()];
        let account = Account { uid: 33, gid: 44, groups: vec![44, 7], ..Account::default() };
        let plain = Spec { cwd: "/tmp/a b".into(), tty: true, nofile: 1024, entry: Entry::default(), account: None, argv };
        let entry = Entry { user: None, mount: Some(9) };
        for spec in [Spec { entry, account: Some(account), ..plain.clone() }, plain] {
            let args = spec.args(7);
            assert_eq!(args[0], NAME);
            assert_eq!(Spec::parse(args.into_iter().skip(1)), Some((7, spec)));
        }
        assert_eq!(Spec::parse(["7".into(), "".into(), "tty".into(), "1".into()].into_iter()), None);
    }
}
