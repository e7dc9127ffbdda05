//! Both sides of a packed virtqueue in one thread, against a model.
#![cfg(not(loom))]

use proptest::prelude::*;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Chain, DeviceQueue, DriverQueue, Features, Layout, MAX_CHAIN, MemoryMap, RingFull, VringBase};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

fn pair(size: u16, features: Features) -> (Region, DriverQueue<u32>, DeviceQueue) {
    let (layout, end) = Layout::in_region(0, size);
    let region = Region::heap(end as usize + 65536);
    let driver = DriverQueue::new(region.clone(), layout, features).expect("layout fits");
    let device = DeviceQueue::new(Arc::new(MemoryMap::identity(region.clone())), layout, features).expect("layout fits");
    (region, driver, device)
}

#[test]
fn chain_crosses_and_comes_back_over_many_laps() {
    for size in [1, 2, 3, 7, 256] {
        let (_region, mut driver, mut device) = pair(size, Features::EVENT_IDX);
        let mut chain = Chain::new();
        for n in 0..3 * u32::from(size) + 5 {
            assert!(!device.pop(&mut chain).expect("idle"));
            assert_eq!(driver.add(&[], &[(4096, 100)], n), Ok(()));
            assert!(device.pop(&mut chain).expect("available"));
            assert_eq!((chain.segments[0].gpa, chain.segments[0].len, chain.segments[0].writable), (4096, 100, true));
            device.push_used(chain.id, chain.descs, 7);
            assert_eq!(driver.pop_used(), Ok(None), "not published yet");
            device.publish();
            assert_eq!(driver.pop_used(), Ok(Some((n, 7))));
            assert_eq!(driver.pop_used(), Ok(None));
        }
    }
}

#[test]
fn staged_chains_are_invisible_until_published() {
    let (_region, mut driver, mut device) = pair(4, Features::empty());
    let mut chain = Chain::new();
    for lap in 0..5 {
        for n in 0..3 {
            driver.stage(&[(0, 1)], &[], lap * 3 + n).expect("room");
            assert!(!device.pop(&mut chain).expect("idle"));
            assert_eq!(driver.pop_used(), Ok(None));
        }
        driver.publish();
        for _ in 0..3 {
            assert!(device.pop(&mut chain).expect("available"));
            device.push_used(chain.id, chain.descs, 0);
        }
        device.publish();
        for n in 0..3 {
            assert_eq!(driver.pop_used(), Ok(Some((lap * 3 + n, 0))));
        }
    }
}

