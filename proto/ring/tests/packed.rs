//! Both sides of a packed virtqueue in one thread.

use ringlab_ring::memory::Region;
use ringlab_ring::packed::{Chain, DeviceQueue, DriverQueue, Features, Layout, MemoryMap};
use std::sync::Arc;

fn pair(size: u16, features: Features) -> (Region, DriverQueue<u32>, DeviceQueue) {
    let (layout, end) = Layout::in_region(0, size);
    let region = Region::heap(end as usize + 65536);
    let driver = DriverQueue::new(region.clone(), layout, features).expect("layout fits");
    let device = DeviceQueue::new(Arc::new(MemoryMap::identity(region.clone())), layout, features).expect("layout fits");
    (region, driver, device)
}

#[test]
fn chain_crosses_and_comes_back_over_many_laps() {
    for size in [1, 2, 3, 7, 256] {
        let (_region, mut driver, mut device) = pair(size, Features::EVENT_IDX);
        let mut chain = Chain::new();
        for n in 0..3 * u32::from(size) + 5 {
            assert!(!device.pop(&mut chain).expect("idle"));
            assert_eq!(driver.add(&[], &[(4096, 100)], n), Ok(()));
            assert!(device.pop(&mut chain).expect("available"));
            assert_eq!((chain.segments[0].gpa, chain.segments[0].len, chain.segments[0].writable), (4096, 100, true));
            device.push_used(chain.id, chain.descs, 7);
            assert_eq!(driver.pop_used(), Ok(None), "not published yet");
            device.publish();
            assert_eq!(driver.pop_used(), Ok(Some((n, 7))));
            assert_eq!(driver.pop_used(), Ok(None));
        }
    }
}
