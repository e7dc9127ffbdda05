//! Descriptor tables (Linux `files_struct`): small numbers for open files.
//!
//! A table may be shared by several tasks (threads). The number given out is
//! always the lowest free one; a bitmap and a hint find it without a walk.

use super::FileId;
use crate::errno::Errno;
use crate::syscall::Fd;
use alloc::vec::Vec;

/// Number of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesId(pub(super) u32);

/// Soft limit of descriptors a process (`RLIMIT_NOFILE`) unless set otherwise.
pub const DEFAULT_LIMIT: usize = 1024;
/// Highest limit that may be set (Linux `nr_open`).
pub const NR_OPEN: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    file: FileId,
    cloexec: bool,
}

/// A descriptor table.
#[derive(Debug, Clone)]
pub struct FdTable {
    slots: Vec<Option<Entry>>,
    /// Bit set: in use.
    used: Vec<u64>,
    /// No number below it is free.
    next: usize,
    limit: usize,
}

impl Default for FdTable {
    fn default() -> Self {
        Self { slots: Vec::new(), used: Vec::new(), next: 0, limit: DEFAULT_LIMIT }
    }
}

impl FdTable {
    /// The file behind a descriptor.
    ///
    /// # Errors
    /// `EBADF`.
    #[inline]
    pub fn get(&self, fd: Fd) -> Result<FileId, Errno> {
        self.entry(fd).map(|e| e.file)
    }

    /// The lowest number that would be given out from `from` on.
    ///
    /// # Errors
    /// `EMFILE` if the limit is reached.
    pub fn unused(&self, from: Fd) -> Result<Fd, Errno> {
        let mut at = (from.max(0) as usize).max(self.next);
        loop {
            let word = match self.used.get(at / 64) {
                None => break,
                Some(word) => !word >> (at % 64),
            };
            if word != 0 {
                at += word.trailing_zeros() as usize;
                break;
            }
            at = (at / 64 + 1) * 64;
        }
        if at < self.limit { Ok(at as Fd) } else { Err(Errno::EMFILE) }
    }

    /// Gives a file the lowest free number from `from` on.
    ///
    /// # Errors
    /// `EMFILE` if the limit is reached.
    pub fn install(&mut self, file: FileId, cloexec: bool, from: Fd) -> Result<Fd, Errno> {
        let fd = self.unused(from)?;
        self.set(fd as usize, Entry { file, cloexec });
        Ok(fd)
    }

    /// Gives a file exactly the number `fd`; returns the file that had it (`dup2`).
    ///
    /// # Errors
    /// `EBADF` if the number is negative or beyond the limit.
    pub fn replace(&mut self, fd: Fd, file: FileId, cloexec: bool) -> Result<Option<FileId>, Errno> {
        let at = usize::try_from(fd).ok().filter(|&n| n < self.limit).ok_or(Errno::EBADF)?;
        let old = self.slots.get(at).copied().flatten().map(|e| e.file);
        self.set(at, Entry { file, cloexec });
        Ok(old)
    }

    /// Frees a number; returns its file.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&mut self, fd: Fd) -> Result<FileId, Errno> {
        let entry = self.entry(fd)?;
        let at = fd as usize;
        self.slots[at] = None;
        self.used[at / 64] &= !(1 << (at % 64));
        self.next = self.next.min(at);
        Ok(entry.file)
    }

    /// True if `exec` closes it.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn cloexec(&self, fd: Fd) -> Result<bool, Errno> {
        self.entry(fd).map(|e| e.cloexec)
    }

    /// Says whether `exec` closes it.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn set_cloexec(&mut self, fd: Fd, cloexec: bool) -> Result<(), Errno> {
        self.entry(fd)?;
        self.slots[fd as usize].as_mut().expect("checked above").cloexec = cloexec;
        Ok(())
    }

    /// Sets the limit, at most [`NR_OPEN`]; what is open beyond it stays open.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(NR_OPEN);
    }

    /// The limit.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Open descriptors in order.
    pub fn iter(&self) -> impl Iterator<Item = (Fd, FileId)> + '_ {
        self.slots.iter().enumerate().filter_map(|(i, e)| e.map(|e| (i as Fd, e.file)))
    }

    fn entry(&self, fd: Fd) -> Result<Entry, Errno> {
        let at = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.slots.get(at).copied().flatten().ok_or(Errno::EBADF)
    }

    fn set(&mut self, at: usize, entry: Entry) {
        if self.slots.len() <= at {
            self.slots.resize(at + 1, None);
            self.used.resize(at / 64 + 1, 0);
        }
        self.slots[at] = Some(entry);
        self.used[at / 64] |= 1 << (at % 64);
        if at == self.next {
            self.next = at + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Do {
        Install(Fd, bool),
        Replace(Fd),
        Remove(Fd),
        Cloexec(Fd, bool),
    }

    fn operation() -> impl Strategy<Value = Do> {
        prop_oneof![
            (prop_oneof![3 => Just(0), 1 => -1..150i32], any::<bool>()).prop_map(|(f, c)| Do::Install(f, c)),
            (-1..150i32).prop_map(Do::Replace),
            (-1..150i32).prop_map(Do::Remove),
            (-1..150i32, any::<bool>()).prop_map(|(f, c)| Do::Cloexec(f, c)),
        ]
    }

    proptest! {
        #[test]
        fn table_gives_the_lowest_free_number_like_a_plain_map(ops in proptest::collection::vec(operation(), 1..300)) {
            const LIMIT: usize = 100;
            let mut table = FdTable::default();
            table.set_limit(LIMIT);
            let mut model: BTreeMap<Fd, (FileId, bool)> = BTreeMap::new();
            for (i, op) in ops.into_iter().enumerate() {
                let file = FileId(i as u32);
                match op {
                    Do::Install(from, c) => {
                        let want = (from.max(0)..).find(|fd| !model.contains_key(fd)).filter(|&fd| (fd as usize) < LIMIT);
                        prop_assert_eq!(table.install(file, c, from), want.ok_or(Errno::EMFILE));
                        if let Some(fd) = want {
                            model.insert(fd, (file, c));
                        }
                    }
                    Do::Replace(fd) if fd < 0 || fd as usize >= LIMIT => {
                        prop_assert_eq!(table.replace(fd, file, false), Err(Errno::EBADF));
                    }
                    Do::Replace(fd) => {
                        prop_assert_eq!(table.replace(fd, file, false), Ok(model.insert(fd, (file, false)).map(|e| e.0)));
                    }
                    Do::Remove(fd) => {
                        prop_assert_eq!(table.remove(fd), model.remove(&fd).map(|e| e.0).ok_or(Errno::EBADF));
                    }
                    Do::Cloexec(fd, c) => {
                        prop_assert_eq!(table.set_cloexec(fd, c).is_ok(), model.contains_key(&fd));
                        if let Some(e) = model.get_mut(&fd) {
                            e.1 = c;
                        }
                    }
                }
                for fd in -1..150 {
                    prop_assert_eq!(table.get(fd).ok(), model.get(&fd).map(|e| e.0));
                    prop_assert_eq!(table.cloexec(fd).ok(), model.get(&fd).map(|e| e.1));
                }
            }
        }
    }
}
