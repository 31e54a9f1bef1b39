//! One core's share of the work: a flow table, sessions, their deadlines, and who may come in.
//!
//! A [`Shard`] is handed packets and instants and hands packets back; it knows what a flow is, but not what a session
//! does with it ([`Session`] says that). It shares nothing with other shards; what is theirs comes out of
//! [`Shard::away`].
#![forbid(unsafe_code)]

mod admission;
mod counters;
mod fast_open;
mod flow_table;
mod glance;
mod half_open;
mod homes;
mod icmp_limit;
mod ingest;
mod linear_hash;
mod session;
mod slab;
#[cfg(test)]
mod tests;
mod time_wait;

pub use counters::Counters;
pub use flow_table::{FlowTable, Owner};
pub use homes::{Away, Homes};
pub use session::{Cx, Limits, Opened, Refusal, Session, Stage};
pub use slab::SessionId;

use crate::blocks::BlockQueue;
use crate::buf::Pool;
use crate::rng::Rng;
use crate::tcp::FastOpenSecret;
use crate::time::{Instant, earliest};
use crate::wheel::Wheel;
use crate::wire::{FlowTuple, RxPacket, Segment, TxPacket, emit};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::{Drain, Vec};
use core::net::IpAddr;
use core::ops::RangeInclusive;
use half_open::HalfOpen;
use session::Registry;
use slab::Slab;

/// What a shard is told.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The shards of the appliance.
    pub homes: Homes,
    /// Which of them this is, from 0.
    pub index: u32,
    /// Addresses that are our own: segments to them that belong to nobody are answered with RST.
    pub owned: Vec<IpAddr>,
    /// Local ports to draw from.
    pub ephemeral: RangeInclusive<u16>,
    /// Flows in TIME-WAIT at a time.
    pub max_time_wait: u32,
    /// SYNs are not served while fewer than one in this many frames of the pool are free; text is not taken while
    /// fewer than half as many are.
    pub reserve: u32,
    /// Behind the cookies of Fast Open, the same in all shards: a client's next flow may be another's. `None`: one of its
    /// own, for a shard that is alone.
    pub fast_open_secret: Option<FastOpenSecret>,
}

impl Default for ShardConfig {
    /// One shard; ports 1024 to 65535 (RFC 6056 3.2).
    fn default() -> ShardConfig {
        ShardConfig {
            homes: Homes::ALONE,
            index: 0,
            owned: Vec::new(),
            ephemeral: 1024..=65_535,
            max_time_wait: 16_384,
            reserve: 8,
            fast_open_secret: None,
        }
    }
}

/// A session and what the shard keeps about it.
struct Entry<S> {
    session: Box<S>,
    /// The earliest instant for which the session is in the wheel; later and older entries are ignored.
    armed: Option<Instant>,
    /// Whether it is in the dirty list.
    dirty: bool,
    stage: Stage,
}

/// One core's sessions. `!Send`, as frames are.
pub struct Shard<S: Session> {
    config: S::Config,
    pool: Pool,
    rng: Rng,
    registry: Registry,
    slab: Slab<Entry<S>>,
    half_open: HalfOpen,
    wheel: Wheel<SessionId>,
    /// Sessions that may have something to send, each once, in turn.
    dirty: BlockQueue<SessionId>,
    /// Segments that belong to no session.
    replies: VecDeque<(FlowTuple, Segment)>,
    passed: Vec<RxPacket>,
    counters: Counters,
    /// Sessions whose deadline has come and that have not been run yet.
    due: Vec<SessionId>,
    /// Emptied vector, kept for its memory.
    batch: Vec<ingest::Read>,
}

/// Packets a session may send before it is the next one's turn.
const QUANTUM: u32 = 8;

/// Entries that one [`Shard::expire`] moves in the wheel: some 20 microseconds.
const EXPIRE_MOVES: usize = 512;

/// Sessions that it runs, and flows that it takes out of TIME-WAIT: with nothing in cache, each is a microsecond or two.
const EXPIRE_SESSIONS: usize = 64;

