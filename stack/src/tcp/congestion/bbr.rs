//! BBR version 3 (draft-ietf-ccwg-bbr): a model of the path, its rate and its round trip, instead of a window and losses.
//!
//! Here: what happens (text leaves, arrives, is lost) and what follows for the rate, the burst and the window.
//! `bbr_model` has the model, `bbr_probe` the states. Names are the draft's; volumes are octets, rates octets per second.
#![forbid(unsafe_code)]

use super::bbr_probe::{AckPhase, State};
use super::max_filter::MaxFilter;
use super::rate::{Departure, RateSample, Sampler};
use super::{Delivery, Limited, Lost, Sack, initial_window};
use crate::tcp::pacing::{MIN_RATE, octets_in, quantum};
use crate::time::{Duration, Instant};
use crate::wire::SeqNum;

/// What a round trip may lose while the rate is probed: one in fifty.
pub(super) const LOSS_THRESH: f64 = 0.02;
/// A loss takes no more than this away.
pub(super) const BETA: f64 = 0.7;
/// What is left free of the volume that the path bears.
pub(super) const HEADROOM: f64 = 0.15;
/// Least window, segments.
const MIN_PIPE_SEGMENTS: u32 = 4;
/// The rate is kept so much below what the path takes.
const PACING_MARGIN: f64 = 0.01;
/// Longest burst, octets.
const MAX_QUANTUM: u32 = 64 << 10;

/// Rounds: a round ends when something arrives that was sent after it began.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    pub(super) count: u32,
    pub(super) next_delivered: u64,
    /// This ACK began one.
    pub(super) start: bool,
}

/// Whether the path is full: three rounds without a quarter more.
#[derive(Clone, Debug, Default)]
pub(super) struct FullPipe {
    pub(super) bw: u64,
    pub(super) count: u8,
    pub(super) now: bool,
    /// Ever since the flow began.
    pub(super) reached: bool,
}

/// How ACKs bunch.
#[derive(Clone, Debug)]
pub(super) struct Aggregation {
    pub(super) since: Instant,
    pub(super) delivered: u64,
    pub(super) extra: MaxFilter,
}

/// What was delivered in the last round, and what was lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Latest {
    pub(super) bw: u64,
    pub(super) inflight: u32,
    pub(super) loss_in_round: bool,
    pub(super) round_delivered: u64,
    pub(super) round_start: bool,
    /// The network marked packets in this round (RFC 3168).
    pub(super) marked: bool,
    /// Ranges lost, and where the last ended.
    pub(super) ranges: u32,
    pub(super) range_end: Option<SeqNum>,
}

/// What is restored if a loss was none.
#[derive(Clone, Debug)]
pub(super) struct Undo {
    pub(super) state: Option<State>,
    bw_shortterm: u64,
    inflight_shortterm: u32,
    inflight_longterm: u32,
}

/// The state of one flow.
#[derive(Clone, Debug)]
pub(super) struct Bbr {
    pub(super) rate: Sampler,
    pub(super) state: State,
    pub(super) mss: u32,
    pub(super) sack: Sack,
    pub(super) round: Round,
    pub(super) full: FullPipe,
    /// Greatest rate of the last cycle and of this one.
    pub(super) max_bw: [u64; 2],
    pub(super) bw_shortterm: u64,
    pub(super) bw: u64,
    pub(super) min_rtt: Option<Duration>,
    pub(super) min_rtt_at: Instant,
    pub(super) aggregation: Aggregation,
    pub(super) inflight_longterm: u32,
    pub(super) inflight_shortterm: u32,
    pub(super) latest: Latest,
    pub(super) probe: super::bbr_probe::Probe,
    pub(super) probe_rtt: super::bbr_probe::ProbeRtt,
    pub(super) undo: Undo,
    /// Rounds had been counted so far when loss recovery began.
    pub(super) recovering: Option<u32>,
    prior_cwnd: u32,
    idle_restart: bool,
    seen_rtt: bool,
    pacing_rate: u64,
}

/// One ACK on its way through the model.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) now: Instant,
    pub(super) octets: u32,
    pub(super) inflight: u32,
    pub(super) limited: Limited,
    pub(super) sample: Option<Duration>,
    pub(super) rs: RateSample,
    pub(super) cwnd: u32,
}

impl Bbr {
    /// Before the first text leaves.
    pub(super) fn new(sent: &Departure, mss: u32, srtt: Option<Duration>, sack: Sack) -> Bbr {
        let now = sent.now;
        let mut bbr = Bbr {
            rate: Sampler::new(now),
            state: State::Startup,
            mss,
            sack,
            round: Round::default(),
            full: FullPipe::default(),
            max_bw: [0; 2],
            bw_shortterm: u64::MAX,
            bw: 0,
            min_rtt: srtt,
            min_rtt_at: now,
            aggregation: Aggregation { since: now, delivered: 0, extra: MaxFilter::default() },
            inflight_longterm: u32::MAX,
            inflight_shortterm: u32::MAX,
            latest: Latest::default(),
            probe: super::bbr_probe::Probe::new(now),
            probe_rtt: super::bbr_probe::ProbeRtt::new(srtt, now),
            undo: Undo {
                state: None,
                bw_shortterm: 0,
                inflight_shortterm: 0,
                inflight_longterm: 0,
            },
            recovering: None,
            prior_cwnd: 0,
            idle_restart: false,
            seen_rtt: srtt.is_some(),
            pacing_rate: 0,
        };
        bbr.begin_pacing(srtt.unwrap_or(Duration::from_millis(1)));
        bbr
    }

