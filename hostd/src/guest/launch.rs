//! Starting guests, on the control thread: streams, the filter's listener, the end.

use super::guard::Guard;
use super::init::{self, Spec, Stage};
use super::namespace::{self, Namespaces, View};
use super::place::Place;
use crate::control::{Command as ToKernel, Handle};
use crate::programs::process::{Exit, Output};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait, waitpid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

/// Octets of a piece of output.
const CHUNK: usize = 32 << 10;
/// How long output is awaited after the program's end: what it left running may hold the pipe for ever.
const STRAGGLERS: Duration = Duration::from_millis(100);

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment of whoever asks.
    pub env: BTreeMap<String, String>,
    /// What is asked for beside it.
    pub set_env: BTreeMap<String, String>,
    /// Directory of whoever asks; empty: hostd's.
    pub cwd: String,
    /// Directory asked for; empty: the node's.
    pub workdir: String,
    /// User asked for; empty: the node's.
    pub user: String,
    /// Terminal: rows and columns.
    pub tty: Option<(u16, u16)>,
}

/// Ends of a program's streams.
pub struct Ends {
    /// Standard input; dropped: its end.
    pub stdin: mpsc::Receiver<Vec<u8>>,
    /// Standard output and error.
    pub output: mpsc::Sender<Output>,
}

/// What starts guests. Clones are the same one.
#[derive(Clone, Default)]
pub struct Children(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    /// There is none before the first program.
    guard: Option<Arc<Guard>>,
    reaping: bool,
}

/// A running guest.
pub struct Running {
    pid: Pid,
    /// Told at the program's end.
    pub exit: oneshot::Receiver<Exit>,
    /// The terminal's master.
    master: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Running {
    /// A handle to signal it by.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The terminal to resize.
    pub fn terminal(&self) -> Option<Terminal> {
        self.master.clone().map(Terminal)
    }
}

/// Sends a group a signal. Without effect if it has ended.
pub fn send_signal(pid: Pid, number: i32) {
    if let Some(signal) = Signal::from_named_raw(number) {
        let _ = kill_process_group(pid, signal);
    }
}

/// A program's terminal.
#[derive(Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Changes its size; the program gets `SIGWINCH`.
    pub fn resize(&self, rows: u16, cols: u16) {
        let _ = rustix::termios::tcsetwinsize(self.0.get_ref(), size(rows, cols));
    }
}

/// Why a program did not start.
#[derive(Debug)]
pub struct Refusal {
    /// What it is about: the directory or the program.
    pub what: String,
    /// Why.
    pub error: io::Error,
}

