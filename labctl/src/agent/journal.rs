//! What a lab owns, on disk, so that destroy finds exactly that.
//!
//! An append-only file of JSON lines in the lab's run directory. A record is
//! written before its resource is made, another when it is known to be gone.
//! Killing the agent between two writes loses nothing: a record without a
//! resource is harmless to remove, a resource without a record cannot be.
//! A process is announced first and named (number, start time) when it runs; for
//! the moment between the two, the announcement carries the log file that the
//! process holds open as its standard output, which no other process does.
//!
//! A torn last line (the agent was killed in its write) is what it says: not written.
//! Everything else lives inside the run directory and goes with it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the journal in a lab's run directory.
pub const FILE_NAME: &str = "journal.jsonl";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Record {
    /// First line: whose lab it is. After a reboot (`boot` differs) no process of it is alive.
    Lab {
        /// Lab's name.
        name: String,
        /// Topology file.
        path: PathBuf,
        /// Kernel's boot identity.
        boot: String,
        /// When it was deployed, nanoseconds since 1970.
        since_unix_ns: u64,
    },
    /// A node's or link's number in paths, and a node's CPU.
    Number {
        /// "node web" or "link a:eth0 b:eth0".
        of: String,
        /// Never used for another.
        number: u32,
        /// CPU of a node's processes.
        cpu: Option<u32>,
    },
    /// A process is about to be started.
    Announce {
        /// "nicd web".
        key: String,
        /// File that is its standard output, and of no process that is not the lab's.
        log: Option<PathBuf>,
    },
    /// It runs.
    Process {
        /// "nicd web".
        key: String,
        /// Process number.
        pid: u32,
        /// Field 22 of its `/proc/PID/stat`: with the number, its identity.
        start_time: u64,
    },
    /// A network namespace is about to be mounted here.
    Netns {
        /// The mount point.
        path: PathBuf,
    },
    /// A TAP is about to be opened in a namespace that is not the lab's.
    Tap {
        /// Namespace.
        netns: PathBuf,
        /// Interface name.
        name: String,
    },
    /// The process, namespace or TAP with this key is gone.
    Gone {
        /// As `Announce` has it; a namespace's path; "PATH NAME" of a TAP.
        key: String,
    },
    /// A daemon of a node has been started anew.
    Restarted {
        /// The node.
        node: String,
        /// How often until now.
        times: u32,
    },
    /// Nodes are about to change; what they change to is not yet the lab's topology.
    Begin {
        /// The nodes.
        nodes: Vec<String>,
    },
    /// What `topology.yaml` says is up.
    Commit,
    /// A link was set by hand to something else than the file says.
    Override {
        /// "a:eth0 b:eth0".
        link: String,
        /// Its state, as set; `None`: as the file says.
        state: Option<LinkState>,
    },
}

/// A link's state, as `link set` leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkState {
    /// Carrier.
    pub up: bool,
    /// First end to second.
    pub forward: Impairment,
    /// Second to first.
    pub backward: Impairment,
}

/// As in `nic.proto`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Impairment {
    /// One way.
    pub delay_ns: u64,
    /// 0: not limited.
    pub rate_bps: u64,
    /// 0 to 1.
    pub loss: f64,
}

/// A process that was announced, and, if it got that far, started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedProcess {
    /// Its standard output.
    pub log: Option<PathBuf>,
    /// Number and start time.
    pub identity: Option<(u32, u64)>,
}

/// The journal's sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Owned {
    /// Name, topology file, boot identity and time; `None`: nothing was ever written.
    pub lab: Option<(String, PathBuf, String, u64)>,
    /// Numbers and CPUs.
    pub numbers: BTreeMap<String, (u32, Option<u32>)>,
    /// By key.
    pub processes: BTreeMap<String, OwnedProcess>,
    /// Mount points.
    pub netns: Vec<PathBuf>,
    /// Namespace and name.
    pub taps: Vec<(PathBuf, String)>,
    /// How often a node's daemons have been started anew.
    pub restarts: BTreeMap<String, u32>,
    /// Deployed to the end at least once.
    pub committed: bool,
    /// Nodes that were being changed when the journal ends.
    pub changing: Vec<String>,
    /// Links set by hand.
    pub overrides: BTreeMap<String, LinkState>,
}

