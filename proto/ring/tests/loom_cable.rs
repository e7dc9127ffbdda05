//! The cable's ring under every interleaving and every reordering that the memory
//! model allows: `make loom`. Under loom a ring has four units: two entries of one
//! fragment each, so that the third entry reuses the octets of the first.
#![cfg(loom)]

mod loom_support;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use loom_support::Bell;
use ringlab_ring::cable::{Consumer, Entry, Fragment, Producer, UNITS, loom_pair, reached};

/// Units of an entry of one fragment.
const ENTRY: u32 = 2;

/// The storage of an arena, one word a frame; loom checks every access for races.
#[derive(Clone)]
struct Storage(Arc<Vec<UnsafeCell<u64>>>);

impl Storage {
    fn new(frames: usize) -> Self {
        Self(Arc::new((0..frames).map(|_| UnsafeCell::new(0)).collect()))
    }

    fn write(&self, at: u64, value: u64) {
        // SAFETY: loom itself checks that no other access is concurrent.
        self.0[at as usize].with_mut(|p| unsafe { *p = value });
    }

    fn read(&self, at: u64) -> u64 {
        // SAFETY: as in `write`.
        self.0[at as usize].with(|p| unsafe { *p })
    }
}

fn push(producer: &mut Producer, offset: u64) -> u32 {
    producer.push(&[offset as u8; 12], &[Fragment { region: 0, len: 60, offset }])
}

/// The frame of the next entry, if one waits.
fn pop(consumer: &mut Consumer, entry: &mut Entry) -> Option<u64> {
    consumer.pop(entry).expect("honest").then(|| {
        let offset = entry.fragments[0].offset;
        assert_eq!(entry.header, [offset as u8; 12]);
        offset
    })
}

/// Entries and the frames that they name are whole when the receiver takes them, and
/// the receiver has read both before the transmitter writes there again.
#[test]
fn published_entries_carry_their_frames_and_are_reused_when_released() {
    const FRAMES: u64 = 3;
    loom::model(|| {
        let (mut producer, mut consumer) = loom_pair();
        let slots = u64::from(UNITS / ENTRY);
        let near = Storage::new(slots as usize);
        let far = near.clone();
        let receiver = thread::spawn(move || {
            let (mut entry, mut next) = (Entry::default(), 0);
            while next < FRAMES {
                match pop(&mut consumer, &mut entry) {
                    Some(at) => {
                        assert_eq!((at, far.read(at)), (next % slots, 100 + next));
                        let _ = consumer.release();
                        next += 1;
                    }
                    None => thread::yield_now(),
                }
            }
        });
        for frame in 0..FRAMES {
            while !producer.has_room(1).expect("honest") {
                thread::yield_now();
            }
            near.write(frame % slots, 100 + frame);
            push(&mut producer, frame % slots);
            let _ = producer.publish();
        }
        receiver.join().expect("receiver");
    });
}

/// The receiver sleeps when it finds nothing; the transmitter rings only who sleeps. A
/// lost wake-up is a deadlock, which loom reports.
#[test]
fn receiver_that_sleeps_is_woken() {
    loom::model(|| {
        let (mut producer, mut consumer) = loom_pair();
        let bell = Arc::new(Bell::default());
        let far = bell.clone();
        let receiver = thread::spawn(move || {
            let (mut entry, mut next) = (Entry::default(), 0);
            while next < 2 {
                if let Some(frame) = pop(&mut consumer, &mut entry) {
                    assert_eq!(frame, next);
                    next += 1;
                } else if !consumer.sleep().expect("honest") {
                    far.wait();
                    consumer.wake();
                }
            }
        });
        for frame in 0..2 {
            push(&mut producer, frame);
            if producer.publish() {
                bell.ring();
            }
        }
        receiver.join().expect("receiver");
    });
}

/// The transmitter sleeps until there is room; the receiver rings only who waits.
#[test]
fn transmitter_that_waits_for_room_is_woken() {
    loom::model(|| {
        let (mut producer, mut consumer) = loom_pair();
        let bell = Arc::new(Bell::default());
        let far = bell.clone();
        for frame in 0..2 {
            push(&mut producer, frame);
        }
        assert!(!producer.publish(), "nobody sleeps");
        let receiver = thread::spawn(move || {
            let mut entry = Entry::default();
            for frame in 0..2 {
                assert_eq!(pop(&mut consumer, &mut entry), Some(frame));
                if consumer.release() {
                    far.ring();
                }
            }
        });
        for position in [ENTRY, 2 * ENTRY] {
            while !producer.wait_for(position).expect("honest") {
                bell.wait();
            }
            assert!(producer.has_room(1).expect("honest"));
            producer.stop_waiting();
        }
        receiver.join().expect("receiver");
    });
}

/// Who waits for a position is not rung before: the request and its position are one.
#[test]
fn transmitter_is_rung_at_its_position_only() {
    loom::model(|| {
        let (mut producer, mut consumer) = loom_pair();
        let bell = Arc::new(Bell::default());
        let far = bell.clone();
        for frame in 0..2 {
            push(&mut producer, frame);
        }
        assert!(!producer.publish(), "nobody sleeps");
        let receiver = thread::spawn(move || {
            let mut entry = Entry::default();
            while pop(&mut consumer, &mut entry).is_some() {
                if consumer.release() {
                    far.ring();
                }
            }
        });
        if !producer.wait_for(2 * ENTRY).expect("honest") {
            bell.wait();
            assert!(reached(producer.head().expect("honest"), 2 * ENTRY), "rung too early");
        }
        receiver.join().expect("receiver");
    });
}
