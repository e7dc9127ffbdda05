//! The kernel thread: turns what happens to descriptors, clocks and channels into
//! events of the kernel model, and its effects into doorbells and results.
//!
//! One turn: commands, interrupts, timers, programs, doorbells. While there is
//! something to do the NICs' interrupts stay masked and the loop looks at the
//! rings itself, also while it sleeps until a program that was answered makes its next call ([`Hold`]). When there is
//! nothing it spins for some microseconds, if its peers have a CPU of their own, and then sleeps in `epoll_wait`,
//! interrupts unmasked, an alarm set.
//!
//! Deviation: a host that is awake sees a frame when it is in the ring, not when the
//! NIC's interrupt moderation would have told it. Moderation (`rx-usecs`) shows in
//! hosts that sleep between frames, as a busy real host's NAPI does not wait either.
//!
//! Lost wake-ups: [`Nic::sleep`] unmasks and looks again; commands and wakers ring
//! an eventfd that `epoll` reports even if it was rung before the sleep.

use crate::config::{ConfigError, HostSpec};
use crate::control::{Command, Handle, command_channel};
use crate::driver::{Nic, TX_USECS};
use crate::guest::{Guests, window};
use crate::hold::{Hold, Place};
use crate::host::{Arenas, Clock, Shared, Wakes};
use crate::link::{Link, region_for};
use crate::programs::process::Streams;
use crate::programs::table::ProgramTable;
use crate::setup;
use crate::stats;
use crate::trace::Listeners;
use anyhow::Context;
use ringlab_kernel::time::Instant;
use ringlab_kernel::{Event, Kernel};
use ringlab_ring::alarm::Alarm;
use ringlab_ring::doorbell::Doorbell;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::warn;

/// Address space of the kernel thread's stack; pages take memory when touched.
const STACK: usize = 512 << 10;
/// Longest spin before a sleep.
const MAX_SPIN: Duration = Duration::from_micros(30);
/// A loop that never sleeps looks at its descriptors this often.
const LOOK: Duration = Duration::from_millis(1);
/// Longest wait of a doorbell for more to be sent.
const HOLD: Duration = Duration::from_micros(250);
/// What is sent first after so long a sleep is sent alone.
const LONE: Duration = Duration::from_millis(1);
/// `epoll` data of the eventfd of commands and wakers; links have their index.
const BELL: u64 = u64::MAX;
/// `epoll` data of call eventfds, and of the alarm: nothing to do but to be awake.
const CALL: u64 = u64::MAX - 1;

/// What the kernel thread starts with.
pub struct Boot {
    /// The host.
    pub spec: HostSpec,
    /// Streams of the programs of `run:`, in order.
    pub programs: Vec<Streams>,
    /// Commands of the control thread.
    pub commands: Receiver<Command>,
    /// Rung for each of them.
    pub bell: Arc<Doorbell>,
    /// Told when the host is up, or why it is not.
    pub ready: oneshot::Sender<anyhow::Result<()>>,
}

/// A command channel, and the bell that it rings.
///
/// # Errors
/// What `eventfd` answers.
pub fn channel() -> io::Result<(Handle, Receiver<Command>, Arc<Doorbell>)> {
    let bell = Arc::new(Doorbell::new()?);
    let (handle, receiver) = command_channel(bell.clone());
    Ok((handle, receiver, bell))
}

/// Starts the kernel thread. `on_failure` is called if it ends without being told to.
///
/// # Errors
/// What `pthread_create` answers.
pub fn spawn(boot: Boot, on_failure: impl FnOnce(String) + Send + 'static) -> io::Result<()> {
    let main = move || {
        let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(boot)));
        match end {
            Ok(Ok(())) => {}
            Ok(Err(error)) => on_failure(format!("kernel thread: {error:#}")),
            Err(_) => on_failure("kernel thread: panic".to_owned()),
        }
    };
    std::thread::Builder::new().name("kernel".to_owned()).stack_size(STACK).spawn(main).map(drop)
}

fn run(boot: Boot) -> anyhow::Result<()> {
    let Boot { spec, programs, commands, bell, ready } = boot;
    match EventLoop::new(spec, programs, commands, bell) {
        Ok(event_loop) => {
            // Without anybody who waits for it the host runs as well.
            let _ = ready.send(Ok(()));
            event_loop.run()
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            Ok(())
        }
    }
}

/// What a turn leaves to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Another turn.
    More,
    /// Programs' calls were answered: the next ones follow soon.
    Calls,
    /// Nothing.
    Nothing,
}

