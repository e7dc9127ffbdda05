//! System calls as async functions: what a built-in program is written against.
//!
//! A call that finishes at once never leaves the program's `poll`; one that
//! blocks suspends the future until the kernel model returns it. Payload lies in
//! the task's arena ([`Memory`]), from which the kernel copies, as it would from
//! the pages of a process.

use super::process::Process;
use crate::host::Shared;
use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Control, EpollEvent, EpollOp, Fd, FdSet, OptVal, Ret, Shutdown};
use ringlab_kernel::time::Instant;
use ringlab_kernel::uaccess::{Iov, UserSlice};
use std::cell::RefCell;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The memory of a task: address 0 of the task is octet 0 of the arena.
pub type Memory = Rc<RefCell<Vec<u8>>>;

/// The system-call interface of one task. Clones speak for the same task.
#[derive(Clone)]
pub struct Sys {
    shared: Rc<Shared>,
    task: TaskId,
    mem: Memory,
    process: Rc<Process>,
}

/// One message as `recvmsg` returns it.
#[derive(Debug)]
pub struct Message {
    /// Octets.
    pub len: usize,
    /// Sender, of a datagram.
    pub from: Option<SocketAddr>,
    /// Ancillary data.
    pub control: Vec<Control>,
}

impl Sys {
    /// The interface of a task that the kernel knows already.
    pub fn new(shared: Rc<Shared>, task: TaskId, mem: Memory, process: Rc<Process>) -> Self {
        Self { shared, task, mem, process }
    }

    /// The program that the task belongs to.
    pub fn process(&self) -> &Rc<Process> {
        &self.process
    }

    /// The host's clock (`CLOCK_MONOTONIC`).
    pub fn now(&self) -> Instant {
        self.shared.now()
    }

    /// The address of a name of the lab's hosts table, or of a dotted address.
    pub fn resolve(&self, name: &str) -> Option<Ipv4Addr> {
        name.parse().ok().or_else(|| self.shared.lookup_host(name))
    }

    /// Runs `main` as another task of the same program, sharing its descriptors (`clone(CLONE_FILES)`).
    pub fn spawn<F, T>(&self, comm: &str, main: F)
    where
        F: FnOnce(Sys) -> T,
        T: Future<Output = ()> + 'static,
    {
        let task = self.shared.clone_task(self.task, comm);
        let sys = Sys::new(self.shared.clone(), task, self.shared.new_memory(task), self.process.clone());
        self.shared.adopt(task, self.process.clone(), Box::pin(main(sys)));
    }

    /// Reserves `len` octets of the arena (`mmap`); they live as long as the task.
    pub fn alloc(&self, len: usize) -> UserSlice {
        let mut mem = self.mem.borrow_mut();
        let addr = mem.len();
        mem.resize(addr + len, 0);
        UserSlice { addr: addr as u64, len: len as u64 }
    }

    /// Reads task memory.
    ///
    /// # Panics
    /// If `at` was not reserved: programs use what [`Self::alloc`] gave them.
    pub fn with<R>(&self, at: UserSlice, f: impl FnOnce(&[u8]) -> R) -> R {
        f(&self.mem.borrow()[at.addr as usize..(at.addr + at.len) as usize])
    }

    /// Reads and writes task memory.
    ///
    /// # Panics
    /// As [`Self::with`].
    pub fn with_mut<R>(&self, at: UserSlice, f: impl FnOnce(&mut [u8]) -> R) -> R {
        f(&mut self.mem.borrow_mut()[at.addr as usize..(at.addr + at.len) as usize])
    }

    /// `socket`.
    pub async fn socket(&self, domain: i32, kind: i32, protocol: i32) -> Result<Fd, Errno> {
        self.value(Call::Socket(domain, kind, protocol)).await.map(|v| v as Fd)
    }

    /// `bind`.
    pub async fn bind(&self, fd: Fd, addr: SocketAddr) -> Result<(), Errno> {
        self.value(Call::Bind(fd, addr)).await.map(drop)
    }

    /// `listen`.
    pub async fn listen(&self, fd: Fd, backlog: i32) -> Result<(), Errno> {
        self.value(Call::Listen(fd, backlog)).await.map(drop)
    }

    /// `accept4`.
    pub async fn accept(&self, fd: Fd, flags: i32) -> Result<(Fd, SocketAddr), Errno> {
        match self.call(Call::Accept(fd, flags)).await {
            Ret::Accepted(fd, peer) => Ok((fd, peer)),
            other => Err(failure(other)),
        }
    }

    /// `connect`.
    pub async fn connect(&self, fd: Fd, addr: SocketAddr) -> Result<(), Errno> {
        self.value(Call::Connect(fd, Some(addr))).await.map(drop)
    }

    /// `send`; with an address, `sendto`.
    pub async fn send(&self, fd: Fd, data: UserSlice, flags: u32, to: Option<SocketAddr>) -> Result<usize, Errno> {
        let call = Call::Send { fd, iov: Iov::One(data), flags, to, control: Vec::new() };
        self.value(call).await.map(|v| v as usize)
    }

    /// `send` until all of it is accepted.
    pub async fn send_all(&self, fd: Fd, mut data: UserSlice, flags: u32) -> Result<(), Errno> {
        while data.len > 0 {
            let n = self.send(fd, data, flags, None).await? as u64;
            data = UserSlice { addr: data.addr + n, len: data.len - n };
        }
        Ok(())
    }

