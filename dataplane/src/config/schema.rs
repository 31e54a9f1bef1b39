//! The configuration file as written: one struct per table, spans kept for messages.
//!
//! Keys have dashes. Where the kernel has a sysctl or an `ip mptcp` word for the same thing, the key is that word.
//! Addresses, prefixes, durations and sizes are text here; [`super::check`] gives them meaning, so that all that is
//! wrong with them is reported at once.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::fmt;
use toml::Spanned;

/// A text with its place in the file.
pub type Text = Spanned<String>;

/// A whole configuration file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// The process.
    #[serde(default)]
    pub node: Node,
    /// Network devices.
    #[serde(default, rename = "port", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Spanned<Port>>,
    /// Static routes.
    #[serde(default, rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Spanned<Route>>,
    /// MPTCP's local addresses.
    #[serde(default, rename = "path", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<Spanned<Path>>,
    /// Conversion points that this one sends to.
    #[serde(default, rename = "remote", skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<Spanned<Remote>>,
    /// What is answered on owned addresses.
    #[serde(default, rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Spanned<Service>>,
    /// What becomes of connections that pass through.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Spanned<Rule>>,
    /// Replies to take back where source addresses are kept.
    #[serde(default, rename = "return", skip_serializing_if = "Vec::is_empty")]
    pub returns: Vec<Spanned<Return>>,
    /// Source addresses and discovery.
    #[serde(default)]
    pub convert: Convert,
    /// TCP.
    #[serde(default)]
    pub tcp: Tcp,
    /// MPTCP.
    #[serde(default)]
    pub mptcp: Mptcp,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

impl File {
    /// Names of the tables in which the two differ.
    pub fn differs(&self, other: &File) -> Vec<&'static str> {
        let differ = [
            ("node", self.node != other.node),
            ("port", self.ports != other.ports),
            ("route", self.routes != other.routes),
            ("path", self.paths != other.paths),
            ("remote", self.remotes != other.remotes),
            ("service", self.services != other.services),
            ("rule", self.rules != other.rules),
            ("return", self.returns != other.returns),
            ("convert", self.convert != other.convert),
            ("tcp", self.tcp != other.tcp),
            ("mptcp", self.mptcp != other.mptcp),
            ("limits", self.limits != other.limits),
        ];
        differ.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

/// `[node]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Node {
    /// What this node is called in logs and in the default path of the control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// Path of the control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Text>,
    /// Least severe level that is logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogLevel>,
    /// How many workers share the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Spanned<Workers>>,
    /// Cores that they are bound to, one each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cores: Vec<Spanned<i64>>,
    /// What the worker does when there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_mode: Option<NodeIoMode>,
    /// How long an adaptive worker looks at its ports again before it sleeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spin: Option<Text>,
    /// TUN device that gives unclaimed packets back to the kernel; empty: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tun: Option<Text>,
}

/// `node.workers`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Workers {
    /// As the machine suggests.
    #[default]
    Auto,
    /// So many.
    Number(i64),
}

impl Serialize for Workers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Workers::Auto => serializer.serialize_str("auto"),
            Workers::Number(number) => serializer.serialize_i64(*number),
        }
    }
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Workers, D::Error> {
        deserializer.deserialize_any(WorkersVisitor)
    }
}

struct WorkersVisitor;

impl serde::de::Visitor<'_> for WorkersVisitor {
    type Value = Workers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number or \"auto\"")
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Workers, E> {
        Ok(Workers::Number(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Workers, E> {
        match text {
            "auto" => Ok(Workers::Auto),
            _ => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
        }
    }
}

/// `node.io-mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeIoMode {
    /// Never sleeps.
    BusyPoll,
    /// Sleeps at once.
    Interrupt,
    /// Looks again for `spin`, then sleeps.
    #[default]
    Adaptive,
}

/// `node.log`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// What stops Plait.
    Error,
    /// What an operator should look at.
    Warn,
    /// Starting and stopping.
    #[default]
    Info,
    /// Connections.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word in the file, which is also `tracing`'s.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// `[[port]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Port {
    /// What the rest of the file, logs and counters call it.
    pub name: Text,
    /// The network device.
    pub device: Text,
    /// How it is driven.
    #[serde(default)]
    pub io: PortIo,
    /// AF_XDP queues to bind; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<Spanned<i64>>,
    /// Addresses that Plait owns there, each with the length of its network's prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Text>,
    /// Default gateway, at most one per family.
    #[serde(default, skip_serializing_if = "OneOrMany::is_empty")]
    pub gateway: OneOrMany,
    /// Largest IP packet sent there; absent: the device's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Spanned<i64>>,
}

