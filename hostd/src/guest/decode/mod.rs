//! Structures of the x86-64 ABI that only the supervisor sees; addresses, options and control messages are
//! [`ringlab_kernel::syscall::abi`]'s and its neighbours'.
//!
//! Everything here works on copies; who calls it has read them once.

pub mod msg;

use std::time::Duration;

/// `u32` at an offset.
pub fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|s| s.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// `u64` at an offset.
pub fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|s| s.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// `struct timespec`; `None` if it is not one.
pub fn timespec(b: &[u8; 16]) -> Option<Duration> {
    let (sec, nsec) = (u64_at(b, 0) as i64, u64_at(b, 8));
    (sec >= 0 && nsec < 1_000_000_000).then(|| Duration::new(sec as u64, nsec as u32))
}

/// `struct timeval`, microseconds carried over into seconds as `select` does; `None` if negative.
pub fn timeval(b: &[u8; 16]) -> Option<Duration> {
    let (sec, usec) = (u64_at(b, 0) as i64, u64_at(b, 8) as i64);
    (sec >= 0 && usec >= 0).then(|| Duration::from_secs(sec as u64).saturating_add(Duration::from_micros(usec as u64)))
}

/// Milliseconds of `poll` and `epoll_wait`: negative is for ever.
pub fn millis(ms: i32) -> Option<Duration> {
    u64::try_from(ms).ok().map(Duration::from_millis)
}
