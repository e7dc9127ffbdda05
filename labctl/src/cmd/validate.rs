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
                    let nodes = count(topology.nodes.len(), "node");
                    let links = count(topology.links.len(), "link");
                    print(&format!("{}: lab {}, {nodes}, {links}\n", path.display(), topology.name));
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

/// "1 link", "2 links".
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|n| count(n, "link")), ["0 links", "1 link", "2 links"]);
    }
}