/// `port.io`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortIo {
    /// Whatever suits the device best.
    #[default]
    Auto,
    /// AF_XDP sockets.
    AfXdp,
    /// An AF_PACKET socket with virtio-net headers.
    AfPacket,
    /// `pnet_datalink`.
    Pnet,
    /// A TAP device.
    Tap,
    /// A TUN device.
    Tun,
}

/// `[[route]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Route {
    /// Destinations.
    pub to: Text,
    /// Name of the port they leave by.
    pub port: Text,
    /// Next hop; absent: the destinations are neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Text>,
}

/// `[[path]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Path {
    /// One of a port's addresses.
    pub address: Text,
    /// What it is for.
    #[serde(default)]
    pub flags: Vec<PathFlag>,
    /// Remote prefixes that this address can talk to; empty: all.
    #[serde(default, skip_serializing_if = "OneOrMany::is_empty")]
    pub reach: OneOrMany,
}

/// `path.flags`, as in `ip mptcp endpoint`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathFlag {
    /// Announced by ADD_ADDR.
    Signal,
    /// Joins are opened from it.
    Subflow,
    /// Used when no other works.
    Backup,
    /// Joins are opened from it to every address that the peer announces.
    Fullmesh,
}

/// `[[remote]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Remote {
    /// What rules call it.
    pub name: Text,
    /// Its addresses; the first SYN goes to the first.
    pub addresses: Vec<Text>,
    /// The port of its explicit service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Spanned<i64>>,
}

/// `[[service]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Which kind, and so which of the other keys it takes.
    pub mode: Spanned<ServiceMode>,
    /// explicit: an owned address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Text>,
    /// explicit: the port; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Spanned<i64>>,
    /// explicit: whose address servers see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Spanned<Source>>,
    /// relay: an owned address and a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Text>,
    /// relay: address and port of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Text>,
    /// relay: how the server is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Spanned<Transport>>,
}

/// `service.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceMode {
    /// MPTCP with MP_CONVERT here, TCP to the server it names.
    Explicit,
    /// TCP or MPTCP here, a configured server behind.
    Relay,
}

/// `service.connect`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// MPTCP over all paths.
    Mptcp,
}

/// `source` of rules and services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The client's own address.
    Keep,
    /// One of `convert.source-addresses`.
    #[default]
    Replace,
}

/// `[[rule]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// What counters call it.
    pub name: Text,
    /// Name of the port where the connections arrive.
    pub port: Text,
    /// Clients; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Text>,
    /// Servers; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Text>,
    /// Ports of the servers, such as `"22, 8000-8100"`; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_ports: Option<Text>,
    /// What becomes of them.
    pub action: Spanned<RuleAction>,
    /// convert: name of the remote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Text>,
    /// convert, direct, terminate: whose address servers see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Spanned<Source>>,
}

/// `rule.action`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// TCP here, MPTCP to a remote conversion point.
    Convert,
    /// TCP here, MPTCP to the server itself.
    Direct,
    /// MPTCP here, TCP to the server.
    Terminate,
    /// Left to the kernel.
    Bypass,
    /// Refused with RST.
    Reject,
}

impl RuleAction {
    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            RuleAction::Convert => "convert",
            RuleAction::Direct => "direct",
            RuleAction::Terminate => "terminate",
            RuleAction::Bypass => "bypass",
            RuleAction::Reject => "reject",
        }
    }
}

/// `[[return]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Return {
    /// Name of the port where servers' replies arrive.
    pub port: Text,
    /// Clients whose addresses were kept.
    pub to: OneOrMany,
}

/// `[convert]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Convert {
    /// Owned addresses that servers see where the source is replaced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_addresses: Vec<Text>,
    /// Prefixes in which a peer may name a client's address as source (BCP 38).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preserved_sources: Vec<Text>,
    /// For how long a remote that does not convert is avoided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_cache_ttl: Option<Text>,
}

