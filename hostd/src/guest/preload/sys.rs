//! Bare system calls, and symbols of the C library that may be missing.

use crate::layout::NATIVE;
use core::arch::{asm, global_asm};

pub const READ: usize = 0;
pub const WRITE: usize = 1;
pub const POLL: usize = 7;
pub const MMAP: usize = 9;
pub const MUNMAP: usize = 11;
pub const IOCTL: usize = 16;
pub const MADVISE: usize = 28;
pub const CLOSE: usize = 3;
pub const FSTAT: usize = 5;
pub const WRITEV: usize = 20;
pub const GETPID: usize = 39;
pub const GETTID: usize = 186;
pub const SENDTO: usize = 44;
pub const RECVFROM: usize = 45;
pub const SETSOCKOPT: usize = 54;
pub const GETSOCKOPT: usize = 55;
pub const PREAD: usize = 17;
pub const SENDFILE: usize = 40;
pub const OPEN: usize = 2;
pub const OPENAT: usize = 257;
pub const PRCTL: usize = 157;
pub const FUTEX: usize = 202;
pub const EPOLL_WAIT: usize = 232;
pub const EPOLL_CTL: usize = 233;

global_asm!(".weak dlsym", ".weak __errno_location", ".weak __libc_single_threaded", ".weak __libc_stack_end");

/// Address of a symbol of the C library; 0 if it has none.
macro_rules! weak {
    ($name:literal) => {{
        let at: usize;
        // SAFETY: reads an entry of this object's own table, which the loader has filled.
        unsafe {
            core::arch::asm!(concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"), out(reg) at, options(pure, readonly, nostack, preserves_flags));
        }
        at
    }};
}

/// Makes the call `NR`; missing arguments are 0. What the kernel returns: errors are negative.
///
/// The number is loaded right before the call, as the C library does: there hostd reads which call it was that a signal came to.
///
/// # Safety
/// As the call: its pointers are the caller's.
pub unsafe fn call<const NR: usize>(given: &[usize]) -> isize {
    let mut a = [0; 6];
    for (to, from) in a.iter_mut().zip(given) {
        *to = *from;
    }
    let out: isize;
    // SAFETY: the kernel clobbers rax, rcx and r11 only; memory is the caller's concern.
    unsafe {
        asm!("mov eax, {nr}", "syscall", nr = const NR, lateout("rax") out, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _);
    }
    out
}

/// Makes a call from where the filter lets it go.
///
/// # Safety
/// As [`call`]; the page at [`NATIVE`] is mapped.
pub unsafe fn native(nr: usize, a: [usize; 3]) -> isize {
    let out: isize;
    // SAFETY: the code there is `syscall; ret`, which clobbers what a call does.
    unsafe {
        asm!("call {at}", at = in(reg) NATIVE, inlateout("rax") nr => out, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            lateout("rcx") _, lateout("r11") _);
    }
    out
}

/// What a C function returns of it: errors go to `errno`.
pub fn answer(value: isize) -> isize {
    if !(-4095..0).contains(&value) {
        return value;
    }
    let location = weak!("__errno_location");
    if location != 0 {
        // SAFETY: this is the C library's `int *__errno_location(void)`, whose result is this thread's to write.
        unsafe { *core::mem::transmute::<usize, extern "C" fn() -> *mut i32>(location)() = -value as i32 };
    }
    -1
}

/// True if the C library says that there is one thread only.
pub fn is_single_threaded() -> bool {
    let at = weak!("__libc_single_threaded");
    // SAFETY: the C library's `char`, there as long as the process.
    at != 0 && unsafe { (at as *const u8).read_volatile() } != 0
}

/// End of the first thread's stack; 0 if it is not known.
pub fn stack_end() -> usize {
    let at = weak!("__libc_stack_end");
    // SAFETY: the loader's `void *`, there as long as the process.
    if at == 0 { 0 } else { unsafe { (at as *const usize).read_volatile() } }
}

/// The thread's control block: the C library puts it at the end of the stacks that it makes.
pub fn thread_pointer() -> usize {
    let at: usize;
    // SAFETY: the first word of the block is its own address (System V ABI, thread-local storage).
    unsafe { asm!("mov {}, qword ptr fs:[0]", out(reg) at, options(pure, readonly, nostack, preserves_flags)) };
    at
}

/// The stack pointer.
pub fn stack_pointer() -> usize {
    let at: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) at, options(nomem, nostack, preserves_flags)) };
    at
}

/// Looks a symbol up behind this object (`RTLD_NEXT`); 0 if there is none.
pub fn next(name: &core::ffi::CStr) -> usize {
    let dlsym = weak!("dlsym");
    if dlsym == 0 {
        return 0;
    }
    // SAFETY: this is the C library's `void *dlsym(void *, const char *)`. It asks who calls: the result is used
    // here, so it is not a jump.
    let found =
        unsafe { core::mem::transmute::<usize, extern "C" fn(usize, *const core::ffi::c_char) -> usize>(dlsym)(usize::MAX, name.as_ptr()) };
    core::hint::black_box(found)
}
