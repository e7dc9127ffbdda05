//! Figure `ring_64b`: frames a second through a packed virtqueue between two processes,
//! beside a bare single-producer ring that makes the same copies.
//!
//! `ring_bench [REPETITIONS [MILLISECONDS]]` prints one JSON object: medians of the
//! repetitions, which alternate between the two. Both move 64-octet frames in batches of
//! 32, copied in by one process and out by the other; both spin, and give the processor
//! away when they spun long. The other process is this program again.
//!
//! The bare ring: 256 slots of a length and 64 octets, a head and a tail, no ids, no
//! ownership, no checks. The virtqueue: 256 descriptors, a buffer for each, every address
//! checked by the device, every id and length by the driver.

use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Chain, DeviceQueue, DriverQueue, Features, Layout, MemoryMap};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::hint::{black_box, spin_loop};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::{Duration, Instant};

const FRAME: usize = 64;
const BATCH: u32 = 32;
const RING: u16 = 256;
/// Offsets of the control words, each in a cache line of its own.
const ROUND: u64 = 0;
const DONE: u64 = 64;
const MODE: u64 = 128;
const HEAD: u64 = 192;
const TAIL: u64 = 256;
const SLOTS: u64 = 4096;
/// Octets of a slot: a length and a frame.
const SLOT: u64 = 8 + FRAME as u64;
const VIRTQUEUE_AT: u64 = 65536;
const BUFFERS_AT: u64 = 1 << 20;
const REGION: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Virtqueue,
    Bare,
    Quit,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, fd] = args.as_slice()
        && flag == "--consumer"
    {
        return consumer(fd.parse().expect("a descriptor number"));
    }
    let number = |i: usize, default| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (repetitions, millis) = (number(0, 9), number(1, 200));
    let region = Region::memfd("ring_bench", REGION).expect("shared memory");
    let mut child = spawn(&region);
    pin(0);
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..repetitions * 2 {
        let mode = if round % 2 == 0 { Mode::Virtqueue } else { Mode::Bare };
        rates[(round % 2) as usize].push(run(&region, round as u32 + 1, mode, Duration::from_millis(millis)));
    }
    start(&region, repetitions as u32 * 2 + 1, Mode::Quit);
    child.wait().expect("the consumer ends");
    let [virtqueue, bare] = rates.map(median);
    println!("{{\"virtqueue\": {virtqueue:.0}, \"bare\": {bare:.0}, \"ratio\": {:.3}}}", virtqueue / bare);
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn spawn(region: &Region) -> Child {
    let fd = region.fd().expect("a memfd");
    fcntl_setfd(fd, FdFlags::empty()).expect("inheritable");
    let program = std::env::current_exe().expect("own path");
    Command::new(program).arg("--consumer").arg(fd.as_raw_fd().to_string()).spawn().expect("the consumer starts")
}

/// To the `n`th of the processors that this process may use, if it has that many.
fn pin(n: usize) {
    let allowed = rustix::thread::sched_getaffinity(None).expect("own affinity");
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&c| allowed.is_set(c)).collect();
    let mut set = CpuSet::new();
    set.set(cpus[n % cpus.len()]);
    sched_setaffinity(None, &set).expect("pinned");
}

fn word(region: &Region, at: u64) -> &AtomicU32 {
    let slice = region.slice(at, 4).expect("inside");
    // SAFETY: four octets of the mapping, aligned by choice of the offsets, accessed
    // atomically by both processes, alive as long as the region.
    unsafe { AtomicU32::from_ptr(slice.as_raw().0.cast()) }
}

/// Spins, not so fast that the peer's cache line is taken away all the time; gives the
/// processor away now and then, in case the peer needs it.
fn wait(spins: &mut u32) {
    *spins += 1;
    if (*spins).is_multiple_of(4096) {
        std::thread::yield_now()
    } else {
        for _ in 0..16 {
            spin_loop()
        }
    }
}

fn start(region: &Region, round: u32, mode: Mode) {
    word(region, MODE).store(mode as u32, Relaxed);
    word(region, ROUND).store(round, Release);
}

/// One measurement: frames a second, as the producer sees them returned.
fn run(region: &Region, round: u32, mode: Mode, time: Duration) -> f64 {
    word(region, HEAD).store(0, Relaxed);
    word(region, TAIL).store(0, Relaxed);
    let (layout, _) = Layout::in_region(VIRTQUEUE_AT, RING);
    let queue = DriverQueue::new(region.clone(), layout, Features::EVENT_IDX).expect("fits");
    start(region, round, mode);
    let begin = Instant::now();
    let frames = match mode {
        Mode::Virtqueue => produce_virtqueue(region, queue, begin, time),
        _ => produce_bare(region, begin, time),
    };
    let rate = f64::from(frames) / begin.elapsed().as_secs_f64();
    let mut spins = 0;
    while word(region, DONE).load(Acquire) != round {
        wait(&mut spins);
    }
    rate
}

/// Frames carry their number modulo 256; this one ends the round.
const LAST: u32 = u32::MAX;

/// The frames to send, ready made: both sides of the comparison measure the ring.
fn frames() -> Vec<[u8; FRAME]> {
    let frame = |n: u32| {
        let mut frame = [0x5a; FRAME];
        frame[..4].copy_from_slice(&n.to_ne_bytes());
        frame
    };
    (0..256).chain([LAST]).map(frame).collect()
}

