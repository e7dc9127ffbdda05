//! The host as its programs and the event loop share it: the kernel model, the
//! clock, the tasks of built-in programs.
//!
//! Everything here lives on the kernel thread. A task is an async function; its
//! system calls go into the kernel model directly, and `Return` effects make it
//! ready again. Only wakers cross threads ([`Wakes`]): a task that waits for its
//! reader or for standard input is woken by the control thread.

use crate::driver::Nic;
use crate::guest::GuestMemory;
use crate::programs::process::{Exit, Process};
use crate::programs::sys::Memory;
use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::dev::net_device::IfIndex;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::signal::Signal;
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::time::Instant;
use ringlab_kernel::uaccess::UserMemory;
use ringlab_kernel::{Effect, Event, Kernel};
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::memory::Slice;
use rustc_hash::FxBuildHasher;
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, SystemTime};

/// How long a program runs on calls that finish at once before the event loop gets its turn.
const SLICE: Duration = Duration::from_micros(100);
/// `SIGKILL`: ends a program without asking it.
const SIGKILL: i32 = 9;

/// The body of a task.
pub type Body = Pin<Box<dyn Future<Output = ()>>>;
type TaskMap<T> = HashMap<u32, T, FxBuildHasher>;

/// Where the host's time comes from: nanoseconds since it was powered on.
pub enum Clock {
    /// `CLOCK_MONOTONIC`, from this reading on.
    Real(u64),
    /// Set by hand; looking at it takes 200 ns.
    #[cfg(test)]
    Manual(Rc<Cell<u64>>),
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self::Real(monotonic())
    }

    /// What the time of day is ahead of the host's time, in nanoseconds.
    fn realtime_offset(&self) -> u64 {
        match self {
            Self::Real(start) => {
                let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                (day.as_nanos() as u64).saturating_sub(monotonic().saturating_sub(*start))
            }
            #[cfg(test)]
            Self::Manual(_) => 0,
        }
    }

    fn now(&self) -> Instant {
        match self {
            Self::Real(start) => Instant(monotonic().saturating_sub(*start)),
            #[cfg(test)]
            Self::Manual(now) => Instant(now.replace(now.get() + 200)),
        }
    }
}

/// Nanoseconds of the machine's monotonic clock. `std`'s clock does the same and converts twice: it is read some ten times a packet.
#[inline]
pub fn monotonic() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The memory of all tasks: arenas of built-in programs, and guests' own.
#[derive(Clone, Default)]
pub struct Arenas(Rc<RefCell<TaskMap<Memory>>>, pub GuestMemory);

impl Arenas {
    fn with(&self, task: TaskId, f: impl FnOnce(&mut [u8]) -> Option<()>) -> Result<(), Errno> {
        let arenas = self.0.borrow();
        let arena = arenas.get(&task.0).ok_or(Errno::EFAULT)?;
        let mut arena = arena.try_borrow_mut().map_err(|_| Errno::EFAULT)?;
        f(&mut arena).ok_or(Errno::EFAULT)
    }
}

