//! The side that is tested: a shard whose sessions are single TCP endpoints.

use super::octets::{self, Mapping, octet, text};
use super::packet::{Packet, SYN, Tcp};
use super::syntax::duration;
use stack::buf::{Chain, Pool};
use stack::rng::Rng;
use stack::shard::{
    Counters, Cx, Limits, Opened, Refusal, Session, SessionId, Shard, ShardConfig, Stage,
};
use stack::tcp::{
    Algorithm, CloseReason, CookiePolicy, EcnMode, FastOpenCache, FastOpenRoles, FastOpenSecret,
    FastOpenTry, MtuProbing, Pacing, Phase, Stream, TcpConfig, TcpInfo,
};
use stack::time::Instant;
use stack::wire::{
    Endpoint, FlowTuple, IcmpError, IcmpErrorKind, RxChecksum, RxPacket, Segment, TxPacket, emit,
    segment_packet,
};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Octets in front of text that the user writes.
const HEADROOM: u16 = 128;
/// A SYN from this port is the user's order to connect.
const ORDERS: u16 = 1;
/// Local port of connection 1 where we connect, or remote port where we listen, less one.
const FIRST_PORT: u16 = 40_000;
const SERVICE: u16 = 80;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listening {
    No,
    Yes,
    /// SYNs wait for the user.
    Hold,
}

/// What is left of a connection.
#[derive(Default)]
pub struct Remains {
    pub reason: Option<CloseReason>,
    unread: Chain,
    read: u32,
    fin: bool,
}

pub struct Settings {
    pub tcp: Rc<TcpConfig>,
    limits: Limits,
    fast_open: FastOpenCache,
    pub listening: Listening,
    ended: BTreeMap<FlowTuple, Remains>,
}

/// A connection and its user.
pub struct Endpoints {
    flow: FlowTuple,
    stream: Stream,
    unread: Chain,
    /// Relative sequence numbers of the next octet to read and to write.
    read: u32,
    written: u32,
    finished: bool,
}

impl Endpoints {
    fn new(flow: FlowTuple, stream: Stream) -> Endpoints {
        Endpoints { flow, stream, unread: Chain::new(), read: 1, written: 1, finished: false }
    }

    /// The receive buffer is what the user has not read.
    fn take_text(&mut self, buffer: u32) {
        while let Some(text) = self.stream.recv() {
            self.unread.append(text);
        }
        self.stream.grant(buffer.saturating_sub(self.unread.len()));
    }
}

impl Session for Endpoints {
    type Config = Settings;

    fn limits(settings: &Settings) -> Limits {
        settings.limits
    }

    fn open(
        settings: &mut Settings,
        flow: FlowTuple,
        syn: &Segment,
        cx: &mut Cx<'_>,
    ) -> Opened<Endpoints> {
        if flow.local.port == ORDERS {
            let local = Endpoint::new(flow.local.addr, flow.remote.port);
            let flow = FlowTuple { local, remote: Endpoint::new(flow.remote.addr, SERVICE) };
            assert!(cx.add_flow(flow), "the flow is taken");
            let what = match settings.tcp.fast_open.client {
                true => settings.fast_open.ask(flow.remote.addr, cx.now),
                false => FastOpenTry::Not,
            };
            let (opening, text) = (cx.opening(flow), syn.text.clone());
            let written = 1 + text.len();
            let stream = Stream::fast_connect(&settings.tcp, opening, what, text, cx.now);
            return Opened::Session(Endpoints { written, ..Endpoints::new(flow, stream) });
        }
        if settings.listening == Listening::No {
            return Opened::Refuse(Refusal::NoService);
        }
        assert!(cx.add_flow(flow), "a SYN of a flow that is there reaches its session");
        let grant = cx.fast_open(&settings.tcp, flow, syn);
        let mut stream = Stream::fast_accept(&settings.tcp, syn, cx.opening(flow), grant, cx.now);
        if settings.listening == Listening::Yes {
            stream.answer(cx.now);
        }
        let mut session = Endpoints::new(flow, stream);
        session.take_text(settings.tcp.receive_buffer);
        Opened::Session(session)
    }

    fn answer_by_cookie(
        settings: &mut Settings,
        flow: FlowTuple,
        syn: &Segment,
        cx: &mut Cx<'_>,
    ) -> Option<Segment> {
        let listens = settings.listening == Listening::Yes && flow.local.port != ORDERS;
        if listens { cx.cookie(&settings.tcp, flow, syn, 0) } else { None }
    }

