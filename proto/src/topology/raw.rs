//! The file as written: serde types with spans. Units are still text, names are
//! not resolved. The JSON Schema is derived from these types, so it cannot differ.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_saphyr::Spanned;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Deref;

/// A topology file.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Name of the lab: small letters, digits, `-` and `_`.
    pub name: Placed<String>,
    /// Every random choice in the lab derives from it. Default 0.
    pub seed: Option<u64>,
    /// Where processes run: auto, pack or spread.
    pub placement: Option<Placement>,
    /// Whether daemons spin before they sleep: adaptive or never.
    pub poll: Option<Poll>,
    /// The nodes by name.
    pub nodes: Placed<OrderedMap<Option<Node>>>,
    /// The links.
    #[serde(default)]
    pub links: Vec<Placed<Link>>,
    /// What must hold once the lab is up.
    #[serde(default)]
    pub checks: Vec<Placed<Check>>,
}

/// Where processes run.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Neighbours share a CPU while it has room.
    Auto,
    /// All on one CPU.
    Pack,
    /// Nodes on different CPUs.
    Spread,
}

/// Whether daemons spin before they sleep.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Sleep at once.
    Never,
    /// Spin briefly first.
    Adaptive,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An emulated host.
    Host,
    /// An emulated host that forwards.
    Router,
    /// A learning bridge.
    Switch,
    /// Real Linux in a network namespace.
    Linux,
}

/// A node.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Node {
    /// host (the default), router, switch or linux.
    pub kind: Option<Placed<Kind>>,
    /// Kind linux: path of an existing network namespace to use.
    pub netns: Option<Placed<String>>,
    /// Modelled CPUs, 1 to 64.
    pub cpus: Option<Placed<u16>>,
    /// Programs to start when the lab comes up.
    #[serde(default)]
    pub run: Vec<Placed<Run>>,
    /// Sysctls by name.
    #[serde(default)]
    pub sysctls: OrderedMap<Scalar>,
    /// What the programs see as `/`: a directory, relative to the topology file. Default: the machine's.
    pub root: Option<Placed<String>>,
    /// What the programs see elsewhere: "SOURCE:DESTINATION", with ":ro" read-only. Sources are relative to the topology file.
    #[serde(default)]
    pub binds: Vec<Placed<String>>,
    /// Environment of all programs of the node.
    #[serde(default)]
    pub env: OrderedMap<Scalar>,
    /// Directory in which programs start: an absolute path in the node's root.
    pub workdir: Option<Placed<String>>,
    /// Whom programs run as: a name, or "uid:gid".
    pub user: Option<Placed<Scalar>>,
    /// Whether the dynamic loader puts an object of hostd's into programs, which makes their calls cheaper. Default: true.
    pub preload: Option<Placed<bool>>,
    /// Its interfaces' hardware.
    pub nic: Option<Placed<Nic>>,
    /// Static routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Choices between behaviours of Linux versions.
    pub kernel: Option<Placed<KernelChoices>>,
    /// Switch: how long a learned address is kept ("300s").
    pub ageing: Option<Placed<Scalar>>,
}

/// Choices between behaviours of Linux versions.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KernelChoices {
    /// Datagrams for a socket that a process has in a call go to its backlog, as before Linux 4.10.
    #[serde(default)]
    pub udp_backlog: bool,
}

/// A program to start.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Name of a built-in program.
    pub builtin: Option<Placed<String>>,
    /// Arguments of the built-in program.
    #[serde(default)]
    pub args: Vec<Scalar>,
    /// A real program and its arguments.
    #[serde(default)]
    pub cmd: Vec<Scalar>,
    /// Environment.
    #[serde(default)]
    pub env: OrderedMap<Scalar>,
    /// When the program counts as started.
    pub ready: Option<Ready>,
}

/// When a program counts as started.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// This TCP port listens.
    pub tcp: u16,
}