impl UserMemory for Arenas {
    fn copy_to_user(&mut self, task: TaskId, dst: u64, src: &[Slice<'_>]) -> Result<(), Errno> {
        if let Some(done) = self.1.write(task, dst, src) {
            return done;
        }
        self.with(task, |arena| {
            let mut rest = arena.get_mut(usize::try_from(dst).ok()?..)?;
            for run in src {
                let (to, tail) = rest.split_at_mut_checked(run.len())?;
                run.read(to);
                rest = tail;
            }
            Some(())
        })
    }

    fn copy_from_user(&mut self, task: TaskId, src: u64, dst: &[Slice<'_>]) -> Result<(), Errno> {
        if let Some(done) = self.1.read(task, src, dst) {
            return done;
        }
        self.with(task, |arena| {
            let mut rest = arena.get(usize::try_from(src).ok()?..)?;
            for run in dst {
                let (from, tail) = rest.split_at_checked(run.len())?;
                run.write(from);
                rest = tail;
            }
            Some(())
        })
    }

    fn waits_still(&mut self, task: TaskId) -> bool {
        self.1.waits_still(task)
    }
}

/// Wake-ups of tasks by other threads.
pub struct Wakes {
    tasks: Mutex<Vec<TaskId>>,
    any: AtomicBool,
    bell: Arc<Doorbell>,
}

impl Wakes {
    /// `bell` ends the event loop's sleep.
    pub fn new(bell: Arc<Doorbell>) -> Self {
        Self { tasks: Mutex::default(), any: AtomicBool::new(false), bell }
    }

    /// True if there are any.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }
}

struct TaskWaker {
    task: TaskId,
    wakes: Arc<Wakes>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wakes.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
        self.wakes.any.store(true, Ordering::Release);
        self.wakes.bell.ring();
    }
}

struct Task {
    /// Out while it is polled.
    body: Option<Body>,
    waker: Waker,
    process: Rc<Process>,
    queued: bool,
}

/// State of a task's system call.
#[derive(Default)]
struct CallState {
    /// Blocked in the kernel.
    blocked: bool,
    ret: Option<Ret>,
}

/// The host.
pub struct Shared {
    kernel: RefCell<Kernel>,
    clock: Clock,
    slice_end: Cell<Instant>,
    last_call: Cell<Instant>,
    arenas: Arenas,
    tasks: RefCell<TaskMap<Task>>,
    calls: RefCell<TaskMap<CallState>>,
    ready: RefCell<VecDeque<TaskId>>,
    wakes: Arc<Wakes>,
    nics: RefCell<Vec<(IfIndex, Rc<RefCell<Nic>>)>>,
    bells: RefCell<Vec<(IfIndex, u16)>>,
    /// The thread that made the guests' last call to the kernel runs, and has not made another one.
    near: Cell<bool>,
    /// The next doorbell does not wait for what else a program does.
    eager: Cell<bool>,
    hosts: RefCell<BTreeMap<String, Ipv4Addr>>,
    hostname: String,
    /// The loader puts an object of hostd's into programs.
    preloads: Cell<bool>,
    /// Results of calls of guests.
    guest_returns: RefCell<VecDeque<(TaskId, Ret)>>,
    /// Signals for guests. Built-in programs take errors, not signals.
    guest_signals: RefCell<VecDeque<Signal>>,
}

impl Shared {
    /// A host round `kernel`, whose user memory is `arenas`.
    pub fn new(hostname: &str, mut kernel: Kernel, arenas: Arenas, clock: Clock, wakes: Arc<Wakes>) -> Rc<Self> {
        kernel.set_realtime_offset(clock.realtime_offset());
        Rc::new(Self {
            kernel: RefCell::new(kernel),
            clock,
            slice_end: Cell::new(Instant(0)),
            last_call: Cell::new(Instant(0)),
            arenas,
            tasks: RefCell::default(),
            calls: RefCell::default(),
            ready: RefCell::default(),
            wakes,
            nics: RefCell::default(),
            bells: RefCell::default(),
            near: Cell::default(),
            eager: Cell::default(),
            hosts: RefCell::default(),
            hostname: hostname.to_owned(),
            preloads: Cell::default(),
            guest_returns: RefCell::default(),
            guest_signals: RefCell::default(),
        })
    }

    /// The host's time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The kernel, to configure it or to look at it. Programs do not run meanwhile.
    pub fn kernel(&self) -> RefMut<'_, Kernel> {
        self.kernel.borrow_mut()
    }

    /// Lets doorbells of an interface reach its NIC.
    pub fn attach(&self, dev: IfIndex, nic: Rc<RefCell<Nic>>) {
        self.nics.borrow_mut().push((dev, nic));
    }

    /// The loader puts an object of hostd's into programs from now on.
    pub fn set_preloads(&self) {
        self.preloads.set(true);
    }

    /// True if it does.
    pub fn preloads(&self) -> bool {
        self.preloads.get()
    }

    /// Replaces the names of the lab's nodes.
    pub fn set_hosts(&self, hosts: BTreeMap<String, Ipv4Addr>) {
        *self.hosts.borrow_mut() = hosts;
    }

    /// The address of a node.
    pub fn lookup_host(&self, name: &str) -> Option<Ipv4Addr> {
        self.hosts.borrow().get(name).copied()
    }

