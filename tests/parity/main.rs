//! Parity with the real kernel: the same programs in two real namespaces and on two emulated hosts.
//!
//! `c/` is one program: cases in families, each a script of system calls on two hosts (`c/parity.h`), and a driver of
//! random sequences. It runs once in namespaces joined by veth and once by `labctl exec`; what it
//! prints must be equal. A difference that stays is an entry of `known.txt` and a row of `docs/support-matrix.md`:
//! both outputs are asserted exactly then, too. `tools/` does the same with the output of Debian's programs.

mod compare;
mod known;
mod random;
mod tools;
mod worlds;

use compare::{Cases, cases, diff};
use known::Known;
use worlds::{Program, Worlds};

/// Runs a family on both and compares.
fn family(name: &str, at_least: usize) {
    let program = Program::compile();
    let worlds = Worlds::new(&program);
    let (linux, ours) = worlds.both(&[name]);
    let (linux, ours) = (cases(&linux), cases(&ours));
    assert!(linux.len() >= at_least, "{name}: {} cases", linux.len());
    for (case, expected) in &linux {
        assert!(!expected.iter().any(|line| line.starts_with("!!")), "{case} fails on Linux:\n{}", expected.join("\n"));
    }
    expect_alike(&linux, &ours);
}

/// Every case of Linux is the same here, or differs as is known.
fn expect_alike(linux: &Cases, ours: &Cases) {
    let mut failures = String::new();
    for (case, expected) in linux {
        let found = ours.get(case).map_or(&[][..], Vec::as_slice);
        if let Some(failure) = Known::judge(case, &diff(expected, found)) {
            failures.push_str(&failure);
        }
    }
    assert!(failures.is_empty(), "Linux (-) and the emulated hosts (+) differ:\n{failures}");
}

macro_rules! families {
    ($($test:ident: $name:literal, $at_least:literal;)*) => {$(
        #[test]
        fn $test() {
            family($name, $at_least);
        }
    )*};
}

families! {
    connections_open_and_close_alike: "conn", 60;
    every_state_of_a_socket_answers_alike: "states", 25;
    errors_are_the_same: "errno", 40;
    wild_pointers_fault_alike: "fault", 6;
    poll_and_select_report_alike: "ready", 26;
    epoll_reports_alike: "epoll", 53;
    sets_of_both_kinds_report_alike: "mixed", 32;
    udp_behaves_alike: "udp", 43;
    options_read_back_alike: "opts", 27;
    message_flags_work_alike: "flags", 35;
    processes_and_signals_behave_alike: "proc", 33;
    names_and_ports_behave_alike: "ports", 34;
    sockets_as_files_behave_alike: "files", 10;
    masks_of_waits_hold_back_and_let_through_alike: "mask", 20;
    stops_end_and_restart_waits_alike: "stop", 28;
    splice_moves_alike: "splice", 47;
}

#[test]
fn known_differences_stand_in_the_support_matrix() {
    Known::check_documented();
}
