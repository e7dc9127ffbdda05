//! Daemons die by SIGKILL; the lab goes on, or goes away completely.

use crate::{TWO_HOSTS, eventually, expect_clean, in_site};
use ringlab_tests::lab::{Lab, Site};
use ringlab_tests::leftovers::Snapshot;
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a process number"), Signal::KILL).expect("it runs");
}

fn fetches(lab: &Lab<'_>) -> bool {
    let out = lab.builtin("a", "fetch", &["-f", "http://b/"]).output().expect("starts");
    out.status.success() && out.stdout == b"hello"
}

#[test]
fn killed_nicd_is_restarted_and_connections_survive() {
    in_site(|site| {
        let yaml = TWO_HOSTS.replace("- {builtin: httpd", "- {builtin: stream, args: [-s], ready: {tcp: 5201}}\n      - {builtin: httpd");
        let lab = site.deploy(&yaml);
        let transfer = lab.spawn(lab.builtin("a", "stream", &["-c", "b", "-t", "4", "--verify", "--json"]));
        std::thread::sleep(std::time::Duration::from_secs(1));
        let old = lab.pid("a", "nicd");
        kill(old);
        eventually("nicd runs again", 5, || {
            let pid = lab.node("a")["nicd_pid"].as_i64().unwrap_or(0);
            pid > 1 && pid != i64::from(old)
        });
        let out = transfer.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}\n{}\n{}", String::from_utf8_lossy(&out.stderr), site.logs());
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["verified"], true, "{json}");
        assert!(fetches(&lab));
        assert_eq!(lab.node("a")["restarts"], 1);
    });
}

#[test]
fn killed_hostd_reboots_and_the_lab_goes_on() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let old = lab.pid("b", "hostd");
        kill(old);
        eventually("the host has rebooted and serves again", 10, || fetches(&lab));
        assert_ne!(lab.pid("b", "hostd"), old);
    });
}

#[test]
fn killed_agent_leaves_the_lab_up_and_the_next_adopts_it() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let hostd = lab.pid("b", "hostd");
        kill(agent_pid(site));
        assert!(fetches(&lab), "{}", site.logs());
        assert_eq!(lab.pid("b", "hostd"), hostd, "the same process goes on");
        let old = lab.pid("a", "nicd");
        kill(old);
        eventually("the adopted lab is supervised", 10, || fetches(&lab));
    });
}

/// The agent of a site: found by the socket that it owns, not by name.
fn agent_pid(site: &Site) -> i32 {
    let processes = Snapshot::of(&site.dir).processes;
    let agents: Vec<&String> = processes.iter().filter(|p| p.contains("labctl") && p.contains(" agent")).collect();
    assert_eq!(agents.len(), 1, "{processes:?}");
    agents[0].split(':').next().expect("pid").parse().expect("a number")
}

#[test]
fn after_sigkill_of_everything_destroy_removes_all() {
    let yaml = TWO_HOSTS.replace("a: {}", "a: {kind: linux}");
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let lab = site.deploy(&yaml);
    let mut pids = vec![agent_pid(&site), lab.pid("a", "nicd"), lab.pid("b", "nicd"), lab.pid("b", "hostd")];
    for pid in pids.drain(..) {
        kill(pid);
    }
    site.ok(&["destroy", "two"]);
    expect_clean(&site.dir, &before);
}

#[test]
fn after_sigkill_of_everything_the_next_agent_repairs_or_removes_the_lab() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    {
        let lab = site.deploy(TWO_HOSTS);
        for pid in [agent_pid(&site), lab.pid("a", "nicd"), lab.pid("a", "hostd"), lab.pid("b", "nicd"), lab.pid("b", "hostd")] {
            kill(pid);
        }
        // Deploying the same file brings the lab up again, whatever the next agent found.
        site.ok(&["deploy", &lab.file]);
        eventually("the lab works again", 10, || fetches(&lab));
    }
    site.ok(&["destroy", "--all"]);
    expect_clean(&site.dir, &before);
}
