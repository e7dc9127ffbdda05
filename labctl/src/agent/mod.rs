//! The agent: owns this user's labs on this machine.
//!
//! The first labctl that needs it starts it (`labctl agent`); it stops a moment
//! after its last lab is gone. One agent a state directory: it holds a lock as
//! long as it lives. Labs outlive it: whatever it owns is in each lab's journal,
//! and the next agent adopts it.
//!
//! ```text
//! server      gRPC requests, each to one of:
//!   deploy    whole labs     plan (topology → configurations), diff, apply, start
//!   exec      programs       supervise (daemons that end), remove, adopt
//! journal     what is owned  process, netns, daemon: how to hold it
//! ```
//!
//! `plan`, `diff`, `routes` and `placement` are pure.

mod adopt;
mod apply;
mod cure;
mod daemon;
mod deploy;
mod diff;
mod exec;
mod failure;
mod held;
mod journal;
mod lab;
pub mod machine;
mod netns;
mod placement;
mod plan;
mod process;
mod remove;
mod routes;
#[cfg(test)]
mod samples;
mod server;
mod start;
mod supervise;

pub use daemon::{channel, log_tail};
pub use lab::TOPOLOGY;
pub use plan::{file_link_info, program};

use crate::paths::StateDir;
use failure::Failure;
use lab::Lab;
use rustix::process::Resource;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// How long an agent without labs, connections and requests stays.
const LINGER: Duration = Duration::from_millis(500);

/// How long the socket of an agent that has let go of its lock may still be served.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// What the agent writes to its standard output when it listens.
pub const READY: &str = "ready\n";

/// The agent.
#[derive(Debug)]
pub struct Agent {
    state: StateDir,
    programs: PathBuf,
    labs: Mutex<BTreeMap<String, Arc<Lab>>>,
    requests: AtomicUsize,
    changed: Notify,
    calls: AtomicU64,
}

/// A connection, or a request under way: as long as there is one, the agent stays.
#[derive(Debug)]
pub struct Busy(Arc<Agent>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// Runs the agent until its last lab is gone or it is told to end.
pub async fn run(state: StateDir) -> anyhow::Result<()> {
    state.prepare()?;
    let _lock = state.lock_agent()?;
    // Not of the terminal, session or directory of the labctl that started it.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    raise_file_limit();
    let programs = program_dir()?;
    let labs = adopt::adopt_all(&state.labs(), &programs).await;
    let agent = Agent::new(state.clone(), programs, labs);
    let listener = listen(&state.socket()).await?;
    announce()?;
    tracing::info!(socket = %state.socket().display(), "listening");
    let idle = server::serve(agent.clone(), listener).await?;
    let _ = std::fs::remove_file(state.socket());
    if idle && !state.has_labs() {
        state.clear();
    }
    tracing::info!("stopped");
    Ok(())
}

/// Binds the agent's socket. A killed predecessor lets go of its lock a moment before its socket: it is waited for.
async fn listen(socket: &Path) -> io::Result<UnixListener> {
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        match ringlab_proto::server::bind(socket) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            bound => return bound,
        }
    }
}

/// Where nicd and hostd are: beside labctl.
pub fn program_dir() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_path_buf())
}

/// Tells who started us that we listen, and lets go of the pipe.
fn announce() -> io::Result<()> {
    let mut out = io::stdout();
    // By hand, nobody may be reading.
    let _ = out.write_all(READY.as_bytes()).and_then(|()| out.flush());
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(null)?)
}

/// Two daemons a node, and a pidfd each: a large lab needs more than the usual 1024 descriptors.
fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

