//! A first look at a packet: enough to know whose it is, without touching it.
//!
//! Most machines that Plait runs on forward packets that are none of its business, and those must go on exactly as they
//! came. Parsing turns a packet's headers into headroom, so what a packet is has to be known before.
#![forbid(unsafe_code)]

use crate::wire::{Endpoint, FlowTuple, PROTOCOL_ICMP, PROTOCOL_ICMPV6, skip_extensions};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TCP: u8 = 6;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What a packet seems to be. Nothing is verified: a lie comes out when the packet is parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Glance {
    /// A TCP segment; whether it asks for a new flow (SYN without ACK, FIN and RST).
    Tcp(FlowTuple, Request),
    /// ICMP: perhaps an error about a segment of ours.
    Icmp,
    /// A fragment of a TCP packet, to this address.
    Fragment(IpAddr),
    /// Anything else.
    Other,
}

/// Whether a segment asks for a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// SYN.
    Open,
    /// All else.
    None,
}

impl Glance {
    /// Looks at the first octets of an IP packet.
    pub fn at(octets: &[u8]) -> Glance {
        glance(octets).unwrap_or(Glance::Other)
    }
}

fn glance(octets: &[u8]) -> Option<Glance> {
    let ip = Ip::read(octets)?;
    match ip.protocol {
        TCP if ip.fragment => Some(Glance::Fragment(ip.dst)),
        TCP => {
            let (source, destination) = ports(ip.rest)?;
            let flow = FlowTuple {
                local: Endpoint::new(ip.dst, destination),
                remote: Endpoint::new(ip.src, source),
            };
            let flags = ip.rest.get(13)? & (FIN | SYN | RST | ACK);
            Some(Glance::Tcp(flow, if flags == SYN { Request::Open } else { Request::None }))
        }
        PROTOCOL_ICMP if ip.dst.is_ipv4() => Some(Glance::Icmp),
        PROTOCOL_ICMPV6 if ip.dst.is_ipv6() => Some(Glance::Icmp),
        _ => None,
    }
}

fn ports(tcp: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *tcp.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

struct Ip<'a> {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    fragment: bool,
    rest: &'a [u8],
}

