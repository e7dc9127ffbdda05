//! Every verb on every shipped topology, and the demo.

use crate::{eventually, in_site};
use ringlab_tests::bin_dir;
use ringlab_tests::lab::{Lab, Site};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn topologies() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new(ROOT).join("topologies")).expect("topologies/");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 6, "{paths:?}");
    paths
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().unwrap_or_else(|| panic!("no list {field} in {value}"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text {field} in {value}"))
}

#[test]
fn every_verb_works_on_every_shipped_topology() {
    for path in topologies() {
        in_site(|site| {
            let file = path.to_str().expect("UTF-8");
            let valid = site.json(&["validate", file]);
            assert_eq!(valid["files"][0]["ok"], true, "{valid}");
            let name = text(&valid["files"][0], "lab").to_string();
            assert!(site.ok(&["validate", file]).contains(&name));
            assert!(site.ok(&["graph", file]).contains("graph"));
            let done = site.json(&["deploy", file]);
            assert_eq!(done["ok"], true, "{done}");
            let lab = Lab { site, name, file: file.to_string() };
            look(&lab);
            let nodes = list(&lab.inspect(), "nodes").to_vec();
            nodes.iter().for_each(|node| use_node(&lab, node));
            let follower = lab.spawn(site.labctl(&["logs", "-f", text(&nodes[0], "name")]));
            nodes.iter().for_each(|node| restart(&lab, node));
            eventually("the checks hold after every node was restarted", 20, || site.run(&["check"]).status.success());
            site.ok(&["destroy", &lab.name]);
            let out = follower.wait_with_output().expect("the log ends with its lab");
            assert!(out.status.success() && !out.stdout.is_empty(), "{out:?}");
            assert!(list(&site.json(&["list"]), "labs").is_empty());
        });
    }
}

/// `list`, `inspect`, `stat` of the whole lab.
fn look(lab: &Lab<'_>) {
    let site = lab.site;
    let labs = site.json(&["list"]);
    let [summary] = list(&labs, "labs") else { panic!("one lab: {labs}") };
    assert_eq!(text(summary, "name"), lab.name);
    assert_eq!(summary["nodes"], summary["nodes_running"], "{labs}");
    let inspect = lab.inspect();
    let tables = [site.ok(&["inspect"]), site.ok(&["stat"])];
    assert!(site.ok(&["list"]).contains(&lab.name));
    for node in list(&inspect, "nodes") {
        assert_eq!(text(node, "state"), "running", "{inspect}");
        tables.iter().for_each(|table| assert!(table.contains(text(node, "name")), "{table}"));
    }
    assert!(list(&inspect, "links").iter().all(|link| link["up"] == true), "{inspect}");
    assert_eq!(list(&site.json(&["stat"]), "nodes").len(), list(&inspect, "nodes").len());
}

/// `exec`, `stat`, `logs`, `trace` of one node.
fn use_node(lab: &Lab<'_>, node: &Value) {
    let (site, name) = (lab.site, text(node, "name"));
    assert!(site.ok(&["stat", name]).contains(name));
    let stat = site.json(&["stat", name]);
    assert!(!list(&stat["nodes"][0]["nic"], "ports").is_empty(), "{stat}");
    assert!(!site.ok(&["logs", name]).is_empty());
    match text(node, "kind") {
        "linux" => {
            let out = lab.program(name, &["sh", "-c", "ip -br address; exit 3"]).output().expect("starts");
            assert_eq!(out.status.code(), Some(3));
            let address = text(&node["interfaces"][0], "name");
            assert!(String::from_utf8_lossy(&out.stdout).contains(address), "{out:?}");
            refuses(&site.run(&["trace", name]));
        }
        "switch" => {
            refuses(&lab.builtin(name, "ping", &["-c", "1", "127.0.0.1"]).output().expect("starts"));
            refuses(&site.run(&["trace", name]));
        }
        _ => {
            let ping = lab.ok(lab.builtin(name, "ping", &["-c", "1", "127.0.0.1"]));
            assert!(ping.contains("1 received"), "{ping}");
            trace(lab, name);
        }
    }
}

/// Refused as wrong usage, in a sentence.
fn refuses(out: &Output) {
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("labctl: node "), "{out:?}");
}

