//! `SIOCETHTOOL` as `ethtool` uses it when there is no netlink family for it.

mod common;

use common::tasks::{DGRAM, NONBLOCK, Prog, STREAM};
use common::{A, ADDR_A, ADDR_B, B, Dir, HostConfig, Lab, PortConfig, mac};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::ioctl::ethtool_len;
use ringlab_kernel::syscall::{Call, Ret};
use std::net::SocketAddr;
use std::time::Duration;

fn name(text: &str) -> [u8; 16] {
    let mut b = [0; 16];
    b[..text.len()].copy_from_slice(text.as_bytes());
    b
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

struct Tool {
    prog: Prog,
    fd: i32,
}

impl Tool {
    fn new(lab: &mut Lab) -> Self {
        let prog = Prog::spawn(lab, A, "ethtool");
        Self { fd: prog.socket(lab, DGRAM), prog }
    }

    fn ask(&self, lab: &mut Lab, dev: &str, head: &[u32]) -> Ret {
        let mut data = words(head);
        data.resize(ethtool_len(&data), 0);
        self.prog.now(lab, Call::Ethtool(self.fd, name(dev), data))
    }

    fn get(&self, lab: &mut Lab, head: &[u32]) -> Vec<u8> {
        match self.ask(lab, "eth0", head) {
            Ret::Bytes(b) => b,
            ret => panic!("{head:x?}: {ret:?}"),
        }
    }

    fn names(&self, lab: &mut Lab, set: u32) -> Vec<String> {
        let info = self.get(lab, &[0x37, 0, 1 << set, 0]);
        let count = u32::from_ne_bytes(info[16..20].try_into().expect("four"));
        let strings = self.get(lab, &[0x1b, set, count]);
        let text = |b: &[u8]| String::from_utf8_lossy(b).trim_end_matches('\0').to_owned();
        strings[12..].chunks(32).map(text).collect()
    }

    /// Active and changeable features by name.
    fn features(&self, lab: &mut Lab) -> Vec<(String, bool, bool)> {
        let names = self.names(lab, 4);
        let b = self.get(lab, &[0x3a, 2]);
        assert_eq!((names.len(), b.len()), (64, 40));
        let bit = |row: usize, i: usize| b[8 + 16 * (i / 32) + 4 * row + i % 32 / 8] >> (i % 8) & 1 != 0;
        names.into_iter().enumerate().map(|(i, name)| (name, bit(2, i), bit(0, i))).collect()
    }
}

#[test]
fn driver_link_and_statistics_are_shown() {
    let mut lab = Lab::pair(1);
    let tool = Tool::new(&mut lab);
    let info = tool.get(&mut lab, &[3]);
    assert_eq!((info.len(), &info[4..15], &info[100..108]), (196, &b"virtio_net\0"[..], &b"virtio0\0"[..]));
    assert_eq!(tool.get(&mut lab, &[10]), words(&[10, 1]), "link detected");
    assert_eq!(tool.get(&mut lab, &[0x20, 32])[..14], [words(&[0x20, 6]), mac(A, 0).0.to_vec()].concat());
    let names = tool.names(&mut lab, 1);
    let b = Prog::spawn(&mut lab, B, "b");
    let fb = b.udp(&mut lab, 9);
    tool.prog.send_to(&mut lab, tool.fd, b"x", ADDR_B, 9);
    b.recv(&mut lab, fb, 10, 0);
    let stats = tool.get(&mut lab, &[0x1d, names.len() as u32]);
    let at = names.iter().position(|n| n == "tx_packets").expect("named");
    assert_eq!(stats[8 + 8 * at..16 + 8 * at], 2u64.to_ne_bytes(), "ARP and the datagram");
    assert_eq!(tool.ask(&mut lab, "lo", &[3]), Ret::Err(Errno::EOPNOTSUPP));
    assert_eq!(tool.ask(&mut lab, "eth9", &[3]), Ret::Err(Errno::ENODEV));
    assert_eq!(tool.ask(&mut lab, "eth0", &[0x9999]), Ret::Err(Errno::EOPNOTSUPP));
    let _ = ADDR_A;
}

#[test]
fn rings_channels_and_link_modes() {
    let mut lab = Lab::pair(2);
    let tool = Tool::new(&mut lab);
    assert_eq!(tool.get(&mut lab, &[0x10]), words(&[0x10, 512, 0, 0, 512, 512, 0, 0, 512]));
    assert_eq!(tool.get(&mut lab, &[0x3c]), words(&[0x3c, 0, 0, 0, 1, 0, 0, 0, 1]));
    let asked = tool.get(&mut lab, &[0x4c]);
    assert_eq!((asked[15] as i8, asked.len()), (-4, 48), "first the number of words is agreed on");
    let got = tool.get(&mut lab, &[0x4c, 0, 0, 4 << 24]);
    assert_eq!((&got[4..8], got[8], got.len()), (&[0xff; 4][..], 0xff, 96), "speed and duplex unknown");
    let coalesce = |lab: &mut Lab| tool.get(lab, &[0x0e])[..16].to_vec();
    assert_eq!(coalesce(&mut lab), words(&[0x0e, 0, 0, 0]));
    assert_eq!(tool.ask(&mut lab, "eth0", &[0x0f, 50, 8]), Ret::Value(0));
    assert_eq!(coalesce(&mut lab), words(&[0x0e, 50, 8, 0]));
    // What a driver does not know of is not changed in silence.
    for other in 3..23 {
        let mut all = [0; 23];
        (all[0], all[1], all[other]) = (0x0f, 1, 1);
        assert_eq!(tool.ask(&mut lab, "eth0", &all), Ret::Err(Errno::EOPNOTSUPP), "word {other}");
    }
    assert_eq!(coalesce(&mut lab), words(&[0x0e, 50, 8, 0]));
    for cmd in [0x0e, 0x0f, 0x10, 0x11, 0x3c, 0x3d] {
        assert_eq!(tool.ask(&mut lab, "lo", &[cmd]), Ret::Err(Errno::EOPNOTSUPP), "lo {cmd:#x}");
    }
}

#[test]
fn rings_shrink_and_channels_are_chosen_within_what_there_is() {
    let config = PortConfig { queues: 2, ..PortConfig::default() };
    let mut lab = Lab::pair_with(4, HostConfig::default(), config);
    let tool = Tool::new(&mut lab);
    let set_rings = |lab: &mut Lab, rx: u32, mini: u32, tx: u32| tool.ask(lab, "eth0", &[0x11, 0, 0, 0, 0, rx, mini, 0, tx]);
    assert_eq!(set_rings(&mut lab, 128, 0, 64), Ret::Value(0));
    assert_eq!(tool.get(&mut lab, &[0x10]), words(&[0x10, 512, 0, 0, 512, 128, 0, 0, 64]));
    for (rx, mini, tx) in [(513, 0, 64), (128, 0, 1024), (128, 1, 64), (0, 0, 64), (128, 0, 0)] {
        assert_eq!(set_rings(&mut lab, rx, mini, tx), Ret::Err(Errno::EINVAL), "{rx} {mini} {tx}");
    }
    let channels = |lab: &mut Lab| tool.get(lab, &[0x3c]);
    let set_channels = |lab: &mut Lab, rx: u32, combined: u32| tool.ask(lab, "eth0", &[0x3d, 0, 0, 0, 0, rx, 0, 0, combined]);
    assert_eq!(channels(&mut lab), words(&[0x3c, 0, 0, 0, 2, 0, 0, 0, 2]));
    for (rx, combined) in [(0, 0), (0, 3), (1, 1)] {
        assert_eq!(set_channels(&mut lab, rx, combined), Ret::Err(Errno::EINVAL), "{rx} {combined}");
    }
    // Flows have a hash each; B refuses them all.
    let queues_of_flows = |lab: &mut Lab| {
        let before = lab.hosts[A].ports[0].sent_by_queue();
        for _ in 0..20 {
            let fd = tool.prog.socket(lab, STREAM | NONBLOCK);
            let to = Some(SocketAddr::from((ADDR_B, 9)));
            assert_eq!(tool.prog.now(lab, Call::Connect(fd, to)), Ret::Err(Errno::EINPROGRESS));
            lab.run_for(Duration::from_millis(1));
        }
        lab.hosts[A].ports[0].sent_by_queue().iter().zip(before).map(|(now, before)| now - before).collect::<Vec<_>>()
    };
    let spread = queues_of_flows(&mut lab);
    assert!(spread[0] > 0 && spread[1] > 0, "{spread:?}");
    assert_eq!(set_channels(&mut lab, 0, 1), Ret::Value(0));
    assert_eq!(channels(&mut lab), words(&[0x3c, 0, 0, 0, 2, 0, 0, 0, 1]));
    assert_eq!(queues_of_flows(&mut lab), [20, 0]);
    assert_eq!(set_channels(&mut lab, 0, 2), Ret::Value(0));
    let spread = queues_of_flows(&mut lab);
    assert!(spread[0] > 0 && spread[1] > 0, "{spread:?}");
}

#[test]
fn offloads_are_switched_and_take_effect() {
    let mut lab = Lab::pair(3);
    let tool = Tool::new(&mut lab);
    let state = |list: &[(String, bool, bool)], name: &str| list.iter().find(|f| f.0 == name).map(|f| (f.1, f.2));
    let before = tool.features(&mut lab);
    assert_eq!(state(&before, "tx-tcp-segmentation"), Some((true, true)));
    assert_eq!(state(&before, "rx-lro"), Some((false, false)), "fixed");
    assert_eq!(
        (state(&before, "rx-checksum"), state(&before, "rx-gro-hw")),
        (Some((true, false)), Some((true, false))),
        "in the upper word"
    );
    // Asked for less, it gives less, and says how much there is.
    assert_eq!(tool.get(&mut lab, &[0x3a, 1]).len(), 24);
    assert_eq!(tool.get(&mut lab, &[0x3a, 0]), words(&[0x3a, 2]));
    // `ethtool -K eth0 tx off`: segmentation needs it and goes, too.
    let bit = before.iter().position(|f| f.0 == "tx-checksum-ip-generic").expect("named");
    assert_eq!(tool.ask(&mut lab, "eth0", &[0x3b, 1, 1 << bit, 0]), Ret::Err(Errno::EINVAL), "another size");
    assert_eq!(tool.ask(&mut lab, "eth0", &[0x3b, 2, 1 << bit, 0, 0, 0]), Ret::Value(0));
    let after = tool.features(&mut lab);
    assert_eq!(state(&after, "tx-checksum-ip-generic"), Some((false, true)));
    assert_eq!(state(&after, "tx-tcp-segmentation"), Some((false, true)));
    tool.prog.send_to(&mut lab, tool.fd, b"x", ADDR_B, 9);
    lab.run_for(std::time::Duration::from_millis(1));
    let sent = lab.log.iter().find(|l| l.dir == Dir::Forward && l.frame.is_udp()).expect("sent");
    assert_eq!(sent.frame.hdr.flags, 0, "the checksum is complete");
    // A fixed one is left alone, and said so.
    let fixed = before.iter().position(|f| f.0 == "rx-lro").expect("named");
    assert_eq!(tool.ask(&mut lab, "eth0", &[0x3b, 2, 1 << fixed, 1 << fixed, 0, 0]), Ret::Value(1));
    assert_eq!(tool.ask(&mut lab, "eth0", &[0x3b, 2, 0, 0, 1 << 31, 1 << 31]), Ret::Value(1), "hsr-dup-offload");
    assert_eq!(tool.ask(&mut lab, "eth0", &[0x2c, 0]), Ret::Value(0));
    assert_eq!(tool.get(&mut lab, &[0x2b]), words(&[0x2b, 0]), "GRO is off");
}
