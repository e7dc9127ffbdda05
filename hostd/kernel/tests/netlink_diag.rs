//! `NETLINK_SOCK_DIAG`: what `ss` asks, and what it prints.

mod common;
mod netlink_support;

use common::tasks::{AF_INET, AF_INET6, DGRAM, Prog, RAW, STREAM};
use common::{A, B, Lab};
use netlink_support::{Msg, Nl, SOCK_DIAG};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Fd};
use std::time::Duration;

const BY_FAMILY: u16 = 20;
/// Octets of `struct inet_diag_msg`.
const MSG: usize = 72;
const ALL: u32 = 0xfff;

/// `struct inet_diag_req_v2`.
fn req(family: u8, protocol: u8, ext: u8, states: u32) -> Vec<u8> {
    let mut b = vec![family, protocol, ext, 0];
    b.extend(states.to_ne_bytes());
    b.extend([0; 40]);
    b.extend([0xff; 8]);
    b
}

/// State, local and peer port, queues.
fn row(m: &Msg) -> (u8, u16, u16, u32, u32) {
    let port = |at: usize| u16::from_be_bytes([m.body[at], m.body[at + 1]]);
    let word = |at: usize| u32::from_ne_bytes(m.body[at..at + 4].try_into().expect("four octets"));
    (m.body[1], port(4), port(6), word(56), word(60))
}

/// A connection from host A to port 80 of host B, seen from B, and a listener on port 80.
fn setup(seed: u64) -> (Lab, Nl, (Prog, Fd), (Prog, Fd)) {
    let mut lab = Lab::pair(seed);
    let server = Prog::spawn(&mut lab, B, "server");
    let listener = server.ok(&mut lab, Call::Socket(AF_INET, STREAM, 0)) as Fd;
    server.ok(&mut lab, Call::Bind(listener, "10.0.0.2:80".parse().expect("an address")));
    server.ok(&mut lab, Call::Listen(listener, 7));
    let client = Prog::spawn(&mut lab, A, "client");
    let fd = client.ok(&mut lab, Call::Socket(AF_INET, STREAM, 0)) as Fd;
    client.call(&mut lab, Call::Connect(fd, Some("10.0.0.2:80".parse().expect("an address"))));
    let conn = match server.call(&mut lab, Call::Accept(listener, 0)) {
        ringlab_kernel::syscall::Ret::Accepted(fd, _) => fd,
        other => panic!("{other:?}"),
    };
    let ss = Prog::spawn(&mut lab, B, "ss");
    let nl = Nl::open(&mut lab, ss, SOCK_DIAG);
    (lab, nl, (client, fd), (server, conn))
}

#[test]
fn listener_and_connection_show_state_queues_and_info() {
    let (mut lab, nl, (client, fd), (server, _)) = setup(1);
    let iov = lab.hosts[A].mem.iov(&[7; 1000]);
    client.ok(&mut lab, Call::Send { fd, iov, flags: 0, to: None, control: Vec::new() });
    lab.run_for(Duration::from_millis(5));
    // `ss -tinemo -a`.
    let all = nl.dump(&mut lab, BY_FAMILY, &req(2, 6, 0x5b, ALL), &[]);
    assert_eq!(all.len(), 2);
    let (state, sport, dport, rqueue, wqueue) = row(&all[0]);
    assert_eq!((state, sport, dport, rqueue, wqueue), (10, 80, 0, 0, 7), "the listener first, with its backlog");
    let (state, sport, _, rqueue, wqueue) = row(&all[1]);
    assert_eq!((state, sport, rqueue, wqueue), (1, 80, 1000, 0));
    assert_eq!((&all[1].body[8..12], &all[1].body[24..28]), (&[10, 0, 0, 2][..], &[10, 0, 0, 1][..]));
    let inode = u32::from_ne_bytes(all[1].body[68..72].try_into().expect("four octets"));
    assert_eq!(inode, lab.hosts[B].kernel.sock_of(server.task, 1).expect("the connection").0);
    lab.hosts[B].kernel.set_inode(server.task, 1, 4711);
    let inodes =
        |all: &[Msg]| -> Vec<u32> { all.iter().map(|m| u32::from_ne_bytes(m.body[68..72].try_into().expect("four octets"))).collect() };
    assert_eq!(inodes(&nl.dump(&mut lab, BY_FAMILY, &req(2, 6, 0, ALL), &[]))[1], 4711);
    let table = lab.hosts[B].kernel.procfs_read("/proc/net/tcp").expect("the table");
    assert!(table.lines().nth(2).is_some_and(|l| l.split_whitespace().nth(9) == Some("4711")), "{table}");
    let info = all[1].attr(MSG, 2).expect("tcp_info");
    assert_eq!((info.len(), info[0]), (248, 1));
    assert_eq!(all[1].text(MSG, 4), Some("cubic".into()));
    assert_eq!(all[1].attr(MSG, 1).map(|b| b.len()), Some(16));
    let mem = all[1].attr(MSG, 7).expect("skmeminfo");
    assert!(mem.len() == 36 && u32::from_ne_bytes([mem[0], mem[1], mem[2], mem[3]]) >= 1000);
    assert_eq!(all[1].attr(MSG, 8), Some(vec![0]));
    let plain = nl.dump(&mut lab, BY_FAMILY, &req(2, 6, 0, ALL), &[]);
    assert_eq!((plain[1].attr(MSG, 2), plain[1].attr(MSG, 4)), (None, None), "only what was asked for");
}

