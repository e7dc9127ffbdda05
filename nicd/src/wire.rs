//! The wire side of a port: what carries its frames, and what that does to them.
//!
//! A frame takes one of three ways out. *By reference*, over an unimpaired cable to a
//! peer that maps the driver's memory: nothing is copied here. *Straight*, over a TAP:
//! the kernel copies. *Held*, in all other cases: the frame is copied to memory of
//! our own (cut into segments first where loss or rate work on them), waits until its
//! time has come, and then goes.

use crate::cable::Cable;
use crate::cable::session::{Session, SessionError};
use crate::held::{Held, Reader};
use crate::tap::Tap;
use ringlab_counters::{Nic, NicCounters};
use ringlab_device::frame::FrameView;
use ringlab_device::impair::{DelayLine, DropReason, Impair, Impairment, Verdict};
use ringlab_device::offload::{Offload, Segments, copy_whole};
use ringlab_device::port::Transmit;
use ringlab_device::time::Instant;
use ringlab_device::wire;
use ringlab_ring::memory::{Region, Slice};
use ringlab_ring::pool::Pool;

/// What carries the frames.
pub enum Medium {
    /// Nothing: the carrier is always missing.
    None,
    /// Shared memory with a peer.
    Cable(Box<Cable>),
    /// A TAP device.
    Tap(TapSide),
}

/// A TAP device and memory to read it into.
pub struct TapSide {
    /// The device.
    pub tap: Tap,
    /// Queues that may have frames, as a mask.
    pub readable: u16,
    /// For frames that are read, or completed for a plain device.
    pub staging: Staging,
}

/// Memory of our own for frames, made when first needed.
#[derive(Default)]
pub struct Staging {
    pool: Option<Pool>,
    reader: Option<Reader>,
}

/// Octets of a staging pool; like arenas it takes memory as frames lie in it.
const STAGING: usize = 32 << 20;

impl Staging {
    /// The pool.
    pub fn pool(&mut self) -> &Pool {
        self.pool.get_or_insert_with(|| Pool::new(Region::heap(STAGING), 0, STAGING))
    }

    /// Reads into the pool.
    pub fn reader(&mut self) -> &mut Reader {
        let pool = self.pool().clone();
        self.reader.get_or_insert_with(|| Reader::new(pool))
    }
}

/// A frame, and what was read and decided of it.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// Its headers.
    pub view: &'a FrameView,
    /// What is to be done to it.
    pub offload: &'a Offload,
    /// Its octets.
    pub pieces: &'a [Slice<'a>],
    /// When it was sent, where that is known better than by when it was found.
    pub since: Option<Instant>,
}

/// What became of a frame to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It goes by reference; its token comes back by completion.
    Kept,
    /// It was copied, written or dropped and counted: its octets are free.
    Done,
    /// There is no room: try again later.
    Full,
}

/// The wire side of a port.
pub struct Wire {
    /// What carries the frames.
    pub medium: Medium,
    /// Administratively up.
    pub admin_up: bool,
    impair: Impair,
    line: DelayLine<Held>,
    /// A frame to be sent found no room since the last look.
    full: bool,
    /// A frame whose time has come found no room.
    late: bool,
}

impl Wire {
    /// A wire of `impair`.
    pub fn new(medium: Medium, impair: Impair, admin_up: bool) -> Self {
        Self { medium, admin_up, impair, line: DelayLine::new(), full: false, late: false }
    }

    /// True if frames can pass.
    pub fn carrier(&self) -> bool {
        self.admin_up
            && match &self.medium {
                Medium::None => false,
                Medium::Cable(cable) => cable.carrier(),
                Medium::Tap(_) => true,
            }
    }

    /// The cable's session, if there is one.
    pub fn session(&mut self) -> Option<&mut Session> {
        match &mut self.medium {
            Medium::Cable(cable) => cable.session(),
            _ => None,
        }
    }

    /// True if frames leave as they are and at once.
    pub fn is_transparent(&self) -> bool {
        self.impair.is_transparent() && self.line.is_empty()
    }

    /// Changes the impairment in place.
    pub fn set_impairment(&mut self, now: Instant, params: Impairment) {
        if *self.impair.params() == params {
            return;
        }
        // Losses out of range were refused with the message.
        if let Ok(change) = self.impair.reconfigure(now, params) {
            self.line.retime(&change);
        }
    }

    /// Forgets the frames under way: the wire was cut. They lie in memory that goes with it.
    pub fn cut(&mut self, counters: &mut NicCounters) {
        counters.add(Nic::WireLost, self.line.drain().count() as u64);
    }

