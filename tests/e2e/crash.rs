//! Daemons die by SIGKILL; the lab goes on, or goes away completely.

use crate::{TWO_HOSTS, Transfer, eventually, expect_clean, expect_released, frames, in_site, with_stream_server};
use ringlab_tests::lab::{Lab, ROUTED, Site};
use ringlab_tests::leftovers::{Held, Snapshot};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;

pub(crate) fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a process number"), Signal::KILL).expect("it runs");
}

pub(crate) fn fetches(lab: &Lab<'_>) -> bool {
    let out = lab.builtin("a", "fetch", &["-f", "http://b/"]).output().expect("starts");
    out.status.success() && out.stdout == b"hello"
}

/// Kills a node's nicd once octets of a transfer from `a` to `b` are seen at `seen`; it is started anew, and none is lost.
fn nicd_dies_under_a_transfer(lab: &Lab<'_>, node: &str, seen: &str) {
    let transfer = Transfer::start(lab, seen);
    let old = lab.pid(node, "nicd");
    kill(old);
    eventually("nicd runs again", 5, || {
        let pid = lab.node(node)["nicd_pid"].as_i64().unwrap_or(0);
        pid > 1 && pid != i64::from(old)
    });
    transfer.expect_verified();
    assert!(fetches(lab));
    assert_eq!(lab.node(node)["restarts"], 1);
}

#[test]
fn killed_nicd_is_restarted_and_connections_survive() {
    in_site(|site| {
        let lab = site.deploy(&with_stream_server(TWO_HOSTS));
        nicd_dies_under_a_transfer(&lab, "a", "b");
    });
}

#[test]
fn stopped_nicd_is_a_lost_device_and_its_host_goes_on() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let nicd = Pid::from_raw(lab.pid("a", "nicd")).expect("a process number");
        kill_process(nicd, Signal::STOP).expect("it runs");
        // What the NIC is to be told.
        lab.ok(lab.program("a", &["ethtool", "-C", "eth0", "rx-usecs", "20"]));
        let carrier = || lab.ok(lab.program("a", &["cat", "/sys/class/net/eth0/operstate"]));
        eventually("the device is lost", 20, || carrier() == "down\n");
        let own = ["ping", "-c", "3", "-i", "0.2", "-W", "10", "127.0.0.1"];
        assert!(lab.ok(lab.program("a", &own)).contains("3 received"));
        // While somebody knocks at it in vain, calls are answered.
        let began = std::time::Instant::now();
        lab.ok(lab.program("a", &["sh", "-c", "i=0; while [ $i -lt 300 ]; do cat /proc/net/dev > /dev/null; i=$((i + 1)); done"]));
        assert!(began.elapsed() < std::time::Duration::from_secs(60));
        assert_eq!(carrier(), "down\n");
        kill_process(nicd, Signal::CONT).expect("it runs");
        eventually("the device is back", 20, || carrier() == "up\n");
        assert!(fetches(&lab));
        assert_eq!(lab.pid("a", "nicd"), nicd.as_raw_nonzero().get(), "the same process goes on");
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
    // A program in the background of the namespace: it ends with its machine.
    lab.ok(lab.program("a", &["sh", "-c", "sleep 300 </dev/null >/dev/null 2>&1 & sleep 0.1"]));
    let held = Held::by(&site.dir);
    assert!(!held.memory.is_empty() && held.namespaces.len() == 1, "what to look for is seen: {held:?}");
    assert!(!held.still().is_empty(), "and seen to be held");
    for pid in [agent_pid(&site), lab.pid("a", "nicd"), lab.pid("b", "nicd"), lab.pid("b", "hostd")] {
        kill(pid);
    }
    site.ok(&["destroy", "two"]);
    expect_clean(&site.dir, &before);
    expect_released(&held);
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
    let held = Held::by(&site.dir);
    site.ok(&["destroy", "--all"]);
    expect_clean(&site.dir, &before);
    expect_released(&held);
}

