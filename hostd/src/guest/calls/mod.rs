//! Trapped calls: from registers to the kernel model's [`Call`]s, and back.
//!
//! A handler decides who executes the call: the machine's kernel ([`Outcome::Continue`]), the supervisor itself
//! ([`Outcome::Done`]), or the model ([`Outcome::Call`]); then [`Finish`] says what to do with what it returns.

mod address;
mod aio;
mod fdops;
mod finish;
mod io;
mod sock;
mod splice;
mod stage;
mod transfer;

use super::Guests;
use super::fds::Kind;
use super::filter::{PATHS, changes};
use super::notify::{Listener, Notif};
use super::table::Caller;
use crate::guest::epoll::{Change, EpollFinish};
use crate::guest::poll::PollFinish;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::Call;
use std::rc::Rc;

pub use io::read_iov;
pub use splice::Splice;
pub use stage::Stage;
pub use transfer::Transfer;

/// Who executes a call.
#[derive(Debug)]
pub enum Outcome {
    /// The machine's kernel.
    Continue,
    /// Nobody: this is the answer.
    Done(i64),
    /// The model.
    Call(Call, Finish),
    /// It is answered already, or waits.
    Taken,
}

/// What remains to be done when the model has returned.
#[derive(Debug)]
pub enum Finish {
    /// Answer with the number.
    Value,
    /// A new socket.
    Socket {
        /// `SOCK_CLOEXEC`.
        cloexec: bool,
    },
    /// A new connection.
    Accept {
        /// Where the peer's address goes.
        addr: u64,
        /// Where its length stands.
        len: u64,
        /// `SOCK_CLOEXEC`.
        cloexec: bool,
    },
    /// `getsockname`, `getpeername`.
    Addr {
        /// Where it goes.
        addr: u64,
        /// Where its length stands.
        len: u64,
    },
    /// `recvfrom`.
    From {
        /// Where the sender's address goes.
        addr: u64,
        /// Where its length stands.
        len: u64,
    },
    /// `recvmsg`: address of the `msghdr`.
    Msg(u64),
    /// `sendmmsg`: address of the messages.
    Sent(u64),
    /// `recvmmsg`.
    Mmsg {
        /// Address of the messages.
        at: u64,
        /// Where the rest of the time goes; 0: nowhere.
        timeout: u64,
    },
    /// `getsockopt`.
    Opt {
        /// Where the value goes.
        val: u64,
        /// Where its length stands.
        len: u64,
    },
    /// `ioctl` that writes its argument back there.
    Bytes(u64),
    /// `SIOCGIFCONF`.
    IfConf {
        /// The structure.
        at: u64,
        /// Its buffer.
        buf: u64,
    },
    /// `F_GETOWN_EX`: where it goes.
    Owner(u64),
    /// `close` that lingers: the machine's kernel closes the descriptor afterwards.
    Closed,
    /// `epoll_ctl` of a socket.
    Change(Change),
    /// `epoll_wait`.
    Epoll(EpollFinish),
    /// `epoll_wait` that the machine's kernel makes: the model's part of the set, by its number.
    Bell(u32),
    /// `poll`, `select`.
    Poll(Box<PollFinish>),
    /// `sendfile`.
    Transfer(Box<Transfer>),
    /// `splice`.
    Splice(Box<Splice>),
}

type Result<T> = core::result::Result<T, Errno>;

