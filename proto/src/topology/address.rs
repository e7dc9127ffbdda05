//! Addresses: one subnet for each network (links joined by switches), checked
//! where the file gives them, allocated where it does not.

use super::problem::Problem;
use super::{Kind, Link, Node};
use ipnet::Ipv4Net;
use serde_saphyr::{Location, Spanned};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

/// One end of a link, resolved.
#[derive(Debug)]
pub(super) struct End {
    /// Index of the node.
    pub node: usize,
    /// Index of the interface in the node.
    pub interface: usize,
    /// Where the file names it.
    pub place: Location,
    /// The address that the file gives it.
    pub given: Option<Spanned<Ipv4Net>>,
}

/// Networks with more ends than this get a /16 instead of a /24.
const SMALL: usize = 250;

/// Gives every interface but a switch's its address. Returns the mistakes.
pub(super) fn allocate(nodes: &mut [Node], links: &[Link], ends: &[[End; 2]]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let networks = networks(nodes, links.len(), ends);
    let mut subnets: Vec<(Ipv4Net, Location)> = Vec::new();
    let mut plans = Vec::new();
    let mut seen: HashMap<Ipv4Addr, Location> = HashMap::new();
    for members in networks.values() {
        let ends: Vec<&End> = members.iter().flat_map(|&l| &ends[l]).collect();
        let plan = plan(nodes, &ends, &mut seen, &mut problems);
        if let Some((net, place)) = plan {
            if let Some((_, other)) = subnets.iter().find(|(s, _)| s.contains(&net.network()) || net.contains(&s.network())) {
                problems.push(
                    Problem::at(place, format!("{net} overlaps the subnet of another network"), "second use")
                        .and(*other, "first use")
                        .help("links that no switch joins are different networks: give each a subnet of its own"),
                );
            }
            subnets.push((net, place));
        }
        plans.push((ends, plan.map(|p| p.0)));
    }
    let mut next = 0u32;
    for (ends, subnet) in plans {
        let hosts: Vec<&&End> = ends.iter().filter(|e| nodes[e.node].kind != Kind::Switch).collect();
        let subnet = match subnet {
            Some(s) => s,
            None => match free_subnet(&mut next, hosts.len(), &subnets) {
                Some(s) => s,
                None => {
                    problems.push(Problem::of_file("10.0.0.0/8 has no subnet left").help("give addresses with `ipv4:`"));
                    continue;
                }
            },
        };
        let taken: BTreeSet<Ipv4Addr> = hosts.iter().filter_map(|e| e.given.as_ref().map(|g| g.value.addr())).collect();
        let mut free = subnet.hosts().filter(|a| !taken.contains(a));
        for end in hosts {
            let address = match &end.given {
                Some(g) => Some(g.value),
                None => free.next().and_then(|a| Ipv4Net::new(a, subnet.prefix_len()).ok()),
            };
            if address.is_none() {
                problems.push(
                    Problem::at(end.place, format!("{subnet} has no address left for this end"), "no address")
                        .help("use a shorter prefix length on this network"),
                );
            }
            nodes[end.node].interfaces[end.interface].ipv4 = address;
        }
    }
    problems
}

/// Links by network: a switch joins all its links. Keyed by the lowest link, in order.
fn networks(nodes: &[Node], links: usize, ends: &[[End; 2]]) -> BTreeMap<usize, Vec<usize>> {
    let mut root: Vec<usize> = (0..links).collect();
    fn find(root: &mut [usize], mut i: usize) -> usize {
        while root[i] != i {
            root[i] = root[root[i]];
            i = root[i];
        }
        i
    }
    let mut first: HashMap<usize, usize> = HashMap::new();
    for (link, pair) in ends.iter().enumerate() {
        for end in pair.iter().filter(|e| nodes[e.node].kind == Kind::Switch) {
            let other = *first.entry(end.node).or_insert(link);
            let (a, b) = (find(&mut root, link), find(&mut root, other));
            root[a.max(b)] = a.min(b);
        }
    }
    let mut networks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for link in 0..links {
        let r = find(&mut root, link);
        networks.entry(r).or_default().push(link);
    }
    networks
}

/// Checks the given addresses of one network; its subnet, if any is given.
fn plan(nodes: &[Node], ends: &[&End], seen: &mut HashMap<Ipv4Addr, Location>, problems: &mut Vec<Problem>) -> Option<(Ipv4Net, Location)> {
    let mut subnet: Option<(Ipv4Net, Location)> = None;
    for end in ends {
        let Some(given) = &end.given else { continue };
        let (net, place) = (given.value, given.referenced);
        if nodes[end.node].kind == Kind::Switch {
            problems.push(
                Problem::at(place, format!("`{}` is a switch: its ports have no address", nodes[end.node].name), "a switch port")
                    .help("write `null` for this end"),
            );
            continue;
        }
        let addr = net.addr();
        if net.prefix_len() > 30 && net.prefix_len() != 31 || net.prefix_len() == 0 {
            problems.push(
                Problem::at(place, format!("/{} leaves no room for two ends", net.prefix_len()), "prefix length")
                    .help(format!("write `{addr}/24`")),
            );
            continue;
        }
        if net.prefix_len() < 31 && (addr == net.network() || addr == net.broadcast())
            || addr.is_loopback()
            || addr.is_multicast()
            || addr.is_broadcast()
            || addr.is_unspecified()
        {
            let instead = net.hosts().next().map_or_else(|| "10.0.0.1/24".into(), |a| format!("{a}/{}", net.prefix_len()));
            problems.push(
                Problem::at(place, format!("{addr} cannot be a host's address in {}", net.trunc()), "not a host address")
                    .help(format!("write `{instead}`")),
            );
            continue;
        }
        match subnet {
            None => subnet = Some((net.trunc(), place)),
            Some((s, first)) if s != net.trunc() => {
                let instead =
                    s.hosts().find(|a| !seen.contains_key(a)).map_or_else(|| s.to_string(), |a| format!("{a}/{}", s.prefix_len()));
                problems.push(
                    Problem::at(place, format!("{net} lies outside the subnet of this network, {s}"), "another subnet")
                        .and(first, format!("sets the subnet {s}"))
                        .help(format!("write an address of {s}, such as `{instead}`")),
                );
                continue;
            }
            Some(_) => {}
        }
        if let Some(first) = seen.insert(addr, place) {
            let instead = net.hosts().find(|a| !seen.contains_key(a));
            let mut p = Problem::at(place, format!("address {addr} is used twice"), "second use").and(first, "first use");
            if let Some(free) = instead {
                p = p.help(format!("write another, such as `{free}/{}`", net.prefix_len()));
            }
            problems.push(p);
        }
    }
    subnet
}

/// The next subnet of 10.0.0.0/8 that overlaps none.
fn free_subnet(next: &mut u32, ends: usize, taken: &[(Ipv4Net, Location)]) -> Option<Ipv4Net> {
    let base = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    let (prefix, step) = if ends <= SMALL { (24, 1) } else { (16, 256) };
    loop {
        *next = next.next_multiple_of(step);
        if *next + step > 1 << 16 {
            return None;
        }
        let candidate = Ipv4Net::new(Ipv4Addr::from(base + (*next << 8)), prefix).expect("prefix length is valid");
        *next += step;
        if !taken.iter().any(|(s, _)| s.contains(&candidate.network()) || candidate.contains(&s.network())) {
            return Some(candidate);
        }
    }
}
