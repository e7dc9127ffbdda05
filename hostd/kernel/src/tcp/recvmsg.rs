//! `recv`: from the receive queue to the program's memory (Linux `tcp_recvmsg_locked`).

use super::header::flag;
use super::sendmsg::RESCHED_AFTER;
use super::seq::SeqNum;
use super::sock::{Urg, tp};
use super::state::State;
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::{RCV_SHUTDOWN, Sock};
use crate::syscall::{MsgState, Step, msg};
use crate::trace::Point;
use crate::uaccess::{copy_run_to, copy_skb_to_iter};
use crate::wait::queue::PollEvents;
use ringlab_counters::CopyKind;

/// What the next unread octet is.
enum Next {
    /// In packet `index`, at `offset`, with so many octets behind it.
    Data(usize, u32, u32),
    /// The peer's FIN.
    Fin,
    /// Not there.
    Nothing,
    /// The urgent octet, out of band.
    Mark,
    /// The urgent octet, behind data of the same call.
    Stop,
}

impl Kernel {
    /// Gives the caller what has arrived.
    pub(crate) fn tcp_recvmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if sk.tp().state == State::Listen {
            return Step::Done(Err(Errno::ENOTCONN));
        }
        if m.flags & msg::OOB != 0 {
            return Step::Done(self.tcp_recv_urg(sk, m));
        }
        let peek = m.flags & msg::PEEK != 0;
        let total = m.copied as u64 + m.iter.count();
        let target = if m.flags & msg::WAITALL != 0 { total } else { u64::from(sk.opt.rcvlowat).min(total) }.max(1);
        let start = m.copied;
        loop {
            if m.iter.count() == 0 && m.copied > 0 {
                return self.tcp_recv_done(sk, m, start);
            }
            let at = if peek { tcp_peek_seq(sk, m.copied as u32) } else { sk.tp().copied_seq };
            match tcp_next(sk, at, m.copied > 0) {
                // Without room the call only waits for data.
                Next::Stop | Next::Data(..) | Next::Mark if total == 0 => return self.tcp_recv_done(sk, m, start),
                Next::Stop => return self.tcp_recv_done(sk, m, start),
                Next::Data(index, offset, avail) => {
                    let limit = (RESCHED_AFTER - (m.copied - start).min(RESCHED_AFTER - 1)) as u32;
                    if let Err(e) = self.tcp_recv_copy(sk, m, index, offset, avail.min(limit)) {
                        return if m.copied > 0 { self.tcp_recv_done(sk, m, start) } else { Step::Done(Err(e)) };
                    }
                    if m.copied - start >= RESCHED_AFTER && m.iter.count() > 0 {
                        self.tcp_cleanup_rbuf(sk, (m.copied - start) as u32);
                        return Step::Resched;
                    }
                    continue;
                }
                Next::Fin => {
                    self.tcp_consume_fin(sk, peek);
                    return self.tcp_recv_done(sk, m, start);
                }
                Next::Mark => {
                    // Reading goes on behind the mark.
                    self.tcp_advance(sk, 1);
                    continue;
                }
                Next::Nothing => {}
            }
            if self.tcp_flush_backlog(sk) {
                continue;
            }
            if let Some(step) = self.tcp_recv_no_data(sk, m, start, target) {
                return step;
            }
            self.tcp_cleanup_rbuf(sk, (m.copied - start) as u32);
            return Step::Wait(PollEvents::IN | PollEvents::RDHUP | PollEvents::ERR | PollEvents::HUP);
        }
    }

    /// Nothing is queued: is the call over?
    fn tcp_recv_no_data(&mut self, sk: &mut Sock, m: &mut MsgState, start: usize, target: u64) -> Option<Step<Result<usize, Errno>>> {
        let peek = m.flags & msg::PEEK != 0;
        let ended = sk.shutdown & RCV_SHUTDOWN != 0;
        if m.copied > 0 {
            let enough = m.copied as u64 >= target || peek && m.flags & msg::WAITALL == 0;
            if enough || ended || sk.err.is_some() || sk.tp().state == State::Close || m.nonblock || m.give_up.is_some() {
                return Some(self.tcp_recv_done(sk, m, start));
            }
            return None;
        }
        // After the peer's FIN there is an end to report, whatever came later (`SOCK_DONE`).
        if !sk.tp().fin_received
            && let Some(e) = sk.err.take()
        {
            return Some(Step::Done(Err(e)));
        }
        if ended {
            return Some(Step::Done(Ok(0)));
        }
        if sk.tp().state == State::Close {
            return Some(Step::Done(Err(Errno::ENOTCONN)));
        }
        if let Some(e) = m.give_up.or(m.nonblock.then_some(Errno::EAGAIN)) {
            return Some(Step::Done(Err(e)));
        }
        None
    }

    fn tcp_recv_done(&mut self, sk: &mut Sock, m: &MsgState, start: usize) -> Step<Result<usize, Errno>> {
        if let (true, Some(at)) = (m.flags & msg::PEEK != 0, &mut sk.opt.peek_off) {
            *at = at.saturating_add(m.copied as u32);
        }
        self.tcp_cleanup_rbuf(sk, (m.copied - start) as u32);
        Step::Done(Ok(m.copied))
    }

    fn tcp_recv_copy(&mut self, sk: &mut Sock, m: &mut MsgState, index: usize, offset: u32, avail: u32) -> Result<(), Errno> {
        let peek = m.flags & msg::PEEK != 0;
        let skb = &sk.receive_queue[index];
        let id = skb.id;
        let used = if m.flags & msg::TRUNC != 0 {
            // Discard without copying.
            let n = u64::from(avail).min(m.iter.count());
            let mut left = n;
            while let Some(run) = m.iter.next_run(left) {
                left -= run.len;
                if left == 0 {
                    break;
                }
            }
            n as u32
        } else {
            let n = copy_skb_to_iter(&mut *self.mem, m.task, skb, offset, avail, &mut m.iter)?;
            self.copies.inc(CopyKind::SkbToUser);
            self.copies.add(CopyKind::SkbToUserBytes, u64::from(n));
            self.trace(Point::CopyToUser, id, [u64::from(sk.id.0), u64::from(n), 0, 0]);
            n
        };
        m.copied += used as usize;
        if peek {
            return Ok(());
        }
        if let Some(at) = &mut sk.opt.peek_off {
            *at = at.saturating_sub(used);
        }
        self.tcp_advance(sk, used);
        self.tcp_rcv_space_adjust(sk);
        Ok(())
    }

    /// The program is through with `n` octets at the head of the receive queue.
    pub(super) fn tcp_advance(&mut self, sk: &mut Sock, n: u32) {
        let tp = tp!(sk);
        tp.copied_seq += n;
        let copied = tp.copied_seq;
        if tp.urg_mark().is_some_and(|mark| copied.after(mark)) {
            tp.urg_data = Urg::Absent;
            tp.fast_path_check();
        }
        if sk.receive_queue.front().is_some_and(|s| s.tcp.flags & flag::FIN == 0 && s.tcp.end_seq.at_or_before(copied)) {
            self.tcp_eat_recv_skb(sk);
        }
    }

    /// Frees the head of the receive queue.
    fn tcp_eat_recv_skb(&mut self, sk: &mut Sock) {
        if let Some(skb) = sk.receive_queue.pop_front() {
            sk.rmem_alloc -= skb.truesize.min(sk.rmem_alloc);
            self.consume_skb(skb);
        }
    }

    fn tcp_consume_fin(&mut self, sk: &mut Sock, peek: bool) {
        if !peek {
            tp!(sk).copied_seq += 1;
            self.tcp_eat_recv_skb(sk);
        }
    }

    /// `MSG_OOB` (Linux `tcp_recv_urg`).
    fn tcp_recv_urg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Result<usize, Errno> {
        let tp = tp!(sk);
        if sk.opt.oobinline || matches!(tp.urg_data, Urg::Absent | Urg::Read) {
            return Err(Errno::EINVAL);
        }
        if tp.state == State::Close && !tp.fin_received {
            return Err(Errno::ENOTCONN);
        }
        let Urg::Valid(octet) = tp.urg_data else {
            let ended = tp.state == State::Close || sk.shutdown & RCV_SHUTDOWN != 0;
            return if ended { Ok(0) } else { Err(Errno::EAGAIN) };
        };
        if m.flags & msg::PEEK == 0 {
            tp.urg_data = Urg::Read;
        }
        m.out_flags |= msg::OOB;
        let Some(run) = m.iter.next_run(1) else {
            m.out_flags |= msg::TRUNC;
            return Ok(0);
        };
        if m.flags & msg::TRUNC == 0 {
            let buf = self.config.pool.alloc(1).ok_or(Errno::ENOBUFS)?;
            buf.slice(0, 1).write(&[octet]);
            copy_run_to(&mut *self.mem, m.task, m.iter.source(), run.addr, &[buf.slice(0, 1)])?;
        }
        Ok(1)
    }

    /// The program took data: is the window worth telling (Linux `tcp_cleanup_rbuf`)?
    pub(crate) fn tcp_cleanup_rbuf(&mut self, sk: &mut Sock, copied: u32) {
        let tp = sk.tp();
        if tp.state == State::Close {
            return;
        }
        let mut now = false;
        if tp.ack.scheduled {
            let full = tp.rcv_nxt - tp.rcv_wup > tp.ack.rcv_mss;
            let pushed = tp.ack.pushed2 || (tp.ack.pushed && !tp.ack.pingpong);
            now = full || (copied > 0 && pushed && sk.rmem_alloc == 0);
        }
        if copied > 0 && !now && sk.shutdown & RCV_SHUTDOWN == 0 {
            let left = tp.receive_window();
            if left.saturating_mul(2) <= tp.window_clamp {
                let offer = sk.tcp_window_to_offer();
                now = offer > 0 && offer >= left.saturating_mul(2);
            }
        }
        if now {
            self.tcp_send_ack(sk);
        }
    }

    /// Dynamic right-sizing: twice what the program reads in one RTT (Linux `tcp_rcv_space_adjust`).
    fn tcp_rcv_space_adjust(&mut self, sk: &mut Sock) {
        let now = self.now;
        let (moderate, max) = (self.tcp.sysctl.moderate_rcvbuf, self.tcp.sysctl.rmem[2]);
        let tp = tp!(sk);
        let rtt_us = tp.rcvtune.rtt_us >> 3;
        if rtt_us == 0 || (now.since(tp.rcvtune.time).as_micros() as u64) < rtt_us {
            return;
        }
        let copied = tp.copied_seq - tp.rcvtune.seq;
        if copied > tp.rcvtune.space {
            if moderate && !sk.rcvbuf_locked {
                let mut want = 2 * u64::from(copied) + 16 * u64::from(tp.advmss);
                let grow = want.saturating_mul((copied - tp.rcvtune.space).into()) / u64::from(tp.rcvtune.space.max(1));
                want = want.saturating_add(grow.saturating_mul(2));
                let bytes = tp.space_from_win(u32::try_from(want).unwrap_or(u32::MAX)).min(max);
                if bytes > sk.rcvbuf {
                    sk.rcvbuf = bytes;
                    tp.window_clamp = tp.win_from_space(bytes);
                }
            }
            tp.rcvtune.space = copied;
        }
        tp.rcvtune.seq = tp.copied_seq;
        tp.rcvtune.time = now;
    }
}

