//! The command line. The agent gives `--grpc` and configures over it; a person
//! gives ports and wires, for a VMM or DPDK to plug in.

use clap::{Parser, ValueEnum};
use ringlab_proto::nic as proto;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Ports and wires by hand:
  nicd --node a --port eth0,vhost=/tmp/a.sock,mac=02:00:00:00:00:01,queues=2 --wire eth0=cable:/tmp/ab.sock,listen
  nicd --node b --port eth0,vhost=/tmp/b.sock,mac=02:00:00:00:00:02 --wire eth0=cable:/tmp/ab.sock
  nicd --node c --port eth0,vhost=/tmp/c.sock --wire eth0=tap:tap0,netns=/run/netns/x
  nicd --node s --bridge --port p0 --port p1 --wire p0=cable:/tmp/p0.sock,listen --wire p1=tap:tap1

  --port NAME[,vhost=SOCKET[,unsealed] | ,tap=IFNAME][,netns=PATH][,plain][,mac=MAC][,mtu=N][,queues=N][,rx-usecs=N][,rx-frames=N]
  --wire NAME=cable:SOCKET[,listen][,IMPAIRMENT]   or   NAME=tap:IFNAME[,netns=PATH][,plain][,queues=N][,IMPAIRMENT]
  IMPAIRMENT: delay-us=N, rate-bps=N, loss=P

A VMM is the vhost-user front end and offers its memory as shared memfd pages, sealed against
shrinking (`unsealed` takes other memory, too: who shrinks that ends nicd). For QEMU:
  -object memory-backend-memfd,id=m,size=1G,share=on -numa node,memdev=m
  -chardev socket,id=c,path=/tmp/a.sock -netdev vhost-user,id=n,chardev=c,queues=2
  -device virtio-net-pci,netdev=n,packed=on,mq=on,mac=02:00:00:00:00:01 (without KVM: vectors=0, too)
For DPDK, with `unsealed` on the port:
  --vdev=net_virtio_user0,path=/tmp/a.sock,packed_vq=1,mrg_rxbuf=1,queues=2,mac=02:00:00:00:00:01";

