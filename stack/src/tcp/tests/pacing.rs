//! Pacing as it is seen on the wire, in virtual time.

use super::super::*;
use super::bottleneck::{Link, Net, Supply};
use crate::time::{Duration, Instant};
use alloc::vec::Vec;

const MS: fn(u64) -> Duration = Duration::from_millis;
const TICK: Duration = Duration::from_nanos(1 << 16);

fn paced() -> TcpConfig {
    TcpConfig {
        pacing: Pacing::On,
        receive_buffer: 32 << 20,
        send_buffer: 32 << 20,
        ..TcpConfig::default()
    }
}

/// Octets between two departures, and the time.
fn spacing(departures: &[(Instant, u32)]) -> impl Iterator<Item = (u32, Duration)> {
    departures.windows(2).map(|pair| (pair[0].1, pair[1].0.since(pair[0].0)))
}

/// Portions that the window takes whole: only the rate spreads them, and as cwnd stands still it does too.
#[test]
fn text_leaves_at_the_pacing_rate() {
    for (gso_max, tick) in
        [(1, Duration::ZERO), (1, TICK), (65_000, Duration::ZERO), (65_000, TICK)]
    {
        let mut net = Net::new(Link::new(10_000, 40, 1.0), 1);
        net.tick = tick;
        net.open(&TcpConfig { gso_max, ..paced() }, Supply::Portions(400_000, MS(100)));
        net.run(MS(3000));
        net.flows[0].departures.clear();
        let rate = net.flows[0].sender.info().pacing_rate.unwrap();
        net.run(MS(500));
        let departures = &net.flows[0].departures;
        let most = (rate / 1000).min(u64::from(gso_max)).max(1448);
        assert!(departures.iter().all(|(_, n)| u64::from(*n) <= most), "a burst");
        let after = net.flows[0].sender.info().pacing_rate.unwrap();
        assert!(after.abs_diff(rate) < rate / 50, "it stands still: {rate}, {after}");
        // Within a portion, and without the millisecond at its beginning that a pause is good for.
        let portions = departures.chunk_by(|a, b| b.0.since(a.0) < MS(10));
        let late = portions.flat_map(|portion| {
            portion.iter().filter(|(at, _)| at.since(portion[0].0) > Duration::ZERO)
        });
        let late: Vec<_> = late.copied().collect();
        let busy: Vec<_> = spacing(&late).filter(|(_, gap)| *gap < MS(10)).collect();
        let octets: f64 = busy.iter().map(|(n, _)| f64::from(*n)).sum();
        let time: f64 = busy.iter().map(|(_, gap)| gap.as_secs_f64()).sum();
        let ratio = octets / time / rate as f64;
        assert!((0.95..1.05).contains(&ratio), "gso {gso_max}, tick {tick:?}: {ratio}");
    }
}

#[test]
fn the_initial_window_leaves_at_once_and_an_ack_never_waits() {
    let mut net = Net::new(Link::new(10, 100, 1.0), 1);
    net.open(&TcpConfig { gso_max: 1, ..paced() }, Supply::Endless);
    net.run(MS(100) + Duration::from_micros(100));
    let first: Vec<_> = net.flows[0].departures.iter().map(|(at, _)| *at).collect();
    assert_eq!(first.len(), 10);
    assert!(first.iter().all(|at| *at == first[0]), "RFC 6928: ten segments in one burst");
}

/// However late it is polled, and after a pause, no more than a millisecond and a burst leaves together.
#[test]
fn no_burst_is_over_the_bound() {
    let mut net = Net::new(Link { queue: 64 << 20, ..Link::new(1_000, 40, 1.0) }, 1);
    net.tick = MS(5);
    let pause = Supply::Pause(Instant::from_millis(3300), Instant::from_millis(3600));
    net.open(&TcpConfig { receive_buffer: 8 << 20, ..paced() }, pause);
    net.run(MS(2000));
    net.flows[0].departures.clear();
    net.run(MS(1000));
    let rate = net.flows[0].sender.info().pacing_rate.unwrap();
    let departures = &net.flows[0].departures;
    let mut at = 0;
    while at < departures.len() {
        let together = departures[at..].iter().take_while(|(t, _)| *t == departures[at].0);
        let octets: u32 = together.clone().map(|(_, n)| n).sum();
        assert!(u64::from(octets) <= rate / 1000 + 2 * 65_000, "{octets} at {rate}");
        at += together.count();
    }
}

/// A retransmission timeout answers at once, however low the rate: nothing else is in the network.
#[test]
fn a_timeout_does_not_wait_for_the_rate() {
    let mut net = Net::new(Link::new(1, 200, 2.0), 1);
    net.open(&paced(), Supply::Endless);
    net.run(MS(3000));
    net.link.loss = 1.0;
    net.run(MS(3000));
    let rtos = net.flows[0].sender.info().rto_count;
    assert!(rtos > 0);
    net.flows[0].departures.clear();
    let mut before = rtos;
    for _ in 0..200 {
        net.run(MS(50));
        let now = net.flows[0].sender.info().rto_count;
        if now > before {
            let (at, _) = net.flows[0].departures.last().copied().expect("sent at once");
            assert!(net.now.since(at) <= MS(50));
            before = now;
        }
    }
    assert!(before > rtos, "more timeouts came");
}

/// Goodput of one CUBIC flow as a share of the link, after a second.
fn share(pacing: Pacing, queue: f64, mbits: u64, rtt_ms: u64) -> f64 {
    let mut net = Net::new(Link::new(mbits, rtt_ms, queue), 3);
    net.tick = TICK;
    net.open(&TcpConfig { pacing, ..paced() }, Supply::Endless);
    net.run(MS(1000));
    net.goodput(MS(9000))[0] / net.capacity()
}

/// A queue of a tenth of the pipe overflows when a window leaves in bursts.
#[test]
fn pacing_costs_cubic_nothing_and_helps_where_the_queue_is_shallow() {
    for (queue, mbits, rtt_ms) in [(0.1, 100, 20), (0.1, 100, 100), (1.0, 100, 20), (4.0, 100, 20)]
    {
        let shares = [Pacing::Off, Pacing::On].map(|p| share(p, queue, mbits, rtt_ms));
        std::eprintln!("queue of {queue} BDP, {mbits} Mbit/s, {rtt_ms} ms: {shares:?}");
        assert!(shares[1] > 0.98 * shares[0], "{shares:?}");
    }
}
