//! One port: its device side joined to its wire side.
//!
//! A port is *awake* (polled, nobody rings for it) or *asleep* (its rings, doorbells
//! and deadline wake it). [`NicPort::poll`] does a bounded batch of everything and
//! says whether there was work; [`NicPort::sleep`] asks for wake-ups, and finds out
//! whether work came meanwhile.
//!
//! Receiving without buffers: the frames wait in the NIC's own memory (the cable) for
//! as long as a packet buffer of a real NIC would hold them, then they are missed.

use crate::cable::session::{Session, SessionError, Sleep};
use crate::config::PortConfig;
use crate::held::{Held, Reader};
use crate::poller::Poller;
use crate::vhost::{Changes, Vhost};
use crate::wire::{Frame, Medium, Sent, TapSide, Wire, count_copy};
use ringlab_counters::Nic;
use ringlab_device::frame::FrameView;
use ringlab_device::offload::{Offload, check};
use ringlab_device::port::{Pieces, Port, Received, Stopped, Transmit};
use ringlab_device::time::Instant;
use ringlab_device::wire::octets_of;
use ringlab_ring::cable::Entry;
use ringlab_ring::memory::Slice;
use ringlab_ring::vnet::VnetHdr;
use std::sync::Arc;

/// Frames of one source in one poll.
const BATCH: usize = 64;
/// How long received frames wait for buffers: 10 Gbit/s fill 512 KiB of packet buffer in 420 µs.
const PACKET_BUFFER_NS: u64 = 420_000;
/// How soon buffers are looked for that nobody rings for.
const BUFFERS_NS: u64 = 50_000;
/// How soon the completions of a few frames are looked for if the driver waits for them: the peer rings for many.
const COMPLETION_NS: u64 = 1_000_000;
/// And if it does not.
const LAZY_COMPLETION_NS: u64 = 1_000_000_000;
/// Octets of a driver's memory that are mapped when its rings start, not when the first frame touches them.
pub const PREFAULT: usize = 16 << 20;
/// How long before its time a frame may be handed over by the peer.
const MOST_EARLY_NS: u64 = 1_000_000;
/// How long before it was found a frame may have arrived, by what the peer says.
const MOST_LATE_NS: u64 = 100_000_000;
/// How often a driver that never rings is polled.
const NO_KICK_NS: u64 = 100_000;

/// The node's side.
pub enum Device {
    /// None: a switch port.
    None,
    /// Rings of a driver.
    Vhost(Box<Vhost>),
    /// Real Linux.
    Tap(Box<TapSide>),
}

/// A port.
pub struct NicPort {
    /// As configured last.
    pub config: PortConfig,
    /// Queues and counters.
    pub core: Port,
    /// The node's side.
    pub device: Device,
    /// The other side.
    pub wire: Wire,
    /// It is polled.
    pub awake: bool,
    /// When to wake it.
    pub deadline: Option<Instant>,
    /// Frames can pass.
    pub link_up: bool,
    /// The frame in `transmit` found no room on the wire.
    pending: bool,
    transmit: Box<Transmit>,
    /// Missing while a frame is received into it.
    entry: Option<Box<Entry>>,
    stall: Stall,
    completions: bool,
    /// The next frame from the wire was handed over before its time.
    timed: bool,
    /// A transmit queue, and when its doorbell was rung: its next frame has been on the wire since.
    rung: Option<(u16, Instant)>,
}

/// Whether received frames wait for buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stall {
    No,
    Until(Instant),
    /// They waited long enough: drop until there are buffers.
    Missing,
}

/// What became of a frame from the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// Taken, or dropped and counted.
    Yes,
    /// The driver has no buffer: keep it.
    Wait,
}

/// A frame from the wire, for the bridge. Its `view` and `offload` hold.
pub type Bridge<'b> = dyn FnMut(&mut Port, Frame<'_>) + 'b;

