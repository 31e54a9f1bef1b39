//! `plait bench transfer`: Plait's TCP against the kernel's, over emulated links that queue, lose and reorder.
//!
//! [`cells`] are the links, [`round`] one transfer over one of them, [`relay`] the kernel in Plait's place, [`table`] what
//! came of it.
#![forbid(unsafe_code)]

mod cells;
mod relay;
mod round;
mod table;

use super::rounds::Spread;
use crate::workspace::{AtTheEnd, Workspace};
use cells::Cell;
use clap::{Args, ValueEnum};
use pcap_tests::netns::Privilege;
use round::{Contender, Round, Setting};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Transfers over an emulated link: Plait to Linux and Linux to Plait beside Linux to Linux.
///
/// One TCP connection crosses the link, with the same packets lost or late for each contender of a round. What counts are
/// ratios of medians.
///
/// Example: plait bench transfer --cells 10mbit,loss1 --rounds 5 --json transfer.json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct TransferArgs {
    /// Cells whose name contains one of these words; otherwise all.
    #[arg(long, value_delimiter = ',', value_name = "WORD")]
    cells: Vec<String>,
    /// Print the cells' names, and no more.
    #[arg(long)]
    list: bool,
    /// Whose TCP is at either end of the link.
    #[arg(long, value_enum, value_delimiter = ',',
          default_values = ["linux", "plait-sends", "plait-receives"])]
    contenders: Vec<Contender>,
    /// How often each transfer is made.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// As many octets are sent as CUBIC should need about so long for.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Congestion control of all senders.
    #[arg(long, value_enum, default_value = "cubic")]
    congestion: Congestion,
    /// Decides which packets are lost or late in the first round; the next round's is one more.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write everything measured to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Capture each transfer's packets at its sender into this directory (needs tcpdump); the last round stays.
    #[arg(long, value_name = "DIRECTORY")]
    captures: Option<PathBuf>,
    /// Keep the directory with Plait's configuration and log.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Congestion {
    Cubic,
    Reno,
    /// Version 3 in Plait, version 1 in the kernel.
    Bbr,
}

impl Congestion {
    fn name(self) -> &'static str {
        match self {
            Congestion::Cubic => "cubic",
            Congestion::Reno => "reno",
            Congestion::Bbr => "bbr",
        }
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    kernel: String,
    congestion: &'static str,
    seed: u64,
    rounds: u32,
    cells: Vec<CellReport>,
}

/// One cell.
#[derive(Debug, Serialize)]
struct CellReport {
    cell: Cell,
    /// Of each transfer.
    octets: u64,
    contenders: Vec<Entry>,
}

/// One contender in one cell.
#[derive(Debug, Serialize)]
struct Entry {
    contender: Contender,
    rounds: Vec<Round>,
    failures: Vec<String>,
    /// Median of its goodput over that of `linux`.
    of_linux: Option<f64>,
    /// The same of the steady parts.
    steady_of_linux: Option<f64>,
}

impl Entry {
    fn spread(&self, quantity: impl Fn(&Round) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(quantity))
    }
}

/// Runs it and prints the table.
pub fn run(args: &TransferArgs) -> io::Result<()> {
    let chosen = chosen(&args.cells)?;
    if args.list {
        chosen.iter().for_each(|cell| println!("{}", cell.name));
        return Ok(());
    }
    Privilege::acquire().map_err(io::Error::other)?;
    let at_the_end = if args.keep { AtTheEnd::Keep } else { AtTheEnd::Remove };
    let workspace = Workspace::new("bench", at_the_end)?;
    if let Some(directory) = &args.captures {
        fs::create_dir_all(directory)?;
    }
    let setting = Setting {
        congestion: args.congestion.name(),
        directory: workspace.path(),
        captures: args.captures.as_deref(),
    };
    let mut report = Report::new(args, chosen)?;
    for round in 0..args.rounds {
        one_round(args, round, setting, &mut report);
        report.compare();
        if let Some(file) = &args.json {
            let json = serde_json::to_string_pretty(&report).map_err(io::Error::other)?;
            fs::write(file, json + "\n").map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", file.display()))
            })?;
        }
    }
    print!("{}", table::table(&report));
    report.check()
}

fn chosen(words: &[String]) -> io::Result<Vec<Cell>> {
    let mut cells = cells::all();
    if !words.is_empty() {
        cells.retain(|cell| words.iter().any(|word| cell.name.contains(word.as_str())));
    }
    if cells.is_empty() {
        return Err(io::Error::other("no cell has such a name; --list shows them all"));
    }
    Ok(cells)
}

/// Every contender once in every cell.
fn one_round(args: &TransferArgs, round: u32, setting: Setting<'_>, report: &mut Report) {
    let seed = args.seed.wrapping_add(u64::from(round));
    let cells = report.cells.len();
    for (index, CellReport { cell, octets, contenders }) in report.cells.iter_mut().enumerate() {
        for entry in contenders {
            let name = entry.contender.name();
            let place = format!("round {} cell {}/{cells} {}", round + 1, index + 1, cell.name);
            match round::run(entry.contender, cell, *octets, seed, setting) {
                Ok(result) => {
                    let Round { goodput, steady, seconds, retransmitted, timeouts, .. } = &result;
                    eprintln!(
                        "{place}: {name}: {goodput:.2} Mbit/s, steady {steady:.2}, {seconds:.1} s, \
                         {retransmitted} sent again, {timeouts} timeouts"
                    );
                    entry.rounds.push(result);
                }
                Err(error) => {
                    eprintln!("{place}: {name}: FAILED: {error}");
                    entry.failures.push(error.to_string());
                }
            }
        }
    }
}

impl Report {
    fn new(args: &TransferArgs, cells: Vec<Cell>) -> io::Result<Report> {
        let entry = |contender: &Contender| Entry {
            contender: *contender,
            rounds: Vec::new(),
            failures: Vec::new(),
            of_linux: None,
            steady_of_linux: None,
        };
        let report = |cell: Cell| CellReport {
            octets: cell.octets(f64::from(args.seconds)),
            contenders: args.contenders.iter().map(entry).collect(),
            cell,
        };
        Ok(Report {
            bench: "transfer",
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            congestion: args.congestion.name(),
            seed: args.seed,
            rounds: args.rounds,
            cells: cells.into_iter().map(report).collect(),
        })
    }

    /// Everybody with the kernel, cell by cell.
    fn compare(&mut self) {
        for cell in &mut self.cells {
            let linux = cell.contenders.iter().find(|entry| entry.contender == Contender::Linux);
            let median = |entry: &Entry, of: fn(&Round) -> f64| Some(entry.spread(of)?.median);
            let [goodput, steady]: [fn(&Round) -> f64; 2] =
                [|round| round.goodput, |round| round.steady];
            let base = [goodput, steady].map(|of| linux.and_then(|linux| median(linux, of)));
            for entry in &mut cell.contenders {
                entry.of_linux =
                    median(entry, goodput).zip(base[0]).map(|(own, linux)| own / linux);
                entry.steady_of_linux =
                    median(entry, steady).zip(base[1]).map(|(own, linux)| own / linux);
            }
        }
    }

    /// Fails if somebody never got anything through.
    fn check(&self) -> io::Result<()> {
        for CellReport { cell, contenders, .. } in &self.cells {
            for entry in contenders {
                if entry.rounds.is_empty() {
                    let name = entry.contender.name();
                    return Err(io::Error::other(format!("no result of {name} in {}", cell.name)));
                }
            }
        }
        Ok(())
    }
}
