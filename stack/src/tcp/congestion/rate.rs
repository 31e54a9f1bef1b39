//! Delivery rate: how fast the network takes octets away (the sampling of draft-ietf-ccwg-bbr 4.1).
//!
//! Every transmission remembers how much had been delivered when it left. When it arrives, what was delivered since then
//! and how long that took is a sample. The longer of the time it took to send and the time it took to acknowledge counts,
//! so that neither a burst nor ACKs that come bunched look like a fast network.
#![forbid(unsafe_code)]

use crate::time::{Duration, Instant};
use alloc::collections::VecDeque;

/// What was known when octets were sent.
#[derive(Clone, Copy, Debug)]
struct Snapshot {
    sent_at: Instant,
    first_sent_at: Instant,
    delivered_at: Instant,
    delivered: u64,
    lost: u64,
    /// Octets in the network, these included.
    inflight: u32,
    /// Octets of this transmission.
    octets: u32,
    limited: bool,
}

/// One act of sending, for [`Sampler::on_sent`].
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Departure {
    pub(in super::super) now: Instant,
    /// Counts transmissions while there is something to send.
    pub(in super::super) number: u64,
    pub(in super::super) octets: u32,
    /// Octets in the network, these included.
    pub(in super::super) inflight: u32,
    /// Whether the sender had nothing to send for a while, though it might have sent.
    pub(in super::super) after_gap: bool,
}

/// What one ACK says about the network.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct RateSample {
    /// Octets per second; 0: not to be told.
    pub(super) rate: u64,
    /// Octets delivered while it was measured.
    pub(super) delivered: u64,
    /// Octets delivered when the newest of what arrived was sent.
    pub(super) prior_delivered: u64,
    /// Octets in the network at that time, and lost since.
    pub(super) tx_in_flight: u32,
    pub(super) lost: u64,
    /// The application kept the rate down, not the network.
    pub(super) limited: bool,
}

impl RateSample {
    /// Of an ACK that delivered nothing we know of.
    pub(super) const NONE: RateSample = RateSample {
        rate: 0,
        delivered: 0,
        prior_delivered: 0,
        tx_in_flight: 0,
        lost: 0,
        limited: true,
    };

    pub(super) fn is_some(&self) -> bool {
        self.delivered > 0
    }

    /// As a volume that was in flight.
    pub(super) fn volume(&self) -> u32 {
        u32::try_from(self.delivered).unwrap_or(u32::MAX)
    }
}

/// What a lost transmission says: as in [`RateSample`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct LossSample {
    pub(super) tx_in_flight: u32,
    pub(super) lost: u64,
    pub(super) octets: u32,
    pub(super) limited: bool,
}

/// The counts of one flow and the snapshots of what is under way.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    /// Octets delivered and lost so far.
    delivered: u64,
    lost: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// Samples are the application's doing until so much is delivered; 0: they are not.
    app_limited: u64,
    /// Of the transmissions from number `first` on, in order.
    snapshots: VecDeque<Snapshot>,
    first: u64,
}

