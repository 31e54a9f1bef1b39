//! BBR's states: find the rate, drain, then probe for more and for the least round trip from time to time.
#![forbid(unsafe_code)]

use super::bbr::{Bbr, Step};
use super::{Limited, Sack};
use crate::time::{Duration, Instant};

/// From one probe of the round trip to the next, and how long it takes.
pub(super) const PROBE_RTT_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_RTT_DURATION: Duration = Duration::from_millis(200);
/// Least time between probes for more; up to a second is added.
const PROBE_WAIT: Duration = Duration::from_secs(2);
/// Rounds after which Reno would have grown by as much: at most so many.
const MAX_RENO_ROUNDS: u32 = 63;
/// Lost ranges in a round that end Startup.
const STARTUP_LOSSES: u32 = 6;
/// Rounds after which Drain is over in any case.
const DRAIN_ROUNDS: u32 = 3;

/// Where the flow is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Doubles until the path is full.
    Startup,
    /// Empties the queue that made.
    Drain,
    /// ProbeBW: makes room.
    Down,
    /// ProbeBW: sends what is delivered.
    Cruise,
    /// ProbeBW: fills the pipe for a round.
    Refill,
    /// ProbeBW: tries for more.
    Up,
    /// Nearly empties the pipe to see its round trip.
    ProbeRtt,
}

impl State {
    pub(super) fn pacing_gain(self) -> f64 {
        match self {
            State::Startup => 2.77, // 4 ln 2
            State::Drain => 0.5,
            State::Down => 0.9,
            State::Up => 1.25,
            State::Cruise | State::Refill | State::ProbeRtt => 1.0,
        }
    }

    pub(super) fn cwnd_gain(self) -> f64 {
        match self {
            State::Up => 2.25,
            State::ProbeRtt => 0.5,
            State::Startup | State::Drain | State::Down | State::Cruise | State::Refill => 2.0,
        }
    }

    pub(super) fn is_probe_bw(self) -> bool {
        matches!(self, State::Down | State::Cruise | State::Refill | State::Up)
    }
}

/// What ACKs answer: text that was sent before, while or after more was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AckPhase {
    Init,
    Refilling,
    Starting,
    Feedback,
    Stopping,
}

/// Probing for more.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) ack_phase: AckPhase,
    /// ACKs answer text of a probe that has not gone too far yet.
    pub(super) is_sample: bool,
    /// The last probe went too far; the one before this stopped where that was.
    pub(super) too_high: bool,
    precautionary: bool,
    up_acked: u32,
    up_acked_per_inc: u32,
    up_rounds: u32,
    pub(super) rounds_since: u32,
    wait: Duration,
    cycle_at: Instant,
    drain_round: u32,
}

impl Probe {
    pub(super) fn new(now: Instant) -> Probe {
        Probe {
            ack_phase: AckPhase::Init,
            is_sample: false,
            too_high: false,
            precautionary: false,
            up_acked: 0,
            up_acked_per_inc: u32::MAX,
            up_rounds: 0,
            rounds_since: 0,
            wait: PROBE_WAIT,
            cycle_at: now,
            drain_round: 0,
        }
    }
}

/// Probing for the least round trip.
#[derive(Clone, Debug)]
pub(super) struct ProbeRtt {
    /// Least of the last five seconds, and when it was seen.
    pub(super) min: Option<Duration>,
    pub(super) min_at: Instant,
    pub(super) expired: bool,
    done_at: Option<Instant>,
    round_done: bool,
}

impl ProbeRtt {
    pub(super) fn new(srtt: Option<Duration>, now: Instant) -> ProbeRtt {
        ProbeRtt { min: srtt, min_at: now, expired: false, done_at: None, round_done: false }
    }
}

impl Bbr {
    pub(super) fn check_startup_done(&mut self, step: &Step) {
        if self.state != State::Startup {
            return;
        }
        self.check_startup_loss(step);
        if self.full.reached {
            self.state = State::Drain;
            self.probe.drain_round = self.round.count;
        }
    }

