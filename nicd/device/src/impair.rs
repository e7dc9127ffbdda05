//! What a direction of a link does to frames: rate, loss, delay.
//!
//! Stages, in the order in which a frame meets them:
//!
//! 1. *rate*: the frame waits until everything before it has been serialised, and
//!    is then serialised ([`crate::wire::Pacer`]). If more octets wait than
//!    `limit_octets`, it is dropped (`Overlimit`), as a full queue drops its tail.
//! 2. *loss*: the frame, having used its time on the wire, is lost with probability
//!    `loss` (`Lost`).
//! 3. *delay*: propagation. The frame is released `delay` after its last bit left,
//!    and never before a frame admitted earlier.
//!
//! [`Impair`] only decides; frames in flight lie in a [`DelayLine`] of the caller's.
//!
//! Random draws: one 64-bit number per frame that reaches stage 2 while `loss` is
//! above 0, none otherwise. Same seed, parameters and admissions: same verdicts. A
//! later stage that draws (jitter, duplicate, corrupt) has a generator of its own,
//! seeded by [`stream_seed`], so that turning it on does not change who is lost.
//!
//! Loss and rate act on frames of the wire: while [`Impair::needs_cut`], whoever
//! transmits cuts GSO frames first ([`crate::offload::Segments`]) and admits each
//! segment. With delay only, a frame is admitted and released whole.
//!
//! To come, a file each: *Gilbert-Elliott* replaces the Bernoulli draw of stage 2
//! (an enum of loss models in `impair/loss.rs`); *jitter* adds to the delay of stage
//! 3 and, with *reorder*, lifts its "never before"; [`DelayLine`] already sorts;
//! *duplicate* makes a verdict of two releases; *corrupt* a flag on the release,
//! which the receiving port finds by the FCS ([`crate::wire::fcs_holds`]).

use crate::time::Instant;
use crate::wire::Pacer;
use alloc::collections::VecDeque;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Octets that may wait by default, where 100 ms of the rate are less.
pub const MIN_LIMIT: u64 = 1 << 20;
/// The fraction of a second that may wait by default.
const LIMIT_PER_SECOND: u64 = 10;

/// Parameters of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Impairment {
    /// Propagation delay in nanoseconds.
    pub delay_ns: u64,
    /// Bits per second, wire overhead included; 0: not limited.
    pub rate_bps: u64,
    /// Probability that a frame is lost, 0 to 1.
    pub loss: f64,
    /// Octets that may wait for the rate; 0: [`MIN_LIMIT`] or 100 ms of it, whichever is more.
    pub limit_octets: u64,
}

/// A probability outside 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("loss is a probability from 0 to 1, not {0}")]
pub struct BadLoss(pub f64);

impl Impairment {
    /// True if frames pass as they are and at once.
    pub fn is_none(&self) -> bool {
        self.delay_ns == 0 && self.rate_bps == 0 && self.loss == 0.0
    }

    /// The limit in force, in octets.
    pub fn limit(&self) -> u64 {
        match self.limit_octets {
            0 => MIN_LIMIT.max(self.rate_bps / 8 / LIMIT_PER_SECOND),
            limit => limit,
        }
    }

    fn validate(&self) -> Result<(), BadLoss> {
        if (0.0..=1.0).contains(&self.loss) { Ok(()) } else { Err(BadLoss(self.loss)) }
    }
}

/// What happens to an admitted frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is gone.
    Drop(DropReason),
    /// It reaches the other end then.
    Deliver(Instant),
}

/// Why the wire dropped a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DropReason {
    /// Lost on the way (`wire_lost`).
    #[error("lost on the wire")]
    Lost,
    /// Too much waits for the rate already (`wire_overlimits`).
    #[error("queue before the wire full")]
    Overlimit,
}

/// One direction of a link.
#[derive(Debug, Clone)]
pub struct Impair {
    params: Impairment,
    limit: u64,
    pacer: Pacer,
    loss: Bernoulli,
    /// Latest release given; none is given before it.
    last: Instant,
    /// What is released until then had left the queue at an earlier change.
    flying: Instant,
}

impl Impair {
    /// An idle wire.
    ///
    /// # Errors
    /// [`BadLoss`].
    pub fn new(params: Impairment, seed: u64) -> Result<Self, BadLoss> {
        params.validate()?;
        let loss = Bernoulli::new(params.loss, stream_seed(seed, Stream::Loss));
        let pacer = Pacer::new(params.rate_bps);
        Ok(Self { params, limit: params.limit(), pacer, loss, last: Instant(0), flying: Instant(0) })
    }

    /// The parameters in force.
    pub fn params(&self) -> &Impairment {
        &self.params
    }

    /// True if frames pass as they are and at once: the caller may go round all this.
    #[inline]
    pub fn is_transparent(&self) -> bool {
        self.params.is_none()
    }

    /// True if GSO frames must be cut, and each segment admitted.
    #[inline]
    pub fn needs_cut(&self) -> bool {
        self.params.rate_bps != 0 || self.params.loss > 0.0
    }

    /// Octets that wait for the rate at `now`.
    pub fn backlog(&self, now: Instant) -> u64 {
        self.pacer.backlog(now)
    }

