//! Tasks and run queues.

use crate::Kernel;

/// Number of a task (its pid).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// All tasks.
#[derive(Debug, Default)]
pub struct Tasks {}

impl Kernel {
    /// Makes a sleeping task runnable (Linux `try_to_wake_up`).
    pub(crate) fn try_to_wake_up(&mut self, _task: TaskId) {}
    /// Lets runnable tasks go on with their calls. No socket is out.
    pub(crate) fn schedule(&mut self) {}
}
