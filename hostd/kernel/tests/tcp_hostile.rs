//! Segments from strangers and the network's errors: resets, stray SYNs, old timestamps, ICMP, MTU, loopback.

mod common;
mod tcp_support;

use common::tasks::{Prog, STREAM};
use common::{A, ADDR_B, B, Dir, Frame, HostConfig, Lab, PortConfig};
use ringlab_counters::{DropReason, Mib};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret};
use std::net::Ipv4Addr;
use std::time::Duration;
use tcp_support::{Side, big_ring, connected_with, counters, mib, octet, plain_nic, transfer};

const MS: Duration = Duration::from_millis(1);

/// The last frame of A, changed, with its checksum made right.
fn forged(lab: &Lab, change: impl FnOnce(&mut [u8])) -> Frame {
    let last = lab.log.iter().rfind(|l| l.dir == Dir::Forward && l.frame.is_tcp()).expect("A has sent");
    let mut frame = last.frame.clone();
    frame.hdr = ringlab_ring::vnet::VnetHdr { num_buffers: 1, ..Default::default() };
    let t = frame.transport();
    change(&mut frame.bytes[t..]);
    frame.sum_tcp();
    frame
}

fn set_seq(seg: &mut [u8], add: u32) {
    let seq = u32::from_be_bytes([seg[4], seg[5], seg[6], seg[7]]).wrapping_add(add);
    seg[4..8].copy_from_slice(&seq.to_be_bytes());
}

fn alive(lab: &mut Lab, a: Side, b: Side) {
    a.0.send(lab, a.1, b"alive");
    assert_eq!(b.0.recv(lab, b.1, 10, 0).data, b"alive");
}

#[test]
fn only_the_exact_reset_is_believed() {
    let (mut lab, a, b) = connected_with(1, plain_nic());
    alive(&mut lab, a, b);
    lab.run_for(100 * MS);
    let next = lab.log.iter().rfind(|l| l.dir == Dir::Backward && l.frame.is_tcp()).expect("acknowledged").frame.ack();
    let reset_at = |lab: &mut Lab, seq: u32| {
        let frame = forged(lab, |s| {
            s[13] = 4;
            s[4..8].copy_from_slice(&seq.to_be_bytes());
        });
        lab.inject(0, Dir::Forward, frame);
        lab.run_for(600 * MS);
    };
    for (add, challenged) in [(100, true), (1 << 30, false)] {
        let before = mib(&lab, B, Mib::TCPChallengeACK);
        reset_at(&mut lab, next.wrapping_add(add));
        assert_eq!(mib(&lab, B, Mib::TCPChallengeACK) - before, u64::from(challenged));
        assert_eq!(mib(&lab, B, Mib::TcpCurrEstab), 1);
    }
    reset_at(&mut lab, next);
    assert_eq!(b.0.recv_err(&mut lab, b.1, 0), Errno::ECONNRESET, "{}", counters(&lab, B));
}

#[test]
fn stray_syn_is_challenged_and_wrong_checksum_dropped() {
    let (mut lab, a, b) = connected_with(2, plain_nic());
    alive(&mut lab, a, b);
    lab.run_for(600 * MS);
    let syn = forged(&lab, |s| s[13] = 2);
    lab.inject(0, Dir::Forward, syn);
    lab.run_for(10 * MS);
    assert_eq!(mib(&lab, B, Mib::TCPSYNChallenge), 1);
    let mut bad = forged(&lab, |_| {});
    let last = bad.bytes.len() - 1;
    bad.bytes[last] ^= 0xff;
    lab.inject(0, Dir::Forward, bad);
    lab.run_for(10 * MS);
    assert_eq!(mib(&lab, B, Mib::TcpInCsumErrors), 1);
    assert_eq!(lab.hosts[B].kernel.stats().drops.get(DropReason::TcpCsum), 1);
    alive(&mut lab, a, b);
}

#[test]
fn old_timestamp_is_refused_and_answered() {
    let (mut lab, a, b) = connected_with(3, plain_nic());
    lab.run_for(50 * MS);
    alive(&mut lab, a, b);
    lab.run_for(600 * MS);
    let frame = forged(&lab, |s| {
        let ts = u32::from_be_bytes([s[24], s[25], s[26], s[27]]).wrapping_sub(40);
        s[24..28].copy_from_slice(&ts.to_be_bytes());
        set_seq(s, 5);
    });
    lab.inject(0, Dir::Forward, frame);
    lab.run_for(10 * MS);
    assert_eq!(mib(&lab, B, Mib::PAWSEstab), 1, "{}", counters(&lab, B));
    alive(&mut lab, a, b);
}

