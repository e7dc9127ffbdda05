//! `labctl exec [-l LAB] [-e NAME=VALUE] [-w DIR] [-u USER] NODE [--builtin NAME] -- PROGRAM ARG…`

use crate::client::connect_to_labs;
use crate::error::{CliError, CliResult};
use crate::exit;
use crate::streams::{Input, Output, Piece};
use ringlab_proto::account::UserSpec;
use ringlab_proto::agent::{ExecInput, ExecStart, exec_input};
use ringlab_proto::host::{self, ExecOutput, exec_output};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// `SIGWINCH`: the terminal has another size.
const WINCH: i32 = 28;
/// What a shell says of a program that wrote to nobody.
const BROKEN_PIPE: u8 = 128 + 13;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab; may be left out where one is up.
    #[arg(short, long)]
    pub lab: Option<String>,
    /// Node.
    pub node: String,
    /// A program that every emulated host has: ping, httpd, fetch, stream, echo, sleep.
    #[arg(long, value_name = "NAME")]
    pub builtin: Option<String>,
    /// Give the program a terminal; standard input must be one.
    #[arg(short, long, conflicts_with = "builtin")]
    pub tty: bool,
    /// A variable for the program's environment; without a value: as it is here.
    #[arg(short, long, value_name = "NAME[=VALUE]", conflicts_with = "builtin", value_parser = variable)]
    pub env: Vec<(String, Option<String>)>,
    /// Directory in which it starts, in the node's root.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Whom it runs as, of the node's users.
    #[arg(short, long, value_name = "USER[:GROUP]", conflicts_with = "builtin", value_parser = user)]
    pub user: Option<String>,
    /// Program and arguments; with --builtin its arguments only.
    #[arg(last = true, value_name = "PROGRAM ARG")]
    pub argv: Vec<String>,
}

/// Runs a program; returns its exit code.
pub async fn run(args: Args) -> CliResult {
    if args.builtin.is_none() && args.argv.is_empty() {
        return Err(CliError::usage("exec: name a program after `--`, or a built-in one with --builtin"));
    }
    let cwd = std::env::current_dir().unwrap_or_default();
    // Whatever is not here is not there either, as in `docker exec`.
    let set_env = args.env.into_iter().filter_map(|(name, value)| Some((name.clone(), value.or_else(|| std::env::var(name).ok())?)));
    let terminal = if args.tty { Some(Terminal::raw()?) } else { None };
    let program = host::ExecStart {
        builtin: args.builtin.unwrap_or_default(),
        argv: args.argv,
        env: environment().into_iter().collect(),
        cwd: cwd.to_string_lossy().into_owned(),
        set_env: set_env.collect(),
        workdir: args.workdir.map(|dir| cwd.join(dir).to_string_lossy().into_owned()).unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        tty: args.tty,
        size: terminal.as_ref().and_then(Terminal::size),
    };
    let mut client = connect_to_labs(args.lab.as_deref()).await?;
    let (sender, receiver) = mpsc::channel(16);
    let start = ExecStart { lab: args.lab.unwrap_or_default(), node: args.node, program: Some(program) };
    send(&sender, exec_input::Kind::Start(start)).await;
    let mut signals = Signals::new().map_err(|error| CliError::failed(error.to_string()))?;
    let mut outputs = client.exec(ReceiverStream::new(receiver)).await?.into_inner();
    let mut streams = Streams { input: Input::start(sender.clone()), output: Output::start(), waiting: None, asked: false, ended: None };
    loop {
        let number = tokio::select! {
            end = streams.next(&mut outputs) => match end? {
                Some(code) => return Ok(code),
                None => continue,
            },
            number = signals.next() => number,
        };
        match (&terminal, number == WINCH) {
            (Some(terminal), true) => {
                if let Some(size) = terminal.size() {
                    send(&sender, exec_input::Kind::Resize(size)).await;
                }
            }
            (None, true) => {}
            (_, false) if streams.gives_up() => return Ok(exit::of_program(0, number)),
            (_, false) => send(&sender, exec_input::Kind::Signal(number)).await,
        }
    }
}

