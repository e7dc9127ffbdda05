//! `AF_NETLINK`, `NETLINK_ROUTE`: requests as glibc and iproute2 send them, octet for octet.

mod common;
mod netlink_support;

use common::tasks::Prog;
use common::{A, B, Lab};
use netlink_support::*;
use ringlab_kernel::Event;
use ringlab_kernel::dev::net_device::IfIndex;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Control, EpollEvent, EpollOp, NetlinkAddr, OptVal, Ret};
use ringlab_kernel::uaccess::Iov;
use ringlab_kernel::wait::queue::PollEvents;
use std::time::Duration;

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const GETADDR: u16 = 22;
const IFINFO: usize = 16;
const IFADDR: usize = 8;

fn setup(seed: u64) -> (Lab, Nl) {
    let mut lab = Lab::pair(seed);
    let p = Prog::spawn(&mut lab, A, "ip");
    let nl = Nl::open(&mut lab, p, ROUTE);
    (lab, nl)
}

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat()
}

/// `struct ifaddrmsg` of `AF_INET`.
fn ifaddr(len: u8, index: u32) -> Vec<u8> {
    [[2, len, 0, 0], index.to_ne_bytes()].concat()
}

/// `struct rtmsg` of `AF_INET`.
fn rtmsg(dst_len: u8, table: u8, proto: u8, scope: u8, kind: u8) -> Vec<u8> {
    vec![2, dst_len, 0, 0, table, proto, scope, kind, 0, 0, 0, 0]
}

fn ndmsg(index: u32, state: u16) -> Vec<u8> {
    [vec![2, 0, 0, 0], index.to_ne_bytes().to_vec(), state.to_ne_bytes().to_vec(), vec![0, 0]].concat()
}

/// What `ip route` would print, in short.
fn routes(lab: &mut Lab, nl: Nl, table: u32) -> Vec<String> {
    let all = nl.dump(lab, GETROUTE, &[2], &[]);
    let shown = all.into_iter().filter(|m| m.u32(RTMSG, 15) == Some(table));
    shown
        .map(|m| {
            let addr = |kind| m.attr(RTMSG, kind).map(|b| format!("{}.{}.{}.{}", b[0], b[1], b[2], b[3]));
            let dst = addr(1).map_or("default".to_string(), |a| format!("{a}/{}", m.body[1]));
            let via = addr(5).map_or(String::new(), |a| format!(" via {a}"));
            let src = addr(7).map_or(String::new(), |a| format!(" src {a}"));
            let dev = m.u32(RTMSG, 4).map_or(String::new(), |n| format!(" dev {n}"));
            let metric = m.u32(RTMSG, 6).map_or(String::new(), |n| format!(" metric {n}"));
            let kind = ["", "", "local ", "broadcast ", "", "", "blackhole ", "unreachable ", "prohibit "][usize::from(m.body[7])];
            let linkdown = if m.body[8] & 16 != 0 { " linkdown" } else { "" };
            format!("{kind}{dst}{via}{dev}{src}{metric} proto {} scope {}{linkdown}", m.body[5], m.body[6])
        })
        .collect()
}

#[test]
fn getifaddrs_of_glibc_finds_links_and_addresses() {
    let mut lab = Lab::pair(1);
    let p = Prog::spawn(&mut lab, A, "curl");
    let fd = p.ok(&mut lab, Call::Socket(AF_NETLINK, RAW | 0o2_000_000, ROUTE)) as i32;
    p.ok(&mut lab, Call::BindNetlink(fd, NetlinkAddr::default()));
    assert_eq!(p.now(&mut lab, Call::GetSockName(fd)), Ret::NetlinkAddr(NetlinkAddr { pid: p.task.0, groups: 0 }));
    // A header and one octet, padded: no `struct ifinfomsg`.
    let dump = |lab: &mut Lab, kind: u16| {
        let iov = lab.hosts[A].mem.iov(&request(kind, DUMP, &[0], &[]));
        p.ok(lab, Call::SendNetlink { fd, iov, flags: 0, to: NetlinkAddr::default() });
        let mut all = Vec::new();
        while all.last().is_none_or(|m: &Msg| m.kind != DONE) {
            let buf = lab.hosts[A].mem.alloc(4096);
            match p.now(lab, Call::Recv { fd, iov: Iov::One(buf), flags: 0 }) {
                Ret::ReceivedNetlink { len, flags: 0, .. } => all.extend(split(&lab.hosts[A].mem.get(buf, len))),
                other => panic!("{other:?}: glibc gives up on a datagram that is cut"),
            }
        }
        all.pop();
        all
    };
    let links = dump(&mut lab, GETLINK);
    let names: Vec<_> = links.iter().map(|m| m.text(IFINFO, 3).expect("a name")).collect();
    assert_eq!(names, ["lo", "eth0"]);
    assert!(links.iter().all(|m| m.kind == NEWLINK && m.pid == p.task.0));
    let addrs = dump(&mut lab, GETADDR);
    let found: Vec<_> = addrs.iter().map(|m| (m.body[..4].to_vec(), m.attr(IFADDR, 2), m.text(IFADDR, 3))).collect();
    let row = |head: [u8; 4], addr: [u8; 4], label: &str| (head.to_vec(), Some(addr.to_vec()), Some(label.to_string()));
    assert_eq!(found, [row([2, 8, 0x80, 254], [127, 0, 0, 1], "lo"), row([2, 24, 0x80, 0], [10, 0, 0, 1], "eth0")]);
}

