//! `[tcp]`, `[mptcp]` and `[limits]`.
#![forbid(unsafe_code)]

use super::Check;
use crate::config::schema::{self, Congestion, FastOpenRole, MtuProbing, Pacing, SynCookies};
use crate::config::value::Fault;
use crate::run::PortConfig;
use stack::mcp::McpConfig;
use stack::mptcp::MptcpConfig;
use stack::tcp::{self, Algorithm, CookiePolicy, EcnMode, FastOpenRoles, TcpConfig};
use std::time::Duration;

/// What a link is taken for whose MTU nobody says.
const DEFAULT_MTU: u32 = 1500;
/// IPv4 header 20, IPv6 header 40, TCP header 20 octets, none with options (RFC 6691 2).
const IPV4_HEADERS: u32 = 40;
const IPV6_HEADERS: u32 = 60;
/// What every host accepts (RFC 9293 3.7.1), and what fits in 65,535 octets of IPv6.
const MSS: std::ops::RangeInclusive<i64> = 536..=65_475;

/// No more than every path carries over IPv6 makes a base.
const BASE_MSS: std::ops::RangeInclusive<i64> = 216..=1_220;
/// Room for headers and options, and no more than Ethernet.
const MIN_PMTU: std::ops::RangeInclusive<i64> = 256..=1_500;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Check {
    pub(super) fn tcp(&mut self, tcp: &schema::Tcp) -> TcpConfig {
        let default = McpConfig::default().tcp;
        let min_rto =
            self.duration("tcp.min-rto", tcp.min_rto.as_ref(), ms(5)..=s(10), default.min_rto);
        let max_rto =
            self.duration("tcp.max-rto", tcp.max_rto.as_ref(), s(1)..=s(120), default.max_rto);
        if let Some(text) = tcp.min_rto.as_ref().or(tcp.max_rto.as_ref())
            && min_rto > max_rto
        {
            let found = format!("min-rto {min_rto:?} exceeds max-rto {max_rto:?}");
            let fault = Fault::new(found, "min-rto <= max-rto", "correct one of the two");
            self.error(text.span(), "tcp.min-rto", fault);
        }
        if let (Some(Congestion::Bbr), Some(pacing)) = (tcp.congestion_control, &tcp.pacing)
            && *pacing.get_ref() == Pacing::Off
        {
            let fault =
                Fault::new("off with bbr", "auto or on", "BBR sends at a rate: leave pacing out");
            self.error(pacing.span(), "tcp.pacing", fault);
        }
        let delayed = ms(0)..=ms(500); // RFC 9293 MUST-40: less than 0.5 seconds
        let retries = 1..=15;
        let plays = |role| tcp.fast_open.as_ref().is_some_and(|roles| roles.contains(&role));
        TcpConfig {
            congestion: match tcp.congestion_control.unwrap_or_default() {
                Congestion::Cubic => Algorithm::Cubic,
                Congestion::Reno => Algorithm::NewReno,
                Congestion::Bbr => Algorithm::Bbr,
            },
            pacing: match tcp.pacing.as_ref().map(|pacing| *pacing.get_ref()).unwrap_or_default() {
                Pacing::Auto => tcp::Pacing::Auto,
                Pacing::On => tcp::Pacing::On,
                Pacing::Off => tcp::Pacing::Off,
            },
            ecn: match tcp.ecn.unwrap_or_default() {
                schema::EcnMode::Off => EcnMode::Off,
                schema::EcnMode::Accept => EcnMode::Accept,
                schema::EcnMode::On => EcnMode::On,
                schema::EcnMode::Accurate => EcnMode::Accurate,
            },
            abe: tcp.abe.unwrap_or(default.abe),
            fast_open: FastOpenRoles {
                client: plays(FastOpenRole::Client),
                server: plays(FastOpenRole::Server),
            },
            fast_open_pending: self.number(
                "tcp.fast-open-pending",
                tcp.fast_open_pending.as_ref(),
                1..=1_000_000,
                default.fast_open_pending,
            ),
            syn_cookies: match tcp.syn_cookies.unwrap_or_default() {
                SynCookies::Off => CookiePolicy::Off,
                SynCookies::Auto => CookiePolicy::Auto,
                SynCookies::Always => CookiePolicy::Always,
            },
            receive_buffer_default: self.octets(
                "tcp.rmem-default",
                tcp.rmem_default.as_ref(),
                4 << 10..=16 << 20,
                default.receive_buffer_default,
            ),
            send_buffer_default: self.octets(
                "tcp.wmem-default",
                tcp.wmem_default.as_ref(),
                4 << 10..=16 << 20,
                default.send_buffer_default,
            ),
            timestamps: tcp.timestamps.unwrap_or(true),
            sack: tcp.sack.unwrap_or(true),
            delayed_ack: self.duration(
                "tcp.delayed-ack",
                tcp.delayed_ack.as_ref(),
                delayed,
                default.delayed_ack,
            ),
            min_rto,
            max_rto,
            syn_retries: self.number(
                "tcp.syn-retries",
                tcp.syn_retries.as_ref(),
                retries.clone(),
                default.syn_retries,
            ),
            data_retries: self.number(
                "tcp.retries2",
                tcp.retries2.as_ref(),
                retries,
                default.data_retries,
            ),
            time_wait: self.duration(
                "tcp.time-wait",
                tcp.time_wait.as_ref(),
                s(1)..=s(240),
                default.time_wait,
            ),
            // MUST-24, MUST-27
            keepalive: tcp.keepalive_time.as_ref().map(|text| {
                let range = s(10)..=s(7 * 24 * 3600);
                self.duration("tcp.keepalive-time", Some(text), range, s(7200))
            }),
            user_timeout: tcp.user_timeout.as_ref().map(|text| {
                let range = s(1)..=s(7 * 24 * 3600);
                self.duration("tcp.user-timeout", Some(text), range, s(100))
            }),
            nagle: tcp.nagle.unwrap_or(default.nagle),
            mss: self.number("tcp.mss", tcp.mss.as_ref(), MSS, default.mss),
            mtu_probing: match tcp.mtu_probing.unwrap_or_default() {
                MtuProbing::Off => tcp::MtuProbing::Off,
                MtuProbing::Blackhole => tcp::MtuProbing::BlackHole,
                MtuProbing::Always => tcp::MtuProbing::Always,
            },
            base_mss: self.number(
                "tcp.base-mss",
                tcp.base_mss.as_ref(),
                BASE_MSS,
                default.base_mss,
            ),
            min_pmtu: self.number(
                "tcp.min-pmtu",
                tcp.min_pmtu.as_ref(),
                MIN_PMTU,
                default.min_pmtu,
            ),
            ..default
        }
    }

    pub(super) fn mptcp(
        &mut self,
        mptcp: &schema::Mptcp,
        limits: &schema::Limits,
        tcp: &TcpConfig,
    ) -> MptcpConfig {
        let default = MptcpConfig::default();
        MptcpConfig {
            tcp: tcp.clone(),
            checksum: mptcp.checksum_enabled.unwrap_or(default.checksum),
            syn_retrans_before_tcp_fallback: self.number(
                "mptcp.syn-retrans-before-tcp-fallback",
                mptcp.syn_retrans_before_tcp_fallback.as_ref(),
                1..=15,
                default.syn_retrans_before_tcp_fallback,
            ),
            add_addr_timeout: self.duration(
                "mptcp.add-addr-timeout",
                mptcp.add_addr_timeout.as_ref(),
                s(1)..=s(3600),
                default.add_addr_timeout,
            ),
            add_addr_retries: self.number(
                "mptcp.add-addr-retries",
                mptcp.add_addr_retries.as_ref(),
                0..=10,
                default.add_addr_retries,
            ),
            join_delay: self.duration(
                "mptcp.join-delay",
                mptcp.join_delay.as_ref(),
                Duration::ZERO..=s(60),
                default.join_delay,
            ),
            join_after: self.size(
                "mptcp.join-after",
                mptcp.join_after.as_ref(),
                0..=1 << 30,
                default.join_after.into(),
            ) as u32,
            close_timeout: self.duration(
                "mptcp.close-timeout",
                mptcp.close_timeout.as_ref(),
                s(1)..=s(3600),
                default.close_timeout,
            ),
            max_subflows: self.number(
                "limits.subflows",
                limits.subflows.as_ref(),
                1..=8,
                default.max_subflows,
            ),
            ..default
        }
    }

    /// A size of less than 4 GiB.
    fn octets(
        &mut self,
        key: &str,
        text: Option<&schema::Text>,
        range: std::ops::RangeInclusive<u64>,
        default: u32,
    ) -> u32 {
        u32::try_from(self.size(key, text, range, default.into())).unwrap_or(u32::MAX)
    }

    /// Puts `[limits]` into `mcp`; the buffers of both kinds of leg follow from one key.
    pub(super) fn limits(&mut self, limits: &schema::Limits, mcp: &mut McpConfig) {
        let connections = 1..=4_000_000;
        mcp.max_connections = self.number(
            "limits.connections",
            limits.connections.as_ref(),
            connections.clone(),
            mcp.max_connections,
        );
        mcp.max_half_open = self.number(
            "limits.half-open",
            limits.half_open.as_ref(),
            connections.clone(),
            mcp.max_half_open,
        );
        mcp.max_half_open_per_source = self.number(
            "limits.half-open-per-source",
            limits.half_open_per_source.as_ref(),
            connections,
            mcp.max_half_open,
        );
        let range = 64 << 10..=256 << 20;
        mcp.buffer = self.octets("limits.buffer", limits.buffer.as_ref(), range, mcp.buffer);
        mcp.tcp.receive_buffer = mcp.buffer;
        mcp.tcp.send_buffer = mcp.buffer;
        mcp.mptcp.tcp.receive_buffer = mcp.buffer;
        mcp.mptcp.send_buffer = mcp.buffer;
        mcp.mptcp.receive_buffer = mcp.buffer;
    }
}

