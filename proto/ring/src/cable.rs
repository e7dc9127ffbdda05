//! The ring of a cable: one direction of the wire between two NICs.
//!
//! The transmitter owns a region, its *arena*: control words, a ring of
//! *entries*, and storage for frames that it had to copy. The receiver maps it.
//! An entry is a `virtio_net_hdr_v1` and a list of fragments; a fragment names
//! octets of the arena (region 0) or of a region announced beside the ring (the
//! memory of the transmitter's driver), so that a frame crosses the wire with one
//! copy, made by the receiver. The receiver's head index returned is completion.
//!
//! An entry may say when its frame arrives (nanoseconds of `CLOCK_MONOTONIC`, the
//! same in all processes of a machine): a transmitter that delays frames hands them
//! over a little early, so that the hand-over is not added to the delay, and the
//! receiver waits for the moment.
//!
//! Positions are free-running counts of 16-octet units; an entry takes one unit
//! and one more for its time, if it has one, and for each fragment. Both sides suppress wake-ups of a side that
//! runs: a side about to sleep makes its sequence number odd, fences, and looks
//! again; the other side fences after publishing and rings once for each odd
//! number. The peer is untrusted: an entry is copied, then checked.

mod shared;

use crate::atomics::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::atomics::fence;
use crate::memory::{OutOfBounds, Region};
use crate::vnet::VNET_HDR_LEN;
use arrayvec::ArrayVec;
use shared::Shared;
#[cfg(loom)]
pub use shared::loom_pair;

/// Most fragments of an entry.
pub const MAX_FRAGMENTS: usize = 64;
/// Units of a ring; a power of two, so that free-running positions wrap with it.
pub const UNITS: u32 = if cfg!(loom) { 4 } else { 8192 };
/// Offset in the arena at which frame storage begins (a multiple of 64 KiB).
pub const STORAGE: u64 = 3 * 65536;

// One cache line for each word: each has one writer.
const TAIL: usize = 0x000;
const WAIT_SEQ: usize = 0x040;
const WAIT_POS: usize = 0x044;
const HEAD: usize = 0x080;
const SLEEP_SEQ: usize = 0x0c0;

/// A rule of the cable that the peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CableError {
    /// The transmitter published more than the ring holds.
    #[error("cable tail {tail} lies more than a ring beyond head {head}")]
    TailJumped {
        /// Tail as read.
        tail: u32,
        /// Our head.
        head: u32,
    },
    /// The receiver returned what was never sent, or moved back.
    #[error("cable head {head} is not between {last} and tail {tail}")]
    HeadJumped {
        /// Head as read.
        head: u32,
        /// Head before.
        last: u32,
        /// Our tail.
        tail: u32,
    },
    /// An entry of no or too many fragments.
    #[error("cable entry has {0} fragments")]
    FragmentCount(u16),
    /// An entry that is longer than what was published.
    #[error("cable entry of {0} fragments crosses the tail")]
    EntryCrossesTail(u16),
    /// A fragment of a region that was not announced.
    #[error("cable fragment names region {0}, which was not announced")]
    UnknownRegion(u32),
    /// A fragment outside its region.
    #[error("cable fragment: {0}")]
    Fragment(#[from] OutOfBounds),
    /// A frame that no wire carries.
    #[error("cable frame of {0} octets")]
    FrameLength(u64),
    /// The arena is too small for its ring.
    #[error("cable arena of {0} octets is too small")]
    ArenaTooSmall(u64),
}

/// Octets of a frame: `len` octets at `offset` of region `region`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// 0: the transmitter's arena; else the id under which a region was announced.
    pub region: u32,
    /// Octets.
    pub len: u32,
    /// First octet in the region.
    pub offset: u64,
}

impl Fragment {
    fn parse(b: [u8; 16]) -> Self {
        let word = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        Self { region: word(0), len: word(4), offset: u64::from(word(8)) | u64::from(word(12)) << 32 }
    }

    fn emit(&self) -> [u8; 16] {
        let mut b = [0; 16];
        b[..4].copy_from_slice(&self.region.to_le_bytes());
        b[4..8].copy_from_slice(&self.len.to_le_bytes());
        b[8..].copy_from_slice(&self.offset.to_le_bytes());
        b
    }
}

/// In the count of fragments: the unit that follows is the time.
const TIMED: u16 = 1 << 15;

