//! What a NIC port counts: `ethtool -S` names.

use crate::{Counter, Counters};

counters! {
    /// Statistics of one NIC port, `ethtool -S` names. `rx` is towards the node, `tx` towards the wire.
    pub enum Nic, NicCounters {
        RxPackets = "rx_packets",
        TxPackets = "tx_packets",
        RxBytes = "rx_bytes",
        TxBytes = "tx_bytes",
        RxGsoPackets = "rx_gso_packets",
        TxGsoPackets = "tx_gso_packets",
        RxMissed = "rx_missed_errors",
        RxCrcErrors = "rx_crc_errors",
        RxLengthErrors = "rx_length_errors",
        RxFrameErrors = "rx_frame_errors",
        RxRingErrors = "rx_ring_errors",
        TxRingErrors = "tx_ring_errors",
        TxBadGso = "tx_bad_gso",
        TxCarrierErrors = "tx_carrier_errors",
        TxSegments = "tx_tso_segments",
        TxCsumOffload = "tx_csum_offload",
        RxInterrupts = "rx_interrupts",
        TxInterrupts = "tx_interrupts",
        RxModerated = "rx_moderated",
        RxKicks = "rx_kicks",
        TxKicks = "tx_kicks",
        DmaCopies = "dma_copies",
        DmaBytes = "dma_bytes",
        WireTxBytes = "wire_tx_bytes",
        WireRxBytes = "wire_rx_bytes",
        WireDoorbells = "wire_doorbells",
        WireLost = "wire_lost",
        WireOverlimit = "wire_overlimits",
        WireDelayed = "wire_delayed",
        SwitchFlooded = "switch_flooded",
        SwitchForwarded = "switch_forwarded",
        SwitchFiltered = "switch_filtered",
        SwitchDropped = "switch_dropped",
        DeviceResets = "device_resets",
        LinkDownEvents = "link_down_events_phy",
    }
}
