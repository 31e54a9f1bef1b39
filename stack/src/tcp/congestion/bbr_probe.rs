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
