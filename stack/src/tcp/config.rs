//! What a TCP flow is configured with.
#![forbid(unsafe_code)]

use super::{CookiePolicy, FastOpenRoles, Pacing};
use crate::time::Duration;

/// Which congestion control a flow runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Algorithm {
    /// RFC 5681 and RFC 6582.
    NewReno,
    /// RFC 9438.
    #[default]
    Cubic,
    /// BBR version 3 (draft-ietf-ccwg-bbr).
    Bbr,
}

impl Algorithm {
    /// As the kernel calls it (`net.ipv4.tcp_congestion_control`).
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::NewReno => "reno",
            Algorithm::Cubic => "cubic",
            Algorithm::Bbr => "bbr",
        }
    }
}

/// How far a flow uses explicit congestion notification; as `net.ipv4.tcp_ecn` 0, 2, 1 and 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EcnMode {
    /// Not at all.
    Off,
    /// When the peer asks for it: RFC 3168 or RFC 9768, as it asks.
    #[default]
    Accept,
    /// Ask for RFC 3168.
    On,
    /// Ask for RFC 9768 (AccECN); a peer that knows only RFC 3168 answers with that.
    Accurate,
}

/// How the right edge of the receive window moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RightEdge {
    /// Once offered, always offered (RFC 9293 3.8.6: do not shrink the window).
    #[default]
    NeverRetreats,
    /// The window belongs to something larger than this flow (RFC 8684 3.3.1): exactly what the owner set is
    /// advertised, relative to this flow's `rcv.nxt`; text up to the largest edge ever offered is accepted.
    Shared,
}

/// Whether a flow finds out by itself what its path carries (RFC 4821); `net.ipv4.tcp_mtu_probing` 0, 1 and 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MtuProbing {
    /// It believes routers only.
    Off,
    /// When segments vanish without a word.
    #[default]
    BlackHole,
    /// From the beginning: it starts with [`TcpConfig::base_mss`].
    Always,
}

impl TcpConfig {
    /// The receive window until the owner says what it can take.
    pub fn first_window(&self) -> u32 {
        self.receive_buffer_default.min(self.receive_buffer)
    }

    /// Octets that a send queue should hold where the congestion windows allow `cwnd` under way: those, and as much again
    /// to go on with when they are acknowledged (Linux's `tcp_sndbuf_expand`).
    pub fn send_limit(&self, cwnd: u64) -> u32 {
        let path = u32::try_from(cwnd.saturating_mul(2)).unwrap_or(u32::MAX);
        path.max(self.send_buffer_default).min(self.send_buffer)
    }
}

/// Configuration of a flow.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// The MSS we announce, octets. Text and options of what we send never exceed it either.
    pub mss: u16,
    /// Largest receive window in octets; decides the window scale that is offered.
    pub receive_buffer: u32,
    /// The receive window in octets until the owner says what it can take: by default all.
    pub receive_buffer_default: u32,
    /// Octets that a [`Stream`](super::Stream) takes into its send queue, at most.
    pub send_buffer: u32,
    /// Octets that it takes in any case, by default all; beyond that, twice the congestion window.
    pub send_buffer_default: u32,
    /// Congestion control.
    pub congestion: Algorithm,
    /// Whether text leaves at a rate.
    pub pacing: Pacing,
    /// Explicit congestion notification.
    pub ecn: EcnMode,
    /// Reduce the window less for a mark than for a loss (RFC 8511): marks come from short queues.
    pub abe: bool,
    /// Offer and accept Timestamps (RFC 7323).
    pub timestamps: bool,
    /// Offer and accept SACK (RFC 2018).
    pub sack: bool,
    /// Longest delay of an ACK (RFC 9293 3.8.6.3: below 500 ms).
    pub delayed_ack: Duration,
    /// Least retransmission timeout (RFC 6298 2.4 asks for 1 s; 200 ms is common practice).
    pub min_rto: Duration,
    /// Greatest retransmission timeout (RFC 6298 2.5: at least 60 s).
    pub max_rto: Duration,
    /// Retransmissions of a SYN or SYN/ACK before giving up (MUST-23: R2 of at least 3 minutes).
    pub syn_retries: u8,
    /// Retransmission timeouts in a row before giving up (SHLD-11: R2 of at least 100 s).
    pub data_retries: u8,
    /// How long TIME-WAIT lasts (2 MSL).
    pub time_wait: Duration,
    /// Nagle's algorithm (RFC 9293 3.7.4). Off by default: a relay must not add to the sender's own delay.
    pub nagle: bool,
    /// Idle time before the first keepalive probe (RFC 9293 3.8.4: off by default, two hours or more by default).
    pub keepalive: Option<Duration>,
    /// How long text may remain unacknowledged before the flow is given up, however often the peer says that its window is
    /// closed (MUST-21, RFC 5482 3): as `TCP_USER_TIMEOUT`. Off by default: `data_retries` alone decides.
    pub user_timeout: Option<Duration>,
    /// Largest text of one [`TxSegment`](super::TxSegment), octets; one segment is always possible. At most 65,535
    /// less the headers.
    pub gso_max: u32,
    /// How the advertised window moves.
    pub window: RightEdge,
    /// Who finds the path MTU.
    pub mtu_probing: MtuProbing,
    /// The MSS to fall back to when segments vanish, and to begin a search with; `net.ipv4.tcp_base_mss`.
    pub base_mss: u16,
    /// The least MTU in octets that an IPv4 router is believed (RFC 5927 7.2); `net.ipv4.route.min_pmtu`.
    pub min_pmtu: u16,
    /// Which ends of Fast Open are played (RFC 7413).
    pub fast_open: FastOpenRoles,
    /// Connections at a time that have taken the text of a SYN and whose client has not answered (RFC 7413 4.2(b):
    /// PendingFastOpenRequests).
    pub fast_open_pending: u32,
    /// When SYNs are answered with cookies (RFC 4987 3.6).
    pub syn_cookies: CookiePolicy,
}

impl TcpConfig {
    /// Whether flows pace.
    pub(super) fn paces(&self) -> bool {
        match self.pacing {
            Pacing::Auto => self.congestion == Algorithm::Bbr,
            Pacing::On => true,
            Pacing::Off => false,
        }
    }
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig {
            mss: 1460,
            receive_buffer: 4 << 20,
            receive_buffer_default: u32::MAX,
            send_buffer: 4 << 20,
            send_buffer_default: u32::MAX,
            congestion: Algorithm::Cubic,
            pacing: Pacing::Auto,
            ecn: EcnMode::Accept,
            abe: true,
            timestamps: true,
            sack: true,
            delayed_ack: Duration::from_millis(40),
            min_rto: Duration::from_millis(200),
            max_rto: Duration::from_secs(60),
            syn_retries: 7, // 1 s doubling: 255 s
            data_retries: 15,
            time_wait: Duration::from_secs(60),
            nagle: false,
            keepalive: None,
            user_timeout: None,
            gso_max: 65_535 - 120, // longest IPv6 and TCP header
            window: RightEdge::NeverRetreats,
            mtu_probing: MtuProbing::BlackHole,
            base_mss: 1024,
            min_pmtu: 552,
            fast_open: FastOpenRoles::default(),
            fast_open_pending: 256,
            syn_cookies: CookiePolicy::Auto,
        }
    }
}
