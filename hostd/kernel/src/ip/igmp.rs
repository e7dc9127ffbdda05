//! IGMP (RFC 2236, RFC 3376): routers are told which groups this host listens to.
//!
//! Joining and leaving are reported at once and a second time within a second, in case the first
//! was lost; a query is answered within the time it allows. After a query of version 2 the
//! interface speaks version 2 for a while. The host has no source-specific state on the wire: it asks
//! for a group from all sources, and sockets filter ([`crate::vfs::mcast`]).

use super::header::IpHdr;
use super::route::{Flow, RouteKind};
use crate::Kernel;
use crate::dev::net_device::IfIndex;
use crate::skb::{MAX_HEADER, SkBuff};
use crate::time::Instant;
use crate::timer::TimerKey;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;
use ringlab_counters::DropReason;
use ringlab_ring::memory::{checksum_add, fold};

const IGMP: u8 = 2;
const QUERY: u8 = 0x11;
const V2_REPORT: u8 = 0x16;
const V2_LEAVE: u8 = 0x17;
const V3_REPORT: u8 = 0x22;
/// Kinds of a group record.
const IS_EXCLUDE: u8 = 2;
const TO_INCLUDE: u8 = 3;
const TO_EXCLUDE: u8 = 4;
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
const V3_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);
/// Network control.
const TOS: u8 = 0xc0;
/// Router alert (RFC 2113).
const ROUTER_ALERT: [u8; 4] = [0x94, 4, 0, 0];
/// The second report comes within this time.
const UNSOLICITED: Duration = Duration::from_secs(1);
/// Version 2 is spoken so long after its query (RFC 3376 §8.12: twice 125 s and 10 s).
const V2_QUERIER: Duration = Duration::from_secs(260);

/// What is to be reported on an interface.
#[derive(Debug, Default)]
pub(crate) struct IgmpDev {
    /// Changes to report again.
    changes: BTreeMap<Ipv4Addr, u8>,
    /// A query to answer: of a group, or of all.
    query: Option<Option<Ipv4Addr>>,
    v2_until: Option<Instant>,
}

impl Kernel {
    /// The first socket has joined a group on an interface (Linux `igmp_group_added`).
    pub(crate) fn igmp_group_added(&mut self, group: Ipv4Addr, dev: u32) {
        self.igmp_change(group, dev, TO_EXCLUDE);
    }

    /// The last one has left it (Linux `igmp_group_dropped`).
    pub(crate) fn igmp_group_dropped(&mut self, group: Ipv4Addr, dev: u32) {
        self.igmp_change(group, dev, TO_INCLUDE);
    }

    fn igmp_change(&mut self, group: Ipv4Addr, dev: u32, kind: u8) {
        let silent = self.devs.get(IfIndex(dev)).is_none_or(|d| d.is_loopback() || !d.up);
        if silent || group == ALL_HOSTS {
            return;
        }
        self.igmp.entry(dev).or_default().changes.insert(group, kind);
        self.igmp_report(dev, &[(group, kind)]);
        let delay = self.igmp_random(UNSOLICITED);
        self.igmp_arm(dev, delay);
    }

    fn igmp_random(&mut self, most: Duration) -> Duration {
        let share = u64::from(rand_core::Rng::next_u32(&mut self.rng));
        Duration::from_nanos((((most.as_nanos() as u64 >> 10) * (share >> 10)) >> 12).max(1))
    }

    fn igmp_arm(&mut self, dev: u32, delay: Duration) {
        let at = self.now + delay;
        self.timers.set(TimerKey::Igmp(dev), at);
    }

