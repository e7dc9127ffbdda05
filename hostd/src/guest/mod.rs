//! Unmodified programs: processes of the machine whose network is the kernel model.
//!
//! A guest runs under a seccomp filter ([`filter`]) that hands the calls which matter to
//! hostd by user notification; all else goes to the machine's kernel. hostd's
//! kernel thread is the supervisor, so that a call goes into the model without
//! a lock or a queue: receive, decode, call, encode, answer.
//!
//! ```text
//! program ─ trapped call ─▶ listener ─▶ Guests::on_notif ─▶ calls::dispatch
//!                                             │ real descriptor: the machine's kernel goes on
//!                                             ▼
//!                       kernel model ◀─ Call ─┘   Ret ─▶ finish: write back, answer
//! ```
//!
//! *Descriptors*: the program's real table is the truth ([`fds`]); a modelled file has a
//! [`placeholder`] there. In the model all guests of a host share one table, whose
//! numbers (*handles*) no program sees.
//!
//! *Blocking*: a call that blocks in the model stays unanswered. A signal ends the wait in the machine's kernel,
//! and nobody tells: before the model completes a call that had blocked it asks whether somebody still
//! waits for it ([`ringlab_kernel::uaccess::UserMemory::waits_still`]). A result that nobody took is kept ([`interrupt`]).
//!
//! *Isolation*: what a program passes is read once, through the machine's kernel, and checked. hostd never
//! follows a pointer or opens a path of a program's making.
#![expect(unsafe_code, reason = "seccomp's ioctls and process_vm_readv have no safe wrapper")]

mod bell;
mod bpf;
mod calls;
mod change;
mod decode;
mod epoll;
mod fds;
mod files;
mod filter;
pub mod guard;
mod init;
mod interrupt;
pub mod launch;
mod mapping;
mod mask;
mod memory;
pub mod namespace;
mod notify;
mod paths;
pub mod place;
mod placeholder;
mod poll;
mod reply;
mod scope;
mod shown;
mod signal;
mod stat;
mod stop;
mod table;
mod task;
mod token;
pub mod window;

pub use table::GuestMemory;

use crate::host::Shared;
use calls::{Finish, Outcome};
use notify::{Listener, Notif};
use placeholder::Placeholders;
use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret};
use rustc_hash::FxBuildHasher;
use rustix::event::epoll as ep;
use rustix::fd::OwnedFd;
use rustix::io::Errno as OsErrno;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use table::{Caller, Proc, Task};
use token::Token;
use tracing::{debug, warn};

/// For look-up only: its order means nothing.
type Map<K, V> = HashMap<K, V, FxBuildHasher>;

/// A call that the model has not returned yet.
#[derive(Debug)]
struct Pending {
    notif: Notif,
    listener: Rc<Listener>,
    finish: Finish,
}

/// Reports of one look from which on there may be more: the event loop takes 64 at a time, its own among them.
const CROWDED: usize = 32;

/// The supervisor of all guests of a host.
pub struct Guests {
    epoll: Rc<OwnedFd>,
    memory: GuestMemory,
    listeners: Map<u32, Rc<Listener>>,
    last_listener: u32,
    procs: Map<i32, Proc>,
    tasks: Map<i32, Task>,
    by_task: Map<u32, i32>,
    /// Holds the table that all guests share.
    root: Option<TaskId>,
    placeholders: Placeholders,
    sets: epoll::Sets,
    /// Threads that are being stopped.
    stops: stop::Stops,
    /// Files whose descriptor a thread is closing: who, which.
    closing: Vec<(i32, i32)>,
    /// Placeholders of packet sockets that are being mapped.
    mappings: Vec<mapping::Mapping>,
    /// What `splice` passes octets through.
    stage: calls::Stage,
    /// A socket of hostd's own, for questions about interfaces on real sockets.
    control: Option<i32>,
    /// Some process shares its descriptors with another one, has threads that do not share them, or changes them by calls of
    /// i386: nothing that is known of a process's descriptors holds.
    untold: bool,
    /// Paths of the node's own files that were opened.
    files: Vec<String>,
    shown: shown::Shown,
    /// Paths at which the topology put something of its own.
    bound: Vec<String>,
    /// What the loader puts into programs.
    preload: Option<OwnedFd>,
    ready: Vec<Token>,
    /// So much was reported at once that something may be missing.
    crowded: bool,
    warned: HashSet<(i32, u64), FxBuildHasher>,
}

