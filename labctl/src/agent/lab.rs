//! One lab that is up, or on its way.
//!
//! Operations that change a lab (deploy, destroy, restart, a supervisor's) hold
//! [`Lab::operate`]; its state is behind a lock that is never held across an
//! await, so that `list` and `inspect` answer at once, also in the middle of a
//! deployment.

use crate::agent::daemon::{Daemon, Role};
use crate::agent::failure::Failure;
use crate::agent::journal::{FILE_NAME, Journal, LinkState, Owned, Record};
use crate::agent::plan::{LinkPlan, NodePlan, Plan, wire_impairment};
use crate::agent::process::Process;
use ringlab_proto::agent::{InspectReply, InterfaceInfo, LabSummary, LinkInfo, NodeInfo};
use ringlab_proto::topology::{Medium, Topology};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Name of the topology in a lab's run directory.
pub const TOPOLOGY: &str = "topology.yaml";

/// A lab.
#[derive(Debug)]
pub struct Lab {
    /// Its name.
    pub name: String,
    /// Its run directory.
    pub run_dir: PathBuf,
    operation: tokio::sync::Mutex<Life>,
    state: Mutex<State>,
}

/// Whether a lab can still be operated on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It can.
    Alive,
    /// It has been removed: look it up anew.
    Removed,
}

/// What changes.
#[derive(Debug)]
pub struct State {
    /// Open as soon as the lab may own something.
    journal: Option<Journal>,
    /// The topology file.
    pub path: PathBuf,
    /// When the lab came up, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What the file says.
    pub topology: Option<Topology>,
    /// What is up.
    pub plan: Plan,
    /// By name. A node that is being made is here already, and not in the plan.
    pub nodes: BTreeMap<String, NodeState>,
    /// Programs started by `exec`, by the number of the call.
    pub execs: BTreeMap<u64, Arc<Process>>,
}

/// A node's processes.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// Its NIC.
    pub nicd: Option<Daemon>,
    /// Its host.
    pub hostd: Option<Daemon>,
    /// Programs of `run:` on a Linux node, by position.
    pub programs: BTreeMap<usize, Arc<Process>>,
    /// How often a daemon has been started anew since the lab came up.
    pub restarts: u32,
    /// A daemon has ended and is about to be started.
    pub restarting: bool,
    /// A daemon could not be started.
    pub failed: bool,
}

impl NodeState {
    /// The place of a daemon.
    pub fn daemon(&mut self, role: Role) -> &mut Option<Daemon> {
        match role {
            Role::Nicd => &mut self.nicd,
            Role::Hostd => &mut self.hostd,
        }
    }
}

impl Lab {
    /// A lab that owns nothing.
    pub fn new(name: &str, run_dir: &Path) -> Arc<Self> {
        let state = State {
            journal: None,
            path: PathBuf::new(),
            since_unix_ns: 0,
            topology: None,
            plan: Plan::default(),
            nodes: BTreeMap::new(),
            execs: BTreeMap::new(),
        };
        Arc::new(Self {
            name: name.to_owned(),
            run_dir: run_dir.to_path_buf(),
            operation: tokio::sync::Mutex::new(Life::Alive),
            state: Mutex::new(state),
        })
    }

    /// Makes the run directory and begins the journal, or goes on with one that sums up to `owned`.
    pub fn open(&self, owned: Owned) -> Result<(), Failure> {
        let mut make = DirBuilder::new();
        make.mode(0o700).recursive(true);
        let made = ["s", "netns"].iter().try_for_each(|dir| make.create(self.run_dir.join(dir)));
        let journal = made.and_then(|()| Journal::open(&self.run_dir, owned));
        self.state().journal = Some(journal.map_err(|error| Failure::Machine(format!("{}: {error}", self.run_dir.display())))?);
        Ok(())
    }

    /// Whether it has been opened: it may own something.
    pub fn is_open(&self) -> bool {
        self.state().journal.is_some()
    }

