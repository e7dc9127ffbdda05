//! `nicd`: the NIC hardware of one node.
//!
//! Two threads. The *control* thread parses what others say (gRPC, command line,
//! signals) and holds no capability; the *datapath* thread owns ports, wires and rings
//! and waits for nobody. They talk by [`control`].

mod cable;
mod cli;
mod config;
mod control;
mod event_loop;
mod grpc;
mod held;
mod nic;
mod poller;
mod port;
mod privilege;
mod tap;
mod vhost;
mod wire;

use anyhow::Context;
use clap::Parser;
use cli::{Args, LogFormat};
use control::{Command, Control};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

const STACK: usize = 256 * 1024;

fn main() -> ExitCode {
    let args = Args::parse();
    init_log(args.log_format);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = args.config().map_err(anyhow::Error::msg)?;
    if config.is_none() && args.grpc.is_none() {
        anyhow::bail!("neither --port nor --grpc is given: there is nothing to do (see --help)");
    }
    // What is made is for our own user; sockets say so themselves.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let run_dir = args.run_dir.clone().unwrap_or_default();
    if let Some(dir) = &args.run_dir {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let (control, commands) = control::channel().context("make the command channel")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the control thread")?;
    let (stop, _) = watch::channel(false);
    let ended = stop.clone();
    let datapath = std::thread::Builder::new().name("datapath".into()).stack_size(STACK).spawn(move || {
        let result = event_loop::run(run_dir, &commands);
        ended.send_replace(true);
        result
    });
    let datapath = datapath.context("start the datapath")?;
    let served = runtime.block_on(serve(&args, config, &control, stop));
    // It may have ended already, by an error that `join` brings.
    let _ = control.send(Command::Shutdown);
    let ran = datapath.join().map_err(|_| anyhow::anyhow!("the datapath panicked"))?;
    if let Some(path) = &args.grpc {
        // Whether it is still there does not matter now.
        let _ = std::fs::remove_file(path);
    }
    served.and(ran)
}

async fn serve(
    args: &Args,
    config: Option<ringlab_proto::nic::NicConfig>,
    control: &Control,
    stop: watch::Sender<bool>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let listener = args.grpc.as_deref().map(ringlab_proto::server::bind).transpose().context("bind the gRPC socket")?;
    privilege::drop_capabilities().context("drop capabilities")?;
    if let Some(config) = config {
        let config = config::NicConfig::parse(&config)?;
        control.ask(|reply| Command::Configure(config, reply)).await?;
        tracing::info!(node = %args.node, "ports are up");
    }
    let mut stopped = stop.subscribe();
    let service = async {
        match listener {
            Some(listener) => grpc::serve(listener, control.clone(), stop).await,
            None => {
                // An error means that the sender is gone: end as well.
                let _ = stopped.wait_for(|&stop| stop).await;
                Ok(())
            }
        }
    };
    tokio::select! {
        result = service => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
