//! The filter language of `ss` (`struct inet_diag_bc_op`): conditions that jump forward.
//!
//! An operation says how far to go on if it holds and if it does not. Who arrives exactly at the end is
//! shown. Every jump goes forward by at least an operation ([`audit`]), so that a program of `n`
//! octets ends within `n / 4` steps.

use super::super::wire::word;
use crate::errno::Errno;
use crate::syscall::abi::octets;
use core::net::IpAddr;

/// Octets of an operation.
const OP: usize = 4;
/// Octets of `struct inet_diag_hostcond` before the address.
const HOSTCOND: usize = 8;

/// Codes.
mod code {
    pub(super) const NOP: u8 = 0;
    pub(super) const JMP: u8 = 1;
    pub(super) const S_GE: u8 = 2;
    pub(super) const S_LE: u8 = 3;
    pub(super) const D_GE: u8 = 4;
    pub(super) const D_LE: u8 = 5;
    pub(super) const AUTO: u8 = 6;
    pub(super) const S_COND: u8 = 7;
    pub(super) const D_COND: u8 = 8;
    pub(super) const DEV_COND: u8 = 9;
    pub(super) const MARK_COND: u8 = 10;
    pub(super) const S_EQ: u8 = 11;
    pub(super) const D_EQ: u8 = 12;
}

/// What a filter looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject {
    pub(super) src: IpAddr,
    pub(super) sport: u16,
    pub(super) dst: IpAddr,
    pub(super) dport: u16,
    pub(super) dev: u32,
    pub(super) mark: u32,
    /// The program chose its port.
    pub(super) bound_port: bool,
}

/// An operation: code, and how far to go on.
#[derive(Debug, Clone, Copy)]
struct Op {
    code: u8,
    yes: usize,
    no: usize,
}

impl Op {
    fn read(b: &[u8]) -> Option<Self> {
        let b: [u8; OP] = octets(b, 0)?;
        Some(Self { code: b[0], yes: b[1].into(), no: u16::from_ne_bytes([b[2], b[3]]).into() })
    }

    /// Octets of the operation and what belongs to it.
    fn size(&self, b: &[u8]) -> Result<usize, Errno> {
        let size = match self.code {
            code::NOP | code::JMP | code::AUTO => OP,
            code::S_GE..=code::D_LE | code::S_EQ | code::D_EQ | code::DEV_COND => OP + 4,
            code::MARK_COND => OP + 8,
            code::S_COND | code::D_COND => {
                let (family, bits) = (*b.get(OP).ok_or(Errno::EINVAL)?, *b.get(OP + 1).ok_or(Errno::EINVAL)?);
                let addr = match family {
                    0 => 0,
                    2 => 4,
                    10 => 16,
                    _ => return Err(Errno::EINVAL),
                };
                if usize::from(bits) > addr * 8 {
                    return Err(Errno::EINVAL);
                }
                OP + HOSTCOND + addr
            }
            _ => return Err(Errno::EINVAL),
        };
        if b.len() < size { Err(Errno::EINVAL) } else { Ok(size) }
    }
}

/// Checks a filter (Linux `inet_diag_bc_audit`).
///
/// # Errors
/// `EINVAL`.
pub(super) fn audit(mut b: &[u8]) -> Result<(), Errno> {
    while !b.is_empty() {
        let op = Op::read(b).ok_or(Errno::EINVAL)?;
        let size = op.size(b)?;
        let jumps = op.code != code::NOP;
        if jumps && (op.no < OP || op.no > b.len() + OP || op.no % 4 != 0) {
            return Err(Errno::EINVAL);
        }
        if op.yes < size || op.yes > b.len() + OP || op.yes % 4 != 0 {
            return Err(Errno::EINVAL);
        }
        b = b.get(op.yes..).unwrap_or_default();
    }
    Ok(())
}

/// True if the filter, which has been audited, shows the socket (Linux `inet_diag_bc_run`).
pub(super) fn run(mut b: &[u8], s: &Subject) -> bool {
    while !b.is_empty() {
        let Some(op) = Op::read(b) else { return false };
        let step = if op.holds(b, s) { op.yes } else { op.no };
        match b.get(step..) {
            // A jump into what the audit did not see may stand still.
            Some(rest) if step >= OP => b = rest,
            _ => return false,
        }
    }
    true
}

