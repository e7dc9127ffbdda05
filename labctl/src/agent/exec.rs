//! Runs programs on nodes, with their input, output and signals streamed.
//!
//! On an emulated host hostd does it and the agent passes messages on. On a Linux
//! node the agent starts the program in the node's namespace, with the caller's
//! directory and environment. It runs as the agent does: the agent is the caller's
//! own, nobody else may speak to it.

use crate::agent::daemon::{Connection, Role};
use crate::agent::failure::Failure;
use crate::agent::journal::Record;
use crate::agent::lab::Lab;
use crate::agent::netns;
use crate::agent::plan::{LinuxPlan, NodePlan};
use crate::agent::process::{Process, end_all};
use crate::agent::start::{Maker, hosts_path};
use ringlab_proto::account::{AccountError, UserSpec};
use ringlab_proto::agent::{ExecInput, exec_input};
use ringlab_proto::exec::{self, Control};
use ringlab_proto::host::host_client::HostClient;
use ringlab_proto::host::{self, ExecOutput, ExecStart, ExitStatus, exec_output};
use rustix::process::Signal;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Octets in one message.
const CHUNK: usize = 32 << 10;
/// How long output is awaited after the program's end: what it left running may hold the pipe for ever.
const STRAGGLERS: Duration = Duration::from_millis(100);

/// Where output goes.
pub type Output = mpsc::Sender<Result<ExecOutput, Status>>;