/// A private copy of an entry, reused from one to the next.
#[derive(Debug, Default)]
pub struct Entry {
    /// `virtio_net_hdr_v1`, little-endian.
    pub header: [u8; VNET_HDR_LEN],
    /// When the frame arrives or has arrived, as the transmitter says; `None`: now.
    pub due: Option<u64>,
    /// The frame, in order.
    pub fragments: ArrayVec<Fragment, MAX_FRAGMENTS>,
}

impl Entry {
    fn units(&self) -> u32 {
        1 + u32::from(self.due.is_some()) + self.fragments.len() as u32
    }
}

/// The transmitter's side.
pub struct Producer {
    shared: Shared,
    tail: u32,
    published: u32,
    head: u32,
    wait_seq: u32,
    kicked: u32,
}

impl Producer {
    /// A transmitter over a fresh arena, all of it zero.
    ///
    /// # Errors
    /// [`CableError::ArenaTooSmall`].
    #[cfg(not(loom))]
    pub fn new(arena: Region) -> Result<Self, CableError> {
        Ok(Self::over(Shared::new(arena)?))
    }

    fn over(shared: Shared) -> Self {
        Self { shared, tail: 0, published: 0, head: 0, wait_seq: 0, kicked: 0 }
    }

    /// The arena.
    pub fn arena(&self) -> &Region {
        self.shared.arena()
    }

    /// True if an entry of `fragments` fits now; a time counts as one more. Reads the head only when it does not fit by
    /// what is known.
    ///
    /// # Errors
    /// [`CableError::HeadJumped`].
    pub fn has_room(&mut self, fragments: usize) -> Result<bool, CableError> {
        let need = 1 + fragments as u32;
        if UNITS - self.tail.wrapping_sub(self.head) >= need {
            return Ok(true);
        }
        let head = self.head()?;
        Ok(UNITS - self.tail.wrapping_sub(head) >= need)
    }

    /// Stages an entry whose frame arrives now ([`Self::push_timed`]).
    ///
    /// # Panics
    /// As there.
    #[inline]
    pub fn push(&mut self, header: &[u8; VNET_HDR_LEN], fragments: &[Fragment]) -> u32 {
        self.push_timed(header, None, fragments)
    }

    /// Stages an entry, for which [`Self::has_room`] was asked; with `due`, its frame
    /// arrives then ([`Entry::due`]). Returns the position at which the head must arrive for it to be consumed.
    ///
    /// # Panics
    /// If there is no room, or no or too many fragments: the caller's own entries.
    pub fn push_timed(&mut self, header: &[u8; VNET_HDR_LEN], due: Option<u64>, fragments: &[Fragment]) -> u32 {
        let n = fragments.len();
        assert!((1..=MAX_FRAGMENTS).contains(&n), "an entry has fragments");
        let units = 1 + u32::from(due.is_some()) + n as u32;
        assert!(UNITS - self.tail.wrapping_sub(self.head) >= units, "room was asked for");
        let mut unit = [0; 16];
        unit[..VNET_HDR_LEN].copy_from_slice(header);
        let timed = if due.is_some() { TIMED } else { 0 };
        unit[12..14].copy_from_slice(&(n as u16 | timed).to_le_bytes());
        self.push_unit(&unit);
        if let Some(due) = due {
            let mut unit = [0; 16];
            unit[..8].copy_from_slice(&due.to_le_bytes());
            self.push_unit(&unit);
        }
        for fragment in fragments {
            self.push_unit(&fragment.emit());
        }
        self.tail
    }

    #[inline]
    fn push_unit(&mut self, unit: &[u8; 16]) {
        self.shared.write_unit(self.tail, unit);
        self.tail = self.tail.wrapping_add(1);
    }

    /// True if entries are staged.
    pub fn is_staged(&self) -> bool {
        self.tail != self.published
    }