#[test]
fn link_tells_all_that_ip_prints() {
    let (mut lab, nl) = setup(2);
    // As `ip link show eth0` asks.
    nl.send(&mut lab, &request(GETLINK, 0, &ifinfo(0, 0, 0), &[(3, b"eth0\0"), (29, &1u32.to_ne_bytes())]));
    let all = nl.drain(&mut lab);
    let [link] = &all[..] else { panic!("{all:?}") };
    assert_eq!(link.body[..IFINFO], [vec![0, 0, 1, 0, 2, 0, 0, 0], 0x11043u32.to_ne_bytes().to_vec(), vec![0; 4]].concat());
    let number = |kind| link.u32(IFINFO, kind);
    assert_eq!((number(4), number(13), number(31), number(32), number(35)), (Some(1500), Some(1000), Some(1), Some(1), Some(2)));
    assert_eq!((link.attr(IFINFO, 16), link.attr(IFINFO, 33)), (Some(vec![6]), Some(vec![1])));
    assert_eq!((link.text(IFINFO, 6), link.attr(IFINFO, 2)), (Some("pfifo_fast".into()), Some(vec![0xff; 6])));
    assert_eq!(link.attr(IFINFO, 23).map(|b| b.len()), Some(200));
    assert_eq!(link.attr(IFINFO, 7).map(|b| b.len()), Some(96));
    assert_eq!(nl.ack(&mut lab, GETLINK, 0, &ifinfo(0, 0, 0), &[(3, b"eth7\0")]), Err(Errno::ENODEV));
    assert_eq!(nl.ack(&mut lab, GETLINK, 0, &ifinfo(0, 0, 0), &[]), Err(Errno::EINVAL));
    assert_eq!(nl.ack(&mut lab, GETLINK, 0, &ifinfo(0, 0, 0), &[(3, &[b'x'; 16])]), Err(Errno::ERANGE));
}

#[test]
fn link_changes_mtu_address_name_and_queue_length() {
    let (mut lab, nl) = setup(3);
    let mut set = |attrs: &[(u16, &[u8])]| nl.ack(&mut lab, NEWLINK, 0, &ifinfo(2, 0, 0), attrs);
    assert_eq!(set(&[(4, &1400u32.to_ne_bytes())]), Ok(()));
    assert_eq!(set(&[(4, &20u32.to_ne_bytes())]), Err(Errno::EINVAL));
    assert_eq!(set(&[(4, &[0, 5])]), Err(Errno::ERANGE));
    assert_eq!(set(&[(1, &[2, 0, 0, 0, 0, 9])]), Ok(()));
    assert_eq!(set(&[(1, &[1, 0, 0, 0, 0, 9])]), Err(Errno::EADDRNOTAVAIL));
    assert_eq!(set(&[(3, b"wan\0")]), Ok(()));
    assert_eq!(set(&[(3, b"lo\0")]), Err(Errno::EEXIST));
    assert_eq!(set(&[(3, b"a/b\0")]), Err(Errno::EINVAL));
    assert_eq!(set(&[(13, &77u32.to_ne_bytes())]), Ok(()));
    assert_eq!(set(&[(10, &1u32.to_ne_bytes())]), Err(Errno::EOPNOTSUPP), "a master");
    nl.send(&mut lab, &request(GETLINK, 0, &ifinfo(2, 0, 0), &[]));
    let link = nl.drain(&mut lab).remove(0);
    assert_eq!((link.u32(IFINFO, 4), link.u32(IFINFO, 13)), (Some(1400), Some(77)));
    assert_eq!((link.text(IFINFO, 3), link.attr(IFINFO, 1)), (Some("wan".into()), Some(vec![2, 0, 0, 0, 0, 9])));
    let addrs = nl.dump(&mut lab, GETADDR, &[2], &[]);
    assert_eq!(addrs[1].text(IFADDR, 3), Some("wan".into()), "the label follows");
    assert_eq!(nl.ack(&mut lab, NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0), &[(3, b"dummy0\0")]), Err(Errno::EOPNOTSUPP));
    assert_eq!(nl.ack(&mut lab, NEWLINK, 0, &ifinfo(0, 0, 0), &[]), Err(Errno::ENODEV), "iproute2's probe");
}

#[test]
fn link_that_is_down_has_no_routes_and_gets_its_own_back() {
    let (mut lab, nl) = setup(4);
    let route = [(1u16, &[10u8, 9, 0, 0][..]), (5, &[10, 0, 0, 2])];
    assert_eq!(nl.ack(&mut lab, NEWROUTE, CREATE | EXCL, &rtmsg(16, 254, 3, 0, 1), &route), Ok(()));
    assert_eq!(routes(&mut lab, nl, 254).len(), 2);
    assert_eq!(nl.ack(&mut lab, NEWLINK, 0, &ifinfo(2, 0, 1), &[]), Ok(()));
    assert_eq!(routes(&mut lab, nl, 254), Vec::<String>::new());
    let local = routes(&mut lab, nl, 255);
    assert!(local.contains(&"local 10.0.0.1/32 dev 2 src 10.0.0.1 proto 2 scope 254".to_string()), "{local:?}");
    let udp = nl.prog.ok(&mut lab, Call::Socket(2, 2, 0)) as i32;
    let to = "10.0.0.2:9".parse().expect("an address");
    assert_eq!(nl.prog.err(&mut lab, Call::Connect(udp, Some(to))), Errno::ENETUNREACH);
    assert_eq!(
        nl.ack(&mut lab, NEWROUTE, CREATE | EXCL, &rtmsg(16, 254, 3, 253, 1), &[(1, &[10, 9, 0, 0]), (4, &2u32.to_ne_bytes())]),
        Err(Errno::ENETDOWN)
    );
    assert_eq!(nl.ack(&mut lab, NEWLINK, 0, &ifinfo(2, 1, 1), &[]), Ok(()));
    assert_eq!(routes(&mut lab, nl, 254), ["10.0.0.0/24 dev 2 src 10.0.0.1 proto 2 scope 253"], "the static one is gone for good");
    nl.prog.ok(&mut lab, Call::Connect(udp, Some(to)));
}

