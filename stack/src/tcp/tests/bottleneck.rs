//! Flows that share a bottleneck, in virtual time: rate, delay, a queue that drops at its tail, random loss.

use super::super::*;
use crate::buf::{Chain, Pool};
use crate::rng::Rng;
use crate::time::{Duration, Instant, earliest};
use crate::wire::{Control, Segment, SeqNum};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// What the sender of a flow is given to send.
#[derive(Clone, Copy, Debug)]
pub(super) enum Supply {
    /// Always more than can be sent.
    Endless,
    /// Octets at a time, this far apart.
    Portions(u32, Duration),
    /// Endless up to the first instant and from the second on.
    Pause(Instant, Instant),
}

/// The shared direction; ACKs come back after `delay`, unhindered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Octets per second, with 52 of header a segment.
    pub(super) rate: u64,
    pub(super) delay: Duration,
    /// Octets.
    pub(super) queue: u64,
    pub(super) loss: f64,
    /// Of so many segments each comes later by as much.
    pub(super) late: (f64, Duration),
}

impl Link {
    /// `mbits` and a round trip of `rtt_ms`; the queue holds `bdps` of their product.
    pub(super) fn new(mbits: u64, rtt_ms: u64, bdps: f64) -> Link {
        let rate = mbits * 125_000;
        let queue = ((rate * rtt_ms / 1000) as f64 * bdps) as u64;
        Link {
            rate,
            delay: Duration::from_micros(rtt_ms * 500),
            queue,
            loss: 0.0,
            late: (0.0, Duration::ZERO),
        }
    }
}

pub(super) struct Flow {
    pub(super) sender: Stream,
    receiver: Option<Stream>,
    opening: Opening,
    cfg: Rc<TcpConfig>,
    supply: Supply,
    next_portion: Instant,
    pub(super) received: u64,
    /// When text left, and how much: one entry for each piece.
    pub(super) departures: Vec<(Instant, u32)>,
}

enum Parcel {
    Text(usize, Segment),
    Ack(usize, Segment),
}

pub(super) struct Net {
    pub(super) link: Link,
    pub(super) flows: Vec<Flow>,
    pub(super) now: Instant,
    /// How late timers are served, at most: a wheel's tick.
    pub(super) tick: Duration,
    free_at: Instant,
    parcels: BTreeMap<(u64, u64), Parcel>,
    count: u64,
    rng: Rng,
    chunk: Chain,
    pub(super) dropped: u64,
    /// Longest wait in the queue since it was last set to zero.
    pub(super) longest_wait: Duration,
}

impl Net {
    pub(super) fn new(link: Link, seed: u64) -> Net {
        let pool = Pool::new(64, 1600);
        let mut chunk = Chain::new();
        for _ in 0..45 {
            chunk.append(Chain::copy_from(&pool, 0, &[7; 1448]).unwrap());
        }
        Net {
            link,
            flows: Vec::new(),
            now: Instant::from_millis(1000),
            tick: Duration::ZERO,
            free_at: Instant::ZERO,
            parcels: BTreeMap::new(),
            count: 0,
            rng: Rng::from_number(seed),
            chunk,
            dropped: 0,
            longest_wait: Duration::ZERO,
        }
    }

    /// A flow that opens now.
    pub(super) fn open(&mut self, cfg: &TcpConfig, supply: Supply) -> usize {
        let cfg = Rc::new(cfg.clone());
        let opening = Opening {
            iss: SeqNum(self.rng.u32()),
            ts_offset: self.rng.u32(),
            path_mss: u16::MAX,
            default_mss: 536,
        };
        let other = Opening {
            iss: SeqNum(self.rng.u32()),
            ts_offset: self.rng.u32(),
            path_mss: u16::MAX,
            default_mss: 536,
        };
        self.flows.push(Flow {
            sender: Stream::connect(&cfg, opening, self.now),
            receiver: None,
            opening: other,
            cfg,
            supply,
            next_portion: self.now,
            received: 0,
            departures: Vec::new(),
        });
        self.flows.len() - 1
    }