/// What the MSS follows from.
#[derive(Clone, Debug)]
pub struct MssRule {
    /// IP and TCP headers.
    headers: u32,
    /// `tcp.mss`.
    asked: Option<u16>,
    /// `port.mtu` of each port.
    mtus: Vec<Option<u32>>,
}

impl MssRule {
    pub(super) fn new(file: &schema::File, mcp: &McpConfig, ports: &[PortConfig]) -> MssRule {
        // A rule without prefixes takes IPv6 too.
        let owns = ports.iter().any(|p| p.owned.iter().any(|o| o.addr.is_ipv6()));
        let takes = mcp.rules.iter().any(|r| match (r.from, r.to) {
            (None, None) => true,
            (from, to) => from.or(to).is_some_and(|p| p.addr.is_ipv6()),
        });
        let mtu = |port: &schema::Port| {
            port.mtu.as_ref().and_then(|mtu| u32::try_from(*mtu.get_ref()).ok())
        };
        MssRule {
            headers: if owns || takes { IPV6_HEADERS } else { IPV4_HEADERS },
            asked: file.tcp.mss.as_ref().and_then(|mss| u16::try_from(*mss.get_ref()).ok()),
            mtus: file.ports.iter().map(|port| mtu(port.get_ref())).collect(),
        }
    }

    /// What the narrowest port takes, or less if configured so. `devices` has the MTU in octets of each port's device, as
    /// far as it is known.
    pub fn mss(&self, devices: &[u32]) -> u16 {
        // SHLD-6: the narrowest decides.
        let device = |port: usize| devices.get(port).copied().unwrap_or(DEFAULT_MTU);
        let mtus = self.mtus.iter().enumerate();
        let narrowest =
            mtus.map(|(port, mtu)| mtu.map_or(device(port), |mtu| mtu.min(device(port)))).min();
        let room = narrowest.unwrap_or(DEFAULT_MTU).saturating_sub(self.headers);
        let fits = u16::try_from(room).unwrap_or(u16::MAX);
        self.asked.map_or(fits, |asked| asked.min(fits))
    }
}
