//! A port in use, and who may share it (Linux `inet_bind_bucket`).
//!
//! The bucket remembers, of what its owners said when they came, whether the next one needs to be compared with each
//! of them. What an owner says later does not count: a port that was once shared by `SO_REUSEPORT` stays open to the
//! next of its kind.

use super::hash::{Hold, Owner};
use super::state::State;
use crate::sock::Sock;
use alloc::collections::BTreeMap;
use core::net::Ipv4Addr;

/// What a socket that asks for a port says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    addr: Ipv4Addr,
    /// `SO_REUSEADDR`, and it does not listen.
    reuse: bool,
    reuseport: bool,
    six_only: bool,
}

impl Wish {
    /// Of a socket that asks for a port of `addr`.
    pub fn of(sk: &Sock, addr: Ipv4Addr) -> Self {
        let reuse = sk.opt.reuseaddr && sk.tp().state != State::Listen;
        Self { addr, reuse, reuseport: sk.opt.reuseport, six_only: sk.families().1 }
    }
}

/// Who may come by `SO_REUSEPORT` without being compared (`fastreuseport`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reuseport {
    /// Nobody.
    No,
    /// Everybody who has it.
    Any,
    /// Who has it, and the address of the last one who came.
    Like(Wish),
}

/// A port in use.
#[derive(Debug, Default)]
pub struct Bucket {
    owners: BTreeMap<Owner, Hold>,
    /// `None`: nobody bound it, connections alone use it (Linux: -1).
    fast: Option<(bool, Reuseport)>,
}

impl Bucket {
    /// Everybody who uses it.
    pub fn owners(&self) -> impl Iterator<Item = Owner> {
        self.owners.keys().copied()
    }

    /// How an owner came by it.
    pub fn hold(&self, owner: Owner) -> Option<Hold> {
        self.owners.get(&owner).copied()
    }

    /// A program bound it: `connect` does not choose it.
    pub fn is_bound(&self) -> bool {
        self.fast.is_some()
    }

    /// One more owner.
    pub fn add(&mut self, owner: Owner, hold: Hold) {
        self.owners.insert(owner, hold);
    }

    /// One less. True if it was the last one.
    pub fn remove(&mut self, owner: Owner) -> bool {
        self.owners.remove(&owner);
        if self.owners.values().all(|&hold| hold == Hold::Connect) {
            self.fast = None;
        }
        self.owners.is_empty()
    }

    /// True if nobody needs to be asked (Linux `inet_csk_get_port`).
    pub fn admits(&self, wish: &Wish) -> bool {
        self.fast.is_some_and(|(reuse, _)| reuse && wish.reuse) || self.shares(wish)
    }

    /// Linux `sk_reuseport_match`.
    fn shares(&self, wish: &Wish) -> bool {
        wish.reuseport
            && match self.fast {
                None | Some((_, Reuseport::No)) => false,
                Some((_, Reuseport::Any)) => true,
                Some((_, Reuseport::Like(last))) => !wish.six_only && (last.addr == wish.addr || last.addr.is_unspecified()),
            }
    }

    /// Somebody has bound it (Linux `inet_csk_update_fastreuse`), before it is added.
    pub fn bound(&mut self, wish: &Wish) {
        let reuseport = match (wish.reuseport, self.owners.is_empty()) {
            (false, _) => Reuseport::No,
            (true, true) => Reuseport::Any,
            (true, false) if self.shares(wish) => return self.narrow(wish),
            (true, false) => Reuseport::Like(*wish),
        };
        // A port that connections already use is not opened by `SO_REUSEADDR`.
        let reuse = wish.reuse && (self.owners.is_empty() || self.fast.is_some_and(|(reuse, _)| reuse));
        self.fast = Some((reuse, reuseport));
    }

    fn narrow(&mut self, wish: &Wish) {
        if let Some((reuse, _)) = &mut self.fast {
            *reuse &= wish.reuse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sock::SockId;

    const ANY: Wish = Wish { addr: Ipv4Addr::UNSPECIFIED, reuse: false, reuseport: false, six_only: false };
    const ONE: Owner = Owner::Sock(SockId(1));
    const TWO: Owner = Owner::Sock(SockId(2));

    fn taken(wish: Wish) -> Bucket {
        let mut bucket = Bucket::default();
        bucket.bound(&wish);
        bucket.add(ONE, Hold::Bind);
        bucket
    }

    #[test]
    fn port_is_open_to_those_who_are_like_all_before() {
        for (first, next, admitted) in [
            (ANY, ANY, false),
            (Wish { reuse: true, ..ANY }, Wish { reuse: true, ..ANY }, true),
            (Wish { reuse: true, ..ANY }, ANY, false),
            (Wish { reuseport: true, ..ANY }, Wish { reuseport: true, addr: Ipv4Addr::LOCALHOST, ..ANY }, true),
            (Wish { reuseport: true, ..ANY }, Wish { reuse: true, ..ANY }, false),
        ] {
            assert_eq!(taken(first).admits(&next), admitted, "{first:?} {next:?}");
        }
    }

    #[test]
    fn one_who_does_not_share_closes_it() {
        let mut bucket = taken(Wish { reuse: true, ..ANY });
        bucket.bound(&ANY);
        assert!(!bucket.admits(&Wish { reuse: true, ..ANY }));
    }

    #[test]
    fn after_a_stranger_only_the_same_address_is_admitted() {
        let mut bucket = taken(ANY);
        let here = Wish { reuseport: true, addr: Ipv4Addr::LOCALHOST, ..ANY };
        bucket.bound(&here);
        assert!(bucket.admits(&here));
        assert!(!bucket.admits(&Wish { addr: Ipv4Addr::new(10, 0, 0, 1), ..here }));
    }

    #[test]
    fn port_that_connections_alone_keep_is_free_for_connect() {
        let mut bucket = taken(ANY);
        bucket.add(TWO, Hold::Connect);
        assert!(bucket.is_bound());
        assert!(!bucket.remove(ONE));
        assert!(!bucket.is_bound());
        assert!(bucket.remove(TWO));
    }
}
