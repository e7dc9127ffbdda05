//! Threads and processes coming and going, descriptors being closed.

use super::Guests;
use super::fds::{Kind, Link, is_local, look};
use super::interrupt::Interrupted;
use super::memory::Mem;
use super::reply::Reply;
use super::table::{Caller, Proc, Task};
use super::token::{self, Token};
use super::window::WindowId;
use crate::host::Shared;
use crate::limits::is_last;
use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::vfs::fd::NR_OPEN;
use rustix::event::epoll as ep;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_open};
use tracing::debug;

impl Guests {
    /// The task of a thread, made at first sight; `None` if it is gone.
    pub(super) fn caller(&mut self, shared: &Shared, tid: i32) -> Option<Caller> {
        if let Some(task) = self.tasks.get(&tid) {
            let tgid = task.tgid;
            // After a success the process has one thread, its first; after a failure the caller goes on.
            let over = |by: i32| by == tid || tid == tgid && !exists(tgid, by);
            if let Some(proc) = self.procs.get_mut(&tgid).filter(|p| !p.execs.is_empty()) {
                let before = proc.execs.len();
                proc.execs.retain(|&by| !over(by));
                if proc.execs.len() < before {
                    self.after_exec(shared, tgid, tid);
                }
            }
            return self.tasks.get(&tid).map(|t| t.caller(tid));
        }
        let tgid = thread_group(tid)?;
        self.watch_process(tgid)?;
        let root = *self.root.get_or_insert_with(|| {
            let root = shared.new_task("guests");
            shared.kernel().set_fd_limit(root, NR_OPEN);
            root
        });
        let id = shared.clone_task(root, &comm(tid));
        debug!(tid, tgid, task = id.0, "a thread's first call");
        let window = self.procs.get(&tgid).map_or(WindowId::default(), |p| p.cache.window());
        let mem = Mem::of(tid).seen_through(window);
        self.memory.add(id, mem);
        self.by_task.insert(id.0, tid);
        self.tasks.insert(tid, Task { id, tgid, mem, pending: None, interrupted: Vec::new(), held: None, until: None, bell: None });
        if let Some(proc) = self.procs.get_mut(&tgid) {
            proc.threads.push(tid);
        }
        self.tasks.get(&tid).map(|t| t.caller(tid))
    }

    fn watch_process(&mut self, tgid: i32) -> Option<()> {
        if self.procs.contains_key(&tgid) {
            return Some(());
        }
        let pidfd = pidfd_open(Pid::from_raw(tgid)?, PidfdFlags::empty()).ok()?;
        ep::add(&*self.epoll, &pidfd, token::data(Token::Process(tgid)), ep::EventFlags::IN).ok()?;
        let newest_set = self.sets.newest();
        self.procs.insert(tgid, Proc { cache: Default::default(), pidfd, threads: Vec::new(), full: false, newest_set, execs: Vec::new() });
        Some(())
    }

    /// The first call after an `exec`, if it succeeded: other threads are gone, descriptors may be.
    fn after_exec(&mut self, shared: &Shared, tgid: i32, tid: i32) {
        self.drop_window(tgid);
        let Some(proc) = self.procs.get_mut(&tgid) else { return };
        proc.cache.clear();
        let others: Vec<i32> = proc.threads.iter().copied().filter(|&t| t != tid).collect();
        for other in others.into_iter().filter(|&t| !exists(tgid, t)) {
            self.end_thread(shared, other);
        }
        if let Some(task) = self.tasks.get(&tid) {
            shared.kernel().set_comm(task.id, &comm(tid));
        }
    }

    /// A process has ended, by whatever means.
    pub(super) fn on_process_end(&mut self, shared: &Shared, tgid: i32) {
        let Some(proc) = self.procs.get(&tgid) else { return };
        for tid in proc.threads.clone() {
            self.end_thread(shared, tid);
        }
        self.drop_window(tgid);
        self.procs.remove(&tgid);
        self.forget_mappings(tgid, 0, u32::MAX);
        self.sets.suspect();
        self.sweep_sets(shared);
    }

    /// A thread ends: so does its task, with the call in which it may be.
    pub(super) fn end_thread(&mut self, shared: &Shared, tid: i32) {
        let Some(task) = self.tasks.remove(&tid) else { return };
        self.by_task.remove(&task.id.0);
        self.memory.remove(task.id);
        self.orphan_mappings(tid);
        if let Some(proc) = self.procs.get_mut(&task.tgid) {
            proc.threads.retain(|&t| t != tid);
            proc.cache.closed(tid);
        }
        if let Some(Ret::Accepted(handle, _)) = shared.end_guest_task(task.id) {
            self.close_handle(shared, handle);
        }
        for reply in task.interrupted.iter().filter_map(Interrupted::reply) {
            self.drop_reply(shared, reply);
        }
        if !self.closing.is_empty() {
            self.settle_closes(shared, tid);
        }
    }

