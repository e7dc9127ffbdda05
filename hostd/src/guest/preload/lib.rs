//! The object that the dynamic loader puts into programs on emulated hosts, in front of the C library.
//!
//! It makes nothing possible: every call that matters is trapped by the filter of `hostd`, with this object or
//! without (static programs, Go, musl). It makes two things cheaper:
//!
//! - **Copies.** hostd reads and writes a program's memory by `process_vm_readv`, 2 µs each. A small argument goes through
//!   the *window* instead, memory that program and hostd share: the same trapped call, with a pointer into the window.
//! - **Files.** hostd marks in the window which descriptors it knows to be the machine's. `read` and `write` of those are made
//!   from an address ([`layout::NATIVE`]) from which the filter lets them go.
//!
//! ```text
//! program ─ read(fd, buf, n) ─▶ fd marked real? ── yes ─▶ syscall at NATIVE ─▶ machine's kernel
//!                                    │ no
//!                                    ▼
//!                 C library's read(fd, slot, n) ─▶ filter ─▶ hostd ── copy ─▶ slot ─▶ buf
//! ```
//!
//! The object is a guest of its program: it allocates nothing, keeps no thread state, takes no lock, and where
//! anything is odd it calls the C library's function with the program's own arguments. Blocking, restarts, cancellation and
//! errors are those of that call. What a wild pointer gets (`EFAULT`) is found out by asking the machine's kernel before
//! it is followed (`probe.rs`).
//!
//! `hostd` builds it (`hostd/build.rs`: `no_std`, nothing linked) and shows it to programs by `/etc/ld.so.preload`.
#![no_std]
#![cfg_attr(not(ringlab_preload), allow(dead_code, reason = "hostd itself uses the layout alone"))]

mod calls;
pub mod layout;
mod probe;
mod sys;
mod window;

/// Nothing here panics: bounds are compared before.
#[cfg(ringlab_preload)]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
