//! Where an agent keeps its labs.
//!
//! One state directory for each machine and user, mode 0700:
//!
//! ```text
//! STATE/agent.sock        the agent's gRPC socket, mode 0600
//!      /agent.lock        held (flock) by the agent as long as it lives
//!      /start.lock        held by a labctl while it starts an agent
//!      /agent.log
//!      /labs/LAB/         run directory of a lab: journal, logs, sockets, namespaces
//! ```

use rustix::fs::{Access, FlockOperation};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Octets that a unix socket's path may have, without its terminating zero.
pub const SOCKET_PATH_MAX: usize = 107;

/// The state directory of this user's agent.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
    chosen: bool,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It could not be made or looked at.
    #[error("{path}: {source}; set RINGLAB_DIR to a directory that can be made")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It belongs to somebody else, or others may enter it.
    #[error("{path} is not a directory of this user's own that others cannot write; set RINGLAB_DIR to one that is")]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
    /// A socket in it could not be bound.
    #[error("{path} is too long for sockets in it; set RINGLAB_DIR to a short path")]
    TooLong {
        /// The directory.
        path: PathBuf,
    },
}

impl StateDir {
    /// `$RINGLAB_DIR`; `/run/ringlab` for root; `$XDG_RUNTIME_DIR/ringlab`; `/tmp/ringlab-UID`.
    pub fn locate() -> Self {
        let uid = rustix::process::geteuid();
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(dir) = variable("RINGLAB_DIR") {
            let root = std::path::absolute(&dir).unwrap_or(dir);
            return Self { root, chosen: true };
        }
        let root = if uid.is_root() {
            PathBuf::from("/run/ringlab")
        } else if let Some(dir) = variable("XDG_RUNTIME_DIR") {
            dir.join("ringlab")
        } else {
            PathBuf::from(format!("/tmp/ringlab-{}", uid.as_raw()))
        };
        Self { root, chosen: false }
    }

