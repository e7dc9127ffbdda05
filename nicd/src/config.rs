//! A validated configuration: what came over gRPC or from the command line.

use ringlab_proto::nic as proto;
use std::collections::BTreeSet;
use std::time::Duration;

/// Most queue pairs of a port.
pub const MAX_QUEUE_PAIRS: u16 = 8;

/// The NIC hardware of one node.
#[derive(Debug, Clone, PartialEq)]
pub struct NicConfig {
    /// The node.
    pub node: String,
    /// Every random choice derives from it.
    pub seed: u64,
    /// The ports are joined by a learning bridge.
    pub bridge: Option<BridgeConfig>,
    /// In order.
    pub ports: Vec<PortConfig>,
    /// Spin briefly before sleeping, where that can help.
    pub adaptive: bool,
}

/// The learning bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeConfig {
    /// After which a learned address is forgotten.
    pub ageing: Duration,
    /// Most learned addresses.
    pub max_entries: usize,
}

/// A port.
#[derive(Debug, Clone, PartialEq)]
pub struct PortConfig {
    /// Its name on the node.
    pub name: String,
    /// Its address.
    pub mac: [u8; 6],
    /// Octets of layer-3 payload.
    pub mtu: u16,
    /// 1 to 8.
    pub queue_pairs: u16,
    /// Interrupt moderation.
    pub rx_usecs: u32,
    /// Frames after which the interrupt comes at once; 0: no such limit.
    pub rx_frames: u32,
    /// The node's side.
    pub device: Option<DeviceConfig>,
    /// The other side.
    pub wire: Option<WireConfig>,
    /// What the wire does to frames that leave.
    pub impairment: ImpairmentConfig,
    /// Administratively down.
    pub link_down: bool,
}

impl PortConfig {
    /// True if a port so configured can become `other` without being made anew.
    pub fn same_hardware(&self, other: &Self) -> bool {
        let same_shape = self.mtu == other.mtu && self.queue_pairs == other.queue_pairs && self.mac == other.mac;
        same_shape && self.name == other.name && self.device == other.device && self.wire == other.wire
    }
}

/// The node's side of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceConfig {
    /// vhost-user back end, listening.
    Vhost {
        /// Path of the socket.
        socket: String,
        /// Memory that may shrink is taken, too.
        unsealed: bool,
    },
    /// A TAP device: the node is real Linux.
    Tap(TapConfig),
}

/// The other side of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireConfig {
    /// Shared memory with another NIC of this machine.
    Cable {
        /// Path of the socket.
        socket: String,
        /// This end listens.
        listen: bool,
    },
    /// A TAP device.
    Tap(TapConfig),
}

/// A TAP device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// Interface name.
    pub name: String,
    /// Path of its network namespace; `None`: ours.
    pub netns: Option<String>,
    /// Without `IFF_VNET_HDR`.
    pub plain: bool,
    /// Queues, 1 to 8.
    pub queues: u16,
}

/// What a wire does to frames.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ImpairmentConfig {
    /// One-way delay in nanoseconds.
    pub delay_ns: u64,
    /// Bits per second on the wire; 0: not limited.
    pub rate_bps: u64,
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Octets that may wait for the rate; 0: chosen from the rate.
    pub limit_octets: u64,
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

fn refuse<T>(text: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(text.into()))
}

impl NicConfig {
    /// Validates a message.
    ///
    /// # Errors
    /// The first value that cannot be, by field name.
    pub fn parse(message: &proto::NicConfig) -> Result<Self, ConfigError> {
        let adaptive = match message.poll.as_str() {
            "" | "adaptive" => true,
            "never" => false,
            other => return refuse(format!("poll: {other:?} is neither adaptive nor never")),
        };
        let bridge = message.bridge.as_ref().map(|b| BridgeConfig {
            ageing: Duration::from_secs(u64::from(if b.ageing_s == 0 { 300 } else { b.ageing_s })),
            max_entries: if b.max_entries == 0 { 4096 } else { b.max_entries as usize },
        });
        let ports = message.ports.iter().map(|p| PortConfig::parse(p, bridge.is_some())).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = ports.iter().find(|p| !names.insert(p.name.as_str())) {
            return refuse(format!("port {} is given twice", twice.name));
        }
        Ok(Self { node: message.node.clone(), seed: message.seed, bridge, ports, adaptive })
    }
}

impl PortConfig {
    fn parse(message: &proto::PortConfig, bridged: bool) -> Result<Self, ConfigError> {
        let name = interface_name(&message.name)?;
        let fault = |text: &str| ConfigError(format!("port {name}: {text}"));
        let mac = <[u8; 6]>::try_from(message.mac.as_slice()).map_err(|_| fault("mac is not six octets"))?;
        if mac[0] & 1 == 1 {
            return Err(fault("mac is a group address"));
        }
        let mtu = if message.mtu == 0 { 1500 } else { message.mtu };
        let mtu = u16::try_from(mtu).ok().filter(|m| (68..=65521).contains(m)).ok_or_else(|| fault("mtu is not within 68 to 65521"))?;
        let queue_pairs = queues(message.queue_pairs).ok_or_else(|| fault("queue_pairs is not within 1 to 8"))?;
        let ring = |r: u32| r == 0 || (r.is_power_of_two() && (64..=4096).contains(&r));
        if !ring(message.rx_ring) || !ring(message.tx_ring) {
            return Err(fault("a ring is not a power of two within 64 to 4096"));
        }
        let device = message.device.as_ref().map(DeviceConfig::parse).transpose()?;
        let wire = message.wire.as_ref().map(WireConfig::parse).transpose()?;
        if bridged && device.is_some() {
            return Err(fault("a switch port has no device side"));
        }
        if wire.is_none() && device.is_none() {
            return Err(fault("neither device nor wire is given"));
        }
        let moderation = message.moderation.unwrap_or_default();
        let impairment = message.impairment.as_ref().map(ImpairmentConfig::parse).transpose()?.unwrap_or_default();
        Ok(Self {
            mac,
            mtu,
            queue_pairs,
            rx_usecs: moderation.rx_usecs,
            rx_frames: moderation.rx_frames,
            device,
            wire,
            impairment,
            link_down: message.link_down,
            name,
        })
    }
}

