//! The devices of two hosts, and the wire between them.

use ringlab_ring::packed::{Chain, DeviceQueue, Features, MemoryMap, RingError, VringBase};
use ringlab_ring::vhost_user::{BackDevice, BackEnd, BackEvent, Connection, Handled, Listener, NetConfig, Vring};
use ringlab_ring::vnet::{VNET_HDR_LEN, VnetHdr};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

const MTU: u16 = 1500;
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

/// What a port is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Hang up, and be away until [`Order::Return`].
    Leave,
    /// Listen again.
    Return,
    /// Say of the next frame that it has no buffers.
    Lie,
    /// Return a chain that was never given.
    ForgeId,
    /// Take the link's carrier away, or give it back, and say so.
    Link(bool),
}

/// A thread that is two devices.
pub struct Hub {
    orders: Sender<(usize, Order)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Listens at the two paths.
    pub fn start(paths: [PathBuf; 2]) -> Self {
        let (orders, receiver) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let mut ports = paths.map(Port::new);
        ports.iter_mut().for_each(Port::listen);
        let thread = std::thread::spawn(move || run(ports, &receiver, &flag));
        Self { orders, stop, thread: Some(thread) }
    }

    /// Gives port 0 or 1 an order.
    pub fn order(&self, port: usize, order: Order) {
        self.orders.send((port, order)).expect("the hub runs");
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut ports: [Port; 2], orders: &Receiver<(usize, Order)>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        while let Ok((port, order)) = orders.try_recv() {
            ports[port].obey(order);
        }
        let mut moved = false;
        for from in 0..2 {
            ports[from].serve();
            while let Some(frame) = ports[from].device.transmitted() {
                ports[1 - from].device.wire.push_back(frame);
                moved = true;
            }
            moved |= ports[1 - from].device.receive();
        }
        if !moved {
            ports.iter_mut().for_each(|p| p.device.listen_for_kicks());
            wait(&ports);
        }
    }
}

fn wait(ports: &[Port; 2]) {
    let mut fds = Vec::new();
    for port in ports {
        fds.extend(port.listener.iter().map(|l| PollFd::new(l, PollFlags::IN)));
        fds.extend(port.connection.iter().map(|c| PollFd::from_borrowed_fd(c.as_fd(), PollFlags::IN)));
        fds.extend(port.device.rings.iter().flatten().filter_map(|r| r.kick.as_ref()).map(|k| PollFd::new(k, PollFlags::IN)));
    }
    let _ = poll(&mut fds, Some(&TICK));
    for ring in ports.iter().flat_map(|p| p.device.rings.iter().flatten()) {
        ring.kick.as_ref().map(ringlab_ring::doorbell::Doorbell::drain);
    }
}

struct Port {
    path: PathBuf,
    listener: Option<Listener>,
    connection: Option<Connection>,
    device: Device,
    link_up: bool,
}

impl Port {
    fn new(path: PathBuf) -> Self {
        Self { path, listener: None, connection: None, device: Device::default(), link_up: true }
    }

    fn listen(&mut self) {
        self.listener = Some(BackEnd::listen(&self.path).expect("the path is free"));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Leave => (self.listener, self.connection, self.device) = (None, None, Device::default()),
            Order::Return => self.listen(),
            Order::Lie => self.device.lie = true,
            Order::ForgeId => self.device.forge = true,
            Order::Link(up) => {
                self.link_up = up;
                if let Some(connection) = &mut self.connection {
                    connection.set_config(MTU, up);
                }
            }
        }
    }

    fn serve(&mut self) {
        let features = Features::MRG_RXBUF
            | Features::CSUM
            | Features::GUEST_CSUM
            | Features::HOST_TSO4
            | Features::GUEST_TSO4
            | Features::EVENT_IDX
            | Features::STATUS
            | Features::INDIRECT_DESC;
        let config = NetConfig { mac: [2, 0, 0, 0, 0, 9], mtu: MTU, queue_pairs: 1, features, link_up: self.link_up };
        if self.connection.is_none()
            && let Some(listener) = &self.listener
        {
            self.connection = listener.accept(config).expect("accept");
        }
        while let Some(connection) = &mut self.connection {
            match connection.handle(&mut self.device) {
                Ok(Handled::Request) => {}
                Ok(Handled::Idle) => break,
                Ok(Handled::Closed) | Err(_) => (self.connection, self.device) = (None, Device::default()),
            }
        }
    }
}