/// Follows what a host sends, until enough was seen.
fn trace(lab: &Lab<'_>, name: &str) {
    let mut trace = lab.spawn(lab.site.labctl(&["trace", name, "-n", "3", "--format", "json"]));
    eventually("the trace has seen enough", 10, || {
        lab.ok(lab.builtin(name, "ping", &["-c", "1", "127.0.0.1"]));
        trace.try_wait().expect("it is ours").is_some()
    });
    let out = trace.wait_with_output().expect("it has ended");
    assert!(out.status.success(), "{out:?}");
    let events: Vec<Value> = String::from_utf8_lossy(&out.stdout).lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(events.len(), 3, "{events:?}");
    assert!(events.iter().all(|e| !text(e, "point").is_empty() && e["time_ns"].is_u64()), "{events:?}");
}

/// `restart`: other processes, the same node.
fn restart(lab: &Lab<'_>, node: &Value) {
    let name = text(node, "name");
    let done = lab.site.json(&["restart", name]);
    assert_eq!((text(&done, "node"), &done["ok"]), (name, &Value::Bool(true)));
    let now = lab.node(name);
    assert_eq!(text(&now, "state"), "running");
    for daemon in ["nicd_pid", "hostd_pid"] {
        assert!(now[daemon] != node[daemon] || node[daemon] == 0, "{daemon} of {name}: {now}");
    }
    for field in ["kind", "cpu", "netns"] {
        assert_eq!(now[field], node[field], "{now}");
    }
}

#[test]
fn doctor_schema_and_completion_need_no_lab() {
    in_site(|site| {
        let doctor = site.json(&["doctor"]);
        assert_eq!(doctor["usable"], true, "{doctor}");
        assert!(list(&doctor, "findings").iter().all(|f| text(f, "verdict") != "missing"), "{doctor}");
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            assert!(site.ok(&["completion", shell]).contains("destroy"), "{shell}");
        }
        // bash takes it, and knows the verbs.
        let script = "source /dev/stdin; COMP_WORDS=(labctl des); COMP_CWORD=1; _labctl labctl des labctl; echo \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        let mut child = bash.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash");
        child.stdin.take().expect("stdin").write_all(site.ok(&["completion", "bash"]).as_bytes()).expect("written");
        let out = child.wait_with_output().expect("ends");
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "destroy");
    });
}

#[test]
fn schema_knows_every_field_of_the_shipped_topologies() {
    in_site(|site| {
        let schema: Value = serde_json::from_str(&site.ok(&["schema"])).expect("JSON");
        for path in topologies() {
            let yaml = std::fs::read_to_string(&path).expect("it is there");
            let fields = yaml.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase())).filter_map(|l| l.split(':').next());
            for field in fields {
                assert!(schema["properties"][field].is_object(), "{}: the schema has no {field}", path.display());
            }
        }
    });
}

#[test]
fn demo_holds_every_step_and_leaves_nothing() {
    in_site(|site| {
        let out = demo(site, "");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        for step in ["0% packet loss", "Hello from an emulated host", "NAPI polls", "copies", "nothing is left"] {
            assert!(text.contains(step), "no `{step}` in\n{text}");
        }
    });
}

#[test]
fn demo_fails_where_a_step_does_not_hold_and_leaves_nothing() {
    in_site(|site| {
        let programs = site.dir.join("bin");
        std::fs::create_dir(&programs).expect("a fresh directory");
        std::fs::write(programs.join("curl"), "#!/bin/sh\necho another page\n").expect("written");
        std::fs::set_permissions(programs.join("curl"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
        let out = demo(site, &format!("{}:", programs.display()));
        std::fs::remove_dir_all(&programs).expect("removed");
        assert!(!out.status.success(), "{out:?}");
        assert!(String::from_utf8_lossy(&out.stdout).contains("another page"), "{out:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("demo: FAILED"), "{out:?}");
    });
}

/// What `make demo` runs once everything is built. Its state lies below the site's, where leftovers are looked for.
fn demo(site: &Site, path: &str) -> Output {
    assert!(bin_dir().join("labctl").exists());
    let old = std::env::var("PATH").unwrap_or_default();
    let mut demo = Command::new(Path::new(ROOT).join("tests/demo.sh"));
    demo.env("TMPDIR", &site.dir).env("PATH", format!("{path}{old}")).stdin(Stdio::null()).output().expect("bash")
}
