//! A packed virtqueue against a peer that breaks the rules: the error names the rule, and
//! nothing outside the shared memory is touched.
#![cfg(not(loom))]

use proptest::prelude::*;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Chain, DeviceQueue, DriverQueue, Features, Layout, MAX_CHAIN, MemoryMap, RingError};
use std::collections::BTreeSet;
use std::sync::Arc;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Where shared memory begins, in the mapping and as a guest physical address.
const CANARY: u64 = 65536;
const GPA: u64 = 0x4000_0000;
const SHARED: usize = 65536;
const FILL: u8 = 0xa5;

/// Raw access to a ring, as a hostile peer has it.
struct Peer {
    region: Region,
    layout: Layout,
    /// What to add to an address of the layout for an offset in the region.
    shift: u64,
}

impl Peer {
    fn put(&self, at: u64, octets: &[u8]) {
        self.region.slice(at.wrapping_add(self.shift), octets.len()).expect("inside").write(octets);
    }

    fn desc(&self, index: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let mut d = [0; 16];
        d[..8].copy_from_slice(&addr.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12..14].copy_from_slice(&id.to_le_bytes());
        d[14..].copy_from_slice(&flags.to_le_bytes());
        self.put(self.layout.desc + u64::from(index) * 16, &d);
    }
}

/// A device whose driver is hostile; all around the shared memory lie canaries.
fn device(size: u16, features: Features) -> (Peer, DeviceQueue) {
    let region = Region::heap(SHARED + 2 * CANARY as usize);
    region.slice(0, CANARY as usize).expect("front").write(&vec![FILL; CANARY as usize]);
    region.slice(CANARY + SHARED as u64, CANARY as usize).expect("back").write(&vec![FILL; CANARY as usize]);
    let mut map = MemoryMap::new();
    map.add(GPA, SHARED as u64, 0, region.clone(), CANARY).expect("inside");
    let (layout, _) = Layout::in_region(GPA, size);
    let queue = DeviceQueue::new(Arc::new(map), layout, features).expect("fits");
    (Peer { region, layout, shift: CANARY.wrapping_sub(GPA) }, queue)
}

fn canaries_hold(region: &Region) -> bool {
    [0, CANARY + SHARED as u64].into_iter().all(|at| {
        let mut octets = vec![0; CANARY as usize];
        region.slice(at, octets.len()).expect("inside").read(&mut octets);
        octets.iter().all(|&o| o == FILL)
    })
}

/// What a device does with a chain: reads what is readable, writes what is writable.
fn use_chain(queue: &DeviceQueue, chain: &Chain) {
    let mut buf = vec![0x11; 65536];
    for s in &chain.segments {
        let slice = queue.map().slice_at(s.region, s.offset, s.len as usize).expect("checked by pop");
        let n = buf.len().min(slice.len());
        let part = slice.sub(0, n).expect("shorter");
        if s.writable { part.write(&buf[..n]) } else { part.read(&mut buf[..n]) }
    }
}

#[track_caller]
fn device_says(features: Features, write: impl FnOnce(&Peer), want: RingError) {
    let (peer, mut queue) = device(8, features);
    write(&peer);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&mut chain), Err(want));
    assert_eq!(queue.pop(&mut chain), Err(want), "a queue that failed stays stopped");
    assert!(!queue.has_avail());
    assert!(queue.enable_kick(), "a stopped queue never lets its device sleep unaware");
    assert!(canaries_hold(&peer.region));
}

#[test]
fn device_names_the_rule_that_a_descriptor_broke() {
    let none = Features::empty();
    let outside = |addr, len| RingError::OutOfBounds { addr, len };
    for (addr, len) in [
        (GPA - 1, 2),
        (GPA + SHARED as u64, 1),
        (GPA + SHARED as u64 - 1, 2),
        (0, 1),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (GPA, SHARED as u32 + 1),
    ] {
        device_says(none, |p| p.desc(0, addr, len, 0, AVAIL), outside(addr, len.into()));
    }
    device_says(none, |p| p.desc(0, GPA, 1, 0, AVAIL | USED), RingError::WrapBit(0));
    let loop_all = |p: &Peer| (0..8).for_each(|i| p.desc(i, GPA, 1, 0, AVAIL | NEXT));
    device_says(none, loop_all, RingError::DescriptorLoop(0));
    let stale_next = |p: &Peer| {
        p.desc(0, GPA, 1, 0, AVAIL | NEXT);
        p.desc(1, GPA, 1, 0, USED);
    };
    device_says(none, stale_next, RingError::WrapBit(1));
    let backwards = |p: &Peer| {
        p.desc(1, GPA, 1, 0, AVAIL);
        p.desc(0, GPA, 1, 0, AVAIL | NEXT | WRITE);
    };
    device_says(none, backwards, RingError::ReadableAfterWritable(1));
}