/// Why a port stopped for now.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Its driver broke a rule.
    #[error(transparent)]
    Ring(#[from] Stopped),
    /// Its cable's session ended.
    #[error(transparent)]
    Cable(#[from] SessionError),
}

impl NicPort {
    /// A port, awake.
    pub fn new(config: PortConfig, core: Port, device: Device, wire: Wire) -> Self {
        Self {
            config,
            core,
            device,
            wire,
            awake: true,
            deadline: None,
            link_up: false,
            pending: false,
            transmit: Box::new(Transmit::empty()),
            entry: Some(Box::default()),
            stall: Stall::No,
            completions: false,
            timed: false,
            rung: None,
        }
    }

    /// The driver rang for a ring, at which nobody has looked since `asleep`.
    pub fn on_kick(&mut self, now: Instant, asleep: Option<Instant>, ring: u16) {
        self.core.counters.inc(if ring.is_multiple_of(2) { Nic::RxKicks } else { Nic::TxKicks });
        if let Device::Vhost(vhost) = &self.device
            && let Some(rung) = vhost.drain_kick(ring, now)
            && !ring.is_multiple_of(2)
            // Frames that were rung for earlier are gone.
            && asleep.is_some_and(|since| rung >= since)
        {
            self.rung = Some((ring / 2, rung));
        }
        self.wake();
    }

    /// One bounded round of everything; true if there was work. With `bridge`, frames
    /// from the wire go there. Delayed frames are handed over up to `early` ns before their time.
    ///
    /// # Errors
    /// The first fault; work before it stands.
    pub fn poll(&mut self, now: Instant, early: u64, bridge: Option<&mut Bridge<'_>>) -> Result<bool, Fault> {
        let mut work = 0;
        let core = &mut self.core;
        if let Some(session) = self.wire.session() {
            work += session.completed(|token| core.complete(token))?;
        }
        work += self.wire.release_due(now, early, &mut self.core.counters)?;
        let sent = self.poll_device(now)?;
        if sent > 0
            && let Some(session) = self.wire.session()
        {
            // The peer need not wait until we have seen to everything else.
            session.flush();
        }
        work += sent + self.poll_wire(now, bridge)?;
        Ok(work > 0)
    }

    /// Publishes and rings what the poll, or frames from other ports, left to be.
    pub fn flush(&mut self, now: Instant) {
        let mask = self.core.flush(now);
        if let Device::Vhost(vhost) = &self.device {
            vhost.call(mask);
        }
        if let Some(session) = self.wire.session() {
            session.flush();
            let rung = std::mem::take(&mut session.rung);
            self.core.counters.add(Nic::WireDoorbells, rung);
        }
    }

    fn poll_device(&mut self, now: Instant) -> Result<usize, Fault> {
        match &mut self.device {
            Device::None => Ok(0),
            Device::Vhost(_) => self.poll_transmit(now),
            Device::Tap(side) => Ok(poll_tap_device(now, side, &mut self.wire, &mut self.core)?),
        }
    }

    fn poll_transmit(&mut self, now: Instant) -> Result<usize, Fault> {
        let mut n = 0;
        // The driver rang for the first frame, or for one behind it. Those behind it may have come later.
        let rung = self.rung.take();
        if self.pending {
            if !self.send_transmit(now, None)? {
                return Ok(0);
            }
            n += 1;
        }
        for queue in 0..self.core.rings() / 2 {
            for i in 0..BATCH {
                if !self.core.transmit_next(queue, &mut self.transmit)? {
                    break;
                }
                let since = rung.filter(|(of, _)| i == 0 && *of == queue).map(|(_, at)| at);
                if !self.send_transmit(now, since)? {
                    return Ok(n);
                }
                n += 1;
            }
        }
        Ok(n)
    }

    /// Sends the frame in `transmit`, on the wire since `since` if that is known; false if it has to wait for room.
    fn send_transmit(&mut self, now: Instant, since: Option<Instant>) -> Result<bool, Fault> {
        self.pending = false;
        let map = self.core.map().clone();
        let token = self.transmit.token;
        // The ring may have been reset meanwhile: then nothing is owed.
        let mut pieces = Pieces::new();
        if self.transmit.slices(&map, &mut pieces).is_err() {
            self.core.complete(token);
            return Ok(true);
        }
        let mut view = FrameView::empty();
        let checked = view.load(&pieces).ok().and_then(|()| check(&self.transmit.header, &view).ok());
        let Some(offload) = checked else {
            self.core.counters.inc(Nic::TxBadGso);
            self.core.complete(token);
            return Ok(true);
        };
        let frame = Frame { view: &view, offload: &offload, pieces: &pieces, since };
        let sent = self.wire.send(now, &mut self.core.counters, frame, Some(&self.transmit))?;
        match sent {
            Sent::Full => {
                self.pending = true;
                return Ok(false);
            }
            Sent::Done => self.core.complete(token),
            Sent::Kept => {}
        }
        self.core.counters.add(Nic::TxCsumOffload, u64::from(offload != Offload::None));
        Ok(true)
    }

    fn poll_wire(&mut self, now: Instant, bridge: Option<&mut Bridge<'_>>) -> Result<usize, Fault> {
        match &mut self.wire.medium {
            Medium::None => Ok(0),
            Medium::Cable(cable) => {
                let Some(mut session) = cable.take_session() else { return Ok(0) };
                let result = self.poll_cable(now, &mut session, bridge);
                if let Medium::Cable(cable) = &mut self.wire.medium {
                    cable.put_session(Some(session));
                }
                result
            }
            Medium::Tap(side) => {
                if side.readable == 0 {
                    return Ok(0);
                }
                let mut reader = std::mem::replace(side.staging.reader(), Reader::empty());
                let result = self.poll_tap_wire(now, &mut reader, bridge);
                if let Medium::Tap(side) = &mut self.wire.medium {
                    *side.staging.reader() = reader;
                }
                result
            }
        }
    }

    fn poll_cable(&mut self, now: Instant, session: &mut Session, mut bridge: Option<&mut Bridge<'_>>) -> Result<usize, Fault> {
        let mut n = 0;
        let Some(mut entry) = self.entry.take() else { return Ok(0) };
        let result = loop {
            if n == BATCH {
                break Ok(n);
            }
            match session.receive(&mut entry) {
                Ok(true) => {}
                Ok(false) => break Ok(n),
                Err(e) => break Err(e.into()),
            }
            // A time further ahead is not one that a peer hands frames over for: it gets no more of our patience.
            if entry.due.is_some_and(|due| due > now.0 && due - now.0 < MOST_EARLY_NS) {
                session.put_back(&entry);
                if !std::mem::replace(&mut self.timed, true)
                    && let Device::Vhost(vhost) = &self.device
                {
                    // The driver's host wakes up meanwhile, and finds nothing yet.
                    vhost.call(1);
                }
                break Ok(n);
            }
            let delivered = {
                let mut pieces = Pieces::new();
                match session.pieces(&entry, &mut pieces) {
                    Ok(()) => self.deliver(now, arrival(now, &entry), &VnetHdr::parse(&entry.header), &pieces, bridge.as_deref_mut()),
                    Err(e) => Err(e.into()),
                }
            };
            match delivered {
                Ok(Delivered::Yes) => {
                    n += 1;
                    self.timed = false;
                }
                Ok(Delivered::Wait) => {
                    session.put_back(&entry);
                    break Ok(n);
                }
                Err(e) => break Err(e),
            }
        };
        self.entry = Some(entry);
        result
    }

    fn poll_tap_wire(&mut self, now: Instant, reader: &mut Reader, mut bridge: Option<&mut Bridge<'_>>) -> Result<usize, Fault> {
        let mut n = 0;
        while n < BATCH {
            let Medium::Tap(side) = &mut self.wire.medium else { break };
            let Some((header, held)) = read_tap(side, reader) else { break };
            n += 1;
            count_copy(&mut self.core.counters, held.len);
            if self.deliver(now, None, &header, &held.slices(), bridge.as_deref_mut())? == Delivered::Wait {
                self.core.counters.inc(Nic::RxMissed);
            }
        }
        Ok(n)
    }

    /// Hands a frame from the wire, there since `since` if that is known, to the node or the bridge.
    fn deliver(
        &mut self,
        now: Instant,
        since: Option<Instant>,
        header: &VnetHdr,
        pieces: &[Slice<'_>],
        bridge: Option<&mut Bridge<'_>>,
    ) -> Result<Delivered, Fault> {
        let mut view = FrameView::empty();
        if view.load(pieces).is_err() {
            self.core.counters.inc(Nic::RxLengthErrors);
            return Ok(Delivered::Yes);
        }
        let Ok(offload) = check(header, &view) else {
            self.core.counters.inc(Nic::RxFrameErrors);
            return Ok(Delivered::Yes);
        };
        if !self.wire.admin_up {
            return Ok(Delivered::Yes);
        }
        let frame = Frame { view: &view, offload: &offload, pieces, since };
        let octets = octets_of(view.len(), &offload);
        if let Some(bridge) = bridge {
            self.core.counters.inc(Nic::RxPackets);
            self.core.counters.add(Nic::RxBytes, view.len() as u64);
            self.core.counters.add(Nic::WireRxBytes, octets);
            bridge(&mut self.core, frame);
            return Ok(Delivered::Yes);
        }
        let delivered = match &mut self.device {
            Device::None => Delivered::Yes,
            Device::Tap(side) => {
                self.core.counters.add(Nic::RxGsoPackets, u64::from(matches!(offload, Offload::Tso(_))));
                if side.write(&mut self.core.counters, frame) {
                    self.core.counters.inc(Nic::RxPackets);
                    self.core.counters.add(Nic::RxBytes, view.len() as u64);
                } else {
                    self.core.counters.inc(Nic::RxMissed);
                }
                Delivered::Yes
            }
            Device::Vhost(_) => self.receive(now, frame)?,
        };
        if delivered == Delivered::Yes {
            self.core.counters.add(Nic::WireRxBytes, octets);
        }
        Ok(delivered)
    }

    fn receive(&mut self, now: Instant, frame: Frame<'_>) -> Result<Delivered, Fault> {
        if self.core.receive(frame.view, frame.offload, frame.pieces)? == Received::Done {
            if self.stall != Stall::No {
                self.stall = Stall::No;
                self.core.disarm_receive();
            }
            return Ok(Delivered::Yes);
        }
        let live = self.core.is_live(2 * self.core.receive_queue(frame.view));
        match self.stall {
            Stall::No if live => {
                self.stall = Stall::Until(now.plus_nanos(PACKET_BUFFER_NS));
                self.core.arm_receive(frame.view);
                return Ok(Delivered::Wait);
            }
            Stall::Until(end) if live && now < end => return Ok(Delivered::Wait),
            _ => {
                self.stall = Stall::Missing;
                self.core.counters.inc(Nic::RxMissed);
            }
        }
        Ok(Delivered::Yes)
    }

    /// Asks for wake-ups; true if there is none to wait for: the port stays awake.
    ///
    /// # Errors
    /// The cable's fault.
    pub fn sleep(&mut self, now: Instant) -> Result<bool, Fault> {
        self.completions = false;
        let blocked = self.pending || self.wire.is_blocked();
        // A port that waits for room on the wire is not woken by more to send.
        if !blocked && self.core.arm() {
            self.core.disarm();
            return Ok(true);
        }
        let waiting = matches!(self.stall, Stall::Until(_));
        if let Some(session) = self.wire.session() {
            match session.sleep(blocked)? {
                // Frames that wait for buffers are not work.
                Sleep::Work if !waiting => {
                    self.core.disarm();
                    return Ok(true);
                }
                Sleep::Completions => self.completions = true,
                Sleep::Work | Sleep::Idle => {}
            }
        }
        let completion = if self.completions && self.core.wants_completions() { COMPLETION_NS } else { LAZY_COMPLETION_NS };
        let soon = |on: bool, ns| on.then(|| now.plus_nanos(ns));
        // The driver rings for the first new buffer, and the frame may need more.
        let stall = if let Stall::Until(end) = self.stall { Some(end.min(now.plus_nanos(BUFFERS_NS))) } else { None };
        let must_poll = matches!(&self.device, Device::Vhost(v) if v.must_poll());
        let retry = if let Medium::Cable(cable) = &self.wire.medium { cable.deadline() } else { None };
        let all =
            [self.core.deadline(), self.wire.deadline(), stall, retry, soon(self.completions, completion), soon(must_poll, NO_KICK_NS)];
        self.deadline = all.into_iter().flatten().min();
        self.awake = false;
        Ok(false)
    }

    /// Polled from now on.
    pub fn wake(&mut self) {
        if self.awake {
            return;
        }
        self.awake = true;
        self.deadline = None;
        self.core.disarm();
        if let Some(session) = self.wire.session() {
            session.wake();
        }
    }

    /// A new session, another driver, another state: looks at everything afresh.
    /// Returns true if the link changed.
    ///
    /// # Errors
    /// The cable's fault.
    pub fn on_change(&mut self, changes: Changes) -> Result<bool, Fault> {
        self.wake();
        let map = Arc::clone(self.core.map());
        if let Some(session) = self.wire.session() {
            if changes.memory {
                session.announce(&map)?;
            } else {
                session.number(&map);
            }
        }
        if changes.rings {
            self.stall = Stall::No;
            for r in self.core.map().regions() {
                // Without it the frames take the faults.
                if let Err(error) = r.region.populate_present(PREFAULT) {
                    tracing::debug!(%error, "driver's memory not mapped beforehand");
                }
            }
        }
        let up = self.wire.carrier();
        if up == self.link_up {
            return Ok(false);
        }
        self.link_up = up;
        self.core.counters.add(Nic::LinkDownEvents, u64::from(!up));
        match &mut self.device {
            Device::Vhost(vhost) => vhost.set_link(up),
            Device::Tap(side) => {
                if let Err(error) = side.tap.set_carrier(up) {
                    tracing::debug!(%error, "carrier not shown");
                }
            }
            Device::None => {}
        }
        tracing::info!(port = %self.config.name, up, "link");
        Ok(true)
    }

    /// Ends the cable's session: its frames are lost.
    pub fn close_session(&mut self, now: Instant, poller: &Poller) {
        self.wire.cut(&mut self.core.counters);
        self.timed = false;
        let core = &mut self.core;
        if let Medium::Cable(cable) = &mut self.wire.medium {
            cable.close(now, poller, |token| core.complete(token));
        }
    }
}

/// Sends what the node's TAP has, as far as the wire takes it.
/// When the frame of an entry arrived, if its peer says so and can be right.
fn arrival(now: Instant, entry: &Entry) -> Option<Instant> {
    entry.due.map(Instant).filter(|due| *due <= now && now.nanos_since(*due) <= MOST_LATE_NS)
}

fn poll_tap_device(now: Instant, side: &mut TapSide, wire: &mut Wire, core: &mut Port) -> Result<usize, SessionError> {
    let mut n = 0;
    while n < BATCH && side.readable != 0 {
        if !wire.has_room()? {
            break;
        }
        let straight = wire.carrier() && wire.session().is_some();
        let read = match wire.session() {
            Some(session) if straight => read_tap(side, session.reader()),
            _ => {
                let mut reader = std::mem::replace(side.staging.reader(), Reader::empty());
                let read = read_tap(side, &mut reader);
                *side.staging.reader() = reader;
                read
            }
        };
        let Some((header, held)) = read else { break };
        n += 1;
        core.counters.inc(Nic::TxPackets);
        core.counters.add(Nic::TxBytes, held.len as u64);
        count_copy(&mut core.counters, held.len);
        let mut view = FrameView::empty();
        let checked = view.load(&held.slices()).ok().and_then(|()| check(&header, &view).ok());
        let Some(offload) = checked else {
            core.counters.inc(Nic::TxBadGso);
            continue;
        };
        core.counters.add(Nic::TxGsoPackets, u64::from(header.is_gso()));
        let held = Held { offload, ..held };
        if straight {
            wire.send_held(now, &mut core.counters, &view, held)?;
        } else {
            let slices = held.slices();
            wire.send(now, &mut core.counters, Frame { view: &view, offload: &offload, pieces: &slices, since: None }, None)?;
        }
    }
    Ok(n)
}

/// Reads one frame from any queue that may have one.
fn read_tap(side: &mut TapSide, reader: &mut Reader) -> Option<(VnetHdr, Held)> {
    while side.readable != 0 && reader.prepare() {
        let queue = side.readable.trailing_zeros() as usize;
        match side.tap.read(queue, &reader.slices()) {
            Ok(Some((header, len))) if len > 0 => return Some((header, reader.take(Offload::None, len))),
            Ok(Some(_)) => {}
            Ok(None) => side.readable &= !(1 << queue),
            Err(error) => {
                // The interface is down: the next frame is announced when it is up.
                tracing::debug!(%error, "tap read");
                side.readable &= !(1 << queue);
            }
        }
    }
    None
}
