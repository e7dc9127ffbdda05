//! The window of this process: joining hostd, slots, and what is known of descriptors.
//!
//! After `fork` the child has no window until it has made one of its own: it knows by its process number that what it has inherited
//! is its parent's. So does a child of `vfork`, which shares the memory but not the descriptors.

use crate::layout::{BUSY, CHANGE, CHANGES, CLOSE, HEAD, LOCK, QUIET, RING, STATE, TAIL, state};
use crate::layout::{
    COUNT, DESCRIPTORS, FLUSH, FOLLOWED, LEVEL, LITTLE, LITTLE_SLOTS, LIVE, MAKE, NATIVE, PAGE, SIZE, SLOT, SLOTS, USE, real,
};
use crate::sys;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// Calls that a process makes before it is worth a window.
const PATIENCE: u32 = 24;

const PROT_READ_WRITE: usize = 3;
const PROT_READ_EXEC: usize = 5;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE_FIXED_NOREPLACE: usize = 0x10_0002;
const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
const MADV_DONTFORK: usize = 10;
const MADV_WIPEONFORK: usize = 18;
const ADD: u32 = 1;
const DEL: u32 = 2;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

static BASE: AtomicUsize = AtomicUsize::new(0);
/// A page that holds the base, too, and that a child finds empty.
static KEPT: AtomicUsize = AtomicUsize::new(0);
static OWNER: AtomicI32 = AtomicI32::new(0);
static CALLS: AtomicU32 = AtomicU32::new(0);
static CALLER: AtomicI32 = AtomicI32::new(0);
/// The page at [`NATIVE`] is there. Children inherit it.
static NATIVE_MAPPED: AtomicBool = AtomicBool::new(false);
/// The program watches its own calls, or there is no hostd: no call is made that it does not ask for.
static OFF: AtomicBool = AtomicBool::new(false);

/// The window of this process.
#[derive(Clone, Copy)]
pub struct Window(usize);

/// A slot in use.
pub struct Slot {
    window: Window,
    index: usize,
}

impl Window {
    /// The window, if this process has one by now.
    pub fn get() -> Option<Self> {
        if OFF.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: takes no pointer.
        let pid = unsafe { sys::call::<{ sys::GETPID }>(&[]) } as i32;
        // In this order: who sees its own number does not see an inherited base any more.
        let own = OWNER.load(Ordering::Acquire) == pid;
        match BASE.load(Ordering::Acquire) {
            base if own && base != 0 => return Some(Self(base)),
            _ => {}
        }
        if CALLER.swap(pid, Ordering::Relaxed) != pid {
            CALLS.store(0, Ordering::Relaxed);
        }
        if CALLS.fetch_add(1, Ordering::Relaxed) == PATIENCE { join(pid) } else { None }
    }

    /// As [`Self::get`], for what needs no more than slots: a child of `vfork` may have its parent's.
    pub fn near() -> Option<Self> {
        let kept = KEPT.load(Ordering::Relaxed);
        if kept == 0 || OFF.load(Ordering::Relaxed) {
            return Self::get();
        }
        // SAFETY: the page is never unmapped.
        match unsafe { &*(kept as *const AtomicUsize) }.load(Ordering::Acquire) {
            0 => Self::get(),
            base => Some(Self(base)),
        }
    }

    /// True if a descriptor is known to be one of the machine's, and can be called natively: only what ends soon if other
    /// threads might cancel this one.
    pub fn is_native(self, fd: i32) -> bool {
        NATIVE_MAPPED.load(Ordering::Relaxed) && self.real(fd).is_some() && (sys::is_single_threaded() || is_regular(fd))
    }

