//! The `ringlab.host.v1.Host` service, on the control thread.
//!
//! The first `Configure` starts the kernel thread; later ones change the running
//! host in place or are refused. Everything else is a command to that thread.

use crate::config::{ConfigError, ExecSpec, HostSpec};
use crate::control::{Command, Handle};
use crate::event_loop::{self, Boot};
use crate::guest::launch::{self, Children, Refusal, Running as Guest, Start};
use crate::guest::place::Places;
use crate::programs::process::{Exit, Output, ProgramId, Streams};
use crate::trace::{Listener, to_proto};
use ringlab_proto::exec::{Control, feed};
use ringlab_proto::host::host_server::Host;
use ringlab_proto::host::{
    ConfigureReply, ExecInput, ExecOutput, ExitStatus, HostConfig, HostStats, ProgramsReply, ProgramsRequest, ShutdownReply,
    ShutdownRequest, StatsRequest, TraceBatch, TraceRequest, exec_input, exec_output,
};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

/// Pieces of output that wait for a slow reader before the program does.
const OUTPUT_DEPTH: usize = 64;
/// Pieces of standard input that wait for the program.
const STDIN_DEPTH: usize = 4;
/// Batches of trace events that wait for a slow reader before events are lost.
const TRACE_DEPTH: usize = 16;
/// `SIGHUP`: whoever started the program has gone.
const SIGHUP: i32 = 1;

/// The service.
#[derive(Clone)]
pub struct HostService {
    running: Arc<Mutex<Option<Running>>>,
    /// Told by `Shutdown`, and when the kernel thread ends by itself.
    stop: Arc<Notify>,
    failure: Arc<OnceLock<String>>,
    children: Children,
}

struct Running {
    spec: HostSpec,
    handle: Handle,
    places: Arc<Places>,
}

type OutputStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl HostService {
    /// A service without a host yet. `stop` is notified when the daemon shall end.
    pub fn new(stop: Arc<Notify>) -> Self {
        Self { running: Arc::default(), stop, failure: Arc::default(), children: Children::default() }
    }

    /// Ends the kernel thread.
    pub fn shut_down(&self) {
        // Locked: a host is just being started, and ends with the process.
        if let Ok(mut running) = self.running.try_lock()
            && let Some(running) = running.take()
        {
            running.handle.send(Command::Shutdown);
        }
        launch::kill_descendants();
    }

    /// Why the kernel thread ended, if it was not told to.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    async fn handle(&self) -> Result<Handle, Status> {
        let running = self.running.lock().await;
        running.as_ref().map(|r| r.handle.clone()).ok_or_else(|| Status::failed_precondition("the host is not configured"))
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Status> {
        let (tell, answer) = oneshot::channel();
        self.handle().await?.send(command(tell));
        answer.await.map_err(|_| Status::unavailable("the host is shutting down"))
    }

    async fn places(&self) -> Result<Arc<Places>, Status> {
        let running = self.running.lock().await;
        running.as_ref().map(|r| r.places.clone()).ok_or_else(|| Status::failed_precondition("the host is not configured"))
    }

    async fn start_guest(&self, handle: &Handle, places: &Places, start: Start, ends: launch::Ends) -> Result<Guest, Refusal> {
        let place = places.place(&self.children, &start).await?;
        self.children.start(handle, start, place, ends).await
    }

    /// Starts the unmodified programs of `run:`.
    async fn run_guests(&self, spec: &HostSpec, handle: &Handle, places: &Places) {
        for (index, run) in spec.run.iter().enumerate() {
            let ExecSpec::Guest(start) = &run.start else { continue };
            let mut start = start.clone();
            // What the file does not say is as it is for hostd.
            for (name, value) in std::env::vars() {
                start.env.entry(name).or_insert(value);
            }
            let (_, stdin) = mpsc::channel(1);
            let (sender, output) = mpsc::channel(OUTPUT_DEPTH);
            let name = run.start.name().to_owned();
            match self.start_guest(handle, places, start, launch::Ends { stdin, output: sender }).await {
                Ok(running) => {
                    tokio::spawn(log_output(name, output));
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        if let Ok(exit) = running.exit.await {
                            handle.send(Command::RunEnded(index, exit, String::new()));
                        }
                    });
                }
                Err(refusal) => {
                    let text = format!("{}: {}", refusal.what, reason(&refusal.error));
                    handle.send(Command::RunEnded(index, Exit { code: refusal.exit_code(), signal: 0 }, text));
                }
            }
        }
    }

    /// Runs an unmodified program.
    async fn exec_guest(&self, handle: &Handle, places: &Places, start: Start, input: Streaming<ExecInput>) -> OutputStream<ExecOutput> {
        let (sender, receiver) = mpsc::channel(1);
        let (stdin_in, stdin) = mpsc::channel(STDIN_DEPTH);
        let (output_in, output) = mpsc::channel(OUTPUT_DEPTH);
        match self.start_guest(handle, places, start, launch::Ends { stdin, output: output_in }).await {
            Ok(running) => {
                let ended = Arc::new(AtomicBool::new(false));
                let (pid, terminal, at_end) = (running.pid(), running.terminal(), ended.clone());
                let control = move |control| control_guest(pid, terminal.as_ref(), &ended, &control);
                tokio::spawn(feed(input, stdin_in, sender.clone(), control));
                tokio::spawn(async move {
                    let outputs = launch::Outputs::new(output, running.exit);
                    pass_output(outputs, sender, || at_end.store(true, Ordering::Release)).await;
                });
            }
            Err(refusal) => {
                let text = format!("labctl: {}: {}\n", refusal.what, reason(&refusal.error)).into_bytes();
                let exit = ExitStatus { code: refusal.exit_code(), signal: 0 };
                tokio::spawn(async move {
                    for kind in [exec_output::Kind::Stderr(text), exec_output::Kind::Exit(exit)] {
                        // The reader has gone: nobody is left to tell.
                        let _ = sender.send(Ok(ExecOutput { kind: Some(kind) })).await;
                    }
                });
            }
        }
        Box::pin(ReceiverStream::new(receiver))
    }

    async fn boot(&self, spec: &HostSpec) -> Result<Running, Status> {
        let places = Arc::new(Places::new(spec.files.clone()));
        let prepared = places.prepare(&self.children).await;
        prepared.map_err(|refusal| Status::failed_precondition(format!("{}: {}", refusal.what, reason(&refusal.error))))?;
        let mut programs = Vec::new();
        for run in &spec.run {
            let (streams, output, _stdin, _exit) = streams();
            if let ExecSpec::Builtin(start) = &run.start {
                tokio::spawn(log_output(start.builtin.clone(), output));
            }
            programs.push(streams);
        }
        let (handle, commands, bell) = event_loop::channel().map_err(|e| Status::resource_exhausted(format!("event descriptor: {e}")))?;
        let (ready, is_ready) = oneshot::channel();
        let boot = Boot { spec: spec.clone(), programs, commands, bell, ready };
        let (stop, failure) = (self.stop.clone(), self.failure.clone());
        let on_failure = move |error: String| {
            // Only the first failure is the cause.
            let _ = failure.set(error);
            stop.notify_one();
        };
        event_loop::spawn(boot, on_failure).map_err(|e| Status::resource_exhausted(format!("kernel thread: {e}")))?;
        match is_ready.await {
            Ok(Ok(())) => {
                self.run_guests(spec, &handle, &places).await;
                Ok(Running { spec: spec.clone(), handle, places })
            }
            Ok(Err(error)) => Err(Status::unavailable(format!("{error:#}"))),
            Err(_) => Err(Status::internal("the kernel thread ended while it started")),
        }
    }
}