    /// Losses that go on for a round, many and scattered: the path is full.
    fn check_startup_loss(&mut self, step: &Step) {
        let rs = &step.rs;
        let a_round = self.recovering.is_some_and(|at| self.round.count.wrapping_sub(at) >= 1);
        let too_much = if self.sack == Sack::Agreed {
            self.latest.round_start
                && a_round
                && self.latest.ranges >= STARTUP_LOSSES
                && self.is_too_high(rs.lost, rs.tx_in_flight)
        } else {
            self.recovering.is_some() && rs.lost > 0
        };
        if too_much || (self.latest.marked && self.latest.round_start) {
            self.undo.state = Some(State::Startup);
            self.full.reached = true;
            self.inflight_longterm = self.bdp(self.bw, 1.0).max(self.latest.inflight);
        }
        if self.latest.round_start {
            self.latest.ranges = 0;
        }
    }

    pub(super) fn check_drain_done(&mut self, step: &Step) {
        if self.state != State::Drain {
            return;
        }
        let rounds = self.round.count.wrapping_sub(self.probe.drain_round);
        if step.inflight <= self.inflight_at(self.bw, 1.0) || rounds > DRAIN_ROUNDS {
            self.start_down(step.now);
        }
    }

    pub(super) fn start_down(&mut self, now: Instant) {
        self.reset_latest();
        self.probe.up_acked_per_inc = u32::MAX;
        self.pick_wait(now);
        self.probe.cycle_at = now;
        self.enters_phase(AckPhase::Stopping);
        self.state = State::Down;
    }

    pub(super) fn start_refill(&mut self) {
        self.reset_shortterm();
        (self.probe.up_rounds, self.probe.up_acked) = (0, 0);
        self.probe.precautionary = false;
        self.enters_phase(AckPhase::Refilling);
        self.state = State::Refill;
    }

    fn start_up(&mut self, step: &Step) {
        self.enters_phase(AckPhase::Starting);
        self.reset_full_pipe();
        self.full.bw = step.rs.rate;
        self.state = State::Up;
        self.raise_slope(step.cwnd);
    }

    /// Flows must not probe all at once.
    fn pick_wait(&mut self, now: Instant) {
        let drawn = mix(now.as_nanos() ^ self.rate.delivered().rotate_left(32));
        self.probe.rounds_since = (drawn >> 63) as u32;
        let part = (drawn & 0xffff_ffff) * 1_000_000_000;
        self.probe.wait = PROBE_WAIT + Duration::from_nanos(part >> 32);
    }

    pub(super) fn update_probe_bw(&mut self, step: &Step) {
        if !self.full.reached || self.adapt_longterm(step) {
            return;
        }
        match self.state {
            State::Down => {
                if !self.probes_if_time(step) && self.is_time_to_cruise(step) {
                    self.state = State::Cruise;
                }
            }
            State::Cruise => {
                self.probes_if_time(step);
            }
            State::Refill if self.round.start => {
                self.probe.is_sample = true;
                self.start_up(step);
            }
            State::Up => {
                if self.is_time_to_go_down(step) {
                    self.probe.too_high = false;
                    self.start_down(step.now);
                }
            }
            State::Refill | State::Startup | State::Drain | State::ProbeRtt => {}
        }
    }

    fn is_time_to_cruise(&self, step: &Step) -> bool {
        step.inflight <= self.inflight_with_headroom()
            && step.inflight <= self.inflight_at(self.greatest_bw(), 1.0)
    }

    fn is_time_to_go_down(&mut self, step: &Step) -> bool {
        if self.probe.too_high && step.inflight >= self.inflight_longterm {
            self.probe.precautionary = true;
            return true;
        }
        if step.limited == Limited::ByCwnd && step.cwnd >= self.inflight_longterm {
            self.reset_full_pipe(); // the bound holds the rate down, not the path
            self.full.bw = step.rs.rate;
            return false;
        }
        self.full.now
    }

    /// DOWN and CRUISE end after a while, and sooner where Reno would have come back sooner.
    fn probes_if_time(&mut self, step: &Step) -> bool {
        let reno = (self.target_inflight(step.cwnd) / self.mss).min(MAX_RENO_ROUNDS);
        let time = step.now > self.probe.cycle_at + self.probe.wait;
        if time || self.probe.rounds_since >= reno {
            self.start_refill();
            return true;
        }
        false
    }

