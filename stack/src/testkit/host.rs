//! A host that runs our own TCP with programs on top.
#![forbid(unsafe_code)]

use super::{App, End, Node, Outbox, Plan, Routes, Socket};
use crate::buf::{Chain, Pool};
use crate::rng::Rng;
use crate::tcp::{CloseReason, Opening, Phase, Stream, TcpConfig, reset_reply};
use crate::time::{Instant, earliest};
use crate::wire::{
    Control, Endpoint, FlowTuple, IcmpError, IcmpErrorKind, Parsed, RxChecksum, RxPacket, Segment,
    SeqNum, TxPacket, emit, parse, segment_packet,
};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::IpAddr;

/// What tests ask of a host, whoever's TCP it runs.
pub trait Host: Node {
    /// Serves connections to `port`, each by a program with this plan; `backlog` at a time.
    fn listen(&mut self, port: u16, plan: Plan, backlog: usize);
    /// Connects. Returns the number of its [`App`].
    fn connect(&mut self, to: Endpoint, plan: Plan, now: Instant) -> usize;
    /// All programs, in the order in which they began.
    fn apps(&self) -> Vec<&App>;
    /// Connections that are neither closed nor in TIME-WAIT.
    fn open(&self) -> usize;
    /// Frames that somebody still holds.
    fn frames_held(&self) -> u32 {
        0
    }
}

/// Octets in front of text that a program sends: room for every header.
const HEADROOM: u16 = 128;
/// Octets per frame.
pub(super) const CHUNK: usize = 2_048;

/// What a host does with SYNs to a port.
#[derive(Clone, Copy, Debug)]
enum Listener {
    Serve(Plan),
    /// Drops them.
    Silent,
}

struct Connection {
    flow: FlowTuple,
    stream: Stream,
    app: usize,
    /// Received, not read by the program.
    unread: Chain,
    touched: bool,
}

/// A host with any number of addresses, interface 0 unless routes say otherwise.
pub struct TcpHost {
    address: IpAddr,
    config: Rc<TcpConfig>,
    pool: Pool,
    rng: Rng,
    routes: Routes,
    listeners: BTreeMap<u16, Listener>,
    connections: Vec<Connection>,
    index: BTreeMap<FlowTuple, usize>,
    apps: Vec<App>,
    replies: Vec<(FlowTuple, Segment)>,
    next_port: u16,
    /// RSTs received for a connection.
    pub resets_received: u64,
}

impl TcpHost {
    /// A host with one address.
    pub fn new(address: IpAddr, config: TcpConfig, rng: Rng) -> TcpHost {
        TcpHost {
            address,
            config: Rc::new(config),
            pool: Pool::new(8_192, CHUNK),
            rng,
            routes: Routes::new().add("0.0.0.0/0", 0).add("::/0", 0),
            listeners: BTreeMap::new(),
            connections: Vec::new(),
            index: BTreeMap::new(),
            apps: Vec::new(),
            replies: Vec::new(),
            next_port: 40_000,
            resets_received: 0,
        }
    }

    /// Drops SYNs to `port` without a word.
    pub fn ignore(&mut self, port: u16) {
        self.listeners.insert(port, Listener::Silent);
    }

    /// A program, in the order in which they began.
    pub fn app(&self, index: usize) -> &App {
        &self.apps[index]
    }