    /// Runs for `span`.
    pub(super) fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while self.step(until) {}
    }

    /// Octets that flow `i` delivered in `span`, in octets per second of text.
    pub(super) fn goodput(&mut self, span: Duration) -> Vec<f64> {
        let before: Vec<u64> = self.flows.iter().map(|flow| flow.received).collect();
        self.run(span);
        let rates = self.flows.iter().zip(before);
        rates.map(|(flow, old)| (flow.received - old) as f64 / span.as_secs_f64()).collect()
    }

    /// What text can have of the link.
    pub(super) fn capacity(&self) -> f64 {
        self.link.rate as f64 * 1448.0 / 1500.0
    }

    fn step(&mut self, until: Instant) -> bool {
        (0..self.flows.len()).for_each(|i| self.flush(i));
        let mut at = self.parcels.keys().next().map(|(at, _)| Instant::from_nanos(*at));
        for flow in &self.flows {
            let timers = earliest(
                flow.sender.deadline(),
                flow.receiver.as_ref().and_then(|receiver| receiver.deadline()),
            );
            at = earliest(at, timers.map(|due| self.served_at(due)));
            at = match flow.supply {
                Supply::Portions(..) => earliest(at, Some(flow.next_portion)),
                Supply::Pause(_, again) if self.now < again => earliest(at, Some(again)),
                _ => at,
            };
        }
        let Some(at) = at.filter(|at| *at <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(at);
        self.deliver();
        for flow in &mut self.flows {
            if flow.sender.deadline().is_some_and(|due| due <= self.now) {
                flow.sender.on_deadline(self.now);
            }
            if let Some(receiver) = &mut flow.receiver
                && receiver.deadline().is_some_and(|due| due <= self.now)
            {
                receiver.on_deadline(self.now);
            }
        }
        true
    }

    /// The end of the tick in which `due` lies.
    fn served_at(&self, due: Instant) -> Instant {
        match self.tick.as_nanos() as u64 {
            0 => due,
            tick => Instant::from_nanos(due.as_nanos().div_ceil(tick) * tick),
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.parcels.first_entry()
            && entry.key().0 <= self.now.as_nanos()
        {
            match entry.remove() {
                Parcel::Ack(i, segment) => {
                    self.flows[i].sender.on_segment(segment, self.now);
                }
                Parcel::Text(i, segment) => {
                    let flow = &mut self.flows[i];
                    if let Some(receiver) = &mut flow.receiver {
                        receiver.on_segment(segment, self.now);
                        while let Some(text) = receiver.recv() {
                            flow.received += u64::from(text.len());
                        }
                    } else {
                        let mut receiver =
                            Stream::accept(&flow.cfg, &segment, flow.opening, self.now);
                        receiver.answer(self.now);
                        flow.receiver = Some(receiver);
                    }
                }
            }
        }
    }

    fn flush(&mut self, i: usize) {
        let now = self.now;
        let flow = &mut self.flows[i];
        let wants = match &mut flow.supply {
            Supply::Endless => true,
            Supply::Portions(octets, apart) => {
                while flow.next_portion <= now {
                    let mut left = *octets;
                    while left > 0 {
                        let mut text = self.chunk.clone();
                        text.truncate(left.min(text.len()));
                        left -= text.len();
                        flow.sender.send(text);
                    }
                    flow.next_portion += *apart;
                }
                false
            }
            Supply::Pause(from, to) => now < *from || now >= *to,
        };
        while wants && flow.sender.tcb().is_some_and(|tcb| tcb.unsent() < 300_000) {
            flow.sender.send(self.chunk.clone());
        }
        let mut out = Vec::new();
        while let Some(tx) = flow.sender.poll_transmit(now) {
            if !tx.segment.text.is_empty() {
                flow.departures.push((now, tx.segment.text.len()));
            }
            out.push(tx);
        }
        let back = self.link.delay;
        while let Some(receiver) = &mut self.flows[i].receiver
            && let Some(tx) = receiver.poll_transmit(now)
        {
            self.post(now + back, Parcel::Ack(i, tx.segment));
        }
        out.into_iter().for_each(|tx| self.cross(i, tx));
    }

    fn post(&mut self, at: Instant, parcel: Parcel) {
        self.count += 1;
        self.parcels.insert((at.as_nanos(), self.count), parcel);
    }

    /// Cuts a super-segment as a port would and sends the pieces over the bottleneck.
    fn cross(&mut self, i: usize, tx: TxSegment) {
        let size = if tx.gso_size == 0 { u32::MAX } else { u32::from(tx.gso_size) };
        let mut rest = tx.segment;
        let mut text = core::mem::take(&mut rest.text);
        loop {
            let after = if text.len() > size { text.split_off(size) } else { Chain::new() };
            let mut piece = rest.clone();
            rest.seq += text.len();
            piece.text = core::mem::replace(&mut text, after);
            if piece.control == Control::Fin && !text.is_empty() {
                piece.control = Control::None;
            }
            self.queue_one(i, piece);
            if text.is_empty() {
                break;
            }
        }
    }

    fn queue_one(&mut self, i: usize, segment: Segment) {
        let octets = u64::from(segment.text.len()) + 52;
        let start = self.free_at.max(self.now);
        let wait = start.since(self.now);
        let waiting = (wait.as_secs_f64() * self.link.rate as f64) as u64;
        if waiting + octets > self.link.queue.max(3_000) || self.rng.chance(self.link.loss) {
            self.dropped += 1;
            return;
        }
        self.longest_wait = self.longest_wait.max(wait);
        self.free_at = start + Duration::from_nanos(octets * 1_000_000_000 / self.link.rate);
        let (share, late) = self.link.late;
        let late = if self.rng.chance(share) { late } else { Duration::ZERO };
        self.post(self.free_at + self.link.delay + late, Parcel::Text(i, segment));
    }
}
