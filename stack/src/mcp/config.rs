//! What a conversion point is told: plain data, made by the caller (the data plane reads it from TOML).
#![forbid(unsafe_code)]

use crate::mptcp::MptcpConfig;
use crate::tcp::TcpConfig;
use crate::time::Duration;
use crate::wire::{Endpoint, FlowTuple, Prefix};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::ops::RangeInclusive;

/// Everything the sessions of a shard need to know. All shards of an appliance get equal copies.
#[derive(Clone, Debug)]
pub struct McpConfig {
    /// TCP legs. Their MSS is clamped further so that one segment in is one segment out (see [`McpConfig::leg_mss`]).
    pub tcp: TcpConfig,
    /// MPTCP legs.
    pub mptcp: MptcpConfig,
    /// The dMCPs that a rule may convert to.
    pub remotes: Vec<RemoteMcp>,
    /// What is offered on addresses of our own.
    pub services: Vec<Service>,
    /// What happens to intercepted SYNs: first match wins, no match is [`Action::Bypass`].
    pub rules: Vec<Rule>,
    /// Sources of TCP legs whose source is replaced. A client always gets the same one of its family.
    pub source_addresses: Vec<IpAddr>,
    /// A source that a uMCP names is honoured only inside these (BCP 38).
    pub preserved_sources: Vec<Prefix>,
    /// Octets that a window grows to, and a send queue, at most; less when the pool gets scarce.
    pub buffer: u32,
    /// Connections at a time, half-open ones included.
    pub max_connections: u32,
    /// Connections at a time of which a leg is not up yet; those of clients that returned a SYN cookie are not counted.
    pub max_half_open: u32,
    /// Of them from one source, an address of IPv4 or a /64 of IPv6; those that returned a cookie are counted.
    pub max_half_open_per_source: u32,
    /// How long a dMCP that does not convert is left alone.
    pub negative_cache_ttl: Duration,
}

/// Twice what 1 Gbit/s over 100 ms has under way, and then some.
const MAX_BUFFER: u32 = 32 << 20;
/// `net.ipv4.tcp_rmem`'s window at the beginning: what two paths send in their first round trips.
const FIRST_WINDOW: u32 = 256 << 10;
/// `net.ipv4.tcp_wmem`'s send queue at the beginning; the first congestion window alone asks for more.
const FIRST_SEND_BUFFER: u32 = 16 << 10;

impl Default for McpConfig {
    /// Windows and send queues begin small: what they grow to is measured.
    fn default() -> McpConfig {
        let (receive_buffer, send_buffer) = (MAX_BUFFER, MAX_BUFFER);
        let tcp = TcpConfig {
            receive_buffer,
            receive_buffer_default: FIRST_WINDOW,
            send_buffer,
            send_buffer_default: FIRST_SEND_BUFFER,
            ..TcpConfig::default()
        };
        McpConfig {
            tcp: tcp.clone(),
            mptcp: MptcpConfig { tcp, receive_buffer, send_buffer, ..MptcpConfig::default() },
            remotes: Vec::new(),
            services: Vec::new(),
            rules: Vec::new(),
            source_addresses: Vec::new(),
            preserved_sources: Vec::new(),
            buffer: MAX_BUFFER,
            max_connections: 65_536,
            max_half_open: 4_096,
            max_half_open_per_source: u32::MAX,
            negative_cache_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// A dMCP that we send explicit-mode connections to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteMcp {
    /// The name that rules and counters use.
    pub name: String,
    /// Where it listens; the first SYN goes to the first one that a local address can reach.
    pub endpoints: Vec<Endpoint>,
}

/// Something offered on an address of our own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Service {
    /// A dMCP: MPTCP with MP_CONVERT in here, TCP to the server it names out.
    Explicit {
        /// The address it listens on.
        addr: IpAddr,
        /// The port; `None` means any, and an Information Element without a port then means the port of the SYN.
        port: Option<u16>,
        /// Whose address the server sees.
        source: SourceMode,
    },
    /// A fixed relay: whatever comes in goes to `server`.
    Relay {
        /// Where TCP and MPTCP are accepted.
        listen: Endpoint,
        /// Where it goes.
        server: Endpoint,
        /// How it goes there.
        connect: Transport,
    },
}

/// What the far leg speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// MPTCP, or TCP if the server turns out not to speak it.
    Mptcp,
}

/// What to do with SYNs that pass through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The name that counters and `explain` use.
    pub name: String,
    /// Where the SYN comes from; `None` is anywhere.
    pub from: Option<Prefix>,
    /// Where it goes; `None` is anywhere.
    pub to: Option<Prefix>,
    /// The destination port.
    pub ports: RangeInclusive<u16>,
    /// What happens.
    pub action: Action,
}

