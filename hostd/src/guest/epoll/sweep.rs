//! Which epoll sets nobody has any more.
//!
//! The machine's kernel does not tell when a program's last descriptor of a set goes, as hostd has one too. So after each closing, and
//! each end of a process, sets are looked for: first where they were seen last; those that are not there any more, in the programs
//! that may have them: who made a set, who began after it (and may be a child of who had it), and everybody if
//! descriptors have been passed since.

use super::{Guests, Set, Sets};
use crate::guest::fds::{Link, look, open_descriptors, waiting_descriptors};
use crate::guest::launch::descendants;
use crate::guest::notify::Notif;
use crate::guest::table::Caller;
use crate::host::Shared;

impl Sets {
    /// Number of the newest set: a process that is there now inherits none that comes later.
    pub fn newest(&self) -> u32 {
        self.last
    }

    /// Descriptors are being passed.
    pub fn note_passing(&mut self) {
        self.passed = self.last;
    }

    /// True if a process may have a set: it made it, or began after it, or was passed it.
    fn may_have(&self, number: u32, tgid: i32, newest_before: u32) -> bool {
        number <= newest_before.max(self.passed) || self.list.get(&number).is_some_and(|set| set.maker == tgid)
    }

    /// True if a set is where it was seen last.
    fn stands(&self, number: u32, set: &Set) -> bool {
        let (pid, fd) = set.place;
        look(pid, fd) == Link::Epoll && self.identify(pid, fd) == Some(number)
    }

    /// Strikes sets out of a list that a process has, of those that it may have.
    fn strike_out(&mut self, pid: i32, list: &mut Vec<u32>, may: impl Fn(&Self, u32) -> bool) {
        let mut sought = list.iter().filter(|&&n| may(self, n)).count();
        if sought == 0 {
            return;
        }
        for fd in open_descriptors(pid) {
            if look(pid, fd) == Link::Epoll
                && let Some(number) = self.identify(pid, fd)
                && list.contains(&number)
            {
                list.retain(|&n| n != number);
                if let Some(set) = self.list.get_mut(&number) {
                    set.place = (pid, fd);
                }
                sought = sought.saturating_sub(1);
                if sought == 0 {
                    return;
                }
            }
        }
    }
}

impl Guests {
    /// Frees sets to which nothing refers any more. Only if one was being closed.
    ///
    /// A set may be where no call has been heard of yet: in a process that has just been forked, or in a message that
    /// nobody has received. In doubt it stays: the next closing, or end of a process, asks again.
    pub(in crate::guest) fn sweep_sets(&mut self, shared: &Shared) {
        if self.sets.list.is_empty() {
            return;
        }
        self.sets.suspect = false;
        let mut unused: Vec<u32> = self.sets.list.iter().filter(|(n, set)| !self.sets.stands(**n, set)).map(|(n, _)| *n).collect();
        if unused.is_empty() {
            return;
        }
        self.strike_known(&mut unused);
        if unused.is_empty() {
            return;
        }
        let programs = descendants();
        // First: what is received meanwhile is found then.
        if unused.iter().any(|&n| n <= self.sets.passed)
            && programs.iter().chain(self.procs.keys()).any(|&pid| self.receives_descriptors(pid))
        {
            return;
        }
        for &pid in programs.iter().filter(|pid| !self.procs.contains_key(pid)) {
            self.sets.strike_out(pid, &mut unused, |_, _| true);
        }
        self.strike_known(&mut unused);
        // Whoever loses a parent meanwhile moves, and may not have been met.
        if descendants() != programs {
            return;
        }
        unused.sort_unstable();
        for number in unused {
            self.drop_set(shared, number);
        }
    }

    /// Strikes out what processes have that have made a call.
    fn strike_known(&mut self, list: &mut Vec<u32>) {
        let anybody = self.untold;
        for (&tgid, proc) in &self.procs {
            self.sets.strike_out(tgid, list, |sets, number| anybody || sets.may_have(number, tgid, proc.newest_set));
        }
    }

    /// A message on a real descriptor: `AF_UNIX`, perhaps with descriptors in it.
    pub(in crate::guest) fn note_passing(&mut self, c: Caller, n: &Notif) {
        /// Where `msg_controllen` stands in a `msghdr`.
        const CONTROLLEN: u64 = 40;
        let mut len = [0; 8];
        let one = i64::from(n.nr) == libc::SYS_sendmsg;
        if !one || c.mem.read(n.args[1].wrapping_add(CONTROLLEN), &mut len).is_err() || len != [0; 8] {
            self.sets.note_passing();
        }
    }

    /// True if descriptors wait in a socket of a process. Linux says so from 5.10 on.
    fn receives_descriptors(&self, pid: i32) -> bool {
        open_descriptors(pid).into_iter().any(|fd| {
            let Link::Socket(inode) = look(pid, fd) else { return false };
            self.placeholders.find(inode).is_none() && waiting_descriptors(pid, fd) > 0
        })
    }

    /// True if a sweep may find something.
    pub(in crate::guest) fn sets_suspect(&self) -> bool {
        self.sets.suspect
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn sets_are_sought_where_they_may_be_and_seen_where_they_were() {
        let own = std::process::id() as i32;
        let mut sets = Sets::default();
        let [first, second, third] = [own, own, 77].map(|maker| sets.make(3, maker).expect("made"));
        let stands = |sets: &Sets, n: u32| sets.stands(n, &sets.list[&n]);
        // This process has them all, but who began before a set and did not make it is not looked at.
        let mut unused = vec![first, second, third];
        sets.strike_out(own, &mut unused, |sets, n| sets.may_have(n, own, 0));
        assert_eq!(unused, [third]);
        assert_eq!([first, second, third].map(|n| stands(&sets, n)), [true, true, false]);
        assert_eq!(sets.list[&first].place, (own, sets.list[&first].real.as_raw_fd()));
        assert_eq!([first, second, third].map(|n| sets.may_have(n, 88, second)), [true, true, false]);
        sets.note_passing();
        let fourth = sets.make(3, 77).expect("made");
        assert_eq!([third, fourth].map(|n| sets.may_have(n, 88, 0)), [true, false]);
        sets.strike_out(own, &mut unused, |sets, n| sets.may_have(n, own, 0));
        assert!(unused.is_empty() && stands(&sets, third));
        // The number is another set's now.
        let taken = sets.list.remove(&fourth).expect("there");
        sets.list.get_mut(&third).expect("there").place = (own, taken.real.as_raw_fd());
        assert!(!stands(&sets, third));
    }
}
