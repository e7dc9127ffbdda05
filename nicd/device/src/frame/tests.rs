use super::*;
use crate::testing::{Scattered, cuts};
use alloc::format;
use alloc::vec::Vec;
use etherparse::{LinkExtSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use proptest::prelude::*;

fn view(bytes: &[u8]) -> FrameView {
    let mut view = FrameView::empty();
    view.load_bytes(bytes).unwrap();
    view
}

#[test]
fn fields_behind_two_tags_are_those_of_etherparse() {
    let b = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .double_vlan(VlanId::try_new(100).unwrap(), VlanId::try_new(7).unwrap())
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(53, 40000);
    let mut bytes = Vec::new();
    b.write(&mut bytes, &[1, 2, 3]).unwrap();
    let v = view(&bytes);
    assert_eq!((v.src(), v.dst()), (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])));
    assert_eq!((v.vlan(), v.l3_offset(), v.ethertype(), v.len()), (Some(100), 22, ETHERTYPE_IPV4, 53));
    let ip = v.ipv4().unwrap();
    assert_eq!((ip.src, ip.dst, ip.protocol, ip.ports), ([10, 0, 0, 1], [10, 0, 0, 2], PROTO_UDP, Some((53, 40000))));
    assert_eq!((ip.header_len, ip.total_len, ip.fragment), (20, 31, false));
}

#[test]
fn runt_leaves_an_empty_view() {
    let mut v = view(&[0xff; 60]);
    assert_eq!(v.load_bytes(&[1; 13]), Err(Runt(13)));
    assert!(v.is_empty() && v.header().is_empty() && v.ipv4().is_none());
    assert_eq!(FrameView::read(&[]).unwrap_err(), Runt(0));
}

#[test]
fn fragments_have_no_ports() {
    let b = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([1; 4], [2; 4], 64).udp(5, 6);
    let mut bytes = Vec::new();
    b.write(&mut bytes, &[0; 16]).unwrap();
    for (flags, fragment) in [(0x00, false), (0x40, false), (0x20, true), (0x01, true)] {
        bytes[20] = flags;
        let ip = *view(&bytes).ipv4().unwrap();
        assert_eq!((ip.fragment, ip.ports.is_some()), (fragment, !fragment), "flags {flags:#04x}");
    }
}

#[test]
fn reserved_and_group_addresses_are_told_apart() {
    assert!(Mac([0x01, 0x80, 0xc2, 0, 0, 0x0f]).is_bridge_reserved());
    assert!(!Mac([0x01, 0x80, 0xc2, 0, 0, 0x10]).is_bridge_reserved());
    assert!(Mac::BROADCAST.is_multicast() && !Mac([2, 0, 0, 0, 0, 1]).is_multicast());
    assert_eq!(format!("{}", Mac([0, 1, 0xab, 3, 4, 5])), "00:01:ab:03:04:05");
}

/// Headers that are nearly right: the octets that steer the parser, mostly valid.
fn steered() -> impl Strategy<Value = Vec<u8>> {
    let types = prop_oneof![4 => Just([0x08u8, 0x00]), 2 => Just([0x81, 0x00]), 1 => Just([0x88, 0xa8]), 1 => any::<[u8; 2]>()];
    let ihl = prop_oneof![3 => Just(0x45u8), 3 => 0x45u8..0x50, 1 => any::<u8>()];
    let proto = prop_oneof![Just(PROTO_TCP), Just(PROTO_UDP), any::<u8>()];
    let frag = prop_oneof![3 => Just([0u8, 0]), 1 => Just([0x40, 0]), 1 => any::<[u8; 2]>()];
    (
        any::<[u8; 12]>(),
        prop::collection::vec((types, any::<[u8; 2]>()), 1..4),
        ihl,
        proto,
        frag,
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(macs, layers, ihl, proto, frag, mut rest)| {
            let mut b = macs.to_vec();
            for (ethertype, tci) in &layers {
                b.extend(ethertype);
                if *ethertype == [0x08, 0x00] {
                    break;
                }
                b.extend(tci);
            }
            for (at, v) in [(0, ihl), (6, frag[0]), (7, frag[1]), (9, proto)] {
                if let Some(octet) = rest.get_mut(at) {
                    *octet = v;
                }
            }
            b.extend(rest);
            b
        })
}

proptest! {
    #[test]
    fn any_octets_parse_without_panic_and_alike_however_they_lie(bytes in prop::collection::vec(any::<u8>(), 0..400), c in cuts()) {
        let scattered = Scattered::new(&bytes, &c);
        match FrameView::read(&scattered.pieces()) {
            Err(runt) => prop_assert_eq!(runt, Runt(bytes.len())),
            Ok(v) => {
                prop_assert_eq!(format!("{v:?}"), format!("{:?}", view(&bytes)));
                prop_assert_eq!(v.header(), &bytes[..bytes.len().min(HEADER_MAX)]);
                prop_assert_eq!(&v.dst().0[..], &bytes[..6]);
            }
        }
    }

    #[test]
    fn where_etherparse_finds_ipv4_so_do_we(bytes in steered(), c in cuts()) {
        let scattered = Scattered::new(&bytes, &c);
        let Ok(v) = FrameView::read(&scattered.pieces()) else { return Ok(()) };
        if let Some(ip) = v.ipv4() {
            prop_assert!(v.l3_offset() + usize::from(ip.header_len) <= v.header().len());
        }
        let Ok(parsed) = SlicedPacket::from_ethernet(&bytes) else { return Ok(()) };
        let tags: Vec<u16> = parsed.link_exts.iter().filter_map(|e| if let LinkExtSlice::Vlan(s) = e { Some(s) } else { None })
            .map(|s| u16::from_be_bytes([s.slice()[0], s.slice()[1]])).collect();
        if tags.len() > MAX_TAGS {
            return Ok(());
        }
        prop_assert_eq!(v.vlan(), tags.first().copied());
        let Some(NetSlice::Ipv4(net)) = parsed.net else { return Ok(()) };
        let (ip, header) = (v.ipv4().unwrap(), net.header());
        prop_assert_eq!((ip.src, ip.dst, ip.id), (header.source(), header.destination(), header.identification()));
        prop_assert_eq!((ip.protocol, ip.total_len), (header.protocol().0, header.total_len()));
        prop_assert_eq!((usize::from(ip.header_len), ip.fragment), (header.slice().len(), header.is_fragmenting_payload()));
        match parsed.transport {
            Some(TransportSlice::Tcp(t)) => prop_assert_eq!(ip.ports, Some((t.source_port(), t.destination_port()))),
            Some(TransportSlice::Udp(u)) => prop_assert_eq!(ip.ports, Some((u.source_port(), u.destination_port()))),
            _ => {}
        }
    }
}
