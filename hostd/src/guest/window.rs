//! Memory that a program shares with hostd: small arguments and results go through it, and it tells the program which
//! descriptors are the machine's (`ringlab_preload`).
//!
//! A process asks for one ([`MAKE`]), maps it, and says where ([`USE`]). From then on what is copied from or to an address in there is
//! copied by hostd itself. The program may change the mapping, or what is in it, at any time: it gets what it has put there.
//! hostd copies before it looks, and never reads what it has written for the program.

use super::Guests;
use super::calls::Outcome;
use super::fds::Kind;
use super::memory::Mem;
use super::notify::{Listener, Notif};
use super::table::Caller;
use crate::config::FilesSpec;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_preload::layout::{CHANGE, CHANGES, FOLLOWED, HEAD, QUIET, RING, STATE, TAIL};
use ringlab_preload::layout::{CODE, DESCRIPTORS, FLUSH, LEVEL, LIST, LIVE, MAKE, OBJECT, SIZE, USE, real};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::cell::RefCell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tracing::debug;

/// What the loader puts into programs.
const PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// Names a window; 0 is none. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowId(u32);

/// hostd's mapping of a window.
#[derive(Debug)]
struct Window {
    id: WindowId,
    map: NonNull<u8>,
    /// Where the program has it; 0 before it has said so.
    base: u64,
    /// Changes of sets that were taken.
    taken: u32,
    /// Something was told of sets.
    told: bool,
}

#[derive(Default)]
struct Table {
    last: u32,
    windows: Vec<Window>,
}

thread_local! {
    /// The windows of this thread's guests: what copies a program's memory knows them by name only.
    static TABLE: RefCell<Table> = RefCell::default();
}

impl Window {
    fn make() -> io::Result<(Self, OwnedFd)> {
        let file = memfd_create("ringlab-window", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, SIZE as u64)?;
        // A page that the program took away would be a signal for hostd.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        rustix::io::pwrite(&file, &CODE, 0)?;
        // SAFETY: a fresh mapping of a file of this size, which cannot shrink.
        let map = unsafe { mmap(core::ptr::null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) }?;
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok((Self { id: WindowId(0), map, base: 0, taken: 0, told: false }, file))
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        let offset = offset.min(SIZE - 4) & !3;
        // SAFETY: inside the mapping, aligned; whoever else writes there does so in another process.
        unsafe { self.map.add(offset).cast().as_ref() }
    }

    fn bits(&self, word: usize) -> &AtomicU64 {
        let word = word.min(DESCRIPTORS / 64 - 1);
        // SAFETY: as in `word`; the index is bounded.
        unsafe { self.map.add(real(word)).cast().as_ref() }
    }

    /// Where `len` octets at a program's address are in hostd's mapping; `None` if not all are in the window.
    fn at(&self, addr: u64, len: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        if self.base == 0 || offset.checked_add(len)? > SIZE {
            return None;
        }
        // SAFETY: the offset is within the mapping.
        Some(unsafe { self.map.add(offset) })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's, and pointers into it live as long as a borrow of the table.
        if let Err(error) = unsafe { munmap(self.map.as_ptr().cast(), SIZE) } {
            debug!(%error, "a window stays mapped");
        }
    }
}

fn with<T>(id: WindowId, f: impl FnOnce(&mut Window) -> T) -> Option<T> {
    if id == WindowId(0) {
        return None;
    }
    TABLE.with_borrow_mut(|table| {
        let at = table.windows.binary_search_by_key(&id.0, |w| w.id.0).ok()?;
        table.windows.get_mut(at).map(f)
    })
}

/// True if the whole range lies in the window.
pub fn holds(id: WindowId, addr: u64, len: usize) -> bool {
    with(id, |w| w.at(addr, len).is_some()) == Some(true)
}

/// Fills the parts from the window, if the whole range lies in it.
///
/// # Safety
/// The parts are memory that nobody else writes meanwhile.
#[inline]
pub unsafe fn read(id: WindowId, src: u64, parts: &[libc::iovec]) -> bool {
    // SAFETY: the parts are the caller's to write, and nobody's Rust object is in the mapping.
    copy(id, src, parts, |at, part| unsafe { core::ptr::copy_nonoverlapping(at, part.iov_base.cast(), part.iov_len) })
}

/// Copies the parts to the window, if the whole range lies in it.
///
/// # Safety
/// The parts are memory that can be read.
#[inline]
pub unsafe fn write(id: WindowId, dst: u64, parts: &[libc::iovec]) -> bool {
    // SAFETY: as in `read`.
    copy(id, dst, parts, |at, part| unsafe { core::ptr::copy_nonoverlapping(part.iov_base.cast(), at, part.iov_len) })
}

