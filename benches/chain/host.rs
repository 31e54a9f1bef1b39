//! A host with programs on our own TCP.
#![forbid(unsafe_code)]

use super::device::{Device, HEADROOM, Octets, pool};
use stack::buf::{Chain, Pool};
use stack::tcp::{Opening, Phase, Stream, TcpConfig};
use stack::time::{Duration, Instant};
use stack::wire::{Endpoint, FlowTuple, Parsed, RxPacket, SeqNum, TxPacket, emit, parse};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::rc::Rc;

/// Octets that a program writes at a time.
const WRITE: usize = 32 << 10;
/// How often the timers of connections that nothing happens to are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Connections whose programs write, a few at a time.
#[derive(Default)]
struct Line {
    /// Those that write now.
    writing: Vec<FlowTuple>,
    /// Those that wait for their turn.
    waiting: VecDeque<FlowTuple>,
    /// Octets that one writes before it makes room for the next.
    turn: usize,
}

/// A host with bulk programs.
pub struct Host {
    /// The same order in every run: the hash has no secret.
    flows: HashMap<FlowTuple, Stream, BuildHasherDefault<DefaultHasher>>,
    /// Connections to which something happened.
    active: Vec<FlowTuple>,
    line: Line,
    looked: Instant,
    pool: Pool,
    device: Device,
    config: Rc<TcpConfig>,
    written: Vec<u8>,
    /// Packets that wait for it.
    pub inbox: VecDeque<Octets>,
    /// Octets that its programs read.
    pub read: u64,
    /// Connections that have come up.
    pub opened: u64,
    /// Connections that have ended.
    pub closed: u64,
    received: Vec<RxPacket>,
    finished: Vec<TxPacket>,
}

impl Host {
    /// One without connections; it accepts whatever comes.
    pub fn new(config: TcpConfig, device: Device, frames: u32) -> Host {
        Host {
            flows: HashMap::default(),
            active: Vec::new(),
            line: Line::default(),
            looked: Instant::ZERO,
            pool: pool(frames),
            device,
            config: Rc::new(config),
            written: (0..WRITE).map(|i| i as u8).collect(),
            inbox: VecDeque::new(),
            read: 0,
            opened: 0,
            closed: 0,
            received: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Connects.
    pub fn connect(&mut self, local: Endpoint, remote: Endpoint, now: Instant) {
        let flow = FlowTuple { local, remote };
        let stream = Stream::connect(&self.config, opening(flow), now);
        self.flows.insert(flow, stream);
        self.active.push(flow);
    }

    /// From now on the programs write all they may: so many connections at a time, each so many octets before the next
    /// one's turn comes.
    pub fn write(
        &mut self,
        flows: impl IntoIterator<Item = FlowTuple>,
        at_once: usize,
        turn: usize,
    ) {
        let mut waiting: VecDeque<_> = flows.into_iter().collect();
        let writing = waiting.drain(..at_once.min(waiting.len())).collect();
        self.line = Line { writing, waiting, turn };
    }

    /// The program on this connection has nothing more to say.
    pub fn close(&mut self, flow: FlowTuple) {
        if let Some(stream) = self.flows.get_mut(&flow) {
            stream.close();
            self.active.push(flow);
        }
    }

    /// Takes all that waits, lets programs read all there is and write all there is room for.
    pub fn run(&mut self, now: Instant, mut out: impl FnMut(IpAddr, Octets)) {
        while self.receive(now) {}
        if now >= self.looked + LOOK {
            self.looked = now;
            for (flow, stream) in &mut self.flows {
                if stream.deadline().is_some_and(|at| at <= now) {
                    stream.on_deadline(now);
                    self.active.push(*flow);
                }
            }
        }
        self.write_in_turn();
        let mut active = std::mem::take(&mut self.active);
        active.sort_unstable();
        active.dedup();
        for flow in active.drain(..) {
            self.serve(flow, now);
        }
        self.active = active;
        for packet in self.finished.drain(..) {
            out(packet.flow.remote.addr, packet.to_vec());
        }
    }

    /// One burst; whether there was one.
    fn receive(&mut self, now: Instant) -> bool {
        self.device.receive(&mut self.inbox, &self.pool, &mut self.received);
        let some = !self.received.is_empty();
        for packet in self.received.drain(..) {
            let Ok(Parsed::Tcp(flow, segment)) = parse(packet) else { continue };
            let stream = self.flows.entry(flow).or_insert_with(|| {
                let mut stream = Stream::accept(&self.config, &segment, opening(flow), now);
                stream.answer(now);
                stream
            });
            let before = stream.phase();
            stream.on_segment(segment, now);
            self.opened += u64::from(before == Phase::Opening && stream.phase() == Phase::Open);
            if self.active.last() != Some(&flow) {
                self.active.push(flow);
            }
        }
        some
    }

    fn write_in_turn(&mut self) {
        let Line { writing, waiting, turn } = &mut self.line;
        for flow in writing {
            let Some(stream) = self.flows.get_mut(flow) else { continue };
            let mut written = 0;
            while written < *turn
                && stream.phase() == Phase::Open
                && stream.room() as usize >= WRITE
                && let Some(text) = Chain::copy_from(&self.pool, HEADROOM, &self.written)
            {
                stream.send(text);
                written += WRITE;
            }
            if written > 0 {
                self.active.push(*flow);
            }
            if written >= *turn
                && let Some(next) = waiting.pop_front()
            {
                waiting.push_back(std::mem::replace(flow, next));
            }
        }
    }

    /// Reads what came in, answers a FIN with a FIN, sends what may be sent.
    fn serve(&mut self, flow: FlowTuple, now: Instant) {
        let Some(stream) = self.flows.get_mut(&flow) else { return };
        while let Some(text) = stream.recv() {
            self.read += u64::from(text.len());
        }
        stream.grant(self.config.receive_buffer);
        if stream.recv_finished() && stream.phase() == Phase::Open {
            stream.close();
        }
        while let Some(tx) = stream.poll_transmit(now) {
            let packet = emit(flow, &tx.segment, tx.gso_size);
            self.device.finish(packet, &mut self.finished);
        }
        if matches!(stream.phase(), Phase::Closed(_) | Phase::TimeWait) {
            self.flows.remove(&flow); // nothing is lost here that TIME-WAIT would have to answer
            self.closed += 1;
        }
    }
}

/// Numbers that need not surprise anybody here.
fn opening(flow: FlowTuple) -> Opening {
    Opening {
        iss: SeqNum(u32::from(flow.local.port) << 16),
        ts_offset: 0,
        path_mss: u16::MAX,
        default_mss: 536,
    }
}
