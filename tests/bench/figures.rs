//! A figure, its reference and its target; the table and the JSON file.

use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Name in the table.
    pub name: String,
    /// Median of the repetitions.
    pub value: f64,
    /// Unit of value and reference.
    pub unit: String,
    /// The same of the reference, measured in the same run.
    pub reference: Option<f64>,
    /// value / reference.
    pub ratio: Option<f64>,
    /// What must hold, in words.
    pub target: String,
    /// Whether it does.
    pub holds: bool,
}

/// How a ratio is judged.
pub enum Target {
    /// At least this ratio.
    AtLeast(f64),
    /// At most this ratio.
    AtMost(f64),
}

impl Figure {
    /// A figure judged by its ratio to the reference.
    pub fn ratio(name: &str, value: f64, unit: &str, reference: f64, target: Target) -> Self {
        let ratio = value / reference;
        let (text, holds) = match target {
            Target::AtLeast(x) => (format!("≥ {x}×"), ratio >= x),
            Target::AtMost(x) => (format!("≤ {x}×"), ratio <= x),
        };
        Self { name: name.into(), value, unit: unit.into(), reference: Some(reference), ratio: Some(ratio), target: text, holds }
    }

    /// A figure judged by an upper limit of its own.
    pub fn at_most(name: &str, value: f64, unit: &str, limit: f64) -> Self {
        Self {
            name: name.into(),
            value,
            unit: unit.into(),
            reference: None,
            ratio: None,
            target: format!("≤ {limit} {unit}"),
            holds: value <= limit,
        }
    }
}

/// Prints the table.
pub fn print(figures: &[Figure]) {
    println!("{:<18} {:>14} {:>14} {:>8}  {:<22} holds", "figure", "value", "reference", "ratio", "target");
    for f in figures {
        let reference = f.reference.map_or_else(|| "–".into(), |r| human(r, &f.unit));
        let ratio = f.ratio.map_or_else(|| "–".into(), |r| format!("{r:.2}×"));
        let holds = if f.holds { "yes" } else { "NO" };
        println!("{:<18} {:>14} {:>14} {:>8}  {:<22} {holds}", f.name, human(f.value, &f.unit), reference, ratio, f.target);
    }
}

fn human(value: f64, unit: &str) -> String {
    match unit {
        "bit/s" => format!("{:.2} Gbit/s", value / 1e9),
        "octets/s" => format!("{:.2} GB/s", value / 1e9),
        "frames/s" | "datagrams/s" => format!("{:.3} M/s", value / 1e6),
        _ => format!("{value:.2} {unit}"),
    }
}

/// Writes `target/bench/figures.json` (figures not measured in this run keep their last value).
pub fn write(figures: &[Figure]) -> Result<PathBuf> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("figures.json");
    let mut all: Vec<serde_json::Value> = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
    for f in figures {
        all.retain(|old| old["name"] != f.name.as_str());
        all.push(serde_json::to_value(f)?);
    }
    std::fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    Ok(path.canonicalize()?)
}
