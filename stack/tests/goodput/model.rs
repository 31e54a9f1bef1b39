//! Long runs against what the RFCs say a congestion control gets.

use crate::experiment::*;
use stack::rng::Rng;
use stack::tcp::Algorithm;
use stack::testkit::bottleneck::Loss;
use stack::time::Duration;

/// Average window in segments of AIMD with a loss every 1/p segments (RFC 9438 4.3 and 5.1; NewReno and CUBIC alike).
fn aimd(p: f64) -> f64 {
    (1.5 / p).sqrt()
}

/// RFC 9438 5.1, figure 6: the same of the cubic region. The larger of the two counts.
fn cubic(p: f64, rtt: f64) -> f64 {
    let (c, beta) = (0.4f64, 0.7f64);
    (c * (3.0 + beta) / (4.0 * (1.0 - beta))).powf(0.25) * (rtt / p).powf(0.75)
}

/// Segments between losses.
fn gap(loss: Loss, rng: &mut Rng) -> f64 {
    match loss {
        Loss::Random(p) => (1.0 - f64::from(rng.u32()) / 4_294_967_296.0).ln() / (1.0 - p).ln(),
        Loss::Periodic(n) => n as f64,
        Loss::Bursts(..) => unreachable!("no model"),
    }
}

/// Average window in segments of a flow that does what the RFC says round by round, with nothing else in its way: the
/// formulas of RFC 9438 5.1 hold for losses in equal distances and no fast convergence, and chance helps (as the window
/// grows faster the longer there is no loss).
fn ideal(algorithm: Algorithm, loss: Loss, rtt: f64) -> f64 {
    const ROUNDS: u32 = 400_000;
    let (c, beta) = (0.4, if algorithm == Algorithm::Cubic { 0.7 } else { 0.5 });
    let mut rng = Rng::from_number(1);
    let mut left = gap(loss, &mut rng);
    let (mut window, mut sum) = (10.0f64, 0.0);
    let (mut w_max, mut w_est, mut prior, mut k, mut t) = (0.0f64, 10.0, 0.0, 0.0, 0.0);
    for _ in 0..ROUNDS {
        sum += window;
        left -= window;
        if left <= 0.0 {
            // The next round repairs it and does not grow.
            left += gap(loss, &mut rng);
            left = if left < 0.0 { gap(loss, &mut rng) } else { left };
            w_max = if window < w_max { window * (1.0 + beta) / 2.0 } else { window };
            prior = window;
            window = (window * beta).max(2.0);
            (w_est, t) = (window, 0.0);
            k = ((w_max - window).max(0.0) / c).cbrt();
            w_max = w_max.max(window);
            continue;
        }
        if algorithm == Algorithm::NewReno {
            window += 1.0;
            continue;
        }
        t += rtt;
        w_est += if w_est < prior { 3.0 * (1.0 - beta) / (1.0 + beta) } else { 1.0 };
        let w_cubic = c * (t - k) * (t - k) * (t - k) + w_max;
        window =
            if w_cubic < w_est { window.max(w_est) } else { w_cubic.clamp(window, 1.5 * window) };
    }
    sum / f64::from(ROUNDS)
}

/// Average window in segments over some 400 losses per seed, on a path of 1 Gbit/s.
fn measured(algorithm: Algorithm, loss: Loss, p: f64, rtt: u64, model: f64) -> f64 {
    let seeds = if matches!(loss, Loss::Random(_)) { 1..=4 } else { 1..=1 };
    let n = seeds.clone().count() as f64;
    let cell = Cell {
        rate: 1_000_000_000,
        rtt: Duration::from_millis(rtt),
        queue: 1.0,
        loss,
        late: Duration::ZERO,
        flows: 1,
        warm: Duration::from_secs(30),
        steady: Duration::from_secs_f64(400.0 / p * rtt as f64 / 1e3 / model),
    };
    seeds
        .map(|seed| cell.run(sender(algorithm), seed))
        .map(|o| o.goodput * cell.pipe())
        .sum::<f64>()
        / n
}

fn sender(algorithm: Algorithm) -> Sender {
    if algorithm == Algorithm::Cubic { CUBIC } else { NEWRENO }
}

const BOTH: [Algorithm; 2] = [Algorithm::NewReno, Algorithm::Cubic];

/// RFC 9438 5.1: the average window is the model's, with CUBIC at 1 Gbit/s, 100 ms and 0.01 % as everywhere.
#[test]
fn the_average_window_under_random_loss_is_that_of_the_rfc() {
    for (rtt, p) in [(30, 1e-4), (100, 1e-4), (300, 1e-4), (100, 1e-3)] {
        for algorithm in BOTH {
            let seconds = rtt as f64 / 1e3;
            let closed = match algorithm {
                Algorithm::Cubic => cubic(p, seconds).max(aimd(p)),
                _ => aimd(p),
            };
            // Fast convergence makes chaos of equal distances: whether the window has come back to W_max hangs by a hair.
            for (loss, band) in [(Loss::Random(p), 0.05), (Loss::Periodic((1.0 / p) as u64), 0.07)]
            {
                let ideal = ideal(algorithm, loss, seconds);
                let window = measured(algorithm, loss, p, rtt, closed);
                let said = format!(
                    "{algorithm:?}, {rtt} ms, {loss:?}: {window:.1} segments; ideal {ideal:.1}, \
                     closed form {closed:.1}"
                );
                eprintln!("{said}");
                assert!((window / ideal - 1.0).abs() < band, "{said}");
                assert!(window / closed > 0.9, "{said}");
                if let Loss::Random(_) = loss {
                    assert!(window / closed > 0.95, "{said}");
                }
            }
        }
    }
}

#[test]
fn without_loss_the_link_is_full_and_nothing_needs_a_timeout() {
    for rtt in [1, 20, 100, 300] {
        for algorithm in BOTH {
            let cell = Cell {
                rate: 1_000_000_000,
                rtt: Duration::from_millis(rtt),
                queue: 1.0,
                loss: Loss::Random(0.0),
                late: Duration::ZERO,
                flows: 1,
                warm: Duration::from_secs(10),
                steady: Duration::from_secs(30),
            };
            let outcome = cell.run(sender(algorithm), 1);
            assert!(outcome.goodput > 0.95, "{algorithm:?}, {rtt} ms: {outcome:?}");
            assert_eq!(outcome.rtos, 0, "{algorithm:?}, {rtt} ms: {outcome:?}");
        }
    }
}

#[test]
fn four_flows_share_a_link_evenly() {
    for (rate, rtt, queue) in
        [(100_000_000, 20, 1.0), (100_000_000, 20, 0.1), (10_000_000, 100, 4.0)]
    {
        for algorithm in BOTH {
            let cell = Cell {
                rate,
                rtt: Duration::from_millis(rtt),
                queue,
                loss: Loss::Random(0.0),
                late: Duration::ZERO,
                flows: 4,
                warm: Duration::from_secs(60),
                steady: Duration::from_secs(240),
            };
            let outcome = cell.run(sender(algorithm), 1);
            assert!(outcome.jain > 0.9, "{algorithm:?}, {rtt} ms, {queue} BDP: {outcome:?}");
        }
    }
}
