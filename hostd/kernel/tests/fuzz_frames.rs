//! Whatever arrives, the host neither panics nor loses count: each frame is consumed, merged or dropped for a
//! reason, and no buffer stays behind.

mod common;

use common::tasks::Prog;
use common::{Dir, Frame, HostConfig, Lab, Path, PortConfig};
use proptest::prelude::*;
use ringlab_counters::Netdev;
use ringlab_kernel::dev::net_device::{Features, MacAddr};
use ringlab_kernel::trace::Point;
use ringlab_ring::vnet::VnetHdr;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

const TESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0]);

/// Well-formed frames of all kinds that the host knows.
fn valid() -> impl Strategy<Value = Frame> {
    let dst = prop_oneof![
        4 => Just(Ipv4Addr::new(10, 0, 0, 1)),
        2 => Just(Ipv4Addr::new(10, 0, 1, 9)),
        1 => Just(Ipv4Addr::new(10, 0, 0, 255)),
        1 => Just(Ipv4Addr::new(224, 0, 0, 251)),
        1 => any::<u32>().prop_map(Ipv4Addr::from_bits),
    ];
    let payload = prop_oneof![prop::collection::vec(any::<u8>(), 0..64), (0usize..6000).prop_map(|n| vec![7; n])];
    (dst, payload, any::<(u16, u16, u32, bool)>(), 0u8..6).prop_map(|(dst, payload, (a, b, c, flag), kind)| {
        let path = Path { src: TESTER, dst, dst_mac: HOST_MAC };
        match kind {
            0 => path.echo(a, b, &payload),
            1 => path.udp(a, if flag { 7 } else { b }, &payload),
            2 if flag => {
                // Any flags and window; the device vouches for the checksum.
                let mut frame = path.tcp(a, c, false, &payload);
                frame.bytes[47] = b as u8;
                frame.bytes[48] = (b >> 8) as u8;
                frame.hdr.flags = 2;
                frame
            }
            2 => path.tcp(a, c, flag, &payload),
            3 => path.fragment(a % 3, [1, 6, 17, 200][usize::from(b % 4)], (b % 512) * 8, flag, &payload[..payload.len().min(1480)]),
            4 => {
                let mut data = vec![[3, 11, 12, 5, 13, 0][usize::from(a % 6)], (b % 16) as u8, 0, 0, 0, 0, (c >> 8) as u8, c as u8];
                data.extend(&Path { src: path.dst, dst: TESTER, ..path }.udp(a, b, b"quoted octets").bytes[14..]);
                let sum = !ringlab_ring::memory::fold(ringlab_ring::memory::checksum_add(&data, 0));
                data[2..4].copy_from_slice(&sum.to_be_bytes());
                path.fragment(a, 1, 0, false, &data)
            }
            _ => {
                let mut bytes = [HOST_MAC.0, common::TEST_MAC.0].concat();
                bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + (a % 3) as u8]);
                bytes.extend(common::TEST_MAC.0);
                bytes.extend(if flag { TESTER.octets() } else { c.to_be_bytes() });
                bytes.extend([0; 6]);
                bytes.extend(path.dst.octets());
                bytes.into()
            }
        }
    })
}

fn vnet() -> impl Strategy<Value = VnetHdr> {
    let near = prop_oneof![0u16..80, any::<u16>()];
    (0u8..4, prop_oneof![Just(0u8), Just(1), Just(0x81), any::<u8>()], near.clone(), near.clone(), near.clone(), near).prop_map(
        |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| VnetHdr {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start: if csum_start % 2 == 0 { 34 } else { csum_start },
            csum_offset: if csum_offset % 2 == 0 { 16 } else { csum_offset },
            num_buffers: 1,
        },
    )
}

