//! What `doctor` says of machines that lack something: each line names what mends it, for whoever asks, there.

use crate::guest_profile::{as_ordinary_user, own, under_a_containers_profile};
use crate::{TWO_HOSTS, expect_clean};
use ringlab_tests::bin;
use ringlab_tests::lab::{Site, started_by};
use ringlab_tests::leftovers::Snapshot;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

/// Capabilities of root in a container of Docker's, where nothing is added.
const DOCKER: &str = "-all,+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,+net_bind_service,+sys_chroot,+kill,+audit_write";

/// What doctor says.
struct Doctor(Vec<Value>);

impl Doctor {
    /// Runs it with these arguments before it.
    fn of(site: &Site, wrap: impl Fn(&Command) -> Command) -> Self {
        Self::says(&wrap(&site.labctl(&["doctor", "--format", "json"])).output().expect("starts"))
    }

    fn says(out: &Output) -> Self {
        let json: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
        let findings = json["findings"].as_array().expect("findings").clone();
        let missing = findings.iter().any(|f| f["verdict"] == "missing");
        assert_eq!(out.status.code(), Some(if missing { 3 } else { 0 }), "{findings:#?}");
        Self(findings)
    }

    fn field(&self, what: &str, field: &str) -> &str {
        let finding = self.0.iter().find(|f| f["what"] == what).expect("it is looked at");
        finding[field].as_str().expect("text")
    }

    fn verdict(&self, what: &str) -> &str {
        self.field(what, "verdict")
    }

    /// What mends what is not there.
    fn cure(&self, what: &str) -> &str {
        assert_ne!(self.verdict(what), "ok", "{what}: {}", self.field(what, "found"));
        self.field(what, "mend")
    }
}

/// The command where a shell has done something before, in a mount namespace of its own.
fn after(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("unshare");
    shell.args(["-m", "sh", "-ec", &format!("{script}; exec \"$0\" \"$@\"")]);
    started_by(shell, command)
}

/// The command with these capabilities at most.
fn bounded(capabilities: &str, command: &Command) -> Command {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--bounding-set", capabilities]);
    started_by(setpriv, command)
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

#[test]
fn the_tun_device_is_mended_as_it_is_broken() {
    let site = Site::for_others();
    own(&site.dir);
    let empty = "mount -t tmpfs none /dev/net";
    let root = |script: &str| Doctor::of(&site, |c| after(script, c)).cure("tun").to_owned();
    let user = |script: &str| Doctor::of(&site, |c| after(script, &as_ordinary_user(c))).cure("tun").to_owned();
    let made = "mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun";
    assert!(root(empty).contains(made));
    assert!(user(empty).starts_with("as root: modprobe tun") && user(empty).contains(made));
    // It is there, for root only: it cannot be made a second time.
    let closed = user(&format!("{empty}; mknod /dev/net/tun c 10 200; chmod 600 /dev/net/tun"));
    assert!(closed.contains("chmod 666 /dev/net/tun") && !closed.contains("mknod"), "{closed}");
    // No driver has this number: the module is not loaded.
    let unloaded = root(&format!("{empty}; mknod /dev/net/tun c 10 123"));
    assert!(unloaded.contains("modprobe tun") && !unloaded.contains("mknod"), "{unloaded}");
}

#[test]
fn without_a_capability_real_linux_is_refused_before_anything_is_made() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let without = |command: &Command| bounded("-net_admin", command);
    let doctor = Doctor::of(&site, without);
    assert!(doctor.field("privilege", "found").contains("CAP_NET_ADMIN"), "{}", doctor.field("privilege", "found"));
    let cure = doctor.cure("privilege");
    assert!(cure.contains("--cap-add NET_ADMIN") && !cure.contains("sudo"), "{cure}");
    let file = site.file("real.yaml", &TWO_HOSTS.replace("a: {}", "a: {kind: linux}"));
    let out = without(&site.labctl(&["deploy", &file])).output().expect("starts");
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{error}");
    assert!(error.contains("CAP_NET_ADMIN") && error.contains(cure), "{error}");
    expect_clean(&site.dir, &before);
}

#[test]
fn in_a_container_root_is_told_what_to_add_to_it_and_that_helps() {
    let site = Site::new();
    let boxed = |more: &str| Doctor::of(&site, |command| bounded(&format!("{DOCKER}{more}"), &under_a_containers_profile(command)));
    let doctor = boxed("");
    for what in ["privilege", "files"] {
        let cure = doctor.cure(what);
        assert!(cure.contains("--cap-add SYS_ADMIN") && cure.contains("seccomp=unconfined") && !cure.contains("sudo"), "{what}: {cure}");
    }
    assert!(doctor.cure("user").ends_with("(Docker: --cap-add SYS_PTRACE)"), "{}", doctor.cure("user"));
    assert_eq!(boxed(",+sys_ptrace").verdict("user"), "ok");
    // With all that is named for them and without the filter the others are there, too.
    let doctor = Doctor::of(&site, |command| bounded(&format!("{DOCKER},+net_admin,+sys_admin,+sys_ptrace"), command));
    assert_eq!(["privilege", "files", "user"].map(|what| doctor.verdict(what)), ["ok"; 3]);
}

