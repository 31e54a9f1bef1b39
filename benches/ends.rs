//! Two ends of our own TCP or MPTCP, each in a shard, in one thread: a program that writes all it may, and one that reads.
#![forbid(unsafe_code)]

use crate::TEXT;
use crate::chain::Device;
use crate::queue::Queue;
use stack::buf::{Chain, Pool};
use stack::mcp::{Leg, TcpLeg};
use stack::mptcp::{Connection, Event, Key, LocalAddress, MptcpConfig, SharedConfig};
use stack::rng::Rng;
use stack::shard::{Cx, Limits, Opened, Session, Shard, ShardConfig, Stage};
use stack::tcp::{CloseReason, CookiePolicy, Phase, Stream, TcpConfig};
use stack::time::{Duration, Instant};
use stack::wire::{
    Control, Endpoint, FlowTuple, IcmpError, Options, RxChecksum, RxPacket, Segment, SynOptions,
    TxPacket, UnscaledWindow, emit, segment_packet,
};
use std::net::IpAddr;
use std::rc::Rc;

/// Octets that a program writes at a time: 22 full segments.
pub const WRITE: usize = 22 * TEXT;
/// Octets per frame.
const CHUNK: usize = 2048;
/// Octets that a DSS takes of a full segment.
const DSS: usize = 20;
/// Packets that a device hands up at a time.
const BURST: usize = 64;
/// Packets that an end hands down at a time.
const BUDGET: usize = 256;

/// What runs between the two ends.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Connections at once.
    pub connections: u16,
    /// Subflows of each, of MPTCP; 0: TCP.
    pub subflows: u8,
    /// What the devices do.
    pub device: Device,
}

impl Setting {
    /// Octets of each of a connection's buffers: 64 MiB for all together, within limits. What one has under way stays in
    /// a core's cache: this measures stacks, not memory.
    pub fn buffer(&self) -> u32 {
        ((64 << 20) / u32::from(self.connections)).clamp(64 << 10, 256 << 10)
    }
}

/// Two ends, the first of which writes.
pub struct Pair {
    near: End,
    far: End,
    now: Instant,
}

impl Pair {
    /// They are about to connect.
    pub fn new(setting: Setting) -> Pair {
        let now = Instant::ZERO + Duration::from_secs(1);
        let (mut near, far) = (End::new(1, setting), End::new(2, setting));
        (0..setting.connections).for_each(|i| near.dial(4000 + i));
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

/// A side's address on a path.
pub fn address(side: u8, path: u8) -> IpAddr {
    [10, 0, path, side].into()
}

/// What all sessions of a shard share.
struct Shared {
    tcp: Rc<TcpConfig>,
    mptcp: Option<Rc<SharedConfig>>,
    written: Vec<u8>,
    /// Octets free in front of written text, so that a frame takes as much as a segment does.
    headroom: u16,
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
        self.leg.grant(config.tcp.receive_buffer);
        while self.writes
            && self.leg.phase() == Phase::Open
            && self.leg.room() as usize >= WRITE
            && let Some(text) = Chain::copy_from(cx.pool, config.headroom, &config.written)
        {
            self.leg.send(text);
        }
    }
}

impl Session for Bulk {
    type Config = Shared;

    fn limits(_: &Shared) -> Limits {
        let most = 2000;
        Limits {
            sessions: most,
            half_open: most,
            half_open_per_source: most,
            cookies: CookiePolicy::Off,
        }
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

    fn on_evicted(&mut self, _: &mut Shared, _: &mut Cx<'_>) {
        self.leg.abort(CloseReason::Aborted);
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
    device: Device,
    inbox: Queue,
    received: Vec<RxPacket>,
    sending: Vec<TxPacket>,
}

impl End {
    fn new(side: u8, setting: Setting) -> End {
        let Setting { connections, subflows, device } = setting;
        let buffer = setting.buffer();
        let tcp = TcpConfig { receive_buffer: buffer, send_buffer: buffer, ..TcpConfig::default() };
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
            let (send_buffer, receive_buffer) = (buffer, buffer);
            let config =
                MptcpConfig { tcp, addresses, send_buffer, receive_buffer, ..Default::default() };
            Rc::new(SharedConfig::from(config))
        });
        let segment = if mptcp.is_some() { TEXT - DSS } else { TEXT };
        // All that may wait to be acknowledged, and what is under way.
        let pool = Pool::new(16_384 + u32::from(connections) * (buffer >> 10), CHUNK);
        let owned = (0..=subflows.max(1)).map(|path| address(side, path)).collect();
        let config = ShardConfig { owned, ..ShardConfig::default() };
        let shared = Shared {
            tcp: Rc::new(tcp),
            mptcp,
            written: (0..WRITE).map(|i| i as u8).collect(),
            headroom: (CHUNK - segment) as u16,
            read: 0,
            buffer: Vec::new(),
        };
        End {
            shard: Shard::new(config, shared, pool.clone(), Rng::from_number(u64::from(side))),
            pool,
            device,
            inbox: Queue::default(),
            received: Vec::new(),
            sending: Vec::new(),
        }
    }

    /// The word to connect.
    fn dial(&mut self, port: u16) {
        let flow = FlowTuple {
            local: Endpoint::new(address(0, 0), port),
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
            ..Default::default()
        };
        let mut packet = emit(flow, &syn, 0);
        packet.finish_checksum();
        self.inbox.push(packet.to_vec(), 0);
    }

    fn run(&mut self, now: Instant, out: &mut Queue) {
        loop {
            self.receive();
            self.shard.ingest(&mut self.received, now);
            self.shard.expire(now);
            self.shard.transmit(&mut self.sending, BUDGET, now);
            let more = self.sending.len() == BUDGET;
            for packet in self.sending.drain(..) {
                if self.device == Device::Offloads {
                    gather(&packet, out);
                    continue;
                }
                for mut segment in segment_packet(packet) {
                    segment.finish_checksum();
                    gather(&segment, out);
                }
            }
            if self.inbox.is_empty() && !more {
                return;
            }
        }
    }

    /// Up to a burst of packets in frames, as a device writes them.
    fn receive(&mut self) {
        let checksum = match self.device {
            Device::Plain => RxChecksum::Unknown,
            Device::Offloads => RxChecksum::Valid,
        };
        while self.received.len() < BURST
            && let Some(packet) = self.inbox.pop()
        {
            let octets = Chain::copy_from(&self.pool, 128, &packet.octets).expect("frames");
            self.inbox.reuse(packet.octets);
            let gso_size = packet.gso_size;
            self.received.push(RxPacket { octets, checksum, gso_size, port: 0 });
        }
    }
}

/// Puts a packet on its way, as a device reads it.
fn gather(packet: &TxPacket, out: &mut Queue) {
    let mut octets = out.buffer();
    octets.clear();
    octets.extend_from_slice(&packet.header);
    for part in packet.text.parts() {
        octets.extend_from_slice(part.bytes());
    }
    out.push(octets, packet.gso_size);
}
