//! RTT and RTO (RFC 6298, with Linux's bound on the variance: `tcp_rtt_estimator`).

use crate::tcp::sock::{TCP_RTO_MAX, TCP_RTO_MIN, TcpSock};
use core::time::Duration;

impl TcpSock {
    /// Feeds one sample. Shifts: srtt × 8, mean deviation × 4.
    pub(crate) fn rtt_estimator(&mut self, rtt: Duration) {
        let sample = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4);
        let rto_min = TCP_RTO_MIN.as_micros() as u32;
        if self.rtt.srtt_us == 0 {
            // RFC 6298 §2.2: variance half the sample.
            self.rtt.srtt_us = sample << 3;
            self.rtt.mdev_us = sample << 1;
            self.rtt.rttvar_us = self.rtt.mdev_us.max(rto_min);
            self.rtt.mdev_max_us = self.rtt.rttvar_us;
            self.rtt.rtt_seq = self.snd_nxt;
            return;
        }
        let mut err = i64::from(sample) - i64::from(self.rtt.srtt_us >> 3);
        self.rtt.srtt_us = (i64::from(self.rtt.srtt_us) + err) as u32;
        if err < 0 {
            err = -err - i64::from(self.rtt.mdev_us >> 2);
            // A drop of the RTT raises the deviation only slowly.
            if err > 0 {
                err >>= 3;
            }
        } else {
            err -= i64::from(self.rtt.mdev_us >> 2);
        }
        self.rtt.mdev_us = (i64::from(self.rtt.mdev_us) + err).max(0) as u32;
        if self.rtt.mdev_us > self.rtt.mdev_max_us {
            self.rtt.mdev_max_us = self.rtt.mdev_us;
            self.rtt.rttvar_us = self.rtt.rttvar_us.max(self.rtt.mdev_max_us);
        }
        // Once a window the largest deviation may shrink.
        if self.snd_una.after(self.rtt.rtt_seq) {
            if self.rtt.mdev_max_us < self.rtt.rttvar_us {
                self.rtt.rttvar_us -= (self.rtt.rttvar_us - self.rtt.mdev_max_us) >> 2;
            }
            self.rtt.rtt_seq = self.snd_nxt;
            self.rtt.mdev_max_us = rto_min;
        }
        self.rtt.srtt_us = self.rtt.srtt_us.max(1);
    }

    /// RTO = SRTT + max(G, 4·RTTVAR) within the bounds (Linux `tcp_set_rto`).
    pub(crate) fn set_rto(&mut self) {
        let us = u64::from(self.rtt.srtt_us >> 3) + u64::from(self.rtt.rttvar_us);
        self.rto = Duration::from_micros(us).clamp(TCP_RTO_MIN, TCP_RTO_MAX);
    }

    /// Takes the samples of an ACK; true if there was one (Linux `tcp_ack_update_rtt`).
    /// `seq`: of segments sent once; `sack`: of SACKed ones; `acked`: the ACK covers new data.
    pub(crate) fn ack_update_rtt(
        &mut self,
        seq: Option<Duration>,
        sack: Option<Duration>,
        ca: Option<Duration>,
        acked: bool,
        clock: u32,
    ) -> bool {
        let mut sample = seq.or(sack);
        let mut ca = ca;
        if sample.is_none() && acked && self.rx_opt.saw_tstamp && self.rx_opt.rcv_tsecr != 0 {
            let delta = clock.wrapping_sub(self.rx_opt.rcv_tsecr);
            if delta < 1 << 22 {
                sample = Some(Duration::from_millis(u64::from(delta.max(1))));
                ca = sample;
            }
        }
        let Some(sample) = sample else { return false };
        let least = ca.unwrap_or(sample).as_micros().clamp(1, u128::from(u32::MAX - 1)) as u32;
        self.rtt.min_rtt_us = self.rtt.min_rtt_us.min(least);
        self.rtt_estimator(sample);
        self.set_rto();
        self.backoff = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::seq::SeqNum;

    #[test]
    fn first_sample_gives_three_times_the_rtt_or_the_minimum() {
        let mut tp = TcpSock::default();
        tp.rtt_estimator(Duration::from_millis(1));
        tp.set_rto();
        assert_eq!(tp.rto, Duration::from_millis(201));
        let mut tp = TcpSock::default();
        tp.rtt_estimator(Duration::from_millis(400));
        tp.set_rto();
        assert_eq!(tp.rto, Duration::from_millis(1200)); // RFC 6298 §2.2: R + 4·R/2
    }

    #[test]
    fn steady_rtt_converges_to_srtt_plus_the_minimum() {
        let mut tp = TcpSock::default();
        for i in 0..200u32 {
            tp.snd_una = SeqNum(i * 10 + 5);
            tp.snd_nxt = SeqNum(i * 10 + 10);
            tp.rtt_estimator(Duration::from_millis(100));
        }
        tp.set_rto();
        assert_eq!(tp.srtt(), Some(Duration::from_millis(100)));
        assert!(tp.rto >= Duration::from_millis(300) && tp.rto <= Duration::from_millis(303), "{:?}", tp.rto);
    }

    #[test]
    fn timestamps_give_samples_when_segments_cannot() {
        let mut tp = TcpSock::default();
        tp.rx_opt.saw_tstamp = true;
        tp.rx_opt.rcv_tsecr = 1000;
        assert!(tp.ack_update_rtt(None, None, None, true, 1030));
        assert_eq!(tp.srtt(), Some(Duration::from_millis(30)));
        assert!(!tp.ack_update_rtt(None, None, None, false, 1060));
    }
}