impl Guests {
    /// A supervisor whose descriptors are watched by `epoll`; `memory` is what the kernel copies by.
    /// Files at the paths of `bound` are the topology's, also where the node has one of its own.
    /// `preload` is what the loader puts into programs.
    pub fn new(epoll: Rc<OwnedFd>, memory: GuestMemory, bound: Vec<String>, preload: Option<OwnedFd>) -> Self {
        Self {
            epoll,
            memory,
            listeners: Map::default(),
            last_listener: 0,
            procs: Map::default(),
            tasks: Map::default(),
            by_task: Map::default(),
            root: None,
            placeholders: Placeholders::default(),
            sets: epoll::Sets::default(),
            stops: stop::Stops::default(),
            closing: Vec::new(),
            mappings: Vec::new(),
            stage: calls::Stage::default(),
            control: None,
            untold: false,
            files: Vec::new(),
            shown: shown::Shown::default(),
            preload,
            bound,
            ready: Vec::new(),
            crowded: false,
            warned: HashSet::default(),
        }
    }

    /// Takes a program under supervision: its filter's listener.
    pub fn add(&mut self, listener: OwnedFd) {
        self.last_listener += 1;
        let listener = Rc::new(Listener::new(listener));
        let token = token::data(Token::Listener(self.last_listener));
        match ep::add(&*self.epoll, &*listener, token, ep::EventFlags::IN) {
            Ok(()) => drop(self.listeners.insert(self.last_listener, listener)),
            // The listener closes: the program's calls fail with ENOSYS.
            Err(error) => warn!(%error, "a program cannot be supervised"),
        }
    }

