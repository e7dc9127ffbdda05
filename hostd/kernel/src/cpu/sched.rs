//! Tasks and run queues (Linux `task_struct`, `struct rq`).
//!
//! A task is anything that makes system calls. Between calls it runs in user
//! mode, outside the kernel model; in a call it runs, or sleeps on a wait queue
//! with the call's state kept here, or stands on its CPU's run queue after a
//! wake-up. User-mode time is not modelled: a runnable task runs as soon as
//! `schedule` gets to it.
//!
//! A context switch is counted each time a task leaves its CPU because it blocks,
//! and each time it comes back: two for a blocking call.

use crate::Kernel;
use crate::syscall::Ret;
use crate::syscall::exec::{Flow, Op};
use crate::time::Instant;
use crate::timer::TimerKey;
use crate::trace::Point;
use crate::vfs::fd::FilesId;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

/// Number of a task (its pid).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// In user mode, or in a call that does not sleep.
    Running,
    /// Sleeps in a call (`TASK_INTERRUPTIBLE`).
    Interruptible,
    /// Woken, waits for its CPU.
    Runnable,
}

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) comm: String,
    pub(crate) cpu: u16,
    pub(crate) files: FilesId,
    pub(crate) state: TaskState,
    /// The call in which it sleeps.
    pub(crate) op: Option<Op>,
    /// When the call's time limit is over; set when the call first blocks.
    pub(crate) deadline: Option<Instant>,
    /// The time limit is over.
    pub(crate) timed_out: bool,
    /// A signal came while it was in the call.
    pub(crate) signalled: bool,
    stats: TaskStats,
}

#[derive(Debug, Default, Clone, Copy)]
struct TaskStats {
    syscalls: u64,
    nvcsw: u64,
    wakeups: u64,
}

/// A task as `ps` and `/proc/PID/status` show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInfo {
    /// Its pid.
    pub id: TaskId,
    /// Its name.
    pub comm: String,
    /// Where it runs.
    pub cpu: u16,
    /// What it does.
    pub state: TaskState,
    /// Function in which it sleeps (`/proc/PID/wchan`); empty if it does not.
    pub wchan: &'static str,
    /// System calls made.
    pub syscalls: u64,
    /// Times it gave its CPU away by blocking (`voluntary_ctxt_switches`).
    pub nvcsw: u64,
    /// Times it was woken.
    pub wakeups: u64,
}

/// All tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    slots: Vec<Option<Box<Task>>>,
    free: VecDeque<u32>,
    runq: Vec<VecDeque<TaskId>>,
    runnable: usize,
}

/// Free numbers kept back, so that a pid is not used again at once.
const FREE_KEPT: usize = 1024;

impl Tasks {
    pub(crate) fn get(&self, id: TaskId) -> Option<&Task> {
        self.slots.get((id.0 as usize).checked_sub(1)?)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.slots.get_mut((id.0 as usize).checked_sub(1)?)?.as_deref_mut()
    }

    fn insert(&mut self, task: Task) -> TaskId {
        let again = if self.free.len() > FREE_KEPT { self.free.pop_front() } else { None };
        let index = again.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[index as usize] = Some(Box::new(task));
        TaskId(index + 1)
    }
}

impl Kernel {
    /// Makes a task with an empty descriptor table; `cpu`: where it runs (default: pid modulo CPUs).
    pub fn spawn(&mut self, comm: &str, cpu: Option<u16>) -> TaskId {
        let files = self.vfs.new_files();
        self.new_task(comm, cpu, files)
    }

    /// Makes a task that shares the descriptor table of `parent` (`clone(CLONE_FILES)`, a thread). The
    /// table's descriptors are closed when the last task that shares it exits. A parent that is gone: as [`Self::spawn`].
    pub fn spawn_thread(&mut self, parent: TaskId, comm: &str, cpu: Option<u16>) -> TaskId {
        let Some(files) = self.tasks.get(parent).map(|t| t.files) else { return self.spawn(comm, cpu) };
        self.vfs.share_files(files);
        self.new_task(comm, cpu, files)
    }

    /// Makes a child process of `parent` (`fork`): its descriptor table is a copy, the open files are the
    /// same ones. A parent that is gone: as [`Self::spawn`].
    pub fn fork(&mut self, parent: TaskId, comm: &str, cpu: Option<u16>) -> TaskId {
        let Some(files) = self.tasks.get(parent).map(|t| t.files) else { return self.spawn(comm, cpu) };
        let files = self.vfs.copy_files(files);
        self.new_task(comm, cpu, files)
    }

