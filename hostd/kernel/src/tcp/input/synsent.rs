//! Segments in SYN_SENT (RFC 9293 §3.10.7.3; Linux `tcp_rcv_synsent_state_process`).

use super::ack::AckFlags;
use super::process::Refused;
use crate::Kernel;
use crate::skb::SkBuff;
use crate::sock::Sock;
use crate::syscall::signal::Band;
use crate::tcp::header::{Options, TSTAMP_ALIGNED, flag};
use crate::tcp::sock::{WriteTimer, tp};
use crate::tcp::state::State;
use alloc::boxed::Box;
use core::time::Duration;
use ringlab_counters::{DropReason, Mib};

/// Least time of a timer (Linux `TCP_TIMEOUT_MIN`, two ticks of 1 ms).
const TCP_TIMEOUT_MIN: Duration = Duration::from_millis(2);

impl Kernel {
    /// Takes a segment in SYN_SENT.
    ///
    /// # Errors
    /// The segment, if it is to be answered with a RST, and why.
    pub(crate) fn tcp_rcv_synsent_state_process(&mut self, sk: &mut Sock, skb: Box<SkBuff>, opts: &Options) -> Result<(), Refused> {
        let cb = skb.tcp;
        let tp = sk.tp();
        if cb.flags & flag::ACK != 0 && !(cb.ack_seq.after(tp.snd_una) && cb.ack_seq.at_or_before(tp.snd_nxt)) {
            let reason = if cb.ack_seq.after(tp.snd_una) { DropReason::TcpAckUnsentData } else { DropReason::TcpOldAck };
            // An old connection's answer: our RST removes it, and the SYN need not wait a whole second.
            if tp.retransmits == 0 {
                self.tcp_reset_xmit_timer(sk, WriteTimer::Retrans, TCP_TIMEOUT_MIN);
            }
            return Err((skb, reason));
        }
        if cb.flags & flag::ACK != 0 && self.tcp_synack_echo_is_wrong(sk, opts) {
            self.mib.inc(Mib::PAWSActive);
            return Err((skb, DropReason::TcpRfc7323Paws));
        }
        if cb.flags & flag::RST != 0 {
            if cb.flags & flag::ACK != 0 {
                self.tcp_reset(sk);
            }
            self.kfree_skb(skb, DropReason::TcpReset);
            return Ok(());
        }
        if cb.flags & flag::SYN == 0 {
            self.kfree_skb(skb, DropReason::TcpFlags);
            return Ok(());
        }
        if cb.flags & flag::ACK != 0 { self.tcp_synack_received(sk, skb, opts) } else { self.tcp_simultaneous_open(sk, skb, opts) }
    }

    /// The timestamp echoed is none of those that we sent with SYNs (RFC 7323 §3.2).
    fn tcp_synack_echo_is_wrong(&self, sk: &Sock, opts: &Options) -> bool {
        let tp = sk.tp();
        let Some((_, echo)) = opts.ts.filter(|&(_, echo)| self.tcp.sysctl.timestamps && echo != 0) else { return false };
        let (first, last) = (tp.tsval(tp.rate.first_sent_at), tp.tsval(self.now));
        last.wrapping_sub(first) < echo.wrapping_sub(first)
    }

    fn tcp_offered(&self) -> (bool, bool, bool) {
        let s = &self.tcp.sysctl;
        (s.timestamps, s.sack, s.window_scaling)
    }

    fn tcp_synack_received(&mut self, sk: &mut Sock, skb: Box<SkBuff>, opts: &Options) -> Result<(), Refused> {
        let now = self.now;
        let cb = skb.tcp;
        let offered = self.tcp_offered();
        let ecn = self.tcp.sysctl.ecn == 1;
        let tp = tp!(sk);
        tp.snd_wl1 = cb.seq;
        tp.take_syn_options(opts, offered, cb.seq, now);
        tp.ecn.ok = ecn && cb.flags & (flag::ECE | flag::CWR) == flag::ECE;
        // The ACK was checked above: it acknowledges the SYN.
        let _ = self.tcp_ack(sk, &skb, opts, AckFlags::SLOWPATH);
        let tp = tp!(sk);
        tp.snd_wnd = u32::from(cb.window);
        tp.max_window = tp.max_window.max(tp.snd_wnd);
        if tp.rx_opt.tstamp_ok {
            tp.advmss -= TSTAMP_ALIGNED;
        }
        (tp.lsndtime, tp.ack.lrcvtime) = (now, now);
        let pmtu = tp.pmtu_cookie;
        self.tcp_sync_mss(sk, pmtu);
        self.tcp_init_transfer(sk);
        self.tcp_set_state(sk, State::Established);
        tp!(sk).fast_path_check();
        if !sk.dead {
            self.sk_state_change(sk);
            self.sk_wake_async(sk, Band::Out);
        }
        // A FIN or data may ride on the SYN-ACK.
        let mut skb = skb;
        if cb.end_seq - cb.seq > 1 {
            skb.pull(u32::from(cb.hdr_len)).expect("header was checked");
            skb.tcp.seq += 1;
            self.tcp_data_queue(sk, skb);
        } else {
            self.consume_skb(skb);
        }
        self.tcp_send_ack(sk);
        self.tcp_data_snd_check(sk);
        Ok(())
    }

    /// Both ends sent a SYN (RFC 9293 §3.5, figure 7).
    fn tcp_simultaneous_open(&mut self, sk: &mut Sock, skb: Box<SkBuff>, opts: &Options) -> Result<(), Refused> {
        let now = self.now;
        let cb = skb.tcp;
        let offered = self.tcp_offered();
        self.tcp_set_state(sk, State::SynRecv);
        let tp = tp!(sk);
        tp.take_syn_options(opts, offered, cb.seq, now);
        tp.snd_wnd = u32::from(cb.window);
        tp.snd_wl1 = cb.seq;
        tp.max_window = tp.snd_wnd;
        let pmtu = tp.pmtu_cookie;
        self.tcp_sync_mss(sk, pmtu);
        tp!(sk).initialize_rcv_mss();
        self.tcp_send_synack(sk);
        self.mib.add(Mib::TCPSynRetrans, 0);
        self.consume_skb(skb);
        Ok(())
    }
}
