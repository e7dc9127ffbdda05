//! What the kernel counts, as the service sends it.

use crate::host::Shared;
use ringlab_counters::{Counter as CounterName, Counters};
use ringlab_kernel::cpu::sched::TaskState;
use ringlab_kernel::stat::Stats;
use ringlab_kernel::tcp::State;
use ringlab_proto::host::{Counter, CpuStats, HostStats, InterfaceStats, NeighbourInfo, Route, SocketInfo, TaskInfo, Vector};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Everything that the host has counted.
pub fn collect(shared: &Shared) -> HostStats {
    let kernel = shared.kernel();
    let stats = kernel.stats();
    HostStats {
        cpus: cpus(&stats),
        vectors: stats.vectors.iter().map(|v| Vector { name: v.name.clone(), cpu: u32::from(v.cpu), counts: v.counts.clone() }).collect(),
        interfaces: interfaces(&stats),
        mib: counters(&stats.mib),
        copies: counters(&stats.copies),
        drops: counters(&stats.drops).into_iter().filter(|c| c.value > 0).collect(),
        tasks: kernel.tasks_info().iter().map(task).collect(),
        sockets: kernel.sockets_info().iter().map(socket).collect(),
        neighbours: stats
            .neighbours
            .iter()
            .map(|n| NeighbourInfo {
                ipv4: n.addr.to_string(),
                dev: n.dev.clone(),
                mac: n.mac.map_or(String::new(), |m| m.to_string()),
                state: n.state.to_owned(),
            })
            .collect(),
        routes: stats
            .routes
            .iter()
            .map(|r| Route {
                prefix: r.prefix.clone(),
                via: r.via.as_ref().map_or(String::new(), Ipv4Addr::to_string),
                dev: r.dev.clone(),
                metric: r.metric,
                linkdown: r.linkdown,
            })
            .collect(),
        uptime_ns: shared.now().0,
    }
}

/// TCP ports on which somebody listens.
pub fn listening_ports(shared: &Shared) -> BTreeSet<u16> {
    let sockets = shared.kernel().sockets_info();
    sockets.iter().filter(|s| s.netid == "tcp" && s.state == "LISTEN").map(|s| s.local.port()).collect()
}

fn task(t: &ringlab_kernel::cpu::sched::TaskInfo) -> TaskInfo {
    let state = match t.state {
        TaskState::Running | TaskState::Runnable => "R",
        TaskState::Interruptible => "S",
    };
    TaskInfo {
        pid: t.id.0,
        comm: t.comm.clone(),
        state: state.to_owned(),
        wchan: t.wchan.to_owned(),
        voluntary_switches: t.nvcsw,
        syscalls: t.syscalls,
    }
}

fn socket(s: &ringlab_kernel::vfs::SocketInfo) -> SocketInfo {
    let info = s.tcp.as_ref().filter(|t| t.state == State::Established).map_or(String::new(), |t| {
        let ms = |us: u32| f64::from(us) / 1000.0;
        format!(
            "cwnd:{} ssthresh:{} rtt:{} rto:{} mss:{} retrans:{}",
            t.cwnd,
            t.ssthresh,
            ms(t.srtt_us),
            ms(t.rto_us),
            t.mss,
            t.total_retrans
        )
    });
    SocketInfo {
        proto: s.netid.to_owned(),
        state: s.state.to_owned(),
        local: s.local.to_string(),
        peer: s.peer.to_string(),
        recv_q: s.recv_q.into(),
        send_q: s.send_q.into(),
        info,
    }
}

fn cpus(stats: &Stats) -> Vec<CpuStats> {
    let cpu = |(i, c): (usize, &ringlab_kernel::cpu::account::CpuStat)| CpuStats {
        cpu: i as u32,
        hardirqs: c.hardirqs,
        net_rx_softirqs: c.net_rx_softirqs,
        net_tx_softirqs: c.net_tx_softirqs,
        timer_softirqs: c.timer_softirqs,
        napi_polls: c.napi_polls,
        napi_packets: c.napi_packets,
        time_squeeze: c.time_squeeze,
        ksoftirqd_runs: c.ksoftirqd_runs,
        context_switches: c.context_switches,
        syscalls: c.syscalls,
        mode_switches: c.mode_switches,
        backlog_dropped: c.backlog_dropped,
        wakeups: c.wakeups,
    };
    stats.cpus.iter().enumerate().map(cpu).collect()
}

fn interfaces(stats: &Stats) -> Vec<InterfaceStats> {
    let interface = |i: &ringlab_kernel::stat::Interface| InterfaceStats {
        name: i.name.clone(),
        ifindex: i.index.0,
        up: i.up,
        carrier: i.carrier,
        operstate: i.operstate.to_owned(),
        mac: i.mac.to_string(),
        ipv4: i.ipv4.iter().map(|(addr, len)| format!("{addr}/{len}")).collect(),
        mtu: i.mtu,
        counters: counters(&i.counters),
    };
    stats.interfaces.iter().map(interface).collect()
}

fn counters<C: CounterName, const N: usize>(all: &Counters<C, N>) -> Vec<Counter> {
    all.iter().map(|(name, value)| Counter { name: name.to_owned(), value }).collect()
}
