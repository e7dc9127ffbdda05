//! Trace points: what a frame, an interrupt, a task goes through, in order.
//!
//! Each point is one numbered fact of the receive, transmit and waiting paths
//! (`docs/architecture.md`) and carries the name of the Linux function where it
//! happens. Nobody listening costs one load and one branch; a listener gets a
//! bounded ring of [`Record`]s and the number of those that were lost.

use crate::time::Instant;
use alloc::collections::VecDeque;

macro_rules! points {
    ($($variant:ident = $name:literal, $step:literal, [$($arg:literal),*];)+) => {
        /// Where something happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point { $(#[doc = concat!("`", $name, "`, step ", $step)] $variant),+ }
        impl Point {
            /// All points.
            pub const ALL: &'static [Point] = &[$(Point::$variant),+];
            /// Linux function, or trace point.
            pub fn name(self) -> &'static str { match self { $(Point::$variant => $name),+ } }
            /// Number of the fact ("R4").
            pub fn step(self) -> &'static str { match self { $(Point::$variant => $step),+ } }
            /// Names of [`Record::args`].
            pub fn args(self) -> &'static [&'static str] { match self { $(Point::$variant => &[$($arg),*]),+ } }
        }
    };
}

points! {
    RxDma = "virtnet_receive", "R1", ["len", "queue", "buffers"];
    HardIrq = "irq_handler_entry", "R3", ["vector", "queue"];
    NapiSchedule = "napi_schedule", "R4", ["queue"];
    SoftirqRaise = "raise_softirq_irqoff", "R4", ["nr"];
    SoftirqEntry = "softirq_entry", "R5", ["nr"];
    SoftirqExit = "softirq_exit", "R5", ["nr"];
    KsoftirqdWake = "wakeup_softirqd", "R5", ["pending"];
    NapiPoll = "napi_poll", "R6", ["queue", "work", "budget"];
    NapiComplete = "napi_complete_done", "R6", ["queue", "work"];
    GroReceive = "napi_gro_receive", "R6", ["len", "merged"];
    NetifReceive = "netif_receive_skb", "R7", ["len", "protocol"];
    ArpRcv = "arp_rcv", "R7", ["op", "sip", "tip"];
    IpRcv = "ip_rcv", "R8", ["len", "saddr", "daddr", "protocol"];
    IpDefrag = "ip_defrag", "R8", ["id", "offset", "more"];
    IpLocalDeliver = "ip_local_deliver", "R8", ["protocol", "len"];
    IpForward = "ip_forward", "R8", ["ttl", "daddr"];
    NfHook = "nf_hook_slow", "R8", ["hook"];
    IcmpRcv = "icmp_rcv", "R8", ["type", "code"];
    TcpRcv = "tcp_v4_rcv", "R9", ["seq", "ack", "flags", "len"];
    UdpRcv = "udp_rcv", "R9", ["sport", "dport", "len"];
    SkAddBacklog = "sk_add_backlog", "R10", ["sock", "len"];
    TcpQueueRcv = "tcp_queue_rcv", "R10", ["sock", "seq", "len"];
    TcpDataQueueOfo = "tcp_data_queue_ofo", "R10", ["sock", "seq", "len"];
    SockQueueRcv = "__udp_enqueue_schedule_skb", "R10", ["sock", "len"];
    SkDataReady = "sock_def_readable", "R11", ["sock", "waiters"];
    WakeUp = "try_to_wake_up", "R11", ["pid", "cpu"];
    CopyToUser = "skb_copy_datagram_iter", "R12", ["sock", "len"];
    KfreeSkb = "kfree_skb", "R12", ["reason"];
    ConsumeSkb = "consume_skb", "R12", [];
    SysEnter = "sys_enter", "T1", ["pid", "nr"];
    SysExit = "sys_exit", "T1", ["pid", "ret"];
    TcpSendmsg = "tcp_sendmsg", "T1", ["sock", "len"];
    CopyFromUser = "copy_from_iter", "T1", ["sock", "len"];
    TcpWriteXmit = "tcp_write_xmit", "T2", ["sock", "cwnd", "in_flight"];
    TcpTransmit = "tcp_transmit_skb", "T3", ["seq", "ack", "flags", "len"];
    TcpRetransmit = "tcp_retransmit_skb", "T3", ["sock", "seq", "len"];
    TcpState = "inet_sock_set_state", "T3", ["sock", "old", "new"];
    TcpCwnd = "tcp_cong_control", "T2", ["sock", "cwnd", "ssthresh"];
    IpQueueXmit = "ip_queue_xmit", "T4", ["saddr", "daddr", "len"];
    IpFragment = "ip_do_fragment", "T4", ["offset", "len"];
    NeighOutput = "neigh_resolve_output", "T5", ["daddr", "state"];
    NeighUpdate = "neigh_update", "T5", ["addr", "old", "new"];
    ArpSend = "arp_send", "T5", ["op", "tip"];
    DevQueueXmit = "net_dev_queue", "T6", ["len", "queue"];
    QdiscEnqueue = "qdisc_enqueue", "T6", ["qlen"];
    QdiscDequeue = "qdisc_dequeue", "T6", ["qlen"];
    NetTxAction = "net_tx_action", "T6", [];
    StartXmit = "net_dev_start_xmit", "T7", ["len", "queue", "gso_size"];
    LinkwatchDoDev = "linkwatch_do_dev", "T6", ["dev", "carrier"];
    Doorbell = "virtqueue_notify", "T7", ["queue"];
    TxClean = "free_old_xmit", "T8", ["queue", "packets"];
    SockCreate = "__sock_create", "W1", ["sock", "family", "protocol"];
    CskAccept = "inet_csk_accept", "W1", ["sock", "child"];
    SockAllocFile = "sock_alloc_file", "W1", ["sock", "pid"];
    PrepareToWait = "prepare_to_wait", "W2", ["pid", "sock"];
    SchedSwitch = "sched_switch", "W2", ["prev", "next"];
    SelectEstimate = "do_poll", "W5", ["pid", "fds"];
    EpInsert = "ep_insert", "W6", ["epoll", "fd"];
    EpPollCallback = "ep_poll_callback", "W6", ["epoll", "fd", "events"];
    EpSendEvents = "ep_send_events", "W6", ["epoll", "events", "requeued"];
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub time: Instant,
    /// On which modelled CPU.
    pub cpu: u16,
    /// Where.
    pub point: Point,
    /// The packet's number, 0 without one.
    pub skb: u64,
    /// Values of [`Point::args`].
    pub args: [u64; 4],
}

