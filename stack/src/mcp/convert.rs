//! Explicit mode: what a uMCP writes and expects back, and what a dMCP makes of it (SPEC 3.3).
#![forbid(unsafe_code)]

use super::config::{McpConfig, SourceMode};
use super::policy::Source;
use crate::buf::Chain;
use crate::shard::Counters;
use crate::wire::plain_mode::{Convert, MAX_WRITTEN, Target};
use crate::wire::{Endpoint, FlowTuple};
use arrayvec::ArrayVec;

/// Information Elements as octets.
pub(super) type Elements = ArrayVec<u8, MAX_WRITTEN>;

/// The elements that ask a dMCP to connect `client` to `server`.
pub(super) fn elements(client: Endpoint, server: Endpoint, source: SourceMode) -> Elements {
    let target = |end: Endpoint| Some(Target { addr: end.addr, port: Some(end.port) });
    let convert = Convert {
        destination: target(server),
        source: if source == SourceMode::Keep { target(client) } else { None },
    };
    convert.write()
}

/// How a far end showed that it does not convert. A RST or silence is not among them: they say nothing about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Absence {
    /// The SYN's payload was not acknowledged.
    Ignored,
    /// It was, but taken for data: no echo.
    Eaten,
    /// The answer has no MP_CAPABLE.
    NoMptcp,
    /// The echo differs.
    EchoDiffers,
}

impl Absence {
    pub(super) fn count(self, counters: &mut Counters) {
        match self {
            Absence::Ignored => counters.ConvertIgnored += 1,
            Absence::Eaten => counters.ConvertEaten += 1,
            Absence::NoMptcp => counters.ConvertNoMptcp += 1,
            Absence::EchoDiffers => counters.ConvertEchoDiffers += 1,
        }
    }
}

/// What a far leg's handshake brought.
pub(super) struct FarAnswer {
    /// Payload of the SYN/ACK.
    pub text: Chain,
    /// Octets of our SYN's payload that were acknowledged.
    pub acked: u32,
    /// Whether this is MPTCP.
    pub mptcp: bool,
}

/// Checks that a dMCP took `sent` and echoed it; what follows the echo is the server's.
pub(super) fn check_echo(sent: &Elements, mut answer: FarAnswer) -> Result<Chain, Absence> {
    let len = sent.len() as u32;
    if !answer.mptcp {
        return Err(Absence::NoMptcp);
    }
    if answer.acked < len {
        return Err(Absence::Ignored);
    }
    if answer.text.is_empty() {
        return Err(Absence::Eaten);
    }
    if answer.text.len() < len {
        return Err(Absence::EchoDiffers);
    }
    let rest = answer.text.split_off(len);
    if answer.text.to_vec() == sent.as_slice() { Ok(rest) } else { Err(Absence::EchoDiffers) }
}

/// What a dMCP was asked for.
pub(super) struct Order {
    pub server: Endpoint,
    pub source: Source,
    /// The elements, to be echoed.
    pub echo: Chain,
    /// What follows them: the client's first octets for the server.
    pub early: Chain,
}

/// Why there is no order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoOrder {
    /// The payload does not begin with elements: this SYN asks for something else.
    NotExplicit,
    /// They are not usable, or forbidden. The connection is torn down without an answer.
    Unusable,
}

