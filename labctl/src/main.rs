//! labctl: the command line of Ringlab, and the agent behind it.
//!
//! [`cli`] has the verbs, `cmd/` one file for each. A verb that concerns labs asks
//! the agent over gRPC ([`client`]), which labctl starts itself where none runs.
//! What labctl prints is in [`output`] (for people) and [`json`] (for programs),
//! its exit codes are in [`exit`].
#![forbid(unsafe_code)]

mod agent;
mod cli;
mod client;
mod cmd;
mod error;
mod exit;
mod json;
mod output;
mod paths;
#[cfg(test)]
mod scratch;
mod streams;
mod topology_file;
mod units;

use clap::Parser;
use cli::{Cli, LogFormat, Verb};
use error::{CliError, CliResult};
use paths::StateDir;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(&cli);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("labctl: {error}");
            return ExitCode::from(exit::MACHINE);
        }
    };
    let result = runtime.block_on(run(cli));
    // A read of standard input may still hang in a thread: nobody waits for it.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprint!("{}", error.render());
            ExitCode::from(error.code())
        }
    }
}

fn log(cli: &Cli) {
    let default = if matches!(cli.verb, Verb::Agent) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
}

async fn run(cli: Cli) -> CliResult {
    let format = cli.format;
    match cli.verb {
        Verb::Deploy(args) => cmd::deploy::run(args, format).await,
        Verb::Destroy(args) => cmd::destroy::run(args, format).await,
        Verb::List => cmd::list::run(format).await,
        Verb::Inspect(args) => cmd::inspect::run(args, format).await,
        Verb::Exec(args) => cmd::exec::run(args).await,
        Verb::Validate(args) => cmd::validate::run(&args, format),
        Verb::Schema => cmd::schema::run(),
        Verb::Stat(args) => cmd::stat::run(args, format).await,
        Verb::Trace(args) => cmd::trace::run(args, format).await,
        Verb::Logs(args) => cmd::logs::run(args).await,
        Verb::Restart(args) => cmd::restart::run(args, format).await,
        Verb::Link(args) => cmd::link::run(args, format).await,
        Verb::Check(args) => cmd::check::check(args, format).await,
        Verb::Run(args) => cmd::check::run(args, format).await,
        Verb::Graph(args) => cmd::graph::run(args).await,
        Verb::Doctor => cmd::doctor::run(format).await,
        Verb::Completion(args) => cmd::completion::run(&args),
        Verb::Agent => agent::run(StateDir::locate()).await.map(|()| exit::OK).map_err(|error| CliError::machine(format!("{error:#}"))),
    }
}
