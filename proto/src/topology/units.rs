//! Units as iproute2 writes them: times, rates, percentages.

use std::time::Duration;

/// Why a value is not one of its unit, and an example of one that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadUnit {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub help: String,
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A time: `20ms`, `1.5s`, `300us`, `10ns`. A bare number has no unit and is refused (but 0).
///
/// # Errors
/// [`BadUnit`], also above an hour.
pub fn time(text: &str) -> Result<Duration, BadUnit> {
    let bad = |help: String| BadUnit { what: format!("`{text}` is not a time"), help };
    let Some((number, unit)) = split(text) else {
        return Err(bad("write a number and a unit, such as `20ms`".into()));
    };
    let nanos = match unit {
        "ns" | "nsec" | "nsecs" => 1.0,
        "us" | "usec" | "usecs" => 1e3,
        "ms" | "msec" | "msecs" => 1e6,
        "s" | "sec" | "secs" => 1e9,
        "" if number == 0.0 => 1.0,
        "" => return Err(bad(format!("a time needs a unit: `{}ms`?", text.trim()))),
        _ => return Err(bad("units of time are `ns`, `us`, `ms` and `s`".into())),
    };
    let nanos = number * nanos;
    if nanos > 3600e9 {
        return Err(bad("the most is one hour, `3600s`".into()));
    }
    Ok(Duration::from_nanos(nanos.round() as u64))
}

/// A rate in bits per second: `100mbit`, `1.5gbit`, `64kbit`, and in octets `10mbps`, as `tc` reads them
/// (powers of 1000; `kibit`, `mibit`, `gibit` are powers of 1024).
///
/// # Errors
/// [`BadUnit`], also for zero.
pub fn rate(text: &str) -> Result<u64, BadUnit> {
    let bad = |help: String| BadUnit { what: format!("`{text}` is not a rate"), help };
    let Some((number, unit)) = split(text) else {
        return Err(bad("write a number and a unit, such as `100mbit`".into()));
    };
    let lower = unit.to_ascii_lowercase();
    let factor = match lower.as_str() {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        "tbit" => 1e12,
        "kibit" => 1024.0,
        "mibit" => 1024.0 * 1024.0,
        "gibit" => 1024.0 * 1024.0 * 1024.0,
        "bps" => 8.0,
        "kbps" => 8e3,
        "mbps" => 8e6,
        "gbps" => 8e9,
        "" => return Err(bad(format!("a rate needs a unit: `{}mbit`?", text.trim()))),
        _ => {
            return Err(bad(
                "units of rate are `bit`, `kbit`, `mbit`, `gbit` (bits) and `kbps`, `mbps`, `gbps` (octets a second, as in tc)".into(),
            ));
        }
    };
    let bits = (number * factor).round();
    if !(1.0..=1e15).contains(&bits) {
        return Err(bad("a rate lies between `1bit` and `1000tbit`; leave the field out for no limit".into()));
    }
    Ok(bits as u64)
}

/// A probability: `0.5%`, or a fraction from 0 to 1 such as `0.005`.
///
/// # Errors
/// [`BadUnit`].
pub fn probability(text: &str) -> Result<f64, BadUnit> {
    let bad = |help: &str| BadUnit { what: format!("`{text}` is not a probability"), help: help.into() };
    let Some((number, unit)) = split(text) else {
        return Err(bad("write a percentage, such as `0.5%`"));
    };
    let p = match unit {
        "%" => number / 100.0,
        "" if number <= 1.0 => number,
        "" => {
            return Err(BadUnit {
                what: format!("`{text}` is not a probability"),
                help: format!("write `{}%` for a percentage", text.trim()),
            });
        }
        _ => return Err(bad("write a percentage, such as `0.5%`")),
    };
    if p > 1.0 {
        return Err(bad("the most is `100%`"));
    }
    Ok(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_rates_and_probabilities_are_read_as_tc_reads_them() {
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert_eq!(rate("100mbit"), Ok(100_000_000));
        assert_eq!(rate("10mbps"), Ok(80_000_000));
        assert_eq!(rate("1kibit"), Ok(1024));
        assert_eq!(probability("0.5%"), Ok(0.005));
        assert_eq!(probability("1"), Ok(1.0));
    }

    #[test]
    fn a_missing_or_wrong_unit_says_what_to_write() {
        assert!(time("20").expect_err("no unit").help.contains("`20ms`"));
        assert!(time("20 parsecs").is_err());
        assert!(time("99999s").is_err());
        assert!(rate("100").expect_err("no unit").help.contains("`100mbit`"));
        assert!(rate("0mbit").is_err());
        assert!(rate("fast").is_err());
        assert!(probability("5").expect_err("percent").help.contains("`5%`"));
        assert!(probability("101%").is_err());
        assert!(probability("-1%").is_err());
    }
}
