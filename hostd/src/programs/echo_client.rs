//! The client of `echo`: many connections at once, everything that comes back compared.

use super::echo::Args;
use super::fetch::connect;
use super::sys::Sys;
use super::{Failure, Try};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{EpollEvent, EpollOp, Fd, msg};
use ringlab_kernel::uaccess::UserSlice;
use ringlab_kernel::wait::queue::PollEvents;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};

const BUFFER: u64 = 64 << 10;

/// Runs it. Exit code 1 if a connection failed or an octet came back changed.
///
/// # Errors
/// If the name is unknown, or a call fails that concerns more than one connection.
pub async fn main(sys: Sys, args: &Args, node: &str) -> Result<i32, Failure> {
    let addr = sys.resolve(node).ok_or_else(|| Failure::Other(format!("{node}: Name or service not known")))?;
    if args.stdin {
        return relay(&sys, addr, args.port).await;
    }
    let began = sys.now();
    let mut client = Client::open(sys.clone(), args, addr).await?;
    while client.unfinished > 0 {
        client.turn().await?;
    }
    client.close().await?;
    let seconds = sys.now().since(began).as_secs_f64();
    let c = &client;
    let text = if args.json {
        let value = json!({
            "connections": c.established, "messages": c.messages, "octets": c.octets, "errors": c.errors,
            "first_error": c.first_error.map(Errno::name), "seconds": seconds,
        });
        format!("{value}\n")
    } else {
        let why = c.first_error.map_or(String::new(), |e| format!(" (the first: {e})"));
        format!(
            "{} connections, {} messages, {} octets came back, {} errors{why}, {seconds:.3} s\n",
            c.established, c.messages, c.octets, c.errors
        )
    };
    sys.process().print(text).await.map_err(|_| Failure::Interrupted)?;
    Ok(i32::from(c.errors > 0))
}

/// Sends standard input, and prints what comes back.
async fn relay(sys: &Sys, addr: Ipv4Addr, port: u16) -> Result<i32, Failure> {
    let fd = connect(sys, addr, port).await?;
    let buffer = sys.alloc(BUFFER as usize);
    while let Some(piece) = sys.process().read_stdin().await.or_fail(|| "read".to_owned())? {
        for part in piece.chunks(BUFFER as usize) {
            let data = UserSlice { len: part.len() as u64, ..buffer };
            sys.with_mut(data, |b| b.copy_from_slice(part));
            sys.send_all(fd, data, msg::NOSIGNAL).await.or_fail(|| "send".to_owned())?;
            let n = sys.recv(fd, data, msg::WAITALL).await.or_fail(|| "recv".to_owned())?;
            if n < part.len() {
                return Err(Failure::Other("the server closed the connection".to_owned()));
            }
            let back = sys.with(data, <[u8]>::to_vec);
            sys.process().print(back).await.map_err(|_| Failure::Interrupted)?;
        }
    }
    sys.close(fd).await.or_fail(|| "close".to_owned())?;
    Ok(0)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Talking,
    Done,
}

struct Conn {
    fd: Fd,
    state: State,
    round: u32,
    sent: u32,
    received: u32,
}

struct Client {
    sys: Sys,
    epoll: Fd,
    buffer: UserSlice,
    count: u32,
    len: u32,
    conns: Vec<Conn>,
    unfinished: usize,
    established: u64,
    messages: u64,
    octets: u64,
    errors: u64,
    first_error: Option<Errno>,
}

impl Client {
    async fn open(sys: Sys, args: &Args, addr: Ipv4Addr) -> Result<Self, Failure> {
        let epoll = sys.epoll_create().await.or_fail(|| "epoll_create".to_owned())?;
        let buffer = sys.alloc(BUFFER as usize);
        let mut client = Self {
            sys,
            epoll,
            buffer,
            count: args.count,
            len: args.len,
            conns: Vec::new(),
            unfinished: 0,
            established: 0,
            messages: 0,
            octets: 0,
            errors: 0,
            first_error: None,
        };
        for _ in 0..args.connections {
            client.connect(SocketAddr::from((addr, args.port))).await?;
        }
        Ok(client)
    }