struct EventLoop {
    shared: Rc<Shared>,
    links: Vec<Link>,
    programs: ProgramTable,
    guests: Guests,
    listeners: Listeners,
    spec: HostSpec,
    commands: Receiver<Command>,
    epoll: Rc<OwnedFd>,
    alarm: Alarm,
    events: Vec<epoll::Event>,
    spinner: Spinner,
    hold: Hold,
    last_look: Instant,
    /// When to look for sent packets that raise no interrupt.
    tx_look: Option<Instant>,
    /// Until when doorbells wait for more to be sent.
    bells_at: Option<Instant>,
    stopped: bool,
}

impl EventLoop {
    fn new(spec: HostSpec, programs: Vec<Streams>, commands: Receiver<Command>, bell: Arc<Doorbell>) -> anyhow::Result<Self> {
        let epoll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll")?);
        epoll::add(&*epoll, bell.as_fd(), epoll::EventData::new_u64(BELL), epoll::EventFlags::IN | epoll::EventFlags::ET)
            .context("epoll")?;
        let alarm = Alarm::new().context("timerfd")?;
        epoll::add(&*epoll, &alarm, epoll::EventData::new_u64(CALL), epoll::EventFlags::IN | epoll::EventFlags::ET).context("epoll")?;
        // Timers of the model are as exact as the machine allows, not within the usual 50 µs.
        if let Err(error) = rustix::thread::set_current_timer_slack(core::num::NonZeroU64::new(1)) {
            warn!(%error, "timer slack stays as it is: timers may be 50 µs late");
        }
        let (pool, layouts) = region_for(&spec)?;
        let arenas = Arenas::default();
        let kernel = Kernel::new(setup::kernel_config(&spec, pool.clone()), Box::new(arenas.clone()));
        let preload = window::object(&spec.files);
        let preloads = preload.is_some();
        let guests =
            Guests::new(epoll.clone(), arenas.1.clone(), spec.files.binds.iter().map(|b| b.destination.clone()).collect(), preload);
        let shared = Shared::new(&spec.hostname, kernel, arenas, Clock::start(), Arc::new(Wakes::new(bell)));
        if preloads {
            shared.set_preloads();
        }
        let mut this = Self {
            shared,
            links: Vec::new(),
            programs: ProgramTable::default(),
            guests,
            listeners: Listeners::default(),
            spinner: Spinner::new(spec.spin),
            hold: Hold::default(),
            spec,
            commands,
            epoll,
            alarm,
            events: Vec::with_capacity(64),
            last_look: Instant(0),
            tx_look: None,
            bells_at: None,
            stopped: false,
        };
        for (interface, layouts) in this.spec.interfaces.clone().into_iter().zip(layouts) {
            let link = Link::open(interface, Nic::new(pool.clone(), &layouts), &this.shared)?;
            this.watch(&link, this.links.len())?;
            this.links.push(link);
        }
        setup::apply(&this.shared, None, &this.spec)?;
        this.programs.run_all(&this.shared, &this.spec.run, programs);
        Ok(this)
    }

    fn run(mut self) -> anyhow::Result<()> {
        while !self.stopped {
            let left = self.turn()?;
            // Programs' calls are seen by looking only. The look before the sleep is enough, unless frames wait for it.
            if left != Left::More
                && !self.links.is_empty()
                && self.shared.expects_call()
                && let Some(end) = self.hold.begin(self.shared.now())
            {
                self.hold(end)?;
                continue;
            }
            if left == Left::More || left == Left::Calls && self.shared.has_bells() {
                if self.guests.any() || self.shared.now().since(self.last_look) >= LOOK {
                    // A host that is never idle does not keep its listeners waiting either.
                    self.listeners.drain(&mut self.shared.kernel(), true);
                    self.look(false)?;
                }
                continue;
            }
            self.bells_at = None;
            self.shared.ring_doorbells();
            if !self.spin() && self.arm() {
                self.listeners.drain(&mut self.shared.kernel(), true);
                let began = self.shared.now();
                self.tend_lazy(began);
                self.alarm.set(began.0, self.sleep_limit().map(|at| at.0)).context("timerfd_settime")?;
                self.look(true)?;
                let slept = self.shared.now().since(began);
                if slept >= LONE {
                    self.shared.be_eager();
                }
                self.spinner.slept(slept);
                self.links.iter().for_each(Link::wake);
            }
        }
        self.programs.kill_all(&self.shared);
        Ok(())
    }