impl Owned {
    /// Sums up the journal in `dir`. An unreadable line that is not the last is an error: what it owned is unknown.
    pub fn read(dir: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(dir.join(FILE_NAME)) {
            Ok(text) => Self::replay(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Sums up `text`.
    pub fn replay(text: &str) -> io::Result<Self> {
        let mut owned = Self::default();
        let mut rest = text;
        // Only what ends in a newline was written.
        while let Some((line, after)) = rest.split_once('\n') {
            let record =
                serde_json::from_str(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("journal: {error}")))?;
            owned.apply(record);
            rest = after;
        }
        Ok(owned)
    }

    /// Adds one record.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Lab { name, path, boot, since_unix_ns } => self.lab = Some((name, path, boot, since_unix_ns)),
            Record::Number { of, number, cpu } => {
                self.numbers.insert(of, (number, cpu));
            }
            Record::Announce { key, log } => {
                self.processes.insert(key, OwnedProcess { log, identity: None });
            }
            Record::Process { key, pid, start_time } => {
                if let Some(process) = self.processes.get_mut(&key) {
                    process.identity = Some((pid, start_time));
                }
            }
            Record::Netns { path } => self.netns.push(path),
            Record::Tap { netns, name } => self.taps.push((netns, name)),
            Record::Gone { key } => {
                self.processes.remove(&key);
                self.netns.retain(|path| path.to_string_lossy() != key);
                self.taps.retain(|(netns, name)| tap_key(netns, name) != key);
            }
            Record::Restarted { node, times } => {
                self.restarts.insert(node, times);
            }
            Record::Begin { nodes } => self.changing = nodes,
            Record::Commit => {
                self.committed = true;
                self.changing.clear();
            }
            Record::Override { link, state: Some(state) } => {
                self.overrides.insert(link, state);
            }
            Record::Override { link, state: None } => {
                self.overrides.remove(&link);
            }
        }
    }

    /// The records that sum up to this.
    fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        if let Some((name, path, boot, since_unix_ns)) = self.lab.clone() {
            records.push(Record::Lab { name, path, boot, since_unix_ns });
        }
        records.extend(self.numbers.iter().map(|(of, &(number, cpu))| Record::Number { of: of.clone(), number, cpu }));
        for (key, process) in &self.processes {
            records.push(Record::Announce { key: key.clone(), log: process.log.clone() });
            if let Some((pid, start_time)) = process.identity {
                records.push(Record::Process { key: key.clone(), pid, start_time });
            }
        }
        records.extend(self.netns.iter().map(|path| Record::Netns { path: path.clone() }));
        records.extend(self.taps.iter().map(|(netns, name)| Record::Tap { netns: netns.clone(), name: name.clone() }));
        records.extend(self.restarts.iter().map(|(node, &times)| Record::Restarted { node: node.clone(), times }));
        if self.committed {
            records.push(Record::Commit);
        }
        records.extend(self.overrides.iter().map(|(link, &state)| Record::Override { link: link.clone(), state: Some(state) }));
        if !self.changing.is_empty() {
            records.push(Record::Begin { nodes: self.changing.clone() });
        }
        records
    }
}

/// A TAP's key.
pub fn tap_key(netns: &Path, name: &str) -> String {
    format!("{} {name}", netns.display())
}

/// The journal of a lab that is up, open for writing.
#[derive(Debug)]
pub struct Journal {
    file: File,
    owned: Owned,
}

impl Journal {
    /// Begins the journal of a new lab, or goes on with that in `dir`, rewritten to its sum.
    pub fn open(dir: &Path, owned: Owned) -> io::Result<Self> {
        let next = dir.join(format!("{FILE_NAME}.next"));
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&next)?;
        let mut text = Vec::new();
        for record in owned.records() {
            push_line(&mut text, &record);
        }
        file.write_all(&text)?;
        file.sync_data()?;
        std::fs::rename(&next, dir.join(FILE_NAME))?;
        Ok(Self { file, owned })
    }

    /// Appends records, in one write. They survive the agent from here on; a lost machine loses the resources too.
    pub fn write(&mut self, records: impl IntoIterator<Item = Record>) -> io::Result<()> {
        let mut text = Vec::new();
        for record in records {
            push_line(&mut text, &record);
            self.owned.apply(record);
        }
        self.file.write_all(&text)
    }

    /// Appends records and waits until the disk has them.
    pub fn commit(&mut self, records: impl IntoIterator<Item = Record>) -> io::Result<()> {
        self.write(records)?;
        self.file.sync_data()
    }

    /// What the lab owns now.
    pub fn owned(&self) -> &Owned {
        &self.owned
    }
}

