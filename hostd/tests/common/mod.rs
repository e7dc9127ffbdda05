//! A real hostd process, and a stand-in for nicd that joins two of them.

pub mod hub;

use ringlab_proto::host::host_client::HostClient;
use ringlab_proto::host::{
    ExecInput, ExecOutput, ExecStart, ExitStatus, HostConfig, HostEntry, HostStats, Interface, StatsRequest, exec_input, exec_output,
};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// A directory that goes with the test.
pub struct Dir(pub PathBuf);

impl Dir {
    /// A fresh one.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hostd-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a fresh directory");
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A hostd process.
pub struct Daemon {
    pub child: Child,
    pub socket: PathBuf,
    pub client: HostClient<Channel>,
}

impl Daemon {
    /// Starts one and connects to it.
    pub async fn start(dir: &Path, node: &str) -> Self {
        let socket = dir.join(format!("hostd-{node}.sock"));
        let child = Command::new(env!("CARGO_BIN_EXE_hostd"))
            .args(["--run-dir", dir.to_str().expect("UTF-8"), "--node", node, "--grpc", socket.to_str().expect("UTF-8")])
            .stdin(Stdio::null())
            .spawn()
            .expect("hostd starts");
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).expect("an address");
        let began = Instant::now();
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(e) => assert!(began.elapsed() < Duration::from_secs(10), "hostd does not answer: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        Self { child, socket, client: HostClient::new(channel) }
    }

    /// Runs a built-in program to its end: exit status, standard output, standard error.
    pub async fn exec(&mut self, line: &[&str]) -> (ExitStatus, String, String) {
        let (input, output) = self.start_program(line).await;
        let result = collect(output).await;
        drop(input);
        result
    }

    /// Starts a built-in program.
    pub async fn start_program(&mut self, line: &[&str]) -> (mpsc::Sender<ExecInput>, Streaming<ExecOutput>) {
        let argv = line[1..].iter().map(|&s| s.to_owned()).collect();
        let start = ExecStart { builtin: line[0].to_owned(), argv, ..Default::default() };
        let (sender, output) = self.open(exec_input::Kind::Start(start)).await.expect("it starts");
        (sender, output)
    }

    /// Opens an `Exec` whose first message is `first`.
    pub async fn open(&mut self, first: exec_input::Kind) -> Result<(mpsc::Sender<ExecInput>, Streaming<ExecOutput>), Status> {
        let (sender, receiver) = mpsc::channel(8);
        sender.send(ExecInput { kind: Some(first) }).await.expect("room");
        let output = self.client.exec(ReceiverStream::new(receiver)).await?.into_inner();
        Ok((sender, output))
    }

    /// Its counters.
    pub async fn stats(&mut self) -> HostStats {
        self.client.stats(StatsRequest {}).await.expect("configured").into_inner()
    }

    /// Asks it to end, and waits: the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("hostd does not end");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that a program printed, and how it ended.
pub async fn collect(mut output: Streaming<ExecOutput>) -> (ExitStatus, String, String) {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    while let Some(message) = output.message().await.expect("the program's output") {
        match message.kind.expect("something is said") {
            exec_output::Kind::Stdout(bytes) => stdout += &String::from_utf8_lossy(&bytes),
            exec_output::Kind::Stderr(bytes) => stderr += &String::from_utf8_lossy(&bytes),
            exec_output::Kind::StdinTaken(_) => {}
            exec_output::Kind::Exit(status) => return (status, stdout, stderr),
        }
    }
    panic!("no exit status after {stdout:?} {stderr:?}");
}

/// Host number `n` of two.
pub fn config(dir: &Path, n: u8) -> HostConfig {
    let name = |n: u8| ["a", "b"][usize::from(n) - 1].to_owned();
    HostConfig {
        hostname: name(n),
        seed: n.into(),
        cpus: 1,
        interfaces: vec![Interface {
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, n],
            mtu: 1500,
            ipv4: vec![format!("10.0.0.{n}/24")],
            vhost_socket: dir.join(format!("vhost-{n}")).to_str().expect("UTF-8").to_owned(),
            queue_pairs: 1,
            rx_ring: 256,
            tx_ring: 256,
            ..Default::default()
        }],
        hosts: [1, 2].map(|n| HostEntry { name: name(n), ipv4: format!("10.0.0.{n}") }).to_vec(),
        ..Default::default()
    }
}

/// Two configured hosts, joined.
pub struct Pair {
    pub a: Daemon,
    pub b: Daemon,
    pub hub: hub::Hub,
    pub dir: Dir,
}

impl Pair {
    /// Starts them; `edit` changes the second's configuration.
    pub async fn start(name: &str, edit: impl FnOnce(&mut HostConfig)) -> Self {
        let dir = Dir::new(name);
        let hub = hub::Hub::start([dir.0.join("vhost-1"), dir.0.join("vhost-2")]);
        let (mut a, mut b) = (Daemon::start(&dir.0, "a").await, Daemon::start(&dir.0, "b").await);
        let mut second = config(&dir.0, 2);
        edit(&mut second);
        a.client.configure(config(&dir.0, 1)).await.expect("a is configured");
        b.client.configure(second).await.expect("b is configured");
        Self { a, b, hub, dir }
    }
}
