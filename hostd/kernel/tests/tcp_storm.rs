//! Random segments and random calls, in every state: the books balance after each, nothing that was acknowledged or
//! offered is taken back, every octet comes out where its number says, and in the end nothing is left.

mod common;
mod tcp_support;

use common::dice::Dice;
use common::tasks::{NONBLOCK, Prog, STREAM};
use common::{ADDR_A, ADDR_B, Dir, Frame, HostConfig, Lab, Path, mac};
use ringlab_kernel::dev::net_device::MacAddr;
use ringlab_kernel::syscall::{Call, OptVal, Ret, Shutdown, msg};
use ringlab_kernel::uaccess::{Iov, UserSlice};
use std::collections::BTreeSet;
use std::time::Duration;
use tcp_support::peer::{ACK, FIN, PORT, RST, SYN};
use tcp_support::{octet, plain_nic};

const URG: u8 = 32;
const PEER_PORT: u16 = 1000;
const STEPS: usize = 70;
/// Octets that the host sends in a walk, at most.
const WRITTEN: usize = 1 << 18;
const BUFFER: u64 = 1 << 16;

/// One conversation of the host with a peer who says anything.
struct Walk {
    lab: Lab,
    dice: Dice,
    host: Prog,
    /// Accepted or connected, and who listens.
    fds: Vec<i32>,
    listener: Option<i32>,
    dport: u16,
    /// First number of the peer's; the host's, once it is known.
    isn: u32,
    iss: Option<u32>,
    /// What the host has sent and acknowledged, and the end of the window that it offered.
    sent: u32,
    acked: u32,
    edge: Option<u32>,
    /// Offered on SYNs: timestamps, SACK, scale of windows.
    options: bool,
    tsecr: u32,
    /// The host has sent a SYN: its next ACK says with which number the peer begins.
    fresh: bool,
    began: u32,
    /// Connections of which the host has sent a SYN since the last was accepted.
    begun: u32,
    /// Place in the peer's octets of the next that the program reads, if that is known: urgent ones are left out.
    read: Option<u32>,
    /// Octets that the program has written; of those, before this connection.
    written: usize,
    before: usize,
    /// Urgent data came since the last connection began: what of them the program reads is not said here.
    urgent: bool,
    source: UserSlice,
    buffer: UserSlice,
    seen: BTreeSet<&'static str>,
}

impl Walk {
    fn new(seed: u32) -> Self {
        let mut lab = Lab::new(u64::from(seed));
        lab.add_host(HostConfig { pool: 8 << 20, ..HostConfig::default() });
        lab.stub(0, ADDR_A, 24, plain_nic());
        let host = Prog::spawn(&mut lab, 0, "host");
        let source = lab.hosts[0].mem.put(&(0..WRITTEN).map(octet).collect::<Vec<u8>>());
        let buffer = host.buffer(&lab, BUFFER as usize);
        let dice = Dice(u64::from(seed) << 20 | 0x5eed);
        // Numbers that wrap around soon, or have their highest bit change.
        let isn = [0xffff_f000, 0x7fff_f000, 5][seed as usize % 3];
        Self {
            lab,
            dice,
            host,
            fds: Vec::new(),
            listener: None,
            dport: PORT,
            isn,
            iss: None,
            sent: 0,
            acked: isn,
            edge: None,
            options: seed.is_multiple_of(2),
            tsecr: 0,
            fresh: false,
            began: 0,
            begun: 0,
            read: None,
            written: 0,
            before: 0,
            urgent: false,
            source,
            buffer,
            seen: BTreeSet::new(),
        }
    }

