use super::*;
use crate::offload::check;
use alloc::vec;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{DriverQueue, Layout};
use ringlab_ring::vnet::{F_NEEDS_CSUM, GSO_TCPV4};

const ALL: Features = Features::CSUM
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4)
    .union(Features::HOST_TSO4)
    .union(Features::MRG_RXBUF)
    .union(Features::EVENT_IDX);
const DATA: u64 = 1 << 20;

/// A port and its driver, over one region.
struct Bench {
    port: Port,
    region: Region,
    rx: Vec<DriverQueue<u64>>,
    tx: Vec<DriverQueue<u64>>,
    /// Where the next buffer lies.
    next: u64,
}

impl Bench {
    fn new(pairs: u16, features: Features, params: ModerationParams) -> Self {
        let region = Region::heap(4 << 20);
        let mut bench = Self { port: Port::new(pairs, 1500, params), region, rx: vec![], tx: vec![], next: DATA };
        bench.attach(pairs, features);
        bench
    }

    fn attach(&mut self, pairs: u16, features: Features) {
        let map = Arc::new(MemoryMap::identity(self.region.clone()));
        self.port.set_features(features);
        self.port.set_map(map.clone());
        (self.rx, self.tx) = (vec![], vec![]);
        let mut at = 0;
        for i in 0..2 * pairs {
            let (layout, end) = Layout::in_region(at, 64);
            at = end;
            let driver = DriverQueue::new(self.region.clone(), layout, features).expect("fits");
            if i % 2 == 0 {
                self.rx.push(driver)
            } else {
                self.tx.push(driver)
            }
            assert!(self.port.attach(i, DeviceQueue::new(map.clone(), layout, features).expect("fits")));
            self.port.enable(i, true);
        }
    }

    fn buffers(&mut self, queue: usize, n: usize, len: u32) {
        for _ in 0..n {
            self.rx[queue].add(&[], &[(self.next, len)], self.next).expect("room");
            self.next += u64::from(len);
        }
    }

    fn transmit(&mut self, header: &VnetHdr, frame: &[u8]) {
        let len = (VNET_HDR_LEN + frame.len()) as u32;
        let slice = self.region.slice(self.next, len as usize).expect("inside");
        slice.write(&header.emit());
        slice.sub(VNET_HDR_LEN, frame.len()).expect("inside").write(frame);
        self.tx[0].add(&[(self.next, len)], &[], self.next).expect("room");
        self.next += u64::from(len);
    }

    fn receive(&mut self, header: &VnetHdr, frame: &[u8]) -> Received {
        let source = Region::heap(frame.len());
        let pieces = [source.slice(0, frame.len()).expect("inside")];
        pieces[0].write(frame);
        let view = FrameView::read(&pieces).expect("a frame");
        let offload = check(header, &view).expect("honest");
        self.port.receive(&view, &offload, &pieces).expect("honest driver")
    }

    /// The next frame of a queue.
    fn received(&mut self, queue: usize) -> Option<(VnetHdr, Vec<u8>)> {
        let (at, len) = self.rx[queue].pop_used().expect("honest device")?;
        let mut bytes = self.read(at, len);
        let header = VnetHdr::parse(bytes[..VNET_HDR_LEN].try_into().expect("a header"));
        for _ in 1..header.num_buffers {
            let (at, len) = self.rx[queue].pop_used().expect("honest device").expect("published whole");
            bytes.extend(self.read(at, len));
        }
        Some((header, bytes.split_off(VNET_HDR_LEN)))
    }

    fn read(&self, at: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.region.slice(at, len as usize).expect("inside").read(&mut bytes);
        bytes
    }
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| if i == 0 { 2 } else { i as u8 }).collect()
}

fn tcp(payload: usize) -> (VnetHdr, Vec<u8>) {
    let mut bytes = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 3, 4);
    builder.write(&mut bytes, &frame(payload)).expect("a frame");
    let header =
        VnetHdr { flags: F_NEEDS_CSUM, gso_type: GSO_TCPV4, hdr_len: 54, gso_size: 1000, csum_start: 34, csum_offset: 16, num_buffers: 0 };
    (header, bytes)
}

const NOW: Instant = Instant(1);

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.buffers(0, 8, 256);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(1000)), Received::Done);
    assert!(bench.received(0).is_none(), "not published yet");
    bench.port.flush(NOW);
    let (header, bytes) = bench.received(0).expect("published");
    assert_eq!((header.num_buffers, bytes), (4, frame(1000)));
    let counters = &bench.port.counters;
    assert_eq!((counters.get(Nic::RxPackets), counters.get(Nic::RxBytes), counters.get(Nic::DmaCopies)), (1, 1000, 1));
}

