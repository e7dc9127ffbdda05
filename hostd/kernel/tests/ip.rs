//! IPv4: reassembly, fragmentation, martians, ICMP errors and their limits, path MTU.

mod common;

use common::{Dir, HostConfig, Lab, Path, PortConfig};
use ringlab_counters::{DropReason, Mib};
use ringlab_kernel::dev::net_device::MacAddr;
use std::net::Ipv4Addr;
use std::time::Duration;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const TESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const TO_HOST: Path = Path { src: TESTER, dst: HOST, dst_mac: MacAddr([2, 0, 0, 0, 0, 0]) };
const THROUGH: Path = Path { dst: FAR, ..TO_HOST };

fn lab(forward: bool, out_mtu: u32) -> Lab {
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig { ip_forward: forward, ..HostConfig::default() });
    lab.stub(0, HOST, 24, PortConfig::default());
    lab.stub(0, Ipv4Addr::new(10, 0, 1, 1), 24, PortConfig { mtu: out_mtu, ..PortConfig::default() });
    lab.inject(0, Dir::Backward, TO_HOST.echo(1, 0, b"resolve"));
    if forward {
        lab.inject(0, Dir::Backward, THROUGH.udp(1, 1, b"resolve"));
    }
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(0);
    lab.answer_arp(1);
    lab.received.clear();
    lab
}

fn drops(lab: &Lab, reason: DropReason) -> u64 {
    lab.hosts[0].kernel.stats().drops.get(reason)
}

fn mib(lab: &Lab, counter: Mib) -> u64 {
    lab.hosts[0].kernel.stats().mib.get(counter)
}

/// The octets of an echo request with a valid checksum, as IP payload.
fn echo_bytes(len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
    TO_HOST.echo(9, 9, &payload).bytes[34..].to_vec()
}

#[test]
fn pieces_in_any_order_make_the_datagram_without_a_copy() {
    let mut lab = lab(false, 1500);
    let data = echo_bytes(4000);
    for range in [2000..3000, 0..1000, 3000..data.len(), 1000..2000] {
        let more = range.end != data.len();
        lab.inject(0, Dir::Backward, TO_HOST.fragment(5, 1, range.start as u16, more, &data[range]));
    }
    lab.run_for(Duration::from_millis(1));
    assert_eq!((mib(&lab, Mib::IpReasmReqds), mib(&lab, Mib::IpReasmOKs)), (4, 1));
    // The reply is longer than the MTU: it goes out in pieces, copied; reassembling was free.
    assert_eq!(lab.hosts[0].kernel.stats().copies.get(ringlab_counters::CopyKind::OtherBytes), 4008);
    let pieces: Vec<(usize, bool)> = lab.received.iter().map(|r| (r.1.frag_offset(), r.1.more_fragments())).collect();
    assert_eq!(pieces, [(0, true), (1480, true), (2960, false)]);
    let whole: Vec<u8> = lab.received.iter().flat_map(|r| r.1.bytes[34..].to_vec()).collect();
    assert_eq!(whole[8..], data[8..]);
    assert!(lab.received.windows(2).all(|w| w[0].1.ip_id() == w[1].1.ip_id()));
}

#[test]
fn largest_datagram_in_many_pieces_is_answered() {
    let mut lab = lab(false, 1500);
    let data = echo_bytes(65_507);
    for (i, part) in data.chunks(1480).enumerate() {
        let at = i * 1480;
        lab.inject(0, Dir::Backward, TO_HOST.fragment(5, 1, at as u16, at + part.len() != data.len(), part));
    }
    lab.run_for(Duration::from_millis(1));
    assert_eq!(mib(&lab, Mib::IpReasmOKs), 1);
    let whole: Vec<u8> = lab.received.iter().flat_map(|r| r.1.bytes[34..].to_vec()).collect();
    assert_eq!(whole.len(), data.len());
    assert_eq!(whole[8..], data[8..]);
}