    /// Decides on one frame of `wire_octets` octet times ([`crate::wire::octets_of`]).
    pub fn admit(&mut self, now: Instant, wire_octets: u64) -> Verdict {
        if self.params.rate_bps != 0 {
            let waiting = self.pacer.backlog(now);
            // A frame on an idle wire goes, however small the limit.
            if waiting > 0 && waiting.saturating_add(wire_octets) > self.limit {
                return Verdict::Drop(DropReason::Overlimit);
            }
        }
        let sent = self.pacer.send(now, wire_octets);
        if self.loss.draw() {
            return Verdict::Drop(DropReason::Lost);
        }
        self.last = self.last.max(sent.plus_nanos(self.params.delay_ns));
        Verdict::Deliver(self.last)
    }

    /// Changes the parameters in place. Frames that still wait for the rate leave at
    /// the new one and with the new delay: pass the result to [`DelayLine::retime`].
    /// Frames in flight arrive when they would have. Order is kept.
    ///
    /// # Errors
    /// [`BadLoss`], with everything as it was.
    pub fn reconfigure(&mut self, now: Instant, params: Impairment) -> Result<Retime, BadLoss> {
        params.validate()?;
        self.flying = self.flying.max(now.plus_nanos(self.params.delay_ns));
        let retime = Retime { now, flying: self.flying, from: self.params, to: params };
        self.last = retime.apply(self.last);
        self.pacer.set_rate(now, params.rate_bps);
        self.loss.set_probability(params.loss);
        (self.limit, self.params) = (params.limit(), params);
        Ok(retime)
    }
}

/// A change of parameters, as it bears on frames under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retime {
    now: Instant,
    flying: Instant,
    from: Impairment,
    to: Impairment,
}

impl Retime {
    /// The new release time of what was to be released at `release`. Monotonic.
    pub fn apply(&self, release: Instant) -> Instant {
        if release <= self.flying || self.from.rate_bps == 0 {
            return release;
        }
        let sent = Instant(release.0.saturating_sub(self.from.delay_ns));
        let sent = Pacer::stretch(sent, self.now, self.from.rate_bps, self.to.rate_bps);
        sent.plus_nanos(self.to.delay_ns).max(self.flying)
    }
}

/// Frames under way, by release time; those of equal time in the order they came.
#[derive(Debug, Clone)]
pub struct DelayLine<T> {
    frames: VecDeque<(Instant, T)>,
}

impl<T> DelayLine<T> {
    /// An empty line.
    pub const fn new() -> Self {
        Self { frames: VecDeque::new() }
    }

    /// Adds a frame that is released at `at`. Constant time while times do not decrease.
    pub fn push(&mut self, at: Instant, frame: T) {
        if self.frames.back().is_none_or(|(last, _)| *last <= at) {
            self.frames.push_back((at, frame));
            return;
        }
        let place = self.frames.partition_point(|(t, _)| *t <= at);
        self.frames.insert(place, (at, frame));
    }

    /// The next frame whose time has come, with that time.
    #[inline]
    pub fn pop_due(&mut self, now: Instant) -> Option<(Instant, T)> {
        self.frames.pop_front_if(|(at, _)| *at <= now)
    }

    /// When the next frame is due; `None` if none is under way.
    #[inline]
    pub fn next_due(&self) -> Option<Instant> {
        self.frames.front().map(|(at, _)| *at)
    }

    /// The next frame, due or not.
    pub fn front(&self) -> Option<&T> {
        self.frames.front().map(|(_, frame)| frame)
    }

    /// Frames under way.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True if none is under way.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Applies a change of parameters to the frames under way.
    pub fn retime(&mut self, change: &Retime) {
        for (at, _) in &mut self.frames {
            *at = change.apply(*at);
        }
    }

    /// Takes all frames, due or not, in order (the link went down).
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.frames.drain(..).map(|(_, frame)| frame)
    }
}

impl<T> Default for DelayLine<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a generator is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Stage 2.
    Loss = 1,
}

/// The seed of one purpose's generator, from the seed of the direction (SplitMix64's finaliser).
pub fn stream_seed(seed: u64, stream: Stream) -> u64 {
    let mut z = seed.wrapping_add((stream as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Independent loss: each frame with the same probability.
#[derive(Debug, Clone)]
struct Bernoulli {
    rng: Pcg64Mcg,
    /// A draw below it is a loss; `None`: probability 0, no draw.
    threshold: Option<u128>,
}

impl Bernoulli {
    fn new(probability: f64, seed: u64) -> Self {
        Self { rng: Pcg64Mcg::seed_from_u64(seed), threshold: Self::threshold(probability) }
    }

    fn set_probability(&mut self, probability: f64) {
        self.threshold = Self::threshold(probability);
    }

    /// Probability in units of 2^-64; a `u128`, since 1 is 2^64 of them.
    fn threshold(probability: f64) -> Option<u128> {
        const ONE: f64 = 18_446_744_073_709_551_616.0; // 2^64
        (probability > 0.0).then_some((probability * ONE) as u128)
    }

    fn draw(&mut self) -> bool {
        self.threshold.is_some_and(|t| u128::from(self.rng.next_u64()) < t)
    }
}

#[cfg(test)]
mod tests;
