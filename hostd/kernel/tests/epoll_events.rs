//! `epoll`, `poll` and `select` over datagram sockets.

mod common;

use common::tasks::{DGRAM, Prog, epoll_events};
use common::{A, ADDR_B, B, Lab};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, EpollEvent, EpollOp, FdSet, PollFd, Ret, msg};
use ringlab_kernel::trace::Point;
use ringlab_kernel::wait::queue::PollEvents as E;
use std::time::Duration;

type End = (Prog, i32);

fn pair(seed: u64) -> (Lab, End, End) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let (fa, fb) = (a.socket(&mut lab, DGRAM), b.udp(&mut lab, 7));
    a.send_to(&mut lab, fa, b"resolve", ADDR_B, 7);
    b.recv(&mut lab, fb, 10, 0);
    (lab, (a, fa), (b, fb))
}

/// A sends a datagram to a port of B, and it arrives.
fn arrive(lab: &mut Lab, (a, fa): End, port: u16) {
    a.send_to(lab, fa, b"data", ADDR_B, port);
    lab.run_for(Duration::from_millis(1));
}

fn wait_call(ep: i32) -> Call {
    Call::EpollWait(ep, 8, None)
}

fn ctl(ep: i32, fd: i32, op: EpollOp) -> Call {
    Call::EpollCtl(ep, fd, op)
}

fn add(fd: i32, events: E) -> EpollOp {
    EpollOp::Add(EpollEvent { events, data: fd as u64 })
}

fn modify(fd: i32, events: E) -> EpollOp {
    EpollOp::Mod(EpollEvent { events, data: fd as u64 })
}

#[test]
fn level_reports_until_read_and_edge_once() {
    let (mut lab, a, (b, fb)) = pair(1);
    let (level, edge) = (b.epoll(&mut lab), b.epoll(&mut lab));
    b.epoll_add(&mut lab, level, fb, E::IN);
    b.epoll_add(&mut lab, edge, fb, E::IN | E::ET);
    assert_eq!(b.epoll_now(&mut lab, level), []);
    arrive(&mut lab, a, 7);
    lab.trace(B);
    for _ in 0..3 {
        assert_eq!(b.epoll_now(&mut lab, level), [(fb, E::IN)]);
    }
    assert_eq!(b.epoll_now(&mut lab, edge), [(fb, E::IN)]);
    // Events, and items of them that stand on the ready list again.
    let sent: Vec<[u64; 2]> = lab.take_trace(B).iter().filter(|r| r.point == Point::EpSendEvents).map(|r| [r.args[1], r.args[2]]).collect();
    assert_eq!(sent, [[1, 1], [1, 1], [1, 1], [1, 0]]);
    assert_eq!(b.epoll_now(&mut lab, edge), []);
    arrive(&mut lab, a, 7);
    assert_eq!(b.epoll_now(&mut lab, edge), [(fb, E::IN)], "new data is a new edge");
    b.recv(&mut lab, fb, 10, 0);
    b.recv(&mut lab, fb, 10, 0);
    assert_eq!(b.epoll_now(&mut lab, level), []);
    arrive(&mut lab, a, 7);
    b.recv(&mut lab, fb, 10, 0);
    assert_eq!(b.epoll_now(&mut lab, edge), [], "read before the look: not reported");
}

#[test]
fn one_shot_is_disarmed_until_changed() {
    let (mut lab, a, (b, fb)) = pair(2);
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, E::IN | E::ONESHOT);
    arrive(&mut lab, a, 7);
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, E::IN)]);
    arrive(&mut lab, a, 7);
    assert_eq!(b.epoll_now(&mut lab, ep), []);
    b.ok(&mut lab, ctl(ep, fb, modify(fb, E::IN | E::ONESHOT)));
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, E::IN)], "what is ready is seen when armed again");
}

