//! What bad input gets: an exit status, a place, and nothing started.

use crate::{TWO_HOSTS, expect_clean, in_site};
use ringlab_tests::bin;
use ringlab_tests::lab::Site;
use ringlab_tests::leftovers::Snapshot;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// An ordinary user's number that owns nothing.
const NOBODY: u32 = 65534;

fn refused(yaml: &str, place: &str, text: &str) {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let file = site.file("lab.yaml", yaml);
    for verb in ["validate", "deploy"] {
        let out = site.run(&[verb, &file]);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{verb}: {err}");
        assert!(err.contains(&format!("lab.yaml:{place}")), "{verb}: no place {place} in\n{err}");
        assert!(err.contains(text), "{verb}: no `{text}` in\n{err}");
    }
    expect_clean(&site.dir, &before);
}

#[test]
fn mistakes_are_shown_where_they_are() {
    refused(
        "name: t\nnodes: {a: {}, b: {}}\nlinks:\n  - {endpoints: [\"a:eth0\", \"b:eth0\"], dealy: 1ms}\n",
        "4:39",
        "did you mean `delay`?",
    );
    refused("name: t\nnodes:\n  a: {kind: hosst}\n", "3:13", "did you mean `host`?");
    let link =
        |end: &str, rest: &str| format!("name: t\nnodes: {{a: {{}}, b: {{}}}}\nlinks:\n  - endpoints: [\"a:{end}\", \"b:eth0\"]\n{rest}");
    refused(&link("eth0", "  - endpoints: [\"a:eth0\", \"b:eth1\"]\n"), "5:17", "used twice");
    refused(&link("eth0", "    ipv4: [10.0.0.1/24, 10.0.0.1/24]\n"), "5:25", "address 10.0.0.1 is used twice");
    refused(&link("eth0", "    ipv4: [10.0.0.1/24, 10.0.1.2/24]\n"), "5:25", "outside the subnet");
    refused(&link("eth0", "    delay: 10\n"), "5:12", "a time needs a unit");
    refused(&link("averyveryverylongname0", ""), "4:17", "too long for an interface name");
    refused("name: t\nnodes: {a: {}, a: {}}\n", "2:16", "stands twice");
    refused("name: t\nnodes: {a: {}}\nlinks:\n  - endpoints: [\"a:eth0\", \"bb:eth0\"]\n", "4:27", "there is no node `bb`");
}

#[test]
fn a_file_of_100_mb_is_refused_at_once() {
    let site = Site::new();
    let path = site.dir.join("huge.yaml");
    let file = std::fs::File::create(&path).expect("file");
    file.set_len(100 << 20).expect("sparse");
    let started = std::time::Instant::now();
    let out = site.run(&["deploy", path.to_str().expect("UTF-8")]);
    assert_eq!(out.status.code(), Some(2));
    assert!(started.elapsed().as_secs_f64() < 2.0);
}

#[test]
fn bombs_are_refused_in_little_time_and_memory() {
    let deep = format!("name: t\nnodes: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    let mut anchors = String::from("name: t\nnodes:\n  n0: &n0 {run: [a, a, a, a, a, a, a, a, a]}\n");
    for i in 1..12 {
        let again = vec![format!("*n{}", i - 1); 9].join(", ");
        anchors.push_str(&format!("  n{i}: &n{i} {{run: [{again}]}}\n"));
    }
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    for (name, yaml) in [("deep.yaml", deep), ("anchors.yaml", anchors)] {
        let file = site.file(name, &yaml);
        let started = Instant::now();
        // 600 MB of addresses are plenty for what a few kilobytes may need.
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -v 600000; exec \"$0\" deploy \"$1\""]).arg(bin("labctl")).arg(&file).env("RINGLAB_DIR", &site.dir);
        let out = limited.output().expect("starts");
        let err = String::from_utf8_lossy(&out.stderr[..out.stderr.len().min(2000)]).into_owned();
        assert_eq!(out.status.code(), Some(2), "{name}: {err}");
        assert!(err.contains(name), "{name}: no place in\n{err}");
        assert!(started.elapsed().as_secs_f64() < 2.0, "{name}");
    }
    expect_clean(&site.dir, &before);
}

