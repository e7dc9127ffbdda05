//! `ioctl` on sockets: which there are, and how large their arguments are.
//!
//! The table is for whoever has the program's memory at hand: it copies the
//! argument in, makes [`super::Call::Ioctl`], and copies what comes back out. What
//! each does stands in `vfs/ifioctl.rs` and `vfs/ethtool.rs`.

/// What the argument of an `ioctl` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// So many octets at the address.
    Fixed(usize),
    /// `struct ifconf`: [`super::Call::IfConf`].
    IfConf,
    /// `struct ifreq` whose `ifr_data` points to an ethtool structure: [`super::Call::Ethtool`].
    Ethtool,
}

/// Numbers of the commands.
pub mod nr {
    #![expect(missing_docs, reason = "Linux's names say it")]
    pub const FIONREAD: u32 = 0x541b;
    pub const FIONBIO: u32 = 0x5421;
    pub const FIOASYNC: u32 = 0x5452;
    pub const TIOCOUTQ: u32 = 0x5411;
    pub const FIOSETOWN: u32 = 0x8901;
    pub const SIOCSPGRP: u32 = 0x8902;
    pub const FIOGETOWN: u32 = 0x8903;
    pub const SIOCGPGRP: u32 = 0x8904;
    pub const SIOCATMARK: u32 = 0x8905;
    pub const SIOCGSTAMP: u32 = 0x8906;
    pub const SIOCGSTAMPNS: u32 = 0x8907;
    pub const SIOCADDRT: u32 = 0x890b;
    pub const SIOCDELRT: u32 = 0x890c;
    pub const SIOCGIFNAME: u32 = 0x8910;
    pub const SIOCGIFCONF: u32 = 0x8912;
    pub const SIOCGIFFLAGS: u32 = 0x8913;
    pub const SIOCSIFFLAGS: u32 = 0x8914;
    pub const SIOCGIFADDR: u32 = 0x8915;
    pub const SIOCSIFADDR: u32 = 0x8916;
    pub const SIOCGIFDSTADDR: u32 = 0x8917;
    pub const SIOCSIFDSTADDR: u32 = 0x8918;
    pub const SIOCGIFBRDADDR: u32 = 0x8919;
    pub const SIOCSIFBRDADDR: u32 = 0x891a;
    pub const SIOCGIFNETMASK: u32 = 0x891b;
    pub const SIOCSIFNETMASK: u32 = 0x891c;
    pub const SIOCGIFMETRIC: u32 = 0x891d;
    pub const SIOCSIFMETRIC: u32 = 0x891e;
    pub const SIOCGIFMTU: u32 = 0x8921;
    pub const SIOCSIFMTU: u32 = 0x8922;
    pub const SIOCSIFHWADDR: u32 = 0x8924;
    pub const SIOCGIFHWADDR: u32 = 0x8927;
    pub const SIOCGIFINDEX: u32 = 0x8933;
    pub const SIOCGIFPFLAGS: u32 = 0x8935;
    pub const SIOCGIFTXQLEN: u32 = 0x8942;
    pub const SIOCSIFTXQLEN: u32 = 0x8943;
    pub const SIOCETHTOOL: u32 = 0x8946;
    pub const SIOCDARP: u32 = 0x8953;
    pub const SIOCGARP: u32 = 0x8954;
    pub const SIOCSARP: u32 = 0x8955;
    pub const SIOCGIFMAP: u32 = 0x8970;
    pub const SIOCDEVPRIVATE: u32 = 0x89f0;
    pub const SIOCDEVPRIVATE_LAST: u32 = 0x89ff;
}

/// Octets of `struct ifreq`.
pub const IFREQ_LEN: usize = 40;
/// Octets of `struct rtentry`.
pub const RTENTRY_LEN: usize = 120;
/// Octets of `struct arpreq`.
pub const ARPREQ_LEN: usize = 68;

/// The argument of an `ioctl` on a modelled file; `None`: there is no such (`ENOTTY`).
pub fn arg(cmd: u32) -> Option<Arg> {
    Some(match cmd {
        nr::FIONREAD | nr::TIOCOUTQ | nr::SIOCATMARK | nr::FIOGETOWN | nr::SIOCGPGRP => Arg::Fixed(4),
        nr::FIONBIO | nr::FIOASYNC | nr::FIOSETOWN | nr::SIOCSPGRP => Arg::Fixed(4),
        nr::SIOCGSTAMP | nr::SIOCGSTAMPNS => Arg::Fixed(16),
        nr::SIOCADDRT | nr::SIOCDELRT => Arg::Fixed(RTENTRY_LEN),
        nr::SIOCSARP | nr::SIOCGARP | nr::SIOCDARP => Arg::Fixed(ARPREQ_LEN),
        nr::SIOCGIFCONF => Arg::IfConf,
        nr::SIOCETHTOOL => Arg::Ethtool,
        // The block of `struct ifreq` commands: also those that are not known, which answer by themselves.
        0x8910..=0x89ff => Arg::Fixed(IFREQ_LEN),
        _ => return None,
    })
}

/// Octets of the ethtool structure whose first (at most 16) octets are `head`; at most 16 are needed to know.
/// What is written back is never longer.
pub fn ethtool_len(head: &[u8]) -> usize {
    crate::vfs::ethtool::request_len(head)
}
