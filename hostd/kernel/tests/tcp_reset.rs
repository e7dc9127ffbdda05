//! RST in each state (RFC 9293 §3.10.7, RFC 5961 §3), and what the program sees of it.

mod common;
mod tcp_support;

use common::Frame;
use ringlab_counters::Mib;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, OptVal, Ret, Shutdown};
use std::time::Duration;
use tcp_support::peer::{ACK, FIN, Peer, RST, SYN};

const S: Duration = Duration::from_secs(1);
/// `SOL_SOCKET`, `SO_ERROR`.
const SO_ERROR: (i32, i32) = (1, 4);

fn so_error(p: &mut Peer, fd: i32) -> Ret {
    p.host.now(&mut p.lab, Call::GetSockOpt(fd, SO_ERROR.0, SO_ERROR.1))
}

/// Segments that acknowledge and nothing else.
fn acks(frames: &[Frame]) -> Vec<(u32, u32)> {
    frames.iter().filter(|f| f.flags() == ACK).map(|f| (f.seq(), f.ack())).collect()
}

/// A RST out of the window is ignored; in it, but not the next number, it is asked back about; twice
/// within half a second it is not. The connection stays in `state`.
fn only_exact(p: &mut Peer, state: &str) {
    assert_eq!(p.state(), Some(state));
    p.lab.run_for(S);
    p.heard();
    let (next, challenges) = (p.snd, p.mib(Mib::TCPChallengeACK));
    for outside in [next.wrapping_sub(2), next.wrapping_add(1 << 30)] {
        let answer = p.push(outside, 0, RST, &[]);
        assert_eq!(acks(&answer), [], "{state}: outside the window");
    }
    let answer = p.push(next.wrapping_add(100), 0, RST, &[]);
    assert_eq!(acks(&answer), [(p.rcv, next)], "{state}: a challenge");
    let answer = p.push(next.wrapping_add(101), 0, RST, &[]);
    assert_eq!(acks(&answer), [], "{state}: not twice");
    assert_eq!(p.mib(Mib::TCPChallengeACK), challenges + 1);
    assert_eq!(p.state(), Some(state));
}

/// The exact RST; nobody answers it.
fn exact(p: &mut Peer) {
    let answer = p.push(p.snd, 0, RST, &[]);
    assert!(answer.is_empty(), "no answer to a RST");
}

#[test]
fn listen_ignores_resets() {
    let mut p = Peer::new(1);
    let l = p.listener(8);
    assert!(p.push(1, 0, RST, &[]).is_empty());
    assert!(p.push(1, 77, RST | ACK, &[]).is_empty());
    p.connect(l);
    assert_eq!(p.state(), Some("ESTAB"));
}

#[test]
fn closed_ignores_resets_and_answers_the_rest() {
    let mut p = Peer::new(2);
    assert!(p.push(1, 77, RST | ACK, &[]).is_empty());
    // RFC 9293 §3.10.7.1: the number comes from the acknowledgement, or else everything is acknowledged.
    let rst = p.push(500, 77, ACK, b"xyz").pop().expect("a RST");
    assert_eq!((rst.flags(), rst.seq()), (RST, 77));
    let rst = p.push(500, 0, FIN, b"xyz").pop().expect("a RST");
    assert_eq!((rst.flags(), rst.seq(), rst.ack()), (RST | ACK, 0, 504));
}

#[test]
fn syn_sent_believes_a_reset_that_acknowledges_the_syn() {
    let mut p = Peer::new(3);
    let fd = p.connecting();
    let isn = p.rcv;
    assert!(p.push(0, 0, RST, &[]).is_empty());
    let heard = p.push(0, isn.wrapping_add(1), RST | ACK, &[]);
    assert!(!heard.iter().any(Frame::is_rst), "a RST is never answered");
    assert_eq!(p.state(), Some("SYN-SENT"));
    p.heard();
    assert!(p.push(0, isn, RST | ACK, &[]).is_empty());
    assert_eq!(p.state(), Some("UNCONN"));
    assert_eq!(so_error(&mut p, fd), Ret::Opt(OptVal::Int(Errno::ECONNREFUSED as i32)));
    assert_eq!(so_error(&mut p, fd), Ret::Opt(OptVal::Int(0)));
    assert_eq!((p.mib(Mib::TcpAttemptFails), p.mib(Mib::TcpEstabResets)), (1, 0));
}

