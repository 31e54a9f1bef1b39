//! Two streams over a path with rate, delay, queue, loss, reordering and duplication, in virtual time.

use super::super::*;
use crate::buf::{Chain, Pool};
use crate::rng::Rng;
use crate::time::{Duration, Instant, earliest};
use crate::wire::{Control, Options, Segment, SeqNum};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use proptest::prelude::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// One direction of a path.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// Octets per second; 0 = without limit.
    rate: u64,
    delay: Duration,
    /// Octets that may wait.
    queue: u64,
    loss: f64,
    reorder: f64,
    duplicate: f64,
}

struct Wire {
    path: Path,
    free_at: Instant,
    arrivals: BTreeMap<(u64, u64), Segment>,
    count: u64,
    dropped: u64,
}

impl Wire {
    fn new(path: Path) -> Wire {
        Wire { path, free_at: Instant::ZERO, arrivals: BTreeMap::new(), count: 0, dropped: 0 }
    }

    /// Cuts a super-segment as a port would, then queues each segment or drops it.
    fn send(&mut self, tx: TxSegment, rng: &mut Rng, now: Instant) {
        let size = if tx.gso_size == 0 { u32::MAX } else { u32::from(tx.gso_size) };
        let mut rest = tx.segment;
        let mut text = core::mem::take(&mut rest.text);
        loop {
            let after = if text.len() > size { text.split_off(size) } else { Chain::new() };
            let mut piece = rest.clone();
            let len = text.len();
            piece.text = core::mem::replace(&mut text, after);
            if !text.is_empty() && piece.control == Control::Fin {
                piece.control = Control::None;
            }
            self.queue_one(piece, rng, now);
            rest.seq += len;
            if text.is_empty() {
                break;
            }
        }
    }

    fn queue_one(&mut self, segment: Segment, rng: &mut Rng, now: Instant) {
        let octets = u64::from(segment.text.len()) + 52;
        let start = self.free_at.max(now);
        if self.path.rate > 0 {
            let waiting = start.since(now).as_nanos() as u64 * self.path.rate / 1_000_000_000;
            if waiting + octets > self.path.queue {
                self.dropped += 1;
                return;
            }
            self.free_at = start + Duration::from_nanos(octets * 1_000_000_000 / self.path.rate);
        }
        let sent = if self.path.rate > 0 { self.free_at } else { now };
        if rng.chance(self.path.loss) {
            self.dropped += 1;
            return;
        }
        let copies = if rng.chance(self.path.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let late =
                if rng.chance(self.path.reorder) { MS(u64::from(rng.below(30))) } else { MS(0) };
            self.count += 1;
            let at = sent + self.path.delay + late;
            self.arrivals.insert((at.as_nanos(), self.count), segment.clone());
        }
    }

    fn next(&self) -> Option<Instant> {
        self.arrivals.keys().next().map(|(at, _)| Instant::from_nanos(*at))
    }

    fn receive(&mut self, now: Instant) -> Option<Segment> {
        let key = *self.arrivals.keys().next().filter(|(at, _)| *at <= now.as_nanos())?;
        self.arrivals.remove(&key)
    }
}

/// A client that connects, a server that accepts, a wire each way.
struct Net {
    ends: [Stream; 2],
    wires: [Wire; 2],
    server: Option<Opening>,
    cfg: Rc<TcpConfig>,
    rng: Rng,
    now: Instant,
    checks: bool,
}

impl Net {
    fn new(cfg: &[TcpConfig; 2], path: &Path, back: &Path, seed: u64) -> Net {
        let mut rng = Rng::from_number(seed);
        let mut draw =
            || Opening { iss: SeqNum(rng.u32()), ts_offset: rng.u32(), path_mss: u16::MAX };
        let (a, b) = (draw(), draw());
        let now = Instant::from_millis(1000);
        let cfg = cfg.clone().map(Rc::new);
        let client = Stream::connect(&cfg[0], a, now);
        // Replaced when the SYN arrives.
        let server = Stream::connect(&cfg[1], b, now);
        Net {
            ends: [client, server],
            wires: [Wire::new(path.clone()), Wire::new(back.clone())],
            server: Some(b),
            cfg: cfg[1].clone(),
            rng,
            now,
            checks: true,
        }
    }

    fn flush(&mut self) {
        for i in 0..2 {
            if i == 1 && self.server.is_some() {
                continue;
            }
            let mut budget = 10_000;
            while let Some(tx) = self.ends[i].poll_transmit(self.now) {
                self.wires[i].send(tx, &mut self.rng, self.now);
                budget -= 1;
                assert!(budget > 0, "poll_transmit never ends");
            }
            if self.checks {
                self.ends[i].assert_invariants();
            }
        }
    }

