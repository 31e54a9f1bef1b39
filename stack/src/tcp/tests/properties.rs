//! What no path may change: a middlebox that resegments and a reader that dawdles deliver the octets, and the fast path
//! says and takes what the slow path does.

use super::super::*;
use super::knobs::config;
use crate::buf::{Chain, Pool};
use crate::rng::Rng;
use crate::time::{Duration, Instant, earliest};
use crate::wire::{
    Control, Endpoint, FlowTuple, Options, Parsed, Run, RxChecksum, RxPacket, Segment,
    SegmentOptions, SeqNum, SynOptions, Timestamps, TrafficClass, UnscaledWindow, emit, parse,
    segment_packet,
};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use proptest::prelude::*;

const MS: fn(u64) -> Duration = Duration::from_millis;
const DELAY: fn() -> Duration = || MS(5);
const FRAMES: u32 = 4_000;

fn octet(i: usize) -> u8 {
    (i * 31 + i / 251) as u8
}

fn octets(pool: &Pool, from: usize, n: usize) -> Chain {
    let bytes: Vec<u8> = (from..from + n).map(octet).collect();
    Chain::copy_from(pool, 100, &bytes).expect("frames")
}

fn opening(rng: &mut Rng) -> Opening {
    Opening { iss: SeqNum(rng.u32()), ts_offset: rng.u32(), path_mss: u16::MAX, default_mss: 536 }
}

/// A client, and a server once the SYN is there.
struct Ends {
    alive: Vec<Stream>,
    cfg: Rc<TcpConfig>,
    opening: Opening,
}

impl Ends {
    fn new(cfg: [TcpConfig; 2], rng: &mut Rng, now: Instant) -> Ends {
        let [client, server] = cfg.map(Rc::new);
        let alive = alloc::vec![Stream::connect(&client, opening(rng), now)];
        Ends { alive, cfg: server, opening: opening(rng) }
    }

    fn receive(&mut self, end: usize, segment: Segment, now: Instant) {
        if let Some(stream) = self.alive.get_mut(end) {
            stream.on_segment(segment, now);
            stream.assert_invariants();
        } else if segment.control == Control::Syn {
            let mut server = Stream::accept(&self.cfg, &segment, self.opening, now);
            server.answer(now);
            self.alive.push(server);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.alive.iter().fold(None, |at, end| earliest(at, end.deadline()))
    }

    fn over(&self) -> bool {
        let over = |s: &Stream| matches!(s.phase(), Phase::TimeWait | Phase::Closed(_));
        self.alive.len() == 2 && self.alive.iter().all(over)
    }
}

/// Cuts a segment before the octet `n` of its text; PSH and FIN stay with the last.
fn split(mut front: Segment, n: u32) -> (Segment, Segment) {
    let text = front.text.split_off(n);
    let mut back = front.clone();
    (back.seq, back.text) = (front.seq + n, text);
    (front.push, front.control) = (false, Control::None);
    (front, back)
}

/// Whether `back` carries on where `front` ends, under the same options.
fn adjacent(front: &Segment, back: &Segment) -> bool {
    let text = !front.text.is_empty() && !back.text.is_empty();
    let plain = front.control == Control::None
        && matches!(back.control, Control::None | Control::Fin)
        && front.ack.is_some()
        && back.ack.is_some();
    text && plain
        && front.seq + front.text.len() == back.seq
        && front.options == back.options
        && (front.ecn, front.traffic_class) == (back.ecn, back.traffic_class)
        && front.text.len() + back.text.len() < 30_000
}

/// How often a path does what to a segment.
#[derive(Clone, Debug)]
struct Habits {
    lose: f64,
    delay: f64,
    double: f64,
    split: f64,
    merge: f64,
}

/// One direction of a path through a middlebox.
struct Way {
    habits: Habits,
    /// By time of arrival and number.
    under_way: BTreeMap<(Instant, u64), Segment>,
    sent: u64,
}

impl Way {
    /// A super-segment as its port cuts it.
    fn send(&mut self, tx: TxSegment, rng: &mut Rng, now: Instant) {
        let mut rest = tx.segment;
        let size = u32::from(tx.gso_size);
        while size > 0 && rest.text.len() > size {
            let (front, back) = split(rest, size);
            self.carry(front, rng, now);
            rest = back;
        }
        self.carry(rest, rng, now);
    }