    /// The frames.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn opening(&mut self) -> Opening {
        Opening {
            iss: SeqNum(self.rng.u32()),
            ts_offset: self.rng.u32(),
            path_mss: u16::MAX,
            default_mss: 536,
        }
    }

    fn begin(&mut self, flow: FlowTuple, stream: Stream, plan: Plan) -> usize {
        self.apps.push(App::new(plan));
        let app = self.apps.len() - 1;
        self.index.insert(flow, self.connections.len());
        let unread = Chain::new();
        self.connections.push(Connection { flow, stream, app, unread, touched: true });
        app
    }

    fn on_segment(&mut self, flow: FlowTuple, segment: Segment, now: Instant) {
        let syn = segment.control == Control::Syn && segment.ack.is_none();
        if let Some(&at) = self.index.get(&flow) {
            let connection = &mut self.connections[at];
            let reusable = connection.stream.phase() == Phase::TimeWait && syn;
            if !reusable {
                self.resets_received += u64::from(segment.control == Control::Rst);
                connection.touched = true;
                connection.stream.on_segment(segment, now);
                return;
            }
            self.forget(at);
        }
        match self.listeners.get(&flow.local.port) {
            Some(Listener::Serve(plan)) if syn => {
                let plan = *plan;
                let opening = self.opening();
                let mut stream = Stream::accept(&self.config, &segment, opening, now);
                stream.answer(now);
                self.begin(flow, stream, plan);
            }
            Some(Listener::Silent) => {}
            _ => self.replies.extend(reset_reply(&segment).map(|reply| (flow, reply))),
        }
    }

    /// RFC 1122 4.2.3.9: a hard error ends a connection attempt.
    fn on_icmp(&mut self, error: IcmpError, now: Instant) {
        if matches!(error.kind, IcmpErrorKind::PacketTooBig { .. }) {
            if let Some(&at) = self.index.get(&error.flow) {
                self.connections[at].touched = true;
                self.connections[at].stream.on_too_big(&error, now);
            }
            return;
        }
        let hard = matches!(error.kind, IcmpErrorKind::Unreachable(why) if why.is_hard());
        if let Some(&at) = self.index.get(&error.flow).filter(|_| hard) {
            let connection = &mut self.connections[at];
            if connection.stream.phase() == Phase::Opening {
                connection.touched = true;
                connection.stream.abort(CloseReason::Unreachable);
            }
        }
    }

    fn forget(&mut self, at: usize) {
        let gone = self.connections.swap_remove(at);
        self.index.remove(&gone.flow);
        if let Some(moved) = self.connections.get(at) {
            self.index.insert(moved.flow, at);
        }
    }

    fn run(&mut self, at: usize, now: Instant, out: &mut Outbox) {
        let connection = &mut self.connections[at];
        let app = &mut self.apps[connection.app];
        connection.touched = false;
        if connection.stream.deadline().is_some_and(|at| at <= now) {
            connection.stream.on_deadline(now);
        }
        if app.end.is_none() {
            let mut socket = StreamSocket {
                stream: &mut connection.stream,
                unread: &mut connection.unread,
                pool: &self.pool,
                buffer: self.config.receive_buffer,
            };
            app.run(&mut socket, now);
        }
        while let Some(tx) = connection.stream.poll_transmit(now) {
            let packet = emit(connection.flow, &tx.segment, tx.gso_size);
            send(packet, &self.routes, out);
        }
        match connection.stream.phase() {
            Phase::TimeWait => app.end = app.end.or(Some(End::Done)),
            Phase::Closed(reason) => {
                app.end = app.end.or(Some(reason.into()));
                self.forget(at);
            }
            _ => {}
        }
    }
}

/// Appends `packet` as a port without any offload would send it.
pub(super) fn send(packet: TxPacket, routes: &Routes, out: &mut Outbox) {
    let Some(iface) = routes.lookup(packet.flow.remote.addr) else { return };
    for mut segment in segment_packet(packet) {
        segment.finish_checksum();
        out.push((iface, segment.to_vec()));
    }
}

/// A packet as it is received into `pool`, unless that is empty.
pub(super) fn received(pool: &Pool, octets: &[u8], port: u16) -> Option<RxPacket> {
    let octets = Chain::copy_from(pool, 0, octets)?;
    Some(RxPacket { octets, checksum: RxChecksum::Unknown, port, gso_size: 0 })
}

impl From<CloseReason> for End {
    fn from(reason: CloseReason) -> End {
        match reason {
            CloseReason::Done => End::Done,
            CloseReason::Reset => End::Reset,
            CloseReason::Refused => End::Refused,
            CloseReason::TimedOut => End::TimedOut,
            CloseReason::Unreachable => End::Unreachable,
            CloseReason::Aborted => End::Aborted,
        }
    }
}

