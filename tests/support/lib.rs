//! What the end-to-end tests and the benchmarks share: labs deployed with the
//! real `labctl`, and pairs of real namespaces joined by veth as the reference.
//!
//! Everything made here is named by this process and removed when dropped, also
//! when a test panics; what killed processes have left, the next one removes ([`stale`]).

pub mod lab;
pub mod leftovers;
pub mod reach;
pub mod stale;
pub mod veth;

use std::path::PathBuf;

/// Where the release binaries are: `RINGLAB_BIN`, or `target/release` of this checkout.
pub fn bin_dir() -> PathBuf {
    match std::env::var_os("RINGLAB_BIN") {
        Some(dir) => dir.into(),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release")),
    }
}

/// A binary of the project.
///
/// # Panics
/// If it has not been built: `cargo build --release` makes it.
pub fn bin(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(path.exists(), "{} does not exist: run `cargo build --release` first", path.display());
    path
}

/// A name that no other process and no other call uses.
pub fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A fresh directory of this process for temporary files, which other users may enter.
///
/// # Panics
/// If it cannot be made.
pub fn fresh_dir(prefix: &str) -> PathBuf {
    // Programs of the tests become other users: what is made from here on is not for one user alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    stale::sweep_once();
    let dir = reach::temporary().join(unique(prefix));
    stale::make_dir(&dir).expect("a fresh directory");
    dir
}

/// The value in the middle (of an even count: the lower one).
///
/// # Panics
/// If there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

/// The value below which `p` (0 to 1) of the values lie.
///
/// # Panics
/// If there is none.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() as f64 * p).ceil() as usize).clamp(1, sorted.len()) - 1]
}
