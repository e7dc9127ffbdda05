//! The object in front of the C library (`hostd/src/guest/preload`): it saves trapped calls, and changes nothing.

use crate::guest_signals::{Compiled, same_of};
use crate::{TWO_HOSTS, in_site};

/// Runs a case of `preload` on the machine and on an emulated host: it prints the same, and how few calls were trapped.
fn same(case: &str) {
    same_of("preload", &[&[case]]);
}

#[test]
fn calls_on_files_are_not_trapped() {
    same("files");
}

#[test]
fn changes_of_epoll_sets_wait_for_the_next_call_and_look_as_if_they_had_not() {
    same("sets");
}

#[test]
fn whoever_waits_for_a_set_learns_of_changes_at_once() {
    same("waits");
}

#[test]
fn wild_pointers_get_what_linux_gives_them() {
    same("pointers");
}

#[test]
fn numbers_that_stand_for_something_else_are_known() {
    same("numbers");
}

#[test]
fn children_have_descriptors_of_their_own() {
    same("forks");
}

#[test]
fn threads_that_wait_in_a_call_can_be_cancelled() {
    same("cancel");
}

#[test]
fn a_program_that_filters_its_calls_makes_none_but_its_own() {
    same_of("preload", &[&["sandbox"], &["sandbox", "cold"]]);
}

#[test]
fn a_process_without_a_free_descriptor_goes_without() {
    same_of("preload", &[&["full", "cold"]]);
}

#[test]
fn what_a_hostile_program_writes_there_harms_nobody_else() {
    same_of("preload", &[&["hostile"], &["files"], &["sets"]]);
}

#[test]
fn programs_without_the_object_work_and_pay() {
    let program = Compiled::new("preload");
    let without = TWO_HOSTS.replacen("a: {}", "a: {preload: false}", 1);
    in_site(|site| {
        let lab = site.deploy(&without);
        let told = lab.ok(lab.program("a", &[program.path(), "files"]));
        assert!(told.contains("sum 2082000") && !told.contains("few waits"), "{told}");
        assert!(!lab.program("a", &["cat", "/etc/ld.so.preload"]).status().expect("it starts").success());
        assert!(lab.ok(lab.program("b", &["cat", "/etc/ld.so.preload"])).ends_with("/preload.so\n"));
    });
}
