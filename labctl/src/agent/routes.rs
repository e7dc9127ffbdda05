//! Routes of a lab with several subnets.
//!
//! A *network* is a layer-2 segment (links joined by switches) and a subnet on
//! it. Hosts reach the networks that they are not attached to through the lab's
//! routers, on a shortest path. A host with one router beside it gets a default
//! route by it; everybody else one route a network. Routes in the file win.

use ipnet::Ipv4Net;
use ringlab_proto::topology::{Kind, Topology};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

/// A route of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub to: Ipv4Net,
    /// Next hop, on a network that the node is attached to.
    pub via: Ipv4Addr,
    /// Interface.
    pub dev: String,
}

/// An address of a node on a network.
struct Attachment {
    node: usize,
    address: Ipv4Addr,
    dev: String,
}

struct Network {
    subnet: Ipv4Net,
    attached: Vec<Attachment>,
}

/// The routes of every node, in the topology's order.
pub fn routes(topology: &Topology) -> Vec<Vec<Route>> {
    let networks = networks(topology);
    let forwards = |node: usize| topology.nodes[node].kind == Kind::Router;
    let mut routes = (0..topology.nodes.len()).map(|node| configured(topology, node)).collect::<Vec<_>>();
    for (node, routes) in routes.iter_mut().enumerate() {
        let own = |network: &Network| network.attached.iter().find(|a| a.node == node).map(|a| a.dev.clone());
        if matches!(topology.nodes[node].kind, Kind::Switch) {
            continue;
        }
        if let Some(gateway) = only_gateway(topology, &networks, node) {
            let default = Route { to: Ipv4Net::default(), via: gateway.0, dev: gateway.1 };
            add(routes, default);
            continue;
        }
        let hops = first_hops(&networks, node, &forwards);
        for (target, hop) in networks.iter().zip(hops) {
            if let (Some((network, via)), None) = (hop, own(target)) {
                let dev = own(&networks[network]).expect("the first hop is on a network of the node");
                add(routes, Route { to: target.subnet, via, dev });
            }
        }
    }
    routes
}

/// Adds a derived route unless the file has one for the same destination.
fn add(routes: &mut Vec<Route>, route: Route) {
    if !routes.iter().any(|other| other.to == route.to) {
        routes.push(route);
    }
}

/// `routes:` of a node.
fn configured(topology: &Topology, node: usize) -> Vec<Route> {
    let node = &topology.nodes[node];
    let dev = |via: Ipv4Addr| node.interfaces.iter().find(|interface| interface.ipv4.is_some_and(|net| net.contains(&via)));
    node.routes
        .iter()
        .map(|route| Route {
            to: route.to,
            via: route.via,
            dev: dev(route.via).map(|interface| interface.name.clone()).unwrap_or_default(),
        })
        .collect()
}

/// The one router address beside a node that is no router itself, if there is exactly one. A namespace
/// that the lab did not make keeps its own default route.
fn only_gateway(topology: &Topology, networks: &[Network], node: usize) -> Option<(Ipv4Addr, String)> {
    if !matches!(topology.nodes[node].kind, Kind::Host | Kind::Linux { netns: None }) {
        return None;
    }
    let mut found = None;
    for network in networks {
        let Some(own) = network.attached.iter().find(|a| a.node == node) else { continue };
        for router in network.attached.iter().filter(|a| topology.nodes[a.node].kind == Kind::Router) {
            if found.replace((router.address, own.dev.clone())).is_some() {
                return None;
            }
        }
    }
    found
}

/// For each network, how a packet from `node` leaves for it on a shortest path: the network of the first hop
/// and the router's address there. `None`: attached, or not reachable.
fn first_hops(networks: &[Network], node: usize, forwards: &dyn Fn(usize) -> bool) -> Vec<Option<(usize, Ipv4Addr)>> {
    let mut hops = vec![None; networks.len()];
    let mut seen = networks.iter().map(|network| network.attached.iter().any(|a| a.node == node)).collect::<Vec<_>>();
    let mut queue = (0..networks.len()).filter(|&n| seen[n]).collect::<VecDeque<_>>();
    while let Some(here) = queue.pop_front() {
        for router in networks[here].attached.iter().filter(|a| a.node != node && forwards(a.node)) {
            for next in 0..networks.len() {
                if !seen[next] && networks[next].attached.iter().any(|a| a.node == router.node) {
                    seen[next] = true;
                    hops[next] = hops[here].or(Some((here, router.address)));
                    queue.push_back(next);
                }
            }
        }
    }
    hops
}

/// All networks, ordered by segment and subnet.
fn networks(topology: &Topology) -> Vec<Network> {
    let segment_of = segments(topology);
    let mut networks = BTreeMap::<(usize, Ipv4Net), Network>::new();
    for (number, node) in topology.nodes.iter().enumerate() {
        for interface in &node.interfaces {
            let Some(net) = interface.ipv4 else { continue };
            let network = networks
                .entry((segment_of[interface.link], net.trunc()))
                .or_insert_with(|| Network { subnet: net.trunc(), attached: Vec::new() });
            network.attached.push(Attachment { node: number, address: net.addr(), dev: interface.name.clone() });
        }
    }
    networks.into_values().collect()
}

