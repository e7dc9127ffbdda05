//! The settings of interfaces, `net.ipv4.conf`: what each of them changes.

mod common;

use common::tasks::{DGRAM, Prog};
use common::{Dir, Frame, HostConfig, Lab, Path, PortConfig, TEST_MAC, mac};
use ringlab_counters::{DropReason, Mib};
use ringlab_kernel::Event;
use ringlab_kernel::dev::net_device::{IfIndex, MacAddr};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret};
use std::net::Ipv4Addr;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
/// The host's address on eth0, and that on eth1.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// Somebody on eth0's link; somebody who belongs on eth1's.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const ALL: MacAddr = MacAddr([255; 6]);
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// A host with two interfaces, both in the test's hands.
fn lab() -> Lab {
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig::default());
    lab.stub(0, HERE, 24, PortConfig::default());
    lab.stub(0, THERE, 24, PortConfig::default());
    lab
}

fn set(lab: &mut Lab, row: &str, value: &str) {
    lab.hosts[0].kernel.sysctl_set(&format!("net.ipv4.conf.{row}"), value).unwrap_or_else(|e| panic!("{row}: {e}"));
}

fn get(lab: &Lab, row: &str) -> String {
    lab.hosts[0].kernel.sysctl_get(&format!("net.ipv4.conf.{row}")).unwrap_or_else(|e| panic!("{row}: {e}"))
}

fn drops(lab: &Lab, reason: DropReason) -> u64 {
    lab.hosts[0].kernel.stats().drops.get(reason)
}

fn mib(lab: &Lab, counter: Mib) -> u64 {
    lab.hosts[0].kernel.stats().mib.get(counter)
}

/// An ARP packet: operation, who says so, who is the target and its address.
fn arp(op: u8, sip: Ipv4Addr, tip: Ipv4Addr, tha: MacAddr) -> Frame {
    let to = if op == REQUEST { ALL } else { mac(0, 0) };
    let mut b = [to.0, TEST_MAC.0].concat();
    b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, op]);
    b.extend(TEST_MAC.0);
    b.extend(sip.octets());
    b.extend(tha.0);
    b.extend(tip.octets());
    b.into()
}

/// True if a question on eth0 is answered.
fn answers(lab: &mut Lab, sip: Ipv4Addr, tip: Ipv4Addr) -> bool {
    lab.received.clear();
    lab.inject(0, Dir::Backward, arp(REQUEST, sip, tip, MacAddr::default()));
    lab.run_for(MS);
    lab.received.iter().any(|r| r.1.arp_op() == u16::from(REPLY))
}

/// Neighbours by address.
fn known(lab: &Lab) -> Vec<Ipv4Addr> {
    lab.hosts[0].kernel.stats().neighbours.iter().map(|n| n.addr).collect()
}

fn carrier(lab: &mut Lab, on: bool) {
    let now = lab.now;
    lab.hosts[0].kernel.handle(now, Event::Carrier(IfIndex(2), on));
    lab.run_for(MS);
}

#[test]
fn every_interface_has_its_folder_beside_those_of_all_and_default() {
    let mut lab = lab();
    let kernel = &lab.hosts[0].kernel;
    let names = |path: &str| kernel.procfs_list(path).expect("a directory").into_iter().map(|e| e.name).collect::<Vec<_>>();
    assert_eq!(names("/proc/sys/net/ipv4/conf"), ["all", "default", "eth0", "eth1", "lo"]);
    assert_eq!(names("/proc/sys/net/ipv4/conf/eth0").len(), 13);
    let mut write = |path: &str, text: &str| lab.hosts[0].kernel.procfs_write(&format!("/proc/sys/net/ipv4/conf/{path}"), text.as_bytes());
    assert_eq!(write("eth0/arp_ignore", "2\n"), Ok(2));
    assert_eq!(write("eth0/arp_ignore", "much"), Err(Errno::EINVAL));
    assert_eq!(write("eth9/arp_ignore", "2"), Err(Errno::ENOENT));
    assert_eq!(write("eth0/log_martians", "1"), Err(Errno::ENOENT), "what the model has not is not there");
    assert_eq!([get(&lab, "eth0.arp_ignore"), get(&lab, "eth1.arp_ignore"), get(&lab, "all.arp_ignore")], ["2", "0", "0"]);
    assert_eq!(get(&lab, "eth0.arp_evict_nocarrier"), "1");
    // Forwarding of all is that of each.
    set(&mut lab, "eth1.forwarding", "1");
    assert_eq!([get(&lab, "all.forwarding"), get(&lab, "eth0.forwarding")], ["0", "0"]);
    lab.hosts[0].kernel.sysctl_set("net.ipv4.ip_forward", "1").expect("a row");
    assert_eq!([get(&lab, "all.forwarding"), get(&lab, "default.forwarding"), get(&lab, "eth0.forwarding")], ["1", "1", "1"]);
    set(&mut lab, "all.forwarding", "0");
    assert_eq!(get(&lab, "eth1.forwarding"), "0");
    assert_eq!(lab.hosts[0].kernel.sysctl_get("net.ipv4.ip_forward").as_deref(), Ok("0"));
}

