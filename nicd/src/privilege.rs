//! Capabilities: needed to make TAP devices, given up right after.
//!
//! Capabilities belong to threads. The control thread, which parses what others
//! send, gives them up before it listens; the datapath thread when it is configured.

use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs};
use std::io;

/// Gives up every capability of this thread, for good.
///
/// # Errors
/// What `capset` or `prctl` answers.
pub fn drop_capabilities() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // Not known to this kernel, or no privilege to shrink the set: then there is none to lose by exec either,
            // because of no_new_privs below.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left() {
        // A thread of its own: the test runner keeps its capabilities.
        std::thread::spawn(|| {
            drop_capabilities().expect("allowed to anyone");
            let left = rustix::thread::capabilities(None).expect("readable");
            assert!(left.effective.is_empty() && left.permitted.is_empty());
        })
        .join()
        .expect("no panic");
    }
}