/// The NIC hardware of one Ringlab node.
#[derive(Debug, Parser)]
#[command(name = "nicd", version, about, after_long_help = EXAMPLES)]
pub struct Args {
    /// Name of the node, for logs.
    #[arg(long, default_value = "nic")]
    pub node: String,
    /// Directory of the lab's files; made if missing. Sockets given by relative paths lie there.
    #[arg(long)]
    pub run_dir: Option<PathBuf>,
    /// Unix socket of the gRPC service `ringlab.nic.v1.Nic`.
    #[arg(long)]
    pub grpc: Option<PathBuf>,
    /// A port: see the examples.
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<String>,
    /// A port's wire: see the examples.
    #[arg(long = "wire", value_name = "NAME=WIRE")]
    pub wires: Vec<String>,
    /// Join the ports by a learning bridge.
    #[arg(long)]
    pub bridge: bool,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Whether to spin briefly before sleeping.
    #[arg(long, value_enum, default_value_t = Poll::Adaptive)]
    pub poll: Poll,
    /// Form of the log on stderr; `RUST_LOG` filters it.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// `--poll`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Poll {
    /// Spin briefly.
    Adaptive,
    /// Sleep at once.
    Never,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Args {
    /// The configuration that the arguments describe; `None` if they name no port.
    ///
    /// # Errors
    /// The argument that cannot be understood, and why.
    pub fn config(&self) -> Result<Option<proto::NicConfig>, String> {
        if self.ports.is_empty() {
            return if self.wires.is_empty() { Ok(None) } else { Err("--wire without --port".into()) };
        }
        let mut ports = Vec::new();
        for (i, text) in self.ports.iter().enumerate() {
            ports.push(port(text, i).map_err(|e| format!("--port {text}: {e}"))?);
        }
        for text in &self.wires {
            wire(text, &mut ports).map_err(|e| format!("--wire {text}: {e}"))?;
        }
        let poll = match self.poll {
            Poll::Adaptive => "adaptive",
            Poll::Never => "never",
        };
        let bridge = self.bridge.then(proto::SwitchConfig::default);
        Ok(Some(proto::NicConfig { node: self.node.clone(), seed: self.seed, bridge, ports, poll: poll.into() }))
    }
}

fn port(text: &str, index: usize) -> Result<proto::PortConfig, String> {
    let mut parts = text.split(',');
    let mut port = proto::PortConfig {
        name: parts.next().unwrap_or_default().to_owned(),
        mac: vec![0x02, 0x72, 0x6c, 0, 0, index as u8],
        ..Default::default()
    };
    let mut moderation = proto::Moderation::default();
    let mut tap = None::<proto::TapDevice>;
    for part in parts {
        match split(part) {
            ("vhost", Some(socket)) => {
                port.device = Some(proto::port_config::Device::Vhost(proto::VhostDevice { socket: socket.into(), ..Default::default() }));
            }
            ("unsealed", None) => match &mut port.device {
                Some(proto::port_config::Device::Vhost(vhost)) => vhost.unsealed_memory = true,
                _ => return Err("unsealed stands after vhost".into()),
            },
            ("tap", Some(name)) => tap = Some(proto::TapDevice { name: name.into(), ..Default::default() }),
            ("netns", Some(path)) => tap.as_mut().ok_or("netns stands after tap")?.netns = path.into(),
            ("plain", None) => tap.as_mut().ok_or("plain stands after tap")?.plain = true,
            ("mac", Some(mac)) => port.mac = parse_mac(mac)?,
            ("mtu", Some(n)) => port.mtu = number(n)?,
            ("queues", Some(n)) => port.queue_pairs = number(n)?,
            ("rx-usecs", Some(n)) => moderation.rx_usecs = number(n)?,
            ("rx-frames", Some(n)) => moderation.rx_frames = number(n)?,
            _ => return Err(format!("{part:?} is not understood")),
        }
    }
    if let Some(mut tap) = tap {
        tap.queues = port.queue_pairs;
        if port.device.replace(proto::port_config::Device::Tap(tap)).is_some() {
            return Err("both vhost and tap are given".into());
        }
    }
    port.moderation = Some(moderation);
    Ok(port)
}

fn wire(text: &str, ports: &mut [proto::PortConfig]) -> Result<(), String> {
    let (name, rest) = text.split_once('=').ok_or("NAME= is missing")?;
    let port = ports.iter_mut().find(|p| p.name == name).ok_or_else(|| format!("there is no port {name}"))?;
    let mut parts = rest.split(',');
    let (kind, target) = parts.next().and_then(|p| p.split_once(':')).ok_or("cable:SOCKET or tap:IFNAME is missing")?;
    let mut cable = proto::CableWire { socket: target.into(), listen: false };
    let mut tap = proto::TapDevice { name: target.into(), ..Default::default() };
    let mut impairment = proto::Impairment::default();
    for part in parts {
        match (kind, split(part)) {
            ("cable", ("listen", None)) => cable.listen = true,
            ("tap", ("netns", Some(path))) => tap.netns = path.into(),
            ("tap", ("plain", None)) => tap.plain = true,
            ("tap", ("queues", Some(n))) => tap.queues = number(n)?,
            (_, ("delay-us", Some(n))) => impairment.delay_ns = number::<u64>(n)?.saturating_mul(1000),
            (_, ("rate-bps", Some(n))) => impairment.rate_bps = number(n)?,
            (_, ("loss", Some(p))) => impairment.loss = number(p)?,
            _ => return Err(format!("{part:?} is not understood")),
        }
    }
    port.impairment = Some(impairment);
    port.wire = Some(match kind {
        "cable" => proto::port_config::Wire::Cable(cable),
        "tap" => proto::port_config::Wire::TapWire(tap),
        other => return Err(format!("{other:?} is neither cable nor tap")),
    });
    Ok(())
}

fn split(part: &str) -> (&str, Option<&str>) {
    part.split_once('=').map_or((part, None), |(k, v)| (k, Some(v)))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number that fits"))
}

fn parse_mac(text: &str) -> Result<Vec<u8>, String> {
    let octets: Option<Vec<u8>> = text.split(':').map(|o| u8::from_str_radix(o, 16).ok().filter(|_| o.len() == 2)).collect();
    octets.filter(|o| o.len() == 6).ok_or_else(|| format!("{text:?} is not six octets such as 02:00:00:00:00:01"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::port_config::{Device, Wire};

    fn config(args: &[&str]) -> Result<Option<proto::NicConfig>, String> {
        Args::parse_from([&["nicd"], args].concat()).config()
    }

    #[test]
    fn a_port_by_hand_is_what_the_agent_would_send() {
        let args =
            ["--port", "eth0,vhost=/tmp/s,mac=02:00:00:00:00:0a,queues=2,rx-usecs=50", "--wire", "eth0=cable:/tmp/c,listen,loss=0.5"];
        let config = config(&args).expect("understood").expect("a port");
        let port = &config.ports[0];
        assert_eq!(port.mac, [2, 0, 0, 0, 0, 10]);
        assert_eq!((port.queue_pairs, port.moderation.expect("given").rx_usecs), (2, 50));
        assert_eq!(port.device, Some(Device::Vhost(proto::VhostDevice { socket: "/tmp/s".into(), unsealed_memory: false })));
        let unsealed = super::port("p,vhost=/tmp/s,unsealed", 0).expect("understood");
        assert_eq!(unsealed.device, Some(Device::Vhost(proto::VhostDevice { socket: "/tmp/s".into(), unsealed_memory: true })));
        assert!(super::port("p,unsealed,vhost=/tmp/s", 0).is_err(), "of what?");
        assert_eq!(port.wire, Some(Wire::Cable(proto::CableWire { socket: "/tmp/c".into(), listen: true })));
        assert_eq!(port.impairment.expect("given").loss, 0.5);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(config(&["--port", "eth0,wat"]).expect_err("refused").contains("\"wat\""));
        assert!(config(&["--port", "eth0,mac=1"]).expect_err("refused").contains("six octets"));
        assert!(config(&["--port", "eth0", "--wire", "eth1=tap:t"]).expect_err("refused").contains("no port eth1"));
        assert!(config(&["--port", "eth0", "--wire", "eth0=rope:t"]).expect_err("refused").contains("rope"));
        assert_eq!(config(&[]), Ok(None));
    }
}
