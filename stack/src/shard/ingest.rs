//! Packets in: read a batch, then run it.
//!
//! Two short loops instead of one long one: each keeps its own code and tables in cache. Reading finds each packet's
//! owner, and puts segments together that follow one another.
#![forbid(unsafe_code)]

use super::flow_table::Owner;
use super::glance::{Glance, Request};
use super::session::{Refusal, Session};
use super::{Away, Shard, ShardConfig};
use crate::tcp::reset_reply;
use crate::time::Instant;
use crate::wire::{
    FlowTuple, IcmpError, IcmpErrorKind, MpJoin, MptcpOption, Options, Parsed, ResetReason, Run,
    RxPacket, Segment, SegmentOptions, TxPacket, Unreachable, parse,
};
use alloc::vec::Vec;
use core::net::IpAddr;

/// A packet, what it seems to be, and whose.
pub(super) struct Read {
    item: Item,
    glance: Glance,
    owner: Option<Owner>,
}

/// How far a packet was read.
#[expect(clippy::large_enum_variant, reason = "nearly every packet is a segment of a session")]
enum Item {
    /// Not at all: it may have to go on as it came.
    Packet(RxPacket),
    /// A segment of a session, and what may be added to it.
    Segment(Segment, Option<Run>),
}

/// Where packets came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Via {
    /// A port of this shard's worker.
    Port,
    /// Another shard.
    Shard,
}

/// How many flows of a batch are looked at for one that a packet carries on.
const RUNS: usize = 8;

/// Replies that wait to be sent, at most: beyond that segments of no flow stay unanswered.
const MAX_REPLIES: usize = 1024;

impl<S: Session> Shard<S> {
    /// Takes all packets of `rx`, which came in by this shard's ports. What they cause goes out with
    /// [`Shard::transmit`]; what is for another shard comes back from [`Shard::away`], what is not ours from
    /// [`Shard::passed`].
    pub fn ingest(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        self.take_all(rx, Via::Port, now);
    }

    /// As [`Shard::ingest`], for packets that other shards sent here: they are not sent on to their home again.
    pub fn ingest_crossed(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        self.take_all(rx, Via::Shard, now);
    }

    fn take_all(&mut self, rx: &mut Vec<RxPacket>, via: Via, now: Instant) {
        self.counters.InReceives += rx.len() as u64;
        let mut batch = core::mem::take(&mut self.batch);
        for packet in rx.drain(..) {
            self.read(packet, &mut batch);
        }
        for read in batch.drain(..) {
            self.take(read, via, now);
        }
        self.batch = batch;
    }

    /// Adds a packet to the batch, or its text to a segment that it carries on.
    fn read(&mut self, packet: RxPacket, batch: &mut Vec<Read>) {
        let runs = batch.iter_mut().rev().take(RUNS).filter_map(|read| match &mut read.item {
            Item::Segment(segment, Some(run)) => Some((segment, run)),
            _ => None,
        });
        for (segment, run) in runs {
            if run.continues_with(&packet) {
                self.counters.InSegs += 1;
                match run.take(packet) {
                    Ok((text, push)) => {
                        self.counters.TCPRcvCoalesce += 1;
                        segment.text.append(text);
                        segment.push = push;
                    }
                    Err(why) => self.counters.on_malformed(why),
                }
                return;
            }
        }
        let glance = packet.octets.parts().first().map_or(Glance::Other, |p| Glance::at(p.bytes()));
        let owner = match &glance {
            Glance::Tcp(flow, _) => self.registry.table.flow(flow),
            _ => None,
        };
        let item = match (owner, &glance) {
            (Some(Owner::Session(_)), Glance::Tcp(..)) => {
                let run = Run::of(&packet);
                let Some(segment) = self.parse(packet) else { return };
                Item::Segment(segment, run)
            }
            _ => Item::Packet(packet),
        };
        batch.push(Read { item, glance, owner });
    }

    fn take(&mut self, read: Read, via: Via, now: Instant) {
        let Read { item, glance, owner } = read;
        match (item, glance) {
            (Item::Segment(segment, _), Glance::Tcp(flow, request)) => {
                // An earlier packet of this batch may have closed the flow.
                let alive = matches!(owner, Some(Owner::Session(id)) if self.slab.at(id).is_some());
                let owner = if alive { owner } else { self.registry.table.flow(&flow) };
                self.take_segment(segment, flow, request, owner, now);
            }
            (Item::Packet(packet), Glance::Tcp(flow, request)) => {
                self.take_tcp(packet, flow, request, via, now);
            }
            (Item::Packet(packet), Glance::Icmp) => self.take_icmp(packet, via, now),
            (_, Glance::Fragment(to)) if self.owns(to) => self.counters.InFragments += 1,
            (Item::Packet(packet), _) => self.pass(packet),
            (Item::Segment(..), _) => {}
        }
    }

