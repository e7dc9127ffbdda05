//! The receiving side of `stream`: a task a connection, one for all datagrams.

use super::crc64::Crc64;
use super::httpd::{PAUSE, listen};
use super::stream_wire::{DATAGRAM_HEADER, GO, HELLO, Hello, Pattern};
use super::sys::Sys;
use super::{Failure, Try};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Fd, msg};
use ringlab_kernel::time::Instant;
use ringlab_kernel::uaccess::UserSlice;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

const RX: usize = 256 << 10;
/// How long the server waits for stragglers after the last datagram.
const STRAGGLE: Duration = Duration::from_millis(300);
const STRAGGLE_LOOK: Duration = Duration::from_millis(10);
/// `SO_RCVBUF` of the datagram socket.
const UDP_RCVBUF: i32 = 4 << 20;

type Flows = Rc<RefCell<HashMap<u64, Flow>>>;

/// Datagrams of one client.
struct Flow {
    pattern: Option<u64>,
    datagrams: u64,
    octets: u64,
    corrupted: u64,
    out_of_order: u64,
    next: u64,
    first: Instant,
    last: Instant,
}

/// Serves until a signal.
///
/// # Errors
/// If a port is taken.
pub async fn serve(sys: Sys, port: u16) -> Result<i32, Failure> {
    let listener = listen(&sys, port).await?;
    sys.set_flags(listener, 0).await.or_fail(|| "fcntl".to_owned())?;
    let flows = Flows::default();
    let udp = sys.socket(libc::AF_INET, libc::SOCK_DGRAM, 0).await.or_fail(|| "socket".to_owned())?;
    sys.set_opt(udp, libc::SOL_SOCKET, libc::SO_RCVBUF, UDP_RCVBUF).await.or_fail(|| "SO_RCVBUF".to_owned())?;
    sys.bind(udp, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await.or_fail(|| format!("bind to UDP port {port}"))?;
    sys.spawn("stream-udp", {
        let flows = flows.clone();
        move |sys| async move {
            // Ends with the program.
            let _ = receive_datagrams(&sys, udp, &flows).await;
        }
    });
    loop {
        match sys.accept(listener, 0).await {
            Ok((fd, _)) => {
                let flows = flows.clone();
                sys.spawn("stream-tcp", move |sys| async move {
                    // A connection that breaks ends; the next one is served.
                    let _ = connection(&sys, fd, &flows).await;
                    let _ = sys.close(fd).await;
                });
            }
            Err(Errno::ECONNABORTED) => {}
            // Who connects waits until another one has gone.
            Err(Errno::EMFILE | Errno::ENFILE) => sys.sleep(PAUSE).await.or_fail(|| "nanosleep".to_owned())?,
            Err(errno) => return Err(errno).or_fail(|| "accept".to_owned()),
        }
    }
}

async fn connection(sys: &Sys, fd: Fd, flows: &Flows) -> Result<(), Errno> {
    let rx = sys.alloc(RX);
    let mut start = Vec::new();
    while start.len() < HELLO && Hello::may_start(&start) {
        // Not beyond the greeting: what follows is payload, or another message.
        let n = sys.recv(fd, UserSlice { len: (HELLO - start.len()) as u64, ..rx }, 0).await?;
        if n == 0 {
            break;
        }
        sys.with(UserSlice { len: n as u64, ..rx }, |b| start.extend_from_slice(b));
    }
    let hello = start.first_chunk::<HELLO>().and_then(Hello::parse);
    let result = match hello {
        Some(hello) if hello.udp => control(sys, fd, rx, hello, flows).await?,
        Some(hello) => sink(sys, fd, rx, 0, hello.verify).await?,
        None => sink(sys, fd, rx, start.len() as u64, false).await?,
    };
    answer(sys, fd, &format!("{result}\n")).await
}

/// Receives until the end of the stream.
async fn sink(sys: &Sys, fd: Fd, rx: UserSlice, before: u64, verify: bool) -> Result<Value, Errno> {
    let began = sys.now();
    let (mut octets, mut crc) = (before, Crc64::default());
    loop {
        let n = sys.recv(fd, rx, 0).await?;
        if n == 0 {
            break;
        }
        octets += n as u64;
        if verify {
            sys.with(UserSlice { len: n as u64, ..rx }, |b| crc.add(b));
        }
    }
    let seconds = sys.now().since(began).as_secs_f64();
    let crc = verify.then(|| format!("{:016x}", crc.value()));
    Ok(json!({"bytes": octets, "seconds": seconds, "crc64": crc}))
}

/// The control connection of a UDP run.
async fn control(sys: &Sys, fd: Fd, rx: UserSlice, hello: Hello, flows: &Flows) -> Result<Value, Errno> {
    let now = sys.now();
    let flow = Flow {
        pattern: hello.verify.then_some(hello.seed),
        datagrams: 0,
        octets: 0,
        corrupted: 0,
        out_of_order: 0,
        next: 0,
        first: now,
        last: now,
    };
    flows.borrow_mut().insert(hello.cookie, flow);
    let result = control_flow(sys, fd, rx, hello.cookie, flows).await;
    let flow = flows.borrow_mut().remove(&hello.cookie);
    result?;
    let flow = flow.ok_or(Errno::EIO)?;
    Ok(json!({
        "bytes": flow.octets, "seconds": flow.last.since(flow.first).as_secs_f64(), "datagrams": flow.datagrams,
        "corrupted": flow.corrupted, "out_of_order": flow.out_of_order,
    }))
}

async fn control_flow(sys: &Sys, fd: Fd, rx: UserSlice, cookie: u64, flows: &Flows) -> Result<(), Errno> {
    answer(sys, fd, std::str::from_utf8(&[GO]).unwrap_or_default()).await?;
    let mut count = Vec::new();
    while count.len() < 8 {
        let n = sys.recv(fd, UserSlice { len: 8 - count.len() as u64, ..rx }, 0).await?;
        if n == 0 {
            return Err(Errno::ECONNRESET);
        }
        sys.with(UserSlice { len: n as u64, ..rx }, |b| count.extend_from_slice(b));
    }
    let sent = count.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b));
    let asked = sys.now();
    loop {
        let state = flows.borrow().get(&cookie).map(|f| (f.datagrams, f.last));
        let Some((datagrams, last)) = state else { return Err(Errno::EIO) };
        if datagrams >= sent || sys.now().since(last.max(asked)) >= STRAGGLE {
            return Ok(());
        }
        sys.sleep(STRAGGLE_LOOK).await?;
    }
}

