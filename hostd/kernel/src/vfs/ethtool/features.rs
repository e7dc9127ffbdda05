//! Features of interfaces by name and bit, as Linux 6.18 numbers them: programs go by the names, and print them in this order.

/// Names by bit (Linux `netdev_features_strings`); empty: no longer in use.
pub(super) const NAMES: [&str; 64] = [
    "tx-scatter-gather",
    "tx-checksum-ipv4",
    "",
    "tx-checksum-ip-generic",
    "tx-checksum-ipv6",
    "highdma",
    "tx-scatter-gather-fraglist",
    "tx-vlan-hw-insert",
    "rx-vlan-hw-parse",
    "rx-vlan-filter",
    "vlan-challenged",
    "tx-generic-segmentation",
    "",
    "",
    "rx-gro",
    "rx-lro",
    "tx-tcp-segmentation",
    "tx-gso-robust",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-fcoe-segmentation",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gso-partial",
    "tx-tunnel-remcsum-segmentation",
    "tx-sctp-segmentation",
    "tx-esp-segmentation",
    "",
    "tx-udp-segmentation",
    "tx-gso-list",
    "tx-tcp-accecn-segmentation",
    "tx-checksum-fcoe-crc",
    "tx-checksum-sctp",
    "rx-ntuple-filter",
    "rx-hashing",
    "rx-checksum",
    "tx-nocache-copy",
    "loopback",
    "rx-fcs",
    "rx-all",
    "tx-vlan-stag-hw-insert",
    "rx-vlan-stag-hw-parse",
    "rx-vlan-stag-filter",
    "l2-fwd-offload",
    "hw-tc-offload",
    "esp-hw-offload",
    "esp-tx-csum-hw-offload",
    "rx-udp_tunnel-port-offload",
    "tls-hw-tx-offload",
    "tls-hw-rx-offload",
    "rx-gro-hw",
    "tls-hw-record",
    "rx-gro-list",
    "macsec-hw-offload",
    "rx-udp-gro-forwarding",
    "hsr-tag-ins-offload",
    "hsr-tag-rm-offload",
    "hsr-fwd-offload",
    "hsr-dup-offload",
];

/// Words of a set of features.
pub(super) const WORDS: u32 = 2;

pub(super) const SG: u64 = 1;
pub(super) const TX_CSUM: u64 = 1 << 3;
const HIGHDMA: u64 = 1 << 5;
/// Linux's `NETIF_F_NEVER_CHANGE` of an interface.
pub(super) const VLAN_CHALLENGED: u64 = 1 << 10;
pub(super) const GSO: u64 = 1 << 11;
pub(super) const GRO: u64 = 1 << 14;
pub(super) const TSO: u64 = 1 << 16;
const GSO_ROBUST: u64 = 1 << 17;
pub(super) const RX_CSUM: u64 = 1 << 40;
const LOOPBACK: u64 = 1 << 42;
const GRO_HW: u64 = 1 << 55;

/// Always on: segmentation in software, trusted checksums, memory anywhere; a NIC's driver checks merged packets and gets them.
pub(super) const fn always(loopback: bool) -> u64 {
    GSO | RX_CSUM | HIGHDMA | if loopback { VLAN_CHALLENGED | LOOPBACK } else { GSO_ROBUST | GRO_HW }
}