#[test]
fn link_without_a_carrier_is_told_and_its_routes_are_marked() {
    let (mut lab, nl) = setup(41);
    let p = Prog::spawn(&mut lab, A, "monitor");
    let mon = Nl { prog: p, fd: p.ok(&mut lab, Call::Socket(AF_NETLINK, RAW, ROUTE)) as i32 };
    p.ok(&mut lab, Call::BindNetlink(mon.fd, NetlinkAddr { pid: 0, groups: 1 }));
    let now = lab.now;
    lab.hosts[A].kernel.handle(now, Event::Carrier(IfIndex(2), false));
    let told = mon.drain(&mut lab);
    assert_eq!(told.iter().map(|m| m.kind).collect::<Vec<_>>(), [NEWLINK]);
    let flags = u32::from_ne_bytes(told[0].body[8..12].try_into().expect("four octets"));
    assert_eq!((flags & 1, flags & 0x10040), (1, 0), "up, neither running nor lower up");
    assert_eq!(told[0].attr(IFINFO, 16), Some(vec![2]), "operational state: down");
    assert_eq!(routes(&mut lab, nl, 254), ["10.0.0.0/24 dev 2 src 10.0.0.1 proto 2 scope 253 linkdown"]);
    let local = routes(&mut lab, nl, 255);
    assert!(local.iter().all(|r| r.ends_with(" linkdown") == (r.starts_with("broadcast") && r.contains("dev 2"))), "{local:?}");
    lab.hosts[A].kernel.handle(now, Event::Carrier(IfIndex(2), true));
    assert_eq!(routes(&mut lab, nl, 254), ["10.0.0.0/24 dev 2 src 10.0.0.1 proto 2 scope 253"]);
}

#[test]
fn addresses_come_and_go_with_their_routes() {
    let (mut lab, nl) = setup(5);
    let add = |lab: &mut Lab, last: u8| {
        let addr = [10, 8, 0, last];
        nl.ack(lab, NEWADDR, CREATE | EXCL, &ifaddr(24, 2), &[(2, &addr), (1, &addr)])
    };
    assert_eq!((add(&mut lab, 1), add(&mut lab, 2)), (Ok(()), Ok(())));
    assert_eq!(add(&mut lab, 1), Err(Errno::EEXIST));
    let flags: Vec<u32> = nl.dump(&mut lab, GETADDR, &[2], &[]).iter().map(|m| m.u32(IFADDR, 8).expect("flags")).collect();
    assert_eq!(flags, [0x80, 0x80, 0x80, 0x81], "the second of a subnet is secondary");
    assert_eq!(
        routes(&mut lab, nl, 254),
        ["10.0.0.0/24 dev 2 src 10.0.0.1 proto 2 scope 253", "10.8.0.0/24 dev 2 src 10.8.0.1 proto 2 scope 253"]
    );
    let local = routes(&mut lab, nl, 255);
    assert!(local.contains(&"broadcast 10.8.0.255/32 dev 2 src 10.8.0.1 proto 2 scope 253".to_string()), "{local:?}");
    assert!(local.contains(&"local 10.8.0.2/32 dev 2 src 10.8.0.1 proto 2 scope 254".to_string()), "{local:?}");
    let udp = nl.prog.ok(&mut lab, Call::Socket(2, 2, 0)) as i32;
    nl.prog.ok(&mut lab, Call::Bind(udp, "10.8.0.2:9".parse().expect("an address")));
    assert_eq!(nl.ack(&mut lab, DELADDR, 0, &ifaddr(24, 2), &[(2, &[10, 8, 0, 1]), (1, &[10, 8, 0, 1])]), Ok(()));
    assert_eq!(nl.dump(&mut lab, GETADDR, &[2], &[]).len(), 2, "secondary addresses go with their primary one");
    assert_eq!(routes(&mut lab, nl, 254).len(), 1);
    assert_eq!(nl.ack(&mut lab, DELADDR, 0, &ifaddr(24, 2), &[(2, &[10, 8, 0, 1])]), Err(Errno::EADDRNOTAVAIL));
    assert_eq!(nl.ack(&mut lab, NEWADDR, CREATE, &ifaddr(24, 9), &[(2, &[10, 8, 0, 1])]), Err(Errno::ENODEV));
    assert_eq!(nl.ack(&mut lab, NEWADDR, CREATE, &ifaddr(33, 2), &[(2, &[10, 8, 0, 1])]), Err(Errno::EINVAL));
    assert_eq!(nl.ack(&mut lab, NEWADDR, CREATE, &ifaddr(24, 2), &[]), Err(Errno::EINVAL));
    let six = [&[10, 64, 0, 0][..], &2u32.to_ne_bytes()].concat();
    assert_eq!(nl.ack(&mut lab, NEWADDR, CREATE, &six, &[(2, &[0; 16])]), Err(Errno::EOPNOTSUPP), "no IPv6");
}

