//! `SOL_PACKET` options.

use super::{PacketSock, po};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::dev::net_device::IfIndex;
use crate::errno::Errno;
use crate::sock::{Proto, Sock};
use crate::syscall::abi::octets;
use crate::syscall::{Fd, OptVal};
use alloc::vec::Vec;

const ADD_MEMBERSHIP: i32 = 1;
const DROP_MEMBERSHIP: i32 = 2;
const RX_RING: i32 = 5;
const STATISTICS: i32 = 6;
const COPY_THRESH: i32 = 7;
const AUXDATA: i32 = 8;
const ORIGDEV: i32 = 9;
const VERSION: i32 = 10;
const HDRLEN: i32 = 11;
const RESERVE: i32 = 12;
const LOSS: i32 = 14;
const TIMESTAMP: i32 = 17;
const QDISC_BYPASS: i32 = 20;
const IGNORE_OUTGOING: i32 = 23;
const SOL_PACKET: i32 = 263;

/// `struct packet_mreq`: what a membership asks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Membership {
    dev: u32,
    kind: u16,
    alen: u16,
    addr: [u8; 8],
}

/// `PACKET_MR_*`.
const MR_MULTICAST: u16 = 0;
const MR_PROMISC: u16 = 1;
const MR_ALLMULTI: u16 = 2;
const MR_UNICAST: u16 = 3;

/// A value: an `int` in octets, or typed.
fn int(val: &OptVal) -> Result<i32, Errno> {
    match val {
        OptVal::Int(n) => Ok(*n),
        OptVal::Bytes(b) => octets(b, 0).map(i32::from_ne_bytes).ok_or(Errno::EINVAL),
        _ => Err(Errno::EINVAL),
    }
}

impl Kernel {
    pub(crate) fn packet_setsockopt(&mut self, sk: &mut Sock, name: i32, val: &OptVal) -> Result<(), Errno> {
        if let (ADD_MEMBERSHIP | DROP_MEMBERSHIP, OptVal::Bytes(b)) = (name, val) {
            return self.packet_membership(sk, name == ADD_MEMBERSHIP, b);
        }
        let p = po(sk)?;
        match name {
            AUXDATA => p.auxdata = int(val)? != 0,
            ORIGDEV => p.origdev = int(val)? != 0,
            IGNORE_OUTGOING => match int(val)? {
                n @ 0..=1 => p.ignore_outgoing = n == 1,
                _ => return Err(Errno::EINVAL),
            },
            VERSION | RESERVE if p.ring.is_some() => return Err(Errno::EBUSY),
            VERSION => match int(val)? {
                n @ 0..=2 => p.version = n,
                _ => return Err(Errno::EINVAL),
            },
            RESERVE => p.reserve = u32::try_from(int(val)?).map_err(|_| Errno::EINVAL)?,
            // The memory comes with `packet_set_ring`.
            RX_RING => return Err(Errno::EINVAL),
            COPY_THRESH | LOSS | TIMESTAMP | QDISC_BYPASS => {
                let n = int(val)?;
                p.kept.retain(|k| k.0 != name);
                p.kept.push((name, if matches!(name, LOSS | QDISC_BYPASS) { i32::from(n != 0) } else { n }));
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    pub(crate) fn packet_getsockopt(&mut self, sk: &mut Sock, name: i32) -> Result<OptVal, Errno> {
        let p = po(sk)?;
        Ok(OptVal::Int(match name {
            STATISTICS => return Ok(OptVal::Bytes(p.take_statistics())),
            AUXDATA => p.auxdata.into(),
            ORIGDEV => p.origdev.into(),
            IGNORE_OUTGOING => p.ignore_outgoing.into(),
            VERSION => p.version,
            RESERVE => p.reserve as i32,
            LOSS | TIMESTAMP | QDISC_BYPASS => p.kept.iter().find(|k| k.0 == name).map_or(0, |k| k.1),
            _ => return Err(Errno::ENOPROTOOPT),
        }))
    }

    /// Options whose reading depends on what is in the program's buffer: `PACKET_HDRLEN` takes a version there.
    pub(crate) fn packet_getsockopt_input(&self, task: TaskId, fd: Fd, lvl: i32, name: i32, b: &[u8]) -> Option<Result<OptVal, Errno>> {
        let (_, id) = self.fget_sock(task, fd).ok()?;
        if (lvl, name) != (SOL_PACKET, HDRLEN) || !matches!(self.socks.get(id)?.proto, Proto::Packet(_)) {
            return None;
        }
        Some(match octets(b, 0).map(i32::from_ne_bytes) {
            Some(0 | 1) => Ok(OptVal::Int(32)),
            Some(2) => Ok(OptVal::Int(48)),
            _ => Err(Errno::EINVAL),
        })
    }

    /// `PACKET_ADD_MEMBERSHIP`, `PACKET_DROP_MEMBERSHIP` (Linux `packet_mc_add`, `packet_mc_drop`).
    fn packet_membership(&mut self, sk: &mut Sock, add: bool, b: &[u8]) -> Result<(), Errno> {
        let (dev, kind, alen) = (octets(b, 0), octets(b, 4), octets(b, 6));
        let (Some(dev), Some(kind), Some(alen), Some(addr)) = (dev, kind, alen, octets(b, 8)) else { return Err(Errno::EINVAL) };
        let wanted = Membership { dev: u32::from_ne_bytes(dev), kind: u16::from_ne_bytes(kind), alen: u16::from_ne_bytes(alen), addr };
        if !add {
            let p = po(sk)?;
            let at = p.memberships.iter().position(|m| *m == wanted).ok_or(Errno::EADDRNOTAVAIL)?;
            p.memberships.swap_remove(at);
            self.packet_mr(&wanted, false);
            return Ok(());
        }
        if self.devs.get(IfIndex(wanted.dev)).is_none() {
            return Err(Errno::ENODEV);
        }
        let sized = matches!(wanted.kind, MR_MULTICAST | MR_UNICAST);
        if wanted.alen > 6 || wanted.kind > MR_UNICAST || sized && wanted.alen != 6 {
            return Err(Errno::EINVAL);
        }
        po(sk)?.memberships.push(wanted);
        self.packet_mr(&wanted, true);
        Ok(())
    }

    /// Linux `packet_dev_mc`. Devices here take every frame of their wire; the counts are what is shown of it.
    fn packet_mr(&mut self, m: &Membership, on: bool) {
        let Some(device) = self.devs.get_mut(IfIndex(m.dev)) else { return };
        let count = match m.kind {
            MR_PROMISC => &mut device.promiscuity,
            MR_ALLMULTI => &mut device.allmulti,
            _ => return,
        };
        *count = if on { *count + 1 } else { count.saturating_sub(1) };
    }

    pub(super) fn packet_drop_memberships(&mut self, sk: &mut Sock) {
        let Ok(p) = po(sk) else { return };
        for m in core::mem::take(&mut p.memberships) {
            self.packet_mr(&m, false);
        }
    }
}

impl PacketSock {
    /// `struct tpacket_stats` or `struct tpacket_stats_v3`: packets, those dropped included; both start again from 0.
    fn take_statistics(&mut self) -> Vec<u8> {
        let (packets, drops) = (core::mem::take(&mut self.packets), core::mem::take(&mut self.dropped));
        let mut b = [packets, drops].map(u32::to_ne_bytes).concat();
        if let Some(ring) = self.ring.as_mut().filter(|r| r.is_v3()) {
            b.extend(ring.take_freezes().to_ne_bytes());
        }
        b
    }
}
