//! What a node's programs see of the machine's files, and as whom they run: `root`, `binds`, `env`, `workdir`, `user`.
//!
//! With the directory of the topology file at hand, the paths are looked at, too: a file that names what is not there is wrong.

use super::problem::Problem;
use super::raw;
use crate::account::UserSpec;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// `root`, `binds`, `env`, `workdir`, `user`, `preload` of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// What programs see as `/`, as the file has it; `None`: the machine's.
    pub root: Option<String>,
    /// What they see elsewhere than where it is.
    pub binds: Vec<Bind>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Their directory: an absolute path in their root.
    pub workdir: Option<String>,
    /// Whom they run as.
    pub user: Option<String>,
    /// The dynamic loader puts nothing into them.
    pub no_preload: bool,
}

/// An entry of `binds:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// A path of the machine, as the file has it.
    pub source: String,
    /// Where programs see it.
    pub destination: String,
    /// They cannot write there.
    pub read_only: bool,
}

/// Reads the fields of a node. With `base`, the directory of the topology file, paths are looked at.
pub(super) fn lower(raw: &raw::Node, base: Option<&Path>, problems: &mut Vec<Problem>) -> Files {
    let mut l = Lower { base, problems };
    let root = raw.root.as_ref().and_then(|r| l.root(r));
    let binds = l.binds(&raw.binds, root.as_deref());
    for (name, value) in &raw.env.0 {
        l.variable(name, &value.0);
    }
    let env = raw.env.0.iter().map(|(k, v)| (k.value.clone(), v.0.clone())).collect();
    let workdir = raw.workdir.as_ref().and_then(|w| l.workdir(w, root.as_deref(), &binds));
    let user = raw.user.as_ref().and_then(|u| l.user(u, root.as_deref()));
    Files { root, binds, env, workdir, user, no_preload: raw.preload.as_ref().is_some_and(|p| !p.value) }
}

struct Lower<'a> {
    base: Option<&'a Path>,
    problems: &'a mut Vec<Problem>,
}

