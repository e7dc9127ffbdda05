//! Tasks, their switches, and the counted cost of a blocking call.

mod common;

use common::tasks::{DGRAM, NONBLOCK, Prog};
use common::{A, ADDR_B, B, HostConfig, Lab, PortConfig};
use ringlab_counters::CopyKind;
use ringlab_kernel::cpu::account::CpuStat;
use ringlab_kernel::cpu::sched::TaskState;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret, msg};
use ringlab_kernel::trace::Point;
use std::time::Duration;

const SO_RCVTIMEO: i32 = 20;

/// UDP on both hosts, the address resolved: nothing but datagrams from now on.
fn pair(seed: u64) -> (Lab, (Prog, i32), (Prog, i32)) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    let (fa, fb) = (a.socket(&mut lab, DGRAM), b.udp(&mut lab, 7));
    a.send_to(&mut lab, fa, b"resolve", ADDR_B, 7);
    b.recv(&mut lab, fb, 10, 0);
    lab.run_for(Duration::from_millis(10));
    (lab, (a, fa), (b, fb))
}

fn cpu(lab: &Lab, host: usize) -> CpuStat {
    lab.hosts[host].kernel.stats().cpus[0]
}

#[test]
fn blocking_receive_costs_one_call_one_copy_and_two_context_switches() {
    let (mut lab, (a, fa), (b, fb)) = pair(1);
    let (before, copies) = (cpu(&lab, B), lab.hosts[B].kernel.stats().copies);
    let buffer = b.buffer(&lab, 100);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    a.send_to(&mut lab, fa, &[1; 64], ADDR_B, 7);
    assert_eq!(b.wait(&mut lab).as_number(), 64);
    let (after, now) = (cpu(&lab, B), lab.hosts[B].kernel.stats().copies);
    assert_eq!(after.syscalls - before.syscalls, 1);
    assert_eq!(after.mode_switches - before.mode_switches, 2);
    assert_eq!(after.context_switches - before.context_switches, 2, "away, and back");
    assert_eq!(after.wakeups - before.wakeups, 1);
    assert_eq!(after.hardirqs - before.hardirqs, 1);
    assert_eq!(after.net_rx_softirqs - before.net_rx_softirqs, 1);
    assert_eq!(now.get(CopyKind::SkbToUser) - copies.get(CopyKind::SkbToUser), 1);
    assert_eq!(now.get(CopyKind::SkbToUserBytes) - copies.get(CopyKind::SkbToUserBytes), 64);
    assert_eq!(now.get(CopyKind::Other), copies.get(CopyKind::Other));
    assert_eq!(b.info(&lab).nvcsw, 2, "this one, and the one of the set-up");
}

#[test]
fn receive_of_what_is_there_switches_no_task() {
    let (mut lab, (a, fa), (b, fb)) = pair(2);
    a.send_to(&mut lab, fa, &[1; 64], ADDR_B, 7);
    lab.run_for(Duration::from_millis(1));
    let before = cpu(&lab, B);
    assert_eq!(b.recv(&mut lab, fb, 100, 0).len, 64);
    let after = cpu(&lab, B);
    assert_eq!((after.syscalls - before.syscalls, after.mode_switches - before.mode_switches), (1, 2));
    assert_eq!(after.context_switches, before.context_switches);
}

#[test]
fn send_copies_once_and_switches_no_task() {
    let (mut lab, (a, fa), _) = pair(3);
    let (before, copies) = (cpu(&lab, A), lab.hosts[A].kernel.stats().copies);
    a.send_to(&mut lab, fa, &[1; 1000], ADDR_B, 7);
    let (after, now) = (cpu(&lab, A), lab.hosts[A].kernel.stats().copies);
    assert_eq!((after.syscalls - before.syscalls, after.mode_switches - before.mode_switches), (1, 2));
    assert_eq!(after.context_switches, before.context_switches);
    assert_eq!(now.get(CopyKind::UserToSkb) - copies.get(CopyKind::UserToSkb), 1);
    assert_eq!(now.get(CopyKind::UserToSkbBytes) - copies.get(CopyKind::UserToSkbBytes), 1000);
    assert_eq!(now.get(CopyKind::Other), copies.get(CopyKind::Other));
}

#[test]
fn wake_up_path_is_traced_in_order() {
    let (mut lab, (a, fa), (b, fb)) = pair(4);
    lab.trace(B);
    let buffer = b.buffer(&lab, 100);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    a.send_to(&mut lab, fa, &[1; 64], ADDR_B, 7);
    b.wait(&mut lab);
    let wanted = [
        Point::SysEnter,
        Point::PrepareToWait,
        Point::SchedSwitch,
        Point::HardIrq,
        Point::NapiSchedule,
        Point::SoftirqEntry,
        Point::NetifReceive,
        Point::IpRcv,
        Point::IpLocalDeliver,
        Point::UdpRcv,
        Point::SockQueueRcv,
        Point::SkDataReady,
        Point::WakeUp,
        Point::SoftirqExit,
        Point::SchedSwitch,
        Point::CopyToUser,
        Point::ConsumeSkb,
        Point::SysExit,
    ];
    let trace = lab.take_trace(B);
    let mut points = trace.iter().map(|r| r.point);
    for w in wanted {
        assert!(points.any(|p| p == w), "{w:?} in its place of {trace:#?}");
    }
    let switches: Vec<[u64; 2]> = trace.iter().filter(|r| r.point == Point::SchedSwitch).map(|r| [r.args[0], r.args[1]]).collect();
    assert_eq!(switches, [[1, 0], [0, 1]]);
}

