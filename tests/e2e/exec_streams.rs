//! `exec` while input or output do not move: signals go past them, and nobody else waits.

use crate::guest_kill::descendants;
use crate::{eventually, in_site};
use ringlab_tests::lab::Lab;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An emulated host, and a real one where that is permitted.
fn with_nodes(test: impl Fn(&Lab<'_>, &str)) {
    let root = rustix::process::geteuid().is_root();
    let real = if root { "  linux: {kind: linux}\n" } else { "  linux: {}\n" };
    in_site(|site| {
        let lab = site
            .deploy(&format!("name: streams\nnodes:\n  host: {{}}\n{real}links:\n  - endpoints: [\"host:eth0\", \"linux:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n"));
        test(&lab, "host");
        test(&lab, "linux");
    });
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it runs");
}

/// Waits until a number has stood still for a while.
fn stands(what: &str, number: impl Fn() -> u64) {
    let (mut last, mut since) = (0, Instant::now());
    eventually(what, 30, || {
        let now = number();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        now > 0 && since.elapsed() > Duration::from_millis(500)
    });
}

/// Octets that a process has read.
fn read_by(child: &Child) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).expect("it runs");
    io.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse().ok()).expect("a number")
}

/// Says when it is there; ends in its own way when it is asked to.
const POLITE: &str = "
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print('ready', flush=True)
time.sleep(1000)
";

#[test]
fn signals_go_past_input_that_nobody_reads() {
    with_nodes(|lab, node| {
        for signal in [Signal::TERM, Signal::INT] {
            let mut exec = lab.program(node, &["python3", "-c", POLITE]);
            exec.stdin(File::open("/dev/zero").expect("there")).stderr(Stdio::null());
            let mut user = exec.stdout(Stdio::piped()).spawn().expect("labctl starts");
            let mut line = String::new();
            BufReader::new(user.stdout.take().expect("piped")).read_line(&mut line).expect("text");
            assert_eq!(line, "ready\n");
            stands("nobody takes its input any more", || read_by(&user));
            send(&user, signal);
            let code = user.wait().expect("it ends").code();
            assert_eq!(code, Some(if signal == Signal::TERM { 7 } else { 130 }), "{node}");
        }
    });
}

#[test]
fn input_arrives_whole_and_what_is_not_wanted_is_dropped() {
    with_nodes(|lab, node| {
        for (program, want) in [(&["wc", "-c"][..], "3000000\n"), (&["sh", "-c", "exec 0<&-; echo closed"], "closed\n"), (&["true"], "")] {
            let mut user = lab.program(node, program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("labctl starts");
            let mut stdin = user.stdin.take().expect("piped");
            // labctl ends with its program.
            let writer = std::thread::spawn(move || drop(stdin.write_all(&vec![7; 3_000_000])));
            let mut text = String::new();
            user.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
            assert_eq!((text.as_str(), user.wait().expect("it ends").code()), (want, Some(0)), "{node} {program:?}");
            writer.join().expect("written");
        }
    });
}

#[test]
fn signals_end_a_program_whose_output_nobody_reads() {
    with_nodes(|lab, node| {
        let mut user = lab.program(node, &["yes"]).stdout(Stdio::piped()).spawn().expect("labctl starts");
        let mut first = [0; 2];
        user.stdout.as_mut().expect("piped").read_exact(&mut first).expect("it writes");
        // The first one is the program's. What it has written stays for a reader; the next one is labctl's.
        eventually("labctl has ended", 20, || {
            let ended = user.try_wait().expect("a child").is_some();
            if !ended {
                send(&user, Signal::TERM);
            }
            ended
        });
        assert_eq!(user.wait().expect("it ends").code(), Some(143), "{node}");
    });
}

/// Gives a program a terminal and types until nobody takes any more for a while; ends as the program does.
const TYPIST: &str = "
import fcntl, os, pty, select, subprocess, sys, termios
m, s = pty.openpty()
p = subprocess.Popen(sys.argv[1:], stdin=s, stdout=s, stderr=s, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
os.close(s); text = b''
while b'ready' not in text: text += os.read(m, 100)
os.set_blocking(m, False)
while select.select([], [m], [], 1)[1]:
    try: os.write(m, b'x' * 62 + b'\\r\\n')
    except BlockingIOError: pass
print('full', flush=True)
sys.exit(p.wait())
";

#[test]
fn a_full_terminal_whose_program_is_gone_holds_nobody_up() {
    in_site(|site| {
        let lab = site.deploy(crate::TWO_HOSTS);
        let hostd = lab.pid("a", "hostd");
        let exec = lab.program("a", &["sh", "-c", "stty -echo; echo ready; exec sleep 1000"]);
        let mut args: Vec<_> = exec.get_args().collect();
        args.insert(1, "-t".as_ref());
        let mut typist = Command::new("python3");
        typist.args(["-c", TYPIST]).arg(exec.get_program()).args(args);
        typist.envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = typist.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("text");
        assert_eq!(line, "full\n");
        let is_sleep = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with(b"sleep"));
        let sleep = descendants(hostd).into_iter().find(is_sleep).and_then(Pid::from_raw).expect("it runs");
        kill_process(sleep, Signal::KILL).expect("it runs");
        assert_eq!(child.wait().expect("it ends").code(), Some(137));
        assert_eq!(lab.ok(lab.program("a", &["echo", "fine"])), "fine\n");
    });
}
