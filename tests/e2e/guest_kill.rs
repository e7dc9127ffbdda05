//! Programs that are killed at any point of any call harm nobody else.

use crate::{TWO_HOSTS, eventually, in_site};
use ringlab_tests::lab::Lab;
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// How long programs are killed.
const STORM: Duration = Duration::from_secs(4);

/// Everything below a process.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children: Vec<i32> = children.split_whitespace().filter_map(|p| p.parse().ok()).collect();
            next.extend(&children);
            all.extend(children);
        }
    }
    all
}

fn curl(lab: &Lab<'_>) -> String {
    lab.ok(lab.program("a", &["curl", "-sS", "--max-time", "20", "http://b/"]))
}

/// Tasks and sockets that only programs have.
fn left(lab: &Lab<'_>) -> Vec<String> {
    let stat = lab.site.json(&["stat", "-l", &lab.name, "a"]);
    let host = &stat["nodes"][0]["host"];
    let tasks = host["tasks"].as_array().into_iter().flatten().filter(|t| t["comm"] != "guests").map(|t| t["comm"].to_string());
    let sockets = host["sockets"].as_array().into_iter().flatten().filter(|s| s["state"] != "TIME-WAIT" && s["proto"] != "raw");
    tasks.chain(sockets.map(serde_json::Value::to_string)).collect()
}

#[test]
fn a_storm_of_sigkill_leaves_the_host_in_order() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let (a, b) = (lab.pid("a", "hostd"), lab.pid("b", "hostd"));
        let loops = [
            "while :; do curl -s --max-time 5 -o /dev/null http://b/; done",
            "while :; do python3 -c 'import socket; s=socket.socket(); s.bind((\"0.0.0.0\", 5555)); s.listen(); s.accept()'; done",
            "while :; do python3 -c 'import socket, threading\nfor _ in range(9): threading.Thread(target=lambda: socket.create_connection((\"b\", 80)).recv(9)).start()'; done",
            "while :; do python3 -c 'import select, socket\ne=select.epoll(); s=socket.socket(2, 2); e.register(s, 1); e.poll(5)'; done",
            "while :; do (sleep 0.01 | cat; exec 3<>/dev/tcp/b/80; cat <&3); done",
        ];
        let mut programs: Vec<_> = loops.iter().map(|script| lab.spawn(lab.program("a", &["bash", "-c", script]))).collect();
        eventually("programs run", 20, || descendants(a).len() > loops.len());
        let (mut x, mut killed, began) = (0x9e37_79b9u32, 0, Instant::now());
        while began.elapsed() < STORM {
            let all = descendants(a);
            let spared = [children(a), lab_shells(a)].concat();
            let victims: Vec<i32> = all.into_iter().filter(|p| !spared.contains(p)).collect();
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if let Some(pid) = victims.get((x >> 8) as usize % victims.len().max(1)).copied().and_then(Pid::from_raw) {
                killed += u32::from(kill_process(pid, Signal::KILL).is_ok());
            }
        }
        assert!(killed > 50, "{killed} programs were killed");
        for program in &mut programs {
            program.kill().expect("it runs");
            program.wait().expect("it ends");
        }
        for pid in lab_shells(a).into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        eventually("programs have ended", 20, || {
            let guard = children(a);
            let left: Vec<i32> = descendants(a).into_iter().filter(|p| !guard.contains(p)).collect();
            for pid in left.iter().copied().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            left.is_empty()
        });
        assert_eq!(curl(&lab), "hello");
        eventually("nothing is left in the host", 20, || left(&lab).is_empty());
        assert_eq!((lab.pid("a", "hostd"), lab.pid("b", "hostd")), (a, b), "the same hosts run");
    });
}

/// Children of a process.
fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|t| std::fs::read_to_string(t.path().join("children")).unwrap_or_default());
    lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

/// What hostd's guard started itself: the loops.
fn lab_shells(hostd: i32) -> Vec<i32> {
    children(hostd).into_iter().flat_map(children).collect()
}

/// Those of some processes that live, with what they were started as.
fn alive(pids: &[i32]) -> Vec<String> {
    let state = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    pids.iter().filter_map(state).filter(|stat| !stat.contains(") Z ")).collect()
}

#[test]
fn no_program_outlives_a_hostd_that_is_killed() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let hostd = lab.pid("a", "hostd");
        assert!(children(hostd).is_empty(), "a host without programs has no guard");
        // A daemon by the book: in a session of its own, its parents gone, its descriptors closed.
        let daemon = "
