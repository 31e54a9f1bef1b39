//! Rates, times, losses and queue lengths as people write them.
#![forbid(unsafe_code)]

use super::{Loss, Profile, QueueLimit, Reorder};
use std::time::Duration;

/// What was wrong with a value: the value, and what is allowed.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("`{value}`: expected {allowed}")]
pub struct BadValue {
    value: String,
    allowed: &'static str,
}

/// The leading number and the unit after it.
fn split(value: &str) -> Option<(f64, &str)> {
    let value = value.trim();
    let end = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (number, unit) = value.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

fn bad<T>(value: &str, allowed: &'static str) -> Result<T, BadValue> {
    Err(BadValue { value: value.into(), allowed })
}

/// Bits per second: `100mbit`, `1.5gbit`, `64kbit`, `800bit`; decimal prefixes.
pub fn rate(value: &str) -> Result<u64, BadValue> {
    const ALLOWED: &str = "a rate such as 100mbit, 2.5gbit, 64kbit or 800bit, above zero";
    let Some((number, unit)) = split(value) else { return bad(value, ALLOWED) };
    let scale = match unit.to_ascii_lowercase().as_str() {
        "bit" => 1e0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return bad(value, ALLOWED),
    };
    let bits = (number * scale).round();
    if (1.0..=1e12).contains(&bits) { Ok(bits as u64) } else { bad(value, ALLOWED) }
}

/// A time: `5ms`, `250us`, `1.5s`.
pub fn time(value: &str) -> Result<Duration, BadValue> {
    const ALLOWED: &str = "a time such as 5ms, 250us or 1.5s, at most 3600s";
    let Some((number, unit)) = split(value) else { return bad(value, ALLOWED) };
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "" if number == 0.0 => 1.0,
        _ => return bad(value, ALLOWED),
    };
    let seconds = number * scale;
    if seconds <= 3600.0 { Ok(Duration::from_secs_f64(seconds)) } else { bad(value, ALLOWED) }
}

/// A share of all packets: `0.1%`, or `0.001`.
pub fn share(value: &str) -> Result<f64, BadValue> {
    const ALLOWED: &str = "a share such as 0.1% or 0.001, at most 100%";
    let Some((number, unit)) = split(value) else { return bad(value, ALLOWED) };
    let share = match unit {
        "%" => number / 100.0,
        "" => number,
        _ => return bad(value, ALLOWED),
    };
    if share <= 1.0 { Ok(share) } else { bad(value, ALLOWED) }
}

/// A loss: `0.1%`; `1%/5`: in runs of 5 packets on average.
pub fn loss(value: &str) -> Result<Loss, BadValue> {
    const ALLOWED: &str = "a loss such as 0.1% or 0.001, at most 100%, or 1%/5 for runs of 5";
    let (lost, run) = match value.split_once('/') {
        Some((lost, run)) => (lost, Some(run.trim().parse::<f64>().unwrap_or(0.0))),
        None => (value, None),
    };
    match share(lost) {
        Ok(share) if run.is_none_or(|run| (1.0..=1e9).contains(&run)) => Ok(Loss { share, run }),
        _ => bad(value, ALLOWED),
    }
}

/// A reordering: `1%/50ms`, so many packets come so much later.
pub fn reorder(value: &str) -> Result<Reorder, BadValue> {
    const ALLOWED: &str = "a reordering such as 1%/50ms: how many packets come how much later";
    let parts =
        value.split_once('/').and_then(|(part, late)| share(part).ok().zip(time(late).ok()));
    match parts {
        Some((share, late)) => Ok(Reorder { share, late }),
        None => bad(value, ALLOWED),
    }
}