#[tonic::async_trait]
impl Host for HostService {
    type ExecStream = OutputStream<ExecOutput>;
    type TraceStream = OutputStream<TraceBatch>;

    async fn configure(&self, request: Request<HostConfig>) -> Result<Response<ConfigureReply>, Status> {
        let spec = HostSpec::parse(request.into_inner())?;
        let mut running = self.running.lock().await;
        match running.as_mut() {
            None => {
                let booted = self.boot(&spec).await?;
                info!(host = %spec.hostname, interfaces = spec.interfaces.len(), "the host is up");
                *running = Some(booted);
            }
            Some(running) => {
                running.spec.check_change(&spec)?;
                let (tell, answer) = oneshot::channel();
                running.handle.send(Command::Reconfigure(Box::new(spec.clone()), tell));
                answer.await.map_err(|_| Status::unavailable("the host is shutting down"))??;
                running.spec = spec;
            }
        }
        Ok(Response::new(ConfigureReply {}))
    }

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|m| m.kind);
        let Some(exec_input::Kind::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message must say what to start"));
        };
        let handle = self.handle().await?;
        let start = match ExecSpec::parse("start", start)? {
            ExecSpec::Builtin(start) => start,
            ExecSpec::Guest(start) => {
                let places = self.places().await?;
                return Ok(Response::new(self.exec_guest(&handle, &places, start, input).await));
            }
        };
        let (streams, mut output, stdin, exit) = streams();
        let id = self.ask(|tell| Command::Start(start, streams, tell)).await?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(feed(input, stdin, sender.clone(), move |control| control_builtin(&handle, id, &control)));
        tokio::spawn(async move {
            while let Some(piece) = output.recv().await {
                let kind = match piece {
                    Output::Stdout(bytes) => exec_output::Kind::Stdout(bytes),
                    Output::Stderr(bytes) => exec_output::Kind::Stderr(bytes),
                };
                if sender.send(Ok(ExecOutput { kind: Some(kind) })).await.is_err() {
                    return;
                }
            }
            let last = match exit.await {
                Ok(e) => Ok(ExecOutput { kind: Some(exec_output::Kind::Exit(ExitStatus { code: e.code, signal: e.signal })) }),
                Err(_) => Err(Status::unavailable("the host went down")),
            };
            // The reader has gone: nobody is left to tell.
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn stats(&self, _: Request<StatsRequest>) -> Result<Response<HostStats>, Status> {
        self.ask(Command::Stats).await.map(Response::new)
    }

    async fn trace(&self, request: Request<TraceRequest>) -> Result<Response<Self::TraceStream>, Status> {
        let request = request.into_inner();
        let (sender, receiver) = mpsc::channel(TRACE_DEPTH);
        let listener = Listener::new(&request.points, request.limit, sender).map_err(Status::invalid_argument)?;
        self.handle().await?.send(Command::Trace(listener));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(|batch| Ok(to_proto(batch))))))
    }

    async fn programs(&self, _: Request<ProgramsRequest>) -> Result<Response<ProgramsReply>, Status> {
        let programs = self.ask(Command::Programs).await?;
        Ok(Response::new(ProgramsReply { programs }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownReply>, Status> {
        self.stop.notify_one();
        Ok(Response::new(ShutdownReply {}))
    }
}

impl From<ConfigError> for Status {
    fn from(error: ConfigError) -> Self {
        let text = error.to_string();
        match error {
            ConfigError::Invalid { .. } => Status::invalid_argument(text),
            ConfigError::Structural(_) => Status::failed_precondition(text),
        }
    }
}

type Ends = (Streams, mpsc::Receiver<Output>, mpsc::Sender<Vec<u8>>, oneshot::Receiver<Exit>);

fn streams() -> Ends {
    let (stdin_in, stdin) = mpsc::channel(STDIN_DEPTH);
    let (output, output_out) = mpsc::channel(OUTPUT_DEPTH);
    let (exit, exited) = oneshot::channel();
    (Streams { stdin, output, exit }, output_out, stdin_in, exited)
}

/// Signals a built-in program. Without effect if it has ended: its number is not used again.
fn control_builtin(handle: &Handle, id: ProgramId, control: &Control) {
    let signal = match control {
        Control::Signal(signal) => *signal,
        Control::HangUp => SIGHUP,
        // It has no terminal.
        Control::Resize(_) => return,
    };
    handle.send(Command::Signal(id, signal));
}

/// Signals an unmodified program, or resizes its terminal. What it leaves running when it has `ended` goes on.
fn control_guest(pid: rustix::process::Pid, terminal: Option<&launch::Terminal>, ended: &AtomicBool, control: &Control) {
    match control {
        Control::Signal(signal) => launch::send_signal(pid, *signal),
        Control::HangUp if !ended.load(Ordering::Acquire) => launch::send_signal(pid, SIGHUP),
        Control::HangUp => {}
        Control::Resize(size) => {
            if let Some(terminal) = terminal {
                let side = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                terminal.resize(side(size.rows), side(size.cols));
            }
        }
    }
}

/// Passes on what an unmodified program prints, and how it ends.
async fn pass_output(mut outputs: launch::Outputs, sender: mpsc::Sender<Result<ExecOutput, Status>>, on_end: impl FnOnce()) {
    while let Some(piece) = outputs.next().await {
        let kind = match piece {
            Output::Stdout(bytes) => exec_output::Kind::Stdout(bytes),
            Output::Stderr(bytes) => exec_output::Kind::Stderr(bytes),
        };
        if sender.send(Ok(ExecOutput { kind: Some(kind) })).await.is_err() {
            return;
        }
    }
    let last = match outputs.exit().await {
        Some(e) => {
            on_end();
            let code = if e.signal == 0 { e.code } else { 0 };
            Ok(ExecOutput { kind: Some(exec_output::Kind::Exit(ExitStatus { code, signal: e.signal })) })
        }
        None => Err(Status::unavailable("the host went down")),
    };
    // The reader has gone: nobody is left to tell.
    let _ = sender.send(last).await;
}

/// An error as programs print it: without its number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Output of a program of `run:` goes to the log.
async fn log_output(program: String, mut output: mpsc::Receiver<Output>) {
    while let Some(piece) = output.recv().await {
        match piece {
            Output::Stdout(bytes) => lines(&bytes).for_each(|line| info!(%program, "{line}")),
            Output::Stderr(bytes) => lines(&bytes).for_each(|line| warn!(%program, "{line}")),
        }
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = String> + '_ {
    bytes.split(|&b| b == b'\n').filter(|l| !l.is_empty()).map(|l| String::from_utf8_lossy(l).into_owned())
}
