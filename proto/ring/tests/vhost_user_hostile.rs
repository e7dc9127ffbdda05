//! The back end against front ends that break the protocol: an error that names what was
//! wrong, at once, and never a wait or a panic.

use proptest::prelude::*;
use ringlab_ring::doorbell::Doorbell;
use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Features, Layout, Position, RingError, VringBase};
use ringlab_ring::vhost_user::{BackDevice, BackError, BackEvent, Connection, Handled, Moderation, NetConfig, Vring};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::FrontendReq as Req;

const NEED_REPLY: u32 = 8;
const PROTOCOL: u64 = 1 << 30;
const PACKED: u64 = 1 << 32 | 1 << 34;

#[derive(Default)]
struct Device {
    running: Vec<Vring>,
    restarts: usize,
}

impl BackDevice for Device {
    fn on_event(&mut self, event: BackEvent) -> Result<(), RingError> {
        match event {
            BackEvent::VringReady(v) => self.running.push(*v),
            BackEvent::MemoryTable(_) => assert!(self.running.is_empty()),
            _ => {}
        }
        Ok(())
    }

    fn stop_vring(&mut self, index: u16) -> VringBase {
        let at = self.running.iter().position(|v| v.index == index).expect("only running rings stop");
        self.restarts += 1;
        self.running.remove(at).queue.base()
    }
}

struct Bench {
    front: UnixStream,
    back: Connection,
    device: Device,
    region: Region,
}

fn bench() -> Bench {
    let (front, far) = UnixStream::pair().expect("socket pair");
    front.set_nonblocking(true).expect("non-blocking");
    let config = NetConfig { mac: [2; 6], mtu: 1500, queue_pairs: 1, features: Features::EVENT_IDX, link_up: true };
    let region = Region::memfd("hostile", 65536).expect("memfd");
    Bench { front, back: Connection::new(far, config).expect("socket"), device: Device::default(), region }
}

impl Bench {
    fn raw(&self, octets: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = sendmsg(&self.front, &[IoSlice::new(octets)], &mut ancillary, SendFlags::NOSIGNAL).expect("sent");
        assert_eq!(sent, octets.len());
    }

    fn send(&self, request: Req, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut octets = Vec::new();
        for word in [u32::from(request), 1 | flags, body.len() as u32] {
            octets.extend(word.to_ne_bytes());
        }
        octets.extend(body);
        self.raw(&octets, fds);
    }

    fn handle(&mut self) -> Result<Handled, BackError> {
        self.back.handle(&mut self.device)
    }

    #[track_caller]
    fn accepts(&mut self, request: Req, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send(request, 0, body, fds);
        assert_eq!(self.handle().expect("accepted"), Handled::Request);
    }

