use super::*;
use crate::Config;
use crate::skb::SkBuff;
use crate::sock::SockId;
use crate::syscall::EpollOp;
use crate::uaccess::UserMemory;
use alloc::collections::VecDeque;
use proptest::prelude::*;
use ringlab_ring::memory::{Region, Slice};
use ringlab_ring::pool::Pool;

struct NoMemory;

impl UserMemory for NoMemory {
    fn copy_to_user(&mut self, _: TaskId, _: u64, _: &[Slice<'_>]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
    fn copy_from_user(&mut self, _: TaskId, _: u64, _: &[Slice<'_>]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

fn kernel() -> (Kernel, TaskId) {
    let pool = Pool::new(Region::heap(1 << 20), 0, 1 << 20);
    let mut k = Kernel::new(Config { seed: 1, cpus: 1, ip_forward: false, udp_backlog: false, pool }, Box::new(NoMemory));
    let task = k.spawn("test", None);
    (k, task)
}

fn udp(k: &mut Kernel, task: TaskId) -> (Fd, SockId) {
    let fd = k.sys_socket(task, 2, 2, 0).expect("a socket");
    (fd, k.sock_of(task, fd).expect("a socket"))
}

/// An empty datagram arrives.
fn arrive(k: &mut Kernel, id: SockId) {
    let mut sk = k.socks.take(id).expect("open");
    k.dgram_queue(&mut sk, SkBuff::new());
    k.socks.put(sk);
}

fn drain(k: &mut Kernel, id: SockId) {
    let sk = k.socks.get_mut(id).expect("open");
    sk.receive_queue.clear();
    sk.rmem_alloc = 0;
}

const SOCKETS: usize = 5;

#[derive(Debug, Clone)]
enum Do {
    Add(usize, PollEvents),
    Mod(usize, PollEvents),
    Del(usize),
    Arrive(usize),
    Drain(usize),
    Wait(usize),
}

fn operation() -> impl Strategy<Value = Do> {
    let events = prop::sample::select(alloc::vec![
        PollEvents::IN,
        PollEvents::IN | PollEvents::ET,
        PollEvents::IN | PollEvents::ONESHOT,
        PollEvents::OUT | PollEvents::ET,
        PollEvents::IN | PollEvents::OUT,
        PollEvents::IN | PollEvents::OUT | PollEvents::ET | PollEvents::ONESHOT,
        PollEvents::PRI,
        PollEvents::empty(),
    ]);
    let n = 0..SOCKETS;
    prop_oneof![
        2 => (n.clone(), events.clone()).prop_map(|(i, e)| Do::Add(i, e)),
        2 => (n.clone(), events).prop_map(|(i, e)| Do::Mod(i, e)),
        1 => n.clone().prop_map(Do::Del),
        4 => n.clone().prop_map(Do::Arrive),
        2 => n.prop_map(Do::Drain),
        4 => (1..4usize).prop_map(Do::Wait),
    ]
}

/// The same rules over plain lists.
#[derive(Default)]
struct Model {
    asked: [Option<PollEvents>; SOCKETS],
    queued: [bool; SOCKETS],
    ready: VecDeque<usize>,
}

impl Model {
    fn poll(&self, i: usize) -> PollEvents {
        let mut mask = PollEvents::WRITABLE;
        if self.queued[i] {
            mask |= PollEvents::IN | PollEvents::RDNORM;
        }
        mask & (self.asked[i].unwrap_or_default() - PRIVATE)
    }

    fn link(&mut self, i: usize) {
        if !self.ready.contains(&i) {
            self.ready.push_back(i);
        }
    }

    fn watch(&mut self, i: usize, events: PollEvents) {
        self.asked[i] = Some(events | PollEvents::ALWAYS);
        if !self.poll(i).is_empty() {
            self.link(i);
        }
    }

    fn arrive(&mut self, i: usize) {
        self.queued[i] = true;
        let asked = self.asked[i].unwrap_or_default();
        if !(asked - PRIVATE).is_empty() && asked.intersects(PollEvents::READABLE) {
            self.link(i);
        }
    }

    fn wait(&mut self, max: usize) -> Vec<(usize, PollEvents)> {
        let mut out = Vec::new();
        for _ in 0..self.ready.len() {
            if out.len() == max {
                break;
            }
            let i = self.ready.pop_front().expect("counted");
            let found = self.poll(i);
            if found.is_empty() {
                continue;
            }
            out.push((i, found));
            let asked = self.asked[i].as_mut().expect("watched");
            if asked.contains(PollEvents::ONESHOT) {
                *asked &= PRIVATE;
            } else if !asked.contains(PollEvents::ET) {
                self.ready.push_back(i);
            }
        }
        out
    }
}

proptest! {
    #[test]
    fn ready_list_behaves_like_plain_lists(ops in prop::collection::vec(operation(), 1..200)) {
        let (mut k, task) = kernel();
        let ep = k.sys_epoll_create(task, 0).expect("an instance");
        let FileKind::Epoll(id) = k.vfs.file(k.fget(task, ep).expect("open")).kind else { unreachable!() };
        let socks: Vec<(Fd, SockId)> = (0..SOCKETS).map(|_| udp(&mut k, task)).collect();
        let mut model = Model::default();
        for op in ops {
            match op {
                Do::Add(i, events) => {
                    let done = k.sys_epoll_ctl(task, ep, socks[i].0, socks[i].0, EpollOp::Add(EpollEvent { events, data: i as u64 }));
                    prop_assert_eq!(done.is_ok(), model.asked[i].is_none());
                    if done.is_ok() {
                        model.watch(i, events);
                    }
                }
                Do::Mod(i, events) => {
                    let done = k.sys_epoll_ctl(task, ep, socks[i].0, socks[i].0, EpollOp::Mod(EpollEvent { events, data: i as u64 }));
                    prop_assert_eq!(done, if model.asked[i].is_some() { Ok(()) } else { Err(Errno::ENOENT) });
                    if done.is_ok() {
                        model.watch(i, events);
                    }
                }
                Do::Del(i) => {
                    let done = k.sys_epoll_ctl(task, ep, socks[i].0, socks[i].0, EpollOp::Del);
                    prop_assert_eq!(done.is_ok(), model.asked[i].take().is_some());
                    model.ready.retain(|&r| r != i);
                    prop_assert_eq!(k.socks.get(socks[i].1).expect("open").wq.entries.len(), 0);
                }
                Do::Arrive(i) => {
                    arrive(&mut k, socks[i].1);
                    model.arrive(i);
                }
                Do::Drain(i) => {
                    drain(&mut k, socks[i].1);
                    model.queued[i] = false;
                }
                Do::Wait(max) => {
                    let got: Vec<_> = k.ep_send_events(id, max).iter().map(|e| (e.data as usize, e.events)).collect();
                    prop_assert_eq!(got, model.wait(max));
                }
            }
        }
        prop_assert_eq!(k.epolls.len(id), model.asked.iter().flatten().count());
    }
}

#[test]
fn a_hundred_thousand_items_do_not_slow_the_one_that_is_ready() {
    const N: usize = 100_000;
    let (mut k, task) = kernel();
    k.set_fd_limit(task, N + 10);
    let ep = k.sys_epoll_create(task, 0).expect("an instance");
    let FileKind::Epoll(id) = k.vfs.file(k.fget(task, ep).expect("open")).kind else { unreachable!() };
    let mut last = SockId(0);
    for _ in 0..N {
        let (fd, sock) = udp(&mut k, task);
        last = sock;
        let event = EpollEvent { events: PollEvents::IN | PollEvents::ET, data: fd as u64 };
        k.sys_epoll_ctl(task, ep, fd, fd, EpollOp::Add(event)).expect("added");
    }
    assert_eq!(k.epolls.len(id), N);
    k.trace_enable(&[], 100_000);
    for _ in 0..10_000 {
        arrive(&mut k, last);
        let events = k.ep_send_events(id, 64);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].data, N as u64);
    }
    // Three trace points a round, and nothing that grows with N.
    let points = core::iter::from_fn(|| k.trace_pop()).filter(|r| r.point.step() == "W6").count();
    assert_eq!(points, 20_000);
    k.exit(task);
    assert_eq!(k.sockets_info().len(), 0);
}
