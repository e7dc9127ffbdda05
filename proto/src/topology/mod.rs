//! The topology file: YAML to a validated [`Topology`].
//!
//! [`parse`] does all of it: syntax, unknown fields, units, names, endpoints,
//! addresses (allocating those left out). What it returns can be deployed; what
//! is wrong comes back as [`Problem`]s that point into the file.

mod address;
mod files;
mod lower;
mod problem;
mod raw;
#[cfg(test)]
mod tests;
mod units;

pub use files::{Bind, Files, read_in};
pub use problem::{Problem, Problems};
pub use units::{BadUnit, probability, rate, time};

use ipnet::Ipv4Net;
use serde_saphyr::{Error, Options};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Octets of the largest file that is read.
pub const MAX_FILE: u64 = 4 << 20;

/// Fields that the design names and that are not built yet: the error says so.
const NOT_YET: &[&str] = &["jitter", "reorder", "duplicate", "corrupt", "gilbert-elliott", "container"];

/// Reads and validates a topology. `file_name` is for messages.
///
/// # Errors
/// Everything that is wrong with the file; nothing has been started.
pub fn parse(file_name: &str, text: &str) -> Result<Topology, Problems> {
    read(file_name, text, None)
}

/// As [`parse`], and looks at the paths that the file names: those of a file in the directory `base`.
///
/// # Errors
/// As [`parse`]; a path that is not there is a mistake.
pub fn parse_in(file_name: &str, text: &str, base: &Path) -> Result<Topology, Problems> {
    read(file_name, text, Some(base))
}

fn read(file_name: &str, text: &str, base: Option<&Path>) -> Result<Topology, Problems> {
    let fail = |problems| Problems::new(file_name, text, problems);
    if text.len() as u64 > MAX_FILE {
        let what = format!("the file has {} MiB; a topology has at most {} MiB", text.len() >> 20, MAX_FILE >> 20);
        return Err(Problems::new(file_name, "", vec![Problem::of_file(what)]));
    }
    let raw: raw::File = serde_saphyr::from_str_with_options(text, options()).map_err(|e| fail(vec![explain(&e)]))?;
    lower::lower(raw, base).map_err(fail)
}

/// The JSON Schema of a topology file, for editors.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(raw::File).to_value()
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: 32,
            max_nodes: 200_000,
            max_aliases: 1000,
            max_recorded_anchor_events: 50_000,
        },
        with_snippet: false,
    }
}

/// A parser's error as a problem of the file.
fn explain(error: &Error) -> Problem {
    let error = error.without_snippet();
    let place = error.location().unwrap_or(serde_saphyr::Location::UNKNOWN);
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let p = Problem::at(place, format!("unknown field `{field}`"), "not known here");
            if NOT_YET.contains(&field.as_str()) {
                return p.help(format!("`{field}` is not supported yet (docs/support-matrix.md)"));
            }
            match problem::nearest(field, expected.iter().copied()) {
                Some(near) => p.help(format!("did you mean `{near}`?")),
                None => p.help(format!("fields here are: {}", expected.join(", "))),
            }
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            let p = Problem::at(place, format!("`{variant}` is not known here"), "unknown value");
            match problem::nearest(variant, expected.iter().copied()) {
                Some(near) => p.help(format!("did you mean `{near}`?")),
                None => p.help(format!("write one of: {}", expected.join(", "))),
            }
        }
        Error::SerdeMissingField { field, .. } => {
            Problem::at(place, format!("field `{field}` is missing"), "needs it").help(format!("add `{field}:`"))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("?");
            Problem::at(place, format!("key `{key}` stands twice in this mapping"), "second use").help("remove or rename one of them")
        }
        Error::SerdeInvalidType { unexpected, expected, .. } => {
            Problem::at(place, format!("expected {expected}, found {unexpected}"), "wrong type").help(format!("write {expected}"))
        }
        other => {
            // The parser's own words end with the place, which is shown by itself.
            let text = other.to_string();
            let text = text.split(" at line ").next().unwrap_or(&text).to_string();
            Problem::at(place, text, "here").help("see `labctl schema`, or the files in topologies/")
        }
    }
}

