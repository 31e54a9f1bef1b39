//! Round-trip time and retransmission timeout (RFC 6298).
#![forbid(unsafe_code)]

use super::TcpConfig;
use crate::time::{Duration, Instant, Span};

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
    /// SRTT and RTTVAR, once measured.
    measured: Option<(Span, Span)>,
    /// Minimum of the current span, of the one before, and when the current began.
    min: Option<(Span, Span, Instant)>,
    backoff: u8,
    syn_timed_out: bool,
    /// Timeouts in a row.
    pub(super) timeouts: u8,
}

impl Rtt {
    pub(super) fn new() -> Rtt {
        Rtt { measured: None, min: None, backoff: 0, syn_timed_out: false, timeouts: 0 }
    }

    /// The SYN timed out: nothing was measured and the network may be slow.
    pub(super) fn on_syn_timeout(&mut self) {
        self.syn_timed_out = true;
    }

    /// A measurement, never of a segment sent twice (Karn).
    pub(super) fn on_sample(&mut self, r: Duration, now: Instant) {
        let (srtt, rttvar) = match self.srtt() {
            None => (r, r / 2),
            Some(srtt) => (srtt * 7 / 8 + r / 8, self.rttvar() * 3 / 4 + srtt.abs_diff(r) / 4),
        };
        self.measured = Some((srtt.into(), rttvar.into()));
        let r = Span::from(r);
        self.min = Some(match self.min {
            None => (r, r, now),
            Some((current, _, began)) if now.since(began) > MIN_RTT_SPAN => (r, current, now),
            Some((current, previous, began)) => (current.min(r), previous, began),
        });
    }

    /// RTO with its backoff.
    pub(super) fn rto(&self, cfg: &TcpConfig) -> Duration {
        self.base_rto(cfg).saturating_mul(1 << self.backoff.min(MAX_BACKOFF)).min(cfg.max_rto)
    }

    /// RTO without backoff.
    pub(super) fn base_rto(&self, cfg: &TcpConfig) -> Duration {
        // The floor is on the variance, as Linux has it: a steady 190 ms path must not time out at 200 ms when a queue
        // builds up.
        match self.srtt() {
            None if self.syn_timed_out => RTO_AFTER_SYN_TIMEOUT,
            None => INITIAL_RTO,
            Some(srtt) => srtt + (self.rttvar() * 4).max(cfg.min_rto),
        }
    }

    pub(super) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1).min(MAX_BACKOFF);
    }

    /// The path is slower than was thought: the timeout was spurious (RFC 4015 3.2 step 7).
    pub(super) fn on_spurious_timeout(&mut self, r: Duration) {
        let srtt = self.srtt().unwrap_or_default().max(r);
        let rttvar = self.rttvar().max(r / 2);
        self.measured = Some((srtt.into(), rttvar.into()));
    }

    pub(super) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }

    pub(super) fn srtt(&self) -> Option<Duration> {
        self.measured.map(|(srtt, _)| srtt.into())
    }

    pub(super) fn rttvar(&self) -> Duration {
        self.measured.map_or(Duration::ZERO, |(_, rttvar)| rttvar.into())
    }

    /// Minimum of the last 5 to 10 s.
    pub(super) fn min(&self) -> Option<Duration> {
        self.min.map(|(current, previous, _)| current.min(previous).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn first_and_second_measurement_follow_rfc_6298_2() {
        let cfg = TcpConfig { min_rto: MS(1), ..Default::default() };
        let mut rtt = Rtt::new();
        assert_eq!(rtt.rto(&cfg), MS(1000));
        rtt.on_sample(MS(100), Instant::ZERO);
        assert_eq!((rtt.srtt(), rtt.rttvar(), rtt.rto(&cfg)), (Some(MS(100)), MS(50), MS(300)));
        rtt.on_sample(MS(180), Instant::ZERO);
        // RTTVAR first, with the old SRTT: 3/4 * 50 + 1/4 * 80.
        assert_eq!(rtt.rttvar(), Duration::from_micros(57_500));
        assert_eq!(rtt.srtt(), Some(MS(110)));
    }

    #[test]
    fn backoff_doubles_up_to_the_ceiling() {
        let cfg = TcpConfig::default();
        let mut rtt = Rtt::new();
        rtt.back_off();
        rtt.back_off();
        assert_eq!(rtt.rto(&cfg), MS(4000));
        (0..40).for_each(|_| rtt.back_off());
        assert_eq!(rtt.rto(&cfg), MS(60_000));
        rtt.reset_backoff();
        assert_eq!(rtt.rto(&cfg), MS(1000));
    }

    #[test]
    fn the_minimum_is_forgotten_after_a_while() {
        let mut rtt = Rtt::new();
        rtt.on_sample(MS(5), Instant::ZERO);
        for s in 1..15 {
            rtt.on_sample(MS(50), Instant::from_millis(s * 1000));
        }
        assert_eq!(rtt.min(), Some(MS(50)));
    }
}
