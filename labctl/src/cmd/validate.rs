//! `labctl validate FILE…`

use crate::cli::Format;
use crate::error::{CliError, CliResult};
use crate::exit;
use crate::output::{print, print_json};
use crate::topology_file::TopologyFile;
use serde_json::json;
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topology files.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
}

/// Checks files; starts nothing. All are looked at, also after a wrong one.
pub fn run(args: &Args, format: Format) -> CliResult {
    let mut code = exit::OK;
    let mut results = Vec::new();
    for path in &args.files {
        let (mut problems, mut lab) = (Vec::new(), None);
        match TopologyFile::read(path) {
            Ok(file) => {
                let topology = file.topology;
                if format == Format::Table {
                    print(&format!(
                        "{}: lab {}, {} nodes, {} links\n",
                        path.display(),
                        topology.name,
                        topology.nodes.len(),
                        topology.links.len()
                    ));
                }
                lab = Some(topology.name);
            }
            Err(error) => {
                code = exit::USAGE;
                if format == Format::Table {
                    eprint!("{}", error.render());
                }
                problems = match &error {
                    CliError::Topology(all) => {
                        all.lines().zip(&all.problems).map(|(line, p)| json!({ "message": line, "help": p.help })).collect()
                    }
                    CliError::Plain { message, .. } => vec![json!({ "message": message, "help": null })],
                };
            }
        }
        results.push(json!({ "file": path, "ok": problems.is_empty(), "lab": lab, "problems": problems }));
    }
    if format == Format::Json {
        print_json(&json!({ "files": results }));
    }
    Ok(code)
}
