//! Middleboxes: what stands between hosts and meddles with segments.
#![forbid(unsafe_code)]

use super::packet::{ACK, FIN, MPTCP, PSH, RST, SYN, TcpPacket, too_big};
use super::{Node, Outbox};
use crate::time::{Duration, Instant};
use crate::wire::{Endpoint, FlowTuple};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

/// What a middlebox does to segments. `from` is the interface they came in by, 0 or 1.
pub trait Pass: 'static {
    /// Takes one intact TCP packet, appends what goes on in the same direction.
    fn pass(&mut self, from: usize, packet: TcpPacket, now: Instant, out: &mut Vec<TcpPacket>);

    /// Whether a packet, as it came, fits at all.
    fn fit(&mut self, _packet: &[u8]) -> Fit {
        Fit::Passes
    }

    /// Appends, with the interface it came in by, what was held back long enough.
    fn release(&mut self, _now: Instant, _out: &mut Vec<(usize, TcpPacket)>) {}

    /// When something held back is due.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// What a narrow place does to a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fit {
    /// It fits.
    Passes,
    /// It is dropped.
    Vanishes,
    /// It is dropped, and this goes back.
    Refused(Vec<u8>),
}

/// A router in front of a link with a smaller MTU, or a black hole there.
#[derive(Debug)]
pub struct Narrow {
    /// Octets of the largest IP packet that passes.
    pub mtu: usize,
    /// The routers that say so, one for each family; none: a black hole.
    pub routers: Vec<IpAddr>,
}

impl Pass for Narrow {
    fn pass(&mut self, _: usize, packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        out.push(packet);
    }

    fn fit(&mut self, packet: &[u8]) -> Fit {
        if packet.len() <= self.mtu {
            return Fit::Passes;
        }
        let mut answers = self.routers.iter().filter_map(|r| too_big(*r, packet, self.mtu as u32));
        answers.next().map_or(Fit::Vanishes, Fit::Refused)
    }
}

impl Pass for Box<dyn Pass> {
    fn fit(&mut self, packet: &[u8]) -> Fit {
        self.as_mut().fit(packet)
    }

    fn pass(&mut self, from: usize, packet: TcpPacket, now: Instant, out: &mut Vec<TcpPacket>) {
        self.as_mut().pass(from, packet, now, out);
    }

    fn release(&mut self, now: Instant, out: &mut Vec<(usize, TcpPacket)>) {
        self.as_mut().release(now, out);
    }

    fn deadline(&self) -> Option<Instant> {
        self.as_ref().deadline()
    }
}

/// A node with two interfaces that passes packets from one to the other through `P`. What is not TCP, or is damaged,
/// goes through as it is.
#[derive(Debug)]
pub struct Middlebox<P> {
    /// What it does.
    pub pass: P,
    out: Outbox,
}

impl<P: Pass> Middlebox<P> {
    /// A middlebox that does `pass`.
    pub fn new(pass: P) -> Middlebox<P> {
        Middlebox { pass, out: Vec::new() }
    }
}

impl<P: Pass> Node for Middlebox<P> {
    fn receive(&mut self, iface: usize, packet: Vec<u8>, now: Instant) {
        match self.pass.fit(&packet) {
            Fit::Passes => {}
            Fit::Vanishes => return,
            Fit::Refused(answer) => return self.out.push((iface, answer)),
        }
        let mut passed = Vec::new();
        match TcpPacket::parse(packet) {
            Ok(packet) => self.pass.pass(iface, packet, now, &mut passed),
            Err(other) => self.out.push((1 - iface, other)),
        }
        self.out.extend(passed.into_iter().map(|p| (1 - iface, p.finish())));
    }

    fn poll(&mut self, now: Instant, out: &mut Outbox) {
        let mut released = Vec::new();
        self.pass.release(now, &mut released);
        self.out.extend(released.into_iter().map(|(from, p)| (1 - from, p.finish())));
        out.append(&mut self.out);
    }

    fn deadline(&self) -> Option<Instant> {
        self.pass.deadline()
    }
}

/// Which segments [`Strip`] takes MPTCP options from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StripFrom {
    /// SYNs without ACK.
    Syn,
    /// SYN/ACKs.
    SynAck,
    /// All but those with SYN.
    Rest,
    /// All.
    All,
}

/// Overwrites MPTCP options with NOPs.
#[derive(Debug)]
pub struct Strip {
    from: StripFrom,
    /// Segments that lost options.
    pub stripped: u64,
}

impl Strip {
    /// Strips these.
    pub fn new(from: StripFrom) -> Strip {
        Strip { from, stripped: 0 }
    }
}

impl Pass for Strip {
    fn pass(&mut self, _from: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        let hit = match (self.from, packet.flags() & (SYN | ACK)) {
            (StripFrom::Syn, flags) => flags == SYN,
            (StripFrom::SynAck, flags) => flags == SYN | ACK,
            (StripFrom::Rest, flags) => flags & SYN == 0,
            (StripFrom::All, _) => true,
        };
        self.stripped += u64::from(hit && packet.erase_options(MPTCP));
        out.push(packet);
    }
}

/// Cuts segments with more text than `size` in pieces; options are repeated, as segmentation offload does it.
#[derive(Debug)]
pub struct Split {
    /// Octets of text per piece.
    pub size: usize,
}

