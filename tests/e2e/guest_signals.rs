//! What signals do to programs' calls: as on the machine itself.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::reach::Reachable;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program of `c/`, compiled for one test.
pub struct Compiled {
    program: PathBuf,
    _dir: Reachable,
}

impl Compiled {
    /// Compiles it, where every user may run it.
    pub fn new(source: &str) -> Self {
        let dir = Reachable::like(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let out = dir.dir.join(format!("{source}-{}", std::process::id()));
        let source = format!("{}/e2e/c/{source}.c", env!("CARGO_MANIFEST_DIR"));
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]).arg(&out).arg(source);
        let done = cc.output().expect("a C compiler is installed by tests/setup.sh");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Self { program: out, _dir: dir }
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        self.program.to_str().expect("a path of the build")
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.program);
    }
}

/// Runs cases of `signals` on the machine and on an emulated host: they print the same.
fn same_on_both(cases: &[&[&str]]) {
    same_of("signals", cases);
}

/// As [`same_on_both`], of any program of `c/`.
pub fn same_of(program: &str, cases: &[&[&str]]) {
    let program = Compiled::new(program);
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        for case in cases {
            let real = Command::new(program.path()).args(*case).output().expect("it starts");
            assert!(real.status.success(), "{case:?}: {}", String::from_utf8_lossy(&real.stderr));
            let emulated = lab.ok(lab.program("a", &[&["timeout", "120", program.path()], *case].concat()));
            assert_eq!(emulated, String::from_utf8_lossy(&real.stdout), "{case:?}");
        }
    });
}

#[test]
fn calls_with_a_time_limit_end_with_one_eintr_for_a_handler() {
    same_on_both(&[&["limits"]]);
}

#[test]
fn other_calls_are_restarted_if_the_handler_says_so_and_jumps_leave_nothing() {
    same_on_both(&[&["restarts"]]);
}

#[test]
fn what_was_received_before_a_signal_is_returned() {
    same_on_both(&[&["parts"]]);
}

#[test]
fn a_storm_of_signals_loses_no_octet_and_fails_no_call() {
    same_on_both(&[&["storm"], &["storm", "restart"]]);
}

#[test]
fn every_call_that_waits_stands_a_storm_of_signals() {
    same_of("storms", &[&["calls"], &["calls", "restart"]]);
}

#[test]
fn processes_end_though_signals_come() {
    same_of("storms", &[&["ends"], &["ends", "restart"]]);
}

#[test]
fn a_call_that_does_not_wait_is_not_interrupted() {
    same_of("storms", &[&["moments"], &["moments", "restart"]]);
}

#[test]
fn a_handler_that_only_a_wait_lets_through_runs_exactly_if_the_wait_says_eintr() {
    same_of("storms", &[&["waits"], &["waits", "restart"]]);
}