    /// Reports again, and answers a query.
    pub(crate) fn igmp_timer(&mut self, dev: u32) {
        let Some(state) = self.igmp.get_mut(&dev) else { return };
        let mut records: Vec<(Ipv4Addr, u8)> = core::mem::take(&mut state.changes).into_iter().collect();
        if let Some(asked) = state.query.take() {
            let groups = self.mc_groups_on(dev).into_iter().map(|(group, _)| group);
            let wanted = groups.filter(|&g| g != ALL_HOSTS && asked.is_none_or(|asked| asked == g));
            records.extend(wanted.map(|g| (g, IS_EXCLUDE)).collect::<Vec<_>>());
        }
        if !records.is_empty() {
            self.igmp_report(dev, &records);
        }
    }

    /// A packet of the protocol; `skb` stands at its header (Linux `igmp_rcv`).
    pub(crate) fn igmp_rcv(&mut self, skb: Box<SkBuff>) {
        let mut b = [0; 12];
        let known = skb.len().min(12) as usize;
        let whole = skb.copy_bits(0, &mut b[..known]).is_ok() && known >= 8 && skb.checksum(0, skb.len(), 0) == 0xffff;
        if whole && b[0] == QUERY {
            let group = Ipv4Addr::new(b[4], b[5], b[6], b[7]);
            let now = self.now;
            let v3 = skb.len() >= 12;
            // The code counts tenths of a second; from 128 on it is a floating-point number (version 3).
            let tenths = match b[1] {
                0 => 100,
                code if v3 && code >= 128 => (u64::from(code & 15) | 16) << ((code >> 4 & 7) + 3),
                code => u64::from(code),
            };
            let state = self.igmp.entry(skb.dev).or_default();
            if !v3 {
                state.v2_until = Some(now + V2_QUERIER);
            }
            let asked = (!group.is_unspecified()).then_some(group);
            // Two questions at once: all are told.
            state.query = Some(if state.query.is_some_and(|q| q != asked) { None } else { asked });
            let delay = self.igmp_random(Duration::from_millis(100 * tenths));
            self.igmp_arm(skb.dev, delay);
        }
        self.consume_skb(skb);
    }

    fn igmp_report(&mut self, dev: u32, records: &[(Ipv4Addr, u8)]) {
        let now = self.now;
        let v2 = self.igmp.get(&dev).and_then(|s| s.v2_until).is_some_and(|until| now < until);
        if v2 {
            for &(group, kind) in records {
                let (to, message) = if kind == TO_INCLUDE { (ALL_ROUTERS, V2_LEAVE) } else { (group, V2_REPORT) };
                self.igmp_send(dev, to, &[&[message, 0, 0, 0][..], &group.octets()].concat());
            }
            return;
        }
        let mut b = alloc::vec![V3_REPORT, 0, 0, 0, 0, 0];
        b.extend((records.len() as u16).to_be_bytes());
        for &(group, kind) in records {
            b.extend([kind, 0, 0, 0]);
            b.extend(group.octets());
        }
        self.igmp_send(dev, V3_ROUTERS, &b);
    }

    fn igmp_send(&mut self, dev: u32, to: Ipv4Addr, message: &[u8]) {
        let Ok(mut route) = self.ip_route_output_key(Flow { daddr: to, saddr: Ipv4Addr::UNSPECIFIED, oif: dev }) else { return };
        // Nobody on this host needs to hear it.
        route.kind = RouteKind::Multicast;
        let mut message = message.to_vec();
        let sum = !fold(checksum_add(&message, 0));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let hdr = IpHdr {
            tos: TOS,
            total: 0,
            id: 0,
            frag_off: super::header::DF,
            ttl: 1,
            protocol: IGMP,
            saddr: route.saddr.to_bits(),
            daddr: to.to_bits(),
            options: ROUTER_ALERT.into_iter().collect(),
        };
        let head = hdr.emit();
        let mut skb = self.alloc_skb();
        if !skb.alloc_head(&self.config.pool, MAX_HEADER, (head.len() + message.len()) as u32) {
            return self.kfree_skb(skb, DropReason::NoMem);
        }
        skb.put_bytes(&head);
        skb.put_bytes(&message);
        skb.mc_loop_off = true;
        // What is lost is reported again.
        let _ = self.ip_send_hdrincl(skb, &route);
    }
}
