//! Who may come in: limits, SYN cookies beyond them, and who has to go (RFC 4987).
#![forbid(unsafe_code)]

use super::half_open::Client;
use super::ingest::Taken;
use super::session::{Limits, Opened, Session, Stage};
use super::{Cx, Entry, Shard};
use crate::tcp::{CookiePolicy, Proven, TcpConfig};
use crate::time::Instant;
use crate::wire::{Control, FlowTuple, Parsed, RxPacket, Segment, SeqNum, parse};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::net::IpAddr;

/// What there is not enough of for one more session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lack {
    Frames,
    Sessions,
    HalfOpen,
    /// This source has as many half-open ones as it may.
    OfSource,
}

impl<S: Session> Shard<S> {
    /// A SYN of no flow, not an MP_JOIN.
    pub(super) fn admit(&mut self, flow: FlowTuple, syn: Segment, now: Instant) -> Taken {
        let limits = S::limits(&self.config);
        let lack = self.lack(&limits, flow.remote.addr, Client::Unproven);
        if self.answer_by_cookie(flow, &syn, lack, limits.cookies, now) {
            return Taken::Yes;
        }
        let ours = self.owns(flow.local.addr);
        match lack {
            None => {}
            // Nobody who has waited this long will make it: a newcomer may.
            Some(Lack::HalfOpen) if ours && self.evict(now) => {}
            Some(lack) => {
                self.count_lack(lack);
                // What is ours to answer is dropped: the peer tries again. What merely passes through goes on without us.
                return if ours { Taken::Yes } else { Taken::No };
            }
        }
        self.open(flow, &syn, now)
    }

    fn open(&mut self, flow: FlowTuple, syn: &Segment, now: Instant) -> Taken {
        let (config, mut cx) = self.opening(now);
        let opened = S::open(config, flow, syn, &mut cx);
        self.opened(opened, flow, syn, Client::Unproven).0
    }

    /// What a session that is about to be opened needs.
    fn opening(&mut self, now: Instant) -> (&mut S::Config, Cx<'_>) {
        let cx = Cx {
            now,
            rng: &mut self.rng,
            pool: &self.pool,
            counters: &mut self.counters,
            session: self.slab.next_id(),
            registry: &mut self.registry,
        };
        (&mut self.config, cx)
    }

    /// The number of a session, if one was opened.
    fn opened(
        &mut self,
        opened: Opened<S>,
        flow: FlowTuple,
        segment: &Segment,
        client: Client,
    ) -> (Taken, Option<super::SessionId>) {
        if !matches!(opened, Opened::Session(_)) {
            self.registry.fast_open.settled(self.slab.next_id());
        }
        match opened {
            Opened::Session(session) => {
                self.counters.InSegs += 1;
                self.counters.PassiveOpens += 1;
                let id = self.adopt(session, flow.remote.addr, client);
                return (Taken::Yes, Some(id));
            }
            Opened::Refuse(why) => {
                self.count_refusal(why);
                self.reset(flow, segment, None);
            }
            Opened::Ignore => {}
            Opened::Pass if self.owns(flow.local.addr) => {
                self.counters.InNoFlow += 1;
                self.reset(flow, segment, None);
            }
            Opened::Pass => return (Taken::No, None),
        }
        (Taken::Yes, None)
    }

    fn adopt(&mut self, session: S, source: IpAddr, client: Client) -> super::SessionId {
        let stage = Stage::HalfOpen;
        let entry = Entry { session: Box::new(session), armed: None, dirty: false, stage };
        let id = self.slab.insert(entry);
        self.half_open.insert(id, source, client);
        self.mark_dirty(id);
        id
    }

    /// Frames that new sessions leave alone; half of them are left alone by text as well.
    pub(super) fn reserve(&self) -> u32 {
        self.pool.capacity() / self.registry.config.reserve.max(1)
    }

    /// Old sessions come first: no new ones while frames run low or a limit is reached. A flood cannot use up the limit of
    /// half-open ones for clients that have proven where they are.
    fn lack(&self, limits: &Limits, source: IpAddr, client: Client) -> Option<Lack> {
        let half_open = self.half_open.unproven() >= limits.half_open as usize;
        if self.pool.free() < self.reserve() {
            Some(Lack::Frames)
        } else if self.slab.len() >= limits.sessions as usize {
            Some(Lack::Sessions)
        } else if self.half_open.of_source(source) >= limits.half_open_per_source {
            Some(Lack::OfSource)
        } else {
            (half_open && client == Client::Unproven).then_some(Lack::HalfOpen)
        }
    }

    fn count_lack(&mut self, lack: Lack) {
        self.counters.ListenDrops += 1;
        let counter = match lack {
            Lack::Frames => &mut self.counters.MemoryPressures,
            Lack::Sessions => &mut self.counters.ListenOverflows,
            Lack::HalfOpen => &mut self.counters.TCPReqQFullDrop,
            Lack::OfSource => &mut self.counters.HalfOpenPerSource,
        };
        *counter += 1;
    }