#[test]
fn syn_sent_resets_an_old_connection_and_tries_again_at_once() {
    let mut p = Peer::new(4);
    p.connecting();
    let mut heard = p.push(9999, p.rcv.wrapping_sub(500), ACK, &[]);
    assert_eq!((heard[0].flags(), heard[0].seq()), (RST, p.rcv.wrapping_sub(500)));
    // The peer is free now: the SYN comes again long before its second is over (Linux `TCP_TIMEOUT_MIN`).
    heard.extend(p.heard());
    assert_eq!(heard.iter().filter(|f| f.is_syn()).count(), 1);
    assert_eq!(p.state(), Some("SYN-SENT"));
}

#[test]
fn syn_recv_of_a_listener_is_forgotten_for_a_reset_in_its_window() {
    let mut p = Peer::new(5);
    p.listener(8);
    p.syn();
    for outside in [p.snd.wrapping_sub(1), p.snd.wrapping_add(1 << 30)] {
        assert!(p.push(outside, 0, RST, &[]).is_empty());
    }
    assert_eq!(p.mib(Mib::EmbryonicRsts), 0);
    assert!(p.push(p.snd.wrapping_add(100), 0, RST, &[]).is_empty());
    assert_eq!((p.mib(Mib::EmbryonicRsts), p.mib(Mib::TcpAttemptFails)), (1, 1));
    // The handshake's last ACK belongs to nothing now.
    let answer = p.send(ACK, &[]);
    assert_eq!(answer.len(), 1);
    assert!(answer[0].is_rst());
}

#[test]
fn syn_recv_repeats_its_answer_to_what_is_not_the_handshake() {
    let mut p = Peer::new(6);
    let l = p.listener(8);
    p.syn();
    // A SYN-ACK to a SYN-ACK lies before the window: an ACK says where we are.
    let answer = p.push(p.snd.wrapping_sub(1), p.rcv, SYN | ACK, &[]);
    assert_eq!(acks(&answer), [(p.rcv, p.snd)]);
    // A wrong acknowledgement is reset, and the request stays.
    let answer = p.push(p.snd, p.rcv.wrapping_add(7), ACK, &[]);
    assert_eq!((answer[0].flags(), answer[0].seq()), (RST, p.rcv.wrapping_add(7)));
    p.send(ACK, &[]);
    p.host.accept(&mut p.lab, l);
    assert_eq!(p.state(), Some("ESTAB"));
}

#[test]
fn syn_recv_of_a_simultaneous_open_is_reset() {
    let mut p = Peer::new(7);
    let fd = p.connecting();
    let answer = p.send(SYN, &[]);
    assert!(answer.iter().any(Frame::is_syn_ack));
    only_challenge(&mut p);
    exact(&mut p);
    assert_eq!(so_error(&mut p, fd), Ret::Opt(OptVal::Int(Errno::ECONNRESET as i32)));
}

/// A SYN_RECV socket resends its SYN-ACK meanwhile: only the challenge is looked at.
fn only_challenge(p: &mut Peer) {
    assert_eq!(p.state(), Some("SYN-RECV"));
    let before = p.mib(Mib::TCPChallengeACK);
    p.push(p.snd.wrapping_add(1 << 30), 0, RST, &[]);
    assert_eq!(p.mib(Mib::TCPChallengeACK), before);
    p.push(p.snd.wrapping_add(100), 0, RST, &[]);
    assert_eq!(p.mib(Mib::TCPChallengeACK), before + 1);
    assert_eq!(p.state(), Some("SYN-RECV"));
}

#[test]
fn established_program_hears_reset_once_then_end_and_broken_pipe() {
    let mut p = Peer::new(8);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.send(ACK, b"unread");
    only_exact(&mut p, "ESTAB");
    exact(&mut p);
    assert_eq!((p.state(), p.mib(Mib::TcpEstabResets)), (Some("UNCONN"), 1));
    // What had arrived is read first, then the error, then the end.
    assert_eq!(p.read(fd), Ok(b"unread".to_vec()));
    assert_eq!(p.read(fd), Err(Errno::ECONNRESET));
    assert_eq!(p.read(fd), Ok(Vec::new()));
    assert_eq!(p.write(fd), Ret::Err(Errno::EPIPE));
}

