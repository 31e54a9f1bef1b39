//! `plait bench memory`: what a conversion point costs per segment, without any system call.
#![forbid(unsafe_code)]

mod figures;
mod worker;

use super::machine::processors;
use super::plot;
use super::rounds::Spread;
use benches::chain::{Device, SEGMENT, Setting, WRITERS, WRITTEN};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Instant;

/// Nanoseconds per relayed segment: client - uMCP - dMCP - server in one thread, in memory.
///
/// Counted is everything that a conversion point does from a burst in frames to packets ready for a device: both legs, ACKs,
/// timers, checksums, segmentation; not what the device and the hosts do.
///
/// Of many connections, 100 write at a time, 64 KiB each; then it is the turn of the next. Each has its turn once before it
/// counts and once while it does, however few segments are asked for: 100,000 connections take twice 4,700,000 segments. All defaults together take some ten minutes.
///
/// With more than one worker, as many chains run on pinned threads of their own and share nothing: this is how throughput
/// grows with the cores.
///
/// Example: plait bench memory --subflows 1,2,8 --connections 1,100 --json memory.json
/// Example: plait bench memory --subflows 2 --connections 100 --checksum off --workers 1,2
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct MemoryArgs {
    /// Paths, hence subflows of each connection.
    #[arg(long, value_delimiter = ',', default_values = ["1", "2", "4", "8"],
          value_parser = clap::value_parser!(u8).range(1..=8))]
    subflows: Vec<u8>,
    /// Connections at once, of each worker.
    #[arg(long, value_delimiter = ',', default_values = ["1", "100", "10000", "100000"],
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: Vec<u32>,
    /// Whether data sequence signals carry a checksum.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["off", "on"])]
    checksum: Vec<Switch>,
    /// Chains at once, each on a core of its own.
    #[arg(long, value_delimiter = ',', default_values = ["1"],
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Vec<u16>,
    /// Segments of a transfer, of each worker.
    #[arg(long, default_value_t = 400_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    segments: u64,
    /// Only devices without offloads.
    #[arg(long)]
    no_offloads: bool,
    /// Write everything measured to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw it to this file, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Switch {
    Off,
    On,
}

impl Switch {
    fn name(self) -> &'static str {
        match self {
            Switch::Off => "off",
            Switch::On => "on",
        }
    }
}

/// One line of the table.
#[derive(Clone, Copy, Debug, Serialize)]
struct Case {
    offloads: Switch,
    workers: u16,
    connections: u32,
    subflows: u8,
    checksum: Switch,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    case: Case,
    /// Nanoseconds per segment, over the parts of all workers.
    umcp: Spread,
    dmcp: Spread,
    /// Packets in and out per segment.
    umcp_packets: (f64, f64),
    dmcp_packets: (f64, f64),
    /// Payload through all chains, hosts included, 10^9 bits per second.
    gbit_per_s: f64,
}

/// What the file holds.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    processors: usize,
    segments: u64,
    results: Vec<Outcome>,
}