    /// Ends the oldest unproven half-open session; false if there is none.
    fn evict(&mut self, now: Instant) -> bool {
        let Some(id) = self.half_open.oldest() else { return false };
        self.half_open.remove(id);
        self.counters.HalfOpenEvicted += 1;
        self.run(id, now, |session, config, cx| session.on_evicted(config, cx));
        true
    }

    /// Whether the SYN was answered with a cookie. Frames and sessions are needed after the handshake too, so a lack of
    /// these is no reason.
    fn answer_by_cookie(
        &mut self,
        flow: FlowTuple,
        syn: &Segment,
        lack: Option<Lack>,
        policy: CookiePolicy,
        now: Instant,
    ) -> bool {
        let crowded = matches!(lack, Some(Lack::HalfOpen | Lack::OfSource));
        match policy {
            CookiePolicy::Auto if crowded => {}
            CookiePolicy::Always if crowded || lack.is_none() => {}
            _ => return false,
        }
        let (config, mut cx) = self.opening(now);
        let Some(syn_ack) = S::answer_by_cookie(config, flow, syn, &mut cx) else { return false };
        self.counters.InSegs += 1;
        self.counters.SyncookiesSent += 1;
        self.counters.TCPReqQFullDoCookies += u64::from(crowded);
        self.reply(flow, syn_ack);
        true
    }

    /// A segment of no flow: if it returns a cookie, it opens a session and is its first. Else it is given back.
    pub(super) fn take_proof(
        &mut self,
        packet: RxPacket,
        flow: FlowTuple,
        now: Instant,
    ) -> Option<RxPacket> {
        if !self.registry.cookies.is_open(now) {
            return Some(packet);
        }
        let view = RxPacket { octets: packet.octets.clone(), ..packet };
        let Ok(Parsed::Tcp(_, ack)) = parse(view) else { return Some(packet) };
        if ack.ack.is_none() || matches!(ack.control, Control::Syn | Control::Rst) {
            return Some(packet);
        }
        let limits = S::limits(&self.config);
        if let Some(lack) = self.lack(&limits, flow.remote.addr, Client::Proven) {
            self.count_lack(lack);
            // Silence: whoever it is has text to send again, and then there may be room.
            return (!self.owns(flow.local.addr)).then_some(packet);
        }
        let (config, mut cx) = self.opening(now);
        let Some(opened) = S::open_proven(config, flow, &ack, &mut cx) else {
            self.counters.SyncookiesFailed += 1;
            return Some(packet);
        };
        self.counters.SyncookiesRecv += 1;
        let (taken, id) = self.opened(opened, flow, &ack, Client::Proven);
        if let Some(id) = id {
            self.run(id, now, |session, config, cx| session.on_segment(config, flow, ack, cx));
        }
        (taken == Taken::No).then_some(packet)
    }
}

impl Cx<'_> {
    /// The SYN/ACK for `syn` with a cookie. `note` tells apart what it may be for, and has to be the same when it comes back.
    pub fn cookie(
        &mut self,
        cfg: &Rc<TcpConfig>,
        flow: FlowTuple,
        syn: &Segment,
        note: u8,
    ) -> Option<Segment> {
        let offset = self.opening(flow).ts_offset;
        let (rng, now) = (&mut *self.rng, self.now);
        self.registry.cookies.answer(cfg, flow, syn, (offset, note), rng, now)
    }

    /// What the cookie that `ack` returns says, if it is one of ours.
    pub fn returned_cookie(
        &self,
        cfg: &TcpConfig,
        flow: FlowTuple,
        ack: &Segment,
        note: u8,
    ) -> Option<Proven> {
        let offset = self.opening(flow).ts_offset;
        self.registry.cookies.check(cfg, flow, ack, (offset, note), self.now)
    }

    /// As [`Cx::fresh_key`], the same again when the cookie comes back: `slot` is that of the cookie, or now if `None`.
    pub fn cookie_key(
        &mut self,
        flow: FlowTuple,
        irs: SeqNum,
        slot: Option<u64>,
        token_of: impl Fn(u64) -> u32,
    ) -> Option<u64> {
        let slot = match slot {
            Some(slot) => slot,
            None => self.registry.cookies.begin(self.rng, self.now),
        };
        let (homes, index) = (self.registry.config.homes, self.registry.config.index);
        let tries = super::session::MAX_DRAWS.saturating_mul(homes.shards.max(1));
        let key = (0..tries).find_map(|attempt| {
            let key = self.registry.cookies.number(flow, irs, slot, attempt)?;
            (key != 0 && homes.of_token(token_of(key)) == index).then_some(key)
        })?;
        // RFC 8684 3.1: who cannot draw another one has to do without MPTCP.
        self.registry.table.token(token_of(key)).is_none().then_some(key)
    }
}