#[test]
fn point_to_point_address_routes_its_peer() {
    let (mut lab, nl) = setup(6);
    assert_eq!(nl.ack(&mut lab, NEWADDR, CREATE | EXCL, &ifaddr(32, 2), &[(2, &[10, 40, 0, 1]), (1, &[10, 40, 0, 2])]), Ok(()));
    let main = routes(&mut lab, nl, 254);
    assert_eq!(main[1], "10.40.0.2/32 dev 2 src 10.40.0.1 proto 2 scope 253");
}

#[test]
fn routes_are_added_replaced_and_deleted_with_the_errors_of_linux() {
    let (mut lab, nl) = setup(7);
    let gw = |last: u8| [10, 0, 0, last];
    let add = |lab: &mut Lab, flags: u16, metric: u32, last: u8| {
        let attrs: [(u16, &[u8]); 3] = [(1, &[10, 7, 0, 0]), (5, &gw(last)), (6, &metric.to_ne_bytes())];
        nl.ack(lab, NEWROUTE, flags, &rtmsg(16, 254, 3, 0, 1), &attrs)
    };
    assert_eq!(add(&mut lab, CREATE | EXCL, 5, 2), Ok(()));
    assert_eq!(add(&mut lab, CREATE | EXCL, 5, 3), Err(Errno::EEXIST));
    assert_eq!(add(&mut lab, CREATE | EXCL, 6, 3), Ok(()), "another metric");
    assert_eq!(add(&mut lab, CREATE | REPLACE, 5, 4), Ok(()));
    assert_eq!(add(&mut lab, REPLACE, 9, 4), Err(Errno::ENOENT));
    let main = routes(&mut lab, nl, 254);
    assert_eq!(
        main[1..],
        ["10.7.0.0/16 via 10.0.0.4 dev 2 metric 5 proto 3 scope 0", "10.7.0.0/16 via 10.0.0.3 dev 2 metric 6 proto 3 scope 0"]
    );
    let bad = |lab: &mut Lab, head: Vec<u8>, attrs: &[(u16, &[u8])]| nl.ack(lab, NEWROUTE, CREATE | EXCL, &head, attrs);
    assert_eq!(bad(&mut lab, rtmsg(16, 254, 3, 0, 1), &[(1, &[10, 7, 5, 0]), (5, &gw(2))]), Err(Errno::EINVAL), "host bits");
    assert_eq!(bad(&mut lab, rtmsg(24, 254, 3, 0, 1), &[(1, &[1, 1, 1, 0]), (5, &[99, 9, 9, 9])]), Err(Errno::ENETUNREACH));
    assert_eq!(bad(&mut lab, rtmsg(24, 254, 3, 0, 1), &[(1, &[1, 1, 1, 0]), (5, &gw(1))]), Err(Errno::EINVAL), "itself");
    assert_eq!(bad(&mut lab, rtmsg(24, 254, 3, 253, 1), &[(1, &[1, 1, 1, 0])]), Err(Errno::ENODEV));
    assert_eq!(bad(&mut lab, rtmsg(24, 254, 3, 253, 1), &[(1, &[1, 1, 1, 0]), (4, &9u32.to_ne_bytes())]), Err(Errno::ENODEV));
    assert_eq!(bad(&mut lab, rtmsg(40, 254, 3, 253, 1), &[(1, &[1, 1, 1, 0])]), Err(Errno::EINVAL));
    assert_eq!(bad(&mut lab, rtmsg(24, 254, 3, 0, 1), &[(1, &[1, 1, 1, 0]), (9, &[0; 8])]), Err(Errno::EOPNOTSUPP), "multipath");
    let del = |lab: &mut Lab, attrs: &[(u16, &[u8])]| nl.ack(lab, DELROUTE, 0, &rtmsg(16, 254, 0, 255, 0), attrs);
    assert_eq!(del(&mut lab, &[(1, &[10, 99, 0, 0])]), Err(Errno::ESRCH));
    assert_eq!(del(&mut lab, &[(1, &[10, 7, 0, 0]), (6, &6u32.to_ne_bytes())]), Ok(()));
    assert_eq!(del(&mut lab, &[(1, &[10, 7, 0, 0])]), Ok(()));
    assert_eq!(routes(&mut lab, nl, 254).len(), 1);
}

#[test]
fn routes_that_lead_nowhere_answer_their_errors() {
    let (mut lab, nl) = setup(8);
    let udp = nl.prog.ok(&mut lab, Call::Socket(2, 2, 0)) as i32;
    for (kind, net, errno) in [(6, 20, Errno::EINVAL), (7, 21, Errno::EHOSTUNREACH), (8, 22, Errno::EACCES)] {
        assert_eq!(nl.ack(&mut lab, NEWROUTE, CREATE | EXCL, &rtmsg(16, 254, 3, 0, kind), &[(1, &[10, net, 0, 0])]), Ok(()));
        let to = format!("10.{net}.0.1:9").parse().expect("an address");
        assert_eq!(nl.prog.err(&mut lab, Call::Connect(udp, Some(to))), errno);
    }
    let main = routes(&mut lab, nl, 254);
    assert_eq!(main[1], "blackhole 10.20.0.0/16 proto 3 scope 0");
}

#[test]
fn route_get_resolves_a_destination() {
    let (mut lab, nl) = setup(9);
    let mut get = |addr: [u8; 4]| {
        nl.send(&mut lab, &request(GETROUTE, 0, &[2, 32, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0], &[(1, &addr)]));
        nl.drain(&mut lab).remove(0)
    };
    let m = get([10, 0, 0, 2]);
    assert_eq!((m.body[7], m.u32(RTMSG, 4), m.attr(RTMSG, 7), m.attr(RTMSG, 5)), (1, Some(2), Some(vec![10, 0, 0, 1]), None));
    let m = get([10, 0, 0, 1]);
    assert_eq!((m.body[7], m.u32(RTMSG, 4), m.u32(RTMSG, 15)), (2, Some(1), Some(254)), "local, through lo");
    assert_eq!(u32::from_ne_bytes(m.body[8..12].try_into().expect("flags")), 0x8000_0200);
    assert_eq!(get([10, 0, 0, 255]).body[7], 3);
    assert_eq!(get([8, 8, 8, 8]).error(), Some(Errno::ENETUNREACH));
}

