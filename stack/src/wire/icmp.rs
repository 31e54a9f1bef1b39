//! ICMP and ICMPv6 errors about TCP: which of our flows one is about, and such an error of our own (RFC 792, RFC 1191,
//! RFC 4443).
#![forbid(unsafe_code)]

use super::ip::{self, IpHeader, PROTOCOL_TCP};
use super::octets::Octets;
use super::{Endpoint, FlowTuple, Malformed, SeqNum, TrafficClass, TxPacket};
use crate::buf::Chain;
use crate::checksum;
use arrayvec::ArrayVec;
use core::net::IpAddr;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Octets looked at: two headers with all their options, and the 8 octets of TCP that RFC 792 promises.
const MAX_LOOK: usize = 256;
/// Octets of an ICMP header before the packet that it quotes.
const ICMP_LEN: usize = 8;
/// Octets of TCP that we quote.
const QUOTED_TCP: usize = 8;

/// An error about a segment that we sent. Anybody can forge one: the flow has to check that `seq` is in flight (RFC 5927 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// The flow as we see it.
    pub flow: FlowTuple,
    /// SEG.SEQ of the segment that could not be delivered.
    pub seq: SeqNum,
    /// Who says so.
    pub from: IpAddr,
    /// What happened to it.
    pub kind: IcmpErrorKind,
}

/// What an ICMP error says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpErrorKind {
    /// Destination unreachable.
    Unreachable(Unreachable),
    /// The packet is too big for the path.
    PacketTooBig {
        /// MTU of the next hop in octets, IP header included. Routers older than RFC 1191 do not tell it: then it is the next
        /// smaller one that is in use somewhere.
        mtu: u32,
    },
}

/// What cannot be reached. Codes that hosts treat alike are one here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    /// No route.
    Network,
    /// The last router does not find the host.
    Host,
    /// Somebody forbids it.
    Prohibited,
    /// The host does not want it: port or protocol.
    Port,
}

impl Unreachable {
    /// Whether it will not pass (RFC 5461 2.1); what may pass MUST NOT abort a connection (RFC 1122 4.2.3.9).
    pub const fn is_hard(self) -> bool {
        matches!(self, Unreachable::Prohibited | Unreachable::Port)
    }

    const fn parse_v4(code: u8) -> Unreachable {
        match code {
            0 | 6 | 11 => Unreachable::Network,
            2 | 3 => Unreachable::Port,
            9 | 10 | 13 => Unreachable::Prohibited,
            _ => Unreachable::Host,
        }
    }

    const fn parse_v6(code: u8) -> Unreachable {
        match code {
            0 => Unreachable::Network,
            1 | 5 | 6 => Unreachable::Prohibited,
            4 => Unreachable::Port,
            _ => Unreachable::Host,
        }
    }

    /// Type and code in ICMP.
    const fn write_v4(self) -> [u8; 2] {
        match self {
            Unreachable::Network => [3, 0],
            Unreachable::Host => [3, 1],
            Unreachable::Port => [3, 3],
            Unreachable::Prohibited => [3, 13],
        }
    }

    /// Type and code in ICMPv6.
    const fn write_v6(self) -> [u8; 2] {
        match self {
            Unreachable::Network => [1, 0],
            Unreachable::Prohibited => [1, 1],
            Unreachable::Host => [1, 3],
            Unreachable::Port => [1, 4],
        }
    }
}