#[test]
fn too_few_buffers_take_none() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.buffers(0, 3, 256);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(1000)), Received::NoBuffer);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(500)), Received::Done);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(500)), Received::NoBuffer);
    bench.buffers(0, 3, 256);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(1000)), Received::Done);
    bench.port.flush(NOW);
    assert_eq!(bench.received(0).expect("first").1, frame(500));
    assert_eq!(bench.received(0).expect("second").1, frame(1000));
}

#[test]
fn without_merging_a_frame_longer_than_its_buffer_is_lost() {
    let mut bench = Bench::new(1, ALL - Features::MRG_RXBUF, ModerationParams::default());
    bench.buffers(0, 4, 256);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(300)), Received::Done);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(244)), Received::Done);
    bench.port.flush(NOW);
    assert_eq!(bench.received(0).expect("the one that fits").1, frame(244));
    assert_eq!(bench.port.counters.get(Nic::RxLengthErrors), 1);
}

#[test]
fn frames_beyond_the_mtu_are_length_errors() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.buffers(0, 4, 4096);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(1519)), Received::Done);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(1518)), Received::Done);
    bench.port.flush(NOW);
    assert_eq!(bench.received(0).expect("the shorter").1.len(), 1518);
    assert_eq!(bench.port.counters.get(Nic::RxLengthErrors), 1);
}

#[test]
fn segments_cross_whole_or_cut_as_negotiated() {
    for (features, frames) in [(ALL, 1), (ALL - Features::GUEST_TSO4, 4)] {
        let mut bench = Bench::new(1, features, ModerationParams::default());
        bench.buffers(0, 16, 2048);
        let (header, bytes) = tcp(3500);
        assert_eq!(bench.receive(&header, &bytes), Received::Done);
        bench.port.flush(NOW);
        let mut n = 0;
        while let Some((got, _)) = bench.received(0) {
            assert_eq!(got.is_gso(), frames == 1);
            n += 1;
        }
        assert_eq!(n, frames);
    }
}

#[test]
fn segments_that_find_no_buffer_are_missed_one_by_one() {
    let mut bench = Bench::new(1, ALL - Features::GUEST_TSO4, ModerationParams::default());
    bench.buffers(0, 1, 2048);
    let (header, bytes) = tcp(3500);
    assert_eq!(bench.receive(&header, &bytes), Received::Done);
    assert_eq!(bench.port.counters.get(Nic::RxMissed), 3);
}

#[test]
fn transmit_names_octets_and_completes_in_any_order() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    let mut tokens = Vec::new();
    let mut transmit = Transmit::empty();
    for len in [60, 100, 200] {
        bench.transmit(&VnetHdr::default(), &frame(len));
        assert!(bench.port.transmit_next(0, &mut transmit).expect("honest"));
        let map = bench.port.map().clone();
        let mut pieces = Pieces::new();
        transmit.slices(&map, &mut pieces).expect("inside");
        let mut bytes = vec![0; len];
        assert_eq!(crate::gather::Cursor::new(&pieces).read(&mut bytes), len);
        assert_eq!(bytes, frame(len));
        tokens.push(transmit.token);
    }
    assert!(!bench.port.transmit_next(0, &mut transmit).expect("honest"));
    for token in tokens.into_iter().rev() {
        bench.port.complete(token);
    }
    let mask = bench.port.flush(NOW);
    assert_eq!(mask, 1 << 1, "the driver's interrupt is on");
    let mut returned = 0;
    while bench.tx[0].pop_used().expect("honest").is_some() {
        returned += 1;
    }
    assert_eq!(returned, 3);
    assert_eq!(bench.port.counters.get(Nic::DmaCopies), 0);
}

#[test]
fn a_chain_without_a_frame_is_given_back_and_counted() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.transmit(&VnetHdr::default(), &frame(13));
    bench.tx[0].add(&[(DATA, 5)], &[], 0).expect("room");
    bench.transmit(&VnetHdr::default(), &frame(14));
    let mut transmit = Transmit::empty();
    assert!(bench.port.transmit_next(0, &mut transmit).expect("honest"));
    assert_eq!((transmit.len, bench.port.counters.get(Nic::TxRingErrors)), (14, 2));
}

