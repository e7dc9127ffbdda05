//! Serving gRPC on a unix socket, alike in every daemon: who may connect, health, reflection.

use rustix::fs::{Mode, fchmod};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Router;

/// Rest after a connection that could not be taken: out of descriptors, the next one fails too.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Binds `path` with mode 0600, in place of a socket that nobody serves any more.
///
/// # Errors
/// `AddrInUse` if somebody serves it, `AlreadyExists` if it is no socket; else what the system answers.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it"));
    }
    UnixListener::from_std(listen(path, SocketType::STREAM)?.into())
}

/// A listening, non-blocking unix socket at `path` of mode 0600, in place of a socket that
/// a dead predecessor left there.
///
/// # Errors
/// `AlreadyExists` if something else is there; else what the system answers.
pub fn listen(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    unlink_stale(path)?;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // The file gets the socket's mode (less the umask) when `bind` makes it. A `chmod` after
    // it would leave a moment for others to connect; a umask is the whole process's.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes the socket that a dead predecessor left at `path`; anything but a socket is left alone.
///
/// # Errors
/// `AlreadyExists` if something else is there.
pub fn unlink_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// True if the other end is root or our own user (`SO_PEERCRED`).
pub fn is_allowed(socket: impl AsFd) -> bool {
    match socket_peercred(socket) {
        Ok(peer) if peer.uid.is_root() || peer.uid == rustix::process::geteuid() => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid.as_raw(), "refused a connection of another user");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "refused a connection without credentials");
            false
        }
    }
}

/// Connections of root and our own user; others are closed.
pub fn allowed(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    let incoming = UnixListenerStream::new(listener).then(async |stream| {
        if let Err(error) = &stream {
            tracing::warn!(%error, "a connection could not be taken");
            tokio::time::sleep(PAUSE).await;
        }
        stream
    });
    incoming.filter(|stream| stream.as_ref().is_ok_and(is_allowed))
}

/// A server with health (of service `S`) and reflection; `S` itself is still to be added.
pub async fn router<S: NamedService>() -> Router {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<S>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the build script encoded the descriptors");
    Server::builder().add_service(health_service).add_service(reflection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Dir(std::path::PathBuf);

    impl Dir {
        fn new(test: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("ringlab-server-{test}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn only_sockets_are_replaced() {
        let dir = Dir::new("stale");
        let path = dir.0.join("s");
        unlink_stale(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        unlink_stale(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(unlink_stale(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn socket_is_ours_alone_and_not_taken_from_a_living_server() {
        let dir = Dir::new("bind");
        let path = dir.0.join("s");
        let listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        bind(&path).unwrap();
    }

    #[tokio::test]
    async fn socket_of_any_kind_has_its_mode_from_the_first_moment() {
        let dir = Dir::new("mode");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
            let path = dir.0.join("s");
            let _socket = listen(&path, kind).unwrap();
            assert_eq!(mode(&path), 0o600);
        }
        // What `listen` relies on: it is `bind` that gives the file the socket's mode.
        let path = dir.0.join("bound");
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        fchmod(&socket, Mode::RUSR).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert_eq!(mode(&path), 0o400);
    }

    #[tokio::test]
    async fn own_user_is_let_in() {
        let dir = Dir::new("allowed");
        let path = dir.0.join("s");
        let mut incoming = std::pin::pin!(allowed(bind(&path).unwrap()));
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok());
    }
}
