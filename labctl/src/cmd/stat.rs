//! `labctl stat [-l LAB] [NODE]`

use crate::cli::Format;
use crate::client::connect_to_labs;
use crate::error::CliResult;
use crate::output::{duration, print, print_json, print_table, table};
use crate::{exit, json};
use ringlab_proto::agent::{NodeStat, StatRequest};
use ringlab_proto::host::{CpuStats, HostStats};
use ringlab_proto::nic::NicStats;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab; may be left out where one is up.
    #[arg(short, long)]
    pub lab: Option<String>,
    /// Node; without it one line for each.
    pub node: Option<String>,
    /// Also what is zero.
    #[arg(short, long)]
    pub all: bool,
}

/// Shows counters.
pub async fn run(args: Args, format: Format) -> CliResult {
    let mut client = connect_to_labs(args.lab.as_deref()).await?;
    let node = args.node.clone().unwrap_or_default();
    let reply = client.stat(StatRequest { lab: args.lab.unwrap_or_default(), node }).await?.into_inner();
    if format == Format::Json {
        print_json(&json::stat(&reply.nodes));
    } else if args.node.is_some() {
        reply.nodes.iter().for_each(|node| show(node, args.all));
    } else {
        summary(&reply.nodes);
    }
    Ok(exit::OK)
}

/// One line a node.
fn summary(nodes: &[NodeStat]) {
    let columns = [
        "node",
        "hardirqs",
        "rx softirqs",
        "tx softirqs",
        "napi polls",
        "ctx switches",
        "syscalls",
        "copies",
        "drops",
        "rx frames",
        "tx frames",
        "wire lost",
    ];
    let mut rows = table(&columns);
    for node in nodes {
        let cpus = |of: fn(&CpuStats) -> u64| node.host.as_ref().map(|host| host.cpus.iter().map(of).sum::<u64>());
        let host = |of: fn(&HostStats) -> u64| node.host.as_ref().map(of);
        let nic = |name: &str| node.nic.as_ref().map(|nic| port_sum(nic, name));
        let values = [
            cpus(|c| c.hardirqs),
            cpus(|c| c.net_rx_softirqs),
            cpus(|c| c.net_tx_softirqs),
            cpus(|c| c.napi_polls),
            cpus(|c| c.context_switches),
            cpus(|c| c.syscalls),
            host(copies),
            host(|h| h.drops.iter().map(|c| c.value).sum()),
            nic("rx_packets"),
            nic("tx_packets"),
            nic("wire_lost"),
        ];
        let cells = values.map(|value| value.map_or_else(|| "-".to_owned(), |value| value.to_string()));
        rows.add_row(std::iter::once(node.node.clone()).chain(cells));
    }
    print_table(&rows);
}

/// Copies of frame bytes, not their octets.
fn copies(host: &HostStats) -> u64 {
    host.copies.iter().filter(|c| !c.name.ends_with("_bytes")).map(|c| c.value).sum()
}

fn port_sum(nic: &NicStats, name: &str) -> u64 {
    nic.ports.iter().flat_map(|port| &port.counters).filter(|c| c.name == name).map(|c| c.value).sum()
}

/// Everything about one node.
fn show(node: &NodeStat, all: bool) {
    let mut title = format!("node {}", node.node);
    if let Some(host) = &node.host {
        title.push_str(&format!("   up {}", duration(host.uptime_ns)));
    }
    print(&format!("{title}\n"));
    if let Some(host) = &node.host {
        show_cpus(host);
        show_vectors(host);
        let counters = |counters: &[ringlab_proto::host::Counter]| counters.iter().map(|c| (c.name.clone(), c.value)).collect::<Vec<_>>();
        section("copies", counters(&host.copies), true);
        section("drops", counters(&host.drops), all);
        section("snmp, netstat", counters(&host.mib), all);
        for interface in &host.interfaces {
            let state = no_carrier(interface.carrier);
            section(&format!("device {}{state}", interface.name), counters(&interface.counters), all);
        }
        show_sockets(host);
        show_tasks(host);
    }
    if let Some(nic) = &node.nic {
        for port in &nic.ports {
            let state = no_carrier(port.link_up);
            section(&format!("nic {}{state}", port.name), port.counters.iter().map(|c| (c.name.clone(), c.value)).collect(), all);
        }
        if !nic.fdb.is_empty() {
            print("\n");
            let mut rows = table(&["mac", "port", "age"]);
            for entry in &nic.fdb {
                let mac = entry.mac.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
                rows.add_row([mac, entry.port.clone(), format!("{} s", entry.age_s)]);
            }
            print_table(&rows);
        }
    }
}