#[test]
fn a_hostile_ring_stops_the_port_until_reset() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.tx[0].add(&[(1 << 40, 64)], &[], 0).expect("room");
    let mut transmit = Transmit::empty();
    let stopped = bench.port.transmit_next(0, &mut transmit).expect_err("outside");
    assert_eq!(stopped, Stopped { ring: 1, rule: RingError::OutOfBounds { addr: 1 << 40, len: 64 } });
    assert!(bench.port.is_stopped());
    bench.buffers(0, 1, 4096);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(60)), Received::NoBuffer);
    bench.port.reset();
    bench.attach(1, ALL);
    bench.buffers(0, 1, 4096);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(60)), Received::Done);
    let counters = &bench.port.counters;
    assert_eq!((counters.get(Nic::TxRingErrors), counters.get(Nic::DeviceResets)), (1, 1));
}

#[test]
fn a_port_without_rings_has_forgotten_what_its_driver_broke() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.tx[0].add(&[(1 << 40, 64)], &[], 0).expect("room");
    bench.port.transmit_next(0, &mut Transmit::empty()).expect_err("outside");
    bench.port.detach(1);
    assert!(bench.port.is_stopped(), "one ring is left");
    bench.port.detach(0);
    assert!(!bench.port.is_stopped());
    bench.attach(1, ALL);
    bench.buffers(0, 1, 4096);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(60)), Received::Done);
}

#[test]
fn tokens_of_a_ring_that_went_are_void() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.transmit(&VnetHdr::default(), &frame(60));
    let mut transmit = Transmit::empty();
    assert!(bench.port.transmit_next(0, &mut transmit).expect("honest"));
    let old = transmit.token;
    let queue = bench.port.detach(1).expect("attached");
    assert_eq!(queue.in_flight(), 1);
    bench.port.complete(old);
    bench.attach(1, ALL);
    bench.port.complete(old);
    assert_eq!(bench.port.flush(NOW), 0);
    assert!(bench.tx[0].pop_used().expect("honest").is_none());
}

#[test]
fn interrupts_are_moderated_and_masked() {
    let mut bench = Bench::new(1, ALL, ModerationParams { rx_usecs: 50, rx_frames: 3 });
    bench.buffers(0, 32, 2048);
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(60)), Received::Done);
    assert_eq!(bench.port.flush(NOW), 0);
    assert_eq!(bench.port.deadline(), Some(NOW.plus_nanos(50_000)));
    assert!(bench.rx[0].has_used(), "late is the interrupt, not the frame");
    assert_eq!(bench.port.flush(NOW.plus_nanos(50_000)), 1);
    for (i, want) in [0, 0, 1].into_iter().enumerate() {
        assert_eq!(bench.port.deadline().is_some(), i > 0);
        assert_eq!(bench.receive(&VnetHdr::default(), &frame(60)), Received::Done);
        assert_eq!(bench.port.flush(NOW.plus_nanos(60_000)), want);
    }
    while bench.rx[0].pop_used().expect("honest").is_some() {}
    assert!(!bench.rx[0].enable_call());
    for want in [0, 0, 1] {
        assert_eq!(bench.receive(&VnetHdr::default(), &frame(60)), Received::Done);
        assert_eq!(bench.port.flush(NOW.plus_nanos(70_000)), want);
    }
    bench.rx[0].disable_call();
    assert_eq!(bench.receive(&VnetHdr::default(), &frame(60)), Received::Done);
    assert_eq!(bench.port.flush(NOW.plus_nanos(200_000_000)), 0, "masked");
    assert_eq!(bench.port.counters.get(Nic::RxInterrupts), 3);
}

#[test]
fn kicks_are_asked_for_only_before_sleep() {
    let mut bench = Bench::new(1, ALL, ModerationParams::default());
    bench.port.disarm();
    assert!(!bench.port.arm());
    bench.transmit(&VnetHdr::default(), &frame(60));
    assert!(bench.tx[0].needs_kick());
    bench.port.disarm();
    bench.transmit(&VnetHdr::default(), &frame(60));
    assert!(!bench.tx[0].needs_kick());
    assert!(bench.port.arm(), "there is work already");
}

#[test]
fn queues_that_are_off_take_no_part() {
    let mut bench = Bench::new(4, ALL, ModerationParams::default());
    for ring in 2..8 {
        bench.port.enable(ring, false);
    }
    for queue in 0..4 {
        bench.buffers(queue, 8, 2048);
    }
    for port in 0..8u16 {
        let (_, mut bytes) = tcp(100);
        bytes[34..36].copy_from_slice(&port.to_be_bytes());
        assert_eq!(bench.receive(&VnetHdr::default(), &bytes), Received::Done);
    }
    bench.port.flush(NOW);
    let counts: Vec<_> = (0..4).map(|q| core::iter::from_fn(|| bench.received(q)).count()).collect();
    assert_eq!(counts, [8, 0, 0, 0]);
}
