//! How entries of the neighbour table go (Linux `neigh_forced_gc`, `neigh_periodic_work`).

use super::{GC_GRACE, Nud};
use crate::Kernel;
use crate::timer::TimerKey;
use core::time::Duration;

impl Kernel {
    /// A new entry has made the table large enough for its garbage to be collected.
    pub(super) fn neigh_start_gc(&mut self) {
        if self.timers.get(TimerKey::NeighGc).is_none() {
            self.neigh_schedule_gc();
        }
    }

    /// Makes room in a table that is full: failed and long unused entries go (Linux `neigh_forced_gc`).
    pub(super) fn neigh_forced_gc(&mut self, mut surplus: i64) {
        self.neigh.last_flush = self.now;
        for n in 0..self.neigh.slots.len() as u32 {
            if surplus < 0 {
                break;
            }
            let Some(entry) = self.neigh.get(n) else { continue };
            if entry.state == Nud::Permanent {
                continue;
            }
            if entry.state == Nud::Failed || entry.queue.is_empty() && self.now.since(entry.updated) > GC_GRACE {
                self.neigh_destroy(n);
                surplus -= 1;
            }
        }
    }

    /// Half of the reachable time from now, but not now: nothing else would have its turn.
    fn neigh_schedule_gc(&mut self) {
        let ms = (self.sysctl.neigh_base_reachable_time_ms as u64 / 2).max(1);
        self.timers.set(TimerKey::NeighGc, self.now + Duration::from_millis(ms));
    }

    /// Removes failed entries and those unused for `gc_stale_time`, above `gc_thresh1` (Linux `neigh_periodic_work`).
    pub(crate) fn neigh_periodic_work(&mut self) {
        let stale = Duration::from_secs(self.sysctl.neigh_gc_stale_time as u64);
        for n in 0..self.neigh.slots.len() as u32 {
            let Some(entry) = self.neigh.get(n) else { continue };
            let kept = matches!(entry.state, Nud::Incomplete | Nud::Delay | Nud::Probe | Nud::Reachable | Nud::Permanent);
            let used = entry.used.max(entry.confirmed);
            if !kept && (entry.state == Nud::Failed || self.now.since(used) > stale) {
                self.neigh_destroy(n);
            }
        }
        if self.neigh.len() as i64 >= self.sysctl.neigh_gc_thresh1 {
            self.neigh_schedule_gc();
        }
    }
}
