//! A bridge: two legs, and the loop that carries octets and credit between them.
#![forbid(unsafe_code)]

use super::close::{End, Follow, Progress, Side, follow};
use super::convert::{Elements, FarAnswer, check_echo};
use super::credit;
use super::direction::Direction;
use super::info::{ConnectionInfo, ConnectionState, Mode, Origin};
use super::leg::Leg;
use super::negative_cache::WhyAvoided;
use super::open::connect_plainly;
use super::policy::{Mcp, Source};
use crate::buf::Chain;
use crate::mptcp::Event;
use crate::shard::{Cx, SessionId, Stage};
use crate::tcp::{CloseReason, Phase};
use crate::time::{Instant, earliest};
use crate::wire::{
    Control, Endpoint, FlowTuple, IcmpError, IcmpErrorKind, MpJoin, MptcpOption, Segment, SeqNum,
    TxPacket, Unreachable, emit_unreachable,
};
use alloc::boxed::Box;
use alloc::string::String;

/// Two legs of one connection. The near leg answers the client, the far leg asks the server; the client's SYN is held
/// until the far leg is up, so that refused stays refused and silent stays silent.
#[derive(Debug)]
pub struct Bridge {
    id: SessionId,
    opened: Instant,
    origin: Origin,
    mode: Mode,
    near: Leg,
    far: Leg,
    /// A far leg that did not convert, on its way out.
    leaving: Option<Box<Leg>>,
    state: State,
    up: Direction,
    down: Direction,
    /// Index of the dMCP.
    remote: Option<u32>,
    /// Number of the client's SYN.
    syn: SeqNum,
    /// What the network said of the far leg's SYN.
    unreachable: Option<Unreachable>,
}

#[derive(Debug)]
enum State {
    /// The client's SYN waits for the far leg.
    Held(Box<Plan>),
    /// It was answered.
    Answered,
    /// One leg ended badly, first of all for this reason.
    Ended(CloseReason),
    /// The client is to hear that the server cannot be reached, and nothing more.
    Unreachable(Unreachable),
    /// The client is to hear nothing.
    Vanished,
    /// The same, but the server is to hear of it.
    Evicted,
}

/// What happens when the far leg is up.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The elements that a dMCP has to echo, and how to do without it.
    pub expected: Option<Expected>,
    /// What our SYN/ACK carries.
    pub echo: Chain,
}

/// What a dMCP owes.
#[derive(Debug)]
pub(super) struct Expected {
    pub elements: Elements,
    /// Whose address the server sees if we go there ourselves.
    pub source: Source,
    /// A dMCP from which nothing at all was heard by then is taken for dead.
    pub patience: Instant,
}

/// Which leg a flow belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    Near,
    Far,
    Leaving,
}

/// All that a new bridge needs.
pub(super) struct Parts {
    pub origin: Origin,
    pub mode: Mode,
    pub near: Leg,
    pub far: Leg,
    pub plan: Plan,
    /// Octets of the client's that the far leg has already.
    pub early: u32,
    pub remote: Option<u32>,
    /// SEG.SEQ of the client's SYN.
    pub syn: SeqNum,
}

impl Bridge {
    pub(super) fn new(parts: Parts, cx: &mut Cx<'_>) -> Bridge {
        let Parts { origin, mode, near, far, plan, early, remote, syn } = parts;
        let (near_flow, far_flow) = (near.first_flow(), far.first_flow());
        let (up, down) = (Direction::of(&near), Direction::of(&far));
        let bridge = Bridge {
            id: cx.session(),
            opened: cx.now,
            origin,
            mode,
            near,
            far,
            leaving: None,
            state: State::Held(Box::new(plan)),
            up: Direction { octets: early.into(), ..up },
            down,
            remote,
            syn,
            unreachable: None,
        };
        cx.add_flow(near_flow);
        cx.add_flow(far_flow);
        for token in [bridge.near.token(), bridge.far.token()].into_iter().flatten() {
            cx.add_token(token);
        }
        cx.counters.ActiveOpens += 1;
        cx.counters.RelayedUp += u64::from(early);
        bridge
    }

