//! `labctl logs [-f] [-l LAB] NODE`

use crate::error::{CliError, CliResult};
use crate::output::print;
use crate::{client, exit};
use rustix::fs::inotify;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab; may be left out where one is up.
    #[arg(short, long)]
    pub lab: Option<String>,
    /// Node.
    pub node: String,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many lines of each log.
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<usize>,
}

/// A log, and how far it has been printed.
struct Log {
    label: String,
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

/// Shows the logs of a node's daemons and programs.
pub async fn run(args: Args) -> CliResult {
    let lab = client::inspect(args.lab.as_deref()).await?;
    if !lab.nodes.iter().any(|node| node.name == args.node) {
        let names = lab.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(CliError::usage(format!("lab {} has no node {}; its nodes are {names}", lab.name, args.node)));
    }
    let dir = PathBuf::from(&lab.run_dir);
    let failed = |error: io::Error| CliError::failed(format!("{}: {error}", dir.display()));
    let mut logs = find(&dir, &args.node);
    // Watched before it is read: nothing written between the two is missed.
    let watch = args.follow.then(|| watch(&dir)).transpose().map_err(failed)?;
    for log in &mut logs {
        let mut lines = log.read().map_err(failed)?;
        if let Some(tail) = args.tail {
            lines.drain(..lines.len().saturating_sub(tail));
        }
        show(log, &lines);
    }
    let Some(watch) = watch else { return Ok(exit::OK) };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    while dir.exists() {
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        events.next().map_err(|error| failed(error.into()))?;
        // A program's first log may just have been made.
        for log in find(&dir, &args.node) {
            if !logs.iter().any(|old| old.path == log.path) {
                logs.push(log);
            }
        }
        for log in &mut logs {
            let lines = log.read().map_err(failed)?;
            show(log, &lines);
        }
    }
    Ok(exit::OK)
}

fn watch(dir: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, dir, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE)?;
    // That the directory itself goes, its parent tells: the logs that are open here keep the inode, and with it its own notice.
    if let Some(parent) = dir.parent() {
        inotify::add_watch(&watch, parent, inotify::WatchFlags::DELETE | inotify::WatchFlags::ONLYDIR)?;
    }
    Ok(watch)
}

/// The logs that a node may have, by their exact names.
fn find(dir: &Path, node: &str) -> Vec<Log> {
    let log = |label: String| {
        let path = dir.join(format!("{label}.log"));
        path.exists().then(|| Log { label: label.replace(&format!("-{node}"), ""), path, file: None, rest: Vec::new() })
    };
    let daemons = ["nicd", "hostd"].map(|daemon| format!("{daemon}-{node}"));
    let programs = (0..).map(|position| format!("program-{node}-{position}"));
    daemons.into_iter().filter_map(log).chain(programs.map_while(log)).collect()
}

fn show(log: &Log, lines: &[String]) {
    print(&lines.iter().map(|line| format!("{}: {line}\n", log.label)).collect::<String>());
}

impl Log {
    /// Whole lines that have been written since.
    fn read(&mut self) -> io::Result<Vec<String>> {
        if self.file.is_none() {
            self.file =
                File::open(&self.path).map(Some).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(e) })?;
        }
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        file.read_to_end(&mut self.rest)?;
        let whole = self.rest.iter().rposition(|&octet| octet == b'\n').map_or(0, |end| end + 1);
        let lines = self.rest.drain(..whole).collect::<Vec<_>>();
        Ok(String::from_utf8_lossy(&lines).lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::io::Write;

    #[test]
    fn lines_are_shown_once_and_whole() {
        let scratch = Scratch::new("logs");
        let mut file = File::create(scratch.path().join("nicd-a.log")).unwrap();
        file.write_all(b"one\ntw").unwrap();
        let mut logs = find(scratch.path(), "a");
        assert_eq!(logs.len(), 1);
        assert_eq!(logs[0].label, "nicd");
        assert_eq!(logs[0].read().unwrap(), ["one"]);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(logs[0].read().unwrap(), ["two", "three"]);
        assert!(logs[0].read().unwrap().is_empty());
    }

    #[test]
    fn end_of_the_lab_wakes_a_follower_whose_logs_are_open() {
        let scratch = Scratch::new("logs-end");
        let dir = scratch.path().join("lab");
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("nicd-a.log");
        let _open = File::create(&path).unwrap();
        let watch = watch(&dir).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let second = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&second)).unwrap(), 1);
    }

    #[test]
    fn other_nodes_logs_are_not_this_ones() {
        let scratch = Scratch::new("logs-others");
        for name in ["nicd-a.log", "nicd-ab.log", "hostd-a.log", "program-a-0.log", "program-a-1.log", "program-ab-0.log"] {
            File::create(scratch.path().join(name)).unwrap();
        }
        let labels = find(scratch.path(), "a").into_iter().map(|log| log.label).collect::<Vec<_>>();
        assert_eq!(labels, ["nicd", "hostd", "program-0", "program-1"]);
    }
}
