//! Descriptors and sockets as files.
//!
//! Three levels, as in Linux. A *descriptor* is a number in a task's table
//! ([`fd::FdTable`]), with its close-on-exec flag; threads share a table, `fork`
//! copies it. A *file* (`struct file`) is what is open: `dup` and `fork` make further
//! references to the same file, so its status flags are shared. Behind it stands
//! the *object*: a socket or an epoll instance; it goes with the last reference
//! of its file, and so does every epoll item that watches the file. A blocked
//! call holds a reference: closing the descriptor under it does not end it.
//!
//! Payload goes through `msg.rs`, addresses and connections through `af_inet.rs`, closing through `release.rs`,
//! options through `sockopt.rs`; `info.rs` is what `ss` shows.

pub(crate) mod af_inet;
mod devs;
pub(crate) mod ethtool;
pub mod fd;
mod fown;
mod ifioctl;
mod ifset;
pub(crate) mod info;
mod ipopt;
pub mod mcast;
pub(crate) mod mmsg;
pub(crate) mod msg;
pub mod netlink;
mod optkept;
pub(crate) mod optnum;
mod optraw;
pub mod procfs;
pub(crate) mod release;
mod rtioctl;
mod sockopt;
pub mod sysfs;

pub use info::SocketInfo;

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::sock::{Sock, SockId};
use crate::syscall::Fd;
use crate::wait::queue::PollEvents;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use fd::{FdTable, FilesId};

/// `O_NONBLOCK`, also as `SOCK_NONBLOCK`.
pub const O_NONBLOCK: i32 = 0o4000;
/// `O_CLOEXEC`, also as `SOCK_CLOEXEC` and `EPOLL_CLOEXEC`: known, and without effect. Tasks of this kernel do not `exec`; where
/// programs do, their descriptors are the machine's.
pub const O_CLOEXEC: i32 = 0o2_000_000;
pub(crate) const O_RDWR: i32 = 2;
pub(crate) const O_APPEND: i32 = 0o2000;
pub(crate) const O_ASYNC: i32 = 0o20000;

/// Number of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// What stands behind a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A socket.
    Socket(SockId),
    /// An epoll instance.
    Epoll(u32),
}

/// An open file (Linux `struct file`).
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) kind: FileKind,
    /// Descriptors and blocked calls that refer to it.
    refs: u32,
    /// Status flags (`F_GETFL`).
    pub(crate) flags: i32,
    /// Epoll items that watch it: instance and item (`f_ep`).
    pub(crate) watchers: Vec<(u32, u32)>,
    /// Who gets its signals.
    pub(crate) fown: fown::Fown,
    /// Number of its inode; 0: the socket's own number.
    inode: u32,
}

/// Descriptor tables and open files of all tasks.
#[derive(Debug, Default)]
pub struct Vfs {
    files: Vec<Option<File>>,
    free: Vec<u32>,
    tables: Vec<Option<(FdTable, u32)>>,
    free_tables: Vec<u32>,
    /// Multicast groups joined on an interface, and by how many sockets.
    pub(crate) groups: BTreeMap<(Ipv4Addr, u32), u32>,
}

impl Vfs {
    /// An open file with one reference.
    pub(crate) fn open(&mut self, kind: FileKind, flags: i32) -> FileId {
        let file = File { kind, refs: 1, flags: O_RDWR | flags & O_NONBLOCK, watchers: Vec::new(), fown: fown::Fown::default(), inode: 0 };
        let index = self.free.pop().unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() as u32 - 1
        });
        self.files[index as usize] = Some(file);
        FileId(index)
    }

    /// An open file.
    pub(crate) fn file(&self, id: FileId) -> &File {
        self.files[id.0 as usize].as_ref().expect("a referenced file is open")
    }

    /// As [`Self::file`], to change it.
    pub(crate) fn file_mut(&mut self, id: FileId) -> &mut File {
        self.files[id.0 as usize].as_mut().expect("a referenced file is open")
    }

    /// One more reference (Linux `get_file`).
    pub(crate) fn get_file(&mut self, id: FileId) {
        self.file_mut(id).refs += 1;
    }

    /// True if there is one reference only.
    fn is_last(&self, id: FileId) -> bool {
        self.file(id).refs == 1
    }

    /// True if calls on the file do not block.
    pub(crate) fn nonblock(&self, id: FileId) -> bool {
        self.file(id).flags & O_NONBLOCK != 0
    }

    /// An empty table with one user.
    pub(crate) fn new_files(&mut self) -> FilesId {
        self.add_table(FdTable::default())
    }

    /// One more user of a table.
    pub(crate) fn share_files(&mut self, id: FilesId) {
        self.tables[id.0 as usize].as_mut().expect("a task's table exists").1 += 1;
    }

    /// A copy of a table: the same open files.
    pub(crate) fn copy_files(&mut self, id: FilesId) -> FilesId {
        let table = self.table(id).clone();
        for (_, file) in table.iter() {
            self.get_file(file);
        }
        self.add_table(table)
    }

    /// A descriptor table.
    pub(crate) fn table(&self, id: FilesId) -> &FdTable {
        &self.tables[id.0 as usize].as_ref().expect("a task's table exists").0
    }

    /// As [`Self::table`], to change it.
    pub(crate) fn table_mut(&mut self, id: FilesId) -> &mut FdTable {
        &mut self.tables[id.0 as usize].as_mut().expect("a task's table exists").0
    }

    fn add_table(&mut self, table: FdTable) -> FilesId {
        let index = self.free_tables.pop().unwrap_or_else(|| {
            self.tables.push(None);
            self.tables.len() as u32 - 1
        });
        self.tables[index as usize] = Some((table, 1));
        FilesId(index)
    }
}

