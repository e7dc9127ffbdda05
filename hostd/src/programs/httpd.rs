//! `httpd`: a web server of one task round a level-triggered epoll set, as the
//! event-driven servers are: non-blocking sockets, and a state a connection.

use super::http::{BadMessage, Request, head_len};
use super::sys::Sys;
use super::{Failure, Try};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{EpollEvent, EpollOp, Fd, msg};
use ringlab_kernel::uaccess::UserSlice;
use ringlab_kernel::wait::queue::PollEvents;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// How long a server accepts no connections when there is no descriptor for them.
pub const PAUSE: Duration = Duration::from_millis(500);
const RX: usize = 16384;
const TX: usize = 256 << 10;
const EVENTS: usize = 128;

/// Serves static files, or one fixed text.
#[derive(Debug, clap::Parser)]
#[command(name = "httpd")]
pub struct Args {
    /// Port.
    #[arg(short, long, default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Answer every path with this text.
    #[arg(long, conflicts_with = "dir")]
    body: Option<String>,
    /// Directory of the files (of the machine on which the lab runs).
    dir: Option<PathBuf>,
}

/// Runs it, until a signal.
///
/// # Errors
/// If the port is taken or the directory does not exist.
pub async fn main(sys: Sys, args: Args) -> Result<i32, Failure> {
    let content = match (args.body, args.dir) {
        (Some(text), _) => Content::Text(text.into_bytes().into()),
        (None, dir) => {
            let dir = sys.process().cwd.join(dir.unwrap_or_default());
            Content::Files(dir.canonicalize().map_err(|e| Failure::Other(format!("{}: {e}", dir.display())))?)
        }
    };
    let mut server = Server::open(sys, args.port, content).await?;
    loop {
        server.serve().await?;
    }
}

enum Content {
    Text(Rc<[u8]>),
    Files(PathBuf),
}

enum Body {
    Bytes(Rc<[u8]>),
    File(File),
}

/// A response on its way.
struct Sending {
    head: Vec<u8>,
    head_done: usize,
    body: Body,
    body_done: u64,
    body_len: u64,
    keep_alive: bool,
}

struct Conn {
    input: Vec<u8>,
    sending: Option<Sending>,
    /// `EPOLLOUT` is asked for.
    waits_out: bool,
}

struct Server {
    sys: Sys,
    listener: Fd,
    epoll: Fd,
    rx: UserSlice,
    tx: UserSlice,
    content: Content,
    conns: BTreeMap<Fd, Conn>,
    /// Descriptors had run out: who connects waits in the listener's queue, and the listener is not in the set, which it would keep ready.
    paused: bool,
}

/// What became of a connection.
#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    Close,
}

impl Server {
    async fn open(sys: Sys, port: u16, content: Content) -> Result<Self, Failure> {
        let listener = listen(&sys, port).await?;
        let epoll = sys.epoll_create().await.or_fail(|| "epoll_create".to_owned())?;
        let (rx, tx) = (sys.alloc(RX), sys.alloc(TX));
        let server = Self { sys, listener, epoll, rx, tx, content, conns: BTreeMap::new(), paused: false };
        server.watch_listener(true).await?;
        Ok(server)
    }

    async fn serve(&mut self) -> Result<(), Failure> {
        let (limit, had) = (self.paused.then_some(PAUSE), self.conns.len());
        let events = self.sys.epoll_wait(self.epoll, EVENTS, limit).await.or_fail(|| "epoll_wait".to_owned())?;
        let timeout = events.is_empty();
        for event in events {
            let fd = event.data as Fd;
            if fd == self.listener {
                self.accept().await?;
                continue;
            }
            match self.on_event(fd, event.events).await {
                Ok(Next::Wait) => {}
                Err(Errno::EINTR) => return Err(Failure::Interrupted),
                // The connection's trouble is not the server's.
                Ok(Next::Close) | Err(_) => self.close(fd).await?,
            }
        }
        if self.paused && (timeout || self.conns.len() < had) {
            self.paused = false;
            self.watch_listener(true).await?;
        }
        Ok(())
    }

    async fn watch_listener(&self, on: bool) -> Result<(), Failure> {
        let event = EpollEvent { events: PollEvents::IN, data: self.listener as u64 };
        let op = if on { EpollOp::Add(event) } else { EpollOp::Del };
        self.sys.epoll_ctl(self.epoll, self.listener, op).await.or_fail(|| "epoll_ctl".to_owned())
    }

