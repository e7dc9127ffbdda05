//! `sk_buff`: a packet on its way through the stack.
//!
//! The octets lie in DMA buffers ([`ringlab_ring::pool::Buf`]); an `SkBuff` is a
//! list of fragments of them. Layers move the start ([`SkBuff::pull`],
//! [`SkBuff::push`]), never the data. A clone shares the data; a shared head has
//! no headroom to push into, so whoever pushes onto a clone gives it a head of
//! its own ([`SkBuff::push_head`]), as `tcp_transmit_skb` does.
//!
//! Headers are parsed from a copy ([`SkBuff::copy_bits`]): the device may write
//! its buffers at any time.

mod cb;
#[cfg(test)]
mod tests;

pub use cb::{Checksum, Gso, IpCb, PacketType, TcpCb};

use crate::time::Instant;
use alloc::boxed::Box;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use ringlab_ring::memory::{Slice, fold};
use ringlab_ring::pool::{Buf, Pool};

/// Most fragments of a packet: a 64 KiB frame in 4 KiB buffers, plus a head and one for misalignment.
pub const MAX_SKB_FRAGS: usize = 20;
/// Headroom of a packet that starts here: virtio-net header, Ethernet, IP and TCP with all options.
pub const MAX_HEADER: u32 = 160;

/// A run of octets in one DMA buffer.
#[derive(Clone, Debug)]
pub struct Frag {
    /// The buffer.
    pub buf: Buf,
    /// First octet, relative to the buffer.
    pub off: u32,
    /// Octets.
    pub len: u32,
}

impl Frag {
    /// The octets.
    pub fn slice(&self) -> Slice<'_> {
        self.buf.slice(self.off, self.len)
    }
}

/// A packet.
#[derive(Debug, Default)]
pub struct SkBuff {
    frags: ArrayVec<Frag, MAX_SKB_FRAGS>,
    len: u32,
    /// Number of the packet on this host, for traces; 0 until given one.
    pub id: u64,
    /// Device it came from or goes to (ifindex; 0: none yet).
    pub dev: u32,
    /// RX or TX queue.
    pub queue: u16,
    /// EtherType.
    pub protocol: u16,
    /// Link-layer addressee.
    pub pkt_type: PacketType,
    /// Transport checksum.
    pub csum: Checksum,
    /// Segments, if more than one.
    pub gso: Option<Gso>,
    /// Flow hash (Toeplitz from the device, or computed), 0: none.
    pub hash: u32,
    /// Socket that pays for it (0: none) and how much: `sk_wmem_alloc`, `sk_rmem_alloc`.
    pub owner: u32,
    /// Octets of memory that it is charged for.
    pub truesize: u32,
    /// `SO_PRIORITY`, for `pfifo_fast`.
    pub priority: u32,
    /// `IP_MULTICAST_LOOP` is off: members on this host do not get it.
    pub mc_loop_off: bool,
    /// Its owner has no room to speak of for more: it waits for this one to be sent.
    pub pressed: bool,
    /// When it arrived.
    pub tstamp: Instant,
    /// IP's findings.
    pub ip: IpCb,
    /// TCP's findings.
    pub tcp: TcpCb,
    /// Offset of the network header from the *current* start, set by IP input so
    /// that ICMP can quote the packet: octets to push back to reach it.
    pub network_back: u32,
    /// Same for the link-layer header.
    pub mac_back: u32,
}

/// Fewer octets than asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short;

impl SkBuff {
    /// An empty packet; [`SkbCache::get`] avoids the allocation.
    pub fn new() -> Box<Self> {
        Box::default()
    }

    /// Octets from the current start to the end.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True if no octet is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The fragments, in order; together they are exactly [`Self::len`] octets.
    pub fn frags(&self) -> &[Frag] {
        &self.frags
    }

    /// Gives it a fresh linear head of `room` octets, with `headroom` of them in
    /// front of the (empty) data. `false` if the pool is empty.
    pub fn alloc_head(&mut self, pool: &Pool, headroom: u32, room: u32) -> bool {
        debug_assert!(self.frags.is_empty());
        let Some(buf) = pool.alloc(headroom.saturating_add(room)) else { return false };
        self.frags.push(Frag { buf, off: headroom, len: 0 });
        true
    }

