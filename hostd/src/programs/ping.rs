//! `ping`: ICMP echo through a ping socket, as iputils does it.
//!
//! Requests go out at a fixed pace whether or not answers come; in between the
//! program waits in `recvmsg` with `SO_RCVTIMEO`. Errors of the network come by the
//! socket's error queue (`IP_RECVERR`). The arrival time is the kernel's
//! (`SO_TIMESTAMP`), so that the program's own delay does not count.

use super::sys::{Message, Sys};
use super::{Failure, Try};
use crate::programs::sleep::seconds;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Control, Fd, msg};
use ringlab_kernel::time::Instant;
use ringlab_kernel::uaccess::UserSlice;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const ICMP_HEADER: usize = 8;
const IP_HEADER: usize = 20;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ICMP_ORIGIN: u8 = 2;
/// Requests whose answers are still waited for, at most.
const MEMORY: usize = 65536;

/// Sends ICMP echo requests to a host.
#[derive(Debug, clap::Parser)]
#[command(name = "ping")]
pub struct Args {
    /// Stop after so many requests.
    #[arg(short, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Seconds between requests.
    #[arg(short, default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Octets of data.
    #[arg(short, default_value_t = 56, value_parser = clap::value_parser!(u16).range(0..=65507))]
    size: u16,
    /// Seconds to wait for the last answer.
    #[arg(short = 'W', default_value = "10", value_parser = seconds)]
    wait: Duration,
    /// Time to live.
    #[arg(short = 't')]
    ttl: Option<u8>,
    /// Print the summary only.
    #[arg(short)]
    quiet: bool,
    /// Print the result as JSON, with all round-trip times in nanoseconds.
    #[arg(long)]
    json: bool,
    /// Node name or IPv4 address.
    host: String,
}

/// Runs it: exit code 0 if an answer came, 1 if none did.
///
/// # Errors
/// If the name is unknown or the socket cannot be set up.
pub async fn main(sys: Sys, args: Args) -> Result<i32, Failure> {
    let addr = sys.resolve(&args.host).ok_or_else(|| Failure::Other(format!("{}: Name or service not known", args.host)))?;
    let mut run = Run::open(sys, args, addr).await?;
    run.ping().await?;
    run.report().await
}

struct Run {
    sys: Sys,
    args: Args,
    addr: Ipv4Addr,
    fd: Fd,
    tx: UserSlice,
    rx: UserSlice,
    began: Instant,
    sent: u64,
    errors: u64,
    duplicates: u64,
    /// Send times of requests without an answer, by number.
    waiting: BTreeMap<u64, Instant>,
    rtts: Vec<u64>,
}

