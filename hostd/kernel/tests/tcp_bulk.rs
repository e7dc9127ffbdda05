//! Bulk transfers over good and bad wires, compared octet by octet.

mod common;
mod tcp_support;

use common::{A, B, Dir, PortConfig};
use ringlab_counters::{CopyKind, Mib};
use std::time::Duration;
use tcp_support::{bad_wire, big_ring, connected_with, counters, mib, plain_nic, transfer};

const MIB: usize = 1 << 20;

#[test]
fn whole_frames_cross_with_one_copy_at_each_end() {
    let (mut lab, a, b) = connected_with(1, big_ring(PortConfig::default()));
    transfer(&mut lab, a, b, 16 * MIB, 256 * 1024);
    let (sa, sb) = (lab.hosts[A].kernel.stats(), lab.hosts[B].kernel.stats());
    assert_eq!(sa.copies.get(CopyKind::UserToSkbBytes), 16 * MIB as u64);
    assert_eq!(sb.copies.get(CopyKind::SkbToUserBytes), 16 * MIB as u64);
    assert_eq!((sa.copies.get(CopyKind::Other), sb.copies.get(CopyKind::Other)), (0, 0));
    assert_eq!(sa.mib.get(Mib::TcpRetransSegs), 0, "{}\n\n{}", counters(&lab, A), counters(&lab, B));
    let data: Vec<usize> =
        lab.log.iter().filter(|l| l.dir == Dir::Forward && !l.frame.payload().is_empty()).map(|l| l.frame.payload().len()).collect();
    let whole = data.iter().filter(|&&n| n == 65160).count();
    assert!(whole * 65160 > 12 * MIB, "{whole} whole frames of {}", data.len());
    let acks = lab.count(0, Dir::Backward, |f| f.is_tcp());
    assert!(acks <= 2 * data.len(), "{acks} ACKs for {} frames", data.len());
}

#[test]
fn segments_are_cut_where_the_nic_cannot() {
    let (mut lab, a, b) = connected_with(2, big_ring(plain_nic()));
    transfer(&mut lab, a, b, 4 * MIB, 100_000);
    assert!(lab.log.iter().all(|l| l.frame.bytes.len() <= 1514));
    assert_eq!(mib(&lab, A, Mib::TcpRetransSegs), 0, "{}\n\n{}", counters(&lab, A), counters(&lab, B));
    assert!(mib(&lab, B, Mib::TCPHPHits) > 0);
}

#[test]
fn two_percent_loss_and_reordering_cost_time_but_no_octet() {
    for seed in 0..4 {
        let (mut lab, a, b) = connected_with(seed, plain_nic());
        bad_wire(&mut lab, seed + 100, 50, 40, 60);
        let time = transfer(&mut lab, a, b, 4 * MIB, 65536);
        assert!(mib(&lab, A, Mib::TcpRetransSegs) > 20);
        assert!(mib(&lab, A, Mib::TCPSackRecovery) > 0);
        assert!(time < Duration::from_secs(20), "{time:?}");
        transfer(&mut lab, b, a, MIB, 3000);
    }
}

#[test]
fn whole_frames_are_lost_and_reordered_too() {
    for seed in 0..4 {
        let (mut lab, a, b) = connected_with(seed, PortConfig::default());
        bad_wire(&mut lab, seed + 200, 50, 40, 60);
        transfer(&mut lab, a, b, 16 * MIB, 300_000);
        assert!(mib(&lab, A, Mib::TcpRetransSegs) > 0);
    }
}

#[test]
fn loss_is_repaired_without_sack_and_without_timestamps() {
    for (seed, off) in [
        (1, &["net.ipv4.tcp_sack"][..]),
        (2, &["net.ipv4.tcp_timestamps"]),
        (3, &["net.ipv4.tcp_sack", "net.ipv4.tcp_timestamps", "net.ipv4.tcp_window_scaling"]),
    ] {
        let mut lab = common::Lab::pair_with(seed, common::HostConfig::default(), plain_nic());
        for name in off {
            lab.hosts[A].kernel.sysctl_set(name, "0").expect("a sysctl");
        }
        let (a, b) = (common::tasks::Prog::spawn(&mut lab, A, "a"), common::tasks::Prog::spawn(&mut lab, B, "b"));
        let l = b.listener(&mut lab, 80, 8);
        let fa = a.connect(&mut lab, common::ADDR_B, 80);
        let fb = b.accept(&mut lab, l);
        bad_wire(&mut lab, seed + 300, 100, 0, 100);
        transfer(&mut lab, (a, fa), (b, fb), MIB, 65536);
        assert!(mib(&lab, A, Mib::TcpRetransSegs) > 0);
    }
}

#[test]
fn reno_and_cubic_both_carry() {
    for name in ["reno", "cubic"] {
        let mut lab = common::Lab::pair_with(5, common::HostConfig::default(), plain_nic());
        lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_congestion_control", name).expect("known");
        let (a, b) = (common::tasks::Prog::spawn(&mut lab, A, "a"), common::tasks::Prog::spawn(&mut lab, B, "b"));
        let l = b.listener(&mut lab, 80, 8);
        let fa = a.connect(&mut lab, common::ADDR_B, 80);
        let fb = b.accept(&mut lab, l);
        bad_wire(&mut lab, 17, 200, 0, 0);
        transfer(&mut lab, (a, fa), (b, fb), 2 * MIB, 65536);
    }
}

#[test]
fn same_seed_gives_the_same_frames() {
    let run = || {
        let (mut lab, a, b) = connected_with(9, plain_nic());
        bad_wire(&mut lab, 5, 50, 50, 50);
        transfer(&mut lab, a, b, MIB, 50_000);
        lab.log.iter().map(|l| (l.time, l.frame.bytes.clone())).collect::<Vec<_>>()
    };
    assert!(run() == run());
}
