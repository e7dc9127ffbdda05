//! `ioctl` of interfaces, routes and neighbours. Flags and layouts as Linux 6.18 showed them on `lo` and a veth.

mod common;

use common::tasks::{AF_INET, AF_INET6, DGRAM, Prog, STREAM};
use common::{A, ADDR_A, ADDR_B, B, Lab, mac};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::ioctl::{Arg, arg};
use ringlab_kernel::syscall::{Call, Ret};
use std::net::Ipv4Addr;
use std::time::Duration;

fn ifreq(name: &str, value: &[u8]) -> Vec<u8> {
    let mut b = name.as_bytes().to_vec();
    b.resize(16, 0);
    b.extend(value);
    b.resize(40, 0);
    b
}

fn inet(addr: Ipv4Addr) -> Vec<u8> {
    [&[2, 0, 0, 0][..], &addr.octets()].concat()
}

fn one(seed: u64) -> (Lab, Prog, i32) {
    let mut lab = Lab::pair(seed);
    let a = Prog::spawn(&mut lab, A, "a");
    let fd = a.socket(&mut lab, DGRAM);
    (lab, a, fd)
}

fn get(a: Prog, lab: &mut Lab, fd: i32, cmd: u32, name: &str) -> Vec<u8> {
    match a.now(lab, Call::Ioctl(fd, cmd, ifreq(name, &[]))) {
        Ret::Bytes(b) => b[16..].to_vec(),
        ret => panic!("{cmd:x} {name}: {ret:?}"),
    }
}

#[test]
fn interface_is_described() {
    let (mut lab, a, fd) = one(1);
    for (cmd, lo, eth0) in [
        (0x8913, vec![0x49, 0], vec![0x43, 0x10]),
        (0x8915, inet(Ipv4Addr::LOCALHOST), inet(ADDR_A)),
        (0x8917, inet(Ipv4Addr::LOCALHOST), inet(ADDR_A)),
        (0x8919, inet(Ipv4Addr::UNSPECIFIED), inet(Ipv4Addr::new(10, 0, 0, 255))),
        (0x891b, inet(Ipv4Addr::new(255, 0, 0, 0)), inet(Ipv4Addr::new(255, 255, 255, 0))),
        (0x891d, vec![0; 4], vec![0; 4]),
        (0x8921, vec![0, 0, 1, 0], vec![0xdc, 5, 0, 0]),
        (0x8927, vec![4, 3, 0, 0, 0, 0, 0, 0], [&[1, 0][..], &mac(A, 0).0].concat()),
        (0x8933, vec![1, 0, 0, 0], vec![2, 0, 0, 0]),
        (0x8942, vec![0xe8, 3, 0, 0], vec![0xe8, 3, 0, 0]),
        (0x8970, vec![0; 24], vec![0; 24]),
    ] {
        assert_eq!(get(a, &mut lab, fd, cmd, "lo")[..lo.len()], lo, "{cmd:x} lo");
        assert_eq!(get(a, &mut lab, fd, cmd, "eth0")[..eth0.len()], eth0, "{cmd:x} eth0");
        assert_eq!(a.err(&mut lab, Call::Ioctl(fd, cmd, ifreq("eth9", &[]))), Errno::ENODEV, "{cmd:x}");
    }
    assert_eq!(a.err(&mut lab, Call::Ioctl(fd, 0x8935, ifreq("eth0", &[]))), Errno::EINVAL);
    let Ret::Bytes(b) = a.now(&mut lab, Call::Ioctl(fd, 0x8910, ifreq("", &[2, 0, 0, 0]))) else { panic!() };
    assert_eq!(b[..5], *b"eth0\0");
    assert_eq!(a.err(&mut lab, Call::Ioctl(fd, 0x8910, ifreq("", &[77, 0, 0, 0]))), Errno::ENODEV);
}