impl Run {
    async fn open(sys: Sys, args: Args, addr: Ipv4Addr) -> Result<Self, Failure> {
        let fd = sys.socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP).await.or_fail(|| "socket".to_owned())?;
        for (level, name, what) in [
            (libc::IPPROTO_IP, libc::IP_RECVTTL, "IP_RECVTTL"),
            (libc::IPPROTO_IP, libc::IP_RECVERR, "IP_RECVERR"),
            (libc::SOL_SOCKET, libc::SO_TIMESTAMP, "SO_TIMESTAMP"),
        ] {
            sys.set_opt(fd, level, name, 1).await.or_fail(|| what.to_owned())?;
        }
        if let Some(ttl) = args.ttl {
            sys.set_opt(fd, libc::IPPROTO_IP, libc::IP_TTL, i32::from(ttl)).await.or_fail(|| "IP_TTL".to_owned())?;
        }
        sys.connect(fd, SocketAddr::from((addr, 0))).await.or_fail(|| "connect".to_owned())?;
        let tx = sys.alloc(ICMP_HEADER + usize::from(args.size));
        let rx = sys.alloc(usize::from(args.size) + 256);
        let began = sys.now();
        Ok(Self { sys, args, addr, fd, tx, rx, began, sent: 0, errors: 0, duplicates: 0, waiting: BTreeMap::new(), rtts: Vec::new() })
    }

    async fn ping(&mut self) -> Result<(), Failure> {
        if !self.args.json {
            let (data, all) = (usize::from(self.args.size), usize::from(self.args.size) + ICMP_HEADER + IP_HEADER);
            self.print(format!("PING {} ({}) {data}({all}) bytes of data.\n", self.args.host, self.addr)).await?;
        }
        self.began = self.sys.now();
        let mut next = self.began;
        loop {
            let now = self.sys.now();
            let more = self.args.count.is_none_or(|count| self.sent < count);
            if more && now >= next {
                self.send().await?;
                // Late is late: lost time is not made up for by a burst.
                next = (next + self.args.interval).max(self.sys.now());
            }
            let more = self.args.count.is_none_or(|count| self.sent < count);
            let until = if more { next } else { self.last_deadline() };
            if !more && (self.waiting.is_empty() || self.sys.now() >= until) {
                return Ok(());
            }
            match self.receive(until.since(self.sys.now())).await {
                Ok(()) => {}
                // Ctrl-C ends the run, not the program: the summary follows.
                Err(Failure::Interrupted) if self.sys.process().take_signal() == Some(libc::SIGINT) => return Ok(()),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// When to give up on the last request.
    fn last_deadline(&self) -> Instant {
        self.waiting.last_key_value().map_or(self.began, |(_, &sent)| sent + self.args.wait)
    }

    async fn send(&mut self) -> Result<(), Failure> {
        self.sent += 1;
        let seq = self.sent as u16;
        let now = self.sys.now();
        self.sys.with_mut(self.tx, |b| {
            // The kernel fills in identifier and checksum (`ping_v4_sendmsg`).
            b[..ICMP_HEADER].copy_from_slice(&[ECHO_REQUEST, 0, 0, 0, 0, 0, (seq >> 8) as u8, seq as u8]);
            for (i, octet) in b[ICMP_HEADER..].iter_mut().enumerate() {
                *octet = i as u8;
            }
            if let Some(stamp) = b[ICMP_HEADER..].first_chunk_mut::<8>() {
                *stamp = now.0.to_be_bytes();
            }
        });
        self.waiting.insert(self.sent, self.sys.now());
        if self.waiting.len() > MEMORY {
            self.waiting.pop_first();
        }
        match self.sys.send(self.fd, self.tx, 0, None).await {
            Ok(_) => Ok(()),
            Err(Errno::EINTR) => Err(Failure::Interrupted),
            // An error of the network: it is in the error queue, or it was about an earlier request.
            Err(Errno::EHOSTUNREACH | Errno::ECONNREFUSED | Errno::ENETUNREACH) => self.take_error().await,
            Err(errno) => Err(Failure::Call { what: "sendmsg".to_owned(), errno }),
        }
    }

    /// Waits for one answer or error, at most for `limit`.
    async fn receive(&mut self, limit: Duration) -> Result<(), Failure> {
        // Zero would mean for ever.
        self.sys.set_recv_timeout(self.fd, limit.max(Duration::from_micros(1))).await.or_fail(|| "SO_RCVTIMEO".to_owned())?;
        match self.sys.recv_msg(self.fd, self.rx, 0).await {
            Ok(message) => self.on_reply(&message).await,
            Err(Errno::EAGAIN) => Ok(()),
            Err(Errno::EHOSTUNREACH | Errno::ECONNREFUSED | Errno::ENETUNREACH | Errno::EMSGSIZE) => self.take_error().await,
            Err(errno) => Err(errno).or_fail(|| "recvmsg".to_owned()),
        }
    }

    async fn on_reply(&mut self, message: &Message) -> Result<(), Failure> {
        let mut header = [0; ICMP_HEADER];
        if message.len < ICMP_HEADER {
            return Ok(());
        }
        self.sys.with(self.rx, |b| header.copy_from_slice(&b[..ICMP_HEADER]));
        if header[0] != ECHO_REPLY {
            return Ok(());
        }
        let arrived = message.control.iter().find_map(|c| if let Control::Timestamp(ns) = c { Some(Instant(*ns)) } else { None });
        let ttl = message.control.iter().find_map(|c| if let Control::Ttl(ttl) = c { Some(*ttl) } else { None });
        let seq = u16::from_be_bytes([header[6], header[7]]);
        // Sequence numbers have 16 bits: the latest request with these.
        let number = self.waiting.keys().rev().find(|&&n| n as u16 == seq).copied();
        let Some(sent) = number.and_then(|n| self.waiting.remove(&n)) else {
            self.duplicates += 1;
            return Ok(());
        };
        let rtt = arrived.filter(|&at| at >= sent).unwrap_or_else(|| self.sys.now()).since(sent);
        self.rtts.push(rtt.as_nanos() as u64);
        if self.args.quiet || self.args.json {
            return Ok(());
        }
        let from = message.from.map_or(self.addr.to_string(), |a| a.ip().to_string());
        let mut line = format!("{} bytes from {from}: icmp_seq={seq}", message.len);
        if let Some(ttl) = ttl {
            // Writing to a string cannot fail.
            let _ = write!(line, " ttl={ttl}");
        }
        self.print(format!("{line} time={} ms\n", millis(rtt))).await
    }

    /// Reads the error queue (`MSG_ERRQUEUE`): what the network, or this host, says of a request.
    async fn take_error(&mut self) -> Result<(), Failure> {
        loop {
            match self.sys.recv_msg(self.fd, self.rx, msg::ERRQUEUE | msg::DONTWAIT).await {
                Ok(message) => self.on_error(&message).await?,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno).or_fail(|| "recvmsg(MSG_ERRQUEUE)".to_owned()),
            }
        }
    }

    async fn on_error(&mut self, message: &Message) -> Result<(), Failure> {
        let mut header = [0; ICMP_HEADER];
        self.sys.with(self.rx, |b| header.copy_from_slice(&b[..ICMP_HEADER]));
        let seq = u16::from_be_bytes([header[6], header[7]]);
        self.errors += 1;
        if let Some(number) = self.waiting.keys().rev().find(|&&n| n as u16 == seq).copied() {
            self.waiting.remove(&number);
        }
        if self.args.quiet || self.args.json {
            return Ok(());
        }
        let found = message.control.iter().find_map(|c| {
            if let Control::Err(errno, origin, kind, code, _, from) = c { Some((*errno, *origin, *kind, *code, *from)) } else { None }
        });
        let Some((errno, origin, kind, code, from)) = found else { return Ok(()) };
        if origin == ICMP_ORIGIN {
            self.print(format!("From {from} icmp_seq={seq} {}\n", describe(kind, code))).await
        } else if errno == Errno::EHOSTUNREACH {
            let local = self.sys.local_addr(self.fd).await.or_fail(|| "getsockname".to_owned())?;
            self.print(format!("From {} icmp_seq={seq} Destination Host Unreachable\n", local.ip())).await
        } else {
            self.print(format!("ping: local error: {errno}\n")).await
        }
    }

    async fn report(&self) -> Result<i32, Failure> {
        let received = self.rtts.len() as u64;
        let loss = if self.sent == 0 { 0.0 } else { 100.0 * (self.sent - received.min(self.sent)) as f64 / self.sent as f64 };
        let code = i32::from(received == 0);
        if self.args.json {
            let value = json!({
                "host": self.args.host, "address": self.addr.to_string(), "transmitted": self.sent, "received": received,
                "errors": self.errors, "duplicates": self.duplicates, "loss_percent": loss, "rtt_ns": self.rtts,
            });
            self.print(format!("{value}\n")).await?;
            return Ok(code);
        }
        let errors = if self.errors > 0 { format!(", +{} errors", self.errors) } else { String::new() };
        let duplicates = if self.duplicates > 0 { format!(", +{} duplicates", self.duplicates) } else { String::new() };
        let time = self.sys.now().since(self.began).as_millis();
        let mut text = format!("\n--- {} ping statistics ---\n", self.args.host);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} packets transmitted, {received} received{duplicates}{errors}, {}% packet loss, time {time}ms",
            self.sent,
            (loss * 10_000.0).round() / 10_000.0
        );
        if let Some(rtt) = Rtt::of(&self.rtts) {
            let _ = writeln!(text, "rtt min/avg/max/mdev = {:.3}/{:.3}/{:.3}/{:.3} ms", rtt.min, rtt.avg, rtt.max, rtt.mdev);
        }
        self.print(text).await?;
        Ok(code)
    }

    async fn print(&self, text: String) -> Result<(), Failure> {
        self.sys.process().print(text).await.map_err(|_| Failure::Interrupted)
    }
}

