//! Connection to Connection over two paths in virtual time: loss, reordering, duplication, cuts, middleboxes, closing.
#![forbid(unsafe_code)]

use super::*;
use crate::buf::{Chain, Pool};
use crate::rng::Rng;
use crate::tcp::{Algorithm, CloseReason, Pacing, Phase, State, Stream, TimeWait, reset_reply};
use crate::time::{Duration, Instant, earliest};
use crate::wire::{Control, Endpoint, FlowTuple, MpCapable, MpJoin, MptcpOption, Options, Segment};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use std::println;

const KEY_A: Key = Key(0x0123_4567_89ab_cdef);
const KEY_B: Key = Key(0xfedc_ba98_7654_3210);
const A: usize = 0;
const B: usize = 1;
const FRAMES: u32 = 16_384;

#[derive(Clone)]
struct Link {
    /// Octets per second.
    rate: f64,
    delay: Duration,
    queue: Duration,
    loss: f64,
    reorder: f64,
    duplicate: f64,
    up: bool,
    busy: [Instant; 2],
}

fn link(mbit: f64, rtt_ms: u64) -> Link {
    Link {
        rate: mbit * 1e6 / 8.0,
        delay: Duration::from_micros(rtt_ms * 500),
        queue: Duration::from_millis(60),
        loss: 0.0,
        reorder: 0.0,
        duplicate: 0.0,
        up: true,
        busy: [Instant::ZERO; 2],
    }
}

enum End {
    Nobody,
    Mptcp(Box<Connection>),
    Plain(Box<Stream>),
}

struct Host {
    cfg: Rc<SharedConfig>,
    end: End,
    rng: Rng,
    to_send: u64,
    sent: u64,
    received: u64,
    close_after: bool,
    closed_sending: bool,
    finished: bool,
    /// Window to grant after each read.
    window: u32,
    established: Option<bool>,
    fallback: Option<FallbackCause>,
    closed: Option<CloseReason>,
    counters: MptcpCounters,
    reading: bool,
    progress: Vec<(Instant, u64)>,
    lingering: Vec<(FlowTuple, Box<TimeWait>)>,
}

type Hook = Box<dyn FnMut(usize, FlowTuple, &mut Segment) -> bool>;

struct Sim {
    now: Instant,
    pool: Pool,
    rng: Rng,
    hosts: [Host; 2],
    links: Vec<Link>,
    wire: BTreeMap<(Instant, u64), (usize, FlowTuple, Segment)>,
    serial: u64,
    /// Sees every segment on the wire with its sender; false drops it.
    hook: Option<Hook>,
    segments: u64,
    /// Steps at one instant: a deadline that is never met would make the clock stand still.
    standing: u32,
}

