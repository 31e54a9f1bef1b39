//! Round-trip time and retransmission timeout (RFC 6298).
#![forbid(unsafe_code)]

use super::TcpConfig;
use crate::time::{Duration, Instant};

/// Before any measurement (RFC 6298 2.1).
pub(super) const INITIAL_RTO: Duration = Duration::from_secs(1);
/// When a SYN had to be sent again (RFC 6298 5.7).
const RTO_AFTER_SYN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a minimum stays good: two such spans are looked at.
const MIN_RTT_SPAN: Duration = Duration::from_secs(5);
/// Backoff stops doubling here; `max_rto` has been reached long before.
const MAX_BACKOFF: u8 = 16;

/// The estimator of one flow.
#[derive(Clone, Debug)]
pub(super) struct Rtt {
    srtt: Option<Duration>,
    rttvar: Duration,
    /// Minimum of the current span, of the one before, and when the current began.
    min: Option<(Duration, Duration, Instant)>,
    /// RTO before any measurement.
    initial: Duration,
    backoff: u8,
    floor: Duration,
    ceiling: Duration,
}

impl Rtt {
    pub(super) fn new(cfg: &TcpConfig) -> Rtt {
        Rtt {
            srtt: None,
            rttvar: Duration::ZERO,
            min: None,
            initial: INITIAL_RTO,
            backoff: 0,
            floor: cfg.min_rto,
            ceiling: cfg.max_rto,
        }
    }

    /// The SYN timed out: nothing was measured and the network may be slow.
    pub(super) fn on_syn_timeout(&mut self) {
        self.initial = RTO_AFTER_SYN_TIMEOUT;
    }

    /// A measurement, never of a segment sent twice (Karn).
    pub(super) fn on_sample(&mut self, r: Duration, now: Instant) {
        self.srtt = Some(match self.srtt {
            None => {
                self.rttvar = r / 2;
                r
            }
            Some(srtt) => {
                self.rttvar = self.rttvar * 3 / 4 + srtt.abs_diff(r) / 4;
                srtt * 7 / 8 + r / 8
            }
        });
        self.min = Some(match self.min {
            None => (r, r, now),
            Some((current, _, began)) if now.since(began) > MIN_RTT_SPAN => (r, current, now),
            Some((current, previous, began)) => (current.min(r), previous, began),
        });
    }

    /// RTO with its backoff.
    pub(super) fn rto(&self) -> Duration {
        self.base_rto().saturating_mul(1 << self.backoff.min(MAX_BACKOFF)).min(self.ceiling)
    }

    fn base_rto(&self) -> Duration {
        // The floor is on the variance, as Linux has it: a steady 190 ms path must not time out at 200 ms when a queue
        // builds up.
        match self.srtt {
            None => self.initial,
            Some(srtt) => srtt + (self.rttvar * 4).max(self.floor),
        }
    }

    pub(super) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1).min(MAX_BACKOFF);
    }

    pub(super) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }

    pub(super) fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    pub(super) fn rttvar(&self) -> Duration {
        self.rttvar
    }

    /// Minimum of the last 5 to 10 s.
    pub(super) fn min(&self) -> Option<Duration> {
        self.min.map(|(current, previous, _)| current.min(previous))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn first_and_second_measurement_follow_rfc_6298_2() {
        let mut rtt = Rtt::new(&TcpConfig { min_rto: MS(1), ..Default::default() });
        assert_eq!(rtt.rto(), MS(1000));
        rtt.on_sample(MS(100), Instant::ZERO);
        assert_eq!((rtt.srtt(), rtt.rttvar(), rtt.rto()), (Some(MS(100)), MS(50), MS(300)));
        rtt.on_sample(MS(180), Instant::ZERO);
        // RTTVAR first, with the old SRTT: 3/4 * 50 + 1/4 * 80.
        assert_eq!(rtt.rttvar(), Duration::from_micros(57_500));
        assert_eq!(rtt.srtt(), Some(MS(110)));
    }

    #[test]
    fn backoff_doubles_up_to_the_ceiling() {
        let mut rtt = Rtt::new(&TcpConfig::default());
        rtt.back_off();
        rtt.back_off();
        assert_eq!(rtt.rto(), MS(4000));
        (0..40).for_each(|_| rtt.back_off());
        assert_eq!(rtt.rto(), MS(60_000));
        rtt.reset_backoff();
        assert_eq!(rtt.rto(), MS(1000));
    }

    #[test]
    fn the_minimum_is_forgotten_after_a_while() {
        let mut rtt = Rtt::new(&TcpConfig::default());
        rtt.on_sample(MS(5), Instant::ZERO);
        for s in 1..15 {
            rtt.on_sample(MS(50), Instant::from_millis(s * 1000));
        }
        assert_eq!(rtt.min(), Some(MS(50)));
    }
}
