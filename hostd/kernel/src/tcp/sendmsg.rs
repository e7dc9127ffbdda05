//! `send`: from the program's memory to the write queue (Linux `tcp_sendmsg_locked`).
//!
//! Data go into packets of up to 64 KiB made of pieces of shared buffers: the one
//! copy of the send path. The last unsent packet is filled up first.

use super::chrono::ChronoType;
use super::header::flag;
use super::output::xmit::{Burst, Nagle};
use super::sock::{TCP_MSS_DEFAULT, TcpSock, tp};
use super::state::State;
use crate::Kernel;
use crate::errno::Errno;
use crate::skb::{Frag, SkBuff};
use crate::sock::{SEND_SHUTDOWN, Sock};
use crate::syscall::{MsgState, Step, msg};
use crate::trace::Point;
use crate::uaccess::copy_iter_to_slice;
use crate::wait::queue::PollEvents;
use ringlab_counters::CopyKind;
use ringlab_ring::pool::CLASSES;

/// Octets copied before interrupts are looked at.
pub(super) const RESCHED_AFTER: usize = 256 * 1024;
/// Least room of a buffer that is worth starting in.
const FRAG_MIN: u32 = 2048;

/// Why filling stopped.
enum Fill {
    More,
    NoSpace,
    NoMem,
    Fault,
}

impl Kernel {
    /// Queues the caller's data for sending.
    pub(crate) fn tcp_sendmsg(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if m.copied == 0 {
            self.trace(Point::TcpSendmsg, 0, [u64::from(sk.id.0), m.iter.count(), 0, 0]);
        }
        if m.flags & msg::FASTOPEN != 0 {
            // Data on the SYN: `net.ipv4.tcp_fastopen` is 0.
            return Step::Done(Err(Errno::EOPNOTSUPP));
        }
        match sk.tp().state {
            State::Established | State::CloseWait => {}
            State::SynSent | State::SynRecv if sk.shutdown & SEND_SHUTDOWN == 0 => return self.tcp_send_wait_connect(sk, m),
            _ => return Step::Done(self.tcp_send_error(sk, m, Errno::EPIPE)),
        }
        tp!(sk).rate_check_app_limited();
        let start = m.copied;
        let mss = self.tcp_current_mss(sk);
        let goal = if m.flags & msg::OOB != 0 { mss } else { sk.tp().size_goal(mss) };
        loop {
            if sk.err.is_some() || sk.shutdown & SEND_SHUTDOWN != 0 {
                self.tcp_push(sk, m.flags, Nagle::Option);
                return Step::Done(self.tcp_send_error(sk, m, Errno::EPIPE));
            }
            if m.iter.count() == 0 {
                self.tcp_push_end(sk, m);
                return Step::Done(Ok(m.copied));
            }
            match self.tcp_fill(sk, m, goal) {
                Fill::More => {
                    self.tcp_push_progress(sk, m, mss, goal);
                    if m.copied - start >= RESCHED_AFTER && m.iter.count() > 0 {
                        return Step::Resched;
                    }
                }
                Fill::NoSpace => {
                    if let Some(step) = self.tcp_send_wait_memory(sk, m) {
                        return step;
                    }
                }
                Fill::NoMem if sk.tp().write_queues_empty() => {
                    return Step::Done(self.tcp_send_error(sk, m, Errno::ENOBUFS));
                }
                Fill::NoMem => {
                    if let Some(step) = self.tcp_send_wait_memory(sk, m) {
                        return step;
                    }
                }
                Fill::Fault => {
                    self.tcp_push(sk, m.flags, Nagle::Option);
                    return Step::Done(self.tcp_send_error(sk, m, Errno::EFAULT));
                }
            }
        }
    }

