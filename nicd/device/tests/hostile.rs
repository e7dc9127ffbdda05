//! A sender that lies and changes its memory while it is read: whatever it does,
//! nothing panics, nothing is written where it should not be, and what leaves the
//! NIC is well-formed.
//!
//! Frames start out right and are then damaged where it matters (lengths, types,
//! offsets), which gets deeper than noise does.

#![expect(clippy::unwrap_used, reason = "a test, helpers included")]

use etherparse::{SlicedPacket, TransportSlice};
use proptest::prelude::*;
use ringlab_device::frame::FrameView;
use ringlab_device::gather::{Cursor, octets};
use ringlab_device::impair::{Impair, Impairment, Verdict};
use ringlab_device::offload::{NoRoom, Offload, Segments, check, copy_whole};
use ringlab_device::rss::Rss;
use ringlab_device::switch::{Forward, PortId, Switch, SwitchParams};
use ringlab_device::time::Instant;
use ringlab_device::wire;
use ringlab_ring::memory::{Region, Slice};
use ringlab_ring::vnet::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, VnetHdr};

/// Octets of the frame at which the parser turns.
const STEERING: [usize; 14] = [0, 6, 12, 13, 14, 16, 17, 20, 21, 23, 34, 46, 47, 50];
const ROOM: usize = 70_000;

/// A correct TCP frame and the correct header for it.
fn honest(payload: usize, gso_size: u16) -> (Vec<u8>, VnetHdr) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    let total = (20 + 20 + payload) as u16;
    frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xfa, 0xf0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|i| i as u8));
    let gso_type = if payload > usize::from(gso_size) { GSO_TCPV4 } else { GSO_NONE };
    (frame, VnetHdr { flags: F_NEEDS_CSUM, gso_type, hdr_len: 54, gso_size, csum_start: 34, csum_offset: 16, num_buffers: 1 })
}

#[derive(Debug, Clone)]
enum Damage {
    Octet(usize, u8),
    Flip(usize, u8),
    Truncate(usize),
    Pad(usize),
    Vnet(VnetHdr),
    Tag,
}

fn number() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..64, Just(1448), Just(u16::MAX), any::<u16>()]
}

prop_compose! {
    fn vnet()(flags in any::<u8>(), kind in prop_oneof![3 => Just(GSO_TCPV4), 1 => any::<u8>()],
              n in [number(), number(), number(), number(), number()]) -> VnetHdr {
        VnetHdr { flags, gso_type: kind, hdr_len: n[0], gso_size: n[1], csum_start: n[2], csum_offset: n[3], num_buffers: n[4] }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = prop_oneof![6 => prop::sample::select(&STEERING[..]), 1 => 0usize..200];
    prop_oneof![
        4 => (at.clone(), any::<u8>()).prop_map(|(at, v)| Damage::Octet(at, v)),
        4 => (at, 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        2 => (0usize..200).prop_map(Damage::Truncate),
        1 => (1usize..100).prop_map(Damage::Pad),
        2 => vnet().prop_map(Damage::Vnet),
        1 => Just(Damage::Tag),
    ]
}

fn apply(frame: &mut Vec<u8>, hdr: &mut VnetHdr, damage: &Damage) {
    match *damage {
        Damage::Octet(at, v) => frame.get_mut(at).into_iter().for_each(|b| *b = v),
        Damage::Flip(at, mask) => frame.get_mut(at).into_iter().for_each(|b| *b ^= mask),
        Damage::Truncate(len) => frame.truncate(len),
        Damage::Pad(len) => frame.resize(frame.len() + len, 0),
        Damage::Vnet(v) => *hdr = v,
        Damage::Tag if frame.len() >= 12 => {
            frame.splice(12..12, [0x81, 0x00, 0, 5]);
            hdr.csum_start = hdr.csum_start.saturating_add(4);
        }
        Damage::Tag => {}
    }
}

/// The frame in a region, in pieces of `step` octets (the last takes the rest).
fn pieces<'a>(region: &'a Region, frame: &[u8], step: usize) -> Vec<Slice<'a>> {
    let mut list = Vec::new();
    let mut at = 0;
    while at < frame.len() && list.len() < 8 {
        let len = if list.len() == 7 { frame.len() - at } else { step.min(frame.len() - at) };
        list.push(region.slice(at as u64, len).unwrap());
        at += len;
    }
    assert_eq!(Cursor::new(&list).write(frame), octets(&list));
    list
}

fn read(slice: &Slice<'_>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    slice.read(&mut bytes);
    bytes
}

/// A segment that left the NIC holds in every respect.
fn assert_well_formed(segment: &[u8]) {
    let parsed = SlicedPacket::from_ethernet(segment).expect("a segment parses");
    let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else { panic!("not IPv4") };
    let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("not TCP") };
    let header = ip.header();
    // Over the octets: etherparse's own forgets the reserved flag.
    let words = header.slice().chunks(2).map(|w| u64::from(u16::from_be_bytes([w[0], w[1]])));
    assert_eq!(words.sum::<u64>() % 0xffff, 0, "IPv4 header checksum");
    assert_eq!(tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap(), tcp.checksum());
}

