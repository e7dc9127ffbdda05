//! `labctl list`

use crate::cli::Format;
use crate::client::connect_if_needed;
use crate::error::CliResult;
use crate::output::{duration, print, print_json, print_table, table};
use crate::{exit, json};
use ringlab_proto::agent::ListRequest;
use std::time::{SystemTime, UNIX_EPOCH};

/// Lists the labs that are up.
pub async fn run(format: Format) -> CliResult {
    let labs = match connect_if_needed().await? {
        Some(mut client) => client.list(ListRequest {}).await?.into_inner().labs,
        None => Vec::new(),
    };
    if format == Format::Json {
        print_json(&json::list(&labs));
    } else if labs.is_empty() {
        print("no lab is up\n");
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        let mut rows = table(&["lab", "nodes", "running", "links", "up", "owner", "file"]);
        for lab in &labs {
            rows.add_row([
                lab.name.clone(),
                lab.nodes.to_string(),
                lab.nodes_running.to_string(),
                lab.links.to_string(),
                duration(now.saturating_sub(lab.up_since_unix_ns)),
                lab.owner.clone(),
                lab.path.clone(),
            ]);
        }
        print_table(&rows);
    }
    Ok(exit::OK)
}
