//! What other users must reach: the checkout may lie in a folder that only root may enter.

use crate::{bin, bin_dir, fresh_dir};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The daemons, and what starts them.
const PROGRAMS: [&str; 3] = ["labctl", "hostd", "nicd"];

/// A directory that every user may enter.
#[derive(Debug)]
pub struct Reachable {
    /// The directory.
    pub dir: PathBuf,
    /// Made for this, and removed with it.
    made: bool,
}

impl Reachable {
    /// This directory if every user may enter it, or else an empty one among the temporary files.
    ///
    /// # Panics
    /// If none can be made.
    pub fn like(dir: &Path) -> Self {
        match dir.canonicalize() {
            Ok(dir) if may_enter(&dir) => Self { dir, made: false },
            _ => Self { dir: fresh_dir("ringlab-files-"), made: true },
        }
    }

    /// The project's programs, where every user may run them.
    ///
    /// # Panics
    /// If they have not been built, or cannot be put there.
    pub fn programs() -> Self {
        Self::with(&bin_dir(), &PROGRAMS)
    }

    /// These files of a directory, where every user may run them.
    ///
    /// # Panics
    /// If they cannot be put there.
    pub fn with(dir: &Path, names: &[&str]) -> Self {
        let place = Self::like(dir);
        for name in names.iter().filter(|_| place.made) {
            put(&dir.join(name), &place.dir.join(name)).unwrap_or_else(|e| panic!("{} for other users: {e}", dir.join(name).display()));
        }
        place
    }

    /// The programs where they were built: for the user who runs the tests.
    ///
    /// # Panics
    /// If they have not been built.
    pub fn built() -> Self {
        let [labctl, ..] = PROGRAMS.map(bin);
        Self { dir: labctl.parent().expect("it lies in a directory").to_path_buf(), made: false }
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        if self.made {
            // If it cannot be removed, whoever cleans temporary files will.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// The directory of temporary files; the machine's, if only one user may enter this process's.
pub fn temporary() -> PathBuf {
    let own = std::env::temp_dir();
    if may_enter(&own) { own } else { PathBuf::from("/tmp") }
}

/// Whether every user may enter a directory, and those above it.
fn may_enter(dir: &Path) -> bool {
    let open = |dir: &Path| std::fs::metadata(dir).is_ok_and(|m| m.is_dir() && m.mode() & 0o001 != 0);
    dir.ancestors().all(open)
}

/// Puts a program where every user may run it: the file itself, under a second name, or a copy, if it is on another file system or for its owner only.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    let open = std::fs::metadata(from)?.mode() & 0o005 == 0o005;
    if !(open && std::fs::hard_link(from, to).is_ok()) {
        std::fs::copy(from, to)?;
        std::fs::set_permissions(to, PermissionsExt::from_mode(0o755))?;
    }
    Ok(())
}
