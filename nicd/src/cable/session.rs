//! One connection of a cable: the two arenas, the doorbells, and the regions that
//! either side lets the other read.
//!
//! States: *greeting* (our hello is sent) until the peer's hello is there, then *up*
//! until an error. A session is never mended: whatever breaks ends it, its frames
//! are lost as on a cut wire, and the next one starts with fresh memory.
//!
//! Frames leave by reference ([`Session::send_reference`]: the octets stay in the
//! driver's memory, its token comes back by [`Session::completed`]) or from the arena
//! ([`Session::send_held`]).

use super::message::{Fds, Message, receive, send};
use crate::held::{Held, Reader};
use crate::port::PREFAULT;
use arrayvec::ArrayVec;
use ringlab_device::port::{Pieces, Token, Transmit};
use ringlab_device::time::Instant;
use ringlab_ring::cable::{CableError, Consumer, Entry, Fragment, MAX_FRAGMENTS, Producer, STORAGE, reached};
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::MemoryMap;
use ringlab_ring::pool::Pool;
use ringlab_ring::vnet::VnetHdr;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Octets of an arena. Sparse: it takes memory as frames lie in it, and buffers
/// are reused last-in first-out.
const ARENA: usize = STORAGE as usize + (64 << 20);
/// Octets of copied frames that may wait for a peer before [`Session::has_room`] says no.
const QUEUE_LIMIT: usize = 4 << 20;
/// Regions that a peer may announce.
const MAX_REGIONS: usize = 64;
/// Copied frames under way from which on room is looked for among them.
const REAP: usize = 32;
/// Entries under way from which on their completion is worth a wake-up of its own.
const COMPLETION_BATCH: usize = 16;
/// The same in octets of the driver's memory: senders wait for large frames to be done with.
const COMPLETION_OCTETS: usize = 32 << 10;

/// What ended a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The ring.
    #[error("{0}")]
    Ring(#[from] CableError),
    /// The socket or a descriptor that came over it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A message out of place.
    #[error("the peer broke the cable's protocol: {0}")]
    Protocol(&'static str),
}

impl SessionError {
    /// True if the peer merely went away.
    pub fn is_hangup(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(e) if matches!(e.kind(), UnexpectedEof | BrokenPipe | ConnectionReset))
    }
}

/// A connection.
pub struct Session {
    socket: OwnedFd,
    bell: Doorbell,
    tx: Producer,
    pool: Pool,
    reader: Reader,
    peer: Option<Peer>,
    announced: Vec<Announced>,
    /// Id of each region of the driver's memory map; 0: not to be named.
    ids: Vec<u32>,
    next_id: u32,
    /// Position after it, name and octets of each frame sent by reference.
    tokens: VecDeque<(u32, Token, usize)>,
    token_octets: usize,
    held: VecDeque<(u32, Held)>,
    held_octets: usize,
    /// Doorbells rung.
    pub rung: u64,
}

struct Peer {
    rx: Consumer,
    bell: Doorbell,
    regions: Vec<(u32, Region)>,
    up: bool,
}

struct Announced {
    region: Region,
    id: u32,
    acked: bool,
    /// Position after the last entry that may name it, once it is given up.
    retired: Option<u32>,
}

impl Session {
    /// Greets the peer at the other end of `socket`.
    ///
    /// # Errors
    /// When memory or doorbell cannot be made, or the peer is gone.
    pub fn greet(socket: OwnedFd) -> Result<Self, SessionError> {
        let arena = Region::memfd("ringlab-cable", ARENA)?;
        let bell = Doorbell::new()?;
        let fd = arena.fd().expect("a memfd has a file");
        send(&socket, Message::Hello { arena: arena.len() as u64 }, &[fd, bell.as_fd()])?;
        let pool = Pool::new(arena.clone(), STORAGE, ARENA - STORAGE as usize);
        Ok(Self {
            socket,
            bell,
            tx: Producer::new(arena)?,
            reader: Reader::new(pool.clone()),
            pool,
            peer: None,
            announced: Vec::new(),
            ids: Vec::new(),
            next_id: 1,
            tokens: VecDeque::new(),
            token_octets: 0,
            held: VecDeque::new(),
            held_octets: 0,
            rung: 0,
        })
    }

