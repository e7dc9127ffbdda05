//! What `ip ntable`, `ip netconf`, `tc qdisc` and `bridge fdb` show: the neighbour table's settings, those of interfaces, qdiscs, and
//! the link addresses that interfaces listen to.

use super::super::request::{Answer, Request};
use super::super::wire::{Message, flag};
use super::{AF_BRIDGE, AF_INET, AF_UNSPEC, rtm};
use crate::Kernel;
use crate::dev::NetDevice;
use crate::dev::qdisc::pfifo_fast::PRIO2BAND;
use crate::ip::devconf::{Conf, Whose};
use alloc::vec::Vec;
use ringlab_counters::Netdev;

/// The table's name, and what is as Linux has it and cannot be set here: milliseconds, requests, packets.
const ARP_CACHE: &str = "arp_cache";
const GC_INTERVAL: u64 = 30_000;
const ANYCAST_DELAY: u64 = 1000;
const PROXY_DELAY: u64 = 800;
const PROXY_QLEN: u32 = 64;
const LOCKTIME: u64 = 1000;
const INTERVAL_PROBE_TIME: u64 = 5000;
/// Packets of a queue limit are counted with the memory of one of the link's size (Linux `SKB_TRUESIZE(ETH_FRAME_LEN)`).
const FRAME_TRUESIZE: u32 = 2094;
/// `NETCONFA_IFINDEX_ALL`, `NETCONFA_IFINDEX_DEFAULT`.
const IFINDEX_ALL: u32 = -1i32 as u32;
const IFINDEX_DEFAULT: u32 = -2i32 as u32;
/// `TC_H_ROOT`; where the qdiscs of an `mq`'s queues hang is their number.
const TC_H_ROOT: u32 = u32::MAX;
/// `NUD_PERMANENT`, `NTF_SELF`.
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;

/// `NDTA_*`.
mod ndta {
    pub(super) const NAME: u16 = 1;
    pub(super) const THRESH1: u16 = 2;
    pub(super) const THRESH2: u16 = 3;
    pub(super) const THRESH3: u16 = 4;
    pub(super) const PARMS: u16 = 6;
    pub(super) const GC_INTERVAL: u16 = 8;
}

/// `NDTPA_*`.
mod ndtpa {
    pub(super) const IFINDEX: u16 = 1;
    pub(super) const REFCNT: u16 = 2;
    pub(super) const REACHABLE_TIME: u16 = 3;
    pub(super) const BASE_REACHABLE_TIME: u16 = 4;
    pub(super) const RETRANS_TIME: u16 = 5;
    pub(super) const GC_STALETIME: u16 = 6;
    pub(super) const DELAY_PROBE_TIME: u16 = 7;
    pub(super) const QUEUE_LEN: u16 = 8;
    pub(super) const APP_PROBES: u16 = 9;
    pub(super) const UCAST_PROBES: u16 = 10;
    pub(super) const MCAST_PROBES: u16 = 11;
    pub(super) const ANYCAST_DELAY: u16 = 12;
    pub(super) const PROXY_DELAY: u16 = 13;
    pub(super) const PROXY_QLEN: u16 = 14;
    pub(super) const LOCKTIME: u16 = 15;
    pub(super) const QUEUE_LENBYTES: u16 = 16;
    pub(super) const MCAST_REPROBES: u16 = 17;
    pub(super) const INTERVAL_PROBE_TIME_MS: u16 = 19;
}

/// `NETCONFA_*`.
mod netconfa {
    pub(super) const IFINDEX: u16 = 1;
    pub(super) const FORWARDING: u16 = 2;
    pub(super) const RP_FILTER: u16 = 3;
    pub(super) const MC_FORWARDING: u16 = 4;
    pub(super) const PROXY_NEIGH: u16 = 5;
    pub(super) const IGNORE_ROUTES_WITH_LINKDOWN: u16 = 6;
    pub(super) const BC_FORWARDING: u16 = 8;
}

/// `TCA_*`, `TCA_STATS_*`.
mod tca {
    pub(super) const KIND: u16 = 1;
    pub(super) const OPTIONS: u16 = 2;
    pub(super) const STATS2: u16 = 7;
    pub(super) const STATS_BASIC: u16 = 1;
    pub(super) const STATS_QUEUE: u16 = 3;
}