/// The cure that `doctor` names for what a machine lacks; `labctl` prepares the command that is run.
fn cure(labctl: impl Fn(&[&str]) -> Command, what: &str) -> String {
    let out = labctl(&["doctor", "--format", "json"]).output().expect("starts");
    assert_eq!(out.status.code(), Some(0), "cabled labs still run: {out:?}");
    let doctor: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let finding = doctor["findings"].as_array().expect("findings").iter().find(|f| f["what"] == what).expect("it is looked at");
    assert_eq!(finding["verdict"], "limited", "{finding}");
    finding["mend"].as_str().expect("a command").to_string()
}

#[test]
fn without_the_tun_device_real_linux_is_refused_with_its_cure_before_anything_is_made() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    // A mount namespace in which /dev/net is empty; the agent that is started there lacks the device, too.
    let labctl = |args: &[&str]| {
        let mut c = Command::new("unshare");
        c.args(["-m", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\""]).arg(bin("labctl")).args(args);
        c.env("RINGLAB_DIR", &site.dir);
        c
    };
    let cure = cure(labctl, "tun");
    assert!(cure.contains("mknod /dev/net/tun c 10 200"), "{cure}");
    let tap = TWO_HOSTS.replace("    ipv4", "    medium: tap\n    ipv4");
    for yaml in [TWO_HOSTS.replace("a: {}", "a: {kind: linux}"), tap] {
        let out = labctl(&["deploy", &site.file("real.yaml", &yaml)]).output().expect("starts");
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(3), "{err}");
        assert!(err.contains("/dev/net/tun") && err.contains(&cure), "{err}");
        assert!(!site.dir.join("labs/two").exists(), "nothing was made");
    }
    // Emulated hosts on cables need no such device.
    let out = labctl(&["run", &site.file("two.yaml", TWO_HOSTS)]).output().expect("starts");
    assert!(out.status.success(), "{out:?}");
    expect_clean(&site.dir, &before);
}

#[test]
fn without_the_daemons_nothing_runs_and_doctor_says_so() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    // labctl alone, away from its daemons.
    let alone = Site::new();
    std::fs::copy(bin("labctl"), alone.dir.join("labctl")).expect("copied");
    let labctl = |args: &[&str]| Command::new(alone.dir.join("labctl")).args(args).env("RINGLAB_DIR", &site.dir).output().expect("starts");
    let out = labctl(&["doctor"]);
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("mend with:  put hostd beside labctl"), "{out:?}");
    let out = labctl(&["deploy", &site.file("two.yaml", TWO_HOSTS)]);
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("mend it with: put nicd beside labctl: cargo build"), "{out:?}");
    expect_clean(&site.dir, &before);
}

/// Sockets below a directory.
fn sockets(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("it is there");
        if kind.is_dir() {
            sockets(&entry.path(), found);
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
}

#[test]
fn sockets_are_private_and_garbage_sent_to_them_disturbs_nobody() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let mut all = Vec::new();
        sockets(&site.dir, &mut all);
        assert!(all.len() >= 5, "{all:?}");
        let before = lab.inspect();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let frame = [preface.clone(), vec![0xff; 4096]].concat();
        for path in &all {
            let mode = std::fs::metadata(path).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
            let grpc = ["sock", "nic", "host"].iter().any(|e| path.extension().is_some_and(|x| x == *e));
            for garbage in [vec![0; 4096], vec![0xa5; 1 << 20], preface.clone(), frame.clone()] {
                if !grpc {
                    continue;
                }
                let mut stream = UnixStream::connect(path).expect("it listens");
                stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a time");
                stream.set_write_timeout(Some(Duration::from_millis(50))).expect("a time");
                // The other end may hang up in the middle: as it likes.
                let _ = stream.write_all(&garbage);
                let _ = stream.read(&mut [0; 64]);
            }
        }
        assert_eq!(lab.ok(lab.builtin("a", "fetch", &["-f", "http://b/"])), "hello");
        assert_eq!(lab.inspect(), before, "the same processes go on");
    });
}

