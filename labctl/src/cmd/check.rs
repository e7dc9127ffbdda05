//! `labctl check [LAB]` and `labctl run FILE`

use crate::agent::{TOPOLOGY, program};
use crate::cli::Format;
use crate::client::{self, Client, connect_to_labs};
use crate::cmd::deploy::deploy;
use crate::cmd::destroy::destroy;
use crate::cmd::exec::environment;
use crate::error::{CliError, CliResult};
use crate::output::{duration, print, print_json};
use crate::topology_file::TopologyFile;
use crate::{exit, units};
use ringlab_proto::agent::{DestroyRequest, ExecInput, ExecStart, ListRequest, exec_input};
use ringlab_proto::host::exec_output;
use ringlab_proto::topology::{Check, Topology};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;

/// Most octets of a check's output that are kept.
const KEEP: usize = 64 << 10;

/// `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Name of the lab; may be left out where one is up.
    pub lab: Option<String>,
    #[command(flatten)]
    how: How,
}

/// `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Topology file.
    pub file: PathBuf,
    /// Leave the lab up if a check fails, to look at it.
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    /// Write the results as JUnit XML to this file.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the results as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A check that takes longer has failed.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::parse_delay)]
    timeout: u64,
}

/// What a check came to; docs/json.md.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckResult {
    /// Node.
    pub on: String,
    /// What ran.
    pub command: String,
    /// Whether it came out as expected.
    pub ok: bool,
    /// Its exit code; none if it did not end in time or could not be started.
    pub exit: Option<u8>,
    /// The exit code that was expected.
    pub expected: i32,
    /// How long it took.
    pub elapsed_ns: u64,
    /// What it wrote, at most 64 KiB of it.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// Why it failed, if its exit code does not say.
    pub error: String,
}

/// All results; docs/json.md.
#[derive(Debug, Serialize)]
struct Results<'a> {
    lab: &'a str,
    ok: bool,
    checks: &'a [CheckResult],
}

/// Runs the checks of a lab that is up.
pub async fn check(args: CheckArgs, format: Format) -> CliResult {
    let lab = client::inspect(args.lab.as_deref()).await?;
    let topology = TopologyFile::read_text(&Path::new(&lab.run_dir).join(TOPOLOGY))?.topology;
    let base = Path::new(&lab.path).parent().unwrap_or(Path::new("/")).to_path_buf();
    let client = connect_to_labs(Some(&lab.name)).await?;
    let results = run_checks(client, &topology, &base, &args.how, format).await;
    report(&topology.name, &results, &args.how, format)
}

/// Deploys, runs the checks, destroys.
pub async fn run(args: RunArgs, format: Format) -> CliResult {
    let file = TopologyFile::read(&args.file)?;
    let name = file.topology.name.clone();
    if let Some(mut client) = client::connect_if_needed().await?
        && client.list(ListRequest {}).await?.into_inner().labs.iter().any(|lab| lab.name == name)
    {
        return Err(CliError::usage(format!("lab {name} is up already, and run would destroy it: `labctl check {name}` runs its checks")));
    }
    let outcome = deploy(&file, false).await?;
    if !outcome.ok {
        let code = u8::try_from(outcome.exit_code).unwrap_or(exit::DEPLOY);
        return Err(CliError::Plain { message: outcome.error, code });
    }
    let base = file.path.parent().unwrap_or(Path::new("/"));
    let results = checks_unless_interrupted(&file.topology, base, &args.how, format).await;
    let failed = results.as_ref().map_or(true, |results| results.iter().any(|result| !result.ok));
    if !(args.keep && failed) {
        let destroyed = destroy(DestroyRequest { lab: name.clone(), all: false }).await?;
        if !destroyed.ok {
            return Err(CliError::failed(destroyed.error));
        }
    }
    report(&name, &results?, &args.how, format)
}

async fn checks_unless_interrupted(topology: &Topology, base: &Path, how: &How, format: Format) -> CliResult<Vec<CheckResult>> {
    let failed = |error: std::io::Error| CliError::failed(error.to_string());
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?);
    let client = connect_to_labs(Some(&topology.name)).await?;
    tokio::select! {
        results = run_checks(client, topology, base, how, format) => Ok(results),
        _ = interrupt.recv() => Err(CliError::failed("interrupted")),
        _ = terminate.recv() => Err(CliError::failed("interrupted")),
    }
}

async fn run_checks(mut client: Client, topology: &Topology, base: &Path, how: &How, format: Format) -> Vec<CheckResult> {
    let mut results = Vec::new();
    for check in &topology.checks {
        let mut result = CheckResult {
            on: check.on.clone(),
            command: command(check),
            ok: false,
            exit: None,
            expected: check.exit,
            elapsed_ns: 0,
            stdout: String::new(),
            stderr: String::new(),
            error: String::new(),
        };
        let started = Instant::now();
        let ran = tokio::time::timeout(Duration::from_nanos(how.timeout), run_check(&mut client, topology, check, base, &mut result)).await;
        result.elapsed_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match ran {
            Err(_) => result.error = format!("did not end within {}", units::delay(how.timeout)),
            Ok(Err(error)) => result.error = error.to_string(),
            Ok(Ok(code)) => {
                result.exit = Some(code);
                result.ok = i32::from(code) == check.exit;
            }
        }
        if format == Format::Table {
            print(&line(&result));
        }
        results.push(result);
    }
    results
}

fn command(check: &Check) -> String {
    let builtin = check.run.builtin.iter().map(|name| format!("--builtin {name}"));
    builtin.chain(check.run.argv.iter().cloned()).collect::<Vec<_>>().join(" ")
}