    /// When a frame under way is due.
    pub fn deadline(&self) -> Option<Instant> {
        if self.late { None } else { self.line.next_due() }
    }

    /// True if a frame waits for room.
    pub fn is_blocked(&self) -> bool {
        self.full || self.late
    }

    /// Sends a frame. `reference` names it where it lies in the driver's memory.
    ///
    /// # Errors
    /// What ends the cable's session.
    pub fn send(
        &mut self,
        now: Instant,
        counters: &mut NicCounters,
        frame: Frame<'_>,
        reference: Option<&Transmit>,
    ) -> Result<Sent, SessionError> {
        if !self.carrier() {
            counters.inc(Nic::TxCarrierErrors);
            return Ok(Sent::Done);
        }
        let now = frame.since.unwrap_or(now);
        if !self.is_transparent() {
            return self.send_copy(now, counters, frame);
        }
        match &mut self.medium {
            Medium::None => Ok(Sent::Done),
            Medium::Tap(side) => {
                counters.add(Nic::WireTxBytes, wire::octets_of(frame.view.len(), frame.offload));
                if !side.write(counters, frame) {
                    counters.inc(Nic::TxCarrierErrors);
                }
                Ok(Sent::Done)
            }
            Medium::Cable(cable) => {
                let Some(session) = cable.session() else { return Ok(Sent::Done) };
                if !session.has_room()? {
                    self.full = true;
                    return Ok(Sent::Full);
                }
                if let Some(transmit) = reference
                    && session.send_reference(&frame.offload.to_vnet(), transmit, frame.since)
                {
                    counters.add(Nic::WireTxBytes, wire::octets_of(frame.view.len(), frame.offload));
                    return Ok(Sent::Kept);
                }
                self.send_copy(now, counters, frame)
            }
        }
    }

    /// Sends a frame that lies in the wire's own pool already.
    ///
    /// # Errors
    /// What ends the cable's session.
    pub fn send_held(&mut self, now: Instant, counters: &mut NicCounters, view: &FrameView, held: Held) -> Result<Sent, SessionError> {
        if !self.carrier() {
            counters.inc(Nic::TxCarrierErrors);
            return Ok(Sent::Done);
        }
        if self.impair.needs_cut() && matches!(held.offload, Offload::Tso(_)) {
            let slices = held.slices();
            return self.send_copy(now, counters, Frame { view, offload: &held.offload, pieces: &slices, since: None });
        }
        self.launch(now, None, counters, held)?;
        Ok(Sent::Done)
    }

    /// True if a frame can be sent without being refused as [`Sent::Full`].
    ///
    /// # Errors
    /// What ends the cable's session.
    pub fn has_room(&mut self) -> Result<bool, SessionError> {
        if !self.is_transparent() {
            return Ok(true);
        }
        let room = match self.session() {
            Some(session) => session.has_room()?,
            None => true,
        };
        self.full = !room;
        Ok(room)
    }

    fn send_copy(&mut self, now: Instant, counters: &mut NicCounters, frame: Frame<'_>) -> Result<Sent, SessionError> {
        let Some(pool) = self.pool() else { return Ok(Sent::Done) };
        if let (Offload::Tso(tso), true) = (frame.offload, self.impair.needs_cut()) {
            let mut segments = Segments::new(*tso, frame.view, frame.pieces);
            counters.add(Nic::TxSegments, u64::from(segments.remaining()));
            while let Some(len) = segments.next_len() {
                let Some(held) = Held::alloc(&pool, Offload::None, len) else {
                    counters.add(Nic::WireOverlimit, u64::from(segments.remaining()));
                    return Ok(Sent::Done);
                };
                segments.emit(&held.slices()).expect("allocated for its length");
                count_copy(counters, len);
                self.launch(now, frame.since, counters, held)?;
            }
            return Ok(Sent::Done);
        }
        let len = frame.view.len();
        let Some(held) = Held::alloc(&pool, *frame.offload, len) else {
            if self.impair.params().rate_bps == 0 {
                self.full = true;
                return Ok(Sent::Full);
            }
            counters.inc(Nic::WireOverlimit);
            return Ok(Sent::Done);
        };
        copy_whole(frame.pieces, None, &held.slices()).expect("allocated for its length");
        count_copy(counters, len);
        self.launch(now, frame.since, counters, held)?;
        Ok(Sent::Done)
    }