#[test]
fn overlapping_piece_drops_the_whole_queue() {
    let mut lab = lab(false, 1500);
    let data = echo_bytes(1992);
    lab.inject(0, Dir::Backward, TO_HOST.fragment(5, 1, 0, true, &data[..1000]));
    lab.inject(0, Dir::Backward, TO_HOST.fragment(5, 1, 992, false, &data[992..]));
    lab.inject(0, Dir::Backward, TO_HOST.fragment(5, 1, 1000, false, &data[1000..]));
    lab.run_for(Duration::from_millis(1));
    assert_eq!((drops(&lab, DropReason::NotSpecified), mib(&lab, Mib::IpReasmFails)), (1, 1));
    assert!(lab.received.is_empty());
    lab.run_for(Duration::from_secs(31));
    assert_eq!(drops(&lab, DropReason::FragReasmTimeout), 1, "the last piece had begun a new queue");
}

#[test]
fn incomplete_datagram_times_out_and_the_sender_hears_of_it() {
    let mut lab = lab(false, 1500);
    let data = echo_bytes(1992);
    lab.inject(0, Dir::Backward, TO_HOST.fragment(5, 1, 0, true, &data[..1000]));
    lab.inject(0, Dir::Backward, TO_HOST.fragment(6, 1, 1000, false, &data[1000..]));
    lab.run_for(Duration::from_millis(29_990));
    assert!(lab.received.iter().all(|r| !r.1.is_icmp()));
    lab.run_for(Duration::from_secs(1));
    let errors: Vec<_> = lab.received.iter().filter(|r| r.1.is_icmp()).collect();
    assert_eq!(errors.len(), 1, "only for the queue whose first piece came");
    assert_eq!(errors[0].1.icmp(), Some((11, 1)));
    assert_eq!((drops(&lab, DropReason::FragReasmTimeout), mib(&lab, Mib::IpReasmTimeout)), (2, 2));
}

#[test]
fn too_many_pieces_are_refused_beyond_the_threshold() {
    let mut lab = lab(false, 1500);
    lab.hosts[0].kernel.sysctl_set("net.ipv4.ipfrag_high_thresh", "50000").expect("a row");
    for id in 0..100 {
        lab.inject(0, Dir::Backward, TO_HOST.fragment(id, 1, 0, true, &[0; 1000]));
        lab.run_for(Duration::from_micros(1));
    }
    let refused = drops(&lab, DropReason::NoMem);
    assert_eq!(refused, 100 - 12, "twelve buffers of 4 KiB and what a piece costs beside");
    lab.run_for(Duration::from_secs(31));
    assert_eq!(drops(&lab, DropReason::FragReasmTimeout), 12);
}

#[test]
fn datagrams_that_have_begun_take_no_more_pieces_beyond_the_threshold_either() {
    let mut lab = lab(false, 1500);
    lab.hosts[0].kernel.sysctl_set("net.ipv4.ipfrag_high_thresh", "50000").expect("a row");
    // One datagram in pieces of eight octets: each of them holds a buffer.
    for at in 0..1000 {
        lab.inject(0, Dir::Backward, TO_HOST.fragment(7, 1, 8 * at, true, &[0; 8]));
        lab.run_for(Duration::from_micros(1));
    }
    assert_eq!(drops(&lab, DropReason::NoMem), 1000 - 12);
    let held = lab.hosts[0].pool.in_use();
    assert!(held < 60_000, "{held} octets are held");
}