#[test]
fn full_ring_hands_the_token_back() {
    let (_region, mut driver, _device) = pair(2, Features::empty());
    driver.add(&[(0, 1)], &[], 1).expect("room");
    assert_eq!(driver.add(&[(0, 1), (0, 1)], &[], 2), Err((RingFull, 2)));
    driver.add(&[(0, 1)], &[], 3).expect("room");
    assert_eq!(driver.add(&[(0, 1)], &[], 4), Err((RingFull, 4)));
    assert_eq!(driver.free(), 0);
    assert_eq!(driver.drain().collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn tokens_are_dropped_with_the_queue() {
    let (layout, end) = Layout::in_region(0, 4);
    let region = Region::heap(end as usize);
    let token = Arc::new(());
    let mut driver = DriverQueue::new(region, layout, Features::empty()).expect("fits");
    driver.add(&[(0, 1)], &[], token.clone()).expect("room");
    driver.add(&[(0, 1)], &[], token.clone()).expect("room");
    assert_eq!(Arc::strong_count(&token), 3);
    assert_eq!(driver.drain().count(), 2);
    driver.add(&[(0, 1)], &[], token.clone()).expect("room");
    drop(driver);
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn chain_put_back_is_taken_again() {
    let (_region, mut driver, mut device) = pair(3, Features::empty());
    let mut chain = Chain::new();
    for n in 0..8 {
        driver.add(&[(n * 8, 4), (n, 5)], &[], n as u32).expect("room");
        assert!(device.pop(&mut chain).expect("available"));
        let before = chain.segments.clone();
        device.unpop(&chain);
        assert_eq!(device.in_flight(), 0);
        assert!(device.pop(&mut chain).expect("available"));
        assert_eq!(chain.segments, before);
        device.push_used(chain.id, chain.descs, 0);
        device.publish();
        assert_eq!(driver.pop_used(), Ok(Some((n as u32, 0))));
    }
}

#[test]
fn next_device_goes_on_where_the_last_one_stopped() {
    let (region, mut driver, mut device) = pair(5, Features::empty());
    let mut chain = Chain::new();
    for n in 0..23 {
        driver.add(&[(n, 4)], &[], n as u32).expect("room");
        driver.add(&[(n, 4)], &[], 100 + n as u32).expect("room");
        assert!(device.pop(&mut chain).expect("available"));
        device.push_used(chain.id, chain.descs, 0);
        device.publish();
        // Taken and not returned when the device dies: the next one takes it again.
        assert!(device.pop(&mut chain).expect("available"));
        let bits = device.base().to_bits();
        let layout = Layout::in_region(0, 5).0;
        device = DeviceQueue::new(Arc::new(MemoryMap::identity(region.clone())), layout, Features::empty()).expect("fits");
        device.set_base(VringBase::from_bits(bits)).expect("inside the ring");
        assert!(device.pop(&mut chain).expect("available"));
        device.push_used(chain.id, chain.descs, 0);
        device.publish();
        assert_eq!(driver.pop_used(), Ok(Some((n as u32, 0))));
        assert_eq!(driver.pop_used(), Ok(Some((100 + n as u32, 0))));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Add { readable: Vec<u32>, writable: Vec<u32>, stage: bool },
    Pop,
    Use { pick: usize, fill: u32 },
    Publish,
    PopUsed,
    DisableKick,
    EnableKick,
    DisableCall,
    EnableCall(u16),
}

fn op() -> impl Strategy<Value = Op> {
    let lens = |max| prop::collection::vec(0u32..3000, 0..max);
    prop_oneof![
        4 => (lens(9), lens(9), any::<bool>()).prop_map(|(readable, writable, stage)| Op::Add { readable, writable, stage }),
        4 => Just(Op::Pop),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(pick, fill)| Op::Use { pick, fill }),
        2 => Just(Op::Publish),
        4 => Just(Op::PopUsed),
        1 => Just(Op::DisableKick),
        1 => Just(Op::EnableKick),
        1 => Just(Op::DisableCall),
        1 => (1u16..5).prop_map(Op::EnableCall),
    ]
}

type Segments = Vec<(u64, u32, bool)>;

/// What each side must see, kept in ordinary containers.
#[derive(Default)]
struct Model {
    staged: Vec<(u32, Segments)>,
    available: VecDeque<(u32, Segments)>,
    taken: BTreeMap<u16, (u32, u32, u16)>,
    returned: Vec<(u32, u32)>,
    used: VecDeque<(u32, u32)>,
    next: u32,
}

struct World {
    driver: DriverQueue<u32>,
    device: DeviceQueue,
    chain: Chain,
    model: Model,
    event_idx: bool,
    /// What the next kick or call must be, where the rules leave no choice.
    kick: Option<bool>,
    call: Option<bool>,
}

impl World {
    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Add { readable, writable, stage } => self.add(&readable, &writable, stage)?,
            Op::Pop => self.pop()?,
            Op::Use { pick, fill } => {
                let Some(&id) = self.model.taken.keys().nth(pick % self.model.taken.len().max(1)) else { return Ok(()) };
                let (token, capacity, descs) = self.model.taken.remove(&id).expect("picked");
                let len = if capacity == 0 { 0 } else { fill % (capacity + 1) };
                self.device.push_used(id, descs, len);
                self.model.returned.push((token, len));
            }
            Op::Publish => self.publish()?,
            Op::PopUsed => prop_assert_eq!(self.driver.pop_used(), Ok(self.model.used.pop_front())),
            Op::DisableKick => {
                self.device.disable_kick();
                self.kick = Some(false);
            }
            Op::EnableKick => {
                let already = self.device.enable_kick();
                prop_assert_eq!(already, !self.model.available.is_empty());
                self.kick = (!already).then_some(true);
            }
            Op::DisableCall => {
                self.driver.disable_call();
                self.call = Some(false);
            }
            Op::EnableCall(n) => {
                let already = self.driver.enable_call_after(n);
                prop_assert_eq!(already, !self.model.used.is_empty());
                self.call = (!already && (n == 1 || !self.event_idx)).then_some(true);
            }
        }
        Ok(())
    }

    fn add(&mut self, readable: &[u32], writable: &[u32], stage: bool) -> Result<(), TestCaseError> {
        if readable.is_empty() && writable.is_empty() {
            return Ok(());
        }
        let token = self.model.next;
        self.model.next += 1;
        let place = |lens: &[u32]| -> Vec<(u64, u32)> { lens.iter().map(|&l| (u64::from(l) * 3 + u64::from(token % 7), l)).collect() };
        let (r, w) = (place(readable), place(writable));
        if self.driver.stage(&r, &w, token).is_ok() {
            let side = |list: Vec<(u64, u32)>, writable| list.into_iter().map(move |(a, l)| (a, l, writable));
            self.model.staged.push((token, side(r, false).chain(side(w, true)).collect()));
        }
        if !stage {
            self.driver.publish();
            let published = self.model.staged.len();
            self.model.available.extend(self.model.staged.drain(..));
            let kick = self.driver.needs_kick();
            if published > 0 {
                if let Some(want) = self.kick {
                    prop_assert_eq!(kick, want);
                }
                // With EVENT_IDX one kick answers one request.
                if self.event_idx && self.kick == Some(true) {
                    self.kick = None;
                }
            }
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.device.has_avail(), !self.model.available.is_empty());
        prop_assert_eq!(self.device.pop(&mut self.chain), Ok(!self.model.available.is_empty()));
        let Some((token, segments)) = self.model.available.pop_front() else { return Ok(()) };
        let seen: Segments = self.chain.segments.iter().map(|s| (s.gpa, s.len, s.writable)).collect();
        prop_assert_eq!(seen, segments);
        let capacity = self.chain.writable as u32;
        let clash = self.model.taken.insert(self.chain.id, (token, capacity, self.chain.descs));
        prop_assert_eq!(clash, None, "an id names one chain at a time");
        Ok(())
    }

    fn publish(&mut self) -> Result<(), TestCaseError> {
        let returned = self.model.returned.len();
        self.device.publish();
        self.model.used.extend(self.model.returned.drain(..));
        let call = self.device.needs_call();
        if returned > 0 {
            if let Some(want) = self.call {
                prop_assert_eq!(call, want);
            }
            if self.event_idx && self.call == Some(true) {
                self.call = None;
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn queue_behaves_as_its_model(
        size in prop_oneof![1u16..20, Just(64)],
        event_idx in any::<bool>(),
        indirect in any::<bool>(),
        ops in prop::collection::vec(op(), 0..400),
    ) {
        let mut features = Features::empty();
        features.set(Features::EVENT_IDX, event_idx);
        features.set(Features::INDIRECT_DESC, indirect);
        let (_region, driver, device) = pair(size, features);
        let mut world = World { driver, device, chain: Chain::new(), model: Model::default(), event_idx, kick: None, call: None };
        for op in ops {
            world.apply(op)?;
        }
        // Everything comes back, whatever was going on.
        world.driver.publish();
        let staged: Vec<_> = world.model.staged.drain(..).collect();
        world.model.available.extend(staged);
        while !world.model.available.is_empty() {
            world.apply(Op::Pop)?;
        }
        while !world.model.taken.is_empty() {
            world.apply(Op::Use { pick: 0, fill: 0 })?;
        }
        world.apply(Op::Publish)?;
        while !world.model.used.is_empty() {
            world.apply(Op::PopUsed)?;
        }
        prop_assert_eq!(world.driver.free(), size);
        prop_assert_eq!(world.device.in_flight(), 0);
    }

    /// With EVENT_IDX the driver asks for one call after `n` descriptors: it comes with
    /// the batch that passes the `n`th, not before, not twice.
    #[test]
    fn call_comes_with_the_nth_descriptor(n in 1u16..8, batches in prop::collection::vec(1u16..4, 1..8), skip in 0u16..16) {
        let (_region, mut driver, mut device) = pair(8, Features::EVENT_IDX);
        let mut chain = Chain::new();
        for _ in 0..skip {
            driver.add(&[(0, 1)], &[], 0).expect("room");
            prop_assert!(device.pop(&mut chain).expect("available"));
            device.push_used(chain.id, chain.descs, 0);
            device.publish();
            device.needs_call();
            prop_assert!(driver.pop_used().expect("honest").is_some());
        }
        for token in 0..8 {
            driver.add(&[(0, 1)], &[], token).expect("room");
        }
        prop_assert!(!driver.enable_call_after(n));
        let mut returned = 0;
        for batch in batches {
            let before = returned;
            for _ in 0..batch.min(8 - returned) {
                prop_assert!(device.pop(&mut chain).expect("available"));
                device.push_used(chain.id, chain.descs, 0);
                returned += 1;
            }
            prop_assert_eq!(device.needs_call(), before < n && returned >= n);
        }
    }
}

#[test]
fn long_chains_go_through_a_table() {
    let (_region, mut driver, mut device) = pair(4, Features::INDIRECT_DESC);
    let segments: Vec<(u64, u32)> = (0..32).map(|i| (i * 16, 16)).collect();
    for token in 0..4 {
        driver.add(&segments, &[], token).expect("one descriptor each");
    }
    assert_eq!(driver.free(), 0);
    let mut chain = Chain::new();
    assert!(device.pop(&mut chain).expect("valid"));
    assert_eq!((chain.descs, chain.segments.len(), chain.readable), (1, 32, 512));
    const { assert!(MAX_CHAIN >= 32) };
}
