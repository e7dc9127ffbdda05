//! The real kernel and real programs as the peer of an emulated host, through TAP.

use crate::in_site;
use ringlab_tests::lab::Lab;
use serde_json::Value;

const LINUX_PEER: &str = "name: peer
nodes:
  web:
    run:
      - {builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}
  client: {}
  tester: {kind: linux}
  sw: {kind: switch}
links:
  - endpoints: [\"web:eth0\", \"sw:p1\"]
    ipv4: [10.10.0.1/24, null]
  - endpoints: [\"client:eth0\", \"sw:p2\"]
    ipv4: [10.10.0.2/24, null]
  - endpoints: [\"tester:eth0\", \"sw:p3\"]
    ipv4: [10.10.0.3/24, null]
";

#[test]
fn real_ping_and_curl_reach_an_emulated_host() {
    in_site(|site| {
        let lab = site.deploy(LINUX_PEER);
        let ping = lab.ok(lab.program("tester", &["ping", "-c", "5", "-i", "0.05", "-W", "2", "10.10.0.1"]));
        assert!(ping.contains("5 received, 0% packet loss"), "{ping}");
        assert!(ping.contains("ttl=64"), "{ping}");
        let page = lab.ok(lab.program("tester", &["curl", "-sSf", "--max-time", "10", "http://10.10.0.1/"]));
        assert_eq!(page, "hello");
        let page = lab.ok(lab.builtin("client", "fetch", &["-f", "http://web/"]));
        assert_eq!(page, "hello");
    });
}

#[test]
fn emulated_host_pings_real_linux() {
    in_site(|site| {
        let lab = site.deploy(LINUX_PEER);
        let ping = lab.ok(lab.builtin("client", "ping", &["-c", "5", "-i", "0.05", "tester"]));
        assert!(ping.contains("5 received"), "{ping}");
    });
}

#[test]
fn closed_ports_are_refused_and_missing_hosts_unreachable() {
    in_site(|site| {
        let lab = site.deploy(LINUX_PEER);
        let refused = lab.program("tester", &["curl", "-sS", "--max-time", "5", "http://10.10.0.1:81/"]).output().expect("starts");
        assert_eq!(refused.status.code(), Some(7), "curl: connection refused: {}", String::from_utf8_lossy(&refused.stderr));
        let missing = lab.builtin("client", "fetch", &["-f", "http://10.10.0.77/"]).output().expect("starts");
        assert!(!missing.status.success());
        let text = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert!(text.contains("No route to host"), "{text}");
    });
}

#[test]
fn a_thousand_connections_at_once_from_real_linux_and_from_a_host() {
    in_site(|site| {
        let yaml = LINUX_PEER.replace(
            "{builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}",
            "{builtin: echo, args: [--mode, epoll-edge, -p, 7], ready: {tcp: 7}}",
        );
        let lab = site.deploy(&yaml);
        let out =
            lab.json(lab.builtin("client", "echo", &["-c", "web", "-p", "7", "--connections", "1000", "-n", "3", "-l", "512", "--json"]));
        assert_eq!(out["connections"], 1000, "{out}");
        assert_eq!(out["errors"], 0, "{out}");
        assert_eq!(out["octets"], 1000 * 3 * 512, "{out}");
        // The listener's backlog held them all.
        let overflows = mib(&lab, "web", "TcpExt.ListenOverflows");
        assert_eq!(overflows, 0);
        let script = "import socket\n\
            s=[socket.create_connection(('10.10.0.1',7),10) for _ in range(1000)]\n\
            [c.sendall(b'x'*100) for c in s]\n\
            print(sum(len(c.recv(100, socket.MSG_WAITALL)) for c in s))\n";
        let python = std::process::Command::new("python3").arg("--version").output();
        assert!(python.is_ok_and(|o| o.status.success()), "python3 is installed by tests/setup.sh");
        let out = lab.ok(lab.program("tester", &["python3", "-c", script]));
        assert_eq!(out.trim(), "100000");
    });
}

/// A node's MIB counter.
fn mib(lab: &Lab<'_>, node: &str, name: &str) -> u64 {
    let stat: Value = lab.site.json(&["stat", "-l", &lab.name, node]);
    let node = &stat["nodes"][0];
    let counters = node["host"]["mib"].as_array().unwrap_or_else(|| panic!("no mib in {stat}"));
    let c = counters.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name} in {stat}"));
    c["value"].as_u64().expect("a count")
}
