//! Flags of `send` and `recv`, several messages in one call, and options as octets.

mod common;

use common::tasks::{AF_INET, DGRAM, Prog, SOL_SOCKET, STREAM};
use common::{A, ADDR_A, ADDR_B, B, Lab};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Control, OptVal, OutMsg, Ret, msg};
use ringlab_kernel::uaccess::Iov;
use std::net::Ipv4Addr;
use std::time::Duration;

fn two(seed: u64) -> (Lab, Prog, Prog) {
    let mut lab = Lab::pair(seed);
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    (lab, a, b)
}

fn streams(seed: u64) -> (Lab, Prog, i32, Prog, i32) {
    let (mut lab, a, b) = two(seed);
    let listener = b.listener(&mut lab, 80, 5);
    let fa = a.connect(&mut lab, ADDR_B, 80);
    let fb = b.accept(&mut lab, listener);
    (lab, a, fa, b, fb)
}

fn raw(p: Prog, lab: &mut Lab, fd: i32, level: i32, name: i32, room: usize) -> (Vec<u8>, i32) {
    match p.now(lab, Call::GetSockOptRaw(fd, level, name, vec![0; room])) {
        Ret::OptRaw(b, len) => (b, len),
        ret => panic!("{level} {name}: {ret:?}"),
    }
}

#[test]
fn peeking_leaves_data_and_truncating_throws_it_away() {
    let (mut lab, a, fa, b, fb) = streams(1);
    a.send(&mut lab, fa, b"0123456789");
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.recv(&mut lab, fb, 4, msg::PEEK).data, b"0123");
    let gone = b.recv(&mut lab, fb, 4, msg::TRUNC);
    assert_eq!((gone.len, &gone.data[..]), (4, &[0; 4][..]), "discarded, nothing was copied");
    b.setopt(&mut lab, fb, SOL_SOCKET, 42, 2);
    assert_eq!(b.recv(&mut lab, fb, 2, msg::PEEK).data, b"67", "SO_PEEK_OFF");
    assert_eq!(b.recv(&mut lab, fb, 2, msg::PEEK).data, b"89", "peeking goes on");
    assert_eq!(b.getopt(&mut lab, fb, SOL_SOCKET, 42), 6);
    assert_eq!(b.recv(&mut lab, fb, 3, 0).data, b"456");
    assert_eq!(b.getopt(&mut lab, fb, SOL_SOCKET, 42), 3, "reading moves it back");
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"789");
    let udp = b.udp(&mut lab, 9);
    let from = a.udp(&mut lab, 8);
    a.send_to(&mut lab, from, b"0123456789", ADDR_B, 9);
    lab.run_for(Duration::from_millis(1));
    let peeked = b.recv(&mut lab, udp, 4, msg::PEEK | msg::TRUNC);
    assert_eq!((peeked.len, peeked.flags, &peeked.data[..]), (10, msg::TRUNC, &b"0123"[..]), "the real length");
    let got = b.recv(&mut lab, udp, 4, 0);
    assert_eq!((got.len, got.flags), (4, msg::TRUNC));
    assert_eq!(b.recv_err(&mut lab, udp, msg::DONTWAIT | msg::PEEK), Errno::EAGAIN);
}

#[test]
fn waitall_waits_for_all_and_a_signal_ends_it_with_a_part() {
    let (mut lab, a, fa, b, fb) = streams(2);
    let buffer = b.buffer(&lab, 6);
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, msg::WAITALL));
    a.send(&mut lab, fa, b"abc");
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.poll(&mut lab), None, "three of six");
    a.send(&mut lab, fa, b"def");
    let ret = b.wait(&mut lab);
    assert_eq!(b.datagram(&lab, buffer, ret).data, b"abcdef");
    b.blocks(&mut lab, Prog::recv_call(fb, buffer, msg::WAITALL));
    a.send(&mut lab, fa, b"gh");
    lab.run_for(Duration::from_millis(1));
    b.signal(&mut lab);
    let ret = b.wait(&mut lab);
    assert_eq!(b.datagram(&lab, buffer, ret).data, b"gh");
    let call = a.send_call(&lab, fa, b"x", msg::FASTOPEN, None);
    assert_eq!(a.now(&mut lab, call), Ret::Err(Errno::EOPNOTSUPP));
}