    /// Puts a held frame on the wire, or on its way to it.
    fn launch(&mut self, now: Instant, since: Option<Instant>, counters: &mut NicCounters, held: Held) -> Result<(), SessionError> {
        let octets = wire::octets_of(held.len, &held.offload);
        if self.is_transparent() {
            counters.add(Nic::WireTxBytes, octets);
            return self.emit(counters, held, since);
        }
        match self.impair.admit(now, octets) {
            Verdict::Drop(DropReason::Lost) => {
                counters.add(Nic::WireTxBytes, octets);
                counters.inc(Nic::WireLost);
            }
            Verdict::Drop(DropReason::Overlimit) => counters.inc(Nic::WireOverlimit),
            Verdict::Deliver(at) => {
                counters.add(Nic::WireTxBytes, octets);
                if at <= now && self.line.is_empty() && self.emit_room()? {
                    return self.emit(counters, held, since.map(|_| at));
                }
                counters.inc(Nic::WireDelayed);
                self.line.push(at, held);
            }
        }
        Ok(())
    }

    /// Sends the frames whose time has come, over a cable also those due up to `early` ns later: the peer waits
    /// for their time. Returns their number.
    ///
    /// # Errors
    /// What ends the cable's session.
    pub fn release_due(&mut self, now: Instant, early: u64, counters: &mut NicCounters) -> Result<usize, SessionError> {
        (self.full, self.late) = (false, false);
        let mut n = 0;
        let until = if matches!(self.medium, Medium::Cable(_)) { now.plus_nanos(early) } else { now };
        while self.line.next_due().is_some_and(|at| at <= until) {
            if !self.emit_room()? {
                self.late = true;
                break;
            }
            let Some((at, held)) = self.line.pop_due(until) else { break };
            self.emit(counters, held, Some(at))?;
            n += 1;
        }
        Ok(n)
    }

    fn emit_room(&mut self) -> Result<bool, SessionError> {
        self.session().map_or(Ok(true), Session::has_room)
    }

    fn emit(&mut self, counters: &mut NicCounters, held: Held, due: Option<Instant>) -> Result<(), SessionError> {
        match &mut self.medium {
            Medium::None => {}
            Medium::Cable(cable) => {
                if let Some(session) = cable.session() {
                    session.send_held(held, due);
                }
            }
            Medium::Tap(side) => {
                let slices = held.slices();
                let mut view = FrameView::empty();
                let written = view.load(&slices).is_ok()
                    && side.write(counters, Frame { view: &view, offload: &held.offload, pieces: &slices, since: None });
                if !written {
                    counters.inc(Nic::TxCarrierErrors);
                }
            }
        }
        Ok(())
    }

    /// Where frames are held that leave by this wire.
    pub fn pool(&mut self) -> Option<Pool> {
        match &mut self.medium {
            Medium::None => None,
            Medium::Cable(cable) => cable.session().map(|s| s.pool().clone()),
            Medium::Tap(side) => Some(side.staging.pool().clone()),
        }
    }
}

/// Counts one copy made by the NIC.
pub fn count_copy(counters: &mut NicCounters, len: usize) {
    counters.inc(Nic::DmaCopies);
    counters.add(Nic::DmaBytes, len as u64);
}

impl TapSide {
    /// A device nothing of which was read.
    pub fn new(tap: Tap) -> Self {
        let all = ((1u32 << tap.queues()) - 1) as u16;
        Self { tap, readable: all, staging: Staging::default() }
    }

    /// Writes a frame, completed or cut where the device is plain; false if it was refused.
    pub fn write(&mut self, counters: &mut NicCounters, frame: Frame<'_>) -> bool {
        if self.tap.is_vnet() || *frame.offload == Offload::None {
            count_copy(counters, frame.view.len());
            return self.tap.write(0, &frame.offload.to_vnet(), frame.pieces).is_ok();
        }
        let pool = self.staging.pool();
        let whole = Offload::None.to_vnet();
        let mut put = |held: &Held| {
            count_copy(counters, held.len);
            self.tap.write(0, &whole, &held.slices()).is_ok()
        };
        match frame.offload {
            Offload::Tso(tso) => {
                let mut segments = Segments::new(*tso, frame.view, frame.pieces);
                let mut all = true;
                while let Some(len) = segments.next_len() {
                    let Some(held) = Held::alloc(pool, Offload::None, len) else { return false };
                    segments.emit(&held.slices()).expect("allocated for its length");
                    all &= put(&held);
                }
                all
            }
            Offload::Csum(csum) => {
                let Some(held) = Held::alloc(pool, Offload::None, frame.view.len()) else { return false };
                copy_whole(frame.pieces, Some(*csum), &held.slices()).expect("allocated for its length");
                put(&held)
            }
            Offload::None => unreachable!("written above"),
        }
    }
}
