//! Frames of all sorts, good and bad: what is dropped and why, counted and answered is what Linux 6.18 does
//! (`golden/linux_input.txt`, recorded there).

mod common;
mod netlink_support;

use common::tasks::Prog;
use common::{Dir, Frame, HostConfig, Lab, PortConfig, TEST_MAC, mac};
use netlink_support::{CREATE, Nl, ROUTE};
use ringlab_counters::Counter;
use ringlab_counters::Mib;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

const RECORD: &str = include_str!("golden/linux_input.txt");
/// Groups of `/proc/net/snmp` and `/proc/net/netstat`; others are the model's own.
const GROUPS: [&str; 6] = ["Ip", "Icmp", "Tcp", "Udp", "TcpExt", "IpExt"];

/// Rows in which the model differs, and why.
const DIFFERS: &[(&str, &str)] = &[
    ("udp bad long sock", "a checksum is verified when the datagram comes, not when it is read"),
    ("record route", "errors do not repeat the options of what they are about"),
];

/// One line of the record, or what the model makes of its frames.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    drops: Vec<String>,
    counters: BTreeMap<String, u64>,
    answers: Vec<String>,
}

struct Row<'a> {
    name: &'a str,
    forward: bool,
    frames: Vec<Frame>,
    linux: Outcome,
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).expect("a digit") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn parse(line: &str) -> Row<'_> {
    let columns: Vec<&str> = line.split('\t').collect();
    let column = |i: usize| columns.get(i).copied().unwrap_or("");
    let words = |i: usize| column(i).split_whitespace();
    let dst = if column(2) == "H" { mac(0, 0).0.to_vec() } else { hex(column(2)) };
    let frame = |body: &str| [dst.clone(), TEST_MAC.0.to_vec(), hex(column(3)), hex(body)].concat().into();
    let counter = |word: &str| {
        let (name, value) = word.split_once('=').expect("a counter");
        (name.to_string(), value.parse().expect("a number"))
    };
    let mut drops: Vec<String> = words(5).map(str::to_string).collect();
    drops.sort();
    let linux = Outcome { drops, counters: words(6).map(counter).collect(), answers: words(7).map(str::to_string).collect() };
    Row { name: columns[0], forward: column(1) == "1", frames: column(4).split(',').map(frame).collect(), linux }
}

/// The host of the record.
fn host(forward: bool) -> Lab {
    let mut lab = Lab::new(1);
    lab.add_host(HostConfig { ip_forward: forward, pool: 2 << 20, ..HostConfig::default() });
    lab.stub(0, Ipv4Addr::new(10, 99, 0, 1), 24, PortConfig::default());
    lab.stub(0, Ipv4Addr::new(10, 98, 0, 1), 24, PortConfig { mtu: 600, ..PortConfig::default() });
    let p = Prog::spawn(&mut lab, 0, "server");
    p.udp(&mut lab, 7);
    p.listener(&mut lab, 80, 5);
    let nl = Nl::open(&mut lab, p, ROUTE);
    for (net, kind) in [(90, 7), (91, 8), (92, 6)] {
        let rtmsg = [2, 24, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0];
        assert_eq!(nl.ack(&mut lab, 24, CREATE, &rtmsg, &[(1, &[10, net, 0, 0])]), Ok(()));
    }
    // Who asks is known from then on.
    for (link, who, asked) in [(0, [10, 99, 0, 9], [10, 99, 0, 1]), (1, [10, 98, 0, 2], [10, 98, 0, 1])] {
        let arp = [&[255; 6][..], &TEST_MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &TEST_MAC.0, &who, &[0; 6], &asked].concat();
        lab.inject(link, Dir::Backward, arp.into());
    }
    lab.run_for(Duration::from_millis(1));
    assert_eq!(lab.received.len(), 2, "both questions are answered");
    lab.received.clear();
    lab
}

fn answer(link: usize, f: &Frame) -> Option<String> {
    if f.is_arp() {
        return (f.arp_op() == 2).then(|| format!("{link}:arp2"));
    }
    let at = f.transport();
    let what = match (link, f.icmp()) {
        (0, Some((kind, code))) => {
            let more: String = f.bytes[at + 4..at + 8].iter().map(|b| format!("{b:02x}")).collect();
            format!("/{kind}.{code}") + &if matches!(kind, 3 | 5 | 12) { format!("={more}") } else { String::new() }
        }
        (0, None) if f.is_tcp() => format!("/{:x}", f.flags()),
        _ => String::new(),
    };
    let field = f.more_fragments() as usize * 0x2000 + f.frag_offset() / 8;
    Some(format!("{link}:ip{}{what},tos={:x},ttl={},len={},off={field:x}", f.protocol(), f.tos(), f.ttl(), f.ip_len()))
}

fn run(row: &Row<'_>) -> Outcome {
    let mut lab = host(row.forward);
    let before = lab.hosts[0].kernel.stats();
    for frame in &row.frames {
        lab.inject(0, Dir::Backward, frame.clone());
        lab.run_for(Duration::from_micros(1));
    }
    lab.run_for(Duration::from_millis(30));
    let after = lab.hosts[0].kernel.stats();
    let mut drops = Vec::new();
    for ((name, n), (_, old)) in after.drops.iter().zip(before.drops.iter()) {
        drops.extend((old..n).map(|_| name.to_string()));
    }
    drops.sort();
    let grown = Mib::ALL.iter().filter(|&&m| after.mib.get(m) != before.mib.get(m));
    let linux = grown.filter(|m| GROUPS.contains(&m.name().split('.').next().unwrap_or("")));
    let counters = linux.map(|&m| (m.name().to_string(), after.mib.get(m) - before.mib.get(m))).collect();
    let answers = lab.received.iter().filter_map(|(link, f)| answer(*link, f)).collect();
    Outcome { drops, counters, answers }
}

#[test]
fn frames_are_dropped_counted_and_answered_as_linux_does() {
    let rows: Vec<Row<'_>> = RECORD.lines().filter(|l| !l.starts_with('#')).map(parse).collect();
    assert!(rows.len() > 130);
    let mut wrong = Vec::new();
    for row in &rows {
        let here = run(row);
        let differs = DIFFERS.iter().any(|d| d.0 == row.name);
        if (here == row.linux) == differs {
            wrong.push(format!("{}\n  Linux {:?}\n  here  {here:?}", row.name, row.linux));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
