//! Debian's own programs on emulated hosts.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Lab;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

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
        let data = run(&lab, "a", &["/etc/passwd"]);
        assert_eq!(data.status.code(), Some(126), "{}", text(&data.stderr));
        let killed = run(&lab, "a", &["sh", "-c", "kill -9 $$"]);
        assert_eq!(killed.status.code(), Some(137), "{}", text(&killed.stderr));
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

#[test]
fn a_terminal_has_a_size_and_passes_interrupts_on() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let program = "stty size; trap 'echo got; exit 3' INT; echo ready; while :; do sleep 0.1; done";
        let exec = lab.program("a", &["sh", "-c", program]);
        let words: Vec<String> = exec.get_args().map(|a| format!("'{}'", a.to_string_lossy().replace('\'', "'\\''"))).collect();
        // `script` gives labctl a terminal of its own.
        let line =
            format!("stty rows 40 cols 100; exec '{}' {}", exec.get_program().display(), words.join(" ").replacen("'exec'", "exec -t", 1));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut seen = String::new();
        while !seen.contains("ready") {
            assert!(out.read_line(&mut seen).expect("text") > 0, "ended: {seen}");
        }
        assert!(seen.contains("40 100"), "{seen}");
        child.stdin.as_mut().expect("piped").write_all(b"\x03").expect("it reads");
        out.read_to_string(&mut seen).expect("text");
        assert!(seen.contains("got"), "{seen}");
        assert_eq!(child.wait().expect("it ends").code(), Some(3));
    });
}

#[test]
fn a_program_begins_with_no_signal_blocked() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(
            lab.ok(lab.program("a", &["sh", "-ec", "grep SigBlk /proc/self/status; sleep 0.1 & sleep 0.2 & wait"])),
            "SigBlk:\t0000000000000000\n"
        );
    });
}
