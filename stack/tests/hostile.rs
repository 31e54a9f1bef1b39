//! Peers that do not play by the rules: forged, damaged and contradictory packets at every seam a peer reaches.
//!
//! Nothing here says what the answer has to be, only what it must not be: a panic, a loop without progress, an answer
//! storm, a frame or a session that stays.

use stack::buf::{Chain, Pool};
use stack::mcp::{Action, Bridge, McpConfig, RemoteMcp, Rule, Service, SourceMode, Transport};
use stack::mptcp::{Key, LocalAddress, MptcpConfig, key};
use stack::rng::Rng;
use stack::shard::{Shard, ShardConfig};
use stack::tcp::{
    Algorithm, CloseReason, CookiePolicy, EcnMode, FastOpenRoles, MtuProbing, Pacing, TcpConfig,
};
use stack::testkit::packet::{MPTCP, TcpPacket, too_big};
use stack::testkit::reference::{Topology, Transfer};
use stack::testkit::{Link, Pass};
use stack::time::{Duration, Instant};
use stack::wire::{
    AddAddr, AddressIds, Control, DataAck, Dsn, Dss, DssDsn, DssMapping, EcnFlags, Endpoint,
    FastOpen, FastOpenCookie, FastOpenKind, FlowTuple, MpCapable, MpFastclose, MpJoin, MptcpOption,
    Options, Parsed, Prefix, ResetReason, RxChecksum, RxPacket, SackBlock, Segment, SegmentOptions,
    SeqNum, SynOptions, Timestamps, TrafficClass, TxPacket, UnscaledWindow, emit, parse,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

const FRAMES: u32 = 2048;
const CHUNK: usize = 2048;
/// The attacker's key, in every connection.
const KEY: Key = Key(0x0123_4567_89ab_cdef);

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn end(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().map(|a| Endpoint::new(a.ip(), a.port())).unwrap()
}

/// Whatever can be switched.
fn tcp_config(rng: &mut Rng) -> TcpConfig {
    let mut pick = |n: u32| rng.below(n) as usize;
    TcpConfig {
        receive_buffer: 1 << 18,
        send_buffer: 1 << 18,
        congestion: [Algorithm::NewReno, Algorithm::Cubic, Algorithm::Bbr][pick(3)],
        pacing: [Pacing::Auto, Pacing::On, Pacing::Off][pick(3)],
        ecn: [EcnMode::Off, EcnMode::Accept, EcnMode::On, EcnMode::Accurate][pick(4)],
        abe: pick(2) == 0,
        timestamps: pick(4) > 0,
        sack: pick(4) > 0,
        nagle: pick(4) == 0,
        mtu_probing: [MtuProbing::Off, MtuProbing::BlackHole, MtuProbing::Always][pick(3)],
        base_mss: [88, 536, 1024, 1460][pick(4)],
        fast_open: FastOpenRoles { client: pick(2) == 0, server: pick(2) == 0 },
        fast_open_pending: [0, 3, 256][pick(3)],
        syn_cookies: [CookiePolicy::Off, CookiePolicy::Auto, CookiePolicy::Always][pick(3)],
        keepalive: [None, Some(Duration::from_millis(300))][pick(2)],
        ..TcpConfig::default()
    }
}

/// A uMCP (rules, relay) and a dMCP (explicit service) in one.
fn config(checksum: bool, rng: &mut Rng) -> McpConfig {
    let tcp = tcp_config(rng);
    let address = |text: &str| LocalAddress {
        addr: addr(text),
        signal: true,
        subflow: true,
        backup: false,
        fullmesh: false,
        reach: vec![],
    };
    let rule = |ports, action| Rule { name: "r".into(), from: None, to: None, ports, action };
    let explicit = |port, source| Service::Explicit { addr: addr("10.0.1.1"), port, source };
    McpConfig {
        mptcp: MptcpConfig {
            tcp: tcp.clone(),
            checksum,
            addresses: vec![address("10.0.1.1"), address("10.0.2.1")],
            receive_buffer: 1 << 18,
            send_buffer: 1 << 18,
            ..MptcpConfig::default()
        },
        tcp,
        remotes: vec![RemoteMcp { name: "d".into(), endpoints: vec![end("10.0.1.2:5123")] }],
        services: vec![
            Service::Relay {
                listen: end("10.0.1.1:80"),
                server: end("192.168.9.2:80"),
                connect: Transport::Mptcp,
            },
            Service::Relay {
                listen: end("10.0.1.1:81"),
                server: end("192.168.9.2:80"),
                connect: Transport::Tcp,
            },
            explicit(Some(5123), SourceMode::Replace),
            explicit(None, SourceMode::Keep),
        ],
        rules: vec![
            rule(100..=100, Action::Reject),
            rule(101..=101, Action::Bypass),
            rule(102..=102, Action::Terminate { source: SourceMode::Replace }),
            rule(103..=103, Action::Direct { source: SourceMode::Keep }),
            rule(1..=65535, Action::Convert { remote: 0, source: SourceMode::Keep }),
        ],
        source_addresses: vec![addr("192.168.9.1")],
        preserved_sources: vec![Prefix { addr: addr("192.168.0.0"), len: 16 }],
        buffer: 1 << 18,
        max_connections: 64,
        max_half_open: 48,
        max_half_open_per_source: 40,
        negative_cache_ttl: Duration::from_millis(50),
    }
}

/// What the attacker knows of a flow: everything, being every peer at once.
#[derive(Clone, Default)]
struct Known {
    /// It began with MP_JOIN.
    joins: bool,
    /// What the shard sends next, and expects next.
    seq: u32,
    ack: u32,
    isn: u32,
    /// Our own initial number.
    own_isn: u32,
    /// Its key and timestamp.
    key: u64,
    ts: u32,
    nonce: u32,
    /// What its SYN carried.
    text: Vec<u8>,
    sent: u32,
}

struct Attack {
    shard: Shard<Bridge>,
    pool: Pool,
    /// Where what the shard sends is looked at.
    view: Pool,
    rng: Rng,
    now: Instant,
    flows: BTreeMap<FlowTuple, Known>,
    tokens: Vec<u64>,
    /// The last that the shard gave.
    cookie: Option<FastOpenCookie>,
    /// By the shard's port.
    keys: BTreeMap<u16, u64>,
    tx: Vec<TxPacket>,
    injected: u64,
}

impl Attack {
    fn new(seed: u64) -> Attack {
        let pool = Pool::new(FRAMES, CHUNK);
        let owned = ["10.0.1.1", "10.0.2.1", "192.168.9.1"].map(addr).to_vec();
        let shard = ShardConfig { owned, max_time_wait: 32, ..ShardConfig::default() };
        Attack {
            shard: Shard::new(
                shard,
                config(seed.is_multiple_of(2), &mut Rng::from_number(seed ^ 0xc0f)),
                pool.clone(),
                Rng::from_number(seed),
            ),
            pool,
            view: Pool::new(256, CHUNK),
            rng: Rng::from_number(seed ^ 0x5eed),
            now: Instant::from_millis(1_000),
            flows: BTreeMap::new(),
            tokens: vec![],
            cookie: None,
            keys: BTreeMap::new(),
            tx: vec![],
            injected: 0,
        }
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.rng.below(one_in) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.below(from.len() as u32) as usize]
    }

    /// Mostly near `base`, sometimes anywhere.
    fn near(&mut self, base: u32) -> u32 {
        match self.rng.below(16) {
            0 => self.rng.u32(),
            1 => base.wrapping_sub(1),
            2 => base.wrapping_add(1),
            3 => base.wrapping_add(self.rng.below(3000)),
            4 => base.wrapping_sub(self.rng.below(3000)),
            5 => base.wrapping_add(1 << 31),
            6 => base.wrapping_add(self.rng.below(1 << 20)),
            _ => base,
        }
    }

    fn near64(&mut self, base: u64) -> u64 {
        match self.rng.below(16) {
            0 => self.rng.u64(),
            1 => base.wrapping_add(1 << 63),
            2 => base.wrapping_add(1 << 32),
            3 => base.wrapping_add(u64::from(self.rng.u32())),
            _ => base.wrapping_sub(1 << 12).wrapping_add(u64::from(self.rng.below(1 << 13))),
        }
    }

    fn mptcp_option(&mut self, known: &Known) -> MptcpOption {
        let (sender, receiver) = (Some(KEY.0), Some(known.key));
        let len = self.pick(&[0, 1, 5, 100, 1400, u16::MAX]);
        let sum = self.chance(2).then_some(self.rng.u32() as u16);
        let (k, ids) = (Key(known.key), [0, 1, 2, 3, 255]);
        let first = if known.sent == 0 && self.chance(2) { 2 * u32::from(known.joins) } else { 16 };
        match self.rng.below(16).min(first) {
            0 => MptcpOption::MpCapable(MpCapable {
                version: 1,
                flags: self.pick(&[1, 0x81, 0x21, 0xff, 0]),
                sender_key: self.pick(&[sender, sender, None, Some(0)]),
                receiver_key: self.pick(&[receiver, receiver, None]),
                data: self.pick(&[None, Some((len, sum))]),
            }),
            1 => MptcpOption::MpJoin(MpJoin::SynAck {
                backup: self.chance(2),
                address_id: self.pick(&ids),
                hmac: key::left64(&key::join_hmac(KEY, k, 7, known.nonce)),
                nonce: 7,
            }),
            2 => MptcpOption::MpJoin(MpJoin::Ack {
                hmac: key::left160(&key::join_hmac(KEY, k, 7, known.nonce)),
            }),
            3 => {
                let (address_id, port) = (self.pick(&ids), self.pick(&[None, Some(80), Some(0)]));
                let port = if self.chance(2) { Some(self.rng.u32() as u16) } else { port };
                let to = self.pick(&["10.0.1.2", "10.0.1.1", "224.0.0.1", "0.0.0.0", "fd00::2"]);
                let hmac = key::add_addr_hmac(KEY, k, address_id, addr(to), port);
                let hmac = self.pick(&[Some(hmac), Some(hmac), None]);
                MptcpOption::AddAddr(AddAddr { address_id, addr: addr(to), port, hmac })
            }
            4 => MptcpOption::RemoveAddr(AddressIds { ids: [0, 1, 2, 3, 0, 255, 9, 9], len: 8 }),
            5 => MptcpOption::MpPrio { backup: self.chance(2) },
            6 if self.chance(4) => MptcpOption::MpFail(Dsn(self.rng.u64())),
            7 if self.chance(4) => {
                MptcpOption::MpFastclose(MpFastclose { receiver_key: known.key })
            }
            8 => MptcpOption::MpTcpRst { transient: true, reason: ResetReason::Middlebox },
            9 => MptcpOption::Unknown { subtype: self.rng.below(16) as u8, len: 5 },
            _ => self.dss(known, len, sum),
        }
    }

    fn dss(&mut self, known: &Known, len: u16, sum: Option<u16>) -> MptcpOption {
        let (ours, theirs) = (KEY.idsn().0.wrapping_add(1), Key(known.key).idsn().0);
        let dsn = self.near64(ours.wrapping_add(u64::from(known.sent)));
        let dsn = self.pick(&[dsn, ours, ours.wrapping_add(u64::from(known.sent))]);
        let ack = self.near64(theirs.wrapping_add(1));
        let ssn = known.ack.wrapping_sub(known.own_isn);
        let ssn = self.near(ssn);
        let mapping = DssMapping {
            dsn: self.pick(&[DssDsn::Long(Dsn(dsn)), DssDsn::Short(dsn as u32)]),
            ssn,
            len,
            checksum: sum,
        };
        let ack = self.pick(&[
            None,
            Some(DataAck::Long(Dsn(ack))),
            Some(DataAck::Short(ack as u32)),
            Some(DataAck::Long(Dsn(theirs.wrapping_add(1)))),
        ]);
        let mapping = if self.chance(3) { None } else { Some(mapping) };
        MptcpOption::Dss(Dss { data_ack: ack, mapping, data_fin: self.chance(12) })
    }

    fn text(&mut self, most: u32) -> Vec<u8> {
        let len = self.pick(&[0, 0, 1, 1, 5, 100, 1400, 1800]).min(most);
        (0..len).map(|_| self.rng.u32() as u8).collect()
    }

    /// No option, one that asks, one that the shard gave to somebody, or one that nobody did.
    fn fast_open(&mut self) -> Option<FastOpen> {
        let forged = FastOpenCookie::new(&self.rng.u64().to_be_bytes());
        let kind = self.pick(&[FastOpenKind::Assigned, FastOpenKind::Experimental]);
        let ask = Some(FastOpen { cookie: None, kind });
        let own = self.cookie.map(|cookie| FastOpen { cookie: Some(cookie), kind });
        let forged = Some(FastOpen { cookie: forged, kind });
        self.pick(&[None, None, ask, own, own, forged])
    }

    /// ECN bits of both headers, mostly none.
    fn ecn(&mut self) -> (EcnFlags, TrafficClass) {
        let drawn = (self.rng.below(8) as u8, self.rng.below(256) as u8);
        let (ace, class) = self.pick(&[(0, 0), (0, 0), (3, 0), (7, 0), drawn]);
        (EcnFlags::from_ace(ace), TrafficClass(class))
    }

    /// A router complains about a segment that the shard sent, or did not send.
    fn complain(&mut self, flow: FlowTuple, known: &Known) {
        let text = self.chain(&[0; 600]);
        let seq = self.near(known.seq);
        let back = self.rng.below(3000);
        let seq = SeqNum(self.pick(&[seq, seq.wrapping_sub(back)]));
        let options = Options::Segment(SegmentOptions::default());
        let segment = Segment { seq, text, options, ..Default::default() };
        let octets = emit(flow, &segment, 0).to_vec();
        let any = self.rng.below(1600);
        let mtu = self.pick(&[any, any, 0, 552, 68, u32::from(u16::MAX)]);
        drop(segment);
        if let Some(error) = too_big(addr("10.0.1.9"), &octets, mtu) {
            self.inject(&error);
        }
    }

    /// A SYN that could open something.
    fn syn(&mut self) -> (FlowTuple, Segment) {
        let to = self.pick(&[
            "10.0.1.1:80",
            "10.0.1.1:81",
            "10.0.1.1:5123",
            "10.0.1.1:9",
            "10.0.2.1:80",
            "192.0.2.1:100",
            "192.0.2.1:101",
            "192.0.2.1:102",
            "192.0.2.1:103",
            "192.0.2.1:443",
        ]);
        let from = Endpoint::new(addr("192.168.1.2"), 1000 + self.rng.below(40) as u16);
        let capable = MptcpOption::MpCapable(MpCapable {
            version: self.pick(&[1, 1, 1, 0, 5]),
            flags: self.pick(&[1, 1, 0x81, 0x41, 0x21, 0]),
            sender_key: self.pick(&[None, None, Some(KEY.0)]),
            receiver_key: None,
            data: None,
        });
        let recent = self.tokens.len().saturating_sub(4)..self.tokens.len();
        let recent = self.tokens[recent].to_vec();
        let key = if recent.is_empty() { 5 } else { self.pick(&recent) };
        let token = Key(key).token();
        let join =
            MptcpOption::MpJoin(MpJoin::Syn { backup: false, address_id: 3, token, nonce: 7 });
        let mut options = SynOptions {
            mss: self.pick(&[None, Some(0), Some(1), Some(1460), Some(u16::MAX)]),
            window_scale: self.pick(&[None, Some(0), Some(7), Some(14), Some(255)]),
            sack_permitted: self.chance(2),
            timestamps: self.pick(&[None, Some(Timestamps { val: 1, ecr: 0 })]),
            ..SynOptions::default()
        };
        if options.timestamps.is_none() {
            options.fast_open = self.fast_open(); // else there is no room for it beside MPTCP
        }
        let mut text = vec![];
        match self.rng.below(4) {
            0 => {}
            1 => {
                options.mptcp.push(join);
                let flow = FlowTuple { local: end(to), remote: from };
                let known = self.flows.entry(flow).or_default();
                (known.key, known.joins) = (key, true);
            }
            _ => options.mptcp.push(capable),
        }
        if self.chance(2) {
            // MP_CONVERT with an Information Element: the magic of plain mode, then as it comes.
            text = stack::wire::plain_mode::Convert {
                destination: Some(stack::wire::plain_mode::Target {
                    addr: self.pick(&["192.168.9.2", "10.0.1.1", "224.1.1.1"]).parse().unwrap(),
                    port: self.pick(&[Some(80), None]),
                }),
                source: None,
            }
            .write()
            .to_vec();
            if self.chance(3) {
                let at = self.rng.below(text.len() as u32) as usize;
                text[at] ^= 1 << self.rng.below(8);
            }
            text.extend(self.text(200));
        }
        let (ecn, traffic_class) = self.ecn();
        let segment = Segment {
            seq: SeqNum(self.rng.u32()),
            ack: None,
            control: Control::Syn,
            push: false,
            window: UnscaledWindow(self.pick(&[0, 1, 100, u16::MAX])),
            options: Options::Syn(options),
            text: self.chain(&text),
            ecn,
            traffic_class,
        };
        (FlowTuple { local: end(to), remote: from }, segment)
    }

    fn chain(&self, text: &[u8]) -> Chain {
        Chain::copy_from(&self.view, 0, text).unwrap()
    }

    /// A segment for a flow that the shard has said something on.
    fn segment(&mut self, flow: FlowTuple, known: &Known) -> Segment {
        let answer = known.ack == 0 && self.chance(2);
        let control = match self.rng.below(40) {
            0 => Control::Rst,
            1 | 2 => Control::Fin,
            3 => Control::Syn,
            _ if answer => Control::Syn,
            _ => Control::None,
        };
        let (seq, ack) = (self.near(known.ack), self.near(known.seq));
        let timestamps = (known.ts != 0 && !self.chance(20))
            .then_some(Timestamps { val: known.ts, ecr: self.near(known.ts) });
        let window = UnscaledWindow(self.pick(&[0, 1, 50, 5000, u16::MAX]));
        let text = self.text(if control == Control::Syn { 40 } else { 1800 });
        let options = if control == Control::Syn {
            let mut options =
                SynOptions { mss: Some(1460), window_scale: Some(7), ..SynOptions::default() };
            if !self.chance(3) {
                let option = match self.chance(2) {
                    false => MptcpOption::MpCapable(MpCapable {
                        version: 1,
                        flags: 1 | self.pick(&[0, 0x80]),
                        sender_key: Some(KEY.0),
                        receiver_key: None,
                        data: None,
                    }),
                    true => self.mptcp_option(known),
                };
                options.mptcp.push(option);
            }
            Options::Syn(options)
        } else {
            let mut options = SegmentOptions { timestamps, ..SegmentOptions::default() };
            let option = self.mptcp_option(known);
            let timed = if timestamps.is_some() { 12 } else { 0 };
            if option.written_len() + timed <= 40 && !self.chance(4) {
                options.mptcp.push(option);
            } else if self.chance(3) {
                for _ in 0..=self.rng.below(2) {
                    let (left, right) = (self.near(known.seq), self.near(known.seq));
                    options.sack.push(SackBlock { left: SeqNum(left), right: SeqNum(right) });
                }
            }
            Options::Segment(options)
        };
        let state = self.flows.entry(flow).or_default();
        if control == Control::Syn {
            state.own_isn = seq;
        } else {
            state.sent = state.sent.wrapping_add(text.len() as u32);
        }
        let text = self.chain(&text);
        let ack = (!self.chance(30)).then_some(SeqNum(ack));
        let (ecn, traffic_class) = self.ecn();
        Segment {
            seq: SeqNum(seq),
            ack,
            control,
            push: false,
            window,
            options,
            text,
            ecn,
            traffic_class,
        }
    }

    /// A converter echoes: often enough that explicit connections come up.
    fn echo(&mut self, known: &Known, mut segment: Segment) -> Segment {
        if segment.control == Control::Syn && !known.text.is_empty() && !self.chance(4) {
            segment.text = self.chain(&known.text);
        }
        segment
    }

    /// Octets on the wire, damaged or not.
    fn octets(&mut self, flow: FlowTuple, segment: &Segment) -> Vec<u8> {
        let whole = emit(flow, segment, 0).to_vec();
        let mut octets = stack::testkit::packet::repaired(whole).unwrap();
        if self.chance(6) {
            for _ in 0..=self.rng.below(3) {
                let at = self.rng.below(octets.len() as u32) as usize;
                octets[at] = self.rng.u32() as u8;
            }
            if self.chance(8) {
                octets.truncate(self.rng.below(octets.len() as u32) as usize);
            }
            if self.chance(2) {
                let spare = octets.clone();
                octets = stack::testkit::packet::repaired(octets).unwrap_or(spare);
            }
        }
        octets
    }

    /// Whether it was passed on.
    fn inject(&mut self, octets: &[u8]) -> bool {
        let Some(octets) = Chain::copy_from(&self.pool, 0, octets) else { return false };
        self.injected += 1;
        let before = *self.shard.counters();
        let mut rx = vec![RxPacket { octets, checksum: RxChecksum::Unknown, port: 0, gso_size: 0 }];
        self.shard.ingest(&mut rx, self.now);
        assert!(rx.is_empty());
        let counters = *self.shard.counters();
        assert_eq!(counters.InReceives, before.InReceives + 1);
        self.shard.passed().for_each(drop);
        self.settle();
        counters.Passed > before.Passed
    }

    /// Lets the shard send until it has nothing more: that must come soon.
    fn settle(&mut self) {
        let mut total = 0;
        for round in 0.. {
            assert!(round < 24, "the shard finds no rest");
            self.shard.expire(self.now);
            self.shard.transmit(&mut self.tx, 256, self.now);
            let later = self.shard.deadline();
            let done = self.tx.len() < 256 && later.is_none_or(|at| at > self.now);
            total += self.tx.len();
            for packet in core::mem::take(&mut self.tx) {
                self.learn(&packet);
            }
            if done {
                break;
            }
        }
        assert!(total < 4096, "{total} packets at once");
    }

    fn learn(&mut self, packet: &TxPacket) {
        let flow = packet.flow;
        let octets = packet.to_vec();
        let octets = Chain::copy_from(&self.view, 0, &octets[..octets.len().min(2000)]).unwrap();
        let view = RxPacket { octets, checksum: RxChecksum::Valid, port: 0, gso_size: 0 };
        let Ok(Parsed::Tcp(_, segment)) = parse(view) else { return };
        let known = self.flows.entry(flow).or_default();
        known.seq = (segment.seq + segment.len()).0;
        if segment.control == Control::Syn {
            known.isn = segment.seq.0;
            known.text = segment.text.to_vec();
            known.ack = 0;
        }
        if let Some(ack) = segment.ack {
            known.ack = ack.0;
        }
        if let Options::Syn(options) = &segment.options {
            let cookie = options.fast_open.and_then(|option| option.cookie);
            self.cookie = cookie.or(self.cookie);
        }
        let timestamps = match &segment.options {
            Options::Syn(options) => options.timestamps,
            Options::Segment(options) => options.timestamps,
        };
        known.ts = timestamps.map_or(0, |t| t.val);
        for option in segment.options.mptcp() {
            match option {
                MptcpOption::MpCapable(MpCapable { sender_key: Some(key), .. }) => {
                    known.key = *key;
                    self.tokens.push(*key);
                    self.keys.insert(flow.local.port, *key);
                }
                MptcpOption::MpJoin(MpJoin::Syn { nonce, .. }) => {
                    known.nonce = *nonce;
                    known.key = self.keys.get(&flow.local.port).copied().unwrap_or(0);
                }
                MptcpOption::MpJoin(MpJoin::SynAck { nonce, .. }) => known.nonce = *nonce,
                _ => {}
            }
        }
        if segment.control == Control::Rst {
            self.flows.remove(&flow);
        }
    }

    fn step(&mut self) {
        let flows: Vec<FlowTuple> = self.flows.keys().copied().collect();
        let (flow, segment) = if flows.is_empty() || self.chance(12) {
            let (flow, syn) = self.syn();
            self.flows.entry(flow).or_default().own_isn = syn.seq.0;
            (flow, syn)
        } else {
            let flow = self.pick(&flows);
            let known = self.flows[&flow].clone();
            if self.chance(20) {
                self.complain(flow, &known);
            }
            let segment = self.segment(flow, &known);
            (flow, self.echo(&known, segment))
        };
        let there = FlowTuple { local: flow.remote, remote: flow.local };
        let octets = self.octets(there, &segment);
        drop(segment);
        if self.inject(&octets) {
            self.flows.remove(&flow);
        }
        if self.chance(4) {
            self.now += Duration::from_millis(u64::from(self.rng.below(400)));
            self.settle();
        }
        if self.flows.len() > 200 {
            self.flows.clear();
        }
    }

    /// Orders an end, lets everybody time out, and looks for what is left.
    fn end(mut self) -> (stack::shard::Counters, stack::mptcp::MptcpCounters) {
        let ids: Vec<_> = self.shard.ids().collect();
        for id in ids {
            self.shard.run(id, self.now, |bridge, _, _| bridge.abort(CloseReason::Aborted));
        }
        self.settle();
        for _ in 0..20_000 {
            let Some(at) = self.shard.deadline() else { break };
            self.now = self.now.max(at);
            self.settle();
        }
        assert_eq!(self.shard.deadline(), None);
        let left = self.shard.occupancy();
        assert_eq!(left, stack::shard::Occupancy::default());
        assert_eq!(self.pool.free(), FRAMES, "frames are missing");
        (*self.shard.counters(), *self.shard.config().mptcp_counters())
    }
}

