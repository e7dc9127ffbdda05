//! Servers as Debian ships them, started by `run:`, and their clients on another host.

use crate::in_site;
use ringlab_tests::lab::{Lab, Site};
use std::path::{Path, PathBuf};

/// A directory of files for a test, removed with it.
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    pub(crate) fn new() -> Self {
        let dir = ringlab_tests::fresh_dir("ringlab-files-");
        std::fs::create_dir(dir.join("html")).expect("a fresh directory");
        Self(dir)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("written");
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // It is in the temporary directory: whoever cleans that gets it too.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Hosts `a` and `b`; `b` runs a server.
pub(crate) fn serve<'s>(site: &'s Site, cmd: &[&str], port: u16) -> Lab<'s> {
    let cmd = serde_json::to_string(cmd).expect("strings");
    site.deploy(&format!(
        "name: serve\nnodes:\n  a: {{}}\n  b:\n    run:\n      - {{cmd: {cmd}, ready: {{tcp: {port}}}}}\nlinks:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n"
    ))
}

pub(crate) fn sh(lab: &Lab<'_>, node: &str, script: &str) -> String {
    lab.ok(lab.program(node, &["sh", "-ec", script]))
}

pub(crate) fn nginx(files: &Files, workers: u32, sendfile: &str) -> PathBuf {
    let dir = files.0.display();
    files.write(
        "nginx.conf",
        format!(
            "daemon off; worker_processes {workers}; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; sendfile {sendfile}; client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3; \
             uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5; server {{ listen 80; root {dir}/html; }} }}\n"
        ),
    )
}

fn octets(len: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1du64;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    })
    .take(len)
    .collect()
}

fn nginx_serves(workers: u32, sendfile: &str) {
    let files = Files::new();
    files.write("html/small", "small\n");
    let big = files.write("html/big", octets(3_000_001));
    let conf = nginx(&files, workers, sendfile);
    in_site(|site| {
        let lab = serve(site, &["/usr/sbin/nginx", "-c", path(&conf)], 80);
        assert_eq!(sh(&lab, "a", "curl -sSf --max-time 20 http://b/small"), "small\n");
        sh(&lab, "a", &format!("for i in 1 2 3 4; do curl -sSf --max-time 20 http://b/big | cmp - {}; done", big.display()));
        sh(&lab, "a", "for i in 1 2 3 4 5 6; do curl -sSf --max-time 20 http://b/small & done; wait");
    });
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn nginx_with_one_worker_and_sendfile() {
    nginx_serves(1, "on");
}

#[test]
fn nginx_with_four_workers_without_sendfile() {
    nginx_serves(4, "off");
}

#[test]
fn redis_answers_fifty_clients() {
    in_site(|site| {
        let lab = serve(site, &["redis-server", "--save", "", "--protected-mode", "no"], 6379);
        assert_eq!(sh(&lab, "a", "redis-cli -h b set key value && redis-cli -h b get key"), "OK\nvalue\n");
        let out = sh(&lab, "a", "redis-benchmark -h b -t get -n 2000 -c 50 --csv");
        assert!(out.lines().last().is_some_and(|l| l.starts_with("\"GET\"")), "{out}");
    });
}

#[test]
fn iperf3_in_all_directions() {
    in_site(|site| {
        let lab = serve(site, &["iperf3", "-s"], 5201);
        for options in ["", "-R", "-P 8", "--bidir", "-u -b 20M"] {
            let out = lab.json(lab.program("a", &["sh", "-ec", &format!("iperf3 -c b -t 1 -J {options}")]));
            let received = out["end"]["sum_received"]["bytes"].as_u64().or(out["end"]["sum"]["bytes"].as_u64());
            assert!(received.is_some_and(|n| n > 0), "{options}: {}", out["end"]);
        }
    });
}

#[test]
fn python_serves_files() {
    let files = Files::new();
    files.write("html/page", "page\n");
    in_site(|site| {
        let lab = serve(site, &["python3", "-m", "http.server", "-d", path(&files.0.join("html")), "8000"], 8000);
        assert_eq!(sh(&lab, "a", "wget -q -O- http://b:8000/page"), "page\n");
        assert_eq!(sh(&lab, "a", "curl -sSf --max-time 20 http://b:8000/page"), "page\n");
    });
}

#[test]
fn socat_forks_a_child_for_each_connection() {
    in_site(|site| {
        let lab = serve(site, &["socat", "TCP-LISTEN:9001,fork,reuseaddr", "EXEC:tr a-z A-Z"], 9001);
        assert_eq!(sh(&lab, "a", "for i in 1 2 3; do echo again$i | socat -t5 - TCP:b:9001; done"), "AGAIN1\nAGAIN2\nAGAIN3\n");
    });
}

#[test]
fn netcat_carries_octets_both_ways() {
    let files = Files::new();
    let big = files.write("big", octets(1 << 20));
    in_site(|site| {
        let lab = serve(site, &["socat", "TCP-LISTEN:9000,fork,reuseaddr", "EXEC:cat"], 9000);
        sh(&lab, "a", &format!("nc -N b 9000 < {0} | cmp - {0}", big.display()));
        // A shell's own sockets lie on whatever number it chooses.
        assert_eq!(lab.ok(lab.program("a", &["bash", "-ec", "exec 9<>/dev/tcp/b/9000; echo hi >&9; head -n 1 <&9"])), "hi\n");
    });
}