impl Agent {
    fn new(state: StateDir, programs: PathBuf, labs: BTreeMap<String, Arc<Lab>>) -> Arc<Self> {
        let (requests, changed, calls) = (AtomicUsize::new(0), Notify::new(), AtomicU64::new(0));
        Arc::new(Self { state, programs, labs: Mutex::new(labs), requests, changed, calls })
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Lab>>> {
        self.labs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection or a request, until the result is dropped.
    fn busy(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        Busy(self.clone())
    }

    /// Ends when the agent has had neither labs nor connections nor requests for a while.
    async fn idle(&self) {
        loop {
            let idle = self.requests.load(Ordering::Relaxed) == 0 && self.map().is_empty();
            if !idle {
                self.changed.notified().await;
                continue;
            }
            if tokio::time::timeout(LINGER, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Labs that are up or on their way, by name.
    fn labs(&self) -> Vec<Arc<Lab>> {
        self.map().values().filter(|lab| lab.is_open()).cloned().collect()
    }

    /// The lab called `name`; without a name, the only one.
    fn lab(&self, name: &str) -> Result<Arc<Lab>, Failure> {
        let labs = self.labs();
        let names = || labs.iter().map(|lab| lab.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = if name.is_empty() {
            match &labs[..] {
                [only] => return Ok(only.clone()),
                [] => None,
                _ => return Err(Failure::Usage(format!("several labs are up: name one of {}", names()))),
            }
        } else {
            labs.iter().find(|lab| lab.name == name).cloned()
        };
        found.ok_or_else(|| match (labs.is_empty(), name) {
            (true, "") => Failure::Usage("no lab is up: `labctl deploy FILE` brings one up".into()),
            (true, name) => Failure::Usage(format!("lab {name} is not up, nor is any other")),
            (false, name) => Failure::Usage(format!("lab {name} is not up; up are {}", names())),
        })
    }

    /// The lab called `name`, or a new one.
    fn lab_or_new(&self, name: &str) -> Arc<Lab> {
        self.map().entry(name.to_owned()).or_insert_with(|| Lab::new(name, &self.state.lab(name))).clone()
    }

    /// Forgets a lab that has been removed.
    fn forget(&self, lab: &Arc<Lab>) {
        let mut labs = self.map();
        if labs.get(&lab.name).is_some_and(|other| Arc::ptr_eq(other, lab)) {
            labs.remove(&lab.name);
        }
        self.changed.notify_one();
    }

    /// A number that no other call of this agent has.
    fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }
}

/// Ends when the agent is asked to end. Its labs stay.
async fn asked_to_end() -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use ringlab_proto::agent::ListRequest;
    use ringlab_proto::agent::agent_client::AgentClient;

    /// The agent that serves at `socket`, a moment later.
    fn serves(socket: &Path) -> tokio::task::JoinHandle<anyhow::Result<bool>> {
        let agent = Agent::new(StateDir::at(socket.parent().unwrap()), PathBuf::new(), BTreeMap::new());
        tokio::spawn(server::serve(agent, ringlab_proto::server::bind(socket).unwrap()))
    }

    #[tokio::test]
    async fn agent_stays_for_who_is_connected_and_pauses() {
        let scratch = Scratch::new("agent-stays");
        let socket = scratch.path().join("agent.sock");
        let agent = serves(&socket);
        let mut client = AgentClient::new(channel(&socket));
        client.list(ListRequest {}).await.unwrap();
        // Of the agent, which waits as long; as slow a machine may stop whoever asks.
        tokio::time::sleep(3 * LINGER).await;
        client.list(ListRequest {}).await.unwrap();
        assert!(!agent.is_finished());
        drop(client);
        assert!(agent.await.unwrap().unwrap(), "it ends when nobody is there any more");
    }

    #[tokio::test]
    async fn socket_of_an_agent_that_still_ends_is_waited_for() {
        let scratch = Scratch::new("agent");
        let socket = scratch.path().join("agent.sock");
        let dying = ringlab_proto::server::bind(&socket).unwrap();
        let mut listening = std::pin::pin!(listen(&socket));
        let at_once = tokio::time::timeout(Duration::ZERO, &mut listening).await;
        assert!(at_once.is_err(), "it is served: {at_once:?}");
        drop(dying);
        let _listener = listening.await.unwrap();
        tokio::net::UnixStream::connect(&socket).await.unwrap();
    }
}
