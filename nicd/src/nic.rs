//! The NIC hardware of a node: all its ports, and the bridge between them.

use crate::cable::Cable;
use crate::config::{DeviceConfig, ImpairmentConfig, NicConfig, PortConfig, TapConfig, WireConfig};
use crate::control::CommandError;
use crate::poller::{Poller, Token};
use crate::port::{Device, Fault, NicPort};
use crate::tap::{Tap, TapSetup};
use crate::vhost::{Changes, Vhost};
use crate::wire::{Frame, Medium, Sent, TapSide, Wire};
use ringlab_counters::Nic as Count;
use ringlab_device::impair::{Impair, Impairment};
use ringlab_device::moderation::ModerationParams;
use ringlab_device::port::Port;
use ringlab_device::switch::{Forward, PortId, Switch, SwitchParams};
use ringlab_device::time::Instant;
use ringlab_proto::nic as proto;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

/// The ports of a node.
pub struct Nic {
    run_dir: PathBuf,
    config: Option<NicConfig>,
    ports: Vec<Option<Box<NicPort>>>,
    bridge: Option<Switch>,
    /// Ports that got frames from others in this round.
    touched: Vec<u16>,
}

impl Nic {
    /// None yet. Relative paths are taken from `run_dir`.
    pub fn new(run_dir: PathBuf) -> Self {
        Self { run_dir, config: None, ports: Vec::new(), bridge: None, touched: Vec::new() }
    }

    /// Makes, changes and removes ports until they are as configured.
    ///
    /// # Errors
    /// The first port that cannot be made; ports made before it stay.
    pub fn configure(&mut self, now: Instant, config: NicConfig, poller: &Poller) -> Result<(), CommandError> {
        for slot in &mut self.ports {
            let stays = |p: &NicPort| config.ports.iter().any(|new| new.same_hardware(&p.config));
            if slot.as_ref().is_some_and(|p| !stays(p)) {
                *slot = None;
            }
        }
        self.configure_bridge(&config);
        for new in &config.ports {
            match self.index_of(&new.name) {
                Some(at) => self.reconfigure(now, at, new, poller),
                None => self.add(&config, new, poller)?,
            }
        }
        self.config = Some(config);
        Ok(())
    }

    fn configure_bridge(&mut self, config: &NicConfig) {
        let Some(b) = config.bridge else {
            self.bridge = None;
            return;
        };
        let params = SwitchParams { ageing: b.ageing, max_entries: b.max_entries };
        match &mut self.bridge {
            Some(bridge) => bridge.set_params(params),
            None => {
                // Not the lab's seed, which anyone may know: and it decides nothing that shows.
                let word = || RandomState::new().build_hasher().finish();
                self.bridge = Some(Switch::new(0, params, [word(), word()]));
            }
        }
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.ports.iter().position(|p| p.as_ref().is_some_and(|p| p.config.name == name))
    }

    fn add(&mut self, config: &NicConfig, new: &PortConfig, poller: &Poller) -> Result<(), CommandError> {
        let at = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        if at >= usize::from(ringlab_device::switch::MAX_PORTS) {
            return Err(CommandError::Failed("too many ports".into()));
        }
        let port = self.make(at as u16, config, new, poller)?;
        if at == self.ports.len() {
            self.ports.push(None);
        }
        self.ports[at] = Some(Box::new(port));
        if let Some(bridge) = &mut self.bridge {
            while usize::from(bridge.ports()) < self.ports.len() && bridge.add_port().is_some() {}
            bridge.set_port(PortId(at as u16), false);
        }
        self.on_change(at, Changes { memory: true, rings: true }, poller);
        Ok(())
    }

