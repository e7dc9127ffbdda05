//! `SIOCETHTOOL`: what `ethtool` asks of an interface, and changes of it (Linux `net/ethtool/ioctl.c`).
//!
//! An interface shows itself as `virtio_net` does. What belongs to the NIC and that its driver cannot
//! tell (pause frames, moderation of the transmit side) answers `EOPNOTSUPP`.

mod features;

use self::features::{GRO, GSO, NAMES, RX_CSUM, SG, TSO, TX_CSUM, VLAN_CHALLENGED, WORDS, always};
use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::dev::NetDevice;
use crate::dev::net_device::{Coalesce, Features, IfIndex};
use crate::errno::Errno;
use crate::syscall::abi::octets;
use crate::syscall::{Fd, Ret};
use alloc::string::String;
use alloc::vec::Vec;

/// `ETHTOOL_*`.
mod cmd {
    pub(super) const GDRVINFO: u32 = 0x03;
    pub(super) const GLINK: u32 = 0x0a;
    pub(super) const GCOALESCE: u32 = 0x0e;
    pub(super) const SCOALESCE: u32 = 0x0f;
    pub(super) const GRINGPARAM: u32 = 0x10;
    pub(super) const SRINGPARAM: u32 = 0x11;
    pub(super) const GRXCSUM: u32 = 0x14;
    pub(super) const GTXCSUM: u32 = 0x16;
    pub(super) const STXCSUM: u32 = 0x17;
    pub(super) const GSG: u32 = 0x18;
    pub(super) const SSG: u32 = 0x19;
    pub(super) const GSTRINGS: u32 = 0x1b;
    pub(super) const GSTATS: u32 = 0x1d;
    pub(super) const GTSO: u32 = 0x1e;
    pub(super) const STSO: u32 = 0x1f;
    pub(super) const GPERMADDR: u32 = 0x20;
    pub(super) const GUFO: u32 = 0x21;
    pub(super) const GGSO: u32 = 0x23;
    pub(super) const GFLAGS: u32 = 0x25;
    pub(super) const GGRO: u32 = 0x2b;
    pub(super) const SGRO: u32 = 0x2c;
    pub(super) const GSSET_INFO: u32 = 0x37;
    pub(super) const GFEATURES: u32 = 0x3a;
    pub(super) const SFEATURES: u32 = 0x3b;
    pub(super) const GCHANNELS: u32 = 0x3c;
    pub(super) const SCHANNELS: u32 = 0x3d;
    pub(super) const GET_TS_INFO: u32 = 0x41;
    pub(super) const GLINKSETTINGS: u32 = 0x4c;
}

/// Octets of a name in a string set (`ETH_GSTRING_LEN`).
const GSTRING: usize = 32;
/// `ETH_SS_STATS`, `ETH_SS_FEATURES`.
const SS_STATS: u32 = 1;
const SS_FEATURES: u32 = 4;
/// Words of a link-mode mask.
const LINK_MODE_WORDS: i8 = 4;
const MAC_LEN: usize = 6;
/// Octets of `struct ethtool_coalesce`.
const COALESCE: usize = 92;
/// Most strings or numbers that are looked at.
const MOST: usize = 4096;
/// `ETHTOOL_F_UNSUPPORTED`, `ETHTOOL_F_WISH`.
const F_UNSUPPORTED: i64 = 1;
const F_WISH: i64 = 2;
/// `SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE`.
const SOFTWARE_STAMPS: u32 = 0x18;

/// Octets of the structure that a command works on; see [`crate::syscall::ioctl::ethtool_len`].
pub(crate) fn request_len(head: &[u8]) -> usize {
    let word = |at: usize| octets(head, at).map_or(0, u32::from_ne_bytes) as usize;
    match word(0) as u32 {
        cmd::GDRVINFO => 196,
        cmd::GCOALESCE | cmd::SCOALESCE => COALESCE,
        cmd::GRINGPARAM | cmd::SRINGPARAM | cmd::GCHANNELS | cmd::SCHANNELS => 36,
        cmd::GSTRINGS => 12 + word(8).min(MOST) * GSTRING,
        cmd::GSTATS => 8 + word(4).min(MOST) * 8,
        cmd::GPERMADDR => 8 + word(4).min(32),
        // A count for each set that the mask names.
        cmd::GSSET_INFO => 16 + 4 * (word(8).count_ones() + word(12).count_ones()) as usize,
        cmd::GFEATURES => 8 + word(4).min(MOST) * 16,
        cmd::SFEATURES => 8 + word(4).min(MOST) * 8,
        cmd::GET_TS_INFO => 44,
        // The count of words is an octet of the structure: as many as there can be.
        cmd::GLINKSETTINGS => 48 + 12 * LINK_MODE_WORDS as usize,
        _ => 8,
    }
}

