//! The other end of a measurement, in a real namespace: `ringlab-bench native …`.
//! Plain blocking sockets, so that the reference is the kernel and not a tool.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Payload of the datagrams.
pub const DATAGRAM: usize = 64;
/// A datagram of this size ends a UDP run.
const END: usize = 1;

/// Runs a native end; prints one number.
pub fn run(args: &[String]) -> Result<()> {
    let arg = |i: usize| args.get(i).map(String::as_str).context("an argument is missing");
    match arg(0)? {
        "udp-recv" => println!("{}", udp_recv(arg(1)?)?),
        "udp-send" => println!("{}", udp_send(arg(1)?, arg(2)?.parse()?)?),
        "tcp-send" => println!("{}", tcp_send(arg(1)?, arg(2)?.parse()?)?),
        other => bail!("no native end `{other}`"),
    }
    Ok(())
}

/// Datagrams a second that arrive until the end mark, from the first one on.
fn udp_recv(bind: &str) -> Result<f64> {
    let socket = UdpSocket::bind(bind)?;
    println!("ready");
    let mut buf = [0; 2048];
    socket.recv(&mut buf)?;
    let started = Instant::now();
    let mut count = 1u64;
    while socket.recv(&mut buf)? != END {
        count += 1;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Sends for some seconds; datagrams a second sent.
fn udp_send(to: &str, seconds: f64) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let payload = [0x5a; DATAGRAM];
    let started = Instant::now();
    let mut count = 0u64;
    while started.elapsed().as_secs_f64() < seconds {
        for _ in 0..64 {
            count += u64::from(socket.send(&payload).is_ok());
        }
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(20));
        let _ = socket.send(&payload[..END]);
    }
    Ok(rate)
}

/// Sends for some seconds, then waits until the peer has read all and closed; bits a second.
fn tcp_send(to: &str, seconds: f64) -> Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    let payload = vec![0x5a; 128 << 10];
    let started = Instant::now();
    let mut octets = 0u64;
    while started.elapsed().as_secs_f64() < seconds {
        octets += stream.write(&payload)? as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    Ok(octets as f64 * 8.0 / started.elapsed().as_secs_f64())
}
