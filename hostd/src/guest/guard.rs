//! `hostd guest-guard`: the parent of a host's programs, which sees to it that none of them outlives hostd.
//!
//! A program may fork, change its session and let its parents end: only a *subreaper* above it finds it again, and
//! hostd is gone when it matters. So hostd's first program starts this process, which starts that one and all others
//! (by `fork`: it has one thread), tells how they end, and adopts what they leave behind. When hostd's end of the channel
//! closes, however hostd ended, it kills whatever descends from it. It needs no privilege and no namespace.
//!
//! ```text
//! hostd ── request: what to start, its streams ──▶ guard ── fork ──▶ init ──▶ program ──▶ …
//!       ◀── started, ended ───────────────────────
//! ```

use super::init::{self, Spec};
use super::launch::kill_descendants;
use super::namespace::Namespaces;
use crate::programs::process::Exit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, WaitOptions, wait};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// Name of the mode on the command line.
pub const NAME: &str = "guest-guard";
/// What comes with a request: what to start, the program's channel, its standard streams.
const DESCRIPTORS: usize = 5;
/// The same, with namespaces to enter.
const MOST: usize = DESCRIPTORS + 2;

/// What the guard tells: kind, process, status or error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The oldest request's process.
    Started(i32),
    /// The oldest request failed.
    Failed(i32),
    /// A process has ended: its number, what `wait` says.
    Ended(i32, i32),
}

impl News {
    const LEN: usize = 12;

    fn emit(self) -> [u8; Self::LEN] {
        let words = match self {
            Self::Started(pid) => [0, pid, 0],
            Self::Failed(errno) => [1, 0, errno],
            Self::Ended(pid, status) => [2, pid, status],
        };
        let mut b = [0; Self::LEN];
        b.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        b
    }

    fn parse(b: &[u8; Self::LEN]) -> Option<Self> {
        let word = |at: usize| i32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        match word(0) {
            0 => Some(Self::Started(word(4))),
            1 => Some(Self::Failed(word(8))),
            2 => Some(Self::Ended(word(4), word(8))),
            _ => None,
        }
    }
}

/// Runs the mode.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(number) = args.next().and_then(|a| a.to_str()?.parse().ok()) else { return ExitCode::FAILURE };
    // SAFETY: hostd passes a descriptor of which this process has the only copy, and no one else here uses it.
    let channel = unsafe { OwnedFd::from_raw_fd(number) };
    match serve(&channel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostd {NAME}: {error}");
            kill_descendants();
            ExitCode::FAILURE
        }
    }
}

