//! What Debian's tools print on an emulated host and in a real namespace, about the same network and the same sockets.
//!
//! The cases are shell commands of `tools/look.sh`, which also makes alike what cannot be equal; `tools/sockets.py` holds sockets
//! in known states meanwhile.

use crate::compare::{Cases, cases};
use crate::expect_alike;
use crate::worlds::{Program, Worlds};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

const LOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/parity/tools/look.sh");
const SOCKETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/parity/tools/sockets.py");
/// What a veth's links have beyond those of a NIC, or otherwise.
const OF_VETH: [&str; 7] =
    ["link_index", "link_netnsid", "linkinfo", "inet6_addr_gen_mode", "num_tx_queues", "num_rx_queues", "tso_max_size"];

/// Cases of an end, on Linux and here.
fn look(worlds: &Worlds<'_>, end: usize, what: &str) -> [Cases; 2] {
    let name = ["a", "b"][end];
    std::thread::scope(|scope| {
        let runs = worlds.commands(end, &["sh", LOOK, name, what]).map(|mut c| scope.spawn(move || c.output().expect("it starts")));
        runs.map(|run| {
            let out = run.join().expect("the run");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            cases(&String::from_utf8_lossy(&out.stdout)).into_iter().map(flat).collect()
        })
    })
}

/// JSON as one line for each value, with the way to it.
fn flat((case, lines): (String, Vec<String>)) -> (String, Vec<String>) {
    if !case.contains("_json_") {
        return (case, lines);
    }
    let value = serde_json::from_str(&lines.concat()).unwrap_or_else(|e| panic!("{case} is no JSON ({e}): {lines:?}"));
    let mut found = BTreeMap::new();
    walk(String::new(), &value, &mut found);
    (case, found.into_iter().map(|(key, value)| format!("{key} = {value}")).collect())
}

fn walk(at: String, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Array(all) => all.iter().enumerate().for_each(|(i, v)| walk(format!("{at}[{i}]"), v, found)),
        Value::Object(all) => {
            all.iter().filter(|(k, _)| !OF_VETH.contains(&k.as_str())).for_each(|(k, v)| walk(format!("{at}.{k}"), v, found));
        }
        value => drop(found.insert(at, value.to_string())),
    }
}

/// A program that says lines, and ends when its input does.
struct Holder {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Holder {
    fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("text");
        assert_eq!(line.trim_end(), word);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Starts a role of `sockets.py` in both worlds.
fn hold(worlds: &Worlds<'_>, end: usize, role: &str) -> [Holder; 2] {
    worlds.commands(end, &["timeout", "90", "python3", SOCKETS, role]).map(Holder::start)
}

/// Sysctls that Linux has in its first namespace alone, or that it sizes by the machine's memory and build.
const ELSEWHERE: [&str; 14] = [
    "net.core.dev_weight",
    "net.core.netdev_",
    "net.core.rmem_",
    "net.core.wmem_",
    "net.ipv4.neigh.default.",
    "net.ipv4.tcp_allowed_congestion_control",
    "net.ipv4.tcp_available_congestion_control",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.icmp_",
];

/// What `sysctl -a` shows here, Linux shows with the same values.
fn expect_sysctls(worlds: &Worlds<'_>) {
    let [linux, ours] = worlds.commands(0, &["timeout", "60", "sysctl", "-a", "-r", r"^net\.(core|ipv4)\."]).map(|mut c| {
        let out = c.output().expect("it starts");
        String::from_utf8_lossy(&out.stdout).into_owned()
    });
    let rows = |text: &str| text.lines().filter_map(|l| l.split_once(" = ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let (linux, ours): (BTreeMap<String, String>, BTreeMap<String, String>) = (rows(&linux), rows(&ours));
    assert!(ours.len() > 100, "{} sysctls", ours.len());
    for (name, value) in ours.iter().filter(|(name, _)| !ELSEWHERE.iter().any(|e| name.starts_with(e))) {
        assert_eq!(linux.get(name), Some(value), "{name}: Linux's and ours");
    }
}

#[test]
fn tools_show_the_same() {
    let program = Program::compile();
    let worlds = Worlds::new(&program);
    worlds.make_links_alike();
    expect_sysctls(&worlds);
    let [mut linux, mut ours] = look(&worlds, 0, "host");
    let mut servers = hold(&worlds, 1, "server");
    servers.iter_mut().for_each(|s| s.expect("ready"));
    let mut clients = hold(&worlds, 0, "client");
    clients.iter_mut().chain(&mut servers).for_each(|h| h.expect("set"));
    for end in [0, 1] {
        let [there, here] = look(&worlds, end, "sockets");
        linux.extend(there);
        ours.extend(here);
    }
    assert!(linux.len() >= 100, "{} cases", linux.len());
    expect_alike(&linux, &ours);
}