    fn make(&self, at: u16, config: &NicConfig, new: &PortConfig, poller: &Poller) -> Result<NicPort, CommandError> {
        let failed =
            |what: &str, path: &Path, e: std::io::Error| CommandError::Failed(format!("port {}: {what} {}: {e}", new.name, path.display()));
        let device = match &new.device {
            None => Device::None,
            Some(DeviceConfig::Vhost { socket, unsealed }) => {
                let path = self.run_dir.join(socket);
                let vhost = Vhost::open(at, &path, new.mac, new.mtu, new.queue_pairs, moderation(new), poller);
                let mut vhost = vhost.map_err(|e| failed("vhost-user socket", &path, e))?;
                if *unsealed {
                    vhost.permit_unsealed();
                }
                Device::Vhost(Box::new(vhost))
            }
            Some(DeviceConfig::Tap(tap)) => {
                let setup = TapSetup { mac: Some(new.mac), mtu: new.mtu };
                let side = open_tap(tap, setup, poller, |queue| Token::TapDevice(at, queue))?;
                // As a NIC without a cable; `on_change` shows the carrier when it comes.
                side.tap.set_carrier(false).map_err(|e| CommandError::Failed(format!("tap {}: carrier: {e}", tap.name)))?;
                Device::Tap(Box::new(side))
            }
        };
        let medium = match &new.wire {
            None => Medium::None,
            Some(WireConfig::Cable { socket, listen }) => {
                let path = self.run_dir.join(socket);
                Medium::Cable(Box::new(Cable::open(at, &path, *listen, poller).map_err(|e| failed("cable", &path, e))?))
            }
            Some(WireConfig::Tap(tap)) => {
                let setup = TapSetup { mac: None, mtu: new.mtu };
                Medium::Tap(open_tap(tap, setup, poller, |queue| Token::TapWire(at, queue))?)
            }
        };
        let seed = direction_seed(config.seed, &config.node, &new.name);
        let impair = Impair::new(impairment(&new.impairment), seed).map_err(|e| CommandError::Failed(e.to_string()))?;
        let core = Port::new(new.queue_pairs, new.mtu, moderation(new));
        Ok(NicPort::new(new.clone(), core, device, Wire::new(medium, impair, !new.link_down)))
    }

    fn reconfigure(&mut self, now: Instant, at: usize, new: &PortConfig, poller: &Poller) {
        let Some(port) = &mut self.ports[at] else { return };
        // What the driver has asked for since holds until this asks for something else.
        if moderation(new) != moderation(&port.config) {
            match &mut port.device {
                Device::Vhost(vhost) => vhost.set_moderation(&mut port.core, moderation(new)),
                Device::Tap(_) | Device::None => port.core.set_moderation(moderation(new)),
            }
        }
        port.wire.set_impairment(now, impairment(&new.impairment));
        port.config = new.clone();
        self.set_admin(at, !new.link_down, poller);
    }

    /// Changes a link in place.
    ///
    /// # Errors
    /// [`CommandError::UnknownPort`].
    pub fn set_link(
        &mut self,
        now: Instant,
        name: &str,
        up: Option<bool>,
        change: Option<ImpairmentConfig>,
        poller: &Poller,
    ) -> Result<(), CommandError> {
        let at = self.index_of(name).ok_or_else(|| CommandError::UnknownPort(name.into()))?;
        let Some(port) = &mut self.ports[at] else { return Ok(()) };
        if let Some(change) = change {
            port.config.impairment = change;
            port.wire.set_impairment(now, impairment(&change));
            port.wake();
        }
        if let Some(up) = up {
            port.config.link_down = !up;
            self.set_admin(at, up, poller);
        }
        Ok(())
    }

    fn set_admin(&mut self, at: usize, up: bool, poller: &Poller) {
        let Some(port) = &mut self.ports[at] else { return };
        if port.wire.admin_up == up {
            return;
        }
        port.wire.admin_up = up;
        if !up {
            port.wire.cut(&mut port.core.counters);
        }
        let told = match port.wire.session() {
            Some(session) if session.is_up() => session.send_link(up),
            _ => Ok(()),
        };
        if let Err(error) = told {
            self.on_fault(at, Instant(0), error.into(), poller);
        }
        self.on_change(at, Changes::default(), poller);
    }

