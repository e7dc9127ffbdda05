//! Trace listeners: the kernel's events, handed to the control thread in batches.

use ringlab_kernel::Kernel;
use ringlab_kernel::trace::{Point, Record};
use ringlab_proto::host::{TraceBatch, TraceEvent};
use std::collections::BTreeSet;
use tokio::sync::mpsc;

/// Events that the kernel keeps between two looks of the event loop.
const RING: usize = 65536;
/// Events of a batch.
const BATCH: usize = 512;

/// Events on their way to a listener, and how many were lost before them.
#[derive(Debug, Default)]
pub struct Batch {
    /// In order.
    pub records: Vec<Record>,
    /// Lost since the batch before.
    pub lost: u64,
}

/// Somebody who listens.
pub struct Listener {
    points: BTreeSet<Point>,
    left: Option<u64>,
    sender: mpsc::Sender<Batch>,
    batch: Batch,
}

/// All who listen.
#[derive(Default)]
pub struct Listeners {
    list: Vec<Listener>,
}

impl Listener {
    /// Listens to the named points (all if there are none) until `limit` events (0: for ever).
    ///
    /// # Errors
    /// A name that is no point's and no step's, and those that there are.
    pub fn new(names: &[String], limit: u64, sender: mpsc::Sender<Batch>) -> Result<Self, String> {
        let mut points = BTreeSet::new();
        for name in names {
            let found: Vec<Point> = Point::ALL.iter().copied().filter(|p| p.name() == name || p.step() == name).collect();
            if found.is_empty() {
                let names: BTreeSet<&str> = Point::ALL.iter().map(|p| p.name()).collect();
                let names: Vec<&str> = names.into_iter().collect();
                return Err(format!("there is no trace point or step {name:?}; points are {}", names.join(", ")));
            }
            points.extend(found);
        }
        Ok(Self { points, left: (limit != 0).then_some(limit), sender, batch: Batch::default() })
    }

    fn push(&mut self, record: Record) {
        if self.left == Some(0) || !(self.points.is_empty() || self.points.contains(&record.point)) {
            return;
        }
        self.left = self.left.map(|n| n - 1);
        if self.batch.records.len() < RING {
            self.batch.records.push(record);
        } else {
            self.batch.lost += 1;
        }
    }

    /// Sends what there is, if the reader keeps up. `false` at the end.
    fn flush(&mut self) -> bool {
        if !self.batch.records.is_empty() || self.batch.lost > 0 {
            match self.sender.try_reserve() {
                Ok(permit) => permit.send(core::mem::take(&mut self.batch)),
                Err(mpsc::error::TrySendError::Full(())) => return true,
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            }
        }
        self.left != Some(0) && !self.sender.is_closed()
    }
}

impl Listeners {
    /// Adds one.
    pub fn add(&mut self, listener: Listener, kernel: &mut Kernel) {
        self.list.push(listener);
        self.listen(kernel);
    }

    /// True if somebody listens.
    pub fn any(&self) -> bool {
        !self.list.is_empty()
    }

    /// Hands out what the kernel has; `all`: also less than a batch.
    pub fn drain(&mut self, kernel: &mut Kernel, all: bool) {
        if self.list.is_empty() {
            return;
        }
        while let Some(record) = kernel.trace_pop() {
            self.list.iter_mut().for_each(|l| l.push(record));
        }
        let lost = kernel.trace_lost();
        let before = self.list.len();
        self.list.retain_mut(|l| {
            l.batch.lost += lost;
            if all || l.batch.records.len() >= BATCH || l.left == Some(0) { l.flush() } else { true }
        });
        if self.list.len() != before {
            self.listen(kernel);
        }
    }

    fn listen(&self, kernel: &mut Kernel) {
        if self.list.is_empty() {
            return kernel.trace_disable();
        }
        let mut points = BTreeSet::new();
        for listener in &self.list {
            if listener.points.is_empty() {
                points.clear();
                break;
            }
            points.extend(listener.points.iter().copied());
        }
        kernel.trace_enable(&points.into_iter().collect::<Vec<_>>(), RING);
    }
}

/// A batch as the service sends it.
pub fn to_proto(batch: Batch) -> TraceBatch {
    let event = |r: Record| TraceEvent {
        time_ns: r.time.0,
        cpu: u32::from(r.cpu),
        point: r.point.name().to_owned(),
        step: r.point.step().to_owned(),
        skb: r.skb,
        detail: detail(&r),
    };
    TraceBatch { events: batch.records.into_iter().map(event).collect(), lost: batch.lost }
}

/// The arguments of an event, as its text form shows them.
fn detail(record: &Record) -> String {
    let text = record.to_string();
    let name = record.point.name();
    let rest = text.find(name).map_or("", |i| text[i + name.len()..].trim_start());
    match rest.strip_prefix("skb=") {
        Some(rest) => rest.split_once(' ').map_or(String::new(), |(_, args)| args.to_owned()),
        None => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlab_kernel::time::Instant;

    fn record(point: Point) -> Record {
        Record { time: Instant(7), cpu: 1, point, skb: 3, args: [60, 0, 0, 0] }
    }

    #[test]
    fn unknown_point_is_named() {
        let (tx, _rx) = mpsc::channel(1);
        let refused = Listener::new(&["no_such_point".into()], 0, tx).err().expect("refused");
        assert!(
            refused.starts_with("there is no trace point or step \"no_such_point\"; points are ") && refused.contains(", ip_rcv, "),
            "{refused}"
        );
    }

    #[test]
    fn error_that_a_call_returns_is_negative() {
        let args = [5, (-97i64).cast_unsigned(), 0, 0];
        assert_eq!(detail(&Record { skb: 0, args, ..record(Point::SysExit) }), "pid=5 ret=-97");
    }

    #[test]
    fn listener_gets_its_points_up_to_its_limit() {
        let (tx, mut rx) = mpsc::channel(4);
        let mut l = Listener::new(&["R8".into()], 2, tx).expect("step of ip_rcv");
        for point in [Point::IpRcv, Point::TcpRcv, Point::IpRcv, Point::IpRcv] {
            l.push(record(point));
        }
        assert!(!l.flush());
        let batch = to_proto(rx.try_recv().expect("a batch"));
        assert_eq!(batch.events.len(), 2);
        assert_eq!(batch.events[0].point, "ip_rcv");
        assert!(batch.events[0].detail.starts_with("len=60"), "{}", batch.events[0].detail);
    }
}