/// Where `MSG_PEEK` goes on after `copied` octets. An urgent octet where it began is a hole.
fn tcp_peek_seq(sk: &Sock, copied: u32) -> SeqNum {
    let start = sk.tp().copied_seq + sk.opt.peek_off.unwrap_or(0);
    let hole = sk.tp().urg_mark() == Some(start) && !sk.opt.oobinline && matches!(find(sk, start), Next::Data(..));
    start + copied + u32::from(hole)
}

/// What is at `at`; `behind`: after octets of the same call, which ends at the urgent octet, in line or not.
fn tcp_next(sk: &Sock, at: SeqNum, behind: bool) -> Next {
    let mark = sk.tp().urg_mark();
    if behind && mark == Some(at) {
        return Next::Stop;
    }
    match find(sk, at) {
        Next::Data(..) if mark == Some(at) && !sk.opt.oobinline => Next::Mark,
        Next::Data(i, off, avail) => {
            let upto = mark.filter(|m| m.after(at)).map_or(avail, |m| avail.min(m - at));
            Next::Data(i, off, upto)
        }
        other => other,
    }
}

fn find(sk: &Sock, at: SeqNum) -> Next {
    for (i, skb) in sk.receive_queue.iter().enumerate() {
        if at.before(skb.tcp.seq) {
            break;
        }
        let offset = at - skb.tcp.seq;
        if offset < skb.len() {
            return Next::Data(i, offset, skb.len() - offset);
        }
        if skb.tcp.flags & flag::FIN != 0 && offset == skb.len() {
            return Next::Fin;
        }
    }
    Next::Nothing
}