impl Ip<'_> {
    fn read(octets: &[u8]) -> Option<Ip<'_>> {
        match octets.first()? >> 4 {
            4 => Ip::read_v4(octets),
            6 => Ip::read_v6(octets),
            _ => None,
        }
    }

    fn read_v4(octets: &[u8]) -> Option<Ip<'_>> {
        let fixed = octets.first_chunk::<20>()?;
        let addr = |at: usize| Some(Ipv4Addr::from(*octets.get(at..)?.first_chunk::<4>()?));
        Some(Ip {
            src: addr(12)?.into(),
            dst: addr(16)?.into(),
            protocol: fixed[9],
            fragment: u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0,
            rest: octets.get(usize::from(fixed[0] & 0x0f) * 4..)?,
        })
    }

    /// What has extension headers that we would refuse is left to the kernel.
    fn read_v6(octets: &[u8]) -> Option<Ip<'_>> {
        let fixed = octets.first_chunk::<40>()?;
        let addr = |at: usize| Some(Ipv6Addr::from(*octets.get(at..)?.first_chunk::<16>()?));
        let (src, dst) = (addr(8)?.into(), addr(24)?.into());
        let rest = octets.get(40..)?;
        if fixed[6] == TCP {
            return Some(Ip { src, dst, protocol: TCP, fragment: false, rest });
        }
        let skipped = skip_extensions(fixed[6], rest).ok()?;
        let rest = rest.get(skipped.len..)?;
        Some(Ip { src, dst, protocol: skipped.protocol, fragment: skipped.fragment, rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn v4(protocol: u8, fragment: u16, rest: &[u8]) -> Vec<u8> {
        let mut p = alloc::vec![0u8; 20];
        p[0] = 0x45;
        p[6..8].copy_from_slice(&fragment.to_be_bytes());
        p[9] = protocol;
        p[12..16].copy_from_slice(&[192, 168, 1, 2]);
        p[16..20].copy_from_slice(&[10, 0, 0, 1]);
        p.extend(rest);
        p
    }

    fn tcp(flags: u8) -> [u8; 20] {
        let mut t = [0u8; 20];
        t[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        t[13] = flags;
        t
    }

    fn flow() -> FlowTuple {
        FlowTuple {
            local: Endpoint::new("10.0.0.1".parse().unwrap(), 80),
            remote: Endpoint::new("192.168.1.2".parse().unwrap(), 40_000),
        }
    }

    #[test]
    fn only_a_bare_syn_asks_for_a_flow() {
        let at = |flags| Glance::at(&v4(TCP, 0x4000, &tcp(flags)));
        assert_eq!(at(SYN), Glance::Tcp(flow(), Request::Open));
        assert_eq!(at(SYN | 0x40 | 0x80), Glance::Tcp(flow(), Request::Open), "ECN setup is a SYN");
        for flags in [SYN | ACK, SYN | RST, SYN | FIN, ACK, RST, 0] {
            assert_eq!(at(flags), Glance::Tcp(flow(), Request::None));
        }
    }

    #[test]
    fn fragments_and_strangers_are_told_apart() {
        assert_eq!(Glance::at(&v4(TCP, 0x2000, &tcp(SYN))), Glance::Fragment(flow().local.addr));
        assert_eq!(Glance::at(&v4(17, 0, &tcp(SYN))), Glance::Other);
        assert_eq!(Glance::at(&v4(PROTOCOL_ICMP, 0, &[3, 1])), Glance::Icmp);
        assert_eq!(Glance::at(&v4(TCP, 0, &[0; 3])), Glance::Other);
        assert_eq!(Glance::at(&[]), Glance::Other);
    }

    fn v6(next: u8, rest: &[&[u8]]) -> Vec<u8> {
        let mut p = alloc::vec![0u8; 40];
        (p[0], p[6], p[23], p[39]) = (0x60, next, 2, 1);
        p.extend(rest.concat());
        p
    }

    /// RFC 8200 4.1, RFC 8200 4.2: extension headers in front of TCP are skipped unless they ask for what we do not do.
    #[test]
    fn extension_headers_are_skipped_as_far_as_they_can_be() {
        const HOPS: u8 = 0;
        const ROUTING: u8 = 43;
        const TO_DESTINATION: u8 = 60;
        let is_tcp = |next, headers: &[&[u8]]| {
            let packet = v6(next, &[&headers.concat(), &tcp(SYN)]);
            matches!(Glance::at(&packet), Glance::Tcp(_, Request::Open))
        };
        assert!(is_tcp(TCP, &[]));
        assert!(is_tcp(HOPS, &[&[TCP, 0, 1, 4, 0, 0, 0, 0]]));
        assert!(is_tcp(HOPS, &[&[TO_DESTINATION, 0, 0, 0, 0, 0, 0, 0], &[TCP, 1], &[0; 14]]));
        assert!(is_tcp(ROUTING, &[&[TCP, 0, 2, 0, 0, 0, 0, 0]]));
        assert!(!is_tcp(ROUTING, &[&[TCP, 0, 2, 1, 0, 0, 0, 0]]), "not there yet (RFC 8200 4.4)");
        assert!(!is_tcp(HOPS, &[&[TCP, 0, 0xc2, 4, 0, 0, 0, 0]]), "a jumbogram");
        assert!(!is_tcp(
            TO_DESTINATION,
            &[&[HOPS, 0, 0, 0, 0, 0, 0, 0], &[TCP, 0, 0, 0, 0, 0, 0, 0]]
        ));
        assert!(!is_tcp(TO_DESTINATION, &[&[TCP, 9, 0, 0, 0, 0, 0, 0]]), "past the end");
        assert!(
            !is_tcp(TO_DESTINATION, &[&[TCP, 0, 1, 200, 0, 0, 0, 0]]),
            "an option past the end"
        );
        let more: &[u8] = &[TO_DESTINATION, 0, 0, 0, 0, 0, 0, 0];
        let last: &[u8] = &[TCP, 0, 0, 0, 0, 0, 0, 0];
        assert!(is_tcp(TO_DESTINATION, &[more, more, more, more, more, last]));
        assert!(
            !is_tcp(TO_DESTINATION, &[more, more, more, more, more, more, last]),
            "RFC 8504 5.3"
        );
    }

    /// RFC 6946 4: an atomic fragment is a whole packet. All others are refused.
    #[test]
    fn an_atomic_fragment_is_whole() {
        let header = |offset: u8, more: u8| [TCP, 0, offset, more, 0, 0, 0, 9];
        let at = |header: [u8; 8]| Glance::at(&v6(44, &[&header, &tcp(SYN)]));
        assert!(matches!(at(header(0, 0)), Glance::Tcp(_, Request::Open)));
        assert!(matches!(at(header(0, 1)), Glance::Fragment(_)));
        assert!(matches!(at(header(5, 0)), Glance::Fragment(_)));
    }
}