    fn new_task(&mut self, comm: &str, cpu: Option<u16>, files: FilesId) -> TaskId {
        let task = Task {
            comm: String::from(comm),
            cpu: 0,
            files,
            state: TaskState::Running,
            op: None,
            deadline: None,
            timed_out: false,
            signalled: false,
            stats: TaskStats::default(),
        };
        let id = self.tasks.insert(task);
        let cpus = self.config.cpus.max(1);
        let cpu = cpu.unwrap_or((id.0 % u32::from(cpus)) as u16) % cpus;
        let task = self.tasks.get_mut(id).expect("just made");
        task.cpu = cpu;
        if self.tasks.runq.len() < usize::from(cpus) {
            self.tasks.runq.resize_with(usize::from(cpus), VecDeque::new);
        }
        id
    }

    /// Ends a task, whatever it does: its call is abandoned, its descriptors are closed. What that sends
    /// leaves with the next [`Kernel::handle`]: feed [`crate::Event::Timer`] afterwards.
    pub fn exit(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let op = task.op.take();
        let files = task.files;
        if task.state == TaskState::Runnable {
            let cpu = usize::from(task.cpu);
            self.tasks.runq[cpu].retain(|&t| t != id);
            self.tasks.runnable -= 1;
        }
        if let Some(op) = op {
            self.finish_wait(id, &op);
            self.drop_op(id, op);
        }
        self.timers.cancel(TimerKey::Task(id));
        self.put_files(files);
        self.tasks.slots[id.0 as usize - 1] = None;
        self.tasks.free.push_back(id.0 - 1);
    }

