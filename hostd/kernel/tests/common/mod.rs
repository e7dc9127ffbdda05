//! A lab in one process: kernels joined by virtual links, a manual clock, and memory for tasks.
//!
//! Nothing happens by itself: [`Lab::run_for`] and [`Lab::run_until`] let virtual time pass, from
//! event to event. A link keeps a log of every frame, and a hook decides what becomes of
//! each: pass, drop, delay, duplicate, change. The devices are strict: they look at their rings
//! only when the doorbell was rung, and interrupt only when unmasked, so that a lost wake-up shows.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod build;
pub mod dice;
pub mod driver;
pub mod frame;
pub mod memory;
pub mod tasks;

pub use build::Path;
pub use driver::{Port, PortConfig};
pub use frame::Frame;
pub use memory::Memory;

use ringlab_kernel::cpu::sched::TaskId;
use ringlab_kernel::dev::net_device::{DeviceConfig, IfIndex, MacAddr};
use ringlab_kernel::syscall::signal::Signal;
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::time::Instant;
use ringlab_kernel::trace::Record;
use ringlab_kernel::{Config, Effect, Event, Kernel};
use ringlab_ring::memory::Region;
use ringlab_ring::pool::Pool;
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Octets of a host's pool.
const POOL: usize = 64 << 20;
/// Events at one instant after which the lab is taken to be in an endless loop.
const MAX_EVENTS: usize = 5_000_000;

/// How to make a host.
#[derive(Clone)]
pub struct HostConfig {
    pub cpus: u16,
    pub ip_forward: bool,
    pub udp_backlog: bool,
    pub pool: usize,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { cpus: 1, ip_forward: false, udp_backlog: false, pool: POOL }
    }
}

/// A host of the lab.
pub struct Host {
    pub kernel: Kernel,
    pub mem: Memory,
    pub pool: Pool,
    /// Finished calls, oldest first.
    pub returns: VecDeque<(TaskId, Ret)>,
    /// Signals raised, oldest first.
    pub signals: Vec<Signal>,
    pub ports: Vec<Port>,
}

/// Which way a frame goes on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dir {
    /// From the first end to the second.
    Forward,
    /// From the second end to the first.
    Backward,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    /// Arrives so much later than it would; later frames may overtake it.
    Delay(Duration),
    /// Arrives twice, the second time so much later.
    Duplicate(Duration),
}

/// Decides about a frame, and may change it.
pub type Hook = Box<dyn FnMut(Dir, &mut Frame) -> Verdict>;

/// A frame that was sent on a link.
#[derive(Debug, Clone)]
pub struct Logged {
    pub time: Instant,
    pub link: usize,
    pub dir: Dir,
    pub frame: Frame,
    pub verdict: Verdict,
}

/// One end of a link: host and port of the host, or the test itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Host(usize, usize),
    Test,
}

pub struct Link {
    pub ends: [End; 2],
    pub delay: Duration,
    pub hook: Option<Hook>,
}

/// The lab.
pub struct Lab {
    pub now: Instant,
    pub seed: u64,
    pub hosts: Vec<Host>,
    pub links: Vec<Link>,
    pub log: Vec<Logged>,
    /// Frames that arrived at an end that the test itself holds.
    pub received: Vec<(usize, Frame)>,
    in_flight: BTreeMap<(Instant, u64), (usize, Dir, Frame)>,
    sent: u64,
}

/// Host `a` of a pair.
pub const A: usize = 0;
/// Host `b` of a pair.
pub const B: usize = 1;
/// Address of `a`.
pub const ADDR_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Address of `b`.
pub const ADDR_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

impl Lab {
    pub fn new(seed: u64) -> Self {
        Self {
            now: Instant(1_000_000_000),
            seed,
            hosts: Vec::new(),
            links: Vec::new(),
            log: Vec::new(),
            received: Vec::new(),
            in_flight: BTreeMap::new(),
            sent: 0,
        }
    }

    /// Hosts [`A`] and [`B`], joined by link 0 of 50 µs each way, with [`ADDR_A`] and [`ADDR_B`] in a /24.
    pub fn pair(seed: u64) -> Self {
        Self::pair_with(seed, HostConfig::default(), PortConfig::default())
    }

    pub fn pair_with(seed: u64, host: HostConfig, port: PortConfig) -> Self {
        let mut lab = Self::new(seed);
        lab.add_host(host.clone());
        lab.add_host(host);
        lab.link((A, ADDR_A, port.clone()), (B, ADDR_B, port), 24, Duration::from_micros(50));
        lab
    }

