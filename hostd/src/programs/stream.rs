//! `stream`: bulk data over TCP or UDP, with a result that can be compared.

use super::crc64::Crc64;
use super::fetch::connect;
use super::sleep::seconds;
use super::stream_server::serve;
use super::stream_wire::{DATAGRAM_HEADER, HELLO, Hello, PORT, Pattern};
use super::sys::Sys;
use super::{Failure, Try};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Fd, Shutdown, msg};
use ringlab_kernel::time::Instant;
use ringlab_kernel::uaccess::UserSlice;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const DEFAULT_TIME: Duration = Duration::from_secs(10);
const TCP_LEN: u32 = 128 << 10;
const UDP_LEN: u32 = 1448;
const MAX_UDP: u32 = 65507;

/// Measures bulk transfer between two hosts.
#[derive(Debug, clap::Parser)]
#[command(name = "stream")]
#[command(group(clap::ArgGroup::new("side").required(true).args(["server", "client"])))]
pub struct Args {
    /// Receive, TCP and UDP, until interrupted.
    #[arg(short, long)]
    server: bool,
    /// Send to a node.
    #[arg(short, long, value_name = "NODE")]
    client: Option<String>,
    /// Port.
    #[arg(short, long, default_value_t = PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Seconds to send [default: 10].
    #[arg(short, value_parser = seconds, conflicts_with = "octets")]
    time: Option<Duration>,
    /// Octets to send.
    #[arg(short = 'n', value_name = "OCTETS")]
    octets: Option<u64>,
    /// Datagrams instead of a stream.
    #[arg(short, long)]
    udp: bool,
    /// Octets of a `send` [default: 131072; with -u 1448].
    #[arg(short, value_parser = clap::value_parser!(u32).range(1..=(16 << 20)))]
    len: Option<u32>,
    /// Datagrams: bits per second, 0 for as many as go.
    #[arg(short, long, default_value_t = 0)]
    bandwidth: u64,
    /// Send a generated pattern and compare what arrived.
    #[arg(long)]
    verify: bool,
    /// Seed of the pattern.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it. Exit code 1 if what arrived is not what was sent.
///
/// # Errors
/// If a call fails or the peer does not answer.
pub async fn main(sys: Sys, args: Args) -> Result<i32, Failure> {
    let Some(name) = &args.client else { return serve(sys, args.port).await };
    let addr = sys.resolve(name).ok_or_else(|| Failure::Other(format!("{name}: Name or service not known")))?;
    let result = if args.udp { send_datagrams(&sys, &args, addr).await? } else { send_stream(&sys, &args, addr).await? };
    let text = if args.json { format!("{result}\n") } else { describe(&result) };
    sys.process().print(text).await.map_err(|_| Failure::Interrupted)?;
    Ok(i32::from(args.verify && result["verified"] != true))
}

/// When to stop sending.
struct Limit {
    octets: u64,
    until: Option<Instant>,
}

impl Limit {
    fn new(sys: &Sys, args: &Args) -> Self {
        let until = args.octets.is_none().then(|| sys.now() + args.time.unwrap_or(DEFAULT_TIME));
        Self { octets: args.octets.unwrap_or(u64::MAX), until }
    }