/// Milliseconds of the round trips.
struct Rtt {
    min: f64,
    avg: f64,
    max: f64,
    mdev: f64,
}

impl Rtt {
    fn of(rtts: &[u64]) -> Option<Self> {
        let ms = |ns: u64| ns as f64 / 1e6;
        let (min, max) = (ms(*rtts.iter().min()?), ms(*rtts.iter().max()?));
        let count = rtts.len() as f64;
        let avg = rtts.iter().map(|&r| ms(r)).sum::<f64>() / count;
        let mdev = (rtts.iter().map(|&r| (ms(r) - avg).powi(2)).sum::<f64>() / count).sqrt();
        Some(Self { min, avg, max, mdev })
    }
}

/// Three significant digits, as iputils prints times.
fn millis(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ms if ms >= 99.95 => format!("{ms:.0}"),
        ms if ms >= 9.995 => format!("{ms:.1}"),
        ms if ms >= 0.9995 => format!("{ms:.2}"),
        ms => format!("{ms:.3}"),
    }
}

/// Words for an ICMP error.
fn describe(kind: u8, code: u8) -> &'static str {
    match (kind, code) {
        (3, 0) => "Destination Net Unreachable",
        (3, 1) => "Destination Host Unreachable",
        (3, 2) => "Destination Protocol Unreachable",
        (3, 3) => "Destination Port Unreachable",
        (3, 4) => "Frag needed and DF set",
        (3, 13) => "Packet filtered",
        (3, _) => "Destination Unreachable",
        (11, 0) => "Time to live exceeded",
        (11, _) => "Frag reassembly time exceeded",
        (12, _) => "Parameter problem",
        _ => "Bad ICMP message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        assert_eq!(millis(Duration::from_nanos(45_400)), "0.045");
        assert_eq!(millis(Duration::from_micros(1234)), "1.23");
        assert_eq!(millis(Duration::from_micros(12_345)), "12.3");
        assert_eq!(millis(Duration::from_micros(999_960)), "1000");
    }

    #[test]
    fn mean_deviation_is_of_all_times() {
        let rtt = Rtt::of(&[1_000_000, 3_000_000]).expect("two times");
        assert_eq!((rtt.min, rtt.avg, rtt.max, rtt.mdev), (1.0, 2.0, 3.0, 1.0));
        assert!(Rtt::of(&[]).is_none());
    }
}