impl Sampler {
    pub(super) fn new(now: Instant) -> Sampler {
        Sampler {
            delivered: 0,
            lost: 0,
            delivered_at: now,
            first_sent_at: now,
            app_limited: 0,
            snapshots: VecDeque::new(),
            first: 1,
        }
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn is_app_limited(&self) -> bool {
        self.app_limited > 0
    }

    /// What is under way now says nothing about how much could be.
    pub(super) fn mark_app_limited(&mut self, inflight: u32) {
        self.app_limited = (self.delivered + u64::from(inflight)).max(1);
    }

    pub(super) fn on_sent(&mut self, sent: Departure) {
        let before = sent.inflight.saturating_sub(sent.octets);
        if sent.after_gap {
            self.mark_app_limited(before);
        }
        if before == 0 {
            (self.first_sent_at, self.delivered_at) = (sent.now, sent.now);
        }
        if self.first + self.snapshots.len() as u64 != sent.number {
            self.snapshots.clear(); // a new spell: it counts from the beginning
            self.first = sent.number;
        }
        self.snapshots.push_back(Snapshot {
            sent_at: sent.now,
            first_sent_at: self.first_sent_at,
            delivered_at: self.delivered_at,
            delivered: self.delivered,
            lost: self.lost,
            inflight: sent.inflight,
            octets: sent.octets,
            limited: self.app_limited > 0,
        });
    }

    fn snapshot(&self, number: u64) -> Option<&Snapshot> {
        let at = number.checked_sub(self.first)?;
        self.snapshots.get(usize::try_from(at).ok()?)
    }

    /// `octets` of transmission `number` are lost.
    pub(super) fn on_lost(&mut self, number: u64, octets: u32) -> Option<LossSample> {
        self.lost += u64::from(octets);
        let snapshot = self.snapshot(number)?;
        Some(LossSample {
            tx_in_flight: snapshot.inflight,
            lost: self.lost - snapshot.lost,
            octets: snapshot.octets,
            limited: snapshot.limited,
        })
    }

    /// An ACK delivered `octets`; `newest` is the latest transmission among them. A sample in less than `min_rtt` is
    /// none: something arrived that was sent twice, and it was the first copy.
    pub(super) fn on_delivered(
        &mut self,
        octets: u32,
        newest: u64,
        min_rtt: Option<Duration>,
        now: Instant,
    ) -> Option<RateSample> {
        self.delivered += u64::from(octets);
        self.delivered_at = now;
        if self.app_limited > 0 && self.delivered > self.app_limited {
            self.app_limited = 0;
        }
        let sent = *self.snapshot(newest)?;
        self.first_sent_at = sent.sent_at;
        let send_elapsed = sent.sent_at.since(sent.first_sent_at);
        let interval = send_elapsed.max(now.since(sent.delivered_at));
        let delivered = self.delivered - sent.delivered;
        let told = interval > Duration::ZERO && min_rtt.is_none_or(|min| interval >= min);
        let rate = if told { rate(delivered, interval) } else { 0 };
        Some(RateSample {
            rate,
            delivered,
            prior_delivered: sent.delivered,
            tx_in_flight: sent.inflight,
            lost: self.lost - sent.lost,
            limited: sent.limited,
        })
    }

    /// Forgets the transmissions before number `oldest`; all of them if nothing is under way.
    pub(super) fn forget(&mut self, oldest: Option<u64>) {
        let Some(oldest) = oldest else {
            self.first += self.snapshots.len() as u64;
            self.snapshots = VecDeque::new();
            return;
        };
        while self.first < oldest && self.snapshots.pop_front().is_some() {
            self.first += 1;
        }
    }
}

/// Octets per second.
fn rate(octets: u64, time: Duration) -> u64 {
    (octets as f64 / time.as_secs_f64()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Instant = Instant::from_millis;
    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Sends numbers `from..=to` of 1,000 octets, a millisecond apart from `at` on, with `inflight` before them.
    fn send(sampler: &mut Sampler, from: u64, to: u64, at: u64, inflight: u32) {
        for (k, number) in (from..=to).enumerate() {
            sampler.on_sent(Departure {
                now: AT(at + k as u64),
                number,
                octets: 1_000,
                inflight: inflight + 1_000 * (k as u32 + 1),
                after_gap: false,
            });
        }
    }

    #[test]
    fn the_rate_is_what_was_delivered_over_the_time_it_took() {
        let mut sampler = Sampler::new(AT(0));
        send(&mut sampler, 1, 20, 0, 0);
        // An ACK for each, a millisecond apart, 10 ms after it left; the network takes one in 2 ms from the tenth on.
        for n in 1..=10 {
            let sample = sampler.on_delivered(1_000, n, None, AT(9 + n)).unwrap();
            assert_eq!(sample.delivered, 1_000 * n, "none was delivered before they left");
        }
        let sample = sampler.on_delivered(1_000, 11, None, AT(21)).unwrap();
        assert_eq!((sample.prior_delivered, sample.delivered), (0, 11_000));
        assert_eq!(sample.rate, 11_000 * 1000 / 21, "21 ms since the flow began");
        assert_eq!(sample.tx_in_flight, 11_000);
    }

    /// An ACK that covers ten segments after a silence tells no more than their average.
    #[test]
    fn a_stretched_ack_does_not_look_like_a_fast_network() {
        let mut sampler = Sampler::new(AT(0));
        send(&mut sampler, 1, 10, 0, 0);
        let sample = sampler.on_delivered(10_000, 10, None, AT(20)).unwrap();
        assert_eq!(sample.rate, 500_000, "10,000 octets in 20 ms");
        // ACKs that come bunched: the time it took to send counts.
        send(&mut sampler, 11, 20, 20, 0);
        sampler.on_delivered(1_000, 11, None, AT(39)).unwrap();
        let sample = sampler.on_delivered(9_000, 20, None, AT(39)).unwrap();
        assert_eq!(sample.rate, 10_000 * 1000 / 19);
    }

    #[test]
    fn what_a_quiet_application_sends_is_marked_until_it_is_delivered() {
        let mut sampler = Sampler::new(AT(0));
        send(&mut sampler, 1, 2, 0, 0);
        let gap =
            Departure { now: AT(5), number: 3, octets: 1_000, inflight: 3_000, after_gap: true };
        sampler.on_sent(gap);
        assert!(!sampler.on_delivered(1_000, 2, None, AT(10)).unwrap().limited, "left before it");
        assert!(sampler.on_delivered(1_000, 3, None, AT(15)).unwrap().limited);
        assert!(sampler.is_app_limited());
        send(&mut sampler, 4, 4, 16, 1_000);
        sampler.on_delivered(1_000, 3, None, AT(17)).unwrap();
        assert!(!sampler.is_app_limited(), "more was delivered than was under way then");
        send(&mut sampler, 5, 5, 18, 1_000);
        assert!(!sampler.on_delivered(1_000, 5, None, AT(28)).unwrap().limited);
    }

    /// Octets that were sent again count by their last transmission, and one that was sent again for nothing and is
    /// answered sooner than any segment can be is no sample.
    #[test]
    fn a_sample_shorter_than_the_path_is_none() {
        let mut sampler = Sampler::new(AT(0));
        send(&mut sampler, 1, 5, 0, 0);
        sampler.on_delivered(4_000, 5, None, AT(14)).unwrap();
        send(&mut sampler, 6, 6, 20, 1_000); // the first again
        let sample = sampler.on_delivered(1_000, 6, Some(MS(10)), AT(21)).unwrap();
        assert_eq!((sample.rate, sample.delivered), (62_500, 1_000), "since the fifth left");
        send(&mut sampler, 7, 7, 30, 0);
        let sample = sampler.on_delivered(1_000, 7, Some(MS(10)), AT(31)).unwrap();
        assert_eq!(sample.rate, 0, "1 ms on a path of 10");
    }

    #[test]
    fn losses_are_counted_from_the_time_of_sending() {
        let mut sampler = Sampler::new(AT(0));
        send(&mut sampler, 1, 10, 0, 0);
        assert_eq!(sampler.on_lost(1, 1_000).map(|loss| loss.lost), Some(1_000));
        send(&mut sampler, 11, 11, 10, 8_000);
        let loss = sampler.on_lost(2, 1_000).unwrap();
        assert_eq!((loss.lost, loss.tx_in_flight, loss.octets), (2_000, 2_000, 1_000));
        let sample = sampler.on_delivered(1_000, 11, None, AT(20)).unwrap();
        assert_eq!(sample.lost, 1_000, "the other was lost before it left");
    }

    #[test]
    fn snapshots_go_with_what_they_are_about() {
        let mut sampler = Sampler::new(AT(0));
        send(&mut sampler, 1, 10, 0, 0);
        sampler.forget(Some(4));
        assert_eq!(sampler.snapshots.len(), 7);
        assert!(sampler.on_delivered(1_000, 3, None, AT(20)).is_none());
        assert!(sampler.on_delivered(1_000, 4, None, AT(20)).is_some());
        sampler.forget(None);
        assert_eq!(sampler.snapshots.capacity(), 0, "an idle flow keeps none");
        send(&mut sampler, 1, 1, 50, 0);
        assert!(sampler.on_delivered(1_000, 1, None, AT(60)).is_some(), "numbers begin anew");
    }
}
