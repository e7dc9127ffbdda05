//! What bad input gets: an exit status, a place, and nothing started.

use crate::{TWO_HOSTS, expect_clean, in_site};
use ringlab_tests::lab::Site;
use ringlab_tests::leftovers::Snapshot;
use std::os::unix::process::CommandExt;

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
fn an_ordinary_user_runs_emulated_hosts_and_is_told_what_real_linux_needs() {
    let site = Site::new();
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
