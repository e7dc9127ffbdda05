//! Whether what programs' calls have set going waits for their next call.
//!
//! A program that was answered runs, and most likely makes another call some microseconds later. What the host has to
//! tell its NICs (frames were sent, interrupts are wanted) is then told once for all of these calls: when one blocks, so that nobody runs any
//! more, or when the event loop has left frames waiting for long enough. Doorbells and interrupts of each call would cost
//! two switches of context each.
//!
//! Nobody tells if no call comes: the program computes, or waits for something that is not the model's. So a hold has an end,
//! by the event loop's alarm, and is dared only after many calls that came soon; each one that ends in vain doubles their number. This
//! needs one CPU for the host and its programs: with several the NIC might be at work meanwhile.

use ringlab_kernel::time::Instant;
use std::time::Duration;

/// A call that comes within this time comes soon.
const SOON: Duration = Duration::from_micros(100);
/// How long to wait for it: setting an alarm and hearing it takes 12 µs under a hypervisor, twice in a millisecond at most.
const PATIENCE: Duration = Duration::from_micros(500);
/// Calls that must have come soon before one is waited for, at first and at most.
const STREAK: u32 = 32;
const LONGEST_STREAK: u32 = 1 << 14;
/// After so many calls that came soon, those in vain are forgiven by half.
const FORGIVEN: u32 = 1 << 12;
/// How often to ask on which CPUs the thread may run.
const PLACE: Duration = Duration::from_secs(1);

/// What is known of the calls that followed upon answers.
#[derive(Debug)]
pub struct Hold {
    /// Calls in succession that came soon.
    streak: u32,
    needed: u32,
    /// Since when the next one is waited for.
    since: Option<Instant>,
    /// And until when, if the host holds back what it has to tell.
    until: Option<Instant>,
    place: Place,
}

impl Default for Hold {
    fn default() -> Self {
        Self { streak: 0, needed: STREAK, since: None, until: None, place: Place::default() }
    }
}

impl Hold {
    /// A program was answered and runs, and the host is about to sleep. Until when it may hold back what it has to tell, if at all.
    pub fn begin(&mut self, now: Instant) -> Option<Instant> {
        self.since.get_or_insert(now);
        if self.until.is_none() && self.streak >= self.needed && self.place.is_single(now) {
            self.until = Some(now + PATIENCE);
        }
        self.until
    }

    /// A call has come.
    pub fn on_call(&mut self, now: Instant) {
        if let Some(since) = self.since {
            self.count(now.since(since) < SOON);
        }
    }

    /// True if no call has come for too long.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|end| now >= end);
        if over {
            self.count(false);
        }
        over
    }

    fn count(&mut self, soon: bool) {
        let held = self.until.take().is_some();
        self.since = None;
        if !soon {
            self.streak = 0;
            if held {
                self.needed = (self.needed * 2).min(LONGEST_STREAK);
            }
            return;
        }
        self.streak = self.streak.saturating_add(1);
        if self.streak.is_multiple_of(FORGIVEN) {
            self.needed = (self.needed / 2).max(STREAK);
        }
    }
}

/// Whether this thread, and whoever it starts, have one CPU for them all.
#[derive(Debug, Default)]
pub struct Place {
    asked: Option<Instant>,
    single: bool,
}

impl Place {
    /// As of a second ago at most.
    pub fn is_single(&mut self, now: Instant) -> bool {
        if self.asked.is_none_or(|at| now.since(at) >= PLACE) {
            self.asked = Some(now);
            self.single = rustix::thread::sched_getaffinity(None).is_ok_and(|set| set.count() <= 1);
        }
        self.single
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;

    /// `n` calls, each `gap` after its predecessor was answered.
    fn calls(hold: &mut Hold, now: &mut Instant, n: u32, gap: u64) -> u32 {
        let mut held = 0;
        for _ in 0..n {
            held += u32::from(hold.begin(*now).is_some());
            *now = Instant(now.0 + gap);
            hold.on_call(*now);
        }
        held
    }

    fn new() -> Hold {
        Hold { place: Place { asked: Some(Instant(u64::MAX / 2)), single: true }, ..Hold::default() }
    }

    #[test]
    fn nothing_is_held_until_many_calls_came_soon() {
        let (mut hold, mut now) = (new(), Instant(0));
        assert_eq!(calls(&mut hold, &mut now, STREAK, 10 * US), 0);
        assert_eq!(calls(&mut hold, &mut now, 1000, 10 * US), 1000);
        // The last of them did not come soon: it starts anew, and takes longer.
        assert_eq!(calls(&mut hold, &mut now, 1, 200 * US), 1);
        assert_eq!(calls(&mut hold, &mut now, 2 * STREAK, 10 * US), 0);
        assert_eq!(calls(&mut hold, &mut now, 1, 10 * US), 1);
    }

    #[test]
    fn calls_that_come_late_are_never_waited_for() {
        let (mut hold, mut now) = (new(), Instant(0));
        assert_eq!(calls(&mut hold, &mut now, 1000, 100 * US), 0);
    }

    #[test]
    fn a_hold_in_vain_ends_and_is_dared_less_and_less() {
        let (mut hold, mut now) = (new(), Instant(0));
        let mut in_vain = 0;
        for _ in 0..100_000 {
            let Some(end) = hold.begin(now) else {
                calls(&mut hold, &mut now, 1, 10 * US);
                continue;
            };
            assert!(!hold.is_over(Instant(end.0 - 1)) && hold.begin(Instant(end.0 - 1)) == Some(end), "it goes on meanwhile");
            assert!(hold.is_over(end) && !hold.is_over(end));
            (in_vain, now) = (in_vain + 1, end);
        }
        assert!((9..40).contains(&in_vain), "{in_vain} in 100000 calls");
    }

    #[test]
    fn on_several_cpus_nothing_is_held() {
        let (mut hold, mut now) = (new(), Instant(0));
        hold.place.single = false;
        assert_eq!(calls(&mut hold, &mut now, 1000, 10 * US), 0);
    }
}
