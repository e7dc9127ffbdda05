//! Delays, rates and probabilities, as the topology file writes them.

use ringlab_proto::agent::LinkInfo;
use ringlab_proto::topology;
use std::fmt::Write;

/// Nanoseconds, in the largest unit that keeps them exact to a thousandth.
pub fn delay(ns: u64) -> String {
    match ns {
        0 => "0".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}us", decimal(ns as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(ns as f64 / 1e6)),
        _ => format!("{}s", decimal(ns as f64 / 1e9)),
    }
}

/// Bits per second.
pub fn rate(bps: u64) -> String {
    match bps {
        0 => "unlimited".to_owned(),
        1..1_000 => format!("{bps}bit"),
        1_000..1_000_000 => format!("{}kbit", decimal(bps as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{}mbit", decimal(bps as f64 / 1e6)),
        _ => format!("{}gbit", decimal(bps as f64 / 1e9)),
    }
}

/// A probability as a percentage.
pub fn loss(probability: f64) -> String {
    if probability == 0.0 { "0".to_owned() } else { format!("{}%", decimal(probability * 100.0)) }
}

/// At most three digits after the point, no trailing zeros.
fn decimal(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Reads a delay as the topology file writes it, in nanoseconds.
pub fn parse_delay(text: &str) -> Result<u64, String> {
    let time = topology::time(text).map_err(explain)?;
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Reads a rate, in bits per second; `unlimited` is 0.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    if matches!(text, "unlimited" | "0") { Ok(0) } else { topology::rate(text).map_err(explain) }
}

/// Reads a probability.
pub fn parse_loss(text: &str) -> Result<f64, String> {
    topology::probability(text).map_err(explain)
}

fn explain(bad: topology::BadUnit) -> String {
    format!("{}: {}", bad.what, bad.help)
}

/// A link's impairments on one line: "10ms 100mbit 1%", or per direction; "-" for none.
pub fn impairments(link: &LinkInfo) -> String {
    let one = |impairment: Option<ringlab_proto::nic::Impairment>| {
        let i = impairment.unwrap_or_default();
        let mut words = Vec::new();
        if i.delay_ns != 0 {
            words.push(delay(i.delay_ns));
        }
        if i.rate_bps != 0 {
            words.push(rate(i.rate_bps));
        }
        if i.loss != 0.0 {
            words.push(format!("loss {}", loss(i.loss)));
        }
        if words.is_empty() { "-".to_owned() } else { words.join(" ") }
    };
    let (forward, backward) = (one(link.forward), one(link.backward));
    if forward == backward {
        return forward;
    }
    let mut text = String::new();
    write!(text, "-> {forward}, <- {backward}").expect("a string takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_read() {
        for ns in [0, 1, 999, 1_000, 1_500, 20_000_000, 1_250_000_000] {
            assert_eq!(parse_delay(&delay(ns)), Ok(ns));
        }
        for bps in [0, 800, 64_000, 100_000_000, 2_500_000_000] {
            assert_eq!(parse_rate(&rate(bps)), Ok(bps));
        }
        assert_eq!(parse_loss(&loss(0.005)), Ok(0.005));
    }

    #[test]
    fn wrong_units_are_named() {
        for text in ["10", "ms", "-1ms", "10mbit", "nanms", "2h"] {
            assert!(parse_delay(text).is_err(), "{text}");
        }
        assert!(parse_rate("10mb").unwrap_err().contains("mbit"));
        assert!(parse_loss("150%").is_err());
    }
}