fn copy(id: WindowId, addr: u64, parts: &[libc::iovec], each: impl Fn(*mut u8, &libc::iovec)) -> bool {
    let len = parts.iter().map(|part| part.iov_len).sum();
    let all = |w: &mut Window| {
        let mut at = w.at(addr, len)?.as_ptr();
        for part in parts {
            each(at, part);
            // SAFETY: the parts together are as long as the range.
            at = unsafe { at.add(part.iov_len) };
        }
        Some(())
    };
    with(id, all).flatten().is_some()
}

/// Tells the program whether a descriptor is one of the machine's.
pub fn mark(id: WindowId, fd: usize, real: bool) {
    if fd < DESCRIPTORS {
        with(id, |w| match real {
            true => w.bits(fd / 64).fetch_or(1 << (fd % 64), Ordering::Release),
            false => w.bits(fd / 64).fetch_and(!(1 << (fd % 64)), Ordering::Release),
        });
    }
}

/// Tells what is known of a descriptor in a set ([`ringlab_preload::layout::state`]).
pub fn set_state(id: WindowId, fd: i32, state: u32) {
    if let Ok(at) = usize::try_from(fd)
        && at < FOLLOWED
    {
        with(id, |w| {
            w.told |= state != 0;
            w.word(STATE + at * 4).store(state, Ordering::Release);
        });
    }
}

/// Tells whether changes of a set may wait.
pub fn set_quiet(id: WindowId, set: i32, quiet: bool) {
    if let Ok(at) = usize::try_from(set)
        && at < FOLLOWED
    {
        let bit = 1 << (at % 32);
        with(id, |w| {
            w.told |= quiet;
            let word = w.word(QUIET + at / 32 * 4);
            if quiet { word.fetch_or(bit, Ordering::SeqCst) } else { word.fetch_and(!bit, Ordering::SeqCst) }
        });
    }
}

/// Changes of all sets are calls, until something else is known.
pub fn quiet_none(id: WindowId) {
    with(id, |w| {
        if w.told {
            (QUIET..QUIET + FOLLOWED / 8).step_by(4).for_each(|at| w.word(at).store(0, Ordering::SeqCst));
        }
    });
}

/// Nothing is known of sets any more.
pub fn forget_sets(id: WindowId) {
    quiet_none(id);
    with(id, |w| {
        if core::mem::take(&mut w.told) {
            (STATE..QUIET).step_by(4).for_each(|at| w.word(at).store(0, Ordering::Relaxed));
        }
    });
}

/// The next change of a set that the program has appended.
pub fn next_change(id: WindowId) -> Option<[u32; CHANGE / 4]> {
    with(id, |w| {
        let head = w.word(HEAD).load(Ordering::Acquire);
        if head == w.taken {
            return None;
        }
        let at = CHANGES + w.taken as usize % RING * CHANGE;
        let change = core::array::from_fn(|i| w.word(at + i * 4).load(Ordering::Relaxed));
        // A program that claims more than there is room for gets nothing of it.
        w.taken = if head.wrapping_sub(w.taken) > RING as u32 { head } else { w.taken.wrapping_add(1) };
        w.word(TAIL).store(w.taken, Ordering::Release);
        Some(change)
    })
    .flatten()
}

/// Nothing is known of descriptors `first` to `last` any more.
pub fn clear(id: WindowId, first: usize, last: usize) {
    let last = last.min(DESCRIPTORS - 1);
    with(id, |w| {
        for word in first / 64..=last / 64 {
            let (from, to) = (first.max(word * 64) % 64, last.min(word * 64 + 63) % 64);
            let gone = u64::MAX << from & u64::MAX >> (63 - to);
            w.bits(word).fetch_and(!gone, Ordering::Release);
        }
    });
}

fn remove(id: WindowId) {
    TABLE.with_borrow_mut(|table| table.windows.retain(|w| w.id != id));
}