impl Kernel {
    /// The table of a task.
    pub(crate) fn fd_table(&mut self, task: TaskId) -> &mut FdTable {
        let files = self.tasks.get(task).expect("the calling task exists").files;
        self.vfs.table_mut(files)
    }

    /// The file behind a task's descriptor.
    pub(crate) fn fget(&self, task: TaskId, fd: Fd) -> Result<FileId, Errno> {
        let files = self.tasks.get(task).ok_or(Errno::EBADF)?.files;
        self.vfs.table(files).get(fd)
    }

    /// The socket behind a task's descriptor.
    pub(crate) fn fget_sock(&self, task: TaskId, fd: Fd) -> Result<(FileId, SockId), Errno> {
        let file = self.fget(task, fd)?;
        match self.vfs.file(file).kind {
            FileKind::Socket(id) => Ok((file, id)),
            FileKind::Epoll(_) => Err(Errno::ENOTSOCK),
        }
    }

    /// Sets how many descriptors a task may have (`RLIMIT_NOFILE`), at most [`fd::NR_OPEN`].
    pub fn set_fd_limit(&mut self, task: TaskId, limit: usize) {
        if self.tasks.get(task).is_some() {
            self.fd_table(task).set_limit(limit);
        }
    }

    /// Drops a reference; the last one closes what is behind (Linux `fput`).
    pub(crate) fn fput(&mut self, id: FileId) {
        if !self.vfs.is_last(id) {
            self.vfs.file_mut(id).refs -= 1;
            return;
        }
        match self.release_file(id) {
            FileKind::Socket(sock) => self.inet_release(sock),
            FileKind::Epoll(epoll) => self.ep_free(epoll),
        }
    }

    /// Takes a file away on its last reference, and what watches it; the object behind it is left to the caller.
    fn release_file(&mut self, id: FileId) -> FileKind {
        let file = self.vfs.file_mut(id);
        let kind = file.kind;
        for (epoll, item) in core::mem::take(&mut file.watchers) {
            self.ep_remove_item(epoll, item);
        }
        if let FileKind::Socket(sock) = kind
            && let Some(sk) = self.socks.get_mut(sock)
        {
            // What still comes for it is nobody's business, least of all of who has the file's number next (Linux `sock_orphan`).
            (sk.file, sk.fasync) = (None, false);
        }
        self.vfs.files[id.0 as usize] = None;
        self.vfs.free.push(id.0);
        kind
    }

    /// Drops a user of a table; the last one closes its descriptors.
    pub(crate) fn put_files(&mut self, id: FilesId) {
        let slot = self.vfs.tables[id.0 as usize].as_mut().expect("a task's table exists");
        slot.1 -= 1;
        if slot.1 > 0 {
            return;
        }
        let (table, _) = self.vfs.tables[id.0 as usize].take().expect("checked above");
        self.vfs.free_tables.push(id.0);
        for (_, file) in table.iter() {
            self.fput(file);
        }
    }

    /// `dup`, `dup2`, `dup3`, `F_DUPFD`.
    pub(crate) fn sys_dup(&mut self, task: TaskId, old: Fd, new: Result<Fd, Fd>) -> Result<Fd, Errno> {
        let file = self.fget(task, old)?;
        let table = self.fd_table(task);
        let fd = match new {
            Ok(fd) if fd == old => return Ok(fd),
            Ok(fd) => {
                let gone = table.replace(fd, file)?;
                self.vfs.get_file(file);
                if let Some(gone) = gone {
                    self.fput(gone);
                }
                return Ok(fd);
            }
            Err(from) if from < 0 || from as usize >= table.limit() => return Err(Errno::EINVAL),
            Err(from) => table.install(file, from)?,
        };
        self.vfs.get_file(file);
        Ok(fd)
    }

    /// `F_GETFL`.
    pub(crate) fn sys_getfl(&self, task: TaskId, fd: Fd) -> Result<i32, Errno> {
        Ok(self.vfs.file(self.fget(task, fd)?).flags)
    }

    /// Gives an open file the inode number that programs find elsewhere: where a descriptor is the machine's, `fstat`
    /// and `/proc/PID/fd` show the machine's.
    pub fn set_inode(&mut self, task: TaskId, fd: Fd, inode: u32) {
        if let Ok(file) = self.fget(task, fd) {
            self.vfs.file_mut(file).inode = inode;
        }
    }

    /// The number that a program finds with `fstat` and in `/proc/PID/fd`; 0 when no descriptor is left.
    pub(crate) fn sock_inode(&self, sk: &Sock) -> u32 {
        let file = sk.file.and_then(|file| self.vfs.files.get(file.0 as usize)?.as_ref());
        match file.filter(|file| file.kind == FileKind::Socket(sk.id)) {
            Some(file) if file.inode != 0 => file.inode,
            Some(_) => sk.id.0,
            None => 0,
        }
    }

    /// Readiness of a file (Linux `vfs_poll`), without registering anywhere.
    pub(crate) fn file_poll(&mut self, file: FileId) -> PollEvents {
        match self.vfs.file(file).kind {
            FileKind::Socket(id) => self.sock_poll(id),
            FileKind::Epoll(epoll) => self.ep_eventpoll_poll(epoll),
        }
    }
}
