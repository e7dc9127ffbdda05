//! Segments that are not in order of business: which are answered, which not so soon again (`tcp_invalid_ratelimit`),
//! and under which counter.

mod common;
mod tcp_support;

use common::{A, B, Dir, Frame, Lab};
use ringlab_counters::{DropReason, Mib};
use ringlab_kernel::syscall::Call;
use std::time::Duration;
use tcp_support::peer::{ACK, FIN, Peer, RST, SYN};
use tcp_support::{connected_with, counters, mib, plain_nic};

const S: Duration = Duration::from_secs(1);
/// `tcp_invalid_ratelimit`.
const LIMIT: Duration = Duration::from_millis(500);

/// Pushes a segment whose number is so far ahead three times: it is answered, then counted by `skipped`, then, later, answered again.
fn answered_once_in_a_while(p: &mut Peer, ahead: u32, flags: u8, skipped: Mib) {
    let (seq, ack) = (p.snd.wrapping_add(ahead), if flags & ACK != 0 { p.rcv } else { 0 });
    p.lab.run_for(S);
    p.heard();
    let before = p.mib(skipped);
    assert_eq!(p.push(seq, ack, flags, &[]).len(), 1, "{skipped:?}: answered");
    assert_eq!(p.mib(skipped), before);
    assert!(p.push(seq, ack, flags, &[]).is_empty(), "{skipped:?}: not at once again");
    assert_eq!(p.mib(skipped), before + 1);
    p.lab.run_for(LIMIT);
    p.heard();
    assert_eq!(p.push(seq, ack, flags, &[]).len(), 1, "{skipped:?}: later again");
    assert_eq!(p.mib(skipped), before + 1);
}

#[test]
fn out_of_window_segments_are_answered_once_in_a_while_unless_they_carry_data() {
    let mut p = Peer::new(1);
    let l = p.listener(8);
    p.connect(l);
    let far = p.snd.wrapping_add(1 << 30);
    answered_once_in_a_while(&mut p, 1 << 30, ACK, Mib::TCPACKSkippedSeq);
    for _ in 0..3 {
        assert_eq!(p.push(far, p.rcv, ACK, b"data").len(), 1);
    }
    assert_eq!((p.mib(Mib::TCPACKSkippedSeq), p.mib(Mib::BeyondWindow)), (1, 6));
    // What lies below the window is old, not beyond.
    p.lab.run_for(S);
    p.push(p.snd.wrapping_sub(100), p.rcv, ACK, &[]);
    assert_eq!(p.mib(Mib::BeyondWindow), 6);
    assert_eq!(p.lab.hosts[0].kernel.stats().drops.get(DropReason::TcpOldSequence), 1);
}

#[test]
fn challenges_are_not_repeated_at_once() {
    let mut p = Peer::new(2);
    let l = p.listener(8);
    p.connect(l);
    answered_once_in_a_while(&mut p, 100, RST, Mib::TCPACKSkippedChallenge);
    assert_eq!(p.mib(Mib::TCPChallengeACK), 2);
}

#[test]
fn request_repeats_its_answers_once_in_a_while() {
    let mut p = Peer::new(3);
    p.listener(8);
    p.syn();
    // The SYN again, well before the SYN-ACK's own timer.
    let syn = p.snd.wrapping_sub(1);
    assert!(p.push(syn, 0, SYN, &[])[0].is_syn_ack());
    assert!(p.push(syn, 0, SYN, &[]).is_empty());
    assert_eq!(p.mib(Mib::TCPACKSkippedSynRecv), 1);
    // An ACK of the SYN-ACK whose own number is wrong.
    assert!(p.push(p.snd.wrapping_add(1 << 30), p.rcv, ACK, &[]).is_empty());
    assert_eq!(p.mib(Mib::TCPACKSkippedSynRecv), 2);
    p.lab.run_for(LIMIT);
    p.heard();
    assert_eq!(p.push(p.snd.wrapping_add(1 << 30), p.rcv, ACK, &[]).len(), 1);
}

#[test]
fn what_waits_for_the_end_answers_once_in_a_while() {
    let mut p = Peer::new(4);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.close(fd);
    p.send(ACK, &[]);
    // Nobody holds the socket: a minisocket awaits the FIN.
    answered_once_in_a_while(&mut p, 1 << 30, ACK, Mib::TCPACKSkippedFinWait2);
    p.lab.run_for(LIMIT);
    p.send(FIN | ACK, &[]);
    answered_once_in_a_while(&mut p, 1 << 30, ACK, Mib::TCPACKSkippedTimeWait);
}

