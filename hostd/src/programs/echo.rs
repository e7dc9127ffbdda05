//! `echo`: one server, written in the five ways in which a server can wait.
//!
//! - *blocking*: a task a connection; each sleeps in `recv`.
//! - *nonblocking*: one task asks every socket in turn, and naps when none had anything.
//! - *select*: one task; the whole set goes in and out with every call.
//! - *epoll-level*: one task; one `recv` for each report, the rest is reported again.
//! - *epoll-edge*: one task; reads each socket until `EAGAIN`, for it is reported once.

use super::echo_client;
use super::httpd::{PAUSE, listen};
use super::sys::Sys;
use super::{Failure, Try};
use clap::ValueEnum;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{EpollEvent, EpollOp, Fd, FdSet, msg};
use ringlab_kernel::uaccess::UserSlice;
use ringlab_kernel::wait::queue::PollEvents;
use std::collections::BTreeMap;
use std::time::Duration;

const BUFFER: usize = 64 << 10;
/// Pause of the non-blocking server after a round in which no socket had anything.
const NAP: Duration = Duration::from_micros(200);
/// Descriptors that `select` can name.
const FD_SETSIZE: Fd = 1024;

/// Echo server, and the client that checks it.
#[derive(Debug, clap::Parser)]
#[command(name = "echo")]
pub struct Args {
    /// How the server waits.
    #[arg(long, value_enum, default_value = "epoll-level")]
    mode: Mode,
    /// Be the client of this node.
    #[arg(short, long, value_name = "NODE", conflicts_with = "mode")]
    pub client: Option<String>,
    /// Port.
    #[arg(short, long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Client: messages a connection.
    #[arg(short = 'n', default_value_t = 1)]
    pub count: u32,
    /// Client: octets a message.
    #[arg(short, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=(1 << 20)))]
    pub len: u32,
    /// Client: connections, all open at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Client: send standard input instead, and print what comes back.
    #[arg(long)]
    pub stdin: bool,
    /// Client: print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Blocking,
    Nonblocking,
    Select,
    EpollLevel,
    EpollEdge,
}

/// Runs it.
///
/// # Errors
/// If the port is taken, or a call fails that concerns more than one connection.
pub async fn main(sys: Sys, args: Args) -> Result<i32, Failure> {
    if let Some(node) = args.client.clone() {
        return echo_client::main(sys, &args, &node).await;
    }
    let listener = listen(&sys, args.port).await?;
    let reserve = reserve(&sys).await;
    let mut server = Server { listener, reserve, buffer: sys.alloc(BUFFER), conns: BTreeMap::new(), sys };
    match args.mode {
        Mode::Blocking => server.blocking().await,
        Mode::Nonblocking => server.nonblocking().await,
        Mode::Select => server.select().await,
        Mode::EpollLevel => server.epoll(false).await,
        Mode::EpollEdge => server.epoll(true).await,
    }
}

struct Server {
    sys: Sys,
    listener: Fd,
    /// Closed to accept whom there is no descriptor for, and to hang up: else the listener stays ready.
    reserve: Option<Fd>,
    buffer: UserSlice,
    /// What each connection has still to get back.
    conns: BTreeMap<Fd, Vec<u8>>,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// Nothing yet: there may be more to read.
    More,
    Read,
    Write,
    Close,
}

impl Server {
    async fn blocking(&mut self) -> Result<i32, Failure> {
        self.sys.set_flags(self.listener, 0).await.or_fail(|| "fcntl".to_owned())?;
        loop {
            match self.sys.accept(self.listener, 0).await {
                Ok((fd, _)) => self.sys.spawn("echo-worker", move |sys| async move {
                    let buffer = sys.alloc(BUFFER);
                    // The connection's end, by whichever side, is the task's.
                    while let Ok(n) = sys.recv(fd, buffer, 0).await
                        && n > 0
                    {
                        if sys.send_all(fd, UserSlice { len: n as u64, ..buffer }, msg::NOSIGNAL).await.is_err() {
                            break;
                        }
                    }
                    let _ = sys.close(fd).await;
                }),
                Err(Errno::ECONNABORTED) => {}
                // Who connects waits until another one has gone.
                Err(Errno::EMFILE | Errno::ENFILE) => self.sys.sleep(PAUSE).await.or_fail(|| "nanosleep".to_owned())?,
                Err(errno) => return Err(errno).or_fail(|| "accept".to_owned()),
            }
        }
    }

    async fn nonblocking(&mut self) -> Result<i32, Failure> {
        loop {
            let mut idle = self.accept_all().await?.is_empty();
            for fd in self.conns.keys().copied().collect::<Vec<_>>() {
                match self.step(fd).await? {
                    Wants::Close => self.close(fd).await?,
                    Wants::More => idle = false,
                    Wants::Read | Wants::Write => {}
                }
            }
            if idle {
                self.sys.sleep(NAP).await.or_fail(|| "nanosleep".to_owned())?;
            }
        }
    }

    async fn select(&mut self) -> Result<i32, Failure> {
        loop {
            let (mut read, mut write) = (FdSet::default(), FdSet::default());
            set(&mut read, self.listener);
            for (&fd, pending) in &self.conns {
                set(if pending.is_empty() { &mut read } else { &mut write }, fd);
            }
            let most = self.conns.keys().next_back().copied().unwrap_or(0).max(self.listener);
            let (read, write) = self.sys.select(most + 1, read, write, None).await.or_fail(|| "select".to_owned())?;
            if is_set(&read, self.listener) {
                for fd in self.accept_all().await? {
                    if fd >= FD_SETSIZE {
                        self.close(fd).await?;
                    }
                }
            }
            let ready: Vec<Fd> = self.conns.keys().copied().filter(|&fd| is_set(&read, fd) || is_set(&write, fd)).collect();
            for fd in ready {
                if self.step(fd).await? == Wants::Close {
                    self.close(fd).await?;
                }
            }
        }
    }