/// The segment of each link: links that meet in a switch are one.
fn segments(topology: &Topology) -> Vec<usize> {
    fn root(parents: &mut [usize], mut link: usize) -> usize {
        while parents[link] != link {
            parents[link] = parents[parents[link]];
            link = parents[link];
        }
        link
    }
    let mut parents = (0..topology.links.len()).collect::<Vec<_>>();
    for switch in topology.nodes.iter().filter(|node| node.kind == Kind::Switch) {
        for pair in switch.interfaces.windows(2) {
            let (a, b) = (root(&mut parents, pair[0].link), root(&mut parents, pair[1].link));
            parents[a.max(b)] = a.min(b);
        }
    }
    (0..parents.len()).map(|link| root(&mut parents, link)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::samples::{Sample, route};

    fn of(topology: &Topology, name: &str) -> Vec<Route> {
        let index = topology.nodes.iter().position(|node| node.name == name).unwrap();
        let mut routes = routes(topology).swap_remove(index);
        routes.sort();
        routes
    }

    #[test]
    fn flat_lab_needs_no_routes() {
        let lab =
            Sample::new("flat").switch("sw").host("a").host("b").link("a", "10.0.0.1/24", "sw", "").link("b", "10.0.0.2/24", "sw", "");
        assert!(routes(&lab.topology()).iter().all(Vec::is_empty));
    }

    #[test]
    fn host_beside_one_router_has_a_default_route() {
        let lab = Sample::new("r").host("a").router("r").host("b");
        let lab = lab.link("a", "10.0.0.1/24", "r", "10.0.0.254/24").link("r", "10.0.1.254/24", "b", "10.0.1.1/24");
        assert_eq!(of(&lab.topology(), "a"), [route("0.0.0.0/0", "10.0.0.254", "eth0")]);
        assert_eq!(of(&lab.topology(), "r"), []);
    }

    #[test]
    fn gateway_is_found_through_a_switch() {
        let lab = Sample::new("r").host("a").switch("sw").router("r").host("b");
        let lab =
            lab.link("a", "10.0.0.1/24", "sw", "").link("r", "10.0.0.254/24", "sw", "").link("r", "10.0.1.254/24", "b", "10.0.1.1/24");
        assert_eq!(of(&lab.topology(), "a"), [route("0.0.0.0/0", "10.0.0.254", "eth0")]);
    }

    #[test]
    fn chain_of_routers_has_routes_both_ways() {
        let lab = Sample::new("chain").host("a").router("r1").router("r2").router("r3").host("b");
        let lab = lab
            .link("a", "10.0.0.1/24", "r1", "10.0.0.254/24")
            .link("r1", "10.1.0.1/24", "r2", "10.1.0.2/24")
            .link("r2", "10.2.0.2/24", "r3", "10.2.0.3/24")
            .link("r3", "10.3.0.254/24", "b", "10.3.0.1/24");
        let topology = lab.topology();
        assert_eq!(of(&topology, "r1"), [route("10.2.0.0/24", "10.1.0.2", "eth1"), route("10.3.0.0/24", "10.1.0.2", "eth1")]);
        assert_eq!(of(&topology, "r2"), [route("10.0.0.0/24", "10.1.0.1", "eth0"), route("10.3.0.0/24", "10.2.0.3", "eth1")]);
        assert_eq!(of(&topology, "b"), [route("0.0.0.0/0", "10.3.0.254", "eth0")]);
    }

    #[test]
    fn host_beside_two_routers_takes_the_shorter_way_to_each_network() {
        let lab = Sample::new("two").host("a").router("r1").router("r2").host("b").host("c");
        let lab = lab
            .link("a", "10.0.1.1/24", "r1", "10.0.1.254/24")
            .link("a", "10.0.2.1/24", "r2", "10.0.2.254/24")
            .link("r1", "10.1.0.254/24", "b", "10.1.0.1/24")
            .link("r2", "10.2.0.254/24", "c", "10.2.0.1/24");
        let topology = lab.topology();
        assert_eq!(of(&topology, "a"), [route("10.1.0.0/24", "10.0.1.254", "eth0"), route("10.2.0.0/24", "10.0.2.254", "eth1")]);
    }

    #[test]
    fn route_in_the_file_wins() {
        let lab = Sample::new("own").host("a").router("r").host("b");
        let lab = lab.link("a", "10.0.0.1/24", "r", "10.0.0.254/24").link("r", "10.0.1.254/24", "b", "10.0.1.1/24");
        let lab = lab.route("a", "0.0.0.0/0", "10.0.0.9");
        assert_eq!(of(&lab.topology(), "a"), [route("0.0.0.0/0", "10.0.0.9", "eth0")]);
    }

    #[test]
    fn existing_namespace_keeps_its_default_route() {
        let lab = Sample::new("ns").linux("t", Some("/run/netns/x")).router("r").host("b");
        let lab = lab.link("t", "10.0.0.1/24", "r", "10.0.0.254/24").link("r", "10.0.1.254/24", "b", "10.0.1.1/24");
        assert_eq!(of(&lab.topology(), "t"), [route("10.0.1.0/24", "10.0.0.254", "eth0")]);
    }

    #[test]
    fn hosts_do_not_forward() {
        let lab = Sample::new("nofwd").host("a").host("m").host("b");
        let lab = lab.link("a", "10.0.0.1/24", "m", "10.0.0.2/24").link("m", "10.0.1.2/24", "b", "10.0.1.1/24");
        assert!(of(&lab.topology(), "a").is_empty());
    }
}
