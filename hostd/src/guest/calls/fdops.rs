//! Calls on descriptors as such: closing, duplicating, flags; `exec`; who the host is.

use super::{Finish, Outcome, Result};
use crate::guest::Guests;
use crate::guest::decode::{u32_at, u64_at};
use crate::guest::fds::{Kind, Link, look};
use crate::guest::filter::{I386_EXECS, I386_EXITS};
use crate::guest::notify::{Listener, Notif};
use crate::guest::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::ioctl::{self, Arg};
use ringlab_kernel::syscall::signal::Owner;
use ringlab_kernel::syscall::{Call, Ret};
use rustix::fd::AsFd;
use std::rc::Rc;

const CLOSE_RANGE_UNSHARE: u32 = 2;
const CLOSE_RANGE_CLOEXEC: u32 = 4;
const F_SETOWN: i32 = 8;
const F_GETOWN: i32 = 9;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
/// `ioctl` requests about routes, interfaces and neighbours.
const IF_FIRST: u32 = 0x890b;
const IF_LAST: u32 = 0x89ff;
/// Octets of a field of `struct utsname`, and of all six.
const UTS_FIELD: usize = 65;
const UTSNAME: usize = 6 * UTS_FIELD;

impl Guests {
    /// The machine's kernel closes the descriptor; if that was the last reference, the model's file follows.
    pub(super) fn sys_close(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif) -> Result<Outcome> {
        let fd = n.args[0] as i32;
        match self.kind(c, fd) {
            Kind::Modelled(handle) if shared.kernel().lingers(c.task, handle) => return self.close_lingering(c, listener, n, handle),
            Kind::Epoll(_) => self.sets.suspect(),
            _ => {}
        }
        self.note_close(c, fd);
        Ok(Outcome::Continue)
    }