/// A valid frame, changed here and there, cut, or with a virtio header that lies; or noise.
fn hostile() -> impl Strategy<Value = Frame> {
    let flips = prop::collection::vec((0usize..80, any::<u8>()), 0..4);
    let mutated = (valid(), flips, prop::option::weighted(0.2, 0usize..120), prop::option::weighted(0.3, vnet())).prop_map(
        |(mut frame, flips, cut, hdr)| {
            for (at, value) in flips {
                if let Some(b) = frame.bytes.get_mut(at) {
                    *b = value;
                }
            }
            if let Some(cut) = cut {
                frame.bytes.truncate(cut);
            }
            if let Some(hdr) = hdr {
                frame.hdr = hdr;
            }
            // Mostly with a right header checksum, or nothing would get past it.
            let len = frame.bytes.get(14).map_or(0, |b| usize::from(b & 15) * 4);
            if len >= 20 && frame.bytes.len() >= 14 + len && frame.bytes[14] % 16 != 7 {
                frame.bytes[24..26].fill(0);
                let sum = !ringlab_ring::memory::fold(ringlab_ring::memory::checksum_add(&frame.bytes[14..14 + len], 0));
                frame.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            frame
        },
    );
    let noise = (prop::collection::vec(any::<u8>(), 0..200), vnet()).prop_map(|(bytes, hdr)| Frame { hdr, bytes });
    prop_oneof![8 => mutated, 1 => noise]
}

fn check(frames: Vec<Frame>, answers: bool, features: Features, step: u64) -> Result<(), TestCaseError> {
    let mut lab = Lab::new(11);
    lab.add_host(HostConfig { ip_forward: true, cpus: 2, pool: 32 << 20, ..HostConfig::default() });
    let port = PortConfig { features, mtu: 1400, ..PortConfig::default() };
    lab.stub(0, Ipv4Addr::new(10, 0, 0, 1), 24, PortConfig { queues: 2, ..PortConfig::default() });
    lab.stub(0, Ipv4Addr::new(10, 0, 1, 1), 24, port);
    let prog = Prog::spawn(&mut lab, 0, "server");
    prog.listener(&mut lab, 2000, 4);
    prog.udp(&mut lab, 7);
    lab.trace(0);
    for frame in frames {
        lab.inject(0, Dir::Backward, frame);
        lab.run_for(Duration::from_micros(step));
        if answers {
            lab.answer_arp(0);
            lab.answer_arp(1);
        }
    }
    lab.run_for(Duration::from_secs(200));
    lab.hosts[0].kernel.exit(prog.task);
    lab.run_for(Duration::from_secs(200));
    // The last completions are reaped when the next poll of each queue comes: frames for somebody else.
    for i in 0..16 {
        let path = Path { src: Ipv4Addr::new(10, 0, 0, i), dst: TESTER, dst_mac: MacAddr([2; 6]) };
        lab.inject(0, Dir::Backward, path.udp(1, 1, b""));
        lab.inject(1, Dir::Backward, path.udp(1, 1, b""));
    }
    lab.run_for(Duration::from_millis(1));
    let stats = lab.hosts[0].kernel.stats();
    prop_assert_eq!(stats.interfaces[1].counters.get(Netdev::RxPackets), lab.count(0, Dir::Backward, |_| true) as u64);
    let trace = lab.take_trace(0);
    let mut open = BTreeSet::new();
    for r in &trace {
        match r.point {
            Point::RxDma => drop(open.insert(r.skb)),
            Point::ConsumeSkb | Point::KfreeSkb => drop(open.remove(&r.skb)),
            Point::GroReceive if r.args[1] == 1 => drop(open.remove(&r.skb)),
            _ => {}
        }
    }
    prop_assert!(open.is_empty(), "packets {open:?} were neither consumed nor dropped");
    prop_assert_eq!(stats.drops.iter().map(|d| d.1).sum::<u64>(), trace.iter().filter(|r| r.point == Point::KfreeSkb).count() as u64);
    prop_assert_eq!(lab.hosts[0].pool.in_use(), 0, "a buffer stayed behind");
    Ok(())
}

fn features() -> impl Strategy<Value = Features> {
    any::<(bool, bool)>().prop_map(|(offload, sg)| Features { tx_csum: offload, tso: offload && sg, sg })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn hostile_frames_are_delivered_or_counted(
        frames in prop::collection::vec(hostile(), 1..60), answers: bool, features in features(), step in prop_oneof![Just(0u64), 0u64..100_000],
    ) {
        check(frames, answers, features, step)?;
    }

    #[test]
    fn valid_frames_are_delivered_or_counted(
        frames in prop::collection::vec(valid(), 1..60), answers: bool, features in features(), step in prop_oneof![Just(0u64), 0u64..100_000],
    ) {
        check(frames, answers, features, step)?;
    }
}
