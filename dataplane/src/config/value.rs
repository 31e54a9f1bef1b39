//! Values that are written as text: addresses, prefixes, port ranges, durations, sizes.
//!
//! Every parser says what is wrong in the words of a [`Fault`]; the caller knows the place.
#![forbid(unsafe_code)]

use stack::wire::{Endpoint, Prefix};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Why a text is not a value of its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
    /// What to do.
    pub help: String,
}

impl Fault {
    pub(super) fn new(
        found: impl Into<String>,
        allowed: impl Into<String>,
        help: impl Into<String>,
    ) -> Fault {
        Fault { found: found.into(), allowed: allowed.into(), help: help.into() }
    }
}

/// What a value is, or why it is not one.
pub type Value<T> = Result<T, Fault>;

/// A unicast address, such as `10.0.1.1`.
pub fn address(text: &str) -> Value<IpAddr> {
    let addr: IpAddr = text.parse().map_err(|_| {
        let help = match text.split_once('/') {
            Some((addr, _)) => format!("leave the prefix length out: \"{addr}\""),
            None => "write one IPv4 or IPv6 address".to_owned(),
        };
        Fault::new(format!("\"{text}\" is not an IP address"), ADDRESS, help)
    })?;
    unicast(addr)
}

const ADDRESS: &str = "an IPv4 or IPv6 unicast address, such as \"10.0.1.1\" or \"2001:db8::1\"";

fn unicast(addr: IpAddr) -> Value<IpAddr> {
    let what = match addr {
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        a if a.is_unspecified() => "the unspecified address",
        a if a.is_loopback() => "a loopback address",
        a if a.is_multicast() => "a multicast address",
        _ => return Ok(addr),
    };
    Err(Fault::new(
        format!("{addr} is {what}"),
        ADDRESS,
        "use an address that a single host on the network can have",
    ))
}

/// A prefix, such as `10.0.0.0/8`; an address alone is a prefix of full length.
pub fn prefix(text: &str) -> Value<Prefix> {
    let prefix = parse_prefix(text)?;
    let network = mask(prefix);
    if network != prefix.addr {
        return Err(Fault::new(
            format!("{text} has address bits set behind the prefix length"),
            PREFIX,
            format!(
                "write \"{network}/{}\" for the network, \"{}\" for the host",
                prefix.len, prefix.addr
            ),
        ));
    }
    Ok(prefix)
}

const PREFIX: &str = "a prefix, such as \"192.168.1.0/24\", \"2001:db8::/32\" or \"0.0.0.0/0\"";

fn parse_prefix(text: &str) -> Value<Prefix> {
    let (addr, len) = text.split_once('/').unwrap_or((text, ""));
    let bad = || Fault::new(format!("\"{text}\" is not a prefix"), PREFIX, "write address/length");
    let addr: IpAddr = addr.parse().map_err(|_| bad())?;
    let max = bits(addr);
    let len = match len {
        "" if !text.contains('/') => max,
        digits => digits.parse().map_err(|_| bad())?,
    };
    if len > max {
        return Err(Fault::new(
            format!("{text} has a prefix of {len} bits"),
            format!("0 to {max} bits for this family"),
            "correct the number behind the slash",
        ));
    }
    Ok(Prefix { addr, len })
}

/// An address and the length of its network's prefix, such as `10.0.1.1/24`.
pub fn interface_address(text: &str) -> Value<Prefix> {
    if !text.contains('/') {
        let addr = address(text)?;
        return Err(Fault::new(
            format!("\"{text}\" has no prefix length"),
            INTERFACE,
            format!(
                "write \"{text}/{}\" with the length of the network's prefix",
                bits(addr) * 3 / 4
            ),
        ));
    }
    let prefix = parse_prefix(text).map_err(|f| Fault {
        found: f.found.replace("not a prefix", "not an address with prefix length"),
        allowed: INTERFACE.into(),
        ..f
    })?;
    unicast(prefix.addr)?;
    let host_bits = bits(prefix.addr) - prefix.len;
    if host_bits > 1 && mask(prefix) == prefix.addr {
        return Err(Fault::new(
            format!("{text} is the network itself, not a host in it"),
            INTERFACE,
            "write the address that Plait shall answer for",
        ));
    }
    Ok(prefix)
}

const INTERFACE: &str =
    "an address with the length of its network's prefix, such as \"10.0.1.1/24\"";

/// An address and a port, such as `10.0.1.2:80` or `[2001:db8::1]:80`.
pub fn endpoint(text: &str) -> Value<Endpoint> {
    let socket: SocketAddr = text.parse().map_err(|_| {
        Fault::new(
            format!("\"{text}\" is not an address with a port"),
            "address:port, such as \"10.0.1.2:80\" or \"[2001:db8::1]:80\"",
            "add the port; an IPv6 address goes in brackets",
        )
    })?;
    if socket.port() == 0 {
        return Err(Fault::new("the port is 0", "1 to 65535", "write the port of the service"));
    }
    Ok(Endpoint::new(unicast(socket.ip())?, socket.port()))
}

