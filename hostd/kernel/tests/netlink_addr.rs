//! What goes with the last address of an interface, as `ip addr` and `ip monitor` see it.

mod common;
mod netlink_support;

use common::tasks::Prog;
use common::{A, Lab};
use netlink_support::*;
use ringlab_kernel::syscall::{Call, NetlinkAddr};

const NUD_REACHABLE: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// `struct ifaddrmsg` of `AF_INET`, a prefix of 24 on the first NIC.
fn ifaddr() -> Vec<u8> {
    [[2, 24, 0, 0], 2u32.to_ne_bytes()].concat()
}

/// A route of an administrator's, to a network of 24.
fn add_route(lab: &mut Lab, nl: Nl, to: [u8; 4], attrs: &[(u16, &[u8])]) {
    let scope = if attrs.iter().any(|a| a.0 == 5) { 0 } else { 253 };
    let head = [2, 24, 0, 0, 254, 3, scope, 1, 0, 0, 0, 0];
    let attrs = [&[(1, &to[..])], attrs].concat();
    assert_eq!(nl.ack(lab, NEWROUTE, CREATE | EXCL, &head, &attrs), Ok(()));
}

fn add_neighbour(lab: &mut Lab, nl: Nl, last: u8, state: u16) {
    let head = [vec![2, 0, 0, 0], 2u32.to_ne_bytes().to_vec(), state.to_ne_bytes().to_vec(), vec![0, 0]].concat();
    assert_eq!(nl.ack(lab, NEWNEIGH, CREATE, &head, &[(1, &[10, 0, 0, last]), (2, &[2, 0, 0, 0, 0, last])]), Ok(()));
}

/// Destinations of the main table.
fn destinations(lab: &mut Lab, nl: Nl) -> Vec<Vec<u8>> {
    let all = nl.dump(lab, GETROUTE, &[2], &[]).into_iter();
    all.filter(|m| m.u32(RTMSG, 15) == Some(254)).filter_map(|m| m.attr(RTMSG, 1)).collect()
}

#[test]
fn last_address_takes_its_routes_and_neighbours_along() {
    let mut lab = Lab::pair(23);
    let p = Prog::spawn(&mut lab, A, "ip");
    let nl = Nl::open(&mut lab, p, ROUTE);
    let device: (u16, &[u8]) = (4, &2u32.to_ne_bytes());
    assert_eq!(nl.ack(&mut lab, NEWADDR, CREATE | EXCL, &ifaddr(), &[(2, &[10, 8, 0, 1]), (1, &[10, 8, 0, 1])]), Ok(()));
    add_route(&mut lab, nl, [10, 20, 0, 0], &[device]);
    add_route(&mut lab, nl, [10, 21, 0, 0], &[(5, &[10, 0, 0, 2])]);
    add_route(&mut lab, nl, [10, 22, 0, 0], &[device, (7, &[10, 0, 0, 1])]);
    add_neighbour(&mut lab, nl, 55, NUD_PERMANENT);
    add_neighbour(&mut lab, nl, 56, NUD_REACHABLE);
    let del = |lab: &mut Lab, addr: [u8; 4]| nl.ack(lab, DELADDR, 0, &ifaddr(), &[(2, &addr), (1, &addr)]);

    assert_eq!(del(&mut lab, [10, 8, 0, 1]), Ok(()));
    assert_eq!(destinations(&mut lab, nl), [[10, 0, 0, 0], [10, 20, 0, 0], [10, 21, 0, 0], [10, 22, 0, 0]], "another one stays");
    assert_eq!(nl.dump(&mut lab, GETNEIGH, &[0], &[]).len(), 2);

    let mon = Prog::spawn(&mut lab, A, "monitor");
    let mon = Nl { prog: mon, fd: mon.ok(&mut lab, Call::Socket(AF_NETLINK, RAW, ROUTE)) as i32 };
    mon.prog.ok(&mut lab, Call::BindNetlink(mon.fd, NetlinkAddr { pid: 0, groups: 0x55 }));
    assert_eq!(del(&mut lab, [10, 0, 0, 1]), Ok(()));
    assert_eq!(destinations(&mut lab, nl), [[0; 4]; 0], "those through a gateway, too");
    assert_eq!(nl.dump(&mut lab, GETNEIGH, &[0], &[]).len(), 0, "permanent ones, too");
    let told = mon.drain(&mut lab);
    let kinds: Vec<u16> = told.iter().map(|m| m.kind).collect();
    assert_eq!(kinds, [DELADDR, DELROUTE, DELROUTE, DELROUTE, DELROUTE, DELNEIGH, DELNEIGH]);
    let gone: Vec<_> = told[1..5].iter().filter_map(|m| m.attr(RTMSG, 1)).collect();
    assert_eq!(gone, [[10, 0, 0, 0], [10, 0, 0, 255], [10, 0, 0, 1], [10, 22, 0, 0]], "with its source address; the others without a word");
    assert_eq!(told[6].attr(NDMSG, 1).map(|a| a[3]), Some(56));
}
