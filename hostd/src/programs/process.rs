//! A running built-in program: its streams, its signal, its tasks.

use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::errno::Errno;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use tokio::sync::{mpsc, oneshot};

/// Number of a program on this host, in the order of their starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub u64);

/// A piece of a program's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
}

/// The program's ends of the channels to whoever started it.
pub struct Streams {
    /// Standard input; a closed channel is its end.
    pub stdin: mpsc::Receiver<Vec<u8>>,
    /// Standard output and error.
    pub output: mpsc::Sender<Output>,
    /// Told once, at the end.
    pub exit: oneshot::Sender<Exit>,
}

/// A program in the host's process table.
pub struct Process {
    /// Name under which its messages appear.
    pub name: String,
    /// Directory against which file arguments are resolved.
    pub cwd: PathBuf,
    tasks: RefCell<Vec<TaskId>>,
    signal: Cell<Option<i32>>,
    exit_code: Cell<Option<i32>>,
    stdin: RefCell<Option<mpsc::Receiver<Vec<u8>>>>,
    output: RefCell<Option<mpsc::Sender<Output>>>,
    exit: RefCell<Option<oneshot::Sender<Exit>>>,
    ended: Cell<Option<Exit>>,
    last_error: RefCell<String>,
}

impl Process {
    /// A program about to run.
    pub fn new(name: &str, cwd: PathBuf, streams: Streams) -> Self {
        Self {
            name: name.to_owned(),
            cwd,
            tasks: RefCell::default(),
            signal: Cell::new(None),
            exit_code: Cell::new(None),
            stdin: RefCell::new(Some(streams.stdin)),
            output: RefCell::new(Some(streams.output)),
            exit: RefCell::new(Some(streams.exit)),
            ended: Cell::new(None),
            last_error: RefCell::default(),
        }
    }

    /// The signal that it got and has not dealt with.
    pub fn signal(&self) -> Option<i32> {
        self.signal.get()
    }

    /// Sends it a signal; the host interrupts its calls.
    pub fn raise(&self, signal: i32) {
        self.signal.set(Some(signal));
    }

    /// Takes the signal: the program has a handler for it.
    pub fn take_signal(&self) -> Option<i32> {
        self.signal.take()
    }

    /// `write(1)`: waits while whoever reads is slow.
    ///
    /// # Errors
    /// `EPIPE` if nobody reads any more, `EINTR` on a signal.
    pub async fn print(&self, text: impl Into<Vec<u8>>) -> Result<(), Errno> {
        self.write(Output::Stdout(text.into())).await
    }

    /// `write(2)`.
    ///
    /// # Errors
    /// As [`Self::print`].
    pub async fn print_error(&self, text: impl Into<Vec<u8>>) -> Result<(), Errno> {
        self.write(Output::Stderr(text.into())).await
    }

    async fn write(&self, piece: Output) -> Result<(), Errno> {
        let sender = self.output.borrow().clone().ok_or(Errno::EPIPE)?;
        // The ordinary case does not wait, also when a signal has come: last words get out.
        let piece = match sender.try_send(piece) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Errno::EPIPE),
            Err(mpsc::error::TrySendError::Full(piece)) => piece,
        };
        let mut reserve = std::pin::pin!(sender.reserve());
        std::future::poll_fn(|cx| match reserve.as_mut().poll(cx) {
            std::task::Poll::Pending if self.signal().is_some() => std::task::Poll::Ready(Err(Errno::EINTR)),
            std::task::Poll::Pending => std::task::Poll::Pending,
            std::task::Poll::Ready(permit) => std::task::Poll::Ready(permit.map_err(|_| Errno::EPIPE)),
        })
        .await?
        .send(piece);
        Ok(())
    }

    /// `read(0)`: the next piece of standard input; `None` at its end.
    ///
    /// # Errors
    /// `EINTR` on a signal.
    pub async fn read_stdin(&self) -> Result<Option<Vec<u8>>, Errno> {
        std::future::poll_fn(|cx| {
            let mut stdin = self.stdin.borrow_mut();
            let Some(stdin) = stdin.as_mut() else { return std::task::Poll::Ready(Ok(None)) };
            match stdin.poll_recv(cx) {
                std::task::Poll::Pending if self.signal().is_some() => std::task::Poll::Ready(Err(Errno::EINTR)),
                other => other.map(Ok),
            }
        })
        .await
    }

    /// Notes a task of the program.
    pub fn add_task(&self, task: TaskId) {
        self.tasks.borrow_mut().push(task);
    }

    /// Forgets a task that has ended.
    pub fn remove_task(&self, task: TaskId) {
        self.tasks.borrow_mut().retain(|&t| t != task);
    }

    /// Its tasks, the first one first.
    pub fn tasks(&self) -> Vec<TaskId> {
        self.tasks.borrow().clone()
    }

    /// The main task's result: the program ends with it.
    pub fn set_exit_code(&self, code: i32) {
        self.exit_code.set(Some(code));
    }

    /// The main task's result, once there is one.
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_code.get()
    }

    /// Tells whoever started it, and closes its streams.
    pub fn finish(&self, exit: Exit) {
        self.ended.set(Some(exit));
        self.stdin.take();
        self.output.take();
        if let Some(tell) = self.exit.take() {
            // Whoever started it may have gone: then nobody wants to know.
            let _ = tell.send(exit);
        }
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&self) -> Option<Exit> {
        self.ended.get()
    }

    /// True once it has ended.
    pub fn is_finished(&self) -> bool {
        self.ended.get().is_some()
    }

    /// Why it failed, as its last message said.
    pub fn last_error(&self) -> String {
        self.last_error.borrow().clone()
    }

    /// Keeps the message of a failure.
    pub fn set_last_error(&self, text: &str) {
        text.clone_into(&mut self.last_error.borrow_mut());
    }
}
