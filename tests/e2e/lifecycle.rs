//! Deploy, change, destroy: all or nothing, idempotent, side by side.

use crate::{TWO_HOSTS, eventually, expect_clean, in_site};
use ringlab_tests::lab::Site;
use ringlab_tests::leftovers::Snapshot;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::process::Stdio;

#[test]
fn deploying_twice_changes_nothing() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let before = lab.inspect();
        let again = site.ok(&["deploy", &lab.file]);
        assert_eq!(lab.inspect(), before, "{again}");
    });
}

#[test]
fn a_changed_link_is_changed_in_place() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let hostd = lab.pid("b", "hostd");
        let rtt = || {
            let json = lab.json(lab.builtin("a", "ping", &["-c", "5", "-i", "0.05", "--json", "b"]));
            let rtts: Vec<f64> = json["rtt_ns"].as_array().expect("times").iter().filter_map(serde_json::Value::as_f64).collect();
            ringlab_tests::median(&rtts) / 1e6
        };
        assert!(rtt() < 5.0);
        site.file("two.yaml", &format!("{TWO_HOSTS}    delay: 15ms\n"));
        let dry = site.ok(&["deploy", "--dry-run", &lab.file]);
        assert!(dry.contains("delay"), "{dry}");
        assert!(rtt() < 5.0, "a dry run changes nothing");
        site.ok(&["deploy", &lab.file]);
        let slow = rtt();
        assert!((30.0..35.0).contains(&slow), "{slow} ms with 15 ms each way");
        assert_eq!(lab.pid("b", "hostd"), hostd, "the host was not restarted");
    });
}

#[test]
fn two_labs_with_the_same_node_names_do_not_meet() {
    in_site(|site| {
        let one = site.deploy(TWO_HOSTS);
        let two = site.deploy(&TWO_HOSTS.replace("name: two", "name: other").replace("hello", "other"));
        assert_eq!(one.ok(one.builtin("a", "fetch", &["-f", "http://b/"])), "hello");
        assert_eq!(two.ok(two.builtin("a", "fetch", &["-f", "http://b/"])), "other");
        let labs = site.json(&["list"]);
        let names: Vec<&str> =
            labs.as_array().or_else(|| labs["labs"].as_array()).expect("labs").iter().filter_map(|l| l["name"].as_str()).collect();
        assert!(names.contains(&"two") && names.contains(&"other"), "{labs}");
        site.ok(&["destroy", "two"]);
        assert_eq!(two.ok(two.builtin("a", "fetch", &["-f", "http://b/"])), "other");
    });
}

#[test]
fn interrupted_deploy_is_undone() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let mut yaml = String::from("name: many\nnodes:\n  sw: {kind: switch}\n");
    (0..40).for_each(|i| yaml.push_str(&format!("  h{i}: {{}}\n")));
    yaml.push_str("links:\n");
    (0..40).for_each(|i| yaml.push_str(&format!("  - endpoints: [\"h{i}:eth0\", \"sw:p{i}\"]\n")));
    let file = site.file("many.yaml", &yaml);
    let mut deploy = site.labctl(&["deploy", &file]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    // In the middle: some daemons run, the deployment has not ended.
    eventually("a daemon runs", 20, || Snapshot::of(&site.dir).processes.iter().any(|p| p.contains("hostd")));
    kill_process(Pid::from_child(&deploy), Signal::INT).expect("it runs");
    let status = deploy.wait().expect("it ends");
    assert!(!status.success(), "the deployment was interrupted");
    expect_clean(&site.dir, &before);
}

#[test]
fn failed_deploy_is_undone_and_says_why() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let yaml = TWO_HOSTS.replace("a: {}", "a: {sysctls: {net.ipv4.no_such_thing: 1}}");
    let file = site.file("two.yaml", &yaml);
    let out = site.run(&["deploy", &file]);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(4), "{text}");
    assert!(text.contains("net.ipv4.no_such_thing"), "{text}");
    expect_clean(&site.dir, &before);
}

#[test]
fn failed_change_leaves_the_lab_as_it_was() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let before = lab.inspect();
        let yaml = TWO_HOSTS.replace("a: {}", "a: {}\n  c: {sysctls: {net.ipv4.no_such_thing: 1}}\n  d: {kind: linux}");
        let yaml = format!("{yaml}  - endpoints: [\"c:eth0\", \"d:eth0\"]\n");
        site.file("two.yaml", &yaml);
        let out = site.run(&["deploy", &lab.file]);
        assert_eq!(out.status.code(), Some(4), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(lab.inspect(), before);
        assert_eq!(lab.ok(lab.builtin("a", "fetch", &["-f", "http://b/"])), "hello");
    });
}

#[test]
fn two_labs_with_real_linux_nodes_of_the_same_name_do_not_meet() {
    in_site(|site| {
        let yaml = TWO_HOSTS.replace("a: {}", "a: {kind: linux}");
        let one = site.deploy(&yaml);
        let two = site.deploy(&yaml.replace("name: two", "name: other").replace("hello", "other"));
        // The same interface name, the same addresses, in two namespaces.
        for (lab, page) in [(&one, "hello"), (&two, "other")] {
            assert_eq!(lab.ok(lab.program("a", &["curl", "-sSf", "--max-time", "5", "http://b/"])), page);
        }
        site.ok(&["destroy", "two"]);
        assert_eq!(two.ok(two.program("a", &["curl", "-sSf", "--max-time", "5", "http://b/"])), "other");
    });
}

