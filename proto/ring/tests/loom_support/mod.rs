//! What the loom tests share.

use loom::sync::{Condvar, Mutex};

/// An eventfd: rings add up, a wait takes them all.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        *self.rung.lock().expect("never poisoned") = true;
        self.changed.notify_one();
    }

    /// Sleeps until it is rung.
    pub fn wait(&self) {
        let mut rung = self.rung.lock().expect("never poisoned");
        while !*rung {
            rung = self.changed.wait(rung).expect("never poisoned");
        }
        *rung = false;
    }
}
