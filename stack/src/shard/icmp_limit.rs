//! How many ICMP errors a shard sends (RFC 1812 4.3.2.8, RFC 4443 2.4 (f): a token bucket).
#![forbid(unsafe_code)]

use crate::time::{Duration, Instant};

/// Errors per second in the long run; the kernel's `icmp_msgs_per_sec`.
const RATE: u32 = 1000;
/// Errors at once; the kernel's `icmp_msgs_burst`.
const BURST: u32 = 50;

/// A bucket that holds [`BURST`] errors and gains [`RATE`] a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct IcmpLimit {
    left: u32,
    /// Up to when gains are counted into `left`.
    counted: Instant,
}

impl Default for IcmpLimit {
    /// Full.
    fn default() -> IcmpLimit {
        IcmpLimit { left: BURST, counted: Instant::ZERO }
    }
}

impl IcmpLimit {
    /// Takes one out, if there is one.
    pub fn allow(&mut self, now: Instant) -> bool {
        let each = Duration::from_micros(1_000_000 / u64::from(RATE));
        let gained = now.since(self.counted).as_micros() as u64 / each.as_micros() as u64;
        if gained > 0 {
            self.left = BURST.min(self.left.saturating_add(gained.min(u64::from(BURST)) as u32));
            self.counted = now;
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(limit: &mut IcmpLimit, tries: u32, at: u64) -> u32 {
        (0..tries).map(|_| u32::from(limit.allow(Instant::from_millis(at)))).sum()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut limit = IcmpLimit::default();
        assert_eq!(allowed(&mut limit, 1000, 5000), BURST);
        assert_eq!(allowed(&mut limit, 1000, 5010), 10);
        assert_eq!(allowed(&mut limit, 1000, 5010), 0);
        assert_eq!(allowed(&mut limit, 1000, 60_000), BURST, "no more than a burst is saved");
    }
}
