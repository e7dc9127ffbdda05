//! Socket addresses as the x86-64 ABI lays them out.
//!
//! Whoever has a program's memory at hand decodes with these before it makes a
//! [`super::Call`], and encodes what comes back. Pure functions of octets.

use super::LinkAddr;
use crate::errno::Errno;
use crate::sock::{AF_INET, AF_INET6};
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// `AF_NETLINK`.
pub const AF_NETLINK: u16 = 16;
/// `AF_PACKET`.
pub const AF_PACKET: u16 = 17;
/// Most octets of an address (`struct sockaddr_storage`).
pub const SOCKADDR_MAX: usize = 128;

/// Octets of `struct sockaddr_in`.
const SIN_LEN: usize = 16;
/// Octets of `struct sockaddr_in6` before `sin6_scope_id` came (RFC 2133): still accepted.
const SIN6_LEN_RFC2133: usize = 24;
/// A link-local network, which says nothing without the link.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
/// Octets of `struct sockaddr_ll` up to its address.
const LL_FIXED: usize = 12;

/// A decoded `struct sockaddr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SockAddr {
    /// `AF_UNSPEC`: `connect` disconnects; `bind` and `sendto` take it for `AF_INET` with what follows, if that
    /// is there.
    Unspec(Option<SocketAddrV4>),
    /// `AF_INET`, `AF_INET6`.
    Inet(SocketAddr),
    /// `AF_PACKET`.
    Link(LinkAddr),
    /// `AF_NETLINK`: port id and groups.
    Netlink(u32, u32),
    /// Any other family.
    Other(u16),
}

impl SockAddr {
    /// Reads an address of a program. Too few octets for its family: `EINVAL`, as every protocol answers.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn parse(b: &[u8]) -> Result<Self, Errno> {
        if b.len() > SOCKADDR_MAX {
            return Err(Errno::EINVAL);
        }
        let family = u16::from_ne_bytes(octets(b, 0).ok_or(Errno::EINVAL)?);
        match family {
            0 => Ok(Self::Unspec(sockaddr_in(b))),
            AF_INET => sockaddr_in(b).map(|a| Self::Inet(a.into())).ok_or(Errno::EINVAL),
            AF_INET6 => match sockaddr_in6(b) {
                Some(a) => Ok(Self::Inet(a.into())),
                // Long enough for `AF_INET` sockets, which look at the family first (`EAFNOSUPPORT`); those of
                // `AF_INET6` refuse the length as they refuse this: a link without its number (`EINVAL`).
                None if b.len() >= SIN_LEN => Ok(Self::Inet(SocketAddrV6::new(LINK_LOCAL, 0, 0, 0).into())),
                None => Err(Errno::EINVAL),
            },
            AF_NETLINK => {
                let word = |at| octets(b, at).map(u32::from_ne_bytes).ok_or(Errno::EINVAL);
                Ok(Self::Netlink(word(4)?, word(8)?))
            }
            AF_PACKET => sockaddr_ll(b).map(Self::Link).ok_or(Errno::EINVAL),
            other => Ok(Self::Other(other)),
        }
    }

    /// The Internet address that `bind` and `sendto` see; `AF_UNSPEC` counts as `AF_INET` (Linux accepts it from
    /// programs of before POSIX).
    ///
    /// # Errors
    /// `EAFNOSUPPORT` for other families, `EINVAL` for a short `AF_UNSPEC`.
    pub fn inet(&self) -> Result<SocketAddr, Errno> {
        match self {
            Self::Inet(a) => Ok(*a),
            Self::Unspec(a) => a.map(Into::into).ok_or(Errno::EINVAL),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }
}

/// `struct sockaddr_in` or `struct sockaddr_in6`. The caller copies as much as the program has room for and reports the full length.
pub fn emit_inet(addr: &SocketAddr) -> Vec<u8> {
    let mut b = Vec::with_capacity(28);
    match addr {
        SocketAddr::V4(a) => {
            b.extend(AF_INET.to_ne_bytes());
            b.extend(a.port().to_be_bytes());
            b.extend(a.ip().octets());
            b.extend([0; 8]);
        }
        SocketAddr::V6(a) => {
            b.extend(AF_INET6.to_ne_bytes());
            b.extend(a.port().to_be_bytes());
            b.extend(a.flowinfo().to_be_bytes());
            b.extend(a.ip().octets());
            b.extend(a.scope_id().to_ne_bytes());
        }
    }
    b
}

