//! Programs for tests: a task, and its calls as methods.

use super::Lab;
use ringlab_kernel::cpu::sched::{TaskId, TaskInfo};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Control, EpollEvent, EpollOp, Fd, OptVal, Ret};
use ringlab_kernel::uaccess::{Iov, UserSlice};
use ringlab_kernel::wait::queue::PollEvents;
use ringlab_kernel::{Effect, Event};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

pub const AF_INET: i32 = 2;
pub const AF_INET6: i32 = 10;
pub const STREAM: i32 = 1;
pub const DGRAM: i32 = 2;
pub const RAW: i32 = 3;
pub const NONBLOCK: i32 = 0o4000;
pub const SOL_SOCKET: i32 = 1;

/// A task of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prog {
    pub host: usize,
    pub task: TaskId,
}

/// What a datagram call received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub data: Vec<u8>,
    pub len: usize,
    pub from: Option<SocketAddr>,
    pub flags: u32,
    pub control: Vec<Control>,
}

impl Prog {
    pub fn spawn(lab: &mut Lab, host: usize, comm: &str) -> Self {
        let task = lab.hosts[host].kernel.spawn(comm, None);
        Self { host, task }
    }

    /// A thread of this one.
    pub fn thread(self, lab: &mut Lab) -> Self {
        let task = lab.hosts[self.host].kernel.spawn_thread(self.task, "thread", None);
        Self { host: self.host, task }
    }

    /// Makes a call; what it returns, in time.
    pub fn call(self, lab: &mut Lab, call: Call) -> Ret {
        lab.call(self.host, self.task, call)
    }

    /// Starts a call that is expected to block.
    pub fn start(self, lab: &mut Lab, call: Call) {
        lab.start(self.host, self.task, call);
    }

    /// Starts a call that must block.
    pub fn blocks(self, lab: &mut Lab, call: Call) {
        let what = format!("{call:?}");
        self.start(lab, call);
        assert_eq!(self.poll(lab), None, "{what} returned at once");
        assert_ne!(self.info(lab).wchan, "", "{what} sleeps");
    }

    /// The result of the call, if it is there.
    pub fn poll(self, lab: &mut Lab) -> Option<Ret> {
        lab.take_return(self.host, self.task)
    }

    /// The result of a call that was started, in time.
    pub fn wait(self, lab: &mut Lab) -> Ret {
        lab.wait(self.host, self.task).expect("the call returns within an hour")
    }

    /// A call that returns at once, without time passing.
    pub fn now(self, lab: &mut Lab, call: Call) -> Ret {
        let what = format!("{call:?}");
        self.start(lab, call);
        self.poll(lab).unwrap_or_else(|| panic!("{what} blocked"))
    }

    /// A call that succeeds at once: its number.
    pub fn ok(self, lab: &mut Lab, call: Call) -> i64 {
        let what = format!("{call:?}");
        match self.now(lab, call) {
            Ret::Err(e) => panic!("{what}: {}", e.name()),
            ret => ret.as_number(),
        }
    }

    /// A call that fails at once: how.
    pub fn err(self, lab: &mut Lab, call: Call) -> Errno {
        let what = format!("{call:?}");
        match self.now(lab, call) {
            Ret::Err(e) => e,
            ret => panic!("{what} returned {ret:?}"),
        }
    }

    pub fn signal(self, lab: &mut Lab) {
        let now = lab.now;
        let kernel = &mut lab.hosts[self.host].kernel;
        kernel.handle(now, Event::Signal(self.task));
        let mut effects = Vec::new();
        while let Some(effect) = kernel.poll_effect() {
            effects.push(effect);
        }
        for effect in effects {
            match effect {
                Effect::Return(task, ret) => lab.hosts[self.host].returns.push_back((task, ret)),
                Effect::Doorbell(dev, queue) => lab.hosts[self.host].ports[dev.0 as usize - 2].ring(queue),
                Effect::Signal(signal) => lab.hosts[self.host].signals.push(signal),
            }
        }
    }

    pub fn info(self, lab: &Lab) -> TaskInfo {
        lab.hosts[self.host].kernel.tasks_info().into_iter().find(|t| t.id == self.task).expect("the task lives")
    }

    pub fn socket(self, lab: &mut Lab, kind: i32) -> Fd {
        self.ok(lab, Call::Socket(AF_INET, kind, 0)) as Fd
    }

    /// A UDP socket on a port of all addresses.
    pub fn udp(self, lab: &mut Lab, port: u16) -> Fd {
        let fd = self.socket(lab, DGRAM);
        self.bind(lab, fd, Ipv4Addr::UNSPECIFIED, port);
        fd
    }

    /// A listener on a port of all addresses.
    pub fn listener(self, lab: &mut Lab, port: u16, backlog: i32) -> Fd {
        let fd = self.socket(lab, STREAM);
        self.bind(lab, fd, Ipv4Addr::UNSPECIFIED, port);
        self.ok(lab, Call::Listen(fd, backlog));
        fd
    }