impl Refusal {
    /// What a shell would return: 127 if there is no such program, else 126.
    pub fn exit_code(&self) -> i32 {
        if self.error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

impl Children {
    /// Starts a program under the supervision of the kernel thread.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn start(&self, kernel: &Handle, start: Start, place: Place, ends: Ends) -> Result<Running, Refusal> {
        let name = start.argv.first().cloned().unwrap_or_default();
        let refuse = |error: io::Error| Refusal { what: name.clone(), error };
        let guard = self.guard().map_err(&refuse)?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(|e| refuse(e.into()))?;
        let spec = Spec {
            cwd: place.cwd.clone().into(),
            tty: start.tty.is_some(),
            nofile: crate::limits::guest_descriptors(),
            account: place.account,
            argv: start.argv.iter().map(Into::into).collect(),
            env: place.env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        };
        let (streams, [stdin, stdout, stderr]) = Streams::open(start.tty).map_err(&refuse)?;
        let child = guard
            .spawn(&spec, place.namespaces.as_deref(), [theirs.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            .await
            .map_err(&refuse)?;
        drop((theirs, stdin, stdout, stderr));
        let master = streams.pump(ends).map_err(&refuse)?;
        match hand_over(kernel, ours, &start, &place.cwd).await {
            Ok(()) => Ok(Running { pid: child.pid, exit: child.exit, master }),
            Err(refusal) => Err(refusal),
        }
    }

    /// Makes namespaces, by a process of this binary.
    ///
    /// # Errors
    /// [`Refusal`]: the machine does not permit them, or a path in them is not there.
    pub async fn namespaces(&self, view: &View) -> Result<Namespaces, Refusal> {
        let refuse = |error: io::Error| Refusal { what: "namespaces".to_owned(), error };
        self.reap_from_now_on().map_err(refuse)?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(|e| refuse(e.into()))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("hostd").args(view.args(init::inheritable(&theirs).map_err(refuse)?)).stdin(Stdio::null());
        // Its end is collected with all others'; what counts is what it says.
        drop(command.spawn().map_err(refuse)?);
        drop((command, theirs));
        rustix::io::ioctl_fionbio(&ours, true).map_err(|e| refuse(e.into()))?;
        let channel = watched(ours).map_err(refuse)?;
        let mut message = [0; 4096];
        loop {
            let mut ready = channel.readable().await.map_err(refuse)?;
            let Ok(received) = ready.try_io(|fd| receive_into(fd.as_fd(), &mut message)) else { continue };
            let (len, fds) = received.map_err(refuse)?;
            return Ok(namespace::answer(&message[..len], fds, view.map.is_some())?);
        }
    }

    /// The parent of all guests.
    fn guard(&self) -> io::Result<Arc<Guard>> {
        self.reap_from_now_on()?;
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &table.guard {
            Some(guard) if !guard.is_gone() => Ok(guard.clone()),
            _ => Ok(table.guard.insert(Guard::start()?).clone()),
        }
    }

    /// hostd is the parent of its guards, and of whatever they leave behind: their ends are collected here.
    fn reap_from_now_on(&self) -> io::Result<()> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.reaping {
            return Ok(());
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let mut ends = signal(SignalKind::child())?;
        ignore_stops()?;
        table.reaping = true;
        tokio::spawn(async move {
            while ends.recv().await.is_some() {
                // Not what other threads trace. This one starts the guards, and adopts.
                while let Ok(Some(_)) = wait(WaitOptions::NOHANG | WaitOptions::from_bits_retain(libc::__WNOTHREAD as u32)) {}
            }
        });
        Ok(())
    }
}

/// Only the end of a child raises `SIGCHLD`, no stop of a thread that is traced.
fn ignore_stops() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the structure is written by the first call before it is read; its handler stays as it is.
    let done = unsafe {
        libc::sigaction(libc::SIGCHLD, core::ptr::null(), action.as_mut_ptr()) == 0 && {
            let mut action = action.assume_init();
            action.sa_flags |= libc::SA_NOCLDSTOP;
            libc::sigaction(libc::SIGCHLD, &raw const action, core::ptr::null_mut()) == 0
        }
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Passes the filter's listener to the kernel thread; then the program is there, or says why not.
async fn hand_over(kernel: &Handle, channel: OwnedFd, start: &Start, cwd: &str) -> Result<(), Refusal> {
    let name = start.argv.first().cloned().unwrap_or_default();
    let refuse = |error: io::Error| Refusal { what: name.clone(), error };
    rustix::io::ioctl_fionbio(&channel, true).map_err(|e| refuse(e.into()))?;
    let channel = watched(channel).map_err(&refuse)?;
    loop {
        let mut ready = channel.readable().await.map_err(&refuse)?;
        let Ok(received) = ready.try_io(|fd| receive(fd.as_fd())) else { continue };
        match received.map_err(&refuse)? {
            // The descriptor closes with `exec`.
            None => return Ok(()),
            Some((_, _, Some(listener))) => {
                kernel.send(ToKernel::Guest(listener));
            }
            Some((stage, errno, None)) => {
                let what = if stage == Stage::Directory as u8 { cwd.to_owned() } else { name.clone() };
                return Err(Refusal { what, error: io::Error::from_raw_os_error(errno) });
            }
        }
    }
}

type Message = Option<(u8, i32, Option<OwnedFd>)>;

fn receive(fd: rustix::fd::BorrowedFd<'_>) -> io::Result<Message> {
    let mut message = [0; 5];
    let (len, fds) = receive_into(fd, &mut message)?;
    let errno = i32::from_ne_bytes([message[1], message[2], message[3], message[4]]);
    Ok((len > 0).then(|| (message[0], errno, fds.into_iter().next())))
}

/// A message and the descriptors that come with it, two at most.
fn receive_into(fd: rustix::fd::BorrowedFd<'_>, message: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(fd, &mut [IoSliceMut::new(message)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut all = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            all.extend(fds);
        }
    }
    Ok((got.bytes, all))
}

enum Streams {
    Pipes { stdin: pipe::Sender, stdout: pipe::Receiver, stderr: pipe::Receiver },
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl Streams {
    /// Both ends of a program's standard streams; the program's are input, output, error.
    fn open(tty: Option<(u16, u16)>) -> io::Result<(Self, [OwnedFd; 3])> {
        let Some((rows, cols)) = tty else {
            let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) = (io::pipe()?, io::pipe()?, io::pipe()?);
            let ours = Self::Pipes {
                stdin: pipe::Sender::from_owned_fd(in_write.into())?,
                stdout: pipe::Receiver::from_owned_fd(out_read.into())?,
                stderr: pipe::Receiver::from_owned_fd(err_read.into())?,
            };
            return Ok((ours, [in_read.into(), out_write.into(), err_write.into()]));
        };
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let open = |name| rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
        let slave = open(name.as_c_str())?;
        rustix::termios::tcsetwinsize(&master, size(rows, cols))?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let theirs = [slave.try_clone()?, slave.try_clone()?, slave];
        Ok((Self::Terminal(Arc::new(watched(master)?)), theirs))
    }

    /// Carries everything until its end.
    fn pump(self, ends: Ends) -> io::Result<Option<Arc<AsyncFd<OwnedFd>>>> {
        let Ends { stdin: input, output } = ends;
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                tokio::spawn(feed(stdin, input));
                tokio::spawn(forward(stdout, output.clone(), Output::Stdout));
                tokio::spawn(forward(stderr, output, Output::Stderr));
                Ok(None)
            }
            Self::Terminal(master) => {
                tokio::spawn(feed_terminal(master.clone(), input));
                tokio::spawn(forward_terminal(master.clone(), output));
                Ok(Some(master))
            }
        }
    }
}

