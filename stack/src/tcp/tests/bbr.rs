//! BBR over a bottleneck, in virtual time.

use super::super::*;
use super::bottleneck::{Link, Net, Supply};
use crate::time::{Duration, Instant};
use alloc::vec::Vec;

const MS: fn(u64) -> Duration = Duration::from_millis;
const TICK: Duration = Duration::from_nanos(1 << 16);

fn with(congestion: Algorithm) -> TcpConfig {
    TcpConfig {
        congestion,
        receive_buffer: 64 << 20,
        send_buffer: 64 << 20,
        ..TcpConfig::default()
    }
}

fn bbr() -> TcpConfig {
    with(Algorithm::Bbr)
}

fn net(link: Link, seed: u64) -> Net {
    let mut net = Net::new(link, seed);
    net.tick = TICK;
    net
}

#[test]
fn bbr_fills_the_link_and_keeps_the_queue_short() {
    for (mbits, rtt_ms) in [(10, 40), (100, 20), (1_000, 100)] {
        let mut net = net(Link::new(mbits, rtt_ms, 4.0), 1);
        net.open(&bbr(), Supply::Endless);
        net.run(MS(3000));
        net.longest_wait = Duration::ZERO;
        let share = net.goodput(MS(12_000))[0] / net.capacity();
        let info = net.flows[0].sender.info();
        std::eprintln!("{mbits} Mbit/s, {rtt_ms} ms: {share}, wait {:?}", net.longest_wait);
        std::eprintln!("  {info:?}");
        assert!(share > 0.95, "{mbits} Mbit/s, {rtt_ms} ms: {share}");
        assert!(net.longest_wait < MS(rtt_ms), "the queue: {:?}", net.longest_wait);
        assert_eq!((net.dropped, info.rto_count), (0, 0));
        let told = info.delivery_rate.unwrap() as f64 / net.capacity();
        assert!((0.85..1.1).contains(&told), "delivery rate {told}");
    }
}

/// Below the two in a hundred that BBR takes for granted, losses that say nothing about the rate do not lower it.
#[test]
fn bbr_keeps_the_link_where_random_loss_stops_cubic() {
    let share = |algorithm| {
        let mut net = net(Link { loss: 0.01, ..Link::new(100, 40, 1.0) }, 5);
        net.open(&with(algorithm), Supply::Endless);
        net.run(MS(3000));
        let share = net.goodput(MS(20_000))[0] / (0.99 * net.capacity());
        std::eprintln!("{algorithm:?} at 1 % loss: {share} {:?}", net.flows[0].sender.info());
        share
    };
    assert!(share(Algorithm::Cubic) < 0.2);
    assert!(share(Algorithm::Bbr) > 0.9);
}

fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    sum * sum / (shares.len() as f64 * shares.iter().map(|x| x * x).sum::<f64>())
}

#[test]
fn two_flows_share_the_link() {
    for seed in 1..=3 {
        let mut net = net(Link::new(100, 20, 1.0), seed);
        net.open(&bbr(), Supply::Endless);
        net.run(MS(2000 + 370 * seed));
        net.open(&bbr(), Supply::Endless);
        net.run(MS(15_000));
        let shares: Vec<f64> =
            net.goodput(MS(20_000)).iter().map(|rate| rate / net.capacity()).collect();
        std::eprintln!("seed {seed}: {shares:?}");
        assert!(jain(&shares) > 0.9, "seed {seed}: {shares:?}");
        assert!(shares.iter().sum::<f64>() > 0.9, "seed {seed}: {shares:?}");
    }
}

#[test]
fn a_shallow_queue_is_not_kept_overflowing() {
    for queue in [0.1, 0.5] {
        let mut net = net(Link::new(100, 40, queue), 1);
        net.open(&bbr(), Supply::Endless);
        net.run(MS(4000));
        let (dropped, sent) = (net.dropped, net.flows[0].received / 1448);
        let share = net.goodput(MS(15_000))[0] / net.capacity();
        let lost = (net.dropped - dropped) as f64 / (net.flows[0].received / 1448 - sent) as f64;
        std::eprintln!("queue of {queue} BDP: {share}, lost {lost}");
        assert!(share > 0.85, "{share}");
        assert!(lost < 0.02, "{lost}");
    }
}

