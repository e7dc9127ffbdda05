//! What the front end has told so far, and the device's configuration space.

use super::wire::{BackError, Message};
use crate::doorbell::Doorbell;
use crate::memory::Region;
use crate::packed::{DeviceQueue, Features, Layout, MemoryMap, RingError, VringBase};
use std::os::fd::AsFd;
use std::sync::Arc;

/// The device as it shows itself to drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Largest IP packet of the link.
    pub mtu: u16,
    /// Pairs of queues that a driver may use; 1 to 128.
    pub queue_pairs: u16,
    /// Offered features; `VERSION_1` and `RING_PACKED` are always.
    pub features: Features,
    /// State of the link (`VIRTIO_NET_S_LINK_UP`).
    pub link_up: bool,
}

/// Octets of `virtio_net_config` that are not zero.
pub(super) const NET_CONFIG_LEN: usize = 12;

impl NetConfig {
    /// What a front end is offered.
    pub(super) fn offered(&self) -> Features {
        self.features | Features::VERSION_1 | Features::RING_PACKED | Features::PROTOCOL_FEATURES
    }

    pub(super) fn vrings(&self) -> usize {
        usize::from(self.queue_pairs.clamp(1, 128)) * 2
    }

    /// `size` octets at `offset` of the configuration space (virtio 1.2 §5.1.4), little
    /// endian; what lies behind the known fields is zero.
    pub(super) fn read(&self, offset: usize, size: usize) -> Vec<u8> {
        let mut space = [0u8; NET_CONFIG_LEN];
        space[..6].copy_from_slice(&self.mac);
        space[6..8].copy_from_slice(&u16::from(self.link_up).to_le_bytes());
        space[8..10].copy_from_slice(&self.queue_pairs.to_le_bytes());
        space[10..].copy_from_slice(&self.mtu.to_le_bytes());
        (offset..offset + size).map(|i| space.get(i).copied().unwrap_or(0)).collect()
    }
}

/// One ring, as far as told.
#[derive(Debug)]
pub(super) struct VringState {
    pub(super) size: Option<u16>,
    /// User addresses of descriptors, driver event, device event.
    pub(super) addrs: Option<[u64; 3]>,
    pub(super) base: VringBase,
    /// A kick message came, with or without a descriptor.
    pub(super) kicked: bool,
    pub(super) kick: Option<Doorbell>,
    pub(super) call: Option<Doorbell>,
    pub(super) err: Option<Doorbell>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

impl Default for VringState {
    fn default() -> Self {
        Self {
            size: None,
            addrs: None,
            base: VringBase::START,
            kicked: false,
            kick: None,
            call: None,
            err: None,
            enabled: false,
            running: false,
        }
    }
}

impl VringState {
    /// The queue, once everything is known; `None` before.
    pub(super) fn queue(&self, map: Option<&Arc<MemoryMap>>, features: Features) -> Result<Option<DeviceQueue>, BackError> {
        let (Some(size), Some(addrs), Some(map), true) = (self.size, self.addrs, map, self.kicked) else { return Ok(None) };
        if !features.contains(Features::VERSION_1 | Features::RING_PACKED) {
            return Err(BackError::Features(features.bits()));
        }
        let mut layout = Layout { desc: addrs[0], driver: addrs[1], device: addrs[2], size, indirect: None };
        layout.desc = map.user_to_gpa(addrs[0], layout.desc_len())?;
        layout.driver = map.user_to_gpa(addrs[1], 4)?;
        layout.device = map.user_to_gpa(addrs[2], 4)?;
        let mut queue = DeviceQueue::new(map.clone(), layout, features)?;
        queue.set_base(self.base)?;
        Ok(Some(queue))
    }
}

/// `SET_MEM_TABLE`: maps what the message names; `unsealed`: also what may shrink.
pub(super) fn memory_table(message: Message, unsealed: bool) -> Result<MemoryMap, BackError> {
    const ENTRY: usize = 32;
    if message.body.len() < 8 {
        return Err(message.bad_size());
    }
    let count = message.u32_at(0) as usize;
    if count == 0 || count > message.body.len() || message.body.len() != 8 + count * ENTRY {
        return Err(message.bad_size());
    }
    message.expect_fds(count)?;
    let entries: Vec<[u64; 4]> = (0..count).map(|i| core::array::from_fn(|field| message.u64_at(8 + i * ENTRY + field * 8))).collect();
    let mut map = MemoryMap::new();
    for (index, ([gpa, size, user, offset], fd)) in entries.into_iter().zip(message.fds).enumerate() {
        let bad = RingError::BadRegion(gpa);
        let end = offset.checked_add(size).and_then(|end| usize::try_from(end).ok()).ok_or(bad)?;
        // From the start of the file: offsets need not be multiples of the page size.
        // Before `map` looks at the length: what shrinks in between is sealed short.
        if !unsealed && Region::may_shrink(fd.as_fd()) {
            return Err(BackError::Unsealed { index });
        }
        let region = Region::map(fd, 0, end).map_err(|source| BackError::Map { index, source })?;
        map.add(gpa, size, user, region, offset)?;
    }
    Ok(map)
}