    /// One round over all ports that are awake; true if one had work. Delayed frames are handed over up to `early` ns
    /// before their time.
    pub fn poll(&mut self, now: Instant, early: u64, poller: &Poller) -> bool {
        let mut work = false;
        for at in 0..self.ports.len() {
            // Out of its place while polled, so that the bridge reaches the others.
            let Some(mut port) = self.ports[at].take_if(|p| p.awake) else { continue };
            let polled = match &mut self.bridge {
                None => port.poll(now, early, None),
                Some(bridge) => {
                    let (ports, touched) = (&mut self.ports, &mut self.touched);
                    let mut forward = |core: &mut Port, frame: Frame<'_>| bridge_frame(now, at as u16, bridge, ports, touched, core, frame);
                    port.poll(now, early, Some(&mut forward))
                }
            };
            port.flush(now);
            self.ports[at] = Some(port);
            match polled {
                Ok(had) => work |= had,
                Err(fault) => self.on_fault(at, now, fault, poller),
            }
        }
        while let Some(at) = self.touched.pop() {
            if let Some(port) = &mut self.ports[usize::from(at)] {
                port.flush(now);
                // It has to look for completions, or to wait for a delay.
                if !port.wire.is_transparent() {
                    port.wake();
                }
            }
        }
        work
    }

    /// Puts ports without work to sleep; true if all sleep.
    pub fn sleep(&mut self, now: Instant, poller: &Poller) -> bool {
        let mut all = true;
        for at in 0..self.ports.len() {
            let Some(port) = self.ports[at].as_mut().filter(|p| p.awake) else { continue };
            match port.sleep(now) {
                Ok(awake) => all &= !awake,
                Err(fault) => {
                    self.on_fault(at, now, fault, poller);
                    all = false;
                }
            }
        }
        all
    }

    /// When the next port wants to be woken.
    pub fn deadline(&self) -> Option<Instant> {
        self.ports.iter().flatten().filter_map(|p| p.deadline).min()
    }

    /// When the next delayed frame is due.
    pub fn due(&self) -> Option<Instant> {
        self.ports.iter().flatten().filter_map(|p| p.wire.deadline()).min()
    }

    /// Wakes the ports whose time has come, and those with a delayed frame due up to `early` ns later.
    pub fn on_time(&mut self, now: Instant, early: u64, poller: &Poller) {
        for at in 0..self.ports.len() {
            let Some(port) = &mut self.ports[at] else { continue };
            let due = early > 0 && port.wire.deadline().is_some_and(|d| d <= now.plus_nanos(early));
            if due || port.deadline.is_some_and(|d| d <= now) {
                port.wake();
            }
            if let Medium::Cable(cable) = &mut port.wire.medium
                && let Some(socket) = cable.on_time(now)
            {
                let started = cable.start(socket, poller);
                self.on_started(at, now, started, poller);
            }
        }
    }

    /// A descriptor has something. Since `asleep` nobody has looked at the rings.
    pub fn on_event(&mut self, now: Instant, asleep: Option<Instant>, token: Token, poller: &Poller) {
        match token {
            Token::Control | Token::Alarm => {}
            Token::Kick(at, ring) => {
                if let Some(port) = self.port(at) {
                    port.on_kick(now, asleep, ring);
                }
            }
            Token::CableBell(at) => {
                if let Some(port) = self.port(at) {
                    port.wake();
                }
            }
            Token::TapDevice(at, queue) => {
                if let Some(port) = self.port(at) {
                    if let Device::Tap(side) = &mut port.device {
                        side.readable |= 1 << queue;
                    }
                    port.wake();
                }
            }
            Token::TapWire(at, queue) => {
                if let Some(port) = self.port(at) {
                    if let Medium::Tap(side) = &mut port.wire.medium {
                        side.readable |= 1 << queue;
                    }
                    port.wake();
                }
            }
            Token::VhostListener(at) | Token::VhostMessage(at) => self.on_vhost(usize::from(at), token, poller),
            Token::CableListener(at) => self.on_cable_listener(usize::from(at), now, poller),
            Token::CableMessage(at) => self.on_cable_message(usize::from(at), now, poller),
        }
    }

