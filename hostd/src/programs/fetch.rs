//! `fetch`: gets one resource by HTTP/1.1, as `curl URL` does.

use super::http::{BodyReader, Response, head_len};
use super::sha256::Sha256;
use super::sleep::seconds;
use super::sys::Sys;
use super::{Failure, Try};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Fd, msg};
use ringlab_kernel::uaccess::UserSlice;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const RX: usize = 256 << 10;
/// Octets of a piece of output.
const PIECE: usize = 64 << 10;
/// curl's exit code with `-f` for a status of 400 and more.
const HTTP_ERROR: i32 = 22;

/// Gets a resource by HTTP.
#[derive(Debug, clap::Parser)]
#[command(name = "fetch")]
pub struct Args {
    /// Fail with exit code 22, and print nothing, if the status is 400 or more.
    #[arg(short)]
    fail: bool,
    /// Write the body to a file.
    #[arg(short)]
    output: Option<PathBuf>,
    /// Print the body's SHA-256 instead of the body.
    #[arg(long)]
    sha256: bool,
    /// Print the response's head to standard error.
    #[arg(short)]
    verbose: bool,
    /// Give up if nothing comes for so many seconds.
    #[arg(short = 'm', value_parser = seconds)]
    patience: Option<Duration>,
    /// `http://NODE[:PORT]/PATH`.
    url: String,
}

/// Runs it.
///
/// # Errors
/// If the name is unknown, the connection fails, or the response is malformed or cut short.
pub async fn main(sys: Sys, args: Args) -> Result<i32, Failure> {
    let url = Url::parse(&args.url)?;
    let addr = sys.resolve(&url.host).ok_or_else(|| Failure::Other(format!("could not resolve host: {}", url.host)))?;
    let fd = connect(&sys, addr, url.port).await?;
    if let Some(limit) = args.patience {
        sys.set_recv_timeout(fd, limit).await.or_fail(|| "SO_RCVTIMEO".to_owned())?;
    }
    let request =
        format!("GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: ringlab\r\nAccept: */*\r\nConnection: close\r\n\r\n", url.path, url.authority);
    let tx = sys.alloc(request.len());
    sys.with_mut(tx, |b| b.copy_from_slice(request.as_bytes()));
    sys.send_all(fd, tx, msg::NOSIGNAL).await.or_fail(|| "send".to_owned())?;
    let rx = sys.alloc(RX);
    let mut input = Input { sys: &sys, fd, rx };
    let (response, rest) = read_head(&mut input, &args).await?;
    if args.fail && response.status >= 400 {
        let text = format!("fetch: the server answered {} {}\n", response.status, response.reason);
        sys.process().print_error(text).await.map_err(|_| Failure::Interrupted)?;
        return Ok(HTTP_ERROR);
    }
    let mut sink = Sink::open(&sys, &args)?;
    read_body(&mut input, &response, rest, &mut sink).await?;
    sink.finish(&args.url).await?;
    sys.close(fd).await.or_fail(|| "close".to_owned())?;
    Ok(0)
}

/// Connects a TCP socket.
///
/// # Errors
/// The call that failed.
pub async fn connect(sys: &Sys, addr: Ipv4Addr, port: u16) -> Result<Fd, Failure> {
    let fd = sys.socket(libc::AF_INET, libc::SOCK_STREAM, 0).await.or_fail(|| "socket".to_owned())?;
    sys.connect(fd, SocketAddr::from((addr, port))).await.or_fail(|| format!("connect to {addr} port {port}"))?;
    Ok(fd)
}

struct Input<'s> {
    sys: &'s Sys,
    fd: Fd,
    rx: UserSlice,
}

impl Input<'_> {
    /// Receives some octets; `None` at the end.
    async fn next(&mut self) -> Result<Option<UserSlice>, Failure> {
        match self.sys.recv(self.fd, self.rx, 0).await {
            Ok(0) => Ok(None),
            Ok(n) => Ok(Some(UserSlice { len: n as u64, ..self.rx })),
            Err(Errno::EAGAIN) => Err(Failure::Other("nothing came for too long".to_owned())),
            Err(errno) => Err(errno).or_fail(|| "recv".to_owned()),
        }
    }
}