#[test]
fn several_datagrams_in_one_call() {
    let (mut lab, a, b) = two(3);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    let mem = lab.hosts[A].mem.clone();
    let out = |text: &[u8]| OutMsg { iov: mem.iov(text), to: Some((ADDR_B, 9).into()), control: Vec::new() };
    let msgs = vec![out(b"one"), out(b"three"), OutMsg { to: None, ..out(b"nowhere") }, out(b"never")];
    assert_eq!(a.now(&mut lab, Call::SendMmsg { fd: fa, msgs: msgs.clone(), flags: 0 }), Ret::Sent(vec![3, 5]));
    assert_eq!(a.err(&mut lab, Call::SendMmsg { fd: fa, msgs: msgs[2..].to_vec(), flags: 0 }), Errno::EDESTADDRREQ);
    lab.run_for(Duration::from_millis(1));
    let buffers: Vec<_> = (0..3).map(|_| b.buffer(&lab, 4)).collect();
    let iovs: Vec<Iov> = buffers.iter().map(|&b| Iov::One(b)).collect();
    let call = Call::RecvMmsg { fd: fb, iovs: iovs.clone(), flags: msg::WAITFORONE, timeout: None };
    let Ret::Mmsg(got, None) = b.now(&mut lab, call) else { panic!("two are there") };
    let got: Vec<_> = got.into_iter().zip(&buffers).map(|(ret, &buffer)| b.datagram(&lab, buffer, ret)).collect();
    assert_eq!(got.iter().map(|d| (&d.data[..], d.flags)).collect::<Vec<_>>(), [(&b"one"[..], 0), (&b"thre"[..], msg::TRUNC)]);
    // The time limit is looked at after a datagram only.
    let call = Call::RecvMmsg { fd: fb, iovs, flags: 0, timeout: Some(Duration::from_millis(10)) };
    b.blocks(&mut lab, call);
    lab.run_for(Duration::from_millis(50));
    assert_eq!(b.poll(&mut lab), None, "over long ago, but nothing came");
    a.send_to(&mut lab, fa, b"late", ADDR_B, 9);
    let Ret::Mmsg(got, left) = b.wait(&mut lab) else { panic!() };
    assert_eq!((got.len(), left), (1, Some(Duration::ZERO)));
}

#[test]
fn control_messages_tell_what_was_asked_for() {
    let (mut lab, a, b) = two(4);
    let fb = b.udp(&mut lab, 9);
    let fa = a.udp(&mut lab, 8);
    for (level, name) in [(SOL_SOCKET, 35), (0, 8), (0, 12), (0, 13), (0, 20)] {
        b.setopt(&mut lab, fb, level, name, 1);
    }
    let iov = lab.hosts[A].mem.iov(b"x");
    let control = vec![Control::Ttl(9), Control::Tos(0x20), Control::PktInfo(2, ADDR_A, Ipv4Addr::UNSPECIFIED)];
    a.ok(&mut lab, Call::Send { fd: fa, iov, flags: 0, to: Some((ADDR_B, 9).into()), control });
    let got = b.recv(&mut lab, fb, 10, 0);
    let Control::TimestampNs(ns) = got.control[0] else { panic!("{:?}", got.control) };
    assert!(ns > 1_000_000_000);
    let orig = "10.0.0.2:9".parse().expect("an address");
    let rest = [Control::PktInfo(2, ADDR_B, ADDR_B), Control::Ttl(9), Control::Tos(0x20), Control::OrigDst(orig)];
    assert_eq!(got.control[1..], rest);
    lab.hosts[B].kernel.set_realtime_offset(5_000_000_000);
    let stamp = b.now(&mut lab, Call::Ioctl(fb, 0x8907, vec![0; 16]));
    let want = [(ns + 5_000_000_000) / 1_000_000_000, ns % 1_000_000_000];
    assert_eq!(stamp, Ret::Bytes(want.map(u64::to_ne_bytes).concat()));
}

