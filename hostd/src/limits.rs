//! Limits of this process, and what its programs get instead.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::OnceLock;

static DESCRIPTORS: OnceLock<u64> = OnceLock::new();

/// Lets hostd have as many descriptors as the machine allows: each socket of each program takes one.
/// Programs keep the limit that was there before.
pub fn raise_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    DESCRIPTORS.get_or_init(|| current.unwrap_or(1 << 20));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

/// Soft limit of open descriptors of a program.
pub fn guest_descriptors() -> u64 {
    DESCRIPTORS.get().copied().unwrap_or(1024)
}