impl Kernel {
    /// `ioctl(SIOCETHTOOL)`.
    pub(crate) fn sys_ethtool(&mut self, task: TaskId, fd: Fd, name: &[u8; 16], data: &[u8]) -> Result<Ret, Errno> {
        self.fget_sock(task, fd)?;
        let index = self.ifindex_by_name(name)?;
        let dev = self.devs.get_mut(IfIndex(index)).ok_or(Errno::ENODEV)?;
        let cmd = octets(data, 0).map(u32::from_ne_bytes).ok_or(Errno::EFAULT)?;
        let value = octets(data, 4).map_or(0, u32::from_ne_bytes);
        if data.len() < request_len(data).min(8) {
            return Err(Errno::EFAULT);
        }
        match cmd {
            cmd::SCOALESCE => return dev.set_coalesce(data).map(|()| Ret::Value(0)),
            cmd::SRINGPARAM => return dev.set_rings(data).map(|()| Ret::Value(0)),
            cmd::SCHANNELS => return self.set_channels(IfIndex(index), data).map(|()| Ret::Value(0)),
            _ => {}
        }
        if let Some(bit) = set_bit(cmd) {
            return dev.set_offloads(bit, if value != 0 { bit } else { 0 }).map(Ret::Value);
        }
        if cmd == cmd::SFEATURES {
            if value != WORDS {
                return Err(Errno::EINVAL);
            }
            // Pairs of words, the low ones first: what is meant, and what it is to be.
            let [valid, wanted, valid_high, wanted_high] = words::<4>(data, 2)?;
            let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
            return dev.set_features(join(valid, valid_high), join(wanted, wanted_high)).map(Ret::Value);
        }
        let mut out = dev.ethtool_get(cmd, data)?;
        // Never more than the program has room for.
        out.truncate(data.len());
        Ok(Ret::Bytes(out))
    }
}