    fn carry(&mut self, segment: Segment, rng: &mut Rng, now: Instant) {
        if rng.chance(self.habits.lose) {
            return;
        }
        if rng.chance(self.habits.merge)
            && let Some(mut last) = self.under_way.last_entry()
            && adjacent(last.get(), &segment)
        {
            let front = last.get_mut();
            let mut text = core::mem::take(&mut front.text);
            text.append(segment.text);
            let seq = front.seq;
            *front = Segment { seq, text, ..segment };
            return;
        }
        if segment.text.len() > 1 && rng.chance(self.habits.split) {
            let at = 1 + rng.below(segment.text.len() - 1);
            let (front, back) = split(segment, at);
            self.put(front, rng, now);
            return self.put(back, rng, now);
        }
        self.put(segment, rng, now);
    }

    fn put(&mut self, segment: Segment, rng: &mut Rng, now: Instant) {
        let copies = if rng.chance(self.habits.double) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if rng.chance(self.habits.delay) { rng.below(30_000) } else { 0 };
            let at = now + DELAY() + Duration::from_micros(u64::from(late));
            self.sent += 1;
            self.under_way.insert((at, self.sent), segment.clone());
        }
    }

    fn next(&self) -> Option<Instant> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }
}

/// Takes text in portions, pauses, and says how much more it can take, which may be nothing.
struct Reader {
    held: Chain,
    capacity: u32,
    got: Vec<u8>,
    wakes: Instant,
}

impl Reader {
    fn run(&mut self, stream: &mut Stream, rng: &mut Rng, now: Instant) {
        if now >= self.wakes {
            let n = rng.below(self.held.len() + 1).max(self.held.len().min(500));
            let rest = self.held.split_off(n);
            self.got.extend(core::mem::replace(&mut self.held, rest).to_vec());
            let pause = if rng.chance(0.1) { 3_000 } else { 50 };
            self.wakes = now + MS(u64::from(1 + rng.below(pause)));
        }
        if rng.chance(0.7)
            && let Some(text) = stream.recv()
        {
            self.held.append(text);
        }
        stream.grant(self.capacity.saturating_sub(self.held.len()));
    }
}

/// A path through middleboxes and who is at its ends.
struct World {
    ends: Ends,
    ways: [Way; 2],
    readers: [Reader; 2],
    sent: [usize; 2],
    rng: Rng,
    now: Instant,
}

impl World {
    fn new(cfg: [TcpConfig; 2], habits: [Habits; 2], capacity: [u32; 2], seed: u64) -> World {
        let mut rng = Rng::from_number(seed);
        let now = Instant::from_millis(1_000);
        World {
            ends: Ends::new(cfg, &mut rng, now),
            ways: habits.map(|habits| Way { habits, under_way: BTreeMap::new(), sent: 0 }),
            readers: capacity.map(|capacity| Reader {
                held: Chain::new(),
                capacity,
                got: Vec::new(),
                wakes: now,
            }),
            sent: [0; 2],
            rng,
            now,
        }
    }

    /// What the users do, and all that is to be sent then.
    fn act(&mut self, pool: &Pool, sizes: [usize; 2]) {
        let World { ends, ways, readers, sent, rng, now } = self;
        for (i, stream) in ends.alive.iter_mut().enumerate() {
            while sent[i] < sizes[i] && stream.room() > 0 {
                let n = (rng.below(3000) as usize + 1).min(sizes[i] - sent[i]);
                stream.send(octets(pool, sent[i], n));
                sent[i] += n;
            }
            if sent[i] == sizes[i] {
                stream.close();
            }
            readers[i].run(stream, rng, *now);
            let mut rounds = 0;
            loop {
                while let Some(tx) = stream.poll_transmit(*now) {
                    ways[i].send(tx, rng, *now);
                }
                if stream.deadline().is_none_or(|at| at > *now) {
                    break;
                }
                rounds += 1;
                assert!(rounds < 4, "a deadline spins: {:?}", stream.info());
                stream.on_deadline(*now);
            }
            stream.assert_invariants();
        }
    }

