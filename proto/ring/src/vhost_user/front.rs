//! The front end: hostd's side of vhost-user, over the `vhost` crate's client.

use super::channel::Notices;
use super::moderation::{self, Moderation};
use super::state::NET_CONFIG_LEN;
use crate::doorbell::Doorbell;
use crate::memory::Region;
use crate::packed::{Features, Layout, VringBase};
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Longest wait for answers to a request. It may be made by a thread that has other things to do; a device on a busy machine has its time.
pub const LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for answers when a device is new.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Octets of the stack of a thread that only waits.
const STACK: usize = 64 << 10;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// Nobody listens at the path, or the connection broke.
    #[error("vhost-user socket: {0}")]
    Socket(#[from] io::Error),
    /// The device refused, or answered nonsense.
    #[error("vhost-user request: {0}")]
    Vhost(#[from] vhost::Error),
    /// The device offers too little.
    #[error("device offers features {0:#x}: packed rings, virtio 1 and protocol features are needed")]
    Features(u64),
    /// More rings than the device has, or an odd number of them.
    #[error("{wanted} rings, of {max} that the device has")]
    Rings {
        /// Asked for.
        wanted: usize,
        /// The device's.
        max: usize,
    },
    /// The device asked for something that was not negotiated.
    #[error("device makes request {0}, which was not negotiated")]
    Notice(u32),
    /// A heap region cannot be shared.
    #[error("the region has no file descriptor to share")]
    NotShared,
}

/// `virtio_net_config` as the device told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Ethernet address; `None` if not told.
    pub mac: Option<[u8; 6]>,
    /// MTU of the link; `None` if not told.
    pub mtu: Option<u16>,
    /// State of the link.
    pub link_up: bool,
    /// Pairs of queues, at least 1.
    pub queue_pairs: u16,
    /// How it moderates interrupts; `None` if it does not tell.
    pub moderation: Option<Moderation>,
}

/// The doorbells of one ring.
#[derive(Debug)]
pub struct VringBells {
    /// To ring when the device wants to know of new chains.
    pub kick: Doorbell,
    /// Rung by the device when used chains wait.
    pub call: Doorbell,
    /// Rung by the device when the ring broke a rule and is dead.
    pub err: Doorbell,
}

/// A connected device. Requests wait for their answer, for [`LIMIT`] at most: a device that takes longer is lost. Its death
/// ends the wait at once.
pub struct FrontEnd {
    vhost: Frontend,
    /// The same socket, to watch for the hang-up.
    socket: OwnedFd,
    /// Where the device says that its configuration has changed, if it can.
    notices: Option<Notices>,
    features: Features,
    config: DeviceConfig,
}

impl FrontEnd {
    /// Connects to the device at `path` and negotiates: of `wanted`, what it offers.
    /// One attempt; `ConnectionRefused` and `NotFound` mean that it is not there yet. The device has [`PATIENCE`] to answer; where
    /// too many wait for it to accept them, this waits too.
    ///
    /// # Errors
    /// [`FrontError`].
    pub fn connect(path: &Path, wanted: Features) -> Result<Self, FrontError> {
        Self::negotiate(UnixStream::connect(path)?, wanted)
    }