    /// Doubles, each round, what the long-term bound grows by.
    fn raise_slope(&mut self, cwnd: u32) {
        let growth = 1u32 << self.probe.up_rounds.min(30);
        self.probe.up_rounds = (self.probe.up_rounds + 1).min(30);
        self.probe.up_acked_per_inc = (cwnd / growth).max(self.mss);
    }

    fn grow_longterm(&mut self, step: &Step) {
        if step.limited != Limited::ByCwnd || step.cwnd < self.inflight_longterm {
            return; // it is not used
        }
        self.probe.up_acked = self.probe.up_acked.saturating_add(step.octets);
        if self.probe.up_acked >= self.probe.up_acked_per_inc {
            let steps = self.probe.up_acked / self.probe.up_acked_per_inc;
            self.probe.up_acked -= steps * self.probe.up_acked_per_inc;
            let more = steps.saturating_mul(self.mss);
            self.inflight_longterm = self.inflight_longterm.saturating_add(more);
        }
        if self.round.start {
            self.raise_slope(step.cwnd);
        }
    }

    /// Answers what the last probe showed. True if that led to another state.
    fn adapt_longterm(&mut self, step: &Step) -> bool {
        if self.probe.ack_phase == AckPhase::Starting && self.round.start {
            self.probe.ack_phase = AckPhase::Feedback;
        }
        if self.probe.ack_phase == AckPhase::Stopping && self.round.start {
            self.probe.is_sample = false;
            self.probe.ack_phase = AckPhase::Init;
            if self.state.is_probe_bw() && !step.rs.limited {
                self.advance_max_bw();
            }
            if self.state.is_probe_bw() && self.probe.precautionary && !self.probe.too_high {
                self.start_refill();
                return true;
            }
        }
        if self.latest.marked && self.probe.is_sample {
            let rs = &step.rs;
            self.on_inflight_too_high(rs.tx_in_flight, rs.limited, step.cwnd, step.now);
            return true;
        }
        if self.is_too_high(step.rs.lost, step.rs.tx_in_flight) {
            return false;
        }
        if self.inflight_longterm == u32::MAX {
            return false; // no bound to raise
        }
        self.inflight_longterm = self.inflight_longterm.max(step.rs.tx_in_flight);
        if self.state == State::Up {
            self.grow_longterm(step);
        }
        false
    }

    pub(super) fn check_probe_rtt(&mut self, step: &mut Step) {
        if self.state != State::ProbeRtt && self.probe_rtt.expired && !self.is_idle_restart() {
            self.save_cwnd(step.cwnd);
            self.state = State::ProbeRtt;
            self.probe_rtt.done_at = None;
            self.enters_phase(AckPhase::Stopping);
        }
        if self.state == State::ProbeRtt {
            self.run_probe_rtt(step);
        }
    }

    fn run_probe_rtt(&mut self, step: &mut Step) {
        self.rate.mark_app_limited(step.inflight); // low rates of now are our own doing
        if self.probe_rtt.done_at.is_none() {
            if step.inflight <= self.probe_rtt_cwnd() {
                self.probe_rtt.done_at = Some(step.now + PROBE_RTT_DURATION);
                self.probe_rtt.round_done = false;
                self.start_round();
            }
            return;
        }
        self.probe_rtt.round_done |= self.round.start;
        if self.probe_rtt.round_done {
            self.check_probe_rtt_done(step.now, &mut step.cwnd);
        }
    }

    pub(super) fn check_probe_rtt_done(&mut self, now: Instant, cwnd: &mut u32) {
        if self.probe_rtt.done_at.is_none_or(|at| now <= at) {
            return;
        }
        self.probe_rtt.min_at = now; // until the next
        *cwnd = self.restored_cwnd(*cwnd);
        self.reset_shortterm();
        if self.full.reached {
            self.start_down(now);
            self.state = State::Cruise;
        } else {
            self.state = State::Startup;
        }
    }

    pub(super) fn probe_rtt_cwnd(&self) -> u32 {
        self.bdp(self.bw, State::ProbeRtt.cwnd_gain()).max(self.min_pipe())
    }
}

