//! The back end: nicd's side of vhost-user.

use super::channel::Notifier;
use super::moderation::{self, Moderation};
use super::state::{NetConfig, VringState, memory_table};
use super::wire::{BackError, Message, Read, Reader, reply};
use crate::doorbell::Doorbell;
use crate::packed::{DeviceQueue, Features, MemoryMap, RingError, VringBase};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::FrontendReq as Req;

/// Front ends that may wait to be accepted.
const BACKLOG: i32 = 4;

/// Makes listeners.
#[derive(Debug)]
pub struct BackEnd;

impl BackEnd {
    /// Listens at `path` (mode 0600), taking the place of a socket left there by a dead process.
    /// The socket is removed when the listener drops.
    ///
    /// # Errors
    /// What `bind` and the like answer.
    pub fn listen(path: &Path) -> io::Result<Listener> {
        if let Err(e) = std::fs::remove_file(path)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        // The file gets the socket's mode when `bind` makes it: nobody else can connect in between.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Listener { socket: socket.into(), path: path.to_owned() })
    }
}

/// A listening socket; never waits.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// The next front end, if one waits.
    ///
    /// # Errors
    /// What `accept` answers.
    pub fn accept(&self, config: NetConfig) -> io::Result<Option<Connection>> {
        match self.socket.accept() {
            Ok((socket, _)) => Ok(Some(Connection::new(socket, config)?)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A ring that may run.
#[derive(Debug)]
pub struct Vring {
    /// Even: receive (device to driver); odd: transmit; pair `index / 2`.
    pub index: u16,
    /// The device's side, standing at the front end's base.
    pub queue: DeviceQueue,
    /// Rung by the driver; `None`: the device has to poll.
    pub kick: Option<Doorbell>,
    /// To ring; `None`: the driver polls.
    pub call: Option<Doorbell>,
    /// To ring when the ring stops with an error.
    pub err: Option<Doorbell>,
    /// Whether frames may pass now.
    pub enabled: bool,
}

/// What the front end changed.
#[derive(Debug)]
pub enum BackEvent {
    /// Negotiated features.
    Features(Features),
    /// New memory; no ring runs at this moment.
    MemoryTable(Arc<MemoryMap>),
    /// A ring runs from now on.
    VringReady(Box<Vring>),
    /// A running ring's call descriptor was replaced.
    VringCall {
        /// The ring.
        index: u16,
        /// To ring from now on; `None`: the driver polls.
        call: Option<Doorbell>,
    },
    /// Frames may, or may not, pass through the ring.
    VringEnable {
        /// The ring.
        index: u16,
        /// Whether they may.
        on: bool,
    },
}

/// The device that a connection drives.
pub trait BackDevice {
    /// Something changed.
    ///
    /// # Errors
    /// What the device cannot accept; the connection ends with it.
    fn on_event(&mut self, event: BackEvent) -> Result<(), RingError>;

    /// The running ring `index` stops: publish what is finished, forget the queue and
    /// its doorbells, and tell where it stood ([`DeviceQueue::base`]).
    fn stop_vring(&mut self, index: u16) -> VringBase;

    /// The front end moderates interrupts ([`Connection::set_moderation`]); false if the device does not.
    fn set_moderation(&mut self, _moderation: Moderation) -> bool {
        false
    }
}

/// What [`Connection::handle`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// No complete request; wait until the socket is readable.
    Idle,
    /// One request; there may be more.
    Request,
    /// The front end hung up: drop the connection and all its rings.
    Closed,
}

/// A connected front end.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    reader: Reader,
    config: NetConfig,
    features: Features,
    protocol: Protocol,
    map: Option<Arc<MemoryMap>>,
    vrings: Vec<VringState>,
    unsealed: bool,
    notifier: Option<Notifier>,
    moderation: Option<Moderation>,
}

const PROTOCOL: Protocol =
    Protocol::MQ.union(Protocol::REPLY_ACK).union(Protocol::CONFIG).union(Protocol::RESET_DEVICE).union(Protocol::BACKEND_REQ);
/// Largest configuration space that is read.
const CONFIG_SPACE: u32 = 256;

impl Connection {
    /// A front end at the other end of `socket`.
    ///
    /// # Errors
    /// If the socket cannot be made non-blocking.
    pub fn new(socket: UnixStream, config: NetConfig) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let vrings = (0..config.vrings()).map(|_| VringState::default()).collect();
        let (features, protocol) = (Features::empty(), Protocol::empty());
        Ok(Self {
            socket,
            reader: Reader::new(),
            config,
            features,
            protocol,
            map: None,
            vrings,
            unsealed: false,
            notifier: None,
            moderation: None,
        })
    }

    /// Takes memory that is not sealed against shrinking, too: a front end that shrinks it
    /// ends this process.
    pub fn permit_unsealed(&mut self) {
        self.unsealed = true;
    }

    /// The link went up or down, or the MTU changed: shown to the next who asks. A front end that has made a
    /// back-end channel is told of the change (`VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`).
    pub fn set_config(&mut self, mtu: u16, link_up: bool) {
        let old = (self.config.mtu, self.config.link_up);
        (self.config.mtu, self.config.link_up) = (mtu, link_up);
        if old != (mtu, link_up) {
            self.notify();
        }
    }

    /// How the device moderates interrupts, for front ends that know of it; told as [`Self::set_config`] tells.
    pub fn set_moderation(&mut self, moderation: Moderation) {
        if self.moderation.replace(moderation) != Some(moderation) {
            self.notify();
        }
    }

    fn notify(&mut self) {
        if self.has(Protocol::CONFIG) {
            self.notifier = self.notifier.take().filter(Notifier::config_changed);
        }
    }

    /// Serves at most one request. Never waits.
    ///
    /// # Errors
    /// What the front end did wrong, or the socket's failure: drop the connection and
    /// all its rings.
    pub fn handle(&mut self, device: &mut impl BackDevice) -> Result<Handled, BackError> {
        let message = match self.reader.read(&self.socket)? {
            Read::Message(message) => message,
            Read::WouldBlock => return Ok(Handled::Idle),
            Read::HungUp => return Ok(Handled::Closed),
        };
        let (request, need_reply) = (message.request, message.need_reply);
        let result = self.serve(message, device);
        // Requests with an answer of their own are answered in `serve`.
        let answered = matches!(result, Ok(true));
        if need_reply && !answered && self.protocol.contains(Protocol::REPLY_ACK) {
            let status = u64::from(result.is_err());
            let sent = reply(&self.socket, request, &status.to_ne_bytes());
            result?;
            sent?;
        } else {
            result?;
        }
        Ok(Handled::Request)
    }

    /// True if it answered.
    fn serve(&mut self, m: Message, device: &mut impl BackDevice) -> Result<bool, BackError> {
        let with_fds = matches!(
            m.request,
            Req::SET_MEM_TABLE | Req::SET_VRING_KICK | Req::SET_VRING_CALL | Req::SET_VRING_ERR | Req::SET_BACKEND_REQ_FD
        );
        if !with_fds {
            m.expect_fds(0)?;
        }
        match m.request {
            Req::GET_FEATURES => return self.answer_u64(&m, self.config.offered().bits()),
            Req::GET_PROTOCOL_FEATURES => return self.answer_u64(&m, PROTOCOL.bits()),
            // Rings, not pairs: front ends that expect pairs read it as an upper bound.
            Req::GET_QUEUE_NUM if self.has(Protocol::MQ) => return self.answer_u64(&m, self.vrings.len() as u64),
            Req::GET_CONFIG if self.has(Protocol::CONFIG) => return self.get_config(&m),
            Req::GET_VRING_BASE => return self.get_vring_base(&m, device),
            Req::SET_CONFIG if self.has(Protocol::CONFIG) => self.write_config(&m, device)?,
            Req::SET_OWNER => m.fixed::<0>().map(|_| ())?,
            Req::RESET_OWNER => self.reset(&m, device)?,
            Req::RESET_DEVICE if self.has(Protocol::RESET_DEVICE) => self.reset(&m, device)?,
            Req::SET_FEATURES => self.set_features(&m, device)?,
            Req::SET_PROTOCOL_FEATURES => self.set_protocol_features(&m)?,
            Req::SET_BACKEND_REQ_FD if self.has(Protocol::BACKEND_REQ) => self.set_notifier(m)?,
            Req::SET_MEM_TABLE => self.set_mem_table(m, device)?,
            Req::SET_VRING_NUM => self.set_vring_num(&m, device)?,
            Req::SET_VRING_BASE => self.set_vring_base(&m)?,
            Req::SET_VRING_ADDR => self.set_vring_addr(&m, device)?,
            Req::SET_VRING_KICK | Req::SET_VRING_CALL | Req::SET_VRING_ERR => self.set_vring_fd(m, device)?,
            // QEMU switches rings on before it has acknowledged any feature.
            Req::SET_VRING_ENABLE if self.protocol_features() => self.set_vring_enable(&m, device)?,
            other => return Err(BackError::UnknownRequest(other.into())),
        }
        Ok(false)
    }

    /// Acknowledged, or chosen by a front end that has yet to acknowledge anything.
    fn protocol_features(&self) -> bool {
        self.features.contains(Features::PROTOCOL_FEATURES) || !self.protocol.is_empty()
    }

    fn has(&self, feature: Protocol) -> bool {
        self.protocol.contains(feature)
    }

    fn answer_u64(&self, m: &Message, value: u64) -> Result<bool, BackError> {
        m.fixed::<0>()?;
        reply(&self.socket, m.request, &value.to_ne_bytes())?;
        Ok(true)
    }

    fn get_config(&self, m: &Message) -> Result<bool, BackError> {
        if m.body.len() < 12 {
            return Err(m.bad_size());
        }
        let (offset, size) = (m.u32_at(0), m.u32_at(4));
        if size as usize != m.body.len() - 12 {
            return Err(m.bad_size());
        }
        // A size of 0 is the answer to a range that does not exist.
        let inside = offset.checked_add(size).is_some_and(|end| end <= CONFIG_SPACE);
        let size = if inside { size } else { 0 };
        let mut body = m.body[..12].to_vec();
        body[4..8].copy_from_slice(&size.to_ne_bytes());
        let moderation = self.moderation.map(Moderation::emit).unwrap_or_default();
        body.extend(self.config.read(offset as usize, size as usize).iter().zip(offset as usize..).map(|(&octet, at)| {
            let behind = at.checked_sub(moderation::AT).and_then(|at| moderation.get(at));
            behind.copied().unwrap_or(octet)
        }));
        reply(&self.socket, m.request, &body)?;
        Ok(true)
    }

    fn write_config(&mut self, m: &Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        if m.body.len() != 12 + moderation::FIELDS_LEN {
            return Err(m.bad_size());
        }
        let (offset, size) = (m.u32_at(0), m.u32_at(4));
        let fields = offset as usize == moderation::FIELDS_AT && size as usize == moderation::FIELDS_LEN;
        let wanted = Moderation::parse_fields(&m.body[12..]).filter(|_| fields && self.moderation.is_some());
        match wanted.filter(|&wanted| device.set_moderation(wanted)) {
            Some(wanted) => self.moderation = Some(wanted),
            None => return Err(BackError::Value { request: m.request, value: offset.into() }),
        }
        Ok(())
    }

    fn get_vring_base(&mut self, m: &Message, device: &mut impl BackDevice) -> Result<bool, BackError> {
        let (index, _) = m.pair()?;
        let at = self.check_index(index.into())?;
        self.stop(at, device);
        let vring = &mut self.vrings[at];
        (vring.kicked, vring.kick, vring.call, vring.err) = (false, None, None, None);
        let mut body = index.to_ne_bytes().to_vec();
        body.extend(vring.base.to_bits().to_ne_bytes());
        reply(&self.socket, m.request, &body)?;
        Ok(true)
    }

    fn reset(&mut self, m: &Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        m.fixed::<0>()?;
        for at in 0..self.vrings.len() {
            self.stop(at, device);
            self.vrings[at] = VringState::default();
        }
        Ok(())
    }

    fn set_features(&mut self, m: &Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        let bits = m.u64()?;
        let features = Features::from_bits(bits).filter(|f| self.config.offered().contains(*f)).ok_or(BackError::Features(bits))?;
        if features != self.features && self.vrings.iter().any(|v| v.running) {
            return Err(BackError::Features(bits));
        }
        self.features = features;
        if !features.contains(Features::PROTOCOL_FEATURES) {
            self.vrings.iter_mut().for_each(|v| v.enabled = true);
        }
        device.on_event(BackEvent::Features(features))?;
        self.start_ready(device)
    }

    fn set_protocol_features(&mut self, m: &Message) -> Result<(), BackError> {
        let bits = m.u64()?;
        self.protocol = Protocol::from_bits(bits).filter(|p| PROTOCOL.contains(*p)).ok_or(BackError::Features(bits))?;
        Ok(())
    }

    fn set_notifier(&mut self, m: Message) -> Result<(), BackError> {
        m.fixed::<0>()?;
        m.expect_fds(1)?;
        self.notifier = m.fds.into_iter().next().map(Notifier::new);
        Ok(())
    }

    fn set_mem_table(&mut self, m: Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        let map = Arc::new(memory_table(m, self.unsealed)?);
        for at in 0..self.vrings.len() {
            self.stop(at, device);
        }
        self.map = Some(map.clone());
        device.on_event(BackEvent::MemoryTable(map))?;
        self.start_ready(device)
    }

    fn set_vring_num(&mut self, m: &Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        let (index, num) = m.pair()?;
        let at = self.check_index(index.into())?;
        let size = u16::try_from(num).ok().filter(|n| (1..=crate::packed::Layout::MAX_SIZE).contains(n));
        let size = size.ok_or(RingError::QueueSize(num))?;
        self.stop(at, device);
        self.vrings[at].size = Some(size);
        self.start(at, device)
    }

    fn set_vring_base(&mut self, m: &Message) -> Result<(), BackError> {
        let (index, bits) = m.pair()?;
        let at = self.check_index(index.into())?;
        if self.vrings[at].running {
            return Err(BackError::Value { request: m.request, value: bits.into() });
        }
        self.vrings[at].base = VringBase::from_bits(bits);
        Ok(())
    }

    fn set_vring_addr(&mut self, m: &Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        m.fixed::<40>()?;
        let at = self.check_index(m.u32_at(0).into())?;
        let flags = m.u32_at(4);
        if flags != 0 {
            // The only flag asks for a log of dirty pages, which is not offered.
            return Err(BackError::Value { request: m.request, value: flags.into() });
        }
        self.stop(at, device);
        // On the wire: descriptors, used (device event), available (driver event), log.
        self.vrings[at].addrs = Some([m.u64_at(8), m.u64_at(24), m.u64_at(16)]);
        self.start(at, device)
    }

    fn set_vring_fd(&mut self, m: Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        const INDEX: u64 = 0xff;
        const NO_FD: u64 = 1 << 8;
        let (request, value) = (m.request, m.u64()?);
        if value & !(INDEX | NO_FD) != 0 {
            return Err(BackError::Value { request, value });
        }
        let at = self.check_index(value & INDEX)?;
        m.expect_fds(usize::from(value & NO_FD == 0))?;
        let fd = m.fds.into_iter().next();
        let bell = fd.map(Doorbell::from_fd).transpose().map_err(|source| BackError::Doorbell { request, source })?;
        match request {
            Req::SET_VRING_KICK => {
                self.stop(at, device);
                (self.vrings[at].kick, self.vrings[at].kicked) = (bell, true);
                self.start(at, device)?;
            }
            Req::SET_VRING_CALL => {
                if self.vrings[at].running {
                    let call = clone(request, bell.as_ref())?;
                    device.on_event(BackEvent::VringCall { index: at as u16, call })?;
                }
                self.vrings[at].call = bell;
            }
            _ => self.vrings[at].err = bell,
        }
        Ok(())
    }

    fn set_vring_enable(&mut self, m: &Message, device: &mut impl BackDevice) -> Result<(), BackError> {
        let (index, value) = m.pair()?;
        let at = self.check_index(index.into())?;
        if value > 1 {
            return Err(BackError::Value { request: m.request, value: value.into() });
        }
        let on = value == 1;
        if self.vrings[at].enabled != on {
            self.vrings[at].enabled = on;
            if self.vrings[at].running {
                device.on_event(BackEvent::VringEnable { index: at as u16, on })?;
            }
        }
        Ok(())
    }

    fn check_index(&self, index: u64) -> Result<usize, BackError> {
        if index < self.vrings.len() as u64 { Ok(index as usize) } else { Err(BackError::VringIndex(index)) }
    }

    /// Stops a ring if it runs; its base is where it stood.
    fn stop(&mut self, at: usize, device: &mut impl BackDevice) {
        if std::mem::take(&mut self.vrings[at].running) {
            self.vrings[at].base = device.stop_vring(at as u16);
        }
    }

    fn start_ready(&mut self, device: &mut impl BackDevice) -> Result<(), BackError> {
        (0..self.vrings.len()).try_for_each(|at| self.start(at, device))
    }

    /// Runs a ring of which everything is known.
    fn start(&mut self, at: usize, device: &mut impl BackDevice) -> Result<(), BackError> {
        let vring = &mut self.vrings[at];
        if vring.running {
            return Ok(());
        }
        let Some(mut queue) = vring.queue(self.map.as_ref(), self.features)? else { return Ok(()) };
        if at % 2 == 1 {
            // A transmit ring: nothing to write.
            queue.expect_readable_tables();
        }
        vring.running = true;
        let ready = Vring {
            index: at as u16,
            queue,
            kick: clone(Req::SET_VRING_KICK, vring.kick.as_ref())?,
            call: clone(Req::SET_VRING_CALL, vring.call.as_ref())?,
            err: clone(Req::SET_VRING_ERR, vring.err.as_ref())?,
            enabled: vring.enabled,
        };
        Ok(device.on_event(BackEvent::VringReady(Box::new(ready)))?)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn clone(request: Req, bell: Option<&Doorbell>) -> Result<Option<Doorbell>, BackError> {
    bell.map(Doorbell::try_clone).transpose().map_err(|source| BackError::Doorbell { request, source })
}