#[test]
fn dropped_datagrams_are_counted_for_the_reader() {
    let (mut lab, a, b) = two(5);
    let fb = b.udp(&mut lab, 9);
    let fa = a.udp(&mut lab, 8);
    b.setopt(&mut lab, fb, SOL_SOCKET, 40, 1);
    b.setopt(&mut lab, fb, SOL_SOCKET, 8, 1);
    for _ in 0..30 {
        a.send_to(&mut lab, fa, b"flood", ADDR_B, 9);
        lab.run_for(Duration::from_millis(1));
    }
    let got = b.recv(&mut lab, fb, 10, 0);
    let [Control::RxqOvfl(drops)] = got.control[..] else { panic!("{:?}", got.control) };
    assert!((10..30).contains(&drops), "{drops}");
    let (info, len) = raw(b, &mut lab, fb, SOL_SOCKET, 55, 64);
    assert_eq!((len, &info[32..36]), (36, &drops.to_ne_bytes()[..]), "SO_MEMINFO");
}

#[test]
fn options_are_taken_and_given_as_octets() {
    let (mut lab, a, b) = two(6);
    let (tcp, udp) = (a.socket(&mut lab, STREAM), a.socket(&mut lab, DGRAM));
    let set = |fd, level, name, b: &[u8]| Call::SetSockOptRaw(fd, level, name, b.to_vec());
    let int = |n: i32| n.to_ne_bytes().to_vec();
    // Too short.
    for (fd, level, name) in [(tcp, SOL_SOCKET, 9), (tcp, 6, 1), (tcp, SOL_SOCKET, 13), (tcp, SOL_SOCKET, 20), (udp, 17, 1)] {
        assert_eq!(a.err(&mut lab, set(fd, level, name, &[1, 0, 0])), Errno::EINVAL, "{level} {name}");
    }
    // An octet will do for IP, in and out.
    a.ok(&mut lab, set(udp, 0, 2, &[9]));
    assert_eq!(raw(a, &mut lab, udp, 0, 2, 1), (vec![9], 1));
    assert_eq!(raw(a, &mut lab, udp, 0, 2, 4), (int(9), 4));
    assert_eq!(raw(a, &mut lab, tcp, SOL_SOCKET, 3, 2), (vec![1, 0], 2), "cut to the room");
    // Structures.
    a.ok(&mut lab, set(tcp, SOL_SOCKET, 13, &[int(1), int(5)].concat()));
    assert_eq!(raw(a, &mut lab, tcp, SOL_SOCKET, 13, 8).0, [int(1), int(5)].concat());
    let time = [2u64.to_ne_bytes(), 500_000u64.to_ne_bytes()].concat();
    a.ok(&mut lab, set(tcp, SOL_SOCKET, 20, &time));
    assert_eq!(raw(a, &mut lab, tcp, SOL_SOCKET, 20, 16), (time, 16));
    let wrong = [0u64.to_ne_bytes(), 1_000_000u64.to_ne_bytes()].concat();
    assert_eq!(a.err(&mut lab, set(tcp, SOL_SOCKET, 20, &wrong)), Errno::EDOM);
    assert_eq!(raw(a, &mut lab, tcp, SOL_SOCKET, 25, 16), (vec![], 0));
    a.ok(&mut lab, set(tcp, SOL_SOCKET, 25, b"eth0"));
    assert_eq!(raw(a, &mut lab, tcp, SOL_SOCKET, 25, 16), (b"eth0\0".to_vec(), 5));
    assert_eq!(a.err(&mut lab, Call::GetSockOptRaw(tcp, SOL_SOCKET, 25, vec![0; 15])), Errno::EINVAL);
    assert_eq!(raw(a, &mut lab, tcp, 6, 13, 16).0[..6], *b"cubic\0");
    a.ok(&mut lab, set(tcp, 6, 13, b"reno"));
    assert_eq!(raw(a, &mut lab, tcp, 6, 13, 5), (b"reno\0".to_vec(), 5));
    assert_eq!(a.err(&mut lab, set(tcp, 6, 13, b"bbr")), Errno::ENOENT);
    assert_eq!(a.err(&mut lab, set(tcp, 6, 31, b"tls")), Errno::ENOENT);
    assert_eq!(raw(a, &mut lab, tcp, 6, 11, 300).1, 248, "TCP_INFO");
    assert_eq!(raw(a, &mut lab, tcp, SOL_SOCKET, 17, 12).0, [&[0; 4][..], &[0xff; 8]].concat(), "SO_PEERCRED");
    assert_eq!(raw(a, &mut lab, tcp, SOL_SOCKET, 47, 8).0, [0xff; 8], "SO_MAX_PACING_RATE");
    let _ = b;
}