    /// Feeds the kernel an event and deals with what comes out.
    pub fn handle(&self, event: Event) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.handle(self.clock.now(), event);
        while let Some(effect) = kernel.poll_effect() {
            self.on_effect(effect);
        }
    }

    /// Makes a call of a task. The result, if it does not block.
    pub fn syscall(&self, task: TaskId, call: Call) -> Option<Ret> {
        let now = self.clock.now();
        self.last_call.set(now);
        let mut kernel = self.kernel.borrow_mut();
        kernel.handle(now, Event::Syscall(task, call));
        let mut mine = None;
        while let Some(effect) = kernel.poll_effect() {
            match effect {
                Effect::Return(t, ret) if t == task => mine = Some(ret),
                other => self.on_effect(other),
            }
        }
        drop(kernel);
        if self.eager.get() {
            self.ring_doorbells();
        }
        if mine.is_none() {
            self.calls.borrow_mut().entry(task.0).or_default().blocked = true;
        }
        mine
    }

    /// The host has slept for long: what a program sends first is likely to be all, and is rung for at once.
    pub fn be_eager(&self) {
        self.eager.set(true);
    }

    /// The host's name.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Names and addresses of the lab's nodes.
    pub fn each_host(&self, mut f: impl FnMut(&str, Ipv4Addr)) {
        self.hosts.borrow().iter().for_each(|(name, addr)| f(name, *addr));
    }

    /// True if a guest that was answered runs, as far as is known: its next call may be near.
    pub fn expects_call(&self) -> bool {
        self.near.get()
    }

    /// No call is near.
    pub fn expect_no_call(&self) {
        self.near.set(false);
    }

    /// True if guests are to hear of results or signals.
    pub fn has_guest_news(&self) -> bool {
        !self.guest_returns.borrow().is_empty() || !self.guest_signals.borrow().is_empty()
    }

    /// Makes a call of a guest. The result, if it does not block; else it comes by [`Self::next_guest_return`].
    pub fn guest_syscall(&self, task: TaskId, call: Call) -> Option<Ret> {
        let ret = self.guest_event(task, Event::Syscall(task, call));
        self.near.set(ret.is_some());
        ret
    }

    /// Ends the call in which a guest's task is blocked. What it returns.
    pub fn cancel_guest_call(&self, task: TaskId) -> Option<Ret> {
        let returned = self.guest_event(task, Event::Cancel(task));
        let mut returns = self.guest_returns.borrow_mut();
        let before = returns.iter().position(|r| r.0 == task).and_then(|at| returns.remove(at));
        returned.or(before.map(|(_, ret)| ret))
    }

    /// Gives a connection back to its listener. False if that listens no more.
    pub fn unaccept(&self, task: TaskId, listener: i32, handle: i32) -> bool {
        let listens = self.kernel.borrow_mut().unaccept(task, listener, handle);
        // Others that wait for it.
        self.handle(Event::Timer);
        listens
    }

    /// Ends a guest's task, whatever it does. What its call has returned and nobody has taken.
    pub fn end_guest_task(&self, task: TaskId) -> Option<Ret> {
        self.kernel.borrow_mut().exit(task);
        let mut returns = self.guest_returns.borrow_mut();
        let untaken = returns.iter().position(|r| r.0 == task).and_then(|at| returns.remove(at));
        drop(returns);
        // What closing its descriptors has set going.
        self.handle(Event::Timer);
        untaken.map(|(_, ret)| ret)
    }

    /// The oldest result of a guest's blocked call.
    pub fn next_guest_return(&self) -> Option<(TaskId, Ret)> {
        let returned = self.guest_returns.borrow_mut().pop_front();
        self.near.set(self.near.get() || returned.is_some());
        returned
    }

    /// The oldest signal that was raised.
    pub fn next_guest_signal(&self) -> Option<Signal> {
        self.guest_signals.borrow_mut().pop_front()
    }

    fn guest_event(&self, task: TaskId, event: Event) -> Option<Ret> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.handle(self.clock.now(), event);
        let mut mine = None;
        while let Some(effect) = kernel.poll_effect() {
            match effect {
                Effect::Return(t, ret) if t == task => mine = Some(ret),
                other => self.on_effect(other),
            }
        }
        mine
    }

    /// True if the running task has had its turn.
    pub fn slice_over(&self) -> bool {
        self.last_call.get() >= self.slice_end.get()
    }

    /// Keeps a result for a task and makes it ready.
    pub fn deliver(&self, task: TaskId, ret: Ret) {
        let mut calls = self.calls.borrow_mut();
        let Some(call) = calls.get_mut(&task.0) else {
            return self.guest_returns.borrow_mut().push_back((task, ret));
        };
        call.blocked = false;
        call.ret = Some(ret);
        drop(calls);
        self.make_ready(task);
    }

    /// Takes the result kept for a task.
    pub fn take_return(&self, task: TaskId) -> Option<Ret> {
        self.calls.borrow_mut().get_mut(&task.0)?.ret.take()
    }

    /// A task of a new process.
    pub fn new_task(&self, comm: &str) -> TaskId {
        self.kernel.borrow_mut().spawn(comm, None)
    }

    /// A task that shares the descriptors of `parent`.
    pub fn clone_task(&self, parent: TaskId, comm: &str) -> TaskId {
        self.kernel.borrow_mut().spawn_thread(parent, comm, None)
    }

    /// Gives a task an empty arena.
    pub fn new_memory(&self, task: TaskId) -> Memory {
        let memory = Memory::default();
        self.arenas.0.borrow_mut().insert(task.0, memory.clone());
        memory
    }

    /// Gives a task its body and makes it ready.
    pub fn adopt(&self, task: TaskId, process: Rc<Process>, body: Body) {
        process.add_task(task);
        let waker = Waker::from(Arc::new(TaskWaker { task, wakes: self.wakes.clone() }));
        self.calls.borrow_mut().insert(task.0, CallState::default());
        self.tasks.borrow_mut().insert(task.0, Task { body: Some(body), waker, process, queued: false });
        self.make_ready(task);
    }

    /// True if a task can run.
    pub fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty() || self.wakes.any()
    }

    /// Runs each task that is ready once. True if there was one.
    pub fn run_ready(&self) -> bool {
        self.take_wakes();
        let count = self.ready.borrow().len();
        for _ in 0..count {
            let Some(task) = self.ready.borrow_mut().pop_front() else { break };
            self.run(task);
        }
        count > 0
    }

    /// Sends a program a signal: blocked calls end with `EINTR`.
    pub fn signal(&self, process: &Process, signal: i32) {
        if process.is_finished() {
            return;
        }
        if signal == SIGKILL {
            return self.exit_group(process, Exit { code: 128 + SIGKILL, signal: SIGKILL });
        }
        process.raise(signal);
        for task in process.tasks() {
            if self.is_blocked(task) {
                self.handle(Event::Signal(task));
            }
            self.make_ready(task);
        }
    }

    /// True if there are doorbells to ring.
    pub fn has_bells(&self) -> bool {
        !self.bells.borrow().is_empty()
    }

    /// Rings the doorbells that the kernel asked for since the last time.
    pub fn ring_doorbells(&self) {
        let mut bells = self.bells.borrow_mut();
        if bells.is_empty() {
            return;
        }
        self.eager.set(false);
        let nics = self.nics.borrow();
        for (dev, queue) in bells.drain(..) {
            if let Some((_, nic)) = nics.iter().find(|(d, _)| *d == dev) {
                nic.borrow().ring(queue);
            }
        }
    }

    fn on_effect(&self, effect: Effect) {
        match effect {
            Effect::Return(task, ret) => self.deliver(task, ret),
            Effect::Doorbell(dev, queue) => {
                let mut bells = self.bells.borrow_mut();
                if !bells.contains(&(dev, queue)) {
                    bells.push((dev, queue));
                }
            }
            Effect::Signal(signal) => self.guest_signals.borrow_mut().push_back(signal),
        }
    }

    fn is_blocked(&self, task: TaskId) -> bool {
        self.calls.borrow().get(&task.0).is_some_and(|c| c.blocked)
    }

    fn make_ready(&self, task: TaskId) {
        if let Some(t) = self.tasks.borrow_mut().get_mut(&task.0)
            && !t.queued
        {
            t.queued = true;
            self.ready.borrow_mut().push_back(task);
        }
    }

    fn take_wakes(&self) {
        if !self.wakes.any.swap(false, Ordering::AcqRel) {
            return;
        }
        let woken = core::mem::take(&mut *self.wakes.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in woken {
            self.make_ready(task);
        }
    }

    fn run(&self, task: TaskId) {
        let (mut body, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(t) = tasks.get_mut(&task.0) else { return };
            t.queued = false;
            let Some(body) = t.body.take() else { return };
            (body, t.waker.clone())
        };
        self.slice_end.set(self.clock.now() + SLICE);
        match body.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                if let Some(t) = self.tasks.borrow_mut().get_mut(&task.0) {
                    t.body = Some(body);
                }
            }
            Poll::Ready(()) => {
                drop(body);
                self.on_task_end(task);
            }
        }
    }

    fn on_task_end(&self, task: TaskId) {
        let Some(process) = self.tasks.borrow().get(&task.0).map(|t| t.process.clone()) else { return };
        self.end_task(task);
        process.remove_task(task);
        if let Some(code) = process.exit_code() {
            self.exit_group(&process, Exit { code, signal: process.signal().unwrap_or(0) });
        }
    }

    /// Ends all tasks of a program and tells whoever started it.
    fn exit_group(&self, process: &Process, exit: Exit) {
        for task in process.tasks() {
            self.end_task(task);
            process.remove_task(task);
        }
        process.finish(exit);
    }

    fn end_task(&self, task: TaskId) {
        // The body may hold the last references to its memory: drop it outside the borrow.
        let ended = self.tasks.borrow_mut().remove(&task.0);
        drop(ended);
        if self.is_blocked(task) {
            self.kernel.borrow_mut().exit(task);
            // What closing its descriptors has set going.
            self.handle(Event::Timer);
        } else {
            self.syscall(task, Call::Exit(0));
        }
        self.calls.borrow_mut().remove(&task.0);
        self.arenas.0.borrow_mut().remove(&task.0);
    }
}
