//! Control messages (`struct cmsghdr`) as the x86-64 ABI lays them out.
//!
//! [`parse`] reads what a program passes to `sendmsg`, [`emit`] writes what `recvmsg`
//! gives back, into the room that the program has.

use super::Control;
use super::abi::{emit_inet, octets};
use crate::errno::Errno;
use crate::vfs::optnum::level;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Octets of `struct cmsghdr`.
const HEADER: usize = 16;
const SOL_NETLINK: i32 = 270;
const NETLINK_PKTINFO: i32 = 3;
const SOL_PACKET: i32 = 263;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
const SCM_TIMESTAMP: i32 = 29;
const SCM_TIMESTAMPNS: i32 = 35;
const SO_RXQ_OVFL: i32 = 40;
const SO_MARK: i32 = 36;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_PKTINFO: i32 = 8;
const IP_RECVERR: i32 = 11;
const IP_ORIGDSTADDR: i32 = 20;
const IPV6_RECVERR: i32 = 25;
const IPV6_PKTINFO: i32 = 50;
const IPV6_HOPLIMIT: i32 = 52;
const IPV6_TCLASS: i32 = 67;
const PACKET_AUXDATA: i32 = 8;
const NANOS: u64 = 1_000_000_000;

/// Reads the control messages of a `sendmsg`. Levels that are not the protocol's are skipped, as Linux does.
///
/// # Errors
/// `EINVAL` for a malformed or unknown message of a known level.
pub fn parse(mut b: &[u8]) -> Result<Vec<Control>, Errno> {
    let mut out = Vec::new();
    while b.len() >= HEADER {
        let len = octets(b, 0).map_or(0, u64::from_ne_bytes);
        let len = usize::try_from(len).ok().filter(|&n| n >= HEADER && n <= b.len()).ok_or(Errno::EINVAL)?;
        let word = |at| octets(b, at).map_or(0, i32::from_ne_bytes);
        if let Some(control) = one(word(8), word(12), &b[HEADER..len])? {
            out.push(control);
        }
        b = b.get(align(len)..).unwrap_or_default();
    }
    Ok(out)
}

fn one(lvl: i32, kind: i32, data: &[u8]) -> Result<Option<Control>, Errno> {
    let int = || match data.len() {
        4 => Ok(octets(data, 0).map_or(0, i32::from_ne_bytes)),
        _ => Err(Errno::EINVAL),
    };
    let octet = |n: i32| u8::try_from(n).map_err(|_| Errno::EINVAL);
    Ok(Some(match (lvl, kind) {
        (level::IP, IP_PKTINFO) if data.len() == 12 => {
            let addr = |at| Ipv4Addr::from(octets::<4>(data, at).unwrap_or_default());
            Control::PktInfo(octets(data, 0).map_or(0, u32::from_ne_bytes), addr(4), addr(8))
        }
        (level::IP, IP_TTL) => Control::Ttl(octet(int()?)?),
        (level::IP, IP_TOS) => match data {
            [tos] => Control::Tos(*tos),
            _ => Control::Tos(octet(int()?)?),
        },
        (level::IPV6, IPV6_PKTINFO) if data.len() == 20 => {
            let addr = Ipv6Addr::from(octets::<16>(data, 0).unwrap_or_default());
            Control::PktInfo6(octets(data, 16).map_or(0, u32::from_ne_bytes), addr)
        }
        (level::IPV6, IPV6_HOPLIMIT) => match int()? {
            -1 => return Ok(None),
            n => Control::HopLimit(octet(n)?),
        },
        (level::IPV6, IPV6_TCLASS) => match int()? {
            -1 => return Ok(None),
            n => Control::TClass(octet(n)?),
        },
        (level::SOCKET, SO_MARK) => Control::Mark(int()? as u32),
        (level::SOCKET, SCM_RIGHTS | SCM_CREDENTIALS) => return Ok(None),
        (level::IP | level::IPV6 | level::SOCKET, _) => return Err(Errno::EINVAL),
        _ => return Ok(None),
    }))
}

/// Writes control messages into at most `room` octets. `clock`: nanoseconds that the wall clock is ahead of
/// the host's ([`crate::Kernel::realtime_offset`]). True if something did not fit (`MSG_CTRUNC`).
pub fn emit(controls: &[Control], room: usize, clock: u64) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    for control in controls {
        let (lvl, kind, data) = encode(control, clock);
        let left = room.saturating_sub(out.len());
        if left < HEADER {
            return (out, true);
        }
        let whole = HEADER + data.len();
        let len = whole.min(left);
        out.extend((len as u64).to_ne_bytes());
        out.extend(lvl.to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(&data[..len - HEADER]);
        if len < whole {
            return (out, true);
        }
        out.resize((out.len().next_multiple_of(8)).min(room), 0);
    }
    (out, false)
}

fn align(len: usize) -> usize {
    len.next_multiple_of(8)
}

