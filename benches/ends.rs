//! Two ends of our own TCP or MPTCP, each in a shard, in one thread: a program that writes all it may, and one that reads.
#![forbid(unsafe_code)]

use stack::buf::{Chain, Pool};
use stack::mcp::{Leg, TcpLeg};
use stack::mptcp::{Connection, Event, Key, LocalAddress, MptcpConfig, SharedConfig};
use stack::rng::Rng;
use stack::shard::{Cx, Limits, Opened, Session, Shard, ShardConfig, Stage};
use stack::tcp::{Phase, Stream, TcpConfig};
use stack::time::{Duration, Instant};
use stack::wire::{
    Control, Endpoint, FlowTuple, IcmpError, Options, RxChecksum, RxPacket, Segment, SynOptions,
    TxPacket, UnscaledWindow, emit, segment_packet,
};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;

/// Octets of every buffer.
pub const BUFFER: u32 = 1 << 20;
/// Octets that the program writes at a time.
pub const WRITE: usize = 32 << 10;
const BURST: usize = 64;

/// Two ends, the first of which writes.
pub struct Pair {
    near: End,
    far: End,
    now: Instant,
}

impl Pair {
    /// MPTCP with so many subflows; without any: TCP.
    pub fn new(subflows: u8) -> Pair {
        let now = Instant::ZERO + Duration::from_secs(1);
        let (mut near, far) = (End::new(1, subflows), End::new(2, subflows));
        near.dial();
        Pair { near, far, now }
    }

    /// Both once; how much has been read so far.
    ///
    /// # Panics
    /// If nothing has moved for ten minutes of virtual time.
    pub fn turn(&mut self) -> u64 {
        self.near.run(self.now, &mut self.far.inbox);
        self.far.run(self.now, &mut self.near.inbox);
        self.now += Duration::from_micros(50);
        assert!(self.now < Instant::ZERO + Duration::from_secs(600), "it stands still");
        self.far.shard.config().read
    }
}

/// Packets on their way.
pub type Queue = VecDeque<Vec<u8>>;

/// A side's address on a path.
pub fn address(side: u8, path: u8) -> IpAddr {
    [10, 0, path, side].into()
}

/// What all sessions of a shard share.
struct Shared {
    tcp: Rc<TcpConfig>,
    mptcp: Option<Rc<SharedConfig>>,
    written: Vec<u8>,
    read: u64,
    buffer: Vec<u8>,
}

/// A program that writes as much as it may and reads all there is.
struct Bulk {
    leg: Leg,
    writes: bool,
}

impl Bulk {
    fn run(&mut self, config: &mut Shared, cx: &mut Cx<'_>) {
        while let Some(event) = self.leg.poll_event() {
            match event {
                Event::FlowOpened(flow) => drop(cx.add_flow(flow)),
                Event::FlowClosed(flow, _) => cx.remove_flow(flow),
                _ => {}
            }
        }
        while let Some(text) = self.leg.recv() {
            config.read += u64::from(text.len());
            config.buffer.resize(text.len() as usize, 0);
            text.copy_to(&mut config.buffer);
        }
        self.leg.grant(BUFFER);
        while self.writes
            && self.leg.phase() == Phase::Open
            && self.leg.room() as usize >= WRITE
            && let Some(text) = Chain::copy_from(cx.pool, 128, &config.written)
        {
            self.leg.send(text);
        }
    }
}

impl Session for Bulk {
    type Config = Shared;

    fn limits(_: &Shared) -> Limits {
        Limits { sessions: 1000, half_open: 1000 }
    }

    /// A SYN from side 0 is a word to connect to side 2.
    fn open(config: &mut Shared, flow: FlowTuple, syn: &Segment, cx: &mut Cx<'_>) -> Opened<Bulk> {
        let dials = flow.remote.addr == address(0, 0);
        let flow = match dials {
            true => FlowTuple {
                local: Endpoint::new(address(1, 1), flow.remote.port),
                remote: Endpoint::new(address(2, 1), 80),
            },
            false => flow,
        };
        let opening = cx.opening(flow);
        let leg = match &config.mptcp {
            None => {
                let mut stream = match dials {
                    true => Stream::connect(&config.tcp, opening, cx.now),
                    false => Stream::accept(&config.tcp, syn, opening, cx.now),
                };
                stream.answer(cx.now);
                Leg::Tcp(Box::new(TcpLeg { flow, stream }))
            }
            Some(mptcp) => {
                let key = cx.fresh_key(|key| Key(key).token()).expect("a key");
                let connection = match dials {
                    true => {
                        let text = Chain::new();
                        Connection::connect(mptcp.clone(), Key(key), flow, text, cx.rng, cx.now)
                    }
                    false => {
                        let (mptcp, key) = (mptcp.clone(), Key(key));
                        let mut connection =
                            Connection::accept(mptcp, key, flow, syn, 0, cx.rng, cx.now)
                                .expect("MP_CAPABLE");
                        connection.answer(Chain::new(), cx.now);
                        connection
                    }
                };
                cx.add_token(connection.token());
                Leg::Mptcp(Box::new(connection))
            }
        };
        cx.add_flow(flow);
        Opened::Session(Bulk { leg, writes: dials })
    }

