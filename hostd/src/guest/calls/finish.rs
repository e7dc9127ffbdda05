//! What the model has returned, as the program gets it.

use super::sock::write_addr;
use super::{Finish, Result};
use crate::guest::Guests;
use crate::guest::decode::msg::{self, MsgHdr};
use crate::guest::notify::{Listener, Notif};
use crate::guest::reply::Reply;
use crate::guest::table::Caller;
use crate::host::Shared;
use ringlab_kernel::syscall::abi::{emit_inet, emit_link, emit_netlink};
use ringlab_kernel::syscall::msg::CTRUNC;
use ringlab_kernel::syscall::signal::Owner;
use ringlab_kernel::syscall::{Control, Ret, cmsg};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// Octets of `sockaddr_ll` before the address.
const LL_FIXED: usize = 12;

impl Guests {
    /// Writes results to the program's memory and answers.
    pub(in crate::guest) fn finish(&mut self, shared: &Shared, c: Caller, listener: &Rc<Listener>, n: &Notif, finish: Finish, ret: Ret) {
        let result = match finish {
            Finish::Epoll(f) => return self.finish_epoll(shared, c, listener, n, f, ret),
            Finish::Bell(set) => return self.on_bell(c, set, ret),
            Finish::Poll(f) => return self.finish_poll(shared, c, listener, n, f, ret),
            Finish::Transfer(t) => return self.next_piece(shared, c, listener, n, t, ret),
            Finish::Splice(s) => return self.finish_splice(shared, c, listener, n, s, &ret),
            Finish::Closed => return self.let_go(shared, c, listener, n),
            Finish::Value => number(ret).map(Reply::Value),
            Finish::Change(change) => {
                self.end_change(c, change, &ret);
                number(ret).map(Reply::Value)
            }
            Finish::Socket { cloexec } => number(ret).map(|handle| Reply::Inject { handle: handle as i32, cloexec }),
            Finish::Accept { addr, len, cloexec } => self.accepted(shared, c, ret, addr, len, cloexec),
            Finish::Addr { addr, len } => named(c, ret, addr, len).map(|()| Reply::Value(0)),
            Finish::From { addr, len } => received_from(c, ret, addr, len).map(Reply::Value),
            Finish::Msg(at) => received(shared, c, at, ret).map(Reply::Value),
            Finish::Sent(at) => sent(c, at, ret).map(Reply::Value),
            Finish::Mmsg { at, timeout } => received_many(shared, c, at, timeout, ret).map(Reply::Value),
            Finish::Opt { val, len } => option(c, ret, val, len).map(|()| Reply::Value(0)),
            Finish::Bytes(at) => octets(c, at, ret).map(Reply::Value),
            Finish::IfConf { at, buf } => interfaces(c, at, buf, ret).map(|()| Reply::Value(0)),
            Finish::Owner(at) => owner(c, at, ret).map(|()| Reply::Value(0)),
        };
        let reply = result.unwrap_or_else(|errno| Reply::Value(-i64::from(errno.raw())));
        self.send(shared, c, listener, n, reply);
    }

    fn accepted(&mut self, shared: &Shared, c: Caller, ret: Ret, addr: u64, len: u64, cloexec: bool) -> Result<Reply> {
        let (handle, peer) = match ret {
            Ret::Accepted(handle, peer) => (handle, peer),
            other => return number(other).map(Reply::Value),
        };
        if addr != 0
            && let Err(errno) = write_addr(c.mem, &emit_inet(&peer), addr, len)
        {
            self.close_handle(shared, handle);
            return Err(errno);
        }
        Ok(Reply::Inject { handle, cloexec })
    }
}

fn number(ret: Ret) -> Result<i64> {
    match ret {
        Ret::Err(errno) => Err(errno),
        other => Ok(other.as_number()),
    }
}

fn named(c: Caller, ret: Ret, addr: u64, len: u64) -> Result<()> {
    match ret {
        Ret::Addr(name) => write_addr(c.mem, &emit_inet(&name), addr, len),
        Ret::LinkAddr(name) => {
            let bytes = emit_link(&name);
            write_addr(c.mem, &bytes[..bytes.len().min(LL_FIXED + usize::from(name.halen))], addr, len)
        }
        Ret::NetlinkAddr(name) => write_addr(c.mem, &emit_netlink(&name), addr, len),
        other => number(other).map(drop),
    }
}

fn received_from(c: Caller, ret: Ret, addr: u64, len_at: u64) -> Result<i64> {
    let n = ret.as_number();
    match ret {
        Ret::Received { from, .. } => write_addr(c.mem, &from.map_or(Vec::new(), |a| emit_inet(&a)), addr, len_at)?,
        Ret::ReceivedLink { from, .. } => write_addr(c.mem, &emit_link(&from), addr, len_at)?,
        Ret::ReceivedNetlink { from, .. } => write_addr(c.mem, &emit_netlink(&from), addr, len_at)?,
        other => return number(other),
    }
    Ok(n)
}

