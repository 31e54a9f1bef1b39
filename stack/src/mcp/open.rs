//! Which SYN becomes which bridge: roles by configuration.
#![forbid(unsafe_code)]

use super::bridge::{Bridge, Expected, Parts, Plan};
use super::config::{Action, Explanation, Service, SourceMode, Transport, explain};
use super::convert::{self, NoOrder, Order};
use super::cookie;
use super::info::{Mode, Origin};
use super::leg::{Leg, TcpLeg};
use super::policy::{Mcp, Source};
use crate::buf::Chain;
use crate::mptcp::{Connection, Key, SharedConfig};
use crate::shard::{Cx, Limits, Opened, Refusal, Session, Stage};
use crate::tcp::{FastOpenTry, Proven, Stream};
use crate::time::{Duration, Instant};
use crate::wire::{Endpoint, FlowTuple, IcmpError, MpJoin, MptcpOption, Segment, TxPacket};
use alloc::boxed::Box;
use alloc::rc::Rc;

/// How long a dMCP may stay silent before it is asked whether it lives: three SYNs, 1 s doubling (SPEC 3.3: two losses).
pub(super) const PATIENCE: Duration = Duration::from_secs(7);

/// Octets in front of a payload that we write ourselves: the longest IPv6 and TCP header fit.
const HEADROOM: u16 = 128;

impl Session for Bridge {
    type Config = Mcp;

    fn limits(config: &Mcp) -> Limits {
        let config = &config.config;
        Limits {
            sessions: config.max_connections,
            half_open: config.max_half_open,
            half_open_per_source: config.max_half_open_per_source,
            cookies: config.tcp.syn_cookies,
        }
    }

    fn open(config: &mut Mcp, flow: FlowTuple, syn: &Segment, cx: &mut Cx<'_>) -> Opened<Bridge> {
        open(config, Asked { flow, syn, transport: transport_of(syn), proof: None }, cx)
    }

    fn answer_by_cookie(
        config: &mut Mcp,
        flow: FlowTuple,
        syn: &Segment,
        cx: &mut Cx<'_>,
    ) -> Option<Segment> {
        cookie::answer(config, flow, syn, cx)
    }

    fn open_proven(
        config: &mut Mcp,
        flow: FlowTuple,
        ack: &Segment,
        cx: &mut Cx<'_>,
    ) -> Option<Opened<Bridge>> {
        cookie::open_proven(config, flow, ack, cx)
    }

    fn on_evicted(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        self.make_room(config, cx);
    }

    fn on_segment(&mut self, config: &mut Mcp, flow: FlowTuple, seg: Segment, cx: &mut Cx<'_>) {
        self.take_segment(config, flow, seg, cx);
    }

    fn on_join(&mut self, config: &mut Mcp, flow: FlowTuple, syn: Segment, cx: &mut Cx<'_>) {
        let token = syn.options.mptcp().iter().find_map(|option| match option {
            MptcpOption::MpJoin(MpJoin::Syn { token, .. }) => Some(*token),
            _ => None,
        });
        if let Some(token) = token {
            self.take_join(config, flow, syn, token, cx);
        }
    }

    fn on_icmp(&mut self, config: &mut Mcp, error: IcmpError, cx: &mut Cx<'_>) {
        self.take_icmp(config, error, cx);
    }

    fn on_deadline(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        self.run_deadline(config, cx);
    }

    fn poll_transmit(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) -> Option<TxPacket> {
        self.next_packet(config, cx)
    }

    fn deadline(&self) -> Option<Instant> {
        self.next_deadline()
    }

    fn stage(&self) -> Stage {
        self.current_stage()
    }

    fn on_removed(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        self.give_back(config, cx);
    }
}

/// Why a SYN does not become a bridge.
enum No {
    Pass,
    Silence,
    Refuse(Refusal),
}

/// What becomes of a SYN.
pub(super) fn open(config: &Mcp, asked: Asked<'_>, cx: &mut Cx<'_>) -> Opened<Bridge> {
    match parts(config, asked, cx) {
        Ok(parts) => Opened::Session(Bridge::new(parts, cx)),
        Err(No::Pass) => Opened::Pass,
        Err(No::Silence) => Opened::Ignore,
        Err(No::Refuse(why)) => Opened::Refuse(why),
    }
}