/// `NDA_LLADDR`.
const NDA_LLADDR: u16 = 2;

impl Kernel {
    /// `RTM_GETNEIGHTBL`: the ARP table, then its parameters for each interface (Linux `neightbl_dump_info`).
    pub(super) fn rtnl_dump_neigh_tables(&self, req: &Request<'_>, family: u8) -> Answer {
        if family != AF_UNSPEC && family != AF_INET {
            return Answer::Dump(Vec::new());
        }
        let s = &self.sysctl;
        let begin = || {
            let mut m = req.reply(rtm::NEWNEIGHTBL, flag::MULTI);
            m.bytes(&[AF_INET, 0, 0, 0]).text(ndta::NAME, ARP_CACHE);
            m
        };
        let mut table = begin();
        table.u64(ndta::GC_INTERVAL, GC_INTERVAL);
        table.u32(ndta::THRESH1, s.neigh_gc_thresh1 as u32).u32(ndta::THRESH2, s.neigh_gc_thresh2 as u32);
        table.u32(ndta::THRESH3, s.neigh_gc_thresh3 as u32).nest(ndta::PARMS, |m| self.fill_neigh_parms(m, 0));
        let mut out = Vec::from([table.finish()]);
        // The last made comes first.
        let devs: Vec<u32> = self.devs.iter().map(|d| d.index.0).collect();
        out.extend(devs.into_iter().rev().map(|dev| {
            let mut m = begin();
            m.nest(ndta::PARMS, |m| self.fill_neigh_parms(m, dev));
            m.finish()
        }));
        Answer::Dump(out)
    }

    fn fill_neigh_parms(&self, m: &mut Message, dev: u32) {
        let s = &self.sysctl;
        if dev != 0 {
            m.u32(ndtpa::IFINDEX, dev);
        }
        let bytes = s.neigh_unres_qlen_bytes as u32;
        let reachable = s.neigh_base_reachable_time_ms as u64;
        m.u32(ndtpa::REFCNT, 1).u32(ndtpa::QUEUE_LENBYTES, bytes).u32(ndtpa::QUEUE_LEN, bytes / FRAME_TRUESIZE);
        m.u32(ndtpa::PROXY_QLEN, PROXY_QLEN).u32(ndtpa::APP_PROBES, 0).u32(ndtpa::UCAST_PROBES, s.neigh_ucast_solicit as u32);
        m.u32(ndtpa::MCAST_PROBES, s.neigh_mcast_solicit as u32).u32(ndtpa::MCAST_REPROBES, 0);
        m.u64(ndtpa::REACHABLE_TIME, reachable).u64(ndtpa::BASE_REACHABLE_TIME, reachable);
        m.u64(ndtpa::GC_STALETIME, s.neigh_gc_stale_time as u64 * 1000);
        m.u64(ndtpa::DELAY_PROBE_TIME, s.neigh_delay_first_probe_time as u64 * 1000);
        m.u64(ndtpa::RETRANS_TIME, s.neigh_retrans_time_ms as u64).u64(ndtpa::ANYCAST_DELAY, ANYCAST_DELAY);
        m.u64(ndtpa::PROXY_DELAY, PROXY_DELAY).u64(ndtpa::LOCKTIME, LOCKTIME).u64(ndtpa::INTERVAL_PROBE_TIME_MS, INTERVAL_PROBE_TIME);
    }