    async fn accept(&mut self) -> Result<(), Failure> {
        loop {
            match self.sys.accept(self.listener, libc::SOCK_NONBLOCK).await {
                Ok((fd, _)) => {
                    let event = EpollEvent { events: PollEvents::IN | PollEvents::RDHUP, data: fd as u64 };
                    self.sys.epoll_ctl(self.epoll, fd, EpollOp::Add(event)).await.or_fail(|| "epoll_ctl".to_owned())?;
                    self.conns.insert(fd, Conn { input: Vec::new(), sending: None, waits_out: false });
                }
                Err(Errno::EAGAIN | Errno::ECONNABORTED) => return Ok(()),
                Err(Errno::EMFILE | Errno::ENFILE) => {
                    self.paused = true;
                    return self.watch_listener(false).await;
                }
                Err(errno) => return Err(errno).or_fail(|| "accept".to_owned()),
            }
        }
    }

    async fn close(&mut self, fd: Fd) -> Result<(), Failure> {
        self.conns.remove(&fd);
        self.sys.close(fd).await.or_fail(|| "close".to_owned())
    }

    async fn on_event(&mut self, fd: Fd, events: PollEvents) -> Result<Next, Errno> {
        if events.intersects(PollEvents::ERR | PollEvents::HUP) {
            return Ok(Next::Close);
        }
        if events.contains(PollEvents::IN) {
            match self.sys.recv(fd, self.rx, 0).await {
                Ok(0) => return Ok(Next::Close),
                Ok(n) => {
                    let Some(conn) = self.conns.get_mut(&fd) else { return Ok(Next::Close) };
                    self.sys.with(UserSlice { len: n as u64, ..self.rx }, |b| conn.input.extend_from_slice(b));
                }
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.advance(fd).await
    }

    /// Sends what can be sent, and takes up the requests that have come.
    async fn advance(&mut self, fd: Fd) -> Result<Next, Errno> {
        let Some(mut conn) = self.conns.remove(&fd) else { return Ok(Next::Close) };
        let next = self.advance_conn(fd, &mut conn).await;
        self.conns.insert(fd, conn);
        next
    }

    async fn advance_conn(&mut self, fd: Fd, conn: &mut Conn) -> Result<Next, Errno> {
        loop {
            if let Some(sending) = &mut conn.sending {
                match self.send(fd, sending).await {
                    Ok(()) if sending.keep_alive => conn.sending = None,
                    Ok(()) => return Ok(Next::Close),
                    Err(Errno::EAGAIN) => {
                        self.want_out(fd, conn, true).await?;
                        return Ok(Next::Wait);
                    }
                    Err(errno) => return Err(errno),
                }
            }
            match head_len(&conn.input) {
                Ok(None) => {
                    self.want_out(fd, conn, false).await?;
                    return Ok(Next::Wait);
                }
                Ok(Some(len)) => {
                    conn.sending = Some(self.respond(&conn.input[..len]));
                    conn.input.drain(..len);
                }
                Err(_) => {
                    conn.input.clear();
                    conn.sending = Some(status_only(431, "Request Header Fields Too Large", false));
                }
            }
        }
    }

    async fn want_out(&self, fd: Fd, conn: &mut Conn, out: bool) -> Result<(), Errno> {
        if conn.waits_out == out {
            return Ok(());
        }
        conn.waits_out = out;
        // While a response is stuck the peer's further requests stay in the socket.
        let events = if out { PollEvents::OUT } else { PollEvents::IN | PollEvents::RDHUP };
        self.sys.epoll_ctl(self.epoll, fd, EpollOp::Mod(EpollEvent { events, data: fd as u64 })).await
    }

    /// Sends until all is gone or the socket is full.
    async fn send(&self, fd: Fd, s: &mut Sending) -> Result<(), Errno> {
        loop {
            let len = self.sys.with_mut(self.tx, |tx| fill(tx, s))?;
            if len == 0 {
                return Ok(());
            }
            let n = self.sys.send(fd, UserSlice { len: len as u64, ..self.tx }, msg::NOSIGNAL, None).await?;
            let head = n.min(s.head.len() - s.head_done);
            s.head_done += head;
            s.body_done += (n - head) as u64;
        }
    }

    fn respond(&self, head: &[u8]) -> Sending {
        let request = match Request::parse(head) {
            Ok(request) => request,
            Err(BadMessage::TooLarge) => return status_only(431, "Request Header Fields Too Large", false),
            Err(_) => return status_only(400, "Bad Request", false),
        };
        // A body is not read: what follows it cannot be found.
        let keep_alive = request.keep_alive && !request.has_body;
        let send_body = match request.method.as_str() {
            "GET" => true,
            "HEAD" => false,
            _ => return method_not_allowed(keep_alive),
        };
        let found = match &self.content {
            Content::Text(text) => Some((Body::Bytes(text.clone()), text.len() as u64, "text/plain; charset=utf-8")),
            Content::Files(root) => open_file(root, &request.path),
        };
        let Some((body, len, kind)) = found else {
            let mut sending = status_only(404, "Not Found", keep_alive);
            if !send_body {
                sending.body_len = 0;
            }
            return sending;
        };
        let head = head_of(200, "OK", kind, len, keep_alive, "");
        Sending { head, head_done: 0, body, body_done: 0, body_len: if send_body { len } else { 0 }, keep_alive }
    }
}

/// Binds a listener with `SO_REUSEADDR`, non-blocking.
///
/// # Errors
/// The call that failed.
pub async fn listen(sys: &Sys, port: u16) -> Result<Fd, Failure> {
    let fd = sys.socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).await.or_fail(|| "socket".to_owned())?;
    sys.set_opt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).await.or_fail(|| "SO_REUSEADDR".to_owned())?;
    sys.bind(fd, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await.or_fail(|| format!("bind to port {port}"))?;
    sys.listen(fd, 4096).await.or_fail(|| "listen".to_owned())?;
    Ok(fd)
}

/// Copies the next octets of a response; 0 at its end.
fn fill(tx: &mut [u8], s: &Sending) -> Result<usize, Errno> {
    let head = &s.head[s.head_done..];
    let at = head.len().min(tx.len());
    tx[..at].copy_from_slice(&head[..at]);
    let room = &mut tx[at..];
    let want = room.len().min(usize::try_from(s.body_len - s.body_done).unwrap_or(usize::MAX));
    let n = match &s.body {
        Body::Bytes(bytes) => {
            let from = s.body_done as usize;
            room[..want].copy_from_slice(&bytes[from..from + want]);
            want
        }
        Body::File(_) if want == 0 => 0,
        Body::File(file) => match file.read_at(&mut room[..want], s.body_done) {
            // Shorter than promised: the connection ends, so that the peer sees it.
            Ok(0) | Err(_) => return Err(Errno::EIO),
            Ok(n) => n,
        },
    };
    Ok(at + n)
}

/// A file below `root`, also through symbolic links only below `root`.
fn open_file(root: &Path, path: &str) -> Option<(Body, u64, &'static str)> {
    let relative = Path::new(path.trim_start_matches('/'));
    if path.contains('\0') || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return None;
    }
    let mut full = root.join(relative);
    if full.is_dir() {
        full.push("index.html");
    }
    let full = full.canonicalize().ok().filter(|f| f.starts_with(root))?;
    // Whatever it is: opening it must not wait, as that of a pipe does.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&full).ok()?;
    let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some((Body::File(file), meta.len(), content_type(&full)))
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("txt" | "md" | "yaml" | "log") => "text/plain; charset=utf-8",
        Some("css") => "text/css",
        Some("js") => "text/javascript",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        _ => "application/octet-stream",
    }
}

