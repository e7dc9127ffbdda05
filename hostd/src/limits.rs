//! Limits of this process, and what its programs get instead.

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::OnceLock;

/// Descriptors that hostd keeps for itself, of many: programs that take all the others do not end it.
const OWN: u64 = 256;

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

/// True if a descriptor that was just made for a program is one of those that hostd keeps for itself: they are given out from the
/// lowest free number on.
pub fn is_last(fd: BorrowedFd<'_>) -> bool {
    let limit = getrlimit(Resource::Nofile).current;
    limit.is_some_and(|limit| fd.as_raw_fd() as u64 >= limit - OWN.min(limit / 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;

    #[test]
    fn the_last_numbers_are_not_for_programs() {
        let limit = getrlimit(Resource::Nofile).current.expect("there is one");
        let first = std::fs::File::open("/dev/null").expect("there");
        assert!(!is_last(first.as_fd()));
        let last = rustix::io::fcntl_dupfd_cloexec(&first, (limit - 1) as i32).expect("below the limit");
        assert!(is_last(last.as_fd()));
    }
}
