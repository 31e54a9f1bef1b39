//! Two shards back to back, uMCP and dMCP, between a TCP client and a TCP server, in virtual time.
#![forbid(unsafe_code)]

use super::*;
use crate::buf::{Chain, Pool};
use crate::mptcp::{Connection, Key, LocalAddress, MptcpConfig};
use crate::rng::Rng;
use crate::shard::{Counters, Occupancy, Shard, ShardConfig};
use crate::tcp::{CloseReason, Opening, Phase, Stream, TcpConfig, reset_reply};
use crate::time::{Duration, Instant, earliest};
use crate::wire::{
    Control, Endpoint, FlowTuple, IcmpError, IcmpErrorKind, Parsed, Prefix, RxChecksum, RxPacket,
    Segment, SeqNum, Unreachable, emit, parse,
};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::net::IpAddr;

const FRAMES: u32 = 4096;
const SERVER_PORT: u16 = 80;

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client_addr() -> IpAddr {
    addr("192.168.1.2")
}

fn server() -> Endpoint {
    Endpoint::new(addr("192.168.9.2"), SERVER_PORT)
}

fn prefix(text: &str, len: u8) -> Prefix {
    Prefix { addr: addr(text), len }
}

/// Octet `at` of the stream that `way` names.
fn octet(way: u8, at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8 ^ way
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Node {
    Client,
    Umcp,
    Dmcp,
    Server,
}

/// The machines stand in a row.
fn next_hop(from: Node, to: IpAddr) -> Node {
    match from {
        Node::Client => Node::Umcp,
        Node::Umcp if prefix("192.168.1.0", 24).contains(to) => Node::Client,
        Node::Umcp => Node::Dmcp,
        Node::Dmcp if prefix("192.168.9.0", 24).contains(to) => Node::Server,
        Node::Dmcp => Node::Umcp,
        Node::Server => Node::Dmcp,
    }
}

/// What a host does with SYNs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listener {
    Accepts,
    Refuses,
    Silent,
    Unreachable,
}

/// One TCP connection of a host, and what its application does with it.
struct Talk {
    flow: FlowTuple,
    stream: Stream,
    way: u8,
    to_send: u64,
    sent: u64,
    received: u64,
    reads: bool,
    /// Close after sending everything; else after the peer did.
    closes_first: bool,
    closed: bool,
    heard_end: bool,
}

impl Talk {
    fn new(flow: FlowTuple, stream: Stream, way: u8) -> Talk {
        Talk {
            flow,
            stream,
            way,
            to_send: 0,
            sent: 0,
            received: 0,
            reads: true,
            closes_first: true,
            closed: false,
            heard_end: false,
        }
    }

    fn run(&mut self, pool: &Pool) {
        if !matches!(self.stream.phase(), Phase::Open | Phase::Closing | Phase::TimeWait) {
            return;
        }
        while self.reads
            && let Some(text) = self.stream.recv()
        {
            for (i, byte) in text.to_vec().into_iter().enumerate() {
                let at = self.received + i as u64;
                assert_eq!(byte, octet(self.way ^ 1, at), "octet {at} towards {:?}", self.flow);
            }
            self.received += u64::from(text.len());
        }
        if self.reads {
            self.stream.grant(1 << 20);
            self.heard_end |= self.stream.recv_finished();
        }
        while self.sent < self.to_send && self.stream.room() > 0 {
            let n = (self.to_send - self.sent).min(u64::from(self.stream.room())).min(10_000);
            let text: Vec<u8> = (self.sent..self.sent + n).map(|at| octet(self.way, at)).collect();
            self.stream.send(Chain::copy_from(pool, 128, &text).unwrap());
            self.sent += n;
        }
        let all_sent = self.sent == self.to_send;
        if all_sent && !self.closed && (self.closes_first || self.heard_end) {
            self.stream.close();
            self.closed = true;
        }
    }

    fn over(&self) -> bool {
        matches!(self.stream.phase(), Phase::TimeWait | Phase::Closed(_))
    }
}

struct Host {
    pool: Pool,
    talks: Vec<Talk>,
    listener: Listener,
    /// What accepted connections send, and whether they close first.
    answers: u64,
    closes_first: bool,
    reads: bool,
    syns: u32,
    /// ICMP errors that ended an attempt.
    told: Vec<IcmpError>,
}

fn opening() -> Opening {
    Opening { iss: SeqNum(0xffff_f000), ts_offset: 0, path_mss: u16::MAX, default_mss: 536 }
}

fn host_tcp() -> Rc<TcpConfig> {
    Rc::new(TcpConfig { receive_buffer: 1 << 20, send_buffer: 64 << 10, ..TcpConfig::default() })
}

impl Host {
    fn new() -> Host {
        Host {
            pool: Pool::new(16_384, 2048),
            talks: Vec::new(),
            listener: Listener::Accepts,
            answers: 0,
            closes_first: true,
            reads: true,
            syns: 0,
            told: Vec::new(),
        }
    }

