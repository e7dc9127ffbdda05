//! Calls that transfer payload between a socket and a program's memory.

use super::address::Use;
use super::{Finish, Outcome, Result};
use crate::guest::Guests;
use crate::guest::decode::msg::{self, MsgHdr};
use crate::guest::decode::timespec;
use crate::guest::memory::Mem;
use crate::guest::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::abi::{SOCKADDR_MAX, SockAddr};
use ringlab_kernel::syscall::{Call, Control, NetlinkAddr, OutMsg, cmsg};
use ringlab_kernel::uaccess::{Iov, UserSlice};

type Args = [u64; 6];

impl Guests {
    pub(super) fn sys_read(handle: i32, a: &Args) -> Result<Outcome> {
        Ok(read(handle, one(a[1], a[2])?))
    }

    pub(super) fn sys_write(handle: i32, a: &Args) -> Result<Outcome> {
        Ok(send(handle, one(a[1], a[2])?, 0))
    }

    pub(super) fn sys_readv(c: Caller, handle: i32, iov: u64, count: u64) -> Result<Outcome> {
        let iov = read_iov(c.mem, iov, count)?;
        Ok(read(handle, iov))
    }

    pub(super) fn sys_writev(c: Caller, handle: i32, iov: u64, count: u64) -> Result<Outcome> {
        Ok(send(handle, read_iov(c.mem, iov, count)?, 0))
    }

    pub(super) fn sys_sendto(shared: &Shared, c: Caller, fd: i32, a: &Args) -> Result<Outcome> {
        let flags = a[3] as u32;
        let iov = one(a[1], a[2])?;
        if a[4] == 0 {
            return Ok(send(fd, iov, flags));
        }
        let Some(to) = Self::address(shared, c, fd, (a[4], a[5] as i32), Use::Send)? else { return Ok(send(fd, iov, flags)) };
        let call = match to {
            SockAddr::Link(to) => Call::SendLink { fd, iov, flags, to },
            SockAddr::Netlink(pid, groups) => Call::SendNetlink { fd, iov, flags, to: NetlinkAddr { pid, groups } },
            to => Call::Send { fd, iov, flags, to: Some(to.inet()?), control: Vec::new() },
        };
        Ok(Outcome::Call(call, Finish::Value))
    }

    pub(super) fn sys_recvfrom(handle: i32, a: &Args) -> Result<Outcome> {
        let call = Call::Recv { fd: handle, iov: one(a[1], a[2])?, flags: a[3] as u32 };
        Ok(Outcome::Call(call, if a[4] == 0 { Finish::Value } else { Finish::From { addr: a[4], len: a[5] } }))
    }

    pub(super) fn sys_sendmsg(shared: &Shared, c: Caller, fd: i32, at: u64, flags: u32) -> Result<Outcome> {
        let out = read_out(shared, c, fd, at)?;
        let call = match out.to {
            Some(SockAddr::Link(to)) => Call::SendLink { fd, iov: out.iov, flags, to },
            Some(SockAddr::Netlink(pid, groups)) => Call::SendNetlink { fd, iov: out.iov, flags, to: NetlinkAddr { pid, groups } },
            Some(to) => Call::Send { fd, iov: out.iov, flags, to: Some(to.inet()?), control: out.control },
            None => Call::Send { fd, iov: out.iov, flags, to: None, control: out.control },
        };
        Ok(Outcome::Call(call, Finish::Value))
    }

    pub(super) fn sys_recvmsg(c: Caller, fd: i32, at: u64, flags: u32) -> Result<Outcome> {
        Ok(Outcome::Call(Call::Recv { fd, iov: read_in(c.mem, at)?, flags }, Finish::Msg(at)))
    }

    pub(super) fn sys_sendmmsg(shared: &Shared, c: Caller, fd: i32, a: &Args) -> Result<Outcome> {
        let mut msgs = Vec::new();
        let mut failed = None;
        for i in 0..u64::from(a[2] as u32).min(msg::MAX_MESSAGES) {
            // A bad message ends the vector: those before it are sent.
            match read_out(shared, c, fd, a[1].wrapping_add(i * msg::MMSGHDR)).and_then(|out| {
                let to = out.to.map(|to| to.inet()).transpose()?;
                Ok(OutMsg { iov: out.iov, to, control: out.control })
            }) {
                Ok(out) => msgs.push(out),
                Err(errno) => {
                    failed = Some(errno);
                    break;
                }
            }
        }
        match failed {
            Some(errno) if msgs.is_empty() => Err(errno),
            _ => Ok(Outcome::Call(Call::SendMmsg { fd, msgs, flags: a[3] as u32 }, Finish::Sent(a[1]))),
        }
    }

