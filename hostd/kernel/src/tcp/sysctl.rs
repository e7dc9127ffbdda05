//! TCP's settings (`net.ipv4.tcp_*`), Linux defaults.

use crate::sysctl::Sysctls;
use core::time::Duration;

/// Values of one host.
#[derive(Debug, Clone)]
pub struct TcpSysctl {
    /// `tcp_rmem`: minimum, default, maximum; octets.
    pub rmem: [u32; 3],
    /// `tcp_wmem`.
    pub wmem: [u32; 3],
    /// `net.core.somaxconn`.
    pub somaxconn: u32,
    /// `tcp_max_syn_backlog`.
    pub max_syn_backlog: u32,
    /// `tcp_syncookies`: 0 never, 1 when the SYN queue is full, 2 always.
    pub syncookies: u8,
    /// `tcp_timestamps`.
    pub timestamps: bool,
    /// `tcp_sack`.
    pub sack: bool,
    /// `tcp_window_scaling`.
    pub window_scaling: bool,
    /// `tcp_dsack`.
    pub dsack: bool,
    /// `tcp_ecn`: 0 never, 1 ask and accept, 2 accept.
    pub ecn: u8,
    /// `tcp_syn_retries`.
    pub syn_retries: u8,
    /// `tcp_syn_linear_timeouts`.
    pub syn_linear_timeouts: u8,
    /// `tcp_synack_retries`.
    pub synack_retries: u8,
    /// `tcp_retries1`.
    pub retries1: u8,
    /// `tcp_retries2`.
    pub retries2: u8,
    /// `tcp_orphan_retries` (0 means 8).
    pub orphan_retries: u8,
    /// `tcp_keepalive_time`.
    pub keepalive_time: Duration,
    /// `tcp_keepalive_intvl`.
    pub keepalive_intvl: Duration,
    /// `tcp_keepalive_probes`.
    pub keepalive_probes: u8,
    /// `tcp_fin_timeout`.
    pub fin_timeout: Duration,
    /// `tcp_tw_reuse`: 0 no, 1 yes, 2 on loopback.
    pub tw_reuse: u8,
    /// `tcp_max_tw_buckets`.
    pub max_tw_buckets: u32,
    /// `tcp_max_orphans`.
    pub max_orphans: u32,
    /// `tcp_abort_on_overflow`.
    pub abort_on_overflow: bool,
    /// `tcp_invalid_ratelimit`.
    pub invalid_ratelimit: Duration,
    /// `tcp_challenge_ack_limit`, a second and host.
    pub challenge_ack_limit: u32,
    /// `tcp_reordering`.
    pub reordering: u32,
    /// `tcp_max_reordering`.
    pub max_reordering: u32,
    /// `tcp_early_retrans`: 0 no tail loss probe, 3 probe.
    pub early_retrans: u8,
    /// `tcp_slow_start_after_idle`.
    pub slow_start_after_idle: bool,
    /// `tcp_moderate_rcvbuf`.
    pub moderate_rcvbuf: bool,
    /// `tcp_notsent_lowat`, octets.
    pub notsent_lowat: u32,
    /// `tcp_min_snd_mss`.
    pub min_snd_mss: u32,
    /// Least path MTU believed (`route.min_pmtu`).
    pub min_pmtu: u32,
    /// `tcp_congestion_control`.
    pub congestion_control: &'static str,
    /// `ip_local_port_range`.
    pub local_port_range: (u16, u16),
    /// `tcp_tso_win_divisor`.
    pub tso_win_divisor: u32,
    /// `tcp_limit_output_bytes`.
    pub limit_output_bytes: u32,
}

impl Default for TcpSysctl {
    fn default() -> Self {
        Self::from(&Sysctls::default())
    }
}

impl From<&Sysctls> for TcpSysctl {
    /// The rows in their units; each is in the table's range.
    fn from(s: &Sysctls) -> Self {
        let triple = |v: [i64; 3]| v.map(|n| n as u32);
        let seconds = |n: i64| Duration::from_secs(n as u64);
        Self {
            rmem: triple(s.tcp_rmem),
            wmem: triple(s.tcp_wmem),
            somaxconn: s.somaxconn as u32,
            syncookies: s.tcp_syncookies as u8,
            timestamps: s.tcp_timestamps != 0,
            sack: s.tcp_sack != 0,
            window_scaling: s.tcp_window_scaling != 0,
            dsack: s.tcp_dsack != 0,
            ecn: s.tcp_ecn as u8,
            syn_retries: s.tcp_syn_retries as u8,
            syn_linear_timeouts: s.tcp_syn_linear_timeouts as u8,
            synack_retries: s.tcp_synack_retries as u8,
            max_syn_backlog: s.tcp_max_syn_backlog as u32,
            retries1: s.tcp_retries1 as u8,
            retries2: s.tcp_retries2 as u8,
            orphan_retries: s.tcp_orphan_retries as u8,
            keepalive_time: seconds(s.tcp_keepalive_time),
            keepalive_intvl: seconds(s.tcp_keepalive_intvl),
            keepalive_probes: s.tcp_keepalive_probes as u8,
            fin_timeout: seconds(s.tcp_fin_timeout),
            tw_reuse: s.tcp_tw_reuse as u8,
            max_tw_buckets: s.tcp_max_tw_buckets as u32,
            max_orphans: s.tcp_max_orphans as u32,
            abort_on_overflow: s.tcp_abort_on_overflow != 0,
            invalid_ratelimit: Duration::from_millis(s.tcp_invalid_ratelimit as u64),
            challenge_ack_limit: s.tcp_challenge_ack_limit as u32,
            reordering: s.tcp_reordering as u32,
            max_reordering: s.tcp_max_reordering as u32,
            early_retrans: s.tcp_early_retrans as u8,
            slow_start_after_idle: s.tcp_slow_start_after_idle != 0,
            moderate_rcvbuf: s.tcp_moderate_rcvbuf != 0,
            notsent_lowat: s.tcp_notsent_lowat as u32,
            min_snd_mss: s.tcp_min_snd_mss as u32,
            min_pmtu: s.route_min_pmtu as u32,
            congestion_control: s.tcp_congestion_control,
            local_port_range: (s.ip_local_port_range[0] as u16, s.ip_local_port_range[1] as u16),
            tso_win_divisor: s.tcp_tso_win_divisor as u32,
            limit_output_bytes: s.tcp_limit_output_bytes as u32,
        }
    }
}
