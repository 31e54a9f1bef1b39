//! Two streams over a path with rate, delay, queue, loss, reordering and duplication, in virtual time.

use super::super::*;
use super::knobs::config;
use crate::buf::{Chain, Pool};
use crate::testkit::bottleneck::{Bottleneck, Loss, Path};
use crate::time::Duration;
use crate::wire::Options;
use alloc::rc::Rc;
use alloc::vec::Vec;
use proptest::prelude::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn network(cfg: [TcpConfig; 2], path: Path, back: Path, seed: u64) -> Bottleneck {
    let mut net = Bottleneck::new(path, back, seed);
    net.add(cfg.map(Rc::new), Duration::ZERO);
    net
}

fn octet(i: usize) -> u8 {
    (i * 31 + i / 251) as u8
}

/// Both ends send `sizes` octets and close; everything must arrive, and every frame come back.
fn exchange(cfg: [TcpConfig; 2], path: Path, back: Path, seed: u64, sizes: [usize; 2]) {
    let pool = Pool::new(30_000, 1600);
    {
        let mut net = network(cfg, path, back, seed);
        let mut sent = [0; 2];
        let mut got = [Vec::new(), Vec::new()];
        let limit = net.now + Duration::from_secs(36_000);
        let mut steps = 0;
        loop {
            for i in 0..2 {
                if i == 1 && !net.peek(0).accepted() {
                    continue;
                }
                while sent[i] < sizes[i] && net.pair(0).ends[i].room() > 0 {
                    let n = (net.rng.below(3000) as usize + 1).min(sizes[i] - sent[i]);
                    let bytes: Vec<u8> = (sent[i]..sent[i] + n).map(octet).collect();
                    net.pair(0).ends[i].send(Chain::copy_from(&pool, 100, &bytes).unwrap());
                    sent[i] += n;
                }
                if sent[i] == sizes[i] {
                    net.pair(0).ends[i].close();
                }
                // Reads slowly now and then, so that the window closes.
                if net.rng.chance(0.5)
                    && let Some(text) = net.pair(0).ends[i].recv()
                {
                    got[i].extend(text.to_vec());
                }
            }
            steps += 1;
            assert!(
                steps < 2_000_000,
                "no end: {net:?}",
                net = net.peek(0).ends.each_ref().map(Stream::info)
            );
            if !net.step(limit) {
                break;
            }
            let over = |s: &Stream| matches!(s.phase(), Phase::TimeWait | Phase::Closed(_));
            if over(&net.peek(0).ends[0]) && over(&net.peek(0).ends[1]) && net.peek(0).accepted() {
                break;
            }
        }
        for ((end, got), want) in
            net.pair(0).ends.iter_mut().zip(&mut got).zip([sizes[1], sizes[0]])
        {
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
    Path { delay: MS(5), ..Path::default() }
}

#[test]
fn a_clean_path_carries_both_directions() {
    exchange([TcpConfig::default(), TcpConfig::default()], clean(), clean(), 1, [200_000, 100_000]);
}

fn chance(most: f64) -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..most]
}

/// Loses, delays, doubles, marks, meddles, and may be narrow, with or without a word.
fn some_path() -> impl Strategy<Value = Path> {
    let widest = prop_oneof![2 => Just(0u16), 1 => 128u16..1400];
    let router = prop_oneof![Just(1.0), Just(0.5), Just(0.0)];
    let gro = prop_oneof![Just(0u32), Just(65_000)];
    (
        chance(0.15),
        chance(0.2),
        chance(0.1),
        chance(0.5),
        chance(0.3),
        chance(0.3),
        widest,
        router,
        gro,
    )
        .prop_map(|(loss, late, duplicate, mark, clear, change, widest, router, gro)| Path {
            loss: Loss::Random(loss),
            reorder: (late, MS(30)),
            duplicate,
            mark,
            meddle: (clear, change),
            widest,
            router,
            gro,
            ..clean()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_path_delivers_byte_exact(
        a in config(), b in config(), path in some_path(), back in some_path(), seed: u64,
        sizes in (0usize..60_000, 0usize..60_000),
    ) {
        // A black hole that nobody speaks of is found by those only who look for it.
        let seeing = |c: TcpConfig, path: &Path| match path.widest {
            0 => c,
            _ if path.router > 0.0 => c,
            _ if c.mtu_probing != MtuProbing::Off => c,
            _ => TcpConfig { mtu_probing: MtuProbing::BlackHole, ..c },
        };
        let cfg = [seeing(a, &path), seeing(b, &back)];
        exchange(cfg, path, back, seed, [sizes.0, sizes.1]);
    }
}

#[test]
fn options_never_push_a_segment_beyond_the_mss() {
    let mut net = network([TcpConfig::default(), TcpConfig::default()], clean(), clean(), 3);
    let pool = Pool::new(4_000, 1600);
    net.step(net.now + MS(1));
    for _ in 0..20 {
        net.step(net.now + MS(1000));
    }
    net.pair(0).ends[0].send(Chain::copy_from(&pool, 0, &alloc::vec![1; 100_000]).unwrap());
    let now = net.now;
    while let Some(tx) = net.pair(0).ends[0].poll_transmit(now) {
        let Options::Segment(options) = &tx.segment.options else { panic!("no SYN here") };
        let stamps = if options.timestamps.is_some() { 12 } else { 0 };
        let size = if tx.gso_size == 0 { tx.segment.text.len() } else { u32::from(tx.gso_size) };
        assert!(size + stamps <= 1460, "{size}");
        assert!(options.sack.is_empty());
    }
}
