//! The receive window of one direction, sized to what its consumer takes per round trip (as Linux's
//! `tcp_rcv_space_adjust` and `mptcp_rcv_space_adjust`).
#![forbid(unsafe_code)]

use crate::time::{Duration, Instant};
use core::ops::RangeInclusive;

/// Octets by which windows are counted: six octets of state for every direction of every connection have to do.
const PAGE: u32 = 4 << 10;

/// Windows per window consumed in one round trip. In slow start a sender doubles what it sends from one round trip to the
/// next, and a span of ours may begin in the middle of one of its bursts: it has to find twice of twice as much.
const AHEAD: u16 = 4;

/// Of a window that is larger than what is consumed asks for, one over the part given up per span: one that is slow at the
/// end of a connection need not hold what it was good for at the beginning, and one that pauses keeps its own.
const DECAY: u16 = 16;

/// The window, and the span in which consumption is measured now. What the flow below has offered stays offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Space {
    /// In pages.
    window: u16,
    /// Pages consumed in all when the span began.
    base: u16,
    /// When it began, in milliseconds.
    began: u16,
}

impl Space {
    /// Begins with `octets`.
    pub(super) fn new(octets: u32) -> Space {
        Space { window: pages(octets).max(1), base: 0, began: 0 }
    }

    /// Octets.
    pub(super) fn window(self) -> u32 {
        u32::from(self.window) * PAGE
    }

    /// `total` octets were consumed since the connection began. A window that is not well ahead of what was consumed within
    /// one `span` (a round trip) grows at once, as the next burst is under way when the span ends; one that is far ahead
    /// shrinks slowly. It stays within these `bounds`, in octets.
    pub(super) fn on_consumed(
        &mut self,
        total: u64,
        span: Duration,
        bounds: RangeInclusive<u32>,
        now: Instant,
    ) {
        let at = (total / u64::from(PAGE)) as u16;
        let consumed = at.wrapping_sub(self.base);
        let (least, most) = (pages(*bounds.start()).max(1), pages(*bounds.end()).max(1));
        let wanted = consumed.saturating_mul(AHEAD).max(least).min(most);
        self.window = self.window.max(wanted);
        let ms = now.as_millis() as u16;
        let span = u16::try_from(span.as_millis()).unwrap_or(u16::MAX).max(1);
        if ms.wrapping_sub(self.began) >= span {
            self.window -= (self.window - wanted).div_ceil(DECAY);
            (self.base, self.began) = (at, ms);
        }
    }
}

fn pages(octets: u32) -> u16 {
    u16::try_from(octets / PAGE).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEAST: u32 = 64 << 10;
    const MOST: u32 = 32 << 20;
    const RTT: Duration = Duration::from_millis(100);

    /// A consumer and its clock.
    struct Consumer {
        space: Space,
        total: u64,
        now: Instant,
    }

    impl Consumer {
        fn new() -> Consumer {
            Consumer { space: Space::new(LEAST), total: 0, now: Instant::from_millis(7) }
        }

        /// `octets` in each of `rounds` round trips, a page at a time; the window at the end.
        fn consume(&mut self, rounds: u32, octets: u32) -> u32 {
            for _ in 0..rounds {
                let pieces = octets.div_ceil(PAGE);
                for _ in 0..pieces {
                    self.total += u64::from(octets / pieces);
                    self.space.on_consumed(self.total, RTT, LEAST..=MOST, self.now);
                }
                self.now += RTT;
            }
            self.space.window()
        }
    }

    #[test]
    fn a_slow_connection_keeps_the_window_that_it_began_with() {
        assert_eq!(Consumer::new().consume(1_000, 8 << 10), LEAST);
    }

    #[test]
    fn the_window_is_ahead_of_a_sender_in_slow_start() {
        let mut consumer = Consumer::new();
        let (mut window, mut cwnd) = (LEAST, 14_600);
        while cwnd < MOST / 4 {
            assert!(window >= cwnd, "{window} for a burst of {cwnd}");
            window = consumer.consume(1, cwnd);
            cwnd *= 2;
        }
        assert_eq!(consumer.consume(10, MOST), MOST, "and has a bound");
    }

    #[test]
    fn who_gets_slow_gives_its_window_back_and_who_pauses_does_not() {
        let mut consumer = Consumer::new();
        let wide = consumer.consume(10, 1 << 20);
        assert!(wide >= 4 << 20);
        consumer.now += Duration::from_secs(3_600);
        assert!(consumer.consume(1, PAGE) > wide / 8 * 7);
        assert!(consumer.consume(8, 8 << 10) > wide / 2, "slowly");
        assert_eq!(consumer.consume(200, 8 << 10), LEAST);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_four_times_what_was_consumed(
            steps in proptest::collection::vec((0u64..200, 0u64..400_000), 1..100),
        ) {
            let (mut space, mut total, mut ms) = (Space::new(LEAST), 0, 0);
            for (wait, octets) in steps {
                ms += wait;
                total += octets;
                space.on_consumed(total, RTT, LEAST..=MOST, Instant::from_millis(ms));
                prop_assert!((LEAST..=MOST).contains(&space.window()));
                prop_assert!(u64::from(space.window()) <= (4 * total).max(u64::from(LEAST)));
            }
        }
    }
}
