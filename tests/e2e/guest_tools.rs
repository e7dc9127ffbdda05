//! Debian's own tools for looking at a network, for names, for shells and for load, on emulated hosts.

use crate::guest_servers::{Files, nginx, path, serve, sh};
use crate::in_site;
use ringlab_tests::lab::{Lab, ROUTED};
use std::process::Command;

fn run(lab: &Lab<'_>, args: &[&str]) -> String {
    let out = lab.program("a", args).output().expect("labctl starts");
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

/// Who answers at each distance: without times.
fn hops(text: &str) -> Vec<&str> {
    text.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect()
}

#[test]
fn traceroute_and_mtr_find_the_router_on_the_way() {
    in_site(|site| {
        let lab = site.deploy(ROUTED);
        for way in ["-U", "-I", "-T"] {
            let text = run(&lab, &["traceroute", "-n", "-q", "1", way, "b"]);
            assert_eq!(hops(&text), ["10.0.1.254", "10.0.2.1"], "{way}: {text}");
        }
        let text = run(&lab, &["mtr", "-n", "-r", "-c", "2", "-i", "0.3", "b"]);
        let found: Vec<&str> = text.lines().filter(|l| l.contains("|--")).filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(found, ["10.0.1.254", "10.0.2.1"], "{text}");
    });
}

#[test]
fn arping_asks_and_ping_says_that_nobody_is_there() {
    in_site(|site| {
        let lab = site.deploy(ROUTED);
        let text = run(&lab, &["arping", "-c", "2", "-I", "eth0", "10.0.1.254"]);
        assert!(text.contains("Unicast reply from 10.0.1.254 [") && text.contains("Received 2 response(s)"), "{text}");
        let text = run(&lab, &["arping", "-f", "-w", "1", "-I", "eth0", "10.0.1.77"]);
        assert!(text.contains("Received 0 response(s)"), "{text}");
        let text = run(&lab, &["ping", "-c", "1", "-W", "20", "10.0.1.77"]);
        assert!(text.contains("\nFrom 10.0.1.1 icmp_seq=1 Destination Host Unreachable\n"), "{text}");
        assert!(text.contains("1 packets transmitted, 0 received, +1 errors, 100% packet loss"), "{text}");
    });
}

#[test]
fn monitor_tells_of_changes_and_of_nothing_else() {
    in_site(|site| {
        let lab = site.deploy(ROUTED);
        let script = "d=$(mktemp -d); trap 'rm -r $d' EXIT; ip monitor >$d/out 2>&1 & p=$!
            until ip route replace 10.9.0.0/16 via 10.0.1.254 && ip route del 10.9.0.0/16 && grep -q ^10 $d/out && grep -q ^Del $d/out; do sleep 0.05; done
            kill $p; sort -u $d/out";
        let text = sh(&lab, "a", script);
        assert_eq!(text, "10.9.0.0/16 via 10.0.1.254 dev eth0 \nDeleted 10.9.0.0/16 via 10.0.1.254 dev eth0 \n");
    });
}

#[test]
fn dig_asks_a_name_server_on_another_host() {
    let files = Files::new();
    let conf = files.write(
        "dnsmasq.conf",
        "keep-in-foreground\nno-resolv\nno-hosts\nuser=\npid-file=\nlog-facility=-\naddress=/www.lab/10.0.0.2\ntxt-record=note.lab,hello\n",
    );
    in_site(|site| {
        let lab = serve(site, &["dnsmasq", "-C", path(&conf)], 53);
        let dig = |words: &str| sh(&lab, "a", &format!("dig +time=5 +tries=2 +short @10.0.0.2 {words}"));
        assert_eq!(dig("www.lab A"), "10.0.0.2\n");
        assert_eq!(dig("+tcp note.lab TXT"), "\"hello\"\n");
        let text = sh(&lab, "a", "dig +time=5 +tries=2 @10.0.0.2 -p 54 www.lab A || true");
        assert!(text.contains("connection refused"), "{text}");
    });
}

#[test]
fn netcat_of_both_kinds() {
    in_site(|site| {
        let lab = site.deploy(ROUTED);
        for nc in ["nc.openbsd -N", "nc.traditional -q 1"] {
            let text = sh(&lab, "a", &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | {nc} b 80 | tail -n 1"));
            assert_eq!(text, "hello", "{nc}");
        }
        // The receiver says when it listens: a refused datagram tells.
        let script = "nc.traditional -u -l -p 7001 >got & p=$!
            until grep -q got-it got; do echo got-it | nc.openbsd -u -w 1 127.0.0.1 7001 || true; done; kill $p; head -n 1 got";
        let text = sh(&lab, "a", &format!("d=$(mktemp -d); trap 'rm -r $d' EXIT; cd $d; {script}"));
        assert_eq!(text, "got-it\n");
        assert!(run(&lab, &["nc.openbsd", "-z", "-v", "b", "81"]).contains("Connection refused"));
    });
}

#[test]
fn dropbear_gives_a_command_and_a_terminal_on_another_host() {
    let files = Files::new();
    let home = files.0.join("home");
    let make = |args: &[&str]| {
        let out = Command::new("dropbearkey").args(args).output().expect("dropbear-bin is installed");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let key = |name: &str| path(&files.0.join(name)).to_owned();
    make(&["-t", "ed25519", "-f", &key("host")]);
    let public = make(&["-t", "ed25519", "-f", &key("user")]);
    let line = public.lines().find(|l| l.starts_with("ssh-ed25519")).expect("a public key").to_owned();
    std::fs::create_dir_all(home.join(".ssh")).expect("a fresh directory");
    files.write("home/.ssh/authorized_keys", line + "\n");
    let (home, host, user) = (path(&home), key("host"), key("user"));
    in_site(|site| {
        let lab = site.deploy(&format!(
            "name: shell\nnodes:\n  a: {{}}\n  b:\n    binds: [\"{home}:/root\"]\n    run:\n      - {{cmd: [dropbear, -F, -E, -s, -r, {host}, -p, \"22\", -P, {home}/pid], ready: {{tcp: 22}}}}\n\
             links:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n"
        ));
        let client = format!("HOME={} dbclient -y -y -i {user} root@b", files.0.display());
        assert_eq!(sh(&lab, "a", &format!("{client} 'uname -n; cat; exit 5' </etc/hostname || echo $?")), "b\na\n5\n");
        // `script` gives the client a terminal of its own.
        let text = sh(&lab, "a", &format!("script -qec \"{client} -t 'tty; stty -a | head -n 1'\" /dev/null </dev/null"));
        assert!(text.contains("/dev/pts/") && text.contains("rows"), "{text}");
    });
}

#[test]
fn wrk_drives_nginx() {
    let files = Files::new();
    files.write("html/page", "x".repeat(1024));
    let conf = nginx(&files, 1, "on");
    in_site(|site| {
        let lab = serve(site, &["/usr/sbin/nginx", "-c", path(&conf)], 80);
        let text = sh(&lab, "a", "wrk -t 2 -c 20 -d 1s http://b/page");
        let requests = text.lines().find_map(|l| l.trim().split_once(" requests in ")).and_then(|(n, _)| n.parse().ok());
        assert!(requests.is_some_and(|n: u64| n > 0) && !text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    });
}

#[test]
fn programs_written_in_go() {
    let files = Files::new();
    files.write("html/page", "page\n");
    let html = path(&files.0.join("html")).to_owned();
    let serving = format!("HOME={} exec caddy file-server --root {html} --listen :8080", files.0.display());
    in_site(|site| {
        let lab = serve(site, &["sh", "-c", &serving], 8080);
        assert_eq!(sh(&lab, "a", "curl -sSf --max-time 20 http://b:8080/page"), "page\n");
        let text = sh(&lab, "a", "hey -n 200 -c 10 http://b:8080/page");
        assert!(text.contains("[200]\t200 responses"), "{text}");
    });
}

/// Fetches from port 80 of its argument and prints the last five octets.
const FETCH: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
    char all[4096];
    size_t used = 0;
    ssize_t n;
    const char *ask = "GET / HTTP/1.0\r\n\r\n";
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 2 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) return 2;
    if (connect(s, (struct sockaddr *)&to, sizeof to) < 0) { perror("connect"); return 1; }
    if (write(s, ask, strlen(ask)) < 0) { perror("write"); return 1; }
    while (used < sizeof all && (n = read(s, all + used, sizeof all - used)) > 0) used += n;
    if (used >= 5) fwrite(all + used - 5, 1, 5, stdout);
    return 0;
}
"#;

#[test]
fn static_programs_of_two_c_libraries() {
    let files = Files::new();
    let source = files.write("fetch.c", FETCH);
    files.write("html/page", "page\n");
    let html = path(&files.0.join("html")).to_owned();
    in_site(|site| {
        let lab = site.deploy(ROUTED);
        for compiler in ["cc", "musl-gcc"] {
            let to = files.0.join(compiler);
            let built = Command::new(compiler).args(["-static", "-o", path(&to), path(&source)]).status();
            assert!(built.expect("the compiler is installed").success());
            assert_eq!(run(&lab, &[path(&to), "10.0.2.1"]), "hello", "{compiler}");
            assert_eq!(run(&lab, &[path(&to), "10.0.1.254"]), "connect: Connection refused\n", "{compiler}");
        }
        let text = run(&lab, &["busybox", "ping", "-c", "1", "10.0.2.1"]);
        assert!(text.contains("1 packets transmitted, 1 packets received"), "{text}");
        let serving = format!(
            "busybox httpd -f -p 8082 -h {html} & p=$!
            until busybox wget -q -O- http://127.0.0.1:8082/page 2>/dev/null; do kill -0 $p; sleep 0.05; done; kill $p"
        );
        assert_eq!(sh(&lab, "a", &serving), "page\n");
    });
}