#[test]
fn changing_a_ready_edge_item_reports_it_again() {
    let (mut lab, a, (b, fb)) = pair(3);
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, E::IN | E::ET);
    arrive(&mut lab, a, 7);
    assert_eq!(b.epoll_now(&mut lab, ep).len(), 1);
    b.ok(&mut lab, ctl(ep, fb, modify(fb, E::IN | E::OUT | E::ET)));
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, E::IN | E::OUT)]);
    b.ok(&mut lab, ctl(ep, fb, modify(fb, E::PRI)));
    assert_eq!(b.epoll_now(&mut lab, ep), []);
}

#[test]
fn blocked_wait_ends_with_the_event_the_limit_or_a_signal() {
    let (mut lab, a, (b, fb)) = pair(4);
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, E::IN);
    b.blocks(&mut lab, wait_call(ep));
    arrive(&mut lab, a, 7);
    let ret = b.poll(&mut lab).expect("woken");
    assert_eq!(epoll_events(ret), [(fb, E::IN)]);
    b.recv(&mut lab, fb, 10, 0);
    let start = lab.now;
    assert_eq!(b.call(&mut lab, Call::EpollWait(ep, 8, Some(Duration::from_millis(20)))), Ret::Epoll(vec![]));
    assert_eq!(lab.now - start, Duration::from_millis(20));
    b.blocks(&mut lab, wait_call(ep));
    b.signal(&mut lab);
    assert_eq!(b.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
}

#[test]
fn ready_descriptors_take_turns() {
    let (mut lab, a, (b, fb)) = pair(5);
    let ep = b.epoll(&mut lab);
    let fds: Vec<i32> = [fb].into_iter().chain((8..12).map(|p| b.udp(&mut lab, p))).collect();
    for &fd in &fds {
        b.epoll_add(&mut lab, ep, fd, E::IN);
    }
    for port in [9, 7, 11, 8, 10] {
        arrive(&mut lab, a, port);
    }
    let mut turns = Vec::new();
    for _ in 0..5 {
        let ret = b.now(&mut lab, Call::EpollWait(ep, 2, None));
        turns.extend(epoll_events(ret).iter().map(|e| e.0));
    }
    let order = [fds[2], fds[0], fds[4], fds[1], fds[3]];
    assert_eq!(turns, [order, order].concat(), "in the order of arrival, and nobody starves");
}

#[test]
fn exclusive_watchers_wake_one_at_a_time() {
    let (mut lab, a, (b, fb)) = pair(6);
    let workers: Vec<Prog> = (0..8).map(|_| b.thread(&mut lab)).collect();
    for (flags, woken) in [(E::IN | E::EXCLUSIVE, 1), (E::IN, 8)] {
        let eps: Vec<i32> = workers.iter().map(|w| w.epoll(&mut lab)).collect();
        for (w, &ep) in workers.iter().zip(&eps) {
            w.epoll_add(&mut lab, ep, fb, flags);
            w.blocks(&mut lab, wait_call(ep));
        }
        arrive(&mut lab, a, 7);
        let returned = workers.iter().filter(|w| w.poll(&mut lab).is_some()).count();
        assert_eq!(returned, woken, "{flags:?}");
        b.recv(&mut lab, fb, 10, 0);
        for w in &workers {
            if !w.info(&lab).wchan.is_empty() {
                w.signal(&mut lab);
                assert_eq!(w.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
            }
        }
        for ep in eps {
            b.ok(&mut lab, Call::Close(ep));
        }
    }
}

#[test]
fn exclusive_watcher_that_nobody_waits_on_passes_the_wake_up_on() {
    let (mut lab, a, (b, fb)) = pair(7);
    let (idle, busy) = (b.epoll(&mut lab), b.epoll(&mut lab));
    b.epoll_add(&mut lab, idle, fb, E::IN | E::EXCLUSIVE);
    b.epoll_add(&mut lab, busy, fb, E::IN | E::EXCLUSIVE);
    b.blocks(&mut lab, wait_call(busy));
    arrive(&mut lab, a, 7);
    assert!(b.poll(&mut lab).is_some());
    assert_eq!(b.epoll_now(&mut lab, idle), [(fb, E::IN)], "the event is not lost for it either");
}

#[test]
fn threads_on_one_instance_wake_one_after_the_other() {
    let (mut lab, a, (b, fb)) = pair(8);
    let threads: Vec<Prog> = (0..3).map(|_| b.thread(&mut lab)).collect();
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, E::IN | E::ET);
    for t in &threads {
        t.blocks(&mut lab, wait_call(ep));
    }
    arrive(&mut lab, a, 7);
    let returned: Vec<bool> = threads.iter().map(|t| t.poll(&mut lab).is_some()).collect();
    assert_eq!(returned, [true, false, false]);
    arrive(&mut lab, a, 7);
    assert!(threads[1].poll(&mut lab).is_some() && threads[2].poll(&mut lab).is_none());
}

