//! The links over which the transfers go: one thing changed at a time around two base points, and pairs that matter.
#![forbid(unsafe_code)]

use pcap_tests::link::{Loss, Profile, QueueLimit, Reorder};
use serde::Serialize;
use std::time::Duration;

/// Octets of a full-sized frame, and of the text in it.
const FRAME: f64 = 1514.0;
const TEXT: f64 = 1448.0;
/// A queue holds at least so many octets: two frames beside the one on the wire.
const LEAST_QUEUE: f64 = 2.0 * FRAME;
/// A transfer has at least so many octets: enough to lose several packets where the model expects few octets.
const LEAST_OCTETS: f64 = 800e3;
const MBIT: u64 = 1_000_000;

/// A link, and how data and ACKs fare on it.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// How it is told from others: rate, round trip, and what is special.
    pub name: String,
    /// Bits per second, of data and of ACKs.
    pub rate: [u64; 2],
    /// Without any queue.
    pub round_trip: Duration,
    /// What may wait, in bandwidth-delay products.
    pub queue: f64,
    /// Of packets with data.
    pub loss: Loss,
    /// Of packets with data.
    pub reorder: Option<Reorder>,
    /// Of ACKs.
    pub ack_loss: Loss,
    /// Of packets with data.
    pub jitter: Duration,
    /// Of packets with data.
    pub duplicate: f64,
}

impl Cell {
    fn new(mbit: u64, round_trip_ms: u64) -> Cell {
        Cell {
            name: format!("{mbit}mbit-{round_trip_ms}ms"),
            rate: [mbit * MBIT; 2],
            round_trip: Duration::from_millis(round_trip_ms),
            queue: 1.0,
            loss: Loss::NONE,
            reorder: None,
            ack_loss: Loss::NONE,
            jitter: Duration::ZERO,
            duplicate: 0.0,
        }
    }

    fn but(mut self, what: &str, change: impl FnOnce(&mut Cell)) -> Cell {
        self.name = format!("{}-{what}", self.name);
        change(&mut self);
        self
    }

    fn loss(self, percent: f64) -> Cell {
        self.but(&format!("loss{percent}"), |cell| cell.loss = Loss::random(percent / 100.0))
    }

    fn reorder(self, late_ms: u64) -> Cell {
        let late = Duration::from_millis(late_ms);
        let reorder = Some(Reorder { share: 0.01, late });
        self.but(&format!("reorder{late_ms}"), |cell| cell.reorder = reorder)
    }

    fn queue(self, products: f64) -> Cell {
        self.but(&format!("queue{products}"), |cell| cell.queue = products)
    }

    /// The way of the data, and the way of the ACKs.
    pub fn profiles(&self) -> [Profile; 2] {
        let queue = |rate: u64| {
            let product = rate as f64 / 8.0 * self.round_trip.as_secs_f64();
            QueueLimit::Octets((product * self.queue).max(LEAST_QUEUE) as u64)
        };
        let delay = self.round_trip / 2;
        let way =
            |rate| Profile { rate: Some(rate), delay, queue: queue(rate), ..Profile::default() };
        let [data, acks] = self.rate;
        [
            Profile {
                loss: self.loss,
                reorder: self.reorder,
                jitter: self.jitter,
                duplicate: self.duplicate,
                ..way(data)
            },
            Profile { loss: self.ack_loss, ..way(acks) },
        ]
    }

    /// How much to send so that CUBIC may take some `seconds` for it.
    pub fn octets(&self, seconds: f64) -> u64 {
        (self.expected_rate() / 8.0 * seconds).max(LEAST_OCTETS) as u64
    }

    /// Bits of text per second that RFC 9438 5.1 expects of CUBIC, at most what the link carries. Of late packets one in ten
    /// counts as lost: a guess.
    fn expected_rate(&self) -> f64 {
        let link = self.rate[0] as f64 * TEXT / FRAME;
        let taken = self.reorder.map_or(0.0, |reorder| reorder.share / 10.0);
        // Losses that come together are one to the sender.
        let events = self.loss.share / self.loss.run.unwrap_or(1.0) + taken;
        if events == 0.0 {
            return link * 0.9;
        }
        let round_trip = self.round_trip.as_secs_f64();
        let cubic = 1.054 * (round_trip / events).powf(0.75);
        let reno = (1.5 / events).sqrt();
        (cubic.max(reno) * TEXT * 8.0 / round_trip).min(link * 0.9)
    }
}

/// All of them.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for base in [Cell::new(100, 20), Cell::new(10, 100)] {
        let base = || base.clone();
        let bursts = Loss::in_runs(0.01, 5.0);
        cells.push(base());
        cells.extend([0.1, 1.0, 3.0].map(|percent| base().loss(percent)));
        cells.push(base().but("bursts", |cell| cell.loss = bursts));
        cells.extend([5, 50].map(|late| base().reorder(late)));
        cells.extend([0.1, 4.0].map(|products| base().queue(products)));
    }
    cells.extend([1, 100, 300].map(|round_trip| Cell::new(100, round_trip)));
    cells.extend([1, 20, 300].map(|round_trip| Cell::new(10, round_trip)));
    cells.extend([1, 20, 100].map(|round_trip| Cell::new(1000, round_trip)));
    cells.extend(pairs());
    cells
}

/// What comes together on real paths.
fn pairs() -> [Cell; 9] {
    let slow = || Cell::new(10, 100);
    let fast = || Cell::new(100, 20);
    [
        Cell::new(10, 20).loss(1.0),
        Cell::new(100, 100).loss(0.1),
        Cell::new(10, 300).loss(1.0),
        Cell::new(1000, 20).loss(0.1),
        fast().loss(1.0).reorder(5),
        slow().loss(1.0).queue(0.1),
        slow().but("jitter20", |cell| cell.jitter = Duration::from_millis(20)),
        slow().loss(1.0).but("acks-lost20", |cell| cell.ack_loss = Loss::random(0.2)),
        fast().but("acks-1mbit", |cell| cell.rate[1] = MBIT),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_cell_has_a_name_of_its_own_and_something_to_do() {
        let cells = all();
        let names: BTreeSet<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(names.len(), cells.len());
        for cell in &cells {
            assert!(cell.octets(6.0) >= LEAST_OCTETS as u64, "{}", cell.name);
            assert!(cell.expected_rate() < cell.rate[0] as f64, "{}", cell.name);
        }
    }

    #[test]
    fn a_queue_is_as_deep_as_its_name_says() {
        let deep = Cell::new(100, 20).queue(4.0).profiles();
        assert_eq!(deep[0].queue, QueueLimit::Octets(1_000_000)); // 250,000 octets under way
        assert_eq!(deep[0].delay + deep[1].delay, Duration::from_millis(20));
        let shallow = Cell::new(10, 1).profiles();
        assert_eq!(shallow[0].queue, QueueLimit::Octets(3028));
    }
}
