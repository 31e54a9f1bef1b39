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
        // RFC 9438 4.2(b): the ACKs of a window in use come every round trip. A longer silence was the application's.
        if ack.now.since(self.last_ack) > ack.srtt * 2 {
            self.pause(ack.now - ack.srtt);
        }
        let mss = f64::from(ack.mss.max(1));
        let window = f64::from(cwnd) / mss;
        let acked = f64::from(ack.octets) / mss;
        let epoch = *self.epoch.get_or_insert_with(|| {
            if self.w_max <= window {
                (self.w_max, self.k) = (window, 0.0); // also RFC 9438 4.8 and 4.10: no W_max is known
            } else {
                // RFC 9438 4.2, figure 2.
                self.k = cube_root((self.w_max - window) / C);
            }
            self.w_est = window;
            ack.now
        });
        self.last_ack = ack.now;
        let t = seconds(ack.now.since(epoch));
        // RFC 9438 4.3: what Reno with the same decrease would have; 4.3(b): Reno itself once what was lost is made up for.
        let alpha = if self.w_est >= self.cwnd_prior { 1.0 } else { ALPHA };
        self.w_est += alpha * acked / window;
        let next = if self.w_cubic(t) < self.w_est {
            // RFC 9438 4.3(c): the Reno-friendly region.
            (self.w_est - window).max(0.0)
        } else {
            // RFC 9438 4.2(c), 4.4 and 4.5: one RTT ahead, at most half as much again.
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

    /// The new ssthresh in octets after a loss (RFC 9438 4.6).
    pub(super) fn reduce(&mut self, cwnd: u32, flight: u32, mss: u32) -> u32 {
        let window = f64::from(cwnd) / f64::from(mss.max(1));
        // RFC 9438 4.7: fast convergence makes room for a newcomer. It is always on, as in Linux.
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

    /// RFC 9438 4.2(b): time in which the window was not used does not count.
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

    const MSS: u32 = 1000;
    const RTT: u64 = 100;

    /// A window that is acknowledged whole every 100 ms.
    struct Flow {
        cubic: Cubic,
        /// Octets.
        cwnd: u32,
        rounds: u64,
    }

    impl Flow {
        /// After a loss at `cwnd` segments.
        fn after_loss(cwnd: u32) -> Flow {
            let mut flow = Flow { cubic: Cubic::default(), cwnd: cwnd * MSS, rounds: 0 };
            flow.lose();
            flow
        }

        fn lose(&mut self) {
            self.cwnd = self.cubic.reduce(self.cwnd, self.cwnd, MSS);
        }

        fn ack(&self, octets: u32) -> Ack {
            Ack {
                now: Instant::from_millis(100_000 + self.rounds * RTT),
                octets,
                mss: MSS,
                sample: None,
                srtt: Duration::from_millis(RTT),
                una: SeqNum(0),
                nxt: SeqNum(0),
                limited: Limited::ByCwnd,
            }
        }

        /// Segments after `n` rounds with one ACK for every other segment.
        fn round(&mut self, n: u64) -> f64 {
            for _ in 0..n {
                self.rounds += 1;
                for _ in 0..self.cwnd / (2 * MSS) {
                    self.cwnd += self.cubic.growth(self.cwnd, &self.ack(2 * MSS));
                }
            }
            f64::from(self.cwnd) / f64::from(MSS)
        }
    }

    /// RFC 9438 4.2 (figures 1 and 2), 4.4 and 4.5: concave up to W_max, which it reaches after K, convex beyond.
    #[test]
    fn the_window_follows_the_cubic_function() {
        let mut flow = Flow::after_loss(1000);
        assert_eq!(flow.cwnd, 700 * MSS, "RFC 9438 4.6: beta is 0.7");
        // K = cbrt(300 / 0.4) = 9.086 s.
        flow.round(1); // the first ACK begins the epoch
        for round in 2..=200 {
            let window = flow.round(1);
            let t = (round - 1) as f64 / 10.0;
            let target = 0.4 * (t + 0.1 - 9.086f64).powi(3) + 1000.0;
            assert!((window / target - 1.0).abs() < 0.01, "{t} s: {window}, not {target}");
        }
    }

    /// RFC 9438 4.2(c): the target is at most half as much again.
    #[test]
    fn a_round_adds_at_most_half_of_the_window() {
        let mut flow = Flow::after_loss(100);
        flow.round(1);
        flow.cubic.epoch = flow.cubic.epoch.map(|epoch| epoch - Duration::from_secs(60));
        let before = f64::from(flow.cwnd) / f64::from(MSS);
        let after = flow.round(1);
        assert!(after > 1.3 * before && after < 1.7 * before, "{before} -> {after}");
    }

    /// RFC 9438 4.3: on a short path with a small window CUBIC takes what Reno would: 0.53 segments a round, and one a
    /// round (4.3(b)) when the window is as large as before the loss. 4.3(c): that counts as long as it is more.
    #[test]
    fn in_the_reno_friendly_region_the_window_grows_as_renos() {
        let mut flow = Flow::after_loss(40);
        flow.cubic.k = 0.0;
        flow.round(1);
        flow.cubic.k = 1000.0; // W_cubic is nowhere
        let begin = flow.cwnd;
        let grown = flow.round(10) - f64::from(begin) / f64::from(MSS);
        assert!((grown - 5.29).abs() < 0.3, "{grown} segments in ten rounds");
        while flow.cwnd < 41 * MSS {
            flow.round(1);
        }
        let begin = flow.cwnd;
        let grown = flow.round(10) - f64::from(begin) / f64::from(MSS);
        assert!((grown - 10.0).abs() < 0.5, "{grown} segments in ten rounds");
    }

    /// RFC 9438 4.7: who loses before W_max was reached aims lower, at 0.85 of its window.
    #[test]
    fn fast_convergence_gives_way() {
        let mut flow = Flow::after_loss(1000);
        flow.round(20);
        let before = f64::from(flow.cwnd) / f64::from(MSS);
        assert!(before < 1000.0);
        flow.lose();
        assert!((flow.cubic.w_max - 0.85 * before).abs() < 1.0, "{}", flow.cubic.w_max);
    }

    /// RFC 9438 4.8: after a timeout K is 0 and W_max the window at which congestion avoidance begins.
    #[test]
    fn after_a_timeout_the_curve_begins_at_its_plateau() {
        let mut flow = Flow::after_loss(1000);
        flow.cubic.on_timeout();
        flow.round(1);
        assert_eq!((flow.cubic.k, flow.cubic.w_max), (0.0, 700.0));
        assert!(flow.round(10) < 712.0, "Reno's growth, not the way back to 1000");
    }

    /// RFC 9438 4.2(b): neither ACKs that the application limited nor its silence let time go on.
    #[test]
    fn time_in_which_the_window_was_not_used_does_not_count() {
        let run = |pause: fn(&mut Flow)| {
            let mut flow = Flow::after_loss(1000);
            flow.round(10);
            pause(&mut flow);
            flow.round(1)
        };
        let steady = run(|_| {});
        let silent = run(|flow| flow.rounds += 50);
        let limited = run(|flow| {
            (0..50).for_each(|_| {
                flow.rounds += 1;
                flow.cubic.pause(Instant::from_millis(100_000 + flow.rounds * RTT));
            })
        });
        assert!((silent - steady).abs() < 3.0, "{silent}, not {steady}");
        assert!((limited - steady).abs() < 3.0, "{limited}, not {steady}");
    }
}