    #[track_caller]
    fn refuses(&mut self, request: Req, body: &[u8], fds: &[BorrowedFd<'_>]) -> BackError {
        self.send(request, 0, body, fds);
        self.handle().expect_err("refused")
    }

    fn pair(&mut self, request: Req, index: u32, value: u32) {
        self.accepts(request, &pair(index, value), &[]);
    }

    fn features(&mut self, features: u64) {
        self.accepts(Req::SET_FEATURES, &features.to_ne_bytes(), &[]);
    }

    fn memory(&mut self) {
        let fd = self.fd();
        self.accepts(Req::SET_MEM_TABLE, &table(&[[0, 65536, 0x7000_0000, 0]]), &[fd.as_fd()]);
    }

    fn fd(&self) -> OwnedFd {
        self.region.fd().expect("memfd").try_clone_to_owned().expect("dup")
    }

    fn kick(&mut self, index: u64) -> Result<Handled, BackError> {
        let bell = Doorbell::new().expect("eventfd");
        self.send(Req::SET_VRING_KICK, 0, &index.to_ne_bytes(), &[bell.as_fd()]);
        self.handle()
    }
}

fn pair(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = pair(regions.len() as u32, 0);
    body.extend(regions.iter().flatten().flat_map(|field| field.to_ne_bytes()));
    body
}

fn addresses(index: u32, desc: u64, driver: u64, device: u64) -> Vec<u8> {
    let mut body = pair(index, 0);
    body.extend([desc, device, driver, 0].into_iter().flat_map(u64::to_ne_bytes));
    body
}

const USER: u64 = 0x7000_0000;

/// Everything but the kick, for ring `index`.
fn almost_ready(b: &mut Bench, index: u32) {
    b.features(PACKED);
    b.memory();
    b.pair(Req::SET_VRING_NUM, index, 16);
    b.pair(Req::SET_VRING_BASE, index, 0x8000);
    b.accepts(Req::SET_VRING_ADDR, &addresses(index, USER, USER + 4096, USER + 8192), &[]);
}

#[test]
fn honest_requests_start_a_ring_that_is_enabled_without_protocol_features() {
    let mut b = bench();
    almost_ready(&mut b, 1);
    assert!(b.device.running.is_empty());
    b.kick(1).expect("accepted");
    assert_eq!(b.device.running.iter().map(|v| (v.index, v.enabled, v.queue.size())).collect::<Vec<_>>(), [(1, true, 16)]);
}

/// QEMU's order: protocol features, rings on, features.
#[test]
fn rings_are_switched_on_before_features_are_acknowledged() {
    let mut b = bench();
    b.accepts(Req::SET_PROTOCOL_FEATURES, &1u64.to_ne_bytes(), &[]);
    b.pair(Req::SET_VRING_ENABLE, 1, 1);
    b.features(PACKED | 1 << 30);
    b.memory();
    for index in [0, 1] {
        b.pair(Req::SET_VRING_NUM, index, 16);
        b.pair(Req::SET_VRING_BASE, index, 0x8000);
        b.accepts(Req::SET_VRING_ADDR, &addresses(index, USER, USER + 4096, USER + 8192), &[]);
        b.kick(index.into()).expect("accepted");
    }
    assert_eq!(b.device.running.iter().map(|v| (v.index, v.enabled)).collect::<Vec<_>>(), [(0, false), (1, true)]);
}

#[test]
fn half_a_message_does_not_hold_up() {
    let mut b = bench();
    let whole: Vec<u8> = [3u32, 1, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    for octet in &whole {
        assert_eq!(b.handle().expect("patient"), Handled::Idle);
        b.raw(&[*octet], &[]);
    }
    assert_eq!(b.handle().expect("complete"), Handled::Request);
    b.raw(&whole[..7], &[]);
    assert_eq!(b.handle().expect("patient"), Handled::Idle);
    let mut rest = bench();
    std::mem::swap(&mut rest.front, &mut b.front);
    drop(rest);
    assert!(matches!(b.handle(), Err(BackError::Truncated)));
}

#[test]
fn hang_up_between_messages_is_a_clean_end() {
    let Bench { front, mut back, mut device, .. } = bench();
    drop(front);
    assert_eq!(back.handle(&mut device).expect("clean"), Handled::Closed);
}

#[test]
fn bad_headers_end_the_connection() {
    for (code, flags, size) in [(1u32, 0u32, 0u32), (1, 2, 0), (1, 3, 0), (1, 5, 0), (1, 0x11, 0), (1, 1, 4097), (1, 1, u32::MAX)] {
        let b = &mut bench();
        b.raw(&[code, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>(), &[]);
        assert!(matches!(b.handle(), Err(BackError::BadHeader { .. })), "{code} {flags} {size}");
    }
    for code in [0u32, 45, 1000, u32::MAX] {
        let b = &mut bench();
        b.raw(&[code, 1, 0].into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>(), &[]);
        assert!(matches!(b.handle(), Err(BackError::UnknownRequest(c)) if c == code));
    }
    // Exists, but was not negotiated.
    for request in [Req::GET_CONFIG, Req::SET_VRING_ENABLE, Req::GET_QUEUE_NUM, Req::SET_LOG_BASE, Req::ADD_MEM_REG, Req::GET_INFLIGHT_FD] {
        assert!(matches!(bench().refuses(request, &[0; 8], &[]), BackError::UnknownRequest(_)));
    }
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for bits in [1u64 << 15, 1 << 26, 1 << 63, u64::MAX] {
        assert!(matches!(bench().refuses(Req::SET_FEATURES, &bits.to_ne_bytes(), &[]), BackError::Features(b) if b == bits));
    }
    assert!(matches!(bench().refuses(Req::SET_PROTOCOL_FEATURES, &(1u64 << 20).to_ne_bytes(), &[]), BackError::Features(_)));
    let mut b = bench();
    almost_ready(&mut b, 0);
    b.features(1 << 32);
    assert!(matches!(b.kick(0), Err(BackError::Features(_))), "split rings are not served");
    let mut b = bench();
    almost_ready(&mut b, 0);
    b.kick(0).expect("accepted");
    assert!(matches!(b.refuses(Req::SET_FEATURES, &(PACKED | 1 << 29).to_ne_bytes(), &[]), BackError::Features(_)));
}

#[test]
fn memory_that_may_shrink_is_refused_unless_permitted() {
    let memory = || {
        let fd = memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
        ftruncate(&fd, 65536).expect("as long as the region");
        fd
    };
    let body = table(&[[0, 65536, 0x7000_0000, 0]]);
    let mut b = bench();
    let error = b.refuses(Req::SET_MEM_TABLE, &body, &[memory().as_fd()]);
    assert!(matches!(error, BackError::Unsealed { index: 0 }), "{error}");
    let grown = memory();
    fcntl_add_seals(&grown, SealFlags::GROW).expect("sealed");
    let error = bench().refuses(Req::SET_MEM_TABLE, &body, &[grown.as_fd()]);
    assert!(matches!(error, BackError::Unsealed { index: 0 }), "{error}");
    let sealed = memory();
    fcntl_add_seals(&sealed, SealFlags::SHRINK).expect("sealed");
    bench().accepts(Req::SET_MEM_TABLE, &body, &[sealed.as_fd()]);
    let mut b = bench();
    b.back.permit_unsealed();
    b.accepts(Req::SET_MEM_TABLE, &body, &[memory().as_fd()]);
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let map = |regions: &[[u64; 4]], fds: usize| {
        let mut b = bench();
        let fd = b.fd();
        b.refuses(Req::SET_MEM_TABLE, &table(regions), &vec![fd.as_fd(); fds])
    };
    assert!(matches!(map(&[[0, 65537, 0, 0]], 1), BackError::Map { index: 0, .. }), "longer than the file");
    assert!(matches!(map(&[[0, 65536, 0, 1]], 1), BackError::Map { index: 0, .. }), "offset beyond the file");
    assert!(matches!(map(&[[0, u64::MAX, 0, 0]], 1), BackError::Map { .. }));
    assert!(matches!(map(&[[0, 65536, 0, u64::MAX]], 1), BackError::Ring(RingError::BadRegion(0))));
    assert!(matches!(map(&[[0, 0, 0, 4096]], 1), BackError::Ring(RingError::BadRegion(0))));
    assert!(matches!(map(&[[u64::MAX - 5, 4096, 0, 0]], 1), BackError::Ring(RingError::BadRegion(_))));
    assert!(matches!(map(&[[0, 4096, u64::MAX - 5, 0]], 1), BackError::Ring(RingError::BadRegion(_))));
    assert!(matches!(map(&[[0, 4096, 0, 0], [4095, 4096, 8192, 0]], 2), BackError::Ring(RingError::BadRegion(4095))));
    assert!(matches!(map(&[[0, 4096, 0, 0], [8192, 4096, 1, 0]], 2), BackError::Ring(RingError::BadRegion(8192))));
    assert!(matches!(map(&[], 0), BackError::BodySize { .. }));
    assert!(matches!(map(&[[0, 4096, 0, 0]], 0), BackError::Descriptors { count: 0, .. }));
    assert!(matches!(map(&[[0, 4096, 0, 0]], 2), BackError::Descriptors { count: 2, .. }));
    assert!(matches!(map(&[[0, 4096, 0, 0]], 40), BackError::TooManyDescriptors));
    let mut b = bench();
    let bell = Doorbell::new().expect("eventfd");
    let null: OwnedFd = std::fs::File::open("/dev/null").expect("null").into();
    for fd in [bell.as_fd(), null.as_fd(), b.front.try_clone().expect("dup").as_fd()] {
        assert!(matches!(b.refuses(Req::SET_MEM_TABLE, &table(&[[0, 4096, 0, 0]]), &[fd]), BackError::Unsealed { .. }));
    }
    let mut lying = table(&[[0, 4096, 0, 0]]);
    lying[0] = 200;
    assert!(matches!(b.refuses(Req::SET_MEM_TABLE, &lying, &[bell.as_fd()]), BackError::BodySize { .. }));
}

#[test]
fn rings_that_cannot_be_are_refused() {
    for num in [0, 32769, 65536, 65537, u32::MAX] {
        let refused = bench().refuses(Req::SET_VRING_NUM, &pair(0, num), &[]);
        assert!(matches!(refused, BackError::Ring(RingError::QueueSize(n)) if n == num));
    }
    for index in [2, 255, 256, u32::MAX] {
        assert!(matches!(bench().refuses(Req::SET_VRING_NUM, &pair(index, 16), &[]), BackError::VringIndex(i) if i == u64::from(index)));
        assert!(matches!(bench().refuses(Req::GET_VRING_BASE, &pair(index, 0), &[]), BackError::VringIndex(_)));
    }
    let at = |desc, driver, device| {
        let mut b = bench();
        almost_ready(&mut b, 0);
        b.accepts(Req::SET_VRING_ADDR, &addresses(0, desc, driver, device), &[]);
        b.kick(0).expect_err("refused")
    };
    let outside = |e: BackError| matches!(e, BackError::Ring(RingError::OutOfBounds { .. }));
    assert!(outside(at(USER + 65536 - 255, USER, USER + 4)));
    assert!(outside(at(USER - 16, USER, USER + 4)));
    assert!(outside(at(USER, USER + 65533, USER + 4)));
    assert!(outside(at(USER, USER + 4, u64::MAX - 1)));
    assert!(matches!(at(USER + 8, USER + 4096, USER + 4100), BackError::Ring(RingError::Misaligned(8))));
    assert!(matches!(at(USER, USER + 4097, USER + 4100), BackError::Ring(RingError::Misaligned(4097))));
    let mut b = bench();
    almost_ready(&mut b, 0);
    b.pair(Req::SET_VRING_BASE, 0, 16);
    assert!(matches!(b.kick(0), Err(BackError::Ring(RingError::IndexBeyondRing(16)))), "an index that jumps");
    let mut log = addresses(0, USER, USER, USER);
    log[4] = 1;
    assert!(matches!(bench().refuses(Req::SET_VRING_ADDR, &log, &[]), BackError::Value { .. }));
    assert!(matches!(bench().refuses(Req::SET_VRING_ADDR, &log[..39], &[]), BackError::BodySize { .. }));
}

#[test]
fn doorbells_that_are_none_are_refused() {
    let (pipe, _w) = rustix::pipe::pipe().expect("pipe");
    for request in [Req::SET_VRING_KICK, Req::SET_VRING_CALL, Req::SET_VRING_ERR] {
        assert!(matches!(bench().refuses(request, &0u64.to_ne_bytes(), &[pipe.as_fd()]), BackError::Doorbell { .. }));
        assert!(matches!(bench().refuses(request, &0u64.to_ne_bytes(), &[]), BackError::Descriptors { count: 0, .. }));
        assert!(matches!(bench().refuses(request, &0x100u64.to_ne_bytes(), &[pipe.as_fd()]), BackError::Descriptors { count: 1, .. }));
        assert!(matches!(bench().refuses(request, &2u64.to_ne_bytes(), &[pipe.as_fd()]), BackError::VringIndex(2)));
        assert!(matches!(bench().refuses(request, &0x200u64.to_ne_bytes(), &[pipe.as_fd()]), BackError::Value { .. }));
    }
    assert!(matches!(bench().refuses(Req::SET_OWNER, &[], &[pipe.as_fd()]), BackError::Descriptors { count: 1, .. }));
}

#[test]
fn failure_is_answered_before_the_end_if_an_answer_was_asked_for() {
    let mut b = bench();
    b.features(PACKED | PROTOCOL);
    b.accepts(Req::SET_PROTOCOL_FEATURES, &(1u64 << 3).to_ne_bytes(), &[]);
    b.send(Req::SET_VRING_NUM, NEED_REPLY, &pair(0, 0), &[]);
    b.handle().expect_err("refused");
    let mut answer = [0; 20];
    b.front.read_exact(&mut answer).expect("answered");
    assert_eq!(u32::from_ne_bytes(answer[..4].try_into().expect("four")), u32::from(Req::SET_VRING_NUM));
    assert_ne!(u64::from_ne_bytes(answer[12..].try_into().expect("eight")), 0);
}

#[test]
fn front_end_that_does_not_read_is_cut_off() {
    let mut b = bench();
    for _ in 0..100_000 {
        b.send(Req::GET_FEATURES, 0, &[], &[]);
        match b.handle() {
            Ok(_) => {}
            Err(BackError::NotReading) => return,
            Err(e) => panic!("{e}"),
        }
    }
    panic!("answers pile up without limit");
}

#[test]
fn configuration_space_is_read_in_any_part_and_not_beyond() {
    let mut b = bench();
    b.features(PACKED | PROTOCOL);
    b.accepts(Req::SET_PROTOCOL_FEATURES, &(1u64 << 9).to_ne_bytes(), &[]);
    for (offset, size, want) in
        [(0u32, 12u32, vec![2, 2, 2, 2, 2, 2, 1, 0, 1, 0, 0xdc, 5]), (10, 4, vec![0xdc, 5, 0, 0]), (255, 2, vec![]), (u32::MAX, 4, vec![])]
    {
        let mut body = [offset.to_ne_bytes(), size.to_ne_bytes(), [0; 4]].concat();
        body.extend(vec![0; size as usize]);
        b.accepts(Req::GET_CONFIG, &body, &[]);
        let mut answer = vec![0; 24 + want.len()];
        b.front.read_exact(&mut answer).expect("answered");
        assert_eq!((&answer[16..20], &answer[24..]), (&(want.len() as u32).to_ne_bytes()[..], &want[..]));
    }
    assert!(matches!(b.refuses(Req::GET_CONFIG, &[0; 11], &[]), BackError::BodySize { .. }));
}

#[test]
fn configuration_is_written_where_it_can_be_only() {
    let refused = |offset: u32, len: usize, moderated: bool| {
        let mut b = bench();
        if moderated {
            b.back.set_moderation(Moderation::default());
        }
        b.features(PACKED | PROTOCOL);
        b.accepts(Req::SET_PROTOCOL_FEATURES, &(1u64 << 9).to_ne_bytes(), &[]);
        let body = [offset.to_ne_bytes(), (len as u32).to_ne_bytes(), [0; 4]].concat();
        b.refuses(Req::SET_CONFIG, &[body, vec![0; len]].concat(), &[])
    };
    assert!(matches!(refused(0, 6, true), BackError::BodySize { .. }), "the address is fixed");
    assert!(matches!(refused(0, 8, true), BackError::Value { value: 0, .. }));
    assert!(matches!(refused(128, 8, true), BackError::Value { value: 128, .. }), "the mark");
    assert!(matches!(refused(132, 8, false), BackError::Value { value: 132, .. }), "a device that tells nothing of it");
    assert!(matches!(refused(132, 8, true), BackError::Value { value: 132, .. }), "a device that does not moderate");
    assert!(matches!(bench().refuses(Req::SET_CONFIG, &[0; 20], &[]), BackError::UnknownRequest(_)), "not negotiated");
}

#[test]
fn new_memory_stops_and_restarts_running_rings_where_they_stood() {
    let mut b = bench();
    almost_ready(&mut b, 0);
    b.pair(Req::SET_VRING_BASE, 0, 0x8005_8005);
    b.kick(0).expect("accepted");
    b.memory();
    assert_eq!(b.device.restarts, 1);
    let at = Position { index: 5, wrap: true };
    assert_eq!(b.device.running[0].queue.base(), VringBase { avail: at, used: at });
    b.accepts(Req::GET_VRING_BASE, &pair(0, 0), &[]);
    assert!(b.device.running.is_empty());
    let mut answer = [0; 20];
    b.front.read_exact(&mut answer).expect("answered");
    assert_eq!(&answer[16..], 0x8005_8005u32.to_ne_bytes());
    b.kick(0).expect("starts again");
    assert_eq!(b.device.running[0].queue.base().used, at);
    b.accepts(Req::RESET_OWNER, &[], &[]);
    assert!(b.device.running.is_empty());
}

#[test]
fn layout_of_the_largest_ring_fits_where_it_says() {
    let (layout, end) = Layout::in_region(0, Layout::MAX_SIZE);
    assert!(layout.desc + layout.desc_len() as u64 <= layout.driver && layout.device < end);
}

fn step() -> impl Strategy<Value = (u32, u32, Vec<u8>, usize)> {
    let code = prop_oneof![9 => 1u32..25, 1 => any::<u32>()];
    let flags = prop_oneof![9 => prop_oneof![Just(1u32), Just(9)], 1 => any::<u32>()];
    let small = prop::collection::vec(prop_oneof![4 => 0u8..3, 1 => any::<u8>()], 8);
    let body = prop_oneof![
        3 => small,
        1 => Just(PACKED.to_ne_bytes().to_vec()),
        1 => Just((PACKED | PROTOCOL).to_ne_bytes().to_vec()),
        1 => Just(0x209u64.to_ne_bytes().to_vec()),
        1 => (0u32..3, 0u32..40).prop_map(|(i, n)| pair(i, n)),
        1 => (0u32..3, 0u64..70000, 0u64..70000).prop_map(|(i, a, e)| addresses(i, USER + a / 16 * 16, USER + e / 4 * 4, USER + e / 8 * 4)),
        1 => (0u64..70000, 0u64..9000).prop_map(|(size, offset)| table(&[[0, size, USER, offset]])),
        1 => prop::collection::vec(any::<u8>(), 0..100),
        1 => Just(Vec::new()),
    ];
    (code, flags, body, 0usize..3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn any_octets_end_in_an_error_or_are_waited_for(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut b = bench();
        b.raw(&octets, &[]);
        while let Ok(Handled::Request) = b.handle() {}
    }

    #[test]
    fn any_requests_in_any_order_do_not_upset_the_back_end(steps in prop::collection::vec(step(), 1..60)) {
        let mut b = bench();
        let memory = b.fd();
        let bell = Doorbell::new().expect("eventfd");
        for (code, flags, body, fds) in steps {
            let fd = if code == 5 { memory.as_fd() } else { bell.as_fd() };
            let mut octets: Vec<u8> = [code, flags, body.len() as u32].into_iter().flat_map(u32::to_ne_bytes).collect();
            octets.extend(body);
            let fds = if matches!(code, 5 | 12..=14) { fds } else { fds / 2 };
            b.raw(&octets, &vec![fd; fds]);
            // An error ends a real connection; here the next request tries the state after it.
            while let Ok(Handled::Request) = b.handle() {}
            prop_assert!(b.device.running.iter().all(|v| v.index < 2));
        }
    }
}