    /// Ends the call in which a thread was: it makes another one, or nobody waits any more.
    pub(super) fn cancel(&mut self, shared: &Shared, tid: i32) {
        if self.stops.any() {
            // It may make the call again because it was stopped.
            self.on_stops(shared);
        }
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        let Some(pending) = task.pending.take() else { return };
        let (id, caller) = (task.id, task.caller(tid));
        self.memory.woken(id);
        let ret = shared.cancel_guest_call(id);
        self.interrupted(shared, caller, pending, ret);
    }

    /// What a descriptor of the caller is.
    pub(super) fn kind(&mut self, caller: Caller, fd: i32) -> Kind {
        if fd < 0 {
            return Kind::None;
        }
        // While a thread is in `exec`, whose end shows later, nothing that is known need be right.
        let sure = !self.untold;
        let known = |p: &Proc| (sure && p.execs.is_empty()).then(|| p.cache.get(fd)).flatten();
        if let Some(kind) = self.procs.get(&caller.tgid).and_then(known) {
            return kind;
        }
        let kind = match look(caller.tid, fd) {
            Link::None => Kind::None,
            Link::Other | Link::Signals => Kind::Real,
            Link::Socket(inode) => match self.placeholders.find(inode) {
                Some(handle) => Kind::Modelled(handle),
                None if is_local(caller.tid, fd) => Kind::Real,
                None => Kind::Foreign,
            },
            Link::File(number) => Kind::File(number),
            Link::Epoll => self.sets.identify(caller.tid, fd).map_or(Kind::Real, Kind::Epoll),
        };
        if let Some(proc) = self.procs.get_mut(&caller.tgid) {
            proc.cache.note(fd, kind);
        }
        kind
    }

    /// A thread closes a descriptor, or puts something else in its place.
    pub(super) fn note_close(&mut self, caller: Caller, fd: i32) {
        let kind = self.kind(caller, fd);
        self.forget(caller, fd, kind);
    }

    /// As [`Self::note_close`], where there may be nothing to look at any more.
    pub(super) fn note_closed(&mut self, caller: Caller, fd: i32) {
        let known = self.procs.get(&caller.tgid).and_then(|p| p.cache.get(fd));
        self.forget(caller, fd, known.unwrap_or(Kind::None));
    }

    fn forget(&mut self, caller: Caller, fd: i32, kind: Kind) {
        if let Kind::Modelled(handle) = kind {
            self.closing.push((caller.tid, handle));
        }
        self.forget_mappings(caller.tgid, fd as u32, fd as u32);
        if let Some(proc) = self.procs.get_mut(&caller.tgid) {
            proc.cache.closing(fd, caller.tid);
        }
    }

    /// Looks at files that threads were closing: what `tid` closed is closed by now.
    pub(super) fn settle_closes(&mut self, shared: &Shared, tid: i32) {
        for (by, handle) in core::mem::take(&mut self.closing) {
            if self.placeholders.is_gone(handle) {
                self.close_handle(shared, handle);
            } else if by != tid {
                self.closing.push((by, handle));
            }
        }
    }

    /// A placeholder's last reference is gone.
    pub(super) fn on_hang_up(&mut self, shared: &Shared, handle: i32) {
        // The number may have been given out again since `epoll` looked.
        if self.placeholders.is_gone(handle) {
            self.close_handle(shared, handle);
        }
    }

    /// Closes a file of the model.
    pub(super) fn close_handle(&mut self, shared: &Shared, handle: i32) {
        self.placeholders.remove(handle);
        self.sets.forget_left();
        let Some(root) = self.root else { return };
        if !shared.kernel().lingers(root, handle) {
            shared.guest_syscall(root, Call::Close(handle));
            return;
        }
        // It may take its time: a task of its own waits. The one that holds all files must not.
        let id: TaskId = shared.clone_task(root, "linger");
        if shared.guest_syscall(id, Call::Close(handle)).is_some() {
            drop(shared.end_guest_task(id));
        }
    }

    /// A copy of a thread's real descriptor, of the same open file if the machine allows it.
    pub(super) fn copy_of(&self, caller: Caller, fd: i32) -> Option<OwnedFd> {
        let pidfd = &self.procs.get(&caller.tgid)?.pidfd;
        let copy = rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty());
        // Refused by the profile of a container: pipes, files and terminals can be opened afresh.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let copy = copy.or_else(|_| open(format!("/proc/{}/fd/{fd}", caller.tid), flags, Mode::empty()));
        copy.ok().filter(|copy| !is_last(copy.as_fd()))
    }

    /// An answer that nobody takes any more.
    pub(super) fn drop_reply(&mut self, shared: &Shared, reply: Reply) {
        if let Reply::Inject { handle, .. } = reply {
            self.close_handle(shared, handle);
        }
    }
}

/// The process of a thread.
fn thread_group(tid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("Tgid:")).and_then(|t| t.trim().parse().ok())
}

fn comm(tid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

pub(super) fn exists(tgid: i32, tid: i32) -> bool {
    std::fs::exists(format!("/proc/{tgid}/task/{tid}")).unwrap_or(false)
}