    /// Publishes what is staged. True: the receiver sleeps and must be rung.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        // Release pairs with the Acquire in `Consumer::pop`: entries before the tail.
        self.shared.word(TAIL).store(self.tail, Release);
        fence(SeqCst); // tail before the receiver's sleep number, else a wake-up is lost
        let seq = self.shared.word(SLEEP_SEQ).load(Relaxed);
        let ring = seq & 1 == 1 && seq != self.kicked;
        if ring {
            self.kicked = seq;
        }
        ring
    }

    /// Position up to which the receiver has consumed.
    ///
    /// # Errors
    /// [`CableError::HeadJumped`].
    pub fn head(&mut self) -> Result<u32, CableError> {
        // Acquire pairs with the Release in `Consumer::release`: the receiver's
        // copies come before our reuse of the octets.
        let head = self.shared.word(HEAD).load(Acquire);
        if head.wrapping_sub(self.head) > self.published.wrapping_sub(self.head) {
            return Err(CableError::HeadJumped { head, last: self.head, tail: self.published });
        }
        self.head = head;
        Ok(head)
    }

    /// Position after the last staged entry.
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// Asks to be rung when the head reaches `position`. True: it is there already, and nothing was asked.
    ///
    /// # Errors
    /// [`CableError::HeadJumped`].
    pub fn wait_for(&mut self, position: u32) -> Result<bool, CableError> {
        self.stop_waiting();
        self.wait_seq = self.wait_seq.wrapping_add(1);
        self.shared.word(WAIT_POS).store(position, Relaxed);
        self.shared.word(WAIT_SEQ).store(self.wait_seq, Release);
        fence(SeqCst); // request before head, else a wake-up is lost
        let there = reached(self.head()?, position);
        if there {
            self.stop_waiting();
        }
        Ok(there)
    }

    /// Takes the request of [`Self::wait_for`] back.
    pub fn stop_waiting(&mut self) {
        if self.wait_seq & 1 == 1 {
            self.wait_seq = self.wait_seq.wrapping_add(1);
            self.shared.word(WAIT_SEQ).store(self.wait_seq, Relaxed);
        }
    }
}

/// The receiver's side.
pub struct Consumer {
    shared: Shared,
    head: u32,
    released: u32,
    tail: u32,
    sleep_seq: u32,
    kicked: u32,
}

impl Consumer {
    /// A receiver over the peer's arena.
    ///
    /// # Errors
    /// [`CableError::ArenaTooSmall`].
    #[cfg(not(loom))]
    pub fn new(arena: Region) -> Result<Self, CableError> {
        Ok(Self::over(Shared::new(arena)?))
    }

    fn over(shared: Shared) -> Self {
        Self { shared, head: 0, released: 0, tail: 0, sleep_seq: 0, kicked: 0 }
    }

    /// The peer's arena.
    pub fn arena(&self) -> &Region {
        self.shared.arena()
    }

    /// Copies the next entry out; false if there is none. Its fragments are not
    /// checked against regions yet. The octets stay valid until [`Self::release`].
    ///
    /// # Errors
    /// The rule that the entry breaks.
    pub fn pop(&mut self, entry: &mut Entry) -> Result<bool, CableError> {
        if self.head == self.tail && !self.look()? {
            return Ok(false);
        }
        let unit = self.shared.read_unit(self.head);
        let count = u16::from_le_bytes([unit[12], unit[13]]);
        let (n, timed) = (count & !TIMED, count & TIMED != 0);
        if n == 0 || usize::from(n) > MAX_FRAGMENTS {
            return Err(CableError::FragmentCount(n));
        }
        if self.tail.wrapping_sub(self.head) < 1 + u32::from(timed) + u32::from(n) {
            return Err(CableError::EntryCrossesTail(n));
        }
        entry.header.copy_from_slice(&unit[..VNET_HDR_LEN]);
        let mut at = self.head.wrapping_add(1);
        entry.due = timed.then(|| {
            let unit = self.shared.read_unit(at);
            at = at.wrapping_add(1);
            u64::from_le_bytes([unit[0], unit[1], unit[2], unit[3], unit[4], unit[5], unit[6], unit[7]])
        });
        entry.fragments.clear();
        for _ in 0..n {
            entry.fragments.push(Fragment::parse(self.shared.read_unit(at)));
            at = at.wrapping_add(1);
        }
        self.head = at;
        Ok(true)
    }

    /// Puts the entry that [`Self::pop`] just gave back: the next one gives it again.
    pub fn unpop(&mut self, entry: &Entry) {
        self.head = self.head.wrapping_sub(entry.units());
    }