    /// A packet of a flow that nobody had when the batch came in.
    fn take_tcp(
        &mut self,
        packet: RxPacket,
        flow: FlowTuple,
        request: Request,
        via: Via,
        now: Instant,
    ) {
        let owner = self.registry.table.flow(&flow);
        if let (None, Request::Open) = (owner, request) {
            return self.take_syn(packet, flow, via, now);
        }
        if let Some(shard) = self.elsewhere(owner, &flow, via) {
            return self.send_away(packet, shard);
        }
        let packet = match (owner, request) {
            (None, Request::None) => match self.take_proof(packet, flow, now) {
                Some(packet) => packet,
                None => return,
            },
            _ => packet,
        };
        match (owner, request) {
            (None, Request::None) if !self.owns(flow.local.addr) => self.pass(packet),
            (owner, request) => {
                let Some(segment) = self.parse(packet) else { return };
                self.take_segment(segment, flow, request, owner, now);
            }
        }
    }

    fn take_segment(
        &mut self,
        segment: Segment,
        flow: FlowTuple,
        request: Request,
        owner: Option<Owner>,
        now: Instant,
    ) {
        match (owner, request) {
            (Some(Owner::Session(id)), _) => {
                if !segment.text.is_empty() && self.pool.free() < self.reserve() / 2 {
                    self.counters.TCPRcvQDrop += 1;
                    return;
                }
                self.run(id, now, |session, config, cx| {
                    session.on_segment(config, flow, segment, cx);
                });
            }
            (Some(Owner::TimeWait(slot)), _) => self.take_time_wait(segment, flow, slot, now),
            (Some(Owner::Shard(_)), _) => {} // never with a segment: it went there as it came
            // The flow ended within this batch.
            (None, Request::Open) => drop(self.knock(flow, segment, now)),
            (None, Request::None) => {
                self.counters.InNoFlow += 1;
                // In somebody else's name nothing is said about a flow that is over.
                if self.owns(flow.local.addr) {
                    self.reset(flow, &segment, None);
                }
            }
        }
    }

    fn take_time_wait(&mut self, segment: Segment, flow: FlowTuple, slot: u32, now: Instant) {
        if self.registry.time_wait.admits(slot, &segment) {
            // RFC 9293 3.10.7.4 (MAY-2), RFC 6191: the peer is sure that nothing old is under way.
            self.counters.TimeWaitRecycled += 1;
            self.registry.time_wait.remove(slot);
            self.registry.remove_flow(flow, Owner::TimeWait(slot));
            self.knock(flow, segment, now);
            return;
        }
        if let Some(reply) = self.registry.time_wait.on_segment(slot, &segment, now) {
            self.reply(flow, reply);
        }
    }

    /// A SYN of no flow is parsed from a second view of its frames: if nobody wants it, it goes on as it came.
    fn take_syn(&mut self, packet: RxPacket, flow: FlowTuple, via: Via, now: Instant) {
        let view = RxPacket { octets: packet.octets.clone(), ..packet };
        let parsed = parse(view);
        match parsed {
            Ok(Parsed::Tcp(_, syn)) => {
                if let Some(shard) = self.host(&flow, &syn, via) {
                    return self.send_away(packet, shard);
                }
                if self.knock(flow, syn, now) == Taken::No {
                    self.pass(packet);
                }
            }
            Ok(_) => self.pass(packet),
            Err(why) if self.owns(flow.local.addr) => self.counters.on_malformed(why),
            Err(_) => self.pass(packet), // whoever it is for may judge it
        }
    }

    /// The other shard that a SYN of no flow is for: the one with its token, or its flow's home.
    fn host(&self, flow: &FlowTuple, syn: &Segment, via: Via) -> Option<u32> {
        let ShardConfig { homes, index, .. } = self.registry.config;
        match join_token(syn) {
            Some(token) => Some(homes.of_token(token)).filter(|shard| *shard != index),
            None => self.elsewhere(None, flow, via),
        }
    }

    /// The other shard that a packet of `flow` is for: the one that adopted it, or, unless it came from there, its home.
    fn elsewhere(&self, owner: Option<Owner>, flow: &FlowTuple, via: Via) -> Option<u32> {
        match (owner, via) {
            (Some(Owner::Shard(shard)), _) => Some(shard),
            (None, Via::Port) => self.registry.elsewhere(flow),
            _ => None,
        }
    }

