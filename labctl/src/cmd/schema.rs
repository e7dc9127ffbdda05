//! `labctl schema`

use crate::error::CliResult;
use crate::exit;
use crate::output::print_json;

/// Prints the JSON Schema of topology files.
pub fn run() -> CliResult {
    print_json(&ringlab_proto::topology::json_schema());
    Ok(exit::OK)
}
