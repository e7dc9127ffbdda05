//! Figures of unmodified programs on emulated hosts, each beside the same program on the machine's own kernel.

use crate::figures::{Figure, Target};
use crate::labs::{in_turn, number};
use crate::reference::{self, SECONDS};
use anyhow::{Context, Result, ensure};
use ringlab_tests::fresh_dir;
use ringlab_tests::lab::{Lab, Site};
use ringlab_tests::veth::{ADDR, Veth};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Connections of the figure that has many.
const MANY: u32 = 10_000;
/// Connections of its reference.
const FEW: u32 = 10;

/// A directory with files of one figure; removed with it.
struct Files(PathBuf);

impl Files {
    fn new() -> Result<Self> {
        Ok(Self(fresh_dir("ringlab-bench-")))
    }

    /// Compiles `c/calls.c`.
    fn calls(&self) -> Result<String> {
        let program = self.0.join("calls");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/c/calls.c");
        let out = Command::new("cc").args(["-std=gnu11", "-O2", "-o"]).arg(&program).arg(source).output().context("cc")?;
        ensure!(out.status.success(), "cc: {}", String::from_utf8_lossy(&out.stderr));
        self.path("calls")
    }

    fn path(&self, name: &str) -> Result<String> {
        Ok(self.0.join(name).to_str().context("path in UTF-8")?.to_owned())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server; ended with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hosts `a` and `b`; `b` runs a server.
fn serving<'s>(site: &'s Site, cmd: &[&str], port: u16) -> Result<Lab<'s>> {
    let cmd = serde_json::to_string(cmd)?;
    Ok(site.deploy(&format!(
        "name: serving\nplacement: spread\nnodes:\n  a: {{}}\n  b:\n    run:\n      - {{cmd: {cmd}, ready: {{tcp: {port}}}}}\nlinks:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n"
    )))
}