#[test]
fn interfaces_are_listed_as_far_as_there_is_room() {
    let (mut lab, a, fd) = one(2);
    assert_eq!(a.now(&mut lab, Call::IfConf(fd, None)), Ret::IfConf(vec![], 80));
    assert_eq!(a.now(&mut lab, Call::IfConf(fd, Some(39))), Ret::IfConf(vec![], 0));
    let Ret::IfConf(all, 80) = a.now(&mut lab, Call::IfConf(fd, Some(200))) else { panic!() };
    assert_eq!((&all[..4], &all[20..24]), (&b"lo\0\0"[..], &[127, 0, 0, 1][..]));
    assert_eq!((&all[40..45], &all[56..64]), (&b"eth0\0"[..], &inet(ADDR_A)[..]));
    let Ret::IfConf(one, 40) = a.now(&mut lab, Call::IfConf(fd, Some(79))) else { panic!() };
    assert_eq!(one, all[..40]);
}

#[test]
fn queue_lengths_and_unknown_commands() {
    let (mut lab, a, fd) = one(3);
    let tcp = a.socket(&mut lab, STREAM);
    for (fd, cmd, want) in [
        (fd, 0x541b, Ok(0)),
        (tcp, 0x541b, Ok(0)),
        (fd, 0x5411, Ok(0)),
        (tcp, 0x8905, Ok(0)),
        (fd, 0x8905, Err(Errno::ENOTTY)),
        (fd, 0x8906, Err(Errno::ENOENT)),
        (fd, 0x5401, Err(Errno::ENOTTY)),
        (tcp, 0x1234_5678, Err(Errno::ENOTTY)),
        (77, 0x541b, Err(Errno::EBADF)),
    ] {
        let got = match a.now(&mut lab, Call::Ioctl(fd, cmd, vec![0; 4])) {
            Ret::Bytes(b) => Ok(i32::from_ne_bytes(b[..4].try_into().expect("four"))),
            Ret::Err(e) => Err(e),
            ret => panic!("{ret:?}"),
        };
        assert_eq!(got, want, "{cmd:x}");
    }
    a.ok(&mut lab, Call::Ioctl(fd, 0x5421, vec![1, 0, 0, 0]));
    assert_eq!(a.ok(&mut lab, Call::GetFl(fd)) & 0o4000, 0o4000, "FIONBIO");
    assert_eq!((arg(0x541b), arg(0x8912), arg(0x8946), arg(0x5401)), (Some(Arg::Fixed(4)), Some(Arg::IfConf), Some(Arg::Ethtool), None));
    let six = a.ok(&mut lab, Call::Socket(AF_INET6, DGRAM, 0)) as i32;
    assert_eq!(get(a, &mut lab, six, 0x8933, "eth0")[0], 2, "sockets of any family will do");
    let _ = AF_INET;
}

#[test]
fn interface_is_changed() {
    let (mut lab, a, fd) = one(4);
    let set = |cmd, value: &[u8]| Call::Ioctl(fd, cmd, ifreq("eth0", value));
    a.ok(&mut lab, set(0x8922, &1400u32.to_ne_bytes()));
    assert_eq!(get(a, &mut lab, fd, 0x8921, "eth0")[..4], 1400u32.to_ne_bytes());
    assert_eq!(a.err(&mut lab, set(0x8922, &67u32.to_ne_bytes())), Errno::EINVAL);
    a.ok(&mut lab, set(0x8943, &50u32.to_ne_bytes()));
    assert_eq!(get(a, &mut lab, fd, 0x8942, "eth0")[0], 50);
    a.ok(&mut lab, set(0x8916, &inet(Ipv4Addr::new(192, 168, 7, 1))));
    assert_eq!(get(a, &mut lab, fd, 0x891b, "eth0")[..8], inet(Ipv4Addr::new(255, 255, 255, 0)), "class C");
    a.ok(&mut lab, set(0x891c, &inet(Ipv4Addr::new(255, 255, 0, 0))));
    assert_eq!(get(a, &mut lab, fd, 0x8919, "eth0")[..8], inet(Ipv4Addr::new(192, 168, 255, 255)), "the broadcast address follows");
    assert_eq!(a.err(&mut lab, set(0x891c, &inet(Ipv4Addr::new(255, 0, 255, 0)))), Errno::EINVAL);
    assert_eq!(get(a, &mut lab, fd, 0x8915, "eth0")[..8], inet(Ipv4Addr::new(192, 168, 7, 1)));
    a.ok(&mut lab, set(0x8914, &[0, 0]));
    assert_eq!(get(a, &mut lab, fd, 0x8913, "eth0")[..2], [2, 0x10], "down");
    assert_eq!(a.send_to(&mut lab, fd, b"x", Ipv4Addr::new(192, 168, 7, 2), 9), Ret::Err(Errno::ENETUNREACH));
    a.ok(&mut lab, set(0x8914, &[1, 0]));
    assert_eq!(a.send_to(&mut lab, fd, b"x", Ipv4Addr::new(192, 168, 7, 2), 9), Ret::Value(1));
}