#[test]
fn neighbours_are_shown_entered_and_removed() {
    let (mut lab, nl) = setup(10);
    let mac: &[u8] = &[2, 0, 0, 0, 0, 7];
    let dst = [10, 0, 0, 7];
    let permanent = ndmsg(2, 0x80);
    assert_eq!(nl.ack(&mut lab, NEWNEIGH, REPLACE, &permanent, &[(1, &dst), (2, mac)]), Err(Errno::ENOENT));
    assert_eq!(nl.ack(&mut lab, NEWNEIGH, CREATE | EXCL, &permanent, &[(1, &dst), (2, mac)]), Ok(()));
    assert_eq!(nl.ack(&mut lab, NEWNEIGH, CREATE | EXCL, &permanent, &[(1, &dst), (2, mac)]), Err(Errno::EEXIST));
    assert_eq!(nl.ack(&mut lab, NEWNEIGH, CREATE, &permanent, &[(2, mac)]), Err(Errno::EINVAL));
    assert_eq!(nl.ack(&mut lab, NEWNEIGH, CREATE, &ndmsg(9, 0x80), &[(1, &dst), (2, mac)]), Err(Errno::ENODEV));
    let all = nl.dump(&mut lab, GETNEIGH, &[0], &[]);
    assert_eq!(all.len(), 1);
    assert_eq!(
        (&all[0].body[8..10], all[0].attr(NDMSG, 1), all[0].attr(NDMSG, 2)),
        (&[0x80, 0][..], Some(dst.to_vec()), Some(mac.to_vec()))
    );
    assert_eq!(
        lab.hosts[A].kernel.procfs_read("/proc/net/arp").expect("a file").lines().nth(1),
        Some("10.0.0.7         0x1         0x6         02:00:00:00:00:07     *        eth0")
    );
    // A permanent entry is used without a question.
    let udp = nl.prog.ok(&mut lab, Call::Socket(2, 2, 0)) as i32;
    let iov = lab.hosts[A].mem.iov(b"hello");
    let to = "10.0.0.7:9".parse().expect("an address");
    nl.prog.ok(&mut lab, Call::Send { fd: udp, iov, flags: 0, to: Some(to), control: Vec::new() });
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.log[0].frame.bytes[..6], *mac);
    assert_eq!(nl.ack(&mut lab, DELNEIGH, 0, &ndmsg(2, 0), &[(1, &dst)]), Ok(()));
    assert_eq!(nl.ack(&mut lab, DELNEIGH, 0, &ndmsg(2, 0), &[(1, &dst)]), Err(Errno::ENOENT));
}

#[test]
fn monitor_hears_of_links_addresses_routes_and_neighbours() {
    let (mut lab, nl) = setup(11);
    let p = Prog::spawn(&mut lab, A, "monitor");
    let mon = Nl { prog: p, fd: p.ok(&mut lab, Call::Socket(AF_NETLINK, RAW, ROUTE)) as i32 };
    p.ok(&mut lab, Call::BindNetlink(mon.fd, NetlinkAddr { pid: 0, groups: 0x55 }));
    p.ok(&mut lab, Call::SetSockOpt(mon.fd, SOL_NETLINK, 3, OptVal::Int(1)));
    let buf = lab.hosts[A].mem.alloc(8192);
    p.blocks(&mut lab, Call::Recv { fd: mon.fd, iov: Iov::One(buf), flags: 0 });
    assert_eq!(nl.ack(&mut lab, NEWADDR, CREATE | EXCL, &ifaddr(24, 2), &[(2, &[10, 8, 0, 1]), (1, &[10, 8, 0, 1])]), Ok(()));
    match p.wait(&mut lab) {
        Ret::ReceivedNetlink { len, from, control, .. } => {
            assert_eq!((from, control), (NetlinkAddr { pid: 0, groups: 0x10 }, vec![Control::NetlinkPktInfo(5)]));
            assert_eq!(split(&lab.hosts[A].mem.get(buf, len))[0].kind, NEWADDR);
        }
        other => panic!("{other:?}"),
    }
    let kinds = |all: Vec<Msg>| all.iter().map(|m| m.kind).collect::<Vec<_>>();
    assert_eq!(kinds(mon.drain(&mut lab)), [NEWROUTE; 3], "local, connected, broadcast");
    assert_eq!(nl.ack(&mut lab, DELADDR, 0, &ifaddr(24, 2), &[(2, &[10, 8, 0, 1])]), Ok(()));
    assert_eq!(kinds(mon.drain(&mut lab)), [DELADDR, DELROUTE, DELROUTE, DELROUTE]);
    assert_eq!(nl.ack(&mut lab, NEWLINK, 0, &ifinfo(2, 0, 0), &[(4, &1400u32.to_ne_bytes())]), Ok(()));
    let all = mon.drain(&mut lab);
    assert_eq!((kinds(all.clone()), all[0].u32(IFINFO, 4)), (vec![NEWLINK], Some(1400)));
    // Neighbours change by packets, while other sockets are at work.
    let udp = nl.prog.ok(&mut lab, Call::Socket(2, 2, 0)) as i32;
    let iov = lab.hosts[A].mem.iov(b"hello");
    let to = "10.0.0.2:9".parse().expect("an address");
    nl.prog.ok(&mut lab, Call::Send { fd: udp, iov, flags: 0, to: Some(to), control: Vec::new() });
    lab.run_for(Duration::from_millis(1));
    let all = mon.drain(&mut lab);
    assert_eq!((kinds(all.clone()), &all[0].body[8..10]), (vec![NEWNEIGH], &[2, 0][..]), "reachable");
    assert!(nl.drain(&mut lab).is_empty(), "who is in no group hears nothing");
}