impl Pass for Split {
    fn pass(&mut self, _from: usize, packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        let text = packet.text().to_vec();
        if text.len() <= self.size || packet.flags() & SYN != 0 {
            return out.push(packet);
        }
        let pieces = text.len().div_ceil(self.size);
        for (i, text) in text.chunks(self.size).enumerate() {
            let mut piece = packet.clone();
            piece.set_seq(packet.seq().wrapping_add((i * self.size) as u32));
            if i + 1 < pieces {
                piece.set_flags(packet.flags() & !(FIN | PSH));
            }
            piece.set_text(text);
            out.push(piece);
        }
    }
}

/// Joins neighbours of one flow into longer segments if their headers but for SEG.SEQ, PSH and checksum agree, as receive
/// offload does it. Holds a segment back for at most [`Coalesce::HOLD`].
#[derive(Debug, Default)]
pub struct Coalesce {
    held: BTreeMap<(usize, FlowTuple), (Instant, TcpPacket)>,
    /// Segments that vanished into others.
    pub joined: u64,
}

impl Coalesce {
    /// How long a segment waits for its successor.
    pub const HOLD: Duration = Duration::from_millis(1);
    const LARGEST: usize = 9_000;

    fn continues(held: &TcpPacket, next: &TcpPacket) -> bool {
        let agree = |a: &[u8], b: &[u8]| {
            a[8..13] == b[8..13] && a[14..16] == b[14..16] && a[20..] == b[20..]
        };
        next.seq() == held.seq().wrapping_add(held.text().len() as u32)
            && held.header().len() == next.header().len()
            && agree(held.header(), next.header())
            && held.flags() & (SYN | FIN | RST | PSH) == 0
            && next.flags() & (SYN | RST) == 0
            && !next.text().is_empty()
            && held.text().len() + next.text().len() <= Coalesce::LARGEST
    }
}

impl Pass for Coalesce {
    fn pass(&mut self, from: usize, packet: TcpPacket, now: Instant, out: &mut Vec<TcpPacket>) {
        let key = (from, packet.flow());
        if let Some((since, mut held)) = self.held.remove(&key) {
            if Coalesce::continues(&held, &packet) {
                let mut text = held.text().to_vec();
                text.extend_from_slice(packet.text());
                held.set_text(&text);
                held.set_flags(packet.flags());
                self.joined += 1;
                self.held.insert(key, (since, held));
                return;
            }
            out.push(held);
        }
        if packet.text().is_empty() || packet.flags() & SYN != 0 {
            out.push(packet);
        } else {
            self.held.insert(key, (now, packet));
        }
    }

    fn release(&mut self, now: Instant, out: &mut Vec<(usize, TcpPacket)>) {
        self.held.retain(|(from, _), (since, packet)| {
            let due = *since + Coalesce::HOLD <= now;
            if due {
                out.push((*from, packet.clone()));
            }
            !due
        });
    }

    fn deadline(&self) -> Option<Instant> {
        self.held.values().map(|(since, _)| *since + Coalesce::HOLD).min()
    }
}

/// Translates sources: what comes in by interface 0 leaves by 1 with `address` and a port of its own.
#[derive(Debug)]
pub struct Nat {
    address: IpAddr,
    ports: BTreeMap<Endpoint, u16>,
    inside: BTreeMap<u16, Endpoint>,
}

impl Nat {
    /// Hides everything behind `address`.
    pub fn new(address: IpAddr) -> Nat {
        Nat { address, ports: BTreeMap::new(), inside: BTreeMap::new() }
    }
}

impl Pass for Nat {
    fn pass(&mut self, from: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        let mut flow = packet.flow();
        if from == 0 {
            let next = 20_000 + self.ports.len() as u16;
            let port = *self.ports.entry(flow.local).or_insert(next);
            self.inside.insert(port, flow.local);
            flow.local = Endpoint::new(self.address, port);
        } else {
            let Some(inside) = self.inside.get(&flow.remote.port) else { return };
            flow.remote = *inside;
        }
        packet.set_flow(flow);
        out.push(packet);
    }
}

/// Takes the text out of SYNs.
#[derive(Debug, Default)]
pub struct EatSynPayload {
    /// SYNs that lost text.
    pub eaten: u64,
}

impl Pass for EatSynPayload {
    fn pass(&mut self, _from: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        if packet.flags() & SYN != 0 && !packet.text().is_empty() {
            packet.set_text(&[]);
            self.eaten += 1;
        }
        out.push(packet);
    }
}

/// Adds a number to the sequence numbers of what comes in by interface 0, and takes it off what acknowledges them.
#[derive(Debug)]
pub struct RewriteSequence {
    /// The number.
    pub by: u32,
}

impl Pass for RewriteSequence {
    fn pass(&mut self, from: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        if from == 0 {
            packet.set_seq(packet.seq().wrapping_add(self.by));
        } else if packet.flags() & ACK != 0 {
            packet.set_ack(packet.ack().wrapping_sub(self.by));
            for option in packet.options().into_iter().filter(|o| o.kind == 5) {
                for edge in packet.option_mut(option)[2..].chunks_exact_mut(4) {
                    let value = u32::from_be_bytes([edge[0], edge[1], edge[2], edge[3]]);
                    edge.copy_from_slice(&value.wrapping_sub(self.by).to_be_bytes());
                }
            }
        }
        out.push(packet);
    }
}
