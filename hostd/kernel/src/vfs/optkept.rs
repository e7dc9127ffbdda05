//! Options that are kept for reading back only.
//!
//! They tune what this host has not: busy polling, Wi-Fi, IPv6 packets of its own, control messages for things that
//! never occur here. Linux takes them, checks their range and reports them; so does this table. An option that would
//! have an effect here does not belong in it.

use super::optnum::{ip, ipv6, level, so};
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::{Proto, Sock};
use crate::syscall::OptVal;

/// How a value is stored.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// 0 or 1.
    Flag,
    /// Between two numbers, else `EINVAL`.
    Range(i32, i32),
    /// Taken, and always read as 0.
    Nothing,
    /// Can be read only.
    Fixed,
}

/// Which sockets have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    All,
    Tcp,
    NotTcp,
}

use On::{All, NotTcp, Tcp};
use Value::{Fixed, Flag, Nothing, Range};

/// Level, name, which sockets, default, values.
const KEPT: &[(i32, i32, On, i32, Value)] = &[
    (level::SOCKET, so::DEBUG, All, 0, Flag),
    (level::SOCKET, so::BSDCOMPAT, All, 0, Nothing),
    (level::SOCKET, so::WIFI_STATUS, All, 0, Flag),
    (level::SOCKET, so::NOFCS, All, 0, Flag),
    (level::SOCKET, so::BUSY_POLL, All, 0, Range(0, i32::MAX)),
    (level::SOCKET, so::PREFER_BUSY_POLL, All, 0, Flag),
    (level::SOCKET, so::TXREHASH, Tcp, 1, Range(-1, 1)),
    (level::SOCKET, so::RCVMARK, All, 0, Flag),
    (level::IP, ip::RECVOPTS, All, 0, Flag),
    (level::IP, ip::RETOPTS, All, 0, Flag),
    (level::IP, ip::PASSSEC, All, 0, Flag),
    (level::IP, ip::CHECKSUM, All, 0, Flag),
    (level::IP, ip::RECVFRAGSIZE, NotTcp, 0, Flag),
    (level::IP, ip::RECVERR_RFC4884, All, 0, Range(0, 1)),
    (level::IPV6, ipv6::UNICAST_HOPS, All, 64, Range(-1, 255)),
    (level::IPV6, ipv6::MULTICAST_HOPS, NotTcp, 1, Range(-1, 255)),
    (level::IPV6, ipv6::MULTICAST_LOOP, All, 1, Range(0, 1)),
    (level::IPV6, ipv6::MULTICAST_IF, NotTcp, 0, Range(0, 0)),
    (level::IPV6, ipv6::MULTICAST_ALL, All, 1, Range(0, 1)),
    (level::IPV6, ipv6::MTU_DISCOVER, All, 1, Range(0, 5)),
    (level::IPV6, ipv6::FLOWINFO_SEND, All, 0, Flag),
    (level::IPV6, ipv6::RECVHOPLIMIT, All, 0, Flag),
    (level::IPV6, ipv6::RECVHOPOPTS, All, 0, Flag),
    (level::IPV6, ipv6::RECVRTHDR, All, 0, Flag),
    (level::IPV6, ipv6::RECVDSTOPTS, All, 0, Flag),
    (level::IPV6, ipv6::RECVPATHMTU, All, 0, Flag),
    (level::IPV6, ipv6::RECVTCLASS, All, 0, Flag),
    (level::IPV6, ipv6::RECVORIGDSTADDR, All, 0, Flag),
    (level::IPV6, ipv6::RECVERR_RFC4884, All, 0, Range(0, 1)),
    (level::IPV6, ipv6::DONTFRAG, All, 0, Flag),
    (level::IPV6, ipv6::TCLASS, All, 0, Range(-1, 255)),
    (level::IPV6, ipv6::AUTOFLOWLABEL, All, 1, Flag),
    (level::IPV6, ipv6::MINHOPCOUNT, All, 0, Range(0, 255)),
    (level::IPV6, ipv6::ADDRFORM, All, 0, Fixed),
];

/// Found in the table for this socket.
fn entry(sk: &Sock, lvl: i32, name: i32) -> Option<(i32, Value)> {
    let tcp = matches!(sk.proto, Proto::Tcp(_));
    let &(.., default, value) = KEPT.iter().find(|e| e.0 == lvl && e.1 == name && (e.2 == All || (e.2 == Tcp) == tcp))?;
    Some((default, value))
}

impl Kernel {
    /// Keeps an option.
    pub(super) fn set_kept(sk: &mut Sock, lvl: i32, name: i32, n: i32) -> Result<(), Errno> {
        let (default, value) = entry(sk, lvl, name).ok_or(Errno::ENOPROTOOPT)?;
        let n = match value {
            Flag => i32::from(n != 0),
            Range(low, high) if !(low..=high).contains(&n) => return Err(Errno::EINVAL),
            Range(-1, 255) if n == -1 => default,
            Range(..) => n,
            Nothing => return Ok(()),
            Fixed => return Err(Errno::EINVAL),
        };
        match sk.opt.kept.iter_mut().find(|k| (k.0, k.1) == (lvl, name)) {
            Some(kept) => kept.2 = n,
            None => sk.opt.kept.push((lvl, name, n)),
        }
        Ok(())
    }

    /// Reads a kept option.
    pub(super) fn get_kept(sk: &Sock, lvl: i32, name: i32) -> Result<OptVal, Errno> {
        let (default, value) = entry(sk, lvl, name).ok_or(Errno::ENOPROTOOPT)?;
        if matches!(value, Fixed) {
            return Err(Errno::ENOTCONN);
        }
        let kept = sk.opt.kept.iter().find(|k| (k.0, k.1) == (lvl, name));
        Ok(OptVal::Int(kept.map_or(default, |k| k.2)))
    }
}
