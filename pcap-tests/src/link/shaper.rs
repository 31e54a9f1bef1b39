//! When does a packet leave an emulated link? One direction, without a clock or a socket.
//!
//! A packet waits until the wire is free, occupies it for its length at the link's rate, and arrives after the delay. The
//! wire's timetable is kept in virtual time: polling late delivers late but never lowers the rate.
//!
//! Each thing that may go wrong has random numbers of its own, one for each packet that gets onto the wire: with the same
//! seed the same packets are lost, whatever else happens to them.
#![forbid(unsafe_code)]

use super::Profile;
use super::ecn::{Mark, Packet};
use super::impair::LossProcess;
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
    /// Packets made late for others to overtake them.
    pub delayed: u64,
    /// Packets that arrived a second time.
    pub duplicated: u64,
    /// Packets marked: Congestion Experienced.
    pub marked: u64,
    /// Most packets that ever waited.
    pub deepest_queue: u32,
}

/// A packet that has its place on the wire.
#[derive(Debug)]
struct Entry<P> {
    arrives: Instant,
    len: u32,
    /// `None`: lost on the way.
    packet: Option<P>,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Shaper<P> {
    profile: Profile,
    loss: LossProcess,
    /// For jitter, reordering and duplicates.
    rngs: [Rng; 3],
    /// Start and length of those that waited for the wire as of the last call.
    waiting: VecDeque<(Instant, u32)>,
    waiting_octets: u64,
    /// Ordinary packets and those that come late, each in order of arrival.
    under_way: [VecDeque<Entry<P>>; 2],
    wire_free: Instant,
    up: bool,
    stats: ShaperStats,
}

const ORDINARY: usize = 0;
const LATE: usize = 1;

impl<P: Packet> Shaper<P> {
    /// A link that is up and idle. `rng` decides which packets are lost, late, or arrive twice.
    pub fn new(profile: Profile, mut rng: Rng) -> Self {
        let rngs = [(); 3].map(|()| Rng::from_number(rng.u64()));
        Shaper {
            profile,
            loss: LossProcess::new(profile.loss, rng),
            rngs,
            waiting: VecDeque::new(),
            waiting_octets: 0,
            under_way: [VecDeque::new(), VecDeque::new()],
            wire_free: Instant::ZERO,
            up: true,
            stats: ShaperStats::default(),
        }
    }

    /// A packet of `len` octets arrives at the near end.
    pub fn enqueue(&mut self, mut packet: P, len: u32, now: Instant) -> Verdict {
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
        self.waiting.push_back((starts, len));
        self.waiting_octets += u64::from(len);
        if self.profile.mark.is_some_and(|longest| starts.since(now) > longest) {
            self.stats.marked += u64::from(packet.mark() == Mark::Set);
        }
        self.travel(packet, len);
        self.advance(now);
        self.stats.deepest_queue = self.stats.deepest_queue.max(self.waiting.len() as u32);
        Verdict::Accepted
    }

    /// From the end of its time on the wire to its arrival.
    fn travel(&mut self, packet: P, len: u32) {
        let Profile { delay, jitter, reorder, duplicate, .. } = self.profile;
        let [jitter_rng, reorder_rng, duplicate_rng] = &mut self.rngs;
        let jitter = jitter.mul_f64(f64::from(jitter_rng.u32()) / 4_294_967_296.0);
        let late = reorder.filter(|reorder| reorder_rng.chance(reorder.share));
        let copies = if duplicate_rng.chance(duplicate) { 2 } else { 1 };
        let arrives = self.wire_free + delay + jitter + late.map_or(Duration::ZERO, |r| r.late);
        let packet = (!self.loss.next_is_lost()).then_some(packet);
        self.stats.delayed += u64::from(late.is_some());
        self.stats.duplicated += u64::from(copies == 2 && packet.is_some());
        let queue = &mut self.under_way[if late.is_some() { LATE } else { ORDINARY }];
        let arrives = queue.back().map_or(arrives, |last| last.arrives.max(arrives));
        if copies == 2 && packet.is_some() {
            queue.push_back(Entry { arrives, len, packet: packet.clone() });
        }
        queue.push_back(Entry { arrives, len, packet });
    }