/// The final response's head, and what came after it.
async fn read_head(input: &mut Input<'_>, args: &Args) -> Result<(Response, Vec<u8>), Failure> {
    let mut bytes = Vec::new();
    loop {
        let bad = |e: super::http::BadMessage| Failure::Other(format!("bad response: {e}"));
        if let Some(len) = head_len(&bytes).map_err(bad)? {
            let response = Response::parse(&bytes[..len]).map_err(bad)?;
            if args.verbose {
                input.sys.process().print_error(&bytes[..len]).await.map_err(|_| Failure::Interrupted)?;
            }
            let rest = bytes.split_off(len);
            if response.status >= 200 {
                return Ok((response, rest));
            }
            // An interim response: the final one follows.
            bytes = rest;
            continue;
        }
        let Some(part) = input.next().await? else {
            return Err(Failure::Other("the server closed the connection without an answer".to_owned()));
        };
        input.sys.with(part, |b| bytes.extend_from_slice(b));
    }
}

async fn read_body(input: &mut Input<'_>, response: &Response, rest: Vec<u8>, sink: &mut Sink<'_>) -> Result<(), Failure> {
    let bad = |e: super::http::BadMessage| Failure::Other(format!("bad response: {e}"));
    let mut reader = BodyReader::new(response.framing);
    reader.read(&rest, |b| sink.take(b)).map_err(bad)?;
    sink.flush().await?;
    while !reader.is_complete() {
        let Some(part) = input.next().await? else {
            if matches!(reader, BodyReader::Close) {
                break;
            }
            return Err(Failure::Other("the connection ended before the body did".to_owned()));
        };
        input.sys.with(part, |b| reader.read(b, |b| sink.take(b))).map_err(bad)?;
        sink.flush().await?;
    }
    Ok(())
}

/// Where the body goes.
struct Sink<'s> {
    sys: &'s Sys,
    digest: Option<Sha256>,
    file: Option<File>,
    file_error: Option<std::io::Error>,
    /// For standard output.
    buffer: Vec<u8>,
}

impl<'s> Sink<'s> {
    fn open(sys: &'s Sys, args: &Args) -> Result<Self, Failure> {
        let file = match &args.output {
            Some(path) => {
                let path = sys.process().cwd.join(path);
                Some(File::create(&path).map_err(|e| Failure::Other(format!("{}: {e}", path.display())))?)
            }
            None => None,
        };
        Ok(Self { sys, digest: args.sha256.then(Sha256::default), file, file_error: None, buffer: Vec::new() })
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.add(bytes);
        }
        match &mut self.file {
            Some(file) => self.file_error = self.file_error.take().or(file.write_all(bytes).err()),
            None if self.digest.is_none() => self.buffer.extend_from_slice(bytes),
            None => {}
        }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if let Some(error) = self.file_error.take() {
            return Err(Failure::Other(format!("writing: {error}")));
        }
        for piece in std::mem::take(&mut self.buffer).chunks(PIECE) {
            self.sys.process().print(piece).await.map_err(|_| Failure::Interrupted)?;
        }
        Ok(())
    }

    async fn finish(self, url: &str) -> Result<(), Failure> {
        if let Some(digest) = self.digest {
            let line = format!("{}  {url}\n", digest.hex());
            self.sys.process().print(line).await.map_err(|_| Failure::Interrupted)?;
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Url {
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, Failure> {
        let bad = |why: &str| Failure::Usage(format!("fetch: {text:?}: {why}\n"));
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(bad("only http:// is supported")),
            None => text,
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |i| rest.split_at(i));
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| bad("bad port"))?),
            None => (authority, 80),
        };
        let path = path.split('#').next().unwrap_or("/");
        if host.is_empty() || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(bad("malformed URL"));
        }
        Ok(Self { authority: authority.to_owned(), host: host.to_owned(), port, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("http://web:8080/a?b#c").expect("valid");
        assert_eq!((url.host.as_str(), url.port, url.path.as_str(), url.authority.as_str()), ("web", 8080, "/a?b", "web:8080"));
        assert_eq!(Url::parse("10.0.0.1").expect("valid").port, 80);
        for bad in ["https://x/", "http://", "http://h:x/", "http://h/a b"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }
}
