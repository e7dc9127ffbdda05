//! `labctl restart [-l LAB] NODE`

use crate::cli::Format;
use crate::client::connect_to_labs;
use crate::error::CliResult;
use crate::exit;
use crate::output::{print, print_json};
use ringlab_proto::agent::RestartRequest;
use serde_json::json;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab; may be left out where one is up.
    #[arg(short, long)]
    pub lab: Option<String>,
    /// Node.
    pub node: String,
}

/// Restarts a node.
pub async fn run(args: Args, format: Format) -> CliResult {
    let mut client = connect_to_labs(args.lab.as_deref()).await?;
    client.restart(RestartRequest { lab: args.lab.unwrap_or_default(), node: args.node.clone() }).await?;
    match format {
        Format::Json => print_json(&json!({ "node": args.node, "ok": true })),
        Format::Table => print(&format!("node {} is up again\n", args.node)),
    }
    Ok(exit::OK)
}
