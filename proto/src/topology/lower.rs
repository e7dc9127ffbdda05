//! From the file as written to a [`Topology`]: names resolved, units read, limits checked.

use super::address::{self, End};
use super::files;
use super::problem::{Problem, nearest};
use super::raw::{self, OrderedMap, Scalar};
use super::units::{self, BadUnit};
use super::{Check, Impairment, Interface, Kind, Link, Medium, NicParams, Node, Placement, Poll, RouteSpec, Run, Topology};
use serde_saphyr::{Location, Spanned};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

/// Longest interface name (`IFNAMSIZ` - 1).
const MAX_IFNAME: usize = 15;

/// With `base`, the directory of the file, the paths in it are looked at.
pub(super) fn lower(file: raw::File, base: Option<&Path>) -> Result<Topology, Vec<Problem>> {
    let mut l = Lower { problems: Vec::new(), base };
    let topology = l.file(&file);
    if l.problems.is_empty() { Ok(topology) } else { Err(l.problems) }
}

struct Lower<'a> {
    problems: Vec<Problem>,
    base: Option<&'a Path>,
}

impl Lower<'_> {
    fn file(&mut self, file: &raw::File) -> Topology {
        self.lab_name(&file.name);
        let nodes_map = &file.nodes.value.0;
        if nodes_map.is_empty() {
            self.problems.push(Problem::at(file.nodes.referenced, "the lab has no nodes", "needs at least one").help("nodes:\n  h1: {}"));
        }
        let mut nodes: Vec<Node> = nodes_map.iter().map(|(name, node)| self.node(name, node.as_ref())).collect();
        let (links, ends) = self.links(&file.links, &mut nodes);
        self.problems.extend(address::allocate(&mut nodes, &links, &ends));
        let seed = file.seed.unwrap_or(0);
        assign_macs(seed, &file.name.value, &mut nodes);
        let checks = file.checks.iter().map(|c| self.check(&c.0, &nodes)).collect();
        Topology {
            name: file.name.value.clone(),
            seed,
            placement: match file.placement {
                None | Some(raw::Placement::Auto) => Placement::Auto,
                Some(raw::Placement::Pack) => Placement::Pack,
                Some(raw::Placement::Spread) => Placement::Spread,
            },
            poll: match file.poll {
                None | Some(raw::Poll::Adaptive) => Poll::Adaptive,
                Some(raw::Poll::Never) => Poll::Never,
            },
            nodes,
            links,
            checks,
        }
    }

    fn lab_name(&mut self, name: &Spanned<String>) {
        let n = &name.value;
        let ok = n.len() <= 32
            && n.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && n.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
        if !ok {
            self.problems.push(
                Problem::at(name.referenced, format!("`{n}` cannot be a lab's name"), "not a lab name")
                    .help("small letters, digits, `-` and `_`, at most 32, starting with a letter or digit"),
            );
        }
    }

    fn node(&mut self, name: &Spanned<String>, raw: Option<&raw::Node>) -> Node {
        let n = &name.value;
        let ok = n.len() <= 63
            && !n.is_empty()
            && !n.starts_with('-')
            && !n.ends_with('-')
            && n.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !ok {
            self.problems.push(
                Problem::at(name.referenced, format!("`{n}` cannot be a node's name"), "not a hostname")
                    .help("a node's name is its hostname: small letters, digits and inner `-`, at most 63"),
            );
        }
        let default = raw::Node::default();
        let raw = raw.unwrap_or(&default);
        let kind = raw.kind.as_ref().map_or(raw::Kind::Host, |k| k.value);
        self.fields_for_kind(name, kind, raw);
        let nic = raw.nic.as_ref().map_or_else(NicParams::default, |n| self.nic(&n.value));
        let cpus = raw.cpus.as_ref().map_or(1, |c| self.range(c, 1, 64, "modelled CPUs"));
        if let Some(n) = raw.nic.as_ref() {
            for a in n.value.irq_affinity.iter().filter(|a| a.value >= cpus) {
                self.problems.push(
                    Problem::at(a.referenced, format!("node `{}` has no CPU {}", name.value, a.value), "no such CPU")
                        .help(format!("CPUs of this node are 0 to {}; `cpus: N` sets how many there are", cpus - 1)),
                );
            }
        }
        Node {
            name: n.clone(),
            kind: match kind {
                raw::Kind::Host => Kind::Host,
                raw::Kind::Router => Kind::Router,
                raw::Kind::Switch => Kind::Switch,
                raw::Kind::Linux => Kind::Linux { netns: raw.netns.as_ref().map(|n| n.value.clone()) },
            },
            cpus,
            run: raw.run.iter().filter_map(|r| self.run(&r.0)).collect(),
            sysctls: self.sysctls(&raw.sysctls),
            files: files::lower(raw, self.base, &mut self.problems),
            nic,
            routes: raw.routes.iter().filter_map(|r| self.route(r)).collect(),
            udp_backlog: raw.kernel.as_ref().is_some_and(|k| k.value.udp_backlog),
            ageing: raw.ageing.as_ref().map_or(Duration::from_secs(300), |a| self.unit(a, units::time).unwrap_or_default()),
            interfaces: Vec::new(),
        }
    }

    /// Fields that mean nothing on a kind are mistakes, not silence.
    fn fields_for_kind(&mut self, name: &Spanned<String>, kind: raw::Kind, raw: &raw::Node) {
        let emulated = matches!(kind, raw::Kind::Host | raw::Kind::Router);
        let kind_text = match kind {
            raw::Kind::Host => "host",
            raw::Kind::Router => "router",
            raw::Kind::Switch => "switch",
            raw::Kind::Linux => "linux",
        };
        let first_sysctl = raw.sysctls.0.first().map(|(k, _)| k.referenced);
        let given = [
            ("netns", raw.netns.as_ref().map(|n| n.referenced), kind == raw::Kind::Linux),
            ("cpus", raw.cpus.as_ref().map(|c| c.referenced), emulated),
            ("run", raw.run.first().map(|r| r.0.referenced), emulated || kind == raw::Kind::Linux),
            ("sysctls", first_sysctl, emulated),
            ("root", raw.root.as_ref().map(|r| r.referenced), emulated),
            ("binds", raw.binds.first().map(|b| b.referenced), emulated),
            ("user", raw.user.as_ref().map(|u| u.referenced), emulated),
            ("preload", raw.preload.as_ref().map(|p| p.referenced), emulated),
            ("env", raw.env.0.first().map(|(k, _)| k.referenced), kind != raw::Kind::Switch),
            ("workdir", raw.workdir.as_ref().map(|w| w.referenced), kind != raw::Kind::Switch),
            ("nic", raw.nic.as_ref().map(|n| n.referenced), kind != raw::Kind::Linux),
            ("routes", raw.routes.first().map(|r| r.to.referenced), kind != raw::Kind::Switch),
            ("kernel", raw.kernel.as_ref().map(|k| k.referenced), emulated),
            ("ageing", raw.ageing.as_ref().map(|a| a.referenced), kind == raw::Kind::Switch),
        ];
        for (field, place, meaningful) in given {
            if let Some(place) = place.filter(|_| !meaningful) {
                self.problems.push(
                    Problem::at(
                        place,
                        format!("a node of kind `{kind_text}` has no `{field}`"),
                        format!("means nothing on `{}`", name.value),
                    )
                    .help(format!("remove `{field}`, or change the kind")),
                );
            }
        }
    }

    fn nic(&mut self, raw: &raw::Nic) -> NicParams {
        let d = NicParams::default();
        NicParams {
            queues: raw.queues.as_ref().map_or(d.queues, |q| self.range(q, 1, 8, "queue pairs")),
            rx_ring: raw.rx_ring.as_ref().map_or(d.rx_ring, |r| self.ring(r)),
            tx_ring: raw.tx_ring.as_ref().map_or(d.tx_ring, |r| self.ring(r)),
            rx_usecs: raw.rx_usecs.unwrap_or(d.rx_usecs),
            rx_frames: raw.rx_frames.unwrap_or(d.rx_frames),
            irq_affinity: raw.irq_affinity.iter().map(|a| a.value).collect(),
            txqueuelen: raw.txqueuelen.unwrap_or(d.txqueuelen),
        }
    }

    fn ring(&mut self, size: &Spanned<u16>) -> u16 {
        let v = size.value;
        if !v.is_power_of_two() || !(64..=4096).contains(&v) {
            let near = v.clamp(64, 4096).next_power_of_two().min(4096);
            self.problems.push(
                Problem::at(size.referenced, format!("a ring cannot have {v} descriptors"), "not a power of two from 64 to 4096")
                    .help(format!("write `{near}`")),
            );
        }
        v
    }

    fn range(&mut self, v: &Spanned<u16>, min: u16, max: u16, what: &str) -> u16 {
        if !(min..=max).contains(&v.value) {
            self.problems.push(
                Problem::at(v.referenced, format!("{} is not a number of {what}", v.value), "out of range")
                    .help(format!("from {min} to {max}")),
            );
        }
        v.value.clamp(min, max)
    }

    fn unit<T>(&mut self, v: &Spanned<Scalar>, read: impl Fn(&str) -> Result<T, BadUnit>) -> Option<T> {
        read(&v.value.0).map_err(|e| self.problems.push(Problem::at(v.referenced, e.what, "here").help(e.help))).ok()
    }

    fn sysctls(&mut self, raw: &OrderedMap<Scalar>) -> BTreeMap<String, String> {
        for (key, _) in raw.0.iter().filter(|(k, _)| !k.value.starts_with("net.")) {
            self.problems.push(
                Problem::at(key.referenced, format!("`{}` is not a network sysctl", key.value), "not `net.…`")
                    .help("an emulated host has the sysctls below `net.`, such as `net.ipv4.tcp_congestion_control`"),
            );
        }
        raw.0.iter().map(|(k, v)| (k.value.clone(), v.0.clone())).collect()
    }

    fn run(&mut self, raw: &Spanned<raw::Run>) -> Option<Run> {
        let (builtin, argv) = self.program(raw.referenced, raw.value.builtin.as_deref(), &raw.value.args, &raw.value.cmd, "cmd")?;
        let env = raw.value.env.0.iter().map(|(k, v)| (k.value.clone(), v.0.clone())).collect();
        Some(Run { builtin, argv, env, ready_tcp: raw.value.ready.as_ref().map(|r| r.tcp) })
    }

    fn program(
        &mut self,
        place: Location,
        builtin: Option<&Spanned<String>>,
        args: &[Scalar],
        cmd: &[Scalar],
        field: &str,
    ) -> Option<(Option<String>, Vec<String>)> {
        let texts = |v: &[Scalar]| v.iter().map(|s| s.0.clone()).collect();
        match (builtin, cmd.is_empty()) {
            (Some(b), true) => Some((Some(b.value.clone()), texts(args))),
            (None, false) if args.is_empty() => Some((None, texts(cmd))),
            _ => {
                self.problems.push(
                    Problem::at(place, format!("a program is either `{field}` or `builtin` with `args`"), "neither, or both")
                        .help(format!("`{field}: [curl, -sf, \"http://web/\"]`, or `builtin: fetch` and `args: [\"http://web/\"]`")),
                );
                None
            }
        }
    }

    fn route(&mut self, raw: &raw::Route) -> Option<RouteSpec> {
        let to = match raw.to.value.as_str() {
            "default" => Some(ipnet::Ipv4Net::default()),
            text => text.parse::<ipnet::Ipv4Net>().ok().map(|n| n.trunc()),
        };
        let via = raw.via.value.parse().ok();
        if to.is_none() {
            self.problems.push(
                Problem::at(raw.to.referenced, format!("`{}` is not a network", raw.to.value), "not an IPv4 prefix")
                    .help("write `10.1.0.0/16` or `default`"),
            );
        }
        if via.is_none() {
            self.problems.push(
                Problem::at(raw.via.referenced, format!("`{}` is not an address", raw.via.value), "not an IPv4 address")
                    .help("write `10.0.0.254`"),
            );
        }
        Some(RouteSpec { to: to?, via: via? })
    }

    fn links(&mut self, raw: &[raw::Placed<raw::Link>], nodes: &mut [Node]) -> (Vec<Link>, Vec<[End; 2]>) {
        let by_name: HashMap<String, usize> = nodes.iter().enumerate().map(|(i, n)| (n.name.clone(), i)).collect();
        let mut used: HashMap<(usize, String), Location> = HashMap::new();
        let (mut links, mut ends) = (Vec::new(), Vec::new());
        for link in raw {
            let link = &link.0;
            let Some([a, b]) = self.endpoints(&link.value.endpoints, &by_name, &mut used) else { continue };
            let mtu = link.value.mtu.as_ref().map_or(1500, |m| {
                if !(68..=65521).contains(&m.value) {
                    self.problems.push(
                        Problem::at(m.referenced, format!("{} is not an MTU", m.value), "out of range").help("from 68 to 65521 octets"),
                    );
                }
                m.value
            });
            let given = self.given_addresses(link.value.ipv4.as_ref());
            let index = links.len();
            let mut pair = Vec::with_capacity(2);
            for (i, (node, ifname, place)) in [&a, &b].into_iter().enumerate() {
                let interface = nodes[*node].interfaces.len();
                nodes[*node].interfaces.push(Interface { name: ifname.clone(), mac: [0; 6], ipv4: None, mtu, link: index });
                pair.push(End { node: *node, interface, place: *place, given: given[i].clone() });
            }
            let base =
                self.impairment(link.value.delay.as_deref(), link.value.rate.as_deref(), link.value.loss.as_deref(), Impairment::default());
            let forward = self.direction(link.value.forward.as_ref(), base);
            let backward = self.direction(link.value.backward.as_ref(), base);
            let name = |end: &(usize, String, Location)| (nodes[end.0].name.clone(), end.1.clone());
            links.push(Link {
                endpoints: [name(&a), name(&b)],
                mtu,
                medium: match link.value.medium {
                    Some(raw::Medium::Tap) => Medium::Tap,
                    _ => Medium::Cable,
                },
                forward,
                backward,
            });
            ends.push(pair.try_into().expect("two ends were pushed"));
        }
        (links, ends)
    }

    fn endpoints(
        &mut self,
        raw: &Spanned<Vec<Spanned<String>>>,
        by_name: &HashMap<String, usize>,
        used: &mut HashMap<(usize, String), Location>,
    ) -> Option<[(usize, String, Location); 2]> {
        if raw.value.len() != 2 {
            self.problems.push(
                Problem::at(raw.referenced, format!("a link has two endpoints, not {}", raw.value.len()), "here")
                    .help("endpoints: [\"h1:eth0\", \"h2:eth0\"]; several hosts on one network need a node of kind `switch`"),
            );
            return None;
        }
        let ends: Vec<_> = raw.value.iter().map(|e| self.endpoint(e, by_name)).collect();
        let ends: Option<Vec<_>> = ends.into_iter().collect();
        let ends = ends?;
        for (node, ifname, place) in &ends {
            if let Some(first) = used.insert((*node, ifname.clone()), *place) {
                let text = raw.value.iter().find(|e| e.referenced == *place).map_or("", |e| e.value.as_str());
                self.problems.push(
                    Problem::at(*place, format!("endpoint `{text}` is used twice"), "second use")
                        .and(first, "first use")
                        .help("an interface has one link; name another interface, or join the links by a switch"),
                );
            }
        }
        ends.try_into().ok()
    }

    fn endpoint(&mut self, raw: &Spanned<String>, by_name: &HashMap<String, usize>) -> Option<(usize, String, Location)> {
        let text = raw.value.as_str();
        let Some((node, ifname)) = text.split_once(':').filter(|(n, i)| !n.is_empty() && !i.is_empty()) else {
            self.problems.push(
                Problem::at(raw.referenced, format!("`{text}` is not an endpoint"), "not `node:interface`")
                    .help(format!("write `{text}:eth0`")),
            );
            return None;
        };
        if ifname.len() > MAX_IFNAME {
            self.problems.push(
                Problem::at(raw.referenced, format!("`{ifname}` has {} octets: too long for an interface name", ifname.len()), "too long")
                    .help(format!("at most {MAX_IFNAME}, such as `{}`", &ifname.chars().take(MAX_IFNAME).collect::<String>())),
            );
        } else if ifname.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
            || ifname == "."
            || ifname == ".."
            || ifname == "lo"
        {
            self.problems.push(
                Problem::at(raw.referenced, format!("`{ifname}` cannot be an interface name"), "not an interface name")
                    .help("write `eth0`"),
            );
        }
        let Some(&index) = by_name.get(node) else {
            let mut p = Problem::at(raw.referenced, format!("there is no node `{node}`"), "no such node");
            let mut names: Vec<&str> = by_name.keys().map(String::as_str).collect();
            names.sort_unstable();
            p = match nearest(node, names.iter().copied()) {
                Some(near) => p.help(format!("did you mean `{near}:{ifname}`?")),
                None => p.help(format!("nodes are: {}", names.join(", "))),
            };
            self.problems.push(p);
            return None;
        };
        Some((index, ifname.to_string(), raw.referenced))
    }

    fn given_addresses(&mut self, raw: Option<&Spanned<Vec<Option<Spanned<String>>>>>) -> [Option<Spanned<ipnet::Ipv4Net>>; 2] {
        let Some(raw) = raw else { return [None, None] };
        if raw.value.len() != 2 {
            self.problems.push(
                Problem::at(raw.referenced, format!("`ipv4` has {} entries, a link has two ends", raw.value.len()), "here")
                    .help("ipv4: [10.0.0.1/24, 10.0.0.2/24]; `null` for an end without address"),
            );
            return [None, None];
        }
        let mut given = [None, None];
        for (slot, text) in given.iter_mut().zip(&raw.value) {
            let Some(text) = text else { continue };
            match text.value.parse::<ipnet::Ipv4Net>() {
                Ok(net) => *slot = Some(Spanned::new(net, text.referenced, text.defined)),
                Err(_) => self.problems.push(
                    Problem::at(text.referenced, format!("`{}` is not an address with prefix length", text.value), "not an IPv4 address")
                        .help(if text.value.contains('/') {
                            "write `10.0.0.1/24`".to_string()
                        } else {
                            format!("write `{}/24`", text.value)
                        }),
                ),
            }
        }
        given
    }

    fn direction(&mut self, raw: Option<&raw::Direction>, base: Impairment) -> Impairment {
        raw.map_or(base, |d| self.impairment(d.delay.as_deref(), d.rate.as_deref(), d.loss.as_deref(), base))
    }

    fn impairment(
        &mut self,
        delay: Option<&Spanned<Scalar>>,
        rate: Option<&Spanned<Scalar>>,
        loss: Option<&Spanned<Scalar>>,
        base: Impairment,
    ) -> Impairment {
        Impairment {
            delay: delay.and_then(|d| self.unit(d, units::time)).unwrap_or(base.delay),
            rate_bps: rate.and_then(|r| self.unit(r, units::rate)).unwrap_or(base.rate_bps),
            loss: loss.and_then(|l| self.unit(l, units::probability)).unwrap_or(base.loss),
        }
    }

    fn check(&mut self, raw: &Spanned<raw::Check>, nodes: &[Node]) -> Check {
        let c = &raw.value;
        match nodes.iter().find(|n| n.name == c.on.value) {
            None => {
                let mut p = Problem::at(c.on.referenced, format!("there is no node `{}`", c.on.value), "no such node");
                if let Some(near) = nearest(&c.on.value, nodes.iter().map(|n| n.name.as_str())) {
                    p = p.help(format!("did you mean `{near}`?"));
                }
                self.problems.push(p);
            }
            Some(n) if n.kind == Kind::Switch => self.problems.push(
                Problem::at(c.on.referenced, format!("`{}` is a switch: no program runs there", n.name), "a switch")
                    .help("name a host, a router or a linux node"),
            ),
            Some(_) => {}
        }
        let (builtin, argv) = self.program(raw.referenced, c.builtin.as_deref(), &c.args, &c.run, "run").unwrap_or_default();
        Check {
            on: c.on.value.clone(),
            run: Run { builtin, argv, env: BTreeMap::new(), ready_tcp: None },
            exit: c.expect.as_ref().map_or(0, |e| e.exit),
        }
    }
}

impl Default for NicParams {
    fn default() -> Self {
        Self { queues: 1, rx_ring: 256, tx_ring: 256, rx_usecs: 0, rx_frames: 0, irq_affinity: Vec::new(), txqueuelen: 1000 }
    }
}

/// Locally administered unicast addresses, the same for the same seed and names.
fn assign_macs(seed: u64, lab: &str, nodes: &mut [Node]) {
    let mut taken = std::collections::HashSet::new();
    for node in nodes {
        for interface in &mut node.interfaces {
            // FNV-1a: stable across versions of the standard library.
            let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
            for octet in [lab, &node.name, &interface.name].into_iter().flat_map(|s| s.bytes().chain([0])) {
                hash = (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3);
            }
            loop {
                let b = hash.to_be_bytes();
                let mac = [0x02, b[1] ^ b[6], b[2] ^ b[7], b[3], b[4], b[5]];
                if taken.insert(mac) {
                    interface.mac = mac;
                    break;
                }
                hash = hash.wrapping_mul(0x100_0000_01b3).wrapping_add(1);
            }
        }
    }
}