    fn advance(&mut self) {
        let mut at = earliest(self.ways[0].next(), self.ways[1].next());
        at = earliest(at, self.ends.deadline());
        for reader in &self.readers {
            at = earliest(at, Some(reader.wakes.max(self.now + Duration::from_micros(1))));
        }
        self.now = self.now.max(at.expect("readers wake"));
        for (to, way) in [1, 0].into_iter().zip(&mut self.ways) {
            while way.next().is_some_and(|at| at <= self.now) {
                let (_, segment) = way.under_way.pop_first().expect("looked at");
                self.ends.receive(to, segment, self.now);
            }
        }
    }

    fn done(&self, sizes: [usize; 2]) -> bool {
        self.ends.over() && (0..2).all(|i| self.readers[i].got.len() >= sizes[1 - i])
    }
}

fn chance(most: f64) -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..most]
}

fn habits() -> impl Strategy<Value = Habits> {
    (chance(0.12), chance(0.2), chance(0.1), chance(0.6), chance(0.8)).prop_map(
        |(lose, delay, double, split, merge)| Habits { lose, delay, double, split, merge },
    )
}

fn capacity() -> impl Strategy<Value = u32> {
    prop_oneof![Just(2_000u32), 1_000u32..20_000, Just(100_000)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// RFC 9293 3.8, 3.8.6.1 (MUST-34, MUST-35, MUST-36): neither the network nor a window that closes loses an octet.
    #[test]
    fn a_resegmenting_path_and_a_dawdling_reader_deliver_byte_exact(
        a in config(), b in config(), there in habits(), back in habits(), seed: u64,
        capacities in (capacity(), capacity()), sizes in (0usize..40_000, 0usize..40_000),
    ) {
        let pool = Pool::new(FRAMES, 1600);
        let sizes = [sizes.0, sizes.1];
        // RFC 9293 3.8.6.2.2: a window that never is as large as this step is never told of.
        let least = |cfg: &TcpConfig| (cfg.receive_buffer / 2).min(u32::from(cfg.mss));
        let capacities = [capacities.0.max(least(&a)), capacities.1.max(least(&b))];
        let mut world = World::new([a, b], [there, back], capacities, seed);
        let limit = world.now + Duration::from_secs(36_000);
        while !world.done(sizes) {
            world.act(&pool, sizes);
            world.advance();
            prop_assert!(world.now < limit, "no end: {:?}", world.ends.alive);
        }
        world.act(&pool, sizes);
        for i in 0..2 {
            let got = &world.readers[i].got;
            prop_assert_eq!(got.len(), sizes[1 - i]);
            prop_assert!(got.iter().enumerate().all(|(k, b)| *b == octet(k)));
            prop_assert!(world.ends.alive[i].recv_finished());
        }
        for way in &mut world.ways {
            way.under_way.clear();
        }
        prop_assert_eq!(pool.free(), FRAMES, "streams that are over keep no frame");
    }
}

fn flow(from: usize) -> FlowTuple {
    let end = |n: u8| Endpoint::new([10, 0, 0, n].into(), 4000);
    let [local, remote] = if from == 0 { [end(1), end(2)] } else { [end(2), end(1)] };
    FlowTuple { local, remote }
}

/// As it is written on the line, one segment each.
fn packets(from: usize, segment: &Segment, gso_size: u16) -> Vec<Vec<u8>> {
    let cut = segment_packet(emit(flow(from), segment, gso_size));
    cut.map(|mut packet| {
        packet.finish_checksum();
        packet.to_vec()
    })
    .collect()
}

fn received(pool: &Pool, packet: &[u8]) -> RxPacket {
    let octets = Chain::copy_from(pool, 0, packet).expect("frames");
    RxPacket { octets, checksum: RxChecksum::Unknown, gso_size: 0, port: 0 }
}

fn segment_of(packet: RxPacket) -> Segment {
    match parse(packet) {
        Ok(Parsed::Tcp(_, segment)) => segment,
        other => panic!("not TCP: {other:?}"),
    }
}

/// As `Shard::ingest`: what carries a segment of the batch on becomes a part of it.
fn coalesced(pool: &Pool, batch: &[Vec<u8>]) -> Vec<Segment> {
    let mut out: Vec<(Segment, Option<Run>)> = Vec::new();
    'packets: for packet in batch {
        let packet = received(pool, packet);
        for (segment, run) in out.iter_mut().rev().take(8) {
            if let Some(run) = run
                && run.continues_with(&packet)
            {
                let (text, push) = run.take(packet).expect("sound");
                segment.text.append(text);
                segment.push = push;
                continue 'packets;
            }
        }
        let run = Run::of(&packet);
        out.push((segment_of(packet), run));
    }
    out.into_iter().map(|(segment, _)| segment).collect()
}

