//! What each modelled CPU counts: `/proc/softirqs`, `/proc/net/softnet_stat`, `/proc/stat`.

/// Counters of one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuStat {
    /// Hard interrupts taken.
    pub hardirqs: u64,
    /// Runs of `NET_RX_SOFTIRQ`.
    pub net_rx_softirqs: u64,
    /// Runs of `NET_TX_SOFTIRQ`.
    pub net_tx_softirqs: u64,
    /// Runs of `TIMER_SOFTIRQ`.
    pub timer_softirqs: u64,
    /// Runs of `TASKLET_SOFTIRQ`.
    pub tasklet_softirqs: u64,
    /// Calls of a NAPI poll function.
    pub napi_polls: u64,
    /// Frames that they took (`softnet_stat` column 1).
    pub napi_packets: u64,
    /// Rounds that ended with the budget spent and work left (`softnet_stat` column 3).
    pub time_squeeze: u64,
    /// Times that `ksoftirqd` ran.
    pub ksoftirqd_runs: u64,
    /// Context switches.
    pub context_switches: u64,
    /// System calls.
    pub syscalls: u64,
    /// Changes between user and kernel mode.
    pub mode_switches: u64,
    /// Packets dropped because the backlog was full (`softnet_stat` column 2).
    pub backlog_dropped: u64,
    /// Tasks woken.
    pub wakeups: u64,
}
