//! How long a connection has had something to send, and what has kept it from sending (Linux `tcp_chrono_start`,
//! `tcp_chrono_stop`; `busy`, `rwnd_limited` and `sndbuf_limited` of `ss -ti`).
//!
//! One clock runs at a time: that of the most interesting condition. Linux counts in ticks, and so does this.

use super::sock::TcpSock;
use crate::time::Instant;

/// Microseconds of a tick of Linux's clock (`CONFIG_HZ` of Debian).
pub(super) const JIFFY_US: u32 = 4000;

/// What is measured (Linux `enum tcp_chrono`): the later ones take precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ChronoType {
    /// Nothing: the queues are empty.
    #[default]
    Unspec,
    /// Data wait to be sent or acknowledged.
    Busy,
    /// The peer's window is too small for what there is to send.
    RwndLimited,
    /// All that fits the send buffer is sent, and the program has more.
    SndbufLimited,
}

/// The clocks, in ticks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chrono {
    /// Which one runs (`chrono_type`).
    running: ChronoType,
    /// Since when (`chrono_start`).
    start: u64,
    /// What each has counted before (`chrono_stat`); nobody asks for the first.
    stat: [u64; 4],
}

impl Chrono {
    fn set(&mut self, new: ChronoType, now: Instant) {
        let now = ticks(now);
        self.stat[self.running as usize] += now.saturating_sub(self.start);
        (self.running, self.start) = (new, now);
    }

    /// `tcpi_busy_time`, `tcpi_rwnd_limited`, `tcpi_sndbuf_limited`: microseconds (Linux `tcp_get_info_chrono_stats`).
    pub(super) fn info(mut self, now: Instant) -> [u64; 3] {
        self.set(self.running, now);
        let [_, busy, rwnd, sndbuf] = self.stat.map(|n| n * u64::from(JIFFY_US));
        [busy + rwnd + sndbuf, rwnd, sndbuf]
    }
}

impl TcpSock {
    /// A condition begins.
    pub(super) fn chrono_start(&mut self, what: ChronoType, now: Instant) {
        if what > self.chrono.running {
            self.chrono.set(what, now);
        }
    }

    /// A condition ends: others may last.
    pub(super) fn chrono_stop(&mut self, what: ChronoType, now: Instant) {
        if self.write_queues_empty() {
            self.chrono.set(ChronoType::Unspec, now);
        } else if what == self.chrono.running {
            self.chrono.set(ChronoType::Busy, now);
        }
    }
}

fn ticks(now: Instant) -> u64 {
    now.0 / (u64::from(JIFFY_US) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skb::SkBuff;
    use alloc::boxed::Box;

    #[test]
    fn one_clock_runs_and_the_more_interesting_one_takes_over() {
        let ms = |n: u64| Instant(n * 1_000_000);
        let mut tp = TcpSock::default();
        tp.write_queue.push_back(Box::new(SkBuff::default()));
        tp.chrono_start(ChronoType::Busy, ms(100));
        tp.chrono_start(ChronoType::RwndLimited, ms(140));
        tp.chrono_start(ChronoType::Busy, ms(160));
        tp.chrono_stop(ChronoType::SndbufLimited, ms(170));
        assert_eq!(tp.chrono.info(ms(200)), [100_000, 60_000, 0]);
        tp.chrono_stop(ChronoType::RwndLimited, ms(200));
        tp.chrono_start(ChronoType::SndbufLimited, ms(240));
        tp.write_queue.clear();
        tp.chrono_stop(ChronoType::Busy, ms(340));
        assert_eq!(tp.chrono.info(ms(1000)), [240_000, 60_000, 100_000]);
    }
}
