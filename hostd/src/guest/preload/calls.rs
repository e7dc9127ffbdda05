//! The functions that stand in front of the C library's.
//!
//! Each does what the C library's does, and ends in it: with the program's arguments, or with pointers into a slot.
//!
//! A thread that is cancelled in the C library's function is unwound through these frames, which hold nothing but a slot: that one
//! stays in use.

use crate::probe::{readable, writable};
use crate::sys;
use crate::window::{self, Slot, Window};
use core::ffi::{CStr, c_int, c_uint, c_ulong};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Octets that are worth a copy of their own; from here on hostd copies them straight.
const SMALL: usize = 8192;
/// Buffers of a `writev`.
const PARTS: usize = 16;
/// Octets of `struct epoll_event`.
const EVENT: usize = 12;
/// Events that hostd returns at once at most.
const EVENTS: usize = 4096;
/// Octets of `struct pollfd`, `struct iovec`.
const WORDS: usize = 8;
const IOVEC: usize = 16;
/// Octets of an option's value.
const OPTION: usize = 4096;

/// Octets of a path that goes through a slot.
const PATH: usize = 1024;
const PAGE: usize = 4096;

const MSG_TRUNC: c_int = 0x20;
const FIONREAD: c_ulong = 0x541b;
const FIONBIO: c_ulong = 0x5421;
const PR_SET_SECCOMP: c_int = 22;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const EPOLL_CTL_ADD: c_int = 1;
const EPOLL_CTL_DEL: c_int = 2;
const EPOLL_CTL_MOD: c_int = 3;
const EPOLLEXCLUSIVE: u32 = 1 << 28;

/// A function of the C library, looked up once.
struct Next {
    name: &'static CStr,
    at: AtomicUsize,
}

impl Next {
    const fn new(name: &'static CStr) -> Self {
        Self { name, at: AtomicUsize::new(0) }
    }

    fn find(&self) -> usize {
        match self.at.load(Ordering::Relaxed) {
            0 => {
                let at = sys::next(self.name);
                self.at.store(at, Ordering::Relaxed);
                at
            }
            at => at,
        }
    }
}

/// Calls the C library's function; where there is none to be found, the kernel.
macro_rules! real {
    ($name:literal, $nr:expr, ($($arg:expr),*) as fn($($t:ty),*) -> $r:ty) => {{
        static NEXT: Next = Next::new($name);
        match NEXT.find() {
            // SAFETY: the caller's arguments, as the caller gave them, or pointers into a slot.
            0 => sys::answer(unsafe { sys::call::<{ $nr }>(&[$($arg as usize),*]) }) as $r,
            // SAFETY: the C library's function of this name has this type; the arguments as above.
            at => unsafe { core::mem::transmute::<usize, unsafe extern "C" fn($($t),*) -> $r>(at)($($arg),*) },
        }
    }};
}

/// Calls the kernel, with pointers into a slot: for functions of the C library that do no more than that, and in which no
/// thread is cancelled.
fn bare<const NR: usize>(args: &[usize]) -> c_int {
    // SAFETY: pointers are into a slot.
    sys::answer(unsafe { sys::call::<NR>(args) }) as c_int
}

/// The window, unless the descriptor is known to be the machine's.
fn modelled(fd: c_int) -> Option<Window> {
    Window::near().filter(|w| !w.is_native(fd))
}

/// Makes a call on a descriptor from where the filter lets it go, if the descriptor is known to be the machine's.
fn natively(window: Option<Window>, nr: usize, args: [usize; 3]) -> Option<isize> {
    window.filter(|w| w.is_native(args[0] as c_int))?;
    // SAFETY: the caller's arguments, as it gave them.
    Some(sys::answer(unsafe { sys::native(nr, args) }))
}

/// A slot with `len` octets of the program's at `offset`.
fn filled(window: Option<Window>, offset: usize, from: usize, len: usize) -> Option<Slot> {
    let slot = window.filter(|_| readable(from, len))?.claim(offset + len)?;
    // SAFETY: they can be read; lengths are bounded by the callers.
    unsafe { slot.put(offset, from, len) };
    Some(slot)
}

/// A slot for what is to be written to `len` octets of the program's.
fn vacant(window: Option<Window>, to: usize, len: usize) -> Option<Slot> {
    window.filter(|_| writable(to, len))?.claim(len)
}

