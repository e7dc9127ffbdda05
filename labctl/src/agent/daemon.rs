//! nicd and hostd of one node: started, spoken to.

use crate::agent::failure::Failure;
use crate::agent::process::{Process, describe};
use hyper_util::rt::TokioIo;
use ringlab_proto::host::HostConfig;
use ringlab_proto::host::host_client::HostClient;
use ringlab_proto::nic::NicConfig;
use ringlab_proto::nic::nic_client::NicClient;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long a daemon may take to answer its first request.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which daemon of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The NIC.
    Nicd,
    /// The host.
    Hostd,
}

impl Role {
    /// Name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Nicd => "nicd",
            Self::Hostd => "hostd",
        }
    }

    /// Key of a node's daemon in the journal.
    pub fn key(self, node: &str) -> String {
        format!("{} {node}", self.program())
    }
}

/// A daemon that runs.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// Its process.
    pub process: Arc<Process>,
    /// Where it serves gRPC.
    pub socket: PathBuf,
    /// Its log.
    pub log: PathBuf,
}

/// Asks a running operation to stop at its next safe point.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Cancels.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Waits until cancelled.
    pub async fn cancelled(&self) {
        let _ = self.0.subscribe().wait_for(|&cancelled| cancelled).await;
    }

    /// Whether it has been.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// `work`, unless cancelled first. Work that owns something before it says so must not be passed here.
    pub async fn or<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.cancelled() => Err(Failure::Cancelled),
            result = work => result,
        }
    }
}

impl Daemon {
    /// Waits until the daemon accepts connections.
    pub async fn wait_ready(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(1);
        while UnixStream::connect(&self.socket).await.is_err() {
            if Instant::now() > deadline {
                return Err(self.failed("does not answer"));
            }
            tokio::select! {
                status = self.process.ended() => return Err(self.failed(&format!("ended at once ({})", describe(status)))),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_millis(16)),
            }
        }
        Ok(())
    }

    /// Configures a nicd.
    pub async fn configure_nic(&self, config: NicConfig) -> Result<(), Failure> {
        let mut client = NicClient::new(channel(&self.socket));
        self.answer(client.configure(config)).await.map(drop)
    }

    /// Configures a hostd.
    pub async fn configure_host(&self, config: HostConfig) -> Result<(), Failure> {
        let mut client = HostClient::new(channel(&self.socket));
        self.answer(client.configure(config)).await.map(drop)
    }

    /// Tells a hostd of new names. `false`: it takes them at its next start only.
    pub async fn reconfigure_host(&self, config: HostConfig) -> Result<bool, Failure> {
        let mut client = HostClient::new(channel(&self.socket));
        match tokio::time::timeout(PATIENCE, client.configure(config)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(status)) if matches!(status.code(), Code::Unimplemented | Code::FailedPrecondition | Code::AlreadyExists) => Ok(false),
            Ok(Err(status)) => Err(self.failed(status.message())),
            Err(_) => Err(self.failed("does not answer")),
        }
    }

    /// An answer, unless the daemon ends or is silent.
    pub async fn answer<T>(&self, request: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            answer = request => answer.map_err(|status| self.failed(status.message())),
            status = self.process.ended() => Err(self.failed(&format!("ended ({})", describe(status)))),
            () = tokio::time::sleep(PATIENCE) => Err(self.failed("does not answer")),
        }
    }

    /// A failure of this daemon, with the end of its log.
    pub fn failed(&self, what: &str) -> Failure {
        let name = self.log.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let mut text = format!("{name}: {what}");
        let tail = log_tail(&self.log, 5);
        if !tail.is_empty() {
            text.push_str("; the end of its log:");
            tail.iter().for_each(|line| text.push_str(&format!("\n    {line}")));
        }
        Failure::Deploy(text)
    }
}

/// A channel to a daemon; it connects when it is used.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    }))
}

/// A connection to a daemon that ends when this is dropped, whatever waits on it: a stream of input that nobody reads would keep it.
#[derive(Debug, Default)]
pub struct Connection(Arc<Mutex<Vec<std::os::unix::net::UnixStream>>>);

impl Connection {
    /// A channel over it; it connects when it is used.
    pub fn channel(&self, socket: &Path) -> Channel {
        let (socket, held) = (socket.to_path_buf(), self.0.clone());
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
            let (socket, held) = (socket.clone(), held.clone());
            async move {
                let stream = UnixStream::connect(socket).await?;
                held.lock().unwrap_or_else(PoisonError::into_inner).push(stream.as_fd().try_clone_to_owned()?.into());
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for stream in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The daemon may have ended it.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Last lines of a log.
pub fn log_tail(log: &Path, lines: usize) -> Vec<String> {
    const ENOUGH: u64 = 16 << 10;
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
        let mut octets = Vec::new();
        file.read_to_end(&mut octets)?;
        Ok(String::from_utf8_lossy(&octets).into_owned())
    };
    let text = read().unwrap_or_default();
    let all = text.lines().collect::<Vec<_>>();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::process::{Launch, launch};
    use crate::scratch::Scratch;
    use std::process::Command;

    #[tokio::test]
    async fn daemon_that_ends_at_once_is_reported_with_its_log() {
        let scratch = Scratch::new("daemon");
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such device >&2; exit 3"]);
        let log = scratch.path().join("nicd-a.log");
        let child = launch(Launch { command, log: log.clone(), cpu: None }).await.unwrap();
        let daemon = Daemon { process: Process::of_child(child).unwrap(), socket: scratch.path().join("none"), log };
        let failure = daemon.wait_ready().await.unwrap_err();
        assert_eq!(failure.to_string(), "nicd-a: ended at once (exit status 3); the end of its log:\n    no such device");
        assert_eq!(failure.exit_code(), 4);
    }

    #[tokio::test]
    async fn cancelled_work_stops() {
        let cancel = Cancel::new();
        let waiting = tokio::spawn({
            let cancel = cancel.clone();
            async move { cancel.or(std::future::pending::<Result<(), Failure>>()).await }
        });
        cancel.cancel();
        assert_eq!(waiting.await.unwrap(), Err(Failure::Cancelled));
        assert!(cancel.is_cancelled());
    }
}