#[test]
fn in_a_container_an_ordinary_user_is_not_sent_to_root_for_what_the_filter_refuses() {
    let site = Site::for_others();
    own(&site.dir);
    let doctor = Doctor::of(&site, |command| as_ordinary_user(&under_a_containers_profile(command)));
    for what in ["files", "user"] {
        let cure = doctor.cure(what);
        assert!(cure.contains("--security-opt seccomp=unconfined") && !cure.contains("sudo"), "{what}: {cure}");
    }
    assert!(doctor.cure("privilege").contains("sudo labctl"));
}

#[test]
fn where_user_namespaces_are_forbidden_the_setting_is_named() {
    let site = Site::for_others();
    own(&site.dir);
    // In a namespace of users whose own limit is nil: the machine's setting stays as it is.
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" \"$@\"";
    let mut inside = Command::new("unshare");
    // Root of the namespace is who is started when users are known there.
    inside.args(["-U", "sh", "-ec", "echo ready; read go; exec \"$0\" \"$@\"", "sh", "-ec", forbid]);
    let mut inside = started_by(inside, &as_ordinary_user(&site.labctl(&["doctor", "--format", "json"])));
    let mut child = inside.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("text");
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", child.id()), "0 0 100000").expect("root maps users");
    }
    child.stdin.take().expect("piped").write_all(b"go\n").expect("written");
    child.stdout = Some(out.into_inner());
    let doctor = Doctor::says(&child.wait_with_output().expect("ends"));
    for what in ["files", "user"] {
        assert!(doctor.cure(what).contains("as root: sysctl -w user.max_user_namespaces=15000"), "{what}: {}", doctor.cure(what));
    }
}

#[test]
fn a_state_directory_that_cannot_be_is_found_before_anything_is_made() {
    let site = Site::for_others();
    let before = Snapshot::of(&site.dir);
    let closed = site.dir.join("closed");
    std::fs::create_dir(&closed).expect("a fresh directory");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("ours");
    let file = site.file("two.yaml", TWO_HOSTS);
    let cases = [
        (closed.join("state"), "Permission denied", "RINGLAB_DIR=/path/of/your/own"),
        (site.dir.join("new/state"), "Permission denied", "RINGLAB_DIR=/path/of/your/own"),
        (site.dir.join("x".repeat(90)), "too long for sockets", "RINGLAB_DIR=/tmp/short"),
    ];
    for (dir, what, cure) in cases {
        let run = |args: &[&str]| as_ordinary_user(site.labctl(args).env("RINGLAB_DIR", &dir)).output().expect("starts");
        let doctor = Doctor::says(&run(&["doctor", "--format", "json"]));
        assert_eq!(doctor.verdict("state"), "missing", "{}", dir.display());
        assert!(doctor.field("state", "found").contains(what) && doctor.cure("state").contains(cure), "{:#?}", doctor.0);
        let out = run(&["deploy", &file]);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{error}");
        assert!(error.contains(what) && error.contains("RINGLAB_DIR"), "{error}");
    }
    std::fs::remove_dir(&closed).expect("empty");
    expect_clean(&site.dir, &before);
}

#[test]
fn a_daemon_that_may_not_be_run_is_named_with_its_cure() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    let alone = Site::new();
    std::fs::copy(bin("labctl"), alone.dir.join("labctl")).expect("copied");
    for (name, mode) in [("nicd", 0o755), ("hostd", 0o644)] {
        std::fs::write(alone.dir.join(name), "#!/bin/sh\n").expect("written");
        std::fs::set_permissions(alone.dir.join(name), PermissionsExt::from_mode(mode)).expect("ours");
    }
    let labctl = |args: &[&str]| Command::new(alone.dir.join("labctl")).args(args).env("RINGLAB_DIR", &site.dir).output().expect("starts");
    let doctor = Doctor::says(&labctl(&["doctor", "--format", "json"]));
    let hostd = alone.dir.join("hostd").display().to_string();
    assert_eq!((doctor.verdict("nicd"), doctor.verdict("hostd")), ("ok", "missing"));
    assert!(doctor.cure("hostd").contains(&format!("chmod a+x {hostd}")), "{}", doctor.cure("hostd"));
    let out = labctl(&["deploy", &site.file("two.yaml", TWO_HOSTS)]);
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(text(&out.stderr).contains(doctor.cure("hostd")), "{out:?}");
    expect_clean(&site.dir, &before);
}

#[test]
fn no_locked_memory_is_needed() {
    let site = Site::for_others();
    own(&site.dir);
    let before = Snapshot::of(&site.dir);
    let limited = |command: &Command| {
        let mut shell = Command::new("sh");
        shell.args(["-ec", "ulimit -l 0; exec \"$0\" \"$@\""]);
        as_ordinary_user(&started_by(shell, command))
    };
    let checks = "checks:\n  - {on: a, builtin: fetch, args: [-f, \"http://b/\"]}\n";
    let file = site.file("two.yaml", &format!("{TWO_HOSTS}{checks}"));
    let out = limited(&site.labctl(&["run", &file])).output().expect("starts");
    assert!(out.status.success(), "{}\n{}", text(&out.stderr), site.logs());
    assert!(Doctor::of(&site, limited).0.iter().all(|finding| finding["verdict"] != "missing"));
    expect_clean(&site.dir, &before);
}