#[test]
fn bbr_and_cubic_live_side_by_side() {
    for seed in 1..=3 {
        let mut net = net(Link::new(100, 20, 1.0), seed);
        net.open(&bbr(), Supply::Endless);
        net.run(MS(370 * (seed - 1)));
        net.open(&with(Algorithm::Cubic), Supply::Endless);
        net.run(MS(5_000));
        let shares: Vec<f64> =
            net.goodput(MS(40_000)).iter().map(|rate| rate / net.capacity()).collect();
        std::eprintln!("seed {seed}: {shares:?}");
        assert!(shares.iter().all(|share| *share > 0.2), "seed {seed}: {shares:?}");
    }
}

/// Every five seconds the pipe runs nearly empty for 200 ms, so that the least round trip is seen.
#[test]
fn the_round_trip_is_probed_every_five_seconds() {
    let mut net = net(Link::new(100, 40, 4.0), 1);
    net.open(&bbr(), Supply::Endless);
    net.run(MS(3000));
    let bdp = 500_000;
    let mut low = Vec::new();
    for k in 0..2_000u64 {
        net.run(MS(10));
        if net.flows[0].sender.info().cwnd < bdp * 6 / 10 {
            low.push(k);
        }
    }
    let spans: Vec<_> = low.chunk_by(|a, b| a + 1 == *b).map(|s| (s[0], s.len())).collect();
    std::eprintln!("{spans:?}");
    assert!((3..=4).contains(&spans.len()), "{spans:?}");
    assert!(spans.iter().all(|(_, n)| (18..40).contains(n)), "200 ms and a round: {spans:?}");
    assert!(spans.windows(2).all(|s| (480..620).contains(&(s[1].0 - s[0].0))), "{spans:?}");
}

/// What a slow application sends is no measure of the path: neither are rate and window lowered to it, nor blown up.
#[test]
fn an_application_that_sends_little_is_not_taken_for_the_path() {
    let mut net = net(Link::new(100, 20, 1.0), 1);
    net.open(&bbr(), Supply::Portions(30_000, MS(50)));
    net.run(MS(10_000));
    let info = net.flows[0].sender.info();
    std::eprintln!("{info:?}");
    assert!(info.app_limited);
    assert!(info.cwnd < 1_000_000, "{info:?}");
    assert!(info.delivery_rate.unwrap() < 15_000_000, "{info:?}");
    assert_eq!(net.dropped, 0);
}

#[test]
fn after_a_pause_the_flow_goes_on_at_its_rate() {
    let (from, to) = (Instant::from_millis(6_000), Instant::from_millis(7_000));
    let mut net = net(Link::new(100, 40, 1.0), 1);
    net.open(&bbr(), Supply::Pause(from, to));
    net.run(from.since(net.now));
    let dropped = net.dropped;
    net.run(to.since(net.now) + MS(60));
    net.longest_wait = Duration::ZERO;
    let share = net.goodput(MS(500))[0] / net.capacity();
    std::eprintln!("{share}, wait {:?}", net.longest_wait);
    assert!(share > 0.85, "{share}");
    assert!(net.longest_wait < MS(20), "no burst: {:?}", net.longest_wait);
    assert_eq!(net.dropped, dropped);
}

/// An outage ends in timeouts; the rate is found again.
#[test]
fn a_timeout_costs_bbr_no_more_than_the_outage() {
    let mut net = net(Link::new(100, 40, 1.0), 1);
    net.open(&bbr(), Supply::Endless);
    net.run(MS(4000));
    net.link.loss = 1.0;
    net.run(MS(600));
    assert!(net.flows[0].sender.info().rto_count > 0);
    net.link.loss = 0.0;
    net.run(MS(2000));
    let share = net.goodput(MS(3000))[0] / net.capacity();
    std::eprintln!("{share} {:?}", net.flows[0].sender.info());
    assert!(share > 0.9, "{share}");
}
