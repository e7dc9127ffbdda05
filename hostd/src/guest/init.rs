//! What a guest is between `fork` and `exec`.
//!
//! It has its standard streams already ([`super::guard`]). It sets directory, user, root and terminal, installs the filter and
//! becomes the program. The filter's listener goes to hostd by a second thread: the first one's `sendmsg` is
//! trapped by then, and nobody answers yet.

use super::filter;
use super::namespace::Namespaces;
use ringlab_proto::account::Account;
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;

/// What a guest starts with, as it goes to the guard: strings, each with a zero octet at its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// Directory; empty: stays.
    pub cwd: OsString,
    /// Standard input is a terminal, which becomes the controlling one.
    pub tty: bool,
    /// Limit of open descriptors (soft); hostd's own is raised.
    pub nofile: u64,
    /// User and groups to become.
    pub account: Option<Account>,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Environment.
    pub env: Vec<(OsString, OsString)>,
}

impl Spec {
    /// As it goes to the guard.
    ///
    /// # Errors
    /// `EINVAL` if a string has a zero octet in it.
    pub fn emit(&self) -> io::Result<Vec<u8>> {
        let account = self.account.as_ref().map_or_else(String::new, ids);
        let numbers = [u64::from(self.tty), self.nofile, self.argv.len() as u64].map(|n| n.to_string());
        let numbers = numbers.iter().map(String::as_bytes);
        let env = self.env.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        let strings =
            [self.cwd.as_bytes(), account.as_bytes()].into_iter().chain(numbers).chain(self.argv.iter().map(|a| a.as_bytes())).chain(env);
        let mut octets = Vec::new();
        for string in strings {
            if string.contains(&0) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            octets.extend(string);
            octets.push(0);
        }
        Ok(octets)
    }

    /// Takes it apart; `None` if it is none.
    pub fn parse(octets: &[u8]) -> Option<Self> {
        let mut strings = octets.strip_suffix(&[0])?.split(|&b| b == 0).map(|s| OsStr::from_bytes(s).to_owned());
        let cwd = strings.next()?;
        let account = account_of(strings.next()?.to_str()?);
        let mut number = || strings.next()?.to_str()?.parse::<u64>().ok();
        let (tty, nofile, count) = (number()? != 0, number()?, number()?);
        let argv: Vec<OsString> = strings.by_ref().take(usize::try_from(count).ok()?).collect();
        let mut env = Vec::new();
        while let Some(name) = strings.next() {
            env.push((name, strings.next()?));
        }
        (count > 0 && argv.len() as u64 == count).then_some(Self { cwd, tty, nofile, account, argv, env })
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

/// Becomes the program; if that fails, says why and ends.
pub fn run(channel: &OwnedFd, spec: &Spec, namespaces: Option<&Namespaces>) -> ! {
    let (stage, error) = become_program(channel, spec, namespaces);
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let mut message = [stage as u8; 5];
    message[1..].copy_from_slice(&errno.to_ne_bytes());
    // hostd tells whoever asked; if it has gone there is nobody to tell.
    let _ = rustix::net::send(channel, &message, SendFlags::NOSIGNAL);
    std::process::exit(1)
}

fn become_program(channel: &OwnedFd, spec: &Spec, namespaces: Option<&Namespaces>) -> (Stage, io::Error) {
    let failed = |stage| move |error: rustix::io::Errno| (stage, io::Error::from(error));
    let prepared = keep_streams()
        .map_err(|e| (Stage::Session, e))
        .and_then(|()| enter_session(spec.tty).map_err(failed(Stage::Session)))
        .and_then(|()| limit_descriptors(spec.nofile).map_err(failed(Stage::Session)))
        .and_then(|()| namespaces.map_or(Ok(()), enter).map_err(failed(Stage::User)))
        .and_then(|()| match spec.cwd.is_empty() {
            true => Ok(()),
            false => rustix::process::chdir(&spec.cwd).map_err(failed(Stage::Directory)),
        })
        .and_then(|()| change_user(spec.account.as_ref()).map_err(failed(Stage::User)))
        .and_then(|()| filter_calls(channel).map_err(|e| (Stage::Filter, e)));
    match prepared {
        Ok(()) => (Stage::Exec, {
            let env = spec.env.iter().map(|(name, value)| (name, value));
            Command::new(&spec.argv[0]).args(&spec.argv[1..]).env_clear().envs(env).exec()
        }),
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

fn enter(namespaces: &Namespaces) -> rustix::io::Result<()> {
    if let Some(user) = &namespaces.user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    move_into_link_name_space(namespaces.mount.as_fd(), Some(LinkNameSpaceType::Mount))
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
    // The guard's end is the host's: at once, not when it has been noticed. A change of user would forget it.
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
    fn what_is_to_start_survives_the_channel() {
        let env = vec![("A".into(), "".into()), ("B".into(), "x y=\n".into())];
        let argv: Vec<OsString> = vec!["ls".into(), "--x y".into(), "".into()];
        let account = Some(Account { uid: 33, gid: 44, groups: vec![44, 7], ..Account::default() });
        let spec = Spec { cwd: "/tmp/a b".into(), tty: true, nofile: 1024, account, argv, env };
        let octets = spec.emit().expect("no zero octets");
        assert_eq!(Spec::parse(&octets), Some(spec.clone()));
        let bare = Spec { argv: vec!["ls".into()], ..Spec::default() };
        assert_eq!(Spec::parse(&bare.emit().expect("no zero octets")), Some(bare));
        for broken in [&b""[..], b"\0", b"/\0\x000\x001\x002\0ls\0", b"/\0\x000\x001\x000\0", b"/\0\x000\x001\x001\0ls\0A\0"] {
            assert_eq!(Spec::parse(broken), None);
        }
        let zero = Spec { argv: vec!["a\0b".into()], ..spec };
        assert_eq!(zero.emit().map_err(|e| e.raw_os_error()), Err(Some(libc::EINVAL)));
    }
}
