//! Interrupt moderation of one queue (`ethtool -C rx-usecs N rx-frames N`).
//!
//! States: idle (no frame waits for its interrupt) and holding (`pending` frames
//! wait, the first since `first`). Holding ends when `rx_frames` have come, when
//! `rx_usecs` have passed since the first, or when the driver masks the vector and
//! polls ([`Moderation::cancel`]). Whether the vector is masked is known to the
//! ring, not here: who is told [`Irq::Raise`] asks the ring before ringing.
//!
//! Deviation: `rx-usecs 0` means an interrupt at once, whatever `rx-frames`. By the
//! letter of ethtool it would mean "only after `rx-frames`", with which a lone frame
//! waits for ever; drivers of real NICs treat it as off, too.

use crate::time::Instant;

/// The two parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModerationParams {
    /// Microseconds by which the interrupt may be late; 0: off.
    pub rx_usecs: u32,
    /// Frames after which it comes at once; 0: only time counts.
    pub rx_frames: u32,
}

/// What to do about the interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irq {
    /// Raise it now, unless masked.
    Raise,
    /// Not yet: at [`Moderation::deadline`] at the latest.
    Hold,
}

/// Moderation of one queue.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moderation {
    params: ModerationParams,
    pending: u32,
    first: Instant,
}

impl Moderation {
    /// A queue with nothing pending.
    pub fn new(params: ModerationParams) -> Self {
        Self { params, pending: 0, first: Instant(0) }
    }

    /// The parameters in force.
    pub fn params(&self) -> ModerationParams {
        self.params
    }

    /// Changes them. What is pending is judged anew by the next call of `on_time`.
    pub fn set_params(&mut self, params: ModerationParams) {
        self.params = params;
    }

    /// `n` frames (0: none, no change) have been put into the ring.
    #[inline]
    pub fn on_frames(&mut self, now: Instant, n: u32) -> Irq {
        if n == 0 {
            return Irq::Hold;
        }
        if self.params.rx_usecs == 0 {
            self.pending = 0;
            return Irq::Raise;
        }
        if self.pending == 0 {
            self.first = now;
        }
        self.pending = self.pending.saturating_add(n);
        self.judge(now)
    }

    /// Time has come to `now`.
    #[inline]
    pub fn on_time(&mut self, now: Instant) -> Irq {
        if self.pending == 0 { Irq::Hold } else { self.judge(now) }
    }

    /// When to call [`Self::on_time`]; `None` if nothing is pending.
    #[inline]
    pub fn deadline(&self) -> Option<Instant> {
        (self.pending > 0).then(|| self.due())
    }

    /// Frames that wait for their interrupt.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// The driver polls the ring: what is pending needs no interrupt.
    pub fn cancel(&mut self) {
        self.pending = 0;
    }

    fn judge(&mut self, now: Instant) -> Irq {
        let full = self.params.rx_frames > 0 && self.pending >= self.params.rx_frames;
        if !full && now < self.due() {
            return Irq::Hold;
        }
        self.pending = 0;
        Irq::Raise
    }

    fn due(&self) -> Instant {
        self.first.plus_nanos(u64::from(self.params.rx_usecs) * 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;

    fn moderation(rx_usecs: u32, rx_frames: u32) -> Moderation {
        Moderation::new(ModerationParams { rx_usecs, rx_frames })
    }

    #[test]
    fn without_moderation_every_batch_raises() {
        let mut m = moderation(0, 16);
        assert_eq!(m.on_frames(Instant(0), 0), Irq::Hold);
        assert_eq!(m.on_frames(Instant(0), 1), Irq::Raise);
        assert_eq!(m.on_frames(Instant(0), 3), Irq::Raise);
        assert_eq!(m.deadline(), None);
    }

    #[test]
    fn time_runs_from_the_first_frame_not_the_last() {
        let mut m = moderation(50, 0);
        assert_eq!(m.on_frames(Instant(10), 1), Irq::Hold);
        assert_eq!(m.on_frames(Instant(10 + 40 * US), 1), Irq::Hold);
        assert_eq!(m.deadline(), Some(Instant(10 + 50 * US)));
        assert_eq!(m.on_time(Instant(9 + 50 * US)), Irq::Hold);
        assert_eq!(m.on_time(Instant(10 + 50 * US)), Irq::Raise);
        assert_eq!((m.deadline(), m.on_time(Instant(1 << 40))), (None, Irq::Hold));
    }

    #[test]
    fn enough_frames_raise_before_the_time() {
        let mut m = moderation(50, 4);
        assert_eq!(m.on_frames(Instant(0), 3), Irq::Hold);
        assert_eq!(m.on_frames(Instant(1), 1), Irq::Raise);
        assert_eq!(m.on_frames(Instant(2), 64), Irq::Raise);
        assert_eq!(m.pending(), 0);
    }

    #[test]
    fn frame_after_the_deadline_raises_though_no_timer_ran() {
        let mut m = moderation(50, 0);
        assert_eq!(m.on_frames(Instant(0), 1), Irq::Hold);
        assert_eq!(m.on_frames(Instant(51 * US), 1), Irq::Raise);
    }

    #[test]
    fn polling_driver_cancels_what_is_pending() {
        let mut m = moderation(50, 0);
        assert_eq!(m.on_frames(Instant(0), 1), Irq::Hold);
        m.cancel();
        assert_eq!(m.deadline(), None);
        assert_eq!(m.on_frames(Instant(60 * US), 1), Irq::Hold);
        assert_eq!(m.deadline(), Some(Instant(110 * US)));
    }

    #[test]
    fn new_parameters_apply_to_what_is_pending() {
        let mut m = moderation(1000, 0);
        assert_eq!(m.on_frames(Instant(0), 2), Irq::Hold);
        m.set_params(ModerationParams { rx_usecs: 10, rx_frames: 0 });
        assert_eq!(m.deadline(), Some(Instant(10 * US)));
        assert_eq!(m.on_time(Instant(10 * US)), Irq::Raise);
    }
}