#[test]
fn routes_and_neighbours_are_shown_and_changed() {
    let (mut lab, a, fd) = one(5);
    let rtentry = |dst: Ipv4Addr, gateway: Ipv4Addr, mask: Ipv4Addr, flags: u16| {
        let mut b = vec![0; 120];
        for (at, addr) in [(8, dst), (24, gateway), (40, mask)] {
            b[at..at + 8].copy_from_slice(&inet(addr));
        }
        b[56..58].copy_from_slice(&flags.to_ne_bytes());
        b
    };
    let far = Ipv4Addr::new(172, 16, 0, 0);
    let route = rtentry(far, ADDR_B, Ipv4Addr::new(255, 255, 0, 0), 3);
    let to = Ipv4Addr::new(172, 16, 3, 4);
    assert_eq!(a.send_to(&mut lab, fd, b"x", to, 9), Ret::Err(Errno::ENETUNREACH));
    a.ok(&mut lab, Call::Ioctl(fd, 0x890b, route.clone()));
    assert_eq!(a.err(&mut lab, Call::Ioctl(fd, 0x890b, route.clone())), Errno::EEXIST);
    assert_eq!(a.send_to(&mut lab, fd, b"x", to, 9), Ret::Value(1));
    a.ok(&mut lab, Call::Ioctl(fd, 0x890c, route.clone()));
    assert_eq!(a.err(&mut lab, Call::Ioctl(fd, 0x890c, route)), Errno::ESRCH);
    let ragged = rtentry(far, ADDR_B, Ipv4Addr::new(255, 0, 255, 0), 3);
    assert_eq!(a.err(&mut lab, Call::Ioctl(fd, 0x890b, ragged)), Errno::EINVAL);
    lab.run_for(Duration::from_millis(1));
    let mut arpreq = inet(ADDR_B);
    arpreq.resize(68, 0);
    let Ret::Bytes(entry) = a.now(&mut lab, Call::Ioctl(fd, 0x8954, arpreq.clone())) else { panic!("the gateway was asked for") };
    assert_eq!((&entry[16..18], &entry[18..24], &entry[52..57]), (&[1, 0][..], &mac(B, 0).0[..], &b"eth0\0"[..]));
    arpreq[4..8].copy_from_slice(&[10, 0, 0, 77]);
    assert_eq!(a.err(&mut lab, Call::Ioctl(fd, 0x8954, arpreq.clone())), Errno::ENXIO);
    arpreq[18..24].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    arpreq[32] = 4;
    a.ok(&mut lab, Call::Ioctl(fd, 0x8955, arpreq.clone()));
    let Ret::Bytes(entry) = a.now(&mut lab, Call::Ioctl(fd, 0x8954, arpreq.clone())) else { panic!("just set") };
    assert_eq!(entry[18..24], [2, 9, 9, 9, 9, 9]);
    a.ok(&mut lab, Call::Ioctl(fd, 0x8953, arpreq));
}

/// `struct rtentry`, `dev` the address of a name.
fn rtentry(dst: [u8; 4], gateway: Option<Ipv4Addr>, mask: [u8; 4], dev: u64) -> Vec<u8> {
    let mut b = vec![0; 120];
    for (at, addr) in [(8, dst.into()), (24, gateway.unwrap_or(Ipv4Addr::UNSPECIFIED)), (40, mask.into())] {
        b[at..at + 8].copy_from_slice(&inet(addr));
    }
    b[56..58].copy_from_slice(&(if gateway.is_some() { 3u16 } else { 1 }).to_ne_bytes());
    b[88..96].copy_from_slice(&dev.to_ne_bytes());
    b
}