#[test]
fn inner_instance_is_readable_when_something_in_it_is() {
    let (mut lab, a, (b, fb)) = pair(9);
    let (inner, outer) = (b.epoll(&mut lab), b.epoll(&mut lab));
    b.epoll_add(&mut lab, inner, fb, E::IN);
    b.epoll_add(&mut lab, outer, inner, E::IN);
    assert_eq!(b.epoll_now(&mut lab, outer), []);
    b.blocks(&mut lab, wait_call(outer));
    arrive(&mut lab, a, 7);
    let ret = b.poll(&mut lab).expect("woken through two levels");
    assert_eq!(epoll_events(ret), [(inner, E::IN)]);
    assert_eq!(b.epoll_now(&mut lab, inner), [(fb, E::IN)]);
    b.recv(&mut lab, fb, 10, 0);
    assert_eq!(b.epoll_now(&mut lab, outer), [], "the inner one is looked at, not believed");
    let fds = vec![PollFd { fd: inner, events: E::IN, revents: E::empty() }];
    b.blocks(&mut lab, Call::Poll(fds, None));
    arrive(&mut lab, a, 7);
    assert_eq!(b.poll(&mut lab).map(|r| r.as_number()), Some(1));
}

#[test]
fn loops_and_towers_of_instances_are_refused() {
    let (mut lab, _, (b, _)) = pair(10);
    let eps: Vec<i32> = (0..7).map(|_| b.epoll(&mut lab)).collect();
    for i in 0..4 {
        b.epoll_add(&mut lab, eps[i], eps[i + 1], E::IN);
    }
    assert_eq!(b.err(&mut lab, ctl(eps[4], eps[5], add(eps[5], E::IN))), Errno::ELOOP, "a sixth level below");
    assert_eq!(b.err(&mut lab, ctl(eps[5], eps[0], add(eps[0], E::IN))), Errno::ELOOP, "a sixth level above");
    assert_eq!(b.err(&mut lab, ctl(eps[4], eps[0], add(eps[0], E::IN))), Errno::ELOOP, "a loop");
    assert_eq!(b.err(&mut lab, ctl(eps[0], eps[0], add(eps[0], E::IN))), Errno::EINVAL);
    b.ok(&mut lab, ctl(eps[3], eps[4], EpollOp::Del));
    b.epoll_add(&mut lab, eps[5], eps[0], E::IN);
}

