//! The driver's memory as the device reaches it.

use super::desc::RingError;
use crate::memory::{Region, Slice};
use alloc::vec::Vec;

/// The driver's memory: regions at guest physical addresses, as vhost-user's memory
/// table names them.
#[derive(Debug, Clone, Default)]
pub struct MemoryMap {
    regions: Vec<MapRegion>,
}

/// One region of a [`MemoryMap`].
#[derive(Debug, Clone)]
pub struct MapRegion {
    /// Guest physical address of the first octet.
    pub gpa: u64,
    /// Octets.
    pub size: u64,
    /// The same octet's address in the front end, by which vhost-user names rings.
    pub user_addr: u64,
    /// The mapping that holds it,
    pub region: Region,
    /// from this octet on.
    pub offset: u64,
}

impl MemoryMap {
    /// No memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// One region at guest physical address 0 (and user address 0), offsets being
    /// addresses: how Ringlab's own driver and the tests lay memory out.
    pub fn identity(region: Region) -> Self {
        let mut map = Self::new();
        let size = region.len() as u64;
        map.add(0, size, 0, region, 0).expect("one whole region");
        map
    }

    /// Adds `size` octets from `offset` of `region`.
    ///
    /// # Errors
    /// [`RingError::BadRegion`] if empty, wrapping or overlapping;
    /// [`RingError::OutOfBounds`] if the mapping is shorter.
    pub fn add(&mut self, gpa: u64, size: u64, user_addr: u64, region: Region, offset: u64) -> Result<(), RingError> {
        let wraps = gpa.checked_add(size).is_none() || user_addr.checked_add(size).is_none();
        let meets = |a: u64, b: u64, b_size: u64| a < b + b_size && b < a + size;
        if size == 0 || wraps || self.regions.iter().any(|r| meets(gpa, r.gpa, r.size) || meets(user_addr, r.user_addr, r.size)) {
            return Err(RingError::BadRegion(gpa));
        }
        let len = usize::try_from(size).map_err(|_| RingError::BadRegion(gpa))?;
        region.slice(offset, len)?;
        self.regions.push(MapRegion { gpa, size, user_addr, region, offset });
        Ok(())
    }

    /// All regions, in the order of the table.
    pub fn regions(&self) -> &[MapRegion] {
        &self.regions
    }

    /// The region that holds `len` octets at `gpa`, and the offset in its mapping. A
    /// buffer lies in one region; one that straddles two is refused.
    ///
    /// # Errors
    /// [`RingError::OutOfBounds`] unless all of them lie in one region.
    #[inline]
    pub fn region_of(&self, gpa: u64, len: u64) -> Result<(u16, u64), RingError> {
        for (i, r) in self.regions.iter().enumerate() {
            let at = gpa.wrapping_sub(r.gpa);
            if at < r.size && len <= r.size - at {
                return Ok((i as u16, r.offset + at));
            }
        }
        Err(RingError::OutOfBounds { addr: gpa, len })
    }

    /// The `len` octets at `gpa`.
    ///
    /// # Errors
    /// [`RingError::OutOfBounds`] unless all of them lie in one region.
    #[inline]
    pub fn translate_gpa(&self, gpa: u64, len: usize) -> Result<Slice<'_>, RingError> {
        let (region, offset) = self.region_of(gpa, len as u64)?;
        self.slice_at(region, offset, len)
    }

    /// The `len` octets at `offset` of the mapping behind region `index`: what
    /// [`MemoryMap::region_of`] found, or a peer names.
    ///
    /// # Errors
    /// [`RingError::OutOfBounds`] unless they lie in that region.
    #[inline]
    pub fn slice_at(&self, index: u16, offset: u64, len: usize) -> Result<Slice<'_>, RingError> {
        let err = RingError::OutOfBounds { addr: offset, len: len as u64 };
        let r = self.regions.get(usize::from(index)).ok_or(err)?;
        let at = offset.wrapping_sub(r.offset);
        if at > r.size || len as u64 > r.size - at {
            return Err(err);
        }
        Ok(r.region.slice(offset, len)?)
    }

    /// The guest physical address of the front end's `user_addr`.
    ///
    /// # Errors
    /// [`RingError::OutOfBounds`] unless `len` octets there lie in one region.
    pub fn user_to_gpa(&self, user_addr: u64, len: usize) -> Result<u64, RingError> {
        let inside = |r: &&MapRegion| {
            let at = user_addr.wrapping_sub(r.user_addr);
            at < r.size && len as u64 <= r.size - at
        };
        let found = self.regions.iter().find(inside);
        found.map(|r| r.gpa + (user_addr - r.user_addr)).ok_or(RingError::OutOfBounds { addr: user_addr, len: len as u64 })
    }

    /// The `len` octets at the front end's `user_addr`.
    ///
    /// # Errors
    /// [`RingError::OutOfBounds`] unless all of them lie in one region.
    pub fn translate_user(&self, user_addr: u64, len: usize) -> Result<Slice<'_>, RingError> {
        self.translate_gpa(self.user_to_gpa(user_addr, len)?, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_may_not_meet_and_addresses_stay_inside_one() {
        let r = Region::heap(8192);
        let mut map = MemoryMap::new();
        map.add(0x10000, 4096, 0x7000_0000, r.clone(), 0).expect("first");
        map.add(0x11000, 4096, 0x7100_0000, r.clone(), 4096).expect("adjacent");
        assert_eq!(map.add(0x11fff, 4096, 0x1000, r.clone(), 0), Err(RingError::BadRegion(0x11fff)));
        assert_eq!(map.add(0x20000, 4096, 0x7000_0fff, r.clone(), 0), Err(RingError::BadRegion(0x20000)));
        assert_eq!(map.add(u64::MAX, 2, 0, r.clone(), 0), Err(RingError::BadRegion(u64::MAX)));
        assert!(matches!(map.add(0x20000, 8192, 0x1000, r, 4096), Err(RingError::OutOfBounds { .. })));
        assert_eq!(map.region_of(0x11010, 16), Ok((1, 4096 + 16)));
        assert!(map.translate_gpa(0x10fff, 2).is_err());
        assert!(map.translate_gpa(0x0, 1).is_err());
        assert_eq!(map.user_to_gpa(0x7100_0001, 1), Ok(0x11001));
        assert!(map.translate_user(0x7000_0fff, 2).is_err());
        assert!(map.slice_at(1, 0, 1).is_err());
        assert!(map.slice_at(2, 0, 1).is_err());
    }
}
