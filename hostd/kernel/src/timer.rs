//! Kernel timers: at most one pending deadline for each key.
//!
//! Like `mod_timer`, moving a deadline later is cheap: the queued entry stays and
//! is queued anew when it comes up early. TCP moves its retransmission timer with
//! every ACK.

use crate::cpu::sched::TaskId;
use crate::sock::SockId;
use crate::time::Instant;
use alloc::collections::BinaryHeap;
use core::cmp::Reverse;
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

/// Whose timer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKey {
    /// Retransmission, loss probe, zero-window probe (`icsk_retransmit_timer`).
    TcpWrite(SockId),
    /// Delayed ACK (`icsk_delack_timer`).
    TcpDelack(SockId),
    /// Keepalive, FIN_WAIT2, SYN-ACK retransmission (`sk_timer`).
    TcpKeepalive(SockId),
    /// Pacing (`pacing_timer`).
    TcpPace(SockId),
    /// TIME_WAIT and SYN_RECV minisockets, by number.
    TcpMini(u64),
    /// Neighbour entry, by number.
    Neigh(u32),
    /// Neighbour garbage collection.
    NeighGc,
    /// Reassembly queue, by number.
    Frag(u64),
    /// Reports of multicast groups of an interface.
    Igmp(u32),
    /// Block of a packet socket's ring.
    PacketRing(SockId),
    /// Time limit of a blocked call.
    Task(TaskId),
}

/// The deadline of a timer that is parked.
const PARKED: Instant = Instant(u64::MAX);

/// Entries of the queue that nobody waits for any more are removed once they are more than all others and these.
const SLACK: usize = 64;

/// One that is pending or parked.
#[derive(Debug, Clone, Copy)]
struct Pending {
    deadline: Instant,
    /// Time and number of its entry in the queue; entries with other numbers are left over.
    queued: Instant,
    seq: u64,
}

/// The pending timers.
#[derive(Debug, Default)]
pub struct Timers {
    pending: HashMap<TimerKey, Pending, FxBuildHasher>,
    queue: BinaryHeap<Reverse<(Instant, u64, TimerKey)>>,
    seq: u64,
}

impl Timers {
    /// Sets or moves the deadline (Linux `mod_timer`).
    pub fn set(&mut self, key: TimerKey, at: Instant) {
        if let Some(p) = self.pending.get_mut(&key)
            && p.queued <= at
        {
            p.deadline = at;
            return;
        }
        self.enqueue(key, at);
        self.drop_leftovers();
    }

    fn enqueue(&mut self, key: TimerKey, at: Instant) {
        self.seq += 1;
        self.pending.insert(key, Pending { deadline: at, queued: at, seq: self.seq });
        self.queue.push(Reverse((at, self.seq, key)));
    }

    /// What is cancelled, or set anew for an earlier time, leaves an entry that may be hours from coming up.
    fn drop_leftovers(&mut self) {
        if self.queue.len() > 2 * self.pending.len() + SLACK {
            let pending = &self.pending;
            self.queue.retain(|Reverse((_, seq, key))| pending.get(key).is_some_and(|p| p.seq == *seq));
        }
    }

    /// Removes it (Linux `timer_delete`).
    pub fn cancel(&mut self, key: TimerKey) {
        self.pending.remove(&key);
    }

    /// Stops one that is likely to be set again soon: its entry stays in the queue until it comes up, and nobody is
    /// woken for it. (Linux leaves `icsk_retransmit_timer` to expire; here an expiry wakes a process.)
    pub fn park(&mut self, key: TimerKey) {
        if let Some(p) = self.pending.get_mut(&key) {
            p.deadline = PARKED;
        }
    }

    /// The pending deadline.
    pub fn get(&self, key: TimerKey) -> Option<Instant> {
        self.pending.get(&key).map(|p| p.deadline).filter(|&at| at != PARKED)
    }