#[test]
fn arp_ignore_says_whose_questions_for_which_addresses_are_answered() {
    let mut lab = lab();
    let stranger = Ipv4Addr::new(192, 0, 2, 7);
    // Asked for: the interface's address, the other's; by somebody of its subnet, by a stranger.
    for (ignore, want) in
        [("0", [true, true, true]), ("1", [true, false, true]), ("2", [true, false, false]), ("3", [true, true, true]), ("8", [false; 3])]
    {
        set(&mut lab, "eth0.arp_ignore", ignore);
        let got = [(NEAR, HERE), (NEAR, THERE), (stranger, HERE)].map(|(sip, tip)| answers(&mut lab, sip, tip));
        assert_eq!(got, want, "arp_ignore {ignore}");
    }
    // The largest of all's and the interface's holds, and nobody is learnt who is not answered.
    set(&mut lab, "eth0.arp_ignore", "0");
    set(&mut lab, "all.arp_ignore", "1");
    assert!(!answers(&mut lab, Ipv4Addr::new(10, 0, 0, 77), THERE) && !known(&lab).contains(&Ipv4Addr::new(10, 0, 0, 77)));
    // Nor is an address probe.
    assert!(answers(&mut lab, Ipv4Addr::UNSPECIFIED, HERE) && !answers(&mut lab, Ipv4Addr::UNSPECIFIED, THERE));
}

#[test]
fn arp_filter_answers_where_the_way_back_leads() {
    let mut lab = lab();
    assert!(answers(&mut lab, FAR, HERE));
    set(&mut lab, "all.arp_filter", "1");
    assert!(!answers(&mut lab, FAR, HERE) && answers(&mut lab, NEAR, HERE));
    assert_eq!(mib(&lab, Mib::ArpFilter), 1);
}

#[test]
fn arp_announce_says_which_address_asks() {
    for (announce, source) in [("0", THERE), ("1", HERE), ("2", HERE)] {
        let mut lab = lab();
        set(&mut lab, "all.arp_announce", announce);
        let p = Prog::spawn(&mut lab, 0, "p");
        let fd = p.socket(&mut lab, DGRAM);
        // Sends by eth0 from eth1's address.
        p.bind(&mut lab, fd, THERE, 7);
        p.send_to(&mut lab, fd, b"x", NEAR, 9);
        lab.run_for(MS);
        let asked = lab.received.iter().find(|r| r.1.arp_op() == 1).expect("a question");
        assert_eq!(asked.1.bytes[28..32], source.octets(), "arp_announce {announce}");
    }
}

#[test]
fn arp_accept_makes_entries_of_what_nobody_asked_for() {
    let stranger = Ipv4Addr::new(192, 0, 2, 7);
    for (accept, near, far) in [("0", false, false), ("1", true, true), ("2", true, false)] {
        for op in [REQUEST, REPLY] {
            let mut lab = lab();
            set(&mut lab, "eth0.arp_accept", accept);
            for who in [NEAR, stranger] {
                lab.inject(0, Dir::Backward, arp(op, who, who, TEST_MAC));
            }
            lab.run_for(MS);
            let got = known(&lab);
            assert_eq!((got.contains(&NEAR), got.contains(&stranger)), (near, far), "arp_accept {accept}, operation {op}");
        }
    }
}

