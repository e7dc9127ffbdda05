use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn impair(params: Impairment) -> Impair {
    Impair::new(params, 7).unwrap()
}

#[test]
fn no_impairment_delivers_at_once_and_draws_nothing() {
    let mut wire = impair(Impairment::default());
    assert!(wire.is_transparent() && !wire.needs_cut());
    assert_eq!(wire.admit(Instant(5), 1538), Verdict::Deliver(Instant(5)));
}

#[test]
fn delay_alone_keeps_frames_whole() {
    let mut wire = impair(Impairment { delay_ns: 10 * MS, ..Impairment::default() });
    assert!(!wire.needs_cut() && !wire.is_transparent());
    assert_eq!(wire.admit(Instant(1), 65_000), Verdict::Deliver(Instant(1 + 10 * MS)));
}

#[test]
fn serialisation_comes_before_propagation() {
    // 1538 octet times at 100 Mbit/s: 123.04 µs.
    let mut wire = impair(Impairment { delay_ns: 5 * MS, rate_bps: 100_000_000, ..Impairment::default() });
    assert!(wire.needs_cut());
    assert_eq!(wire.admit(Instant(0), 1538), Verdict::Deliver(Instant(5 * MS + 123_040)));
    assert_eq!(wire.admit(Instant(0), 1538), Verdict::Deliver(Instant(5 * MS + 246_080)));
    assert_eq!(wire.backlog(Instant(0)), 3076);
    assert_eq!(wire.backlog(Instant(246_080)), 0);
}

#[test]
fn full_queue_drops_its_tail() {
    let mut wire = impair(Impairment { rate_bps: 8_000_000, limit_octets: 3000, ..Impairment::default() });
    let verdicts: Vec<_> = (0..4).map(|_| wire.admit(Instant(0), 1000)).collect();
    assert_eq!(verdicts[2], Verdict::Deliver(Instant(3 * MS)));
    assert_eq!(verdicts[3], Verdict::Drop(DropReason::Overlimit));
    assert_eq!(wire.admit(Instant(MS), 1000), Verdict::Deliver(Instant(4 * MS)));
}

#[test]
fn idle_wire_takes_a_frame_larger_than_the_limit() {
    let mut wire = impair(Impairment { rate_bps: 8_000_000, limit_octets: 1, ..Impairment::default() });
    assert_eq!(wire.admit(Instant(0), 1000), Verdict::Deliver(Instant(MS)));
    assert_eq!(wire.admit(Instant(0), 1), Verdict::Drop(DropReason::Overlimit));
    assert_eq!(wire.admit(Instant(MS), 1000), Verdict::Deliver(Instant(2 * MS)));
}

#[test]
fn default_limit_is_a_mebibyte_or_a_tenth_of_a_second() {
    assert_eq!(Impairment { rate_bps: 1_000_000, ..Impairment::default() }.limit(), MIN_LIMIT);
    assert_eq!(Impairment { rate_bps: 1_000_000_000, ..Impairment::default() }.limit(), 12_500_000);
    assert_eq!(Impairment { limit_octets: 9, ..Impairment::default() }.limit(), 9);
}

#[test]
fn loss_of_nothing_and_of_all_are_exact() {
    let count = |loss| {
        let mut wire = impair(Impairment { loss, ..Impairment::default() });
        (0..10_000).filter(|&i| wire.admit(Instant(i), 84) == Verdict::Drop(DropReason::Lost)).count()
    };
    assert_eq!((count(0.0), count(1.0)), (0, 10_000));
}

#[test]
fn what_is_not_a_probability_is_refused_and_changes_nothing() {
    let good = Impairment { delay_ns: 3, ..Impairment::default() };
    let mut wire = impair(good);
    for loss in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
        let bad = Impairment { loss, ..Impairment::default() };
        assert!(Impair::new(bad, 1).is_err());
        assert!(wire.reconfigure(Instant(0), bad).is_err());
    }
    assert_eq!(wire.params(), &good);
}

fn losses(seed: u64, params: Impairment, frames: u64) -> Vec<bool> {
    let mut wire = Impair::new(params, seed).unwrap();
    (0..frames).map(|i| wire.admit(Instant(i * MS), 84) == Verdict::Drop(DropReason::Lost)).collect()
}

