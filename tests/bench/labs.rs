//! The figures themselves.

use crate::figures::{Figure, Target};
use crate::native::DATAGRAM;
use crate::programs;
use crate::reference::{self, SECONDS};
use anyhow::{Context, Result};
use ringlab_tests::lab::{Lab, Site};
use ringlab_tests::veth::Veth;
use ringlab_tests::{bin_dir, median, percentile};
use serde_json::Value;
use std::process::Command;
use std::time::Instant;

/// Repetitions of each measurement.
const REPETITIONS: usize = 5;

/// Measures one or several figures.
pub type Measure = fn() -> Result<Vec<Figure>>;

/// All figures, in the order of the table.
pub const ALL: &[(&str, Measure)] = &[
    ("ring_64b", ring_64b),
    ("tcp_host_host", tcp_host_host),
    ("tcp_linux_host", tcp_linux_host),
    ("udp_64b_host_host", udp_64b_host_host),
    ("ping_rtt", ping_rtt),
    ("delay_10ms", delay_10ms),
    ("pss_idle_host", pss_idle_host),
    ("deploy_50", deploy_50),
    ("notify_null", programs::notify_null),
    ("iperf3_host_host", programs::iperf3_host_host),
    ("redis_get", programs::redis_get),
    ("wrk_nginx", programs::wrk_nginx),
    ("guest_file_io", programs::guest_file_io),
    ("epoll_idle_10k", programs::epoll_idle_10k),
];

const TWO_HOSTS: &str = "name: two\nnodes:\n  a: {}\n  b:\n    run:\n      - {builtin: stream, args: [-s], ready: {tcp: 5201}}\nlinks:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n";

fn ring_64b() -> Result<Vec<Figure>> {
    let path = bin_dir().join("examples/ring_bench");
    let out = Command::new(&path).output().with_context(|| path.display().to_string())?;
    anyhow::ensure!(out.status.success(), "ring_bench: {}", String::from_utf8_lossy(&out.stderr));
    let json: Value = serde_json::from_slice(&out.stdout)?;
    let get = |key: &str| json[key].as_f64().with_context(|| format!("ring_bench reports {key}"));
    Ok(vec![Figure::ratio("ring_64b", get("virtqueue")?, "frames/s", get("bare")?, Target::AtLeast(0.5))])
}

/// Measures reference and figure in turn; the medians.
pub fn in_turn(mut reference: impl FnMut() -> Result<f64>, mut value: impl FnMut() -> Result<f64>) -> Result<(f64, f64)> {
    let (mut references, mut values) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        references.push(reference()?);
        values.push(value()?);
    }
    eprintln!("  reference {references:.0?}\n  value     {values:.0?}");
    Ok((median(&references), median(&values)))
}

/// A number in a JSON object.
pub fn number(json: &Value, key: &str) -> Result<f64> {
    json[key].as_f64().with_context(|| format!("no `{key}` in {json}"))
}

fn tcp_host_host() -> Result<Vec<Figure>> {
    let veth = Veth::new();
    let site = Site::new();
    let lab = site.deploy(TWO_HOSTS);
    let value = || number(&lab.json(lab.builtin("a", "stream", &["-c", "b", "-t", SECONDS, "--json"])), "bits_per_second");
    let (reference, value) = in_turn(|| reference::veth_tcp(&veth), value)?;
    Ok(vec![Figure::ratio("tcp_host_host", value, "bit/s", reference, Target::AtLeast(0.5))])
}

fn tcp_linux_host() -> Result<Vec<Figure>> {
    let veth = Veth::new();
    let site = Site::new();
    let lab = site.deploy(&TWO_HOSTS.replace("a: {}", "a: {kind: linux}"));
    let own = std::env::current_exe()?;
    let own = own.to_str().context("path in UTF-8")?.to_string();
    let value = || {
        let out = lab.ok(lab.program("a", &[&own, "native", "tcp-send", "10.0.0.2:5201", SECONDS]));
        Ok(out.trim().parse::<f64>()?)
    };
    let (reference, value) = in_turn(|| reference::veth_tcp(&veth), value)?;
    Ok(vec![Figure::ratio("tcp_linux_host", value, "bit/s", reference, Target::AtLeast(0.4))])
}