    async fn connect(&mut self, to: SocketAddr) -> Result<(), Failure> {
        let fd = self.sys.socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).await.or_fail(|| "socket".to_owned())?;
        let index = self.conns.len();
        self.conns.push(Conn { fd, state: State::Connecting, round: 0, sent: 0, received: 0 });
        self.unfinished += 1;
        match self.sys.connect(fd, to).await {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(Errno::EINTR) => return Err(Failure::Interrupted),
            Err(errno) => {
                self.fail(index, errno);
                return Ok(());
            }
        }
        let events = PollEvents::IN | PollEvents::OUT | PollEvents::RDHUP | PollEvents::ET;
        let event = EpollEvent { events, data: index as u64 };
        self.sys.epoll_ctl(self.epoll, fd, EpollOp::Add(event)).await.or_fail(|| "epoll_ctl".to_owned())
    }

    async fn turn(&mut self) -> Result<(), Failure> {
        for event in self.sys.epoll_wait(self.epoll, 256, None).await.or_fail(|| "epoll_wait".to_owned())? {
            let index = event.data as usize;
            match self.advance(index).await {
                Ok(()) => {}
                Err(Errno::EINTR) => return Err(Failure::Interrupted),
                Err(errno) => self.fail(index, errno),
            }
        }
        Ok(())
    }

    /// Goes on with a connection as far as it gets.
    async fn advance(&mut self, index: usize) -> Result<(), Errno> {
        if self.conns[index].state == State::Connecting {
            match self.sys.socket_error(self.conns[index].fd).await? {
                Some(errno) => return Err(errno),
                None if !self.is_connected(index).await? => return Ok(()),
                None => {}
            }
            self.established += 1;
            self.conns[index].state = State::Talking;
        }
        while self.conns[index].state == State::Talking {
            if self.conns[index].round == self.count {
                self.conns[index].state = State::Done;
                self.unfinished -= 1;
                break;
            }
            let sent = self.send_some(index).await?;
            let received = self.receive_some(index).await?;
            if !sent && !received {
                break;
            }
        }
        Ok(())
    }

    async fn is_connected(&self, index: usize) -> Result<bool, Errno> {
        match self.sys.peer_addr(self.conns[index].fd).await {
            Ok(_) => Ok(true),
            Err(Errno::ENOTCONN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Sends what is left of the message. True if something went.
    async fn send_some(&mut self, index: usize) -> Result<bool, Errno> {
        let conn = &mut self.conns[index];
        let data = UserSlice { len: u64::from(self.len - conn.sent).min(BUFFER), ..self.buffer };
        if data.len == 0 {
            return Ok(false);
        }
        let (round, at) = (conn.round, conn.sent);
        self.sys.with_mut(data, |b| b.iter_mut().zip(at..).for_each(|(octet, i)| *octet = expected(index, round, i)));
        match self.sys.send(conn.fd, data, msg::NOSIGNAL, None).await {
            Ok(n) => {
                conn.sent += n as u32;
                Ok(true)
            }
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Receives and compares. True if something came.
    async fn receive_some(&mut self, index: usize) -> Result<bool, Errno> {
        let conn = &mut self.conns[index];
        let room = UserSlice { len: u64::from(conn.sent - conn.received).min(BUFFER), ..self.buffer };
        if room.len == 0 {
            return Ok(false);
        }
        let n = match self.sys.recv(conn.fd, room, 0).await {
            Ok(0) => return Err(Errno::ECONNRESET),
            Ok(n) => n,
            Err(Errno::EAGAIN) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        let (round, at) = (conn.round, conn.received);
        let same = self
            .sys
            .with(UserSlice { len: n as u64, ..room }, |b| b.iter().zip(at..).all(|(&octet, i)| octet == expected(index, round, i)));
        if !same {
            return Err(Errno::EIO);
        }
        conn.received += n as u32;
        self.octets += n as u64;
        if conn.received == self.len {
            self.messages += 1;
            *conn = Conn { fd: conn.fd, state: conn.state, round: round + 1, sent: 0, received: 0 };
        }
        Ok(true)
    }

    fn fail(&mut self, index: usize, errno: Errno) {
        if self.conns[index].state != State::Done {
            self.conns[index].state = State::Done;
            self.unfinished -= 1;
            self.errors += 1;
            self.first_error.get_or_insert(errno);
        }
    }

    async fn close(&self) -> Result<(), Failure> {
        for conn in &self.conns {
            self.sys.close(conn.fd).await.or_fail(|| "close".to_owned())?;
        }
        Ok(())
    }
}

/// The octet at a place of a message: other connections and rounds have others there.
fn expected(conn: usize, round: u32, at: u32) -> u8 {
    (conn as u32).wrapping_mul(31).wrapping_add(round.wrapping_mul(7)).wrapping_add(at) as u8
}