    /// A free slot for so many octets, [`SLOT`] at most.
    pub fn claim(self, len: usize) -> Option<Slot> {
        let busy = self.word(BUSY);
        let mut now = busy.load(Ordering::Relaxed);
        loop {
            let little = (now >> COUNT).trailing_ones() as usize;
            let index = if len <= LITTLE && little < COUNT { COUNT + little } else { now.trailing_ones() as usize };
            if index >= COUNT && (len > LITTLE || little >= COUNT) {
                return None;
            }
            match busy.compare_exchange_weak(now, now | 1 << index, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Slot { window: self, index }),
                Err(other) => now = other,
            }
        }
    }

    /// Appends a change of an epoll set to those that hostd makes with the next trapped call. False if the call has to be made: it might
    /// fail, or somebody might notice.
    pub fn defer(self, set: i32, op: u32, fd: i32, event: [u32; 3]) -> bool {
        let followed = |fd: i32| (0..FOLLOWED as i32).contains(&fd);
        if !followed(set) || !followed(fd) || !self.is_quiet(set) {
            return false;
        }
        let appended = self.locked(|| {
            let known = self.word(STATE + fd as usize * 4);
            let (now, then) = (state(set, op != ADD), state(set, op != DEL));
            if known.load(Ordering::Relaxed) != now || !self.append([set as u32, op, fd as u32, event[0], event[1], event[2]]) {
                return false;
            }
            // hostd may have forgotten it meanwhile: so it stays.
            let _ = known.compare_exchange(now, then, Ordering::Relaxed, Ordering::Relaxed);
            true
        });
        // Whoever waits since has looked at the ring before the change was there, or sees it.
        fence(Ordering::SeqCst);
        if appended && !self.is_quiet(set) {
            // SAFETY: takes no pointer.
            unsafe { sys::call::<{ sys::GETSOCKOPT }>(&[usize::MAX, LEVEL as usize, FLUSH as usize]) };
        }
        appended
    }

    /// Closes a descriptor that is one of the machine's, and tells hostd by the ring; what the kernel says. `None` if it has to be
    /// a trapped call.
    pub fn close(self, fd: i32) -> Option<isize> {
        // Nothing that is modelled looks like a file.
        if !NATIVE_MAPPED.load(Ordering::Relaxed) || self.real(fd).is_none() && !(self.is_live() && is_regular(fd)) {
            return None;
        }
        // SAFETY: takes no pointer.
        let tid = unsafe { sys::call::<{ sys::GETTID }>(&[]) } as u32;
        // Before the number can stand for something else; hostd forgets it before the next trapped call.
        if let Some((bits, bit)) = self.real(fd) {
            bits.fetch_and(!bit, Ordering::Relaxed);
        }
        if !self.locked(|| self.append([fd as u32, CLOSE, tid, 0, 0, 0])) {
            return None;
        }
        // SAFETY: the program's own call.
        Some(unsafe { sys::native(sys::CLOSE, [fd as usize, 0, 0]) })
    }

    /// Runs `f` unless another thread, or what this signal interrupts, is at it.
    fn locked(&self, f: impl FnOnce() -> bool) -> bool {
        let lock = self.word(LOCK);
        if lock.swap(1, Ordering::Acquire) != 0 {
            return false;
        }
        let done = f();
        lock.store(0, Ordering::Release);
        done
    }

    /// Appends a change, if there is room. Under the lock.
    fn append(&self, change: [u32; CHANGE / 4]) -> bool {
        let head = self.word(HEAD).load(Ordering::Relaxed);
        if head.wrapping_sub(self.word(TAIL).load(Ordering::Acquire)) >= RING as u32 {
            return false;
        }
        let at = CHANGES + head as usize % RING * CHANGE;
        for (i, value) in change.into_iter().enumerate() {
            self.word(at + i * 4).store(value, Ordering::Relaxed);
        }
        self.word(HEAD).store(head.wrapping_add(1), Ordering::Release);
        true
    }

    /// Where the bit of a descriptor is, if it is set.
    fn real(&self, fd: i32) -> Option<(&AtomicU64, u64)> {
        let at = fd as usize;
        if fd < 0 || at >= DESCRIPTORS || !self.is_live() {
            return None;
        }
        // SAFETY: inside the window, which stays mapped; everybody who writes it does so atomically.
        let bits = unsafe { &*((self.0 + real(at / 64)) as *const AtomicU64) };
        let bit = 1 << (at % 64);
        (bits.load(Ordering::Acquire) & bit != 0).then_some((bits, bit))
    }

    /// True if a descriptor is a modelled socket in some set.
    pub fn is_watched(self, fd: i32) -> bool {
        self.is_live() && (0..FOLLOWED as i32).contains(&fd) && self.word(STATE + fd as usize * 4).load(Ordering::Relaxed) != 0
    }

    fn is_live(&self) -> bool {
        self.word(LIVE).load(Ordering::Relaxed) != 0
    }

    fn is_quiet(&self, set: i32) -> bool {
        self.is_live() && self.word(QUIET + set as usize / 32 * 4).load(Ordering::Relaxed) >> (set % 32) & 1 != 0
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: inside the window, which stays mapped; everybody who writes it does so atomically.
        unsafe { &*((self.0 + offset) as *const AtomicU32) }
    }
}