#[test]
fn route_may_name_its_link_and_goes_by_what_is_said_of_it() {
    let (mut lab, a, fd) = one(6);
    let [eth0, eth9] = [b"eth0\0 and whatever", b"eth9\0 and whatever"].map(|name| lab.hosts[A].mem.put(name).addr);
    let (net, all, far) = ([10, 10, 0, 0], [255, 255, 0, 0], Ipv4Addr::new(10, 10, 0, 9));
    let add = |e: Vec<u8>| Call::Ioctl(fd, 0x890b, e);
    let del = |e: Vec<u8>| Call::Ioctl(fd, 0x890c, e);
    assert_eq!(a.err(&mut lab, add(rtentry(net, None, all, eth9))), Errno::ENODEV);
    assert_eq!(a.err(&mut lab, add(rtentry(net, None, all, 8))), Errno::EFAULT);
    a.ok(&mut lab, add(rtentry(net, None, all, eth0)));
    assert_eq!(a.send_to(&mut lab, fd, b"x", far, 9), Ret::Value(1), "on the link");
    a.ok(&mut lab, del(rtentry(net, None, all, eth0)));
    assert_eq!(a.send_to(&mut lab, fd, b"x", far, 9), Ret::Err(Errno::ENETUNREACH));
    let mut reject = rtentry(net, None, all, 0);
    reject[57] = 2;
    assert_eq!(a.err(&mut lab, add(reject)), Errno::EOPNOTSUPP);
    // `route del default` names no gateway.
    a.ok(&mut lab, add(rtentry([0; 4], Some(ADDR_B), [0; 4], 0)));
    assert_eq!(a.err(&mut lab, del(rtentry([0; 4], Some(ADDR_A), [0; 4], 0))), Errno::ESRCH);
    a.ok(&mut lab, del(rtentry([0; 4], None, [0; 4], 0)));
    assert_eq!(a.err(&mut lab, del(rtentry([0; 4], None, [0; 4], 0))), Errno::ESRCH);
}

#[test]
fn alias_has_an_address_of_its_own() {
    let (mut lab, a, fd) = one(7);
    let set = |cmd, name: &str, value: &[u8]| Call::Ioctl(fd, cmd, ifreq(name, value));
    let [first, second] = [Ipv4Addr::new(10, 7, 7, 7), Ipv4Addr::new(10, 7, 7, 8)];
    assert_eq!(a.err(&mut lab, set(0x8915, "eth0:1", &[])), Errno::EADDRNOTAVAIL);
    assert_eq!(a.err(&mut lab, set(0x8914, "eth0:1", &[1, 0])), Errno::EADDRNOTAVAIL);
    a.ok(&mut lab, set(0x8916, "eth0:1", &inet(first)));
    assert_eq!(get(a, &mut lab, fd, 0x8915, "eth0:1")[..8], inet(first));
    assert_eq!(get(a, &mut lab, fd, 0x8915, "eth0")[..8], inet(ADDR_A), "the interface's own stays");
    let Ret::IfConf(all, 120) = a.now(&mut lab, Call::IfConf(fd, Some(120))) else { panic!() };
    assert_eq!((&all[40..45], &all[80..87]), (&b"eth0\0"[..], &b"eth0:1\0"[..]));
    a.ok(&mut lab, set(0x8916, "eth0:1", &inet(second)));
    a.ok(&mut lab, set(0x891c, "eth0:1", &inet(Ipv4Addr::new(255, 255, 0, 0))));
    assert_eq!(get(a, &mut lab, fd, 0x891b, "eth0:1")[..8], inet(Ipv4Addr::new(255, 255, 0, 0)));
    a.ok(&mut lab, set(0x8916, "eth0:1", &inet(second)));
    assert_eq!(get(a, &mut lab, fd, 0x891b, "eth0:1")[..8], inet(Ipv4Addr::new(255, 255, 0, 0)), "the same again changes nothing");
    a.ok(&mut lab, set(0x8914, "eth0:1", &[0, 0]));
    assert_eq!(a.err(&mut lab, set(0x8915, "eth0:1", &[])), Errno::EADDRNOTAVAIL);
    assert_eq!(get(a, &mut lab, fd, 0x8913, "eth0")[..2], [0x43, 0x10], "the interface is up");
}