    fn tcp_send_wait_connect(&mut self, sk: &mut Sock, m: &mut MsgState) -> Step<Result<usize, Errno>> {
        if sk.err.is_some() {
            return Step::Done(self.tcp_send_error(sk, m, Errno::EPIPE));
        }
        if let Some(e) = m.give_up {
            return Step::Done(Err(e));
        }
        if m.nonblock {
            return Step::Done(Err(Errno::EAGAIN));
        }
        Step::Wait(PollEvents::OUT | PollEvents::ERR | PollEvents::HUP)
    }

    /// What was queued counts; else the socket's error, else `other` (Linux `sk_stream_error`).
    fn tcp_send_error(&mut self, sk: &mut Sock, m: &MsgState, other: Errno) -> Result<usize, Errno> {
        if m.copied > 0 {
            return Ok(m.copied);
        }
        Err(if other == Errno::EPIPE { sk.err.take().unwrap_or(other) } else { other })
    }

    /// The buffer is full: sends what there is, then waits. `None`: there is room after all.
    fn tcp_send_wait_memory(&mut self, sk: &mut Sock, m: &mut MsgState) -> Option<Step<Result<usize, Errno>>> {
        sk.nospace = true;
        if m.copied > 0 {
            self.tcp_push(sk, m.flags & !msg::MORE, Nagle::Push);
        }
        if self.tcp_flush_backlog(sk) {
            return None;
        }
        if let Some(e) = m.give_up.or(m.nonblock.then_some(Errno::EAGAIN)) {
            sk.nospace = true;
            return Some(Step::Done(self.tcp_send_error(sk, m, e)));
        }
        sk.nospace = true;
        Some(Step::Wait(PollEvents::OUT | PollEvents::ERR | PollEvents::HUP))
    }

    /// Processes what arrived while the socket was owned (Linux `__sk_flush_backlog`). True if there was something.
    pub(crate) fn tcp_flush_backlog(&mut self, sk: &mut Sock) -> bool {
        let mut any = false;
        while let Some(skb) = sk.backlog.pop_front() {
            any = true;
            sk.backlog_len = sk.backlog_len.saturating_sub(skb.truesize);
            self.tcp_v4_do_rcv(sk, skb);
        }
        if any {
            sk.backlog_len = 0;
        }
        any
    }

    /// Copies one run into the last packet of the queue, or a new one.
    fn tcp_fill(&mut self, sk: &mut Sock, m: &mut MsgState, goal: u32) -> Fill {
        let want = u32::try_from(m.iter.count()).unwrap_or(u32::MAX);
        if !self.tcp_page_frag_refill(want) {
            return Fill::NoMem;
        }
        let page = self.tcp.page_frag.as_ref().expect("refilled above");
        let open = sk.tp().write_queue.back().is_some_and(|t| t.len() < goal && t.tcp.flags & flag::FIN == 0 && t.can_append(page));
        if !open {
            if !sk.tcp_memory_free(self.tcp.sysctl.notsent_lowat) {
                return Fill::NoSpace;
            }
            self.tcp_slow_start_after_idle_check(sk);
            let skb = self.alloc_skb();
            tp!(sk).queue_tail(skb, flag::ACK, self.now);
            sk.wmem_queued += TcpSock::skb_truesize(0);
        } else if sk.wmem_queued >= sk.sndbuf {
            // Room in the packet is no room in the buffer (Linux `sk_wmem_schedule` limits likewise).
            return Fill::NoSpace;
        }
        let page = self.tcp.page_frag.as_mut().expect("refilled above");
        let tail = tp!(sk).write_queue.back_mut().expect("made above");
        let n = want.min(page.len).min(goal - tail.len());
        let dst = page.buf.slice(page.off, n);
        if copy_iter_to_slice(&mut *self.mem, m.task, &mut m.iter, dst).is_err() {
            self.tcp_remove_empty_tail(sk);
            return Fill::Fault;
        }
        let frag = Frag { buf: page.buf.clone(), off: page.off, len: n };
        page.off += n;
        page.len -= n;
        let appended = tail.append(frag);
        debug_assert!(appended, "room was checked");
        tail.tcp.end_seq += n;
        tail.truesize += n;
        tail.gso = None;
        let id = tail.id;
        sk.wmem_queued += n;
        tp!(sk).write_seq += n;
        m.copied += n as usize;
        self.copies.inc(CopyKind::UserToSkb);
        self.copies.add(CopyKind::UserToSkbBytes, u64::from(n));
        self.trace(Point::CopyFromUser, id, [u64::from(sk.id.0), u64::from(n), 0, 0]);
        Fill::More
    }