import os, socket, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        s = socket.create_server(('0.0.0.0', 8000))
        if os.fork() == 0: time.sleep(1000)
        while True: s.accept()
    os._exit(0)
os.wait()
";
        lab.ok(lab.program("a", &["python3", "-c", daemon]));
        let mut waiting = lab.spawn(lab.program("a", &["sh", "-c", "sleep 1000 & sleep 1001"]));
        eventually("all run", 20, || descendants(hostd).len() == 6);
        let all = descendants(hostd);
        kill_process(Pid::from_raw(hostd).expect("a process"), Signal::KILL).expect("it runs");
        eventually("all have ended", 10, || alive(&all).is_empty());
        assert!(!waiting.wait().expect("it ends").success());
    });
}

#[test]
fn programs_start_again_after_their_guard_was_killed() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let hostd = lab.pid("a", "hostd");
        let mut waiting = lab.spawn(lab.program("a", &["sleep", "1000"]));
        eventually("it runs", 10, || descendants(hostd).len() == 2);
        let old = descendants(hostd);
        for guard in children(hostd).into_iter().filter_map(Pid::from_raw) {
            kill_process(guard, Signal::KILL).expect("it runs");
        }
        eventually("its program has ended", 10, || alive(&old).is_empty());
        waiting.wait().expect("it ends");
        assert_eq!(curl(&lab), "hello");
    });
}

#[test]
fn a_program_that_reads_no_input_ends_with_its_user() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let hostd = lab.pid("a", "hostd");
        let mut exec = lab.program("a", &["sleep", "1000"]);
        exec.stdin(std::fs::File::open("/dev/zero").expect("there"));
        let mut user = lab.spawn(exec);
        eventually("it runs", 10, || descendants(hostd).len() == 2);
        let (mut read, mut since) = (String::new(), Instant::now());
        eventually("nobody takes its input any more", 30, || {
            let io = std::fs::read_to_string(format!("/proc/{}/io", user.id())).expect("it runs");
            let now = io.lines().next().unwrap_or_default().to_owned();
            if now != read {
                (read, since) = (now, Instant::now());
            }
            since.elapsed() > Duration::from_millis(500)
        });
        let pid = Pid::from_raw(user.id() as i32).expect("a process");
        kill_process(pid, Signal::INT).expect("it runs");
        assert_eq!(user.wait().expect("it ends").code(), Some(130));
        eventually("the program has ended", 10, || descendants(hostd).len() == 1);
    });
}

#[test]
fn what_a_program_leaves_running_ends_with_the_host() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let hostd = lab.pid("a", "hostd");
        let _ = lab.ok(lab.program("a", &["sh", "-c", "setsid sh -c 'sleep 1000; true' >/dev/null 2>&1 </dev/null & true"]));
        eventually("the daemon is hostd's", 10, || !descendants(hostd).is_empty());
        let daemons = descendants(hostd);
        site.ok(&["destroy", "--all"]);
        for pid in daemons {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
        }
    });
}

/// A program with many descriptors that says so and stays.
const LARGE: &str = "import resource, select, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
all = [socket.socket(2, 2) for _ in range(10000)] + [select.epoll()]
print('ready', flush=True)
sys.stdin.read()";

/// Programs that end: every second one has a set, and leaves it to a child that ends later.
const SMALL: &str = "import os, select, socket
for n in range(300):
    pid = os.fork()
    if pid == 0:
        e = select.epoll() if n % 2 else None
        s = socket.socket(2, 2)
        if e and os.fork() == 0:
            e.register(s, 4)
            os._exit(0 if e.poll(20) else 1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0";

#[test]
fn programs_that_end_do_not_pay_for_the_descriptors_of_others() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let mut large = lab.program("a", &["python3", "-c", LARGE]);
        let mut large = large.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().expect("starts");
        let mut said = String::new();
        let mut reader = std::io::BufReader::new(large.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut reader, &mut said).expect("it says so");
        assert_eq!(said, "ready\n");
        let held = || std::fs::read_dir(format!("/proc/{}/fd", lab.pid("a", "hostd"))).expect("it runs").count();
        let before = held();
        let began = Instant::now();
        lab.ok(lab.program("a", &["python3", "-c", SMALL]));
        // Looking at all descriptors at each end takes more than a minute.
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        eventually("their sets are gone", 20, || held() < before + 20);
        drop(large.stdin.take());
        assert!(large.wait().expect("it ends").success());
    });
}