    /// A signal for a task: [`crate::Event::Signal`]. Wakes it if it sleeps; call `schedule` afterwards.
    pub(crate) fn signal_task(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id)
            && task.op.is_some()
        {
            task.signalled = true;
            self.try_to_wake_up(id);
        }
    }

    /// Nobody waits for a task's call any more: [`crate::Event::Cancel`].
    pub(crate) fn cancel_call(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let Some(op) = task.op.take() else { return };
        if task.state == TaskState::Runnable {
            let cpu = usize::from(task.cpu);
            self.tasks.runq[cpu].retain(|&t| t != id);
            self.tasks.runnable -= 1;
        }
        let task = self.tasks.get_mut(id).expect("looked up above");
        task.state = TaskState::Running;
        let back = core::mem::replace(&mut self.this_cpu, task.cpu);
        self.finish_wait(id, &op);
        let flow = self.abandon_op(id, op);
        self.end_of_step(id, flow);
        self.this_cpu = back;
    }

    /// Gives a task another name (`exec`, `PR_SET_NAME`).
    pub fn set_comm(&mut self, id: TaskId, comm: &str) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.comm = String::from(comm);
        }
    }

    /// The time limit of a task's call is over: [`crate::timer::TimerKey::Task`]. Call `schedule` afterwards.
    pub(crate) fn task_timeout(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id)
            && task.op.is_some()
        {
            task.timed_out = true;
            self.try_to_wake_up(id);
        }
    }

    /// Makes a sleeping task runnable (Linux `try_to_wake_up`). True if it slept.
    pub(crate) fn try_to_wake_up(&mut self, id: TaskId) -> bool {
        let Some(task) = self.tasks.get_mut(id) else { return false };
        if task.state != TaskState::Interruptible {
            return false;
        }
        task.state = TaskState::Runnable;
        task.stats.wakeups += 1;
        let cpu = task.cpu;
        self.tasks.runq[usize::from(cpu)].push_back(id);
        self.tasks.runnable += 1;
        self.cpus.get_mut(cpu).stat.wakeups += 1;
        self.trace(Point::WakeUp, 0, [id.0.into(), cpu.into(), 0, 0]);
        true
    }

    /// Marks a task as sleeping; its wait entries are on their queues (Linux `set_current_state`).
    pub(crate) fn set_interruptible(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.state = TaskState::Interruptible;
        }
    }

    /// Lets a task that marked itself as sleeping go on without giving up its CPU: what it waits
    /// for came before it left (the backlog was processed). True if it was woken meanwhile.
    pub(crate) fn woken_before_switch(&mut self, id: TaskId) -> bool {
        let Some(task) = self.tasks.get_mut(id) else { return false };
        if task.state != TaskState::Runnable {
            return false;
        }
        task.state = TaskState::Running;
        let cpu = usize::from(task.cpu);
        let queue = &mut self.tasks.runq[cpu];
        // It was queued last, a moment ago, unless others were woken with it.
        if let Some(at) = queue.iter().rposition(|&t| t == id) {
            queue.remove(at);
            self.tasks.runnable -= 1;
        }
        true
    }

    /// Takes a task that blocks off its CPU.
    pub(crate) fn switch_away(&mut self, id: TaskId, op: Op) {
        let task = self.tasks.get_mut(id).expect("a task that blocks exists");
        task.op = Some(op);
        task.stats.nvcsw += 1;
        let cpu = task.cpu;
        let next = self.tasks.runq[usize::from(cpu)].front().map_or(0, |t| t.0);
        self.cpus.get_mut(cpu).stat.context_switches += 1;
        self.trace(Point::SchedSwitch, 0, [id.0.into(), next.into(), 0, 0]);
    }

    /// True if a task can run: `schedule` has something to do.
    pub(crate) fn tasks_runnable(&self) -> bool {
        self.tasks.runnable > 0
    }

    /// True if a task waits for this CPU (Linux `need_resched`).
    pub(crate) fn need_resched(&self, cpu: u16) -> bool {
        self.tasks.runq.get(usize::from(cpu)).is_some_and(|q| !q.is_empty())
    }

    /// Lets runnable tasks go on with their calls. No socket is out. Does nothing if none is.
    pub(crate) fn schedule(&mut self) {
        while self.tasks.runnable > 0 {
            for cpu in 0..self.tasks.runq.len() {
                // One turn a task: whoever is woken by the others waits for the next round.
                for _ in 0..self.tasks.runq[cpu].len() {
                    let Some(id) = self.tasks.runq[cpu].pop_front() else { break };
                    self.tasks.runnable -= 1;
                    self.run(id, cpu as u16);
                }
            }
        }
    }

    fn run(&mut self, id: TaskId, cpu: u16) {
        let back = core::mem::replace(&mut self.this_cpu, cpu);
        self.cpus.get_mut(cpu).stat.context_switches += 1;
        self.trace(Point::SchedSwitch, 0, [0, id.0.into(), 0, 0]);
        let task = self.tasks.get_mut(id).expect("the run queue holds live tasks");
        task.state = TaskState::Running;
        if let Some(op) = task.op.take() {
            self.finish_wait(id, &op);
            let flow = if self.mem.waits_still(id) { self.continue_op(id, op) } else { self.abandon_op(id, op) };
            self.end_of_step(id, flow);
        }
        self.do_softirq();
        self.this_cpu = back;
    }

    /// What follows when a call has run as far as it can: it returns, or the task sleeps.
    pub(crate) fn end_of_step(&mut self, id: TaskId, flow: Flow) {
        match flow {
            Flow::Done(ret) => self.sys_exit(id, ret),
            Flow::Block(op) => self.switch_away(id, op),
        }
    }

    /// Accounts the entry into a call.
    pub(crate) fn sys_enter(&mut self, id: TaskId, cpu: u16, nr: u64) {
        let stats = &mut self.cpus.get_mut(cpu).stat;
        stats.syscalls += 1;
        stats.mode_switches += 1;
        if let Some(task) = self.tasks.get_mut(id) {
            task.stats.syscalls += 1;
        }
        self.trace(Point::SysEnter, 0, [id.0.into(), nr, 0, 0]);
    }

    fn sys_exit(&mut self, id: TaskId, ret: Ret) {
        let cpu = self.this_cpu;
        if let Some(task) = self.tasks.get_mut(id)
            && (task.deadline.is_some() || task.signalled || task.timed_out)
        {
            task.deadline = None;
            task.signalled = false;
            task.timed_out = false;
            self.timers.cancel(TimerKey::Task(id));
        }
        self.cpus.get_mut(cpu).stat.mode_switches += 1;
        self.trace(Point::SysExit, 0, [id.0.into(), ret.as_number() as u64, 0, 0]);
        self.effects.push_back(crate::Effect::Return(id, ret));
    }

    /// All tasks by pid.
    pub fn tasks_info(&self) -> Vec<TaskInfo> {
        let info = |(i, slot): (usize, &Option<Box<Task>>)| {
            let task = slot.as_deref()?;
            Some(TaskInfo {
                id: TaskId(i as u32 + 1),
                comm: task.comm.clone(),
                cpu: task.cpu,
                state: task.state,
                wchan: task.op.as_ref().map_or("", Op::wchan),
                syscalls: task.stats.syscalls,
                nvcsw: task.stats.nvcsw,
                wakeups: task.stats.wakeups,
            })
        };
        self.tasks.slots.iter().enumerate().filter_map(info).collect()
    }
}
