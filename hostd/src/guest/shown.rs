//! Directories of the node as directories of the machine: below the lab's run directory, with the right names.
//!
//! What is in them has the right kind, permissions and size, so that the machine's kernel lists, `stat`s and enters them; files are
//! empty, but for the few that never change. Who opens one is answered with its text (`files.rs`). Names depend on the
//! interfaces alone, and are looked at again only if those are others.

use super::files::{is_editable, own};
use crate::host::Shared;
use ringlab_kernel::Kernel;
use ringlab_kernel::vfs::procfs::{DirEntry, Entry};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, FileType, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Directories with all below them. What begins alike is made together: links lead from one to the other.
const TREES: [&[&str]; 3] = [&["/sys/class/net", "/sys/devices/virtual/net"], &["/proc/sys/net"], &["/proc/net"]];
/// Octets of a name at most, and of a directory's block.
const NAME_MAX: usize = 255;
const LARGEST_BLOCK: usize = 4096;
/// Octets that a file of `/sys` has for `stat`.
const SYSFS_SIZE: u64 = 4096;

/// The shown directories of a host.
#[derive(Debug, Default)]
pub struct Shown {
    /// They lie below this, once there is one.
    base: Option<PathBuf>,
    /// The interfaces whose names they hold.
    names: Vec<(String, usize)>,
    /// Trees that hold them.
    made: [bool; TREES.len()],
    /// Files that programs have opened to write: they say what they say.
    kept: BTreeSet<String>,
}

impl Shown {
    /// Where the machine's kernel finds what the node has at a path without links ([`super::paths`]).
    ///
    /// # Errors
    /// Those of making directories and files.
    pub fn place(&mut self, shared: &Shared, path: &str) -> io::Result<PathBuf> {
        let base = self.base(shared.hostname())?.to_owned();
        let kernel = shared.kernel();
        let names = kernel.interface_names();
        if names != self.names {
            (self.names, self.made) = (names, Default::default());
        }
        let place = below(&base, path);
        match TREES.iter().position(|roots| roots.iter().any(|root| Path::new(path).starts_with(root))) {
            Some(tree) if self.made[tree] => {}
            Some(tree) => {
                TREES[tree].iter().try_for_each(|root| make_tree(&kernel, &base, root))?;
                self.made[tree] = true;
            }
            None if self.kept.contains(path) => {}
            None => {
                drop(kernel);
                let mode = if is_editable(path) { 0o644 } else { 0o444 };
                make_single(&place, own(shared, path).unwrap_or_default().as_bytes(), mode)?;
            }
        }
        Ok(place)
    }