    fn send_away(&mut self, packet: RxPacket, shard: u32) {
        self.registry.away.push((shard, Away::Packet(packet)));
    }

    /// A SYN of no flow.
    fn knock(&mut self, flow: FlowTuple, syn: Segment, now: Instant) -> Taken {
        if let Some(token) = join_token(&syn) {
            return self.join(flow, syn, token, now);
        }
        self.admit(flow, syn, now)
    }

    fn join(&mut self, flow: FlowTuple, syn: Segment, token: u32, now: Instant) -> Taken {
        let Some(id) = self.registry.table.token(token) else {
            if !self.owns(flow.local.addr) {
                return Taken::No; // the end that it is meant for lies behind us
            }
            self.counters.MPJoinNoTokenFound += 1;
            self.reset(flow, &syn, Some(ResetReason::MptcpSpecific)); // RFC 8684 3.2
            return Taken::Yes;
        };
        self.run(id, now, |session, config, cx| session.on_join(config, flow, syn, cx));
        Taken::Yes
    }

    fn take_icmp(&mut self, packet: RxPacket, via: Via, now: Instant) {
        let Ok(Some(error)) = IcmpError::parse(&packet.octets) else { return self.pass(packet) };
        let too_big = matches!(error.kind, IcmpErrorKind::PacketTooBig { .. });
        let owner = self.registry.table.flow(&error.flow);
        if let Some(Owner::Session(id)) = owner {
            self.counters.InIcmpErrors += 1;
            self.run(id, now, |session, config, cx| session.on_icmp(config, error, cx));
        } else if let Some(shard) = self.elsewhere(owner, &error.flow, via) {
            self.send_away(packet, shard);
        } else {
            self.counters.PmtuNoFlow += u64::from(too_big && self.owns(error.flow.local.addr));
            self.pass(packet);
        }
    }

    /// A packet that [`Shard::transmit`] gave could not leave: the session hears what a router would have told it.
    pub fn on_unreachable(&mut self, packet: &TxPacket, kind: Unreachable, now: Instant) {
        self.counters.OutUnreachable += 1;
        let flow = packet.flow;
        let Some(seq) = packet.seq() else { return };
        if let Some(Owner::Session(id)) = self.registry.table.flow(&flow) {
            let kind = IcmpErrorKind::Unreachable(kind);
            let error = IcmpError { flow, seq, from: flow.local.addr, kind };
            self.run(id, now, |session, config, cx| session.on_icmp(config, error, cx));
        }
    }

    fn parse(&mut self, packet: RxPacket) -> Option<Segment> {
        match parse(packet) {
            Ok(Parsed::Tcp(_, segment)) => {
                self.counters.InSegs += 1;
                Some(segment)
            }
            Ok(Parsed::Fragment) => {
                self.counters.InFragments += 1;
                None
            }
            Ok(Parsed::Other(..)) => None,
            Err(why) => {
                self.counters.on_malformed(why);
                None
            }
        }
    }

    /// Answers a segment of no flow (RFC 9293 3.10.7.1), with an MPTCP reason if it asked for MPTCP.
    pub(super) fn reset(
        &mut self,
        flow: FlowTuple,
        segment: &Segment,
        reason: Option<ResetReason>,
    ) {
        let Some(mut rst) = reset_reply(segment) else { return };
        if let (Some(reason), Options::Segment(SegmentOptions { mptcp, .. })) =
            (reason, &mut rst.options)
        {
            let _ = mptcp.try_push(MptcpOption::MpTcpRst { transient: false, reason });
        }
        self.counters.OutRsts += 1;
        self.reply(flow, rst);
    }

    pub(super) fn reply(&mut self, flow: FlowTuple, segment: Segment) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back((flow, segment));
        }
    }

    pub(super) fn count_refusal(&mut self, why: Refusal) {
        match why {
            Refusal::Prohibited => self.counters.Prohibited += 1,
            Refusal::NoService => self.counters.InNoFlow += 1,
            Refusal::NoPorts => self.counters.NoPorts += 1,
        }
    }

    fn pass(&mut self, packet: RxPacket) {
        self.counters.Passed += 1;
        self.passed.push(packet);
    }

    pub(super) fn owns(&self, addr: IpAddr) -> bool {
        self.registry.config.owned.contains(&addr)
    }
}

/// Whether a SYN found somebody who deals with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    Yes,
    No,
}

fn join_token(syn: &Segment) -> Option<u32> {
    syn.options.mptcp().iter().find_map(|option| match option {
        MptcpOption::MpJoin(MpJoin::Syn { token, .. }) => Some(*token),
        _ => None,
    })
}