impl core::fmt::Display for Record {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{:>6}.{:09} [{}] {:<4} {}",
            self.time.0 / 1_000_000_000,
            self.time.0 % 1_000_000_000,
            self.cpu,
            self.point.step(),
            self.point.name()
        )?;
        if self.skb != 0 {
            write!(f, " skb={}", self.skb)?;
        }
        for (name, value) in self.point.args().iter().zip(self.args) {
            match *name {
                "saddr" | "daddr" | "sip" | "tip" | "addr" => write!(f, " {name}={}", core::net::Ipv4Addr::from(value as u32))?,
                // A negated errno, as strace has it.
                "ret" => write!(f, " {name}={}", value as i64)?,
                _ => write!(f, " {name}={value}")?,
            }
        }
        Ok(())
    }
}

/// The bounded ring of events.
#[derive(Debug, Default)]
pub struct Trace {
    mask: u64,
    ring: VecDeque<Record>,
    capacity: usize,
    lost: u64,
}

const _: () = assert!(Point::ALL.len() <= 64, "the mask holds all points");

impl Trace {
    /// Listens to `points` (all if empty), keeping the last `capacity` events.
    pub fn enable(&mut self, points: &[Point], capacity: usize) {
        let all = if Point::ALL.len() == 64 { u64::MAX } else { (1 << Point::ALL.len()) - 1 };
        self.mask = if points.is_empty() { all } else { points.iter().fold(0, |m, &p| m | 1 << p as u64) };
        self.capacity = capacity;
        self.ring.reserve(capacity.min(65536));
    }

    /// Stops listening and forgets.
    pub fn disable(&mut self) {
        *self = Self::default();
    }

    /// True if somebody listens to `point`.
    #[inline]
    pub fn enabled(&self, point: Point) -> bool {
        self.mask >> point as u64 & 1 != 0
    }

    /// Adds an event; the oldest is lost when the ring is full. Call through `Kernel::trace`.
    #[cold]
    pub fn push(&mut self, record: Record) {
        if self.ring.len() >= self.capacity {
            self.ring.pop_front();
            self.lost += 1;
        }
        self.ring.push_back(record);
    }

    /// Takes the oldest event.
    pub fn pop(&mut self) -> Option<Record> {
        self.ring.pop_front()
    }

    /// Events lost since the last call.
    pub fn take_lost(&mut self) -> u64 {
        core::mem::take(&mut self.lost)
    }
}
