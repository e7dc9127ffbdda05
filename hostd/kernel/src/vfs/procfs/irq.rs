//! `/proc/interrupts`, `/proc/softirqs`, `/proc/net/softnet_stat`.

use crate::Kernel;
use crate::cpu::account::CpuStat;
use alloc::string::String;
use core::fmt::Write as _;

/// Softirqs in the order of their numbers.
const SOFTIRQS: [&str; 10] = ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"];
/// First interrupt number given to a vector: as on a machine whose legacy interrupts lie below.
const FIRST_IRQ: u32 = 24;

impl Kernel {
    /// One row for each vector: number, count for each CPU, chip, and the driver's name of it.
    pub(super) fn proc_interrupts(&self) -> String {
        let mut out = String::from("           ");
        for cpu in 0..self.cpus.count() {
            // Infallible: writing to a string. (Also below.)
            let _ = write!(out, "CPU{cpu:<8}");
        }
        out.push('\n');
        for device in self.devs.iter() {
            for (i, queue) in device.queues.iter().enumerate() {
                let irq = FIRST_IRQ + queue.vector;
                let _ = write!(out, "{irq:>3}: ");
                for count in &queue.irq_counts {
                    let _ = write!(out, "{count:>10} ");
                }
                let _ = writeln!(out, "PCI-MSIX-{:04x}:00:{:02x}.0 {i:>3}-edge      {}-{i}", 0, device.index.0, device.name);
            }
        }
        out
    }

    /// Runs of each softirq on each CPU; those that the model does not have are 0.
    pub(super) fn proc_softirqs(&self) -> String {
        let mut out = String::from("                    ");
        for cpu in 0..self.cpus.count() {
            let _ = write!(out, "CPU{cpu:<8}");
        }
        out.push('\n');
        for name in SOFTIRQS {
            let _ = write!(out, "{name:>12}:");
            for cpu in self.cpus.iter() {
                let _ = write!(out, " {:>10}", runs(&cpu.stat, name));
            }
            out.push('\n');
        }
        out
    }

    /// One row for each CPU: packets, dropped, squeezed; then what this host does not count, the CPU's number and queue lengths.
    pub(super) fn proc_softnet_stat(&self) -> String {
        let mut out = String::new();
        for (i, cpu) in self.cpus.iter().enumerate() {
            let s = &cpu.stat;
            let columns = [
                s.napi_packets as u32,
                s.backlog_dropped as u32,
                s.time_squeeze as u32,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                cpu.backlog.len() as u32,
                i as u32,
                cpu.backlog.len() as u32,
                0,
            ];
            let row = columns.map(|c| alloc::format!("{c:08x}"));
            let _ = writeln!(out, "{}", row.join(" "));
        }
        out
    }
}

fn runs(stat: &CpuStat, softirq: &str) -> u64 {
    match softirq {
        "TIMER" => stat.timer_softirqs,
        "NET_TX" => stat.net_tx_softirqs,
        "NET_RX" => stat.net_rx_softirqs,
        "TASKLET" => stat.tasklet_softirqs,
        _ => 0,
    }
}