#[derive(Default)]
struct Device {
    map: Option<Arc<MemoryMap>>,
    rings: [Option<Box<Vring>>; 2],
    wire: VecDeque<Vec<u8>>,
    chain: Chain,
    lie: bool,
    forge: bool,
}

impl BackDevice for Device {
    fn on_event(&mut self, event: BackEvent) -> Result<(), RingError> {
        match event {
            BackEvent::MemoryTable(map) => self.map = Some(map),
            BackEvent::VringReady(ring) => {
                let index = usize::from(ring.index);
                self.rings[index] = Some(ring);
            }
            BackEvent::VringCall { index, call } => {
                if let Some(ring) = &mut self.rings[usize::from(index)] {
                    ring.call = call;
                }
            }
            BackEvent::VringEnable { index, on } => {
                if let Some(ring) = &mut self.rings[usize::from(index)] {
                    ring.enabled = on;
                }
            }
            BackEvent::Features(_) => {}
        }
        Ok(())
    }

    fn stop_vring(&mut self, index: u16) -> VringBase {
        self.rings[usize::from(index)].take().map(|r| r.queue.base()).expect("a ring that runs")
    }
}

impl Device {
    /// The next frame that the host sends, its virtio-net header in front.
    fn transmitted(&mut self) -> Option<Vec<u8>> {
        let ring = self.rings[1].as_mut().filter(|r| r.enabled)?;
        let map = self.map.as_ref()?;
        if !ring.queue.pop(&mut self.chain).expect("hostd keeps the rules") {
            return None;
        }
        let mut frame = Vec::with_capacity(self.chain.readable as usize);
        for s in &self.chain.segments {
            let at = frame.len();
            frame.resize(at + s.len as usize, 0);
            map.slice_at(s.region, s.offset, s.len as usize).expect("checked by the ring").read(&mut frame[at..]);
        }
        ring.queue.push_used(self.chain.id, self.chain.descs, 0);
        call(ring);
        Some(frame)
    }

    /// Puts frames of the wire into the host's buffers, as many as fit.
    fn receive(&mut self) -> bool {
        let Some(ring) = self.rings[0].as_mut().filter(|r| r.enabled) else { return false };
        let Some(map) = &self.map else { return false };
        let mut moved = false;
        while let Some(frame) = self.wire.front_mut() {
            let Some(count) = fill(&mut ring.queue, map, &mut self.chain, frame, self.lie, self.forge) else { break };
            (self.lie, self.forge) = (false, false);
            moved |= count > 0;
            self.wire.pop_front();
        }
        if moved {
            call(ring);
        }
        moved
    }

    fn listen_for_kicks(&mut self) {
        for ring in self.rings.iter_mut().flatten() {
            ring.queue.enable_kick();
        }
    }
}

fn call(ring: &mut Vring) {
    if ring.queue.needs_call()
        && let Some(bell) = &ring.call
    {
        bell.ring();
    }
}

/// Writes a frame into merged buffers; `None` if there are too few.
fn fill(queue: &mut DeviceQueue, map: &MemoryMap, chain: &mut Chain, frame: &mut [u8], lie: bool, forge: bool) -> Option<usize> {
    let mut taken: Vec<(u16, u16, u32)> = Vec::new();
    let mut chains = Vec::new();
    let mut at = 0;
    while at < frame.len() {
        if !queue.pop(chain).expect("hostd keeps the rules") {
            for chain in chains.iter().rev() {
                queue.unpop(chain);
            }
            return None;
        }
        let s = chain.segments[0];
        let len = (frame.len() - at).min(s.len as usize);
        taken.push((chain.id, chain.descs, len as u32));
        chains.push(chain.clone());
        at += len;
    }
    let count = if lie { 0 } else { taken.len() as u16 };
    let hdr: [u8; VNET_HDR_LEN] = frame[..VNET_HDR_LEN].try_into().expect("a header");
    frame[..VNET_HDR_LEN].copy_from_slice(&VnetHdr { num_buffers: count, ..VnetHdr::parse(&hdr) }.emit());
    let mut at = 0;
    for (chain, &(id, descs, len)) in chains.iter().zip(&taken) {
        let s = chain.segments[0];
        map.slice_at(s.region, s.offset, len as usize).expect("checked by the ring").write(&frame[at..at + len as usize]);
        at += len as usize;
        queue.push_used(if forge { u16::MAX } else { id }, descs, len);
    }
    Some(taken.len())
}