/// A peer that writes what it likes of a stream of `len` octets: again, overlapping, in any order.
struct Peer {
    iss: SeqNum,
    irs: SeqNum,
    len: u32,
    stamp: u32,
    stamps: bool,
}

impl Peer {
    fn segment(&self, seq: SeqNum, ecr: u32) -> Segment {
        let timestamps = self.stamps.then_some(Timestamps { val: self.stamp, ecr });
        Segment {
            seq,
            ack: Some(self.irs + 1),
            window: UnscaledWindow(5_000),
            options: Options::Segment(SegmentOptions { timestamps, ..Default::default() }),
            ..Default::default()
        }
    }

    /// From the octet `at` on segments of `size` that end before `edge`; the last one has the FIN.
    fn burst(&self, pool: &Pool, at: u32, size: u32, edge: SeqNum, rng: &mut Rng) -> Vec<Vec<u8>> {
        let room = edge.saturating_since(self.iss + 1);
        if at >= room {
            return Vec::new();
        }
        let end = room.min(self.len);
        let mut out = Vec::new();
        let mut at = at;
        for _ in 0..1 + rng.below(12) {
            let n = if rng.chance(0.1) { 1 + rng.below(size) } else { size }.min(end - at);
            let mut segment = self.segment(self.iss + 1 + at, 0);
            segment.text = octets(pool, at as usize, n as usize);
            segment.push = rng.chance(0.1);
            if rng.chance(0.05) {
                segment.traffic_class = TrafficClass(3);
            }
            at += n;
            if at == self.len && room > self.len {
                segment.control = Control::Fin;
            }
            out.extend(packets(0, &segment, 0));
            if at == end {
                break;
            }
        }
        if rng.chance(0.3) {
            let (i, j) = (rng.below(out.len() as u32), rng.below(out.len() as u32));
            out.swap(i as usize, j as usize);
        }
        if rng.chance(0.2) {
            out.remove(rng.below(out.len() as u32) as usize);
        }
        out
    }
}

/// A stream that `peer` opened.
fn opened(cfg: &Rc<TcpConfig>, peer: &mut Peer, now: Instant) -> Listener {
    let opening = Opening { iss: peer.irs, ts_offset: 0, path_mss: u16::MAX, default_mss: 536 };
    let timestamps = peer.stamps.then_some(Timestamps { val: peer.stamp, ecr: 0 });
    let options = Options::Syn(SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps,
        ..Default::default()
    });
    let syn = Segment { seq: peer.iss, control: Control::Syn, options, ..Default::default() };
    let mut stream = Stream::accept(cfg, &syn, opening, now);
    stream.answer(now);
    let tx = stream.poll_transmit(now).expect("SYN/ACK");
    let stamps = tx.segment.options.timestamps();
    peer.stamps = stamps.is_some();
    let Options::Syn(options) = &tx.segment.options else { panic!("no SYN/ACK") };
    let scale = options.window_scale.unwrap_or(0);
    let edge = peer.iss + 1 + u32::from(tx.segment.window.0);
    stream.on_segment(peer.segment(peer.iss + 1, stamps.map_or(0, |t| t.val)), now);
    Listener { stream, got: Vec::new(), acked: None, scale, edge }
}