impl<S: Session> Shard<S> {
    /// An empty shard. The hash keys and secrets of its tables are drawn from `rng`.
    pub fn new(
        shard_config: ShardConfig,
        config: impl Into<S::Config>,
        pool: Pool,
        mut rng: Rng,
    ) -> Shard<S> {
        Shard {
            config: config.into(),
            pool,
            registry: Registry::new(shard_config, &mut rng),
            rng,
            slab: Slab::new(),
            half_open: HalfOpen::default(),
            wheel: Wheel::new(),
            dirty: BlockQueue::new(),
            replies: VecDeque::new(),
            passed: Vec::new(),
            counters: Counters::default(),
            due: Vec::new(),
            batch: Vec::new(),
        }
    }

    /// Runs sessions whose deadline has come, and forgets flows whose TIME-WAIT is over. Does a bounded part of it if that
    /// is very much; `deadline` is not after `now` then.
    pub fn expire(&mut self, now: Instant) {
        let mut due = core::mem::take(&mut self.due);
        if due.is_empty() {
            self.wheel.expire(now, &mut due, EXPIRE_MOVES);
        }
        for id in due.drain(..due.len().min(EXPIRE_SESSIONS)) {
            let Some(entry) = self.slab.at_mut(id) else { continue };
            if entry.armed.is_none_or(|at| now < at) {
                continue; // left behind when the deadline moved
            }
            entry.armed = None;
            if entry.session.deadline().is_some_and(|at| at <= now) {
                self.run(id, now, |session, config, cx| session.on_deadline(config, cx));
            } else {
                self.settle(id, now);
            }
        }
        self.due = due;
        for _ in 0..EXPIRE_SESSIONS {
            let Some(gone) = self.registry.time_wait.pop_expired(now) else { break };
            self.registry.forget_time_wait(gone);
        }
    }

    /// Appends at most `budget` packets to `tx`. Only sessions with something to send are visited, a few packets each
    /// in turn; who still has more stays in line for the next call.
    pub fn transmit(&mut self, tx: &mut Vec<TxPacket>, budget: usize, now: Instant) {
        let mut left = budget;
        while left > 0
            && let Some((flow, segment)) = self.replies.pop_front()
        {
            tx.push(emit(flow, &segment, 0));
            self.counters.OutSegs += 1;
            left -= 1;
        }
        while left > 0
            && let Some(id) = self.dirty.pop_front()
        {
            let quantum = (QUANTUM as usize).min(left);
            let sent = self.serve(id, tx, quantum, now);
            left -= sent;
            if sent == quantum {
                self.dirty.push_back(id);
                continue;
            }
            if let Some(entry) = self.slab.at_mut(id) {
                entry.dirty = false;
            }
            self.settle(id, now);
        }
    }

    /// Lets one session send at most `quantum` packets; fewer means that it has no more.
    fn serve(
        &mut self,
        id: SessionId,
        tx: &mut Vec<TxPacket>,
        quantum: usize,
        now: Instant,
    ) -> usize {
        let Some((session, config, mut cx)) = self.enter(id, now) else { return 0 };
        let mut sent = 0;
        while sent < quantum
            && let Some(packet) = session.poll_transmit(config, &mut cx)
        {
            tx.push(packet);
            sent += 1;
        }
        self.counters.OutSegs += sent as u64;
        sent
    }

    /// The earliest instant at which there is something to do; now or earlier while something waits to be sent or run.
    pub fn deadline(&self) -> Option<Instant> {
        if !self.dirty.is_empty() || !self.replies.is_empty() || !self.due.is_empty() {
            return Some(Instant::ZERO);
        }
        earliest(self.wheel.next_deadline(), self.registry.time_wait.deadline())
    }