    /// Returns what is sent at once.
    fn receive(&mut self, octets: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.on_icmp(octets);
        let (flow, segment) = read(&self.pool, octets)?;
        if let Some(talk) = self.talks.iter_mut().find(|talk| talk.flow == flow) {
            talk.stream.on_segment(segment, now);
            return None;
        }
        let is_syn = segment.control == Control::Syn && segment.ack.is_none();
        self.syns += u32::from(is_syn);
        match self.listener {
            Listener::Accepts if is_syn => {
                let mut stream = Stream::accept(&host_tcp(), &segment, opening(), now);
                stream.answer(now);
                let mut talk = Talk::new(flow, stream, 1);
                talk.to_send = self.answers;
                talk.closes_first = self.closes_first;
                talk.reads = self.reads;
                self.talks.push(talk);
                None
            }
            Listener::Silent => None,
            Listener::Unreachable if is_syn => Some(icmp_unreachable(octets)),
            _ => reset_reply(&segment).map(|rst| emit(flow, &rst, 0).to_vec()),
        }
    }

    /// As Linux: any error about its SYN ends an attempt.
    fn on_icmp(&mut self, octets: &[u8]) {
        let Some(packet) = Chain::copy_from(&self.pool, 0, octets) else { return };
        let Ok(Some(error)) = IcmpError::parse(&packet) else { return };
        let mut talks = self.talks.iter_mut();
        if let Some(talk) = talks.find(|t| t.flow == error.flow && error.seq == opening().iss)
            && talk.stream.phase() == Phase::Opening
        {
            talk.stream.abort(CloseReason::Unreachable);
            self.told.push(error);
        }
    }

    fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        for talk in &mut self.talks {
            if talk.stream.deadline().is_some_and(|at| at <= now) {
                talk.stream.on_deadline(now);
            }
            talk.run(&self.pool);
            while let Some(tx) = talk.stream.poll_transmit(now) {
                out.push(emit(talk.flow, &tx.segment, tx.gso_size).to_vec());
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.talks.iter().map(|talk| talk.stream.deadline()).fold(None, earliest)
    }
}

fn read(pool: &Pool, octets: &[u8]) -> Option<(FlowTuple, Segment)> {
    let octets = Chain::copy_from(pool, 0, octets)?;
    match parse(RxPacket { octets, checksum: RxChecksum::Valid, port: 0, gso_size: 0 }) {
        Ok(Parsed::Tcp(flow, segment)) => Some((flow, segment)),
        _ => None,
    }
}

/// Host unreachable, about the IPv4 packet given.
fn icmp_unreachable(about: &[u8]) -> Vec<u8> {
    let mut icmp = vec![3, 1, 0, 0, 0, 0, 0, 0];
    icmp.extend(&about[..28]);
    let sum = !crate::wire::checksum::sum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0, 0, (20 + icmp.len()) as u8, 0, 0, 0, 0, 64, 1, 0, 0];
    ip.extend(&about[16..20]);
    ip.extend(&about[12..16]);
    let sum = !crate::wire::checksum::sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(icmp);
    ip
}

/// Something at the dMCP's address that is no dMCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Impostor {
    /// A TCP listener.
    PlainTcp,
    /// MPTCP that does not acknowledge the payload.
    Ignores,
    /// MPTCP that takes the payload for data.
    Eats,
    /// MPTCP that answers with other octets.
    Garbles,
    /// Nothing.
    Dead,
    /// RST.
    Refuses,
}

enum End {
    Tcp(FlowTuple, Box<Stream>),
    Mptcp(Box<Connection>),
}

struct Fake {
    kind: Impostor,
    ends: Vec<End>,
    pool: Pool,
    rng: Rng,
}

impl Fake {
    fn receive(&mut self, octets: &[u8], now: Instant) -> Option<Vec<u8>> {
        let (flow, segment) = read(&self.pool, octets)?;
        for end in &mut self.ends {
            match end {
                End::Tcp(f, stream) if *f == flow => {
                    stream.on_segment(segment, now);
                }
                End::Mptcp(c) if c.flow() == flow => {
                    c.on_segment(flow, segment, &mut self.rng, now);
                }
                _ => continue,
            }
            return None;
        }
        if segment.control != Control::Syn || self.kind == Impostor::Refuses {
            return reset_reply(&segment).map(|rst| emit(flow, &rst, 0).to_vec());
        }
        let text = segment.text.len();
        let mut mptcp = |accept: u32, answer: &[u8]| {
            let key = Key(self.rng.u64());
            let cfg = Rc::new(MptcpConfig::default().into());
            let rng = &mut self.rng;
            let c = Connection::accept(cfg, key, flow, &segment, accept, rng, now);
            let mut c = c.unwrap();
            c.answer(Chain::copy_from(&self.pool, 128, answer).unwrap(), now);
            End::Mptcp(Box::new(c))
        };
        let end = match self.kind {
            Impostor::PlainTcp => {
                let mut stream = Stream::accept(&host_tcp(), &segment, opening(), now);
                stream.answer(now);
                End::Tcp(flow, Box::new(stream))
            }
            Impostor::Ignores => mptcp(0, b""),
            Impostor::Eats => mptcp(text, b""),
            Impostor::Garbles => mptcp(text, &[7; 60]),
            Impostor::Dead | Impostor::Refuses => return None,
        };
        self.ends.push(end);
        None
    }

    fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        for end in &mut self.ends {
            match end {
                End::Tcp(flow, stream) => {
                    while let Some(tx) = stream.poll_transmit(now) {
                        out.push(emit(*flow, &tx.segment, tx.gso_size).to_vec());
                    }
                    assert_eq!(stream.recv().map(|text| text.len()), None, "nothing is for it");
                }
                End::Mptcp(c) => {
                    while let Some((flow, tx)) = c.poll_transmit(&mut self.rng, now) {
                        out.push(emit(flow, &tx.segment, tx.gso_size).to_vec());
                    }
                    while c.poll_event().is_some() {}
                    assert_eq!(c.recv().map(|text| text.len()), None, "nothing is for it");
                }
            }
        }
    }
}

struct Net {
    now: Instant,
    serial: u64,
    wire: BTreeMap<(Instant, u64), (Node, Vec<u8>)>,
    client: Host,
    umcp: Shard<Bridge>,
    dmcp: Shard<Bridge>,
    fake: Option<Fake>,
    server: Host,
    /// What a box sends to here does not leave: nobody answers ARP.
    unresolved: Option<(Node, IpAddr)>,
    /// Packets to here are sent twice.
    twice: Option<Node>,
    /// Most frames that a shard held at a time.
    most_held: u32,
}

fn mcp_config(host: u8) -> McpConfig {
    let path = |path: u8| LocalAddress {
        addr: IpAddr::from([10, 0, path, host]),
        signal: host == 2,
        subflow: host == 1,
        backup: false,
        fullmesh: false,
        reach: vec![Prefix { addr: IpAddr::from([10, 0, path, 0]), len: 24 }],
    };
    let mptcp = MptcpConfig { addresses: vec![path(1), path(2)], ..MptcpConfig::default() };
    McpConfig { mptcp, buffer: 256 << 10, ..McpConfig::default() }
}

fn convert(source: SourceMode) -> (McpConfig, McpConfig) {
    let dmcp_at = Endpoint::new(addr("10.0.1.2"), 5123);
    let mut up = mcp_config(1);
    up.remotes.push(RemoteMcp { name: "dmcp".into(), endpoints: vec![dmcp_at] });
    up.rules.push(Rule {
        name: "lan".into(),
        from: Some(prefix("192.168.1.0", 24)),
        to: None,
        ports: 1..=65_535,
        action: Action::Convert { remote: 0, source },
    });
    up.source_addresses.push(addr("10.0.1.1"));
    let mut down = mcp_config(2);
    down.services.push(Service::Explicit { addr: dmcp_at.addr, port: Some(5123), source });
    down.source_addresses.push(addr("192.168.9.1"));
    down.preserved_sources.push(prefix("192.168.1.0", 24));
    (up, down)
}

impl Net {
    fn new((up, down): (McpConfig, McpConfig)) -> Net {
        let shard = |config: McpConfig, owned: &[&str], seed| {
            let owned = owned.iter().map(|a| addr(a)).collect();
            let shard_config = ShardConfig { owned, ..ShardConfig::default() };
            Shard::new(shard_config, config, Pool::new(FRAMES, 2048), Rng::from_number(seed))
        };
        Net {
            now: Instant::from_millis(1000),
            serial: 0,
            wire: BTreeMap::new(),
            client: Host::new(),
            umcp: shard(up, &["10.0.1.1", "10.0.2.1", "192.168.1.1"], 1),
            dmcp: shard(down, &["10.0.1.2", "10.0.2.2", "192.168.9.1"], 2),
            fake: None,
            server: Host::new(),
            unresolved: None,
            twice: None,
            most_held: 0,
        }
    }

    fn with_impostor(kind: Impostor) -> Net {
        let mut net = Net::new(convert(SourceMode::Replace));
        let (pool, rng) = (Pool::new(256, 2048), Rng::from_number(9));
        net.fake = Some(Fake { kind, ends: Vec::new(), pool, rng });
        net
    }

    fn connect(&mut self, port: u16, to_send: u64) {
        let flow = FlowTuple { local: Endpoint::new(client_addr(), port), remote: server() };
        let mut talk = Talk::new(flow, Stream::connect(&host_tcp(), opening(), self.now), 0);
        talk.to_send = to_send;
        self.client.talks.push(talk);
    }

    fn send(&mut self, from: Node, octets: Vec<u8>) {
        let to = match octets[0] >> 4 {
            4 => IpAddr::from([octets[16], octets[17], octets[18], octets[19]]),
            _ => panic!("IPv4 only"),
        };
        let hop = next_hop(from, to);
        let ms = if hop == Node::Client || from == Node::Client { 1 } else { 10 };
        for _ in 0..=u32::from(self.twice == Some(hop)) {
            self.serial += 1;
            let at = self.now + Duration::from_millis(ms);
            self.wire.insert((at, self.serial), (hop, octets.clone()));
        }
    }

