//! Debian's ethtool on an emulated host: what it changes, the NIC does.

use crate::crash::kill;
use crate::{Transfer, counter, eventually, in_site};
use ringlab_tests::lab::{Lab, Site};

const TWO_QUEUES: &str = "name: two
nodes:
  a: {nic: {queues: 2, rx-ring: 512, tx-ring: 256, rx-usecs: 5, rx-frames: 3}}
  b:
    run:
      - {builtin: stream, args: [-s], ready: {tcp: 5201}}
links:
  - endpoints: [\"a:eth0\", \"b:eth0\"]
    ipv4: [10.0.0.1/24, 10.0.0.2/24]
";

fn with_lab(test: impl FnOnce(&Site, &Lab<'_>)) {
    in_site(|site| test(site, &site.deploy(TWO_QUEUES)));
}

/// Output and errors of `ethtool OPTIONS` on `a`.
fn ethtool(lab: &Lab<'_>, options: &str) -> String {
    let args: Vec<&str> = ["ethtool"].into_iter().chain(options.split(' ')).collect();
    let out = lab.program("a", &args).output().expect("labctl starts");
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

/// The last value that `ethtool` shows under a name: settings stand behind maxima.
fn shown(lab: &Lab<'_>, options: &str, name: &str) -> String {
    let text = ethtool(lab, options);
    let value = text.lines().filter_map(|l| l.trim().strip_prefix(name)?.strip_prefix(':')).next_back();
    value.unwrap_or_else(|| panic!("{name} in {text}")).trim().to_owned()
}

fn moderation(lab: &Lab<'_>) -> (String, String) {
    (shown(lab, "-c eth0", "rx-usecs"), shown(lab, "-c eth0", "rx-frames"))
}

/// Waits until a round trip takes as long as it is to, in milliseconds: a host that something else wakes takes the answer
/// along, and a machine that is busy with other things makes it wait.
fn expect_round_trip(lab: &Lab<'_>, holds: impl Fn(f64) -> bool) {
    eventually("a round trip of that time", 30, || {
        let (shortest, longest) = round_trips(lab);
        holds(shortest) || holds(longest)
    });
}

/// The shortest and the longest of three round trips, in milliseconds.
fn round_trips(lab: &Lab<'_>) -> (f64, f64) {
    let text = lab.ok(lab.program("a", &["ping", "-q", "-c", "3", "-i", "0.2", "b"]));
    let times = text.lines().last().and_then(|l| l.split(" = ").nth(1)).expect("a summary");
    let times: Vec<f64> = times.split('/').filter_map(|t| t.parse().ok()).collect();
    (times[0], times[2])
}

#[test]
fn interrupts_are_moderated_as_asked_also_by_the_next_device() {
    with_lab(|_, lab| {
        let texts = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(moderation(lab), texts("5", "3"), "of the topology file");
        expect_round_trip(lab, |ms| ms < 40.0);
        assert_eq!(ethtool(lab, "-C eth0 rx-usecs 40000 rx-frames 0"), "");
        assert_eq!(moderation(lab), texts("40000", "0"));
        expect_round_trip(lab, |ms| ms >= 40.0);
        let refused = "Cannot set device coalesce parameters: Operation not supported\n";
        assert_eq!(ethtool(lab, "-C eth0 tx-usecs 5"), refused);
        assert_eq!(ethtool(lab, "-C eth0 adaptive-rx on"), refused);
        let old = lab.pid("a", "nicd");
        kill(old);
        eventually("nicd runs again", 5, || {
            let pid = lab.node("a")["nicd_pid"].as_i64().unwrap_or(0);
            pid > 1 && pid != i64::from(old) && lab.node("a")["interfaces"][0]["carrier"] == true
        });
        assert_eq!(moderation(lab), texts("40000", "0"));
        expect_round_trip(lab, |ms| ms >= 40.0);
        assert_eq!(ethtool(lab, "-C eth0 rx-usecs 0"), "");
        expect_round_trip(lab, |ms| ms < 40.0);
    });
}

#[test]
fn rings_change_their_size_under_a_transfer() {
    with_lab(|_, lab| {
        let transfer = Transfer::start(lab, "b");
        for (rx, tx) in [("64", "64"), ("512", "256"), ("128", "64")] {
            assert_eq!(ethtool(lab, &format!("-G eth0 rx {rx} tx {tx}")), "");
            assert_eq!((shown(lab, "-g eth0", "RX"), shown(lab, "-g eth0", "TX")), (rx.into(), tx.into()));
        }
        transfer.expect_verified();
        let refused = "Cannot set device ring parameters: Invalid argument\n";
        for wrong in ["rx 1024", "tx 32", "rx 100", "rx-mini 1"] {
            assert_eq!(ethtool(lab, &format!("-G eth0 {wrong}")), refused, "{wrong}");
        }
        let stat = lab.site.json(&["stat", "-l", &lab.name, "a"]);
        let port = stat["nodes"][0]["nic"]["ports"][0]["counters"].clone();
        assert_eq!(counter(&port, "device_resets"), 0, "{port}");
    });
}

#[test]
fn channels_that_are_not_in_use_get_no_frames() {
    with_lab(|_, lab| {
        // Interrupts of the second queue, on all CPUs.
        let second = || {
            let script = "grep eth0 /proc/interrupts | tail -n 1 | sed 's/^ *[0-9]*: *//' | cut -d' ' -f1; i=0
                while [ $i -lt 12 ]; do curl -s -m 5 http://b:9/ || i=$((i + 1)); done
                grep eth0 /proc/interrupts | tail -n 1 | sed 's/^ *[0-9]*: *//' | cut -d' ' -f1";
            let text = lab.ok(lab.program("a", &["sh", "-ec", script]));
            let counts: Vec<u64> = text.lines().map(|l| l.parse().expect("a number")).collect();
            counts[1] - counts[0]
        };
        assert_eq!(shown(lab, "-l eth0", "Combined"), "2");
        assert!(second() > 0, "refusals of twelve connections come by both");
        assert_eq!(ethtool(lab, "-L eth0 combined 1"), "");
        assert_eq!(shown(lab, "-l eth0", "Combined"), "1");
        assert_eq!(second(), 0);
        assert_eq!(ethtool(lab, "-L eth0 combined 2"), "");
        assert!(second() > 0);
        let refused = "Cannot set device channel parameters: Invalid argument\n";
        assert_eq!(ethtool(lab, "-L eth0 combined 3"), refused);
        assert_eq!(ethtool(lab, "-L eth0 rx 1"), refused);
    });
}

#[test]
fn offloads_and_statistics_are_shown_and_switched() {
    with_lab(|_, lab| {
        assert_eq!(ethtool(lab, "-K eth0 tso off gro off"), "");
        assert_eq!(shown(lab, "-k eth0", "tcp-segmentation-offload"), "off");
        assert_eq!(shown(lab, "-k eth0", "generic-receive-offload"), "off");
        assert!(ethtool(lab, "-K eth0 rx off").starts_with("Cannot change rx-checksumming\n"));
        let before: u64 = shown(lab, "-S eth0", "rx_packets").parse().expect("a number");
        round_trips(lab);
        let after: u64 = shown(lab, "-S eth0", "rx_packets").parse().expect("a number");
        assert!(after >= before + 3, "{before} {after}");
        assert_eq!((shown(lab, "-i eth0", "driver"), shown(lab, "-i eth0", "bus-info")), ("virtio_net".into(), "virtio0".into()));
    });
}
