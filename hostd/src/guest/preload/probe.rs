//! Whether the machine's kernel could follow a pointer: `EFAULT` is its word, a signal would be ours.
//!
//! A thread's own stack needs no question. Else a `futex` call touches each page: to read, one that compares and finds nobody
//! to wake; to write, one that adds nothing to a word.

use crate::sys;

const PAGE: usize = 4096;
/// Stacks are not larger than this: what lies farther up is something else.
const STACK: usize = 16 << 20;

const CMP_REQUEUE_PRIVATE: usize = 4 | 128;
const WAKE_OP_PRIVATE: usize = 5 | 128;
/// `FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0)`.
const OR_NOTHING: usize = 2 << 28;
const EFAULT: isize = -14;

/// True if `len` octets can be read.
pub fn readable(at: usize, len: usize) -> bool {
    touch(at, len, |word| [word, CMP_REQUEUE_PRIVATE, 0, 0, word, 0])
}

/// True if `len` octets can be written (and read).
pub fn writable(at: usize, len: usize) -> bool {
    touch(at, len, |word| [word, WAKE_OP_PRIVATE, 0, 0, word, OR_NOTHING])
}

fn touch(at: usize, len: usize, question: impl Fn(usize) -> [usize; 6]) -> bool {
    let Some(end) = at.checked_add(len) else { return false };
    if at == 0 || len == 0 || on_stack(at, end) {
        return at != 0;
    }
    let mut page = at & !(PAGE - 1);
    while page < end {
        let word = page.max(at) & !3;
        // SAFETY: the kernel follows the pointer, or refuses to.
        if unsafe { sys::call::<{ sys::FUTEX }>(&question(word)) } == EFAULT {
            return false;
        }
        page += PAGE;
    }
    true
}

/// True if the range lies in the part of the stack that is in use.
fn on_stack(at: usize, end: usize) -> bool {
    let now = sys::stack_pointer();
    let below = |top: usize| top > now && top - now < STACK && end <= top;
    at >= now && (below(sys::thread_pointer()) || below(sys::stack_end()))
}
