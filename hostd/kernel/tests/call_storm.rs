//! Random system calls of several tasks on all sorts of files, sensible or not: nothing stops the kernel, TCP's books
//! balance after each, and in the end nothing is left.

mod common;

use common::dice::Dice;
use common::tasks::{NONBLOCK, Prog};
use common::{A, ADDR_A, ADDR_B, B, Lab, PortConfig};
use ringlab_kernel::syscall::signal::Owner;
use ringlab_kernel::syscall::{Call, EpollEvent, EpollOp, FdSet, LinkAddr, OptVal, PollFd, Shutdown, ioctl};
use ringlab_kernel::uaccess::{Iov, UserSlice};
use ringlab_kernel::wait::queue::PollEvents;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const STEPS: usize = 400;
const ROOM: u32 = 1 << 17;

/// Arguments.
impl Dice {
    fn int(&mut self) -> i32 {
        match self.below(3) {
            0 => self.of(&[0, 1, -1, 2, i32::MAX, i32::MIN, 65536, 255, 4096, 1 << 20]),
            1 => self.below(64) as i32,
            _ => self.below(u32::MAX) as i32,
        }
    }

    fn fd(&mut self) -> i32 {
        if self.below(40) == 0 { self.of(&[-1, 1 << 20, i32::MAX, i32::MIN]) } else { self.below(10) as i32 }
    }

    fn octets(&mut self, most: u32) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.of(&[0, 0, 0, 1, 2, 10, 127, 255])).collect()
    }

    fn time(&mut self) -> Option<Duration> {
        self.of(&[None, Some(0), Some(1), Some(300), Some(100_000)]).map(Duration::from_millis)
    }

    fn addr(&mut self) -> SocketAddr {
        let others = [
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(10, 0, 0, 255),
            Ipv4Addr::new(224, 0, 0, 251),
            Ipv4Addr::new(8, 8, 8, 8),
        ];
        let v4 = match self.below(4) {
            0 => self.of(&others),
            _ => self.of(&[Ipv4Addr::LOCALHOST, ADDR_A, ADDR_B]),
        };
        let ip = match self.below(6) {
            0 => self.of(&[IpAddr::V6(Ipv6Addr::UNSPECIFIED), Ipv6Addr::LOCALHOST.into(), v4.to_ipv6_mapped().into()]),
            _ => v4.into(),
        };
        (ip, self.of(&[80, 80, 80, 80, 7, 7, 0, 9, 65535])).into()
    }

    fn events(&mut self) -> PollEvents {
        PollEvents::from_bits_retain(self.of(&[1, 4, 5, 0, 0x2019, 1 | 1 << 31, 1 | 1 << 30, 1 | 1 << 28, u32::MAX]))
    }

    fn iov(&mut self, room: UserSlice) -> Iov {
        let len = match self.below(8) {
            0 => self.below(ROOM + 1),
            _ => self.of(&[0, 1, 8, 100, 1472, 1473, 9000]),
        };
        // Sometimes it ends beyond what the program has, or begins nowhere.
        let addr = if self.below(30) == 0 { self.of(&[0, room.addr + room.len - 10, u64::MAX - 5]) } else { room.addr };
        Iov::One(UserSlice { addr, len: len.into() })
    }

    fn option(&mut self, fd: i32) -> Call {
        let level = self.of(&[0, 1, 6, 17, 41, 255, 263, 270, 58]);
        let name = self.below(80) as i32;
        match self.below(6) {
            0 => Call::SetSockOpt(fd, level, name, OptVal::Int(self.int())),
            1 => Call::GetSockOpt(fd, level, name),
            2 => Call::GetSockOptRaw(fd, level, name, self.octets(300)),
            3 => Call::SetSockOpt(fd, 1, 13, OptVal::Linger(self.below(2) > 0, self.time().unwrap_or_default())),
            _ => Call::SetSockOptRaw(fd, level, name, self.octets(40)),
        }
    }

    fn command(&mut self, fd: i32) -> Call {
        let cmd = match self.below(3) {
            0 => self.of(&[0x541b, 0x5421, 0x5452, 0x5411, 0x8901, 0x8903, 0x8905, 0x8906, 0x890b, 0x890c, 0x8953, 0x8954, 0x8955]),
            _ => 0x8910 + self.below(0x60),
        };
        let Some(ioctl::Arg::Fixed(len)) = ioctl::arg(cmd) else { return Call::IfConf(fd, Some(self.below(200) as usize)) };
        let mut arg = self.octets(len as u32);
        arg.resize(len, 0);
        if self.below(2) == 0 && len == ioctl::IFREQ_LEN {
            arg[..5].copy_from_slice(b"eth0\0");
        }
        // The link stays up, with a usable MTU and address.
        if matches!(cmd, 0x8914 | 0x8916 | 0x891c | 0x8922 | 0x8924) { Call::Inq(fd) } else { Call::Ioctl(fd, cmd, arg) }
    }

    fn socket(&mut self) -> Call {
        let (family, kind, protocol) = match self.below(4) {
            0 => (self.of(&[2, 10, 17, 16, 1]), self.of(&[1, 2, 3, 5]), self.of(&[0, 1, 6, 17, 0x0300, 255])),
            _ => self.of(&[
                (2, 1, 0),
                (2, 1, 0),
                (2, 2, 0),
                (10, 1, 0),
                (10, 2, 17),
                (2, 3, 1),
                (2, 2, 1),
                (17, 3, 0x0300),
                (17, 2, 0x0008),
                (16, 3, 0),
            ]),
        };
        Call::Socket(family, kind | self.of(&[0, NONBLOCK, NONBLOCK]), protocol)
    }

    fn call(&mut self, room: UserSlice) -> Call {
        let fd = self.fd();
        let flags = self.of(&[0, 0, 0x40, 0x40, 2, 1, 0x20, 0x100, 0x8000, 0x2000, 0x4040, u32::MAX]);
        match self.below(40) {
            0..=2 => self.socket(),
            3 => Call::Connect(fd, Some(SocketAddr::from((self.of(&[Ipv4Addr::LOCALHOST, ADDR_A, ADDR_B]), 80)))),
            4 | 5 => Call::Bind(fd, self.addr()),
            6 | 7 => Call::Listen(fd, self.int()),
            8 | 9 => Call::Accept(fd, self.of(&[0, NONBLOCK])),
            10..=12 => Call::Connect(fd, if self.below(6) == 0 { None } else { Some(self.addr()) }),
            13..=17 => {
                let to = (self.below(2) == 0).then(|| self.addr());
                Call::Send { fd, iov: self.iov(room), flags, to, control: Vec::new() }
            }
            18..=22 => Call::Recv { fd, iov: self.iov(room), flags },
            23 => Call::Shutdown(fd, self.of(&[Shutdown::Rd, Shutdown::Wr, Shutdown::RdWr])),
            24 => Call::Close(fd),
            25 => Call::Accept(fd, NONBLOCK),
            26 => Call::Dup(fd, if self.below(2) == 0 { Ok(self.fd()) } else { Err(self.fd()) }),
            27 => Call::SetFl(fd, self.int()),
            28 => Call::SetOwn(fd, Owner::from_setown(self.of(&[0, 1, -1, i32::MIN]))),
            29 => self.command(fd),
            30..=32 => self.option(fd),
            33 => Call::EpollCreate(self.of(&[0, 0o2_000_000, 1])),
            34 | 35 => {
                let event = EpollEvent { events: self.events(), data: 7 };
                Call::EpollCtl(fd, self.fd(), self.of(&[EpollOp::Add(event), EpollOp::Add(event), EpollOp::Mod(event), EpollOp::Del]))
            }
            36 => Call::EpollWait(fd, self.of(&[1, 64, 0, usize::MAX]), self.time()),
            37 => {
                let asked = (0..self.below(6)).map(|_| PollFd { fd: self.fd(), events: self.events(), revents: PollEvents::empty() });
                Call::Poll(asked.collect(), self.time())
            }
            38 => {
                let sets = [(); 3].map(|()| FdSet([u64::from(self.below(1 << 14)); 16]));
                Call::Select(self.of(&[0, 5, 14, 64, 1024, -1]), Box::new(sets), self.time())
            }
            _ => match self.below(4) {
                0 => Call::GetSockName(fd),
                1 => Call::GetPeerName(fd),
                2 => Call::BindLink(fd, LinkAddr { protocol: self.of(&[0, 3, 0x800]), ifindex: self.below(4), ..LinkAddr::default() }),
                _ => Call::SetSig(fd, self.int()),
            },
        }
    }
}