    /// As [`FrontEnd::connect`], over a connected socket.
    ///
    /// # Errors
    /// [`FrontError`].
    pub fn negotiate(socket: UnixStream, wanted: Features) -> Result<Self, FrontError> {
        let watch = socket.as_fd().try_clone_to_owned()?;
        let _limit = Limit::set(&watch, PATIENCE)?;
        // The limit on ring indices comes from the configuration space: what
        // GET_QUEUE_NUM counts differs between back ends.
        let mut vhost = Frontend::from_stream(socket, 256);
        vhost.set_owner()?;
        let offered = vhost.get_features()?;
        let needed = Features::VERSION_1 | Features::RING_PACKED | Features::PROTOCOL_FEATURES;
        let features = Features::from_bits_truncate(offered) & (wanted | needed);
        if !features.contains(needed) {
            return Err(FrontError::Features(offered));
        }
        let protocol = vhost.get_protocol_features()?;
        // The channel is for changes of the configuration, and of no use without one.
        let notified = protocol.contains(Protocol::CONFIG | Protocol::BACKEND_REQ);
        let channel = if notified { Protocol::BACKEND_REQ } else { Protocol::empty() };
        vhost.set_protocol_features(protocol & (Protocol::MQ | Protocol::CONFIG | Protocol::REPLY_ACK | channel))?;
        if protocol.contains(Protocol::REPLY_ACK) {
            vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        vhost.set_features(features.bits())?;
        // Before the configuration is read: no change after that goes unnoticed.
        let notices = if notified {
            let (notices, device) = Notices::pair()?;
            vhost.set_backend_request_fd(&device)?;
            Some(notices)
        } else {
            None
        };
        let config = if protocol.contains(Protocol::CONFIG) {
            Self::read_config(&mut vhost, features)?
        } else {
            DeviceConfig { mac: None, mtu: None, link_up: true, queue_pairs: 1, moderation: None }
        };
        Ok(Self { vhost, socket: watch, notices, features, config })
    }

    fn read_config(vhost: &mut Frontend, features: Features) -> Result<DeviceConfig, FrontError> {
        let ask = [0u8; NET_CONFIG_LEN];
        let (_, space) = vhost.get_config(0, NET_CONFIG_LEN as u32, VhostUserConfigFlags::WRITABLE, &ask)?;
        let le = |i: usize| u16::from_le_bytes([space[i], space[i + 1]]);
        let has = |f| features.contains(f);
        let ask = [0u8; moderation::LEN];
        // A space that ends before is no error: its answer is empty.
        let behind = vhost.get_config(moderation::AT as u32, moderation::LEN as u32, VhostUserConfigFlags::WRITABLE, &ask);
        let mac = space[..6].try_into().expect("six octets");
        Ok(DeviceConfig {
            mac: has(Features::MAC).then_some(mac),
            mtu: has(Features::MTU).then(|| le(10)),
            link_up: !has(Features::STATUS) || le(6) & 1 != 0,
            queue_pairs: if has(Features::MQ) { le(8).clamp(1, 128) } else { 1 },
            moderation: behind.ok().and_then(|(_, b)| Moderation::parse(&b)),
        })
    }

    /// Negotiated features: what both queues' constructors take.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The device's configuration, read when connecting.
    pub fn config(&self) -> DeviceConfig {
        self.config
    }

    /// Moderates the device's interrupts. Only if its configuration tells how it does so now.
    ///
    /// # Errors
    /// [`FrontError`].
    pub fn set_moderation(&mut self, wanted: Moderation) -> Result<(), FrontError> {
        let _limit = Limit::set(&self.socket, LIMIT)?;
        let fields = &wanted.emit()[moderation::FIELDS_AT - moderation::AT..];
        self.vhost.set_config(moderation::FIELDS_AT as u32, VhostUserConfigFlags::WRITABLE, fields)?;
        self.config.moderation = Some(wanted);
        Ok(())
    }

    /// Reads the configuration again (the link may have changed).
    ///
    /// # Errors
    /// [`FrontError`].
    pub fn refresh_config(&mut self) -> Result<DeviceConfig, FrontError> {
        let _limit = Limit::set(&self.socket, LIMIT)?;
        self.config = Self::read_config(&mut self.vhost, self.features)?;
        Ok(self.config)
    }

    /// Readable when the configuration has changed: see [`FrontEnd::take_change`]. `None` if the device cannot tell.
    pub fn notices(&self) -> Option<BorrowedFd<'_>> {
        self.notices.as_ref().map(AsFd::as_fd)
    }

    /// The configuration as it is now, if the device has said since the last call that it changed.
    ///
    /// # Errors
    /// [`FrontError`]; the connection is then of no more use.
    pub fn take_change(&mut self) -> Result<Option<DeviceConfig>, FrontError> {
        let Some(notices) = &mut self.notices else { return Ok(None) };
        if notices.take()? { self.refresh_config().map(Some) } else { Ok(None) }
    }