#[test]
fn a_peer_that_makes_things_up_does_no_harm() {
    let mut sum = stack::shard::Counters::default();
    let mut mptcp = stack::mptcp::MptcpCounters::default();
    let base = stack::testkit::seed(1);
    for seed in base..base + rounds() {
        let _seed = Told(seed);
        let mut attack = Attack::new(seed);
        for _ in 0..1500 {
            attack.step();
        }
        let (counters, of_mptcp) = attack.end();
        sum.add(&counters);
        mptcp.add(&of_mptcp);
    }
    // The attack is worth something only if it gets past the doors.
    assert!(sum.PassiveOpens > 100 && sum.ActiveOpens > 100 && sum.ConvertEstab > 0);
    assert!(sum.InCsumErrors > 0 && sum.InTruncated > 0 && sum.InBadHeader > 0, "{sum:?}");
    let m = mptcp;
    assert!(m.MPCapableACKRX > 0 && m.MPJoinAckRx > 0 && m.MPFastcloseRx > 0, "{m:?}");
    assert!(m.DSSNotMatching > 0 && m.DataCsumErr > 0 && m.AddAddr > 0, "{m:?}");
}

/// Says which seed it was when a test fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SIM_SEED={}", self.0);
        }
    }
}

/// Seeds to try; `HOSTILE_ROUNDS` in the environment asks for more.
fn rounds() -> u64 {
    std::env::var("HOSTILE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30)
}

/// Changes fields of TCP headers and of MPTCP options at random, and makes the checksum right again.
struct Forge {
    rng: Rng,
    /// One in so many packets.
    one_in: u32,
}

impl Forge {
    fn change(&mut self, packet: &mut TcpPacket) {
        let small = self.rng.below(9).wrapping_sub(4);
        let by = [1, u32::MAX, small, 1 << 31, 1448, 70_000][self.rng.below(6) as usize];
        let options: Vec<_> = packet.options().into_iter().filter(|o| o.kind == MPTCP).collect();
        match self.rng.below(12) {
            0 => packet.set_seq(packet.seq().wrapping_add(by)),
            1 => packet.set_ack(packet.ack().wrapping_add(by)),
            2 => {
                let flags = packet.flags() ^ 1 << self.rng.below(6);
                packet.set_flags(flags);
            }
            3 => {
                let keep = self.rng.below(packet.text().len() as u32 + 1) as usize;
                let text = packet.text()[..keep].to_vec();
                packet.set_text(&text);
            }
            4 => {
                let mut text = packet.text().to_vec();
                text.extend_from_within(..text.len().min(100));
                packet.set_text(&text);
            }
            5 => drop(packet.erase_options(MPTCP)),
            // Subtype, flags, numbers, lengths: whatever stands there.
            _ => {
                for option in options {
                    let octets = packet.option_mut(option);
                    let at = 2 + self.rng.below(octets.len() as u32 - 2) as usize;
                    octets[at] = match self.rng.below(3) {
                        0 => self.rng.u32() as u8,
                        1 => octets[at] ^ 1 << self.rng.below(8),
                        _ => octets[at].wrapping_add(by as u8),
                    };
                }
            }
        }
    }
}

impl Pass for Forge {
    fn pass(&mut self, _: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        if self.rng.below(self.one_in) == 0 {
            if self.rng.below(3) == 0 {
                out.push(packet.clone()); // the true one as well, first
            }
            self.change(&mut packet);
        }
        out.push(packet);
    }
}

#[test]
fn forged_fields_in_a_connection_that_is_up_do_no_harm() {
    let base = stack::testkit::seed(1);
    let (mut exact, mut broken) = (0, 0);
    for seed in base..base + rounds() {
        let link = Link::new(20_000_000, Duration::from_millis(5));
        let one_in = [4, 20, 100][(seed % 3) as usize];
        let forge = |salt| Forge { rng: Rng::from_number(seed ^ salt), one_in };
        let mut topology = Topology::new(seed, &[link.clone(), link]);
        topology.umcp.mptcp.checksum = seed.is_multiple_of(2);
        let mut network =
            topology.middlebox(0, forge(1 << 32)).middlebox(1, forge(1 << 33)).build();
        let mut transfer = Transfer::new(100_000, 200_000);
        transfer.limit = Duration::from_secs(30);
        let outcome = network.run(&transfer);
        exact += u32::from(outcome.is_exact());
        broken += u32::from(!outcome.is_exact());
        let now = network.sim.now();
        let (umcp, dmcp) = network.mcps.unwrap();
        for mcp in [umcp, dmcp] {
            network.sim[mcp].abort_all(now);
        }
        assert_eq!(network.leftovers(), None, "SIM_SEED={seed}");
    }
    assert!(exact > 0 && broken > 0);
}
