//! `labctl link set|up|down ENDPOINT`

use crate::cli::Format;
use crate::client::connect_to_labs;
use crate::error::{CliError, CliResult};
use crate::output::{print, print_json};
use crate::{client, exit, json, units};
use clap::Subcommand;
use ringlab_proto::agent::{LinkInfo, SetLinkRequest};
use ringlab_proto::nic::Impairment;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// What to do with a link.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Changes what the link does to frames; what is not named stays.
    Set(Set),
    /// Gives the link its carrier back.
    Up(End),
    /// Takes the link's carrier away.
    Down(End),
}

/// A link, by either of its ends.
#[derive(Debug, clap::Args)]
pub struct End {
    /// Name of the lab; may be left out where one is up.
    #[arg(short, long)]
    pub lab: Option<String>,
    /// Either end of the link: NODE:INTERFACE.
    pub endpoint: String,
}

/// `link set`.
#[derive(Debug, clap::Args)]
pub struct Set {
    #[command(flatten)]
    end: End,
    /// One-way delay: 10ms.
    #[arg(long, value_parser = units::parse_delay, allow_hyphen_values = true)]
    delay: Option<u64>,
    /// Rate: 100mbit, or unlimited.
    #[arg(long, value_parser = units::parse_rate, allow_hyphen_values = true)]
    rate: Option<u64>,
    /// Loss: 0.5%.
    #[arg(long, value_parser = units::parse_loss, allow_hyphen_values = true)]
    loss: Option<f64>,
    /// Only frames that ENDPOINT sends.
    #[arg(long, conflicts_with = "backward")]
    forward: bool,
    /// Only frames that ENDPOINT receives.
    #[arg(long)]
    backward: bool,
}

/// Changes a link.
pub async fn run(args: Args, format: Format) -> CliResult {
    let (lab, request) = match args.what {
        What::Up(end) => (end.lab.clone(), SetLinkRequest { up: Some(true), ..request(end) }),
        What::Down(end) => (end.lab.clone(), SetLinkRequest { up: Some(false), ..request(end) }),
        What::Set(set) => (set.end.lab.clone(), set_request(set).await?),
    };
    let mut client = connect_to_labs(lab.as_deref()).await?;
    let link = client.set_link(request).await?.into_inner().link.unwrap_or_default();
    match format {
        Format::Json => print_json(&json::link(&link)),
        Format::Table => {
            print(&format!("{} {}: {}, {}\n", link.a, link.b, if link.up { "up" } else { "down" }, units::impairments(&link)));
        }
    }
    Ok(exit::OK)
}

fn request(end: End) -> SetLinkRequest {
    SetLinkRequest { lab: end.lab.unwrap_or_default(), endpoint: end.endpoint, ..SetLinkRequest::default() }
}

async fn set_request(set: Set) -> CliResult<SetLinkRequest> {
    if set.delay.is_none() && set.rate.is_none() && set.loss.is_none() {
        return Err(CliError::usage("link set: say what to set: --delay, --rate or --loss"));
    }
    let lab = client::inspect(set.end.lab.as_deref()).await?;
    let link = lab.links.iter().find(|link| [&link.a, &link.b].contains(&&set.end.endpoint)).cloned().unwrap_or_default();
    // "Forward" is from the link's first end; the user's is from the end that he named.
    let named_first = link.a == set.end.endpoint;
    let (forward, backward) = if named_first { (set.forward, set.backward) } else { (set.backward, set.forward) };
    let both = !set.forward && !set.backward;
    let (now_forward, now_backward) = now(&link);
    let merged = |now: Impairment| Impairment {
        delay_ns: set.delay.unwrap_or(now.delay_ns),
        rate_bps: set.rate.unwrap_or(now.rate_bps),
        loss: set.loss.unwrap_or(now.loss),
        limit_octets: now.limit_octets,
    };
    Ok(SetLinkRequest {
        forward: (both || forward).then(|| merged(now_forward)),
        backward: (both || backward).then(|| merged(now_backward)),
        ..request(set.end)
    })
}

fn now(link: &LinkInfo) -> (Impairment, Impairment) {
    (link.forward.unwrap_or_default(), link.backward.unwrap_or_default())
}
