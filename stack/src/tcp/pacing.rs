//! Pacing: text leaves at a rate, in bursts of at most a millisecond of it.
//!
//! Only text waits: an ACK, a probe and the first retransmission after a timeout never do. Who polls too late makes up
//! for a millisecond of it, so that the ticks of a timer cost no rate.
#![forbid(unsafe_code)]

use super::congestion::initial_window;
use super::tcb::Tcb;
use crate::time::{Duration, Instant};

/// Text of this time leaves at once, two segments at least (as Linux sizes its super-segments).
const BURST: Duration = Duration::from_millis(1);
/// How much of being late is made up for.
const CREDIT: Duration = Duration::from_millis(1);
/// No rate is below this, octets per second.
pub(super) const MIN_RATE: u64 = 1_000;

/// Whether text leaves at a rate rather than as fast as the windows allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pacing {
    /// Where congestion control is made for it: with BBR.
    #[default]
    Auto,
    /// Always. NewReno and CUBIC then pace at twice cwnd per round trip in slow start, at 1.2 times after it.
    On,
    /// Never.
    Off,
}

/// When the next burst may leave. Part of a flow while it has something to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pacer {
    /// The rate allows the next burst from here on.
    release: Instant,
    /// As `release`, if it was still to come when polling ended.
    held: Option<Instant>,
    /// When polling ended, there was nothing to send though the window had room.
    drained: bool,
}

impl Pacer {
    pub(super) fn new() -> Pacer {
        Pacer { release: Instant::ZERO, held: None, drained: true }
    }

    fn on_sent(&mut self, octets: u32, rate: u64, now: Instant) {
        self.release = self.release.max(now - CREDIT) + time_for(octets, rate);
    }

    /// Octets that may leave before the next wait.
    fn room(&self, rate: u64, quantum: u32, now: Instant) -> u32 {
        if self.release > now {
            return 0;
        }
        let late = now.since(self.release).min(CREDIT);
        quantum.saturating_add(octets_in(late, rate))
    }
}

/// Octets that leave at once at `rate` octets per second.
pub(super) fn quantum(rate: u64, mss: u32, gso_max: u32) -> u32 {
    let burst = octets_in(BURST, rate).min(gso_max);
    (burst / mss * mss).max(2 * mss)
}

/// Octets of `rate` octets per second in `time`.
pub(super) fn octets_in(time: Duration, rate: u64) -> u32 {
    (time.as_secs_f64() * rate as f64) as u32
}

fn time_for(octets: u32, rate: u64) -> Duration {
    Duration::from_nanos(u64::from(octets) * 1_000_000_000 / rate.max(MIN_RATE))
}

impl Tcb {
    /// Octets per second at which text leaves; `None`: as fast as the windows allow.
    pub fn pacing_rate(&self) -> Option<u64> {
        if !self.cfg.paces() {
            return None;
        }
        self.congestion.pacing_rate(self.rtt.srtt())
    }

    /// The rate if it counts: the initial window leaves without.
    fn rate_to_keep(&self) -> Option<u64> {
        let rate = self.pacing_rate()?;
        let begun = self.sums.bytes_sent >= u64::from(initial_window(self.mss(self.room)));
        begun.then_some(rate)
    }

    /// Octets that may leave as one piece now, in whole segments; `None`: the rate does not allow any yet.
    pub(super) fn burst(&self, mss: u32, now: Instant) -> Option<u32> {
        let most = self.super_segment(mss);
        let Some(rate) = self.rate_to_keep() else { return Some(most) };
        let released = self.queue.spell().is_none_or(|spell| spell.pacer.release <= now);
        released.then(|| most.min(quantum(rate, mss, self.cfg.gso_max)))
    }

    /// Octets that pacing lets out before it makes us wait.
    pub(super) fn pacing_room(&self, mss: u32, now: Instant) -> u32 {
        let Some(rate) = self.rate_to_keep() else { return u32::MAX };
        let pacer = self.queue.spell().map_or(Pacer::new(), |spell| spell.pacer);
        pacer.room(rate, quantum(rate, mss, self.cfg.gso_max), now)
    }

