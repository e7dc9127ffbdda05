//! What `--format json` prints. Stable: fields are added, never renamed or
//! removed; `docs/json.md` describes them for users. Times are nanoseconds,
//! counters are lists of `{"name", "value"}` in a fixed order.

use ringlab_proto::agent::{InspectReply, LabSummary, LinkInfo, NodeInfo, NodeStat, Outcome};
use ringlab_proto::{host, nic};
use serde::Serialize;
use serde_json::{Value, json};

/// `deploy`, `destroy`.
#[derive(Debug, Serialize)]
pub struct Done {
    /// Whether it was done; if not, it was undone.
    pub ok: bool,
    /// Why not.
    pub error: String,
    /// labctl's exit code.
    pub exit_code: i32,
    /// "+ node web", "~ link a:eth0 b:eth0 delay 0 -> 10ms", "- node old".
    pub changes: Vec<String>,
    /// How long it took.
    pub elapsed_ns: u64,
}

impl From<Outcome> for Done {
    fn from(o: Outcome) -> Self {
        Self { ok: o.ok, error: o.error, exit_code: o.exit_code, changes: o.changes, elapsed_ns: o.elapsed_ns }
    }
}

/// `list`.
pub fn list(labs: &[LabSummary]) -> Value {
    let lab = |lab: &LabSummary| {
        json!({
            "name": lab.name, "path": lab.path, "nodes": lab.nodes, "links": lab.links, "nodes_running": lab.nodes_running,
            "up_since_unix_ns": lab.up_since_unix_ns, "owner": lab.owner,
        })
    };
    json!({ "labs": labs.iter().map(lab).collect::<Vec<_>>() })
}

/// `inspect`.
pub fn inspect(lab: &InspectReply) -> Value {
    json!({
        "name": lab.name, "path": lab.path, "run_dir": lab.run_dir, "seed": lab.seed,
        "nodes": lab.nodes.iter().map(|n| node(n, &lab.run_dir)).collect::<Vec<_>>(),
        "links": lab.links.iter().map(link).collect::<Vec<_>>(),
    })
}

fn node(node: &NodeInfo, run_dir: &str) -> Value {
    let interface = |i: &ringlab_proto::agent::InterfaceInfo| json!({ "name": i.name, "mac": i.mac, "ipv4": i.ipv4, "mtu": i.mtu, "up": i.up, "carrier": i.carrier });
    let own = format!("{run_dir}/netns/{}", node.name);
    let netns = (node.kind == "linux" && std::path::Path::new(&own).exists()).then_some(own);
    json!({
        "name": node.name, "kind": node.kind, "state": node.state, "nicd_pid": node.nicd_pid, "hostd_pid": node.hostd_pid,
        "cpu": node.cpu, "restarts": node.restarts, "netns": netns,
        "interfaces": node.interfaces.iter().map(interface).collect::<Vec<_>>(),
    })
}

/// A link: `inspect`, `link`.
pub fn link(link: &LinkInfo) -> Value {
    let impairment = |i: Option<nic::Impairment>| {
        let i = i.unwrap_or_default();
        json!({ "delay_ns": i.delay_ns, "rate_bps": i.rate_bps, "loss": i.loss })
    };
    json!({
        "a": link.a, "b": link.b, "medium": link.medium, "up": link.up,
        "forward": impairment(link.forward), "backward": impairment(link.backward),
    })
}

/// `stat`.
pub fn stat(nodes: &[NodeStat]) -> Value {
    let node = |n: &NodeStat| json!({ "node": n.node, "host": n.host.as_ref().map(host_stats), "nic": n.nic.as_ref().map(nic_stats) });
    json!({ "nodes": nodes.iter().map(node).collect::<Vec<_>>() })
}

fn host_counters(counters: &[host::Counter]) -> Value {
    counters.iter().map(|c| json!({ "name": c.name, "value": c.value })).collect()
}

