//! Real daemons over gRPC, driven by the real `labctl`, beside the real kernel.
//!
//! Each test has a state directory of its own, hence an agent of its own, and
//! ends by looking for what its lab may have left behind.

mod crash;
mod guest;
mod lifecycle;
mod real_peer;
mod refusal;
mod transfer;
mod verbs;

use ringlab_tests::lab::Site;
use ringlab_tests::leftovers::{Held, Snapshot};
use std::path::Path;
use std::time::{Duration, Instant};

/// Two emulated hosts on a cable; `b` listens.
const TWO_HOSTS: &str = "name: two
nodes:
  a: {}
  b:
    run:
      - {builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}
links:
  - endpoints: [\"a:eth0\", \"b:eth0\"]
    ipv4: [10.0.0.1/24, 10.0.0.2/24]
";

/// Runs a test in a site of its own and expects that nothing is left of it.
fn in_site(test: impl FnOnce(&Site)) {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    test(&site);
    let held = Held::by(&site.dir);
    site.ok(&["destroy", "--all"]);
    expect_clean(&site.dir, &before);
    expect_released(&held);
}

/// Waits until nobody holds the labs' shared memory and namespaces any more.
fn expect_released(held: &Held) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let still = held.still();
        if still.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still held: {still:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until everything is as before: the agent ends a moment after its last lab.
fn expect_clean(dir: &Path, before: &Snapshot) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = Snapshot::of(dir);
        if now == *before {
            return;
        }
        assert!(Instant::now() < deadline, "left behind:\n{now:#?}\nbefore:\n{before:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a condition.
fn eventually(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
