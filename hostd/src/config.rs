//! A host's configuration, checked: what comes out of [`HostSpec::parse`] can be built.

use crate::guest::launch::Start;
use crate::guest::namespace::Bind;
use ipnet::Ipv4Net;
use ringlab_kernel::dev::net_device::MacAddr;
use ringlab_proto::host::{ExecStart, Files, HostConfig, Interface, Program, Route};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Most interfaces of a host.
const MAX_INTERFACES: usize = 64;
/// Most entries of each list of a configuration.
const MAX_ENTRIES: usize = 65536;

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value that cannot be.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which field, `interfaces[0].mac`.
        field: String,
        /// What about it.
        problem: String,
    },
    /// A change that needs another host.
    #[error("{0} cannot change while the host runs; restart the node")]
    Structural(&'static str),
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Its name.
    pub hostname: String,
    /// Every random choice derives from it.
    pub seed: u64,
    /// Modelled CPUs.
    pub cpus: u16,
    /// It is a router.
    pub ip_forward: bool,
    /// Datagrams take the backlog.
    pub udp_backlog: bool,
    /// The event loop spins before it sleeps.
    pub spin: bool,
    /// Interfaces, in the order of their numbers.
    pub interfaces: Vec<InterfaceSpec>,
    /// Static routes.
    pub routes: Vec<RouteSpec>,
    /// Sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Names.
    pub hosts: BTreeMap<String, Ipv4Addr>,
    /// Programs to start.
    pub run: Vec<RunSpec>,
    /// What programs see, and as whom.
    pub files: FilesSpec,
}

/// What programs see of the machine's files, and as whom they run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesSpec {
    /// Their root; empty: the machine's.
    pub root: String,
    /// In order.
    pub binds: Vec<Bind>,
    /// Environment of all of them.
    pub env: BTreeMap<String, String>,
    /// Directory; empty: that of whoever starts them.
    pub workdir: String,
    /// User; empty: that of hostd.
    pub user: String,
    /// The dynamic loader puts nothing into them.
    pub no_preload: bool,
}

impl FilesSpec {
    /// Nothing has to be arranged for programs.
    pub fn is_plain(&self) -> bool {
        !self.has_view() && self.user.is_empty()
    }

    /// Programs see other files than the machine's.
    pub fn has_view(&self) -> bool {
        !self.root.is_empty() || !self.binds.is_empty()
    }

    fn parse(files: Files) -> Result<Self, ConfigError> {
        check(files.binds.len() <= MAX_ENTRIES, "files.binds", || format!("{} entries; at most {MAX_ENTRIES}", files.binds.len()))?;
        check_env("files.env", &files.env)?;
        let path = |text: &str| text.starts_with('/') && !text.contains('\0');
        let optional = |field: &str, text: &str| check(text.is_empty() || path(text), field, || "is not an absolute path".to_owned());
        optional("files.root", &files.root)?;
        optional("files.workdir", &files.workdir)?;
        let fine = files.binds.iter().all(|b| path(&b.source) && path(&b.destination));
        check(fine, "files.binds", || "has a path that is not absolute".to_owned())?;
        let binds = files.binds.into_iter();
        let binds = binds.map(|b| Bind { source: b.source, destination: b.destination, read_only: b.read_only }).collect();
        let env = files.env.into_iter().collect();
        Ok(Self { root: files.root, binds, env, workdir: files.workdir, user: files.user, no_preload: files.no_preload })
    }
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// "eth0".
    pub name: String,
    /// Address.
    pub mac: MacAddr,
    /// Octets of layer-3 payload.
    pub mtu: u32,
    /// Addresses with prefix lengths.
    pub ipv4: Vec<Ipv4Net>,
    /// Where nicd listens.
    pub vhost_socket: PathBuf,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Descriptors of a receive ring.
    pub rx_ring: u16,
    /// Descriptors of a transmit ring.
    pub tx_ring: u16,
    /// CPU of each queue's vector.
    pub irq_affinity: Vec<u16>,
    /// Packets of the qdisc.
    pub txqueuelen: u32,
}

