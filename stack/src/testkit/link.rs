//! A link: rate, delay, a queue, and what can go wrong on it.
#![forbid(unsafe_code)]

use crate::rng::Rng;
use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// One direction of a link. The default is instant, endless and perfect.
#[derive(Clone, Debug)]
pub struct Link {
    rate: Option<u64>,
    delay: Duration,
    queue: usize,
    loss: f64,
    burst: Option<Burst>,
    reorder: (f64, Duration),
    duplicate: f64,
    corrupt: f64,
    outages: Vec<(Instant, Instant)>,
}

/// Losses in bursts (Gilbert's model): everything is lost while the link is in its bad state.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Burst {
    /// Chance, per packet, of turning bad.
    pub begin: f64,
    /// Chance, per packet, of turning good again.
    pub end: f64,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            rate: None,
            delay: Duration::ZERO,
            queue: 256 << 10,
            loss: 0.0,
            burst: None,
            reorder: (0.0, Duration::ZERO),
            duplicate: 0.0,
            corrupt: 0.0,
            outages: Vec::new(),
        }
    }
}

impl Link {
    /// A link of `rate` bits per second and `delay` one way, with a queue of one bandwidth-delay product of the round
    /// trip, at least 32 packets.
    pub fn new(rate: u64, delay: Duration) -> Link {
        let product = rate as u128 * 2 * delay.as_nanos() / 8_000_000_000;
        Link {
            rate: Some(rate),
            delay,
            queue: (product as usize).max(32 * 1_500),
            ..Link::default()
        }
    }

    /// The queue holds this many octets; more is dropped.
    pub fn queue(mut self, octets: usize) -> Link {
        self.queue = octets;
        self
    }

    /// Each packet is lost with this probability.
    pub fn loss(mut self, p: f64) -> Link {
        self.loss = p;
        self
    }

    /// Packets are lost in bursts.
    pub fn burst(mut self, burst: Burst) -> Link {
        self.burst = Some(burst);
        self
    }

    /// A packet comes `late` with this probability, so that others overtake it.
    pub fn reorder(mut self, p: f64, late: Duration) -> Link {
        self.reorder = (p, late);
        self
    }

    /// A packet comes twice with this probability.
    pub fn duplicate(mut self, p: f64) -> Link {
        self.duplicate = p;
        self
    }

    /// One bit of a packet is flipped with this probability.
    pub fn corrupt(mut self, p: f64) -> Link {
        self.corrupt = p;
        self
    }

    /// Nothing passes between `from` and `to`; what is under way is lost.
    pub fn outage(mut self, from: Instant, to: Instant) -> Link {
        self.outages.push((from, to));
        self
    }

    /// Bits per second, if limited.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// One way.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Whether an outage touches the time from `sent` to `arrives`.
    fn is_out(&self, sent: Instant, arrives: Instant) -> bool {
        self.outages.iter().any(|(from, to)| *from <= arrives && sent < *to)
    }
}

/// What passed one direction of a link, and what did not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkStats {
    /// Packets handed to the link.
    pub sent: u64,
    /// Octets that will arrive.
    pub carried_octets: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Lost by chance or outage.
    pub lost: u64,
    /// Damaged.
    pub corrupted: u64,
}

/// One direction at work.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) link: Link,
    pub(super) stats: LinkStats,
    rng: Rng,
    busy_until: Instant,
    bad: bool,
}

impl Direction {
    pub(super) fn new(link: Link, rng: Rng) -> Direction {
        Direction { link, stats: LinkStats::default(), rng, busy_until: Instant::ZERO, bad: false }
    }

    /// When copies of `packet`, sent now, arrive: none, one or two. May damage the packet.
    pub(super) fn send(&mut self, packet: &mut [u8], now: Instant) -> [Option<Instant>; 2] {
        self.stats.sent += 1;
        let Some(out) = self.serialize(packet.len(), now) else {
            self.stats.overflowed += 1;
            return [None; 2];
        };
        let mut arrives = out + self.link.delay;
        if self.rng.chance(self.link.reorder.0) {
            arrives += self.link.reorder.1;
        }
        if self.is_lost() || self.link.is_out(now, arrives) {
            self.stats.lost += 1;
            return [None; 2];
        }
        if self.rng.chance(self.link.corrupt) {
            let bit = self.rng.below(packet.len() as u32 * 8);
            packet[bit as usize / 8] ^= 1 << (bit % 8);
            self.stats.corrupted += 1;
        }
        self.stats.carried_octets += packet.len() as u64;
        let again = self.rng.chance(self.link.duplicate);
        [Some(arrives), again.then_some(arrives + Duration::from_micros(10))]
    }

    /// When the last bit is on the link, or `None` if the queue is full.
    fn serialize(&mut self, len: usize, now: Instant) -> Option<Instant> {
        let Some(rate) = self.link.rate else { return Some(now) };
        let start = self.busy_until.max(now);
        let queued = start.since(now).as_nanos() * u128::from(rate) / 8_000_000_000;
        if queued as usize + len > self.link.queue {
            return None;
        }
        self.busy_until = start + Duration::from_nanos(len as u64 * 8_000_000_000 / rate);
        Some(self.busy_until)
    }

    fn is_lost(&mut self) -> bool {
        if let Some(burst) = self.link.burst {
            let turn = if self.bad { burst.end } else { burst.begin };
            self.bad ^= self.rng.chance(turn);
        }
        self.rng.chance(self.link.loss) || self.bad
    }
}