/// Runs it and prints the table.
pub fn run(args: &MemoryArgs) -> io::Result<()> {
    println!(
        "client - uMCP - dMCP - server in memory, {} segments or more; ns per segment of {SEGMENT} octets: median of {} parts (least to greatest)",
        args.segments,
        worker::PARTS
    );
    println!(
        "of many connections {WRITERS} write at a time, {} KiB each; Gbit/s: all chains, hosts included\n",
        WRITTEN >> 10
    );
    println!(
        "{:>8} {:>7} {:>11} {:>8} {:>8}   {:<24} {:<24} {:<16} {:>7}",
        "offloads",
        "workers",
        "connections",
        "subflows",
        "checksum",
        "uMCP",
        "dMCP",
        "packets in + out",
        "Gbit/s"
    );
    let (cases, begun) = (cases(args), Instant::now());
    let mut results = Vec::new();
    for (done, case) in cases.iter().enumerate() {
        let progress =
            Progress(format!("{} of {}, {:.0?}", done + 1, cases.len(), begun.elapsed()));
        let outcome = measure(*case, args.segments, &progress)?;
        progress.wipe();
        println!("{}", line(&outcome));
        results.push(outcome);
    }
    println!("\n{:.0?} in all", begun.elapsed());
    if let Some(path) = &args.svg {
        let title = format!("plait bench memory: ns per segment of {SEGMENT} octets");
        plot::write(path, &title, &figures::panels(&results))?;
    }
    if let Some(path) = &args.json {
        let (processors, segments) = (processors(), args.segments);
        let report = Report { bench: "memory", processors, segments, results };
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}

/// Everything that was asked for, in the order of the table.
fn cases(args: &MemoryArgs) -> Vec<Case> {
    let mut cases = Vec::new();
    for offloads in [Switch::Off, Switch::On] {
        for &workers in &args.workers {
            for &connections in &args.connections {
                for &subflows in &args.subflows {
                    for &checksum in &args.checksum {
                        cases.push(Case { offloads, workers, connections, subflows, checksum });
                    }
                }
            }
        }
    }
    cases.retain(|case| !(args.no_offloads && case.offloads == Switch::On));
    cases
}

/// A line on a terminal that the next one overwrites.
#[derive(Clone, Debug)]
struct Progress(String);

impl Progress {
    fn say(&self, words: &str) {
        if io::stderr().is_terminal() {
            eprint!("\r{}: {words:40}", self.0);
        }
    }

    fn wipe(&self) {
        if io::stderr().is_terminal() {
            eprint!("\r{:80}\r", "");
        }
    }
}

/// Segments until every connection has had its turn.
fn round(connections: u32) -> u64 {
    match connections {
        1 => 0,
        many => u64::from(many) * u64::from(WRITTEN).div_ceil(SEGMENT),
    }
}

fn measure(case: Case, segments: u64, progress: &Progress) -> io::Result<Outcome> {
    let setting = Setting {
        subflows: case.subflows,
        checksum: case.checksum == Switch::On,
        device: match case.offloads {
            Switch::Off => Device::Plain,
            Switch::On => Device::Offloads,
        },
        connections: case.connections,
    };
    let segments = segments.max(round(case.connections));
    let shares = worker::run(setting, segments, case.workers, progress)?;
    let parts =
        |which: usize| shares.iter().flat_map(move |s| s.parts.iter().map(move |p| p[which]));
    let packets = |which: usize| {
        let mean = |of: fn(&(f64, f64)) -> f64| {
            shares.iter().map(|s| of(&s.packets[which])).sum::<f64>() / shares.len() as f64
        };
        (mean(|p| p.0), mean(|p| p.1))
    };
    Ok(Outcome {
        case,
        umcp: Spread::of(parts(0)).unwrap_or_default(),
        dmcp: Spread::of(parts(1)).unwrap_or_default(),
        umcp_packets: packets(0),
        dmcp_packets: packets(1),
        gbit_per_s: shares.iter().map(|share| share.gbit_per_s).sum(),
    })
}

fn line(outcome: &Outcome) -> String {
    let Case { offloads, workers, connections, subflows, checksum } = outcome.case;
    let packets = format!("{:.2} + {:.2}", outcome.umcp_packets.0, outcome.umcp_packets.1);
    format!(
        "{:>8} {workers:>7} {connections:>11} {subflows:>8} {:>8}   {:<24} {:<24} {packets:<16} {:>7.2}",
        offloads.name(),
        checksum.name(),
        outcome.umcp.show(0),
        outcome.dmcp.show(0),
        outcome.gbit_per_s
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_carries_what_it_should_and_nothing_twice() {
        use Switch::{Off, On};
        for (offloads, checksum, subflows, connections, workers) in
            [(Off, Off, 1, 1, 1), (Off, On, 8, 3, 1), (On, On, 2, 1, 1), (Off, Off, 1, 300, 2)]
        {
            let case = Case { offloads, workers, connections, subflows, checksum };
            let outcome = measure(case, 10_000, &Progress(String::new())).expect("it runs");
            let (packets_in, packets_out) = outcome.umcp_packets;
            let most = if offloads == On { 0.2 } else { 1.2 };
            assert!(packets_in < most && packets_out < most, "{outcome:?}");
            assert!(outcome.umcp.median > 0.0 && outcome.dmcp.median > 0.0, "{outcome:?}");
            assert!(outcome.gbit_per_s > 0.0, "{outcome:?}");
        }
    }
}