#[test]
fn pieces_too_far_apart_are_not_put_together() {
    for (between, max, joined) in [(63, "64", true), (64, "64", false), (64, "0", true)] {
        let mut lab = lab(false, 1500);
        lab.hosts[0].kernel.sysctl_set("net.ipv4.ipfrag_max_dist", max).expect("a row");
        let data = echo_bytes(1992);
        lab.inject(0, Dir::Backward, TO_HOST.fragment(500, 1, 0, true, &data[..1000]));
        // So many datagrams of the source in the meantime: the number may have come round.
        for id in 0..between {
            lab.inject(0, Dir::Backward, TO_HOST.fragment(id, 1, 0, true, &[0; 8]));
        }
        lab.run_for(Duration::from_millis(1));
        lab.inject(0, Dir::Backward, TO_HOST.fragment(500, 1, 1000, false, &data[1000..]));
        lab.run_for(Duration::from_millis(1));
        let counts = [mib(&lab, Mib::IpReasmOKs), mib(&lab, Mib::IpReasmFails), drops(&lab, DropReason::FragTooFar)];
        assert_eq!(counts, if joined { [1, 0, 0] } else { [0, 1, 1] }, "{between} between, {max} allowed");
        lab.run_for(Duration::from_secs(31));
        let late = between as u64 + u64::from(!joined);
        assert_eq!(drops(&lab, DropReason::FragReasmTimeout), late, "all queues end");
    }
}

#[test]
fn router_fragments_or_complains() {
    let mut lab = lab(true, 600);
    lab.inject(0, Dir::Backward, THROUGH.udp(1, 2, &[7; 1000]));
    lab.run_for(Duration::from_micros(1));
    let lens: Vec<u16> = lab.received.drain(..).map(|r| r.1.ip_len()).collect();
    assert_eq!(lens, [596, 452]);
    assert_eq!((mib(&lab, Mib::IpFragOKs), mib(&lab, Mib::IpFragCreates)), (1, 2));
    lab.inject(0, Dir::Backward, THROUGH.tcp(1, 1, false, &[7; 1000]));
    lab.run_for(Duration::from_micros(1));
    let (link, error) = lab.received.pop().expect("an error");
    assert_eq!((link, error.icmp()), (0, Some((3, 4))));
    assert_eq!(error.bytes[40..42], 600u16.to_be_bytes());
    assert_eq!(drops(&lab, DropReason::FragTooBig), 1);
}

#[test]
fn forwarded_packets_are_queued_by_their_type_of_service() {
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig { ip_forward: true, ..HostConfig::default() });
    lab.stub(0, HOST, 24, PortConfig::default());
    lab.stub(0, Ipv4Addr::new(10, 0, 1, 1), 24, PortConfig { tx_ring: 1, ..PortConfig::default() });
    let packet = |id: u16, tos: u8| {
        let mut frame = THROUGH.udp(id, 9, b"x");
        frame.bytes[15] = tos;
        frame.bytes[24..26].fill(0);
        let sum = !ringlab_ring::memory::fold(ringlab_ring::memory::checksum_add(&frame.bytes[14..34], 0));
        frame.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    lab.inject(0, Dir::Backward, packet(0, 0));
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(1);
    lab.received.clear();
    lab.hosts[0].ports[1].stall(true);
    // The first is on the ring; of the others those go first that ask for little delay, those last that ask for much throughput.
    for (id, tos) in [(1, 0), (2, 8), (3, 0), (4, 0x10), (5, 8), (6, 0x10)] {
        lab.inject(0, Dir::Backward, packet(id, tos));
    }
    lab.run_for(Duration::from_millis(1));
    lab.hosts[0].ports[1].stall(false);
    lab.run_for(Duration::from_millis(1));
    let ports: Vec<u16> = lab.received.iter().map(|r| r.1.sport()).collect();
    assert_eq!(ports, [1, 4, 6, 3, 2, 5]);
}

#[test]
fn sender_that_does_not_listen_to_redirects_hears_them_seldom() {
    let mut lab = lab(true, 1500);
    let there = Path { dst: Ipv4Addr::new(10, 0, 0, 77), ..TO_HOST };
    let mut told = Vec::new();
    for ms in 0..20_000u32 {
        lab.inject(0, Dir::Backward, there.udp(1, 2, b"x"));
        // Takes a millisecond.
        lab.answer_arp(0);
        if lab.received.iter().any(|r| r.1.icmp() == Some((5, 1))) {
            told.push(ms);
        }
        lab.received.retain(|r| r.1.is_arp());
    }
    // At once, 40 ms after that, 80, … and nine times in all.
    assert_eq!(told.len(), 9, "{told:?}");
    assert!(told.windows(2).enumerate().all(|(i, w)| (w[1] - w[0]).abs_diff(40 << i) <= 2), "{told:?}");
    assert_eq!(mib(&lab, Mib::IcmpOutRedirects), 9);
}