/// A static route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteSpec {
    /// Destination.
    pub prefix: Ipv4Net,
    /// Gateway; `None`: on the link.
    pub via: Option<Ipv4Addr>,
    /// Interface; `None`: the one on whose link the gateway is.
    pub dev: Option<String>,
    /// Smaller is preferred.
    pub metric: u32,
}

/// A program of `run:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// What to start.
    pub start: ExecSpec,
    /// Ready when this port listens; `None`: at once.
    pub ready_tcp: Option<u16>,
}

/// What an `exec` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecSpec {
    /// A built-in program.
    Builtin(StartSpec),
    /// An unmodified one.
    Guest(Start),
}

impl ExecSpec {
    /// Name under which it is shown.
    pub fn name(&self) -> &str {
        match self {
            Self::Builtin(start) => &start.builtin,
            Self::Guest(start) => start.argv.first().map_or("", |name| name.rsplit('/').next().unwrap_or(name)),
        }
    }

    /// Checks what to start.
    ///
    /// # Errors
    /// As [`StartSpec::parse`]; [`ConfigError::Invalid`] if no program is named.
    pub fn parse(field: &str, start: ExecStart) -> Result<Self, ConfigError> {
        if !start.builtin.is_empty() {
            return StartSpec::parse(field, start).map(Self::Builtin);
        }
        check(!start.argv.is_empty(), &format!("{field}.argv"), || "names no program".to_owned())?;
        let bad = |s: &String| s.contains('\0');
        check(!start.argv.iter().any(bad) && !bad(&start.cwd), &format!("{field}.argv"), || "has a zero octet".to_owned())?;
        check(!bad(&start.workdir), &format!("{field}.workdir"), || "has a zero octet".to_owned())?;
        check_env(&format!("{field}.env"), &start.env)?;
        check_env(&format!("{field}.set_env"), &start.set_env)?;
        let size = start.size.unwrap_or_default();
        let side = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let tty = start.tty.then(|| (side(size.rows), side(size.cols)));
        Ok(Self::Guest(Start {
            argv: start.argv,
            env: start.env.into_iter().collect(),
            set_env: start.set_env.into_iter().collect(),
            cwd: start.cwd,
            workdir: start.workdir,
            user: start.user,
            tty,
        }))
    }
}

/// A built-in program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartSpec {
    /// Name of the built-in program.
    pub builtin: String,
    /// Its arguments.
    pub argv: Vec<String>,
    /// Directory against which file arguments are resolved.
    pub cwd: PathBuf,
}

impl HostSpec {
    /// Checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the first field that is wrong.
    pub fn parse(config: HostConfig) -> Result<Self, ConfigError> {
        for (field, len) in
            [("routes", config.routes.len()), ("sysctls", config.sysctls.len()), ("hosts", config.hosts.len()), ("run", config.run.len())]
        {
            check(len <= MAX_ENTRIES, field, || format!("{len} entries; at most {MAX_ENTRIES}"))?;
        }
        let cpus = in_range("cpus", config.cpus, 1, 64)?;
        let interfaces = parse_interfaces(&config.interfaces, cpus)?;
        let names: HashSet<&str> = interfaces.iter().map(|i| i.name.as_str()).collect();
        let routes = config.routes.iter().enumerate().map(|(i, r)| parse_route(i, r, &names)).collect::<Result<_, _>>()?;
        let mut hosts = BTreeMap::new();
        for (i, entry) in config.hosts.into_iter().enumerate() {
            hosts.insert(entry.name, address(&format!("hosts[{i}].ipv4"), &entry.ipv4)?);
        }
        let spin = match config.poll.as_str() {
            "" | "adaptive" => true,
            "never" => false,
            other => return Err(invalid("poll", format!("{other:?} is neither \"adaptive\" nor \"never\""))),
        };
        let run = config.run.into_iter().enumerate().map(|(i, p)| parse_run(i, p)).collect::<Result<_, _>>()?;
        Ok(Self {
            hostname: config.hostname,
            seed: config.seed,
            cpus,
            ip_forward: config.ip_forward,
            udp_backlog: config.udp_backlog,
            spin,
            interfaces,
            routes,
            sysctls: config.sysctls.into_iter().collect(),
            hosts,
            run,
            files: FilesSpec::parse(config.files.unwrap_or_default())?,
        })
    }

