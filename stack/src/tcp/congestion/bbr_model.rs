//! BBR's model of the path: its rate, its round trip, and the volumes that it bears.
#![forbid(unsafe_code)]

use super::bbr::{BETA, Bbr, HEADROOM, Latest, Step};
use super::bbr_probe::State;
use crate::tcp::pacing::octets_in;
use crate::time::{Duration, Instant};

/// How long a least round trip holds.
const MIN_RTT_FILTER: Duration = Duration::from_secs(10);
/// How many rounds the bunching of ACKs is remembered for, once the path was full.
const EXTRA_ACKED_ROUNDS: u32 = 10;

impl Bbr {
    pub(super) fn greatest_bw(&self) -> u64 {
        self.max_bw[0].max(self.max_bw[1])
    }

    /// A cycle of probing is over: the one before it is forgotten.
    pub(super) fn advance_max_bw(&mut self) {
        if self.max_bw[1] > 0 {
            self.max_bw = [self.max_bw[1], 0];
        }
    }

    pub(super) fn start_round(&mut self) {
        self.round.next_delivered = self.rate.delivered();
    }

    pub(super) fn update_latest(&mut self, step: &Step) {
        let rs = &step.rs;
        self.latest.round_start = false;
        self.latest.bw = self.latest.bw.max(rs.rate);
        self.latest.inflight = self.latest.inflight.max(rs.volume());
        if rs.is_some() && rs.prior_delivered >= self.latest.round_delivered {
            self.latest.round_delivered = self.rate.delivered();
            self.latest.round_start = true;
        }
    }

    pub(super) fn advance_latest(&mut self, step: &Step) {
        if self.latest.round_start {
            (self.latest.bw, self.latest.inflight) = (step.rs.rate, step.rs.volume());
            self.latest.marked = false;
        }
    }

    pub(super) fn reset_latest(&mut self) {
        let Latest { round_delivered, round_start, range_end, .. } = self.latest;
        self.latest = Latest { round_delivered, round_start, range_end, ..Latest::default() };
    }

    /// Rate and round; at the end of a round with losses the short-term bounds.
    pub(super) fn update_congestion(&mut self, step: &Step) {
        let rs = &step.rs;
        self.round.start = rs.is_some() && rs.prior_delivered >= self.round.next_delivered;
        if self.round.start {
            self.start_round();
            self.round.count = self.round.count.wrapping_add(1);
            self.probe.rounds_since = self.probe.rounds_since.saturating_add(1);
        }
        if rs.rate > 0 && (rs.rate >= self.greatest_bw() || !rs.limited) {
            self.max_bw[1] = self.max_bw[1].max(rs.rate);
        }
        if !self.latest.round_start {
            return;
        }
        // The draft slows down for any loss, and so loses one in a hundred of its rate for each round in which one in a
        // hundred was lost. Here only losses count that probing would not bear either.
        let too_much = self.latest.marked || self.is_too_high(rs.lost, rs.tx_in_flight);
        if self.latest.loss_in_round && too_much && !self.is_probing_bw() {
            self.lower_bounds(step.cwnd);
        }
        self.latest.loss_in_round = false;
    }

    /// Slower, toward what was just delivered.
    fn lower_bounds(&mut self, cwnd: u32) {
        if self.bw_shortterm == u64::MAX {
            self.bw_shortterm = self.greatest_bw();
        }
        if self.inflight_shortterm == u32::MAX {
            self.inflight_shortterm = cwnd;
        }
        let bw = (BETA * self.bw_shortterm as f64) as u64;
        let inflight = (BETA * f64::from(self.inflight_shortterm)) as u32;
        self.bw_shortterm = self.latest.bw.max(bw);
        self.inflight_shortterm = self.latest.inflight.max(inflight);
    }

    pub(super) fn reset_shortterm(&mut self) {
        (self.bw_shortterm, self.inflight_shortterm) = (u64::MAX, u32::MAX);
    }

    /// How much more than expected comes acknowledged at once: the window must cover the silence after it.
    pub(super) fn update_aggregation(&mut self, step: &Step) {
        let span = step.now.since(self.aggregation.since);
        let mut expected = u64::from(octets_in(span, self.bw));
        if self.aggregation.delivered <= expected {
            (self.aggregation.delivered, self.aggregation.since) = (0, step.now);
            expected = 0;
        }
        self.aggregation.delivered += u64::from(step.octets);
        let extra = (self.aggregation.delivered - expected).min(u64::from(step.cwnd)) as u32;
        let window = if self.full.reached { EXTRA_ACKED_ROUNDS } else { 1 };
        self.aggregation.extra.update(window, self.round.count, extra);
    }

    pub(super) fn reset_full_pipe(&mut self) {
        (self.full.bw, self.full.count, self.full.now) = (0, 0, false);
    }

    /// Three rounds that try for more and get less than a quarter of it: the path is full.
    pub(super) fn check_full_pipe(&mut self, step: &Step) {
        if self.full.now || !self.round.start || step.rs.limited {
            return;
        }
        if step.rs.rate as f64 >= self.full.bw as f64 * 1.25 {
            self.reset_full_pipe();
            self.full.bw = step.rs.rate;
            return;
        }
        self.full.count += 1;
        self.full.now = self.full.count >= 3;
        self.full.reached |= self.full.now;
    }

    pub(super) fn update_min_rtt(&mut self, step: &Step) {
        let probe = &mut self.probe_rtt;
        probe.expired = step.now > probe.min_at + super::bbr_probe::PROBE_RTT_INTERVAL;
        if let Some(rtt) = step.sample
            && (probe.expired || probe.min.is_none_or(|min| rtt < min))
        {
            (probe.min, probe.min_at) = (Some(rtt), step.now);
        }
        let old = step.now > self.min_rtt_at + MIN_RTT_FILTER;
        if let Some(min) = probe.min
            && (old || self.min_rtt.is_none_or(|known| min < known))
        {
            (self.min_rtt, self.min_rtt_at) = (Some(min), probe.min_at);
        }
    }

    /// The volume that leaves others some room.
    pub(super) fn inflight_with_headroom(&self) -> u32 {
        if self.inflight_longterm == u32::MAX {
            return u32::MAX;
        }
        let room = (HEADROOM * f64::from(self.inflight_longterm)) as u32;
        self.inflight_longterm.saturating_sub(room.max(self.mss)).max(self.min_pipe())
    }

    /// What was in flight when too much was lost is more than the path bears. Once for each probe.
    pub(super) fn on_inflight_too_high(
        &mut self,
        tx_in_flight: u32,
        limited: bool,
        cwnd: u32,
        now: Instant,
    ) {
        self.probe.too_high = true;
        self.probe.is_sample = false;
        if !limited {
            let least = (f64::from(self.target_inflight(cwnd)) * BETA) as u32;
            self.inflight_longterm = tx_in_flight.max(least);
        }
        if self.state == State::Up {
            self.undo.state = Some(State::Up);
            self.start_down(now);
        }
    }

    /// What we want in flight: what the path holds, unless congestion has cut the window.
    pub(super) fn target_inflight(&self, cwnd: u32) -> u32 {
        self.bdp(self.bw, 1.0).min(cwnd)
    }
}
