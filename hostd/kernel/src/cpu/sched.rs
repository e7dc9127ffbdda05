//! Tasks and run queues.

use crate::Kernel;
use crate::syscall::Call;

/// Number of a task (its pid).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// All tasks.
#[derive(Debug, Default)]
pub struct Tasks {}

impl Kernel {
    /// Makes a task with an empty descriptor table; `cpu`: where it runs (default: pid modulo CPUs).
    pub fn spawn(&mut self, _comm: &str, _cpu: Option<u16>) -> TaskId {
        TaskId(1)
    }
    /// Makes a task that shares the descriptor table of `parent` (`clone(CLONE_FILES)`, a thread). The
    /// table's descriptors are closed when the last task that shares it exits.
    pub fn spawn_thread(&mut self, _parent: TaskId, comm: &str, cpu: Option<u16>) -> TaskId {
        self.spawn(comm, cpu)
    }
    /// Executes a call of a task: [`crate::Event::Syscall`]. Ends with pending softirqs and `schedule`.
    pub(crate) fn do_syscall(&mut self, _task: TaskId, _call: Call) {}
    /// A signal for a task: [`crate::Event::Signal`]. Wakes it if it is blocked; call `schedule` afterwards.
    pub(crate) fn signal_task(&mut self, _task: TaskId) {}
    /// The time limit of a task's call is over: [`crate::timer::TimerKey::Task`]. Call `schedule` afterwards.
    pub(crate) fn task_timeout(&mut self, _task: TaskId) {}
    /// Makes a sleeping task runnable (Linux `try_to_wake_up`). True if it slept.
    pub(crate) fn try_to_wake_up(&mut self, _task: TaskId) -> bool {
        false
    }
    /// Lets runnable tasks go on with their calls. No socket is out. Does nothing if none is.
    pub(crate) fn schedule(&mut self) {}
    /// True if a task can run: `schedule` has something to do (Linux `need_resched`).
    pub(crate) fn tasks_runnable(&self) -> bool {
        false
    }
}