    /// Sleeps until the program that was answered makes its next call, or until `end`: doorbells unrung, interrupts masked.
    fn hold(&mut self, end: Instant) -> anyhow::Result<()> {
        let limit = self.sleep_limit().map_or(end, |at| at.min(end));
        self.alarm.set(self.shared.now().0, Some(limit.0)).context("timerfd_settime")?;
        self.listeners.drain(&mut self.shared.kernel(), true);
        self.look(true)?;
        if self.hold.is_over(self.last_look) {
            self.shared.expect_no_call();
        }
        Ok(())
    }

    /// Does what there is to do, once. What comes from outside meanwhile shows when the host is about to sleep:
    /// interrupts in [`Self::arm`], the rest in `epoll_wait`.
    fn turn(&mut self) -> anyhow::Result<Left> {
        // First: whoever waits for the answer waits for as little as possible.
        self.take_interrupts();
        self.ring_doorbells();
        let calls = self.guests.run(&self.shared);
        if self.timer_due() {
            self.shared.handle(Event::Timer);
        }
        self.ring_doorbells();
        if self.shared.has_ready() {
            self.shared.run_ready();
            self.ring_doorbells();
        }
        let mut more = self.take_commands();
        more |= self.tend_links()?;
        if self.listeners.any() {
            self.listeners.drain(&mut self.shared.kernel(), false);
        }
        // Last: what was sent and is done.
        more |= self.links.iter().fold(false, |any, link| any | link.reap());
        more = more
            || self.shared.has_ready()
            || self.shared.has_guest_news()
            || self.timer_due()
            || self.links.iter().any(Link::has_interrupt);
        Ok(match more {
            true => Left::More,
            false if calls => Left::Calls,
            false => Left::Nothing,
        })
    }

    /// Rings the doorbells that are due. While unmodified programs make calls, one follows upon the other: what they
    /// send waits for more, until they have nothing more to say ([`Self::run`] rings before it sleeps) or for [`HOLD`].
    fn ring_doorbells(&mut self) {
        if !self.shared.has_bells() {
            return;
        }
        if self.guests.any() {
            let now = self.shared.now();
            if now < *self.bells_at.get_or_insert(now + HOLD) {
                return;
            }
        }
        self.bells_at = None;
        self.shared.ring_doorbells();
    }

    fn take_interrupts(&self) -> bool {
        let mut progress = false;
        for link in &self.links {
            for queue in 0..link.queue_pairs() {
                if link.interrupting(queue) {
                    self.shared.handle(Event::Interrupt(link.dev(), queue));
                    progress = true;
                }
            }
        }
        progress
    }

    fn timer_due(&self) -> bool {
        let timeout = self.shared.kernel().poll_timeout();
        timeout.is_some_and(|at| at <= self.shared.now())
    }