    /// Checks that a running host can become `next` in place.
    ///
    /// # Errors
    /// [`ConfigError::Structural`] names what cannot change.
    pub fn check_change(&self, next: &Self) -> Result<(), ConfigError> {
        let same = [
            ("hostname", self.hostname == next.hostname),
            ("seed", self.seed == next.seed),
            ("cpus", self.cpus == next.cpus),
            ("udp_backlog", self.udp_backlog == next.udp_backlog),
            ("poll", self.spin == next.spin),
            ("interfaces", self.interfaces == next.interfaces),
            ("run", self.run == next.run),
            ("files", self.files == next.files),
            // A sysctl that is no longer named would have to get a default that only the kernel knows.
            ("the set of sysctls", self.sysctls.keys().all(|k| next.sysctls.contains_key(k))),
        ];
        match same.iter().find(|(_, same)| !same) {
            Some((what, _)) => Err(ConfigError::Structural(what)),
            None => Ok(()),
        }
    }
}

impl StartSpec {
    /// Checks a program to start.
    ///
    /// # Errors
    /// [`ConfigError`] if there is none of that name.
    pub fn parse(field: &str, start: ExecStart) -> Result<Self, ConfigError> {
        check(crate::programs::exists(&start.builtin), &format!("{field}.builtin"), || {
            format!("no built-in program {:?}; there are {}", start.builtin, crate::programs::NAMES.join(", "))
        })?;
        let plain = start.user.is_empty() && start.set_env.is_empty();
        check(plain, field, || "a built-in program has neither a user nor an environment".to_owned())?;
        let cwd = [start.workdir, start.cwd].into_iter().find(|dir| !dir.is_empty());
        let cwd = PathBuf::from(cwd.unwrap_or_else(|| "/".to_owned()));
        Ok(Self { builtin: start.builtin, argv: start.argv, cwd })
    }
}

fn check_env(field: &str, env: &HashMap<String, String>) -> Result<(), ConfigError> {
    let named = |(name, value): (&String, &String)| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
    check(env.iter().all(named), field, || "has an impossible name or value".to_owned())
}

fn parse_interfaces(list: &[Interface], cpus: u16) -> Result<Vec<InterfaceSpec>, ConfigError> {
    check(list.len() <= MAX_INTERFACES, "interfaces", || format!("{} of them; at most {MAX_INTERFACES}", list.len()))?;
    let mut names = HashSet::new();
    let mut out = Vec::with_capacity(list.len());
    for (i, interface) in list.iter().enumerate() {
        let spec = parse_interface(&format!("interfaces[{i}]"), interface, cpus)?;
        check(names.insert(spec.name.clone()) && spec.name != "lo", &format!("interfaces[{i}].name"), || {
            format!("{:?} is taken", spec.name)
        })?;
        out.push(spec);
    }
    Ok(out)
}

