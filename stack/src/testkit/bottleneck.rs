//! Streams over one bottleneck, segment by segment: no packet is formatted, so that 10 Gbit/s run in a test.
#![forbid(unsafe_code)]

use crate::buf::Chain;
use crate::rng::Rng;
use crate::tcp::{Opening, Stream, TcpConfig, TxSegment};
use crate::time::{Duration, Instant, earliest};
use crate::wire::{
    Control, Ecn, EcnFlags, Endpoint, FlowTuple, IcmpError, IcmpErrorKind, Segment, SeqNum,
};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// IP and TCP header with Timestamps, octets.
pub const HEADERS: u32 = 52;

/// Which segments a path loses.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Loss {
    /// Each with this probability.
    Random(f64),
    /// Each so manieth, as the response functions of the RFCs assume (RFC 9438 5.1).
    Periodic(u64),
    /// With this probability a burst begins: so many segments in a row, at most those of so long a time.
    Bursts(f64, u32, Duration),
}

/// One direction of a path. The default is instant, endless and perfect.
#[derive(Clone, Debug)]
pub struct Path {
    /// Octets per second; 0: without limit.
    pub rate: u64,
    /// One way.
    pub delay: Duration,
    /// Octets that may wait; more is dropped.
    pub queue: u64,
    /// What is lost behind the queue.
    pub loss: Loss,
    /// Probability that a segment comes late, and by how much at most (evenly distributed).
    pub reorder: (f64, Duration),
    /// Probability that a segment comes twice.
    pub duplicate: f64,
    /// Most octets of text of one super-segment that arrive together, as with GRO; 0: each segment by itself.
    pub gro: u32,
    /// Probability that a packet that may be marked is.
    pub mark: f64,
    /// Probability that the ECN field of a packet is cleared, and that its TCP flags for ECN become anything.
    pub meddle: (f64, f64),
    /// Most octets of text and options that a segment may have; 0: any.
    pub widest: u16,
    /// Probability that a router says so when it drops what is longer.
    pub router: f64,
}

impl Default for Path {
    fn default() -> Path {
        Path {
            rate: 0,
            delay: Duration::ZERO,
            queue: u64::MAX,
            loss: Loss::Random(0.0),
            reorder: (0.0, Duration::ZERO),
            duplicate: 0.0,
            gro: 0,
            mark: 0.0,
            meddle: (0.0, 0.0),
            widest: 0,
            router: 1.0,
        }
    }
}

#[derive(Debug)]
struct Arrival {
    at: Instant,
    flow: usize,
    segment: Segment,
}

/// What becomes of one segment.
enum Fate {
    Lost,
    OnTime,
    /// Late by so much, or twice.
    Apart(Duration, u8),
}

/// One direction at work.
#[derive(Debug)]
pub struct Wire {
    path: Path,
    free_at: Instant,
    /// In order of time.
    arrivals: VecDeque<Arrival>,
    /// Those that others overtake, by time and number.
    late: BTreeMap<(Instant, u64), Arrival>,
    /// Segments still to be lost of a burst, and until when.
    burst: (u32, Instant),
    /// Segments of text carried, and dropped by the queue or lost.
    pub carried: u64,
    /// As said.
    pub dropped: u64,
    /// What routers have to say to the sender, by flow, and when it is there.
    complaints: VecDeque<(Instant, usize, SeqNum)>,
    /// How long segments waited: time and number of segments.
    waits: Vec<(Duration, u32)>,
}

impl Wire {
    fn new(path: Path) -> Wire {
        Wire {
            path,
            free_at: Instant::ZERO,
            arrivals: VecDeque::new(),
            late: BTreeMap::new(),
            burst: (0, Instant::ZERO),
            carried: 0,
            dropped: 0,
            complaints: VecDeque::new(),
            waits: Vec::new(),
        }
    }

    /// Whether a segment of `len` octets of text fits through.
    fn fits(&self, segment: &Segment, len: u32) -> bool {
        let stamps = if segment.options.timestamps().is_some() { 12 } else { 0 };
        self.path.widest == 0 || len == 0 || len + stamps <= u32::from(self.path.widest)
    }

