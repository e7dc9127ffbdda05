//! Addresses that programs pass: what is wrong with one, the socket's family says, each in its own order.
//!
//! Where a datagram goes to by IPv4 is clear without a question: the model refuses what does not fit the socket. All others are
//! judged here.

use super::Result;
use crate::guest::Guests;
use crate::guest::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::abi::{AF_NETLINK, AF_PACKET, SOCKADDR_MAX, SockAddr};

/// Octets of `struct sockaddr_in`, of `struct sockaddr_in6` without its last field, `struct sockaddr_nl`, `struct sockaddr_ll`.
const SIN: usize = 16;
const SIN6: usize = 24;
const SNL: usize = 12;
const SLL: usize = 20;

const AF_UNSPEC: u16 = libc::AF_UNSPEC as u16;
const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;

/// What a call does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Bind,
    Connect,
    Send,
}

impl Guests {
    /// Reads a `struct sockaddr`; `None`: the call has none.
    pub(super) fn address(shared: &Shared, c: Caller, handle: i32, (at, len): (u64, i32), use_of: Use) -> Result<Option<SockAddr>> {
        let len = usize::try_from(len).ok().filter(|&n| n <= SOCKADDR_MAX).ok_or(Errno::EINVAL)?;
        let mut buf = [0; SOCKADDR_MAX];
        if len > 0 {
            c.mem.read(at, &mut buf[..len])?;
        }
        let octets = &mut buf[..len];
        if (use_of, len) == (Use::Send, SIN)
            && let Ok(addr @ SockAddr::Inet(_)) = SockAddr::parse(octets)
        {
            return Ok(Some(addr));
        }
        match shared.kernel().socket_family(c.task, handle) {
            Some((family, kind)) => judge(family, kind, use_of, octets),
            // No socket: the model says so.
            None => SockAddr::parse(octets).map(Some),
        }
    }
}

/// What a socket of a family and kind makes of these octets.
fn judge(socket: u16, kind: i32, use_of: Use, octets: &mut [u8]) -> Result<Option<SockAddr>> {
    let family = octets.first_chunk().map(|b| u16::from_ne_bytes(*b));
    let len = octets.len();
    let at_least = |n| if len < n { Err(Errno::EINVAL) } else { Ok(()) };
    let is = |wanted: &[u16], otherwise| if family.is_some_and(|f| wanted.contains(&f)) { Ok(()) } else { Err(otherwise) };
    match (socket, use_of) {
        // A stream does not look where to; whom nothing is said of goes where it is connected to.
        (AF_INET | AF_INET6, Use::Send) if kind == libc::SOCK_STREAM => return Ok(None),
        (AF_INET, Use::Send) if kind == libc::SOCK_RAW && octets.is_empty() => return Ok(None),
        (AF_NETLINK, Use::Send) if octets.is_empty() => return Ok(None),
        (AF_INET6, Use::Send) if family == Some(AF_UNSPEC) => return Ok(None),
        (AF_INET | AF_INET6 | AF_NETLINK, Use::Connect) if family == Some(AF_UNSPEC) => {}
        (AF_INET, _) => {
            at_least(SIN)?;
            match (kind, use_of) {
                // It takes anything for its own.
                (libc::SOCK_RAW, Use::Bind) => octets[..2].copy_from_slice(&AF_INET.to_ne_bytes()),
                _ => is(&[AF_UNSPEC, AF_INET], Errno::EAFNOSUPPORT)?,
            }
        }
        (AF_INET6, Use::Send) => is(&[AF_INET, AF_INET6], Errno::EINVAL)?,
        // A datagram socket connects to IPv4, too.
        (AF_INET6, Use::Connect) if family == Some(AF_INET) && kind != libc::SOCK_STREAM => {}
        (AF_INET6, _) => at_least(SIN6).and_then(|()| is(&[AF_INET6], Errno::EAFNOSUPPORT))?,
        (AF_NETLINK, _) => is(&[AF_NETLINK], Errno::EINVAL).and_then(|()| at_least(SNL))?,
        (AF_PACKET, Use::Connect) => return Err(Errno::EOPNOTSUPP),
        (AF_PACKET, Use::Bind) => at_least(SLL).and_then(|()| is(&[AF_PACKET], Errno::EINVAL))?,
        (AF_PACKET, Use::Send) => {
            at_least(SLL)?;
            octets[..2].copy_from_slice(&AF_PACKET.to_ne_bytes());
        }
        _ => {}
    }
    SockAddr::parse(octets).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_family(family: u16, len: usize) -> Vec<u8> {
        let mut octets = family.to_ne_bytes().to_vec();
        octets.resize(len.max(2), 0);
        octets.truncate(len);
        octets
    }

    #[test]
    fn length_is_judged_before_the_family_but_by_netlink() {
        let error = |socket, use_of, family, len| judge(socket, libc::SOCK_DGRAM, use_of, &mut with_family(family, len)).err();
        for (socket, enough) in [(AF_INET, SIN), (AF_INET6, SIN6)] {
            assert_eq!(error(socket, Use::Bind, AF_PACKET, enough - 1), Some(Errno::EINVAL));
            assert_eq!(error(socket, Use::Bind, AF_PACKET, enough), Some(Errno::EAFNOSUPPORT));
            assert_eq!(error(socket, Use::Connect, 99, enough), Some(Errno::EAFNOSUPPORT));
            assert_eq!(error(socket, Use::Connect, AF_UNSPEC, 2), None);
            assert_eq!(error(socket, Use::Connect, AF_UNSPEC, 1), Some(Errno::EINVAL));
        }
        assert_eq!(error(AF_NETLINK, Use::Bind, AF_INET, 128), Some(Errno::EINVAL));
        assert_eq!(error(AF_PACKET, Use::Bind, AF_PACKET, SLL), None);
        assert_eq!(error(AF_PACKET, Use::Bind, AF_PACKET, SLL - 1), Some(Errno::EINVAL));
    }

    #[test]
    fn streams_do_not_look_at_the_address() {
        assert_eq!(judge(AF_INET, libc::SOCK_STREAM, Use::Send, &mut with_family(99, 3)), Ok(None));
        assert_eq!(judge(AF_INET, libc::SOCK_DGRAM, Use::Send, &mut with_family(99, 3)), Err(Errno::EINVAL));
    }
}
