//! Built-in programs: the traffic of a lab that needs nothing installed.
//!
//! Each is an async function over [`sys::Sys`]: what a C program does with system
//! calls, it does with the same calls, in the same order, and the kernel model
//! counts the same. It runs on the kernel thread; a program that never blocks is
//! interrupted between two calls. Arguments are parsed with clap, errors are
//! printed as `NAME: what: errno's text`, exit codes are 0, 1 (failed), 2 (usage),
//! 128 + signal.

pub mod process;
pub mod sys;
pub mod table;

mod crc64;
mod echo;
mod echo_client;
mod fetch;
mod http;
mod httpd;
mod ping;
mod sha256;
mod sleep;
mod stream;
mod stream_server;
mod stream_wire;

#[cfg(test)]
mod tests;

use crate::host::Body;
use clap::Parser;
use ringlab_kernel::errno::Errno;
use std::future::Future;
use sys::Sys;

/// The names of all built-in programs.
pub const NAMES: &[&str] = &["echo", "fetch", "httpd", "ping", "sleep", "stream"];

/// True if there is a built-in program of this name.
pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// The body of a program's first task. A name that [`exists`] does not know fails as a shell would, with 127.
pub fn main_of(name: &str, sys: Sys, argv: Vec<String>) -> Body {
    match name {
        "echo" => launch(sys, argv, echo::main),
        "fetch" => launch(sys, argv, fetch::main),
        "httpd" => launch(sys, argv, httpd::main),
        "ping" => launch(sys, argv, ping::main),
        "sleep" => launch(sys, argv, sleep::main),
        "stream" => launch(sys, argv, stream::main),
        _ => launch(sys, argv, unknown),
    }
}

/// Why a program ends without having done its work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A system call failed.
    #[error("{what}: {errno}")]
    Call {
        /// What was tried.
        what: String,
        /// How it failed.
        errno: Errno,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
    /// A signal ended it, or nobody reads its output.
    #[error("interrupted")]
    Interrupted,
    /// Arguments: clap's message, and whether it was asked for.
    #[error("{0}")]
    Usage(String),
}

/// Names what a failed system call was for.
pub trait Try<T> {
    /// The result, or the failure of `what`.
    ///
    /// # Errors
    /// [`Failure::Call`]; `EINTR` and a closed output are [`Failure::Interrupted`].
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Try<T> for Result<T, Errno> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| if errno == Errno::EINTR { Failure::Interrupted } else { Failure::Call { what: what(), errno } })
    }
}

async fn unknown(_: Sys, _: NoArgs) -> Result<i32, Failure> {
    Ok(127)
}

/// No arguments.
#[derive(Debug, Parser)]
struct NoArgs {
    #[arg(hide = true, num_args = 0..)]
    _ignored: Vec<String>,
}

/// Parses arguments, runs `main`, reports how it ended.
fn launch<A, F, T>(sys: Sys, argv: Vec<String>, main: F) -> Body
where
    A: Parser + 'static,
    F: FnOnce(Sys, A) -> T + 'static,
    T: Future<Output = Result<i32, Failure>> + 'static,
{
    Box::pin(async move {
        let process = sys.process().clone();
        let name = process.name.clone();
        let args = A::try_parse_from(std::iter::once(name.clone()).chain(argv));
        let code = match args {
            Ok(args) => match main(sys, args).await {
                Ok(code) => code,
                Err(failure) => report(&process, &failure).await,
            },
            // `--help` and `--version` are answers, not errors.
            Err(error) if !error.use_stderr() => {
                let printed = process.print(error.to_string()).await;
                i32::from(printed.is_err())
            }
            Err(error) => report(&process, &Failure::Usage(error.to_string())).await,
        };
        process.set_exit_code(code);
    })
}

async fn report(process: &process::Process, failure: &Failure) -> i32 {
    let (text, code) = match failure {
        Failure::Interrupted => return 128 + process.signal().unwrap_or(libc::SIGPIPE),
        Failure::Usage(text) => (text.clone(), 2),
        other => (format!("{}: {other}\n", process.name), 1),
    };
    process.set_last_error(text.trim_end());
    // Where nobody reads the message, the exit code is all there is to say.
    let _ = process.print_error(text).await;
    code
}
