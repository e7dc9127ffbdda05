//! Programs that change, replace or remove the node's own files: the machine's stay as they are.

use crate::{TWO_HOSTS, expect_clean, in_site};
use ringlab_tests::bin;
use ringlab_tests::lab::Site;
use ringlab_tests::leftovers::Snapshot;
use std::path::Path;
use std::process::{Command, Output};

/// Files of the node's own.
const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Mounts a copy of `/etc` over it, in a namespace of its own: no failure of a test reaches the machine's files. With `real`
/// the three files are mounted there, as a container has them.
const COPY: &str = "set -eu
d=$1 real=$2; shift 2
mount --bind \"$d/etc\" /etc
if [ \"$real\" = real ]; then for f in hosts hostname resolv.conf; do mount --bind \"$d/$f\" /etc/$f; done; fi
exec \"$@\"";

/// A copy of `/etc` in which the three files are known, beside three to mount there.
fn copy_of_etc(dir: &Path) {
    assert!(Command::new("cp").arg("-a").arg("/etc").arg(dir).status().expect("starts").success());
    for file in FILES {
        let _ = std::fs::remove_file(dir.join("etc").join(file));
        std::fs::write(dir.join("etc").join(file), "machine\n").expect("written");
        std::fs::write(dir.join(file), "node\n").expect("written");
    }
    std::fs::write(dir.join("etc/mine"), "").expect("written");
}

/// The three files say what they said, and nothing is beside them.
fn expect_unharmed(etc: &Path) {
    for file in FILES {
        let meta = std::fs::metadata(etc.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o7777;
        assert_eq!((std::fs::read_to_string(etc.join(file)).expect("read").as_str(), mode), ("machine\n", 0o644), "{file}");
        let times = [std::os::unix::fs::MetadataExt::mtime(&meta), std::os::unix::fs::MetadataExt::nlink(&meta) as i64];
        assert!(times[0] > 1_000_000 && times[1] == 1, "{file}: {times:?}");
    }
    assert!(etc.join("mine").exists() && !etc.join("other").exists());
}

fn inside(dir: &Path, real: &str, program: &str, args: &[&str]) -> Command {
    let mut c = Command::new("unshare");
    c.args(["-m", "sh", "-c", COPY, "sh"]).arg(dir).args([real, program]).args(args);
    c
}

fn text(out: &Output) -> String {
    assert!(out.status.success(), "{out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The lines in which two outputs differ, with their numbers.
fn expect_same(ours: &str, linux: &str) {
    let pairs = ours.lines().zip(linux.lines()).enumerate().filter(|(_, (a, b))| a != b);
    let differ: Vec<String> = pairs.map(|(n, (a, b))| format!("{}: {a:?}, Linux {b:?}", n + 1)).collect();
    assert!(differ.is_empty() && ours.lines().count() == linux.lines().count(), "{}", differ.join("\n"));
}

const ASKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/own_files.py");

#[test]
fn own_files_are_as_those_that_are_mounted_in_a_container_and_the_machines_stay() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let made = Site::new();
    copy_of_etc(&made.dir);
    let linux = inside(&made.dir, "real", "python3", &[ASKS]).output().expect("starts");
    let labctl = |args: &[&str]| {
        let mut c = inside(&made.dir, "emulated", bin("labctl").to_str().expect("UTF-8"), args);
        text(&c.env("RINGLAB_DIR", &site.dir).env("CI", "true").output().expect("starts"))
    };
    labctl(&["deploy", &site.file("two.yaml", TWO_HOSTS)]);
    let ours = labctl(&["exec", "a", "--", "python3", ASKS]);
    expect_same(&ours, &text(&linux));
    expect_unharmed(&made.dir.join("etc"));
    // What a host's programs write is theirs: the others do not see it.
    let sh = |node: &str, script: &str| labctl(&["exec", node, "--", "sh", "-c", script]);
    assert_eq!(sh("a", "cat /etc/hosts; wc -c < /etc/hostname; readlink /proc/self/fd/7 7< /etc/hosts"), "ONE\ntwo\nthr11\n/etc/hosts\n");
    assert!(sh("b", "cat /etc/hosts").contains("10.0.0.1\ta"));
    assert_eq!(sh("b", "echo 10.0.0.1 first >> /etc/hosts; getent hosts first").split_whitespace().next(), Some("10.0.0.1"));
    assert_eq!(sh("b", "sed -i s/first/second/ /etc/hosts 2>&1 | grep -c busy; tail -n 1 /etc/hosts"), "1\n10.0.0.1 first\n");
    expect_unharmed(&made.dir.join("etc"));
    labctl(&["destroy", "--all"]);
    expect_clean(&site.dir, &before);
}

#[test]
fn own_files_in_a_root_of_the_nodes_stay_too() {
    in_site(|site| {
        let root = site.dir.join("root");
        for dir in ["etc", "tmp", "usr"] {
            std::fs::create_dir_all(root.join(dir)).expect("a fresh directory");
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("linked");
        }
        for file in FILES {
            std::fs::write(root.join("etc").join(file), "machine\n").expect("written");
        }
        std::fs::write(root.join("etc/mine"), "").expect("written");
        let fields = "a: {root: root, user: \"0\", binds: [\"/usr:/usr:ro\"]}\n";
        let lab = site.deploy(&TWO_HOSTS.replace("a: {}\n", fields));
        let script = "cd /etc; for f in hosts hostname resolv.conf; do
            rm -f $f 2>&1 | grep -c busy; mv mine /etc/$f 2>&1 | grep -c busy; truncate -s 3 $f; chmod 600 ./$f; touch -d @5 $f; stat -c '%s %a %Y' $f; done
            echo ours > hosts; cat /etc/hosts; ls";
        let said = lab.ok(lab.program("a", &["sh", "-c", script]));
        assert_eq!(said, format!("{}ours\nhostname\nhosts\nmine\nresolv.conf\n", "1\n1\n3 600 5\n".repeat(3)));
        expect_unharmed(&root.join("etc"));
        std::fs::remove_dir_all(root).expect("removed");
    });
}
