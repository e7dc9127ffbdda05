//! A front end that is not ours: DPDK's `testpmd` with its virtio-user driver, plugged into `nicd`s
//! that were started by hand. `tests/setup.sh` fetches it.

mod common;

use common::{ALL, Dir, Driver, MAC_A, MAC_B, Nicd, PATIENCE, Rings, tcp_frame, until};
use ringlab_ring::vnet::{F_NEEDS_CSUM, GSO_NONE, VnetHdr};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PROMPT: &str = "testpmd> ";
/// Made by `tests/setup.sh`.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/dpdk/testpmd");
/// Segments of its transmit queues, many to a frame.
const MULTI_SEGS: &str = "--tx-offloads=0x8000";

/// A running `testpmd`, killed when dropped.
struct Testpmd {
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Testpmd {
    /// Plugs one into `node`'s socket and waits until it takes commands.
    fn start(dir: &Dir, node: &str, mac: &str, queues: u16, options: &[&str]) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: run tests/setup.sh");
        let vdev = format!(
            "--vdev=net_virtio_user0,path={},packed_vq=1,mrg_rxbuf=1,mac={mac},queues={queues}",
            dir.path(&format!("{node}.sock")).display()
        );
        let count = format!("--rxq={queues}");
        // One thread for commands, one that polls, wherever there is a CPU for them.
        let cpus = format!("--lcores=0@({0}),1@({0})", cpus_allowed());
        let eal = ["--no-huge", "-m", "64", "--no-pci", "--no-shconf", "--no-telemetry", &cpus, &vdev, "--"];
        let app = ["-i", "--total-num-mbufs=4096", "--rxd=256", "--txd=256", &count, &count.replace("rx", "tx")];
        // A line at a time: what it says before a prompt is there with the prompt.
        let mut command = Command::new("stdbuf");
        command.arg("-oL").arg(PROGRAM).args(eal).args(app).args(options).env("RUNTIME_DIRECTORY", dir.path(""));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("testpmd starts");
        let mut stdout = child.stdout.take().expect("piped");
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Some(n) = stdout.read(&mut buffer).ok().filter(|&n| n > 0) {
                heard.lock().expect("nobody panics").push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        let stdin = child.stdin.take().expect("piped");
        let mut testpmd = Self { child, stdin, said, reader: Some(reader) };
        testpmd.wait_prompts(1);
        assert!(testpmd.said().contains("Port 0: "), "it started its port, else it says above why not");
        testpmd
    }

    fn said(&self) -> String {
        self.said.lock().expect("nobody panics").clone()
    }

    fn wait_prompts(&mut self, count: usize) {
        let start = Instant::now();
        while self.said().matches(PROMPT).count() < count {
            let ended = self.child.try_wait().expect("our child");
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "testpmd {ended:?} said\n{}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it answers to a command.
    fn command(&mut self, line: &str) -> String {
        let before = self.said();
        writeln!(self.stdin, "{line}").expect("testpmd reads");
        self.wait_prompts(before.matches(PROMPT).count() + 1);
        self.said().split_off(before.len())
    }

    /// Its extended statistics.
    fn xstats(&mut self) -> BTreeMap<String, u64> {
        let lines = self.command("show port xstats 0");
        lines.lines().filter_map(|l| l.trim().split_once(": ")).filter_map(|(k, v)| Some((k.into(), v.parse().ok()?))).collect()
    }

    /// Ends as it does by itself.
    fn quit(mut self) {
        writeln!(self.stdin, "quit").expect("testpmd reads");
        let mut status = None;
        until("testpmd ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        assert!(status.is_some_and(|s| s.success()), "{status:?}:\n{}", self.said());
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn cpus_allowed() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).expect("listed");
    line.trim().to_owned()
}

/// Two nicds by hand on a cable: `a` for DPDK, which cannot seal its memory.
fn nicds(dir: &Dir, mtu: u16, b: &str) -> (Nicd, Nicd) {
    let port = |node: &str, i: u8, rest: &str| format!("eth0,vhost={node}.sock{rest},mac=02:00:00:00:00:0{i},mtu={mtu}");
    let mut first = Nicd::start(dir, "a", &["--port", &port("a", 1, ",unsealed,queues=2"), "--wire", "eth0=cable:ab.sock,listen"]);
    let mut second = Nicd::start(dir, "b", &["--port", &port("b", 2, b), "--wire", "eth0=cable:ab.sock"]);
    until("link is up", || first.link_up("eth0") && second.link_up("eth0"));
    (first, second)
}

/// A TCP frame from b to a, whose checksum its NIC is to complete, as it is then.
fn frame(port: u16, len: usize) -> (VnetHdr, Vec<u8>, Vec<u8>) {
    let payload: Vec<u8> = (0..len - 54).map(|i| (i as u8).wrapping_mul(port as u8 | 1)).collect();
    let (header, frame) = tcp_frame(MAC_A, MAC_B, (port, 80), &payload, 0);
    let whole = completed(&frame);
    (header, frame, whole)
}

fn completed(frame: &[u8]) -> Vec<u8> {
    let mut whole = frame.to_vec();
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    let mut sum: u32 = frame[34..].chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    whole[50..52].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    whole
}

fn with_addresses(frame: &[u8], dst: [u8; 6], src: [u8; 6]) -> Vec<u8> {
    [&dst[..], &src, &frame[12..]].concat()
}

/// Sends frames of all sizes in many flows from `host`; each has to come back as `back` says. Returns their number.
fn echo(host: &mut Driver, first: u16, back: impl Fn(VnetHdr, &[u8]) -> Vec<u8>) -> u64 {
    let mut waiting = BTreeMap::new();
    let (lens, count) = ([60, 64, 590, 1514, 2100, 4000, 9014], 350);
    for i in 0..count {
        let (header, sent, whole) = frame(first + i, lens[usize::from(i) % lens.len()]);
        host.send_with(&header, &sent);
        waiting.insert(first + i, whole);
        while waiting.len() > 16 || (i == count - 1 && !waiting.is_empty()) {
            let (header, got) = host.receive();
            let port = u16::from_be_bytes([got[34], got[35]]);
            let want = waiting.remove(&port).expect("sent, and not yet seen");
            assert!(back(header, &got) == with_addresses(&want, MAC_B, MAC_A), "frame {port} of {} octets", want.len());
        }
    }
    count.into()
}

fn as_it_is(_: VnetHdr, frame: &[u8]) -> Vec<u8> {
    frame.to_vec()
}

#[test]
fn testpmd_returns_frames_whole_and_its_port_survives_it() {
    let dir = Dir::new();
    let (mut a, mut b) = nicds(&dir, 9000, "");
    let options = ["--max-pkt-len=9014", "--enable-scatter", MULTI_SEGS];
    let begin = || {
        let mut testpmd = Testpmd::start(&dir, "a", "02:00:00:00:00:01", 2, &options);
        testpmd.command("set fwd macswap");
        testpmd.command("start");
        testpmd
    };
    let mut testpmd = begin();
    let mut host = Driver::connect(&dir.path("b.sock"), ALL, Rings::default());
    let sent = echo(&mut host, 1000, as_it_is);

    // A frame to be cut: its segments come back, since DPDK wants no TSO without IPv6.
    let payload: Vec<u8> = (0..20_000u32).map(|i| (i / 7) as u8).collect();
    let (header, large) = tcp_frame(MAC_A, MAC_B, (7, 80), &payload, 1448);
    host.send_with(&header, &large);
    let mut back = Vec::new();
    let mut segments = 0;
    while back.len() < payload.len() {
        let (header, got) = host.receive();
        assert_eq!((header.flags & F_NEEDS_CSUM, header.gso_type), (0, GSO_NONE));
        back.extend_from_slice(&got[54..]);
        segments += 1;
    }
    assert!(back == payload && segments == 14, "{segments} segments");

    testpmd.command("stop");
    let stats = testpmd.xstats();
    let queues = [stats["rx_q0_good_packets"], stats["rx_q1_good_packets"]];
    assert_eq!((queues.iter().sum::<u64>(), stats["tx_good_packets"]), (sent + 14, sent + 14));
    assert!(queues.iter().all(|&n| n > 50), "two queues share the flows: {queues:?}");
    let (at_a, at_b) = (a.counters("eth0"), b.counters("eth0"));
    assert_eq!((at_a["rx_packets"], at_a["tx_packets"], at_a["rx_missed_errors"]), (sent + 14, sent + 14, 0));
    // On this side the large frame counts once on its way out.
    assert_eq!((at_b["tx_packets"], at_b["rx_packets"], at_b["rx_missed_errors"]), (sent + 1, sent + 14, 0));

    // The same process starts its device anew; then another one takes its place, the first being killed.
    testpmd.command("port stop 0");
    testpmd.command("port start 0");
    testpmd.command("start");
    echo(&mut host, 2000, as_it_is);
    let resets = a.counters("eth0")["device_resets"];
    drop(testpmd);
    until("the port is free", || a.counters("eth0")["device_resets"] > resets);
    let testpmd = begin();
    echo(&mut host, 3000, as_it_is);
    testpmd.quit();
    assert_eq!((a.counters("eth0")["rx_ring_errors"], b.counters("eth0")["rx_ring_errors"]), (0, 0));
}

#[test]
fn testpmd_leaves_checksums_to_the_port() {
    let dir = Dir::new();
    let (mut a, _b) = nicds(&dir, 9000, "");
    // Receive queues: checksums of UDP and TCP, frames in several buffers.
    let options = ["--max-pkt-len=9014", MULTI_SEGS, "--rx-offloads=0x200c"];
    let mut testpmd = Testpmd::start(&dir, "a", "02:00:00:00:00:01", 1, &options);
    testpmd.command("port stop 0");
    testpmd.command("csum set tcp hw 0");
    testpmd.command("port start 0");
    testpmd.command("set fwd csum");
    testpmd.command("set eth-peer 0 02:00:00:00:00:02");
    testpmd.command("start");
    // The driver there takes unfinished checksums: what DPDK leaves undone comes as it left it.
    let mut host = Driver::connect(&dir.path("b.sock"), ALL, Rings::default());
    let sent = echo(&mut host, 1000, |header, got| {
        assert_eq!((header.flags & F_NEEDS_CSUM, header.csum_start, header.csum_offset), (F_NEEDS_CSUM, 34, 16));
        completed(got)
    });
    let at_a = a.counters("eth0");
    assert_eq!((at_a["tx_csum_offload"], at_a["tx_bad_gso"]), (sent, 0));
    drop(host);
    // This one does not: its NIC completes them.
    let mut host = Driver::connect(&dir.path("b.sock"), ringlab_ring::packed::Features::MRG_RXBUF, Rings::default());
    let (_, _, whole) = frame(77, 4000);
    host.send(&whole);
    let (header, got) = host.receive();
    assert_eq!(header.flags & F_NEEDS_CSUM, 0);
    assert!(got == with_addresses(&whole, MAC_B, MAC_A), "completed");
    testpmd.quit();
}

#[test]
fn two_testpmds_count_what_their_ports_count() {
    let dir = Dir::new();
    let (mut a, mut b) = nicds(&dir, 1500, ",unsealed,queues=2");
    let mut to = Testpmd::start(&dir, "b", "02:00:00:00:00:02", 2, &[]);
    to.command("set fwd rxonly");
    to.command("start");
    let mut from = Testpmd::start(&dir, "a", "02:00:00:00:00:01", 2, &[MULTI_SEGS]);
    from.command("set fwd txonly");
    from.command("set txpkts 64,200,1200");
    from.command("start");
    until("frames flow", || b.counters("eth0")["rx_packets"] > 20_000);
    from.command("stop");
    let sent = from.xstats();
    assert!(sent["tx_q0_good_packets"] > 0 && sent["tx_q1_good_packets"] > 0, "{sent:?}");
    until("all have left", || a.counters("eth0")["tx_packets"] == sent["tx_good_packets"]);
    assert_eq!(a.counters("eth0")["tx_bytes"], sent["tx_good_packets"] * 1464);
    until("all have come, or were missed", || {
        let at_b = b.counters("eth0");
        at_b["rx_packets"] + at_b["rx_missed_errors"] == sent["tx_good_packets"]
    });
    let at_b = b.counters("eth0");
    until("the receiver has them", || to.xstats()["rx_good_packets"] == at_b["rx_packets"]);
    assert_eq!(to.xstats()["rx_good_bytes"], at_b["rx_packets"] * 1464);
    to.command("stop");
    to.quit();
    from.quit();
}
