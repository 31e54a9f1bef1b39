//! The MP_CONVERT Information Element of explicit mode (draft-boucadair-mptcp-plain-mode-10 section 4).
//!
//! Elements stand at the very start of the payload of a SYN that carries MP_CAPABLE, and tell a conversion point where
//! to go on to (and, in transparent mode, whose source address to take). They are payload to TCP: they consume sequence
//! space, but no data sequence space. The conversion point echoes them octet by octet in its SYN/ACK.
#![forbid(unsafe_code)]

use super::octets::Octets;
use crate::buf::Chain;
use arrayvec::ArrayVec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAGIC: u32 = 0xfaa8_faa8;
const TYPE_CONVERT: u8 = 0;
/// D: the element gives the source.
const SOURCE: u16 = 0x0002;
/// M, which in spite of its name is set in the last element.
const LAST: u16 = 0x0001;
/// Octets of SYN payload that a chain may reach over: far beyond the two elements that we know, and bounded.
const MAX_CHAIN: usize = 512;
/// Octets of the longest chain that we write: two IPv6 elements with ports.
pub const MAX_WRITTEN: usize = 56;

/// An address that an element gives, and its port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Target {
    /// The address.
    pub addr: IpAddr,
    /// The port; absent means the destination port of the SYN itself.
    pub port: Option<u16>,
}

/// A chain of elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Convert {
    /// Where the conversion point shall connect to (D=0).
    pub destination: Option<Target>,
    /// Whose address it shall connect from (D=1).
    pub source: Option<Target>,
}

/// A chain as received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// What it says.
    pub convert: Convert,
    /// Octets of the payload that are elements, to be echoed; application data follows.
    pub octets: u32,
}

/// Why a chain is not usable. The connection is torn down without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MalformedConvert {
    /// The payload ends within an element, or before the one that says it is the last.
    Truncated,
    /// A length that is none of 4, 8, 10, 20 and 22 in an element of type 0, or below 4 in any.
    BadLength,
    /// No magic number where the next element has to begin.
    NoMagic,
    /// Two elements for one direction.
    Duplicate,
    /// A multicast, broadcast, loopback or unspecified address, or port 0.
    BadAddress,
}

impl Convert {
    /// Parses the payload of a SYN; `None` if it does not begin with an element.
    ///
    /// # Errors
    /// [`MalformedConvert`].
    pub fn parse(payload: &Chain) -> Result<Option<Received>, MalformedConvert> {
        let mut buf = [0; MAX_CHAIN];
        let len = payload.len().min(MAX_CHAIN as u32);
        payload.slice(0, len).copy_to(&mut buf);
        Convert::parse_octets(buf.get(..len as usize).unwrap_or(&[]))
    }

    /// As [`Convert::parse`], from contiguous octets.
    ///
    /// # Errors
    /// [`MalformedConvert`].
    pub fn parse_octets(payload: &[u8]) -> Result<Option<Received>, MalformedConvert> {
        if !payload.starts_with(&MAGIC.to_be_bytes()) {
            return Ok(None);
        }
        let mut r = Octets(payload);
        let (mut destination, mut source) = (None, None);
        loop {
            let element = Element::parse(&mut r)?;
            let direction = match (element.kind, element.flags & SOURCE) {
                (TYPE_CONVERT, 0) => Some(&mut destination),
                (TYPE_CONVERT, _) => Some(&mut source),
                _ => None, // an unknown type is skipped, its flags still say whether it is the last
            };
            if let Some(direction) = direction
                && direction.replace(element.target()?).is_some()
            {
                return Err(MalformedConvert::Duplicate);
            }
            if element.flags & LAST != 0 {
                break;
            }
        }
        let convert = Convert { destination: destination.flatten(), source: source.flatten() };
        Ok(Some(Received { convert, octets: (payload.len() - r.0.len()) as u32 }))
    }

