//! Unix sockets by path: stale ones are replaced, strangers are refused.

use rustix::net::sockopt::socket_peercred;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

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

/// True if the other end is root or our own user.
pub fn is_allowed(socket: impl AsFd) -> bool {
    socket_peercred(socket).is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::getuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_are_replaced() {
        let dir = std::env::temp_dir().join(format!("nicd-socket-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        let path = dir.join("s");
        unlink_stale(&path).expect("nothing there");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        unlink_stale(&path).expect("stale");
        std::fs::write(&path, "precious").expect("written");
        assert_eq!(unlink_stale(&path).expect_err("refused").kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