#[test]
fn deployments_at_once_find_one_agent() {
    in_site(|site| {
        let names = ["one", "two", "three", "one", "two", "three"];
        let deploy = |name: &&str| {
            let file = site.file(&format!("{name}.yaml"), &TWO_HOSTS.replace("name: two", &format!("name: {name}")));
            let mut deploy = site.labctl(&["deploy", &file]);
            deploy.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts")
        };
        let children: Vec<_> = names.iter().map(deploy).collect();
        for child in children {
            let out = child.wait_with_output().expect("ends");
            assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), site.logs());
        }
        assert_eq!(site.json(&["list"])["labs"].as_array().map(Vec::len), Some(3));
        let agents = Snapshot::of(&site.dir).processes.iter().filter(|p| p.trim_end().ends_with("labctl agent")).count();
        assert_eq!(agents, 1);
    });
}

#[test]
fn what_runs_in_a_lab_ends_with_it() {
    in_site(|site| {
        let yaml = TWO_HOSTS.replace("a: {}", "a: {}\n  c: {kind: linux}");
        let lab = site.deploy(&format!("{yaml}  - endpoints: [\"c:eth0\", \"b:eth1\"]\n"));
        let commands = [
            lab.builtin("a", "ping", &["-c", "10000", "b"]),
            lab.program("c", &["sh", "-c", "trap '' HUP; echo up; sleep 1000"]),
            site.labctl(&["trace", "-l", "two", "b"]),
            site.labctl(&["logs", "-f", "-l", "two", "a"]),
        ];
        let mut children: Vec<_> = commands.into_iter().map(|c| lab.spawn(c)).collect();
        // Each says something as soon as it runs.
        for child in &mut children {
            let mut octet = [0];
            child.stdout.as_mut().expect("piped").read_exact(&mut octet).expect("it runs");
        }
        site.ok(&["destroy", "two"]);
        for (position, child) in children.iter_mut().enumerate() {
            // What it still prints is not waited for: the pipe is closed.
            drop(child.stdout.take());
            eventually(&format!("command {position} ends with the lab"), 5, || child.try_wait().expect("it is ours").is_some());
        }
    });
}

#[test]
fn exec_passes_streams_status_and_signals() {
    in_site(|site| {
        let lab = site.deploy(&TWO_HOSTS.replace("a: {}", "a: {kind: linux}"));
        let mut cat = lab.program("a", &["sh", "-c", "cat; echo err >&2; exit 7"]);
        let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        child.stdin.take().expect("stdin").write_all(b"through\n").expect("written");
        let out = child.wait_with_output().expect("ends");
        assert_eq!((out.status.code(), &out.stdout[..], &out.stderr[..]), (Some(7), &b"through\n"[..], &b"err\n"[..]));
        let mut sleeper =
            lab.spawn(lab.program("a", &["sh", "-c", "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done"]));
        let mut ready = [0; 6];
        sleeper.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("it says so");
        kill_process(Pid::from_child(&sleeper), Signal::TERM).expect("it runs");
        let out = sleeper.wait_with_output().expect("ends");
        assert_eq!(out.status.code(), Some(9));
        assert!(String::from_utf8_lossy(&out.stdout).contains("caught"));
        let ping = lab.builtin("b", "ping", &["-c", "1", "-W", "1", "10.0.0.99"]).output().expect("starts");
        assert_eq!(ping.status.code(), Some(1), "ping without answers exits 1");
    });
}

#[test]
fn every_verb_prints_for_people_and_programs() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        lab.ok(lab.builtin("a", "fetch", &["-f", "http://b/"]));
        for verb in [&["list"][..], &["inspect"], &["stat", "a"]] {
            assert!(!site.ok(verb).is_empty());
            site.json(verb);
        }
        assert!(site.ok(&["logs", "a"]).lines().count() > 0);
        site.ok(&["doctor"]);
        assert!(site.ok(&["completion", "bash"]).contains("labctl"));
        let schema: serde_json::Value = serde_json::from_str(&site.ok(&["schema"])).expect("JSON");
        assert!(schema["properties"]["links"].is_object());
        site.ok(&["validate", &lab.file]);
        let mut trace = lab.spawn(site.labctl(&["trace", "-l", "two", "b", "-n", "200"]));
        eventually("the trace has seen 200 events", 10, || {
            lab.ok(lab.builtin("a", "fetch", &["-f", "http://b/"]));
            trace.try_wait().expect("it is ours").is_some()
        });
        let out = trace.wait_with_output().expect("it has ended");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        for point in ["irq_handler_entry", "napi_poll", "ip_rcv", "tcp_v4_rcv"] {
            assert!(text.contains(point), "no {point} in\n{text}");
        }
        site.ok(&["restart", "b"]);
        eventually("b serves again", 10, || lab.builtin("a", "fetch", &["-f", "http://b/"]).output().expect("starts").status.success());
        site.ok(&["link", "down", "a:eth0"]);
        assert_eq!(lab.inspect()["links"][0]["up"], false);
        assert!(!lab.builtin("a", "ping", &["-c", "1", "-W", "1", "b"]).output().expect("starts").status.success());
        site.ok(&["link", "up", "a:eth0"]);
        eventually("the link is up", 5, || {
            lab.builtin("a", "ping", &["-c", "1", "-W", "1", "b"]).output().expect("starts").status.success()
        });
    });
}

#[test]
fn shipped_topologies_deploy_and_pass_their_checks() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../topologies");
    for entry in std::fs::read_dir(dir).expect("topologies/") {
        let path = entry.expect("entry").path();
        in_site(|site| {
            site.ok(&["run", path.to_str().expect("UTF-8")]);
        });
    }
}