    fn port(&mut self, at: u16) -> Option<&mut NicPort> {
        self.ports.get_mut(usize::from(at))?.as_deref_mut()
    }

    fn on_vhost(&mut self, at: usize, token: Token, poller: &Poller) {
        let Some(port) = self.ports.get_mut(at).and_then(Option::as_deref_mut) else { return };
        let Device::Vhost(vhost) = &mut port.device else { return };
        let changes = match token {
            Token::VhostListener(_) => vhost.on_listener(&mut port.core, poller),
            _ => vhost.on_message(&mut port.core, poller),
        };
        if changes != Changes::default() {
            self.on_change(at, changes, poller);
        }
    }

    fn on_cable_listener(&mut self, at: usize, now: Instant, poller: &Poller) {
        let Some(port) = self.ports.get_mut(at).and_then(Option::as_deref_mut) else { return };
        let Medium::Cable(cable) = &mut port.wire.medium else { return };
        let Some(socket) = cable.accept() else { return };
        port.close_session(now, poller);
        let Medium::Cable(cable) = &mut port.wire.medium else { return };
        let started = cable.start(socket, poller);
        self.on_started(at, now, started, poller);
    }

    fn on_started(&mut self, at: usize, now: Instant, started: Result<(), crate::cable::session::SessionError>, poller: &Poller) {
        match started {
            Ok(()) => self.on_change(at, Changes::default(), poller),
            Err(error) => self.on_fault(at, now, error.into(), poller),
        }
    }

    fn on_cable_message(&mut self, at: usize, now: Instant, poller: &Poller) {
        let Some(port) = self.ports.get_mut(at).and_then(Option::as_deref_mut) else { return };
        let admin_up = port.wire.admin_up;
        let Medium::Cable(cable) = &mut port.wire.medium else { return };
        let Some(session) = cable.session() else { return };
        let was_up = session.is_up();
        let mut handled = session.on_readable();
        let came_up = !was_up && session.is_up();
        if came_up && !admin_up && handled.is_ok() {
            handled = session.send_link(false).map(|()| true);
        }
        if came_up {
            cable.on_up();
        }
        match handled {
            Ok(changed) if changed => self.on_change(at, Changes { memory: came_up, rings: false }, poller),
            Ok(_) => {}
            Err(error) => self.on_fault(at, now, error.into(), poller),
        }
    }

    fn on_change(&mut self, at: usize, changes: Changes, poller: &Poller) {
        let Some(port) = &mut self.ports[at] else { return };
        match port.on_change(changes) {
            Ok(false) => {}
            Ok(true) => {
                let up = port.link_up;
                if let Some(bridge) = &mut self.bridge {
                    bridge.set_port(PortId(at as u16), up);
                }
            }
            Err(fault) => self.on_fault(at, Instant(0), fault, poller),
        }
    }

    /// A port's driver or peer broke a rule, or went: that port only is concerned.
    fn on_fault(&mut self, at: usize, now: Instant, fault: Fault, poller: &Poller) {
        let Some(port) = &mut self.ports[at] else { return };
        let name = &port.config.name;
        match fault {
            Fault::Ring(stopped) => {
                tracing::warn!(port = %name, rule = %stopped.rule, ring = stopped.ring, "the driver broke a rule: port stopped until it resets the device");
                if let Device::Vhost(vhost) = &port.device {
                    vhost.report(stopped.ring);
                }
            }
            Fault::Cable(error) => {
                if error.is_hangup() {
                    tracing::debug!(port = %name, "cable peer left");
                } else {
                    tracing::warn!(port = %name, %error, "cable closed");
                    port.core.counters.inc(Count::RxRingErrors);
                }
                port.close_session(now, poller);
                self.on_change(at, Changes::default(), poller);
            }
        }
    }