/// The same server in a real namespace, once it listens.
fn serving_veth(veth: &Veth, cmd: &[&str], port: u16) -> Result<Server> {
    let mut command = veth.command(1, cmd[0], &cmd[1..]);
    let server = Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    for _ in 0..200 {
        let out = veth.ok(1, "ss", &["-Hltn", &format!("sport = :{port}")]);
        if !out.stdout.is_empty() {
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("{} does not listen on port {port}", cmd[0])
}

fn parse(text: &str) -> Result<f64> {
    text.trim().parse().with_context(|| format!("no number: {text}"))
}

fn run(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?)
}

/// Says what the machine does without a lab: `calls` in a mode that does no more.
///
/// # Errors
/// When it cannot be compiled or run.
pub fn machine(args: &[&str], unit: &str, what: &str) -> Result<()> {
    let files = Files::new()?;
    floor(&files.calls()?, args, unit, what)
}

/// Says what a figure could be at best by the means that it uses: `calls` in a mode that does no more.
fn floor(calls: &str, args: &[&str], unit: &str, what: &str) -> Result<()> {
    let times: Vec<f64> = (0..5).map(|_| parse(&run(Command::new(calls).args(args))?)).collect::<Result<_>>()?;
    eprintln!("  {what}: {:.0} {unit} {times:.0?}", ringlab_tests::median(&times));
    Ok(())
}

/// A notified null call beside a bare notification's round trip.
pub fn notify_null() -> Result<Vec<Figure>> {
    let files = Files::new()?;
    let calls = files.calls()?;
    let site = Site::new();
    let lab = site.deploy("name: alone\nnodes: {a: {}}\n");
    let bare = || parse(&run(Command::new(&calls).args(["bare", "100000"]))?);
    let value = || parse(&lab.ok(lab.program("a", &[&calls, "null", "100000"])));
    let (reference, value) = in_turn(bare, value)?;
    floor(&calls, &["copies", "100000"], "ns", "a supervisor that does nothing but the call's two copies")?;
    Ok(vec![Figure::ratio("notify_null", value, "ns", reference, Target::AtMost(1.5))])
}

/// One TCP stream of iperf3.
pub fn iperf3_host_host() -> Result<Vec<Figure>> {
    let veth = Veth::new();
    let site = Site::new();
    let lab = serving(&site, &["iperf3", "-s"], 5201)?;
    let value = || {
        let json = lab.json(lab.program("a", &["iperf3", "-c", "10.0.0.2", "-t", SECONDS, "-J"]));
        number(&json["end"]["sum_received"], "bits_per_second")
    };
    let (reference, value) = in_turn(|| reference::veth_tcp(&veth), value)?;
    Ok(vec![Figure::ratio("iperf3_host_host", value, "bit/s", reference, Target::AtLeast(0.4))])
}

/// redis-benchmark, GET, 50 connections, one request at a time on each.
pub fn redis_get() -> Result<Vec<Figure>> {
    const PORT: u16 = 6379;
    let server = ["redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no", "--bind", "0.0.0.0"];
    let veth = Veth::new();
    let _server = serving_veth(&veth, &server, PORT)?;
    let site = Site::new();
    let lab = serving(&site, &server, PORT)?;
    let client = |host| ["redis-benchmark", "-h", host, "-t", "get", "-c", "50", "-n", "20000", "--csv"];
    let rate = |text: String| {
        let line = text.lines().find(|l| l.starts_with("\"GET\"")).with_context(|| format!("no GET: {text}"))?;
        parse(line.split('"').nth(3).unwrap_or_default())
    };
    let reference = || rate(run(&mut veth.command(0, client(ADDR[1])[0], &client(ADDR[1])[1..]))?);
    let (reference, value) = in_turn(reference, || rate(lab.ok(lab.program("a", &client("10.0.0.2")))))?;
    Ok(vec![Figure::ratio("redis_get", value, "requests/s", reference, Target::AtLeast(0.25))])
}

/// wrk on nginx: a file of 1 KiB, 64 connections kept alive.
pub fn wrk_nginx() -> Result<Vec<Figure>> {
    const PORT: u16 = 80;
    let files = Files::new()?;
    std::fs::write(files.0.join("file"), [b'x'; 1024])?;
    let conf = |name: &str| -> Result<String> {
        let (conf, dir) = (files.path(name)?, files.0.display());
        std::fs::write(&conf, nginx_conf(dir, name))?;
        Ok(conf)
    };
    let veth = Veth::new();
    let _server = serving_veth(&veth, &["/usr/sbin/nginx", "-c", &conf("veth")?], PORT)?;
    let site = Site::new();
    let lab = serving(&site, &["/usr/sbin/nginx", "-c", &conf("lab")?], PORT)?;
    let client = |url| ["wrk", "-t", "1", "-c", "64", "-d", SECONDS, url];
    let rate = |text: String| {
        ensure!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
        let line = text.lines().find_map(|l| l.strip_prefix("Requests/sec:")).with_context(|| format!("no rate: {text}"))?;
        parse(line)
    };
    let url = format!("http://{}/file", ADDR[1]);
    let reference = || rate(run(&mut veth.command(0, client(&url)[0], &client(&url)[1..]))?);
    let (reference, value) = in_turn(reference, || rate(lab.ok(lab.program("a", &client("http://10.0.0.2/file")))))?;
    Ok(vec![Figure::ratio("wrk_nginx", value, "requests/s", reference, Target::AtLeast(0.25))])
}

fn nginx_conf(dir: impl std::fmt::Display, name: &str) -> String {
    format!(
        "daemon off; master_process off; pid {dir}/{name}.pid; error_log {dir}/{name}.log;\nevents {{ worker_connections 256; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 100000000; client_body_temp_path {dir}/{name}1; proxy_temp_path {dir}/{name}2; \
         fastcgi_temp_path {dir}/{name}3; uwsgi_temp_path {dir}/{name}4; scgi_temp_path {dir}/{name}5; \
         server {{ listen 80; root {dir}; }} }}\n"
    )
}

/// Reads and writes of files, 64 KiB each, beside the same without a supervisor.
pub fn guest_file_io() -> Result<Vec<Figure>> {
    let files = Files::new()?;
    let calls = files.calls()?;
    let path = files.path("data")?;
    let site = Site::new();
    let lab = site.deploy("name: alone\nnodes: {a: {}}\n");
    let args = ["file", &path, "20000"];
    let native = || parse(&run(Command::new(&calls).args(args))?);
    let value = || parse(&lab.ok(lab.program("a", &[&[calls.as_str()], &args[..]].concat())));
    let (reference, value) = in_turn(native, value)?;
    floor(&calls, &["passed", &path, "20000"], "octets/s", "a supervisor that does nothing but let calls go")?;
    Ok(vec![Figure::ratio("guest_file_io", value, "octets/s", reference, Target::AtLeast(0.75))])
}

/// An `epoll_wait` that finds one active connection among many idle ones, beside one among few.
pub fn epoll_idle_10k() -> Result<Vec<Figure>> {
    let files = Files::new()?;
    let calls = files.calls()?;
    let site = Site::new();
    let lab = site.deploy(
        "name: flock\nnodes: {a: {}, b: {}}\nlinks:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n",
    );
    let mut port = 7000;
    let mut of = |connections: u32| {
        port += 1;
        idle(&lab, Path::new(&calls), port, connections)
    };
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        few.push(of(FEW)?);
        many.push(of(MANY)?);
    }
    eprintln!("  {FEW} connections {few:.0?} ns, {MANY} {many:.0?} ns");
    let (few, many) = (ringlab_tests::median(&few), ringlab_tests::median(&many));
    Ok(vec![Figure::ratio("epoll_idle_10k", many, "ns", few, Target::AtMost(1.2))])
}

fn idle(lab: &Lab<'_>, calls: &Path, port: u16, connections: u32) -> Result<f64> {
    let calls = calls.to_str().context("path in UTF-8")?;
    let (port, connections) = (port.to_string(), connections.to_string());
    let mut server = Server(lab.spawn(lab.program("b", &[calls, "idle", &port, &connections])));
    let mut lines = BufReader::new(server.0.stdout.take().context("server output")?).lines();
    let ready = lines.next().context("the server says that it listens")??;
    ensure!(ready == "ready", "{ready}");
    run(&mut lab.program("a", &[calls, "flock", "10.0.0.2", &port, &connections]))?;
    let result = lines.next().context("the server prints a result")??;
    ensure!(server.0.wait()?.success(), "the server fails");
    parse(&result)
}
