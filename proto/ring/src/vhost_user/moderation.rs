//! Interrupt moderation: fields of the configuration space, far behind virtio's own.
//!
//! Virtio 1.2 has it on the control virtqueue (`VIRTIO_NET_F_NOTF_COAL`), which belongs to the front end, and
//! vhost-user has no message that would carry it to the device. So it is read and written with
//! `GET_CONFIG` and `SET_CONFIG`: a mark by which a front end knows that the fields are there,
//! then the two of `struct virtio_net_ctrl_coal`, little endian.

/// When the device interrupts for received frames (`ethtool -C rx-usecs N rx-frames N`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moderation {
    /// Microseconds by which the interrupt may be late; 0: not at all.
    pub rx_usecs: u32,
    /// Frames after which it comes at once; 0: only time counts.
    pub rx_frames: u32,
}

/// Where the fields begin.
pub(super) const AT: usize = 128;
/// Where those begin that can be written.
pub(super) const FIELDS_AT: usize = AT + 4;
/// Octets of all, and of those that can be written.
pub(super) const LEN: usize = 12;
pub(super) const FIELDS_LEN: usize = 8;
const MARK: [u8; 4] = *b"coal";

impl Moderation {
    /// As in the configuration space from [`AT`] on.
    pub(super) fn emit(self) -> [u8; LEN] {
        let mut b = [0; LEN];
        b[..4].copy_from_slice(&MARK);
        b[4..8].copy_from_slice(&self.rx_frames.to_le_bytes());
        b[8..].copy_from_slice(&self.rx_usecs.to_le_bytes());
        b
    }

    /// From there; `None` if the device has no such fields.
    pub(super) fn parse(b: &[u8]) -> Option<Self> {
        b.strip_prefix(&MARK).and_then(Self::parse_fields)
    }

    /// From what a front end writes to [`FIELDS_AT`].
    pub(super) fn parse_fields(b: &[u8]) -> Option<Self> {
        let word = |at: usize| b.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        Some(Self { rx_frames: word(0)?, rx_usecs: word(4)? })
    }
}