    /// Reads the tail; true if entries wait.
    fn look(&mut self) -> Result<bool, CableError> {
        let tail = self.shared.word(TAIL).load(Acquire);
        if tail.wrapping_sub(self.head) > UNITS || tail.wrapping_sub(self.tail) > UNITS {
            return Err(CableError::TailJumped { tail, head: self.head });
        }
        self.tail = tail;
        Ok(self.tail != self.head)
    }

    /// Returns what was consumed to the transmitter. True: it waits for that and must be rung.
    #[must_use]
    pub fn release(&mut self) -> bool {
        if self.released == self.head {
            return false;
        }
        self.released = self.head;
        // Release pairs with the Acquire in `Producer::head`: our copies come first.
        self.shared.word(HEAD).store(self.head, Release);
        fence(SeqCst); // head before the transmitter's request, else a wake-up is lost
        let seq = self.shared.word(WAIT_SEQ).load(Acquire);
        let asked = seq & 1 == 1 && seq != self.kicked && reached(self.head, self.shared.word(WAIT_POS).load(Relaxed));
        if asked {
            self.kicked = seq;
        }
        asked
    }

    /// Announces that the receiver sleeps. True: entries wait already, and it does not.
    ///
    /// # Errors
    /// [`CableError::TailJumped`].
    pub fn sleep(&mut self) -> Result<bool, CableError> {
        if self.sleep_seq & 1 == 0 {
            self.sleep_seq = self.sleep_seq.wrapping_add(1);
            self.shared.word(SLEEP_SEQ).store(self.sleep_seq, Relaxed);
        }
        fence(SeqCst); // sleep number before tail, else a wake-up is lost
        let waiting = self.head != self.tail || self.look()?;
        if waiting {
            self.wake();
        }
        Ok(waiting)
    }

    /// Announces that the receiver runs: no ringing is needed.
    pub fn wake(&mut self) {
        if self.sleep_seq & 1 == 1 {
            self.sleep_seq = self.sleep_seq.wrapping_add(1);
            self.shared.word(SLEEP_SEQ).store(self.sleep_seq, Relaxed);
        }
    }
}