    /// A descriptor that stands for nothing takes the place of the socket's: then it shows whether that was the last one.
    fn close_lingering(&mut self, c: Caller, listener: &Rc<Listener>, n: &Notif, handle: i32) -> Result<Outcome> {
        let fd = n.args[0] as i32;
        self.note_close(c, fd);
        let Ok(dummy) = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC) else { return Ok(Outcome::Continue) };
        if listener.replace(n.id, dummy.as_fd(), fd, true).is_err() || !self.placeholders.is_gone(handle) {
            return Ok(Outcome::Continue);
        }
        self.closing.retain(|c| c.1 != handle);
        self.placeholders.remove(handle);
        Ok(Outcome::Call(Call::Close(handle), Finish::Closed))
    }

    pub(super) fn sys_dup_onto(&mut self, c: Caller, a: &[u64; 6]) -> Outcome {
        let (old, new) = (a[0] as i32, a[1] as i32);
        if old != new {
            if let Kind::Epoll(_) = self.kind(c, new) {
                self.sets.suspect();
            }
            self.note_close(c, new);
        }
        Outcome::Continue
    }

    /// `clone`, `unshare`: from here on descriptors are not a process's.
    pub(super) fn sys_split(&mut self) -> Outcome {
        self.untold = true;
        self.darken_windows();
        Outcome::Continue
    }

    /// A call of i386 that changes descriptors or ends a thread: the machine's kernel makes it. A hang-up of the placeholder tells
    /// of what it closes.
    pub(in crate::guest) fn on_i386(&mut self, shared: &Shared, c: Caller, listener: &Listener, n: &Notif) {
        self.untold = true;
        self.darken_windows();
        self.sets.suspect();
        if I386_EXECS.contains(&n.nr) {
            self.sys_exec(c);
        } else if I386_EXITS.contains(&n.nr) {
            self.end_thread(shared, c.tid);
        }
        // Interrupted before, it is made again or it is not: nothing of it is kept.
        let _ = listener.send_continue(n.id);
    }

    pub(super) fn sys_close_range(&mut self, c: Caller, a: &[u64; 6]) -> Outcome {
        let (first, last, flags) = (a[0] as u32, a[1] as u32, a[2] as u32);
        self.untold |= flags & CLOSE_RANGE_UNSHARE != 0;
        if flags & CLOSE_RANGE_CLOEXEC == 0 {
            self.sets.suspect();
            self.forget_mappings(c.tgid, first, last);
            if let Some(proc) = self.procs.get_mut(&c.tgid) {
                let gone = proc.cache.closing_range(first, last, c.tid);
                self.closing.extend(gone.into_iter().map(|handle| (c.tid, handle)));
            }
        }
        Outcome::Continue
    }

    pub(super) fn sys_exec(&mut self, c: Caller) -> Outcome {
        if let Some(proc) = self.procs.get_mut(&c.tgid) {
            proc.execs.push(c.tid);
        }
        self.sets.suspect();
        Outcome::Continue
    }

    pub(super) fn sys_fcntl(&mut self, c: Caller, handle: i32, a: &[u64; 6]) -> Result<Outcome> {
        let value = a[2] as i32;
        let call = match a[1] as i32 {
            libc::F_GETFL => Call::GetFl(handle),
            libc::F_SETFL => Call::SetFl(handle, value),
            F_SETOWN => Call::SetOwn(handle, Owner::from_setown(value)),
            F_GETOWN => Call::GetOwn(handle),
            F_SETSIG => Call::SetSig(handle, value),
            F_GETSIG => Call::GetSig(handle),
            F_SETOWN_EX => {
                let mut b = [0; 8];
                c.mem.read(a[2], &mut b)?;
                let pid = u32_at(&b, 4) as i32;
                let owner = match u32_at(&b, 0) {
                    0 => Owner::Thread(pid),
                    1 => Owner::Process(pid),
                    2 => Owner::Group(pid),
                    _ => return Err(Errno::EINVAL),
                };
                Call::SetOwn(handle, (pid != 0).then_some(owner))
            }
            F_GETOWN_EX => return Ok(Outcome::Call(Call::GetOwn(handle), Finish::Owner(a[2]))),
            cmd => {
                self.unimplemented(libc::SYS_fcntl as i32, cmd as u64, format_args!("fcntl command {cmd} on a socket"));
                return Err(Errno::EINVAL);
            }
        };
        Ok(Outcome::Call(call, Finish::Value))
    }

    pub(super) fn sys_ioctl(&mut self, c: Caller, handle: i32, a: &[u64; 6]) -> Result<Outcome> {
        let (request, at) = (a[1] as u32, a[2]);
        match ioctl::arg(request) {
            Some(Arg::Fixed(len)) => {
                let mut arg = vec![0; len];
                c.mem.read(at, &mut arg)?;
                Ok(Outcome::Call(Call::Ioctl(handle, request, arg), Finish::Bytes(at)))
            }
            Some(Arg::IfConf) => {
                let mut conf = [0; 16];
                c.mem.read(at, &mut conf)?;
                let buf = u64_at(&conf, 8);
                let room = (buf != 0).then(|| usize::try_from(u32_at(&conf, 0) as i32).unwrap_or(0));
                Ok(Outcome::Call(Call::IfConf(handle, room), Finish::IfConf { at, buf }))
            }
            Some(Arg::Ethtool) => {
                let mut ifr = [0; ioctl::IFREQ_LEN];
                c.mem.read(at, &mut ifr)?;
                let (name, data) = (ifr[..16].try_into().map_err(|_| Errno::EFAULT)?, u64_at(&ifr, 16));
                let mut head = [0; 16];
                let known = c.mem.read_some(data, &mut head)?;
                let mut arg = vec![0; ioctl::ethtool_len(&head[..known])];
                c.mem.read(data, &mut arg)?;
                Ok(Outcome::Call(Call::Ethtool(handle, name, arg), Finish::Bytes(data)))
            }
            None => {
                self.unimplemented(libc::SYS_ioctl as i32, request.into(), format_args!("ioctl {request:#x} on a socket"));
                Err(Errno::ENOTTY)
            }
        }
    }

    /// An `ioctl` on a real descriptor: `AF_UNIX` sockets are asked for interfaces too, and those are the node's.
    pub(super) fn sys_ioctl_real(&mut self, shared: &Shared, c: Caller, a: &[u64; 6]) -> Result<Outcome> {
        let own = (IF_FIRST..=IF_LAST).contains(&(a[1] as u32)) && matches!(look(c.tid, a[0] as i32), Link::Socket(_));
        if !own {
            return Ok(Outcome::Continue);
        }
        let Some(root) = self.root else { return Ok(Outcome::Continue) };
        let handle = match self.control {
            Some(handle) => handle,
            None => match shared.guest_syscall(root, Call::Socket(libc::AF_INET, libc::SOCK_DGRAM, 0)) {
                Some(Ret::Value(handle)) => *self.control.insert(handle as i32),
                _ => return Err(Errno::ENOTTY),
            },
        };
        self.sys_ioctl(c, handle, a)
    }

    /// `uname`: the machine's, under the node's name.
    pub(super) fn sys_uname(&mut self, shared: &Shared, c: Caller, at: u64) -> Result<Outcome> {
        let machine = rustix::system::uname();
        let hostname = shared.hostname();
        let fields = [
            machine.sysname().to_bytes(),
            hostname.as_bytes(),
            machine.release().to_bytes(),
            machine.version().to_bytes(),
            machine.machine().to_bytes(),
            b"(none)",
        ];
        let mut buf = [0; UTSNAME];
        for (to, field) in buf.chunks_exact_mut(UTS_FIELD).zip(fields) {
            let len = field.len().min(UTS_FIELD - 1);
            to[..len].copy_from_slice(&field[..len]);
        }
        c.mem.write(at, &buf)?;
        Ok(Outcome::Done(0))
    }
}