    /// `recv`: octets, 0 at the end of a stream.
    pub async fn recv(&self, fd: Fd, to: UserSlice, flags: u32) -> Result<usize, Errno> {
        self.recv_msg(fd, to, flags).await.map(|m| m.len)
    }

    /// `recvmsg`.
    pub async fn recv_msg(&self, fd: Fd, to: UserSlice, flags: u32) -> Result<Message, Errno> {
        match self.call(Call::Recv { fd, iov: Iov::One(to), flags }).await {
            Ret::Received { len, from, control, .. } => Ok(Message { len, from, control }),
            Ret::Value(len) => Ok(Message { len: len as usize, from: None, control: Vec::new() }),
            other => Err(failure(other)),
        }
    }

    /// `shutdown`.
    pub async fn shutdown(&self, fd: Fd, how: Shutdown) -> Result<(), Errno> {
        self.value(Call::Shutdown(fd, how)).await.map(drop)
    }

    /// `close`.
    pub async fn close(&self, fd: Fd) -> Result<(), Errno> {
        self.value(Call::Close(fd)).await.map(drop)
    }

    /// `setsockopt` with an `int`.
    pub async fn set_opt(&self, fd: Fd, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        self.value(Call::SetSockOpt(fd, level, name, OptVal::Int(value))).await.map(drop)
    }

    /// `setsockopt(SO_RCVTIMEO)`; zero: none.
    pub async fn set_recv_timeout(&self, fd: Fd, limit: Duration) -> Result<(), Errno> {
        self.value(Call::SetSockOpt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, OptVal::Time(limit))).await.map(drop)
    }

    /// `getsockname`.
    pub async fn local_addr(&self, fd: Fd) -> Result<SocketAddr, Errno> {
        match self.call(Call::GetSockName(fd)).await {
            Ret::Addr(addr) => Ok(addr),
            other => Err(failure(other)),
        }
    }

    /// `epoll_create1`.
    pub async fn epoll_create(&self) -> Result<Fd, Errno> {
        self.value(Call::EpollCreate(libc::EPOLL_CLOEXEC)).await.map(|v| v as Fd)
    }

    /// `epoll_ctl`.
    pub async fn epoll_ctl(&self, epoll: Fd, fd: Fd, op: EpollOp) -> Result<(), Errno> {
        self.value(Call::EpollCtl(epoll, fd, op)).await.map(drop)
    }

    /// `epoll_wait`; `None`: for ever.
    pub async fn epoll_wait(&self, epoll: Fd, most: usize, limit: Option<Duration>) -> Result<Vec<EpollEvent>, Errno> {
        match self.call(Call::EpollWait(epoll, most, limit)).await {
            Ret::Epoll(events) => Ok(events),
            other => Err(failure(other)),
        }
    }

    /// `select`: descriptors to read and to write that are ready.
    pub async fn select(&self, nfds: i32, read: FdSet, write: FdSet, limit: Option<Duration>) -> Result<(FdSet, FdSet), Errno> {
        match self.call(Call::Select(nfds, Box::new([read, write, FdSet::default()]), limit)).await {
            Ret::Select(_, sets) => Ok((sets[0], sets[1])),
            other => Err(failure(other)),
        }
    }

    /// `fcntl(F_SETFL)`.
    pub async fn set_flags(&self, fd: Fd, flags: i32) -> Result<(), Errno> {
        self.value(Call::SetFl(fd, flags)).await.map(drop)
    }

    /// `getsockopt(SO_ERROR)`.
    pub async fn socket_error(&self, fd: Fd) -> Result<Option<Errno>, Errno> {
        match self.call(Call::GetSockOpt(fd, libc::SOL_SOCKET, libc::SO_ERROR)).await {
            Ret::Opt(OptVal::Int(n)) => Ok(Errno::from_raw(n)),
            other => Err(failure(other)),
        }
    }

    /// `getpeername`.
    pub async fn peer_addr(&self, fd: Fd) -> Result<SocketAddr, Errno> {
        match self.call(Call::GetPeerName(fd)).await {
            Ret::Addr(addr) => Ok(addr),
            other => Err(failure(other)),
        }
    }

    /// `nanosleep`.
    pub async fn sleep(&self, time: Duration) -> Result<(), Errno> {
        self.value(Call::Sleep(time)).await.map(drop)
    }

    async fn value(&self, call: Call) -> Result<i64, Errno> {
        match self.call(call).await {
            Ret::Value(v) => Ok(v),
            other => Err(failure(other)),
        }
    }

    fn call(&self, call: Call) -> InCall<'_> {
        InCall { sys: self, call: Some(call) }
    }
}

/// The error of a result; a result of another call's shape is an error of the model.
fn failure(ret: Ret) -> Errno {
    match ret {
        Ret::Err(errno) => errno,
        other => {
            tracing::warn!(?other, "a system call returned another call's result");
            Errno::EIO
        }
    }
}

/// A system call on its way.
struct InCall<'s> {
    sys: &'s Sys,
    call: Option<Call>,
}

impl Future for InCall<'_> {
    type Output = Ret;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Ret> {
        let sys = self.sys;
        let Some(call) = self.call.take() else {
            return sys.shared.take_return(sys.task).map_or(Poll::Pending, Poll::Ready);
        };
        if sys.process.signal().is_some() {
            return Poll::Ready(Ret::Err(Errno::EINTR));
        }
        match sys.shared.syscall(sys.task, call) {
            Some(ret) if sys.shared.slice_over() => {
                sys.shared.deliver(sys.task, ret);
                Poll::Pending
            }
            Some(ret) => Poll::Ready(ret),
            None => Poll::Pending,
        }
    }
}
