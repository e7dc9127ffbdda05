//! Unmodified programs where the machine refuses what they could be arranged with: under the filter of Docker's default
//! profile (`container.py`), as a user without any capability, and both at once.

use crate::{TWO_HOSTS, in_site, in_site_for_others};
use ringlab_tests::lab::{Site, started_by};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs its arguments under the filter.
const PROFILE: &str = include_str!("container.py");

/// The machine's, which every user may run.
const PYTHON: &str = "/usr/bin/python3";

/// A socket and a pipe in one call, an epoll set of both, names of the node.
const PROGRAM: &str = "
import os, select, socket
s = socket.create_connection(('b', 80)); r, w = os.pipe()
print(select.select([s, r], [], [], 0.1))
os.write(w, b'x'); print([x == r for x in select.select([s, r], [], [], 5)[0]])
e = select.epoll(); e.register(s, select.EPOLLIN); e.register(r, select.EPOLLIN); print([f == r for f, _ in e.poll(5)])
os.read(r, 1); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print([f == s.fileno() for f, _ in e.poll(5)])
print(socket.gethostname(), os.uname().nodename)
";
const PRINTS: &str = "([], [], [])\n[True]\n[True]\n[True]\na a\n";

/// Deploys, runs and destroys with each `labctl` wrapped.
fn works(site: &Site, wrap: impl Fn(&[&str]) -> Command) {
    let file = site.file("two.yaml", TWO_HOSTS);
    let run = |args: &[&str]| {
        let out = wrap(args).output().expect("starts");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert!(out.status.success(), "{args:?}: {}\n{}", text(&out.stderr), site.logs());
        text(&out.stdout)
    };
    run(&["deploy", &file]);
    assert_eq!(run(&["exec", "a", "--", "curl", "-sS", "--max-time", "10", "http://b/"]), "hello");
    assert_eq!(run(&["exec", "a", "--", "python3", "-c", PROGRAM]), PRINTS);
    let paths = "test -L /sys/class/net/eth0 && test ! -e /proc/net/if_inet6 && cat /sys/class/net/*/mtu && readlink -f /sys/class/net/lo";
    assert_eq!(run(&["exec", "a", "--", "sh", "-c", paths]), "1500\n65536\n/sys/devices/virtual/net/lo\n");
    // Threads are stopped to change their signal mask.
    let storms = crate::guest_signals::Compiled::new("storms");
    assert_eq!(run(&["exec", "a", "--", storms.path(), "waits"]), "only in the wait 0: child 0, 0 wrong, many interrupted\n");
    run(&["destroy", "--all"]);
}

/// The command under the profile.
pub fn under_a_containers_profile(labctl: &Command) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-c", PROFILE]);
    started_by(command, labctl)
}

#[test]
fn programs_run_under_a_containers_seccomp_profile() {
    in_site(|site| {
        works(site, |args| under_a_containers_profile(&site.labctl(args)));
    });
}

/// Serves an abstract name until it is asked; says what it is called, what calls it, and what came.
const ABSTRACT: &str = "
import socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(s.getsockname() == sys.argv[1].encode(), flush=True)
c, peer = s.accept(); print(not peer, c.recv(99).decode(), c.getsockname() == sys.argv[1].encode(), flush=True)
";
/// Asks under an abstract name.
const ASKS: &str = "
import errno, socket, sys
s = socket.socket(socket.AF_UNIX)
try: s.connect(sys.argv[1]); s.sendall(b'asked'); print('sent')
except OSError as e: print(errno.errorcode[e.errno])
";