    /// The rendezvous socket, for epoll.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Our doorbell, for epoll.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// True if the peer has greeted.
    pub fn is_up(&self) -> bool {
        self.peer.is_some()
    }

    /// True if the peer has greeted and its port is not administratively down.
    pub fn carrier(&self) -> bool {
        self.peer.as_ref().is_some_and(|p| p.up)
    }

    /// Storage for frames that the peer can read.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Reads frames into that storage.
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// Handles all messages that wait. True if the state of the link or peer changed.
    ///
    /// # Errors
    /// What ends the session.
    pub fn on_readable(&mut self) -> Result<bool, SessionError> {
        let mut changed = false;
        while let Some((message, fds)) = receive(&self.socket)? {
            changed |= self.on_message(message, fds)?;
        }
        Ok(changed)
    }

    fn on_message(&mut self, message: Message, fds: Fds) -> Result<bool, SessionError> {
        match (message, &mut self.peer) {
            (Message::Hello { arena }, None) => {
                self.peer = Some(Peer::parse(arena, fds)?);
                Ok(true)
            }
            (Message::Hello { .. }, Some(_)) => Err(SessionError::Protocol("greeted twice")),
            (_, None) => Err(SessionError::Protocol("no greeting")),
            (Message::Region { id, len }, Some(peer)) => {
                let ok = peer.map(id, len, fds)?;
                send(&self.socket, Message::RegionAck { id, ok }, &[])?;
                Ok(false)
            }
            (Message::RegionAck { id, ok }, Some(_)) => {
                let Some(at) = self.announced.iter().position(|a| a.id == id) else {
                    return Err(SessionError::Protocol("acknowledged a region never announced"));
                };
                if ok {
                    self.announced[at].acked = true;
                } else {
                    self.announced.swap_remove(at);
                }
                Ok(true)
            }
            (Message::Unregion { id }, Some(peer)) => {
                peer.regions.retain(|(known, _)| *known != id);
                Ok(false)
            }
            (Message::Link { up }, Some(peer)) => {
                peer.up = up;
                Ok(true)
            }
        }
    }

    /// Tells the peer whether our port is administratively up.
    ///
    /// # Errors
    /// What `sendmsg` answers.
    pub fn send_link(&self, up: bool) -> Result<(), SessionError> {
        Ok(send(&self.socket, Message::Link { up }, &[])?)
    }

    /// Lets the peer read the driver's memory, as far as it is sealed against
    /// shrinking, and no other. Frames go by reference once the peer has agreed.
    ///
    /// # Errors
    /// What `sendmsg` answers.
    pub fn announce(&mut self, map: &MemoryMap) -> Result<(), SessionError> {
        if self.peer.is_none() {
            return Ok(());
        }
        let tail = self.tx.tail();
        for old in &mut self.announced {
            if !map.regions().iter().any(|r| r.region.same(&old.region)) {
                old.retired.get_or_insert(tail);
            }
        }
        for r in map.regions() {
            let known = self.announced.iter().any(|a| a.retired.is_none() && a.region.same(&r.region));
            if known || !r.region.is_sealed() || self.announced.len() >= MAX_REGIONS {
                continue;
            }
            let Some(fd) = r.region.fd() else { continue };
            let id = self.next_id;
            self.next_id = self.next_id.checked_add(1).ok_or(SessionError::Protocol("regions used up"))?;
            send(&self.socket, Message::Region { id, len: r.region.len() as u64 }, &[fd])?;
            self.announced.push(Announced { region: r.region.clone(), id, acked: false, retired: None });
        }
        self.number(map);
        Ok(())
    }

    /// Looks up the id of each region of the map.
    pub fn number(&mut self, map: &MemoryMap) {
        self.ids.clear();
        for r in map.regions() {
            let id = self.announced.iter().find(|a| a.acked && a.retired.is_none() && a.region.same(&r.region)).map_or(0, |a| a.id);
            self.ids.push(id);
        }
    }

