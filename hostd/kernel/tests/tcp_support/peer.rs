//! A peer of one host that the test plays itself, segment by segment.

use crate::common::tasks::{NONBLOCK, Prog, STREAM};
use crate::common::{ADDR_A, ADDR_B, Dir, Frame, HostConfig, Lab, TEST_MAC, mac};
use crate::tcp_support::{mib, plain_nic};
use etherparse::PacketBuilder;
use ringlab_counters::Mib;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret};
use std::time::Duration;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The host's port in a passive open.
pub const PORT: u16 = 80;

/// The host, and where the peer stands in its conversation.
pub struct Peer {
    pub lab: Lab,
    pub host: Prog,
    /// The peer's port, and the host's.
    pub sport: u16,
    pub dport: u16,
    /// Next number that the peer sends; next that it expects.
    pub snd: u32,
    pub rcv: u32,
}

impl Peer {
    pub fn new(seed: u64) -> Self {
        let mut lab = Lab::new(seed);
        lab.add_host(HostConfig::default());
        lab.stub(0, ADDR_A, 24, plain_nic());
        let host = Prog::spawn(&mut lab, 0, "host");
        Self { lab, host, sport: 1000, dport: PORT, snd: 50_000, rcv: 0 }
    }

    pub fn listener(&mut self, backlog: i32) -> i32 {
        self.host.listener(&mut self.lab, PORT, backlog)
    }

    /// A segment as the peer would send it.
    pub fn segment(&self, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Frame {
        let b = PacketBuilder::ethernet2(TEST_MAC.0, mac(0, 0).0).ipv4(ADDR_B.octets(), ADDR_A.octets(), 64);
        let mut b = b.tcp(self.sport, self.dport, seq, 60_000);
        if flags & FIN != 0 {
            b = b.fin();
        }
        if flags & SYN != 0 {
            b = b.syn();
        }
        if flags & RST != 0 {
            b = b.rst();
        }
        if flags & ACK != 0 {
            b = b.ack(ack);
        }
        let mut bytes = Vec::new();
        b.write(&mut bytes, payload).expect("memory");
        bytes.into()
    }

    /// Sends a segment, whatever its number; the segments that the host sends within a millisecond.
    pub fn push(&mut self, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<Frame> {
        let frame = self.segment(seq, ack, flags, payload);
        self.lab.inject(0, Dir::Backward, frame);
        self.heard()
    }

    /// Sends the next segment in order; what the host sends then.
    pub fn send(&mut self, flags: u8, payload: &[u8]) -> Vec<Frame> {
        let seq = self.snd;
        self.snd = seq.wrapping_add(payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0));
        self.push(seq, self.rcv, flags, payload)
    }

    /// What the host has sent, and sends within a millisecond.
    pub fn heard(&mut self) -> Vec<Frame> {
        self.lab.run_for(Duration::from_millis(1));
        self.lab.answer_arp(0);
        let heard: Vec<Frame> = self.lab.received.drain(..).map(|r| r.1).filter(Frame::is_tcp).collect();
        for f in &heard {
            let end = f.seq().wrapping_add(f.payload().len() as u32 + u32::from(f.flags() & (SYN | FIN) != 0));
            if f.flags() & RST == 0 && end.wrapping_sub(self.rcv) as i32 > 0 {
                self.rcv = end;
            }
        }
        heard
    }

    /// SYN; the host's SYN-ACK.
    pub fn syn(&mut self) -> Frame {
        let seq = self.snd;
        self.snd = seq.wrapping_add(1);
        self.rcv = 0;
        let answer = self.push(seq, 0, SYN, &[]);
        assert_eq!(answer.len(), 1, "a SYN-ACK");
        assert!(answer[0].is_syn_ack());
        self.rcv = answer[0].seq().wrapping_add(1);
        answer[0].clone()
    }

    /// A connection to the host's listener.
    pub fn connect(&mut self, listener: i32) -> i32 {
        self.syn();
        self.send(ACK, &[]);
        self.host.accept(&mut self.lab, listener)
    }

    /// The host begins to connect: its descriptor; its SYN is heard.
    pub fn connecting(&mut self) -> i32 {
        let fd = self.host.ok(&mut self.lab, Call::Socket(2, STREAM | NONBLOCK, 0)) as i32;
        let to = Some((ADDR_B, self.sport).into());
        assert_eq!(self.host.err(&mut self.lab, Call::Connect(fd, to)), Errno::EINPROGRESS);
        let syn = self.heard().pop().expect("a SYN");
        assert!(syn.is_syn());
        self.dport = syn.sport();
        self.rcv = syn.seq().wrapping_add(1);
        fd
    }

    /// State of the host's socket of this connection; `None`: it has none.
    pub fn state(&self) -> Option<&'static str> {
        let all = self.lab.hosts[0].kernel.sockets_info();
        all.iter().find(|s| s.peer.port() == self.sport && s.local.port() == self.dport).map(|s| s.state)
    }

    pub fn mib(&self, counter: Mib) -> u64 {
        mib(&self.lab, 0, counter)
    }

    pub fn read(&mut self, fd: i32) -> Result<Vec<u8>, Errno> {
        let buffer = self.host.buffer(&self.lab, 100);
        let ret = self.host.now(&mut self.lab, Prog::recv_call(fd, buffer, 0));
        match ret {
            Ret::Err(e) => Err(e),
            ret => Ok(self.host.datagram(&self.lab, buffer, ret).data),
        }
    }

    pub fn write(&mut self, fd: i32) -> Ret {
        self.host.send(&mut self.lab, fd, b"x")
    }

    pub fn close(&mut self, fd: i32) -> Vec<Frame> {
        self.host.ok(&mut self.lab, Call::Close(fd));
        self.heard()
    }
}
