//! A foreign TCP as the peer: `smoltcp` at the other end of the wire, opening and being
//! opened, with bulk both ways over a wire that loses frames.

mod common;
mod tcp_support;

use common::tasks::Prog;
use common::{A, ADDR_A, ADDR_B, Dir, Frame, HostConfig, Lab, TEST_MAC, Verdict};
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::uaccess::{Iov, UserSlice};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::time::Duration;
use tcp_support::{Dice, octet, plain_nic};

const PORT: u16 = 7;

#[derive(Default)]
struct Wire {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let r = f(&mut frame);
        self.0.push(frame);
        r
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;
    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        self.rx.pop_front().map(|f| (Rx(f), Tx(&mut self.tx)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.max_transmission_unit = 1514;
        caps.medium = Medium::Ethernet;
        caps
    }
}

/// Host A of a lab, and smoltcp with [`ADDR_B`] behind link 0.
struct World {
    lab: Lab,
    a: Prog,
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    peer: SocketHandle,
}

impl World {
    fn new(seed: u64, loss: u64) -> Self {
        let mut lab = Lab::new(seed);
        lab.add_host(HostConfig::default());
        lab.stub(A, ADDR_A, 24, plain_nic());
        let a = Prog::spawn(&mut lab, A, "a");
        let mut dice = Dice(seed);
        lab.hook(0, move |_, f: &mut Frame| if f.is_tcp() && loss > 0 && dice.one_in(loss) { Verdict::Drop } else { Verdict::Pass });
        let mut wire = Wire::default();
        let mut config = Config::new(EthernetAddress(TEST_MAC.0).into());
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut wire, Instant::ZERO);
        iface.update_ip_addrs(|addrs| addrs.push(IpCidr::new(IpAddress::Ipv4(ADDR_B), 24)).expect("room"));
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || tcp::SocketBuffer::new(vec![0; 100_000]);
        let peer = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self { lab, a, wire, iface, sockets, peer }
    }

    fn peer(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.peer)
    }

    /// A hundred microseconds pass, and frames cross.
    fn step(&mut self) {
        self.lab.run_for(Duration::from_micros(100));
        let now = Instant::from_micros((self.lab.now.0 / 1000) as i64);
        self.wire.rx.extend(self.lab.received.drain(..).map(|(_, f)| f.bytes));
        self.iface.poll(now, &mut self.wire, &mut self.sockets);
        for frame in std::mem::take(&mut self.wire.tx) {
            self.lab.inject(0, Dir::Backward, frame.into());
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..2_000_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("{what}: not within 200 s; {}", tcp_support::counters(&self.lab, A));
    }

    fn ret(&mut self, what: &str) -> Ret {
        let mut ret = None;
        self.until(what, |w| {
            ret = w.a.poll(&mut w.lab);
            ret.is_some()
        });
        ret.expect("until says so")
    }

    /// A connection that A opens.
    fn open(&mut self) -> i32 {
        self.peer().listen(PORT).expect("listens");
        let fd = self.a.socket(&mut self.lab, common::tasks::STREAM);
        self.a.start(&mut self.lab, Call::Connect(fd, Some((ADDR_B, PORT).into())));
        assert_eq!(self.ret("connect"), Ret::Value(0));
        fd
    }

    /// A connection that smoltcp opens.
    fn opened(&mut self) -> i32 {
        let l = self.a.listener(&mut self.lab, PORT, 8);
        let cx = self.iface.context();
        let peer = self.sockets.get_mut::<tcp::Socket>(self.peer);
        peer.connect(cx, (IpAddress::Ipv4(ADDR_A), PORT), 50_000).expect("connects");
        self.a.start(&mut self.lab, Call::Accept(l, 0));
        let Ret::Accepted(fd, _) = self.ret("accept") else { panic!() };
        fd
    }

    fn host_sends(&mut self, fd: i32, total: usize) {
        let data: Vec<u8> = (0..total).map(octet).collect();
        let iov = Iov::One(self.lab.hosts[A].mem.put(&data));
        self.a.start(&mut self.lab, Call::Send { fd, iov, flags: 0, to: None, control: Vec::new() });
        let mut got = 0;
        self.until("bulk from the host", |w| {
            while w.peer().can_recv() {
                got += w
                    .peer()
                    .recv(|bytes| {
                        assert!(bytes == &data[got..got + bytes.len()]);
                        (bytes.len(), bytes.len())
                    })
                    .expect("open");
            }
            got == total
        });
        assert_eq!(self.ret("send"), Ret::Value(total as i64));
    }

    fn peer_sends(&mut self, fd: i32, total: usize) {
        let data: Vec<u8> = (0..total).map(octet).collect();
        let buffer: UserSlice = self.a.buffer(&self.lab, 65536);
        let (mut sent, mut got) = (0, 0);
        self.a.start(&mut self.lab, Prog::recv_call(fd, buffer, 0));
        self.until("bulk to the host", |w| {
            if sent < total && w.peer().can_send() {
                sent += w.peer().send_slice(&data[sent..]).expect("open");
            }
            if let Some(ret) = w.a.poll(&mut w.lab) {
                let Ret::Received { len, .. } = ret else { panic!("{ret:?}") };
                assert!(w.lab.hosts[A].mem.get(buffer, len) == data[got..got + len]);
                got += len;
                if got < total {
                    w.a.start(&mut w.lab, Prog::recv_call(fd, buffer, 0));
                }
            }
            got == total
        });
    }
}

#[test]
fn host_opens_sends_and_closes() {
    let mut w = World::new(1, 0);
    let fd = w.open();
    w.host_sends(fd, 1 << 20);
    w.peer_sends(fd, 1 << 20);
    w.a.ok(&mut w.lab, Call::Close(fd));
    w.until("the peer sees the end", |w| w.peer().state() == tcp::State::CloseWait);
    w.peer().close();
    w.until("the peer is done", |w| w.peer().state() == tcp::State::Closed);
}

#[test]
fn peer_opens_sends_and_closes() {
    let mut w = World::new(2, 0);
    let fd = w.opened();
    w.peer_sends(fd, 1 << 20);
    w.host_sends(fd, 1 << 20);
    w.peer().close();
    let buffer = w.a.buffer(&w.lab, 16);
    w.a.start(&mut w.lab, Prog::recv_call(fd, buffer, 0));
    let Ret::Received { len: 0, .. } = w.ret("the end") else { panic!() };
    w.a.ok(&mut w.lab, Call::Close(fd));
    w.until("the peer waits", |w| w.peer().state() == tcp::State::TimeWait);
}

#[test]
fn bulk_survives_loss_in_both_directions() {
    for (seed, open) in [(3, true), (4, false)] {
        let mut w = World::new(seed, 50);
        let fd = if open { w.open() } else { w.opened() };
        w.host_sends(fd, 1 << 19);
        w.peer_sends(fd, 1 << 18);
    }
}

#[test]
fn closed_port_refuses_each_other() {
    let mut w = World::new(5, 0);
    let fd = w.a.socket(&mut w.lab, common::tasks::STREAM);
    w.a.start(&mut w.lab, Call::Connect(fd, Some((ADDR_B, 9).into())));
    assert_eq!(w.ret("connect"), Ret::Err(ringlab_kernel::errno::Errno::ECONNREFUSED));
    let cx = w.iface.context();
    w.sockets.get_mut::<tcp::Socket>(w.peer).connect(cx, (IpAddress::Ipv4(ADDR_A), 9), 50_000).expect("connects");
    w.until("the peer is refused", |w| w.peer().state() == tcp::State::Closed);
}
