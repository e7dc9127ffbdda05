//! What goes over TCP.

use super::*;

#[test]
fn fetch_gets_what_httpd_serves() {
    let mut lab = Lab::new();
    let _httpd = lab.serve_on_b(&["httpd", "-p", "8080", "--body", "hello"]);
    let (exit, job) = lab.on_a(&["fetch", "-f", "http://b:8080/any"]);
    ok(exit, &job);
    assert_eq!(job.stdout, "hello");
    let (exit, job) = lab.on_a(&["fetch", "--sha256", "http://b:8080/"]);
    ok(exit, &job);
    assert!(job.stdout.starts_with("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"), "{}", job.stdout);
    let (exit, job) = lab.on_a(&["fetch", "http://b:81/"]);
    assert_eq!(exit.code, 1);
    assert_eq!(job.stderr, "fetch: connect to 10.0.0.2 port 81: Connection refused\n");
}

#[test]
fn large_files_arrive_whole_and_missing_ones_are_404() {
    let folder = Folder::new();
    let dir = &folder.0;
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(dir.join("data.bin"), &data).expect("written");
    let mut lab = Lab::new();
    let _httpd = lab.serve_on_b(&["httpd", dir.to_str().expect("UTF-8")]);
    let copy = dir.join("copy.bin");
    let (exit, job) = lab.on_a(&["fetch", "-f", "-o", copy.to_str().expect("UTF-8"), "http://b/data.bin"]);
    ok(exit, &job);
    assert!(std::fs::read(&copy).expect("written") == data);
    let (exit, job) = lab.on_a(&["fetch", "-f", "http://b/none"]);
    assert_eq!((exit.code, job.stderr.as_str()), (22, "fetch: the server answered 404 Not Found\n"));
}

