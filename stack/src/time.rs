//! Instants and short stamps. Time is an argument everywhere in this crate: only the run loop reads a clock.
#![forbid(unsafe_code)]

use core::num::{NonZeroU32, NonZeroU64};
use core::ops::{Add, AddAssign, Sub};
pub use core::time::Duration;

/// A point on a monotonic clock whose origin is the caller's, in nanoseconds. Held as one more than that, so that an
/// `Option` of it takes no more room: most of what a flow knows is when something happened, if it did.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(NonZeroU64);

const _: () = assert!(size_of::<Option<Instant>>() == 8);

impl Instant {
    /// The clock's origin.
    pub const ZERO: Instant = Instant::from_nanos(0);

    /// `ns` nanoseconds after the origin.
    pub const fn from_nanos(ns: u64) -> Self {
        Instant(NonZeroU64::MIN.saturating_add(ns))
    }

    /// `us` microseconds after the origin.
    pub const fn from_micros(us: u64) -> Self {
        Instant::from_nanos(us * 1_000)
    }

    /// `ms` milliseconds after the origin.
    pub const fn from_millis(ms: u64) -> Self {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0.get() - 1
    }

    /// Whole microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.as_nanos() / 1_000
    }

    /// Whole milliseconds since the origin.
    pub const fn as_millis(self) -> u64 {
        self.as_nanos() / 1_000_000
    }

    /// Time elapsed since `earlier`, zero if `earlier` is in fact later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(nanos(d)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, d: Duration) -> Instant {
        Instant::from_nanos(self.as_nanos().saturating_sub(nanos(d)))
    }
}

impl Default for Instant {
    fn default() -> Instant {
        Instant::ZERO
    }
}

/// A round-trip time as a flow keeps it: four octets, with or without `Option`, where a `Duration` takes sixteen. In
/// steps of 32 ns, up to 137 s.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(NonZeroU32);

const _: () = assert!(size_of::<Option<Span>>() == 4);

/// A step of a [`Span`] in nanoseconds.
const SPAN_STEP: u64 = 32;

impl From<Duration> for Span {
    fn from(d: Duration) -> Span {
        let steps = u32::try_from(nanos(d) / SPAN_STEP).unwrap_or(u32::MAX);
        Span(NonZeroU32::MIN.saturating_add(steps))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Duration {
        Duration::from_nanos(u64::from(span.0.get() - 1) * SPAN_STEP)
    }
}

impl core::fmt::Debug for Span {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        Duration::from(*self).fmt(f)
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl core::fmt::Debug for Instant {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{:06}s", self.as_micros() / 1_000_000, self.as_micros() % 1_000_000)
    }
}

/// The earlier of two optional deadlines; `None` means never.
pub fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Instant::ZERO - Duration::from_secs(1), Instant::ZERO);
        assert_eq!(Instant::from_nanos(u64::MAX) + Duration::MAX, Instant::from_nanos(u64::MAX));
        assert_eq!(Instant::from_millis(3).since(Instant::from_millis(5)), Duration::ZERO);
        assert_eq!(Instant::from_millis(5).since(Instant::from_millis(3)).as_millis(), 2);
    }

    #[test]
    fn a_span_keeps_round_trip_times() {
        let kept = |d: Duration| Duration::from(Span::from(d));
        for d in [Duration::ZERO, Duration::from_micros(57_500), Duration::from_secs(60)] {
            assert_eq!(kept(d), d);
        }
        assert_eq!(kept(Duration::from_nanos(100)), Duration::from_nanos(96));
        assert_eq!(kept(Duration::MAX).as_secs(), 137);
    }

    #[test]
    fn earliest_treats_none_as_never() {
        let (a, b) = (Instant::from_millis(1), Instant::from_millis(2));
        assert_eq!(earliest(Some(a), Some(b)), Some(a));
        assert_eq!(earliest(None, Some(b)), Some(b));
        assert_eq!(earliest(None, None), None);
    }
}
