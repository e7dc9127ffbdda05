use super::*;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

const SEC: u64 = 1_000_000_000;
const KEY: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];
const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
const C: Mac = Mac([2, 0, 0, 0, 0, 0xc]);
const P0: PortId = PortId(0);
const P1: PortId = PortId(1);
const P2: PortId = PortId(2);

fn switch() -> Switch {
    Switch::new(3, SwitchParams::default(), KEY)
}

#[test]
fn unknown_is_flooded_and_known_forwarded() {
    let mut s = switch();
    assert_eq!(s.forward(Instant(0), P0, B, A), Forward::Flood);
    assert_eq!(s.flood(P0).collect::<Vec<_>>(), [P1, P2]);
    assert_eq!(s.forward(Instant(0), P1, A, B), Forward::To(P0));
    assert_eq!(s.forward(Instant(0), P0, B, A), Forward::To(P1));
}

#[test]
fn frame_for_its_own_segment_is_filtered() {
    let mut s = switch();
    s.forward(Instant(0), P0, Mac::BROADCAST, A);
    assert_eq!(s.forward(Instant(0), P0, A, B), Forward::Filter);
}

#[test]
fn groups_are_flooded_but_those_of_bridges_are_not() {
    let mut s = switch();
    assert_eq!(s.forward(Instant(0), P0, Mac::BROADCAST, A), Forward::Flood);
    assert_eq!(s.forward(Instant(0), P0, Mac([0x01, 0, 0x5e, 0, 0, 1]), A), Forward::Flood);
    assert_eq!(s.forward(Instant(0), P0, Mac([0x01, 0x80, 0xc2, 0, 0, 0]), A), Forward::Filter);
    assert_eq!(s.forward(Instant(0), P0, Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]), A), Forward::Filter);
}

#[test]
fn source_that_is_no_station_is_neither_learned_nor_forwarded() {
    let mut s = switch();
    for src in [Mac::BROADCAST, Mac([3, 0, 0, 0, 0, 1]), Mac::default()] {
        assert_eq!(s.forward(Instant(0), P0, B, src), Forward::Filter);
    }
    assert!(s.fdb(Instant(0)).is_empty());
}

#[test]
fn silent_station_is_forgotten_after_the_ageing_time() {
    let mut s = switch();
    s.forward(Instant(0), P0, Mac::BROADCAST, A);
    assert_eq!(s.forward(Instant(300 * SEC - 1), P1, A, B), Forward::To(P0));
    assert_eq!(s.forward(Instant(300 * SEC), P1, A, B), Forward::Flood);
    assert_eq!(s.fdb(Instant(300 * SEC)).len(), 1);
}

#[test]
fn frame_from_a_station_renews_its_entry_and_frames_to_it_do_not() {
    let mut s = switch();
    s.forward(Instant(0), P0, Mac::BROADCAST, A);
    s.forward(Instant(200 * SEC), P0, Mac::BROADCAST, A);
    assert_eq!(s.forward(Instant(400 * SEC), P1, A, B), Forward::To(P0));
    assert_eq!(s.forward(Instant(500 * SEC), P1, A, B), Forward::Flood);
}

#[test]
fn station_that_moves_is_followed() {
    let mut s = switch();
    s.forward(Instant(0), P0, Mac::BROADCAST, A);
    s.forward(Instant(1), P2, Mac::BROADCAST, A);
    assert_eq!(s.forward(Instant(2), P1, A, B), Forward::To(P2));
    assert_eq!(s.moves(), 1);
}

#[test]
fn port_that_goes_down_takes_its_entries_and_no_frames() {
    let mut s = switch();
    s.forward(Instant(0), P0, Mac::BROADCAST, A);
    s.set_port(P0, false);
    assert_eq!(s.forward(Instant(1), P1, A, B), Forward::Flood);
    assert_eq!(s.flood(P1).collect::<Vec<_>>(), [P2]);
    assert_eq!(s.forward(Instant(1), P0, B, A), Forward::Filter);
    s.set_port(P0, true);
    assert_eq!(s.forward(Instant(1), P0, B, A), Forward::To(P1));
    assert_eq!(s.forward(Instant(1), PortId(9), B, A), Forward::Filter, "a port that does not exist");
}

#[test]
fn full_table_learns_nothing_new_until_an_entry_ages() {
    let mut s = Switch::new(3, SwitchParams { ageing: Duration::from_secs(10), max_entries: 2 }, KEY);
    s.forward(Instant(0), P0, Mac::BROADCAST, A);
    s.forward(Instant(5 * SEC), P1, Mac::BROADCAST, B);
    assert_eq!(s.forward(Instant(6 * SEC), P2, A, C), Forward::To(P0));
    assert_eq!((s.fdb(Instant(6 * SEC)).len(), s.unlearned()), (2, 1));
    s.forward(Instant(7 * SEC), P2, Mac::BROADCAST, B);
    assert_eq!(s.moves(), 1, "what is known is still followed");
    s.forward(Instant(10 * SEC), P2, Mac::BROADCAST, C);
    assert_eq!(s.forward(Instant(10 * SEC), P0, C, B), Forward::To(P2));
    assert_eq!(s.unlearned(), 1);
}