#[test]
fn device_names_the_rule_that_a_table_broke() {
    let with = Features::INDIRECT_DESC;
    let table = |p: &Peer, entries: usize, flags: u16| {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&GPA.to_le_bytes());
        entry[14..].copy_from_slice(&flags.to_le_bytes());
        p.put(GPA + 8192, &entry.repeat(entries));
    };
    device_says(Features::empty(), |p| p.desc(0, GPA + 8192, 16, 0, AVAIL | INDIRECT), RingError::IndirectNotNegotiated(0));
    device_says(with, |p| p.desc(0, GPA + 8192, 16, 0, AVAIL | INDIRECT | NEXT), RingError::IndirectInChain(0));
    let in_chain = |p: &Peer| {
        p.desc(1, GPA + 8192, 16, 0, AVAIL | INDIRECT);
        p.desc(0, GPA, 1, 0, AVAIL | NEXT);
    };
    device_says(with, in_chain, RingError::IndirectInChain(1));
    for len in [0, 8, 17] {
        device_says(with, |p| p.desc(0, GPA + 8192, len, 0, AVAIL | INDIRECT), RingError::IndirectLength(len));
    }
    let nested = |p: &Peer| {
        table(p, 1, INDIRECT);
        p.desc(0, GPA + 8192, 16, 0, AVAIL | INDIRECT);
    };
    device_says(with, nested, RingError::IndirectInChain(0));
    let long = 16 * (MAX_CHAIN as u32 + 1);
    device_says(with, |p| p.desc(0, GPA + 8192, long, 0, AVAIL | INDIRECT), RingError::ChainTooLong(0));
    let outside = GPA + SHARED as u64 - 16;
    device_says(with, |p| p.desc(0, outside, 32, 0, AVAIL | INDIRECT), RingError::OutOfBounds { addr: outside, len: 32 });
}

/// DPDK's virtio driver marks the header in a transmit table as writable: on a ring on which the
/// device writes nothing that does no harm, and all other rules hold.
#[test]
fn a_device_that_writes_nothing_reads_tables_marked_writable() {
    let entry = |len: u32, flags: u16| {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&GPA.to_le_bytes());
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        entry[14..].copy_from_slice(&flags.to_le_bytes());
        entry
    };
    let table = |p: &Peer, last: u16| {
        p.put(GPA + 8192, &[entry(12, WRITE), entry(50, NEXT), entry(60, last)].concat());
        p.desc(0, GPA + 8192, 48, 7, AVAIL | INDIRECT | WRITE);
    };
    device_says(Features::INDIRECT_DESC, |p| table(p, 0), RingError::ReadableAfterWritable(0));
    let mut chain = Chain::new();
    for last in [0, WRITE] {
        let (peer, mut queue) = device(8, Features::INDIRECT_DESC);
        queue.expect_readable_tables();
        table(&peer, last);
        assert_eq!(queue.pop(&mut chain), Ok(true));
        assert_eq!((chain.id, chain.descs, chain.segments.len(), chain.readable, chain.writable), (7, 1, 3, 122, 0));
        assert!(chain.segments.iter().all(|s| !s.writable));
    }
    let (peer, mut queue) = device(8, Features::INDIRECT_DESC);
    queue.expect_readable_tables();
    table(&peer, INDIRECT);
    assert_eq!(queue.pop(&mut chain), Err(RingError::IndirectInChain(0)));
    let (peer, mut queue) = device(8, Features::INDIRECT_DESC);
    queue.expect_readable_tables();
    peer.desc(1, GPA, 1, 0, AVAIL);
    peer.desc(0, GPA, 1, 0, AVAIL | NEXT | WRITE);
    assert_eq!(queue.pop(&mut chain), Err(RingError::ReadableAfterWritable(1)), "in the ring itself the mark counts");
}