fn pick(frames: &[[u8; FRAME]], n: u32, last: bool) -> &[u8; FRAME] {
    black_box(&frames[if last { 256 } else { n as usize % 256 }])
}

fn check(frame: &[u8; FRAME], n: u32) -> bool {
    let got = u32::from_ne_bytes(black_box(frame)[..4].try_into().expect("four octets"));
    assert!(got == n % 256 || got == LAST, "frame {got} instead of {n}");
    got == LAST
}

fn produce_virtqueue(region: &Region, mut queue: DriverQueue<u64>, begin: Instant, time: Duration) -> u32 {
    let mut buffers: Vec<u64> = (0..u64::from(RING)).rev().map(|i| BUFFERS_AT + i * FRAME as u64).collect();
    let frames = frames();
    let (mut n, mut spins, mut last) = (0, 0, false);
    queue.disable_call();
    while !last {
        last = begin.elapsed() > time;
        let mut sent = 0;
        while sent < BATCH {
            if u32::from(queue.free()) < BATCH {
                while let Some((buffer, _)) = queue.pop_used().expect("an honest device") {
                    region.slice(buffer, FRAME).expect("inside").prefetch_write();
                    buffers.push(buffer);
                }
                wait(&mut spins);
                continue;
            }
            while sent < BATCH {
                let frame = pick(&frames, n, last && sent == BATCH - 1);
                let buffer = buffers.pop().expect("one for each descriptor");
                region.slice(buffer, FRAME).expect("inside").write(frame);
                queue.stage(&[(buffer, black_box(FRAME as u32))], &[], buffer).expect("room");
                (n, sent) = (n + 1, sent + 1);
            }
            queue.publish();
        }
    }
    while queue.free() < RING {
        if queue.pop_used().expect("an honest device").is_none() {
            wait(&mut spins);
        }
    }
    n
}

fn consume_virtqueue(region: &Region) {
    let (layout, _) = Layout::in_region(VIRTQUEUE_AT, RING);
    let mut queue = DeviceQueue::new(Arc::new(MemoryMap::identity(region.clone())), layout, Features::EVENT_IDX).expect("fits");
    queue.disable_kick();
    let map = queue.map().clone();
    let (mut chain, mut frame) = (Chain::new(), [0; FRAME]);
    let (mut n, mut spins, mut last) = (0, 0, false);
    while !last {
        let mut taken = 0;
        while taken < BATCH && queue.pop(&mut chain).expect("an honest driver") {
            let segment = chain.segments[0];
            let len = segment.len as usize;
            map.slice_at(segment.region, segment.offset, len).expect("checked by pop").read(&mut frame[..len]);
            last = check(&frame, n);
            queue.push_used(chain.id, chain.descs, 0);
            (n, taken) = (n + 1, taken + 1);
        }
        if taken == 0 {
            wait(&mut spins);
        } else {
            queue.publish();
        }
    }
}

fn length(region: &Region, n: u32) -> &AtomicU32 {
    word(region, slot_at(n))
}

fn slot(region: &Region, n: u32) -> ringlab_ring::memory::Slice<'_> {
    region.slice(slot_at(n) + 8, FRAME).expect("inside")
}

fn slot_at(n: u32) -> u64 {
    SLOTS + u64::from(n % u32::from(RING)) * SLOT
}

fn produce_bare(region: &Region, begin: Instant, time: Duration) -> u32 {
    let (head, tail) = (word(region, HEAD), word(region, TAIL));
    let frames = frames();
    let (mut n, mut spins, mut last, mut seen) = (0u32, 0, false, 0);
    while !last {
        last = begin.elapsed() > time;
        while n + BATCH - seen > u32::from(RING) {
            seen = head.load(Acquire);
            wait(&mut spins);
        }
        for i in 0..BATCH {
            let frame = pick(&frames, n, last && i == BATCH - 1);
            slot(region, n).write(frame);
            length(region, n).store(black_box(FRAME as u32), Relaxed);
            n += 1;
        }
        tail.store(n, Release);
    }
    while head.load(Acquire) != n {
        wait(&mut spins);
    }
    n
}

fn consume_bare(region: &Region) {
    let (head, tail) = (word(region, HEAD), word(region, TAIL));
    let mut frame = [0; FRAME];
    let (mut n, mut spins, mut last) = (0u32, 0, false);
    while !last {
        let end = tail.load(Acquire);
        if end == n {
            wait(&mut spins);
            continue;
        }
        let end = n + (end - n).min(BATCH);
        while n != end {
            let len = length(region, n).load(Relaxed) as usize;
            slot(region, n).read(&mut frame[..len]);
            last = check(&frame, n);
            n += 1;
        }
        head.store(n, Release);
    }
}

fn consumer(fd: i32) {
    // SAFETY: the parent left this descriptor open for us; nobody else here owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let region = Region::map(fd, 0, REGION).expect("the parent's memory");
    pin(1);
    let (mut round, mut spins) = (0, 0);
    loop {
        while word(&region, ROUND).load(Acquire) == round {
            wait(&mut spins);
        }
        round = word(&region, ROUND).load(Acquire);
        match word(&region, MODE).load(Relaxed) {
            m if m == Mode::Virtqueue as u32 => consume_virtqueue(&region),
            m if m == Mode::Bare as u32 => consume_bare(&region),
            _ => return,
        }
        word(&region, DONE).store(round, Release);
    }
}