fn parts(config: &Mcp, asked: Asked<'_>, cx: &mut Cx<'_>) -> Result<Parts, No> {
    let Asked { flow, transport, .. } = asked;
    if flow.local == flow.remote {
        return Err(No::Silence); // from itself to itself: nobody means that
    }
    let plain = Rc::clone(&config.config);
    match explain(&plain, flow) {
        Explanation::Service(i, Service::Explicit { source, .. }) => {
            open_explicit(config, Origin::Service(i as u32), asked, *source, cx)
        }
        Explanation::Service(i, Service::Relay { server, connect, .. }) => {
            open_relay(config, Origin::Service(i as u32), asked, *server, *connect, cx)
        }
        Explanation::Rule(i, rule) if !cx.owns(flow.local.addr) => {
            let origin = config.origin(i);
            match (rule.action, transport) {
                (Action::Reject, _) => Err(No::Refuse(Refusal::Prohibited)),
                (Action::Convert { remote, source }, Transport::Tcp) => {
                    open_convert(config, origin, asked, remote, source, cx)
                }
                (Action::Direct { source }, Transport::Tcp) => {
                    open_direct(config, origin, asked, source, cx)
                }
                (Action::Terminate { source }, Transport::Mptcp) => {
                    open_terminate(config, origin, asked, source, cx)
                }
                // What speaks MPTCP already needs no conversion, and TCP nothing to terminate.
                (Action::Convert { .. } | Action::Direct { .. }, Transport::Mptcp)
                | (Action::Terminate { .. }, Transport::Tcp)
                | (Action::Bypass, _) => Err(No::Pass),
            }
        }
        Explanation::Rule(..) | Explanation::NoMatch => Err(No::Pass),
    }
}

/// A SYN and what it speaks.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub flow: FlowTuple,
    pub syn: &'a Segment,
    pub transport: Transport,
    pub proof: Option<Proof<'a>>,
}

/// The SYN was answered with a cookie, and this came back.
#[derive(Clone, Copy)]
pub(super) struct Proof<'a> {
    pub proven: &'a Proven,
    /// The segment that brought it.
    pub ack: &'a Segment,
    /// The key that the cookie's SYN/ACK had in its MP_CAPABLE.
    pub key: Option<Key>,
}

impl Asked<'_> {
    /// The client's leg, its SYN held. Where MPTCP turns out to be unusable it is TCP, unless that will not do.
    fn near(&self, config: &Mcp, accept_text: u32, cx: &mut Cx<'_>) -> Result<Leg, No> {
        if let Some(Proof { proven, ack, key: Some(key) }) = self.proof {
            let cfg = Rc::clone(&config.mptcp);
            let connection = Connection::proven(cfg, key, self.flow, proven, ack, cx.now);
            return Ok(Leg::Mptcp(Box::new(connection)));
        }
        if self.transport == Transport::Mptcp {
            let key = fresh_key(cx)?;
            let cfg = Rc::clone(&config.mptcp);
            let (syn, now) = (self.syn, cx.now);
            if let Some(connection) =
                Connection::accept(cfg, key, self.flow, syn, accept_text, cx.rng, now)
            {
                return Ok(Leg::Mptcp(Box::new(connection)));
            }
        }
        Ok(self.near_tcp(config, cx))
    }

    fn near_tcp(&self, config: &Mcp, cx: &mut Cx<'_>) -> Leg {
        let stream = match self.proof {
            Some(proof) => Stream::proven(&config.tcp, proof.proven, cx.now),
            None => {
                let opening = config.opening(self.flow, cx);
                let grant = cx.fast_open(&config.tcp, self.flow, self.syn);
                Stream::fast_accept(&config.tcp, self.syn, opening, grant, cx.now)
            }
        };
        Leg::Tcp(Box::new(TcpLeg { flow: self.flow, stream }))
    }

    fn parts(&self, origin: Origin, mode: Mode, near: Leg, far: Leg) -> Parts {
        Parts {
            origin,
            mode,
            near,
            far,
            plan: Plan::default(),
            early: 0,
            remote: None,
            syn: self.syn.seq,
        }
    }
}