/// Reads the payload of a SYN that `flow` received; `owns` tells our own addresses: converting to them would loop.
pub(super) fn parse_order(
    config: &McpConfig,
    mode: SourceMode,
    flow: FlowTuple,
    text: &Chain,
    owns: impl Fn(core::net::IpAddr) -> bool,
    counters: &mut Counters,
) -> Result<Order, NoOrder> {
    let received = match Convert::parse(text) {
        Ok(None) => return Err(NoOrder::NotExplicit),
        Ok(Some(received)) => received,
        Err(_) => {
            counters.ConvertMalformed += 1;
            return Err(NoOrder::Unusable);
        }
    };
    let Some(destination) = received.convert.destination else {
        counters.ConvertMalformed += 1;
        return Err(NoOrder::Unusable);
    };
    let server = Endpoint::new(destination.addr, destination.port.unwrap_or(flow.local.port));
    if owns(server.addr) || server.addr.is_multicast() {
        counters.ConvertBadServer += 1;
        return Err(NoOrder::Unusable);
    }
    let source = match (mode, received.convert.source) {
        (SourceMode::Replace, _) | (SourceMode::Keep, None) => Source::Ours,
        (SourceMode::Keep, Some(source)) => {
            // BCP 38: whoever asks must not speak for others.
            if !config.preserved_sources.iter().any(|p| p.contains(source.addr)) {
                counters.ConvertBadSource += 1;
                return Err(NoOrder::Unusable);
            }
            Source::Of(Endpoint::new(source.addr, source.port.unwrap_or(flow.remote.port)))
        }
    };
    let mut echo = text.clone();
    let early = echo.split_off(received.octets);
    Ok(Order { server, source, echo, early })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;
    use crate::wire::Prefix;
    use alloc::vec;
    use alloc::vec::Vec;

    fn end(text: &str, port: u16) -> Endpoint {
        Endpoint::new(text.parse().unwrap(), port)
    }

    fn answer(pool: &Pool, text: &[u8], acked: u32, mptcp: bool) -> FarAnswer {
        FarAnswer { text: Chain::copy_from(pool, 0, text).unwrap(), acked, mptcp }
    }

    #[test]
    fn every_shape_of_absence_is_told_apart() {
        let pool = Pool::new(8, 256);
        let sent = elements(end("192.168.1.2", 4000), end("192.0.2.1", 80), SourceMode::Keep);
        let len = sent.len() as u32;
        let check = |text: &[u8], acked, mptcp| {
            check_echo(&sent, answer(&pool, text, acked, mptcp)).map(|rest| rest.to_vec())
        };
        let with_data: Vec<u8> = sent.iter().copied().chain(*b"hello").collect();
        let mut changed = sent.to_vec();
        changed[9] ^= 1;
        assert_eq!(check(&sent, len, true), Ok(vec![]));
        assert_eq!(check(&with_data, len, true), Ok(b"hello".to_vec()));
        assert_eq!(check(&sent, len, false), Err(Absence::NoMptcp));
        assert_eq!(check(b"", 0, true), Err(Absence::Ignored));
        assert_eq!(check(b"", len, true), Err(Absence::Eaten));
        assert_eq!(check(&changed, len, true), Err(Absence::EchoDiffers));
        assert_eq!(check(&sent[..10], len, true), Err(Absence::EchoDiffers));
        assert_eq!(pool.free(), 8);
    }

    fn order(config: &McpConfig, mode: SourceMode, sent: &[u8]) -> Result<Order, NoOrder> {
        let pool = Pool::new(8, 256);
        let flow = FlowTuple { local: end("10.0.0.2", 5123), remote: end("10.0.0.1", 4000) };
        let text = Chain::copy_from(&pool, 0, sent).unwrap();
        let own: core::net::IpAddr = "10.0.0.2".parse().unwrap();
        parse_order(config, mode, flow, &text, |a| a == own, &mut Counters::default())
    }

    #[test]
    fn a_source_is_honoured_only_inside_the_preserved_prefixes() {
        let mut config = McpConfig::default();
        let (client, server) = (end("192.168.1.2", 4000), end("192.0.2.1", 80));
        let sent = elements(client, server, SourceMode::Keep);
        assert_eq!(order(&config, SourceMode::Keep, &sent).err(), Some(NoOrder::Unusable));
        let got = order(&config, SourceMode::Replace, &sent).unwrap_or_else(|_| panic!());
        assert_eq!((got.server, got.source), (server, Source::Ours));
        config.preserved_sources.push(Prefix { addr: client.addr, len: 24 });
        let got = order(&config, SourceMode::Keep, &sent).unwrap_or_else(|_| panic!());
        assert_eq!(got.source, Source::Of(client));
    }

    #[test]
    fn a_dmcp_does_not_convert_to_itself_nor_to_places_without_hosts() {
        let config = McpConfig::default();
        let bad = ["10.0.0.2", "224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0"];
        for addr in bad {
            let sent = elements(end("192.168.1.2", 4000), end(addr, 80), SourceMode::Replace);
            let got = order(&config, SourceMode::Replace, &sent).err();
            assert_eq!(got, Some(NoOrder::Unusable), "{addr}");
        }
        assert_eq!(order(&config, SourceMode::Replace, b"GET /").err(), Some(NoOrder::NotExplicit));
    }

    #[test]
    fn what_follows_the_elements_is_for_the_server() {
        let config = McpConfig::default();
        let sent = elements(end("192.168.1.2", 4000), end("192.0.2.1", 80), SourceMode::Replace);
        let all: Vec<u8> = sent.iter().copied().chain(*b"GET /").collect();
        let got = order(&config, SourceMode::Replace, &all).unwrap_or_else(|_| panic!());
        assert_eq!((got.echo.to_vec(), got.early.to_vec()), (sent.to_vec(), b"GET /".to_vec()));
    }
}
