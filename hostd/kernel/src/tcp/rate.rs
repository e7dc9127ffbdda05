//! Delivery rate samples (draft-cheng-iccrg-delivery-rate-estimation; Linux `tcp_rate.c`).
//!
//! No algorithm here uses them yet; `TCP_INFO` shows them, and one that paces finds them.

use super::header::flag;
use super::sock::TcpSock;
use crate::skb::TcpCb;
use crate::time::Instant;
use core::time::Duration;

/// Counts of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rate {
    /// Segments delivered.
    pub delivered: u32,
    /// When the last was.
    pub delivered_at: Instant,
    /// When the first segment of the running send interval was sent.
    pub first_sent_at: Instant,
    /// `delivered` up to which samples are limited by the program; `None`: by the network.
    pub app_limited: Option<u32>,
    /// Last sample: segments and interval.
    pub last: Option<(u32, Duration)>,
    /// It was limited by the program; true before there is one.
    pub last_app_limited: bool,
    /// Segments marked lost in all.
    pub lost: u32,
}

/// One ACK's sample.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateSample {
    /// `delivered` when the newest segment that this ACK delivered was sent.
    pub prior_delivered: u32,
    /// When the one before it was delivered; `None`: the ACK delivered nothing.
    pub prior_at: Option<Instant>,
    /// Send interval.
    pub interval: Duration,
    /// Segments delivered since `prior_at`.
    pub delivered: u32,
    /// Segments newly delivered by this ACK.
    pub acked_sacked: u32,
    /// Segments newly marked lost.
    pub losses: u32,
    /// Limited by the program.
    pub app_limited: bool,
}

impl TcpSock {
    /// Stamps a segment that is being sent (Linux `tcp_rate_skb_sent`).
    pub(crate) fn rate_skb_sent(&mut self, cb: &mut TcpCb, now: Instant) {
        if self.packets_out == 0 {
            self.rate.first_sent_at = now;
            self.rate.delivered_at = now;
        }
        cb.sent_at = now;
        cb.first_sent_at = self.rate.first_sent_at;
        cb.delivered_at = self.rate.delivered_at;
        cb.delivered = self.rate.delivered;
        cb.app_limited = self.rate.app_limited.is_some();
    }

    /// A segment was acknowledged or SACKed (Linux `tcp_rate_skb_delivered`).
    pub(crate) fn rate_skb_delivered(&mut self, cb: &TcpCb, rs: &mut RateSample) {
        if cb.flags & flag::SYN != 0 {
            return; // Linux stamps segments only once there is something to measure against
        }
        let newest = rs.prior_at.is_none() || cb.delivered.wrapping_sub(rs.prior_delivered) as i32 >= 0;
        if newest {
            rs.prior_delivered = cb.delivered;
            rs.prior_at = Some(cb.delivered_at);
            rs.app_limited = cb.app_limited;
            rs.interval = cb.sent_at.since(cb.first_sent_at);
            self.rate.first_sent_at = cb.sent_at;
        }
    }

    /// Completes the sample of an ACK (Linux `tcp_rate_gen`).
    pub(crate) fn rate_gen(&mut self, rs: &mut RateSample, now: Instant) {
        if self.rate.app_limited.is_some_and(|end| self.rate.delivered.wrapping_sub(end) as i32 > 0) {
            self.rate.app_limited = None;
        }
        if rs.acked_sacked > 0 {
            self.rate.delivered_at = now;
        }
        let Some(prior) = rs.prior_at else { return };
        rs.delivered = self.rate.delivered.wrapping_sub(rs.prior_delivered);
        rs.interval = rs.interval.max(now.since(prior));
        // Faster than any round trip was: an ACK of what had been lost and sent again.
        if rs.interval.is_zero() || rs.interval.as_micros() < u128::from(self.rtt.min_rtt_us) && self.rtt.min_rtt_us != u32::MAX {
            return;
        }
        // What the program limited says something only if it is faster still.
        let faster =
            |(n, interval): (u32, Duration)| u128::from(rs.delivered) * interval.as_nanos() >= u128::from(n) * rs.interval.as_nanos();
        if !rs.app_limited || self.rate.last.is_none_or(faster) {
            self.rate.last = Some((rs.delivered, rs.interval));
            self.rate.last_app_limited = rs.app_limited;
        }
    }

    /// The program has not given enough to fill the window (Linux `tcp_rate_check_app_limited`).
    pub(crate) fn rate_check_app_limited(&mut self) {
        if self.write_seq - self.snd_nxt < self.mss_cache && self.in_flight() < self.cwnd.cwnd && self.lost_out <= self.retrans_out {
            self.rate.app_limited = Some((self.rate.delivered.wrapping_add(self.in_flight())).max(1));
        }
    }
}
