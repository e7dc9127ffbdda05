//! `labctl deploy FILE`

use crate::cli::Format;
use crate::client::{Client, connect};
use crate::error::{CliError, CliResult};
use crate::json::Done;
use crate::output::{Progress, duration, print, print_json};
use crate::topology_file::TopologyFile;
use ringlab_proto::agent::{DeployRequest, Outcome};
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topology file.
    pub file: PathBuf,
    /// Say what would change, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Deploys, or applies the difference.
pub async fn run(args: Args, format: Format) -> CliResult {
    let file = TopologyFile::read(&args.file)?;
    let outcome = deploy(&file, args.dry_run).await?;
    let code = u8::try_from(outcome.exit_code).unwrap_or(crate::exit::DEPLOY);
    if format == Format::Json {
        print_json(&Done::from(outcome));
        return Ok(code);
    }
    if !outcome.ok {
        return Err(CliError::Plain { message: outcome.error, code });
    }
    print(&report(&file.topology.name, &outcome, args.dry_run));
    Ok(code)
}

fn report(name: &str, outcome: &Outcome, dry_run: bool) -> String {
    let mut text: String = outcome.changes.iter().map(|change| format!("{change}\n")).collect();
    let said = match (dry_run, outcome.changes.is_empty()) {
        (true, true) => format!("lab {name}: nothing would change\n"),
        (true, false) => format!("lab {name}: nothing was changed (--dry-run)\n"),
        (false, true) => format!("lab {name} is up; nothing has changed\n"),
        (false, false) => format!("lab {name} is up, in {}\n", duration(outcome.elapsed_ns)),
    };
    text.push_str(&said);
    text
}

/// Deploys and shows progress. An interrupt has it undone; this returns when it is.
pub async fn deploy(file: &TopologyFile, dry_run: bool) -> CliResult<Outcome> {
    let mut client = connect().await?;
    let request = DeployRequest { path: file.path.to_string_lossy().into_owned(), yaml: file.text.clone(), dry_run };
    let signals = |error: std::io::Error| CliError::failed(error.to_string());
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let progress = Progress::new(&file.topology.name);
    let deployed = tokio::select! {
        outcome = follow(&mut client, request.clone(), &progress) => Some(outcome?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if let Some(outcome) = deployed {
        return Ok(outcome);
    }
    drop(progress);
    eprintln!("labctl: interrupted; undoing");
    // A dry run waits its turn: when it answers, the undoing has ended.
    follow(&mut client, DeployRequest { dry_run: true, ..request }, &Progress::new("undo")).await?;
    Err(CliError::failed("interrupted; the deployment was undone"))
}

async fn follow(client: &mut Client, request: DeployRequest, progress: &Progress) -> CliResult<Outcome> {
    let mut steps = client.deploy(request).await?.into_inner();
    while let Some(step) = steps.next().await {
        let step = step?;
        match step.outcome {
            Some(outcome) => return Ok(outcome),
            None => progress.step(step.done, step.total, &step.step),
        }
    }
    Err(CliError::failed("the agent ended in the middle of the deployment; `labctl list` says what is up"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_says_whether_anything_changed() {
        let nothing = Outcome { ok: true, ..Outcome::default() };
        assert_eq!(report("x", &nothing, false), "lab x is up; nothing has changed\n");
        let something = Outcome { changes: vec!["+ node a".into()], elapsed_ns: 1_500_000_000, ..nothing };
        assert_eq!(report("x", &something, false), "+ node a\nlab x is up, in 1.5 s\n");
        assert!(report("x", &something, true).contains("nothing was changed"));
    }
}