/// Tells the peer of `flow` (local end first) that its segment at `seq` could not be delivered. It comes from the address
/// that the segment was for: the router whose part we take may have none, and what stands in for an address speaks as it.
///
/// Quotes the IP header and 8 octets, which is what RFC 792 promises and all that names a segment.
pub fn emit_unreachable(why: Unreachable, flow: FlowTuple, seq: SeqNum) -> TxPacket {
    let (local, remote) = (flow.local, flow.remote);
    let mut quote = ArrayVec::new();
    let none = TrafficClass::default();
    ip::write(&mut quote, (remote.addr, local.addr), none, PROTOCOL_TCP, QUOTED_TCP);
    quote.extend(remote.port.to_be_bytes());
    quote.extend(local.port.to_be_bytes());
    quote.extend(seq.0.to_be_bytes());
    let len = ICMP_LEN + quote.len();
    let (protocol, message, pseudo) = match local.addr {
        IpAddr::V4(_) => (PROTOCOL_ICMP, why.write_v4(), 0),
        IpAddr::V6(_) => {
            let sum = ip::pseudo_header_sum(local.addr, remote.addr, PROTOCOL_ICMPV6, len as u32);
            (PROTOCOL_ICMPV6, why.write_v6(), sum)
        }
    };
    let known = [pseudo, checksum::sum(&message), checksum::sum(&quote)];
    let sum = !known.into_iter().fold(0, checksum::add);
    let mut header = ArrayVec::new();
    ip::write(&mut header, (local.addr, remote.addr), none, protocol, len);
    header.extend(message);
    header.extend(sum.to_be_bytes());
    header.extend([0; 4]);
    header.extend(quote);
    TxPacket { flow, ip_len: header.len() as u8, header, text: Chain::new(), gso_size: 0 }
}

impl IcmpError {
    /// Parses an IP packet that carries ICMP or ICMPv6 (a [`Parsed::Other`](super::Parsed)). `None` if it is not an error
    /// about TCP that is of use.
    ///
    /// # Errors
    /// [`Malformed`]: a header or length is wrong, or the checksum.
    pub fn parse(packet: &Chain) -> Result<Option<IcmpError>, Malformed> {
        let mut buf = [0; MAX_LOOK];
        let looked = packet.len().min(MAX_LOOK as u32);
        packet.slice(0, looked).copy_to(&mut buf);
        let octets = buf.get(..looked as usize).unwrap_or(&[]);
        let outer = IpHeader::parse(octets)?;
        let message = octets.get(outer.len..outer.total_len.min(octets.len()));
        let mut r = Octets(message.ok_or(Malformed::Truncated)?);
        let (kind, code) = (r.u8(), r.u8());
        let (Some(kind), Some(code)) = (kind, code) else { return Err(Malformed::Truncated) };
        let (_checksum, _unused, mtu) = (r.u16(), r.u16(), r.u16());
        let mtu = u32::from(mtu.ok_or(Malformed::Truncated)?);
        let kind = match (outer.protocol, kind, code) {
            _ if outer.fragment => return Ok(None),
            (PROTOCOL_ICMP, 3, 4) => IcmpErrorKind::PacketTooBig { mtu },
            (PROTOCOL_ICMP, 3, code) => IcmpErrorKind::Unreachable(Unreachable::parse_v4(code)),
            (PROTOCOL_ICMPV6, 2, _) => IcmpErrorKind::PacketTooBig { mtu: mtu_v6(octets, &outer) },
            (PROTOCOL_ICMPV6, 1, code) => IcmpErrorKind::Unreachable(Unreachable::parse_v6(code)),
            _ => return Ok(None),
        };
        check_checksum(packet, &outer)?;
        let from = outer.src;
        Ok(parse_quoted(r.0).map(|(flow, seq, total_len)| {
            let kind = match kind {
                IcmpErrorKind::PacketTooBig { mtu: 0 } => {
                    IcmpErrorKind::PacketTooBig { mtu: plateau_below(total_len) }
                }
                kind => kind,
            };
            IcmpError { flow, seq, from, kind }
        }))
    }
}

/// The MTU that a router may have that refused `total_len` octets and does not say (RFC 1191 7.1, the common ones of today
/// added).
fn plateau_below(total_len: usize) -> u32 {
    const PLATEAUS: [u32; 12] =
        [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_400, 1_280, 1_006, 508, 296, 68];
    let below = PLATEAUS.into_iter().find(|mtu| (*mtu as usize) < total_len);
    below.unwrap_or(68)
}

/// ICMPv6 has 32 bits for the MTU.
fn mtu_v6(octets: &[u8], outer: &IpHeader) -> u32 {
    let mut r = Octets(octets.get(outer.len + 4..outer.len + ICMP_LEN).unwrap_or(&[]));
    r.u32().unwrap_or(0)
}