/// Connects as another user and sends what begins a gRPC connection; what comes back. Credentials
/// belong to threads: the test keeps its own.
fn knock_as_nobody(path: &Path, kind: SocketType) -> rustix::io::Result<Vec<u8>> {
    let knock = || {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(10)))?;
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        // It may have hung up already.
        let _ = send(&socket, &hello, SendFlags::NOSIGNAL);
        let mut answer = vec![0; 256];
        let (len, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
        answer.truncate(len);
        Ok(answer)
    };
    std::thread::scope(|scope| scope.spawn(knock).join().expect("no panic"))
}

/// Lets everybody go through a directory and those below.
fn open_directories(dir: &Path) {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).expect("ours");
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        if entry.file_type().expect("it is there").is_dir() {
            open_directories(&entry.path());
        }
    }
}

#[test]
fn other_users_are_refused_by_every_socket_by_mode_and_by_credentials() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let before = lab.inspect();
        open_directories(&site.dir);
        let mut all = Vec::new();
        sockets(&site.dir, &mut all);
        let ending = |path: &Path| path.extension().expect("an ending").to_str().expect("UTF-8").to_owned();
        let kinds: Vec<String> = all.iter().map(|path| ending(path)).collect();
        for (kind, least) in [("sock", 1), ("nic", 2), ("host", 2), ("vhost", 2), ("cable", 1)] {
            assert!(kinds.iter().filter(|k| *k == kind).count() >= least, "{kind}: {all:?}");
        }
        for path in &all {
            let kind = if ending(path) == "cable" { SocketType::SEQPACKET } else { SocketType::STREAM };
            let mode = std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}: {mode:o}", path.display());
            assert_eq!(knock_as_nobody(path, kind), Err(Errno::ACCESS), "{}", path.display());
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).expect("ours");
            // Hung up at once, without an answer; a time-out would be AGAIN.
            let answer = knock_as_nobody(path, kind);
            assert!(matches!(&answer, Err(Errno::CONNRESET)) || answer.as_deref() == Ok(&[]), "{}: {answer:?}", path.display());
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("ours");
        }
        assert_eq!(lab.ok(lab.builtin("a", "fetch", &["-f", "http://b/"])), "hello");
        assert_eq!(lab.inspect(), before, "the same processes go on");
    });
}

#[test]
fn an_ordinary_user_runs_emulated_hosts_and_is_told_what_real_linux_needs() {
    let site = Site::for_others();
    std::os::unix::fs::chown(&site.dir, Some(NOBODY), Some(NOBODY)).expect("root");
    let before = Snapshot::of(&site.dir);
    let as_user = |args: &[&str]| site.labctl(args).uid(NOBODY).gid(NOBODY).output().expect("labctl starts");
    let file = site.file("two.yaml", TWO_HOSTS);
    let out = as_user(&["deploy", &file]);
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), site.logs());
    let out = as_user(&["exec", "a", "--builtin", "fetch", "--", "-f", "http://b/"]);
    assert_eq!(out.stdout, b"hello", "{}", String::from_utf8_lossy(&out.stderr));
    assert!(as_user(&["destroy", "--all"]).status.success());
    expect_clean(&site.dir, &before);
    let file = site.file("real.yaml", &TWO_HOSTS.replace("a: {}", "a: {kind: linux}"));
    let out = as_user(&["deploy", &file]);
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{err}");
    let labctl = |args: &[&str]| {
        let mut c = site.labctl(args);
        c.uid(NOBODY).gid(NOBODY);
        c
    };
    let cure = cure(labctl, "privilege");
    assert!(cure.contains("sudo labctl") && err.contains(&cure), "{err}");
    assert!(!site.dir.join("labs/two").exists(), "nothing was made");
    expect_clean(&site.dir, &before);
}

#[test]
fn wrong_usage_exits_2_and_unknown_labs_are_named() {
    in_site(|site| {
        assert_eq!(site.run(&["deploi"]).status.code(), Some(2));
        assert_eq!(site.run(&["deploy"]).status.code(), Some(2));
        assert_eq!(site.run(&["deploy", "/no/such/file.yaml"]).status.code(), Some(2));
        let out = site.run(&["inspect", "nolab"]);
        assert_eq!(out.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&out.stderr).contains("nolab"));
    });
}