    pub(super) fn take_segment(
        &mut self,
        config: &mut Mcp,
        flow: FlowTuple,
        segment: Segment,
        cx: &mut Cx<'_>,
    ) {
        let Some(which) = self.which(flow) else { return };
        if which == Which::Far
            && let Some(remote) = self.remote
        {
            config.avoided.on_heard(remote as usize, cx.now);
        }
        if let Some(leg) = self.leg(which) {
            // Both ends may dial each other at once: then the SYN arrives on a flow that we have already.
            match leg {
                Leg::Mptcp(connection) if is_join(&segment) => {
                    let _ = connection.join(flow, segment, cx.rng, cx.now);
                }
                leg => leg.on_segment(flow, segment, cx),
            }
        }
        if which == Which::Far
            && let Leg::Tcp(leg) = &mut self.far
            && let Some(lesson) = leg.stream.take_lesson()
        {
            config.learn_fast_open(leg.flow.remote.addr, lesson, cx);
        }
        self.advance(config, cx);
    }

    pub(super) fn take_join(
        &mut self,
        config: &mut Mcp,
        flow: FlowTuple,
        syn: Segment,
        token: u32,
        cx: &mut Cx<'_>,
    ) {
        for which in [Which::Near, Which::Far] {
            let Some(Leg::Mptcp(connection)) = self.leg(which) else { continue };
            if connection.token() == token {
                // A refusal is answered by the connection itself.
                if connection.join(flow, syn, cx.rng, cx.now).is_ok() {
                    cx.add_flow(flow);
                }
                break;
            }
        }
        self.advance(config, cx);
    }

    pub(super) fn take_icmp(&mut self, config: &mut Mcp, error: IcmpError, cx: &mut Cx<'_>) {
        let which = self.which(error.flow);
        if which == Some(Which::Far)
            && let IcmpErrorKind::Unreachable(why) = error.kind
            && self.far.is_opening(&error)
        {
            self.unreachable = Some(why);
            if let Some(remote) = self.remote {
                if error.from != error.flow.remote.addr {
                    // It is the dMCP that cannot be reached; of a server the dMCP itself would tell us.
                    cx.counters.ConvertUnreachable += 1;
                    self.go_plainly(WhyAvoided::Silent, config, cx);
                    return;
                }
                config.avoided.on_heard(remote as usize, cx.now);
            }
        }
        if let Some(leg) = which.and_then(|which| self.leg(which)) {
            leg.on_icmp(error, config, cx);
        }
        self.advance(config, cx);
    }

    pub(super) fn run_deadline(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        self.near.on_deadline(cx);
        self.far.on_deadline(cx);
        if let Some(leg) = &mut self.leaving {
            leg.on_deadline(cx);
        }
        self.check_patience(config, cx);
        self.advance(config, cx);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let leaving = self.leaving.as_deref().and_then(Leg::deadline);
        let legs = earliest(self.near.deadline(), self.far.deadline());
        let patience = match &self.state {
            State::Held(plan) => plan.expected.as_ref().map(|expected| expected.patience),
            _ => None,
        };
        earliest(earliest(legs, leaving), patience)
    }

    pub(super) fn next_packet(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) -> Option<TxPacket> {
        match self.state {
            State::Vanished => return None,
            State::Evicted => return self.far.poll_transmit(cx),
            State::Unreachable(why) => {
                self.state = State::Vanished;
                let flow = self.near.first_flow();
                return cx.allow_icmp().then(|| emit_unreachable(why, flow, self.syn));
            }
            _ => {}
        }
        loop {
            let packet = self.near.poll_transmit(cx).or_else(|| self.far.poll_transmit(cx));
            if packet.is_some() {
                return packet;
            }
            if let Some(packet) = self.leaving.as_mut().and_then(|leg| leg.poll_transmit(cx)) {
                return Some(packet);
            }
            self.forget_leaving(config, cx);
            if !self.advance(config, cx) {
                // Once for every turn that touched this bridge: what was counted is never older than that.
                self.drain_counters(config, cx);
                self.near.drain_mtu_tally(cx.counters);
                self.far.drain_mtu_tally(cx.counters);
                return None;
            }
        }
    }