/// A node's NIC hardware.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Nic {
    /// Queue pairs, 1 to 8.
    pub queues: Option<Placed<u16>>,
    /// RX descriptors: a power of two, 64 to 4096.
    pub rx_ring: Option<Placed<u16>>,
    /// TX descriptors: a power of two, 64 to 4096.
    pub tx_ring: Option<Placed<u16>>,
    /// Microseconds by which an RX interrupt may be late.
    pub rx_usecs: Option<u32>,
    /// Frames after which it comes at once.
    pub rx_frames: Option<u32>,
    /// CPU of each queue's interrupt vector.
    #[serde(default)]
    pub irq_affinity: Vec<Placed<u16>>,
    /// Packets that the qdisc holds.
    pub txqueuelen: Option<u32>,
}

/// A static route.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destination: "10.1.0.0/16", or "default".
    pub to: Placed<String>,
    /// Gateway.
    pub via: Placed<String>,
}

/// What carries a link.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// Shared memory between two nicds.
    Cable,
    /// TAPs and a Linux bridge.
    Tap,
}

/// A link between two interfaces.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Two ends, "node:interface".
    #[schemars(with = "[String; 2]")]
    pub endpoints: Spanned<Vec<Spanned<String>>>,
    /// Address and prefix length of each end, null for none; left out: allocated.
    #[schemars(with = "Option<[Option<String>; 2]>")]
    pub ipv4: Option<Spanned<Vec<Option<Spanned<String>>>>>,
    /// Octets of layer-3 payload, 68 to 65521. Default 1500.
    pub mtu: Option<Placed<u32>>,
    /// cable (the default) or tap.
    pub medium: Option<Medium>,
    /// One-way delay of both directions: "20ms".
    pub delay: Option<Placed<Scalar>>,
    /// Rate of both directions: "100mbit".
    pub rate: Option<Placed<Scalar>>,
    /// Loss of both directions: "0.5%".
    pub loss: Option<Placed<Scalar>>,
    /// From the first end to the second: overrides.
    pub forward: Option<Direction>,
    /// From the second end to the first: overrides.
    pub backward: Option<Direction>,
}

/// Impairments of one direction.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Direction {
    /// One-way delay: "20ms".
    pub delay: Option<Placed<Scalar>>,
    /// Rate: "100mbit".
    pub rate: Option<Placed<Scalar>>,
    /// Loss: "0.5%".
    pub loss: Option<Placed<Scalar>>,
}

/// A check.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Node on which the program runs.
    pub on: Placed<String>,
    /// A real program and its arguments.
    #[serde(default)]
    pub run: Vec<Scalar>,
    /// Name of a built-in program.
    pub builtin: Option<Placed<String>>,
    /// Arguments of the built-in program.
    #[serde(default)]
    pub args: Vec<Scalar>,
    /// What is expected of it. Default: exit status 0.
    pub expect: Option<Expect>,
}

/// What is expected of a check's program.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Exit status. Default 0.
    #[serde(default)]
    pub exit: i32,
}

/// A scalar's text: `80`, `true` and `20ms` alike. Described in the schema as a string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Scalar)
    }
}

/// A value with its place, described in the schema as the value.
#[derive(Debug)]
pub struct Placed<T>(pub Spanned<T>);

impl<T> Deref for Placed<T> {
    type Target = Spanned<T>;
    fn deref(&self) -> &Spanned<T> {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Placed<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Spanned::deserialize(d).map(Placed)
    }
}

/// Gives a type the schema of another.
macro_rules! described_as {
    ($type:ty, $as:ty $(, $param:ident)?) => {
        impl$(<$param: JsonSchema>)? JsonSchema for $type {
            fn inline_schema() -> bool {
                <$as>::inline_schema()
            }
            fn schema_name() -> Cow<'static, str> {
                <$as>::schema_name()
            }
            fn schema_id() -> Cow<'static, str> {
                <$as>::schema_id()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                <$as>::json_schema(generator)
            }
        }
    };
}

described_as!(Scalar, String);
described_as!(Placed<T>, T, T);
described_as!(OrderedMap<V>, BTreeMap<String, V>, V);

/// A mapping in the file's order, with the places of its keys.
#[derive(Debug)]
pub struct OrderedMap<V>(pub Vec<(Spanned<String>, V)>);

impl<V> Default for OrderedMap<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for OrderedMap<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = OrderedMap<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(OrderedMap(entries))
            }
        }
        d.deserialize_map(Entries(PhantomData))
    }
}
