//! Signals that the network raises: `SIGIO`, `SIGURG`, `SIGPIPE`.
//!
//! The kernel model does not deliver signals: it says by [`crate::Effect::Signal`]
//! who gets which, and whoever runs the program raises it there. Owners are numbers
//! of the program's own processes, as it passed them to `F_SETOWN`.

use super::Fd;
use crate::cpu::sched::TaskId;

/// `SIGPIPE`.
pub const SIGPIPE: i32 = 13;
/// `SIGURG`.
pub const SIGURG: i32 = 23;
/// `SIGIO`.
pub const SIGIO: i32 = 29;
/// `si_code` of a signal that the kernel sends.
pub const SI_KERNEL: i32 = 0x80;

/// Who owns a file (`F_SETOWN`): gets `SIGIO` and `SIGURG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A thread (`F_OWNER_TID`).
    Thread(i32),
    /// A process (`F_OWNER_PID`).
    Process(i32),
    /// A process group (`F_OWNER_PGRP`).
    Group(i32),
}

impl Owner {
    /// As `F_SETOWN` and `FIOSETOWN` number it: negative is a group, 0 nobody.
    pub fn from_setown(n: i32) -> Option<Self> {
        match n {
            0 => None,
            n if n < 0 => Some(Self::Group(n.wrapping_neg())),
            n => Some(Self::Process(n)),
        }
    }

    /// As `F_GETOWN` numbers it.
    pub fn as_getown(self) -> i32 {
        match self {
            Self::Thread(n) | Self::Process(n) => n,
            Self::Group(n) => -n,
        }
    }
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTo {
    /// The task whose call raised it.
    Task(TaskId),
    /// A file's owner.
    Owner(Owner),
}

/// A signal with its `siginfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Who gets it.
    pub to: SignalTo,
    /// Number.
    pub signo: i32,
    /// `si_code`: `POLL_IN` (1), `POLL_OUT` (2), `POLL_ERR` (4), `POLL_PRI` (5), `POLL_HUP` (6), or [`SI_KERNEL`].
    pub code: i32,
    /// `si_band`; 0 with [`SI_KERNEL`].
    pub band: u32,
    /// `si_fd`: the descriptor on which `O_ASYNC` was set.
    pub fd: Fd,
}

/// Why a file's owner gets `SIGIO` (Linux `POLL_*` of `siginfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Band {
    In = 1,
    Out = 2,
    Err = 4,
    Pri = 5,
    Hup = 6,
}

impl Band {
    /// `si_band` (Linux `band_table`).
    pub(crate) fn events(self) -> u32 {
        match self {
            Band::In => 0x41,
            Band::Out => 0x304,
            Band::Err => 0x08,
            Band::Pri => 0x82,
            Band::Hup => 0x18,
        }
    }
}