#[test]
fn neighbour_that_is_wanted_is_asked() {
    let (mut lab, nl) = setup(19);
    let mut wanted = ndmsg(2, 1);
    wanted[10] = 1; // NTF_USE
    let dst: &[u8] = &[10, 0, 0, 2];
    assert_eq!(nl.ack(&mut lab, NEWNEIGH, REPLACE, &wanted, &[(1, dst)]), Err(Errno::ENOENT));
    // As FRR asks: a VLAN, flags, an address of zeros.
    let more = [(12, &[11][..]), (2, &[0; 6]), (5, &[0, 0]), (15, &[0; 4]), (1, dst)];
    assert_eq!(nl.ack(&mut lab, NEWNEIGH, CREATE | REPLACE, &wanted, &more), Ok(()));
    lab.run_for(Duration::from_millis(1));
    let all = nl.dump(&mut lab, GETNEIGH, &[0], &[]);
    assert_eq!((all.len(), &all[0].body[8..10], all[0].attr(NDMSG, 1)), (1, &[2, 0][..], Some(dst.to_vec())), "reachable");
}

#[test]
fn queue_without_room_says_so_once() {
    let (mut lab, nl) = setup(12);
    nl.prog.ok(&mut lab, Call::SetSockOpt(nl.fd, SOL_NETLINK, 1, OptVal::Int(1)));
    nl.prog.ok(&mut lab, Call::SetSockOpt(nl.fd, 1, 8, OptVal::Int(4096)));
    let p = Prog::spawn(&mut lab, A, "ip");
    let other = Nl::open(&mut lab, p, ROUTE);
    for mtu in 1000..1020u32 {
        assert_eq!(other.ack(&mut lab, NEWLINK, 0, &ifinfo(2, 0, 0), &[(4, &mtu.to_ne_bytes())]), Ok(()));
    }
    let recv = |lab: &mut Lab| {
        let buf = lab.hosts[A].mem.alloc(8192);
        nl.prog.now(lab, Call::Recv { fd: nl.fd, iov: Iov::One(buf), flags: 0x40 })
    };
    assert_eq!(recv(&mut lab), Ret::Err(Errno::ENOBUFS));
    let mut left = 0;
    while let Ret::ReceivedNetlink { .. } = recv(&mut lab) {
        left += 1;
    }
    assert!((2..20).contains(&left), "{left}");
    assert_eq!(other.ack(&mut lab, NEWLINK, 0, &ifinfo(2, 0, 0), &[(4, &1500u32.to_ne_bytes())]), Ok(()));
    assert!(matches!(recv(&mut lab), Ret::ReceivedNetlink { .. }), "an empty queue takes again");
}

#[test]
fn sockets_are_made_bound_and_connected_as_on_linux() {
    let mut lab = Lab::pair(13);
    let p = Prog::spawn(&mut lab, A, "x");
    for (kind, protocol, errno) in
        [(3, 9, Errno::EPROTONOSUPPORT), (3, 40, Errno::EPROTONOSUPPORT), (3, -1, Errno::EPROTONOSUPPORT), (1, 0, Errno::ESOCKTNOSUPPORT)]
    {
        assert_eq!(p.err(&mut lab, Call::Socket(AF_NETLINK, kind, protocol)), errno, "{kind} {protocol}");
    }
    let a = p.ok(&mut lab, Call::Socket(AF_NETLINK, 2, ROUTE)) as i32;
    let b = p.ok(&mut lab, Call::Socket(AF_NETLINK, 3, ROUTE)) as i32;
    let addr = |pid| NetlinkAddr { pid, groups: 0 };
    p.ok(&mut lab, Call::BindNetlink(a, addr(0)));
    p.ok(&mut lab, Call::BindNetlink(b, addr(0)));
    let name = |lab: &mut Lab, fd| match p.now(lab, Call::GetSockName(fd)) {
        Ret::NetlinkAddr(a) => a.pid,
        other => panic!("{other:?}"),
    };
    assert_eq!(name(&mut lab, a), p.task.0);
    assert!((name(&mut lab, b) as i32) < -4096, "the second gets a number that no task has");
    assert_eq!(p.err(&mut lab, Call::BindNetlink(a, addr(99))), Errno::EINVAL);
    let c = p.ok(&mut lab, Call::Socket(AF_NETLINK, 3, ROUTE)) as i32;
    assert_eq!(p.err(&mut lab, Call::BindNetlink(c, addr(p.task.0))), Errno::EADDRINUSE);
    assert_eq!(p.err(&mut lab, Call::Bind(c, "1.2.3.4:5".parse().expect("an address"))), Errno::EINVAL);
    assert_eq!(p.err(&mut lab, Call::Listen(c, 1)), Errno::EOPNOTSUPP);
    assert_eq!(p.err(&mut lab, Call::Accept(c, 0)), Errno::EOPNOTSUPP);
    assert_eq!(p.err(&mut lab, Call::Shutdown(c, ringlab_kernel::syscall::Shutdown::Wr)), Errno::EOPNOTSUPP);
    // One program to another.
    let iov = lab.hosts[A].mem.iov(b"hi");
    p.ok(&mut lab, Call::SendNetlink { fd: b, iov, flags: 0, to: addr(p.task.0) });
    let buf = lab.hosts[A].mem.alloc(10);
    match p.now(&mut lab, Call::Recv { fd: a, iov: Iov::One(buf), flags: 0 }) {
        Ret::ReceivedNetlink { len: 2, from, .. } => assert_eq!(from.pid, name(&mut lab, b)),
        other => panic!("{other:?}"),
    }
    let iov = lab.hosts[A].mem.iov(b"hi");
    assert_eq!(p.err(&mut lab, Call::SendNetlink { fd: b, iov, flags: 0, to: addr(12345) }), Errno::ECONNREFUSED);
    let udp = p.ok(&mut lab, Call::Socket(2, 2, 0)) as i32;
    assert_eq!(p.err(&mut lab, Call::BindNetlink(udp, addr(0))), Errno::EINVAL);
    // A number is free again when its socket is closed.
    p.ok(&mut lab, Call::Close(a));
    p.ok(&mut lab, Call::BindNetlink(c, addr(0)));
    assert_eq!(name(&mut lab, c), p.task.0);
    assert_eq!(p.now(&mut lab, Call::GetSockOpt(c, 1, 3)), Ret::Opt(OptVal::Int(3)));
    assert_eq!(p.now(&mut lab, Call::GetSockOpt(c, 1, 39)), Ret::Opt(OptVal::Int(16)));
}