    /// The packets that were not ours, exactly as they came.
    pub fn passed(&mut self) -> Drain<'_, RxPacket> {
        self.passed.drain(..)
    }

    /// What is for other shards, and for which. Notes have to arrive before the packets that [`Shard::transmit`] gives
    /// are sent: then nothing that they cause is at their home before them.
    pub fn away(&mut self) -> Drain<'_, (u32, Away)> {
        self.registry.away.drain(..)
    }

    /// Shard `by` has `flow`, whose home this one is: what comes for it goes there.
    pub fn on_adopted(&mut self, flow: FlowTuple, by: u32) {
        self.registry.on_adopted(flow, by);
    }

    /// Shard `by` has `flow` no more.
    pub fn on_released(&mut self, flow: FlowTuple, by: u32) {
        self.registry.on_released(flow, by);
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &S> {
        self.slab.iter().map(|entry| &*entry.session)
    }

    /// The numbers of all sessions.
    pub fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.slab.ids()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What the sessions share.
    pub fn config(&self) -> &S::Config {
        &self.config
    }

    /// As [`Shard::config`], to change it: sessions that exist keep what they copied from it.
    pub fn config_mut(&mut self) -> &mut S::Config {
        &mut self.config
    }

    /// The frames.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How full the tables are.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            sessions: self.slab.len(),
            half_open: self.half_open.len(),
            flows: self.registry.table.flow_count(),
            tokens: self.registry.table.token_count(),
            time_wait: self.registry.time_wait.len(),
            deadlines: self.wheel.len(),
        }
    }

    /// A session with what it needs for a call.
    fn enter(&mut self, id: SessionId, now: Instant) -> Option<(&mut S, &mut S::Config, Cx<'_>)> {
        let entry = self.slab.at_mut(id)?;
        let cx = Cx {
            now,
            rng: &mut self.rng,
            pool: &self.pool,
            counters: &mut self.counters,
            registry: &mut self.registry,
            session: id,
        };
        Some((&mut entry.session, &mut self.config, cx))
    }

    /// Calls a session, for orders from outside too; `None` if there is no such session (any more). What it has to send then
    /// goes with the next [`Shard::transmit`].
    pub fn run<R>(
        &mut self,
        id: SessionId,
        now: Instant,
        act: impl FnOnce(&mut S, &mut S::Config, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let (session, config, mut cx) = self.enter(id, now)?;
        let result = act(session, config, &mut cx);
        self.mark_dirty(id);
        Some(result)
    }

    fn mark_dirty(&mut self, id: SessionId) {
        if let Some(entry) = self.slab.at_mut(id)
            && !core::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push_back(id);
        }
    }

    /// After a session has sent everything: its place in the wheel, its stage, its end.
    fn settle(&mut self, id: SessionId, now: Instant) {
        let Some(entry) = self.slab.at_mut(id) else { return };
        let stage = entry.session.stage();
        let before = core::mem::replace(&mut entry.stage, stage);
        if let Some(at) = entry.session.deadline()
            && entry.armed.is_none_or(|armed| at < armed)
        {
            entry.armed = Some(at);
            self.wheel.insert(id, at);
        }
        if stage != Stage::HalfOpen {
            self.half_open.remove(id);
            self.registry.fast_open.settled(id);
        }
        self.count_stage(before, stage);
        if stage == Stage::Finished {
            self.remove(id, now);
        }
    }

    fn count_stage(&mut self, before: Stage, after: Stage) {
        if before == Stage::Open {
            self.counters.CurrEstab -= u64::from(after != before);
        }
        match after {
            Stage::HalfOpen => {}
            Stage::Open => self.counters.CurrEstab += u64::from(after != before),
            Stage::Finished if before == Stage::HalfOpen => self.counters.AttemptFails += 1,
            Stage::Finished => {}
        }
    }

    fn remove(&mut self, id: SessionId, now: Instant) {
        if let Some((session, config, mut cx)) = self.enter(id, now) {
            session.on_removed(config, &mut cx);
        }
        self.slab.remove(id);
    }
}

/// How full the tables of a shard are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Occupancy {
    /// Sessions.
    pub sessions: usize,
    /// Of them half-open.
    pub half_open: usize,
    /// Flows, those in TIME-WAIT included.
    pub flows: usize,
    /// Tokens.
    pub tokens: usize,
    /// Flows in TIME-WAIT.
    pub time_wait: usize,
    /// Entries in the timing wheel, stale ones included.
    pub deadlines: usize,
}
