//! Conversion points and hosts that hand each other packets in one thread, without system calls.
#![forbid(unsafe_code)]

use stack::buf::{Chain, Pool};
use stack::mcp::{Bridge, McpConfig};
use stack::rng::Rng;
use stack::shard::{Shard, ShardConfig};
use stack::tcp::{Opening, Phase, Stream, TcpConfig};
use stack::time::Instant;
use stack::wire::{
    Endpoint, FlowTuple, Parsed, RxChecksum, RxPacket, SeqNum, TxPacket, emit, parse,
    segment_packet,
};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// Packets that a device hands up at a time.
const BURST: usize = 64;
/// Packets that a conversion point hands down at a time.
const BUDGET: usize = 256;
/// Octets per frame, and what of them is left in front of a received packet.
const CHUNK: usize = 2048;
const HEADROOM: u16 = 128;
/// Octets that a program writes at a time.
const WRITE: usize = 32 << 10;

/// What devices do by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// Nothing: packets of 1,500 octets, checksums in software.
    Plain,
    /// 64 KB super-segments both ways, checksums not looked at.
    Offloads,
}

/// A packet between two nodes.
pub type Octets = Vec<u8>;

impl Device {
    /// Up to a burst of packets in frames, as a device writes them.
    fn receive(self, inbox: &mut VecDeque<Octets>, pool: &Pool, rx: &mut Vec<RxPacket>) {
        let checksum = match self {
            Device::Plain => RxChecksum::Unknown,
            Device::Offloads => RxChecksum::Valid,
        };
        while rx.len() < BURST
            && let Some(packet) = inbox.front()
            && let Some(octets) = Chain::copy_from(pool, HEADROOM, packet)
        {
            inbox.pop_front();
            rx.push(RxPacket { octets, checksum, gso_size: 0, port: 0 });
        }
    }

    /// What a driver without offloads does with a packet before it leaves.
    fn finish(self, packet: TxPacket, out: &mut Vec<TxPacket>) {
        match self {
            Device::Plain => out.extend(segment_packet(packet).map(|mut segment| {
                segment.finish_checksum();
                segment
            })),
            Device::Offloads => out.push(packet),
        }
    }
}

/// What a conversion point did so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Time from a burst in frames to packets ready for the device.
    pub spent: Duration,
    /// Packets in.
    pub packets_in: u64,
    /// Packets out.
    pub packets_out: u64,
}

/// A conversion point.
pub struct Mcp {
    shard: Shard<Bridge>,
    pool: Pool,
    device: Device,
    /// Packets that wait for it.
    pub inbox: VecDeque<Octets>,
    /// What it did.
    pub work: Work,
    received: Vec<RxPacket>,
    sending: Vec<TxPacket>,
    finished: Vec<TxPacket>,
}

impl Mcp {
    /// One with these addresses of its own.
    pub fn new(config: McpConfig, owned: Vec<IpAddr>, device: Device, frames: u32) -> Mcp {
        let pool = Pool::new(frames, CHUNK);
        let rng = Rng::from_number(owned.len() as u64);
        let shard = ShardConfig { owned, ..ShardConfig::default() };
        Mcp {
            shard: Shard::new(shard, config, pool.clone(), rng),
            pool,
            device,
            inbox: VecDeque::new(),
            work: Work::default(),
            received: Vec::new(),
            sending: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Takes all that waits, burst by burst; what it answers goes to `out`.
    pub fn run(&mut self, now: Instant, mut out: impl FnMut(IpAddr, Octets)) {
        loop {
            self.device.receive(&mut self.inbox, &self.pool, &mut self.received);
            self.work.packets_in += self.received.len() as u64;
            let begun = std::time::Instant::now();
            self.shard.ingest(&mut self.received, now);
            self.shard.expire(now);
            self.shard.transmit(&mut self.sending, BUDGET, now);
            let more = self.sending.len() == BUDGET;
            for packet in self.sending.drain(..) {
                self.device.finish(packet, &mut self.finished);
            }
            self.work.spent += begun.elapsed();
            self.work.packets_out += self.finished.len() as u64;
            for packet in &self.finished {
                out(packet.flow.remote.addr, packet.to_vec());
            }
            let begun = std::time::Instant::now();
            self.finished.clear(); // frames go back: a cost of having sent
            self.work.spent += begun.elapsed();
            if self.inbox.is_empty() && !more {
                return;
            }
        }
    }
}

/// A host with bulk programs on our own TCP.
pub struct Host {
    flows: HashMap<FlowTuple, Stream>,
    pool: Pool,
    device: Device,
    config: Rc<TcpConfig>,
    written: Vec<u8>,
    /// Packets that wait for it.
    pub inbox: VecDeque<Octets>,
    /// Octets that its programs read.
    pub read: u64,
    received: Vec<RxPacket>,
    finished: Vec<TxPacket>,
}

impl Host {
    /// One without connections; it accepts whatever comes.
    pub fn new(config: TcpConfig, device: Device, frames: u32) -> Host {
        Host {
            flows: HashMap::new(),
            pool: Pool::new(frames, CHUNK),
            device,
            config: Rc::new(config),
            written: (0..WRITE).map(|i| i as u8).collect(),
            inbox: VecDeque::new(),
            read: 0,
            received: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Connects.
    pub fn connect(&mut self, local: Endpoint, remote: Endpoint, now: Instant) {
        let flow = FlowTuple { local, remote };
        let stream = Stream::connect(&self.config, opening(flow), now);
        self.flows.insert(flow, stream);
    }

    /// Takes all that waits, lets every program read all there is and, if `writes`, write all there is room for.
    pub fn run(&mut self, now: Instant, writes: bool, mut out: impl FnMut(IpAddr, Octets)) {
        loop {
            self.device.receive(&mut self.inbox, &self.pool, &mut self.received);
            if self.received.is_empty() {
                break;
            }
            for packet in self.received.drain(..) {
                let Ok(Parsed::Tcp(flow, segment)) = parse(packet) else { continue };
                let stream = self.flows.entry(flow).or_insert_with(|| {
                    let mut stream = Stream::accept(&self.config, &segment, opening(flow), now);
                    stream.answer(now);
                    stream
                });
                stream.on_segment(segment, now);
            }
        }
        for (flow, stream) in &mut self.flows {
            if stream.deadline().is_some_and(|at| at <= now) {
                stream.on_deadline(now);
            }
            while let Some(text) = stream.recv() {
                self.read += u64::from(text.len());
            }
            stream.grant(self.config.receive_buffer);
            while writes && stream.phase() == Phase::Open && stream.room() as usize >= WRITE {
                let Some(text) = Chain::copy_from(&self.pool, HEADROOM, &self.written) else {
                    break;
                };
                stream.send(text);
            }
            while let Some(tx) = stream.poll_transmit(now) {
                let packet = emit(*flow, &tx.segment, tx.gso_size);
                self.device.finish(packet, &mut self.finished);
            }
        }
        for packet in self.finished.drain(..) {
            out(packet.flow.remote.addr, packet.to_vec());
        }
    }

    /// Connections that are up.
    pub fn open(&self) -> usize {
        self.flows.values().filter(|stream| stream.phase() == Phase::Open).count()
    }
}

/// Numbers that need not surprise anybody here.
fn opening(flow: FlowTuple) -> Opening {
    Opening { iss: SeqNum(u32::from(flow.local.port) << 16), ts_offset: 0 }
}
