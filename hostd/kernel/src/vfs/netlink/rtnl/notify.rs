//! Notifications: who is in a group hears of every change (Linux `rtnl_notify`).
//!
//! A change may come while sockets are out (a packet changes a neighbour), so that messages wait until
//! the end of the event, or of the request that caused them. Nobody in the group: nothing is made.

use super::super::wire::{Message, flag};
use super::rtm;
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::ether::neigh::Neigh;
use crate::ip::route::{Entry, IfAddr};
use crate::sock::{Proto, Sock};
use alloc::vec::Vec;

/// `RTNLGRP_*`.
mod group {
    pub(super) const LINK: u32 = 1;
    pub(super) const NEIGH: u32 = 3;
    pub(super) const IPV4_IFADDR: u32 = 5;
    pub(super) const IPV4_ROUTE: u32 = 7;
}

/// A message for a group.
#[derive(Debug)]
pub(crate) struct Pending {
    group: u32,
    data: Vec<u8>,
}

impl Kernel {
    /// Delivers what waits. No socket is out but `own`.
    pub(crate) fn netlink_deliver(&mut self, mut own: Option<&mut Sock>) {
        if self.netlink.pending.is_empty() {
            return;
        }
        for p in core::mem::take(&mut self.netlink.pending) {
            self.netlink_broadcast(p.group, &p.data, own.as_deref_mut());
        }
    }

    fn netlink_listens(&self, group: u32) -> bool {
        self.netlink.members.iter().any(|&id| match self.socks.get(id).map(|sk| &sk.proto) {
            Some(Proto::Netlink(nl)) => nl.protocol() == super::super::NETLINK_ROUTE && nl.groups() >> (group - 1) & 1 != 0,
            // It is out: it makes the request.
            _ => true,
        })
    }

    fn tell(&mut self, group: u32, data: Vec<u8>) {
        self.netlink.pending.push(Pending { group, data });
    }

    /// A link is not what it was.
    pub(crate) fn rtnl_link(&mut self, dev: u32) {
        if self.netlink.members.is_empty() || !self.netlink_listens(group::LINK) {
            return;
        }
        let Some(device) = self.devs.get(IfIndex(dev)) else { return };
        let mut m = Message::new(rtm::NEWLINK, 0, 0, 0);
        self.fill_link(&mut m, device, 0, 0);
        self.tell(group::LINK, m.finish());
    }

    /// An address has come or gone.
    pub(crate) fn rtnl_addr(&mut self, here: bool, ifa: &IfAddr) {
        if self.netlink.members.is_empty() || !self.netlink_listens(group::IPV4_IFADDR) {
            return;
        }
        let mut m = Message::new(if here { rtm::NEWADDR } else { rtm::DELADDR }, 0, 0, 0);
        super::addr::fill(&mut m, ifa);
        self.tell(group::IPV4_IFADDR, m.finish());
    }

    /// Routes have come or gone; `true` with a route stands for the local table.
    pub(crate) fn rtnl_routes(&mut self, here: bool, routes: &[(bool, Entry)]) {
        if self.netlink.members.is_empty() || !self.netlink_listens(group::IPV4_ROUTE) {
            return;
        }
        let (kind, flags) = if here { (rtm::NEWROUTE, flag::CREATE) } else { (rtm::DELROUTE, 0) };
        for (local, entry) in routes {
            let mut m = Message::new(kind, flags, 0, 0);
            super::route::fill(&mut m, *local, entry, self.nexthop_flags(entry));
            self.tell(group::IPV4_ROUTE, m.finish());
        }
    }

    /// A neighbour's entry has changed.
    pub(crate) fn rtnl_neigh(&mut self, n: u32) {
        if self.netlink.members.is_empty() || !self.netlink_listens(group::NEIGH) {
            return;
        }
        let Some(entry) = self.neigh.get(n) else { return };
        let mut m = Message::new(rtm::NEWNEIGH, 0, 0, 0);
        super::neigh::fill(&mut m, entry, self.now);
        self.tell(group::NEIGH, m.finish());
    }

    /// A neighbour's entry is gone.
    pub(crate) fn rtnl_neigh_gone(&mut self, entry: &Neigh) {
        if self.netlink.members.is_empty() || !self.netlink_listens(group::NEIGH) {
            return;
        }
        let mut m = Message::new(rtm::DELNEIGH, 0, 0, 0);
        super::neigh::fill(&mut m, entry, self.now);
        self.tell(group::NEIGH, m.finish());
    }
}