impl Slot {
    /// Its first octet.
    pub fn at(&self) -> usize {
        self.window.0 + if self.index < COUNT { SLOTS + self.index * SLOT } else { LITTLE_SLOTS + (self.index - COUNT) * LITTLE }
    }

    /// Copies `len` octets of the program's to `offset`.
    ///
    /// # Safety
    /// They can be read ([`crate::probe::readable`]), and fit.
    pub unsafe fn put(&self, offset: usize, from: usize, len: usize) {
        // SAFETY: the caller has seen to both ranges; a slot is not the program's memory, so they do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, (self.at() + offset) as *mut u8, len) };
    }

    /// Copies `len` octets at `offset` to the program.
    ///
    /// # Safety
    /// They can be written ([`crate::probe::writable`]), and are in the slot.
    pub unsafe fn take(&self, offset: usize, to: usize, len: usize) {
        // SAFETY: as in `put`.
        unsafe { core::ptr::copy_nonoverlapping((self.at() + offset) as *const u8, to as *mut u8, len) };
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.window.word(BUSY).fetch_and(!(1 << self.index), Ordering::Release);
    }
}

/// From now on the program's calls are its own.
pub fn leave() {
    OFF.store(true, Ordering::Relaxed);
}

fn join(pid: i32) -> Option<Window> {
    // SAFETY: neither pointer nor effect but a new descriptor.
    let fd = unsafe { sys::call::<{ sys::GETSOCKOPT }>(&[usize::MAX, LEVEL as usize, MAKE as usize]) };
    if fd < 0 {
        leave();
        return None;
    }
    let fd = fd as usize;
    // SAFETY: a fresh mapping wherever there is room.
    let base = unsafe { sys::call::<{ sys::MMAP }>(&[0, SIZE, PROT_READ_WRITE, MAP_SHARED, fd]) };
    if base > 0 && !NATIVE_MAPPED.load(Ordering::Relaxed) {
        // SAFETY: a fresh mapping, which replaces nothing.
        let at = unsafe { sys::call::<{ sys::MMAP }>(&[NATIVE, PAGE, PROT_READ_EXEC, MAP_PRIVATE_FIXED_NOREPLACE, fd]) };
        NATIVE_MAPPED.store(at == NATIVE as isize, Ordering::Relaxed);
    }
    // SAFETY: the descriptor is the one made above.
    unsafe { sys::call::<{ sys::CLOSE }>(&[fd]) };
    if base <= 0 {
        return None;
    }
    let base = base as usize;
    // SAFETY: the mapping made above. A child that could reach it would write over its parent's arguments.
    let kept = unsafe { sys::call::<{ sys::MADVISE }>(&[base, SIZE, MADV_DONTFORK]) };
    // SAFETY: tells an address.
    if kept < 0 || unsafe { sys::call::<{ sys::SETSOCKOPT }>(&[usize::MAX, LEVEL as usize, USE as usize, base, SIZE]) } < 0 {
        // SAFETY: the mapping made above, which nobody else knows.
        unsafe { sys::call::<{ sys::MUNMAP }>(&[base, SIZE]) };
        return None;
    }
    keep(base);
    BASE.store(0, Ordering::Relaxed);
    OWNER.store(pid, Ordering::Release);
    BASE.store(base, Ordering::Release);
    Some(Window(base))
}

/// Keeps the base where children do not find it.
fn keep(base: usize) {
    let mut page = KEPT.load(Ordering::Relaxed);
    if page == 0 {
        // SAFETY: a fresh mapping wherever there is room.
        let at = unsafe { sys::call::<{ sys::MMAP }>(&[0, PAGE, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, usize::MAX]) };
        // SAFETY: the mapping made above.
        if at <= 0 || unsafe { sys::call::<{ sys::MADVISE }>(&[at as usize, PAGE, MADV_WIPEONFORK]) } < 0 {
            return;
        }
        page = at as usize;
    }
    // SAFETY: the page is never unmapped.
    unsafe { &*(page as *const AtomicUsize) }.store(base, Ordering::Release);
    KEPT.store(page, Ordering::Relaxed);
}

/// True if a descriptor is an ordinary file.
pub fn is_regular(fd: i32) -> bool {
    let mut stat = [0u32; 64];
    // SAFETY: `struct stat` has 144 octets.
    let done = unsafe { sys::call::<{ sys::FSTAT }>(&[fd as usize, stat.as_mut_ptr() as usize]) };
    // `st_mode` is at octet 24.
    done == 0 && stat[6] & S_IFMT == S_IFREG
}
