//! Two endpoints in one thread: our TCP and MPTCP, each in a shard, against smoltcp over the same packets of 1,500 octets.
//!
//! Counted is everything from a program's octets to packets with finished checksums, and back to the other program's buffer;
//! what lies between is a queue of octets for all of them.
#![allow(missing_docs, reason = "a program")]
#![forbid(unsafe_code)]

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
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
use std::time::Instant as Clock;

const BUFFER: u32 = 1 << 20;
const WRITE: usize = 32 << 10;
const BURST: usize = 64;
const SEGMENT: f64 = 1_448.0;
const OCTETS: u64 = 400_000_000;
const ROUNDS: usize = 5;

type Queue = VecDeque<Vec<u8>>;

fn address(side: u8, path: u8) -> IpAddr {
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

/// One end of ours.
struct Ours {
    shard: Shard<Bulk>,
    pool: Pool,
    inbox: Queue,
    received: Vec<RxPacket>,
    sending: Vec<TxPacket>,
}

impl Ours {
    fn new(side: u8, subflows: u8) -> Ours {
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
        Ours {
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

/// Nanoseconds per 1,448 octets from one end of ours to the other.
fn ours(subflows: u8) -> f64 {
    let (mut a, mut b) = (Ours::new(1, subflows), Ours::new(2, subflows));
    let mut now = Instant::ZERO + Duration::from_secs(1);
    a.dial();
    let mut begun = None;
    loop {
        a.run(now, &mut b.inbox);
        b.run(now, &mut a.inbox);
        now += Duration::from_micros(50);
        let read = b.shard.config().read;
        match begun {
            None if read > OCTETS / 10 => begun = Some((Clock::now(), read)),
            Some((at, from)) if read > OCTETS => {
                return at.elapsed().as_nanos() as f64 / ((read - from) as f64 / SEGMENT);
            }
            _ => assert!(now < Instant::ZERO + Duration::from_secs(600), "it stands still"),
        }
    }
}

#[derive(Default)]
struct Queues {
    rx: Queue,
    tx: Queue,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Queue);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut octets = vec![0; len];
        let result = f(&mut octets);
        self.0.push_back(octets);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

struct Smol {
    device: Queues,
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Smol {
    fn new(side: u8) -> Smol {
        let mut device = Queues::default();
        let config = Config::new(HardwareAddress::Ip);
        let mut iface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::from(address(side, 1)), 24));
        });
        let mut sockets = SocketSet::new(vec![]);
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER as usize]);
        let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Smol { device, iface, sockets, handle }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn poll(&mut self, now: Instant, out: &mut Queue) {
        let now = smoltcp::time::Instant::from_micros(now.as_micros() as i64);
        self.iface.poll(now, &mut self.device, &mut self.sockets);
        out.append(&mut self.device.tx);
    }
}

/// As [`ours`], for smoltcp.
fn smoltcp() -> f64 {
    let (mut a, mut b) = (Smol::new(1), Smol::new(2));
    b.socket().listen(80).expect("a port");
    let handle = a.handle;
    let remote = (IpAddress::from(address(2, 1)), 80);
    let socket = a.sockets.get_mut::<tcp::Socket<'_>>(handle);
    socket.connect(a.iface.context(), remote, 4000).expect("an address");
    let (written, mut buffer) = (vec![7u8; WRITE], vec![0; 1 << 20]);
    let mut now = Instant::ZERO + Duration::from_secs(1);
    let (mut read, mut begun) = (0u64, None);
    loop {
        while a.socket().can_send() && a.socket().send_slice(&written).is_ok_and(|n| n == WRITE) {}
        a.poll(now, &mut b.device.rx);
        b.poll(now, &mut a.device.rx);
        while b.socket().can_recv() {
            read += b.socket().recv_slice(&mut buffer).map_or(0, |n| n as u64);
        }
        b.poll(now, &mut a.device.rx);
        now += Duration::from_micros(50);
        match begun {
            None if read > OCTETS / 10 => begun = Some((Clock::now(), read)),
            Some((at, from)) if read > OCTETS => {
                return at.elapsed().as_nanos() as f64 / ((read - from) as f64 / SEGMENT);
            }
            _ => assert!(now < Instant::ZERO + Duration::from_secs(600), "it stands still"),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    type Contender = (&'static str, fn() -> f64);
    let contenders: [Contender; 5] = [
        ("smoltcp", smoltcp),
        ("plain TCP", || ours(0)),
        ("MPTCP, 1 subflow", || ours(1)),
        ("MPTCP, 2 subflows", || ours(2)),
        ("MPTCP, 8 subflows", || ours(8)),
    ];
    if let Some(name) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) {
        let chosen = contenders.iter().filter(|(contender, _)| contender.contains(&name));
        chosen.for_each(|(name, run)| println!("{name}: {:.0} ns per 1,448 octets", run()));
        return;
    }
    let mut times = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (times, (_, run)) in times.iter_mut().zip(&contenders) {
            times.push(run());
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    println!("both ends, MTU 1500, one connection; median of {ROUNDS} rounds in turn");
    for ((name, _), time) in contenders.iter().zip(&medians) {
        println!(
            "{name:<18} {time:6.0} ns per 1,448 octets, {:5.2} x smoltcp, {:4.2} of plain TCP",
            medians[0] / time,
            medians[1] / time
        );
    }
}
