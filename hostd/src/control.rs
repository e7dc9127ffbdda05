//! The channel from the control thread to the kernel thread.

use crate::config::{ConfigError, HostSpec, StartSpec};
use crate::programs::process::{Exit, ProgramId, Streams};
use crate::trace::Listener;
use ringlab_proto::host::{HostStats, ProgramInfo};
use ringlab_ring::doorbell::Doorbell;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// What the control thread asks of the kernel thread.
pub enum Command {
    /// Become `HostSpec` in place.
    Reconfigure(Box<HostSpec>, oneshot::Sender<Result<(), ConfigError>>),
    /// Start a program.
    Start(StartSpec, Streams, oneshot::Sender<ProgramId>),
    /// An unmodified program of `run:` has ended: which, how, and why it did not start.
    RunEnded(usize, Exit, String),
    /// Supervise a program: its filter's listener.
    Guest(OwnedFd),
    /// Send a program a signal.
    Signal(ProgramId, i32),
    /// Count.
    Stats(oneshot::Sender<HostStats>),
    /// States of the programs of `run:`.
    Programs(oneshot::Sender<Vec<ProgramInfo>>),
    /// Send trace events.
    Trace(Listener),
    /// End the kernel thread.
    Shutdown,
}

/// The control thread's end: wakes the kernel thread.
#[derive(Clone)]
pub struct Handle {
    sender: Sender<Command>,
    bell: Arc<Doorbell>,
}

impl Handle {
    /// Sends a command. `false` if the kernel thread has ended.
    pub fn send(&self, command: Command) -> bool {
        let sent = self.sender.send(command).is_ok();
        self.bell.ring();
        sent
    }
}

/// A channel whose sender rings `bell`.
pub fn command_channel(bell: Arc<Doorbell>) -> (Handle, Receiver<Command>) {
    let (sender, receiver) = channel();
    (Handle { sender, bell }, receiver)
}