    /// Waits until no other operation is under way, and keeps others out.
    pub async fn operate(&self) -> tokio::sync::MutexGuard<'_, Life> {
        self.operation.lock().await
    }

    /// The state, for a moment.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends to the journal. What cannot be journaled must not be made.
    pub fn journal(&self, records: impl IntoIterator<Item = Record>) -> Result<(), Failure> {
        let mut state = self.state();
        let journal = state.journal.as_mut().expect("a lab is opened before it owns anything");
        journal.write(records).map_err(|error| Failure::Machine(format!("{}: {error}", self.run_dir.join(FILE_NAME).display())))
    }

    /// Appends to the journal and sees that the disk has it.
    pub fn commit(&self, records: impl IntoIterator<Item = Record>) -> Result<(), Failure> {
        let mut state = self.state();
        let journal = state.journal.as_mut().expect("a lab is opened before it owns anything");
        journal.commit(records).map_err(|error| Failure::Machine(format!("{}: {error}", self.run_dir.join(FILE_NAME).display())))
    }

    /// Counts a restart of a node.
    pub fn count_restart(&self, node: &str) -> Result<(), Failure> {
        let times = {
            let mut state = self.state();
            let state = state.nodes.entry(node.to_owned()).or_default();
            state.restarts += 1;
            state.restarts
        };
        self.journal([Record::Restarted { node: node.to_owned(), times }])
    }

    /// What the lab owns.
    pub fn owned(&self) -> Owned {
        self.state().journal.as_ref().map(|journal| journal.owned().clone()).unwrap_or_default()
    }

    /// The plan of a node that is up.
    pub fn node_plan(&self, node: &str) -> Result<NodePlan, Failure> {
        let state = self.state();
        state.plan.node(node).cloned().ok_or_else(|| {
            let names = state.plan.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
            Failure::Usage(format!("lab {} has no node {node}; its nodes are {names}", self.name))
        })
    }

    /// The link that has `endpoint` ("web:eth0") as one of its ends.
    pub fn link_plan(&self, endpoint: &str) -> Result<LinkPlan, Failure> {
        let state = self.state();
        let at = |link: &&LinkPlan| link.ends.iter().any(|(node, port)| endpoint.split_once(':') == Some((node, port)));
        state.plan.links.iter().find(at).cloned().ok_or_else(|| {
            let ends = state.plan.links.iter().flat_map(|link| &link.ends).map(|(node, port)| format!("{node}:{port}")).collect::<Vec<_>>();
            Failure::Usage(format!("lab {} has no endpoint {endpoint}; its endpoints are {}", self.name, ends.join(", ")))
        })
    }

    /// For `list`.
    pub fn summary(&self) -> LabSummary {
        let state = self.state();
        let running = state.plan.nodes.iter().filter(|node| state.node_state(node) == "running").count();
        LabSummary {
            name: self.name.clone(),
            path: state.path.to_string_lossy().into_owned(),
            nodes: count(state.plan.nodes.len()),
            links: count(state.plan.links.len()),
            nodes_running: count(running),
            up_since_unix_ns: state.since_unix_ns,
            owner: owner(),
        }
    }

    /// For `inspect`.
    pub fn inspect(&self) -> InspectReply {
        let state = self.state();
        InspectReply {
            name: self.name.clone(),
            path: state.path.to_string_lossy().into_owned(),
            run_dir: self.run_dir.to_string_lossy().into_owned(),
            nodes: state.plan.nodes.iter().map(|node| state.node_info(node)).collect(),
            links: state.plan.links.iter().map(link_info).collect(),
            seed: state.topology.as_ref().map_or(0, |topology| topology.seed),
        }
    }
}

impl State {
    fn node_state(&self, plan: &NodePlan) -> &'static str {
        let Some(node) = self.nodes.get(&plan.name) else { return "exited" };
        let up = |wanted: bool, daemon: &Option<Daemon>| !wanted || daemon.as_ref().is_some_and(|daemon| !daemon.process.has_ended());
        if node.failed {
            "failed"
        } else if node.restarting || !up(plan.nic.is_some(), &node.nicd) || !up(plan.host.is_some(), &node.hostd) {
            "restarting"
        } else {
            "running"
        }
    }

    fn node_info(&self, plan: &NodePlan) -> NodeInfo {
        let node = self.nodes.get(&plan.name).cloned().unwrap_or_default();
        let pid = |daemon: &Option<Daemon>| daemon.as_ref().filter(|d| !d.process.has_ended()).map_or(0, |d| d.process.pid());
        let up = |interface: &str| {
            let end = (plan.name.as_str(), interface);
            self.plan.links.iter().find(|link| link.ends.iter().any(|(n, i)| (n.as_str(), i.as_str()) == end)).is_some_and(|l| l.state.up)
        };
        NodeInfo {
            name: plan.name.clone(),
            kind: plan.kind.to_owned(),
            state: self.node_state(plan).to_owned(),
            nicd_pid: pid(&node.nicd),
            hostd_pid: pid(&node.hostd),
            interfaces: plan
                .interfaces
                .iter()
                .map(|interface| InterfaceInfo {
                    name: interface.name.clone(),
                    mac: mac(&interface.mac),
                    ipv4: interface.ipv4.iter().map(ToString::to_string).collect(),
                    mtu: interface.mtu,
                    up: up(&interface.name),
                    // Only the NIC knows.
                    carrier: false,
                })
                .collect(),
            cpu: plan.cpu,
            restarts: node.restarts,
        }
    }
}

/// A link, for `inspect` and `link set`.
pub fn link_info(link: &LinkPlan) -> LinkInfo {
    let [a, b] = link.ends.clone().map(|(node, port)| format!("{node}:{port}"));
    let LinkState { up, forward, backward } = link.state;
    LinkInfo {
        a,
        b,
        medium: if link.medium == Medium::Tap { "tap" } else { "cable" }.to_owned(),
        forward: Some(wire_impairment(forward)),
        backward: Some(wire_impairment(backward)),
        up,
    }
}

/// "02:00:00:00:00:01".
pub fn mac(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The user whose agent this is, by name if the machine has one for the number.
fn owner() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}
