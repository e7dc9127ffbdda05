//! The way to the agent: found, or started.

use crate::agent::{READY, channel, log_tail};
use crate::error::{CliError, CliResult};
use crate::paths::StateDir;
use ringlab_proto::agent::agent_client::AgentClient;
use ringlab_proto::agent::{InspectReply, InspectRequest, ListRequest};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use tonic::transport::Channel;

/// A client of the agent.
pub type Client = AgentClient<Channel>;

/// Octets of the largest answer: the counters of a large lab.
const MAX_ANSWER: usize = 256 << 20;
/// An agent that is about to stop may take a connection and drop it.
const ATTEMPTS: u32 = 5;

/// The agent, started if need be.
pub async fn connect() -> CliResult<Client> {
    let state = StateDir::locate();
    for _ in 0..ATTEMPTS {
        if let Some(client) = running(&state).await {
            return Ok(client);
        }
        start(&state)?;
    }
    Err(CliError::machine(format!("the agent does not answer at {}; its log is {}", state.socket().display(), state.log().display())))
}

/// The agent if there is one, or if it has labs to take over. `None`: nothing is up.
pub async fn connect_if_needed() -> CliResult<Option<Client>> {
    let state = StateDir::locate();
    if let Some(client) = running(&state).await {
        return Ok(Some(client));
    }
    if state.has_labs() { connect().await.map(Some) } else { Ok(None) }
}

/// The agent, for a question about a lab: an error if nothing is up.
pub async fn connect_to_labs(lab: Option<&str>) -> CliResult<Client> {
    connect_if_needed().await?.ok_or_else(|| {
        CliError::usage(match lab {
            Some(lab) => format!("lab {lab} is not up, nor is any other"),
            None => "no lab is up: `labctl deploy FILE` brings one up".to_owned(),
        })
    })
}

/// The lab called `lab`; without a name, the only one.
pub async fn inspect(lab: Option<&str>) -> CliResult<InspectReply> {
    let mut client = connect_to_labs(lab).await?;
    let request = InspectRequest { lab: lab.unwrap_or_default().to_owned() };
    Ok(client.inspect(request).await?.into_inner())
}

/// A client of an agent that answers.
async fn running(state: &StateDir) -> Option<Client> {
    // The socket is private, and so must be the directory, or another user could have put it there.
    state.check().ok()?;
    tokio::net::UnixStream::connect(state.socket()).await.ok()?;
    let mut client = AgentClient::new(channel(&state.socket())).max_decoding_message_size(MAX_ANSWER);
    client.list(ListRequest {}).await.ok()?;
    Some(client)
}

/// Starts an agent and waits until it listens.
fn start(state: &StateDir) -> CliResult<()> {
    let failed = |error: &dyn std::fmt::Display| CliError::machine(format!("the agent cannot be started: {error}"));
    state.prepare().map_err(|error| CliError::machine(error.to_string()))?;
    // Two at once: one starts it, the other waits here and finds it.
    let _lock = state.lock_start().map_err(|error| failed(&error))?;
    if std::os::unix::net::UnixStream::connect(state.socket()).is_ok() {
        return Ok(());
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(state.log()).map_err(|error| failed(&error))?;
    let own = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut command = Command::new(own);
    command.arg("agent").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let mut line = String::new();
    let said = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
    if said.is_ok() && line == READY {
        // Not waited for: it outlives us.
        return Ok(());
    }
    let _ = child.wait();
    Err(failed(&format!("it ended at once; the end of its log:\n    {}", log_tail(&state.log(), 5).join("\n    "))))
}