    /// The initial window in a round trip: there is no better estimate yet.
    fn begin_pacing(&mut self, rtt: Duration) {
        let window = f64::from(initial_window(self.mss));
        let rate = self.state.pacing_gain() * window / rtt.as_secs_f64().max(1e-6);
        self.pacing_rate = (rate as u64).max(MIN_RATE);
    }

    pub(super) fn pacing_rate(&self) -> u64 {
        self.pacing_rate
    }

    /// The rate of the last round, octets per second.
    pub(super) fn delivery_rate(&self) -> u64 {
        self.latest.bw
    }

    pub(super) fn is_app_limited(&self) -> bool {
        self.rate.is_app_limited()
    }

    /// Text leaves.
    pub(super) fn on_sent(&mut self, sent: Departure, cwnd: u32) -> u32 {
        let idle = sent.inflight <= sent.octets;
        let mut cwnd = cwnd;
        if idle && (sent.after_gap || self.rate.is_app_limited()) {
            self.idle_restart = true;
            self.aggregation.since = sent.now;
            if self.state.is_probe_bw() {
                self.set_pacing_rate(1.0); // back to where it was, no queue on the way
            } else if self.state == State::ProbeRtt {
                self.check_probe_rtt_done(sent.now, &mut cwnd);
            }
        }
        self.rate.on_sent(sent);
        cwnd
    }

    /// Octets were marked lost.
    pub(super) fn on_lost(&mut self, lost: Lost, cwnd: u32) {
        self.note_loss(cwnd);
        if self.latest.range_end != Some(lost.seq) {
            self.latest.ranges += 1;
        }
        self.latest.range_end = Some(lost.seq + lost.octets);
        let Some(sample) = self.rate.on_lost(lost.number, lost.octets) else { return };
        if self.probe.is_sample && self.is_too_high(sample.lost, sample.tx_in_flight) {
            let before = sample.tx_in_flight.saturating_sub(sample.octets);
            let lost_before = sample.lost.saturating_sub(u64::from(lost.octets));
            // Within the burst that was lost: where did losses become too many?
            let spare = LOSS_THRESH * f64::from(before) - lost_before as f64;
            let prefix = (spare / (1.0 - LOSS_THRESH)).max(0.0) as u32;
            self.on_inflight_too_high(before + prefix, sample.limited, cwnd, lost.now);
        }
    }

    /// Something was lost in this round.
    pub(super) fn note_loss(&mut self, cwnd: u32) {
        if !self.latest.loss_in_round {
            self.latest.round_delivered = self.rate.delivered();
            self.save_cwnd(cwnd);
            self.undo = Undo {
                state: None,
                bw_shortterm: self.bw_shortterm,
                inflight_shortterm: self.inflight_shortterm,
                inflight_longterm: self.inflight_longterm,
            };
        }
        self.latest.loss_in_round = true;
    }

    /// Packets were marked: as if more was lost than the path may lose.
    pub(super) fn on_marked(&mut self, cwnd: u32) {
        self.note_loss(cwnd);
        self.latest.marked = true;
    }

    /// A retransmission timeout: one segment leaves.
    pub(super) fn on_timeout(&mut self, cwnd: u32) -> u32 {
        self.note_loss(cwnd);
        self.save_cwnd(cwnd);
        self.recovering.get_or_insert(self.round.count);
        self.mss
    }

    /// What was taken for lost was not.
    pub(super) fn on_spurious(&mut self, cwnd: u32) -> u32 {
        self.latest.loss_in_round = false;
        self.reset_full_pipe();
        self.bw_shortterm = self.bw_shortterm.max(self.undo.bw_shortterm);
        self.inflight_shortterm = self.inflight_shortterm.max(self.undo.inflight_shortterm);
        self.inflight_longterm = self.inflight_longterm.max(self.undo.inflight_longterm);
        match self.undo.state.take() {
            Some(State::Startup) if self.state != State::Startup => {
                self.full.reached = false;
                if self.state != State::ProbeRtt {
                    self.state = State::Startup;
                }
            }
            Some(State::Up) if !matches!(self.state, State::Up | State::ProbeRtt) => {
                self.start_refill();
            }
            _ => {}
        }
        cwnd.max(self.prior_cwnd)
    }

    /// The last window that neither recovery nor a probe of the round trip had cut.
    pub(super) fn save_cwnd(&mut self, cwnd: u32) {
        let cut = self.recovering.is_some() || self.state == State::ProbeRtt;
        self.prior_cwnd = if cut { self.prior_cwnd.max(cwnd) } else { cwnd };
    }