#[test]
fn device_names_long_chains_overruns_and_event_words() {
    let (peer, mut queue) = device(256, Features::EVENT_IDX);
    let mut chain = Chain::new();
    (0..256).for_each(|i| peer.desc(i, GPA, 1, 0, AVAIL | NEXT));
    assert_eq!(queue.pop(&mut chain), Err(RingError::ChainTooLong(0)));

    // All taken, none returned, and the driver goes on into the next lap.
    let (peer, mut queue) = device(4, Features::EVENT_IDX);
    (0..4).for_each(|i| peer.desc(i, GPA, 1, i, AVAIL));
    (0..4).for_each(|_| assert_eq!(queue.pop(&mut chain), Ok(true)));
    assert_eq!(queue.pop(&mut chain), Ok(false));
    peer.desc(0, GPA, 1, 0, USED);
    assert_eq!(queue.pop(&mut chain), Err(RingError::Overrun(0)));

    for (word, want) in [
        (2 << 16 | 4, RingError::IndexBeyondRing(4)),
        (2 << 16 | 0x7fff, RingError::IndexBeyondRing(0x7fff)),
        (3 << 16, RingError::EventFlags(3)),
        (0xffff << 16, RingError::EventFlags(0xffff)),
    ] {
        let (peer, mut queue) = device(4, Features::EVENT_IDX);
        peer.desc(0, GPA, 1, 0, AVAIL);
        peer.put(peer.layout.driver, &u32::to_le_bytes(word));
        assert_eq!(queue.pop(&mut chain), Ok(true));
        queue.push_used(chain.id, chain.descs, 0);
        queue.needs_call();
        assert_eq!(queue.pop(&mut chain), Err(want));
    }
}

#[test]
fn layouts_outside_or_misaligned_are_refused() {
    let region = Region::heap(8192);
    let map = Arc::new(MemoryMap::identity(region.clone()));
    let good = Layout { desc: 0, driver: 4096, device: 4100, size: 16, indirect: None };
    assert!(DeviceQueue::new(map.clone(), good, Features::empty()).is_ok());
    for (bad, want) in [
        (Layout { size: 0, ..good }, RingError::QueueSize(0)),
        (Layout { size: 32769, ..good }, RingError::QueueSize(32769)),
        (Layout { desc: 8, ..good }, RingError::Misaligned(8)),
        (Layout { driver: 4098, ..good }, RingError::Misaligned(4098)),
        (Layout { desc: 8192 - 128, ..good }, RingError::OutOfBounds { addr: 8192 - 128, len: 256 }),
        (Layout { device: 8192, ..good }, RingError::OutOfBounds { addr: 8192, len: 4 }),
        (Layout { driver: u64::MAX - 3, ..good }, RingError::OutOfBounds { addr: u64::MAX - 3, len: 4 }),
    ] {
        assert_eq!(DeviceQueue::new(map.clone(), bad, Features::empty()).expect_err("refused"), want);
        assert_eq!(DriverQueue::<()>::new(region.clone(), bad, Features::empty()).expect_err("refused"), want);
    }
}

/// A driver whose device is hostile, with two buffers of 100 octets in flight.
fn driver() -> (Peer, DriverQueue<u32>) {
    let (layout, end) = Layout::in_region(0, 4);
    let region = Region::heap(end as usize);
    let mut queue = DriverQueue::new(region.clone(), layout, Features::EVENT_IDX).expect("fits");
    queue.add(&[], &[(0, 100)], 0).expect("room");
    queue.add(&[(0, 10)], &[(0, 60), (0, 40)], 1).expect("room");
    (Peer { region, layout, shift: 0 }, queue)
}

#[track_caller]
fn driver_says(write: impl FnOnce(&Peer), want: RingError) {
    let (peer, mut queue) = driver();
    write(&peer);
    assert_eq!(queue.pop_used(), Err(want));
    assert_eq!(queue.pop_used(), Err(want), "a queue that failed stays stopped");
    assert!(!queue.has_used());
    assert_eq!(queue.drain().count(), 2, "the driver keeps its buffers");
}

#[test]
fn driver_names_the_rule_that_the_device_broke() {
    driver_says(|p| p.desc(0, 0, 100, 2, AVAIL | USED), RingError::UnknownId(2));
    driver_says(|p| p.desc(0, 0, 100, 4, AVAIL | USED), RingError::UnknownId(4));
    driver_says(|p| p.desc(0, 0, 100, 0xffff, AVAIL | USED), RingError::UnknownId(0xffff));
    driver_says(|p| p.desc(0, 0, 101, 0, AVAIL | USED), RingError::UsedLength { len: 101, capacity: 100 });
    driver_says(|p| p.desc(0, 0, u32::MAX, 0, AVAIL | USED), RingError::UsedLength { len: u32::MAX, capacity: 100 });
    driver_says(|p| p.desc(0, 0, 0, 3, USED), RingError::WrapBit(0));
    driver_says(|p| p.desc(0, 0, 0, 3, 0), RingError::WrapBit(0));
}

#[test]
fn driver_takes_an_id_once() {
    let (peer, mut queue) = driver();
    peer.desc(0, 0, 1, 0, AVAIL | USED);
    assert_eq!(queue.pop_used(), Ok(Some((0, 1))));
    peer.desc(1, 0, 1, 0, AVAIL | USED);
    assert_eq!(queue.pop_used(), Err(RingError::UnknownId(0)));
}