    /// True if a frame can be sent now.
    ///
    /// # Errors
    /// What ends the session.
    pub fn has_room(&mut self) -> Result<bool, SessionError> {
        if self.held.len() >= REAP {
            let head = self.tx.head()?;
            self.reap(head);
        }
        Ok(self.held_octets < QUEUE_LIMIT && self.tx.has_room(MAX_FRAGMENTS + 1)?)
    }

    /// Sends a frame by reference, arrived at `since` if that is known; false if it cannot be named to the peer. Room was
    /// asked for.
    pub fn send_reference(&mut self, header: &VnetHdr, frame: &Transmit, since: Option<Instant>) -> bool {
        let mut fragments = ArrayVec::<Fragment, MAX_FRAGMENTS>::new();
        for piece in &frame.pieces {
            match self.ids.get(usize::from(piece.region)) {
                Some(&id) if id != 0 => fragments.push(Fragment { region: id, len: piece.len, offset: piece.offset }),
                _ => return false,
            }
        }
        let position = self.tx.push_timed(&header.emit(), since.map(|at| at.0), &fragments);
        self.tokens.push_back((position, frame.token, frame.len));
        self.token_octets += frame.len;
        true
    }

    /// Sends a frame that lies in [`Self::pool`], to arrive at `due`. Room was asked for.
    pub fn send_held(&mut self, frame: Held, due: Option<Instant>) {
        let fragments: ArrayVec<Fragment, { crate::held::MAX_PIECES }> =
            frame.pieces.iter().map(|(buf, len)| Fragment { region: 0, len: *len, offset: buf.offset() }).collect();
        let position = self.tx.push_timed(&frame.offload.to_vnet().emit(), due.map(|at| at.0), &fragments);
        self.held_octets += frame.len;
        self.held.push_back((position, frame));
    }

    /// Publishes what was sent and returns what was consumed, ringing the peer where it sleeps.
    pub fn flush(&mut self) {
        let frames = self.tx.publish();
        let Some(peer) = &mut self.peer else { return };
        let space = peer.rx.release();
        if frames || space {
            peer.bell.ring();
            self.rung += 1;
        }
    }

    /// Frees what the peer has consumed; the tokens among it go to `done`. Returns their number.
    ///
    /// # Errors
    /// What ends the session.
    pub fn completed(&mut self, mut done: impl FnMut(Token)) -> Result<usize, SessionError> {
        if self.tokens.is_empty() && self.held.is_empty() && self.announced.iter().all(|a| a.retired.is_none()) {
            return Ok(0);
        }
        let head = self.tx.head()?;
        let mut n = 0;
        while let Some((_, token, len)) = self.tokens.pop_front_if(|(position, ..)| reached(head, *position)) {
            done(token);
            self.token_octets -= len;
            n += 1;
        }
        n += self.reap(head);
        if let Some(at) = self.announced.iter().position(|a| a.retired.is_some_and(|p| reached(head, p))) {
            let gone = self.announced.swap_remove(at);
            send(&self.socket, Message::Unregion { id: gone.id }, &[])?;
        }
        Ok(n)
    }

    fn reap(&mut self, head: u32) -> usize {
        let mut n = 0;
        while let Some((_, frame)) = self.held.pop_front_if(|(position, _)| reached(head, *position)) {
            self.held_octets -= frame.len;
            n += 1;
        }
        n
    }

