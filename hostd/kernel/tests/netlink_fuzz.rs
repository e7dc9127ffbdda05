//! Whatever a program sends to the kernel, the kernel stands, and answers the next request.

mod common;
mod netlink_support;

use common::tasks::Prog;
use common::{A, HostConfig, Lab, PortConfig};
use netlink_support::{ACK, DUMP, GENERIC, Nl, ROUTE, SOCK_DIAG, request};
use proptest::prelude::*;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, NetlinkAddr, Ret, msg};
use ringlab_kernel::uaccess::Iov;

/// Numbers that mean something as lengths, types, indices.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..4, 4u32..130, Just(u32::MAX), Just(0x8000_0000), Just(65535), any::<u32>()]
}

fn octets(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![0u8..20, Just(0xff), any::<u8>()], 0..max)
}

/// An attribute; its length may lie.
fn attribute() -> impl Strategy<Value = Vec<u8>> {
    (0u16..60, octets(24), prop_oneof![8 => Just(None), 1 => any::<u16>().prop_map(Some)]).prop_map(|(kind, data, lie)| {
        let len = lie.unwrap_or(data.len() as u16 + 4);
        let mut b = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        b.extend(data);
        b.resize(b.len().next_multiple_of(4), 0);
        b
    })
}

/// A message: of every kind, with a plausible header, attributes, and a length that may lie.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![6 => 16u16..32, 2 => 0u16..130, 1 => any::<u16>()];
    let flags = prop_oneof![Just(ACK), Just(DUMP), Just(0x600 | ACK), Just(0x500), any::<u16>()];
    let head = prop_oneof![
        3 => (number(), number(), number()).prop_map(|(a, b, c)| [[2, 24, 0, 0], a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes()].concat()),
        1 => octets(60),
    ];
    let lie = prop_oneof![8 => Just(None), 1 => number().prop_map(Some)];
    (kind, flags, head, prop::collection::vec(attribute(), 0..5), lie).prop_map(|(kind, flags, head, attrs, lie)| {
        let mut b = request(kind, flags, &head, &[]);
        b.extend(attrs.concat());
        let len = lie.unwrap_or(b.len() as u32);
        b[..4].copy_from_slice(&len.to_ne_bytes());
        b
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn kernel_stands_whatever_is_sent(
        datagrams in prop::collection::vec((0usize..3, prop_oneof![4 => prop::collection::vec(message(), 1..4).prop_map(|m| m.concat()), 1 => octets(200)]), 1..12),
    ) {
        let mut lab = Lab::pair_with(1, HostConfig { pool: 4 << 20, ..HostConfig::default() }, PortConfig::default());
        let p = Prog::spawn(&mut lab, A, "fuzz");
        let sockets = [ROUTE, SOCK_DIAG, GENERIC].map(|protocol| Nl::open(&mut lab, p, protocol));
        sockets[0].strict(&mut lab);
        for (which, data) in datagrams {
            let nl = sockets[which];
            let iov = lab.hosts[A].mem.iov(&data);
            let sent = p.now(&mut lab, Call::SendNetlink { fd: nl.fd, iov, flags: 0, to: NetlinkAddr::default() });
            let fine = matches!(sent, Ret::Value(_) | Ret::Err(Errno::ENODATA));
            prop_assert!(fine, "{:?}", sent);
            let buf = lab.hosts[A].mem.alloc(4096);
            while let Ret::ReceivedNetlink { .. } = p.now(&mut lab, Call::Recv { fd: nl.fd, iov: Iov::One(buf), flags: msg::DONTWAIT | msg::TRUNC }) {}
        }
        let monitor = Nl::open(&mut lab, p, ROUTE);
        prop_assert!(monitor.dump(&mut lab, 18, &[0], &[]).len() == 2, "both links are there");
        for file in ["dev", "route", "arp", "tcp", "igmp", "dev_mcast", "netlink"] {
            let path = ["/proc/net/", file].concat();
            prop_assert!(lab.hosts[A].kernel.procfs_read(&path).is_some());
        }
    }

    #[test]
    fn any_text_written_to_a_sysctl_is_taken_or_refused(path in "[a-z0-9_./]{0,40}", text in octets(60)) {
        let mut lab = Lab::pair_with(2, HostConfig { pool: 4 << 20, ..HostConfig::default() }, PortConfig::default());
        let kernel = &mut lab.hosts[A].kernel;
        let rows = ["net/ipv4/tcp_rmem", "net/ipv4/ip_local_port_range", "net/core/somaxconn", "net/ipv4/tcp_congestion_control"];
        for path in rows.iter().map(|r| format!("/proc/sys/{r}")).chain([format!("/proc/sys/net/{path}"), format!("/proc/{path}")]) {
            if let Ok(n) = kernel.procfs_write(&path, &text) {
                prop_assert_eq!(n, text.len());
            }
            let _ = (kernel.procfs_read(&path), kernel.procfs_list(&path), kernel.procfs_mode(&path));
        }
    }
}