async fn run_check(client: &mut Client, topology: &Topology, check: &Check, base: &Path, result: &mut CheckResult) -> CliResult<u8> {
    let mut program = program(&check.run, base);
    program.env = environment().into_iter().collect();
    let start = ExecStart { lab: topology.name.clone(), node: check.on.clone(), program: Some(program) };
    let inputs = [exec_input::Kind::Start(start), exec_input::Kind::StdinEof(true)];
    // The stream of inputs stays open: its end would mean that the caller has gone.
    let inputs = tokio_stream::iter(inputs.map(|kind| ExecInput { kind: Some(kind) })).chain(tokio_stream::pending());
    let mut outputs = client.exec(inputs).await?.into_inner();
    while let Some(output) = outputs.next().await {
        match output?.kind {
            Some(exec_output::Kind::Stdout(octets)) => keep(&mut result.stdout, &octets),
            Some(exec_output::Kind::Stderr(octets)) => keep(&mut result.stderr, &octets),
            Some(exec_output::Kind::Exit(status)) => return Ok(exit::of_program(status.code, status.signal)),
            Some(exec_output::Kind::StdinTaken(_)) | None => {}
        }
    }
    Err(CliError::failed("the node went away before the check ended"))
}

fn keep(text: &mut String, octets: &[u8]) {
    let room = KEEP.saturating_sub(text.len()).min(octets.len());
    text.push_str(&String::from_utf8_lossy(&octets[..room]));
}

fn line(result: &CheckResult) -> String {
    let mut text = format!(
        "{}  on {}: {} ({})\n",
        if result.ok { "ok    " } else { "FAILED" },
        result.on,
        result.command,
        duration(result.elapsed_ns)
    );
    if !result.ok {
        let why = match result.exit {
            Some(code) => format!("exit code {code}, expected {}", result.expected),
            None => result.error.clone(),
        };
        let output = [&result.stdout, &result.stderr].into_iter().flat_map(|output| output.lines());
        std::iter::once(why.as_str()).chain(output).for_each(|line| text.push_str(&format!("        {line}\n")));
    }
    text
}

fn report(lab: &str, results: &[CheckResult], how: &How, format: Format) -> CliResult {
    let ok = results.iter().all(|result| result.ok);
    let all = Results { lab, ok, checks: results };
    let write =
        |path: &Path, text: String| std::fs::write(path, text).map_err(|error| CliError::failed(format!("{}: {error}", path.display())));
    if let Some(path) = &how.junit {
        write(path, junit(lab, results))?;
    }
    if let Some(path) = &how.json {
        write(path, serde_json::to_string_pretty(&all).expect("results are plain data") + "\n")?;
    }
    match format {
        Format::Json => print_json(&all),
        Format::Table => {
            let failed = results.iter().filter(|result| !result.ok).count();
            print(&format!("{} {}, {failed} failed\n", results.len(), if results.len() == 1 { "check" } else { "checks" }));
        }
    }
    Ok(if ok { exit::OK } else { exit::CHECK })
}

/// The results in the XML that CI systems read.
fn junit(lab: &str, results: &[CheckResult]) -> String {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let failed = results.iter().filter(|result| !result.ok).count();
    let time = seconds(results.iter().map(|result| result.elapsed_ns).sum());
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    text.push_str(&format!("<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" time=\"{time:.3}\">\n", xml(lab), results.len()));
    for result in results {
        let name = format!("{}: {}", result.on, result.command);
        text.push_str(&format!(
            "  <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">\n",
            xml(lab),
            xml(&name),
            seconds(result.elapsed_ns)
        ));
        if !result.ok {
            let why = result.exit.map_or_else(|| result.error.clone(), |code| format!("exit code {code}, expected {}", result.expected));
            text.push_str(&format!("    <failure message=\"{}\"/>\n", xml(&why)));
        }
        text.push_str(&format!("    <system-out>{}</system-out>\n", xml(&result.stdout)));
        text.push_str(&format!("    <system-err>{}</system-err>\n  </testcase>\n", xml(&result.stderr)));
    }
    text.push_str("</testsuite>\n");
    text
}

/// Text as XML may hold it: special characters named, control characters replaced.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(exit: Option<u8>) -> CheckResult {
        CheckResult {
            on: "a".into(),
            command: "--builtin ping b".into(),
            ok: exit == Some(0),
            exit,
            expected: 0,
            elapsed_ns: 1_500_000_000,
            stdout: "1 < 2 & \u{1b}[0m\n".into(),
            stderr: String::new(),
            error: "did not end within 60s".into(),
        }
    }

    #[test]
    fn junit_counts_failures_and_escapes_output() {
        let text = junit("lab", &[result(Some(0)), result(Some(3)), result(None)]);
        assert!(text.contains("tests=\"3\" failures=\"2\" time=\"4.500\""), "{text}");
        assert!(text.contains("1 &lt; 2 &amp; \u{fffd}[0m"));
        assert!(text.contains("exit code 3, expected 0") && text.contains("did not end within 60s"));
    }

    #[test]
    fn no_check_takes_no_time() {
        let text = junit("lab", &[]);
        assert!(text.contains("tests=\"0\" failures=\"0\" time=\"0.000\""), "{text}");
    }

    #[test]
    fn failed_check_shows_why_and_what_it_wrote() {
        let text = line(&result(Some(1)));
        assert!(text.starts_with("FAILED  on a: --builtin ping b (1.5 s)\n        exit code 1, expected 0\n        1 < 2"), "{text}");
        assert_eq!(line(&result(Some(0))).lines().count(), 1);
    }

    #[test]
    fn kept_output_is_bounded() {
        let mut text = String::new();
        (0..4).for_each(|_| keep(&mut text, &vec![b'x'; KEEP / 2]));
        assert_eq!(text.len(), KEEP);
    }
}
