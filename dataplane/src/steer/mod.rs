//! Which frames are ours: rules as data, matched in user space or compiled to a program for the kernel.
#![forbid(unsafe_code)]

mod compile;
mod home;
mod insn;

pub use compile::{Flavour, Resolution, Taken, compile};
pub use home::home_of_frame;
pub use insn::TooLong;

use stack::wire::Prefix;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// What one rule takes from the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SteerRule {
    /// Every packet to this address, and ARP and neighbour solicitations that ask for it.
    Owned(IpAddr),
    /// TCP from and to these prefixes (`None`: any) whose destination port is in the range, and ICMP errors that quote what
    /// was sent the other way. Fragments are left alone.
    TcpTo {
        /// Sources.
        from: Option<Prefix>,
        /// Destinations.
        to: Option<Prefix>,
        /// Destination ports.
        ports: RangeInclusive<u16>,
    },
}

/// The rules of one port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Steering {
    /// A frame is taken if any of these matches.
    pub rules: Vec<SteerRule>,
    /// Destinations that `TcpTo` never matches: the kernel's own addresses.
    pub except: Vec<IpAddr>,
}

impl Steering {
    /// Whether an Ethernet frame is ours: what the compiled program decides, for ports that have none.
    pub fn takes(&self, frame: &[u8]) -> bool {
        self.check(frame).unwrap_or(false)
    }

    /// As [`Steering::takes`], for an IP packet without a link layer.
    pub fn takes_packet(&self, packet: &[u8]) -> bool {
        let checked = match packet.first().map(|octet| octet >> 4) {
            Some(4) => self.check_ipv4(packet),
            Some(6) => self.check_ipv6(packet),
            _ => None,
        };
        checked.unwrap_or(false)
    }

    fn check(&self, frame: &[u8]) -> Option<bool> {
        let packet = frame.get(14..)?;
        match u16_at(frame, 12)? {
            0x0800 => self.check_ipv4(packet),
            0x86dd => self.check_ipv6(packet),
            0x0806 => self.check_arp(packet),
            _ => None,
        }
    }

    fn check_ipv4(&self, packet: &[u8]) -> Option<bool> {
        packet.get(..20)?;
        let (source, destination) = (v4_at(packet, 12)?, v4_at(packet, 16)?);
        if self.owns(destination) {
            return Some(true);
        }
        if u16_at(packet, 6)? & 0x3fff != 0 || self.except.contains(&destination) {
            return None;
        }
        let rest = packet.get(ipv4_header(packet)?..)?;
        match packet[9] {
            1 if *rest.first()? == 3 => self.check_ipv4_quote(rest.get(8..)?), // RFC 792
            6 => Some(self.wants(source, destination, u16_at(rest.get(..4)?, 2)?)),
            _ => None,
        }
    }

    fn check_ipv4_quote(&self, quoted: &[u8]) -> Option<bool> {
        let (source, destination) = (v4_at(quoted, 12)?, v4_at(quoted, 16)?);
        let tcp = quoted.get(ipv4_header(quoted)?..)?.get(..4)?;
        Some(quoted[9] == 6 && self.wants(destination, source, u16_at(tcp, 0)?))
    }

    fn check_ipv6(&self, packet: &[u8]) -> Option<bool> {
        let rest = packet.get(40..)?;
        let (source, destination) = (v6_at(packet, 8)?, v6_at(packet, 24)?);
        if self.owns(destination) {
            return Some(true);
        }
        match packet[6] {
            58 if *rest.first()? == 135 => Some(self.owns(v6_at(rest, 8)?)), // RFC 4861 4.3
            _ if self.except.contains(&destination) => None,
            58 if matches!(rest.first()?, 1 | 2) => self.check_ipv6_quote(rest.get(8..)?), // RFC 4443 3.1, 3.2
            6 => Some(self.wants(source, destination, u16_at(rest.get(..4)?, 2)?)),
            _ => None,
        }
    }

    fn check_ipv6_quote(&self, quoted: &[u8]) -> Option<bool> {
        let (source, destination) = (v6_at(quoted, 8)?, v6_at(quoted, 24)?);
        let tcp = quoted.get(40..44)?;
        Some(quoted[6] == 6 && self.wants(destination, source, u16_at(tcp, 0)?))
    }

    fn check_arp(&self, packet: &[u8]) -> Option<bool> {
        let target = v4_at(packet, 24)?;
        // An answer to a probe that named no sender address (RFC 5227 1.1).
        let answered_probe = target == Ipv4Addr::UNSPECIFIED && u16_at(packet, 6)? == 2;
        Some(answered_probe || self.owns(target))
    }

    /// Whether a `TcpTo` rule wants a flow from `source` to `port` of `destination`.
    fn wants(&self, source: IpAddr, destination: IpAddr, port: u16) -> bool {
        self.rules.iter().any(|rule| match rule {
            SteerRule::Owned(_) => false,
            SteerRule::TcpTo { from, to, ports } => {
                from.is_none_or(|p| p.contains(source))
                    && to.is_none_or(|p| p.contains(destination))
                    && ports.contains(&port)
            }
        })
    }

    /// Whether `addr` is one of the owned addresses.
    pub fn owns(&self, addr: impl Into<IpAddr>) -> bool {
        self.rules.contains(&SteerRule::Owned(addr.into()))
    }
}

/// Octets of an IPv4 header with its options.
fn ipv4_header(packet: &[u8]) -> Option<usize> {
    packet.first().map(|octet| usize::from(octet & 15) * 4)
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn v4_at(octets: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = octets.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6_at(octets: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = octets.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests;