/// For the title of an interface or port.
fn no_carrier(carrier: bool) -> &'static str {
    if carrier { "" } else { " (no carrier)" }
}

fn section(title: &str, counters: Vec<(String, u64)>, all: bool) {
    let shown = counters.into_iter().filter(|(_, value)| all || *value != 0).collect::<Vec<_>>();
    if shown.is_empty() {
        return;
    }
    let width = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    print(&format!("\n{title}\n"));
    print(&shown.iter().map(|(name, value)| format!("  {name:width$}  {value}\n")).collect::<String>());
}

/// A row a counter, a column a CPU, as in `/proc/softirqs`.
fn show_cpus(host: &HostStats) {
    type Row = (&'static str, fn(&CpuStats) -> u64);
    const ROWS: [Row; 13] = [
        ("hardirqs", |c| c.hardirqs),
        ("NET_RX softirqs", |c| c.net_rx_softirqs),
        ("NET_TX softirqs", |c| c.net_tx_softirqs),
        ("TIMER softirqs", |c| c.timer_softirqs),
        ("NAPI polls", |c| c.napi_polls),
        ("NAPI packets", |c| c.napi_packets),
        ("time squeezes", |c| c.time_squeeze),
        ("ksoftirqd runs", |c| c.ksoftirqd_runs),
        ("context switches", |c| c.context_switches),
        ("system calls", |c| c.syscalls),
        ("mode switches", |c| c.mode_switches),
        ("wake-ups", |c| c.wakeups),
        ("backlog drops", |c| c.backlog_dropped),
    ];
    let header = std::iter::once(String::new()).chain(host.cpus.iter().map(|cpu| format!("cpu{}", cpu.cpu))).collect::<Vec<_>>();
    let mut rows = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for (name, of) in ROWS {
        rows.add_row(std::iter::once(name.to_owned()).chain(host.cpus.iter().map(|cpu| of(cpu).to_string())));
    }
    print("\n");
    print_table(&rows);
}

fn show_vectors(host: &HostStats) {
    if host.vectors.is_empty() {
        return;
    }
    let header = ["vector", "affinity"].map(str::to_owned).into_iter().chain(host.cpus.iter().map(|cpu| format!("cpu{}", cpu.cpu)));
    let header = header.collect::<Vec<_>>();
    let mut rows = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for vector in &host.vectors {
        let cells = [vector.name.clone(), format!("cpu{}", vector.cpu)].into_iter().chain(vector.counts.iter().map(u64::to_string));
        rows.add_row(cells);
    }
    print("\n");
    print_table(&rows);
}

fn show_sockets(host: &HostStats) {
    if host.sockets.is_empty() {
        return;
    }
    let mut rows = table(&["proto", "recv-q", "send-q", "local", "peer", "state", "info"]);
    for s in &host.sockets {
        rows.add_row([&s.proto, &s.recv_q.to_string(), &s.send_q.to_string(), &s.local, &s.peer, &s.state, &s.info]);
    }
    print("\n");
    print_table(&rows);
}

fn show_tasks(host: &HostStats) {
    if host.tasks.is_empty() {
        return;
    }
    let mut rows = table(&["pid", "comm", "state", "wchan", "switches", "syscalls"]);
    for t in &host.tasks {
        let numbers = [t.voluntary_switches.to_string(), t.syscalls.to_string()];
        rows.add_row([&t.pid.to_string(), &t.comm, &t.state, &t.wchan, &numbers[0], &numbers[1]]);
    }
    print("\n");
    print_table(&rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlab_proto::host::Counter;

    #[test]
    fn octets_are_not_counted_as_copies() {
        let counter = |name: &str, value| Counter { name: name.into(), value };
        let copies = vec![counter("copy.user_to_skb", 2), counter("copy.user_to_skb_bytes", 9000), counter("copy.skb_to_user", 3)];
        assert_eq!(super::copies(&HostStats { copies, ..HostStats::default() }), 5);
    }
}
