//! `recv`: from the receive queue to the program's memory (Linux `tcp_recvmsg_locked`).

use super::header::flag;
use super::sendmsg::RESCHED_AFTER;
use super::seq::SeqNum;
use super::sock::tp;
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
        let target = if m.flags & msg::WAITALL != 0 { total } else { u64::from(sk.opt.rcvlowat.max(1)).min(total) };
        let start = m.copied;
        loop {
            if m.iter.count() == 0 && m.copied > 0 || total == 0 {
                return self.tcp_recv_done(sk, m, start);
            }
            let ahead = if peek { m.copied as u32 + sk.opt.peek_off.unwrap_or(0) } else { 0 };
            let at = sk.tp().copied_seq + ahead;
            match tcp_next(sk, at) {
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
                Next::Mark if m.copied > 0 => return self.tcp_recv_done(sk, m, start),
                Next::Mark => {
                    // Reading goes on behind the mark.
                    if peek {
                        return self.tcp_recv_done(sk, m, start);
                    }
                    self.tcp_skip_mark(sk);
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
        let (id, len) = (skb.id, skb.len());
        let used = if m.flags & msg::TRUNC != 0 && !peek {
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
        tp!(sk).copied_seq += used;
        self.tcp_rcv_space_adjust(sk);
        if offset + used == len && sk.receive_queue.front().is_some_and(|s| s.tcp.flags & flag::FIN == 0) {
            self.tcp_eat_recv_skb(sk);
        }
        Ok(())
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

    fn tcp_skip_mark(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        tp.copied_seq += 1;
        tp.urg_seq = None;
        tp.fast_path_check();
    }

    /// `MSG_OOB` (Linux `tcp_recv_urg`).
    fn tcp_recv_urg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Result<usize, Errno> {
        let tp = tp!(sk);
        if sk.opt.oobinline || tp.urg_seq.is_none() || tp.urg_read {
            return Err(Errno::EINVAL);
        }
        if tp.state == State::Close {
            return Err(Errno::ENOTCONN);
        }
        let Some(octet) = tp.urg_data else {
            return if sk.shutdown & RCV_SHUTDOWN != 0 { Ok(0) } else { Err(Errno::EAGAIN) };
        };
        let at = tp.urg_seq.unwrap_or_default();
        let Some(Next::Data(index, offset, _)) = Some(find(sk, at)) else {
            // Read past already: the octet itself is kept, but there is no memory to copy from.
            return self.tcp_recv_urg_octet(sk, m, octet);
        };
        m.out_flags |= msg::OOB;
        let n = copy_skb_to_iter(&mut *self.mem, m.task, &sk.receive_queue[index], offset, 1, &mut m.iter)?;
        if m.flags & msg::PEEK == 0 {
            let tp = tp!(sk);
            (tp.urg_data, tp.urg_read) = (None, true);
        }
        Ok(n as usize)
    }

    fn tcp_recv_urg_octet(&mut self, sk: &mut Sock, m: &mut MsgState, octet: u8) -> Result<usize, Errno> {
        let Some(run) = m.iter.next_run(1) else { return Ok(0) };
        let buf = self.config.pool.alloc(1).ok_or(Errno::ENOBUFS)?;
        buf.slice(0, 1).write(&[octet]);
        copy_run_to(&mut *self.mem, m.task, m.iter.source(), run.addr, &[buf.slice(0, 1)])?;
        m.out_flags |= msg::OOB;
        if m.flags & msg::PEEK == 0 {
            let tp = tp!(sk);
            (tp.urg_data, tp.urg_read) = (None, true);
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

fn tcp_next(sk: &Sock, at: SeqNum) -> Next {
    let tp = sk.tp();
    let mark = tp.urg_seq.filter(|_| !sk.opt.oobinline);
    match find(sk, at) {
        Next::Data(..) if mark == Some(at) => Next::Mark,
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