#[test]
fn mistakes_of_epoll_ctl_have_their_errors() {
    let (mut lab, _, (b, fb)) = pair(11);
    let (ep, other) = (b.epoll(&mut lab), b.epoll(&mut lab));
    b.epoll_add(&mut lab, ep, fb, E::IN);
    let exclusive = E::IN | E::EXCLUSIVE;
    for (call, errno) in [
        (ctl(ep, fb, add(fb, E::IN)), Errno::EEXIST),
        (ctl(ep, 77, add(77, E::IN)), Errno::EBADF),
        (ctl(77, fb, add(fb, E::IN)), Errno::EBADF),
        (ctl(fb, ep, add(ep, E::IN)), Errno::EINVAL),
        (ctl(other, fb, modify(fb, E::IN)), Errno::ENOENT),
        (ctl(other, fb, EpollOp::Del), Errno::ENOENT),
        (ctl(ep, fb, modify(fb, exclusive)), Errno::EINVAL),
        (ctl(ep, other, add(other, exclusive)), Errno::EINVAL),
        (ctl(other, fb, add(fb, exclusive | E::PRI)), Errno::EINVAL),
        (ctl(other, fb, add(fb, exclusive | E::ONESHOT)), Errno::EINVAL),
        (Call::EpollWait(ep, 0, None), Errno::EINVAL),
        (Call::EpollWait(fb, 1, None), Errno::EINVAL),
        (Call::EpollWait(77, 1, None), Errno::EBADF),
        (Call::EpollCreate(1), Errno::EINVAL),
        (Call::Bind(ep, (ADDR_B, 1).into()), Errno::ENOTSOCK),
    ] {
        assert_eq!(b.err(&mut lab, call.clone()), errno, "{call:?}");
    }
    b.epoll_add(&mut lab, other, fb, exclusive);
    assert_eq!(b.err(&mut lab, ctl(other, fb, modify(fb, E::IN))), Errno::EINVAL, "exclusive items cannot change");
}

#[test]
fn item_lives_as_long_as_the_file_not_the_descriptor() {
    let (mut lab, a, (b, fb)) = pair(12);
    let ep = b.epoll(&mut lab);
    let copy = b.ok(&mut lab, Call::Dup(fb, Err(0))) as i32;
    b.epoll_add(&mut lab, ep, fb, E::IN);
    b.epoll_add(&mut lab, ep, copy, E::IN | E::ONESHOT);
    arrive(&mut lab, a, 7);
    assert_eq!(b.epoll_now(&mut lab, ep).len(), 2, "two descriptors, two items");
    b.ok(&mut lab, Call::Close(fb));
    assert_eq!(b.epoll_now(&mut lab, ep), [(fb, E::IN)], "the file is open: the item of the closed number goes on");
    assert_eq!(b.err(&mut lab, ctl(ep, fb, EpollOp::Del)), Errno::EBADF);
    b.ok(&mut lab, Call::Close(copy));
    assert_eq!(b.epoll_now(&mut lab, ep), []);
    let again = b.udp(&mut lab, 7);
    assert_eq!(again, fb);
    b.epoll_add(&mut lab, ep, again, E::IN);
    arrive(&mut lab, a, 7);
    assert_eq!(b.epoll_now(&mut lab, ep), [(again, E::IN)]);
    b.ok(&mut lab, Call::Close(ep));
    arrive(&mut lab, a, 7);
}

#[test]
fn errors_and_hang_ups_are_reported_unasked() {
    let (mut lab, (a, fa), _) = pair(13);
    let ep = a.epoll(&mut lab);
    a.epoll_add(&mut lab, ep, fa, E::empty());
    a.ok(&mut lab, Call::Connect(fa, Some((ADDR_B, 9).into())));
    a.send(&mut lab, fa, b"?");
    a.blocks(&mut lab, wait_call(ep));
    let ret = a.wait(&mut lab);
    assert_eq!(epoll_events(ret), [(fa, E::ERR)]);
    assert_eq!(a.recv_err(&mut lab, fa, msg::DONTWAIT), Errno::ECONNREFUSED);
    assert_eq!(a.epoll_now(&mut lab, ep), []);
    a.ok(&mut lab, Call::Shutdown(fa, ringlab_kernel::syscall::Shutdown::RdWr));
    assert_eq!(a.epoll_now(&mut lab, ep), [(fa, E::HUP)]);
}

