//! What else a link may do to packets: losses in runs, reordering.
#![forbid(unsafe_code)]

use serde::Serialize;
use stack::rng::Rng;
use std::time::Duration;

/// Packets lost on the way, after their time on the wire.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Loss {
    /// Share of all packets, 0 to 1.
    pub share: f64,
    /// How many neighbours are lost together, on average; `None`: each packet is lost or not whatever becomes of others.
    pub run: Option<f64>,
}

impl Loss {
    /// Nothing is lost.
    pub const NONE: Loss = Loss::random(0.0);

    /// Each packet is lost with this probability.
    pub const fn random(share: f64) -> Loss {
        Loss { share, run: None }
    }

    /// This share is lost, in runs of so many packets on average (Gilbert's model: good and bad times, in which nothing and
    /// everything is lost, of geometrically distributed length).
    pub const fn in_runs(share: f64, run: f64) -> Loss {
        Loss { share, run: Some(run) }
    }

    /// Where losses come in runs: the chances, at each packet, that one begins and that one ends.
    pub fn turns(self) -> Option<[f64; 2]> {
        let run = self.run?.max(1.0);
        // Of the packets between two runs, run * (1 - share) / share on average, each may be the last.
        let begin = if self.share < 1.0 { self.share / (1.0 - self.share) / run } else { 1.0 };
        Some([begin.min(1.0), 1.0 / run])
    }
}

/// Packets that come late, so that others overtake them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Reorder {
    /// Share of all packets, 0 to 1.
    pub share: f64,
    /// How much later they come.
    pub late: Duration,
}

/// Decides packet by packet; the same seed loses the same ones.
#[derive(Debug)]
pub(super) struct LossProcess {
    loss: Loss,
    rng: Rng,
    bad: bool,
}

impl LossProcess {
    pub(super) fn new(loss: Loss, rng: Rng) -> LossProcess {
        LossProcess { loss, rng, bad: false }
    }

    /// Whether the next packet is lost.
    pub(super) fn next_is_lost(&mut self) -> bool {
        let Some([begin, end]) = self.loss.turns() else {
            return self.rng.chance(self.loss.share);
        };
        let turns = if self.bad { end } else { begin };
        self.bad ^= self.rng.chance(turns);
        self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: usize = 400_000;

    fn lost(loss: Loss, seed: u64) -> Vec<bool> {
        let mut process = LossProcess::new(loss, Rng::from_number(seed));
        (0..PACKETS).map(|_| process.next_is_lost()).collect()
    }

    /// Share of the packets that are lost, and mean number of neighbours lost together.
    fn measure(lost: &[bool]) -> (f64, f64) {
        let all = lost.iter().filter(|lost| **lost).count() as f64;
        let runs = lost.split(|lost| !*lost).filter(|run| !run.is_empty()).count() as f64;
        (all / lost.len() as f64, all / runs)
    }

    #[test]
    fn a_share_is_lost_whether_in_runs_or_not() {
        for share in [0.001, 0.01, 0.03] {
            for (loss, run) in [
                (Loss::random(share), 1.0 / (1.0 - share)),
                (Loss::in_runs(share, 3.0), 3.0),
                (Loss::in_runs(share, 20.0), 20.0),
            ] {
                let (lost, together) = measure(&lost(loss, 11));
                let runs = PACKETS as f64 * share / run;
                let tolerance = 5.0 / runs.sqrt(); // of a mean of so many runs
                assert!((lost / share - 1.0).abs() < tolerance, "{loss:?}: {lost}");
                assert!((together / run - 1.0).abs() < tolerance, "{loss:?}: runs of {together}");
            }
        }
    }

    #[test]
    fn the_seed_decides_what_is_lost() {
        for loss in [Loss::random(0.02), Loss::in_runs(0.02, 4.0)] {
            assert_eq!(lost(loss, 5), lost(loss, 5));
            assert_ne!(lost(loss, 5), lost(loss, 6));
        }
    }

    #[test]
    fn nothing_and_everything_can_be_lost() {
        for loss in [Loss::NONE, Loss::in_runs(0.0, 5.0)] {
            assert!(!lost(loss, 1).contains(&true), "{loss:?}");
        }
        for loss in [Loss::random(1.0), Loss::in_runs(1.0, 1e9)] {
            assert!(!lost(loss, 1)[..1000].contains(&false), "{loss:?}");
        }
    }
}