/// Two hosts with a switch between them; `b` listens.
const SWITCHED: &str = "name: switched
nodes:
  a: {}
  b:
    run:
      - {builtin: stream, args: [-s], ready: {tcp: 5201}}
      - {builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}
  sw: {kind: switch}
links:
  - endpoints: [\"a:eth0\", \"sw:p1\"]
    ipv4: [10.0.0.1/24, null]
  - endpoints: [\"b:eth0\", \"sw:p2\"]
    ipv4: [10.0.0.2/24, null]
";

#[test]
fn killed_switch_comes_back_under_a_connection() {
    in_site(|site| {
        let lab = site.deploy(SWITCHED);
        let others = || [("a", "nicd"), ("a", "hostd"), ("b", "nicd"), ("b", "hostd")].map(|(node, daemon)| lab.pid(node, daemon));
        let before = others();
        nicd_dies_under_a_transfer(&lab, "sw", "sw");
        assert!(frames(&lab, "sw") > 100, "the new switch carried the rest");
        assert_eq!(others(), before, "the others did not notice");
    });
}

#[test]
fn killed_nicd_of_a_real_linux_node_gets_its_tap_addresses_and_routes_back() {
    in_site(|site| {
        let node = "a: {kind: linux, routes: [{to: 10.9.0.0/16, via: 10.0.0.2}]}";
        let lab = site.deploy(&TWO_HOSTS.replace("a: {}", node));
        let curl =
            || lab.program("a", &["curl", "-sSf", "--max-time", "1", "http://10.0.0.2/"]).output().expect("starts").stdout == b"hello";
        assert!(curl());
        let route = || lab.ok(lab.program("a", &["ip", "route", "show", "10.9.0.0/16"]));
        let before = route();
        assert!(before.contains("via 10.0.0.2 dev eth0"), "{before}");
        kill(lab.pid("a", "nicd"));
        eventually("the real kernel reaches the host again", 10, curl);
        assert_eq!(route(), before);
    });
}

#[test]
fn killed_router_reboots_and_forwards_again() {
    in_site(|site| {
        let lab = site.deploy(ROUTED);
        assert!(fetches(&lab), "{}", site.logs());
        let old = lab.pid("r", "hostd");
        kill(old);
        eventually("the router forwards again", 10, || fetches(&lab));
        assert_ne!(lab.pid("r", "hostd"), old);
    });
}

#[test]
fn nicd_and_hostd_of_a_node_that_are_killed_together_come_back_together() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        for round in 1..=3 {
            let old = ["nicd", "hostd"].map(|daemon| lab.pid("a", daemon));
            old.into_iter().for_each(kill);
            eventually("the node works again", 30, || fetches(&lab));
            let node = lab.node("a");
            assert_eq!(node["restarts"], 2 * round, "{}", site.logs());
            assert!(node["nicd_pid"] != old[0] && node["hostd_pid"] != old[1], "{node}");
        }
        let log = std::fs::read_to_string(site.dir.join("agent.log")).expect("the agent's log");
        assert!(!log.contains("cannot be started"), "{log}");
    });
}

/// Stops a node's NIC and kills its host; who then starts the host anew has one that waits for its NIC. That is killed then.
fn nic_ends_under_its_waiting_host(lab: &Lab<'_>, before: impl FnOnce(), after: impl FnOnce()) {
    let [nicd, old] = ["nicd", "hostd"].map(|daemon| lab.pid("a", daemon));
    before();
    kill_process(Pid::from_raw(nicd).expect("a process number"), Signal::STOP).expect("it runs");
    kill(old);
    after();
    eventually("a new host waits for its NIC", 30, || daemon_pid(lab.site, "hostd", "a").is_some_and(|pid| pid != old));
    kill(nicd);
}

#[test]
fn host_whose_nic_is_killed_while_it_starts_is_started_with_a_new_one() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        nic_ends_under_its_waiting_host(&lab, || (), || ());
        eventually("the node works again", 30, || fetches(&lab));
        let log = std::fs::read_to_string(site.dir.join("agent.log")).expect("the agent's log");
        assert!(log.contains("failure=nicd-a: ended"), "it is not waited for: {log}");
    });
}

