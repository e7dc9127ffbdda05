//! `labctl doctor`

use crate::agent::machine::{Finding, Verdict, examine};
use crate::agent::program_dir;
use crate::cli::Format;
use crate::error::{CliError, CliResult};
use crate::exit;
use crate::output::{print, print_json};
use crate::paths::{StateDir, StateDirError};
use serde_json::json;

/// Says what the machine lacks. Exit code 3 if no lab can run.
pub async fn run(format: Format) -> CliResult {
    let programs = program_dir().map_err(|error| CliError::machine(error.to_string()))?;
    let mut findings = examine(&programs).await;
    findings.push(state_dir());
    let usable = findings.iter().all(|finding| finding.verdict != Verdict::Missing);
    match format {
        Format::Json => print_json(&json!({ "usable": usable, "findings": findings })),
        Format::Table => print(&show(&findings)),
    }
    Ok(if usable { exit::OK } else { exit::MACHINE })
}

fn state_dir() -> Finding {
    let state = StateDir::locate();
    let mend = |dir: &str| format!("RINGLAB_DIR={dir} labctl …");
    let (verdict, found, mend) = match state.usable() {
        Ok(()) => (Verdict::Ok, state.root().display().to_string(), String::new()),
        Err(StateDirError::NotPrivate { path }) => {
            (Verdict::Missing, format!("{} is not private", path.display()), mend("/path/of/your/own"))
        }
        Err(StateDirError::TooLong { path }) => {
            (Verdict::Missing, format!("{} is too long for sockets in it", path.display()), mend("/tmp/short"))
        }
        Err(StateDirError::Io { path, source }) => (Verdict::Missing, format!("{}: {source}", path.display()), mend("/path/of/your/own")),
    };
    Finding { what: "state", verdict, found, needed_for: "every lab", mend }
}

fn show(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Limited => "limited",
            Verdict::Missing => "MISSING",
        };
        text.push_str(&format!("{mark}  {:10} {}\n", finding.what, finding.found));
        if finding.verdict != Verdict::Ok {
            text.push_str(&format!("         needed for {}\n         mend with:  {}\n", finding.needed_for, finding.mend));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_shown_with_its_cure() {
        let broken =
            Finding { what: "tun", verdict: Verdict::Limited, found: "no".into(), needed_for: "taps", mend: "modprobe tun".into() };
        let fine = Finding { what: "cpus", verdict: Verdict::Ok, found: "2 usable".into(), needed_for: "all", mend: String::new() };
        let text = show(&[broken, fine]);
        assert!(text.contains("mend with:  modprobe tun") && text.contains("needed for taps"));
        assert!(text.contains("ok       cpus"));
        assert!(!text.contains("needed for all"));
    }
}