    /// Tokens that the peer still holds, when the session ends.
    pub fn abandon(&mut self) -> impl Iterator<Item = Token> + '_ {
        self.token_octets = 0;
        self.tokens.drain(..).map(|(_, token, _)| token)
    }

    /// Copies the next entry; false if there is none.
    ///
    /// # Errors
    /// What ends the session.
    pub fn receive(&mut self, entry: &mut Entry) -> Result<bool, SessionError> {
        let Some(peer) = &mut self.peer else { return Ok(false) };
        Ok(peer.rx.pop(entry)?)
    }

    /// Puts the entry just received back.
    pub fn put_back(&mut self, entry: &Entry) {
        if let Some(peer) = &mut self.peer {
            peer.rx.unpop(entry);
        }
    }

    /// Puts the octets that an entry names into empty `pieces`, each fragment checked against its region.
    ///
    /// # Errors
    /// What ends the session.
    pub fn pieces<'a>(&'a self, entry: &Entry, pieces: &mut Pieces<'a>) -> Result<(), SessionError> {
        let peer = self.peer.as_ref().ok_or(SessionError::Protocol("no greeting"))?;
        let mut total = 0;
        for f in &entry.fragments {
            let region = match f.region {
                0 => peer.rx.arena(),
                id => peer.regions.iter().find(|(known, _)| *known == id).map(|(_, r)| r).ok_or(CableError::UnknownRegion(id))?,
            };
            pieces.push(region.slice(f.offset, f.len as usize).map_err(CableError::from)?);
            total += u64::from(f.len);
        }
        if total == 0 || total > ringlab_device::port::MAX_FRAME as u64 {
            return Err(CableError::FrameLength(total).into());
        }
        Ok(())
    }

    /// Before sleeping: asks to be rung for frames, for space (`blocked`) and, where
    /// many frames are under way, for their completion. [`Sleep::Work`]: there is work already.
    ///
    /// # Errors
    /// What ends the session.
    pub fn sleep(&mut self, blocked: bool) -> Result<Sleep, SessionError> {
        let Some(peer) = &mut self.peer else { return Ok(Sleep::Idle) };
        if peer.rx.sleep()? {
            return Ok(Sleep::Work);
        }
        let under_way = self.tokens.len() + self.held.len();
        let half = match self.tokens.get(self.tokens.len() / 2) {
            Some((position, ..)) => *position,
            None => self.held.get(self.held.len() / 2).map_or(0, |(position, _)| *position),
        };
        let many = self.tokens.len() >= COMPLETION_BATCH || self.token_octets >= COMPLETION_OCTETS;
        let wait = under_way > 0 && (blocked || many);
        if wait && self.tx.wait_for(half)? {
            peer.rx.wake();
            return Ok(Sleep::Work);
        }
        // Nobody waits for copied frames: their buffers are found when needed.
        Ok(if !self.tokens.is_empty() && !wait { Sleep::Completions } else { Sleep::Idle })
    }

    /// After waking: no ringing is needed.
    pub fn wake(&mut self) {
        self.tx.stop_waiting();
        if let Some(peer) = &mut self.peer {
            peer.rx.wake();
        }
    }
}

/// Whether a session can sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// It has work.
    Work,
    /// It can, but should look for completions soon: nobody rings for them.
    Completions,
    /// It can.
    Idle,
}

impl Peer {
    fn parse(arena: u64, fds: Fds) -> Result<Self, SessionError> {
        let Ok([memory, bell]) = fds.into_inner() else { return Err(SessionError::Protocol("a greeting brings two descriptors")) };
        let region = map_sealed(memory, arena)?;
        Ok(Self { rx: Consumer::new(region)?, bell: Doorbell::from_fd(bell)?, regions: Vec::new(), up: true })
    }

    /// Maps a region; false if it may shrink or cannot be mapped.
    fn map(&mut self, id: u32, len: u64, fds: Fds) -> Result<bool, SessionError> {
        let mut fds = fds.into_iter();
        let (Some(fd), None) = (fds.next(), fds.next()) else { return Err(SessionError::Protocol("a region brings one descriptor")) };
        if self.regions.len() >= MAX_REGIONS || self.regions.iter().any(|(known, _)| *known == id) {
            return Err(SessionError::Protocol("too many regions, or one announced twice"));
        }
        let Ok(region) = map_sealed(fd, len) else { return Ok(false) };
        // Without it the first frames take the faults.
        if let Err(error) = region.populate_present(PREFAULT) {
            tracing::debug!(%error, "peer's memory not mapped beforehand");
        }
        self.regions.push((id, region));
        Ok(true)
    }
}

/// Maps a file that can no longer shrink: one that can would fault us later.
fn map_sealed(fd: OwnedFd, len: u64) -> io::Result<Region> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    Region::map_sealed(fd, 0, len)
}