impl Op {
    fn holds(&self, b: &[u8], s: &Subject) -> bool {
        // A port stands in the `no` of the operation behind.
        let port = octets::<2>(b, OP + 2).map_or(0, u16::from_ne_bytes);
        match self.code {
            code::NOP => true,
            code::S_EQ => s.sport == port,
            code::S_GE => s.sport >= port,
            code::S_LE => s.sport <= port,
            code::D_EQ => s.dport == port,
            code::D_GE => s.dport >= port,
            code::D_LE => s.dport <= port,
            code::AUTO => !s.bound_port,
            code::S_COND => host_matches(&b[OP..], s.src, s.sport),
            code::D_COND => host_matches(&b[OP..], s.dst, s.dport),
            code::DEV_COND => word(b, OP) == Some(s.dev),
            code::MARK_COND => match (word(b, OP), word(b, OP + 4)) {
                (Some(mark), Some(mask)) => s.mark & mask == mark,
                _ => false,
            },
            _ => false,
        }
    }
}

fn host_matches(cond: &[u8], addr: IpAddr, port: u16) -> bool {
    let (Some(head), Some(want)) = (octets::<2>(cond, 0), octets(cond, 4).map(i32::from_ne_bytes)) else { return false };
    let [family, bits] = head;
    if want != -1 && want != i32::from(port) {
        return false;
    }
    if bits == 0 {
        return true;
    }
    let prefix = cond.get(HOSTCOND..).unwrap_or_default();
    match (family, addr) {
        (0 | 2, IpAddr::V4(a)) => same_prefix(prefix, &a.octets(), bits),
        (0 | 10, IpAddr::V6(a)) => same_prefix(prefix, &a.octets(), bits),
        (2, IpAddr::V6(a)) => a.to_ipv4_mapped().is_some_and(|a| same_prefix(prefix, &a.octets(), bits)),
        _ => false,
    }
}

fn same_prefix(prefix: &[u8], addr: &[u8], bits: u8) -> bool {
    let (whole, rest) = (usize::from(bits / 8), bits % 8);
    let (Some(a), Some(b)) = (prefix.get(..whole), addr.get(..whole)) else { return false };
    if a != b {
        return false;
    }
    match (rest, prefix.get(whole), addr.get(whole)) {
        (0, ..) => true,
        (_, Some(a), Some(b)) => (a ^ b) >> (8 - rest) == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    fn subject() -> Subject {
        let v4 = |a| IpAddr::V4(Ipv4Addr::from_bits(a));
        Subject { src: v4(0x0a00_0001), sport: 80, dst: v4(0x0a00_0002), dport: 40000, dev: 0, mark: 5, bound_port: true }
    }

    fn op(code: u8, yes: u8, no: u16) -> Vec<u8> {
        let [a, b] = no.to_ne_bytes();
        Vec::from([code, yes, a, b])
    }

    #[test]
    fn filters_of_ss_hold_as_on_linux() {
        let eq = |code: u8, port: u16| [op(code, 8, 12), op(0, 0, port)].concat();
        for (code, port, want) in [(11, 80, true), (11, 81, false), (12, 40000, true), (2, 80, true), (3, 79, false), (5, 50000, true)] {
            let b = eq(code, port);
            assert_eq!(audit(&b), Ok(()));
            assert_eq!(run(&b, &subject()), want, "{code} {port}");
        }
        // `src 10.0.0.0/24` and `dst 10.1.0.0/16 or sport 80`.
        let cond = |code: u8, no: u16, bits: u8, addr: [u8; 4]| {
            [op(code, 16, no), Vec::from([2, bits, 0, 0, 0xff, 0xff, 0xff, 0xff]), addr.to_vec()].concat()
        };
        assert!(run(&cond(7, 20, 24, [10, 0, 0, 9]), &subject()));
        assert!(!run(&cond(7, 20, 24, [10, 0, 1, 9]), &subject()));
        let either = [cond(8, 20, 16, [10, 1, 0, 0]), op(1, 4, 12), eq(11, 80)].concat();
        assert_eq!(audit(&either), Ok(()));
        assert!(run(&either, &subject()));
    }

    #[test]
    fn wrong_filters_are_refused() {
        for b in [
            &[11, 8, 12][..],
            &[11, 8, 12, 0],
            &[99, 4, 4, 0],
            &[11, 0, 12, 0, 0, 0, 80, 0],
            &[11, 8, 3, 0, 0, 0, 80, 0],
            &[7, 16, 4, 0, 2, 33, 0, 0],
        ] {
            assert_eq!(audit(b), Err(Errno::EINVAL), "{b:?}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_end(b in prop::collection::vec(prop_oneof![0u8..16, any::<u8>()], 0..64)) {
            let _ = audit(&b);
            let _ = run(&b, &subject());
        }
    }
}
