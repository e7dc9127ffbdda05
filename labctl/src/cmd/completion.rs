//! `labctl completion SHELL`

use crate::cli::Cli;
use crate::error::CliResult;
use crate::exit;
use crate::output::print;
use clap::CommandFactory;
use clap_complete::Shell;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shell.
    pub shell: Shell,
}

/// Prints a shell's completions.
pub fn run(args: &Args) -> CliResult {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "labctl", &mut text);
    print(&String::from_utf8_lossy(&text));
    Ok(exit::OK)
}
