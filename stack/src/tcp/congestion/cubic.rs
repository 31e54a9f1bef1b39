//! CUBIC in congestion avoidance (RFC 9438).
#![forbid(unsafe_code)]

use super::Ack;
use crate::time::{Duration, Instant};

const C: f64 = 0.4; // RFC 9438 5.1, segments per second cubed
const BETA: f64 = 0.7; // RFC 9438 4.6
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA); // RFC 9438 4.3

/// Windows in segments, as the RFC counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Cubic {
    w_max: f64,
    /// Where the plateau is, seconds after `epoch`.
    k: f64,
    w_est: f64,
    cwnd_prior: f64,
    /// When this congestion avoidance stage began, application-limited time taken out.
    epoch: Option<Instant>,
    last_ack: Instant,
    /// Fraction of an octet not yet added.
    credit: f64,
}

impl Cubic {
    /// Octets to add to `cwnd`.
    pub(super) fn growth(&mut self, cwnd: u32, ack: &Ack) -> u32 {
        let mss = f64::from(ack.mss.max(1));
        let window = f64::from(cwnd) / mss;
        let acked = f64::from(ack.octets) / mss;
        let epoch = *self.epoch.get_or_insert_with(|| {
            if self.w_max <= window {
                (self.w_max, self.k) = (window, 0.0);
            } else {
                self.k = cube_root((self.w_max - window) / C);
            }
            self.w_est = window;
            ack.now
        });
        self.last_ack = ack.now;
        let t = seconds(ack.now.since(epoch));
        // RFC 9438 4.3: in the Reno-friendly region grow as Reno would.
        let alpha = if self.w_est >= self.cwnd_prior { 1.0 } else { ALPHA };
        self.w_est += alpha * acked / window;
        let next = if self.w_cubic(t) < self.w_est {
            (self.w_est - window).max(0.0)
        } else {
            // RFC 9438 4.4 and 4.5: one RTT ahead, at most half as much again.
            let target = self.w_cubic(t + seconds(ack.srtt)).clamp(window, 1.5 * window);
            (target - window) / window * acked
        };
        self.credit += next * mss;
        let whole = self.credit as u32;
        self.credit -= f64::from(whole);
        whole
    }

    fn w_cubic(&self, t: f64) -> f64 {
        let d = t - self.k;
        C * d * d * d + self.w_max
    }

    /// The new ssthresh in octets after a loss.
    pub(super) fn reduce(&mut self, cwnd: u32, flight: u32, mss: u32) -> u32 {
        let window = f64::from(cwnd) / f64::from(mss.max(1));
        // RFC 9438 4.7: fast convergence makes room for a newcomer.
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.cwnd_prior = window;
        self.restart();
        (f64::from(flight) * BETA) as u32
    }

    /// RFC 9438 4.8: after a timeout the next stage begins at its own window.
    pub(super) fn on_timeout(&mut self) {
        self.w_max = 0.0;
        self.restart();
    }

    pub(super) fn restart(&mut self) {
        self.epoch = None;
        self.credit = 0.0;
    }

    /// RFC 9438 4.2: time in which the window was not used does not count.
    pub(super) fn pause(&mut self, now: Instant) {
        if let Some(epoch) = &mut self.epoch {
            *epoch += now.since(self.last_ack);
        }
        self.last_ack = now;
    }
}

fn seconds(d: Duration) -> f64 {
    d.as_nanos() as f64 / 1e9
}

/// Cube root of a positive number by Newton's method (`core` has none).
fn cube_root(x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    // A third of the exponent is a guess within a few per cent.
    let mut y = f64::from_bits(x.to_bits() / 3 + 0x2a9f_7893_0000_0000);
    for _ in 0..4 {
        y = (2.0 * y + x / (y * y)) / 3.0;
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::Limited;
    use super::*;
    use crate::wire::SeqNum;

    #[test]
    fn cube_roots() {
        for x in [1e-6, 0.3, 1.0, 27.0, 12_345.678, 1e12] {
            let y = cube_root(x);
            assert!((y * y * y / x - 1.0).abs() < 1e-9, "{x}: {y}");
        }
        assert_eq!(cube_root(0.0), 0.0);
    }

    #[test]
    fn the_window_is_back_at_w_max_after_k() {
        let mut cubic = Cubic::default();
        let mut cwnd = cubic.reduce(100_000, 100_000, 1000);
        assert_eq!(cwnd, 70_000);
        // K = cbrt(30 / 0.4) = 4.217 s at 1 RTT of 100 ms per step.
        let mut reached = None;
        for step in 0..60u64 {
            let now = Instant::from_millis(step * 100);
            let ack = Ack {
                now,
                octets: cwnd,
                mss: 1000,
                sample: None,
                srtt: Duration::from_millis(100),
                una: SeqNum(0),
                nxt: SeqNum(0),
                limited: Limited::ByCwnd,
            };
            cwnd += cubic.growth(cwnd, &ack);
            if cwnd >= 99_000 && reached.is_none() {
                reached = Some(step);
            }
        }
        let reached = reached.unwrap();
        assert!((26..=44).contains(&reached), "{reached}");
    }
}