#[test]
fn epoll_shows_when_an_answer_is_there() {
    let (mut lab, nl) = setup(14);
    let p = nl.prog;
    let ep = p.ok(&mut lab, Call::EpollCreate(0)) as i32;
    let event = EpollEvent { events: PollEvents::IN, data: 1 };
    p.ok(&mut lab, Call::EpollCtl(ep, nl.fd, EpollOp::Add(event)));
    let zero = Some(Duration::ZERO);
    assert_eq!(p.now(&mut lab, Call::EpollWait(ep, 1, zero)), Ret::Epoll(vec![]));
    nl.send(&mut lab, &request(GETLINK, DUMP, &[0], &[]));
    assert_eq!(p.now(&mut lab, Call::EpollWait(ep, 1, zero)), Ret::Epoll(vec![event]));
    nl.drain(&mut lab);
    assert_eq!(p.now(&mut lab, Call::EpollWait(ep, 1, zero)), Ret::Epoll(vec![]));
}

#[test]
fn acknowledgements_quote_the_request_and_say_why() {
    let (mut lab, nl) = setup(15);
    let req = request(NEWLINK, ACK, &ifinfo(2, 0, 0), &[(4, &20u32.to_ne_bytes())]);
    nl.send(&mut lab, &req);
    let ack = nl.drain(&mut lab).remove(0);
    assert_eq!((ack.flags, ack.error(), &ack.body[4..4 + req.len()]), (0x200, Some(Errno::EINVAL), &req[..]));
    assert_eq!(ack.text(4 + req.len(), 1), Some("mtu less than device minimum".into()));
    nl.prog.ok(&mut lab, Call::SetSockOpt(nl.fd, SOL_NETLINK, 10, OptVal::Int(1)));
    nl.send(&mut lab, &req);
    let ack = nl.drain(&mut lab).remove(0);
    assert_eq!((ack.flags, &ack.body[4..20]), (0x300, &req[..16]), "capped");
    let req = request(NEWLINK, ACK, &ifinfo(2, 0, 0), &[(4, &1400u32.to_ne_bytes())]);
    nl.send(&mut lab, &req);
    let ack = nl.drain(&mut lab).remove(0);
    assert_eq!((ack.flags, ack.body.len(), ack.error()), (0x100, 20, None));
    // Several requests in one datagram, the last one cut.
    let two = [&request(999, 0, &[0], &[])[..], &request(GETLINK, 0, &ifinfo(1, 0, 0), &[]), &[200, 0, 0, 0]].concat();
    nl.send(&mut lab, &two);
    let all = nl.drain(&mut lab);
    assert_eq!((all.len(), all[0].error(), all[1].kind), (2, Some(Errno::EOPNOTSUPP), NEWLINK));
}

#[test]
fn second_dump_waits_for_the_first_to_be_read() {
    let (mut lab, nl) = setup(16);
    nl.send(&mut lab, &request(GETLINK, DUMP, &[0], &[]));
    nl.send(&mut lab, &request(GETADDR, DUMP, &[0], &[]));
    let all = nl.drain(&mut lab);
    assert_eq!(all.iter().filter(|m| m.kind == ERROR).map(|m| m.error()).collect::<Vec<_>>(), [Some(Errno::EBUSY)]);
}

#[test]
fn other_networks_have_no_number() {
    let (mut lab, nl) = setup(77);
    nl.send(&mut lab, &request(90, 1, &[0; 4], &[(3, &6u32.to_ne_bytes())]));
    let answer = nl.drain(&mut lab);
    assert_eq!((answer.len(), answer[0].kind, answer[0].u32(4, 1)), (1, 88, Some(u32::MAX)));
    assert_eq!(nl.ack(&mut lab, 90, 1, &[0; 4], &[]), Err(Errno::EINVAL));
}