    pub(super) fn current_stage(&self) -> Stage {
        match &self.state {
            State::Vanished | State::Unreachable(_) => Stage::Finished,
            State::Evicted if self.far.is_over() => Stage::Finished,
            State::Evicted => Stage::HalfOpen,
            _ if self.leaving.is_some() => Stage::HalfOpen,
            State::Held(_) => Stage::HalfOpen,
            // The client may not exist.
            State::Answered if self.near.phase() == Phase::Opening => Stage::HalfOpen,
            _ if self.near.is_over() && self.far.is_over() => Stage::Finished,
            _ => Stage::Open,
        }
    }

    /// Gives back everything the shard keeps for this bridge.
    pub(super) fn give_back(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        self.drain_counters(config, cx);
        for leg in [&self.near, &self.far] {
            if let Leg::Tcp(leg) = leg
                && let Some(rest) = leg.stream.time_wait()
            {
                cx.time_wait(leg.flow, rest);
            }
        }
        let legs = [Some(&mut self.near), Some(&mut self.far), self.leaving.as_deref_mut()];
        for leg in legs.into_iter().flatten() {
            forget(leg, cx);
        }
    }

    /// Ends both directions now: RST or MP_FASTCLOSE on both legs.
    pub fn abort(&mut self, why: CloseReason) {
        match self.state {
            State::Held(_) if !self.near.is_up() => self.near.refuse(),
            _ => self.near.abort(why),
        }
        self.far.abort(why);
        self.state = State::Ended(why);
    }

    /// Half-open, it has to go: the server hears of it, the client does not.
    pub(super) fn make_room(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        self.far.abort(CloseReason::Aborted);
        self.forget_leaving(config, cx);
        self.state = State::Evicted;
    }

    /// A snapshot.
    pub fn info(&self, config: &Mcp, now: Instant) -> ConnectionInfo {
        ConnectionInfo {
            id: self.id.number(),
            client: self.client(),
            server: self.server(),
            mode: self.mode,
            state: self.connection_state(),
            bytes_up: self.up.octets,
            bytes_down: self.down.octets,
            near: self.near.info(),
            far: self.far.info(),
            age: now.since(self.opened),
            rule: self.rule_name(config),
        }
    }

    fn client(&self) -> Endpoint {
        self.near.first_flow().remote
    }

    /// Where the client wants to go: what the far leg goes to, unless that is a dMCP.
    fn server(&self) -> Endpoint {
        match self.mode {
            Mode::Convert => self.near.first_flow().local,
            _ => self.far.first_flow().remote,
        }
    }

    fn rule_name(&self, config: &Mcp) -> String {
        match self.origin {
            Origin::Rule(place) => config.rule_name(place),
            Origin::Service(i) => alloc::format!("service {i}"),
        }
    }

    fn connection_state(&self) -> ConnectionState {
        match &self.state {
            State::Held(_) => ConnectionState::Connecting,
            State::Ended(why) => ConnectionState::Closed(*why),
            State::Unreachable(_) => ConnectionState::Closed(CloseReason::Unreachable),
            State::Vanished => ConnectionState::Closed(CloseReason::TimedOut),
            State::Evicted => ConnectionState::Closed(CloseReason::Aborted),
            State::Answered if self.near.is_over() && self.far.is_over() => {
                ConnectionState::Closed(CloseReason::Done)
            }
            State::Answered if self.up.finished || self.down.finished => ConnectionState::Closing,
            State::Answered => ConnectionState::Open,
        }
    }

    /// Moves everything on as far as it goes now. True if a leg has to be asked for packets again.
    fn advance(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) -> bool {
        let mut moved = self.drain_events(config, cx);
        if matches!(self.state, State::Held(_))
            && matches!(self.far, Leg::Tcp(_))
            && self.far.is_up()
        {
            let answer = FarAnswer { text: Chain::new(), acked: 0, mptcp: false };
            self.on_far_up(answer, config, cx);
            moved = true;
        }
        match self.state {
            State::Answered => {
                moved |= self.relay(cx);
                self.grant(cx);
            }
            State::Held(_) if self.near.is_up() => self.grant_near(cx), // it returned a SYN cookie
            _ => {}
        }
        moved | self.check_end(Side::Far) | self.check_end(Side::Near)
    }

