//! IP headers as TCP needs them: where it begins and ends, between whom, and the pseudo-header (RFC 791, RFC 8200).
#![forbid(unsafe_code)]

use super::Malformed;
use super::octets::Octets;
use crate::checksum;
use arrayvec::ArrayVec;
use core::net::IpAddr;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

pub(super) const PROTOCOL_TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const HOP_LIMIT: u8 = 64;
pub(super) const IPV4_LEN: usize = 20;
pub(super) const IPV6_LEN: usize = 40;

/// The octet that IPv4 calls Type of Service and IPv6 Traffic Class: DSCP (RFC 2474 3) and ECN (RFC 3168 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct TrafficClass(pub u8);

/// The ECN field, as numbered on the wire (RFC 3168 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Ecn {
    /// The transport does not use ECN.
    #[default]
    NotEct = 0,
    /// ECN-capable, for experiments (RFC 8311).
    Ect1 = 1,
    /// ECN-capable.
    Ect0 = 2,
    /// A router on the way was congested.
    Ce = 3,
}

impl TrafficClass {
    /// The ECN field.
    pub const fn ecn(self) -> Ecn {
        match self.0 & 3 {
            0 => Ecn::NotEct,
            1 => Ecn::Ect1,
            2 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    /// The same DSCP with another ECN field.
    pub const fn with_ecn(self, ecn: Ecn) -> TrafficClass {
        TrafficClass(self.0 & !3 | ecn as u8)
    }

    /// Differentiated Services code point, 0 to 63.
    pub const fn dscp(self) -> u8 {
        self.0 >> 2
    }
}

/// What an IP header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IpHeader {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    /// Of the transport, extension headers skipped.
    pub(super) protocol: u8,
    /// Octets before the transport header.
    pub(super) len: usize,
    /// Octets of the packet; the frame may be longer (padding of the link).
    pub(super) total_len: usize,
    pub(super) traffic_class: TrafficClass,
    /// A part of a packet.
    pub(super) fragment: bool,
}

impl IpHeader {
    /// Parses the header at the start of `octets`, which need not hold more of the packet.
    pub(super) fn parse(octets: &[u8]) -> Result<IpHeader, Malformed> {
        match octets.first().map(|b| b >> 4) {
            None => Err(Malformed::Truncated),
            Some(4) => parse_v4(octets),
            Some(6) => parse_v6(octets),
            Some(_) => Err(Malformed::BadVersion),
        }
    }

    /// As [`IpHeader::parse`], for a header that an ICMP error quotes: a router may have changed it without updating the
    /// checksum.
    pub(super) fn parse_quoted(octets: &[u8]) -> Option<IpHeader> {
        if octets.first()? >> 4 == 6 {
            return parse_v6(octets).ok();
        }
        let mut header: ArrayVec<u8, 60> = octets.iter().take(60).copied().collect();
        let len = usize::from(header.first()? & 0xf) * 4;
        let covered = header.get_mut(..len)?;
        covered.get_mut(10..12)?.fill(0);
        let sum = !checksum::sum(covered);
        covered.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
        IpHeader::parse(&header).ok()
    }

    /// Whether both ends can be hosts.
    pub(super) fn check_addresses(&self) -> Result<(), Malformed> {
        let bad = |a: IpAddr| a.is_multicast() || a.is_unspecified() || is_broadcast(a);
        if bad(self.src) || bad(self.dst) { Err(Malformed::BadAddress) } else { Ok(()) }
    }
}

fn is_broadcast(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V4(a) if a.is_broadcast())
}

/// Options are skipped (MUST-50).
fn parse_v4(octets: &[u8]) -> Result<IpHeader, Malformed> {
    if octets.len() < IPV4_LEN {
        return Err(Malformed::Truncated);
    }
    let ip = Ipv4Packet::new_unchecked(octets);
    let (len, total_len) = (usize::from(ip.header_len()), usize::from(ip.total_len()));
    if len < IPV4_LEN || total_len < len {
        return Err(Malformed::BadLength);
    }
    let header = octets.get(..len).ok_or(Malformed::Truncated)?;
    if checksum::sum(header) != 0xffff {
        return Err(Malformed::BadChecksum);
    }
    Ok(IpHeader {
        src: ip.src_addr().into(),
        dst: ip.dst_addr().into(),
        protocol: ip.next_header().into(),
        len,
        total_len,
        traffic_class: TrafficClass(header[1]),
        fragment: ip.more_frags() || ip.frag_offset() != 0,
    })
}

fn parse_v6(octets: &[u8]) -> Result<IpHeader, Malformed> {
    let (header, extensions) = octets.split_at_checked(IPV6_LEN).ok_or(Malformed::Truncated)?;
    let ip = Ipv6Packet::new_unchecked(header);
    let Extensions { protocol, len, fragment } =
        skip_extensions(ip.next_header().into(), extensions)?;
    let len = IPV6_LEN + len;
    let total_len = IPV6_LEN + usize::from(ip.payload_len());
    if total_len < len {
        return Err(Malformed::BadLength);
    }
    let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
    let traffic_class = TrafficClass(ip.traffic_class());
    Ok(IpHeader { src, dst, protocol, len, total_len, traffic_class, fragment })
}

/// Extension headers that a packet may have: more than anybody uses, and an end to looking (RFC 8504 5.3).
const MAX_EXTENSIONS: usize = 6;

