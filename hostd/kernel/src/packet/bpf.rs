//! Classic BPF: what `SO_ATTACH_FILTER` takes (Linux `bpf_check_classic`, and the meaning of each instruction).
//!
//! A program is checked once: jumps go forward and stay inside, nothing divides by a constant zero,
//! scratch memory is written before it is read on every path, and the last instruction returns.
//! So it always ends. Its result is how many octets of the packet to keep; 0 drops it.

use crate::errno::Errno;
use crate::skb::{PacketType, SkBuff};
use crate::syscall::abi::octets;
use alloc::vec::Vec;

/// Most instructions (`BPF_MAXINSNS`).
const MAX_INSNS: usize = 4096;
/// Words of scratch memory.
const MEMWORDS: usize = 16;
/// Octets of an instruction.
const INSN_LEN: usize = 8;

/// Loads from here on are not of the packet but about it (`SKF_AD_OFF`).
const AD_OFF: u32 = 0xffff_f000;
/// Loads relative to the network header (`SKF_NET_OFF`) and the link-layer header (`SKF_LL_OFF`).
const NET_OFF: u32 = 0xfff0_0000;
const LL_OFF: u32 = 0xffe0_0000;

/// `SKF_AD_*`.
mod ad {
    pub(super) const PROTOCOL: u32 = 0;
    pub(super) const PKTTYPE: u32 = 4;
    pub(super) const IFINDEX: u32 = 8;
    pub(super) const MARK: u32 = 20;
    pub(super) const QUEUE: u32 = 24;
    pub(super) const HATYPE: u32 = 28;
    pub(super) const RXHASH: u32 = 32;
    pub(super) const CPU: u32 = 36;
    pub(super) const ALU_XOR_X: u32 = 40;
    pub(super) const VLAN_TAG: u32 = 44;
    pub(super) const VLAN_TAG_PRESENT: u32 = 48;
    pub(super) const PAY_OFFSET: u32 = 52;
    pub(super) const RANDOM: u32 = 56;
    pub(super) const VLAN_TPID: u32 = 60;
}

/// An instruction (Linux `struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// A checked program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    insns: Vec<Insn>,
}

/// What a program may ask about a packet beside its octets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context {
    /// Where the network header lies, from the packet's start.
    pub net_off: u32,
    /// `ARPHRD_*` of the device.
    pub hatype: u16,
    /// CPU that runs it.
    pub cpu: u16,
    /// A random number.
    pub random: u32,
}

impl Program {
    /// Takes and checks a program, eight octets an instruction.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn load(code: &[u8]) -> Result<Self, Errno> {
        if code.is_empty() || !code.len().is_multiple_of(INSN_LEN) || code.len() / INSN_LEN > MAX_INSNS {
            return Err(Errno::EINVAL);
        }
        let insns = code.chunks_exact(INSN_LEN).map(|b| Insn {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: octets(b, 4).map_or(0, u32::from_ne_bytes),
        });
        let program = Self { insns: insns.collect() };
        program.check().then_some(program).ok_or(Errno::EINVAL)
    }

    /// The program as it was loaded.
    pub fn octets(&self) -> Vec<u8> {
        let insn = |i: &Insn| {
            let [a, b] = i.code.to_ne_bytes();
            let [c, d, e, f] = i.k.to_ne_bytes();
            [a, b, i.jt, i.jf, c, d, e, f]
        };
        self.insns.iter().flat_map(insn).collect()
    }

    fn check(&self) -> bool {
        let len = self.insns.len();
        let ok = self.insns.iter().enumerate().all(|(pc, i)| {
            known(i.code)
                && match i.code {
                    // ALU | DIV or MOD | K.
                    0x34 | 0x94 => i.k != 0,
                    // ALU | LSH or RSH | K.
                    0x64 | 0x74 => i.k < 32,
                    // Scratch memory.
                    0x60 | 0x61 | 0x02 | 0x03 => (i.k as usize) < MEMWORDS,
                    0x05 => (i.k as usize) < len - pc - 1,
                    c if c & 7 == 5 => pc + usize::from(i.jt.max(i.jf)) + 1 < len,
                    // Ancillary data that there is.
                    0x20 | 0x28 | 0x30 if i.k >= AD_OFF => ancillary(i.k - AD_OFF),
                    _ => true,
                }
        });
        ok && matches!(self.insns[len - 1].code, 0x06 | 0x16) && self.check_scratch()
    }

    /// No word of scratch memory is read before it is written, whatever way leads there (Linux
    /// `check_load_and_stores`).
    fn check_scratch(&self) -> bool {
        let len = self.insns.len();
        let mut masks = alloc::vec![u16::MAX; len];
        let mut valid = 0u16;
        for (pc, i) in self.insns.iter().enumerate() {
            valid &= masks[pc];
            match i.code {
                0x02 | 0x03 => valid |= 1 << i.k,
                0x60 | 0x61 if valid >> i.k & 1 == 0 => return false,
                0x05 => {
                    masks[pc + 1 + i.k as usize] &= valid;
                    valid = u16::MAX;
                }
                c if c & 7 == 5 => {
                    masks[pc + 1 + usize::from(i.jt)] &= valid;
                    masks[pc + 1 + usize::from(i.jf)] &= valid;
                    valid = u16::MAX;
                }
                _ => {}
            }
        }
        true
    }

    /// Octets of the packet to keep. A load beyond its end drops it.
    pub fn run(&self, skb: &SkBuff, cx: &Context) -> u32 {
        let (mut a, mut x, mut mem) = (0u32, 0u32, [0u32; MEMWORDS]);
        let mut pc = 0;
        while let Some(&i) = self.insns.get(pc) {
            pc += 1;
            let operand = if i.code & 8 != 0 { x } else { i.k };
            match i.code & 7 {
                0 | 1 => {
                    let value = match i.code {
                        0x00 | 0x01 => Some(i.k),
                        0x60 | 0x61 => Some(mem[i.k as usize & (MEMWORDS - 1)]),
                        0x80 | 0x81 => Some(skb.len()),
                        0xb1 => load(skb, cx, i.k, 1).map(|n| (n & 15) * 4),
                        // LD | IND.
                        c if c & 0xe0 == 0x40 => load(skb, cx, x.wrapping_add(i.k), width(c)),
                        0x20 | 0x28 | 0x30 if i.k >= AD_OFF => about(skb, cx, i.k - AD_OFF, a, x),
                        c => load(skb, cx, i.k, width(c)),
                    };
                    let Some(value) = value else { return 0 };
                    if i.code & 7 == 0 { a = value } else { x = value }
                }
                2 => mem[i.k as usize & (MEMWORDS - 1)] = a,
                3 => mem[i.k as usize & (MEMWORDS - 1)] = x,
                4 => match alu(i.code & 0xf0, a, operand) {
                    Some(value) => a = value,
                    None => return 0,
                },
                5 => {
                    let taken = match i.code & 0xf0 {
                        0x00 => {
                            pc += i.k as usize;
                            continue;
                        }
                        0x10 => a == operand,
                        0x20 => a > operand,
                        0x30 => a >= operand,
                        _ => a & operand != 0,
                    };
                    pc += usize::from(if taken { i.jt } else { i.jf });
                }
                6 => return if i.code & 0x18 == 0x10 { a } else { i.k },
                _ if i.code == 0x07 => x = a,
                _ => a = x,
            }
        }
        0
    }
}

