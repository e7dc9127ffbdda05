//! From a topology to what each process is told: pure.
//!
//! Everything that a lab's daemons, namespaces and bridges need to know is in its
//! [`Plan`]; two plans are compared to find what has to change.

use crate::agent::journal::{self, LinkState};
use crate::agent::routes::{self, Route};
use ringlab_proto::agent::LinkInfo;
use ringlab_proto::host::{self, HostConfig, HostEntry};
use ringlab_proto::nic::{self, NicConfig, PortConfig, TapDevice, port_config};
use ringlab_proto::topology::{self, Kind, Medium, Node, Topology};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the namespace, beside those of Linux nodes, that holds the TAPs and bridges of `medium: tap` links.
/// No node can be called so.
pub const INFRA: &str = "_infra";

/// Numbers that stand for nodes and links in paths, where names would be too long, and the nodes' CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers(pub BTreeMap<String, (u32, Option<u32>)>);

impl Numbers {
    /// Numbers whatever in `topology` has none yet; `cpus` is the CPU of each node. Returns what is new.
    pub fn assign(&mut self, topology: &Topology, cpus: &[u32]) -> Vec<journal::Record> {
        let mut next = self.0.values().map(|&(number, _)| number + 1).max().unwrap_or(1);
        let nodes = topology.nodes.iter().zip(cpus).map(|(node, &cpu)| (node_key(&node.name), Some(cpu)));
        let links = topology.links.iter().map(|link| (format!("link {}", link_key(link)), None));
        let mut records = Vec::new();
        for (of, cpu) in nodes.chain(links) {
            self.0.entry(of.clone()).or_insert_with(|| {
                let number = next;
                next += 1;
                records.push(journal::Record::Number { of, number, cpu });
                (number, cpu)
            });
        }
        records
    }

    fn node(&self, name: &str) -> (u32, u32) {
        let (number, cpu) = self.0[&node_key(name)];
        (number, cpu.unwrap_or(0))
    }
}

fn node_key(name: &str) -> String {
    format!("node {name}")
}

/// "a:eth0 b:eth0".
pub fn link_key(link: &topology::Link) -> String {
    let [(a, a_port), (b, b_port)] = &link.endpoints;
    format!("{a}:{a_port} {b}:{b_port}")
}

/// Where a lab's files are.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// Run directory.
    pub run_dir: &'a Path,
    /// Directory of the topology file, for relative paths in it.
    pub base: &'a Path,
    /// Numbers of nodes and links.
    pub numbers: &'a Numbers,
}

impl Places<'_> {
    fn socket(&self, name: &str) -> String {
        self.run_dir.join("s").join(name).to_string_lossy().into_owned()
    }

    fn netns(&self, node: &str) -> PathBuf {
        self.run_dir.join("netns").join(node)
    }
}

/// What a lab consists of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In the file's order.
    pub nodes: Vec<NodePlan>,
    /// In the file's order.
    pub links: Vec<LinkPlan>,
}