    /// A segment, in which every octet of text is that of its number.
    fn segment(&mut self, seq: u32, ack: u32, flags: u8, len: u32) -> Frame {
        let mut options = Vec::new();
        if self.options && flags & SYN != 0 {
            options.extend([2, 4, 5, 180, 4, 2, 1, 3, 3, 7]);
        }
        if self.options {
            let now = self.lab.now.millis() as u32;
            // Now and then from the past.
            let val = if self.dice.below(20) == 0 { now.wrapping_sub(90_000) } else { now };
            options.extend([1, 1, 8, 10]);
            options.extend(val.to_be_bytes());
            options.extend(self.tsecr.to_be_bytes());
        }
        if self.options && flags & SYN == 0 && self.dice.below(2) == 0 {
            let left = self.number(self.sent);
            let right = left.wrapping_add(self.dice.of(&[1, 536, 1448, 1448, 4000]));
            options.extend([1, 1, 5, 10]);
            options.extend(left.to_be_bytes());
            options.extend(right.to_be_bytes());
        }
        options.resize(options.len().next_multiple_of(4), 0);
        let mut tcp = [PEER_PORT.to_be_bytes(), self.dport.to_be_bytes()].concat();
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        let window = self.dice.of(&[0, 1, 500, 2000, 20_000, 60_000, 60_000, 65_535]);
        tcp.extend([((20 + options.len()) / 4 * 16) as u8, flags]);
        tcp.extend([u16::to_be_bytes(window), [0; 2], [0, (len / 2) as u8]].concat());
        tcp.extend(options);
        let first = self.place(seq);
        tcp.extend((0..len).map(|i| octet(first.wrapping_add(i) as usize)));
        let mut frame = Path { src: ADDR_B, dst: ADDR_A, dst_mac: mac(0, 0) }.fragment(1, 6, 0, false, &tcp);
        frame.sum_tcp();
        frame
    }

    /// Of a number, among the peer's octets.
    fn place(&self, seq: u32) -> u32 {
        seq.wrapping_sub(self.isn).wrapping_sub(1)
    }

    /// A number near one that means something.
    fn number(&mut self, near: u32) -> u32 {
        let back = self.dice.of(&[0, 0, 0, 1, 2, 1448, 3000, 65_000]);
        let forth = self.dice.of(&[0, 0, 0, 0, 1, 1, 10, 1448, 1448, 2896, 70_000]);
        if self.dice.below(40) == 0 { self.dice.below(u32::MAX) } else { near.wrapping_sub(back).wrapping_add(forth) }
    }

    fn inject(&mut self, seq: u32, ack: u32, flags: u8, len: u32) {
        if flags & URG != 0 {
            (self.read, self.urgent) = (None, true);
        }
        let frame = self.segment(seq, ack, flags, len);
        self.lab.inject(0, Dir::Backward, frame);
    }

    fn random_segment(&mut self) {
        let flags = self.dice.of(&[ACK, ACK, ACK, ACK, ACK, ACK, ACK | FIN, ACK | RST, SYN, SYN | ACK, RST, FIN, ACK | URG, 0, ACK | 0xc0]);
        // Mostly what continues: the walk is to come far.
        let seq = if self.dice.below(3) > 0 { self.acked } else { self.number(self.acked) };
        let ack = if self.dice.below(3) > 0 { self.sent } else { self.number(self.sent) };
        let len = if flags & SYN != 0 { 0 } else { self.dice.of(&[0, 0, 1, 100, 1000, 1448, 1448]) };
        let flags = if flags & (SYN | RST) != 0 && self.dice.below(3) > 0 { ACK } else { flags };
        self.inject(seq, ack, flags, len);
    }