/// A descriptor whose readiness tasks wait for.
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, and nobody replaces or closes it while `AsyncFd` has it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

fn size(rows: u16, cols: u16) -> rustix::termios::Winsize {
    rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

async fn feed(mut pipe: pipe::Sender, mut input: mpsc::Receiver<Vec<u8>>) {
    use tokio::io::AsyncWriteExt;
    while let Some(octets) = input.recv().await {
        if pipe.write_all(&octets).await.is_err() {
            // The program reads no more: that is its affair.
            return;
        }
    }
}

async fn forward(mut pipe: pipe::Receiver, output: mpsc::Sender<Output>, kind: fn(Vec<u8>) -> Output) {
    use tokio::io::AsyncReadExt;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            read = pipe.read(&mut buffer) => read,
            // Nobody reads any more: the pipe breaks.
            () = output.closed() => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(len) => {
                if output.send(kind(buffer[..len].to_vec())).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn feed_terminal(master: Arc<AsyncFd<OwnedFd>>, mut input: mpsc::Receiver<Vec<u8>>) {
    while let Some(octets) = input.recv().await {
        let mut rest = &octets[..];
        while !rest.is_empty() {
            let Ok(mut ready) = master.writable().await else { return };
            let closed = ready.ready().is_write_closed();
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), rest)?)) {
                Ok(Ok(len)) => rest = &rest[len..],
                Ok(Err(_)) => return,
                // Full, and nobody has the terminal any more: it stays full, and counts as ready.
                Err(_) if closed => return,
                Err(_) => {}
            }
        }
    }
}

async fn forward_terminal(master: Arc<AsyncFd<OwnedFd>>, output: mpsc::Sender<Output>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let ready = tokio::select! {
            ready = master.readable() => ready,
            () = output.closed() => return,
        };
        let Ok(mut ready) = ready else { return };
        match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer[..])?)) {
            // EIO: the last process has closed the terminal.
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(len)) => {
                if output.send(Output::Stdout(buffer[..len].to_vec())).await.is_err() {
                    return;
                }
            }
            Err(_) => {}
        }
    }
}

/// A program's output up to its end, or shortly after: what it left running may hold the pipe for ever.
pub struct Outputs {
    output: mpsc::Receiver<Output>,
    exit: oneshot::Receiver<Exit>,
    ended: Option<Option<Exit>>,
}

impl Outputs {
    /// Of a program that runs.
    pub fn new(output: mpsc::Receiver<Output>, exit: oneshot::Receiver<Exit>) -> Self {
        Self { output, exit, ended: None }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Output> {
        if self.ended.is_none() {
            tokio::select! {
                biased;
                piece = self.output.recv() => return piece,
                end = &mut self.exit => self.ended = Some(end.ok()),
            }
        }
        tokio::time::timeout(STRAGGLERS, self.output.recv()).await.unwrap_or(None)
    }

    /// How it ended; `None` if the host went down first.
    pub async fn exit(self) -> Option<Exit> {
        match self.ended {
            Some(exit) => exit,
            None => self.exit.await.ok(),
        }
    }
}

/// All processes that descend from this one, in order.
pub fn descendants() -> Vec<i32> {
    let mut all = children("self");
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children(&pid.to_string()));
        at += 1;
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Children of all threads of a process.
fn children(of: &str) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|t| std::fs::read_to_string(t.path().join("children")).unwrap_or_default());
    lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Ends all processes that descend from this one, however they are called.
pub fn kill_descendants() {
    for _ in 0..1000 {
        let pids = children("self");
        if pids.is_empty() {
            return;
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            // Its children are this process's afterwards.
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
    warn!("programs are left that would not end");
}
