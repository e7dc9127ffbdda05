//! A small assembler for classic BPF, as seccomp runs it over `struct seccomp_data`.

/// One instruction (Linux `struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Offset of the call's number in `struct seccomp_data`.
pub const NR: u32 = 0;
/// Offset of the architecture.
pub const ARCH: u32 = 4;

/// Offset of the lower half of the address behind the call's instruction.
pub const IP_LOW: u32 = 8;
/// Offset of its upper half.
pub const IP_HIGH: u32 = 12;

/// Offset of the lower half of an argument.
pub const fn arg(index: u32) -> u32 {
    16 + 8 * index
}

const LD_W_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const AND: u16 = 0x54;
const RET: u16 = 0x06;

/// Loads a word of `struct seccomp_data`.
pub const fn load(offset: u32) -> Insn {
    Insn { code: LD_W_ABS, jt: 0, jf: 0, k: offset }
}

/// Keeps the bits of `k`.
pub const fn and(k: u32) -> Insn {
    Insn { code: AND, jt: 0, jf: 0, k }
}

/// Ends the program.
pub const fn ret(action: u32) -> Insn {
    Insn { code: RET, jt: 0, jf: 0, k: action }
}

/// Skips `jt` instructions if the accumulator equals `k`, else `jf`.
pub const fn jeq(k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code: JEQ, jt, jf, k }
}

/// Skips `jt` instructions if the accumulator is at least `k`, else `jf`.
pub const fn jge(k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code: JGE, jt, jf, k }
}

/// Skips `jt` instructions if the accumulator has a bit of `k`, else `jf`.
pub const fn jset(k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code: JSET, jt, jf, k }
}

/// Runs a program as the kernel would; `None` if it is malformed. For tests of what a filter decides.
#[cfg(test)]
pub fn run(program: &[Insn], data: &[u8; 64]) -> Option<u32> {
    let mut acc = 0u32;
    let mut pc = 0;
    loop {
        let i = *program.get(pc)?;
        pc += 1;
        let skip = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
        match i.code {
            LD_W_ABS => acc = u32::from_ne_bytes(data.get(i.k as usize..i.k as usize + 4)?.try_into().ok()?),
            AND => acc &= i.k,
            JEQ => pc += skip(acc == i.k),
            JGE => pc += skip(acc >= i.k),
            JSET => pc += skip(acc & i.k != 0),
            RET => return Some(i.k),
            _ => return None,
        }
    }
}