impl Rule {
    /// Whether a SYN of `flow` (seen from our side: `local` is the server) falls under this rule.
    pub fn matches(&self, flow: FlowTuple) -> bool {
        self.from.is_none_or(|p| p.contains(flow.remote.addr))
            && self.to.is_none_or(|p| p.contains(flow.local.addr))
            && self.ports.contains(&flow.local.port)
    }
}

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// TCP in, MPTCP with MP_CONVERT to a dMCP out.
    Convert {
        /// Index into [`McpConfig::remotes`].
        remote: usize,
        /// Whether the dMCP is asked to use the client's address.
        source: SourceMode,
    },
    /// TCP in, MPTCP straight to the server out; TCP if the server does not speak it.
    Direct {
        /// Whose address the server sees.
        source: SourceMode,
    },
    /// MPTCP in, TCP to the server out.
    Terminate {
        /// Whose address the server sees.
        source: SourceMode,
    },
    /// Not ours: the packet goes on as it came.
    Bypass,
    /// RST.
    Reject,
}

/// Whose address the far end sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceMode {
    /// The client's.
    Keep,
    /// One of ours.
    Replace,
}

/// The octets a DSS takes at most: header 4, DATA_ACK 8, DSN 8, SSN 4, length 2, checksum 2 (RFC 8684 3.3).
pub const DSS_ROOM: u16 = 28;

impl McpConfig {
    /// The MSS of a TCP leg: what it receives in one segment fits in one segment of an MPTCP leg.
    pub fn leg_mss(&self) -> u16 {
        self.tcp.mss.min(self.mptcp.tcp.mss.saturating_sub(DSS_ROOM)).max(MIN_MSS)
    }

    /// The first rule that `flow` falls under, and its position. `flow.local` is the server, `flow.remote` the client.
    /// Costs one comparison per rule.
    pub fn rule_for(&self, flow: FlowTuple) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, rule)| rule.matches(flow))
    }

    /// The service that a SYN to `to` asks for, and its position.
    pub fn service_for(&self, to: Endpoint) -> Option<(usize, &Service)> {
        self.services.iter().enumerate().find(|(_, service)| match service {
            Service::Explicit { addr, port, .. } => {
                *addr == to.addr && port.is_none_or(|port| port == to.port)
            }
            Service::Relay { listen, .. } => *listen == to,
        })
    }
}

/// The smallest MSS that IPv4 hosts have to accept (RFC 9293 3.7.1): clamping goes no lower.
const MIN_MSS: u16 = 536;

/// Which part of a configuration decides about a SYN, for people who ask why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Explanation<'a> {
    /// It is for a service of ours.
    Service(usize, &'a Service),
    /// A rule takes it.
    Rule(usize, &'a Rule),
    /// Nothing matches: it goes on as it came.
    NoMatch,
}

/// What decides about a SYN of `flow`, where `flow.local` is the destination and `flow.remote` the source.
pub fn explain(config: &McpConfig, flow: FlowTuple) -> Explanation<'_> {
    if let Some((i, service)) = config.service_for(flow.local) {
        Explanation::Service(i, service)
    } else if let Some((i, rule)) = config.rule_for(flow) {
        Explanation::Rule(i, rule)
    } else {
        Explanation::NoMatch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn flow(client: &str, server: &str, port: u16) -> FlowTuple {
        FlowTuple {
            local: Endpoint::new(server.parse().unwrap(), port),
            remote: Endpoint::new(client.parse().unwrap(), 40_000),
        }
    }

    fn config() -> McpConfig {
        let lan = Prefix { addr: "192.168.1.0".parse().unwrap(), len: 24 };
        let rule = |name: &str, from, ports, action| Rule {
            name: name.into(),
            from,
            to: None,
            ports,
            action,
        };
        McpConfig {
            services: vec![Service::Explicit {
                addr: "10.0.1.2".parse().unwrap(),
                port: Some(5123),
                source: SourceMode::Replace,
            }],
            rules: vec![
                rule("no-ssh", Some(lan), 22..=22, Action::Bypass),
                rule("lan", Some(lan), 1..=65_535, Action::Reject),
            ],
            ..McpConfig::default()
        }
    }

    #[test]
    fn the_first_matching_rule_wins() {
        let config = config();
        let name = |flow| config.rule_for(flow).map(|(_, rule)| rule.name.as_str());
        assert_eq!(name(flow("192.168.1.2", "192.0.2.1", 22)), Some("no-ssh"));
        assert_eq!(name(flow("192.168.1.2", "192.0.2.1", 80)), Some("lan"));
        assert_eq!(name(flow("192.168.2.2", "192.0.2.1", 80)), None);
        assert_eq!(name(flow("fd00::1", "fd00::2", 80)), None, "prefixes have a family");
    }

    #[test]
    fn a_service_comes_before_any_rule() {
        let config = config();
        let at = |server, port| explain(&config, flow("192.168.1.2", server, port));
        assert!(matches!(at("10.0.1.2", 5123), Explanation::Service(0, _)));
        assert!(matches!(at("10.0.1.2", 80), Explanation::Rule(1, _)));
    }

    #[test]
    fn a_tcp_leg_leaves_room_for_the_dss() {
        let mut config = config();
        config.tcp.mss = 1460;
        config.mptcp.tcp.mss = 1460;
        assert_eq!(config.leg_mss(), 1432);
        config.mptcp.tcp.mss = 500;
        assert_eq!(config.leg_mss(), 536, "never below what every host accepts");
    }
}