    /// All counters.
    pub fn stats(&self, now: Instant) -> proto::NicStats {
        let counter = |(name, value): (&'static str, u64)| proto::Counter { name: name.into(), value };
        let ports = self.ports.iter().flatten().map(|p| proto::PortStats {
            name: p.config.name.clone(),
            link_up: p.link_up,
            counters: p.core.counters.iter().map(counter).collect(),
        });
        let name_of =
            |id: PortId| self.ports.get(usize::from(id.0)).and_then(Option::as_ref).map_or_else(String::new, |p| p.config.name.clone());
        let fdb = self.bridge.iter().flat_map(|b| b.fdb(now)).map(|e| proto::FdbEntry {
            mac: e.mac.0.to_vec(),
            port: name_of(e.port),
            age_s: u32::try_from(e.age.as_secs()).unwrap_or(u32::MAX),
        });
        proto::NicStats { ports: ports.collect(), fdb: fdb.collect() }
    }
}

/// Forwards a frame that came in at port `at`.
fn bridge_frame(
    now: Instant,
    at: u16,
    bridge: &mut Switch,
    ports: &mut [Option<Box<NicPort>>],
    touched: &mut Vec<u16>,
    core: &mut Port,
    frame: Frame<'_>,
) {
    match bridge.forward(now, PortId(at), frame.view.dst(), frame.view.src()) {
        Forward::Filter => core.counters.inc(Count::SwitchFiltered),
        Forward::To(to) => {
            core.counters.inc(Count::SwitchForwarded);
            egress(now, to, ports, touched, frame);
        }
        Forward::Flood => {
            core.counters.inc(Count::SwitchFlooded);
            for to in bridge.flood(PortId(at)) {
                egress(now, to, ports, touched, frame);
            }
        }
    }
}

fn egress(now: Instant, to: PortId, ports: &mut [Option<Box<NicPort>>], touched: &mut Vec<u16>, frame: Frame<'_>) {
    let Some(port) = ports.get_mut(usize::from(to.0)).and_then(Option::as_deref_mut) else { return };
    let counters = &mut port.core.counters;
    // A session that fails is found out by its own port's poll.
    match port.wire.send(now, counters, frame, None) {
        Ok(Sent::Done | Sent::Kept) => {
            counters.inc(Count::TxPackets);
            counters.add(Count::TxBytes, frame.view.len() as u64);
        }
        Ok(Sent::Full) => counters.inc(Count::SwitchDropped),
        Err(_) => {
            counters.inc(Count::SwitchDropped);
            port.wake();
        }
    }
    if touched.last() != Some(&to.0) {
        touched.push(to.0);
    }
}

fn open_tap(config: &TapConfig, setup: TapSetup, poller: &Poller, token: impl Fn(u16) -> Token) -> Result<TapSide, CommandError> {
    let tap = Tap::open(config, setup)
        .map_err(|e| if e.is_machine_fault() { CommandError::Machine(e.to_string()) } else { CommandError::Failed(e.to_string()) })?;
    for queue in 0..tap.queues() {
        poller.add_edge(tap.fd(queue), token(queue as u16)).map_err(|e| CommandError::Failed(e.to_string()))?;
    }
    Ok(TapSide::new(tap))
}

fn moderation(config: &PortConfig) -> ModerationParams {
    ModerationParams { rx_usecs: config.rx_usecs, rx_frames: config.rx_frames }
}

fn impairment(config: &ImpairmentConfig) -> Impairment {
    Impairment { delay_ns: config.delay_ns, rate_bps: config.rate_bps, loss: config.loss, limit_octets: config.limit_octets }
}

/// Seed of what one port's wire does: from the lab's seed and the endpoint's name (FNV-1a).
fn direction_seed(seed: u64, node: &str, port: &str) -> u64 {
    let text = node.bytes().chain([b':']).chain(port.bytes());
    text.fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