/// uMCP: TCP in, MPTCP with MP_CONVERT to a dMCP out.
fn open_convert(
    config: &Mcp,
    origin: Origin,
    asked: Asked<'_>,
    remote: usize,
    source: SourceMode,
    cx: &mut Cx<'_>,
) -> Result<Parts, No> {
    let (client, server) = (asked.flow.remote, asked.flow.local);
    let mut near = asked.near_tcp(config, cx);
    if config.avoided.avoided(remote, cx.now).is_some() {
        cx.counters.ConvertAvoided += 1;
        let early = near.recv().unwrap_or_default();
        let len = early.len();
        let far = connect_plainly(config, Source::new(source, client), client, server, early, cx)
            .ok_or(No::Refuse(Refusal::NoPorts))?;
        let parts = asked.parts(origin, Mode::Plain, near, far);
        return Ok(Parts { early: len, ..parts });
    }
    let (local, endpoint) = config.path_to_remote(remote).ok_or(No::Refuse(Refusal::NoPorts))?;
    let port = cx.ephemeral_port(local, endpoint).ok_or(No::Refuse(Refusal::NoPorts))?;
    let flow = FlowTuple { local: Endpoint::new(local, port), remote: endpoint };
    let elements = convert::elements(client, server, source);
    let Some(text) = Chain::copy_from(cx.pool, HEADROOM, &elements) else {
        cx.counters.MemoryPressures += 1;
        return Err(No::Silence);
    };
    let far = connect_mptcp(&config.explicit, flow, text, cx)?;
    let mut parts = asked.parts(origin, Mode::Convert, near, far);
    let source = Source::new(source, client);
    parts.plan.expected = Some(Expected { elements, source, patience: cx.now + PATIENCE });
    parts.remote = Some(remote as u32);
    Ok(parts)
}

/// dMCP: MPTCP with MP_CONVERT in, TCP to the server out.
fn open_explicit(
    config: &Mcp,
    origin: Origin,
    asked: Asked<'_>,
    source: SourceMode,
    cx: &mut Cx<'_>,
) -> Result<Parts, No> {
    if asked.transport == Transport::Tcp {
        // SPEC 3.3: elements count only beside MP_CAPABLE. A RST would tell a uMCP that the server refused, where
        // MP_CAPABLE was lost on the way; silence tells it to go there itself.
        return Err(No::Silence);
    }
    let owned = |addr| cx.owns(addr);
    let mut counters = crate::shard::Counters::default();
    let order = convert::parse_order(
        &config.config,
        source,
        asked.flow,
        &asked.syn.text,
        owned,
        &mut counters,
    );
    cx.counters.add(&counters);
    let Order { server, source, echo, early } = order.map_err(|why| match why {
        NoOrder::NotExplicit | NoOrder::Unusable => No::Silence,
    })?;
    let near = asked.near(config, asked.syn.text.len(), cx)?;
    if matches!(near, Leg::Tcp(_)) {
        return Err(No::Silence);
    }
    let len = early.len();
    let far = connect_plainly(config, source, asked.flow.remote, server, early, cx)
        .ok_or(No::Refuse(Refusal::NoPorts))?;
    let mut parts = asked.parts(origin, Mode::Deconvert, near, far);
    parts.plan.echo = echo;
    Ok(Parts { early: len, ..parts })
}

/// A fixed relay.
fn open_relay(
    config: &Mcp,
    origin: Origin,
    asked: Asked<'_>,
    server: Endpoint,
    connect: Transport,
    cx: &mut Cx<'_>,
) -> Result<Parts, No> {
    let mut near = asked.near(config, 0, cx)?;
    let client = asked.flow.remote;
    let (far, early) = match connect {
        Transport::Tcp => {
            // What came with the client's SYN may go with ours.
            let text = near.recv().unwrap_or_default();
            let len = text.len();
            let far = connect_plainly(config, Source::Ours, client, server, text, cx);
            (far.ok_or(No::Refuse(Refusal::NoPorts))?, len)
        }
        Transport::Mptcp => (connect_far(config, connect, Source::Ours, client, server, cx)?, 0),
    };
    Ok(Parts { early, ..asked.parts(origin, Mode::Relay, near, far) })
}