    /// Takes a timer that is due. Order: deadline, then order of arming.
    pub fn expire(&mut self, now: Instant) -> Option<TimerKey> {
        let (at, key) = self.first()?;
        if at > now {
            return None;
        }
        self.queue.pop();
        self.pending.remove(&key);
        Some(key)
    }

    /// The earliest deadline.
    #[expect(clippy::should_implement_trait, reason = "it takes nothing out")]
    pub fn next(&mut self) -> Option<Instant> {
        self.first().map(|(at, _)| at)
    }

    /// Brings the timer that is due first to the front of the queue.
    fn first(&mut self) -> Option<(Instant, TimerKey)> {
        loop {
            let &Reverse((at, seq, key)) = self.queue.peek()?;
            match self.pending.get(&key).copied().filter(|p| p.seq == seq) {
                Some(p) if p.deadline == at => return Some((at, key)),
                Some(p) if p.deadline != PARKED => {
                    // Moved later since it was queued: queue it where it belongs now.
                    self.queue.pop();
                    self.enqueue(key, p.deadline);
                }
                Some(_) => {
                    self.queue.pop();
                    self.pending.remove(&key);
                }
                None => drop(self.queue.pop()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_timer_expires_once_at_its_last_deadline() {
        let mut t = Timers::default();
        let key = TimerKey::NeighGc;
        t.set(key, Instant(10));
        t.set(key, Instant(30));
        t.set(key, Instant(20));
        assert_eq!(t.expire(Instant(19)), None);
        assert_eq!(t.next(), Some(Instant(20)));
        assert_eq!(t.expire(Instant(20)), Some(key));
        assert_eq!(t.expire(Instant(100)), None);
        t.set(key, Instant(40));
        t.set(key, Instant(5));
        assert_eq!(t.expire(Instant(5)), Some(key));
        assert_eq!(t.expire(Instant(100)), None);
    }

    #[test]
    fn parked_timer_neither_expires_nor_wakes_and_can_be_set_again() {
        let mut t = Timers::default();
        let (key, other) = (TimerKey::Neigh(1), TimerKey::Neigh(2));
        t.set(key, Instant(10));
        t.set(other, Instant(50));
        t.park(key);
        assert_eq!((t.get(key), t.next()), (None, Some(Instant(50))));
        assert_eq!(t.expire(Instant(20)), None);
        // Its entry is gone by now, or still there: both ways it comes up when it is due.
        t.set(key, Instant(30));
        assert_eq!(t.next(), Some(Instant(30)));
        t.park(key);
        t.set(key, Instant(40));
        assert_eq!((t.get(key), t.expire(Instant(39))), (Some(Instant(40)), None));
        assert_eq!(t.expire(Instant(45)), Some(key));
        assert_eq!(t.expire(Instant(60)), Some(other));
        assert_eq!(t.expire(Instant(u64::MAX - 1)), None);
    }

    #[test]
    fn queue_does_not_grow_by_timers_that_are_cancelled_or_set_earlier() {
        let mut t = Timers::default();
        let far = |i: u64| Instant(1 << 60 | i);
        t.set(TimerKey::Neigh(0), Instant(7));
        let (mut most, mut room) = (0, 0);
        for i in 0..10_000 {
            // Cancelled; parked and set for an earlier time, over and over; another one each time.
            t.set(TimerKey::Neigh(1), far(i));
            t.cancel(TimerKey::Neigh(1));
            t.park(TimerKey::Neigh(2));
            t.set(TimerKey::Neigh(2), Instant((1 << 59) - i));
            t.set(TimerKey::Frag(i), far(i));
            t.cancel(TimerKey::Frag(i));
            most = most.max(t.queue.len());
            room = room.max(t.queue.capacity());
        }
        assert!(most <= 2 * 4 + SLACK && room <= 256, "{most} entries, room for {room}");
        assert_eq!(t.expire(Instant(7)), Some(TimerKey::Neigh(0)));
        assert_eq!((t.next(), t.pending.len()), (Some(Instant((1 << 59) - 9999)), 1));
    }
}