impl Kernel {
    /// `ETHTOOL_SCHANNELS` (Linux `ethtool_set_channels`, `virtnet_set_channels`): pairs are all that there is.
    fn set_channels(&mut self, dev: IfIndex, data: &[u8]) -> Result<(), Errno> {
        let device = self.devs.get(dev).filter(|d| !d.is_loopback()).ok_or(Errno::EOPNOTSUPP)?;
        let (most, now) = (device.queues.len() as u32, u32::from(device.real_queues));
        let [rx, tx, other, combined] = words::<4>(data, 5)?;
        match (rx | tx | other, combined) {
            (0, pairs) if pairs == now => Ok(()),
            (0, pairs) if (1..=most).contains(&pairs) => self.dev_set_queue_pairs(dev, pairs as u16),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// `N` words of a structure from its word `at` on.
fn words<const N: usize>(data: &[u8], at: usize) -> Result<[u32; N], Errno> {
    let mut all = [0; N];
    for (i, word) in all.iter_mut().enumerate() {
        *word = octets(data, (at + i) * 4).map(u32::from_ne_bytes).ok_or(Errno::EFAULT)?;
    }
    Ok(all)
}

/// The bit that an old-style command sets.
fn set_bit(cmd: u32) -> Option<u64> {
    match cmd {
        cmd::STXCSUM => Some(TX_CSUM),
        cmd::SSG => Some(SG),
        cmd::STSO => Some(TSO),
        cmd::SGRO => Some(GRO),
        _ => None,
    }
}

impl NetDevice {
    fn ethtool_get(&self, cmd: u32, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let head = |words: &[u32]| {
            let mut b = cmd.to_ne_bytes().to_vec();
            words.iter().for_each(|w| b.extend(w.to_ne_bytes()));
            b
        };
        let second = octets(data, 4).map_or(0, u32::from_ne_bytes);
        let active = self.active_features();
        let on = |bit: u64| Ok(head(&[u32::from(active & bit != 0)]));
        let nic = || if self.is_loopback() { Err(Errno::EOPNOTSUPP) } else { Ok(()) };
        match cmd {
            cmd::GLINK => Ok(head(&[u32::from(self.up && self.carrier)])),
            cmd::GTXCSUM => on(TX_CSUM),
            cmd::GSG => on(SG),
            cmd::GTSO => on(TSO),
            cmd::GGRO => on(GRO),
            cmd::GRXCSUM => on(RX_CSUM),
            cmd::GGSO => on(GSO),
            cmd::GUFO | cmd::GFLAGS => Ok(head(&[0])),
            cmd::GFEATURES => {
                let rows = [self.changeable_features(), active, active, VLAN_CHALLENGED];
                let words = (0..WORDS.min(second)).flat_map(|word| rows.map(|row| (row >> (32 * word)) as u32));
                Ok(head(&core::iter::once(WORDS).chain(words).collect::<Vec<u32>>()))
            }
            cmd::GSSET_INFO => Ok(self.string_sets(data)),
            cmd::GSTRINGS => self.strings(second).map(|names| {
                let mut b = head(&[second, names.len() as u32]);
                names.iter().for_each(|name| b.extend(padded::<GSTRING>(name)));
                b
            }),
            cmd::GSTATS => {
                nic()?;
                let mut b = head(&[self.stats.iter().count() as u32]);
                self.stats.iter().for_each(|(_, value)| b.extend(value.to_ne_bytes()));
                Ok(b)
            }
            cmd::GPERMADDR if (second as usize) < MAC_LEN => Err(Errno::EINVAL),
            cmd::GPERMADDR => {
                let mut b = head(&[MAC_LEN as u32]);
                b.extend(self.mac.0);
                Ok(b)
            }
            cmd::GET_TS_INFO => {
                let mut b = head(&[SOFTWARE_STAMPS, u32::MAX]);
                b.resize(44, 0);
                Ok(b)
            }
            cmd::GDRVINFO => nic().map(|()| self.driver_info(head(&[]))),
            cmd::GLINKSETTINGS => nic().map(|()| link_settings(data, head(&[]))),
            cmd::GRINGPARAM => {
                let [(rx, tx), (max_rx, max_tx)] = self.rings()?;
                Ok(head(&[max_rx, 0, 0, max_tx, rx, 0, 0, tx]))
            }
            cmd::GCHANNELS => {
                nic()?;
                Ok(head(&[0, 0, 0, self.queues.len() as u32, 0, 0, 0, self.real_queues.into()]))
            }
            cmd::GCOALESCE => {
                let c = self.driver.as_ref().and_then(|d| d.coalesce()).ok_or(Errno::EOPNOTSUPP)?;
                let mut b = head(&[c.rx_usecs, c.rx_frames]);
                b.resize(COALESCE, 0);
                Ok(b)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Ring sizes now, and the most that they can be.
    fn rings(&self) -> Result<[(u32, u32); 2], Errno> {
        let driver = self.driver.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        Ok([driver.ring_sizes().ok_or(Errno::EOPNOTSUPP)?, driver.ring_limits().ok_or(Errno::EOPNOTSUPP)?])
    }

    /// `ETHTOOL_SRINGPARAM` (Linux `ethtool_set_ringparam`).
    fn set_rings(&mut self, data: &[u8]) -> Result<(), Errno> {
        let [now, (max_rx, max_tx)] = self.rings()?;
        let [rx, mini, jumbo, tx] = words::<4>(data, 5)?;
        if rx > max_rx || tx > max_tx || mini | jumbo != 0 || rx == 0 || tx == 0 {
            return Err(Errno::EINVAL);
        }
        let driver = self.driver.as_mut().ok_or(Errno::EOPNOTSUPP)?;
        if (rx, tx) == now { Ok(()) } else { driver.set_ring_sizes(rx, tx) }
    }

    /// `ETHTOOL_SCOALESCE` (Linux `ethtool_set_coalesce_supported`): receive time and frames, nothing else.
    fn set_coalesce(&mut self, data: &[u8]) -> Result<(), Errno> {
        let driver = self.driver.as_mut().filter(|d| d.coalesce().is_some()).ok_or(Errno::EOPNOTSUPP)?;
        let all = words::<{ COALESCE / 4 }>(data, 0)?;
        if all[3..].iter().any(|&word| word != 0) {
            return Err(Errno::EOPNOTSUPP);
        }
        driver.set_coalesce(Coalesce { rx_usecs: all[1], rx_frames: all[2] })
    }

    fn driver_info(&self, mut b: Vec<u8>) -> Vec<u8> {
        let bus = alloc::format!("virtio{}", self.index.0.saturating_sub(2));
        for text in ["virtio_net", "1.0.0", "", &bus, ""] {
            b.extend(padded::<32>(text));
        }
        b.extend([0; 12]);
        for n in [0, self.stats.iter().count() as u32, 0, 0, 0] {
            b.extend(n.to_ne_bytes());
        }
        b
    }

    /// Sizes of the sets that the mask names and that there are.
    fn string_sets(&self, data: &[u8]) -> Vec<u8> {
        let asked = octets(data, 8).map_or(0, u64::from_ne_bytes);
        let mut found = 0u64;
        let mut sizes = Vec::new();
        for set in [SS_STATS, SS_FEATURES] {
            if asked >> set & 1 != 0
                && let Ok(names) = self.strings(set)
            {
                found |= 1 << set;
                sizes.extend((names.len() as u32).to_ne_bytes());
            }
        }
        [&data[..8], &found.to_ne_bytes(), &sizes].concat()
    }

    fn strings(&self, set: u32) -> Result<Vec<String>, Errno> {
        match set {
            SS_FEATURES => Ok(NAMES.into_iter().map(String::from).collect()),
            SS_STATS if !self.is_loopback() => Ok(self.stats.iter().map(|(name, _)| String::from(name)).collect()),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn active_features(&self) -> u64 {
        let f = self.features;
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        always(self.is_loopback()) | bit(f.sg, SG) | bit(f.tx_csum, TX_CSUM) | bit(f.tso, TSO) | bit(self.gro_on, GRO)
    }

    /// What can be switched: offers of the device, and GRO, which is the host's.
    fn changeable_features(&self) -> u64 {
        let offered = self.driver.as_ref().map(|d| d.features()).unwrap_or_default();
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        GRO | bit(offered.sg, SG) | bit(offered.tx_csum, TX_CSUM) | bit(offered.tso, TSO)
    }

    /// `ETHTOOL_SFEATURES`: flags for what did not come out as wanted.
    fn set_features(&mut self, valid: u64, wanted: u64) -> Result<i64, Errno> {
        let changeable = self.changeable_features();
        let unsupported = if valid & !changeable != 0 { F_UNSUPPORTED } else { 0 };
        Ok(unsupported | self.set_offloads(valid & changeable, wanted)?)
    }

    /// Switches the offloads `which` to what `wanted` says.
    fn set_offloads(&mut self, which: u64, wanted: u64) -> Result<i64, Errno> {
        if which & !self.changeable_features() != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let off = |was: bool, bit: u64| if which & bit != 0 { wanted & bit == 0 } else { was };
        let o = self.features_off;
        self.features_off = Features { sg: off(o.sg, SG), tx_csum: off(o.tx_csum, TX_CSUM), tso: off(o.tso, TSO) };
        if which & GRO != 0 {
            self.gro_on = wanted & GRO != 0;
        }
        self.update_features();
        Ok(if (self.active_features() ^ wanted) & which != 0 { F_WISH } else { 0 })
    }
}

/// `struct ethtool_link_settings`: a virtual NIC does not know its speed. Asked with another number of words, it
/// answers with the number that it has.
fn link_settings(data: &[u8], mut b: Vec<u8>) -> Vec<u8> {
    let asked = data.get(15).map_or(0, |&n| n as i8);
    if asked != LINK_MODE_WORDS {
        b.resize(48, 0);
        b[15] = (-LINK_MODE_WORDS) as u8;
        return b;
    }
    b.extend(u32::MAX.to_ne_bytes());
    // Duplex unknown, port "other", no PHY, no negotiation.
    b.extend([0xff, 0xff, 0, 0, 0, 0, 0, LINK_MODE_WORDS as u8]);
    b.resize(48 + 12 * LINK_MODE_WORDS as usize, 0);
    b
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut b = [0; N];
    let n = text.len().min(N - 1);
    b[..n].copy_from_slice(&text.as_bytes()[..n]);
    b
}
