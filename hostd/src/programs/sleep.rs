//! `sleep`: waits.

use super::sys::Sys;
use super::{Failure, Try};
use std::time::Duration;

/// Waits for some time.
#[derive(Debug, clap::Parser)]
#[command(name = "sleep")]
pub struct Args {
    /// Seconds; fractions are allowed.
    #[arg(value_parser = seconds)]
    time: Duration,
}

/// Runs it.
///
/// # Errors
/// [`Failure::Interrupted`] on a signal.
pub async fn main(sys: Sys, args: Args) -> Result<i32, Failure> {
    sys.sleep(args.time).await.or_fail(|| "nanosleep".to_owned())?;
    Ok(0)
}

/// Parses seconds, "0.0002".
///
/// # Errors
/// What is wrong with the text.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text:?}: {e}"))
}