    /// When the next packet arrives at the far end.
    pub fn next_departure(&self) -> Option<Instant> {
        self.next_queue().map(|(arrives, _)| arrives)
    }

    /// The next arrival, and whose it is.
    fn next_queue(&self) -> Option<(Instant, usize)> {
        let front = |queue: usize| Some((self.under_way[queue].front()?.arrives, queue));
        [ORDINARY, LATE].into_iter().filter_map(front).min()
    }

    /// The next packet that has arrived at the far end by `now`.
    pub fn poll_departure(&mut self, now: Instant) -> Option<P> {
        self.advance(now);
        while let Some((_, queue)) = self.next_queue().filter(|(arrives, _)| *arrives <= now) {
            let entry = self.under_way[queue].pop_front()?;
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
            for queue in &mut self.under_way {
                self.stats.down_drops += queue.len() as u64;
                queue.clear();
            }
            self.waiting.clear();
            self.waiting_octets = 0;
            self.wire_free = now;
        }
        self.up = up;
    }

    /// Its counters.
    pub fn stats(&self) -> ShaperStats {
        self.stats
    }

    fn has_room(&self, len: u32, now: Instant) -> bool {
        if self.wire_free <= now {
            return true;
        }
        match self.profile.queue {
            QueueLimit::Packets(limit) => self.waiting.len() < limit as usize,
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

    /// Those whose turn has come wait no longer.
    fn advance(&mut self, now: Instant) {
        while let Some((_, len)) = self.waiting.front().filter(|(starts, _)| *starts <= now) {
            self.waiting_octets -= u64::from(*len);
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Loss, Reorder};
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    fn profile(rate: u64, delay_ms: u64, queue: QueueLimit) -> Profile {
        let delay = Duration::from_millis(delay_ms);
        Profile { rate: Some(rate), delay, queue, ..Profile::default() }
    }

    /// Odd ones are ECN-capable; a mark adds a million.
    impl Packet for u32 {
        fn mark(&mut self) -> Mark {
            if self.is_multiple_of(2) {
                return Mark::NotCapable;
            }
            *self += 1_000_000;
            Mark::Set
        }
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
        let mut link = shaper(Profile {
            loss: Loss::random(0.1),
            ..profile(100_000_000, 0, QueueLimit::Packets(20_000))
        });
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

    fn arrivals(link: &mut Shaper<u32>) -> Vec<u32> {
        let end = Instant::from_millis(100_000);
        std::iter::from_fn(|| link.poll_departure(end)).collect()
    }

    fn send_all(link: &mut Shaper<u32>, packets: u32) -> Vec<u32> {
        for i in 0..packets {
            assert_eq!(link.enqueue(i, 1250, Instant::ZERO), Verdict::Accepted);
        }
        arrivals(link)
    }

    #[test]
    fn a_late_packet_is_overtaken_by_as_many_as_fit_into_its_delay() {
        let reorder = Reorder { share: 0.02, late: Duration::from_millis(5) };
        let queue = QueueLimit::Packets(20_000);
        let mut link = shaper(Profile { reorder: Some(reorder), ..profile(100_000_000, 1, queue) });
        let arrived = send_all(&mut link, 10_000);
        let mut sorted = arrived.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..10_000), "each once");
        // 5 ms are 50 packets. A late one comes behind all that started less than 50 after it.
        let mut late = 0;
        for (at, packet) in arrived.iter().enumerate() {
            let overtaken_by = arrived[..at].iter().filter(|other| *other > packet).count();
            if overtaken_by > 0 {
                late += 1;
                assert!((40..=50).contains(&overtaken_by), "{packet} by {overtaken_by}");
            }
        }
        // The last 50 may have nobody left to overtake them.
        assert!((150..250).contains(&late), "{late}");
        assert!((late..late + 10).contains(&link.stats().delayed), "{:?}", link.stats());
    }

    #[test]
    fn jitter_delays_and_keeps_the_order() {
        let jitter = Duration::from_millis(4);
        let mut link =
            shaper(Profile { jitter, ..profile(100_000_000, 5, QueueLimit::Packets(10)) });
        let mut delays = Vec::new();
        let mut last = Instant::ZERO;
        for i in 0..2000u32 {
            // Far enough apart that none waits for another.
            let now = Instant::from_millis(u64::from(i) * 10);
            link.enqueue(i, 1250, now);
            let arrives = link.next_departure().expect("it is under way");
            assert!(arrives > last);
            last = arrives;
            assert_eq!(link.poll_departure(arrives), Some(i));
            delays.push(arrives.since(now + Duration::from_micros(5100)));
        }
        let mean = delays.iter().sum::<Duration>() / 2000;
        assert!(delays.iter().all(|delay| *delay < jitter));
        assert!((1900..2100).contains(&mean.as_micros()), "{mean:?}");
        let mut dense =
            shaper(Profile { jitter, ..profile(100_000_000, 5, QueueLimit::Packets(2000)) });
        assert!(send_all(&mut dense, 2000).into_iter().eq(0..2000));
    }

    #[test]
    fn a_duplicate_comes_right_after_its_original_and_takes_no_time_on_the_wire() {
        let queue = QueueLimit::Packets(20_000);
        let mut link = shaper(Profile { duplicate: 0.1, ..profile(100_000_000, 0, queue) });
        let arrived = send_all(&mut link, 10_000);
        let twice = arrived.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((850..1150).contains(&twice), "{twice}");
        assert_eq!(arrived.len(), 10_000 + twice);
        assert_eq!(link.stats().duplicated, twice as u64);
        assert_eq!(link.wire_free, Instant::from_millis(1000));
    }

    #[test]
    fn a_packet_that_waits_too_long_is_marked_if_it_can_be() {
        let mark = Some(Duration::from_micros(500));
        let mut link =
            shaper(Profile { mark, ..profile(100_000_000, 0, QueueLimit::Packets(100)) });
        let arrived = send_all(&mut link, 10);
        // The sixth waits for 500 us; the others after it wait longer.
        assert_eq!(arrived, [0, 1, 2, 3, 4, 5, 6, 1_000_007, 8, 1_000_009]);
        assert_eq!(link.stats().marked, 2);
    }

    #[test]
    fn the_same_packets_are_lost_whatever_else_happens_to_them() {
        let queue = QueueLimit::Packets(20_000);
        let plain = Profile { loss: Loss::in_runs(0.05, 3.0), ..profile(100_000_000, 1, queue) };
        let late = Duration::from_millis(7);
        let worse = Profile {
            jitter: Duration::from_millis(1),
            reorder: Some(Reorder { share: 0.1, late }),
            duplicate: 0.1,
            ..plain
        };
        let survivors = |profile| {
            let mut arrived = send_all(&mut shaper(profile), 5000);
            arrived.sort_unstable();
            arrived.dedup();
            arrived
        };
        assert_eq!(survivors(plain), survivors(worse));
        assert!(survivors(plain).len() < 4900);
    }

    proptest! {
        #[test]
        fn packets_are_all_accounted_for_and_keep_their_order_unless_they_are_reordered(
            steps in prop::collection::vec((0u64..300_000, 60u32..1600), 1..200),
            reordered: bool,
        ) {
            let late = Duration::from_micros(700);
            let reorder = reordered.then_some(Reorder { share: 0.2, late });
            let mut link = shaper(Profile {
                loss: Loss::random(0.2),
                jitter: Duration::from_micros(300),
                duplicate: 0.1,
                reorder,
                ..profile(50_000_000, 1, QueueLimit::Packets(8))
            });
            let (mut now, mut last, mut offered) = (Instant::ZERO, None, 0);
            for (i, (gap, len)) in steps.into_iter().enumerate() {
                now += Duration::from_nanos(gap);
                while let Some(packet) = link.poll_departure(now) {
                    prop_assert!(reordered || last <= Some(packet));
                    last = Some(packet);
                }
                link.enqueue(i as u32, len, now);
                offered += 1;
            }
            while link.poll_departure(now + Duration::from_secs(1)).is_some() {}
            let stats = link.stats();
            let met = stats.packets + stats.lost + stats.queue_drops;
            prop_assert_eq!(met, offered + stats.duplicated);
            prop_assert_eq!((link.waiting.len(), link.waiting_octets), (0, 0));
            prop_assert_eq!(link.next_departure(), None);
        }
    }
}
