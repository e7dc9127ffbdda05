//! An interface's connection to its device: vhost-user, its loss, and getting it back.
//!
//! The carrier follows the device's `VIRTIO_NET_S_LINK_UP` (Linux `virtnet_config_changed_work`):
//! read when the device is attached, and again whenever it says that its configuration has
//! changed. A device that cannot say so keeps the state that it had then.
//!
//! A device that hangs up, does not answer, or breaks a rule of the ring, is taken off: carrier down,
//! rings torn down. Then the driver knocks at the socket, every 10 ms at first, until
//! a device answers (a restarted nicd), and gives it fresh rings. A thread of its own knocks and waits
//! for the answer: the host goes on meanwhile.

use crate::config::{HostSpec, InterfaceSpec};
use crate::driver::{Attachment, Due, Nic, PairLayout, REQUIRED, RingDriver, WANTED};
use crate::host::Shared;
use anyhow::{Context, anyhow, bail, ensure};
use ringlab_kernel::Event;
use ringlab_kernel::dev::net_device::{Coalesce, DeviceConfig, IfIndex};
use ringlab_kernel::time::Instant;
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Features, Layout};
use ringlab_ring::pool::Pool;
use ringlab_ring::vhost_user::{FrontEnd, FrontError, Moderation};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use tracing::{debug, info, warn};

/// Octets of a host's DMA pool (address space: pages take memory when touched).
const POOL: usize = 64 << 20;
/// The pool begins at a multiple of this.
const POOL_ALIGN: u64 = 65536;
/// How long to wait for the device when the host starts.
const FIRST_CONNECT: Duration = Duration::from_secs(5);
/// How often to knock at first, and for how long.
const EAGER: Duration = Duration::from_millis(10);
const EAGER_FOR: Duration = Duration::from_secs(1);
/// How often afterwards.
const PATIENT: Duration = Duration::from_millis(100);
/// Octets of the stack of the thread that knocks.
const STACK: usize = 256 << 10;
/// What a device that is there takes at most to answer.
const PROMPT: Duration = Duration::from_millis(1);

/// The host's shared memory: all rings of all interfaces, then the pool.
///
/// # Errors
/// If the memory cannot be had.
pub fn region_for(spec: &HostSpec) -> anyhow::Result<(Pool, Vec<Vec<PairLayout>>)> {
    let mut end = 0;
    let mut place = |size| {
        let (layout, after) = Layout::in_region(end, size);
        end = after;
        layout
    };
    let layouts: Vec<Vec<PairLayout>> = spec
        .interfaces
        .iter()
        .map(|i| (0..i.queue_pairs).map(|_| PairLayout { rx: place(i.rx_ring), tx: place(i.tx_ring) }).collect())
        .collect();
    let start = end.next_multiple_of(POOL_ALIGN);
    // Receive buffers of a large host must leave room for everything else.
    let receive: usize = spec.interfaces.iter().map(|i| usize::from(i.queue_pairs) * usize::from(i.rx_ring) * 4096).sum();
    let pool = POOL.max(2 * receive);
    let region = Region::memfd(&format!("hostd-{}", spec.hostname), start as usize + pool).context("shared memory")?;
    Ok((Pool::new(region, start, pool), layouts))
}

/// An interface's connection.
pub struct Link {
    spec: InterfaceSpec,
    nic: Rc<RefCell<Nic>>,
    dev: IfIndex,
    /// As first negotiated: the kernel relies on them.
    features: Features,
    device: Option<Device>,
    lost_at: Instant,
    retry_at: Option<Instant>,
    losses: u64,
    /// Somebody knocks: a device, or why there is none.
    knock: Option<Receiver<Result<FrontEnd, FrontError>>>,
}

struct Device {
    front: FrontEnd,
    calls: Vec<Doorbell>,
    errors: Vec<Doorbell>,
}

impl Link {
    /// Connects to the device and adds the interface to the kernel.
    ///
    /// # Errors
    /// If no usable device answers for [`FIRST_CONNECT`].
    pub fn open(spec: InterfaceSpec, nic: Nic, shared: &Shared) -> anyhow::Result<Self> {
        let front = first_connect(&spec)?;
        let features = front.features();
        let nic = Rc::new(RefCell::new(nic));
        let device = attach(front, &nic).with_context(|| format!("interface {}", spec.name))?;
        let link_up = device.front.config().link_up;
        let dev = shared.kernel().add_device(DeviceConfig {
            name: spec.name.clone(),
            mac: spec.mac,
            mtu: spec.mtu,
            ipv4: spec.ipv4.iter().map(|net| (net.addr(), net.prefix_len())).collect(),
            tx_queue_len: spec.txqueuelen,
            irq_affinity: spec.irq_affinity.clone(),
            driver: Box::new(RingDriver::new(nic.clone(), features)),
        });
        shared.attach(dev, nic.clone());
        shared.handle(Event::Carrier(dev, link_up));
        debug!(interface = %spec.name, ?features, link_up, "the device is there");
        Ok(Self { spec, nic, dev, features, device: Some(device), lost_at: Instant(0), retry_at: None, losses: 0, knock: None })
    }