    async fn epoll(&mut self, edge: bool) -> Result<i32, Failure> {
        let epoll = self.sys.epoll_create().await.or_fail(|| "epoll_create".to_owned())?;
        self.epoll_ctl(epoll, self.listener, PollEvents::IN, true).await?;
        loop {
            for event in self.sys.epoll_wait(epoll, 256, None).await.or_fail(|| "epoll_wait".to_owned())? {
                let fd = event.data as Fd;
                if fd == self.listener {
                    for fd in self.accept_all().await? {
                        let both = PollEvents::IN | PollEvents::OUT | PollEvents::RDHUP | PollEvents::ET;
                        self.epoll_ctl(epoll, fd, if edge { both } else { PollEvents::IN }, true).await?;
                    }
                    continue;
                }
                let had = self.conns.get(&fd).is_some_and(|p| !p.is_empty());
                let mut wants = self.step(fd).await?;
                while edge && wants == Wants::More {
                    wants = self.step(fd).await?;
                }
                match wants {
                    Wants::Close => self.close(fd).await?,
                    Wants::Write if !edge && !had => self.epoll_ctl(epoll, fd, PollEvents::OUT, false).await?,
                    Wants::Read | Wants::More if !edge && had => self.epoll_ctl(epoll, fd, PollEvents::IN, false).await?,
                    Wants::Read | Wants::More | Wants::Write => {}
                }
            }
        }
    }

    async fn epoll_ctl(&self, epoll: Fd, fd: Fd, events: PollEvents, add: bool) -> Result<(), Failure> {
        let event = EpollEvent { events, data: fd as u64 };
        let op = if add { EpollOp::Add(event) } else { EpollOp::Mod(event) };
        self.sys.epoll_ctl(epoll, fd, op).await.or_fail(|| "epoll_ctl".to_owned())
    }

    /// Accepts until `EAGAIN`.
    async fn accept_all(&mut self) -> Result<Vec<Fd>, Failure> {
        let mut new = Vec::new();
        loop {
            match self.sys.accept(self.listener, libc::SOCK_NONBLOCK).await {
                Ok((fd, _)) => {
                    self.conns.insert(fd, Vec::new());
                    new.push(fd);
                }
                Err(Errno::EAGAIN) => return Ok(new),
                Err(Errno::ECONNABORTED) => {}
                // Also where nobody waits.
                Err(Errno::EMFILE | Errno::ENFILE) => {
                    if !self.hang_up().await? {
                        return Ok(new);
                    }
                }
                Err(errno) => return Err(errno).or_fail(|| "accept".to_owned()),
            }
        }
    }

    /// Hangs up on the next one who waits in the listener's queue; false if nobody does.
    async fn hang_up(&mut self) -> Result<bool, Failure> {
        if let Some(fd) = self.reserve.take() {
            self.close(fd).await?;
        }
        let next = self.sys.accept(self.listener, libc::SOCK_NONBLOCK).await;
        if let Ok((fd, _)) = next {
            self.close(fd).await?;
        }
        self.reserve = reserve(&self.sys).await;
        Ok(next.is_ok())
    }

    /// One `recv` and its `send`, or the rest of an earlier one.
    async fn step(&mut self, fd: Fd) -> Result<Wants, Failure> {
        match self.try_step(fd).await {
            Ok(wants) => Ok(wants),
            Err(Errno::EINTR) => Err(Failure::Interrupted),
            // The connection's trouble is not the server's.
            Err(_) => Ok(Wants::Close),
        }
    }

    async fn try_step(&mut self, fd: Fd) -> Result<Wants, Errno> {
        let Some(pending) = self.conns.get_mut(&fd) else { return Ok(Wants::Close) };
        let len = if pending.is_empty() {
            match self.sys.recv(fd, self.buffer, 0).await {
                Ok(0) => return Ok(Wants::Close),
                Ok(n) => n,
                Err(Errno::EAGAIN) => return Ok(Wants::Read),
                Err(errno) => return Err(errno),
            }
        } else {
            let n = pending.len();
            self.sys.with_mut(UserSlice { len: n as u64, ..self.buffer }, |b| b.copy_from_slice(pending));
            n
        };
        let data = UserSlice { len: len as u64, ..self.buffer };
        let sent = match self.sys.send(fd, data, msg::NOSIGNAL, None).await {
            Ok(n) => n,
            Err(Errno::EAGAIN) => 0,
            Err(errno) => return Err(errno),
        };
        *pending = self.sys.with(data, |b| b[sent..].to_vec());
        Ok(if sent < len { Wants::Write } else { Wants::More })
    }

    async fn close(&mut self, fd: Fd) -> Result<(), Failure> {
        self.conns.remove(&fd);
        self.sys.close(fd).await.or_fail(|| "close".to_owned())
    }
}

async fn reserve(sys: &Sys) -> Option<Fd> {
    sys.socket(libc::AF_INET, libc::SOCK_DGRAM, 0).await.ok()
}

fn set(set: &mut FdSet, fd: Fd) {
    if (0..FD_SETSIZE).contains(&fd) {
        set.0[fd as usize / 64] |= 1 << (fd % 64);
    }
}

fn is_set(set: &FdSet, fd: Fd) -> bool {
    (0..FD_SETSIZE).contains(&fd) && set.0[fd as usize / 64] >> (fd % 64) & 1 != 0
}
