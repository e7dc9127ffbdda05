//! What has to change to get from one plan to another: pure.

use crate::agent::journal::{Impairment, LinkState};
use crate::agent::plan::{LinkPlan, LinuxPlan, NodePlan, Plan};
use ringlab_proto::host::HostConfig;
use ringlab_proto::nic::port_config::{Device, Wire};
use ringlab_proto::nic::{NicConfig, PortConfig};
use ringlab_proto::topology::Medium;
use std::fmt::Write;

/// What becomes of a node's NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Left as it is.
    Keep,
    /// Told its new configuration while it runs.
    InPlace,
    /// Its process ends and a new one starts.
    Restart,
}

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeChange {
    /// Made.
    Add,
    /// Removed.
    Remove,
    /// Removed and made: it has become something else.
    Replace,
    /// Changed.
    Update {
        /// nicd.
        nic: Part,
        /// hostd; on a Linux node the agent's settings in the namespace and the programs there.
        host: Part,
    },
}

/// The difference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Diff {
    /// Nodes that change, removed ones first, then in the new file's order.
    pub nodes: Vec<(String, NodeChange)>,
    /// For people: "+ node web".
    pub changes: Vec<String>,
}

impl Diff {
    /// What `plan` needs, and `old` has not.
    pub fn between(old: &Plan, new: &Plan) -> Self {
        let mut diff = Self::default();
        for node in old.nodes.iter().filter(|node| new.node(&node.name).is_none()) {
            diff.nodes.push((node.name.clone(), NodeChange::Remove));
            diff.changes.push(format!("- node {}", node.name));
        }
        for link in old.links.iter().filter(|link| new.link(&link.key).is_none()) {
            diff.changes.push(format!("- link {}", link.key));
        }
        for node in &new.nodes {
            let change = match old.node(&node.name) {
                None => Some((NodeChange::Add, format!("+ node {}", node.name))),
                Some(before) => change_of(before, node),
            };
            if let Some((change, text)) = change {
                diff.nodes.push((node.name.clone(), change));
                if !text.is_empty() {
                    diff.changes.push(text);
                }
            }
        }
        for link in &new.links {
            match old.link(&link.key) {
                None => diff.changes.push(format!("+ link {}", link.key)),
                Some(before) => diff.changes.extend(link_change(before, link)),
            }
        }
        diff
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.changes.is_empty()
    }
}

fn change_of(old: &NodePlan, new: &NodePlan) -> Option<(NodeChange, String)> {
    let same_place = match (&old.linux, &new.linux) {
        (Some(a), Some(b)) => a.netns == b.netns,
        _ => true,
    };
    if old.kind != new.kind && (old.host.is_none() || new.host.is_none()) || !same_place {
        return Some((NodeChange::Replace, format!("~ node {}: replaced (kind {} -> {})", new.name, old.kind, new.kind)));
    }
    let nic = match (&old.nic, &new.nic) {
        (Some((_, a)), Some((_, b))) => nic_part(a, b),
        (None, None) => Part::Keep,
        _ => Part::Restart,
    };
    let (host, why) = match ((&old.host, &new.host), (&old.linux, &new.linux)) {
        ((Some((_, a)), Some((_, b))), _) => host_part(a, b),
        (_, (Some(a), Some(b))) => linux_part(old, a, new, b, nic),
        _ => (Part::Keep, Vec::new()),
    };
    if nic == Part::Keep && host == Part::Keep {
        return None;
    }
    let mut text = String::new();
    if host == Part::Restart {
        write!(text, "~ node {}: restarts ({})", new.name, why.join(", ")).expect("a string takes all");
    } else if nic == Part::Restart {
        write!(text, "~ node {}: its NIC restarts (ports)", new.name).expect("a string takes all");
    } else if host == Part::InPlace {
        write!(text, "~ node {}: {}", new.name, why.join(", ")).expect("a string takes all");
    } else if let (Some((_, a)), Some((_, b))) = (&old.nic, &new.nic)
        && !nic_changes(a, b).is_empty()
    {
        write!(text, "~ node {}: {}", new.name, nic_changes(a, b).join(", ")).expect("a string takes all");
    }
    Some((NodeChange::Update { nic, host }, text))
}

/// A port less what nicd can change while frames flow.
fn hardware(port: &PortConfig) -> PortConfig {
    PortConfig { impairment: None, link_down: false, moderation: None, ..port.clone() }
}

/// nicd has given up its privileges: it can make and remove cables and vhost-user sockets, but no TAPs.
fn nic_part(old: &NicConfig, new: &NicConfig) -> Part {
    if old == new {
        return Part::Keep;
    }
    let whole = |config: &NicConfig| (config.node.clone(), config.seed, config.poll.clone(), config.bridge.is_some());
    let stays = |port: &PortConfig| old.ports.iter().any(|other| hardware(other) == hardware(port));
    let has_tap = |port: &PortConfig| matches!(port.device, Some(Device::Tap(_))) || matches!(port.wire, Some(Wire::TapWire(_)));
    let new_tap = new.ports.iter().any(|port| has_tap(port) && !stays(port));
    if whole(old) != whole(new) || new_tap { Part::Restart } else { Part::InPlace }
}