    /// Adds a host: its number.
    pub fn add_host(&mut self, config: HostConfig) -> usize {
        let pool = Pool::new(Region::heap(config.pool), 0, config.pool);
        let mem = Memory::default();
        let n = self.hosts.len();
        let kernel_config = Config {
            seed: self.seed.wrapping_mul(1000).wrapping_add(n as u64),
            cpus: config.cpus,
            ip_forward: config.ip_forward,
            udp_backlog: config.udp_backlog,
            pool: pool.clone(),
        };
        let mut kernel = Kernel::new(kernel_config, Box::new(mem.clone()));
        kernel.handle(self.now, Event::Timer);
        self.hosts.push(Host { kernel, mem, pool, returns: VecDeque::new(), signals: Vec::new(), ports: Vec::new() });
        n
    }

    /// Joins two hosts: the link's number. Ports are "eth0", "eth1" … of their hosts.
    pub fn link(&mut self, a: (usize, Ipv4Addr, PortConfig), b: (usize, Ipv4Addr, PortConfig), prefix: u8, delay: Duration) -> usize {
        let ends = [a, b].map(|(host, addr, config)| End::Host(host, self.add_port(host, addr, prefix, config)));
        self.links.push(Link { ends, delay, hook: None });
        self.links.len() - 1
    }

    /// A link whose other end the test holds: it sends with [`Self::inject`] and finds what arrives in [`Self::received`].
    pub fn stub(&mut self, host: usize, addr: Ipv4Addr, prefix: u8, config: PortConfig) -> usize {
        let end = End::Host(host, self.add_port(host, addr, prefix, config));
        self.links.push(Link { ends: [end, End::Test], delay: Duration::ZERO, hook: None });
        self.links.len() - 1
    }

    fn add_port(&mut self, host: usize, addr: Ipv4Addr, prefix: u8, config: PortConfig) -> usize {
        let h = &mut self.hosts[host];
        let n = h.ports.len();
        let port = Port::new(config.clone(), h.pool.clone());
        let ifindex = h.kernel.add_device(DeviceConfig {
            name: format!("eth{n}"),
            mac: mac(host, n),
            mtu: config.mtu,
            ipv4: vec![(addr, prefix)],
            tx_queue_len: config.tx_queue_len,
            irq_affinity: config.irq_affinity.clone(),
            driver: port.driver(),
        });
        assert_eq!(ifindex, IfIndex(n as u32 + 2));
        h.ports.push(port);
        n
    }

    /// Sets the hook of a link.
    pub fn hook(&mut self, link: usize, hook: impl FnMut(Dir, &mut Frame) -> Verdict + 'static) {
        self.links[link].hook = Some(Box::new(hook));
    }

    /// Drops the first frame of a link for which `which` holds.
    pub fn drop_first(&mut self, link: usize, mut which: impl FnMut(Dir, &Frame) -> bool + 'static) {
        let mut done = false;
        self.hook(link, move |dir, frame| {
            if !done && which(dir, frame) {
                done = true;
                return Verdict::Drop;
            }
            Verdict::Pass
        });
    }

    /// Puts a frame on a link as if its end had sent it.
    pub fn inject(&mut self, link: usize, dir: Dir, frame: Frame) {
        self.put_on_link(link, dir, frame);
    }

    /// Starts a call. What it returns is in the host's `returns`, at once or later.
    pub fn start(&mut self, host: usize, task: TaskId, call: Call) {
        let now = self.now;
        self.hosts[host].kernel.handle(now, Event::Syscall(task, call));
        self.drain(host);
    }

    /// Takes the result of a task's call, if it is finished.
    pub fn take_return(&mut self, host: usize, task: TaskId) -> Option<Ret> {
        let returns = &mut self.hosts[host].returns;
        let at = returns.iter().position(|r| r.0 == task)?;
        returns.remove(at).map(|r| r.1)
    }

    /// Makes a call and lets time pass until it returns, at most an hour.
    pub fn call(&mut self, host: usize, task: TaskId, call: Call) -> Ret {
        let what = format!("{call:?}");
        self.start(host, task, call);
        self.wait(host, task).unwrap_or_else(|| panic!("{what} did not return within an hour"))
    }