    /// Takes lost devices off, and tries to get them back. True if one came or went.
    fn tend_links(&mut self) -> anyhow::Result<bool> {
        let mut changed = false;
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            changed |= link.check(&self.shared);
            if link.retry_due(self.shared.now()) && link.connect(&self.shared) {
                self.watch(&self.links[index], index)?;
                changed = true;
            }
            if self.links[index].apply(&self.shared) {
                self.watch(&self.links[index], index)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Looks at an idle host's rings for a while. True if there is something to do.
    fn spin(&mut self) -> bool {
        if self.guests.any() {
            return false;
        }
        let Some(time) = self.spinner.time(self.shared.now()) else { return false };
        let end = self.shared.now() + time;
        let timeout = self.shared.kernel().poll_timeout();
        let found = loop {
            if self.shared.has_ready() || self.links.iter().any(Link::has_interrupt) {
                break true;
            }
            let now = self.shared.now();
            if timeout.is_some_and(|at| at <= now) {
                break true;
            }
            if now >= end {
                break false;
            }
            core::hint::spin_loop();
        };
        self.spinner.spun(found);
        found
    }

    /// Unmasks all interrupts. `false` if one is due already; they are masked again then.
    fn arm(&self) -> bool {
        let idle = self.links.iter().all(Link::sleep);
        if !idle {
            self.links.iter().for_each(Link::wake);
        }
        idle
    }

    fn sleep_limit(&self) -> Option<Instant> {
        let timer = self.shared.kernel().poll_timeout();
        let retry = self.links.iter().filter_map(Link::retry_at).min();
        timer.into_iter().chain(retry).chain(self.tx_look).min()
    }

    /// Sets when sent packets are looked for that raise no interrupt: every turn takes those that are done.
    fn tend_lazy(&mut self, now: Instant) {
        if !self.links.iter().any(Link::is_lazy) {
            self.tx_look = None;
        } else if self.tx_look.is_none_or(|at| at <= now) {
            self.tx_look = Some(now + Duration::from_micros(TX_USECS));
        }
    }

    /// Looks at the descriptors, and waits for one if `wait`; the alarm is one of them.
    fn look(&mut self, wait: bool) -> anyhow::Result<()> {
        let limit = (!wait).then_some(Timespec { tv_sec: 0, tv_nsec: 0 });
        self.events.clear();
        match epoll::wait(&*self.epoll, rustix::buffer::spare_capacity(&mut self.events), limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        self.last_look = self.shared.now();
        for event in &self.events {
            // Calls and commands need no more than being awake.
            let (link, flags) = (event.data.u64(), event.flags);
            if link == BELL || link == CALL {
                continue;
            }
            if self.guests.on_ready(link, flags) {
                self.hold.on_call(self.last_look);
            } else {
                self.links[link as usize].on_end(&self.shared);
            }
        }
        Ok(())
    }

    /// Watches a link's descriptors. Closed ones leave the set by themselves.
    fn watch(&self, link: &Link, index: usize) -> anyhow::Result<()> {
        for call in link.calls() {
            // Edge-triggered: nobody needs to read the counter.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&*self.epoll, call, epoll::EventData::new_u64(CALL), flags).context("epoll")?;
        }
        for end in link.ends() {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            match epoll::add(&*self.epoll, end, epoll::EventData::new_u64(index as u64), flags) {
                // The device is the same, its rings are not.
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error).context("epoll"),
            }
        }
        Ok(())
    }

    fn take_commands(&mut self) -> bool {
        let mut any = false;
        // The number is bounded: programs and interrupts get their turn.
        for _ in 0..64 {
            let Ok(command) = self.commands.try_recv() else { break };
            self.on_command(command);
            any = true;
        }
        any
    }

    fn on_command(&mut self, command: Command) {
        // Who asked may have gone: then the answer is dropped.
        match command {
            Command::Reconfigure(spec, tell) => {
                let _ = tell.send(self.reconfigure(*spec));
            }
            Command::Start(start, streams, tell) => {
                let _ = tell.send(self.programs.start(&self.shared, &start, streams));
            }
            Command::RunEnded(index, exit, error) => self.programs.run_ended(index, exit, &error),
            Command::Guest(listener) => self.guests.add(listener),
            Command::Signal(id, signal) => self.programs.signal(&self.shared, id, signal),
            Command::Stats(tell) => {
                // What was sent and is done belongs to them.
                self.links.iter().for_each(|link| {
                    link.reap();
                });
                self.take_interrupts();
                let _ = tell.send(stats::collect(&self.shared));
            }
            Command::Programs(tell) => {
                let _ = tell.send(self.programs.states(&self.shared));
            }
            Command::Trace(listener) => self.listeners.add(listener, &mut self.shared.kernel()),
            Command::Shutdown => self.stopped = true,
        }
    }

    fn reconfigure(&mut self, spec: HostSpec) -> Result<(), ConfigError> {
        setup::apply(&self.shared, Some(&self.spec), &spec)?;
        self.spec = spec;
        Ok(())
    }
}

/// Decides how long to spin.
struct Spinner {
    wanted: bool,
    time: Duration,
    place: Place,
}

impl Spinner {
    fn new(wanted: bool) -> Self {
        Self { wanted, time: MAX_SPIN, place: Place::default() }
    }

    /// How long to spin now; `None`: not at all.
    fn time(&mut self, now: Instant) -> Option<Duration> {
        if !self.wanted {
            return None;
        }
        // On a single CPU whoever spins keeps its peers from running.
        (!self.place.is_single(now) && self.time >= Duration::from_micros(1)).then_some(self.time)
    }

    /// What came of it: spinning in vain gets shorter, until a sleep turns out to have been short.
    fn spun(&mut self, found: bool) {
        self.time = if found { (self.time * 2).min(MAX_SPIN) } else { self.time / 2 };
    }

    fn slept(&mut self, time: Duration) {
        if time < 2 * MAX_SPIN {
            self.time = MAX_SPIN;
        }
    }
}
