use super::*;
use ringlab_kernel::dev::net_device::NetDriver;
use ringlab_ring::packed::{Chain, DeviceQueue, MemoryMap};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

const RING: u16 = 64;
const POOL_AT: u64 = 1 << 20;
const POOL_LEN: usize = 4 << 20;

/// A card and the device's side of its rings.
struct Bench {
    nic: Rc<RefCell<Nic>>,
    driver: RingDriver,
    region: Region,
    rx: DeviceQueue,
    tx: DeviceQueue,
    layout: PairLayout,
}

impl Bench {
    fn new() -> Self {
        let region = Region::heap(POOL_AT as usize + POOL_LEN);
        let pool = Pool::new(region.clone(), POOL_AT, POOL_LEN);
        let (rx, end) = Layout::in_region(0, RING);
        let (tx, _) = Layout::in_region(end, RING);
        let layout = PairLayout { rx, tx };
        let nic = Rc::new(RefCell::new(Nic::new(pool, &[layout])));
        let mut this =
            Self { driver: RingDriver::new(nic.clone(), WANTED), nic, rx: device(&region, rx), tx: device(&region, tx), region, layout };
        this.attach();
        this
    }

    fn attach(&mut self) {
        self.nic.borrow_mut().reset(WANTED).expect("a layout that is possible");
        let kick = vec![Doorbell::new().expect("eventfd"), Doorbell::new().expect("eventfd")];
        self.nic.borrow_mut().attach(Attachment { kick });
        (self.rx, self.tx) = (device(&self.region, self.layout.rx), device(&self.region, self.layout.tx));
    }

    /// Writes `frame` into as many receive buffers as it takes, and says `num_buffers`.
    fn receive(&mut self, frame: &[u8], num_buffers: u16) {
        let hdr = VnetHdr { num_buffers, ..Default::default() }.emit();
        let wire: Vec<u8> = hdr.iter().chain(frame).copied().collect();
        let mut chain = Chain::new();
        for part in wire.chunks(RX_BUF as usize) {
            assert!(self.rx.pop(&mut chain).expect("a good driver"), "a buffer is there");
            self.region.slice(chain.segments[0].gpa, part.len()).expect("in the region").write(part);
            self.rx.push_used(chain.id, chain.descs, part.len() as u32);
        }
        self.rx.publish();
    }

    fn stopped_with(&mut self) -> String {
        assert!(self.driver.rx(0).is_none());
        let error = self.nic.borrow_mut().take_error().expect("the device is stopped");
        self.nic.borrow_mut().detach();
        error.to_string()
    }
}

fn device(region: &Region, layout: Layout) -> DeviceQueue {
    DeviceQueue::new(Arc::new(MemoryMap::identity(region.clone())), layout, WANTED).expect("a layout that is possible")
}

fn packet(pool: &Pool, headroom: u32, data: &[u8]) -> Box<SkBuff> {
    let mut skb = SkBuff::new();
    assert!(skb.alloc_head(pool, headroom, data.len() as u32));
    skb.put_bytes(data);
    skb
}

fn octets(frame: &RxFrame) -> Vec<u8> {
    let mut out = Vec::new();
    for frag in &frame.frags {
        let mut part = vec![0; frag.len as usize];
        frag.slice().read(&mut part);
        out.extend(part);
    }
    out
}

#[test]
fn frames_are_put_together_from_their_buffers() {
    let mut b = Bench::new();
    let long: Vec<u8> = (0..60_000u32).map(|i| i as u8).collect();
    b.receive(&[7; 60], 1);
    b.receive(&long, 15);
    assert_eq!(octets(&b.driver.rx(0).expect("a frame")), [7; 60]);
    let frame = b.driver.rx(0).expect("a frame");
    assert_eq!((frame.frags.len(), octets(&frame) == long), (15, true));
    assert!(b.driver.rx(0).is_none());
    assert!(b.nic.borrow_mut().take_error().is_none());
}

#[test]
fn buffers_are_replaced_in_batches_and_for_ever() {
    let mut b = Bench::new();
    for round in 0..1000u32 {
        b.receive(&round.to_be_bytes(), 1);
        let frame = b.driver.rx(0).expect("a frame");
        assert_eq!(octets(&frame), round.to_be_bytes());
        drop(frame);
        b.driver.rx_refill(0);
    }
}