    /// Text has left, new or not.
    pub(super) fn pace(&mut self, octets: u32, now: Instant) {
        if let Some(rate) = self.rate_to_keep()
            && let Some(spell) = self.queue.spell_mut()
        {
            spell.pacer.on_sent(octets, rate, now);
        }
    }

    /// Whether the rate and the window would have let text out for a while, and there was none: what is measured then
    /// is the application.
    pub(super) fn after_gap(&self, now: Instant) -> bool {
        self.queue
            .spell()
            .is_some_and(|spell| spell.pacer.drained && spell.pacer.release + CREDIT < now)
    }

    /// Polling has ended: remembers whether the rate would have stopped more.
    pub(super) fn note_pacing(&mut self, now: Instant) {
        if !self.cfg.paces() {
            return;
        }
        let mss = self.mss(self.room);
        let waits = self.queue.unsent() >= mss || self.queue.lost() > 0;
        let drained = !waits && self.inflight().saturating_add(mss) <= self.congestion.cwnd();
        if let Some(spell) = self.queue.spell_mut() {
            let release = spell.pacer.release;
            spell.pacer.held = (release > now).then_some(release);
            spell.pacer.drained = drained;
        }
    }

    /// When pacing lets the next burst out, if it did not at the last poll: the owner who keeps text back because
    /// [`Tcb::send_room`] is zero polls again then.
    pub fn paced_until(&self) -> Option<Instant> {
        self.queue.spell().and_then(|spell| spell.pacer.held)
    }

    /// As [`Tcb::paced_until`], if text waits in the send queue.
    pub(super) fn text_released_at(&self) -> Option<Instant> {
        if !self.cfg.paces() {
            return None;
        }
        self.paced_until().filter(|_| self.queue.unsent() + self.queue.lost() > 0)
    }

    /// The time that pacing waited for has come.
    pub(super) fn end_hold(&mut self, now: Instant) {
        if let Some(spell) = self.queue.spell_mut()
            && spell.pacer.held.is_some_and(|at| at <= now)
        {
            spell.pacer.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Instant = Instant::from_micros;

    #[test]
    fn a_burst_is_a_millisecond_and_at_least_two_segments() {
        assert_eq!(quantum(12_500_000, 1000, 65_000), 12_000);
        assert_eq!(quantum(1_000, 1000, 65_000), 2_000);
        assert_eq!(quantum(1_250_000_000, 1000, 65_000), 65_000);
    }

    #[test]
    fn what_leaves_on_time_leaves_at_the_rate() {
        let mut pacer = Pacer::new();
        let mut now = AT(10_000);
        pacer.release = now;
        for _ in 0..100 {
            assert_eq!(pacer.room(1_000_000, 2_000, now), 2_000);
            pacer.on_sent(2_000, 1_000_000, now);
            assert_eq!(pacer.room(1_000_000, 2_000, now), 0);
            now = pacer.release;
        }
        assert_eq!(now, AT(210_000));
    }

    #[test]
    fn a_timer_that_is_late_costs_no_rate_and_a_long_pause_is_not_made_up_for() {
        let mut pacer = Pacer::new();
        let (mut now, mut sent) = (AT(10_000), 0);
        pacer.release = now;
        // Polled every 300 us at 10,000 octets per ms: a burst of 2,000 every 200 us is meant.
        while now < AT(1_010_000) {
            while pacer.release <= now {
                pacer.on_sent(2_000, 10_000_000, now);
                sent += 2_000;
            }
            now += Duration::from_micros(300);
        }
        assert!((9_990_000..=10_010_000).contains(&sent), "{sent}");
        now += Duration::from_secs(1);
        assert_eq!(pacer.room(10_000_000, 2_000, now), 12_000, "a millisecond and a burst");
    }
}