    /// Appends octets of a buffer. `false` if there are [`MAX_SKB_FRAGS`] already.
    /// Octets that continue the last fragment extend it.
    pub fn append(&mut self, frag: Frag) -> bool {
        self.len += frag.len;
        if let Some(last) = self.frags.last_mut()
            && last.buf.offset() == frag.buf.offset()
            && last.off + last.len == frag.off
        {
            last.len += frag.len;
            return true;
        }
        let len = frag.len;
        let ok = self.frags.try_push(frag).is_ok();
        if !ok {
            self.len -= len;
        }
        ok
    }

    /// Fragments that can still be appended.
    pub fn frag_room(&self) -> usize {
        self.frags.remaining_capacity()
    }

    /// Room after the last octet of the last fragment, if its buffer is not shared.
    pub fn tailroom(&self) -> u32 {
        self.frags.last().filter(|f| f.buf.refs() == 1).map_or(0, |f| f.buf.capacity() - f.off - f.len)
    }

    /// Extends the data by `len` octets at the tail (Linux `skb_put`) and returns
    /// where to write them.
    ///
    /// # Panics
    /// If [`Self::tailroom`] is less.
    pub fn put(&mut self, len: u32) -> Slice<'_> {
        assert!(self.tailroom() >= len, "tailroom was checked");
        let last = self.frags.last_mut().expect("tailroom implies a fragment");
        let at = last.off + last.len;
        last.len += len;
        self.len += len;
        last.buf.slice(at, len)
    }

    /// Appends bytes at the tail.
    ///
    /// # Panics
    /// If [`Self::tailroom`] is less.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.put(bytes.len() as u32).write(bytes);
    }

    /// Octets in front of the start that may be written.
    pub fn headroom(&self) -> u32 {
        self.frags.first().filter(|f| f.buf.refs() == 1).map_or(0, |f| f.off)
    }

    /// Writes a header in front of the data (Linux `skb_push`).
    ///
    /// # Panics
    /// If [`Self::headroom`] is less.
    pub fn push(&mut self, header: &[u8]) {
        let n = header.len() as u32;
        assert!(self.headroom() >= n, "headroom was checked");
        let first = self.frags.first_mut().expect("headroom implies a fragment");
        first.off -= n;
        first.len += n;
        self.len += n;
        first.buf.slice(first.off, n).write(header);
        self.network_back = 0;
        self.mac_back = 0;
    }

    /// Puts a fresh head with `headroom` octets in front, for a clone whose data
    /// is shared. `false` if the pool is empty or there are too many fragments.
    pub fn push_head(&mut self, pool: &Pool, headroom: u32) -> bool {
        if self.frags.is_full() {
            return false;
        }
        let Some(buf) = pool.alloc(headroom) else { return false };
        self.frags.insert(0, Frag { buf, off: headroom, len: 0 });
        self.network_back = 0;
        self.mac_back = 0;
        true
    }

    /// Moves the start over a header (Linux `skb_pull`). The first fragment stays, even if empty, so that
    /// [`Self::unpull`] finds the headers that lay in it.
    ///
    /// # Errors
    /// [`Short`] if there are fewer octets; nothing is changed then.
    pub fn pull(&mut self, n: u32) -> Result<(), Short> {
        if n > self.len {
            return Err(Short);
        }
        let mut left = n;
        let mut beyond = false;
        let mut gone = 0;
        for (i, f) in self.frags.iter_mut().enumerate() {
            let take = left.min(f.len);
            f.off += take;
            f.len -= take;
            left -= take;
            beyond |= i > 0 && take > 0;
            if f.len > 0 || left == 0 {
                break;
            }
            gone = i;
        }
        if beyond {
            // What lay before is not contiguous with what was pulled now: no way back.
            self.frags.drain(..gone.max(1));
            self.network_back = 0;
            self.mac_back = 0;
        } else {
            self.network_back += n;
            self.mac_back += n;
        }
        self.len -= n;
        Ok(())
    }

    /// Moves the start back over `n` octets pulled before, without writing.
    /// `false` if they are gone.
    pub fn unpull(&mut self, n: u32) -> bool {
        let Some(first) = self.frags.first_mut().filter(|f| f.off >= n) else { return false };
        first.off -= n;
        first.len += n;
        self.len += n;
        self.network_back = self.network_back.saturating_sub(n);
        self.mac_back = self.mac_back.saturating_sub(n);
        true
    }

    /// Cuts the data to `len` octets (Linux `pskb_trim`); longer is left alone.
    pub fn trim(&mut self, len: u32) {
        while self.len > len {
            let last = self.frags.last_mut().expect("a length implies fragments");
            let cut = (self.len - len).min(last.len);
            last.len -= cut;
            self.len -= cut;
            if last.len == 0 && self.frags.len() > 1 {
                self.frags.pop();
            }
        }
    }

    /// Copies `dst.len()` octets at `off` (Linux `skb_copy_bits`).
    ///
    /// # Errors
    /// [`Short`] if there are fewer.
    pub fn copy_bits(&self, off: u32, dst: &mut [u8]) -> Result<(), Short> {
        let n = dst.len();
        if u64::from(off) + n as u64 > u64::from(self.len) {
            return Err(Short);
        }
        let mut done = 0;
        self.for_each(off, n as u32, |s| {
            s.read(&mut dst[done..done + s.len()]);
            done += s.len();
        });
        Ok(())
    }

    /// Overwrites octets at `off` (Linux `skb_store_bits`). The caller owns the data.
    ///
    /// # Errors
    /// [`Short`] if there are fewer.
    pub fn store_bits(&mut self, off: u32, src: &[u8]) -> Result<(), Short> {
        if u64::from(off) + src.len() as u64 > u64::from(self.len) {
            return Err(Short);
        }
        let mut done = 0;
        self.for_each(off, src.len() as u32, |s| {
            s.write(&src[done..done + s.len()]);
            done += s.len();
        });
        Ok(())
    }

    /// Calls `f` for each contiguous run of the `len` octets at `off` (clipped to the data).
    pub fn for_each(&self, off: u32, len: u32, mut f: impl FnMut(Slice<'_>)) {
        for (frag, start, n) in self.runs(off, len) {
            f(frag.buf.slice(start, n));
        }
    }

    /// The contiguous runs of the `len` octets at `off` (clipped to the data): fragment, first octet in its buffer, octets.
    #[inline]
    pub fn runs(&self, off: u32, len: u32) -> impl Iterator<Item = (&Frag, u32, u32)> {
        let (mut skip, mut left) = (off, len.min(self.len.saturating_sub(off)));
        let runs = self.frags.iter().map_while(move |frag| {
            let start = skip.min(frag.len);
            let n = left.min(frag.len - start);
            let more = left > 0;
            skip -= start;
            left -= n;
            more.then_some((frag, frag.off + start, n))
        });
        runs.filter(|&(_, _, n)| n > 0)
    }

    /// One's complement sum of the `len` octets at `off`, folded, on top of `sum`
    /// (an unfolded accumulator such as a pseudo-header's).
    pub fn checksum(&self, off: u32, len: u32, sum: u64) -> u16 {
        let mut total = sum;
        let mut odd = false;
        self.for_each(off, len, |s| {
            let part = fold(s.checksum_add(0));
            total += u64::from(if odd { part.swap_bytes() } else { part });
            odd ^= s.len() % 2 == 1;
        });
        fold(total)
    }

    /// A packet with the same data and metadata (Linux `skb_clone`). Put it into `to`,
    /// an empty packet of the cache.
    pub fn clone_into(&self, mut to: Box<SkBuff>) -> Box<SkBuff> {
        to.frags.clear();
        to.frags.extend(self.frags.iter().cloned());
        to.len = self.len;
        to.id = self.id;
        to.truesize = self.truesize;
        to.tcp = self.tcp;
        to.gso = self.gso;
        to.csum = self.csum;
        to.network_back = self.network_back;
        to.mac_back = self.mac_back;
        self.clone_metadata_to(&mut to);
        to
    }

    /// Copies what is known of the packet apart from its data, its charge, and how to cut and sum it
    /// (Linux `__copy_skb_header`).
    pub fn clone_metadata_to(&self, to: &mut SkBuff) {
        to.dev = self.dev;
        to.queue = self.queue;
        to.protocol = self.protocol;
        to.pkt_type = self.pkt_type;
        to.hash = self.hash;
        to.priority = self.priority;
        to.mc_loop_off = self.mc_loop_off;
        to.pressed = self.pressed;
        to.tstamp = self.tstamp;
        to.ip = self.ip;
    }

    /// Appends `len` octets at `off` to `to`, sharing the data. Octets beyond [`MAX_SKB_FRAGS`] fragments of `to` are left out.
    pub fn share_into(&self, off: u32, len: u32, to: &mut SkBuff) {
        for (frag, off, len) in self.runs(off, len) {
            to.append(Frag { buf: frag.buf.clone(), off, len });
        }
    }

    /// Moves all octets into `buf` at `off`: one fragment (Linux `skb_linearize`). The caller counts the copy.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn replace_data(&mut self, buf: Buf, off: u32) {
        let mut at = off;
        self.for_each(0, self.len, |s| {
            s.copy_to(&buf.slice(at, s.len() as u32));
            at += s.len() as u32;
        });
        self.frags.clear();
        self.frags.push(Frag { buf, off, len: self.len });
        self.network_back = 0;
        self.mac_back = 0;
    }

    /// The transport checksum starts `n` octets later (a header was pushed) or, negative, earlier (pulled).
    pub fn shift_csum(&mut self, n: i32) {
        if let Checksum::Partial { start, offset } = self.csum {
            self.csum = match u16::try_from(i32::from(start) + n) {
                Ok(start) => Checksum::Partial { start, offset },
                Err(_) => Checksum::Unnecessary,
            };
        }
    }

    /// True if its sender may sleep until it is freed: it is charged, and not to a stream, whose ACKs come anyway.
    pub fn is_awaited(&self) -> bool {
        self.owner != 0 && self.tcp.hdr_len == 0
    }

    /// True if another packet holds (part of) the data.
    pub fn is_cloned(&self) -> bool {
        self.frags.iter().any(|f| f.buf.refs() > 1)
    }

    /// Moves the octets from `at` on to `tail`, an empty packet (Linux `skb_split`).
    pub fn split_into(&mut self, at: u32, tail: &mut SkBuff) {
        debug_assert!(tail.frags.is_empty());
        let mut pos = 0;
        let mut keep = 0;
        for f in &mut self.frags {
            let end = pos + f.len;
            if end <= at {
                keep += 1;
            } else {
                let cut = at.saturating_sub(pos);
                tail.frags.push(Frag { buf: f.buf.clone(), off: f.off + cut, len: f.len - cut });
                tail.len += f.len - cut;
                if cut > 0 {
                    f.len = cut;
                    keep += 1;
                }
            }
            pos = end;
        }
        self.frags.truncate(keep);
        self.len = self.len.min(at);
    }

    /// Appends all data of `next` (Linux `skb_try_coalesce`). `false`, and nothing
    /// is changed, if the fragments do not fit.
    pub fn coalesce(&mut self, next: &mut SkBuff) -> bool {
        if self.frags.remaining_capacity() < next.frags.len() {
            return false;
        }
        for f in next.frags.drain(..) {
            if f.len > 0 {
                self.append(f);
            }
        }
        next.len = 0;
        true
    }

    /// Forgets everything. Field by field: a new default would be built and moved, all fragments' room with it.
    fn reset(&mut self) {
        // All by name, so that a field that is added is not forgotten.
        let Self {
            frags,
            len,
            id,
            dev,
            queue,
            protocol,
            pkt_type,
            csum,
            gso,
            hash,
            owner,
            truesize,
            priority,
            mc_loop_off,
            pressed,
            tstamp,
            ip,
            tcp,
            network_back,
            mac_back,
        } = self;
        frags.clear();
        (*len, *id, *dev, *queue, *protocol, *hash, *owner, *truesize, *priority) = (0, 0, 0, 0, 0, 0, 0, 0, 0);
        (*pkt_type, *csum, *gso) = (PacketType::default(), Checksum::default(), None);
        (*mc_loop_off, *pressed, *network_back, *mac_back) = (false, false, 0, 0);
        *tstamp = Instant::default();
        *ip = IpCb::default();
        *tcp = TcpCb::default();
    }
}

/// Packets to use again, so that the fast path does not allocate (Linux `skbuff_cache`).
#[derive(Debug, Default)]
pub struct SkbCache {
    #[expect(clippy::vec_box, reason = "a packet keeps its place in memory from queue to queue")]
    free: Vec<Box<SkBuff>>,
    /// Packets handed out so far: the next trace number.
    count: u64,
}

impl SkbCache {
    const KEEP: usize = 1024;

    /// An empty packet with a number of its own.
    pub fn get(&mut self) -> Box<SkBuff> {
        let mut skb = self.free.pop().unwrap_or_default();
        self.count += 1;
        skb.id = self.count;
        skb
    }

    /// Takes a packet back (Linux `consume_skb`); its data lose one reference.
    pub fn put(&mut self, mut skb: Box<SkBuff>) {
        if self.free.len() < Self::KEEP {
            skb.reset();
            self.free.push(skb);
        }
    }
}
