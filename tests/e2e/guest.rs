//! Debian's own programs on emulated hosts.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Lab;
use std::process::Output;

fn run(lab: &Lab<'_>, node: &str, args: &[&str]) -> Output {
    lab.program(node, args).output().expect("labctl starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn curl_fetches_from_another_host_by_name() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(lab.ok(lab.program("a", &["curl", "-sS", "--max-time", "10", "http://b/"])), "hello");
        let refused = run(&lab, "a", &["curl", "-sS", "--max-time", "10", "http://b:81/"]);
        assert_eq!(refused.status.code(), Some(7), "{}", text(&refused.stderr));
    });
}

#[test]
fn exit_codes_and_streams_are_the_programs_own() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let out = run(&lab, "a", &["sh", "-c", "cat; echo bad >&2; exit 7"]);
        assert_eq!((out.status.code(), text(&out.stderr)), (Some(7), "bad\n".into()));
        let missing = run(&lab, "a", &["no-such-program"]);
        assert_eq!(missing.status.code(), Some(127), "{}", text(&missing.stderr));
        assert!(text(&missing.stderr).contains("no-such-program: No such file or directory"), "{}", text(&missing.stderr));
        assert_eq!(run(&lab, "a", &["/etc/passwd"]).status.code(), Some(126));
        assert_eq!(run(&lab, "a", &["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    });
}

#[test]
fn a_program_sees_the_nodes_names() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(lab.ok(lab.program("a", &["uname", "-n"])), "a\n");
        assert_eq!(lab.ok(lab.program("b", &["cat", "/etc/hostname"])), "b\n");
        let hosts = lab.ok(lab.program("a", &["cat", "/etc/hosts"]));
        assert!(hosts.contains("10.0.0.2\tb") && hosts.contains("10.0.0.1\ta"), "{hosts}");
    });
}