    /// Lets time pass until a task's call returns, at most an hour.
    pub fn wait(&mut self, host: usize, task: TaskId) -> Option<Ret> {
        self.run_until(Duration::from_secs(3600), |lab| lab.hosts[host].returns.iter().any(|r| r.0 == task));
        self.take_return(host, task)
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Lets time pass until `done`, at most `limit`. True if done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Lab) -> bool) -> bool {
        let end = self.now + limit;
        let (mut last, mut events) = (self.now, 0);
        loop {
            self.collect();
            if done(self) {
                return true;
            }
            let next = self.next_event();
            let Some(next) = next.filter(|&t| t <= end) else {
                self.now = end.max(self.now);
                return false;
            };
            self.now = self.now.max(next);
            events = if self.now == last { events + 1 } else { 0 };
            last = self.now;
            assert!(events < MAX_EVENTS, "nothing but events at {last:?}");
            self.step();
        }
    }

    fn next_event(&mut self) -> Option<Instant> {
        let flight = self.in_flight.keys().next().map(|k| k.0);
        let timers = self.hosts.iter_mut().filter_map(|h| h.kernel.poll_timeout()).min();
        flight.into_iter().chain(timers).min()
    }

    /// Delivers what is due, and lets each host have its timers.
    fn step(&mut self) {
        let now = self.now;
        while let Some(first) = self.in_flight.first_entry().filter(|e| e.key().0 <= now) {
            let (link, dir, frame) = first.remove();
            self.deliver(link, dir, frame);
        }
        for host in 0..self.hosts.len() {
            self.interrupts(host);
            if self.hosts[host].kernel.poll_timeout().is_some_and(|t| t <= now) {
                self.hosts[host].kernel.handle(now, Event::Timer);
                self.drain(host);
            }
        }
    }

    fn deliver(&mut self, link: usize, dir: Dir, frame: Frame) {
        let to = self.links[link].ends[if dir == Dir::Forward { 1 } else { 0 }];
        match to {
            End::Test => self.received.push((link, frame)),
            End::Host(host, port) => self.hosts[host].ports[port].receive(&frame),
        }
    }

    /// Raises the interrupts that devices want to raise.
    pub fn interrupts(&mut self, host: usize) {
        for port in 0..self.hosts[host].ports.len() {
            while let Some(queue) = self.hosts[host].ports[port].interrupt() {
                let now = self.now;
                self.hosts[host].kernel.handle(now, Event::Interrupt(IfIndex(port as u32 + 2), queue));
                self.drain(host);
            }
        }
    }

    /// Takes effects: returns are kept, doorbells ring.
    fn drain(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        while let Some(effect) = h.kernel.poll_effect() {
            match effect {
                Effect::Doorbell(dev, queue) => h.ports[dev.0 as usize - 2].ring(queue),
                Effect::Return(task, ret) => h.returns.push_back((task, ret)),
                Effect::Signal(signal) => h.signals.push(signal),
            }
        }
    }

    /// Lets the devices take what is on their rings, if their doorbell was rung, and interrupts for completions.
    fn collect(&mut self) {
        for link in 0..self.links.len() {
            for (end, dir) in [(0, Dir::Forward), (1, Dir::Backward)] {
                let End::Host(host, port) = self.links[link].ends[end] else { continue };
                self.drain(host);
                for frame in self.hosts[host].ports[port].transmit() {
                    self.put_on_link(link, dir, frame);
                }
                self.interrupts(host);
            }
        }
    }

    fn put_on_link(&mut self, link: usize, dir: Dir, mut frame: Frame) {
        let l = &mut self.links[link];
        let sent = frame.clone();
        let verdict = l.hook.as_mut().map_or(Verdict::Pass, |h| h(dir, &mut frame));
        let at = self.now + l.delay;
        self.log.push(Logged { time: self.now, link, dir, frame: sent, verdict });
        let arrivals = match verdict {
            Verdict::Drop => vec![],
            Verdict::Pass => vec![at],
            Verdict::Delay(d) => vec![at + d],
            Verdict::Duplicate(d) => vec![at, at + d],
        };
        for at in arrivals {
            self.sent += 1;
            self.in_flight.insert((at, self.sent), (link, dir, frame.clone()));
        }
    }

    /// Lets the test's end of a link answer the ARP requests that it has received.
    pub fn answer_arp(&mut self, link: usize) {
        let asked: Vec<Frame> = self.received.iter().filter(|r| r.0 == link && r.1.arp_op() == 1).map(|r| r.1.clone()).collect();
        self.received.retain(|r| r.0 != link || r.1.arp_op() != 1);
        for frame in asked {
            self.inject(link, Dir::Backward, Path::arp_reply(&frame));
        }
        self.run_for(Duration::from_millis(1));
    }

    /// Frames sent so far on a link in a direction for which `which` holds.
    pub fn count(&self, link: usize, dir: Dir, which: impl Fn(&Frame) -> bool) -> usize {
        self.log.iter().filter(|l| l.link == link && l.dir == dir && which(&l.frame)).count()
    }

    /// Listens to all trace points of a host.
    pub fn trace(&mut self, host: usize) {
        self.hosts[host].kernel.trace_enable(&[], 1 << 20);
    }

    /// Takes a host's trace.
    pub fn take_trace(&mut self, host: usize) -> Vec<Record> {
        let kernel = &mut self.hosts[host].kernel;
        assert_eq!(kernel.trace_lost(), 0, "the ring was large enough");
        std::iter::from_fn(|| kernel.trace_pop()).collect()
    }
}

/// The address of a host's port.
pub fn mac(host: usize, port: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, host as u8, port as u8])
}

/// The address that frames of the test itself come from.
pub const TEST_MAC: MacAddr = MacAddr([2, 0xee, 0, 0, 0, 1]);
