//! The figures of `make bench`, each beside its reference in the same run.
//!
//! Reference and figure are measured in turn, so that both see the same noise, and
//! the medians are compared. `ringlab-bench NAME…` measures only these figures.

mod figures;
mod labs;
mod native;
mod programs;
mod reference;

use anyhow::{Context, Result, bail};
use figures::Figure;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "native") {
        return native::run(&args[1..]);
    }
    let all = labs::ALL;
    if let Some(unknown) = args.iter().find(|a| !all.iter().any(|(name, _)| name == a)) {
        bail!("no figure `{unknown}`; there are {}", all.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", "));
    }
    let mut figures: Vec<Figure> = Vec::new();
    for (name, measure) in all.iter().filter(|(name, _)| args.is_empty() || args.iter().any(|a| a == name)) {
        eprintln!("measuring {name} …");
        figures.extend(measure().with_context(|| (*name).to_string())?);
    }
    figures::print(&figures);
    let path = figures::write(&figures)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}
