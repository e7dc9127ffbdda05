//! HTTP/1.1 messages, as far as a file server and a fetcher need them (RFC 9112).

/// Most octets of a message's head.
pub const MAX_HEAD: usize = 16384;

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// "GET".
    pub method: String,
    /// Path, decoded, without the query.
    pub path: String,
    /// The connection stays open afterwards.
    pub keep_alive: bool,
    /// A body follows.
    pub has_body: bool,
}

/// A response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200.
    pub status: u16,
    /// "OK".
    pub reason: String,
    /// How the body ends.
    pub framing: Framing,
}

/// How the end of a body is recognised (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After so many octets.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// With the connection.
    Close,
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// The first line.
    #[error("malformed start line")]
    StartLine,
    /// A header line.
    #[error("malformed header")]
    Header,
    /// A chunk's size.
    #[error("malformed chunk")]
    Chunk,
    /// More than [`MAX_HEAD`].
    #[error("head too large")]
    TooLarge,
}

/// Octets of the head, its empty line included; `None` if it is not complete.
///
/// # Errors
/// [`BadMessage::TooLarge`].
pub fn head_len(bytes: &[u8]) -> Result<Option<usize>, BadMessage> {
    match bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        Some(at) if at + 4 <= MAX_HEAD => Ok(Some(at + 4)),
        None if bytes.len() < MAX_HEAD => Ok(None),
        _ => Err(BadMessage::TooLarge),
    }
}

impl Request {
    /// Parses a complete head.
    ///
    /// # Errors
    /// [`BadMessage`].
    pub fn parse(head: &[u8]) -> Result<Self, BadMessage> {
        let mut lines = Lines::new(head)?;
        let mut words = lines.start.split(' ');
        let (method, target, version) = (words.next(), words.next(), words.next());
        let (Some(method), Some(target), Some(version), None) = (method, target, version, words.next()) else {
            return Err(BadMessage::StartLine);
        };
        let http11 = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ => return Err(BadMessage::StartLine),
        };
        let token = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if method.is_empty() || !method.bytes().all(token) {
            return Err(BadMessage::StartLine);
        }
        let mut request = Self { method: method.to_owned(), path: decode_path(target)?, keep_alive: http11, has_body: false };
        while let Some((name, value)) = lines.next_header()? {
            match name.as_str() {
                "connection" if has_token(value, "close") => request.keep_alive = false,
                "connection" if has_token(value, "keep-alive") => request.keep_alive = true,
                "content-length" => request.has_body |= value != "0",
                "transfer-encoding" => request.has_body = true,
                _ => {}
            }
        }
        Ok(request)
    }
}

impl Response {
    /// Parses a complete head.
    ///
    /// # Errors
    /// [`BadMessage`].
    pub fn parse(head: &[u8]) -> Result<Self, BadMessage> {
        let mut lines = Lines::new(head)?;
        let rest = lines.start.strip_prefix("HTTP/1.").ok_or(BadMessage::StartLine)?;
        let mut words = rest.splitn(3, ' ');
        let minor = words.next().filter(|m| matches!(*m, "0" | "1"));
        let status = words.next().and_then(|s| s.parse().ok()).filter(|s| (100..1000).contains(s));
        let (Some(_), Some(status)) = (minor, status) else { return Err(BadMessage::StartLine) };
        let reason = words.next().unwrap_or("").to_owned();
        let (mut length, mut chunked) = (None, false);
        while let Some((name, value)) = lines.next_header()? {
            match name.as_str() {
                "content-length" => {
                    let value = value.parse().map_err(|_| BadMessage::Header)?;
                    if length.is_some_and(|l| l != value) {
                        return Err(BadMessage::Header);
                    }
                    length = Some(value);
                }
                "transfer-encoding" => chunked = has_token(value, "chunked"),
                _ => {}
            }
        }
        let framing = match (chunked, length) {
            _ if status < 200 || status == 204 || status == 304 => Framing::Length(0),
            (true, _) => Framing::Chunked,
            (false, Some(n)) => Framing::Length(n),
            (false, None) => Framing::Close,
        };
        Ok(Self { status, reason, framing })
    }
}

/// Takes the body out of what follows the head.
#[derive(Debug)]
pub enum BodyReader {
    /// So many octets are missing.
    Length(u64),
    /// Chunked coding.
    Chunked(ChunkState),
    /// Until the end of the connection.
    Close,
}

/// Where in a chunked body the reader is.
#[derive(Debug)]
pub enum ChunkState {
    /// In a line with a chunk's size.
    Size(Vec<u8>),
    /// In a chunk, octets left.
    Data(u64),
    /// In the line end after a chunk, octets left.
    DataEnd(u8),
    /// In the trailer: octets of the current line.
    Trailer(u32),
    /// After it.
    End,
}

impl BodyReader {
    /// A reader for a body.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(ChunkState::Size(Vec::new())),
            Framing::Close => Self::Close,
        }
    }

    /// True if the body is complete.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(ChunkState::End))
    }

    /// Hands the body octets in `bytes` to `f`.
    ///
    /// # Errors
    /// [`BadMessage::Chunk`].
    pub fn read(&mut self, mut bytes: &[u8], mut f: impl FnMut(&[u8])) -> Result<(), BadMessage> {
        match self {
            Self::Close => f(bytes),
            Self::Length(left) => {
                let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                f(&bytes[..n]);
            }
            Self::Chunked(state) => {
                while !bytes.is_empty() && !matches!(state, ChunkState::End) {
                    bytes = state.step(bytes, &mut f)?;
                }
            }
        }
        Ok(())
    }
}

