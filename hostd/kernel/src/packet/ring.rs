//! `PACKET_RX_RING`: frames in memory that the program has mapped (`TPACKET_V1`, `TPACKET_V2`, `TPACKET_V3`).
//!
//! Whoever runs the program makes the memory, maps it there, and hands it over with
//! [`crate::Kernel::packet_set_ring`]; it is `block_size * block_nr` octets, blocks one after the other.
//! A status word says whose a frame (V1, V2) or a block (V3) is; it is written last, and what the program
//! writes is not trusted beyond it. V1 and V2: every frame by itself. V3: frames fill a block, which is the program's when
//! it is full or its time is over.

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::errno::Errno;
use crate::skb::SkBuff;
use crate::sock::{Proto, Sock, SockId};
use crate::syscall::abi::emit_link;
use crate::syscall::{AuxData, Fd, LinkAddr};
use crate::timer::TimerKey;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;
use ringlab_ring::memory::Region;

const PAGE: u32 = 4096;
const ALIGNMENT: u32 = 16;
/// Octets of `struct tpacket_hdr` where a `long` has 64 bits, as of `struct tpacket2_hdr`, and of `struct tpacket3_hdr`.
const HDR_V2: u32 = 32;
const HDR_V3: u32 = 48;
const SOCKADDR_LL: u32 = 20;
/// Octets of `struct tpacket_block_desc`.
const BLOCK_HDR: u32 = 48;
/// `TP_STATUS_*`.
const KERNEL: u32 = 0;
const USER: u32 = 1;
const LOSING: u32 = 4;
const BLK_TMO: u32 = 0x20;
const NANOS: u64 = 1_000_000_000;
const NANOS_PER_MICRO: u64 = 1000;
/// A block's time when the program asks for none: the 8 ms that Linux computes for a link of 1 Gbit/s or slower.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(8);

/// `PACKET_VERSION`: what the headers of frames look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
    V3,
}

impl Version {
    /// Octets in front of a frame, without its address.
    fn header(self) -> u32 {
        if self == Self::V3 { HDR_V3 } else { HDR_V2 }
    }
}

/// `struct tpacket_req`, `struct tpacket_req3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingRequest {
    /// Octets of a block: whole pages.
    pub block_size: u32,
    /// Blocks; 0 takes the ring away.
    pub block_nr: u32,
    /// Octets of a frame: a multiple of 16.
    pub frame_size: u32,
    /// Frames in all blocks.
    pub frame_nr: u32,
    /// V3: milliseconds after which a block that is not full is handed over; 0: the kernel's choice.
    pub retire_tov: u32,
    /// V3: octets at the start of each block for the program.
    pub priv_size: u32,
}

impl RingRequest {
    /// Reads what a program passes to `setsockopt(PACKET_RX_RING)`.
    ///
    /// # Errors
    /// `EINVAL` if it is too short.
    pub fn parse(b: &[u8]) -> Result<Self, Errno> {
        let word = |at: usize| crate::syscall::abi::octets(b, at).map(u32::from_ne_bytes);
        let must = |at: usize| word(at).ok_or(Errno::EINVAL);
        Ok(Self {
            block_size: must(0)?,
            block_nr: must(4)?,
            frame_size: must(8)?,
            frame_nr: must(12)?,
            retire_tov: word(16).unwrap_or(0),
            priv_size: word(20).unwrap_or(0),
        })
    }

    /// Octets of memory.
    pub fn len(&self) -> u64 {
        u64::from(self.block_size) * u64::from(self.block_nr)
    }

    /// True if the ring is to be taken away.
    pub fn is_empty(&self) -> bool {
        self.block_nr == 0
    }

