//! What must hold of every TCP socket whenever nobody works on it: the numbers are in order, and the books balance.

use super::sack::{LOST, SACKED_ACKED, SACKED_RETRANS};
use super::sock::{TcpSock, WriteTimer};
use super::state::State;
use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::{Proto, Sock};
use crate::timer::TimerKey;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

/// A rule, and whether it holds.
type Rule = (&'static str, bool);

impl Kernel {
    /// Looks through all TCP sockets, for tests. Between events no socket is out.
    ///
    /// # Errors
    /// A socket that is in disorder, and what is wrong with it.
    pub fn tcp_audit(&self) -> Result<(), String> {
        for sk in self.socks.iter() {
            let Proto::Tcp(tp) = &sk.proto else { continue };
            let timer = self.timers.get(TimerKey::TcpWrite(sk.id));
            let armed =
                ("the write timer runs if it is wanted", tp.pending == WriteTimer::Idle || timer.is_some_and(|at| at <= tp.timeout));
            let rules = sequence(tp).into_iter().chain(counts(tp)).chain(memory(sk, tp)).chain([armed]);
            if let Some((broken, _)) = rules.into_iter().find(|r| !r.1) {
                return Err(format!("{broken}: {sk:?}"));
            }
        }
        Ok(())
    }
}

/// RFC 9293 §3.3.1, §3.4.
fn sequence(tp: &TcpSock) -> [Rule; 7] {
    let joined = |q: &VecDeque<Box<SkBuff>>| q.iter().zip(q.iter().skip(1)).all(|(a, b)| a.tcp.end_seq == b.tcp.seq);
    let apart = |q: &VecDeque<Box<SkBuff>>| q.iter().zip(q.iter().skip(1)).all(|(a, b)| a.tcp.end_seq.at_or_before(b.tcp.seq));
    let opened = !matches!(tp.state, State::Close | State::Listen | State::SynSent);
    [
        ("SND.UNA is not beyond SND.NXT", tp.snd_una.at_or_before(tp.snd_nxt) || !opened),
        ("SND.NXT is not beyond what was queued", tp.snd_nxt.at_or_before(tp.write_seq) || !opened),
        ("nothing unread is beyond RCV.NXT", tp.copied_seq.at_or_before(tp.rcv_nxt)),
        ("nothing in the retransmission queue is acknowledged", tp.rtx_queue.front().is_none_or(|s| s.tcp.end_seq.after(tp.snd_una))),
        (
            "the retransmission queue ends at SND.NXT",
            joined(&tp.rtx_queue) && tp.rtx_queue.back().is_none_or(|s| s.tcp.end_seq == tp.snd_nxt),
        ),
        ("the write queue begins there", joined(&tp.write_queue) && tp.write_queue.front().is_none_or(|s| s.tcp.seq == tp.snd_nxt)),
        (
            "what is out of order lies apart, behind RCV.NXT",
            apart(&tp.ofo_queue) && tp.ofo_queue.front().is_none_or(|s| s.tcp.seq.after(tp.rcv_nxt)),
        ),
    ]
}

/// Segments in the network.
fn counts(tp: &TcpSock) -> [Rule; 5] {
    let count = |mark: u8| tp.rtx_queue.iter().filter(|s| s.tcp.sacked & mark == mark).map(|s| s.pcount()).sum::<u32>();
    // Without SACK, duplicate ACKs stand for segments that have left.
    let sacked = if tp.rx_opt.sack_ok { tp.sacked_out == count(SACKED_ACKED) } else { tp.sacked_out <= tp.packets_out };
    [
        ("packets_out counts the retransmission queue", tp.packets_out == count(0)),
        ("sacked_out counts what is SACKed", sacked),
        ("lost_out counts what is lost", tp.lost_out == count(LOST)),
        ("retrans_out counts what was sent again", tp.retrans_out == count(SACKED_RETRANS)),
        ("what left was sent", tp.left_out() <= tp.packets_out),
    ]
}

fn memory(sk: &Sock, tp: &TcpSock) -> [Rule; 5] {
    let truesize = |q: &VecDeque<Box<SkBuff>>| q.iter().map(|s| s.truesize).sum::<u32>();
    let unread = &sk.receive_queue;
    let joined = unread.iter().zip(unread.iter().skip(1)).all(|(a, b)| a.tcp.end_seq == b.tcp.seq);
    [
        ("what was received in order ends at RCV.NXT", joined && unread.back().is_none_or(|s| s.tcp.end_seq == tp.rcv_nxt)),
        ("rmem_alloc is what was received", sk.rmem_alloc == truesize(&sk.receive_queue) + truesize(&tp.ofo_queue)),
        ("wmem_queued is what is to be sent", sk.wmem_queued == truesize(&tp.write_queue) + truesize(&tp.rtx_queue)),
        ("nobody owns it", !sk.owned && sk.backlog.is_empty() && sk.backlog_len == 0),
        ("received data are not more than the buffer and a packet", sk.rmem_alloc <= sk.rcvbuf.saturating_add(1 << 17)),
    ]
}