#[test]
fn one_of_eight_blocked_readers_wakes_for_a_datagram() {
    let (mut lab, (a, fa), (b, fb)) = pair(5);
    let readers: Vec<Prog> = (0..8).map(|_| b.thread(&mut lab)).collect();
    let buffers: Vec<_> = readers.iter().map(|r| r.buffer(&lab, 10)).collect();
    for (r, &buffer) in readers.iter().zip(&buffers) {
        r.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    }
    let before = cpu(&lab, B);
    for round in 0..8u8 {
        a.send_to(&mut lab, fa, &[round], ADDR_B, 7);
        lab.run_for(Duration::from_millis(1));
        let returned: Vec<usize> = (0..8).filter(|&i| readers[i].poll(&mut lab).is_some()).collect();
        assert_eq!(returned, [usize::from(round)], "the one that waits longest, and no other");
        assert_eq!(lab.hosts[B].mem.get(buffers[usize::from(round)], 1), [round]);
        assert_eq!(cpu(&lab, B).wakeups - before.wakeups, u64::from(round) + 1);
    }
    assert_eq!(cpu(&lab, B).context_switches - before.context_switches, 8, "eight came back");
}

#[test]
fn receive_time_limit_ends_with_eagain() {
    let (mut lab, (a, fa), (b, fb)) = pair(6);
    b.settime(&mut lab, fb, SO_RCVTIMEO, Duration::from_millis(250));
    let start = lab.now;
    let buffer = b.buffer(&lab, 10);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    assert_eq!(b.wait(&mut lab), Ret::Err(Errno::EAGAIN));
    assert_eq!(lab.now - start, Duration::from_millis(250));
    a.send_to(&mut lab, fa, b"x", ADDR_B, 7);
    assert_eq!(b.recv(&mut lab, fb, 10, 0).len, 1, "the queue was left: nothing is lost");
    b.settime(&mut lab, fb, SO_RCVTIMEO, Duration::ZERO);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    lab.run_for(Duration::from_secs(60));
    assert_eq!(b.poll(&mut lab), None, "no limit");
}