    /// The chain as octets for a SYN's payload: source first, destination last. Nothing if there is neither.
    pub fn write(&self) -> ArrayVec<u8, MAX_WRITTEN> {
        let mut out = ArrayVec::new();
        if let Some(source) = self.source {
            let last = if self.destination.is_none() { LAST } else { 0 };
            source.write(SOURCE | last, &mut out);
        }
        if let Some(destination) = self.destination {
            destination.write(LAST, &mut out);
        }
        out
    }
}

impl Target {
    /// `addr` and `port`, if a conversion point may be sent there (MUST-46).
    ///
    /// # Errors
    /// [`MalformedConvert::BadAddress`].
    fn checked(addr: IpAddr, port: Option<u16>) -> Result<Target, MalformedConvert> {
        let broadcast = addr == IpAddr::V4(Ipv4Addr::BROADCAST);
        let bad = addr.is_multicast() || addr.is_loopback() || addr.is_unspecified() || broadcast;
        if bad || port == Some(0) {
            return Err(MalformedConvert::BadAddress);
        }
        Ok(Target { addr, port })
    }

    fn write(&self, flags: u16, out: &mut ArrayVec<u8, MAX_WRITTEN>) {
        let addr_len = if self.addr.is_ipv4() { 4 } else { 16 };
        // The length counts neither the magic number nor the padding.
        let len = 4 + addr_len + if self.port.is_some() { 2 } else { 0 };
        out.extend(MAGIC.to_be_bytes());
        out.extend([TYPE_CONVERT, len]);
        out.extend(flags.to_be_bytes());
        match self.addr {
            IpAddr::V4(a) => out.extend(a.octets()),
            IpAddr::V6(a) => out.extend(a.octets()),
        }
        if let Some(port) = self.port {
            out.extend(port.to_be_bytes());
            out.extend([0, 0]);
        }
    }
}

/// One element of a chain.
struct Element<'a> {
    kind: u8,
    flags: u16,
    /// What follows the first word, without padding.
    body: &'a [u8],
}