#[test]
fn writer_hears_reset_once_then_broken_pipe() {
    let mut p = Peer::new(9);
    let l = p.listener(8);
    let fd = p.connect(l);
    exact(&mut p);
    assert_eq!(p.write(fd), Ret::Err(Errno::ECONNRESET));
    assert_eq!(p.write(fd), Ret::Err(Errno::EPIPE));
    assert_eq!(p.read(fd), Ok(Vec::new()));
}

#[test]
fn fin_wait_states_are_reset() {
    for acknowledged in [false, true] {
        let mut p = Peer::new(10);
        let l = p.listener(8);
        let fd = p.connect(l);
        p.host.ok(&mut p.lab, Call::Shutdown(fd, Shutdown::Wr));
        p.heard();
        if acknowledged {
            p.send(ACK, &[]);
        }
        only_exact(&mut p, if acknowledged { "FIN-WAIT-2" } else { "FIN-WAIT-1" });
        exact(&mut p);
        assert_eq!(p.read(fd), Err(Errno::ECONNRESET));
        assert_eq!(p.read(fd), Ok(Vec::new()));
    }
}

#[test]
fn close_wait_reads_the_end_and_writes_into_a_broken_pipe() {
    let mut p = Peer::new(11);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.send(FIN | ACK, &[]);
    only_exact(&mut p, "CLOSE-WAIT");
    // Some stacks number the RST as their FIN (Linux `tcp_reset_check`).
    let answer = p.push(p.snd.wrapping_sub(1), 0, RST, &[]);
    assert!(answer.is_empty());
    assert_eq!(p.state(), Some("UNCONN"));
    assert_eq!(p.read(fd), Ok(Vec::new()));
    assert_eq!(p.write(fd), Ret::Err(Errno::EPIPE));
    assert_eq!(p.read(fd), Ok(Vec::new()));
}

#[test]
fn last_ack_and_closing_end_without_a_program() {
    let mut p = Peer::new(12);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.send(FIN | ACK, &[]);
    p.close(fd);
    only_exact(&mut p, "LAST-ACK");
    exact(&mut p);
    assert_eq!((p.state(), p.mib(Mib::TW)), (None, 0));

    p.sport += 1;
    let fd = p.connect(l);
    let ours = p.rcv;
    p.close(fd);
    // The peer's FIN does not acknowledge ours.
    p.rcv = ours;
    p.send(FIN | ACK, &[]);
    p.rcv = ours.wrapping_add(1);
    only_exact(&mut p, "CLOSING");
    exact(&mut p);
    assert_eq!((p.state(), p.mib(Mib::TW)), (None, 0));
}

#[test]
fn time_wait_is_ended_by_the_exact_reset_only() {
    let mut p = Peer::new(13);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.close(fd);
    p.send(FIN | ACK, &[]);
    assert_eq!((p.state(), p.mib(Mib::TW)), (None, 1));
    p.lab.run_for(S);
    for wrong in [p.snd.wrapping_add(100), p.snd.wrapping_sub(1), p.snd.wrapping_add(1 << 30)] {
        assert!(p.push(wrong, 0, RST, &[]).is_empty(), "ignored");
    }
    // Still there: an old segment is answered with an ACK, not with a RST.
    let answer = p.push(p.snd.wrapping_sub(10), p.rcv, ACK, b"old");
    assert_eq!(acks(&answer), [(p.rcv, p.snd)]);
    exact(&mut p);
    // RFC 1337: now it is gone, as Linux has it.
    let answer = p.push(p.snd, p.rcv, ACK, &[]);
    assert_eq!((answer.len(), answer[0].flags()), (1, RST));
}

#[test]
fn orphaned_fin_wait2_is_ended_by_a_reset_in_its_window() {
    let mut p = Peer::new(14);
    let l = p.listener(8);
    let fd = p.connect(l);
    p.close(fd);
    p.send(ACK, &[]);
    assert_eq!(p.state(), None, "a minisocket");
    // Outside the window: an ACK, as for any segment there.
    assert_eq!(acks(&p.push(p.snd.wrapping_add(1 << 30), 0, RST, &[])), [(p.rcv, p.snd)]);
    assert!(p.push(p.snd.wrapping_add(100), 0, RST, &[]).is_empty());
    let answer = p.send(FIN | ACK, &[]);
    assert!(answer[0].is_rst(), "nobody is there any more");
}