fn parse_interface(field: &str, i: &Interface, cpus: u16) -> Result<InterfaceSpec, ConfigError> {
    let name_ok = !i.name.is_empty() && i.name.len() <= 15 && i.name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    check(name_ok, &format!("{field}.name"), || format!("{:?} is not an interface name of 1 to 15 octets", i.name))?;
    let mac: [u8; 6] =
        i.mac.as_slice().try_into().map_err(|_| invalid(&format!("{field}.mac"), format!("{} octets; needs 6", i.mac.len())))?;
    check(mac[0] & 1 == 0, &format!("{field}.mac"), || "a group address cannot be an interface's".to_owned())?;
    let mut ipv4 = Vec::new();
    for (n, text) in i.ipv4.iter().enumerate().take(MAX_ENTRIES) {
        ipv4.push(prefix(&format!("{field}.ipv4[{n}]"), text)?);
    }
    let queue_pairs = in_range(&format!("{field}.queue_pairs"), i.queue_pairs.max(1), 1, 8)?;
    check(i.irq_affinity.len() <= usize::from(queue_pairs), &format!("{field}.irq_affinity"), || {
        format!("{} entries for {queue_pairs} queue pairs", i.irq_affinity.len())
    })?;
    let irq_affinity = i.irq_affinity.iter().map(|&c| in_range(&format!("{field}.irq_affinity"), c, 0, u32::from(cpus) - 1));
    check(!i.vhost_socket.is_empty(), &format!("{field}.vhost_socket"), || "empty".to_owned())?;
    Ok(InterfaceSpec {
        name: i.name.clone(),
        mac: MacAddr(mac),
        mtu: u32::from(in_range(&format!("{field}.mtu"), if i.mtu == 0 { 1500 } else { i.mtu }, 68, 65535)?),
        ipv4,
        vhost_socket: PathBuf::from(&i.vhost_socket),
        queue_pairs,
        rx_ring: ring_size(&format!("{field}.rx_ring"), i.rx_ring, 512)?,
        tx_ring: ring_size(&format!("{field}.tx_ring"), i.tx_ring, 256)?,
        irq_affinity: irq_affinity.collect::<Result<_, _>>()?,
        txqueuelen: if i.txqueuelen == 0 { 1000 } else { i.txqueuelen },
    })
}

fn parse_route(i: usize, r: &Route, names: &HashSet<&str>) -> Result<RouteSpec, ConfigError> {
    let field = format!("routes[{i}]");
    let net = if r.prefix == "default" { Ipv4Net::default() } else { prefix(&format!("{field}.prefix"), &r.prefix)? };
    let via = if r.via.is_empty() { None } else { Some(address(&format!("{field}.via"), &r.via)?) };
    let dev = (!r.dev.is_empty()).then(|| r.dev.clone());
    check(via.is_some() || dev.is_some(), &field, || "has neither a gateway nor an interface".to_owned())?;
    if let Some(dev) = &dev {
        check(names.contains(dev.as_str()), &format!("{field}.dev"), || format!("there is no interface {dev:?}"))?;
    }
    Ok(RouteSpec { prefix: net.trunc(), via, dev, metric: r.metric })
}

fn parse_run(i: usize, p: Program) -> Result<RunSpec, ConfigError> {
    let field = format!("run[{i}]");
    let start = p.program.ok_or_else(|| invalid(&field, "names no program".to_owned()))?;
    let ready = in_range(&format!("{field}.ready_tcp"), p.ready_tcp, 0, 65535)?;
    Ok(RunSpec { start: ExecSpec::parse(&field, start)?, ready_tcp: (ready != 0).then_some(ready) })
}

fn ring_size(field: &str, size: u32, default: u16) -> Result<u16, ConfigError> {
    if size == 0 {
        return Ok(default);
    }
    check(size.is_power_of_two(), field, || format!("{size} is not a power of two"))?;
    in_range(field, size, 64, 4096)
}

fn in_range(field: &str, value: u32, least: u32, most: u32) -> Result<u16, ConfigError> {
    check((least..=most).contains(&value), field, || format!("{value} is not within {least} to {most}"))?;
    u16::try_from(value).map_err(|_| invalid(field, format!("{value} is too large")))
}

fn prefix(field: &str, text: &str) -> Result<Ipv4Net, ConfigError> {
    text.parse().map_err(|_| invalid(field, format!("{text:?} is not an address with a prefix length, such as 10.0.0.1/24")))
}