    /// What routers and middleboxes do to the bits of ECN.
    fn meddle(&mut self, segment: &mut Segment, rng: &mut Rng) {
        let class = segment.traffic_class;
        if class.ecn() != Ecn::NotEct && rng.chance(self.path.mark) {
            segment.traffic_class = class.with_ecn(Ecn::Ce);
        }
        let (clear, change) = self.path.meddle;
        if rng.chance(clear) {
            segment.traffic_class = class.with_ecn(Ecn::NotEct);
        }
        if rng.chance(change) {
            segment.ecn = EcnFlags::from_ace(rng.below(8) as u8);
        }
    }

    /// Cuts a super-segment as a port would; what arrives together stays together.
    fn send(&mut self, flow: usize, tx: TxSegment, rng: &mut Rng, now: Instant) {
        let size = if tx.gso_size == 0 { u32::MAX } else { u32::from(tx.gso_size) };
        let mut rest = tx.segment;
        let mut together = 0; // octets at the front of `rest` that arrive at once
        let mut ahead = rest.text.len();
        loop {
            let len = ahead.min(size);
            ahead -= len;
            let fate = if self.fits(&rest, len) {
                self.fate(len, rng, now)
            } else {
                if rng.chance(self.path.router) {
                    let at = now + self.path.delay;
                    self.complaints.push_back((at, flow, rest.seq + together));
                }
                self.dropped += 1;
                Fate::Lost
            };
            if let Fate::OnTime = fate {
                together += len;
                if ahead > 0 && together + size <= self.path.gro {
                    continue;
                }
                let mut piece = cut(&mut rest, together);
                self.meddle(&mut piece, rng);
                self.arrive(flow, piece, Duration::ZERO, now);
            } else {
                if together > 0 {
                    let mut piece = cut(&mut rest, together);
                    self.meddle(&mut piece, rng);
                    self.arrive(flow, piece, Duration::ZERO, now);
                }
                let mut piece = cut(&mut rest, len);
                self.meddle(&mut piece, rng);
                if let Fate::Apart(late, copies) = fate {
                    for _ in 0..copies {
                        self.carried += 1;
                        self.arrive(flow, piece.clone(), late, now);
                    }
                }
            }
            together = 0;
            if ahead == 0 {
                break;
            }
        }
    }

    /// Sends one segment with `len` octets of text through the queue.
    fn fate(&mut self, len: u32, rng: &mut Rng, now: Instant) -> Fate {
        let octets = u64::from(len + HEADERS);
        if self.path.rate > 0 {
            let start = self.free_at.max(now);
            let wait = start.since(now);
            let waiting = wait.as_nanos() * u128::from(self.path.rate) / 1_000_000_000;
            if waiting as u64 + octets > self.path.queue {
                self.dropped += 1;
                return Fate::Lost;
            }
            self.free_at = start + Duration::from_nanos(octets * 1_000_000_000 / self.path.rate);
            self.note_wait(wait);
        }
        if self.is_lost(rng, now) {
            self.dropped += 1;
            return Fate::Lost;
        }
        let (chance, most) = self.path.reorder;
        let late = if rng.chance(chance) {
            Duration::from_micros(u64::from(rng.below(most.as_micros() as u32)))
        } else {
            Duration::ZERO
        };
        let copies = if rng.chance(self.path.duplicate) { 2 } else { 1 };
        if late.is_zero() && copies == 1 {
            self.carried += 1;
            return Fate::OnTime;
        }
        Fate::Apart(late, copies)
    }

    fn note_wait(&mut self, wait: Duration) {
        match self.waits.last_mut() {
            // Near enough: the segments of one super-segment.
            Some((last, n)) if wait.abs_diff(*last) < Duration::from_micros(20) => *n += 1,
            _ => self.waits.push((wait, 1)),
        }
    }

    fn is_lost(&mut self, rng: &mut Rng, now: Instant) -> bool {
        match self.path.loss {
            Loss::Random(p) => rng.chance(p),
            Loss::Periodic(n) => (self.carried + self.dropped) % n == n - 1,
            Loss::Bursts(p, segments, time) => {
                let (left, until) = &mut self.burst;
                if *left == 0 && rng.chance(p) {
                    (*left, *until) = (segments, now + time);
                }
                let lost = *left > 0 && now < *until;
                *left = if lost { *left - 1 } else { 0 };
                lost
            }
        }
    }