/// Runs a program on an emulated host.
pub async fn on_host(maker: &Maker, node: &NodePlan, start: ExecStart, mut inputs: Streaming<ExecInput>, output: Output) {
    let daemon = match maker.running(node, Role::Hostd) {
        Ok(daemon) => daemon,
        Err(failure) => return drop(output.send(Err(failure.into())).await),
    };
    let (sender, receiver) = mpsc::channel(16);
    let first = host::ExecInput { kind: Some(host::exec_input::Kind::Start(start)) };
    // The channel is empty: there is room.
    let _ = sender.try_send(first);
    let pass = async move {
        while let Some(Ok(input)) = inputs.next().await {
            if sender.send(for_host(input)).await.is_err() {
                break;
            }
        }
        // Input may end before the program does: the stream to hostd stays open until then.
        sender.closed().await;
    };
    let connection = Connection::default();
    let channel = connection.channel(&daemon.socket);
    let fetch = async {
        let mut client = HostClient::new(channel).max_decoding_message_size(64 << 20);
        let mut outputs = match client.exec(ReceiverStream::new(receiver)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return drop(output.send(Err(status)).await),
        };
        loop {
            let next = tokio::select! {
                next = outputs.next() => next,
                // The caller has gone: dropping the stream ends the program.
                () = output.closed() => return,
            };
            let Some(next) = next else { return };
            if output.send(next).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(fetch);
    tokio::select! {
        // hostd listens no more: the program has ended, or was refused. What it says of that is on its way.
        () = pass => fetch.await,
        () = &mut fetch => {}
    }
    // hostd sees the end though its program takes no more input.
    drop(connection);
}

/// A message of labctl's, as hostd has it.
fn for_host(input: ExecInput) -> host::ExecInput {
    let kind = match input.kind {
        Some(exec_input::Kind::Stdin(octets)) => Some(host::exec_input::Kind::Stdin(octets)),
        Some(exec_input::Kind::StdinEof(eof)) => Some(host::exec_input::Kind::StdinEof(eof)),
        Some(exec_input::Kind::Signal(signal)) => Some(host::exec_input::Kind::Signal(signal)),
        Some(exec_input::Kind::Resize(size)) => Some(host::exec_input::Kind::Resize(size)),
        // Only the first message starts something.
        Some(exec_input::Kind::Start(_)) | None => None,
    };
    host::ExecInput { kind }
}

/// Runs a program in a Linux node's namespace. `number` is unique among the agent's calls.
pub async fn on_linux(
    lab: &Arc<Lab>,
    node: &NodePlan,
    linux: &LinuxPlan,
    number: u64,
    start: ExecStart,
    inputs: Streaming<ExecInput>,
    output: Output,
) -> Result<(), Failure> {
    let key = format!("exec {} {number}", node.name);
    let Some(name) = start.argv.first().cloned() else {
        return Err(Failure::Usage(format!("node {} is real Linux: name a program, not a built-in one", node.name)));
    };
    lab.journal([Record::Announce { key: key.clone(), log: None }])?;
    let mut child = match spawn(lab, node, linux, start).await {
        Ok(child) => child,
        Err((what, error)) => {
            lab.journal([Record::Gone { key }])?;
            // As programs print it: without its number.
            let reason = error.to_string();
            let reason = reason.split(" (os error").next().unwrap_or_default();
            let text = format!("labctl: {}: {reason}\n", what.unwrap_or(name)).into_bytes();
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            let _ = output.send(message(exec_output::Kind::Stderr(text))).await;
            let _ = output.send(message(exec_output::Kind::Exit(ExitStatus { code, signal: 0 }))).await;
            return Ok(());
        }
    };
    let stdin = child.stdin.take().and_then(|pipe| ChildStdin::from_std(pipe).ok());
    let stdout = child.stdout.take().and_then(|pipe| ChildStdout::from_std(pipe).ok());
    let stderr = child.stderr.take().and_then(|pipe| ChildStderr::from_std(pipe).ok());
    let process = Process::of_child(child).map_err(Failure::deploy)?;
    lab.journal([Record::Process { key: key.clone(), pid: process.pid(), start_time: process.start_time() }])?;
    lab.state().execs.insert(number, process.clone());
    let feeding = tokio::spawn(feed(process.clone(), stdin, inputs, output.clone()));
    let out = tokio::spawn(forward(stdout, output.clone(), process.clone(), exec_output::Kind::Stdout));
    let err = tokio::spawn(forward(stderr, output.clone(), process.clone(), exec_output::Kind::Stderr));
    let status = tokio::select! {
        status = process.ended() => status,
        () = output.closed() => {
            process.signal_group(Signal::HUP);
            end_all(std::slice::from_ref(&process), true).await;
            process.ended().await
        }
    };
    let _ = tokio::join!(out, err);
    feeding.abort();
    let exit = status.map_or(ExitStatus { code: 0, signal: 9 }, |status| ExitStatus {
        code: status.code().unwrap_or(0),
        signal: status.signal().unwrap_or(0),
    });
    let _ = output.send(message(exec_output::Kind::Exit(exit))).await;
    let mine = lab.state().execs.remove(&number).is_some();
    // A lab that is gone has no journal.
    if mine { lab.journal([Record::Gone { key }]) } else { Ok(()) }
}

/// Starts a program; or what could not be had (`None`: itself), and why.
async fn spawn(lab: &Lab, node: &NodePlan, linux: &LinuxPlan, start: ExecStart) -> Result<Child, (Option<String>, io::Error)> {
    let mut command = Command::new(&start.argv[0]);
    command.args(&start.argv[1..]).env_clear().envs(&start.env).process_group(0);
    if !start.user.is_empty() {
        become_user(&mut command, &start.user).map_err(|error| (Some(format!("user {}", start.user)), error))?;
    }
    command.envs(&linux.files.env).envs(&start.set_env);
    let dir = [&start.workdir, &linux.files.workdir, &start.cwd].into_iter().find(|dir| !dir.is_empty());
    let dir = dir.map_or("/", String::as_str).to_owned();
    command.current_dir(&dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let hosts = hosts_path(&lab.run_dir, &node.name);
    let started = netns::inside_as_host(&linux.netns, hosts, move || match std::fs::read_dir(&dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Err((Some(dir), error))),
        _ => Ok(command.spawn().map_err(|error| (None, error))),
    });
    started.await.unwrap_or_else(|error| Err((None, error)))
}

/// Looks a user of the machine up; the agent of a lab with Linux nodes may become anybody.
fn become_user(command: &mut Command, user: &str) -> io::Result<()> {
    let unknown = |error: AccountError| io::Error::new(io::ErrorKind::InvalidInput, error);
    let spec: UserSpec = user.parse().map_err(unknown)?;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let account = spec.resolve(&read("/etc/passwd"), &read("/etc/group")).map_err(unknown)?;
    command.uid(account.uid).gid(account.gid).env("HOME", &account.home);
    if !account.name.is_empty() {
        command.env("USER", &account.name).env("LOGNAME", &account.name);
    }
    Ok(())
}

/// Passes input and signals to the program until the caller ends.
async fn feed(process: Arc<Process>, pipe: Option<ChildStdin>, inputs: Streaming<ExecInput>, output: Output) {
    let (stdin, pieces) = mpsc::channel(1);
    let control = |control| match control {
        Control::Signal(number) => {
            if let Some(signal) = Signal::from_named_raw(number) {
                process.signal_group(signal);
            }
        }
        // There is no terminal; who waits for the program ends it with its user.
        Control::Resize(_) | Control::HangUp => {}
    };
    tokio::join!(write(pipe, pieces), exec::feed(inputs.map(|input| input.map(for_host)), stdin, output, control));
}

async fn write(mut pipe: Option<ChildStdin>, mut pieces: mpsc::Receiver<Vec<u8>>) {
    while let (Some(pipe), Some(octets)) = (&mut pipe, pieces.recv().await) {
        if pipe.write_all(&octets).await.is_err() {
            // The program reads no more: that is its affair.
            return;
        }
    }
}

/// Passes output on until the pipe is closed, or the program has ended and nothing more comes.
async fn forward(pipe: Option<impl AsyncRead + Unpin>, output: Output, process: Arc<Process>, kind: fn(Vec<u8>) -> exec_output::Kind) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => read,
            () = stragglers(&process) => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if output.send(message(kind(buffer[..length].to_vec()))).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn stragglers(process: &Process) {
    process.wait_end().await;
    tokio::time::sleep(STRAGGLERS).await;
}

fn message(kind: exec_output::Kind) -> Result<ExecOutput, Status> {
    Ok(ExecOutput { kind: Some(kind) })
}
