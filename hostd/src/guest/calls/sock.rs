//! The socket family: addresses and options.

use super::address::Use;
use super::{Finish, Outcome, Result};
use crate::guest::Guests;
use crate::guest::decode::{u32_at, u64_at};
use crate::guest::memory::Mem;
use crate::guest::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::abi::SockAddr;
use ringlab_kernel::syscall::{Call, NetlinkAddr, PollFd, Ret, Shutdown};
use ringlab_kernel::wait::queue::PollEvents;
use std::time::Duration;

type Args = [u64; 6];

/// Most octets of an option.
const MAX_OPTION: usize = 4096;
/// Most instructions of a socket filter (`BPF_MAXINSNS`).
const MAX_FILTER: usize = 4096;
const SOL_PACKET: i32 = 263;
const PACKET_RX_RING: i32 = 5;

impl Guests {
    /// Every family but `AF_UNIX`: the model knows which there are.
    pub(super) fn sys_socket(a: &Args) -> Outcome {
        let kind = a[1] as i32;
        Outcome::Call(Call::Socket(a[0] as i32, kind, a[2] as i32), Finish::Socket { cloexec: kind & libc::SOCK_CLOEXEC != 0 })
    }

    pub(super) fn sys_connect(shared: &Shared, c: Caller, handle: i32, a: &Args) -> Result<Outcome> {
        let to = match Self::address(shared, c, handle, (a[1], a[2] as i32), Use::Connect)?.ok_or(Errno::EINVAL)? {
            SockAddr::Netlink(pid, groups) => {
                return Ok(Outcome::Call(Call::ConnectNetlink(handle, NetlinkAddr { pid, groups }), Finish::Value));
            }
            SockAddr::Unspec(_) => None,
            addr => Some(addr.inet()?),
        };
        Ok(Outcome::Call(Call::Connect(handle, to), Finish::Value))
    }

    pub(super) fn sys_bind(shared: &Shared, c: Caller, handle: i32, a: &Args) -> Result<Outcome> {
        let call = match Self::address(shared, c, handle, (a[1], a[2] as i32), Use::Bind)?.ok_or(Errno::EINVAL)? {
            SockAddr::Link(addr) => Call::BindLink(handle, addr),
            SockAddr::Netlink(pid, groups) => Call::BindNetlink(handle, NetlinkAddr { pid, groups }),
            SockAddr::Unspec(Some(addr)) if !addr.ip().is_unspecified() => return Err(Errno::EAFNOSUPPORT),
            addr => Call::Bind(handle, addr.inet()?),
        };
        Ok(Outcome::Call(call, Finish::Value))
    }

    pub(super) fn sys_accept(&mut self, shared: &Shared, c: Caller, handle: i32, a: &Args, flags: i32) -> Result<Outcome> {
        // Linux has a number for the connection before it looks for one. With one there, giving it to the program says so.
        let known = flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) == 0;
        if known && !may_accept(shared, c, handle) && self.is_full(c) {
            return Err(Errno::EMFILE);
        }
        let cloexec = flags & libc::SOCK_CLOEXEC != 0;
        Ok(Outcome::Call(Call::Accept(handle, flags), Finish::Accept { addr: a[1], len: a[2], cloexec }))
    }

    pub(super) fn sys_shutdown(handle: i32, how: i32) -> Result<Outcome> {
        let how = match how {
            libc::SHUT_RD => Shutdown::Rd,
            libc::SHUT_WR => Shutdown::Wr,
            libc::SHUT_RDWR => Shutdown::RdWr,
            _ => return Err(Errno::EINVAL),
        };
        Ok(Outcome::Call(Call::Shutdown(handle, how), Finish::Value))
    }

    pub(super) fn sys_setsockopt(shared: &Shared, c: Caller, handle: i32, a: &Args) -> Result<Outcome> {
        let (level, name) = (a[1] as i32, a[2] as i32);
        let len = usize::try_from(a[4] as i32).map_err(|_| Errno::EINVAL)?;
        let mut value = vec![0; len.min(MAX_OPTION)];
        if !value.is_empty() {
            c.mem.read(a[3], &mut value)?;
        }
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF) => value = read_filter(c.mem, &value)?,
            (SOL_PACKET, PACKET_RX_RING) => return Self::set_ring(shared, c, handle, &value),
            _ => {}
        }
        Ok(Outcome::Call(Call::SetSockOptRaw(handle, level, name, value), Finish::Value))
    }

    pub(super) fn sys_getsockopt(c: Caller, handle: i32, a: &Args) -> Result<Outcome> {
        let (level, name) = (a[1] as i32, a[2] as i32);
        let mut len = [0; 4];
        c.mem.read(a[4], &mut len)?;
        let room = usize::try_from(i32::from_ne_bytes(len)).map_err(|_| Errno::EINVAL)?;
        let mut value = vec![0; room.min(MAX_OPTION)];
        if level == SOL_PACKET && !value.is_empty() {
            // These read what is there.
            c.mem.read(a[3], &mut value)?;
        }
        Ok(Outcome::Call(Call::GetSockOptRaw(handle, level, name, value), Finish::Opt { val: a[3], len: a[4] }))
    }
}

/// True if a connection waits.
fn may_accept(shared: &Shared, c: Caller, handle: i32) -> bool {
    let list = vec![PollFd { fd: handle, events: PollEvents::IN, revents: PollEvents::empty() }];
    let found = shared.guest_syscall(c.task, Call::Poll(list, Some(Duration::ZERO)));
    matches!(found, Some(Ret::Poll(list)) if list.iter().any(|p| p.revents == PollEvents::IN))
}

/// The instructions that a `struct sock_fprog` points to.
fn read_filter(mem: Mem, prog: &[u8]) -> Result<Vec<u8>> {
    if prog.len() < 16 {
        return Err(Errno::EINVAL);
    }
    let count = usize::from(u32_at(prog, 0) as u16);
    if count == 0 || count > MAX_FILTER {
        return Err(Errno::EINVAL);
    }
    let mut insns = vec![0; count * 8];
    mem.read(u64_at(prog, 8), &mut insns)?;
    Ok(insns)
}

/// Writes an address and its length, as far as there is room (Linux `move_addr_to_user`).
pub(super) fn write_addr(mem: Mem, name: &[u8], addr: u64, len_at: u64) -> Result<()> {
    let mut len = [0; 4];
    mem.read(len_at, &mut len)?;
    let room = usize::try_from(i32::from_ne_bytes(len)).map_err(|_| Errno::EINVAL)?;
    let len = (name.len() as u32).to_ne_bytes();
    match name.len().min(room) {
        0 => mem.write(len_at, &len),
        fits => mem.write_both((addr, &name[..fits]), (len_at, &len)),
    }
}