/// `struct sockaddr_ll`: 20 octets with an address of up to eight (`getsockname` reports 12 and the address; `recvfrom` 20).
pub fn emit_link(addr: &LinkAddr) -> Vec<u8> {
    let mut b = Vec::with_capacity(20);
    b.extend(AF_PACKET.to_ne_bytes());
    b.extend(addr.protocol.to_be_bytes());
    b.extend(addr.ifindex.to_ne_bytes());
    b.extend(addr.hatype.to_ne_bytes());
    b.extend([addr.pkttype, addr.halen]);
    b.extend(addr.addr);
    b
}

/// `struct sockaddr_nl`.
pub fn emit_netlink(addr: &super::NetlinkAddr) -> Vec<u8> {
    let mut b = Vec::from(AF_NETLINK.to_ne_bytes());
    b.extend([0; 2]);
    b.extend(addr.pid.to_ne_bytes());
    b.extend(addr.groups.to_ne_bytes());
    b
}

/// `N` octets at `at`, if they are there.
pub(crate) fn octets<const N: usize>(b: &[u8], at: usize) -> Option<[u8; N]> {
    b.get(at..at + N)?.try_into().ok()
}

fn sockaddr_in(b: &[u8]) -> Option<SocketAddrV4> {
    if b.len() < SIN_LEN {
        return None;
    }
    Some(SocketAddrV4::new(Ipv4Addr::from(octets::<4>(b, 4)?), u16::from_be_bytes(octets(b, 2)?)))
}

fn sockaddr_in6(b: &[u8]) -> Option<SocketAddrV6> {
    if b.len() < SIN6_LEN_RFC2133 {
        return None;
    }
    let (port, flow) = (u16::from_be_bytes(octets(b, 2)?), u32::from_be_bytes(octets(b, 4)?));
    let scope = octets(b, 24).map_or(0, u32::from_ne_bytes);
    Some(SocketAddrV6::new(Ipv6Addr::from(octets::<16>(b, 8)?), port, flow, scope))
}

fn sockaddr_ll(b: &[u8]) -> Option<LinkAddr> {
    if b.len() < LL_FIXED {
        return None;
    }
    let mut addr = [0; 8];
    let given = &b[LL_FIXED..b.len().min(LL_FIXED + 8)];
    addr[..given.len()].copy_from_slice(given);
    Some(LinkAddr {
        protocol: u16::from_be_bytes(octets(b, 2)?),
        ifindex: u32::from_ne_bytes(octets(b, 4)?),
        hatype: u16::from_ne_bytes(octets(b, 8)?),
        pkttype: b[10],
        halen: b[11],
        addr,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netlink_address_survives_the_round_trip() {
        let b = emit_netlink(&crate::syscall::NetlinkAddr { pid: 7, groups: 5 });
        assert_eq!((b.len(), SockAddr::parse(&b)), (12, Ok(SockAddr::Netlink(7, 5))));
        assert_eq!(SockAddr::parse(&b[..11]), Err(Errno::EINVAL));
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["10.0.0.1:80", "[::ffff:10.0.0.1]:80", "[fe80::1%3]:9"] {
            let addr: SocketAddr = text.parse().expect("an address");
            assert_eq!(SockAddr::parse(&emit_inet(&addr)), Ok(SockAddr::Inet(addr)), "{text}");
        }
        let link = LinkAddr { protocol: 0x800, ifindex: 2, hatype: 1, pkttype: 4, halen: 6, addr: [1, 2, 3, 4, 5, 6, 0, 0] };
        assert_eq!(emit_link(&link).len(), 20);
        assert_eq!(SockAddr::parse(&emit_link(&link)), Ok(SockAddr::Link(link)));
    }

    #[test]
    fn short_addresses_are_refused_and_foreign_families_named() {
        let v4 = emit_inet(&"10.0.0.1:80".parse().expect("an address"));
        assert_eq!(SockAddr::parse(&v4[..15]), Err(Errno::EINVAL));
        assert_eq!(SockAddr::parse(&v4[..1]), Err(Errno::EINVAL));
        assert_eq!(SockAddr::parse(&[1, 0, b'/']), Ok(SockAddr::Other(1)));
        assert_eq!(SockAddr::parse(&[0, 0]), Ok(SockAddr::Unspec(None)));
        assert_eq!(SockAddr::parse(&[0; 16]).and_then(|a| a.inet()), Ok((Ipv4Addr::UNSPECIFIED, 0).into()));
        assert_eq!(SockAddr::Other(1).inet(), Err(Errno::EAFNOSUPPORT));
        let v6 = emit_inet(&"[::1]:80".parse().expect("an address"));
        assert!(SockAddr::parse(&v6[..24]).is_ok(), "without scope");
        assert_eq!(SockAddr::parse(&v6[..23]), Ok(SockAddr::Inet("[fe80::]:0".parse().expect("an address"))));
        assert_eq!(SockAddr::parse(&v6[..15]), Err(Errno::EINVAL));
    }
}