    /// As [`Self::place`]. From now on the file is what programs make of it.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub fn keep(&mut self, shared: &Shared, path: &str) -> io::Result<PathBuf> {
        let place = self.place(shared, path)?;
        if !self.kept.contains(path) {
            self.kept.insert(path.to_owned());
        }
        Ok(place)
    }

    /// True if programs have opened the file to write.
    pub fn is_kept(&self, path: &str) -> bool {
        self.kept.contains(path)
    }

    /// The path that a directory of the machine shows.
    pub fn meant<'a>(&self, path: &'a str) -> Option<&'a str> {
        let below = path.strip_prefix(self.base.as_ref()?.to_str()?)?;
        below.starts_with('/').then_some(below)
    }

    fn base(&mut self, host: &str) -> io::Result<&Path> {
        if self.base.is_none() {
            // Of this process: what an earlier one has left does not count.
            let base = std::env::current_dir()?.join(format!("shown-{host}-{}", std::process::id()));
            make_directory(&base)?;
            self.base = Some(base);
        }
        self.base.as_deref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn below(base: &Path, path: &str) -> PathBuf {
    base.join(path.trim_start_matches('/'))
}

/// Makes a directory and all below it hold what the node has there.
fn make_tree(kernel: &Kernel, base: &Path, path: &str) -> io::Result<()> {
    let place = below(base, path);
    make_directory(&place)?;
    if path.starts_with("/proc/sys/") && std::fs::read_dir(&place)?.next().is_none() {
        list_dots_first(&place)?;
    }
    let entries = kernel.sysfs_list(path).or_else(|| kernel.procfs_list(path)).unwrap_or_default();
    fill(&place, &entries, if path.starts_with("/sys/") { SYSFS_SIZE } else { 0 })?;
    entries.iter().filter(|e| e.kind == Entry::Directory).try_for_each(|e| make_tree(kernel, base, &format!("{path}/{}", e.name)))
}

/// Makes a directory hold exactly these; files have `size` octets.
fn fill(place: &Path, entries: &[DirEntry], size: u64) -> io::Result<()> {
    let kind = |t: FileType| (t.is_dir(), t.is_symlink());
    let mut there = BTreeSet::new();
    for old in std::fs::read_dir(place)?.flatten() {
        let name = old.file_name();
        let old_kind = kind(old.file_type()?);
        let stays = |e: &&DirEntry| name == *e.name && old_kind == (e.kind == Entry::Directory, matches!(e.kind, Entry::Link(_)));
        match entries.iter().find(stays) {
            Some(entry) => drop(there.insert(entry)),
            None if old_kind.0 => std::fs::remove_dir_all(old.path())?,
            None => std::fs::remove_file(old.path())?,
        }
    }
    for entry in entries.iter().filter(|e| !there.contains(e)) {
        let at = place.join(&entry.name);
        match &entry.kind {
            Entry::Directory => make_directory(&at)?,
            Entry::Link(text) => symlink(text, at)?,
            Entry::File(mode) => {
                let file = new_file(&at)?;
                file.set_len(size)?;
                file.set_permissions(Permissions::from_mode(*mode))?;
            }
        }
    }
    Ok(())
}

/// Lets an empty directory list `.` and `..` before all else, as Linux's `/proc/sys` does: procps' `sysctl -a` passes over the first
/// two and would go round in circles. ext4 lists by a hash of the names, but for the dots of a directory that has been larger than
/// a block.
fn list_dots_first(at: &Path) -> io::Result<()> {
    let names = || (0..LARGEST_BLOCK / NAME_MAX + 1).map(|n| at.join(format!("{n:0NAME_MAX$}")));
    names().try_for_each(|name| new_file(&name).map(drop))?;
    names().try_for_each(std::fs::remove_file)
}

fn make_directory(at: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(at)?;
    // Whatever mask hostd was started with: programs may be other users.
    std::fs::set_permissions(at, Permissions::from_mode(0o755))
}

fn new_file(at: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o644).open(at)
}

/// A file that is in no tree. It says what it says: its length counts.
fn make_single(place: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    if std::fs::read(place).is_ok_and(|old| old == text) {
        return Ok(());
    }
    make_directory(place.parent().unwrap_or(place))?;
    // One that is there cannot be written again by everybody.
    let _ = std::fs::remove_file(place);
    io::Write::write_all(&mut new_file(place)?, text)?;
    std::fs::set_permissions(place, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_directory_holds_what_is_there_now() {
        let base = std::env::temp_dir().join(format!("ringlab-shown-{}", std::process::id()));
        make_directory(&base).expect("a fresh directory");
        let file = |name: &str| DirEntry::new(name, Entry::File(0o444));
        let dir = |name: &str| DirEntry::new(name, Entry::Directory);
        let link = |name: &str| DirEntry::new(name, Entry::Link("../x".into()));
        let names = || std::fs::read_dir(&base).expect("listed").flatten().map(|e| e.file_name()).collect::<BTreeSet<_>>();
        fill(&base, &[dir("lo"), file("x"), link("l")], 4096).expect("filled");
        std::fs::write(base.join("lo/below"), "").expect("written");
        assert_eq!(names(), ["l".into(), "lo".into(), "x".into()].into());
        let meta = std::fs::metadata(base.join("x")).expect("there");
        assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (4096, 0o444));
        fill(&base, &[dir("lo"), dir("x"), dir("eth0")], 0).expect("filled again");
        assert_eq!(names(), ["eth0".into(), "lo".into(), "x".into()].into());
        assert!(base.join("lo/below").exists() && base.join("x").is_dir());
        let single = base.join("etc/hosts");
        for text in ["one", "other text"] {
            make_single(&single, text.as_bytes(), 0o444).expect("written");
            assert_eq!(std::fs::read_to_string(&single).expect("there"), text);
        }
        let shown = Shown { base: Some(base.clone()), ..Shown::default() };
        let inside = format!("{}/sys/class/net", base.display());
        assert_eq!((shown.meant(&inside), shown.meant("/tmp/other")), (Some("/sys/class/net"), None));
        std::fs::remove_dir_all(base).expect("removed");
    }
}