/// TCP in, MPTCP straight to the server out.
fn open_direct(
    config: &Mcp,
    origin: Origin,
    asked: Asked<'_>,
    source: SourceMode,
    cx: &mut Cx<'_>,
) -> Result<Parts, No> {
    let (client, server) = (asked.flow.remote, asked.flow.local);
    let near = asked.near_tcp(config, cx);
    let source = Source::new(source, client);
    let far = connect_far(config, Transport::Mptcp, source, client, server, cx)?;
    Ok(asked.parts(origin, Mode::Direct, near, far))
}

/// MPTCP in, TCP to the server out.
fn open_terminate(
    config: &Mcp,
    origin: Origin,
    asked: Asked<'_>,
    source: SourceMode,
    cx: &mut Cx<'_>,
) -> Result<Parts, No> {
    let (client, server) = (asked.flow.remote, asked.flow.local);
    let near = asked.near(config, 0, cx)?;
    if matches!(near, Leg::Tcp(_)) {
        return Err(No::Pass); // an MP_CAPABLE that we cannot read may be the server's to answer
    }
    let source = Source::new(source, client);
    let far = connect_far(config, Transport::Tcp, source, client, server, cx)?;
    Ok(asked.parts(origin, Mode::Terminate, near, far))
}

fn connect_far(
    config: &Mcp,
    transport: Transport,
    source: Source,
    client: Endpoint,
    server: Endpoint,
    cx: &mut Cx<'_>,
) -> Result<Leg, No> {
    match transport {
        Transport::Tcp => connect_plainly(config, source, client, server, Chain::new(), cx)
            .ok_or(No::Refuse(Refusal::NoPorts)),
        Transport::Mptcp => {
            let flow = config
                .far_flow(source, Transport::Mptcp, client, server, cx)
                .ok_or(No::Refuse(Refusal::NoPorts))?;
            connect_mptcp(&config.mptcp, flow, Chain::new(), cx)
        }
    }
}

/// A TCP leg to `server` that begins with `early`, in its SYN if the server is known to take that; `None` if no address or
/// port is free for it.
pub(super) fn connect_plainly(
    config: &Mcp,
    source: Source,
    client: Endpoint,
    server: Endpoint,
    early: Chain,
    cx: &mut Cx<'_>,
) -> Option<Leg> {
    let flow = config.far_flow(source, Transport::Tcp, client, server, cx)?;
    let opening = config.opening(flow, cx);
    let what = match config.tcp.fast_open.client {
        true => config.fast_open.ask(server.addr, cx.now),
        false => FastOpenTry::Not,
    };
    let stream = Stream::fast_connect(&config.tcp, opening, what, early, cx.now);
    Some(Leg::Tcp(Box::new(TcpLeg { flow, stream })))
}

fn connect_mptcp(
    cfg: &Rc<SharedConfig>,
    flow: FlowTuple,
    text: Chain,
    cx: &mut Cx<'_>,
) -> Result<Leg, No> {
    let key = fresh_key(cx)?;
    let now = cx.now;
    let connection = Connection::connect(Rc::clone(cfg), key, flow, text, cx.rng, now);
    Ok(Leg::Mptcp(Box::new(connection)))
}

fn fresh_key(cx: &mut Cx<'_>) -> Result<Key, No> {
    cx.fresh_key(|key| Key(key).token()).map(Key).ok_or(No::Refuse(Refusal::NoPorts))
}

/// What a segment of a handshake speaks.
pub(super) fn transport_of(segment: &Segment) -> Transport {
    let capable = |option: &MptcpOption| matches!(option, MptcpOption::MpCapable(_));
    match segment.options.mptcp().iter().any(capable) {
        true => Transport::Mptcp,
        false => Transport::Tcp,
    }
}
