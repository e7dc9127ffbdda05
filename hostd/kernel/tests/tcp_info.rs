//! What `TCP_INFO` says of a connection: round trips as the receiver sees them, and what the sender waits for.

mod common;
mod tcp_support;

use common::tasks::Prog;
use common::{A, ADDR_B, B, Lab};
use ringlab_counters::Mib;
use ringlab_kernel::syscall::{Call, OptVal, Ret, Shutdown, msg};
use std::time::Duration;
use tcp_support::peer::{ACK, Peer};
use tcp_support::{Side, connected, mib, transfer};

const MS: Duration = Duration::from_millis(1);
const SOL_SOCKET: i32 = 1;
const SO_SNDBUF: i32 = 7;

fn info(lab: &mut Lab, (p, fd): Side) -> Vec<u8> {
    match p.now(lab, Call::GetSockOpt(fd, 6, 11)) {
        Ret::Opt(OptVal::Bytes(b)) => b,
        ret => panic!("TCP_INFO: {ret:?}"),
    }
}

/// `tcpi_rcv_rtt`, microseconds.
fn rcv_rtt(lab: &mut Lab, side: Side) -> u32 {
    let b = info(lab, side);
    u32::from_le_bytes([b[92], b[93], b[94], b[95]])
}

/// `tcpi_busy_time`, `tcpi_rwnd_limited`, `tcpi_sndbuf_limited`, milliseconds.
fn chrono(lab: &mut Lab, side: Side) -> [u64; 3] {
    let b = info(lab, side);
    [168, 176, 184].map(|at| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight octets")) / 1000)
}

#[test]
fn receiver_measures_round_trips_below_a_millisecond() {
    for timestamps in ["1", "0"] {
        let mut lab = Lab::pair(1);
        lab.hosts[A].kernel.sysctl_set("net.ipv4.tcp_timestamps", timestamps).expect("a row");
        let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
        let l = b.listener(&mut lab, 80, 8);
        let fa = a.connect(&mut lab, ADDR_B, 80);
        let fb = b.accept(&mut lab, l);
        transfer(&mut lab, (a, fa), (b, fb), 4 << 20, 65536);
        // A whole segment is a sample, but its timestamp is of the same millisecond.
        for _ in 0..500 {
            a.send(&mut lab, fa, &[7; 1448]);
            assert_eq!(b.recv(&mut lab, fb, 1448, 0).data.len(), 1448);
        }
        // The link takes 50 µs each way; time stands still otherwise.
        let rtt = rcv_rtt(&mut lab, (b, fb));
        assert!((50..400).contains(&rtt), "{rtt} µs, timestamps {timestamps}");
    }
}

#[test]
fn receiver_takes_longer_round_trips_from_timestamps() {
    let (mut lab, a, b) = connected(2);
    lab.links[0].delay = 20 * MS;
    transfer(&mut lab, a, b, 1 << 20, 65536);
    let rtt = rcv_rtt(&mut lab, b);
    assert!((30_000..60_000).contains(&rtt), "{rtt} µs");
}

#[test]
fn time_at_the_peers_closed_window_is_told_apart() {
    let (mut lab, a, b) = connected(3);
    assert_eq!(chrono(&mut lab, a), [0; 3]);
    a.0.setopt(&mut lab, a.1, SOL_SOCKET, SO_SNDBUF, 4 << 20);
    let call = a.0.send_call(&lab, a.1, &vec![7; 400_000], msg::DONTWAIT, None);
    assert_eq!(a.0.now(&mut lab, call), Ret::Value(400_000));
    lab.run_for(1000 * MS);
    let [busy, rwnd, sndbuf] = chrono(&mut lab, a);
    assert!((980..=1004).contains(&busy) && (980..=busy).contains(&rwnd) && sndbuf == 0, "{busy} {rwnd} {sndbuf}");
    let mut got = 0;
    while got < 400_000 {
        got += b.0.recv(&mut lab, b.1, 1 << 20, 0).data.len();
    }
    lab.run_for(100 * MS);
    let idle = chrono(&mut lab, a);
    lab.run_for(1000 * MS);
    assert_eq!(chrono(&mut lab, a), idle, "nothing to send, nothing to count");
    assert!(idle[0] < busy + 120 && idle[1] < rwnd + 120, "{idle:?}");
}

#[test]
fn time_that_a_small_send_buffer_costs_is_told_apart() {
    let (mut lab, a, b) = connected(4);
    lab.links[0].delay = 20 * MS;
    a.0.setopt(&mut lab, a.1, SOL_SOCKET, SO_SNDBUF, 4000);
    let start = lab.now;
    transfer(&mut lab, a, b, 100_000, 1000);
    let took = (lab.now - start).as_millis() as u64;
    let [busy, rwnd, sndbuf] = chrono(&mut lab, a);
    assert!(took > 300 && busy <= took + 4 && rwnd == 0, "{busy} {rwnd} of {took}");
    assert!(sndbuf > took / 2, "{sndbuf} of {took}");
}

#[test]
fn segment_that_begins_before_a_closed_window_does_not_come_in() {
    let mut p = Peer::new(5);
    let l = p.listener(8);
    let fd = p.connect(l);
    // Fills the window to the last octet, delayed ACKs included.
    let mut window = 60_000;
    loop {
        let answer = match window {
            0 => {
                p.lab.run_for(300 * MS);
                p.heard()
            }
            _ => p.send(ACK, &vec![7; window.min(1460) as usize]),
        };
        match answer.last() {
            Some(last) => window = last.ack().wrapping_add(last.window().into()).wrapping_sub(p.snd),
            None if window == 0 => break,
            None => window -= window.min(1460),
        }
    }
    // The program takes all, but will not say so: it has shut that side.
    p.host.ok(&mut p.lab, Call::Shutdown(fd, Shutdown::Rd));
    while let Ret::Received { len: 1.., .. } = {
        let buffer = p.host.buffer(&p.lab, 1 << 16);
        p.host.now(&mut p.lab, Prog::recv_call(fd, buffer, msg::DONTWAIT))
    } {}
    let dropped = mib(&p.lab, 0, Mib::TCPZeroWindowDrop);
    let (next, rcv) = (p.snd, p.rcv);
    let answer = p.push(next.wrapping_sub(10), rcv, ACK, &[7; 100]);
    assert_eq!(mib(&p.lab, 0, Mib::TCPZeroWindowDrop), dropped + 1);
    assert_eq!(answer.last().map(|f| f.ack()), Some(next), "what was there is acknowledged again, no more");
}