#[test]
fn poll_looks_at_every_descriptor_each_time() {
    let (mut lab, a, (b, fb)) = pair(14);
    let mut fds: Vec<i32> = (100..149).map(|p| b.udp(&mut lab, p)).collect();
    fds.push(fb);
    let ask: Vec<PollFd> = fds.iter().map(|&fd| PollFd { fd, events: E::IN, revents: E::empty() }).collect();
    lab.trace(B);
    b.blocks(&mut lab, Call::Poll(ask, None));
    let trace = lab.take_trace(B);
    assert_eq!(trace.iter().filter(|r| r.point == Point::PrepareToWait).count(), 50, "registered on each");
    arrive(&mut lab, a, 7);
    let trace = lab.take_trace(B);
    let walks: Vec<u64> = trace.iter().filter(|r| r.point == Point::SelectEstimate).map(|r| r.args[1]).collect();
    assert_eq!(walks, [50], "all looked at again");
    let Some(Ret::Poll(found)) = b.poll(&mut lab) else { panic!("woken") };
    assert_eq!(found.iter().filter(|p| !p.revents.is_empty()).map(|p| (p.fd, p.revents)).collect::<Vec<_>>(), [(fb, E::IN)]);
    arrive(&mut lab, a, 120);
    let ready = lab.take_trace(B).into_iter().find(|r| r.point == Point::SkDataReady).expect("arrived");
    assert_eq!(ready.args[1], 0, "nobody stands on the queues any more");
}

#[test]
fn poll_masks_and_bad_descriptors() {
    let (mut lab, _, (b, fb)) = pair(15);
    let ask = |fd, events| PollFd { fd, events, revents: E::all() };
    let fds = vec![ask(fb, E::IN | E::OUT), ask(-1, E::IN), ask(55, E::IN), ask(fb, E::WRNORM | E::PRI)];
    let Ret::Poll(found) = b.now(&mut lab, Call::Poll(fds, None)) else { panic!() };
    let found: Vec<E> = found.iter().map(|p| p.revents).collect();
    assert_eq!(found, [E::OUT, E::empty(), E::NVAL, E::WRNORM]);
    let start = lab.now;
    let idle = vec![ask(fb, E::IN)];
    assert_eq!(b.now(&mut lab, Call::Poll(idle.clone(), Some(Duration::ZERO))).as_number(), 0);
    assert_eq!(b.call(&mut lab, Call::Poll(idle.clone(), Some(Duration::from_millis(7)))).as_number(), 0);
    assert_eq!(lab.now - start, Duration::from_millis(7));
    b.blocks(&mut lab, Call::Poll(idle, None));
    b.signal(&mut lab);
    assert_eq!(b.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
    assert_eq!(b.err(&mut lab, Call::Poll(vec![ask(-1, E::IN); 1025], None)), Errno::EINVAL);
}

#[test]
fn select_answers_in_the_sets_it_was_asked_with() {
    let (mut lab, a, (b, fb)) = pair(16);
    let other = b.udp(&mut lab, 8);
    let set = |fds: &[i32]| {
        let mut s = FdSet::default();
        fds.iter().for_each(|&fd| s.insert(fd));
        s
    };
    let none = FdSet::default();
    let n = other + 1;
    let ask = |n, read, write, except, limit| Call::Select(n, Box::new([read, write, except]), limit);
    let found = |n, read, write| Ret::Select(n, Box::new([read, write, none]));
    b.blocks(&mut lab, ask(n, set(&[fb, other]), none, set(&[fb]), None));
    arrive(&mut lab, a, 8);
    assert_eq!(b.poll(&mut lab), Some(found(1, set(&[other]), none)));
    let both = ask(n, set(&[fb, other]), set(&[fb, other]), none, None);
    assert_eq!(b.now(&mut lab, both), found(3, set(&[other]), set(&[fb, other])));
    let below = ask(other, set(&[fb, other]), none, none, Some(Duration::ZERO));
    assert_eq!(b.now(&mut lab, below), found(0, none, none), "other lies beyond nfds");
    assert_eq!(b.err(&mut lab, ask(1024, set(&[700]), none, none, None)), Errno::EBADF);
    assert_eq!(b.err(&mut lab, ask(-1, none, none, none, None)), Errno::EINVAL);
    assert_eq!(b.call(&mut lab, ask(n, set(&[fb]), none, none, Some(Duration::from_secs(1)))), found(0, none, none));
}