#[test]
fn full_table_is_searched_for_aged_entries_once_a_second() {
    let mut s = Switch::new(3, SwitchParams { ageing: Duration::from_millis(10), max_entries: 1 }, KEY);
    s.forward(Instant(0), P0, Mac::BROADCAST, A);
    s.forward(Instant(SEC), P0, Mac::BROADCAST, B);
    assert_eq!(s.unlearned(), 0);
    s.forward(Instant(2 * SEC - 1), P0, Mac::BROADCAST, C);
    assert_eq!(s.unlearned(), 1);
    s.forward(Instant(2 * SEC), P0, Mac::BROADCAST, C);
    assert_eq!((s.unlearned(), s.fdb(Instant(2 * SEC)).len()), (1, 1));
}

#[test]
fn listing_is_sorted_and_dated() {
    let mut s = switch();
    for (at, port, mac) in [(1, P2, C), (2, P0, A), (3, P1, B)] {
        s.forward(Instant(at * SEC), port, Mac::BROADCAST, mac);
    }
    let list = s.fdb(Instant(4 * SEC));
    let want = [(A, P0, 2), (B, P1, 1), (C, P2, 3)];
    assert_eq!(list, want.map(|(mac, port, age)| FdbEntry { mac, port, age: Duration::from_secs(age) }));
    s.flush();
    assert!(s.fdb(Instant(4 * SEC)).is_empty());
}

#[test]
fn ports_are_added_up_to_the_limit() {
    let mut s = Switch::new(MAX_PORTS - 1, SwitchParams::default(), KEY);
    assert_eq!(s.add_port(), Some(PortId(MAX_PORTS - 1)));
    assert!(s.is_up(PortId(MAX_PORTS - 1)));
    assert_eq!(s.add_port(), None);
}

#[test]
fn hash_spreads_neighbouring_addresses() {
    let hasher = Keyed(KEY);
    let mut low = alloc::collections::BTreeSet::new();
    for i in 0..4096u32 {
        let [_, b, c, d] = i.to_be_bytes();
        low.insert(hasher.hash_one(Mac([2, 0, 0, b, c, d])) & 0xffff);
    }
    assert!(low.len() > 3900, "{} of 4096 differ in the low 16 bits", low.len());
}

#[test]
fn addresses_that_collide_under_one_key_spread_under_another() {
    let bucket = |key, mac| Keyed(key).hash_one(mac) & 0xfff;
    let stations = (0..1u32 << 20).map(|i| Mac([2, 0, (i >> 16) as u8, (i >> 8) as u8, i as u8, 0]));
    let chosen: alloc::vec::Vec<_> = stations.filter(|&mac| bucket(KEY, mac) == 0).take(128).collect();
    assert_eq!(chosen.len(), 128, "such addresses are easily found");
    for key in [[KEY[1], KEY[0]], [KEY[0], 0xa409_3822_299f_31d0], [KEY[0], KEY[1] ^ 1 << 40]] {
        let buckets: alloc::collections::BTreeSet<_> = chosen.iter().map(|&mac| bucket(key, mac)).collect();
        assert!(buckets.len() > 100, "128 stations in {} buckets", buckets.len());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Frame { wait: u64, port: u16, dst: u8, src: u8 },
    Link { port: u16, up: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![9 => 0..SEC, 1 => 0..20 * SEC];
    let frame = (wait, 0u16..4, 0u8..12, 0u8..12).prop_map(|(wait, port, dst, src)| Step::Frame { wait, port, dst, src });
    prop_oneof![20 => frame, 1 => (0u16..4, any::<bool>()).prop_map(|(port, up)| Step::Link { port, up })]
}

proptest! {
    #[test]
    fn behaves_as_a_table_of_last_sightings(steps in prop::collection::vec(step(), 1..300), key in any::<[u64; 2]>(), max_entries in prop_oneof![Just(64usize), 1usize..8]) {
        let mut s = Switch::new(4, SwitchParams { ageing: Duration::from_secs(10), max_entries }, key);
        let (mut model, mut up, mut now) = (BTreeMap::new(), [true; 4], Instant(0));
        for step in steps {
            let (wait, port, dst, src) = match step {
                Step::Link { port, up: state } => {
                    s.set_port(PortId(port), state);
                    up[usize::from(port)] = state;
                    if !state {
                        model.retain(|_, (p, _)| *p != PortId(port));
                    }
                    continue;
                }
                Step::Frame { wait, port, dst, src } => (wait, PortId(port), Mac([2, 0, 0, 0, 0, dst]), Mac([2, 0, 0, 0, 0, src])),
            };
            now = now.plus_nanos(wait);
            let got = s.forward(now, port, dst, src);
            if !up[usize::from(port.0)] {
                prop_assert_eq!(got, Forward::Filter);
                continue;
            }
            model.insert(src, (port, now));
            let known = model.get(&dst).filter(|(_, seen)| now.nanos_since(*seen) < 10 * SEC).map(|(p, _)| *p);
            let want = known.map_or(Forward::Flood, |p| if p == port { Forward::Filter } else { Forward::To(p) });
            // A table that was full may not know; it never knows wrongly.
            prop_assert!(got == want || max_entries < 12 && got == Forward::Flood, "{got:?} instead of {want:?}");
            let list = s.fdb(now);
            prop_assert!(list.len() <= max_entries && list.is_sorted_by_key(|e| e.mac));
            for e in list {
                prop_assert_eq!(model.get(&e.mac), Some(&(e.port, Instant(now.0 - e.age.as_nanos() as u64))));
            }
        }
    }
}
