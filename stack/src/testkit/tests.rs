//! The simulator itself, with smoltcp as the only host.

use super::packet::{MPTCP, TcpPacket};
use super::*;
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use std::prelude::rust_2024::*;
use std::vec;

const SERVER: &str = "10.0.0.2";

struct Pair {
    sim: Sim,
    client: NodeId<SmoltcpHost>,
    server: NodeId<SmoltcpHost>,
}

fn hosts(sim: &mut Sim) -> (NodeId<SmoltcpHost>, NodeId<SmoltcpHost>) {
    let mut rng = sim.fork_rng();
    let client = sim.add(SmoltcpHost::new("10.0.0.1".parse().unwrap(), &mut rng));
    let server = sim.add(SmoltcpHost::new(SERVER.parse().unwrap(), &mut rng));
    (client, server)
}

fn over(link: Link) -> Pair {
    let mut sim = Sim::new(7);
    let (client, server) = hosts(&mut sim);
    sim.link((client, 0), (server, 0), link);
    Pair { sim, client, server }
}

fn through(pass: impl Pass) -> Pair {
    let mut sim = Sim::new(7);
    let (client, server) = hosts(&mut sim);
    let middle = sim.add(Middlebox::new(pass));
    let link = Link::new(20_000_000, Duration::from_millis(2));
    sim.link((client, 0), (middle, 0), link.clone());
    sim.link((middle, 1), (server, 0), link);
    Pair { sim, client, server }
}

fn transfer(pair: &mut Pair, octets: u64) -> App {
    let Pair { sim, client, server } = pair;
    let (client, server) = (*client, *server);
    sim[server].listen(80, Plan::echo(), 1);
    let to = Endpoint::new(SERVER.parse().unwrap(), 80);
    let now = sim.now();
    sim[client].connect(to, Plan::send(octets, 3), now);
    let limit = Duration::from_secs(600);
    assert!(sim.run_while(limit, |sim| sim[client].app(0).end.is_none()), "not over in time");
    let app = sim[client].app(0).clone();
    assert_eq!(app.end, Some(End::Done));
    assert_eq!(app.sent, sim[server].app(0).received);
    assert_eq!(app.sent, app.received, "echoed");
    assert_eq!(app.sent.len, octets);
    app
}

#[test]
fn a_rate_and_a_delay_are_kept() {
    let mut pair = over(Link::new(8_000_000, Duration::from_millis(10)));
    let begin = pair.sim.now();
    let app = transfer(&mut pair, 1_000_000);
    let first = app.progress.first().unwrap().since(begin);
    assert!(first >= Duration::from_millis(40) && first < Duration::from_millis(50), "{first:?}");
    let goodput = app.progress.goodput(Duration::ZERO);
    assert!((6_000_000.0..8_000_000.0).contains(&goodput), "{goodput}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let mut pair =
            over(Link::new(8_000_000, Duration::from_millis(5)).loss(0.02).duplicate(0.01));
        transfer(&mut pair, 100_000);
        (pair.sim.now(), pair.sim.stats(LinkId::first()))
    };
    assert_eq!(run(), run());
}

#[test]
fn faults_are_as_frequent_as_asked() {
    let mut pair = over(
        Link::new(8_000_000, Duration::from_millis(1))
            .loss(0.05)
            .corrupt(0.05)
            .duplicate(0.05)
            .reorder(0.05, Duration::from_millis(3)),
    );
    transfer(&mut pair, 400_000);
    let [there, _] = pair.sim.stats(LinkId::first());
    let share = |n: u64| n as f64 / there.sent as f64;
    assert!((0.02..0.09).contains(&share(there.lost)), "{there:?}");
    assert!((0.02..0.09).contains(&share(there.corrupted)), "{there:?}");
}

#[test]
fn a_burst_loses_neighbours() {
    let burst = Burst { begin: 0.01, end: 0.3 };
    let mut pair = over(Link::new(8_000_000, Duration::from_millis(1)).burst(burst));
    transfer(&mut pair, 200_000);
    assert!(pair.sim.stats(LinkId::first())[0].lost > 0);
}

#[test]
fn an_outage_is_a_gap() {
    let at = |ms: u64| Instant::from_millis(1_000 + ms);
    let mut pair = over(Link::new(8_000_000, Duration::from_millis(5)).outage(at(100), at(600)));
    let app = transfer(&mut pair, 400_000);
    let (gap, begin) = app.progress.longest_gap();
    assert!(gap >= Duration::from_millis(480), "{gap:?}");
    assert!(begin.unwrap() < at(140), "{begin:?}");
}

#[test]
fn middleboxes_leave_streams_whole() {
    transfer(&mut through(Split { size: 500 }), 200_000);
    transfer(&mut through(Nat::new("10.0.0.9".parse().unwrap())), 200_000);
    transfer(&mut through(RewriteSequence { by: 0x8000_1234 }), 200_000);
    let mut pair = through(Coalesce::default());
    transfer(&mut pair, 200_000);
}

#[test]
fn stripping_leaves_other_options() {
    // 10.0.0.1:1000 > 10.0.0.2:80, SYN with MSS and MP_CAPABLE.
    let mut octets = vec![0x45, 0, 0, 48, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    octets.extend([3, 232, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x70, 2, 255, 255, 0, 0, 0, 0]);
    octets.extend([2, 4, 5, 180, MPTCP, 4, 1, 1]);
    assert!(TcpPacket::parse(octets.clone()).is_err(), "checksums are wrong");
    let whole = packet::repaired(octets).unwrap();
    let packet = TcpPacket::parse(whole).unwrap();
    assert_eq!(packet.mptcp_subtypes(), [0]);
    let mut strip = Strip::new(StripFrom::Syn);
    let mut out = vec![];
    strip.pass(0, packet, Instant::ZERO, &mut out);
    let out = TcpPacket::parse(out.remove(0).finish()).unwrap();
    assert!(!out.has_option(MPTCP) && out.has_option(2));
    assert_eq!(strip.stripped, 1);
}

#[test]
fn octets_do_not_depend_on_the_cut() {
    let mut whole = [0; 100];
    octets(5, 3, &mut whole);
    let mut parts = [0; 100];
    let (a, b) = parts.split_at_mut(37);
    octets(5, 3, a);
    octets(5, 40, b);
    assert_eq!(whole, parts);
    assert_ne!(Digest::of(&whole), Digest::of(&whole[1..]));
}

struct Insomniac;

impl Node for Insomniac {
    fn receive(&mut self, _: usize, _: Vec<u8>, _: Instant) {}
    fn poll(&mut self, _: Instant, _: &mut Outbox) {}
    fn deadline(&self) -> Option<Instant> {
        Some(Instant::ZERO)
    }
}

#[test]
#[should_panic(expected = "busy with nothing")]
fn a_node_that_never_sleeps_is_found_out() {
    let mut sim = Sim::new(1);
    sim.add(Insomniac);
    sim.run_for(Duration::from_secs(1));
}