/// Spreads its argument over all 64 bits (splitmix64).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::rate::Departure;
    use super::super::{Delivery, Lost};
    use super::*;
    use crate::wire::SeqNum;
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;

    const MSS: u32 = 1_000;
    const RTT: Duration = Duration::from_millis(40);

    /// One flow over a path of a rate and a round trip, in steps of a millisecond.
    struct Path {
        bbr: Bbr,
        cwnd: u32,
        now: Instant,
        /// Octets a millisecond.
        rate: u32,
        /// Most that the application has for a millisecond.
        supply: u32,
        number: u64,
        inflight: u32,
        free_at: Instant,
        flight: VecDeque<(u64, u32, Instant, Instant)>,
        states: Vec<State>,
    }

    impl Path {
        fn new(rate: u32) -> Path {
            let now = Instant::from_millis(1_000);
            let first = Departure { now, number: 1, octets: 0, inflight: 0, after_gap: false };
            Path {
                bbr: Bbr::new(&first, MSS, Some(RTT), Sack::Agreed),
                cwnd: 10 * MSS,
                now,
                rate,
                supply: u32::MAX,
                number: 0,
                inflight: 0,
                free_at: now,
                flight: VecDeque::new(),
                states: Vec::from([State::Startup]),
            }
        }

        fn run(&mut self, ms: u32) {
            for _ in 0..ms {
                self.step();
            }
        }

        fn run_until(&mut self, state: State) {
            for _ in 0..20_000 {
                if self.bbr.state == state {
                    return;
                }
                self.step();
            }
            panic!("never in {state:?}: {:?}", self.states);
        }

        fn step(&mut self) {
            self.now += Duration::from_millis(1);
            while let Some((number, octets, sent_at, at)) = self.flight.front().copied()
                && at <= self.now
            {
                self.flight.pop_front();
                self.inflight -= octets;
                let ack = Delivery {
                    now: self.now,
                    octets,
                    newest: number,
                    oldest: self.flight.front().map(|f| f.0),
                    sample: Some(self.now.since(sent_at)),
                    inflight: self.inflight,
                    mss: MSS,
                    limited: if self.inflight + octets + MSS > self.cwnd {
                        Limited::ByCwnd
                    } else {
                        Limited::ByApplication
                    },
                    recovering: false,
                };
                self.cwnd = self.bbr.on_ack(self.cwnd, &ack);
                if self.states.last() != Some(&self.bbr.state) {
                    self.states.push(self.bbr.state);
                }
            }
            let paced = (self.bbr.pacing_rate() / 1_000) as u32;
            let octets = paced.min(self.supply).min(self.cwnd.saturating_sub(self.inflight));
            if octets > 0 {
                self.send(octets, paced > self.supply);
            }
        }

        fn send(&mut self, octets: u32, after_gap: bool) {
            self.number += 1;
            self.inflight += octets;
            let (now, number, inflight) = (self.now, self.number, self.inflight);
            let departure = Departure { now, number, octets, inflight, after_gap };
            self.cwnd = self.bbr.on_sent(departure, self.cwnd);
            let time = u64::from(octets) * 1_000_000 / u64::from(self.rate);
            self.free_at = self.free_at.max(now) + Duration::from_nanos(time);
            self.flight.push_back((number, octets, now, self.free_at + RTT));
        }

        /// The oldest transmission is lost.
        fn lose(&mut self) {
            let Some((number, octets, ..)) = self.flight.pop_front() else { return };
            self.inflight -= octets;
            let seq = SeqNum(number as u32 * 100_000);
            self.bbr.on_lost(Lost { now: self.now, number, seq, octets }, self.cwnd);
        }
    }

    #[test]
    fn gains_by_state() {
        let rows = [
            (State::Startup, 2.77, 2.0),
            (State::Drain, 0.5, 2.0),
            (State::Down, 0.9, 2.0),
            (State::Cruise, 1.0, 2.0),
            (State::Refill, 1.0, 2.0),
            (State::Up, 1.25, 2.25),
            (State::ProbeRtt, 1.0, 0.5),
        ];
        for (state, pacing, cwnd) in rows {
            assert_eq!((state.pacing_gain(), state.cwnd_gain()), (pacing, cwnd), "{state:?}");
        }
    }

    #[test]
    fn a_flow_starts_drains_and_goes_round_the_cycle() {
        let mut path = Path::new(1_250);
        path.run(6_500);
        use State::{Cruise, Down, Drain, Refill, Startup, Up};
        // Drain leaves nothing for the first DOWN to do.
        let expected = [Startup, Drain, Cruise, Refill, Up, Down, Cruise];
        assert_eq!(path.states[..7], expected, "{:?}", path.states);
        let bw = path.bbr.bw as f64 / 1_250_000.0;
        assert!((0.97..1.03).contains(&bw), "{bw}");
        assert_eq!(path.bbr.min_rtt.map(|rtt| rtt.as_millis() / 2), Some(20));
    }

    #[test]
    fn three_rounds_without_a_quarter_more_end_startup() {
        let mut path = Path::new(1_250);
        path.run_until(State::Drain);
        assert_eq!((path.bbr.full.count, path.bbr.full.reached), (3, true));
        assert!(path.now < Instant::from_millis(1_000 + 40 * 14), "{:?}", path.now);
    }

    #[test]
    fn a_slow_application_stays_in_startup_and_keeps_its_pacing_rate() {
        let mut path = Path::new(1_250);
        path.supply = 50;
        let rate = path.bbr.pacing_rate();
        path.run(4_000);
        assert_eq!(path.states, [State::Startup]);
        assert!(path.bbr.is_app_limited());
        assert_eq!(path.bbr.pacing_rate(), rate);
    }

    #[test]
    fn the_round_trip_is_probed_after_five_seconds_and_the_window_comes_back() {
        let mut path = Path::new(1_250);
        path.run(2_000);
        path.run_until(State::ProbeRtt);
        let (at, cwnd) = (path.now, path.bbr.restored_cwnd(0));
        path.run(10);
        assert!(path.cwnd <= 50_000 / 2 + 2 * MSS, "half the pipe: {}", path.cwnd);
        path.run_until(State::Cruise);
        let took = path.now.since(at).as_millis();
        assert!((200..360).contains(&took), "{took} ms");
        assert!(path.cwnd + 10 * MSS >= cwnd.min(2 * 50_000), "{} of {cwnd}", path.cwnd);
    }

    #[test]
    fn too_much_loss_while_probing_bounds_what_is_in_flight() {
        let mut path = Path::new(1_250);
        path.run_until(State::Up);
        path.run(30);
        assert_eq!(path.bbr.inflight_longterm, u32::MAX);
        path.lose();
        assert_eq!((path.bbr.state, path.bbr.probe.too_high), (State::Down, true));
        assert!((35_000..100_000).contains(&path.bbr.inflight_longterm));
        // The loss was none: the bound goes, and the probe begins again.
        path.cwnd = path.bbr.on_spurious(path.cwnd);
        assert_eq!((path.bbr.state, path.bbr.inflight_longterm), (State::Refill, u32::MAX));
    }

    #[test]
    fn one_loss_in_a_hundred_changes_nothing() {
        let mut path = Path::new(1_250);
        path.run_until(State::Cruise);
        for _ in 0..10 {
            path.run(100);
            let (number, ..) = path.flight[0];
            let seq = SeqNum(number as u32 * 100_000);
            path.bbr.on_lost(Lost { now: path.now, number, seq, octets: 500 }, path.cwnd);
        }
        assert_eq!(path.bbr.inflight_longterm, u32::MAX);
        assert_eq!((path.bbr.bw_shortterm, path.bbr.inflight_shortterm), (u64::MAX, u32::MAX));
    }

    /// RFC 3168 6.1.2: a mark counts as congestion whatever was lost.
    #[test]
    fn a_mark_slows_the_flow_down_for_the_cycle() {
        let mut path = Path::new(1_250);
        path.run_until(State::Cruise);
        path.bbr.on_marked(path.cwnd);
        path.run(90);
        assert!(path.bbr.bw_shortterm < u64::MAX && path.bbr.inflight_shortterm < u32::MAX);
        path.run_until(State::Refill);
        assert_eq!(path.bbr.bw_shortterm, u64::MAX, "it is tried anew");
        path.run_until(State::Up);
        path.bbr.on_marked(path.cwnd);
        path.run(5);
        assert_eq!(path.bbr.state, State::Down);
    }
}
