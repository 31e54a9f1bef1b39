//! What a shard runs: the contract of a session, and what a session may ask of its shard.
#![forbid(unsafe_code)]

use super::fast_open::FastOpenServer;
use super::flow_table::{FlowTable, Owner};
use super::icmp_limit::IcmpLimit;
use super::slab::SessionId;
use super::time_wait::TimeWaitSlab;
use super::{Away, Counters, ShardConfig};
use crate::buf::Pool;
use crate::rng::Rng;
use crate::tcp::{CookieJar, CookiePolicy, Opening, TimeWait};
use crate::time::Instant;
use crate::wire::{Endpoint, FlowTuple, IcmpError, Segment, TxPacket};
use alloc::vec::Vec;
use core::hash::Hasher;
use core::net::IpAddr;
use siphasher::sip::SipHasher13;

/// Something with flows that a shard runs, such as a bridge. Everything happens in calls with `cx.now`; after any of
/// them the shard calls `poll_transmit` until it has nothing more, and asks for `deadline` and `stage`.
pub trait Session: Sized {
    /// What all sessions of a shard share: their configuration and what they learn together.
    type Config;

    /// How many sessions may exist.
    fn limits(config: &Self::Config) -> Limits;

    /// A SYN of no known flow. A session that is returned has added its flows and tokens.
    fn open(
        config: &mut Self::Config,
        flow: FlowTuple,
        syn: &Segment,
        cx: &mut Cx<'_>,
    ) -> Opened<Self>;

    /// The SYN/ACK with a cookie for a SYN of no known flow, of which nothing is kept (RFC 4987 3.6). `None`: this one would
    /// not be served, or not without being kept.
    fn answer_by_cookie(
        config: &mut Self::Config,
        flow: FlowTuple,
        syn: &Segment,
        cx: &mut Cx<'_>,
    ) -> Option<Segment> {
        let _ = (config, flow, syn, cx);
        None
    }

    /// A segment of no known flow. If it returns a cookie it opens a session, which is given the segment next.
    fn open_proven(
        config: &mut Self::Config,
        flow: FlowTuple,
        ack: &Segment,
        cx: &mut Cx<'_>,
    ) -> Option<Opened<Self>> {
        let _ = (config, flow, ack, cx);
        None
    }