impl Plan {
    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<&NodePlan> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The link with `key`.
    pub fn link(&self, key: &str) -> Option<&LinkPlan> {
        self.links.iter().find(|link| link.key == key)
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodePlan {
    /// Name.
    pub name: String,
    /// Number in paths.
    pub number: u32,
    /// `host`, `router`, `switch` or `linux`.
    pub kind: &'static str,
    /// CPU of its processes.
    pub cpu: u32,
    /// nicd's socket and configuration; a Linux node without links has no NIC.
    pub nic: Option<(PathBuf, NicConfig)>,
    /// hostd's.
    pub host: Option<(PathBuf, HostConfig)>,
    /// The namespace of a Linux node.
    pub linux: Option<LinuxPlan>,
    /// Interfaces, for those who ask.
    pub interfaces: Vec<InterfacePlan>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfacePlan {
    /// "eth0".
    pub name: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Address and prefix length.
    pub ipv4: Option<ipnet::Ipv4Net>,
    /// Octets of layer-3 payload.
    pub mtu: u32,
}

/// What the agent does in a Linux node's namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct LinuxPlan {
    /// The namespace.
    pub netns: PathBuf,
    /// Made, and removed, by the lab.
    pub owned: bool,
    /// Routes to set.
    pub routes: Vec<Route>,
    /// Sysctls to write.
    pub sysctls: BTreeMap<String, String>,
    /// Lines of its `/etc/hosts`.
    pub hosts: Vec<HostEntry>,
    /// Programs to start.
    pub run: Vec<host::Program>,
    /// Environment and directory of its programs.
    pub files: host::Files,
}

/// One link.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkPlan {
    /// "a:eth0 b:eth0".
    pub key: String,
    /// Number in paths.
    pub number: u32,
    /// Node and port of both ends.
    pub ends: [(String, String); 2],
    /// What carries it.
    pub medium: Medium,
    /// Octets of layer-3 payload.
    pub mtu: u32,
    /// Carrier and impairments.
    pub state: LinkState,
}

impl LinkPlan {
    /// Names of the bridge and of its two TAPs, in the namespace [`INFRA`].
    pub fn bridge(&self) -> (String, [String; 2]) {
        (format!("br{}", self.number), [format!("t{}a", self.number), format!("t{}b", self.number)])
    }
}

/// Plans `topology`. Every node and link has a number in `places`. `overrides` are links set by hand.
pub fn plan(topology: &Topology, places: Places<'_>, overrides: &BTreeMap<String, LinkState>) -> Plan {
    let links = topology
        .links
        .iter()
        .map(|link| {
            let key = link_key(link);
            let (number, _) = places.numbers.0[&format!("link {key}")];
            let file = LinkState { up: true, forward: impairment(&link.forward), backward: impairment(&link.backward) };
            let state = overrides.get(&key).copied().unwrap_or(file);
            LinkPlan { key, number, ends: link.endpoints.clone(), medium: link.medium, mtu: link.mtu, state }
        })
        .collect::<Vec<_>>();
    let routes = routes::routes(topology);
    let nodes = topology.nodes.iter().zip(routes).map(|(node, routes)| plan_node(topology, node, routes, places, &links)).collect();
    Plan { nodes, links }
}

fn plan_node(topology: &Topology, node: &Node, routes: Vec<Route>, places: Places<'_>, links: &[LinkPlan]) -> NodePlan {
    let (number, cpu) = places.numbers.node(&node.name);
    let kind = match node.kind {
        Kind::Host => "host",
        Kind::Router => "router",
        Kind::Switch => "switch",
        Kind::Linux { .. } => "linux",
    };
    let linux = match &node.kind {
        Kind::Linux { netns } => Some(LinuxPlan {
            netns: netns.as_deref().map_or_else(|| places.netns(&node.name), |path| existing_netns(path, places.base)),
            owned: netns.is_none(),
            routes: routes.clone(),
            sysctls: node.sysctls.clone(),
            hosts: hosts_file(topology, node),
            run: programs(node, places.base),
            files: files(&node.files, places.base),
        }),
        _ => None,
    };
    let needs_nic = linux.is_none() || !node.interfaces.is_empty();
    let nic =
        needs_nic.then(|| (places.socket(&format!("{number}.nic")).into(), nic_config(topology, node, linux.as_ref(), places, links)));
    let host = matches!(node.kind, Kind::Host | Kind::Router)
        .then(|| (places.socket(&format!("{number}.host")).into(), host_config(topology, node, &routes, places, links)));
    let interfaces = node.interfaces.iter().map(|i| InterfacePlan { name: i.name.clone(), mac: i.mac, ipv4: i.ipv4, mtu: i.mtu }).collect();
    NodePlan { name: node.name.clone(), number, kind, cpu, nic, host, linux, interfaces }
}

/// A bare name is one of `ip netns`'s; a path is relative to the topology file.
fn existing_netns(path: &str, base: &Path) -> PathBuf {
    if path.contains('/') { base.join(path) } else { Path::new("/run/netns").join(path) }
}

/// Which end (0 or 1) of its link an interface is.
fn end_of(link: &LinkPlan, node: &str, interface: &str) -> usize {
    usize::from(link.ends[0] != (node.to_owned(), interface.to_owned()))
}

fn nic_config(topology: &Topology, node: &Node, linux: Option<&LinuxPlan>, places: Places<'_>, links: &[LinkPlan]) -> NicConfig {
    let bridge = (node.kind == Kind::Switch)
        .then(|| nic::SwitchConfig { ageing_s: u32::try_from(node.ageing.as_secs()).unwrap_or(u32::MAX), max_entries: 0 });
    let ports = node
        .interfaces
        .iter()
        .map(|interface| {
            let link = &links[interface.link];
            let end = end_of(link, &node.name, &interface.name);
            let letter = ["a", "b"][end];
            let device = match (&node.kind, linux) {
                (Kind::Switch, _) => None,
                (_, Some(linux)) => Some(port_config::Device::Tap(TapDevice {
                    name: interface.name.clone(),
                    netns: linux.netns.to_string_lossy().into_owned(),
                    plain: false,
                    queues: u32::from(node.nic.queues),
                })),
                (_, None) => Some(port_config::Device::Vhost(nic::VhostDevice {
                    socket: places.socket(&format!("{}{letter}.vhost", link.number)),
                    ..Default::default()
                })),
            };
            let wire = match link.medium {
                Medium::Cable => {
                    port_config::Wire::Cable(nic::CableWire { socket: places.socket(&format!("{}.cable", link.number)), listen: end == 0 })
                }
                Medium::Tap => port_config::Wire::TapWire(TapDevice {
                    name: link.bridge().1[end].clone(),
                    netns: places.netns(INFRA).to_string_lossy().into_owned(),
                    plain: false,
                    queues: 1,
                }),
            };
            PortConfig {
                name: interface.name.clone(),
                mac: interface.mac.to_vec(),
                mtu: interface.mtu,
                queue_pairs: u32::from(node.nic.queues),
                rx_ring: u32::from(node.nic.rx_ring),
                tx_ring: u32::from(node.nic.tx_ring),
                moderation: Some(nic::Moderation { rx_usecs: node.nic.rx_usecs, rx_frames: node.nic.rx_frames }),
                device,
                wire: Some(wire),
                impairment: Some(wire_impairment(if end == 0 { link.state.forward } else { link.state.backward })),
                link_down: !link.state.up,
            }
        })
        .collect();
    NicConfig { node: node.name.clone(), seed: seed(topology.seed, "nic", &node.name), bridge, ports, poll: poll(topology) }
}

fn host_config(topology: &Topology, node: &Node, routes: &[Route], places: Places<'_>, links: &[LinkPlan]) -> HostConfig {
    let interfaces = node
        .interfaces
        .iter()
        .map(|interface| {
            let link = &links[interface.link];
            let letter = ["a", "b"][end_of(link, &node.name, &interface.name)];
            host::Interface {
                name: interface.name.clone(),
                mac: interface.mac.to_vec(),
                mtu: interface.mtu,
                ipv4: interface.ipv4.iter().map(ToString::to_string).collect(),
                vhost_socket: places.socket(&format!("{}{letter}.vhost", link.number)),
                queue_pairs: u32::from(node.nic.queues),
                rx_ring: u32::from(node.nic.rx_ring),
                tx_ring: u32::from(node.nic.tx_ring),
                irq_affinity: node.nic.irq_affinity.iter().map(|&cpu| u32::from(cpu)).collect(),
                txqueuelen: node.nic.txqueuelen,
            }
        })
        .collect();
    let routes = routes
        .iter()
        .map(|route| host::Route {
            prefix: route.to.to_string(),
            via: route.via.to_string(),
            dev: route.dev.clone(),
            metric: 0,
            linkdown: false,
        })
        .collect();
    HostConfig {
        hostname: node.name.clone(),
        seed: seed(topology.seed, "host", &node.name),
        cpus: u32::from(node.cpus),
        ip_forward: node.kind == Kind::Router,
        interfaces,
        routes,
        sysctls: node.sysctls.clone().into_iter().collect(),
        hosts: hosts_file(topology, node),
        run: programs(node, places.base),
        poll: poll(topology),
        udp_backlog: node.udp_backlog,
        files: Some(files(&node.files, places.base)),
    }
}

/// Paths of the machine start at the topology file.
fn files(files: &topology::Files, base: &Path) -> host::Files {
    let path = |path: &str| base.join(path).to_string_lossy().into_owned();
    let bind = |b: &topology::Bind| host::Bind { source: path(&b.source), destination: b.destination.clone(), read_only: b.read_only };
    host::Files {
        root: files.root.as_deref().map(path).unwrap_or_default(),
        binds: files.binds.iter().map(bind).collect(),
        env: files.env.clone().into_iter().collect(),
        workdir: files.workdir.clone().unwrap_or_default(),
        user: files.user.clone().unwrap_or_default(),
        no_preload: files.no_preload,
    }
}

/// A node's view of the lab's names: of a node with several addresses that on a subnet of the viewer, else its first.
fn hosts_file(topology: &Topology, viewer: &Node) -> Vec<HostEntry> {
    let near = viewer.interfaces.iter().filter_map(|interface| interface.ipv4).collect::<Vec<_>>();
    topology
        .nodes
        .iter()
        .filter_map(|node| {
            let mut addresses = node.interfaces.iter().filter_map(|interface| interface.ipv4).map(|net| net.addr());
            let first = addresses.clone().next()?;
            let address =
                if node.name == viewer.name { first } else { addresses.find(|a| near.iter().any(|net| net.contains(a))).unwrap_or(first) };
            Some(HostEntry { name: node.name.clone(), ipv4: address.to_string() })
        })
        .collect()
}

fn programs(node: &Node, base: &Path) -> Vec<host::Program> {
    node.run
        .iter()
        .map(|run| host::Program { program: Some(program(run, base)), ready_tcp: u32::from(run.ready_tcp.unwrap_or(0)) })
        .collect()
}

/// A program of the file, started in the file's directory.
pub fn program(run: &topology::Run, base: &Path) -> host::ExecStart {
    host::ExecStart {
        builtin: run.builtin.clone().unwrap_or_default(),
        argv: run.argv.clone(),
        set_env: run.env.clone().into_iter().collect(),
        cwd: base.to_string_lossy().into_owned(),
        ..host::ExecStart::default()
    }
}

fn poll(topology: &Topology) -> String {
    match topology.poll {
        topology::Poll::Never => "never",
        topology::Poll::Adaptive => "adaptive",
    }
    .to_owned()
}

fn impairment(from: &topology::Impairment) -> journal::Impairment {
    journal::Impairment { delay_ns: u64::try_from(from.delay.as_nanos()).unwrap_or(u64::MAX), rate_bps: from.rate_bps, loss: from.loss }
}

/// A link as its file has it, for drawings.
pub fn file_link_info(link: &topology::Link) -> LinkInfo {
    let direction = |from| Some(wire_impairment(impairment(from)));
    LinkInfo { up: true, forward: direction(&link.forward), backward: direction(&link.backward), ..LinkInfo::default() }
}

/// As nicd is told.
pub fn wire_impairment(from: journal::Impairment) -> nic::Impairment {
    nic::Impairment { delay_ns: from.delay_ns, rate_bps: from.rate_bps, loss: from.loss, limit_octets: 0 }
}

/// A node's seed: the lab's, mixed with who asks (FNV-1a, then the finaliser of SplitMix64).
fn seed(lab: u64, role: &str, node: &str) -> u64 {
    let octets = lab.to_le_bytes().into_iter().chain(role.bytes()).chain([0]).chain(node.bytes());
    let hash = octets.fold(0xcbf2_9ce4_8422_2325u64, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::samples::Sample;

    /// Plans `topology` with fresh numbers, everything on CPU 0.
    fn planned(topology: &Topology) -> Plan {
        let mut numbers = Numbers::default();
        numbers.assign(topology, &vec![0; topology.nodes.len()]);
        let places = Places { run_dir: Path::new("/run/lab"), base: Path::new("/home/me"), numbers: &numbers };
        plan(topology, places, &BTreeMap::new())
    }

    fn pair() -> Sample {
        Sample::new("pair").host("a").host("b").link("a", "10.0.0.1/24", "b", "10.0.0.2/24")
    }

    #[test]
    fn two_ends_of_a_cable_meet_at_one_socket() {
        let plan = planned(&pair().topology());
        let wires = plan.nodes.iter().map(|node| node.nic.as_ref().unwrap().1.ports[0].wire.clone().unwrap()).collect::<Vec<_>>();
        let [port_config::Wire::Cable(a), port_config::Wire::Cable(b)] = &wires[..] else { panic!("{wires:?}") };
        assert_eq!(a.socket, b.socket);
        assert!(a.listen && !b.listen);
    }

    #[test]
    fn hostd_connects_where_nicd_listens() {
        for node in planned(&pair().topology()).nodes {
            let (nic, host) = (node.nic.unwrap().1, node.host.unwrap().1);
            let Some(port_config::Device::Vhost(device)) = &nic.ports[0].device else { panic!("{nic:?}") };
            assert_eq!(device.socket, host.interfaces[0].vhost_socket);
        }
    }

    #[test]
    fn each_direction_is_impaired_where_it_leaves() {
        let lab = pair().with(|t| {
            t.links[0].forward.loss = 0.25;
            t.links[0].backward.rate_bps = 1000;
        });
        let plan = planned(&lab.topology());
        let at = |node: usize| plan.nodes[node].nic.as_ref().unwrap().1.ports[0].impairment.unwrap();
        assert_eq!((at(0).loss, at(0).rate_bps), (0.25, 0));
        assert_eq!((at(1).loss, at(1).rate_bps), (0.0, 1000));
    }

    #[test]
    fn numbers_of_what_is_there_stay_when_something_is_added() {
        let mut numbers = Numbers::default();
        numbers.assign(&pair().topology(), &[0, 1]);
        let before = numbers.clone();
        let more = Sample::new("pair").host("c").host("a").host("b").link("a", "10.0.0.1/24", "b", "10.0.0.2/24");
        let records = numbers.assign(&more.topology(), &[1, 1, 1]);
        assert_eq!(records.len(), 1);
        assert!(before.0.iter().all(|(of, number)| numbers.0[of] == *number));
        let mut all = numbers.0.values().map(|&(number, _)| number).collect::<Vec<_>>();
        all.dedup();
        assert_eq!(all.len(), numbers.0.len());
    }

    #[test]
    fn name_resolves_to_the_address_nearest_the_viewer() {
        let lab = Sample::new("r").host("a").router("r").host("b");
        let lab = lab.link("a", "10.0.0.1/24", "r", "10.0.0.254/24").link("r", "10.0.1.254/24", "b", "10.0.1.1/24");
        let plan = planned(&lab.topology());
        let r_seen_by = |node: usize| plan.nodes[node].host.as_ref().unwrap().1.hosts[1].ipv4.clone();
        assert_eq!((r_seen_by(0).as_str(), r_seen_by(2).as_str()), ("10.0.0.254", "10.0.1.254"));
    }

    #[test]
    fn tap_medium_puts_both_ends_into_the_labs_own_namespace() {
        let plan = planned(&pair().with(|t| t.links[0].medium = Medium::Tap).topology());
        for (node, letter) in plan.nodes.iter().zip(["a", "b"]) {
            let Some(port_config::Wire::TapWire(tap)) = &node.nic.as_ref().unwrap().1.ports[0].wire else { panic!() };
            assert_eq!(tap.netns, "/run/lab/netns/_infra");
            assert!(tap.name.ends_with(letter) && tap.name.len() <= 15);
        }
    }

    #[test]
    fn linux_node_gets_a_tap_in_its_namespace() {
        let lab = Sample::new("t").linux("t", None).host("b").link("t", "10.0.0.1/24", "b", "10.0.0.2/24");
        let plan = planned(&lab.topology());
        let linux = plan.nodes[0].linux.as_ref().unwrap();
        assert!(linux.owned && plan.nodes[0].host.is_none());
        let Some(port_config::Device::Tap(tap)) = &plan.nodes[0].nic.as_ref().unwrap().1.ports[0].device else { panic!() };
        assert_eq!((tap.name.as_str(), tap.netns.as_str()), ("eth0", "/run/lab/netns/t"));
        assert_eq!(existing_netns("blue", Path::new("/x")), Path::new("/run/netns/blue"));
        assert_eq!(existing_netns("./ns/blue", Path::new("/x")), Path::new("/x/./ns/blue"));
    }

    #[test]
    fn seeds_differ_by_node_and_role_and_follow_the_labs() {
        assert_eq!(seed(7, "nic", "a"), seed(7, "nic", "a"));
        let all = [seed(7, "nic", "a"), seed(7, "host", "a"), seed(7, "nic", "b"), seed(8, "nic", "a")];
        assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])));
    }
}
