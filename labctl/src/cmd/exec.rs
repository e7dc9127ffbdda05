//! `labctl exec [-l LAB] [-e NAME=VALUE] [-w DIR] [-u USER] NODE [--builtin NAME] -- PROGRAM ARG…`

use crate::client::connect_to_labs;
use crate::error::{CliError, CliResult};
use crate::exit;
use ringlab_proto::account::UserSpec;
use ringlab_proto::agent::{ExecInput, ExecStart, exec_input};
use ringlab_proto::host::{self, exec_output};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Octets in one message.
const CHUNK: usize = 32 << 10;
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
    /// A program that every emulated host has: ping, httpd, fetch, stream, echo.
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

/// How long a signal waits for the input before it.
const PATIENCE: Duration = Duration::from_secs(1);

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
    read_stdin(sender.clone());
    loop {
        let output = tokio::select! {
            output = outputs.next() => output,
            number = signals.next() => {
                match (&terminal, number == WINCH) {
                    (Some(terminal), true) => {
                        if let Some(size) = terminal.size() {
                            send(&sender, exec_input::Kind::Resize(size)).await;
                        }
                    }
                    (None, true) => {}
                    (_, false) => {
                        let signal = send(&sender, exec_input::Kind::Signal(number));
                        if tokio::time::timeout(PATIENCE, signal).await.is_err() {
                            // It waits behind input that the program does not read. Who goes hangs up on it.
                            return Ok(exit::of_program(0, number));
                        }
                    }
                }
                continue;
            }
        };
        match output.transpose()?.map(|output| output.kind) {
            Some(Some(exec_output::Kind::Stdout(octets))) => {
                if write(io::stdout(), &octets).is_err() {
                    return Ok(BROKEN_PIPE);
                }
            }
            Some(Some(exec_output::Kind::Stderr(octets))) => drop(write(io::stderr(), &octets)),
            Some(Some(exec_output::Kind::Exit(status))) => return Ok(exit::of_program(status.code, status.signal)),
            Some(None) => {}
            None => return Err(CliError::failed("the node went away before the program ended")),
        }
    }
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

fn write(mut to: impl Write, octets: &[u8]) -> io::Result<()> {
    to.write_all(octets)?;
    to.flush()
}

/// Reads standard input on a thread of its own: a read cannot be interrupted.
fn read_stdin(sender: mpsc::Sender<ExecInput>) {
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            let kind = match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => exec_input::Kind::StdinEof(true),
                Ok(length) => exec_input::Kind::Stdin(buffer[..length].to_vec()),
            };
            let end = matches!(kind, exec_input::Kind::StdinEof(_));
            if sender.blocking_send(ExecInput { kind: Some(kind) }).is_err() || end {
                return;
            }
        }
    });
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
