//! The vhost-user back end of a port: joins a front end's rings to the port.

use crate::poller::{Poller, Token};
use ringlab_device::moderation::ModerationParams;
use ringlab_device::port::Port;
use ringlab_device::time::Instant;
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::packed::{DeviceQueue, Features, RingError, VringBase};
use ringlab_ring::vhost_user::{BackDevice, BackEnd, BackError, BackEvent, Connection, Handled, Listener, Moderation, NetConfig};
use std::io;
use std::path::Path;

/// The device side of a port.
pub struct Vhost {
    port: u16,
    listener: Listener,
    connection: Option<Connection>,
    config: NetConfig,
    /// Of a device that no driver has moderated yet.
    moderation: ModerationParams,
    rings: Vec<Bells>,
    unsealed: bool,
}

#[derive(Default)]
struct Bells {
    running: bool,
    kick: Option<Doorbell>,
    call: Option<Doorbell>,
    err: Option<Doorbell>,
}

/// What a front end did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// The driver's memory is another.
    pub memory: bool,
    /// Rings started or stopped, or the front end went.
    pub rings: bool,
}

const FEATURES: Features = Features::CSUM
    .union(Features::GUEST_CSUM)
    .union(Features::MTU)
    .union(Features::MAC)
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_ECN)
    .union(Features::HOST_TSO4)
    .union(Features::HOST_ECN)
    .union(Features::MRG_RXBUF)
    .union(Features::STATUS)
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX);

impl Vhost {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn open(
        port: u16,
        path: &Path,
        mac: [u8; 6],
        mtu: u16,
        queue_pairs: u16,
        moderation: ModerationParams,
        poller: &Poller,
    ) -> io::Result<Self> {
        ringlab_proto::server::unlink_stale(path)?;
        let listener = BackEnd::listen(path)?;
        poller.add(&listener, Token::VhostListener(port))?;
        let features = if queue_pairs > 1 { FEATURES | Features::MQ } else { FEATURES };
        let config = NetConfig { mac, mtu, queue_pairs, features, link_up: false };
        let rings = (0..2 * queue_pairs).map(|_| Bells::default()).collect();
        Ok(Self { port, listener, connection: None, config, moderation, rings, unsealed: false })
    }

    /// Takes front ends whose memory is not sealed against shrinking, too.
    pub fn permit_unsealed(&mut self) {
        self.unsealed = true;
    }

    /// A front end connects. A port has one driver: the one before it is dropped.
    pub fn on_listener(&mut self, core: &mut Port, poller: &Poller) -> Changes {
        let mut connection = match self.listener.accept(self.config) {
            Ok(Some(connection)) => connection,
            Ok(None) => return Changes::default(),
            Err(error) => {
                tracing::warn!(%error, "vhost-user accept failed");
                return Changes::default();
            }
        };
        if !ringlab_proto::server::is_allowed(&connection) {
            return Changes::default();
        }
        if self.unsealed {
            connection.permit_unsealed();
        }
        self.hang_up(core, poller);
        core.set_moderation(self.moderation);
        connection.set_moderation(as_told(self.moderation));
        if let Err(error) = poller.add(&connection, Token::VhostMessage(self.port)) {
            tracing::warn!(%error, "vhost-user connection cannot be watched");
            return Changes::default();
        }
        tracing::debug!(port = self.port, "vhost-user front end connected");
        self.connection = Some(connection);
        Changes { memory: true, rings: true }
    }

    /// Serves the requests that wait.
    pub fn on_message(&mut self, core: &mut Port, poller: &Poller) -> Changes {
        let Some(mut connection) = self.connection.take() else { return Changes::default() };
        let mut device = Device { port: self.port, core, rings: &mut self.rings, poller, changes: Changes::default() };
        loop {
            match connection.handle(&mut device) {
                Ok(Handled::Request) => {}
                Ok(Handled::Idle) => {
                    let changes = device.changes;
                    self.connection = Some(connection);
                    return changes;
                }
                Ok(Handled::Closed) => {
                    tracing::debug!(port = self.port, "vhost-user front end left");
                    break;
                }
                Err(error @ BackError::Unsealed { .. }) => {
                    tracing::warn!(port = self.port, %error, "vhost-user front end dropped: to take such memory, --port …,vhost=…,unsealed");
                    break;
                }
                Err(error) => {
                    tracing::warn!(port = self.port, %error, "vhost-user front end dropped");
                    break;
                }
            }
        }
        self.connection = Some(connection);
        self.hang_up(core, poller);
        Changes { memory: true, rings: true }
    }

