//! References: the same work on the real kernel, two namespaces joined by veth.

use anyhow::{Context, Result};
use ringlab_tests::veth::{ADDR, Veth};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

/// Seconds of one throughput repetition.
pub const SECONDS: &str = "2";

/// iperf3, one TCP stream over veth: bits a second received.
pub fn veth_tcp(veth: &Veth) -> Result<f64> {
    let mut server = veth.command(1, "iperf3", &["-s", "-1", "--forceflush"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("server output")?).lines();
    for line in lines.by_ref() {
        if line?.contains("Server listening") {
            break;
        }
    }
    let out = veth.ok(0, "iperf3", &["-c", ADDR[1], "-t", SECONDS, "-J"]);
    server.wait()?;
    let json: Value = serde_json::from_slice(&out.stdout)?;
    json["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 reports a rate")
}

/// Datagrams of 64 octets a second delivered over veth.
pub fn veth_udp(veth: &Veth) -> Result<f64> {
    let own = std::env::current_exe()?;
    let own = own.to_str().context("path in UTF-8")?;
    let mut receiver = veth.command(1, own, &["native", "udp-recv", "0.0.0.0:5202"]).stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(receiver.stdout.take().context("receiver output")?);
    let mut line = String::new();
    out.read_line(&mut line)?;
    veth.ok(0, own, &["native", "udp-send", &format!("{}:5202", ADDR[1]), SECONDS]);
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    receiver.wait()?;
    Ok(rest.trim().parse()?)
}

/// Median round trip of `ping` over veth, microseconds.
pub fn veth_ping(veth: &Veth, count: u32) -> Result<f64> {
    let out = veth.ok(0, "ping", &["-c", &count.to_string(), "-i", "0.005", "-D", ADDR[1]]);
    let text = String::from_utf8(out.stdout)?;
    let times: Vec<f64> =
        text.lines().filter_map(|l| l.split_once("time=")?.1.split_once(' ')?.0.parse::<f64>().ok()).map(|ms| ms * 1000.0).collect();
    anyhow::ensure!(!times.is_empty(), "ping printed no times: {text}");
    Ok(ringlab_tests::median(&times))
}