/// What follows the extension headers of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extensions {
    /// Number of the protocol after them.
    pub(crate) protocol: u8,
    /// Octets of them.
    pub(crate) len: usize,
    /// It is a part of a packet.
    pub(crate) fragment: bool,
}

/// Skips the extension headers at the start of `octets`, of which the first is `next` (RFC 8200 4). Options that want to
/// be known are refused (RFC 8200 4.2), and so is a way that is not over. An atomic fragment is a whole packet (RFC 6946 4).
pub(crate) fn skip_extensions(next: u8, octets: &[u8]) -> Result<Extensions, Malformed> {
    let (mut r, mut next, mut count) = (Octets(octets), next, 0);
    let mut fragment = false;
    while !fragment && matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
        count += 1;
        // RFC 8200 4.1: hop-by-hop options come first.
        if count > MAX_EXTENSIONS || (next == HOP_BY_HOP && count > 1) {
            return Err(Malformed::BadLength);
        }
        // The first octet names the next header; lengths count 8-octet units after the first.
        let unit: [u8; 8] = r.array().ok_or(Malformed::Truncated)?;
        let more = if next == FRAGMENT { 0 } else { usize::from(unit[1]) * 8 };
        let rest = r.take(more).ok_or(Malformed::Truncated)?;
        match next {
            // Of a fragment, what follows may be the middle of something.
            FRAGMENT => fragment = u16::from_be_bytes([unit[2], unit[3]]) & 0xfff9 != 0,
            ROUTING if unit[3] != 0 => return Err(Malformed::BadLength), // RFC 8200 4.4: segments left
            ROUTING => {}
            _ => check_options(&unit[2..], rest)?,
        }
        next = unit[0];
    }
    Ok(Extensions { protocol: next, len: octets.len() - r.0.len(), fragment })
}

/// RFC 8200 4.2: options whose first two bits are not zero must be known to whoever takes the packet.
fn check_options(first: &[u8], rest: &[u8]) -> Result<(), Malformed> {
    const PAD1: u8 = 0;
    let mut octets = first.iter().chain(rest);
    while let Some(kind) = octets.next() {
        if *kind == PAD1 {
            continue;
        }
        let len = usize::from(*octets.next().ok_or(Malformed::BadLength)?);
        if kind >> 6 != 0 {
            return Err(Malformed::BadOption);
        }
        if len > 0 && octets.nth(len - 1).is_none() {
            return Err(Malformed::BadLength);
        }
    }
    Ok(())
}

/// Folded sum of the pseudo-header of `protocol` (RFC 9293 3.1, RFC 8200 8.1); `len` octets of transport.
pub(super) fn pseudo_header_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> u16 {
    let addr = |a: IpAddr| match a {
        IpAddr::V4(a) => (a.to_bits() >> 16) + (a.to_bits() & 0xffff),
        IpAddr::V6(a) => u32::from(checksum::sum(&a.octets())),
    };
    let rest = u32::from(protocol) + (len >> 16) + (len & 0xffff);
    checksum::fold(addr(src) + addr(dst) + rest)
}

/// Appends the header of a packet from the first to the second address, with `len` octets of `protocol`.
pub(super) fn write(
    out: &mut ArrayVec<u8, 120>,
    addresses: (IpAddr, IpAddr),
    traffic_class: TrafficClass,
    protocol: u8,
    len: usize,
) {
    match addresses {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut buf = [0; IPV4_LEN];
            let mut ip = Ipv4Packet::new_unchecked(&mut buf[..]);
            ip.set_version(4);
            ip.set_header_len(IPV4_LEN as u8);
            ip.set_dscp(traffic_class.dscp());
            ip.set_ecn(traffic_class.ecn() as u8);
            ip.set_total_len((IPV4_LEN + len) as u16);
            ip.set_dont_frag(true); // RFC 1191 3(d), RFC 6864 4.1: and so the id means nothing
            ip.set_hop_limit(HOP_LIMIT);
            ip.set_next_header(IpProtocol::from(protocol));
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            ip.fill_checksum();
            out.extend(buf);
        }
        (src, dst) => {
            let v6 = |a: IpAddr| match a {
                IpAddr::V4(a) => a.to_ipv6_mapped(),
                IpAddr::V6(a) => a,
            };
            let mut buf = [0; IPV6_LEN];
            let mut ip = Ipv6Packet::new_unchecked(&mut buf[..]);
            ip.set_version(6);
            ip.set_traffic_class(traffic_class.0);
            ip.set_payload_len(len as u16);
            ip.set_next_header(IpProtocol::from(protocol));
            ip.set_hop_limit(HOP_LIMIT);
            ip.set_src_addr(v6(src));
            ip.set_dst_addr(v6(dst));
            out.extend(buf);
        }
    }
}

/// Changes the length that an IP header written by [`write`] gives, for `tcp_len` octets of TCP. Whether it was another.
pub(super) fn set_tcp_len(header: &mut [u8], tcp_len: usize) -> bool {
    if header.first().is_some_and(|b| b >> 4 == 4) {
        let mut ip = Ipv4Packet::new_unchecked(header);
        let (old, new) = (ip.total_len(), (IPV4_LEN + tcp_len) as u16);
        if old != new {
            ip.set_checksum(checksum::update(ip.checksum(), old, new));
            ip.set_total_len(new);
        }
        old != new
    } else {
        let mut ip = Ipv6Packet::new_unchecked(header);
        let (old, new) = (ip.payload_len(), tcp_len as u16);
        ip.set_payload_len(new);
        old != new
    }
}
