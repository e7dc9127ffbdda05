//! `pfifo_fast`: three bands, served in order, one limit (Linux `net/sched/sch_generic.c`).

use crate::skb::SkBuff;
use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// Band of each priority (Linux `sch_default_prio2band`).
pub(crate) const PRIO2BAND: [u8; 16] = [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];

/// The default qdisc of a TX queue.
#[derive(Debug)]
pub(crate) struct PfifoFast {
    bands: [VecDeque<Box<SkBuff>>; 3],
    len: u32,
    limit: u32,
}

impl PfifoFast {
    /// Holds at most `limit` packets a band (`txqueuelen`).
    pub(crate) fn new(limit: u32) -> Self {
        Self { bands: Default::default(), len: 0, limit: limit.max(1) }
    }

    /// Changes how many packets a band holds.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = limit.max(1);
    }

    /// Packets in it.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Appends a packet to its priority's band.
    ///
    /// # Errors
    /// The packet, if the band is full.
    pub(crate) fn enqueue(&mut self, skb: Box<SkBuff>) -> Result<(), Box<SkBuff>> {
        let band = &mut self.bands[usize::from(PRIO2BAND[(skb.priority & 15) as usize])];
        if band.len() as u32 >= self.limit {
            return Err(skb);
        }
        band.push_back(skb);
        self.len += 1;
        Ok(())
    }

    /// Takes the oldest packet of the lowest band that has one.
    pub(crate) fn dequeue(&mut self) -> Option<Box<SkBuff>> {
        let skb = self.bands.iter_mut().find_map(VecDeque::pop_front)?;
        self.len -= 1;
        Some(skb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(id: u64, priority: u32) -> Box<SkBuff> {
        let mut skb = SkBuff::new();
        skb.id = id;
        skb.priority = priority;
        skb
    }

    #[test]
    fn lower_band_goes_first_and_order_holds_in_a_band() {
        let mut q = PfifoFast::new(10);
        for (id, priority) in [(1, 0), (2, 2), (3, 6), (4, 0), (5, 7)] {
            q.enqueue(packet(id, priority)).expect("room");
        }
        let order: alloc::vec::Vec<u64> = core::iter::from_fn(|| q.dequeue()).map(|s| s.id).collect();
        assert_eq!(order, [3, 5, 1, 4, 2]);
        assert_eq!(q.len(), 0);
    }

    #[test]
    fn full_band_refuses_and_other_bands_do_not() {
        let mut q = PfifoFast::new(2);
        q.enqueue(packet(1, 0)).expect("room");
        q.enqueue(packet(2, 0)).expect("room");
        assert_eq!(q.enqueue(packet(3, 0)).expect_err("band is full").id, 3);
        q.enqueue(packet(4, 6)).expect("another band");
    }
}