/// A queue: `300` or `300packets`, `450kB`, or `50ms` of the link's rate.
pub fn queue(value: &str) -> Result<QueueLimit, BadValue> {
    const ALLOWED: &str =
        "a queue such as 300 (packets), 300packets, 450kB, 2MB or 50ms, above zero";
    let Some((number, unit)) = split(value) else { return bad(value, ALLOWED) };
    let limit = match unit.to_ascii_lowercase().as_str() {
        "" | "p" | "packets" => QueueLimit::Packets(number as u32),
        "b" => QueueLimit::Octets(number as u64),
        "kb" => QueueLimit::Octets((number * 1e3) as u64),
        "mb" => QueueLimit::Octets((number * 1e6) as u64),
        _ => QueueLimit::Time(time(value).or_else(|_| bad(value, ALLOWED))?),
    };
    match limit {
        QueueLimit::Packets(0) | QueueLimit::Octets(0) | QueueLimit::Time(Duration::ZERO) => {
            bad(value, ALLOWED)
        }
        limit => Ok(limit),
    }
}

/// A whole direction: `RATE,DELAY[,LOSS[,QUEUE]]`.
pub fn profile(value: &str) -> Result<Profile, BadValue> {
    const ALLOWED: &str = "RATE,DELAY[,LOSS[,QUEUE]], such as 100mbit,5ms,0.1%,300";
    let mut parts = value.split(',');
    let (Some(rate_part), Some(delay_part)) = (parts.next(), parts.next()) else {
        return bad(value, ALLOWED);
    };
    let profile = Profile {
        rate: Some(rate(rate_part)?),
        delay: time(delay_part)?,
        loss: parts.next().map_or(Ok(Loss::NONE), loss)?,
        queue: parts.next().map_or(Ok(QueueLimit::Packets(300)), queue)?,
        ..Profile::default()
    };
    if parts.next().is_some() { bad(value, ALLOWED) } else { Ok(profile) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units() {
        assert_eq!(rate("100mbit"), Ok(100_000_000));
        assert_eq!(rate("2.5Gbit"), Ok(2_500_000_000));
        assert_eq!(rate("64kbit"), Ok(64_000));
        assert_eq!(time("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(time("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert!((share("0.1%").unwrap() - 0.001).abs() < 1e-12);
        assert_eq!(loss("0.25"), Ok(Loss::random(0.25)));
        assert_eq!(loss("25%/4.5"), Ok(Loss::in_runs(0.25, 4.5)));
        let late = Duration::from_millis(50);
        assert_eq!(reorder("25%/50ms"), Ok(Reorder { share: 0.25, late }));
        assert_eq!(queue("300"), Ok(QueueLimit::Packets(300)));
        assert_eq!(queue("300packets"), Ok(QueueLimit::Packets(300)));
        assert_eq!(queue("450kB"), Ok(QueueLimit::Octets(450_000)));
        assert_eq!(queue("50ms"), Ok(QueueLimit::Time(Duration::from_millis(50))));
    }

    #[test]
    fn nonsense_is_refused_with_what_is_allowed() {
        for value in ["", "100", "fast", "-5mbit", "0mbit", "1e9bit", "100mbitt", "nanmbit"] {
            assert!(rate(value).unwrap_err().to_string().contains("100mbit"), "{value}");
        }
        for value in ["5", "5 minutes", "ms", "99999s"] {
            assert!(time(value).is_err(), "{value}");
        }
        for value in ["101%", "1.5", "x", "1%/", "1%/0.5", "1%/x", "1%/nan"] {
            assert!(loss(value).is_err(), "{value}");
        }
        for value in ["1%", "1%/", "1%/5", "50ms", "101%/50ms"] {
            assert!(reorder(value).unwrap_err().to_string().contains("1%/50ms"), "{value}");
        }
        for value in ["0", "0kB", "0ms", "many"] {
            assert!(queue(value).is_err(), "{value}");
        }
    }

    #[test]
    fn a_profile_has_defaults_for_loss_and_queue() {
        let short = profile("100mbit,5ms").unwrap();
        assert_eq!((short.rate, short.queue), (Some(100_000_000), QueueLimit::Packets(300)));
        let long = profile("1gbit,15ms,0.5%,2MB").unwrap();
        assert_eq!((long.delay.as_millis(), long.queue), (15, QueueLimit::Octets(2_000_000)));
        assert!(profile("100mbit").is_err());
        assert!(profile("100mbit,5ms,0,300,7").is_err());
    }
}