/// Two programs of a host find each other by an abstract name, and none of the machine's.
fn abstract_names_are_the_hosts(site: &Site, refused: &str, hosts: &[&str], wrap: impl Fn(&[&str]) -> Command) {
    use std::io::{BufRead, BufReader};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = ringlab_tests::unique("ringlab-name-");
    let [own, machines] = ["own", "machine"].map(|which| format!("{name}-{which}"));
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&machines).expect("short")).expect("bound");
    let file = site.file("two.yaml", TWO_HOSTS);
    assert!(wrap(&["deploy", &file]).status().expect("starts").success());
    // With the zero octet that makes a name abstract, which no argument of a program may have.
    let [serves, asks] = [ABSTRACT, ASKS].map(|script| script.replace("sys.argv[1]", "('\\0' + sys.argv[1])"));
    let run = |host, script: &str, name: &str| {
        let mut command = wrap(&["exec", host, "--", "timeout", "60", PYTHON, "-c", script, name]);
        command.stdout(Stdio::piped());
        command
    };
    let mut servers = Vec::new();
    for &host in hosts {
        let mut server = run(host, &serves, &own).spawn().expect("starts");
        let mut lines = BufReader::new(server.stdout.take().expect("a pipe")).lines();
        assert_eq!(lines.next().expect("it listens").expect("text"), "True", "{host}: {}", site.logs());
        servers.push((host, server, lines));
    }
    let ask = |host, name| String::from_utf8(run(host, &asks, name).output().expect("starts").stdout).expect("text");
    for (host, mut server, mut lines) in servers {
        assert_eq!(ask(host, &machines), format!("{refused}\n"));
        assert_eq!(ask(host, &own), "sent\n");
        assert_eq!(lines.next().expect("it was asked").expect("text"), "True asked True");
        assert!(server.wait().expect("ended").success());
        assert_eq!(ask(host, &own), "ECONNREFUSED\n", "each host has its own");
    }
    assert!(wrap(&["destroy", "--all"]).status().expect("starts").success());
}

#[test]
fn abstract_names_of_sockets_are_a_hosts_own() {
    in_site_for_others(|site| {
        own(&site.dir);
        abstract_names_are_the_hosts(site, "EPERM", &["a"], |args| as_ordinary_user(&site.labctl(args)));
    });
    if rustix::process::geteuid().is_root() {
        in_site(|site| abstract_names_are_the_hosts(site, "ECONNREFUSED", &["a", "b"], |args| site.labctl(args)));
    }
}

#[test]
fn programs_run_for_a_user_without_capabilities() {
    in_site_for_others(|site| {
        own(&site.dir);
        works(site, |args| as_ordinary_user(&site.labctl(args)));
    });
}

/// Number of a user made for the test: it has no name, no group of anybody's, and owns what is given to it.
const ORDINARY: u32 = 54322;

/// Gives a directory to the ordinary user.
pub fn own(dir: &Path) {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (rustix::fs::Uid::from_raw(ORDINARY), rustix::fs::Gid::from_raw(ORDINARY));
        rustix::fs::chown(dir, Some(uid), Some(gid)).expect("the directory is the test's");
    }
}

/// The command as the ordinary user without capabilities; whoever runs the tests, unless that is root.
pub fn as_ordinary_user(labctl: &Command) -> Command {
    let mut wrapper = Command::new(if rustix::process::geteuid().is_root() { "setpriv" } else { "env" });
    if rustix::process::geteuid().is_root() {
        let id = ORDINARY.to_string();
        wrapper.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    }
    started_by(wrapper, labctl)
}

/// Answers of the filter: error numbers, 0 for success.
const ANSWERS: &str = "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    return ctypes.get_errno() if libc.syscall(*[ctypes.c_long(x) for x in a]) < 0 else 0
names = 'unshare clone3 vsock alg unix persona same getfd uring mount newuser vm_readv future'.split()
calls = [(272, 0), (435, 0, 0), (41, 40, 1, 0), (41, 38, 5, 0), (41, 1, 1, 0), (135, 0x40000), (135, 0xffffffff), (438, 0, 0, 0),
         (425, 1, 0), (165, 0, 0, 0, 0, 0), (56, 0x10000000, 0, 0, 0, 0), (310, os.getpid(), 0, 0, 0, 0, 0), (467, 0, 0, 0, 0)]
