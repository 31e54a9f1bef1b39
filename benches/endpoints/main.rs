//! Two ends in one thread: our TCP and MPTCP, each in a shard, against smoltcp over the same packets of 1,500 octets.
//!
//! Counted is everything from a program's octets to packets with finished checksums, and back to the other program's buffer;
//! what lies between is a queue of octets for all of them. Where it takes super-segments, as the offloads of a device of the
//! same MTU do, it looks at no checksum.
#![allow(missing_docs, reason = "a program")]
#![forbid(unsafe_code)]

mod smol;

use plait_benches::TEXT;
use plait_benches::chain::Device;
use plait_benches::ends::{Pair, Setting};
use std::time::Instant as Clock;

const ROUNDS: usize = 5;

/// Times a transfer, once it has come into its stride.
struct Meter {
    goal: u64,
    begun: Option<(Clock, u64)>,
}

impl Meter {
    fn new(goal: u64) -> Meter {
        Meter { goal, begun: None }
    }

    /// Nanoseconds per full segment of text, when all was read.
    fn on_read(&mut self, read: u64) -> Option<f64> {
        match self.begun {
            None if read > self.goal / 10 => self.begun = Some((Clock::now(), read)),
            Some((at, from)) if read > self.goal => {
                let segments = (read - from) as f64 / TEXT as f64;
                return Some(at.elapsed().as_nanos() as f64 / segments);
            }
            _ => {}
        }
        None
    }
}

/// As [`smol::run`], for ours.
fn ours(setting: Setting, octets: u64) -> f64 {
    let (mut pair, mut meter) = (Pair::new(setting), Meter::new(octets));
    loop {
        if let Some(time) = meter.on_read(pair.turn()) {
            return time;
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Who it is, with how many subflows, and what the devices do.
type Contender = (&'static str, fn(Setting, u64) -> f64, u8, Device);

const CONTENDERS: [Contender; 7] = [
    ("smoltcp", smol::run, 0, Device::Plain),
    ("plain TCP", ours, 0, Device::Plain),
    ("MPTCP, 1 subflow", ours, 1, Device::Plain),
    ("MPTCP, 2 subflows", ours, 2, Device::Plain),
    ("MPTCP, 8 subflows", ours, 8, Device::Plain),
    ("plain TCP, super-segments", ours, 0, Device::Offloads),
    ("MPTCP, super-segments", ours, 1, Device::Offloads),
];

/// Connections, and octets of a measurement.
const LOADS: [(u16, u64); 3] = [(1, 400_000_000), (100, 200_000_000), (1_000, 200_000_000)];

/// The contenders that have `only` in their name, in turn.
fn compare(connections: u16, octets: u64, only: &str) {
    let chosen: Vec<&Contender> = CONTENDERS.iter().filter(|c| c.0.contains(only)).collect();
    let mut times = vec![Vec::new(); chosen.len()];
    for _ in 0..ROUNDS {
        for (times, (_, run, subflows, device)) in times.iter_mut().zip(&chosen) {
            let setting = Setting { connections, subflows: *subflows, device: *device };
            times.push(run(setting, octets));
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    println!("connections: {connections}");
    for ((name, ..), time) in chosen.iter().zip(&medians) {
        print!("  {name:<26} {time:6.0} ns per 1,448 octets");
        if only.is_empty() {
            let (smoltcp, tcp) = (medians[0] / time, medians[1] / time);
            print!(", {smoltcp:5.2} x smoltcp, {tcp:4.2} of plain TCP");
        }
        println!();
    }
}

fn main() {
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    println!("both ends in one thread, MTU 1500; medians of {ROUNDS} rounds in turn");
    for (connections, octets) in LOADS {
        compare(connections, octets, only.as_deref().unwrap_or_default());
    }
}