    /// The interface.
    pub fn dev(&self) -> IfIndex {
        self.dev
    }

    /// Queue pairs.
    pub fn queue_pairs(&self) -> u16 {
        self.spec.queue_pairs
    }

    /// True if the queue's interrupt line is raised.
    pub fn interrupting(&self, queue: u16) -> bool {
        self.nic.borrow().interrupting(queue)
    }

    /// True if the interrupt line of any queue is.
    pub fn has_interrupt(&self) -> bool {
        let nic = self.nic.borrow();
        (0..self.spec.queue_pairs).any(|queue| nic.interrupting(queue))
    }

    /// Raises the interrupts of sent packets that somebody waits for. True if there are any.
    pub fn reap(&self) -> bool {
        self.nic.borrow_mut().reap()
    }

    /// True if sent packets wait to be looked for ([`crate::driver::TX_USECS`]).
    pub fn is_lazy(&self) -> bool {
        self.nic.borrow().is_lazy()
    }

    /// Unmasks the device's interrupts; `false` if there is work already.
    pub fn sleep(&self) -> bool {
        self.nic.borrow_mut().sleep()
    }

    /// Masks them.
    pub fn wake(&self) {
        self.nic.borrow_mut().wake();
    }

    /// Descriptors that a device's interrupts ring.
    pub fn calls(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.device.iter().flat_map(|d| d.calls.iter().map(AsFd::as_fd))
    }

    /// Descriptors on which the end of the device shows: its socket, and what it rings when a ring is dead; and the
    /// one over which it says that its configuration has changed.
    pub fn ends(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let fronts = self.device.iter().flat_map(|d| [Some(d.front.as_fd()), d.front.notices()]).flatten();
        fronts.chain(self.device.iter().flat_map(|d| d.errors.iter().map(AsFd::as_fd)))
    }

    /// A descriptor of [`Self::ends`] has something to say.
    pub fn on_end(&mut self, shared: &Shared) {
        let Some(device) = &mut self.device else { return };
        if device.front.hung_up() {
            return self.lose(shared, "it hung up");
        }
        if device.errors.iter().any(Doorbell::drain) {
            return self.lose(shared, "it found a rule of the ring broken");
        }
        match device.front.take_change() {
            Ok(Some(config)) => {
                let told = config.moderation.map(coalesce);
                let mut nic = self.nic.borrow_mut();
                let settings = nic.settings();
                // Somebody else has moderated it.
                if told != settings.coalesce && !settings.due.coalesce {
                    (settings.coalesce, settings.coalesce_asked) = (told, false);
                }
                drop(nic);
                self.set_carrier(shared, config.link_up);
            }
            Ok(None) => {}
            Err(error) => self.lose(shared, &error.to_string()),
        }
    }

    fn set_carrier(&self, shared: &Shared, up: bool) {
        debug!(interface = %self.spec.name, up, "link");
        shared.handle(Event::Carrier(self.dev, up));
    }

    /// Takes the device off if it broke a rule of the ring. True if so.
    pub fn check(&mut self, shared: &Shared) -> bool {
        let Some(error) = self.nic.borrow_mut().take_error() else { return false };
        self.lose(shared, &error.to_string());
        true
    }

    /// Tells the device what `ethtool` has changed. True if it has fresh rings, whose descriptors are to be watched.
    pub fn apply(&mut self, shared: &Shared) -> bool {
        let due = core::mem::take(&mut self.nic.borrow_mut().settings().due);
        if due == Due::default() {
            return false;
        }
        // A device that is away finds it when it comes.
        let Some(device) = self.device.take() else { return false };
        match self.tell(device, due) {
            Ok(device) => self.device = Some(device),
            Err(error) => {
                self.lose(shared, &format!("{error:#}"));
                return false;
            }
        }
        if due.rings {
            // What the old rings held is freed, and stopped queues go on.
            for queue in 0..self.spec.queue_pairs {
                shared.handle(Event::Interrupt(self.dev, queue));
            }
        }
        due.rings
    }

    fn tell(&self, mut device: Device, due: Due) -> anyhow::Result<Device> {
        if due.coalesce {
            tell_coalesce(&mut device.front, &self.nic)?;
        }
        if due.rings {
            let mut front = device.front;
            for ring in 0..2 * self.spec.queue_pairs {
                front.stop(ring)?;
            }
            return attach(front, &self.nic);
        }
        if due.pairs {
            let pairs = self.nic.borrow_mut().settings().pairs;
            for pair in 0..self.spec.queue_pairs {
                device.front.enable(2 * pair, pair < pairs)?;
                // What an unused pair has to send is still sent.
                if pair < pairs {
                    device.front.enable(2 * pair + 1, true)?;
                }
            }
        }
        Ok(device)
    }

