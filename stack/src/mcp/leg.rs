//! One side of a bridge: TCP or MPTCP, with the same six methods for its owner.
#![forbid(unsafe_code)]

use super::info::LegInfo;
use super::policy::Mcp;
use crate::buf::Chain;
use crate::mptcp::{Connection, Event};
use crate::shard::{Counters, Cx};
use crate::tcp::{CloseReason, Phase, Stream, TooBig, TxSegment};
use crate::time::{Duration, Instant};
use crate::wire::{FlowTuple, IcmpError, IcmpErrorKind, Segment, SeqNum, TxPacket, emit};
use alloc::boxed::Box;

/// A leg. What it receives is taken with `recv`, what it should send is given with `send`; `grant` is
/// the credit of the one, `send_limit` that of the other, `close` ends our direction, `abort` both.
#[derive(Debug)]
pub enum Leg {
    /// One TCP flow.
    Tcp(Box<TcpLeg>),
    /// An MPTCP connection, or the TCP flow that it fell back to.
    Mptcp(Box<Connection>),
}

/// A TCP leg and the name of its flow.
#[derive(Debug)]
pub struct TcpLeg {
    /// The flow.
    pub flow: FlowTuple,
    /// Its endpoint.
    pub stream: Stream,
}

impl TcpLeg {
    fn is_opening(&self, seq: SeqNum) -> bool {
        self.stream.iss() == Some(seq) // forgers of ICMP errors do not know it
    }
}

impl Leg {
    /// Takes what the peer sent, in order.
    pub fn recv(&mut self) -> Option<Chain> {
        match self {
            Leg::Tcp(leg) => leg.stream.recv(),
            Leg::Mptcp(connection) => connection.recv(),
        }
    }

    /// Queues octets for the peer.
    pub fn send(&mut self, text: Chain) {
        match self {
            Leg::Tcp(leg) => leg.stream.send(text),
            Leg::Mptcp(connection) => connection.send(text),
        }
    }

    /// Octets that may be queued.
    pub fn room(&self) -> u32 {
        match self {
            Leg::Tcp(leg) => leg.stream.room(),
            Leg::Mptcp(connection) => connection.room(),
        }
    }

    /// Octets that the peer has not acknowledged, sent or not.
    pub fn queued(&self) -> u32 {
        match self {
            Leg::Tcp(leg) => leg.stream.queued(),
            Leg::Mptcp(connection) => connection.queued(),
        }
    }

    /// How many of them its paths have a use for.
    pub fn send_limit(&self) -> u32 {
        match self {
            Leg::Tcp(leg) => leg.stream.send_limit(),
            Leg::Mptcp(connection) => connection.send_limit(),
        }
    }

    /// The window that it offers until something is granted.
    pub fn first_window(&self) -> u32 {
        match self {
            Leg::Tcp(leg) => leg.stream.first_window(),
            Leg::Mptcp(connection) => connection.first_window(),
        }
    }

    /// The largest window that it ever offers.
    pub fn receive_buffer(&self) -> u32 {
        match self {
            Leg::Tcp(leg) => leg.stream.receive_buffer(),
            Leg::Mptcp(connection) => connection.receive_buffer(),
        }
    }

    /// The time for which what is consumed says how large the window should be, once measured: about a round trip.
    pub fn span(&self) -> Option<Duration> {
        match self {
            Leg::Tcp(leg) => leg.stream.tcb()?.srtt(),
            Leg::Mptcp(connection) => connection.span(),
        }
    }

    /// Octets that the owner would take from the peer now.
    pub fn grant(&mut self, octets: u32) {
        match self {
            Leg::Tcp(leg) => leg.stream.grant(octets),
            Leg::Mptcp(connection) => connection.grant(octets),
        }
    }

    /// FIN or DATA_FIN behind what is queued.
    pub fn close(&mut self) {
        match self {
            Leg::Tcp(leg) => leg.stream.close(),
            Leg::Mptcp(connection) => connection.close(),
        }
    }

    /// RST or MP_FASTCLOSE.
    pub fn abort(&mut self, why: CloseReason) {
        match self {
            Leg::Tcp(leg) => leg.stream.abort(why),
            Leg::Mptcp(connection) => connection.abort(why),
        }
    }

    /// Whether the peer has finished and all it sent was taken.
    pub fn recv_finished(&self) -> bool {
        match self {
            Leg::Tcp(leg) => leg.stream.recv_finished(),
            Leg::Mptcp(connection) => connection.recv_finished(),
        }
    }

    /// How far the leg is.
    pub fn phase(&self) -> Phase {
        match self {
            Leg::Tcp(leg) => leg.stream.phase(),
            Leg::Mptcp(connection) => connection.phase(),
        }
    }

    /// Whether its handshake is over and it still lives.
    pub fn is_up(&self) -> bool {
        matches!(self.phase(), Phase::Open | Phase::Closing | Phase::TimeWait)
    }

    /// Whether nothing more will come of it.
    pub fn is_over(&self) -> bool {
        matches!(self.phase(), Phase::TimeWait | Phase::Closed(_))
    }

    /// Answers the held SYN; `text` goes into the SYN/ACK of an MPTCP leg, a TCP leg has no use for it.
    pub fn answer(&mut self, text: Chain, now: Instant) {
        match self {
            Leg::Tcp(leg) => leg.stream.answer(now),
            Leg::Mptcp(connection) => connection.answer(text, now),
        }
    }

    /// RST to the held SYN.
    pub fn refuse(&mut self) {
        match self {
            Leg::Tcp(leg) => leg.stream.refuse(),
            Leg::Mptcp(connection) => connection.refuse(),
        }
    }