fn alu(op: u16, a: u32, b: u32) -> Option<u32> {
    Some(match op {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.wrapping_shl(b),
        0x70 => a.wrapping_shr(b),
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(b)?,
        _ => a ^ b,
    })
}

fn width(code: u16) -> u32 {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        _ => 1,
    }
}

/// An octet, half word or word of the packet, network order.
fn load(skb: &SkBuff, cx: &Context, k: u32, width: u32) -> Option<u32> {
    let at = match k {
        k if k < 1 << 31 => k,
        k if k >= NET_OFF => cx.net_off + (k - NET_OFF),
        k if k >= LL_OFF && cx.net_off > 0 => k - LL_OFF,
        _ => return None,
    };
    let mut b = [0; 4];
    skb.copy_bits(at, &mut b[4 - width as usize..]).ok()?;
    Some(u32::from_be_bytes(b))
}

fn ancillary(what: u32) -> bool {
    // Netlink attributes, which no network packet has, are left out.
    matches!(
        what,
        ad::PROTOCOL
            | ad::PKTTYPE
            | ad::IFINDEX
            | ad::MARK
            | ad::QUEUE
            | ad::HATYPE
            | ad::RXHASH
            | ad::CPU
            | ad::ALU_XOR_X
            | ad::VLAN_TAG
            | ad::VLAN_TAG_PRESENT
            | ad::PAY_OFFSET
            | ad::RANDOM
            | ad::VLAN_TPID
    )
}

fn about(skb: &SkBuff, cx: &Context, what: u32, a: u32, x: u32) -> Option<u32> {
    Some(match what {
        ad::PROTOCOL => skb.protocol.into(),
        ad::PKTTYPE => pkt_type(skb.pkt_type).into(),
        ad::IFINDEX if skb.dev == 0 => return None,
        ad::IFINDEX => skb.dev,
        ad::QUEUE => skb.queue.into(),
        ad::HATYPE => cx.hatype.into(),
        ad::RXHASH => skb.hash,
        ad::CPU => cx.cpu.into(),
        ad::ALU_XOR_X => a ^ x,
        ad::RANDOM => cx.random,
        // No marks, no VLAN, and no dissector: the payload is taken to begin with the packet.
        _ => 0,
    })
}

/// `PACKET_*`.
pub(crate) fn pkt_type(kind: PacketType) -> u8 {
    match kind {
        PacketType::Host => 0,
        PacketType::Broadcast => 1,
        PacketType::Multicast => 2,
        PacketType::OtherHost => 3,
        PacketType::Outgoing => 4,
        PacketType::Loopback => 5,
    }
}