impl ChunkState {
    fn step<'b>(&mut self, bytes: &'b [u8], f: &mut impl FnMut(&[u8])) -> Result<&'b [u8], BadMessage> {
        let (first, rest) = bytes.split_first().ok_or(BadMessage::Chunk)?;
        match self {
            Self::Size(line) if *first == b'\n' => {
                let text = std::str::from_utf8(line).map_err(|_| BadMessage::Chunk)?;
                let digits = text.split(';').next().unwrap_or("").trim();
                let size = u64::from_str_radix(digits, 16).map_err(|_| BadMessage::Chunk)?;
                *self = if size == 0 { Self::Trailer(0) } else { Self::Data(size) };
                Ok(rest)
            }
            Self::Size(line) => {
                line.push(*first);
                if line.len() > 256 { Err(BadMessage::Chunk) } else { Ok(rest) }
            }
            Self::Data(left) => {
                let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                f(&bytes[..n]);
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::DataEnd(2);
                }
                Ok(&bytes[n..])
            }
            Self::DataEnd(left) => {
                if *first != if *left == 2 { b'\r' } else { b'\n' } {
                    return Err(BadMessage::Chunk);
                }
                *left -= 1;
                if *left == 0 {
                    *self = Self::Size(Vec::new());
                }
                Ok(rest)
            }
            Self::Trailer(len) => {
                match first {
                    b'\n' if *len == 0 => *self = Self::End,
                    b'\n' => *len = 0,
                    b'\r' => {}
                    _ => *len += 1,
                }
                Ok(rest)
            }
            Self::End => Ok(bytes),
        }
    }
}

struct Lines<'h> {
    start: &'h str,
    rest: std::str::Split<'h, &'static str>,
}

impl<'h> Lines<'h> {
    fn new(head: &'h [u8]) -> Result<Self, BadMessage> {
        let text = std::str::from_utf8(head).map_err(|_| BadMessage::Header)?;
        let mut rest = text.split("\r\n");
        let start = rest.next().ok_or(BadMessage::StartLine)?;
        Ok(Self { start, rest })
    }

    fn next_header(&mut self) -> Result<Option<(String, &'h str)>, BadMessage> {
        let Some(line) = self.rest.next().filter(|l| !l.is_empty()) else { return Ok(None) };
        let (name, value) = line.split_once(':').ok_or(BadMessage::Header)?;
        // White space before the colon, or a folded line, is an attack more often than an accident.
        if name.is_empty() || name.contains([' ', '\t']) {
            return Err(BadMessage::Header);
        }
        Ok(Some((name.to_ascii_lowercase(), value.trim())))
    }
}

fn has_token(value: &str, token: &str) -> bool {
    value.split(',').any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// The path of a request target: origin or absolute form, query cut, percent signs decoded.
fn decode_path(target: &str) -> Result<String, BadMessage> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |i| &rest[i..]),
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or("");
    if !path.starts_with('/') && path != "*" {
        return Err(BadMessage::StartLine);
    }
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).ok_or(BadMessage::StartLine);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| BadMessage::StartLine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_with_query_and_escapes_is_parsed() {
        let r = Request::parse(b"GET /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n").expect("valid");
        assert_eq!(r, Request { method: "GET".into(), path: "/a b".into(), keep_alive: false, has_body: false });
        assert!(Request::parse(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("valid").keep_alive);
        assert!(Request::parse(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n").expect("valid").has_body);
    }

    #[test]
    fn malformed_requests_are_refused() {
        let cases: [&[u8]; 6] = [
            b"GET /\r\n\r\n",
            b"GET / HTTP/2\r\n\r\n",
            b"GET a HTTP/1.1\r\n\r\n",
            b"GET /%zz HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
            b"\r\n\r\n",
        ];
        for head in cases {
            assert!(Request::parse(head).is_err(), "{head:?}");
        }
        assert_eq!(head_len(&[b'a'; MAX_HEAD]), Err(BadMessage::TooLarge));
    }

    #[test]
    fn framing_follows_the_headers() {
        let framing = |head: &[u8]| Response::parse(head).expect("valid").framing;
        assert_eq!(framing(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Framing::Length(5));
        assert_eq!(framing(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"), Framing::Chunked);
        assert_eq!(framing(b"HTTP/1.0 200 OK\r\n\r\n"), Framing::Close);
        assert_eq!(framing(b"HTTP/1.1 304 Not Modified\r\n\r\n"), Framing::Length(0));
        assert!(Response::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n").is_err());
    }

    #[test]
    fn chunked_body_is_read_wherever_it_is_cut() {
        let wire = b"4\r\nWiki\r\n5;ext=1\r\npedia\r\n0\r\nTrailer: x\r\n\r\n";
        for cut in 1..wire.len() {
            let mut reader = BodyReader::new(Framing::Chunked);
            let mut body = Vec::new();
            for part in wire.chunks(cut) {
                reader.read(part, |b| body.extend_from_slice(b)).expect("valid");
            }
            assert_eq!((body.as_slice(), reader.is_complete()), (&b"Wikipedia"[..], true));
        }
        assert!(BodyReader::new(Framing::Chunked).read(b"x\r\n", |_| {}).is_err());
    }
}