/// Ports and ranges of ports, such as `22, 8000-8100`.
pub fn ports(text: &str) -> Value<Vec<RangeInclusive<u16>>> {
    text.split(',').map(|part| port_range(text, part.trim())).collect()
}

fn port_range(text: &str, part: &str) -> Value<RangeInclusive<u16>> {
    let allowed =
        "ports and ranges within 1 to 65535, such as \"80\", \"1-65535\" or \"22, 8000-8100\"";
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let bounds = (first.trim().parse::<u16>(), last.trim().parse::<u16>());
    let (Ok(first @ 1..), Ok(last)) = bounds else {
        let found = format!("\"{part}\" in \"{text}\" is not a port or range");
        return Err(Fault::new(found, allowed, "write port, or first-last, with commas between"));
    };
    if first > last {
        let found = format!("the range {first}-{last} is empty");
        return Err(Fault::new(found, allowed, format!("write {last}-{first}")));
    }
    Ok(first..=last)
}

/// A duration with its unit, such as `200ms`.
pub fn duration(text: &str) -> Value<Duration> {
    let (number, unit) = split_unit(text);
    let nanos = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000_u64,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|n| n.checked_mul(nanos)) {
        Some(n) if nanos > 0 => Ok(Duration::from_nanos(n)),
        _ => Err(Fault::new(
            format!("\"{text}\" is not a duration"),
            "a whole number with us, ms, s, min or h, such as \"200ms\"",
            if unit.is_empty() && !number.is_empty() {
                format!("add the unit: \"{number}s\" or \"{number}ms\"")
            } else {
                "write number and unit without a blank".to_owned()
            },
        )),
    }
}

/// Octets with their unit, such as `4MiB`.
pub fn size(text: &str) -> Value<u64> {
    let (number, unit) = split_unit(text);
    let octets = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1_u64 << 30,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|n| n.checked_mul(octets)) {
        Some(n) if octets > 0 => Ok(n),
        _ => Err(Fault::new(
            format!("\"{text}\" is not a size"),
            "a whole number with B, KiB, MiB or GiB, such as \"4MiB\"",
            if unit.is_empty() && !number.is_empty() {
                format!("add the unit: \"{number}B\" or \"{number}KiB\"")
            } else {
                "write number and unit without a blank".to_owned()
            },
        )),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Bits of an address of this family.
fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// The prefix's network address.
pub fn mask(prefix: Prefix) -> IpAddr {
    match prefix.addr {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.len.min(32))).unwrap_or(0);
            IpAddr::V4((a.to_bits() & mask).into())
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.len.min(128))).unwrap_or(0);
            IpAddr::V6((a.to_bits() & mask).into())
        }
    }
}

/// Whether all of `inner` lies inside `outer`.
pub fn covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.len <= inner.len && outer.contains(inner.addr)
}

/// How a prefix is written.
pub fn show(prefix: &Prefix) -> String {
    format!("{}/{}", prefix.addr, prefix.len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_need_their_unit() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("2min"), Ok(Duration::from_secs(120)));
        assert_eq!(size("4MiB"), Ok(4 << 20));
        for bad in ["", "s", "3", "3 s", "-3s", "3.5s", "99999999999999999999s", "99999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "MiB", "4", "4 MiB", "4MB", "99999999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert!(duration("120").unwrap_err().help.contains("\"120s\""));
    }

    #[test]
    fn port_ranges() {
        assert_eq!(ports("1-65535"), Ok(vec![1..=65535]));
        assert_eq!(ports("22, 8000-8100"), Ok(vec![22..=22, 8000..=8100]));
        for bad in ["", "0", "0-5", "9-8", "65536", "80,", "a-b", "1-2-3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_and_addresses() {
        assert_eq!(show(&prefix("10.0.0.0/8").unwrap()), "10.0.0.0/8");
        assert_eq!(show(&prefix("2001:db8::1").unwrap()), "2001:db8::1/128");
        for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "::/129", "x/8", "10.0.0.0/-1"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
        assert!(interface_address("10.0.1.1/24").is_ok());
        assert!(interface_address("10.0.1.0/31").is_ok(), "RFC 3021");
        for bad in ["10.0.1.1", "10.0.1.0/24", "127.0.0.1/8", "224.0.0.1/24", "0.0.0.0/0"] {
            assert!(interface_address(bad).is_err(), "{bad}");
        }
        assert!(endpoint("[2001:db8::1]:80").is_ok());
        for bad in ["10.0.0.1", "10.0.0.1:0", "2001:db8::1:80:x", "0.0.0.0:80"] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_covers_what_is_not_wider() {
        let p = |s| prefix(s).unwrap();
        assert!(covers(&p("10.0.0.0/8"), &p("10.1.0.0/16")));
        assert!(!covers(&p("10.1.0.0/16"), &p("10.0.0.0/8")));
        assert!(!covers(&p("0.0.0.0/0"), &p("::/0")));
    }
}