async fn answer(sys: &Sys, fd: Fd, text: &str) -> Result<(), Errno> {
    let tx = sys.alloc(text.len());
    sys.with_mut(tx, |b| b.copy_from_slice(text.as_bytes()));
    sys.send_all(fd, tx, msg::NOSIGNAL).await
}

async fn receive_datagrams(sys: &Sys, fd: Fd, flows: &Flows) -> Result<(), Errno> {
    let rx = sys.alloc(65536);
    let mut expected = Vec::new();
    loop {
        let n = match sys.recv(fd, rx, 0).await {
            Ok(n) => n,
            Err(Errno::EINTR) => return Err(Errno::EINTR),
            // An ICMP error of an earlier answer: the next datagram comes all the same.
            Err(_) => continue,
        };
        let now = sys.now();
        sys.with(UserSlice { len: n as u64, ..rx }, |b| {
            let Some((cookie, rest)) = b.split_first_chunk::<8>() else { return };
            let Some((number, payload)) = rest.split_first_chunk::<8>() else { return };
            let (cookie, number) = (u64::from_be_bytes(*cookie), u64::from_be_bytes(*number));
            if let Some(flow) = flows.borrow_mut().get_mut(&cookie) {
                flow.take(number, payload, now, &mut expected);
            }
        });
    }
}

impl Flow {
    fn take(&mut self, number: u64, payload: &[u8], now: Instant, expected: &mut Vec<u8>) {
        if self.datagrams == 0 {
            self.first = now;
        }
        self.last = now;
        self.datagrams += 1;
        self.octets += (payload.len() + DATAGRAM_HEADER) as u64;
        if number < self.next {
            self.out_of_order += 1;
        } else {
            self.next = number + 1;
        }
        if let Some(seed) = self.pattern {
            expected.resize(payload.len(), 0);
            Pattern::new(seed ^ number).fill(expected);
            self.corrupted += u64::from(expected.as_slice() != payload);
        }
    }
}