    /// Runs to the next event; false if there is none before `until`.
    fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let mut at = earliest(self.wires[0].next(), self.wires[1].next());
        at = earliest(at, self.ends[0].deadline());
        if self.server.is_none() {
            at = earliest(at, self.ends[1].deadline());
        }
        let Some(at) = at.filter(|at| *at <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.now = self.now.max(at);
        for i in 0..2 {
            let to = 1 - i;
            while let Some(segment) = self.wires[i].receive(self.now) {
                if to == 1
                    && let Some(opening) = self.server
                {
                    if segment.control != Control::Syn {
                        continue;
                    }
                    self.ends[1] = Stream::accept(&self.cfg, &segment, opening, self.now);
                    self.ends[1].answer(self.now);
                    self.server = None;
                    continue;
                }
                self.ends[to].on_segment(segment, self.now);
                if self.checks {
                    self.ends[to].assert_invariants();
                }
            }
            if self.ends[i].deadline().is_some_and(|at| at <= self.now)
                && !(i == 1 && self.server.is_some())
            {
                self.ends[i].on_deadline(self.now);
            }
        }
        true
    }
}

fn octet(i: usize) -> u8 {
    (i * 31 + i / 251) as u8
}

/// Both ends send `sizes` octets and close; everything must arrive, and every frame come back.
fn exchange(cfg: [TcpConfig; 2], path: Path, back: Path, seed: u64, sizes: [usize; 2]) {
    let pool = Pool::new(30_000, 1600);
    {
        let mut net = Net::new(&cfg, &path, &back, seed);
        let mut sent = [0; 2];
        let mut got = [Vec::new(), Vec::new()];
        let limit = net.now + Duration::from_secs(3600);
        let mut steps = 0;
        loop {
            for i in 0..2 {
                if i == 1 && net.server.is_some() {
                    continue;
                }
                while sent[i] < sizes[i] && net.ends[i].room() > 1500 {
                    let n = (net.rng.below(3000) as usize + 1).min(sizes[i] - sent[i]);
                    let bytes: Vec<u8> = (sent[i]..sent[i] + n).map(octet).collect();
                    net.ends[i].send(Chain::copy_from(&pool, 100, &bytes).unwrap());
                    sent[i] += n;
                }
                if sent[i] == sizes[i] {
                    net.ends[i].close();
                }
                // Reads slowly now and then, so that the window closes.
                if net.rng.chance(0.5)
                    && let Some(text) = net.ends[i].recv()
                {
                    got[i].extend(text.to_vec());
                }
            }
            steps += 1;
            assert!(
                steps < 2_000_000,
                "no end: {net:?}",
                net = (net.ends[0].info(), net.ends[1].info())
            );
            if !net.step(limit) {
                break;
            }
            let over = |s: &Stream| matches!(s.phase(), Phase::TimeWait | Phase::Closed(_));
            if over(&net.ends[0]) && over(&net.ends[1]) && net.server.is_none() {
                break;
            }
        }
        for ((end, got), want) in net.ends.iter_mut().zip(&mut got).zip([sizes[1], sizes[0]]) {
            if let Some(text) = end.recv() {
                got.extend(text.to_vec());
            }
            assert_eq!(got.len(), want, "seed {seed}: {:?}", end.phase());
            assert!(got.iter().enumerate().all(|(k, b)| *b == octet(k)), "seed {seed}");
            assert!(end.recv_finished());
        }
    }
    assert_eq!(pool.free(), 30_000, "every frame is back");
}

fn clean() -> Path {
    Path { rate: 0, delay: MS(5), queue: u64::MAX, loss: 0.0, reorder: 0.0, duplicate: 0.0 }
}

#[test]
fn a_clean_path_carries_both_directions() {
    exchange([TcpConfig::default(), TcpConfig::default()], clean(), clean(), 1, [200_000, 100_000]);
}