    /// When to knock again; `None` while the device is there.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// True if it is time to knock.
    pub fn retry_due(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at <= now)
    }

    /// Knocks, or looks whether somebody answers. True if a device did and is in use now.
    pub fn connect(&mut self, shared: &Shared) -> bool {
        let knock = self.knock.take().map_or_else(|| knock(&self.spec), Ok);
        let device = match knock {
            Ok(knock) => match knock.recv_timeout(PROMPT) {
                Ok(answer) => self.take_device(answer),
                Err(RecvTimeoutError::Timeout) => {
                    self.knock = Some(knock);
                    Err(anyhow!("it does not answer yet"))
                }
                Err(RecvTimeoutError::Disconnected) => Err(anyhow!("nobody knocks any more")),
            },
            Err(error) => Err(error.into()),
        };
        match device {
            Ok(device) => {
                let up = device.front.config().link_up;
                self.device = Some(device);
                self.retry_at = None;
                info!(interface = %self.spec.name, "the device is back");
                self.set_carrier(shared, up);
                // What the lost device had not finished is freed now, and stopped queues go on.
                for queue in 0..self.spec.queue_pairs {
                    shared.handle(Event::Interrupt(self.dev, queue));
                }
                true
            }
            Err(error) => {
                debug!(interface = %self.spec.name, "no device: {error:#}");
                let now = shared.now();
                let pause = if now.since(self.lost_at) < EAGER_FOR { EAGER } else { PATIENT };
                self.retry_at = Some(now + pause);
                false
            }
        }
    }

    fn take_device(&self, answer: Result<FrontEnd, FrontError>) -> anyhow::Result<Device> {
        let front = answer?;
        ensure!(front.features().contains(self.features), "the device offers less than the one before");
        attach(front, &self.nic)
    }

    fn lose(&mut self, shared: &Shared, why: &str) {
        self.losses += 1;
        // A device that misbehaves again and again does not fill the log.
        if self.losses.is_power_of_two() {
            warn!(interface = %self.spec.name, times = self.losses, "the device is lost: {why}");
        }
        self.device = None;
        self.nic.borrow_mut().detach();
        shared.handle(Event::Carrier(self.dev, false));
        let now = shared.now();
        self.lost_at = now;
        self.retry_at = Some(now + EAGER);
    }
}

/// Gives a connected device fresh rings.
fn attach(mut front: FrontEnd, nic: &Rc<RefCell<Nic>>) -> anyhow::Result<Device> {
    if !front.features().contains(REQUIRED) {
        bail!("the device lacks {:?}", REQUIRED - front.features());
    }
    if nic.borrow_mut().settings().coalesce_asked {
        tell_coalesce(&mut front, nic)?;
    }
    let mut nic = nic.borrow_mut();
    nic.settings().coalesce = front.config().moderation.map(coalesce);
    nic.reset(front.features())?;
    let region = nic.region().clone();
    let layouts = nic.layouts();
    let pairs = nic.settings().pairs;
    match front.start(&region, &layouts, pairs) {
        Ok(bells) => {
            let (mut kick, mut calls, mut errors) = (Vec::new(), Vec::new(), Vec::new());
            for ring in bells {
                kick.push(ring.kick);
                calls.push(ring.call);
                errors.push(ring.err);
            }
            nic.attach(Attachment { kick });
            Ok(Device { front, calls, errors })
        }
        Err(error) => {
            nic.detach();
            Err(error.into())
        }
    }
}

/// Moderates a device's interrupts as the host has asked; one that tells nothing of them is left alone.
fn tell_coalesce(front: &mut FrontEnd, nic: &Rc<RefCell<Nic>>) -> anyhow::Result<()> {
    let wanted = nic.borrow_mut().settings().coalesce.filter(|_| front.config().moderation.is_some());
    if let Some(Coalesce { rx_usecs, rx_frames }) = wanted {
        front.set_moderation(Moderation { rx_usecs, rx_frames })?;
    }
    Ok(())
}

fn coalesce(told: Moderation) -> Coalesce {
    Coalesce { rx_usecs: told.rx_usecs, rx_frames: told.rx_frames }
}

/// Lets a thread connect: it says what came of it.
fn knock(spec: &InterfaceSpec) -> io::Result<Receiver<Result<FrontEnd, FrontError>>> {
    let (tell, answer) = channel();
    let socket = spec.vhost_socket.clone();
    // Nobody may be there to hear it.
    let knock = move || drop(tell.send(FrontEnd::connect(&socket, WANTED)));
    std::thread::Builder::new().name("knock".into()).stack_size(STACK).spawn(knock)?;
    Ok(answer)
}

/// Connects when the host starts: nicd may be a moment behind.
fn first_connect(spec: &InterfaceSpec) -> anyhow::Result<FrontEnd> {
    let began = std::time::Instant::now();
    loop {
        let left = FIRST_CONNECT.saturating_sub(began.elapsed());
        let error = match knock(spec)?.recv_timeout(left) {
            Ok(Ok(front)) => return Ok(front),
            Ok(Err(error)) => error.into(),
            Err(_) => anyhow!("it does not answer"),
        };
        if began.elapsed() >= FIRST_CONNECT {
            return Err(error).with_context(|| format!("interface {}: no device at {}", spec.name, spec.vhost_socket.display()));
        }
        std::thread::sleep(EAGER);
    }
}