#[test]
fn unknown_options_answer_by_level_as_linux() {
    let (mut lab, a, _) = two(7);
    let (tcp, udp) = (a.socket(&mut lab, STREAM), a.socket(&mut lab, DGRAM));
    for (fd, level, name, set, get) in [
        (tcp, SOL_SOCKET, 99, Errno::ENOPROTOOPT, Errno::ENOPROTOOPT),
        (tcp, SOL_SOCKET, 16, Errno::EOPNOTSUPP, Errno::EOPNOTSUPP),
        (tcp, 0, 99, Errno::ENOPROTOOPT, Errno::ENOPROTOOPT),
        (tcp, 6, 99, Errno::ENOPROTOOPT, Errno::ENOPROTOOPT),
        (tcp, 6, 14, Errno::ENOPROTOOPT, Errno::ENOPROTOOPT),
        (tcp, 41, 26, Errno::ENOPROTOOPT, Errno::EOPNOTSUPP),
        (tcp, 17, 1, Errno::ENOPROTOOPT, Errno::EOPNOTSUPP),
        (udp, 6, 1, Errno::ENOPROTOOPT, Errno::EOPNOTSUPP),
        (udp, 263, 8, Errno::ENOPROTOOPT, Errno::EOPNOTSUPP),
        (udp, SOL_SOCKET, 74, Errno::ENOPROTOOPT, Errno::ENOPROTOOPT),
    ] {
        assert_eq!(a.err(&mut lab, Call::SetSockOpt(fd, level, name, OptVal::Int(1))), set, "set {level} {name}");
        assert_eq!(a.err(&mut lab, Call::GetSockOpt(fd, level, name)), get, "get {level} {name}");
    }
    let key = Call::SetSockOptRaw(tcp, 6, 14, vec![0; 216]);
    assert_eq!(a.err(&mut lab, key), Errno::ENOPROTOOPT, "TCP_MD5SIG, of whatever length");
    let unix = a.err(&mut lab, Call::Socket(1, STREAM, 0));
    assert_eq!(unix, Errno::EAFNOSUPPORT);
    let _ = AF_INET;
}

