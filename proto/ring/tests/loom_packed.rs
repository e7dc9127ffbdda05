//! The packed virtqueue under every interleaving and every reordering that the memory
//! model allows: `RUSTFLAGS="--cfg loom" cargo test -p ringlab-ring
//! --no-default-features --release --test loom_packed`.
#![cfg(loom)]

mod loom_support;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use loom_support::Bell;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Chain, DeviceQueue, DriverQueue, Features, MemoryMap, RingMem};

const FEATURES: [Features; 2] = [Features::EVENT_IDX, Features::empty()];

fn pair(size: u16, features: Features) -> (DriverQueue<u64>, DeviceQueue) {
    let ring = RingMem::loom(size);
    let map = MemoryMap::identity(Region::heap(4096));
    (DriverQueue::with_ring(ring.clone(), features), DeviceQueue::with_ring(ring, map.into(), features))
}

/// Buffers whose every access loom checks for races.
fn buffers(n: usize) -> Arc<Vec<UnsafeCell<u64>>> {
    Arc::new((0..n).map(|_| UnsafeCell::new(0)).collect())
}

fn write(buffers: &[UnsafeCell<u64>], at: u64, value: u64) {
    // SAFETY: loom itself checks that no other access is concurrent.
    buffers[at as usize].with_mut(|p| unsafe { *p = value });
}

fn read(buffers: &[UnsafeCell<u64>], at: u64) -> u64 {
    // SAFETY: as in `write`.
    buffers[at as usize].with(|p| unsafe { *p })
}

/// Frames written before a chain is published are whole when the device takes it, and
/// what the device wrote is whole when the driver takes it back.
#[test]
fn published_chains_carry_their_buffers() {
    for batch in [1u64, 2] {
        loom::model(move || {
            let (mut driver, mut device) = pair(2, Features::empty());
            let near = buffers(2);
            let far = near.clone();
            let thread = thread::spawn(move || {
                let (mut chain, mut taken) = (Chain::new(), 0);
                while taken < batch {
                    if device.pop(&mut chain).expect("honest") {
                        let at = chain.segments[0].gpa;
                        assert_eq!((at, chain.segments[0].len), (taken, 8 + taken as u32));
                        assert_eq!(read(&far, at), 100 + at);
                        write(&far, at, 200 + at);
                        device.push_used(chain.id, chain.descs, 1 + at as u32);
                        taken += 1;
                    } else {
                        thread::yield_now();
                    }
                }
                device.publish();
            });
            for at in 0..batch {
                write(&near, at, 100 + at);
                driver.stage(&[], &[(at, 8 + at as u32)], at).expect("room");
            }
            driver.publish();
            let mut back = 0;
            while back < batch {
                match driver.pop_used().expect("honest") {
                    Some((at, len)) => {
                        assert_eq!((at, len), (back, 1 + back as u32));
                        assert_eq!(read(&near, at), 200 + at);
                        back += 1;
                    }
                    None => thread::yield_now(),
                }
            }
            thread.join().expect("device");
        });
    }
}

/// A ring of one descriptor, reused in the next lap: the wrap bits alone tell old from new.
#[test]
fn laps_are_told_apart() {
    loom::model(|| {
        let (mut driver, mut device) = pair(1, Features::empty());
        let thread = thread::spawn(move || {
            let (mut chain, mut seen) = (Chain::new(), 0);
            while seen < 2 {
                if device.pop(&mut chain).expect("honest") {
                    assert_eq!(chain.segments[0].gpa, seen);
                    device.push_used(chain.id, chain.descs, 0);
                    device.publish();
                    seen += 1;
                } else {
                    thread::yield_now();
                }
            }
        });
        for n in 0..2 {
            driver.add(&[(n, 8)], &[], n).expect("room");
            loop {
                match driver.pop_used().expect("honest") {
                    Some((token, _)) => break assert_eq!(token, n),
                    None => thread::yield_now(),
                }
            }
        }
        thread.join().expect("device");
    });
}

/// The device sleeps when it finds nothing; the driver rings only if asked to. A lost
/// wake-up is a deadlock, which loom reports.
#[test]
fn device_that_sleeps_is_woken() {
    for features in FEATURES {
        loom::model(move || {
            let (mut driver, mut device) = pair(2, features);
            let bell = Arc::new(Bell::default());
            let far = bell.clone();
            let thread = thread::spawn(move || {
                let (mut chain, mut taken) = (Chain::new(), 0);
                device.disable_kick();
                while taken < 2 {
                    if device.pop(&mut chain).expect("honest") {
                        taken += 1;
                    } else if !device.enable_kick() {
                        far.wait();
                        device.disable_kick();
                    }
                }
            });
            for n in 0..2 {
                driver.add(&[(n, 8)], &[], n).expect("room");
                if driver.needs_kick() {
                    bell.ring();
                }
            }
            thread.join().expect("device");
        });
    }
}

/// The driver sleeps until chains come back; the device rings only if asked to.
#[test]
fn driver_that_sleeps_is_woken() {
    for (features, after) in [(Features::EVENT_IDX, 1), (Features::EVENT_IDX, 2), (Features::empty(), 1)] {
        loom::model(move || {
            let (mut driver, mut device) = pair(2, features);
            let bell = Arc::new(Bell::default());
            let far = bell.clone();
            for n in 0..2 {
                driver.add(&[], &[(n, 8)], n).expect("room");
            }
            driver.disable_call();
            let thread = thread::spawn(move || {
                let mut chain = Chain::new();
                while device.pop(&mut chain).expect("honest") {
                    device.push_used(chain.id, chain.descs, 4);
                    if device.needs_call() {
                        far.ring();
                    }
                }
            });
            let mut back = 0;
            while back < 2 {
                if driver.pop_used().expect("honest").is_some() {
                    back += 1;
                } else if !driver.enable_call_after(after) {
                    bell.wait();
                    driver.disable_call();
                }
            }
            thread.join().expect("device");
        });
    }
}