    fn on_segment(
        &mut self,
        config: &mut Shared,
        flow: FlowTuple,
        segment: Segment,
        cx: &mut Cx<'_>,
    ) {
        self.leg.on_segment(flow, segment, cx);
        self.run(config, cx);
    }

    fn on_join(&mut self, config: &mut Shared, flow: FlowTuple, syn: Segment, cx: &mut Cx<'_>) {
        if let Leg::Mptcp(connection) = &mut self.leg {
            connection.join(flow, syn, cx.rng, cx.now).expect("a join that is welcome");
        }
        self.run(config, cx);
    }

    fn on_icmp(&mut self, _: &mut Shared, _: IcmpError, _: &mut Cx<'_>) {}

    fn on_deadline(&mut self, config: &mut Shared, cx: &mut Cx<'_>) {
        self.leg.on_deadline(cx);
        self.run(config, cx);
    }

    fn poll_transmit(&mut self, config: &mut Shared, cx: &mut Cx<'_>) -> Option<TxPacket> {
        let packet = self.leg.poll_transmit(cx);
        self.run(config, cx);
        packet.or_else(|| self.leg.poll_transmit(cx))
    }

    fn deadline(&self) -> Option<Instant> {
        self.leg.deadline()
    }

    fn stage(&self) -> Stage {
        if self.leg.is_up() { Stage::Open } else { Stage::HalfOpen }
    }

    fn on_removed(&mut self, _: &mut Shared, _: &mut Cx<'_>) {}
}

/// One end.
struct End {
    shard: Shard<Bulk>,
    pool: Pool,
    inbox: Queue,
    received: Vec<RxPacket>,
    sending: Vec<TxPacket>,
}

impl End {
    fn new(side: u8, subflows: u8) -> End {
        let tcp = TcpConfig { receive_buffer: BUFFER, send_buffer: BUFFER, ..TcpConfig::default() };
        let addresses = (1..=subflows).map(|path| LocalAddress {
            addr: address(side, path),
            signal: side == 2,
            subflow: side == 1,
            backup: false,
            fullmesh: false,
            reach: vec![stack::wire::Prefix { addr: address(0, path), len: 24 }],
        });
        let mptcp = (subflows > 0).then(|| {
            let tcp = tcp.clone();
            let addresses = addresses.collect();
            let (send_buffer, receive_buffer) = (BUFFER, BUFFER);
            let config =
                MptcpConfig { tcp, addresses, send_buffer, receive_buffer, ..Default::default() };
            Rc::new(SharedConfig::from(config))
        });
        let pool = Pool::new(16_384, 2048);
        let owned = (0..=subflows.max(1)).map(|path| address(side, path)).collect();
        let config = ShardConfig { owned, ..ShardConfig::default() };
        let shared = Shared {
            tcp: Rc::new(tcp),
            mptcp,
            written: (0..WRITE).map(|i| i as u8).collect(),
            read: 0,
            buffer: Vec::new(),
        };
        End {
            shard: Shard::new(config, shared, pool.clone(), Rng::from_number(u64::from(side))),
            pool,
            inbox: Queue::new(),
            received: Vec::new(),
            sending: Vec::new(),
        }
    }

    /// The word to connect.
    fn dial(&mut self) {
        let flow = FlowTuple {
            local: Endpoint::new(address(0, 0), 4000),
            remote: Endpoint::new(address(1, 0), 1),
        };
        let syn = Segment {
            seq: Default::default(),
            ack: None,
            control: Control::Syn,
            push: false,
            window: UnscaledWindow(1000),
            options: Options::Syn(SynOptions::default()),
            text: Chain::new(),
        };
        let mut packet = emit(flow, &syn, 0);
        packet.finish_checksum();
        self.inbox.push_back(packet.to_vec());
    }

    fn run(&mut self, now: Instant, out: &mut Queue) {
        loop {
            while self.received.len() < BURST
                && let Some(octets) = self.inbox.pop_front()
            {
                let octets = Chain::copy_from(&self.pool, 128, &octets).expect("frames");
                let checksum = RxChecksum::Unknown;
                self.received.push(RxPacket { octets, checksum, gso_size: 0, port: 0 });
            }
            self.shard.ingest(&mut self.received, now);
            self.shard.expire(now);
            self.shard.transmit(&mut self.sending, 256, now);
            let more = self.sending.len() == 256;
            for packet in self.sending.drain(..) {
                for mut segment in segment_packet(packet) {
                    segment.finish_checksum();
                    out.push_back(segment.to_vec());
                }
            }
            if self.inbox.is_empty() && !more {
                return;
            }
        }
    }
}