    /// Shares `region` (guest physical addresses are offsets in it) and starts the rings
    /// of `layouts`: receive and transmit of pair 0, of pair 1 … Their words must be
    /// clear ([`crate::packed::DriverQueue::new`] does it). The first `enabled` pairs are
    /// enabled; [`FrontEnd::enable`] switches.
    ///
    /// # Errors
    /// [`FrontError`]; the connection is then of no more use.
    pub fn start(&mut self, region: &Region, layouts: &[Layout], enabled: u16) -> Result<Vec<VringBells>, FrontError> {
        let max = usize::from(self.config.queue_pairs) * 2;
        if layouts.is_empty() || !layouts.len().is_multiple_of(2) || layouts.len() > max {
            return Err(FrontError::Rings { wanted: layouts.len(), max });
        }
        let limit = Limit::set(&self.socket, LIMIT)?;
        let base = region.base().as_ptr().addr() as u64;
        let table = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: region.len() as u64,
            userspace_addr: base,
            mmap_offset: 0,
            mmap_handle: region.fd().ok_or(FrontError::NotShared)?.as_raw_fd(),
        };
        self.vhost.set_mem_table(&[table])?;
        let bells = layouts.iter().enumerate().map(|(i, layout)| self.start_vring(i, layout, base)).collect::<Result<_, _>>()?;
        for pair in 0..enabled.min((layouts.len() / 2) as u16) {
            self.switch(2 * pair, true)?;
            self.switch(2 * pair + 1, true)?;
        }
        drop(limit);
        Ok(bells)
    }

    fn start_vring(&mut self, index: usize, layout: &Layout, base: u64) -> Result<VringBells, FrontError> {
        let bells = VringBells { kick: Doorbell::new()?, call: Doorbell::new()?, err: Doorbell::new()? };
        self.vhost.set_vring_num(index, layout.size)?;
        self.vhost.set_vring_base(index, FRESH)?;
        let addrs = VringConfigData {
            queue_max_size: Layout::MAX_SIZE,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: base + layout.desc,
            used_ring_addr: base + layout.device,
            avail_ring_addr: base + layout.driver,
            log_addr: None,
        };
        self.vhost.set_vring_addr(index, &addrs)?;
        self.vhost.set_vring_call(index, &event_fd(&bells.call)?)?;
        self.vhost.set_vring_err(index, &event_fd(&bells.err)?)?;
        self.vhost.set_vring_kick(index, &event_fd(&bells.kick)?)?;
        Ok(bells)
    }

    /// Lets frames pass through ring `index`, or not.
    ///
    /// # Errors
    /// [`FrontError`].
    pub fn enable(&mut self, index: u16, on: bool) -> Result<(), FrontError> {
        let _limit = Limit::set(&self.socket, LIMIT)?;
        self.switch(index, on)
    }

    fn switch(&mut self, index: u16, on: bool) -> Result<(), FrontError> {
        Ok(self.vhost.set_vring_enable(index.into(), on)?)
    }

    /// Stops ring `index`; where it stood.
    ///
    /// # Errors
    /// [`FrontError`].
    pub fn stop(&mut self, index: u16) -> Result<VringBase, FrontError> {
        let _limit = Limit::set(&self.socket, LIMIT)?;
        Ok(VringBase::from_bits(self.vhost.get_vring_base(index.into())?))
    }

    /// True once the device is gone. To be asked when the descriptor is readable or hung
    /// up: outside of requests the device has nothing to say.
    pub fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut fds, Some(&rustix::time::Timespec::default())).is_ok_and(|n| n > 0) && fds[0].revents().intersects(gone)
    }
}

impl AsFd for FrontEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontEnd").field("features", &self.features).field("config", &self.config).finish_non_exhaustive()
    }
}

/// Ends a wait for the device that lasts too long: the `vhost` crate's client waits without limit, and takes no notice of a socket's
/// own. Off when dropped.
struct Limit(#[expect(dead_code, reason = "its end says that the request is over")] Sender<()>);

impl Limit {
    fn set(socket: &OwnedFd, time: Duration) -> io::Result<Self> {
        let (sender, over) = channel::<()>();
        let socket = UnixStream::from(socket.try_clone()?);
        let wait = move || {
            if over.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                // Whoever waits is told that the device is gone.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        };
        std::thread::Builder::new().name("vhost-limit".into()).stack_size(STACK).spawn(wait)?;
        Ok(Self(sender))
    }
}

/// Base of a ring that was never used: index 0, wrap counter 1.
const FRESH: u16 = 1 << 15;

/// A second handle in the type that the `vhost` crate takes.
fn event_fd(bell: &Doorbell) -> io::Result<EventFd> {
    let fd = OwnedFd::from(bell.try_clone()?).into_raw_fd();
    // SAFETY: the descriptor was just released by its only owner, and is an eventfd.
    Ok(unsafe { EventFd::from_raw_fd(fd) })
}
