//! Programs on two hosts, joined by a wire in memory, under a clock set by hand.

mod tcp;

use super::process::{Exit, Output, Process, Streams};
use super::table::ProgramTable;
use crate::config::StartSpec;
use crate::host::{Arenas, Clock, Shared, Wakes};
use arrayvec::ArrayVec;
use ringlab_kernel::dev::net_device::{DeviceConfig, Features, IfIndex, MacAddr, NetDriver, RxFrame, TxIrq};
use ringlab_kernel::skb::{Frag, SkBuff};
use ringlab_kernel::{Config, Event, Kernel};
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::memory::Region;
use ringlab_ring::pool::Pool;
use ringlab_ring::vnet::VnetHdr;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

const POOL: usize = 64 << 20;
/// Time of a turn of both hosts.
const TICK: u64 = 1_000;

type Frames = Rc<RefCell<VecDeque<(VnetHdr, Vec<u8>)>>>;

/// A NIC whose wire is a queue in memory.
struct WireDriver {
    pool: Pool,
    rx: Frames,
    tx: Frames,
    done: VecDeque<Box<SkBuff>>,
    masked: Rc<Cell<bool>>,
}

impl NetDriver for WireDriver {
    fn queue_pairs(&self) -> u16 {
        1
    }
    fn features(&self) -> Features {
        Features { tx_csum: true, tso: true, sg: true }
    }
    fn rx(&mut self, _: u16) -> Option<RxFrame> {
        let (hdr, bytes) = self.rx.borrow_mut().pop_front()?;
        let mut frags = ArrayVec::new();
        for part in bytes.chunks(4096) {
            let buf = self.pool.alloc(4096).expect("the pool is large enough");
            buf.slice(0, part.len() as u32).write(part);
            frags.push(Frag { buf, off: 0, len: part.len() as u32 });
        }
        Some(RxFrame { hdr, frags })
    }
    fn rx_refill(&mut self, _: u16) {}
    fn xmit(&mut self, _: u16, hdr: VnetHdr, skb: Box<SkBuff>) -> Result<(), Box<SkBuff>> {
        let mut bytes = vec![0; skb.len() as usize];
        skb.copy_bits(0, &mut bytes).expect("its own length");
        self.tx.borrow_mut().push_back((hdr, bytes));
        self.done.push_back(skb);
        Ok(())
    }
    fn tx_full(&self, _: u16) -> bool {
        self.done.len() > 200
    }
    fn tx_done(&mut self, _: u16) -> Option<Box<SkBuff>> {
        self.done.pop_front()
    }
    fn needs_kick(&mut self, _: u16) -> bool {
        false
    }
    fn irq_disable(&mut self, _: u16) {
        self.masked.set(true);
    }
    fn irq_enable(&mut self, _: u16) -> bool {
        self.masked.set(false);
        self.pending(0)
    }
    fn tx_irq(&mut self, _: u16, _: TxIrq) {}
    fn pending(&mut self, _: u16) -> bool {
        !self.done.is_empty() || !self.rx.borrow().is_empty()
    }
}

struct Node {
    shared: Rc<Shared>,
    programs: ProgramTable,
    dev: IfIndex,
    rx: Frames,
    masked: Rc<Cell<bool>>,
}

impl Node {
    fn new(number: u8, clock: &Rc<Cell<u64>>, rx: &Frames, tx: &Frames) -> Self {
        let pool = Pool::new(Region::heap(POOL), 0, POOL);
        let arenas = Arenas::default();
        let config = Config { seed: number.into(), cpus: 1, ip_forward: false, udp_backlog: false, pool: pool.clone() };
        let kernel = Kernel::new(config, Box::new(arenas.clone()));
        let wakes = Arc::new(Wakes::new(Arc::new(Doorbell::new().expect("eventfd"))));
        let shared = Shared::new("test", kernel, arenas, Clock::Manual(clock.clone()), wakes);
        let masked = Rc::new(Cell::new(false));
        let driver = WireDriver { pool, rx: rx.clone(), tx: tx.clone(), done: VecDeque::new(), masked: masked.clone() };
        let dev = shared.kernel().add_device(DeviceConfig {
            name: "eth0".into(),
            mac: MacAddr([2, 0, 0, 0, 0, number]),
            mtu: 1500,
            ipv4: vec![(Ipv4Addr::new(10, 0, 0, number), 24)],
            tx_queue_len: 1000,
            irq_affinity: vec![],
            driver: Box::new(driver),
        });
        shared.handle(Event::Carrier(dev, true));
        let names = [("a", 1), ("b", 2)].map(|(name, n)| (name.to_owned(), Ipv4Addr::new(10, 0, 0, n)));
        shared.set_hosts(BTreeMap::from(names));
        Self { shared, programs: ProgramTable::default(), dev, rx: rx.clone(), masked }
    }