impl Guests {
    /// Decides on a call.
    pub(super) fn dispatch(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome> {
        let a = &n.args;
        let fd = a[0] as i32;
        match i64::from(n.nr) {
            _ if Self::is_window_call(n) => self.sys_window(shared, c, listener, n),
            libc::SYS_socket => Ok(Self::sys_socket(a)),
            libc::SYS_socketpair => Err(Errno::EOPNOTSUPP),
            libc::SYS_epoll_create1 => self.sys_epoll_create(shared, c, listener, n, a[0] as i32),
            libc::SYS_epoll_create if fd <= 0 => Err(Errno::EINVAL),
            libc::SYS_epoll_create => self.sys_epoll_create(shared, c, listener, n, 0),
            libc::SYS_epoll_ctl => self.sys_epoll_ctl(shared, c, a),
            libc::SYS_ppoll if a[3] != 0 => self.sys_masked(shared, c, listener, n),
            libc::SYS_pselect6 if a[5] != 0 => self.sys_masked(shared, c, listener, n),
            libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 if a[4] != 0 => self.sys_masked(shared, c, listener, n),
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => self.sys_epoll_wait(shared, c, listener, n),
            libc::SYS_poll | libc::SYS_ppoll => self.sys_poll(shared, c, listener, n),
            libc::SYS_select | libc::SYS_pselect6 => self.sys_select(shared, c, listener, n),
            libc::SYS_close => self.sys_close(shared, c, listener, n),
            libc::SYS_dup2 | libc::SYS_dup3 => Ok(self.sys_dup_onto(c, a)),
            libc::SYS_close_range => Ok(self.sys_close_range(c, a)),
            libc::SYS_execve | libc::SYS_execveat => Ok(self.sys_exec(c)),
            libc::SYS_clone | libc::SYS_unshare => Ok(self.sys_split()),
            libc::SYS_exit | libc::SYS_exit_group => {
                match listener.send_continue(n.id) {
                    Ok(()) => self.end_thread(shared, c.tid),
                    // A handler runs before it ends.
                    Err(_) => self.keep_unmade(shared, c, n),
                }
                Ok(Outcome::Taken)
            }
            libc::SYS_rt_sigreturn => {
                self.sys_sigreturn(c, n);
                Ok(Outcome::Continue)
            }
            libc::SYS_uname => self.sys_uname(shared, c, a[0]),
            libc::SYS_open => self.sys_open(shared, c, listener, n, (libc::AT_FDCWD, a[0], a[1] as i32)),
            libc::SYS_openat => self.sys_open(shared, c, listener, n, (fd, a[1], a[2] as i32)),
            libc::SYS_openat2 => self.sys_openat2(shared, c, listener, n),
            libc::SYS_creat => {
                self.sys_open(shared, c, listener, n, (libc::AT_FDCWD, a[0], libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC))
            }
            libc::SYS_io_submit => self.sys_io_submit(c, n),
            nr if PATHS.contains(&nr) => self.sys_path(shared, c, n),
            nr if changes(nr) => self.sys_change(shared, c, n),
            libc::SYS_sendfile => self.sys_sendfile(shared, c, listener, n),
            libc::SYS_mmap => match self.kind(c, a[4] as i32) {
                Kind::Modelled(handle) => self.sys_mmap(shared, c, listener, n, handle),
                _ => Ok(Outcome::Continue),
            },
            libc::SYS_splice => self.sys_splice(shared, c, listener, n),
            _ => match self.kind(c, fd) {
                // The machine's kernel knows best what is wrong with it.
                Kind::Real if i64::from(n.nr) == libc::SYS_ioctl => self.sys_ioctl_real(shared, c, a),
                Kind::Real if matches!(i64::from(n.nr), libc::SYS_sendmsg | libc::SYS_sendmmsg) => {
                    self.note_passing(c, n);
                    Ok(Outcome::Continue)
                }
                Kind::File(file) if i64::from(n.nr) == libc::SYS_write => self.write_file(shared, c, file, (a[1], a[2])),
                // The C library musl writes so: the value in one of two pieces.
                Kind::File(file) if i64::from(n.nr) == libc::SYS_writev => self.writev_file(shared, c, file, a),
                Kind::Foreign => Err(Errno::EACCES),
                Kind::None | Kind::Real | Kind::Epoll(_) | Kind::File(_) => Ok(Outcome::Continue),
                Kind::Modelled(handle) => self.on_modelled(shared, c, n, handle),
            },
        }
    }

    /// A call whose first argument is a modelled file.
    fn on_modelled(&mut self, shared: &Shared, c: Caller, n: &Notif, handle: i32) -> Result<Outcome> {
        let a = &n.args;
        match i64::from(n.nr) {
            libc::SYS_read => Self::sys_read(handle, a),
            libc::SYS_write => Self::sys_write(handle, a),
            libc::SYS_readv => Self::sys_readv(c, handle, a[1], a[2]),
            libc::SYS_writev => Self::sys_writev(c, handle, a[1], a[2]),
            // Only at the current position, which a socket does not have.
            libc::SYS_preadv2 if a[3] as i64 == -1 => Self::sys_readv(c, handle, a[1], a[2]),
            libc::SYS_pwritev2 if a[3] as i64 == -1 => Self::sys_writev(c, handle, a[1], a[2]),
            libc::SYS_preadv2 | libc::SYS_pwritev2 => Err(Errno::ESPIPE),
            libc::SYS_sendto => Self::sys_sendto(shared, c, handle, a),
            libc::SYS_recvfrom => Self::sys_recvfrom(handle, a),
            libc::SYS_sendmsg => Self::sys_sendmsg(shared, c, handle, a[1], a[2] as u32),
            libc::SYS_recvmsg => Self::sys_recvmsg(c, handle, a[1], a[2] as u32),
            libc::SYS_sendmmsg => Self::sys_sendmmsg(shared, c, handle, a),
            libc::SYS_recvmmsg => Self::sys_recvmmsg(c, handle, a),
            libc::SYS_connect => Self::sys_connect(shared, c, handle, a),
            libc::SYS_bind => Self::sys_bind(shared, c, handle, a),
            libc::SYS_listen => Ok(Outcome::Call(Call::Listen(handle, a[1] as i32), Finish::Value)),
            libc::SYS_accept => self.sys_accept(shared, c, handle, a, 0),
            libc::SYS_accept4 => self.sys_accept(shared, c, handle, a, a[3] as i32),
            libc::SYS_getsockname => Ok(Outcome::Call(Call::GetSockName(handle), Finish::Addr { addr: a[1], len: a[2] })),
            libc::SYS_getpeername => Ok(Outcome::Call(Call::GetPeerName(handle), Finish::Addr { addr: a[1], len: a[2] })),
            libc::SYS_shutdown => Self::sys_shutdown(handle, a[1] as i32),
            libc::SYS_setsockopt => Self::sys_setsockopt(shared, c, handle, a),
            libc::SYS_getsockopt => Self::sys_getsockopt(c, handle, a),
            libc::SYS_fcntl => self.sys_fcntl(c, handle, a),
            libc::SYS_ioctl => self.sys_ioctl(c, handle, a),
            nr => {
                self.unimplemented(n.nr, 0, format_args!("system call {nr} on a socket"));
                Err(Errno::EOPNOTSUPP)
            }
        }
    }
}