impl Lower<'_> {
    fn wrong(&mut self, place: Location, message: String, label: &str, help: &str) {
        self.problems.push(Problem::at(place, message, label).help(help));
    }

    fn root(&mut self, raw: &Spanned<String>) -> Option<String> {
        let (text, place) = (&raw.value, raw.referenced);
        if text.is_empty() || text.contains('\0') {
            self.wrong(place, "`root` names no directory".into(), "empty", "root: ./rootfs");
            return None;
        }
        match self.base.map(|base| base.join(text)) {
            Some(dir) if !dir.exists() => {
                self.wrong(place, format!("there is no directory {}", dir.display()), "does not exist", MAKE_ROOT);
            }
            Some(dir) if !dir.is_dir() => {
                self.wrong(place, format!("{} is not a directory", dir.display()), "not a directory", MAKE_ROOT);
            }
            _ => {}
        }
        Some(text.clone())
    }

    fn binds(&mut self, raw: &[raw::Placed<String>], root: Option<&str>) -> Vec<Bind> {
        let mut seen: BTreeMap<String, Location> = BTreeMap::new();
        let mut binds = Vec::new();
        for text in raw {
            let Some(bind) = self.bind(text, root) else { continue };
            if let Some(&first) = seen.get(&bind.destination) {
                let p = Problem::at(text.referenced, format!("`{}` is bound twice", bind.destination), "second use");
                self.problems.push(p.and(first, "first use").help("one bind for each destination"));
            }
            seen.insert(bind.destination.clone(), text.referenced);
            binds.push(bind);
        }
        binds
    }

    fn bind(&mut self, raw: &Spanned<String>, root: Option<&str>) -> Option<Bind> {
        let (text, place) = (raw.value.as_str(), raw.referenced);
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, option) = match parts[..] {
            [source, destination] => (source, destination, "rw"),
            [source, destination, option] => (source, destination, option),
            _ => ("", "", ""),
        };
        if source.is_empty() || destination.is_empty() || text.contains('\0') {
            self.wrong(place, format!("`{text}` is not a bind"), "not `SOURCE:DESTINATION[:ro]`", "binds: [\"./conf:/etc/app:ro\"]");
            return None;
        }
        if option != "ro" && option != "rw" {
            self.wrong(place, format!("`{option}` is not an option of a bind"), "unknown option", "write `ro`, `rw` or nothing");
        }
        let Some(destination) = inside(destination).filter(|d| d != "/") else {
            let help = "a destination is an absolute path without `..`, and not `/`: that is what `root` is for";
            self.wrong(place, format!("`{destination}` cannot be the destination of a bind"), "not a destination", help);
            return None;
        };
        if let Some(base) = self.base {
            self.look_at_bind(place, &base.join(source), root.map(|r| base.join(r)), &destination);
        }
        Some(Bind { source: source.to_owned(), destination, read_only: option == "ro" })
    }

    fn look_at_bind(&mut self, place: Location, source: &Path, root: Option<PathBuf>, destination: &str) {
        if !source.exists() {
            let help = "make it, or name another path; a relative one starts at the topology file";
            return self.wrong(place, format!("there is no {}", source.display()), "does not exist", help);
        }
        match (is_dir_in(root.as_deref().unwrap_or(Path::new("/")), destination), &root) {
            (Some(dir), _) if dir != source.is_dir() => {
                let kind = |dir: bool| if dir { "a directory" } else { "a file" };
                let what = format!("{} is {}, {destination} is {}", source.display(), kind(!dir), kind(dir));
                self.wrong(place, what, "of two kinds", "bind a directory over a directory, a file over a file");
            }
            // In a root of its own it is made.
            (Some(_), _) | (None, Some(_)) => {}
            (None, None) => {
                let help = "without `root` a destination is a path that the machine has: make it, or give the node a `root`";
                self.wrong(place, format!("this machine has no {destination} to bind over"), "does not exist", help);
            }
        }
    }

    fn variable(&mut self, name: &Spanned<String>, value: &str) {
        if name.value.is_empty() || name.value.contains(['=', '\0']) || value.contains('\0') {
            self.wrong(name.referenced, format!("`{}` cannot be a variable", name.value), "not a name", "env: {LANG: C.UTF-8}");
        }
    }

    fn workdir(&mut self, raw: &Spanned<String>, root: Option<&str>, binds: &[Bind]) -> Option<String> {
        let place = raw.referenced;
        let Some(dir) = inside(&raw.value) else {
            let message = format!("`{}` is not an absolute path", raw.value);
            self.wrong(place, message, "not absolute", "a working directory is a path in the node's root, such as `/srv`");
            return None;
        };
        let bound = binds.iter().any(|b| Path::new(&dir).starts_with(&b.destination));
        if let Some(base) = self.base.filter(|_| !bound) {
            let root = root.map_or_else(|| PathBuf::from("/"), |r| base.join(r));
            if is_dir_in(&root, &dir) != Some(true) {
                let message = format!("there is no directory {dir} in {}", root.display());
                self.wrong(place, message, "does not exist", "make it, or name another one");
            }
        }
        Some(dir)
    }

    fn user(&mut self, raw: &Spanned<raw::Scalar>, root: Option<&str>) -> Option<String> {
        let (text, place) = (&raw.value.0, raw.referenced);
        let help = "user: www-data, or `1000`, or `1000:1000`";
        let spec: UserSpec = match text.parse() {
            Ok(spec) => spec,
            Err(error) => {
                self.wrong(place, format!("{error}"), "not a user", help);
                return None;
            }
        };
        if let Some(base) = self.base {
            let root = root.map_or_else(|| PathBuf::from("/"), |r| base.join(r));
            let read = |name: &str| read_in(&root, name).unwrap_or_default();
            if let Err(error) = spec.resolve(&read("/etc/passwd"), &read("/etc/group")) {
                let message = format!("{error} in {}", root.join("etc").display());
                self.wrong(place, message, "not known there", "name one that is there, or write its number");
            }
        }
        Some(text.clone())
    }
}

const MAKE_ROOT: &str = "make it, such as with debootstrap, or name another one; a relative path starts at the topology file";

/// Opens what programs with this root see at `path`; links do not lead out of it.
fn open_in(root: &Path, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Whether it is a directory; `None`: it is not there.
fn is_dir_in(root: &Path, path: &str) -> Option<bool> {
    let there = open_in(root, path, OFlags::PATH).and_then(fstat).ok()?;
    Some(FileType::from_raw_mode(there.st_mode) == FileType::Directory)
}

/// The text of a file of such a root (`/etc/passwd`).
///
/// # Errors
/// As of opening and reading; what is not UTF-8 is replaced.
pub fn read_in(root: &Path, path: &str) -> std::io::Result<String> {
    let mut octets = Vec::new();
    File::from(open_in(root, path, OFlags::RDONLY | OFlags::NONBLOCK)?).read_to_end(&mut octets)?;
    Ok(String::from_utf8_lossy(&octets).into_owned())
}

/// An absolute path without `.`, `..` and doubled slashes; `None` if the text is none.
fn inside(text: &str) -> Option<String> {
    let path = Path::new(text);
    let fine = path.is_absolute() && !text.contains('\0') && !path.components().any(|c| c == Component::ParentDir);
    fine.then(|| path.components().collect::<PathBuf>().to_string_lossy().into_owned())
}