    /// Half-open and oldest, it makes room for another: it ends without a word to the client, whose next SYN may find a
    /// place.
    fn on_evicted(&mut self, config: &mut Self::Config, cx: &mut Cx<'_>);

    /// A segment of one of its flows.
    fn on_segment(
        &mut self,
        config: &mut Self::Config,
        flow: FlowTuple,
        segment: Segment,
        cx: &mut Cx<'_>,
    );

    /// A SYN with MP_JOIN and one of its tokens, on a flow nobody has. If the session refuses it sends the RST itself.
    fn on_join(
        &mut self,
        config: &mut Self::Config,
        flow: FlowTuple,
        syn: Segment,
        cx: &mut Cx<'_>,
    );

    /// The network says something about a segment of `error.flow`, one of its flows. Whether that segment was ever sent is
    /// for the session to judge (RFC 5927).
    fn on_icmp(&mut self, config: &mut Self::Config, error: IcmpError, cx: &mut Cx<'_>);

    /// `deadline` has come.
    fn on_deadline(&mut self, config: &mut Self::Config, cx: &mut Cx<'_>);

    /// The next packet to send, until there is none.
    fn poll_transmit(&mut self, config: &mut Self::Config, cx: &mut Cx<'_>) -> Option<TxPacket>;

    /// When it wants `on_deadline`.
    fn deadline(&self) -> Option<Instant>;

    /// Where it is in its life.
    fn stage(&self) -> Stage;

    /// The last call: it gives back flows and tokens it still has.
    fn on_removed(&mut self, config: &mut Self::Config, cx: &mut Cx<'_>);
}

/// How many sessions may exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// In all.
    pub sessions: u32,
    /// Of them in [`Stage::HalfOpen`], clients that returned a cookie not counted.
    pub half_open: u32,
    /// Of them from one source: an address of IPv4, a /64 of IPv6.
    pub half_open_per_source: u32,
    /// When SYNs are answered without being kept.
    pub cookies: CookiePolicy,
}

/// Where a session is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Not everybody has answered.
    HalfOpen,
    /// Carrying data.
    Open,
    /// Nothing left to do once everything is sent.
    Finished,
}

/// What became of a SYN.
#[derive(Debug)]
pub enum Opened<S> {
    /// A session.
    Session(S),
    /// RST.
    Refuse(Refusal),
    /// Silence.
    Ignore,
    /// Not ours: the packet goes on as it came.
    Pass,
}

/// Why a SYN is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// A rule says so.
    Prohibited,
    /// Nobody listens there.
    NoService,
    /// No port, address or token is left for the far leg.
    NoPorts,
}

/// What flows and tokens there are, and the secrets behind drawn numbers.
pub(super) struct Registry {
    pub config: ShardConfig,
    pub table: FlowTable,
    pub time_wait: TimeWaitSlab,
    /// What waits to go to other shards, and to which.
    pub away: Vec<(u32, Away)>,
    pub cookies: CookieJar,
    pub fast_open: FastOpenServer,
    icmp_limit: IcmpLimit,
    secret: SipHasher13,
    /// Where the last search for a port ended.
    next_port: u32,
}

impl Registry {
    pub fn new(config: ShardConfig, rng: &mut Rng) -> Registry {
        Registry {
            table: FlowTable::new(rng),
            time_wait: TimeWaitSlab::new(config.max_time_wait),
            away: Vec::new(),
            cookies: CookieJar::default(),
            fast_open: FastOpenServer::new(config.fast_open_secret),
            icmp_limit: IcmpLimit::default(),
            secret: SipHasher13::new_with_keys(rng.u64(), rng.u64()),
            next_port: rng.u32(),
            config,
        }
    }

    /// A number that only we can relate to `flow`.
    fn keyed(&self, flow: &FlowTuple, purpose: u8) -> u64 {
        let mut hasher = self.secret;
        hasher.write_u8(purpose);
        for end in [flow.local, flow.remote] {
            match end.addr {
                IpAddr::V4(addr) => hasher.write(&addr.octets()),
                IpAddr::V6(addr) => hasher.write(&addr.octets()),
            }
            hasher.write(&end.port.to_be_bytes());
        }
        hasher.finish()
    }
}

/// What a session gets to see of its shard during a call, and asks of it.
pub struct Cx<'a> {
    /// Now.
    pub now: Instant,
    /// Randomness.
    pub rng: &'a mut Rng,
    /// Frames.
    pub pool: &'a Pool,
    /// What happened.
    pub counters: &'a mut Counters,
    pub(super) registry: &'a mut Registry,
    pub(super) session: SessionId,
}

/// Tries before a draw is given up: with a table half full, 64 misses in a row do not happen.
pub(super) const MAX_DRAWS: u32 = 64;

impl Cx<'_> {
    /// The session of this call.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Whether `addr` is one of our own (and not of somebody we stand in for).
    pub fn owns(&self, addr: IpAddr) -> bool {
        self.registry.config.owned.contains(&addr)
    }

    /// Whether an ICMP error may be sent now; if so, the caller has to send it.
    pub fn allow_icmp(&mut self) -> bool {
        let allowed = self.registry.icmp_limit.allow(self.now);
        let counter = match allowed {
            true => &mut self.counters.OutIcmpErrors,
            false => &mut self.counters.OutIcmpRateLimit,
        };
        *counter += 1;
        allowed
    }

    /// Whether nobody has `flow`.
    pub fn is_free(&self, flow: FlowTuple) -> bool {
        self.registry.table.flow(&flow).is_none()
    }

    /// Makes `flow` this session's. False: another session or shard has it. A flow in TIME-WAIT is taken over.
    pub fn add_flow(&mut self, flow: FlowTuple) -> bool {
        let mine = Owner::Session(self.session);
        match self.registry.table.flow(&flow) {
            Some(Owner::Session(id)) => return id == self.session,
            Some(Owner::Shard(_)) => return false,
            Some(Owner::TimeWait(slot)) => drop(self.registry.time_wait.remove(slot)),
            None => {}
        }
        self.registry.insert_flow(flow, mine);
        true
    }