/// All that a port does to a frame; returns octets written for each frame that leaves.
fn run_port(frame: &[u8], hdr: &VnetHdr, step: usize, meddle: &[(usize, u8)]) -> Vec<usize> {
    let (src, dst) = (Region::heap(ROOM), Region::heap(ROOM));
    let list = pieces(&src, frame, step);
    let Ok(view) = FrameView::read(&list) else {
        assert!(frame.len() < 14);
        return Vec::new();
    };
    assert!(Rss::new(5).queue(&view) < 5);
    let Ok(offload) = check(hdr, &view) else { return Vec::new() };
    assert!(wire::octets_of(frame.len(), &offload) >= frame.len().max(60) as u64 + 24);
    assert_eq!(check(&offload.to_vnet(), &view), Ok(offload), "what is passed on holds");

    let room = dst.slice(0, ROOM).unwrap();
    let meddle = |src: &Region| {
        for &(at, v) in meddle.iter().filter(|(at, _)| *at < frame.len()) {
            src.slice(at as u64, 1).unwrap().write(&[v]);
        }
    };
    let tso = match offload {
        Offload::Tso(tso) => tso,
        Offload::None | Offload::Csum(_) => {
            meddle(&src);
            let csum = if let Offload::Csum(c) = offload { Some(c) } else { None };
            let short = dst.slice(0, frame.len() - 1).unwrap();
            assert_eq!(copy_whole(&list, csum, &[short]), Err(NoRoom { need: frame.len(), have: frame.len() - 1 }));
            return vec![copy_whole(&list, csum, &[room]).unwrap()];
        }
    };
    let mut out = Vec::new();
    let mut segments = Segments::new(tso, &view, &list);
    while let Some(len) = segments.next_len() {
        meddle(&src);
        room.write(&vec![0xee; len + 1]);
        assert_eq!(segments.emit(&[room]), Ok(Some(len)));
        let mut bytes = read(&room, len + 1);
        assert_eq!(bytes.pop(), Some(0xee));
        assert_well_formed(&bytes);
        out.push(len);
    }
    assert_eq!(out.len(), tso.segments() as usize);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn damaged_frames_are_refused_or_leave_well_formed(
        payload in 0usize..6000, gso_size in prop_oneof![Just(1448u16), 8u16..3000], step in 1usize..5000,
        damages in prop::collection::vec(damage(), 0..4), meddle in prop::collection::vec((0usize..6100, any::<u8>()), 0..8),
    ) {
        let (mut frame, mut hdr) = honest(payload, gso_size);
        for d in &damages {
            apply(&mut frame, &mut hdr, d);
        }
        let out = run_port(&frame, &hdr, step, &meddle);
        if damages.is_empty() {
            prop_assert_eq!(out.len(), if payload > usize::from(gso_size) { payload.div_ceil(usize::from(gso_size)) } else { 1 });
        }
    }

    #[test]
    fn noise_never_panics(frame in prop::collection::vec(any::<u8>(), 0..300), hdr in vnet(), step in 1usize..100) {
        let out = run_port(&frame, &hdr, step, &[]);
        prop_assert!(out.iter().all(|&len| len <= frame.len()));
    }

    #[test]
    fn noise_through_a_switch_is_never_sent_back_nor_to_a_port_that_is_down(
        frames in prop::collection::vec((any::<[u8; 12]>(), 0u16..6, any::<bool>(), any::<u64>()), 1..200), key in any::<[u64; 2]>(),
    ) {
        let mut switch = Switch::new(4, SwitchParams { max_entries: 16, ..SwitchParams::default() }, key);
        for (mut macs, port, up, now) in frames {
            for octet in &mut macs {
                *octet &= 0x03; // few stations, so that they meet
            }
            let mut view = FrameView::empty();
            view.load_bytes(&[&macs[..], &[0x08, 0x00]].concat()).unwrap();
            switch.set_port(PortId(port), up);
            // Time may jump either way: a clock is the shell's business.
            match switch.forward(Instant(now), PortId(3 - port % 4), view.dst(), view.src()) {
                Forward::To(p) => prop_assert!(switch.is_up(p) && p != PortId(3 - port % 4)),
                Forward::Flood => prop_assert!(switch.flood(PortId(3 - port % 4)).all(|p| switch.is_up(p) && p.0 != 3 - port % 4)),
                Forward::Filter => {}
            }
            prop_assert!(switch.fdb(Instant(now)).len() <= 16);
        }
    }

    #[test]
    fn extreme_impairments_neither_panic_nor_go_back_in_time(
        steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<Option<(u64, u64, f64, u64)>>()), 1..50),
    ) {
        let mut wire = Impair::new(Impairment::default(), 0).unwrap();
        let mut now = Instant(0);
        let mut last = Instant(0);
        for (gap, octets, change) in steps {
            now = now.plus_nanos(gap >> 8);
            if let Some((delay_ns, rate_bps, loss, limit_octets)) = change {
                let params = Impairment { delay_ns, rate_bps, loss, limit_octets };
                match wire.reconfigure(now, params) {
                    Ok(retime) => last = retime.apply(last),
                    Err(_) => prop_assert!(!(0.0..=1.0).contains(&loss)),
                }
            }
            if let Verdict::Deliver(at) = wire.admit(now, octets) {
                prop_assert!(at >= now && at >= last);
                last = at;
            }
        }
    }
}