fn udp_64b_host_host() -> Result<Vec<Figure>> {
    let veth = Veth::new();
    let site = Site::new();
    let lab = site.deploy(TWO_HOSTS);
    let len = DATAGRAM.to_string();
    let value = || {
        let json = lab.json(lab.builtin("a", "stream", &["-c", "b", "-u", "-l", &len, "-t", SECONDS, "--json"]));
        Ok(number(&json, "datagrams_received")? / number(&json, "seconds")?)
    };
    let (reference, value) = in_turn(|| reference::veth_udp(&veth), value)?;
    Ok(vec![Figure::ratio("udp_64b_host_host", value, "datagrams/s", reference, Target::AtLeast(1.0))])
}

/// Round trips of a lab's `ping`, microseconds.
fn round_trips(lab: &Lab<'_>, count: u32, interval: &str) -> Result<Vec<f64>> {
    let json = lab.json(lab.builtin("a", "ping", &["-c", &count.to_string(), "-i", interval, "--json", "b"]));
    let rtts = json["rtt_ns"].as_array().with_context(|| format!("no `rtt_ns` in {json}"))?;
    anyhow::ensure!(rtts.len() == count as usize, "{} of {count} echoes came back", rtts.len());
    Ok(rtts.iter().filter_map(Value::as_f64).map(|ns| ns / 1000.0).collect())
}

fn ping_rtt() -> Result<Vec<Figure>> {
    let veth = Veth::new();
    let site = Site::new();
    let lab = site.deploy(TWO_HOSTS);
    round_trips(&lab, 10, "0.005")?; // resolves the neighbour
    let value = || Ok(median(&round_trips(&lab, 200, "0.005")?));
    let (reference, value) = in_turn(|| reference::veth_ping(&veth, 200), value)?;
    programs::machine(&["hops", "200"], "ns", "six bare hand-overs between four processes that do nothing else")?;
    Ok(vec![Figure::ratio("ping_rtt", value, "µs", reference, Target::AtMost(5.0))])
}

fn delay_10ms() -> Result<Vec<Figure>> {
    let site = Site::new();
    let lab = site.deploy(&format!("{TWO_HOSTS}    delay: 10ms\n"));
    round_trips(&lab, 3, "0.05")?;
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        let rtts: Vec<f64> = round_trips(&lab, 100, "0.03")?.iter().map(|us| us - 20_000.0).collect();
        medians.push(median(&rtts));
        tails.push(percentile(&rtts, 0.99));
    }
    eprintln!("  beyond 20 ms: medians {medians:.0?} µs, 99th percentiles {tails:.0?} µs");
    let (value, tail) = (20_000.0 + median(&medians), 20_000.0 + median(&tails));
    programs::machine(&["sleeps", "100"], "ns", "sleeps of 10 ms are too long by, 99th percentile")?;
    let figure = |name: &str, value: f64, limit: f64| Figure {
        name: name.into(),
        value,
        unit: "µs".into(),
        reference: Some(20_000.0),
        ratio: Some(value / 20_000.0),
        target: format!("20 ms ± {limit} µs"),
        holds: (value - 20_000.0).abs() <= limit,
    };
    Ok(vec![figure("delay_10ms", value, 100.0), figure("delay_10ms_p99", tail, 500.0)])
}

fn pss_idle_host() -> Result<Vec<Figure>> {
    let site = Site::new();
    let lab = site.deploy("name: idle\nnodes: {a: {}, b: {}}\nlinks:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let mut total = 0.0;
    for daemon in ["nicd", "hostd"] {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", lab.pid("a", daemon)))?;
        let kib = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).context("a Pss line")?;
        total += kib.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0;
    }
    Ok(vec![Figure::at_most("pss_idle_host", total, "MiB", 8.0)])
}

/// Fifty hosts on one switch.
pub fn fifty() -> String {
    let mut yaml = String::from("name: fifty\nnodes:\n  sw: {kind: switch}\n");
    for i in 0..50 {
        yaml.push_str(&format!("  h{i}: {{}}\n"));
    }
    yaml.push_str("links:\n");
    for i in 0..50 {
        yaml.push_str(&format!("  - endpoints: [\"h{i}:eth0\", \"sw:p{i}\"]\n"));
    }
    yaml
}

fn deploy_50() -> Result<Vec<Figure>> {
    let (mut deploys, mut destroys) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        let site = Site::new();
        let file = site.file("fifty.yaml", &fifty());
        let started = Instant::now();
        site.ok(&["deploy", &file]);
        deploys.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        site.ok(&["destroy", "fifty"]);
        destroys.push(started.elapsed().as_secs_f64());
    }
    eprintln!("  deploy {deploys:.2?}, destroy {destroys:.2?}");
    Ok(vec![Figure::at_most("deploy_50", median(&deploys), "s", 3.0), Figure::at_most("destroy_50", median(&destroys), "s", 1.0)])
}