fn method_not_allowed(keep_alive: bool) -> Sending {
    let text = b"405 Method Not Allowed\n";
    let head = head_of(405, "Method Not Allowed", "text/plain; charset=utf-8", text.len() as u64, keep_alive, "Allow: GET, HEAD\r\n");
    Sending { head, head_done: 0, body: Body::Bytes(text[..].into()), body_done: 0, body_len: text.len() as u64, keep_alive }
}

fn status_only(status: u16, reason: &str, keep_alive: bool) -> Sending {
    let text = format!("{status} {reason}\n").into_bytes();
    let head = head_of(status, reason, "text/plain; charset=utf-8", text.len() as u64, keep_alive, "");
    Sending { head, head_done: 0, body_len: text.len() as u64, body: Body::Bytes(text.into()), body_done: 0, keep_alive }
}

fn head_of(status: u16, reason: &str, kind: &str, len: u64, keep_alive: bool, extra: &str) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!("HTTP/1.1 {status} {reason}\r\nServer: ringlab\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: {connection}\r\n{extra}\r\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_do_not_leave_the_directory() {
        let root = std::env::temp_dir().join(format!("ringlab-httpd-{}", std::process::id()));
        std::fs::create_dir_all(root.join("sub")).expect("made");
        std::fs::write(root.join("sub/index.html"), "x").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", root.join("out")).expect("made");
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("made");
        let root = root.canonicalize().expect("exists");
        assert!(open_file(&root, "/sub/").is_some());
        assert!(open_file(&root, "/sub/index.html").is_some());
        for bad in ["/../etc/passwd", "/out", "/sub/../../x", "/pipe", "/nothing", "/\0", "/"] {
            assert!(open_file(&root, bad).is_none(), "{bad:?}");
        }
        std::fs::remove_dir_all(&root).expect("removed");
    }
}