fn encode(control: &Control, clock: u64) -> (i32, i32, Vec<u8>) {
    let int = |n: u32| n.to_ne_bytes().to_vec();
    match *control {
        Control::PktInfo(index, local, daddr) => (level::IP, IP_PKTINFO, [index.to_ne_bytes(), local.octets(), daddr.octets()].concat()),
        Control::PktInfo6(index, addr) => (level::IPV6, IPV6_PKTINFO, [&addr.octets()[..], &index.to_ne_bytes()].concat()),
        Control::Ttl(n) => (level::IP, IP_TTL, int(n.into())),
        Control::Tos(n) => (level::IP, IP_TOS, alloc::vec![n]),
        Control::HopLimit(n) => (level::IPV6, IPV6_HOPLIMIT, int(n.into())),
        Control::TClass(n) => (level::IPV6, IPV6_TCLASS, int(n.into())),
        Control::Mark(n) => (level::SOCKET, SO_MARK, int(n)),
        Control::RxqOvfl(n) => (level::SOCKET, SO_RXQ_OVFL, int(n)),
        Control::OrigDst(addr) => (level::IP, IP_ORIGDSTADDR, emit_inet(&addr.into())),
        Control::Timestamp(ns) => (level::SOCKET, SCM_TIMESTAMP, timestamp(ns + clock, 1000)),
        Control::TimestampNs(ns) => (level::SOCKET, SCM_TIMESTAMPNS, timestamp(ns + clock, 1)),
        Control::Err(errno, origin, kind, code, info, from) => {
            let head = exterr(errno, origin, kind, code, info);
            (level::IP, IP_RECVERR, offender(head, origin, SocketAddr::from((from, 0))))
        }
        Control::Err6(errno, origin, kind, code, info, from) => {
            let head = exterr(errno, origin, kind, code, info);
            (level::IPV6, IPV6_RECVERR, offender(head, origin, SocketAddr::from((from, 0))))
        }
        Control::NetlinkPktInfo(group) => (SOL_NETLINK, NETLINK_PKTINFO, int(group)),
        Control::AuxData(ref a) => {
            let mut b = [a.status, a.len, a.snaplen].map(u32::to_ne_bytes).concat();
            b.extend([a.mac, a.net, a.vlan_tci, a.vlan_tpid].map(u16::to_ne_bytes).concat());
            (SOL_PACKET, PACKET_AUXDATA, b)
        }
    }
}

/// `struct timeval` (`unit` 1000) or `struct timespec` (`unit` 1) of nanoseconds.
fn timestamp(ns: u64, unit: u64) -> Vec<u8> {
    [ns / NANOS, ns % NANOS / unit].map(u64::to_ne_bytes).concat()
}

/// `struct sock_extended_err`.
fn exterr(errno: Errno, origin: u8, kind: u8, code: u8, info: u32) -> Vec<u8> {
    let mut b = (errno.raw() as u32).to_ne_bytes().to_vec();
    b.extend([origin, kind, code, 0]);
    b.extend(info.to_ne_bytes());
    b.extend([0; 4]);
    b
}

/// Appends `SO_EE_OFFENDER`: an address for errors that somebody reported, an empty one for our own.
fn offender(mut b: Vec<u8>, origin: u8, from: SocketAddr) -> Vec<u8> {
    let mut addr = emit_inet(&from);
    if origin != 2 {
        addr.fill(0);
    }
    b.extend(addr);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_reads_back() {
        let all = [
            Control::PktInfo(2, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)),
            Control::Ttl(7),
            Control::Tos(0x10),
            Control::TClass(8),
            Control::PktInfo6(3, Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
            Control::Mark(9),
        ];
        let (bytes, truncated) = emit(&all, 4096, 0);
        assert!(!truncated);
        assert_eq!(parse(&bytes), Ok(all.to_vec()));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_told() {
        let all = [Control::Ttl(64), Control::Timestamp(1_500_000_000)];
        assert_eq!(emit(&all, 4096, NANOS).0.len(), 24 + 32);
        assert_eq!(emit(&all, 4096, NANOS).0[40..56], [2u64.to_ne_bytes(), 500_000u64.to_ne_bytes()].concat()[..]);
        let (bytes, truncated) = emit(&all, 44, 0);
        assert!(truncated);
        assert_eq!((bytes.len(), &bytes[24..32]), (44, &20u64.to_ne_bytes()[..]));
        assert_eq!(emit(&all, 15, 0), (Vec::new(), true));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let (good, _) = emit(&[Control::Ttl(7)], 4096, 0);
        for (at, value) in [(0, 15u8), (0, 200), (12, 99), (16, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            let want = if at == 16 { Ok(alloc::vec![Control::Ttl(0)]) } else { Err(Errno::EINVAL) };
            assert_eq!(parse(&bad), want, "octet {at} = {value}");
        }
        assert_eq!(parse(&good[..10]), Ok(Vec::new()), "less than a header is none");
    }

    #[test]
    fn error_carries_its_offender() {
        let e = Control::Err(Errno::ECONNREFUSED, 2, 3, 3, 0, Ipv4Addr::new(10, 0, 0, 2));
        let (b, _) = emit(&[e], 4096, 0);
        assert_eq!(b.len(), 48);
        assert_eq!((&b[16..20], &b[20..23]), (&111u32.to_ne_bytes()[..], &[2, 3, 3][..]));
        assert_eq!((b[32], &b[36..40]), (2, &[10, 0, 0, 2][..]));
    }
}