/// Instructions that exist (Linux `chk_code_allowed`).
fn known(code: u16) -> bool {
    match code & 7 {
        // LD: IMM, ABS W/H/B, IND W/H/B, MEM, LEN.
        0 => matches!(code, 0x00 | 0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 | 0x60 | 0x80),
        // LDX: IMM, MEM, LEN, MSH.
        1 => matches!(code, 0x01 | 0x61 | 0x81 | 0xb1),
        2 => code == 0x02,
        3 => code == 0x03,
        // ALU: every operation with K and X; NEG has none.
        4 => code == 0x84 || code & !0xf8 == 4 && code & 0xf0 <= 0xa0 && code & 0xf0 != 0x80,
        // JMP: JA; JEQ, JGT, JGE, JSET with K and X.
        5 => code == 0x05 || code & !0xf8 == 5 && (0x10..=0x40).contains(&(code & 0xf0)),
        6 => matches!(code, 0x06 | 0x16),
        _ => matches!(code, 0x07 | 0x87),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ringlab_ring::memory::Region;
    use ringlab_ring::pool::Pool;

    fn packet(octets: &[u8]) -> alloc::boxed::Box<SkBuff> {
        let pool = Pool::new(Region::heap(1 << 17), 0, 1 << 17);
        let mut skb = SkBuff::new();
        assert!(skb.alloc_head(&pool, 0, octets.len() as u32));
        skb.put_bytes(octets);
        skb
    }

    fn code(insns: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let insns = insns.iter().map(|&(code, jt, jf, k)| Insn { code, jt, jf, k }).collect();
        Program { insns }.octets()
    }

    /// `tcpdump -dd icmp` on Ethernet.
    const ICMP: [(u16, u8, u8, u32); 6] =
        [(0x28, 0, 0, 12), (0x15, 0, 3, 0x800), (0x30, 0, 0, 23), (0x15, 0, 1, 1), (0x06, 0, 0, 262_144), (0x06, 0, 0, 0)];

    #[test]
    fn tcpdumps_filter_selects_its_packets() {
        let program = Program::load(&code(&ICMP)).expect("a good program");
        let mut frame = [0u8; 60];
        frame[12] = 8;
        frame[23] = 1;
        assert_eq!(program.run(&packet(&frame), &Context::default()), 262_144);
        frame[23] = 17;
        assert_eq!(program.run(&packet(&frame), &Context::default()), 0);
        assert_eq!(program.run(&packet(&frame[..13]), &Context::default()), 0, "too short");
    }

    #[test]
    fn header_length_memory_and_arithmetic() {
        let insns = [(0xb1, 0, 0, 0), (0x48, 0, 0, 2), (0x02, 0, 0, 3), (0x60, 0, 0, 3), (0x34, 0, 0, 2), (0x16, 0, 0, 0)];
        let program = Program::load(&code(&insns)).expect("a good program");
        let mut b = [0u8; 30];
        b[0] = 0x45;
        b[22..24].copy_from_slice(&800u16.to_be_bytes());
        assert_eq!(program.run(&packet(&b), &Context::default()), 400);
        let network = [(0x20, 0, 0, NET_OFF), (0x16, 0, 0, 0)];
        let program = Program::load(&code(&network)).expect("a good program");
        assert_eq!(program.run(&packet(&b), &Context { net_off: 20, ..Context::default() }), 800);
    }

    #[test]
    fn bad_programs_are_refused() {
        let ret = (0x06, 0, 0, 1);
        for bad in [
            &[][..],
            &[(0x20, 0, 0, 0)],
            &[(0x05, 0, 0, 1), ret],
            &[(0x15, 1, 0, 1), ret],
            &[(0x34, 0, 0, 0), ret],
            &[(0x64, 0, 0, 32), ret],
            &[(0x60, 0, 0, 0), ret],
            &[(0x02, 0, 0, 16), ret],
            &[(0xff, 0, 0, 0), ret],
            &[(0x20, 0, 0, AD_OFF + 2), ret],
            &[(0x15, 0, 1, 1), (0x02, 0, 0, 0), (0x60, 0, 0, 0), ret],
        ] {
            assert_eq!(Program::load(&code(bad)), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(Program::load(&[6, 0, 0, 0, 1, 0, 0]), Err(Errno::EINVAL));
        assert!(Program::load(&code(&[(0x06, 0, 0, 1); 4097])).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_ends(insns in proptest::collection::vec((0u16..0x100, 0u8..4, 0u8..4, prop_oneof![0u32..70, any::<u32>()]), 1..20), octets: Vec<u8>) {
            let mut insns = insns;
            insns.push((0x06, 0, 0, 7));
            let bytes = code(&insns);
            if let Ok(program) = Program::load(&bytes) {
                prop_assert_eq!(program.octets(), bytes);
                program.run(&packet(&octets), &Context::default());
            }
        }
    }
}