#[test]
fn driver_names_event_words() {
    for (word, want) in [(2 << 16 | 4, RingError::IndexBeyondRing(4)), (7 << 16, RingError::EventFlags(7))] {
        let (peer, mut queue) = driver();
        peer.put(peer.layout.device, &u32::to_le_bytes(word));
        queue.needs_kick();
        assert_eq!(queue.pop_used(), Err(want));
    }
}

fn flags() -> impl Strategy<Value = u16> {
    let bits = prop::sample::subsequence(vec![NEXT, WRITE, INDIRECT, AVAIL, USED], 0..=5);
    prop_oneof![8 => bits.prop_map(|b| b.iter().sum()), 1 => any::<u16>(), 4 => Just(AVAIL), 4 => Just(AVAIL | WRITE), 4 => Just(AVAIL | NEXT)]
}

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![6 => GPA..GPA + SHARED as u64, 1 => GPA - 64..GPA + SHARED as u64 + 64, 1 => any::<u64>()]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0u32..4096, 2 => (0u32..70).prop_map(|n| n * 16), 1 => any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever the driver writes, whenever: the device stays inside the shared memory,
    /// never panics, and never takes more than the ring holds.
    #[test]
    fn device_survives_any_driver(
        size in 1u16..24,
        indirect in any::<bool>(),
        writes in prop::collection::vec((any::<u16>(), addr(), len(), 0u16..32, flags(), any::<u32>()), 1..120),
    ) {
        let features = if indirect { Features::INDIRECT_DESC | Features::EVENT_IDX } else { Features::empty() };
        let (peer, mut queue) = device(size, features);
        let (mut chain, mut failed) = (Chain::new(), None);
        for (index, addr, len, id, flags, event) in writes {
            peer.desc(index % size, addr, len, id, flags);
            // Tables too: descriptors somewhere in the pool.
            peer.put(GPA + SHARED as u64 - 32, &addr.to_le_bytes());
            if event % 16 == 0 {
                peer.put(peer.layout.driver, &event.to_le_bytes());
            }
            for _ in 0..2 * size {
                match queue.pop(&mut chain) {
                    Ok(true) => {
                        prop_assert_eq!(failed, None);
                        prop_assert!(queue.in_flight() <= size && chain.descs <= size);
                        for s in &chain.segments {
                            prop_assert!(s.offset >= CANARY && s.offset + u64::from(s.len) <= CANARY + SHARED as u64);
                        }
                        use_chain(&queue, &chain);
                        // Some are returned, some kept.
                        if chain.id % 3 != 0 {
                            queue.push_used(chain.id, chain.descs, chain.writable.min(u64::from(u32::MAX)) as u32);
                            queue.needs_call();
                        }
                    }
                    Ok(false) => break,
                    Err(e) => {
                        prop_assert!(failed.is_none_or(|f| f == e), "the first error stays");
                        failed = Some(e);
                        break;
                    }
                }
            }
            queue.enable_kick();
        }
        prop_assert!(canaries_hold(&peer.region));
    }

    /// Whatever the device writes: the driver gives each token once, with a length that its
    /// buffers hold, and never panics.
    #[test]
    fn driver_survives_any_device(
        size in 1u16..24,
        writes in prop::collection::vec((any::<u16>(), len(), 0u16..32, flags(), any::<u32>(), 1usize..4), 1..200),
    ) {
        let (layout, end) = Layout::in_region(0, size);
        let region = Region::heap(end as usize);
        let peer = Peer { region: region.clone(), layout, shift: 0 };
        let mut queue = DriverQueue::new(region, layout, Features::EVENT_IDX | Features::INDIRECT_DESC).expect("fits");
        let (mut held, mut next) = (BTreeSet::new(), 0u32);
        for (index, len, id, flags, event, segments) in writes {
            // The token is the capacity of its chain, made unique.
            let writable = vec![(0u64, 1000u32); segments];
            if queue.add(&[], &writable, (next, 1000 * segments as u32)).is_ok() {
                held.insert(next);
                next += 1;
            }
            peer.desc(index % size, 0, len, id, flags);
            if event % 16 == 0 {
                peer.put(layout.device, &event.to_le_bytes());
            }
            queue.needs_kick();
            while let Ok(Some(((token, capacity), len))) = queue.pop_used() {
                prop_assert!(held.remove(&token), "each token once");
                prop_assert!(len <= capacity);
            }
            queue.enable_call();
            prop_assert!(queue.free() <= size);
        }
        let left: BTreeSet<u32> = queue.drain().map(|(token, _)| token).collect();
        prop_assert_eq!(left, held, "what was not given back is still held");
    }
}
