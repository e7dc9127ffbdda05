//! Processes and threads of guests, and how the kernel model reaches their memory.

use super::bell::Bell;
use super::fds::FdCache;
use super::interrupt::Interrupted;
use super::mask::Held;
use super::memory::Mem;
use super::notify::Listener;
use super::{Map, Pending};
use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::time::Instant;
use ringlab_ring::memory::Slice;
use rustix::fd::OwnedFd;
use std::cell::RefCell;
use std::rc::Rc;

/// A thread that makes a call.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Thread, as this process sees it.
    pub tid: i32,
    /// Its process.
    pub tgid: i32,
    /// In the model.
    pub task: TaskId,
    /// Its memory.
    pub mem: Mem,
}

/// A thread.
#[derive(Debug)]
pub struct Task {
    pub(super) id: TaskId,
    pub(super) tgid: i32,
    pub(super) mem: Mem,
    pub(super) pending: Option<Pending>,
    /// Calls that signals interrupted, the last one last.
    pub(super) interrupted: Vec<Interrupted>,
    /// The signal mask of the call that it makes again.
    pub(super) held: Option<Held>,
    /// When the time of the call is up that it makes again.
    pub(super) until: Option<Instant>,
    /// What was put into a set for it.
    pub(super) bell: Option<Bell>,
}

impl Task {
    pub(super) fn caller(&self, tid: i32) -> Caller {
        Caller { tid, tgid: self.tgid, task: self.id, mem: self.mem }
    }
}

/// A process.
pub struct Proc {
    pub(super) cache: FdCache,
    /// Watched: readable when it has ended.
    pub(super) pidfd: OwnedFd,
    pub(super) threads: Vec<i32>,
    /// There was no number for a descriptor when one was last wanted.
    pub(super) full: bool,
    /// The newest epoll set when its first call came: it has inherited none that is younger.
    pub(super) newest_set: u32,
    /// Threads that have called `exec`: the next call comes from the new program, if one succeeded.
    pub(super) execs: Vec<i32>,
}

#[derive(Debug)]
struct View {
    mem: Mem,
    /// The unanswered call.
    waiting: Option<(Rc<Listener>, u64)>,
    /// Octets of hostd's own that stand for the program's memory (`sendfile`).
    bounce: Option<Rc<RefCell<Vec<u8>>>>,
}

/// What the kernel model sees of guests: by task, shared with the supervisor.
#[derive(Debug, Clone, Default)]
pub struct GuestMemory(Rc<RefCell<Map<u32, View>>>);

impl GuestMemory {
    /// A thread's memory is there.
    pub fn add(&self, task: TaskId, mem: Mem) {
        self.0.borrow_mut().insert(task.0, View { mem, waiting: None, bounce: None });
    }

    /// A thread's memory is reached in another way.
    pub fn set_memory(&self, task: TaskId, mem: Mem) {
        if let Some(view) = self.0.borrow_mut().get_mut(&task.0) {
            view.mem = mem;
        }
    }

    /// A thread has ended.
    pub fn remove(&self, task: TaskId) {
        self.0.borrow_mut().remove(&task.0);
    }

    /// A thread waits for the answer to a call.
    pub fn wait(&self, task: TaskId, listener: Rc<Listener>, id: u64) {
        if let Some(view) = self.0.borrow_mut().get_mut(&task.0) {
            view.waiting = Some((listener, id));
        }
    }

    /// The call is over.
    pub fn woken(&self, task: TaskId) {
        if let Some(view) = self.0.borrow_mut().get_mut(&task.0) {
            view.waiting = None;
        }
    }

    /// Address 0 of the task is the first octet of `buf` until further notice.
    pub fn set_bounce(&self, task: TaskId, buf: Option<Rc<RefCell<Vec<u8>>>>) {
        if let Some(view) = self.0.borrow_mut().get_mut(&task.0) {
            view.bounce = buf;
        }
    }

    /// True unless the task is a guest's whose call was interrupted.
    pub fn waits_still(&self, task: TaskId) -> bool {
        let views = self.0.borrow();
        views.get(&task.0).and_then(|v| v.waiting.as_ref()).is_none_or(|(listener, id)| listener.is_valid(*id))
    }

    /// Copies to a guest; `None` if the task is not one.
    pub fn write(&self, task: TaskId, dst: u64, src: &[Slice<'_>]) -> Option<Result<(), Errno>> {
        let views = self.0.borrow();
        let view = views.get(&task.0)?;
        Some(match &view.bounce {
            None => view.mem.write_slices(dst, src),
            Some(buf) => to_bounce(&mut buf.borrow_mut(), dst, src).ok_or(Errno::EFAULT),
        })
    }

    /// Copies from a guest; `None` if the task is not one.
    pub fn read(&self, task: TaskId, src: u64, dst: &[Slice<'_>]) -> Option<Result<(), Errno>> {
        let views = self.0.borrow();
        let view = views.get(&task.0)?;
        Some(match &view.bounce {
            None => view.mem.read_slices(src, dst),
            Some(buf) => from_bounce(&buf.borrow(), src, dst).ok_or(Errno::EFAULT),
        })
    }
}

fn to_bounce(buf: &mut [u8], dst: u64, src: &[Slice<'_>]) -> Option<()> {
    let mut rest = buf.get_mut(usize::try_from(dst).ok()?..)?;
    for run in src {
        let (to, tail) = rest.split_at_mut_checked(run.len())?;
        run.read(to);
        rest = tail;
    }
    Some(())
}

fn from_bounce(buf: &[u8], src: u64, dst: &[Slice<'_>]) -> Option<()> {
    let mut rest = buf.get(usize::try_from(src).ok()?..)?;
    for run in dst {
        let (from, tail) = rest.split_at_checked(run.len())?;
        run.write(from);
        rest = tail;
    }
    Some(())
}