/// What of a NIC changes in place, beside what its links say.
fn nic_changes(old: &NicConfig, new: &NicConfig) -> Vec<&'static str> {
    let mut what = Vec::new();
    let moderated = |port: &PortConfig| old.ports.iter().any(|other| other.name == port.name && other.moderation != port.moderation);
    if new.ports.iter().any(moderated) {
        what.push("interrupt moderation");
    }
    if old.bridge.is_some() && old.bridge != new.bridge {
        what.push("ageing");
    }
    what
}

fn host_part(old: &HostConfig, new: &HostConfig) -> (Part, Vec<&'static str>) {
    part(
        &[
            ("seed", old.seed == new.seed),
            ("cpus", old.cpus == new.cpus),
            ("kind", old.ip_forward == new.ip_forward),
            ("interfaces", old.interfaces == new.interfaces),
            ("routes", old.routes == new.routes),
            ("sysctls", old.sysctls == new.sysctls),
            ("run", old.run == new.run),
            ("poll", old.poll == new.poll),
            ("kernel", old.udp_backlog == new.udp_backlog),
            ("files", old.files == new.files),
        ],
        old.hosts == new.hosts,
    )
}

fn linux_part(old_node: &NodePlan, old: &LinuxPlan, new_node: &NodePlan, new: &LinuxPlan, nic: Part) -> (Part, Vec<&'static str>) {
    // Addresses and routes go with the TAP, which goes with nicd.
    part(
        &[
            ("interfaces", old_node.interfaces == new_node.interfaces && nic != Part::Restart),
            ("routes", old.routes == new.routes),
            ("sysctls", old.sysctls == new.sysctls),
            ("run", old.run == new.run),
            ("files", old.files == new.files),
        ],
        old.hosts == new.hosts,
    )
}