    pub fn bind(self, lab: &mut Lab, fd: Fd, ip: Ipv4Addr, port: u16) {
        self.ok(lab, Call::Bind(fd, (ip, port).into()));
    }

    /// A connected stream, in time.
    pub fn connect(self, lab: &mut Lab, ip: Ipv4Addr, port: u16) -> Fd {
        let fd = self.socket(lab, STREAM);
        assert_eq!(self.call(lab, Call::Connect(fd, Some((ip, port).into()))), Ret::Value(0));
        fd
    }

    pub fn accept(self, lab: &mut Lab, fd: Fd) -> Fd {
        match self.call(lab, Call::Accept(fd, 0)) {
            Ret::Accepted(fd, _) => fd,
            ret => panic!("accept: {ret:?}"),
        }
    }

    pub fn send_call(self, lab: &Lab, fd: Fd, data: &[u8], flags: u32, to: Option<SocketAddr>) -> Call {
        Call::Send { fd, iov: lab.hosts[self.host].mem.iov(data), flags, to, control: Vec::new() }
    }

    /// Sends at once.
    pub fn send(self, lab: &mut Lab, fd: Fd, data: &[u8]) -> Ret {
        let call = self.send_call(lab, fd, data, 0, None);
        self.now(lab, call)
    }

    /// Sends a datagram at once.
    pub fn send_to(self, lab: &mut Lab, fd: Fd, data: &[u8], ip: Ipv4Addr, port: u16) -> Ret {
        let call = self.send_call(lab, fd, data, 0, Some((ip, port).into()));
        self.now(lab, call)
    }

    /// A buffer to receive into.
    pub fn buffer(self, lab: &Lab, len: usize) -> UserSlice {
        lab.hosts[self.host].mem.alloc(len)
    }

    pub fn recv_call(fd: Fd, buffer: UserSlice, flags: u32) -> Call {
        Call::Recv { fd, iov: Iov::One(buffer), flags }
    }

    /// What a receive call returned, with the data.
    pub fn datagram(self, lab: &Lab, buffer: UserSlice, ret: Ret) -> Datagram {
        match ret {
            Ret::Received { len, from, flags, control } => {
                Datagram { data: lab.hosts[self.host].mem.get(buffer, len.min(buffer.len as usize)), len, from, flags, control }
            }
            ret => panic!("recv: {ret:?}"),
        }
    }

    /// Receives, in time.
    pub fn recv(self, lab: &mut Lab, fd: Fd, len: usize, flags: u32) -> Datagram {
        let buffer = self.buffer(lab, len);
        let ret = self.call(lab, Self::recv_call(fd, buffer, flags));
        self.datagram(lab, buffer, ret)
    }

    /// Fails to receive, at once.
    pub fn recv_err(self, lab: &mut Lab, fd: Fd, flags: u32) -> Errno {
        let buffer = self.buffer(lab, 16);
        self.err(lab, Self::recv_call(fd, buffer, flags))
    }

    pub fn setopt(self, lab: &mut Lab, fd: Fd, level: i32, name: i32, val: i32) {
        self.ok(lab, Call::SetSockOpt(fd, level, name, OptVal::Int(val)));
    }

    pub fn settime(self, lab: &mut Lab, fd: Fd, name: i32, time: Duration) {
        self.ok(lab, Call::SetSockOpt(fd, SOL_SOCKET, name, OptVal::Time(time)));
    }

    pub fn getopt(self, lab: &mut Lab, fd: Fd, level: i32, name: i32) -> i32 {
        match self.now(lab, Call::GetSockOpt(fd, level, name)) {
            Ret::Opt(OptVal::Int(n)) => n,
            ret => panic!("getsockopt: {ret:?}"),
        }
    }

    pub fn epoll(self, lab: &mut Lab) -> Fd {
        self.ok(lab, Call::EpollCreate(0)) as Fd
    }

    pub fn epoll_add(self, lab: &mut Lab, ep: Fd, fd: Fd, events: PollEvents) {
        self.ok(lab, Call::EpollCtl(ep, fd, EpollOp::Add(EpollEvent { events, data: fd as u64 })));
    }

    /// Events that are there now: data and events.
    pub fn epoll_now(self, lab: &mut Lab, ep: Fd) -> Vec<(Fd, PollEvents)> {
        let ret = self.now(lab, Call::EpollWait(ep, 64, Some(Duration::ZERO)));
        epoll_events(ret)
    }
}

/// Two hosts, and a program on the first.
pub fn one(seed: u64) -> (Lab, Prog) {
    let mut lab = Lab::pair(seed);
    let a = Prog::spawn(&mut lab, super::A, "a");
    (lab, a)
}

/// Data and events of what `epoll_wait` returned.
pub fn epoll_events(ret: Ret) -> Vec<(Fd, PollEvents)> {
    match ret {
        Ret::Epoll(events) => events.into_iter().map(|e| (e.data as Fd, e.events)).collect(),
        ret => panic!("epoll_wait: {ret:?}"),
    }
}