    pub(super) fn restored_cwnd(&self, cwnd: u32) -> u32 {
        cwnd.max(self.prior_cwnd)
    }

    /// An ACK delivered something. Returns cwnd.
    pub(super) fn on_ack(&mut self, cwnd: u32, ack: &Delivery) -> u32 {
        self.mss = ack.mss;
        let rs = self.rate.on_delivered(ack.octets, ack.newest, self.min_rtt, ack.now);
        self.rate.forget(ack.oldest);
        let mut step = Step {
            now: ack.now,
            octets: ack.octets,
            inflight: ack.inflight,
            limited: ack.limited,
            sample: ack.sample,
            rs: rs.unwrap_or(RateSample::NONE),
            cwnd,
        };
        self.follow_recovery(ack, &mut step);
        self.update_latest(&step);
        self.update_congestion(&step);
        self.update_aggregation(&step);
        self.check_full_pipe(&step);
        self.check_startup_done(&step);
        self.check_drain_done(&step);
        self.update_probe_bw(&step);
        self.update_min_rtt(&step);
        self.check_probe_rtt(&mut step);
        if rs.is_some_and(|rs| rs.delivered > 0) {
            self.idle_restart = false;
        }
        self.advance_latest(&step);
        self.bw = self.greatest_bw().min(self.bw_shortterm);
        if !self.seen_rtt
            && let Some(rtt) = ack.sample
        {
            self.seen_rtt = true;
            self.begin_pacing(rtt);
        }
        self.set_pacing_rate(self.state.pacing_gain());
        self.next_cwnd(&step)
    }

    /// The window of before is back when recovery is over, as far as the model bears it.
    fn follow_recovery(&mut self, ack: &Delivery, step: &mut Step) {
        if ack.recovering {
            self.recovering.get_or_insert(self.round.count);
        } else if self.recovering.take().is_some() {
            step.cwnd = self.restored_cwnd(step.cwnd);
        }
    }

    pub(super) fn set_pacing_rate(&mut self, gain: f64) {
        let rate = (gain * self.bw as f64 * (1.0 - PACING_MARGIN)) as u64;
        // Before the path is known to be full, a slow application must not slow it down.
        if rate > 0 && (self.full.reached || rate > self.pacing_rate) {
            self.pacing_rate = rate.max(MIN_RATE);
        }
    }

    pub(super) fn min_pipe(&self) -> u32 {
        MIN_PIPE_SEGMENTS * self.mss
    }

    /// `gain` times what the path holds at rate `bw`.
    pub(super) fn bdp(&self, bw: u64, gain: f64) -> u32 {
        match self.min_rtt {
            None => initial_window(self.mss),
            Some(rtt) => (gain * f64::from(octets_in(rtt, bw))) as u32,
        }
    }

    /// A volume with room for the bursts in which sender and receiver work.
    fn with_bursts(&self, volume: u32) -> u32 {
        let burst = quantum(self.pacing_rate, self.mss, MAX_QUANTUM);
        let extra = if self.state == State::Up { 2 * self.mss } else { 0 };
        volume.max(3 * burst).max(self.min_pipe()).saturating_add(extra)
    }

    pub(super) fn inflight_at(&self, bw: u64, gain: f64) -> u32 {
        self.with_bursts(self.bdp(bw, gain))
    }

    fn next_cwnd(&self, step: &Step) -> u32 {
        let volume = self.bdp(self.bw, self.state.cwnd_gain());
        let most = self.with_bursts(volume.saturating_add(self.aggregation.extra.get()));
        let early = self.rate.delivered() < u64::from(initial_window(self.mss));
        let grown = step.cwnd.saturating_add(step.octets);
        let cwnd = if self.full.reached {
            grown.min(most)
        } else if step.cwnd < most || early {
            grown
        } else {
            step.cwnd
        };
        let cwnd = cwnd.max(self.min_pipe());
        let cwnd = match self.state {
            State::ProbeRtt => cwnd.min(self.probe_rtt_cwnd()),
            _ => cwnd,
        };
        let cap = match self.state {
            State::Startup | State::Drain => u32::MAX,
            State::Down | State::Refill | State::Up => self.inflight_longterm,
            State::Cruise | State::ProbeRtt => self.inflight_with_headroom(),
        };
        cwnd.min(cap.min(self.inflight_shortterm).max(self.min_pipe()))
    }

    pub(super) fn is_idle_restart(&self) -> bool {
        self.idle_restart
    }

    pub(super) fn is_too_high(&self, lost: u64, tx_in_flight: u32) -> bool {
        lost as f64 > f64::from(tx_in_flight) * LOSS_THRESH || (lost > 0 && self.sack == Sack::No)
    }

    pub(super) fn is_probing_bw(&self) -> bool {
        matches!(self.state, State::Startup | State::Refill | State::Up)
    }

    pub(super) fn enters_phase(&mut self, phase: AckPhase) {
        self.probe.ack_phase = phase;
        self.start_round();
    }
}