#[test]
fn adopted_lab_of_which_more_is_killed_while_it_is_repaired_goes_on() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let others = || ["nicd", "hostd"].map(|daemon| lab.pid("b", daemon));
        let before = others();
        let mut list = None;
        // Stopped before the agent has ended, the NIC would be hung up on as an orphan.
        let end_agent = || {
            let agent = agent_pid(site);
            kill(agent);
            let stat = || std::fs::read_to_string(format!("/proc/{agent}/stat")).unwrap_or_default();
            eventually("the agent has ended", 30, || stat().is_empty() || stat().contains(") Z "));
        };
        nic_ends_under_its_waiting_host(&lab, end_agent, || list = Some(lab.spawn(site.labctl(&["list"]))));
        let out = list.expect("it was started").wait_with_output().expect("it ends");
        assert!(String::from_utf8_lossy(&out.stdout).contains("two"), "{out:?}\n{}", site.logs());
        eventually("the lab works again", 30, || fetches(&lab));
        assert_eq!(others(), before, "what was whole went on");
    });
}

/// A lab that cannot come up: its program never listens where it should. Its deployment stays half done.
fn half_deployed(site: &Site) -> std::process::Child {
    let yaml = TWO_HOSTS.replace("ready: {tcp: 80}", "ready: {tcp: 81}").replace("  b:\n", "  c: {kind: linux}\n  b:\n");
    let file = site.file("two.yaml", &format!("{yaml}  - endpoints: [\"c:eth0\", \"b:eth1\"]\n"));
    let mut deploy = site.labctl(&["deploy", &file]);
    let child = deploy.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    eventually("all daemons run and the namespace is there", 20, || {
        let processes = Snapshot::of(&site.dir).processes;
        let count = |program: &str| processes.iter().filter(|p| p.contains(&format!("/{program} --run-dir"))).count();
        (count("nicd"), count("hostd")) == (3, 2) && Held::by(&site.dir).namespaces.len() == 1
    });
    child
}

/// The process of a node's daemon, found by its arguments: the lab is not up yet.
fn daemon_pid(site: &Site, program: &str, node: &str) -> Option<i32> {
    let processes = Snapshot::of(&site.dir).processes;
    let wanted = format!(" --node {node} ");
    let found = processes.iter().find(|p| p.contains(&format!("/{program} --run-dir")) && p.contains(&wanted));
    found.map(|p| p.split(':').next().expect("pid").parse().expect("a number"))
}

#[test]
fn half_deployed_lab_of_a_killed_agent_is_removed_by_the_next() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let deploy = half_deployed(&site);
    let held = Held::by(&site.dir);
    kill(agent_pid(&site));
    let out = deploy.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(4), "{text}");
    assert!(text.contains("agent ended in the middle"), "{text}");
    // What was half done is no lab: it is neither listed nor left.
    assert_eq!(site.json(&["list"])["labs"].as_array().map(Vec::len), Some(0), "{}", site.logs());
    expect_clean(&site.dir, &before);
    expect_released(&held);
}

#[test]
fn half_deployed_lab_of_a_killed_labctl_is_undone() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let mut deploy = half_deployed(&site);
    let held = Held::by(&site.dir);
    kill(i32::try_from(deploy.id()).expect("a process number"));
    deploy.wait().expect("it ends");
    expect_clean(&site.dir, &before);
    expect_released(&held);
}

#[test]
fn half_deployed_lab_whose_daemon_dies_is_undone_and_says_so() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let deploy = half_deployed(&site);
    let held = Held::by(&site.dir);
    kill(daemon_pid(&site, "hostd", "b").expect("it runs"));
    let out = deploy.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(4), "{text}");
    assert!(text.contains("hostd-b"), "{text}");
    expect_clean(&site.dir, &before);
    expect_released(&held);
}
