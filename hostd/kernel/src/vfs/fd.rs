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

/// A descriptor table.
#[derive(Debug, Clone)]
pub struct FdTable {
    slots: Vec<Option<FileId>>,
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
        let at = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.slots.get(at).copied().flatten().ok_or(Errno::EBADF)
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
    pub fn install(&mut self, file: FileId, from: Fd) -> Result<Fd, Errno> {
        let fd = self.unused(from)?;
        self.set(fd as usize, file);
        Ok(fd)
    }

    /// Gives a file exactly the number `fd`; returns the file that had it (`dup2`).
    ///
    /// # Errors
    /// `EBADF` if the number is negative or beyond the limit.
    pub fn replace(&mut self, fd: Fd, file: FileId) -> Result<Option<FileId>, Errno> {
        let at = usize::try_from(fd).ok().filter(|&n| n < self.limit).ok_or(Errno::EBADF)?;
        let old = self.slots.get(at).copied().flatten();
        self.set(at, file);
        Ok(old)
    }

    /// Frees a number; returns its file.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&mut self, fd: Fd) -> Result<FileId, Errno> {
        let file = self.get(fd)?;
        let at = fd as usize;
        self.slots[at] = None;
        self.used[at / 64] &= !(1 << (at % 64));
        self.next = self.next.min(at);
        Ok(file)
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
        self.slots.iter().enumerate().filter_map(|(i, file)| file.map(|file| (i as Fd, file)))
    }

    fn set(&mut self, at: usize, file: FileId) {
        if self.slots.len() <= at {
            self.slots.resize(at + 1, None);
            self.used.resize(at / 64 + 1, 0);
        }
        self.slots[at] = Some(file);
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
        Install(Fd),
        Replace(Fd),
        Remove(Fd),
    }

    fn operation() -> impl Strategy<Value = Do> {
        prop_oneof![
            prop_oneof![3 => Just(0), 1 => -1..150i32].prop_map(Do::Install),
            (-1..150i32).prop_map(Do::Replace),
            (-1..150i32).prop_map(Do::Remove),
        ]
    }

    proptest! {
        #[test]
        fn table_gives_the_lowest_free_number_like_a_plain_map(ops in proptest::collection::vec(operation(), 1..300)) {
            const LIMIT: usize = 100;
            let mut table = FdTable::default();
            table.set_limit(LIMIT);
            let mut model: BTreeMap<Fd, FileId> = BTreeMap::new();
            for (i, op) in ops.into_iter().enumerate() {
                let file = FileId(i as u32);
                match op {
                    Do::Install(from) => {
                        let want = (from.max(0)..).find(|fd| !model.contains_key(fd)).filter(|&fd| (fd as usize) < LIMIT);
                        prop_assert_eq!(table.install(file, from), want.ok_or(Errno::EMFILE));
                        if let Some(fd) = want {
                            model.insert(fd, file);
                        }
                    }
                    Do::Replace(fd) if fd < 0 || fd as usize >= LIMIT => {
                        prop_assert_eq!(table.replace(fd, file), Err(Errno::EBADF));
                    }
                    Do::Replace(fd) => {
                        prop_assert_eq!(table.replace(fd, file), Ok(model.insert(fd, file)));
                    }
                    Do::Remove(fd) => {
                        prop_assert_eq!(table.remove(fd), model.remove(&fd).ok_or(Errno::EBADF));
                    }
                }
                for fd in -1..150 {
                    prop_assert_eq!(table.get(fd).ok(), model.get(&fd).copied());
                }
            }
        }
    }
}