/// Writes what belongs into a `msghdr`.
fn received(shared: &Shared, c: Caller, at: u64, ret: Ret) -> Result<i64> {
    let (len, name, mut flags, control) = match ret {
        Ret::Received { len, from, flags, control } => (len, from.map_or(Vec::new(), |a| emit_inet(&a)), flags, control),
        Ret::ReceivedLink { len, from, flags, control } => (len, emit_link(&from), flags, control),
        Ret::ReceivedNetlink { len, from, flags, control } => (len, emit_netlink(&from), flags, control),
        other => return number(other),
    };
    let mut buf = [0; msg::MSGHDR];
    c.mem.read(at, &mut buf)?;
    let hdr = MsgHdr::parse(&buf);
    if hdr.name != 0 {
        let fits = name.len().min(usize::try_from(hdr.namelen).unwrap_or(0));
        if fits > 0 {
            c.mem.write(hdr.name, &name[..fits])?;
        }
        c.mem.write(at.wrapping_add(msg::NAMELEN), &(name.len() as u32).to_ne_bytes())?;
    }
    let used = write_control(shared, c, &hdr, &control, &mut flags)?;
    c.mem.write(at.wrapping_add(msg::CONTROLLEN), &(used as u64).to_ne_bytes())?;
    c.mem.write(at.wrapping_add(msg::FLAGS), &flags.to_ne_bytes())?;
    Ok(len as i64)
}

fn write_control(shared: &Shared, c: Caller, hdr: &MsgHdr, control: &[Control], flags: &mut u32) -> Result<usize> {
    if control.is_empty() {
        return Ok(0);
    }
    // The model's clock starts with the host; programs compare with the time of day.
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let offset = wall.saturating_sub(Duration::from_nanos(shared.now().0)).as_nanos() as u64;
    let room = if hdr.control == 0 { 0 } else { usize::try_from(hdr.controllen).unwrap_or(0).min(msg::MAX_CONTROL) };
    let (bytes, truncated) = cmsg::emit(control, room, offset);
    if truncated {
        *flags |= CTRUNC;
    }
    if !bytes.is_empty() {
        c.mem.write(hdr.control, &bytes)?;
    }
    Ok(bytes.len())
}

fn message(at: u64, index: usize) -> u64 {
    at.wrapping_add(index as u64 * msg::MMSGHDR)
}

fn sent(c: Caller, at: u64, ret: Ret) -> Result<i64> {
    let lengths = match ret {
        Ret::Sent(lengths) => lengths,
        other => return number(other),
    };
    for (i, len) in lengths.iter().enumerate() {
        c.mem.write(message(at, i).wrapping_add(msg::MSGHDR as u64), &len.to_ne_bytes())?;
    }
    Ok(lengths.len() as i64)
}

fn received_many(shared: &Shared, c: Caller, at: u64, timeout: u64, ret: Ret) -> Result<i64> {
    let (messages, left) = match ret {
        Ret::Mmsg(messages, left) => (messages, left),
        other => return number(other),
    };
    let count = messages.len();
    for (i, ret) in messages.into_iter().enumerate() {
        let len = received(shared, c, message(at, i), ret)?;
        c.mem.write(message(at, i).wrapping_add(msg::MSGHDR as u64), &(len as u32).to_ne_bytes())?;
    }
    if let Some(left) = left.filter(|_| timeout != 0) {
        let mut b = [0; 16];
        b[..8].copy_from_slice(&left.as_secs().to_ne_bytes());
        b[8..].copy_from_slice(&u64::from(left.subsec_nanos()).to_ne_bytes());
        c.mem.write(timeout, &b)?;
    }
    Ok(count as i64)
}

fn option(c: Caller, ret: Ret, val: u64, len_at: u64) -> Result<()> {
    let (bytes, len) = match ret {
        Ret::OptRaw(bytes, len) => (bytes, len),
        other => return number(other).map(drop),
    };
    match bytes.is_empty() {
        true => c.mem.write(len_at, &len.to_ne_bytes()),
        false => c.mem.write_both((val, &bytes), (len_at, &len.to_ne_bytes())),
    }
}

fn octets(c: Caller, at: u64, ret: Ret) -> Result<i64> {
    match ret {
        Ret::Bytes(bytes) if bytes.is_empty() => Ok(0),
        Ret::Bytes(bytes) => c.mem.write(at, &bytes).map(|()| 0),
        other => number(other),
    }
}

fn interfaces(c: Caller, at: u64, buf: u64, ret: Ret) -> Result<()> {
    let (bytes, len) = match ret {
        Ret::IfConf(bytes, len) => (bytes, len),
        other => return number(other).map(drop),
    };
    if !bytes.is_empty() {
        c.mem.write(buf, &bytes)?;
    }
    c.mem.write(at, &(len as i32).to_ne_bytes())
}

/// `struct f_owner_ex`.
fn owner(c: Caller, at: u64, ret: Ret) -> Result<()> {
    let (kind, pid) = match ret {
        Ret::Owner(Some(Owner::Thread(n))) => (0, n),
        Ret::Owner(Some(Owner::Group(n))) => (2, n),
        Ret::Owner(Some(Owner::Process(n))) => (1, n),
        Ret::Owner(None) => (1, 0),
        other => return number(other).map(drop),
    };
    let mut b = [0; 8];
    b[..4].copy_from_slice(&i32::to_ne_bytes(kind));
    b[4..].copy_from_slice(&pid.to_ne_bytes());
    c.mem.write(at, &b)
}