#[test]
fn random_segments_do_not_break_a_connection() {
    let (mut lab, a, b) = connected_with(4, plain_nic());
    alive(&mut lab, a, b);
    let mut n = 12345u64;
    for _ in 0..3000 {
        let frame = forged(&lab, |s| {
            for b in s[8..].iter_mut() {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if n >> 60 < 4 {
                    *b = (n >> 40) as u8;
                }
            }
            s[13] &= !4; // resets are another test
            set_seq(s, (n >> 50) as u32);
        });
        lab.inject(0, Dir::Forward, frame);
        lab.run_for(Duration::from_micros(50));
    }
    lab.run_for(Duration::from_secs(5));
    assert!(lab.hosts[B].kernel.stats().drops.iter().map(|d| d.1).sum::<u64>() > 0);
}

#[test]
fn router_with_smaller_mtu_shrinks_segments() {
    let mut lab = Lab::new(5);
    let (a, r, b) = (
        lab.add_host(HostConfig::default()),
        lab.add_host(HostConfig { ip_forward: true, ..HostConfig::default() }),
        lab.add_host(HostConfig::default()),
    );
    let ip = |net: u8, host: u8| Ipv4Addr::new(10, 0, net, host);
    let narrow = PortConfig { mtu: 1200, ..plain_nic() };
    lab.link((a, ip(0, 1), plain_nic()), (r, ip(0, 254), plain_nic()), 24, Duration::from_micros(50));
    lab.link((r, ip(1, 254), narrow), (b, ip(1, 1), plain_nic()), 24, Duration::from_micros(50));
    lab.hosts[a].kernel.add_route((Ipv4Addr::UNSPECIFIED, 0), ip(0, 254), None, 0).expect("a gateway");
    lab.hosts[b].kernel.add_route((Ipv4Addr::UNSPECIFIED, 0), ip(1, 254), None, 0).expect("a gateway");
    let (pa, pb) = (Prog::spawn(&mut lab, a, "a"), Prog::spawn(&mut lab, b, "b"));
    let l = pb.listener(&mut lab, 80, 8);
    let fa = pa.connect(&mut lab, ip(1, 1), 80);
    let fb = pb.accept(&mut lab, l);
    let time = transfer(&mut lab, (pa, fa), (pb, fb), 300_000, 100_000);
    assert!(time < Duration::from_secs(2), "{time:?}");
    assert_eq!(pa.getopt(&mut lab, fa, 6, 2), 1148);
    let longest = lab.log.iter().filter(|l| l.link == 1 && l.dir == Dir::Forward).map(|l| l.frame.bytes.len()).max();
    assert_eq!(longest, Some(1214));
}

#[test]
fn unreachable_host_ends_connect() {
    let mut lab = Lab::pair(6);
    let a = Prog::spawn(&mut lab, A, "a");
    let fd = a.socket(&mut lab, STREAM);
    let to = |last| Call::Connect(fd, Some((Ipv4Addr::new(10, 0, 0, last), 80).into()));
    let start = lab.now;
    assert_eq!(a.call(&mut lab, to(77)), Ret::Err(Errno::EHOSTUNREACH));
    assert!(lab.now - start < Duration::from_secs(5));
    assert_eq!(a.now(&mut lab, Call::Connect(fd, Some((Ipv4Addr::new(192, 0, 2, 1), 80).into()))), Ret::Err(Errno::ENETUNREACH));
}

#[test]
fn loopback_carries_bulk() {
    let mut lab = Lab::pair(7);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, A, "b"));
    let l = b.listener(&mut lab, 80, 8);
    let fa = a.connect(&mut lab, Ipv4Addr::LOCALHOST, 80);
    let fb = b.accept(&mut lab, l);
    transfer(&mut lab, (a, fa), (b, fb), 8 << 20, 200_000);
    transfer(&mut lab, (b, fb), (a, fa), 1 << 20, 100);
    assert_eq!(mib(&lab, A, Mib::TcpRetransSegs), 0, "{}", counters(&lab, A));
}

#[test]
fn hundreds_of_connections_come_and_go() {
    let (mut lab, a, (b, l)) = tcp_support::pair(8, big_ring(PortConfig::default()));
    let mut fds = Vec::new();
    for i in 0..300 {
        let fa = a.connect(&mut lab, ADDR_B, 80);
        let fb = b.accept(&mut lab, l);
        a.send(&mut lab, fa, &[octet(i); 100]);
        fds.push((fa, fb));
    }
    for (i, &(_, fb)) in fds.iter().enumerate() {
        assert_eq!(b.recv(&mut lab, fb, 200, 0).data, vec![octet(i); 100]);
    }
    let mut ports: Vec<u16> = lab.log.iter().filter(|l| l.frame.is_syn()).map(|l| l.frame.sport()).collect();
    assert!(ports.iter().all(|p| (32768..=60999).contains(p) && p % 2 == 0));
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 300);
    for (fa, fb) in fds {
        a.ok(&mut lab, Call::Close(fa));
        b.ok(&mut lab, Call::Close(fb));
    }
    lab.run_for(Duration::from_secs(61));
    assert_eq!(lab.hosts[A].kernel.sockets_info().len() + lab.hosts[B].kernel.sockets_info().len(), 1);
}