    /// True while there are programs: the event loop looks at its descriptors between two turns then.
    pub fn any(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Notes what `epoll` reported. True if it was about guests.
    pub fn on_ready(&mut self, data: u64, flags: ep::EventFlags) -> bool {
        let token = token::parse(data);
        match token {
            // Older kernels wait for ever for a call that nobody can make.
            Some(Token::Listener(number)) if !flags.contains(ep::EventFlags::IN) => {
                debug!(number, "the last process of a program has ended");
                self.listeners.remove(&number);
            }
            _ => self.ready.extend(token),
        }
        token.is_some()
    }

    /// Deals with what was reported, and with calls that the model has returned. True if there was something.
    pub fn run(&mut self, shared: &Shared) -> bool {
        let mut any = false;
        let mut tokens = core::mem::take(&mut self.ready);
        self.crowded = tokens.len() >= CROWDED;
        // What became ready natively was ready before the calls that were reported with it.
        tokens.sort_by_key(|t| !matches!(t, Token::Epoll(_)));
        for token in tokens.drain(..) {
            any = true;
            match token {
                Token::Listener(number) => {
                    self.on_listener(shared, number);
                    self.raise_signals(shared);
                }
                Token::Placeholder(handle) => self.on_hang_up(shared, handle),
                Token::Process(tgid) => self.on_process_end(shared, tgid),
                Token::Epoll(set) => self.on_set_ready(shared, set),
                Token::Poll(task) => self.on_poll_ready(shared, TaskId(task)),
                Token::Stops => {
                    self.stops.heard();
                    self.on_stops(shared);
                }
                Token::Pipe(task) => self.on_pipe_ready(shared, TaskId(task)),
            }
        }
        if self.ready.is_empty() {
            self.ready = tokens;
        }
        while let Some((task, ret)) = shared.next_guest_return() {
            any = true;
            self.on_return(shared, task, ret);
            self.raise_signals(shared);
        }
        self.raise_signals(shared);
        any
    }

    fn on_listener(&mut self, shared: &Shared, number: u32) {
        let Some(listener) = self.listeners.get(&number).cloned() else { return };
        match listener.recv() {
            Ok(notif) => self.on_notif(shared, &listener, &notif),
            // Interrupted before it was received.
            Err(OsErrno::NOENT) => {}
            Err(error) => debug!(number, %error, "a call was not received"),
        }
    }

    fn on_notif(&mut self, shared: &Shared, listener: &Rc<Listener>, notif: &Notif) {
        let tid = notif.tid as i32;
        let seen = self.procs.len();
        let Some(caller) = self.caller(shared, tid) else {
            // It has ended meanwhile, or it is none of ours to see: the answer goes nowhere.
            let _ = listener.send(notif.id, -i64::from(libc::ENOSYS));
            return;
        };
        if self.procs.len() > seen {
            self.begin_process(shared, caller);
        }
        // What it has closed is closed by now.
        self.take_changes(shared, caller);
        self.begin_call(shared, caller);
        if notif.is_i386() {
            return self.on_i386(shared, caller, listener, notif);
        }
        if !self.mappings.is_empty() {
            self.end_mappings(caller, listener, notif);
        }
        if let Some(reply) = self.take_answer(shared, caller, notif) {
            return self.send(shared, caller, listener, notif, reply);
        }
        match self.dispatch(shared, caller, listener, notif) {
            Ok(Outcome::Call(call, finish)) => self.start(shared, caller, listener, notif, call, finish),
            Ok(Outcome::Done(value)) => self.answer(shared, caller, listener, notif, value),
            Ok(Outcome::Continue) => self.let_go(shared, caller, listener, notif),
            Ok(Outcome::Taken) => {}
            Err(errno) => self.answer(shared, caller, listener, notif, -i64::from(errno.raw())),
        }
    }

    /// What a thread's call says of its last one: it is over.
    fn begin_call(&mut self, shared: &Shared, caller: Caller) {
        if let Some(proc) = self.procs.get_mut(&caller.tgid) {
            proc.cache.closed(caller.tid);
        }
        if self.tasks.get(&caller.tid).is_some_and(|t| t.pending.is_some()) {
            self.cancel(shared, caller.tid);
        }
        if let Some(bell) = self.tasks.get_mut(&caller.tid).and_then(|t| t.bell.take()) {
            self.sets.end_bell(bell);
        }
        if !self.closing.is_empty() {
            self.settle_closes(shared, caller.tid);
        }
        if self.sets_suspect() {
            self.sweep_sets(shared);
        }
    }

    /// Makes a call of the model.
    fn start(&mut self, shared: &Shared, caller: Caller, listener: &Rc<Listener>, notif: &Notif, call: Call, finish: Finish) {
        match shared.guest_syscall(caller.task, call) {
            Some(ret) => {
                // Before the answer: a handler runs, or the program ends, before the call is seen to return. It may
                // interrupt the wait for the answer, which is then kept for when the call comes again.
                self.raise_signals(shared);
                self.finish(shared, caller, listener, notif, finish, ret);
            }
            None => {
                self.block(caller, listener, notif, finish);
                self.begin_wait(shared, caller);
            }
        }
    }

    /// Leaves a call unanswered until the model returns it.
    fn block(&mut self, caller: Caller, listener: &Rc<Listener>, notif: &Notif, finish: Finish) {
        self.memory.wait(caller.task, listener.clone(), notif.id);
        if let Some(task) = self.tasks.get_mut(&caller.tid) {
            task.pending = Some(Pending { notif: *notif, listener: listener.clone(), finish });
        }
    }

    /// Notes that the model waits for a thread whose call the machine's kernel makes.
    fn expect_bell(&mut self, caller: Caller, listener: &Rc<Listener>, notif: &Notif, set: u32) {
        if let Some(task) = self.tasks.get_mut(&caller.tid) {
            task.pending = Some(Pending { notif: *notif, listener: listener.clone(), finish: Finish::Bell(set) });
        }
    }

    fn on_return(&mut self, shared: &Shared, id: TaskId, ret: Ret) {
        let Some(&tid) = self.by_task.get(&id.0) else {
            // It lingered for a process that is gone.
            return drop(shared.end_guest_task(id));
        };
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        let Some(pending) = task.pending.take() else { return };
        let caller = task.caller(tid);
        self.memory.woken(id);
        self.raise_signals(shared);
        if ret == Ret::Err(Errno::EINTR) {
            return self.interrupted(shared, caller, pending, Some(ret));
        }
        let Pending { notif, listener, finish } = pending;
        self.finish(shared, caller, &listener, &notif, finish, ret);
    }

    /// Says once that something is not there.
    fn unimplemented(&mut self, nr: i32, detail: u64, what: core::fmt::Arguments<'_>) {
        if self.warned.len() < 4096 && self.warned.insert((nr, detail)) {
            warn!("a program asked for what is not implemented: {what}");
        }
    }
}