    fn turn(&self) -> bool {
        let mut progress = false;
        if !self.rx.borrow().is_empty() && !self.masked.get() {
            self.shared.handle(Event::Interrupt(self.dev, 0));
            progress = true;
        }
        if self.timeout().is_some_and(|at| at <= self.shared.now().0) {
            self.shared.handle(Event::Timer);
            progress = true;
        }
        progress | self.shared.run_ready()
    }

    fn timeout(&self) -> Option<u64> {
        self.shared.kernel().poll_timeout().map(|at| at.0)
    }
}

/// A program that was started, as its user sees it.
struct Job {
    output: mpsc::Receiver<Output>,
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    exit: oneshot::Receiver<Exit>,
    stdout: String,
    stderr: String,
    id: super::process::ProgramId,
}

impl Job {
    fn collect(&mut self) {
        while let Ok(piece) = self.output.try_recv() {
            match piece {
                Output::Stdout(bytes) => self.stdout += &String::from_utf8_lossy(&bytes),
                Output::Stderr(bytes) => self.stderr += &String::from_utf8_lossy(&bytes),
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {:?} {:?}", self.stdout, self.stderr))
    }
}

struct Lab {
    clock: Rc<Cell<u64>>,
    a: Node,
    b: Node,
}

impl Lab {
    fn new() -> Self {
        let clock = Rc::new(Cell::new(1_000_000_000));
        let (ab, ba) = (Frames::default(), Frames::default());
        let (a, b) = (Node::new(1, &clock, &ba, &ab), Node::new(2, &clock, &ab, &ba));
        Self { clock, a, b }
    }

    fn start(node: &mut Node, line: &[&str]) -> Job {
        let (stdin, stdin_out) = mpsc::channel(16);
        let (output_in, output) = mpsc::channel(64);
        let (exit_in, exit) = oneshot::channel();
        let streams = Streams { stdin: stdin_out, output: output_in, exit: exit_in };
        let argv = line[1..].iter().map(|&s| s.to_owned()).collect();
        let start = StartSpec { builtin: line[0].to_owned(), argv, cwd: PathBuf::from("/") };
        let id = node.programs.start(&node.shared, &start, streams);
        Job { output, stdin: Some(stdin), exit, stdout: String::new(), stderr: String::new(), id }
    }

    /// One turn; where nothing happens the clock jumps to the next timer. False if there is none.
    fn turn(&self) -> bool {
        self.clock.set(self.clock.get() + TICK);
        if self.a.turn() | self.b.turn() {
            return true;
        }
        let Some(next) = self.a.timeout().into_iter().chain(self.b.timeout()).min() else { return false };
        self.clock.set(self.clock.get().max(next));
        true
    }

    /// Runs until a program ends, at most for so many seconds of the hosts' time.
    fn wait(&self, job: &mut Job, seconds: u64) -> Exit {
        let end = self.clock.get() + seconds * 1_000_000_000;
        loop {
            job.collect();
            if let Ok(exit) = job.exit.try_recv() {
                job.collect();
                return exit;
            }
            assert!(self.turn(), "nothing happens any more: {:?} {:?}", job.stdout, job.stderr);
            assert!(self.clock.get() < end, "it takes too long: {:?} {:?}", job.stdout, job.stderr);
        }
    }

    fn run_for(&self, millis: u64) {
        let end = self.clock.get() + millis * 1_000_000;
        while self.clock.get() < end && self.turn() {}
    }

    /// Runs a program on `a` to its end.
    fn on_a(&mut self, line: &[&str]) -> (Exit, Job) {
        let mut job = Self::start(&mut self.a, line);
        let exit = self.wait(&mut job, 600);
        (exit, job)
    }

    fn serve_on_b(&mut self, line: &[&str]) -> Job {
        let job = Self::start(&mut self.b, line);
        self.run_for(10);
        job
    }
}

fn ok(exit: Exit, job: &Job) {
    assert_eq!(exit, Exit { code: 0, signal: 0 }, "{} {}", job.stdout, job.stderr);
}

#[test]
fn ping_reports_every_answer_and_the_summary() {
    let mut lab = Lab::new();
    let (exit, job) = lab.on_a(&["ping", "-c", "3", "-i", "0.01", "b"]);
    ok(exit, &job);
    assert!(job.stdout.starts_with("PING b (10.0.0.2) 56(84) bytes of data.\n"), "{}", job.stdout);
    assert!(job.stdout.contains("64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time="), "{}", job.stdout);
    assert!(job.stdout.contains("3 packets transmitted, 3 received, 0% packet loss"), "{}", job.stdout);
    assert!(job.stdout.contains("rtt min/avg/max/mdev = "), "{}", job.stdout);
}

#[test]
fn ping_gives_all_times_as_json() {
    let mut lab = Lab::new();
    let (exit, job) = lab.on_a(&["ping", "-c", "20", "-i", "0.0002", "--json", "10.0.0.2"]);
    ok(exit, &job);
    let json = job.json();
    assert_eq!((json["transmitted"].as_u64(), json["received"].as_u64()), (Some(20), Some(20)));
    assert_eq!(json["rtt_ns"].as_array().map(Vec::len), Some(20));
}

#[test]
fn ping_of_a_missing_host_says_so_and_fails() {
    let mut lab = Lab::new();
    let (exit, job) = lab.on_a(&["ping", "-c", "1", "-W", "5", "10.0.0.99"]);
    assert_eq!(exit.code, 1);
    assert!(job.stdout.contains("Destination Host Unreachable"), "{}", job.stdout);
    assert!(job.stdout.contains("100% packet loss"), "{}", job.stdout);
    let (exit, job) = lab.on_a(&["ping", "nobody"]);
    assert_eq!((exit.code, job.stderr.as_str()), (1, "ping: nobody: Name or service not known\n"));
}

#[test]
fn interrupted_ping_prints_its_summary() {
    let mut lab = Lab::new();
    let mut job = Lab::start(&mut lab.a, &["ping", "b"]);
    lab.run_for(2500);
    lab.a.programs.signal(&lab.a.shared, job.id, libc::SIGINT);
    let exit = lab.wait(&mut job, 10);
    ok(exit, &job);
    assert!(job.stdout.contains("3 packets transmitted, 3 received"), "{}", job.stdout);
}

#[test]
fn wrong_arguments_exit_with_2_and_help_with_0() {
    let mut lab = Lab::new();
    let (exit, job) = lab.on_a(&["ping"]);
    assert_eq!(exit.code, 2);
    assert!(job.stderr.contains("Usage"), "{}", job.stderr);
    let (exit, job) = lab.on_a(&["stream", "--help"]);
    ok(exit, &job);
    assert!(job.stdout.contains("--verify"), "{}", job.stdout);
}

#[test]
fn program_whose_reader_has_gone_ends() {
    let mut lab = Lab::new();
    let Job { output, mut exit, .. } = Lab::start(&mut lab.a, &["ping", "b"]);
    drop(output);
    lab.run_for(100);
    assert_eq!(exit.try_recv().map(|e: Exit| e.code), Ok(128 + libc::SIGPIPE));
}

/// A process outlives the tasks that it started.
#[test]
fn a_process_is_finished_once() {
    let (exit_in, mut exit) = oneshot::channel();
    let streams = Streams { stdin: mpsc::channel(1).1, output: mpsc::channel(1).0, exit: exit_in };
    let process = Process::new("x", "/".into(), streams);
    process.finish(Exit { code: 3, signal: 0 });
    assert!(process.is_finished());
    assert_eq!(exit.try_recv(), Ok(Exit { code: 3, signal: 0 }));
}
