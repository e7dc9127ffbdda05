//! `hostd`: the computer of one emulated host.
//!
//! Two threads. The *kernel thread* ([`event_loop`]) is the host: the kernel
//! model, its drivers, its built-in programs; it sleeps in `epoll` until a NIC, a
//! timer or a command wakes it. The *control thread* (the main one) serves gRPC
//! and talks to it by a channel. Unmodified programs ([`guest`]) are processes of their own; started as
//! `hostd guest-guard`, this binary is their parent; `hostd guest-ns` makes the namespaces of
//! programs with a root of their own.

mod config;
mod control;
mod driver;
mod event_loop;
mod grpc;
mod guest;
mod hold;
mod host;
mod limits;
mod link;
mod programs;
mod server;
mod setup;
mod stats;
mod trace;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The computer of one emulated host.
#[derive(Debug, Parser)]
#[command(name = "hostd", version)]
struct Args {
    /// The lab's run directory.
    #[arg(long)]
    run_dir: PathBuf,
    /// Name of the node.
    #[arg(long)]
    node: String,
    /// Unix socket on which to serve gRPC.
    #[arg(long)]
    grpc: PathBuf,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(mode) if mode == guest::guard::NAME => return guest::guard::main(args),
        Some(mode) if mode == guest::namespace::NAME => return guest::namespace::main(args),
        Some(mode) if mode == guest::namespace::PROBE => return guest::namespace::probe(args),
        _ => {}
    }
    let args = Args::parse();
    start_log(args.log_format);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(node = %args.node, "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    limits::raise_descriptors();
    std::env::set_current_dir(&args.run_dir).with_context(|| format!("run directory {}", args.run_dir.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().context("control thread")?;
    runtime.block_on(server::serve(&args.grpc, &args.node))
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
