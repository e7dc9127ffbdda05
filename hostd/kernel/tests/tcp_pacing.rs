//! Small queues and pacing: what a sender may have in its own host's queues, and how fast it may go.

mod common;
mod tcp_support;

use common::tasks::Prog;
use common::{A, Dir, PortConfig};
use ringlab_counters::{CopyKind, Mib};
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::trace::Point;
use ringlab_kernel::uaccess::Iov;
use std::time::Duration;
use tcp_support::{big_ring, connected_with, counters, mib, octet, transfer};

const MIB: usize = 1 << 20;
const MS: Duration = Duration::from_millis(1);
/// `SOL_SOCKET`, `SO_MAX_PACING_RATE`.
const MAX_PACING_RATE: (i32, i32) = (1, 47);

/// Events of a host that a GiB of bulk costs.
#[derive(Debug, PartialEq, Eq)]
struct Costs {
    calls: u64,
    switches: u64,
    interrupts: u64,
    polls: u64,
    doorbells: u64,
}

/// What bulk cost before there were small queues, it costs with them, also where completions come late and the
/// RTT is so long that the limit is below the window.
#[test]
fn small_queues_add_no_call_switch_interrupt_or_doorbell_to_bulk() {
    const NEAR: [Costs; 2] = [
        Costs { calls: 4112, switches: 672, interrupts: 400, polls: 400, doorbells: 4176 },
        Costs { calls: 4336, switches: 800, interrupts: 416, polls: 672, doorbells: 664 },
    ];
    const FAR: [Costs; 2] = [
        Costs { calls: 4112, switches: 832, interrupts: 440, polls: 440, doorbells: 2928 },
        Costs { calls: 4336, switches: 880, interrupts: 456, polls: 456, doorbells: 448 },
    ];
    for (late_completions, delay, before) in [(false, 50, NEAR), (true, 50, NEAR), (true, 1000, FAR)] {
        let (mut lab, a, b) = connected_with(1, big_ring(PortConfig { late_completions, tx_ring: 256, ..PortConfig::default() }));
        lab.links[0].delay = Duration::from_micros(delay);
        transfer(&mut lab, a, b, 128 * MIB, 256 * 1024);
        for (host, most) in before.into_iter().enumerate() {
            let stats = lab.hosts[host].kernel.stats();
            let c = stats.cpus[0];
            let doorbells = lab.hosts[host].ports[0].doorbell_count() as u64;
            let costs = [c.syscalls, c.context_switches, c.hardirqs, c.napi_polls, doorbells].map(|n| n * 8);
            let most = [most.calls, most.switches, most.interrupts, most.polls, most.doorbells];
            // A twentieth more is another order of events, not another cost.
            assert!(costs.iter().zip(most).all(|(&n, most)| n <= most + most / 20), "host {host}, RTT {delay}: {costs:?}, {most:?}");
            let copied = stats.copies.get(CopyKind::UserToSkbBytes) + stats.copies.get(CopyKind::SkbToUserBytes);
            assert_eq!((copied, stats.copies.get(CopyKind::Other)), (128 * MIB as u64, 0));
        }
        assert_eq!(mib(&lab, A, Mib::TcpRetransSegs), 0, "{}", counters(&lab, A));
    }
}

/// Starts a receive and a send of so many octets; what was sent.
fn start_bulk(lab: &mut common::Lab, a: (Prog, i32), b: (Prog, i32), len: usize) -> (Vec<u8>, ringlab_kernel::uaccess::UserSlice) {
    let data: Vec<u8> = (0..len).map(octet).collect();
    let source = lab.hosts[A].mem.put(&data);
    let buffer = b.0.buffer(lab, len);
    b.0.start(lab, Prog::recv_call(b.1, buffer, ringlab_kernel::syscall::msg::WAITALL));
    a.0.start(lab, Call::Send { fd: a.1, iov: Iov::One(source), flags: 0, to: None, control: Vec::new() });
    (data, buffer)
}

#[test]
fn stalled_device_holds_a_small_queue_and_its_completions_let_go() {
    let (mut lab, a, b) = connected_with(2, big_ring(PortConfig::default()));
    transfer(&mut lab, a, b, 16 * MIB, 256 * 1024);
    lab.run_for(50 * MS);
    lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_limit_output_bytes", "262144").expect("a setting");
    lab.hosts[A].ports[0].stall(true);
    let tasklets = lab.hosts[A].kernel.stats().cpus[0].tasklet_softirqs;
    let (data, buffer) = start_bulk(&mut lab, a, b, 4 * MIB);
    lab.run_for(Duration::from_micros(10));
    // Four packets of 64 KiB, and the one that found the limit not yet passed.
    assert!((3..=5).contains(&lab.hosts[A].ports[0].tx_pending()), "{} wait", lab.hosts[A].ports[0].tx_pending());
    assert_eq!(lab.hosts[A].kernel.stats().cpus[0].tasklet_softirqs, tasklets);
    lab.trace(A);
    lab.hosts[A].ports[0].stall(false);
    lab.run_for(Duration::from_micros(10));
    // No ACK can have come yet: the completions alone let more go, in the tasklet behind the softirq that reaped them.
    let trace = lab.take_trace(A);
    let at = |p: Point, from: usize| trace.iter().skip(from).position(|r| r.point == p).map(|i| i + from);
    let cleaned = at(Point::TxClean, 0).expect("completions");
    let tasklet = trace.iter().skip(cleaned).position(|r| r.point == Point::SoftirqEntry && r.args[0] == 6).expect("a tasklet") + cleaned;
    assert!(at(Point::TcpTransmit, tasklet).is_some(), "it sends");
    assert_eq!(at(Point::TcpRcv, 0), None);
    let ret = b.0.wait(&mut lab);
    assert!(b.0.datagram(&lab, buffer, ret).data == data);
    assert!(lab.hosts[A].kernel.stats().cpus[0].tasklet_softirqs > tasklets + 5);
    assert_eq!(mib(&lab, A, Mib::TcpRetransSegs), 0, "{}", counters(&lab, A));
}

