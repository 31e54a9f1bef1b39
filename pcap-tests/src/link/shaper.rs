//! When does a packet leave an emulated link? One direction, without a clock or a socket.
//!
//! A packet waits until the wire is free, occupies it for its length at the link's rate, and arrives after the delay. The
//! wire's timetable is kept in virtual time: polling late delivers late but never lowers the rate.
#![forbid(unsafe_code)]

use super::Profile;
use serde::Serialize;
use stack::rng::Rng;
use stack::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// What may wait for the wire before packets are dropped (drop-tail). The packet on the wire does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueLimit {
    /// So many packets.
    Packets(u32),
    /// So many octets.
    Octets(u64),
    /// So much time until a new packet's turn would come.
    Time(Duration),
}

/// What became of a packet handed to [`Shaper::enqueue`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It waits, travels, or is lost on the way: that shows only at the other end.
    Accepted,
    /// No room in the queue.
    QueueFull,
    /// The link is down.
    Down,
}

/// What a direction counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ShaperStats {
    /// Packets delivered.
    pub packets: u64,
    /// Octets delivered.
    pub octets: u64,
    /// Packets for which the queue had no room.
    pub queue_drops: u64,
    /// Packets lost at random.
    pub lost: u64,
    /// Packets that met a link that was down, or were on it when it went down.
    pub down_drops: u64,
    /// Most packets that ever waited.
    pub deepest_queue: u32,
}

#[derive(Debug)]
struct Entry<P> {
    starts: Instant,
    arrives: Instant,
    len: u32,
    /// `None`: lost on the way, though it takes its time on the wire.
    packet: Option<P>,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Shaper<P> {
    profile: Profile,
    rng: Rng,
    /// In order of `starts` and of `arrives`. Those from `waiting_from` on have not started as of the last call.
    entries: VecDeque<Entry<P>>,
    waiting_from: usize,
    waiting_octets: u64,
    wire_free: Instant,
    up: bool,
    stats: ShaperStats,
}

impl<P> Shaper<P> {
    /// A link that is up and idle. `rng` decides which packets are lost.
    pub fn new(profile: Profile, rng: Rng) -> Self {
        Shaper {
            profile,
            rng,
            entries: VecDeque::new(),
            waiting_from: 0,
            waiting_octets: 0,
            wire_free: Instant::ZERO,
            up: true,
            stats: ShaperStats::default(),
        }
    }

    /// A packet of `len` octets arrives at the near end.
    pub fn enqueue(&mut self, packet: P, len: u32, now: Instant) -> Verdict {
        self.advance(now);
        if !self.up {
            self.stats.down_drops += 1;
            return Verdict::Down;
        }
        if !self.has_room(len, now) {
            self.stats.queue_drops += 1;
            return Verdict::QueueFull;
        }
        let starts = self.wire_free.max(now);
        self.wire_free = starts + self.serialization(len);
        let arrives = self.wire_free + self.profile.delay;
        let lost = self.rng.chance(self.profile.loss);
        self.entries.push_back(Entry { starts, arrives, len, packet: (!lost).then_some(packet) });
        self.waiting_octets += u64::from(len);
        self.advance(now);
        self.stats.deepest_queue = self.stats.deepest_queue.max(self.waiting() as u32);
        Verdict::Accepted
    }

    /// When the next packet arrives at the far end.
    pub fn next_departure(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.arrives)
    }

    /// The next packet that has arrived at the far end by `now`.
    pub fn poll_departure(&mut self, now: Instant) -> Option<P> {
        self.advance(now);
        while self.entries.front().is_some_and(|entry| entry.arrives <= now) {
            let entry = self.entries.pop_front()?;
            self.waiting_from = self.waiting_from.saturating_sub(1);
            match entry.packet {
                Some(packet) => {
                    self.stats.packets += 1;
                    self.stats.octets += u64::from(entry.len);
                    return Some(packet);
                }
                None => self.stats.lost += 1,
            }
        }
        None
    }

    /// Cuts the link, losing what is on it, or restores it.
    pub fn set_up(&mut self, up: bool, now: Instant) {
        if self.up && !up {
            self.stats.down_drops += self.entries.len() as u64;
            self.entries.clear();
            self.waiting_from = 0;
            self.waiting_octets = 0;
            self.wire_free = now;
        }
        self.up = up;
    }

    /// Its counters.
    pub fn stats(&self) -> ShaperStats {
        self.stats
    }

    fn waiting(&self) -> usize {
        self.entries.len() - self.waiting_from
    }

    fn has_room(&self, len: u32, now: Instant) -> bool {
        if self.wire_free <= now {
            return true;
        }
        match self.profile.queue {
            QueueLimit::Packets(limit) => self.waiting() < limit as usize,
            QueueLimit::Octets(limit) => self.waiting_octets + u64::from(len) <= limit,
            QueueLimit::Time(limit) => self.wire_free.since(now) <= limit,
        }
    }

    fn serialization(&self, len: u32) -> Duration {
        match self.profile.rate {
            Some(rate) => Duration::from_nanos(u64::from(len) * 8_000_000_000 / rate.max(1)),
            None => Duration::ZERO,
        }
    }