fn host_stats(stats: &host::HostStats) -> Value {
    let cpu = |c: &host::CpuStats| {
        json!({
            "cpu": c.cpu, "hardirqs": c.hardirqs, "net_rx_softirqs": c.net_rx_softirqs, "net_tx_softirqs": c.net_tx_softirqs,
            "timer_softirqs": c.timer_softirqs, "napi_polls": c.napi_polls, "napi_packets": c.napi_packets,
            "time_squeeze": c.time_squeeze, "ksoftirqd_runs": c.ksoftirqd_runs, "context_switches": c.context_switches,
            "syscalls": c.syscalls, "mode_switches": c.mode_switches, "backlog_dropped": c.backlog_dropped, "wakeups": c.wakeups,
        })
    };
    let vector = |v: &host::Vector| json!({ "name": v.name, "cpu": v.cpu, "counts": v.counts });
    let interface = |i: &host::InterfaceStats| {
        json!({
            "name": i.name, "ifindex": i.ifindex, "up": i.up, "carrier": i.carrier, "operstate": i.operstate, "mac": i.mac, "ipv4": i.ipv4, "mtu": i.mtu,
            "counters": host_counters(&i.counters),
        })
    };
    let task = |t: &host::TaskInfo| {
        json!({
            "pid": t.pid, "comm": t.comm, "state": t.state, "wchan": t.wchan,
            "voluntary_switches": t.voluntary_switches, "syscalls": t.syscalls,
        })
    };
    let socket = |s: &host::SocketInfo| {
        json!({
            "proto": s.proto, "state": s.state, "local": s.local, "peer": s.peer,
            "recv_q": s.recv_q, "send_q": s.send_q, "info": s.info,
        })
    };
    let neighbour = |n: &host::NeighbourInfo| json!({ "ipv4": n.ipv4, "dev": n.dev, "mac": n.mac, "state": n.state });
    let route = |r: &host::Route| {
        let flags = if r.linkdown { vec!["linkdown"] } else { Vec::new() };
        json!({ "prefix": r.prefix, "via": r.via, "dev": r.dev, "metric": r.metric, "flags": flags })
    };
    json!({
        "cpus": stats.cpus.iter().map(cpu).collect::<Vec<_>>(),
        "vectors": stats.vectors.iter().map(vector).collect::<Vec<_>>(),
        "interfaces": stats.interfaces.iter().map(interface).collect::<Vec<_>>(),
        "mib": host_counters(&stats.mib), "copies": host_counters(&stats.copies), "drops": host_counters(&stats.drops),
        "tasks": stats.tasks.iter().map(task).collect::<Vec<_>>(),
        "sockets": stats.sockets.iter().map(socket).collect::<Vec<_>>(),
        "neighbours": stats.neighbours.iter().map(neighbour).collect::<Vec<_>>(),
        "routes": stats.routes.iter().map(route).collect::<Vec<_>>(),
        "uptime_ns": stats.uptime_ns,
    })
}

fn nic_stats(stats: &nic::NicStats) -> Value {
    let port = |p: &nic::PortStats| {
        let counters = p.counters.iter().map(|c| json!({ "name": c.name, "value": c.value })).collect::<Vec<_>>();
        json!({ "name": p.name, "link_up": p.link_up, "counters": counters })
    };
    let mac = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
    let entry = |e: &nic::FdbEntry| json!({ "mac": mac(&e.mac), "port": e.port, "age_s": e.age_s });
    json!({ "ports": stats.ports.iter().map(port).collect::<Vec<_>>(), "fdb": stats.fdb.iter().map(entry).collect::<Vec<_>>() })
}

/// One line of `trace`.
pub fn trace_event(e: &host::TraceEvent) -> Value {
    json!({ "time_ns": e.time_ns, "cpu": e.cpu, "point": e.point, "step": e.step, "skb": e.skb, "detail": e.detail })
}