#[test]
fn filter_of_a_socket_is_checked_run_and_locked() {
    let (mut lab, a, b) = two(8);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    let insn = |code: u16, jt: u8, jf: u8, k: u32| [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat();
    // The first octet of the payload must be 'y'; such datagrams are cut to two octets of it.
    let code = [insn(0x30, 0, 0, 8), insn(0x15, 0, 1, u32::from(b'y')), insn(6, 0, 0, 10), insn(6, 0, 0, 0)].concat();
    assert_eq!(b.err(&mut lab, Call::SetSockOptRaw(fb, SOL_SOCKET, 27, vec![0; 4])), Errno::ENOENT);
    assert_eq!(b.err(&mut lab, Call::SetSockOptRaw(fb, SOL_SOCKET, 26, code[..16].to_vec())), Errno::EINVAL);
    b.ok(&mut lab, Call::SetSockOptRaw(fb, SOL_SOCKET, 26, code.clone()));
    for text in [&b"no"[..], b"yes"] {
        a.send_to(&mut lab, fa, text, ADDR_B, 9);
    }
    assert_eq!(b.recv(&mut lab, fb, 10, 0).data, b"ye");
    assert_eq!(b.recv_err(&mut lab, fb, msg::DONTWAIT), Errno::EAGAIN);
    assert_eq!(raw(b, &mut lab, fb, SOL_SOCKET, 26, 32), (code, 4), "counted in instructions");
    b.setopt(&mut lab, fb, SOL_SOCKET, 44, 1);
    assert_eq!(b.err(&mut lab, Call::SetSockOpt(fb, SOL_SOCKET, 27, OptVal::Int(0))), Errno::EPERM);
    assert_eq!(b.err(&mut lab, Call::SetSockOpt(fb, SOL_SOCKET, 44, OptVal::Int(0))), Errno::EPERM);
}

#[test]
fn epoll_knows_duplicates_of_a_file_by_the_callers_numbers() {
    use ringlab_kernel::syscall::{EpollEvent, EpollOp};
    use ringlab_kernel::wait::queue::PollEvents;
    let (mut lab, a, b) = two(9);
    let (fa, fb) = (a.udp(&mut lab, 8), b.udp(&mut lab, 9));
    let ep = b.epoll(&mut lab);
    let event = |data| EpollEvent { events: PollEvents::IN, data };
    b.ok(&mut lab, Call::EpollCtlKey(ep, fb, 70, EpollOp::Add(event(1))));
    b.ok(&mut lab, Call::EpollCtlKey(ep, fb, 71, EpollOp::Add(event(2))));
    assert_eq!(b.err(&mut lab, Call::EpollCtlKey(ep, fb, 70, EpollOp::Add(event(3)))), Errno::EEXIST);
    a.send_to(&mut lab, fa, b"x", ADDR_B, 9);
    lab.run_for(Duration::from_millis(1));
    assert_eq!(b.epoll_now(&mut lab, ep), [(2, PollEvents::IN), (1, PollEvents::IN)], "who came last is told first");
    b.ok(&mut lab, Call::EpollCtlKey(ep, fb, 70, EpollOp::Del));
    assert_eq!(b.err(&mut lab, Call::EpollCtlKey(ep, fb, 70, EpollOp::Del)), Errno::ENOENT);
    assert_eq!(b.epoll_now(&mut lab, ep), [(2, PollEvents::IN)]);
}

#[test]
fn octets_of_a_file_are_sent_and_received_without_a_tasks_memory() {
    let (mut lab, a, fa, b, fb) = streams(10);
    let text: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    *lab.hosts[A].mem.file.borrow_mut() = text.clone();
    let send = |source, offset, len| Call::Send { fd: fa, iov: Iov::Source(source, offset, len), flags: 0, to: None, control: Vec::new() };
    a.start(&mut lab, send(1, 1000, 2_000_000));
    let mut got = 0;
    while got < 2_000_000 {
        let call = Call::Recv { fd: fb, iov: Iov::Source(1, got as u64, 500_000), flags: 0 };
        let Ret::Received { len, .. } = b.call(&mut lab, call) else { panic!("the stream goes on") };
        got += len;
    }
    assert_eq!(a.wait(&mut lab), Ret::Value(2_000_000), "it blocked, and went on");
    assert_eq!(lab.hosts[B].mem.file.borrow()[..], text[1000..2_001_000]);
    assert_eq!(a.now(&mut lab, send(1, 2_999_999, 2)), Ret::Err(Errno::EFAULT), "the file is shorter");
}