#[test]
fn segment_that_ends_beyond_the_window_comes_only_into_an_empty_queue() {
    let mut p = Peer::new(5);
    let l = p.listener(8);
    let fd = p.connect(l);
    let edge = |f: &Frame| f.ack().wrapping_add(u32::from(f.window()));
    let heard = p.push(p.snd.wrapping_add(1 << 30), p.rcv, ACK, b"where are you?");
    let end = edge(&heard[0]);
    p.push(end.wrapping_sub(10), p.rcv, ACK, &[7; 20]);
    assert_eq!((p.mib(Mib::TCPOFOQueue), p.mib(Mib::BeyondWindow)), (1, 1));
    let heard = p.send(ACK, b"x");
    let end = heard.last().map_or(end, edge);
    p.push(end.wrapping_sub(10), p.rcv, ACK, &[7; 20]);
    assert_eq!((p.mib(Mib::TCPOFOQueue), p.mib(Mib::BeyondWindow)), (1, 2));
    assert_eq!(p.lab.hosts[0].kernel.stats().drops.get(DropReason::TcpInvalidEndSequence), 1);
    assert_eq!(p.read(fd).expect("a connection"), b"x");
}

#[test]
fn data_to_a_closed_socket_are_dropped_by_their_own_name() {
    let mut p = Peer::new(6);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.close(fd);
    let heard = p.send(ACK, b"too late");
    assert!(heard.iter().any(Frame::is_rst));
    assert_eq!(p.mib(Mib::TCPAbortOnData), 1);
    assert_eq!(p.lab.hosts[0].kernel.stats().drops.get(DropReason::TcpAbortOnData), 1);
}

#[test]
fn segments_to_all_are_neither_counted_nor_answered() {
    let mut p = Peer::new(7);
    p.listener(8);
    p.syn();
    let before = p.mib(Mib::TcpInSegs);
    for port in [p.dport, 81] {
        p.dport = port;
        let mut frame = p.segment(p.snd, p.rcv, ACK, b"x");
        frame.bytes[..6].fill(0xff);
        p.lab.inject(0, Dir::Backward, frame);
        assert!(p.heard().is_empty());
    }
    assert_eq!(p.mib(Mib::TcpInSegs), before);
}

#[test]
fn packets_from_afar_are_dropped_where_the_program_asks_for_near_ones() {
    const IPPROTO_IP: i32 = 0;
    const IP_MINTTL: i32 = 21;
    let mut p = Peer::new(8);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.host.ok(&mut p.lab, Call::SetSockOpt(fd, IPPROTO_IP, IP_MINTTL, ringlab_kernel::syscall::OptVal::Int(65)));
    assert!(p.send(ACK, b"x").is_empty());
    assert_eq!(p.mib(Mib::TCPMinTTLDrop), 1);
    assert_eq!(p.lab.hosts[0].kernel.stats().drops.get(DropReason::TcpMinTtl), 1);
}

/// A segment with its number moved by `seq` and its timestamp by `ts`.
fn forged(mut frame: Frame, seq: i32, ts: i32) -> Frame {
    let t = frame.transport();
    for (at, by) in [(4, seq), (24, ts)] {
        let field = &mut frame.bytes[t + at..t + at + 4];
        let value = u32::from_be_bytes(field.try_into().expect("four")).wrapping_add_signed(by);
        field.copy_from_slice(&value.to_be_bytes());
    }
    frame.sum_tcp();
    frame
}

#[test]
fn old_timestamps_are_answered_once_in_a_while_and_overtaken_acks_not_at_all() {
    let (mut lab, a, b) = connected_with(9, plain_nic());
    b.0.send(&mut lab, b.1, b"x");
    a.0.recv(&mut lab, a.1, 1, 0);
    lab.run_for(S);
    let last = lab.log.iter().rfind(|l| l.dir == Dir::Forward && l.frame.is_tcp()).expect("A has sent").frame.clone();
    assert!(last.payload().is_empty());
    let answers = |lab: &mut Lab, seq| {
        let before = lab.log.len();
        let frame = forged(last.clone(), seq, -400);
        lab.inject(0, Dir::Forward, frame);
        lab.run_for(Duration::from_millis(10));
        lab.log[before..].iter().filter(|l| l.dir == Dir::Backward).count()
    };
    let counts = |lab: &Lab| [Mib::PAWSEstab, Mib::TCPACKSkippedPAWS, Mib::PAWSOldAck].map(|c| mib(lab, B, c));
    assert_eq!(answers(&mut lab, 5), 1, "{}", counters(&lab, B));
    assert_eq!(counts(&lab), [1, 0, 0]);
    assert_eq!(answers(&mut lab, 5), 0);
    assert_eq!(counts(&lab), [2, 1, 0]);
    lab.run_for(S);
    assert_eq!(answers(&mut lab, -1), 0);
    assert_eq!(counts(&lab), [2, 1, 1]);
    assert_eq!(lab.hosts[B].kernel.stats().drops.get(DropReason::TcpRfc7323PawsAck), 1);
    a.0.send(&mut lab, a.1, b"alive");
    assert_eq!(b.0.recv(&mut lab, b.1, 10, 0).data, b"alive");
    assert_eq!(mib(&lab, A, Mib::TCPChallengeACK), 0);
}