    /// What the host has sent is right.
    fn hear(&mut self) {
        self.lab.answer_arp(0);
        for (_, f) in std::mem::take(&mut self.lab.received) {
            if !f.is_tcp() || f.is_rst() || f.sport() != self.dport {
                continue;
            }
            if f.flags() & SYN != 0 {
                if self.iss != Some(f.seq()) {
                    self.begun += 1;
                    self.urgent = false;
                }
                (self.iss, self.sent, self.edge, self.fresh) = (Some(f.seq()), f.seq(), None, true);
            }
            if f.flags() & ACK != 0 && std::mem::take(&mut self.fresh) {
                (self.acked, self.began) = (f.ack(), f.ack());
                if self.listener.is_none() && !self.urgent {
                    self.read = Some(self.place(f.ack()));
                }
            }
            let end = f.seq().wrapping_add(f.payload().len() as u32 + u32::from(f.flags() & SYN != 0) + u32::from(f.is_fin()));
            if end.wrapping_sub(self.sent) as i32 > 0 {
                self.sent = end;
            }
            if let (Some(iss), false) = (self.iss, f.payload().is_empty()) {
                let at = f.seq().wrapping_sub(iss).wrapping_sub(1) as usize;
                let at = at + self.before;
                assert!(f.payload().iter().enumerate().all(|(i, &b)| b == octet(at + i)), "octets from {at} on");
            }
            if f.flags() & ACK != 0 {
                assert!(f.ack().wrapping_sub(self.acked) as i32 >= 0, "RCV.NXT goes back: {} after {}", f.ack(), self.acked);
                self.acked = f.ack();
            }
            if let Some((_, ts)) = f.tcp_options().windows(6).enumerate().find(|(_, o)| o[..2] == [8, 10]) {
                self.tsecr = u32::from_be_bytes([ts[2], ts[3], ts[4], ts[5]]);
            }
            if !self.options && f.flags() & (ACK | SYN) == ACK {
                let edge = f.ack().wrapping_add(f.window().into());
                assert!(self.edge.is_none_or(|e| edge.wrapping_sub(e) as i32 >= 0), "the window shrinks: {edge} after {:?}", self.edge);
                self.edge = Some(edge);
            }
        }
    }

    fn read(&mut self, fd: i32) {
        let len = u64::from(self.dice.of(&[1, 10, 1000, 5000, BUFFER as u32]));
        let call = Call::Recv { fd, iov: Iov::One(UserSlice { len, ..self.buffer }), flags: msg::DONTWAIT };
        let Ret::Received { len, .. } = self.host.now(&mut self.lab, call) else { return };
        if let Some(at) = self.read {
            let got = self.lab.hosts[0].mem.get(self.buffer, len);
            let right = |(i, &b): (usize, &u8)| b == octet(at.wrapping_add(i as u32) as usize);
            assert!(got.iter().enumerate().all(right), "{len} octets read from {at} on");
            self.read = Some(at.wrapping_add(len as u32));
        }
    }

    fn write(&mut self, fd: i32) {
        let len = self.dice.of(&[1, 100, 1448, 5000, 40_000]).min((WRITTEN - self.written) as u32);
        let iov = Iov::One(UserSlice { addr: self.source.addr + self.written as u64, len: len.into() });
        let call = Call::Send { fd, iov, flags: msg::DONTWAIT | msg::NOSIGNAL, to: None, control: Vec::new() };
        if let Ret::Value(n) = self.host.now(&mut self.lab, call) {
            self.written += n as usize;
        }
    }

    fn accept(&mut self) {
        let Some(listener) = self.listener.filter(|_| self.fds.is_empty()) else { return };
        if let Ret::Accepted(fd, _) = self.host.now(&mut self.lab, Call::Accept(listener, NONBLOCK)) {
            self.fds.push(fd);
            let one = std::mem::take(&mut self.begun) == 1;
            (self.read, self.before) = ((one && !self.urgent).then(|| self.place(self.began)), self.written);
        }
    }

    fn call(&mut self) {
        let Some(&fd) = self.fds.last() else { return self.accept() };
        match self.dice.below(24) {
            0..=9 => self.read(fd),
            10..=19 => self.write(fd),
            20 => drop(self.host.now(&mut self.lab, Call::Shutdown(fd, Shutdown::Wr))),
            21 => drop(self.host.now(&mut self.lab, Call::Shutdown(fd, Shutdown::Rd))),
            22 => drop(self.host.now(&mut self.lab, Call::SetSockOpt(fd, 6, 3, OptVal::Int((self.written % 2) as i32)))),
            _ => {
                self.fds.pop();
                self.host.ok(&mut self.lab, Call::Close(fd));
            }
        }
    }