    pub(super) fn sys_recvmmsg(c: Caller, fd: i32, a: &Args) -> Result<Outcome> {
        let mut timeout = None;
        if a[4] != 0 {
            let mut buf = [0; 16];
            c.mem.read(a[4], &mut buf)?;
            timeout = Some(timespec(&buf).ok_or(Errno::EINVAL)?);
        }
        let mut iovs = Vec::new();
        for i in 0..u64::from(a[2] as u32).min(msg::MAX_MESSAGES) {
            match read_in(c.mem, a[1].wrapping_add(i * msg::MMSGHDR)) {
                Ok(iov) => iovs.push(iov),
                Err(errno) if iovs.is_empty() => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(Outcome::Call(Call::RecvMmsg { fd, iovs, flags: a[3] as u32, timeout }, Finish::Mmsg { at: a[1], timeout: a[4] }))
    }
}

/// `read` without room ends at once, where `recv` would look for data (Linux `sock_read_iter`).
fn read(fd: i32, iov: Iov) -> Outcome {
    if iov.is_empty() {
        return Outcome::Done(0);
    }
    Outcome::Call(Call::Recv { fd, iov, flags: 0 }, Finish::Value)
}

fn send(fd: i32, iov: Iov, flags: u32) -> Outcome {
    Outcome::Call(Call::Send { fd, iov, flags, to: None, control: Vec::new() }, Finish::Value)
}

fn one(addr: u64, len: u64) -> Result<Iov> {
    let len = len.min(msg::MAX_RW);
    msg::access_ok(addr, len)?;
    Ok(Iov::One(UserSlice { addr, len }))
}

/// Reads buffers of `readv` and its kin.
pub fn read_iov(mem: Mem, addr: u64, count: u64) -> Result<Iov> {
    let count = usize::try_from(count).ok().filter(|&n| n <= msg::MAX_IOV).ok_or(Errno::EINVAL)?;
    let mut small = [0; 8 * msg::IOVEC];
    let mut large = Vec::new();
    let len = count * msg::IOVEC;
    if len > small.len() {
        large.resize(len, 0);
    }
    let buf = if len > small.len() { &mut large[..] } else { &mut small[..len] };
    if len > 0 {
        mem.read(addr, buf)?;
    }
    msg::iovecs(buf)
}

fn read_hdr(mem: Mem, at: u64) -> Result<MsgHdr> {
    let mut buf = [0; msg::MSGHDR];
    mem.read(at, &mut buf)?;
    let hdr = MsgHdr::parse(&buf);
    if hdr.iovlen > msg::MAX_IOV as u64 {
        return Err(Errno::EMSGSIZE);
    }
    Ok(hdr)
}

/// A message to send.
struct Out {
    iov: Iov,
    to: Option<SockAddr>,
    control: Vec<Control>,
}

fn read_out(shared: &Shared, c: Caller, fd: i32, at: u64) -> Result<Out> {
    let mem = c.mem;
    let hdr = read_hdr(mem, at)?;
    let mut to = None;
    if hdr.name != 0 && hdr.namelen != 0 {
        to = Guests::address(shared, c, fd, (hdr.name, hdr.namelen.min(SOCKADDR_MAX as i32)), Use::Send)?;
    }
    let iov = read_iov(mem, hdr.iov, hdr.iovlen)?;
    let mut control = Vec::new();
    if hdr.controllen > 0 {
        let len = usize::try_from(hdr.controllen).ok().filter(|&n| n <= msg::MAX_CONTROL).ok_or(Errno::ENOBUFS)?;
        let mut buf = vec![0; len];
        mem.read(hdr.control, &mut buf)?;
        control = cmsg::parse(&buf)?;
    }
    Ok(Out { iov, to, control })
}

/// Where a message goes.
fn read_in(mem: Mem, at: u64) -> Result<Iov> {
    let hdr = read_hdr(mem, at)?;
    if hdr.name != 0 && hdr.namelen < 0 {
        return Err(Errno::EINVAL);
    }
    read_iov(mem, hdr.iov, hdr.iovlen)
}
