//! What ends labctl: a message, and the exit code that goes with it.

use crate::exit;
use miette::{GraphicalReportHandler, GraphicalTheme};
use ringlab_proto::topology::Problems;
use std::io::IsTerminal;
use tonic::{Code, Status};

/// Why labctl fails.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A topology with mistakes.
    #[error("{0}")]
    Topology(#[from] Box<Problems>),
    /// Anything that a message says completely.
    #[error("{message}")]
    Plain {
        /// For people.
        message: String,
        /// Exit code.
        code: u8,
    },
}

/// Result of a verb: its exit code.
pub type CliResult<T = u8> = Result<T, CliError>;

impl CliError {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Plain { message: message.into(), code: exit::USAGE }
    }

    /// The machine lacks something.
    pub fn machine(message: impl Into<String>) -> Self {
        Self::Plain { message: message.into(), code: exit::MACHINE }
    }

    /// The agent, or a daemon, could not do its part.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Plain { message: message.into(), code: exit::DEPLOY }
    }

    /// labctl's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Topology(_) => exit::USAGE,
            Self::Plain { code, .. } => *code,
        }
    }

    /// The message, with the lines of the file that it is about underlined.
    pub fn render(&self) -> String {
        match self {
            Self::Plain { message, .. } => format!("labctl: {message}\n"),
            Self::Topology(problems) => render(problems),
        }
    }
}

fn render(problems: &Problems) -> String {
    let stderr = std::io::stderr();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let width = if stderr.is_terminal() { terminal_width() } else { 120 };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false).without_cause_chain();
    let mut text = String::new();
    for problem in &problems.problems {
        if handler.render_report(&mut text, problem).is_err() {
            break;
        }
    }
    if text.is_empty() { problems.lines().map(|line| line + "\n").collect() } else { text }
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stderr()).ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0).unwrap_or(80)
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        let message = if message.is_empty() { status.code().description().to_owned() } else { message };
        // tonic's words for a connection that broke off.
        if ["h2 protocol error", "transport error"].iter().any(|words| message.starts_with(words)) {
            return Self::failed("the agent ended in the middle; `labctl list` starts another, which adopts or removes what is left");
        }
        match status.code() {
            Code::InvalidArgument | Code::NotFound => Self::usage(message),
            Code::FailedPrecondition | Code::Unavailable => Self::machine(message),
            _ => Self::failed(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_shown_with_place_source_line_and_help() {
        let text = "name: t\nnodes: {a: {}, b: {}}\nlinks:\n  - {endpoints: [\"a:eth0\", \"b:eth0\"], dealy: 1ms}\n";
        let problems = ringlab_proto::topology::parse("lab.yaml", text).unwrap_err();
        let error = CliError::from(Box::new(problems));
        let shown = error.render();
        assert_eq!(error.code(), 2);
        for part in ["lab.yaml:4:39", "dealy: 1ms", "did you mean `delay`?"] {
            assert!(shown.contains(part), "no {part} in\n{shown}");
        }
    }

    #[test]
    fn status_has_the_exit_code_of_its_kind() {
        let code = |code| CliError::from(Status::new(code, "x")).code();
        assert_eq!((code(Code::InvalidArgument), code(Code::FailedPrecondition), code(Code::Internal)), (2, 3, 4));
    }
}