/// True if free-running `head` is at or past `position`.
pub fn reached(head: u32, position: u32) -> bool {
    head.wrapping_sub(position) as i32 >= 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn pair() -> (Producer, Consumer) {
        let arena = Region::heap(STORAGE as usize);
        (Producer::new(arena.clone()).expect("large enough"), Consumer::new(arena).expect("large enough"))
    }

    fn fragment(offset: u64) -> Fragment {
        Fragment { region: 3, len: 60, offset }
    }

    #[test]
    fn entries_arrive_in_order_and_across_the_wrap() {
        let (mut p, mut c) = pair();
        let mut entry = Entry::default();
        for i in 0..20_000u64 {
            let n = 1 + (i % 5) as usize;
            let frags: alloc::vec::Vec<_> = (0..n as u64).map(|j| fragment(i << 20 | j)).collect();
            assert!(p.has_room(n).expect("honest"));
            p.push(&[i as u8; 12], &frags);
            let _ = p.publish();
            assert!(c.pop(&mut entry).expect("honest"));
            assert_eq!((entry.header, &entry.fragments[..]), ([i as u8; 12], &frags[..]));
            let _ = c.release();
        }
        assert!(!c.pop(&mut entry).expect("honest"));
    }

    #[test]
    fn a_full_ring_has_room_again_once_released() {
        let (mut p, mut c) = pair();
        let mut pushed = 0;
        while p.has_room(1).expect("honest") {
            p.push(&[0; 12], &[fragment(0)]);
            pushed += 1;
        }
        assert_eq!(pushed, UNITS / 2);
        let _ = p.publish();
        assert!(!p.wait_for(2).expect("honest"));
        let mut entry = Entry::default();
        assert!(c.pop(&mut entry).expect("honest"));
        assert!(c.release(), "the transmitter asked to be rung");
        assert!(p.has_room(1).expect("honest"));
        assert!(c.pop(&mut entry).expect("honest"));
        assert!(!c.release(), "it is rung once");
    }

    #[test]
    fn a_sleeping_receiver_is_rung_once_and_a_running_one_never() {
        let (mut p, mut c) = pair();
        p.push(&[0; 12], &[fragment(0)]);
        assert!(!p.publish());
        assert!(c.sleep().expect("honest"), "an entry waits: no sleep");
        let mut entry = Entry::default();
        assert!(c.pop(&mut entry).expect("honest"));
        assert!(!c.sleep().expect("honest"));
        p.push(&[0; 12], &[fragment(0)]);
        assert!(p.publish());
        p.push(&[0; 12], &[fragment(0)]);
        assert!(!p.publish());
        c.wake();
        p.push(&[0; 12], &[fragment(0)]);
        assert!(!p.publish());
    }

    #[test]
    fn a_time_travels_with_its_entry_also_when_it_is_put_back() {
        let (mut p, mut c) = pair();
        let mut entry = Entry::default();
        p.push_timed(&[1; 12], Some(u64::MAX - 7), &[fragment(1), fragment(2)]);
        p.push(&[2; 12], &[fragment(3)]);
        let _ = p.publish();
        for _ in 0..2 {
            assert!(c.pop(&mut entry).expect("honest"));
            assert_eq!((entry.header, entry.due, entry.fragments.len()), ([1; 12], Some(u64::MAX - 7), 2));
            c.unpop(&entry);
        }
        assert!(c.pop(&mut entry).expect("honest") && c.pop(&mut entry).expect("honest"));
        assert_eq!((entry.header, entry.due, &entry.fragments[..]), ([2; 12], None, &[fragment(3)][..]));
        assert!(!c.pop(&mut entry).expect("honest"));
    }

    #[test]
    fn a_hostile_transmitter_is_named() {
        let (p, mut c) = pair();
        let mut entry = Entry::default();
        p.shared.word(TAIL).store(UNITS + 1, Release);
        assert_eq!(c.pop(&mut entry), Err(CableError::TailJumped { tail: UNITS + 1, head: 0 }));
        p.shared.word(TAIL).store(1, Release);
        assert_eq!(c.pop(&mut entry), Err(CableError::FragmentCount(0)));
        let mut unit = [0; 16];
        unit[12] = 2;
        p.shared.write_unit(0, &unit);
        assert_eq!(c.pop(&mut entry), Err(CableError::EntryCrossesTail(2)));
        unit[12] = 65;
        p.shared.write_unit(0, &unit);
        assert_eq!(c.pop(&mut entry), Err(CableError::FragmentCount(65)));
    }

    #[test]
    fn a_hostile_receiver_is_named() {
        let (mut p, c) = pair();
        p.push(&[0; 12], &[fragment(0)]);
        let _ = p.publish();
        c.shared.word(HEAD).store(3, Release);
        assert_eq!(p.head(), Err(CableError::HeadJumped { head: 3, last: 0, tail: 2 }));
        c.shared.word(HEAD).store(2, Release);
        assert_eq!(p.head(), Ok(2));
        c.shared.word(HEAD).store(1, Release);
        assert_eq!(p.head(), Err(CableError::HeadJumped { head: 1, last: 2, tail: 2 }));
    }

    #[test]
    fn two_threads_lose_neither_entries_nor_wake_ups() {
        let (mut p, mut c) = pair();
        let (to_c, from_p) = std::sync::mpsc::channel::<()>();
        let (to_p, from_c) = std::sync::mpsc::channel::<()>();
        const N: u32 = 200_000;
        let producer = std::thread::spawn(move || {
            for i in 0..N {
                while !p.has_room(2).expect("honest") {
                    if p.publish() {
                        to_c.send(()).expect("consumer lives");
                    }
                    let target = p.tail().wrapping_sub(UNITS / 2);
                    if !p.wait_for(target).expect("honest") {
                        from_c.recv().expect("consumer lives");
                    }
                    p.stop_waiting();
                }
                p.push(&[0; 12], &[fragment(u64::from(i)), fragment(1)]);
                if i % 7 == 0 && p.publish() {
                    to_c.send(()).expect("consumer lives");
                }
            }
            if p.publish() {
                to_c.send(()).expect("consumer lives");
            }
            from_c.iter().count()
        });
        let mut entry = Entry::default();
        let mut next = 0;
        while next < N {
            while c.pop(&mut entry).expect("honest") {
                assert_eq!(entry.fragments[0].offset, u64::from(next));
                next += 1;
            }
            if c.release() {
                to_p.send(()).expect("producer lives");
            }
            if next < N && !c.sleep().expect("honest") {
                from_p.recv().expect("producer lives");
                c.wake();
            }
        }
        drop(to_p);
        producer.join().expect("no panic");
    }
}