fn push_line(text: &mut Vec<u8>, record: &Record) {
    serde_json::to_writer(&mut *text, record).expect("records are plain data");
    text.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announce(key: &str) -> Record {
        Record::Announce { key: key.into(), log: Some(format!("/run/{key}.log").into()) }
    }

    fn lines(records: &[Record]) -> String {
        let mut text = Vec::new();
        records.iter().for_each(|record| push_line(&mut text, record));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn process_is_owned_from_its_announcement_until_it_is_gone() {
        let started = Record::Process { key: "nicd a".into(), pid: 7, start_time: 99 };
        let mut owned = Owned::replay(&lines(&[announce("nicd a"), announce("nicd b"), started])).unwrap();
        assert_eq!(owned.processes["nicd a"].identity, Some((7, 99)));
        assert_eq!(owned.processes["nicd b"].identity, None);
        owned.apply(Record::Gone { key: "nicd a".into() });
        assert!(!owned.processes.contains_key("nicd a"));
    }

    #[test]
    fn torn_last_line_was_not_written() {
        let whole = lines(&[announce("nicd a"), Record::Netns { path: "/run/ns/x".into() }]);
        for cut in 0..whole.len() {
            let owned = Owned::replay(&whole[..cut]).unwrap();
            assert_eq!(owned.processes.len(), usize::from(cut > whole.find('\n').unwrap()), "cut at {cut}");
            assert!(owned.netns.is_empty(), "cut at {cut}");
        }
        assert_eq!(Owned::replay(&whole).unwrap().netns.len(), 1);
    }

    #[test]
    fn garbage_in_the_middle_is_an_error() {
        let text = format!("{{\"op\":\"mak\n{}", lines(&[announce("nicd a")]));
        assert_eq!(Owned::replay(&text).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn reopened_journal_sums_up_to_the_same() {
        let scratch = crate::scratch::Scratch::new("journal");
        let mut journal = Journal::open(scratch.path(), Owned::default()).unwrap();
        let half = Impairment { delay_ns: 5, rate_bps: 0, loss: 0.5 };
        journal
            .write([
                Record::Lab { name: "x".into(), path: "/x.yaml".into(), boot: "b".into(), since_unix_ns: 3 },
                Record::Number { of: "node a".into(), number: 1, cpu: Some(0) },
                announce("nicd a"),
                Record::Process { key: "nicd a".into(), pid: 7, start_time: 99 },
                announce("hostd a"),
                Record::Netns { path: "/run/ns/x".into() },
                Record::Tap { netns: "/run/ns/x".into(), name: "eth0".into() },
                Record::Restarted { node: "a".into(), times: 2 },
                Record::Commit,
                Record::Override { link: "a:e b:e".into(), state: Some(LinkState { up: false, forward: half, backward: half }) },
                Record::Begin { nodes: vec!["a".into()] },
            ])
            .unwrap();
        let before = journal.owned().clone();
        drop(journal);
        assert_eq!(Owned::read(scratch.path()).unwrap(), before);
        let again = Journal::open(scratch.path(), before.clone()).unwrap();
        assert_eq!(again.owned(), &before);
        assert_eq!(Owned::read(scratch.path()).unwrap(), before);
    }

    #[test]
    fn lab_without_commit_is_half_deployed() {
        let mut owned = Owned::replay(&lines(&[announce("nicd a")])).unwrap();
        assert!(!owned.committed);
        owned.apply(Record::Commit);
        owned.apply(Record::Begin { nodes: vec!["a".into()] });
        assert!(owned.committed);
        assert_eq!(owned.changing, ["a"]);
    }
}