fn octet(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

fn address(host: usize, path: u8) -> core::net::IpAddr {
    core::net::IpAddr::from([10, 0, path + 1, host as u8 + 1])
}

fn flow() -> FlowTuple {
    FlowTuple {
        local: Endpoint::new(address(A, 0), 40_000),
        remote: Endpoint::new(address(B, 0), 5123),
    }
}

fn config(host: usize) -> MptcpConfig {
    let prefix = |path: u8| crate::wire::Prefix { addr: address(host, path), len: 24 };
    let addresses = (0..2)
        .map(|path| LocalAddress {
            addr: address(host, path),
            signal: host == B && path == 1,
            subflow: host == A,
            backup: false,
            fullmesh: false,
            reach: Vec::from([prefix(path)]),
        })
        .collect();
    MptcpConfig { addresses, join_delay: Duration::ZERO, ..MptcpConfig::default() }
}

impl Host {
    fn new(cfg: MptcpConfig, seed: u64) -> Host {
        Host {
            window: cfg.receive_buffer,
            cfg: Rc::new(cfg.into()),
            end: End::Nobody,
            rng: Rng::from_number(seed),
            to_send: 0,
            sent: 0,
            received: 0,
            close_after: true,
            closed_sending: false,
            finished: false,
            established: None,
            fallback: None,
            closed: None,
            counters: MptcpCounters::default(),
            reading: true,
            progress: Vec::new(),
            lingering: Vec::new(),
        }
    }

    fn mptcp(&mut self) -> &mut Connection {
        match &mut self.end {
            End::Mptcp(c) => c,
            _ => panic!("no connection"),
        }
    }

    /// What an application does: reads all, writes what fits, closes at the end.
    fn serve(&mut self, pool: &Pool, now: Instant) {
        let End::Mptcp(c) = &mut self.end else { return self.serve_plain(pool) };
        while let Some(event) = c.poll_event() {
            match event {
                Event::Established { mptcp, .. } => self.established = Some(mptcp),
                Event::Fallback(cause) => self.fallback = Some(cause),
                Event::Closed(why) => self.closed = Some(why),
                Event::FlowClosed(flow, Some(left)) => self.lingering.push((flow, left)),
                Event::FlowOpened(_) | Event::FlowClosed(_, None) => {}
            }
        }
        while self.reading {
            let Some(text) = c.recv() else { break };
            check(&text, &mut self.received);
        }
        if self.progress.last().is_none_or(|(_, n)| *n != self.received) {
            self.progress.push((now, self.received));
        }
        if self.reading {
            c.grant(self.window);
        }
        self.finished |= c.recv_finished();
        if c.phase() == Phase::Open {
            while self.sent < self.to_send && c.room() > 0 {
                let Some(text) = produce(pool, self.sent, self.to_send) else { break };
                self.sent += u64::from(text.len());
                c.send(text);
            }
        }
        if self.close_after && self.sent == self.to_send && !self.closed_sending {
            self.closed_sending = true;
            c.close();
        }
        self.counters.add(&c.drain_counters());
        c.assert_invariants();
    }

    fn serve_plain(&mut self, pool: &Pool) {
        let End::Plain(s) = &mut self.end else { return };
        while let Some(text) = s.recv() {
            check(&text, &mut self.received);
        }
        s.grant(self.window);
        self.finished |= s.recv_finished();
        if s.phase() == Phase::Open {
            while self.sent < self.to_send && s.room() > 0 {
                let Some(text) = produce(pool, self.sent, self.to_send) else { break };
                self.sent += u64::from(text.len());
                s.send(text);
            }
        }
        if self.close_after && self.sent == self.to_send && !self.closed_sending {
            self.closed_sending = true;
            s.close();
        }
        if let Phase::Closed(why) = s.phase() {
            self.closed = Some(why);
        }
    }
}

fn produce(pool: &Pool, at: u64, end: u64) -> Option<Chain> {
    let bytes: Vec<u8> = (at..end.min(at + 1400)).map(octet).collect();
    if pool.free() < FRAMES / 4 {
        return None;
    }
    Chain::copy_from(pool, 0, &bytes)
}

fn check(text: &Chain, received: &mut u64) {
    for part in text.parts() {
        for byte in part.bytes() {
            assert_eq!(*byte, octet(*received), "octet {received}");
            *received += 1;
        }
    }
}

impl Sim {
    fn new(seed: u64, a: MptcpConfig, b: MptcpConfig) -> Sim {
        Sim {
            now: Instant::from_millis(1000),
            pool: Pool::new(FRAMES, 2048),
            rng: Rng::from_number(seed),
            hosts: [Host::new(a, seed + 1), Host::new(b, seed + 2)],
            links: Vec::from([link(100.0, 10), link(100.0, 30)]),
            wire: BTreeMap::new(),
            serial: 0,
            hook: None,
            segments: 0,
            standing: 0,
        }
    }

    fn standard(seed: u64) -> Sim {
        Sim::new(seed, config(A), config(B))
    }

    fn connect(&mut self) {
        let host = &mut self.hosts[A];
        let c = Connection::connect(
            host.cfg.clone(),
            KEY_A,
            flow(),
            Chain::new(),
            &mut host.rng,
            self.now,
        );
        host.end = End::Mptcp(Box::new(c));
        self.pump(A);
    }

    fn pump(&mut self, at: usize) {
        for _ in 0..10_000 {
            let host = &mut self.hosts[at];
            host.serve(&self.pool, self.now);
            let out = match &mut host.end {
                End::Mptcp(c) => {
                    let out = c.poll_transmit(&mut host.rng, self.now);
                    c.assert_invariants();
                    out
                }
                End::Plain(s) => s.poll_transmit(self.now).map(|tx| (flow().reversed(), tx)),
                End::Nobody => None,
            };
            let Some((flow, tx)) = out else {
                host.serve(&self.pool, self.now); // a poll may have ended the connection
                return;
            };
            let mut segment = tx.segment;
            check_size(&segment, tx.gso_size);
            if tx.gso_size > 0 {
                while segment.text.len() > u32::from(tx.gso_size) {
                    let rest = segment.text.split_off(u32::from(tx.gso_size));
                    let mut head = segment.clone();
                    segment.seq += head.text.len();
                    segment.text = rest;
                    if head.control == Control::Fin {
                        head.control = Control::None;
                    }
                    self.put(at, flow, head);
                }
            }
            self.put(at, flow, segment);
        }
        panic!("host {at} never stops sending");
    }

    fn put(&mut self, from: usize, flow: FlowTuple, mut segment: Segment) {
        self.segments += 1;
        let keep = self.hook.as_mut().is_none_or(|hook| hook(from, flow, &mut segment));
        let core::net::IpAddr::V4(local) = flow.local.addr else { panic!() };
        let path = usize::from(local.octets()[2]) - 1;
        let link = &mut self.links[path];
        let start = link.busy[from].max(self.now);
        let full = start.since(self.now) > link.queue;
        if !keep || !link.up || full || self.rng.chance(link.loss) {
            return;
        }
        let size = f64::from(segment.text.len() + 60);
        link.busy[from] = start + Duration::from_secs_f64(size / link.rate);
        let mut at = link.busy[from] + link.delay;
        let copies = 1 + u64::from(self.rng.chance(link.duplicate));
        if self.rng.chance(link.reorder) {
            at += Duration::from_micros(u64::from(self.rng.below(8000)));
        }
        for _ in 0..copies {
            self.serial += 1;
            let entry = (1 - from, flow.reversed(), segment.clone());
            self.wire.insert((at, self.serial), entry);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let ends = self.hosts.iter().map(|h| match &h.end {
            End::Mptcp(c) => c.deadline(),
            End::Plain(s) => s.deadline(),
            End::Nobody => None,
        });
        ends.fold(self.wire.keys().next().map(|k| k.0), earliest)
    }

    /// One event; false if nothing is left or `until` comes first.
    fn step(&mut self, until: Instant) -> bool {
        let Some(at) = self.deadline().filter(|at| *at <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.standing = if at > self.now { 0 } else { self.standing + 1 };
        assert!(self.standing < 10_000, "time stands still at {:?}\n{}", self.now, self.state());
        self.now = self.now.max(at);
        if self.wire.keys().next().is_some_and(|k| k.0 <= self.now) {
            let Some((_, (to, flow, segment))) = self.wire.pop_first() else { return false };
            self.deliver(to, flow, segment);
            self.pump(to);
            return true;
        }
        for i in [A, B] {
            let host = &mut self.hosts[i];
            match &mut host.end {
                End::Mptcp(c) if c.deadline().is_some_and(|at| at <= self.now) => {
                    c.on_deadline(&mut host.rng, self.now);
                    c.assert_invariants();
                }
                End::Plain(s) if s.deadline().is_some_and(|at| at <= self.now) => {
                    s.on_deadline(self.now);
                }
                _ => continue,
            }
            self.pump(i);
        }
        true
    }

    fn deliver(&mut self, to: usize, flow: FlowTuple, segment: Segment) {
        let host = &mut self.hosts[to];
        let syn = segment.control == Control::Syn && segment.ack.is_none();
        let join = segment.options.mptcp().iter().any(|o| matches!(o, MptcpOption::MpJoin(_)));
        match &mut host.end {
            End::Nobody if syn && to == B => {
                let accepted = Connection::accept(
                    host.cfg.clone(),
                    KEY_B,
                    flow,
                    &segment,
                    0,
                    &mut host.rng,
                    self.now,
                );
                host.end = match accepted {
                    Some(mut c) => {
                        c.answer(Chain::new(), self.now);
                        End::Mptcp(Box::new(c))
                    }
                    None => {
                        let opening = host.cfg.opening(flow, &mut host.rng, self.now);
                        let mut s = Stream::accept(
                            &Rc::new(host.cfg.tcp.clone()),
                            &segment,
                            opening,
                            self.now,
                        );
                        s.answer(self.now);
                        End::Plain(Box::new(s))
                    }
                };
            }
            End::Mptcp(c) => {
                let known = c.subflows().any(|sf| sf.flow == flow);
                if !(known || syn && join) {
                    let left = host.lingering.iter_mut().find(|(f, _)| *f == flow);
                    let reply = match left {
                        Some((_, time_wait)) => time_wait.on_segment(&segment, self.now),
                        None => reset_reply(&segment),
                    };
                    if let Some(reply) = reply {
                        self.put(to, flow, reply);
                    }
                } else if syn && join && !known {
                    let _ = c.join(flow, segment, &mut host.rng, self.now);
                } else {
                    c.on_segment(flow, segment, &mut host.rng, self.now);
                }
            }
            End::Plain(s) => {
                s.on_segment(segment, self.now);
            }
            End::Nobody => {}
        }
    }

    fn run_for(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while self.step(until) {}
    }

    /// Until both ends are closed, or the time is up.
    fn run_to_end(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while self.hosts.iter().any(|h| h.closed.is_none()) && self.step(until) {}
    }

    fn state(&self) -> alloc::string::String {
        let mut out = alloc::string::String::new();
        for h in &self.hosts {
            if let End::Mptcp(c) = &h.end {
                out += &alloc::format!(
                    "{:?} {:?} sent {} received {} {:?}\n{:?}\n",
                    c.phase(),
                    c.state,
                    h.sent,
                    h.received,
                    c.info(),
                    c.subflows().collect::<Vec<_>>(),
                );
            }
        }
        out
    }

    /// Everything arrived, both ends closed in good order and every frame is back.
    fn assert_done(mut self) {
        for (i, h) in self.hosts.iter().enumerate() {
            let peer = &self.hosts[1 - i];
            assert_eq!(h.received, peer.to_send, "host {i} at {:?}\n{}", self.now, self.state());
            assert!(h.finished, "host {i} saw no end\n{}", self.state());
            assert_eq!(h.closed, Some(CloseReason::Done), "host {i}\n{}", self.state());
        }
        self.wire.clear();
        let pool = self.pool.clone();
        drop(self);
        assert_eq!(pool.free(), FRAMES, "every frame is back");
    }
}

/// Options and text fit into what the path takes.
fn check_size(segment: &Segment, gso_size: u16) {
    let text = if gso_size > 0 { u32::from(gso_size) } else { segment.text.len() };
    let tx = crate::wire::emit(flow(), segment, gso_size);
    let options = tx.header.len().saturating_sub(usize::from(tx.ip_len) + 20) as u32;
    assert!(options <= 40);
    assert!(text + options <= 1460, "{text} octets and {options} of options: {segment:?}");
}

fn strip(segment: &mut Segment) {
    match &mut segment.options {
        Options::Syn(o) => o.mptcp.clear(),
        Options::Segment(o) => o.mptcp.clear(),
    }
}

fn is_syn(segment: &Segment) -> bool {
    segment.control == Control::Syn
}

#[test]
fn a_transfer_uses_both_paths_and_closes_in_good_order() {
    let mut sim = Sim::standard(1);
    sim.hosts[A].to_send = 2_000_000;
    sim.hosts[B].to_send = 1_000_000;
    sim.connect();
    sim.run_for(150);
    assert_eq!(sim.hosts[A].established, Some(true));
    assert_eq!(sim.hosts[B].established, Some(true));
    assert_eq!(sim.hosts[A].mptcp().subflows().count(), 2, "joined after ADD_ADDR");
    sim.run_to_end(5_000);
    assert_eq!(sim.hosts[A].counters.EchoAddTx, 1);
    assert_eq!(sim.hosts[B].counters.EchoAdd, 1);
    sim.assert_done();
}

/// The subflows of A when `ours` of its addresses and `theirs` of B's can all reach each other.
fn subflows_between(ours: usize, theirs: usize, fullmesh: bool) -> usize {
    let (mut a, mut b) = (config(A), config(B));
    a.addresses.truncate(ours);
    b.addresses.truncate(theirs);
    for address in a.addresses.iter_mut().chain(&mut b.addresses) {
        address.reach.clear();
        address.fullmesh = fullmesh;
    }
    let mut sim = Sim::new(3, a, b);
    sim.hosts[A].to_send = 1_000;
    for host in &mut sim.hosts {
        host.close_after = false;
    }
    sim.connect();
    sim.run_for(3_000);
    sim.hosts[A].mptcp().subflows().count()
}

#[test]
fn there_is_one_subflow_for_each_address_of_the_side_that_has_more() {
    assert_eq!(subflows_between(1, 1, false), 1);
    assert_eq!(subflows_between(2, 1, false), 2);
    assert_eq!(subflows_between(1, 2, false), 2);
    assert_eq!(subflows_between(2, 2, false), 2);
}

#[test]
fn a_full_mesh_has_one_for_each_pair_of_addresses() {
    assert_eq!(subflows_between(2, 1, true), 2);
    assert_eq!(subflows_between(1, 2, true), 2);
    assert_eq!(subflows_between(2, 2, true), 4);
}

#[test]
fn two_links_carry_nearly_the_sum_of_both() {
    let mut sim = Sim::standard(2);
    sim.hosts[A].to_send = u64::MAX;
    sim.hosts[A].close_after = false;
    sim.hosts[B].close_after = false;
    sim.connect();
    sim.run_for(1_000);
    let before = sim.hosts[B].received;
    sim.run_for(2_000);
    let rate = (sim.hosts[B].received - before) as f64 * 8.0 / 2.0 / 1e6;
    println!("{rate} Mbit/s, {:?}", sim.hosts[A].counters);
    // 1400 of 1460 + 60 octets are text where each segment carries 32 octets of options.
    let most = 200.0 * 1428.0 / 1488.0;
    assert!(rate > 0.9 * most, "{rate} Mbit/s of {most}\n{}", sim.state());
}

/// Pacing holds a subflow back by the burst; what waits above is handed to it when the time has come.
#[test]
fn paced_subflows_carry_the_sum_and_do_not_stall() {
    for congestion in [Algorithm::Bbr, Algorithm::Cubic] {
        let paced = |host| {
            let mut cfg = config(host);
            cfg.tcp.congestion = congestion;
            cfg.tcp.pacing = Pacing::On;
            cfg
        };
        let mut sim = Sim::new(2, paced(A), paced(B));
        sim.hosts[A].to_send = 60_000_000;
        sim.connect();
        sim.run_for(1_000);
        let before = sim.hosts[B].received;
        sim.run_for(1_000);
        let rate = (sim.hosts[B].received - before) as f64 * 8.0 / 1e6;
        assert!(rate > 165.0, "{congestion:?}: {rate} Mbit/s of 200\n{}", sim.state());
        sim.run_to_end(60_000);
        sim.assert_done();
    }
}

#[test]
fn every_octet_arrives_once_whatever_the_network_does() {
    for seed in 0..6 {
        for checksum in [false, true] {
            let mut a = config(A);
            a.checksum = checksum;
            let mut sim = Sim::new(100 + seed, a, config(B));
            for link in &mut sim.links {
                (link.loss, link.reorder, link.duplicate) = (0.02, 0.1, 0.02);
            }
            sim.hosts[A].to_send = 300_000 + seed * 1001;
            sim.hosts[B].to_send = 200_001;
            sim.connect();
            sim.run_to_end(120_000);
            sim.assert_done();
        }
    }
}

/// Longest time without a new octet at the receiver.
fn longest_stall(progress: &[(Instant, u64)], from: Instant) -> Duration {
    let after = progress.windows(2).filter(|w| w[1].0 > from);
    after.map(|w| w[1].0.since(w[0].0)).max().unwrap_or_default()
}

#[test]
fn a_cut_link_stalls_the_stream_for_at_most_a_moment() {
    for dead in 0..2 {
        let mut sim = Sim::standard(3 + dead as u64);
        sim.hosts[A].to_send = 20_000_000;
        sim.connect();
        sim.run_for(500);
        let cut = sim.now;
        sim.links[dead].up = false;
        sim.run_for(1_500);
        let stall = longest_stall(&sim.hosts[B].progress, cut);
        println!("dead {dead}: stall {stall:?} {:?}", sim.hosts[A].counters);
        assert!(stall < Duration::from_millis(600), "{stall:?}\n{}", sim.state());
        sim.links[dead].up = true;
        sim.run_to_end(60_000);
        sim.assert_done();
    }
}

#[test]
fn a_lost_subflow_is_opened_again() {
    let mut b = config(B);
    b.tcp.data_retries = 3;
    let mut a = config(A);
    a.tcp.data_retries = 3;
    let mut sim = Sim::new(5, a, b);
    sim.hosts[A].to_send = u64::MAX;
    sim.hosts[A].close_after = false;
    sim.hosts[B].close_after = false;
    sim.connect();
    sim.run_for(500);
    sim.links[0].up = false;
    sim.run_for(10_000);
    assert_eq!(sim.hosts[A].mptcp().subflows().filter(|sf| sf.tcp.is_some()).count(), 1);
    sim.links[0].up = true;
    sim.run_for(20_000);
    let c = sim.hosts[A].mptcp();
    let open: Vec<_> = c.subflows().filter(|sf| sf.tcp.is_some()).collect();
    assert_eq!(open.len(), 2, "{open:?}");
    assert!(open.iter().all(|sf| sf.bytes_sent > 100_000), "{open:?}");
}

#[test]
fn stripped_syn_means_plain_tcp_at_both_ends() {
    let mut sim = Sim::standard(10);
    sim.hook = Some(Box::new(|from, _, seg| {
        if from == A && is_syn(seg) {
            strip(seg);
        }
        true
    }));
    plain_transfer(sim, FallbackCause::SynAck);
}

#[test]
fn stripped_syn_ack_means_plain_tcp_at_both_ends() {
    let mut sim = Sim::standard(11);
    sim.hook = Some(Box::new(|from, _, seg| {
        if from == B && is_syn(seg) {
            strip(seg);
        }
        true
    }));
    plain_transfer(sim, FallbackCause::SynAck);
}

#[test]
fn options_stripped_after_the_handshake_mean_plain_tcp() {
    let mut sim = Sim::standard(12);
    sim.hook = Some(Box::new(|_, _, seg| {
        if !is_syn(seg) {
            strip(seg);
        }
        true
    }));
    sim.hosts[A].to_send = 100_000;
    sim.hosts[B].to_send = 100_000;
    sim.connect();
    sim.run_to_end(80_000);
    assert_eq!(sim.hosts[B].fallback, Some(FallbackCause::ThirdPacket));
    assert!(sim.hosts[A].fallback.is_some());
    sim.assert_done();
}

fn plain_transfer(mut sim: Sim, cause: FallbackCause) {
    sim.hosts[A].to_send = 100_000;
    sim.hosts[B].to_send = 100_000;
    sim.connect();
    sim.run_to_end(80_000);
    assert_eq!(sim.hosts[A].established, Some(false));
    assert_eq!(sim.hosts[A].fallback, Some(cause));
    for (i, h) in sim.hosts.iter().enumerate() {
        assert_eq!(h.received, 100_000, "host {i}");
        assert!(h.finished);
    }
}

#[test]
fn unanswered_syns_lose_their_option() {
    let mut sim = Sim::standard(13);
    sim.hook = Some(Box::new(|from, _, seg| {
        !(from == A && is_syn(seg) && !seg.options.mptcp().is_empty())
    }));
    plain_transfer(sim, FallbackCause::SynRetries);
}

#[test]
fn lost_third_ack_is_repaired_by_form_4() {
    let mut sim = Sim::standard(14);
    let mut dropped = false;
    sim.hook = Some(Box::new(move |from, _, seg| {
        let form3 = seg.options.mptcp().iter().any(|o| {
            matches!(o, MptcpOption::MpCapable(MpCapable { receiver_key: Some(_), data: None, .. }))
        });
        if from == A && form3 && !dropped {
            dropped = true;
            return false;
        }
        true
    }));
    sim.hosts[A].to_send = 50_000;
    sim.connect();
    sim.run_to_end(60_000);
    assert_eq!(sim.hosts[B].established, Some(true));
    sim.assert_done();
}

/// Joins at B with a SYN that says `token`; returns the RST's reason.
fn refused_join(token: u32) -> Option<crate::wire::ResetReason> {
    let mut sim = Sim::standard(15);
    sim.hosts[A].close_after = false;
    sim.hosts[B].close_after = false;
    let seen = Rc::new(core::cell::Cell::new(None));
    let sink = seen.clone();
    sim.hook = Some(Box::new(move |from, _, seg| {
        if let Options::Syn(o) = &mut seg.options {
            for option in &mut o.mptcp {
                if let MptcpOption::MpJoin(MpJoin::Syn { token: t, .. }) = option {
                    *t = token;
                }
            }
        }
        if from == B {
            for option in seg.options.mptcp() {
                if let MptcpOption::MpTcpRst { reason, .. } = option {
                    sink.set(Some(*reason));
                }
            }
        }
        true
    }));
    sim.connect();
    sim.run_for(3_000);
    assert_eq!(sim.hosts[A].mptcp().phase(), Phase::Open, "the connection does not mind");
    let right = token == KEY_B.token();
    assert_eq!(sim.hosts[A].mptcp().subflows().count(), 1 + usize::from(right));
    seen.get()
}

#[test]
fn a_join_with_an_unknown_token_is_refused() {
    assert_eq!(refused_join(0xdead_beef), Some(crate::wire::ResetReason::MptcpSpecific));
    assert_eq!(refused_join(KEY_B.token()), None, "the right one is not");
}

#[test]
fn a_join_with_a_bad_hmac_is_reset() {
    for bad in [A, B] {
        let mut sim = Sim::standard(16);
        sim.hosts[A].to_send = 10_000;
        sim.hosts[A].close_after = false;
        sim.hosts[B].close_after = false;
        sim.hook = Some(Box::new(move |from, _, seg| {
            let options = match &mut seg.options {
                Options::Syn(o) => &mut o.mptcp,
                Options::Segment(o) => &mut o.mptcp,
            };
            for option in options.iter_mut().filter(|_| from == bad) {
                match option {
                    MptcpOption::MpJoin(MpJoin::SynAck { hmac, .. }) => *hmac ^= 1,
                    MptcpOption::MpJoin(MpJoin::Ack { hmac }) => hmac[19] ^= 1,
                    _ => {}
                }
            }
            true
        }));
        sim.connect();
        sim.run_for(900);
        let failures = [
            sim.hosts[A].counters.MPJoinSynAckHMacFailure,
            sim.hosts[B].counters.MPJoinAckHMacFailure,
        ];
        assert_eq!(failures, if bad == B { [1, 0] } else { [0, 1] });
        assert_eq!(sim.hosts[B].received, 10_000);
        assert_eq!(sim.hosts[B].mptcp().subflows().count(), 1);
        assert_eq!(sim.hosts[A].mptcp().phase(), Phase::Open);
    }
}

#[test]
fn no_data_before_the_fourth_ack() {
    let mut sim = Sim::standard(17);
    sim.hosts[A].to_send = 3_000_000;
    let fourth = Rc::new(core::cell::Cell::new(0u32));
    let counter = fourth.clone();
    // The first two answers to the third ACK are lost.
    sim.hook = Some(Box::new(move |from, flow, seg| {
        let second = flow.local.addr == address(from, 1);
        if second && from == B && !is_syn(seg) && counter.get() < 2 {
            counter.set(counter.get() + 1);
            return false;
        }
        if second && from == A && counter.get() < 2 {
            assert!(seg.text.is_empty(), "data before the fourth ACK");
        }
        true
    }));
    sim.connect();
    sim.run_to_end(60_000);
    assert_eq!(fourth.get(), 2);
    sim.assert_done();
}

#[test]
fn fastclose_ends_both_sides_at_once() {
    for from in [A, B] {
        let mut sim = Sim::standard(18);
        sim.hosts[A].to_send = 5_000_000;
        sim.hosts[A].close_after = false;
        sim.hosts[B].close_after = false;
        sim.connect();
        sim.run_for(300);
        sim.hosts[from].mptcp().abort(CloseReason::Aborted);
        sim.pump(from);
        sim.run_for(200);
        assert_eq!(sim.hosts[from].closed, Some(CloseReason::Aborted));
        assert_eq!(sim.hosts[1 - from].closed, Some(CloseReason::Reset));
        assert_eq!(sim.hosts[1 - from].counters.MPFastcloseRx, 1);
    }
}

#[test]
fn half_closed_the_other_direction_goes_on() {
    let mut sim = Sim::standard(19);
    sim.hosts[A].to_send = 1000;
    sim.hosts[B].close_after = false;
    sim.connect();
    sim.run_for(1_000);
    assert!(sim.hosts[B].finished && sim.hosts[B].received == 1000);
    assert_eq!(sim.hosts[A].mptcp().state, DataState::FinWait2);
    assert_eq!(sim.hosts[A].mptcp().subflows().count(), 2, "no subflow FIN yet");
    sim.hosts[B].to_send = 2_000_000;
    sim.hosts[B].close_after = true;
    sim.pump(B);
    sim.run_to_end(10_000);
    sim.assert_done();
}

/// RFC 8684 3.3.3: the data level is through, the peer acknowledged our subflow FINs and is never heard of again.
#[test]
fn a_finished_connection_does_not_await_fins_for_ever() {
    let mut sim = Sim::standard(21);
    sim.hosts[A].to_send = 1000;
    let ends = |segment: &Segment| matches!(segment.control, Control::Fin | Control::Rst);
    sim.hook = Some(Box::new(move |from, _, segment| from == A || !ends(segment)));
    sim.connect();
    sim.run_for(30_000);
    let state = |sim: &mut Sim| sim.hosts[A].mptcp().subflows().next().unwrap().tcp.unwrap().state;
    assert_eq!(state(&mut sim), State::FinWait2);
    sim.run_for(20_000);
    assert_eq!(state(&mut sim), State::FinWait2, "less than a minute ago it was heard of");
    sim.run_to_end(60_000);
    assert_eq!(sim.hosts[A].closed, Some(CloseReason::Done));
}

/// RFC 9293 3.6: a connection of which one direction was closed may live for ever.
#[test]
fn half_closed_a_connection_lives_through_any_silence() {
    let mut sim = Sim::standard(22);
    sim.hosts[A].to_send = 1000;
    sim.hosts[B].close_after = false;
    sim.connect();
    sim.run_for(86_400_000);
    assert_eq!(sim.hosts[A].mptcp().state, DataState::FinWait2);
    sim.hosts[B].to_send = 1000;
    sim.hosts[B].close_after = true;
    sim.pump(B);
    sim.run_to_end(10_000);
    sim.assert_done();
}

#[test]
fn every_order_of_closing_comes_to_an_end() {
    for seed in 0..8 {
        for (first, gap) in [(A, 0), (B, 0), (A, 5), (B, 5), (A, 17), (B, 400)] {
            let mut sim = Sim::standard(200 + seed);
            for link in &mut sim.links {
                (link.loss, link.reorder) = (if seed > 0 { 0.1 } else { 0.0 }, 0.2);
            }
            sim.hosts[A].close_after = false;
            sim.hosts[B].close_after = false;
            sim.hosts[A].to_send = 5000;
            sim.hosts[B].to_send = 3000;
            sim.connect();
            sim.run_for(60 + seed * 3);
            sim.hosts[first].close_after = true;
            sim.pump(first);
            sim.run_for(gap);
            sim.hosts[1 - first].close_after = true;
            sim.pump(1 - first);
            sim.run_to_end(200_000);
            sim.assert_done();
        }
    }
}

#[test]
fn a_closed_window_opens_again_though_the_update_is_lost() {
    let mut sim = Sim::standard(20);
    sim.hosts[A].to_send = 9_000_000;
    sim.hosts[B].reading = false;
    sim.connect();
    sim.run_for(3_000);
    let held = sim.hosts[B].mptcp().rcv.text.ready();
    assert!(held <= sim.hosts[B].cfg.receive_buffer, "{held}");
    assert!(held > sim.hosts[B].cfg.receive_buffer / 2, "{held}\n{}", sim.state());
    sim.links.iter_mut().for_each(|l| l.up = false);
    sim.hosts[B].reading = true;
    sim.pump(B);
    sim.run_for(50);
    sim.links.iter_mut().for_each(|l| l.up = true);
    sim.run_to_end(120_000);
    sim.assert_done();
}

#[test]
fn bulk_data_has_at_most_20_octets_of_mptcp_options() {
    let mut sim = Sim::standard(21);
    sim.hosts[A].to_send = 3_000_000;
    let full = Rc::new(core::cell::Cell::new((0u32, 0u32)));
    let count = full.clone();
    sim.hook = Some(Box::new(move |from, _, seg| {
        if from == A && seg.text.len() >= 1400 {
            let (all, best) = count.get();
            count.set((all + 1, best + u32::from(seg.text.len() >= 1460 - 12 - 20)));
        }
        true
    }));
    sim.connect();
    sim.run_to_end(20_000);
    let (all, best) = full.get();
    assert!(all > 1000 && best * 10 > all * 9, "{best} of {all}");
    sim.assert_done();
}

#[test]
fn syn_and_syn_ack_payload_stay_outside_of_the_data() {
    let mut sim = Sim::standard(22);
    let (a, b) = (&b"request"[..], &b"answer!!"[..]);
    let text = |sim: &Sim, bytes| Chain::copy_from(&sim.pool, 0, bytes).unwrap();
    let (syn, synack) = (text(&sim, a), text(&sim, b));
    let mut rng = Rng::from_number(1);
    let cfg = [sim.hosts[A].cfg.clone(), sim.hosts[B].cfg.clone()];
    let now = sim.now;
    let mut client = Connection::connect(cfg[A].clone(), KEY_A, flow(), syn, &mut rng, now);
    let (_, tx) = client.poll_transmit(&mut rng, now).unwrap();
    assert_eq!(tx.segment.text.to_vec(), a);
    let back = flow().reversed();
    let server =
        Connection::accept(cfg[B].clone(), KEY_B, back, &tx.segment, a.len() as u32, &mut rng, now);
    let mut server = server.unwrap();
    assert!(server.poll_transmit(&mut rng, now).is_none(), "held");
    drop(tx);
    server.answer(synack, now);
    let (_, tx) = server.poll_transmit(&mut rng, now).unwrap();
    client.on_segment(flow(), tx.segment, &mut rng, now + Duration::from_millis(10));
    match client.poll_event() {
        Some(Event::Established { synack_text, acked_text, mptcp }) => {
            assert_eq!((synack_text.to_vec(), acked_text, mptcp), (b.to_vec(), 7, true));
        }
        other => panic!("{other:?}"),
    }
    sim.hosts[A].end = End::Mptcp(Box::new(client));
    sim.hosts[B].end = End::Mptcp(Box::new(server));
    sim.hosts[A].to_send = 100_000;
    sim.hosts[B].to_send = 100_000;
    sim.now += Duration::from_millis(10);
    sim.pump(A);
    sim.run_to_end(10_000);
    sim.assert_done();
}

#[test]
fn a_damaged_mapping_costs_its_subflow_or_the_protocol() {
    for alone in [false, true] {
        let mut a = config(A);
        a.checksum = true;
        if alone {
            a.addresses.clear();
        }
        let mut sim = Sim::new(23, a, config(B));
        let (mut seen, mut last, mut victim) = (0, None, None);
        sim.hook = Some(Box::new(move |from, _, seg| {
            // A proxy that rewrites octets would leave the checksum as it was: damage the checksum instead.
            if let (A, Options::Segment(o)) = (from, &mut seg.options) {
                for option in &mut o.mptcp {
                    if let MptcpOption::Dss(dss) = option
                        && let (Some(m), false) = (&mut dss.mapping, seg.text.is_empty())
                    {
                        seen += 1;
                        let this = Some((m.dsn, m.ssn));
                        if seen > 50 && this != last && victim.is_none() {
                            victim = this; // from its first segment on
                        }
                        last = this;
                        if victim == this {
                            m.checksum = m.checksum.map(|c| c ^ 0x55);
                        }
                    }
                }
            }
            true
        }));
        sim.hosts[A].to_send = 500_000;
        sim.connect();
        sim.run_to_end(60_000);
        let b = &sim.hosts[B];
        assert_eq!(b.counters.DataCsumErr, 1, "{alone} {:?}", b.counters);
        let caused = alone.then_some(FallbackCause::Checksum);
        assert_eq!(b.fallback, caused, "{alone} {:?}", b.counters);
        assert_eq!(b.counters.DSSCorruptionReset, u64::from(!alone));
        sim.assert_done();
    }
}

#[test]
fn a_flow_opened_again_begins_beyond_its_predecessor() {
    let cfg = SharedConfig::from(config(A));
    let mut rng = Rng::from_number(5);
    let now = Instant::from_millis(7_000);
    let mut at = |flow, now| cfg.opening(flow, &mut rng, now);
    let (first, again) = (at(flow(), now), at(flow(), now + Duration::from_secs(11)));
    assert_eq!(again.iss.since(first.iss), 11_000_000 / 4, "RFC 6528: one in four microseconds");
    assert_eq!(again.ts_offset, first.ts_offset, "RFC 7323 5.4: timestamps go on");
    let other = at(flow().reversed(), now);
    assert!(other.iss != first.iss && other.ts_offset != first.ts_offset);
}

// RFC 9293 3.10.7.3: it belongs to an earlier incarnation of the flow.
#[test]
fn an_old_ack_is_answered_and_the_attempt_goes_on() {
    let mut rng = Rng::from_number(5);
    let now = Instant::from_millis(7_000);
    let cfg = Rc::new(SharedConfig::from(config(A)));
    let mut client = Connection::connect(cfg, KEY_A, flow(), Chain::new(), &mut rng, now);
    let (_, syn) = client.poll_transmit(&mut rng, now).unwrap();
    let (ack, options) = (Some(syn.segment.seq - 1000), Options::Segment(Default::default()));
    let old = Segment { ack, control: Control::None, options, ..syn.segment.clone() };
    client.on_segment(flow(), old, &mut rng, now);
    let (_, rst) = client.poll_transmit(&mut rng, now).unwrap();
    assert_eq!((rst.segment.control, rst.segment.seq), (Control::Rst, syn.segment.seq - 1000));
    assert!(client.poll_transmit(&mut rng, now).is_none());
    assert_eq!(client.phase(), Phase::Opening);
    let later = client.deadline().expect("the SYN is to be sent again");
    client.on_deadline(&mut rng, later);
    let (_, again) = client.poll_transmit(&mut rng, later).unwrap();
    assert_eq!((again.segment.control, again.segment.seq), (Control::Syn, syn.segment.seq));
}