for name, args in zip(names, calls): print(name, call(*args))
try: open('/dev/net/tun', 'r+b')
except OSError as e: print('tun', e.strerror)
";
const WANT: &str =
    "unshare 1\nclone3 38\nvsock 1\nalg 1\nunix 0\npersona 1\nsame 0\ngetfd 1\nuring 1\nmount 1\nnewuser 1\nvm_readv 0\nfuture 1\n";

#[test]
fn servers_and_clients_run_in_a_container_for_an_ordinary_user() {
    in_site_for_others(|site| {
        let wrap = |command: &Command| as_ordinary_user(&under_a_containers_profile(command));
        let run = |command: Command| {
            let out = wrap(&command).output().expect("starts");
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            assert!(out.status.success(), "{command:?}: {}\n{}\n{}", text(&out.stdout), text(&out.stderr), site.logs());
            text(&out.stdout)
        };
        let mut answers = Command::new(PYTHON);
        answers.args(["-c", ANSWERS]);
        let answers = run(answers);
        assert!(answers.starts_with(WANT), "{answers}");
        assert!(answers.ends_with("tun Permission denied\n") || answers.ends_with("tun No such file or directory\n"), "{answers}");
        let dir = site.dir.join("www");
        std::fs::create_dir(&dir).expect("a fresh directory");
        std::fs::write(dir.join("page"), "page\n").expect("written");
        let d = dir.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|t| format!("{t}_temp_path {d}/{t};")).concat();
        let conf = format!(
            "daemon off; worker_processes 2; pid {d}/pid; error_log {d}/error.log; events {{}}\n\
             http {{ access_log off; sendfile on; {temporary} server {{ listen 80; root {d}; }} }}\n"
        );
        std::fs::write(dir.join("nginx.conf"), conf).expect("written");
        own(&dir);
        own(&site.dir);
        let yaml = format!(
            "name: boxed\nnodes:\n  a: {{}}\n  b:\n    run:\n      - {{cmd: [/usr/sbin/nginx, -c, {d}/nginx.conf], ready: {{tcp: 80}}}}\n\
             \x20     - {{cmd: [{PYTHON}, -m, http.server, -d, {d}, 8000], ready: {{tcp: 8000}}}}\n\
             \x20     - {{cmd: [iperf3, -s], ready: {{tcp: 5201}}}}\nlinks:\n  - endpoints: [\"a:eth0\", \"s:p0\"]\n  - endpoints: [\"b:eth0\", \"s:p1\"]\n"
        );
        let file = site.file("boxed.yaml", &yaml.replace("  a: {}\n", "  a: {}\n  s: {kind: switch}\n"));
        run(site.labctl(&["deploy", &file]));
        let exec = |args: &[&str]| run(site.labctl(&[&["exec", "a", "--"], args].concat()));
        assert_eq!(exec(&["curl", "-sSf", "--max-time", "20", "http://b/page"]), "page\n");
        assert_eq!(exec(&["curl", "-sSf", "--max-time", "20", "http://b:8000/page"]), "page\n");
        let fetch = "import urllib.request as u; print(u.urlopen('http://b/page', timeout=20).read())";
        assert_eq!(exec(&[PYTHON, "-c", fetch]), "b'page\\n'\n");
        for options in [&["-R"][..], &["-u", "-b", "10M"], &["-P", "4"]] {
            let out = exec(&[&["iperf3", "-c", "b", "-t", "1", "-J"], options].concat());
            let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            let sums = &json["end"];
            let received = sums["sum_received"]["bytes"].as_u64().or(sums["sum"]["bytes"].as_u64());
            assert!(received.is_some_and(|n| n > 0), "{options:?}: {sums}");
        }
        assert_eq!(exec(&["sh", "-c", "uname -n; ip -o -4 addr show eth0 | grep -c 10.0.0.1"]), "a\n1\n");
        run(site.labctl(&["destroy", "--all"]));
        std::fs::remove_dir_all(&dir).expect("removed");
    });
}