#[test]
fn header_goes_into_the_headroom_or_into_a_buffer_of_its_own() {
    let mut b = Bench::new();
    let pool = b.nic.borrow().pool.clone();
    let roomy = packet(&pool, 64, b"abcdef");
    let cramped = packet(&pool, 4, b"ghi");
    let original = packet(&pool, 64, b"jkl");
    let clone = original.clone_into(SkBuff::new());
    let hdr = VnetHdr { gso_size: 1448, num_buffers: 9, ..Default::default() };
    for skb in [roomy, cramped, clone] {
        b.driver.xmit(0, hdr, skb).expect("room");
    }
    assert!(b.driver.needs_kick(0), "the device has not said that it looks");
    let mut chain = Chain::new();
    for (data, segments) in [(&b"abcdef"[..], 1), (b"ghi", 2), (b"jkl", 2)] {
        assert!(b.tx.pop(&mut chain).expect("a good driver"));
        let mut wire = Vec::new();
        for s in &chain.segments {
            let mut part = vec![0; s.len as usize];
            b.region.slice(s.gpa, part.len()).expect("in the region").read(&mut part);
            wire.extend(part);
        }
        assert_eq!(chain.segments.len(), segments);
        let parsed = VnetHdr::parse(wire[..VNET_HDR_LEN].try_into().expect("a header"));
        assert_eq!((parsed.gso_size, parsed.num_buffers), (1448, 0));
        assert_eq!(&wire[VNET_HDR_LEN..], data);
        b.tx.push_used(chain.id, chain.descs, 0);
    }
    b.tx.publish();
    assert_eq!(core::iter::from_fn(|| b.driver.tx_done(0)).count(), 3);
    assert_eq!(original.headroom(), 64, "the clone has let go of the data");
}

#[test]
fn full_ring_gives_the_packet_back() {
    let mut b = Bench::new();
    let pool = b.nic.borrow().pool.clone();
    let mut sent = 0;
    let back = loop {
        match b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"x")) {
            Ok(()) => sent += 1,
            Err(skb) => break skb,
        }
    };
    assert_eq!((sent, back.len()), (RING, 1));
    assert!(b.driver.tx_full(0));
}

#[test]
fn sent_packets_interrupt_only_when_somebody_waits_or_the_ring_is_half_full() {
    let mut b = Bench::new();
    let pool = b.nic.borrow().pool.clone();
    let mut chain = Chain::new();
    let mut send = |b: &mut Bench| {
        b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"x")).expect("room");
        b.driver.needs_kick(0);
        assert!(b.tx.pop(&mut chain).expect("a good driver"));
        b.tx.push_used(chain.id, chain.descs, 0);
        b.tx.publish();
    };
    send(&mut b);
    assert!(!b.nic.borrow().interrupting(0) && !b.nic.borrow_mut().reap());
    assert!(b.nic.borrow_mut().sleep(), "nobody waits for it: it may lie");
    b.nic.borrow_mut().wake();
    b.driver.tx_irq(0, TxIrq::Now);
    assert!(!b.nic.borrow().interrupting(0), "not while there is other work");
    assert!(b.nic.borrow_mut().reap() && b.nic.borrow().interrupting(0));
    assert!(b.driver.tx_done(0).is_some() && b.driver.tx_done(0).is_none());
    b.driver.tx_irq(0, TxIrq::Off);
    assert!(!b.nic.borrow().interrupting(0));
    for _ in 0..RING / 2 + 1 {
        send(&mut b);
    }
    assert!(b.nic.borrow().interrupting(0));
}

#[test]
fn few_sent_packets_interrupt_a_sleeping_host_only_if_somebody_waits() {
    let mut b = Bench::new();
    let pool = b.nic.borrow().pool.clone();
    let mut chain = Chain::new();
    let mut sent = |b: &mut Bench, irq| {
        b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"x")).expect("room");
        b.driver.needs_kick(0);
        b.driver.tx_irq(0, irq);
        assert!(b.nic.borrow_mut().sleep(), "nothing is done yet");
        assert!(b.tx.pop(&mut chain).expect("a good driver"));
        b.tx.push_used(chain.id, chain.descs, 0);
        let interrupt = b.tx.needs_call();
        let lazy = b.nic.borrow().is_lazy();
        b.nic.borrow_mut().wake();
        assert!(b.nic.borrow_mut().reap(), "whatever wakes the host takes it along");
        assert!(b.driver.tx_done(0).is_some());
        (interrupt, lazy)
    };
    assert_eq!(sent(&mut b, TxIrq::Lazy), (false, true));
    assert_eq!(sent(&mut b, TxIrq::Now), (true, false));
    assert_eq!(sent(&mut b, TxIrq::Lazy), (false, true));
    for _ in 0..TX_FRAMES {
        b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"x")).expect("room");
    }
    assert_eq!(sent(&mut b, TxIrq::Lazy), (false, false), "many are an interrupt's worth, not the first of them");
}