impl Host for TcpHost {
    fn listen(&mut self, port: u16, plan: Plan, _backlog: usize) {
        self.listeners.insert(port, Listener::Serve(plan));
    }

    fn connect(&mut self, to: Endpoint, plan: Plan, now: Instant) -> usize {
        let flow = FlowTuple { local: Endpoint::new(self.address, self.next_port), remote: to };
        self.next_port = self.next_port.checked_add(1).unwrap_or(40_000);
        let opening = self.opening();
        let stream = Stream::connect(&self.config, opening, now);
        self.begin(flow, stream, plan)
    }

    fn apps(&self) -> Vec<&App> {
        self.apps.iter().collect()
    }

    fn open(&self) -> usize {
        let phases = self.connections.iter().map(|c| c.stream.phase());
        phases.filter(|phase| !matches!(phase, Phase::TimeWait | Phase::Closed(_))).count()
    }

    fn frames_held(&self) -> u32 {
        self.pool.capacity() - self.pool.free()
    }
}

impl Node for TcpHost {
    fn receive(&mut self, _iface: usize, packet: Vec<u8>, now: Instant) {
        let Some(packet) = received(&self.pool, &packet, 0) else { return };
        match parse(packet) {
            Ok(Parsed::Tcp(flow, segment)) => self.on_segment(flow, segment, now),
            Ok(Parsed::Other(_, packet)) => {
                if let Ok(Some(error)) = IcmpError::parse(&packet) {
                    self.on_icmp(error, now);
                }
            }
            Ok(Parsed::Fragment) | Err(_) => {}
        }
    }

    fn poll(&mut self, now: Instant, out: &mut Outbox) {
        for (flow, segment) in self.replies.drain(..) {
            send(emit(flow, &segment, 0), &self.routes, out);
        }
        for at in (0..self.connections.len()).rev() {
            let connection = &self.connections[at];
            let due = earliest(connection.stream.deadline(), self.apps[connection.app].deadline());
            if connection.touched || due.is_some_and(|at| at <= now) {
                self.run(at, now, out);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.connections.iter().fold(None, |at, connection| {
            let due = earliest(connection.stream.deadline(), self.apps[connection.app].deadline());
            earliest(at, due)
        })
    }

    fn assert_invariants(&self) {
        #[cfg(test)]
        for connection in &self.connections {
            connection.stream.assert_invariants();
        }
    }
}

struct StreamSocket<'a> {
    stream: &'a mut Stream,
    unread: &'a mut Chain,
    pool: &'a Pool,
    buffer: u32,
}

impl Socket for StreamSocket<'_> {
    fn may_send(&self) -> bool {
        self.stream.phase() == Phase::Open
    }

    fn room(&self) -> usize {
        self.stream.room() as usize
    }

    fn send(&mut self, text: &[u8]) -> usize {
        let Some(chain) = Chain::copy_from(self.pool, HEADROOM, text) else { return 0 };
        self.stream.send(chain);
        text.len()
    }

    fn recv(&mut self, limit: usize, sink: &mut dyn FnMut(&[u8])) -> usize {
        while let Some(text) = self.stream.recv() {
            self.unread.append(text);
        }
        let n = self.unread.len().min(limit.min(u32::MAX as usize) as u32);
        let rest = self.unread.split_off(n);
        for part in core::mem::replace(self.unread, rest).into_parts() {
            sink(part.bytes());
        }
        self.stream.grant(self.buffer.saturating_sub(self.unread.len()));
        n as usize
    }

    fn recv_finished(&self) -> bool {
        self.stream.recv_finished() && self.unread.is_empty()
    }

    fn close(&mut self) {
        self.stream.close();
    }

    fn abort(&mut self) {
        self.stream.abort(CloseReason::Aborted);
    }
}