fn address(field: &str, text: &str) -> Result<Ipv4Addr, ConfigError> {
    // The hosts table may come with prefix lengths; the address is what counts.
    let bare = text.split_once('/').map_or(text, |(addr, _)| addr);
    bare.parse().map_err(|_| invalid(field, format!("{text:?} is not an IPv4 address")))
}

fn check(ok: bool, field: &str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(invalid(field, problem())) }
}

fn invalid(field: &str, problem: String) -> ConfigError {
    ConfigError::Invalid { field: field.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn config() -> HostConfig {
        HostConfig {
            hostname: "h1".into(),
            cpus: 2,
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: vec![2, 0, 0, 0, 0, 1],
                ipv4: vec!["10.0.0.1/24".into()],
                vhost_socket: "/run/h1-eth0".into(),
                irq_affinity: vec![1],
                ..Default::default()
            }],
            routes: vec![Route { prefix: "10.1.0.0/16".into(), via: "10.0.0.254".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn left_out_values_get_defaults() {
        let spec = HostSpec::parse(config()).expect("valid");
        let i = &spec.interfaces[0];
        assert_eq!((i.mtu, i.queue_pairs, i.rx_ring, i.tx_ring, i.txqueuelen), (1500, 1, 512, 256, 1000));
        assert!(spec.spin);
    }

    #[test]
    fn hostile_values_are_refused_by_name() {
        type Spoil = fn(&mut HostConfig);
        let cases: [(Spoil, &str); 11] = [
            (|c| c.cpus = 65, "cpus"),
            (|c| c.cpus = 0, "cpus"),
            (|c| c.poll = "hard".into(), "poll"),
            (|c| c.interfaces[0].mac = vec![1, 2], "interfaces[0].mac"),
            (|c| c.interfaces[0].mac = vec![0xff; 6], "interfaces[0].mac"),
            (|c| c.interfaces[0].ipv4 = vec!["10.0.0.1/33".into()], "interfaces[0].ipv4[0]"),
            (|c| c.interfaces[0].name = "a-name-of-16-oct".into(), "interfaces[0].name"),
            (|c| c.interfaces[0].rx_ring = 100, "interfaces[0].rx_ring"),
            (|c| c.interfaces[0].irq_affinity = vec![2], "interfaces[0].irq_affinity"),
            (|c| c.routes[0].dev = "eth9".into(), "routes[0].dev"),
            (|c| c.interfaces.push(c.interfaces[0].clone()), "interfaces[1].name"),
        ];
        for (spoil, want) in cases {
            let mut config = config();
            spoil(&mut config);
            match HostSpec::parse(config) {
                Err(ConfigError::Invalid { field, .. }) => assert_eq!(field, want),
                other => panic!("{want}: {other:?}"),
            }
        }
    }

    #[test]
    fn routes_change_in_place_and_interfaces_do_not() {
        let old = HostSpec::parse(config()).expect("valid");
        let mut next = old.clone();
        next.routes.clear();
        assert_eq!(old.check_change(&next), Ok(()));
        next.interfaces.clear();
        assert_eq!(old.check_change(&next), Err(ConfigError::Structural("interfaces")));
    }

    #[test]
    fn unmodified_program_is_checked_for_what_exec_cannot_take() {
        let curl = ExecStart { argv: vec!["curl".into()], ..Default::default() };
        assert!(
            matches!(ExecSpec::parse("start", curl.clone()), Ok(ExecSpec::Guest(start)) if start.argv == ["curl"] && start.tty.is_none())
        );
        let spoilt: [fn(&mut ExecStart); 6] = [
            |s| s.argv.clear(),
            |s| s.argv.push("a\0b".into()),
            |s| s.cwd = "\0".into(),
            |s| drop(s.env.insert("A=B".into(), String::new())),
            |s| drop(s.set_env.insert(String::new(), String::new())),
            |s| s.workdir = "\0".into(),
        ];
        for spoil in spoilt {
            let mut start = curl.clone();
            spoil(&mut start);
            assert!(matches!(ExecSpec::parse("start", start), Err(ConfigError::Invalid { .. })));
        }
    }
}
