//! The command line.

use crate::cmd;
use clap::{Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 a check failed; 2 wrong usage or topology; 3 the machine lacks something \
(see `labctl doctor`); 4 deploy failed, and was undone. `exec` returns the command's own.";

/// Network labs whose hosts run a Linux network stack that you can see through.
#[derive(Debug, Parser)]
#[command(name = "labctl", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// How to print: tables for people, JSON (docs/json.md) for programs.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// How to log to standard error; RUST_LOG filters.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line an event.
    Text,
    /// One JSON object a line.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Brings a lab up, or changes the one that is up to what the file says.
    Deploy(cmd::deploy::Args),
    /// Takes labs down.
    Destroy(cmd::destroy::Args),
    /// Lists the labs that are up.
    #[command(visible_alias = "ls")]
    List,
    /// Shows a lab's nodes and links.
    Inspect(cmd::inspect::Args),
    /// Runs a program on a node.
    Exec(cmd::exec::Args),
    /// Checks topology files; starts nothing.
    Validate(cmd::validate::Args),
    /// Prints the JSON Schema of topology files.
    Schema,
    /// Shows what nodes have counted: interrupts, softirqs, copies, drops.
    Stat(cmd::stat::Args),
    /// Follows frames through a host's kernel.
    Trace(cmd::trace::Args),
    /// Shows the logs of a node's daemons and programs.
    Logs(cmd::logs::Args),
    /// Restarts a node: its NIC and its host.
    Restart(cmd::restart::Args),
    /// Changes a link of a lab that is up.
    Link(cmd::link::Args),
    /// Runs a topology's checks in a lab that is up.
    Check(cmd::check::CheckArgs),
    /// Deploys, runs the checks, destroys: for CI.
    Run(cmd::check::RunArgs),
    /// Draws a topology.
    Graph(cmd::graph::Args),
    /// Says what this machine lacks, and the command that mends it.
    Doctor,
    /// Prints a shell's completions.
    Completion(cmd::completion::Args),
    /// Serves this user's labs; labctl starts it by itself.
    #[command(hide = true)]
    Agent,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_exits_2_and_help_0() {
        let code = |args: &[&str]| Cli::try_parse_from(args).unwrap_err().exit_code();
        assert_eq!(code(&["labctl", "deploi"]), 2);
        assert_eq!(code(&["labctl", "deploy"]), 2);
        assert_eq!(code(&["labctl", "link", "set", "a:eth0", "--delay", "10"]), 2);
        assert_eq!(code(&["labctl", "--help"]), 0);
    }

    #[test]
    fn format_may_stand_before_and_after_the_verb() {
        for args in [["labctl", "--format", "json", "list"], ["labctl", "list", "--format", "json"]] {
            assert_eq!(Cli::try_parse_from(args).unwrap().format, Format::Json);
        }
    }

    #[test]
    fn programs_own_arguments_are_not_labctls() {
        let cli = Cli::try_parse_from(["labctl", "exec", "-l", "x", "web", "--", "ls", "-l", "--format"]).unwrap();
        let Verb::Exec(args) = cli.verb else { panic!("exec") };
        assert_eq!(args.argv, ["ls", "-l", "--format"]);
        assert_eq!(args.lab.as_deref(), Some("x"));
    }
}