    /// A segment of one of its flows.
    pub fn on_segment(&mut self, flow: FlowTuple, segment: Segment, cx: &mut Cx<'_>) {
        let stop = match self {
            Leg::Tcp(leg) => leg.stream.on_segment(segment, cx.now),
            Leg::Mptcp(connection) => connection.on_segment(flow, segment, cx.rng, cx.now),
        };
        if let Some(stop) = stop {
            cx.counters.on_stop(stop);
        }
    }

    /// An ICMP error about one of its flows. Only a handshake is ended by it: RFC 5927 5.2, RFC 5461 3.
    pub fn on_icmp(&mut self, error: IcmpError, config: &Mcp, cx: &mut Cx<'_>) {
        let now = cx.now;
        let IcmpErrorKind::Unreachable(why) = error.kind else {
            return self.on_too_big(&error, config, cx);
        };
        match self {
            Leg::Tcp(leg) if leg.is_opening(error.seq) => {
                leg.stream.abort(CloseReason::Unreachable);
            }
            Leg::Tcp(_) => {}
            Leg::Mptcp(connection) => connection.on_unreachable(error.flow, error.seq, why, now),
        }
    }

    /// What one flow learns about its path is for all that begin there later.
    fn on_too_big(&mut self, error: &IcmpError, config: &Mcp, cx: &mut Cx<'_>) {
        let verdict = match self {
            Leg::Tcp(leg) => leg.stream.on_too_big(error, cx.now),
            Leg::Mptcp(connection) => connection.on_too_big(error, cx.now),
        };
        if let TooBig::Believed(mss) = verdict {
            config.paths.learn(error.flow.remote.addr, mss, cx.now);
        }
        cx.counters.on_too_big(verdict);
    }

    /// Counts what happened to the paths of its flows.
    pub fn drain_mtu_tally(&mut self, counters: &mut Counters) {
        counters.on_mtu_tally(match self {
            Leg::Tcp(leg) => leg.stream.drain_mtu_tally(),
            Leg::Mptcp(connection) => connection.drain_mtu_tally(),
        });
    }

    /// Whether our first SYN is out, unanswered, and is what an ICMP error quotes.
    pub fn is_opening(&self, error: &IcmpError) -> bool {
        match self {
            Leg::Tcp(leg) => leg.is_opening(error.seq),
            Leg::Mptcp(connection) => {
                error.flow == connection.flow() && connection.is_opening(error.flow, error.seq)
            }
        }
    }

    /// Runs what is due.
    pub fn on_deadline(&mut self, cx: &mut Cx<'_>) {
        match self {
            Leg::Tcp(leg) => leg.stream.on_deadline(cx.now),
            Leg::Mptcp(connection) => connection.on_deadline(cx.rng, cx.now),
        }
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Leg::Tcp(leg) => leg.stream.deadline(),
            Leg::Mptcp(connection) => connection.deadline(),
        }
    }

    /// The next packet to send.
    pub fn poll_transmit(&mut self, cx: &mut Cx<'_>) -> Option<TxPacket> {
        let (flow, out) = match self {
            Leg::Tcp(leg) => (leg.flow, leg.stream.poll_transmit(cx.now)?),
            Leg::Mptcp(connection) => connection.poll_transmit(cx.rng, cx.now)?,
        };
        cx.counters.RetransSegs += u64::from(out.retransmission);
        Some(packet(flow, &out))
    }

    /// Counts what went wrong on its flows.
    pub fn count_events(&mut self, counters: &mut Counters) {
        loop {
            let events = match self {
                Leg::Tcp(leg) => leg.stream.take_events(),
                Leg::Mptcp(connection) => connection.take_events(),
            };
            let Some(events) = events else { return };
            counters.on_events(&events);
        }
    }

    /// What an MPTCP leg has to tell; a TCP leg tells nothing that its phase does not.
    pub fn poll_event(&mut self) -> Option<Event> {
        match self {
            Leg::Tcp(_) => None,
            Leg::Mptcp(connection) => connection.poll_event(),
        }
    }

    /// The token by which MP_JOINs find an MPTCP leg.
    pub fn token(&self) -> Option<u32> {
        match self {
            Leg::Tcp(_) => None,
            Leg::Mptcp(connection) => Some(connection.token()),
        }
    }

    /// Whether `flow` is one of its flows.
    pub fn has_flow(&self, flow: FlowTuple) -> bool {
        match self {
            Leg::Tcp(leg) => leg.flow == flow,
            Leg::Mptcp(connection) => connection.has_flow(flow),
        }
    }

    /// Its flows.
    pub fn flows(&self) -> impl Iterator<Item = FlowTuple> {
        let (tcp, mptcp) = match self {
            Leg::Tcp(leg) => (Some(leg.flow), None),
            Leg::Mptcp(connection) => (None, Some(connection.flows())),
        };
        tcp.into_iter().chain(mptcp.into_iter().flatten())
    }

    /// The flow of its first handshake.
    pub fn first_flow(&self) -> FlowTuple {
        match self {
            Leg::Tcp(leg) => leg.flow,
            Leg::Mptcp(connection) => connection.flow(),
        }
    }

    /// A snapshot.
    pub fn info(&self) -> LegInfo {
        match self {
            Leg::Tcp(leg) => LegInfo::Tcp {
                flow: leg.flow,
                tcp: (leg.stream.phase() != Phase::Opening).then(|| Box::new(leg.stream.info())),
            },
            Leg::Mptcp(connection) => LegInfo::Mptcp {
                mptcp: connection.info(),
                subflows: connection.subflows().collect(),
            },
        }
    }
}

fn packet(flow: FlowTuple, out: &TxSegment) -> TxPacket {
    emit(flow, &out.segment, out.gso_size)
}