/// A validated topology. Nodes and links are in the file's order; every address is allocated.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// Lab name: `[a-z0-9][a-z0-9_-]*`, at most 32 octets.
    pub name: String,
    /// Every random choice in the lab derives from it.
    pub seed: u64,
    /// Where processes run.
    pub placement: Placement,
    /// Whether daemons spin before they sleep.
    pub poll: Poll,
    /// Nodes in the file's order.
    pub nodes: Vec<Node>,
    /// Links in the file's order.
    pub links: Vec<Link>,
    /// Checks in order.
    pub checks: Vec<Check>,
}

/// `placement:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// Neighbours share a CPU while it has room.
    #[default]
    Auto,
    /// All on one CPU.
    Pack,
    /// Nodes on different CPUs.
    Spread,
}

/// `poll:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Poll {
    /// Sleep at once.
    Never,
    /// Spin briefly first.
    #[default]
    Adaptive,
}

/// `kind:` of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Emulated host.
    Host,
    /// Emulated host that forwards.
    Router,
    /// Learning bridge.
    Switch,
    /// Real Linux in a namespace: a new one, or the one at a path.
    Linux {
        /// An existing network namespace's path; `None`: made for the lab.
        netns: Option<String>,
    },
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name, also the hostname: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most 63 octets.
    pub name: String,
    /// Kind.
    pub kind: Kind,
    /// Modelled CPUs.
    pub cpus: u16,
    /// Programs to start.
    pub run: Vec<Run>,
    /// Sysctls, `net.ipv4.…`.
    pub sysctls: BTreeMap<String, String>,
    /// What its programs see of the machine's files, and as whom they run.
    pub files: Files,
    /// NIC parameters, of all its interfaces.
    pub nic: NicParams,
    /// Static routes beside those derived from the links.
    pub routes: Vec<RouteSpec>,
    /// `kernel: {udp-backlog: true}`.
    pub udp_backlog: bool,
    /// Switch: seconds after which an address is forgotten.
    pub ageing: Duration,
    /// Interfaces, in the order of the links that name them.
    pub interfaces: Vec<Interface>,
}

/// `run:` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Built-in program, or `None` with a real one.
    pub builtin: Option<String>,
    /// argv of a real program; arguments of a built-in one.
    pub argv: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// `ready: {tcp: 80}`.
    pub ready_tcp: Option<u16>,
}

/// `nic:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicParams {
    /// Queue pairs, 1 to 8.
    pub queues: u16,
    /// Descriptors, a power of two, 64 to 4096.
    pub rx_ring: u16,
    /// Descriptors, a power of two, 64 to 4096.
    pub tx_ring: u16,
    /// Microseconds by which an RX interrupt may be late.
    pub rx_usecs: u32,
    /// Frames after which it comes at once.
    pub rx_frames: u32,
    /// CPU of each queue's vector.
    pub irq_affinity: Vec<u16>,
    /// Packets of the qdisc.
    pub txqueuelen: u32,
}

/// A static route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteSpec {
    /// `to:`.
    pub to: Ipv4Net,
    /// `via:`.
    pub via: std::net::Ipv4Addr,
}

/// An end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// "eth0", at most 15 octets.
    pub name: String,
    /// Locally administered, derived from the lab's seed and the endpoint.
    pub mac: [u8; 6],
    /// Address; none on a switch port.
    pub ipv4: Option<Ipv4Net>,
    /// Octets of layer-3 payload.
    pub mtu: u32,
    /// Index of its link in [`Topology::links`].
    pub link: usize,
}

/// `medium:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Medium {
    /// Shared memory between two nicds.
    #[default]
    Cable,
    /// TAPs and a Linux bridge.
    Tap,
}

/// A link.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Node and interface name of both ends.
    pub endpoints: [(String, String); 2],
    /// Octets of layer-3 payload.
    pub mtu: u32,
    /// What carries it.
    pub medium: Medium,
    /// From the first endpoint to the second.
    pub forward: Impairment,
    /// From the second to the first.
    pub backward: Impairment,
}

/// What a direction of a link does to frames.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Impairment {
    /// One-way delay.
    pub delay: Duration,
    /// Bits per second; 0: not limited.
    pub rate_bps: u64,
    /// Probability, 0 to 1.
    pub loss: f64,
}

/// A check of `checks:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Node on which it runs.
    pub on: String,
    /// argv, or a built-in's arguments.
    pub run: Run,
    /// Exit status expected.
    pub exit: i32,
}