#[test]
fn who_is_lost_depends_on_the_seed_and_on_nothing_else() {
    let lossy = Impairment { loss: 0.02, ..Impairment::default() };
    let slow = Impairment { loss: 0.02, delay_ns: 20 * MS, rate_bps: 100_000_000, ..Impairment::default() };
    assert_eq!(losses(1, lossy, 5000), losses(1, slow, 5000));
    assert_ne!(losses(1, lossy, 5000), losses(2, lossy, 5000));
}

#[test]
fn draws_are_pinned() {
    // A change here changes every recorded replay.
    let lost: Vec<_> = losses(7, Impairment { loss: 0.1, ..Impairment::default() }, 100);
    let lost: Vec<_> = lost.iter().enumerate().filter(|(_, l)| **l).map(|(i, _)| i).collect();
    assert_eq!(lost, [4, 24, 28, 52, 59, 84]);
}

#[test]
fn waiting_frames_leave_at_the_new_rate_and_flying_ones_arrive_as_they_would_have() {
    // A frame a second; after 1.5 s, the first flies (delay 2 s), the second is half sent.
    let slow = Impairment { rate_bps: 8000, delay_ns: 2000 * MS, ..Impairment::default() };
    let (mut wire, mut line) = (impair(slow), DelayLine::new());
    for i in 0..4 {
        let Verdict::Deliver(at) = wire.admit(Instant(0), 1000) else { panic!("dropped") };
        line.push(at, i);
    }
    let now = Instant(1500 * MS);
    let change = wire.reconfigure(now, Impairment { rate_bps: 8_000_000, delay_ns: 1900 * MS, ..Impairment::default() }).unwrap();
    line.retime(&change);
    let times: Vec<_> = core::iter::from_fn(|| line.pop_due(Instant(u64::MAX))).collect();
    // Not before the first could still arrive: 1.5 s + 2 s.
    let floor = Instant(3500 * MS);
    assert_eq!(times, [(Instant(3000 * MS), 0), (floor, 1), (floor, 2), (floor, 3)]);
    let Verdict::Deliver(next) = wire.admit(now, 1000) else { panic!("dropped") };
    assert_eq!(next, floor);
    assert_eq!(wire.backlog(now), 500 + 2 * 1000 + 1000);
}

#[test]
fn second_change_leaves_alone_what_was_in_flight_at_the_first() {
    let params = |delay_ns| Impairment { delay_ns, rate_bps: 8_000_000, ..Impairment::default() };
    let (mut wire, mut line) = (impair(params(1000 * MS)), DelayLine::new());
    let Verdict::Deliver(at) = wire.admit(Instant(0), 1000) else { panic!("dropped") };
    line.push(at, ());
    for (now, delay_ns) in [(10 * MS, 0), (20 * MS, 5 * MS)] {
        let slower = Impairment { rate_bps: 8000, ..params(delay_ns) };
        line.retime(&wire.reconfigure(Instant(now), slower).unwrap());
        assert_eq!(line.next_due(), Some(Instant(1001 * MS)));
    }
}