#[test]
fn either_bit_asks_for_a_dump() {
    let (mut lab, nl) = setup(18);
    let all = nl.dump(&mut lab, GETLINK, &[0], &[]);
    assert_eq!(all.len(), 2);
    for bit in [0x100, 0x200] {
        nl.send(&mut lab, &request(GETLINK, bit, &[0], &[]));
        let found = nl.drain(&mut lab);
        assert_eq!((found.len(), found[2].kind), (3, DONE), "{bit:#x}");
        assert!(found.iter().zip(&all).all(|(x, y)| x.body == y.body));
    }
}

#[test]
fn dumps_of_other_families_are_empty_and_strict_filters_hold() {
    let (mut lab, nl) = setup(17);
    for kind in [GETADDR, GETROUTE, GETNEIGH] {
        assert!(nl.dump(&mut lab, kind, &[10], &[]).is_empty(), "{kind}: IPv6");
    }
    for kind in [42, 46, 74, 90, 102] {
        assert!(nl.dump(&mut lab, kind, &[0; 20], &[]).is_empty(), "{kind}");
    }
    let tables = nl.dump(&mut lab, 66, &[2, 0, 0, 0], &[]);
    assert_eq!(
        tables.iter().map(|m| m.attr(4, 1)).collect::<Vec<_>>(),
        [Some(b"arp_cache\0".to_vec()), Some(b"arp_cache\0".to_vec()), Some(b"arp_cache\0".to_vec())]
    );
    assert_eq!((tables[0].u32(4, 2), tables[0].u32(4, 4)), (Some(128), Some(1024)), "thresholds");
    let settings = nl.dump(&mut lab, 82, &[2, 0, 0, 0], &[]);
    let of: Vec<_> = settings.iter().map(|m| (m.u32(4, 1).map(|n| n as i32), m.u32(4, 2))).collect();
    assert_eq!(
        of,
        [(Some(1), Some(0)), (Some(2), Some(0)), (Some(-1), Some(0)), (Some(-2), Some(0))],
        "interfaces, all, default; forwarding"
    );
    let heard = nl.dump(&mut lab, GETNEIGH, &[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(heard.iter().map(|m| m.attr(12, 2)).collect::<Vec<_>>(), [Some(vec![1, 0, 0x5e, 0, 0, 1])], "bridge fdb");
    let qdiscs = nl.dump(&mut lab, 38, &[0; 20], &[]);
    assert_eq!(qdiscs.iter().map(|m| m.attr(20, 1)).collect::<Vec<_>>(), [Some(b"noqueue\0".to_vec()), Some(b"pfifo_fast\0".to_vec())]);
    assert_eq!(nl.dump(&mut lab, 34, &rtmsg(0, 0, 0, 0, 0), &[]).len(), 3, "rules");
    let nl = nl.strict(&mut lab);
    assert_eq!(nl.dump(&mut lab, GETADDR, &ifaddr(0, 2), &[]).len(), 1, "of one interface");
    assert_eq!(nl.dump(&mut lab, GETROUTE, &rtmsg(0, 0, 0, 0, 0), &[(15, &254u32.to_ne_bytes())]).len(), 1, "of one table");
    let ack = |lab: &mut Lab, req: &[u8]| {
        nl.send(lab, req);
        nl.drain(lab).remove(0).error()
    };
    assert_eq!(ack(&mut lab, &request(106, DUMP, &[0; 8], &[])), Some(Errno::EOPNOTSUPP), "there are no next hops beside routes");
    assert_eq!(ack(&mut lab, &request(GETROUTE, DUMP, &rtmsg(0, 99, 0, 0, 0), &[])), Some(Errno::ENOENT));
    assert_eq!(ack(&mut lab, &request(GETADDR, DUMP, &ifaddr(0, 9), &[])), Some(Errno::ENODEV));
    assert_eq!(ack(&mut lab, &request(GETADDR, DUMP, &[2, 0], &[])), Some(Errno::EINVAL), "no whole header");
    let mut trailing = request(GETADDR, DUMP, &ifaddr(0, 0), &[]);
    trailing.extend([3, 0, 1, 0]);
    let len = trailing.len() as u32;
    trailing[..4].copy_from_slice(&len.to_ne_bytes());
    assert_eq!(ack(&mut lab, &trailing), Some(Errno::EINVAL), "what is no attribute");
}

#[test]
fn generic_netlink_knows_its_controller_only() {
    let mut lab = Lab::pair(18);
    let p = Prog::spawn(&mut lab, A, "ethtool");
    let nl = Nl::open(&mut lab, p, GENERIC);
    // As ethtool looks for its family before it falls back on ioctl.
    assert_eq!(nl.ack(&mut lab, 16, 0, &[3, 1, 0, 0], &[(2, b"ethtool\0")]), Err(Errno::ENOENT));
    nl.send(&mut lab, &request(16, 0, &[3, 1, 0, 0], &[(2, b"nlctrl\0")]));
    assert_eq!(nl.drain(&mut lab)[0].attr(4, 1), Some(vec![16, 0]));
    assert_eq!(nl.dump(&mut lab, 16, &[3, 1, 0, 0], &[]).len(), 1);
    assert_eq!(nl.ack(&mut lab, 20, 0, &[1, 1, 0, 0], &[]), Err(Errno::ENOENT));
}

#[test]
fn other_host_is_not_touched() {
    let (mut lab, nl) = setup(19);
    assert_eq!(nl.ack(&mut lab, NEWLINK, 0, &ifinfo(2, 0, 1), &[]), Ok(()));
    let p = Prog::spawn(&mut lab, B, "ip");
    let nl = Nl::open(&mut lab, p, ROUTE);
    assert_eq!(routes(&mut lab, nl, 254).len(), 1);
}