fn walk(seed: u64) {
    let mut dice = Dice(seed << 20 | 0xca11);
    let mut lab = Lab::pair_with(seed, common::HostConfig { pool: 16 << 20, ..common::HostConfig::default() }, PortConfig::default());
    let (a, b) = (Prog::spawn(&mut lab, A, "a"), Prog::spawn(&mut lab, B, "b"));
    for p in [a, b] {
        let l = p.listener(&mut lab, 80, 4);
        let u = p.udp(&mut lab, 7);
        let ep = p.epoll(&mut lab);
        p.epoll_add(&mut lab, ep, l, PollEvents::IN);
        p.epoll_add(&mut lab, ep, u, PollEvents::IN);
    }
    for _ in 0..3 {
        a.connect(&mut lab, ADDR_B, 80);
        b.accept(&mut lab, 0);
    }
    let mut tasks = Vec::new();
    for first in [a, b] {
        let child = lab.hosts[first.host].kernel.fork(first.task, "child", None);
        tasks.extend([first, first.thread(&mut lab), Prog { task: child, ..first }]);
    }
    let rooms = [A, B].map(|host| tasks[3 * host].buffer(&lab, ROOM as usize));
    let mut busy = vec![false; tasks.len()];
    for _ in 0..STEPS {
        let at = dice.below(tasks.len() as u32) as usize;
        let p = tasks[at];
        if busy[at] && p.poll(&mut lab).is_none() {
            // It sleeps: sometimes a signal wakes it, sometimes time.
            if dice.below(4) > 0 {
                continue;
            }
            p.signal(&mut lab);
            assert!(p.poll(&mut lab).is_some(), "a signal ends any call");
        }
        let call = dice.call(rooms[p.host]);
        p.start(&mut lab, call);
        busy[at] = p.poll(&mut lab).is_none();
        if dice.below(3) == 0 {
            let us = dice.of(&[1, 100, 1000, 50_000, 1_000_000]);
            lab.run_for(Duration::from_micros(us));
        }
        for host in &lab.hosts {
            host.kernel.tcp_audit().unwrap_or_else(|e| panic!("{e}"));
        }
    }
    for p in tasks {
        lab.hosts[p.host].kernel.exit(p.task);
    }
    lab.run_for(Duration::from_secs(1200));
    for host in &lab.hosts {
        assert_eq!((host.kernel.sockets_info(), host.kernel.tasks_info()), (vec![], vec![]));
        host.kernel.tcp_audit().unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn whatever_programs_call_the_kernel_goes_on() {
    for seed in 0..60 {
        let done = std::panic::catch_unwind(|| walk(seed));
        assert!(done.is_ok(), "in walk {seed}");
    }
}