#[test]
fn lifting_the_rate_empties_the_queue_at_once() {
    let (mut wire, mut line) = (impair(Impairment { rate_bps: 8000, ..Impairment::default() }), DelayLine::new());
    for i in 0..3 {
        let Verdict::Deliver(at) = wire.admit(Instant(0), 1000) else { panic!("dropped") };
        line.push(at, i);
    }
    let change = wire.reconfigure(Instant(MS), Impairment::default()).unwrap();
    line.retime(&change);
    assert_eq!((line.len(), line.next_due()), (3, Some(Instant(MS))));
    assert_eq!(line.drain().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn delay_line_sorts_what_comes_out_of_order_and_keeps_ties() {
    let mut line = DelayLine::new();
    for (at, name) in [(5, 'a'), (9, 'b'), (5, 'c'), (1, 'd'), (9, 'e')] {
        line.push(Instant(at), name);
    }
    assert_eq!(line.front(), Some(&'d'));
    assert_eq!(line.pop_due(Instant(0)), None);
    let order: Vec<_> = core::iter::from_fn(|| line.pop_due(Instant(5))).map(|(_, c)| c).collect();
    assert_eq!(order, ['d', 'a', 'c']);
    assert_eq!((line.next_due(), line.is_empty()), (Some(Instant(9)), false));
}

prop_compose! {
    fn params()(
        delay_ns in prop_oneof![Just(0u64), 0..50 * MS], loss in prop_oneof![Just(0.0), 0.0..=1.0f64],
        rate_bps in prop_oneof![Just(0u64), 8_000..100_000_000_000u64, Just(u64::MAX)], limit_octets in prop_oneof![Just(0u64), 1..200_000u64],
    ) -> Impairment {
        Impairment { delay_ns, rate_bps, loss, limit_octets }
    }
}

proptest! {
    #[test]
    fn busy_wire_runs_at_its_rate_exactly(
        rate in 1_000u64..400_000_000_000, frames in prop::collection::vec(84u64..9100, 1..300),
    ) {
        let mut wire = impair(Impairment { rate_bps: rate, limit_octets: u64::MAX, ..Impairment::default() });
        let mut total = 0u128;
        for octets in frames {
            total += u128::from(octets);
            let exact = total * 8_000_000_000 / u128::from(rate);
            prop_assert_eq!(wire.admit(Instant(0), octets), Verdict::Deliver(Instant(exact as u64)));
        }
    }

    #[test]
    fn no_window_carries_more_than_the_rate(
        rate in 1_000_000u64..10_000_000_000, arrivals in prop::collection::vec((0u64..200_000, 84u64..1538), 2..200), limit in 2_000u64..50_000,
    ) {
        let mut wire = impair(Impairment { rate_bps: rate, limit_octets: limit, ..Impairment::default() });
        let (mut now, mut sent) = (Instant(0), Vec::new());
        for (gap, octets) in arrivals {
            now = now.plus_nanos(gap);
            let before = wire.backlog(now);
            match wire.admit(now, octets) {
                Verdict::Deliver(at) => {
                    prop_assert!(before == 0 || before + octets <= limit);
                    prop_assert!(at.nanos_since(now) + 1 >= octets * 8_000_000_000 / rate);
                    sent.push((at, octets));
                }
                Verdict::Drop(reason) => {
                    prop_assert_eq!(reason, DropReason::Overlimit);
                    prop_assert!(before + octets > limit);
                }
            }
        }
        for i in 0..sent.len() {
            let mut octets = 0;
            for j in i + 1..sent.len() {
                octets += sent[j].1;
                prop_assert!(sent[j].0.nanos_since(sent[i].0) + 1 >= octets * 8_000_000_000 / rate);
            }
        }
    }

    #[test]
    fn loss_is_as_frequent_as_asked(loss in 0.001f64..0.999, seed in any::<u64>()) {
        const N: f64 = 20_000.0;
        let lost = losses(seed, Impairment { loss, ..Impairment::default() }, N as u64).iter().filter(|l| **l).count() as f64;
        let sigma = (N * loss * (1.0 - loss)).sqrt();
        prop_assert!((lost - N * loss).abs() < 6.0 * sigma, "{lost} of {N} at {loss}");
    }

    #[test]
    fn order_holds_and_replays_whatever_changes(
        first in params(), seed in any::<u64>(),
        steps in prop::collection::vec((0u64..5 * MS, prop_oneof![8 => (84u64..9100).prop_map(Ok), 1 => params().prop_map(Err)]), 1..200),
    ) {
        let run = || {
            let (mut wire, mut line) = (Impair::new(first, seed).unwrap(), DelayLine::new());
            let (mut now, mut out, mut count) = (Instant(0), Vec::new(), 0u32);
            for (gap, step) in &steps {
                now = now.plus_nanos(*gap);
                while let Some((at, n)) = line.pop_due(now) {
                    out.push((at, n));
                }
                match step {
                    Ok(octets) => {
                        if let Verdict::Deliver(at) = wire.admit(now, *octets) {
                            assert!(at >= now);
                            line.push(at, count);
                            count += 1;
                        }
                    }
                    Err(params) => line.retime(&wire.reconfigure(now, *params).unwrap()),
                }
            }
            out.extend(core::iter::from_fn(|| line.pop_due(Instant(u64::MAX))));
            (out, count)
        };
        let (out, count) = run();
        prop_assert_eq!(out.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        prop_assert!(out.windows(2).all(|w| w[0].0 <= w[1].0));
        prop_assert_eq!(run(), (out, count));
    }
}