/// A receiver and what it said last.
struct Listener {
    stream: Stream,
    got: Vec<u8>,
    acked: Option<SeqNum>,
    scale: u8,
    /// How far it ever let the peer send.
    edge: SeqNum,
}

impl Listener {
    fn poll(&mut self, now: Instant) {
        while let Some(tx) = self.stream.poll_transmit(now) {
            let ack = tx.segment.ack.expect("synchronized");
            self.acked = Some(ack);
            self.edge = self.edge.max(ack + (u32::from(tx.segment.window.0) << self.scale));
        }
        self.stream.assert_invariants();
    }

    fn read(&mut self) {
        if let Some(text) = self.stream.recv() {
            self.got.extend(text.to_vec());
        }
    }

    fn place(&self) -> Option<(SeqNum, State)> {
        self.stream.tcb().map(|tcb| (tcb.rcv_nxt(), tcb.state()))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    /// What is put together on arrival is taken as if it had come piece by piece.
    #[test]
    fn coalesced_packets_are_received_as_single_ones(
        cfg in config(), len in 1u32..60_000, size in 1u32..1400, seed: u64,
    ) {
        let size = size.max(len / 2_000 + 1);
        let pool = Pool::new(FRAMES, 1600);
        let mut rng = Rng::from_number(seed);
        let (iss, irs) = (SeqNum(rng.u32()), SeqNum(rng.u32()));
        let mut peer = Peer { iss, irs, len, stamp: rng.u32(), stamps: true };
        let cfg = Rc::new(TcpConfig { keepalive: None, ..cfg });
        let mut now = Instant::from_millis(1_000);
        let [mut slow, mut fast] = [(), ()].map(|()| opened(&cfg, &mut peer, now));
        let fin = |l: &Listener| l.stream.recv_finished();
        for _ in 0..100_000 {
            if fin(&slow) {
                break;
            }
            now += MS(u64::from(rng.below(300)));
            peer.stamp += 1;
            let (nxt, _) = slow.place().expect("open");
            let next = nxt.since(iss + 1).min(len);
            let at = if rng.chance(0.2) { rng.below(len) } else { next };
            let edge = slow.edge.min(fast.edge); // an ACK in between may have moved one of them
            let batch = peer.burst(&pool, at, size, edge, &mut rng);
            for packet in &batch {
                slow.stream.on_segment(segment_of(received(&pool, packet)), now);
                slow.poll(now);
            }
            for segment in coalesced(&pool, &batch) {
                fast.stream.on_segment(segment, now);
            }
            fast.poll(now);
            let read = rng.chance(0.7);
            for l in [&mut slow, &mut fast] {
                if l.stream.deadline().is_some_and(|at| at <= now) {
                    l.stream.on_deadline(now);
                }
                if read {
                    l.read();
                }
                l.poll(now);
            }
            prop_assert_eq!(fast.place(), slow.place());
            prop_assert_eq!(fast.got.len(), slow.got.len());
        }
        prop_assert!(fin(&slow) && fin(&fast));
        for l in [&mut slow, &mut fast] {
            if let Some(at) = l.stream.deadline() {
                l.stream.on_deadline(at);
                l.poll(at);
            }
        }
        prop_assert!(slow.got.iter().enumerate().all(|(k, b)| *b == octet(k)));
        prop_assert!(fast.got == slow.got && slow.got.len() == len as usize);
        prop_assert_eq!(fast.acked, slow.acked);
        prop_assert_eq!(slow.acked, Some(iss + len + 2));
    }
}

/// When which end is given how many octets; at the end both close.
type Plan = Vec<(u64, bool, u16)>;

/// Everything that is on the line: when, from whom, what.
type Log = Vec<(Instant, usize, Vec<u8>)>;

/// Runs a lossless exchange and returns what was sent, cut into segments.
fn recorded(cfg: [TcpConfig; 2], plan: &Plan, seed: u64) -> Log {
    let pool = Pool::new(400, 16_384);
    let mut rng = Rng::from_number(seed);
    let mut now = Instant::from_millis(1_000);
    let mut ends = Ends::new(cfg, &mut rng, now);
    let mut plan: VecDeque<_> =
        plan.iter().map(|(at, client, n)| (now + MS(*at), usize::from(!client), *n)).collect();
    let mut under_way: VecDeque<(Instant, usize, Vec<u8>)> = VecDeque::new();
    let (mut log, mut sent) = (Log::new(), [0; 2]);
    while !ends.over() {
        while let Some((_, end, n)) = plan.pop_front_if(|(at, ..)| *at <= now) {
            if let Some(stream) = ends.alive.get_mut(end) {
                stream.send(octets(&pool, sent[end], usize::from(n)));
                sent[end] += usize::from(n);
            }
        }
        while let Some((_, to, packet)) = under_way.pop_front_if(|(at, ..)| *at <= now) {
            ends.receive(to, segment_of(received(&pool, &packet)), now);
        }
        for (i, stream) in ends.alive.iter_mut().enumerate() {
            if plan.is_empty() {
                stream.close();
            }
            if stream.deadline().is_some_and(|at| at <= now) {
                stream.on_deadline(now);
            }
            drop(stream.recv());
            while let Some(tx) = stream.poll_transmit(now) {
                for packet in packets(i, &tx.segment, tx.gso_size) {
                    under_way.push_back((now + DELAY(), 1 - i, packet.clone()));
                    log.push((now, i, packet));
                }
            }
        }
        let next =
            earliest(under_way.front().map(|(at, ..)| *at), plan.front().map(|(at, ..)| *at));
        let Some(next) = earliest(next, ends.deadline()) else { break };
        now = now.max(next);
        assert!(log.len() < 100_000 && now < Instant::from_millis(3_600_000), "no end");
    }
    log
}

/// A packet of a log in words, but for its text.
fn told((at, from, packet): &(Instant, usize, Vec<u8>)) -> (Instant, usize, usize, Segment) {
    let segment = segment_of(received(&Pool::new(8, 16_384), packet));
    (*at, *from, packet.len(), Segment { text: Chain::new(), ..segment })
}

fn plan() -> impl Strategy<Value = Plan> {
    // Parts longer than any segment: between shorter ones a super-segment is cut early and may hold less.
    let one = (0u64..100, any::<bool>(), 9_000u16..16_000);
    // Each end at one time: whether cwnd counts as used up when text runs out depends on `gso_max`.
    (proptest::collection::vec(one, 1..8), 0u64..100, 0u64..100).prop_map(|(mut all, a, b)| {
        for (at, client, _) in &mut all {
            *at = if *client { a } else { b };
        }
        all.sort();
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// A port that cuts super-segments puts on the line what a sender without them does: the same segments.
    #[test]
    fn super_segments_are_cut_into_what_single_segments_are(
        a in config(), b in config(), plan in plan(), seed: u64, cubic: bool,
    ) {
        let congestion = if cubic { Algorithm::Cubic } else { Algorithm::NewReno };
        let with = |gso_max| [&a, &b].map(|cfg| TcpConfig {
            congestion,
            pacing: Pacing::Off,
            gso_max,
            ..cfg.clone()
        });
        let cut = recorded(with(65_000), &plan, seed);
        let single = recorded(with(1), &plan, seed);
        for (i, (cut, single)) in cut.iter().zip(&single).enumerate() {
            prop_assert!(cut == single, "packet {i}:\n{:?}\n{:?}", told(cut), told(single));
        }
        prop_assert_eq!(cut.len(), single.len());
    }
}