/// The object, if programs get it: a list that they have anyway is not hidden.
pub fn object(files: &FilesSpec) -> Option<OwnedFd> {
    let listed = |root: &str| std::fs::exists(format!("{root}{LIST}")).unwrap_or(true);
    if files.no_preload || files.binds.iter().any(|b| b.destination == LIST) || listed(&files.root) {
        return None;
    }
    let make = || -> io::Result<OwnedFd> {
        let file = memfd_create(OBJECT, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        io::Write::write_all(&mut std::fs::File::from(file.try_clone()?), PRELOAD)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
        Ok(file)
    };
    make().inspect_err(|error| debug!(%error, "programs run without windows")).ok()
}

impl Guests {
    /// True if a call is one of [`LEVEL`]'s.
    pub(super) fn is_window_call(n: &Notif) -> bool {
        matches!(i64::from(n.nr), libc::SYS_getsockopt | libc::SYS_setsockopt) && n.args[0] as i32 == -1 && n.args[1] as i32 == LEVEL
    }

    /// Makes a window, or learns where it is.
    pub(super) fn sys_window(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        match n.args[2] as i32 {
            MAKE if self.preload.is_some() => {
                let (mut window, file) = Window::make().map_err(|_| Errno::ENFILE)?;
                let fd = match listener.inject(n.id, file.as_fd(), true) {
                    Ok(fd) => fd,
                    Err(errno) => return Ok(self.not_injected(shared, c, n, errno)),
                };
                self.drop_window(c.tgid);
                window.word(LIVE).store(u32::from(!self.untold), Ordering::Relaxed);
                let Some(proc) = self.procs.get_mut(&c.tgid) else { return Ok(Outcome::Taken) };
                proc.cache.installed(fd, Kind::Real);
                TABLE.with_borrow_mut(|table| {
                    table.last += 1;
                    window.id = WindowId(table.last);
                    proc.cache.publish(window.id);
                    table.windows.push(window);
                });
                Ok(Outcome::Taken)
            }
            USE if n.args[4] == SIZE as u64 => {
                let proc = self.procs.get(&c.tgid).ok_or(Errno::EBADF)?;
                let id = proc.cache.window();
                with(id, |w| w.base = n.args[3]).ok_or(Errno::EBADF)?;
                self.set_memory(c.tgid, id);
                Ok(Outcome::Done(0))
            }
            // They have been taken: this is a trapped call.
            FLUSH => Ok(Outcome::Done(0)),
            _ => Err(Errno::EBADF),
        }
    }

    /// A process's memory is another one, or gone.
    pub(super) fn drop_window(&mut self, tgid: i32) {
        let Some(proc) = self.procs.get_mut(&tgid) else { return };
        let id = proc.cache.window();
        if id != WindowId(0) {
            proc.cache.publish(WindowId(0));
            self.set_memory(tgid, WindowId(0));
            remove(id);
        }
    }

    /// What is known of descriptors does not hold any more, in any process.
    pub(super) fn darken_windows(&self) {
        for proc in self.procs.values() {
            with(proc.cache.window(), |w| w.word(LIVE).store(0, Ordering::Release));
        }
    }

    fn set_memory(&mut self, tgid: i32, window: WindowId) {
        let Some(proc) = self.procs.get(&tgid) else { return };
        for &tid in &proc.threads {
            if let Some(task) = self.tasks.get_mut(&tid) {
                task.mem = Mem::of(tid).seen_through(window);
                self.memory.set_memory(task.id, task.mem);
            }
        }
    }

    /// Answers an `open` of the object.
    pub(super) fn open_object(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome, Errno> {
        let object = self.preload.as_ref().ok_or(Errno::ENOENT)?;
        // A file position of its own.
        let own = format!("/proc/self/fd/{}", object.as_raw_fd());
        let file = open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|_| Errno::ENFILE)?;
        match listener.inject(n.id, file.as_fd(), true) {
            Ok(fd) => {
                if let Some(proc) = self.procs.get_mut(&c.tgid) {
                    proc.cache.installed(fd, Kind::Real);
                }
                Ok(Outcome::Taken)
            }
            Err(errno) => Ok(self.not_injected(shared, c, n, errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlab_preload::layout::SLOTS;

    /// A window whose program is this process, and where that has it.
    fn window() -> (WindowId, u64) {
        let (mut window, _) = Window::make().expect("memory");
        window.base = 0x7000_0000_0000;
        let base = window.base;
        let id = TABLE.with_borrow_mut(|table| {
            table.last += 1;
            window.id = WindowId(table.last);
            table.windows.push(window);
            WindowId(table.last)
        });
        (id, base)
    }

    fn word(id: WindowId, offset: usize) -> u32 {
        with(id, |w| w.word(offset).load(Ordering::Relaxed)).expect("there")
    }

    fn bits(id: WindowId) -> Vec<usize> {
        let set = |fd: &usize| word(id, real(fd / 64) + fd % 64 / 32 * 4) >> (fd % 32) & 1 != 0;
        (0..DESCRIPTORS).filter(set).collect()
    }

    #[test]
    fn only_what_lies_in_the_window_is_copied_there() {
        let (id, base) = window();
        let mem = Mem::of(std::process::id() as i32).seen_through(id);
        let at = base + SLOTS as u64;
        let mut got = [0; 8];
        mem.write(at, b"argument").expect("in the window");
        mem.read(at, &mut got).expect("in the window");
        assert_eq!(&got, b"argument");
        // The rest is this process's memory.
        let own = *b"elsewhere";
        mem.read(own.as_ptr() as u64, &mut got).expect("there");
        assert_eq!(&got, b"elsewher");
        // What begins inside and ends outside is the machine's kernel's to refuse, as what a window does not reach.
        let end = base + SIZE as u64;
        for at in [end - 4, end, base - 4, u64::MAX - 3] {
            assert_eq!(mem.read(at, &mut got), Err(Errno::EFAULT), "{at:#x}");
            assert_eq!(mem.write(at, &got), Err(Errno::EFAULT), "{at:#x}");
        }
        mem.read(end - 8, &mut got).expect("the last octets");
        remove(id);
        assert_eq!(mem.read(at, &mut got), Err(Errno::EFAULT));
    }

    #[test]
    fn a_string_and_several_numbers_go_through_the_window() {
        let (id, base) = window();
        let mem = Mem::of(std::process::id() as i32).seen_through(id);
        let at = base + SLOTS as u64;
        mem.write(at, b"/etc/hosts\0rest").expect("in the window");
        assert_eq!(mem.read_str(at, &mut [0; 64]), Ok(&b"/etc/hosts"[..]));
        mem.write_every(at + 6, 8, &[1, 2, 3]).expect("in the window");
        let mut got = [0; 24];
        mem.read(at, &mut got).expect("in the window");
        assert_eq!((got[6], got[14], got[22]), (1, 2, 3));
        let mut own = 0u32;
        mem.write_both((at, b"ab"), (&raw mut own as u64, &7u32.to_ne_bytes())).expect("both");
        assert_eq!(own, 7);
        remove(id);
    }

    #[test]
    fn marks_of_descriptors_are_bits() {
        let (id, _) = window();
        for fd in [0, 3, 63, 64, 65, 127, 128, DESCRIPTORS - 1, DESCRIPTORS, usize::MAX] {
            mark(id, fd, true);
        }
        assert_eq!(bits(id), [0, 3, 63, 64, 65, 127, 128, DESCRIPTORS - 1]);
        mark(id, 64, false);
        clear(id, 3, 63);
        assert_eq!(bits(id), [0, 65, 127, 128, DESCRIPTORS - 1]);
        clear(id, 65, 127);
        assert_eq!(bits(id), [0, 128, DESCRIPTORS - 1]);
        clear(id, 1, usize::MAX);
        assert_eq!(bits(id), [0]);
        set_state(id, 5, 77);
        set_state(id, -1, 1);
        set_state(id, i32::MAX, 1);
        set_quiet(id, 40, true);
        set_quiet(id, -1, true);
        assert_eq!((word(id, STATE + 20), word(id, QUIET + 4)), (77, 1 << 8));
        forget_sets(id);
        assert_eq!((word(id, STATE + 20), word(id, QUIET + 4)), (0, 0));
        remove(id);
        mark(id, 1, true);
    }

    #[test]
    fn changes_are_taken_in_order_and_no_more_than_there_is_room_for() {
        let (id, _) = window();
        let append = |n: u32| {
            with(id, |w| {
                let head = w.word(HEAD).load(Ordering::Relaxed);
                w.word(CHANGES + head as usize % RING * CHANGE).store(n, Ordering::Relaxed);
                w.word(HEAD).store(head.wrapping_add(1), Ordering::Relaxed);
            });
        };
        for n in 0..200 {
            append(n);
            assert_eq!(next_change(id).map(|c| c[0]), Some(n));
            assert_eq!((next_change(id), word(id, TAIL)), (None, n + 1));
        }
        (0..RING as u32).for_each(append);
        assert_eq!(core::iter::from_fn(|| next_change(id)).map(|c| c[0]).collect::<Vec<_>>(), (0..RING as u32).collect::<Vec<_>>());
        // A program that claims four thousand million.
        with(id, |w| w.word(HEAD).fetch_sub(1, Ordering::Relaxed));
        assert!(core::iter::from_fn(|| next_change(id)).count() <= 1);
        append(9);
        assert_eq!(next_change(id).map(|c| c[0]), Some(9));
        remove(id);
        assert_eq!(next_change(id), None);
    }
}
