//! The daemon as the agent sees it: gRPC on one side, a device on the other.

mod common;

use common::hub::Order;
use common::{Daemon, Dir, Pair, collect, config};
use ringlab_proto::host::{
    ExecInput, ExecStart, ExitStatus, HostConfig, HostStats, Interface, Program, ProgramsRequest, Route, ShutdownRequest, StatsRequest,
    TraceRequest, exec_input,
};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use tonic::Code;

const OK: ExitStatus = ExitStatus { code: 0, signal: 0 };

fn carrier(stats: &HostStats) -> bool {
    stats.interfaces.iter().find(|i| i.name == "eth0").expect("eth0").carrier
}

async fn ping(pair: &mut Pair, count: &str) -> (ExitStatus, String) {
    let (exit, stdout, _) = pair.a.exec(&["ping", "-c", count, "-i", "0.01", "-W", "1", "b"]).await;
    (exit, stdout)
}

async fn until_carrier(daemon: &mut Daemon, on: bool) {
    let began = Instant::now();
    while carrier(&daemon.stats().await) != on {
        assert!(began.elapsed() < Duration::from_secs(5), "the carrier stays {}", !on);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn hosts_ping_each_other_and_count_what_it_took() {
    let mut pair = Pair::start("ping", |_| {}).await;
    let (exit, stdout) = ping(&mut pair, "20").await;
    assert_eq!(exit, OK, "{stdout}");
    assert!(stdout.contains("20 packets transmitted, 20 received"), "{stdout}");
    let stats = pair.b.stats().await;
    let cpu = &stats.cpus[0];
    assert!(cpu.hardirqs >= 20 && cpu.net_rx_softirqs >= 20 && cpu.napi_packets >= 20, "{cpu:?}");
    let echos = stats.mib.iter().find(|c| c.name == "Icmp.InEchos").expect("counted").value;
    assert_eq!(echos, 20);
    assert!(stats.neighbours.iter().any(|n| n.ipv4 == "10.0.0.1" && n.mac == "02:00:00:00:00:01"), "{:?}", stats.neighbours);
}

#[tokio::test]
async fn running_host_changes_in_place_or_refuses() {
    let mut pair = Pair::start("change", |_| {}).await;
    let mut next = config(&pair.dir.0, 1);
    pair.a.client.configure(next.clone()).await.expect("nothing to change");
    next.routes = vec![Route { prefix: "10.9.0.0/16".into(), via: "10.0.0.2".into(), ..Default::default() }];
    next.sysctls.insert("net.ipv4.ip_default_ttl".into(), "33".into());
    next.hosts.push(ringlab_proto::host::HostEntry { name: "other".into(), ipv4: "10.0.0.2".into() });
    pair.a.client.configure(next.clone()).await.expect("in place");
    assert!(pair.a.stats().await.routes.iter().any(|r| r.prefix == "10.9.0.0/16" && r.via == "10.0.0.2"));
    let (exit, stdout, _) = pair.a.exec(&["ping", "-c", "1", "other"]).await;
    assert_eq!(exit, OK, "{stdout}");
    next.routes.clear();
    pair.a.client.configure(next.clone()).await.expect("in place");
    assert!(pair.a.stats().await.routes.iter().all(|r| r.prefix != "10.9.0.0/16"));
    let refuse = |spoil: fn(&mut HostConfig)| {
        let mut bad = next.clone();
        spoil(&mut bad);
        bad
    };
    let cases: [(HostConfig, Code); 5] = [
        (refuse(|c| c.cpus = 2), Code::FailedPrecondition),
        (refuse(|c| c.interfaces[0].mtu = 1400), Code::FailedPrecondition),
        (
            refuse(|c| c.routes = vec![Route { prefix: "10.9.0.0/16".into(), via: "192.168.0.1".into(), ..Default::default() }]),
            Code::InvalidArgument,
        ),
        (refuse(|c| drop(c.sysctls.insert("net.no.such".into(), "1".into()))), Code::InvalidArgument),
        (refuse(|c| c.interfaces[0].mac = vec![0; 5]), Code::InvalidArgument),
    ];
    for (bad, code) in cases {
        let status = pair.a.client.configure(bad).await.expect_err("refused");
        assert_eq!(status.code(), code, "{status}");
    }
    let (exit, stdout) = ping(&mut pair, "2").await;
    assert_eq!(exit, OK, "{stdout}");
}

#[tokio::test]
async fn nonsense_is_refused_with_a_status_and_the_daemon_goes_on() {
    let dir = Dir::new("nonsense");
    let mut d = Daemon::start(&dir.0, "a").await;
    let code = |r: Result<_, tonic::Status>| r.map(|_: ()| ()).expect_err("refused").code();
    assert_eq!(code(d.client.stats(StatsRequest {}).await.map(drop)), Code::FailedPrecondition);
    for spoil in [
        (|c: &mut HostConfig| c.cpus = u32::MAX) as fn(&mut HostConfig),
        |c| c.interfaces[0].queue_pairs = 9,
        |c| c.interfaces[0].mtu = 70_000,
        |c| c.interfaces[0].ipv4 = vec!["10.0.0.1/99".into()],
        |c| c.interfaces = vec![Interface::default(); 1000],
        |c| c.run = vec![Program { ready_tcp: 70_000, ..Default::default() }],
        |c| c.run = vec![Program { program: Some(ExecStart::default()), ready_tcp: 80 }],
        |c| c.run = vec![Program { program: Some(ExecStart { builtin: "no-such".into(), ..Default::default() }), ready_tcp: 0 }],
    ] {
        let mut bad = config(&dir.0, 1);
        spoil(&mut bad);
        assert_eq!(code(d.client.configure(bad).await.map(drop)), Code::InvalidArgument);
    }
    assert_eq!(code(d.open(exec_input::Kind::StdinEof(true)).await.map(drop)), Code::InvalidArgument);
    // A host without interfaces is a host.
    d.client.configure(HostConfig { hostname: "a".into(), cpus: 1, ..Default::default() }).await.expect("configured");
    assert_eq!(
        code(d.open(exec_input::Kind::Start(ExecStart { builtin: "rm".into(), ..Default::default() })).await.map(drop)),
        Code::InvalidArgument
    );
    let points = TraceRequest { points: vec!["no_such_point".into()], limit: 0 };
    assert_eq!(code(d.client.trace(points).await.map(drop)), Code::InvalidArgument);
    let (exit, ..) = d.exec(&["ping", "-c", "1", "127.0.0.1"]).await;
    assert_eq!(exit, OK);
}

#[tokio::test]
async fn lost_device_takes_the_carrier_and_comes_back() {
    let mut pair = Pair::start("lost", |_| {}).await;
    assert_eq!(ping(&mut pair, "2").await.0, OK);
    for _ in 0..3 {
        pair.hub.order(0, Order::Leave);
        until_carrier(&mut pair.a, false).await;
        let (exit, stdout) = ping(&mut pair, "1").await;
        assert_eq!(exit.code, 1, "{stdout}");
        pair.hub.order(0, Order::Return);
        until_carrier(&mut pair.a, true).await;
        let (exit, stdout) = ping(&mut pair, "5").await;
        assert_eq!(exit, OK, "{stdout}");
        assert!(stdout.contains("5 received"), "{stdout}");
    }
}

#[tokio::test]
async fn carrier_follows_what_the_device_says_and_what_a_new_device_finds() {
    let mut pair = Pair::start("carrier", |_| {}).await;
    assert_eq!(ping(&mut pair, "2").await.0, OK);
    pair.hub.order(0, Order::Link(false));
    until_carrier(&mut pair.a, false).await;
    let stats = pair.a.stats().await;
    let eth0 = stats.interfaces.iter().find(|i| i.name == "eth0").expect("eth0");
    assert_eq!((eth0.operstate.as_str(), eth0.up), ("DOWN", true));
    assert!(stats.neighbours.is_empty() && stats.routes.iter().all(|r| r.linkdown), "{stats:?}");
    let (exit, stdout) = ping(&mut pair, "1").await;
    assert_eq!(exit.code, 1, "{stdout}");
    let drops = pair.a.stats().await.drops;
    assert!(drops.iter().any(|d| d.name == "QDISC_DROP" && d.value > 0), "{drops:?}");
    assert!(carrier(&pair.b.stats().await), "the other's device says nothing");
    // A device that is replaced meanwhile is found without a carrier, too.
    pair.hub.order(0, Order::Leave);
    pair.hub.order(0, Order::Return);
    pair.hub.order(0, Order::Link(true));
    until_carrier(&mut pair.a, true).await;
    let (exit, stdout) = ping(&mut pair, "3").await;
    assert_eq!(exit, OK, "{stdout}");
    assert!(stdout.contains("3 received"), "{stdout}");
}

#[tokio::test]
async fn device_that_breaks_the_rules_is_stopped_and_the_host_survives() {
    let mut pair = Pair::start("hostile", |_| {}).await;
    for order in [Order::Lie, Order::ForgeId, Order::Lie] {
        assert_eq!(ping(&mut pair, "2").await.0, OK);
        pair.hub.order(0, order);
        let (_, stdout) = ping(&mut pair, "20").await;
        assert!(!stdout.contains(" 0 received"), "it is back within the run: {stdout}");
        until_carrier(&mut pair.a, true).await;
    }
    assert_eq!(ping(&mut pair, "2").await.0, OK);
}

#[tokio::test]
async fn trace_follows_a_frame_and_stops_at_its_limit() {
    let mut pair = Pair::start("trace", |_| {}).await;
    let request = TraceRequest { points: vec!["R3".into(), "R4".into(), "icmp_rcv".into()], limit: 9 };
    let mut trace = pair.b.client.trace(request).await.expect("a stream").into_inner();
    let (exit, stdout) = ping(&mut pair, "10").await;
    assert_eq!(exit, OK, "{stdout}");
    let mut events = Vec::new();
    while let Some(batch) = trace.message().await.expect("a batch") {
        assert_eq!(batch.lost, 0);
        events.extend(batch.events);
    }
    assert_eq!(events.len(), 9);
    let steps: Vec<&str> = events.iter().map(|e| e.step.as_str()).collect();
    assert_eq!(steps[..2], ["R3", "R4"], "{events:?}");
    assert!(events.is_sorted_by_key(|e| e.time_ns), "{events:?}");
}

#[tokio::test]
async fn signals_and_departures_end_programs() {
    let mut pair = Pair::start("signal", |_| {}).await;
    let (input, mut output) = pair.a.start_program(&["ping", "-i", "0.01", "b"]).await;
    for _ in 0..4 {
        output.message().await.expect("output").expect("a line");
    }
    input.send(ExecInput { kind: Some(exec_input::Kind::Signal(libc::SIGINT)) }).await.expect("it listens");
    let (exit, stdout, _) = collect(output).await;
    assert_eq!(exit, OK);
    assert!(stdout.contains("ping statistics"), "{stdout}");
    let (input, output) = pair.a.start_program(&["sleep", "1000"]).await;
    input.send(ExecInput { kind: Some(exec_input::Kind::Signal(libc::SIGTERM)) }).await.expect("it listens");
    assert_eq!(collect(output).await.0, ExitStatus { code: 143, signal: 15 });
    let (input, output) = pair.a.start_program(&["sleep", "1000"]).await;
    let began = Instant::now();
    while !pair.a.stats().await.tasks.iter().any(|t| t.comm == "sleep") {
        assert!(began.elapsed() < Duration::from_secs(5), "it does not start");
    }
    drop((input, output));
    while pair.a.stats().await.tasks.iter().any(|t| t.comm == "sleep") {
        assert!(began.elapsed() < Duration::from_secs(5), "it outlives whoever started it");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn programs_of_the_configuration_run() {
    let sleep =
        Program { program: Some(ExecStart { builtin: "sleep".into(), argv: vec!["1000".into()], ..Default::default() }), ready_tcp: 0 };
    let mut pair = Pair::start("run", |c| c.run = vec![sleep]).await;
    let programs = pair.b.client.programs(ProgramsRequest {}).await.expect("asked").into_inner().programs;
    assert_eq!(programs.len(), 1);
    assert_eq!((programs[0].name.as_str(), programs[0].state.as_str(), programs[0].ready), ("sleep", "running", true));
}

#[tokio::test]
async fn daemon_ends_with_0_and_leaves_nothing() {
    let mut pair = Pair::start("end", |_| {}).await;
    let mode = std::fs::metadata(&pair.a.socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (_input, _output) = pair.a.start_program(&["ping", "b"]).await;
    let _trace = pair.a.client.trace(TraceRequest::default()).await.expect("a stream");
    assert_eq!(pair.a.terminate(), Some(0));
    assert!(!pair.a.socket.exists());
    pair.b.client.shutdown(ShutdownRequest {}).await.expect("answered");
    let status = pair.b.child.wait().expect("a child");
    assert_eq!(status.code(), Some(0));
    assert!(!pair.b.socket.exists());
}

#[tokio::test]
async fn host_without_its_device_is_not_configured() {
    let dir = Dir::new("no-device");
    let mut d = Daemon::start(&dir.0, "a").await;
    let status = d.client.configure(config(&dir.0, 1)).await.expect_err("nobody listens");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("eth0") && status.message().contains("vhost-1"), "{status}");
    let _hub = common::hub::Hub::start([dir.0.join("vhost-1"), dir.0.join("vhost-2")]);
    d.client.configure(config(&dir.0, 1)).await.expect("now there is one");
}