#[test]
fn device_need_not_ring_while_the_host_is_awake() {
    let mut b = Bench::new();
    b.receive(&[1; 60], 1);
    assert!(!b.rx.needs_call(), "awake");
    assert!(b.nic.borrow().interrupting(0));
    assert!(!b.nic.borrow_mut().sleep(), "there is a frame");
    assert!(b.driver.rx(0).is_some());
    assert!(b.nic.borrow_mut().sleep());
    b.receive(&[2; 60], 1);
    assert!(b.rx.needs_call(), "asleep");
    b.nic.borrow_mut().wake();
    b.driver.irq_disable(0);
    assert!(!b.nic.borrow().interrupting(0), "masked by NAPI");
    assert!(b.driver.rx(0).is_some());
    assert!(b.nic.borrow_mut().sleep());
    b.receive(&[3; 60], 1);
    assert!(!b.rx.needs_call(), "masked by NAPI, asleep or not");
    b.nic.borrow_mut().wake();
    assert!(b.driver.irq_enable(0), "a frame came meanwhile");
}

#[test]
fn lost_device_gives_everything_back_and_the_next_starts_afresh() {
    let mut b = Bench::new();
    let pool = b.nic.borrow().pool.clone();
    let idle = pool.in_use();
    b.receive(&[1; 60], 1);
    b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"x")).expect("room");
    b.nic.borrow_mut().detach();
    assert!(b.driver.rx(0).is_none() && b.driver.tx_full(0));
    assert!(b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"y")).is_err());
    assert_eq!(b.driver.tx_done(0).map(|skb| skb.len()), Some(1));
    assert!(b.driver.tx_done(0).is_none());
    assert_eq!(pool.in_use(), 0);
    b.attach();
    assert_eq!(pool.in_use(), idle);
    b.receive(&[5; 60], 1);
    assert_eq!(octets(&b.driver.rx(0).expect("a frame")), [5; 60]);
}

#[test]
fn lying_about_the_number_of_buffers_stops_the_device() {
    for (num_buffers, words) in [(0, "0 buffers"), (2, "2 buffers, of which 1"), (21, "21 buffers"), (u16::MAX, "65535 buffers")] {
        let mut b = Bench::new();
        b.receive(&[1; 60], num_buffers);
        let text = b.stopped_with();
        assert!(text.contains(words), "{text}");
        b.attach();
        b.receive(&[2; 60], 1);
        assert!(b.driver.rx(0).is_some(), "the next device is none the worse");
    }
}

#[test]
fn frame_without_room_for_its_header_stops_the_device() {
    let mut b = Bench::new();
    let mut chain = Chain::new();
    assert!(b.rx.pop(&mut chain).expect("a good driver"));
    b.rx.push_used(chain.id, chain.descs, 11);
    b.rx.publish();
    assert!(b.stopped_with().contains("11 octets"));
}

#[test]
fn foreign_ids_and_lengths_stop_the_device() {
    for (id, len, words) in [(RING, 60, "id"), (0, RX_BUF + 1, "4097")] {
        let mut b = Bench::new();
        let mut chain = Chain::new();
        assert!(b.rx.pop(&mut chain).expect("a good driver"));
        let id = if id == 0 { chain.id } else { id };
        b.rx.push_used(id, chain.descs, len);
        b.rx.publish();
        let text = b.stopped_with();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn transmit_id_never_given_stops_the_device_and_keeps_the_packet() {
    let mut b = Bench::new();
    let pool = b.nic.borrow().pool.clone();
    b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"x")).expect("room");
    b.driver.needs_kick(0);
    let mut chain = Chain::new();
    assert!(b.tx.pop(&mut chain).expect("a good driver"));
    b.tx.push_used(chain.id + 1, chain.descs, 0);
    b.tx.publish();
    assert!(b.driver.tx_done(0).is_none());
    assert!(b.nic.borrow_mut().take_error().expect("stopped").to_string().contains("queue 1"));
    b.nic.borrow_mut().detach();
    assert!(b.driver.tx_done(0).is_some(), "the packet is not lost");
}

#[test]
fn random_writes_to_the_rings_stop_the_device_at_most() {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let mut b = Bench::new();
        let pool = b.nic.borrow().pool.clone();
        for _ in 0..20 {
            // Anywhere in the rings and the event words, and in the buffers' headers.
            let at =
                if random() % 4 == 0 { POOL_AT + random() % (RX_BUF as u64 * 4) } else { random() % b.layout.tx.indirect.expect("tables") };
            b.region.slice(at & !7, 8).expect("in the region").write(&random().to_le_bytes());
            let _ = b.driver.xmit(0, VnetHdr::default(), packet(&pool, 64, b"x"));
            b.driver.needs_kick(0);
            while b.driver.rx(0).is_some() {}
            while b.driver.tx_done(0).is_some() {}
            b.driver.rx_refill(0);
            let _ = b.driver.irq_enable(0);
            let stopped = b.nic.borrow_mut().take_error().is_some();
            if stopped {
                b.nic.borrow_mut().detach();
                b.attach();
            }
        }
        b.nic.borrow_mut().detach();
        while b.driver.tx_done(0).is_some() {}
        assert_eq!(pool.in_use(), 0, "every buffer came back");
    }
}