fn some_config() -> impl Strategy<Value = TcpConfig> {
    (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        500u16..1460,
        prop_oneof![Just(4_000u32), Just(40_000), Just(1 << 20)],
        prop_oneof![Just(1u32), Just(65_000)],
    )
        .prop_map(|(reno, timestamps, sack, nagle, mss, receive_buffer, gso_max)| TcpConfig {
            congestion: if reno { Algorithm::NewReno } else { Algorithm::Cubic },
            timestamps,
            sack,
            nagle,
            mss,
            receive_buffer,
            send_buffer: 100_000,
            gso_max,
            ..Default::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_path_delivers_byte_exact(
        a in some_config(), b in some_config(), seed: u64,
        loss in 0.0f64..0.15, reorder in 0.0f64..0.2, duplicate in 0.0f64..0.1,
        sizes in (0usize..60_000, 0usize..60_000),
    ) {
        let path = Path { loss, reorder, duplicate, ..clean() };
        let back = Path { loss: loss / 2.0, ..path.clone() };
        let patient = |c: TcpConfig| TcpConfig { syn_retries: 30, data_retries: 30, ..c };
        exchange([patient(a), patient(b)], path, back, seed, [sizes.0, sizes.1]);
    }
}

/// What a bulk transfer did.
#[derive(Debug)]
#[allow(dead_code, reason = "printed")]
struct Outcome {
    goodput: f64,
    rtos: u32,
    recoveries: u32,
    dropped: u64,
    retransmitted: u64,
}

/// Goodput between 1 s and 10 s as a share of what the link can carry.
fn bulk(algorithm: Algorithm, delay_ms: u64, loss: f64, gso_max: u32, seed: u64) -> Outcome {
    let rate = 12_500_000;
    let bdp = rate * 2 * delay_ms / 1000;
    let path = Path { rate, delay: MS(delay_ms), queue: bdp, loss, ..clean() };
    let back = Path { delay: MS(delay_ms), ..clean() };
    let cfg = TcpConfig { congestion: algorithm, gso_max, ..Default::default() };
    let pool = Pool::new(8_000, 1600);
    let mut net = Net::new(&[cfg.clone(), cfg], &path, &back, seed);
    net.checks = false;
    let bytes = alloc::vec![7u8; 1448];
    let (begin, end) = (net.now + MS(1000), net.now + MS(10_000));
    let (mut got, mut at_begin) = (0u64, 0);
    loop {
        while net.ends[0].room() > (3 << 20) {
            net.ends[0].send(Chain::copy_from(&pool, 0, &bytes).unwrap());
        }
        if let Some(text) = net.ends[1].recv() {
            got += u64::from(text.len());
        }
        if net.now < begin {
            at_begin = got;
        }
        if !net.step(end) {
            break;
        }
    }
    let info = net.ends[0].info();
    Outcome {
        goodput: (got - at_begin) as f64 / (rate as f64 * 9.0 * 1448.0 / 1500.0),
        rtos: info.rto_count,
        recoveries: info.recoveries,
        dropped: net.wires[0].dropped,
        retransmitted: info.bytes_retrans,
    }
}

#[test]
fn cubic_fills_a_100_mbit_link() {
    for delay in [5, 15] {
        for gso_max in [1, 65_000] {
            let outcome = bulk(Algorithm::Cubic, delay, 0.0, gso_max, 7);
            std::eprintln!("cubic rtt {} ms, gso {gso_max}: {outcome:?}", 2 * delay);
            assert!(outcome.goodput > 0.97, "rtt {} ms: {outcome:?}", 2 * delay);
            assert_eq!(outcome.rtos, 0, "no loss needs a timeout: {outcome:?}");
        }
    }
}

/// Random loss at one in 10,000. What CUBIC can do with it is bounded by its response function (RFC 9438 5.1): about
/// 120 segments in the Reno-friendly region, which is 1.4 times the pipe at 10 ms and half of it at 30 ms. Single runs
/// vary with how the losses cluster, so the mean counts.
#[test]
fn cubic_stands_a_little_random_loss() {
    for (delay, least) in [(5, 0.95), (15, 0.6)] {
        let seeds = 1..=8;
        let runs: Vec<Outcome> =
            seeds.map(|seed| bulk(Algorithm::Cubic, delay, 0.0001, 65_000, seed)).collect();
        let mean = runs.iter().map(|o| o.goodput).sum::<f64>() / runs.len() as f64;
        std::eprintln!("cubic rtt {} ms, 0.01 % loss: {mean} {runs:?}", 2 * delay);
        assert!(mean > least, "rtt {} ms: {mean} {runs:?}", 2 * delay);
        assert!(runs.iter().all(|o| o.rtos == 0), "{runs:?}");
    }
}

#[test]
fn newreno_fills_a_100_mbit_link() {
    for delay in [5, 15] {
        let outcome = bulk(Algorithm::NewReno, delay, 0.0, 1, 7);
        std::eprintln!("newreno rtt {} ms: {outcome:?}", 2 * delay);
        assert!(outcome.goodput > 0.95, "{outcome:?}");
    }
}

#[test]
fn options_never_push_a_segment_beyond_the_mss() {
    let mut net = Net::new(&[TcpConfig::default(), TcpConfig::default()], &clean(), &clean(), 3);
    let pool = Pool::new(4_000, 1600);
    net.step(net.now + MS(1));
    for _ in 0..20 {
        net.step(net.now + MS(1000));
    }
    net.ends[0].send(Chain::copy_from(&pool, 0, &alloc::vec![1; 100_000]).unwrap());
    while let Some(tx) = net.ends[0].poll_transmit(net.now) {
        let Options::Segment(options) = &tx.segment.options else { panic!("no SYN here") };
        let stamps = if options.timestamps.is_some() { 12 } else { 0 };
        let size = if tx.gso_size == 0 { tx.segment.text.len() } else { u32::from(tx.gso_size) };
        assert!(size + stamps <= 1460, "{size}");
        assert!(options.sack.is_empty());
    }
}