fn queues(n: u32) -> Option<u16> {
    match n {
        0 => Some(1),
        n => u16::try_from(n).ok().filter(|&n| n <= MAX_QUEUE_PAIRS),
    }
}

fn interface_name(name: &str) -> Result<String, ConfigError> {
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    if !fits || name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || !b.is_ascii_graphic()) {
        return refuse(format!("{name:?} is not an interface name of at most 15 octets"));
    }
    Ok(name.to_owned())
}

fn socket_path(path: &str) -> Result<String, ConfigError> {
    // sun_path holds 108 octets with the terminating zero.
    if path.is_empty() || path.len() > 107 || path.contains('\0') {
        return refuse(format!("{path:?} is not a socket path of at most 107 octets"));
    }
    Ok(path.to_owned())
}

impl DeviceConfig {
    fn parse(message: &proto::port_config::Device) -> Result<Self, ConfigError> {
        Ok(match message {
            proto::port_config::Device::Vhost(v) => Self::Vhost { socket: socket_path(&v.socket)?, unsealed: v.unsealed_memory },
            proto::port_config::Device::Tap(t) => Self::Tap(TapConfig::parse(t)?),
        })
    }
}

impl WireConfig {
    fn parse(message: &proto::port_config::Wire) -> Result<Self, ConfigError> {
        Ok(match message {
            proto::port_config::Wire::Cable(c) => Self::Cable { socket: socket_path(&c.socket)?, listen: c.listen },
            proto::port_config::Wire::TapWire(t) => Self::Tap(TapConfig::parse(t)?),
        })
    }
}

impl TapConfig {
    fn parse(message: &proto::TapDevice) -> Result<Self, ConfigError> {
        let queues = queues(message.queues).ok_or_else(|| ConfigError(format!("tap {}: queues is not within 1 to 8", message.name)))?;
        if message.plain && queues > 1 {
            return refuse(format!("tap {}: plain mode has one queue", message.name));
        }
        let netns = Some(message.netns.clone()).filter(|n| !n.is_empty());
        Ok(Self { name: interface_name(&message.name)?, netns, plain: message.plain, queues })
    }
}

impl ImpairmentConfig {
    /// Validates a message.
    ///
    /// # Errors
    /// If `loss` is not a probability or `delay_ns` exceeds an hour.
    pub fn parse(message: &proto::Impairment) -> Result<Self, ConfigError> {
        if !(0.0..=1.0).contains(&message.loss) {
            return refuse(format!("loss {} is not within 0 to 1", message.loss));
        }
        if message.delay_ns > 3_600_000_000_000 {
            return refuse("delay_ns exceeds an hour");
        }
        Ok(Self { delay_ns: message.delay_ns, rate_bps: message.rate_bps, loss: message.loss, limit_octets: message.limit_octets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> proto::PortConfig {
        proto::PortConfig {
            name: name.into(),
            mac: vec![2, 0, 0, 0, 0, 1],
            wire: Some(proto::port_config::Wire::Cable(proto::CableWire { socket: "/tmp/c".into(), listen: true })),
            ..Default::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut proto::NicConfig)) -> String {
        let mut config = proto::NicConfig { ports: vec![port("eth0")], ..Default::default() };
        change(&mut config);
        NicConfig::parse(&config).expect_err("refused").0
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = proto::NicConfig { ports: vec![port("eth0")], bridge: Some(proto::SwitchConfig::default()), ..Default::default() };
        let config = NicConfig::parse(&config).expect("valid");
        assert_eq!((config.ports[0].mtu, config.ports[0].queue_pairs, config.adaptive), (1500, 1, true));
        assert_eq!(config.bridge, Some(BridgeConfig { ageing: Duration::from_secs(300), max_entries: 4096 }));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        assert!(refusal(|c| c.poll = "often".into()).contains("poll"));
        assert!(refusal(|c| c.ports.push(port("eth0"))).contains("twice"));
        assert!(refusal(|c| c.ports[0].mac = vec![1; 6]).contains("group"));
        assert!(refusal(|c| c.ports[0].mac = vec![1; 5]).contains("six octets"));
        assert!(refusal(|c| c.ports[0].mtu = 67).contains("mtu"));
        assert!(refusal(|c| c.ports[0].queue_pairs = 9).contains("queue_pairs"));
        assert!(refusal(|c| c.ports[0].rx_ring = 100).contains("power of two"));
        assert!(refusal(|c| c.ports[0].wire = None).contains("neither"));
        assert!(refusal(|c| c.ports[0].name = "a/b".into()).contains("interface name"));
        assert!(refusal(|c| c.ports[0].impairment = Some(proto::Impairment { loss: f64::NAN, ..Default::default() })).contains("loss"));
        assert!(
            refusal(
                |c| c.ports[0].wire = Some(proto::port_config::Wire::Cable(proto::CableWire { socket: "x".repeat(108), listen: false }))
            )
            .contains("socket path")
        );
    }
}
