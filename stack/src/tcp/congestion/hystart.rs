//! HyStart++: leaving slow start before it overflows the queue (RFC 9406).
#![forbid(unsafe_code)]

use super::Ack;
use crate::time::{Duration, Span};
use crate::wire::SeqNum;

// RFC 9406 4.3.
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u8 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u8 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    SlowStart,
    /// Conservative slow start: rounds so far and the round-trip time that it began with.
    Conservative {
        rounds: u8,
        baseline: Span,
    },
    Done,
}

/// Round-trip minima by round; only the first slow start of a flow is watched.
#[derive(Clone, Debug)]
pub(super) struct HyStart {
    stage: Stage,
    window_end: Option<SeqNum>,
    last_round: Option<Span>,
    this_round: Option<Span>,
    samples: u8,
}

impl Default for HyStart {
    fn default() -> HyStart {
        HyStart {
            stage: Stage::SlowStart,
            window_end: None,
            last_round: None,
            this_round: None,
            samples: 0,
        }
    }
}

/// What an ACK led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    GoOn,
    LeaveSlowStart,
}

impl HyStart {
    /// Octets the window grows by for `octets` delivered (RFC 9406 4.2(e): a quarter in conservative slow start). There is no
    /// limit per ACK (its L): receivers that merge segments acknowledge dozens at once.
    pub(super) fn growth(&self, octets: u32) -> u32 {
        match self.stage {
            Stage::Conservative { .. } => octets / CSS_GROWTH_DIVISOR,
            _ => octets,
        }
    }

    pub(super) fn on_ack(&mut self, ack: &Ack) -> Verdict {
        if self.stage == Stage::Done {
            return Verdict::GoOn;
        }
        let end = *self.window_end.get_or_insert(ack.nxt);
        if let Some(sample) = ack.sample {
            self.samples = self.samples.saturating_add(1);
            let sample = Span::from(sample);
            self.this_round = Some(self.this_round.map_or(sample, |m| m.min(sample)));
        }
        let verdict = self.judge();
        if !ack.una.before(end) {
            self.window_end = Some(ack.nxt);
            self.last_round = self.this_round.take();
            self.samples = 0;
            // RFC 9406 4.2(d): the round in which it began counts.
            if let Stage::Conservative { rounds, .. } = &mut self.stage {
                *rounds += 1;
                if *rounds >= CSS_ROUNDS {
                    self.stage = Stage::Done;
                    return Verdict::LeaveSlowStart;
                }
            }
        }
        verdict
    }

    fn judge(&mut self) -> Verdict {
        let (Some(this), Some(last)) = (self.this_round, self.last_round) else {
            return Verdict::GoOn;
        };
        if self.samples < N_RTT_SAMPLE {
            // RFC 9406 4.2(a): fewer prove nothing.
            return Verdict::GoOn;
        }
        match self.stage {
            Stage::SlowStart => {
                // RFC 9406 4.2(b).
                let last = Duration::from(last);
                let thresh = (last / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if Duration::from(this) >= last + thresh {
                    self.stage = Stage::Conservative { rounds: 0, baseline: this };
                }
            }
            // RFC 9406 4.2(c): the delay was no queue after all.
            Stage::Conservative { baseline, .. } if this < baseline => {
                self.stage = Stage::SlowStart;
            }
            _ => {}
        }
        Verdict::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limited;
    use super::*;
    use crate::time::Instant;

    /// Ten ACKs, of which the first `samples` tell an RTT of `rtt` ms.
    fn round_of(hystart: &mut HyStart, n: u32, rtt: u64, samples: u32) -> Verdict {
        let mut verdict = Verdict::GoOn;
        for i in 1..=10u32 {
            let ack = Ack {
                now: Instant::ZERO,
                octets: 1000,
                mss: 1000,
                sample: (i <= samples).then(|| Duration::from_millis(rtt)),
                srtt: Duration::from_millis(rtt),
                una: SeqNum(n * 10_000 + i * 1000),
                nxt: SeqNum(n * 10_000 + 20_000),
                limited: Limited::ByCwnd,
            };
            verdict = hystart.on_ack(&ack);
        }
        verdict
    }

    fn round(hystart: &mut HyStart, n: u32, rtt: u64) -> Verdict {
        round_of(hystart, n, rtt, 10)
    }

    /// Whether a round of `late` ms after rounds of `rtt` ms slows down.
    fn slows_down(rtt: u64, late: u64, samples: u32) -> bool {
        let mut hystart = HyStart::default();
        (0..4).for_each(|n| {
            round(&mut hystart, n, rtt);
        });
        round_of(&mut hystart, 4, late, samples);
        hystart.growth(1000) == 250
    }

    /// RFC 9406 4.2(a).
    #[test]
    fn fewer_than_eight_samples_prove_nothing() {
        assert!(!slows_down(50, 100, 7));
        assert!(slows_down(50, 100, 8));
    }

    /// RFC 9406 4.2(b), 4.3: an eighth of the round-trip time, from 4 to 16 ms.
    #[test]
    fn the_threshold_is_an_eighth_within_bounds() {
        for (rtt, thresh) in [(8, 4), (80, 10), (400, 16)] {
            assert!(!slows_down(rtt, rtt + thresh - 1, 10), "{rtt} ms");
            assert!(slows_down(rtt, rtt + thresh, 10), "{rtt} ms");
        }
    }

    /// RFC 9406 4.2(d): five rounds of conservative slow start, that in which it begins counted; 4.2(e): at a quarter.
    #[test]
    fn growing_delay_leads_to_conservative_slow_start_and_then_out() {
        let mut hystart = HyStart::default();
        for n in 0..4 {
            assert_eq!(round(&mut hystart, n, 50), Verdict::GoOn);
        }
        assert_eq!(hystart.growth(1000), 1000);
        round(&mut hystart, 4, 60);
        assert_eq!(hystart.growth(1000), 250);
        let left = (5..12).find(|n| round(&mut hystart, *n, 60) == Verdict::LeaveSlowStart);
        assert_eq!(left, Some(8));
    }

    /// RFC 9406 4.2(c).
    #[test]
    fn a_passing_delay_is_forgiven() {
        let mut hystart = HyStart::default();
        (0..4).for_each(|n| {
            round(&mut hystart, n, 50);
        });
        round(&mut hystart, 4, 60);
        round(&mut hystart, 5, 50);
        assert_eq!(hystart.growth(1000), 1000);
    }
}