impl<'a> Element<'a> {
    fn parse(r: &mut Octets<'a>) -> Result<Element<'a>, MalformedConvert> {
        const END: MalformedConvert = MalformedConvert::Truncated;
        if r.u32().ok_or(END)? != MAGIC {
            return Err(MalformedConvert::NoMagic);
        }
        let (kind, len, flags) = (r.u8().ok_or(END)?, r.u8().ok_or(END)?, r.u16().ok_or(END)?);
        let body_len = usize::from(len).checked_sub(4).ok_or(MalformedConvert::BadLength)?;
        let body = r.take(body_len).ok_or(END)?;
        r.take(body_len.next_multiple_of(4) - body_len).ok_or(END)?;
        Ok(Element { kind, flags, body })
    }

    /// The address of an element of type 0; `None` if it has none.
    fn target(&self) -> Result<Option<Target>, MalformedConvert> {
        let mut r = Octets(self.body);
        let addr = match self.body.len() {
            0 => return Ok(None),
            4 | 6 => r.array().map(|a| IpAddr::from(Ipv4Addr::from_octets(a))),
            16 | 18 => r.array().map(|a| IpAddr::from(Ipv6Addr::from_octets(a))),
            _ => None,
        };
        Target::checked(addr.ok_or(MalformedConvert::BadLength)?, r.u16()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::collection;
    use proptest::prelude::*;

    fn target(addr: &str, port: Option<u16>) -> Option<Target> {
        Some(Target { addr: addr.parse().unwrap(), port })
    }

    fn v4() -> Vec<u8> {
        Convert { destination: target("198.51.100.9", Some(443)), source: None }.write().to_vec()
    }

    #[test]
    fn m_set_means_last_and_d_set_means_source() {
        let both = Convert {
            destination: target("198.51.100.9", None),
            source: target("192.0.2.1", Some(5000)),
        };
        let octets = both.write();
        assert_eq!(
            (octets[6..8].to_vec(), octets[22..24].to_vec()),
            (vec![0, 2], vec![0, 1]),
            "T1"
        );
        assert_eq!((octets[5], octets[21]), (10, 8), "T2: neither magic nor padding is counted");
        let got = Convert::parse_octets(&octets).unwrap().unwrap();
        assert_eq!(got, Received { convert: both, octets: 28 });
    }

    #[test]
    fn application_data_follows_the_last_element() {
        let mut octets = v4();
        octets.extend(b"GET /");
        assert_eq!(Convert::parse_octets(&octets).unwrap().unwrap().octets, 16);
        assert_eq!(Convert::parse_octets(b"GET / HTTP/1.1"), Ok(None));
        assert_eq!(Convert::parse_octets(&[]), Ok(None));
    }

    #[test]
    fn every_malformed_chain_has_its_name() {
        let check = |change: fn(&mut Vec<u8>), why| {
            let mut octets = v4();
            change(&mut octets);
            assert_eq!(Convert::parse_octets(&octets), Err(why));
        };
        check(|o| o[7] = 0, MalformedConvert::Truncated); // no terminator
        check(|o| o.truncate(15), MalformedConvert::Truncated);
        check(|o| o[5] = 9, MalformedConvert::BadLength);
        check(|o| o[5] = 3, MalformedConvert::BadLength);
        check(
            |o| {
                o[7] = 0;
                o.extend(v4())
            },
            MalformedConvert::Duplicate,
        );
        check(
            |o| {
                o[7] = 0;
                o.extend([0; 16])
            },
            MalformedConvert::NoMagic,
        );
        check(|o| o[8] = 224, MalformedConvert::BadAddress);
        check(|o| o[8] = 127, MalformedConvert::BadAddress);
        check(|o| o[8..12].fill(0), MalformedConvert::BadAddress);
        check(|o| o[8..12].fill(255), MalformedConvert::BadAddress);
        check(|o| o[12..14].fill(0), MalformedConvert::BadAddress);
    }

    #[test]
    fn an_unknown_type_is_skipped_and_the_chain_goes_on() {
        let mut octets = vec![0xfa, 0xa8, 0xfa, 0xa8, 9, 7, 0, 0, 1, 2, 3, 0];
        octets.extend(v4());
        let got = Convert::parse_octets(&octets).unwrap().unwrap();
        assert_eq!(got.octets, 28);
        assert_eq!(got.convert.destination, target("198.51.100.9", Some(443)));
    }

    fn any_target() -> impl Strategy<Value = Target> {
        (any::<IpAddr>(), any::<Option<u16>>())
            .prop_filter_map("hosts only", |(addr, port)| Target::checked(addr, port).ok())
    }

    proptest! {
        #[test]
        fn a_chain_parses_to_what_was_written(destination in proptest::option::of(any_target()), source in proptest::option::of(any_target()), data in collection::vec(any::<u8>(), 0..20)) {
            let convert = Convert { destination, source };
            let mut octets = convert.write().to_vec();
            let len = octets.len() as u32;
            prop_assert_eq!(len % 4, 0);
            if len > 0 {
                octets.extend(data);
                prop_assert_eq!(Convert::parse_octets(&octets), Ok(Some(Received { convert, octets: len })));
                let pool = crate::buf::Pool::new(100, 7);
                let chain = Chain::copy_from(&pool, 0, &octets).unwrap();
                prop_assert_eq!(Convert::parse(&chain), Ok(Some(Received { convert, octets: len })));
            }
        }

        #[test]
        fn arbitrary_octets_do_no_harm(tail in collection::vec(any::<u8>(), 0..600)) {
            let octets = [&MAGIC.to_be_bytes()[..], &tail].concat();
            if let Ok(Some(got)) = Convert::parse_octets(&octets) {
                prop_assert!(got.octets as usize <= octets.len());
            }
        }
    }
}