/// What passes between the program and labctl's standard streams.
struct Streams {
    input: Input,
    output: Output,
    /// Output that waits until what came before it is written.
    waiting: Option<Piece>,
    /// A signal has come since somebody read.
    asked: bool,
    /// How the program ended.
    ended: Option<u8>,
}

impl Streams {
    /// Takes one step; the exit code at the end. May be dropped while it waits.
    async fn next(&mut self, outputs: &mut Streaming<ExecOutput>) -> Result<Option<u8>, CliError> {
        let message = tokio::select! {
            room = room(self.output.pieces.as_ref()), if self.waiting.is_some() => {
                if let (Some(room), Some(piece)) = (room, self.waiting.take()) {
                    room.send(piece);
                    self.asked = false;
                }
                return Ok(None);
            }
            written = &mut self.output.done => return Ok(Some(self.ended.filter(|_| matches!(written, Ok(Ok(())))).unwrap_or(BROKEN_PIPE))),
            message = outputs.next(), if self.waiting.is_none() && self.ended.is_none() => message,
        };
        match message.transpose()?.map(|output| output.kind) {
            Some(Some(exec_output::Kind::Stdout(octets))) => self.waiting = Some(Piece::Stdout(octets)),
            Some(Some(exec_output::Kind::Stderr(octets))) => self.waiting = Some(Piece::Stderr(octets)),
            Some(Some(exec_output::Kind::StdinTaken(octets))) => self.input.taken(octets),
            Some(Some(exec_output::Kind::Exit(status))) => {
                self.ended = Some(exit::of_program(status.code, status.signal));
                self.output.pieces = None;
            }
            Some(None) => {}
            None => return Err(CliError::failed("the node went away before the program ended")),
        }
        Ok(None)
    }

    /// True for a signal that is labctl's: the program has ended, or nobody has read its output since the last one.
    fn gives_up(&mut self) -> bool {
        self.ended.is_some() || self.waiting.is_some() && std::mem::replace(&mut self.asked, true)
    }
}

/// Waits for room for a piece of output; `None` if nobody reads.
async fn room(pieces: Option<&mpsc::Sender<Piece>>) -> Option<mpsc::Permit<'_, Piece>> {
    pieces?.reserve().await.ok()
}

fn variable(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() { Err("a variable has a name".to_owned()) } else { Ok((name.to_owned(), value)) }
}

fn user(text: &str) -> Result<String, String> {
    text.parse::<UserSpec>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// labctl's own environment, as far as it is text.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

async fn send(sender: &mpsc::Sender<ExecInput>, kind: exec_input::Kind) {
    // Nobody listens when the program has ended: its exit status is on its way.
    let _ = sender.send(ExecInput { kind: Some(kind) }).await;
}

/// labctl's own terminal, which passes everything on while the program has one.
struct Terminal(Termios);

impl Terminal {
    fn raw() -> Result<Self, CliError> {
        let before = tcgetattr(io::stdin()).map_err(|_| CliError::usage("exec: --tty needs a terminal as standard input"))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).map_err(|error| CliError::failed(format!("terminal: {error}")))?;
        Ok(Self(before))
    }

    fn size(&self) -> Option<host::WindowSize> {
        let size = tcgetwinsize(io::stdin()).ok()?;
        Some(host::WindowSize { rows: size.ws_row.into(), cols: size.ws_col.into() })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no care.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Signals that are the program's, not labctl's.
struct Signals(Vec<(Signal, i32)>);

impl Signals {
    fn new() -> io::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::window_change(),
        ];
        kinds.into_iter().map(|kind| Ok((signal(kind)?, kind.as_raw_value()))).collect::<io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (signal, number) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
