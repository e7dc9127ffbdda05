//! Topologies for tests, built by hand.

use crate::agent::routes::Route;
use ringlab_proto::topology::{Files, Impairment, Interface, Kind, Link, Medium, NicParams, Node, Placement, Poll, RouteSpec, Topology};
use std::collections::BTreeMap;
use std::time::Duration;

/// A topology under construction.
#[derive(Clone)]
pub struct Sample(Topology);

/// A route.
pub fn route(to: &str, via: &str, dev: &str) -> Route {
    Route { to: to.parse().expect("a network"), via: via.parse().expect("an address"), dev: dev.into() }
}

impl Sample {
    /// An empty lab.
    pub fn new(name: &str) -> Self {
        Self(Topology {
            name: name.into(),
            seed: 7,
            placement: Placement::Auto,
            poll: Poll::Adaptive,
            nodes: Vec::new(),
            links: Vec::new(),
            checks: Vec::new(),
        })
    }

    fn node(mut self, name: &str, kind: Kind) -> Self {
        self.0.nodes.push(Node {
            name: name.into(),
            kind,
            cpus: 1,
            run: Vec::new(),
            sysctls: BTreeMap::new(),
            files: Files::default(),
            nic: NicParams { queues: 1, rx_ring: 512, tx_ring: 512, rx_usecs: 0, rx_frames: 0, irq_affinity: Vec::new(), txqueuelen: 1000 },
            routes: Vec::new(),
            udp_backlog: false,
            ageing: Duration::from_secs(300),
            interfaces: Vec::new(),
        });
        self
    }

    /// Adds a host.
    pub fn host(self, name: &str) -> Self {
        self.node(name, Kind::Host)
    }

    /// Adds a router.
    pub fn router(self, name: &str) -> Self {
        self.node(name, Kind::Router)
    }

    /// Adds a switch.
    pub fn switch(self, name: &str) -> Self {
        self.node(name, Kind::Switch)
    }

    /// Adds a Linux node.
    pub fn linux(self, name: &str, netns: Option<&str>) -> Self {
        self.node(name, Kind::Linux { netns: netns.map(str::to_owned) })
    }

    /// Links the next free interfaces of two nodes; an empty address is none.
    pub fn link(mut self, a: &str, a_address: &str, b: &str, b_address: &str) -> Self {
        let link = self.0.links.len();
        let mut end = |name: &str, address: &str| {
            let node = self.0.nodes.iter_mut().find(|node| node.name == name).expect("a node of the sample");
            let count = node.interfaces.len();
            let interface = if node.kind == Kind::Switch { format!("p{count}") } else { format!("eth{count}") };
            node.interfaces.push(Interface {
                name: interface.clone(),
                mac: [2, 0, 0, 0, link as u8, count as u8],
                ipv4: address.parse().ok(),
                mtu: 1500,
                link,
            });
            (name.to_owned(), interface)
        };
        let endpoints = [end(a, a_address), end(b, b_address)];
        self.0.links.push(Link {
            endpoints,
            mtu: 1500,
            medium: Medium::Cable,
            forward: Impairment::default(),
            backward: Impairment::default(),
        });
        self
    }

    /// Adds a static route.
    pub fn route(mut self, node: &str, to: &str, via: &str) -> Self {
        let node = self.0.nodes.iter_mut().find(|other| other.name == node).expect("a node of the sample");
        node.routes.push(RouteSpec { to: to.parse().expect("a network"), via: via.parse().expect("an address") });
        self
    }

    /// Changes whatever else there is to change.
    pub fn with(mut self, change: impl FnOnce(&mut Topology)) -> Self {
        change(&mut self.0);
        self
    }

    /// The topology.
    pub fn topology(&self) -> Topology {
        self.0.clone()
    }
}