    fn deliver(&mut self, to: Node, octets: Vec<u8>) {
        let now = self.now;
        let at_impostor = octets[16..20] == [10, 0, 1, 2];
        let reply = match (to, &mut self.fake) {
            (Node::Client, _) => self.client.receive(&octets, now),
            (Node::Server, _) => self.server.receive(&octets, now),
            (Node::Umcp, _) => return self.at_shard(Node::Umcp, octets),
            (Node::Dmcp, Some(fake)) if at_impostor => fake.receive(&octets, now),
            (Node::Dmcp, Some(_)) => return self.send(Node::Dmcp, octets),
            (Node::Dmcp, None) => return self.at_shard(Node::Dmcp, octets),
        };
        if let Some(reply) = reply {
            self.send(to, reply);
        }
    }

    fn at_shard(&mut self, node: Node, octets: Vec<u8>) {
        let shard = if node == Node::Umcp { &mut self.umcp } else { &mut self.dmcp };
        let Some(octets) = Chain::copy_from(shard.pool(), 0, &octets) else { return };
        let mut rx = vec![RxPacket { octets, checksum: RxChecksum::Valid, port: 0, gso_size: 0 }];
        shard.ingest(&mut rx, self.now);
        let passed: Vec<Vec<u8>> = shard.passed().map(|p| p.octets.to_vec()).collect();
        self.most_held = self.most_held.max(FRAMES - shard.pool().free());
        for octets in passed {
            self.send(node, octets);
        }
    }

    fn poll(&mut self) {
        let now = self.now;
        let mut out = Vec::new();
        self.client.poll(now, &mut out);
        let mut all: Vec<(Node, Vec<u8>)> = out.drain(..).map(|p| (Node::Client, p)).collect();
        self.server.poll(now, &mut out);
        all.extend(out.drain(..).map(|p| (Node::Server, p)));
        if let Some(fake) = &mut self.fake {
            fake.poll(now, &mut out);
            all.extend(out.drain(..).map(|p| (Node::Dmcp, p)));
        }
        for (node, shard) in [(Node::Umcp, &mut self.umcp), (Node::Dmcp, &mut self.dmcp)] {
            shard.expire(now);
            let mut tx = Vec::new();
            shard.transmit(&mut tx, 100_000, now);
            for packet in tx {
                if self.unresolved == Some((node, packet.flow.remote.addr)) {
                    shard.on_unreachable(&packet, Unreachable::Host, now);
                } else {
                    all.push((node, packet.to_vec()));
                }
            }
        }
        for (node, octets) in all {
            self.send(node, octets);
        }
    }

