//! What program and hostd agree on: the window, the calls that make it, the address of untrapped calls.
//!
//! ```text
//! 0      code: `syscall; ret`, mapped a second time at NATIVE
//! 4 KiB  LIVE, BUSY, HEAD, TAIL, LOCK: single words, each on a cache line of its own; the first of REAL's bits; the ring of
//!        changes; little slots, 128 octets each: what most calls need is in one page
//! 8 KiB  REAL: a bit for each descriptor
//! 16 KiB STATE: a word for each of the first descriptors; QUIET: a bit for each of these
//! 52 KiB slots, 64 KiB each
//! ```
//!
//! hostd writes `LIVE`, `REAL`, `QUIET` and `TAIL` and never reads them; what it reads it copies first, and checks the copy. A
//! program that writes there harms itself.
//!
//! **Changes of epoll sets** wait in a ring until the process makes its next trapped call: nobody can tell, if the set
//! is this process's alone and none of its threads waits for it (`QUIET`), and if it is known that the change succeeds (`STATE`).
//! Who appends looks at `QUIET` once more afterwards; who begins to wait clears it, and then looks at the ring.

/// Where calls are made that the filter lets go: far above all heaps, below where the machine's kernel begins to map, and among the
/// addresses that sanitizers leave to programs.
pub const NATIVE: usize = 0x7e90_0000_0000;
/// What stands there: `syscall; ret`.
pub const CODE: [u8; 3] = [0x0f, 0x05, 0xc3];
/// Length of the call's instruction: a filter sees the address behind it.
pub const CALL: usize = 2;
/// Octets mapped at [`NATIVE`].
pub const PAGE: usize = 4096;

/// A `u32`: not 0 while the bits of [`REAL`] hold.
pub const LIVE: usize = PAGE;
/// A `u32`: which slots are in use; the upper half: which little ones.
pub const BUSY: usize = PAGE + 64;
/// A `u32`: changes that the program has appended.
pub const HEAD: usize = PAGE + 128;
/// A `u32`: changes that hostd has taken.
pub const TAIL: usize = PAGE + 192;
/// A `u32`: not 0 while a thread appends.
pub const LOCK: usize = PAGE + 256;
/// The ring: set, operation (`EPOLL_CTL_ADD` …), descriptor, events as `u32`, data as `u64`.
pub const CHANGES: usize = PAGE + 512;
/// Operation of a change that is no set's: descriptor, `CLOSE`, thread. The thread is about to close a descriptor of the machine's.
pub const CLOSE: u32 = 0x100;
/// Changes that have room; a power of two.
pub const RING: usize = 64;
/// Octets of a change.
pub const CHANGE: usize = 24;

/// The first little slot.
pub const LITTLE_SLOTS: usize = PAGE + 2048;
/// Octets of a little slot.
pub const LITTLE: usize = 128;

/// A bit for each descriptor, `u64` by `u64`, the least one first: set if it is known to be one of the machine's. See [`real`].
pub const REAL: usize = 2 * PAGE;
/// Where the first words of it are.
const FIRST_REAL: usize = PAGE + 320;
/// As many.
const FIRST: usize = 8;
/// Descriptors that have a bit.
pub const DESCRIPTORS: usize = 1 << 16;
/// Descriptors of whose sets something is known.
pub const FOLLOWED: usize = 8192;
/// A `u32` for each of the first descriptors: 0, or twice the number of a set, plus 2, plus 1 if it is in that set. hostd writes it when
/// it has made a change, or when it does not know any more; the program when it has appended one.
pub const STATE: usize = REAL + DESCRIPTORS / 8;
/// A bit for each of the first descriptors, as [`REAL`]: an epoll set whose changes may wait.
pub const QUIET: usize = STATE + FOLLOWED * 4;
/// The first slot.
pub const SLOTS: usize = QUIET + PAGE;
/// Octets of a slot.
pub const SLOT: usize = 64 << 10;
/// Slots; little ones, too.
pub const COUNT: usize = 16;
/// Octets of a window.
pub const SIZE: usize = SLOTS + COUNT * SLOT;

/// `getsockopt(-1, LEVEL, MAKE, 0, 0)` returns a descriptor of a fresh window; `EBADF` where there is no hostd.
pub const LEVEL: i32 = 0x726c_6162;
/// See [`LEVEL`].
pub const MAKE: i32 = 1;
/// `setsockopt(-1, LEVEL, USE, ADDRESS, SIZE)`: the window is mapped there.
pub const USE: i32 = 2;

/// `getsockopt(-1, LEVEL, FLUSH, 0, 0)`: takes the changes that wait.
pub const FLUSH: i32 = 3;

/// Where a word of [`REAL`] is.
pub const fn real(word: usize) -> usize {
    if word < FIRST { FIRST_REAL + word * 8 } else { REAL + word * 8 }
}

/// A value of [`STATE`].
pub const fn state(set: i32, is_in: bool) -> u32 {
    (set as u32).wrapping_add(1) << 1 | is_in as u32
}

/// The path by which the loader opens this object. Sanitizers insist on being first among loaded objects, but for what the
/// kernel maps, which they know by how its name begins.
pub const OBJECT: &str = "linux-ringlab/preload.so";
/// What lists it.
pub const LIST: &str = "/etc/ld.so.preload";
