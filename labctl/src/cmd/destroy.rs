//! `labctl destroy [LAB | FILE | --all]`

use crate::cli::Format;
use crate::client::connect_if_needed;
use crate::error::{CliError, CliResult};
use crate::exit;
use crate::json::Done;
use crate::output::{Progress, duration, print, print_json};
use crate::topology_file::{TopologyFile, is_file_name};
use ringlab_proto::agent::{DestroyRequest, Outcome};
use std::path::Path;
use tokio_stream::StreamExt;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab, or its topology file; may be left out where one lab is up.
    #[arg(value_name = "LAB|FILE", conflicts_with = "all")]
    pub lab: Option<String>,
    /// All labs of this user.
    #[arg(long)]
    pub all: bool,
}

/// Takes labs down.
pub async fn run(args: Args, format: Format) -> CliResult {
    let lab = match &args.lab {
        Some(file) if is_file_name(file) => TopologyFile::read_text(Path::new(file))?.topology.name,
        Some(name) => name.clone(),
        None => String::new(),
    };
    let outcome = destroy(DestroyRequest { lab, all: args.all }).await?;
    let code = u8::try_from(outcome.exit_code).unwrap_or(exit::DEPLOY);
    if format == Format::Json {
        print_json(&Done::from(outcome));
        return Ok(code);
    }
    if !outcome.ok {
        return Err(CliError::Plain { message: outcome.error, code });
    }
    outcome.changes.iter().for_each(|change| print(&format!("{change}\n")));
    print(&format!("{}, in {}\n", if outcome.changes.is_empty() { "nothing was up" } else { "destroyed" }, duration(outcome.elapsed_ns)));
    Ok(code)
}

/// Destroys and waits for the end.
pub async fn destroy(request: DestroyRequest) -> CliResult<Outcome> {
    let Some(mut client) = connect_if_needed().await? else {
        return match (request.all, request.lab.as_str()) {
            (true, _) => Ok(Outcome { ok: true, ..Outcome::default() }),
            (false, "") => Err(CliError::usage("no lab is up")),
            (false, lab) => Err(CliError::usage(format!("lab {lab} is not up, nor is any other"))),
        };
    };
    let progress = Progress::new("destroy");
    let mut steps = client.destroy(request).await?.into_inner();
    let mut done = 0;
    while let Some(step) = steps.next().await {
        let step = step?;
        if let Some(outcome) = step.outcome {
            return Ok(outcome);
        }
        done += 1;
        progress.step(done, done, &step.step);
    }
    Err(CliError::failed("the agent ended in the middle; `labctl destroy` again goes on"))
}