    fn run_until(&mut self, limit: Duration, done: impl Fn(&Net) -> bool) -> bool {
        let end = self.now + limit;
        let (mut stuck, mut last) = (0, self.now);
        loop {
            stuck = if last == self.now { stuck + 1 } else { 0 };
            last = self.now;
            let deadlines = (self.client.deadline(), self.server.deadline());
            let shards = (self.umcp.deadline(), self.dmcp.deadline());
            assert!(stuck < 1000, "time stands still at {last:?}: {deadlines:?} {shards:?}");
            self.poll();
            if done(self) {
                return true;
            }
            let wire = self.wire.keys().next().map(|(at, _)| *at);
            let hosts = earliest(self.client.deadline(), self.server.deadline());
            let shards = earliest(self.umcp.deadline(), self.dmcp.deadline());
            let Some(next) = earliest(wire, earliest(hosts, shards)) else { return false };
            if next > end {
                self.now = end;
                return false;
            }
            self.now = next.max(self.now);
            while let Some(entry) = self.wire.first_entry()
                && entry.key().0 <= self.now
            {
                let (to, octets) = entry.remove();
                self.deliver(to, octets);
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        self.run_until(Duration::from_secs(seconds), |_| false);
    }

    fn phase(&self, i: usize) -> Phase {
        self.client.talks[i].stream.phase()
    }

    /// Everybody is done: no session, flow, token or frame is left anywhere in the middle.
    fn assert_empty(&mut self) {
        self.run(300);
        for shard in [&self.umcp, &self.dmcp] {
            let left = Occupancy { deadlines: 0, ..shard.occupancy() };
            let infos: Vec<_> =
                shard.sessions().map(|s| s.info(shard.config(), self.now)).collect();
            assert_eq!(left, Occupancy::default(), "{infos:#?}");
            assert_eq!(shard.pool().free(), FRAMES);
            assert_eq!(shard.counters().CurrEstab, 0);
        }
    }

    /// The client's and the server's first connection exchanged all they had.
    fn assert_exchanged(&self, up: u64, down: u64) {
        let (c, s) = (&self.client.talks[0], &self.server.talks[0]);
        assert_eq!((s.received, c.received), (up, down));
        assert!(c.heard_end && s.heard_end);
    }

    fn counters(&self) -> &Counters {
        self.umcp.counters()
    }
}

#[test]
fn data_both_ways_arrives_octet_by_octet() {
    for source in [SourceMode::Replace, SourceMode::Keep] {
        let mut net = Net::new(convert(source));
        net.server.answers = 700_000;
        net.connect(4000, 500_000);
        let done = net.run_until(Duration::from_secs(60), |net| {
            net.client.talks[0].over() && net.server.talks.first().is_some_and(Talk::over)
        });
        assert!(done, "{:?}", net.phase(0));
        net.assert_exchanged(500_000, 700_000);
        let seen = net.server.talks[0].flow.remote.addr;
        let expected = match source {
            SourceMode::Keep => client_addr(),
            SourceMode::Replace => addr("192.168.9.1"),
        };
        assert_eq!(seen, expected);
        assert_eq!(net.counters().ConvertEstab, 1);
        assert_eq!((net.counters().RelayedUp, net.counters().RelayedDown), (500_000, 700_000));
        net.assert_empty();
    }
}

#[test]
fn a_second_subflow_joins_and_the_view_shows_it() {
    let mut net = Net::new(convert(SourceMode::Replace));
    net.connect(4000, 100_000);
    net.client.talks[0].closes_first = false;
    net.server.closes_first = false;
    net.run(5);
    let now = net.now;
    let info = net.umcp.sessions().next().unwrap().info(net.umcp.config(), now);
    assert_eq!(
        (info.mode, info.state, info.bytes_up),
        (Mode::Convert, ConnectionState::Open, 100_000)
    );
    assert_eq!(
        (info.client.addr, info.server, info.rule.as_str()),
        (client_addr(), server(), "lan")
    );
    match &info.far {
        LegInfo::Mptcp { subflows, .. } => assert_eq!(subflows.len(), 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(net.dmcp.occupancy().flows, 3);
    net.client.talks[0].closes_first = true;
    net.server.talks[0].closes_first = true;
    net.assert_empty();
}

#[test]
fn another_configuration_is_for_connections_opened_from_now_on() {
    let configs = convert(SourceMode::Replace);
    let mut changed = configs.0.clone();
    let mut net = Net::new(configs);
    net.server.closes_first = false;
    net.connect(4000, 1_000);
    net.client.talks[0].closes_first = false;
    net.run(1);
    // The remote moves to another place of the list, and what was converted is now refused, but for one port.
    let away = Endpoint::new(addr("10.0.1.9"), 5123);
    changed.remotes.insert(0, RemoteMcp { name: "away".into(), endpoints: vec![away] });
    changed.rules[0].name = "one".into();
    changed.rules[0].ports = 80..=80;
    changed.rules[0].action = Action::Convert { remote: 1, source: SourceMode::Replace };
    let refuse = Rule {
        name: "none".into(),
        ports: 1..=65_535,
        action: Action::Reject,
        ..changed.rules[0].clone()
    };
    changed.rules.push(refuse);
    changed.tcp.mss = 700;
    changed.max_connections = 2;
    net.umcp.config_mut().set_mss(1200);
    net.umcp.config_mut().reconfigure(changed);
    assert_eq!(net.umcp.config().config().mptcp.tcp.mss, 1200, "the MSS is the devices'");
    net.connect(4001, 1_000);
    net.client.talks[1].closes_first = false;
    net.connect(4002, 1_000);
    net.run(1);
    let now = net.now;
    let config = net.umcp.config();
    let seen: Vec<_> = net.umcp.sessions().map(|bridge| bridge.info(config, now)).collect();
    let mut told: Vec<_> =
        seen.iter().map(|info| (info.client.port, info.rule.as_str(), info.bytes_up)).collect();
    told.sort();
    assert_eq!(
        told,
        [(4000, "lan", 1_000), (4001, "one", 1_000)],
        "two at a time, each by its rule"
    );
    for info in &seen {
        let LegInfo::Mptcp { subflows, .. } = &info.far else { panic!("{info:?}") };
        assert_eq!(subflows[0].flow.remote.addr, addr("10.0.1.2"), "the same dMCP");
    }
}

#[test]
fn half_close_passes_in_either_order() {
    for (client_first, server_first) in [(true, false), (false, true), (true, true)] {
        let mut net = Net::new(convert(SourceMode::Replace));
        net.server.answers = 50_000;
        net.server.closes_first = server_first;
        net.connect(4000, 50_000);
        net.client.talks[0].closes_first = client_first;
        net.run(30);
        net.assert_exchanged(50_000, 50_000);
        let phases = (net.phase(0), net.server.talks[0].stream.phase());
        assert!(net.client.talks[0].over() && net.server.talks[0].over(), "{phases:?}");
        assert!(!matches!(phases.0, Phase::Closed(why) if why != CloseReason::Done), "{phases:?}");
        net.assert_empty();
    }
}

#[test]
fn time_wait_outlives_its_bridge_and_gives_way_to_a_new_connection() {
    let mut net = Net::new(convert(SourceMode::Replace));
    net.client.talks.clear();
    net.server.answers = 5_000;
    net.connect(4000, 5_000);
    net.client.talks[0].closes_first = false; // the server closes first, so our near leg has to linger
    net.run(5);
    net.assert_exchanged(5_000, 5_000);
    let left = net.umcp.occupancy();
    assert_eq!((left.sessions, left.time_wait >= 1, left.tokens), (0, true, 0));
    net.client.talks.clear();
    net.connect(4000, 7_000); // the same flow again
    net.client.talks[0].stream = Stream::connect(
        &host_tcp(),
        Opening {
            iss: opening().iss + 1_000_000,
            ts_offset: 0,
            path_mss: u16::MAX,
            default_mss: 536,
        },
        net.now,
    );
    net.run(5);
    assert_eq!(net.server.talks[1].received, 7_000);
    assert_eq!(net.counters().TimeWaitRecycled, 1);
    net.assert_empty();
}

#[test]
fn refused_stays_refused() {
    for source in [SourceMode::Replace, SourceMode::Keep] {
        let mut net = Net::new(convert(source));
        net.server.listener = Listener::Refuses;
        net.connect(4000, 10);
        net.run(5);
        assert_eq!(net.phase(0), Phase::Closed(CloseReason::Refused));
        assert_eq!(net.counters().AttemptFails, 1);
        net.assert_empty();
    }
}

#[test]
fn unreachable_stays_unreachable() {
    for source in [SourceMode::Replace, SourceMode::Keep] {
        let mut net = Net::new(convert(source));
        net.server.listener = Listener::Unreachable;
        net.connect(4000, 10);
        net.run(5);
        assert_eq!(net.phase(0), Phase::Closed(CloseReason::Unreachable));
        let told = [IcmpError {
            flow: net.client.talks[0].flow,
            seq: opening().iss,
            from: server().addr,
            kind: IcmpErrorKind::Unreachable(Unreachable::Host),
        }];
        assert_eq!(net.client.told, told);
        for (node, shard) in [("umcp", &net.umcp), ("dmcp", &net.dmcp)] {
            let c = shard.counters();
            assert_eq!((c.InIcmpErrors, c.OutIcmpErrors, c.OutRsts), (1, 1, 0), "{node}");
        }
        assert!(
            net.umcp.config().negative_cache().avoided(0, net.now).is_none(),
            "the dMCP does convert"
        );
        net.assert_empty();
    }
}

#[test]
fn a_server_that_does_not_resolve_is_unreachable_at_the_client() {
    let mut net = Net::new(convert(SourceMode::Replace));
    net.unresolved = Some((Node::Dmcp, server().addr));
    net.connect(4000, 10);
    net.run(5);
    assert_eq!(net.phase(0), Phase::Closed(CloseReason::Unreachable));
    assert_eq!((net.dmcp.counters().OutUnreachable, net.server.syns), (1, 0));
    net.assert_empty();
}

#[test]
fn an_unreachable_dmcp_is_avoided_and_the_client_does_not_notice() {
    let mut net = Net::new(convert(SourceMode::Replace));
    net.unresolved = Some((Node::Umcp, addr("10.0.1.2")));
    net.server.answers = 3_000;
    net.connect(4000, 2_000);
    net.run(2);
    net.assert_exchanged(2_000, 3_000);
    net.connect(4001, 10);
    net.run(2);
    let c = net.counters();
    assert_eq!((c.ConvertUnreachable, c.ConvertAvoided, c.OutIcmpErrors), (1, 1, 0));
    net.assert_empty();
}

#[test]
fn a_forged_icmp_error_does_not_end_an_attempt() {
    for (off, expected) in [(1, Phase::Opening), (0, Phase::Closed(CloseReason::Unreachable))] {
        let mut net = Net::new(convert(SourceMode::Replace));
        net.server.listener = Listener::Silent;
        net.connect(4000, 10);
        let sent = net.run_until(Duration::from_secs(1), |net| {
            net.wire.values().any(|(to, _)| *to == Node::Server)
        });
        assert!(sent, "a SYN for the server");
        let syn = net.wire.values().find(|(to, _)| *to == Node::Server).unwrap().1.clone();
        let mut forged = syn;
        forged[27] ^= off; // SEG.SEQ
        net.send(Node::Server, icmp_unreachable(&forged));
        net.run(1);
        assert_eq!(net.phase(0), expected);
    }
}

#[test]
fn a_silent_server_stays_silent() {
    let (mut up, mut down) = convert(SourceMode::Replace);
    for config in [&mut up, &mut down] {
        config.tcp.syn_retries = 2;
        config.mptcp.tcp.syn_retries = 3;
    }
    let mut net = Net::new((up, down));
    net.server.listener = Listener::Silent;
    net.connect(4000, 10);
    net.run(600);
    assert_eq!(net.phase(0), Phase::Closed(CloseReason::TimedOut));
    net.assert_empty();
}

#[test]
fn a_duplicate_syn_makes_no_second_connection() {
    for node in [Node::Umcp, Node::Dmcp, Node::Server] {
        let mut net = Net::new(convert(SourceMode::Replace));
        net.twice = Some(node);
        net.server.answers = 20_000;
        net.connect(4000, 20_000);
        net.run(10);
        net.assert_exchanged(20_000, 20_000);
        assert_eq!((net.server.talks.len(), net.counters().PassiveOpens), (1, 1), "{node:?}");
        net.assert_empty();
    }
}

#[test]
fn a_reset_from_either_end_reaches_the_other() {
    for from_client in [true, false] {
        let mut net = Net::new(convert(SourceMode::Replace));
        net.connect(4000, 10_000);
        net.client.talks[0].closes_first = false;
        net.server.closes_first = false;
        net.run(2);
        assert_eq!(net.server.talks[0].received, 10_000);
        let host = if from_client { &mut net.client } else { &mut net.server };
        host.talks[0].stream.abort(CloseReason::Aborted);
        net.run(5);
        let other = if from_client { &net.server } else { &net.client };
        let phase = other.talks[0].stream.phase();
        assert_eq!(phase, Phase::Closed(CloseReason::Reset), "from client: {from_client}");
        net.assert_empty();
    }
}

#[test]
fn a_dmcp_that_does_not_convert_is_avoided_and_the_client_does_not_notice() {
    type Count = fn(&Counters) -> u64;
    let cases: [(Impostor, Count); 5] = [
        (Impostor::PlainTcp, |c| c.ConvertNoMptcp),
        (Impostor::Ignores, |c| c.ConvertIgnored),
        (Impostor::Eats, |c| c.ConvertEaten),
        (Impostor::Garbles, |c| c.ConvertEchoDiffers),
        (Impostor::Dead, |c| c.ConvertSilent),
    ];
    for (kind, count) in cases {
        let mut net = Net::with_impostor(kind);
        net.server.answers = 30_000;
        net.connect(4000, 20_000);
        net.run(20);
        assert_eq!(net.server.talks.len(), 1, "{kind:?}");
        net.assert_exchanged(20_000, 30_000);
        assert_eq!(net.server.talks[0].flow.remote.addr, addr("10.0.1.1"));
        assert_eq!((count(net.counters()), net.counters().ConvertAvoided), (1, 0), "{kind:?}");
        net.connect(4001, 10);
        net.run(5);
        assert_eq!(net.client.talks[1].received, 30_000);
        assert_eq!((count(net.counters()), net.counters().ConvertAvoided), (1, 1), "{kind:?}");
        net.umcp.config_mut().negative_cache_mut().flush();
        net.connect(4002, 10);
        net.run(20);
        assert_eq!(count(net.counters()), 2, "{kind:?}: a flush lets it try again");
        net.assert_empty();
    }
}

#[test]
fn a_reset_from_the_dmcp_means_that_the_server_refused() {
    let mut net = Net::with_impostor(Impostor::Refuses);
    net.connect(4000, 10);
    net.run(5);
    assert_eq!(net.phase(0), Phase::Closed(CloseReason::Refused));
    assert_eq!(net.server.syns, 0, "SPEC 3.3: a RST does not say that it cannot convert");
    net.assert_empty();
}

#[test]
fn counters_are_current_while_a_connection_lives() {
    let mut net = Net::new(convert(SourceMode::Replace));
    net.connect(4000, 50_000);
    net.client.talks[0].closes_first = false;
    net.server.closes_first = false;
    let joined = net.run_until(Duration::from_secs(5), |net| {
        let infos = net.umcp.sessions().map(|s| s.info(net.umcp.config(), net.now));
        infos.into_iter().any(
            |info| matches!(info.far, LegInfo::Mptcp { ref subflows, .. } if subflows.len() > 1),
        )
    });
    assert!(joined);
    let m = net.umcp.config().mptcp_counters();
    assert_eq!((m.MPCapableSYNTX, m.MPCapableSYNACKRX), (1, 1));
    assert!(m.MPJoinSynTx >= 1, "in the very turn in which it is sent");
    // Nothing that the client sends twice is new, and the leg says so.
    net.run(1);
    assert_eq!(net.counters().DuplicateText + net.counters().OutOfWindow, 0);
    let Some((flow, iss)) = net.client.talks.first().map(|t| (t.flow, opening().iss)) else {
        panic!()
    };
    let again = Segment {
        seq: iss + 1,
        ack: Some(iss),
        control: Control::None,
        push: false,
        window: Default::default(),
        options: crate::wire::Options::Segment(Default::default()),
        text: Chain::copy_from(&net.client.pool, 128, b"old").unwrap(),
        ..Default::default()
    };
    net.send(Node::Client, emit(flow, &again, 0).to_vec());
    net.run(1);
    assert_eq!(net.counters().OutOfWindow, 1);
}

#[test]
fn a_slow_reader_holds_the_sender_back_and_memory_stays_bounded() {
    let mut net = Net::new(convert(SourceMode::Replace));
    net.server.reads = false;
    net.server.closes_first = false;
    net.connect(4000, 20 << 20);
    net.run(20);
    let (sent, held) = (net.client.talks[0].sent, net.most_held);
    assert!(sent < 4 << 20, "{sent} octets sent to somebody who does not read");
    assert!(held < FRAMES * 3 / 4, "{held} frames held");
    net.server.talks[0].reads = true;
    net.run(300);
    assert_eq!(net.server.talks[0].received, 20 << 20);
    net.assert_empty();
}

#[test]
fn a_client_that_gives_up_early_leaves_nothing_behind() {
    let mut net = Net::new(convert(SourceMode::Replace));
    net.server.listener = Listener::Silent;
    net.connect(4000, 10);
    net.run(1);
    assert_eq!(net.umcp.occupancy().half_open, 1);
    let flow = net.client.talks[0].flow;
    let rst = Segment {
        seq: opening().iss + 1,
        ack: None,
        control: Control::Rst,
        push: false,
        window: Default::default(),
        options: crate::wire::Options::Segment(Default::default()),
        text: Chain::new(),
        ..Default::default()
    };
    net.client.talks.clear();
    net.send(Node::Client, emit(flow, &rst, 0).to_vec());
    net.run(2);
    assert_eq!(net.umcp.occupancy().sessions, 0);
    net.assert_empty();
}

#[test]
fn a_relay_of_two_boxes_carries_data_over_mptcp() {
    let relay = |listen: &str, to: Endpoint, connect| Service::Relay {
        listen: Endpoint::new(addr(listen), to.port),
        server: to,
        connect,
    };
    let (mut up, mut down) = (mcp_config(1), mcp_config(2));
    let dmcp_at = Endpoint::new(addr("10.0.1.2"), SERVER_PORT);
    up.services.push(relay("192.168.1.1", dmcp_at, Transport::Mptcp));
    down.services.push(relay("10.0.1.2", server(), Transport::Tcp));
    down.source_addresses.push(addr("192.168.9.1"));
    let mut net = Net::new((up, down));
    net.server.answers = 5_000;
    net.connect(4000, 6_000);
    let remote = Endpoint::new(addr("192.168.1.1"), SERVER_PORT);
    net.client.talks[0].flow.remote = remote;
    net.run(10);
    net.assert_exchanged(6_000, 5_000);
    assert_eq!(net.dmcp.mptcp_names_seen(), "MPCapableSYNRX MPCapableACKRX");
    net.assert_empty();
}

#[test]
fn direct_goes_on_as_tcp_where_the_server_speaks_nothing_else() {
    let mut up = mcp_config(1);
    up.rules.push(Rule {
        name: "direct".into(),
        from: None,
        to: None,
        ports: 1..=65_535,
        action: Action::Direct { source: SourceMode::Keep },
    });
    let mut net = Net::new((up, mcp_config(2)));
    net.server.answers = 5_000;
    net.connect(4000, 6_000);
    net.run(10);
    net.assert_exchanged(6_000, 5_000);
    net.assert_empty();
}

#[test]
fn direct_meets_terminate_on_the_way_to_the_server() {
    let rule = |action| Rule { name: "all".into(), from: None, to: None, ports: 80..=80, action };
    let (mut up, mut down) = (mcp_config(1), mcp_config(2));
    up.rules.push(rule(Action::Direct { source: SourceMode::Keep }));
    down.rules.push(rule(Action::Terminate { source: SourceMode::Replace }));
    down.source_addresses.push(addr("192.168.9.1"));
    let mut net = Net::new((up, down));
    net.server.answers = 50_000;
    net.connect(4000, 60_000);
    net.run(10);
    net.assert_exchanged(60_000, 50_000);
    assert_eq!(net.dmcp.counters().RelayedUp, 60_000);
    assert_eq!(net.dmcp.mptcp_names_seen(), "MPCapableSYNRX MPCapableACKRX");
    assert_eq!(net.server.talks[0].flow.remote.addr, addr("192.168.9.1"));
    net.assert_empty();
}

#[test]
fn a_bypassed_flow_is_forwarded_as_it_is() {
    let mut net = Net::new((mcp_config(1), mcp_config(2)));
    net.server.answers = 5_000;
    net.connect(4000, 6_000);
    net.run(10);
    net.assert_exchanged(6_000, 5_000);
    assert_eq!(net.counters().PassiveOpens, 0);
    net.assert_empty();
}

trait Names {
    fn mptcp_names_seen(&self) -> String;
}

impl Names for Shard<Bridge> {
    /// Counters of the handshake that are not zero.
    fn mptcp_names_seen(&self) -> String {
        let all = self.config().mptcp_counters().entries();
        let seen = all.filter(|(name, n)| name.starts_with("MPCapable") && *n > 0);
        seen.map(|(name, _)| name).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_segment_in_is_a_segment_out() {
    let (up, _) = convert(SourceMode::Replace);
    let mcp = Mcp::from(up);
    let name = format!("{}", mcp.tcp.mss);
    assert_eq!(name, "1432", "the DSS fits beside what one TCP segment brings");
}
