//! `labctl trace [-l LAB] NODE`

use crate::cli::Format;
use crate::client::connect_to_labs;
use crate::error::CliResult;
use crate::output::{print, print_json_line};
use crate::{exit, json};
use ringlab_proto::agent::TraceRequest;
use ringlab_proto::host::{self, TraceEvent};
use tokio_stream::StreamExt;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab; may be left out where one is up.
    #[arg(short, long)]
    pub lab: Option<String>,
    /// Node.
    pub node: String,
    /// Only this function, trace point or step (tcp_v4_rcv, softirq_entry, R9); may be given several times.
    #[arg(long = "point", value_name = "NAME")]
    pub points: Vec<String>,
    /// Stop after so many events.
    #[arg(short, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub n: u64,
}

/// Prints events as they happen, until interrupted or enough.
pub async fn run(args: Args, format: Format) -> CliResult {
    let mut client = connect_to_labs(args.lab.as_deref()).await?;
    let trace = host::TraceRequest { points: args.points, limit: args.n };
    let request = TraceRequest { lab: args.lab.unwrap_or_default(), node: args.node, trace: Some(trace) };
    let mut batches = client.trace(request).await?.into_inner();
    let mut left = if args.n == 0 { u64::MAX } else { args.n };
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        if batch.lost > 0 {
            eprintln!("labctl: {} events were lost here: they came faster than they could be read", batch.lost);
        }
        let mut text = String::new();
        for event in batch.events.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            left -= 1;
            match format {
                Format::Json => print_json_line(&json::trace_event(event)),
                Format::Table => text.push_str(&line(event)),
            }
        }
        print(&text);
        if left == 0 {
            break;
        }
    }
    Ok(exit::OK)
}

fn line(event: &TraceEvent) -> String {
    let skb = if event.skb == 0 { "-".to_owned() } else { format!("#{}", event.skb) };
    let (seconds, nanos) = (event.time_ns / 1_000_000_000, event.time_ns % 1_000_000_000);
    let text = format!("{seconds:>6}.{nanos:09} cpu{:<2} {:4} {skb:>8} {:28} {}", event.cpu, event.step, event.point, event.detail);
    format!("{}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_line_with_time_step_and_point() {
        let event = TraceEvent { time_ns: 1_000_002_003, cpu: 1, point: "ip_rcv".into(), step: "R8".into(), skb: 7, detail: String::new() };
        assert_eq!(line(&event), "     1.000002003 cpu1  R8         #7 ip_rcv\n");
    }
}