    fn step(&mut self) {
        match self.dice.below(10) {
            0..=5 => self.random_segment(),
            6..=8 => self.call(),
            _ => {
                let ms = self.dice.of(&[1, 45, 210, 1000, 5000]);
                self.lab.run_for(Duration::from_millis(ms));
            }
        }
        self.lab.run_for(Duration::from_micros(1));
        self.hear();
        let kernel = &self.lab.hosts[0].kernel;
        kernel.tcp_audit().unwrap_or_else(|e| panic!("{e}"));
        let (peer, here) = (PEER_PORT, self.dport);
        if kernel.procfs_read("/proc/net/sockstat").is_some_and(|text| !text.contains(" tw 0 ")) {
            self.seen.insert("TIME-WAIT");
        }
        self.seen.extend(kernel.sockets_info().iter().filter(|s| s.peer.port() == peer && s.local.port() == here).map(|s| s.state));
    }

    fn begin(&mut self, how: u32) {
        match how {
            0 => {
                let fd = self.host.ok(&mut self.lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
                self.host.now(&mut self.lab, Call::Connect(fd, Some((ADDR_B, PEER_PORT).into())));
                self.fds.push(fd);
                self.lab.run_for(Duration::from_micros(1));
                self.lab.answer_arp(0);
                let syn = self.lab.received.iter().find(|r| r.1.is_syn()).expect("a SYN");
                self.dport = syn.1.sport();
                self.hear();
                if self.dice.below(3) > 0 {
                    self.inject(self.isn, self.sent, SYN | ACK, 0);
                }
            }
            _ => {
                let listener = self.host.listener(&mut self.lab, PORT, 2);
                self.host.ok(&mut self.lab, Call::SetFl(listener, NONBLOCK));
                self.listener = Some(listener);
                self.inject(self.isn, 0, SYN, 0);
                self.lab.run_for(Duration::from_micros(1));
                self.hear();
                if how > 1 {
                    self.inject(self.acked, self.sent, ACK, 0);
                    self.lab.run_for(Duration::from_micros(1));
                    self.accept();
                }
            }
        }
    }

    /// The program ends, and so does all else in its time.
    fn end(mut self) -> BTreeSet<&'static str> {
        self.lab.hosts[0].kernel.exit(self.host.task);
        self.lab.run_for(Duration::from_secs(1));
        self.hear();
        self.lab.hosts[0].kernel.tcp_audit().unwrap_or_else(|e| panic!("{e}"));
        for _ in 0..8 {
            self.lab.run_for(Duration::from_secs(150));
            self.hear();
        }
        assert_eq!(self.lab.hosts[0].kernel.sockets_info(), [], "all are gone after twenty minutes");
        // The last completions are reaped by the next poll: a frame for somebody else.
        let elsewhere = Path { src: ADDR_B, dst: ADDR_B, dst_mac: MacAddr([2; 6]) };
        self.lab.inject(0, Dir::Backward, elsewhere.udp(1, 1, b""));
        self.lab.run_for(Duration::from_millis(1));
        let left = self.lab.hosts[0].pool.in_use();
        assert!(left <= BUFFER, "{left} octets stay behind, more than the buffer of the next packet's data");
        self.seen
    }
}

#[test]
fn whatever_comes_in_whatever_state_the_books_balance() {
    let mut seen = BTreeSet::new();
    for seed in 0..240 {
        let walk = std::panic::catch_unwind(|| {
            let mut walk = Walk::new(seed);
            walk.begin(seed % 4);
            for _ in 0..STEPS {
                walk.step();
            }
            walk.end()
        });
        seen.extend(walk.unwrap_or_else(|_| panic!("in walk {seed}")));
    }
    let all = ["CLOSE-WAIT", "CLOSING", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "LAST-ACK", "SYN-RECV", "SYN-SENT", "TIME-WAIT"];
    assert!(all.iter().all(|s| seen.contains(s)), "only {seen:?}");
}