#[test]
fn what_has_not_left_the_host_is_not_sent_again() {
    // Each segment has its own descriptor, so that the count of frames is the count of transmissions.
    let (mut lab, a, b) = connected_with(5, big_ring(PortConfig { late_completions: true, ..tcp_support::plain_nic() }));
    transfer(&mut lab, a, b, 100_000, 50_000);
    lab.run_for(500 * MS);
    let sent = |lab: &common::Lab| lab.count(0, Dir::Forward, |f| !f.payload().is_empty());
    let before = sent(&lab);
    lab.hosts[A].ports[0].stall(true);
    assert_eq!(a.0.send(&mut lab, a.1, &[7; 5000]), Ret::Value(5000));
    // The loss probe, and some retransmission timeouts.
    lab.run_for(Duration::from_secs(3));
    assert!(mib(&lab, A, Mib::TCPTimeouts) > 1 && mib(&lab, A, Mib::TCPSpuriousRtxHostQueues) > 2, "{}", counters(&lab, A));
    assert_eq!((mib(&lab, A, Mib::TcpRetransSegs), sent(&lab)), (0, before));
    lab.hosts[A].ports[0].stall(false);
    assert_eq!(b.0.recv(&mut lab, b.1, 8000, 0).len, 5000);
    // What was done, though nobody had looked, is no reason to hold a retransmission back.
    lab.run_for(Duration::from_secs(2));
    let held = mib(&lab, A, Mib::TCPSpuriousRtxHostQueues);
    lab.drop_first(0, |dir, f| dir == Dir::Forward && !f.payload().is_empty());
    a.0.send(&mut lab, a.1, b"once more");
    assert_eq!(b.0.recv(&mut lab, b.1, 100, 0).data, b"once more");
    assert_eq!(mib(&lab, A, Mib::TCPSpuriousRtxHostQueues), held, "{}", counters(&lab, A));
    assert!(mib(&lab, A, Mib::TcpRetransSegs) > 0);
}

#[test]
fn throttled_connection_that_is_closed_still_sends_what_it_has() {
    let (mut lab, a, b) = connected_with(3, big_ring(PortConfig::default()));
    transfer(&mut lab, a, b, 4 * MIB, 256 * 1024);
    lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_limit_output_bytes", "65536").expect("a setting");
    lab.hosts[A].ports[0].stall(true);
    let data = vec![7; 600_000];
    assert_eq!(a.0.send(&mut lab, a.1, &data), Ret::Value(600_000));
    a.0.ok(&mut lab, Call::Close(a.1));
    assert!(lab.hosts[A].ports[0].tx_pending() < 5);
    lab.hosts[A].ports[0].stall(false);
    let mut got = 0;
    while got < data.len() {
        let n = b.0.recv(&mut lab, b.1, 1 << 20, 0).len;
        assert!(n > 0, "end after {got}");
        got += n;
    }
    assert_eq!(b.0.recv(&mut lab, b.1, 1, 0).len, 0);
    b.0.ok(&mut lab, Call::Close(b.1));
    lab.run_for(Duration::from_secs(61));
    assert!(lab.hosts[A].kernel.sockets_info().is_empty());
}

#[test]
fn max_pacing_rate_spreads_packets_evenly() {
    let (mut lab, a, b) = connected_with(4, big_ring(PortConfig::default()));
    assert_eq!(a.0.getopt(&mut lab, a.1, MAX_PACING_RATE.0, MAX_PACING_RATE.1), -1);
    a.0.setopt(&mut lab, a.1, MAX_PACING_RATE.0, MAX_PACING_RATE.1, 5_000_000);
    assert_eq!(a.0.getopt(&mut lab, a.1, MAX_PACING_RATE.0, MAX_PACING_RATE.1), 5_000_000);
    let time = transfer(&mut lab, a, b, 5_000_000, 500_000);
    assert!((900 * MS..1050 * MS).contains(&time), "a second's octets took {time:?}");
    // In any 100 ms in the middle, a tenth of them, give or take a packet.
    let sent: Vec<(u64, usize)> = lab
        .log
        .iter()
        .filter(|l| l.dir == Dir::Forward && !l.frame.payload().is_empty())
        .map(|l| (l.time.0, l.frame.payload().len()))
        .collect();
    let first = sent[0].0;
    for window in 1..9 {
        let span = first + window * 100_000_000..first + (window + 1) * 100_000_000;
        let octets: usize = sent.iter().filter(|s| span.contains(&s.0)).map(|s| s.1).sum();
        assert!((430_000..570_000).contains(&octets), "{octets} octets in 100 ms number {window}");
    }
    assert_eq!(mib(&lab, A, Mib::TcpRetransSegs), 0, "{}", counters(&lab, A));
}