    /// Gives `flow` up, if it is this session's.
    pub fn remove_flow(&mut self, flow: FlowTuple) {
        self.registry.remove_flow(flow, Owner::Session(self.session));
    }

    /// `flow`, this session's, goes on alone as TIME-WAIT.
    pub fn time_wait(&mut self, flow: FlowTuple, state: TimeWait) {
        if self.registry.table.flow(&flow) != Some(Owner::Session(self.session)) {
            return;
        }
        self.counters.TimeWaited += 1;
        let hash = self.registry.table.hash(&flow);
        let (slot, evicted) = self.registry.time_wait.insert(hash, state);
        if let Some(evicted) = evicted {
            self.counters.TimeWaitOverflow += 1;
            self.registry.forget_time_wait(evicted);
        }
        self.registry.table.insert_flow(flow, Owner::TimeWait(slot));
    }

    /// Makes MP_JOINs with `token` this session's. False: the token is taken.
    pub fn add_token(&mut self, token: u32) -> bool {
        self.registry.table.insert_token(token, self.session)
    }

    /// Gives `token` up.
    pub fn remove_token(&mut self, token: u32) {
        self.registry.table.remove_token(token, self.session);
    }

    /// A key whose token (as `token_of` derives it) is free and leads to this shard ([`Homes::of_token`](super::Homes::of_token)), so that
    /// anybody in front can steer an MP_JOIN SYN without state. `None` only if all draws collide.
    pub fn fresh_key(&mut self, token_of: impl Fn(u64) -> u32) -> Option<u64> {
        let homes = self.registry.config.homes;
        (0..MAX_DRAWS.saturating_mul(homes.shards.max(1))).find_map(|_| {
            let key = self.rng.u64();
            let token = token_of(key);
            let good = key != 0 // RFC 8684 3.1 has no word on it, but some stacks read 0 as "none"
                && homes.of_token(token) == self.registry.config.index
                && self.registry.table.token(token).is_none();
            good.then_some(key)
        })
    }

    /// A local port such that `local`:port to `remote` is free. RFC 6056 3.3.3: an offset that only we can compute,
    /// then the next free ones, so that ports are neither predictable nor soon reused. With several shards only those
    /// at home here count. `None`: too many in a row are taken; the next search goes on behind them.
    pub fn ephemeral_port(&mut self, local: IpAddr, remote: Endpoint) -> Option<u16> {
        let config = &self.registry.config;
        let (low, high) =
            (u32::from(*config.ephemeral.start()), u32::from(*config.ephemeral.end()));
        let count = high.checked_sub(low)? + 1;
        let probes = MAX_PORT_PROBES.saturating_mul(config.homes.shards.max(1));
        let probe = FlowTuple { local: Endpoint::new(local, 0), remote };
        let offset = self.registry.keyed(&probe, PURPOSE_PORT) as u32 % count;
        let step = self.rng.below(PORT_STRIDE);
        self.registry.next_port = self.registry.next_port.wrapping_add(step);
        (0..count.min(probes)).find_map(|_| {
            self.registry.next_port = self.registry.next_port.wrapping_add(1);
            let at = offset.wrapping_add(self.registry.next_port) % count;
            let port = (low + at) as u16;
            let flow = FlowTuple { local: Endpoint::new(local, port), remote };
            let usable = port != 0 && self.registry.elsewhere(&flow).is_none();
            (usable && self.is_free(flow)).then_some(port)
        })
    }

    /// Initial numbers of a TCP flow.
    pub fn opening(&self, flow: FlowTuple) -> Opening {
        let hash = self.registry.keyed(&flow, PURPOSE_OPENING);
        Opening::new(flow.remote.addr, hash, self.now)
    }
}

const PURPOSE_OPENING: u8 = 0;
const PURPOSE_PORT: u8 = 1;

/// Ports skipped at most between two draws (RFC 6056 3.3.5).
const PORT_STRIDE: u32 = 8;

/// Ports of this shard tried for one flow: some 50 microseconds, whereas all 64,000 of a destination that has no free port left would
/// hold every other flow up for milliseconds.
const MAX_PORT_PROBES: u32 = 1 << 10;