    /// What MPTCP legs have to tell: flows that come and go, and that the far one is up.
    fn drain_events(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) -> bool {
        let mut any = false;
        for which in [Which::Near, Which::Far, Which::Leaving] {
            while let Some(event) = self.leg(which).and_then(Leg::poll_event) {
                any = true;
                match event {
                    Event::FlowOpened(flow) => {
                        cx.add_flow(flow);
                    }
                    Event::FlowClosed(flow, rest) => {
                        if let Some(rest) = rest {
                            cx.time_wait(flow, *rest);
                        }
                        cx.remove_flow(flow);
                    }
                    Event::Established { synack_text, acked_text, mptcp }
                        if which == Which::Far =>
                    {
                        let text = synack_text;
                        let answer = FarAnswer { text, acked: acked_text, mptcp };
                        self.on_far_up(answer, config, cx);
                    }
                    Event::Established { .. } | Event::Fallback(_) | Event::Closed(_) => {}
                }
            }
        }
        any
    }

    /// The far leg's handshake is over: judge it, then answer the client.
    fn on_far_up(&mut self, answer: FarAnswer, config: &mut Mcp, cx: &mut Cx<'_>) {
        let State::Held(plan) = &mut self.state else { return };
        let rest = match &plan.expected {
            None => answer.text,
            Some(expected) => match check_echo(&expected.elements, answer) {
                Ok(rest) => rest,
                Err(absence) => {
                    absence.count(cx.counters);
                    return self.go_plainly(WhyAvoided::DoesNotConvert, config, cx);
                }
            },
        };
        if plan.expected.is_some() {
            cx.counters.ConvertEstab += 1;
        }
        let Plan { echo, .. } = core::mem::take(&mut **plan);
        self.near.answer(echo, cx.now);
        self.down.ahead = (!rest.is_empty()).then(|| Box::new(rest));
        self.state = State::Answered;
    }

    /// A dMCP that stays silent while nothing at all comes from it is dead rather than waiting for the server.
    fn check_patience(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        let (State::Held(plan), Some(remote)) = (&mut self.state, self.remote) else { return };
        let Some(expected) = &mut plan.expected else { return };
        if cx.now < expected.patience {
            return;
        }
        if config.avoided.heard_since(remote as usize, self.opened) {
            expected.patience = cx.now + super::open::PATIENCE; // it lives: the server's silence is the client's
        } else {
            cx.counters.ConvertSilent += 1;
            self.go_plainly(WhyAvoided::Silent, config, cx);
        }
    }

    /// The dMCP does not convert: leave it alone for a while, and go to the server ourselves. The client's SYN is still
    /// held, so the client notices nothing.
    fn go_plainly(&mut self, why: WhyAvoided, config: &mut Mcp, cx: &mut Cx<'_>) {
        let State::Held(plan) = &mut self.state else { return };
        let source = plan.expected.take().map_or(Source::Ours, |expected| expected.source);
        if let Some(remote) = self.remote.take() {
            config.avoided.avoid(remote as usize, why, cx.now);
        }
        let Some(far) =
            connect_plainly(config, source, self.client(), self.server(), Chain::new(), cx)
        else {
            cx.counters.NoPorts += 1;
            return self.abort(CloseReason::Aborted);
        };
        let flow = far.first_flow();
        let mut old = core::mem::replace(&mut self.far, far);
        old.abort(CloseReason::Aborted);
        self.leaving = Some(Box::new(old));
        cx.add_flow(flow);
        self.mode = Mode::Plain;
    }

    /// The leg that did not convert has said its last word.
    fn forget_leaving(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        let Some(mut leg) = self.leaving.take() else { return };
        leg.count_events(cx.counters);
        if let Leg::Mptcp(connection) = &mut *leg {
            config.counters.add(&connection.drain_counters());
        }
        forget(&mut leg, cx);
    }