    fn arrive(&mut self, flow: usize, segment: Segment, late: Duration, now: Instant) {
        let sent = if self.path.rate > 0 { self.free_at } else { now };
        let at = sent + self.path.delay + late;
        let arrival = Arrival { at, flow, segment };
        if self.arrivals.back().is_none_or(|last| last.at <= at) && late.is_zero() {
            self.arrivals.push_back(arrival);
        } else {
            self.late.insert((at, self.carried), arrival);
        }
    }

    fn next(&self) -> Option<Instant> {
        let late = self.late.first_key_value().map(|((at, _), _)| *at);
        let late = earliest(late, self.complaints.front().map(|(at, _, _)| *at));
        earliest(self.arrivals.front().map(|arrival| arrival.at), late)
    }

    fn receive(&mut self, now: Instant) -> Option<Arrival> {
        let late = self.late.first_key_value().map(|((at, _), _)| *at);
        let next = earliest(self.arrivals.front().map(|arrival| arrival.at), late);
        let next = next.filter(|at| *at <= now)?;
        if self.arrivals.front().is_some_and(|arrival| arrival.at == next) {
            return self.arrivals.pop_front();
        }
        self.late.pop_first().map(|(_, arrival)| arrival)
    }

    fn complaint(&mut self, now: Instant) -> Option<(usize, SeqNum)> {
        self.complaints.front().filter(|(at, _, _)| *at <= now)?;
        self.complaints.pop_front().map(|(_, flow, seq)| (flow, seq))
    }

    /// How long the segments waited of which `share` waited less.
    pub fn wait(&self, share: f64) -> Duration {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let all: u64 = waits.iter().map(|(_, n)| u64::from(*n)).sum();
        let mut left = (all as f64 * share) as u64;
        for (wait, n) in waits {
            if left < u64::from(n) {
                return wait;
            }
            left -= u64::from(n);
        }
        Duration::ZERO
    }

    /// Counts from here.
    pub fn reset(&mut self) {
        (self.carried, self.dropped) = (0, 0);
        self.waits.clear();
    }
}

/// Takes the first `n` octets of text; a FIN stays with the last.
fn cut(rest: &mut Segment, n: u32) -> Segment {
    let after = if n < rest.text.len() { rest.text.split_off(n) } else { Chain::new() };
    let text = core::mem::replace(&mut rest.text, after);
    let mut piece = Segment { text: Chain::new(), ..rest.clone() };
    piece.text = text;
    if !rest.text.is_empty() && piece.control == Control::Fin {
        piece.control = Control::None;
    }
    rest.seq += n;
    piece
}

/// A client that connects and a server that accepts.
#[derive(Debug)]
pub struct Pair {
    /// Client and server.
    pub ends: [Stream; 2],
    /// Until the SYN arrives, and what the server then takes.
    opening: Option<(Opening, Rc<TcpConfig>)>,
    begins: Instant,
    /// To be polled.
    due: bool,
}

impl Pair {
    /// Whether the SYN has arrived.
    pub fn accepted(&self) -> bool {
        self.opening.is_none()
    }

    /// Whether something happened to it in the last step.
    pub fn touched(&self) -> bool {
        self.due
    }

    /// The ends that exist.
    fn alive(&mut self) -> &mut [Stream] {
        let n = if self.opening.is_none() { 2 } else { 1 };
        &mut self.ends[..n]
    }

    fn receive(&mut self, end: usize, segment: Segment, now: Instant) {
        if end == 0 {
            self.ends[0].on_segment(segment, now);
        } else if let Some((opening, cfg)) = &self.opening {
            if segment.control == Control::Syn {
                self.ends[1] = Stream::accept(cfg, &segment, *opening, now);
                self.ends[1].answer(now);
                self.opening = None;
            }
        } else {
            self.ends[1].on_segment(segment, now);
        }
        self.check();
    }

    fn deadline(&self) -> Option<Instant> {
        let server = if self.opening.is_none() { self.ends[1].deadline() } else { None };
        earliest(self.ends[0].deadline(), server).map(|at| at.max(self.begins))
    }