    fn tcp_remove_empty_tail(&mut self, sk: &mut Sock) {
        let tp = tp!(sk);
        if tp.write_queue.back().is_some_and(|t| t.tcp.seq == t.tcp.end_seq)
            && let Some(skb) = tp.write_queue.pop_back()
        {
            sk.wmem_queued -= skb.truesize.min(sk.wmem_queued);
            self.skbs.put(skb);
            if tp.write_queue.is_empty() {
                tp.chrono_stop(ChronoType::Busy, self.now);
            }
        }
    }

    /// A buffer with room, shared by all sockets of the host (Linux `sk_page_frag_refill`).
    fn tcp_page_frag_refill(&mut self, want: u32) -> bool {
        if self.tcp.page_frag.as_ref().is_some_and(|p| p.len >= want.clamp(1, FRAG_MIN)) {
            return true;
        }
        let buf = CLASSES.iter().rev().find_map(|&c| self.config.pool.alloc(c));
        let Some(buf) = buf else {
            return self.tcp.page_frag.as_ref().is_some_and(|p| p.len > 0);
        };
        let len = buf.capacity();
        self.tcp.page_frag = Some(Frag { buf, off: 0, len });
        true
    }

    /// After a packet was filled: keeps the wire busy.
    fn tcp_push_progress(&mut self, sk: &mut Sock, m: &MsgState, mss: u32, goal: u32) {
        let tp = tp!(sk);
        let full = tp.write_queue.back().is_some_and(|t| t.len() >= goal);
        if !full || m.iter.count() == 0 || m.flags & msg::OOB != 0 {
            return;
        }
        if tp.forced_push() {
            tp.mark_push();
            self.tcp_push_pending_frames(sk, Nagle::Push);
        } else if tp.write_queue.len() == 1 {
            self.tcp_write_xmit(sk, mss, Nagle::Push, Burst::One);
        }
    }

    fn tcp_push_end(&mut self, sk: &mut Sock, m: &MsgState) {
        if m.copied == 0 {
            return;
        }
        if m.flags & msg::OOB != 0 {
            let tp = tp!(sk);
            tp.snd_up = Some(tp.write_seq);
        }
        self.tcp_push(sk, m.flags, Nagle::Option);
    }

    /// The call ends here: PSH, and send unless more is announced (Linux `tcp_push`).
    fn tcp_push(&mut self, sk: &mut Sock, flags: u32, nagle: Nagle) {
        let tp = tp!(sk);
        if tp.write_queue.is_empty() {
            return;
        }
        let more = flags & msg::MORE != 0;
        if !more || tp.forced_push() {
            tp.mark_push();
        }
        self.tcp_push_pending_frames(sk, if more { Nagle::Cork } else { nagle });
    }
}

impl TcpSock {
    /// Half the peer's window is queued since the last PSH (Linux `forced_push`).
    fn forced_push(&self) -> bool {
        self.write_seq.after(self.pushed_seq + (self.max_window / 2).max(TCP_MSS_DEFAULT))
    }

    fn mark_push(&mut self) {
        if let Some(tail) = self.write_queue.back_mut() {
            tail.tcp.flags |= flag::PSH;
        }
        self.pushed_seq = self.write_seq;
    }
}

impl SkBuff {
    /// A piece of this buffer fits; one fragment stays free for the header.
    fn can_append(&self, page: &Frag) -> bool {
        self.frag_room() > 1 || self.frags().last().is_some_and(|l| l.buf.offset() == page.buf.offset() && l.off + l.len == page.off)
    }
}
