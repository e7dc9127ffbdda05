//! The listener of a filter: receiving notifications, answering them (`seccomp_unotify(2)`).

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

/// A trapped call (Linux `struct seccomp_notif`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Notif {
    /// Cookie of the call; never used twice.
    pub id: u64,
    /// The calling thread, as this process sees it.
    pub tid: u32,
    flags: u32,
    /// Number of the call.
    pub nr: i32,
    arch: u32,
    /// Where the program made it.
    pub ip: u64,
    /// Arguments.
    pub args: [u64; 6],
}

/// `AUDIT_ARCH_I386`.
const ARCH_I386: u32 = 0x4000_0003;

impl Notif {
    /// True if the call is one of i386: its number and arguments mean something else.
    pub fn is_i386(&self) -> bool {
        self.arch == ARCH_I386
    }
}

#[repr(C)]
struct Resp {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

const fn request(dir: u64, nr: u64, size: usize) -> libc::Ioctl {
    (dir << 30 | (size as u64) << 16 | 0x21 << 8 | nr) as libc::Ioctl
}

const RECV: libc::Ioctl = request(3, 0, size_of::<Notif>());
const SEND: libc::Ioctl = request(3, 1, size_of::<Resp>());
const ID_VALID: libc::Ioctl = request(1, 2, size_of::<u64>());
const ADDFD: libc::Ioctl = request(1, 3, size_of::<AddFd>());
const SET_FLAGS: libc::Ioctl = request(1, 4, size_of::<u64>());

const FLAG_CONTINUE: u32 = 1;
const ADDFD_SETFD: u32 = 1;
const ADDFD_SEND: u32 = 2;
/// Hand the CPU over with the answer.
const SYNC_WAKE_UP: u64 = 1;

/// The supervisor's end of a filter.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Takes a listener's descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        let this = Self(fd);
        // SAFETY: SET_FLAGS takes its argument by value. Kernels before 6.6 refuse it: then wake-ups are ordinary ones.
        let _ = unsafe { libc::ioctl(this.0.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
        this
    }

    /// Receives a call. Only after `epoll` has reported one: else it blocks.
    ///
    /// # Errors
    /// `ENOENT` if the call was interrupted meanwhile.
    pub fn recv(&self) -> Result<Notif, Errno> {
        let mut notif = Notif::default();
        self.ioctl(RECV, &raw mut notif as usize)?;
        Ok(notif)
    }

    /// Answers with a value or a negative error number.
    ///
    /// # Errors
    /// `ENOENT` if the call was interrupted meanwhile.
    pub fn send(&self, id: u64, val: i64) -> Result<(), Errno> {
        let resp = match val {
            -4095..0 => Resp { id, val: 0, error: val as i32, flags: 0 },
            _ => Resp { id, val, error: 0, flags: 0 },
        };
        self.ioctl(SEND, &raw const resp as usize).map(drop)
    }

    /// Lets the machine's kernel execute the call.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_continue(&self, id: u64) -> Result<(), Errno> {
        let resp = Resp { id, val: 0, error: 0, flags: FLAG_CONTINUE };
        self.ioctl(SEND, &raw const resp as usize).map(drop)
    }

    /// Gives the caller a copy of `fd` at the lowest free number and answers with it, at once.
    ///
    /// # Errors
    /// `EMFILE` if the caller has no number left, `ENOENT` as [`Self::send`].
    pub fn inject(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> Result<i32, Errno> {
        self.addfd(id, ADDFD_SEND, fd, 0, cloexec)
    }

    /// Replaces the caller's descriptor `at` by a copy of `fd`. The call goes on.
    ///
    /// # Errors
    /// As [`Self::inject`].
    pub fn replace(&self, id: u64, fd: BorrowedFd<'_>, at: i32, cloexec: bool) -> Result<i32, Errno> {
        self.addfd(id, ADDFD_SETFD, fd, at as u32, cloexec)
    }

    /// True if the call still waits for its answer.
    pub fn is_valid(&self, id: u64) -> bool {
        self.ioctl(ID_VALID, &raw const id as usize).is_ok()
    }

    fn addfd(&self, id: u64, flags: u32, fd: BorrowedFd<'_>, newfd: u32, cloexec: bool) -> Result<i32, Errno> {
        let newfd_flags = if cloexec { libc::O_CLOEXEC as u32 } else { 0 };
        let add = AddFd { id, flags, srcfd: fd.as_raw_fd() as u32, newfd, newfd_flags };
        self.ioctl(ADDFD, &raw const add as usize)
    }

    fn ioctl(&self, request: libc::Ioctl, arg: usize) -> Result<i32, Errno> {
        loop {
            // SAFETY: `arg` is the address of the structure whose size is part of `request`; it lives on the
            // caller's stack until the call returns, and nobody else has it.
            let n = unsafe { libc::ioctl(self.0.as_raw_fd(), request, arg) };
            if n >= 0 {
                return Ok(n);
            }
            match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                Some(errno) => return Err(errno),
                None => return Err(Errno::IO),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
