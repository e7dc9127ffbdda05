//! Requests as programs send them, and what comes back taken apart.
#![allow(dead_code, reason = "each test file uses a part")]

use super::common::Lab;
use super::common::tasks::Prog;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Fd, NetlinkAddr, OptVal, Ret, msg};
use ringlab_kernel::uaccess::Iov;

pub const AF_NETLINK: i32 = 16;
pub const RAW: i32 = 3;
pub const ROUTE: i32 = 0;
pub const SOCK_DIAG: i32 = 4;
pub const GENERIC: i32 = 16;
pub const SOL_NETLINK: i32 = 270;
pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const DUMP: u16 = 0x300;
pub const EXCL: u16 = 0x200;
pub const REPLACE: u16 = 0x100;
pub const CREATE: u16 = 0x400;
pub const DONE: u16 = 3;
pub const ERROR: u16 = 2;
pub const NEWADDR: u16 = 20;
pub const DELADDR: u16 = 21;
pub const NEWROUTE: u16 = 24;
pub const DELROUTE: u16 = 25;
pub const GETROUTE: u16 = 26;
pub const NEWNEIGH: u16 = 28;
pub const DELNEIGH: u16 = 29;
pub const GETNEIGH: u16 = 30;
pub const RTMSG: usize = 12;
pub const NDMSG: usize = 12;

/// A message that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msg {
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub pid: u32,
    pub body: Vec<u8>,
}

impl Msg {
    /// An attribute behind a header of `head` octets.
    pub fn attr(&self, head: usize, kind: u16) -> Option<Vec<u8>> {
        attr(&self.body[head..], kind)
    }

    pub fn u32(&self, head: usize, kind: u16) -> Option<u32> {
        self.attr(head, kind).map(|b| u32::from_ne_bytes(b.try_into().expect("four octets")))
    }

    pub fn text(&self, head: usize, kind: u16) -> Option<String> {
        self.attr(head, kind).map(|b| String::from_utf8(b).expect("text").trim_end_matches('\0').to_string())
    }

    /// The number of an `NLMSG_ERROR`: 0 or an errno.
    pub fn error(&self) -> Option<Errno> {
        assert_eq!(self.kind, ERROR, "{self:?}");
        let n = i32::from_ne_bytes(self.body[..4].try_into().expect("four octets"));
        (n != 0).then(|| Errno::from_raw(-n).expect("a known number"))
    }
}

pub fn attr(mut b: &[u8], kind: u16) -> Option<Vec<u8>> {
    while b.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([b[0], b[1]]));
        if u16::from_ne_bytes([b[2], b[3]]) & 0x3fff == kind {
            return Some(b[4..len].to_vec());
        }
        b = &b[len.next_multiple_of(4).min(b.len())..];
    }
    None
}

/// A request being made.
pub fn request(kind: u16, flags: u16, head: &[u8], attrs: &[(u16, &[u8])]) -> Vec<u8> {
    let mut b = vec![0; 4];
    b.extend(kind.to_ne_bytes());
    b.extend((flags | REQUEST).to_ne_bytes());
    b.extend(7u32.to_ne_bytes());
    b.extend(0u32.to_ne_bytes());
    b.extend(head);
    b.resize(b.len().next_multiple_of(4), 0);
    for (kind, data) in attrs {
        b.extend((data.len() as u16 + 4).to_ne_bytes());
        b.extend(kind.to_ne_bytes());
        b.extend(*data);
        b.resize(b.len().next_multiple_of(4), 0);
    }
    let len = b.len() as u32;
    b[..4].copy_from_slice(&len.to_ne_bytes());
    b
}

pub fn split(mut b: &[u8]) -> Vec<Msg> {
    let mut out = Vec::new();
    while b.len() >= 16 {
        let word = |at: usize| u32::from_ne_bytes(b[at..at + 4].try_into().expect("four octets"));
        let half = |at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
        let len = word(0) as usize;
        out.push(Msg { kind: half(4), flags: half(6), seq: word(8), pid: word(12), body: b[16..len].to_vec() });
        b = &b[len.next_multiple_of(4).min(b.len())..];
    }
    out
}

/// A socket.
#[derive(Debug, Clone, Copy)]
pub struct Nl {
    pub prog: Prog,
    pub fd: Fd,
}

impl Nl {
    /// As libnetlink opens one.
    pub fn open(lab: &mut Lab, prog: Prog, protocol: i32) -> Self {
        let fd = prog.ok(lab, Call::Socket(AF_NETLINK, RAW, protocol)) as Fd;
        prog.ok(lab, Call::SetSockOpt(fd, SOL_NETLINK, 11, OptVal::Int(1)));
        prog.ok(lab, Call::BindNetlink(fd, NetlinkAddr::default()));
        Self { prog, fd }
    }

    pub fn strict(self, lab: &mut Lab) -> Self {
        self.prog.ok(lab, Call::SetSockOpt(self.fd, SOL_NETLINK, 12, OptVal::Int(1)));
        self
    }

    pub fn send(self, lab: &mut Lab, data: &[u8]) {
        let iov = lab.hosts[self.prog.host].mem.iov(data);
        let sent = self.prog.ok(lab, Call::SendNetlink { fd: self.fd, iov, flags: 0, to: NetlinkAddr::default() });
        assert_eq!(sent, data.len() as i64);
    }

    /// The next datagram, read as libnetlink does: its length first.
    pub fn recv(self, lab: &mut Lab) -> Option<Vec<u8>> {
        let peek = Call::Recv { fd: self.fd, iov: Iov::Many(Vec::new()), flags: msg::PEEK | msg::TRUNC | msg::DONTWAIT };
        let len = match self.prog.now(lab, peek) {
            Ret::ReceivedNetlink { len, flags, .. } => {
                assert_eq!(flags & msg::TRUNC, msg::TRUNC);
                len
            }
            Ret::Err(Errno::EAGAIN) => return None,
            other => panic!("{other:?}"),
        };
        let buf = lab.hosts[self.prog.host].mem.alloc(len.max(32768));
        match self.prog.now(lab, Call::Recv { fd: self.fd, iov: Iov::One(buf), flags: 0 }) {
            Ret::ReceivedNetlink { len: got, from, flags: 0, .. } => {
                assert_eq!((got, from.pid), (len, 0));
                Some(lab.hosts[self.prog.host].mem.get(buf, got))
            }
            other => panic!("{other:?}"),
        }
    }

    /// All messages that are there.
    pub fn drain(self, lab: &mut Lab) -> Vec<Msg> {
        let mut out = Vec::new();
        while let Some(datagram) = self.recv(lab) {
            out.extend(split(&datagram));
        }
        out
    }

    /// A dump: its messages without the end.
    pub fn dump(self, lab: &mut Lab, kind: u16, head: &[u8], attrs: &[(u16, &[u8])]) -> Vec<Msg> {
        self.send(lab, &request(kind, DUMP, head, attrs));
        let mut all = self.drain(lab);
        let done = all.pop().expect("an end");
        assert_eq!((done.kind, done.seq, &done.body[..]), (DONE, 7, &[0; 4][..]), "{done:?}");
        assert!(all.iter().all(|m| m.flags & 2 != 0 && m.seq == 7));
        all
    }

    /// A request with an acknowledgement: what it says.
    pub fn ack(self, lab: &mut Lab, kind: u16, flags: u16, head: &[u8], attrs: &[(u16, &[u8])]) -> Result<(), Errno> {
        self.send(lab, &request(kind, flags | ACK, head, attrs));
        let all = self.drain(lab);
        let ack = all.last().expect("an acknowledgement");
        ack.error().map_or(Ok(()), Err)
    }
}
