//! Unmodified programs where the machine refuses what they could be arranged with: under a seccomp profile that
//! lacks what Docker's default one lacks, and as a user without any capability.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Site;
use std::process::{Command, Stdio};

/// Refuses calls (`EPERM`), then runs its arguments.
const PROFILE: &str = r#"
import ctypes, os, struct, sys
refused = [438, 272, 165, 166, 170, 171, 308, 428, 429, 430, 431, 432, 161, 155, 321, 298, 304, 246]
code = [(0x20, 0, 0, 0)] + [i for n in refused for i in ((0x15, 0, 1, n), (6, 0, 0, 0x00050001))] + [(6, 0, 0, 0x7fff0000)]
insns = b''.join(struct.pack('HBBI', *i) for i in code)
buf = ctypes.create_string_buffer(insns, len(insns))
prog = struct.pack('HxxxxxxQ', len(code), ctypes.addressof(buf))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(prog), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
"#;

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
    run(&["destroy", "--all"]);
}

/// The command under the profile.
pub fn under_a_containers_profile(labctl: &Command) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", PROFILE]).arg(labctl.get_program()).args(labctl.get_args());
    command.envs(labctl.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    command
}

#[test]
fn programs_run_under_a_containers_seccomp_profile() {
    in_site(|site| {
        works(site, |args| under_a_containers_profile(&site.labctl(args)));
    });
}

#[test]
fn programs_run_for_a_user_without_capabilities() {
    if !rustix::process::geteuid().is_root() {
        // Whoever runs the tests is such a user.
        return in_site(|site| works(site, |args| site.labctl(args)));
    }
    in_site(|site| {
        rustix::fs::chown(&site.dir, Some(rustix::fs::Uid::from_raw(65534)), None).expect("the directory is the test's");
        works(site, |args| {
            let labctl = site.labctl(args);
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
            command.arg(labctl.get_program()).args(labctl.get_args());
            command.envs(labctl.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command
        });
    });
}
