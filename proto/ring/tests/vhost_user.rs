//! Front end and back end over a socket pair, and a back end against hostile front ends.

use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Chain, DriverQueue, Features, Layout, MemoryMap, RingError, VringBase};
use ringlab_ring::vhost_user::{BackDevice, BackError, BackEvent, Connection, FrontEnd, Handled, NetConfig, Vring};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, spawn};

const WANTED: Features = Features::all();

fn config() -> NetConfig {
    let features = Features::EVENT_IDX
        | Features::MRG_RXBUF
        | Features::CSUM
        | Features::GUEST_CSUM
        | Features::HOST_TSO4
        | Features::GUEST_TSO4
        | Features::MQ
        | Features::MAC
        | Features::MTU
        | Features::STATUS
        | Features::INDIRECT_DESC;
    NetConfig { mac: [2, 0, 0, 0, 0, 7], mtu: 9000, queue_pairs: 4, features, link_up: true }
}

/// A device that keeps what it is told and echoes transmitted lengths.
#[derive(Default)]
struct Device {
    features: Option<Features>,
    map: Option<Arc<MemoryMap>>,
    vrings: Vec<Vring>,
    stopped: Vec<(u16, VringBase)>,
}

impl BackDevice for Device {
    fn on_event(&mut self, event: BackEvent) -> Result<(), RingError> {
        match event {
            BackEvent::Features(f) => self.features = Some(f),
            BackEvent::MemoryTable(map) => {
                assert!(self.vrings.is_empty(), "no ring runs while memory changes");
                self.map = Some(map);
            }
            BackEvent::VringReady(v) => {
                assert!(self.vrings.iter().all(|o| o.index != v.index));
                self.vrings.push(*v);
            }
            BackEvent::VringCall { index, call } => self.find(index).call = call,
            BackEvent::VringEnable { index, on } => self.find(index).enabled = on,
        }
        Ok(())
    }

    fn stop_vring(&mut self, index: u16) -> VringBase {
        let at = self.vrings.iter().position(|v| v.index == index).expect("only running rings stop");
        let base = self.vrings.remove(at).queue.base();
        self.stopped.push((index, base));
        base
    }
}

impl Device {
    fn find(&mut self, index: u16) -> &mut Vring {
        self.vrings.iter_mut().find(|v| v.index == index).expect("running")
    }
}

/// Serves the connection on a thread until it ends; between requests runs what is sent.
type Job = Box<dyn FnOnce(&mut Device) + Send>;

fn serve(socket: UnixStream) -> (JoinHandle<Result<(), BackError>>, Sender<Job>, Receiver<()>) {
    let (jobs, todo) = channel::<Job>();
    let (done, finished) = channel();
    let thread = spawn(move || {
        let mut connection = Connection::new(socket, config()).expect("socket");
        let mut device = Device::default();
        loop {
            match connection.handle(&mut device)? {
                Handled::Closed => return Ok(()),
                Handled::Request => {}
                Handled::Idle => {
                    for job in todo.try_iter() {
                        job(&mut device);
                        done.send(()).expect("the test waits");
                    }
                    let mut fds = [rustix::event::PollFd::new(&connection, rustix::event::PollFlags::IN)];
                    let tick = rustix::time::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                    rustix::event::poll(&mut fds, Some(&tick)).expect("poll");
                }
            }
        }
    });
    (thread, jobs, finished)
}

fn layouts(count: u16, size: u16) -> (Vec<Layout>, u64) {
    let mut at = 0;
    let list = (0..count).map(|_| {
        let (layout, end) = Layout::in_region(at, size);
        at = end;
        layout
    });
    (list.collect(), at)
}

#[test]
fn handshake_starts_rings_over_which_chains_pass() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    let (thread, jobs, done) = serve(far);
    let mut front = FrontEnd::negotiate(near, WANTED).expect("negotiates");
    let needed = Features::VERSION_1 | Features::RING_PACKED | Features::PROTOCOL_FEATURES;
    assert_eq!(front.features(), config().features | needed);
    let told = front.config();
    assert_eq!((told.mac, told.mtu, told.link_up, told.queue_pairs), (Some([2, 0, 0, 0, 0, 7]), Some(9000), true, 4));

    let (layouts, end) = layouts(4, 64);
    let region = Region::memfd("test", end as usize + 4096).expect("memfd");
    let mut tx: DriverQueue<u8> = DriverQueue::new(region.clone(), layouts[1], front.features()).expect("fits");
    let bells = front.start(&region, &layouts, 1).expect("starts");
    region.slice(end, 5).expect("inside").write(b"frame");
    tx.add(&[(end, 5)], &[], 7).expect("room");
    assert!(tx.needs_kick());
    bells[1].kick.ring();

    jobs.send(Box::new(|device| {
        assert_eq!(device.vrings.iter().map(|v| (v.index, v.enabled)).collect::<Vec<_>>(), [(0, true), (1, true), (2, false), (3, false)]);
        let vring = device.find(1);
        assert!(vring.kick.as_ref().expect("has a kick").drain());
        let mut chain = Chain::new();
        assert!(vring.queue.pop(&mut chain).expect("valid"));
        let mut frame = [0; 5];
        vring.queue.map().translate_gpa(chain.segments[0].gpa, 5).expect("inside").read(&mut frame);
        assert_eq!(&frame, b"frame");
        vring.queue.push_used(chain.id, chain.descs, 0);
        assert!(vring.queue.needs_call());
        vring.call.as_ref().expect("has a call").ring();
    }))
    .expect("serving");
    done.recv().expect("the job held");
    assert!(bells[1].call.drain());
    assert_eq!(tx.pop_used(), Ok(Some((7, 0))));

    front.enable(2, true).expect("enables");
    let base = front.stop(1).expect("stops");
    assert_eq!((base.avail.index, base.used.index), (1, 1));
    assert!(!front.hung_up());
    drop(front);
    thread.join().expect("no panic").expect("a clean end");
}

#[test]
fn front_end_notices_that_the_device_died() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    let mut connection = Connection::new(far, config()).expect("socket");
    let negotiating = spawn(|| FrontEnd::negotiate(near, WANTED));
    let mut device = Device::default();
    while !negotiating.is_finished() {
        connection.handle(&mut device).expect("valid");
    }
    let front = negotiating.join().expect("no panic").expect("negotiates");
    assert!(!front.hung_up());
    drop(connection);
    assert!(front.hung_up());
    let _ = front.as_fd();
}