/// `[tcp]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Tcp {
    /// As `net.ipv4.tcp_congestion_control`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<Congestion>,
    /// Whether text leaves at a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pacing: Option<Spanned<Pacing>>,
    /// As `net.ipv4.tcp_ecn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecn: Option<EcnMode>,
    /// Reduce the window less for a mark than for a loss (RFC 8511).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abe: Option<bool>,
    /// As `net.ipv4.tcp_timestamps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamps: Option<bool>,
    /// As `net.ipv4.tcp_sack`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sack: Option<bool>,
    /// As `net.ipv4.tcp_syn_retries`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_retries: Option<Spanned<i64>>,
    /// As `net.ipv4.tcp_retries2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries2: Option<Spanned<i64>>,
    /// Least retransmission timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rto: Option<Text>,
    /// Greatest retransmission timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rto: Option<Text>,
    /// Longest that an acknowledgement is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delayed_ack: Option<Text>,
    /// Length of TIME-WAIT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_wait: Option<Text>,
    /// The second value of `net.ipv4.tcp_rmem`: the window that a connection begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rmem_default: Option<Text>,
    /// The second value of `net.ipv4.tcp_wmem`: what a send queue holds at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wmem_default: Option<Text>,
    /// As `net.ipv4.tcp_keepalive_time`; absent: no keepalives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_time: Option<Text>,
    /// As the socket option `TCP_USER_TIMEOUT`; absent: the retransmissions are counted only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_timeout: Option<Text>,
    /// Nagle's algorithm: the opposite of the socket option `TCP_NODELAY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nagle: Option<bool>,
    /// As `net.ipv4.tcp_fastopen`, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_open: Option<Vec<FastOpenRole>>,
    /// Connections at a time that took text from a SYN and whose client has not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_open_pending: Option<Spanned<i64>>,
    /// As `net.ipv4.tcp_syncookies`, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_cookies: Option<SynCookies>,
    /// Greatest segment size announced; absent: from the ports' MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mss: Option<Spanned<i64>>,
    /// As `net.ipv4.tcp_mtu_probing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_probing: Option<MtuProbing>,
    /// As `net.ipv4.tcp_base_mss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_mss: Option<Spanned<i64>>,
    /// As `net.ipv4.route.min_pmtu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pmtu: Option<Spanned<i64>>,
}

/// `tcp.mtu-probing`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MtuProbing {
    /// 0.
    Off,
    /// 1.
    #[default]
    Blackhole,
    /// 2.
    Always,
}

/// `tcp.pacing`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pacing {
    /// With the congestion controls that are made for it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// `tcp.congestion-control`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// RFC 9438.
    #[default]
    Cubic,
    /// RFC 5681 and 6582, which the kernel calls `reno`.
    Reno,
    /// BBR version 3 (draft-ietf-ccwg-bbr); the kernel's `bbr` is version 1.
    Bbr,
}

/// `tcp.ecn`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EcnMode {
    /// `net.ipv4.tcp_ecn=0`.
    Off,
    /// Only if the peer asks: `net.ipv4.tcp_ecn=2`.
    #[default]
    Accept,
    /// Ask for RFC 3168: `net.ipv4.tcp_ecn=1`.
    On,
    /// Ask for RFC 9768: `net.ipv4.tcp_ecn=3`.
    Accurate,
}

/// `tcp.fast-open`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FastOpenRole {
    /// Text in our SYNs.
    Client,
    /// Text taken from SYNs.
    Server,
}

/// `tcp.syn-cookies`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SynCookies {
    /// Never.
    Off,
    /// When there are as many half-open connections as allowed.
    #[default]
    Auto,
    /// For every SYN that can be answered so.
    Always,
}

/// `[mptcp]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Mptcp {
    /// As `net.mptcp.checksum_enabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum_enabled: Option<bool>,
    /// As `net.mptcp.syn_retrans_before_tcp_fallback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_retrans_before_tcp_fallback: Option<Spanned<i64>>,
    /// As `net.mptcp.add_addr_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_addr_timeout: Option<Text>,
    /// How often an ADD_ADDR without echo is sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_addr_retries: Option<Spanned<i64>>,
    /// How old a connection is before further subflows are opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_delay: Option<Text>,
    /// Octets moved before they are opened at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_after: Option<Text>,
    /// As `net.mptcp.close_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_timeout: Option<Text>,
}

/// `[limits]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Connections at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Spanned<i64>>,
    /// Connections at a time that are not established on both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open: Option<Spanned<i64>>,
    /// Of them, those of one source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open_per_source: Option<Spanned<i64>>,
    /// Subflows per connection, as in `ip mptcp limits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subflows: Option<Spanned<i64>>,
    /// Most octets that a window or a send queue grows to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer: Option<Text>,
    /// Memory for packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Text>,
    /// Octets per frame of that memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame_size: Option<Spanned<i64>>,
}

/// A text or a list of texts.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct OneOrMany(pub Vec<Text>);

impl OneOrMany {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<OneOrMany, D::Error> {
        let value: Spanned<TextOrList> = Spanned::deserialize(deserializer)?;
        let span = value.span();
        Ok(OneOrMany(match value.into_inner() {
            TextOrList::Text(text) => vec![Spanned::new(span, text)],
            TextOrList::List(texts) => texts,
        }))
    }
}

enum TextOrList {
    Text(String),
    List(Vec<Text>),
}

impl<'de> Deserialize<'de> for TextOrList {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<TextOrList, D::Error> {
        deserializer.deserialize_any(TextOrListVisitor)
    }
}

struct TextOrListVisitor;

impl<'de> serde::de::Visitor<'de> for TextOrListVisitor {
    type Value = TextOrList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TextOrList, E> {
        Ok(TextOrList::Text(text.to_owned()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<TextOrList, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = seq.next_element()? {
            texts.push(text);
        }
        Ok(TextOrList::List(texts))
    }
}