#[test]
fn signal_ends_a_blocked_call_and_nothing_else() {
    let (mut lab, (a, fa), (b, fb)) = pair(7);
    b.signal(&mut lab);
    let buffer = b.buffer(&lab, 10);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    b.signal(&mut lab);
    assert_eq!(b.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    a.send_to(&mut lab, fa, b"x", ADDR_B, 7);
    assert_eq!(b.wait(&mut lab).as_number(), 1);
}

#[test]
fn sleep_lasts_as_long_as_asked() {
    let (mut lab, (a, _), _) = pair(8);
    let start = lab.now;
    a.blocks(&mut lab, Call::Sleep(Duration::from_micros(1500)));
    assert_eq!(a.info(&lab).wchan, "hrtimer_nanosleep");
    assert_eq!(a.wait(&mut lab), Ret::Value(0));
    assert_eq!(lab.now - start, Duration::from_micros(1500));
    a.blocks(&mut lab, Call::Sleep(Duration::from_secs(1)));
    a.signal(&mut lab);
    assert_eq!(a.poll(&mut lab), Some(Ret::Err(Errno::EINTR)));
}

#[test]
fn nonblocking_calls_do_not_wait() {
    let (mut lab, _, (b, fb)) = pair(9);
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
    b.ok(&mut lab, Call::SetFl(fb, NONBLOCK));
    assert_eq!(b.ok(&mut lab, Call::GetFl(fb)), i64::from(NONBLOCK | 2));
    assert_eq!(b.recv_err(&mut lab, fb, 0), Errno::EAGAIN);
    let copy = b.ok(&mut lab, Call::Dup(fb, Err(0))) as i32;
    b.ok(&mut lab, Call::SetFl(copy, 0));
    assert_eq!(b.ok(&mut lab, Call::GetFl(fb)), 2, "the flags belong to the file");
}

#[test]
fn descriptors_are_shared_by_threads_and_copied_by_fork() {
    let (mut lab, (a, fa), (b, fb)) = pair(10);
    let thread = b.thread(&mut lab);
    let task = lab.hosts[B].kernel.fork(b.task, "child", None);
    let child = Prog { host: B, task };
    let buffer = b.buffer(&lab, 10);
    thread.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    b.ok(&mut lab, Call::Close(fb));
    assert_eq!(b.err(&mut lab, Call::Inq(fb)), Errno::EBADF);
    a.send_to(&mut lab, fa, b"to the thread", ADDR_B, 7);
    assert_eq!(thread.wait(&mut lab).as_number(), 10, "a blocked call holds the file");
    assert_eq!(thread.err(&mut lab, Call::Inq(fb)), Errno::EBADF, "one table");
    a.send_to(&mut lab, fa, b"to child", ADDR_B, 7);
    assert_eq!(child.recv(&mut lab, fb, 10, 0).data, b"to child");
    child.start(&mut lab, Call::Exit(0));
    a.send_to(&mut lab, fa, b"nobody", ADDR_B, 7);
    lab.run_for(Duration::from_millis(10));
    assert_eq!(lab.hosts[B].kernel.stats().mib.get(ringlab_counters::Mib::UdpNoPorts), 1, "the last reference closed it");
    assert_eq!(lab.hosts[B].kernel.sockets_info(), []);
}

#[test]
fn descriptor_limit_is_kept() {
    let (mut lab, (a, _), _) = pair(12);
    lab.hosts[A].kernel.set_fd_limit(a.task, 3);
    a.socket(&mut lab, DGRAM);
    let last = a.socket(&mut lab, DGRAM);
    assert_eq!(last, 2);
    assert_eq!(a.err(&mut lab, Call::Socket(2, DGRAM, 0)), Errno::EMFILE);
    assert_eq!(a.err(&mut lab, Call::EpollCreate(0)), Errno::EMFILE);
    assert_eq!(a.err(&mut lab, Call::Dup(0, Err(0))), Errno::EMFILE);
    assert_eq!(a.err(&mut lab, Call::Dup(0, Ok(3))), Errno::EBADF);
    assert_eq!(a.err(&mut lab, Call::Dup(0, Err(3))), Errno::EINVAL);
    assert_eq!(a.ok(&mut lab, Call::Dup(0, Ok(2))), 2);
    assert_eq!(lab.hosts[A].kernel.sockets_info().len(), 2, "what was there is closed");
}

#[test]
fn task_that_dies_in_a_call_leaves_nothing_behind() {
    let (mut lab, (a, fa), (b, fb)) = pair(13);
    let reader = b.thread(&mut lab);
    let ep = b.epoll(&mut lab);
    b.epoll_add(&mut lab, ep, fb, ringlab_kernel::wait::queue::PollEvents::IN);
    let buffer = b.buffer(&lab, 10);
    reader.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    lab.hosts[B].kernel.exit(reader.task);
    lab.hosts[B].kernel.exit(b.task);
    assert_eq!(lab.hosts[B].kernel.tasks_info(), []);
    assert_eq!(lab.hosts[B].kernel.sockets_info(), []);
    a.send_to(&mut lab, fa, b"x", ADDR_B, 7);
    lab.run_for(Duration::from_millis(10));
    let again = Prog::spawn(&mut lab, B, "next");
    assert_ne!(again.task, b.task, "a pid is not used again at once");
    assert_eq!(again.info(&lab).state, TaskState::Running);
}

#[test]
fn woken_tasks_run_on_their_own_cpus() {
    let host = HostConfig { cpus: 2, ..HostConfig::default() };
    let mut lab = Lab::pair_with(14, host, PortConfig::default());
    let a = Prog::spawn(&mut lab, A, "a");
    let fa = a.socket(&mut lab, DGRAM);
    let task = lab.hosts[B].kernel.spawn("b", Some(1));
    let b = Prog { host: B, task };
    let fb = b.udp(&mut lab, 7);
    let buffer = b.buffer(&lab, 10);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, 0));
    a.send_to(&mut lab, fa, b"x", ADDR_B, 7);
    b.wait(&mut lab);
    let cpus = lab.hosts[B].kernel.stats().cpus;
    assert_eq!((cpus[0].context_switches, cpus[1].context_switches), (0, 2));
    assert_eq!((cpus[0].wakeups, cpus[1].wakeups), (0, 1));
    assert!(cpus[0].net_rx_softirqs > 0 && cpus[1].hardirqs == 0, "the interrupt stays on its vector's CPU");
}

#[test]
fn same_seed_gives_the_same_trace() {
    let run = || {
        let (mut lab, (a, fa), (b, fb)) = pair(15);
        lab.trace(B);
        let ep = b.epoll(&mut lab);
        b.epoll_add(&mut lab, ep, fb, ringlab_kernel::wait::queue::PollEvents::IN);
        for i in 0..20 {
            b.start(&mut lab, Call::EpollWait(ep, 4, None));
            a.send_to(&mut lab, fa, &vec![i; usize::from(i) * 200], ADDR_B, 7);
            b.wait(&mut lab);
            b.recv(&mut lab, fb, 5000, 0);
        }
        lab.take_trace(B).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let first = run();
    assert!(first.len() > 200);
    assert_eq!(first, run());
}