    fn open_proven(
        settings: &mut Settings,
        flow: FlowTuple,
        ack: &Segment,
        cx: &mut Cx<'_>,
    ) -> Option<Opened<Endpoints>> {
        let proven = cx.returned_cookie(&settings.tcp, flow, ack, 0)?;
        assert!(cx.add_flow(flow), "nobody had it");
        let stream = Stream::proven(&settings.tcp, &proven, cx.now);
        Some(Opened::Session(Endpoints::new(flow, stream)))
    }

    fn on_evicted(&mut self, _: &mut Settings, _: &mut Cx<'_>) {
        self.finished = true;
    }

    fn on_segment(&mut self, settings: &mut Settings, _: FlowTuple, seg: Segment, cx: &mut Cx<'_>) {
        if let Some(stop) = self.stream.on_segment(seg, cx.now) {
            cx.counters.on_stop(stop);
        }
        if let Some(lesson) = self.stream.take_lesson() {
            cx.counters.on_fast_open(lesson.fate);
            settings.fast_open.learn(self.flow.remote.addr, lesson, cx.now);
        }
        self.take_text(settings.tcp.receive_buffer);
    }

    fn on_join(&mut self, _: &mut Settings, _: FlowTuple, _: Segment, _: &mut Cx<'_>) {}

    fn on_icmp(&mut self, _: &mut Settings, error: IcmpError, cx: &mut Cx<'_>) {
        if matches!(error.kind, IcmpErrorKind::PacketTooBig { .. }) {
            cx.counters.on_too_big(self.stream.on_too_big(&error, cx.now));
        }
        let hard = matches!(error.kind, IcmpErrorKind::Unreachable(why) if why.is_hard());
        if hard && self.stream.phase() == Phase::Opening && self.stream.iss() == Some(error.seq) {
            self.stream.abort(CloseReason::Unreachable);
        }
    }

    fn on_deadline(&mut self, _: &mut Settings, cx: &mut Cx<'_>) {
        self.stream.on_deadline(cx.now);
    }

    fn poll_transmit(&mut self, _: &mut Settings, cx: &mut Cx<'_>) -> Option<TxPacket> {
        cx.counters.on_mtu_tally(self.stream.drain_mtu_tally());
        if let Some(tx) = self.stream.poll_transmit(cx.now) {
            cx.counters.RetransSegs += u64::from(tx.retransmission);
            return Some(emit(self.flow, &tx.segment, tx.gso_size));
        }
        if let Some(events) = self.stream.take_events() {
            cx.counters.on_events(&events);
        }
        if let Some(rest) = self.stream.time_wait() {
            cx.time_wait(self.flow, rest);
            self.finished = true;
        }
        self.finished |= matches!(self.stream.phase(), Phase::Closed(_));
        None
    }

    fn deadline(&self) -> Option<Instant> {
        self.stream.deadline()
    }

    fn stage(&self) -> Stage {
        match self.stream.phase() {
            _ if self.finished => Stage::Finished,
            Phase::Opening => Stage::HalfOpen,
            _ => Stage::Open,
        }
    }

    fn on_removed(&mut self, settings: &mut Settings, cx: &mut Cx<'_>) {
        cx.remove_flow(self.flow);
        let reason = match self.stream.phase() {
            Phase::Closed(reason) => reason,
            _ => CloseReason::Done,
        };
        let remains = Remains {
            reason: Some(reason),
            fin: self.stream.recv_finished(),
            unread: core::mem::take(&mut self.unread),
            read: self.read,
        };
        settings.ended.insert(self.flow, remains);
    }
}

/// Which addresses a script is played with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

/// The shard with its pool, in virtual time.
pub struct Host {
    pub shard: Shard<Endpoints>,
    pool: Pool,
    local: IpAddr,
    remote: IpAddr,
    /// Flows that we open ourselves.
    active: Vec<u16>,
}

impl Host {
    pub fn new(family: Family, settings: &[(String, String)]) -> Result<Host, String> {
        let (local, remote): (IpAddr, IpAddr) = match family {
            Family::V4 => ([192, 168, 0, 1].into(), [192, 0, 2, 1].into()),
            Family::V6 => (
                [0xfd3d, 0xfa7b, 0xd17d, 0, 0, 0, 0, 1].into(),
                [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
            ),
        };
        // Windows that a SYN can express in full: no update follows the handshake.
        let mut tcp = TcpConfig { receive_buffer: 65_535, ..TcpConfig::default() };
        let mut limits = Limits {
            sessions: 1_000,
            half_open: 1_000,
            half_open_per_source: u32::MAX,
            cookies: CookiePolicy::Off,
        };
        for (key, value) in settings {
            set(&mut tcp, &mut limits, key, value)
                .map_err(|why| format!("{key}={value}: {why}"))?;
        }
        let pool = Pool::new(4_096, 2_048);
        let settings = Settings {
            tcp: Rc::new(tcp),
            limits,
            fast_open: FastOpenCache::default(),
            listening: Listening::No,
            ended: BTreeMap::new(),
        };
        let secret = Some(FastOpenSecret([1, 2])); // so that a script can name cookies
        let config =
            ShardConfig { owned: vec![local], fast_open_secret: secret, ..ShardConfig::default() };
        let shard = Shard::new(config, settings, pool.clone(), Rng::from_number(42));
        Ok(Host { shard, pool, local, remote, active: Vec::new() })
    }

    /// The flow of connection `number`, our end first.
    pub fn flow(&self, number: u16) -> FlowTuple {
        let (client, server) = (FIRST_PORT + number - 1, SERVICE);
        let (local, remote) =
            if self.active.contains(&number) { (client, server) } else { (server, client) };
        FlowTuple {
            local: Endpoint::new(self.local, local),
            remote: Endpoint::new(self.remote, remote),
        }
    }

    /// The connection that a packet from or to these ports belongs to.
    pub fn number(&self, packet: &[u8]) -> Option<u16> {
        let at = if packet[0] >> 4 == 6 { 40 } else { 20 };
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let client = if port(at) == SERVICE { port(at + 2) } else { port(at) };
        client.checked_sub(FIRST_PORT - 1)
    }

    pub fn receive(&mut self, octets: &[u8], now: Instant) {
        let octets = Chain::copy_from(&self.pool, 0, octets).expect("there are frames enough");
        let packet = RxPacket { octets, checksum: RxChecksum::Unknown, port: 0, gso_size: 0 };
        self.shard.ingest(&mut vec![packet], now);
        self.shard.passed().for_each(drop);
    }

    /// All that is ready to leave, as a port without offloads sends it.
    pub fn transmit(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut tx = Vec::new();
        self.shard.transmit(&mut tx, 1_000, now);
        let mut out = Vec::new();
        for packet in tx {
            if packet.is_ready_made() {
                out.push(packet.to_vec());
                continue;
            }
            for mut segment in segment_packet(packet) {
                segment.finish_checksum();
                out.push(segment.to_vec());
            }
        }
        out
    }

    /// The user connects: an order in the shape of a SYN on a flow of its own, since that is what makes sessions.
    pub fn connect(&mut self, number: u16, octets: u32, now: Instant) {
        self.active.push(number);
        let syn = Tcp { flags: Some(SYN), seq: Some(0), len: Some(octets), ..Tcp::default() };
        let order = FlowTuple {
            local: Endpoint::new(self.local, ORDERS),
            remote: Endpoint::new(self.remote, FIRST_PORT + number - 1),
        };
        let map = Mapping { peer_isn: 0, our_isn: 0, ts_base: None };
        self.receive(&octets::write(&Packet::Tcp(syn), order, map), now);
    }

    fn id(&self, number: u16) -> Option<SessionId> {
        let flow = self.flow(number);
        let at = self.shard.sessions().position(|session| session.flow == flow)?;
        self.shard.ids().nth(at)
    }

    /// Lets the user of a connection do something.
    pub fn with<R>(
        &mut self,
        number: u16,
        now: Instant,
        act: impl FnOnce(&mut Stream, Instant) -> R,
    ) -> Result<R, String> {
        let id = self.id(number).ok_or("there is no such connection")?;
        let result = self.shard.run(id, now, |session, _, cx| act(&mut session.stream, cx.now));
        result.ok_or_else(|| "there is no such connection".to_owned())
    }

    pub fn write(&mut self, number: u16, octets: u32, now: Instant) -> Result<(), String> {
        let id = self.id(number).ok_or("there is no such connection")?;
        let pool = self.pool.clone();
        self.shard.run(id, now, |session, _, _| {
            let text = text(session.written, octets);
            session.written += octets;
            session.stream.send(Chain::copy_from(&pool, HEADROOM, &text).expect("enough frames"));
        });
        Ok(())
    }

    /// Reads exactly `octets`, which have to be those the peer sent.
    pub fn read(&mut self, number: u16, octets: u32, now: Instant) -> Result<(), String> {
        let flow = self.flow(number);
        let result = match self.id(number) {
            Some(id) => self.shard.run(id, now, |session, settings, _| {
                let result = take(&mut session.unread, &mut session.read, octets);
                session.take_text(settings.tcp.receive_buffer);
                result
            }),
            None => {
                let remains = self.shard.config_mut().ended.get_mut(&flow);
                remains.map(|remains| take(&mut remains.unread, &mut remains.read, octets))
            }
        };
        result.unwrap_or_else(|| Err("there is no such connection".to_owned()))
    }

    /// Whether the peer's FIN came and all before it was read.
    pub fn at_end(&self, number: u16) -> bool {
        let flow = self.flow(number);
        let session = self.shard.sessions().find(|session| session.flow == flow);
        match (session, self.shard.config().ended.get(&flow)) {
            (Some(session), _) => session.stream.recv_finished() && session.unread.is_empty(),
            (None, Some(remains)) => remains.fin && remains.unread.is_empty(),
            (None, None) => false,
        }
    }

    pub fn closed(&self, number: u16) -> Option<CloseReason> {
        if self.id(number).is_some() {
            return None;
        }
        self.shard.config().ended.get(&self.flow(number))?.reason
    }

    /// A snapshot; `None` once the connection has no session.
    pub fn info(&self, number: u16) -> Option<TcpInfo> {
        let flow = self.flow(number);
        self.shard.sessions().find(|session| session.flow == flow).map(|s| s.stream.info())
    }

    pub fn counters(&self) -> &Counters {
        self.shard.counters()
    }

    /// Ends everything; frames that somebody still holds.
    pub fn frames_left(self) -> u32 {
        drop(self.shard);
        self.pool.capacity() - self.pool.free()
    }
}

fn take(unread: &mut Chain, read: &mut u32, octets: u32) -> Result<(), String> {
    if unread.len() < octets {
        return Err(format!("only {} octets are there to be read", unread.len()));
    }
    let rest = unread.split_off(octets);
    let got = core::mem::replace(unread, rest).to_vec();
    for (n, byte) in got.iter().enumerate() {
        let seq = read.wrapping_add(n as u32);
        if *byte != octet(seq) {
            return Err(format!("octet {seq} is not what the peer sent"));
        }
    }
    *read += octets;
    Ok(())
}

fn set(tcp: &mut TcpConfig, limits: &mut Limits, key: &str, value: &str) -> Result<(), String> {
    fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
        value.parse().map_err(|_| "not a number that fits".to_owned())
    }
    let switch = || match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    };
    match key {
        "mss" => tcp.mss = number(value)?,
        "receive_buffer" => tcp.receive_buffer = number(value)?,
        "send_buffer" => tcp.send_buffer = number(value)?,
        "congestion" => {
            tcp.congestion = match value {
                "newreno" => Algorithm::NewReno,
                "cubic" => Algorithm::Cubic,
                "bbr" => Algorithm::Bbr,
                _ => return Err("no such algorithm".to_owned()),
            }
        }
        "pacing" => tcp.pacing = if switch()? { Pacing::On } else { Pacing::Off },
        "timestamps" => tcp.timestamps = switch()?,
        "sack" => tcp.sack = switch()?,
        "abe" => tcp.abe = switch()?,
        "ecn" => {
            tcp.ecn = match value {
                "off" => EcnMode::Off,
                "accept" => EcnMode::Accept,
                "on" => EcnMode::On,
                "accurate" => EcnMode::Accurate,
                _ => return Err(format!("{value}: not off, accept, on or accurate")),
            }
        }
        "delayed_ack" => tcp.delayed_ack = duration(value)?,
        "min_rto" => tcp.min_rto = duration(value)?,
        "max_rto" => tcp.max_rto = duration(value)?,
        "syn_retries" => tcp.syn_retries = number(value)?,
        "data_retries" => tcp.data_retries = number(value)?,
        "time_wait" => tcp.time_wait = duration(value)?,
        "nagle" => tcp.nagle = switch()?,
        "keepalive" if value == "off" => tcp.keepalive = None,
        "keepalive" => tcp.keepalive = Some(duration(value)?),
        "user_timeout" => tcp.user_timeout = Some(duration(value)?),
        "mtu_probing" => {
            tcp.mtu_probing = match value {
                "off" => MtuProbing::Off,
                "blackhole" => MtuProbing::BlackHole,
                "always" => MtuProbing::Always,
                _ => return Err("off, blackhole or always".to_owned()),
            }
        }
        "base_mss" => tcp.base_mss = number(value)?,
        "min_pmtu" => tcp.min_pmtu = number(value)?,
        "gso_max" => tcp.gso_max = number(value)?,
        "backlog" => limits.half_open = number(value)?,
        "fast_open" => {
            let plays = |role| value.split(',').any(|word| word == role);
            tcp.fast_open = FastOpenRoles { client: plays("client"), server: plays("server") };
        }
        "fast_open_pending" => tcp.fast_open_pending = number(value)?,
        "syn_cookies" => {
            limits.cookies = match value {
                "off" => CookiePolicy::Off,
                "auto" => CookiePolicy::Auto,
                "always" => CookiePolicy::Always,
                _ => return Err("no such policy".to_owned()),
            }
        }
        "sessions" => limits.sessions = number(value)?,
        _ => return Err("no such setting".to_owned()),
    }
    Ok(())
}