#[test]
fn who_was_redirected_has_no_credit_for_other_errors() {
    let mut lab = lab(true, 1500);
    lab.inject(0, Dir::Backward, TO_HOST.echo(1, 1, b"resolve"));
    lab.run_for(Duration::from_millis(1));
    lab.answer_arp(0);
    let nowhere = Path { dst: Ipv4Addr::new(192, 0, 2, 1), ..TO_HOST };
    let aside = Path { dst: Ipv4Addr::new(10, 0, 0, 77), ..TO_HOST };
    let told = |lab: &mut Lab, path: Path, wait: u64| {
        lab.received.clear();
        lab.inject(0, Dir::Backward, path.udp(1, 2, b"x"));
        lab.run_for(Duration::from_millis(wait));
        lab.received.iter().filter_map(|r| r.1.icmp()).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut lab, aside, 1), [(5, 1)]);
    assert_eq!(told(&mut lab, nowhere, 2100), [], "a redirect to somebody new uses all up (Linux `ip_rt_send_redirect`)");
    assert_eq!(told(&mut lab, nowhere, 1), [(3, 0)], "the route's part and ICMP's are there again");
}

#[test]
fn redirects_are_sent_while_all_or_the_interface_says_so() {
    for (all, own, sent) in [("1", "0", true), ("0", "1", true), ("0", "0", false)] {
        let mut lab = lab(true, 1500);
        for (whose, value) in [("all", all), ("eth0", own)] {
            let name = format!("net.ipv4.conf.{whose}.send_redirects");
            assert_eq!(lab.hosts[0].kernel.sysctl_get(&name).expect("a sysctl"), "1", "{name}");
            lab.hosts[0].kernel.sysctl_set(&name, value).expect("a number");
        }
        let there = Path { dst: Ipv4Addr::new(10, 0, 0, 77), ..TO_HOST };
        lab.inject(0, Dir::Backward, there.udp(1, 2, b"x"));
        lab.answer_arp(0);
        assert_eq!(lab.received.iter().any(|r| r.1.icmp() == Some((5, 1))), sent, "{all} {own}");
        assert_eq!(mib(&lab, Mib::IcmpOutRedirects), u64::from(sent));
    }
}

#[test]
fn martians_are_dropped_by_name() {
    let mut lab = lab(false, 1500);
    let from = |src: [u8; 4]| Path { src: src.into(), ..TO_HOST }.udp(1, 2, b"x");
    let to = |dst: [u8; 4]| Path { dst: dst.into(), ..TO_HOST }.udp(1, 2, b"x");
    for (frame, reason) in [
        (from([127, 0, 0, 1]), DropReason::IpLocalNet),
        (from([10, 0, 0, 1]), DropReason::IpLocalSource),
        (from([224, 0, 0, 1]), DropReason::IpInvalidSource),
        (from([255, 255, 255, 255]), DropReason::IpInvalidSource),
        (from([0, 0, 0, 0]), DropReason::IpInvalidSource),
        (to([127, 0, 0, 1]), DropReason::IpLocalNet),
        (to([0, 0, 0, 0]), DropReason::IpInvalidDest),
        (to([192, 168, 0, 1]), DropReason::IpInAddrErrors),
    ] {
        let before = drops(&lab, reason);
        lab.inject(0, Dir::Backward, frame.clone());
        lab.run_for(Duration::from_micros(1));
        assert_eq!(drops(&lab, reason), before + 1, "{} > {}", frame.saddr(), frame.daddr());
    }
    assert_eq!(mib(&lab, Mib::IpInAddrErrors), 1, "martians are not counted, as on Linux");
    assert!(lab.received.is_empty());
    // That all cannot speak is looked at by the reverse path filter only.
    lab.hosts[0].kernel.sysctl_set("net.ipv4.conf.all.rp_filter", "1").expect("a row");
    let before = drops(&lab, DropReason::IpInvalidSource);
    lab.inject(0, Dir::Backward, from([10, 0, 0, 255]));
    lab.run_for(Duration::from_micros(1));
    assert_eq!(drops(&lab, DropReason::IpInvalidSource), before + 1);
}

