//! Front end and back end over a socket pair, and a back end against hostile front ends.

use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Chain, DriverQueue, Features, Layout, MemoryMap, RingError, VringBase};
use ringlab_ring::vhost_user::{
    BackDevice, BackError, BackEvent, Connection, FrontEnd, FrontError, Handled, LIMIT, Moderation, NetConfig, PATIENCE, Vring,
};
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
    moderated: Vec<Moderation>,
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

    fn set_moderation(&mut self, moderation: Moderation) -> bool {
        self.moderated.push(moderation);
        true
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

/// A device that takes what it is asked and answers nothing.
fn silent() -> UnixStream {
    let (near, far) = UnixStream::pair().expect("socket pair");
    spawn(move || {
        let mut far = &far;
        while std::io::Read::read(&mut far, &mut [0; 4096]).is_ok_and(|n| n > 0) {}
    });
    near
}

#[test]
fn device_that_does_not_answer_is_lost_after_a_while() {
    let began = std::time::Instant::now();
    let error = FrontEnd::negotiate(silent(), WANTED).expect_err("nobody answers");
    assert!(matches!(error, FrontError::Vhost(_)) && began.elapsed() >= PATIENCE, "{error}");
    // One that stops answering later: the request ends, and the connection with it.
    let (near, far) = UnixStream::pair().expect("socket pair");
    let (thread, jobs, _done) = serve(far);
    let mut front = FrontEnd::negotiate(near, WANTED).expect("negotiates");
    let (go_on, wait) = channel::<()>();
    jobs.send(Box::new(move |_| wait.recv().unwrap_or_default())).expect("it runs");
    let began = std::time::Instant::now();
    // Requests in time are served before it comes to that.
    while front.refresh_config().is_ok() {}
    assert!(began.elapsed() >= LIMIT && front.hung_up());
    drop(go_on);
    let _ = thread.join().expect("ends");
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

/// Serves a device while `front` runs.
fn while_serving<T: Send + 'static>(connection: &mut Connection, front: impl FnOnce() -> T + Send + 'static) -> T {
    let running = spawn(front);
    let mut device = Device::default();
    while !running.is_finished() {
        connection.handle(&mut device).expect("valid");
    }
    running.join().expect("no panic")
}

#[test]
fn front_end_is_told_of_a_changed_link_once_for_all_it_missed() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    let mut connection = Connection::new(far, config()).expect("socket");
    let mut front = while_serving(&mut connection, || FrontEnd::negotiate(near, WANTED)).expect("negotiates");
    let readable = |front: &FrontEnd| {
        let channel = front.notices().expect("both ends know the channel");
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(channel, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default())).expect("poll") == 1
    };
    connection.set_config(9000, true);
    assert!(!readable(&front), "nothing has changed");
    connection.set_config(9000, false);
    assert!(readable(&front));
    let (mut front, change) = while_serving(&mut connection, move || {
        let change = front.take_change().expect("answered");
        (front, change)
    });
    assert_eq!(change.map(|c| c.link_up), Some(false));
    assert!(!readable(&front) && front.take_change().expect("nothing waits").is_none());
    // Far more than a socket holds: neither end waits, and what is read is what holds now.
    for i in 0..100_000 {
        connection.set_config(9000, i % 2 == 0);
    }
    connection.set_config(1500, true);
    let change = while_serving(&mut connection, move || front.take_change().expect("answered"));
    assert_eq!(change.map(|c| (c.link_up, c.mtu)), Some((true, Some(1500))));
}

#[test]
fn front_end_reads_and_writes_how_interrupts_are_moderated() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    let mut connection = Connection::new(far, config()).expect("socket");
    let mut front = while_serving(&mut connection, || FrontEnd::negotiate(near, WANTED)).expect("negotiates");
    assert_eq!(front.config().moderation, None, "a device that tells nothing of it");
    let at_first = Moderation { rx_usecs: 50, rx_frames: 8 };
    connection.set_moderation(at_first);
    let mut front = while_serving(&mut connection, move || {
        assert_eq!(front.take_change().expect("answered").and_then(|c| c.moderation), Some(at_first));
        front
    });
    let wanted = Moderation { rx_usecs: 7, rx_frames: u32::MAX };
    let writing = spawn(move || {
        front.set_moderation(wanted).expect("written");
        assert!(front.take_change().expect("nothing waits").is_none(), "who writes knows");
        (front.config().moderation, front.refresh_config().expect("answered").moderation)
    });
    let mut device = Device::default();
    while !writing.is_finished() {
        connection.handle(&mut device).expect("valid");
    }
    assert_eq!(writing.join().expect("no panic"), (Some(wanted), Some(wanted)));
    assert_eq!(device.moderated, [wanted]);
}

#[test]
fn front_end_notices_that_the_device_died() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    let mut connection = Connection::new(far, config()).expect("socket");
    let front = while_serving(&mut connection, || FrontEnd::negotiate(near, WANTED)).expect("negotiates");
    assert!(!front.hung_up());
    drop(connection);
    assert!(front.hung_up());
    let _ = front.as_fd();
}