fn check_checksum(packet: &Chain, outer: &IpHeader) -> Result<(), Malformed> {
    let len = outer.total_len - outer.len;
    if packet.len() < outer.total_len as u32 {
        return Err(Malformed::Truncated);
    }
    let pseudo = match outer.protocol {
        PROTOCOL_ICMPV6 => ip::pseudo_header_sum(outer.src, outer.dst, PROTOCOL_ICMPV6, len as u32),
        _ => 0,
    };
    let sum = packet.slice(outer.len as u32, len as u32).sum();
    if checksum::add(pseudo, sum) == 0xffff { Ok(()) } else { Err(Malformed::BadChecksum) }
}

/// The start of the packet that we sent: routers may quote no more than 8 octets of TCP, and may have changed what they
/// forward (TTL, checksum), so that only what names the flow is read.
fn parse_quoted(octets: &[u8]) -> Option<(FlowTuple, SeqNum, usize)> {
    let ip = IpHeader::parse_quoted(octets)?;
    if ip.protocol != PROTOCOL_TCP || ip.fragment {
        return None;
    }
    let mut r = Octets(octets.get(ip.len..)?);
    let (local, remote) = (Endpoint::new(ip.src, r.u16()?), Endpoint::new(ip.dst, r.u16()?));
    Some((FlowTuple { local, remote }, SeqNum(r.u32()?), ip.total_len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;
    use crate::wire::{Control, Options, Segment, SegmentOptions, UnscaledWindow, emit};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn sent(local: &str, remote: &str) -> (FlowTuple, Vec<u8>) {
        let end = |a: &str, port| Endpoint::new(a.parse().unwrap(), port);
        let flow = FlowTuple { local: end(local, 4000), remote: end(remote, 80) };
        let segment = Segment {
            seq: SeqNum(77),
            ack: None,
            control: Control::None,
            push: false,
            window: UnscaledWindow(1),
            options: Options::Segment(SegmentOptions::default()),
            text: Chain::new(),
            ..Default::default()
        };
        (flow, emit(flow, &segment, 0).to_vec())
    }

    /// An ICMP message from a router, around `quoted`.
    fn message(kind: u8, code: u8, rest: u32, quoted: &[u8]) -> Vec<u8> {
        let v6 = quoted[0] >> 4 == 6;
        let mut icmp = [&[kind, code, 0, 0][..], &rest.to_be_bytes(), quoted].concat();
        let (mut out, pseudo) = if v6 {
            let mut ip = alloc::vec![0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 64];
            let (router, host) = ([0x20, 1, 0xd, 0xb8].repeat(4), &quoted[8..24]);
            ip.extend(router.iter().chain(host));
            let sum =
                checksum::add(checksum::sum(&ip[8..40]), checksum::fold(58 + icmp.len() as u32));
            (ip, sum)
        } else {
            let mut ip = alloc::vec![
                0x45,
                0,
                0,
                20 + icmp.len() as u8,
                0,
                0,
                0,
                0,
                64,
                1,
                0,
                0,
                10,
                9,
                9,
                9
            ];
            ip.extend(&quoted[12..16]);
            let sum = !checksum::sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            (ip, 0)
        };
        let sum = !checksum::add(pseudo, checksum::sum(&icmp));
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        out.extend(icmp);
        out
    }

    fn parse(octets: &[u8]) -> Result<Option<IcmpError>, Malformed> {
        let pool = Pool::new(16, 100);
        IcmpError::parse(&Chain::copy_from(&pool, 0, octets).unwrap())
    }

    #[test]
    fn an_error_names_the_flow_as_we_see_it() {
        let (flow, quoted) = sent("10.0.0.1", "10.0.0.2");
        let seq = SeqNum(77);
        let cases = [
            (3, 3, IcmpErrorKind::Unreachable(Unreachable::Port)),
            (3, 1, IcmpErrorKind::Unreachable(Unreachable::Host)),
            (3, 4, IcmpErrorKind::PacketTooBig { mtu: 1400 }),
        ];
        for (kind, code, expected) in cases {
            let octets = message(kind, code, 1400, &quoted[..28]);
            let from = "10.9.9.9".parse().unwrap();
            assert_eq!(parse(&octets), Ok(Some(IcmpError { flow, seq, from, kind: expected })));
        }
        let (flow, quoted) = sent("2001:db8::1", "2001:db8::2");
        let from = "2001:db8:2001:db8:2001:db8:2001:db8".parse().unwrap();
        let octets = message(2, 0, 1280, &quoted);
        let kind = IcmpErrorKind::PacketTooBig { mtu: 1280 };
        assert_eq!(parse(&octets), Ok(Some(IcmpError { flow, seq, from, kind })));
        let octets = message(1, 4, 0, &quoted);
        let kind = IcmpErrorKind::Unreachable(Unreachable::Port);
        assert_eq!(parse(&octets), Ok(Some(IcmpError { flow, seq, from, kind })));
    }

    #[test]
    fn what_we_say_is_what_the_peer_understands() {
        use Unreachable::{Host, Network, Port, Prohibited};
        for (local, remote) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            for why in [Network, Host, Port, Prohibited] {
                let (flow, _) = sent(local, remote);
                let theirs = FlowTuple { local: flow.remote, remote: flow.local };
                let packet = emit_unreachable(why, flow, SeqNum(77));
                assert!(packet.is_ready_made());
                let expected = IcmpError {
                    flow: theirs,
                    seq: SeqNum(77),
                    from: flow.local.addr,
                    kind: IcmpErrorKind::Unreachable(why),
                };
                assert_eq!(parse(&packet.to_vec()), Ok(Some(expected)));
            }
        }
    }

    /// RFC 1191 7.1: a router that does not tell its MTU has the next smaller one that is in use.
    #[test]
    fn a_router_that_tells_no_mtu_is_understood() {
        let (_, mut quoted) = sent("10.0.0.1", "10.0.0.2");
        for (total_len, mtu) in [(1500_u16, 1492), (1492, 1400), (1400, 1280), (576, 508), (60, 68)]
        {
            quoted[2..4].copy_from_slice(&total_len.to_be_bytes());
            let error = parse(&message(3, 4, 0, &quoted)).unwrap().unwrap();
            assert_eq!(error.kind, IcmpErrorKind::PacketTooBig { mtu }, "{total_len}");
        }
    }

    /// RFC 1191 3(d): nothing of ours may be fragmented. RFC 6864 4.1: so the id means nothing.
    #[test]
    fn what_we_send_is_not_to_be_fragmented() {
        let (_, octets) = sent("10.0.0.1", "10.0.0.2");
        assert_eq!((&octets[4..6], &octets[6..8]), (&[0, 0][..], &[0x40, 0][..]));
    }

    #[test]
    fn what_is_no_error_about_tcp_is_none() {
        let (_, quoted) = sent("10.0.0.1", "10.0.0.2");
        assert_eq!(parse(&message(8, 0, 0, &quoted)), Ok(None), "echo");
        let mut udp = quoted.clone();
        udp[9] = 17;
        assert_eq!(parse(&message(3, 3, 0, &udp)), Ok(None));
        assert_eq!(parse(&message(3, 3, 0, &quoted[..27])), Ok(None), "too little is quoted");
        let mut broken = message(3, 3, 0, &quoted);
        broken[50] ^= 1;
        assert_eq!(parse(&broken), Err(Malformed::BadChecksum));
        assert_eq!(parse(&broken[..40]), Err(Malformed::Truncated));
    }

    proptest! {
        #[test]
        fn arbitrary_octets_do_no_harm(tail in proptest::collection::vec(any::<u8>(), 0..100), v6: bool) {
            let (local, remote) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("10.0.0.1", "10.0.0.2") };
            let (_, quoted) = sent(local, remote);
            let octets = message(if v6 { 1 } else { 3 }, 0, 0, &[&quoted[..1], &tail, &quoted[..24]].concat());
            prop_assert!(parse(&octets).is_ok());
            let _ = parse(&tail);
        }
    }
}