#[test]
fn states_protocols_and_families_choose() {
    let (mut lab, nl, ..) = setup(2);
    let count = |lab: &mut Lab, family, protocol, states| nl.dump(lab, BY_FAMILY, &req(family, protocol, 0, states), &[]).len();
    assert_eq!(count(&mut lab, 2, 6, 1 << 10), 1, "listening");
    assert_eq!(count(&mut lab, 2, 6, 1 << 1), 1, "established");
    assert_eq!(count(&mut lab, 10, 6, ALL), 0);
    assert_eq!(count(&mut lab, 2, 17, ALL), 0);
    let p = nl.prog;
    let udp = p.ok(&mut lab, Call::Socket(AF_INET, DGRAM, 0)) as Fd;
    p.ok(&mut lab, Call::Bind(udp, "0.0.0.0:53".parse().expect("an address")));
    p.ok(&mut lab, Call::Socket(AF_INET, RAW, 1));
    let six = p.ok(&mut lab, Call::Socket(AF_INET6, STREAM, 0)) as Fd;
    p.ok(&mut lab, Call::Bind(six, "[::]:8080".parse().expect("an address")));
    p.ok(&mut lab, Call::Listen(six, 5));
    let all = nl.dump(&mut lab, BY_FAMILY, &req(2, 17, 0, ALL), &[]);
    assert_eq!(all.iter().map(row).collect::<Vec<_>>(), [(7, 53, 0, 0, 0)]);
    let all = nl.dump(&mut lab, BY_FAMILY, &req(2, 255, 0, ALL), &[]);
    assert_eq!(all.iter().map(row).collect::<Vec<_>>(), [(7, 1, 0, 0, 0)], "the port of a raw socket is its protocol");
    let all = nl.dump(&mut lab, BY_FAMILY, &req(10, 6, 0, ALL), &[]);
    assert_eq!((row(&all[0]).1, all[0].body[0], all[0].attr(MSG, 11)), (8080, 10, Some(vec![0])));
    assert!(nl.dump(&mut lab, BY_FAMILY, &[&[1, 0, 0, 0][..], &[0; 20]].concat(), &[]).is_empty(), "AF_UNIX");
}

#[test]
fn connection_in_time_wait_is_shown_with_its_timer() {
    let (mut lab, _, (client, fd), (server, conn)) = setup(3);
    client.ok(&mut lab, Call::Close(fd));
    lab.run_for(Duration::from_millis(5));
    server.ok(&mut lab, Call::Close(conn));
    lab.run_for(Duration::from_millis(5));
    let ss = Prog::spawn(&mut lab, A, "ss");
    let nl = Nl::open(&mut lab, ss, SOCK_DIAG);
    let all = nl.dump(&mut lab, BY_FAMILY, &req(2, 6, 0, ALL), &[]);
    assert_eq!((all.len(), all[0].body[1], all[0].body[2], row(&all[0]).2), (1, 6, 3, 80));
    let expires = u32::from_ne_bytes(all[0].body[52..56].try_into().expect("four octets"));
    assert!((59_000..=60_000).contains(&expires), "{expires} ms");
}

#[test]
fn filters_of_ss_run_in_the_kernel() {
    let (mut lab, nl, ..) = setup(4);
    let eq = |code: u8, port: u16| [vec![code, 8, 12, 0, 0, 0], port.to_ne_bytes().to_vec()].concat();
    let mut count = |filter: &[u8]| nl.dump(&mut lab, BY_FAMILY, &req(2, 6, 0, ALL), &[(1, filter)]).len();
    assert_eq!(count(&eq(11, 80)), 2, "sport = :80");
    assert_eq!(count(&eq(12, 80)), 0, "dport = :80");
    assert_eq!(count(&eq(12, 0)), 1, "the listener has no peer");
    nl.send(&mut lab, &netlink_support::request(BY_FAMILY, 0x300, &req(2, 6, 0, ALL), &[(1, &[11, 0, 12, 0])]));
    assert_eq!(nl.drain(&mut lab)[0].error(), Some(Errno::EINVAL), "a filter that stands still");
}

#[test]
fn one_socket_is_found_by_its_ends() {
    let (mut lab, nl, ..) = setup(5);
    let all = nl.dump(&mut lab, BY_FAMILY, &req(2, 6, 0, 1 << 1), &[]);
    let exact = [&[2, 6, 2, 0, 0, 0, 0, 0][..], &all[0].body[4..44], &[0xff; 8]].concat();
    nl.send(&mut lab, &netlink_support::request(BY_FAMILY, 0, &exact, &[]));
    let one = nl.drain(&mut lab);
    assert_eq!((one.len(), row(&one[0]), one[0].flags), (1, row(&all[0]), 0));
    assert_eq!(nl.ack(&mut lab, BY_FAMILY, 0, &req(2, 6, 0, ALL), &[]), Err(Errno::ENOENT));
}

#[test]
fn what_the_kernel_does_not_have_is_not_there() {
    let (mut lab, nl, ..) = setup(6);
    for (head, errno) in [
        (req(2, 132, 0, ALL), Errno::ENOENT),
        (req(16, 0, 0, ALL), Errno::ENOENT),
        (req(17, 0, 0, ALL), Errno::ENOENT),
        (vec![2, 6, 0, 0], Errno::EINVAL),
        (vec![2], Errno::EINVAL),
    ] {
        nl.send(&mut lab, &netlink_support::request(BY_FAMILY, 0x300, &head, &[]));
        assert_eq!(nl.drain(&mut lab)[0].error(), Some(errno), "{head:?}");
    }
    assert_eq!(nl.ack(&mut lab, 21, 0, &req(2, 6, 0, ALL), &[]), Err(Errno::EOPNOTSUPP), "ss -K");
    assert_eq!(nl.ack(&mut lab, 18, 0, &req(2, 6, 0, ALL), &[]), Err(Errno::EINVAL));
}