#[test]
fn gratuitous_arp_is_dropped_where_asked_for() {
    let mut lab = lab();
    set(&mut lab, "eth0.arp_accept", "1");
    set(&mut lab, "all.drop_gratuitous_arp", "1");
    lab.inject(0, Dir::Backward, arp(REQUEST, NEAR, NEAR, MacAddr::default()));
    lab.run_for(MS);
    assert!(known(&lab).is_empty());
}

#[test]
fn accept_local_lets_our_own_addresses_come_from_outside() {
    let mut lab = lab();
    let path = Path { src: THERE, dst: HERE, dst_mac: mac(0, 0) };
    let delivered = |lab: &mut Lab| {
        let before = mib(lab, Mib::UdpNoPorts);
        lab.inject(0, Dir::Backward, path.udp(1, 2, b"x"));
        lab.run_for(MS);
        mib(lab, Mib::UdpNoPorts) - before
    };
    assert_eq!((delivered(&mut lab), drops(&lab, DropReason::IpLocalSource)), (0, 1));
    set(&mut lab, "eth1.accept_local", "1");
    assert_eq!(delivered(&mut lab), 0, "that is the other interface's");
    set(&mut lab, "eth0.accept_local", "1");
    assert_eq!(delivered(&mut lab), 1);
}

#[test]
fn rp_filter_refuses_sources_that_belong_elsewhere_and_counts_them() {
    let mut lab = lab();
    let stranger = Ipv4Addr::new(192, 0, 2, 7);
    // From somebody of the other link, and from somebody to whom there is no way.
    for (filter, far, nowhere) in [("0", true, true), ("1", false, false), ("2", true, false)] {
        set(&mut lab, "eth0.rp_filter", filter);
        for (src, want) in [(FAR, far), (stranger, nowhere)] {
            let before = (drops(&lab, DropReason::IpRpFilter), mib(&lab, Mib::IPReversePathFilter));
            lab.inject(0, Dir::Backward, Path { src, dst: HERE, dst_mac: mac(0, 0) }.udp(1, 2, b"x"));
            lab.run_for(MS);
            let refused = (drops(&lab, DropReason::IpRpFilter) - before.0, mib(&lab, Mib::IPReversePathFilter) - before.1);
            assert_eq!(refused, if want { (0, 0) } else { (1, 1) }, "rp_filter {filter}, from {src}");
        }
    }
}

#[test]
fn packets_are_forwarded_if_the_interface_that_they_came_by_says_so() {
    let mut lab = lab();
    let through = Path { src: NEAR, dst: FAR, dst_mac: mac(0, 0) };
    let forwarded = |lab: &mut Lab| {
        let before = mib(lab, Mib::IpForwDatagrams);
        lab.inject(0, Dir::Backward, through.udp(1, 2, b"x"));
        lab.run_for(MS);
        mib(lab, Mib::IpForwDatagrams) - before
    };
    set(&mut lab, "eth1.forwarding", "1");
    assert_eq!((forwarded(&mut lab), drops(&lab, DropReason::IpInAddrErrors)), (0, 1));
    set(&mut lab, "eth0.forwarding", "1");
    assert_eq!(forwarded(&mut lab), 1);
}

#[test]
fn unicast_in_a_frame_to_all_is_dropped_where_asked_for() {
    let mut lab = lab();
    let frame = Path { src: NEAR, dst: HERE, dst_mac: ALL }.udp(1, 2, b"x");
    lab.inject(0, Dir::Backward, frame.clone());
    lab.run_for(MS);
    assert_eq!(mib(&lab, Mib::UdpNoPorts), 1);
    set(&mut lab, "eth0.drop_unicast_in_l2_multicast", "1");
    lab.inject(0, Dir::Backward, frame);
    lab.run_for(MS);
    assert_eq!((mib(&lab, Mib::UdpNoPorts), drops(&lab, DropReason::UnicastInL2Multicast)), (1, 1));
}

