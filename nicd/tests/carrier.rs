//! The carrier as front ends see it that are not Ringlab's: the `vhost` crate's own.

mod common;

use common::{Dir, Nicd, PATIENCE, start_b, until};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut, VhostUserProtocolFeatures as Protocol,
};

/// Passes on what it is told.
struct Teller(Sender<()>);

impl VhostUserFrontendReqHandlerMut for Teller {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        // The test may be over.
        let _ = self.0.send(());
        Ok(0)
    }
}

/// Gives the device a back-end channel, served by the crate on a thread of its own.
fn listen(front: &mut Frontend) -> Receiver<()> {
    let (teller, told) = channel();
    let mut handler = FrontendReqHandler::new(Arc::new(Mutex::new(Teller(teller)))).expect("a channel");
    handler.set_reply_ack_flag(true);
    front.set_backend_request_fd(&handler.get_tx_raw_fd()).expect("accepted");
    std::thread::spawn(move || while handler.handle_request().is_ok() {});
    told
}

/// A front end that negotiates of `protocol` all that the device offers.
fn front_end(dir: &Dir, protocol: Protocol) -> Frontend {
    let mut front = Frontend::connect(dir.path("a.sock"), 2).expect("nicd listens");
    front.set_owner().expect("accepted");
    let features = front.get_features().expect("answered");
    let offered = front.get_protocol_features().expect("answered");
    assert!(offered.contains(protocol), "{offered:?}");
    front.set_protocol_features(protocol).expect("accepted");
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    front.set_features(features).expect("accepted");
    front
}

/// `VIRTIO_NET_S_LINK_UP`.
fn status(front: &mut Frontend) -> u16 {
    let (_, octets) = front.get_config(6, 2, VhostUserConfigFlags::WRITABLE, &[0; 2]).expect("answered");
    u16::from_le_bytes([octets[0], octets[1]])
}

fn set_link(nicd: &mut Nicd, up: bool) {
    let request = ringlab_proto::nic::SetLinkRequest { port: "eth0".into(), up: Some(up), impairment: None };
    nicd.call(async |mut client| client.set_link(request).await).expect("changed");
}

/// Nodes a and b on a cable, their link up.
fn nodes() -> (Dir, Nicd, Nicd) {
    let dir = Dir::new();
    let mut a = Nicd::start(&dir, "a", &["--port", "eth0,vhost=a.sock,mac=02:00:00:00:00:01", "--wire", "eth0=cable:ab.sock,listen"]);
    let mut b = start_b(&dir, 1);
    until("link is up", || a.link_up("eth0") && b.link_up("eth0"));
    (dir, a, b)
}

#[test]
fn standard_front_end_is_told_of_every_change_of_the_link() {
    let (dir, mut a, mut b) = nodes();
    let mut front = front_end(&dir, Protocol::CONFIG | Protocol::BACKEND_REQ | Protocol::REPLY_ACK);
    let told = listen(&mut front);
    assert_eq!(status(&mut front), 1);
    let mut hear = |up: u16| {
        told.recv_timeout(PATIENCE).expect("the device tells");
        assert_eq!(status(&mut front), up);
    };
    set_link(&mut b, false);
    hear(0);
    set_link(&mut b, true);
    hear(1);
    set_link(&mut a, false);
    hear(0);
    set_link(&mut a, true);
    hear(1);
    b.kill();
    hear(0);
    let _b = start_b(&dir, 1);
    hear(1);
    assert!(told.try_recv().is_err(), "once for each");
    assert_eq!(a.counters("eth0")["link_down_events_phy"], 3);
}

#[test]
fn front_end_without_the_channel_goes_on_and_finds_the_state_when_it_asks() {
    let (dir, mut a, mut b) = nodes();
    let mut front = front_end(&dir, Protocol::CONFIG | Protocol::REPLY_ACK);
    for up in [false, true, false] {
        set_link(&mut b, up);
        until("the port sees it", || a.link_up("eth0") == up);
        assert_eq!(status(&mut front), u16::from(up));
    }
    let refused = front.set_backend_request_fd(&UnixStream::pair().expect("a pair").0);
    assert!(refused.is_err(), "it was not negotiated");
}

#[test]
fn front_end_whose_channel_is_broken_or_none_goes_on() {
    let (dir, mut a, mut b) = nodes();
    let mut front = front_end(&dir, Protocol::CONFIG | Protocol::BACKEND_REQ | Protocol::REPLY_ACK);
    let (near, far) = UnixStream::pair().expect("a pair");
    front.set_backend_request_fd(&far).expect("accepted");
    drop((near, far));
    set_link(&mut b, false);
    until("the port sees it", || !a.link_up("eth0"));
    assert_eq!(status(&mut front), 0);
    // No socket at all.
    front.set_backend_request_fd(&std::fs::File::open("/dev/null").expect("it is there")).expect("accepted");
    set_link(&mut b, true);
    until("the port sees it", || a.link_up("eth0"));
    assert_eq!(status(&mut front), 1);
    // A new channel takes the place of the old one.
    let told = listen(&mut front);
    set_link(&mut b, false);
    told.recv_timeout(PATIENCE).expect("the device tells");
    assert_eq!(status(&mut front), 0);
}
