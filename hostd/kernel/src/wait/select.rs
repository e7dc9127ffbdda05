//! `poll` and `select`: every call looks at all descriptors, registers on all of
//! them, and looks at all again after each wake-up (Linux `do_poll`, `do_select`).
//! O(N) a call, whatever is ready; the trace shows it.

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::syscall::exec::{Flow, Op};
use crate::syscall::{FdSet, PollFd, Ret};
use crate::trace::Point;
use crate::vfs::{FileId, FileKind};
use crate::wait::queue::{PollEvents, WaitEntry, Waiter};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

/// What makes a descriptor readable for `select`.
const POLLIN_SET: PollEvents =
    PollEvents::RDNORM.union(PollEvents::RDBAND).union(PollEvents::IN).union(PollEvents::HUP).union(PollEvents::ERR);
/// What makes it writable.
const POLLOUT_SET: PollEvents = PollEvents::WRBAND.union(PollEvents::WRNORM).union(PollEvents::OUT).union(PollEvents::ERR);
/// What makes it exceptional.
const POLLEX_SET: PollEvents = PollEvents::PRI;

/// A `poll` or `select` in progress.
#[derive(Debug)]
pub(crate) struct PollOp {
    fds: Vec<PollFd>,
    /// Of `select`: the sets as they came.
    select: Option<[FdSet; 3]>,
    /// Files on whose queues the task stands (`poll_table_entry`), each with a reference.
    registered: Vec<FileId>,
    timeout: Option<Duration>,
}

impl FdSet {
    /// True if the descriptor is in the set.
    pub fn contains(&self, fd: i32) -> bool {
        self.0.get(fd as usize / 64).is_some_and(|w| w >> (fd as usize % 64) & 1 != 0)
    }

    /// Adds a descriptor below 1024.
    pub fn insert(&mut self, fd: i32) {
        if let Some(word) = self.0.get_mut(fd as usize / 64) {
            *word |= 1 << (fd as usize % 64);
        }
    }
}

impl Kernel {
    /// `poll`.
    pub(crate) fn sys_poll(&mut self, task: TaskId, fds: Vec<PollFd>, timeout: Option<Duration>) -> Flow {
        if fds.len() > self.fd_table(task).limit() {
            return Flow::Done(Ret::Err(Errno::EINVAL));
        }
        self.do_poll(task, Box::new(PollOp { fds, select: None, registered: Vec::new(), timeout }))
    }

    /// `select`.
    pub(crate) fn sys_select(&mut self, task: TaskId, nfds: i32, sets: &[FdSet; 3], timeout: Option<Duration>) -> Flow {
        if nfds < 0 {
            return Flow::Done(Ret::Err(Errno::EINVAL));
        }
        let mut fds = Vec::new();
        let mut kept = [FdSet::default(); 3];
        for fd in 0..nfds.min(1024) {
            let mut events = PollEvents::empty();
            for (i, wanted) in [POLLIN_SET, POLLOUT_SET, POLLEX_SET].into_iter().enumerate() {
                if sets[i].contains(fd) {
                    events |= wanted;
                    kept[i].insert(fd);
                }
            }
            if !events.is_empty() {
                if self.fget(task, fd).is_err() {
                    return Flow::Done(Ret::Err(Errno::EBADF));
                }
                fds.push(PollFd { fd, events, revents: PollEvents::empty() });
            }
        }
        self.do_poll(task, Box::new(PollOp { fds, select: Some(kept), registered: Vec::new(), timeout }))
    }

    /// One walk over all descriptors; sleeps if none is ready. Also what a woken task does.
    pub(crate) fn do_poll(&mut self, task: TaskId, mut op: Box<PollOp>) -> Flow {
        let first = op.registered.is_empty();
        self.trace(Point::SelectEstimate, 0, [task.0.into(), op.fds.len() as u64, 0, 0]);
        let mut count = 0;
        for i in 0..op.fds.len() {
            let PollFd { fd, events, .. } = op.fds[i];
            let revents = match self.fget(task, fd) {
                _ if fd < 0 => PollEvents::empty(),
                Err(_) => PollEvents::NVAL,
                Ok(file) => {
                    let wanted = events | PollEvents::ALWAYS;
                    if first && count == 0 && op.timeout != Some(Duration::ZERO) {
                        self.poll_wait(file, task, wanted);
                        self.vfs.get_file(file);
                        op.registered.push(file);
                    }
                    self.file_poll(file) & wanted
                }
            };
            op.fds[i].revents = revents;
            count += usize::from(!revents.is_empty());
        }
        let t = self.tasks.get(task).expect("the calling task exists");
        let (timed_out, signalled) = (t.timed_out, t.signalled);
        if count > 0 || timed_out || op.timeout == Some(Duration::ZERO) {
            self.poll_freewait(task, &mut op);
            return Flow::Done(op.result());
        }
        if signalled {
            self.poll_freewait(task, &mut op);
            return Flow::Done(Ret::Err(Errno::EINTR));
        }
        self.arm_deadline(task, op.timeout);
        self.set_interruptible(task);
        Flow::Block(Op::Poll(op))
    }

    fn poll_wait(&mut self, file: FileId, task: TaskId, events: PollEvents) {
        let entry = WaitEntry { waiter: Waiter::Poll(task), exclusive: false, events };
        let mut number = 0;
        match self.vfs.file(file).kind {
            FileKind::Socket(id) => {
                if let Some(sk) = self.socks.get_mut(id) {
                    sk.wq.add(entry);
                    number = id.0;
                }
            }
            FileKind::Epoll(epoll) => self.epolls.poll_queue(epoll).add(entry),
        }
        self.trace(Point::PrepareToWait, 0, [task.0.into(), number.into(), 0, 0]);
    }

    /// Takes the task off all queues (Linux `poll_freewait`).
    pub(crate) fn poll_freewait(&mut self, task: TaskId, op: &mut PollOp) {
        for file in core::mem::take(&mut op.registered) {
            match self.vfs.file(file).kind {
                FileKind::Socket(id) => {
                    if let Some(sk) = self.socks.get_mut(id) {
                        sk.wq.remove(Waiter::Poll(task));
                    }
                }
                FileKind::Epoll(epoll) => {
                    self.epolls.poll_queue(epoll).remove(Waiter::Poll(task));
                }
            }
            self.fput(file);
        }
    }
}

impl PollOp {
    fn result(self: Box<Self>) -> Ret {
        let Some(asked) = self.select else { return Ret::Poll(self.fds) };
        let mut found = [FdSet::default(); 3];
        let mut count = 0;
        for p in &self.fds {
            for (i, meaning) in [POLLIN_SET, POLLOUT_SET, POLLEX_SET].into_iter().enumerate() {
                if asked[i].contains(p.fd) && p.revents.intersects(meaning) {
                    found[i].insert(p.fd);
                    count += 1;
                }
            }
        }
        Ret::Select(count, Box::new(found))
    }
}