/// What becomes of a node of which `same` says what is as it was; names of other nodes change in place.
fn part(same: &[(&'static str, bool)], same_hosts: bool) -> (Part, Vec<&'static str>) {
    let why = same.iter().filter(|(_, same)| !same).map(|&(what, _)| what).collect::<Vec<_>>();
    match (why.is_empty(), same_hosts) {
        (false, _) => (Part::Restart, why),
        (true, false) => (Part::InPlace, vec!["names of other nodes"]),
        (true, true) => (Part::Keep, why),
    }
}

fn link_change(old: &LinkPlan, new: &LinkPlan) -> Option<String> {
    let mut what = Vec::new();
    if old.medium != new.medium {
        let name = |medium| if medium == Medium::Tap { "tap" } else { "cable" };
        what.push(format!("medium {} -> {}", name(old.medium), name(new.medium)));
    }
    if old.mtu != new.mtu {
        what.push(format!("mtu {} -> {}", old.mtu, new.mtu));
    }
    what.extend(state_changes(old.state, new.state));
    (!what.is_empty()).then(|| format!("~ link {} {}", new.key, what.join(", ")))
}

fn state_changes(old: LinkState, new: LinkState) -> Vec<String> {
    let mut what = Vec::new();
    if old.up != new.up {
        what.push(if new.up { "up" } else { "down" }.to_owned());
    }
    if old.forward == old.backward && new.forward == new.backward {
        what.extend(impairment_changes("", old.forward, new.forward));
    } else {
        what.extend(impairment_changes("forward ", old.forward, new.forward));
        what.extend(impairment_changes("backward ", old.backward, new.backward));
    }
    what
}

fn impairment_changes(direction: &str, old: Impairment, new: Impairment) -> Vec<String> {
    use crate::units::{delay, loss, rate};
    let mut what = Vec::new();
    if old.delay_ns != new.delay_ns {
        what.push(format!("{direction}delay {} -> {}", delay(old.delay_ns), delay(new.delay_ns)));
    }
    if old.rate_bps != new.rate_bps {
        what.push(format!("{direction}rate {} -> {}", rate(old.rate_bps), rate(new.rate_bps)));
    }
    if old.loss != new.loss {
        what.push(format!("{direction}loss {} -> {}", loss(old.loss), loss(new.loss)));
    }
    what
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::{Numbers, Places, plan};
    use crate::agent::samples::Sample;
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::Duration;

    fn diff(old: &Sample, new: &Sample) -> Diff {
        let mut numbers = Numbers::default();
        let (old, new) = (old.topology(), new.topology());
        for topology in [&old, &new] {
            numbers.assign(topology, &vec![0; topology.nodes.len()]);
        }
        let places = Places { run_dir: Path::new("/run/lab"), base: Path::new("/"), numbers: &numbers };
        Diff::between(&plan(&old, places, &BTreeMap::new()), &plan(&new, places, &BTreeMap::new()))
    }

    fn star() -> Sample {
        Sample::new("s").switch("sw").host("a").host("b").link("a", "10.0.0.1/24", "sw", "").link("b", "10.0.0.2/24", "sw", "")
    }

    #[test]
    fn same_file_changes_nothing() {
        assert!(diff(&star(), &star()).is_empty());
    }

    #[test]
    fn impairment_changes_in_place_at_the_end_it_leaves() {
        let new = star().with(|t| t.links[0].forward.delay = Duration::from_millis(10));
        let diff = diff(&star(), &new);
        assert_eq!(diff.nodes, [("a".to_owned(), NodeChange::Update { nic: Part::InPlace, host: Part::Keep })]);
        assert_eq!(diff.changes, ["~ link a:eth0 sw:p0 forward delay 0 -> 10ms"]);
    }

    #[test]
    fn both_directions_alike_are_said_once() {
        let new = star().with(|t| {
            t.links[0].forward.loss = 0.01;
            t.links[0].backward.loss = 0.01;
        });
        assert_eq!(diff(&star(), &new).changes, ["~ link a:eth0 sw:p0 loss 0 -> 1%"]);
    }

    #[test]
    fn added_host_restarts_nothing() {
        let diff = diff(&star(), &star().host("c").link("c", "10.0.0.3/24", "sw", ""));
        assert_eq!(
            diff.nodes,
            [
                ("sw".to_owned(), NodeChange::Update { nic: Part::InPlace, host: Part::Keep }),
                ("a".to_owned(), NodeChange::Update { nic: Part::Keep, host: Part::InPlace }),
                ("b".to_owned(), NodeChange::Update { nic: Part::Keep, host: Part::InPlace }),
                ("c".to_owned(), NodeChange::Add),
            ]
        );
        assert!(diff.changes.contains(&"+ node c".to_owned()) && diff.changes.contains(&"+ link c:eth0 sw:p2".to_owned()));
    }

    #[test]
    fn removed_host_is_removed_and_its_link() {
        let diff = diff(&star().host("c").link("c", "10.0.0.3/24", "sw", ""), &star());
        assert_eq!(diff.nodes[0], ("c".to_owned(), NodeChange::Remove));
        assert!(diff.changes.contains(&"- link c:eth0 sw:p2".to_owned()));
    }

    #[test]
    fn what_cannot_change_in_place_restarts_the_node_and_says_why() {
        let new = star().with(|t| {
            t.nodes[1].sysctls.insert("net.ipv4.tcp_sack".into(), "0".into());
        });
        let diff = diff(&star(), &new);
        assert_eq!(diff.nodes, [("a".to_owned(), NodeChange::Update { nic: Part::Keep, host: Part::Restart })]);
        assert_eq!(diff.changes, ["~ node a: restarts (sysctls)"]);
    }

    #[test]
    fn host_may_become_a_router_but_not_a_switch() {
        let router = star().with(|t| t.nodes[1].kind = ringlab_proto::topology::Kind::Router);
        assert_eq!(diff(&star(), &router).nodes[0].1, NodeChange::Update { nic: Part::Keep, host: Part::Restart });
        let linux = star().with(|t| t.nodes[1].kind = ringlab_proto::topology::Kind::Linux { netns: None });
        assert_eq!(diff(&star(), &linux).nodes[0].1, NodeChange::Replace);
    }

    #[test]
    fn linux_node_is_set_up_anew_when_its_addresses_change() {
        let old = Sample::new("t").linux("t", None).host("b").link("t", "10.0.0.1/24", "b", "10.0.0.2/24");
        let new = Sample::new("t").linux("t", None).host("b").link("t", "10.0.0.9/24", "b", "10.0.0.2/24");
        assert_eq!(diff(&old, &new).nodes[0], ("t".to_owned(), NodeChange::Update { nic: Part::Keep, host: Part::Restart }));
    }

    #[test]
    fn tap_cannot_be_added_to_a_nic_that_runs() {
        let new = star().linux("t", None).with(|t| t.links[0].medium = Medium::Tap);
        let diff = diff(&star(), &new);
        assert_eq!(diff.nodes[0], ("sw".to_owned(), NodeChange::Update { nic: Part::Restart, host: Part::Keep }));
        assert!(diff.changes.contains(&"~ link a:eth0 sw:p0 medium cable -> tap".to_owned()), "{:?}", diff.changes);
    }

    #[test]
    fn change_of_moderation_is_in_place() {
        let diff = diff(&star(), &star().with(|t| t.nodes[1].nic.rx_usecs = 50));
        assert_eq!(diff.nodes, [("a".to_owned(), NodeChange::Update { nic: Part::InPlace, host: Part::Keep })]);
        assert_eq!(diff.changes, ["~ node a: interrupt moderation"]);
    }
}