    /// In this crate's own tests.
    fn check(&mut self) {
        #[cfg(test)]
        self.alive().iter().for_each(Stream::assert_invariants);
    }
}

/// Pairs that share a wire each way.
#[derive(Debug)]
pub struct Bottleneck {
    pairs: Vec<Pair>,
    /// From the clients to the servers, and back.
    pub wires: [Wire; 2],
    /// Randomness, also for who drives the test.
    pub rng: Rng,
    /// The virtual time.
    pub now: Instant,
}

impl Bottleneck {
    /// Without pairs yet.
    pub fn new(path: Path, back: Path, seed: u64) -> Bottleneck {
        Bottleneck {
            pairs: Vec::new(),
            wires: [Wire::new(path), Wire::new(back)],
            rng: Rng::from_number(seed),
            now: Instant::from_millis(1_000), // nothing may take the origin for "long ago"
        }
    }

    /// Adds a pair whose client connects `after` from now.
    pub fn add(&mut self, cfg: [Rc<TcpConfig>; 2], after: Duration) {
        let rng = &mut self.rng;
        let mut draw = || Opening {
            iss: SeqNum(rng.u32()),
            ts_offset: rng.u32(),
            path_mss: u16::MAX,
            default_mss: 536,
        };
        let (a, b) = (draw(), draw());
        let begins = self.now + after;
        let ends = [Stream::connect(&cfg[0], a, begins), Stream::connect(&cfg[1], b, begins)];
        let [_, server] = cfg;
        self.pairs.push(Pair { ends, opening: Some((b, server)), begins, due: true });
    }

    /// A pair; it is polled in the next step.
    pub fn pair(&mut self, i: usize) -> &mut Pair {
        self.pairs[i].due = true;
        &mut self.pairs[i]
    }

    /// A pair to look at.
    pub fn peek(&self, i: usize) -> &Pair {
        &self.pairs[i]
    }

    fn flush(&mut self) {
        for (flow, pair) in self.pairs.iter_mut().enumerate() {
            if !pair.due || pair.begins > self.now {
                continue;
            }
            pair.due = false;
            for (end, wire) in pair.alive().iter_mut().zip(&mut self.wires) {
                let mut budget = 100_000;
                while let Some(tx) = end.poll_transmit(self.now) {
                    wire.send(flow, tx, &mut self.rng, self.now);
                    budget -= 1;
                    assert!(budget > 0, "poll_transmit never ends");
                }
            }
            pair.check();
        }
    }

    /// Routers tell the senders what was too big.
    fn complain(&mut self) {
        for (end, wire) in self.wires.iter_mut().enumerate() {
            while let Some((flow, seq)) = wire.complaint(self.now) {
                let router = Endpoint::new([10, 0, 0, 1].into(), 0);
                let error = IcmpError {
                    flow: FlowTuple { local: router, remote: router },
                    seq,
                    from: router.addr,
                    kind: IcmpErrorKind::PacketTooBig { mtu: u32::from(wire.path.widest) + 40 },
                };
                if let Some(stream) = self.pairs[flow].alive().get_mut(end) {
                    stream.on_too_big(&error, self.now);
                }
                self.pairs[flow].due = true;
                self.pairs[flow].check();
            }
        }
    }

    /// Runs to the next event; false if there is none before `until`, and it is `until`.
    pub fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let mut at = earliest(self.wires[0].next(), self.wires[1].next());
        for pair in &self.pairs {
            at = earliest(at, if pair.due { Some(pair.begins) } else { pair.deadline() });
        }
        let Some(at) = at.filter(|at| *at <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.now = self.now.max(at);
        for (end, wire) in [1, 0].into_iter().zip(&mut self.wires) {
            while let Some(Arrival { flow, segment, .. }) = wire.receive(self.now) {
                self.pairs[flow].receive(end, segment, self.now);
                self.pairs[flow].due = true;
            }
        }
        self.complain();
        for pair in &mut self.pairs {
            if pair.begins <= self.now && pair.deadline().is_some_and(|at| at <= self.now) {
                pair.alive().iter_mut().for_each(|end| end.on_deadline(self.now));
                pair.due = true;
            }
        }
        true
    }
}