#[test]
fn malformed_headers_are_dropped_by_name() {
    let mut lab = lab(false, 1500);
    let good = TO_HOST.echo(1, 1, b"payload");
    let change = |at: usize, to: u8| {
        let mut frame = good.clone();
        frame.bytes[at] = to;
        // A right checksum, so that the field is what is refused.
        let len = usize::from(frame.bytes[14] & 15) * 4;
        if len >= 20 && 14 + len <= frame.bytes.len() {
            frame.bytes[24..26].fill(0);
            let sum = !ringlab_ring::memory::fold(ringlab_ring::memory::checksum_add(&frame.bytes[14..14 + len], 0));
            frame.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    };
    let mut bad_sum = good.clone();
    bad_sum.bytes[24] ^= 1;
    let mut bad_icmp = good.clone();
    *bad_icmp.bytes.last_mut().expect("payload") ^= 1;
    let mut short = good.clone();
    short.bytes.truncate(30);
    let mut other_mac = good.clone();
    other_mac.bytes[5] ^= 9;
    for (frame, reason) in [
        (change(14, 0x65), DropReason::IpInHdr),
        (change(14, 0x44), DropReason::IpInHdr),
        (change(14, 0x4f), DropReason::IpInHdr),
        (change(17, 255), DropReason::PktTooSmall),
        (change(17, 19), DropReason::IpInHdr),
        (bad_sum, DropReason::IpCsum),
        (bad_icmp, DropReason::IcmpCsum),
        (short, DropReason::IpInHdr),
        (change(12, 0x12), DropReason::UnhandledProto),
        (other_mac, DropReason::OtherHost),
    ] {
        let before = drops(&lab, reason);
        lab.inject(0, Dir::Backward, frame);
        lab.run_for(Duration::from_micros(1));
        assert_eq!(drops(&lab, reason), before + 1, "{reason:?}");
    }
    assert!(lab.received.is_empty());
}

#[test]
fn errors_to_one_destination_are_limited_to_one_a_second_after_a_burst() {
    let mut lab = lab(false, 1500);
    let unknown = |lab: &mut Lab| lab.inject(0, Dir::Backward, TO_HOST.fragment(1, 200, 0, false, &[1; 600]));
    for _ in 0..20 {
        unknown(&mut lab);
    }
    lab.run_for(Duration::from_micros(1));
    assert_eq!(lab.received.len(), 6);
    assert!(lab.received.iter().all(|r| r.1.icmp() == Some((3, 2)) && r.1.tos() == 0xc0 && r.1.ip_len() == 576 && !r.1.df()));
    assert_eq!(mib(&lab, Mib::IcmpOutRateLimitHost), 14);
    lab.received.clear();
    for _ in 0..10 {
        lab.run_for(Duration::from_millis(500));
        unknown(&mut lab);
    }
    lab.run_for(Duration::from_micros(1));
    assert_eq!(lab.received.iter().filter(|r| r.1.is_icmp()).count(), 5);
}

#[test]
fn errors_in_all_are_limited_to_a_burst_of_fifty() {
    let mut lab = lab(true, 1500);
    for source in 0..200u8 {
        // From behind the tester, which forwards: a neighbour that is resolved.
        let path = Path { src: Ipv4Addr::new(10, 9, 0, source), ..TO_HOST };
        lab.inject(0, Dir::Backward, path.fragment(1, 200, 0, false, &[1; 16]));
    }
    lab.hosts[0].kernel.add_route((Ipv4Addr::new(10, 9, 0, 0), 16), TESTER, None, 0).expect("on the link");
    lab.run_for(Duration::from_micros(1));
    assert_eq!(lab.received.iter().filter(|r| r.1.icmp() == Some((3, 2))).count(), 50);
    assert_eq!(mib(&lab, Mib::IcmpOutRateLimitGlobal), 150);
}

#[test]
fn no_error_about_errors_broadcasts_or_later_pieces() {
    let mut lab = lab(false, 1500);
    let error = {
        let mut data = vec![3, 1, 0, 0, 0, 0, 0, 0];
        data.extend(&TO_HOST.udp(1, 2, b"quoted").bytes[14..]);
        let sum = !ringlab_ring::memory::fold(ringlab_ring::memory::checksum_add(&data, 0));
        data[2..4].copy_from_slice(&sum.to_be_bytes());
        TO_HOST.fragment(1, 1, 0, false, &data)
    };
    let broadcast = Path { dst: Ipv4Addr::new(10, 0, 0, 255), dst_mac: MacAddr([255; 6]), ..TO_HOST };
    lab.inject(0, Dir::Backward, error);
    lab.inject(0, Dir::Backward, broadcast.fragment(1, 200, 0, false, &[0; 16]));
    lab.inject(0, Dir::Backward, broadcast.udp(1, 2, b"nobody"));
    lab.inject(0, Dir::Backward, broadcast.echo(1, 2, b"smurf"));
    lab.inject(0, Dir::Backward, TO_HOST.fragment(7, 200, 800, true, &[0; 16]));
    lab.run_for(Duration::from_secs(40));
    assert_eq!(lab.received.iter().filter(|r| r.1.is_icmp()).count(), 0);
}

#[test]
fn identification_of_replies_rises_by_destination() {
    let mut lab = lab(false, 1500);
    for seq in 0..20 {
        lab.inject(0, Dir::Backward, TO_HOST.echo(1, seq, b"x"));
    }
    lab.run_for(Duration::from_micros(1));
    let ids: Vec<u16> = lab.received.iter().map(|r| r.1.ip_id()).collect();
    assert!(ids.windows(2).all(|w| w[1] == w[0].wrapping_add(1)), "{ids:?}");
}

#[test]
fn routes_are_checked() {
    use ringlab_kernel::dev::net_device::IfIndex;
    use ringlab_kernel::errno::Errno;
    let mut lab = lab(false, 1500);
    let k = &mut lab.hosts[0].kernel;
    let any = Ipv4Addr::UNSPECIFIED;
    let net = Ipv4Addr::new(172, 16, 0, 0);
    assert_eq!(k.add_route((Ipv4Addr::new(172, 16, 0, 1), 16), TESTER, None, 0), Err(Errno::EINVAL));
    assert_eq!(k.add_route((net, 33), TESTER, None, 0), Err(Errno::EINVAL));
    assert_eq!(k.add_route((net, 16), any, None, 0), Err(Errno::ENODEV));
    assert_eq!(k.add_route((net, 16), any, Some(IfIndex(9)), 0), Err(Errno::ENODEV));
    assert_eq!(k.add_route((net, 16), Ipv4Addr::new(192, 0, 2, 1), None, 0), Err(Errno::ENETUNREACH));
    assert_eq!(k.add_route((net, 16), HOST, None, 0), Err(Errno::EINVAL));
    assert_eq!(k.add_route((net, 16), TESTER, None, 0), Ok(()));
    assert_eq!(k.add_route((net, 16), TESTER, None, 0), Err(Errno::EEXIST));
    assert_eq!(k.add_route((any, 0), TESTER, None, 7), Ok(()));
    let routes: Vec<String> = k.stats().routes.iter().map(|r| format!("{} {:?} {} {}", r.prefix, r.via, r.dev, r.metric)).collect();
    let want =
        ["10.0.0.0/24 None eth0 0", "10.0.1.0/24 None eth1 0", "172.16.0.0/16 Some(10.0.0.9) eth0 0", "default Some(10.0.0.9) eth0 7"];
    assert_eq!(routes, want);
}