#[test]
fn routes_without_a_carrier_are_passed_over_where_asked_for() {
    let mut lab = lab();
    let kernel = &mut lab.hosts[0].kernel;
    let net = (Ipv4Addr::new(192, 0, 2, 0), 24);
    kernel.add_route(net, NEAR, None, 0).expect("a gateway on eth0");
    kernel.add_route(net, FAR, None, 10).expect("a gateway on eth1");
    let p = Prog::spawn(&mut lab, 0, "p");
    let way = |lab: &mut Lab, to: Ipv4Addr| {
        let fd = p.socket(lab, DGRAM);
        let ret = p.now(lab, Call::Connect(fd, Some((to, 9).into())));
        let from = match ret {
            Ret::Value(_) => match p.now(lab, Call::GetSockName(fd)) {
                Ret::Addr(addr) => Ok(addr.ip()),
                ret => panic!("{ret:?}"),
            },
            Ret::Err(e) => Err(e),
            ret => panic!("{ret:?}"),
        };
        p.ok(lab, Call::Close(fd));
        from
    };
    let behind = Ipv4Addr::new(192, 0, 2, 1);
    carrier(&mut lab, false);
    assert_eq!((way(&mut lab, behind), way(&mut lab, NEAR)), (Ok(HERE.into()), Ok(HERE.into())), "used all the same");
    set(&mut lab, "all.ignore_routes_with_linkdown", "1");
    assert_eq!(way(&mut lab, behind), Ok(THERE.into()), "the next best");
    assert_eq!(way(&mut lab, NEAR), Err(Errno::ENETUNREACH));
    assert_eq!(way(&mut lab, HERE), Ok(HERE.into()), "the host itself needs no carrier");
    // A gateway may still be named.
    lab.hosts[0].kernel.add_route((Ipv4Addr::new(198, 51, 100, 0), 24), NEAR, None, 0).expect("on eth0, some day");
    carrier(&mut lab, true);
    assert_eq!((way(&mut lab, behind), way(&mut lab, NEAR)), (Ok(HERE.into()), Ok(HERE.into())));
}

#[test]
fn neighbours_are_kept_without_a_carrier_where_asked_for() {
    for (row, kept) in [
        (None, false),
        (Some("all.arp_evict_nocarrier"), true),
        (Some("eth0.arp_evict_nocarrier"), true),
        (Some("eth1.arp_evict_nocarrier"), false),
    ] {
        let mut lab = lab();
        if let Some(row) = row {
            set(&mut lab, row, "0");
        }
        assert!(answers(&mut lab, NEAR, HERE));
        carrier(&mut lab, false);
        assert_eq!(known(&lab).contains(&NEAR), kept, "{row:?}");
    }
}

#[test]
fn addresses_are_announced_when_an_interface_goes_up_or_changes_its_own_where_asked_for() {
    const SIOCSIFFLAGS: u32 = 0x8914;
    const SIOCSIFHWADDR: u32 = 0x8924;
    let ifreq = |value: &[u8]| {
        let mut b = [&b"eth0"[..], &[0; 12], value].concat();
        b.resize(40, 0);
        b
    };
    let (down, up) = (ifreq(&0x1042u16.to_ne_bytes()), ifreq(&0x1043u16.to_ne_bytes()));
    let other = [2, 7, 7, 7, 7, 7];
    let mut lab = lab();
    let p = Prog::spawn(&mut lab, 0, "p");
    let fd = p.socket(&mut lab, DGRAM);
    let said = |lab: &mut Lab, what: &[(u32, &Vec<u8>)]| {
        lab.received.clear();
        for (cmd, arg) in what {
            p.ok(lab, Call::Ioctl(fd, *cmd, (*arg).clone()));
        }
        lab.run_for(MS);
        lab.received.iter().map(|r| r.1.bytes[22..42].to_vec()).collect::<Vec<_>>()
    };
    let bounce = [(SIOCSIFFLAGS, &down), (SIOCSIFFLAGS, &up)];
    assert!(said(&mut lab, &bounce).is_empty());
    set(&mut lab, "all.arp_notify", "1");
    let announcement = |mac: [u8; 6]| [&mac[..], &HERE.octets(), &[0; 6], &HERE.octets()].concat();
    assert_eq!(said(&mut lab, &bounce), [announcement(mac(0, 0).0)]);
    assert!(answers(&mut lab, NEAR, HERE));
    let hwaddr = ifreq(&[&1u16.to_ne_bytes()[..], &other].concat());
    assert_eq!(said(&mut lab, &[(SIOCSIFHWADDR, &hwaddr)]), [announcement(other)]);
    assert!(known(&lab).is_empty(), "they were learnt through the old address");
}