    /// Drops the front end, if there is one: the device is reset.
    fn hang_up(&mut self, core: &mut Port, poller: &Poller) {
        let Some(connection) = self.connection.take() else { return };
        poller.remove(&connection);
        for ring in &mut self.rings {
            if let Some(kick) = &ring.kick {
                poller.remove(kick);
            }
            *ring = Bells::default();
        }
        core.reset();
    }

    /// The link went up or down: `VIRTIO_NET_S_LINK_UP` changes, and a driver that can be told is.
    pub fn set_link(&mut self, up: bool) {
        self.config.link_up = up;
        if let Some(connection) = &mut self.connection {
            connection.set_config(self.config.mtu, up);
        }
    }

    /// Moderates the device otherwise, whatever its driver has asked for.
    pub fn set_moderation(&mut self, core: &mut Port, moderation: ModerationParams) {
        self.moderation = moderation;
        core.set_moderation(moderation);
        if let Some(connection) = &mut self.connection {
            connection.set_moderation(as_told(moderation));
        }
    }

    /// Raises the interrupts of the rings in `mask`.
    #[inline]
    pub fn call(&self, mut mask: u32) {
        while mask != 0 {
            let ring = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            if let Some(call) = self.rings.get(ring).and_then(|r| r.call.as_ref()) {
                call.ring();
            }
        }
    }

    /// Silences a ring's doorbell. When it was rung, if the driver says so.
    #[inline]
    pub fn drain_kick(&self, ring: u16, now: Instant) -> Option<Instant> {
        let kick = self.rings.get(usize::from(ring))?.kick.as_ref()?;
        kick.drain_at(now.0).map(Instant)
    }

    /// Tells the driver that a ring is dead.
    pub fn report(&self, ring: u16) {
        if let Some(err) = self.rings.get(usize::from(ring)).and_then(|r| r.err.as_ref()) {
            err.ring();
        }
    }

    /// True if a driver that never rings wants to be polled.
    pub fn must_poll(&self) -> bool {
        self.rings.iter().any(|r| r.running && r.kick.is_none())
    }
}

fn as_told(params: ModerationParams) -> Moderation {
    Moderation { rx_usecs: params.rx_usecs, rx_frames: params.rx_frames }
}

struct Device<'a> {
    port: u16,
    core: &'a mut Port,
    rings: &'a mut [Bells],
    poller: &'a Poller,
    changes: Changes,
}

impl BackDevice for Device<'_> {
    fn on_event(&mut self, event: BackEvent) -> Result<(), RingError> {
        match event {
            BackEvent::Features(features) => self.core.set_features(features),
            BackEvent::MemoryTable(map) => {
                self.core.set_map(map);
                self.changes.memory = true;
            }
            BackEvent::VringReady(vring) => {
                let Some(ring) = self.rings.get_mut(usize::from(vring.index)) else { return Ok(()) };
                if let Some(kick) = &vring.kick
                    && let Err(error) = self.poller.add_edge(kick, Token::Kick(self.port, vring.index))
                {
                    tracing::warn!(%error, "kick cannot be watched");
                }
                *ring = Bells { running: true, kick: vring.kick, call: vring.call, err: vring.err };
                self.core.attach(vring.index, vring.queue);
                self.core.enable(vring.index, vring.enabled);
                self.changes.rings = true;
            }
            BackEvent::VringCall { index, call } => {
                if let Some(ring) = self.rings.get_mut(usize::from(index)) {
                    ring.call = call;
                }
            }
            BackEvent::VringEnable { index, on } => {
                self.core.enable(index, on);
                self.changes.rings = true;
            }
        }
        Ok(())
    }

    fn stop_vring(&mut self, index: u16) -> VringBase {
        if let Some(ring) = self.rings.get_mut(usize::from(index)) {
            if let Some(kick) = &ring.kick {
                self.poller.remove(kick);
            }
            *ring = Bells::default();
        }
        self.changes.rings = true;
        self.core.detach(index).map_or(VringBase::START, |queue: DeviceQueue| queue.base())
    }

    fn set_moderation(&mut self, moderation: Moderation) -> bool {
        self.core.set_moderation(ModerationParams { rx_usecs: moderation.rx_usecs, rx_frames: moderation.rx_frames });
        true
    }
}
