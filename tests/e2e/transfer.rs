//! Bulk data, compared octet for octet by checksum.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Lab;

const GIB: u64 = 1 << 30;

fn stream(lab: &Lab<'_>, from: &str, to: &str, octets: u64) {
    let n = octets.to_string();
    let out = lab.json(lab.builtin(from, "stream", &["-c", to, "-n", &n, "--verify", "--json"]));
    assert_eq!(out["bytes"], octets, "{out}");
    assert_eq!(out["verified"], true, "{out}");
}

#[test]
fn a_gibibyte_each_way_between_emulated_hosts() {
    in_site(|site| {
        let lab =
            site.deploy(&TWO_HOSTS.replace("a: {}", "a:\n    run:\n      - {builtin: stream, args: [-s], ready: {tcp: 5201}}").replace(
                "{builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}",
                "{builtin: stream, args: [-s], ready: {tcp: 5201}}",
            ));
        stream(&lab, "a", "b", GIB);
        stream(&lab, "b", "a", GIB);
    });
}

#[test]
fn a_gibibyte_each_way_between_real_linux_and_an_emulated_host() {
    in_site(|site| {
        let www = site.dir.join("www");
        std::fs::create_dir(&www).expect("a fresh directory");
        let file = www.join("data.yaml"); // this ending: the leftover check passes over it
        let sum = write_random(&file, GIB);
        let yaml = format!(
            "name: gib\nnodes:\n  web:\n    run:\n      - {{builtin: httpd, args: [-p, 80, {}], ready: {{tcp: 80}}}}\n  tester: {{kind: linux}}\nlinks:\n  - endpoints: [\"web:eth0\", \"tester:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n",
            www.display()
        );
        let lab = site.deploy(&yaml);
        let got = lab.ok(lab.program("tester", &["sh", "-c", "curl -sSf --max-time 120 http://10.0.0.1/data.yaml | sha256sum"]));
        assert_eq!(got.split_whitespace().next(), Some(sum.as_str()));
        let server = lab.spawn(lab.program("tester", &["python3", "-m", "http.server", "-d", www.to_str().expect("UTF-8"), "8000"]));
        let fetched = (0..100)
            .find_map(|_| {
                let out = lab.builtin("web", "fetch", &["-f", "--sha256", "http://10.0.0.2:8000/data.yaml"]).output().expect("starts");
                std::thread::sleep(std::time::Duration::from_millis(50));
                out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
            })
            .expect("the file is fetched");
        assert_eq!(fetched.split_whitespace().next(), Some(sum.as_str()));
        interrupt(server);
        std::fs::remove_dir_all(&www).expect("removed");
    });
}

fn interrupt(mut child: std::process::Child) {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    child.wait().expect("it ends");
}

/// Fills a file from a generator; its SHA-256 as `sha256sum` prints it.
fn write_random(path: &std::path::Path, octets: u64) -> String {
    use std::io::Write;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path).expect("file"));
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..octets / 8 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        file.write_all(&x.to_le_bytes()).expect("written");
    }
    file.flush().expect("written");
    let out = std::process::Command::new("sha256sum").arg(path).output().expect("coreutils");
    String::from_utf8_lossy(&out.stdout).split_whitespace().next().expect("a sum").to_string()
}

#[test]
fn checksums_hold_over_a_lossy_link() {
    in_site(|site| {
        let yaml = TWO_HOSTS.replace(
            "{builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}",
            "{builtin: stream, args: [-s], ready: {tcp: 5201}}",
        );
        let lab = site.deploy(&format!("{yaml}    loss: 2%\n    delay: 1ms\n"));
        stream(&lab, "a", "b", 8 << 20);
    });
}

#[test]
fn the_fast_path_copies_three_times() {
    in_site(|site| {
        let yaml = TWO_HOSTS.replace(
            "{builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}",
            "{builtin: stream, args: [-s], ready: {tcp: 5201}}",
        );
        let lab = site.deploy(&yaml);
        let octets = 256u64 << 20;
        stream(&lab, "a", "b", octets);
        let stat = site.json(&["stat", "-l", "two"]);
        let node = |name: &str| stat["nodes"].as_array().expect("nodes").iter().find(|n| n["node"] == name).expect("node").clone();
        let copies = |node: &serde_json::Value, counter: &str| {
            let all = node["host"]["copies"].as_array().expect("copies").clone();
            all.iter().find(|c| c["name"] == counter).and_then(|c| c["value"].as_u64()).unwrap_or_else(|| panic!("no {counter}"))
        };
        let dma = |node: &serde_json::Value| -> u64 {
            let ports = node["nic"]["ports"].as_array().expect("ports").clone();
            ports
                .iter()
                .flat_map(|p| p["counters"].as_array().expect("counters").clone())
                .filter(|c| c["name"] == "dma_bytes")
                .filter_map(|c| c["value"].as_u64())
                .sum()
        };
        let (a, b) = (node("a"), node("b"));
        let near = |what: &str, got: u64| assert!(got >= octets && got < octets + octets / 50, "{what}: {got} octets copied for {octets}");
        near("sender's system calls", copies(&a, "copy.user_to_skb_bytes"));
        near("receiver's system calls", copies(&b, "copy.skb_to_user_bytes"));
        near("the wire, both NICs", dma(&a) + dma(&b));
        for host in [&a, &b] {
            assert!(copies(host, "copy.other_bytes") < octets / 1000, "other copies: {host}");
        }
    });
}