/// A directory of the test's own, removed when dropped: also when the test fails.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("ringlab-programs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // In a failing test there is nobody to tell.
        let removed = std::fs::remove_dir_all(&self.0);
        assert!(std::thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

#[test]
fn stream_over_tcp_verifies() {
    let mut lab = Lab::new();
    let _server = lab.serve_on_b(&["stream", "-s"]);
    let (exit, job) = lab.on_a(&["stream", "-c", "b", "-n", "20000001", "--verify", "--json"]);
    ok(exit, &job);
    let json = job.json();
    assert_eq!((json["bytes"].as_u64(), json["verified"].as_bool()), (Some(20_000_001), Some(true)), "{json}");
    assert!(json["bits_per_second"].as_f64().is_some_and(|b| b > 1e6), "{json}");
    let (exit, job) = lab.on_a(&["stream", "-c", "b", "-t", "0.005"]);
    ok(exit, &job);
    assert!(job.stdout.contains("bit/s"), "{}", job.stdout);
}

#[test]
fn stream_over_udp_counts_datagrams() {
    let mut lab = Lab::new();
    let _server = lab.serve_on_b(&["stream", "-s"]);
    let (exit, job) = lab.on_a(&["stream", "-c", "b", "-u", "-n", "100000", "-l", "1000", "-b", "10000000", "--verify", "--json"]);
    ok(exit, &job);
    let json = job.json();
    let number = |key: &str| json[key].as_u64();
    assert_eq!(
        (number("datagrams_sent"), number("datagrams_received"), number("datagrams_lost")),
        (Some(100), Some(100), Some(0)),
        "{json}"
    );
    assert_eq!((json["verified"].as_bool(), number("bytes")), (Some(true), Some(100_000)), "{json}");
}

#[test]
fn all_five_echo_servers_give_back_what_they_get() {
    for mode in ["blocking", "nonblocking", "select", "epoll-level", "epoll-edge"] {
        let mut lab = Lab::new();
        let mut server = lab.serve_on_b(&["echo", "--mode", mode, "-p", "7"]);
        let (exit, job) = lab.on_a(&["echo", "-c", "b", "-p", "7", "--connections", "20", "-n", "5", "-l", "3000", "--json"]);
        ok(exit, &job);
        let json = job.json();
        let number = |key: &str| json[key].as_u64();
        assert_eq!((number("connections"), number("errors"), number("octets")), (Some(20), Some(0), Some(300_000)), "{mode}: {json}");
        lab.b.programs.signal(&lab.b.shared, server.id, libc::SIGTERM);
        assert_eq!(lab.wait(&mut server, 10), Exit { code: 143, signal: 15 }, "{mode}");
    }
}

#[test]
fn a_message_larger_than_the_buffers_goes_round() {
    for mode in ["select", "epoll-level", "epoll-edge"] {
        let mut lab = Lab::new();
        let _server = lab.serve_on_b(&["echo", "--mode", mode]);
        let (exit, job) = lab.on_a(&["echo", "-c", "b", "-l", "1000000", "-n", "2"]);
        ok(exit, &job);
        assert!(job.stdout.contains("2000000 octets came back, 0 errors"), "{mode}: {}", job.stdout);
    }
}

#[test]
fn echo_client_relays_standard_input() {
    let mut lab = Lab::new();
    let _server = lab.serve_on_b(&["echo"]);
    let mut job = Lab::start(&mut lab.a, &["echo", "-c", "b", "--stdin"]);
    let stdin = job.stdin.take().expect("open");
    stdin.try_send(b"one\n".to_vec()).expect("room");
    lab.run_for(50);
    stdin.try_send(b"two\n".to_vec()).expect("room");
    drop(stdin);
    let exit = lab.wait(&mut job, 10);
    ok(exit, &job);
    assert_eq!(job.stdout, "one\ntwo\n");
}

#[test]
fn killed_program_frees_its_port_at_once() {
    let mut lab = Lab::new();
    for _ in 0..3 {
        let mut server = lab.serve_on_b(&["httpd", "--body", "x"]);
        let (exit, job) = lab.on_a(&["fetch", "http://b/"]);
        ok(exit, &job);
        lab.b.programs.signal(&lab.b.shared, server.id, 9);
        assert_eq!(lab.wait(&mut server, 1), Exit { code: 137, signal: 9 }, "{}", server.stderr);
    }
    let (exit, _) = lab.on_a(&["fetch", "http://b/"]);
    assert_eq!(exit.code, 1);
}

#[test]
fn a_port_that_is_taken_is_an_error_with_words() {
    let mut lab = Lab::new();
    let _first = lab.serve_on_b(&["httpd", "--body", "x"]);
    let mut second = Lab::start(&mut lab.b, &["echo", "-p", "80"]);
    assert_eq!(lab.wait(&mut second, 1).code, 1);
    assert_eq!(second.stderr, "echo: bind to port 80: Address already in use\n");
}

#[test]
fn states_of_run_programs_are_reported() {
    let mut lab = Lab::new();
    let streams = || Streams { stdin: mpsc::channel(1).1, output: mpsc::channel(8).0, exit: oneshot::channel().0 };
    let spec = |line: &[&str], ready_tcp| crate::config::RunSpec {
        start: crate::config::ExecSpec::Builtin(StartSpec {
            builtin: line[0].into(),
            argv: line[1..].iter().map(|&s| s.into()).collect(),
            cwd: "/".into(),
        }),
        ready_tcp,
    };
    let specs = [spec(&["httpd", "--body", "x"], Some(80)), spec(&["sleep", "1000"], None), spec(&["httpd", "/nowhere"], Some(81))];
    lab.b.programs.run_all(&lab.b.shared, &specs, vec![streams(), streams(), streams()]);
    lab.run_for(10);
    let states = lab.b.programs.states(&lab.b.shared);
    let seen: Vec<_> = states.iter().map(|s| (s.state.as_str(), s.ready, s.exit_code)).collect();
    // The second's output has no reader, so its message cannot be printed; its exit code says enough.
    assert_eq!(seen, [("running", true, 0), ("running", true, 0), ("exited", false, 1)]);
    assert!(states[2].error.contains("/nowhere"), "{}", states[2].error);
}

/// Number and system calls so far of the only task of a name on `b`.
fn task_on_b(lab: &Lab, name: &str) -> (ringlab_kernel::cpu::sched::TaskId, u64) {
    let tasks = lab.b.shared.kernel().tasks_info();
    let task = tasks.iter().find(|t| t.comm == name).expect("it runs");
    (task.id, task.syscalls)
}

#[test]
fn httpd_without_a_free_descriptor_rests_and_goes_on_when_one_is_closed() {
    let mut lab = Lab::new();
    let _httpd = lab.serve_on_b(&["httpd", "--body", "hello"]);
    // Listener, epoll set, two connections.
    let (task, _) = task_on_b(&lab, "httpd");
    lab.b.shared.kernel().set_fd_limit(task, 4);
    let held = Lab::start(&mut lab.a, &["echo", "-c", "b", "-p", "80", "--connections", "4", "-n", "1"]);
    let mut fetch = Lab::start(&mut lab.a, &["fetch", "http://b/"]);
    lab.run_for(100);
    let (_, before) = task_on_b(&lab, "httpd");
    lab.run_for(5000);
    let (_, after) = task_on_b(&lab, "httpd");
    // Every half second it looks whether it is better now.
    assert!((after - before) < 100, "{} system calls in 5 s", after - before);
    fetch.collect();
    assert_eq!(fetch.stdout, "", "it waits");
    lab.a.programs.signal(&lab.a.shared, held.id, libc::SIGTERM);
    let exit = lab.wait(&mut fetch, 10);
    ok(exit, &fetch);
    assert_eq!(fetch.stdout, "hello");
}

#[test]
fn echo_servers_without_a_free_descriptor_serve_those_that_they_have() {
    for mode in ["blocking", "nonblocking", "select", "epoll-level", "epoll-edge"] {
        let mut lab = Lab::new();
        let _server = lab.serve_on_b(&["echo", "--mode", mode, "-p", "7"]);
        let (task, _) = task_on_b(&lab, "echo");
        // Listener, epoll set, reserve, two connections.
        lab.b.shared.kernel().set_fd_limit(task, 5);
        let mut clients: Vec<Job> = (0..6).map(|_| Lab::start(&mut lab.a, &["echo", "-c", "b", "-p", "7", "--stdin"])).collect();
        lab.run_for(100);
        let (_, before) = task_on_b(&lab, "echo");
        lab.run_for(5000);
        let (_, after) = task_on_b(&lab, "echo");
        // That one looks at everything every 200 µs.
        let most = if mode == "nonblocking" { 25_000 * 10 } else { 100 };
        assert!(after - before < most, "{mode}: {} system calls in 5 s", after - before);
        for client in &mut clients[..2] {
            client.stdin.take().expect("open").try_send(b"served\n".to_vec()).expect("room");
            let exit = lab.wait(client, 10);
            ok(exit, client);
            assert_eq!(client.stdout, "served\n", "{mode}");
        }
        drop(clients);
        lab.run_for(2000);
        let (exit, job) = lab.on_a(&["echo", "-c", "b", "-p", "7"]);
        ok(exit, &job);
    }
}