    /// Linux `packet_set_ring`'s checks.
    fn check(&self, version: Version, reserve: u32) -> Result<(), Errno> {
        let header = version.header() + SOCKADDR_LL + reserve;
        let per_block = self.block_size.checked_div(self.frame_size).unwrap_or(0);
        let good = self.block_size != 0
            && self.block_size.is_multiple_of(PAGE)
            && self.frame_size >= header
            && self.frame_size.is_multiple_of(ALIGNMENT)
            && per_block != 0
            && per_block.checked_mul(self.block_nr) == Some(self.frame_nr)
            && (version != Version::V3 || BLOCK_HDR.saturating_add(self.priv_size).saturating_add(header) < self.block_size);
        if good && self.len() <= u64::from(u32::MAX) { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

/// A ring in use.
#[derive(Debug)]
pub(super) struct RxRing {
    mem: Region,
    req: RingRequest,
    version: Version,
    cooked: bool,
    reserve: u32,
    /// V1, V2: next frame. V3: block being filled.
    head: u32,
    /// V3: frames and octets in that block, and where its last frame begins.
    filled: u32,
    used: u32,
    last: u32,
    sequence: u64,
    freezes: u32,
}

impl RxRing {
    fn new(mem: Region, req: RingRequest, version: Version, cooked: bool, reserve: u32) -> Self {
        Self { mem, req, version, cooked, reserve, head: 0, filled: 0, used: 0, last: 0, sequence: 0, freezes: 0 }
    }

    /// Puts a packet in. False if the program has not given room back.
    pub(super) fn put(&mut self, skb: &SkBuff, from: &LinkAddr, aux: &AuxData, nanos: u64, losing: bool) -> bool {
        let aux = AuxData { status: aux.status | if losing { LOSING } else { 0 }, ..*aux };
        if self.is_v3() { self.put_v3(skb, from, &aux, nanos) } else { self.put_frame(skb, from, &aux, nanos) }
    }

    /// True if the program has something to take.
    pub(super) fn readable(&self) -> bool {
        let count = if self.is_v3() { self.req.block_nr } else { self.req.frame_nr };
        let before = (self.head + count - 1) % count;
        self.word(self.status_at(before)) != KERNEL
    }

    /// Blocks that the ring waited for (`tp_freeze_q_cnt`), since the last time.
    pub(super) fn take_freezes(&mut self) -> u32 {
        core::mem::take(&mut self.freezes)
    }

    pub(super) fn is_v3(&self) -> bool {
        self.version == Version::V3
    }

    /// Where the link-layer and the network header of a packet go in its frame (Linux `tpacket_rcv`).
    fn places(&self, net: u16) -> (u32, u32) {
        let header = self.version.header() + SOCKADDR_LL;
        if self.cooked {
            let at = header.next_multiple_of(ALIGNMENT) + 16 + self.reserve;
            return (at, at);
        }
        let netoff = (header + u32::from(net).max(16)).next_multiple_of(ALIGNMENT) + self.reserve;
        (netoff - u32::from(net), netoff)
    }

    fn put_frame(&mut self, skb: &SkBuff, from: &LinkAddr, aux: &AuxData, nanos: u64) -> bool {
        let at = self.frame_at(self.head);
        if self.word(at) != KERNEL {
            return false;
        }
        let (mac, net) = self.places(aux.net);
        let len = skb.len().min(self.req.frame_size.saturating_sub(mac));
        self.write_data(at + u64::from(mac), skb, len);
        let mut h = Vec::with_capacity((HDR_V2 + SOCKADDR_LL) as usize);
        let v1 = self.version == Version::V1;
        if v1 {
            h.extend([0; 4]); // the upper half of the status
        }
        h.extend([aux.len, len].map(u32::to_ne_bytes).concat());
        h.extend([mac as u16, net as u16].map(u16::to_ne_bytes).concat());
        let below = nanos % NANOS;
        let fraction = if v1 { below / NANOS_PER_MICRO } else { below };
        h.extend([(nanos / NANOS) as u32, fraction as u32].map(u32::to_ne_bytes).concat());
        if v1 {
            h.extend([0; 4]);
        } else {
            h.extend([aux.vlan_tci, aux.vlan_tpid].map(u16::to_ne_bytes).concat());
            h.extend([0; 4]);
        }
        h.extend(emit_link(from));
        self.write(at + 4, &h);
        self.hand_over(at, aux.status);
        self.head = (self.head + 1) % self.req.frame_nr;
        true
    }

    fn put_v3(&mut self, skb: &SkBuff, from: &LinkAddr, aux: &AuxData, nanos: u64) -> bool {
        let (mac, net) = self.places(aux.net);
        let first = BLOCK_HDR + self.req.priv_size.next_multiple_of(8);
        let most = self.req.block_size - first;
        let len = skb.len().min(most.saturating_sub(mac));
        let whole = (mac + len).next_multiple_of(8);
        if self.filled > 0 && self.used + whole > self.req.block_size {
            self.retire(0);
        }
        let block = u64::from(self.head) * u64::from(self.req.block_size);
        if self.filled == 0 {
            if self.word(block + 8) != KERNEL {
                self.freezes = self.freezes.wrapping_add(1);
                return false;
            }
            self.used = first;
            self.sequence += 1;
            self.write(block, &[1, BLOCK_HDR].map(u32::to_ne_bytes).concat());
            self.write(block + 24, &self.sequence.to_ne_bytes());
            self.write_time(block + 32, nanos);
        } else {
            self.write(block + u64::from(self.last), &(self.used - self.last).to_ne_bytes());
        }
        let at = block + u64::from(self.used);
        self.write_data(at + u64::from(mac), skb, len);
        let words = [0, (nanos / NANOS) as u32, (nanos % NANOS) as u32, len, aux.len, aux.status];
        let mut h = words.map(u32::to_ne_bytes).concat();
        h.extend([mac as u16, net as u16].map(u16::to_ne_bytes).concat());
        h.extend([skb.hash, aux.vlan_tci.into(), aux.vlan_tpid.into()].map(u32::to_ne_bytes).concat());
        h.extend([0; 8]);
        h.extend(emit_link(from));
        self.write(at, &h);
        self.write_time(block + 40, nanos);
        self.last = self.used;
        self.used += whole;
        self.filled += 1;
        true
    }

    /// Hands the block that is being filled to the program. False if there is nothing in it.
    fn retire(&mut self, status: u32) -> bool {
        if self.filled == 0 {
            return false;
        }
        let block = u64::from(self.head) * u64::from(self.req.block_size);
        let first = BLOCK_HDR + self.req.priv_size.next_multiple_of(8);
        self.write(block + 12, &[self.filled, first, self.used].map(u32::to_ne_bytes).concat());
        self.hand_over(block + 8, USER | status);
        self.head = (self.head + 1) % self.req.block_nr;
        (self.filled, self.used, self.last) = (0, 0, 0);
        true
    }

    fn frame_at(&self, n: u32) -> u64 {
        let per_block = self.req.block_size / self.req.frame_size;
        u64::from(n / per_block) * u64::from(self.req.block_size) + u64::from(n % per_block) * u64::from(self.req.frame_size)
    }

    fn status_at(&self, n: u32) -> u64 {
        if self.is_v3() { u64::from(n) * u64::from(self.req.block_size) + 8 } else { self.frame_at(n) }
    }

    fn word(&self, at: u64) -> u32 {
        let mut b = [0; 4];
        if let Ok(s) = self.mem.slice(at, 4) {
            s.read(&mut b);
        }
        fence(Ordering::SeqCst); // the program gave the frame back before its last access to it
        u32::from_ne_bytes(b)
    }

    /// The status word, after all else.
    fn hand_over(&self, at: u64, status: u32) {
        fence(Ordering::SeqCst); // what the frame holds is there before the program may look
        self.write(at, &status.to_ne_bytes());
    }

    fn write(&self, at: u64, b: &[u8]) {
        if let Ok(s) = self.mem.slice(at, b.len()) {
            s.write(b);
        }
    }

    fn write_time(&self, at: u64, nanos: u64) {
        self.write(at, &[(nanos / NANOS) as u32, (nanos % NANOS) as u32].map(u32::to_ne_bytes).concat());
    }

    fn write_data(&self, at: u64, skb: &SkBuff, len: u32) {
        let mut at = at;
        skb.for_each(0, len, |s| {
            if let Ok(dst) = self.mem.slice(at, s.len()) {
                s.copy_to(&dst);
            }
            at += s.len() as u64;
        });
    }
}

impl Kernel {
    /// `setsockopt(PACKET_RX_RING)` with the memory that the program has mapped (`None` with no blocks: the ring is
    /// taken away).
    ///
    /// # Errors
    /// `EBADF`, `ENOTSOCK`; `ENOPROTOOPT` if it is no packet socket; `EBUSY` if it has a ring; `EINVAL` for a geometry that
    /// Linux refuses, or memory of another size.
    pub fn packet_set_ring(&mut self, task: TaskId, fd: Fd, req: RingRequest, mem: Option<Region>) -> Result<(), Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        let set = |k: &mut Kernel, sk: &mut Sock| {
            let Proto::Packet(po) = &mut sk.proto else { return Err(Errno::ENOPROTOOPT) };
            if req.is_empty() {
                if req.frame_nr != 0 {
                    return Err(Errno::EINVAL);
                }
                po.ring = None;
                k.timers.cancel(TimerKey::PacketRing(id));
                return Ok(());
            }
            if po.ring.is_some() {
                return Err(Errno::EBUSY);
            }
            let version = [Version::V1, Version::V2, Version::V3][po.version.clamp(0, 2) as usize];
            req.check(version, po.reserve)?;
            let mem = mem.filter(|m| m.len() as u64 == req.len()).ok_or(Errno::EINVAL)?;
            po.ring = Some(Box::new(RxRing::new(mem, req, version, po.cooked, po.reserve)));
            if version == Version::V3 {
                let at = k.now + block_time(&req);
                k.timers.set(TimerKey::PacketRing(id), at);
            }
            Ok(())
        };
        self.lock_sock(id, set).ok_or(Errno::EBADF)?
    }

    /// The memory of a packet socket's ring, for a program that maps it.
    ///
    /// # Errors
    /// `EBADF`; `ENODEV` for other sockets, `EINVAL` without a ring.
    pub fn packet_ring(&self, task: TaskId, fd: Fd) -> Result<Region, Errno> {
        let (_, id) = self.fget_sock(task, fd)?;
        match self.socks.get(id).map(|sk| &sk.proto) {
            Some(Proto::Packet(po)) => po.ring.as_ref().map(|ring| ring.mem.clone()).ok_or(Errno::EINVAL),
            _ => Err(Errno::ENODEV),
        }
    }

    /// A frame has come into a ring: the program is told of each (V1, V2) or of each block (V3).
    pub(super) fn packet_ring_news(&mut self, sk: &mut Sock) {
        let Proto::Packet(po) = &sk.proto else { return };
        if po.ring.as_ref().is_some_and(|ring| ring.readable()) {
            self.sk_data_ready(sk);
        }
    }

    /// The time of a block is over (Linux `prb_retire_rx_blk_timer_expired`).
    pub(crate) fn packet_ring_timer(&mut self, id: SockId) {
        let Some(mut sk) = self.socks.take(id) else { return };
        if let Proto::Packet(po) = &mut sk.proto
            && let Some(ring) = &mut po.ring
        {
            let next = block_time(&ring.req);
            let retired = ring.retire(BLK_TMO);
            let at = self.now + next;
            self.timers.set(TimerKey::PacketRing(id), at);
            if retired {
                self.sk_data_ready(&mut sk);
            }
        }
        self.socks.put(sk);
    }
}

fn block_time(req: &RingRequest) -> Duration {
    match req.retire_tov {
        0 => DEFAULT_TIMEOUT,
        ms => Duration::from_millis(ms.into()),
    }
}