    fn reached(&self, sys: &Sys, sent: u64) -> bool {
        sent >= self.octets || self.until.is_some_and(|at| sys.now() >= at)
    }
}

async fn send_stream(sys: &Sys, args: &Args, addr: Ipv4Addr) -> Result<Value, Failure> {
    let fd = connect(sys, addr, args.port).await?;
    greet(sys, fd, Hello { udp: false, verify: args.verify, seed: args.seed, cookie: 0 }).await?;
    let tx = sys.alloc(args.len.unwrap_or(TCP_LEN) as usize);
    let (mut pattern, mut crc) = (Pattern::new(args.seed), Crc64::default());
    sys.with_mut(tx, |b| pattern.clone().fill(b));
    let began = sys.now();
    let limit = Limit::new(sys, args);
    let mut sent = 0;
    while !limit.reached(sys, sent) {
        let piece = UserSlice { len: tx.len.min(limit.octets - sent), ..tx };
        if args.verify {
            sys.with_mut(piece, |b| {
                pattern.fill(b);
                crc.add(b);
            });
        }
        sys.send_all(fd, piece, msg::NOSIGNAL).await.or_fail(|| "send".to_owned())?;
        sent += piece.len;
    }
    sys.shutdown(fd, Shutdown::Wr).await.or_fail(|| "shutdown".to_owned())?;
    let answer = read_answer(sys, fd).await?;
    let seconds = sys.now().since(began).as_secs_f64();
    let received = answer["bytes"].as_u64().unwrap_or(0);
    let (ours, theirs) = (format!("{:016x}", crc.value()), answer["crc64"].as_str().unwrap_or(""));
    let mut result = json!({
        "protocol": "tcp", "bytes": received, "bytes_sent": sent, "seconds": seconds,
        "bits_per_second": rate(received, seconds),
    });
    if args.verify {
        result["crc64_sent"] = ours.as_str().into();
        result["crc64_received"] = theirs.into();
        result["verified"] = (received == sent && ours == theirs).into();
    }
    Ok(result)
}

async fn send_datagrams(sys: &Sys, args: &Args, addr: Ipv4Addr) -> Result<Value, Failure> {
    let len = args.len.unwrap_or(UDP_LEN);
    if !(DATAGRAM_HEADER as u32..=MAX_UDP).contains(&len) {
        return Err(Failure::Usage(format!("stream: -l {len}: a datagram has {DATAGRAM_HEADER} to {MAX_UDP} octets\n")));
    }
    let control = connect(sys, addr, args.port).await?;
    let local = sys.local_addr(control).await.or_fail(|| "getsockname".to_owned())?;
    // Address, port and time of the client: no other run of any host has the same.
    let who = if let SocketAddr::V4(a) = local { u64::from(a.ip().to_bits()) << 16 | u64::from(a.port()) } else { 0 };
    let cookie = who << 16 ^ sys.now().0;
    greet(sys, control, Hello { udp: true, verify: args.verify, seed: args.seed, cookie }).await?;
    let ready = sys.alloc(1);
    if sys.recv(control, ready, 0).await.or_fail(|| "recv".to_owned())? != 1 {
        return Err(Failure::Other("the server closed the connection".to_owned()));
    }
    let (sent, octets, seconds) = blast(sys, args, SocketAddr::from((addr, args.port)), len, cookie).await?;
    let count = sys.alloc(8);
    sys.with_mut(count, |b| b.copy_from_slice(&sent.to_be_bytes()));
    sys.send_all(control, count, msg::NOSIGNAL).await.or_fail(|| "send".to_owned())?;
    let answer = read_answer(sys, control).await?;
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    let (received, bytes) = (number("datagrams"), number("bytes"));
    // The receiver's time is that of its datagrams; of a single one it is none.
    let took = answer["seconds"].as_f64().filter(|&s| s > 0.0).unwrap_or(seconds);
    let mut result = json!({
        "protocol": "udp", "bytes": bytes, "bytes_sent": octets, "seconds": took, "bits_per_second": rate(bytes, took),
        "datagrams_sent": sent, "datagrams_received": received, "datagrams_lost": sent.saturating_sub(received),
        "out_of_order": number("out_of_order"),
    });
    if args.verify {
        result["corrupted"] = number("corrupted").into();
        result["verified"] = (received > 0 && number("corrupted") == 0).into();
    }
    Ok(result)
}

/// Sends datagrams; how many, their octets, the seconds it took.
async fn blast(sys: &Sys, args: &Args, to: SocketAddr, len: u32, cookie: u64) -> Result<(u64, u64, f64), Failure> {
    let fd = sys.socket(libc::AF_INET, libc::SOCK_DGRAM, 0).await.or_fail(|| "socket".to_owned())?;
    sys.connect(fd, to).await.or_fail(|| "connect".to_owned())?;
    let tx = sys.alloc(len as usize);
    sys.with_mut(tx, |b| {
        Pattern::new(args.seed).fill(b);
        b[..8].copy_from_slice(&cookie.to_be_bytes());
    });
    let began = sys.now();
    let limit = Limit::new(sys, args);
    let gap = (u64::from(len) * 8 * 1_000_000_000).checked_div(args.bandwidth).map(Duration::from_nanos);
    let (mut sent, mut octets, mut due) = (0u64, 0u64, began);
    while !limit.reached(sys, octets) {
        if let Some(gap) = gap {
            let now = sys.now();
            if due > now {
                sys.sleep(due.since(now)).await.or_fail(|| "nanosleep".to_owned())?;
            }
            due = due + gap;
        }
        sys.with_mut(tx, |b| {
            b[8..16].copy_from_slice(&sent.to_be_bytes());
            if args.verify {
                Pattern::new(args.seed ^ sent).fill(&mut b[DATAGRAM_HEADER..]);
            }
        });
        match sys.send(fd, tx, 0, None).await {
            Ok(_) => (sent, octets) = (sent + 1, octets + u64::from(len)),
            // The qdisc dropped it: as on Linux the datagram counts as sent by nobody.
            Err(Errno::ENOBUFS) => {}
            Err(errno) => return Err(errno).or_fail(|| "send".to_owned()),
        }
    }
    let seconds = sys.now().since(began).as_secs_f64();
    sys.close(fd).await.or_fail(|| "close".to_owned())?;
    Ok((sent, octets, seconds))
}

async fn greet(sys: &Sys, fd: Fd, hello: Hello) -> Result<(), Failure> {
    let tx = sys.alloc(HELLO);
    sys.with_mut(tx, |b| b.copy_from_slice(&hello.emit()));
    sys.send_all(fd, tx, msg::NOSIGNAL).await.or_fail(|| "send".to_owned())
}

/// Reads the server's result to the end of the connection.
async fn read_answer(sys: &Sys, fd: Fd) -> Result<Value, Failure> {
    let rx = sys.alloc(4096);
    let mut text = Vec::new();
    while text.len() < 65536 {
        let n = sys.recv(fd, rx, 0).await.or_fail(|| "recv".to_owned())?;
        if n == 0 {
            break;
        }
        sys.with(UserSlice { len: n as u64, ..rx }, |b| text.extend_from_slice(b));
    }
    sys.close(fd).await.or_fail(|| "close".to_owned())?;
    serde_json::from_slice(&text).map_err(|e| Failure::Other(format!("the server's result is not one: {e}")))
}

fn rate(octets: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { octets as f64 * 8.0 / seconds } else { 0.0 }
}

fn describe(r: &Value) -> String {
    let number = |key: &str| r[key].as_f64().unwrap_or(0.0);
    let mut text = format!("{} octets in {:.3} s: {}\n", r["bytes"], number("seconds"), si(number("bits_per_second")));
    if r["protocol"] == "udp" {
        text += &format!("{} of {} datagrams received, {} lost\n", r["datagrams_received"], r["datagrams_sent"], r["datagrams_lost"]);
    }
    if let Some(sent) = r["crc64_sent"].as_str() {
        text += &format!("CRC-64 sent {sent}, received {}\n", r["crc64_received"].as_str().unwrap_or("none"));
    }
    if let Some(verified) = r["verified"].as_bool() {
        text += if verified { "verified\n" } else { "NOT verified: what arrived is not what was sent\n" };
    }
    text
}

fn si(bits: f64) -> String {
    match bits {
        b if b >= 1e9 => format!("{:.2} Gbit/s", b / 1e9),
        b if b >= 1e6 => format!("{:.2} Mbit/s", b / 1e6),
        b => format!("{:.2} kbit/s", b / 1e3),
    }
}
