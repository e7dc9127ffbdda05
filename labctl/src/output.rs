//! Printing: tables, JSON, progress.

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Prints to standard output. Whoever reads it may stop: then there is nothing more to say, and that is no error.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints one JSON document.
pub fn print_json(value: &impl Serialize) {
    let mut text = serde_json::to_string_pretty(value).expect("answers are plain data");
    text.push('\n');
    print(&text);
}

/// Prints one JSON document on one line.
pub fn print_json_line(value: &impl Serialize) {
    let mut text = serde_json::to_string(value).expect("answers are plain data");
    text.push('\n');
    print(&text);
}

/// A table in the style of `docker ps`: no lines, cut to the terminal.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    table
}

/// Prints a table without the spaces at the ends of its lines.
pub fn print_table(table: &Table) {
    let text = table.to_string();
    print(&text.lines().map(|line| format!("{}\n", line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end()))).collect::<String>());
}

/// What is being done: a bar on a terminal, a line a step elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins.
    pub fn new(what: &str) -> Self {
        let person = io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let bar = person.then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} [{bar:30}] {pos}/{len} {msg}").expect("a valid template");
            let bar = ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    /// A step is done.
    pub fn step(&self, done: u32, total: u32, step: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(u64::from(total));
                bar.set_position(u64::from(done));
                bar.set_message(step.to_owned());
            }
            None => eprintln!("[{done}/{total}] {step}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Nanoseconds as people say them: "1.4 s", "320 ms".
pub fn duration(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} us", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        1_000_000_000..120_000_000_000 => format!("{:.1} s", ns as f64 / 1e9),
        120_000_000_000..7_200_000_000_000 => format!("{} min", ns / 60_000_000_000),
        7_200_000_000_000..172_800_000_000_000 => format!("{} h", ns / 3_600_000_000_000),
        _ => format!("{} d", ns / 86_400_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let texts = [5_000, 1_234_567, 1_500_000_000, 180_000_000_000, 7_300_000_000_000, 200_000_000_000_000].map(duration);
        assert_eq!(texts, ["5 us", "1 ms", "1.5 s", "3 min", "2 h", "2 d"]);
    }
}