    /// A state directory at `root`.
    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf(), chosen: true }
    }

    /// Makes the directory if it is missing, and refuses one that others could have made or may enter.
    pub fn prepare(&self) -> Result<(), StateDirError> {
        let failed = |source| StateDirError::Io { path: self.root.clone(), source };
        self.is_short()?;
        if self.chosen
            && let Some(parent) = self.root.parent()
        {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        match DirBuilder::new().mode(0o700).create(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        self.check()?;
        DirBuilder::new().mode(0o700).recursive(true).create(self.labs()).map_err(failed)
    }

    /// Whether sockets of the smallest lab can be in it.
    fn is_short(&self) -> Result<(), StateDirError> {
        let long = self.lab("x").join("s/1a.vhost").as_os_str().len() > SOCKET_PATH_MAX;
        if long { Err(StateDirError::TooLong { path: self.root.clone() }) } else { Ok(()) }
    }

    /// Whether the directory is there and usable, or can be made. Nothing is made.
    pub fn usable(&self) -> Result<(), StateDirError> {
        self.is_short()?;
        match self.check() {
            Err(StateDirError::Io { path, source }) if source.kind() == io::ErrorKind::NotFound => {
                // Only a chosen directory is made with those above it.
                let mut above = self.root.ancestors().skip(1).take(if self.chosen { usize::MAX } else { 1 });
                let there = above.find(|dir| dir.exists()).ok_or(source);
                let may = there.and_then(|dir| Ok(rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)?));
                may.map_err(|source| StateDirError::Io { path, source })
            }
            checked => checked,
        }
    }

    /// Whether the directory is there and private.
    pub fn check(&self) -> Result<(), StateDirError> {
        let metadata = std::fs::symlink_metadata(&self.root).map_err(|source| StateDirError::Io { path: self.root.clone(), source })?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        // A directory that the user chose may be looked at; what is in it is private by itself.
        let open = if self.chosen { 0o022 } else { 0o077 };
        if !metadata.is_dir() || !own || metadata.permissions().mode() & open != 0 {
            return Err(StateDirError::NotPrivate { path: self.root.clone() });
        }
        Ok(())
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("agent.sock")
    }

    /// Where the agent writes its log.
    pub fn log(&self) -> PathBuf {
        self.root.join("agent.log")
    }

    /// Run directories of labs.
    pub fn labs(&self) -> PathBuf {
        self.root.join("labs")
    }

    /// Run directory of the lab called `name`.
    pub fn lab(&self, name: &str) -> PathBuf {
        self.labs().join(name)
    }

    /// Whether a lab, or what is left of one, is here.
    pub fn has_labs(&self) -> bool {
        std::fs::read_dir(self.labs()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Takes the lock that an agent holds while it lives; waits for a predecessor to end.
    pub fn lock_agent(&self) -> io::Result<FileLock> {
        self.lock("agent.lock")
    }

    /// Takes the lock under which an agent is started.
    pub fn lock_start(&self) -> io::Result<FileLock> {
        self.lock("start.lock")
    }

    /// Takes a lock. An agent that ends may take the directory with it: it is made anew.
    fn lock(&self, name: &str) -> io::Result<FileLock> {
        loop {
            match FileLock::take(&self.root.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.prepare().map_err(io::Error::other)?,
                taken => return taken,
            }
        }
    }

    /// Removes what an agent without labs leaves. The caller holds the agent's lock. Nothing, while somebody starts the next agent: that
    /// one has it; and a third could take a new lock beside theirs, to wait for an agent that nobody ends.
    pub fn clear(&self) {
        let Ok(Some(_start)) = FileLock::try_take(&self.root.join("start.lock")) else { return };
        for name in ["agent.sock", "agent.log", "start.lock", "agent.lock"] {
            let _ = std::fs::remove_file(self.root.join(name));
        }
        let _ = std::fs::remove_dir(self.labs());
        if !self.chosen {
            let _ = std::fs::remove_dir(&self.root);
        }
    }
}

/// An exclusive flock on a file, until dropped.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits for the lock on `path`.
    fn take(path: &Path) -> io::Result<Self> {
        let taken = Self::lock(path, FlockOperation::LockExclusive)?;
        taken.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Takes the lock on `path`; `None`: somebody has it.
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        Self::lock(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// A file that was removed meanwhile is no lock: begin anew.
    fn lock(path: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            match rustix::fs::flock(&file, operation) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                locked => locked?,
            }
            let held = file.metadata()?;
            if std::fs::metadata(path).is_ok_and(|now| now.ino() == held.ino() && now.dev() == held.dev()) {
                return Ok(Some(Self { _file: file }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_open_to_others_is_refused() {
        let base = crate::scratch::Scratch::new("paths");
        let state = StateDir::at(&base.path().join("state"));
        state.prepare().unwrap();
        std::fs::set_permissions(state.root(), std::fs::Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(state.prepare(), Err(StateDirError::NotPrivate { .. })));
    }

    #[test]
    fn symbolic_link_is_refused() {
        let base = crate::scratch::Scratch::new("paths-link");
        std::fs::create_dir(base.path().join("real")).unwrap();
        std::os::unix::fs::symlink(base.path().join("real"), base.path().join("state")).unwrap();
        let state = StateDir::at(&base.path().join("state"));
        assert!(matches!(state.prepare(), Err(StateDirError::NotPrivate { .. })));
    }

    #[test]
    fn lock_on_a_removed_file_is_taken_anew() {
        let base = crate::scratch::Scratch::new("paths-lock");
        let path = base.path().join("x.lock");
        let first = FileLock::take(&path).unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || FileLock::take(&path).unwrap()
        });
        std::fs::remove_file(&path).unwrap();
        drop(first);
        let _second = waiter.join().unwrap();
        assert!(path.exists(), "the second holder's lock is the file that is there now");
    }

    #[test]
    fn agent_that_waits_for_its_predecessor_outlives_the_directory() {
        let base = crate::scratch::Scratch::new("paths-clear");
        let state = StateDir { root: base.path().join("state"), chosen: false };
        state.prepare().unwrap();
        let first = state.lock_agent().unwrap();
        let waiter = std::thread::spawn({
            let state = state.clone();
            move || state.lock_agent()
        });
        state.clear();
        drop(first);
        let _second = waiter.join().unwrap().unwrap();
        assert!(state.root().join("agent.lock").exists());
        state.check().unwrap();
    }

    #[test]
    fn nothing_is_removed_while_the_next_agent_is_started() {
        let base = crate::scratch::Scratch::new("paths-start");
        let state = StateDir { root: base.path().join("state"), chosen: false };
        state.prepare().unwrap();
        let _agent = state.lock_agent().unwrap();
        let starts = state.lock_start().unwrap();
        std::fs::write(state.log(), "of the next agent").unwrap();
        state.clear();
        assert!(state.log().exists() && FileLock::try_take(&state.root().join("start.lock")).unwrap().is_none());
        drop(starts);
        state.clear();
        assert!(!state.root().exists());
    }

    #[test]
    fn directory_that_can_be_made_is_usable_and_is_not_made_to_see() {
        let base = crate::scratch::Scratch::new("paths-usable");
        let below = base.path().join("a/b");
        StateDir::at(&below).usable().unwrap();
        // Which only one that was chosen is made with.
        assert!(matches!(StateDir { root: below.clone(), chosen: false }.usable(), Err(StateDirError::Io { .. })));
        assert!(!base.path().join("a").exists());
        let long = StateDir::at(&base.path().join("x".repeat(100)));
        assert!(
            matches!(long.usable(), Err(StateDirError::TooLong { .. })) && matches!(long.prepare(), Err(StateDirError::TooLong { .. }))
        );
        StateDir::at(&below).prepare().unwrap();
        StateDir::at(&below).usable().unwrap();
    }
}
