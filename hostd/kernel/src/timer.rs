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

/// The pending timers.
#[derive(Debug, Default)]
pub struct Timers {
    deadline: HashMap<TimerKey, (Instant, Instant), FxBuildHasher>,
    queue: BinaryHeap<Reverse<(Instant, u64, TimerKey)>>,
    seq: u64,
}

impl Timers {
    /// Sets or moves the deadline (Linux `mod_timer`).
    pub fn set(&mut self, key: TimerKey, at: Instant) {
        let entry = self.deadline.entry(key).or_insert((at, Instant(u64::MAX)));
        entry.0 = at;
        if at < entry.1 {
            entry.1 = at;
            self.seq += 1;
            self.queue.push(Reverse((at, self.seq, key)));
        }
    }

    /// Removes it (Linux `timer_delete`).
    pub fn cancel(&mut self, key: TimerKey) {
        self.deadline.remove(&key);
    }

    /// The pending deadline.
    pub fn get(&self, key: TimerKey) -> Option<Instant> {
        self.deadline.get(&key).map(|d| d.0)
    }

    /// Takes a timer that is due. Order: deadline, then order of arming.
    pub fn expire(&mut self, now: Instant) -> Option<TimerKey> {
        loop {
            let &Reverse((at, _, key)) = self.queue.peek()?;
            match self.deadline.get_mut(&key) {
                Some(d) if d.1 == at => {
                    if d.0 > at {
                        // Moved later since it was queued: queue it where it belongs now.
                        d.1 = d.0;
                        let later = d.0;
                        self.queue.pop();
                        self.seq += 1;
                        self.queue.push(Reverse((later, self.seq, key)));
                        continue;
                    }
                    if at > now {
                        return None;
                    }
                    self.queue.pop();
                    self.deadline.remove(&key);
                    return Some(key);
                }
                _ => {
                    self.queue.pop();
                }
            }
        }
    }

    /// The earliest deadline; may be early if timers moved, never late.
    #[expect(clippy::should_implement_trait, reason = "it takes nothing out")]
    pub fn next(&mut self) -> Option<Instant> {
        while let Some(&Reverse((at, _, key))) = self.queue.peek() {
            match self.deadline.get_mut(&key) {
                Some(d) if d.1 == at && d.0 == at => return Some(at),
                Some(d) if d.1 == at => {
                    d.1 = d.0;
                    let later = d.0;
                    self.queue.pop();
                    self.seq += 1;
                    self.queue.push(Reverse((later, self.seq, key)));
                }
                _ => {
                    self.queue.pop();
                }
            }
        }
        None
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
}
