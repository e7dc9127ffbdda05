//! Packets against a plain vector of octets.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;
use ringlab_ring::memory::{Region, checksum_add};

/// What may be done to a packet.
#[derive(Debug, Clone)]
enum Op {
    Append(Vec<u8>),
    Put(Vec<u8>),
    Push(Vec<u8>),
    PushHead,
    Pull(u32),
    Unpull(u32),
    Trim(u32),
    Store(u32, Vec<u8>),
    SplitCoalesce(u32),
    Clone,
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        bytes().prop_map(Op::Append),
        bytes().prop_map(Op::Put),
        bytes().prop_map(Op::Push),
        Just(Op::PushHead),
        (0u32..150).prop_map(Op::Pull),
        (0u32..150).prop_map(Op::Unpull),
        (0u32..400).prop_map(Op::Trim),
        (0u32..200, bytes()).prop_map(|(at, b)| Op::Store(at, b)),
        (0u32..300).prop_map(Op::SplitCoalesce),
        Just(Op::Clone),
    ]
}

fn octets(skb: &SkBuff) -> Vec<u8> {
    let mut all = alloc::vec![0; skb.len() as usize];
    skb.copy_bits(0, &mut all).expect("all of it");
    all
}

/// Does `op` to the packet and to the model; `back` holds what was pulled and can be had again.
fn apply(op: Op, pool: &Pool, skb: &mut Box<SkBuff>, model: &mut Vec<u8>, back: &mut Vec<u8>) {
    match op {
        Op::Append(b) => {
            let buf = pool.alloc(b.len() as u32 + 10).expect("pool is large");
            buf.slice(10, b.len() as u32).write(&b);
            if skb.append(Frag { buf, off: 10, len: b.len() as u32 }) {
                model.extend(b);
            }
        }
        Op::Put(b) if skb.tailroom() >= b.len() as u32 => {
            skb.put_bytes(&b);
            model.extend(b);
        }
        Op::Push(b) if skb.headroom() >= b.len() as u32 && !b.is_empty() => {
            skb.push(&b);
            model.splice(0..0, b);
            back.clear();
        }
        Op::PushHead => {
            // What lay in front of the old head is out of reach behind the new one.
            if skb.push_head(pool, 60) {
                back.clear();
            }
        }
        Op::Pull(n) => match skb.pull(n) {
            Ok(()) => {
                back.extend(model.drain(..n as usize));
                let reach = (skb.network_back as usize).min(back.len());
                back.drain(..back.len() - reach);
            }
            Err(Short) => assert!(n as usize > model.len()),
        },
        Op::Unpull(n) if n <= skb.network_back && n as usize <= back.len() => {
            assert!(skb.unpull(n), "network_back says that they are there");
            let tail = back.split_off(back.len() - n as usize);
            model.splice(0..0, tail);
        }
        Op::Trim(n) => {
            skb.trim(n);
            model.truncate(n as usize);
        }
        Op::Store(at, b) => match skb.store_bits(at, &b) {
            Ok(()) => model[at as usize..at as usize + b.len()].copy_from_slice(&b),
            Err(Short) => assert!(at as usize + b.len() > model.len()),
        },
        Op::SplitCoalesce(at) => {
            let mut tail = SkBuff::new();
            skb.split_into(at, &mut tail);
            let cut = (at as usize).min(model.len());
            assert_eq!(octets(skb), model[..cut]);
            assert_eq!(octets(&tail), model[cut..]);
            assert!(skb.coalesce(&mut tail), "it was one packet before");
        }
        Op::Clone => {
            let clone = skb.clone_into(SkBuff::new());
            assert!(octets(&clone) == *model && clone.network_back == skb.network_back);
            let mut shared = SkBuff::new();
            skb.share_into(3, 40, &mut shared);
            let (from, to) = (3.min(model.len()), 43.min(model.len()));
            assert_eq!(octets(&shared), model[from..to]);
        }
        Op::Put(_) | Op::Push(_) | Op::Unpull(_) => {}
    }
}

proptest! {
    #[test]
    fn packet_holds_what_a_vector_would(ops in prop::collection::vec(op(), 0..40)) {
        let pool = Pool::new(Region::heap(1 << 20), 0, 1 << 20);
        let mut skb = SkBuff::new();
        prop_assert!(skb.alloc_head(&pool, 64, 200));
        let (mut model, mut back) = (Vec::new(), Vec::new());
        for op in ops {
            apply(op.clone(), &pool, &mut skb, &mut model, &mut back);
            prop_assert_eq!(octets(&skb), &model[..], "after {:?}", op);
            prop_assert_eq!(skb.frags().iter().map(|f| f.len).sum::<u32>(), skb.len());
            prop_assert_eq!(skb.checksum(0, skb.len(), 0), fold(checksum_add(&model, 0)));
        }
        drop(skb);
        prop_assert_eq!(pool.in_use(), 0);
    }
}

#[test]
fn used_packet_comes_back_empty() {
    let mut cache = SkbCache::default();
    let pool = Pool::new(Region::heap(1 << 16), 0, 1 << 16);
    let mut skb = cache.get();
    assert!(skb.alloc_head(&pool, 10, 10));
    skb.put_bytes(b"x");
    (skb.dev, skb.owner, skb.truesize, skb.hash, skb.mc_loop_off) = (1, 2, 3, 4, true);
    (skb.gso, skb.csum) = (Some(Gso { size: 1, segs: 2, ecn: false }), Checksum::Unnecessary);
    skb.tcp.sacked = 9;
    skb.ip.ttl = 9;
    cache.put(skb);
    let skb = cache.get();
    assert_eq!((skb.id, skb.len(), skb.frags().len()), (2, 0, 0));
    assert_eq!((skb.dev, skb.owner, skb.truesize, skb.hash, skb.mc_loop_off), (0, 0, 0, 0, false));
    assert_eq!((skb.gso, skb.csum, skb.tcp.sacked, skb.ip.ttl), (None, Checksum::None, 0, 0));
    assert_eq!(pool.in_use(), 0);
}