    fn advance(&mut self, now: Instant) {
        while let Some(entry) = self.entries.get(self.waiting_from).filter(|e| e.starts <= now) {
            self.waiting_octets -= u64::from(entry.len);
            self.waiting_from += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    fn profile(rate: u64, delay_ms: u64, queue: QueueLimit) -> Profile {
        Profile { rate: Some(rate), delay: Duration::from_millis(delay_ms), loss: 0.0, queue }
    }

    fn shaper(profile: Profile) -> Shaper<u32> {
        Shaper::new(profile, Rng::from_number(7))
    }

    #[test]
    fn a_packet_arrives_after_its_length_at_the_rate_and_the_delay() {
        let mut link = shaper(profile(100_000_000, 5, QueueLimit::Packets(10)));
        let now = Instant::from_millis(1);
        assert_eq!(link.enqueue(1, 1250, now), Verdict::Accepted); // 10,000 bit: 100 us
        let arrives = now + Duration::from_micros(5100);
        assert_eq!(link.next_departure(), Some(arrives));
        assert_eq!(link.poll_departure(arrives - Duration::from_nanos(1)), None);
        assert_eq!(link.poll_departure(arrives), Some(1));
        assert_eq!(link.next_departure(), None);
    }

    #[test]
    fn the_rate_holds_whenever_it_is_polled() {
        let mut link = shaper(profile(100_000_000, 5, QueueLimit::Packets(2000)));
        for i in 0..1000 {
            link.enqueue(i, 1250, Instant::ZERO);
        }
        // 1000 packets of 100 us: the last one arrives at 105 ms; polled only every 7 ms.
        let mut arrived = 0;
        for ms in (0..105).step_by(7) {
            while link.poll_departure(Instant::from_millis(ms)).is_some() {
                arrived += 1;
            }
            assert_eq!(arrived, (ms.saturating_sub(5) * 10).min(1000));
        }
        assert_eq!(link.next_departure().map(Instant::as_micros), Some((arrived + 1) * 100 + 5000));
    }

    #[test]
    fn a_full_queue_drops_the_newcomer() {
        let mut link = shaper(profile(100_000_000, 0, QueueLimit::Packets(3)));
        let verdicts: Vec<_> = (0..6).map(|i| link.enqueue(i, 1250, Instant::ZERO)).collect();
        // One on the wire, three waiting.
        assert_eq!(verdicts[..4], [Verdict::Accepted; 4]);
        assert_eq!(verdicts[4..], [Verdict::QueueFull; 2]);
        let later = Instant::from_micros(100);
        assert_eq!(link.enqueue(6, 1250, later), Verdict::Accepted);
        assert_eq!(link.enqueue(7, 1250, later), Verdict::QueueFull);
        assert_eq!(link.stats().queue_drops, 3);
        assert_eq!(link.stats().deepest_queue, 3);
    }

    #[test]
    fn a_queue_may_be_counted_in_octets_or_time() {
        let mut octets = shaper(profile(1_000_000, 0, QueueLimit::Octets(2500)));
        let mut time = shaper(profile(1_000_000, 0, QueueLimit::Time(Duration::from_millis(20))));
        let count = |link: &mut Shaper<u32>| {
            (0..9).filter(|&i| link.enqueue(i, 1250, Instant::ZERO) == Verdict::Accepted).count()
        };
        assert_eq!(count(&mut octets), 3); // one on the wire, 2,500 octets waiting
        assert_eq!(count(&mut time), 3); // the third waits 20 ms, the fourth would wait 30
    }

    #[test]
    fn about_the_given_share_is_lost_and_takes_its_time_all_the_same() {
        let mut link =
            shaper(Profile { loss: 0.1, ..profile(100_000_000, 0, QueueLimit::Packets(20_000)) });
        for i in 0..10_000 {
            link.enqueue(i, 1250, Instant::ZERO);
        }
        let end = Instant::from_millis(1000);
        let mut arrived = 0;
        while link.poll_departure(end).is_some() {
            arrived += 1;
        }
        assert!((8850..9150).contains(&arrived), "{arrived}");
        assert_eq!(link.stats().lost + link.stats().packets, 10_000);
        assert_eq!(link.enqueue(0, 1250, Instant::from_micros(999_950)), Verdict::Accepted);
        let next = link.next_departure().map(Instant::as_micros);
        assert_eq!(next, Some(1_000_100), "the wire was busy until 1 s");
    }

    #[test]
    fn a_cut_loses_what_is_on_the_link_and_it_comes_back_empty() {
        let mut link = shaper(profile(100_000_000, 5, QueueLimit::Packets(100)));
        for i in 0..10 {
            link.enqueue(i, 1250, Instant::ZERO);
        }
        let cut = Instant::from_millis(1);
        link.set_up(false, cut);
        assert_eq!(link.enqueue(10, 1250, cut), Verdict::Down);
        assert_eq!(link.next_departure(), None);
        link.set_up(true, Instant::from_millis(2));
        link.enqueue(11, 1250, Instant::from_millis(2));
        assert_eq!(link.poll_departure(Instant::from_micros(7100)), Some(11));
        assert_eq!(link.stats().down_drops, 11);
    }

    proptest! {
        #[test]
        fn packets_keep_their_order_and_are_all_accounted_for(
            steps in prop::collection::vec((0u64..300_000, 60u32..1600), 1..200),
        ) {
            let mut link = shaper(Profile { loss: 0.2, ..profile(50_000_000, 1, QueueLimit::Packets(8)) });
            let (mut now, mut last, mut offered) = (Instant::ZERO, None, 0);
            for (i, (gap, len)) in steps.into_iter().enumerate() {
                now += Duration::from_nanos(gap);
                while let Some(packet) = link.poll_departure(now) {
                    prop_assert!(last < Some(packet));
                    last = Some(packet);
                }
                link.enqueue(i as u32, len, now);
                offered += 1;
            }
            while link.poll_departure(now + Duration::from_secs(1)).is_some() {}
            let stats = link.stats();
            prop_assert_eq!(stats.packets + stats.lost + stats.queue_drops, offered);
            prop_assert_eq!((link.waiting(), link.waiting_octets), (0, 0));
        }
    }
}