/// Copies what came into a slot to the program.
fn taken(slot: &Slot, buf: usize, room: usize, n: isize) -> isize {
    // SAFETY: `vacant` has seen to it.
    unsafe { slot.take(0, buf, room.min(n.max(0) as usize)) };
    n
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn read(fd: c_int, buf: usize, len: usize) -> isize {
    let window = Window::get();
    if let Some(n) = natively(window, sys::READ, [fd as usize, buf, len]) {
        return n;
    }
    let small = (1..=SMALL).contains(&len);
    if small && let Some(slot) = vacant(window, buf, len) {
        let n = real!(c"read", sys::READ, (fd, slot.at(), len) as fn(c_int, usize, usize) -> isize);
        return taken(&slot, buf, len, n);
    }
    real!(c"read", sys::READ, (fd, buf, len) as fn(c_int, usize, usize) -> isize)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn close(fd: c_int) -> c_int {
    if let Some(done) = Window::get().and_then(|w| w.close(fd)) {
        return sys::answer(done) as c_int;
    }
    real!(c"close", sys::CLOSE, (fd) as fn(c_int) -> c_int)
}

/// What `-D_FORTIFY_SOURCE` makes of `read`.
#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn __read_chk(fd: c_int, buf: usize, len: usize, room: usize) -> isize {
    if len <= room {
        return read(fd, buf, len);
    }
    // It ends the program.
    real!(c"__read_chk", sys::READ, (fd, buf, len, room) as fn(c_int, usize, usize, usize) -> isize)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn write(fd: c_int, buf: usize, len: usize) -> isize {
    let window = Window::get();
    if let Some(n) = natively(window, sys::WRITE, [fd as usize, buf, len]) {
        return n;
    }
    let small = (1..=SMALL).contains(&len);
    if small && let Some(slot) = filled(window, 0, buf, len) {
        return real!(c"write", sys::WRITE, (fd, slot.at(), len) as fn(c_int, usize, usize) -> isize);
    }
    real!(c"write", sys::WRITE, (fd, buf, len) as fn(c_int, usize, usize) -> isize)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn writev(fd: c_int, parts: usize, count: c_int) -> isize {
    if let Some(slot) = gathered(modelled(fd), parts, count as usize) {
        return real!(c"writev", sys::WRITEV, (fd, slot.at(), 1) as fn(c_int, usize, c_int) -> isize);
    }
    real!(c"writev", sys::WRITEV, (fd, parts, count) as fn(c_int, usize, c_int) -> isize)
}

/// A slot with one `struct iovec`, and behind it what several name.
fn gathered(window: Option<Window>, parts: usize, count: usize) -> Option<Slot> {
    let slot = window.filter(|_| (1..=PARTS).contains(&count) && readable(parts, count * IOVEC))?.claim(IOVEC + SMALL)?;
    let (start, mut len) = (slot.at() + IOVEC, 0);
    for i in 0..count {
        // SAFETY: the array can be read.
        let [at, n] = unsafe { ((parts + i * IOVEC) as *const [usize; 2]).read_unaligned() };
        if n > SMALL - len || n > 0 && !readable(at, n) {
            return None;
        }
        // SAFETY: it can be read, and fits.
        unsafe { slot.put(IOVEC + len, at, n) };
        len += n;
    }
    // SAFETY: the slot is this call's alone.
    unsafe { (slot.at() as *mut [usize; 2]).write([start, len]) };
    Some(slot)
}

/// A small part of a file to a watched socket: read here, and written. Else hostd would have to take the file out of the program first.
#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn sendfile(to: c_int, from: c_int, offset: usize, count: usize) -> isize {
    let small = (1..=SMALL).contains(&count) && offset != 0;
    let window = if small { Window::get().filter(|w| w.is_watched(to) && window::is_regular(from)) } else { None };
    if let Some(slot) = window.filter(|_| writable(offset, WORDS)).and_then(|w| w.claim(count)) {
        // SAFETY: it can be read.
        let at = unsafe { (offset as *const i64).read_unaligned() };
        // SAFETY: the slot has room.
        let n = unsafe { sys::call::<{ sys::PREAD }>(&[from as usize, slot.at(), count, at as usize]) };
        if n <= 0 {
            return sys::answer(n);
        }
        let sent = real!(c"write", sys::WRITE, (to, slot.at(), n as usize) as fn(c_int, usize, usize) -> isize);
        if sent > 0 {
            // SAFETY: it can be written.
            unsafe { (offset as *mut i64).write_unaligned(at + sent as i64) };
        }
        return sent;
    }
    real!(c"sendfile", sys::SENDFILE, (to, from, offset, count) as fn(c_int, c_int, usize, usize) -> isize)
}

/// The same: files have 64 bits.
#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn sendfile64(to: c_int, from: c_int, offset: usize, count: usize) -> isize {
    sendfile(to, from, offset, count)
}

/// `open` and its kin: the path goes through a slot.
macro_rules! opens {
    ($($name:ident = $symbol:literal),*) => {$(
        #[cfg_attr(ringlab_preload, unsafe(no_mangle))]
        extern "C" fn $name(path: usize, flags: c_int, mode: c_uint) -> c_int {
            let slot = named(path);
            let path = slot.as_ref().map_or(path, Slot::at);
            real!($symbol, sys::OPEN, (path, flags, mode) as fn(usize, c_int, c_uint) -> c_int)
        }
    )*};
}

opens!(open = c"open", open64 = c"open64");

/// `openat` and its kin.
macro_rules! opens_at {
    ($($name:ident = $symbol:literal),*) => {$(
        #[cfg_attr(ringlab_preload, unsafe(no_mangle))]
        extern "C" fn $name(dir: c_int, path: usize, flags: c_int, mode: c_uint) -> c_int {
            let slot = named(path);
            let path = slot.as_ref().map_or(path, Slot::at);
            real!($symbol, sys::OPENAT, (dir, path, flags, mode) as fn(c_int, usize, c_int, c_uint) -> c_int)
        }
    )*};
}

opens_at!(openat = c"openat", openat64 = c"openat64");

/// A slot with a string, if it is short.
fn named(path: usize) -> Option<Slot> {
    let window = Window::near()?;
    let mut len = 0;
    while len < PATH {
        let at = path.checked_add(len)?;
        let part = (PAGE - at % PAGE).min(PATH - len);
        if !readable(at, part) {
            return None;
        }
        for i in 0..part {
            // SAFETY: it can be read.
            if unsafe { ((at + i) as *const u8).read() } == 0 {
                let slot = window.claim(len + i + 1)?;
                // SAFETY: it can be read, and is shorter than a slot.
                unsafe { slot.put(0, path, len + i + 1) };
                return Some(slot);
            }
        }
        len += part;
    }
    None
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn recv(fd: c_int, buf: usize, len: usize, flags: c_int) -> isize {
    // Of a stream `MSG_TRUNC` returns a number and writes nothing.
    let small = (1..=SMALL).contains(&len) && flags & MSG_TRUNC == 0;
    if small && let Some(slot) = vacant(modelled(fd), buf, len) {
        let n = real!(c"recv", sys::RECVFROM, (fd, slot.at(), len, flags) as fn(c_int, usize, usize, c_int) -> isize);
        return taken(&slot, buf, len, n);
    }
    real!(c"recv", sys::RECVFROM, (fd, buf, len, flags) as fn(c_int, usize, usize, c_int) -> isize)
}

/// What `-D_FORTIFY_SOURCE` makes of `recv`.
#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn __recv_chk(fd: c_int, buf: usize, len: usize, room: usize, flags: c_int) -> isize {
    if len <= room {
        return recv(fd, buf, len, flags);
    }
    real!(c"__recv_chk", sys::RECVFROM, (fd, buf, len, room, flags) as fn(c_int, usize, usize, usize, c_int) -> isize)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn send(fd: c_int, buf: usize, len: usize, flags: c_int) -> isize {
    let small = (1..=SMALL).contains(&len);
    if small && let Some(slot) = filled(modelled(fd), 0, buf, len) {
        return real!(c"send", sys::SENDTO, (fd, slot.at(), len, flags) as fn(c_int, usize, usize, c_int) -> isize);
    }
    real!(c"send", sys::SENDTO, (fd, buf, len, flags) as fn(c_int, usize, usize, c_int) -> isize)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn epoll_ctl(set: c_int, op: c_int, fd: c_int, event: usize) -> c_int {
    let window = Window::get();
    if window.is_some_and(|w| deferred(w, set, op, fd, event)) {
        return 0;
    }
    if op != EPOLL_CTL_DEL
        && let Some(slot) = filled(window, 0, event, EVENT)
    {
        return bare::<{ sys::EPOLL_CTL }>(&[set as usize, op as usize, fd as usize, slot.at()]);
    }
    real!(c"epoll_ctl", sys::EPOLL_CTL, (set, op, fd, event) as fn(c_int, c_int, c_int, usize) -> c_int)
}

/// True if the change waits in the ring.
fn deferred(window: Window, set: c_int, op: c_int, fd: c_int, event: usize) -> bool {
    if op == EPOLL_CTL_DEL {
        return window.defer(set, op as u32, fd, [0; 3]);
    }
    if !matches!(op, EPOLL_CTL_ADD | EPOLL_CTL_MOD) || !readable(event, EVENT) {
        return false;
    }
    // SAFETY: it can be read.
    let event = unsafe { (event as *const [u32; 3]).read_unaligned() };
    event[0] & EPOLLEXCLUSIVE == 0 && window.defer(set, op as u32, fd, event)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn epoll_wait(set: c_int, events: usize, most: c_int, timeout: c_int) -> c_int {
    // One event is there at least; whether there is room for more is asked when they have come.
    let room = most.clamp(0, EVENTS as c_int);
    let window = if room > 0 { Window::near() } else { None };
    if let Some(slot) = window.filter(|_| writable(events, EVENT)).and_then(|w| w.claim(room as usize * EVENT)) {
        let n = real!(c"epoll_wait", sys::EPOLL_WAIT, (set, slot.at(), room, timeout) as fn(c_int, usize, c_int, c_int) -> c_int);
        let fits = if n <= 1 || writable(events, n as usize * EVENT) { n } else { 1 };
        // SAFETY: they can be written.
        unsafe { slot.take(0, events, fits.max(0) as usize * EVENT) };
        return fits;
    }
    real!(c"epoll_wait", sys::EPOLL_WAIT, (set, events, most, timeout) as fn(c_int, usize, c_int, c_int) -> c_int)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn poll(list: usize, count: c_ulong, timeout: c_int) -> c_int {
    let len = count as usize * WORDS;
    let window = if (1..=SMALL / WORDS).contains(&(count as usize)) { Window::near() } else { None };
    if let Some(slot) = filled(window.filter(|_| writable(list, len)), 0, list, len) {
        let n = real!(c"poll", sys::POLL, (slot.at(), count, timeout) as fn(usize, c_ulong, c_int) -> c_int);
        // SAFETY: they can be written.
        unsafe { slot.take(0, list, len) };
        return n;
    }
    real!(c"poll", sys::POLL, (list, count, timeout) as fn(usize, c_ulong, c_int) -> c_int)
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn getsockopt(fd: c_int, level: c_int, name: c_int, value: usize, len: usize) -> c_int {
    if let Some((slot, room)) = asked(fd, value, len) {
        let (at, len_at) = (slot.at() + IOVEC, slot.at());
        let n = bare::<{ sys::GETSOCKOPT }>(&[fd as usize, level as usize, name as usize, at, len_at]);
        // SAFETY: both can be written.
        unsafe {
            slot.take(0, len, 4);
            slot.take(IOVEC, value, room);
        }
        return n;
    }
    real!(c"getsockopt", sys::GETSOCKOPT, (fd, level, name, value, len) as fn(c_int, c_int, c_int, usize, usize) -> c_int)
}

/// A slot with a length, and what is there so far; how long it is.
fn asked(fd: c_int, value: usize, len: usize) -> Option<(Slot, usize)> {
    let window = modelled(fd).filter(|_| writable(len, 4))?;
    // SAFETY: it can be read.
    let room = usize::try_from(unsafe { (len as *const i32).read_unaligned() }).ok()?;
    if room > OPTION || !writable(value, room) {
        return None;
    }
    let slot = window.claim(IOVEC + room)?;
    // SAFETY: both can be read, and fit.
    unsafe {
        slot.put(0, len, 4);
        slot.put(IOVEC, value, room);
    }
    Some((slot, room))
}

#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn setsockopt(fd: c_int, level: c_int, name: c_int, value: usize, len: u32) -> c_int {
    let small = (1..=OPTION).contains(&(len as usize));
    if small && let Some(slot) = filled(modelled(fd), 0, value, len as usize) {
        return bare::<{ sys::SETSOCKOPT }>(&[fd as usize, level as usize, name as usize, slot.at(), len as usize]);
    }
    real!(c"setsockopt", sys::SETSOCKOPT, (fd, level, name, value, len) as fn(c_int, c_int, c_int, usize, u32) -> c_int)
}

/// With an argument of one word, whatever the request: so is the kernel's.
#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int {
    let window = if matches!(request, FIONREAD | FIONBIO) { modelled(fd) } else { None };
    if let Some(slot) = filled(window.filter(|_| writable(arg, 4)), 0, arg, 4) {
        let n = bare::<{ sys::IOCTL }>(&[fd as usize, request as usize, slot.at()]);
        // SAFETY: it can be written.
        unsafe { slot.take(0, arg, 4) };
        return n;
    }
    real!(c"ioctl", sys::IOCTL, (fd, request, arg) as fn(c_int, c_ulong, usize) -> c_int)
}

/// A program that is about to filter its own calls makes none from here on that are not its own.
#[cfg_attr(ringlab_preload, unsafe(no_mangle))]
extern "C" fn prctl(op: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    if matches!(op, PR_SET_SECCOMP | PR_SET_NO_NEW_PRIVS) {
        window::leave();
    }
    real!(c"prctl", sys::PRCTL, (op, a, b, c, d) as fn(c_int, c_ulong, c_ulong, c_ulong, c_ulong) -> c_int)
}
