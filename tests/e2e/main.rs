//! Real daemons over gRPC, driven by the real `labctl`, beside the real kernel.
//!
//! Each test has a state directory of its own, hence an agent of its own, and
//! ends by looking for what its lab may have left behind.

mod carrier;
mod crash;
mod daemons;
mod doctor;
mod ethtool;
mod exec_streams;
mod guest;
mod guest_calls;
mod guest_files;
mod guest_identity;
mod guest_inodes;
mod guest_kill;
mod guest_own_files;
mod guest_preload;
mod guest_profile;
mod guest_servers;
mod guest_signalfd;
mod guest_signals;
mod guest_splice;
mod guest_tools;
mod iproute;
mod lifecycle;
mod openssh;
mod reach;
mod real_peer;
mod refusal;
mod stale;
mod tcpdump;
mod transfer;
mod verbs;

use ringlab_tests::lab::{Lab, Site};
use ringlab_tests::leftovers::{Held, Snapshot};
use std::path::Path;
use std::process::Child;
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
    within(&Site::new(), test);
}

/// As [`in_site`], for a test that runs programs as another user.
fn in_site_for_others(test: impl FnOnce(&Site)) {
    within(&Site::for_others(), test);
}

fn within(site: &Site, test: impl FnOnce(&Site)) {
    let before = Snapshot::of(&site.dir);
    test(site);
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

/// The topology with a `stream` server on `b`, besides what runs there.
fn with_stream_server(yaml: &str) -> String {
    yaml.replace("- {builtin: httpd", "- {builtin: stream, args: [-s], ready: {tcp: 5201}}\n      - {builtin: httpd")
}

/// A TCP transfer of some seconds from `a` to the `stream` server of `b`, whose octets are compared.
struct Transfer<'a> {
    lab: &'a Lab<'a>,
    client: Child,
}

impl<'a> Transfer<'a> {
    /// Starts it, and waits until frames of it have come to node `seen`.
    fn start(lab: &'a Lab<'a>, seen: &str) -> Self {
        let client = lab.spawn(lab.builtin("a", "stream", &["-c", "b", "-t", "4", "--verify", "--json"]));
        let before = frames(lab, seen);
        eventually("octets flow", 5, || frames(lab, seen) > before + 100);
        Self { lab, client }
    }

    /// It ends, and every octet is there.
    fn expect_verified(self) {
        let out = self.client.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}\n{}\n{}", String::from_utf8_lossy(&out.stderr), self.lab.site.logs());
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["verified"], true, "{json}");
    }
}

/// Frames that a node's ports have received.
fn frames(lab: &Lab<'_>, node: &str) -> u64 {
    let stat = lab.site.json(&["stat", "-l", &lab.name, node]);
    let ports = stat["nodes"][0]["nic"]["ports"].as_array().cloned().unwrap_or_default();
    ports.iter().map(|port| counter(&port["counters"], "rx_packets")).sum()
}

/// A counter of a list of them; 0 if it is not there.
fn counter(list: &serde_json::Value, name: &str) -> u64 {
    let found = list.as_array().and_then(|all| all.iter().find(|c| c["name"] == name));
    found.and_then(|c| c["value"].as_u64()).unwrap_or(0)
}
