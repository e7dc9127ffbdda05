//! How fast frames cross two `nicd`s and a cable. The floors are far below what an
//! idle machine does: they find a datapath that sleeps where it should run. Figures
//! are printed (`cargo nextest run --release --no-capture`).

mod common;

use common::{ALL, MAC_A, MAC_B, Pair, Rings, plain_frame, tcp_frame};
use ringlab_ring::pool::Buf;
use ringlab_ring::vnet::VnetHdr;
use std::time::{Duration, Instant};

/// Sends `total` copies of a frame from ring memory that is written once, receiving
/// without looking; returns the time and what arrived.
fn pump(pair: &mut Pair, header: &VnetHdr, frame: &[u8], total: u64) -> (Duration, u64) {
    let bytes = [&header.emit()[..], frame].concat();
    let mut parts: Vec<Buf> = Vec::new();
    let mut segments = Vec::new();
    for chunk in bytes.chunks(65536) {
        let buf = pair.host_a.pool.alloc(chunk.len() as u32).expect("room");
        buf.slice(0, chunk.len() as u32).write(chunk);
        segments.push((buf.offset(), chunk.len() as u32));
        parts.push(buf);
    }
    let (mut sent, mut bufs, mut idle) = (0, 0u64, Instant::now());
    let need = bytes.len().div_ceil(4096) as u64;
    let start = Instant::now();
    let mut end = start;
    while bufs < total * need && idle.elapsed() < Duration::from_secs(2) {
        let mut batch = 0;
        while sent < total && batch < 64 && pair.host_a.tx[0].free() > segments.len() as u16 {
            pair.host_a.tx[0].stage(&segments, &[], Vec::new()).expect("asked for room");
            sent += 1;
            batch += 1;
        }
        pair.host_a.kick(0);
        pair.host_a.reap();
        let rx = &mut pair.host_b.rx[0];
        let before = bufs;
        while let Some((buf, _)) = rx.pop_used().expect("honest device") {
            bufs += 1;
            let segment = (buf.offset(), 4096);
            rx.stage(&[], &[segment], buf).expect("it was just there");
        }
        if rx.needs_kick() {
            pair.host_b.bells[0].kick.ring();
        }
        if bufs != before {
            (idle, end) = (Instant::now(), Instant::now());
        } else if batch == 0 {
            std::thread::yield_now();
        }
    }
    (end - start, bufs / need)
}

#[test]
fn small_frames_are_batched() {
    let mut pair = Pair::with("", Rings { rx: 4096, tx: 4096, ..Rings::default() }, (ALL, ALL));
    const TOTAL: u64 = 200_000;
    let (took, arrived) = pump(&mut pair, &VnetHdr::default(), &plain_frame(MAC_B, MAC_A, 64, 1), TOTAL);
    let a = pair.a.counters("eth0");
    let b = pair.b.counters("eth0");
    let rate = arrived as f64 / took.as_secs_f64();
    println!(
        "64 octets: {:.2} M frames/s, {arrived} of {TOTAL}, doorbells {}, copies {}",
        rate / 1e6,
        a["wire_doorbells"],
        b["dma_copies"]
    );
    assert_eq!(arrived + b["rx_missed_errors"], TOTAL);
    assert!(arrived > TOTAL / 2, "{arrived} arrived");
    assert!(rate > 20_000.0, "{rate} frames/s");
}

#[test]
fn large_frames_cross_whole() {
    let mut pair = Pair::with("", Rings { rx: 4096, tx: 256, ..Rings::default() }, (ALL, ALL));
    const TOTAL: u64 = 20_000;
    let (header, frame) = tcp_frame(MAC_B, MAC_A, (1, 2), &vec![7; 65_000], 1448);
    let (took, arrived) = pump(&mut pair, &header, &frame, TOTAL);
    let rate = (arrived * frame.len() as u64 * 8) as f64 / took.as_secs_f64();
    let b = pair.b.counters("eth0");
    println!("64 KiB: {:.1} Gbit/s, {arrived} of {TOTAL}, missed {}", rate / 1e9, b["rx_missed_errors"]);
    assert_eq!(arrived + b["rx_missed_errors"], TOTAL);
    assert!(rate > 1e9, "{rate} bit/s");
}

#[test]
fn an_idle_nicd_is_small() {
    let pair = Pair::new();
    for nicd in [&pair.a, &pair.b] {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", nicd.child.id())).expect("it runs");
        let private: u64 = rollup
            .lines()
            .filter(|l| l.starts_with("Private") || l.starts_with("Pss_Shmem"))
            .filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum();
        println!("{private} KiB private and shared memory; {}", rollup.lines().find(|l| l.starts_with("Pss:")).unwrap_or_default());
        assert!(private < 8 * 1024, "{private} KiB");
    }
}