    /// `RTM_GETNETCONF`: of each interface, of all, of those to come (Linux `inet_netconf_dump_devconf`).
    pub(super) fn rtnl_dump_netconf(&self, req: &Request<'_>, family: u8) -> Answer {
        if family != AF_UNSPEC && family != AF_INET {
            return Answer::Dump(Vec::new());
        }
        let one = |(index, whose): (u32, Whose)| {
            let mut m = req.reply(rtm::NEWNETCONF, flag::MULTI);
            m.bytes(&[AF_INET, 0, 0, 0]).u32(netconfa::IFINDEX, index);
            let rows = [
                (netconfa::FORWARDING, Conf::Forwarding),
                (netconfa::RP_FILTER, Conf::RpFilter),
                (netconfa::IGNORE_ROUTES_WITH_LINKDOWN, Conf::IgnoreRoutesWithLinkdown),
            ];
            for (kind, conf) in rows {
                m.u32(kind, self.devconf_get(whose, conf) as u32);
            }
            // Multicast and broadcasts are not forwarded, nobody is answered for.
            m.u32(netconfa::MC_FORWARDING, 0).u32(netconfa::PROXY_NEIGH, 0).u32(netconfa::BC_FORWARDING, 0);
            m.finish()
        };
        let devs = self.devs.iter().map(|d| (d.index.0, Whose::Dev(d.index)));
        Answer::Dump(devs.chain([(IFINDEX_ALL, Whose::All), (IFINDEX_DEFAULT, Whose::Default)]).map(one).collect())
    }

    /// `RTM_GETQDISC`: one root for each interface (`noqueue`, `pfifo_fast`, or `mq` over several), and those of `mq`'s queues.
    pub(super) fn rtnl_dump_qdiscs(&self, req: &Request<'_>) -> Answer {
        let mut out = Vec::new();
        for d in self.devs.iter() {
            let root = d.qdisc_name();
            out.push(qdisc(req, d, TC_H_ROOT, root));
            if root == "mq" {
                out.extend((1..=d.queues.len() as u32).map(|queue| qdisc(req, d, queue, "pfifo_fast")));
            }
        }
        Answer::Dump(out)
    }

    /// `RTM_GETNEIGH` of `AF_BRIDGE`: link addresses of groups (Linux `ndo_dflt_fdb_dump`).
    pub(super) fn rtnl_dump_fdb(&self, req: &Request<'_>) -> Answer {
        let mut out = Vec::new();
        for d in self.devs.iter().filter(|d| !d.is_loopback() && d.up) {
            for (group, _) in self.mc_groups_on(d.index.0) {
                let [_, b, c, e] = group.octets();
                let mut m = req.reply(rtm::NEWNEIGH, flag::MULTI);
                m.bytes(&[AF_BRIDGE, 0, 0, 0]).bytes(&d.index.0.to_ne_bytes()).bytes(&NUD_PERMANENT.to_ne_bytes()).bytes(&[NTF_SELF, 0]);
                m.attr(NDA_LLADDR, &[0x01, 0x00, 0x5e, b & 0x7f, c, e]);
                out.push(m.finish());
            }
        }
        Answer::Dump(out)
    }
}

/// `struct tcmsg` and its attributes (Linux `tc_fill_qdisc`). What was sent is counted for the interface as a whole.
fn qdisc(req: &Request<'_>, d: &NetDevice, parent: u32, kind: &str) -> Vec<u8> {
    // A lone root is held by its queue, too.
    let refs: u32 = if parent == TC_H_ROOT && kind != "mq" { 2 } else { 1 };
    let mut m = req.reply(rtm::NEWQDISC, flag::MULTI);
    m.bytes(&[AF_UNSPEC, 0, 0, 0]).bytes(&d.index.0.to_ne_bytes()).bytes(&0u32.to_ne_bytes());
    m.bytes(&parent.to_ne_bytes()).bytes(&refs.to_ne_bytes()).text(tca::KIND, kind);
    if kind == "pfifo_fast" {
        // `struct tc_prio_qopt`.
        m.attr(tca::OPTIONS, &[&3u32.to_ne_bytes()[..], &PRIO2BAND].concat());
    }
    if parent == TC_H_ROOT {
        let counted = if kind == "noqueue" {
            [0; 4]
        } else {
            [Netdev::TxBytes, Netdev::TxPackets, Netdev::QdiscDropped, Netdev::QdiscRequeues].map(|c| d.stats.get(c))
        };
        let [bytes, packets, drops, requeues] = counted;
        let waiting: u32 = d.queues.iter().map(|q| q.qdisc.len()).sum();
        m.nest(tca::STATS2, |m| {
            m.attr(tca::STATS_BASIC, &[&bytes.to_ne_bytes()[..], &(packets as u32).to_ne_bytes(), &[0; 4]].concat());
            m.words(tca::STATS_QUEUE, &[waiting, 0, drops as u32, requeues as u32, 0]);
        });
    }
    m.finish()
}
