//! Between the control thread and the datapath thread: a channel and an eventfd.

use crate::config::{ImpairmentConfig, NicConfig};
use ringlab_proto::nic as proto;
use ringlab_ring::doorbell::Doorbell;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// What the control thread asks of the datapath.
#[derive(Debug)]
pub enum Command {
    /// Makes ports, or changes them.
    Configure(NicConfig, Reply<()>),
    /// Changes a link.
    SetLink {
        /// The port.
        port: String,
        /// Administrative state, if it changes.
        up: Option<bool>,
        /// Impairment, if it changes.
        impairment: Option<ImpairmentConfig>,
        /// Answer.
        reply: Reply<()>,
    },
    /// Asks for all counters.
    Stats(Reply<proto::NicStats>),
    /// Ends the datapath, removing its sockets.
    Shutdown,
}

/// Where the answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such port.
    #[error("there is no port {0}")]
    UnknownPort(String),
    /// The machine lacks something.
    #[error("{0}")]
    Machine(String),
    /// It failed for another reason.
    #[error("{0}")]
    Failed(String),
    /// The datapath has ended.
    #[error("the datapath has ended")]
    Ended,
}

/// The control thread's end.
#[derive(Debug, Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    bell: Arc<Doorbell>,
}

/// The datapath's end.
#[derive(Debug)]
pub struct Commands {
    commands: mpsc::Receiver<Command>,
    bell: Arc<Doorbell>,
}

/// Both ends.
///
/// # Errors
/// What `eventfd` answers.
pub fn channel() -> io::Result<(Control, Commands)> {
    let bell = Arc::new(Doorbell::new()?);
    let (sender, receiver) = mpsc::channel();
    Ok((Control { commands: sender, bell: bell.clone() }, Commands { commands: receiver, bell }))
}

impl Control {
    /// Sends without waiting for an answer.
    ///
    /// # Errors
    /// [`CommandError::Ended`].
    pub fn send(&self, command: Command) -> Result<(), CommandError> {
        self.commands.send(command).map_err(|_| CommandError::Ended)?;
        self.bell.ring();
        Ok(())
    }

    /// Sends the command made from a reply, and waits for it.
    ///
    /// # Errors
    /// What the datapath answers.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| CommandError::Ended)?
    }
}

impl Commands {
    /// The eventfd, for epoll.
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// The next command, if one waits.
    pub fn next(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }
}