    /// Carries octets and ends both ways. True if anything moved.
    fn relay(&mut self, cx: &mut Cx<'_>) -> bool {
        let up = self.up.carry(Side::Near, &mut self.near, &mut self.far);
        let down = self.down.carry(Side::Far, &mut self.far, &mut self.near);
        cx.counters.RelayedUp += up.octets;
        cx.counters.RelayedDown += down.octets;
        up.moved() | down.moved()
    }

    /// The window on one leg is what the other consumes.
    fn grant(&mut self, cx: &mut Cx<'_>) {
        self.up.grant(&mut self.near, &self.far, cx);
        self.down.grant(&mut self.far, &self.near, cx);
    }

    /// What the client may send before the far leg is up.
    fn grant_near(&mut self, cx: &mut Cx<'_>) {
        self.near.grant(credit::limit(self.up.space.window(), cx.pool));
    }

    /// If the leg on `side` is gone, the other follows as the close table says.
    fn check_end(&mut self, side: Side) -> bool {
        let progress = match self.state {
            // A client that returned a SYN cookie has its answer already.
            State::Held(_) if self.near.is_up() => Progress::Answered,
            State::Held(_) => Progress::Held,
            State::Answered => Progress::Answered,
            State::Ended(_) | State::Unreachable(_) | State::Vanished | State::Evicted => {
                return false;
            }
        };
        let (leg, other) = match side {
            Side::Near => (&self.near, &mut self.far),
            Side::Far => (&self.far, &mut self.near),
        };
        let Phase::Closed(why) = leg.phase() else { return false };
        match follow(progress, side, End::Closed(why)) {
            // In order: what it sent may still be on its way, and `relay` passes the end on behind it.
            Follow::Nothing | Follow::Finish => return false,
            Follow::Abort(why) => {
                if !other.is_over() {
                    other.abort(why);
                }
            }
            Follow::Refuse => other.refuse(),
            Follow::TellUnreachable => {
                self.state = State::Unreachable(self.unreachable.unwrap_or(Unreachable::Host));
                return true;
            }
            Follow::Vanish => {
                self.state = State::Vanished;
                return true;
            }
        }
        self.state = State::Ended(why);
        true
    }

    fn drain_counters(&mut self, config: &mut Mcp, cx: &mut Cx<'_>) {
        for leg in [&mut self.near, &mut self.far] {
            leg.count_events(cx.counters);
            if let Leg::Mptcp(connection) = leg
                && connection.has_counted()
            {
                config.counters.add(&connection.drain_counters());
            }
        }
    }

    fn which(&self, flow: FlowTuple) -> Option<Which> {
        let leaving = || self.leaving.as_ref().is_some_and(|leg| leg.has_flow(flow));
        if self.near.has_flow(flow) {
            Some(Which::Near)
        } else if self.far.has_flow(flow) {
            Some(Which::Far)
        } else {
            leaving().then_some(Which::Leaving)
        }
    }

    fn leg(&mut self, which: Which) -> Option<&mut Leg> {
        match which {
            Which::Near => Some(&mut self.near),
            Which::Far => Some(&mut self.far),
            Which::Leaving => self.leaving.as_deref_mut(),
        }
    }
}

/// One for each connection, busy or idle.
const _: () = assert!(size_of::<Bridge>() <= 160);

/// Gives back the flows and the token of a leg.
fn forget(leg: &mut Leg, cx: &mut Cx<'_>) {
    for flow in leg.flows() {
        cx.remove_flow(flow);
    }
    // Of flows that closed with the last word said, nobody else will hear.
    while let Some(event) = leg.poll_event() {
        if let Event::FlowClosed(flow, _) = event {
            cx.remove_flow(flow);
        }
    }
    if let Some(token) = leg.token() {
        cx.remove_token(token);
    }
}

fn is_join(segment: &Segment) -> bool {
    let join = |option: &MptcpOption| matches!(option, MptcpOption::MpJoin(MpJoin::Syn { .. }));
    segment.control == Control::Syn
        && segment.ack.is_none()
        && segment.options.mptcp().iter().any(join)
}