fn serve(channel: &OwnedFd) -> io::Result<()> {
    rustix::io::fcntl_setfd(channel, rustix::io::FdFlags::CLOEXEC)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // ^C at a terminal that hostd was started from is hostd's affair.
    let _ = rustix::process::setsid();
    // A machine that permits neither way lets hosts share these names.
    let _ = super::scope::separate_names();
    let ends = ends_of_children()?;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(ends.as_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (asked, ended) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if ended {
            // Which ones, `wait` tells.
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            let _ = rustix::io::read(&ends, &mut info[..]);
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                tell(channel, News::Ended(pid.as_raw_nonzero().get(), status.as_raw()));
            }
        }
        if asked {
            match receive(channel.as_fd()) {
                Ok(None) | Err(rustix::io::Errno::CONNRESET) => {
                    kill_descendants();
                    return Ok(());
                }
                Ok(Some(fds)) => {
                    let news = begin(fds).unwrap_or_else(|e| News::Failed(e.raw_os_error().unwrap_or(libc::EIO)));
                    tell(channel, news);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// hostd may have gone: that shows when the next request is awaited.
fn tell(channel: &OwnedFd, news: News) {
    let _ = rustix::net::send(channel, &news.emit(), SendFlags::NOSIGNAL);
}

/// Blocks `SIGCHLD`, or lets it through again; the set that it is.
fn mask_sigchld(how: i32) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by the first call before the others read it. This process has one thread.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigprocmask(how, set.as_ptr(), core::ptr::null_mut());
        set.assume_init()
    }
}

/// Readable when a child has ended.
fn ends_of_children() -> io::Result<OwnedFd> {
    let set = mask_sigchld(libc::SIG_BLOCK);
    // SAFETY: the set lives until the call returns; the descriptor is fresh and nobody else's.
    unsafe {
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A request's descriptors; `None` at the channel's end.
fn receive(channel: BorrowedFd<'_>) -> rustix::io::Result<Option<Vec<OwnedFd>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(channel, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let rights = ancillary.drain().filter_map(|m| match m {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(Some(rights.flatten().collect()))
}

/// Starts a program.
fn begin(mut fds: Vec<OwnedFd>) -> io::Result<News> {
    let mut further = fds.split_off(fds.len().min(DESCRIPTORS)).into_iter();
    let namespaces = further.next().map(|mount| Namespaces { mount, user: further.next() });
    let [spec, channel, stdin, stdout, stderr] =
        <[OwnedFd; DESCRIPTORS]>::try_from(fds).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut file = std::fs::File::from(spec);
    let mut octets = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut octets)?;
    let spec = Spec::parse(&octets).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: this process has one thread, so that its copy is whole.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            mask_sigchld(libc::SIG_UNBLOCK);
            for (number, stream) in [stdin, stdout, stderr].iter().enumerate() {
                // SAFETY: both are descriptors of this process; numbers 0 to 2 have no owner here.
                unsafe { libc::dup2(stream.as_raw_fd(), number as i32) };
            }
            init::run(&channel, &spec, namespaces.as_ref())
        }
        pid => Ok(News::Started(pid)),
    }
}

/// A running program.
pub struct Child {
    /// Its process.
    pub pid: Pid,
    /// Told at its end.
    pub exit: oneshot::Receiver<Exit>,
}

/// hostd's side.
pub struct Guard {
    channel: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    /// Requests go out in the order in which `starts` has them.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    starts: VecDeque<oneshot::Sender<io::Result<Child>>>,
    running: HashMap<i32, oneshot::Sender<Exit>>,
    gone: bool,
}

impl Guard {
    /// Starts the process. On the control thread.
    ///
    /// # Errors
    /// What `fork`, `exec` and their like answer.
    pub fn start() -> io::Result<Arc<Self>> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("hostd").arg(NAME).arg(init::inheritable(&theirs)?.to_string());
        // Whoever collects hostd's children collects it.
        drop(command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        rustix::io::ioctl_fionbio(&ours, true)?;
        let guard = Arc::new(Self { channel: super::launch::watched(ours)?, state: Mutex::default(), turn: tokio::sync::Mutex::default() });
        tokio::spawn(guard.clone().listen());
        Ok(guard)
    }

    /// True if it has ended: another one is needed.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Starts a program, in `namespaces` if there are any; `streams` are its channel and its standard streams.
    ///
    /// # Errors
    /// What `fork` answers; `EPIPE` if the guard has ended.
    pub async fn spawn(
        &self,
        spec: &Spec,
        namespaces: Option<&Namespaces>,
        streams: [BorrowedFd<'_>; DESCRIPTORS - 1],
    ) -> io::Result<Child> {
        let mut file = std::fs::File::from(memfd_create("ringlab-start", MemfdFlags::CLOEXEC)?);
        file.write_all(&spec.emit()?)?;
        let (tell, told) = oneshot::channel();
        {
            let _turn = self.turn.lock().await;
            let mut fds = vec![file.as_fd()];
            fds.extend(streams);
            fds.extend(namespaces.into_iter().flat_map(|n| [Some(n.mount.as_fd()), n.user.as_ref().map(AsFd::as_fd)]).flatten());
            self.send(&fds).await?;
            // The answer is read by this thread, when it waits next.
            self.state().starts.push_back(tell);
        }
        told.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    async fn send(&self, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.channel.writable().await?;
            let sent = ready.try_io(|channel| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                Ok(sendmsg(channel, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?)
            });
            if let Ok(sent) = sent {
                return sent.map(drop);
            }
        }
    }

    async fn listen(self: Arc<Self>) {
        loop {
            let Ok(mut ready) = self.channel.readable().await else { break };
            let mut b = [0; News::LEN];
            match ready.try_io(|channel| Ok(rustix::net::recv(channel, &mut b, RecvFlags::empty())?.0)) {
                Ok(Ok(News::LEN)) => News::parse(&b).into_iter().for_each(|news| self.on_news(news)),
                // Whoever waits hears that there is nobody any more.
                Ok(_) => break,
                Err(_) => {}
            }
        }
        *self.state() = State { gone: true, ..State::default() };
    }

    fn on_news(&self, news: News) {
        let mut state = self.state();
        // Whoever started it may have gone.
        match news {
            News::Started(number) => {
                let Some((tell, pid)) = state.starts.pop_front().zip(Pid::from_raw(number)) else { return };
                let (ended, exit) = oneshot::channel();
                state.running.insert(number, ended);
                let _ = tell.send(Ok(Child { pid, exit }));
            }
            News::Failed(errno) => {
                if let Some(tell) = state.starts.pop_front() {
                    let _ = tell.send(Err(io::Error::from_raw_os_error(errno)));
                }
            }
            News::Ended(pid, status) => {
                if let Some(ended) = state.running.remove(&pid) {
                    let _ = ended.send(exit_of(status));
                }
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exit_of(status: i32) -> Exit {
    match libc::WIFEXITED(status) {
        true => Exit { code: libc::WEXITSTATUS(status), signal: 0 },
        false => Exit { code: 128 + libc::WTERMSIG(status), signal: libc::WTERMSIG(status) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_survives_the_channel() {
        for news in [News::Started(7), News::Failed(libc::EAGAIN), News::Ended(7, 0x0900)] {
            assert_eq!(News::parse(&news.emit()), Some(news));
        }
        assert_eq!(News::parse(&[9; News::LEN]), None);
    }

    #[test]
    fn status_of_wait_is_told_as_a_shell_does() {
        assert_eq!(exit_of(7 << 8), Exit { code: 7, signal: 0 });
        assert_eq!(exit_of(libc::SIGKILL), Exit { code: 137, signal: 9 });
    }
}
